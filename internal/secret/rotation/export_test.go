package rotation

import (
	"context"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// ErrCrash is what a function given to [Rotations.Reached] ends the work with.
var ErrCrash = errCrash

// HoldTime is for how long a node that has died has a rotation.
const HoldTime = holdTime

// Reached has f told of each effect before it is made and after.
func (x *Rotations) Reached(f func(point string) error) { x.reached = f }

// Due is when a version is to be replaced, and After when a cron fires.
var Due = Spec.due

// Wait sets how long whoever asks for a rotation waits for it.
func (x *Rotations) Wait(d time.Duration) { x.patience = d }

// A Crew has the turns of a node.
type Crew struct{ crew }

// Take takes a turn for a rotation of a tenant at a target.
func (c *Crew) Take(tenant estover.TenantID, target string, failed bool) bool {
	return c.take(task{db.Place{Tenant: tenant, ID: target}, target, failed})
}

// RunDue does what [Rotations.Work] does once, and returns when nothing more can be
// done at once.
func (x *Rotations) RunDue(ctx context.Context) error {
	tried := map[db.Place]bool{}
	for {
		var busy sync.WaitGroup
		n, err := x.begin(ctx, &busy, tried, func() {})
		busy.Wait()
		if err != nil || n == 0 {
			return err
		}
	}
}

// DueNow are the rotations that are due, as tenant and target, in the order in which they
// have a turn.
func (x *Rotations) DueNow(ctx context.Context) (list []string, err error) {
	err = x.Guard.DB().View(ctx, "", func(tx *db.Tx) error {
		due, err := findDue(ctx, tx)
		for _, t := range due {
			list = append(list, string(t.Tenant)+"/"+t.target)
		}
		return err
	})
	return list, err
}
