package e2e

import (
	"bufio"
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"estover.dev/e2e/e2etest"
)

// TestHeadlessAgents is the guide as it is written: the agent of the page and its
// scripts, and a person who decides on the pages of the server.
func TestHeadlessAgents(t *testing.T) {
	text, err := os.ReadFile("../docs/guides/headless-agents.md")
	must(t, err)
	blocks := func(kind string) (all []string) {
		for _, m := range regexp.MustCompile("(?s)```"+kind+"\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
		return all
	}
	scripts := blocks("sh")
	if len(scripts) != 2 {
		t.Fatalf("the guide has %d scripts, want 2", len(scripts))
	}
	d := newDesk(t, e2etest.Start(t))
	d.admin.Apply(t, blocks("yaml")...)
	var credential struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	d.admin.JSON(t, &credential, "agent", "credential", "add", "reporter", "--label", "job")
	agent := &oauthClient{desk: d, env: []string{
		"PATH=" + os.Getenv("PATH"), "CURL_CA_BUNDLE=" + d.CAFile, "ISSUER=" + d.URL, "CLIENT_ID=" + credential.ID, "CLIENT_SECRET=" + credential.Secret,
		"RESOURCE=" + d.site.URL, "API=" + d.URL + "/u/crm/v1/customers/cus_1001", "PERSON=alice",
	}}
	alice := newVisitor(t, d, "alice")

	// run runs a script, has decide answer its first line, and gives what else it
	// says.
	run := func(script string, decide func(line string)) (out, errs string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "agent.sh")
		must(t, os.WriteFile(file, []byte(script), 0o600))
		cmd := agent.command(t, "/bin/sh", file)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		pipe, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(pipe)
		if lines.Scan() {
			decide(lines.Text())
		}
		for lines.Scan() {
			out += lines.Text()
		}
		_ = cmd.Wait() // what it says tells more
		return out, stderr.String()
	}
	typed := func(decision string) func(string) {
		return func(line string) {
			code := line[strings.LastIndex(line, " ")+1:]
			page := alice.Send(alice.Load("/device"), "/device", "user_code", code)
			if !strings.Contains(page.Body, "127.0.0.1") || !strings.Contains(page.Body, "Who answers for it") {
				t.Errorf("the page that asks says\n%s", page.Body)
			}
			if page = alice.Send(page, "/device/decision", "decision", decision); page.Status != http.StatusOK {
				t.Errorf("deciding about %q: %d\n%s", line, page.Status, page.Body)
			}
		}
	}
	if out, errs := run(scripts[0], typed("allow")); !strings.Contains(out, "cus_1001") {
		t.Errorf("with a code and a yes the agent says %s\n%s", out, errs)
	}
	if out, errs := run(scripts[0], typed("deny")); out != "" || !strings.Contains(errs, "access_denied") {
		t.Errorf("with a code and a no the agent says %s\n%s", out, errs)
	}
	out, errs := run(scripts[1], func(line string) {
		_, words, _ := strings.Cut(line, "/device: ")
		list := alice.Load("/device")
		at := regexp.MustCompile(`href="(/device\?request=[^"]+)"`).FindStringSubmatch(list.Body)
		if words == "" || !strings.Contains(list.Body, words) || at == nil {
			t.Fatalf("of %q the person finds\n%s", line, list.Body)
		}
		if page := alice.Send(alice.Load(at[1]), "/device/decision", "decision", "allow"); page.Status != http.StatusOK {
			t.Errorf("saying yes: %d\n%s", page.Status, page.Body)
		}
	})
	if !strings.Contains(out, "cus_1001") {
		t.Errorf("with the person named the agent says %s\n%s", out, errs)
	}
	// It is on record, under the person's name and the agent's.
	events := d.admin.Must(t, "--output", "json", "event", "list", "--action", "authorization.create")
	if n := strings.Count(events, `"asked_from"`); n != 2 {
		t.Errorf("%d decisions say where they were asked from, want 2:\n%s", n, events)
	}
}
