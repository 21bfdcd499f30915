package lease

import (
	"context"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/secret/engine"
)

// Lingers says what may go on at the targets of a session's leases that have not ended,
// or have since a time.
func (l *Leases) Lingers(ctx context.Context, tenant estover.TenantID, session string, since time.Time) ([]string, error) {
	return l.lingers(ctx, tenant, since, "session_id = ?", session)
}

// ContainedLingers says what may go on of leases that were contained and have not
// ended, or have since a time, and of which is says so. It names the kinds of the
// targets and not these, for who reads it may be a stranger.
func (l *Leases) ContainedLingers(ctx context.Context, tenant estover.TenantID, since time.Time, is func(agent, session, resource string) bool) (all []string, err error) {
	var ids []string
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		ids, err = containedAt(ctx, tx, since, is)
		return err
	})
	for _, id := range ids {
		if _, k := l.lingersAt(ctx, tenant, id); k.Lingers != "" {
			all = append(all, k.Title+": "+k.Lingers)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), err
}

// TargetLingers says what may go on after a revocation at a target, by its kind; "" if
// nothing does.
func (l *Leases) TargetLingers(ctx context.Context, tenant estover.TenantID, name string) string {
	id, err := l.targets.Named(ctx, tenant, name)
	if err != nil {
		return ""
	}
	if _, k := l.lingersAt(ctx, tenant, id); k.Lingers != "" {
		return k.Title + ": " + k.Lingers
	}
	return ""
}

// lingersAt is the name of a target and its kind; nothing, if it is no more.
func (l *Leases) lingersAt(ctx context.Context, tenant estover.TenantID, id string) (name string, k engine.Kind) {
	at, err := l.targets.Snapshot(ctx, tenant, id)
	if err != nil {
		return "", k
	}
	k, _ = l.targets.Kind(at.Kind)
	return at.Name, k
}

// lingers says what may go on at the targets of leases (Q8) that have not ended, or
// have since a time.
func (l *Leases) lingers(ctx context.Context, tenant estover.TenantID, since time.Time, where string, args ...any) (all []string, err error) {
	var ids []string
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		ids, err = targetsOf(ctx, tx, since, where, args...)
		return err
	})
	for _, id := range ids {
		if name, k := l.lingersAt(ctx, tenant, id); k.Lingers != "" {
			all = append(all, name+": "+k.Lingers)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), err
}
