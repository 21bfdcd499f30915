package access

import (
	"context"
	"errors"

	"estover.dev/internal/db"
)

const grantColumns = `id, name, agent_id, resource_id, actions, purposes, class, starts_at, expires_at,
	managed_by, created_at, created_by, ended_at, coalesce(end_reason, ''), epoch`

// scanner is a row of a query, or the only one.
type scanner interface{ Scan(dest ...any) error }

func scanGrant(tx *db.Tx, row scanner) (g Grant, err error) {
	err = row.Scan(&g.ID, &g.Name, &g.Agent, &g.Resource, &g.Actions, &g.Purposes, &g.Class, &g.StartsAt, &g.ExpiresAt,
		&g.ManagedBy, &g.CreatedAt, &g.CreatedBy, &g.EndedAt, &g.EndReason, &g.Epoch)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	g.State = g.StateAt(tx.Now())
	return g, err
}

func scanGrants(tx *db.Tx, rows *db.Rows) (grants []Grant, err error) {
	defer rows.Close()
	for rows.Next() {
		g, err := scanGrant(tx, rows)
		if err != nil {
			return nil, err
		}
		grants = append(grants, g)
	}
	return grants, rows.Err()
}

func find(ctx context.Context, tx *db.Tx, id string) (Grant, error) {
	return scanGrant(tx, tx.QueryRow(ctx, "select "+grantColumns+" from access_grant where tenant_id = $1 and id = $2", tx.Tenant(), id))
}

const byName = "select " + grantColumns + " from access_grant where tenant_id = $1 and name = $2 and ended_at is null"

func findName(ctx context.Context, tx *db.Tx, name string) (Grant, error) {
	return scanGrant(tx, tx.QueryRow(ctx, byName, tx.Tenant(), name))
}

// lockName is findName, and nobody else changes the row until the transaction
// ends.
func lockName(ctx context.Context, tx *db.Tx, name string) (Grant, error) {
	return scanGrant(tx, tx.QueryRow(ctx, byName+tx.ForUpdate(), tx.Tenant(), name))
}

// Load is what a [guard.Cache] of the kind "grants" calls: the grants of an
// agent that have neither ended nor expired, the oldest first. The + 0 keeps
// SQLite from going through the grants of all agents in their order.
func Load(ctx context.Context, tx *db.Tx, agent string) ([]Grant, error) {
	rows, err := tx.Query(ctx, "select "+grantColumns+` from access_grant
		where tenant_id = $1 and agent_id = $2 and ended_at is null and (expires_at is null or expires_at > $3)
		order by created_at + 0, id`, tx.Tenant(), agent, tx.Now())
	if err != nil {
		return nil, err
	}
	return scanGrants(tx, rows)
}

func list(ctx context.Context, tx *db.Tx, f Filter, at int64, id string, limit int) ([]Grant, error) {
	rows, err := tx.Query(ctx, "select "+grantColumns+` from access_grant
		where tenant_id = $1 and (created_at, id) < ($2, $3)
		and ($4 = '' or agent_id = $4) and ($5 = '' or resource_id = $5) and ($6 = '' or managed_by = $6)
		and (not $7 or ended_at is null and (expires_at is null or expires_at > $8))
		order by created_at desc, id desc limit $9`,
		tx.Tenant(), at, id, f.Agent, f.Resource, f.ManagedBy, f.Live, tx.Now(), limit)
	if err != nil {
		return nil, err
	}
	return scanGrants(tx, rows)
}

// insert adds a grant, unless another of the name was added meanwhile.
func insert(ctx context.Context, tx *db.Tx, g Grant) error {
	n, err := tx.Exec(ctx, `insert into access_grant (tenant_id, id, name, agent_id, resource_id, actions, purposes, class,
			starts_at, expires_at, managed_by, created_at, created_by, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) on conflict do nothing`,
		tx.Tenant(), g.ID, g.Name, g.Agent, g.Resource, g.Actions, g.Purposes, g.Class,
		g.StartsAt, g.ExpiresAt, g.ManagedBy, g.CreatedAt, g.CreatedBy, g.Epoch)
	if err == nil && n == 0 {
		return db.ErrStale
	}
	return err
}

func end(ctx context.Context, tx *db.Tx, id, reason string) error {
	n, err := tx.Exec(ctx, `update access_grant set ended_at = $3, end_reason = $4, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and ended_at is null`, tx.Tenant(), id, tx.Now(), reason)
	if err == nil && n == 0 {
		return ErrEnded
	}
	return err
}

// endAll ends the grants that have this value in a column.
func endAll(ctx context.Context, tx *db.Tx, column, value, reason string) (ids, agents []string, err error) {
	rows, err := tx.Query(ctx, `update access_grant set ended_at = $3, end_reason = $4, epoch = epoch + 1
		where tenant_id = $1 and `+column+` = $2 and ended_at is null returning id, agent_id`, tx.Tenant(), value, tx.Now(), reason)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, agent string
		if err := rows.Scan(&id, &agent); err != nil {
			return nil, nil, err
		}
		ids, agents = append(ids, id), append(agents, agent)
	}
	return ids, agents, rows.Err()
}
