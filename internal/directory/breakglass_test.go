package directory_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/guard/guardtest"
)

// A quorum of the codes lets an emergency administrator in, once and for an hour;
// fewer, the same one twice, and codes of another set or tenant do not.
func TestBreakGlass(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		g := guardtest.New(t, d, guardtest.AllowAll)
		dir, ctx := directory.New(g, directory.Options{}), t.Context()
		admin := estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada"), Roles: []estover.Role{estover.Admin}}
		from := estover.Caller{Tenant: estover.DefaultTenant, Request: "req_1"}
		events := func(outcome audit.Outcome) (n int) {
			t.Helper()
			if err := d.View(ctx, estover.DefaultTenant, func(tx *db.Tx) error {
				list, _, err := g.Log().List(ctx, tx, audit.Filter{Action: "break_glass.open", Outcome: outcome}, 0, 100)
				n = len(list)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if _, err := dir.Glass(ctx, admin); !errors.Is(err, directory.ErrNoGlass) {
			t.Errorf("before there are codes: %v", err)
		}
		for _, bad := range []struct {
			shares, quorum int64
			life           time.Duration
		}{{1, 1, 0}, {5, 1, 0}, {2, 3, 0}, {21, 3, 0}, {5, 3, time.Minute}, {5, 3, 10 * 365 * 24 * time.Hour}} {
			if _, _, err := dir.NewGlass(ctx, admin, bad.shares, bad.quorum, bad.life); !errors.Is(err, directory.ErrGlassShape) {
				t.Errorf("a set of %+v: %v, want ErrGlassShape", bad, err)
			}
		}
		agent := estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.Agent("agt_bot")}
		if _, _, err := dir.NewGlass(ctx, agent, 5, 3, 0); !errors.Is(err, directory.ErrNotAPerson) {
			t.Errorf("an agent makes codes: %v", err)
		}
		old, _, err := dir.NewGlass(ctx, admin, 5, 3, 0)
		if err != nil {
			t.Fatal(err)
		}
		codes, set, err := dir.NewGlass(ctx, admin, 5, 3, 0)
		if err != nil || len(codes) != 5 {
			t.Fatalf("%d codes, %v", len(codes), err)
		}
		if got, err := dir.Glass(ctx, admin); err != nil || got.ID != set.ID || got.Quorum != 3 {
			t.Errorf("the set that stands is %+v, %v", got, err)
		}
		other := from
		other.Tenant = "other"
		for what, c := range map[string]struct {
			from  estover.Caller
			codes []string
			trace int
		}{
			"no code":              {from, nil, 0},
			"what is no code":      {from, []string{"hello", codes[0], codes[1], codes[2]}, 0},
			"two":                  {from, codes[:2], 1},
			"the same three times": {from, []string{codes[0], codes[0], strings.ToUpper(codes[0])}, 1},
			"those of an old set":  {from, old[:3], 0},
			"one of them old":      {from, []string{codes[0], codes[1], old[2]}, 1},
			"at another tenant":    {other, codes[:3], 0},
			"too many":             {from, append(append(append(append([]string{}, codes...), codes...), codes...), append(codes, codes...)...), 0},
		} {
			before := events(audit.Failed)
			if _, _, _, err := dir.BreakGlass(ctx, c.from, c.codes, "a test"); !errors.Is(err, directory.ErrGlass) {
				t.Errorf("with %s: %v, want ErrGlass", what, err)
			}
			if n := events(audit.Failed) - before; n != c.trace {
				t.Errorf("with %s: %d events of failure, want %d", what, n, c.trace)
			}
		}
		for _, reason := range []string{"", strings.Repeat("x", 501)} {
			if _, _, _, err := dir.BreakGlass(ctx, from, codes[:3], reason); !errors.Is(err, directory.ErrGlassReason) {
				t.Errorf("for a reason of %d bytes: %v", len(reason), err)
			}
		}

		// Of 64 at once one comes in.
		var mu sync.Mutex
		var wg sync.WaitGroup
		var in []directory.Person
		var value estover.Secret
		for range 64 {
			wg.Go(func() {
				v, token, p, err := dir.BreakGlass(ctx, from, []string{codes[4], " " + strings.ToUpper(codes[1]), codes[2]}, "nobody can come in")
				if err != nil {
					if !errors.Is(err, directory.ErrGlass) {
						t.Errorf("breaking the glass beside another: %v", err)
					}
					return
				}
				if life := token.ExpiresAt.Sub(token.CreatedAt); life != directory.EmergencyLife {
					t.Errorf("the token lives for %s", life)
				}
				mu.Lock()
				defer mu.Unlock()
				in, value = append(in, p), v
			})
		}
		wg.Wait()
		if len(in) != 1 || events(audit.Done) != 1 {
			t.Fatalf("%d came in, with %d events, want one", len(in), events(audit.Done))
		}
		who, err := dir.Authenticate(ctx, estover.DefaultTenant, string(value.Reveal()))
		if err != nil || !who.Has(estover.Admin) {
			t.Fatalf("the emergency administrator is %+v, %v", who, err)
		}
		// What they make for themselves does not outlast them.
		longer, _, err := dir.Issue(ctx, who, "more", 24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		clock.Advance(directory.EmergencyLife + time.Second)
		for what, v := range map[string]estover.Secret{"the token": value, "another of theirs": longer} {
			if _, err := dir.Authenticate(ctx, estover.DefaultTenant, string(v.Reveal())); !errors.Is(err, directory.ErrToken) {
				t.Errorf("%s after the hour: %v, want ErrToken", what, err)
			}
		}
		if active, err := dir.Active(ctx, estover.DefaultTenant, in[0].ID); err != nil || active {
			t.Errorf("after the hour they are active: %v, %v", active, err)
		}
		// The last administrator cannot be disabled, so there is somebody else.
		if _, err := dir.Create(ctx, admin, directory.Spec{Name: "ada", Roles: []estover.Role{estover.Admin}}, ""); err != nil {
			t.Fatal(err)
		}
		if err := dir.EndEmergencies(ctx); err != nil {
			t.Fatal(err)
		}
		if p, err := dir.Get(ctx, admin, in[0].ID); err != nil || p.Status != directory.Disabled {
			t.Errorf("after the sweep they are %s, %v", p.Status, err)
		}
		if _, err := dir.Glass(ctx, admin); !errors.Is(err, directory.ErrNoGlass) {
			t.Errorf("after it was opened a set stands: %v", err)
		}

		// Codes end by themselves.
		codes, _, err = dir.NewGlass(ctx, admin, 2, 2, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		clock.Advance(time.Hour)
		if _, _, _, err := dir.BreakGlass(ctx, from, codes, "too late"); !errors.Is(err, directory.ErrGlass) {
			t.Errorf("with codes whose time is over: %v, want ErrGlass", err)
		}
	})
}
