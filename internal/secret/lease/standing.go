package lease

import (
	"context"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// Standing counts leases that have not ended.
type Standing struct {
	Open     int64 `json:"open"`     // all of them
	Revoking int64 `json:"revoking"` // that are on their way out
	Overdue  int64 `json:"overdue"`  // that should be gone
}

// Standing counts the leases that have not ended: one, or those of a role, a
// session, an agent or a target, or all.
func (l *Leases) Standing(ctx context.Context, tenant estover.TenantID, f Filter) (s Standing, err error) {
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		s, err = StandingIn(ctx, tx, f)
		return err
	})
	return s, err
}

// StandingIn is [Leases.Standing] inside of a transaction.
func StandingIn(ctx context.Context, tx *db.Tx, f Filter) (Standing, error) {
	switch {
	case f.ID != "":
		return standing(ctx, tx, "id = ?", f.ID)
	case f.Role != "":
		return standing(ctx, tx, "role = ?", f.Role)
	case f.Session != "":
		return standing(ctx, tx, "session_id = ?", f.Session)
	case f.Agent != "":
		return standing(ctx, tx, "agent_id = ?", f.Agent)
	case f.Target != "":
		return standing(ctx, tx, "target_id = ?", f.Target)
	}
	return standing(ctx, tx, "id <> ''")
}

// Everywhere counts the leases of all tenants that have not ended.
func (l *Leases) Everywhere(ctx context.Context) (s Standing, err error) {
	err = l.guard.DB().View(ctx, "", func(tx *db.Tx) error {
		s, err = everywhere(ctx, tx)
		return err
	})
	return s, err
}

// Overdue are those of the agents of which leases should be gone and are not.
func (l *Leases) Overdue(ctx context.Context, tenant estover.TenantID, agents []string) (map[string]bool, error) {
	if len(agents) == 0 {
		return nil, nil
	}
	overdue := map[string]bool{}
	err := l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		for _, id := range agents {
			s, err := StandingIn(ctx, tx, Filter{Agent: id})
			if err != nil {
				return err
			}
			overdue[id] = s.Overdue > 0
		}
		return nil
	})
	return overdue, err
}

// Left is how many leases there are that were contained and are not gone at their
// targets, of which is says so by the agent, the session and the resource.
func (l *Leases) Left(ctx context.Context, tenant estover.TenantID, is func(agent, session, resource string) bool) (n int64, err error) {
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		n, err = containedLeft(ctx, tx, is)
		return err
	})
	return n, err
}

// ErrNotGone is returned while leases that are to be gone are not.
var ErrNotGone = &estover.Error{Kind: estover.Unavailable, Code: "leases_not_gone", Detail: "Leases that are to be gone have not ended yet. They are taken away again and again; look with `estover secret lease list --overdue`."}

// Settled returns when all leases that a filter names have ended: so the end of a
// session is the end of what was made for it. It is an error if that takes longer
// than ctx.
func (l *Leases) Settled(ctx context.Context, tenant estover.TenantID, f Filter) error {
	for {
		s, err := l.Standing(ctx, tenant, f)
		if err != nil {
			return err
		}
		if s.Open == 0 {
			return nil
		}
		l.stir()
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return ErrNotGone.With("%d leases that are to be gone have not ended yet. They are taken away again and again; look with `estover secret lease list --open`.", s.Open)
		}
	}
}

// Gone is [Leases.Settled] for what was revoked.
func (l *Leases) Gone(ctx context.Context, tenant estover.TenantID, w Which) error {
	f := Filter{ID: w.ID, Session: w.Session, Agent: w.Agent, Role: w.Role}
	if w.Target != "" {
		id, err := l.targets.Named(ctx, tenant, w.Target)
		if err != nil {
			return err
		}
		f.Target = id
	}
	return l.Settled(ctx, tenant, f)
}
