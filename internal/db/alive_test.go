package db_test

import (
	"errors"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// Whether something is alive can be asked in a snapshot too, which locks nothing.
func TestAliveInASnapshot(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, "live") }); err != nil {
			t.Fatal(err)
		}
		for id, want := range map[string]error{"live": nil, "gone": db.ErrStale} {
			err := d.View(ctx, "acme", func(tx *db.Tx) error { return tx.Alive(ctx, db.Epoch{Table: "note", ID: id}) })
			if !errors.Is(err, want) {
				t.Errorf("%s in a snapshot: %v, want %v", id, err, want)
			}
		}
	})
}
