package secret

import (
	"context"

	"estover.dev"
	"estover.dev/internal/db"
)

// PathOf is the path of a secret by its id, for who has seen the id of one in the
// log.
func (s *Secrets) PathOf(ctx context.Context, tenant estover.TenantID, id string) (path string, err error) {
	err = s.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		path, err = findPath(ctx, tx, id)
		return err
	})
	return path, err
}
