package vault_test

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"estover.dev/internal/vault"
)

var update = flag.Bool("update", false, "write the routes into docs/reference/vault.md")

const (
	reference = "../../docs/reference/vault.md"
	begins    = "<!-- routes -->\n"
	ends      = "<!-- end of routes -->\n"
)

// The reference lists every route, as it is.
func TestReference(t *testing.T) {
	var b strings.Builder
	kind := ""
	routes := vault.New(vault.Parts{}, vault.Options{}).Routes()
	slices.SortStableFunc(routes, func(a, b vault.Route) int {
		return cmp.Or(strings.Compare(a.Mount, b.Mount), strings.Compare(a.Path, b.Path))
	})
	for _, r := range routes {
		if r.Mount != kind {
			kind = r.Mount
			fmt.Fprintf(&b, "\n### %s\n\n| path | methods | |\n|---|---|---|\n", kind)
		}
		var methods []string
		for _, m := range []struct {
			name string
			h    vault.Handler
		}{{"GET", r.Read}, {"LIST", r.List}, {"POST", r.Write}, {"PATCH", r.Patch}, {"DELETE", r.Delete}} {
			if m.h != nil {
				methods = append(methods, m.name)
			}
		}
		mark := ""
		if r.Open || r.Optional {
			mark = "*"
		}
		if r.Help == "" {
			t.Errorf("nothing is said of %s %s", r.Mount, r.Path)
		}
		path := "the mount itself"
		if r.Path != "" {
			path = "`" + r.Path + "`"
		}
		fmt.Fprintf(&b, "| %s%s | %s | %s |\n", path, mark, strings.Join(methods, " "), r.Help)
	}
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begins)
	listed, tail, closed := strings.Cut(rest, ends)
	if !ok || !closed {
		t.Fatal("the reference has no place for the routes")
	}
	if *update {
		if err := os.WriteFile(reference, []byte(head+begins+b.String()+"\n"+ends+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for line := range strings.Lines(b.String()) {
		if !strings.Contains(listed, line) {
			t.Errorf("the reference lacks %q; write it with go test ./internal/vault -run TestReference -update", strings.TrimSpace(line))
		}
	}
}
