package approval

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Filter narrows a list; empty fields do not.
type Filter struct {
	Agent     string
	Session   string
	Kind      Kind
	State     State
	Requester estover.Subject
}

// MaxPage is the most that one page of a list holds, and what it holds if
// nothing is asked.
const MaxPage = 200

// sees reports whether a person looks at the requests of everybody.
func sees(c estover.Caller) bool {
	return c.Has(estover.Admin) || c.Has(estover.Operator) || c.Has(estover.Auditor) || c.Has(estover.Approver)
}

// Get shows a request with its votes. An agent sees its own; a person without a
// role those that they asked for and those that they may decide about.
func (a *Approvals) Get(ctx context.Context, caller estover.Caller, id string) (r Request, err error) {
	err = a.guard.Read(ctx, caller, a.op(caller, "access.read", id), func(tx *db.Tx) error {
		if r, err = find(ctx, tx, id); err != nil {
			return err
		}
		r.row = row{}
		if err := a.shown(ctx, tx, caller, &r); err != nil {
			return err
		}
		return a.weigh(ctx, tx, caller, &r)
	})
	return r, err
}

// shown is ErrNotFound if the caller may not know of a request.
func (a *Approvals) shown(ctx context.Context, tx *db.Tx, caller estover.Caller, r *Request) error {
	if acts := caller.Acting(); acts.Kind() == estover.AgentKind {
		if acts != estover.Agent(r.Agent) || r.Agent == "" {
			return ErrNotFound
		}
		return nil
	}
	if caller.Subject.Kind() == estover.SystemKind || sees(caller) || r.Requester == caller.Subject {
		return nil
	}
	m, err := a.may(ctx, tx, r, caller.Subject.ID())
	if err != nil {
		return err
	}
	if m.sponsor || len(m.by) > 0 {
		return nil
	}
	return ErrNotFound
}

// List shows requests, the newest first, without their votes. next is where the
// following page begins (pass it as after), or "" at the end. An agent sees its
// own, a person without a role those that they may know of.
func (a *Approvals) List(ctx context.Context, caller estover.Caller, f Filter, after string, limit int) (all []Request, next string, err error) {
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	at, id := int64(1<<63-1), ""
	if after != "" {
		text, rest, ok := strings.Cut(after, ".")
		if at, err = strconv.ParseInt(text, 10, 64); err != nil || !ok {
			return nil, "", ErrInvalid.With("This is not where a page of requests begins. Take the cursor of the page before.").At("cursor")
		}
		id = rest
	}
	if acts := caller.Acting(); acts.Kind() == estover.AgentKind {
		if f.Agent != "" && f.Agent != acts.ID() {
			return nil, "", ErrNotYours
		}
		f.Agent = acts.ID()
	}
	err = a.guard.Read(ctx, caller, a.op(caller, "access.list", ""), func(tx *db.Tx) error {
		if all, err = list(ctx, tx, f, at, id, limit+1); err != nil {
			return err
		}
		if len(all) > limit {
			all = all[:limit]
			last := all[limit-1]
			next = strconv.FormatInt(last.CreatedAt.UnixMicro(), 10) + "." + last.ID
		}
		var failed error
		all = slices.DeleteFunc(all, func(r Request) bool {
			err := a.shown(ctx, tx, caller, &r)
			if err != nil && estover.KindOf(err) != estover.NotFound {
				failed = err
			}
			return err != nil
		})
		for i := range all {
			if failed == nil {
				failed = a.weigh(ctx, tx, caller, &all[i])
			}
		}
		return failed
	})
	return all, next, err
}

// op is an operation on a request. That of an agent is about the agent, so that
// policy knows it as its own.
func (a *Approvals) op(caller estover.Caller, action, id string) guard.Op {
	op := guard.Op{Action: action}
	if id != "" {
		op.Target = "request:" + id
	}
	if acts := caller.Acting(); acts.Kind() == estover.AgentKind {
		op.Target = string(acts)
	}
	return op
}

// Waits finds, in memory, the request that waits and asks for this action for
// this agent; "" if none does. What belongs to another session is none.
func (a *Approvals) Waits(ctx context.Context, tenant estover.TenantID, agent, session, resource, action string) (string, error) {
	all, err := a.copies.Get(ctx, tenant, agent)
	if err != nil {
		return "", err
	}
	now := a.guard.DB().Now()
	for i := range all {
		r := &all[i]
		if r.Kind != Access || r.StateAt(now) != Pending || r.Session != "" && r.Session != session {
			continue
		}
		for _, item := range r.Offer.Items {
			if item.Resource == resource && (slices.Contains(item.Actions, action) || slices.Contains(item.Actions, All)) {
				return r.ID, nil
			}
		}
	}
	return "", nil
}

// All in the place of actions stands for every action of the resource.
const All = "*"
