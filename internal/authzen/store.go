package authzen

import (
	"context"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/approval"
	"estover.dev/internal/db"
)

// A keyed is a request that was made with an Idempotency-Key. Key and body are
// digests.
type keyed struct{ requester, key, body string }

// keepKeys is how long a key is remembered: as long as a request may wait, and a
// day.
const keepKeys = 8 * 24 * time.Hour

// errKeyTaken is returned for a key with which another request was made meanwhile.
var errKeyTaken = &estover.Error{Kind: estover.Conflict, Code: "idempotency_key_taken", Detail: "Another request with this Idempotency-Key is being made."}

// findKey is the request that was made with a key.
func findKey(ctx context.Context, tx *db.Tx, k keyed) (request string, err error) {
	var body string
	err = tx.QueryRow(ctx, "select body, request_id from access_request_key where tenant_id = $1 and requester = $2 and key = $3 and created_at > $4",
		tx.Tenant(), k.requester, k.key, tx.Now().Add(-keepKeys)).Scan(&body, &request)
	switch {
	case errors.Is(err, db.ErrNoRows):
		return "", approval.ErrNotFound
	case err == nil && body != k.body:
		return "", errDuplicate
	}
	return request, err
}

// insertKey notes with which key a request was made, in the place of one that is
// forgotten.
func insertKey(ctx context.Context, tx *db.Tx, k keyed, request string) error {
	n, err := tx.Exec(ctx, `insert into access_request_key (tenant_id, requester, key, body, request_id, created_at) values ($1, $2, $3, $4, $5, $6)
		on conflict (tenant_id, requester, key) do update set body = excluded.body, request_id = excluded.request_id, created_at = excluded.created_at
		where access_request_key.created_at <= $7`, tx.Tenant(), k.requester, k.key, k.body, request, tx.Now(), tx.Now().Add(-keepKeys))
	if err == nil && n == 0 {
		return errKeyTaken
	}
	return err
}

// Sweep forgets keys that are too old.
func Sweep(ctx context.Context, d *db.DB) error {
	return d.Do(ctx, "", func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, "delete from access_request_key where created_at <= $1", tx.Now().Add(-keepKeys))
		return err
	})
}
