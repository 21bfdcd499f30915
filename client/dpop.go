package client

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// A binding is the key to which tokens are bound (RFC 9449), and what each server
// has told of the nonces that it wants.
type binding struct {
	key *signer

	mu     sync.Mutex
	nonces map[string]string // by origin
}

func newBinding(key crypto.Signer) (*binding, error) {
	s, err := newSigner(key)
	if err != nil {
		return nil, err
	}
	return &binding{key: s, nonces: map[string]string{}}, nil
}

// proof is a proof for one request (RFC 9449, section 4.2), and for the access
// token that it carries, if it does; and the nonce in it, or "".
func (b *binding) proof(method string, at *url.URL, token string, now time.Time) (proof, nonce string, err error) {
	claims := map[string]any{"jti": rand.Text(), "htm": method, "htu": target(at), "iat": now.Unix()}
	b.mu.Lock()
	nonce = b.nonces[origin(at)]
	b.mu.Unlock()
	if nonce != "" {
		claims["nonce"] = nonce
	}
	if token != "" {
		claims["ath"] = hash(token)
	}
	proof, err = b.key.jwt(map[string]any{"typ": "dpop+jwt", "jwk": b.key.jwk}, claims)
	return proof, nonce, err
}

// target is a URL without query and fragment.
func target(u *url.URL) string { return u.Scheme + "://" + u.Host + path(u) }

// path is that of a URL, as it is sent.
func path(u *url.URL) string {
	if p := u.EscapedPath(); p != "" {
		return p
	}
	return "/"
}

// hash is the SHA-256 of a token or a certificate in base64url.
func hash[T string | []byte](v T) string {
	sum := sha256.Sum256([]byte(v))
	return encoding.EncodeToString(sum[:])
}

// maxNonces bounds how many servers' nonces are kept.
const maxNonces = 100

// told keeps the nonce of an answer (RFC 9449, section 8.2), and reports whether
// it is another than the one that the request was sent with. Nothing tells a nil
// binding anything.
func (b *binding) told(at *url.URL, res *http.Response, sent string) bool {
	next := res.Header.Get("DPoP-Nonce")
	if b == nil || next == "" {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.nonces[origin(at)]; !known && len(b.nonces) >= maxNonces {
		clear(b.nonces)
	}
	b.nonces[origin(at)] = next
	return next != sent
}
