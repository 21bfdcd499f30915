package edge

import (
	"context"
	"net/http"
	"strings"

	"estover.dev"
	tokens "estover.dev/internal/token"
)

// The errors of recognising a caller.
var (
	ErrNoCaller = &estover.Error{Kind: estover.Unknown, Code: "authentication_required", Detail: "Say who you are: send an access token in the header Authorization, as Bearer."}
	ErrScheme   = &estover.Error{Kind: estover.Unknown, Code: "authentication_required", Detail: "The header Authorization is not one Bearer token."}
	ErrAudience = &estover.Error{Kind: estover.Unknown, Code: "wrong_audience", Detail: "The access token is not for this server. Ask for one whose resource it is."}
	ErrUnbound  = &estover.Error{Kind: estover.Unknown, Code: "proof_required", Detail: "The access token is bound to a key, and the request does not show it."}
)

// Callers recognises who sends a request by the bearer token that it carries:
// an access token of ours, or a person's token. It is the one place where an
// [estover.Caller] is made of a request.
type Callers struct {
	Tokens *tokens.Tokens

	// People recognises a person's token ("est_pt_…"). Nil knows no people.
	People func(ctx context.Context, tenant estover.TenantID, value string) (estover.Caller, error)
}

// personPrefix begins the tokens of people.
const personPrefix = "est_pt_"

// Authenticate says who sends a request to our own API, whose audience is the
// issuer.
func (c *Callers) Authenticate(r *http.Request) (estover.Caller, error) { return c.For(r, "") }

// For says who sends a request to the resource with this identifier. "" is our
// own API; people have tokens for that alone.
func (c *Callers) For(r *http.Request, audience string) (estover.Caller, error) {
	raw, err := Bearer(r)
	if err != nil {
		return estover.Caller{}, err
	}
	o := OriginOf(r)
	var caller estover.Caller
	if strings.HasPrefix(raw, personPrefix) {
		if c.People == nil || audience != "" {
			return estover.Caller{}, tokens.ErrInvalid
		}
		caller, err = c.People(r.Context(), estover.DefaultTenant, raw)
	} else {
		caller, err = c.token(r.Context(), raw, audience, o)
	}
	if err != nil {
		return estover.Caller{}, err
	}
	caller.Address, caller.Request = o.Address, o.Request
	return caller, nil
}

func (c *Callers) token(ctx context.Context, raw, audience string, o Origin) (estover.Caller, error) {
	t, err := c.Tokens.Verify(ctx, raw)
	if err != nil {
		return estover.Caller{}, err
	}
	if audience == "" {
		audience = c.Tokens.Issuer.Of(t.Tenant)
	}
	if !t.For(audience) {
		return estover.Caller{}, ErrAudience
	}
	caller := t.Caller()
	switch {
	case t.Confirm == (tokens.Confirm{}):
	case t.Confirm.Certificate != "" && t.Confirm.Key == "" && t.Confirm.Certificate == o.Thumbprint():
		caller.Strength = estover.ByBound
	default:
		return estover.Caller{}, ErrUnbound
	}
	return caller, nil
}

// Bearer is the token that a request carries in its one header Authorization
// (RFC 6750, section 2.1). Nothing else is looked at: no query, no form, no
// cookie.
func Bearer(r *http.Request) (string, error) {
	switch values := r.Header["Authorization"]; len(values) {
	case 0:
		return "", ErrNoCaller
	case 1:
		scheme, raw, _ := strings.Cut(values[0], " ")
		raw = strings.TrimLeft(raw, " ")
		if !strings.EqualFold(scheme, "Bearer") || raw == "" || strings.ContainsAny(raw, " \t,") {
			return "", ErrScheme
		}
		return raw, nil
	}
	return "", ErrScheme
}
