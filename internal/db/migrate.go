package db

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed migrations/*.sql
var migrations embed.FS

// A migrator runs the statements of one migration in one transaction, while no
// other node does the same.
type migrator interface {
	begin(ctx context.Context) error
	exec(ctx context.Context, query string, args ...any) error
	query(ctx context.Context, query string) (*sql.Rows, error)
	commit(ctx context.Context) error
	rollback()
}

// migrate brings the schema up to date: every file of migrations/ in the order
// of its number, once. A file that has been applied and differs from ours is
// an error: a released migration never changes.
func migrate(ctx context.Context, m migrator, engine Engine) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.rollback()
	applied := map[string]string{}
	rows, err := m.query(ctx, "select name, digest from schema_migration order by name")
	if err != nil {
		return err
	}
	for rows.Next() {
		var name, digest string
		if err := rows.Scan(&name, &digest); err != nil {
			_ = rows.Close()
			return err
		}
		applied[name] = digest
	}
	if err := rows.Err(); err != nil {
		return err
	}
	_ = rows.Close()
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	for _, path := range names {
		text, err := migrations.ReadFile(path)
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(strings.TrimPrefix(path, "migrations/"), ".sql")
		sum := sha256.Sum256(text)
		digest := hex.EncodeToString(sum[:])
		if have, ok := applied[name]; ok {
			if have != digest {
				return fmt.Errorf("the database was made by another version of migration %s; use the program that made it, or restore a backup", name)
			}
			delete(applied, name)
			continue
		}
		for _, stmt := range statements(string(text), engine) {
			if err := m.exec(ctx, stmt); err != nil {
				return fmt.Errorf("migration %s: %w", name, err)
			}
		}
		if err := m.exec(ctx, "insert into schema_migration (name, digest) values ($1, $2)", name, digest); err != nil {
			return err
		}
	}
	for name := range applied {
		return fmt.Errorf("the database was written by a newer program (it has migration %s); use that one", name)
	}
	return m.commit(ctx)
}

var (
	comment   = regexp.MustCompile(`(?m)--.*$`)
	bytesW    = regexp.MustCompile(`\bbytes\b`)
	identity  = regexp.MustCompile(`\bidentity\b`)
	clustered = regexp.MustCompile(`\) clustered;`)
)

// statements splits a migration where a semicolon ends a line, and writes its
// three words of our own in the engine's language. A table that is clustered is
// kept in its primary key, where the engine can do that: a row is then written
// to one tree instead of two. SQLite's autoincrement, which
// would write to another table for each row, makes a difference only where the
// last row is deleted, and a table with an identity keeps its rows.
func statements(text string, engine Engine) []string {
	blob, key, tree := "blob", "integer primary key", ") without rowid;"
	if engine == Postgres {
		blob, key, tree = "bytea", "bigint generated always as identity primary key", ");"
	}
	text = comment.ReplaceAllString(text, "")
	text = bytesW.ReplaceAllString(text, blob)
	text = identity.ReplaceAllLiteralString(text, key)
	text = clustered.ReplaceAllLiteralString(text, tree)
	var out []string
	for _, s := range strings.Split(text, ";\n") {
		if s = strings.TrimSuffix(strings.TrimSpace(s), ";"); s != "" {
			out = append(out, s)
		}
	}
	return out
}

const migrationTable = `create table if not exists schema_migration (name text primary key, digest text not null)`

type sqliteMigrator struct{ conn *sql.Conn }

func (m sqliteMigrator) begin(ctx context.Context) error {
	if err := m.exec(ctx, "begin immediate"); err != nil {
		return err
	}
	return m.exec(ctx, migrationTable)
}

func (m sqliteMigrator) exec(ctx context.Context, query string, args ...any) error {
	_, err := m.conn.ExecContext(ctx, query, args...)
	return err
}

func (m sqliteMigrator) query(ctx context.Context, query string) (*sql.Rows, error) {
	return m.conn.QueryContext(ctx, query)
}

func (m sqliteMigrator) commit(ctx context.Context) error { return m.exec(ctx, "commit") }

func (m sqliteMigrator) rollback() { _ = m.exec(context.Background(), "rollback") }

// migrationLock is the number of the lock that a node holds while it migrates.
const migrationLock = 0x6573746f766572

type postgresMigrator struct{ conn *sql.Conn }

func (m postgresMigrator) begin(ctx context.Context) error {
	if err := m.exec(ctx, "begin"); err != nil {
		return err
	}
	// Two nodes that create the table at once would collide in the catalogue,
	// so that there is nothing of our own to lock yet.
	if err := m.exec(ctx, "select pg_advisory_xact_lock($1)", migrationLock); err != nil {
		return err
	}
	return m.exec(ctx, migrationTable)
}

// exec runs what has no arguments as it comes, without having it prepared first: no
// statement of a migration comes twice.
func (m postgresMigrator) exec(ctx context.Context, query string, args ...any) error {
	if len(args) == 0 {
		args = []any{pgx.QueryExecModeSimpleProtocol}
	}
	_, err := m.conn.ExecContext(ctx, query, args...)
	return err
}

func (m postgresMigrator) query(ctx context.Context, query string) (*sql.Rows, error) {
	return m.conn.QueryContext(ctx, query)
}

func (m postgresMigrator) commit(ctx context.Context) error { return m.exec(ctx, "commit") }

func (m postgresMigrator) rollback() { _ = m.exec(context.Background(), "rollback") }
