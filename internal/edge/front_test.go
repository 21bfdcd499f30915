package edge_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/edge"
)

// through sends a request through a front and gives where it came from, and
// the head that is left of it.
func through(f edge.Front, peer string, header http.Header) (edge.Origin, http.Header) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr, r.Header = peer, header
	var o edge.Origin
	var left http.Header
	f.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		o, left = edge.OriginOf(r), r.Header
	})).ServeHTTP(httptest.NewRecorder(), r)
	return o, left
}

func TestAddressIsBelievedFromTrustedProxiesOnly(t *testing.T) {
	f := edge.Front{Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}
	for _, c := range []struct {
		peer string
		xff  []string
		want string
	}{
		{"203.0.113.9:1", nil, "203.0.113.9"},
		{"203.0.113.9:1", []string{"198.51.100.1"}, "203.0.113.9"},
		{"10.0.0.1:1", nil, "10.0.0.1"},
		{"10.0.0.1:1", []string{"198.51.100.1"}, "198.51.100.1"},
		{"10.0.0.1:1", []string{"127.0.0.1, 198.51.100.1"}, "198.51.100.1"},
		{"10.0.0.1:1", []string{"evil, 198.51.100.1", "10.2.3.4"}, "198.51.100.1"},
		{"10.0.0.1:1", []string{"198.51.100.1, evil"}, "10.0.0.1"},
		{"10.0.0.1:1", []string{"10.9.9.9"}, "10.9.9.9"},
		{"10.0.0.1:1", []string{"198.51.100.1:80"}, "10.0.0.1"},
		{"10.0.0.1:1", []string{""}, "10.0.0.1"},
		{"[::ffff:10.0.0.1]:1", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"[fd00::1]:1", []string{"2001:db8::7%eth0"}, "2001:db8::7"},
	} {
		h := http.Header{}
		for _, v := range c.xff {
			h.Add("X-Forwarded-For", v)
		}
		o, left := through(f, c.peer, h)
		if o.Address.String() != c.want {
			t.Errorf("from %s with X-Forwarded-For %q: %s, want %s", c.peer, c.xff, o.Address, c.want)
		}
		if len(left) != 0 {
			t.Errorf("from %s: %v is left of the head", c.peer, left)
		}
	}
}

func TestFrontTakesOutWhatOnlyProxiesSay(t *testing.T) {
	h := http.Header{}
	for _, name := range []string{
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Client-Cert", "Client-Cert-Chain",
		"X-Ssl-Client-Cert", "Ssl-Client-Verify", "X_Forwarded_For", "Client_Cert", "Some_Header",
	} {
		h[name] = []string{"x"}
	}
	h.Set("Authorization", "Bearer x")
	h.Set("Accept", "y")
	for _, peer := range []string{"203.0.113.9:1", "10.0.0.1:1"} {
		_, left := through(edge.Front{Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, peer, h.Clone())
		if len(left) != 2 || left.Get("Authorization") == "" || left.Get("Accept") == "" {
			t.Errorf("from %s: %v is left, want the two that any client may send", peer, left)
		}
	}
}

func TestRequestID(t *testing.T) {
	seen := map[string]bool{}
	for range 3 {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("X-Request-Id", "chosen-by-the-client")
		rec := httptest.NewRecorder()
		var first, second string
		edge.Front{}.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			first, second = edge.OriginOf(r).Request, edge.OriginOf(r).Request
		})).ServeHTTP(rec, r)
		if !strings.HasPrefix(first, "req_") || first != second || seen[first] || rec.Header().Get("X-Request-Id") != first {
			t.Errorf("the request is %q, %q and %q", first, second, rec.Header().Get("X-Request-Id"))
		}
		seen[first] = true
	}
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tlsWith is a connection whose client has shown that it has this key.
func tlsWith(c *x509.Certificate) *tls.ConnectionState {
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
}

// A certificate counts from the connection, and from a header only of a
// trusted proxy.
func TestCertificate(t *testing.T) {
	cert := certificate(t)
	want := edge.Thumbprint(cert.Certificate[0])
	header := ":" + base64.StdEncoding.EncodeToString(cert.Certificate[0]) + ":"
	f := edge.Front{Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Certificates: true}
	for _, c := range []struct{ peer, header, want string }{
		{"10.0.0.1:1", header, want},
		{"203.0.113.9:1", header, ""},
		{"10.0.0.1:1", header[1:], ""},
		{"10.0.0.1:1", "::", ""},
		{"10.0.0.1:1", ":AAAA:", ""},
		{"10.0.0.1:1", ":", ""},
		{"10.0.0.1:1", "", ""},
	} {
		o, _ := through(f, c.peer, http.Header{"Client-Cert": {c.header}})
		if got := o.Thumbprint(); got != c.want {
			t.Errorf("from %s with a header of %d bytes: %q, want %q", c.peer, len(c.header), got, c.want)
		}
	}

	// One that is believed about addresses alone, and one that has appended to
	// what the client itself sent.
	f.Certificates = false
	if o, _ := through(f, "10.0.0.1:1", http.Header{"Client-Cert": {header}}); o.Certificate != nil {
		t.Error("a proxy was believed about a certificate that is believed about addresses alone")
	}
	f.Certificates = true
	other := ":" + base64.StdEncoding.EncodeToString(certificate(t).Certificate[0]) + ":"
	for _, headers := range [][]string{{header, other}, {other, header}, {header, header}, {header + ", " + other}} {
		if o, _ := through(f, "10.0.0.1:1", http.Header{"Client-Cert": headers}); o.Certificate != nil {
			t.Error("of several certificates one was believed")
		}
	}

	seen := make(chan string, 1)
	server := httptest.NewUnstartedServer(edge.Front{}.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen <- edge.OriginOf(r).Thumbprint()
	})))
	server.TLS = edge.AskCertificate(&tls.Config{MinVersion: tls.VersionTLS13})
	server.StartTLS()
	defer server.Close()
	for _, certs := range [][]tls.Certificate{{cert}, nil} {
		client := server.Client()
		transport := client.Transport.(*http.Transport).Clone()
		transport.TLSClientConfig.Certificates = certs
		res, err := (&http.Client{Transport: transport}).Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		transport.CloseIdleConnections()
		expect := ""
		if certs != nil {
			expect = want
		}
		if got := <-seen; got != expect {
			t.Errorf("over TLS with %d certificates: %q, want %q", len(certs), got, expect)
		}
	}
	if o := edge.OriginOf(&http.Request{RemoteAddr: "pipe"}); o.Address.IsValid() || o.Thumbprint() != "" {
		t.Errorf("a request from nowhere comes from %+v", o)
	}
}

// Whatever a trusted proxy writes about a certificate, it is one or none.
func FuzzForwardedCertificate(f *testing.F) {
	f.Add(":AA==:", ":AA==:, :AA==:")
	f.Add("::", ",,:")
	front := edge.Front{Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Certificates: true}
	f.Fuzz(func(t *testing.T, cert, chain string) {
		o, _ := through(front, "10.0.0.1:1", http.Header{"Client-Cert": {cert}, "Client-Cert-Chain": {chain, chain}})
		if o.Certificate != nil && len(o.Certificate.Raw) == 0 || len(o.Chain) > 10 {
			t.Errorf("%q and %q are %d bytes and %d certificates", cert, chain, len(o.Certificate.Raw), len(o.Chain))
		}
	})
}

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	l := edge.NewLimiter(2, 3, func() time.Time { return now })
	take := func(key string) (n int) {
		for range 100 {
			if l.Allow(key) {
				n++
			}
		}
		return n
	}
	if n := take("a"); n != 3 {
		t.Errorf("at once %d were let through, want 3", n)
	}
	if !l.Exhausted("a") || l.Exhausted("b") {
		t.Error("the one who took all is not exhausted, or another is")
	}
	if n := take("b"); n != 3 {
		t.Errorf("of another %d were let through, want 3", n)
	}
	now = now.Add(time.Second)
	if n := take("a"); n != 2 {
		t.Errorf("after a second %d were let through, want 2", n)
	}
	now = now.Add(time.Hour)
	if n := take("a"); n != 3 {
		t.Errorf("after an hour %d were let through, want 3", n)
	}
	now = now.Add(-time.Hour)
	if n := take("a"); n != 0 {
		t.Errorf("when the clock went back %d were let through, want none", n)
	}
	for _, c := range []struct{ a, b string }{{"2001:db8::1", "2001:db8::ffff:1"}, {"::ffff:192.0.2.1", "192.0.2.1"}} {
		if x, y := edge.AddressKey(netip.MustParseAddr(c.a).Unmap()), edge.AddressKey(netip.MustParseAddr(c.b)); x != y {
			t.Errorf("%s and %s have the keys %s and %s, want one", c.a, c.b, x, y)
		}
	}
	if edge.AddressKey(netip.MustParseAddr("192.0.2.1")) == edge.AddressKey(netip.MustParseAddr("192.0.2.2")) {
		t.Error("two addresses have one key")
	}
}
