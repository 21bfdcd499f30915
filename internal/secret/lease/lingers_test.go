package lease_test

import (
	"slices"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
)

// Q8: what may go on at a target that cannot end it is named to whoever ends a lease, a
// session or an agent, also if the lease is gone already when it is asked.
func TestLingers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := &leasetest.Server{Lingers: "What is bound stays so."}
		quick := &leasetest.Server{Name: "quick"}
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{}, s.Kind(), quick.Kind())
		h.Add(t, ann, "other", "quick", leasetest.Host)
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext})
		h.Role(t, ann, lease.RoleSpec{Name: "quick", Target: "other", Delivery: lease.Plaintext})
		all := func(string, string, string) bool { return true }
		ask := func(what string, since time.Time, session, contained []string) {
			t.Helper()
			if got, err := h.Leases.Lingers(t.Context(), ann.Tenant, bot.Session, since); err != nil || !slices.Equal(got, session) {
				t.Errorf("%s, of the session: %q, %v; want %q", what, got, err, session)
			}
			if got, err := h.Leases.ContainedLingers(t.Context(), ann.Tenant, since, all); err != nil || !slices.Equal(got, contained) {
				t.Errorf("%s, of what was contained: %q, %v; want %q", what, got, err, contained)
			}
		}
		begun := d.Now()
		create(t, h, bot, "quick")
		ask("at a target that ends all", begun, nil, nil)
		x := create(t, h, bot, "reader")
		if x.Lingers != s.Lingers {
			t.Errorf("whoever gets it hears %q, want %q", x.Lingers, s.Lingers)
		}
		ask("of a lease that is live", begun, []string{"main: " + s.Lingers}, nil)
		out, err := h.Leases.Revoke(t.Context(), ann, lease.Which{ID: x.ID}, "a test")
		if err != nil || !slices.Equal(out.Lingers, []string{"main: " + s.Lingers}) {
			t.Errorf("whoever revokes it hears %q, %v; want the target and what goes on", out.Lingers, err)
		}
		work(t, h)
		ask("of one that has ended since", begun, []string{"main: " + s.Lingers}, nil)
		ask("of one that had ended before", d.Now(), nil, nil)

		begun = d.Now()
		create(t, h, bot, "reader")
		if err := h.Guard.Do(t.Context(), ann, guard.Op{Action: "containment.run"}, func(tx *guard.Tx) error {
			_, err := h.Leases.Contain(t.Context(), tx, []string{bot.Subject.ID()})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		ask("of one that is contained", begun, []string{"main: " + s.Lingers}, []string{"Memory: " + s.Lingers})
		work(t, h)
		ask("of one that was, and is gone", begun, []string{"main: " + s.Lingers}, []string{"Memory: " + s.Lingers})
		if got, err := h.Leases.ContainedLingers(t.Context(), ann.Tenant, begun, func(agent, _, _ string) bool { return agent == "agt_other" }); err != nil || len(got) != 0 {
			t.Errorf("of another agent: %q, %v", got, err)
		}
		if got, err := h.Leases.ContainedLingers(t.Context(), eve.Tenant, begun, all); err != nil || len(got) != 0 {
			t.Errorf("of another organisation: %q, %v", got, err)
		}
	})
}
