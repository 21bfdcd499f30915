package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	bao "github.com/openbao/openbao/api/v2"

	"estover.dev/e2e/e2etest"
)

// TestUseAnotherVault is the guide as it is written; the other vault is the
// Vault-compatible door of another Estover (M16).
func TestUseAnotherVault(t *testing.T) {
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
	put := func(path, password string) {
		t.Helper()
		_, err := kv.Put(t.Context(), path, map[string]any{"password": password})
		must(t, err)
	}
	put("app/db", "of the database")
	put("shared/a", "of a")
	put("shared/sub/b", "of b")

	d := newDesk(t, e2etest.Start(t))
	dir := t.TempDir()
	ca, err := os.ReadFile(there.CAFile)
	must(t, err)
	for name, text := range map[string]string{"ca.pem": string(ca), "token.txt": token + "\n", "key.txt": "our key"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	g := readGuide(t, "use-another-vault.md", "vault.example.com:8200", strings.TrimPrefix(address, "https://"))
	for _, command := range []string{"estover secret create vault/token", "estover secret put vault/token", "estover secret store add vault team"} {
		d.does(t, dir, g.command(command))
	}
	d.does(t, dir, "estover secret store check team")

	// Read through.
	d.does(t, dir, g.command("estover secret link crm/db"))
	if out := d.does(t, dir, g.command("estover secret link shared/")); !strings.Contains(out, "shared/a") || !strings.Contains(out, "shared/sub/b") {
		t.Errorf("linking a folder says:\n%s", out)
	}
	get := g.command("estover secret get crm/db")
	if out := d.does(t, dir, get); strings.TrimSpace(out) != "of the database" {
		t.Errorf("what is read through the store is %q", out)
	}
	if out := d.does(t, dir, strings.Replace(get, "crm/db", "shared/sub/b", 1)); strings.TrimSpace(out) != "of b" {
		t.Errorf("what is read through a folder is %q", out)
	}
	if _, said, err := shell(t, d, dir, "printf x | estover secret put crm/db"); err == nil || !strings.Contains(said, "lives in another vault") {
		t.Errorf("writing it here: %v\n%s", err, said)
	}
	if out := d.does(t, dir, "estover secret store show team"); !strings.Contains(out, "crm/db") || !strings.Contains(out, "shared/") {
		t.Errorf("the store shows:\n%s", out)
	}

	// An agent's call carries a key that lives there.
	_, err = kv.Put(t.Context(), "app/crm", map[string]any{"value": crmKey})
	must(t, err)
	d.does(t, dir, "estover secret link crm/lent-key --store team --from app/crm --class confidential --destination "+strings.TrimPrefix(d.site.URL, "https://"))
	d.admin.Apply(t, d.world.Resource(d.site, strings.ReplaceAll(crmSpec, "crm/api-key", "crm/lent-key")))
	if r := d.admin.Run(t, d.run("curl", "-sS", d.site.URL+"/v1/customers?limit=3")...); r.Code != 0 || !strings.Contains(r.Stdout, "Ada Lindqvist") {
		t.Errorf("a call with a key that lives in the other vault: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if out := d.does(t, dir, "estover secret uses crm/lent-key"); !strings.Contains(out, "gateway") {
		t.Errorf("who used it:\n%s", out)
	}

	// Pushed.
	for _, command := range []string{"estover secret create crm/webhook-key", "estover secret put crm/webhook-key", "estover secret sync add"} {
		d.does(t, dir, g.command(command))
	}
	list := g.command("estover secret sync list")
	until := func(state string) (id string) {
		t.Helper()
		for end := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			out := d.does(t, dir, list)
			for line := range strings.Lines(out) {
				if f := strings.Fields(line); len(f) > 4 && f[1] == "crm/webhook-key" && f[4] == state {
					return f[0]
				}
			}
			if time.Now().After(end) {
				t.Fatalf("the sync is not %s:\n%s", state, out)
			}
		}
	}
	stands := func(want string) {
		t.Helper()
		s, err := kv.Get(t.Context(), "app/webhook-key")
		if err != nil || s.Data["value"] != want {
			t.Fatalf("in the store stands %v, %v, want %q", s, err, want)
		}
	}
	until("synced")
	stands("our key")
	_, err = kv.Put(t.Context(), "app/webhook-key", map[string]any{"value": "theirs"})
	must(t, err)
	d.does(t, dir, "printf 'our second key' | estover secret put crm/webhook-key")
	id := until("drift")
	stands("theirs")
	if _, said, err := shell(t, d, dir, "estover secret sync overwrite "+id); err == nil || !strings.Contains(said, "Say why") {
		t.Errorf("overwriting without a reason: %v\n%s", err, said)
	}
	d.does(t, dir, "estover secret sync overwrite "+id+" --reason 'the rotation here is the one that counts'")
	until("synced")
	stands("our second key")
	_, err = kv.Put(t.Context(), "app/webhook-key", map[string]any{"value": "theirs again"})
	must(t, err)
	d.does(t, dir, "printf 'our third key' | estover secret put crm/webhook-key")
	d.does(t, dir, "estover secret sync accept "+until("drift"))
	if out := d.does(t, dir, "estover secret get crm/webhook-key --purpose 'to see what was accepted'"); strings.TrimSpace(out) != "theirs again" {
		t.Errorf("what was accepted is %q here", out)
	}
	stands("theirs again")
	if _, said, err := shell(t, d, dir, "estover secret store remove team"); err == nil || !strings.Contains(said, "estover secret store show team") {
		t.Errorf("removing a store that is in use: %v\n%s", err, said)
	}
	for _, command := range []string{"sync remove " + id, "unlink shared/", "unlink shared/a", "unlink shared/sub/b", "unlink crm/db", "unlink crm/lent-key", "store remove team"} {
		d.does(t, dir, "estover secret "+command)
	}
	stands("theirs again")
}

// TestStoreByAssertion: no secret of ours logs in at the other vault, but an assertion
// of our issuer, by the auth method jwt of the guide.
func TestStoreByAssertion(t *testing.T) {
	t.Parallel()
	there, address := vaultServer(t)
	srv := e2etest.Start(t)
	d := newDesk(t, srv)
	ours, err := os.ReadFile(srv.CAFile)
	must(t, err)
	config := bao.DefaultConfig()
	config.Address = address
	must(t, config.ConfigureTLS(&bao.TLSConfig{CACert: there.CAFile}))
	vault, err := bao.NewClient(config)
	must(t, err)
	vault.SetToken(there.Admin(t).Token(t))
	must(t, vault.Sys().Mount("team", &bao.MountInput{Type: "kv-v2"}))
	_, err = vault.KVv2("team").Put(t.Context(), "app/db", map[string]any{"password": "of the database"})
	must(t, err)
	must(t, vault.Sys().PutPolicy("reader", `path "team/data/app/*" { capabilities = ["read"] }
path "team/metadata/app/*" { capabilities = ["read", "list"] }`))
	must(t, vault.Sys().EnableAuthWithOptions("estover", &bao.EnableAuthOptions{Type: "jwt"}))
	write := func(path string, data map[string]any) {
		t.Helper()
		_, err := vault.Logical().Write(path, data)
		must(t, err)
	}
	write("auth/estover/config", map[string]any{"jwks_url": srv.URL + "/oauth/jwks", "jwks_ca_pem": string(ours), "bound_issuer": srv.URL, "allow_private": true})

	dir := t.TempDir()
	ca, err := os.ReadFile(there.CAFile)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600))
	add := "estover secret store add vault team --address " + address + " --authorities ca.pem --option mount=team --option audience=team-vault --option auth=estover --option role=estover"
	if _, said, err := shell(t, d, dir, add); err == nil || !strings.Contains(said, "does not take our assertion") {
		t.Fatalf("before the other vault has a role: %v\n%s", err, said)
	}
	id := strings.TrimSpace(d.does(t, dir, "estover secret store show team | sed -n 's/^Id: *//p'"))
	write("auth/estover/role/estover", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{"team-vault"}, "bound_subject": "store:" + id, "token_policies": "reader",
	})
	// There, too, an agent reads no secret unless policy says so.
	must(t, os.Mkdir(filepath.Join(dir, "policies"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "policies", "stores.rego"), []byte(`# METADATA
# title: Stores
# description: What other vaults read here.
package tenant.stores

# METADATA
# title: The secrets of the team are read by another vault
permit contains "read_by_a_vault" if {
	input.op in {"secret.read", "secret.list"}
	startswith(input.resource.id, "secret:team/app/")
}
`), 0o600))
	other := newDesk(t, there)
	digest := regexp.MustCompile(`[0-9a-f]{64}`).FindString(other.does(t, dir, "estover policy push policies --note stores -o json"))
	other.does(t, dir, "estover policy activate "+digest+" --reason 'another vault reads here'")
	d.does(t, dir, "estover secret store check team --path app/db")
	d.does(t, dir, "estover secret link crm/db --store team --from app/db")
	if out := d.does(t, dir, "estover secret get crm/db --field password --purpose 'to look whether it is the same'"); strings.TrimSpace(out) != "of the database" {
		t.Errorf("what is read through the store is %q", out)
	}
}
