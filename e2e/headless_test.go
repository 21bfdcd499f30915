package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"estover.dev/e2e/e2etest"
)

// headlessGuide are the blocks of the guide of one kind.
func headlessGuide(t *testing.T, kind string) (all []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/guides/headless-agents.md")
	must(t, err)
	for _, m := range regexp.MustCompile("(?s)```"+kind+"\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		all = append(all, m[1])
	}
	return all
}

// TestHeadlessAgents is the guide as it is written: the agent of the page and its
// scripts, and a person who decides on the pages of the server.
func TestHeadlessAgents(t *testing.T) {
	scripts := headlessGuide(t, "sh")
	if len(scripts) != 2 {
		t.Fatalf("the guide has %d scripts, want 2", len(scripts))
	}
	d := newDesk(t, e2etest.Start(t))
	agent := newOAuthClient(t, d, "reporter", headlessGuide(t, "yaml")...)
	agent.env = append(agent.env, "PERSON=alice")
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

// The pages on which people decide are for everybody, in a real browser: by a
// link with a code, and by the list of what waits.
func TestHeadlessAgentsInABrowser(t *testing.T) {
	d := newDesk(t, e2etest.Start(t))
	agent := newOAuthClient(t, d, "reporter", headlessGuide(t, "yaml")...)
	d.admin.Must(t, "person", "create", "alice")
	var invitation struct{ Link string }
	d.admin.JSON(t, &invitation, "person", "invite", "alice")
	b := d.Browser(t)
	b.Goto(invitation.Link)
	b.Click("button", "Go on")
	b.Heading("Welcome, alice")
	b.Click("button", "Make a passkey")
	b.Heading("Keep these recovery codes")

	curl := func(path string, pairs ...string) string {
		args := []string{"-sS", d.URL + path, "-u", agent.id + ":" + agent.secret, "-d", "resource=" + d.site.URL}
		for _, pair := range pairs {
			args = append(args, "-d", pair)
		}
		out, err := agent.command(t, "curl", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", path, err, out)
		}
		return string(out)
	}
	curl("/oauth/ciba", "login_hint=alice", "scope=openid customer.read", "binding_message=Report for March, a1b2")
	var asked struct {
		Link string `json:"verification_uri_complete"`
	}
	must(t, json.Unmarshal([]byte(curl("/oauth/device")), &asked))

	b.Goto(asked.Link)
	b.Heading("Connect an agent")
	if text := b.Text(); !strings.Contains(text, "Report for March, a1b2") || !strings.Contains(text, "Is this the code that the agent shows you?") {
		t.Errorf("the page of codes says\n%s", text)
	}
	b.Accessible("the page of codes")
	b.Click("button", "Go on")
	b.Heading("Let reporter act for you?")
	b.Accessible("the question about a code")
	b.Click("button", "Let it act for me")
	b.Heading("reporter acts for you")
	b.Accessible("what follows a yes")
	b.Click("link", "See the agents that act for you, and end it")
	b.Heading("Agents that act for you")
	b.Click("link", "Connect an agent by its code, or see what waits for you")
	b.Fill("Code", "nothing")
	b.Click("button", "Go on")
	b.Heading("Connect an agent")
	b.Accessible("the page of codes after a mistake")
	b.Click("link", "See what reporter asks for")
	b.Heading("Let reporter act for you?")
	b.Accessible("the question about what waits")
	b.Click("button", "No")
	b.Heading("reporter gets nothing")
}
