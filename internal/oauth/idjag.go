package oauth

import (
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/directory"
	"estover.dev/internal/federation"
	"estover.dev/internal/token"
)

// grantProfile says that identity assertion grants are taken
// (draft-ietf-oauth-identity-assertion-authz-grant-03).
const grantProfile = "urn:ietf:params:oauth:grant-profile:id-jag"

// granted says what an identity assertion grant is good for: what the person
// whom it is about lets the client do, in a session that begins with it. It is
// always good once. Who presents another client's, or one without its key,
// learns nothing and uses nothing up.
func (d *Door) granted(ctx context.Context, a authenticated, raw string) (token.Proof, error) {
	if d.Trusts == nil {
		return token.Proof{}, federation.ErrUntrusted
	}
	g, err := d.Trusts.Granted(ctx, a.caller.Tenant, raw)
	if err != nil {
		return token.Proof{}, err
	}
	if g.Agent != a.client.Name() {
		return token.Proof{}, errGrant.With("The assertion is for another client than the one that presents it.")
	}
	confirm := token.Confirm{Key: g.Key, Certificate: g.Certificate}
	if !a.shows(confirm) {
		return token.Proof{}, errGrant.With("The assertion is bound to a key that the request does not show.")
	}
	if g.Resources, err = resources(g.Resources); err != nil {
		return token.Proof{}, errGrant.With("The assertion names a resource that is no URI, or too many of them.")
	}
	return token.Proof{
		GrantType: token.Assertion, Subject: estover.User(g.Person), Actors: []estover.Subject{a.client.Subject}, Begins: true,
		Auth: authOf(g, d.now()), Confirm: confirm, Scopes: g.Scopes, Resources: g.Resources, Details: g.Details.Limit(),
		Foreign: token.Foreign{Trust: g.Trust.Name, Issuer: g.Trust.Issuer, Subject: g.Subject, ID: g.ID},
		Use:     []token.Used{{By: g.Trust.Issuer, Name: g.ID, Expires: g.Expires, Again: token.ErrSpent}},
	}, nil
}

// authOf is how the person proved who they are, as far as their provider is
// taken at its word for it: a class of ours only if it is as good as a passkey.
func authOf(g *federation.Granted, now time.Time) token.Auth {
	if g.SignedIn.IsZero() || g.SignedIn.After(now) {
		return token.Auth{}
	}
	if !g.Strong {
		return token.AuthOf(g.SignedIn, nil)
	}
	return token.AuthOf(g.SignedIn, []string{directory.ByStrong})
}

var errIDToken = errGrant.With("The ID token is not valid, has expired, was made for another client or came of what has ended.")

// chained says what an ID token or a refresh token is good for at the server of
// somebody else: an assertion that the person lets the client act there. The
// token stays what it is, and a refresh token is not spent.
func (d *Door) chained(ctx context.Context, a authenticated, x exchange) (proof token.Proof, err error) {
	if a.method == token.Public {
		return proof, errMayNot.With("A client that does not authenticate gets no assertions for other servers.")
	}
	var expires time.Time
	switch {
	case x.subjectType == token.IDTokenType:
		var g *token.Grant
		if g, expires, err = d.Tokens.IDToken(ctx, a.caller.Tenant, a.client, x.subject); err == nil {
			proof = consentedBy(g)
		} else if errors.Is(err, token.ErrInvalid) {
			err = errIDToken.Because(err)
		}
	case x.subjectType == token.RefreshTokenType && a.client.May(token.Refresh):
		proof, err = d.held(ctx, a, x.subject, false)
		proof.Renewal = nil
	default:
		err = errRequest.With("An assertion for another server is made for an ID token or, where the client has one, a refresh token.")
	}
	proof.GrantType, proof.Type = token.Exchange, token.IDJAGType
	if err != nil {
		return proof, err
	}
	i := slices.IndexFunc(a.client.Chains, func(c token.Chain) bool { return c.Issuer == x.server })
	switch {
	case i < 0:
		return proof, errTarget.With("The client does not act for anybody at the server that audience names.")
	case !slices.Contains(proof.Identity, token.OpenID):
		return proof, errGrant.With("The person has not agreed to say who they are (the scope openid).")
	}
	proof.Chain = &a.client.Chains[i]
	proof.Scopes, proof.Resources, proof.Identity = nil, nil, nil // those of that server are its own
	if !expires.IsZero() {
		proof.Expires = expires
	}
	return proof, nil
}
