package lease_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
	"estover.dev/internal/secret/target"
)

var (
	ann = leasetest.Admin
	bob = estover.Caller{Tenant: "acme", Subject: estover.User("usr_bob"), Roles: []estover.Role{estover.Admin}}
	bot = estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_bot"), Session: "ses_1", Purpose: "billing", Token: "tok_1"}
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}, Purpose: "theft"}
)

// in is an agent in a session of its own.
func in(agent, session string) estover.Caller {
	return estover.Caller{Tenant: "acme", Subject: estover.Agent(agent), Session: session, Purpose: "billing"}
}

// setup is a node over d with a target in memory, whose clock is the database's,
// and the roles reader (plaintext) and writer (handles).
func setup(t testing.TB, d *db.DB) (*leasetest.House, *leasetest.Server) {
	t.Helper()
	clock := dbtest.NewClock(d)
	s := &leasetest.Server{Now: clock.Now}
	h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{}, s.Kind())
	h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, Resource: "res_db", Action: "read"})
	h.Role(t, ann, lease.RoleSpec{Name: "writer", Resource: "res_db", Action: "write", Template: engine.Template{"groups": {"writers"}}})
	return h, s
}

func create(t testing.TB, h *leasetest.House, c estover.Caller, role string) lease.Issued {
	t.Helper()
	x, err := h.Leases.Create(t.Context(), c, lease.Wish{Role: role})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func get(t testing.TB, h *leasetest.House, id string) lease.Lease {
	t.Helper()
	x, err := h.Leases.Get(t.Context(), ann, id)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func work(t testing.TB, h *leasetest.House) {
	t.Helper()
	if err := h.Leases.Work(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// endSessions ends what belongs to sessions, as their end does.
func endSessions(t testing.TB, h *leasetest.House, sessions ...string) (n int) {
	t.Helper()
	err := h.Guard.Do(t.Context(), ann, guard.Op{Action: "session.end"}, func(tx *guard.Tx) (err error) {
		n, err = h.Leases.EndOfSessions(t.Context(), tx, sessions)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// unknown are the users at the target of which no lease knows that has not ended.
func unknown(t testing.TB, h *leasetest.House, s *leasetest.Server) (names []string) {
	t.Helper()
	known := map[string]bool{}
	for _, x := range all(t, h, lease.Filter{Open: true}) {
		known[x.User] = true
	}
	for _, name := range s.Users() {
		if !known[name] {
			names = append(names, name)
		}
	}
	return names
}

func all(t testing.TB, h *leasetest.House, f lease.Filter) []lease.Lease {
	t.Helper()
	list, err := h.Leases.List(t.Context(), ann, f, "", 10_000)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestIssue(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, s := setup(t, d)
		x := create(t, h, bot, "reader")
		name, pass := string(x.Values["username"].Reveal()), x.Values["password"]
		if x.State != lease.Live || x.User != name || x.Session != "ses_1" || x.Agent != "agt_bot" || x.Holder != bot.Subject || x.ExpiresBy != "ttl" ||
			x.ExpiresAt.Sub(x.CreatedAt) != time.Hour || x.MaxAt.Sub(x.CreatedAt) != 24*time.Hour || x.Resource != "res_db" {
			t.Errorf("issued %+v", x.Lease)
		}
		if !strings.HasPrefix(name, "e_") || !strings.Contains(name, "_reader_") || len(name) != 2+8+1+6+1+16 || len(pass.Reveal()) != 32 {
			t.Errorf("the user is %s with %d bytes of password", name, len(pass.Reveal()))
		}
		open, ok := s.LogIn(name, pass)
		if !ok {
			t.Fatal("the credential does not log in")
		}
		if b, err := json.Marshal(x); err != nil || strings.Contains(string(b), string(pass.Reveal())) || strings.Contains(fmt.Sprintf("%+v", x), string(pass.Reveal())) {
			t.Errorf("a lease shows its values: %s, %v", b, err)
		}
		if got := get(t, h, x.ID); got.State != lease.Live || got.User != name {
			t.Errorf("the lease reads back as %+v", got)
		}

		// Marked first: from there on it is no lease, and the work follows (Q1).
		out, err := h.Leases.Revoke(t.Context(), ann, lease.Which{ID: x.ID}, "not needed")
		if err != nil || out.Count != 1 {
			t.Fatalf("revoking: %+v, %v", out, err)
		}
		if got := get(t, h, x.ID); got.State != lease.Revoking || got.Cause != lease.ByHand || got.Priority != 1 || got.DueAt.IsZero() {
			t.Errorf("after revoking it is %+v", got)
		}
		work(t, h)
		if got := get(t, h, x.ID); got.State != lease.Ended || got.EndedAt.IsZero() || len(s.Users()) != 0 || s.Open(open) {
			t.Errorf("after the work it is %s, with users %v and its session open: %v", got.State, s.Users(), s.Open(open))
		}
		if out, err := h.Leases.Revoke(t.Context(), ann, lease.Which{ID: x.ID}, ""); err != nil || out.Count != 0 {
			t.Errorf("revoking what has ended: %+v, %v; want nothing", out, err)
		}
		if _, err := h.Leases.Revoke(t.Context(), ann, lease.Which{ID: "lse_none"}, ""); !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("revoking what is not there: %v, want ErrNotFound", err)
		}
		for _, w := range []lease.Which{{}, {ID: x.ID, All: true}} {
			if _, err := h.Leases.Revoke(t.Context(), ann, w, ""); !errors.Is(err, lease.ErrInvalid) {
				t.Errorf("revoking %+v: %v, want ErrInvalid", w, err)
			}
		}
	})
}

// A lease ends with its session, its token, its agent, its role or its time, and
// says why.
func TestWhatEndsALease(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		h.Role(t, ann, lease.RoleSpec{Name: "bound", Delivery: lease.Plaintext, Bind: lease.ToToken})
		for name, c := range map[string]struct {
			end      func()
			cause    lease.Cause
			priority int64
		}{
			"session":    {func() { endSessions(t, h, "ses_x", "ses_1") }, lease.WithSession, 2},
			"time":       {func() { clock.Advance(time.Hour) }, lease.Expired, 3},
			"agent":      {func() { revoke(t, h, lease.Which{Agent: "agt_bot"}) }, lease.ByHand, 1},
			"role":       {func() { revoke(t, h, lease.Which{Role: "bound"}) }, lease.ByHand, 1},
			"target":     {func() { revoke(t, h, lease.Which{Target: "main"}) }, lease.ByHand, 1},
			"everything": {func() { revoke(t, h, lease.Which{All: true}) }, lease.ByHand, 1},
			"token": {func() {
				within(t, h, func(tx *guard.Tx) (int, error) { return h.Leases.EndOfTokens(t.Context(), tx, []string{"tok_1"}) })
			}, lease.WithToken, 2},
			"containment": {func() {
				within(t, h, func(tx *guard.Tx) (int, error) { return h.Leases.Contain(t.Context(), tx, []string{"agt_bot"}) })
			}, lease.Contained, 0},
		} {
			x := create(t, h, bot, "bound")
			c.end()
			work(t, h)
			if got := get(t, h, x.ID); got.State != lease.Ended || got.Cause != c.cause || got.Priority != c.priority {
				t.Errorf("%s: the lease is %s for %s of priority %d, want ended for %s of %d", name, got.State, got.Cause, got.Priority, c.cause, c.priority)
			}
		}
		if users := s.Users(); len(users) != 0 {
			t.Errorf("users are left: %v", users)
		}
	})
}

func revoke(t testing.TB, h *leasetest.House, w lease.Which) lease.Revoked {
	t.Helper()
	out, err := h.Leases.Revoke(t.Context(), ann, w, "")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func within(t testing.TB, h *leasetest.House, fn func(tx *guard.Tx) (int, error)) (n int) {
	t.Helper()
	if err := h.Guard.Do(t.Context(), ann, guard.Op{Action: "containment.run"}, func(tx *guard.Tx) (err error) {
		n, err = fn(tx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// L7: the first of several ends is a lease's own, and it says which one.
func TestHowLongALeaseLives(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		var session, grant time.Duration
		ends := func(in time.Duration) (time.Time, error) {
			if in == 0 {
				return time.Time{}, nil
			}
			return clock.Now().Add(in), nil
		}
		s := &leasetest.Server{Now: clock.Now}
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{
			Session: func(context.Context, *db.Tx, string) (time.Time, error) { return ends(session) },
			Grant: func(context.Context, estover.Caller, string, string) (lease.Grant, error) {
				until, err := ends(grant)
				return lease.Grant{ID: "grt_1", Until: until}, err
			},
		}, s.Kind())
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, Resource: "res_db", Action: "read", TTLSeconds: 600, MaxTTLSeconds: 1500})
		for _, c := range []struct {
			ttl, session, grant time.Duration
			want                time.Duration
			by                  string
		}{
			{0, 0, 0, 10 * time.Minute, "ttl"},
			{time.Minute, 0, 0, time.Minute, "ttl"},
			{time.Hour, 0, 0, 10 * time.Minute, "ttl"},
			{0, 5 * time.Minute, 0, 5 * time.Minute, "session"},
			{0, 5 * time.Minute, 3 * time.Minute, 3 * time.Minute, "grant"},
			{time.Minute, 5 * time.Minute, 3 * time.Minute, time.Minute, "ttl"},
		} {
			session, grant = c.session, c.grant
			x, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader", TTL: c.ttl})
			if err != nil {
				t.Fatal(err)
			}
			if got := x.ExpiresAt.Sub(x.CreatedAt); (got-c.want).Abs() > 5*time.Second || x.ExpiresBy != c.by {
				t.Errorf("%+v: it lives for %s by %s", c, got, x.ExpiresBy)
			}
		}
		session, grant = 0, 0
		x := create(t, h, bot, "reader")
		clock.Advance(8 * time.Minute)
		renewed, err := h.Leases.Renew(t.Context(), bot, x.ID, 0, "")
		if err != nil || (renewed.ExpiresAt.Sub(x.ExpiresAt)-8*time.Minute).Abs() > 5*time.Second {
			t.Fatalf("renewed from %s to %s, %v; want 8 minutes more", x.ExpiresAt, renewed.ExpiresAt, err)
		}
		if _, err := h.Leases.Renew(t.Context(), bot, x.ID, time.Minute, ""); !errors.Is(err, lease.ErrMaximum) {
			t.Errorf("renewing for less than there is: %v, want ErrMaximum", err)
		}
		clock.Advance(9 * time.Minute)
		if _, ok := s.LogIn(x.User, x.Values["password"]); !ok {
			t.Error("the target refuses a user whose lease was renewed")
		}
		if renewed, err = h.Leases.Renew(t.Context(), bot, x.ID, 0, ""); err != nil || !renewed.ExpiresAt.Equal(x.MaxAt) {
			t.Errorf("renewed to %s, %v; want the most, %s", renewed.ExpiresAt, err, x.MaxAt)
		}
		if _, err = h.Leases.Renew(t.Context(), bot, x.ID, 0, ""); !errors.Is(err, lease.ErrMaximum) {
			t.Errorf("renewing at the most: %v, want ErrMaximum", err)
		}
		if _, err = h.Leases.Renew(t.Context(), in("agt_other", "ses_2"), x.ID, 0, ""); !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("another agent renews: %v, want ErrNotFound", err)
		}
		clock.Advance(9 * time.Minute)
		if _, err = h.Leases.Renew(t.Context(), bot, x.ID, 0, ""); !errors.Is(err, lease.ErrNotLive) {
			t.Errorf("renewing what is over: %v, want ErrNotLive", err)
		}
		if _, ok := s.LogIn(x.User, x.Values["password"]); ok {
			t.Error("the target does not refuse by itself what is over, before anybody has come")
		}
	})
}

// F6: a target refuses by its own clock, whatever ours says.
func TestSkewedTarget(t *testing.T) {
	for _, skew := range []time.Duration{-20 * time.Minute, 20 * time.Minute} {
		d := dbtest.Open(t)
		clock := dbtest.NewClock(d)
		clock.Hold()
		s := &leasetest.Server{Now: func() time.Time { return clock.Now().Add(skew) }}
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{}, s.Kind())
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, TTLSeconds: 300})
		x := create(t, h, bot, "reader")
		for _, c := range []struct {
			advance time.Duration
			want    bool
		}{{290 * time.Second, true}, {12 * time.Second, true}, {10 * time.Second, false}} {
			clock.Advance(c.advance)
			if _, ok := s.LogIn(x.User, x.Values["password"]); ok != c.want {
				t.Errorf("with a clock %s ahead, %s after its start, it logs in: %v", skew, clock.Now().Sub(x.CreatedAt), ok)
			}
		}
		if at := h.Targets.State("acme", x.Target); time.Duration(at.Skew*1000)-skew > time.Second || skew-time.Duration(at.Skew*1000) > time.Second {
			t.Errorf("the clock is said to be %d µs ahead, want %s", at.Skew, skew)
		}
	}
}

// errCrash is what stops a step in its tracks.
var errCrash = errors.New("the process is gone")

// F1, F3: wherever a server dies while it makes a credential, another one takes
// away what nobody has got, and the lease of what somebody may have got stands.
func TestCrashes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		for _, c := range []struct {
			step  string
			done  bool
			fail  func() // at the target, before it
			state lease.State
			users int
		}{
			{"L1", false, nil, "", 0},
			{"L1", true, nil, lease.Ended, 0},
			{"L2", false, nil, lease.Ended, 0},
			{"L2", true, nil, lease.Ended, 0},
			{"L3", false, nil, lease.Ended, 0},
			{"L3", true, nil, lease.Live, 1},
			{"undo", false, func() { s.Fail = failing("create", true, engine.Refuse("no")) }, lease.Ended, 0},
			{"undo", true, func() { s.Fail = failing("create", true, engine.Refuse("no")) }, lease.Ended, 0},
			{"", false, func() { s.Fail = failing("create", true, errors.New("connection reset")) }, lease.Ended, 0},
			{"", false, func() { s.Fail = failing("create", false, errors.New("connection reset")) }, lease.Ended, 0},
			{"", false, func() { s.Fail = failing("create", true, engine.Refuse("no")) }, lease.Ended, 0},
			{"", false, func() { s.Fail = failing("create", false, engine.Unreachable(errors.New("no route"))) }, lease.Ended, 0},
		} {
			name := fmt.Sprint(c.step, " ", c.done)
			before := len(all(t, h, lease.Filter{}))
			dying := h.Another(t, guardtest.AllowAll)
			dying.Leases.Reached(func(step string, done bool) error {
				if step == c.step && done == c.done {
					return errCrash
				}
				return nil
			})
			if c.fail != nil {
				c.fail()
			}
			_, err := dying.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"})
			s.Fail = nil
			if err == nil {
				t.Errorf("%s: the lease was handed out", name)
			}
			if list := unknown(t, h, s); len(list) != 0 {
				t.Errorf("%s: just after it nobody knows of %v", name, list)
			}
			clock.Advance(16 * time.Second)
			work(t, h) // marks
			work(t, h)
			list := all(t, h, lease.Filter{})
			if c.state == "" && len(list) != before {
				t.Errorf("%s: there are %d leases more, want none", name, len(list)-before)
			}
			if c.state != "" && (len(list) != before+1 || list[0].State != c.state) {
				t.Errorf("%s: the lease is %s, want %s", name, list[0].State, c.state)
			}
			if users := s.Users(); len(users) != c.users {
				t.Errorf("%s: the users are %v, want %d", name, users, c.users)
			}
			revoke(t, h, lease.Which{All: true})
			work(t, h)
		}
	})
}

// failing is a target that fails at one operation.
func failing(operation string, after bool, err error) func(context.Context, string, string, bool) error {
	return func(_ context.Context, op, _ string, done bool) error {
		if op == operation && done == after {
			return err
		}
		return nil
	}
}

// F3: a commit whose reply is lost is a commit. The row decides.
func TestLostReply(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, s := setup(t, d)
		h.Leases.Reached(func(step string, done bool) error {
			if step == "L3 reply" {
				return db.ErrUnavailable
			}
			return nil
		})
		x := create(t, h, bot, "reader")
		if _, ok := s.LogIn(x.User, x.Values["password"]); !ok || get(t, h, x.ID).State != lease.Live {
			t.Errorf("the lease is %s, and its user logs in: %v", get(t, h, x.ID).State, ok)
		}
	})
}

// F2: what a client that hangs up has not got is taken away, whenever it hangs up.
func TestClientsHangUp(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, s := setup(t, d)
		for _, at := range []struct {
			step string
			done bool
		}{{"L1", true}, {"L2", false}, {"L2", true}, {"L3", false}, {"L3", true}} {
			ctx, hangUp := context.WithCancel(t.Context())
			h.Leases.Reached(func(step string, done bool) error {
				if step == at.step && done == at.done {
					hangUp()
				}
				return nil
			})
			_, err := h.Leases.Create(ctx, bot, lease.Wish{Role: "reader"})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("hanging up at %v: %v, want context.Canceled", at, err)
			}
			work(t, h)
			if users := s.Users(); len(users) != 0 {
				t.Errorf("hanging up at %v leaves %v", at, users)
			}
			if x := all(t, h, lease.Filter{})[0]; x.State != lease.Ended || x.Cause != lease.Undelivered {
				t.Errorf("hanging up at %v: the lease is %s for %s", at, x.State, x.Cause)
			}
		}
	})
}

// F4, L5, L6: what ends a lease overtakes its creation. The drop that comes before
// the create does not end the lease.
func TestRevokeOvertakesCreate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		arrived, goOn := make(chan string), make(chan struct{})
		s.Fail = func(_ context.Context, op, user string, after bool) error {
			if op == "create" && !after {
				arrived <- user
				<-goOn
			}
			return nil
		}
		result := make(chan error, 1)
		issue := func() {
			_, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"})
			result <- err
		}
		go issue()
		<-arrived
		if n := endSessions(t, h, "ses_1"); n != 1 {
			t.Errorf("%d leases were marked, want 1", n)
		}
		other := h.Another(t, guardtest.AllowAll)
		work(t, h)
		work(t, other) // comes too early, and must not end it
		if x := all(t, h, lease.Filter{})[0]; x.State != lease.Revoking {
			t.Errorf("while it is being created the lease is %s, want revoking", x.State)
		}
		goOn <- struct{}{}
		if err := <-result; !errors.Is(err, lease.ErrEnded) {
			t.Errorf("the creator is told %v, want ErrEnded", err)
		}
		if x := all(t, h, lease.Filter{})[0]; x.State != lease.Ended || x.Cause != lease.WithSession || len(s.Users()) != 0 {
			t.Errorf("the lease is %s for %s, with users %v", x.State, x.Cause, s.Users())
		}

		clock.Hold()
		// The creator dies with its create under way: the target obeys it up to the
		// last instant, and only then is the user taken away for good.
		h.Leases.Reached(func(step string, done bool) error {
			if step == "L2" && done {
				return errCrash
			}
			return nil
		})
		go issue()
		<-arrived
		endSessions(t, h, "ses_1")
		clock.Advance(14 * time.Second)
		work(t, other)
		if x := all(t, h, lease.Filter{})[0]; x.State != lease.Revoking {
			t.Errorf("before the target's last instant the lease is %s, want revoking", x.State)
		}
		goOn <- struct{}{}
		if err := <-result; !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		if len(s.Users()) != 1 {
			t.Fatalf("the users are %v, want one", s.Users())
		}
		clock.Advance(2 * time.Second)
		work(t, other)
		if x := all(t, h, lease.Filter{})[0]; x.State != lease.Ended || len(s.Users()) != 0 {
			t.Errorf("in the end the lease is %s, with users %v", x.State, s.Users())
		}
	})
}

// F13: what cannot be recorded did not happen, and no secret is left.
func TestEventCannotBeWritten(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := &leasetest.Server{Now: clock.Now}
		var stuck atomic.Pointer[string] // the action whose event cannot be written
		h := leasetest.New(t, d, guardtest.Decider(func(_ estover.Caller, op guard.Op) guard.Decision {
			d := guard.Decision{Allow: true}
			if a := stuck.Load(); a != nil && (*a == op.Action || *a == "*") {
				d.ID = "evt_taken" // an event with this id is there already
			}
			return d
		}), lease.Options{}, s.Kind())
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext})
		block := func(action string) { stuck.Store(&action) }
		block("thing.first")
		if err := h.Guard.Do(t.Context(), ann, guard.Op{Action: "thing.first"}, func(*guard.Tx) error { return nil }); err != nil {
			t.Fatal(err)
		}
		n := len(all(t, h, lease.Filter{}))
		for _, action := range []string{"*", "lease.create", "lease.activate"} {
			block(action)
			if _, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"}); !errors.Is(err, guard.ErrNotRecorded) {
				t.Errorf("without %s: issuing gives %v, want ErrNotRecorded", action, err)
			}
			if users := s.Users(); len(users) != 0 {
				t.Errorf("without %s the users are %v", action, users)
			}
		}
		if more := len(all(t, h, lease.Filter{})) - n; more != 1 {
			t.Errorf("%d leases are there, want the one of which the intent was recorded", more)
		}
		block("")
		x := create(t, h, bot, "reader")
		block("*")
		if _, err := h.Leases.Revoke(t.Context(), ann, lease.Which{ID: x.ID}, ""); !errors.Is(err, guard.ErrNotRecorded) {
			t.Errorf("revoking gives %v, want ErrNotRecorded", err)
		}
		if _, err := h.Leases.Renew(t.Context(), bot, x.ID, time.Minute, ""); !errors.Is(err, guard.ErrNotRecorded) && !errors.Is(err, lease.ErrMaximum) {
			t.Errorf("renewing gives %v, want ErrNotRecorded", err)
		}
		if get(t, h, x.ID).State != lease.Live {
			t.Error("the lease ended without a record")
		}
		block("lease.end")
		revoke(t, h, lease.Which{ID: x.ID})
		work(t, h)
		if got := get(t, h, x.ID); got.State != lease.Revoking || len(s.Users()) != 0 {
			t.Errorf("the lease is %s, with users %v; want it revoking as long as its end is not on record", got.State, s.Users())
		}
		block("")
		clock.Advance(2 * time.Minute)
		work(t, h)
		work(t, h)
		if list := all(t, h, lease.Filter{Open: true}); len(list) != 0 {
			t.Errorf("when events can be written again, %d leases are left", len(list))
		}
	})
}

// Q6: what is contained is overdue a minute after, and anything else after five.
func TestOverdue(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		clock.Hold()
		h, s := setup(t, d)
		contained := create(t, h, in("agt_1", "ses_1"), "reader")
		other := create(t, h, in("agt_2", "ses_2"), "reader")
		s.Down(true)
		contain(t, h, "agt_1")
		revoke(t, h, lease.Which{ID: other.ID})
		at := time.Duration(0)
		for _, c := range []struct {
			after time.Duration
			want  []string
		}{{59 * time.Second, nil}, {61 * time.Second, []string{contained.ID}}, {299 * time.Second, []string{contained.ID}}, {301 * time.Second, []string{contained.ID, other.ID}}} {
			clock.Advance(c.after - at)
			at = c.after
			var got []string
			for _, x := range all(t, h, lease.Filter{Overdue: true}) {
				got = append(got, x.ID)
			}
			for agent, id := range map[string]string{"agt_1": contained.ID, "agt_2": other.ID} {
				want := int64(0)
				if slices.Contains(c.want, id) {
					want = 1
				}
				if st, err := h.Leases.Standing(t.Context(), "acme", lease.Filter{Agent: agent}); err != nil || st.Overdue != want || get(t, h, id).Overdue != (want == 1) {
					t.Errorf("%s after they were revoked, %d of %s are overdue, %v; want %d", c.after, st.Overdue, agent, err, want)
				}
			}
			slices.Sort(got)
			if want := slices.Sorted(slices.Values(c.want)); !slices.Equal(got, want) {
				t.Errorf("%s after they were revoked, %v are overdue, want %v", c.after, got, want)
			}
		}
	})
}

// F8, Q5, Q6: a target is down for a week. Nothing is forgotten, the alarm is raised
// and cleared, nothing is issued there meanwhile, and an agent of whom something is
// overdue is known.
func TestTargetDownForAWeek(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		const many = 120
		for i := range many {
			create(t, h, in(fmt.Sprint("agt_", i%3), fmt.Sprint("ses_", i)), "reader")
		}
		s.Down(true)
		revoke(t, h, lease.Which{All: true})
		for range 3 * 24 { // a week in the end
			work(t, h)
			clock.Advance(time.Minute)
		}
		clock.Advance(7 * 24 * time.Hour)
		if err := h.Leases.Alarm(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := events(t, d, "lease.overdue"); n != 1 {
			t.Errorf("%d alarms, want 1 for the target", n)
		}
		if st, err := h.Leases.Standing(t.Context(), "acme", lease.Filter{Agent: "agt_1"}); err != nil || st.Overdue != many/3 || st.Open != many/3 {
			t.Errorf("of the agent there stand %+v, %v; want %d overdue", st, err, many/3)
		}
		if list := all(t, h, lease.Filter{Overdue: true}); len(list) != many || !list[0].Overdue {
			t.Errorf("%d leases are listed as overdue, want %d", len(list), many)
		}
		if _, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"}); !errors.Is(err, lease.ErrOverdue) {
			t.Errorf("issuing there: %v, want ErrOverdue", err)
		}
		made := s.Made()
		s.Down(false)
		clock.Advance(10 * time.Minute) // whatever the back-off had grown to
		for range 5 {
			work(t, h)
			clock.Advance(time.Minute)
		}
		if list := all(t, h, lease.Filter{Open: true}); len(list) != 0 || len(s.Users()) != 0 || s.Made() != made {
			t.Errorf("after its return %d leases and the users %v are left", len(list), s.Users())
		}
		if n := cleared(t, d, h); n != 1 {
			t.Errorf("%d events clear the alarm, want 1", n)
		}
		if err := h.Leases.Alarm(t.Context()); err != nil || events(t, d, "lease.overdue") != 1 {
			t.Errorf("another alarm was raised: %v", err)
		}
		create(t, h, bot, "reader")
	})
}

// events counts the events of an action.
func events(t testing.TB, d *db.DB, action string) (n int) {
	t.Helper()
	err := d.View(t.Context(), "acme", func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select count(*) from audit where tenant_id = $1 and action = $2", tx.Tenant(), action).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// cleared counts the events that say that nothing of a target is overdue any more.
func cleared(t testing.TB, d *db.DB, h *leasetest.House) (n int) {
	t.Helper()
	for _, detail := range h.Told(t, "acme", "lease.end") {
		if detail["overdue_cleared"] == true {
			n++
		}
	}
	return n
}

// L8: quotas hold, and say their number, also when 64 ask at once.
func TestQuotas(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := &leasetest.Server{Now: clock.Now}
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{Quota: 10}, s.Kind())
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext})
		race := func(caller func(i int) estover.Caller) (won int, lost map[string]int) {
			var mu sync.Mutex
			var wg sync.WaitGroup
			lost = map[string]int{}
			for i := range 64 {
				wg.Go(func() {
					_, err := h.Leases.Create(t.Context(), caller(i), lease.Wish{Role: "reader"})
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won++
						return
					}
					var known *estover.Error
					errors.As(err, &known)
					lost[known.Code]++
				})
			}
			wg.Wait()
			return won, lost
		}
		if won, lost := race(func(int) estover.Caller { return bot }); won != 10 || lost["lease_quota"] != 54 {
			t.Errorf("of 64 at once %d were issued, and the others heard %v; want 10", won, lost)
		}
		_, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"})
		if estover.KindOf(err) != estover.TooMuch || !strings.Contains(err.Error(), "10") {
			t.Errorf("one more: %v, want the number", err)
		}
		revoke(t, h, lease.Which{All: true})
		create(t, h, bot, "reader")
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, PerMinute: 20})
		clock.Advance(61 * time.Second)
		if won, lost := race(func(i int) estover.Caller { return in(fmt.Sprint("agt_", i), "ses_q") }); won != 20 || lost["lease_rate"] != 44 {
			t.Errorf("of 64 at once %d were issued, and the others heard %v; want 20", won, lost)
		}
		clock.Advance(61 * time.Second)
		create(t, h, in("agt_z", "ses_z"), "reader")
	})
}

// L8, H5: the gateway shares the lease of a session, makes one on first use, and
// another one when half of its time is over. When it is marked nothing opens it.
func TestUse(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		use := func(h *leasetest.House, c estover.Caller) (lease.Injection, error) {
			return h.Leases.Use(t.Context(), c, "res_db", "writer", "password")
		}
		before := s.Made()
		other := h.Another(t, guardtest.AllowAll)
		var wg sync.WaitGroup
		var mu sync.Mutex
		got := map[string]int{}
		for i := range 64 {
			wg.Go(func() {
				in, err := use([]*leasetest.House{h, other}[i%2], bot)
				if err != nil {
					t.Error(err)
					return
				}
				if _, ok := s.LogIn(in.User, in.Value); !ok {
					t.Error("what the gateway opens does not log in")
				}
				mu.Lock()
				defer mu.Unlock()
				got[in.Lease]++
			})
		}
		wg.Wait()
		if len(got) != 1 || s.Made() != before+1 {
			t.Errorf("64 uses in a session on two nodes made %d users and gave the leases %v, want one", s.Made()-before, got)
		}
		in1, _ := use(h, bot)
		if in2, err := use(h, in("agt_bot", "ses_2")); err != nil || in2.Lease == in1.Lease {
			t.Errorf("another session is given %s, %v; want one of its own", in2.Lease, err)
		}
		clock.Advance(31 * time.Minute)
		if in3, err := use(h, bot); err != nil || in3.Lease == in1.Lease {
			t.Errorf("in the second half of its time the session is given %s, %v; want the next one", in3.Lease, err)
		}
		for name, c := range map[string]struct {
			caller                estover.Caller
			resource, role, field string
			want                  error
		}{
			"another resource": {bot, "res_other", "writer", "password", lease.ErrOtherResource},
			"no resource":      {bot, "", "writer", "password", lease.ErrOtherResource},
			"another field":    {bot, "res_db", "writer", "key", lease.ErrNoField},
			"a plaintext role": {bot, "res_db", "reader", "password", lease.ErrRole},
			"no role":          {bot, "res_db", "none", "password", lease.ErrNoRole},
			"no session":       {estover.Caller{Tenant: "acme", Subject: bot.Subject}, "res_db", "writer", "password", lease.ErrSession},
		} {
			if _, err := h.Leases.Use(t.Context(), c.caller, c.resource, c.role, c.field); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		ended, _ := use(h, bot)
		endSessions(t, h, "ses_1")
		work(t, h)
		if in4, err := use(h, bot); err != nil || in4.Lease == ended.Lease {
			t.Errorf("after the session's leases were marked it is given %s, %v; want another one", in4.Lease, err)
		}
		if x := get(t, h, in1.Lease); x.State != lease.Ended {
			t.Errorf("the first lease is %s", x.State)
		}
	})
}

// Nothing is issued from a role before the whole round has gone well, as it stands,
// and what a round makes is taken away whatever happens.
func TestCheck(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := &leasetest.Server{Now: clock.Now, Password: "admin's own"}
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{}, s.Kind())
		put := func(spec lease.RoleSpec) error {
			spec.Name, spec.Target = "reader", "main"
			_, err := h.Leases.PutRole(t.Context(), ann, spec)
			return err
		}
		issue := func() error {
			_, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"})
			return err
		}
		check := func() lease.Checked {
			t.Helper()
			out, err := h.Leases.CheckRole(t.Context(), ann, "reader")
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		if err := put(lease.RoleSpec{}); err != nil {
			t.Fatal(err)
		}
		if err := issue(); !errors.Is(err, lease.ErrNotChecked) {
			t.Errorf("issuing before the round: %v, want ErrNotChecked", err)
		}
		for step, fail := range map[string]func(context.Context, string, string, bool) error{
			"reach":  failing("list", false, engine.Unreachable(errors.New("no route"))),
			"create": failing("create", false, engine.Refuse("permission denied to create role")),
			"log_in": failing("verify", false, engine.ErrWrongSecret),
			"revoke": failing("revoke", false, engine.Refuse("permission denied to drop role")),
			"gone":   failing("revoke", true, nil),
		} {
			s.Fail = fail
			if step == "gone" {
				s.Fail = func(_ context.Context, op, user string, after bool) error {
					if op == "revoke" && after {
						go s.Add("x", "x")
						return nil
					}
					if op == "list" && !after && strings.Contains(user, "_check_") {
						return engine.Refuse("it cannot be seen")
					}
					return nil
				}
			}
			out := check()
			last := out.Steps[len(out.Steps)-1]
			failed := slices.IndexFunc(out.Steps, func(c lease.CheckStep) bool { return c.State == "failed" })
			if out.OK || failed < 0 || out.Steps[failed].Name != step {
				t.Errorf("a round that fails at %s ends with %+v", step, last)
			}
			if r, err := h.Leases.Role(t.Context(), ann, "reader"); err != nil || r.Ready || !strings.HasPrefix(r.CheckError, step+":") {
				t.Errorf("after it the role is %+v, %v", r, err)
			}
			if err := issue(); !errors.Is(err, lease.ErrNotChecked) {
				t.Errorf("issuing after it: %v, want ErrNotChecked", err)
			}
			s.Fail = nil
			clock.Advance(6 * time.Minute)
			work(t, h)
			s.Drop("x")
			if list := unknown(t, h, s); len(list) != 0 || len(all(t, h, lease.Filter{Open: true})) != 0 {
				t.Errorf("a round that fails at %s leaves %v", step, list)
			}
		}
		if out := check(); !out.OK || len(out.Steps) != 5 {
			t.Fatalf("the round: %+v", out)
		}
		if err := issue(); err != nil {
			t.Errorf("issuing after the round: %v", err)
		}
		// What is said of the role beside stays checked; another template does not.
		if err := put(lease.RoleSpec{TTLSeconds: 60}); err != nil || issue() != nil {
			t.Errorf("after another time: %v, %v", err, issue())
		}
		if err := put(lease.RoleSpec{Template: engine.Template{"groups": {"readers"}}}); err != nil || !errors.Is(issue(), lease.ErrNotChecked) {
			t.Errorf("after another template: %v, %v; want ErrNotChecked", err, issue())
		}
		check()
		if err := issue(); err != nil {
			t.Error(err)
		}
		// Another operator says neither where it is nor whose, but may stop it.
		elsewhere := "memory.example:7001"
		bob := estover.Caller{Tenant: ann.Tenant, Subject: estover.User("usr_bob"), Roles: []estover.Role{estover.Operator}}
		for what, ch := range map[string]target.Change{"address": {Address: &elsewhere}, "admin": {Admin: &elsewhere}, "owner": {Owner: &bob.Subject}} {
			if _, err := h.Targets.Update(t.Context(), bob, "main", ch); !errors.Is(err, target.ErrNotOwner) {
				t.Errorf("the %s, by another operator: %v, want ErrNotOwner", what, err)
			}
		}
		if _, err := h.Targets.Update(t.Context(), bob, "main", target.Change{Description: &elsewhere}); err != nil {
			t.Errorf("a description, by another operator: %v", err)
		}
		// Whose the target is has no secret of somebody else's sent to another host either.
		if _, err := h.Targets.Update(t.Context(), ann, "main", target.Change{Owner: &bob.Subject}); err != nil {
			t.Fatal(err)
		}
		id, err := h.Targets.Named(t.Context(), ann.Tenant, "main")
		if err != nil {
			t.Fatal(err)
		}
		main, err := h.Targets.Snapshot(t.Context(), ann.Tenant, id)
		if err != nil {
			t.Fatal(err)
		}
		tried := func(c estover.Caller, address string) error {
			spec := main.Spec
			spec.Address = address
			e, err := h.Targets.Try(t.Context(), c, spec, engine.Credential{})
			if err == nil {
				err = e.Close()
			}
			return err
		}
		if err := tried(bob, elsewhere); !errors.Is(err, target.ErrNotOwner) {
			t.Errorf("whose the target is, not the secret, tries it elsewhere: %v, want ErrNotOwner", err)
		}
		if err := tried(bob, main.Address); err != nil {
			t.Errorf("where the secret goes anyway: %v", err)
		}
		if err := tried(ann, elsewhere); err != nil {
			t.Errorf("whose the secret is: %v", err)
		}
		if _, err := h.Targets.Update(t.Context(), ann, "main", target.Change{Address: &elsewhere}); err != nil || !errors.Is(issue(), lease.ErrNotChecked) {
			t.Errorf("after another address: %v, %v; want ErrNotChecked", err, issue())
		}
		// The secret of the admin does not go to another host.
		out := check()
		if out.OK || !strings.Contains(out.Steps[0].What, "destinations") {
			t.Errorf("a host that the admin's secret does not name: %+v", out)
		}
		for name, spec := range map[string]lease.RoleSpec{
			"an unknown key":           {Template: engine.Template{"colours": {"red"}}},
			"a group that cannot be":   {Template: engine.Template{"groups": {"none"}}},
			"an action without place":  {Action: "read"},
			"a time of no length":      {TTLSeconds: -1},
			"more time than at most":   {TTLSeconds: 100, MaxTTLSeconds: 50},
			"plaintext that is shared": {Delivery: lease.Plaintext, Shared: true},
			"no delivery":              {Delivery: "pigeon"},
		} {
			if err := put(spec); !errors.Is(err, lease.ErrRole) {
				t.Errorf("%s: %v, want ErrRole", name, err)
			}
		}
	})
}

// Q7: that a target is no more is said by two people.
func TestDeclare(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, s := setup(t, d)
		x := create(t, h, bot, "reader")
		s.Down(true)
		if out, err := h.Leases.Declare(t.Context(), ann, "main", "the machine was scrapped"); err != nil || out.Waiting != 0 || out.Ended != 0 {
			t.Errorf("declaring with a live lease: %+v, %v; want nothing", out, err)
		}
		revoke(t, h, lease.Which{ID: x.ID})
		if _, err := h.Leases.Declare(t.Context(), ann, "main", ""); !errors.Is(err, lease.ErrInvalid) {
			t.Errorf("declaring without a reason: %v, want ErrInvalid", err)
		}
		if out, err := h.Leases.Declare(t.Context(), bot, "main", "the machine was scrapped"); !errors.Is(err, lease.ErrInvalid) || out.Waiting != 0 {
			t.Errorf("an agent declares it: %+v, %v; want ErrInvalid, for people say so", out, err)
		}
		if out, err := h.Leases.Declare(t.Context(), ann, "main", "the machine was scrapped"); err != nil || out.Waiting != 1 || out.Ended != 0 {
			t.Errorf("the first person: %+v, %v; want one lease to wait", out, err)
		}
		if _, err := h.Leases.Declare(t.Context(), ann, "main", "I say so again"); !errors.Is(err, lease.ErrSecond) {
			t.Errorf("the same person again: %v, want ErrSecond", err)
		}
		if get(t, h, x.ID).State != lease.Revoking {
			t.Fatal("one person's word ended a lease")
		}
		if out, err := h.Leases.Declare(t.Context(), bob, "main", "I saw it"); err != nil || out.Ended != 1 || get(t, h, x.ID).State != lease.Ended {
			t.Errorf("the second person: %+v, %v", out, err)
		}
	})
}

// T1: nothing of a tenant can be found, changed or ended under another.
func TestTenants(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, s := setup(t, d)
		x := create(t, h, bot, "reader")
		h.Add(t, eve, "main", "memory", leasetest.Host)
		thief := in("agt_bot", "ses_1")
		thief.Tenant = "evil"
		for name, err := range map[string]error{
			"reading":        second(h.Leases.Get(t.Context(), eve, x.ID)),
			"revoking":       second(h.Leases.Revoke(t.Context(), eve, lease.Which{ID: x.ID}, "")),
			"renewing":       second(h.Leases.Renew(t.Context(), thief, x.ID, 0, "")),
			"issuing":        second(h.Leases.Create(t.Context(), thief, lease.Wish{Role: "reader"})),
			"using":          second(h.Leases.Use(t.Context(), thief, "res_db", "writer", "password")),
			"checking":       second(h.Leases.CheckRole(t.Context(), eve, "reader")),
			"asking whose":   second(h.Leases.Owner(t.Context(), "evil", x.ID)),
			"a role of":      second(h.Leases.Role(t.Context(), eve, "reader")),
			"removing":       h.Leases.RemoveRole(t.Context(), eve, "reader"),
			"working at":     second(h.Targets.Engine(t.Context(), "evil", x.Target)),
			"looking at the": second(h.Targets.Snapshot(t.Context(), "evil", x.Target)),
		} {
			if estover.KindOf(err) != estover.NotFound {
				t.Errorf("%s another organisation's: %v, want not found", name, err)
			}
		}
		for _, w := range []lease.Which{{All: true}, {Agent: "agt_bot"}, {Session: "ses_1"}, {Role: "reader"}, {Target: "main"}} {
			if out, err := h.Leases.Revoke(t.Context(), eve, w, ""); err != nil || out.Count != 0 {
				t.Errorf("revoking %+v of another organisation: %+v, %v; want nothing", w, out, err)
			}
		}
		if list, err := h.Leases.List(t.Context(), eve, lease.Filter{}, "", 10); err != nil || len(list) != 0 {
			t.Errorf("another organisation lists %d leases, %v", len(list), err)
		}
		if _, ok := s.LogIn(x.User, x.Values["password"]); !ok || get(t, h, x.ID).State != lease.Live {
			t.Error("the lease has not outlived another organisation")
		}
	})
}

func second[T any](_ T, err error) error { return err }

// A target at which there is anything is not removed.
func TestRemove(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, _ := setup(t, d)
		x := create(t, h, bot, "reader")
		if err := h.Targets.Remove(t.Context(), ann, "main"); !errors.Is(err, target.ErrInUse) {
			t.Errorf("removing a target with a lease: %v, want ErrInUse", err)
		}
		if err := h.Leases.RemoveRole(t.Context(), ann, "reader"); !errors.Is(err, lease.ErrRoleInUse) {
			t.Errorf("removing a role with a lease: %v, want ErrRoleInUse", err)
		}
		revoke(t, h, lease.Which{ID: x.ID})
		if err := h.Leases.RemoveRole(t.Context(), ann, "reader"); !errors.Is(err, lease.ErrRoleInUse) {
			t.Errorf("removing a role with a lease that is being revoked: %v, want ErrRoleInUse", err)
		}
		work(t, h)
		for _, role := range []string{"reader", "writer"} {
			if err := h.Leases.RemoveRole(t.Context(), ann, role); err != nil {
				t.Error(err)
			}
		}
		if err := h.Targets.Remove(t.Context(), ann, "main"); err != nil {
			t.Error(err)
		}
		if _, err := h.Targets.Get(t.Context(), ann, "main"); !errors.Is(err, target.ErrNotFound) {
			t.Errorf("it is still there: %v", err)
		}
	})
}

// Nothing is done at a target for who may not have it tried.
func TestCheckIsAskedFor(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, s := setup(t, d)
		closed := h.Another(t, guardtest.DenyAll)
		tried := 0
		s.Fail = func(context.Context, string, string, bool) error { tried++; return nil }
		_, errRole := closed.Leases.CheckRole(t.Context(), bot, "reader")
		_, errTarget := closed.Leases.CheckTarget(t.Context(), bot, "main", nil)
		_, errUser := closed.Leases.CheckTarget(t.Context(), bot, "main", engine.Template{"groups": {"readers"}})
		for what, err := range map[string]error{"a role": errRole, "a target": errTarget, "a target with a user": errUser} {
			if estover.KindOf(err) != estover.Denied {
				t.Errorf("trying %s: %v, want a refusal", what, err)
			}
		}
		if tried != 0 {
			t.Errorf("%d things were done at the target for who may not have it tried", tried)
		}
	})
}

// L6 holds for a trial too: a user that was still on its way when it was taken away
// is taken away again.
func TestTrialOnItsWay(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		name := ""
		s.Fail = func(_ context.Context, op, user string, after bool) error {
			if op == "create" && !after {
				name = user
				return errors.New("the connection was cut")
			}
			return nil
		}
		if out, err := h.Leases.CheckRole(t.Context(), ann, "reader"); err != nil || out.OK {
			t.Fatalf("a round whose connection is cut: %+v, %v", out, err)
		}
		s.Fail = nil
		s.Add(name, "it comes late")
		clock.Advance(time.Minute)
		work(t, h)
		if users := s.Users(); slices.Contains(users, name) {
			t.Errorf("a user that came late is left, and no lease knows of it: %q", users)
		}
		if open := all(t, h, lease.Filter{Open: true}); len(open) != 0 {
			t.Errorf("%d leases are left", len(open))
		}
	})
}

// A lease whose end cannot be put off at the target does not say that it goes on.
func TestEndThatStays(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		x := create(t, h, bot, "reader")
		clock.Advance(10 * time.Minute)
		s.Fail = failing("extend", false, fmt.Errorf("%w: it stands in what was handed out", engine.ErrUnsupported))
		if _, err := h.Leases.Renew(t.Context(), bot, x.ID, 0, ""); !errors.Is(err, lease.ErrMaximum) {
			t.Errorf("extending it: %v, want ErrMaximum", err)
		}
		if got := get(t, h, x.ID); !got.ExpiresAt.Equal(x.ExpiresAt) {
			t.Errorf("it is said to end at %s, not %s", got.ExpiresAt, x.ExpiresAt)
		}
	})
}

// A resource that was held after policy was asked is held: nothing is made for it.
func TestHeldMeanwhile(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := &leasetest.Server{Now: clock.Now}
		held := &estover.Error{Kind: estover.Conflict, Code: "resource_held", Detail: "It is held."}
		asked := ""
		o := lease.Options{Held: func(_ context.Context, _ *db.Tx, id string) error { asked = id; return held }}
		h := leasetest.New(t, d, guardtest.AllowAll, o, s.Kind())
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, Resource: "res_db", Action: "read"})
		if _, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"}); !errors.Is(err, held) || asked != "res_db" {
			t.Errorf("a lease for a resource that is held: %v, after %q was asked for", err, asked)
		}
		if users := s.Users(); len(users) != 0 {
			t.Errorf("users were made all the same: %q", users)
		}
	})
}

// What a target says, and where its admin's secret is and may go, is the operators'.
func TestWhatAgentsAreTold(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, s := setup(t, d)
		x := create(t, h, bot, "reader")
		s.Fail = failing("revoke", false, engine.Refuse("it owns the table payroll"))
		if _, err := h.Leases.Revoke(t.Context(), bot, lease.Which{ID: x.ID}, ""); err != nil {
			t.Fatal(err)
		}
		work(t, h)
		if got := get(t, h, x.ID); !strings.Contains(got.LastError, "payroll") {
			t.Errorf("an administrator is told %q", got.LastError)
		}
		own, err := h.Leases.Get(t.Context(), bot, x.ID)
		if err != nil || own.LastError != "" {
			t.Errorf("an agent is told %q, %v", own.LastError, err)
		}
		list, err := h.Leases.List(t.Context(), bot, lease.Filter{Session: bot.Session}, "", 10)
		if err != nil || len(list) != 1 || list[0].LastError != "" {
			t.Errorf("an agent lists %+v, %v", list, err)
		}
		s.Fail = nil
		elsewhere := []string{"elsewhere.example:7000"}
		if _, err := h.Secrets.Update(t.Context(), ann, leasetest.AdminPath, secret.Change{Destinations: &elsewhere}); err != nil {
			t.Fatal(err)
		}
		_, err = h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"})
		var told *estover.Error
		if !errors.As(err, &told) || told.Code != target.ErrUnreachable.Code || strings.Contains(told.Detail, leasetest.AdminPath) {
			t.Errorf("an agent is told %v of an admin that may not be used", err)
		}
	})
}
