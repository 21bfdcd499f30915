// Package job does what has to be done again and again, on one node at a time:
// sweeping up rows that are due, following the log for somebody outside.
//
// There is no queue. The row that is due is the queue, and a job is the method
// of a domain package that looks for such rows; this package only sees to it
// that one node looks, and that another one does when that node is gone.
//
//	         ┌───────────────── due again ◀──────────────────┐
//	free ────┴─(due, taken by one node: compare and swap)─▶ held ──▶ done
//	 ▲                                                        │ renewed while it runs
//	 └────────────── held_until passed: the node is gone ◀────┘
//
// A job is held by a lease. A node that cannot renew it stops the work before
// the lease ends, by cancelling its context; but a node that hangs may wake up
// late, so that a job may still be under way in two places for a moment. So
// every job is idempotent, and what must happen only once is a compare-and-swap
// on the row that it is about.
package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// ErrLost is the cause for which a job's context ends when the node has lost
// the lease.
var ErrLost = errors.New("the job's lease is lost")

// Options are what a program may set. The zero value is good.
type Options struct {
	Lease  time.Duration // how long a node that is gone holds a job; 15 s if zero
	Poll   time.Duration // how often a node looks for jobs that are due; 500 ms if zero
	Node   string        // the name of this node; a new one if empty
	Logger *slog.Logger
}

// Jobs are the jobs that a node is willing to do.
type Jobs struct {
	db   *db.DB
	node string
	o    Options
	jobs []job
}

// A job is one of them.
type job struct {
	name  string
	every time.Duration // from the end of one run to the next; 0: it runs as long as the node does
	fn    func(ctx context.Context) error
}

// New is a node's list of jobs, empty yet.
func New(d *db.DB, o Options) *Jobs {
	if o.Lease == 0 {
		o.Lease = 15 * time.Second
	}
	if o.Poll == 0 {
		o.Poll = 500 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Node == "" {
		o.Node = estover.NewID("node")
	}
	return &Jobs{db: d, node: o.Node, o: o}
}

// Release gives back the jobs that a node held which is no more.
func Release(ctx context.Context, d *db.DB, node string) error {
	return d.Do(ctx, "", func(tx *db.Tx) error { return release(ctx, tx, node) })
}

// Every adds a job that is done every so often: once now if it has never been
// done, and then so long after each time that it ended, well or not. Call it
// before [Jobs.Run].
func (j *Jobs) Every(name string, every time.Duration, fn func(ctx context.Context) error) {
	if every <= 0 {
		panic("job: " + name + " is never over")
	}
	j.jobs = append(j.jobs, job{name, every, fn})
}

// While adds a job that goes on as long as the node does, such as following
// the log. If it ends, it begins again after a while, here or elsewhere. Call
// it before [Jobs.Run].
func (j *Jobs) While(name string, fn func(ctx context.Context) error) {
	j.jobs = append(j.jobs, job{name, 0, fn})
}

// restart is how long after its end a job that should go on begins again.
const restart = time.Second

// Run does the jobs that fall to this node until ctx is done, and then lets
// the others have them.
func (j *Jobs) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	busy := make(map[string]bool, len(j.jobs))
	done := make(chan string, len(j.jobs))
	t := time.NewTicker(j.o.Poll)
	defer t.Stop()
	for {
		if err := j.start(ctx, busy, func(job job) {
			busy[job.name] = true
			running.Go(func() {
				j.run(ctx, job)
				done <- job.name
			})
		}); err != nil && ctx.Err() == nil {
			j.o.Logger.Error("jobs could not be looked for", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case name := <-done:
			delete(busy, name)
		case <-t.C:
		}
	}
}

// start takes the jobs that are due and nobody does.
func (j *Jobs) start(ctx context.Context, busy map[string]bool, begin func(job)) error {
	var rows map[string]row
	var now time.Time
	err := j.db.View(ctx, "", func(tx *db.Tx) (err error) {
		now = tx.Now()
		rows, err = read(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	for _, job := range j.jobs {
		if r, ok := rows[job.name]; busy[job.name] || ok && (now.Before(r.due) || now.Before(r.until)) {
			continue
		}
		var taken bool
		err := j.db.Do(ctx, "", func(tx *db.Tx) (err error) {
			taken, err = take(ctx, tx, job.name, j.node, tx.Now().Add(j.o.Lease))
			return err
		})
		if err != nil {
			return fmt.Errorf("taking %s: %w", job.name, err)
		}
		if taken {
			begin(job)
		}
	}
	return nil
}

// run does a job that this node holds, and gives it back.
func (j *Jobs) run(ctx context.Context, job job) {
	work, cancel := context.WithCancelCause(ctx)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		j.renew(work, job, cancel)
	}()
	err := Guarded(func() error { return job.fn(work) })
	lost := errors.Is(context.Cause(work), ErrLost)
	cancel(nil)
	<-renewed
	if err != nil && ctx.Err() == nil {
		j.o.Logger.Error("a job failed", "job", job.name, "lost", lost, "error", err)
	}
	if lost {
		return // it is somebody else's
	}
	pause := job.every
	if job.every == 0 {
		pause = restart
	}
	if ctx.Err() != nil {
		pause = 0 // it was interrupted: the next node goes on with it
	}
	// The node may be on its way out, and still has to give the job back.
	after, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer stop()
	err = j.db.Do(after, "", func(tx *db.Tx) error { return giveBack(after, tx, job.name, j.node, tx.Now().Add(pause)) })
	if err != nil {
		j.o.Logger.Error("a job could not be given back; its lease will end", "job", job.name, "error", err)
	}
}

// renew keeps the lease until ctx is done, and cancels the work if it cannot.
func (j *Jobs) renew(ctx context.Context, job job, cancel context.CancelCauseFunc) {
	every := j.o.Lease / 5
	deadline := time.Now().Add(j.o.Lease - 2*every) // before the lease ends, whatever this node's clock says
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		began := time.Now()
		var held bool
		ask, stop := context.WithDeadline(ctx, deadline)
		err := j.db.Do(ask, "", func(tx *db.Tx) (err error) {
			held, err = hold(ask, tx, job.name, j.node, tx.Now().Add(j.o.Lease))
			return err
		})
		stop()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && held:
			deadline = began.Add(j.o.Lease - 2*every)
		case err == nil, !time.Now().Before(deadline):
			cancel(ErrLost)
			return
		}
	}
}
