package e2e

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"estover.dev/e2e/e2etest"
)

// The guide on AuthZEN as it is written: a program asks about an agent, as a rule
// lets it; and a client in another language asks for what it is refused, waits for
// a person, and asks again.
func TestDecisionsForOtherPrograms(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/guides/decisions-for-other-programs.md")
	must(t, err)
	blocks := map[string][]string{}
	for _, b := range fence.FindAllSubmatch(text, -1) {
		blocks[string(b[1])] = append(blocks[string(b[1])], string(b[2]))
	}
	if len(blocks["yaml"]) != 1 || len(blocks["rego"]) != 2 || len(blocks["sh"]) != 1 || len(blocks["text"]) != 1 || len(blocks["js"]) != 2 {
		t.Fatalf("the guide has other blocks than it should: %d kinds", len(blocks))
	}
	script, err := os.ReadFile("clients/authzen.mjs")
	must(t, err)
	for _, part := range blocks["js"] {
		if !strings.Contains(string(script), part) {
			t.Errorf("the guide has code that is not in the client:\n%s", part)
		}
	}
	d := newDesk(t, e2etest.Start(t))
	warden := newOAuthClient(t, d, "warden", blocks["yaml"]...)
	dir := filepath.Join(t.TempDir(), "policies")
	d.admin.Must(t, "policy", "init", dir)
	must(t, os.WriteFile(filepath.Join(dir, "enforcement.rego"), []byte(blocks["rego"][0]), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "enforcement_test.rego"), []byte(blocks["rego"][1]), 0o600))
	var pushed struct{ Revision struct{ Digest string } }
	d.admin.JSON(t, &pushed, "policy", "push", dir, "--note", "enforcement points")
	d.admin.Must(t, "policy", "activate", pushed.Revision.Digest, "--reason", "another gateway asks")
	file := filepath.Join(t.TempDir(), "warden.sh")
	must(t, os.WriteFile(file, []byte(blocks["sh"][0]), 0o600))
	if out, err := warden.command(t, "/bin/sh", file).CombinedOutput(); err != nil || string(out) != blocks["text"][0] {
		t.Errorf("the program prints (%v)\n%s\nand by the guide\n%s", err, out, blocks["text"][0])
	}

	clerk := newOAuthClient(t, d, "clerk")
	for _, decision := range []struct {
		decide []string
		want   string
	}{
		{[]string{"deny", "--note", "not on the phone"}, "denied"},
		{[]string{"approve"}, "approved 200"},
	} {
		cmd := clerk.command(t, node(t), "authzen.mjs")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		pipe, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(pipe)
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "waiting for apr_") {
			t.Fatalf("the client says %q\n%s", lines.Text(), errs.Bytes())
		}
		id := strings.TrimPrefix(lines.Text(), "waiting for ")
		d.admin.Must(t, append([]string{"access", decision.decide[0], id}, decision.decide[1:]...)...)
		var rest []string
		for lines.Scan() {
			rest = append(rest, lines.Text())
		}
		if err := cmd.Wait(); err != nil || strings.Join(rest, " ") != decision.want {
			t.Errorf("after %v the client says %v (%v), want %s\n%s", decision.decide, rest, err, decision.want, errs.Bytes())
		}
	}
}
