package server_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
)

// trustIn is a trust in a platform whose keys are at a URL.
func trustIn(agent string, change ...string) map[string]any {
	t := map[string]any{
		"name": "github", "issuer": "https://ci.example", "jwks_url": "https://keys.invalid/jwks", "algorithms": []string{"ES256"},
		"audience": "https://estover.example", "rules": []map[string]any{{"agent": agent, "claims": map[string]string{"sub": "x"}}},
	}
	for i := 0; i+1 < len(change); i += 2 {
		t[change[i]] = change[i+1]
	}
	return t
}

func TestTrusts(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	var made struct {
		ID    string
		Rules []struct{ Agent string }
	}
	h.must(http.MethodPut, "/v1/trusts/github", trustIn("bot"), &made)
	if !strings.HasPrefix(made.ID, "tru_") || made.Rules[0].Agent != h.agent {
		t.Errorf("put: %+v, want a rule about %s", made, h.agent)
	}
	var ours struct{ Issuer string }
	h.must(http.MethodGet, "/.well-known/oauth-authorization-server", nil, &ours)
	for what, c := range map[string]struct {
		path   string
		body   map[string]any
		status int
		code   string
	}{
		"another name in the body":            {"/v1/trusts/other", trustIn("bot"), 422, "trust_invalid"},
		"an agent that there is not":          {"/v1/trusts/github", trustIn("nobody"), 404, "agent_not_found"},
		"an agent by an id that there is not": {"/v1/trusts/github", trustIn("agt_none"), 422, "trust_invalid"},
		"ourselves":                           {"/v1/trusts/github", trustIn("bot", "issuer", ours.Issuer), 422, "trust_invalid"},
		"a shared secret": {"/v1/trusts/other", map[string]any{
			"name": "other", "issuer": "https://b.example", "jwks_url": "https://keys.invalid/jwks", "algorithms": []string{"HS256"},
			"audience": "x", "rules": []map[string]any{{"agent": "bot", "claims": map[string]string{"sub": "x"}}},
		}, 422, "trust_invalid"},
		"a second trust of the issuer": {"/v1/trusts/other", trustIn("bot", "name", "other"), 409, "issuer_taken"},
	} {
		if status, body := h.do(http.MethodPut, c.path, h.token, c.body); status != c.status || h.code(body) != c.code {
			t.Errorf("%s: %d %s, want %d %s", what, status, body, c.status, c.code)
		}
	}
	var shown struct{ Issuer string }
	h.must(http.MethodGet, "/v1/trusts/github", nil, &shown)
	if shown.Issuer != "https://ci.example" {
		t.Errorf("shown: %+v", shown)
	}
	h.must(http.MethodDelete, "/v1/trusts/github", nil, nil)
	if status, body := h.do(http.MethodGet, "/v1/trusts/github", h.token, nil); status != http.StatusNotFound {
		t.Errorf("a retired trust: %d %s", status, body)
	}
}

// The doctor says of which issuers the keys cannot be fetched.
func TestDoctorLooksAtTrusts(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	check := func() (ok bool, detail string) {
		t.Helper()
		var checks struct {
			Items []struct {
				Name, Detail string
				OK           bool
			}
		}
		h.must(http.MethodGet, "/v1/doctor", nil, &checks)
		for _, c := range checks.Items {
			if c.Name == "trusts" {
				return c.OK, c.Detail
			}
		}
		t.Fatalf("there is no check of trusts: %+v", checks)
		return false, ""
	}
	if ok, detail := check(); !ok {
		t.Errorf("without a trust: %s", detail)
	}
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	}))
	t.Cleanup(keys.Close)
	good := trustIn("bot", "jwks_url", keys.URL)
	good["allow_private"] = true
	h.must(http.MethodPut, "/v1/trusts/github", good, nil)
	if ok, detail := check(); !ok || !strings.Contains(detail, "1 trust") {
		t.Errorf("with keys that are there: %v, %s", ok, detail)
	}
	private := trustIn("bot", "jwks_url", strings.Replace(keys.URL, "http://", "https://", 1), "name", "closed", "issuer", "https://other.example")
	h.must(http.MethodPut, "/v1/trusts/closed", private, nil)
	if ok, detail := check(); ok || !strings.Contains(detail, "closed") || strings.Contains(detail, "github") {
		t.Errorf("with keys on an address that may not be reached: %v, %s", ok, detail)
	}
}
