package server_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
)

// get asks with any headers, and gives the answer with its body.
func (h *house) get(method, url string, header ...string) (*http.Response, []byte) {
	h.t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return res, body
}

// issuer is the name under which the house issues tokens.
func (h *house) issuer() string {
	return "http://" + strings.Replace(h.addr, "127.0.0.1", "localhost", 1)
}

// param is a parameter of a challenge, "" if it has none of the name.
func param(challenge, name string) string {
	if m := regexp.MustCompile(`[ ,]` + name + `="([^"]*)"`).FindStringSubmatch(challenge); m != nil {
		return m[1]
	}
	return ""
}

type protected struct {
	Resource string   `json:"resource"`
	Servers  []string `json:"authorization_servers"`
	Scopes   []string `json:"scopes_supported"`
	Methods  []string `json:"bearer_methods_supported"`
	Proofs   []string `json:"dpop_signing_alg_values_supported"`
	Bound    bool     `json:"tls_client_certificate_bound_access_tokens"`
}

// RFC 9728: every route describes itself, to everybody, under the URL that it was
// called by.
func TestProtectedResourceMetadata(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	origin := h.issuer()
	const at = "/.well-known/oauth-protected-resource"
	for _, path := range []string{"/u/crm", "/u/crm/", "/u/crm/v1/items/7", "/u/crm/v1/a%20b"} {
		res, body := h.get(http.MethodGet, origin+at+path, "Host", "evil.example", "X-Forwarded-Host", "evil.example")
		var d protected
		if err := json.Unmarshal(body, &d); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", path, res.StatusCode, body)
		}
		if d.Resource != origin+path {
			t.Errorf("%s calls itself %q", path, d.Resource)
		}
		if !slices.Equal(d.Servers, []string{origin}) || !slices.Equal(d.Methods, []string{"header"}) || d.Bound || !slices.Contains(d.Proofs, "ES256") {
			t.Errorf("%s describes itself as %s", path, body)
		}
		if !slices.Contains(d.Scopes, "item.read") || !slices.Contains(d.Scopes, "item.delete") || slices.Contains(d.Scopes, "offline_access") || !slices.IsSorted(d.Scopes) {
			t.Errorf("%s has the scopes %v", path, d.Scopes)
		}
		if res.Header.Get("Access-Control-Allow-Origin") != "*" || res.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s is answered with %v", path, res.Header)
		}
	}
	for path, want := range map[string]int{
		"/u/nothing": http.StatusNotFound, "/u/": http.StatusNotFound, "/u/crm/../erp": http.StatusBadRequest, "/u/crm//v1": http.StatusBadRequest, "/u/crm/%2e%2e/x": http.StatusBadRequest, "": http.StatusNotFound,
	} {
		status := h.raw("GET " + at + path + " HTTP/1.1\r\nHost: " + h.addr + "\r\nConnection: close\r\n\r\n")
		if status != want {
			t.Errorf("%s is answered with %d, want %d", path, status, want)
		}
	}
	if res, _ := h.get(http.MethodPost, origin+at+"/u/crm"); res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d, want 405", res.StatusCode)
	}
	if res, _ := h.get(http.MethodOptions, origin+at+"/u/crm"); res.StatusCode != http.StatusNoContent || res.Header.Get("Access-Control-Allow-Methods") != "GET" {
		t.Errorf("a preflight: %d %v", res.StatusCode, res.Header)
	}
}

// RFC 9728, section 5: an agent that knows a URL and its own credentials finds
// out the rest by following what it is told.
func TestChallengesLeadToAToken(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		origin := h.issuer()
		at := origin + "/u/crm/v1/items/7"
		ask := func(token string) (*http.Response, []byte) {
			return h.get(http.MethodGet, at, "Authorization", "Bearer "+token)
		}
		res, _ := h.get(http.MethodGet, at)
		challenges := res.Header.Values("WWW-Authenticate")
		if res.StatusCode != http.StatusUnauthorized || len(challenges) != 2 || !strings.HasPrefix(challenges[0], "Bearer ") || !strings.HasPrefix(challenges[1], "DPoP ") {
			t.Fatalf("nobody: %d %q", res.StatusCode, challenges)
		}
		for _, c := range challenges {
			if param(c, "error") != "" || param(c, "scope") != "item.read" || param(c, "resource_metadata") != origin+"/.well-known/oauth-protected-resource/u/crm/v1/items/7" {
				t.Errorf("nobody is told %q", c)
			}
		}
		_, body := h.get(http.MethodGet, param(challenges[0], "resource_metadata"))
		var d protected
		if err := json.Unmarshal(body, &d); err != nil || d.Resource != at { // section 3.3
			t.Fatalf("the metadata is %s, %v", body, err)
		}
		_, body = h.get(http.MethodGet, d.Servers[0]+"/.well-known/oauth-authorization-server")
		var m struct {
			Issuer string `json:"issuer"`
			Token  string `json:"token_endpoint"`
		}
		if err := json.Unmarshal(body, &m); err != nil || m.Issuer != d.Servers[0] || m.Token != origin+"/oauth/token" {
			t.Fatalf("the server's metadata is %s, %v", body, err)
		}
		token := h.mint(url.Values{"resource": {d.Resource}, "scope": {param(challenges[0], "scope")}})
		if res, body := ask(token); res.StatusCode != http.StatusOK {
			t.Errorf("with the token that was found: %d %s", res.StatusCode, body)
		}
		// All URLs of a route are one resource, also under its own name.
		for _, resource := range []string{origin + "/u/crm", origin + "/u/crm/v1/echo", h.upstream.URL} {
			if res, body := ask(h.mint(url.Values{"resource": {resource}})); res.StatusCode != http.StatusOK {
				t.Errorf("a token for %s: %d %s", resource, res.StatusCode, body)
			}
		}
		_, where, _ := strings.Cut(h.upstream.URL, "://")
		for _, resource := range []string{
			"https://" + where, "postgres://" + where, "http:" + where, "http:///" + where, "http://me@" + where, "http://" + where + ":80", "http://" + where + ".",
			h.upstream.URL + "/", h.upstream.URL + "?", h.upstream.URL + "/?a=b", h.upstream.URL + "/..", h.upstream.URL + "/%zz", "http://", "http://?" + where, "http://" + where + "\x01",
			origin + "/u/", origin + "/u/nothing", origin + "/u", origin + "/v1", origin + ".evil.example/u/crm", "http://evil.example/u/crm",
		} {
			form := url.Values{"grant_type": {"client_credentials"}, "client_id": {h.agent}, "client_secret": {h.secret}, "resource": {resource}}
			res, err := http.PostForm(m.Token, form)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if res.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), `"invalid_target"`) {
				t.Errorf("a token for %s: %d %s, want invalid_target", resource, res.StatusCode, body)
			}
		}

		// Anything else that is no token for this gets the same, with the error.
		for what, token := range map[string]string{"a token for us": h.accessTokenFor(""), "no token at all": "x"} {
			res, _ := ask(token)
			c := res.Header.Get("WWW-Authenticate")
			if res.StatusCode != http.StatusUnauthorized || param(c, "error") != "invalid_token" || param(c, "scope") != "item.read" || param(c, "resource_metadata") == "" {
				t.Errorf("%s: %d %q", what, res.StatusCode, c)
			}
		}
		// What is no action has no scope, and what is no route no metadata.
		res, _ = h.get(http.MethodGet, origin+"/u/crm/v1/other")
		if c := res.Header.Get("WWW-Authenticate"); param(c, "scope") != "" || param(c, "resource_metadata") == "" {
			t.Errorf("an unknown action: %q", c)
		}
		res, _ = h.get(http.MethodGet, origin+"/u/nothing/v1")
		if c := res.Header.Get("WWW-Authenticate"); res.StatusCode != http.StatusUnauthorized || param(c, "resource_metadata") != "" {
			t.Errorf("an unknown route: %d %q", res.StatusCode, c)
		}
	})
}

// accessTokenFor is a token for a resource, or for us.
func (h *house) accessTokenFor(resource string) string {
	form := url.Values{}
	if resource != "" {
		form.Set("resource", resource)
	}
	return h.mint(form)
}

// RFC 6750, section 3.1, and RFC 9728: a token that lacks a scope is answered
// with all that the request needs, in its own scheme. What the agent is not
// granted no other token helps with.
func TestInsufficientScope(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		origin := h.issuer()
		narrow := h.mint(url.Values{"resource": {h.upstream.URL}, "scope": {"item.read"}})
		res, body := h.get(http.MethodPut, origin+"/u/crm/v1/items/7", "Authorization", "Bearer "+narrow)
		want := `Bearer realm="estover", error="insufficient_scope", scope="item.change", resource_metadata="` + origin + `/.well-known/oauth-protected-resource/u/crm/v1/items/7"`
		if res.StatusCode != http.StatusForbidden || !slices.Equal(res.Header.Values("WWW-Authenticate"), []string{want}) || h.code(body) != "kernel_scope" {
			t.Errorf("a token that is too narrow: %d %q %s, want %q", res.StatusCode, res.Header.Values("WWW-Authenticate"), body, want)
		}
		wide := h.mint(url.Values{"resource": {h.upstream.URL}, "scope": {"item.read " + param(res.Header.Get("WWW-Authenticate"), "scope")}})
		if res, body := h.get(http.MethodPut, origin+"/u/crm/v1/items/7", "Authorization", "Bearer "+wide); res.StatusCode != http.StatusOK {
			t.Errorf("with the scope that was named: %d %s", res.StatusCode, body)
		}
		res, body = h.get(http.MethodDelete, origin+"/u/crm/v1/items/7", "Authorization", "Bearer "+wide)
		if res.StatusCode != http.StatusForbidden || res.Header.Get("WWW-Authenticate") != "" || h.code(body) != "not_granted" {
			t.Errorf("what is not granted: %d %q %s", res.StatusCode, res.Header.Values("WWW-Authenticate"), body)
		}

		// A token that is bound to a key is answered in its own scheme.
		p := h.prover()
		f := url.Values{"grant_type": {"client_credentials"}, "client_id": {h.agent}, "client_secret": {h.secret}, "resource": {h.upstream.URL}, "scope": {"item.read"}}
		_, text := p.do(http.MethodPost, "/oauth/token", "", f)
		var bound struct {
			Token string `json:"access_token"`
		}
		if err := json.Unmarshal([]byte(text), &bound); err != nil {
			t.Fatal(err)
		}
		res, _ = p.do(http.MethodPut, "/u/crm/v1/items/7", bound.Token, nil)
		if c := res.Header.Get("WWW-Authenticate"); res.StatusCode != http.StatusForbidden || !strings.HasPrefix(c, "DPoP ") || param(c, "error") != "insufficient_scope" || param(c, "scope") != "item.change" {
			t.Errorf("a bound token that is too narrow: %d %q", res.StatusCode, c)
		}
	})
}

// raw sends a request as it is written, and gives the status.
func (h *house) raw(request string) int {
	h.t.Helper()
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		h.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode
}
