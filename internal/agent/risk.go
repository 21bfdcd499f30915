package agent

import (
	"context"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
)

// A Band says how risky an agent is held to be at the moment, where a tier says
// how much harm it could do. It stops nothing by itself: policies read it, beside
// other facts.
type Band string

// The bands of risk, the least first.
const (
	LowRisk      Band = "low"
	RaisedRisk   Band = "raised"
	HighRisk     Band = "high"
	CriticalRisk Band = "critical"
)

// A Risk is the band of an agent, and who set it last, when and why: nobody, if
// it was never set.
type Risk struct {
	Band   Band            `json:"band"`
	Reason string          `json:"reason,omitempty"`
	By     estover.Subject `json:"by,omitempty"`
	At     time.Time       `json:"at,omitzero"`
}

// Errors about risk.
var (
	// ErrRiskBand is returned for a band that does not exist.
	ErrRiskBand = &estover.Error{Kind: estover.Invalid, Code: "risk_band_invalid", Detail: "The risk of an agent is low, raised, high or critical.", Field: "band"}
	// ErrRiskReason is returned when a band is set without a reason.
	ErrRiskReason = &estover.Error{Kind: estover.Invalid, Code: "risk_reason_missing", Detail: "Say why, in up to 500 characters: those whom the agent's risk stops need to know.", Field: "reason"}
)

// SetRisk says how risky an agent is held to be from here on. What is open is
// decided again, and by the band.
func (r *Registry) SetRisk(ctx context.Context, caller estover.Caller, id string, band Band, reason string) (a Agent, err error) {
	if band != LowRisk && band != RaisedRisk && band != HighRisk && band != CriticalRisk {
		return a, ErrRiskBand
	}
	if reason == "" || len(reason) > 500 {
		return a, ErrRiskReason
	}
	op := guard.Op{Action: "agent.risk", Target: target(id), Detail: map[string]any{"band": band, "reason": reason}}
	err = r.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if a, err = lock(ctx, tx.Tx, id); err != nil {
			return err
		}
		if !a.EndedAt.IsZero() {
			return ErrRetired
		}
		tx.Note("before", a.Risk.Band)
		if band != a.Risk.Band {
			a.Epoch++
		}
		a.Risk = Risk{Band: band, Reason: reason, By: caller.Subject, At: tx.Now()}
		tx.Touch(estover.AgentKind, id)
		if err := update(ctx, tx.Tx, a); err != nil {
			return err
		}
		return r.cover(ctx, tx.Tx, &a)
	})
	return a, err
}
