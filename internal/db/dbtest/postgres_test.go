package dbtest

import (
	"context"
	"database/sql"
	"slices"
	"testing"

	"estover.dev/internal/db"
)

// A schema that a test leaves as it found it, but for rows, goes to the next one
// without them, with what the migrations put there, and counts from one again. One
// whose tables are others, or that somebody is still connected to, goes to nobody.
func TestSchemasAreCleared(t *testing.T) {
	was := ""
	var stays *db.DB
	defer func() { _ = stays.Close() }()
	use := func(name string, leave string, keep bool) {
		t.Run(name, func(t *testing.T) {
			url := Postgres(t)
			if was != "" && (url == was) != keep {
				t.Errorf("the schema is %s after %s, want the same: %t", url, was, keep)
			}
			was = url
			d, err := db.Open(t.Context(), url, db.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			err = d.Do(t.Context(), "acme", func(tx *db.Tx) error {
				for query, want := range map[string]string{
					"select count(*)::text from audit":  "0",
					"select count(*)::text from tenant": "1",
					"select coalesce(max(last_value), 0)::text from pg_sequences where schemaname = current_schema()": "0",
					"select string_agg(id, ',') from tenant where status <> 'no'":                                     "default",
				} {
					var got string
					if err := tx.QueryRow(t.Context(), query).Scan(&got); err != nil || got != want {
						t.Errorf("%s: %q, %v, want %q", query, got, err, want)
					}
				}
				_, err := tx.Exec(t.Context(), leave)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	event := `insert into audit (tenant_id, leaf_hash, id, at, action, outcome, actor, target, session_id, leaf, payload) 
		values ('acme', '\x` + sum + `', 'a', 1, 'a', 'done', 'a', 'a', 'a', '\x00', '\x00')`
	use("first", event, true)
	use("rows are gone", "delete from tenant", true)
	use("seeds are back", "insert into tenant select * from tenant where false", true)
	use("another table", "create table more (id text)", true)
	use("not after that", "drop index audit_touched", false)
	use("nor that", "insert into schema_migration (name, digest) values ('9999_tomorrow', '')", false)
	use("nor that one", "select 1", false)
	t.Run("somebody stays", func(t *testing.T) {
		var err error
		if stays, err = db.Open(t.Context(), Postgres(t), db.Options{}); err != nil {
			t.Fatal(err)
		}
	})
	use("not beside somebody", "select 1", false)
}

// sum is a hash.
const sum = "0000000000000000000000000000000000000000000000000000000000000000"

// A connection that a test leaves is the next test's, and is as new: its transaction is
// over. One that is in the midst of something, or broken, is nobody's.
func TestConnectionsAreKept(t *testing.T) {
	var before []string
	use := func(name string, then func(*sql.Conn), kept bool) {
		t.Run(name, func(t *testing.T) {
			pool, err := sql.Open(keptDriver, Postgres(t))
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			conn, err := pool.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			var its string
			if err := conn.QueryRowContext(t.Context(), "select pg_backend_pid()::text").Scan(&its); err != nil {
				t.Fatal(err)
			}
			if got := slices.Contains(before, its); got != kept {
				t.Errorf("the connection %s was had before: %t, want %t", its, got, kept)
			}
			before = append(before, its)
			then(conn)
		})
	}
	run := func(query string) func(*sql.Conn) {
		return func(conn *sql.Conn) { _, _ = conn.ExecContext(context.Background(), query) }
	}
	use("first", run("select 1"), false)
	use("after one that did its work", run("begin"), true)
	use("after one in a transaction", run("select pg_terminate_backend(pg_backend_pid())"), false)
	use("after one that was ended", run("select 1"), false)
	use("and after that", run("no statement"), true)
	use("after an error", run("select 1"), true)
}
