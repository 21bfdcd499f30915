package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
)

// TestSeveralOrganisations is the guide as it is written: an organisation is added
// to a server, its first administrator comes in, and both have an agent, a resource
// and a client of the same names. A client of a stranger discovers each by its
// issuer, the launcher runs an agent of each, and what is done to one is not felt in
// the other.
func TestSeveralOrganisations(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/guides/several-organisations.md")
	must(t, err)
	var lines []string
	for _, m := range regexp.MustCompile(`(?m)^    (estover .*)$`).FindAllStringSubmatch(string(text), -1) {
		lines = append(lines, m[1])
	}
	if len(lines) != 9 {
		t.Fatalf("the guide has %d commands: %q", len(lines), lines)
	}
	create, invite, register, enter, update := lines[0], lines[1], lines[2:5], lines[5:8], lines[8]
	dbtest.EachURL(t, func(t *testing.T, database string) {
		home := newDesk(t, e2etest.StartOn(t, database))
		bin := filepath.Dir(e2etest.Binary(t))
		// types is somebody who types a line of the guide.
		types := func(who *e2etest.CLI, line string) string {
			t.Helper()
			c := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(line, "https://estover.example.com", home.URL))
			c.Dir, c.Env = who.Dir, append(append([]string{}, who.Env...), "PATH="+bin+":"+os.Getenv("PATH"))
			r := e2etest.Run(t, c)
			if r.Code != 0 {
				t.Fatalf("%s: exit code %d\n%s%s", line, r.Code, r.Stdout, r.Stderr)
			}
			return r.Stdout
		}
		types(home.admin, create)
		token, _, _ := strings.Cut(types(home.admin, invite), "\n")
		there := &e2etest.Server{URL: home.URL + "/t/acme", CAFile: home.CAFile, Data: home.Data}
		admin := there.CLI(t)
		acme := &desk{Server: there, world: home.world, crm: home.crm, site: home.site, admin: admin}
		for file, text := range map[string]string{
			"token": token,
			"company.yaml": strings.Join([]string{
				e2etest.Secret("crm/api-key", home.site), home.world.Resource(home.site, crmSpec), e2etest.Agent("bot", "support", "marketing"), crmGrant,
			}, "\n---\n"),
		} {
			must(t, os.WriteFile(filepath.Join(admin.Dir, file), []byte(text), 0o600))
		}
		for _, line := range enter {
			types(admin, line)
		}
		admin.Put(t, "crm/api-key", crmKey)
		types(home.admin, update)
		home.admin.Must(t, "tenant", "update", "acme", "--private-network", "127.0.0.0/8") // where the customer system is

		// Whoever is somebody at one is nobody at the other.
		if r := admin.With("ESTOVER_ADDR="+home.URL, "ESTOVER_TOKEN="+admin.Token(t)).Run(t, "agent", "list"); r.Code != 3 {
			t.Errorf("acme's administrator at the default organisation: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		if r := home.admin.With("ESTOVER_ADDR="+there.URL, "ESTOVER_TOKEN="+home.admin.Token(t)).Run(t, "agent", "list"); r.Code != 3 {
			t.Errorf("the server's administrator at acme: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		if r := admin.Run(t, "tenant", "list"); r.Code == 0 {
			t.Errorf("acme lists the organisations of the server:\n%s", r.Stdout)
		}

		list := home.site.URL + "/v1/customers?limit=3"
		grant := e2etest.Grant("client-reads", "client", "crm", "customer.list, customer.read", "support")
		for _, d := range []*desk{home, acme} {
			c := newOAuthClient(t, d, "client", e2etest.Agent("client", "support"), grant)
			c.runs(t, node(t), "oauth4webapi.mjs")
			if r := d.admin.Run(t, d.run("curl", "-sS", list)...); r.Code != 0 || !strings.Contains(r.Stdout, "cus_1001") {
				t.Errorf("an agent of %s: exit code %d\n%s%s", d.URL, r.Code, r.Stdout, r.Stderr)
			}
			if out := d.admin.Must(t, "audit", "verify"); !strings.Contains(out, "Every entry is as it was written.") {
				t.Errorf("the log of %s: %s", d.URL, out)
			}
		}

		if out := types(home.admin, register[0]); !strings.Contains(out, "Acme Ltd") || !strings.Contains(out, there.URL) {
			t.Errorf("the register:\n%s", out)
		}
		types(home.admin, register[1])
		if r := admin.Run(t, acme.run("curl", "-sS", list)...); r.Code == 0 {
			t.Errorf("an agent of a disabled organisation reaches the customer system:\n%s", r.Stdout)
		}
		if r := home.admin.Run(t, home.run("curl", "-sS", list)...); r.Code != 0 {
			t.Errorf("an agent of the other organisation: exit code %d\n%s", r.Code, r.Stderr)
		}
		types(home.admin, register[2])
		if r := admin.Run(t, acme.run("curl", "-sS", list)...); r.Code != 0 {
			t.Errorf("an agent of an enabled organisation: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
	})
}
