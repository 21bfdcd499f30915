package access_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev/internal/access"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

// budgeted is a grant with budgets, and the accounts on which work on it draws.
func budgeted(t *testing.T, a *access.Access, b access.Budgets) (access.Grant, []access.Account) {
	t.Helper()
	s := spec("")
	s.Budgets = b
	g := put(t, a, s)
	return g, access.Drawn([]access.Grant{g}, &g, access.Worker{})
}

func spentOf(t *testing.T, a *access.Access, id string) access.Spent {
	t.Helper()
	g, err := a.Get(t.Context(), ada, id)
	if err != nil || g.Spent == nil {
		t.Fatalf("the grant is %+v, %v", g, err)
	}
	return *g.Spent
}

// atOnce lets 64 do something at once, and says how many could; the others must
// have been refused for want of budget.
func atOnce(t *testing.T, do func(i int) error) int {
	t.Helper()
	var could atomic.Int64
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range 64 {
		all.Go(func() {
			<-start
			switch err := do(i); {
			case err == nil:
				could.Add(1)
			case !errors.Is(err, access.ErrBudget):
				t.Errorf("consumer %d: %v, want ErrBudget", i, err)
			}
		})
	}
	close(start)
	all.Wait()
	return int(could.Load())
}

// TestChargeAtOnce: 64 consumers of a budget of N take exactly N.
func TestChargeAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a, ctx := open(t, d), t.Context()
		g, accounts := budgeted(t, a, access.Budgets{Calls: 20, Money: 100})
		if n := atOnce(t, func(int) error {
			_, err := a.Charge(ctx, ada.Tenant, accounts, access.Amount{Calls: 1}, db.Append{})
			return err
		}); n != 20 {
			t.Errorf("of 20 calls, %d were made", n)
		}
		if s := spentOf(t, a, g.ID); s.Calls != 20 {
			t.Errorf("taken are %+v, want 20 calls", s)
		}

		// The same where each takes a piece of something, and all give some back.
		g, accounts = budgeted(t, a, access.Budgets{Rows: 30})
		n := atOnce(t, func(i int) error {
			c, err := a.Charge(ctx, ada.Tenant, accounts, access.Amount{Calls: 1, Rows: 1}, db.Append{})
			if err != nil {
				return err
			}
			if err := c.Need(ctx, access.Amount{Rows: 1, BytesOut: 1000}); err != nil {
				return err
			}
			return c.Settle(ctx, true)
		})
		if s := spentOf(t, a, g.ID); n != 30 || s.Rows != 30 || s.Calls != 30 || s.BytesOut != 0 {
			t.Errorf("of 30 rows, %d were read and %+v taken", n, s)
		}

		// Workers: so many at once, each as often as it likes.
		g, accounts = budgeted(t, a, access.Budgets{FanOut: 5})
		if n := atOnce(t, func(i int) error {
			w := access.Worker{Agent: fmt.Sprintf("agt_%d", i%32), Session: "ses_one"}
			_, err := a.Charge(ctx, ada.Tenant, access.Drawn([]access.Grant{g}, &g, w), access.Amount{Calls: 1}, db.Append{})
			return err
		}); n < 5 || n > 10 {
			t.Errorf("five agents at once made %d calls of two each", n)
		}
		if s := spentOf(t, a, g.ID); s.FanOut != 5 {
			t.Errorf("of five, %d work on the grant", s.FanOut)
		}
		if _, err := a.Charge(ctx, ada.Tenant, accounts, access.Amount{Calls: 1}, db.Append{}); err != nil {
			t.Errorf("the holder beside five others: %v", err)
		}
	})
}

// TestChargeOnTwoServers: two servers on one PostgreSQL know nothing of each
// other, and their consumers take exactly N together.
func TestChargeOnTwoServers(t *testing.T) {
	url := dbtest.Postgres(t)
	var servers [2]*access.Access
	for i := range servers {
		d, err := db.Open(t.Context(), url, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		servers[i] = open(t, d)
	}
	one, oneAccount := budgeted(t, servers[0], access.Budgets{Calls: 25, BytesOut: 64 * 64, FanOut: 7})
	two, twoAccount := budgeted(t, servers[1], access.Budgets{Calls: 50})
	ctx := t.Context()
	n := atOnce(t, func(i int) error {
		// Those of one half draw in the other order.
		accounts := append(oneAccount[:1:1], twoAccount...)
		if i%4 < 2 {
			accounts = append(twoAccount[:1:1], oneAccount...)
		}
		c, err := servers[i%2].Charge(ctx, ada.Tenant, accounts, access.Amount{Calls: 1, BytesOut: 1}, db.Append{})
		if err != nil {
			return err
		}
		if err := c.Need(ctx, access.Amount{BytesOut: 10}); err != nil {
			return err
		}
		return c.Settle(ctx, true)
	})
	if s := spentOf(t, servers[0], one.ID); n != 25 || s.Calls != 25 || s.BytesOut != 250 {
		t.Errorf("of 25 calls, %d were made and %+v taken", n, s)
	}
	if s := spentOf(t, servers[1], two.ID); s.Calls != 25 {
		t.Errorf("of the other grant, %+v is taken, want as much", s)
	}
}

// TestChargeRestsOn: what a charge is written with must be alive, and nothing is
// taken if it is not.
func TestChargeRestsOn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a, ctx := open(t, d), t.Context()
		g, accounts := budgeted(t, a, access.Budgets{Calls: 2})
		other := put(t, a, spec("other"))
		w := db.Append{Live: []db.Epoch{{Table: access.Table, ID: other.ID, Epoch: other.Epoch}}}
		if _, err := a.Charge(ctx, ada.Tenant, accounts, access.Amount{Calls: 1}, w); err != nil {
			t.Fatal(err)
		}
		if _, err := a.End(ctx, ada, other.ID, "no more"); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Charge(ctx, ada.Tenant, accounts, access.Amount{Calls: 1}, w); !errors.Is(err, db.ErrStale) {
			t.Errorf("a charge that rests on what has ended: %v, want ErrStale", err)
		}
		if s := spentOf(t, a, g.ID); s.Calls != 1 {
			t.Errorf("taken are %d calls, want one", s.Calls)
		}
	})
}

// TestChargeModel compares charges with sums: random charges, needs, settlements
// and deaths, on a grant that is made of an eligible one.
func TestChargeModel(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		g := guardtest.New(t, d, guardtest.AllowAll)
		a, ctx := access.New(g, options), t.Context()
		small := rapid.SampledFrom([]int64{0, 1, 3, 7, 20})
		rapid.Check(t, func(r *rapid.T) {
			draw := func(what string) access.Budgets {
				return access.Budgets{
					Calls: small.Draw(r, what+" calls"), Rows: small.Draw(r, what+" rows"), Records: small.Draw(r, what+" records"),
					BytesOut: small.Draw(r, what+" bytes"), Money: small.Draw(r, what+" money"), Seconds: small.Draw(r, what+" seconds") * 60,
				}
			}
			s := spec("")
			s.Kind, s.Budgets = access.Eligible, draw("eligible")
			eligible, err := a.Put(ctx, ada, s, "")
			if err != nil {
				r.Fatal(err)
			}
			made := activate(r, g, a, eligible.ID, access.Activation{For: 1000 * time.Hour, Budgets: draw("made")})
			accounts := access.Drawn([]access.Grant{eligible, made}, &made, access.Worker{})

			type open struct {
				charge *access.Charge
				used   access.Amount
			}
			var under []*open
			var taken access.Amount // by all, settled or not
			var begun time.Time
			limit := func(of func(b access.Budgets) int64) (least int64) {
				least = 1 << 60
				for _, b := range []access.Budgets{eligible.Budgets, made.Budgets} {
					if n := of(b); n > 0 {
						least = min(least, n)
					}
				}
				return least
			}
			most := access.Amount{
				Calls: limit(func(b access.Budgets) int64 { return b.Calls }), Rows: limit(func(b access.Budgets) int64 { return b.Rows }),
				Records: limit(func(b access.Budgets) int64 { return b.Records }), BytesOut: limit(func(b access.Budgets) int64 { return b.BytesOut }),
				Money: limit(func(b access.Budgets) int64 { return b.Money }),
			}
			seconds := limit(func(b access.Budgets) int64 { return b.Seconds })
			// Of what nobody limits nothing is kept.
			counted := func(x access.Amount) access.Amount {
				for _, p := range []struct{ n, most *int64 }{{&x.Rows, &most.Rows}, {&x.Records, &most.Records}, {&x.BytesOut, &most.BytesOut}} {
					if *p.most == 1<<60 {
						*p.n = 0
					}
				}
				return x
			}
			add := func(x, y access.Amount, by int64) access.Amount {
				return access.Amount{Calls: x.Calls + by*y.Calls, Rows: x.Rows + by*y.Rows, Records: x.Records + by*y.Records, BytesOut: x.BytesOut + by*y.BytesOut, Money: x.Money + by*y.Money}
			}
			fits := func(x access.Amount) bool {
				s := add(taken, counted(x), 1)
				late := seconds < 1<<60 && !begun.IsZero() && d.Now().Sub(begun) >= time.Duration(seconds)*time.Second
				return s.Calls <= most.Calls && s.Rows <= most.Rows && s.Records <= most.Records && s.BytesOut <= most.BytesOut && s.Money <= most.Money && !late
			}
			for range rapid.IntRange(1, 12).Draw(r, "steps") {
				few := rapid.Int64Range(0, 3)
				switch rapid.SampledFrom([]string{"charge", "charge", "need", "settle", "never made", "die", "wait"}).Draw(r, "step") {
				case "charge":
					want := access.Amount{Calls: 1, Rows: few.Draw(r, "rows"), BytesOut: few.Draw(r, "bytes"), Money: few.Draw(r, "money")}
					if len(accounts) == 0 {
						continue
					}
					before := d.Now()
					c, err := a.Charge(ctx, ada.Tenant, accounts, want, db.Append{})
					if could := fits(want); (err == nil) != could || err != nil && !errors.Is(err, access.ErrBudget) {
						r.Fatalf("a charge of %+v where %+v of %+v is taken: %v, want %v", want, taken, most, err, could)
					}
					if err == nil {
						if begun.IsZero() {
							begun = before
						}
						taken = add(taken, counted(want), 1)
						// What was wanted of pieces is reserved, and none of it used.
						under = append(under, &open{charge: c, used: access.Amount{Calls: 1, Money: want.Money}})
					}
				case "need":
					if len(under) == 0 {
						continue
					}
					o := under[rapid.IntRange(0, len(under)-1).Draw(r, "which")]
					more := counted(access.Amount{Rows: few.Draw(r, "rows"), Records: few.Draw(r, "records"), BytesOut: few.Draw(r, "bytes")})
					held := o.charge.Held()
					after := add(o.used, more, 1)
					missing := access.Amount{Rows: max(0, after.Rows-held.Rows), Records: max(0, after.Records-held.Records), BytesOut: max(0, after.BytesOut-held.BytesOut)}
					could := missing == access.Amount{} || fits(missing)
					if err := o.charge.Need(ctx, more); (err == nil) != could {
						r.Fatalf("a need of %+v where %+v of %+v is taken: %v, want %v", more, taken, most, err, could)
					}
					if could {
						o.used, taken = after, add(taken, missing, 1)
					}
				case "settle", "never made", "die":
					if len(under) == 0 {
						continue
					}
					i := rapid.IntRange(0, len(under)-1).Draw(r, "which")
					o := under[i]
					under = append(under[:i:i], under[i+1:]...)
					if rapid.Bool().Draw(r, "dies") {
						continue // what it had stays taken
					}
					made := rapid.Bool().Draw(r, "made")
					held := o.charge.Held()
					if err := o.charge.Settle(ctx, made); err != nil {
						r.Fatal(err)
					}
					if back := add(held, o.used, -1); made {
						taken = add(taken, back, -1)
					} else {
						taken = add(taken, held, -1)
					}
				case "wait":
					clock.Advance(time.Duration(rapid.IntRange(1, 120).Draw(r, "seconds")) * time.Second)
				}
				for _, one := range accounts {
					g, err := a.Get(ctx, ada, one.ID)
					if err != nil {
						r.Fatal(err)
					}
					if got := (access.Amount{Calls: g.Spent.Calls, Rows: g.Spent.Rows, Records: g.Spent.Records, BytesOut: g.Spent.BytesOut, Money: g.Spent.Money}); got != taken {
						r.Fatalf("of %s %+v is taken, want %+v", one.Name, got, taken)
					}
				}
			}
		})
	})
}

// activate makes a grant of an eligible one.
func activate(t interface {
	Helper()
	Fatal(args ...any)
}, g *guard.Guard, a *access.Access, id string, what access.Activation,
) (made access.Grant) {
	t.Helper()
	if err := g.Do(context.Background(), ada, guard.Op{Action: "access.approve", Target: "grant:" + id}, func(tx *guard.Tx) (err error) {
		made, err = a.Activate(context.Background(), tx, id, what, ada.Subject)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return made
}

// TestChargeAhead: an answer of many pieces costs few writes, and what it did not
// need is given back.
func TestChargeAhead(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a, ctx := open(t, d), t.Context()
		g, accounts := budgeted(t, a, access.Budgets{BytesOut: 64 << 20})
		c, err := a.Charge(ctx, ada.Tenant, accounts, access.Amount{Calls: 1, BytesOut: 1}, db.Append{})
		if err != nil {
			t.Fatal(err)
		}
		held, writes := c.Held(), 0
		for range 1000 {
			if err := c.Need(ctx, access.Amount{BytesOut: 32 << 10}); err != nil {
				t.Fatal(err)
			}
			if now := c.Held(); now != held {
				held, writes = now, writes+1
			}
		}
		if writes > 40 {
			t.Errorf("a thousand pieces cost %d writes", writes)
		}
		if s := spentOf(t, a, g.ID); s.BytesOut < 1000*32<<10 {
			t.Errorf("reserved are %d bytes, less than were needed", s.BytesOut)
		}
		if err := c.Settle(ctx, true); err != nil {
			t.Fatal(err)
		}
		if s := spentOf(t, a, g.ID); s.BytesOut != 1000*32<<10 || s.Calls != 1 {
			t.Errorf("taken is %+v, want %d bytes", s, 1000*32<<10)
		}
	})
}

// TestLeft: policy hears of a budget that runs low, and the first grant is chosen
// of which most is left.
func TestLeft(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		a, ctx := open(t, d), t.Context()
		_, accounts := budgeted(t, a, access.Budgets{Calls: 5, Seconds: 100})
		clock.Advance(time.Second)
		call := access.Call{Resource: "res_crm", Action: "customer.read", Class: "internal", Purpose: "support"}
		other, _ := budgeted(t, a, access.Budgets{Calls: 1})
		for i, want := range []string{"ok", "ok", "ok", "ok", "near", "exceeded"} {
			word, which, err := a.Left(ctx, ada.Tenant, accounts)
			if err != nil || word != want || (word == "ok") != (which == "") {
				t.Errorf("after %d calls of 5 it is %q (%s), %v, want %q", i, word, which, err, want)
			}
			grants, err := a.Grants(ctx, ada.Tenant, "agt_bot")
			if err != nil {
				t.Fatal(err)
			}
			g, fit, err := a.Choose(ctx, ada.Tenant, grants, call)
			if err != nil || fit != access.Granted || (g.ID == other.ID) != (want != "ok") {
				t.Errorf("after %d calls of 5 the grant %+v is chosen, %v, %v", i, g, fit, err)
			}
			if want != "exceeded" {
				if _, err := a.Charge(ctx, ada.Tenant, accounts, access.Amount{Calls: 1}, db.Append{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		// One without budgets comes before all that run low.
		free := put(t, a, spec("free"))
		grants, err := a.Grants(ctx, ada.Tenant, "agt_bot")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Charge(ctx, ada.Tenant, access.Drawn(grants, &other, access.Worker{}), access.Amount{Calls: 1}, db.Append{}); err != nil {
			t.Fatal(err)
		}
		if g, _, err := a.Choose(ctx, ada.Tenant, grants, call); err != nil || g.ID != free.ID {
			t.Errorf("with all budgets used up %+v is chosen, %v, want the grant without", g, err)
		}

		// Time runs from the first use.
		_, timed := budgeted(t, a, access.Budgets{Seconds: 100})
		clock.Advance(time.Hour)
		c, err := a.Charge(ctx, ada.Tenant, timed, access.Amount{Calls: 1}, db.Append{})
		if err != nil {
			t.Fatalf("the first use, an hour after it was given: %v", err)
		}
		if left := c.Until().Sub(d.Now()); left > 100*time.Second || left < 60*time.Second {
			t.Errorf("the call may last %s, want 100 seconds", left)
		}
		clock.Advance(101 * time.Second)
		if _, err := a.Charge(ctx, ada.Tenant, timed, access.Amount{Calls: 1}, db.Append{}); !errors.Is(err, access.ErrBudget) {
			t.Errorf("after its time: %v, want ErrBudget", err)
		}
		if word, which, err := a.Left(ctx, ada.Tenant, timed); err != nil || word != access.Exceeded {
			t.Errorf("after its time it is %q (%s), %v", word, which, err)
		}
	})
}
