package access_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// names are what grants are called, by state of the agent's access.
func names(grants []access.Grant) (all []string) {
	for _, g := range grants {
		all = append(all, g.Name)
	}
	slices.Sort(all)
	return all
}

// TestRestoreModel gives and takes at random, with time passing, remembers what
// there was at each moment, and puts the access back to one of them: what covers
// something afterwards is what did then, if its time is not over.
func TestRestoreModel(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		a, ctx := open(t, d), t.Context()
		n := 0
		rapid.Check(t, func(t *rapid.T) {
			n++
			agent := fmt.Sprintf("agt_%d", n)
			type given struct {
				action  string
				expires time.Time
			}
			now := map[string]given{}
			type moment struct {
				at   time.Time
				what map[string]given
			}
			var moments []moment
			prune := func(m map[string]given) map[string]given {
				out := maps.Clone(m)
				maps.DeleteFunc(out, func(_ string, g given) bool { return !g.expires.IsZero() && !d.Now().Before(g.expires) })
				return out
			}
			t.Repeat(map[string]func(*rapid.T){
				"give": func(t *rapid.T) {
					name := fmt.Sprintf("%s-%d", agent[4:], rapid.IntRange(1, 3).Draw(t, "name"))
					s := spec(name)
					s.Agent = agent
					g := given{action: rapid.SampledFrom([]string{"read", "write"}).Draw(t, "action")}
					s.Actions = []string{g.action}
					if rapid.Bool().Draw(t, "expires") {
						g.expires = d.Now().Add(90 * time.Minute)
						s.ExpiresAt = g.expires
					}
					if _, err := a.Put(ctx, ada, s, ""); err != nil {
						t.Fatal(err)
					}
					now[name] = g
				},
				"take": func(t *rapid.T) {
					live, err := a.Grants(ctx, ada.Tenant, agent)
					if err != nil {
						t.Fatal(err)
					}
					live = slices.DeleteFunc(slices.Clone(live), func(g access.Grant) bool { return g.StateAt(d.Now()) != access.Live })
					if len(live) == 0 {
						return // nothing is given
					}
					g := rapid.SampledFrom(live).Draw(t, "grant")
					if _, err := a.End(ctx, ada, g.ID, "not needed"); err != nil {
						t.Fatal(err)
					}
					delete(now, g.Name)
				},
				"remember": func(*rapid.T) {
					moments = append(moments, moment{d.Now(), prune(now)})
					clock.Advance(time.Hour)
				},
				"restore": func(t *rapid.T) {
					if len(moments) == 0 {
						return // nothing is remembered
					}
					clock.Advance(time.Second)
					m := rapid.SampledFrom(moments).Draw(t, "moment")
					plan, err := a.Restore(ctx, ada, agent, m.at, "", true)
					if err != nil || plan.Done {
						t.Fatalf("a restoration that is tried: %+v, %v", plan, err)
					}
					done, err := a.Restore(ctx, ada, agent, m.at, "it went wrong", false)
					if err != nil || !done.Done || !slices.Equal(names(done.Keep), names(plan.Keep)) || !slices.Equal(names(done.Take), names(plan.Take)) || len(done.Give) != len(plan.Give) {
						t.Fatalf("what was done is %+v, %v, and what was foreseen %+v", done, err, plan)
					}
					now = prune(m.what)
				},
				"": func(t *rapid.T) {
					live, err := a.Grants(ctx, ada.Tenant, agent)
					if err != nil {
						t.Fatal(err)
					}
					has := map[string]given{}
					for _, g := range live {
						if g.StateAt(d.Now()) == access.Live {
							has[g.Name] = given{g.Actions[0], g.ExpiresAt}
						}
					}
					if want := prune(now); !maps.EqualFunc(has, want, func(a, b given) bool { return a.action == b.action && a.expires.Equal(b.expires) }) {
						t.Fatalf("the agent has %v, want %v", has, want)
					}
				},
			})
		})
	})
}

// What cannot be put back is said, and a restoration is on one's own tenant.
func TestRestore(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		a, ctx := open(t, d), t.Context()
		short, lasting := spec("short"), spec("lasting")
		short.ExpiresAt = d.Now().Add(time.Hour)
		var ids []string
		for _, s := range []access.Spec{short, lasting} {
			g, err := a.Put(ctx, ada, s, "apply/company")
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, g.ID)
		}
		at := d.Now()
		clock.Advance(time.Minute)
		for _, id := range ids {
			if _, err := a.End(ctx, ada, id, "a mistake"); err != nil {
				t.Fatal(err)
			}
		}
		clock.Advance(2 * time.Hour)
		r, err := a.Restore(ctx, ada, short.Agent, at, "it was a mistake", false)
		if err != nil || len(r.Give) != 1 || r.Give[0].Name != "lasting" || r.Give[0].ID == ids[1] || r.Give[0].ManagedBy != "apply/company" || len(r.Leave) != 1 || r.Leave[0].Name != "short" || r.Leave[0].Why != "Its time is over." {
			t.Errorf("put back was %+v, %v", r, err)
		}
		for what, c := range map[string]struct {
			caller estover.Caller
			agent  string
			at     time.Time
			reason string
			want   error
		}{
			"to a time to come":   {ada, short.Agent, d.Now().Add(time.Hour), "x", access.ErrRestore},
			"to no time":          {ada, short.Agent, time.Time{}, "x", access.ErrRestore},
			"of nobody":           {ada, "", at, "x", access.ErrRestore},
			"without a reason":    {ada, short.Agent, at, "", access.ErrReason},
			"of what is no agent": {ada, "res_crm", at, "x", &estover.Error{Kind: estover.NotFound, Code: "agent_not_found"}},
		} {
			if _, err := a.Restore(ctx, c.caller, c.agent, c.at, c.reason, false); !errors.Is(err, c.want) {
				t.Errorf("restoring %s: %v, want %v", what, err, c.want)
			}
		}
		if r, err := a.Restore(ctx, eve, short.Agent, at, "mine", false); err == nil && (len(r.Give) > 0 || len(r.Take) > 0) {
			t.Errorf("another tenant's access was put back: %+v", r)
		}
	})
}

// TestRestoreKeepsWhatWasSpent: a grant that is given again has no more left of its
// budgets than it had when it ended.
func TestRestoreKeepsWhatWasSpent(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		a, ctx := open(t, d), t.Context()
		s := spec("few")
		s.Budgets = access.Budgets{Calls: 3, Seconds: 3600}
		old := put(t, a, s)
		at, begun := d.Now(), d.Now().Add(time.Minute)
		clock.Advance(time.Minute)
		for range 2 {
			if _, err := a.Charge(ctx, ada.Tenant, access.Drawn([]access.Grant{old}, &old, access.Worker{}), access.Amount{Calls: 1}, db.Append{Tenant: ada.Tenant}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.End(ctx, ada, old.ID, "a mistake"); err != nil {
			t.Fatal(err)
		}
		clock.Advance(time.Minute)
		r, err := a.Restore(ctx, ada, s.Agent, at, "it was a mistake", false)
		if err != nil || len(r.Give) != 1 {
			t.Fatalf("put back was %+v, %v", r, err)
		}
		again := r.Give[0]
		if got := spentOf(t, a, again.ID); got.Calls != 2 || got.BegunAt.Before(begun) || got.BegunAt.After(begun.Add(time.Minute)) {
			t.Errorf("of the grant that was given again is taken %+v, want 2 calls since %s", got, begun)
		}
		made := 0
		for range 3 {
			if _, err := a.Charge(ctx, ada.Tenant, access.Drawn([]access.Grant{again}, &again, access.Worker{}), access.Amount{Calls: 1}, db.Append{Tenant: ada.Tenant}); err == nil {
				made++
			}
		}
		if made != 1 {
			t.Errorf("%d calls were made on what was left of one", made)
		}
		// One that sleeps does not wake up beside what is given in its place.
		s.Name, s.Budgets.Seconds, s.UnusedAfter = "", 0, 3600
		asleep := put(t, a, s)
		at = d.Now()
		for range 2 {
			clock.Advance(access.Notice + 2*time.Hour)
			if err := a.Decay(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if r, err = a.Restore(ctx, ada, s.Agent, at, "it was needed", false); err != nil || !slices.ContainsFunc(r.Give, func(g access.Grant) bool { return g.UnusedAfter > 0 }) {
			t.Fatalf("put back was %+v, %v", r, err)
		}
		if _, err := a.Resume(ctx, ada, asleep.ID); !errors.Is(err, access.ErrEnded) {
			t.Errorf("waking up what was given again: %v, want ErrEnded", err)
		}
	})
}

// TestRestoreTwice: who puts access back again, or at the same moment as others,
// finds that it is back: nothing is given twice, with or without a name.
func TestRestoreTwice(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		a, ctx := open(t, d), t.Context()
		named, unnamed := put(t, a, spec("named")), put(t, a, spec(""))
		at := d.Now()
		clock.Advance(time.Minute)
		for _, g := range []access.Grant{named, unnamed} {
			if _, err := a.End(ctx, ada, g.ID, "a mistake"); err != nil {
				t.Fatal(err)
			}
		}
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() {
				if _, err := a.Restore(ctx, ada, named.Agent, at, "it was a mistake", false); err != nil && !errors.Is(err, db.ErrStale) {
					t.Errorf("restoring beside others: %v", err)
				}
			})
		}
		all.Wait()
		live, _, err := a.List(ctx, ada, access.Filter{Agent: named.Agent}, "", 0)
		if err != nil || len(live) != 4 {
			t.Errorf("there are %d grants, %v, want the two of before and the two that were given again", len(live), err)
		}
		clock.Advance(time.Minute)
		if r, err := a.Restore(ctx, ada, named.Agent, at, "once more", false); err != nil || len(r.Give) != 0 || len(r.Take) != 0 || len(r.Keep) != 2 {
			t.Errorf("once more: gives %v, takes %v, keeps %v, %v", names(r.Give), names(r.Take), names(r.Keep), err)
		}
		// Of two that say the same the one that is there stays, and the other comes back.
		first, second := put(t, a, spec("")), put(t, a, spec(""))
		at = d.Now()
		clock.Advance(time.Minute)
		if _, err := a.End(ctx, ada, first.ID, "a mistake"); err != nil {
			t.Fatal(err)
		}
		r, err := a.Restore(ctx, ada, named.Agent, at, "it was a mistake", false)
		if err != nil || len(r.Give) != 1 || len(r.Take) != 0 || !slices.ContainsFunc(r.Keep, func(g access.Grant) bool { return g.ID == second.ID }) {
			t.Errorf("one of two: gives %v, takes %v, keeps %v, %v", names(r.Give), names(r.Take), names(r.Keep), err)
		}
		if g, err := a.Get(ctx, ada, second.ID); err != nil || g.State != access.Live {
			t.Errorf("the one that was there is %+v, %v", g, err)
		}
	})
}
