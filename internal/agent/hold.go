package agent

import (
	"context"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Kind says what sort of hold it is.
type Kind string

// The kinds of hold.
const (
	Activation Kind = "pending"     // until somebody activates the agent
	Suspension Kind = "suspended"   // by somebody's decision
	Quarantine Kind = "quarantined" // for what the agent did
	Retirement Kind = "retired"     // for good
)

// A Hold is one reason why an agent may not act.
type Hold struct {
	ID     string          `json:"id"` // hld_…
	Kind   Kind            `json:"kind"`
	Scope  string          `json:"scope,omitempty"` // what it covers, if not this agent alone: blueprint, person, tenant, everything
	Reason string          `json:"reason"`
	By     estover.Subject `json:"by"`
	At     time.Time       `json:"at"`
}

// Errors about holds.
var (
	// ErrHoldKind is returned for a hold of a kind that does not exist.
	ErrHoldKind = &estover.Error{Kind: estover.Invalid, Code: "hold_kind_invalid", Detail: "An agent is held as pending, suspended, quarantined or retired.", Field: "kind"}
	// ErrHoldReason is returned when a hold or its lifting has no reason.
	ErrHoldReason = &estover.Error{Kind: estover.Invalid, Code: "hold_reason_missing", Detail: "Say why, in up to 500 characters: those who find the agent held need to know.", Field: "reason"}
	// ErrHoldNotFound is returned when the agent has no such hold.
	ErrHoldNotFound = &estover.Error{Kind: estover.NotFound, Code: "hold_not_found", Detail: "The agent has no such hold, or it was lifted already. `estover agent show` lists its holds."}
)

func checkReason(reason string) error {
	if reason == "" || len(reason) > 500 {
		return ErrHoldReason
	}
	return nil
}

// Hold stops an agent, beside whatever else holds it. A hold of the kind
// Retirement is final and ends the agent's credentials.
func (r *Registry) Hold(ctx context.Context, caller estover.Caller, id string, kind Kind, reason string) (h Hold, err error) {
	op := guard.Op{Action: "agent.hold", Target: target(id), Detail: map[string]any{"kind": kind}}
	err = r.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		h, err = r.Raise(ctx, tx, id, kind, reason, caller.Subject)
		return err
	})
	return h, err
}

// Retire is a hold that is final.
func (r *Registry) Retire(ctx context.Context, caller estover.Caller, id, reason string) error {
	_, err := r.Hold(ctx, caller, id, Retirement, reason)
	return err
}

// Raise is Hold inside a transaction that does more: a containment.
func (r *Registry) Raise(ctx context.Context, tx *guard.Tx, id string, kind Kind, reason string, by estover.Subject) (Hold, error) {
	if kind != Activation && kind != Suspension && kind != Quarantine && kind != Retirement {
		return Hold{}, ErrHoldKind
	}
	if err := checkReason(reason); err != nil {
		return Hold{}, err
	}
	a, err := lock(ctx, tx.Tx, id)
	if err != nil {
		return Hold{}, err
	}
	if !a.EndedAt.IsZero() {
		return Hold{}, ErrRetired
	}
	h := Hold{ID: estover.NewID("hld"), Kind: kind, Reason: reason, By: by, At: tx.Now()}
	if err := insertHold(ctx, tx.Tx, id, h); err != nil {
		return Hold{}, err
	}
	if kind == Retirement {
		a.EndedAt = tx.Now()
		if err := endCredentials(ctx, tx.Tx, id); err != nil {
			return Hold{}, err
		}
	}
	a.Epoch++
	tx.Note("hold", h)
	tx.Touch(estover.AgentKind, id)
	if err := update(ctx, tx.Tx, a); err != nil {
		return Hold{}, err
	}
	return h, r.held(ctx, tx, id, kind)
}

// Lift takes one hold away. The others stay, and a retirement cannot be lifted.
// What wants a second person is not lifted like this ([Options.Liftable]).
func (r *Registry) Lift(ctx context.Context, caller estover.Caller, id, hold, reason string) (a Agent, err error) {
	if err := checkReason(reason); err != nil {
		return a, err
	}
	op := guard.Op{Action: "agent.lift", Target: target(id), Detail: map[string]any{"hold": hold, "reason": reason}}
	err = r.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		h, err := FindHold(ctx, tx.Tx, hold)
		if err == nil && h.Agent == id {
			if err := r.liftable(h.Hold); err != nil {
				return err
			}
		}
		a, err = r.LiftWithin(ctx, tx, id, hold, caller.Subject)
		return err
	})
	return a, err
}

// LiftWithin is Lift inside of a transaction that does more, of any hold but a
// retirement.
func (r *Registry) LiftWithin(ctx context.Context, tx *guard.Tx, id, hold string, by estover.Subject) (Agent, error) {
	a, err := lock(ctx, tx.Tx, id)
	if err != nil {
		return a, err
	}
	if !a.EndedAt.IsZero() {
		return a, ErrRetired
	}
	if err := lift(ctx, tx.Tx, id, hold, by); err != nil {
		return a, err
	}
	tx.Touch(estover.AgentKind, id)
	return find(ctx, tx.Tx, id)
}

// A HoldOf is a hold of an agent.
type HoldOf struct {
	Agent string
	Hold
}

// FindHold is a hold that is not lifted, of whatever agent of the transaction's
// tenant.
func FindHold(ctx context.Context, tx *db.Tx, id string) (HoldOf, error) {
	return findHold(ctx, tx, id)
}

// QuarantineHolds are the holds of that kind of all agents, the oldest first, and no
// more than limit.
func QuarantineHolds(ctx context.Context, tx *db.Tx, limit int) ([]HoldOf, error) {
	return quarantined(ctx, tx, limit)
}

// SponsorLeft suspends the agents of a person who has left, inside the
// transaction in which the person leaves. Somebody else becomes their sponsor
// and lifts the hold.
func (r *Registry) SponsorLeft(ctx context.Context, tx *guard.Tx, person string) error {
	ids, err := sponsored(ctx, tx.Tx, person)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := r.Raise(ctx, tx, id, Suspension, "Its sponsor has left.", estover.System("directory")); err != nil {
			return err
		}
	}
	tx.Note("suspended", ids)
	return nil
}
