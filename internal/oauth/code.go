package oauth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"

	"estover.dev/internal/token"
)

// A codeRequest is the parameters that only authorization_code has (RFC 6749,
// section 4.1.3; RFC 7636, section 4.5).
type codeRequest struct{ code, redirect, verifier string }

func parseCode(f form) (any, error) {
	r := codeRequest{f.get("code"), f.get("redirect_uri"), f.get("code_verifier")}
	switch {
	case r.code == "":
		return nil, errRequest.With("The parameter code is missing.")
	case r.verifier == "":
		return nil, errRequest.With("The parameter code_verifier is missing.")
	case !verifier(r.verifier):
		return nil, errRequest.With("The code_verifier has 43 to 128 letters, digits and -._~.")
	}
	return r, nil
}

// verifier reports whether s has the form of a code verifier (RFC 7636, section
// 4.1).
func verifier(s string) bool {
	if len(s) < 43 || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~':
		default:
			return false
		}
	}
	return true
}

// coded proves that a person let the client have what the code stands for. Who
// presents another client's code, or a code without what belongs to it, learns
// nothing and ends nothing.
func coded(ctx context.Context, d *Door, a authenticated, parsed any) (token.Proof, error) {
	r := parsed.(codeRequest)
	c, err := d.Tokens.Code(ctx, a.caller.Tenant, r.code)
	if err != nil {
		return token.Proof{}, err
	}
	sum := sha256.Sum256([]byte(r.verifier))
	challenge := base64.RawURLEncoding.EncodeToString(sum[:])
	switch {
	case c.Client != a.client.ID:
		return token.Proof{}, token.ErrCode
	case r.redirect != "" && r.redirect != c.Redirect:
		return token.Proof{}, token.ErrCode.With("The redirect_uri is not the one that the code was sent to.")
	case subtle.ConstantTimeCompare([]byte(challenge), []byte(c.Challenge)) != 1:
		return token.Proof{}, token.ErrCode.With("The code_verifier does not fit the code_challenge.")
	case c.Key != "" && c.Key != a.confirm.Key: // RFC 9449, section 10
		return token.Proof{}, token.ErrCode.With("The code is bound to another key.")
	}
	proof := consentedBy(c.Grant)
	proof.Consume, proof.Nonce = c.Consume, c.Nonce
	if a.client.May(token.Refresh) {
		proof.Renewal = token.FirstRenewal(bound(a))
	}
	if c.Spent {
		return proof, token.ErrPresentedTwice
	}
	return proof, nil
}

// bound is the key that refresh tokens of the client stay on: that of a client
// which has nothing else to prove itself by (RFC 9449, section 5).
func bound(a authenticated) string {
	if a.method == token.Public {
		return a.confirm.Key
	}
	return ""
}

// consentedBy is what a grant proves that a person gave.
func consentedBy(g *token.Grant) token.Proof {
	return token.Proof{
		GrantType: token.Consented, Subject: g.Subject, Actors: g.Actors, Grant: g, Session: g.Session, Scopes: g.Scopes, Resources: g.Resources,
		Reach: g.Reach, Details: g.Details.Limit(), Expires: g.Expires, Identity: g.Identity,
	}
}

// parseRefresh reads the parameter that only refresh_token has (RFC 6749,
// section 6).
func parseRefresh(f form) (any, error) {
	value := f.get("refresh_token")
	if value == "" {
		return nil, errRequest.With("The parameter refresh_token is missing.")
	}
	return value, nil
}

// refreshed proves that the client holds a grant that goes on.
func refreshed(ctx context.Context, d *Door, a authenticated, parsed any) (token.Proof, error) {
	return d.held(ctx, a, parsed.(string), true)
}

// held is what a refresh token proves, whether or not it is to be spent for that.
func (d *Door) held(ctx context.Context, a authenticated, value string, spends bool) (token.Proof, error) {
	r, err := d.Tokens.RefreshToken(ctx, a.caller.Tenant, value, spends)
	if err != nil {
		return token.Proof{}, err
	}
	switch {
	case r.Grant.Client != a.client.ID:
		return token.Proof{}, token.ErrRefresh
	case r.Key != "" && r.Key != a.confirm.Key:
		return token.Proof{}, token.ErrRefresh.With("The refresh token is bound to another key.")
	}
	proof := consentedBy(r.Grant)
	proof.GrantType = token.Refresh
	proof.Renewal = r.Renew()
	if r.Again(a.confirm.Key) {
		return proof, token.ErrPresentedTwice
	}
	return proof, nil
}
