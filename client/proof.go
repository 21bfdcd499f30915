package client

import (
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// proofReach is how far from now a proof may have been made, on either side.
const proofReach = time.Minute

// badProof is why a proof is not accepted (RFC 9449, section 7.1).
func badProof(description string) *Error {
	return &Error{Status: http.StatusUnauthorized, Code: "invalid_dpop_proof", Description: description}
}

// proved checks that a request shows the key with this thumbprint, for this
// token (RFC 9449, section 4.3), and that it is the first with this proof.
func (v *Verifier) proved(r *http.Request, token, thumbprint string) error {
	headers := r.Header["Dpop"]
	if len(headers) != 1 {
		return badProof("There is not exactly one header DPoP.")
	}
	t, err := parseJWS(headers[0], true)
	if err != nil {
		return badProof("The proof is not a token in compact form.")
	}
	alg := t.head.text("alg")
	key, err := parseKey(t.head["jwk"])
	if err != nil || t.head.text("typ") != "dpop+jwt" || !slices.Contains(algorithms, alg) || !key.verifies(alg, t.message, t.signature) {
		return badProof("The proof is not one, or its signature is wrong.")
	}
	if key.thumbprint != thumbprint {
		return badProof("The proof is of another key than the one that the token is bound to.")
	}
	id, made := t.claims.text("jti"), t.claims
	at, err := url.Parse(made.text("htu"))
	own, wrong := url.Parse(v.URL)
	if v.URL == "" || err != nil || wrong != nil || origin(at) != origin(own) || path(at) != path(r.URL) {
		return badProof("The proof is for another URL.")
	}
	now := v.now()
	when, ok := made.instant("iat")
	switch {
	case made.text("htm") != r.Method:
		return badProof("The proof is for another method.")
	case made.text("ath") != hash(token):
		return badProof("The proof is not for this token.")
	case !ok || when.IsZero() || when.Sub(now).Abs() > proofReach:
		return badProof("The proof was not made about now.")
	case id == "" || len(id) > 1000 || !v.seen.first(thumbprint+" "+id, when.Add(proofReach), now):
		return badProof("The proof was presented before, or too many were in the last minutes.")
	}
	return nil
}

// seen are proofs that were presented, until nobody would accept them any more.
type seen struct {
	mu    sync.Mutex
	until map[string]time.Time
	swept time.Time
}

// maxSeen bounds how many are remembered. Above it none is accepted: to forget
// one would be to accept it twice.
const maxSeen = 1 << 20

// first reports whether a proof was not presented before, and remembers it.
func (s *seen) first(id string, until, now time.Time) bool {
	id = hash(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[string]time.Time{}
	}
	if now.Sub(s.swept) > proofReach/2 {
		for k, t := range s.until {
			if now.After(t) {
				delete(s.until, k)
			}
		}
		s.swept = now
	}
	if _, before := s.until[id]; before || len(s.until) >= maxSeen {
		return false
	}
	s.until[id] = until
	return true
}
