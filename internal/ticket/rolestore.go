package ticket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"estover.dev/internal/db"
)

// errStale says that a role changed between being read and being written.
var errStale = errors.New("the role has changed in the meantime")

// decode reads what [encode] wrote.
func decode(text string, into any) {
	if err := json.Unmarshal([]byte(text), into); err != nil {
		panic("ticket: JSON of our own that cannot be read: " + err.Error())
	}
}

const roleColumns = `id, mount_id, name, kind, coalesce(role_id, ''), coalesce(agent_id, ''), made, spec, epoch`

func scanRole(columns func(...any) error) (*Role, error) {
	r := &Role{}
	var spec string
	err := columns(&r.ID, &r.Mount, &r.Name, &r.Kind, &r.RoleID, &r.Agent, &r.Made, &spec, &r.epoch)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrNoRole
	}
	if err != nil {
		return nil, err
	}
	return r, json.Unmarshal([]byte(spec), r)
}

func findRole(ctx context.Context, tx *db.Tx, mount, name string) (*Role, error) {
	return scanRole(tx.QueryRow(ctx, `select `+roleColumns+` from ticket_role where tenant_id = $1 and mount_id = $2 and name = $3`, tx.Tenant(), mount, name).Scan)
}

func findRoleID(ctx context.Context, tx *db.Tx, mount, roleID string) (*Role, error) {
	return scanRole(tx.QueryRow(ctx, `select `+roleColumns+` from ticket_role where tenant_id = $1 and mount_id = $2 and role_id = $3`, tx.Tenant(), mount, roleID).Scan)
}

func insertRole(ctx context.Context, tx *db.Tx, r *Role) error {
	n, err := tx.Exec(ctx, `insert into ticket_role (tenant_id, id, mount_id, name, kind, role_id, agent_id, made, spec, created_at, changed_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, 1) on conflict (tenant_id, mount_id, name) do nothing`,
		tx.Tenant(), r.ID, r.Mount, r.Name, r.Kind, db.OrNull(r.RoleID), db.OrNull(r.Agent), r.Made, encode(r), tx.Now())
	if err == nil && n == 0 {
		return errStale
	}
	return err
}

func updateRole(ctx context.Context, tx *db.Tx, r *Role) error {
	n, err := tx.Exec(ctx, `update ticket_role set role_id = $3, agent_id = $4, made = $5, spec = $6, changed_at = $7, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and epoch = $8`, tx.Tenant(), r.ID, db.OrNull(r.RoleID), db.OrNull(r.Agent), r.Made, encode(r), tx.Now(), r.epoch)
	if err == nil && n == 0 {
		return errStale
	}
	return err
}

// holdRole reports whether a role is still as it was read, and keeps it so until
// the transaction ends.
func holdRole(ctx context.Context, tx *db.Tx, r *Role) (bool, error) {
	text := `select 1 from ticket_role where tenant_id = $1 and id = $2 and epoch = $3`
	if tx.Engine() == db.Postgres {
		text += " for share"
	}
	return db.Exists(ctx, tx, text, tx.Tenant(), r.ID, r.epoch)
}

// dropRole takes a role away. What was got by it is ended after this: from here
// on nobody logs in by it.
func dropRole(ctx context.Context, tx *db.Tx, id string) error {
	if _, err := tx.Exec(ctx, `update ticket_role set epoch = epoch + 1 where tenant_id = $1 and id = $2`, tx.Tenant(), id); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `delete from ticket_secret where tenant_id = $1 and role_ref = $2`, tx.Tenant(), id); err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `delete from ticket_role where tenant_id = $1 and id = $2`, tx.Tenant(), id)
	if err == nil && n == 0 {
		return ErrNoRole
	}
	return err
}

// dropMount takes away the roles of a mount and what it was set to. What was got
// by them is ended after this.
func dropMount(ctx context.Context, tx *db.Tx, mount string) error {
	for _, what := range []string{
		`update ticket_role set epoch = epoch + 1 where tenant_id = $1 and mount_id = $2`,
		`delete from ticket_secret where tenant_id = $1 and role_ref in (select id from ticket_role where tenant_id = $1 and mount_id = $2)`,
		`delete from ticket_role where tenant_id = $1 and mount_id = $2`,
		`delete from ticket_setting where tenant_id = $1 and mount_id = $2`,
		`delete from ticket_client where tenant_id = $1 and mount_id = $2`,
		`delete from ticket_sign_in where tenant_id = $1 and mount_id = $2`,
	} {
		if _, err := tx.Exec(ctx, what, tx.Tenant(), mount); err != nil {
			return err
		}
	}
	return nil
}

// maxRoles is how many roles one list holds.
const maxRoles = 10_000

func roleNames(ctx context.Context, tx *db.Tx, mount string) ([]string, error) {
	return db.AllOf[string](ctx, tx, fmt.Sprintf(`select name from ticket_role where tenant_id = $1 and mount_id = $2 order by name limit %d`, maxRoles), tx.Tenant(), mount)
}

// rolesOf are the roles of a mount of one kind, in the order of their names.
func rolesOf(ctx context.Context, tx *db.Tx, mount, kind string) ([]*Role, error) {
	return db.All(ctx, tx, scanRole, fmt.Sprintf(`select `+roleColumns+` from ticket_role where tenant_id = $1 and mount_id = $2 and kind = $3 order by name limit %d`, maxRoles),
		tx.Tenant(), mount, kind)
}

const secretColumns = `role_ref, hash, id, meta, cidrs, token_cidrs, ttl, uses, coalesce(uses_left, 0), created_at, updated_at, expires_at`

func scanSecret(columns func(...any) error) (*SecretID, error) {
	s := &SecretID{}
	var meta string
	err := columns(&s.ref, &s.hash, &s.ID, &meta, &s.CIDRs, &s.TokenCIDRs, &s.TTL, &s.Uses, &s.UsesLeft, &s.CreatedAt, &s.UpdatedAt, &s.ExpiresAt)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrNoSecret
	}
	if err != nil {
		return nil, err
	}
	return s, json.Unmarshal([]byte(meta), &s.Meta)
}

func findSecret(ctx context.Context, tx *db.Tx, ref string, hash []byte) (*SecretID, error) {
	return scanSecret(tx.QueryRow(ctx, `select `+secretColumns+` from ticket_secret where tenant_id = $1 and role_ref = $2 and hash = $3`, tx.Tenant(), ref, hash).Scan)
}

func findSecretID(ctx context.Context, tx *db.Tx, ref, id string) (*SecretID, error) {
	return scanSecret(tx.QueryRow(ctx, `select `+secretColumns+` from ticket_secret where tenant_id = $1 and role_ref = $2 and id = $3`, tx.Tenant(), ref, id).Scan)
}

func insertSecret(ctx context.Context, tx *db.Tx, s *SecretID) error {
	var left any
	if s.Uses > 0 {
		left = s.UsesLeft
	}
	if s.Meta == nil {
		s.Meta = map[string]string{}
	}
	_, err := tx.Exec(ctx, `insert into ticket_secret (tenant_id, role_ref, hash, id, meta, cidrs, token_cidrs, ttl, uses, uses_left, created_at, updated_at, expires_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		tx.Tenant(), s.ref, s.hash, s.ID, encode(s.Meta), s.CIDRs, s.TokenCIDRs, s.TTL, s.Uses, left, s.CreatedAt, s.UpdatedAt, s.ExpiresAt)
	return err
}

// useSecret takes one of the uses of a secret-id, and reports whether it was
// good.
func useSecret(ctx context.Context, tx *db.Tx, s *SecretID) (bool, error) {
	n, err := tx.Exec(ctx, `update ticket_secret set uses_left = uses_left - 1, updated_at = $4
		where tenant_id = $1 and role_ref = $2 and id = $3 and coalesce(uses_left, 1) > 0 and (expires_at is null or expires_at > $4)`,
		tx.Tenant(), s.ref, s.ID, tx.Now())
	return n == 1, err
}

func dropSecret(ctx context.Context, tx *db.Tx, ref, id string) error {
	n, err := tx.Exec(ctx, `delete from ticket_secret where tenant_id = $1 and role_ref = $2 and id = $3`, tx.Tenant(), ref, id)
	if err == nil && n == 0 {
		return ErrNoSecret
	}
	return err
}

func dropSecretsOf(ctx context.Context, tx *db.Tx, agent string) (int, error) {
	n, err := tx.Exec(ctx, `delete from ticket_secret where tenant_id = $1 and role_ref in (select id from ticket_role where tenant_id = $1 and agent_id = $2)`, tx.Tenant(), agent)
	return int(n), err
}

func secretIDs(ctx context.Context, tx *db.Tx, ref string) ([]string, error) {
	return db.AllOf[string](ctx, tx, fmt.Sprintf(`select id from ticket_secret where tenant_id = $1 and role_ref = $2 and (expires_at is null or expires_at > $3)
		and coalesce(uses_left, 1) > 0 order by id limit %d`, mostListed), tx.Tenant(), ref, tx.Now())
}

func findSetting(ctx context.Context, tx *db.Tx, mount, name string, into any) (bool, error) {
	var spec string
	err := tx.QueryRow(ctx, `select spec from ticket_setting where tenant_id = $1 and mount_id = $2 and name = $3`, tx.Tenant(), mount, name).Scan(&spec)
	if errors.Is(err, db.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, json.Unmarshal([]byte(spec), into)
}

func putSetting(ctx context.Context, tx *db.Tx, mount, name string, v any) error {
	_, err := tx.Exec(ctx, `insert into ticket_setting (tenant_id, mount_id, name, spec, changed_at) values ($1, $2, $3, $4, $5)
		on conflict (tenant_id, mount_id, name) do update set spec = excluded.spec, changed_at = excluded.changed_at`,
		tx.Tenant(), mount, name, encode(v), tx.Now())
	return err
}

func dropSetting(ctx context.Context, tx *db.Tx, mount, name string) error {
	_, err := tx.Exec(ctx, `delete from ticket_setting where tenant_id = $1 and mount_id = $2 and name = $3`, tx.Tenant(), mount, name)
	return err
}

// settings are what a mount is set to under names with a prefix, by name.
func settings(ctx context.Context, tx *db.Tx, mount, prefix string) (map[string]string, error) {
	rows, err := tx.Query(ctx, `select name, spec from ticket_setting where tenant_id = $1 and mount_id = $2 and substr(name, 1, length($3)) = $3 order by name`,
		tx.Tenant(), mount, prefix)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all := map[string]string{}
	for rows.Next() {
		var name, spec string
		if err := rows.Scan(&name, &spec); err != nil {
			return nil, err
		}
		all[name] = spec
	}
	return all, rows.Err()
}
