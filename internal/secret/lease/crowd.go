package lease

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Crowd says whose leases are meant: those of agents, those of every agent if All
// is set, or those that open a resource.
type Crowd struct {
	Agents   []string
	All      bool
	Resource string
}

// where gives the conditions of a crowd's leases, of which there are several where
// it has more agents than a statement has arguments.
func (c Crowd) where(each func(where string, args []any) error) error {
	switch {
	case c.All:
		return each("agent_id <> ''", nil)
	case c.Resource != "":
		return each("resource_id = ?", []any{c.Resource})
	}
	for part := range slices.Chunk(c.Agents, 500) {
		where, args := in("agent_id", part)
		if err := each(where, args); err != nil {
			return err
		}
	}
	return nil
}

// ContainCrowd marks the leases of a crowd before all others.
func (l *Leases) ContainCrowd(ctx context.Context, tx *guard.Tx, c Crowd) (total int64, err error) {
	err = c.where(func(where string, args []any) error {
		n, raised, err := mark(ctx, tx.Tx, Contained, where, args...)
		total += n + raised
		return err
	})
	if total > 0 {
		tx.Touch(Marked, "*")
	}
	return total, err
}

// A Toll is how many leases of a crowd there are at one target.
type Toll struct {
	Target   string // its name; its id, if it is no more
	TargetID string
	Leases   int64 // that were open at the instant that was asked about, or came later
	Standing
	Oldest time.Time // since when the first that has not ended should have
}

// Tolls counts, by target, the leases of a crowd that had not ended at an instant,
// or have not now if that is zero.
func Tolls(ctx context.Context, tx *db.Tx, c Crowd, at time.Time) (all []Toll, err error) {
	found := map[string]int{}
	err = c.where(func(where string, args []any) error {
		some, err := tolls(ctx, tx, at, where, args...)
		for _, t := range some {
			n, have := found[t.TargetID]
			if !have {
				found[t.TargetID] = len(all)
				all = append(all, t)
				continue
			}
			sum := &all[n]
			sum.Leases, sum.Open, sum.Revoking, sum.Overdue = sum.Leases+t.Leases, sum.Open+t.Open, sum.Revoking+t.Revoking, sum.Overdue+t.Overdue
			if sum.Oldest.IsZero() || !t.Oldest.IsZero() && t.Oldest.Before(sum.Oldest) {
				sum.Oldest = t.Oldest
			}
		}
		return err
	})
	slices.SortFunc(all, func(a, b Toll) int {
		return cmp.Or(strings.Compare(a.Target, b.Target), strings.Compare(a.TargetID, b.TargetID))
	})
	return all, err
}
