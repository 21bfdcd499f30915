package token

import (
	"context"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/jose"
)

// The types of tokens of an exchange for another server (RFC 8693, section 3;
// draft-ietf-oauth-identity-assertion-authz-grant-03).
const (
	IDJAGType        = "urn:ietf:params:oauth:token-type:id-jag"
	IDTokenType      = "urn:ietf:params:oauth:token-type:id_token"
	RefreshTokenType = "urn:ietf:params:oauth:token-type:refresh_token"
)

// ChainLife is how long an assertion for another server is good.
const ChainLife = 5 * time.Minute

// A Chain is an authorization server of somebody else that takes our word for who
// a person is, and what a client of ours is known as there.
type Chain struct {
	Issuer string
	Client string   // its client_id there
	Scopes []string // the most that it may ask for there, sorted; nil for no limit
}

// narrow finds what is asked for there.
func (c *Chain) narrow(asked []string) ([]Allowed, []string, error) {
	scopes := asked
	if c.Scopes != nil {
		if scopes = within(asked, c.Scopes); len(scopes) == 0 {
			return nil, nil, ErrScope
		}
	}
	return []Allowed{{Audience: c.Issuer, Scopes: scopes}}, scopes, nil
}

// assertion are the claims of an identity assertion grant: the person lets the
// client act there (section 3.1). The resources are that server's.
func (t *Token) assertion(issuer string, to *Chain, resources []string) []byte {
	b := make([]byte, 0, 512)
	b = member(b, '{', "iss", issuer)
	b = member(b, ',', "sub", string(t.Subject))
	b = member(b, ',', "aud", to.Issuer)
	b = member(b, ',', "client_id", to.Client)
	b = member(b, ',', "jti", t.ID)
	b = number(b, "iat", t.Issued.Unix())
	b = number(b, "exp", t.Expires.Unix())
	if len(t.Scopes) > 0 {
		b = member(b, ',', "scope", scopeString(t.Scopes))
	}
	for i, r := range resources {
		if i == 0 {
			b = append(b, `,"resource":[`...)
		} else {
			b = append(b, ',')
		}
		b = quoted(b, r)
	}
	if len(resources) > 0 {
		b = append(b, ']')
	}
	b = t.Auth.append(b)
	if t.Confirm != (Confirm{}) {
		b = append(b, `,"cnf":`...)
		b = t.Confirm.append(b)
	}
	return append(b, '}')
}

// IDToken is the grant that an ID token of ours came of, and when it ends. The
// token was made for this client, and all that it rests on is alive: else
// [ErrInvalid].
func (t *Tokens) IDToken(ctx context.Context, tenant estover.TenantID, client *Client, raw string) (*Grant, time.Time, error) {
	now := t.guard.DB().Now()
	c, _, err := t.verify(ctx, tenant, jose.IDToken, raw, jose.Expected{Now: now, Issuer: t.Issuer.Of(tenant), Audiences: []string{client.Name()}})
	if err != nil {
		return nil, time.Time{}, invalid(err)
	}
	g, err := t.grants.Get(ctx, tenant, c.Text("grant_id"))
	if err != nil {
		return nil, time.Time{}, invalid(err)
	}
	if err := g.live(now); err != nil {
		return nil, time.Time{}, invalid(err)
	}
	if g.Client != client.ID || string(g.Subject) != c.Subject || !slices.Equal(c.Audience, []string{client.Name()}) {
		return nil, time.Time{}, ErrInvalid
	}
	return g, c.Expires, nil
}
