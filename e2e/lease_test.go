package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/e2e/e2etest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/lease"
)

// A vault is a server at which credentials of real databases are made.
type vault struct {
	*oauthDesk
	pg    *enginetest.PostgresServer
	maria *enginetest.MariaDBServer
	token string // the administrator's

	others []func(t *testing.T, mark string) []string // the users of the targets that [vault.everywhere] adds
	jwts   sync.Map                                   // of users of NATS whom clients have got, by name
}

// newVault registers the databases, each with a role for people and one for who
// may list customers.
func newVault(t *testing.T, srv *e2etest.Server) *vault {
	t.Helper()
	v := &vault{oauthDesk: newOAuthDesk(t, srv), pg: enginetest.Postgres(t), maria: enginetest.MariaDB(t)}
	v.token = v.admin.Token(t)
	for kind, config := range map[string]engine.Config{"postgres": v.pg.Config, "mysql": v.maria.Config} {
		r := v.admin.Input(t, string(config.Admin.Secret.Reveal()), "secret", "engine", "enable", kind, kind, "--address", config.Address,
			"--admin", "targets/"+kind, "--admin-user", config.Admin.User, "--admin-password-file", "-", "--keep-root") // other tests work as it
		if r.Code != 0 {
			t.Fatalf("enabling %s: %s%s", kind, r.Stdout, r.Stderr)
		}
		template := map[string]string{"postgres": "groups=readers", "mysql": "roles=readers"}[kind]
		put := []string{"--target", kind, "--template", template, "--delivery", "plaintext", "--per-minute", "100000"}
		v.admin.Must(t, append([]string{"secret", "role", "put", "people-" + kind}, put...)...)
		v.admin.Must(t, append([]string{"secret", "role", "put", "bot-" + kind, "--resource", "crm", "--action", "customer.list"}, put...)...)
	}
	return v
}

// startRedis runs a Redis whose admin estover may do what the reference says.
func startRedis(t *testing.T) *enginetest.Server {
	t.Helper()
	as := func(s *enginetest.Server) *redis.Client {
		return redis.NewClient(&redis.Options{Addr: s.Address(0), Username: "estover", Password: "made-for-tests"})
	}
	server, err := enginetest.Start(enginetest.Process{
		Debian: "redis-server", Program: "redis-server", Users: []string{"redis"}, Ports: 1,
		Prepare: func(s *enginetest.Server) ([]string, []string, error) {
			path, err := s.Write("redis.conf", fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\nsave \"\"\nuser default off\nuser estover on >made-for-tests %s\n", s.Ports[0], s.Dir,
				"+ping +acl|setuser +acl|deluser +acl|getuser +acl|users +acl|save +acl|dryrun +client|list +client|kill +time"))
			return []string{path}, nil, err
		},
		Ready: func(ctx context.Context, s *enginetest.Server) error {
			c := as(s)
			defer c.Close()
			return c.Ping(ctx).Err()
		},
	})
	must(t, err)
	t.Cleanup(server.Stop)
	return server
}

// A handedOut lease is one that a client has got.
type handedOut struct {
	lease.Lease
	Values map[string]string `json:"values"`
}

func (h handedOut) material() engine.Material {
	m := engine.Material{}
	for k, v := range h.Values {
		m[k] = estover.NewSecret([]byte(v))
	}
	return m
}

// lease gets a credential. The client hangs up when ctx is done.
func (v *vault) lease(ctx context.Context, t *testing.T, token, role string) (h handedOut, err error) {
	in := map[string]any{"role": role}
	if token == v.token { // a person says what it is for; an agent's session does
		in["purpose"] = "a test"
	}
	b, err := json.Marshal(in)
	must(t, err)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, v.URL+"/v1/leases", bytes.NewReader(b))
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	res, err := v.HTTP(t).Do(req)
	if err != nil {
		return h, err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		r := &e2etest.Refused{Status: res.StatusCode}
		_ = json.NewDecoder(res.Body).Decode(r)
		return h, r
	}
	if err = json.NewDecoder(res.Body).Decode(&h); err == nil && h.Values["jwt"] != "" {
		v.jwts.Store(h.User, h.Values["jwt"])
	}
	return h, err
}

// leases are all that there are, of all roles.
func (v *vault) leases(t *testing.T, filter string) (all []lease.Lease) {
	t.Helper()
	for cursor := ""; ; {
		var page struct {
			Items []lease.Lease
			Next  string
		}
		must(t, v.Get(t, v.token, "/v1/leases?limit=200&cursor="+cursor+"&"+filter, &page))
		all = append(all, page.Items...)
		if cursor = page.Next; cursor == "" {
			return all
		}
	}
}

// users are those at all targets who were made by this server.
func (v *vault) users(t *testing.T, mark string) []string {
	t.Helper()
	names := v.pg.Users(t, mark)
	rows, err := v.maria.Super.QueryContext(t.Context(), "select user from mysql.user where user like ?", strings.ReplaceAll(mark, "_", `\_`)+"%")
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var name string
		must(t, rows.Scan(&name))
		names = append(names, name)
	}
	must(t, rows.Err())
	for _, other := range v.others {
		names = append(names, other(t, mark)...)
	}
	slices.Sort(names)
	return names
}

// A server that is killed again and again while it issues credentials, whose
// clients hang up at any time, leaves no user at a target that no lease knows,
// and loses no lease that a client has got (F1, F2; with the storms in package lease
// and beside the engines). It goes on until each kind of target has made as many as
// -issues says.
func TestKillWhileIssuing(t *testing.T) {
	t.Parallel()
	v := newVault(t, e2etest.Start(t))
	kinds := v.everywhere(t)
	mark := v.leases(t, "")[0].User[:len("e_12345678_")]
	var (
		work   sync.WaitGroup
		lock   sync.Mutex
		got    = map[string]string{} // the users of leases that clients have got, by id
		count  = map[string]int{}    // of them, by kind of target
		hungUp int
	)
	fewest := func() int {
		lock.Lock()
		defer lock.Unlock()
		n := count[kinds[0]]
		for _, kind := range kinds {
			n = min(n, count[kind])
		}
		return n
	}
	ctx, stop := context.WithCancel(t.Context())
	for i := range 2 * len(kinds) {
		kind := kinds[i%len(kinds)]
		work.Go(func() {
			for ctx.Err() == nil {
				patience := 30 * time.Second
				if rand.IntN(4) == 0 {
					patience = time.Duration(rand.IntN(100)) * time.Millisecond
				}
				one, hangUp := context.WithTimeout(ctx, patience)
				h, err := v.lease(one, t, v.token, "people-"+kind)
				hangUp()
				lock.Lock()
				if err == nil {
					got[h.ID] = h.User
					count[kind]++
				} else if errors.Is(err, context.DeadlineExceeded) {
					hungUp++
				}
				lock.Unlock()
				var r *e2etest.Refused
				if errors.As(err, &r) && r.Status != http.StatusServiceUnavailable && r.Status != http.StatusBadGateway {
					t.Errorf("a lease was refused: %v", err)
				}
				if err != nil && !errors.Is(err, context.DeadlineExceeded) { // nobody is there
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	n := 0
	for ; n < killings(6) || fewest() < *issues; n++ {
		if n >= 10*killings(6)+*issues {
			lock.Lock()
			t.Errorf("after %d kills clients have got %v, want %d of each kind", n, count, *issues)
			lock.Unlock()
			break
		}
		// Where a target needs longer than there is between two kills, there is more and more.
		time.Sleep(time.Duration(200+rand.IntN(600)) * time.Millisecond * time.Duration(1+n/10))
		v.Kill()
		lock.Lock()
		before := make(map[string]string, len(got))
		for id, user := range got {
			before[id] = user
		}
		lock.Unlock()
		v.Restart(t)
		there := v.users(t, mark)
		known := map[string]lease.Lease{}
		for _, x := range v.leases(t, "") {
			known[x.User] = x
		}
		for _, user := range there {
			if x, ok := known[user]; !ok {
				t.Errorf("after a kill no lease knows the user %s", user)
			} else if x.State == lease.Ended && slices.Contains(v.users(t, mark), user) {
				t.Errorf("the lease of the user %s has ended, and the user is there", user)
			}
		}
		for id, user := range before {
			if x := known[user]; x.ID != id || x.State != lease.Live {
				t.Errorf("the lease %s of %s, which a client has got, is %q after a kill", id, user, x.State)
			}
		}
	}
	stop()
	work.Wait()
	t.Logf("%d handed out: %v; %d clients hung up, %d kills", len(got), count, hungUp, n)
	// What a worker had begun to take away when it was killed, another takes up
	// after a minute. This does not wait for that.
	must(t, v.Post(t, v.token, "/v1/leases/revoke", map[string]any{"all": true, "reason": "the storm is over"}, nil))
	gone := func() bool {
		left := map[string]bool{}
		for _, user := range v.users(t, mark) {
			left[user] = true
		}
		for _, x := range v.leases(t, "open=true") {
			left[x.User] = true
		}
		for _, user := range got {
			if left[user] {
				return false
			}
		}
		return true
	}
	for until := time.Now().Add(time.Duration(len(got)) * 20 * time.Millisecond); !gone() && time.Now().Before(until); {
		time.Sleep(100 * time.Millisecond)
	}
	e2etest.Eventually(t, "every user whom a client has got is gone, and its lease has ended", gone)
}

// asBot gets a token of the agent in a session of its own.
func (v *vault) asBot(t *testing.T) (token, session string) {
	t.Helper()
	status, answer := v.post(t, v.Token, url.Values{"grant_type": {"client_credentials"}, "purpose": {"support"}, "resource": {v.URL}})
	if status != http.StatusOK {
		t.Fatalf("a token of the agent: %d %v", status, answer)
	}
	token, _ = answer["access_token"].(string)
	session, _ = answer["session"].(string)
	return token, session
}

// With a session its database users go, and what they have open (F10).
func TestDatabaseUsersEndWithTheSession(t *testing.T) {
	t.Parallel()
	v := newVault(t, e2etest.Start(t))
	token, session := v.asBot(t)
	of := func(role string) handedOut {
		t.Helper()
		h, err := v.lease(t.Context(), t, token, role)
		must(t, err)
		if h.Session != session || h.ExpiresAt.IsZero() {
			t.Fatalf("the lease belongs to the session %q, want %q", h.Session, session)
		}
		return h
	}
	idle, busy, other := of("bot-postgres"), of("bot-postgres"), of("bot-mysql")
	waiting, err := pgx.Connect(t.Context(), v.pg.As(idle.material(), "crm"))
	must(t, err)
	defer waiting.Close(context.Background())
	working, err := pgx.Connect(t.Context(), v.pg.As(busy.material(), "crm"))
	must(t, err)
	defer working.Close(context.Background())
	maria, err := sql.Open("mysql", fmt.Sprintf("%s:%s@tcp(%s)/crm", other.Values["username"], other.Values["password"], v.maria.Address(0)))
	must(t, err)
	defer maria.Close()
	third, err := maria.Conn(t.Context())
	must(t, err)
	defer third.Close()
	var n int
	must(t, waiting.QueryRow(t.Context(), "select count(*) from customer").Scan(&n))
	must(t, third.QueryRowContext(t.Context(), "select count(*) from customer").Scan(&n))
	ended := make(chan error, 1)
	go func() {
		_, err := working.Exec(context.Background(), "select pg_sleep(60)")
		ended <- err
	}()
	asked := time.Now()
	must(t, v.Post(t, v.token, "/v1/sessions/"+session+"/end", map[string]string{"cause": "done"}, nil))
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a busy connection came to its own end")
		}
	case <-time.After(30 * time.Second): // it would end after a minute by itself
		t.Error("a busy connection goes on")
	}
	for waiting.Ping(context.Background()) == nil || third.PingContext(context.Background()) == nil {
		if time.Since(asked) > 30*time.Second {
			t.Fatal("a connection goes on")
		}
		time.Sleep(5 * time.Millisecond)
	}
	for len(v.users(t, idle.User[:len("e_12345678_")])) > 0 {
		if time.Since(asked) > 30*time.Second {
			t.Fatal("users are there still")
		}
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(asked)
	t.Logf("connections and users were gone %v after the session was told to end", took)
	if took > e2etest.Soon {
		t.Errorf("it took %v until connections and users were gone, want a second", took)
	}
	for _, h := range []handedOut{idle, busy, other} {
		var x lease.Lease
		must(t, v.Get(t, v.token, "/v1/leases/"+h.ID, &x))
		e2etest.Eventually(t, "the lease has ended", func() bool {
			must(t, v.Get(t, v.token, "/v1/leases/"+h.ID, &x))
			return x.State == lease.Ended
		})
		if x.Cause != lease.WithSession {
			t.Errorf("the lease ended for %q", x.Cause)
		}
	}
	var refused *e2etest.Refused
	if _, err := v.lease(t.Context(), t, token, "bot-postgres"); !errors.As(err, &refused) {
		t.Errorf("a lease after the session has ended: %v", err)
	}
}

// A containment takes a hundred database users of an agent with it within five
// seconds, and its signed certificate counts them.
func TestContainmentTakesDatabaseUsers(t *testing.T) {
	t.Parallel()
	v := newVault(t, e2etest.Start(t))
	token, session := v.asBot(t)
	const users = 100
	var (
		work sync.WaitGroup
		lock sync.Mutex
		got  []handedOut
	)
	next := make(chan int, users)
	for i := range users {
		next <- i
	}
	close(next)
	for range 8 {
		work.Go(func() {
			for range next {
				h, err := v.lease(t.Context(), t, token, "bot-postgres")
				if err != nil {
					t.Error(err)
					return
				}
				lock.Lock()
				got = append(got, h)
				lock.Unlock()
			}
		})
	}
	work.Wait()
	if t.Failed() {
		return
	}
	mark := got[0].User[:len("e_12345678_")]
	if n := len(v.users(t, mark)); n != users {
		t.Fatalf("there are %d users, want %d", n, users)
	}
	var open []*pgx.Conn
	for _, h := range got[:10] {
		c, err := pgx.Connect(t.Context(), v.pg.As(h.material(), "crm"))
		must(t, err)
		defer c.Close(context.Background())
		open = append(open, c)
	}
	file := filepath.Join(t.TempDir(), "certificate")
	var contained struct {
		Steps []struct {
			Name  string `json:"name"`
			Count int64  `json:"count"`
		} `json:"steps"`
		ZeroMicros int64 `json:"zero_micros"`
	}
	asked := time.Now()
	v.admin.JSON(t, &contained, "contain", "bot", "--reason", "it sends customers to strangers", "--certificate", file)
	for len(v.users(t, mark)) > 0 && time.Since(asked) < 30*time.Second {
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(asked)
	t.Logf("%d users were gone %v after the containment was asked for; time to zero %v", users, took, time.Duration(contained.ZeroMicros)*time.Microsecond)
	if took > 5*e2etest.Soon {
		t.Errorf("it took %v until the users were gone, want five seconds", took)
	}
	for _, c := range open {
		if c.Ping(context.Background()) == nil {
			t.Error("a connection of a contained agent goes on")
		}
	}
	counted := map[string]int64{}
	for _, s := range contained.Steps {
		counted[s.Name] = s.Count
	}
	if counted["leases"] != users || contained.ZeroMicros == 0 {
		t.Errorf("the containment says %+v, want %d leases and a time to zero", contained, users)
	}
	for _, x := range v.leases(t, "session="+session) {
		if x.State != lease.Ended || x.Priority != 0 { // before all others
			t.Fatalf("the lease of %s is %s, of priority %d", x.User, x.State, x.Priority)
		}
	}
	trust := filepath.Join(t.TempDir(), "trust")
	must(t, os.WriteFile(trust, []byte(v.admin.Must(t, "audit", "trust")), 0o600))
	v.admin.Must(t, "verify", file, "--trust", trust)
	b, err := os.ReadFile(file)
	must(t, err)
	receipt, err := attest.ParseReceipt(b)
	must(t, err)
	statement, err := base64.StdEncoding.DecodeString(receipt.Envelope.Payload)
	must(t, err)
	if want := fmt.Sprintf(`"name":"leases","state":"done","count":%d,`, users); !strings.Contains(string(statement), want) {
		t.Errorf("the certificate does not say %s: %s", want, statement)
	}
}
