package token

import (
	"context"
	"errors"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Refuse records that an authenticated client got no token, and why, and
// consumes what its request presents once. It returns the error for the client,
// which is another one if that had been presented before.
func (t *Tokens) Refuse(ctx context.Context, r Request, why error) error {
	if undecided(ctx, why) {
		return why
	}
	if n := r.Proof.Renewal; n != nil && n.presented != nil && n.presented.copied { // a replay is one, whatever else is wrong
		if err := t.spentMeanwhile(ctx, r); undecided(ctx, err) {
			return err
		} else if err != nil {
			why = err
		}
	}
	rows := r.rows()
	if errors.Is(why, ErrPresentedTwice) && r.Proof.Grant != nil {
		return t.alarm(ctx, r, t.ended(ctx, r, why))
	}
	if errors.Is(why, ErrPending) && r.Proof.Waiting != nil {
		return t.polled(ctx, r)
	}
	var refusal *guard.Refusal
	if errors.As(why, &refusal) { // recorded already
		if len(rows) == 0 {
			return why
		}
		if err := t.guard.DB().Append(ctx, db.Append{Tenant: r.Caller.Tenant, Rows: rows}); err != nil {
			return t.replayed(ctx, r, err)
		}
		return why
	}
	op, _ := operation(r)
	for {
		err := t.guard.Record(ctx, r.caller(), op, refused(why), guard.Hot{Outcome: audit.Refused, Rows: rows})
		switch {
		case err == nil:
			return why
		case len(rows) == 0 || !db.Taken(err):
			return err
		}
		// Something was presented before, and that is why it is refused. The
		// rest is used up all the same.
		why = t.replayed(ctx, r, err)
		rows = t.fresh(ctx, r, len(rows))
	}
}

// undecided reports whether a request came to an error by which nothing was decided:
// the same one may succeed later.
func undecided(ctx context.Context, err error) bool {
	return unanswered(err) || err != nil && ctx.Err() != nil
}

// fresh are the rows of what was not presented before, if those are fewer.
func (t *Tokens) fresh(ctx context.Context, r Request, fewer int) (rows []db.Row) {
	err := t.guard.DB().View(ctx, r.Caller.Tenant, func(tx *db.Tx) error {
		rows = nil
		for _, u := range r.once() {
			switch used, err := isUsed(ctx, tx, u); {
			case err != nil:
				return err
			case !used:
				rows = append(rows, u.row(r.Caller.Tenant))
			}
		}
		return nil
	})
	if err != nil || len(rows) >= fewer {
		return nil
	}
	return rows
}

// Unproven records that somebody asked for a token as a client and did not
// prove to be it. Nobody knows who it was, so the event is our own.
func (t *Tokens) Unproven(ctx context.Context, caller estover.Caller, client *Client, method string, why error) error {
	caller.Subject, caller.Client = estover.System("oauth"), ""
	op := guard.Op{
		Action: "token.issue", Target: string(client.Subject), Effect: guard.Manages,
		Detail: map[string]any{"token": record{Client: client.ID, Method: method}},
	}
	return t.guard.Record(ctx, caller, op, refused(why), guard.Hot{Outcome: audit.Refused})
}

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

// refused is a decision that was not policy's: a rule that holds whatever the
// policy says.
func refused(why error) guard.Decision {
	d := guard.Decision{ID: audit.NewID(), Engine: "kernel", Reasons: []string{"refused"}, Message: why.Error()}
	var e *estover.Error
	if errors.As(why, &e) {
		d.Reasons[0], d.Message = e.Code, e.Detail
	}
	return d
}
