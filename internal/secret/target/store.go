package target

import (
	"context"
	"encoding/json"
	"time"

	"estover.dev/internal/db"
)

const columns = `id, name, kind, address, options, authorities, admin, owner, description, batches, created_at, created_by, updated_at,
	epoch, reach, checked_at, checked_reach, disabled_at, disabled_for, suspect_at`

func scan(columns func(...any) error) (t Target, err error) {
	var options string
	err = columns(&t.ID, &t.Name, &t.Kind, &t.Address, &options, &t.Authorities, &t.Admin, &t.Owner, &t.Description, &t.Batches, &t.CreatedAt, &t.CreatedBy,
		&t.UpdatedAt, &t.Epoch, &t.Reach, &t.CheckedAt, &t.checkedReach, &t.DisabledAt, &t.DisabledFor, &t.SuspectAt)
	if err == nil {
		err = json.Unmarshal([]byte(options), &t.Options)
	}
	t.Ready = t.checkedReach == t.Reach
	return t, err
}

// Find reads the target with this id.
func Find(ctx context.Context, tx *db.Tx, id string) (*Target, error) {
	t, err := scan(tx.QueryRow(ctx, `select `+columns+` from secret_target where tenant_id = $1 and id = $2 and ended_at is null`, tx.Tenant(), id).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNotFound
	}
	return &t, err
}

// FindNamed reads the target of this name.
func FindNamed(ctx context.Context, tx *db.Tx, name string) (*Target, error) {
	t, err := scan(tx.QueryRow(ctx, `select `+columns+` from secret_target where tenant_id = $1 and name = $2 and ended_at is null`, tx.Tenant(), name).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNotFound.With("There is no target %s. See `estover secret engine list`.", name)
	}
	return &t, err
}

// Lock reads the target with this id, and keeps it from being removed or
// changed before the transaction ends.
func Lock(ctx context.Context, tx *db.Tx, id string) (*Target, error) {
	t, err := scan(tx.QueryRow(ctx, `select `+columns+` from secret_target where tenant_id = $1 and id = $2 and ended_at is null`+share(tx), tx.Tenant(), id).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNotFound
	}
	return &t, err
}

// share is the clause by which a select keeps what it finds from being changed,
// beside others who do the same. SQLite needs none: it has one writer.
func share(tx *db.Tx) string {
	if tx.ForUpdate() == "" {
		return ""
	}
	return " for share"
}

func idOf(ctx context.Context, tx *db.Tx, name string) (id string, err error) {
	err = tx.QueryRow(ctx, `select id from secret_target where tenant_id = $1 and name = $2 and ended_at is null`, tx.Tenant(), name).Scan(&id)
	if err == db.ErrNoRows {
		err = ErrNotFound.With("There is no target %s. See `estover secret engine list`.", name)
	}
	return id, err
}

func list(ctx context.Context, tx *db.Tx, after string, limit int) ([]Target, error) {
	return db.All(ctx, tx, scan, `select `+columns+` from secret_target where tenant_id = $1 and name > $2 and ended_at is null order by name limit $3`, tx.Tenant(), after, limit)
}

func encode(m map[string]string) string {
	b, err := json.Marshal(m)
	if err != nil {
		panic("target: options that have no JSON: " + err.Error())
	}
	return string(b)
}

func insert(ctx context.Context, tx *db.Tx, t *Target) error {
	_, err := tx.Exec(ctx, `insert into secret_target (tenant_id, id, name, kind, address, options, authorities, admin, owner, description, batches,
			created_at, created_by, updated_at, epoch, reach)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		tx.Tenant(), t.ID, t.Name, t.Kind, t.Address, encode(t.Options), t.Authorities, t.Admin, t.Owner, t.Description, t.Batches,
		t.CreatedAt, t.CreatedBy, t.UpdatedAt, t.Epoch, t.Reach)
	if db.Taken(err) {
		return ErrExists.With("There is a target %s already.", t.Name)
	}
	return err
}

// replace stores a changed target, unless it is no longer as it was read.
func replace(ctx context.Context, tx *db.Tx, was, t *Target) error {
	n, err := tx.Exec(ctx, `update secret_target set address = $4, options = $5, authorities = $6, admin = $7, owner = $8, description = $9, batches = $10,
			updated_at = $11, epoch = $12, reach = $13, disabled_at = $14, disabled_for = $15
		where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), t.ID, was.Epoch, t.Address, encode(t.Options), t.Authorities, t.Admin, t.Owner, t.Description, t.Batches,
		t.UpdatedAt, t.Epoch, t.Reach, t.DisabledAt, t.DisabledFor)
	if err == nil && n == 0 {
		err = ErrChanged
	}
	return err
}

func end(ctx context.Context, tx *db.Tx, t *Target) error {
	n, err := tx.Exec(ctx, `update secret_target set ended_at = $4, epoch = epoch + 1 where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), t.ID, t.Epoch, tx.Now())
	if err == nil && n == 0 {
		err = ErrChanged
	}
	return err
}

// Passed stores that the whole round went well at a target as it was reached
// then.
func Passed(ctx context.Context, tx *db.Tx, id string, reach int64) error {
	_, err := tx.Exec(ctx, `update secret_target set checked_at = $3, checked_reach = $4 where tenant_id = $1 and id = $2 and ended_at is null`,
		tx.Tenant(), id, tx.Now(), reach)
	return err
}

// SetSuspect stores since when nothing is issued at a target before it is
// compared with what is here; zero for that it was. An empty id is every target.
func SetSuspect(ctx context.Context, tx *db.Tx, id string, since time.Time) (int64, error) {
	if id == "" {
		return tx.Exec(ctx, `update secret_target set suspect_at = $2, epoch = epoch + 1 where tenant_id = $1 and ended_at is null`, tx.Tenant(), since)
	}
	return tx.Exec(ctx, `update secret_target set suspect_at = $3, epoch = epoch + 1 where tenant_id = $1 and id = $2 and ended_at is null`, tx.Tenant(), id, since)
}

// All gives the ids of the tenant's targets.
func All(ctx context.Context, tx *db.Tx) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select id from secret_target where tenant_id = $1 and ended_at is null order by id`, tx.Tenant())
}
