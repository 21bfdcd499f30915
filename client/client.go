// Package client is for agents that are written in Go, and for resources that
// agents call: it gets access tokens from Estover, puts them on requests, and
// checks those that come with one.
//
//	agent                                             resource
//	  New ─▶ Client ─┬─ Token, Exchange                 Verifier ─┬─ Request
//	                 ├─ Transport: an http.RoundTripper           └─ Verify
//	                 └─ OpenSession, EndSession
//
// Everything is found from the issuer alone, which is compared byte for byte
// with what the server says of itself (RFC 8414, section 3.3). Nothing is sent
// to an address that is neither https nor this machine's own, no redirect is
// followed with a credential, and an answer is read to a bounded length.
//
// A [Client] keeps the tokens that it gets. It asks for the next one in the
// background when four fifths of a token's life are over, and never twice at
// once for the same. A token of the server is good for a quarter of an hour at
// most, and ends before that when what it rests on ends.
//
// No value of this package prints, logs or marshals a secret: what is secret is
// kept where package fmt does not look. [Token.Reveal] gives the one secret that
// callers need.
//
// It needs nothing but the standard library, and imports nothing else of
// Estover.
package client

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Options are how an agent proves who it is.
type Options struct {
	// ID is the agent's id, its client_id. Only a [WorkloadToken] needs none.
	ID string

	// Credential is what the agent proves itself with.
	Credential Credential

	// DPoP is a key to which every token is bound (RFC 9449): ECDSA on P-256 or
	// Ed25519. Make one with [NewKey] when the program starts. Nil asks for
	// tokens that are bound to no key, or to the agent's [Certificate].
	DPoP crypto.Signer `json:"-"`

	// Transport is how requests are sent; nil is like http.DefaultTransport. It
	// is an *http.Transport where the credential is a [Certificate]: a copy of it
	// shows the certificate.
	Transport http.RoundTripper `json:"-"`
}

// Format writes whose options they are, whatever the verb: a key may be one that
// package fmt would print.
func (o Options) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "options of agent "+o.ID) }

// A Client is one agent at one issuer. It may be used by many goroutines at
// once.
type Client struct {
	issuer     string
	id         string
	credential Credential
	bound      *binding // nil without a DPoP key
	transport  http.RoundTripper
	outside    http.RoundTripper // the same without a certificate
	http       *http.Client
	now        func() time.Time
	found      shared[metadata]

	mu     sync.Mutex
	tokens map[string]*entry
}

// sendTime bounds one request to the server, its answer included.
const sendTime = 30 * time.Second

// New is a client of the agent at an issuer: "https://estover.example.com",
// exactly as the server's metadata has it, without a slash at the end. It sends
// nothing yet.
func New(issuer string, o Options) (*Client, error) {
	if _, err := base(issuer); err != nil {
		return nil, err
	}
	switch {
	case o.Credential.prove == nil:
		return nil, errors.New("client: an agent needs a credential")
	case o.Credential.err != nil:
		return nil, o.Credential.err
	case o.ID == "" && !o.Credential.workload:
		return nil, errors.New("client: an agent needs its id")
	}
	c := &Client{issuer: issuer, id: o.ID, credential: o.Credential, now: time.Now, tokens: map[string]*entry{}}
	if o.DPoP != nil {
		var err error
		if c.bound, err = newBinding(o.DPoP); err != nil {
			return nil, err
		}
	}
	c.transport = o.Transport
	if c.transport == nil {
		c.transport = http.DefaultTransport
	}
	c.outside = c.transport
	if cert := o.Credential.certificate; cert != nil {
		t, ok := c.transport.(*http.Transport)
		if !ok {
			return nil, fmt.Errorf("client: a certificate is shown by an *http.Transport, not by a %T", c.transport)
		}
		t = t.Clone()
		if t.TLSClientConfig == nil {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		t.TLSClientConfig.Certificates, t.TLSClientConfig.GetClientCertificate = []tls.Certificate{*cert}, nil
		c.transport = t
	}
	c.http = plain(c.transport)
	return c, nil
}

// plain sends requests as they are: a redirect is an answer, not an order.
func plain(t http.RoundTripper) *http.Client {
	return &http.Client{
		Transport: t, Timeout: sendTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// base reads an issuer (RFC 8414, section 2).
func base(issuer string) (*url.URL, error) {
	u, err := safe(issuer)
	if err != nil {
		return nil, err
	}
	if u.RawQuery != "" || u.ForceQuery || strings.Contains(issuer, "#") || strings.HasSuffix(issuer, "/") {
		return nil, fmt.Errorf("client: the issuer %q has a query, a fragment or a slash at its end", issuer)
	}
	return u, nil
}

// safe reads a URL to which a credential may be sent.
func safe(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, errors.New("client: an address of the server is no URL with a host alone, as https://estover.example.com")
	}
	if !protected(u) {
		return nil, fmt.Errorf("client: %q is neither https nor an address of this machine", s)
	}
	return u, nil
}

// protected reports whether nobody on the way reads what is sent to a URL.
func protected(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}

// origin is the scheme, host and port of a URL, in one spelling.
func origin(u *url.URL) string {
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[scheme]
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

// A metadata is what is needed of an authorization server's own description
// (RFC 8414, section 2).
type metadata struct {
	token, jwks string
	mutual      string // the token endpoint for clients with a certificate, or "" (RFC 8705, section 5)
}

// discover fetches the description of an issuer (RFC 8414, section 3).
func discover(ctx context.Context, h *http.Client, issuer string) (m metadata, err error) {
	u, err := base(issuer)
	if err != nil {
		return m, err
	}
	at := u.Scheme + "://" + u.Host + "/.well-known/oauth-authorization-server" + u.EscapedPath()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return m, err
	}
	b, err := receive(h, req)
	if err != nil {
		return m, fmt.Errorf("finding the endpoints of %s: %w", issuer, err)
	}
	o, err := parseObject(b)
	if err != nil {
		return m, fmt.Errorf("finding the endpoints of %s: %w", issuer, err)
	}
	// RFC 8414, section 3.3: otherwise somebody else answers for the issuer.
	if its := o.text("issuer"); its != issuer {
		return m, fmt.Errorf("the server says that it is the issuer %q, and was asked for as %q", its, issuer)
	}
	m = metadata{token: o.text("token_endpoint"), jwks: o.text("jwks_uri")}
	all := []string{m.token, m.jwks}
	if raw, ok := o["mtls_endpoint_aliases"]; ok {
		aliases, err := parseObject(raw)
		if err != nil {
			return m, fmt.Errorf("finding the endpoints of %s: %w", issuer, err)
		}
		if m.mutual = aliases.text("token_endpoint"); m.mutual != "" {
			all = append(all, m.mutual)
		}
	}
	for _, endpoint := range all {
		if _, err := safe(endpoint); err != nil {
			return m, fmt.Errorf("an endpoint of %s: %w", issuer, err)
		}
	}
	return m, nil
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 20

// receive sends a request and reads an answer that is a good one.
func receive(h *http.Client, req *http.Request) ([]byte, error) {
	req.Header.Set("Accept", "application/json")
	res, err := h.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, ErrorOf(res)
	}
	return readAll(res)
}

func readAll(res *http.Response) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err == nil && len(b) > maxAnswer {
		err = errors.New("the answer is too long")
	}
	return b, err
}

// tokenEndpoint is where the client asks for tokens, and the server that it talks
// to: the issuer's own, or where it is shown certificates (RFC 8705, section 5).
func (c *Client) tokenEndpoint(ctx context.Context) (endpoint *url.URL, server string, err error) {
	m, err := c.found.get(ctx, func(ctx context.Context) (metadata, error) { return discover(ctx, c.http, c.issuer) })
	if err != nil {
		return nil, "", err
	}
	at, server := m.token, c.issuer
	if c.credential.certificate != nil && m.mutual != "" {
		at, server = m.mutual, m.mutual
	}
	if endpoint, err = url.Parse(at); err != nil {
		return nil, "", err
	}
	u, err := url.Parse(server)
	if err != nil {
		return nil, "", err
	}
	return endpoint, u.Scheme + "://" + u.Host, nil
}

// A shared value is fetched once, however many ask for it. What failed is
// fetched again by whoever asks next.
type shared[T any] struct {
	mu     sync.Mutex
	value  T
	there  bool
	flight *flight[T]
}

// A flight is a value on its way.
type flight[T any] struct {
	done  chan struct{} // closed at the end, after which the rest is read
	value T
	err   error
}

// flightTime bounds how long a value is on its way, with all that it takes: what
// hangs must not keep everybody from asking again.
const flightTime = 2 * time.Minute

// fly fetches a value. Whoever waits may leave without ending it for the
// others.
func fly[T any](ctx context.Context, fetch func(context.Context) (T, error), landed func(*flight[T])) *flight[T] {
	f := &flight[T]{done: make(chan struct{})}
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flightTime)
		defer cancel()
		f.value, f.err = fetch(ctx)
		landed(f)
		close(f.done)
	}()
	return f
}

// wait gives what the flight brings.
func (f *flight[T]) wait(ctx context.Context) (v T, err error) {
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

func (s *shared[T]) get(ctx context.Context, fetch func(context.Context) (T, error)) (T, error) {
	s.mu.Lock()
	if s.there {
		defer s.mu.Unlock()
		return s.value, nil
	}
	if s.flight == nil {
		s.flight = fly(ctx, fetch, func(f *flight[T]) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.flight, s.value, s.there = nil, f.value, f.err == nil
		})
	}
	f := s.flight
	s.mu.Unlock()
	return f.wait(ctx)
}

// asJSON is JSON of what always has one.
func asJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("client: " + err.Error())
	}
	return b
}
