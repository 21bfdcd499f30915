package session

import (
	"context"
	"errors"
	"fmt"

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
	ids := make([]string, len(marked))
	for i, m := range marked {
		ids[i] = m.ID
		tx.Touch(Kind, m.ID)
		if m.Ambient {
			tx.Touch(ambientKind, m.Agent)
		}
	}
	for _, p := range s.parts {
		n, err := p.End(ctx, tx, ids)
		if err != nil {
			return nil, fmt.Errorf("ending the %s of a session: %w", p.Name, err)
		}
		tx.Note(p.Name, n)
	}
	return ids, nil
}

// Close stores how many calls there were in a session that has ended, in the
// transaction that writes its closing statement.
func Close(ctx context.Context, tx *guard.Tx, id string, calls int64) error {
	return setCalls(ctx, tx.Tx, id, calls)
}

// ExpireDue writes the end of sessions whose time is over, of all tenants, and
// says how many there were. They carry nothing since that instant; this ends
// what belongs to them and makes it known.
func (s *Sessions) ExpireDue(ctx context.Context) (int, error) {
	count := 0
	for {
		var due []place
		err := s.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
			due, err = findDue(ctx, tx)
			return err
		})
		if err != nil || len(due) == 0 {
			return count, err
		}
		for _, at := range due {
			op := guard.Op{Action: "session.end", Target: "session:" + at.id, Session: at.id, Detail: map[string]any{"cause": expired}}
			caller := estover.Caller{Tenant: at.tenant, Subject: estover.System("session")}
			err := s.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
				ended, err := s.end(ctx, tx, expired, func() ([]Session, error) { return endOne(ctx, tx.Tx, at.id, expired) })
				if err == nil && len(ended) == 0 {
					return ErrEnded // by somebody else, meanwhile
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
	}
}

// expired is the cause of an end that nobody brought about.
const expired = "expired"
