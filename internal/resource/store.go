package resource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"estover.dev/internal/db"
)

const resourceColumns = "id, spec, managed_by, created_at, changed_at, ended_at, epoch"

func scanResource(scan func(...any) error) (r Resource, err error) {
	var spec string
	err = scan(&r.ID, &spec, &r.ManagedBy, &r.CreatedAt, &r.ChangedAt, &r.EndedAt, &r.Epoch)
	if errors.Is(err, db.ErrNoRows) {
		return r, ErrNotFound
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(spec), &r.Spec); err != nil {
		return r, fmt.Errorf("the specification of resource %s: %w", r.ID, err)
	}
	return r, nil
}

func find(ctx context.Context, tx *db.Tx, id string) (Resource, error) {
	return scanResource(tx.QueryRow(ctx, "select "+resourceColumns+" from resource where tenant_id = $1 and id = $2 and ended_at is null", tx.Tenant(), id).Scan)
}

func findName(ctx context.Context, tx *db.Tx, name string) (Resource, error) {
	return scanResource(tx.QueryRow(ctx, "select "+resourceColumns+" from resource where tenant_id = $1 and name = $2 and ended_at is null", tx.Tenant(), name).Scan)
}

// lock is find, and nobody else changes the row until the transaction ends.
func lock(ctx context.Context, tx *db.Tx, id string) (Resource, error) {
	return scanResource(tx.QueryRow(ctx, "select "+resourceColumns+" from resource where tenant_id = $1 and id = $2 and ended_at is null"+tx.ForUpdate(), tx.Tenant(), id).Scan)
}

// keep has the row stay as it is until the transaction ends. SQLite has one writer.
func keep(ctx context.Context, tx *db.Tx, id string) error {
	share := ""
	if tx.ForUpdate() != "" {
		share = " for share"
	}
	there, err := db.Exists(ctx, tx, "select 1 from resource where tenant_id = $1 and id = $2 and ended_at is null"+share, tx.Tenant(), id)
	if err == nil && !there {
		return ErrNotFound
	}
	return err
}

func lockName(ctx context.Context, tx *db.Tx, name string) (Resource, error) {
	return scanResource(tx.QueryRow(ctx, "select "+resourceColumns+" from resource where tenant_id = $1 and name = $2 and ended_at is null"+tx.ForUpdate(), tx.Tenant(), name).Scan)
}

func list(ctx context.Context, tx *db.Tx, f Filter, after string, limit int) ([]Resource, error) {
	return db.All(ctx, tx, scanResource, "select "+resourceColumns+` from resource
		where tenant_id = $1 and name > $2 and ended_at is null and ($3 = '' or managed_by = $3) order by name limit $4`,
		tx.Tenant(), after, f.ManagedBy, limit)
}

// insert adds a resource, unless another of the name was added meanwhile.
func insert(ctx context.Context, tx *db.Tx, r Resource) error {
	spec, err := json.Marshal(r.Spec)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `insert into resource (tenant_id, id, name, spec, managed_by, created_at, changed_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing`,
		tx.Tenant(), r.ID, r.Name, string(spec), r.ManagedBy, r.CreatedAt, r.ChangedAt, r.Epoch)
	if err == nil && n == 0 {
		return db.ErrStale
	}
	return err
}

func update(ctx context.Context, tx *db.Tx, r Resource) error {
	spec, err := json.Marshal(r.Spec)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `update resource set spec = $3, changed_at = $4, ended_at = $5, epoch = $6
		where tenant_id = $1 and id = $2`, tx.Tenant(), r.ID, string(spec), r.ChangedAt, r.EndedAt, r.Epoch)
	return err
}

// setHosts makes the hosts of a resource those that it has, unless one of them
// is another's.
func setHosts(ctx context.Context, tx *db.Tx, r Resource) error {
	if _, err := tx.Exec(ctx, "delete from resource_host where tenant_id = $1 and resource_id = $2", tx.Tenant(), r.ID); err != nil {
		return err
	}
	for _, h := range r.Hosts {
		n, err := tx.Exec(ctx, `insert into resource_host (tenant_id, host, resource_id) values ($1, $2, $3) on conflict do nothing`, tx.Tenant(), h, r.ID)
		if err != nil {
			return err
		}
		if n == 1 {
			continue
		}
		var name string
		err = tx.QueryRow(ctx, `select r.name from resource_host h join resource r on r.tenant_id = h.tenant_id and r.id = h.resource_id
			where h.tenant_id = $1 and h.host = $2`, tx.Tenant(), h).Scan(&name)
		if err != nil && !errors.Is(err, db.ErrNoRows) {
			return err
		}
		return ErrHostTaken.With("The resource %s has the host %s. A host and port belong to one resource.", name, h).At("hosts")
	}
	return nil
}

func findHost(ctx context.Context, tx *db.Tx, host string) (id string, err error) {
	err = tx.QueryRow(ctx, "select resource_id from resource_host where tenant_id = $1 and host = $2", tx.Tenant(), host).Scan(&id)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrNotFound
	}
	return id, err
}
