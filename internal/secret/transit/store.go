package transit

import (
	"context"
	"encoding/json"
	"strings"

	"estover.dev"
	"estover.dev/internal/db"
)

const columns = `id, mount, name, type, spec, latest_version, rotates_at, created_at, epoch`

func scan(columns func(...any) error) (k Key, err error) {
	var spec string
	if err := columns(&k.ID, &k.Mount, &k.Name, &k.Type, &spec, &k.Latest, &k.RotatesAt, &k.CreatedAt, &k.epoch); err != nil {
		return k, err
	}
	return k, json.Unmarshal([]byte(spec), &k.Spec)
}

// find reads a key with its versions, by its mount and name.
func find(ctx context.Context, tx *db.Tx, at string) (*Key, error) {
	mount, name, _ := strings.Cut(at, "/")
	k, err := scan(tx.QueryRow(ctx, `select `+columns+` from transit_key where tenant_id = $1 and mount = $2 and name = $3 and ended_at is null`,
		tx.Tenant(), mount, name).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	k.Versions, err = versionsOf(ctx, tx, k.ID)
	return &k, err
}

func versionsOf(ctx context.Context, tx *db.Tx, id string) ([]Version, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (v Version, err error) {
		err = columns(&v.N, &v.sealed, &v.public, &v.CreatedAt)
		return v, err
	}, `select version, sealed, public, created_at from transit_version where tenant_id = $1 and key_id = $2 order by version`, tx.Tenant(), id)
}

// findAll reads a page of the keys of a mount, without the one that others wrap
// theirs for.
func findAll(ctx context.Context, tx *db.Tx, mount, after string, limit int) ([]Key, error) {
	if limit <= 0 {
		limit = 50
	}
	list, err := db.All(ctx, tx, scan, `select `+columns+` from transit_key where tenant_id = $1 and mount = $2 and name > $3 and ended_at is null order by name limit $4`,
		tx.Tenant(), mount, after, limit)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Versions, err = versionsOf(ctx, tx, list[i].ID); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func count(ctx context.Context, tx *db.Tx, mount string) (n int, err error) {
	err = tx.QueryRow(ctx, `select count(*) from transit_key where tenant_id = $1 and mount = $2 and ended_at is null`, tx.Tenant(), mount).Scan(&n)
	return n, err
}

func insert(ctx context.Context, tx *db.Tx, k *Key) error {
	spec, err := encodeSpec(k.Spec)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into transit_key (tenant_id, `+columns+`) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		tx.Tenant(), k.ID, k.Mount, k.Name, k.Type, spec, k.Latest, k.RotatesAt, k.CreatedAt, k.epoch)
	if db.Taken(err) {
		return ErrExists.With("There is a key %s already.", k.Name)
	}
	if err != nil {
		return err
	}
	return insertVersion(ctx, tx, k.ID, &k.Versions[0])
}

func insertVersion(ctx context.Context, tx *db.Tx, id string, v *Version) error {
	_, err := tx.Exec(ctx, `insert into transit_version (tenant_id, key_id, version, sealed, public, created_at) values ($1, $2, $3, $4, $5, $6)`,
		tx.Tenant(), id, v.N, v.sealed, v.public, v.CreatedAt)
	return err
}

// replace stores a changed key, unless it is no longer as it was read.
func replace(ctx context.Context, tx *db.Tx, before, after *Key, added *Version) error {
	spec, err := encodeSpec(after.Spec)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `update transit_key set spec = $4, latest_version = $5, rotates_at = $6, ended_at = $7, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), before.ID, before.epoch, spec, after.Latest, after.RotatesAt, after.ended)
	if err != nil {
		return err
	}
	if n == 0 {
		return errStale
	}
	if added != nil {
		if err := insertVersion(ctx, tx, after.ID, added); err != nil {
			return err
		}
	}
	if len(after.Versions) == 0 {
		_, err = tx.Exec(ctx, `delete from transit_version where tenant_id = $1 and key_id = $2`, tx.Tenant(), after.ID)
		return err
	}
	_, err = tx.Exec(ctx, `delete from transit_version where tenant_id = $1 and key_id = $2 and version < $3`, tx.Tenant(), after.ID, after.Versions[0].N)
	return err
}

// endMount ends the keys of a mount, and gives their names.
func endMount(ctx context.Context, tx *db.Tx, mount string) ([]string, error) {
	names, err := db.AllOf[string](ctx, tx, `select name from transit_key where tenant_id = $1 and mount = $2 and ended_at is null`, tx.Tenant(), mount)
	if err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, `delete from transit_version where tenant_id = $1 and key_id in (select id from transit_key where tenant_id = $1 and mount = $2)`, tx.Tenant(), mount); err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, `update transit_key set ended_at = $3, epoch = epoch + 1 where tenant_id = $1 and mount = $2 and ended_at is null`, tx.Tenant(), mount, tx.Now())
	return names, err
}

// A dueKey is one whose time to rotate has come.
type dueKey struct {
	tenant      estover.TenantID
	mount, name string
}

func findDue(ctx context.Context, tx *db.Tx) ([]dueKey, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (d dueKey, err error) {
		err = columns(&d.tenant, &d.mount, &d.name)
		return d, err
	}, `select tenant_id, mount, name from transit_key where rotates_at <= $1 and ended_at is null order by rotates_at limit 100`, tx.Now())
}
