package device

import (
	"context"
	"encoding/json"

	"estover.dev/internal/db"
)

const columns = `tenant_id, id, path, kind, description, options, local, created_at, failure, failed_at`

func scan(columns func(...any) error) (x Device, err error) {
	var options string
	err = columns(&x.tenant, &x.ID, &x.Path, &x.Kind, &x.Description, &options, &x.Local, &x.CreatedAt, &x.Failure, &x.FailedAt)
	if err == nil {
		err = json.Unmarshal([]byte(options), &x.Options)
	}
	return x, err
}

// all reads the devices of an organisation.
func all(ctx context.Context, tx *db.Tx) ([]Device, error) {
	return db.All(ctx, tx, scan, `select `+columns+` from audit_device where tenant_id = $1 order by path`, tx.Tenant())
}

// everybodys reads those of all organisations, for whoever writes to them.
func everybodys(ctx context.Context, tx *db.Tx) ([]Device, error) {
	return db.All(ctx, tx, scan, `select `+columns+` from audit_device order by tenant_id, id`)
}

func insert(ctx context.Context, tx *db.Tx, x *Device) error {
	options, err := json.Marshal(x.Options)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into audit_device (tenant_id, id, path, kind, description, options, local, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8)`,
		tx.Tenant(), x.ID, x.Path, x.Kind, x.Description, string(options), x.Local, x.CreatedAt)
	return err
}

func remove(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `delete from audit_device where tenant_id = $1 and id = $2`, tx.Tenant(), id)
	return err
}

// setFailure notes why a device cannot be written to, or that it can.
func setFailure(ctx context.Context, tx *db.Tx, id, failure string) error {
	var at any
	if failure != "" {
		at = tx.Now()
	}
	_, err := tx.Exec(ctx, `update audit_device set failure = $3, failed_at = $4 where tenant_id = $1 and id = $2`, tx.Tenant(), id, failure, at)
	return err
}

// headers are those that were noted, by their names; true for one that is hashed. One
// that may open doors is, whatever was said when it stood in no lines.
func headers(ctx context.Context, tx *db.Tx) (map[string]bool, error) {
	rows, err := tx.Query(ctx, `select name, hashed from audit_header where tenant_id = $1`, tx.Tenant())
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	have := map[string]bool{}
	for rows.Next() {
		var h Header
		if err := rows.Scan(&h.Name, &h.Hashed); err != nil {
			return nil, err
		}
		have[h.Name] = h.Hashed || opens(h.Name)
	}
	return have, rows.Err()
}

// findLook reads what the requests of an organisation are looked at for.
func findLook(ctx context.Context, tx *db.Tx) (v look, err error) {
	list, err := all(ctx, tx)
	if err != nil {
		return v, err
	}
	for _, x := range list {
		v.devices = append(v.devices, x.ID)
	}
	if v.devices != nil {
		v.headers, err = headers(ctx, tx)
	}
	return v, err
}

func putHeader(ctx context.Context, tx *db.Tx, h Header) error {
	_, err := tx.Exec(ctx, `insert into audit_header (tenant_id, name, hashed) values ($1, $2, $3)
		on conflict (tenant_id, name) do update set hashed = excluded.hashed`, tx.Tenant(), h.Name, h.Hashed)
	return err
}

func dropHeader(ctx context.Context, tx *db.Tx, name string) error {
	_, err := tx.Exec(ctx, `delete from audit_header where tenant_id = $1 and name = $2`, tx.Tenant(), name)
	return err
}
