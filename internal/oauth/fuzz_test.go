package oauth

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

// FuzzForm holds the parser of forms against the standard library's: what it
// accepts it reads as that one does, and what it accepts is within the bounds.
func FuzzForm(f *testing.F) {
	for _, s := range []string{
		"", "grant_type=client_credentials", "a=1&a=2", "resource=x&resource=y", "a=&a=1", "scope=a+b%20c", "a", "=b", "&&&", "a=%", "a=%00", "a=%ff",
		"a;b=c", "a=b=c", "client_id=x&client_secret=y&scope=openid", strings.Repeat("a=1&", 200), "%61=1&a=2",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		got, err := parseForm(body)
		if err != nil {
			if estover.KindOf(err) != estover.Invalid {
				t.Fatalf("%q: %v, want an error of kind Invalid", body, err)
			}
			return
		}
		want, err := url.ParseQuery(body)
		if err != nil && !strings.Contains(err.Error(), "semicolon") {
			t.Fatalf("%q is accepted, and the standard library says %v", body, err)
		}
		seen := map[string]bool{}
		for _, p := range got {
			if p.value == "" || strings.Contains(p.name+p.value, "\x00") || !utf8.ValidString(p.name+p.value) {
				t.Fatalf("%q has the parameter %q = %q", body, p.name, p.value)
			}
			if seen[p.name] && !repeatable(p.name) {
				t.Fatalf("%q has the parameter %q twice", body, p.name)
			}
			seen[p.name] = true
			if err == nil && !strings.Contains(strings.Join(want[p.name], "\x00")+"\x00", p.value+"\x00") {
				t.Fatalf("%q: %q is %q, and the standard library says %q", body, p.name, p.value, want[p.name])
			}
		}
		if scopes, err := got.scopes(); err == nil {
			for _, s := range scopes {
				if !token.Scope(s) {
					t.Fatalf("%q has the scope %q", body, s)
				}
			}
			if len(scopes) > token.MaxScopes {
				t.Fatalf("%q has %d scopes", body, len(scopes))
			}
		}
		if resources, err := resources(got.all("resource")); err == nil && len(resources) > token.MaxResources {
			t.Fatalf("%q has %d resources", body, len(resources))
		}
	})
}

// FuzzClient reads whatever a request may say about its client: it never
// panics, finds at most one method, and says Invalid or Unknown when it does
// not like what it sees.
func FuzzClient(f *testing.F) {
	f.Add("Basic YTpi", "grant_type=x")
	f.Add("", "client_id=a&client_secret=b")
	f.Add("", "client_assertion=a.b.c&client_assertion_type="+url.QueryEscape(assertionType))
	f.Add("", "client_assertion=eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJhIn0.AA&client_assertion_type="+url.QueryEscape(assertionType))
	f.Add("basic  JTp4", "client_id=x")
	f.Fuzz(func(t *testing.T, authorization, body string) {
		r := httptest.NewRequest(http.MethodPost, "/oauth/token", nil)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		form, err := parseForm(body)
		if err != nil {
			return
		}
		p, err := readClient(r, form)
		if err != nil {
			if kind := estover.KindOf(err); kind != estover.Invalid && kind != estover.Unknown {
				t.Fatalf("%q %q: %v", authorization, body, err)
			}
			return
		}
		methods := 0
		for _, there := range []bool{authorization != "", form.get("client_secret") != "", form.get("client_assertion") != ""} {
			if there {
				methods++
			}
		}
		if methods > 1 {
			t.Fatalf("%q %q: %d methods were accepted", authorization, body, methods)
		}
		if p.assertion != "" {
			if _, err := jose.Peek(p.assertion); err != nil && estover.KindOf(err) != estover.Unknown {
				t.Fatalf("%q: %v", p.assertion, err)
			}
		}
	})
}
