package e2etest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A CLI is somebody at the command line, with a home of their own.
type CLI struct {
	Dir string   // the working directory
	Env []string // the environment

	bin  string
	home string
}

// CLI is somebody who has not logged in yet.
func (s *Server) CLI(t testing.TB) *CLI {
	t.Helper()
	home, dir := t.TempDir(), t.TempDir()
	return &CLI{
		Dir: dir, bin: Binary(t), home: home,
		Env: environment("HOME="+home, "XDG_CONFIG_HOME="+home, "ESTOVER_ADDR="+s.URL, "ESTOVER_CA="+s.CAFile),
	}
}

// Admin is the first administrator, who came in by the one-time token of the
// server's first start. It is one and the same for a server.
func (s *Server) Admin(t testing.TB) *CLI {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.admin == nil {
		c := s.CLI(t)
		c.Must(t, "login", "--token-file", filepath.Join(s.Data, "bootstrap-token"))
		s.admin = c
	}
	return s.admin
}

// With is the same person with more variables in the environment.
func (c *CLI) With(env ...string) *CLI {
	other := *c
	other.Env = append(append([]string{}, c.Env...), env...)
	return &other
}

// Command is a command that has not started yet.
func (c *CLI) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(c.bin, args...)
	cmd.Dir, cmd.Env = c.Dir, c.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run runs a command to its end.
func (c *CLI) Run(t testing.TB, args ...string) Result {
	t.Helper()
	return Run(t, c.Command(args...))
}

// Input runs a command with this on its standard input.
func (c *CLI) Input(t testing.TB, input string, args ...string) Result {
	t.Helper()
	cmd := c.Command(args...)
	cmd.Stdin = strings.NewReader(input)
	return Run(t, cmd)
}

// Must runs a command that succeeds, and gives its standard output.
func (c *CLI) Must(t testing.TB, args ...string) string {
	t.Helper()
	r := c.Run(t, args...)
	if r.Code != 0 {
		t.Fatalf("estover %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// JSON runs a command that succeeds, and reads its answer as JSON.
func (c *CLI) JSON(t testing.TB, into any, args ...string) {
	t.Helper()
	out := c.Must(t, append([]string{"--output", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("estover %s: %v in\n%s", strings.Join(args, " "), err, out)
	}
}

// Apply applies YAML documents.
func (c *CLI) Apply(t testing.TB, documents ...string) {
	t.Helper()
	if r := c.Input(t, strings.Join(documents, "\n---\n"), "apply", "-f", "-"); r.Code != 0 {
		t.Fatalf("estover apply: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// Put writes a version of a secret.
func (c *CLI) Put(t testing.TB, path, value string) {
	t.Helper()
	if r := c.Input(t, value, "secret", "put", path); r.Code != 0 {
		t.Fatalf("estover secret put: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// Token is the token that the login keeps, for requests to the API without the
// command line.
func (c *CLI) Token(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.home, "estover", "login.json"))
	if err != nil {
		t.Fatal(err)
	}
	var l struct{ Token string }
	if err := json.Unmarshal(b, &l); err != nil || l.Token == "" {
		t.Fatalf("the login holds no token: %v", err)
	}
	return l.Token
}

// Alone is somebody at the command line who has no server.
func Alone(t testing.TB) *CLI {
	t.Helper()
	home, dir := t.TempDir(), t.TempDir()
	return &CLI{Dir: dir, bin: Binary(t), home: home, Env: environment("HOME="+home, "XDG_CONFIG_HOME="+home)}
}
