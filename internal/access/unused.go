package access

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// How a grant falls asleep that says after how long without use it is doubted.
const (
	// Notice is how long a grant that is not used goes on after that was announced.
	Notice = 7 * 24 * time.Hour
	// Recovery is how long a suspended grant can be restored, before it ends.
	Recovery = 30 * 24 * time.Hour
	// usePrecision is how exactly the last use of a grant is kept.
	usePrecision = time.Hour
)

// uses are the grants that were used on this node since that was last written
// down.
type uses struct {
	mu    sync.Mutex
	taken map[accountKey]time.Time
	saved map[accountKey]time.Time
}

// Used notes that a call was made on a grant. It costs no write: [Access.SaveUses]
// writes down what has not been for an hour.
func (a *Access) Used(tenant estover.TenantID, id string) {
	now := a.guard.DB().Now()
	k := accountKey{tenant, id}
	u := &a.uses
	u.mu.Lock()
	defer u.mu.Unlock()
	if now.Sub(u.saved[k]) < usePrecision {
		return
	}
	if u.taken == nil {
		u.taken = map[accountKey]time.Time{}
	}
	u.taken[k] = now
}

// SaveUses writes down which grants were used. It is called once a minute and
// when the server stops.
func (a *Access) SaveUses(ctx context.Context) error {
	u := &a.uses
	u.mu.Lock()
	taken := u.taken
	u.taken = nil
	u.mu.Unlock()
	byTenant := map[estover.TenantID][]string{}
	for k := range taken {
		byTenant[k.tenant] = append(byTenant[k.tenant], k.id)
	}
	for tenant, ids := range byTenant {
		for some := range slices.Chunk(ids, usesAtOnce) {
			if err := a.saveUses(ctx, tenant, some, taken); err != nil {
				u.mu.Lock()
				maps.Copy(taken, u.taken) // the later of both
				u.taken = taken
				u.mu.Unlock()
				return fmt.Errorf("storing when grants were used: %w", err)
			}
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.saved == nil || len(u.saved) > maxSaved {
		u.saved = map[accountKey]time.Time{}
	}
	maps.Copy(u.saved, taken)
	return nil
}

// The bounds of what is kept of uses: how many are written by one transaction,
// and of how many is known that they were.
const (
	usesAtOnce = 500
	maxSaved   = 200_000
)

func (a *Access) saveUses(ctx context.Context, tenant estover.TenantID, ids []string, at map[accountKey]time.Time) error {
	var doubted []string
	err := a.guard.DB().Do(ctx, tenant, func(tx *db.Tx) (err error) {
		doubted = nil
		for _, id := range ids {
			is, err := saveUse(ctx, tx, id, at[accountKey{tenant, id}])
			if err != nil {
				return err
			}
			if is {
				doubted = append(doubted, id)
			}
		}
		return nil
	})
	for _, id := range doubted {
		err = errors.Join(err, a.believe(ctx, tenant, id))
	}
	return err
}

// system is who does what goes by itself.
func system(tenant estover.TenantID) estover.Caller {
	return estover.Caller{Tenant: tenant, Subject: estover.System("access")}
}

// believe takes back the announcement that a grant is not used.
func (a *Access) believe(ctx context.Context, tenant estover.TenantID, id string) error {
	err := a.guard.Do(ctx, system(tenant), guard.Op{Action: "grant.used", Target: "grant:" + id}, func(tx *guard.Tx) error {
		g, err := lock(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if !g.SuspendedAt.IsZero() {
			return ErrNotSuspended // it was too late
		}
		tx.Touch(Copies, g.Agent)
		return wake(ctx, tx.Tx, g)
	})
	if errors.Is(err, ErrNotSuspended) || errors.Is(err, ErrNotFound) {
		err = nil // somebody else has, or it has ended
	}
	return err
}

// Resume gives a suspended grant back to its agent, and takes the announcement
// back that one will be. Its time without use begins anew.
func (a *Access) Resume(ctx context.Context, caller estover.Caller, id string) (g Grant, err error) {
	err = a.guard.Do(ctx, caller, guard.Op{Action: "grant.restore", Target: "grant:" + id}, func(tx *guard.Tx) error {
		if g, err = lock(ctx, tx.Tx, id); err != nil {
			return err
		}
		if !g.EndedAt.IsZero() {
			return ErrEnded
		}
		tx.Touch(Copies, g.Agent)
		if err := wake(ctx, tx.Tx, g); err != nil {
			return err
		}
		if err := used(ctx, tx.Tx, id, tx.Now()); err != nil {
			return err
		}
		g, err = find(ctx, tx.Tx, id)
		return err
	})
	return g, err
}

// Sweep takes away what was counted of tasks that are over.
func (a *Access) Sweep(ctx context.Context) error {
	return a.guard.DB().Do(ctx, "", func(tx *db.Tx) error { return closeAccounts(ctx, tx) })
}

// Decay announces, suspends and ends grants that nobody uses. It is called every
// so often, by one node.
func (a *Access) Decay(ctx context.Context) error {
	var due []decayed
	err := a.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		due, err = dueOfDecay(ctx, tx, tx.Now())
		return err
	})
	for _, d := range due {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if failed := a.decay(ctx, d); failed != nil && !errors.Is(failed, errNotDue) && !errors.Is(failed, ErrNotFound) {
			err = errors.Join(err, fmt.Errorf("grant %s, which is not used: %w", d.id, failed))
		}
	}
	return err
}

// errNotDue says that a grant was used, restored or ended in the meantime.
var errNotDue = errors.New("the grant is not due any more")

// decay does to a grant what is due.
func (a *Access) decay(ctx context.Context, d decayed) error {
	action := map[stage]string{announce: "grant.unused", suspend: "grant.suspend", finish: "grant.end"}[d.due]
	return a.guard.Do(ctx, system(d.tenant), guard.Op{Action: action, Target: "grant:" + d.id}, func(tx *guard.Tx) error {
		g, err := lock(ctx, tx.Tx, d.id)
		if err != nil {
			return err
		}
		if g.dueAt(tx.Now()) != d.due {
			return errNotDue
		}
		tx.Touch(Copies, g.Agent)
		tx.Note("grant", g.Name)
		tx.Note("agent", g.Agent)
		tx.Note("unused_since", g.lastUse())
		if a.Told != nil {
			tell, err := a.Told(ctx, tx.Tx, g.Agent)
			if err != nil {
				return err
			}
			tx.Note("approvers", tell) // whom a channel tells of it
		}
		switch d.due {
		case announce:
			tx.Note("suspended_at", tx.Now().Add(Notice))
			return doubt(ctx, tx.Tx, g.ID)
		case suspend:
			tx.Note("restore_until", tx.Now().Add(Recovery))
			return suspendGrant(ctx, tx, g.ID)
		}
		reason := fmt.Sprintf("not used since %s, and not restored", g.lastUse().Format(time.DateOnly))
		tx.Note("reason", reason)
		return a.endOne(ctx, tx, g, reason)
	})
}

// A stage is what is due for a grant that nobody uses.
type stage int

const (
	nothing  stage = iota
	announce       // that it will be suspended
	suspend
	finish
)

// lastUse is when the grant was used last, or given if it never was.
func (g *Grant) lastUse() time.Time {
	at := g.CreatedAt
	for _, t := range []time.Time{g.StartsAt, g.UsedAt} {
		if t.After(at) {
			at = t
		}
	}
	return at
}

// dueAt is what is due for the grant because nobody uses it.
func (g *Grant) dueAt(now time.Time) stage {
	last := g.lastUse()
	switch {
	case !g.EndedAt.IsZero() || g.UnusedAfter == 0:
		return nothing
	case !g.SuspendedAt.IsZero():
		if now.Before(g.SuspendedAt.Add(Recovery)) {
			return nothing
		}
		return finish
	case now.Before(last.Add(time.Duration(g.UnusedAfter) * time.Second)):
		return nothing
	case g.AnnouncedAt.IsZero():
		return announce
	case now.Before(g.AnnouncedAt.Add(Notice)) || last.After(g.AnnouncedAt):
		return nothing
	}
	return suspend
}

// refused are the grants that did not stand up to verification, so that each is
// on record once for each time that this node starts.
type refused struct {
	mu   sync.Mutex
	told map[accountKey]bool
}

// Load is what a [guard.Cache] of the kind "grants" calls: the grants of an agent
// that have neither ended nor expired, are not suspended and stand up to
// verification, the oldest first. What was made of an eligible grant is among them
// only if that is.
func (a *Access) Load(ctx context.Context, tx *db.Tx, agent string) ([]Grant, error) {
	grants, err := load(ctx, tx, agent)
	if err != nil {
		return nil, err
	}
	good := grants[:0]
	for _, g := range grants {
		if g.Request != "" && a.Verify != nil {
			if err := a.Verify(ctx, tx, g); err != nil {
				if estover.KindOf(err) == estover.Unavailable || ctx.Err() != nil {
					return nil, err
				}
				a.refuse(tx.Tenant(), g, err)
				continue
			}
		}
		good = append(good, g)
	}
	there := map[string]bool{}
	for i := range good {
		there[good[i].ID] = true
	}
	return slices.DeleteFunc(good, func(g Grant) bool { return g.ActivatedFrom != "" && !there[g.ActivatedFrom] }), nil
}

// refuse puts on record that a grant is not what was approved. It returns at
// once: whoever loads grants holds a transaction that writes nothing.
func (a *Access) refuse(tenant estover.TenantID, g Grant, why error) {
	k := accountKey{tenant, g.ID}
	r := &a.refused
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told[k] {
		return
	}
	if r.told == nil {
		r.told = map[accountKey]bool{}
	}
	r.told[k] = true
	a.Logger.Error("a grant is not what was approved, and counts for nothing", "grant", g.ID, "agent", g.Agent, "request", g.Request, "error", why)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), refuseTime)
		defer cancel()
		op := guard.Op{Action: "grant.refused", Target: "grant:" + g.ID, Detail: map[string]any{"agent": g.Agent, "request": g.Request, "reason": why.Error()}}
		if err := a.guard.Do(ctx, system(tenant), op, func(*guard.Tx) error { return nil }); err != nil {
			a.Logger.Error("that a grant was refused could not be recorded", "grant", g.ID, "error", err)
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.told, k) // the next time it is
		}
	}()
}

// refuseTime bounds how long the record of a refused grant waits for the database.
const refuseTime = 30 * time.Second
