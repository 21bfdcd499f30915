package db_test

import (
	"slices"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// TestPlace: where rows of several tenants are, from one row and from many.
func TestPlace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		first, second := db.Place{Tenant: "acme", ID: "ses_1"}, db.Place{Tenant: "globex", ID: "ses_1"}
		err := d.View(t.Context(), "", func(tx *db.Tx) error {
			all, err := db.All(t.Context(), tx, db.ScanPlace, "select 'acme', 'ses_1' union all select 'globex', 'ses_1' order by 1")
			if want := []db.Place{first, second}; err != nil || !slices.Equal(all, want) {
				t.Errorf("two rows: %v, %v; want %v", all, err, want)
			}
			one, err := db.ScanPlace(tx.QueryRow(t.Context(), "select 'globex', 'ses_1'").Scan)
			if err != nil || one != second {
				t.Errorf("one row: %v, %v; want %v", one, err, second)
			}
			if _, err := db.ScanPlace(tx.QueryRow(t.Context(), "select 'acme', 'ses_1' where 1 = 0").Scan); err != db.ErrNoRows {
				t.Errorf("no row: %v, want ErrNoRows", err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
