package rotation_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
)

// TestCopy shows R12: a copy of the next admin's version is kept before it becomes
// current, without one it does not, and of other secrets none is kept.
func TestCopy(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("operator"))
		fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator"))}
		if _, err := h.secrets.Write(t.Context(), ann, path, fields, 0); err != nil {
			t.Fatal(err)
		}
		full := errors.New("the disk is full")
		var kept []int64
		h.x.Copy = func(_ context.Context, tenant estover.TenantID, target, at string, version int64, values map[string]estover.Secret) error {
			if full != nil {
				return full
			}
			if s, err := h.secrets.Describe(t.Context(), tenant, at); err != nil || s.CurrentVersion >= version {
				t.Errorf("the copy of version %d is made when %d is current, %v", version, s.CurrentVersion, err)
			}
			if err := h.target.Verify(t.Context(), engine.Credential{User: string(values["username"].Reveal()), Secret: values["password"]}); target != "orders" || at != path || err != nil {
				t.Errorf("a copy of %s at %s: %v", at, target, err)
			}
			kept = append(kept, version)
			return nil
		}
		spec := pair
		spec.Users, spec.Template = []string{"operator", "estover_admin"}, engine.Template{"groups": {"admins"}}
		h.admin = path
		h.put(spec)
		if r, err := h.x.Run(t.Context(), ann, path); err == nil && r.Step != rotation.Applied || r.Current > 1 {
			t.Errorf("without a copy the rotation is at %s with version %d, %v; want it to stay with the first", r.Step, r.Current, err)
		}
		h.want("1a:current 2b:pending")
		full = nil
		h.pass(10 * time.Minute)
		if err := h.x.RunDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.want("1a:previous 2b:current")
		if !slices.Equal(kept, []int64{2}) {
			t.Errorf("copies of the versions %v were kept, want the second", kept)
		}
		h.admin = "targets/other" // it is a secret like any other now
		h.pass(2 * time.Minute)
		h.pass(2 * time.Minute)
		h.run()
		if !slices.Equal(kept, []int64{2}) {
			t.Errorf("copies of the versions %v were kept, want none of what is no admin's", kept)
		}
	})
}
