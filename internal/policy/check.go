package policy

import (
	"bytes"
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/format"
)

// A Finding is something that is wrong with a bundle, and where.
type Finding struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Check   string `json:"check"` // which check found it, as a word
	Message string `json:"message"`
	Warning bool   `json:"warning,omitempty"` // worth a look; the bundle may be activated
}

// String is the finding as compilers print theirs.
func (f Finding) String() string {
	kind := "error"
	if f.Warning {
		kind = "warning"
	}
	return fmt.Sprintf("%s:%d: %s: %s (%s)", f.File, f.Line, kind, f.Message, f.Check)
}

// A Report is what check says of a bundle.
type Report struct {
	Revision  string    `json:"revision"` // the digest of the bundle
	Files     int       `json:"files"`
	Bytes     int       `json:"bytes"`
	Packages  []string  `json:"packages,omitempty"`
	Findings  []Finding `json:"findings"`
	Cacheable bool      `json:"cacheable"`          // answers may be kept
	Asks      []string  `json:"asks_for,omitempty"` // what keeps them from it
}

// OK reports whether the bundle may be activated.
func (r Report) OK() bool {
	return !slices.ContainsFunc(r.Findings, func(f Finding) bool { return !f.Warning })
}

// Check reads a bundle as a reviewer would: does every file parse, does the
// whole compile against the schema of the input with the built-ins that are
// allowed, does it keep the rules of the house, is it formatted, and may its
// answers be cached. Findings are in the order of the files.
func Check(b Bundle) (Report, error) {
	b, err := b.normal()
	if err != nil {
		return Report{}, err
	}
	r := Report{Revision: b.Digest(), Files: len(b), Findings: []Finding{}}
	for _, f := range b {
		r.Bytes += len(f.Text)
	}
	modules, found := parse(b, true)
	broken := len(found) > 0
	found = append(found, lint(b, modules)...)
	if !broken {
		found = append(found, compileAll(b)...)
		if rev, _ := compile(b); rev != nil {
			r.Cacheable, r.Asks = len(rev.why) == 0, rev.why
			r.Packages = slices.DeleteFunc(rev.packages, func(p string) bool { return !strings.HasPrefix(p, "tenant.") })
		}
	}
	for _, f := range b {
		if path.Ext(f.Path) == ".rego" && modules[f.Path] != nil {
			found = append(found, formatted(f)...)
		}
	}
	slices.SortFunc(found, func(x, y Finding) int {
		return cmp.Or(strings.Compare(x.File, y.File), x.Line-y.Line, strings.Compare(x.Check, y.Check), strings.Compare(x.Message, y.Message))
	})
	r.Findings = append(r.Findings, slices.Compact(found)...)
	return r, nil
}

// compileAll compiles a bundle with its tests.
func compileAll(b Bundle) []Finding {
	modules, found := parse(slices.Concat(prefixed("estover/", rulesOf(base())), b), true)
	if len(found) > 0 {
		return found
	}
	data, found := b.data()
	found = append(found, conflicts(data, modules)...)
	entry, _, wrong := entryModule(untested(modules))
	if len(wrong) > 0 {
		return append(found, wrong...)
	}
	modules[entryFile] = entry
	c := newCompiler()
	if c.Compile(modules); c.Failed() {
		found = append(found, findings(c.Errors)...)
	}
	return found
}

// untested are the modules that are not tests.
func untested(modules map[string]*ast.Module) map[string]*ast.Module {
	rest := map[string]*ast.Module{}
	for p, m := range modules {
		if !isTest(p) {
			rest[p] = m
		}
	}
	return rest
}

// conflicts are the tables that stand where rules stand.
func conflicts(data map[string]any, modules map[string]*ast.Module) []Finding {
	var found []Finding
	for file, m := range modules {
		at, ok := any(data), true
		for _, step := range strings.Split(packageOf(m), ".") {
			members, isObject := at.(map[string]any)
			if at, ok = members[step]; !isObject || !ok {
				break
			}
		}
		if ok && at != nil {
			found = append(found, Finding{File: file, Line: m.Package.Location.Row, Check: "data", Message: fmt.Sprintf("A data.json has a table at %s, where this package stands. Put the table beside the package.", packageOf(m))})
		}
	}
	return found
}

// formatted finds a file that `opa fmt` would change.
func formatted(f File) []Finding {
	want, err := format.SourceWithOpts(f.Path, []byte(f.Text), format.Opts{RegoVersion: ast.RegoV1})
	if err != nil || bytes.Equal(want, []byte(f.Text)) {
		return nil
	}
	line := 1
	for i := 0; i < len(f.Text) && i < len(want) && f.Text[i] == want[i]; i++ {
		if f.Text[i] == '\n' {
			line++
		}
	}
	return []Finding{{File: f.Path, Line: line, Check: "format", Message: "`opa fmt` would write this otherwise.", Warning: true}}
}
