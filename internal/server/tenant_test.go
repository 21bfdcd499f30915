package server_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
)

// found adds a tenant and gives the house that its first administrator has there,
// as empty as theirs is.
func (h *house) found(name string, networks ...string) *house {
	h.t.Helper()
	var f, in struct{ Token, Issuer, Link string }
	h.must(http.MethodPost, "/v1/tenants", map[string]any{"name": name, "title": "The " + name, "private_networks": networks}, &f)
	if want := "http://localhost:" + h.port() + "/t/" + name; f.Issuer != want || f.Link != want+"/login/invitation#"+f.Token {
		h.t.Fatalf("the tenant %s is %+v, want the issuer %s", name, f, want)
	}
	other := *h
	other.addr += "/t/" + name
	other.must(http.MethodPost, "/v1/login", map[string]string{"token": f.Token}, &in)
	other.token = in.Token
	return &other
}

func (h *house) port() string {
	at, _, _ := strings.Cut(h.addr, "/")
	return at[strings.LastIndexByte(at, ':')+1:]
}

// Two tenants have things of the same names, each of its own, and tokens of its
// own issuer.
func TestTenants(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		acme := h.found("acme", "127.0.0.0/8")
		acme.apply()
		if acme.agent == h.agent {
			t.Fatal("two tenants have one agent")
		}
		for _, one := range []struct {
			h      *house
			issuer string
		}{{h, "http://localhost:" + h.port()}, {acme, "http://localhost:" + h.port() + "/t/acme"}} {
			var people struct{ Items []struct{ Name string } }
			one.h.must(http.MethodGet, "/v1/people", nil, &people)
			if len(people.Items) != 3 {
				t.Errorf("the people of %s are %v, want three", one.issuer, people.Items)
			}
			if c := claims(t, one.h.accessToken("")); c["iss"] != one.issuer || c["sub"] != "agent:"+one.h.agent {
				t.Errorf("a token of %s says %v", one.issuer, c)
			}
			for _, at := range []string{"/oauth/jwks", "/.well-known/openid-configuration"} {
				if status, body := one.h.do(http.MethodGet, at, "", nil); status != http.StatusOK {
					t.Errorf("%s%s: %d %s", one.issuer, at, status, body)
				}
			}
		}
		_, ours := h.do(http.MethodGet, "/oauth/jwks", "", nil)
		_, theirs := acme.do(http.MethodGet, "/oauth/jwks", "", nil)
		for _, kid := range kids(t, theirs) {
			if slices.Contains(kids(t, ours), kid) {
				t.Errorf("two tenants sign with the key %s", kid)
			}
		}

		// The register is for those who run the server.
		for _, c := range []struct {
			method, path string
			body         any
		}{
			{http.MethodGet, "/v1/tenants", nil},
			{http.MethodGet, "/v1/tenants/acme", nil},
			{http.MethodPost, "/v1/tenants", map[string]any{"name": "umbrella"}},
			{http.MethodPut, "/v1/tenants/acme", map[string]any{"name": "acme", "private_networks": []string{"10.0.0.0/8"}}},
			{http.MethodPost, "/v1/tenants/default/disable", map[string]any{"reason": "takeover"}},
			{http.MethodPost, "/v1/tenants/acme/enable", map[string]any{}},
			{http.MethodPost, "/v1/tenants/acme/invitations", map[string]any{}},
		} {
			if status, body := acme.do(c.method, c.path, acme.token, c.body); status != http.StatusForbidden || !strings.Contains(string(body), "kernel_installation") {
				t.Errorf("an administrator of acme does %s %s: %d %s", c.method, c.path, status, body)
			}
		}
		if status, body := h.do(http.MethodPost, "/v1/tenants", h.invite("alice"), map[string]any{"name": "umbrella"}); status != http.StatusForbidden {
			t.Errorf("an operator adds a tenant: %d %s", status, body)
		}
		// Its one-time token is for a first administrator alone.
		if status, body := h.do(http.MethodPost, "/v1/tenants/acme/invitations", h.token, map[string]any{}); status != http.StatusConflict {
			t.Errorf("a second first administrator of acme: %d %s", status, body)
		}
		// What is said of the machine is for those who run it.
		var checks struct{ Items []struct{ Name string } }
		acme.must(http.MethodGet, "/v1/doctor", nil, &checks)
		for _, c := range checks.Items {
			if !slices.Contains([]string{"log", "policy", "trusts"}, c.Name) {
				t.Errorf("the doctor tells acme of the server's %s", c.Name)
			}
		}
		if status, _ := acme.do(http.MethodGet, "/metrics", acme.token, nil); status == http.StatusOK {
			t.Error("acme reads the metrics of the server")
		}
	})
}

// send sends a form, or nothing, and gives status and body.
func (h *house) send(method, path, token string, form url.Values) (int, string) {
	h.t.Helper()
	req, err := http.NewRequest(method, "http://"+h.addr+path, strings.NewReader(form.Encode()))
	if err != nil {
		h.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// claims are what an access token says.
func claims(t *testing.T, raw string) (c map[string]any) {
	t.Helper()
	parts := strings.Split(raw, ".")
	b, err := base64.RawURLEncoding.DecodeString(parts[len(parts)/2])
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		t.Fatalf("%s is no token: %v", raw, err)
	}
	return c
}

// kids are the names of the keys of a set.
func kids(t *testing.T, jwks []byte) (all []string) {
	t.Helper()
	var set struct{ Keys []struct{ Kid string } }
	if err := json.Unmarshal(jwks, &set); err != nil || len(set.Keys) == 0 {
		t.Fatalf("no keys: %v in %s", err, jwks)
	}
	for _, k := range set.Keys {
		all = append(all, k.Kid)
	}
	return all
}

// A disabled tenant gets nothing, at once, and everything again when it is
// enabled.
func TestTenantIsDisabled(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		acme := h.found("acme", "127.0.0.0/8")
		acme.apply()
		token, session := acme.accessToken(""), acme.openSession()
		asked := []struct {
			what, method, path, token string
			form                      url.Values
		}{
			{"the metadata", http.MethodGet, "/.well-known/openid-configuration", "", nil},
			{"the keys", http.MethodGet, "/oauth/jwks", "", nil},
			{"a page", http.MethodGet, "/login", "", nil},
			{"a token", http.MethodPost, "/oauth/token", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {acme.agent}, "client_secret": {acme.secret}, "session": {session}}},
			{"introspection", http.MethodPost, "/oauth/introspect", "", url.Values{"client_id": {acme.agent}, "client_secret": {acme.secret}, "token": {token}}},
			{"the API", http.MethodGet, "/v1/agents", acme.token, nil},
		}
		look := func(state string, works bool) {
			for _, a := range asked {
				if status, body := acme.send(a.method, a.path, a.token, a.form); (status == http.StatusOK) != works {
					t.Errorf("%s of %s tenant: %d %s", a.what, state, status, body)
				}
			}
		}
		look("an active", true)
		h.must(http.MethodPost, "/v1/tenants/acme/disable", map[string]string{"reason": "unpaid"}, nil)
		look("a disabled", false)
		h.must(http.MethodPost, "/v1/tenants/acme/enable", map[string]string{}, nil)
		look("an enabled", true)
	})
}
