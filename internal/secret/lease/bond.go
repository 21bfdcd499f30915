package lease

import (
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// What a lease is bound to: its session, who holds it, and maybe a grant and a token. It
// is stored with the lease, which ends in the transaction in which that does.

// A Grant is the permission that an agent's lease is made on.
type Grant struct {
	ID    string
	Until time.Time  // when it ends by itself; zero if it does not
	Rows  []db.Epoch // what must not have ended or been suspended when the lease is stored: the grant, and what it was made of
}

// ErrGrant is returned when the grant has ended that a lease was to be made on.
var ErrGrant = &estover.Error{Kind: estover.Conflict, Code: "grant_ended", Detail: "The grant that this rests on has just ended. Ask for another one."}

// keep keeps a grant from ending before the transaction does, unless it has.
func (g Grant) keep(ctx context.Context, tx *db.Tx) error {
	for _, row := range g.Rows {
		if err := tx.Alive(ctx, row); errors.Is(err, db.ErrStale) {
			return ErrGrant
		} else if err != nil {
			return err
		}
	}
	return nil
}

// bind says which token a wish is bound to, and until when that is good: the one
// that the role binds to. It is an error if there is none.
func (w *Wish) bind(c estover.Caller, r *Role) error {
	if r.Bind != ToToken {
		w.Token = ""
		return nil
	}
	if w.Token == "" {
		w.Token = c.Token
	}
	if w.Token == "" && c.Acting().Kind() == estover.UserKind {
		w.Token = c.Grant // a person's own
	}
	if w.Token == "" {
		return ErrInvalid.With("The role %s binds its leases to a token, and this was asked for without one.", r.Name)
	}
	return nil
}

// until is when the token of a wish ends by itself; zero if it does not, or may be
// renewed.
func (w *Wish) until(c estover.Caller) time.Time {
	if w.Token != "" && (w.Token == c.Token || w.Token == c.Grant) {
		return c.Until
	}
	return time.Time{}
}

// authority is what the token came from that a lease ends with. People have no
// session: what they make with a token ends when it is taken from them.
func authority(c estover.Caller, token string) string {
	if token == "" && c.Acting().Kind() != estover.UserKind {
		return ""
	}
	return c.Grant
}

// EndOfSessions marks the leases of sessions in the transaction that ends them,
// and says how many there were.
func (l *Leases) EndOfSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	return l.markIn(ctx, tx, WithSession, "session_id", sessions)
}

// EndOfPeople marks the leases that people hold themselves, in the transaction in
// which they leave.
func (l *Leases) EndOfPeople(ctx context.Context, tx *guard.Tx, people []string) (int, error) {
	holders := make([]string, len(people))
	for i, p := range people {
		holders[i] = string(estover.User(p))
	}
	return l.markIn(ctx, tx, WithToken, "agent_id = '' and holder", holders)
}

// EndOfGrants marks the leases that were made on grants of access, in the
// transaction in which those end, are suspended or are replaced.
func (l *Leases) EndOfGrants(ctx context.Context, tx *guard.Tx, grants []string) (int, error) {
	return l.markIn(ctx, tx, WithGrant, "grant_id <> '' and grant_id", grants)
}

// EndOfTenant marks all leases of a tenant that is to be erased, and wakes the
// workers.
func (l *Leases) EndOfTenant(ctx context.Context, tenant estover.TenantID) error {
	_, err := l.markWhere(ctx, system(tenant), "lease:*", "", ByHand, "the organisation is erased", "id <> ''")
	return err
}

// EndOfAgents marks the leases that agents hold, in whoever's session, in the
// transaction that holds those.
func (l *Leases) EndOfAgents(ctx context.Context, tx *guard.Tx, agents []string) (int, error) {
	return l.markIn(ctx, tx, WithAgent, "agent_id", agents)
}

// EndOfTokens marks the leases that are bound to tokens, in the transaction that
// ends those: by their own ids, or by those of what they came from.
func (l *Leases) EndOfTokens(ctx context.Context, tx *guard.Tx, tokens []string) (int, error) {
	bound, err := l.markIn(ctx, tx, WithToken, "token_id <> '' and token_id", tokens)
	if err != nil {
		return 0, err
	}
	made, err := l.markIn(ctx, tx, WithToken, "authority_id <> '' and authority_id", tokens)
	return bound + made, err
}

// Stands says which of these leases are live no more.
func (l *Leases) Stands(ctx context.Context, tenant estover.TenantID, ids []string) (ended []string, err error) {
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		ended = nil
		for part := range slices.Chunk(ids, 500) {
			live, err := liveAmong(ctx, tx, part)
			if err != nil {
				return err
			}
			for _, id := range part {
				if !live[id] {
					ended = append(ended, id)
				}
			}
		}
		return nil
	})
	return ended, err
}
