package lease

import (
	"context"
	"slices"

	"estover.dev"
	"estover.dev/internal/guard"
)

// A Which says which leases are revoked: exactly one of its members is set.
type Which struct {
	ID      string `json:"id,omitempty"`
	Session string `json:"session,omitempty"`
	Agent   string `json:"agent,omitempty"`
	Role    string `json:"role,omitempty"`
	Target  string `json:"target,omitempty"` // its name
	All     bool   `json:"all,omitempty"`
}

// Revoked is what revoking has done.
type Revoked struct {
	Count   int64    `json:"count"`             // leases that were live, or about to be, and are no more
	Lingers []string `json:"lingers,omitempty"` // what may go on at the targets although it has ended here
}

// Revoke ends leases: from its return on none of them is good for anything here,
// and what there is at the targets is taken away at once.
func (l *Leases) Revoke(ctx context.Context, c estover.Caller, w Which, reason string) (out Revoked, err error) {
	var on, where string
	var args []any
	n := 0
	pick := func(is bool, target, condition string, v ...any) {
		if is {
			n++
			on, where, args = target, condition, v
		}
	}
	pick(w.ID != "", "lease:"+w.ID, "id = ?", w.ID)
	pick(w.Session != "", "session:"+w.Session, "session_id = ?", w.Session)
	pick(w.Agent != "", "agent:"+w.Agent, "agent_id = ?", w.Agent)
	pick(w.Role != "", "lease_role:"+w.Role, "role = ?", w.Role)
	pick(w.All, "lease:*", "id <> ''")
	if w.Target != "" {
		id, err := l.targets.Named(ctx, c.Tenant, w.Target)
		if err != nil {
			return out, err
		}
		pick(true, "target:"+w.Target, "target_id = ?", id)
	}
	if n != 1 {
		return out, ErrInvalid.With("Say which leases are revoked: one of id, session, agent, role, target and all.")
	}
	if len(reason) > 500 {
		return out, ErrInvalid.With("The reason has at most 500 bytes.").At("reason")
	}
	begun := l.guard.DB().Now()
	out.Count, err = l.markWhere(ctx, c, on, w.Session, ByHand, reason, where, args...)
	if err != nil {
		return out, err
	}
	if w.ID != "" && out.Count == 0 {
		// One that has ended before is gone, as was asked; one that is not there is not.
		if _, err := l.read(ctx, c.Tenant, w.ID); err != nil {
			return out, err
		}
	}
	out.Lingers, err = l.lingers(ctx, c.Tenant, begun, where, args...)
	return out, err
}

// markWhere marks leases in a guarded transaction, and wakes the workers.
func (l *Leases) markWhere(ctx context.Context, c estover.Caller, on, session string, cause Cause, reason, where string, args ...any) (n int64, err error) {
	op := guard.Op{Action: "lease.revoke", Target: on, Session: session, Effect: guard.Deletes, Detail: map[string]any{"cause": cause}}
	if reason != "" {
		op.Detail["reason"] = reason
	}
	err = l.guard.Do(ctx, c, op, func(tx *guard.Tx) (err error) {
		n, _, err = mark(ctx, tx.Tx, cause, where, args...)
		tx.Note("leases", n)
		tx.Touch(Marked, "*")
		return err
	})
	l.stir()
	return n, err
}

// Contain marks the leases of agents before all others, in the transaction that
// contains them. It counts those too that were on their way out, and are before
// others from here on.
func (l *Leases) Contain(ctx context.Context, tx *guard.Tx, agents []string) (int, error) {
	return l.markIn(ctx, tx, Contained, "agent_id", agents)
}

// ContainSessions marks the leases of sessions before all others, whoever holds
// them.
func (l *Leases) ContainSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	return l.markIn(ctx, tx, Contained, "session_id", sessions)
}

// ContainResource marks the leases that open a resource before all others.
func (l *Leases) ContainResource(ctx context.Context, tx *guard.Tx, resource string) (int, error) {
	return l.markIn(ctx, tx, Contained, "resource_id", []string{resource})
}

// markIn marks leases inside of a transaction that does more.
func (l *Leases) markIn(ctx context.Context, tx *guard.Tx, cause Cause, column string, values []string) (int, error) {
	total := int64(0)
	for part := range slices.Chunk(values, 500) {
		where, args := in(column, part)
		n, raised, err := mark(ctx, tx.Tx, cause, where, args...)
		if err != nil {
			return 0, err
		}
		total += n + raised
	}
	if total > 0 {
		tx.Touch(Marked, "*")
	}
	return int(total), nil
}
