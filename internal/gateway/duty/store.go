package duty

import (
	"context"
	"errors"

	"estover.dev/internal/db"
)

// begin makes sure that a session has its row.
func begin(ctx context.Context, tx *db.Tx, session string) error {
	_, err := tx.Exec(ctx, `insert into gateway_session (tenant_id, session_id, created_at) values ($1, $2, $3)
		on conflict (tenant_id, session_id) do nothing`, tx.Tenant(), session, tx.Now())
	return err
}

// setCA keeps a session's authority, unless it has one already.
func setCA(ctx context.Context, tx *db.Tx, session string, sealed []byte) error {
	_, err := tx.Exec(ctx, "update gateway_session set ca = $3 where tenant_id = $1 and session_id = $2 and ca is null", tx.Tenant(), session, sealed)
	return err
}

// findCA reads a session's sealed authority; nil if there is none.
func findCA(ctx context.Context, tx *db.Tx, session string) (sealed []byte, err error) {
	err = tx.QueryRow(ctx, "select ca from gateway_session where tenant_id = $1 and session_id = $2", tx.Tenant(), session).Scan(&sealed)
	if errors.Is(err, db.ErrNoRows) {
		err = nil
	}
	return sealed, err
}

// closeRow marks a session as closed. False: it was, or never called.
func closeRow(ctx context.Context, tx *db.Tx, session string) (bool, error) {
	n, err := tx.Exec(ctx, "update gateway_session set closed_at = $3, ca = null where tenant_id = $1 and session_id = $2 and closed_at is null",
		tx.Tenant(), session, tx.Now())
	return n == 1, err
}

// isOpen reports whether a session has called and is not closed yet.
func isOpen(ctx context.Context, tx *db.Tx, session string) (bool, error) {
	return db.Exists(ctx, tx, "select 1 from gateway_session where tenant_id = $1 and session_id = $2 and closed_at is null", tx.Tenant(), session)
}

// insertKept keeps a token.
func insertKept(ctx context.Context, tx *db.Tx, digest []byte, member string, k kept) error {
	_, err := tx.Exec(ctx, `insert into gateway_token (tenant_id, id, digest, session_id, resource_id, member, sealed, created_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8)`, tx.Tenant(), k.id, digest, k.session, k.resource, member, k.sealed, tx.Now())
	return err
}

// findKept reads a token by the digest of its handle.
func findKept(ctx context.Context, tx *db.Tx, digest []byte) (*kept, error) {
	k := &kept{}
	err := tx.QueryRow(ctx, "select id, session_id, resource_id, sealed from gateway_token where tenant_id = $1 and digest = $2", tx.Tenant(), digest).
		Scan(&k.id, &k.session, &k.resource, &k.sealed)
	if errors.Is(err, db.ErrNoRows) {
		return nil, errForeign
	}
	return k, err
}

// deleteKept takes away the tokens of sessions, and says how many there were.
func deleteKept(ctx context.Context, tx *db.Tx, sessions []string) (count int, err error) {
	for _, id := range sessions {
		n, err := tx.Exec(ctx, "delete from gateway_token where tenant_id = $1 and session_id = $2", tx.Tenant(), id)
		if err != nil {
			return 0, err
		}
		count += int(n)
	}
	return count, nil
}
