package oauth

import (
	"context"
	"maps"
	"slices"

	"estover.dev/internal/detail"
	"estover.dev/internal/token"
)

// A grantType is what sets one grant type apart: how its parameters are read,
// and what they prove. Neither writes anything or decides anything. What all
// have in common is the pipeline of the token endpoint.
type grantType struct {
	// parse reads the parameters that are the grant type's own.
	parse func(f form) (any, error)

	// prove says on whose authority the client asks, given what parse read.
	prove func(ctx context.Context, d *Door, a authenticated, parsed any) (token.Proof, error)

	// identifies says that what the grant type proves says who the client is, too,
	// where the request does not authenticate one.
	identifies bool

	// public says that a client may use it which need not authenticate, since
	// what it proves is bound to more than the client's name.
	public bool

	// audience says that the parameter of this name names targets, as resource
	// does (RFC 8693, section 2.1), unless it names the server of somebody else.
	audience bool
}

// grantTypes is the table of grant types.
var grantTypes = map[string]grantType{
	// RFC 6749, section 4.4. There is no refresh token, and the subject is the
	// client itself.
	token.Own: {
		parse: func(form) (any, error) { return nil, nil },
		prove: func(_ context.Context, _ *Door, a authenticated, _ any) (token.Proof, error) {
			return token.Proof{GrantType: token.Own, Subject: a.client.Subject}, nil
		},
	},

	// RFC 6749, section 4.1, and RFC 7636. The subject is the person who let the
	// client act for them.
	token.Consented: {parse: parseCode, prove: coded, public: true},

	// RFC 6749, section 6. The grant is the one that goes on.
	token.Refresh: {parse: parseRefresh, prove: refreshed, public: true},

	// RFC 8628. The subject is the person who typed the code and said yes.
	token.Device: {parse: parseWaiting("device_code"), prove: waited, public: true},

	// OpenID Connect CIBA, section 10.1. The subject is the person whom the client
	// named and who said yes.
	token.Backchannel: {parse: parseWaiting("auth_req_id"), prove: waited},

	// RFC 8693. The subject is that of the token that is handed on. Who need not
	// authenticate shows a key.
	token.Exchange: {parse: parseExchange, prove: exchanged, audience: true, public: true},

	// RFC 7523, section 2.1: a trusted issuer says which agent a workload is, or
	// which person lets the client act. There is no refresh token.
	token.Assertion: {parse: parseAssertion, prove: asserted, identifies: true},
}

// grantNames lists the grant types for the metadata.
func grantNames() []string { return slices.Sorted(maps.Keys(grantTypes)) }

// A request is the parameters of a token request that every grant type has.
type request struct {
	grantType string
	own       any // what the grant type read
	scopes    []string
	resources []string
	details   detail.List
	session   string // of ours: the open session that the token belongs to
	purpose   string // of ours: of the session, when none is named
}

// parse reads a token request, once.
func parse(f form) (request, error) {
	r := request{grantType: f.get("grant_type"), session: f.get("session"), purpose: f.get("purpose")}
	if r.grantType == "" {
		return r, errRequest.With("The parameter grant_type is missing.")
	}
	g, ok := grantTypes[r.grantType]
	if !ok {
		return r, errGrants
	}
	var err error
	if r.scopes, err = f.scopes(); err != nil {
		return r, err
	}
	if r.details, err = f.details(); err != nil {
		return r, err
	}
	targets := f.all("resource")
	if g.audience && f.get("requested_token_type") != token.IDJAGType {
		targets = append(targets, f.all("audience")...)
	}
	if r.resources, err = resources(targets); err != nil {
		return r, err
	}
	r.own, err = g.parse(f)
	return r, err
}
