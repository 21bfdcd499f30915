package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"

	"estover.dev"
	"estover.dev/e2e/e2etest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
)

// When a target is enabled its admin is rotated, and whoever has the key that is kept offline finds in
// the copy what logs in at the database from then on, with no more than age; the
// server has nothing with which it could open it (R12). The commands are those of
// docs/guides/copies-for-the-worst-day.md.
func TestCopiesForTheWorstDay(t *testing.T) {
	t.Parallel()
	key, err := age.GenerateX25519Identity()
	must(t, err)
	dir := filepath.Join(t.TempDir(), "glass")
	srv := e2etest.Start(t, "--break-glass-recipient", key.Recipient().String(), "--break-glass-dir", dir)
	admin := srv.Admin(t)
	pg := enginetest.Postgres(t)
	pg.Exec(t, `create role glass_admin nologin createrole; grant pg_signal_backend, pg_read_all_stats to glass_admin; grant readers to glass_admin with admin option;
		create role glass login password 'made-for-this-test' in role glass_admin`)
	if r := admin.Input(t, "made-for-this-test", "secret", "engine", "enable", "postgres", "orders", "--address", pg.Config.Address, "--option", "role=glass_admin",
		"--admin", "targets/orders", "--admin-user", "glass", "--admin-password-file", "-", "--template", "groups=readers"); r.Code != 0 {
		t.Fatalf("enabling: %s%s", r.Stdout, r.Stderr)
	}

	sealed, err := os.ReadFile(filepath.Join(dir, "default", "targets%2forders@2.age"))
	must(t, err)
	r, err := age.Decrypt(bytes.NewReader(sealed), key)
	must(t, err)
	var copied struct {
		Target  string
		Version int64
		Values  map[string]string
	}
	must(t, json.NewDecoder(r).Decode(&copied))
	if copied.Target != "orders" || copied.Version != 2 || copied.Values["username"] != "glass_b" {
		t.Fatalf("the copy is of version %d at %s, for %s", copied.Version, copied.Target, copied.Values["username"])
	}
	m := engine.Material{}
	for k, v := range copied.Values {
		m[k] = estover.NewSecret([]byte(v))
	}
	conn, err := pgx.Connect(t.Context(), pg.As(m, "crm"))
	if err != nil {
		t.Fatalf("what the copy says does not log in: %v", err)
	}
	must(t, conn.Close(context.Background()))

	// A folder that cannot be written to holds up the next rotation, and says so.
	must(t, os.RemoveAll(dir))
	must(t, os.WriteFile(dir, nil, 0o600))
	e2etest.Eventually(t, "a rotation says that it waits for its copy", func() bool {
		r := admin.Run(t, "rotation", "run", "targets/orders")
		return r.Code != 0 && strings.Contains(r.Stderr, "break-glass") || strings.Contains(admin.Must(t, "rotation", "explain", "targets/orders"), "break-glass")
	})
	srv.Stop(t)
	if err := srv.Try("--break-glass-recipient", key.String()); err == nil || strings.Contains(err.Error(), key.String()) || !strings.Contains(err.Error(), "age-keygen") {
		t.Errorf("a server that is given a secret key: %v", err)
	}
}
