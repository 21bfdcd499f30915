package ticket_test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/ticket"
)

var (
	ada = estover.Caller{Tenant: "default", Subject: estover.User("usr_ada"), Roles: []estover.Role{estover.Admin}, Grant: "ptk_ada"}
	eve = estover.Caller{Tenant: "other", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}, Grant: "ptk_eve"}
	bot = estover.Caller{Tenant: "default", Subject: estover.Agent("agt_bot"), Session: "ses_bot", Purpose: "vault-client", Epoch: 1}

	home = ticket.From{Address: netip.MustParseAddr("192.0.2.7"), Request: "req_1"}
)

// A world is tickets with everything that they need of others, on one node.
type world struct {
	*ticket.Tickets
	t     *testing.T
	d     *db.DB
	guard *guard.Guard
	clock *dbtest.Clock

	mu      sync.Mutex
	ended   map[string]bool // sessions
	expires map[string]time.Time
	people  map[string]bool // tokens that let nobody in
	agents  []string
	retired []string
	gone    []string // tickets whose end was told
	stuck   string   // one whose end cannot be told
	keys    func(url string) ([]byte, error)
	redeem  func(x ticket.Exchange) ([]byte, error)
	fetched atomic.Int64
	decide  guardtest.Decider
}

var errSession = &estover.Error{Kind: estover.Conflict, Code: "session_ended", Detail: "The session has ended."}

func newWorld(t *testing.T, d *db.DB) *world {
	return node(t, d, filepath.Join(t.TempDir(), "root.key"))
}

// node is one of several on a database, which share the file of the root key.
func node(t *testing.T, d *db.DB, key string) *world {
	t.Helper()
	w := &world{t: t, d: d, clock: dbtest.NewClock(d), ended: map[string]bool{}, expires: map[string]time.Time{}, people: map[string]bool{}}
	source, err := seal.ParseSource("file:"+key, "")
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := seal.Open(t.Context(), d, source)
	if err != nil {
		t.Fatal(err)
	}
	w.guard = guardtest.New(t, d, guardtest.Decider(func(c estover.Caller, op guard.Op) guard.Decision {
		if w.decide != nil {
			return w.decide(c, op)
		}
		return guardtest.AllowAll(c, op)
	}))
	session := func(_ context.Context, _ estover.TenantID, id string) (ticket.Session, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		until, ok := w.expires[id]
		if !ok {
			until = d.Now().Add(8 * time.Hour).Truncate(time.Second)
			w.expires[id] = until
		}
		return ticket.Session{ID: id, Agent: strings.Replace(id, "ses_", "agt_", 1), Purpose: "vault-client", Expires: until, Epoch: 1}, nil
	}
	w.Tickets = ticket.New(w.guard, ticket.Options{
		Sealer: sealer,
		Tenant: func(_ context.Context, t estover.TenantID) error {
			if t != "default" && t != "other" {
				return &estover.Error{Kind: estover.NotFound, Code: "tenant_not_found"}
			}
			return nil
		},
		Session: session,
		Ambient: func(ctx context.Context, c estover.Caller, agent string) (ticket.Session, error) {
			return session(ctx, c.Tenant, strings.Replace(agent, "agt_", "ses_", 1))
		},
		Hold: func(_ context.Context, _ *guard.Tx, id string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.ended[id] {
				return errSession
			}
			return nil
		},
		Person: func(_ context.Context, t estover.TenantID, person, token string) (estover.Caller, time.Time, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.people[token] {
				return estover.Caller{}, time.Time{}, &estover.Error{Kind: estover.Unknown, Code: "token_invalid"}
			}
			return estover.Caller{Tenant: t, Subject: estover.User(person), Roles: []estover.Role{estover.Admin}, Grant: token, Epoch: 1}, d.Now().Add(12 * time.Hour), nil
		},
		Agent: func(_ context.Context, _ estover.Caller, _ ticket.Way, name, role string) (string, bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if name != "" {
				return name, false, nil
			}
			id := "agt_" + role
			w.agents = append(w.agents, id)
			return id, true, nil
		},
		Retire: func(_ context.Context, _ estover.Caller, id string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.retired = append(w.retired, id)
			return nil
		},
		Ended: func(_ context.Context, _ *guard.Tx, ids []string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if slices.Contains(ids, w.stuck) {
				return errors.New("this one cannot be ended")
			}
			w.gone = append(w.gone, ids...)
			return nil
		},
		Fetch: func(_ context.Context, _ estover.TenantID, url, _ string, _ bool) ([]byte, error) {
			w.fetched.Add(1)
			if w.keys == nil {
				return nil, errors.New("nobody answers")
			}
			return w.keys(url)
		},
		Redeem: func(_ context.Context, _ estover.TenantID, x ticket.Exchange) ([]byte, error) { return w.redeem(x) },
	})
	return w
}

// make is a ticket for a caller, out of another.
func (w *world) make(c estover.Caller, parent *ticket.Ticket, wish ticket.Wish) ticket.Made {
	w.t.Helper()
	m, err := w.Create(w.t.Context(), c, parent, wish)
	if err != nil {
		w.t.Fatalf("making a ticket: %v", err)
	}
	return m
}

// opens reports whether a value lets somebody in.
func (w *world) opens(m ticket.Made) bool {
	w.t.Helper()
	_, _, err := w.Authenticate(w.t.Context(), value(m), home)
	if err != nil && !errors.Is(err, ticket.ErrTicket) {
		w.t.Fatalf("authenticating: %v", err)
	}
	return err == nil
}

func value(m ticket.Made) string { return string(m.Value.Reveal()) }

// endSession does what the end of a session does.
func (w *world) endSession(id string) int {
	w.t.Helper()
	n := 0
	if err := w.guard.Do(w.t.Context(), ada, guard.Op{Action: "session.end"}, func(tx *guard.Tx) (err error) {
		n, err = ticket.EndOfSessions(w.t.Context(), tx, []string{id})
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended[id] = true
	return n
}

func TestTicket(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		m := w.make(bot, nil, ticket.Wish{Policies: []string{"App", "app", "db"}, Meta: map[string]string{"team": "a"}, DisplayName: "token-x", Path: "auth/token/create"})
		if !strings.HasPrefix(value(m), "est_vt_") || strings.Contains(value(m), ".") {
			t.Errorf("a ticket of the default tenant is %q", value(m))
		}
		if want := []string{"app", "db", "default"}; !slices.Equal(m.Policies, want) || m.TTL != ticket.DefaultLife || !m.Renewable {
			t.Errorf("it has %v for %s, renewable %v; want %v for 15 minutes, renewable (V22, V35)", m.Policies, m.TTL, m.Renewable, want)
		}
		c, one, err := w.Authenticate(t.Context(), value(m), home)
		if err != nil {
			t.Fatal(err)
		}
		if c.Subject != bot.Subject || c.Session != bot.Session || c.Purpose != "vault-client" || c.Token != m.ID || c.Epoch != 1 || c.Address != home.Address || c.Request != home.Request {
			t.Errorf("its caller is %+v", c)
		}
		if one.ID != m.ID || one.Meta["team"] != "a" || one.DisplayName != "token-x" || one.Path != "auth/token/create" || !one.Orphan() || one.UsesLeft != -1 {
			t.Errorf("it reads back as %+v", one)
		}
		for what, v := range map[string]string{
			"nothing": "", "a typing error": value(m)[:len(value(m))-1] + "!", "another": "est_vt_" + strings.Repeat("A", 50), "its accessor": m.ID,
			"its tenant named": value(m) + ".default", "another tenant's name": value(m) + ".other", "no such tenant": value(m) + ".nobody",
		} {
			if _, _, err := w.Authenticate(t.Context(), v, home); !errors.Is(err, ticket.ErrTicket) {
				t.Errorf("%s instead of the token: %v, want ErrTicket (V3)", what, err)
			}
		}

		other := w.make(eve, nil, ticket.Wish{Policies: []string{"app"}})
		if !strings.HasSuffix(value(other), ".other") {
			t.Errorf("a ticket of another tenant does not say so: %q", value(other))
		}
		if c, _, err := w.Authenticate(t.Context(), value(other), home); err != nil || c.Tenant != "other" || c.Subject != eve.Subject {
			t.Errorf("it lets in %+v, %v", c, err)
		}
		// T1, T3: of another tenant it is not there, by value and by accessor.
		for _, ref := range []ticket.Ref{{Value: value(m)}, {Accessor: m.ID}} {
			if _, err := w.Lookup(t.Context(), eve, ref); !errors.Is(err, ticket.ErrNotFound) {
				t.Errorf("another tenant looks at a ticket: %v, want ErrNotFound", err)
			}
			if _, _, err := w.Renew(t.Context(), eve, ref, 0); !errors.Is(err, ticket.ErrNotFound) {
				t.Errorf("another tenant renews a ticket: %v, want ErrNotFound", err)
			}
			if err := w.Revoke(t.Context(), eve, ref); !errors.Is(err, ticket.ErrNotFound) {
				t.Errorf("another tenant revokes a ticket: %v, want ErrNotFound", err)
			}
			if err := w.RevokeOrphan(t.Context(), eve, ref); !errors.Is(err, ticket.ErrNotFound) {
				t.Errorf("another tenant revokes a ticket: %v, want ErrNotFound", err)
			}
		}
		if !w.opens(m) {
			t.Error("what another tenant tried has ended the ticket")
		}
		if got, err := w.Lookup(t.Context(), ada, ticket.Ref{Accessor: m.ID}); err != nil || got.ID != m.ID {
			t.Errorf("by its accessor it is %+v, %v", got, err)
		}
		if list, err := w.List(t.Context(), ada); err != nil || !slices.Equal(list, []string{m.ID}) {
			t.Errorf("the accessors are %v, %v", list, err)
		}

		// It ends with its session, in its transaction.
		if n := w.endSession("ses_bot"); n != 1 || w.opens(m) {
			t.Errorf("the session ended %d tickets; the ticket opens: %v", n, w.opens(m))
		}
		if _, err := w.Create(t.Context(), bot, nil, ticket.Wish{}); !errors.Is(err, errSession) {
			t.Errorf("a ticket in a session that has ended: %v, want that it has", err)
		}
		// A person's ends with their token.
		w.mu.Lock()
		w.people["ptk_eve"] = true
		w.mu.Unlock()
		if w.opens(other) {
			t.Error("the ticket of a person whose token has ended lets somebody in")
		}
	})
}

// What a token of the token service is confined to a ticket could not say.
func TestConfinedTokensBuyNoTicket(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	confined, acting := bot, bot
	confined.Tasks = []estover.Task{{Actions: []string{"a"}}}
	acting.Subject, acting.Actors = estover.User("usr_ada"), []estover.Subject{bot.Subject}
	for _, c := range []estover.Caller{confined, acting} {
		if _, err := w.Create(t.Context(), c, nil, ticket.Wish{}); !errors.Is(err, ticket.ErrConfined) {
			t.Errorf("%+v buys a ticket: %v, want ErrConfined", c, err)
		}
	}
}

// A token that is bound buys no ticket that is not (V35): one that is bound to a key
// buys none, and one that is bound to a certificate one that is bound to it as well.
func TestBoundTokensBuyBoundTickets(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	if _, err := w.Create(t.Context(), bot, nil, ticket.Wish{Key: "thumbprint"}); !errors.Is(err, ticket.ErrKeyBound) {
		t.Errorf("with a token that is bound to a key: %v, want ErrKeyBound", err)
	}
	m := w.make(bot, nil, ticket.Wish{Certificate: "mine"})
	child := w.make(bot, &m.Ticket, ticket.Wish{})
	for what, one := range map[string]ticket.Made{"the ticket": m, "one that came of it": child} {
		for certificate, good := range map[string]bool{"mine": true, "another": false, "": false} {
			from := home
			from.Certificate = certificate
			if _, _, err := w.Authenticate(t.Context(), value(one), from); (err == nil) != good {
				t.Errorf("%s with the certificate %q: %v, want good: %t", what, certificate, err, good)
			}
		}
	}
}

func TestPolicies(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	root := w.make(ada, nil, ticket.Wish{})
	if !slices.Equal(root.Policies, []string{"root"}) {
		t.Errorf("a ticket of a person who is bound by nothing has %v, want root", root.Policies)
	}
	app := w.make(ada, &root.Ticket, ticket.Wish{Policies: []string{"app", "db"}})
	for _, c := range []struct {
		what string
		wish ticket.Wish
		want []string
		err  error
	}{
		{"the parent's", ticket.Wish{}, []string{"app", "db", "default"}, nil},
		{"some of them", ticket.Wish{Policies: []string{"db"}}, []string{"db", "default"}, nil},
		{"without default", ticket.Wish{Policies: []string{"db"}, NoDefault: true}, []string{"db"}, nil},
		{"none but default", ticket.Wish{Policies: []string{"default"}}, []string{"default"}, nil},
		{"another", ticket.Wish{Policies: []string{"ops"}}, nil, ticket.ErrPolicies},
		{"another, by sudo", ticket.Wish{Policies: []string{"ops"}, Any: true}, []string{"default", "ops"}, nil},
		{"root", ticket.Wish{Policies: []string{"root"}}, nil, ticket.ErrPolicies},
		{"the parent's, by sudo", ticket.Wish{Any: true}, []string{"app", "db", "default"}, nil},
		{"root, by sudo", ticket.Wish{Policies: []string{"root"}, Any: true}, nil, ticket.ErrPolicies},
	} {
		m, err := w.Create(t.Context(), ada, &app.Ticket, c.wish)
		if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) || err == nil && !slices.Equal(m.Policies, c.want) {
			t.Errorf("%s: %v, %v; want %v, %v (V22)", c.what, m.Policies, err, c.want, c.err)
		}
	}
}

// V22: children die with the parent, orphans do not.
func TestChildren(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		root := w.make(ada, nil, ticket.Wish{TTL: time.Hour})
		child := w.make(ada, &root.Ticket, ticket.Wish{TTL: 3 * time.Hour})
		grandchild := w.make(ada, &child.Ticket, ticket.Wish{TTL: 3 * time.Hour})
		orphan := w.make(ada, &child.Ticket, ticket.Wish{TTL: 3 * time.Hour, Orphan: true})
		if err := w.Keep(t.Context(), ada, &grandchild.Ticket, "a", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := w.RevokeOrphan(t.Context(), ada, ticket.Ref{Value: value(child)}); err != nil {
			t.Fatal(err)
		}
		if w.opens(child) || !w.opens(grandchild) || !w.opens(orphan) || !w.opens(root) {
			t.Errorf("after a ticket alone was revoked: itself %v, its child %v, an orphan %v, its parent %v; want false, true, true, true", w.opens(child), w.opens(grandchild), w.opens(orphan), w.opens(root))
		}
		if got, err := w.Lookup(t.Context(), ada, ticket.Ref{Accessor: grandchild.ID}); err != nil || !got.Orphan() {
			t.Errorf("its child is an orphan: %v, %v", got != nil && got.Orphan(), err)
		}
		if err := w.Revoke(t.Context(), ada, ticket.Ref{Accessor: grandchild.ID}); err != nil || w.opens(grandchild) {
			t.Errorf("revoked by accessor: %v; it opens: %v", err, w.opens(grandchild))
		}
		if n := count(t, d, "select count(*) from cubbyhole"); n != 0 {
			t.Errorf("%d things are kept by a ticket that was revoked", n)
		}
		// By time, without any work.
		second := w.make(ada, &root.Ticket, ticket.Wish{TTL: 3 * time.Hour})
		w.clock.Advance(time.Hour + time.Second)
		if w.opens(second) || !w.opens(orphan) {
			t.Errorf("after its parent's time is over: a child %v, an orphan %v; want false, true", w.opens(second), w.opens(orphan))
		}
		if _, err := w.Create(t.Context(), ada, &root.Ticket, ticket.Wish{}); !errors.Is(err, ticket.ErrTicket) {
			t.Errorf("a child of a ticket that has ended: %v, want ErrTicket", err)
		}
		// The sweep takes rows away, and nobody comes back by that.
		w.clock.Advance(2 * time.Hour)
		if err := w.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, "select count(*) from ticket"); n != 2 {
			t.Errorf("%d tickets are left, want 2", n)
		}
		if w.opens(second) {
			t.Error("a ticket whose parent is gone lets somebody in")
		}
	})
}

func count(t *testing.T, d *db.DB, query string) (n int) {
	t.Helper()
	if err := d.View(t.Context(), "", func(tx *db.Tx) error { return tx.QueryRow(t.Context(), query).Scan(&n) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRenew(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		renew := func(m ticket.Made, by time.Duration) (time.Duration, error) {
			one, _, err := w.Renew(t.Context(), ada, ticket.Ref{Value: value(m)}, by)
			if err != nil {
				return 0, err
			}
			return one.ExpiresAt.Sub(one.RenewedAt).Round(time.Second), nil
		}
		usual := w.make(ada, nil, ticket.Wish{})
		bounded := w.make(ada, nil, ticket.Wish{TTL: time.Hour, ExplicitMax: 90 * time.Minute})
		mounted := w.make(ada, nil, ticket.Wish{TTL: time.Hour, Most: 2 * time.Hour})
		periodic := w.make(ada, nil, ticket.Wish{Period: time.Hour})
		fixed := w.make(ada, nil, ticket.Wish{Fixed: true})
		task := w.make(bot, nil, ticket.Wish{TTL: time.Hour})
		if long := w.make(ada, nil, ticket.Wish{TTL: 10 * time.Hour, Most: time.Hour}); long.TTL != time.Hour || len(long.Warnings) != 1 {
			t.Errorf("a TTL above the mount's: %s with %q, want an hour and a warning (V35)", long.TTL, long.Warnings)
		}
		if _, err := renew(fixed, 0); !errors.Is(err, ticket.ErrNotRenewable) {
			t.Errorf("renewing what is not renewable: %v", err)
		}
		w.clock.Advance(10 * time.Minute)
		for _, c := range []struct {
			what     string
			m        ticket.Made
			by, want time.Duration
		}{
			{"the usual one", usual, 0, 15 * time.Minute},
			{"for longer", usual, time.Hour, time.Hour},
			{"to its own maximum", bounded, 0, time.Hour},
			{"beyond it", bounded, 4 * time.Hour, 80 * time.Minute},
			{"to the mount's", mounted, 10 * time.Hour, 110 * time.Minute},
			{"a periodic one", periodic, 5 * time.Hour, time.Hour},
			{"to the session's end", task, 24 * time.Hour, 7*time.Hour + 50*time.Minute},
		} {
			if got, err := renew(c.m, c.by); err != nil || (got-c.want).Abs() > 2*time.Second {
				t.Errorf("%s: it lives for %s, %v; want %s", c.what, got, err, c.want)
			}
		}
		w.clock.Advance(2 * time.Hour)
		if _, err := renew(usual, 0); !errors.Is(err, ticket.ErrNotFound) {
			t.Errorf("renewing what has ended: %v, want ErrNotFound", err)
		}
	})
}

// Uses are taken by compare-and-swap: 64 at once, on two nodes.
func TestUses(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := filepath.Join(t.TempDir(), "root.key")
		w, second := node(t, d, key), node(t, d, key)
		m := w.make(ada, nil, ticket.Wish{Uses: 10})
		if _, err := w.Create(t.Context(), ada, &m.Ticket, ticket.Wish{}); !errors.Is(err, ticket.ErrRestricted) {
			t.Errorf("a child of a ticket for ten uses: %v, want ErrRestricted", err)
		}
		var good atomic.Int64
		var all sync.WaitGroup
		for i := range 64 {
			all.Go(func() {
				n := w
				if i%2 == 1 {
					n = second
				}
				if _, _, err := n.Authenticate(t.Context(), value(m), home); err == nil {
					good.Add(1)
				} else if !errors.Is(err, ticket.ErrTicket) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if good.Load() != 10 {
			t.Errorf("a ticket for 10 uses was good %d times", good.Load())
		}
		if _, err := w.Lookup(t.Context(), ada, ticket.Ref{Accessor: m.ID}); !errors.Is(err, ticket.ErrNotFound) {
			t.Errorf("a ticket without uses is there: %v", err)
		}
	})
}

// A child that is made while its parent is revoked is not made, or has ended.
func TestCreateAgainstRevoke(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		root := w.make(ada, nil, ticket.Wish{})
		middle := w.make(ada, &root.Ticket, ticket.Wish{})
		var mu sync.Mutex
		var made []ticket.Made
		var all sync.WaitGroup
		for range 63 {
			all.Go(func() {
				m, err := w.Create(t.Context(), ada, &middle.Ticket, ticket.Wish{})
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					made = append(made, m)
				} else if !errors.Is(err, ticket.ErrTicket) {
					t.Error(err)
				}
			})
		}
		all.Go(func() {
			if err := w.Revoke(t.Context(), ada, ticket.Ref{Value: value(root)}); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
		for _, m := range made {
			if w.opens(m) {
				t.Fatal("a ticket lives whose parent was revoked")
			}
		}
	})
}

func TestBindings(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	m := w.make(ada, nil, ticket.Wish{CIDRs: []string{"192.0.2.0/24", "2001:db8::1/128"}, Certificate: "thumb"})
	if want := []string{"192.0.2.0/24", "2001:db8::1"}; !slices.Equal(m.CIDRs, want) {
		t.Errorf("the networks are kept as %v, want %v (V24)", m.CIDRs, want)
	}
	for _, c := range []struct {
		from, thumbprint string
		want             bool
	}{
		{"192.0.2.7", "thumb", true},
		{"2001:db8::1", "thumb", true},
		{"192.0.3.7", "thumb", false},
		{"192.0.2.7", "", false},
		{"192.0.2.7", "other", false},
		{"::ffff:192.0.2.7", "thumb", true},
	} {
		_, _, err := w.Authenticate(t.Context(), value(m), ticket.From{Address: netip.MustParseAddr(c.from), Certificate: c.thumbprint})
		if (err == nil) != c.want || err != nil && !errors.Is(err, ticket.ErrTicket) {
			t.Errorf("from %s with the certificate %q: %v, want that it is good: %v (V35)", c.from, c.thumbprint, err, c.want)
		}
	}
	// What comes of it is good there, and no further.
	for _, orphan := range []bool{false, true} {
		child := w.make(ada, &m.Ticket, ticket.Wish{Orphan: orphan})
		if !slices.Equal(child.CIDRs, m.CIDRs) || child.Certificate != "thumb" {
			t.Errorf("a child, an orphan: %v, is good at %v with %q", orphan, child.CIDRs, child.Certificate)
		}
	}
	if child := w.make(ada, &m.Ticket, ticket.Wish{CIDRs: []string{"192.0.2.7"}}); !slices.Equal(child.CIDRs, []string{"192.0.2.7"}) {
		t.Errorf("a child that is good at less: %v", child.CIDRs)
	}
	if _, err := w.Create(t.Context(), ada, &m.Ticket, ticket.Wish{CIDRs: []string{"192.0.0.0/16"}}); !errors.Is(err, ticket.ErrInvalid) {
		t.Errorf("a child that is good at more: %v", err)
	}
	if _, err := w.Create(t.Context(), ada, nil, ticket.Wish{CIDRs: []string{"here"}}); !errors.Is(err, ticket.ErrInvalid) {
		t.Errorf("a network that is none: %v", err)
	}
}

// An operation whose ticket ends meanwhile does not happen.
func TestAlive(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		root := w.make(ada, nil, ticket.Wish{})
		child := w.make(ada, &root.Ticket, ticket.Wish{})
		c, _, err := w.Authenticate(t.Context(), value(child), home)
		if err != nil {
			t.Fatal(err)
		}
		alive := func() error {
			return d.Do(t.Context(), "default", func(tx *db.Tx) error { return ticket.Alive(t.Context(), tx, c) })
		}
		if err := alive(); err != nil {
			t.Errorf("a live ticket: %v", err)
		}
		foreign := c
		foreign.Tenant = "other"
		if err := d.Do(t.Context(), "other", func(tx *db.Tx) error { return ticket.Alive(t.Context(), tx, foreign) }); !errors.Is(err, ticket.ErrTicket) {
			t.Errorf("in another tenant: %v, want ErrTicket (T1)", err)
		}
		if err := w.Revoke(t.Context(), ada, ticket.Ref{Value: value(root)}); err != nil {
			t.Fatal(err)
		}
		if err := alive(); !errors.Is(err, ticket.ErrTicket) {
			t.Errorf("after its parent was revoked: %v, want ErrTicket", err)
		}
		if !slices.Contains(w.gone, child.ID) || !slices.Contains(w.gone, root.ID) {
			t.Errorf("the end of %v was told, want both", w.gone)
		}
	})
}

func TestWrapping(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		made, err := w.Wrap(t.Context(), bot, "auth/approle/role/app/secret-id", []byte(`{"data":{"secret_id":"canary"}}`), "acc", 90*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		v := string(made.Value.Reveal())
		look, err := w.LookupWrap(t.Context(), "", v)
		if err != nil || look.TTL != 90*time.Second || look.Path != made.Path || look.Accessor != "acc" {
			t.Errorf("what waits is %+v, %v", look, err)
		}
		if _, _, err := w.Unwrap(t.Context(), "other", v, home); !errors.Is(err, ticket.ErrWrap) {
			t.Errorf("under a token of another tenant: %v, want ErrWrap (T3)", err)
		}
		again, err := w.Rewrap(t.Context(), "", v, home)
		if err != nil || again.TTL != made.TTL || again.Path != made.Path || again.Accessor != "acc" {
			t.Errorf("wrapped again it is %+v, %v", again, err)
		}
		if _, err := w.LookupWrap(t.Context(), "", v); !errors.Is(err, ticket.ErrWrap) {
			t.Errorf("the old token: %v, want ErrWrap", err)
		}
		// Once, of 64 at the same time.
		var good atomic.Int64
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() {
				b, _, err := w.Unwrap(t.Context(), "", string(again.Value.Reveal()), home)
				if err == nil && strings.Contains(string(b), "canary") {
					good.Add(1)
				} else if !errors.Is(err, ticket.ErrWrap) {
					t.Errorf("%q, %v", b, err)
				}
			})
		}
		all.Wait()
		if good.Load() != 1 {
			t.Errorf("an answer was unwrapped %d times, want once (V12)", good.Load())
		}
		// By time, with its session, by its accessor.
		late, err := w.Wrap(t.Context(), bot, "p", []byte("{}"), "", 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(3 * time.Second)
		revoked, err := w.Wrap(t.Context(), bot, "p", []byte("{}"), "", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Revoke(t.Context(), ada, ticket.Ref{Accessor: revoked.ID}); err != nil {
			t.Errorf("revoking by the accessor: %v", err)
		}
		left, err := w.Wrap(t.Context(), bot, "p", []byte("{}"), "", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if left, err = w.Rewrap(t.Context(), "", string(left.Value.Reveal()), home); err != nil {
			t.Fatal(err)
		}
		w.endSession("ses_bot")
		for what, m := range map[string]ticket.Wrapped{"late": late, "revoked": revoked, "after the session": left} {
			if _, _, err := w.Unwrap(t.Context(), "", string(m.Value.Reveal()), home); !errors.Is(err, ticket.ErrWrap) {
				t.Errorf("%s: %v, want ErrWrap", what, err)
			}
		}
	})
}

func TestCubbyhole(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		m, other := w.make(ada, nil, ticket.Wish{}), w.make(ada, nil, ticket.Wish{})
		for _, path := range []string{"a", "b/c", "b/d/e", "b"} {
			if err := w.Keep(t.Context(), ada, &m.Ticket, path, []byte("canary-"+path)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Keep(t.Context(), ada, &m.Ticket, "a", []byte("second")); err != nil {
			t.Fatal(err)
		}
		if b, err := w.Kept(t.Context(), ada, &m.Ticket, "a"); err != nil || string(b) != "second" {
			t.Errorf("it keeps %q, %v", b, err)
		}
		if _, err := w.Kept(t.Context(), ada, &other.Ticket, "a"); !errors.Is(err, ticket.ErrNoCubbyhole) {
			t.Errorf("another ticket of the same person reads it: %v, want ErrNoCubbyhole (V12)", err)
		}
		for prefix, want := range map[string][]string{"": {"a", "b", "b/"}, "b/": {"c", "d/"}, "b": {"c", "d/"}, "x": nil} {
			if got, err := w.KeptBelow(t.Context(), ada, &m.Ticket, prefix); err != nil || !slices.Equal(got, want) {
				t.Errorf("below %q it keeps %q, %v; want %q", prefix, got, err, want)
			}
		}
		if err := w.Forget(t.Context(), ada, &m.Ticket, "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Kept(t.Context(), ada, &m.Ticket, "a"); !errors.Is(err, ticket.ErrNoCubbyhole) {
			t.Errorf("what was forgotten: %v", err)
		}
		if err := w.Keep(t.Context(), ada, &m.Ticket, "big", make([]byte, 64<<10+1)); !errors.Is(err, ticket.ErrCubbyhole) {
			t.Errorf("more than 64 KiB: %v", err)
		}
		for i := range 100 {
			err := w.Keep(t.Context(), ada, &other.Ticket, "p"+strings.Repeat("x", i), []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Keep(t.Context(), ada, &other.Ticket, "one more", []byte("x")); !errors.Is(err, ticket.ErrCubbyhole) {
			t.Errorf("more than 100 things: %v", err)
		}
		var sealed []byte
		if err := d.View(t.Context(), "default", func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select sealed from cubbyhole where tenant_id = 'default' and path = 'b'").Scan(&sealed)
		}); err != nil || strings.Contains(string(sealed), "canary") {
			t.Errorf("what is kept stands in the database as %q, %v", sealed, err)
		}
	})
}

// Many tickets of one session end in its transaction, by one statement; nothing is
// loaded for them, and nothing waits at their end.
func TestManyTickets(t *testing.T) {
	d := dbtest.Open(t)
	w := newWorld(t, d)
	m := w.make(bot, nil, ticket.Wish{TTL: time.Hour})
	const many = 20_000
	if err := d.Do(t.Context(), "default", func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), `with recursive n(i) as (select 1 union all select i + 1 from n where i < $2)
			insert into ticket (tenant_id, hash, id, depth, subject, session_id, rests, mount_id, role, path, display_name, kind, policies, meta, created_at, expires_at, renewable,
				ttl, explicit_max_ttl, most_ttl, period, uses, cidrs, certificate)
			select tenant_id, cast(hash || i as blob), id || '-' || i, depth, subject, session_id, rests, mount_id, role, path, display_name, kind, policies, meta, created_at, expires_at, renewable,
				ttl, explicit_max_ttl, most_ttl, period, uses, cidrs, certificate from ticket, n where tenant_id = $1`, tx.Tenant(), many)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if !w.opens(m) {
		t.Error("among many the ticket lets nobody in")
	}
	if err := w.ExpireDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if n := w.endSession("ses_bot"); n != many+1 || w.opens(m) {
		t.Errorf("the session ended %d tickets, want %d; one of them opens: %v", n, many+1, w.opens(m))
	}
	t.Logf("%d tickets ended in %s", many+1, time.Since(began))
	w.clock.Advance(3 * time.Hour)
	if err := w.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, d, "select count(*) from ticket"); n != 0 {
		t.Errorf("%d tickets are left", n)
	}
}

// What hangs on a ticket ends with it, also by time, and with those that it came
// of; of other tickets no end by time is told.
func TestHolds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		root := w.make(ada, nil, ticket.Wish{TTL: time.Hour})
		child := w.make(ada, &root.Ticket, ticket.Wish{TTL: 3 * time.Hour})
		w.make(ada, nil, ticket.Wish{TTL: time.Minute})
		if err := w.Holds(t.Context(), &child.Ticket); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(30 * time.Minute)
		if err := w.ExpireDue(t.Context()); err != nil || len(w.gone) != 0 {
			t.Errorf("before its time: %v, the end of %v was told", err, w.gone)
		}
		w.clock.Advance(time.Hour)
		if err := w.ExpireDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(w.gone) != 2 || !slices.Contains(w.gone, child.ID) || !slices.Contains(w.gone, root.ID) {
			t.Errorf("after the time of the first: the end of %v was told, want %s and %s", w.gone, root.ID, child.ID)
		}
		if err := w.Holds(t.Context(), &child.Ticket); !errors.Is(err, ticket.ErrTicket) {
			t.Errorf("something is hung on a ticket that has ended: %v, want ErrTicket", err)
		}
	})
}

// One ticket that cannot be ended does not keep those of others.
func TestExpireDueGoesOn(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	first, second := w.make(ada, nil, ticket.Wish{TTL: time.Minute}), w.make(eve, nil, ticket.Wish{TTL: 2 * time.Minute})
	for _, m := range []ticket.Made{first, second} {
		if err := w.Holds(t.Context(), &m.Ticket); err != nil {
			t.Fatal(err)
		}
	}
	w.stuck = first.ID
	w.clock.Advance(time.Hour)
	if err := w.ExpireDue(t.Context()); err == nil || !slices.Equal(w.gone, []string{second.ID}) {
		t.Errorf("the end of %v was told, and %v; want that of %s, and an error", w.gone, err, second.ID)
	}
}

// What somebody sends in the place of an accessor is on record, but not at any
// length.
func TestLongAccessor(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	if _, err := w.Lookup(t.Context(), ada, ticket.Ref{Accessor: strings.Repeat("x", 1<<20)}); !errors.Is(err, ticket.ErrNotFound) {
		t.Errorf("looking it up: %v, want ErrNotFound", err)
	}
	if n := count(t, w.d, "select coalesce(max(length(target)), 0) from audit"); n == 0 || n > 1000 {
		t.Errorf("the longest target on record has %d bytes", n)
	}
}
