package token

import (
	"context"

	"estover.dev/internal/db"
)

// Working are the clients on whose grants tokens may rest that have not run out,
// in the transaction's tenant.
func Working(ctx context.Context, tx *db.Tx) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select distinct client_id from oauth_grant where tenant_id = $1 and ended_at is null and (expires_at is null or expires_at > $2)`,
		tx.Tenant(), tx.Now())
}
