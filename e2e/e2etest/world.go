package e2etest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"estover.dev/demo/web"
)

// A World is upstreams on loopback under names of their own, which no resolver
// knows, with one certificate authority.
type World struct {
	web *web.Web
	ca  string
}

// NewWorld makes a world without upstreams.
func NewWorld(t testing.TB) *World {
	t.Helper()
	w, err := web.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(w.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	return &World{w, string(ca)}
}

// CAFile is the authority of the upstreams' certificates.
func (w *World) CAFile() string { return w.web.CAFile }

// Site starts an upstream. Its host is name.example.test.
func (w *World) Site(t testing.TB, name string, h http.Handler) *web.Site {
	t.Helper()
	s, err := w.web.Serve(name+".example.test", "", h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Resource is the document of an upstream under its name, with the rest of its
// specification as lines of YAML.
func (w *World) Resource(s *web.Site, spec string) string {
	name, _, _ := strings.Cut(s.Host, ".")
	return fmt.Sprintf(`apiVersion: estover.dev/v1
kind: Resource
metadata: {name: %s}
spec:
  base_url: %s
  address: %s
  allow_private: [127.0.0.0/8]
  ca: |
%s%s`, name, s.URL, s.Address, indent(w.ca, 4), indent(spec, 2))
}

// Secret is the document of a secret that may be sent to one upstream.
func Secret(path string, s *web.Site) string {
	return fmt.Sprintf(`apiVersion: estover.dev/v1
kind: Secret
metadata: {name: %s}
spec: {class: confidential, destinations: ["%s"]}`, path, strings.TrimPrefix(s.URL, "https://"))
}

// Agent is the document of an agent that the administrator answers for.
func Agent(name string, purposes ...string) string {
	return fmt.Sprintf(`apiVersion: estover.dev/v1
kind: Agent
metadata: {name: %s}
spec: {blueprint: test, sponsor: admin, purposes: [%s], clearance: confidential}`, name, strings.Join(purposes, ", "))
}

// Grant is the document of a grant.
func Grant(name, agent, resource, actions, purpose string) string {
	return fmt.Sprintf(`apiVersion: estover.dev/v1
kind: Grant
metadata: {name: %s}
spec: {agent: %s, resource: %s, actions: [%s], purposes: [%s], class: confidential}`, name, agent, resource, actions, purpose)
}

func indent(text string, by int) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text)) {
		b.WriteString(strings.Repeat(" ", by) + strings.TrimRight(line, "\n") + "\n")
	}
	return b.String()
}

// A Session is one that a test has opened itself, with a key of its own, as a
// launcher does.
type Session struct {
	ID   string
	HTTP *http.Client // goes through the gateway, with the session's certificate
	CA   string       // what programs of the session trust, in PEM
}

// Open opens a session of an agent by the token of whoever may do that. It
// fails as the server says.
func (s *Server) Open(t testing.TB, token, agent, purpose string) (*Session, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	var opened struct {
		Session struct{ ID string }
		Gateway string
		CA      string
	}
	err = s.Post(t, token, "/v1/sessions", map[string]any{
		"agent": agent, "purpose": purpose, "certificate_thumbprint": base64.RawURLEncoding.EncodeToString(sum[:]),
	}, &opened)
	if err != nil {
		return nil, err
	}
	proxy := &url.URL{Scheme: "https", Host: opened.Gateway}
	tr := &http.Transport{
		Proxy: http.ProxyURL(proxy), ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: s.Roots(t, opened.CA),
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &Session{ID: opened.Session.ID, CA: opened.CA, HTTP: &http.Client{Transport: tr, Timeout: time.Minute}}, nil
}

// A Refused is an answer of the management API that is not 2xx.
type Refused struct {
	Status int
	Code   string
	Detail string
}

func (r *Refused) Error() string { return fmt.Sprintf("%d %s: %s", r.Status, r.Code, r.Detail) }

// Post sends in to the management API and reads the answer into out, which may
// be nil. The error is a [Refused], or that of the network.
func (s *Server) Post(t testing.TB, token, path string, in, out any) error {
	t.Helper()
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return s.do(t, http.MethodPost, token, path, string(b), out)
}

// Get reads from the management API.
func (s *Server) Get(t testing.TB, token, path string, out any) error {
	t.Helper()
	return s.do(t, http.MethodGet, token, path, "", out)
}

func (s *Server) do(t testing.TB, method, token, path, body string, out any) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := s.HTTP(t).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		r := &Refused{Status: res.StatusCode}
		_ = json.NewDecoder(res.Body).Decode(r)
		return r
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(out)
}
