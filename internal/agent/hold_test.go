package agent_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

func TestRetire(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, ctx := open(t, d), t.Context()
		a := create(t, r, spec("bot"))
		suspended, err := r.Hold(ctx, ada, a.ID, agent.Suspension, "holiday")
		if err != nil {
			t.Fatal(err)
		}
		secret, _, err := r.CreateSecret(ctx, ada, a.ID, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		retired, err := r.Hold(ctx, ada, a.ID, agent.Retirement, "replaced by another")
		if err != nil {
			t.Fatal(err)
		}
		got := get(t, r, a.ID)
		if got.Status != agent.Retired || got.EndedAt.IsZero() || got.Epoch != 3 {
			t.Errorf("the retired agent is %+v", got)
		}
		for what, err := range map[string]error{
			"lifting the retirement": func() error { _, err := r.Lift(ctx, ada, a.ID, retired.ID, "sorry"); return err }(),
			"lifting another hold":   func() error { _, err := r.Lift(ctx, ada, a.ID, suspended.ID, "back"); return err }(),
			"retiring it again":      r.Retire(ctx, ada, a.ID, "twice"),
			"holding it":             func() error { _, err := r.Hold(ctx, ada, a.ID, agent.Quarantine, "x"); return err }(),
			"changing it":            func() error { _, err := r.Update(ctx, ada, a.ID, spec("bot")); return err }(),
			"giving it a secret":     func() error { _, _, err := r.CreateSecret(ctx, ada, a.ID, "", 0); return err }(),
			"giving it keys":         func() error { _, err := r.CreateKeySet(ctx, ada, a.ID, "", keySet, 0); return err }(),
		} {
			if !errors.Is(err, agent.ErrRetired) {
				t.Errorf("%s: %v, want ErrRetired", what, err)
			}
		}
		if _, _, err := r.BySecret(ctx, ada.Tenant, a.ID, string(secret.Reveal())); !errors.Is(err, agent.ErrCredential) {
			t.Errorf("its secret: %v, want ErrCredential", err)
		}
		if _, err := r.Create(ctx, ada, spec("bot"), agent.Origin{}); !errors.Is(err, agent.ErrNameTaken) {
			t.Errorf("using its name again: %v, want ErrNameTaken", err)
		}
	})
}

// What covers an agent along with others is not shaken off by making it one of
// another kind, or somebody else's: that would lift the hold of it on one word.
func TestNoWayFromUnderAHold(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		held := map[string]bool{} // by blueprint or sponsor
		o := options
		o.Wide = func(context.Context, *db.Tx) (func(blueprint, sponsor string) []agent.Hold, error) {
			return func(blueprint, sponsor string) (all []agent.Hold) {
				for _, what := range []string{blueprint, sponsor} {
					if held[what] {
						all = append(all, agent.Hold{ID: "hld_" + what, Kind: agent.Quarantine})
					}
				}
				return all
			}, nil
		}
		r, ctx := agent.New(guardtest.New(t, d, guardtest.AllowAll), o), t.Context()
		a := create(t, r, spec("bot"))
		for _, what := range []string{"invoices", "usr_ada"} {
			clear(held)
			held[what] = true
			changed := get(t, r, a.ID).Spec
			if what == "invoices" {
				changed.Blueprint = "dunning"
			} else {
				changed.Sponsor = "usr_bob"
			}
			if _, err := r.Update(ctx, ada, a.ID, changed); !errors.Is(err, agent.ErrHeldTogether) {
				t.Errorf("leaving %s, which is held: %v, want ErrHeldTogether", what, err)
			}
			if got := get(t, r, a.ID); got.Status != agent.Quarantined {
				t.Errorf("the agent is %s", got.Status)
			}
			same := get(t, r, a.ID).Spec
			same.Team = what
			if _, err := r.Update(ctx, ada, a.ID, same); err != nil {
				t.Errorf("changing something else: %v", err)
			}
			clear(held)
			if _, err := r.Update(ctx, ada, a.ID, changed); err != nil {
				t.Errorf("leaving %s when the hold is lifted: %v", what, err)
			}
		}
	})
}

func TestHoldChecks(t *testing.T) {
	d := dbtest.Open(t)
	r, ctx := open(t, d), t.Context()
	a := create(t, r, spec("bot"))
	if _, err := r.Hold(ctx, ada, a.ID, "tired", "x"); !errors.Is(err, agent.ErrHoldKind) {
		t.Errorf("an unknown kind: %v, want ErrHoldKind", err)
	}
	for _, reason := range []string{"", strings.Repeat("x", 501)} {
		if _, err := r.Hold(ctx, ada, a.ID, agent.Suspension, reason); !errors.Is(err, agent.ErrHoldReason) {
			t.Errorf("a reason of %d characters: %v, want ErrHoldReason", len(reason), err)
		}
		if _, err := r.Lift(ctx, ada, a.ID, "hld_x", reason); !errors.Is(err, agent.ErrHoldReason) {
			t.Errorf("lifting with a reason of %d characters: %v, want ErrHoldReason", len(reason), err)
		}
	}
	h, err := r.Hold(ctx, ada, a.ID, agent.Suspension, "x")
	if err != nil {
		t.Fatal(err)
	}
	other := create(t, r, spec("other"))
	if _, err := r.Lift(ctx, ada, other.ID, h.ID, "x"); !errors.Is(err, agent.ErrHoldNotFound) {
		t.Errorf("lifting a hold of another agent: %v, want ErrHoldNotFound", err)
	}
}

// TestEpoch: who decided on a copy that a hold has made stale is refused when
// it writes.
func TestEpoch(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, ctx := open(t, d), t.Context()
		a := create(t, r, spec("bot"))
		s, err := r.Snapshot(ctx, ada.Tenant, a.ID)
		if err != nil {
			t.Fatal(err)
		}
		live := []db.Epoch{{Table: "agent", ID: a.ID, Epoch: s.Epoch}}
		if err := d.Append(ctx, db.Append{Tenant: ada.Tenant, Live: live}); err != nil {
			t.Fatalf("with a fresh copy: %v", err)
		}
		h, err := r.Hold(ctx, ada, a.ID, agent.Quarantine, "it sent mail to a stranger")
		if err != nil {
			t.Fatal(err)
		}
		if now, err := r.Snapshot(ctx, ada.Tenant, a.ID); err != nil || now.Status != agent.Quarantined || s.Status != agent.Active {
			t.Errorf("the copy is %+v, %v, and the one of before %s", now, err, s.Status)
		}
		if err := d.Append(ctx, db.Append{Tenant: ada.Tenant, Live: live}); !errors.Is(err, db.ErrStale) {
			t.Errorf("with the copy of before the hold: %v, want ErrStale", err)
		}
		if _, err := r.Lift(ctx, ada, a.ID, h.ID, "it was a customer"); err != nil {
			t.Fatal(err)
		}
		if err := d.Append(ctx, db.Append{Tenant: ada.Tenant, Live: live}); !errors.Is(err, db.ErrStale) {
			t.Errorf("with it after the hold was lifted: %v, want ErrStale", err)
		}
	})
}

func TestSponsorLeft(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g := guardtest.New(t, d, guardtest.AllowAll)
		r, ctx := agent.New(g, options), t.Context()
		own, gone, others := create(t, r, spec("own")), create(t, r, spec("gone")), spec("others")
		others.Sponsor = "usr_bob"
		bobs := create(t, r, others)
		if err := r.Retire(ctx, ada, gone.ID, "done"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Snapshot(ctx, ada.Tenant, own.ID); err != nil {
			t.Fatal(err)
		}
		err := g.Do(ctx, ada, guard.Op{Action: "person.disable"}, func(tx *guard.Tx) error { return r.SponsorLeft(ctx, tx, "usr_ada") })
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.Snapshot(ctx, ada.Tenant, own.ID)
		if err != nil || s.Status != agent.Suspended || len(s.Holds) != 1 || s.Holds[0].By != estover.System("directory") {
			t.Errorf("the agent of a sponsor who left is %+v, %v, want suspended", s, err)
		}
		if a := get(t, r, bobs.ID); a.Status != agent.Active {
			t.Errorf("somebody else's agent is %s, want active", a.Status)
		}
		if a := get(t, r, gone.ID); a.Status != agent.Retired || len(a.Holds) != 1 {
			t.Errorf("the retired agent is %+v, want retired and nothing else", a)
		}
	})
}

// modelled is what an agent must be, kept beside it.
type modelled struct {
	id      string
	holds   map[string]agent.Kind
	expires time.Time
	epoch   int64
}

func (m *modelled) status(now time.Time) agent.Status {
	has := map[agent.Kind]bool{}
	for _, k := range m.holds {
		has[k] = true
	}
	switch {
	case has["retired"]:
		return "retired"
	case !m.expires.IsZero() && !m.expires.After(now):
		return "expired"
	case has["quarantined"]:
		return "quarantined"
	case has["suspended"]:
		return "suspended"
	case has["pending"]:
		return "pending"
	}
	return "active"
}

// TestModel lets holds come and go at random, with time passing, and compares
// the registry with a map after each step.
func TestModel(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		r := open(t, d)
		ctx := t.Context()
		n := 0
		rapid.Check(t, func(t *rapid.T) {
			n++
			s := spec(fmt.Sprintf("bot-%d", n))
			origin := agent.Origin{Pending: rapid.SampledFrom([]string{"", "not yet agreed"}).Draw(t, "pending")}
			made, err := r.Create(ctx, ada, s, origin)
			if err != nil {
				t.Fatal(err)
			}
			m := &modelled{id: made.ID, holds: map[string]agent.Kind{}, epoch: 1}
			for _, h := range made.Holds {
				m.holds[h.ID] = h.Kind
			}
			var lifted []string
			retired := func() bool { return m.status(d.Now()) == agent.Retired }
			ids := func() []string {
				all := slices.Clone(lifted)
				for id := range m.holds {
					all = append(all, id)
				}
				slices.Sort(all)
				return append(all, "hld_unknown")
			}
			kinds := []agent.Kind{agent.Suspension, agent.Quarantine, agent.Activation, agent.Suspension, agent.Quarantine, agent.Retirement}
			t.Repeat(map[string]func(*rapid.T){
				"hold": func(t *rapid.T) {
					kind := rapid.SampledFrom(kinds).Draw(t, "kind")
					h, err := r.Hold(ctx, ada, m.id, kind, "because")
					if retired() {
						if !errors.Is(err, agent.ErrRetired) {
							t.Fatalf("holding a retired agent: %v, want ErrRetired", err)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					m.holds[h.ID] = kind
					m.epoch++
				},
				"lift": func(t *rapid.T) {
					id := rapid.SampledFrom(ids()).Draw(t, "hold")
					_, err := r.Lift(ctx, ada, m.id, id, "because")
					_, held := m.holds[id]
					switch {
					case retired():
						if !errors.Is(err, agent.ErrRetired) {
							t.Fatalf("lifting a hold of a retired agent: %v, want ErrRetired", err)
						}
					case !held:
						if !errors.Is(err, agent.ErrHoldNotFound) {
							t.Fatalf("lifting what is not there: %v, want ErrHoldNotFound", err)
						}
					case err != nil:
						t.Fatal(err)
					default:
						delete(m.holds, id)
						lifted = append(lifted, id)
					}
				},
				"expire": func(t *rapid.T) {
					before := s.ExpiresAt
					s.ExpiresAt = time.Time{}
					if hours := rapid.IntRange(0, 3).Draw(t, "hours"); hours > 0 {
						s.ExpiresAt = d.Now().Add(time.Duration(hours) * time.Hour)
					}
					_, err := r.Update(ctx, ada, m.id, s)
					if retired() {
						if !errors.Is(err, agent.ErrRetired) {
							t.Fatalf("changing a retired agent: %v, want ErrRetired", err)
						}
						s.ExpiresAt = before
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					if !s.ExpiresAt.IsZero() && (before.IsZero() || s.ExpiresAt.Before(before)) {
						m.epoch++
					}
					m.expires = s.ExpiresAt
				},
				"wait": func(*rapid.T) { clock.Advance(time.Hour) },
				"": func(t *rapid.T) {
					a, err := r.Get(ctx, ada, m.id)
					if err != nil {
						t.Fatal(err)
					}
					copied, err := r.Snapshot(ctx, ada.Tenant, m.id)
					if err != nil {
						t.Fatal(err)
					}
					now := d.Now()
					want := m.status(now)
					if got := a.StatusAt(now); got != want || copied.StatusAt(now) != want {
						t.Fatalf("the agent is %s and its copy %s, want %s with the holds %v", got, copied.StatusAt(now), want, m.holds)
					}
					if a.Epoch != m.epoch || copied.Epoch != m.epoch {
						t.Fatalf("the epoch is %d and the copy's %d, want %d", a.Epoch, copied.Epoch, m.epoch)
					}
					if len(a.Holds) != len(m.holds) {
						t.Fatalf("its holds are %v, want %v", a.Holds, m.holds)
					}
					for _, h := range a.Holds {
						if m.holds[h.ID] != h.Kind {
							t.Fatalf("its holds are %v, want %v", a.Holds, m.holds)
						}
					}
				},
			})
		})
	})
}
