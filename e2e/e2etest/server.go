// Package e2etest runs the program as its users do: a server in a process of
// its own, and the command line beside it. Nothing of it reaches into the
// program; whatever a test sees, anybody could see.
//
//	world := e2etest.NewWorld(t)                    upstreams on loopback, with a certificate authority
//	srv := e2etest.Start(t)                         `estover serve` on free ports, data in t.TempDir()
//	admin := srv.Admin(t)                           `estover login`, with a configuration of its own
//	admin.Apply(t, world.Resource(…), …)            `estover apply`
//	admin.Run(t, "run", "--agent", …, "--", "curl") any other command
//
// The program is built once for a test process, or is the one that ESTOVER_BIN
// names.
package e2etest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"estover.dev/internal/db/scratch"
)

// Main runs the tests of a package and then takes away what [Binary] has
// built: func TestMain(m *testing.M) { e2etest.Main(m) }.
func Main(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

var built string

var build = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("ESTOVER_BIN"); bin != "" {
		return filepath.Abs(bin)
	}
	dir, err := os.MkdirTemp("", "estover-e2e-")
	if err != nil {
		return "", err
	}
	built = filepath.Join(dir, "estover")
	return built, compile(built, "estover.dev/cmd/estover")
})

// compile builds a program. What the repository says of itself is left out:
// nobody asks a test's program for its version.
func compile(program, of string) error {
	c := exec.Command("go", "build", "-buildvcs=false", "-o", program, of)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := finish(c, 10*time.Minute); err != nil { // where nothing of it was compiled before
		return fmt.Errorf("building %s: %w\n%s", of, err, &out)
	}
	return nil
}

// Build builds a package or a file into a directory, and gives the path of the
// program, which has this name.
func Build(t testing.TB, dir, name, of string) string {
	t.Helper()
	program := filepath.Join(dir, name)
	if err := compile(program, of); err != nil {
		t.Fatal(err)
	}
	return program
}

// Binary is the path of the program.
func Binary(t testing.TB) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatalf("building the program: %v", err)
	}
	return bin
}

// A Server is a running `estover serve`.
type Server struct {
	Data    string // its data directory
	URL     string // https://localhost:PORT
	Gateway string // localhost:PORT
	CAFile  string // the authority of its certificate

	env   []string
	args  []string
	given int // of args, those that every start has
	cmd   *exec.Cmd
	log   *log
	ended chan error // gets the end of cmd, once

	mu    sync.Mutex
	admin *CLI
	http  *http.Client
}

// Start starts a server on a fresh SQLite database, with more arguments of
// `estover serve` if there are any, in which {port} is the server's port. It
// ends with the test.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, Binary(t), nil, args)
}

// StartWith starts a server whose environment has more variables.
func StartWith(t testing.TB, env []string, args ...string) *Server {
	t.Helper()
	return start(t, Binary(t), env, args)
}

// StartOn starts a server on the database of this URL.
func StartOn(t testing.TB, database string, args ...string) *Server {
	t.Helper()
	return Start(t, append([]string{"--database", database}, args...)...)
}

func start(t testing.TB, bin string, env, args []string) *Server {
	t.Helper()
	dir := t.TempDir()
	var err error
	for range 5 { // the port may be taken by somebody else in between
		main, gateway := Port(t), Port(t)
		s := &Server{
			Data: filepath.Join(dir, "data"), URL: "https://localhost:" + main, Gateway: "localhost:" + gateway, log: &log{}, env: env,
			CAFile: filepath.Join(dir, "data", "tls", "ca.crt"),
		}
		s.args = append([]string{
			bin, "serve", "--data", s.Data, "--listen", "127.0.0.1:" + main, "--gateway", "127.0.0.1:" + gateway,
		}, args...)
		s.given = len(s.args)
		for i := range s.args {
			s.args[i] = strings.ReplaceAll(s.args[i], "{port}", main)
		}
		if err = s.start(); err == nil {
			t.Cleanup(func() {
				end := s.log.tail(60)
				if t.Failed() { // what it does at this moment may be why
					_ = s.cmd.Process.Signal(syscall.SIGQUIT)
					select {
					case err := <-s.ended:
						s.ended <- err
					case <-time.After(5 * time.Second):
					}
					t.Logf("the end of the server's log:\n%s\n%s", end, where(s.log.tail(1<<30)))
				}
				s.kill()
			})
			return s
		}
		if !strings.Contains(err.Error(), "address already in use") {
			break
		}
	}
	t.Fatalf("starting the server: %v", err)
	return nil
}

// Port is a port of loopback for a server, which is still free when the server is
// started again ([scratch.Port]).
func Port(t testing.TB) string {
	t.Helper()
	port, err := scratch.Port()
	if err != nil {
		t.Fatalf("no free port was found: %v", err)
	}
	return strconv.Itoa(port)
}

// startTime bounds how long a server may take until it serves. The machine may
// be busy with other tests.
const startTime = 60 * time.Second

// start starts the process and waits until it serves, or waits for shares of its
// root key.
func (s *Server) start() error {
	c := exec.Command(s.args[0], s.args[1:]...)
	c.Env = environment(s.env...)
	// Whatever becomes of the test, its servers end with it.
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := c.StderrPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	serving, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for once := sync.OnceFunc(func() { close(serving) }); lines.Scan(); {
			s.log.add(lines.Text())
			if strings.Contains(lines.Text(), "msg=serving") || strings.Contains(lines.Text(), "the server is sealed") {
				once()
			}
		}
		err := c.Wait()
		s.log.add("(the process has ended: " + c.ProcessState.String() + ")")
		ended <- err
	}()
	s.cmd, s.ended = c, ended
	select {
	case <-serving:
		return nil
	case err := <-ended:
		ended <- err
		return fmt.Errorf("it ended (%v): %s", err, s.log.tail(5))
	case <-time.After(startTime):
		s.kill()
		return fmt.Errorf("it does not serve after %s: %s", startTime, s.log.tail(20))
	}
}

// Pid is the server's process.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// kill is kill -9, and waits for the process to be gone.
func (s *Server) kill() {
	_ = s.cmd.Process.Kill()
	s.ended <- <-s.ended
}

// Kill ends the server as a crash does: kill -9.
func (s *Server) Kill() { s.kill() }

// Abort ends the server as a fault in its own code does: its stacks are in its log,
// and whatever the system writes down of such a process is in the directory of the
// test.
func (s *Server) Abort(t testing.TB) {
	t.Helper()
	all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(s.Pid(), unix.RLIMIT_CORE, &all, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		s.ended <- err
	case <-time.After(startTime):
		t.Fatal("the server does not end")
	}
}

// Stop ends the server as an operator does, and demands that it ends well.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		s.ended <- err
		if err != nil {
			t.Fatalf("stopping the server: %v", err)
		}
	case <-time.After(startTime):
		t.Fatal("the server does not stop")
	}
}

// Restart starts a server again that was killed or stopped, as it was.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatalf("starting the server again: %v", err)
	}
}

// Try starts a server again that was killed or stopped, with these arguments in
// addition, and says if it does not serve.
func (s *Server) Try(args ...string) error {
	s.args = append(s.args[:s.given:s.given], args...)
	return s.start()
}

// Log is what the server has logged so far.
func (s *Server) Log() string { return s.log.tail(1 << 30) }

// Roots are the authorities that a client of the server trusts: the server's
// own, and those in the PEM texts.
func (s *Server) Roots(t testing.TB, more ...string) *x509.CertPool {
	t.Helper()
	ca, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, text := range append(more, string(ca)) {
		if !pool.AppendCertsFromPEM([]byte(text)) {
			t.Fatal("an authority is no certificate in PEM")
		}
	}
	return pool
}

// HTTP is a client that trusts the server.
func (s *Server) HTTP(t testing.TB) *http.Client {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http == nil {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.Roots(t), MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 64, ForceAttemptHTTP2: true}
		s.http = &http.Client{Transport: tr, Timeout: time.Minute}
	}
	return s.http
}

// environment is what a process starts from: nothing of the developer's own.
func environment(more ...string) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "TZ=UTC", "TMPDIR=" + os.TempDir()}
	return append(env, more...)
}

// A log keeps the lines that a process writes.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *log) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines[max(0, len(l.lines)-n):], "\n")
}

// A Result is what a command did.
type Result struct {
	Stdout, Stderr string
	Code           int // -1 if it was ended by a signal
}

// Run runs a command to its end.
func Run(t testing.TB, c *exec.Cmd) Result {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := Finish(c)
	var ended *exec.ExitError
	if errors.Is(err, errPatience) || err != nil && !errors.As(err, &ended) {
		t.Fatalf("running %s: %v\n%s%s%s", strings.Join(c.Args, " "), err, &out, &errs, where(errs.String()))
	}
	return Result{out.String(), errs.String(), c.ProcessState.ExitCode()}
}

// patience is how long a command may take. A test that waits for one forever
// takes the others with it, and says less.
const patience = 2 * time.Minute

var errPatience = errors.New("it does not end; what it printed last says where it stands")

// where sums up the stacks of a program of ours: for each goroutine that is in
// our code, where it is.
func where(stacks string) string {
	var b strings.Builder
	for _, g := range strings.Split(stacks, "\n\n") {
		head := regexp.MustCompile(`^(goroutine \d+) .*(\[.*\]):`).FindStringSubmatch(g)
		frames := regexp.MustCompile(`(?m)^estover\.dev/(.*)\(`).FindAllStringSubmatch(g, 3)
		if head == nil || frames == nil {
			continue
		}
		b.WriteString(head[1] + " " + head[2])
		for _, f := range frames {
			b.WriteString(" < " + f[1])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Finish runs a command to its end. One that takes too long is asked, as a
// program of Go is, to print what all its goroutines do and to end.
func Finish(c *exec.Cmd) error { return finish(c, patience) }

func finish(c *exec.Cmd, patience time.Duration) error {
	if c.WaitDelay == 0 {
		c.WaitDelay = 5 * time.Second // what it started may live on with its output
	}
	if err := c.Start(); err != nil {
		return err
	}
	var late atomic.Bool
	limit := time.AfterFunc(patience, func() {
		late.Store(true)
		_ = c.Process.Signal(syscall.SIGQUIT)
		time.Sleep(5 * time.Second)
		_ = c.Process.Kill()
	})
	err := c.Wait()
	limit.Stop()
	if late.Load() {
		return fmt.Errorf("%w: %w", errPatience, err)
	}
	return err
}

// Soon is how long a test lets what is promised within a second take. Other tests
// are at work beside it, so that processes wait for their turn; but what does not
// come by itself and is left to a sweep or a time-out comes later than this.
const Soon = 4 * time.Second

// Eventually asks again and again until the answer is yes, and fails the test
// if it has not been that for a long time.
func Eventually(t testing.TB, what string, ask func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ask(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it has not come to pass that %s", what)
		}
	}
}
