package db_test

import (
	"fmt"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// SQLite comes with the program. Before 3.51.3 a write-ahead log that was begun anew
// while another connection was at its checkpoint could lose what had been committed.
func TestSQLiteIsNotTooOld(t *testing.T) {
	d, err := db.Open(t.Context(), dbtest.SQLite(t), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	var text string
	err = d.View(t.Context(), "", func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), `select sqlite_version()`).Scan(&text)
	})
	var major, minor, patch int
	if err == nil {
		_, err = fmt.Sscanf(text, "%d.%d.%d", &major, &minor, &patch)
	}
	if err != nil {
		t.Fatalf("the version %q: %v", text, err)
	}
	if v := major*1_000_000 + minor*1000 + patch; v < 3_051_003 {
		t.Errorf("SQLite is %s, want 3.51.3 or later", text)
	}
}
