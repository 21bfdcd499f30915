package estover_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// floors is the house, from the bottom up (docs/ARCHITECTURE.md). A package
// stands on the floor that names it or a folder around it, and imports only
// from the floors below and from its own folder.
var floors = [][]string{
	{"."},      // the vocabulary
	{"attest"}, // what anyone may import, and what therefore imports nothing internal
	{"client"},
	{"internal/db", "internal/detail", "internal/jose", "internal/opaque", "internal/redact"}, // the ground
	{"internal/seal"},
	{"internal/audit"},
	{"internal/job"},
	{"internal/guard"}, // the waist
	{
		"internal/agent", "internal/directory", "internal/hold", "internal/resource", "internal/policy", "internal/access", "internal/approval", "internal/token", "internal/tenant",
		"internal/secret", "internal/pki", "internal/federation", "internal/recording", "internal/anomaly", "internal/risk",
		"internal/notify", "internal/backup", "internal/mount", "internal/ticket", "internal/device",
	}, // the domain
	{"internal/session", "internal/provision", "internal/compliance", "internal/evidence", "internal/apply", "internal/edge"}, // the binders
	{"internal/incident", "internal/page"},
	{
		"internal/oauth", "internal/login", "internal/scim", "internal/signal", "internal/authzen", "internal/vault",
		"internal/approve", "internal/ca", "internal/connect", "internal/contain", "internal/reveal", "internal/gateway", "internal/api", "console",
	}, // the doors
	{"internal/server"}, // the roof
	{"cmd/estover"},
	{"demo", "bench"},
	{"e2e"},
}

// strangers are the libraries that one package alone may import, and of a
// library what it may import; empty means all of it.
var strangers = []struct {
	module, owner string
	parts         []string
}{
	{"github.com/go-jose/go-jose/v4", "internal/jose", nil},
	{"github.com/golang-jwt/jwt/v5", "internal/jose", nil},
	{"github.com/hashicorp/hcl", "internal/mount", nil},
	{"github.com/open-policy-agent/opa", "internal/policy", []string{
		"v1/rego", "v1/ast", "v1/storage", "v1/storage/inmem", "v1/bundle", "v1/tester", "v1/cover", "v1/rego/compile", "v1/dependencies",
		"v1/format", "v1/topdown",
	}},
}

// banned are packages that nothing may bring in, not even by way of another:
// they are a database, clients of image registries and exporters of their own.
var banned = []string{"github.com/open-policy-agent/opa/v1/runtime", "github.com/open-policy-agent/opa/v1/sdk"}

// A pkg is what `go list -json` says of a package. Imports are those of the
// program; those of its tests are free.
type pkg struct {
	ImportPath    string
	Imports, Deps []string
}

// within reports whether the package is the folder or lies below it.
func within(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }

// place finds the floor of a package of ours and the folder that is named
// there; -1 if there is none.
func place(name string) (int, string) {
	for n, folders := range floors {
		for _, f := range folders {
			if name == f || f != "." && within(name, f) {
				return n, f
			}
		}
	}
	return -1, ""
}

// ours gives the path below the module, if the package is ours.
func ours(p string) (string, bool) {
	if p == "estover.dev" {
		return ".", true
	}
	return strings.CutPrefix(p, "estover.dev/")
}

// forTests reports whether a package exists for tests alone: db/dbtest,
// guard/guardtest.
func forTests(p string) bool { return path.Base(p) == path.Base(path.Dir(p))+"test" }

func violations(pkgs []pkg) (bad []string) {
	say := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	for _, p := range pkgs {
		name, _ := ours(p.ImportPath)
		floor, folder := place(name)
		if floor < 0 {
			say("%s stands on no floor", name)
			continue
		}
		for _, imported := range p.Imports {
			if to, ok := ours(imported); ok {
				at, its := place(to)
				if forTests(to) && !forTests(name) {
					say("%s imports %s, which is for tests", name, to)
				} else if at >= floor && its != folder {
					say("%s imports %s, which does not stand below it", name, to)
				}
			}
			for _, s := range strangers {
				part, _ := strings.CutPrefix(imported, s.module+"/")
				if within(imported, s.module) && (name != s.owner || s.parts != nil && !slices.Contains(s.parts, part)) {
					say("%s imports %s", name, imported)
				}
			}
		}
		for _, b := range banned {
			if slices.ContainsFunc(p.Deps, func(d string) bool { return within(d, b) }) {
				say("%s brings in %s", name, b)
			}
		}
	}
	return bad
}

func TestLayout(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	for _, v := range violations(pkgs) {
		t.Error(v)
	}
}

// TestLayoutCatches plants one violation at a time, beside what is allowed.
func TestLayoutCatches(t *testing.T) {
	const opa, jose = "github.com/open-policy-agent/opa/v1/", "github.com/go-jose/go-jose/v4"
	for _, c := range []struct{ path, imports, want string }{
		{"internal/access", "internal/guard", ""},
		{"internal/gateway/forward", "internal/gateway", ""},
		{"internal/policy", opa + "rego", ""},
		{"internal/guard/guardtest", "internal/guard", ""},
		{"internal/access", "internal/agent", "internal/access imports internal/agent, which does not stand below it"},
		{"internal/guard", "internal/policy", "internal/guard imports internal/policy, which does not stand below it"},
		{"internal/seal", "internal/audit", "internal/seal imports internal/audit, which does not stand below it"},
		{"internal/oauth", "internal/api", "internal/oauth imports internal/api, which does not stand below it"},
		{"cmd/estover", "attest", ""},
		{"attest", "internal/jose", "attest imports internal/jose, which does not stand below it"},
		{"internal/token", "internal/db/dbtest", "internal/token imports internal/db/dbtest, which is for tests"},
		{"internal/token", jose + "/jwt", "internal/token imports " + jose + "/jwt"},
		{"internal/guard", opa + "ast", "internal/guard imports " + opa + "ast"},
		{"internal/policy", opa + "runtime", "internal/policy imports " + opa + "runtime"},
		{"internal/utils", "fmt", "internal/utils stands on no floor"},
	} {
		p := pkg{ImportPath: "estover.dev/" + c.path, Imports: []string{c.imports}}
		if c.imports == "attest" || strings.HasPrefix(c.imports, "internal/") {
			p.Imports[0] = "estover.dev/" + c.imports
		}
		if got := strings.Join(violations([]pkg{p}), "; "); got != c.want {
			t.Errorf("%s importing %s: %q, want %q", c.path, c.imports, got, c.want)
		}
	}
	if got := violations([]pkg{{ImportPath: "estover.dev/bench", Deps: []string{opa + "sdk/test"}}}); len(got) != 1 {
		t.Errorf("a dependency of a dependency on a banned package: %q, want one violation", got)
	}
}
