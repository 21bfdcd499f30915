package incident

import (
	"context"
	"maps"
	"slices"

	"estover.dev/internal/db"
)

// Covers says what a containment is about: its target, and the agents that it
// covers; nil for all of them, or where it is no agents that are cut off.
func (i *Incidents) Covers(ctx context.Context, tx *db.Tx, id string) (Target, []string, error) {
	c, err := find(ctx, tx, id)
	if err != nil {
		return Target{}, nil, err
	}
	covered, err := i.covered(ctx, tx, c.Target)
	if err != nil || covered == nil {
		return c.Target, nil, err
	}
	return c.Target, slices.Sorted(maps.Keys(covered)), nil
}
