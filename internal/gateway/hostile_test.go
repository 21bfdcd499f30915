package gateway_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	stdlog "log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/gatewaytest"
)

// Where we bring an authority, an agent brings none: what it may send would
// land in the account of whoever talked it into the key. Where we bring none,
// its own is its own.
func TestC5AnAgentBringsNoAuthorityBesideOurs(t *testing.T) {
	var seen http.Header
	g := gatewaytest.Reverse(t, upstream(t, func(_ http.ResponseWriter, r *http.Request) { seen = r.Header }))
	forged := []string{"Cookie", "X-Api-Key", "X-Goog-Api-Key", "Private-Token"}
	ask := func() {
		t.Helper()
		get(t, g.URL+"/", func(r *http.Request) {
			for _, name := range forged {
				r.Header.Set(name, "forged")
			}
		})
		g.Outcome(t)
	}
	ask()
	for _, name := range forged {
		if seen.Get(name) != "forged" {
			t.Errorf("where nothing is injected, the upstream got %s: %q", name, seen.Get(name))
		}
	}
	inject(g)
	ask()
	for _, name := range forged {
		if seen.Get(name) != "" {
			t.Errorf("beside what is injected, the upstream got %s: %q", name, seen.Get(name))
		}
	}
	if seen.Get("Authorization") != "Bearer "+key {
		t.Errorf("the upstream got Authorization: %q", seen.Get("Authorization"))
	}
}

// A certificate that does not check is quoted to the agent, and an upstream
// that was given a secret before may have put it there.
func TestC6CertificatesThatAreQuotedAreMasked(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const name = "sk-live-51h8azqpr7v.example"
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(nil)
	s.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}
	s.StartTLS()
	t.Cleanup(s.Close)
	g := gatewaytest.Reverse(t, strings.Replace(s.URL, "127.0.0.1", "localhost", 1))
	g.Upstream.Roots = x509.NewCertPool()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	g.Upstream.Roots.AddCert(cert)
	injectValue(g, name)
	_, body := get(t, g.URL+"/")
	if code(body) != "upstream_certificate" || strings.Contains(body, name) {
		t.Errorf("the agent is told %s", body)
	}
	if out := g.Outcome(t); !slices.Equal(out.Echoed, []string{"sec_crm@1"}) || strings.Contains(out.Err.Error(), name) {
		t.Errorf("the outcome is %+v", out)
	}
}

// One session cannot take all there is.
func TestOneSessionHasSoMuchUnderWay(t *testing.T) {
	live := &gateway.Live{}
	hold := func(session string) (func(), error) {
		return live.Hold(&gateway.Exchange{Conn: gateway.Conn{Caller: estover.Caller{Tenant: "default", Session: session}}}, func(error) {})
	}
	var leave func()
	for i := range gateway.MaxUnderWay {
		var err error
		if leave, err = hold("ses_1"); err != nil {
			t.Fatalf("number %d: %v", i, err)
		}
	}
	if _, err := hold("ses_1"); err != gateway.ErrBusy {
		t.Errorf("one more: %v, want ErrBusy", err)
	}
	if _, err := hold("ses_2"); err != nil {
		t.Errorf("in another session: %v", err)
	}
	leave()
	if _, err := hold("ses_1"); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}
