package approval

import (
	"context"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Foresee says whether something could be asked for, and by whom it would be
// decided, without asking: permitted is what policy would approve at once. It is
// an error of kind Denied, Invalid, Conflict or NotFound if nobody could approve
// it. What a person says when they ask does not matter to it.
func (a *Approvals) Foresee(ctx context.Context, caller estover.Caller, w Wish) (rule Rule, permitted bool, err error) {
	if w.Reason == "" {
		w.Reason = "-"
	}
	made, _, err := a.wished(caller, w)
	if err != nil {
		return rule, false, err
	}
	may := guard.Op{Action: "access.request", Session: made.Session, Purpose: made.Purpose, Effect: guard.Writes}
	if made.Agent != "" {
		may.Target = string(estover.Agent(made.Agent))
	}
	if d, err := a.Decide(ctx, caller, may); err != nil || !d.Allow {
		return rule, false, refused(d, err)
	}
	if err := a.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) error { return a.look(ctx, tx, caller, &made) }); err != nil {
		return rule, false, err
	}
	questions, err := a.questions(ctx, caller, &made)
	if err != nil {
		return rule, false, err
	}
	floor, floored := a.Floors[made.Kind]
	permitted = len(questions) > 0 && !floored
	var demanded []guard.Obligation
	for _, q := range questions {
		d, err := a.Decide(ctx, asAgent(caller, made), q)
		if err != nil || !d.Allow && !undecided(d) {
			return rule, false, refused(d, err)
		}
		permitted = permitted && d.Allow
		demanded = append(demanded, d.Obligations...)
	}
	if permitted {
		return Rule{Roles: []string{}}, true, nil
	}
	rule, err = stricter(floor, demanded)
	return rule, false, err
}

// refused is a refusal that is not put on record, since nothing was asked.
func refused(d guard.Decision, err error) error {
	if err != nil {
		return err
	}
	return &guard.Refusal{Decision: d}
}
