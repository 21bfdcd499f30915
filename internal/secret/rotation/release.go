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

// Rotated is how many rotations of a tenant there are at a target.
func Rotated(ctx context.Context, tx *db.Tx, target string) (n int64, err error) {
	err = tx.QueryRow(ctx, `select count(*) from rotation where tenant_id = $1 and target_id = $2 and ended_at is null`, tx.Tenant(), target).Scan(&n)
	return n, err
}

// keep keeps the target of a spec from being removed before the transaction ends,
// unless it has been: what is begun there is counted by who removes it ([Rotated]).
// Certificates are made at none.
func (x *Rotations) keep(ctx context.Context, tx *db.Tx, s Spec) error {
	if s.Kind == Certificate || x.Keep == nil {
		return nil
	}
	return x.Keep(ctx, tx, s.Target)
}
