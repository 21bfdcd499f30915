package lease_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/postgres"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
)

// pg is a node with the roles reader and writer at a real PostgreSQL.
type pg struct {
	*leasetest.House
	server *enginetest.PostgresServer
	tenant estover.Caller // administers a tenant of its own, whose mark no other test's users have
}

// onPostgres makes one; a cut may come between.
func onPostgres(t *testing.T, d *db.DB, c *cut, o lease.Options) *pg {
	t.Helper()
	server := enginetest.Postgres(t)
	config := server.Config
	if c != nil {
		config.Address = leasetest.Relay(t, config.Address[:strings.IndexByte(config.Address, '/')], c.connection) + "/crm"
	}
	o.Quota = 100_000
	house, tenant := leasetest.At(t, d, postgres.Kind, config, o)
	p := &pg{House: house, server: server, tenant: tenant}
	for role, group := range map[string]string{"reader": "readers", "writer": "writers"} {
		p.Role(t, p.tenant, lease.RoleSpec{
			Name: role, Target: "real", Template: engine.Template{"groups": {group}}, Delivery: lease.Plaintext, Resource: "res_db", Action: "read",
		})
	}
	return p
}

// agent is one of the tenant, in a session.
func (p *pg) agent(id, session string) estover.Caller {
	c := in(id, session)
	c.Tenant = p.tenant.Tenant
	return c
}

func (p *pg) create(t *testing.T, c estover.Caller, role string) lease.Issued {
	t.Helper()
	x, err := p.Leases.Create(t.Context(), c, lease.Wish{Role: role})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func (p *pg) all(t *testing.T, f lease.Filter) []lease.Lease {
	t.Helper()
	list, err := p.Leases.List(t.Context(), p.tenant, f, "", 100_000)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// users are those at the database whom this tenant's leases are of.
func (p *pg) users(t *testing.T) []string {
	t.Helper()
	list := p.all(t, lease.Filter{})
	if len(list) == 0 {
		t.Fatal("there has been no lease, so its users cannot be told from others")
	}
	mark := list[0].User[:len("e_12345678_")]
	return p.server.Users(t, mark)
}

// unknown are users at the database of which no lease knows that has not ended.
func (p *pg) unknown(t *testing.T) []string {
	t.Helper()
	users := p.users(t)
	open := p.all(t, lease.Filter{Open: true})
	return slices.DeleteFunc(users, func(name string) bool {
		return slices.ContainsFunc(open, func(x lease.Lease) bool { return x.User == name })
	})
}

// run has the node's workers work until the test ends.
func (p *pg) run(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Leases.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (p *pg) login(t *testing.T, x lease.Issued, database string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), p.server.As(x.Values, database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// A cut stands between a node and a database, and cuts a connection as soon as the
// database has said that a transaction that held a text is committed, and before
// that is passed on.
type cut struct {
	text atomic.Pointer[string] // nil cuts nothing
	cuts atomic.Int64
}

func (c *cut) connection() leasetest.Between {
	var armed atomic.Bool
	return leasetest.Between{
		Asked: func(b []byte) bool {
			if text := c.text.Load(); text != nil && strings.Contains(string(b), *text) {
				armed.Store(true)
			}
			return true
		},
		Answered: func(b []byte) bool {
			if !armed.Load() || !strings.Contains(string(b), "COMMIT") {
				return true
			}
			c.cuts.Add(1)
			c.text.Store(nil)
			return false
		},
	}
}

// TestCommitReplyLost cuts the connection to the database right after it has
// committed: a user that was made is taken away, and one that was dropped is found
// to be gone (F3).
func TestCommitReplyLost(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		c := &cut{}
		p := onPostgres(t, d, c, lease.Options{})
		bot := p.agent("agt_bot", "ses_1")
		text := "create role"
		c.text.Store(&text)
		if _, err := p.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"}); !errors.Is(err, lease.ErrUnsure) {
			t.Fatalf("a create whose reply is lost: %v, want ErrUnsure", err)
		}
		if users := p.users(t); len(users) != 1 || len(p.unknown(t)) != 0 {
			t.Errorf("the users are %v, of which no lease knows %v", users, p.unknown(t))
		}
		clock.Advance(16 * time.Second)
		for range 2 {
			if err := p.Leases.Work(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if users := p.users(t); len(users) != 0 || len(p.all(t, lease.Filter{Open: true})) != 0 {
			t.Errorf("after the sweep the users are %v, and the leases %v", users, p.all(t, lease.Filter{Open: true}))
		}

		x := p.create(t, bot, "reader")
		text = "drop role"
		c.text.Store(&text)
		if _, err := p.Leases.Revoke(t.Context(), p.tenant, lease.Which{ID: x.ID}, ""); err != nil {
			t.Fatal(err)
		}
		_ = p.Leases.Work(t.Context())
		if len(p.users(t)) != 0 || len(p.all(t, lease.Filter{State: lease.Revoking})) != 1 {
			t.Errorf("a drop whose reply is lost: users %v, leases %v", p.users(t), p.all(t, lease.Filter{Open: true}))
		}
		clock.Advance(2 * time.Second)
		if err := p.Leases.Work(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := p.all(t, lease.Filter{Open: true}); len(left) != 0 {
			t.Errorf("a user who is gone already keeps the lease %v", left)
		}
		if n := c.cuts.Load(); n != 2 {
			t.Errorf("%d connections were cut, want 2", n)
		}
	})
}

// TestSlowCreate has the database hold up a create, and a containment come in
// between: the drop that overtakes the create does not end the lease (F4, L5, L6).
func TestSlowCreate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		p := onPostgres(t, d, nil, lease.Options{})
		bot := p.agent("agt_bot", "ses_1")
		super, err := pgx.Connect(t.Context(), p.server.Super)
		if err != nil {
			t.Fatal(err)
		}
		defer super.Close(context.Background())
		if _, err := super.Exec(t.Context(), `begin; lock table pg_authid in share mode`); err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() {
			_, err := p.Leases.Create(context.Background(), bot, lease.Wish{Role: "reader"})
			result <- err
		}()
		looker, err := pgx.Connect(t.Context(), p.server.Super) // within a transaction one sees the same picture for ever
		if err != nil {
			t.Fatal(err)
		}
		defer looker.Close(context.Background())
		waiting := func() (n int) {
			if err := looker.QueryRow(t.Context(), `select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%create role%e\_%'`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for end := time.Now().Add(30 * time.Second); waiting() == 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the create never came")
			}
		}
		err = p.Guard.Do(t.Context(), p.tenant, guard.Op{Action: "incident.contain"}, func(tx *guard.Tx) error {
			n, err := p.Leases.Contain(t.Context(), tx, []string{"agt_bot"})
			if err == nil && n != 1 {
				err = fmt.Errorf("%d leases are contained, want 1", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Leases.Work(t.Context()); err != nil {
			t.Fatal(err)
		}
		if open := p.all(t, lease.Filter{Open: true}); len(open) != 1 || open[0].State != lease.Revoking {
			t.Errorf("while the create is on its way the leases are %v", open)
		}
		if _, err := super.Exec(t.Context(), `rollback`); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, lease.ErrEnded) {
			t.Errorf("the creator is told %v, want ErrEnded", err)
		}
		if users := p.users(t); len(users) != 0 {
			t.Errorf("users of a contained agent: %v", users)
		}
		if open := p.all(t, lease.Filter{Open: true}); len(open) != 0 {
			t.Errorf("leases of a contained agent: %v", open)
		}
	})
}

// TestSessionsEnd has 100 leases of an agent end at once, with users who are
// logged in, one who is busy, and one who owns a table in each of two databases:
// all are gone in five seconds, and the open sessions within one (F9, F10).
func TestSessionsEnd(t *testing.T) {
	p := onPostgres(t, dbtest.Open(t), nil, lease.Options{})
	p.run(t)
	bot := p.agent("agt_bot", "ses_1")
	owner := p.create(t, bot, "writer")
	table := "own_" + strings.ToLower(rand.Text()[:8])
	var conns []*pgx.Conn
	for _, database := range []string{"crm", "billing"} {
		c := p.login(t, owner, database)
		if _, err := c.Exec(t.Context(), "create table "+table+" (n int)"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	busy := p.login(t, p.create(t, bot, "reader"), "crm")
	ended := make(chan error, 1)
	go func() {
		_, err := busy.Exec(context.Background(), "select pg_sleep(60)")
		ended <- err
	}()
	for range 10 {
		conns = append(conns, p.login(t, p.create(t, bot, "reader"), "crm"))
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 11 {
				if _, err := p.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	if n := len(p.users(t)); n != 100 {
		t.Fatalf("there are %d users, want 100", n)
	}
	start := time.Now()
	err := p.Guard.Do(t.Context(), p.tenant, guard.Op{Action: "incident.contain"}, func(tx *guard.Tx) error {
		_, err := p.Leases.Contain(t.Context(), tx, []string{"agt_bot"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a busy session came to its own end")
		}
	case <-time.After(enginetest.Soon):
		t.Error("a busy session goes on after the containment")
	}
	for _, c := range conns {
		for c.Ping(context.Background()) == nil && time.Since(start) < 20*time.Second {
			time.Sleep(5 * time.Millisecond)
		}
	}
	open := time.Since(start)
	for len(p.users(t)) > 0 && time.Since(start) < 40*time.Second {
		time.Sleep(10 * time.Millisecond)
	}
	gone := time.Since(start)
	t.Logf("sessions were gone after %v, all users after %v", open, gone)
	if open > enginetest.Soon || gone > 5*enginetest.Soon { // one second and five are promised
		t.Errorf("sessions went on for %v, users for %v", open, gone)
	}
	for end := time.Now().Add(30 * time.Second); len(p.all(t, lease.Filter{Open: true})) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("leases that do not end: %v", p.all(t, lease.Filter{Open: true})[0])
		}
	}
	for _, database := range []string{"crm", "billing"} {
		c, err := pgx.Connect(t.Context(), strings.Replace(p.server.Super, "/crm?", "/"+database+"?", 1))
		if err != nil {
			t.Fatal(err)
		}
		var heir string
		if err := c.QueryRow(t.Context(), "select tableowner from pg_tables where tablename = $1", table).Scan(&heir); err != nil || heir != "writers" {
			t.Errorf("what the user owned in %s belongs to %q, %v", database, heir, err)
		}
		_ = c.Close(t.Context())
	}
}
