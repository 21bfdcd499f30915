package token

import (
	"context"

	"estover.dev/internal/db"
)

// Working are the clients on whose grants tokens may rest that have not run out,
// in the transaction's tenant.
func Working(ctx context.Context, tx *db.Tx) (clients []string, err error) {
	rows, err := tx.Query(ctx, `select distinct client_id from oauth_grant where tenant_id = $1 and ended_at is null and (expires_at is null or expires_at > $2)`,
		tx.Tenant(), tx.Now())
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var client string
		if err := rows.Scan(&client); err != nil {
			return nil, err
		}
		clients = append(clients, client)
	}
	return clients, rows.Err()
}
