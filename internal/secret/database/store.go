package database

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"estover.dev/internal/db"
)

// encode is a value as JSON in a column; there is none that has no JSON.
func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("database: a value without JSON: " + err.Error())
	}
	return string(b)
}

// most is how many configurations or roles one list holds.
const most = 10_000

func findConfig(ctx context.Context, tx *db.Tx, mount, name string) (*Config, error) {
	x := &Config{}
	var spec string
	err := tx.QueryRow(ctx, `select name, target, admin, spec, epoch from database_config where tenant_id = $1 and mount_id = $2 and name = $3`, tx.Tenant(), mount, name).
		Scan(&x.Name, &x.Target, &x.Admin, &spec, &x.epoch)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrNoConfig
	}
	if err != nil {
		return nil, err
	}
	return x, json.Unmarshal([]byte(spec), x)
}

func configNames(ctx context.Context, tx *db.Tx, mount string) ([]string, error) {
	return db.AllOf[string](ctx, tx, fmt.Sprintf(`select name from database_config where tenant_id = $1 and mount_id = $2 order by name limit %d`, most), tx.Tenant(), mount)
}

// putConfig stores a configuration, unless another has been stored since it was
// read.
func putConfig(ctx context.Context, tx *db.Tx, mount string, x *Config) error {
	n, err := tx.Exec(ctx, `insert into database_config (tenant_id, mount_id, name, target, admin, spec, changed_at, epoch) values ($1, $2, $3, $4, $5, $6, $7, $8)
		on conflict (tenant_id, mount_id, name) do update set spec = excluded.spec, changed_at = excluded.changed_at, epoch = excluded.epoch
		where database_config.epoch = excluded.epoch - 1`, tx.Tenant(), mount, x.Name, x.Target, x.Admin, encode(x), tx.Now(), x.epoch+1)
	if err == nil && n == 0 {
		err = ErrBusy
	}
	return err
}

// takeTurn has nobody else write a configuration for a while, unless somebody does.
func takeTurn(ctx context.Context, tx *db.Tx, mount, name, holder string, life time.Duration) error {
	n, err := tx.Exec(ctx, `insert into database_turn (tenant_id, mount_id, name, holder, until) values ($1, $2, $3, $4, $5)
		on conflict (tenant_id, mount_id, name) do update set holder = excluded.holder, until = excluded.until
		where database_turn.until <= $6`, tx.Tenant(), mount, name, holder, tx.Now().Add(life), tx.Now())
	if err == nil && n == 0 {
		err = ErrBusy
	}
	return err
}

func giveTurn(ctx context.Context, tx *db.Tx, mount, name, holder string) error {
	_, err := tx.Exec(ctx, `delete from database_turn where tenant_id = $1 and mount_id = $2 and name = $3 and holder = $4`, tx.Tenant(), mount, name, holder)
	return err
}

func dropConfig(ctx context.Context, tx *db.Tx, mount, name string) error {
	_, err := tx.Exec(ctx, `delete from database_config where tenant_id = $1 and mount_id = $2 and name = $3`, tx.Tenant(), mount, name)
	return err
}

func scanRole(columns func(...any) error) (*Role, error) {
	r := &Role{}
	var spec string
	err := columns(&r.Name, &r.Lease, &spec, &r.epoch)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrNoRole
	}
	if err != nil {
		return nil, err
	}
	return r, json.Unmarshal([]byte(spec), r)
}

func findRole(ctx context.Context, tx *db.Tx, mount, name string) (*Role, error) {
	return scanRole(tx.QueryRow(ctx, `select name, lease_role, spec, epoch from database_role where tenant_id = $1 and mount_id = $2 and name = $3 and kind = 'dynamic'`, tx.Tenant(), mount, name).Scan)
}

func allRoles(ctx context.Context, tx *db.Tx, mount string) ([]*Role, error) {
	return db.All(ctx, tx, scanRole, fmt.Sprintf(`select name, lease_role, spec, epoch from database_role where tenant_id = $1 and mount_id = $2 and kind = 'dynamic' order by name limit %d`, most), tx.Tenant(), mount)
}

func putRole(ctx context.Context, tx *db.Tx, mount string, r *Role) error {
	n, err := tx.Exec(ctx, `insert into database_role (tenant_id, mount_id, name, kind, lease_role, spec, changed_at, epoch) values ($1, $2, $3, 'dynamic', $4, $5, $6, $7)
		on conflict (tenant_id, mount_id, name) do update set spec = excluded.spec, changed_at = excluded.changed_at, epoch = excluded.epoch
		where database_role.epoch = excluded.epoch - 1 and database_role.kind = 'dynamic'`, tx.Tenant(), mount, r.Name, r.Lease, encode(r), tx.Now(), r.epoch+1)
	if err == nil && n == 0 {
		err = ErrBusy
	}
	return err
}

func dropRole(ctx context.Context, tx *db.Tx, mount, name string) error {
	_, err := tx.Exec(ctx, `delete from database_role where tenant_id = $1 and mount_id = $2 and name = $3`, tx.Tenant(), mount, name)
	return err
}

func scanStatic(columns func(...any) error) (*Static, error) {
	r := &Static{}
	var spec string
	err := columns(&r.Name, &r.Path, &spec, &r.epoch)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrNoRole
	}
	if err != nil {
		return nil, err
	}
	return r, json.Unmarshal([]byte(spec), r)
}

func findStatic(ctx context.Context, tx *db.Tx, mount, name string) (*Static, error) {
	return scanStatic(tx.QueryRow(ctx, `select name, lease_role, spec, epoch from database_role where tenant_id = $1 and mount_id = $2 and name = $3 and kind = 'static'`, tx.Tenant(), mount, name).Scan)
}

func allStatic(ctx context.Context, tx *db.Tx, mount string) ([]*Static, error) {
	return db.All(ctx, tx, scanStatic, fmt.Sprintf(`select name, lease_role, spec, epoch from database_role where tenant_id = $1 and mount_id = $2 and kind = 'static' order by name limit %d`, most), tx.Tenant(), mount)
}

func putStatic(ctx context.Context, tx *db.Tx, mount string, r *Static) error {
	n, err := tx.Exec(ctx, `insert into database_role (tenant_id, mount_id, name, kind, lease_role, spec, changed_at, epoch) values ($1, $2, $3, 'static', $4, $5, $6, $7)
		on conflict (tenant_id, mount_id, name) do update set spec = excluded.spec, changed_at = excluded.changed_at, epoch = excluded.epoch
		where database_role.epoch = excluded.epoch - 1 and database_role.kind = 'static'`, tx.Tenant(), mount, r.Name, r.Path, encode(r), tx.Now(), r.epoch+1)
	if err == nil && n == 0 {
		err = ErrBusy
	}
	return err
}
