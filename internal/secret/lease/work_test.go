package lease_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
	"estover.dev/internal/secret/target"
)

// F7: two nodes that claim at once get leases of their own, at once: neither waits for
// the other's transaction, and none is claimed twice.
func TestClaimsAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, _ := setup(t, d)
		const many = 80 // more than a batch
		for i := range many {
			create(t, h, in("agt_bot", fmt.Sprint("ses_", i%7)), "reader")
		}
		revoke(t, h, lease.Which{All: true})
		at, err := h.Targets.Named(t.Context(), "acme", "main")
		if err != nil {
			t.Fatal(err)
		}
		claim := func(node string, meanwhile func()) (ids []string) {
			err := d.Do(t.Context(), "acme", func(tx *db.Tx) (err error) {
				if ids, err = lease.Claim(t.Context(), tx, at, node); err == nil && meanwhile != nil {
					meanwhile()
				}
				return err
			})
			if err != nil {
				t.Errorf("%s claims: %v", node, err)
			}
			return ids
		}
		var one, two []string
		if d.Engine() == db.SQLite { // which has one writer
			one, two = claim("node_1", nil), claim("node_2", nil)
		} else {
			one = claim("node_1", func() {
				done := make(chan struct{})
				go func() {
					defer close(done)
					two = claim("node_2", nil)
				}()
				select {
				case <-done:
				case <-time.After(time.Minute):
					t.Error("a node that claims waits for another's transaction")
				}
			})
		}
		if len(one) != 50 || len(two) != many-50 {
			t.Errorf("%d and %d leases were claimed, want a batch of 50 and the other %d", len(one), len(two), many-50)
		}
		for _, id := range two {
			if slices.Contains(one, id) {
				t.Errorf("both have claimed %s", id)
			}
		}
	})
}

// F7: two nodes work at the same rows. Each user is taken away once, and a claim
// whose node hangs passes on: what that node says later is not believed.
func TestTwoNodes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		other := h.Another(t, guardtest.AllowAll)
		const many = 150
		for i := range many {
			create(t, h, in("agt_bot", fmt.Sprint("ses_", i%7)), "reader")
			if i%60 == 59 { // the quota
				revoke(t, h, lease.Which{All: true})
			}
		}
		revoke(t, h, lease.Which{All: true})
		var mu sync.Mutex
		taken := map[string]int{}
		s.Fail = func(_ context.Context, op, user string, after bool) error {
			if op == "revoke" && after {
				mu.Lock()
				taken[user]++
				mu.Unlock()
			}
			return nil
		}
		var wg sync.WaitGroup
		for _, node := range []*leasetest.House{h, other, h, other} {
			wg.Go(func() { work(t, node) })
		}
		wg.Wait()
		work(t, h)
		if len(taken) != many || len(s.Users()) != 0 || len(all(t, h, lease.Filter{Open: true})) != 0 {
			t.Errorf("%d users were taken away, left are %v and %d leases", len(taken), s.Users(), len(all(t, h, lease.Filter{Open: true})))
		}
		for user, n := range taken {
			if n != 1 {
				t.Errorf("%s was taken away %d times", user, n)
			}
		}

		// A node that hangs loses its claim.
		s.Fail = nil
		x := create(t, h, bot, "reader")
		revoke(t, h, lease.Which{ID: x.ID})
		hangs, goOn := make(chan struct{}), make(chan struct{})
		other.Leases.Reached(func(step string, done bool) error {
			if step == "revoke" {
				close(hangs)
				<-goOn
			}
			return nil
		})
		wg.Go(func() { work(t, other) })
		<-hangs
		work(t, h)
		if got := get(t, h, x.ID); got.State != lease.Revoking {
			t.Errorf("what another node has claimed is %s, want revoking", got.State)
		}
		clock.Advance(61 * time.Second)
		s.Fail = failing("revoke", false, engine.Refuse("it owns something"))
		work(t, h)
		close(goOn)
		wg.Wait()
		if got := get(t, h, x.ID); got.State != lease.Revoking || got.Attempts != 1 {
			t.Errorf("after the word of a node that had lost its claim the lease is %s after %d attempts, want revoking after 1", got.State, got.Attempts)
		}
	})
}

// contain marks the leases of an agent as its containment does.
func contain(t testing.TB, h *leasetest.House, agent string) int {
	t.Helper()
	return within(t, h, func(tx *guard.Tx) (int, error) { return h.Leases.Contain(t.Context(), tx, []string{agent}) })
}

// Q2: what is contained comes before all others, in batches of 50, at most so many
// of them at once.
func TestOrderAndBatches(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := &leasetest.Server{Now: clock.Now}
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{Quota: 1000}, s.Kind())
		one := int64(1)
		if _, err := h.Targets.Update(t.Context(), ann, "main", target.Change{Batches: &one}); err != nil {
			t.Fatal(err)
		}
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, TTLSeconds: 60})
		for i := range 130 {
			create(t, h, in(fmt.Sprint("agt_", i%13), fmt.Sprint("ses_", i)), "reader")
		}
		order := []string{}
		users := map[string]string{} // by agent
		for _, x := range all(t, h, lease.Filter{Open: true}) {
			users[x.User] = x.Agent
		}
		s.Fail = func(_ context.Context, op, user string, after bool) error {
			if op == "revoke" && !after {
				order = append(order, users[user])
			}
			return nil
		}
		clock.Advance(61 * time.Second)
		if err := h.Leases.MarkDue(t.Context()); err != nil { // all of them have expired
			t.Fatal(err)
		}
		if n := contain(t, h, "agt_7"); n != 10 {
			t.Errorf("%d leases were contained, want 10", n)
		}
		left, err := h.Leases.Left(t.Context(), "acme", func(agent, _, _ string) bool { return agent == "agt_7" })
		if err != nil || left != 10 {
			t.Errorf("%d of the contained are left, %v; want 10", left, err)
		}
		work(t, h)
		if len(order) != 130 || slices.ContainsFunc(order[:10], func(a string) bool { return a != "agt_7" }) {
			t.Errorf("%d were taken away, the first of them of %v; want those of agt_7 first", len(order), order[:min(10, len(order))])
		}
		sum := 0
		for _, n := range s.Batches()[1:] { // the first was the round's
			if sum += n; n > 50 {
				t.Errorf("a batch had %d users, want 50 at most", n)
			}
		}
		if sum != 130 {
			t.Errorf("the batches had %d users, want 130", sum)
		}
	})
}

// Q5: what fails is tried again after a second, later each time, after five minutes at
// most, and not everything in the same instant.
func TestBackOff(t *testing.T) {
	for attempts := range int64(70) {
		whole := 5 * time.Minute
		if attempts < 9 {
			whole = min(whole, time.Second<<attempts)
		}
		least, most := time.Hour, time.Duration(0)
		for range 200 {
			d := lease.BackOff(attempts)
			least, most = min(least, d), max(most, d)
		}
		if least < whole*8/10 || least > whole*9/10 || most < whole*11/10 || most > whole*12/10 {
			t.Errorf("after %d failures it is tried again in %s to %s, want %s and 20 %% more or less", attempts, least, most, whole)
		}
	}
}

// Q4, Q5: one that cannot be ended holds no other, is tried by itself from then on,
// ever later, and for ever.
func TestOneBadUser(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		one := int64(1) // of two batches at once, each has a part
		if _, err := h.Targets.Update(t.Context(), ann, "main", target.Change{Batches: &one}); err != nil {
			t.Fatal(err)
		}
		var bad string
		for i := range 50 {
			x := create(t, h, bot, "reader")
			if i == 17 {
				bad = x.User
			}
		}
		s.Fail = func(_ context.Context, op, user string, after bool) error {
			if op == "revoke" && user == bad && !after {
				return engine.Refuse("it owns tables")
			}
			return nil
		}
		clock.Hold() // what it waits is looked at a moment later
		revoke(t, h, lease.Which{All: true})
		before := len(s.Batches())
		work(t, h)
		list := all(t, h, lease.Filter{Open: true})
		if len(list) != 1 || list[0].User != bad || list[0].Attempts != 1 || !strings.Contains(list[0].LastError, "it owns tables") {
			t.Fatalf("left are %+v, want the bad one after an attempt", list)
		}
		create(t, h, bot, "reader") // nobody else is held up
		var waits []time.Duration
		for range 12 {
			x := get(t, h, list[0].ID)
			wait := x.NextTryAt.Sub(clock.Now())
			waits = append(waits, wait)
			clock.Advance(wait + time.Millisecond)
			work(t, h)
		}
		for i, w := range waits {
			want := min(time.Second<<i, 5*time.Minute)
			if w > want*12/10+time.Second || w < want*8/10-time.Second {
				t.Errorf("before attempt %d it waits %s, want about %s", i+2, w, want)
			}
		}
		if batches := s.Batches()[before:]; batches[0] != 50 || slices.ContainsFunc(batches[1:], func(n int) bool { return n != 1 }) {
			t.Errorf("the batches were of %v, want 50 and then one by one", batches)
		}
		s.Fail = nil
		clock.Advance(6 * time.Minute)
		work(t, h)
		if x := get(t, h, list[0].ID); x.State != lease.Ended {
			t.Errorf("in the end it is %s", x.State)
		}
	})
}

// Q2: after five failures in a row nothing is tried but a probe now and then, and
// what is asked for is refused at once.
func TestBreaker(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	s := &leasetest.Server{Now: clock.Now}
	h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{}, s.Kind())
	h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext})
	var calls atomic.Int64
	s.Fail = func(context.Context, string, string, bool) error {
		calls.Add(1)
		return engine.Unreachable(errors.New("no route to host"))
	}
	ask := func() error {
		_, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"})
		return err
	}
	clock.Hold()
	for range 20 {
		if err := ask(); estover.KindOf(err) != estover.Unavailable {
			t.Errorf("asking a target that does not answer: %v, want that it is unavailable", err)
		}
	}
	if n := calls.Load(); n != 5 {
		t.Errorf("it was tried %d times, want 5", n)
	}
	for _, c := range []struct {
		after time.Duration
		tries int64
	}{{500 * time.Millisecond, 0}, {600 * time.Millisecond, 1}, {1500 * time.Millisecond, 0}, {600 * time.Millisecond, 1}} {
		clock.Advance(c.after)
		before := calls.Load()
		for range 5 {
			_ = ask()
		}
		if n := calls.Load() - before; n != c.tries {
			t.Errorf("after another %s it was probed %d times, want %d", c.after, n, c.tries)
		}
	}
	if list := all(t, h, lease.Filter{Open: true}); len(list) != 0 {
		t.Errorf("%d leases are open of which the target has not heard", len(list))
	}
	// While one probes, the others are told at once.
	clock.Advance(time.Minute)
	probing, goOn := make(chan struct{}), make(chan struct{})
	s.Fail = func(context.Context, string, string, bool) error {
		calls.Add(1)
		close(probing) // a second one would panic
		<-goOn
		return engine.Unreachable(errors.New("no route to host"))
	}
	probed := make(chan error, 1)
	go func() { probed <- ask() }()
	<-probing
	for range 5 {
		if err := ask(); estover.KindOf(err) != estover.Unavailable {
			t.Errorf("while somebody else probes: %v, want that it is unavailable", err)
		}
	}
	close(goOn)
	if err := <-probed; estover.KindOf(err) != estover.Unavailable {
		t.Errorf("a probe that fails: %v", err)
	}
	s.Fail = nil
	clock.Advance(time.Minute)
	if err := ask(); err != nil {
		t.Errorf("when it answers again: %v", err)
	}
}

// many is how many leases [TestManyLeases] has.
var many = flag.Int("leases", 5000, "how many leases there are at once; 100000 takes minutes")

// F15, L10: many leases are nothing at start, and end in one statement.
func TestManyLeases(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, s := setup(t, d)
		x := create(t, h, bot, "reader")
		many := *many
		err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `insert into lease (tenant_id, id, role, role_id, target_id, name, template, resource_id, delivery, state, trial, session_id, agent_id,
					holder, token_id, created_at, expires_at, expires_by, max_at, create_by, create_done)
				with recursive n(i) as (select 1 union all select i + 1 from n where i < $2)
				select l.tenant_id, l.id || '_' || i, l.role, l.role_id, l.target_id, l.name || '_' || i, l.template, l.resource_id, l.delivery, l.state, l.trial,
					'ses_' || (i % 1000), 'agt_' || (i % 500), l.holder, l.token_id, l.created_at, l.expires_at, l.expires_by, l.max_at, l.create_by, l.create_done
				from lease l, n where l.tenant_id = $1 and l.id = $3`, tx.Tenant(), many, x.ID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		other := h.Another(t, guardtest.AllowAll)
		begun := time.Now()
		work(t, other)
		looked := time.Since(begun)
		begun = time.Now()
		contained := contain(t, other, "agt_7")
		one := time.Since(begun)
		begun = time.Now()
		out := revoke(t, other, lease.Which{All: true})
		marked := time.Since(begun)
		if contained != many/500 || out.Count != int64(many+1-many/500) {
			t.Errorf("%d were contained and %d revoked, want %d and %d", contained, out.Count, many/500, many+1-many/500)
		}
		t.Logf("with %d leases: looking for what is due took %s, containing one of 500 agents %s, revoking all of them %s", many, looked, one, marked)
		if looked > 5*time.Second || marked > 60*time.Second {
			t.Errorf("looking for what is due took %s, and revoking all %s", looked, marked)
		}
		// What is contained overtakes all others, and the target has no more batches at
		// once than it takes, however often it is looked for what is due.
		users := map[string]bool{}
		held, err := other.Leases.List(t.Context(), ann, lease.Filter{Agent: "agt_7", Open: true}, "", many)
		for _, x := range held {
			users[x.User] = true
		}
		if err != nil || len(users) != contained {
			t.Fatalf("%d leases of the contained agent are open, %v; want %d", len(users), err, contained)
		}
		const batches, batch = 4, 50
		var mu sync.Mutex
		tried, overtaken, inside, busiest := 0, 0, 0, 0
		s.Fail = func(_ context.Context, op, user string, after bool) error {
			if op != "revoke" {
				return nil
			}
			if !after {
				defer time.Sleep(200 * time.Microsecond) // so that the batches meet
			}
			mu.Lock()
			defer mu.Unlock()
			if after {
				inside--
				return nil
			}
			if tried++; users[user] && tried <= contained+batches*batch {
				overtaken++
			}
			if tried > contained+2*batches*batch {
				return engine.Unreachable(errors.New("enough"))
			}
			inside++
			busiest = max(busiest, inside)
			return nil
		}
		var looking sync.WaitGroup
		for range 4 {
			looking.Go(func() {
				if err := other.Leases.Work(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		looking.Wait()
		if overtaken != contained {
			t.Errorf("of %d contained users %d were among the first", contained, overtaken)
		}
		if busiest > batches {
			t.Errorf("the target had %d batches at once, want at most %d", busiest, batches)
		}
		left, err := other.Leases.Left(t.Context(), "acme", func(string, string, string) bool { return true })
		if err != nil || left != 0 {
			t.Errorf("%d of the contained are left, %v", left, err)
		}
	})
}

// Whatever happens in whatever order, nobody is at the target whom no lease knows,
// nobody is left whose lease has ended, and what is live logs in.
func TestModel(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	s := &leasetest.Server{Now: clock.Now}
	h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{Quota: 1000}, s.Kind())
	h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, TTLSeconds: 600, MaxTTLSeconds: 1200})
	h.Role(t, ann, lease.RoleSpec{Name: "writer", Resource: "res_db", Action: "write", TTLSeconds: 600})
	nodes := []*leasetest.House{h, h.Another(t, guardtest.AllowAll)}
	rapid.Check(t, func(t *rapid.T) {
		s.Fail = nil
		model := map[string]*lease.Issued{} // that were handed out and have not ended, by id
		until := map[string]time.Time{}
		node := func() *leasetest.House { return nodes[rapid.IntRange(0, 1).Draw(t, "node")] }
		session := func() string { return fmt.Sprint("ses_", rapid.IntRange(0, 3).Draw(t, "session")) }
		drop := func(match func(*lease.Issued) bool) {
			for id, x := range model {
				if match(x) {
					delete(model, id)
				}
			}
		}
		act := func(f func() error) {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"create", "create", "fail", "renew", "revoke", "session", "time", "work"}).Draw(t, "step") {
			case "create":
				x, err := node().Leases.Create(t.Context(), in("agt_bot", session()), lease.Wish{Role: "reader"})
				if errors.Is(err, lease.ErrOverdue) { // nobody has worked for a quarter of an hour (Q6)
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				model[x.ID], until[x.ID] = &x, x.ExpiresAt
			case "fail":
				op := rapid.SampledFrom([]string{"create", "revoke"}).Draw(t, "operation")
				after := rapid.Bool().Draw(t, "after")
				s.Fail = failing(op, after, rapid.SampledFrom([]error{engine.Refuse("no"), errors.New("cut"), engine.Unreachable(errors.New("down"))}).Draw(t, "error"))
				if after && op == "create" && errors.Is(s.Fail(t.Context(), op, "", after), engine.ErrUnreachable) {
					s.Fail = nil // who says that nothing was begun has not done it
				}
				x, err := node().Leases.Create(t.Context(), in("agt_bot", session()), lease.Wish{Role: "reader"})
				s.Fail = nil
				if err == nil {
					model[x.ID], until[x.ID] = &x, x.ExpiresAt
				}
			case "renew":
				for id := range model {
					if now, err := node().Leases.Renew(t.Context(), in("agt_bot", model[id].Session), id, 0, ""); err == nil {
						until[id] = now.ExpiresAt
					}
					break
				}
			case "revoke":
				for id := range model {
					act(func() error { return second(node().Leases.Revoke(t.Context(), ann, lease.Which{ID: id}, "")) })
					delete(model, id)
					break
				}
			case "session":
				ses := session()
				act(func() error { return second(node().Leases.Revoke(t.Context(), ann, lease.Which{Session: ses}, "")) })
				drop(func(x *lease.Issued) bool { return x.Session == ses })
			case "time":
				clock.Advance(time.Duration(rapid.IntRange(1, 700).Draw(t, "seconds")) * time.Second)
			case "work":
				act(func() error { return node().Leases.Work(t.Context()) })
			}
			now := clock.Now()
			drop(func(x *lease.Issued) bool { return !now.Before(until[x.ID]) })
		}
		clock.Advance(16 * time.Second) // for those that were being made
		drop(func(x *lease.Issued) bool { return !clock.Now().Before(until[x.ID]) })
		for range 3 {
			act(func() error { return node().Leases.Work(t.Context()) })
			clock.Advance(2 * time.Second)
		}
		drop(func(x *lease.Issued) bool { return !clock.Now().Before(until[x.ID]) })
		for id, x := range model {
			got, err := h.Leases.Get(t.Context(), ann, id)
			if err != nil || got.State != lease.Live {
				t.Fatalf("a lease that should be live is %s, %v", got.State, err)
			}
			if _, ok := s.LogIn(x.User, x.Values["password"]); !ok {
				t.Fatalf("the user of a live lease does not log in")
			}
		}
		open, err := h.Leases.List(t.Context(), ann, lease.Filter{Open: true}, "", 10_000)
		if err != nil {
			t.Fatal(err)
		}
		known := map[string]bool{}
		for _, x := range open {
			known[x.User] = true
		}
		for _, user := range s.Users() {
			if !known[user] {
				t.Fatalf("nobody knows of %s", user)
			}
		}
		act(func() error { return second(h.Leases.Revoke(t.Context(), ann, lease.Which{All: true}, "")) })
		clock.Advance(16 * time.Second)
		for range 3 {
			act(func() error { return h.Leases.Work(t.Context()) })
			clock.Advance(10 * time.Second)
		}
		if users := s.Users(); len(users) != 0 {
			t.Fatalf("in the end there are the users %v", users)
		}
	})
}
