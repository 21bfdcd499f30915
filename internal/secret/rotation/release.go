package rotation

import (
	"context"

	"estover.dev/internal/db"
)

// Release gives back, in all tenants, the rotations that a node had taken on which
// is no more, and says that it has nothing open.
func (x *Rotations) Release(ctx context.Context, node string) error {
	return x.Guard.DB().Do(ctx, "", func(tx *db.Tx) error {
		if _, err := tx.Exec(ctx, `update rotation set held_by = '', held_until = 0, generation = generation + 1 where held_by = $1 and ended_at is null`, node); err != nil {
			return err
		}
		return absent(ctx, tx, node)
	})
}
