package duty

import (
	"context"
	"errors"
	"strconv"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// An approval that is good for so many calls is used up by events, not by a count
// alone: who can write to the database can put a count back, but not take an event
// out of the log without it showing. The event of each use has an id that follows
// from the request, the grant and the number of the use, and an id is there once.

// useAction is the action of such an event.
const useAction = "approval.use"

// maxUses bounds the uses of an approval that are events of their own. What may be
// used more often than that is counted alone.
const maxUses = 1000

// errUsedUp says that an approval has been used as often as it may be, whatever is
// counted.
var errUsedUp = access.ErrBudget.With("The approval that this rests on has been used as often as it may be. Ask again.")

// useID is the id of the event of a use.
func useID(tenant estover.TenantID, c *call, n int64) string {
	return audit.OnceID(useAction, string(tenant), c.covered.Request, c.covered.Grant, strconv.FormatInt(n, 10))
}

// uses is how often the approval that a call rests on may be used; 0 where that is
// not said, or more often than is written down.
func (c *call) uses() int64 {
	if c.covered.Request == "" {
		return 0
	}
	for _, a := range c.covered.Accounts {
		if a.ID == c.covered.Grant && a.Budgets.Calls <= maxUses {
			return a.Budgets.Calls
		}
	}
	return 0
}

// use is the event of the next use of the approval that a call rests on, and its
// id; nil if its uses are not written down.
func (d *Duties) use(ctx context.Context, tenant estover.TenantID, c *call) (p *audit.Prepared, id string, err error) {
	most := c.uses()
	if most == 0 {
		return nil, "", nil
	}
	n := int64(0)
	err = d.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		n, err = d.unused(ctx, tx, c, most)
		return err
	})
	switch {
	case err != nil:
		return nil, "", err
	case n > most:
		return nil, "", errUsedUp
	}
	id = useID(tenant, c, n)
	op := guard.Op{
		Action: useAction, Target: "request:" + c.covered.Request, Session: c.task.key.session,
		Detail: map[string]any{"grant": c.covered.Grant, "use": n, "of": most, "call": c.decision.ID},
	}
	event := d.Guard.Event(estover.Caller{Tenant: tenant, Subject: estover.System("gateway")}, op, guard.Decision{ID: id, Allow: true}, audit.Done)
	event.Touches = []string{"approval use:" + c.covered.Request} // so that it has a row to itself, whose id is there once
	prepared, err := d.Guard.Log().Prepare(tenant, event)
	return &prepared, id, err
}

// unused is the first use of which there is no event: most and one if there is
// none. Uses are made one after the other, so it is looked for by halves; only
// where that finds none is each looked at, since one may have come to nothing.
func (d *Duties) unused(ctx context.Context, tx *db.Tx, c *call, most int64) (int64, error) {
	low, high := int64(1), most+1
	for low < high {
		n := (low + high) / 2
		there, err := d.used(ctx, tx, useID(tx.Tenant(), c, n))
		if err != nil {
			return 0, err
		}
		if there {
			low = n + 1
		} else {
			high = n
		}
	}
	if low <= most {
		return low, nil
	}
	for n := int64(1); n <= most; n++ {
		there, err := d.used(ctx, tx, useID(tx.Tenant(), c, n))
		if err != nil || !there {
			return n, err
		}
	}
	return most + 1, nil
}

// used reports whether there is the event of a use, erased or not.
func (d *Duties) used(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	_, err := d.Guard.Log().Find(ctx, tx, id)
	switch {
	case err == nil, errors.Is(err, audit.ErrErased):
		return true, nil
	case errors.Is(err, audit.ErrNotFound):
		return false, nil
	}
	return false, err
}

// take takes what a call draws of budgets along with what it writes, and writes
// down the use of the approval that it rests on. Two that take the same use at once
// cannot both write it: the slower takes the next.
func (d *Duties) take(ctx context.Context, c *call, want access.Amount, w db.Append) error {
	for {
		use, id, err := d.use(ctx, w.Tenant, c)
		if err != nil {
			return err
		}
		one := w
		if use != nil {
			one.Rows = append(w.Rows[:len(w.Rows):len(w.Rows)], use.Row())
		}
		c.charge, err = d.Access.Charge(ctx, w.Tenant, c.covered.Accounts, want, one)
		if err == nil || use == nil || errors.Is(err, access.ErrBudget) || ctx.Err() != nil {
			return err
		}
		taken := false
		if failed := d.Guard.DB().View(ctx, w.Tenant, func(tx *db.Tx) (err error) {
			taken, err = d.used(ctx, tx, id)
			return err
		}); failed != nil || !taken {
			return err
		}
	}
}
