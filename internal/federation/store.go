package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"estover.dev/internal/db"
)

const trustColumns = "id, spec, managed_by, created_at, changed_at, ended_at, epoch"

func scanTrust(scan func(...any) error) (t Trust, err error) {
	var spec string
	err = scan(&t.ID, &spec, &t.ManagedBy, &t.CreatedAt, &t.ChangedAt, &t.EndedAt, &t.Epoch)
	if errors.Is(err, db.ErrNoRows) {
		return t, ErrNotFound
	}
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal([]byte(spec), &t.Spec); err != nil {
		return t, fmt.Errorf("the specification of trust %s: %w", t.ID, err)
	}
	return t, nil
}

// one is the trust of which a column has this value.
func one(ctx context.Context, tx *db.Tx, column, value, lock string) (Trust, error) {
	return scanTrust(tx.QueryRow(ctx, "select "+trustColumns+" from trust where tenant_id = $1 and "+column+" = $2 and ended_at is null"+lock, tx.Tenant(), value).Scan)
}

func find(ctx context.Context, tx *db.Tx, id string) (Trust, error) {
	return one(ctx, tx, "id", id, "")
}

func findName(ctx context.Context, tx *db.Tx, name string) (Trust, error) {
	return one(ctx, tx, "name", name, "")
}

func findIssuer(ctx context.Context, tx *db.Tx, issuer string) (Trust, error) {
	return one(ctx, tx, "issuer", issuer, "")
}

// lock is find, and nobody else changes the row until the transaction ends.
func lock(ctx context.Context, tx *db.Tx, id string) (Trust, error) {
	return one(ctx, tx, "id", id, tx.ForUpdate())
}

func lockName(ctx context.Context, tx *db.Tx, name string) (Trust, error) {
	return one(ctx, tx, "name", name, tx.ForUpdate())
}

func list(ctx context.Context, tx *db.Tx, f Filter, after string, limit int) ([]Trust, error) {
	return db.All(ctx, tx, scanTrust, "select "+trustColumns+` from trust
		where tenant_id = $1 and name > $2 and ended_at is null and ($3 = '' or managed_by = $3) order by name limit $4`,
		tx.Tenant(), after, f.ManagedBy, limit)
}

// insert adds a trust, unless another is about the issuer, or another of the name
// was added meanwhile.
func insert(ctx context.Context, tx *db.Tx, t Trust) error {
	spec, err := json.Marshal(t.Spec)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `insert into trust (tenant_id, id, name, issuer, spec, managed_by, created_at, changed_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing`,
		tx.Tenant(), t.ID, t.Name, t.Issuer, string(spec), t.ManagedBy, t.CreatedAt, t.ChangedAt, t.Epoch)
	if err != nil || n == 1 {
		return err
	}
	switch other, err := findIssuer(ctx, tx, t.Issuer); {
	case err == nil:
		return ErrIssuerTaken.With("The trust %s is about this issuer. An issuer has one trust, with as many rules as it needs.", other.Name).At("issuer")
	case !errors.Is(err, ErrNotFound):
		return err
	}
	return db.ErrStale
}

func update(ctx context.Context, tx *db.Tx, t Trust) error {
	spec, err := json.Marshal(t.Spec)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `update trust set issuer = $3, spec = $4, changed_at = $5, ended_at = $6, epoch = $7
		where tenant_id = $1 and id = $2`, tx.Tenant(), t.ID, t.Issuer, string(spec), t.ChangedAt, t.EndedAt, t.Epoch)
	if db.Taken(err) {
		err = ErrIssuerTaken.At("issuer").Because(err)
	}
	return err
}
