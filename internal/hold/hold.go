// Package hold keeps what is held as a whole: all agents of a blueprint, all
// that a person sponsors, a resource, an organisation, everything. Each hold is
// one row, however many agents it covers, and it covers those too that are
// registered while it stands.
//
//	raised ──(one lift, of this hold alone)──▶ lifted
//
// Several holds on the same thing stand beside each other, and beside those that
// single agents have of their own (package agent): lifting one never lifts
// another.
//
// A hold on another organisation or on everything is the default tenant's, whose
// administrators run the installation. What a tenant's own people raise is kept
// in the tenant.
//
// Whether an agent is covered is answered from memory ([Holds.Over]), for every
// token and every call, and in a transaction that makes something for an agent
// ([Over]). The copies are dropped when an event touches them, under the kind
// [Kind]: on the node that raises a hold before its caller is answered, on others
// within half a second.
package hold

import (
	"context"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Scope says what a hold covers.
type Scope string

// The scopes of holds.
const (
	Blueprint  Scope = "blueprint"  // the agents of a blueprint, by its name
	Person     Scope = "person"     // the agents that a person sponsors, by the person's id
	Resource   Scope = "resource"   // a resource, by its id: agents do not reach it
	Tenant     Scope = "tenant"     // the agents of an organisation, by its name
	Everything Scope = "everything" // the agents of every organisation
)

// A Hold is one reason why what it covers may not act, or not be reached.
type Hold struct {
	ID     string          `json:"id"` // hld_…
	Scope  Scope           `json:"scope"`
	Target string          `json:"target,omitempty"` // what; "" for everything
	Reason string          `json:"reason"`
	By     estover.Subject `json:"by"`
	At     time.Time       `json:"at"`
}

// Errors about holds.
var (
	// ErrNotFound is returned when there is no such hold in the tenant.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "hold_not_found", Detail: "There is no such hold, or it was lifted already. `estover contain holds` lists those that stand."}
	// ErrReason is returned when a hold is raised without a reason.
	ErrReason = &estover.Error{Kind: estover.Invalid, Code: "hold_reason_missing", Detail: "Say why, in up to 600 characters: those who find it held need to know.", Field: "reason"}
)

// Kind is the kind of the copies, as [guard.Tx.Touch] names it; all of a tenant's
// are one copy.
const Kind = "hold"

// all is the id of the one copy of a tenant.
const all = "all"

// Holds are the holds of all tenants. It is safe for use by many at once.
type Holds struct {
	guard  *guard.Guard
	copies *guard.Cache[[]Hold]
}

// New keeps holds behind the door g.
func New(g *guard.Guard) *Holds {
	return &Holds{guard: g, copies: guard.NewCache(g, Kind, func(ctx context.Context, tx *db.Tx, _ string) ([]Hold, error) {
		return standing(ctx, tx, tx.Tenant())
	})}
}

// Raise raises a hold, in a transaction that does more.
func (h *Holds) Raise(ctx context.Context, tx *guard.Tx, scope Scope, target, reason string, by estover.Subject) (Hold, error) {
	if reason == "" || len(reason) > 600 {
		return Hold{}, ErrReason
	}
	made := Hold{ID: estover.NewID("hld"), Scope: scope, Target: target, Reason: reason, By: by, At: tx.Now()}
	tx.Note("hold", made)
	touch(tx, made)
	return made, insert(ctx, tx.Tx, made)
}

// Lift lifts one hold, in a transaction that does more. The others stay.
func (h *Holds) Lift(ctx context.Context, tx *guard.Tx, id string, by estover.Subject) (Hold, error) {
	was, err := Find(ctx, tx.Tx, id)
	if err != nil {
		return was, err
	}
	tx.Note("hold", was)
	touch(tx, was)
	return was, lift(ctx, tx.Tx, id, by)
}

// touch drops the copies that a hold stands in.
func touch(tx *guard.Tx, h Hold) {
	tx.Touch(Kind, all)
	if h.Scope == Resource {
		tx.Touch(string(Resource), h.Target)
	}
}

// An Agent is what decides whether a hold covers an agent.
type Agent struct{ Blueprint, Sponsor string }

// covers reports whether a hold that is kept by one tenant covers an agent of
// another, or of the same.
func (h *Hold) covers(tenant estover.TenantID, a Agent) bool {
	switch h.Scope {
	case Blueprint:
		return h.Target == a.Blueprint
	case Person:
		return h.Target == a.Sponsor
	case Tenant:
		return h.Target == string(tenant)
	case Everything:
		return true
	}
	return false
}

// installation reports whether a hold of the default tenant reaches others.
func (h *Hold) installation() bool { return h.Scope == Tenant || h.Scope == Everything }

// Over are the holds that cover an agent of a tenant, from memory. None is the
// usual answer, and costs a look at two maps.
func (h *Holds) Over(ctx context.Context, tenant estover.TenantID, a Agent) (over []Hold, err error) {
	own, err := h.copies.Get(ctx, tenant, all)
	if err != nil {
		return nil, err
	}
	for i := range own {
		if own[i].covers(tenant, a) {
			over = append(over, own[i])
		}
	}
	if tenant == estover.DefaultTenant {
		return over, nil
	}
	theirs, err := h.copies.Get(ctx, estover.DefaultTenant, all)
	if err != nil {
		return nil, err
	}
	for i := range theirs {
		if theirs[i].installation() && theirs[i].covers(tenant, a) {
			over = append(over, theirs[i])
		}
	}
	return over, nil
}

// Over gives what says of an agent of the transaction's tenant which holds cover
// it, by the rows themselves.
func Over(ctx context.Context, tx *db.Tx) (func(Agent) []Hold, error) {
	standing, err := standing(ctx, tx, tx.Tenant())
	if err == nil && tx.Tenant() != estover.DefaultTenant {
		var theirs []Hold
		theirs, err = reaching(ctx, tx)
		standing = append(standing, theirs...)
	}
	tenant := tx.Tenant()
	return func(a Agent) (over []Hold) {
		for i := range standing {
			if standing[i].covers(tenant, a) {
				over = append(over, standing[i])
			}
		}
		return over
	}, err
}

// OnResource are the holds on a resource.
func OnResource(ctx context.Context, tx *db.Tx, id string) ([]Hold, error) {
	return on(ctx, tx, Resource, id)
}

// Standing are the holds of a tenant that are not lifted, the oldest first.
func Standing(ctx context.Context, tx *db.Tx) ([]Hold, error) {
	return standing(ctx, tx, tx.Tenant())
}
