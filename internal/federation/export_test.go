package federation

import (
	"context"

	"estover.dev"
	"estover.dev/internal/db"
)

// Store writes a trust that nobody has checked.
func Store(ctx context.Context, tx *db.Tx, s Spec) error {
	return insert(ctx, tx, Trust{ID: estover.NewID("tru"), Spec: s, CreatedAt: tx.Now(), ChangedAt: tx.Now(), Epoch: 1})
}

// Glob and CheckGlob are how patterns are read.
var (
	Glob      = glob
	CheckGlob = checkGlob
)
