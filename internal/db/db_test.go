package db_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// note is a table for these tests alone.
const note = `create table note (tenant_id text not null, id text not null, epoch bigint not null default 0, ended_at bigint,
	body text, at bigint, tags text, raw bytea, primary key (tenant_id, id))`

var noteTable = &db.Table{Name: "note", Columns: []db.Column{
	{Name: "tenant_id", Type: "text"}, {Name: "id", Type: "text"}, {Name: "epoch", Type: "bigint"}, {Name: "raw", Type: "bytes"},
}}

func makeNotes(t testing.TB, d *db.DB) {
	t.Helper()
	ddl := note
	if d.Engine() == db.SQLite {
		ddl = strings.Replace(note, "bytea", "blob", 1)
	}
	if err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), ddl)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func insert(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, "insert into note (tenant_id, id) values ($1, $2)", tx.Tenant(), id)
	return err
}

func count(t testing.TB, d *db.DB) (n int) {
	t.Helper()
	if err := d.View(context.Background(), "acme", func(tx *db.Tx) error {
		return tx.QueryRow(context.Background(), "select count(*) from note where tenant_id = $1", tx.Tenant()).Scan(&n)
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDo(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		at := time.Date(2026, 11, 26, 12, 0, 0, 123456000, time.UTC)
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, "insert into note (tenant_id, id, body, at, tags, raw) values ($1, $2, $3, $4, $5, $6)",
				tx.Tenant(), "n1", estover.Agent("agt_1"), at, []string{"a", "b"}, []byte{0, 1, 2})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var body estover.Subject
		var got, never time.Time
		var tags []string
		var raw []byte
		err := d.View(ctx, "acme", func(tx *db.Tx) error {
			return tx.QueryRow(ctx, "select body, at, ended_at, tags, raw from note where tenant_id = $1 and id = $2", tx.Tenant(), "n1").
				Scan(&body, &got, &never, &tags, &raw)
		})
		if err != nil || body != "agent:agt_1" || !got.Equal(at) || !never.IsZero() || fmt.Sprint(tags) != "[a b]" || string(raw) != "\x00\x01\x02" {
			t.Errorf("read back %q %v %v %v %v, %v", body, got, never, tags, raw, err)
		}

		boom := errors.New("boom")
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return errors.Join(insert(ctx, tx, "n2"), boom) }); !errors.Is(err, boom) {
			t.Errorf("Do: %v, want the function's error", err)
		}
		if n := count(t, d); n != 1 {
			t.Errorf("%d notes after work that failed, want 1", n)
		}
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, "n1") }); !db.Taken(err) {
			t.Errorf("inserting a key twice: %v, want one that Taken knows", err)
		}
		if err := d.View(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, "n3") }); err == nil {
			t.Error("a View may write")
		}
	})
}

// A caller whose work fails, panics or gives up must not harm those whose work
// shares its commit.
func TestNeighboursAreNotHarmed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				ctx, id := t.Context(), fmt.Sprintf("n%d", i)
				switch i % 4 {
				case 0:
					if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, id) }); err != nil {
						t.Errorf("good work: %v", err)
					}
				case 1:
					if err := d.Do(ctx, "acme", func(tx *db.Tx) error {
						_ = insert(ctx, tx, id)
						_, err := tx.Exec(ctx, "insert into no_such_table values (1)")
						return err
					}); err == nil {
						t.Error("a statement that cannot run gave no error")
					}
				case 2:
					defer func() {
						if recover() == nil {
							t.Error("a panic did not reach its caller")
						}
					}()
					_ = d.Do(ctx, "acme", func(tx *db.Tx) error { _ = insert(ctx, tx, id); panic("ours") })
				case 3:
					if err := d.Do(gone, "acme", func(tx *db.Tx) error { return insert(ctx, tx, id) }); !errors.Is(err, context.Canceled) {
						t.Errorf("work of a caller who is gone: %v", err)
					}
				}
			})
		}
		wg.Wait()
		if n := count(t, d); n != 16 {
			t.Errorf("%d notes, want the 16 of those who did nothing wrong", n)
		}
	})
}

func TestAppend(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return errors.Join(insert(ctx, tx, "live"), insert(ctx, tx, "dying")) }); err != nil {
			t.Fatal(err)
		}
		row := func(id string) db.Row {
			return db.Row{Into: noteTable, Values: []any{"acme", id, int64(0), []byte(id)}}
		}
		var wg sync.WaitGroup
		var stale, good sync.Map
		for i := range 200 {
			wg.Go(func() {
				a := db.Append{Tenant: "acme", Live: []db.Epoch{{Table: "note", ID: "live"}}, Rows: []db.Row{row(fmt.Sprintf("a%d", i))}}
				switch i % 3 {
				case 1:
					a.Live[0].Epoch = 7
				case 2:
					a.Tenant = "other" // another tenant's row is not alive for us
				}
				switch err := d.Append(ctx, a); {
				case err == nil:
					good.Store(i, true)
				case errors.Is(err, db.ErrStale):
					stale.Store(i, true)
				default:
					t.Errorf("append %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		for i := range 200 {
			_, ok := good.Load(i)
			if want := i%3 == 0; ok != want {
				t.Errorf("append %d written: %v, want %v", i, ok, want)
			}
		}
		if n := count(t, d); n != 2+67 {
			t.Errorf("%d notes, want 69", n)
		}
		// One row that cannot be written harms no neighbour.
		var bad error
		wg = sync.WaitGroup{}
		wg.Go(func() { bad = d.Append(ctx, db.Append{Tenant: "acme", Rows: []db.Row{row("live")}}) })
		for i := range 20 {
			wg.Go(func() {
				if err := d.Append(ctx, db.Append{Tenant: "acme", Rows: []db.Row{row(fmt.Sprintf("b%d", i))}}); err != nil {
					t.Errorf("neighbour of a bad row: %v", err)
				}
			})
		}
		wg.Wait()
		if !db.Taken(bad) {
			t.Errorf("a key that is taken: %v", bad)
		}
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, "update note set ended_at = $2 where tenant_id = $1 and id = 'dying'", tx.Tenant(), tx.Now())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if err := d.Append(ctx, db.Append{Tenant: "acme", Live: []db.Epoch{{Table: "note", ID: "dying"}}, Rows: []db.Row{row("z")}}); !errors.Is(err, db.ErrStale) {
			t.Errorf("append to what has ended: %v, want ErrStale", err)
		}
	})
}

// A step is taken once, whoever tries at the same time, and only with all that
// belongs to it: rows of whoever comes too late are not there, and a row that
// cannot be written leaves the step to the next one.
func TestStep(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return errors.Join(insert(ctx, tx, "code"), insert(ctx, tx, "live")) }); err != nil {
			t.Fatal(err)
		}
		row := func(id string) db.Row {
			return db.Row{Into: noteTable, Values: []any{"acme", id, int64(0), []byte(id)}}
		}
		spend := func(live int64, rows ...db.Row) error {
			return d.Append(ctx, db.Append{
				Tenant: "acme", Live: []db.Epoch{{Table: "note", ID: "live", Epoch: live}}, Rows: rows,
				Steps: []db.Step{{Text: "update note set ended_at = $3 where tenant_id = $1 and id = $2 and ended_at is null", Args: []any{"code", d.Now()}}},
			})
		}
		if err := spend(1, row("x")); !errors.Is(err, db.ErrStale) {
			t.Errorf("on something of another epoch: %v, want ErrStale", err)
		}
		if err := spend(0, row("x"), row("live")); !db.Taken(err) {
			t.Errorf("with a key that is taken: %v", err)
		}
		if n := count(t, d); n != 2 {
			t.Fatalf("%d notes, want 2: what failed has left something", n)
		}
		var wg sync.WaitGroup
		var won atomic.Int64
		for i := range 64 {
			wg.Go(func() {
				switch err := spend(0, row(fmt.Sprintf("s%d", i))); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, db.ErrStale):
					t.Errorf("one of many: %v", err)
				}
			})
			wg.Go(func() {
				if err := d.Append(ctx, db.Append{Tenant: "acme", Rows: []db.Row{row(fmt.Sprintf("n%d", i))}}); err != nil {
					t.Errorf("a neighbour: %v", err)
				}
			})
		}
		wg.Wait()
		if n := count(t, d); won.Load() != 1 || n != 2+64+1 {
			t.Errorf("%d took the step and there are %d notes, want 1 and 67", won.Load(), n)
		}
	})
}

// An insert is a step with a condition, by a null where none may be: it finds no row
// where that does not hold, and harms nobody beside it.
func TestStepThatInserts(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return errors.Join(insert(ctx, tx, "live"), insert(ctx, tx, "denied")) }); err != nil {
			t.Fatal(err)
		}
		below := func(id, unless string, rows ...db.Row) error {
			return d.Append(ctx, db.Append{
				Tenant: "acme", Live: []db.Epoch{{Table: "note", ID: "live"}}, Rows: rows,
				Steps: []db.Step{{
					Text: `insert into note (tenant_id, id, body) values ($1, case when exists (
						select 1 from note where tenant_id = $1 and id = $3) then null else $2 end, $4)`,
					Args: []any{id, unless, "below"},
				}},
			})
		}
		row := func(id string) db.Row {
			return db.Row{Into: noteTable, Values: []any{"acme", id, int64(0), []byte(id)}}
		}
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				unless, want := "nothing", error(nil)
				if i%4 == 0 {
					unless, want = "denied", db.ErrStale
				}
				if err := below(fmt.Sprintf("b%d", i), unless, row(fmt.Sprintf("r%d", i))); !errors.Is(err, want) {
					t.Errorf("number %d, unless %s is there: %v, want %v", i, unless, err, want)
				}
			})
		}
		wg.Wait()
		if err := below("b1", "nothing", row("x")); !db.Taken(err) {
			t.Errorf("a name that is taken: %v", err)
		}
		// A step that has changed something is undone with the others.
		if err := d.Append(ctx, db.Append{Tenant: "acme", Steps: []db.Step{
			{Text: "update note set epoch = epoch + 1 where tenant_id = $1 and id = $2", Args: []any{"live"}},
			{Text: "insert into note (tenant_id, id) values ($1, nullif($2, 'x'))", Args: []any{"x"}},
		}}); !errors.Is(err, db.ErrStale) {
			t.Errorf("a step after another: %v, want ErrStale", err)
		}
		if err := below("last", "nothing"); err != nil {
			t.Errorf("upon what was to be changed: %v", err)
		}
		if n := count(t, d); n != 2+48*2+1 {
			t.Errorf("%d notes, want %d", n, 2+48*2+1)
		}
	})
}

// Several steps are taken together or not at all, also beside neighbours that are
// written by the same commit: 64 take both of two things of which there are 10 and
// 7, and 7 can.
func TestSteps(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return errors.Join(insert(ctx, tx, "ten"), insert(ctx, tx, "seven")) }); err != nil {
			t.Fatal(err)
		}
		take := func(id string, most int64) db.Step {
			return db.Step{Text: "update note set epoch = epoch + 1 where tenant_id = $1 and id = $2 and epoch < $3", Args: []any{id, most}}
		}
		var wg sync.WaitGroup
		var won atomic.Int64
		for i := range 64 {
			wg.Go(func() {
				err := d.Append(ctx, db.Append{
					Tenant: "acme", Steps: []db.Step{take("ten", 10), take("seven", 7)},
					Rows: []db.Row{{Into: noteTable, Values: []any{"acme", fmt.Sprintf("s%d", i), int64(0), []byte("x")}}},
				})
				switch {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, db.ErrStale):
					t.Errorf("one of many: %v", err)
				}
			})
		}
		wg.Wait()
		var ten, seven int64
		if err := d.View(ctx, "acme", func(tx *db.Tx) error {
			return errors.Join(
				tx.QueryRow(ctx, "select epoch from note where tenant_id = $1 and id = 'ten'", "acme").Scan(&ten),
				tx.QueryRow(ctx, "select epoch from note where tenant_id = $1 and id = 'seven'", "acme").Scan(&seven),
			)
		}); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d); won.Load() != 7 || ten != 7 || seven != 7 || n != 2+7 {
			t.Errorf("%d took both, %d of ten and %d of seven are taken, and there are %d notes", won.Load(), ten, seven, n)
		}
	})
}

// Appends that share a commit are all or nothing each, whatever goes wrong with
// others in it: a key that is taken after another row was written, a table that
// is not there, a function that fails or panics.
func TestAppendsAreToldApart(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, "taken") }); err != nil {
			t.Fatal(err)
		}
		row := func(id string) db.Row {
			return db.Row{Into: noteTable, Values: []any{"acme", id, int64(0), []byte(id)}}
		}
		nowhere := db.Row{Into: &db.Table{Name: "no_such_table", Columns: []db.Column{{Name: "id", Type: "text"}}}, Values: []any{"x"}}
		boom := errors.New("boom")
		const rounds, each = 5, 12
		for round := range rounds {
			name := func(kind string, i int) string { return fmt.Sprintf("%s-%d-%d", kind, round, i) }
			var wg sync.WaitGroup
			for i := range each {
				wg.Go(func() {
					rows := []db.Row{row(name("good", i)), row(name("also", i))}
					if err := d.Append(ctx, db.Append{Tenant: "acme", Live: []db.Epoch{{Table: "note", ID: "taken"}}, Rows: rows}); err != nil {
						t.Errorf("a good append: %v", err)
					}
				})
			}
			wg.Go(func() {
				if err := d.Append(ctx, db.Append{Tenant: "acme", Rows: []db.Row{row("taken"), row(name("bad", 0))}}); !db.Taken(err) {
					t.Errorf("a key that is taken: %v", err)
				}
			})
			wg.Go(func() {
				if err := d.Append(ctx, db.Append{Tenant: "acme", Rows: []db.Row{row(name("bad", 1)), row("taken")}}); !db.Taken(err) {
					t.Errorf("a key that is taken, after another row: %v", err)
				}
			})
			wg.Go(func() {
				if err := d.Append(ctx, db.Append{Tenant: "acme", Rows: []db.Row{row(name("bad", 2)), nowhere}}); err == nil {
					t.Error("a table that is not there: no error")
				}
			})
			wg.Go(func() {
				err := d.Do(ctx, "acme", func(tx *db.Tx) error { return errors.Join(insert(ctx, tx, name("bad", 3)), boom) })
				if !errors.Is(err, boom) {
					t.Errorf("a function that fails: %v", err)
				}
			})
			wg.Go(func() {
				if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, name("done", 0)) }); err != nil {
					t.Errorf("a function that does not: %v", err)
				}
			})
			wg.Wait()
		}
		if n, want := count(t, d), 1+rounds*(2*each+1); n != want {
			t.Errorf("%d notes, want %d", n, want)
		}
	})
}

// Whoever increments under a compare-and-swap never loses an increment.
func TestCompareAndSwapRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, "code") }); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		won := make(chan int, 64)
		for i := range 64 {
			wg.Go(func() {
				if err := d.Do(ctx, "acme", func(tx *db.Tx) error {
					n, err := tx.Exec(ctx, "update note set ended_at = $2 where tenant_id = $1 and id = 'code' and ended_at is null", tx.Tenant(), tx.Now())
					if err == nil && n == 0 {
						err = db.ErrStale
					}
					return err
				}); err == nil {
					won <- i
				} else if !errors.Is(err, db.ErrStale) {
					t.Errorf("redemption %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Errorf("%d of 64 redeemed one code, want 1", len(won))
		}
	})
}

func TestModel(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		ctx := t.Context()
		rapid.Check(t, func(rt *rapid.T) {
			tenant := estover.TenantID(estover.NewID("t"))
			model := map[string]string{}
			for range rapid.IntRange(1, 12).Draw(rt, "steps") {
				id, body := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "id"), rapid.StringMatching("[a-z]{0,4}").Draw(rt, "body")
				fail := rapid.Bool().Draw(rt, "fail")
				err := d.Do(ctx, tenant, func(tx *db.Tx) error {
					_, err := tx.Exec(ctx, `insert into note (tenant_id, id, body) values ($1, $2, $3)
						on conflict (tenant_id, id) do update set body = excluded.body`, tx.Tenant(), id, body)
					if err == nil && fail {
						err = db.ErrStale
					}
					return err
				})
				if fail != (err != nil) {
					rt.Fatalf("Do: %v", err)
				}
				if !fail {
					model[id] = body
				}
			}
			if err := d.View(ctx, tenant, func(tx *db.Tx) error {
				rows, err := tx.Query(ctx, "select id, body from note where tenant_id = $1", tx.Tenant())
				if err != nil {
					return err
				}
				defer rows.Close()
				n := 0
				for rows.Next() {
					var id, body string
					if err := rows.Scan(&id, &body); err != nil {
						return err
					}
					if n++; model[id] != body {
						rt.Errorf("%s is %q, want %q", id, body, model[id])
					}
				}
				if n != len(model) {
					rt.Errorf("%d rows, want %d", n, len(model))
				}
				return rows.Err()
			}); err != nil {
				rt.Fatal(err)
			}
		})
	})
}

// Several nodes that start at once on an empty database all find it ready.
func TestMigrateTogether(t *testing.T) {
	dbtest.EachEmpty(t, func(t *testing.T, url string) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				d, err := db.Open(t.Context(), url, db.Options{})
				if err != nil {
					t.Error(err)
					return
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

// What was presented once stays so when its table becomes another (migration 0056):
// it is still there, may not be there twice, and is found when it is due.
func TestMigratedUsedNames(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, url string) {
		ctx := t.Context()
		d, err := db.Open(ctx, url, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		bytes, clustered := "blob", " without rowid"
		if d.Engine() == db.Postgres {
			bytes, clustered = "bytea", ""
		}
		used := func(tx *db.Tx, name string) error {
			_, err := tx.Exec(ctx, "insert into used_jti (tenant_id, hash, expires_at) values ($1, $2, $3)", tx.Tenant(), []byte(name), int64(len(name)))
			return err
		}
		err = d.Do(ctx, "acme", func(tx *db.Tx) error {
			for _, s := range []string{
				"drop table used_jti",
				"create table used_jti (tenant_id text not null, hash " + bytes + " not null, expires_at bigint not null, primary key (tenant_id, hash))" + clustered,
				"create index used_jti_due on used_jti (expires_at)",
				"create table refresh_token (tenant_id text, grant_id text, generation bigint, expires_at bigint)",
				"create index refresh_token_due on refresh_token (expires_at)",
				"create unique index refresh_token_grant on refresh_token (tenant_id, grant_id, generation)",
				"delete from schema_migration where name = '0056_neighbours'",
			} {
				if _, err := tx.Exec(ctx, s); err != nil {
					return fmt.Errorf("%s: %w", s, err)
				}
			}
			return errors.Join(used(tx, "short"), used(tx, "much longer"))
		})
		if err = errors.Join(err, d.Close()); err != nil {
			t.Fatal(err)
		}
		if d, err = db.Open(ctx, url, db.Options{}); err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for _, name := range []string{"short", "much longer"} {
			if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return used(tx, name) }); !db.Taken(err) {
				t.Errorf("presenting %q again: %v, want that it is taken", name, err)
			}
		}
		err = d.Do(ctx, "acme", func(tx *db.Tx) error {
			n, err := tx.Exec(ctx, "delete from used_jti where expires_at < $1", int64(len("much longer")))
			if n != 1 {
				t.Errorf("%d names were due, want 1", n)
			}
			return errors.Join(err, used(tx, "short"))
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestMigratedRefreshTokens: of the tokens of a grant that were made before there were
// families, the one that was good is, and the one that was spent is known for that (A2).
func TestMigratedRefreshTokens(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, url string) {
		ctx := t.Context()
		d, err := db.Open(ctx, url, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		bytes := "blob"
		if d.Engine() == db.Postgres {
			bytes = "bytea"
		}
		err = d.Do(ctx, "acme", func(tx *db.Tx) error {
			for _, s := range []string{
				"drop table refresh_family",
				"drop table refresh_window",
				"create table refresh_token (tenant_id text, hash " + bytes + ", grant_id text, generation bigint, jkt text, created_at bigint, expires_at bigint, spent_at bigint, spent_jkt text, successor " + bytes + ")",
				`insert into oauth_grant (tenant_id, id, kind, root_id, session_id, client_id, subject, actors, cnf, epoch, created_at, expires_at)
					values ('acme', 'gnt_1', 'authorization_code', 'gnt_1', 'ses_1', 'agt_1', 'user:usr_1', '[]', '{}', 1, 1, 100)`,
				"delete from schema_migration where name = '0060_refresh_family'",
			} {
				if _, err := tx.Exec(ctx, s); err != nil {
					return fmt.Errorf("%s: %w", s, err)
				}
			}
			const insert = "insert into refresh_token values ($1, $2, 'gnt_1', $3, 'key', 5, 100, $4, $5, null)"
			_, spent := tx.Exec(ctx, insert, tx.Tenant(), []byte("spent"), 1, 50, "shown")
			_, good := tx.Exec(ctx, insert, tx.Tenant(), []byte("good"), 2, nil, nil)
			return errors.Join(spent, good)
		})
		if err = errors.Join(err, d.Close()); err != nil {
			t.Fatal(err)
		}
		if d, err = db.Open(ctx, url, db.Options{}); err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		var got []string
		err = d.View(ctx, "acme", func(tx *db.Tx) error {
			rows, err := tx.Query(ctx, "select id, grant_id, generation, jkt, hash, expires_at, coalesce(turned_at, 0), coalesce(turned_jkt, '') from refresh_family where tenant_id = $1 order by generation", tx.Tenant())
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id, hash []byte
				var grant, key, shown string
				var generation, expires, turned int64
				if err := rows.Scan(&id, &grant, &generation, &key, &hash, &expires, &turned, &shown); err != nil {
					return err
				}
				got = append(got, fmt.Sprintf("%s %s %d %s %q %d %d %s", id, grant, generation, key, hash, expires, turned, shown))
			}
			return rows.Err()
		})
		if want := []string{`spent gnt_1 1 key "" 100 50 shown`, `good gnt_1 2 key "good" 100 0 `}; err != nil || !slices.Equal(got, want) {
			t.Errorf("the tokens of before are %q, %v; want %q", got, err, want)
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	for _, url := range []string{"", "sqlite:", "mysql://u:hunter2@h/d"} {
		_, err := db.Open(t.Context(), url, db.Options{})
		if err == nil || !strings.Contains(err.Error(), "sqlite:FILE or postgres://") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open(%q): %v", url, err)
		}
	}
	d := dbtest.Open(t)
	if err := d.Do(t.Context(), "", func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), "insert into schema_migration (name, digest) values ('9999_tomorrow', 'x')")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var file string
	if err := d.View(t.Context(), "", func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select file from pragma_database_list where name = 'main'").Scan(&file)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Open(t.Context(), "sqlite:"+file, db.Options{}); err == nil || !strings.Contains(err.Error(), "newer program") {
		t.Errorf("opening a database of a newer program: %v", err)
	}
}

// Names and times stand in the file in clear, so that it is nobody else's.
func TestTheFileIsPrivate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "test.db")
	d, err := db.Open(t.Context(), "sqlite:"+file, db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, f := range []string{file, file + "-wal", file + "-shm"} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want it to be for its owner alone", filepath.Base(f), info, err)
		}
	}
}

// A text is prepared once and used again and again, also while an earlier use
// of it goes on, in what reads and in what writes; and whoever gives up or
// falls over while reading leaves nothing behind for the next one.
func TestRowsWithinRows(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		const all = "select id from note where tenant_id = $1 order by id"
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		must(d.Do(t.Context(), "acme", func(tx *db.Tx) error {
			for _, id := range []string{"a", "b", "c"} {
				if err := insert(t.Context(), tx, id); err != nil {
					return err
				}
			}
			return nil
		}))
		var pairs string
		inside := func(tx *db.Tx) error {
			pairs = ""
			outer, err := tx.Query(t.Context(), all, tx.Tenant())
			if err != nil {
				return err
			}
			defer func() { _ = outer.Close() }()
			for outer.Next() {
				var o, i string
				if err := outer.Scan(&o); err != nil {
					return err
				}
				inner, err := tx.Query(t.Context(), all, tx.Tenant())
				if err != nil {
					return err
				}
				for inner.Next() {
					if err := inner.Scan(&i); err != nil {
						return err
					}
					pairs += o + i + " "
				}
				if err := inner.Err(); err != nil {
					return err
				}
			}
			return outer.Err()
		}
		const want = "aa ab ac ba bb bc ca cb cc "
		for range 3 {
			if d.Engine() == db.SQLite { // PostgreSQL's driver has one answer open at a time
				must(d.View(t.Context(), "acme", inside))
				if pairs != want {
					t.Errorf("reading found %q, want %q", pairs, want)
				}
				must(d.Do(t.Context(), "acme", inside))
				if pairs != want {
					t.Errorf("writing found %q, want %q", pairs, want)
				}
			}
			for range 20 { // more than there are connections
				ctx, cancel := context.WithCancel(t.Context())
				err := d.View(ctx, "acme", func(tx *db.Tx) error {
					rows, err := tx.Query(ctx, all, tx.Tenant())
					if err != nil {
						return err
					}
					n := 0
					for rows.Next() {
						n++
						cancel()
					}
					if n != 1 {
						t.Errorf("%d rows came after the caller had gone", n-1)
					}
					return rows.Err()
				})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("a caller who gives up gets %v", err)
				}
				func() {
					defer func() {
						if recover() == nil {
							t.Error("a panic was swallowed")
						}
					}()
					_ = d.View(t.Context(), "acme", func(tx *db.Tx) error {
						if _, err := tx.Query(t.Context(), all, tx.Tenant()); err != nil {
							return err
						}
						panic("a fault of the caller's")
					})
				}()
			}
			if n := count(t, d); n != 3 {
				t.Errorf("%d notes, want 3", n)
			}
		}
	})
}

// After the database is closed, work is refused and not lost in a queue.
func TestClosed(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, url string) {
		d, err := db.Open(t.Context(), url, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.Append(t.Context(), db.Append{Tenant: "acme"}); estover.KindOf(err) != estover.Unavailable {
			t.Errorf("Append after Close: %v, want unavailable", err)
		}
	})
}

// Who reads one after the other does so by one connection, and those who read at
// once have one each; a panic gives the connection back.
func TestReaders(t *testing.T) {
	d, err := db.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "e.db"), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	read := func(within func()) {
		err := d.View(t.Context(), "t", func(tx *db.Tx) error {
			var one int
			err := tx.QueryRow(t.Context(), "select 1").Scan(&one)
			within()
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	for range 30 {
		read(func() {})
		func() {
			defer func() { _ = recover() }()
			read(func() { panic("by who reads") })
		}()
	}
	if n := db.Reading(d); n != 1 {
		t.Errorf("60 who read in turn have made %d connections, want 1", n)
	}
	read(func() { read(func() { read(func() {}) }) })
	read(func() { read(func() {}) })
	if n := db.Reading(d); n != 3 {
		t.Errorf("3 who read at once have made %d connections, want 3", n)
	}
}

// A look sees what has been committed, has one statement, changes nothing, and
// gives its connection back.
func TestLook(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		for i := range 30 {
			id := fmt.Sprint(i)
			err := d.Append(t.Context(), db.Append{Tenant: "t", Rows: []db.Row{{Into: noteTable, Values: []any{"t", id, int64(i), nil}}}})
			if err != nil {
				t.Fatal(err)
			}
			err = d.Look(t.Context(), "t", func(tx *db.Tx) error {
				var epoch int64
				if err := tx.QueryRow(t.Context(), "select epoch from note where tenant_id = $1 and id = $2", tx.Tenant(), id).Scan(&epoch); err != nil {
					return err
				}
				if epoch != int64(i) {
					t.Errorf("a look after the commit sees epoch %d, want %d", epoch, i)
				}
				if err := tx.QueryRow(t.Context(), "select 1").Scan(&epoch); err == nil {
					t.Error("a look had a second statement")
				}
				if _, err := tx.Exec(t.Context(), "delete from note"); err == nil {
					t.Error("a look changed something")
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		err := d.Look(t.Context(), "t", func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select epoch from note where tenant_id = $1 and id = 'none'", tx.Tenant()).Scan(new(int64))
		})
		if !errors.Is(err, db.ErrNoRows) {
			t.Errorf("looking for what is not there: %v, want ErrNoRows", err)
		}
		if d.Engine() != db.SQLite {
			return
		}
		err = d.Look(t.Context(), "t", func(tx *db.Tx) error { // and leaves the rows open
			_, err := tx.Query(t.Context(), "select id from note")
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if n := db.Reading(d); n != 1 {
			t.Errorf("those who looked in turn have made %d connections, want 1", n)
		}
	})
}

// A full disk fails the work that needs it with an answer that says so, and
// everything that was acknowledged before is still there.
func TestDiskFull(t *testing.T) {
	d := dbtest.Open(t)
	makeNotes(t, d)
	ctx := t.Context()
	limit := func(pages int) {
		if err := d.Do(ctx, "", func(tx *db.Tx) error {
			var got int
			return tx.QueryRow(ctx, fmt.Sprintf("pragma max_page_count = %d", pages)).Scan(&got)
		}); err != nil {
			t.Fatal(err)
		}
	}
	var pages int
	if err := d.View(ctx, "", func(tx *db.Tx) error { return tx.QueryRow(ctx, "pragma page_count").Scan(&pages) }); err != nil {
		t.Fatal(err)
	}
	limit(pages + 16)
	var wg sync.WaitGroup
	var mu sync.Mutex
	written, refused := 0, 0
	for i := range 64 {
		wg.Go(func() {
			err := d.Do(ctx, "acme", func(tx *db.Tx) error {
				_, err := tx.Exec(ctx, "insert into note (tenant_id, id, body) values ($1, $2, $3)", tx.Tenant(), fmt.Sprintf("n%d", i), strings.Repeat("x", 4000))
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				written++
			case estover.KindOf(err) == estover.Unavailable:
				refused++
			default:
				t.Errorf("on a full disk: %v, want unavailable", err)
			}
		})
	}
	wg.Wait()
	if n := count(t, d); n != written || refused == 0 || written == 0 {
		t.Errorf("%d rows, %d acknowledged, %d refused", n, written, refused)
	}
	limit(1 << 20)
	if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, "after") }); err != nil {
		t.Errorf("once there is room again: %v", err)
	}
}

// TestGroupCommit checks the promise of the package: 64 writers together reach
// at least five times the rate of one transaction each.
func TestGroupCommit(t *testing.T) {
	dir := t.TempDir()
	d, err := db.Open(t.Context(), "sqlite:"+filepath.Join(dir, "group.db"), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	makeNotes(t, d)
	ctx := t.Context()
	work := func(id string) {
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return insert(ctx, tx, id) }); err != nil {
			t.Error(err)
		}
	}
	rate := func(callers, each int, name string) float64 {
		start := time.Now()
		var wg sync.WaitGroup
		for c := range callers {
			wg.Go(func() {
				for i := range each {
					work(fmt.Sprintf("%s-%d-%d", name, c, i))
				}
			})
		}
		wg.Wait()
		return float64(callers*each) / time.Since(start).Seconds()
	}
	rate(1, 20, "warm")
	// Whatever else the machine does at the time makes one measurement worse
	// than another, and none better than it is: the best of a few counts.
	best := 0.0
	for i := range 5 {
		alone := rate(1, 300, fmt.Sprintf("alone-%d", i))
		together := rate(64, 100, fmt.Sprintf("together-%d", i))
		if best = max(best, together/alone); best >= 5 {
			break
		}
	}
	t.Logf("64 callers: %.1f times the rate of one transaction each", best)
	if best < 5 {
		t.Errorf("64 callers reach %.1f times the rate of one transaction each, want at least 5", best)
	}
}
