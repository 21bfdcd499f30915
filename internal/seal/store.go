package seal

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/jose"
)

// A rootRow is a registered root key.
type rootRow struct{ id, kind, params string }

func findRoots(ctx context.Context, tx *db.Tx) ([]rootRow, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (r rootRow, err error) {
		err = scan(&r.id, &r.kind, &r.params)
		return r, err
	}, `select id, kind, params from seal_root where tenant_id = $1 order by created_at, id`, installation)
}

func insertRoot(ctx context.Context, tx *db.Tx, r rootRow) error {
	_, err := tx.Exec(ctx, `insert into seal_root (tenant_id, id, kind, params, created_at) values ($1, $2, $3, $4, $5)`,
		installation, r.id, r.kind, r.params, tx.Now())
	return err
}

func deleteRoot(ctx context.Context, tx *db.Tx, id string) error {
	if _, err := tx.Exec(ctx, `delete from seal_kek_wrap where tenant_id = $1 and root_id = $2`, installation, id); err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `delete from seal_root where tenant_id = $1 and id = $2`, installation, id)
	if err == nil && n == 0 {
		return ErrRoot.With("There is no root key %q.", id)
	}
	return err
}

// A wrapRow is one version of the KEK under one root key.
type wrapRow struct {
	version int64
	root    string
	wrapped []byte
}

func findWraps(ctx context.Context, tx *db.Tx) ([]wrapRow, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (r wrapRow, err error) {
		err = scan(&r.version, &r.root, &r.wrapped)
		return r, err
	}, `select version, root_id, wrapped from seal_kek_wrap where tenant_id = $1 order by version, root_id`, installation)
}

func insertKEK(ctx context.Context, tx *db.Tx, version int64) error {
	_, err := tx.Exec(ctx, `insert into seal_kek (tenant_id, version, created_at) values ($1, $2, $3)`, tx.Tenant(), version, tx.Now())
	return err
}

func insertWrap(ctx context.Context, tx *db.Tx, version int64, root string, wrapped []byte) error {
	_, err := tx.Exec(ctx, `insert into seal_kek_wrap (tenant_id, version, root_id, wrapped) values ($1, $2, $3, $4)`,
		installation, version, root, wrapped)
	return err
}

func countKEKs(ctx context.Context, tx *db.Tx) (n int, err error) {
	err = tx.QueryRow(ctx, `select count(*) from seal_kek where tenant_id = $1`, installation).Scan(&n)
	return n, err
}

// holdKEK locks the row of a KEK against deletion until the transaction ends.
func holdKEK(ctx context.Context, tx *db.Tx, version int64) error {
	var n int64
	err := tx.QueryRow(ctx, `select version from seal_kek where tenant_id = $1 and version = $2`+tx.ForUpdate(), installation, version).Scan(&n)
	if errors.Is(err, db.ErrNoRows) {
		return errKEKGone
	}
	return err
}

// deleteKEKsBelow deletes the versions that no data key is under. They are
// locked first and counted afterwards, so that a key that is being made is
// seen or has not begun.
func deleteKEKsBelow(ctx context.Context, tx *db.Tx, newest int64) error {
	old, err := db.AllOf[int64](ctx, tx, `select version from seal_kek where tenant_id = $1 and version < $2 order by version`+tx.ForUpdate(), tx.Tenant(), newest)
	if err != nil {
		return err
	}
	for _, v := range old {
		used, err := db.Exists(ctx, tx, `select 1 from seal_dek where kek_version = $1 limit 1`, v)
		if err != nil {
			return err
		}
		if used {
			continue
		}
		if _, err := tx.Exec(ctx, `delete from seal_kek_wrap where tenant_id = $1 and version = $2`, tx.Tenant(), v); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `delete from seal_kek where tenant_id = $1 and version = $2`, tx.Tenant(), v); err != nil {
			return err
		}
	}
	return nil
}

// A dekRow is one version of a data key.
type dekRow struct {
	tenant   estover.TenantID
	class    Class
	version  int64
	kek      int64
	wrapped  []byte
	created  time.Time
	from     time.Time
	reserved int64
}

const dekColumns = `tenant_id, class, version, kek_version, wrapped, created_at, use_from, reserved`

func findDEKs(ctx context.Context, tx *db.Tx) ([]dekRow, error) {
	return db.All(ctx, tx, scanDEK, `select `+dekColumns+` from seal_dek where tenant_id = $1 order by class, version`, tx.Tenant())
}

// findDEKsBelow looks at every tenant: the KEK is the installation's.
func findDEKsBelow(ctx context.Context, tx *db.Tx, kek int64, limit int) ([]dekRow, error) {
	return db.All(ctx, tx, scanDEK, `select `+dekColumns+` from seal_dek where kek_version < $1 order by kek_version limit $2`, kek, limit)
}

func scanDEK(scan func(...any) error) (r dekRow, err error) {
	err = scan(&r.tenant, &r.class, &r.version, &r.kek, &r.wrapped, &r.created, &r.from, &r.reserved)
	return r, err
}

func insertDEK(ctx context.Context, tx *db.Tx, r dekRow) error {
	_, err := tx.Exec(ctx, `insert into seal_dek (`+dekColumns+`) values ($1, $2, $3, $4, $5, $6, $7, $8)`,
		tx.Tenant(), r.class, r.version, r.kek, r.wrapped, r.created, r.from, r.reserved)
	return err
}

// replaceDEK stores a data key under another KEK, unless somebody else has.
func replaceDEK(ctx context.Context, tx *db.Tx, r dekRow, kek int64, wrapped []byte) error {
	_, err := tx.Exec(ctx, `update seal_dek set kek_version = $5, wrapped = $6
		where tenant_id = $1 and class = $2 and version = $3 and kek_version = $4`,
		r.tenant, r.class, r.version, r.kek, kek, wrapped)
	return err
}

func reserve(ctx context.Context, tx *db.Tx, class Class, version int64, n int) error {
	_, err := tx.Exec(ctx, `update seal_dek set reserved = reserved + $4 where tenant_id = $1 and class = $2 and version = $3`,
		tx.Tenant(), class, version, n)
	return err
}

func deleteDEK(ctx context.Context, tx *db.Tx, class Class, version int64) error {
	_, err := tx.Exec(ctx, `delete from seal_dek where tenant_id = $1 and class = $2 and version = $3`, tx.Tenant(), class, version)
	return err
}

func deleteDEKs(ctx context.Context, tx *db.Tx, tenant estover.TenantID) error {
	_, err := tx.Exec(ctx, `delete from seal_dek where tenant_id = $1`, tenant)
	return err
}

// header is how a value begins that was sealed with a version.
func header(version uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{format}, version)
}

// or is a column, or what stands for one that a holding does not have.
func or(column, otherwise string) string {
	if column == "" {
		return otherwise
	}
	return column
}

// findOlder reads values whose header names an older key, in the order of
// their ids and versions.
func findOlder(ctx context.Context, tx *db.Tx, h Holding, version uint32, after value, limit int) ([]value, error) {
	id, v := h.ID, or(h.Version, "0")
	order := id
	if h.Version != "" {
		order += ", " + v
	}
	return db.All(ctx, tx, func(scan func(...any) error) (value, error) {
		one := value{aad: AAD{Class: h.Class}}
		err := scan(&one.aad.ID, &one.aad.Version, &one.aad.Created, &one.sealed)
		return one, err
	}, `select `+id+`, `+v+`, `+or(h.Created, "null")+`, `+h.Sealed+` from `+h.Table+`
		where tenant_id = $1 and substr(`+h.Sealed+`, 1, 5) < $2 and (`+id+` > $3 or (`+id+` = $3 and `+v+` > $4))
		order by `+order+` limit $5`,
		tx.Tenant(), header(version), after.aad.ID, after.aad.Version, limit)
}

// replaceValue stores a resealed value, unless it has changed since.
func replaceValue(ctx context.Context, tx *db.Tx, h Holding, v value, sealed []byte) (int64, error) {
	return tx.Exec(ctx, `update `+h.Table+` set `+h.Sealed+` = $5
		where tenant_id = $1 and `+h.ID+` = $2 and `+or(h.Version, "0")+` = $3 and `+h.Sealed+` = $4`,
		tx.Tenant(), v.aad.ID, v.aad.Version, v.sealed, sealed)
}

// countUnder counts the values that are sealed with a version.
func countUnder(ctx context.Context, tx *db.Tx, h Holding, version uint32) (n int, err error) {
	err = tx.QueryRow(ctx, `select count(*) from `+h.Table+` where tenant_id = $1 and substr(`+h.Sealed+`, 1, 5) = $2`,
		tx.Tenant(), header(version)).Scan(&n)
	return n, err
}

// A keyRow is a signing key as it is stored.
type keyRow struct {
	id         string
	purpose    jose.Purpose
	generation int64
	public     []byte // PKIX
	sealed     []byte // PKCS #8, sealed; nil once it has been destroyed
	created    time.Time
	from       time.Time
	revoked    time.Time
	mac        []byte
}

func findKeys(ctx context.Context, tx *db.Tx) ([]keyRow, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (r keyRow, err error) {
		err = scan(&r.id, &r.purpose, &r.generation, &r.public, &r.sealed, &r.created, &r.from, &r.revoked, &r.mac)
		return r, err
	}, `select id, purpose, generation, public, sealed, created_at, use_from, ended_at, mac
		from signing_key where tenant_id = $1 order by purpose, generation`, tx.Tenant())
}

func insertKey(ctx context.Context, tx *db.Tx, r keyRow) error {
	_, err := tx.Exec(ctx, `insert into signing_key (tenant_id, id, purpose, generation, public, sealed, created_at, use_from, mac)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		tx.Tenant(), r.id, r.purpose, r.generation, r.public, r.sealed, r.created, r.from, r.mac)
	return err
}

// revokeKey ends a key at once and destroys its private half, unless somebody
// else has.
func revokeKey(ctx context.Context, tx *db.Tx, r keyRow) error {
	n, err := tx.Exec(ctx, `update signing_key set ended_at = $3, mac = $4, sealed = null
		where tenant_id = $1 and id = $2 and ended_at is null`, tx.Tenant(), r.id, r.revoked, r.mac)
	if err == nil && n == 0 {
		return db.ErrStale
	}
	return err
}

// destroyKey destroys the private half of a key that signs no more.
func destroyKey(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `update signing_key set sealed = null where tenant_id = $1 and id = $2`, tx.Tenant(), id)
	return err
}

func deleteSigningKeys(ctx context.Context, tx *db.Tx, tenant estover.TenantID) error {
	_, err := tx.Exec(ctx, `delete from signing_key where tenant_id = $1`, tenant)
	return err
}
