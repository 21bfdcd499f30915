// Package scratch runs a PostgreSQL for a while: in a temporary directory, on
// a socket there, for one process. It ends with that process, however the
// process ends, and leaves nothing behind. Tests and measurements use it;
// nothing that serves does.
//
// It can also be a database as others have one ([Options.Listen]): reached over
// the network, with TLS, by people with passwords.
package scratch

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	ports "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// Options are what may be set. The zero value is good for tests, of which
// there are many: what they write is gone with the machine.
type Options struct {
	// Durable has every commit reach the disk, as in real life.
	Durable bool

	// Listen has the server take connections on a port of loopback as well, from
	// who shows a password (SCRAM) of a role that has one, with TLS or without.
	Listen bool

	// Dir is where the server's directory is made; the system's place for
	// temporary files if empty. The server's user has to get there.
	Dir string

	// Settings are parameters of the server beside those it starts with here.
	Settings map[string]string
}

// A Server is a PostgreSQL that runs.
type Server struct {
	// URL is its database, whose owner may do everything.
	URL string

	// Address is 127.0.0.1:PORT if the server listens there, and Authorities who
	// signed the certificate that it shows, in PEM.
	Address     string
	Authorities []byte

	// Log is the file that the server writes its log into.
	Log string

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
	dir, err := os.MkdirTemp(o.Dir, "estover-pg-")
	if err != nil {
		return nil, err
	}
	attr, err := unprivileged(dir)
	if err != nil {
		return nil, err
	}
	if err := cluster(bin, dir, attr); err != nil {
		return nil, err
	}
	s := &Server{URL: "postgres:///postgres?host=" + dir + "&user=postgres", Log: filepath.Join(dir, "log")}
	sync := "off"
	if o.Durable {
		sync = "on"
	}
	settings := map[string]string{
		"listen_addresses": "", "fsync": sync, "full_page_writes": sync, "max_connections": "400", "shared_buffers": "64MB", "deadlock_timeout": "200ms",
	}
	if o.Listen {
		if err := s.listen(dir, attr, settings); err != nil {
			return nil, err
		}
	}
	maps.Copy(settings, o.Settings)
	const script = `bin=$0 dir=$1; shift
		"$bin" -D "$dir/data" -k "$dir" "$@" >"$dir/log" 2>&1 & pid=$!
		cat >/dev/null; kill -QUIT $pid; wait $pid; rm -rf "$dir"`
	args := []string{"-c", script, filepath.Join(bin, "postgres"), dir}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	s.hold = exec.Command("sh", args...)
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
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
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

// Patterns names the directory where the first cluster that is made leaves a copy of
// itself for the others, in a variable of the environment: to make one takes the processor
// a second, and to copy one a sixth of that. Without it each is made.
const Patterns = "ESTOVER_SCRATCH_PATTERNS"

// cluster makes a cluster in the directory, for the user who will serve it.
func cluster(bin, dir string, attr *syscall.SysProcAttr) error {
	data := filepath.Join(dir, "data")
	run := func(attr *syscall.SysProcAttr, name string, args ...string) error {
		c := exec.Command(name, args...)
		c.SysProcAttr, c.Dir = attr, dir
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, out)
		}
		return nil
	}
	initdb := []string{filepath.Join(bin, "initdb"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C"}
	var pattern string
	if patterns := os.Getenv(Patterns); patterns != "" {
		made, err := os.Stat(initdb[0]) // another version makes others
		if err != nil {
			return err
		}
		sum := sha256.Sum256([]byte(strings.Join(append(initdb, made.ModTime().String()), " ")))
		pattern = filepath.Join(patterns, fmt.Sprintf("%x", sum[:8]))
		if _, err := os.Stat(pattern); err == nil {
			return run(nil, "cp", "-a", pattern, data) // as it is, whoever may read it
		}
	}
	err := run(attr, initdb[0], append(initdb[1:], "-D", data)...)
	if err != nil || pattern == "" {
		return err
	}
	half, err := os.MkdirTemp(filepath.Dir(pattern), "half-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(half)
	if err := run(nil, "cp", "-a", data, filepath.Join(half, "whole")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(half, "whole"), pattern); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// given are the ports that this process has had of [Port], each with what keeps other
// processes from having it.
var given sync.Map

// take has a port for this process alone, as long as it lives.
func take(port int) bool {
	if _, taken := given.LoadOrStore(port, nil); taken {
		return false
	}
	if runtime.GOOS != "linux" { // where alone such a name ends with the process
		return true
	}
	l, err := net.Listen("unix", "@estover-port-"+strconv.Itoa(port))
	if err == nil {
		given.Store(port, l)
	}
	return err == nil
}

// Port is a port of loopback that nobody listens on, and that neither the system
// gives to outgoing connections nor this function to anybody else on this machine,
// so that it is still free a moment later.
func Port() (int, error) {
	var err error
	for range 100 {
		port := 10_000 + ports.IntN(8_000)
		if !take(port) {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, cmp.Or(err, errors.New("no port is free"))
}

// listen adds a port of loopback to the settings, and what TLS needs there.
func (s *Server) listen(dir string, attr *syscall.SysProcAttr, settings map[string]string) error {
	port, err := Port()
	if err != nil {
		return err
	}
	s.Address = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	authority, cert, key, err := certificate()
	if err != nil {
		return err
	}
	s.Authorities = authority
	settings["listen_addresses"], settings["ssl"] = "127.0.0.1", "on"
	settings["port"] = strconv.Itoa(port)
	s.URL += "&port=" + settings["port"]
	for _, f := range []struct {
		setting, path string
		content       []byte
	}{
		{"hba_file", "hba.conf", []byte("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")},
		{"ssl_cert_file", "server.crt", cert},
		{"ssl_key_file", "server.key", key},
	} {
		path := filepath.Join(dir, f.path)
		settings[f.setting] = path
		if err := os.WriteFile(path, f.content, 0o600); err != nil {
			return err
		}
		if attr != nil {
			if err := os.Chown(path, int(attr.Credential.Uid), int(attr.Credential.Gid)); err != nil {
				return err
			}
		}
	}
	return nil
}

// certificate makes a certificate of localhost and 127.0.0.1 for a day, with
// its key, and who signed it.
func certificate() (authority, cert, key []byte, err error) {
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "scratch"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	its := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	signer, err := x509.CreateCertificate(rand.Reader, ca, ca, root.Public(), root)
	if err != nil {
		return nil, nil, nil, err
	}
	signed, err := x509.CreateCertificate(rand.Reader, its, ca, leaf.Public(), root)
	if err != nil {
		return nil, nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(leaf)
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return block("CERTIFICATE", signer), block("CERTIFICATE", signed), block("PRIVATE KEY", private), err
}

// Stop ends the server and takes away what it wrote.
func (s *Server) Stop() {
	_ = s.leash.Close()
	_ = s.hold.Wait()
}

// Available says whether there is a PostgreSQL to start.
func Available() bool {
	_, err := binaries()
	return err == nil
}

// Programs is the variable of the environment that names the directory of the
// server's programs, for where they are not where they usually are.
const Programs = "ESTOVER_POSTGRES_BIN"

// Program is the path of one of PostgreSQL's programs: pg_dump.
func Program(name string) (string, error) {
	dir, err := binaries()
	return filepath.Join(dir, name), err
}

// binaries finds the directory of the server's programs, the newest version
// first.
func binaries() (string, error) {
	if dir := os.Getenv(Programs); dir != "" {
		_, err := os.Stat(filepath.Join(dir, "initdb"))
		return dir, err
	}
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
