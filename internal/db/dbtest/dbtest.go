// Package dbtest runs a test on every engine that Estover stores things in:
// SQLite in a temporary file, and a PostgreSQL that is started for the test
// process alone, in a temporary directory, and ends with it, however it ends.
package dbtest

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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

// Open gives a fresh SQLite database, for tests of what no engine changes.
func Open(t testing.TB) *db.DB { return open(t, SQLite(t)) }

// SQLite is the URL of a fresh database in a file.
func SQLite(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "test.db") }

func open(t testing.TB, url string) *db.DB {
	t.Helper()
	clock := &Clock{}
	d, err := db.Open(t.Context(), url, db.Options{Now: clock.Now})
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
type Clock struct{ offset atomic.Int64 }

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
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }

// Advance moves the clock: back if by is negative.
func (c *Clock) Advance(by time.Duration) { c.offset.Add(int64(by)) }

var server = sync.OnceValues(startPostgres)

var schemas atomic.Int64

// leash is what the server's shell waits on. It is kept here for the life of
// the process, since an unreachable pipe is closed.
var leash io.WriteCloser

// Postgres is the URL of a fresh, empty schema of a PostgreSQL that belongs to
// this test process.
func Postgres(t testing.TB) string {
	t.Helper()
	base, err := server()
	if err != nil {
		t.Fatalf("starting a PostgreSQL for the test: %v\nDebian: apt-get install postgresql", err)
	}
	admin, err := sql.Open("pgx", base)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	name := fmt.Sprintf("t%d", schemas.Add(1))
	if _, err := admin.ExecContext(t.Context(), "create schema "+name); err != nil {
		t.Fatal(err)
	}
	return base + "&search_path=" + name
}

// startPostgres makes a cluster in a temporary directory and serves it on a
// socket there. A shell holds the server: it waits for the end of its standard
// input, which comes when this process ends, and cleans up.
func startPostgres() (string, error) {
	bin, err := binaries()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "estover-pg-")
	if err != nil {
		return "", err
	}
	attr, err := unprivileged(dir)
	if err != nil {
		return "", err
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb: %w\n%s", err, out)
	}
	// Durability is SQLite's and PostgreSQL's own business; the tests of ours
	// do not need the disk, and there are many of them.
	const script = `"$0" -D "$1/data" -k "$1" -c listen_addresses= -c fsync=off -c full_page_writes=off \
		-c max_connections=400 -c shared_buffers=64MB -c deadlock_timeout=200ms >"$1/log" 2>&1 & pid=$!
		cat >/dev/null; kill -QUIT $pid; wait $pid; rm -rf "$1"`
	hold := exec.Command("sh", "-c", script, filepath.Join(bin, "postgres"), dir)
	hold.SysProcAttr, hold.Dir = attr, dir
	if leash, err = hold.StdinPipe(); err != nil {
		return "", err
	}
	if err := hold.Start(); err != nil {
		return "", err
	}
	url := "postgres:///postgres?host=" + dir + "&user=postgres"
	pool, err := sql.Open("pgx", url)
	if err != nil {
		return "", err
	}
	defer pool.Close()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = pool.PingContext(context.Background()); err == nil {
			return url, nil
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			return "", fmt.Errorf("%w\n%s", err, log)
		}
	}
}

// binaries finds the directory of the server's programs, the newest version
// first.
func binaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		version := func(p string) int {
			n, _ := strconv.Atoi(strings.Split(p, "/")[4])
			return n
		}
		slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
		return filepath.Dir(found[0]), nil
	}
	p, err := exec.LookPath("initdb")
	return filepath.Dir(p), err
}

// unprivileged gives dir to a user who is not root, since the server refuses
// to run as root, and says how to become that user.
func unprivileged(dir string) (*syscall.SysProcAttr, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	var who *user.User
	var err error
	for _, name := range []string{"postgres", "nobody"} {
		if who, err = user.Lookup(name); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(who.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(who.Gid)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}
