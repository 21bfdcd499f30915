package access

import (
	"context"

	"estover.dev/internal/db"
)

// Holders are the ids of the agents that hold grants on a resource which have
// neither ended nor expired, in their order, from behind after.
func Holders(ctx context.Context, tx *db.Tx, resource, after string, limit int) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select distinct agent_id from access_grant
		where tenant_id = $1 and resource_id = $2 and agent_id > $3 and ended_at is null and (expires_at is null or expires_at > $4)
		order by agent_id limit $5`, tx.Tenant(), resource, after, tx.Now(), limit)
}

// Given reports whether an agent was ever given anything of a resource, also what
// is over.
func Given(ctx context.Context, tx *db.Tx, agent, resource string) (given bool, err error) {
	const some = "exists (select 1 from access_grant where tenant_id = $1 and agent_id = $2 and resource_id = $3 and ended_at is "
	err = tx.QueryRow(ctx, "select "+some+"null) or "+some+"not null)", tx.Tenant(), agent, resource).Scan(&given)
	return given, err
}
