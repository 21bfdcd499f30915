package db_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// Rows that several callers join are written as few, together with what each has done;
// and one that cannot be written undoes the work of its own caller and of nobody else.
func TestJoin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		packed := &db.Table{Name: "note", Columns: noteTable.Columns, Pack: func(rows []db.Row) []db.Row {
			var ids []string
			for _, r := range rows {
				if ids = append(ids, r.Values[1].(string)); r.Values[1] == "taken" {
					return []db.Row{r}
				}
			}
			return []db.Row{{Into: rows[0].Into, Values: []any{rows[0].Values[0], strings.Join(ids, "+"), int64(0), []byte{}}}}
		}}
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, "taken") }); err != nil {
			t.Fatal(err)
		}
		const callers = 12
		boom := errors.New("boom")
		for _, bad := range []string{"", "taken", "fails", "panics"} {
			errs := together(t, d, callers, func(i int) error {
				return d.Do(ctx, "acme", func(tx *db.Tx) error {
					id := fmt.Sprintf("joined-%s-%d", bad, i)
					if i == 5 && bad == "taken" {
						id = bad
					}
					if err := errors.Join(insert(ctx, tx, fmt.Sprintf("did-%s-%d", bad, i)), tx.Join(ctx, db.Row{Into: packed, Values: []any{"acme", id, int64(0), []byte{}}})); err != nil {
						return err
					}
					switch {
					case i == 5 && bad == "fails":
						return boom
					case i == 5 && bad == "panics":
						panic(boom)
					}
					return nil
				})
			})
			for i, err := range errs {
				if wrong := bad != "" && i == 5; (err != nil) != wrong {
					t.Errorf("%q: caller %d: %v", bad, i, err)
				}
			}
			var ids []string
			if err := d.View(ctx, "acme", func(tx *db.Tx) error {
				rows, err := tx.Query(ctx, "select id from note where tenant_id = $1 order by id", tx.Tenant())
				if err != nil {
					return err
				}
				defer rows.Close()
				for rows.Next() {
					var id string
					if err := rows.Scan(&id); err != nil {
						return err
					}
					ids = append(ids, id)
				}
				return rows.Err()
			}); err != nil {
				t.Fatal(err)
			}
			all := "+" + strings.Join(ids, "+") + "+"
			for i := range callers {
				want := 1
				if bad != "" && i == 5 {
					want = 0
				}
				for _, what := range []string{"did", "joined"} {
					if n := strings.Count(all, fmt.Sprintf("+%s-%s-%d+", what, bad, i)); n != want {
						t.Errorf("%q: caller %d: %q is there %d times, want %d", bad, i, what, n, want)
					}
				}
			}
			rows := 0
			for _, id := range ids {
				if strings.HasPrefix(id, "joined-"+bad+"-") {
					rows++
				}
			}
			if d.Engine() == db.SQLite && bad != "taken" && rows != 1 {
				t.Errorf("%q: what %d callers joined is %d rows, want 1", bad, callers, rows)
			}
		}
	})
}

// A later is a row that has its values when it is asked for them.
type later struct {
	id    string
	asked int
}

func (n *later) Values() []any {
	n.asked++
	return []any{"acme", n.id, int64(0), []byte{}}
}

// What has its values elsewhere is asked for them when it is written, and not if it goes
// into a pack.
func TestRowFrom(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		packed := &db.Table{Name: "note", Columns: noteTable.Columns, Pack: func(rows []db.Row) []db.Row {
			var ids []string
			for _, r := range rows {
				ids = append(ids, r.From.(*later).id)
			}
			return []db.Row{{Into: rows[0].Into, From: &later{id: strings.Join(ids, "+")}}}
		}}
		notes := map[string][]*later{}
		rows := func(kind string, n int, into *db.Table) (out []db.Row) {
			for i := range n {
				one := &later{id: fmt.Sprint(kind, i)}
				notes[kind] = append(notes[kind], one)
				out = append(out, db.Row{Into: into, From: one})
			}
			return out
		}
		for _, list := range [][]db.Row{rows("alone", 1, packed), rows("many", 12, noteTable), rows("packed", 12, packed)} {
			if err := d.Append(ctx, db.Append{Tenant: "acme", Rows: list}); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error {
			return errors.Join(tx.Insert(ctx, rows("inserted", 1, packed)[0]), tx.Join(ctx, rows("joined", 1, packed)[0]))
		}); err != nil {
			t.Fatal(err)
		}
		var ids []string
		if err := d.View(ctx, "acme", func(tx *db.Tx) (err error) {
			ids, err = db.AllOf[string](ctx, tx, "select id from note where tenant_id = $1", tx.Tenant())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var want []string
		for kind, list := range notes {
			var pack []string
			for _, n := range list {
				if kind == "packed" {
					if pack = append(pack, n.id); n.asked != 0 {
						t.Errorf("%s is in a pack, and was asked for its values", n.id)
					}
					continue
				}
				if want = append(want, n.id); n.asked == 0 {
					t.Errorf("%s was not asked for its values", n.id)
				}
			}
			if pack != nil {
				want = append(want, strings.Join(pack, "+"))
			}
		}
		slices.Sort(ids)
		slices.Sort(want)
		if !slices.Equal(ids, want) {
			t.Errorf("there are %q, want %q", ids, want)
		}
	})
}

// together has so many callers wait for one commit.
func together(t *testing.T, d *db.DB, callers int, do func(i int) error) []error {
	t.Helper()
	errs, began, release := make([]error, callers), make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		if err := d.Do(t.Context(), "acme", func(*db.Tx) error {
			close(began)
			<-release
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	<-began
	for i := range callers {
		all.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					errs[i] = fmt.Errorf("panic: %v", p)
				}
			}()
			errs[i] = do(i)
		})
		for deadline := time.Now().Add(time.Minute); d.Engine() == db.SQLite && db.Waiting(d) <= i && time.Now().Before(deadline); {
			runtime.Gosched()
		}
	}
	close(release)
	all.Wait()
	return errs
}
