package story

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnguarded plays the beats with an agent that is started as agents usually
// are, with the key and an open way to the world. None of them holds, so that
// they hold under Estover says something.
func TestUnguarded(t *testing.T) {
	bin, dir := t.TempDir(), t.TempDir()
	s := &Stage{Config: Config{Agent: filepath.Join(bin, "agent"), Dir: dir}}
	if out, err := exec.Command("go", "build", "-o", s.Agent, "estover.dev/demo/agent").CombinedOutput(); err != nil {
		t.Fatalf("building the agent: %v\n%s", err, out)
	}
	w, err := s.found()
	t.Cleanup(func() { _ = s.Close() })
	if err != nil {
		t.Fatal(err)
	}
	proxy, closeProxy, err := w.Proxy()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = closeProxy() })
	s.launch = func(ctx context.Context, _ string, agent []string) *exec.Cmd {
		cmd := s.command(ctx, s.Agent, agent...)
		cmd.Env = append(cmd.Env, "HTTPS_PROXY="+proxy, "SSL_CERT_FILE="+w.CAFile, "CRM_KEY="+s.key)
		return cmd
	}
	for name, want := range map[string]string{
		"work": "the agent holds the key", "leak": "the collector has got 1 requests", "overreach": "it reached the CRM",
		"evidence": "the first beat did not hold",
	} {
		for _, b := range s.Beats() {
			if b.Name != name {
				continue
			}
			if saw, err := b.Play(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("unguarded, the beat %s ends with %q, %v; want it to find that %s", name, saw, err, want)
			}
		}
	}
}
