package agent

import (
	"context"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// A Placed is an agent of a tenant.
type Placed struct {
	Tenant estover.TenantID
	ID     string
}

// ExpiredSince are the agents of all tenants whose time has run out since a
// moment, and that are not retired.
func ExpiredSince(ctx context.Context, tx *db.Tx, since time.Time) (all []Placed, err error) {
	rows, err := tx.Query(ctx, `select tenant_id, id from agent where expires_at > $1 and expires_at <= $2 and ended_at is null`, since, tx.Now())
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var p Placed
		if err := rows.Scan(&p.Tenant, &p.ID); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, rows.Err()
}
