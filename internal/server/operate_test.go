package server_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"estover.dev/internal/db/dbtest"
)

// Metrics are there for somebody with a role, and for nobody else (M32, M40).
func TestMetrics(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	h.do(http.MethodGet, "/u/crm/v1/items/7", h.accessToken(""), nil)
	for _, c := range []struct {
		who, token string
		status     int
	}{{"nobody", "", 401}, {"an agent", h.apiToken(), 403}, {"an auditor", h.invite("ann"), 200}} {
		status, body := h.do(http.MethodGet, "/metrics", c.token, nil)
		if status != c.status {
			t.Errorf("metrics for %s: %d, want %d", c.who, status, c.status)
		}
		if status == http.StatusOK && !strings.Contains(string(body), "estover_gateway_intents_total 1\n") {
			t.Errorf("after one call the metrics are\n%s", body)
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := h.do(http.MethodGet, path, "", nil); status != http.StatusNoContent || len(body) != 0 {
			t.Errorf("%s: %d %s, want 204 and nothing said", path, status, body)
		}
	}
}

// Traces go to the endpoint that is set, say how requests ended, and hold
// nothing of what went over the wire.
func TestTraces(t *testing.T) {
	var mu sync.Mutex
	var got bytes.Buffer
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = io.Copy(&got, r.Body)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
	h := build(t, dbtest.SQLite(t))
	token := h.accessToken("")
	h.do(http.MethodGet, "/u/crm/v1/echo", token, nil)
	h.stop()
	mu.Lock()
	defer mu.Unlock()
	for _, word := range []string{"estover", "http.response.status_code"} {
		if !bytes.Contains(got.Bytes(), []byte(word)) {
			t.Errorf("the traces do not have %q", word)
		}
	}
	for _, secret := range []string{token, h.secret, h.key, h.token} {
		if bytes.Contains(got.Bytes(), []byte(secret)) {
			t.Errorf("the traces have %q", secret)
		}
	}
}

// Until a certificate is given the server has an authority of its own, which
// stays the same from start to start; a certificate that is given is the one
// that is shown.
func TestTLS(t *testing.T) {
	h := &house{t: t, logs: &syncBuffer{}, addr: freeAddr(t)}
	h.config.Data = filepath.Join(t.TempDir(), "data")
	h.config.Listen, h.config.Gateway = h.addr, freeAddr(t)
	client := func() *http.Client {
		t.Helper()
		pem, err := os.ReadFile(filepath.Join(h.config.Data, "tls", "ca.crt"))
		if err != nil {
			return &http.Client{Transport: &http.Transport{}}
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			t.Fatal("ca.crt is no certificate")
		}
		return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	}
	ready := func(c *http.Client) func() bool {
		return func() bool {
			res, err := c.Get("https://" + h.addr + "/readyz")
			if err != nil {
				return false
			}
			_ = res.Body.Close()
			return res.StatusCode == http.StatusNoContent
		}
	}
	h.run(func() bool { return ready(client())() })
	first := client()
	h.stop()
	h.run(ready(first)) // the authority of the first start
	if info, err := os.Stat(filepath.Join(h.config.Data, "tls", "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the authority's key: %v %v, want a file of its owner alone", info, err)
	}
	if res, err := (&http.Client{Transport: &http.Transport{}}).Get("https://" + h.addr + "/readyz"); err == nil {
		t.Errorf("a client that does not know the authority got %s", res.Status)
	}
	h.stop()

	given := httptest.NewUnstartedServer(nil)
	given.StartTLS()
	defer given.Close()
	writeCertificate(t, given.TLS.Certificates[0], h.config.Data, &h.config.TLSCert, &h.config.TLSKey)
	h.run(ready(&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: given.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com",
	}}}))
}
