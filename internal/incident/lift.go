package incident

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/approval"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
)

// A hold is lifted by itself, and the others stay. Who may depends on what it is:
//
//	suspended, pending ──▶ lifted              by whoever may hold agents
//	quarantined, held as a whole
//	  ├─ somebody else could decide ──▶ asked ──(approved by another)──▶ lifted
//	  └─ nobody else could ──(an administrator)──▶ lifted
//
// Whoever raised a hold does not approve that it is lifted, and neither does
// whoever asked for it. Where one administrator is alone, and nobody else could
// decide, they lift it on their own word, and that is on record: an installation
// of one person must be able to go on. A policy that denies containment.lift takes
// that away too.

// The errors of lifting.
var (
	// ErrSecond is returned when a hold is to be lifted on one person's word that
	// wants two.
	ErrSecond = &estover.Error{Kind: estover.Denied, Code: "lift_needs_second", Detail: "This hold is lifted by two people. Ask for it with `estover contain lift HOLD --reason …`; somebody else approves it."}
	// ErrRaised is returned when whoever raised a hold approves that it is lifted.
	ErrRaised = &estover.Error{Kind: estover.Denied, Code: "lift_by_who_raised", Detail: "Whoever raised a hold does not approve that it is lifted. Somebody else has to."}
	// ErrTold is returned when a request says something else of a hold than is so.
	ErrTold = &estover.Error{Kind: estover.Conflict, Code: "lift_misdescribed", Detail: "The request does not describe the hold as it is. Ask with `estover contain lift`, which does."}
	// ErrLiftReason is returned when a hold is to be lifted without a reason.
	ErrLiftReason = &estover.Error{Kind: estover.Invalid, Code: "lift_reason_missing", Detail: "Say why it may be lifted, in up to 500 characters: those who decide need to know.", Field: "reason"}
)

// A Standing is a hold that is not lifted and that two people lift: of an agent,
// for what it did, or of something as a whole.
type Standing struct {
	ID string `json:"id"` // hld_…
	Target
	Reason string          `json:"reason"`
	By     estover.Subject `json:"by"`
	At     time.Time       `json:"at"`
}

// A Lifting is what became of the wish to lift a hold.
type Lifting struct {
	Hold    string `json:"hold"`
	State   string `json:"state" enum:"lifted,asked"`
	Request string `json:"request,omitempty"` // about which others decide
}

// The states of a lifting.
const (
	Lifted = "lifted"
	Asked  = "asked"
)

// holdTarget begins what a request to lift is about.
const holdTarget = "hold:"

// Liftable says that a hold wants two people, if so ([agent.Options.Liftable]).
func Liftable(h agent.Hold) error {
	if h.Kind == agent.Quarantine {
		return ErrSecond
	}
	return nil
}

// locate finds a hold of the transaction's tenant, whatever it is on.
func locate(ctx context.Context, tx *db.Tx, id string) (Standing, agent.Kind, error) {
	a, err := agent.FindHold(ctx, tx, id)
	if err == nil {
		return Standing{a.ID, Target{Agent, a.Agent}, a.Reason, a.By, a.At}, a.Kind, nil
	}
	if !errors.Is(err, agent.ErrHoldNotFound) {
		return Standing{}, "", err
	}
	h, err := hold.Find(ctx, tx, id)
	return Standing{h.ID, Target{h.Scope, h.Target}, h.Reason, h.By, h.At}, agent.Quarantine, err
}

// Lift lifts a hold, or asks those for it who may decide about it. With ask false
// it asks nobody, and says [ErrSecond] where it would.
func (i *Incidents) Lift(ctx context.Context, caller estover.Caller, id, reason string, ask bool) (Lifting, error) {
	if reason == "" || len(reason) > 500 {
		return Lifting{}, ErrLiftReason
	}
	var h Standing
	var kind agent.Kind
	var others bool
	op := guard.Op{Action: "containment.list", Target: holdTarget + id, Effect: guard.Reads}
	err := i.Guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		if h, kind, err = locate(ctx, tx, id); err == nil {
			others, err = i.others(ctx, tx, caller.Subject)
		}
		return err
	})
	switch {
	case err != nil:
		return Lifting{}, err
	case kind != agent.Quarantine:
		_, err := i.Agents.Lift(ctx, caller, h.Target.ID, id, reason)
		return Lifting{Hold: id, State: Lifted}, err
	case !others && caller.Has(estover.Admin):
		return Lifting{Hold: id, State: Lifted}, i.alone(ctx, caller, id, reason)
	case !ask || i.Ask == nil:
		return Lifting{}, ErrSecond
	}
	r, err := i.Ask(ctx, caller, approval.Wish{
		Kind: approval.Lift, Target: holdTarget + id, Reason: reason,
		Arguments: h.told(),
	})
	return Lifting{Hold: id, State: Asked, Request: r.ID}, err
}

// told is what those who decide are told of a hold.
func (h *Standing) told() map[string]string {
	return map[string]string{"holds": h.Target.String(), "raised_by": string(h.By), "raised_for": strings.Join(strings.Fields(h.Reason), " ")}
}

// others reports whether somebody else could decide that a hold is lifted.
func (i *Incidents) others(ctx context.Context, tx *db.Tx, than estover.Subject) (bool, error) {
	people, err := i.Deciders(ctx, tx)
	return slices.ContainsFunc(people, func(id string) bool { return estover.User(id) != than }), err
}

// alone lifts a hold for an administrator beside whom there is nobody.
func (i *Incidents) alone(ctx context.Context, caller estover.Caller, id, reason string) error {
	op := guard.Op{Action: "containment.lift", Target: holdTarget + id, Detail: map[string]any{"reason": reason, "alone": true}}
	return i.Guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		others, err := i.others(ctx, tx.Tx, caller.Subject)
		if err != nil {
			return err
		}
		if others {
			return ErrSecond
		}
		return i.lift(ctx, tx, id, caller.Subject)
	})
}

// lift lifts exactly one hold.
func (i *Incidents) lift(ctx context.Context, tx *guard.Tx, id string, by estover.Subject) error {
	h, _, err := locate(ctx, tx.Tx, id)
	if err != nil {
		return err
	}
	tx.Note("held", h.Target.String())
	if h.Scope == Agent {
		_, err = i.Agents.LiftWithin(ctx, tx, h.Target.ID, id, by)
	} else {
		_, err = i.Holds.Lift(ctx, tx, id, by)
	}
	return err
}

// Approved lifts the one hold that an approved request is about, in the
// transaction of its last vote ([approval.Effect]).
func (i *Incidents) Approved(ctx context.Context, tx *guard.Tx, r approval.Request, _ approval.Granted) (string, error) {
	id, ok := strings.CutPrefix(r.Target, holdTarget)
	if !ok {
		return "", hold.ErrNotFound
	}
	h, _, err := locate(ctx, tx.Tx, id)
	if err != nil {
		return "", err
	}
	if !maps.Equal(r.Arguments, h.told()) { // those who decided were told something else
		return "", ErrTold
	}
	by := r.DecidedBy
	for _, v := range r.Votes {
		if v.Verdict == approval.Approved && v.Round == r.Round {
			if v.Approver == h.By || v.For == h.By {
				return "", ErrRaised
			}
			by = v.Approver
		}
	}
	return id, i.lift(ctx, tx, id, by)
}

// Standing lists the holds that two people lift, the oldest first.
func (i *Incidents) Standing(ctx context.Context, caller estover.Caller) (all []Standing, err error) {
	op := guard.Op{Action: "containment.list", Effect: guard.Reads}
	err = i.Guard.Read(ctx, caller, op, func(tx *db.Tx) error {
		wide, err := hold.Standing(ctx, tx)
		if err != nil {
			return err
		}
		for _, h := range wide {
			all = append(all, Standing{h.ID, Target{h.Scope, h.Target}, h.Reason, h.By, h.At})
		}
		own, err := agent.QuarantineHolds(ctx, tx, maxStanding)
		for _, h := range own {
			all = append(all, Standing{h.ID, Target{Agent, h.Agent}, h.Reason, h.By, h.At})
		}
		return err
	})
	return all, err
}

// maxStanding bounds how many holds of single agents are listed.
const maxStanding = 1000
