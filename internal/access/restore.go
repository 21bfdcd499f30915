package access

import (
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Restoration is what it takes to put the grants of an agent back to what they
// were at a time. What a grant says is never changed and what has ended stays, so
// that is known of every time.
type Restoration struct {
	Agent string        `json:"agent"`
	At    time.Time     `json:"at"`
	Give  []Grant       `json:"give" nullable:"false"` // which have ended since; they are given again, as grants of their own
	Take  []Grant       `json:"take" nullable:"false"` // which were given since; they end
	Keep  []Grant       `json:"keep" nullable:"false"`
	Leave []Irreparable `json:"leave" nullable:"false"` // which cannot be given again
	Done  bool          `json:"done"`
}

// An Irreparable is a grant of before that is not given again.
type Irreparable struct {
	Grant
	Why string `json:"why"`
}

// ErrRestore is returned for a time to which nothing can be put back.
var ErrRestore = &estover.Error{Kind: estover.Invalid, Code: "restore_invalid", Detail: "Name a time that has passed, and the agent whose access is put back.", Field: "at"}

// Restore puts the grants of an agent back to what they were at a time, in one
// transaction. With try it does nothing, and says what it would do. What came of
// a request or belonged to a session is not given again: that was for a task. Nor
// is what was taken of budgets: it counts for the grant that is given again.
func (a *Access) Restore(ctx context.Context, caller estover.Caller, agent string, at time.Time, reason string, try bool) (r Restoration, err error) {
	at = at.UTC().Truncate(time.Microsecond)
	op := guard.Op{Action: "access.restore", Target: string(estover.Agent(agent)), Detail: map[string]any{"at": at, "reason": reason}}
	if try {
		op.Effect = guard.Reads
		err = a.guard.Read(ctx, caller, op, func(tx *db.Tx) error {
			r, err = a.restoration(ctx, tx, agent, at)
			return err
		})
		return r, err
	}
	if err := checkReason(reason); err != nil {
		return r, err
	}
	err = a.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		// Of two who put it back at once the second sees what the first has given.
		if err := lockAgent(ctx, tx.Tx, agent); err != nil {
			return err
		}
		if r, err = a.restoration(ctx, tx.Tx, agent, at); err != nil {
			return err
		}
		tx.Touch(Copies, agent)
		for _, g := range r.Take {
			// One that was made of an eligible grant may have ended along with it.
			if err := a.endOne(ctx, tx, g, "access was put back: "+reason); err != nil && !errors.Is(err, ErrEnded) {
				return err
			}
		}
		for i, old := range r.Give {
			if old.EndedAt.IsZero() { // it sleeps, and must not wake up beside the other
				if err := a.endOne(ctx, tx, old, "access was put back: "+reason); err != nil {
					return err
				}
			}
			g := Grant{ID: estover.NewID("grt"), Spec: old.Spec, ManagedBy: old.ManagedBy, CreatedAt: tx.Now(), CreatedBy: caller.Subject, Epoch: 1}
			if g.Name, err = a.free(ctx, tx, old, g.ID); err != nil {
				return err
			}
			g.State = g.StateAt(tx.Now())
			if err := insert(ctx, tx.Tx, g); err != nil {
				return err
			}
			if err := carry(ctx, tx.Tx, old.ID, g.ID); err != nil {
				return err
			}
			r.Give[i] = g
		}
		tx.Note("given", idsOf(r.Give))
		tx.Note("taken", idsOf(r.Take))
		r.Done = true
		return nil
	})
	return r, err
}

// free is the name under which a grant is given again: its own, unless that is
// another agent's by now.
func (a *Access) free(ctx context.Context, tx *guard.Tx, old Grant, id string) (string, error) {
	if old.Name == old.ID {
		return id, nil
	}
	held, err := lockName(ctx, tx.Tx, old.Name)
	switch {
	case errors.Is(err, ErrNotFound):
		return old.Name, nil
	case err != nil:
		return "", err
	case held.Agent != old.Agent:
		return id, nil
	}
	return old.Name, a.endOne(ctx, tx, held, "access was put back") // its time is over
}

func idsOf(grants []Grant) []string {
	ids := make([]string, len(grants))
	for i, g := range grants {
		ids[i] = g.ID
	}
	return ids
}

// restoration finds out what it takes.
func (a *Access) restoration(ctx context.Context, tx *db.Tx, agent string, at time.Time) (Restoration, error) {
	r := Restoration{Agent: agent, At: at, Give: []Grant{}, Take: []Grant{}, Keep: []Grant{}, Leave: []Irreparable{}}
	if agent == "" || at.IsZero() || at.After(tx.Now()) {
		return r, ErrRestore
	}
	if err := a.Agent(ctx, tx, agent, nil); err != nil {
		return r, err
	}
	were, err := asOf(ctx, tx, agent, at)
	if err != nil {
		return r, err
	}
	are, err := load(ctx, tx, agent)
	if err != nil {
		return r, err
	}
	keep := func(g Grant, same func(now, before Grant) bool) bool {
		kept := slices.IndexFunc(are, func(now Grant) bool { return same(now, g) })
		if kept >= 0 {
			r.Keep = append(r.Keep, are[kept])
			are = slices.Delete(are, kept, kept+1)
		}
		return kept >= 0
	}
	// What is there still is itself first of all, and not what stands for another.
	were = slices.DeleteFunc(were, func(g Grant) bool {
		return keep(g, func(now, before Grant) bool { return now.ID == before.ID && now.SuspendedAt.IsZero() })
	})
	for _, g := range were {
		if keep(g, equalGrant) {
			continue
		}
		why, err := a.irreparable(ctx, tx, g)
		if err != nil {
			return r, err
		}
		if why != "" {
			r.Leave = append(r.Leave, Irreparable{g, why})
			continue
		}
		r.Give = append(r.Give, g)
	}
	r.Take = append(r.Take, are...)
	return r, nil
}

// equalGrant reports whether a grant that covers something says the same as one
// of before. Those without a name are called by their ids, and differ in that alone.
func equalGrant(now, before Grant) bool {
	if now.Name == now.ID && before.Name == before.ID {
		now.Name = before.Name
	}
	return now.SuspendedAt.IsZero() && equal(now.Spec, before.Spec)
}

// irreparable says why a grant is not given again, if so.
func (a *Access) irreparable(ctx context.Context, tx *db.Tx, g Grant) (string, error) {
	switch {
	case g.Request != "" || g.ActivatedFrom != "":
		return "It came of a request, and was for a task.", nil
	case g.Session != "":
		return "It was for a session, and ended with it.", nil
	case !g.ExpiresAt.IsZero() && !tx.Now().Before(g.ExpiresAt):
		return "Its time is over.", nil
	}
	for _, err := range []error{a.Agent(ctx, tx, g.Agent, g.Purposes), a.Resource(ctx, tx, g.Resource, g.Actions)} {
		switch estover.KindOf(err) {
		case estover.NotFound, estover.Invalid, estover.Conflict:
			var e *estover.Error
			errors.As(err, &e)
			return e.Detail, nil
		default:
			if err != nil {
				return "", err
			}
		}
	}
	return "", nil
}
