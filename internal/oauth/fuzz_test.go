package oauth

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/agent"
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

// FuzzDocument: whatever a client says of itself, what is understood of it is
// within what its agent may do, and can be shown.
func FuzzDocument(f *testing.F) {
	const at = "https://app.example/client.json"
	for _, s := range []string{
		"", "{}", `{"client_id":"` + at + `"}`, `{"client_id":"` + at + `","redirect_uris":["https://app.example/cb"],"token_endpoint_auth_method":"none"}`,
		`{"client_id":"` + at + `","client_id":"` + at + `"}`, `{"client_id":"` + at + `","client_name":"\u202ex\n","redirect_uris":["app://x","http://127.0.0.1/cb"],"grant_types":["client_credentials","implicit"]}`,
		`{"client_id":"` + at + `","redirect_uris":["https://app.example/cb"],"jwks":{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}}`,
		`{"client_id":"` + at + `","client_secret":null}`, `{"client_id":"` + at + `","jwks":null,"redirect_uris":null}`,
	} {
		f.Add([]byte(s))
	}
	base := &token.Client{ID: "agt_x", URL: at, GrantTypes: []string{token.Own, token.Consented}, Methods: []string{token.Public, token.PrivateKeyJWT}}
	f.Fuzz(func(t *testing.T, body []byte) {
		d, err := parseDocument(at, body)
		var c *token.Client
		if err == nil {
			c, err = d.within(base)
		}
		if err != nil {
			if !errors.Is(err, errDocument) {
				t.Fatalf("%q: %v", body, err)
			}
			return
		}
		if len(c.Methods) != 1 || !slices.Contains(base.Methods, c.Methods[0]) || (c.Methods[0] == token.PrivateKeyJWT) != (len(c.KeySets) == 1) || c.ID != base.ID || c.URL != at {
			t.Fatalf("%q is the client %+v", body, c)
		}
		for _, g := range c.GrantTypes {
			if !base.May(g) {
				t.Fatalf("%q may use %q", body, g)
			}
		}
		for _, uri := range c.Redirects {
			if why := agent.RedirectURI(uri); why != "" {
				t.Fatalf("%q has browsers sent to %q: %s", body, uri, why)
			}
		}
		if !utf8.ValidString(c.Said.Name) || strings.ContainsFunc(c.Said.Name, func(r rune) bool { return !strconv.IsPrint(r) }) || utf8.RuneCountInString(c.Said.Name) > maxClientName+1 {
			t.Fatalf("%q is called %q", body, c.Said.Name)
		}
	})
}

// FuzzMetadata holds the parser of registrations to its bounds: it accepts or
// refuses with an error of the protocol, and what it accepts is small, is text,
// and chooses nothing that is not a client's to choose.
func FuzzMetadata(f *testing.F) {
	for _, s := range []string{
		`{}`, `[]`, `null`, `{"client_name":"a","client_name":"b"}`, `{"redirect_uris":["https://app.example/cb"],"scope":"a b","grant_types":null}`,
		`{"jwks":{"keys":[]}}`, `{"jwks":null}`, `{"jwks_uri":"https://x"}`, `{"software_statement":"a.b.c"}`, `{"client_id":"agt_1"}`, `{"contacts":["a"]}`,
		`{"logo_uri":"https://user@x/"}`, `{"scope":""}`, `{"client_name":"\u202eabc\u0000"}`, `{"CLIENT_NAME":1}`, `{"redirect_uris":[null]}`,
	} {
		f.Add([]byte(s), "")
		f.Add([]byte(s), "agt_1")
	}
	f.Fuzz(func(t *testing.T, body []byte, id string) {
		m, _, err := parseMetadata(body, id)
		if err != nil {
			if failed, status := failureOf(err); status != http.StatusBadRequest || !strings.HasPrefix(failed.Error, "invalid_") && failed.Error != "unapproved_software_statement" {
				t.Fatalf("%q is answered with %d %s", body, status, failed.Error)
			}
			return
		}
		if n := len([]rune(m.Name)); n > maxClientName+1 || strings.ContainsFunc(m.Name, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Fatalf("%q has the name %q", body, m.Name)
		}
		for _, s := range slices.Concat(m.RedirectURIs, m.GrantTypes, m.Contacts, []string{m.URI, m.Logo}) {
			if len(s) > maxSaid || !utf8.ValidString(s) {
				t.Fatalf("%q has %q", body, s)
			}
		}
		for _, s := range m.Scopes {
			if !token.Scope(s) {
				t.Fatalf("%q has the scope %q", body, s)
			}
		}
	})
}
