package health_test

import (
	"context"
	"errors"
	"fmt"
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
		server.Fail = func(_ context.Context, operation, _ string, _ bool) error {
			if operation == "list" {
				return engine.ErrUnsupported
			}
			return nil
		}
		look("after a restore, where users cannot be listed", "estover secret engine reconcile main --unlisted --reason")
		server.Fail = nil
		if all, err := doctor.Examine(ctx, eve, ""); err != nil || len(all) != 0 {
			t.Errorf("another organisation sees %+v, %v", all, err)
		}
		if _, err := doctor.Examine(ctx, eve, "main"); !errors.Is(err, target.ErrNotFound) {
			t.Errorf("another organisation's target: %v, want ErrNotFound", err)
		}
	})
}

// house is a target main, whose admin's secret may be rotated, and who looks at it.
func house(t *testing.T, d *db.DB, decider guard.Decider, server *leasetest.Server) (*leasetest.House, *rotation.Rotations, health.Doctor) {
	t.Helper()
	h := leasetest.New(t, d, decider, lease.Options{}, server.Kind())
	rotations := rotation.New(rotation.Config{
		Guard: h.Guard, Secrets: h.Secrets, Logger: slog.New(slog.DiscardHandler), Engine: h.Targets.Engine, As: h.Targets.As,
		Target: func(ctx context.Context, tenant estover.TenantID, name string) (rotation.Target, error) {
			id := name
			if !strings.HasPrefix(name, "tgt_") {
				var err error
				if id, err = h.Targets.Named(ctx, tenant, name); err != nil {
					return rotation.Target{}, err
				}
			}
			return rotation.Target{ID: id, Name: "main", Admin: leasetest.AdminPath}, nil
		},
	})
	return h, rotations, health.Doctor{Guard: h.Guard, Targets: h.Targets, Leases: h.Leases, Rotations: rotations}
}

// write gives the admin's secret another version.
func write(t *testing.T, h *leasetest.House, user, password string) {
	t.Helper()
	fields := map[string]estover.Secret{"username": estover.NewSecret([]byte(user)), "password": estover.NewSecret([]byte(password))}
	if _, err := h.Secrets.Write(t.Context(), ann, leasetest.AdminPath, fields, secret.Any); err != nil {
		t.Fatal(err)
	}
}

// only is the one target and the one finding that there is about it.
func only(t *testing.T, doctor health.Doctor) (health.Report, health.Finding) {
	t.Helper()
	all, err := doctor.Examine(t.Context(), ann, "main")
	if err != nil || len(all) != 1 || len(all[0].Findings) != 1 || all[0].OK {
		t.Fatalf("%+v, %v; want one target with one finding", all, err)
	}
	return all[0], all[0].Findings[0]
}

// TestEachVersion shows R13: the admin logs in with each version that is stored, the
// newest first, however many there are; a target that does not answer is
// asked once.
func TestEachVersion(t *testing.T) {
	server := &leasetest.Server{Password: "admin's own"}
	h, _, doctor := house(t, dbtest.Open(t), guardtest.AllowAll, server)
	const newer = 9
	for n := range newer {
		write(t, h, "root", fmt.Sprint("newer ", n))
	}
	r, f := only(t, doctor)
	if len(r.Logins) != 1+newer || r.Logins[0].Version != 1+newer || !r.Logins[newer].OK || r.Untried != 0 {
		t.Errorf("it was tried to log in as %+v, and %d versions were left; want all %d, the newest first", r.Logins, r.Untried, 1+newer)
	}
	if want := "estover secret rollback " + leasetest.AdminPath + " 1"; f.Remedy != want {
		t.Errorf("what to do is %q, want %q", f.Remedy, want)
	}
	server.Password = ""
	server.Fail = func(ctx context.Context, _, _ string, _ bool) error {
		return fmt.Errorf("waiting for an answer: %w", context.DeadlineExceeded)
	}
	if r, _ = only(t, doctor); len(r.Logins) != 1 || r.Untried != newer || r.Reachable {
		t.Errorf("at a target that does not answer it was tried to log in as %+v, and %d versions were left; want one try", r.Logins, r.Untried)
	}
}

// TestRemedies shows that what is said to be done works where the admin's secret is
// rotated, whose versions nobody else writes.
func TestRemedies(t *testing.T) {
	server := &leasetest.Server{Password: "admin's own"}
	h, rotations, doctor := house(t, dbtest.Open(t), guardtest.AllowAll, server)
	write(t, h, "root", "a newer one")
	spec := rotation.Spec{Target: "main", Users: []string{"root", "root_b"}, Template: engine.Template{"groups": {"admins"}}, Schedule: "manual"}
	if _, err := rotations.Put(t.Context(), ann, leasetest.AdminPath, spec); err != nil {
		t.Fatal(err)
	}
	_, f := only(t, doctor)
	remove, rollback := "estover rotation remove "+leasetest.AdminPath, "estover secret rollback "+leasetest.AdminPath+" 1"
	if !strings.HasPrefix(f.Remedy, remove+", then "+rollback) {
		t.Errorf("what to do is %q; want the rotation removed, then version 1", f.Remedy)
	}
	if _, err := h.Secrets.Rollback(t.Context(), ann, leasetest.AdminPath, 1, secret.Any); !errors.Is(err, secret.ErrManaged) {
		t.Errorf("under rotation, going back to a version: %v, want ErrManaged", err)
	}
	if err := rotations.Remove(t.Context(), ann, leasetest.AdminPath); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Secrets.Rollback(t.Context(), ann, leasetest.AdminPath, 1, secret.Any); err != nil {
		t.Fatal(err)
	}
	all, err := doctor.Examine(t.Context(), ann, "")
	if err != nil || !all[0].OK {
		t.Fatalf("after what was to be done: %+v, %v", all, err)
	}

	// In its grace the rotation cannot be removed.
	if _, err := rotations.Put(t.Context(), ann, leasetest.AdminPath, spec); err != nil {
		t.Fatal(err)
	}
	server.Add("root", "admin's own")
	server.Password = ""
	if err := rotations.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := rotations.Run(t.Context(), ann, leasetest.AdminPath)
	if err != nil || r.Step != rotation.Grace {
		t.Fatalf("rotating the admin: %+v, %v", r, err)
	}
	server.Password = "nobody's"
	all, err = doctor.Examine(t.Context(), ann, "")
	if err != nil || len(all[0].Findings) != 1 {
		t.Fatalf("with passwords that nobody knows: %+v, %v; want one finding", all, err)
	}
	f = all[0].Findings[0]
	show := fmt.Sprintf("give root_b at the target the password that estover secret get %s --version %d ", leasetest.AdminPath, r.Current)
	if !strings.Contains(f.Remedy, show) {
		t.Errorf("what to do in a grace is %q, want %q", f.Remedy, show)
	}
	p, err := h.Secrets.Read(t.Context(), ann, leasetest.AdminPath, r.Current, "a test")
	if err != nil {
		t.Fatal(err)
	}
	server.Password = string(p.Values["password"].Reveal())
	if _, f = only(t, doctor); !strings.HasPrefix(f.Remedy, "estover rotation force "+leasetest.AdminPath) {
		t.Errorf("what to do about the user of the version before is %q, want its end forced", f.Remedy)
	}
	if r, err = rotations.Force(t.Context(), ann, leasetest.AdminPath, "a test"); err != nil || r.Step != rotation.Idle {
		t.Fatalf("forcing its end: %+v, %v", r, err)
	}
	if all, err = doctor.Examine(t.Context(), ann, ""); err != nil || !all[0].OK {
		t.Errorf("after what was to be done: %+v, %v", all, err)
	}
}

// TestOurFault shows that a target which we cannot look at hides nothing of the
// others, and nothing of what was done from the log.
func TestOurFault(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		server := &leasetest.Server{Password: "admin's own"}
		denied := false
		h, _, doctor := house(t, d, guardtest.Decider(func(c estover.Caller, op guard.Op) guard.Decision {
			if denied && op.Action == "rotation.read" && op.Target == "secret:targets/other" {
				return guardtest.DenyAll(c, op)
			}
			return guardtest.AllowAll(c, op)
		}), server)
		if _, err := h.Secrets.Create(t.Context(), ann, secret.Spec{Path: "targets/other", Destinations: []string{"other.example:7000"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Targets.Create(t.Context(), ann, target.Spec{Name: "other", Kind: "memory", Address: "other.example:7000", Admin: "targets/other"}); err != nil {
			t.Fatal(err)
		}
		denied = true
		all, err := doctor.Examine(t.Context(), ann, "")
		if err != nil || len(all) != 2 || !all[0].OK || all[0].Target != "main" || all[1].OK || len(all[1].Findings) != 1 || !strings.Contains(all[1].Findings[0].What, "could not be looked at") {
			t.Errorf("with one that cannot be looked at: %+v, %v; want main, and other with what is wrong", all, err)
		}

		// Who asked goes in the middle of it.
		gone, cancel := context.WithCancel(t.Context())
		server.Fail = func(_ context.Context, operation, _ string, _ bool) error {
			if operation == "now" {
				cancel()
			}
			return nil
		}
		if _, err := doctor.Examine(gone, ann, ""); err != nil || gone.Err() == nil {
			t.Errorf("who asks and goes: %v, gone: %v", err, gone.Err())
		}
		n := 0
		err = d.View(t.Context(), "acme", func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `select count(*) from audit where tenant_id = $1 and action = 'target.check' and target = 'target:*'`, tx.Tenant()).Scan(&n)
		})
		if err != nil || n != 2 {
			t.Errorf("%d events, %v; want one of each attempt", n, err)
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
