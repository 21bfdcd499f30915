//go:build unix

package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
)

// The signal USR1 contains everything: what runs ends, nothing starts, and the
// server goes on and says who asked for it.
func TestContainBySignal(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	r := d.start(t, "curl", "-sSN", d.site.URL+"/v1/events")
	r.line(t)
	if err := syscall.Kill(d.Pid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	if r.end(t); time.Since(asked) > 10*time.Second {
		t.Errorf("the stream ended %s after the signal", time.Since(asked))
	}
	if again := d.admin.Run(t, d.run("true")...); again.Code != 3 {
		t.Errorf("an agent starts after the signal, with exit code %d: %s", again.Code, again.Stderr)
	}
	out := d.admin.Must(t, "contain", "holds")
	if !strings.Contains(out, "everything") || !strings.Contains(out, "system:control") || !strings.Contains(out, "A signal to the server says so.") {
		t.Errorf("after the signal is held:\n%s", out)
	}
}
