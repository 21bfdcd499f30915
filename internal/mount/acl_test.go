package mount

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func acl(t testing.TB, texts ...string) *ACL {
	t.Helper()
	all := &rules{}
	for _, text := range texts {
		one, err := compile(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		all.merge(one)
	}
	return &ACL{rules: all}
}

// V20: exact before patterns, the longest match, deny wins.
func TestACL(t *testing.T) {
	a := acl(t, `
path "secret/*"            { capabilities = ["read", "list"] }
path "secret/team/*"       { capabilities = ["create", "update", "read", "patch"] }
path "secret/team/locked"  { capabilities = ["deny"] }
path "secret/+/config"     { capabilities = ["read"] }
path "secret/+/+/deep*"    { capabilities = ["delete"] }
path "pki/+/+/deep*"       { capabilities = ["delete"] }
path "secret/exact"        { capabilities = ["update"] }
path "sys/auth/*"          { capabilities = ["create", "read", "update", "delete", "sudo"] }
path "/old/*"              { policy = "write" }
path "older"               { policy = "sudo" }
path "listed"              { capabilities = ["list"] }
path "folder/"             { capabilities = ["list"] }
path "*"                   { capabilities = ["patch"] }
`)
	for _, c := range []struct {
		path string
		what Capability
		want bool
	}{
		{"secret/a", Read, true},
		{"secret/a", Update, false},
		{"secret/", List, true},
		{"secret/team/a", Update, true},
		{"secret/team/a", List, false}, // the longer pattern counts alone
		{"secret/team/locked", Read, false},
		{"secret/team/locked/x", Read, true},
		{"secret/x/config", Read, true},
		{"secret/x/config", List, false},
		{"secret/team/config", Update, true}, // the pattern whose wildcard comes later counts: secret/team/*
		{"secret/a/b/deeper", Delete, false}, // of two whose wildcards begin at the same place the one with fewer: secret/*
		{"pki/a/b/deeper", Delete, true},
		{"pki/a/b/deep/er", Delete, true},
		{"pki/a/b/shallow", Delete, false},
		{"pki//b/deeper", Delete, false},
		{"secret/exact", Read, false},
		{"secret/exact", Update, true},
		{"sys/auth/x", Update, true},
		{"old/x", Create, true},
		{"old/x", Patch, false},
		{"older", Read, true},
		{"listed/", List, true},
		{"folder/", List, true},
		{"folder", List, false},
		{"nothing", Read, false},
		{"nothing", Patch, true},
	} {
		if got := a.Allows(Ask{Path: c.path, What: c.what}); got != c.want {
			t.Errorf("%s at %s: %v, want %v", c.what, c.path, got, c.want)
		}
	}
	if !a.Allows(Ask{Path: "sys/auth/x", What: Update, Sudo: true}) || a.Allows(Ask{Path: "secret/team/a", What: Update, Sudo: true}) {
		t.Error("sudo is not looked at")
	}
	for path, want := range map[string]string{"secret/team/a": "[create patch read update]", "secret/team/locked": "[deny]", "secret/x/config": "[read]", "older": "[create delete list read sudo update]"} {
		if got := fmt.Sprint(a.Capabilities(path)); got != want {
			t.Errorf("the capabilities at %s: %s, want %s", path, got, want)
		}
	}
	if got := fmt.Sprint(Unbounded.Capabilities("x"), acl(t).Capabilities("x")); got != "[root] [deny]" {
		t.Errorf("the capabilities of all and of none: %s", got)
	}
	b := acl(t, `path "kv/a" { capabilities = ["read"] } path "kv2/+/x" { capabilities = ["read"] } path "kv3/*" { capabilities = ["deny"] }`)
	for prefix, want := range map[string]bool{"kv/": true, "kv2/": true, "kv3/": false, "kv4/": false} {
		if got := b.Reaches(prefix); got != want {
			t.Errorf("reaches %s: %v, want %v", prefix, got, want)
		}
	}
}

// V20: several policies together: deny wins, capabilities add up, parameters too.
func TestACLTogether(t *testing.T) {
	a := acl(t, `path "a" { capabilities = ["read"] } path "b" { capabilities = ["read"] }`, `path "a" { capabilities = ["update"] } path "b" { capabilities = ["deny"] }`, `path "b" { capabilities = ["read"] }`)
	if got := fmt.Sprint(a.Capabilities("a"), a.Capabilities("b")); got != "[read update] [deny]" {
		t.Errorf("together: %s", got)
	}
}

func TestACLParameters(t *testing.T) {
	a := acl(t, `
path "only"     { capabilities = ["update"] allowed_parameters = { "a" = ["x", "y*"] "b" = [] } }
path "rest"     { capabilities = ["update"] allowed_parameters = { "a" = ["x"] "*" = [] } }
path "not"      { capabilities = ["update"] denied_parameters = { "a" = ["x"] "b" = [] } }
path "none"     { capabilities = ["update"] denied_parameters = { "*" = [] } }
path "must"     { capabilities = ["update"] required_parameters = ["a"] }
path "number"   { capabilities = ["update"] allowed_parameters = { "n" = [1, true] } }
path "wrapped"  { capabilities = ["read"] min_wrapping_ttl = "1m" max_wrapping_ttl = "1h" }
`)
	for _, c := range []struct {
		path, params string
		want         bool
	}{
		{"only", `{}`, true},
		{"only", `{"a":"x"}`, true},
		{"only", `{"A":"yes"}`, true},
		{"only", `{"a":"z"}`, false},
		{"only", `{"a":"x","b":[1]}`, true},
		{"only", `{"a":"x","c":1}`, false},
		{"rest", `{"a":"x","c":1}`, true},
		{"rest", `{"a":"z"}`, false},
		{"not", `{"a":"y"}`, true},
		{"not", `{"a":"x"}`, false},
		{"not", `{"b":"y"}`, false},
		{"none", `{"b":"y"}`, false},
		{"none", `{}`, true},
		{"must", `{}`, false},
		{"must", `{"a":null}`, true},
		{"number", `{"n":1}`, true},
		{"number", `{"n":2}`, false},
		{"number", `{"n":true}`, true},
	} {
		var params map[string]json.RawMessage
		if err := json.Unmarshal([]byte(c.params), &params); err != nil {
			t.Fatal(err)
		}
		if got := a.Allows(Ask{Path: c.path, What: Update, Params: params}); got != c.want {
			t.Errorf("%s with %s: %v, want %v", c.path, c.params, got, c.want)
		}
	}
	// A parameter in two cases is looked at in both, in whichever order they come.
	for range 50 {
		for path, params := range map[string]map[string]json.RawMessage{"only": {"a": []byte(`"z"`), "A": []byte(`"x"`)}, "not": {"a": []byte(`"x"`), "A": []byte(`"y"`)}} {
			if a.Allows(Ask{Path: path, What: Update, Params: params}) {
				t.Fatalf("%s with %s is allowed", path, params)
			}
		}
	}
	for ttl, want := range map[time.Duration]bool{0: false, time.Second: false, time.Minute: true, time.Hour: true, 2 * time.Hour: false} {
		if got := a.Allows(Ask{Path: "wrapped", What: Read, Wrap: ttl}); got != want {
			t.Errorf("wrapped for %s: %v, want %v", ttl, got, want)
		}
	}
}

// The policy that everybody has is one, and allows a token to look at itself.
func TestDefaultPolicy(t *testing.T) {
	a := acl(t, defaultText)
	for path, what := range map[string]Capability{"auth/token/lookup-self": Read, "auth/token/renew-self": Update, "cubbyhole/x": Create, "sys/wrapping/unwrap": Update, "sys/capabilities-self": Update} {
		if !a.Allows(Ask{Path: path, What: what}) {
			t.Errorf("the default policy does not allow %s at %s", what, path)
		}
	}
	for _, path := range []string{"secret/x", "sys/mounts", "auth/token/create", "sys/policies/acl/x"} {
		if got := fmt.Sprint(a.Capabilities(path)); got != "[deny]" {
			t.Errorf("the default policy allows %s at %s", got, path)
		}
	}
}

// Whatever two policies say, together they deny what either denies and allow
// nothing that neither allows, in whichever order they come.
func TestACLOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		policy := func(name string) string {
			var b strings.Builder
			for i := range rapid.IntRange(1, 4).Draw(r, name) {
				path := rapid.SampledFrom([]string{"a", "a/*", "a/b", "a/+", "a/+/c", "*", "a/b*"}).Draw(r, "path")
				caps := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"read", "update", "delete", "deny"}), 1, 3, rapid.ID).Draw(r, "capabilities")
				fmt.Fprintf(&b, "path %q { comment = \"%d\" capabilities = [\"%s\"] }\n", path, i, strings.Join(caps, `","`))
			}
			return b.String()
		}
		one, two := policy("one"), policy("two")
		ab, ba := acl(t, one, two), acl(t, two, one)
		for _, path := range []string{"a", "a/b", "a/x", "a/b/c", "a/x/c", "z"} {
			if x, y := fmt.Sprint(ab.Capabilities(path)), fmt.Sprint(ba.Capabilities(path)); x != y {
				r.Fatalf("at %s %s or %s\n%s\n%s", path, x, y, one, two)
			}
			for _, c := range []Capability{Read, Update, Delete} {
				if ab.Allows(Ask{Path: path, What: c}) {
					some := false
					for pattern, rule := range ab.rules.patterns {
						some = some || rule.can[c] && rule.matches(path) && pattern != ""
					}
					if exact := ab.rules.exact[path]; exact != nil {
						some = some || exact.can[c]
					}
					if !some {
						r.Fatalf("%s at %s is allowed by no rule\n%s\n%s", c, path, one, two)
					}
				}
			}
		}
	})
}

func FuzzCompile(f *testing.F) {
	f.Add(`path "a" { capabilities = ["read"] allowed_parameters = { "x" = [] } }`)
	f.Add(`{"path":{"a/*":{"policy":"write"}}}`)
	f.Add(`path "a" "b" { }`)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := compile(text)
		if err != nil {
			return
		}
		a := &ACL{rules: r}
		a.Allows(Ask{Path: "a/b", What: List})
		a.Capabilities("a")
		a.Reaches("a/")
	})
}
