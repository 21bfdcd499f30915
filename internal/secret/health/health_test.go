package health_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/health"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
)

var (
	ann = leasetest.Admin
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
)

// TestTargets shows R13: of each target it is said what is wrong with it, and what
// to do. A restored server whose newest password is not the target's finds the older
// one that is.
func TestTargets(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, clock := t.Context(), dbtest.NewClock(d)
		server := &leasetest.Server{Now: clock.Now, Password: "admin's own"}
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{}, server.Kind())
		rotations := rotation.New(rotation.Config{
			Guard: h.Guard, Secrets: h.Secrets, Logger: slog.New(slog.DiscardHandler),
			Target: func(context.Context, estover.TenantID, string) (rotation.Target, error) {
				return rotation.Target{}, nil
			},
			Engine: func(context.Context, estover.TenantID, string) (engine.Engine, error) {
				return nil, errors.ErrUnsupported
			},
		})
		doctor := health.Doctor{Guard: h.Guard, Targets: h.Targets, Leases: h.Leases, Rotations: rotations}
		look := func(what string, want ...string) health.Report {
			t.Helper()
			all, err := doctor.Examine(ctx, ann, "")
			if err != nil || len(all) != 1 || all[0].Target != "main" {
				t.Fatalf("%s: %+v, %v; want the target main", what, all, err)
			}
			r := all[0]
			if r.OK != (len(want) == 0) || len(r.Findings) != len(want) {
				t.Errorf("%s: ok %v, %+v; want %d findings", what, r.OK, r.Findings, len(want))
			}
			for n, f := range r.Findings {
				if f.Remedy == "" || n < len(want) && !strings.Contains(f.What+" → "+f.Remedy, want[n]) {
					t.Errorf("%s: %q, what to do: %q; want %q", what, f.What, f.Remedy, want[n])
				}
			}
			return r
		}
		logins := func(r health.Report, want ...bool) {
			t.Helper()
			if len(r.Logins) != len(want) {
				t.Errorf("it was tried to log in as %+v, want %d times", r.Logins, len(want))
				return
			}
			for n, l := range r.Logins {
				if l.OK != want[n] || l.User != "root" {
					t.Errorf("logging in as %+v, want %v", l, want[n])
				}
			}
		}

		r := look("a target that is well")
		logins(r, true)
		if !r.Reachable || r.Admin != leasetest.AdminPath || r.Skew != 0 {
			t.Errorf("a target that is well: %+v", r)
		}

		// Its clock is off.
		server.Now = func() time.Time { return clock.Now().Add(time.Minute) }
		clock.Advance(time.Hour) // what was measured before is not believed any more
		if r := look("a clock that is ahead", "1m0s from ours"); r.Skew < (59 * time.Second).Microseconds() {
			t.Errorf("its clock is %dµs ahead, want a minute", r.Skew)
		}
		server.Now = clock.Now
		clock.Advance(time.Hour)

		// A user of whom no lease knows, beside one of whom one does.
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext})
		x, err := h.Leases.Create(ctx, ann, lease.Wish{Role: "reader", Purpose: "a test"})
		if err != nil {
			t.Fatal(err)
		}
		stray := x.User[:len("e_12345678_")] + "reader_gone"
		server.Add(stray, "x")
		if r := look("a user without a lease", "estover secret engine reconcile main"); r.Users != 2 || len(r.Strangers) != 1 || r.Strangers[0] != stray || r.Open != 1 {
			t.Errorf("users: %d, without a lease %v, %d leases; want 2, %s and 1", r.Users, r.Strangers, r.Open, stray)
		}
		if len(server.Users()) != 2 {
			t.Error("looking has taken a user away")
		}
		server.Drop(stray)

		// What should be gone and is not, since nobody answers.
		if _, err := h.Leases.Revoke(ctx, ann, lease.Which{All: true}, "a test"); err != nil {
			t.Fatal(err)
		}
		server.Down(true)
		clock.Advance(time.Hour)
		if r := look("a target that is down", "--overdue", "cannot log in"); r.Reachable || r.Overdue != 1 {
			t.Errorf("a target that is down is reachable: %v, with %d overdue", r.Reachable, r.Overdue)
		}
		server.Down(false)
		clock.Advance(time.Hour)
		if err := h.Leases.Work(ctx); err != nil {
			t.Fatal(err)
		}

		// A newer password than the target's: the older one still logs in.
		if _, err := h.Secrets.Write(ctx, ann, leasetest.AdminPath, map[string]estover.Secret{"username": estover.NewSecret([]byte("root")), "password": estover.NewSecret([]byte("a newer one"))}, secret.Any); err != nil {
			t.Fatal(err)
		}
		logins(look("a password that the target does not know", "estover secret rollback "+leasetest.AdminPath+" 1"), false, true)
		server.Password = "a newer one" // and now it does; the older one is not tried
		logins(look("the newest password"), true)

		if _, err := h.Leases.Restored(ctx, ann); err != nil {
			t.Fatal(err)
		}
		look("after a restore", "estover secret engine reconcile main")
		if all, err := doctor.Examine(ctx, eve, ""); err != nil || len(all) != 0 {
			t.Errorf("another organisation sees %+v, %v", all, err)
		}
		if _, err := doctor.Examine(ctx, eve, "main"); !errors.Is(err, target.ErrNotFound) {
			t.Errorf("another organisation's target: %v, want ErrNotFound", err)
		}
	})
}

// TestDenied shows that nothing is asked of a target for who may not ask.
func TestDenied(t *testing.T) {
	d := dbtest.Open(t)
	server := &leasetest.Server{}
	deny := false
	h := leasetest.New(t, d, guardtest.Decider(func(c estover.Caller, op guard.Op) guard.Decision {
		if deny {
			return guardtest.DenyAll(c, op)
		}
		return guardtest.AllowAll(c, op)
	}), lease.Options{}, server.Kind())
	deny = true
	opened, _ := server.Opened()
	doctor := health.Doctor{Guard: h.Guard, Targets: h.Targets, Leases: h.Leases}
	if _, err := doctor.Examine(t.Context(), ann, ""); estover.KindOf(err) != estover.Denied {
		t.Errorf("who may not look: %v, want it denied", err)
	}
	if now, _ := server.Opened(); now != opened {
		t.Error("the target was opened for who may not look")
	}
}
