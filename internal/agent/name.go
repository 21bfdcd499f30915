package agent

import (
	"context"

	"estover.dev/internal/db"
)

// IDByName is the id of the agent with this name, retired ones too, or
// [ErrNotFound]. A name is for good, so whoever keeps the answer has nothing to
// follow.
func IDByName(ctx context.Context, tx *db.Tx, name string) (string, error) {
	a, err := findName(ctx, tx, name)
	return a.ID, err
}
