package lease

import (
	"context"
	"time"

	"estover.dev/internal/db"
)

// Reached has fn be told of each step, and stop it there.
func (l *Leases) Reached(fn func(step string, done bool) error) { l.o.Reached = fn }

// BackOff is when a lease is tried again that has failed so many times.
var BackOff = backOff

// Claim takes a batch of leases of a target for a node, and gives their ids.
func Claim(ctx context.Context, tx *db.Tx, target, node string) (ids []string, err error) {
	batch, err := claim(ctx, tx, target, node, tx.Now().Add(time.Minute))
	for _, x := range batch {
		ids = append(ids, x.ID)
	}
	return ids, err
}
