package authzen

import (
	"context"
	"time"

	"estover.dev/internal/db"
)

// A keyed is a request that was made with an Idempotency-Key. Key and body are
// digests.
type keyed struct{ requester, key, body, request string }

// keepKeys is how long a key is remembered: as long as a request may wait, and a
// day.
const keepKeys = 8 * 24 * time.Hour

func findKey(ctx context.Context, tx *db.Tx, k keyed) (keyed, error) {
	err := tx.QueryRow(ctx, "select body, request_id from access_request_key where tenant_id = $1 and requester = $2 and key = $3 and created_at > $4",
		tx.Tenant(), k.requester, k.key, tx.Now().Add(-keepKeys)).Scan(&k.body, &k.request)
	return k, err
}

// insertKey notes a key, in the place of one that is forgotten.
func insertKey(ctx context.Context, tx *db.Tx, k keyed) error {
	_, err := tx.Exec(ctx, `insert into access_request_key (tenant_id, requester, key, body, request_id, created_at) values ($1, $2, $3, $4, '', $5)
		on conflict (tenant_id, requester, key) do update set body = excluded.body, request_id = '', created_at = excluded.created_at
		where access_request_key.created_at <= $6`, tx.Tenant(), k.requester, k.key, k.body, tx.Now(), tx.Now().Add(-keepKeys))
	return err
}

func setKey(ctx context.Context, tx *db.Tx, k keyed, request string) error {
	_, err := tx.Exec(ctx, "update access_request_key set request_id = $4 where tenant_id = $1 and requester = $2 and key = $3", tx.Tenant(), k.requester, k.key, request)
	return err
}

// Sweep forgets keys that are too old.
func Sweep(ctx context.Context, d *db.DB) error {
	return d.Do(ctx, "", func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, "delete from access_request_key where created_at <= $1", tx.Now().Add(-keepKeys))
		return err
	})
}
