package hold_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/hold"
)

var ada = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada"), Roles: []estover.Role{estover.Admin}}

func at(tenant estover.TenantID) estover.Caller {
	c := ada
	c.Tenant = tenant
	return c
}

func raise(ctx context.Context, g *guard.Guard, h *hold.Holds, tenant estover.TenantID, scope hold.Scope, target string) (made hold.Hold, err error) {
	err = g.Do(ctx, at(tenant), guard.Op{Action: "containment.run"}, func(tx *guard.Tx) error {
		made, err = h.Raise(ctx, tx, scope, target, "because", ada.Subject)
		return err
	})
	return made, err
}

func lift(ctx context.Context, g *guard.Guard, h *hold.Holds, tenant estover.TenantID, id string) error {
	return g.Do(ctx, at(tenant), guard.Op{Action: "containment.lift"}, func(tx *guard.Tx) error {
		_, err := h.Lift(ctx, tx, id, ada.Subject)
		return err
	})
}

func ids(holds []hold.Hold) (all []string) {
	for _, h := range holds {
		all = append(all, h.ID)
	}
	slices.Sort(all)
	return all
}

// TestModel raises and lifts holds at random in three tenants and compares what
// covers whom with a map, in memory and in a transaction: lifting one hold never
// lifts another, and nobody's hold reaches another tenant but the default one's
// on tenants and on everything.
func TestModel(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		g := guardtest.New(t, d, guardtest.AllowAll)
		h := hold.New(g)
		tenants := []estover.TenantID{estover.DefaultTenant, "acme", "zeta"}
		agents := []hold.Agent{{Blueprint: "support", Sponsor: "usr_ada"}, {Blueprint: "support", Sponsor: "usr_bob"}, {Blueprint: "billing", Sponsor: "usr_ada"}, {Blueprint: "billing", Sponsor: "usr_bob"}}
		type kept struct {
			hold.Hold
			tenant estover.TenantID
		}
		model := map[string]kept{} // over all runs: the database is the same
		var lifted []kept
		covers := func(k kept, tenant estover.TenantID, a hold.Agent) bool {
			wide := k.tenant == estover.DefaultTenant && (k.Scope == hold.Tenant || k.Scope == hold.Everything)
			if k.tenant != tenant && !wide {
				return false
			}
			switch k.Scope {
			case hold.Blueprint:
				return k.Target == a.Blueprint
			case hold.Person:
				return k.Target == a.Sponsor
			case hold.Tenant:
				return k.Target == string(tenant)
			}
			return k.Scope == hold.Everything
		}
		rapid.Check(t, func(t *rapid.T) {
			standing := func() []string { return slices.Sorted(maps.Keys(model)) }
			t.Repeat(map[string]func(*rapid.T){
				"raise": func(t *rapid.T) {
					tenant := rapid.SampledFrom(tenants).Draw(t, "tenant")
					scope := rapid.SampledFrom([]hold.Scope{hold.Blueprint, hold.Person, hold.Resource, hold.Tenant, hold.Everything}).Draw(t, "scope")
					target := map[hold.Scope][]string{
						hold.Blueprint: {"support", "billing"}, hold.Person: {"usr_ada", "usr_bob"}, hold.Resource: {"res_crm"},
						hold.Tenant: {string(tenant)}, hold.Everything: {""},
					}[scope]
					if scope == hold.Tenant && tenant == estover.DefaultTenant {
						target = []string{"default", "acme", "zeta"}
					}
					name := rapid.SampledFrom(target).Draw(t, "target")
					made, err := raise(ctx, g, h, tenant, scope, name)
					if scope == hold.Everything && tenant != estover.DefaultTenant {
						if err == nil {
							t.Fatal("a tenant holds everything")
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					model[made.ID] = kept{made, tenant}
				},
				"lift": func(t *rapid.T) {
					if len(model) == 0 {
						return // nothing is held
					}
					k := model[rapid.SampledFrom(standing()).Draw(t, "hold")]
					from := rapid.SampledFrom(tenants).Draw(t, "from")
					err := lift(ctx, g, h, from, k.ID)
					if from != k.tenant {
						if !errors.Is(err, hold.ErrNotFound) {
							t.Fatalf("lifting another tenant's hold: %v, want ErrNotFound", err)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					delete(model, k.ID)
					lifted = append(lifted, k)
				},
				"lift again": func(t *rapid.T) {
					if len(lifted) == 0 {
						return // nothing was lifted
					}
					k := rapid.SampledFrom(lifted[max(0, len(lifted)-5):]).Draw(t, "hold")
					if err := lift(ctx, g, h, k.tenant, k.ID); !errors.Is(err, hold.ErrNotFound) {
						t.Fatalf("lifting what was lifted: %v, want ErrNotFound", err)
					}
				},
				"": func(t *rapid.T) {
					for _, tenant := range []estover.TenantID{rapid.SampledFrom(tenants).Draw(t, "looked at")} {
						var rows func(hold.Agent) []hold.Hold
						if err := d.View(ctx, tenant, func(tx *db.Tx) (err error) {
							rows, err = hold.Over(ctx, tx)
							return err
						}); err != nil {
							t.Fatal(err)
						}
						for _, a := range agents {
							var want []string
							for id, k := range model {
								if covers(k, tenant, a) {
									want = append(want, id)
								}
							}
							slices.Sort(want)
							over, err := h.Over(ctx, tenant, a)
							if err != nil || !slices.Equal(ids(over), want) || !slices.Equal(ids(rows(a)), want) {
								t.Fatalf("over %v of %s stand %v in memory and %v in rows, %v; want %v", a, tenant, ids(over), ids(rows(a)), err, want)
							}
						}
					}
				},
			})
			for id, k := range model { // the next run begins with nothing
				if err := lift(ctx, g, h, k.tenant, id); err != nil {
					t.Fatal(err)
				}
				delete(model, id)
			}
		})
	})
}

// A hold has a reason, and of many who lift it at once one does.
func TestLiftOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		g := guardtest.New(t, d, guardtest.AllowAll)
		h := hold.New(g)
		for _, reason := range []string{"", strings.Repeat("x", 601)} {
			err := g.Do(ctx, ada, guard.Op{Action: "containment.run"}, func(tx *guard.Tx) error {
				_, err := h.Raise(ctx, tx, hold.Blueprint, "support", reason, ada.Subject)
				return err
			})
			if !errors.Is(err, hold.ErrReason) {
				t.Errorf("a reason of %d bytes: %v, want ErrReason", len(reason), err)
			}
		}
		made, err := raise(ctx, g, h, estover.DefaultTenant, hold.Resource, "res_crm")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.View(ctx, estover.DefaultTenant, func(tx *db.Tx) error {
			on, err := hold.OnResource(ctx, tx, "res_crm")
			if len(on) != 1 || on[0].ID != made.ID {
				t.Errorf("on the resource stand %v", on)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		done := 0
		for range 64 {
			wg.Go(func() {
				if lift(ctx, g, h, estover.DefaultTenant, made.ID) == nil {
					mu.Lock()
					defer mu.Unlock()
					done++
				}
			})
		}
		wg.Wait()
		if done != 1 {
			t.Errorf("%d of 64 lifted the hold, want one", done)
		}
	})
}
