package seal

import (
	"context"
	"errors"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// A KEK is not deleted while a data key is being made under it: the deletion
// waits, and then sees the data key.
func TestKEKIsHeldWhileADataKeyIsMade(t *testing.T) {
	ctx := t.Context()
	// SQLite has one writer, who has nobody to wait for.
	d, err := db.Open(ctx, dbtest.Postgres(t), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Do(ctx, installation, func(tx *db.Tx) error {
		return errors.Join(insertKEK(ctx, tx, 1), insertKEK(ctx, tx, 2))
	}); err != nil {
		t.Fatal(err)
	}
	deleted := make(chan error, 1)
	err = d.Do(ctx, "acme", func(tx *db.Tx) error {
		if err := holdKEK(ctx, tx, 1); err != nil {
			return err
		}
		go func() {
			deleted <- d.Do(ctx, installation, func(tx *db.Tx) error { return deleteKEKsBelow(ctx, tx, 2) })
		}()
		if err := waitForLock(ctx, d, deleted); err != nil {
			return err
		}
		return insertDEK(ctx, tx, dekRow{class: KV, version: 1, kek: 1, wrapped: []byte{1}, created: tx.Now(), from: tx.Now()})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	if err := d.Do(ctx, "acme", func(tx *db.Tx) error { return holdKEK(ctx, tx, 1) }); err != nil {
		t.Errorf("the KEK of the data key: %v", err)
	}
}

// waitForLock returns when somebody waits for a lock in the database, or with
// an error when the deletion did not.
func waitForLock(ctx context.Context, d *db.DB, deleted <-chan error) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		var n int
		if err := d.View(ctx, installation, func(tx *db.Tx) error {
			return tx.QueryRow(ctx, `select count(*) from pg_stat_activity where wait_event_type = 'Lock'`).Scan(&n)
		}); err != nil {
			return err
		}
		if n > 0 {
			return nil
		}
		select {
		case err := <-deleted:
			return errors.Join(errors.New("the KEK was deleted"), err)
		default:
		}
	}
	return errors.New("nobody waits for the KEK")
}
