package session

import (
	"context"

	"estover.dev/internal/db"
)

// Load is a session as it is in a transaction, also one that has ended. The text
// of its task stays sealed.
func Load(ctx context.Context, tx *db.Tx, id string) (*Session, error) { return find(ctx, tx, id) }
