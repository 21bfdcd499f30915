package main_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"estover.dev/demo/collector"
	"estover.dev/demo/company"
	"estover.dev/demo/inspect"
	"estover.dev/demo/web"
)

const key = "crm_live_4f6c2c1d9e8b47a3"

// A town is the agent with nothing between it and the world: it holds the key
// itself and its proxy lets everything through.
type town struct {
	program   string
	env       []string
	crm       *web.Site
	company   *company.Company
	collector *collector.Collector
}

func build(t *testing.T) *town {
	t.Helper()
	dir := t.TempDir()
	o := &town{program: filepath.Join(dir, "agent"), collector: &collector.Collector{}}
	if out, err := exec.Command("go", "build", "-o", o.program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the agent: %v\n%s", err, out)
	}
	w, err := web.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	site, err := w.Serve("collector.example.test", "", o.collector)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { site.Close() })
	o.company = company.New(key, site.URL+"/import")
	o.company.Every = 10 * time.Millisecond
	if o.crm, err = w.Serve("crm.example.test", "", o.company); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.crm.Close() })
	proxy, closeProxy, err := w.Proxy()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeProxy() })
	o.env = []string{
		"PATH=" + os.Getenv("PATH"), "HTTPS_PROXY=" + proxy, "SSL_CERT_FILE=" + w.CAFile, "SSL_CERT_DIR=" + t.TempDir(),
		"CRM_URL=" + o.crm.URL,
	}
	return o
}

// run runs the agent to its end and gives its exit code and what it printed.
func (o *town) run(t *testing.T, env []string, args ...string) (int, string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), o.program, args...)
	cmd.Env = append(env, o.env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// TestUnguarded shows what the agent does when nothing stops it: every beat of
// the demo would end badly, so a demo in which it ends well shows something.
func TestUnguarded(t *testing.T) {
	o := build(t)
	withKey := []string{"CRM_KEY=" + key}

	if code, out := o.run(t, withKey, "leak"); code != 0 {
		t.Errorf("leak: exit code %d, want 0\n%s", code, out)
	}
	if got := o.collector.Arrivals(); len(got) != 1 || !strings.Contains(string(got[0].Body), "Ada Lindqvist") {
		t.Errorf("the collector has %d arrivals, want one with the customers", len(got))
	}
	if code, out := o.run(t, withKey, "wrong-purpose"); code != 0 {
		t.Errorf("wrong-purpose: exit code %d, want 0\n%s", code, out)
	}
	if code, out := o.run(t, withKey, "overreach"); code != 0 {
		t.Errorf("overreach: exit code %d, want 0\n%s", code, out)
	}
	if code, out := o.run(t, withKey, "overreach"); code != 3 || !strings.Contains(out, "no such customer") {
		t.Errorf("deleting the customer again: exit code %d, want 3 and a reason\n%s", code, out)
	}
	if code, out := o.run(t, nil, "work"); code != 3 || !strings.Contains(out, "401") {
		t.Errorf("work without a key: exit code %d, want 3 and a 401\n%s", code, out)
	}
}

// TestInspect shows that a secret that an agent holds is found in it, and one
// that it does not hold is not.
func TestInspect(t *testing.T) {
	o := build(t)
	transcript := filepath.Join(t.TempDir(), "transcript")
	cmd := exec.CommandContext(t.Context(), o.program, "-wait", "-transcript", transcript, "work")
	cmd.Env = append([]string{"CRM_KEY=" + key}, o.env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "pid" {
			pid, _ = strconv.Atoi(f[1])
		}
	}
	if pid != cmd.Process.Pid {
		t.Fatalf("the agent says it is process %d, want %d", pid, cmd.Process.Pid)
	}
	r, err := inspect.Process(pid, []byte(key))
	if err != nil || !r.Environment || !r.Memory || r.Arguments || r.Scanned < 1<<20 {
		t.Errorf("looking for its key: %+v, %v; want it in environment and memory", r, err)
	}
	r, err = inspect.Process(pid, []byte("Lindqvist"))
	if err != nil || r.Environment || !r.Memory {
		t.Errorf("looking for a customer: %+v, %v; want it in memory alone", r, err)
	}
	r, err = inspect.Process(pid, []byte("crm_live_0000000000000000"))
	if err != nil || !r.Clean() {
		t.Errorf("looking for what it never had: %+v, %v; want nothing", r, err)
	}
	if _, err := io.WriteString(in, "\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the agent ends with %v, want success", err)
	}
	b, err := os.ReadFile(transcript)
	if err != nil || !strings.Contains(string(b), "Authorization: Bearer "+key) || !strings.Contains(string(b), "Echo-Authorization") {
		t.Errorf("the transcript has neither side of the echo (%v)\n%s", err, b)
	}
}

// TestStream cuts the stream and the company off in the middle.
func TestStream(t *testing.T) {
	o := build(t)
	cmd := exec.CommandContext(t.Context(), o.program, "stream")
	cmd.Env = append([]string{"CRM_KEY=" + key}, o.env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	events := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		all.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "  event ") {
			if events++; events == 3 {
				if n := o.company.Streams(); n != 1 {
					t.Errorf("%d streams are open, want 1", n)
				}
				o.crm.Close()
			}
		}
	}
	_ = cmd.Wait() // its exit code is looked at below
	if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(all.String(), "the stream ") {
		t.Errorf("exit code %d, want 3 and the end of the stream\n%s", code, all.String())
	}
}
