package leasetest

import (
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/target"
)

// At is a node with a target called real that runs, and who administers the tenant
// that has it. The tenant is a new one, so that no other test's users at the
// target have its mark.
func At(t testing.TB, d *db.DB, kind engine.Kind, config engine.Config, o lease.Options) (*House, estover.Caller) {
	t.Helper()
	c := Admin
	c.Tenant = estover.TenantID("acme-" + strings.ToLower(rand.Text()[:8]))
	h := New(t, d, guardtest.AllowAll, o, new(Server).Kind(), kind)
	host, err := kind.Host(config.Address)
	if err != nil {
		t.Fatal(err)
	}
	spec := target.Spec{Name: "real", Kind: kind.Name, Address: config.Address, Options: config.Options, Authorities: string(config.Authorities)}
	if !config.Admin.Secret.Empty() {
		spec.Admin = "targets/real"
		if _, err := h.Secrets.Create(t.Context(), c, secret.Spec{Path: spec.Admin, Destinations: []string{host}}); err != nil {
			t.Fatal(err)
		}
		fields := map[string]estover.Secret{"password": estover.NewSecret(slices.Clone(config.Admin.Secret.Reveal()))}
		if config.Admin.User != "" {
			fields["username"] = estover.NewSecret([]byte(config.Admin.User))
		}
		if _, err := h.Secrets.Write(t.Context(), c, spec.Admin, fields, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Targets.Create(t.Context(), c, spec); err != nil {
		t.Fatal(err)
	}
	return h, c
}
