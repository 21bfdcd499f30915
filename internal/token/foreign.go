package token

import (
	"context"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/guard"
)

// Mistrusted records that somebody asked for a token with the word of a trusted
// issuer that says nothing here. The event is our own, as that of
// [Tokens.Unproven].
func (t *Tokens) Mistrusted(ctx context.Context, caller estover.Caller, target string, f Foreign, why error) error {
	caller.Subject, caller.Client = estover.System("oauth"), ""
	op := guard.Op{
		Action: "token.issue", Target: target, Effect: guard.Manages,
		Detail: map[string]any{"token": record{GrantType: Assertion, Method: ByAssertion, Trust: f.Trust, Issuer: f.Issuer}},
	}
	return t.guard.Record(ctx, caller, op, refused(why), guard.Hot{Outcome: audit.Refused})
}
