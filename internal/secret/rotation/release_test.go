package rotation_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/rotation"
)

// What a node had taken on that was killed is free when its server starts again, and
// nobody waits until its time is over (F7).
func TestRelease(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		h.put(pair)
		held := func() (by string) {
			if err := d.View(t.Context(), h.tenant, func(tx *db.Tx) error {
				return tx.QueryRow(t.Context(), `select held_by from rotation where tenant_id = $1 and held_until > $2`, tx.Tenant(), tx.Now()).Scan(&by)
			}); err != nil && !errors.Is(err, db.ErrNoRows) {
				t.Fatal(err)
			}
			return by
		}
		if err := d.Do(t.Context(), h.tenant, func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `update rotation set held_by = 'node_9', held_until = $2 where tenant_id = $1`, tx.Tenant(), tx.Now().Add(time.Minute))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ gone, want string }{{"node_8", "node_9"}, {"node_9", ""}} {
			if err := h.x.Release(t.Context(), c.gone); err != nil {
				t.Fatal(err)
			}
			if by := held(); by != c.want {
				t.Errorf("after %s had given back what it had, %q has the rotation, want %q", c.gone, by, c.want)
			}
		}
		if r := h.run(); r.Current != 1 {
			t.Errorf("then the secret has the version %d, want it rotated", r.Current)
		}
	})
}

// A rotation keeps its target from being removed: it is begun in a transaction that
// holds the target, and who removes that counts it.
func TestTargetIsKept(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		gone := errors.New("the target was removed")
		h.x.Keep = func(context.Context, *db.Tx, string) error { return gone }
		if _, err := h.x.Put(t.Context(), h.ann, path, pair); !errors.Is(err, gone) {
			t.Errorf("a rotation at a target that was removed meanwhile: %v", err)
		}
		count := func() (n int64) {
			if err := d.View(t.Context(), h.tenant, func(tx *db.Tx) (err error) {
				n, err = rotation.Rotated(t.Context(), tx, "tgt_1")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := count(); n != 0 {
			t.Errorf("%d rotations are at the target, want none", n)
		}
		h.x.Keep = nil
		h.put(pair)
		if n := count(); n != 1 {
			t.Errorf("%d rotations are at the target, want one", n)
		}
	})
}
