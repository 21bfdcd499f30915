package notify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
)

// The bounds of sending.
const (
	lookEvery  = 500 * time.Millisecond
	maxLines   = 200 // that are looked at in one round
	atOnce     = 16  // messages under way
	maxBundle  = 50  // events in one message; the rest is the next one
	sendTime   = 30 * time.Second
	giveUp     = 24 * time.Hour // after which a message is dropped that does not get through
	keepSaid   = 7 * 24 * time.Hour
	hourly     = time.Hour
	maxFailure = 300 // characters
)

// pauses are how long a message waits after each failure, the last one for all
// that follow.
var pauses = []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour}

// Run sends what is due until ctx is done. One node at a time does it. A line
// whose other side is slow keeps nobody else waiting.
func (n *Notify) Run(ctx context.Context) error {
	var under sync.WaitGroup
	defer under.Wait()
	places := make(chan struct{}, atOnce)
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		lines, err := n.due(ctx)
		if err != nil && ctx.Err() == nil {
			n.Logger.Error("what is to be told could not be looked for", "error", err)
		}
		for _, l := range lines {
			if !n.take(l) {
				continue
			}
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				n.leave(l)
				return nil
			}
			under.Go(func() {
				defer func() {
					n.leave(l)
					<-places
				}()
				if err := job.Guarded(func() error { _, err := n.say(ctx, l); return err }); err != nil && ctx.Err() == nil {
					n.Logger.Error("a message could not be sent", "tenant", l.tenant, "channel", l.channel, "error", err)
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// SendDue sends what is due now, one message of each line, and says how many got
// through.
func (n *Notify) SendDue(ctx context.Context) (sent int, err error) {
	lines, err := n.due(ctx)
	if err != nil {
		return 0, err
	}
	var failed []error
	for _, l := range lines {
		if !n.take(l) {
			continue
		}
		ok, err := n.say(ctx, l)
		n.leave(l)
		if ok {
			sent++
		}
		failed = append(failed, err)
	}
	return sent, errors.Join(failed...)
}

// Sweep forgets what was said long ago.
func (n *Notify) Sweep(ctx context.Context) error {
	return n.guard.DB().Do(ctx, "", func(tx *db.Tx) error {
		_, err := sweep(ctx, tx, tx.Now().Add(-keepSaid))
		return err
	})
}

func (n *Notify) due(ctx context.Context) (lines []line, err error) {
	err = n.guard.DB().View(ctx, "", func(tx *db.Tx) error {
		lines, err = dueLines(ctx, tx, maxLines)
		return err
	})
	return lines, err
}

// take marks a line as under way here, if it is not.
func (n *Notify) take(l line) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy[l] {
		return false
	}
	n.busy[l] = true
	return true
}

func (n *Notify) leave(l line) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.busy, l)
}

// A bundle is what one message says.
type bundle struct {
	id       string
	list     []message
	attempts int64
	since    time.Time // of the oldest
}

// say sends the next message of a line, and reports whether it got through. That
// it did not is noted, and no error.
func (n *Notify) say(ctx context.Context, l line) (bool, error) {
	channels, err := n.copies.Get(ctx, l.tenant, all)
	if err != nil {
		return false, err
	}
	var c *Channel
	for i := range channels {
		if channels[i].ID == l.channel {
			c = &channels[i]
		}
	}
	if c == nil { // retired a moment ago
		return false, n.guard.DB().Do(ctx, l.tenant, func(tx *db.Tx) error {
			_, err := dropAll(ctx, tx, l.channel)
			return err
		})
	}
	b, err := n.bundle(ctx, l, c)
	if err != nil || b == nil {
		return false, err
	}
	said, err := n.render(ctx, l, b)
	if err != nil {
		return false, err
	}
	if len(said) == 0 {
		return false, n.guard.DB().Do(ctx, l.tenant, func(tx *db.Tx) error {
			_, err := settle(ctx, tx, l, b.id, "dropped")
			return err
		})
	}
	at, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	failed := n.deliver(at, l, c, b, said)
	if ctx.Err() != nil {
		return false, ctx.Err() // nobody knows whether it got through, so it is sent again
	}
	return failed == nil, n.settle(ctx, l, c, b, said, failed)
}

// bundle is the next message of a line, nil if its time has not come. What is in
// it is decided once: it is the same when it is sent again.
func (n *Notify) bundle(ctx context.Context, l line, c *Channel) (b *bundle, err error) {
	most := maxBundle
	if c.Kind == Webhook { // programs get one event at a time
		most = 1
	}
	id := estover.NewID("msg")
	err = n.guard.DB().Do(ctx, l.tenant, func(tx *db.Tx) error {
		b = nil
		list, err := head(ctx, tx, l, most)
		if err != nil || len(list) == 0 || list[0].due.After(tx.Now()) {
			return err
		}
		first := list[0]
		if first.bundle != "" {
			b = &bundle{id: first.bundle, attempts: first.attempts, since: first.created}
			for _, m := range list {
				if m.bundle == first.bundle {
					b.list = append(b.list, m)
				}
			}
			return nil
		}
		if most := c.perHour(); most > 0 {
			times, err := said(ctx, tx, l, tx.Now().Add(-hourly), most)
			if err != nil {
				return err
			}
			if int64(len(times)) == most {
				return hold(ctx, tx, l, times[most-1].Add(hourly))
			}
		}
		b = &bundle{id: id, list: list, since: first.created}
		return bound(ctx, tx, list, id)
	})
	if errors.Is(err, db.ErrStale) {
		return nil, nil // somebody else was faster
	}
	return b, err
}

// A saying is one event of a message, in words.
type saying struct {
	event  event
	matter Matter
}

// render puts a bundle into words. What has been decided in the meantime is left
// out, unless that is what is told.
func (n *Notify) render(ctx context.Context, l line, b *bundle) (list []saying, err error) {
	asks := map[string]bool{}
	for _, m := range b.list {
		e := m.event
		if e.Request == "" {
			list = append(list, saying{e, Matter{Title: fmt.Sprintf("%s: %s by %s", e.Action, cmp.Or(e.Target, "-"), e.Actor)}})
			continue
		}
		matter, err := n.Describe(ctx, l.tenant, e.Request)
		if estover.KindOf(err) == estover.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		if waits := e.Action == usual[0] || e.Action == usual[1]; waits {
			if !matter.Open || asks[e.Request] {
				continue
			}
			asks[e.Request] = true
		} else {
			matter.Title = fmt.Sprintf("%s: %s", matter.Title, cmp.Or(e.State, strings.TrimPrefix(e.Action, "access.")))
		}
		list = append(list, saying{e, matter})
	}
	return list, nil
}

// settle notes what became of a message.
func (n *Notify) settle(ctx context.Context, l line, c *Channel, b *bundle, said []saying, failed error) error {
	if failed == nil {
		return n.recorded(ctx, l, b, said, "sent", nil)
	}
	why := reason(failed)
	if n.guard.DB().Now().Sub(b.since) >= giveUp {
		return n.recorded(ctx, l, b, said, "dropped", ErrSend.With("The message did not get through for a day, and was given up: %s", why))
	}
	n.Logger.Warn("a message did not get through and will be sent again", "tenant", l.tenant, "channel", c.Name, "attempts", b.attempts+1, "error", why)
	pause := pauses[min(int(b.attempts), len(pauses)-1)]
	return n.later(ctx, l, b, pause, why)
}

// later tries a bundle again after a pause.
func (n *Notify) later(ctx context.Context, l line, b *bundle, pause time.Duration, why string) error {
	return n.guard.DB().Do(ctx, l.tenant, func(tx *db.Tx) error {
		if err := postpone(ctx, tx, l, b.id, tx.Now().Add(pause)); err != nil {
			return err
		}
		return fails(ctx, tx, l.channel, why)
	})
}

// recorded ends a message, and puts on record who was told of what, or that they
// were not. Whoever was slower than another node does nothing.
func (n *Notify) recorded(ctx context.Context, l line, b *bundle, said []saying, state string, failed *estover.Error) error {
	system := estover.Caller{Tenant: l.tenant, Subject: estover.System("notify")}
	detail := map[string]any{"message": b.id, "attempts": b.attempts + 1}
	if l.recipient != "" {
		detail["recipient"] = l.recipient
	}
	var events, requests []string
	for _, s := range said {
		events = append(events, s.event.ID)
		if s.event.Request != "" {
			requests = append(requests, s.event.Request)
		}
	}
	detail["events"], detail["requests"] = events, requests
	op := guard.Op{Action: "channel.send", Target: "channel:" + l.channel, Effect: guard.Sends, Detail: detail}
	err := n.guard.Do(ctx, system, op, func(tx *guard.Tx) error {
		count, err := settle(ctx, tx.Tx, l, b.id, state)
		switch {
		case err != nil:
			return err
		case count == 0:
			return db.ErrStale
		}
		if failed != nil {
			tx.Note("failure", failed.Detail)
			tx.Fail(failed)
			return fails(ctx, tx.Tx, l.channel, failed.Detail)
		}
		return fails(ctx, tx.Tx, l.channel, "")
	})
	if errors.Is(err, db.ErrStale) || failed != nil && errors.Is(err, ErrSend) {
		return nil
	}
	return err
}

// reason is why something failed, as an administrator may read it.
func reason(err error) string {
	var known *estover.Error
	text := err.Error()
	if errors.As(err, &known) {
		text = known.Error()
	}
	if r := []rune(plain(text)); len(r) > maxFailure {
		text = string(r[:maxFailure])
	}
	return plain(text)
}

// deliver sends a message by its kind.
func (n *Notify) deliver(ctx context.Context, l line, c *Channel, b *bundle, said []saying) error {
	if c.Kind != Email {
		return n.post(ctx, l.tenant, c.Spec, b.id, said)
	}
	to, isAddress := strings.CutPrefix(l.recipient, mailto)
	if !isAddress {
		people, err := n.People(ctx, l.tenant, []string{l.recipient}, "")
		if err != nil {
			return err
		}
		if len(people) == 0 || people[0].Email == "" {
			return nil // they have left in the meantime, and nobody reads it
		}
		to = people[0].Email
	}
	return n.mail(ctx, l.tenant, c.Spec, to, b.id, said)
}

// Test sends a message that asks nobody for anything, and says what came of it.
// E-mail goes to the addresses of the channel, or else to whoever tests it.
func (n *Notify) Test(ctx context.Context, caller estover.Caller, name string) error {
	op := guard.Op{Action: "channel.test"}
	var c Channel
	decision, err := n.guard.Admit(ctx, caller, op)
	if err != nil {
		return err
	}
	if err := n.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
		c, err = findName(ctx, tx, name, "")
		return err
	}); err != nil {
		return err
	}
	op.Target = "channel:" + c.ID
	e := event{ID: decision.ID, At: n.guard.DB().Now(), Action: "channel.test", Actor: caller.Subject, Target: op.Target}
	said := []saying{{e, Matter{Title: "This is a test of the channel " + c.Name + ". Nothing waits for you.", Lines: []string{"It was sent by " + string(caller.Subject) + "."}}}}
	failed := n.test(ctx, caller, c, said)
	return n.guard.Act(ctx, caller, op, decision, func(tx *guard.Tx) error {
		if failed == nil {
			return fails(ctx, tx.Tx, c.ID, "")
		}
		why := reason(failed)
		tx.Note("failure", why)
		tx.Fail(ErrSend.With("The message did not get through: %s", why))
		return fails(ctx, tx.Tx, c.ID, why)
	})
}

// test sends a message to all whom a test is for.
func (n *Notify) test(ctx context.Context, caller estover.Caller, c Channel, said []saying) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	id := estover.NewID("msg")
	if c.Kind != Email {
		return n.post(ctx, caller.Tenant, c.Spec, id, said)
	}
	to := c.To
	if len(to) == 0 {
		people, err := n.People(ctx, caller.Tenant, []string{string(caller.Subject)}, "")
		if err != nil {
			return err
		}
		for _, p := range people {
			if p.Email != "" {
				to = append(to, p.Email)
			}
		}
	}
	if len(to) == 0 {
		return ErrSend.With("The channel names no address (to), and you have none in the directory.")
	}
	var failed []error
	for _, a := range to {
		failed = append(failed, n.mail(ctx, caller.Tenant, c.Spec, a, id, said))
	}
	return errors.Join(failed...)
}
