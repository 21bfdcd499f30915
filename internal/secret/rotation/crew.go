package rotation

import (
	"context"
	"errors"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/job"
)

// How many rotations a node works at: of all tenants together, of one, at one target
// (R11), and of those that have failed the last time. A target that hangs holds its
// turns for [effectTime], and after that is one of those: so it holds up others like
// it, and nobody else.
const (
	atOnce    = 32
	ofTenant  = 8
	perTarget = 2
	failing   = 16
)

// A task is a rotation at which there is something to do.
type task struct {
	db.Place
	target string
	failed bool // the last time
}

// A crew are the turns of a node. The zero value has all of them free.
type crew struct {
	mu      sync.Mutex
	all     int
	failed  int
	tenants map[estover.TenantID]int
	targets map[db.Place]int
}

// take takes a turn for a task, if there is one for it.
func (c *crew) take(t task) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := db.Place{Tenant: t.Tenant, ID: t.target}
	if c.all >= atOnce || c.tenants[t.Tenant] >= ofTenant || c.targets[at] >= perTarget || t.failed && c.failed >= failing {
		return false
	}
	if c.tenants == nil {
		c.tenants, c.targets = map[estover.TenantID]int{}, map[db.Place]int{}
	}
	c.all++
	c.tenants[t.Tenant]++
	c.targets[at]++
	if t.failed {
		c.failed++
	}
	return true
}

// leave gives a turn back.
func (c *crew) leave(t task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := db.Place{Tenant: t.Tenant, ID: t.target}
	c.all--
	if t.failed {
		c.failed--
	}
	if c.tenants[t.Tenant]--; c.tenants[t.Tenant] == 0 {
		delete(c.tenants, t.Tenant)
	}
	if c.targets[at]--; c.targets[at] == 0 {
		delete(c.targets, at)
	}
}

// Work works at the rotations that are due, of all tenants, until ctx is done. It may
// go on on two nodes.
func (x *Rotations) Work(ctx context.Context) error {
	var busy sync.WaitGroup
	defer busy.Wait()
	free := make(chan struct{}, 1)
	t := time.NewTicker(time.Second)
	defer t.Stop()
	sick := false
	for {
		_, err := x.begin(ctx, &busy, nil, func() {
			select {
			case free <- struct{}{}:
			default:
			}
		})
		if err != nil && !sick && ctx.Err() == nil {
			x.Logger.Error("rotations that are due could not be looked for", "error", err)
		}
		sick = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-free: // there may be more for whom there was no turn
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

// begin starts on what is due and has a turn, but for what was tried before, and says
// how much that is. It tells done of each that has gone well.
func (x *Rotations) begin(ctx context.Context, busy *sync.WaitGroup, tried map[db.Place]bool, done func()) (begun int, err error) {
	var due []task
	err = x.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		due, err = findDue(ctx, tx)
		return err
	})
	for _, t := range due {
		if tried[t.Place] || !x.crew.take(t) {
			continue
		}
		if begun++; tried != nil {
			tried[t.Place] = true
		}
		busy.Go(func() {
			defer x.crew.leave(t)
			switch err := job.Guarded(func() error { return x.advance(ctx, t.Tenant, t.ID) }); {
			case err == nil:
				defer done() // after the turn is free
			case !errors.Is(err, errLost) && ctx.Err() == nil:
				x.Logger.Error("a rotation could not be worked at", "secret", t.ID, "error", err)
			}
		})
	}
	return begun, err
}
