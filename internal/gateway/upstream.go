package gateway

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
)

// The bounds of connections to upstreams (gateway.md, P17).
const (
	idlePerPool    = 64
	idleConn       = time.Minute
	poolLife       = 5 * time.Minute // without use
	firstByte      = 2 * time.Minute
	maxAnswerHead  = 256 << 10
	expectContinue = time.Second
	tlsHandshake   = 10 * time.Second
)

// A poolKey says who may share a connection: one session, to one host, with
// one credential (gateway.md, C4), under one revision of the host's rules.
type poolKey struct {
	tenant               estover.TenantID
	session              string
	scheme               string
	host                 edge.Host
	credential, revision string
}

// A pool is the connections of one key.
type pool struct {
	transport *http.Transport
	dial      func(ctx context.Context, address string, open edge.Opening) (net.Conn, error)
	lines     lines
	alone     atomic.Bool  // the upstream speaks HTTP/1.1: whole requests go by lines
	used      atomic.Int64 // when it was last used, in Unix seconds
	old       atomic.Bool  // the upstream speaks HTTP/1.0: no connection is used twice
	spki      atomic.Pointer[hashedKey]
}

// close closes the connections that nobody uses. Exchanges go on.
func (p *pool) close() {
	p.lines.close()
	p.transport.CloseIdleConnections()
}

// A hashedKey is the hash of a certificate's public key.
type hashedKey struct {
	cert *x509.Certificate
	sum  [32]byte
}

// pools finds pools.
type pools struct {
	dialer *edge.Dialer

	mu    sync.Mutex
	pools map[poolKey]*pool
	swept int64
}

// of gives the pool of an exchange.
func (ps *pools) of(ex *Exchange, plan *Plan) *pool {
	up := plan.Upstream
	key := poolKey{ex.Caller.Tenant, ex.Caller.Session, up.Scheme, up.Host, plan.Credential, up.Revision}
	now := time.Now().Unix()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.pools[key]
	if p == nil {
		if ps.pools == nil {
			ps.pools = map[poolKey]*pool{}
		}
		p = &pool{transport: ps.transport(up), dial: ps.dialer.Dial}
		p.alone.Store(up.Scheme == "http")
		ps.pools[key] = p
	}
	p.used.Store(now)
	if now-ps.swept > int64(poolLife/time.Second)/5 {
		ps.swept = now
		ps.drop(func(_ poolKey, p *pool) bool { return now-p.used.Load() > int64(poolLife/time.Second) })
	}
	return p
}

// drop closes the pools that which names. Their exchanges go on.
func (ps *pools) drop(which func(poolKey, *pool) bool) {
	for key, p := range ps.pools {
		if which(key, p) {
			delete(ps.pools, key)
			p.close()
		}
	}
}

// transport makes the connections of a pool.
func (ps *pools) transport(up *Upstream) *http.Transport {
	t := &http.Transport{
		// This is asked before each attempt to send a request: there is no proxy
		// between us and upstreams, and no second attempt (gateway.md, P27).
		Proxy: func(r *http.Request) (*url.URL, error) { return nil, flightOf(r).attempt() },
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return ps.dialer.Dial(ctx, cmp.Or(up.Address, address), up.Opening)
		},
		TLSClientConfig:        up.config(),
		TLSHandshakeTimeout:    tlsHandshake,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    idlePerPool,
		IdleConnTimeout:        idleConn,
		ResponseHeaderTimeout:  up.FirstByte,
		ExpectContinueTimeout:  expectContinue,
		MaxResponseHeaderBytes: maxAnswerHead,
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 30 * time.Second},
	}
	if t.ResponseHeaderTimeout == 0 {
		t.ResponseHeaderTimeout = firstByte
	}
	t.Protocols.SetHTTP1(true)
	t.Protocols.SetHTTP2(true)
	if up.Certificate != nil {
		t.DialTLSContext = func(ctx context.Context, _, address string) (net.Conn, error) {
			conn, err := ps.dialer.Dial(ctx, cmp.Or(up.Address, address), up.Opening)
			if err != nil {
				return nil, err
			}
			return up.secure(ctx, conn)
		}
	}
	return t
}

// secure opens TLS, with the client certificate of the slot "mtls" if there is one.
// An upstream that does not ask for it gets nothing at all: what follows would be
// sent by nobody.
func (up *Upstream) secure(ctx context.Context, conn net.Conn) (*tls.Conn, error) {
	c, asked := up.config(), up.Certificate == nil
	c.NextProtos = []string{"h2", "http/1.1"}
	if up.Certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			return up.Certificate, nil
		}
	}
	secured := tls.Client(conn, c)
	ctx, cancel := context.WithTimeout(ctx, tlsHandshake)
	defer cancel()
	err := secured.HandshakeContext(ctx)
	if err == nil && !asked {
		err = ErrSlot.With("The upstream does not ask for the client certificate of the slot mtls, so the request would come from nobody.")
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return secured, nil
}

// config is how the upstream's certificate is checked.
func (up *Upstream) config() *tls.Config {
	c := &tls.Config{RootCAs: up.Roots, MinVersion: tls.VersionTLS12, ServerName: up.Host.Bare()}
	if len(up.Pins) > 0 {
		c.InsecureSkipVerify = up.Roots == nil
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if !slices.Contains(up.Pins, sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)) {
				return errPin
			}
			return nil
		}
	}
	return c
}

var errPin = errors.New("the public key of the certificate is none of the pinned ones")

// key hashes the public key of the upstream's certificate.
func (p *pool) key(s *tls.ConnectionState) (sum [32]byte) {
	if s == nil || len(s.PeerCertificates) == 0 {
		return sum
	}
	h := p.spki.Load()
	if h == nil || h.cert != s.PeerCertificates[0] {
		h = &hashedKey{s.PeerCertificates[0], sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)}
		p.spki.Store(h)
	}
	return h.sum
}

// upstreamError says what went wrong on the way to an upstream, in words that
// an agent may read. What lies behind it may quote the upstream, and with it what
// was injected.
func (f *flight) upstreamError(err error) error {
	var ours *estover.Error
	if errors.As(err, &ours) {
		return ours
	}
	behind := errors.New(f.plan.Needles.MaskString(err.Error(), f.echo))
	var verify *tls.CertificateVerificationError
	if errors.As(err, &verify) {
		why := f.plan.Needles.MaskString(verify.Err.Error(), f.echo) // it quotes the certificate
		return ErrCertificate.With("The certificate of the upstream is not to be trusted: %s.", why).Because(behind)
	}
	if errors.Is(err, errPin) {
		return ErrCertificate.With("The certificate of the upstream is not to be trusted: %v.", errPin)
	}
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return ErrSlow.Because(behind)
	}
	return ErrUpstream.Because(behind)
}
