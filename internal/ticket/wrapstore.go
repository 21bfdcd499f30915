package ticket

import (
	"context"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

func insertWrap(ctx context.Context, tx *db.Tx, w *Wrapped) error {
	_, err := tx.Exec(ctx, `insert into ticket_wrap (tenant_id, hash, id, sealed, path, wrapped, ttl, made_by, session_id, created_at, expires_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		tx.Tenant(), w.hash, w.ID, w.sealed, w.Path, w.Accessor, whole(w.TTL), w.MadeBy, db.OrNull(w.session), w.CreatedAt, w.ExpiresAt)
	return err
}

func findWrap(ctx context.Context, tx *db.Tx, hash []byte) (*Wrapped, error) {
	w := &Wrapped{tenant: tx.Tenant(), hash: hash}
	var ttl int64
	err := tx.QueryRow(ctx, `select id, sealed, path, wrapped, ttl, made_by, coalesce(session_id, ''), created_at, expires_at from ticket_wrap
		where tenant_id = $1 and hash = $2 and expires_at > $3`, tx.Tenant(), hash, tx.Now()).
		Scan(&w.ID, &w.sealed, &w.Path, &w.Accessor, &ttl, &w.MadeBy, &w.session, &w.CreatedAt, &w.ExpiresAt)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrWrap
	}
	w.TTL = seconds(ttl)
	return w, err
}

// takeWrap takes an answer away, and reports whether it was there.
func takeWrap(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	n, err := tx.Exec(ctx, `delete from ticket_wrap where tenant_id = $1 and id = $2 and expires_at > $3`, tx.Tenant(), id, tx.Now())
	return n == 1, err
}

func wrapOwner(ctx context.Context, tx *db.Tx, id string) (by estover.Subject, err error) {
	err = tx.QueryRow(ctx, `select made_by from ticket_wrap where tenant_id = $1 and id = $2 and expires_at > $3`, tx.Tenant(), id, tx.Now()).Scan(&by)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrWrap
	}
	return by, err
}

// dropWraps takes away what waits that a session had wrapped.
func dropWraps(ctx context.Context, tx *db.Tx, session string) error {
	_, err := tx.Exec(ctx, `delete from ticket_wrap where tenant_id = $1 and session_id = $2`, tx.Tenant(), session)
	return err
}

// keep stores what a ticket keeps at a path.
func keep(ctx context.Context, tx *db.Tx, ticket, path, id string, sealed []byte, at time.Time) error {
	var others int
	if err := tx.QueryRow(ctx, `select count(*) from cubbyhole where tenant_id = $1 and ticket_id = $2 and path <> $3`, tx.Tenant(), ticket, path).Scan(&others); err != nil {
		return err
	}
	if others >= maxKept {
		return ErrCubbyhole
	}
	_, err := tx.Exec(ctx, `insert into cubbyhole (tenant_id, ticket_id, path, id, sealed, created_at) values ($1, $2, $3, $4, $5, $6)
		on conflict (tenant_id, ticket_id, path) do update set id = excluded.id, sealed = excluded.sealed, created_at = excluded.created_at`,
		tx.Tenant(), ticket, path, id, sealed, at)
	return err
}

func findKept(ctx context.Context, tx *db.Tx, ticket, path string) (id string, sealed []byte, at time.Time, err error) {
	err = tx.QueryRow(ctx, `select id, sealed, created_at from cubbyhole where tenant_id = $1 and ticket_id = $2 and path = $3`, tx.Tenant(), ticket, path).
		Scan(&id, &sealed, &at)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNoCubbyhole
	}
	return id, sealed, at, err
}

func keptPaths(ctx context.Context, tx *db.Tx, ticket string) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select path from cubbyhole where tenant_id = $1 and ticket_id = $2`, tx.Tenant(), ticket)
}

func forget(ctx context.Context, tx *db.Tx, ticket, path string) error {
	_, err := tx.Exec(ctx, `delete from cubbyhole where tenant_id = $1 and ticket_id = $2 and path = $3`, tx.Tenant(), ticket, path)
	return err
}

// clearCubbyholes takes away what the tickets keep that have just been ended.
func clearCubbyholes(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, `delete from cubbyhole where tenant_id = $1 and ticket_id in (select id from ticket where tenant_id = $1 and ended_at = $2)`,
		tx.Tenant(), tx.Now())
	return err
}
