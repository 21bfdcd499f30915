package lease

import (
	"context"

	"estover.dev"
	"estover.dev/internal/guard"
)

// ErrSecond is returned to who has declared leases ended, and would be the second
// who does.
var ErrSecond = &estover.Error{Kind: estover.Conflict, Code: "lease_second_person", Detail: "That the target is no more is said by two people. You are the first; somebody else says it too."}

// A Declared is what has become of a declaration.
type Declared struct {
	Waiting int64 `json:"waiting"` // that another person has to declare too
	Ended   int64 `json:"ended"`
}

// Declare says that a target is no more, so that its leases, which are revoked and
// cannot be taken away there, have ended. The first who says so waits for a second
// person; the event of the second one says that nobody has checked (Q7).
func (l *Leases) Declare(ctx context.Context, c estover.Caller, name, reason string) (out Declared, err error) {
	if reason == "" || len(reason) > 500 {
		return out, ErrInvalid.With("Say why nobody can take the credentials away there any more, in up to 500 bytes.").At("reason")
	}
	id, err := l.targets.Named(ctx, c.Tenant, name)
	if err != nil {
		return out, err
	}
	op := guard.Op{Action: "lease.declare", Target: "target:" + name, Effect: guard.Deletes, Detail: map[string]any{"reason": reason, "checked": false}}
	err = l.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if c.Acting().Kind() != estover.UserKind {
			return ErrInvalid.With("People alone declare that a target is no more.")
		}
		out = Declared{}
		if out.Ended, err = endDeclared(ctx, tx.Tx, id, c.Acting()); err != nil {
			return err
		}
		if out.Waiting, err = declare(ctx, tx.Tx, id, c.Acting(), reason); err != nil {
			return err
		}
		tx.Note("ended", out.Ended)
		tx.Note("waiting", out.Waiting)
		if out.Ended == 0 && out.Waiting == 0 {
			mine, err := declaredBy(ctx, tx.Tx, id, c.Acting())
			if err == nil && mine > 0 {
				err = ErrSecond
			}
			return err
		}
		return nil
	})
	return out, err
}
