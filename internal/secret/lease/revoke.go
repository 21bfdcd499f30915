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

// A Which says which leases are revoked: exactly one of its members is set.
type Which struct {
	ID      string `json:"id,omitempty"`
	Session string `json:"session,omitempty"`
	Agent   string `json:"agent,omitempty"`
	Role    string `json:"role,omitempty"`
	Target  string `json:"target,omitempty"` // its name
	All     bool   `json:"all,omitempty"`
}

// Revoked is what revoking has done.
type Revoked struct {
	Count   int64    `json:"count"`             // leases that were live, or about to be, and are no more
	Lingers []string `json:"lingers,omitempty"` // what may go on at the targets although it has ended here
}

// Revoke ends leases: from its return on none of them is good for anything here,
// and what there is at the targets is taken away at once.
func (l *Leases) Revoke(ctx context.Context, c estover.Caller, w Which, reason string) (out Revoked, err error) {
	var on, where string
	var args []any
	n := 0
	pick := func(is bool, target, condition string, v ...any) {
		if is {
			n++
			on, where, args = target, condition, v
		}
	}
	pick(w.ID != "", "lease:"+w.ID, "id = ?", w.ID)
	pick(w.Session != "", "session:"+w.Session, "session_id = ?", w.Session)
	pick(w.Agent != "", "agent:"+w.Agent, "agent_id = ?", w.Agent)
	pick(w.Role != "", "lease_role:"+w.Role, "role = ?", w.Role)
	pick(w.All, "lease:*", "id <> ''")
	if w.Target != "" {
		id, err := l.targets.Named(ctx, c.Tenant, w.Target)
		if err != nil {
			return out, err
		}
		pick(true, "target:"+w.Target, "target_id = ?", id)
	}
	if n != 1 {
		return out, ErrInvalid.With("Say which leases are revoked: one of id, session, agent, role, target and all.")
	}
	if len(reason) > 500 {
		return out, ErrInvalid.With("The reason has at most 500 bytes.").At("reason")
	}
	begun := l.guard.DB().Now()
	out.Count, err = l.markWhere(ctx, c, on, w.Session, ByHand, reason, where, args...)
	if err != nil {
		return out, err
	}
	if w.ID != "" && out.Count == 0 {
		// One that has ended before is gone, as was asked; one that is not there is not.
		err := l.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
			_, err := find(ctx, tx, w.ID)
			return err
		})
		if err != nil {
			return out, err
		}
	}
	out.Lingers, err = l.lingers(ctx, c.Tenant, begun, where, args...)
	return out, err
}

// Lingers says what may go on at the targets of a session's leases that have not ended,
// or have since a time.
func (l *Leases) Lingers(ctx context.Context, tenant estover.TenantID, session string, since time.Time) ([]string, error) {
	return l.lingers(ctx, tenant, since, "session_id = ?", session)
}

// ContainedLingers says what may go on of leases that were contained and have not
// ended, or have since a time, and of which is says so. It names the kinds of the
// targets and not these, for who reads it may be a stranger.
func (l *Leases) ContainedLingers(ctx context.Context, tenant estover.TenantID, since time.Time, is func(agent, session, resource string) bool) (all []string, err error) {
	var ids []string
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		ids, err = containedAt(ctx, tx, since, is)
		return err
	})
	for _, id := range ids {
		if _, k := l.lingersAt(ctx, tenant, id); k.Lingers != "" {
			all = append(all, k.Title+": "+k.Lingers)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), err
}

// TargetLingers says what may go on after a revocation at a target, by its kind; "" if
// nothing does.
func (l *Leases) TargetLingers(ctx context.Context, tenant estover.TenantID, name string) string {
	id, err := l.targets.Named(ctx, tenant, name)
	if err != nil {
		return ""
	}
	if _, k := l.lingersAt(ctx, tenant, id); k.Lingers != "" {
		return k.Title + ": " + k.Lingers
	}
	return ""
}

// lingersAt is the name of a target and its kind; nothing, if it is no more.
func (l *Leases) lingersAt(ctx context.Context, tenant estover.TenantID, id string) (name string, k engine.Kind) {
	at, err := l.targets.Snapshot(ctx, tenant, id)
	if err != nil {
		return "", k
	}
	k, _ = l.targets.Kind(at.Kind)
	return at.Name, k
}

// lingers says what may go on at the targets of leases (Q8) that have not ended, or
// have since a time.
func (l *Leases) lingers(ctx context.Context, tenant estover.TenantID, since time.Time, where string, args ...any) (all []string, err error) {
	var ids []string
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		ids, err = targetsOf(ctx, tx, since, where, args...)
		return err
	})
	for _, id := range ids {
		if name, k := l.lingersAt(ctx, tenant, id); k.Lingers != "" {
			all = append(all, name+": "+k.Lingers)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), err
}

// markWhere marks leases in a guarded transaction, and wakes the workers.
func (l *Leases) markWhere(ctx context.Context, c estover.Caller, on, session string, cause Cause, reason, where string, args ...any) (n int64, err error) {
	op := guard.Op{Action: "lease.revoke", Target: on, Session: session, Effect: guard.Deletes, Detail: map[string]any{"cause": cause}}
	if reason != "" {
		op.Detail["reason"] = reason
	}
	err = l.guard.Do(ctx, c, op, func(tx *guard.Tx) (err error) {
		n, _, err = mark(ctx, tx.Tx, cause, where, args...)
		tx.Note("leases", n)
		tx.Touch(sessionKind, "*")
		return err
	})
	l.stir()
	return n, err
}

// EndOfSessions marks the leases of sessions in the transaction that ends them,
// and says how many there were.
func (l *Leases) EndOfSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	return l.markIn(ctx, tx, WithSession, "session_id", sessions)
}

// EndOfPeople marks the leases that people hold themselves, in the transaction in
// which they leave.
func (l *Leases) EndOfPeople(ctx context.Context, tx *guard.Tx, people []string) (int, error) {
	holders := make([]string, len(people))
	for i, p := range people {
		holders[i] = string(estover.User(p))
	}
	return l.markIn(ctx, tx, WithToken, "agent_id = '' and holder", holders)
}

// Contain marks the leases of agents before all others, in the transaction that
// contains them. It counts those too that were on their way out, and are before
// others from here on.
func (l *Leases) Contain(ctx context.Context, tx *guard.Tx, agents []string) (int, error) {
	return l.markIn(ctx, tx, Contained, "agent_id", agents)
}

// ContainSessions marks the leases of sessions before all others, whoever holds
// them.
func (l *Leases) ContainSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	return l.markIn(ctx, tx, Contained, "session_id", sessions)
}

// ContainResource marks the leases that open a resource before all others.
func (l *Leases) ContainResource(ctx context.Context, tx *guard.Tx, resource string) (int, error) {
	return l.markIn(ctx, tx, Contained, "resource_id", []string{resource})
}

// Left is how many leases there are that were contained and are not gone at their
// targets, of which is says so by the agent, the session and the resource.
func (l *Leases) Left(ctx context.Context, tenant estover.TenantID, is func(agent, session, resource string) bool) (n int64, err error) {
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		n, err = containedLeft(ctx, tx, is)
		return err
	})
	return n, err
}

// markIn marks leases inside of a transaction that does more.
func (l *Leases) markIn(ctx context.Context, tx *guard.Tx, cause Cause, column string, values []string) (int, error) {
	total := int64(0)
	for part := range slices.Chunk(values, 500) {
		where, args := in(column, part)
		n, raised, err := mark(ctx, tx.Tx, cause, where, args...)
		if err != nil {
			return 0, err
		}
		total += n + raised
	}
	if total > 0 {
		tx.Touch(sessionKind, "*")
	}
	return int(total), nil
}

// Settled returns when all leases that a filter names have ended: so the end of a
// session is the end of what was made for it. It is an error if that takes longer
// than ctx.
func (l *Leases) Settled(ctx context.Context, tenant estover.TenantID, f Filter) error {
	for {
		s, err := l.Standing(ctx, tenant, f)
		if err != nil {
			return err
		}
		if s.Open == 0 {
			return nil
		}
		l.stir()
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return ErrNotGone.With("%d leases that are to be gone have not ended yet. They are taken away again and again; look with `estover secret lease list --open`.", s.Open)
		}
	}
}

// ErrNotGone is returned while leases that are to be gone are not.
var ErrNotGone = &estover.Error{Kind: estover.Unavailable, Code: "leases_not_gone", Detail: "Leases that are to be gone have not ended yet. They are taken away again and again; look with `estover secret lease list --overdue`."}

// Standing counts the leases that have not ended: one, or those of a role, a
// session, an agent or a target, or all.
func (l *Leases) Standing(ctx context.Context, tenant estover.TenantID, f Filter) (s Standing, err error) {
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		s, err = StandingIn(ctx, tx, f)
		return err
	})
	return s, err
}

// Overdue are those of the agents of which leases should be gone and are not.
func (l *Leases) Overdue(ctx context.Context, tenant estover.TenantID, agents []string) (map[string]bool, error) {
	if len(agents) == 0 {
		return nil, nil
	}
	overdue := map[string]bool{}
	err := l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		for _, id := range agents {
			s, err := StandingIn(ctx, tx, Filter{Agent: id})
			if err != nil {
				return err
			}
			overdue[id] = s.Overdue > 0
		}
		return nil
	})
	return overdue, err
}

// StandingIn is [Leases.Standing] inside of a transaction.
func StandingIn(ctx context.Context, tx *db.Tx, f Filter) (Standing, error) {
	switch {
	case f.ID != "":
		return standing(ctx, tx, "id = ?", f.ID)
	case f.Role != "":
		return standing(ctx, tx, "role = ?", f.Role)
	case f.Session != "":
		return standing(ctx, tx, "session_id = ?", f.Session)
	case f.Agent != "":
		return standing(ctx, tx, "agent_id = ?", f.Agent)
	case f.Target != "":
		return standing(ctx, tx, "target_id = ?", f.Target)
	}
	return standing(ctx, tx, "id <> ''")
}

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
				tx.Touch(sessionKind, "*")
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

// Gone is [Leases.Settled] for what was revoked.
func (l *Leases) Gone(ctx context.Context, tenant estover.TenantID, w Which) error {
	f := Filter{ID: w.ID, Session: w.Session, Agent: w.Agent, Role: w.Role}
	if w.Target != "" {
		id, err := l.targets.Named(ctx, tenant, w.Target)
		if err != nil {
			return err
		}
		f.Target = id
	}
	return l.Settled(ctx, tenant, f)
}

// Everywhere counts the leases of all tenants that have not ended.
func (l *Leases) Everywhere(ctx context.Context) (s Standing, err error) {
	err = l.guard.DB().View(ctx, "", func(tx *db.Tx) error {
		s, err = everywhere(ctx, tx)
		return err
	})
	return s, err
}
