package duty

import (
	"context"
	"errors"
	"time"

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
	var one int
	err := tx.QueryRow(ctx, "select 1 from gateway_session where tenant_id = $1 and session_id = $2 and closed_at is null", tx.Tenant(), session).Scan(&one)
	if errors.Is(err, db.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// unclosed are sessions of all tenants that ended before a time and are not
// closed.
func unclosed(ctx context.Context, tx *db.Tx, before time.Time) (keys []taskKey, err error) {
	rows, err := tx.Query(ctx, `select g.tenant_id, g.session_id from gateway_session g
		join session s on s.tenant_id = g.tenant_id and s.id = g.session_id
		where g.closed_at is null and s.ended_at < $1 order by g.created_at limit 100`, before)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var k taskKey
		if err := rows.Scan(&k.tenant, &k.session); err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, rows.Err()
}
