package oauth

import (
	"context"
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
	if g.Agent != a.client.ID {
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
		Auth: authOf(g, d.now()), Confirm: confirm, Scopes: g.Scopes, Resources: g.Resources,
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
