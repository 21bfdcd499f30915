package approval

import (
	"context"
	"errors"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// ExpireDue puts on record which requests have expired, of all tenants, and says
// how many there were. They can be decided no more since that instant; this makes
// it known.
func (a *Approvals) ExpireDue(ctx context.Context) (int, error) {
	return a.eachDue(ctx, "expires_at", "access.expire", func(tx *guard.Tx, r *Request) error {
		r.State = Expired
		return lapse(ctx, tx.Tx, r.ID)
	})
}

// EscalateDue lets others decide too about requests that have waited for so long
// as their rule says, of all tenants, and says how many there were.
func (a *Approvals) EscalateDue(ctx context.Context) (int, error) {
	return a.eachDue(ctx, "escalate_at", "access.escalate", func(tx *guard.Tx, r *Request) error {
		if r.State != Pending {
			return ErrNotPending
		}
		r.EscalatedAt = tx.Now()
		if err := a.tellApprovers(ctx, tx, r, r.Rule.EscalateTo); err != nil {
			return err
		}
		return escalate(ctx, tx.Tx, r.ID)
	})
}

// eachDue does something to each request whose time in a column has come. One
// that somebody else was quicker with is left alone.
func (a *Approvals) eachDue(ctx context.Context, column, action string, fn func(tx *guard.Tx, r *Request) error) (done int, err error) {
	for {
		var all []db.Place
		err := a.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
			all, err = due(ctx, tx, column)
			return err
		})
		if err != nil || len(all) == 0 {
			return done, err
		}
		before := done
		for _, at := range all {
			caller := estover.Caller{Tenant: at.Tenant, Subject: estover.System("approval")}
			err := a.guard.Do(ctx, caller, guard.Op{Action: action, Target: "request:" + at.ID}, func(tx *guard.Tx) error {
				r, err := lock(ctx, tx.Tx, at.ID)
				if err != nil {
					return err
				}
				if err := fn(tx, &r); err != nil {
					return err
				}
				a.tell(tx, r)
				tx.Note("requester", r.Requester)
				tx.Touch(Waiting, r.Agent)
				return nil
			})
			switch {
			case err == nil:
				done++
			case !errors.Is(err, ErrNotPending):
				return done, err
			}
		}
		if done == before {
			return done, nil
		}
	}
}

// EndOfSessions cancels what waits for sessions that end, in the transaction that
// ends them, and says how many there were.
func (a *Approvals) EndOfSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	n := 0
	for _, id := range sessions {
		agents, err := cancelSession(ctx, tx.Tx, id, "the session has ended")
		if err != nil {
			return n, err
		}
		for _, agent := range agents {
			tx.Touch(Waiting, agent)
		}
		n += len(agents)
	}
	return n, nil
}
