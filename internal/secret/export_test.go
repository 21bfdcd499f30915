package secret

import (
	"context"

	"estover.dev"
	"estover.dev/internal/db"
)

// InFirstForm writes the row of a secret as it was before it spoke of other
// versions.
func (s *Secrets) InFirstForm(ctx context.Context, tenant estover.TenantID, path string) error {
	r, err := s.readAll(ctx, tenant, path)
	if err != nil {
		return err
	}
	r.past = nil
	return s.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, "update secret set past = null, mac = $3 where tenant_id = $1 and id = $2", tx.Tenant(), r.ID, s.mac(tenant, r))
		return err
	})
}
