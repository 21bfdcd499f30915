package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"estover.dev/e2e/e2etest"
)

// TestRegisterClients is the guide as it is written: one script of all that
// stands there.
func TestRegisterClients(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/guides/register-clients.md")
	must(t, err)
	script := "set -eu\n"
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		script += m[1] + "\n"
	}
	d := newDesk(t, e2etest.Start(t))
	file := filepath.Join(t.TempDir(), "guide.sh")
	must(t, os.WriteFile(file, []byte(script), 0o600))
	cmd := d.admin.Command("version")
	cmd.Path, cmd.Args, cmd.Dir = "/bin/bash", []string{"bash", file}, t.TempDir()
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(e2etest.Binary(t))+":"+os.Getenv("PATH"), "ISSUER="+d.URL, "RESOURCE="+d.site.URL, "CURL_CA_BUNDLE="+d.CAFile)
	r := e2etest.Run(t, cmd)
	if r.Code != 0 || !strings.Contains(r.Stdout, "\ncustomer.read\n") || !strings.Contains(r.Stdout, "\n204\n") || !strings.HasSuffix(r.Stdout, "stay.\n") {
		t.Errorf("the guide ends with %d and prints\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if agents := d.admin.Must(t, "agent", "list"); !regexp.MustCompile(`(?m)^desk-\w+ +retired `).MatchString(agents) {
		t.Errorf("the agents are\n%s", agents)
	}
}

// TestClientsRegisterThemselves are clients that are not ours, with registration
// off and on.
func TestClientsRegisterThemselves(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	c := newOAuthClient(t, d, "client", e2etest.Agent("client", "support"))
	registering := func(on string) *oauthClient {
		var made struct{ Token string }
		d.admin.Must(t, "registration", on)
		d.admin.JSON(t, &made, "registration", "token", "desk", "--blueprint", "assistant", "--purpose", "support",
			"--grant-type", "authorization_code,refresh_token,client_credentials", "--allow", "crm=customer.list+customer.read", "--clearance", "confidential")
		return &oauthClient{desk: d, env: append([]string{"INITIAL_TOKEN=" + made.Token, "REGISTRATION=" + on}, c.env...)}
	}
	for _, on := range []string{"off", "on"} {
		t.Run("openid-client with registration "+on, func(t *testing.T) { registering(on).runs(t, node(t), "openid-client-register.mjs") })
	}
	t.Run("@modelcontextprotocol/sdk", func(t *testing.T) {
		registering("on").visited(t, newVisitor(t, d, "erin"), node(t), "mcp-sdk-register.mjs")
	})
	t.Run("@modelcontextprotocol/sdk with registration off", func(t *testing.T) { registering("off").runs(t, node(t), "mcp-sdk-register.mjs") })
}
