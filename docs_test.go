package estover_test

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

// TestDecisions holds docs/decisions against go.mod: each direct dependency
// has its reason there, and a version that is named is the one in use.
func TestDecisions(t *testing.T) {
	b, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", b, nil)
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("docs/decisions/0*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no decisions: %v", err)
	}
	var all strings.Builder
	for _, p := range pages {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	for _, r := range mod.Require {
		if !r.Indirect && !strings.Contains(all.String(), "`"+r.Mod.Path) {
			t.Errorf("no decision says why %s is used", r.Mod.Path)
		}
	}
	for _, m := range regexp.MustCompile("`([a-z0-9][^` ]+)`\\s(v[0-9][0-9A-Za-z.+-]*[0-9A-Za-z])").FindAllStringSubmatch(all.String(), -1) {
		path, version := "", "" // of the module: the longest path, since one may lie below another
		for _, r := range mod.Require {
			if (m[1] == r.Mod.Path || strings.HasPrefix(m[1], r.Mod.Path+"/")) && len(r.Mod.Path) > len(path) {
				path, version = r.Mod.Path, r.Mod.Version
			}
		}
		switch {
		case path == "":
			t.Errorf("a decision speaks of %s, which go.mod does not have", m[1])
		case m[2] != version:
			t.Errorf("a decision says %s %s, go.mod says %s", m[1], m[2], version)
		}
	}
}

// TestLinks looks for the files that the documents point to.
func TestLinks(t *testing.T) {
	out, err := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	links := 0
	for page := range strings.FieldsSeq(string(out)) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)#\s]+)`).FindAllStringSubmatch(string(b), -1) {
			if u, err := url.Parse(m[1]); err != nil || u.Scheme != "" {
				continue
			}
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s points to %s, which is not there", page, m[1])
			}
		}
	}
	if links == 0 {
		t.Error("no links were found at all")
	}
}
