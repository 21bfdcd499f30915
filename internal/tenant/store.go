package tenant

import (
	"context"
	"errors"

	"estover.dev"
	"estover.dev/internal/db"
)

const columns = "id, title, status, reason, private_networks, created_at, created_by, changed_at, erased_at"

func scan(columns func(...any) error) (t Tenant, err error) {
	err = columns(&t.Name, &t.Title, &t.Status, &t.Reason, &t.PrivateNetworks, &t.CreatedAt, &t.CreatedBy, &t.ChangedAt, &t.ErasedAt)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	return t, err
}

func find(ctx context.Context, tx *db.Tx, name estover.TenantID, lock string) (Tenant, error) {
	return scan(tx.QueryRow(ctx, "select "+columns+" from tenant where tenant_id = $1 and id = $2"+lock, tx.Tenant(), name).Scan)
}

func list(ctx context.Context, tx *db.Tx, after string, limit int) ([]Tenant, error) {
	return db.All(ctx, tx, scan, "select "+columns+" from tenant where tenant_id = $1 and id > $2 order by id limit $3", tx.Tenant(), after, limit)
}

func allNames(ctx context.Context, tx *db.Tx) ([]estover.TenantID, error) {
	return db.AllOf[estover.TenantID](ctx, tx, "select id from tenant where tenant_id = $1 and erased_at is null order by id", tx.Tenant())
}

// insert adds a tenant, unless there is one of the name or there are too many.
// The default one's row is locked, so that of many that are added at once none
// goes beyond the bound.
func insert(ctx context.Context, tx *db.Tx, t Tenant) error {
	if _, err := find(ctx, tx, estover.DefaultTenant, tx.ForUpdate()); err != nil {
		return err
	}
	var n int
	if err := tx.QueryRow(ctx, "select count(*) from tenant where tenant_id = $1", tx.Tenant()).Scan(&n); err != nil {
		return err
	}
	if n >= MaxTenants {
		return ErrTooMany
	}
	added, err := tx.Exec(ctx, `insert into tenant (tenant_id, `+columns+`) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing`,
		tx.Tenant(), t.Name, t.Title, t.Status, t.Reason, t.PrivateNetworks, t.CreatedAt, t.CreatedBy, t.ChangedAt, t.ErasedAt)
	if err == nil && added == 0 {
		err = ErrTaken
	}
	return err
}

func update(ctx context.Context, tx *db.Tx, t Tenant) error {
	_, err := tx.Exec(ctx, "update tenant set title = $3, status = $4, reason = $5, private_networks = $6, changed_at = $7, erased_at = $8 where tenant_id = $1 and id = $2",
		tx.Tenant(), t.Name, t.Title, t.Status, t.Reason, t.PrivateNetworks, t.ChangedAt, t.ErasedAt)
	return err
}
