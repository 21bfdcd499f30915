package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev/internal/db"
)

// groupCommit has 64 callers write durably, together as db does it and each in
// a transaction of its own, to the same disk. Both go through the same
// statements; what differs is how many share a commit.
func groupCommit(ctx context.Context, b *Bench) ([]Row, error) {
	var ratios, rates []float64
	for range b.Rounds {
		together, err := b.commits(ctx, 64)
		if err != nil {
			return nil, err
		}
		// One caller at a time is one transaction each: nobody waits with whom
		// a commit could be shared.
		alone, err := b.commits(ctx, 1)
		if err != nil {
			return nil, err
		}
		ratios, rates = append(ratios, together/alone), append(rates, together)
	}
	return []Row{{
		Name: "group-commit", Ratio: median(ratios), Target: 5, Better: "higher",
		Against: "the same writes, one transaction each", Value: median(rates), Unit: "commits/s, 64 callers",
	}}, nil
}

// commits is how many durable writes a second so many callers get done.
func (b *Bench) commits(ctx context.Context, callers int) (float64, error) {
	file, err := b.fileIn("commit-*.db")
	if err != nil {
		return 0, err
	}
	d, err := db.Open(ctx, "sqlite:"+file, db.Options{})
	if err != nil {
		return 0, err
	}
	defer d.Close()
	if err := d.Do(ctx, "", func(tx *db.Tx) error {
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
				if err := d.Do(ctx, "acme", func(tx *db.Tx) error {
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
