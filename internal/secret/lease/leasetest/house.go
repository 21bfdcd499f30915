package leasetest

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/target"
)

// A House is leases with what they stand on, as one node has it.
type House struct {
	DB      *db.DB
	Guard   *guard.Guard
	Sealer  *seal.Sealer
	Secrets *secret.Secrets
	Targets *target.Targets
	Leases  *lease.Leases

	key   string
	kinds []engine.Kind
	o     lease.Options
}

// Admin administers the tenant acme.
var Admin = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}

// AdminPath is the secret with which targets of the tenant are worked at.
const AdminPath = "targets/admin"

// Host is where the target of a house is.
const Host = "memory.example:7000"

// New is a node over a database, with a target of the first kind, which is called
// main. Whatever an option leaves open knows of no end of sessions and grants.
func New(t testing.TB, d *db.DB, decider guard.Decider, o lease.Options, kinds ...engine.Kind) *House {
	t.Helper()
	if o.Action == nil {
		o.Action = func(context.Context, estover.TenantID, string, string) (any, guard.Effect, error) {
			return nil, guard.Reads, nil
		}
	}
	if o.Resource == nil {
		o.Resource = func(_ context.Context, _ *db.Tx, ref, _ string) (string, error) { return ref, nil }
	}
	if o.Session == nil {
		o.Session = func(context.Context, *db.Tx, string) (time.Time, error) { return time.Time{}, nil }
	}
	if o.Grant == nil {
		o.Grant = func(context.Context, estover.Caller, string, string) (lease.Grant, error) { return lease.Grant{}, nil }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	h := &House{DB: d, key: filepath.Join(t.TempDir(), "root.key"), kinds: kinds, o: o}
	h.wire(t, decider)
	h.Add(t, Admin, "main", kinds[0].Name, Host)
	return h
}

func (h *House) wire(t testing.TB, decider guard.Decider) {
	t.Helper()
	sealer, err := seal.Open(t.Context(), h.DB, seal.File{Path: h.key})
	if err != nil {
		t.Fatal(err)
	}
	sealer.Hold(secret.Holding, lease.Holding)
	h.Sealer = sealer
	h.Guard = guardtest.New(t, h.DB, decider)
	h.Secrets = secret.New(h.Guard, sealer, secret.Options{Logger: h.o.Logger})
	h.Targets = target.New(h.Guard, h.Secrets, target.Options{Kinds: h.kinds, InUse: lease.AtTarget, Logger: h.o.Logger})
	t.Cleanup(h.Targets.Close)
	h.Leases = lease.New(h.Guard, sealer, h.Targets, h.o)
}

// Another is another node over the same database, which knows nothing of what the
// first one has in memory.
func (h *House) Another(t testing.TB, decider guard.Decider) *House {
	t.Helper()
	other := *h
	other.o.Node = ""
	other.wire(t, decider)
	return &other
}

// Add registers a target, with the secret of its admin if the tenant has none yet.
func (h *House) Add(t testing.TB, c estover.Caller, name, kind, address string) target.Target {
	t.Helper()
	if _, err := h.Secrets.Get(t.Context(), c, AdminPath); err != nil {
		if _, err := h.Secrets.Create(t.Context(), c, secret.Spec{Path: AdminPath, Destinations: []string{address}}); err != nil {
			t.Fatal(err)
		}
		fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("root")), "password": estover.NewSecret([]byte("admin's own"))}
		if _, err := h.Secrets.Write(t.Context(), c, AdminPath, fields, 0); err != nil {
			t.Fatal(err)
		}
	}
	x, err := h.Targets.Create(t.Context(), c, target.Spec{Name: name, Kind: kind, Address: address, Admin: AdminPath})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// Role puts a role at the target main, unless it says otherwise, and goes the round
// for it.
func (h *House) Role(t testing.TB, c estover.Caller, s lease.RoleSpec) lease.Role {
	t.Helper()
	if s.Target == "" {
		s.Target = "main"
	}
	if s.PerMinute == 0 {
		s.PerMinute = 100_000
	}
	if _, err := h.Leases.PutRole(t.Context(), c, s); err != nil {
		t.Fatal(err)
	}
	checked, err := h.Leases.CheckRole(t.Context(), c, s.Name)
	if err != nil || !checked.OK {
		t.Fatalf("the round for the role %s: %+v, %v", s.Name, checked, err)
	}
	r, err := h.Leases.Role(t.Context(), c, s.Name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Told are the details of the events of an action.
func (h *House) Told(t testing.TB, tenant estover.TenantID, action string) (all []map[string]any) {
	t.Helper()
	err := h.DB.View(t.Context(), tenant, func(tx *db.Tx) error {
		ids, err := db.AllOf[string](t.Context(), tx, "select id from audit where tenant_id = $1 and action = $2 order by at, id", tx.Tenant(), action)
		if err != nil {
			return err
		}
		for _, id := range ids {
			e, err := h.Guard.Log().Find(t.Context(), tx, id)
			if err != nil {
				return err
			}
			all = append(all, e.Detail)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
