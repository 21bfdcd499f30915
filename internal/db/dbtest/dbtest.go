// Package dbtest runs a test on every engine that Estover stores things in:
// SQLite in a temporary file, and a PostgreSQL that is started for the test
// process alone, in a temporary directory, and ends with it, however it ends.
//
// A test finds the tables made and nothing in them but what the migrations put
// there: to make them takes longer than most tests.
package dbtest

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev/internal/db"
)

// Each runs the test once on each engine, on a database of its own.
func Each(t *testing.T, test func(t *testing.T, d *db.DB)) {
	t.Helper()
	EachURL(t, func(t *testing.T, url string) { test(t, open(t, url)) })
}

// EachURL is Each for tests that open the database themselves, more than once
// or from several processes.
func EachURL(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, Postgres(t)) })
}

// EachEmpty is EachURL for tests of how the tables are made: there are none.
func EachEmpty(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, "sqlite:"+filepath.Join(t.TempDir(), "test.db")) })
	t.Run("postgres", func(t *testing.T) { test(t, newSchema(t).url) })
}

// Open gives a fresh SQLite database, for tests of what no engine changes.
func Open(t testing.TB) *db.DB { return open(t, SQLite(t)) }

// SQLite is the URL of a database in a file.
func SQLite(t testing.TB) string {
	t.Helper()
	file, err := migrated()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "test.db")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return "sqlite:" + path
}

// migrated is the file of such a database.
var migrated = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "estover-sqlite-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "test.db")
	d, err := db.Open(context.Background(), "sqlite:"+path, db.Options{})
	if err != nil {
		return nil, err
	}
	if err := d.Close(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

func open(t testing.TB, url string) *db.DB {
	t.Helper()
	clock := &Clock{}
	d, err := db.Open(t.Context(), url, db.Options{Now: clock.Now, Driver: keptDriver})
	if err != nil {
		t.Fatal(err)
	}
	clocks.Store(d, clock)
	t.Cleanup(func() {
		clocks.Delete(d)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// A Clock is the real time, moved on by a test.
type Clock struct {
	offset atomic.Int64
	held   atomic.Int64 // the time at which it was stopped, in nanoseconds; 0 while it goes
}

var clocks sync.Map // *db.DB → *Clock

// NewClock is the clock of a database that Each or Open made.
func NewClock(d *db.DB) *Clock {
	c, ok := clocks.Load(d)
	if !ok {
		panic("dbtest: this database has no clock that a test may move")
	}
	return c.(*Clock)
}

// Now is the time that the database sees.
func (c *Clock) Now() time.Time {
	now := time.Now()
	if held := c.held.Load(); held != 0 {
		now = time.Unix(0, held)
	}
	return now.Add(time.Duration(c.offset.Load()))
}

// Hold stops the clock: from here on [Clock.Advance] alone moves it. Tests that stand
// a moment before something need that, since a busy machine may be slow to ask.
func (c *Clock) Hold() { c.held.Store(time.Now().UnixNano()) }

// Advance moves the clock: back if by is negative.
func (c *Clock) Advance(by time.Duration) { c.offset.Add(int64(by)) }
