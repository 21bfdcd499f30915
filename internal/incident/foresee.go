package incident

import (
	"context"
	"errors"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/resource"
	"estover.dev/internal/session"
)

// A Reach is what a target covers at this moment. What is registered or opened
// later is covered too.
type Reach struct {
	Agents   int // that are not retired; none of a resource, which is not reached then
	Sessions int // of theirs that have not ended
	Open     int // calls and streams that are under way through this node
}

// Foresee says what would be contained, to whoever may contain it, and changes
// nothing.
func (i *Incidents) Foresee(ctx context.Context, caller estover.Caller, target Target) (Reach, error) {
	if err := target.check(); err != nil {
		return Reach{}, err
	}
	if err := i.there(ctx, caller, target); err != nil {
		return Reach{}, err
	}
	op := target.op(caller)
	op.Detail = map[string]any{"foreseen": true}
	var r Reach
	err := i.Guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		switch {
		case target.Scope == Agent:
			_, err = agent.Load(ctx, tx, target.ID)
		case target.Scope == hold.Resource:
			_, err = resource.Load(ctx, tx, target.ID)
		case target.Scope == hold.Person:
			err = i.Person(ctx, tx, target.ID)
		}
		if err != nil || !i.within(caller.Tenant, target) {
			return err
		}
		return i.count(ctx, tx, target, &r)
	})
	if err != nil {
		return Reach{}, err
	}
	if err := i.elsewhere(ctx, caller.Tenant, target, &r); err != nil {
		return Reach{}, err
	}
	match, err := i.match(ctx, caller.Tenant, target)
	if err != nil {
		return Reach{}, err
	}
	r.Open = i.Gateway.CountWhere(match)
	return r, nil
}

// elsewhere adds what a target covers of other tenants.
func (i *Incidents) elsewhere(ctx context.Context, own estover.TenantID, t Target, r *Reach) (err error) {
	if !t.others(own) {
		return nil
	}
	tenants := []estover.TenantID{estover.TenantID(t.ID)}
	if t.Scope == hold.Everything {
		if tenants, err = i.Tenants(ctx); err != nil {
			return err
		}
	}
	for _, tenant := range tenants {
		if tenant != own {
			err = errors.Join(err, i.Guard.DB().View(ctx, tenant, func(tx *db.Tx) error { return i.count(ctx, tx, t, r) }))
		}
	}
	return err
}

// count adds what a target covers of the transaction's tenant.
func (i *Incidents) count(ctx context.Context, tx *db.Tx, t Target, r *Reach) error {
	running, err := session.Running(ctx, tx)
	if err != nil {
		return err
	}
	covered, err := i.covered(ctx, tx, t)
	if err != nil {
		return err
	}
	if covered == nil {
		ids, err := i.Agents.Covered(ctx, tx, "", "")
		if err != nil {
			return err
		}
		r.Agents += len(ids)
	}
	r.Agents += len(covered)
	for id, n := range running {
		if covered == nil || covered[id] {
			r.Sessions += n
		}
	}
	return nil
}

// Get shows a containment.
func (i *Incidents) Get(ctx context.Context, caller estover.Caller, id string) (c Containment, err error) {
	op := guard.Op{Action: "containment.read", Target: "containment:" + id, Effect: guard.Reads}
	err = i.Guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		c, err = find(ctx, tx, id)
		return err
	})
	return c, err
}

// Hold shows a hold that is not lifted.
func (i *Incidents) Hold(ctx context.Context, caller estover.Caller, id string) (h Standing, err error) {
	op := guard.Op{Action: "containment.list", Target: holdTarget + id, Effect: guard.Reads}
	err = i.Guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		h, _, err = locate(ctx, tx, id)
		return err
	})
	return h, err
}
