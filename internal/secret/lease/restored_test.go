package lease_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/target"
)

// F5 at a real PostgreSQL: of what was issued after the backup that is restored nobody
// knows. It is found by our mark, its session ends and it cannot log in, and it is gone
// an hour later; what both sides know of goes on.
func TestRestoredAtPostgres(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		p := onPostgres(t, d, nil, lease.Options{})
		bot := p.agent("agt_bot", "ses_1")
		stays := p.create(t, bot, "reader")
		clock.Advance(time.Second)
		backup := d.Now()
		later := p.create(t, bot, "reader")
		open := p.login(t, later, "crm")
		err := d.Do(t.Context(), p.tenant.Tenant, func(tx *db.Tx) error { // the rows of then are back
			_, err := tx.Exec(t.Context(), "delete from lease where tenant_id = $1 and created_at >= $2", tx.Tenant(), backup)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := p.Leases.Restored(t.Context(), p.tenant); err != nil || n != 1 {
			t.Fatalf("%d targets are in doubt, %v; want 1", n, err)
		}
		if _, err := p.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"}); !errors.Is(err, target.ErrSuspect) {
			t.Errorf("issuing before it is compared: %v, want ErrSuspect", err)
		}
		out, err := p.Leases.Reconcile(t.Context(), p.tenant, "real", lease.Comparison{})
		if err != nil || out.Users != 2 || len(out.Strays) != 1 || out.Strays[0].User != later.User || out.Strays[0].LockedAt.IsZero() || out.Lost != 0 {
			t.Fatalf("reconciled %+v, %v; want %s locked, of 2 users", out, err, later.User)
		}
		if _, err := open.Exec(t.Context(), "select 1"); err == nil {
			t.Error("the session of whom nobody knows is open still")
		}
		if c, err := pgx.Connect(t.Context(), p.server.As(later.Values, "crm")); err == nil {
			_ = c.Close(t.Context())
			t.Error("whom nobody knows logs in still")
		}
		p.login(t, stays, "crm")
		p.create(t, bot, "reader")
		clock.Advance(61 * time.Minute)
		if err := p.Leases.DropStrays(t.Context()); err != nil {
			t.Fatal(err)
		}
		if users := p.users(t); slices.Contains(users, later.User) || !slices.Contains(users, stays.User) {
			t.Errorf("an hour later the users are %v; want %s gone and %s there", users, later.User, stays.User)
		}
	})
}
