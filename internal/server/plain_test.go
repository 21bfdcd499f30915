package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
)

// Over plain HTTP nobody can show a certificate, and neither the metadata nor what
// a route says of itself tells that one might. TestMutualTLSListener has what they
// say where one can.
func TestNoCertificatesOverPlainHTTP(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	for _, at := range []string{"/.well-known/oauth-authorization-server", "/.well-known/oauth-protected-resource/u/crm"} {
		_, body := h.get(http.MethodGet, h.issuer()+at)
		var m map[string]any
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatalf("%s: %v in %s", at, err, body)
		}
		if bound, there := m["tls_client_certificate_bound_access_tokens"]; !there || bound != false {
			t.Errorf("%s: tokens are bound to certificates: %v, want false", at, bound)
		}
		for name, v := range m {
			if text, _ := json.Marshal(v); strings.Contains(string(text), "tls_client_auth") || strings.HasPrefix(name, "mtls_") || strings.HasPrefix(name, "tls_") && v != false {
				t.Errorf("%s: %s is %s", at, name, text)
			}
		}
	}
}
