package mount

import (
	"context"
	"encoding/json"
	"time"

	"estover.dev/internal/db"
)

// lock has others who change mounts of the tenant wait until the transaction
// ends.
func lock(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, `insert into vault_mount_order (tenant_id, n) values ($1, 1)
		on conflict (tenant_id) do update set n = vault_mount_order.n + 1`, tx.Tenant())
	return err
}

// all reads the mounts of a tenant that have a row.
func all(ctx context.Context, tx *db.Tx) ([]Mount, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (Mount, error) {
		m := Mount{stored: true}
		var spec string
		err := columns(&m.ID, &m.Section, &m.Path, &m.Kind, &m.Accessor, &m.UUID, &m.Base, &spec, &m.CreatedAt, &m.epoch)
		if err == nil {
			err = json.Unmarshal([]byte(spec), &m.Spec)
		}
		return m, err
	}, `select id, section, path, kind, accessor, uuid, base, spec, created_at, epoch
		from vault_mount where tenant_id = $1 and ended_at is null order by section, path`, tx.Tenant())
}

func (p Spec) text() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("mount: a spec that has no JSON: " + err.Error())
	}
	return string(b)
}

func insert(ctx context.Context, tx *db.Tx, m *Mount) error {
	_, err := tx.Exec(ctx, `insert into vault_mount (tenant_id, id, section, path, kind, accessor, uuid, base, spec, created_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		tx.Tenant(), m.ID, m.Section, m.Path, m.Kind, m.Accessor, m.UUID, m.Base, m.Spec.text(), m.CreatedAt, m.epoch)
	return err
}

// update stores a changed mount, unless it is no longer as it was read.
func update(ctx context.Context, tx *db.Tx, m *Mount) error {
	n, err := tx.Exec(ctx, `update vault_mount set path = $4, spec = $5, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`, tx.Tenant(), m.ID, m.epoch, m.Path, m.Spec.text())
	if err == nil && n == 0 {
		return db.ErrStale
	}
	return err
}

func end(ctx context.Context, tx *db.Tx, m *Mount, since string) error {
	n, err := tx.Exec(ctx, `update vault_mount set ended_at = $4, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and epoch = $3 and closing_at is not null and closing = $5 and ended_at is null`, tx.Tenant(), m.ID, m.epoch, tx.Now(), since)
	if err == nil && n == 0 {
		return errReopened
	}
	return err
}

// shut closes a mount for by, and gives the name of the time for which it has been
// closed: a mount that is closed already stays so, and by takes it over.
func shut(ctx context.Context, tx *db.Tx, id, by string) (since string, err error) {
	err = tx.QueryRow(ctx, `update vault_mount set closing = case when closing_at is null then $3 else closing end, closing_by = $3, closing_at = coalesce(closing_at, $4)
		where tenant_id = $1 and id = $2 and ended_at is null returning closing`, tx.Tenant(), id, by, tx.Now()).Scan(&since)
	return since, err
}

// reopen takes back that by has closed a mount, unless somebody has taken it over.
func reopen(ctx context.Context, tx *db.Tx, id, by string) error {
	_, err := tx.Exec(ctx, `update vault_mount set closing_at = null, closing = '', closing_by = ''
		where tenant_id = $1 and id = $2 and closing_by = $3 and ended_at is null`, tx.Tenant(), id, by)
	return err
}

// hold keeps a mount as it is until the transaction ends, and reports whether it is
// being disabled.
func hold(ctx context.Context, tx *db.Tx, id string) (closing bool, err error) {
	err = tx.Hold(ctx, `select closing_at is not null from vault_mount where tenant_id = $1 and id = $2 and ended_at is null`, tx.Tenant(), id).Scan(&closing)
	if err == db.ErrNoRows {
		err = ErrNotFound
	}
	return closing, err
}

func insertMove(ctx context.Context, tx *db.Tx, v Move, mount string) error {
	_, err := tx.Exec(ctx, `insert into vault_mount_move (tenant_id, id, mount_id, source, target, at) values ($1, $2, $3, $4, $5, $6)`,
		tx.Tenant(), v.ID, mount, v.From, v.To, v.At)
	return err
}

func findMove(ctx context.Context, tx *db.Tx, id string) (v Move, err error) {
	v.ID = id
	err = tx.QueryRow(ctx, `select source, target, at from vault_mount_move where tenant_id = $1 and id = $2`, tx.Tenant(), id).Scan(&v.From, &v.To, &v.At)
	if err == db.ErrNoRows {
		return v, ErrNotFound.With("There is no move %s.", id)
	}
	return v, err
}

// policyColumns are those of a policy of the door.
const policyColumns = `name, body, created_at, changed_at`

func findPolicy(ctx context.Context, tx *db.Tx, kind policyKind, name string) (p Policy, err error) {
	err = tx.QueryRow(ctx, `select `+policyColumns+` from vault_policy where tenant_id = $1 and kind = $2 and name = $3`, tx.Tenant(), kind, name).
		Scan(&p.Name, &p.Text, &p.CreatedAt, &p.ChangedAt)
	if err == db.ErrNoRows {
		return p, ErrNoPolicy.With("There is no policy %s.", name)
	}
	return p, err
}

func policyNames(ctx context.Context, tx *db.Tx, kind policyKind) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select name from vault_policy where tenant_id = $1 and kind = $2`, tx.Tenant(), kind)
}

func putPolicy(ctx context.Context, tx *db.Tx, kind policyKind, name, text string, now time.Time) error {
	_, err := tx.Exec(ctx, `insert into vault_policy (tenant_id, kind, name, body, created_at, changed_at) values ($1, $2, $3, $4, $5, $5)
		on conflict (tenant_id, kind, name) do update set body = excluded.body, changed_at = excluded.changed_at, epoch = vault_policy.epoch + 1`,
		tx.Tenant(), kind, name, text, now)
	return err
}

func removePolicy(ctx context.Context, tx *db.Tx, kind policyKind, name string) (bool, error) {
	n, err := tx.Exec(ctx, `delete from vault_policy where tenant_id = $1 and kind = $2 and name = $3`, tx.Tenant(), kind, name)
	return n > 0, err
}
