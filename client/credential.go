package client

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// A Credential is what an agent proves itself with at the token endpoint. Make
// one with [Secret], [PrivateKey], [Certificate], [WorkloadToken] or
// [WorkloadTokenFile].
type Credential struct {
	// prove adds the proof to a request of this form. It is asked anew for each
	// request: a proof may be good once.
	prove       func(ctx context.Context, c *Client, form url.Values, head http.Header) error
	certificate *tls.Certificate
	workload    bool
	err         error // why it cannot be used
}

// Secret is the agent's client secret ("est_cs_…"), sent in the header of each
// request for a token (RFC 6749, section 2.3.1).
func Secret(value string) Credential {
	c := Credential{prove: func(_ context.Context, c *Client, _ url.Values, head http.Header) error {
		r := http.Request{Header: head}
		r.SetBasicAuth(url.QueryEscape(c.id), url.QueryEscape(value))
		return nil
	}}
	if value == "" {
		c.err = errors.New("client: the secret is empty")
	}
	return c
}

// PrivateKey signs an assertion of a minute for each request for a token
// (RFC 7523, section 2.2), whose audience is the issuer. The key is ECDSA on
// P-256 or Ed25519, and may stand in a module that does not give it away. The id
// is the kid of its public half in the agent's key set; "" leaves it out.
func PrivateKey(key crypto.Signer, id string) Credential {
	s, err := newSigner(key)
	return Credential{err: err, prove: func(_ context.Context, c *Client, form url.Values, _ http.Header) error {
		now := c.now().Unix()
		head := map[string]any{"typ": "JWT"}
		if id != "" {
			head["kid"] = id
		}
		assertion, err := s.jwt(head, map[string]any{
			"iss": c.id, "sub": c.id, "aud": c.issuer, "iat": now, "exp": now + int64(time.Minute/time.Second), "jti": rand.Text(),
		})
		form.Set("client_id", c.id)
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", assertion)
		return err
	}}
}

// Certificate shows a client certificate on each connection (RFC 8705, section
// 2), at the server's own address for such clients if it has one. Tokens are
// bound to the certificate unless there is a DPoP key. An agent whose
// certificate is replaced makes another client with the new one.
func Certificate(cert tls.Certificate) Credential {
	c := Credential{certificate: &cert, prove: func(_ context.Context, c *Client, form url.Values, _ http.Header) error {
		form.Set("client_id", c.id)
		return nil
	}}
	if len(cert.Certificate) == 0 || cert.PrivateKey == nil {
		c.err = errors.New("client: the certificate is empty or has no key")
	}
	return c
}

// WorkloadToken is for an agent that its platform knows already: the function
// gives the platform's own token, a JWT of an issuer that a trust of the server
// names, each time that one is needed (RFC 7523, section 2.1). It is good for
// tokens of the agent's own, and not for [Client.Exchange].
func WorkloadToken(fetch func(context.Context) (string, error)) Credential {
	return Credential{workload: true, prove: func(ctx context.Context, _ *Client, form url.Values, _ http.Header) error {
		if form.Get("grant_type") != ownGrant {
			return errors.New("client: a workload's token is good for tokens of its own alone; exchanging those of others takes a secret, a key or a certificate")
		}
		value, err := fetch(ctx)
		form.Set("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
		form.Set("assertion", value)
		return err
	}}
}

// WorkloadTokenFile is a [WorkloadToken] in a file that the platform renews, as
// the kubelet does. The file is read each time.
func WorkloadTokenFile(name string) Credential {
	return WorkloadToken(func(context.Context) (string, error) {
		b, err := os.ReadFile(name)
		return strings.TrimSpace(string(b)), err
	})
}
