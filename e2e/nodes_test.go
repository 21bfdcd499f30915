package e2e

import (
	"crypto/rand"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"estover.dev"
	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
)

// Two servers, each a process of its own on one PostgreSQL, both take credentials away
// and both rotate: no user is taken twice and none is left, and one rotation that is
// asked for at both is one rotation, whoever of them does its steps (F7).
func TestTwoServersOneVault(t *testing.T) {
	t.Parallel()
	database := dbtest.Postgres(t)
	v := newVault(t, e2etest.StartOn(t, database))
	two := e2etest.StartOn(t, database, "--issuer", v.URL, "--root-key", "file:"+v.Data+"-keys/root.key")
	server := func(i int) *e2etest.Server { return []*e2etest.Server{v.Server, two}[i%2] }
	outside, err := pgx.Connect(t.Context(), database)
	must(t, err)
	t.Cleanup(func() { _ = outside.Close(t.Context()) })
	c := newCounter(t)
	c.enable(t, v.admin)

	// A server has at most four batches of fifty at one target under way, so what is more
	// than 200 is the other one's.
	const keys, users = 220, 30
	var work sync.WaitGroup
	turns := make(chan int, keys+users)
	for i := range keys + users {
		turns <- i
	}
	close(turns)
	for range 8 {
		work.Go(func() {
			for i := range turns {
				role := "counted"
				if i >= keys {
					role = "people-postgres"
				}
				if err := server(i).Post(t, v.token, "/v1/leases", map[string]any{"role": role, "purpose": "a test"}, nil); err != nil {
					t.Errorf("a lease of %s at server %d: %v", role, i%2+1, err)
				}
			}
		})
	}
	work.Wait()
	mark := v.leases(t, "role=people-postgres")[0].User[:len("e_12345678_")]
	if n, made := len(v.pg.Users(t, mark)), c.left(); n != users || made != keys {
		t.Fatalf("there are %d users and %d keys, want %d and %d", n, made, users, keys)
	}

	hold := make(chan struct{})
	c.mu.Lock()
	c.hold = hold
	c.mu.Unlock()
	open := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(open)
	for i := range 4 {
		work.Go(func() {
			for _, role := range []string{"counted", "people-postgres"} {
				if err := server(i).Post(t, v.token, "/v1/leases/revoke", map[string]any{"role": role, "reason": "a test"}, nil); err != nil {
					t.Errorf("revoking all of %s at server %d: %v", role, i%2+1, err)
				}
			}
		})
	}
	work.Wait()
	e2etest.Eventually(t, "both servers are at it", func() bool {
		var nodes, claimed int
		must(t, outside.QueryRow(t.Context(), "select count(distinct claimed_by), count(claimed_by) from lease where role = 'counted'").Scan(&nodes, &claimed))
		return nodes == 2 && claimed == keys
	})
	open()
	e2etest.Eventually(t, "everybody is gone, and no lease is open", func() bool {
		return c.left() == 0 && len(v.pg.Users(t, mark)) == 0 &&
			!slices.ContainsFunc(v.leases(t, ""), func(x lease.Lease) bool { return x.State != lease.Ended })
	})
	c.mu.Lock()
	for id, n := range c.taken {
		if n != 1 {
			t.Errorf("key %s was taken away %d times", id, n)
		}
	}
	if len(c.taken) != c.made {
		t.Errorf("of %d keys that were made %d were taken away", c.made, len(c.taken))
	}
	c.mu.Unlock()
	var most int
	must(t, outside.QueryRow(t.Context(), "select max(fence) from lease where role in ('counted', 'people-postgres') and attempts = 0").Scan(&most))
	if most != 1 {
		t.Errorf("a lease was claimed %d times, want once", most)
	}

	// So it was at the database, which writes down what it is told.
	said := func() string {
		t.Helper()
		text, err := v.pg.ReadLog()
		must(t, err)
		return string(text)
	}
	drops := map[string]int{}
	for l := range strings.Lines(said()) {
		if strings.Contains(l, "drop role if exists") {
			for _, name := range regexp.MustCompile(`"(`+mark+`\w+)"`).FindAllStringSubmatch(l, -1) {
				drops[name[1]]++
			}
		}
	}
	for name, n := range drops {
		if n != 1 {
			t.Errorf("the user %s was dropped %d times", name, n)
		}
	}
	if len(drops) < users {
		t.Errorf("%d users were dropped, want %d", len(drops), users)
	}

	// One secret is rotated, twice: both servers are asked for it, by eight at once.
	const path = "two/app"
	user := "two_" + strings.ToLower(rand.Text()[:8])
	host, _, _ := strings.Cut(v.pg.Config.Address, "/")
	v.admin.Must(t, "secret", "create", path, "--destination", host)
	v.admin.Must(t, "rotation", "put", path, "--target", "postgres", "--user", user+"_a", "--user", user+"_b", "--template", "groups=readers",
		"--cache", "1s", "--quiet", "1s", "--schedule", "manual")
	told := func(what, slot string) int { // a user that is not there yet is made
		return len(regexp.MustCompile(what+` role "`+user+`_`+slot+`".* password '`).FindAllString(said(), -1))
	}
	var passwords []string
	enters := func(slot int, password string) error {
		c, err := pgx.Connect(t.Context(), v.pg.As(engine.Material{
			"username": estover.NewSecret([]byte(user + []string{"_a", "_b"}[slot])), "password": estover.NewSecret([]byte(password)),
		}, "crm"))
		if err == nil {
			_ = c.Close(t.Context())
		}
		return err
	}
	for version := int64(1); version <= 2; version++ {
		var done atomic.Int64
		for i := range 16 {
			work.Go(func() {
				err := server(i).Post(t, v.token, "/v1/rotation/run?path="+path, nil, nil)
				var r *e2etest.Refused
				switch {
				case err == nil:
					done.Add(1)
				case !errors.As(err, &r) || r.Status != http.StatusConflict:
					t.Errorf("rotating it for the %d. time at server %d: %v", version, i%2+1, err)
				}
			})
		}
		work.Wait()
		var r struct {
			Current int64 `json:"current_version"`
			Step    string
		}
		look := func() { v.admin.JSON(t, &r, "rotation", "show", path) }
		look()
		if r.Current != version || done.Load() == 0 {
			t.Errorf("after sixteen wanted the next version, and %d got it, version %d is the current one, want %d", done.Load(), r.Current, version)
		}
		passwords = append(passwords, strings.TrimSpace(v.admin.Must(t, "secret", "get", path, "--field", "password", "--purpose", "a test")))
		for slot, password := range passwords { // the one before is good for its grace
			err := enters(slot, password)
			if look(); err != nil && (int64(slot+1) == version || r.Step == "grace") {
				t.Errorf("with version %d, when version %d is the current one: %v", slot+1, version, err)
			}
		}
		if n := told("create", "[ab]"); int64(n) != version {
			t.Errorf("for %d versions the database was told %d passwords", version, n)
		}
	}
	e2etest.Eventually(t, "the first version has retired", func() bool {
		var r struct{ Step string }
		v.admin.JSON(t, &r, "rotation", "show", path)
		return r.Step == "idle"
	})
	if err := enters(0, passwords[0]); err == nil {
		t.Error("the password of a version that has retired lets somebody in")
	}
	if err := enters(1, passwords[1]); err != nil {
		t.Errorf("with the current version: %v", err)
	}
	if n := told("alter", "a") - told("alter", "b"); n != 1 {
		t.Errorf("the password of the version that has retired was changed %d times, want once", n)
	}
}
