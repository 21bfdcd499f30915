package recording

import (
	"context"
	"fmt"
	"io"
	"time"

	"gocloud.dev/blob"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Sweep removes blobs that no row names: what a crash between a blob and its
// row has left. It looks only at blobs that are older than age, which must be
// longer than what is under way can take (ten minutes, see keepsFor); an hour is
// good. What is removed is an event, written before.
func (r *Recordings) Sweep(ctx context.Context, age time.Duration) (removed int, err error) {
	before := time.Now().Add(-age) // the bucket's clock, not the database's
	list := r.store.bucket.List(nil)
	for {
		o, err := list.Next(ctx)
		if err == io.EOF {
			return removed, nil
		}
		if err != nil {
			return removed, fmt.Errorf("listing the blobs of recordings: %w", err)
		}
		d, ok := digestOf(o.Key)
		if !ok || o.ModTime.After(before) {
			continue
		}
		lost, err := r.orphan(ctx, o, d)
		if err != nil {
			return removed, err
		}
		if lost {
			removed++
		}
	}
}

// orphan removes the blob if no row names it. Whose it is stands in its
// header; a blob without one is none of ours and stays.
func (r *Recordings) orphan(ctx context.Context, o *blob.ListObject, d Digest) (bool, error) {
	b := make([]byte, min(o.Size, maxHeader))
	reader, err := r.store.bucket.NewRangeReader(ctx, o.Key, 0, int64(len(b)), nil)
	if err != nil {
		return false, fmt.Errorf("looking at a blob: %w", err)
	}
	_, err = io.ReadFull(reader, b)
	_ = reader.Close()
	if err != nil {
		return false, fmt.Errorf("looking at a blob: %w", err)
	}
	h, _, _, err := parse(b)
	if err != nil {
		return false, nil
	}
	var named bool
	err = r.guard.DB().View(ctx, h.Tenant, func(tx *db.Tx) error {
		named, err = known(ctx, tx, d)
		return err
	})
	if err != nil || named {
		return false, err
	}
	op := guard.Op{
		Action: "recording.sweep", Target: "recording:" + h.Recording, Effect: guard.Deletes, Session: h.Session,
		Detail: map[string]any{"blob": d.String(), "kind": h.Kind, "size": o.Size},
	}
	by := estover.Caller{Tenant: h.Tenant, Subject: estover.System("recording")}
	if err := r.guard.Do(ctx, by, op, func(*guard.Tx) error { return nil }); err != nil {
		return false, err
	}
	if err := r.store.bucket.Delete(ctx, o.Key); err != nil {
		return false, fmt.Errorf("removing a blob: %w", err)
	}
	return true, nil
}
