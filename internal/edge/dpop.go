package edge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/jose"
	tokens "estover.dev/internal/token"
)

// The errors of DPoP, by the codes of RFC 9449, section 12.2.
var (
	// ErrProof is returned for a request whose DPoP proof is not one for it.
	ErrProof = &estover.Error{Kind: estover.Unknown, Code: "invalid_dpop_proof", Detail: "The DPoP proof is not accepted."}
	// ErrNonce is returned for a proof without a nonce of ours that is still
	// good. The answer has one in the header DPoP-Nonce.
	ErrNonce = &estover.Error{Kind: estover.Unknown, Code: "use_dpop_nonce", Detail: "Sign the DPoP proof again, with the nonce that the header DPoP-Nonce of this answer has."}
)

// Proofs judges DPoP proofs (RFC 9449): whether whoever sends a request has a
// key, at this time and for this request alone.
//
// A nonce of ours says that a proof was not signed in advance. It is a MAC of
// the time in steps of five minutes under a key that all nodes of a tenant
// have, so nothing is stored and every node accepts every other's. The one of
// the step before is accepted too. It is no secret and the same for everybody:
// that a proof is presented once is made sure of by its jti.
type Proofs struct {
	// Origins are the addresses under which clients know us, as
	// "https://estover.example", the configured ones and never a request's own.
	Origins []string

	// MAC is HMAC-SHA-256 under a key of the tenant for this use alone.
	MAC func(tenant estover.TenantID, msg []byte) []byte

	// Now is the time by which proofs are judged.
	Now func() time.Time

	mu     sync.Mutex
	nonces map[estover.TenantID]steps
}

// A Proof is a key that was shown along with a request.
type Proof struct {
	Key string      // its thumbprint, the jkt of tokens that are bound to it (RFC 9449, section 6.1)
	Use tokens.Used // has yet to be consumed: a proof is good once
}

// The times of DPoP.
const (
	nonceStep  = 5 * time.Minute
	proofReach = time.Minute // of iat from now, on either side: that of jose.DPoPProof
)

// NonceHeader tells clients the nonce to use next (RFC 9449, section 8).
const NonceHeader = "DPoP-Nonce"

// proofHeader is the header DPoP as net/http spells it.
const proofHeader = "Dpop"

// HasProof reports whether a request carries a proof, good or bad.
func HasProof(r *http.Request) bool { return len(r.Header[proofHeader]) > 0 }

// Check judges the proof that a request carries (RFC 9449, section 4.3). With an
// access token, the proof must be for that token; at the token endpoint there is
// none. Whether the token is bound to the key of the proof is for the caller to
// compare, and so is to consume the proof.
func (p *Proofs) Check(r *http.Request, tenant estover.TenantID, accessToken string) (Proof, error) {
	headers := r.Header[proofHeader]
	if len(headers) != 1 {
		return Proof{}, ErrProof.With("There is not exactly one header DPoP.")
	}
	now := p.Now()
	c, err := jose.Verify(jose.DPoPProof, nil, headers[0], jose.Expected{Now: now})
	if err != nil {
		return Proof{}, ErrProof.With("The DPoP proof is not accepted: %s", sentence(err)).Because(err)
	}
	if c.Text("htm") != r.Method {
		return Proof{}, ErrProof.With("The DPoP proof is for another method (htm) than %s.", shown(r.Method))
	}
	path := OriginOf(r).path
	if path == "" { // no front has kept it
		path = r.URL.EscapedPath()
	}
	at, ok := p.here(c.Text("htu"), path)
	if !ok {
		return Proof{}, ErrProof.With("The DPoP proof is for another URL (htu) than this one, which is %s.", shown(p.address(path)))
	}
	if accessToken != "" {
		sum := sha256.Sum256([]byte(accessToken))
		if c.Text("ath") != base64.RawURLEncoding.EncodeToString(sum[:]) {
			return Proof{}, ErrProof.With("The DPoP proof is not for this access token (ath).")
		}
	}
	if !p.fresh(tenant, c.Text("nonce"), now) {
		return Proof{}, ErrNonce
	}
	return Proof{c.Key.Thumbprint, tokens.Used{
		By: "dpop:" + c.Key.Thumbprint + " " + at, Name: c.ID, Expires: c.IssuedAt.Add(proofReach),
		Again: ErrProof.With("This DPoP proof was presented before. Sign one with a new jti for each request."),
	}}, nil
}

// sentence is what an error says to whoever caused it.
func sentence(err error) string {
	var e *estover.Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return "it is not valid."
}

// shown bounds what is repeated of a request, and leaves only what may
// stand in a header.
func shown(s string) string {
	s = s[:min(len(s), 200)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, s)
}

// address is a path of ours as most clients know it.
func (p *Proofs) address(path string) string {
	if len(p.Origins) > 0 {
		if scheme, host, _, ok := place(p.Origins[0]); ok {
			return scheme + "://" + host.Authority(scheme) + path
		}
	}
	return path
}

// here reports whether the URL of a proof leads to the path of a request, its
// query and fragment aside, and gives it in one spelling. Scheme, host and port
// are compared with those that were configured, since those of a request are
// its own claim; the path is compared as it was sent.
func (p *Proofs) here(htu, path string) (string, bool) {
	if path == "" {
		path = "/"
	}
	scheme, host, its, ok := place(htu)
	if !ok || its != path {
		return "", false
	}
	for _, o := range p.Origins {
		if s, h, _, ok := place(o); ok && s == scheme && h == host {
			return scheme + "://" + host.String() + path, true
		}
	}
	return "", false
}

// place reads a URL as far as it is compared.
func place(s string) (scheme string, h Host, path string, ok bool) {
	u, err := url.Parse(s)
	if err != nil || u.Opaque != "" || u.User != nil || strings.ContainsFunc(s, func(r rune) bool { return r > '~' }) {
		return "", Host{}, "", false
	}
	scheme = strings.ToLower(u.Scheme)
	if h, err = ParseHost(u.Host, DefaultPort(scheme)); err != nil || DefaultPort(scheme) == 0 {
		return "", Host{}, "", false
	}
	if path = u.EscapedPath(); path == "" {
		path = "/"
	}
	return scheme, h, path, true
}

// steps are the nonces that a tenant accepts during a step.
type steps struct {
	step         int64
	now, earlier string
}

// Nonce is what clients of the tenant are to use next.
func (p *Proofs) Nonce(tenant estover.TenantID) string { return p.at(tenant, p.Now()).now }

func (p *Proofs) fresh(tenant estover.TenantID, nonce string, now time.Time) bool {
	s := p.at(tenant, now)
	return hmac.Equal([]byte(nonce), []byte(s.now)) || hmac.Equal([]byte(nonce), []byte(s.earlier))
}

func (p *Proofs) at(tenant estover.TenantID, now time.Time) steps {
	step := now.Unix() / int64(nonceStep/time.Second)
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.nonces[tenant]
	if !ok || s.step != step {
		s = steps{step, p.nonce(tenant, step), p.nonce(tenant, step-1)}
		if p.nonces == nil {
			p.nonces = map[estover.TenantID]steps{}
		}
		p.nonces[tenant] = s
	}
	return s
}

func (p *Proofs) nonce(tenant estover.TenantID, step int64) string {
	return base64.RawURLEncoding.EncodeToString(p.MAC(tenant, binary.BigEndian.AppendUint64(nil, uint64(step)))[:18])
}
