package db_test

import (
	"errors"
	"fmt"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// What an append rests on may end between the check and the commit, unless it is
// held: then who ends it comes first and the append is stale, or comes after and
// finds the rows.
func TestHold(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		for _, hold := range []bool{false, true} {
			root := fmt.Sprint("root-", hold)
			if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, root) }); err != nil {
				t.Fatal(err)
			}
			before := count(t, d)
			// So many rows are written as those of a batch are, of which one is alone.
			w := db.Append{Tenant: "acme", Live: []db.Epoch{{Table: "note", ID: root}}, Hold: hold}
			for i := range 9 {
				w.Rows = append(w.Rows, db.Row{Into: noteTable, Values: []any{"acme", fmt.Sprintf("%s-%d", root, i), int64(0), []byte{}}})
			}
			ended, commit, over := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			go func() {
				over <- d.Do(ctx, "acme", func(tx *db.Tx) error {
					if _, err := tx.Exec(ctx, "update note set ended_at = 1, epoch = epoch + 1 where tenant_id = $1 and id = $2", tx.Tenant(), root); err != nil {
						return err
					}
					select {
					case <-ended:
					default:
						close(ended)
					}
					<-commit
					return nil
				})
			}()
			<-ended
			written := make(chan error, 1)
			go func() { written <- d.Append(ctx, w) }()
			if d.Engine() == db.Postgres && !hold {
				// The end is under way and not committed: the check does not see it.
				if err := <-written; err != nil {
					t.Errorf("what is not held, while its root ends: %v", err)
				}
				close(commit)
				if n := count(t, d) - before; n != 9 {
					t.Errorf("%d rows were written, want 9", n)
				}
			} else {
				close(commit)
				if err := <-written; !errors.Is(err, db.ErrStale) {
					t.Errorf("hold %v: an append whose root has ended: %v, want ErrStale", hold, err)
				}
				if n := count(t, d) - before; n != 0 {
					t.Errorf("hold %v: %d rows were written, want none", hold, n)
				}
			}
			if err := <-over; err != nil {
				t.Fatal(err)
			}
		}
	})
}
