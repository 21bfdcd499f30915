package db_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"estover.dev"
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

// Appends that share a commit are asked about together, and each is told what became
// of what it rests on itself: of its own tenant, with its own epoch, and of all of it.
func TestAliveTogether(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		const roots = 11 // not as many as a statement has places for
		for _, tenant := range []estover.TenantID{"acme", "umbrella"} {
			if err := d.Do(ctx, tenant, func(tx *db.Tx) error {
				for i := range roots {
					if tenant == "umbrella" && i%2 == 0 {
						continue
					}
					if err := insert(ctx, tx, fmt.Sprint("root-", i)); err != nil {
						return err
					}
				}
				_, err := tx.Exec(ctx, "update note set ended_at = 1 where tenant_id = $1 and id = 'root-3'", tx.Tenant())
				if err == nil {
					_, err = tx.Exec(ctx, "update note set epoch = 1 where tenant_id = $1 and id = 'root-5'", tx.Tenant())
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		alive := func(tenant estover.TenantID, root int, epoch int64) bool {
			return root < roots && root != 3 && (tenant == "acme" || root%2 == 1) && (epoch == 1) == (root == 5)
		}
		const appends = 64
		errs := make([]error, appends)
		var all sync.WaitGroup
		at := func(i int) (estover.TenantID, int, int64) {
			return [...]estover.TenantID{"acme", "umbrella"}[i%2], i / 2 % (roots + 1), int64(i / 32)
		}
		begun, over := make(chan struct{}), make(chan struct{})
		all.Go(func() {
			_ = d.Do(ctx, "acme", func(*db.Tx) error { // what comes meanwhile shares a commit
				select {
				case <-begun:
				default:
					close(begun)
				}
				<-over
				return nil
			})
		})
		<-begun
		for i := range appends {
			tenant, root, epoch := at(i)
			all.Go(func() {
				errs[i] = d.Append(ctx, db.Append{
					Tenant: tenant,
					Live:   []db.Epoch{{Table: "note", ID: "root-1"}, {Table: "note", ID: fmt.Sprint("root-", root), Epoch: epoch}},
					Rows:   []db.Row{{Into: noteTable, Values: []any{string(tenant), fmt.Sprint("leaf-", i), int64(0), []byte{}}}},
				})
			})
		}
		close(over)
		all.Wait()
		want := 0
		for i := range appends {
			tenant, root, epoch := at(i)
			if alive(tenant, root, epoch) {
				if errs[i] != nil {
					t.Errorf("%s on root-%d with the epoch %d, which lives: %v", tenant, root, epoch, errs[i])
				}
				if tenant == "acme" {
					want++
				}
			} else if !errors.Is(errs[i], db.ErrStale) {
				t.Errorf("%s on root-%d with the epoch %d, which does not live: %v, want ErrStale", tenant, root, epoch, errs[i])
			}
		}
		if n := count(t, d); n != roots+want {
			t.Errorf("there are %d notes, want %d roots and %d", n, roots, want)
		}
	})
}
