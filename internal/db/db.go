// Package db keeps everything that Estover knows, in one SQL text for two
// engines: SQLite in a file, which is the default, and PostgreSQL.
//
// Three verbs reach it, and each is one tenant and one instant:
//
//   - [DB.View] reads a consistent snapshot.
//   - [DB.Do] changes something. Its function sees [Tx.Now], the same for all
//     that it writes, and may run more than once: it has no effect outside of
//     its transaction, and does no I/O, cryptography or policy.
//   - [DB.Append] is for the hot paths: it inserts rows, provided that others
//     still have the epoch that the caller saw, and that each [Step] that it has
//     finds its row.
//
// None of them is called inside another: whoever holds a connection never
// waits for a second one, so a crowd of requests cannot starve itself.
//
// # Group commit
//
// SQLite has one writer, and a durable commit costs one fsync. So the work of
// all callers who wait goes into one transaction, a savepoint each, and they
// are answered together after its commit:
//
//	begin ─▶ savepoint · a's work · release ─▶ savepoint · b's work · release ─▶ … ─▶ commit ─▶ answers
//	                        └─ fails: rollback to savepoint; only a hears of it
//
// On PostgreSQL each Do is a transaction of its own, READ COMMITTED, repeated
// when the server says that it clashed with another; only Append gathers its
// callers there, into one statement for the checks and one for each table.
//
// # The SQL
//
// It is PostgreSQL's dialect in the subset that SQLite shares, with $1 for
// arguments. Time is a bigint of microseconds, a list of words is JSON text;
// [Tx] converts both. What differs in a schema is written with two words of
// our own, bytes, identity and clustered.
package db

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "modernc.org/sqlite"             // the driver "sqlite"

	"estover.dev"
)

// An Engine is the kind of database underneath.
type Engine string

// The engines.
const (
	SQLite   Engine = "sqlite"
	Postgres Engine = "postgres"
)

// ErrNoRows is returned by Scan when a query that asks for one row finds none.
var ErrNoRows = sql.ErrNoRows

// ErrStale is returned by [DB.Append] when a row that had to be alive has
// ended, or has another epoch than the caller saw.
var ErrStale = &estover.Error{Kind: estover.Conflict, Code: "stale", Detail: "What this rests on has changed in the meantime. Try again."}

// ErrUnavailable is returned when the database cannot answer.
var ErrUnavailable = &estover.Error{Kind: estover.Unavailable, Code: "database_unavailable", Detail: "The database cannot answer. Nothing was changed; try again, and if it goes on, run `estover doctor`."}

// Options are what a program may set when it opens a database. The zero value
// is good.
type Options struct {
	Now    func() time.Time // the clock of all transactions; time.Now if nil
	Logger *slog.Logger     // for what no caller can be told; slog.Default if nil
	Driver string           // of database/sql, by which PostgreSQL is reached; "pgx" if empty
}

// A DB is an open database. It is safe for use by many at once.
type DB struct {
	engine   Engine
	now      func() time.Time
	log      *slog.Logger
	pool     *sql.DB  // SQLite: the connections of readers. PostgreSQL: all.
	readers  *readers // SQLite only
	writer   *writer  // SQLite only
	appender *appender

	kept        *sql.DB  // PostgreSQL: what is reserved
	keptReaders *readers // SQLite: the same, for reading
}

// Open connects to "sqlite:FILE" or "postgres://…", and brings the schema up
// to date.
func Open(ctx context.Context, url string, o Options) (*DB, error) {
	d := &DB{now: o.Now, log: o.Logger}
	if d.now == nil {
		d.now = time.Now
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	var err error
	switch file, isFile := strings.CutPrefix(url, "sqlite:"); {
	case isFile && file != "":
		d.engine = SQLite
		err = d.openSQLite(ctx, file)
	case strings.HasPrefix(url, "postgres://"), strings.HasPrefix(url, "postgresql://"):
		d.engine = Postgres
		err = d.openPostgres(ctx, cmp.Or(o.Driver, "pgx"), url)
	default:
		scheme, _, _ := strings.Cut(url, ":") // and nothing of what may be a password
		return nil, fmt.Errorf("the database must be sqlite:FILE or postgres://…, not %q", scheme)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	return d, nil
}

// connections is how many a pool may hold: enough to keep the machine busy,
// few enough that none waits long for a turn on the processor.
func connections() int { return max(8, 4*runtime.GOMAXPROCS(0)) }

func (d *DB) openSQLite(ctx context.Context, file string) error {
	// A page takes several events, which are most of what is written; of the
	// usual 4096 bytes each event would fill one.
	const pragmas = "_pragma=page_size(8192)&_pragma=busy_timeout(10000)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)" +
		"&_pragma=secure_delete(1)&_pragma=temp_store(2)&_journal_mode=WAL"
	// The writer changes a few dozen pages in each commit, the same ones at the
	// end of tables and indexes again and again. With a longer log they are
	// copied into the file once for many commits, and with a larger cache the
	// inner pages of indexes stay at hand.
	const writing = "&_pragma=wal_autocheckpoint(2000)&_pragma=cache_size(-16384)"
	// SQLite would make a file that everybody on the machine may read. Its
	// journal gets the rights of the file.
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	_ = f.Close()
	w, err := sql.Open("sqlite", "file:"+escapeFile(file)+"?"+pragmas+writing)
	if err != nil {
		return err
	}
	w.SetMaxOpenConns(1)
	conn, err := w.Conn(ctx)
	if err != nil {
		_ = w.Close()
		return err
	}
	if err := migrate(ctx, sqliteMigrator{conn}, SQLite); err != nil {
		_, _ = conn.Close(), w.Close()
		return err
	}
	d.pool, err = sql.Open("sqlite", "file:"+escapeFile(file)+"?"+pragmas+"&_pragma=query_only(1)")
	if err != nil {
		_, _ = conn.Close(), w.Close()
		return err
	}
	d.readers, d.keptReaders = newReaders(d.pool, connections()), newReaders(d.pool, reservedConnections)
	d.writer = startWriter(d, w, conn)
	return nil
}

// escapeFile makes a path safe inside a SQLite URI.
func escapeFile(file string) string {
	return strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(file)
}

func (d *DB) openPostgres(ctx context.Context, driver, url string) (err error) {
	d.pool, err = sql.Open(driver, url)
	if err != nil {
		return err
	}
	d.pool.SetMaxOpenConns(connections())
	d.pool.SetMaxIdleConns(connections())
	d.pool.SetConnMaxIdleTime(5 * time.Minute)
	if d.kept, err = sql.Open(driver, url); err != nil {
		_ = d.pool.Close()
		return err
	}
	d.kept.SetMaxOpenConns(reservedConnections)
	d.kept.SetMaxIdleConns(reservedConnections)
	conn, err := d.pool.Conn(ctx)
	if err != nil {
		_ = d.pool.Close()
		return err
	}
	err = migrate(ctx, postgresMigrator{conn}, Postgres)
	_ = conn.Close()
	if err != nil {
		_ = d.pool.Close()
		return err
	}
	d.appender = startAppender(d)
	return nil
}

// Engine is the kind of database underneath.
func (d *DB) Engine() Engine { return d.engine }

// Now is the time of the database's clock, in whole microseconds.
func (d *DB) Now() time.Time { return wholeMicros(d.now()) }

// wholeMicros is t.UTC().Truncate(time.Microsecond), without a division of all the time
// since year one. Rounding to 0 takes the reading of the monotonic clock off.
func wholeMicros(t time.Time) time.Time {
	t = t.UTC().Round(0)
	return t.Add(-time.Duration(t.Nanosecond() % 1000))
}

// Close waits for the work that has been handed in, and lets the database go.
func (d *DB) Close() error {
	if d.writer != nil {
		d.writer.stop()
	}
	if d.appender != nil {
		d.appender.stop()
	}
	if d.readers != nil {
		d.readers.close()
		d.keptReaders.close()
	}
	if d.kept != nil {
		_ = d.kept.Close()
	}
	return d.pool.Close()
}

// Ping reports whether the database answers.
func (d *DB) Ping(ctx context.Context) error {
	if err := d.pool.PingContext(ctx); err != nil {
		return ErrUnavailable.Because(err)
	}
	return nil
}

// View runs fn on a snapshot of one tenant that does not change under it.
func (d *DB) View(ctx context.Context, tenant estover.TenantID, fn func(*Tx) error) error {
	if d.readers != nil {
		return d.reading(ctx).view(ctx, func(run runner) error {
			return diagnose(fn(&Tx{tenant: tenant, now: d.Now(), engine: SQLite, run: run}))
		})
	}
	t, err := d.from(ctx).BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return unavailable(ctx, err)
	}
	defer func() { _ = t.Rollback() }()
	return diagnose(fn(&Tx{tenant: tenant, now: d.Now(), engine: Postgres, run: plain{t}, snapshot: true}))
}

// Look is a View for a function that has one statement, which sees one state
// by itself: it does without a transaction around it, which costs as much again.
func (d *DB) Look(ctx context.Context, tenant estover.TenantID, fn func(*Tx) error) error {
	if d.readers != nil {
		return d.reading(ctx).look(ctx, func(run runner) error {
			return diagnose(fn(&Tx{tenant: tenant, now: d.Now(), engine: SQLite, run: run}))
		})
	}
	return diagnose(fn(&Tx{tenant: tenant, now: d.Now(), engine: Postgres, run: &single{runner: plain{d.from(ctx)}}, snapshot: true}))
}

// A single runs one statement, and no other: a second one would see another state.
type single struct {
	runner
	ran bool
}

func (s *single) exec(context.Context, string, ...any) (sql.Result, error) {
	return nil, errors.New("a look changes nothing")
}

func (s *single) query(ctx context.Context, query string, args ...any) (*Rows, error) {
	if s.ran {
		return nil, errors.New("a look has one statement")
	}
	s.ran = true
	return s.runner.query(ctx, query, args...)
}

// Do runs fn in a transaction of one tenant and commits it. When fn returns an
// error nothing is changed, and Do returns that error.
//
// fn may run more than once, and by then the context of the caller may be
// over: what it does ends with the transaction or not at all.
func (d *DB) Do(ctx context.Context, tenant estover.TenantID, fn func(*Tx) error) error {
	if d.writer != nil {
		return d.writer.do(ctx, tenant, fn)
	}
	for attempt := 0; ; attempt++ {
		err := d.doPostgres(ctx, tenant, fn)
		if !clashed(err) {
			return err
		}
		if attempt == maxAttempts {
			return ErrUnavailable.Because(err)
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
}

// maxAttempts is how often work is repeated that clashed with another's.
const maxAttempts = 10

func (d *DB) doPostgres(ctx context.Context, tenant estover.TenantID, fn func(*Tx) error) error {
	t, err := d.from(ctx).BeginTx(ctx, nil)
	if err != nil {
		return unavailable(ctx, err)
	}
	defer func() { _ = t.Rollback() }()
	if err := fn(&Tx{tenant: tenant, now: d.Now(), engine: d.engine, run: plain{t}}); err != nil {
		return diagnose(err)
	}
	if err := t.Commit(); err != nil {
		if clashed(err) {
			return err
		}
		return unavailable(ctx, err)
	}
	return nil
}

// unavailable says for the caller that the database did not answer, unless it
// was the caller who went away.
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var e *estover.Error
	if errors.As(err, &e) {
		return err
	}
	return ErrUnavailable.Because(err)
}
