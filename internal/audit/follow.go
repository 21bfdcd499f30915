package audit

import (
	"context"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// Of a follower: how many events it is given at once, how many it looks over for
// one that is wanted, how often it looks whether other nodes have sequenced some,
// and how long at most it waits before it tries again what failed.
const (
	followBatch = 256
	followOver  = 4096
	followEvery = 150 * time.Millisecond
	followRetry = 30 * time.Second
)

// Follow calls fn with the events of every tenant, each tenant's in the order
// of the log, until ctx is done. Where it is in the log is kept in the database
// under name: a follower begins with the log's first event, and goes on after a
// restart where it was.
//
// Every event comes at least once. It comes again if the process ends, or fn
// fails, before its batch is done, and if several nodes follow under one name;
// so fn is idempotent, by [Event.ID]. When fn fails it is called again with the
// same events, after a pause that grows; other tenants do not wait for that.
//
// wants, which may be nil for every event, says before each batch which actions
// the tenant's events are to be of; nil for none at all, which are then not even
// read. To open an event costs as much as to write it, and most of the log is of
// calls and tokens.
func (l *Log) Follow(ctx context.Context, name string, wants Wants, fn func(ctx context.Context, tenant estover.TenantID, events []Entry) error) error {
	f := follower{l, "", name, wants, fn, map[estover.TenantID]trouble{}}
	return f.run(ctx)
}

// FollowTenant is Follow of one tenant's log, and of every event there, from the place
// that [Log.Begin] has given name. Without one, and once [Log.Forget] has taken it
// away, nothing comes.
func (l *Log) FollowTenant(ctx context.Context, tenant estover.TenantID, name string, fn func(ctx context.Context, events []Entry) error) error {
	f := follower{l, tenant, name, nil, func(ctx context.Context, _ estover.TenantID, events []Entry) error { return fn(ctx, events) }, map[estover.TenantID]trouble{}}
	return f.run(ctx)
}

// Begin has whoever follows the tenant's log under a name begin at its end as it is
// now: with the events of this transaction, and maybe with some that are a little older.
func (l *Log) Begin(ctx context.Context, tx *db.Tx, name string) error {
	return startCursor(ctx, tx, name)
}

// Forget takes the place away of who follows the tenant's log under a name.
func (l *Log) Forget(ctx context.Context, tx *db.Tx, name string) error {
	return dropCursor(ctx, tx, name)
}

func (f *follower) run(ctx context.Context) error {
	l, name := f.log, f.name
	for {
		grown := l.grows() // before the look, so that nothing falls between
		more, err := f.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			l.o.Logger.Error("the log could not be followed", "name", name, "error", err)
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-grown:
		case <-time.After(followEvery):
		}
	}
}

// Wants says of which actions somebody wants a tenant's events: none if it is nil.
type Wants func(ctx context.Context, tenant estover.TenantID) (func(action string) bool, error)

// A follower is one Follow under way.
type follower struct {
	log    *Log
	only   estover.TenantID // whose log is followed; "" for everybody's
	name   string
	wants  Wants
	fn     func(ctx context.Context, tenant estover.TenantID, events []Entry) error
	failed map[estover.TenantID]trouble
}

// A trouble says when a tenant's events are tried again.
type trouble struct {
	until time.Time
	pause time.Duration
}

// once hands on one batch of each log that has more than the follower has
// seen, and reports whether one of them has still more.
func (f *follower) once(ctx context.Context) (more bool, err error) {
	var logs []cursor
	err = f.log.db.View(ctx, f.only, func(tx *db.Tx) (err error) {
		if f.only != "" {
			logs, err = behindOf(ctx, tx, f.name)
		} else {
			logs, err = behind(ctx, tx, f.name)
		}
		return err
	})
	if err != nil {
		return false, err
	}
	for _, c := range logs {
		t := f.failed[c.tenant]
		if time.Now().Before(t.until) {
			continue
		}
		end, err := f.deliver(ctx, c)
		if ctx.Err() != nil {
			return false, nil
		}
		if err == nil {
			delete(f.failed, c.tenant)
			more = more || c.size > end
			continue
		}
		t.pause = min(max(2*t.pause, followEvery), followRetry)
		t.until = time.Now().Add(t.pause)
		f.failed[c.tenant] = t
		f.log.o.Logger.Error("a follower of the log failed and will try again", "name", f.name, "tenant", c.tenant, "pause", t.pause, "error", err)
	}
	return more, nil
}

// deliver hands the next events to fn, and then moves the cursor on, to end.
func (f *follower) deliver(ctx context.Context, c cursor) (end int64, err error) {
	l := f.log
	first := c.next
	end = min(first+followBatch, c.size)
	var wanted func(action string) bool
	if f.wants != nil {
		if wanted, err = f.wants(ctx, c.tenant); err != nil {
			return 0, err
		}
		if wanted == nil {
			return c.size, f.move(ctx, c.tenant, c.size)
		}
		if first, end, err = f.seek(ctx, c, wanted); err != nil {
			return 0, err
		}
	}
	var rows []row
	if first < end {
		err = l.db.View(ctx, c.tenant, func(tx *db.Tx) (err error) {
			rows, err = readPlaced(ctx, tx, first, end)
			return err
		})
	}
	if err != nil {
		return 0, err
	}
	if int64(len(rows)) != end-first {
		return 0, ErrDamaged
	}
	if wanted != nil {
		rows = slices.DeleteFunc(rows, func(r row) bool { return !wanted(r.event.Action) })
	}
	events, err := l.entries(c.tenant, rows)
	if err != nil {
		return 0, err
	}
	if len(events) > 0 {
		if err := f.fn(ctx, c.tenant, events); err != nil {
			return 0, err
		}
	}
	if err := l.fault("follow: before the cursor"); err != nil {
		return 0, err
	}
	return end, f.move(ctx, c.tenant, end)
}

// seek finds the next event that is wanted, and where the batch ends that begins
// with it. Where there is none among those that it looks over, first is end.
func (f *follower) seek(ctx context.Context, c cursor, wanted func(action string) bool) (first, end int64, err error) {
	end = min(c.next+followOver, c.size)
	var heads []head
	err = f.log.db.View(ctx, c.tenant, func(tx *db.Tx) (err error) {
		heads, err = readHeadsBetween(ctx, tx, c.next, end)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	i := slices.IndexFunc(heads, func(h head) bool { return wanted(h.Action) })
	if i < 0 {
		return end, end, nil
	}
	first = c.next + int64(i)
	return first, min(first+followBatch, end), nil
}

// move brings the cursor to where the next batch begins.
func (f *follower) move(ctx context.Context, tenant estover.TenantID, next int64) error {
	return f.log.db.Do(ctx, tenant, func(tx *db.Tx) error {
		if f.only != "" { // its place may have been taken away meanwhile
			return moveCursor(ctx, tx, f.name, next)
		}
		return saveCursor(ctx, tx, f.name, next)
	})
}
