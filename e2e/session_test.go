package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/session"
)

// show is the session as `estover session show` has it.
func (d *desk) show(t *testing.T, id string) (s session.Session) {
	t.Helper()
	d.admin.JSON(t, &s, "session", "show", id)
	return s
}

// heirs are the processes that a launcher has left its sessions to.
func heirs(t *testing.T, launcher int) (all []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		command, _ := os.ReadFile(file)
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "stat"))
		_, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); strings.Contains(string(command), "\x00run-heir\x00") && len(fields) > 1 && fields[1] == strconv.Itoa(launcher) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			all = append(all, pid)
		}
	}
	return all
}

// Where the launcher is killed, and the process that was to end the session in
// its place too, nobody is heard of any more: the session ends for that, and what
// it had open is cut as soon as the program is gone.
func TestRunForgotten(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	cmd := d.admin.Command("run", "--agent", "bot", "--purpose", "support", "--idle", "10s", "--", "sh", "-c", "curl -sSN "+d.site.URL+"/v1/events")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	e2etest.Eventually(t, "the stream is open", func() bool { return d.crm.Streams() == 1 })
	id := d.last(t).ID
	if got := d.show(t, id); got.IdleSecs != 10 || got.SeenAt.IsZero() {
		t.Errorf("the session may be idle for %d seconds and was seen at %s", got.IdleSecs, got.SeenAt)
	}
	left := heirs(t, cmd.Process.Pid)
	if len(left) != 1 {
		t.Fatalf("the launcher has %d heirs, want 1", len(left))
	}
	for _, pid := range append(left, cmd.Process.Pid) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Wait()
	e2etest.Eventually(t, "the stream is closed", func() bool { return d.crm.Streams() == 0 })
	if got := d.show(t, id); got.State != session.Open && got.EndCause != "idle" {
		t.Fatalf("the session has ended (%s), by which nothing is shown of idleness", got.EndCause)
	}
	e2etest.Eventually(t, "the session has ended", func() bool { return d.show(t, id).State == session.Ended })
	if got := d.show(t, id); got.EndCause != "idle" {
		t.Errorf("the session ended for the cause %q, want idle", got.EndCause)
	}
}

// A launcher that is there keeps its session: it is heard of. A renewed session
// goes on past its first end, and the program with it.
func TestRunRenewed(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	var life time.Duration
	var begun time.Time
	var cmd *exec.Cmd
	var id string
	var renewed e2etest.Result
	for _, life = range []time.Duration{6 * time.Second, 30 * time.Second} { // within which it has to be renewed
		begun = time.Now()
		cmd = d.admin.Command("run", "--agent", "bot", "--purpose", "support", "--ttl", life.String(), "--", "sh", "-c", "echo ready; exec sleep 600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		before := id
		e2etest.Eventually(t, "there is a session", func() bool { id = d.last(t).ID; return id != before })
		renewed = d.admin.Run(t, "session", "renew", id, "--ttl", "1h")
		if !strings.Contains(renewed.Stderr, "has ended") {
			break
		}
	}
	if renewed.Code != 0 || !strings.Contains(renewed.Stdout, id) || !strings.Contains(renewed.Stdout, "Expires") {
		t.Fatalf("the renewal says %q, %q", renewed.Stdout, renewed.Stderr)
	}
	if got := d.show(t, id); time.Until(got.ExpiresAt) < 50*time.Minute {
		t.Errorf("the renewed session ends at %s", got.ExpiresAt)
	}
	e2etest.Eventually(t, "its first end has passed", func() bool { return time.Since(begun) > life+2*time.Second })
	if got := d.show(t, id); got.State != session.Open {
		t.Errorf("the renewed session has ended (%s)", got.EndCause)
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the launcher is gone: %v", err)
	}
	r := d.admin.Run(t, "session", "renew", id, "--ttl", "25h")
	if r.Code == 0 || !strings.Contains(r.Stderr, "86400") {
		t.Errorf("renewed for 25 hours: exit code %d, %s", r.Code, r.Stderr)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if r := d.admin.Run(t, "session", "renew", id); r.Code == 0 || !strings.Contains(r.Stderr, "has ended") {
		t.Errorf("renewed after its end: exit code %d, %s", r.Code, r.Stderr)
	}
}

// A session is bound to the processes of its program: all that the program has,
// its whole environment and every file of the session, is of no use to another
// process, and the program's end is the session's.
func TestRunBound(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(shell)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	script := `curl -sS -o /dev/null -w '%{http_code}\n' ` + d.site.URL + `/v1/customers; echo $$; read stop`
	cmd := d.admin.Command("run", "--bind-process", "--agent", "bot", "--purpose", "support", "--", "sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r := launched(t, cmd)
	if got := r.line(t); got != "200" {
		t.Fatalf("the program's own call: %s", got)
	}
	pid := 0
	if _, err := fmt.Sscan(r.line(t), &pid); err != nil {
		t.Fatal(err)
	}
	id := d.last(t).ID
	if got := d.show(t, id); got.Bound != session.ByProcess || got.Program != hex.EncodeToString(sum[:]) {
		t.Errorf("the session is bound to %s of %s, want process of %x", got.Bound, got.Program, sum)
	}
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	calls := len(d.crm.Calls())
	stranger := exec.Command("curl", "-sS", "--max-time", "20", d.site.URL+"/v1/customers")
	stranger.Env = strings.Split(strings.TrimRight(string(environment), "\x00"), "\x00")
	if r := e2etest.Run(t, stranger); r.Code == 0 {
		t.Errorf("a stranger with the program's environment got an answer: %s", r.Stdout)
	}
	if n := len(d.crm.Calls()) - calls; n != 0 {
		t.Errorf("%d calls of a stranger reached the customer system", n)
	}
	_, _ = in.Write([]byte("\n"))
	stopped := time.Now()
	e2etest.Eventually(t, "the session has ended", func() bool { return d.show(t, id).State == session.Ended })
	if took := d.show(t, id).EndedAt.Sub(stopped); took > e2etest.Soon { // whenever the command that looks had its turn
		t.Errorf("the session ended %s after its program, want a second at most", took)
	}
	if code := r.end(t); code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr)
	}
}

// A server that is killed just after a session has ended finishes what follows
// when it is there again: the count of the calls is written, once.
func TestSessionEndIsFinished(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	r := d.start(t, "sh", "-c", "curl -sSN "+d.site.URL+"/v1/events")
	e2etest.Eventually(t, "the stream is open", func() bool { return d.crm.Streams() == 1 })
	id := d.last(t).ID
	d.admin.Must(t, "session", "end", id, "--cause", "enough")
	d.Kill()
	e2etest.Eventually(t, "the stream is closed", func() bool { return d.crm.Streams() == 0 })
	d.Restart(t)
	e2etest.Eventually(t, "nothing of the session is left to be ended", func() bool { return len(d.show(t, id).Ending) == 0 })
	var events []struct {
		Detail struct{ Calls int }
	}
	d.admin.JSON(t, &events, "event", "list", "--session", id, "--action", "session.close")
	if len(events) != 1 || events[0].Detail.Calls != 1 {
		t.Errorf("the session was closed %d times: %+v, want once with one call", len(events), events)
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	_ = r.wait()
}

// A server that is killed at any moment while a session ends has ended it with all
// that belongs to it, or has not: then nobody was told that it had, and it ends when
// it is ended again.
func TestSessionEndIsAllOrNothing(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	token := d.admin.Token(t)
	var ids []string
	for _, after := range []time.Duration{0, time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
		r := d.start(t, "sh", "-c", "curl -sSN "+d.site.URL+"/v1/events")
		e2etest.Eventually(t, "the stream is open", func() bool { return d.crm.Streams() == 1 })
		id := d.last(t).ID
		var request struct{ ID string }
		d.admin.JSON(t, &request, "access", "request", "--agent", "bot", "--session", id, "--resource", "crm", "--action", "customer.delete", "--reason", "to be gone "+after.String())
		d.admin.Must(t, "grant", "create", "--agent", "bot", "--session", id, "--resource", "crm", "--action", "customer.list", "--purpose", "support", "--class", "confidential")

		told := make(chan error, 1)
		go func() {
			told <- d.Post(t, token, "/v1/sessions/"+id+"/end", map[string]string{"cause": "enough"}, nil)
		}()
		time.Sleep(after) // where in the end the kill falls is for the machine to say
		d.Kill()
		acknowledged := <-told == nil
		e2etest.Eventually(t, "the stream is closed", func() bool { return d.crm.Streams() == 0 })
		d.Restart(t)
		state := d.show(t, id).State
		if acknowledged && state != session.Ended {
			t.Fatalf("killed after %s: the session is %s, and its end was acknowledged", after, state)
		}
		ended := state == session.Ended
		t.Logf("killed after %s: acknowledged %v, ended %v", after, acknowledged, ended)
		if !ended {
			d.admin.Run(t, "session", "end", id, "--cause", "again") // or its launcher has just done so
		}
		e2etest.Eventually(t, "the session has ended", func() bool { return d.show(t, id).State == session.Ended })
		ids = append(ids, id)
		var what struct{ State string }
		if d.admin.JSON(t, &what, "access", "show", request.ID); what.State != "cancelled" {
			t.Errorf("killed after %s: a request of the session is %s", after, what.State)
		}
		var grants []struct{ Session, State string }
		d.admin.JSON(t, &grants, "grant", "list", "--agent", "bot", "--all")
		for _, g := range grants {
			if g.Session == id && g.State != "ended" {
				t.Errorf("killed after %s: a grant of the session is %s", after, g.State)
			}
		}
		_ = r.cmd.Process.Signal(syscall.SIGTERM)
		_ = r.wait()
	}
	// What a server had taken on that was killed is done by another a minute later.
	e2etest.Eventually(t, "nothing of the sessions is left to be ended", func() bool {
		ids = slices.DeleteFunc(ids, func(id string) bool { return len(d.show(t, id).Ending) == 0 })
		return len(ids) == 0
	})
}
