package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
)

// A Part is what belongs to sessions in one package, and how it ends with them.
// Any of its functions may be nil.
type Part struct {
	Name string // in the event: "grants", "leases"

	// End ends the part's rows in the transaction that ends the sessions, and
	// says how many there were. It does no I/O beside, and may run more than once.
	End func(ctx context.Context, tx *guard.Tx, sessions []string) (int, error)

	// Extend has rows that were to end when the session was, at from, end with
	// it at until. It runs in the transaction that extends the session.
	Extend func(ctx context.Context, tx *guard.Tx, session string, from, until time.Time) error

	// Here ends what a session that has ended holds on this node: connections,
	// copies. It is called on every node after the commit, and again until it
	// succeeds; what a node held that is gone is gone with it. It is called with
	// ended false where it cannot be known whether the session goes on: what is
	// open ends then.
	Here func(ctx context.Context, tenant estover.TenantID, session string, ended bool) error

	// After ends what is kept elsewhere. It is called on one node after the
	// commit, and again, there or on another, until it succeeds, also if a node
	// dies before or after its effect: doing it twice does no harm. Delay is how
	// long after the end it begins.
	After func(ctx context.Context, tenant estover.TenantID, session string) error
	Delay time.Duration
}

// How long a part may take, and when it is tried again.
const (
	hereTime  = 30 * time.Second
	afterTime = 45 * time.Second
	takenTime = time.Minute // for which one node has a step; longer than afterTime
	firstWait = time.Second // after a first failure; it doubles each time
	mostWait  = 5 * time.Minute
	lookTime  = time.Second // how often a node looks for what is due
)

// Parts are the names of what belongs to sessions, in the order in which it ends.
func (s *Sessions) Parts() []string {
	names := make([]string, len(s.parts))
	for i, p := range s.parts {
		names[i] = p.Name
	}
	return names
}

// endParts ends what belongs to sessions that are ending, and stores what has to
// follow.
func (s *Sessions) endParts(ctx context.Context, tx *guard.Tx, sessions []string) error {
	for _, p := range s.parts {
		if p.After != nil {
			for _, id := range sessions {
				if err := addStep(ctx, tx.Tx, id, p.Name, tx.Now().Add(p.Delay)); err != nil {
					return err
				}
			}
		}
		if p.End == nil {
			continue
		}
		n, err := p.End(ctx, tx, sessions)
		if err != nil {
			return fmt.Errorf("ending the %s of a session: %w", p.Name, err)
		}
		tx.Note(p.Name, n)
	}
	return nil
}

// leftovers are the sessions for which something is still to be done on this
// node.
type leftovers struct {
	mu   sync.Mutex
	here map[db.Place]*doing
	wake chan struct{}
}

// doing is how far that is.
type doing struct {
	busy  bool
	again bool      // the session has changed since it began
	tries int64     // that have failed
	next  time.Time // when it is tried again
}

// touched hears of sessions that have changed, here or on another node, after
// the commit.
func (s *Sessions) touched(tenant estover.TenantID, kind, id string) {
	if kind != Kind {
		return
	}
	if slices.ContainsFunc(s.parts, func(p Part) bool { return p.Here != nil }) {
		go s.finishHere(db.Place{Tenant: tenant, ID: id})
	}
	select {
	case s.left.wake <- struct{}{}:
	default:
	}
}

// finishHere has every part end what a session holds on this node, if the
// session has ended. What fails is done again by [Sessions.Run].
func (s *Sessions) finishHere(at db.Place) {
	s.left.mu.Lock()
	if s.left.here == nil {
		s.left.here = map[db.Place]*doing{}
	}
	d := s.left.here[at]
	if d == nil {
		d = &doing{}
		s.left.here[at] = d
	}
	if d.busy {
		d.again = true
		s.left.mu.Unlock()
		return
	}
	d.busy = true
	s.left.mu.Unlock()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), hereTime)
		err := s.here(ctx, at)
		cancel()
		if err != nil {
			s.Logger.Error("something of a session could not be ended on this node yet", "session", at.ID, "error", err)
		}
		s.left.mu.Lock()
		switch {
		case d.again:
			d.again = false
			s.left.mu.Unlock()
			continue
		case err == nil:
			delete(s.left.here, at)
		}
		d.busy, d.next = false, time.Now().Add(wait(d.tries))
		d.tries++
		s.left.mu.Unlock()
		return
	}
}

func (s *Sessions) here(ctx context.Context, at db.Place) error {
	one, err := s.copies.Get(ctx, at.Tenant, at.ID)
	if err == nil && one.EndedAt.IsZero() {
		return nil
	}
	for _, p := range s.parts {
		if p.Here == nil {
			continue
		}
		if failed := job.Guarded(func() error { return p.Here(ctx, at.Tenant, at.ID, err == nil) }); failed != nil {
			return fmt.Errorf("the %s: %w", p.Name, failed)
		}
	}
	if errors.Is(err, ErrNotFound) { // nor will there be one
		err = nil
	}
	return err
}

// Run does on this node what follows the end of sessions, and writes when they
// were last used, until ctx is done. Nothing waits for a part that takes its time.
func (s *Sessions) Run(ctx context.Context) error {
	var busy sync.WaitGroup
	defer busy.Wait()
	t := time.NewTicker(lookTime)
	defer t.Stop()
	for {
		look := false
		select {
		case <-ctx.Done():
			// What was heard of is not lost with this node.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return s.saveSeen(last, true)
		case <-t.C:
			look = true
		case <-s.left.wake:
		}
		busy.Go(func() {
			if _, err := s.FinishDue(ctx); err != nil && ctx.Err() == nil {
				s.Logger.Error("what follows the end of sessions could not be done", "error", err)
			}
		})
		if !look {
			continue
		}
		for _, at := range s.left.due() {
			go s.finishHere(at)
		}
		if err := s.saveSeen(ctx, false); err != nil && ctx.Err() == nil {
			s.Logger.Error("when sessions were last used could not be written", "error", err)
		}
	}
}

// due are the sessions of which something is to be tried again.
func (l *leftovers) due() (again []db.Place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at, d := range l.here {
		if !d.busy && !time.Now().Before(d.next) {
			again = append(again, at)
		}
	}
	return again
}

// wait is how long a part waits that has failed so many times before.
func wait(tries int64) time.Duration { return min(firstWait<<min(tries, 20), mostWait) }

// FinishDue does the steps that are due, of all tenants, and says how many were
// done. One that fails is put off.
func (s *Sessions) FinishDue(ctx context.Context) (int, error) {
	var due []step
	err := s.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		due, err = dueSteps(ctx, tx)
		return err
	})
	done := make(chan bool, len(due))
	for _, st := range due {
		go func() { done <- s.finish(ctx, st) }()
	}
	count := 0
	for range due {
		if <-done {
			count++
		}
	}
	return count, err
}

// finish does one step, unless another node does.
func (s *Sessions) finish(ctx context.Context, st step) bool {
	after := s.after(st.part)
	mine := false
	err := s.guard.DB().Do(ctx, st.Tenant, func(tx *db.Tx) (err error) {
		mine, err = takeStep(ctx, tx, st, s.Node, tx.Now().Add(takenTime))
		return err
	})
	if err == nil && !mine {
		return false
	}
	if err == nil && after != nil { // a part that there is no more has nothing more to end
		limited, cancel := context.WithTimeout(ctx, afterTime)
		err = job.Guarded(func() error { return after(limited, st.Tenant, st.ID) })
		cancel()
	}
	if err == nil {
		err = s.guard.DB().Do(ctx, st.Tenant, func(tx *db.Tx) error { return endStep(ctx, tx, st) })
	}
	if err == nil || ctx.Err() != nil {
		return err == nil
	}
	s.Logger.Error("something of a session could not be ended yet", "session", st.ID, "part", st.part, "error", err)
	if err := s.guard.DB().Do(ctx, st.Tenant, func(tx *db.Tx) error {
		return putOff(ctx, tx, st, db.Short(err.Error()), tx.Now().Add(wait(st.tries)))
	}); err != nil && ctx.Err() == nil {
		s.Logger.Error("that it is to be done again could not be written; it is, in a minute", "session", st.ID, "part", st.part, "error", err)
	}
	return false
}

func (s *Sessions) after(part string) func(context.Context, estover.TenantID, string) error {
	for _, p := range s.parts {
		if p.Name == part {
			return p.After
		}
	}
	return nil
}

// Release gives back, in all tenants, what a node had taken on that is no more, so
// that nobody waits for it.
func (s *Sessions) Release(ctx context.Context, node string) error {
	return s.guard.DB().Do(ctx, "", func(tx *db.Tx) error { return releaseSteps(ctx, tx, node) })
}
