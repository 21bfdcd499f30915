package e2e

import (
	"os"
	"strings"
	"testing"

	"estover.dev/e2e/e2etest"
)

// TestOneTask is an agent that is let do one task, by its own authority and by a
// person's, with curl and with a client that is not ours, as the guide has it. The
// guide's own type is registered by its commands.
func TestOneTask(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../docs/guides/one-task.md")
	must(t, err)
	script, err := os.ReadFile("clients/oauth4webapi-task.mjs")
	must(t, err)
	blocks := map[string][]string{}
	for _, b := range fence.FindAllSubmatch(guide, -1) {
		blocks[string(b[1])] = append(blocks[string(b[1])], string(b[2]))
	}
	for _, b := range blocks["js"] {
		if !strings.Contains(string(script), b) {
			t.Errorf("the guide has code that the script has not:\n%s", b)
		}
	}
	d := newDesk(t, e2etest.Start(t))
	clerk := newOAuthClient(t, d, "clerk", blocks["yaml"][0])
	out, err := clerk.command(t, "/bin/sh", "-c", blocks["sh"][0]).CombinedOutput()
	if err != nil || string(out) != "200\n403\n403\n" {
		t.Errorf("the guide's commands print %q, %v", out, err)
	}
	clerk.visited(t, newVisitor(t, d, "alice"), node(t), "oauth4webapi-task.mjs")

	d.admin.Apply(t, blocks["yaml"][1])
	for _, say := range []struct{ args, want string }{
		{"detail-type list", "payment"},
		{"detail-type show payment", "at_most"},
		{"detail-type show estover_task", "locations"},
		{"detail-type retire payment", "Retired."},
	} {
		if out := d.admin.Must(t, strings.Fields(say.args)...); !strings.Contains(out, say.want) {
			t.Errorf("estover %s says\n%s", say.args, out)
		}
	}
	if out := d.admin.Must(t, "detail-type", "list"); strings.Contains(out, "payment") {
		t.Errorf("a type that was retired is listed:\n%s", out)
	}
}
