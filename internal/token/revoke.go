package token

import (
	"context"
	"errors"
	"strings"

	"estover.dev"
	"estover.dev/internal/guard"
)

// Revoke ends an access token of the client (RFC 7009): its jti is denied
// until it expires, and what was handed on of it ends. It does nothing, and says
// so with false, for a token that is dead for good, unknown, malformed or another
// client's. One whose agent is held at the moment is not dead for good. A person,
// for whom client is nil, may end any token of the tenant if policy lets them.
func (t *Tokens) Revoke(ctx context.Context, caller estover.Caller, client *Client, raw string) (bool, error) {
	if strings.HasPrefix(raw, refreshPrefix) {
		return t.revokeRefresh(ctx, caller, client, raw)
	}
	tok, err := t.signed(ctx, raw)
	if err == nil {
		err = t.stands(ctx, tok, t.Now())
	}
	if errors.Is(err, ErrInvalid) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if tok.Tenant != caller.Tenant || client != nil && tok.Client != client.ID {
		return false, nil
	}
	target := tok.Subject
	if client != nil {
		target = client.Subject
	}
	op := guard.Op{
		Action: "token.revoke", Target: string(target), Session: tok.Session, Purpose: tok.Purpose,
		Detail: map[string]any{"token": record{ID: tok.ID, Client: tok.Client, Grant: tok.Grant, Expires: tok.Expires}},
	}
	return true, t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if err := lockGrant(ctx, tx.Tx, tok.Grant); err != nil {
			return err
		}
		tx.Touch(grantKind, tok.Grant)
		if err := deny(ctx, tx.Tx, tok.Grant, tok.ID, tok.Expires); err != nil {
			return err
		}
		tx.End(One, tok.ID)
		n, err := endHandedOn(ctx, tx, tok.Grant, tok.ID)
		if n > 0 {
			tx.Note("handed_on", n)
		}
		return err
	})
}

// revokeRefresh ends the grant of a refresh token with all that came from it
// (RFC 7009, section 2.1).
func (t *Tokens) revokeRefresh(ctx context.Context, caller estover.Caller, client *Client, raw string) (bool, error) {
	r, err := t.RefreshToken(ctx, caller.Tenant, raw, false)
	switch {
	case unanswered(err):
		return false, err
	case err != nil, client != nil && r.Grant.Client != client.ID, r.Grant.live(t.guard.DB().Now()) != nil:
		return false, nil
	}
	target := r.Grant.Subject
	if client != nil {
		target = client.Subject
	}
	op := guard.Op{
		Action: "token.revoke", Target: string(target), Session: r.Grant.Session,
		Detail: map[string]any{"token": record{Client: r.Grant.Client, Grant: r.Grant.ID}},
	}
	return true, t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		return t.Sessions.EndWithin(ctx, tx, r.Grant.Session, "the refresh token was revoked")
	})
}
