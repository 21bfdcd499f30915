package db_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// TestAll: what a statement answers is a list, whatever ends it.
func TestAll(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		const three = "select 1 union all select 2 union all select 3 order by 1"
		err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			if got, err := db.AllOf[int](t.Context(), tx, three); err != nil || !slices.Equal(got, []int{1, 2, 3}) {
				t.Errorf("one column: %v, %v", got, err)
			}
			if got, err := db.AllOf[int](t.Context(), tx, "select 1 where 1 = 0"); err != nil || got == nil || len(got) != 0 {
				t.Errorf("without rows: %#v, %v; want a list that is empty", got, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		tired := errors.New("tired")
		seen := 0
		err = d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			_, err := db.All(t.Context(), tx, func(func(...any) error) (int, error) { seen++; return 0, tired }, three)
			return err
		})
		if !errors.Is(err, tired) || seen != 1 {
			t.Errorf("a row that is refused: %v after %d, want it to end the list", err, seen)
		}
		ctx, stop := context.WithCancel(t.Context())
		err = d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			got, err := db.All(ctx, tx, func(scan func(...any) error) (n int, err error) {
				stop()
				err = scan(&n)
				return n, err
			}, three)
			if got != nil {
				t.Errorf("a list that was cut short is given: %v", got)
			}
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("whoever asked gave up between two rows: %v", err)
		}
	})
}

// TestExists: a row is there or not, and what went wrong is neither.
func TestExists(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		stopped, stop := context.WithCancel(t.Context())
		stop()
		for _, c := range []struct {
			what  string
			ctx   context.Context
			query string
			arg   string
			want  bool
			fails bool
		}{
			{"a row", t.Context(), "select 1 from (select 'acme' as name) t where name = $1", "acme", true, false},
			{"two rows", t.Context(), "select 1 from (select 'acme' as name union all select 'acme') t where name = $1", "acme", true, false},
			{"no row", t.Context(), "select 1 from (select 'acme' as name) t where name = $1", "globex", false, false},
			{"no such table", t.Context(), "select 1 from nowhere where name = $1", "acme", false, true},
			{"who asked has given up", stopped, "select 1 from (select 'acme' as name) t where name = $1", "acme", false, true},
		} {
			_ = d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
				got, err := db.Exists(c.ctx, tx, c.query, c.arg)
				if got != c.want || (err != nil) != c.fails {
					t.Errorf("%s: %v, %v; want %v, and an error: %v", c.what, got, err, c.want, c.fails)
				}
				return err
			})
		}
	})
}
