package e2e

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
)

// A server with an older copy of its database in the place of the newest one does not
// start, and says what to do; declared restored it does, and issues nothing at its
// targets before they are compared with what is here (K5, F5).
func TestDatabaseThatWasPutBack(t *testing.T) {
	t.Parallel()
	srv := e2etest.Start(t)
	v := newVault(t, srv)
	srv.Stop(t)
	copied := t.TempDir()
	files, err := filepath.Glob(filepath.Join(srv.Data, "estover.db*"))
	must(t, err)
	for _, file := range files {
		b, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(copied, filepath.Base(file)), b, 0o600))
	}
	srv.Restart(t)
	v.admin.Must(t, "secret", "create", "later/key", "--destination", "api.example.com")
	srv.Stop(t)

	for _, file := range files {
		must(t, os.Remove(file))
		b, err := os.ReadFile(filepath.Join(copied, filepath.Base(file)))
		must(t, err)
		must(t, os.WriteFile(file, b, 0o600))
	}
	if err := srv.Try(); err == nil || !strings.Contains(err.Error(), "entries here, and had") || !strings.Contains(err.Error(), "start the server once with --restored") {
		t.Fatalf("the server with an older database: %v", err)
	}
	must(t, srv.Try("--restored"))
	if r := v.admin.Run(t, "doctor", "targets"); r.Code == 0 || !strings.Contains(r.Stdout, "estover secret engine reconcile postgres") {
		t.Errorf("estover doctor targets after a restore: %d\n%s", r.Code, r.Stdout)
	}
	if r := v.admin.Run(t, "secret", "lease", "create", "people-postgres", "--purpose", "a look"); r.Code == 0 {
		t.Errorf("a lease before the target was compared: %s", r.Stdout)
	}
	for _, name := range []string{"postgres", "mysql"} {
		v.admin.Must(t, "secret", "engine", "reconcile", name)
	}
	v.admin.Must(t, "secret", "lease", "create", "people-postgres", "--purpose", "a look")

	// From here on it is as it was left, with the flag or without.
	srv.Stop(t)
	srv.Restart(t)
	v.admin.Must(t, "secret", "lease", "create", "people-postgres", "--purpose", "a look")
}

// A server whose clock is behind the newest event of its log does not start, and says
// what to do (F6). That the clock was ahead before is declared.
func TestClockThatIsBehind(t *testing.T) {
	t.Parallel()
	srv := e2etest.Start(t)
	srv.Admin(t).Must(t, "secret", "create", "some/key", "--destination", "api.example.com")
	srv.Stop(t)
	d, err := sql.Open("sqlite", filepath.Join(srv.Data, "estover.db"))
	must(t, err)
	defer d.Close()
	ahead := func(by time.Duration) {
		t.Helper()
		_, err := d.ExecContext(t.Context(), "update audit set at = $1 where seq = (select max(seq) from audit)", time.Now().Add(by).UnixMicro())
		must(t, err)
	}
	ahead(time.Hour)
	if err := srv.Try(); err == nil || !strings.Contains(err.Error(), "The clock of this machine says") || !strings.Contains(err.Error(), "Set the clock (by NTP)") {
		t.Fatalf("a server whose newest event is of in an hour: %v", err)
	}
	must(t, srv.Try("--restored"))
	srv.Stop(t)
	ahead(30 * time.Second) // as far as the clocks of nodes may differ
	must(t, srv.Try())
}
