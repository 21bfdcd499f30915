package lease

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/target"
)

// A worker's bounds.
const (
	batchIn   = 30 * time.Second // how long a batch may take
	claimedIn = time.Minute      // for which a worker has its rows; longer than what it does with them
	first     = time.Second      // after a first failure; it doubles each time
	most      = 5 * time.Minute
)

// backOff is when a lease is tried again that has failed so many times before.
func backOff(attempts int64) time.Duration {
	d := min(first<<min(attempts, 20), most)
	return d*8/10 + rand.N(d*4/10+1) // 20 % more or less
}

// Run takes credentials away whose time is over, until ctx is done. Every node
// does: what one has claimed no other has. It does not look at once, so that a
// server with many that are due is not held up in its start.
func (l *Leases) Run(ctx context.Context) error {
	var busy sync.WaitGroup
	defer busy.Wait()
	t := time.NewTicker(l.o.Look)
	defer t.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-l.wake:
		}
		err := l.look(ctx, &busy)
		if err != nil && !failing && ctx.Err() == nil {
			l.o.Logger.Error("leases that are due could not be looked for", "error", err)
		}
		failing = err != nil
	}
}

// look marks what has become due, and starts what there is a turn for.
func (l *Leases) look(ctx context.Context, busy *sync.WaitGroup) error {
	err := l.MarkDue(ctx)
	var due []span
	err = errors.Join(err, l.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		due, err = dueTargets(ctx, tx)
		return err
	}))
	for _, s := range due {
		at, err := l.targets.Snapshot(ctx, s.tenant, s.target)
		if err != nil {
			continue
		}
		for range at.Batches {
			busy.Go(func() {
				err := job.Guarded(func() error {
					for ctx.Err() == nil && l.batch(ctx, s) {
					}
					return nil
				})
				if err != nil {
					l.o.Logger.Error("credentials could not be taken away yet", "target", s.target, "error", err)
				}
			})
		}
	}
	return err
}

// Work takes away what is due now, in all tenants, and returns when nothing more
// can be done at once. It is for tests, and for who cannot wait for [Leases.Run].
func (l *Leases) Work(ctx context.Context) error {
	var busy sync.WaitGroup
	err := l.look(ctx, &busy)
	busy.Wait()
	return err
}

// MarkDue has leases be revoked whose time is over, and those that should have
// been made by now.
func (l *Leases) MarkDue(ctx context.Context) error {
	var late []estover.TenantID
	err := l.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		late, err = lateTenants(ctx, tx)
		return err
	})
	for _, tenant := range late {
		for again := true; again; {
			op := guard.Op{Action: "lease.expire", Target: "lease:*", Effect: guard.Deletes}
			failed := l.guard.Do(ctx, system(tenant), op, func(tx *guard.Tx) error {
				expired, err := markExpired(ctx, tx.Tx)
				if err != nil {
					return err
				}
				late, err := markLate(ctx, tx.Tx)
				again = expired == markAtOnce || late == markAtOnce
				tx.Note("expired", expired)
				tx.Note("not_made", late)
				tx.Touch(Marked, "*")
				return err
			})
			if failed != nil {
				err, again = errors.Join(err, failed), false
			}
		}
	}
	return err
}

var errNone = errors.New("nothing is due")

// batch claims leases of a target and takes their users away. It reports whether
// there may be more.
func (l *Leases) batch(ctx context.Context, s span) bool {
	more := false
	err := l.targets.Work(ctx, s.tenant, s.target, target.Ending, false, func(ctx context.Context, e engine.Engine) error {
		limited, cancel := context.WithTimeout(ctx, batchIn)
		defer cancel()
		var claimed []*Lease
		err := l.guard.DB().Do(limited, s.tenant, func(tx *db.Tx) (err error) {
			claimed, err = claim(limited, tx, s.target, l.o.Node, tx.Now().Add(claimedIn))
			return err
		})
		if err != nil {
			return err
		}
		if len(claimed) == 0 {
			return errNone
		}
		if err := l.at("claim", true); err != nil {
			return err
		}
		done, failed := l.revoke(limited, e, claimed)
		more = failed == nil
		if err := l.at("revoke", true); err != nil {
			return err
		}
		// What is gone is on record, whether or not the time is over.
		saving, stop := context.WithTimeout(context.WithoutCancel(ctx), createIn)
		defer stop()
		return errors.Join(failed, l.record(saving, s, done))
	})
	if err != nil && !errors.Is(err, errNone) && !errors.Is(err, target.ErrBusy) && !errors.Is(err, target.ErrUnreachable) && ctx.Err() == nil {
		l.o.Logger.Error("credentials could not be taken away yet", "target", s.target, "error", err)
	}
	return more
}

// An outcome is what became of one lease.
type outcome struct {
	lease *Lease
	tried bool
	err   error
	alone bool // it is tried by itself from here on
}

// revoke takes users away: those that have failed before each by itself, the others
// together. The error is the target's.
func (l *Leases) revoke(ctx context.Context, e engine.Engine, claimed []*Lease) (done []outcome, failed error) {
	var together, single []*Lease
	for _, x := range claimed {
		if x.alone {
			single = append(single, x)
		} else {
			together = append(together, x)
		}
	}
	try := func(ctx context.Context, list []*Lease) {
		if len(list) == 0 {
			return
		}
		doomed := make([]engine.Doomed, len(list))
		for i, x := range list {
			doomed[i] = engine.Doomed{Name: x.User, Template: x.template}
		}
		var errs []error
		if failed == nil {
			errs = e.Revoke(ctx, doomed)
		}
		for i, x := range list {
			o := outcome{lease: x, tried: failed == nil}
			switch {
			case !o.tried:
			case i >= len(errs):
				o.err = errors.New("the engine has not said what became of the user")
			default:
				o.err = errs[i]
			}
			o.alone = x.alone || o.err != nil && len(list) > 1 && !errors.Is(o.err, engine.ErrUnreachable)
			done = append(done, o)
		}
		for _, err := range errs {
			if errors.Is(err, engine.ErrUnreachable) {
				failed = err
			}
		}
	}
	try(ctx, together)
	for _, x := range single {
		limited, cancel := context.WithTimeout(ctx, batchIn/3)
		try(limited, []*Lease{x})
		cancel()
	}
	return done, failed
}

// record ends what is gone and puts off what is not, in one guarded transaction.
func (l *Leases) record(ctx context.Context, s span, done []outcome) error {
	op := guard.Op{Action: "lease.end", Target: "target:" + s.target, Effect: guard.Deletes}
	return l.guard.Do(ctx, system(s.tenant), op, func(tx *guard.Tx) error {
		var ended, open []string
		recovered := false
		for _, o := range done {
			x := o.lease
			switch {
			case !o.tried:
				if err := letGo(ctx, tx.Tx, x); err != nil {
					return err
				}
			case o.err == nil:
				is, err := finish(ctx, tx.Tx, x)
				if err != nil {
					return err
				}
				if is {
					ended = append(ended, x.ID)
					recovered = recovered || !x.alarmedAt.IsZero()
				}
			default:
				open = append(open, x.ID)
				if err := putOff(ctx, tx.Tx, x, db.Short(o.err.Error()), o.alone, tx.Now().Add(backOff(x.Attempts))); err != nil {
					return err
				}
			}
		}
		tx.Note("leases", ended)
		if len(open) > 0 {
			tx.Note("not_yet", open)
		}
		if recovered {
			left, err := alarmedLeft(ctx, tx.Tx, s.target)
			if err != nil {
				return err
			}
			if !left {
				tx.Note("overdue_cleared", true)
			}
		}
		return nil
	})
}

// Alarm puts on record which leases are overdue: once for each of them (Q6). It is
// called every few seconds, on one node.
func (l *Leases) Alarm(ctx context.Context) error {
	var late map[span][]*Lease
	err := l.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		late, err = unalarmed(ctx, tx)
		return err
	})
	for s, list := range late {
		agents, oldest := []string{}, list[0].DueAt
		for _, x := range list {
			if x.Agent != "" && !slices.Contains(agents, x.Agent) && len(agents) < 50 {
				agents = append(agents, x.Agent)
			}
		}
		op := guard.Op{Action: "lease.overdue", Target: "target:" + s.target, Detail: map[string]any{"agents": agents, "oldest_due_at": oldest, "last_error": list[0].LastError}}
		failed := l.guard.Do(ctx, system(s.tenant), op, func(tx *guard.Tx) error {
			var ids []string
			n := 0
			for _, x := range list {
				is, err := alarm(ctx, tx.Tx, x)
				if err != nil {
					return err
				}
				if is {
					n++
					if len(ids) < 50 {
						ids = append(ids, x.ID)
					}
				}
			}
			tx.Note("leases", ids)
			tx.Note("count", n)
			return nil
		})
		err = errors.Join(err, failed)
	}
	return err
}

// Release gives back, in all tenants, what a node had claimed that is no more, so
// that others need not wait until its time is over.
func (l *Leases) Release(ctx context.Context, node string) error {
	return l.guard.DB().Do(ctx, "", func(tx *db.Tx) error { return release(ctx, tx, node) })
}
