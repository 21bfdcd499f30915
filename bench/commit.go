package main

import (
	"context"
	"fmt"
	"math/rand/v2"
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
		together, err := b.commits(ctx, 64, guarded)
		if err != nil {
			return nil, err
		}
		alone, err := b.commits(ctx, 1, guarded)
		if err != nil {
			return nil, err
		}
		ratios, rates = append(ratios, together.rate/alone.rate), append(rates, together.rate)
	}
	return []Row{{
		Name: "group-commit", Ratio: median(ratios), Target: 5, Better: "higher",
		Against: "the same guarded writes, one transaction each", Value: median(rates), Unit: "commits/s, 64 callers",
	}}, nil
}

// audited compares the same guarded writes of 64 callers with writes that nobody
// allows and nobody records. Beside the former the log goes on: their events get
// places, tiles and a signed checkpoint.
func audited(ctx context.Context, b *Bench) ([]Row, error) {
	var rates, costs, own, each []float64
	for range b.Rounds {
		with, err := b.commits(ctx, 64, guarded)
		if err != nil {
			return nil, err
		}
		without, err := b.commits(ctx, 64, bare)
		if err != nil {
			return nil, err
		}
		rates, own = append(rates, with.rate/without.rate), append(own, with.rate)
		costs, each = append(costs, with.cost/without.cost), append(each, with.cost)
	}
	return []Row{
		{
			Name: "audited-rate", Ratio: median(rates), Target: 0.6, Better: "higher",
			Against: "the same writes without door and log", Value: median(own), Unit: "commits/s, 64 callers",
		},
		{
			Name: "audited-cost", Ratio: median(costs), Target: 3, Better: "lower",
			Against: "the same writes without door and log", Value: median(each), Unit: "µs of CPU a commit, the log's work counted in",
		},
	}, nil
}

// A writing says how a note is written.
type writing func(ctx context.Context, h *house, id int64) error

const noteText = "insert into note (tenant_id, id, text) values ($1, $2, $3)"

// guarded writes through the door.
func guarded(ctx context.Context, h *house, id int64) error {
	return h.guard.Do(ctx, us, guard.Op{Action: "note.write", Target: fmt.Sprintf("note:%d", id)}, func(tx *guard.Tx) error {
		_, err := tx.Exec(ctx, noteText, tx.Tenant(), id, "what somebody wants to keep")
		return err
	})
}

// bare writes to the database.
func bare(ctx context.Context, h *house, id int64) error {
	return h.db.Do(ctx, us.Tenant, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, noteText, tx.Tenant(), id, "what somebody wants to keep")
		return err
	})
}

// written is what callers got done.
type written struct {
	rate float64 // commits a second
	cost float64 // microseconds of this process's CPU time a commit
}

// withNotes is a house with a table of notes, whose log goes on until it is closed.
func (b *Bench) withNotes(ctx context.Context) (h *house, closed func() error, err error) {
	if h, err = b.newHouse(ctx); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var log sync.WaitGroup
	var failed error
	log.Go(func() { failed = h.log.Run(ctx) })
	closed = func() error {
		_ = h.log.Sequence(ctx, us.Tenant) // what is left for it to do
		cancel()
		log.Wait()
		_ = h.db.Close()
		return failed
	}
	if err := h.db.Do(ctx, "", func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, "create table note (tenant_id text not null, id bigint not null, text text not null, primary key (tenant_id, id))")
		return err
	}); err != nil {
		_ = closed()
		return nil, nil, err
	}
	return h, closed, nil
}

// commits has so many callers write, one note after the other.
func (b *Bench) commits(ctx context.Context, callers int, write writing) (w written, err error) {
	h, closed, err := b.withNotes(ctx)
	if err != nil {
		return w, err
	}
	var done atomic.Int64
	var failed atomic.Pointer[error]
	before, err := ownCPU()
	if err != nil {
		return w, err
	}
	began := time.Now()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for time.Since(began) < b.For {
				if err := write(ctx, h, done.Add(1)); err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	lasted := time.Since(began)
	err = closed()
	after, cpuErr := ownCPU()
	switch first := failed.Load(); {
	case first != nil:
		return w, fmt.Errorf("writing: %w", *first)
	case err != nil:
		return w, err
	}
	n := float64(done.Load())
	return written{n / lasted.Seconds(), float64((after - before).Microseconds()) / n}, cpuErr
}

// checkpoints measures how long after a commit a signed checkpoint holds its
// event, when one comes now and then.
func checkpoints(ctx context.Context, b *Bench) ([]Row, error) {
	const tick = 200 * time.Millisecond // how often events are sequenced
	h, closed, err := b.withNotes(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = closed() }()
	number := func(query string) (n int64, err error) {
		err = h.db.View(ctx, us.Tenant, func(tx *db.Tx) error { return tx.QueryRow(ctx, query, tx.Tenant()).Scan(&n) })
		return n, err
	}
	var took []float64
	for id := range int64(100) {
		time.Sleep(rand.N(tick))
		if err := guarded(ctx, h, id); err != nil {
			return nil, err
		}
		began := time.Now()
		events, err := number("select coalesce(sum(n), 0) from audit where tenant_id = $1")
		if err != nil {
			return nil, err
		}
		for signed := int64(-1); signed < events; time.Sleep(time.Millisecond) {
			if signed, err = number("select coalesce(max(signed_size), 0) from audit_tree where tenant_id = $1"); err != nil {
				return nil, err
			}
			if time.Since(began) > time.Minute {
				return nil, fmt.Errorf("of %d events %d are in a checkpoint after a minute", events, signed)
			}
		}
		took = append(took, time.Since(began).Seconds())
	}
	row := func(name string, at, target float64) Row {
		return Row{
			Name: name, Ratio: at / tick.Seconds(), Target: target, Better: "lower",
			Against: "how often the log is sequenced, 200 ms", Value: at * 1000, Unit: "ms from a commit to a signed checkpoint",
		}
	}
	return []Row{row("checkpoint-p50", median(took), 2), row("checkpoint-p99", quantile(took, 0.99), 5)}, nil
}
