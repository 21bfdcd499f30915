package token

import (
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
)

// Introspect says what a token stands for, to somebody who may know
// (RFC 7662). Nil without an error is the one answer for everything else: a
// token that is unknown, dead, malformed, another tenant's, or none of the
// asker's business.
//
// A client may ask about its own tokens, and about those for the resources
// that it is named for ([Client.Introspect]). A person, for whom client is
// nil, may ask about any token of the tenant if policy lets them.
//
// A node that has not heard for two seconds of what others have ended says
// nothing of any token: whoever asks believes what it says, and an answer that
// may be wrong is worse than none ([guard.ErrDeaf]).
//
// Like every read, this is recorded only when it is refused.
func (t *Tokens) Introspect(ctx context.Context, caller estover.Caller, client *Client, raw string) (*Token, error) {
	op := guard.Op{Action: "token.introspect", Target: string(caller.Subject), Effect: guard.Reads}
	if _, err := t.guard.Admit(ctx, caller, op); err != nil {
		return nil, err
	}
	if err := t.guard.Current(heardWithin); err != nil {
		return nil, err
	}
	tok, err := t.Verify(ctx, raw)
	if errors.Is(err, ErrInvalid) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if tok.Tenant != caller.Tenant || client != nil && !mayKnow(client, tok) {
		return nil, nil
	}
	return tok, nil
}

// heardWithin is how old what a node knows of the others may be when it says that
// a token is good. It looks six times a second.
const heardWithin = 2 * time.Second

func mayKnow(c *Client, tok *Token) bool {
	return tok.Client == c.ID || slices.ContainsFunc(tok.Audience, func(a string) bool { return slices.Contains(c.Introspect, a) })
}

// AppendJSON writes what the token says in the form of an introspection
// answer (RFC 7662, section 2.2).
func (t *Token) AppendJSON(b []byte, issuer string) []byte {
	b = append(b, `{"active":true,`...)
	if t.Confirm.Key != "" {
		b = append(b, `"token_type":"DPoP",`...)
	} else {
		b = append(b, `"token_type":"Bearer",`...)
	}
	return append(b, t.claims(issuer)[1:]...)
}
