package ticket

import (
	"context"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Ref names a ticket: by its value, which is what one has who holds it, or by
// its accessor, or as the one that the caller came with, whose last use that may
// have been.
type Ref struct {
	Self     *Ticket
	Value    string
	Accessor string
}

// resolve is the live ticket that is meant. Another tenant's is not there.
func (t *Tickets) resolve(ctx context.Context, tenant estover.TenantID, ref Ref) (*Ticket, error) {
	if ref.Self != nil {
		return ref.Self, nil
	}
	if ref.Value != "" {
		one, err := t.Find(ctx, ref.Value)
		if errors.Is(err, ErrTicket) || err == nil && one.tenant != tenant {
			return nil, ErrNotFound
		}
		return one, err
	}
	var one *Ticket
	err := t.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		if one, err = find(ctx, tx, ref.Accessor); err != nil {
			return err
		}
		return alive(ctx, tx, one)
	})
	if err == nil && one.UsesLeft == 0 {
		err = ErrNotFound
	}
	return one, err
}

// meant is the ticket that an operation is about, and the operation. What is not
// there is decided on all the same: who may not ask hears that alone.
func (t *Tickets) meant(ctx context.Context, caller estover.Caller, action string, ref Ref) (*Ticket, guard.Op, error) {
	if len(ref.Accessor) > maxName { // none has so many bytes, and they do not go on record
		ref.Accessor = ref.Accessor[:maxName]
	}
	one, err := t.resolve(ctx, caller.Tenant, ref)
	op := guard.Op{Action: action, Target: "ticket:" + ref.Accessor}
	if errors.Is(err, ErrNotFound) {
		op.Detail = map[string]any{"found": false}
		// The refusal, or that it came to nothing, is on record (T3).
		return nil, op, t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
			tx.Fail(ErrNotFound)
			return nil
		})
	}
	if err != nil {
		return nil, op, err
	}
	op.Target, op.Detail = string(one.Subject), map[string]any{"ticket": one.ID}
	return one, op, nil
}

// Lookup shows a ticket.
func (t *Tickets) Lookup(ctx context.Context, caller estover.Caller, ref Ref) (*Ticket, error) {
	one, op, err := t.meant(ctx, caller, "ticket.read", ref)
	if err != nil {
		return nil, err
	}
	return one, t.guard.Read(ctx, caller, op, func(tx *db.Tx) error {
		return alive(ctx, tx, one)
	})
}

// Renew has a ticket live for so long from now, 0 for as long as it was made
// for, within its bounds: its explicit maximum, its mount's, and its session's end.
func (t *Tickets) Renew(ctx context.Context, caller estover.Caller, ref Ref, increment time.Duration) (*Ticket, []string, error) {
	one, op, err := t.meant(ctx, caller, "ticket.renew", ref)
	if err != nil {
		return nil, nil, err
	}
	if increment < 0 {
		return nil, nil, ErrInvalid.With("increment cannot be negative")
	}
	_, until, err := t.callerOf(ctx, one)
	if err != nil {
		return nil, nil, err
	}
	var m Made
	err = t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		tx.SetTarget("ticket:" + one.ID)
		if one, err = find(ctx, tx.Tx, one.ID); err != nil {
			return err
		}
		if err := alive(ctx, tx.Tx, one); err != nil {
			return err
		}
		if !one.Renewable {
			return ErrNotRenewable
		}
		m = Made{Ticket: *one}
		m.renew(tx.Now(), increment, until)
		tx.Note("expires_at", m.ExpiresAt)
		ok, err := renew(ctx, tx.Tx, &m.Ticket, one.ExpiresAt)
		if err == nil && !ok {
			err = ErrNotFound
		}
		return err
	})
	return &m.Ticket, m.Warnings, err
}

func (m *Made) renew(now time.Time, increment time.Duration, until time.Time) {
	ttl := increment
	if m.Period > 0 {
		ttl = min(m.Period, m.most)
	} else if ttl == 0 {
		ttl = m.TTL
	}
	to := now.Add(ttl)
	bound := func(at time.Time, word string) {
		if !at.IsZero() && to.After(at) {
			to = at
			m.Warnings = append(m.Warnings, "TTL of \""+ttl.String()+"\" exceeded "+word+"; TTL value is capped accordingly")
		}
	}
	if m.Period == 0 {
		bound(m.CreatedAt.Add(m.most), "the effective max_ttl of \""+m.most.String()+"\"")
	}
	if m.ExplicitMax > 0 {
		bound(m.CreatedAt.Add(m.ExplicitMax), "the explicit max_ttl of \""+m.ExplicitMax.String()+"\"")
	}
	bound(until, "the end of the session in which the token lives")
	if to.Before(now) {
		to = now
	}
	m.RenewedAt, m.ExpiresAt = now, to
}

// Revoke ends a ticket and all that came of it.
func (t *Tickets) Revoke(ctx context.Context, caller estover.Caller, ref Ref) error {
	return t.revoke(ctx, caller, ref, false)
}

// RevokeOrphan ends a ticket; those that came of it go on, as orphans.
func (t *Tickets) RevokeOrphan(ctx context.Context, caller estover.Caller, ref Ref) error {
	return t.revoke(ctx, caller, ref, true)
}

func (t *Tickets) revoke(ctx context.Context, caller estover.Caller, ref Ref, alone bool) error {
	one, op, err := t.meant(ctx, caller, "ticket.revoke", ref)
	if errors.Is(err, ErrNotFound) && ref.Value == "" {
		// It may be the accessor of an answer that waits.
		if gone, err := t.dropWrap(ctx, caller, ref.Accessor); err != nil || gone {
			return err
		}
	}
	if err != nil {
		return err
	}
	op.Effect = guard.Deletes
	return t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		tx.SetTarget("ticket:" + one.ID)
		if alone {
			if err := orphan(ctx, tx.Tx, one.ID); err != nil {
				return err
			}
		}
		n, err := t.end(ctx, tx, func() ([]string, error) { return endTree(ctx, tx.Tx, one.ID) })
		if err == nil && n == 0 {
			return ErrNotFound
		}
		return err
	})
}

// end ends tickets with what belongs to them, and says how many there were.
func (t *Tickets) end(ctx context.Context, tx *guard.Tx, mark func() ([]string, error)) (int, error) {
	ids, err := mark()
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	tx.Note("tickets", len(ids))
	if err := clearCubbyholes(ctx, tx.Tx); err != nil {
		return 0, err
	}
	return len(ids), t.Ended(ctx, tx, ids)
}

// EndOfSessions ends the tickets that live in sessions, inside the transaction
// that ends those, and says how many there were. What the sessions themselves
// take along, leases and certificates, is not told of twice.
func EndOfSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	count := 0
	for _, s := range sessions {
		n, err := endSession(ctx, tx.Tx, s)
		if err != nil {
			return 0, err
		}
		if err := clearCubbyholes(ctx, tx.Tx); err != nil {
			return 0, err
		}
		if err := dropWraps(ctx, tx.Tx, s); err != nil {
			return 0, err
		}
		count += int(n)
	}
	return count, nil
}

// EndOfPerson ends the tickets of a person who leaves, inside the transaction in
// which they do, with what belongs to them.
func (t *Tickets) EndOfPerson(ctx context.Context, tx *guard.Tx, person string) error {
	_, err := t.end(ctx, tx, func() ([]string, error) { return endSubject(ctx, tx.Tx, estover.User(person)) })
	return err
}

// EndCrowd ends the tickets of a crowd, with what belongs to them, and says how many
// there were.
func (t *Tickets) EndCrowd(ctx context.Context, caller estover.Caller, c Crowd, on, cause string) (n int, err error) {
	op := guard.Op{Action: "ticket.revoke", Target: on, Effect: guard.Deletes, Detail: map[string]any{"cause": cause}}
	err = t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		n, err = t.end(ctx, tx, func() ([]string, error) { return endCrowd(ctx, tx.Tx, c) })
		return err
	})
	return n, err
}

// DestroyCrowd takes away the secret-ids by which a crowd logs in, and says how many
// there were.
func (t *Tickets) DestroyCrowd(ctx context.Context, caller estover.Caller, c Crowd, on, cause string) (n int64, err error) {
	op := guard.Op{Action: "secret_id.destroy", Target: on, Effect: guard.Deletes, Detail: map[string]any{"cause": cause}}
	err = t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		n, err = dropSecretsOfCrowd(ctx, tx.Tx, c)
		tx.Note("secret_ids", n)
		return err
	})
	return n, err
}

// EndOfMount ends all that was got by a mount that is taken away, inside the
// transaction that does so: tickets, roles, secret-ids, what it was set to. Agents
// that were made with its roles stay, without a way in.
func (t *Tickets) EndOfMount(ctx context.Context, tx *guard.Tx, mount string) error {
	if err := dropMount(ctx, tx.Tx, mount); err != nil {
		return err
	}
	_, err := t.end(ctx, tx, func() ([]string, error) { return endMount(ctx, tx.Tx, mount) })
	return err
}

// Holds notes, before something is made that is to end with a ticket, that its end
// and that of those that it came of is to be looked for. It is [ErrTicket] if the
// ticket has ended.
func (t *Tickets) Holds(ctx context.Context, one *Ticket) error {
	return t.guard.DB().Do(ctx, one.tenant, func(tx *db.Tx) error {
		if ok, err := hold(ctx, tx, one.ID); err != nil || !ok {
			return errors.Join(err, ErrTicket)
		}
		return setHolds(ctx, tx, one.ID)
	})
}

// ExpireDue ends the tickets whose time is over and with which something ends, of
// all tenants. Of the others nobody needs to hear.
func (t *Tickets) ExpireDue(ctx context.Context) error {
	var due []db.Place
	if err := t.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		due, err = findDue(ctx, tx)
		return err
	}); err != nil {
		return err
	}
	var failed []error
	for _, at := range due { // one that cannot be ended does not keep the others
		op := guard.Op{Action: "ticket.expire", Target: "ticket:" + at.ID, Effect: guard.Deletes}
		caller := estover.Caller{Tenant: at.Tenant, Subject: estover.System("ticket")}
		if err := t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
			_, err := t.end(ctx, tx, func() ([]string, error) { return endTree(ctx, tx.Tx, at.ID) })
			return err
		}); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// List is the accessors of the live tickets of a tenant, in order.
func (t *Tickets) List(ctx context.Context, caller estover.Caller) (ids []string, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "ticket.list"}, func(tx *db.Tx) error {
		ids, err = listIDs(ctx, tx)
		return err
	})
	return ids, err
}

// kept is how long a ticket's row stays after its end.
const kept = time.Hour

// Sweep takes away what has been over for a while, of all tenants: tickets,
// secret-ids, answers that nobody fetched.
func (t *Tickets) Sweep(ctx context.Context) error {
	for _, what := range sweeps {
		for {
			var n int64
			err := t.guard.DB().Do(ctx, "", func(tx *db.Tx) (err error) {
				n, err = sweep(ctx, tx, what, tx.Now().Add(-kept))
				return err
			})
			if err != nil {
				return err
			}
			if n < sweepBatch {
				break
			}
		}
	}
	return nil
}

// Tidy is Sweep as somebody asks for it.
func (t *Tickets) Tidy(ctx context.Context, caller estover.Caller) error {
	if err := t.guard.Do(ctx, caller, guard.Op{Action: "ticket.tidy"}, func(*guard.Tx) error { return nil }); err != nil {
		return err
	}
	return t.Sweep(ctx)
}
