package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
)

// Over plain HTTP nobody can show a certificate, and the metadata does not say
// that one might. TestMutualTLSListener has what it says where one can.
func TestNoCertificatesOverPlainHTTP(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	_, body := h.get(http.MethodGet, h.issuer()+"/.well-known/oauth-authorization-server")
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	for name, v := range m {
		if text, _ := json.Marshal(v); strings.Contains(string(text), "tls_client_auth") || strings.HasPrefix(name, "mtls_") || strings.HasPrefix(name, "tls_") && v != false {
			t.Errorf("%s is %s", name, text)
		}
	}
}
