package federation_test

import (
	"regexp"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/federation"
)

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"repo:acme/*:ref:refs/heads/main", "repo:acme/deploy:ref:refs/heads/main", true},
		{"repo:acme/*:ref:refs/heads/main", "repo:acme/a:environment:x:ref:refs/heads/main", false},
		{"repo:acme/*:ref:refs/heads/main", "repo:acme/:ref:refs/heads/main", false},
		{"repo:acme/*:ref:refs/heads/main", "repo:acme/a/b:ref:refs/heads/main", false},
		{"repo:acme/*:ref:refs/heads/main", "repo:acme/deploy:ref:refs/heads/main2", false},
		{"repo:acme/*:ref:refs/heads/main", "xrepo:acme/deploy:ref:refs/heads/main", false},
		{"repo:acme/*:ref:refs/heads/main", "REPO:acme/deploy:ref:refs/heads/main", false},
		{"refs/heads/**", "refs/heads/feature/x:y", true},
		{"refs/heads/**", "refs/heads/", false},
		{"refs/heads/**", "refs/heads", false},
		{"spiffe://acme.example/ns/*/sa/*", "spiffe://acme.example/ns/prod/sa/billing", true},
		{"spiffe://acme.example/ns/*/sa/*", "spiffe://acme.example/ns/prod/x/sa/billing", false},
		{"a*b*c", "axbxbxc", true},
		{"a*b*c", "abc", false},
		{"a?c", "abc", false},
		{"a[bc]*", "ab", false},
	} {
		if got := federation.Glob(c.pattern, c.s); got != c.want {
			t.Errorf("%q fits %q: %v, want %v", c.pattern, c.s, got, c.want)
		}
	}
	text := "repo:other/" + strings.Repeat("x", 2000)
	n := 1.0
	for tries := 0; n > 0 && tries < 5; tries++ { // what else goes on in the process is counted too
		n = testing.AllocsPerRun(10, func() { federation.Glob("repo:acme/*:ref:refs/heads/**", text) })
	}
	if n > 0 {
		t.Errorf("a text that begins with something else takes %v pieces of memory", n)
	}
	for _, p := range []string{"", "*", "**", "*:*", "/*/**", "*x", "exact", "a**b", "a***", "a*b**c", strings.Repeat("a*", 300)} {
		if federation.CheckGlob(p) == "" {
			t.Errorf("the pattern %q is fine", p)
		}
	}
	for _, p := range []string{"a*", "a**", "repo:acme/*:**", "a/*/b"} {
		if why := federation.CheckGlob(p); why != "" {
			t.Errorf("the pattern %q: %s", p, why)
		}
	}
}

// A pattern means the same as the regular expression that it stands for.
func FuzzGlob(f *testing.F) {
	f.Add("repo:acme/*:ref:**", "repo:acme/deploy:ref:refs/heads/main")
	f.Add("a*b*c", "axbxc")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if federation.CheckGlob(pattern) != "" || len(s) > 200 || strings.ContainsRune(s, '\n') {
			return
		}
		body, rest := strings.CutSuffix(pattern, "**")
		text := "^"
		for i, part := range strings.Split(body, "*") {
			if i > 0 {
				text += "[^/:]+"
			}
			text += regexp.QuoteMeta(part)
		}
		if rest {
			text += "(?s:.+)"
		}
		e, err := regexp.Compile(text + "$")
		if err != nil {
			return // it is not UTF-8
		}
		if want, got := e.MatchString(s), federation.Glob(pattern, s); got != want {
			t.Errorf("%q fits %q: %v, and %s says %v", pattern, s, got, e, want)
		}
	})
}

// Whatever a stranger sends, it is refused, and nothing breaks.
func FuzzRecognise(f *testing.F) {
	p, q := newPlatform(f, "k1"), newPlatform(f, "k2")
	d := dbtest.Open(f)
	w := open(f, d)
	w.put(f, actions(jwks(f, p)))
	f.Add(q.token(job(d.Now(), nil)))
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, raw string) {
		if got, err := w.Recognise(t.Context(), estover.DefaultTenant, raw); err == nil {
			t.Errorf("recognised: %+v", got)
		}
	})
}
