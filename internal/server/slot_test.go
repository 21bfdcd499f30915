package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// ownCertificate is a client certificate that signs itself, and its key, in PEM.
func ownCertificate(t *testing.T, name string, until time.Time) (certificate, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: until.Add(-48 * time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}

// TestCertificatesFromASecret (C4, R11): an upstream that demands a client certificate
// gets the one of the secret's current version, the next one after a rotation, and none
// that has expired or whose key is another's.
func TestCertificatesFromASecret(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		h.must(http.MethodPost, "/v1/pki/authorities", map[string]any{"name": "partners"}, nil)
		h.must(http.MethodPut, "/v1/pki/roles/partners", map[string]any{
			"authority": "partners", "ttl": 86400, "max_ttl": 86400, "x509": map[string]any{"domains": []string{"agents.acme.example"}, "subdomains": true, "client": true},
		}, nil)
		var asked atomic.Int64
		up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			c := r.TLS.PeerCertificates[0]
			fmt.Fprintf(w, "%s %s", c.Subject.CommonName, c.SerialNumber)
		}))
		up.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
		up.StartTLS()
		t.Cleanup(up.Close)
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: up.Certificate().Raw})
		h.add(fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: partner/client}
spec: {destinations: ["%[1]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: partner}
spec:
  base_url: https://%[1]s
  allow_private: [127.0.0.0/8]
  ca: |
    %[2]s
  class: confidential
  slots: [{slot: mtls, secret: partner/client}]
  actions: [{name: order.read, method: GET, path: /order}]
`, strings.TrimPrefix(up.URL, "https://"), strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n    ")), "partner")
		token := h.tokenFor(h.openSession(), up.URL)
		order := func() (int, string) { return h.call(token, http.MethodGet, "/u/partner/order", "", "") }
		put := func(certificate, key string) {
			h.must(http.MethodPost, "/v1/secret/versions?path=partner/client", map[string]any{"fields": map[string]string{"certificate": certificate, "key": key}}, nil)
		}
		first, firstKey := ownCertificate(t, "brought", time.Now().Add(time.Hour))
		expired, expiredKey := ownCertificate(t, "late", time.Now().Add(-time.Hour))
		_, others := ownCertificate(t, "other", time.Now().Add(time.Hour))
		for _, c := range []struct{ what, certificate, key, words string }{
			{"an expired certificate", expired, expiredKey, "has expired at"},
			{"another's key", first, others, "the key that belongs to it"},
			{"no certificate", "made up", firstKey, "not a certificate in PEM"},
		} {
			put(c.certificate, c.key)
			if status, body := order(); status != http.StatusBadGateway || !strings.Contains(body, "secret_unavailable") || !strings.Contains(body, c.words) ||
				strings.Contains(body, "PRIVATE") || asked.Load() != 0 {
				t.Errorf("%s: %d %s (the upstream was asked %d times)", c.what, status, body, asked.Load())
			}
		}
		put(first, firstKey)
		if status, body := order(); status != http.StatusOK || body != "brought 7" {
			t.Fatalf("with the certificate that was brought: %d %s", status, body)
		}

		// Its rotation takes it over, and the connections of the next request have the next.
		h.must(http.MethodPut, "/v1/rotation?path=partner/client", map[string]any{
			"kind": "certificate", "subject": map[string]any{"role": "partners", "common_name": "shop.agents.acme.example"}, "cache_seconds": 1, "quiet_seconds": 1,
		}, nil)
		seen, said := map[string]bool{}, ""
		t.Cleanup(func() {
			if t.Failed() {
				t.Log("the last answer to a rotation:", said)
			}
		})
		for range 2 {
			h.until("it is rotated", func() bool {
				status, body := h.do(http.MethodPost, "/v1/rotation/run?path=partner/client", h.token, nil)
				said = string(body)
				return status == http.StatusOK
			})
			status, body := order()
			if name, _, _ := strings.Cut(body, " "); status != http.StatusOK || name != "shop.agents.acme.example" || seen[body] {
				t.Fatalf("after a rotation: %d %s, want another serial than of %v", status, body, seen)
			}
			seen[body] = true
		}
		h.leaksNothing(firstKey, expiredKey, others)
	})
}

// TestSignaturesFromASecret: a template of a signature, a query parameter and a member
// of a body are filled from a secret, with its next version from the next request on;
// what the secret does not have is a 502, and nothing goes out.
func TestSignaturesFromASecret(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		var key atomic.Pointer[string] // that the upstream takes
		current, asked := "the-first-key-of-the-hook", atomic.Int64{}
		key.Store(&current)
		up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			body, _ := io.ReadAll(r.Body)
			m := hmac.New(sha256.New, []byte(*key.Load()))
			fmt.Fprintf(m, "%s\n%s\n%s\n%s", r.Method, r.URL.RequestURI(), r.Header.Get("X-Time"), body)
			ok := false
			switch r.URL.Path {
			case "/hook":
				ok = r.Header.Get("X-Signature") == "hook-7:"+hex.EncodeToString(m.Sum(nil))
			case "/query":
				ok = r.URL.RawQuery == "a=b&token="+*key.Load()
			case "/body":
				ok = string(body) == `{"auth":{"token":"`+*key.Load()+`"},"n":1}`
			}
			if !ok {
				w.WriteHeader(http.StatusForbidden)
			}
		}))
		t.Cleanup(up.Close)
		h.add(fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: hook/key}
spec: {destinations: ["%[1]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: hook}
spec:
  base_url: http://%[1]s
  allow_private: [127.0.0.0/8]
  class: confidential
  slots:
    - slot: hmac
      name: X-Signature
      secret: hook/key
      actions: [hook.send]
      hmac: {sign: "{method}\n{target}\n{timestamp}\n{body}", value: "{key_id}:{signature}", headers: {X-Time: "{timestamp}"}}
    - {slot: query, name: token, secret: hook/key, actions: [query.send]}
    - {slot: body, name: /auth/token, secret: hook/key, actions: [body.send]}
  actions:
    - {name: hook.send, method: POST, path: /hook}
    - {name: query.send, method: GET, path: /query}
    - {name: body.send, method: POST, path: /body}
`, strings.TrimPrefix(up.URL, "http://")), "hook")
		token := h.tokenFor(h.openSession(), up.URL)
		all := func(what string, want int) {
			t.Helper()
			for _, c := range []struct{ method, path, body string }{
				{http.MethodPost, "/hook?a=b", `{"n":1}`}, {http.MethodGet, "/query?a=b", ""}, {http.MethodPost, "/body", `{"auth":{"token":"mine"},"n":1}`},
			} {
				kind := ""
				if c.body != "" {
					kind = "application/json"
				}
				if status, body := h.call(token, c.method, "/u/hook"+c.path, kind, c.body); status != want {
					t.Errorf("%s, %s: %d %s, want %d", what, c.path, status, body, want)
				}
			}
		}
		put := func(fields map[string]string) {
			h.must(http.MethodPost, "/v1/secret/versions?path=hook/key", map[string]any{"fields": fields}, nil)
		}
		all("without a version", http.StatusBadGateway)
		put(map[string]string{"another": "field-of-the-hook"})
		all("without the field", http.StatusBadGateway)
		if n := asked.Load(); n != 0 {
			t.Errorf("the upstream got %d requests whose slots could not be filled", n)
		}
		put(map[string]string{"value": current, "key_id": "hook-7"})
		all("with the first version", http.StatusOK)
		next := "the-second-key-of-the-hook"
		key.Store(&next)
		all("with a key that the upstream does not take any more", http.StatusForbidden)
		put(map[string]string{"value": next, "key_id": "hook-7"})
		all("with the next version", http.StatusOK)
		h.leaksNothing(current, next)
	})
}
