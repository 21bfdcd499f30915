package session

import (
	"context"
	"errors"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Get reads a session. An agent reads its own alone.
func (s *Sessions) Get(ctx context.Context, caller estover.Caller, id string) (Session, error) {
	return s.read(ctx, caller, id, "session.read")
}

func (s *Sessions) read(ctx context.Context, caller estover.Caller, id, action string) (Session, error) {
	var found *Session
	op := guard.Op{Action: action, Target: "session:" + id, Session: id}
	err := s.guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		found, err = find(ctx, tx, id)
		if err == nil && caller.Acting().Kind() == estover.AgentKind && caller.Acting() != estover.Agent(found.Agent) {
			return ErrNotFound
		}
		if err == nil && !found.EndedAt.IsZero() {
			found.Ending, err = ending(ctx, tx, id)
		}
		return err
	})
	if err != nil {
		return Session{}, err
	}
	return s.unsealed(caller.Tenant, *found)
}

// A Filter says which sessions are listed. The zero value lists all.
type Filter struct {
	Agent string // of one agent
	State State  // in one state
}

// An After is a place in a list of sessions, the newest first: what follows
// is older.
type After struct {
	OpenedAt int64 // microseconds since 1970
	ID       string
}

// maxPage is the longest page of a list.
const maxPage = 200

// List lists sessions, the newest first, from a place on. It gives the place
// of the next page, nil at the end.
func (s *Sessions) List(ctx context.Context, caller estover.Caller, f Filter, from *After, limit int) ([]Session, *After, error) {
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	if acts := caller.Acting(); acts.Kind() == estover.AgentKind {
		if f.Agent != "" && f.Agent != acts.ID() {
			return nil, nil, ErrNotYours
		}
		f.Agent = acts.ID()
	}
	op := guard.Op{Action: "session.list"}
	if f.Agent != "" {
		op.Target = "agent:" + f.Agent
	}
	var page []Session
	err := s.guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		page, err = list(ctx, tx, f, from, limit+1)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	var next *After
	if len(page) > limit {
		page = page[:limit]
		last := page[limit-1]
		next = &After{last.OpenedAt.UnixMicro(), last.ID}
	}
	for i := range page {
		if page[i], err = s.unsealed(caller.Tenant, page[i]); err != nil {
			return nil, nil, err
		}
	}
	return page, next, nil
}

// unsealed is the session with the text of its task, if that has not been
// erased.
func (s *Sessions) unsealed(tenant estover.TenantID, one Session) (Session, error) {
	if len(one.sealed) == 0 {
		return one, nil
	}
	plain, err := s.Unseal(tenant, one.ID, one.sealed)
	if errors.Is(err, audit.ErrErased) {
		return one, nil
	}
	one.Task = string(plain)
	return one, err
}
