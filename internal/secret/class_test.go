package secret_test

import (
	"errors"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
)

// What rules see of a secret is the same however often it is written, so that a
// write makes no copy of it stale; and it follows what is said of the secret.
func TestClass(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := setup(t, d, guardtest.AllowAll)
		is := func(when string, want estover.Class) {
			t.Helper()
			if got, err := s.Class(t.Context(), "acme", "crm/api-key"); err != nil || got != want {
				t.Errorf("%s the class is %q, %v, want %q", when, got, err, want)
			}
		}
		said := func() (n int) {
			t.Helper()
			err := d.View(t.Context(), "acme", func(tx *db.Tx) error {
				rows, err := tx.Query(t.Context(), "select touches from audit where tenant_id = $1", tx.Tenant())
				if err != nil {
					return err
				}
				defer func() { _ = rows.Close() }()
				for rows.Next() {
					var touches string
					if err := rows.Scan(&touches); err != nil {
						return err
					}
					n += strings.Count(touches, "secret_spec:crm/api-key")
				}
				return rows.Err()
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if _, err := s.Class(t.Context(), "acme", "crm/api-key"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("the class of what is not there: %v, want ErrNotFound", err)
		}
		if _, err := s.Create(t.Context(), ann, secret.Spec{Path: "crm/api-key"}); err != nil {
			t.Fatal(err)
		}
		is("At first", estover.Confidential)
		if _, err := s.Class(t.Context(), "bolt", "crm/api-key"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("the class of another organisation's secret: %v, want ErrNotFound", err)
		}
		for range 3 {
			if _, err := s.Write(t.Context(), ann, "crm/api-key", values("value", "x"), secret.Any); err != nil {
				t.Fatal(err)
			}
		}
		is("After it was written", estover.Confidential)
		if n := said(); n != 0 {
			t.Errorf("%d writes made copies stale of what is said of the secret, want none", n)
		}
		class := estover.Restricted
		if _, err := s.Update(t.Context(), ann, "crm/api-key", secret.Change{Class: &class}); err != nil {
			t.Fatal(err)
		}
		is("After it was raised", estover.Restricted)
		if n := said(); n != 1 {
			t.Errorf("%d events say that what is said has changed, want 1", n)
		}
		if err := s.Remove(t.Context(), ann, "crm/api-key"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Class(t.Context(), "acme", "crm/api-key"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("the class of what was removed: %v, want ErrNotFound", err)
		}
	})
}
