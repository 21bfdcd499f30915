package hold

import (
	"context"
	"errors"

	"estover.dev"
	"estover.dev/internal/db"
)

const columns = "id, scope, target, reason, raised_by, raised_at"

func scan(columns func(...any) error) (h Hold, err error) {
	err = columns(&h.ID, &h.Scope, &h.Target, &h.Reason, &h.By, &h.At)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	return h, err
}

func insert(ctx context.Context, tx *db.Tx, h Hold) error {
	_, err := tx.Exec(ctx, "insert into hold (tenant_id, "+columns+") values ($1, $2, $3, $4, $5, $6, $7)",
		tx.Tenant(), h.ID, h.Scope, h.Target, h.Reason, h.By, h.At)
	return err
}

// Find is a hold that is not lifted. Of two who lift it one is told that it is
// gone.
func Find(ctx context.Context, tx *db.Tx, id string) (Hold, error) {
	return scan(tx.QueryRow(ctx, "select "+columns+" from hold where tenant_id = $1 and id = $2 and lifted_at is null", tx.Tenant(), id).Scan)
}

func lift(ctx context.Context, tx *db.Tx, id string, by estover.Subject) error {
	n, err := tx.Exec(ctx, "update hold set lifted_at = $3, lifted_by = $4 where tenant_id = $1 and id = $2 and lifted_at is null",
		tx.Tenant(), id, tx.Now(), by)
	if err == nil && n == 0 {
		return ErrNotFound
	}
	return err
}

// standing are the holds that a tenant keeps.
func standing(ctx context.Context, tx *db.Tx, tenant estover.TenantID) ([]Hold, error) {
	return db.All(ctx, tx, scan, "select "+columns+" from hold where tenant_id = $1 and lifted_at is null order by raised_at, id", tenant)
}

// reaching are the holds of the default tenant that cover the transaction's.
func reaching(ctx context.Context, tx *db.Tx) ([]Hold, error) {
	return db.All(ctx, tx, scan, "select "+columns+` from hold
		where tenant_id = $1 and lifted_at is null and (scope = 'everything' or scope = 'tenant' and target = $2) order by raised_at, id`,
		estover.DefaultTenant, tx.Tenant())
}

func on(ctx context.Context, tx *db.Tx, scope Scope, target string) ([]Hold, error) {
	return db.All(ctx, tx, scan, "select "+columns+" from hold where tenant_id = $1 and scope = $2 and target = $3 and lifted_at is null order by raised_at, id",
		tx.Tenant(), scope, target)
}
