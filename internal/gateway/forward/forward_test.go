package forward_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/forward"
	"estover.dev/internal/gateway/gatewaytest"
	"estover.dev/internal/redact"
)

func TestMain(m *testing.M) {
	stdlog.SetOutput(edge.StandardLog(slog.New(slog.DiscardHandler)))
	os.Exit(m.Run())
}

const key = "sk_live_51H8aZ-QpR7v+/=W"

// A proxy is a forward proxy with sessions.
type proxy struct {
	*gatewaytest.Steps
	*gateway.Pipeline
	addr string
	cert *x509.Certificate // the proxy's own

	mu       sync.Mutex
	sessions map[[32]byte]*gateway.Conn
}

// certificate makes a self-signed certificate for a name.
func certificate(t testing.TB, name string) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k, Leaf: leaf}
}

// start starts a proxy.
func start(t testing.TB) *proxy {
	t.Helper()
	p := &proxy{Steps: gatewaytest.New(), sessions: map[[32]byte]*gateway.Conn{}}
	logger := slog.New(slog.DiscardHandler)
	p.Pipeline = &gateway.Pipeline{Steps: p.Steps, Forwarder: gateway.NewForwarder(&edge.Dialer{}, logger), Live: &gateway.Live{}}
	own := certificate(t, "proxy.example")
	p.cert = own.Leaf
	door := &forward.Door{
		Pipeline: p.Pipeline, Logger: logger,
		Rules: func(_ context.Context, _ *gateway.Conn, host edge.Host) edge.TargetRules {
			return edge.TargetRules{EncodedSlash: host.IP.IsLoopback()}
		},
		Own: func(w http.ResponseWriter, r *http.Request, caller estover.Caller) {
			fmt.Fprintf(w, "%s %s asked by %s", r.Method, r.URL.Path, caller.Session)
		},
		Certificates: func() (*tls.Certificate, error) { return &own, nil },
		Session: func(_ context.Context, thumbprint [32]byte) (*gateway.Conn, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			if c := p.sessions[thumbprint]; c != nil {
				return c, nil
			}
			return nil, &estover.Error{Kind: estover.Unknown, Code: "unknown", Detail: "Unknown."}
		},
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	done := make(chan error, 1)
	go func() { done <- door.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		door.Shutdown(ctx)
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the door ended with %v", err)
		}
	})
	return p
}

// An agent is a client with the key of a session.
type agent struct {
	p    *proxy
	cert tls.Certificate
	ca   *gateway.CA
}

// session opens a session that may reach the hosts.
func (p *proxy) session(t testing.TB, id string, hosts ...string) *agent {
	t.Helper()
	a := &agent{p: p, cert: certificate(t, id)}
	var err error
	if a.ca, err = gateway.NewCA(id, hosts, time.Now()); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions[sha256.Sum256(a.cert.Certificate[0])] = &gateway.Conn{Caller: estover.Caller{Tenant: "default", Session: id}, CA: a.ca}
	return a
}

// end ends the session as a containment does.
func (a *agent) end(id string) int {
	a.p.mu.Lock()
	delete(a.p.sessions, sha256.Sum256(a.cert.Certificate[0]))
	a.p.mu.Unlock()
	return a.p.Live.Cut("default", id, gateway.ErrEnded)
}

// config is the TLS of the agent towards the proxy.
func (a *agent) config() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.p.cert)
	return &tls.Config{RootCAs: roots, ServerName: "proxy.example", Certificates: []tls.Certificate{a.cert}}
}

// dial opens a connection to the proxy.
func (a *agent) dial(t testing.TB) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp4", a.p.addr, a.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(gatewaytest.Wait))
	return c
}

// roots are what the agent trusts inside of tunnels: the session's CA alone.
func (a *agent) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.ca.PEM())
	return pool
}

// connect opens a tunnel and gives the answer to CONNECT.
func (a *agent) connect(t testing.TB, host string) (net.Conn, *http.Response) {
	t.Helper()
	c := a.dial(t)
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", host, host)
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "CONNECT"})
	if err != nil {
		t.Fatalf("CONNECT %s: %v", host, err)
	}
	return c, resp
}

// inside shakes hands in a tunnel.
func (a *agent) inside(t testing.TB, host, sni string, alpn ...string) *tls.Conn {
	t.Helper()
	c, resp := a.connect(t, host)
	if resp.StatusCode != 200 {
		t.Fatalf("CONNECT %s: %s", host, resp.Status)
	}
	inner := tls.Client(c, &tls.Config{ServerName: sni, RootCAs: a.roots(), NextProtos: alpn})
	if err := inner.Handshake(); err != nil {
		t.Fatalf("shaking hands with %s: %v", sni, err)
	}
	return inner
}

// client is an ordinary client that uses the proxy.
func (a *agent) client(h2 bool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialTLSContext: nil,
		Proxy:          func(*http.Request) (*url.URL, error) { return url.Parse("https://" + a.p.addr) },
		TLSClientConfig: &tls.Config{
			RootCAs:      func() *x509.CertPool { r := a.roots(); r.AddCert(a.p.cert); return r }(),
			Certificates: []tls.Certificate{a.cert},
		},
		ForceAttemptHTTP2: h2,
	}}
}

// crm is an upstream that demands the key, and its host.
func crm(t testing.TB, p *proxy) (host string, s *httptest.Server) {
	t.Helper()
	s = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+key {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch r.URL.Path {
		case "/stream":
			w.Header().Set("Content-Type", "text/event-stream")
			rc := http.NewResponseController(w)
			io.WriteString(w, "data: one\n\n")
			rc.Flush()
			<-r.Context().Done()
		default:
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s %s [%s] %s", r.Proto, r.Method, r.Host, r.RequestURI, b, r.Header.Get("Authorization"))
		}
	}))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	p.Upstream.Roots = s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	p.Upstream.Pins = [][32]byte{sha256.Sum256(s.Certificate().RawSubjectPublicKeyInfo)}
	p.Upstream.Roots = nil // the pin alone: its certificate is for another name
	needles, _ := redact.NewMatcher(redact.Value{Name: "sec_crm@1", Text: []byte(key)})
	p.Late = func(_ *gateway.Exchange, plan *gateway.Plan) error {
		plan.Slots = []gateway.Slot{{Kind: gateway.HeaderSlot, Name: "Authorization", Prefix: "Bearer ", Secret: estover.NewSecret([]byte(key))}}
		plan.Needles, plan.Credential = needles, "sec_crm@1"
		return nil
	}
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return "localhost:" + port, s
}

func TestInterceptionSpeaksBothVersions(t *testing.T) {
	p := start(t)
	host, _ := crm(t, p)
	a := p.session(t, "ses_1", "localhost")
	for _, h2 := range []bool{false, true} {
		client := a.client(h2)
		for i := range 3 {
			resp, err := client.Post(fmt.Sprintf("https://%s/v1/customers/%d?expand=a%%20b", host, i), "text/plain", strings.NewReader("hello"))
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := fmt.Sprintf("HTTP/2.0 POST %s /v1/customers/%d?expand=a%%20b [hello] Bearer %s", host, i, strings.Repeat("*", len(key))); string(b) != want || (resp.ProtoMajor == 2) != h2 {
				t.Errorf("over %s the agent got %s, want %s", resp.Proto, b, want)
			}
			if out := p.Outcome(t); out.End != gateway.Complete || out.Proto != "HTTP/2.0" || out.SPKI == [32]byte{} || len(out.Echoed) != 1 {
				t.Errorf("the outcome is %+v", out)
			}
		}
		client.CloseIdleConnections()
	}
	if got := strings.Join(p.Order()[:5], " "); got != "connect decide intend fill settle" {
		t.Errorf("the steps were %s", got)
	}
}

// The host of CONNECT, the server name and the host of each request inside are
// the same.
func TestC3TheHostIsOne(t *testing.T) {
	p := start(t)
	host, _ := crm(t, p)
	a := p.session(t, "ses_1", "localhost", "other.example")
	_, port, _ := net.SplitHostPort(host)

	// Not a host, or not one way to write it.
	for _, h := range []string{"localhost", "localhost.:443", "user@localhost:443", "[::1%25lo]:443", "127.1:443", "2130706433:443", "localhost:0443", "local%68ost:443", "[::ffff:127.0.0.1]:443"} {
		c, resp := a.connect(t, h)
		if resp.StatusCode != 400 {
			t.Errorf("CONNECT %s is answered with %s", h, resp.Status)
		}
		if resp.Header.Get("Content-Type") == "application/problem+json" { // net/http refuses some by itself
			p.Violation(t)
		}
		if rest, _ := io.ReadAll(c); len(rest) > 5000 {
			t.Errorf("CONNECT %s keeps the connection", h)
		}
	}
	// The server name.
	for _, sni := range []string{"other.example", ""} {
		c, _ := a.connect(t, host)
		err := tls.Client(c, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).Handshake()
		if err == nil {
			t.Errorf("the server name %q is accepted in a tunnel to %s", sni, host)
		}
		if v := p.Violation(t); !errors.Is(v, forward.ErrSNI) {
			t.Errorf("the server name %q is the violation %v", sni, v)
		}
	}
	// The host of a request.
	for head, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: " + host:                                   "200",
		"GET / HTTP/1.1\r\nHost: LOCALHOST:" + port:                         "200",
		"GET https://" + host + "/ HTTP/1.1\r\nHost: evil.example":          "200", // the target counts
		"GET / HTTP/1.1\r\nHost: localhost":                                 "421", // port 443
		"GET / HTTP/1.1\r\nHost: localhost:1":                               "421",
		"GET / HTTP/1.1\r\nHost: other.example:" + port:                     "421",
		"GET https://other.example:" + port + "/ HTTP/1.1\r\nHost: " + host: "421",
		"GET http://" + host + "/ HTTP/1.1\r\nHost: " + host:                "421",
		"GET / HTTP/1.1\r\nHost: localhost.:" + port:                        "400",
		"CONNECT " + host + " HTTP/1.1\r\nHost: " + host:                    "400",
		"GET /a/../b HTTP/1.1\r\nHost: " + host:                             "400",
		"GET //b HTTP/1.1\r\nHost: " + host:                                 "400",
		"GET /a%2f..%2fb HTTP/1.1\r\nHost: " + host:                         "400",
		"GET /a/..;/b HTTP/1.1\r\nHost: " + host:                            "400",
		"GET /%c0%ae%c0%ae/b HTTP/1.1\r\nHost: " + host:                     "400",
		"OPTIONS * HTTP/1.1\r\nHost: " + host:                               "400",
	} {
		c := a.inside(t, host, "localhost", "http/1.1")
		io.WriteString(c, head+"\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%q: %v", head, err)
			continue
		}
		b, _ := io.ReadAll(resp.Body)
		if !strings.HasPrefix(resp.Status, want) {
			t.Errorf("%q is answered with %s %s, want %s", head, resp.Status, b, want)
		}
		if want == "200" {
			if !strings.Contains(string(b), " "+host+" / ") {
				t.Errorf("%q reached %s", head, b)
			}
			p.Outcome(t)
		} else if resp.Header.Get("Content-Type") == "application/problem+json" {
			if v := p.Violation(t); want == "421" != errors.Is(v, gateway.ErrMisdirected) {
				t.Errorf("%q is the violation %v", head, v)
			}
		}
		c.Close()
	}
	p.Quiet(t)
}

// In HTTP/2 the authority counts, and a Host beside it must be the same.
func TestP18AuthorityAndHostAreTheSame(t *testing.T) {
	p := start(t)
	host, _ := crm(t, p)
	a := p.session(t, "ses_1", "localhost")
	for _, c := range []struct {
		fields [][2]string
		want   string
	}{
		{[][2]string{{":authority", host}}, "200"},
		{[][2]string{{":authority", host}, {"host", host}}, "200"},
		{[][2]string{{":authority", host}, {"host", "evil.example"}}, "421"},
		{[][2]string{{":authority", "evil.example"}}, "421"},
		{[][2]string{{"host", "evil.example"}}, "421"},
		{[][2]string{{":authority", host}, {"upgrade", "websocket"}}, ""}, // a broken request of HTTP/2
		{[][2]string{{":authority", host}, {":protocol", "websocket"}}, ""},
	} {
		conn := a.inside(t, host, "localhost", "h2")
		got := h2Get(t, conn, c.fields)
		if c.want != "" && got != c.want || c.want == "" && got == "200" {
			t.Errorf("%q is answered with %q, want %q", c.fields, got, c.want)
		}
		conn.Close()
	}
}

// C4: in HTTP/2 a method may be anything, and framing has another name in HTTP/1.1.
func TestC4InHTTP2ARequestIsOneRequest(t *testing.T) {
	p := start(t)
	host, _ := crm(t, p)
	a := p.session(t, "ses_1", "localhost")
	for _, fields := range [][][2]string{
		{{":method", "GET /other?"}},
		{{":method", "GET /other HTTP/1.1"}},
		{{":method", "GET"}, {"transfer_encoding", "chunked"}},
		{{":method", "GET"}, {"content_length", "5"}},
	} {
		conn := a.inside(t, host, "localhost", "h2")
		fields = append(fields[:1:1], append([][2]string{{":authority", host}}, fields[1:]...)...)
		if got := h2Get(t, conn, fields); got != "400" {
			t.Errorf("%q is answered with %q", fields, got)
		} else if err := p.Violation(t); !errors.Is(err, edge.ErrHead) {
			t.Errorf("%q is the violation %v", fields, err)
		}
		conn.Close()
	}
}

// A first byte that is not of TLS ends the tunnel.
func TestOnlyTLSGoesThroughATunnel(t *testing.T) {
	p := start(t)
	a := p.session(t, "ses_1", "localhost")
	ended := make(chan gateway.TunnelOutcome, 1)
	p.Tunnel = func(*gateway.Exchange) (*gateway.Tunnel, error) {
		return &gateway.Tunnel{Done: func(o gateway.TunnelOutcome) { ended <- o }}, nil
	}
	c, _ := a.connect(t, "localhost:25")
	io.WriteString(c, "EHLO agent\r\n")
	if rest, _ := io.ReadAll(c); len(rest) > 0 {
		t.Errorf("the agent got %q", rest)
	}
	if v := p.Violation(t); !errors.Is(v, forward.ErrNoTLS) {
		t.Errorf("the violation is %v", v)
	}
	if o := <-ended; o.End != gateway.Refused || !errors.Is(o.Err, forward.ErrNoTLS) {
		t.Errorf("the tunnel's outcome is %+v", o)
	}
	// Bytes that do not wait for the answer are refused with it.
	early := a.dial(t)
	io.WriteString(early, "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n\x16\x03\x01")
	if rest, _ := io.ReadAll(early); bytes.HasPrefix(rest, []byte("HTTP/1.1 200")) && len(rest) > 60 {
		t.Errorf("early bytes are answered with %q", rest)
	}
}

// A stolen proxy address is worth nothing without the session's key, and
// nothing after its end.
func TestC9TheProxyIsBoundToTheSessionsKey(t *testing.T) {
	p := start(t)
	host, _ := crm(t, p)
	a := p.session(t, "ses_1", "localhost")
	// No certificate, and TLS 1.2.
	config := a.config()
	config.Certificates = nil
	if c, err := tls.Dial("tcp4", p.addr, config); err == nil {
		io.WriteString(c, "CONNECT "+host+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("without a certificate the answer is %q", b)
		}
	}
	config = a.config()
	config.MaxVersion = tls.VersionTLS12
	if _, err := tls.Dial("tcp4", p.addr, config); err == nil {
		t.Error("the proxy speaks TLS 1.2")
	}
	// Somebody else's certificate, with a stolen header.
	thief := &agent{p: p, cert: certificate(t, "ses_1"), ca: a.ca}
	c := thief.dial(t)
	io.WriteString(c, "CONNECT "+host+" HTTP/1.1\r\nHost: "+host+"\r\nProxy-Authorization: Bearer stolen\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 403 {
		t.Errorf("a thief is answered with %v, %v", resp, err)
	}
	// The session's own, before and after its end.
	inner := a.inside(t, host, "localhost", "http/1.1")
	ask := func(c net.Conn) string {
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err.Error()
		}
		b, _ := io.ReadAll(resp.Body)
		return resp.Status + " " + string(b)
	}
	if got := ask(inner); !strings.HasPrefix(got, "200") {
		t.Fatalf("the session is answered with %s", got)
	}
	p.Outcome(t)
	// Its end is seen by the next request of an open tunnel, also if nothing cuts
	// the tunnel.
	p.mu.Lock()
	clear(p.sessions)
	p.mu.Unlock()
	if got := ask(inner); !strings.HasPrefix(got, "403") || !strings.Contains(got, "session_unknown") {
		t.Errorf("after its end the session is answered with %s", got)
	}
	if _, resp := a.connect(t, host); resp.StatusCode != 403 {
		t.Errorf("after its end CONNECT is answered with %s", resp.Status)
	}
	p.Quiet(t)
}

// A cut closes tunnels and the streams in them within a second.
func TestC10ACutClosesTunnels(t *testing.T) {
	p := start(t)
	host, _ := crm(t, p)
	ended := make(chan gateway.TunnelOutcome, 10)
	p.Tunnel = func(*gateway.Exchange) (*gateway.Tunnel, error) {
		return &gateway.Tunnel{Done: func(o gateway.TunnelOutcome) { ended <- o }}, nil
	}
	a, b := p.session(t, "ses_1", "localhost"), p.session(t, "ses_2", "localhost")
	var bodies []io.ReadCloser
	for _, h2 := range []bool{false, true} {
		client := a.client(h2)
		defer client.CloseIdleConnections()
		resp, err := client.Get("https://" + host + "/stream")
		if err != nil {
			t.Fatal(err)
		}
		if line, _ := bufio.NewReader(resp.Body).ReadString('\n'); line != "data: one\n" {
			t.Fatalf("the stream begins with %q", line)
		}
		bodies = append(bodies, resp.Body)
	}
	idle := a.inside(t, host, "localhost", "http/1.1")
	raw, _ := a.connect(t, host) // has not shaken hands
	other := b.inside(t, host, "localhost", "http/1.1")

	at := time.Now()
	if n := a.end("ses_1"); n != 6 {
		t.Errorf("%d exchanges and tunnels were cut, want 2 and 4", n)
	}
	for _, b := range bodies {
		if _, err := io.ReadAll(b); err == nil {
			t.Error("a cut stream ends as if it were complete")
		}
		if out := p.Outcome(t); out.End != gateway.Cut || !errors.Is(out.Err, gateway.ErrEnded) {
			t.Errorf("an outcome is %+v", out)
		}
	}
	for _, c := range []net.Conn{idle, raw} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a cut tunnel is open")
		}
	}
	for range 4 {
		if o := <-ended; o.End != gateway.Cut || !errors.Is(o.Err, gateway.ErrEnded) {
			t.Errorf("the outcome of a tunnel is %+v", o)
		}
	}
	if took := time.Since(at); took > gatewaytest.Soon {
		t.Errorf("it took %v", took)
	}
	io.WriteString(other, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(other), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("another session is cut too: %v, %v", resp, err)
	}
}

// A tunnel is only for hosts that the session's CA is for, and that the decision
// allows at that moment.
func TestC13LeavesAreMintedForReachableHosts(t *testing.T) {
	p := start(t)
	a := p.session(t, "ses_1", "crm.example.com")
	p.Tunnel = func(ex *gateway.Exchange) (*gateway.Tunnel, error) {
		if ex.Host.Name == "denied.example" {
			return nil, &gateway.Refusal{Err: &estover.Error{Kind: estover.Denied, Code: "host_denied", Detail: "No."}, Decision: "dec_1"}
		}
		return &gateway.Tunnel{}, nil
	}
	c, resp := a.connect(t, "denied.example:443")
	b, _ := io.ReadAll(c)
	if resp.StatusCode != 403 || resp.Header.Get(gateway.DecisionHeader) != "dec_1" {
		t.Errorf("a denied host is answered with %s %v %s", resp.Status, resp.Header, b)
	}
	// Most programs show nothing of it but the reason phrase.
	if want := "403 No. Why: estover why dec_1"; resp.Status != want {
		t.Errorf("the status line says %q, want %q", resp.Status, want)
	}
	if _, err := a.client(false).Get("https://denied.example/"); err == nil || !strings.Contains(err.Error(), "No. Why: estover why dec_1") {
		t.Errorf("an ordinary client says %v, want the sentence", err)
	}
	// Allowed by a faulty policy, but outside of the CA.
	c, _ = a.connect(t, "elsewhere.example:443")
	if err := tls.Client(c, &tls.Config{ServerName: "elsewhere.example", InsecureSkipVerify: true}).Handshake(); err == nil {
		t.Error("a leaf was minted for a host outside of the constraints")
	}
	inner := a.inside(t, "crm.example.com:443", "crm.example.com", "http/1.1")
	if leaf := inner.ConnectionState().PeerCertificates[0]; len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "crm.example.com" {
		t.Errorf("the leaf is for %v", leaf.DNSNames)
	}
}

// Pinned clients may be let through, with the name they ask for checked and the
// bytes counted.
func TestPassThrough(t *testing.T) {
	p := start(t)
	host, s := crm(t, p)
	a := p.session(t, "ses_1")
	ended := make(chan gateway.TunnelOutcome, 1)
	p.Tunnel = func(ex *gateway.Exchange) (*gateway.Tunnel, error) {
		return &gateway.Tunnel{
			PassThrough: true, Upstream: &gateway.Upstream{Scheme: "https", Host: ex.Host, Opening: p.Upstream.Opening},
			Done: func(o gateway.TunnelOutcome) { ended <- o },
		}, nil
	}
	c, _ := a.connect(t, host)
	inner := tls.Client(c, &tls.Config{ServerName: "localhost", InsecureSkipVerify: true})
	if err := inner.Handshake(); err != nil {
		t.Fatal(err)
	}
	if !inner.ConnectionState().PeerCertificates[0].Equal(s.Certificate()) {
		t.Error("the certificate is not the upstream's")
	}
	io.WriteString(inner, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	if b, _ := io.ReadAll(inner); !bytes.HasPrefix(b, []byte("HTTP/1.1 401 ")) { // nothing is injected
		t.Errorf("the upstream answers %.40q", b)
	}
	inner.Close()
	if o := <-ended; o.End != gateway.Complete || o.Up < 500 || o.Down < 500 {
		t.Errorf("the outcome is %+v", o)
	}
	c, _ = a.connect(t, host)
	if err := tls.Client(c, &tls.Config{ServerName: "evil.example", InsecureSkipVerify: true}).Handshake(); err == nil {
		t.Error("another server name is let through")
	}
	if v := p.Violation(t); !errors.Is(v, forward.ErrSNI) {
		t.Errorf("the violation is %v", v)
	}
	<-ended
	// It is cut like every other.
	c, _ = a.connect(t, host)
	inner = tls.Client(c, &tls.Config{ServerName: "localhost", InsecureSkipVerify: true})
	if err := inner.Handshake(); err != nil {
		t.Fatal(err)
	}
	a.end("ses_1")
	if _, err := io.ReadAll(inner); err == nil {
		t.Log("the tunnel ended cleanly")
	}
	if o := <-ended; o.End != gateway.Cut {
		t.Errorf("the outcome is %+v", o)
	}
}

func TestAbsoluteForm(t *testing.T) {
	p := start(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %v", r.Host, r.RequestURI, r.Header["Proxy-Authorization"])
	}))
	t.Cleanup(s.Close)
	a := p.session(t, "ses_1")
	host := strings.TrimPrefix(s.URL, "http://")
	ask := func(head string) string {
		c := a.dial(t)
		io.WriteString(c, head+"\r\nProxy-Authorization: Basic eDp5\r\nConnection: close\r\n\r\n")
		b, _ := io.ReadAll(c)
		return string(b)
	}
	if got := ask("GET http://" + host + "/a?b HTTP/1.1\r\nHost: evil.example"); !strings.HasSuffix(got, host+" /a?b []") {
		t.Errorf("the answer is %s", got)
	}
	if got := ask("GET http://" + host + " HTTP/1.1\r\nHost: " + host); !strings.HasSuffix(got, host+" / []") {
		t.Errorf("without a path the answer is %s", got)
	}
	if got := ask("GET http://" + host + "/projects/a%2Fb HTTP/1.1\r\nHost: a"); !strings.HasSuffix(got, host+" /projects/a%2Fb []") {
		t.Errorf("with loosened rules the answer is %s", got)
	}
	for _, head := range []string{
		"GET / HTTP/1.1\r\nHost: " + host, "GET https://" + host + "/ HTTP/1.1\r\nHost: a", "GET ftp://" + host + "/ HTTP/1.1\r\nHost: a",
		"GET http://user@" + host + "/ HTTP/1.1\r\nHost: a", "GET http://127.1/ HTTP/1.1\r\nHost: a", "GET http://" + host + "/a/../b HTTP/1.1\r\nHost: a",
		"GET http:///x HTTP/1.1\r\nHost: a",
	} {
		if got := ask(head); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%q is answered with %.60q", head, got)
		}
	}
}

// loopback is what a launcher gives to a program: a proxy without TLS and
// credentials, which has the key of the session behind it.
func (a *agent) loopback(t *testing.T) string {
	return gatewaytest.Raw(t, func(c net.Conn, _ int) {
		up, err := tls.Dial("tcp4", a.p.addr, a.config())
		if err != nil {
			return
		}
		defer up.Close()
		go func() {
			io.Copy(up, c)
			up.CloseWrite()
		}()
		io.Copy(c, up)
	})
}

// Programs that know nothing of Estover work through the proxy, with the
// session's CA and a proxy address in their environment.
func TestOrdinaryPrograms(t *testing.T) {
	p := start(t)
	host, _ := crm(t, p)
	a := p.session(t, "ses_1", "localhost")
	dir := t.TempDir()
	bundle := filepath.Join(dir, "ca.pem")
	os.WriteFile(bundle, a.ca.PEM(), 0o600)
	proxyURL := a.loopback(t)
	env := append(os.Environ(), "HTTPS_PROXY="+proxyURL, "https_proxy="+proxyURL, "NO_PROXY=", "no_proxy=", "NODE_USE_ENV_PROXY=1", "NODE_EXTRA_CA_CERTS="+bundle,
		"SSL_CERT_FILE="+bundle, "SSL_CERT_DIR="+dir, "CURL_CA_BUNDLE="+bundle, "REQUESTS_CA_BUNDLE="+bundle)
	url := "https://" + host + "/v1/customers/7"
	python := "import urllib.request; print(urllib.request.urlopen('" + url + "').read().decode())"
	for _, c := range [][]string{
		{"curl", "-sS", "--fail", "--http1.1", url},
		{"curl", "-sS", "--fail", "--http2", url},
		{"python3", "-c", python},
	} {
		path, err := exec.LookPath(c[0])
		if err != nil {
			t.Logf("there is no %s here", c[0])
			continue
		}
		cmd := exec.CommandContext(t.Context(), path, c[1:]...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if want := "HTTP/2.0 GET " + host + " /v1/customers/7 [] Bearer " + strings.Repeat("*", len(key)); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s %s: %v, %s", c[0], c[3], err, out)
			continue
		}
		if out := p.Outcome(t); out.End != gateway.Complete || len(out.Echoed) != 1 {
			t.Errorf("%s: the outcome is %+v", c[0], out)
		}
	}
}

// A client that resets its stream, or closes its tunnel, cancels the upstream
// within a second.
func TestP12InsideATunnel(t *testing.T) {
	p := start(t)
	host, s := crm(t, p)
	gone := make(chan struct{}, 1)
	inner := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(w, r)
		gone <- struct{}{}
	})
	a := p.session(t, "ses_1", "localhost")
	for _, h2 := range []bool{false, true} {
		client := a.client(h2)
		ctx, cancel := context.WithCancel(t.Context())
		r, _ := http.NewRequestWithContext(ctx, "GET", "https://"+host+"/stream", nil)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		bufio.NewReader(resp.Body).ReadString('\n')
		at := time.Now()
		cancel()
		<-gone
		if took := time.Since(at); took > gatewaytest.Soon {
			t.Errorf("over %s the upstream was cancelled after %v", resp.Proto, took)
		}
		if out := p.Outcome(t); out.End != gateway.Cancelled {
			t.Errorf("over %s the outcome is %+v", resp.Proto, out)
		}
		client.CloseIdleConnections()
	}
}

// A WebSocket goes through a tunnel, and is cut with it.
func TestP13InsideATunnel(t *testing.T) {
	p := start(t)
	host, s := crm(t, p)
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("over %s: %v", r.Proto, err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x05"+r.Header.Get("Authorization")[:5])
		io.Copy(io.Discard, rw)
	})
	a := p.session(t, "ses_1", "localhost")
	c := a.inside(t, host, "localhost", "http/1.1")
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: "+host+"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("the upgrade is answered with %v, %v", resp, err)
	}
	frame := make([]byte, 7)
	if _, err := io.ReadFull(in, frame); err != nil || string(frame) != "\x81\x05Beare" {
		t.Errorf("the first frame is %q, %v", frame, err)
	}
	at := time.Now()
	if n := a.end("ses_1"); n != 2 {
		t.Errorf("%d exchanges and tunnels were cut", n)
	}
	if rest, _ := io.ReadAll(in); len(rest) > 0 || time.Since(at) > gatewaytest.Soon {
		t.Errorf("after the cut came %q, in %v", rest, time.Since(at))
	}
	if out := p.Outcome(t); out.End != gateway.Cut || !out.Upgraded {
		t.Errorf("the outcome is %+v", out)
	}
}

// Many requests at once over few streams of an HTTP/2 upstream are each sent
// once.
func TestP27ManyStreams(t *testing.T) {
	p := start(t)
	host, s := crm(t, p)
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 5}
	var seen sync.Map
	inner := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, twice := seen.LoadOrStore(r.URL.Path, true); twice {
			t.Errorf("%s came twice", r.URL.Path)
		}
		inner.ServeHTTP(w, r)
	})
	client := p.session(t, "ses_1", "localhost").client(true)
	defer client.CloseIdleConnections()
	var done sync.WaitGroup
	for i := range 15 {
		done.Go(func() {
			resp, err := client.Get(fmt.Sprintf("https://%s/%d", host, i))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 {
				t.Errorf("request %d is answered with %s %s", i, resp.Status, b)
			}
		})
	}
	done.Wait()
	for range 15 {
		if out := p.Outcome(t); out.End != gateway.Complete {
			t.Errorf("an outcome is %+v", out)
		}
	}
}

// A server that is told to stop while it starts does not open its door.
func TestShutBeforeItIsOpened(t *testing.T) {
	door := &forward.Door{Logger: slog.New(slog.DiscardHandler)}
	if err := door.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := door.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("serving after the shutdown: %v, want http.ErrServerClosed", err)
	}
	if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		c.Close()
		t.Error("the door is open")
	}
}
