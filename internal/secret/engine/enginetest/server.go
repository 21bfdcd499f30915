package enginetest

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"estover.dev/internal/db/scratch"
)

// Soon is how long what is promised within a second may take on a machine that is busy
// with other tests. What would bring it about otherwise takes longer.
const Soon = 4 * time.Second

// A Process is a server to be started for a test binary.
type Process struct {
	Debian  string // the package that brings it, for who lacks it
	Program string // its name, or its path

	// Users are as whom it may run if the tests run as root: the first that
	// exists; nobody if none does.
	Users []string

	Ports int // how many free ports of loopback it gets

	// Prepare puts what the server needs into its directory, whose files then
	// belong to the server's user, and gives the program's arguments and what its
	// environment has beside that of the tests.
	Prepare func(s *Server) (args, env []string, err error)

	// Ready gives nil as soon as the server serves. It is asked again for up to
	// Patience, a minute if that is zero.
	Ready    func(ctx context.Context, s *Server) error
	Patience time.Duration
}

// A Server is one that runs, until the test binary ends, Stop is called, or
// nothing refers to it any more: keep it in a variable of the package.
type Server struct {
	Dir   string // of its own; gone when the server is
	Ports []int  // of 127.0.0.1
	Log   string // the file with what it wrote to its standard output and error

	attr  *syscall.SysProcAttr
	hold  *exec.Cmd
	leash io.WriteCloser // kept for the life of the process, since an unreachable pipe is closed
}

// Address is the host and the n-th port.
func (s *Server) Address(n int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Ports[n]))
}

// Start makes a directory and runs a server in it. A shell holds the server and
// all that it starts: the shell waits for the end of its standard input, which
// comes when this process ends, however it ends, and cleans up.
func Start(p Process) (*Server, error) {
	program, err := look(p.Program)
	if err != nil {
		return nil, fmt.Errorf("%w\nDebian: apt-get install %s", err, p.Debian)
	}
	s := &Server{}
	if s.Dir, err = os.MkdirTemp("", "estover-"+p.Debian+"-"); err != nil {
		return nil, err
	}
	s.Log = filepath.Join(s.Dir, "log")
	if s.Ports, err = free(p.Ports); err != nil {
		return nil, err
	}
	if s.attr, err = unprivileged(p.Users); err != nil {
		return nil, err
	}
	args, env, err := p.Prepare(s)
	if err != nil {
		_ = os.RemoveAll(s.Dir)
		return nil, err
	}
	if err := s.give(); err != nil {
		return nil, err
	}
	const script = `dir=$0; setsid "$@" >"$dir/log" 2>&1 </dev/null & pid=$!
		cat >/dev/null; kill -s KILL -- -$pid 2>/dev/null; wait $pid; rm -rf "$dir"`
	s.hold = exec.Command("sh", append([]string{"-c", script, s.Dir, program}, args...)...)
	s.hold.SysProcAttr, s.hold.Dir, s.hold.Env = s.attr, s.Dir, append(os.Environ(), env...)
	if s.leash, err = s.hold.StdinPipe(); err != nil {
		return nil, err
	}
	if err := s.hold.Start(); err != nil {
		return nil, err
	}
	if p.Patience == 0 {
		p.Patience = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.Patience)
	defer cancel()
	for {
		if err = p.Ready(ctx, s); err == nil {
			return s, nil
		}
		select {
		case <-ctx.Done():
			said, _ := os.ReadFile(s.Log)
			s.Stop()
			return nil, fmt.Errorf("%s: %w\n%s", p.Program, err, said)
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// Stop ends the server and takes away what it wrote.
func (s *Server) Stop() {
	_ = s.leash.Close()
	_ = s.hold.Wait()
}

// Command is a program to be run as the server's user, in its directory.
func (s *Server) Command(name string, args ...string) *exec.Cmd {
	if found, err := look(name); err == nil {
		name = found
	}
	c := exec.Command(name, args...)
	c.SysProcAttr, c.Dir = s.attr, s.Dir
	return c
}

// Write puts a file into the server's directory and gives its path.
func (s *Server) Write(name, content string) (string, error) {
	path := filepath.Join(s.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, []byte(content), 0o600)
}

// give makes the directory the server's user's.
func (s *Server) give() error {
	if s.attr == nil {
		return nil
	}
	return filepath.WalkDir(s.Dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(s.attr.Credential.Uid), int(s.attr.Credential.Gid))
	})
}

// look finds a program, also where only root's PATH leads.
func look(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/sbin"} {
		if p, e := exec.LookPath(filepath.Join(dir, program)); e == nil {
			return p, nil
		}
	}
	return "", err
}

// free finds ports of loopback that nobody listens on.
func free(n int) (ports []int, err error) {
	for len(ports) < n {
		port, err := scratch.Port()
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// unprivileged says how root becomes the first of these users that exists;
// nothing for everybody else.
func unprivileged(names []string) (*syscall.SysProcAttr, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	var who *user.User
	var err error
	for _, name := range append(names, "nobody") {
		if who, err = user.Lookup(name); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}
