// Package scratch runs a PostgreSQL for a while: in a temporary directory, on
// a socket there, for one process. It ends with that process, however the
// process ends, and leaves nothing behind. Tests and measurements use it;
// nothing that serves does.
package scratch

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
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// Options are what may be set. The zero value is good for tests, of which
// there are many: what they write is gone with the machine.
type Options struct {
	// Durable has every commit reach the disk, as in real life.
	Durable bool
}

// A Server is a PostgreSQL that runs.
type Server struct {
	// URL is its database, whose owner may do everything.
	URL string

	hold *exec.Cmd
	// leash is what the server's shell waits on. It is kept for the life of
	// the process, since an unreachable pipe is closed.
	leash io.WriteCloser
}

// Start makes a cluster and serves it. A shell holds the server: it waits for
// the end of its standard input, which comes when this process ends or calls
// [Server.Stop], and cleans up.
func Start(o Options) (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "estover-pg-")
	if err != nil {
		return nil, err
	}
	attr, err := unprivileged(dir)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	sync := "off"
	if o.Durable {
		sync = "on"
	}
	const script = `"$0" -D "$1/data" -k "$1" -c listen_addresses= -c fsync="$2" -c full_page_writes="$2" \
		-c max_connections=400 -c shared_buffers=64MB -c deadlock_timeout=200ms >"$1/log" 2>&1 & pid=$!
		cat >/dev/null; kill -QUIT $pid; wait $pid; rm -rf "$1"`
	s := &Server{
		URL:  "postgres:///postgres?host=" + dir + "&user=postgres",
		hold: exec.Command("sh", "-c", script, filepath.Join(bin, "postgres"), dir, sync),
	}
	s.hold.SysProcAttr, s.hold.Dir = attr, dir
	if s.leash, err = s.hold.StdinPipe(); err != nil {
		return nil, err
	}
	if err := s.hold.Start(); err != nil {
		return nil, err
	}
	pool, err := sql.Open("pgx", s.URL)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = pool.PingContext(context.Background()); err == nil {
			return s, nil
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			s.Stop()
			return nil, fmt.Errorf("%w\n%s", err, log)
		}
	}
}

// Stop ends the server and takes away what it wrote.
func (s *Server) Stop() {
	_ = s.leash.Close()
	_ = s.hold.Wait()
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
