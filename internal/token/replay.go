package token

import (
	"context"
	"errors"
	"time"

	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// alarm tells whoever follows the log that a code or a refresh token came a
// second time: somebody else may have it. What it bought has ended by then. It is
// an event of its own, authorization.replay, since nobody is told of each token
// that is issued or refused, and it is there once for a grant, however often and
// wherever the value comes again. Until it is on record the client is told to try
// again, so that it is not forgotten.
func (t *Tokens) alarm(ctx context.Context, r Request, why error) error {
	if !errors.Is(why, ErrPresentedTwice) {
		return why
	}
	g := r.Proof.Grant
	caller := r.caller()
	op := guard.Op{
		Action: "authorization.replay", Target: string(r.Client.Subject), Session: g.Session, Effect: guard.Manages,
		Detail: map[string]any{"grant": g.ID, "subject": string(g.Subject), "grant_type": r.Proof.GrantType, "address": caller.Address},
	}
	once := Used{By: op.Action, Name: g.ID, Expires: t.Now().Add(replaysKnown)}
	decision := guard.Decision{ID: audit.NewID(), Allow: true, Engine: "kernel"}
	err := t.guard.Record(ctx, caller, op, decision, guard.Hot{Rows: []db.Row{once.row(caller.Tenant)}, Session: g.Session})
	switch {
	case err == nil:
		t.replays.Add(1)
	case !db.Taken(err):
		return err
	}
	return why
}

// replaysKnown is for how long a grant whose replay was told of is remembered:
// longer than anything that it bought could come again.
const replaysKnown = 48 * time.Hour

// Replays is how often this node was the first to see that a code or a refresh
// token came a second time, since it started.
func (t *Tokens) Replays() int64 { return t.replays.Load() }
