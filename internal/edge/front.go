package edge

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/netip"
	"strings"

	"estover.dev"
)

// An Origin is where a request came from, as far as that is known and not just
// said.
type Origin struct {
	Address     netip.Addr          // of the client; behind trusted proxies, what the first of them saw
	Certificate *x509.Certificate   // whose key the client has shown; nil for none
	Chain       []*x509.Certificate // what the client sent along with it, so that an authority can be reached
	Request     string              // the id of the request: ours, never the client's

	path   string      // of the request as it was sent, whatever a handler makes of it
	answer http.Header // the head of the answer; nil without a [Front]
}

// Thumbprint is the x5t#S256 of the client's certificate (RFC 8705, section
// 3.1), or "".
func (o Origin) Thumbprint() string {
	if o.Certificate == nil {
		return ""
	}
	return Thumbprint(o.Certificate.Raw)
}

// Thumbprint is the x5t#S256 of a certificate in DER.
func Thumbprint(der []byte) string {
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

type originKey struct{}

// OriginOf is where a request came from. Without a [Front] before the handler
// it knows the connection alone.
func OriginOf(r *http.Request) Origin {
	if o, ok := r.Context().Value(originKey{}).(*Origin); ok {
		return *o
	}
	return connected(r)
}

// connected is what the connection itself says.
func connected(r *http.Request) Origin {
	o := Origin{Request: estover.NewID("req")}
	if at, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		o.Address = at.Addr().Unmap().WithZone("")
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		o.Certificate, o.Chain = r.TLS.PeerCertificates[0], r.TLS.PeerCertificates[1:]
	}
	return o
}

// A Front stands before every handler of a listener. It finds out where a
// request came from ([OriginOf]), gives it an id, which the answer carries as
// X-Request-Id, and takes out of its head what only a proxy may say: from
// whoever is not trusted it counts for nothing, and behind the front nobody
// reads it.
//
// A header name with an underscore is dropped: some servers cannot tell it
// from the same name with a hyphen.
type Front struct {
	// Trusted are the networks of the proxies that are believed.
	Trusted []netip.Prefix

	// Certificates says that they are believed about certificates, too. That is
	// more than to believe them about addresses: certificates are public, and a
	// proxy that passes on what a client itself sent lets anybody be anybody.
	Certificates bool
}

// Handler puts the front before a handler.
func (f Front) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o := connected(r)
		if f.trusts(o.Address) {
			o.Address = f.client(o.Address, r.Header)
			o.Certificate, o.Chain = nil, nil // the proxy's own
			if shown := r.Header["Client-Cert"]; f.Certificates && len(shown) == 1 {
				o.Certificate, o.Chain = forwarded(shown[0]), chain(r.Header["Client-Cert-Chain"])
			}
		}
		for name := range r.Header {
			if proxyMay(name) {
				delete(r.Header, name)
			}
		}
		o.path, o.answer = r.URL.EscapedPath(), w.Header()
		o.answer.Set("X-Request-Id", o.Request)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), originKey{}, &o)))
	})
}

func (f Front) trusts(a netip.Addr) bool {
	for _, p := range f.Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// client is the address that the first trusted proxy saw. Each proxy appends
// whom it saw, so the list is read from its end, and whatever stands before
// the first stranger is the stranger's own claim.
func (f Front) client(peer netip.Addr, h http.Header) netip.Addr {
	seen := peer
	list := strings.Split(strings.Join(h["X-Forwarded-For"], ","), ",")
	for i := len(list) - 1; i >= 0; i-- {
		a, err := netip.ParseAddr(strings.TrimSpace(list[i]))
		if err != nil {
			return seen
		}
		if seen = a.Unmap().WithZone(""); !f.trusts(seen) {
			return seen
		}
	}
	return seen
}

// maxChain bounds the certificates beside the client's own.
const maxChain = 10

// chain reads what a client sent a proxy along with its certificate (RFC 9440,
// section 2.3). One that cannot be read is left out: then no authority is
// reached by it.
func chain(headers []string) (list []*x509.Certificate) {
	for _, h := range headers {
		for one := range strings.SplitSeq(h, ",") {
			if c := forwarded(strings.TrimSpace(one)); c != nil && len(list) < maxChain {
				list = append(list, c)
			}
		}
	}
	return list
}

// forwarded reads the certificate that a proxy was shown (RFC 9440).
func forwarded(header string) *x509.Certificate {
	if len(header) < 2 || header[0] != ':' || header[len(header)-1] != ':' {
		return nil
	}
	der, err := base64.StdEncoding.DecodeString(header[1 : len(header)-1])
	if err != nil {
		return nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return c
}

// proxyMay reports whether a header, in its canonical spelling, is one that
// counts only from a proxy.
func proxyMay(name string) bool {
	switch name {
	case "Forwarded", "X-Real-Ip", "Client-Cert", "Client-Cert-Chain":
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Ssl-") || strings.HasPrefix(name, "Ssl-Client-") ||
		strings.IndexByte(name, '_') >= 0
}

// AskCertificate has a listener ask clients for a certificate, which they may
// decline. TLS makes sure that they have its key; who the key is, a directory
// of ours knows: a session, a client's registered certificate. No authority
// vouches for it.
func AskCertificate(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.ClientAuth = tls.RequestClientCert
	return c
}
