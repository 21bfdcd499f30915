package session

import (
	"context"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Renew has an open session live for so long from now, 0 for the usual time. It
// makes no session shorter, and none older than [LongestLife] or than the one
// that it is a part of.
func (s *Sessions) Renew(ctx context.Context, caller estover.Caller, id string, life time.Duration) (Session, error) {
	if life == 0 {
		life = DefaultLife
	}
	if life < ShortestLife || life > LongestLife {
		return Session{}, ErrInvalid.With("A session is renewed for between %s and %s, not %s.", ShortestLife, LongestLife, life)
	}
	var renewed *Session
	op := guard.Op{Action: "session.renew", Target: "session:" + id, Session: id}
	err := s.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		one, err := find(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if acts := caller.Acting(); acts.Kind() == estover.AgentKind && acts != estover.Agent(one.Agent) {
			return ErrNotFound
		}
		if err := one.live(tx.Now()); err != nil {
			return err
		}
		until, limit := tx.Now().Add(life), one.OpenedAt.Add(LongestLife)
		if one.Parent != "" {
			if err := hold(ctx, tx.Tx, one.Parent); err != nil {
				return err
			}
			parent, err := find(ctx, tx.Tx, one.Parent)
			if err != nil {
				return err
			}
			if parent.ExpiresAt.Before(limit) {
				limit = parent.ExpiresAt
			}
		}
		if until.After(limit) {
			until = limit
		}
		if !until.After(one.ExpiresAt) {
			if one.ExpiresAt.Before(limit) {
				return ErrInvalid.With("The session lives until %s already. Name a longer time.", one.ExpiresAt.Format(time.RFC3339))
			}
			return ErrLimit
		}
		extended, err := extend(ctx, tx.Tx, one, until)
		if err != nil {
			return err
		}
		if !extended { // somebody else has just done so, or ended it
			return ErrEnded.With("The session has changed meanwhile. Look at it and try again.")
		}
		for _, p := range s.parts {
			if p.Extend == nil {
				continue
			}
			if err := p.Extend(ctx, tx, id, one.ExpiresAt, until); err != nil {
				return err
			}
		}
		if err := heard(ctx, tx.Tx, id, tx.Now()); err != nil {
			return err
		}
		tx.Touch(Kind, id)
		if one.Ambient {
			tx.Touch(ambientKind, one.Agent)
		}
		tx.Note("agent", one.Agent)
		tx.Note("expires_at", until)
		one.ExpiresAt, renewed = until, one
		return nil
	})
	if err != nil {
		return Session{}, err
	}
	return s.unsealed(caller.Tenant, *renewed)
}

// Beat is the heartbeat of what works in a session: it says that the session is
// in use, and hears how it stands. A session that has ended stays so. It is no
// event of the log.
func (s *Sessions) Beat(ctx context.Context, caller estover.Caller, id string) (Session, error) {
	one, err := s.read(ctx, caller, id, "session.heartbeat")
	if err == nil && one.State == Open {
		s.Seen(caller.Tenant, id, one.idle())
		if one.IdleSecs > 0 {
			one.SeenAt = s.guard.DB().Now()
		}
	}
	return one, err
}

// The times of activity.
const (
	// idleSlack is how much later than its idle time a session ends: what was
	// heard of it on some node may have to be written first.
	idleSlack = 3 * time.Second
	// idleGrace is after how long a node that has started ends all idle sessions,
	// and before only those with an idle time that has passed since: launchers
	// could not be heard while there was no server.
	idleGrace = 30 * time.Second
)

// activity is when sessions were last used, as far as this node has heard and not
// written yet.
type activity struct {
	mu   sync.Mutex
	last map[db.Place]*use
}

type use struct {
	at, saved time.Time
	idle      time.Duration
}

// Seen notes that a session with this idle time is in use. It is written soon,
// and costs next to nothing where there is no idle time.
func (s *Sessions) Seen(tenant estover.TenantID, id string, idle time.Duration) {
	if idle <= 0 {
		return
	}
	now := s.guard.DB().Now()
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	at := db.Place{Tenant: tenant, ID: id}
	u := s.seen.last[at]
	if u == nil {
		if s.seen.last == nil {
			s.seen.last = map[db.Place]*use{}
		}
		u = &use{idle: idle}
		s.seen.last[at] = u
	}
	u.at = now
}

// saveSeen writes when sessions were last used: each so often that the sweep
// does not find it idle, or all of them.
func (s *Sessions) saveSeen(ctx context.Context, all bool) error {
	now := s.guard.DB().Now()
	due := map[estover.TenantID]map[string]time.Time{}
	s.seen.mu.Lock()
	for at, u := range s.seen.last {
		switch {
		case u.at.After(u.saved) && (all || now.Sub(u.saved) >= min(u.idle/4, time.Minute)):
			if due[at.Tenant] == nil {
				due[at.Tenant] = map[string]time.Time{}
			}
			due[at.Tenant][at.ID] = u.at
		case now.Sub(u.at) > u.idle:
			delete(s.seen.last, at)
		}
	}
	s.seen.mu.Unlock()
	for tenant, sessions := range due {
		err := s.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
			for id, at := range sessions {
				if err := heard(ctx, tx, id, at); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.seen.mu.Lock()
		for id, at := range sessions {
			if u := s.seen.last[db.Place{Tenant: tenant, ID: id}]; u != nil {
				u.saved = at
			}
		}
		s.seen.mu.Unlock()
	}
	return nil
}
