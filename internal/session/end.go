package session

import (
	"context"
	"errors"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// End ends a session, and with it all that belongs to it. The cause is kept
// and shown.
func (s *Sessions) End(ctx context.Context, caller estover.Caller, id, cause string) error {
	op := guard.Op{Action: "session.end", Target: "session:" + id, Session: id, Detail: map[string]any{"cause": cause}}
	return s.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		was, err := find(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if acts := caller.Acting(); acts.Kind() == estover.AgentKind && acts != estover.Agent(was.Agent) {
			return ErrNotFound
		}
		ended, err := s.end(ctx, tx, cause, func() ([]Session, error) { return endOne(ctx, tx.Tx, id, cause) })
		if err == nil && len(ended) == 0 {
			return ErrEnded
		}
		return err
	})
}

// EndAll ends every session of an agent and says which.
func (s *Sessions) EndAll(ctx context.Context, caller estover.Caller, agent, cause string) (ended []string, err error) {
	op := guard.Op{Action: "session.end", Target: "agent:" + agent, Detail: map[string]any{"cause": cause}}
	err = s.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		ended, err = s.EndAgent(ctx, tx, agent, cause)
		return err
	})
	return ended, err
}

// EndAgent is EndAll inside of a transaction that does more: the containment
// of an agent, its retirement.
func (s *Sessions) EndAgent(ctx context.Context, tx *guard.Tx, agent, cause string) ([]string, error) {
	ended, err := s.end(ctx, tx, cause, func() ([]Session, error) { return endAgent(ctx, tx.Tx, agent, cause) })
	if err == nil {
		tx.Note("sessions", ended)
	}
	return ended, err
}

// EndWithin ends one session inside of a transaction that does more. It does
// nothing to one that has ended.
func (s *Sessions) EndWithin(ctx context.Context, tx *guard.Tx, id, cause string) error {
	_, err := s.end(ctx, tx, cause, func() ([]Session, error) { return endOne(ctx, tx.Tx, id, cause) })
	return err
}

// end marks sessions as ended, ends what belongs to them, and says which they
// were.
func (s *Sessions) end(ctx context.Context, tx *guard.Tx, cause string, mark func() ([]Session, error)) ([]string, error) {
	if cause == "" || len(cause) > MaxTask {
		return nil, ErrInvalid.With("A session ends for a cause, of at most %d bytes.", MaxTask)
	}
	marked, err := mark()
	if err != nil || len(marked) == 0 {
		return nil, err
	}
	var ids []string
	for i := 0; i < len(marked); i++ { // it grows by the sessions within them
		m := marked[i]
		ids = append(ids, m.ID)
		tx.Touch(Kind, m.ID)
		if m.Ambient {
			tx.Touch(ambientKind, m.Agent)
		}
		children, err := endChildren(ctx, tx.Tx, m.ID, parentEnded)
		if err != nil {
			return nil, err
		}
		marked = append(marked, children...)
	}
	return ids, s.endParts(ctx, tx, ids)
}

// parentEnded is the cause of an end that came of the parent's.
const parentEnded = "the session that it was a part of has ended"

// Close stores how many calls there were in a session that has ended, in the
// transaction that writes its closing statement.
func Close(ctx context.Context, tx *guard.Tx, id string, calls int64) error {
	return setCalls(ctx, tx.Tx, id, calls)
}

// ExpireDue writes the end of sessions whose time is over, of all tenants, and
// of those that nobody has used for too long or whose agent's own time is over.
// It says how many there were. What is over its time carries nothing since that
// instant; this ends what belongs to it and makes it known.
func (s *Sessions) ExpireDue(ctx context.Context) (int, error) {
	expired, err := s.endDue(ctx, findDue, expiredCause, endOne)
	idle, err2 := s.endIdle(ctx)
	left, err3 := s.endExpired(ctx)
	return expired + idle + left, errors.Join(err, err2, err3)
}

// endDue ends what find finds, for a cause.
func (s *Sessions) endDue(ctx context.Context, find func(context.Context, *db.Tx) ([]db.Place, error), cause string,
	mark func(ctx context.Context, tx *db.Tx, id, cause string) ([]Session, error),
) (count int, err error) {
	for {
		var due []db.Place
		err := s.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
			due, err = find(ctx, tx)
			return err
		})
		if err != nil || len(due) == 0 {
			return count, err
		}
		before := count
		for _, at := range due {
			op := guard.Op{Action: "session.end", Target: "session:" + at.ID, Session: at.ID, Detail: map[string]any{"cause": cause}}
			caller := estover.Caller{Tenant: at.Tenant, Subject: estover.System("session")}
			err := s.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
				ended, err := s.end(ctx, tx, cause, func() ([]Session, error) { return mark(ctx, tx.Tx, at.ID, cause) })
				if err == nil && len(ended) == 0 {
					return ErrEnded // by somebody else, or with its parent, meanwhile
				}
				return err
			})
			switch {
			case err == nil:
				count++
			case !errors.Is(err, ErrEnded):
				return count, err
			}
		}
		if count == before {
			return count, nil
		}
	}
}

// endIdle ends the sessions that nobody has used for too long. Just after this
// node began those are spared whose launchers may not have been heard again yet.
func (s *Sessions) endIdle(ctx context.Context) (int, error) {
	if err := s.saveSeen(ctx, true); err != nil {
		return 0, err
	}
	now := s.guard.DB().Now()
	before, most := now.Add(-idleSlack), LongestLife
	if up := now.Sub(s.since); up < idleGrace {
		most = up
	}
	find := func(ctx context.Context, tx *db.Tx) ([]db.Place, error) { return findIdle(ctx, tx, before, most) }
	return s.endDue(ctx, find, idleCause, func(ctx context.Context, tx *db.Tx, id, cause string) ([]Session, error) {
		return endIdle(ctx, tx, id, cause, before)
	})
}

// A look is when a node has looked for agents whose time is over.
type look struct {
	mu         sync.Mutex
	last, full time.Time
}

// The times between looks.
const (
	lookBack = time.Minute      // further than the last look, for what was being written then
	fullLook = 10 * time.Minute // after which a look goes back as far as there can be sessions
)

// since is from when on a look at this time has to find agents whose time is over.
func (l *look) since(now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	since := l.last.Add(-lookBack)
	if now.Sub(l.full) >= fullLook {
		l.full, since = now, now.Add(-LongestLife-time.Hour) // no session is older
	}
	l.last = now
	return since
}

// endExpired ends the sessions of agents whose own time is over.
func (s *Sessions) endExpired(ctx context.Context) (count int, err error) {
	if s.Expired == nil {
		return 0, nil
	}
	var agents []AgentOf
	err = s.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		agents, err = s.Expired(ctx, tx, s.looked.since(tx.Now()))
		return err
	})
	for _, a := range agents { // one whose end fails holds up no other
		ended, failed := s.lapse(ctx, a)
		count, err = count+ended, errors.Join(err, failed)
	}
	return count, err
}

// lapse ends the sessions of an agent whose own time is over, and what it has in those
// of others.
func (s *Sessions) lapse(ctx context.Context, a AgentOf) (int, error) {
	has := false
	err := s.guard.DB().View(ctx, a.Tenant, func(tx *db.Tx) error {
		open, err := list(ctx, tx, Filter{Agent: a.Agent, State: Open}, nil, 1)
		if has = len(open) > 0; err == nil && !has && s.Left != nil {
			has, err = s.Left(ctx, tx, a.Agent)
		}
		return err
	})
	if err != nil || !has {
		return 0, err
	}
	var ended []string
	op := guard.Op{Action: "session.end", Target: "agent:" + a.Agent, Detail: map[string]any{"cause": agentExpired}}
	err = s.guard.Do(ctx, estover.Caller{Tenant: a.Tenant, Subject: estover.System("session")}, op, func(tx *guard.Tx) (err error) {
		if ended, err = s.EndAgent(ctx, tx, a.Agent, agentExpired); err == nil && s.Lapse != nil {
			err = s.Lapse(ctx, tx, a.Agent, agentExpired)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(ended), nil
}

// The causes of ends that nobody brought about.
const (
	expiredCause = "expired"
	idleCause    = "idle"
	agentExpired = "the agent's time is over"
)
