package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	bao "github.com/openbao/openbao/api/v2"

	"estover.dev/e2e/e2etest"
)

// TestImportFromAnotherVault is the guide as it is written; the other vault is
// the Vault-compatible door of another Estover.
func TestImportFromAnotherVault(t *testing.T) {
	t.Parallel()
	there, address := vaultServer(t)
	token := there.Admin(t).Token(t)
	config := bao.DefaultConfig()
	config.Address = address
	must(t, config.ConfigureTLS(&bao.TLSConfig{CACert: there.CAFile}))
	vault, err := bao.NewClient(config)
	must(t, err)
	vault.SetToken(token)
	must(t, vault.Sys().Mount("team", &bao.MountInput{Type: "kv-v2"}))
	kv := vault.KVv2("team")
	for _, path := range []string{"app/db", "app/api/key", "app/old", "hr/db"} {
		_, err := kv.Put(t.Context(), path, map[string]any{"password": "of " + path, "port": 5432})
		must(t, err)
	}
	must(t, kv.Delete(t.Context(), "app/old"))

	d := newDesk(t, e2etest.Start(t))
	dir := t.TempDir()
	ca, err := os.ReadFile(there.CAFile)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "token.txt"), []byte(token+"\n"), 0o600))
	g := readGuide(t, "import-from-another-vault.md", "vault.example.com:8200", strings.TrimPrefix(address, "https://"))
	d.does(t, dir, g.command("estover secret create vault/token"))
	d.does(t, dir, g.command("estover secret put vault/token"))

	look := g.command("estover secret import vault")
	if !strings.Contains(look, "--dry-run") {
		t.Fatalf("the first import of the guide is no trial: %s", look)
	}
	says := func(out string, want map[string]string) {
		t.Helper()
		for path, outcome := range want {
			found := false
			for line := range strings.Lines(out) {
				f := strings.Fields(line)
				found = found || len(f) >= 3 && f[1] == path && f[2] == outcome
			}
			if !found {
				t.Errorf("%s is not %s in the report:\n%s", path, outcome, out)
			}
		}
		if strings.Contains(out, "hr/") || strings.Contains(out, "of app") {
			t.Errorf("the report has what it must not have:\n%s", out)
		}
	}
	copied := map[string]string{"crm/db": "imported", "crm/api/key": "imported", "crm/old": "gone"}
	says(d.does(t, dir, look), copied)
	if out, _, err := shell(t, d, dir, "estover secret show crm/db"); err == nil {
		t.Errorf("a trial has made a secret:\n%s", out)
	}
	run := strings.Replace(look, " --dry-run", "", 1) + " --destination crm.example.com"
	if !strings.Contains(g.text, run) {
		t.Errorf("the guide does not say %s", run)
	}
	says(d.does(t, dir, run), copied)
	if out := d.does(t, dir, "estover secret get crm/db --field password --purpose 'to look whether it is the same'"); strings.TrimSpace(out) != "of app/db" {
		t.Errorf("the imported value is %q", out)
	}
	_, err = kv.Put(t.Context(), "app/db", map[string]any{"password": "another"})
	must(t, err)
	d.does(t, dir, "printf ours > ours.txt; estover secret put crm/api/key password=@ours.txt")
	says(d.does(t, dir, run), map[string]string{"crm/db": "updated", "crm/api/key": "differs", "crm/old": "gone"})
	says(d.does(t, dir, run), map[string]string{"crm/db": "unchanged", "crm/api/key": "differs", "crm/old": "gone"})

	// The token is for that vault alone.
	if _, said, err := shell(t, d, dir, strings.ReplaceAll(run, address, "https://127.0.0.2:1")); err == nil || !strings.Contains(said, "destination") {
		t.Errorf("the token at another vault: %v\n%s", err, said)
	}
}
