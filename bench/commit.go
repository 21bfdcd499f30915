package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// groupCommit has 64 callers write durably through the door, each with its
// event, and one caller who is alone, so that each of its writes is a
// transaction of its own. Both go through the same statements on the same disk;
// what differs is how many share a commit.
func groupCommit(ctx context.Context, b *Bench) ([]Row, error) {
	var ratios, rates []float64
	for range b.Rounds {
		together, err := b.commits(ctx, 64)
		if err != nil {
			return nil, err
		}
		alone, err := b.commits(ctx, 1)
		if err != nil {
			return nil, err
		}
		ratios, rates = append(ratios, together/alone), append(rates, together)
	}
	return []Row{{
		Name: "group-commit", Ratio: median(ratios), Target: 5, Better: "higher",
		Against: "the same guarded writes, one transaction each", Value: median(rates), Unit: "commits/s, 64 callers",
	}}, nil
}

// commits is how many guarded writes a second so many callers get done.
func (b *Bench) commits(ctx context.Context, callers int) (float64, error) {
	dir, err := os.MkdirTemp(b.Dir, "commit-")
	if err != nil {
		return 0, err
	}
	for _, sub := range []string{"data", "keys"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return 0, err
		}
	}
	h, err := openHouse(ctx, filepath.Join(dir, "data", "estover.db"), filepath.Join(dir, "keys", "root.key"))
	if err != nil {
		return 0, err
	}
	defer h.db.Close()
	if err := h.db.Do(ctx, "", func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, "create table note (tenant_id text not null, id bigint not null, text text not null, primary key (tenant_id, id))")
		return err
	}); err != nil {
		return 0, err
	}
	var done atomic.Int64
	var failed atomic.Pointer[error]
	began := time.Now()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for time.Since(began) < b.For {
				id := done.Add(1)
				op := guard.Op{Action: "note.write", Target: fmt.Sprintf("note:%d", id)}
				if err := h.guard.Do(ctx, us, op, func(tx *guard.Tx) error {
					_, err := tx.Exec(ctx, "insert into note (tenant_id, id, text) values ($1, $2, $3)", tx.Tenant(), id, "what somebody wants to keep")
					return err
				}); err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, fmt.Errorf("writing: %w", *err)
	}
	return float64(done.Load()) / time.Since(began).Seconds(), nil
}
