package lease

import (
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret/engine"
)

// What a lease is bound to besides its session. It is stored with the lease, which
// ends in the transaction in which that does.

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

// Release gives back, in all tenants, what a node had claimed that is no more, so
// that others need not wait until its time is over.
func (l *Leases) Release(ctx context.Context, node string) error {
	return l.guard.DB().Do(ctx, "", func(tx *db.Tx) error { return release(ctx, tx, node) })
}

// A print is what is kept of a value to recognise it by.
type print struct {
	field  string
	digest []byte
}

// prints are the fingerprints of what a lease hands out. A user's name is in the
// lease.
func (l *Leases) prints(tenant estover.TenantID, values engine.Material) (all []print) {
	for name, v := range values {
		if name != "username" && !v.Empty() {
			all = append(all, print{name, l.sealer.MAC(tenant, "secret.fingerprint", v.Reveal())})
		}
	}
	return all
}

// A Sighting says of which lease a value is.
type Sighting struct {
	Lease string `json:"lease"`
	Field string `json:"field"`
}

// Identify says of which leases a value is that was found where it should not be,
// whether or not they have ended: the newest first.
func (l *Leases) Identify(ctx context.Context, c estover.Caller, value estover.Secret) (list []Sighting, err error) {
	if err := l.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, err
	}
	digest := l.sealer.MAC(c.Tenant, "secret.fingerprint", value.Reveal())
	err = l.guard.Read(ctx, c, guard.Op{Action: "lease.list"}, func(tx *db.Tx) error {
		list, err = printed(ctx, tx, digest)
		return err
	})
	return list, err
}
