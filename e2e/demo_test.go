package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"estover.dev/demo/story"
	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/scratch"
)

// Each beat of the demo holds.
func TestDemo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := story.Open(t.Context(), story.Config{
		Estover: e2etest.Binary(t), Agent: e2etest.Build(t, t.TempDir(), "sample-agent", "estover.dev/demo/agent"), Dir: dir,
		Tell: func(l story.Line) { t.Log(map[story.Kind]string{story.Command: "$ "}[l.Kind] + l.Text) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", s.LogTail(60))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	// An agent that says what a request is for is held to it, also where its
	// grant would cover the request.
	t.Run("said purpose", func(t *testing.T) {
		text, code, err := s.Run(t.Context(), "support", "wrong-purpose")
		if err != nil || code != 3 || !strings.Contains(text, "code: purpose_mismatch") {
			t.Errorf("in a session for support, a call that says it is for advertising ends with %d, %v:\n%s", code, err, text)
		}
		if calls := s.Company.Calls(); len(calls) > 0 {
			t.Errorf("it reached the CRM: %v", calls)
		}
	})
	for _, b := range s.Beats() {
		t.Run(b.Name, func(t *testing.T) {
			saw, err := b.Play(t.Context())
			if err != nil {
				t.Fatalf("%s\nThis did not hold: %v", b.Claim, err)
			}
			t.Log(saw)
		})
	}
}

// A performance is the demo's program with what it needs beside it, and a
// directory for temporary files that is its own.
type performance struct {
	cmd *exec.Cmd
	out *bytes.Buffer
	tmp string
}

func perform(t *testing.T) performance {
	t.Helper()
	bin := t.TempDir()
	p := performance{cmd: exec.Command(e2etest.Build(t, bin, "demo", "estover.dev/demo")), out: &bytes.Buffer{}, tmp: t.TempDir()}
	e2etest.Build(t, bin, "sample-agent", "estover.dev/demo/agent")
	if err := os.Symlink(e2etest.Binary(t), filepath.Join(bin, "estover")); err != nil {
		t.Fatal(err)
	}
	p.cmd.Env = append(os.Environ(), "TMPDIR="+p.tmp, "CI=1")
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p
}

// left makes sure that neither files nor processes of the demo are left: who was
// told to end is gone a moment later.
func (p performance) left(t *testing.T) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if left = p.there(t); len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for _, what := range left {
		t.Error(what)
	}
}

func (p performance) there(t *testing.T) (all []string) {
	t.Helper()
	files, err := os.ReadDir(p.tmp)
	if err != nil || len(files) > 0 {
		all = append(all, fmt.Sprintf("files are left: %v, %v", files, err))
	}
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range environs {
		if env, err := os.ReadFile(file); err == nil && bytes.Contains(env, []byte(p.tmp)) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			all = append(all, fmt.Sprintf("a process is left: %s", bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
	}
	return all
}

// Without a terminal the demo runs through, says last how it went, and leaves
// nothing behind.
func TestDemoRunsThrough(t *testing.T) {
	t.Parallel()
	p := perform(t)
	begun := time.Now()
	err := e2etest.Finish(p.cmd)
	// A third of a minute where nothing else is at work, and promised is one.
	if took := time.Since(begun); took > 100*time.Second {
		t.Errorf("it took %v", took)
	} else {
		t.Logf("it took %v", took)
	}
	if want := "\n\ndemo: 7 of 7 beats held\n"; err != nil || !strings.HasSuffix(p.out.String(), want) {
		t.Errorf("it ends with %v, want success and at the end %q:\n%s", err, want, p.out)
	}
	if strings.Contains(p.out.String(), "\x1b") {
		t.Error("it is coloured where there is no terminal")
	}
	p.left(t)
}

// Where there is no PostgreSQL, the demo says which beat is left out and what it needs,
// does not count it, and all others hold.
func TestDemoWithoutDatabase(t *testing.T) {
	t.Parallel()
	p := perform(t)
	p.cmd.Env = append(p.cmd.Env, scratch.Programs+"="+t.TempDir())
	err := e2etest.Finish(p.cmd)
	out := strings.Join(strings.Fields(p.out.String()), " ") // without the ends of lines
	if err != nil || !strings.HasSuffix(p.out.String(), "\n\ndemo: 6 of 6 beats held\n") {
		t.Errorf("it ends with %v, want success and 6 of 6 beats:\n%s", err, p.out)
	}
	const left = "One beat is left out: for the database user that is made for a task, PostgreSQL has to be installed (Debian: apt-get install postgresql)."
	if strings.Count(out, left) != 1 {
		t.Errorf("it does not say once %q:\n%s", left, p.out)
	}
	if strings.Contains(out, "It needs the database for a while") {
		t.Errorf("the beat that was left out is told:\n%s", p.out)
	}
	p.left(t)
}

// Nor is anything left if the demo is interrupted, or cannot go on.
func TestDemoCleansUp(t *testing.T) {
	t.Parallel()
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		p := perform(t)
		p.cmd.Stdout = nil
		out, err := p.cmd.StdoutPipe()
		if err == nil {
			err = p.cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		// While the agent watches a stream.
		seen := make([]byte, 0, 64<<10)
		for !bytes.Contains(seen, []byte("event 3: ")) {
			n, err := out.Read(seen[len(seen):cap(seen)])
			if seen = seen[:len(seen)+n]; err != nil {
				t.Fatalf("it ends before it can be interrupted (%v):\n%s", err, seen)
			}
		}
		if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		_ = p.cmd.Wait() // looked at below
		if code := p.cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("exit code %d, want 130:\n%s", code, p.out)
		}
		p.left(t)
	})
	t.Run("without the server's program", func(t *testing.T) {
		t.Parallel()
		p := perform(t)
		if err := os.Remove(filepath.Join(filepath.Dir(p.cmd.Path), "estover")); err != nil {
			t.Fatal(err)
		}
		_ = e2etest.Finish(p.cmd) // looked at below
		if code := p.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(p.out.String(), "setting the stage") {
			t.Errorf("exit code %d, want 1 and a reason:\n%s", code, p.out)
		}
		p.left(t)
	})
}
