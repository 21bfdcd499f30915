package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
	"sync"
	"time"

	"estover.dev/internal/jose"
)

// A prover is the key that a token is bound to (RFC 9449), made here and never
// leaving this process: for agents that get no tokens but those.
type prover struct {
	signer *jose.Signer

	mu    sync.Mutex
	nonce string // of the server's last answer
}

// newProver makes a key. first is the nonce of the answer that asked for it.
func newProver(first string) (*prover, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := jose.NewSigner(jose.DPoPProof, "", key)
	return &prover{signer: signer, nonce: first}, err
}

// sign adds a proof to a request, for the access token in it, if there is one.
// It gives the nonce in the proof.
func (p *prover) sign(req *http.Request, token string) (nonce string, err error) {
	at := *req.URL
	at.RawQuery, at.Fragment = "", ""
	claims := map[string]any{"jti": rand.Text(), "htm": req.Method, "htu": at.String(), "iat": time.Now().Unix()}
	p.mu.Lock()
	nonce = p.nonce
	p.mu.Unlock()
	if nonce != "" {
		claims["nonce"] = nonce
	}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	proof, err := jose.Sign(jose.DPoPProof, p.signer, claims)
	if err == nil {
		req.Header.Set("DPoP", proof)
	}
	return nonce, err
}

// told takes the nonce of an answer, and reports whether the request is to be
// sent again with it: it was sent with another one, whatever others have heard
// meanwhile.
func (p *prover) told(res *http.Response, sent string) bool {
	next := res.Header.Get("DPoP-Nonce")
	if next == "" || next == sent {
		return false
	}
	p.mu.Lock()
	p.nonce = next
	p.mu.Unlock()
	// At the token endpoint the body says so; there any refusal with another
	// nonce is worth a second try.
	return res.StatusCode == http.StatusBadRequest ||
		res.StatusCode == http.StatusUnauthorized && strings.Contains(strings.Join(res.Header.Values("WWW-Authenticate"), ","), "use_dpop_nonce")
}

// exchange sends the request that build makes, with a proof if the client's
// tokens are bound, and once more if the proof needs another nonce.
func (c *client) exchange(token string, build func() (*http.Request, error)) (*http.Response, error) {
	for again := false; ; again = true {
		req, err := build()
		if err != nil {
			return nil, err
		}
		scheme, nonce := "Bearer ", ""
		if c.prover != nil {
			scheme = "DPoP "
			if nonce, err = c.prover.sign(req, token); err != nil {
				return nil, err
			}
		}
		if token != "" {
			req.Header.Set("Authorization", scheme+token)
		}
		res, err := c.http.Do(req)
		if err != nil || c.prover == nil || !c.prover.told(res, nonce) || again {
			return res, err
		}
		_ = res.Body.Close()
	}
}
