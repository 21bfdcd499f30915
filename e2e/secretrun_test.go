package e2e

import (
	"bufio"
	"io"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/secret/engine/enginetest"
)

// TestSecretRunEnds is of a program with a database user in its environment, which ends
// with it in whatever way that is: told to stop, too stubborn to, without its launcher,
// and by losing the user first. As long as it runs, the user goes on.
func TestSecretRunEnds(t *testing.T) {
	t.Parallel()
	pg := enginetest.Postgres(t)
	srv := e2etest.Start(t)
	admin := srv.Admin(t)
	if r := admin.Input(t, string(pg.Config.Admin.Secret.Reveal()), "secret", "engine", "enable", "postgres", "lent", "--address", pg.Config.Address,
		"--admin", "targets/lent", "--admin-user", pg.Config.Admin.User, "--admin-password-file", "-", "--keep-root"); r.Code != 0 {
		t.Fatalf("enabling: %s%s", r.Stdout, r.Stderr)
	}
	admin.Must(t, "secret", "role", "put", "lent", "--target", "lent", "--template", "groups=readers", "--delivery", "plaintext")

	// start runs a script, which has said the name of its user when start returns. Where
	// the user's time was over by then, the next of the times is given.
	start := func(t *testing.T, lives []time.Duration, script string) (cmd *exec.Cmd, user string, rest io.Reader, says *strings.Builder, life time.Duration) {
		t.Helper()
		for _, life = range lives {
			cmd = admin.Command("secret", "run", "--role", "lent", "--ttl", life.String(), "--purpose", "a test", "--", "sh", "-c", `echo "$LENT_USERNAME"; `+script)
			says = &strings.Builder{}
			cmd.Stderr = says
			out, err := cmd.StdoutPipe()
			must(t, err)
			_, err = cmd.StdinPipe() // which is open for as long as the launcher is waited for
			must(t, err)
			must(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			lines := bufio.NewReader(out)
			line, err := lines.ReadString('\n')
			user = strings.TrimSpace(line)
			if err == nil && len(pg.Users(t, user)) == 1 {
				return cmd, user, lines, says, life
			}
			t.Logf("with %s, the program has said %q, %v", life, line, err)
		}
		t.Fatalf("while the program runs the database has no user %q", user)
		return nil, "", nil, nil, 0
	}
	long, short := []time.Duration{10 * time.Minute}, []time.Duration{3 * time.Second, 15 * time.Second}
	// gone waits until the user is.
	gone := func(t *testing.T, user string) {
		t.Helper()
		e2etest.Eventually(t, "the user is gone", func() bool { return len(pg.Users(t, user)) == 0 })
	}

	for name, sig := range map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, user, rest, _, _ := start(t, long, `trap 'echo told; exit 7' TERM INT; echo ready; while :; do sleep 0.05; done`)
			lines := bufio.NewReader(rest)
			if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
				t.Fatalf("%q, %v", line, err)
			}
			must(t, cmd.Process.Signal(sig))
			if said, err := io.ReadAll(lines); err != nil || string(said) != "told\n" {
				t.Errorf("the program has said %q, %v, want that it was told", said, err)
			}
			if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 7 {
				t.Errorf("the launcher ends with %d, want the program's 7", cmd.ProcessState.ExitCode())
			}
			gone(t, user)
		})
	}

	t.Run("a program that does not stop", func(t *testing.T) {
		t.Parallel()
		cmd, user, rest, _, _ := start(t, long, `trap '' TERM; echo ready; while :; do sleep 0.05; done`)
		lines := bufio.NewReader(rest)
		if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("%q, %v", line, err)
		}
		must(t, cmd.Process.Signal(syscall.SIGTERM))
		_, _ = io.Copy(io.Discard, lines)
		if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 128+int(syscall.SIGKILL) {
			t.Errorf("the launcher ends with %d, want that the program was killed", cmd.ProcessState.ExitCode())
		}
		gone(t, user)
	})

	t.Run("a launcher that is killed", func(t *testing.T) {
		t.Parallel()
		var cmd *exec.Cmd
		var user string
		extended := false
		for lives := short; !extended && len(lives) > 0; { // in whose last part it has to be extended
			var life time.Duration
			cmd, user, _, _, life = start(t, lives, `read x`)
			// Longer than its own short time it lives by being extended.
			time.Sleep(life * 5 / 3)
			extended = len(pg.Users(t, user)) == 1
			lives = lives[slices.Index(lives, life)+1:]
		}
		if !extended {
			t.Error("the user was not extended")
		}
		must(t, cmd.Process.Kill())
		gone(t, user)
		_ = cmd.Wait()
	})

	t.Run("a user that is taken back", func(t *testing.T) {
		t.Parallel()
		cmd, user, rest, says, _ := start(t, []time.Duration{6 * time.Second, 30 * time.Second}, `trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.05; done`)
		var list []struct{ ID, User string }
		admin.JSON(t, &list, "secret", "lease", "list", "--role", "lent", "--open")
		for _, l := range list {
			if l.User == user {
				admin.Must(t, "secret", "lease", "revoke", l.ID, "--reason", "seen enough", "--wait")
			}
		}
		if said, err := io.ReadAll(rest); err != nil || string(said) != "ready\ntold\n" {
			t.Errorf("the program has said %q, %v, want that it was told", said, err)
		}
		if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 9 || !strings.Contains(says.String(), "has been taken back") {
			t.Errorf("the launcher ends with %d: %s", cmd.ProcessState.ExitCode(), says)
		}
		gone(t, user)
	})
}
