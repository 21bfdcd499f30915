package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bao "github.com/openbao/openbao/api/v2"
)

// TestMoveFromVault is the guide as it is written; the vault that is moved from is the
// door of another Estover.
func TestMoveFromVault(t *testing.T) {
	t.Parallel()
	there, from := vaultServer(t)
	token := there.Admin(t).Token(t)
	config := bao.DefaultConfig()
	config.Address = from
	must(t, config.ConfigureTLS(&bao.TLSConfig{CACert: there.CAFile}))
	vault, err := bao.NewClient(config)
	must(t, err)
	vault.SetToken(token)
	must(t, vault.Sys().Mount("team", &bao.MountInput{Type: "kv-v2"}))
	_, err = vault.KVv2("team").Put(t.Context(), "app/db", map[string]any{"user": "app", "password": "correct horse"})
	must(t, err)

	here, to := vaultServer(t)
	d := newDesk(t, here)
	dir := t.TempDir()
	ca, err := os.ReadFile(there.CAFile)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "token.txt"), []byte(token+"\n"), 0o600))
	g := readGuide(t, "move-from-vault.md", "vault.example.com:8200", strings.TrimPrefix(from, "https://"))
	// The page's alias, as a function; --fail has what is refused fail here.
	setup := "export VAULT_ADDR=" + to + " VAULT_CACERT=" + here.CAFile + " VAULT_TOKEN=$(estover token print); v() { curl --fail --silent --show-error --cacert $VAULT_CACERT --header \"X-Vault-Token: $VAULT_TOKEN\" \"$@\"; }; "
	if !strings.Contains(g.text, `alias v='curl --silent --cacert $VAULT_CACERT --header "X-Vault-Token: $VAULT_TOKEN"'`) {
		t.Error("the guide's alias is another one")
	}
	does := func(begin string) string { t.Helper(); return d.does(t, dir, setup+g.command(begin)) }

	does("v --request POST $VAULT_ADDR/v1/sys/mounts/team")
	if out := does("v $VAULT_ADDR/v1/sys/mounts/team"); !strings.Contains(out, `"version":"2"`) {
		t.Errorf("the mount is %s", out)
	}
	does("estover secret create vault/token")
	does("estover secret put vault/token")
	look := g.command("estover secret import vault")
	run := strings.TrimSuffix(look, " --dry-run")
	if run == look || strings.Count(g.text, run+"\n") != 1 {
		t.Fatalf("the guide does not try first: %s", look)
	}
	for _, command := range []string{look, run, run} {
		d.does(t, dir, command)
	}
	if out := d.does(t, dir, setup+"v $VAULT_ADDR/v1/team/data/app/db"); !strings.Contains(out, `"password":"correct horse"`) {
		t.Errorf("what was copied reads %s", out)
	}
	does("v --request PUT $VAULT_ADDR/v1/sys/policies/acl/app")
	does("v --request POST $VAULT_ADDR/v1/sys/auth/approle ")
	does("v --request POST $VAULT_ADDR/v1/auth/approle/role/app --data")
	does("v --request POST $VAULT_ADDR/v1/auth/approle/role/app/role-id")
	var made struct {
		Data struct {
			SecretID string `json:"secret_id"`
		}
	}
	must(t, json.Unmarshal([]byte(does("v --request POST $VAULT_ADDR/v1/auth/approle/role/app/secret-id")), &made))
	login, err := json.Marshal(map[string]string{"role_id": "the one that the program has", "secret_id": made.Data.SecretID})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "login.json"), login, 0o600))
	if out := d.does(t, dir, setup+"v --data @login.json $VAULT_ADDR/v1/auth/approle/login"); !strings.Contains(out, `"token_policies":["app","default"]`) {
		t.Errorf("the program logs in: %s", out)
	}
	if out := d.does(t, dir, g.command("estover event list")); !strings.Contains(out, "ticket.login") {
		t.Errorf("what the program does is not told:\n%s", out)
	}
}
