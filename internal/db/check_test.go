package db_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// A check that says no, or panics, is the affair of its own append; those beside it
// in the commit are written.
func TestAppendChecks(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return errors.Join(insert(ctx, tx, "live"), insert(ctx, tx, "spent")) }); err != nil {
			t.Fatal(err)
		}
		no := errors.New("it may not")
		there := func(ctx context.Context, tx *db.Tx) error {
			return tx.Alive(ctx, db.Epoch{Table: "note", ID: "live"})
		}
		checks := map[int]func(context.Context, *db.Tx) error{
			0: there,
			1: func(context.Context, *db.Tx) error { return no },
			2: func(ctx context.Context, tx *db.Tx) error {
				rows, err := tx.Query(ctx, "select id from note where tenant_id = $1", tx.Tenant()) // and nobody closes it
				if err != nil || !rows.Next() {
					t.Errorf("a check cannot read: %v", err)
				}
				return no
			},
			3: func(context.Context, *db.Tx) error { panic("a fault of the caller's") },
		}
		if d.Engine() == db.Postgres { // where whoever leaves rows open holds the connection
			checks[2] = checks[1]
		}
		var wg sync.WaitGroup
		for i := range 80 {
			wg.Go(func() {
				defer func() {
					if p := recover(); (p != nil) != (i%4 == 3) {
						t.Errorf("append %d: panic %v", i, p)
					}
				}()
				err := d.Append(ctx, db.Append{
					Tenant: "acme", Check: checks[i%4],
					Steps: []db.Step{{Text: "update note set epoch = epoch where tenant_id = $1 and id = $2", Args: []any{"spent"}}},
					Rows:  []db.Row{{Into: noteTable, Values: []any{"acme", fmt.Sprintf("c%d", i), int64(0), []byte{}}}},
				})
				if want := map[int]error{1: no, 2: no}[i%4]; !errors.Is(err, want) {
					t.Errorf("append %d: %v, want %v", i, err, want)
				}
			})
		}
		wg.Wait()
		if n := count(t, d); n != 2+20 {
			t.Errorf("%d notes, want those whose check said yes", n-2)
		}
	})
}

// SQLite undoes the whole transaction when it cannot read its file. Where that
// happens to a check, the appends beside it are written all the same, once.
func TestAppendCheckThatUndoesAll(t *testing.T) {
	d := dbtest.Open(t)
	makeNotes(t, d)
	ctx, began, release := t.Context(), make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		_ = d.Do(ctx, "acme", func(*db.Tx) error {
			close(began)
			<-release
			return nil
		})
	})
	<-began
	errs := make([]error, 21)
	const broken = 10
	for i := range errs {
		a := db.Append{Tenant: "acme", Rows: []db.Row{{Into: noteTable, Values: []any{"acme", fmt.Sprintf("n%d", i), int64(0), []byte{}}}}}
		if i == broken {
			a.Check = func(ctx context.Context, tx *db.Tx) error {
				_, _ = tx.Exec(ctx, "rollback")
				_, err := tx.Exec(ctx, "rollback") // of what is no more
				return err
			}
		}
		all.Go(func() { errs[i] = d.Append(ctx, a) })
		for deadline := time.Now().Add(time.Minute); db.Waiting(d) <= i && time.Now().Before(deadline); {
			runtime.Gosched()
		}
	}
	close(release)
	all.Wait()
	for i, err := range errs {
		if (err != nil) != (i == broken) {
			t.Errorf("append %d: %v", i, err)
		}
	}
	if n := count(t, d); n != len(errs)-1 {
		t.Errorf("%d notes, want %d", n, len(errs)-1)
	}
}
