// Package leasetest is a target in memory, for tests of what works at targets: it
// fails before and after each effect when a test says so, keeps a clock of its own,
// and knows who is logged in.
package leasetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A Server is a system with users, which exists once however many engines work
// there.
type Server struct {
	// Name is that of its kind; memory if empty.
	Name string
	// Now is its clock; the machine's if nil.
	Now func() time.Time
	// Fail is told of each effect on a user, before it and after, and may have it
	// fail there: before, nothing has happened; after, it has, and nobody hears so.
	// Its operations are create, extend, revoke, list, set_secret, verify, sessions,
	// end_sessions and now. Nil fails nothing.
	Fail func(ctx context.Context, operation, user string, after bool) error
	// Password is the admin's; any is right if it is empty.
	Password string
	// MaxName is the longest name of a user; 63 if zero.
	MaxName int
	// Lingers is what goes on after a revocation, in a sentence.
	Lingers string
	// Whole is set where users are found by their whole names alone.
	Whole bool

	mu       sync.Mutex
	users    map[string]*user
	sessions map[string]*session
	logins   int
	created  int
	batches  []int // how many users each call of Revoke had
	down     bool
	opened   int
	closed   int
}

type user struct {
	secret, kept string
	until        time.Time
	template     engine.Template
}

type session struct {
	user  string
	since time.Time
}

// Kind is the server as a kind of target, whose address is any HOST:PORT.
func (s *Server) Kind() engine.Kind {
	k := engine.Kind{
		Name: "memory", Title: "Memory", Address: "HOST[:PORT]", Port: "7000", MaxName: 63, Overlap: true, Lingers: s.Lingers,
		Options:  []engine.Field{{Name: "colour", Help: "any"}},
		Template: []engine.Field{{Name: "groups", Help: "what the user belongs to", Many: true}},
		CheckTemplate: func(t engine.Template) error {
			if slices.Contains(t["groups"], "none") {
				return fmt.Errorf("there is no group none")
			}
			return nil
		},
	}
	if s.Name != "" {
		k.Name = s.Name
	}
	if s.MaxName > 0 {
		k.MaxName = s.MaxName
	}
	k.Open = func(c engine.Config) (engine.Engine, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.opened++
		return &memory{s, c.Admin}, nil
	}
	return k
}

// Down has the server not answer from here on, or answer again.
func (s *Server) Down(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// Users are the names of all users.
func (s *Server) Users() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.users))
}

// Add makes a user of which nobody has heard.
func (s *Server) Add(name, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(name, &user{secret: secret})
}

// Drop takes a user away by hand.
func (s *Server) Drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.users, name)
}

// Batches are how many users each revocation was of.
func (s *Server) Batches() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.batches)
}

// Made is how many users have been made in all.
func (s *Server) Made() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.created
}

// Opened and closed engines.
func (s *Server) Opened() (opened, closed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened, s.closed
}

// LogIn logs in as an application does and stays so. It reports whether it could.
func (s *Server) LogIn(name string, secret estover.Secret) (id string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.check(name, secret) != nil {
		return "", false
	}
	s.logins++
	id = fmt.Sprint("session ", s.logins)
	if s.sessions == nil {
		s.sessions = map[string]*session{}
	}
	s.sessions[id] = &session{name, s.now()}
	return id, true
}

// Open reports whether a session goes on.
func (s *Server) Open(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id] != nil
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Server) put(name string, u *user) {
	if s.users == nil {
		s.users = map[string]*user{}
	}
	s.users[name] = u
}

func (s *Server) check(name string, secret estover.Secret) error {
	u := s.users[name]
	given := string(secret.Reveal())
	if u == nil || given == "" || given != u.secret && given != u.kept || !u.until.IsZero() && !s.now().Before(u.until) {
		return engine.ErrWrongSecret
	}
	return nil
}

// memory is an engine.
type memory struct {
	*Server
	admin engine.Credential
}

// do is an effect on a user, which may fail before and after.
func (m *memory) do(ctx context.Context, operation, name string, effect func() error) error {
	if err := ctx.Err(); err != nil {
		return engine.Unreachable(err)
	}
	m.mu.Lock()
	down, wrong := m.down, m.Password != "" && string(m.admin.Secret.Reveal()) != m.Password
	m.mu.Unlock()
	switch {
	case down:
		return fmt.Errorf("%w: connection refused", engine.ErrUnreachable)
	case wrong:
		return fmt.Errorf("%w: the admin's password is wrong", engine.ErrUnreachable)
	}
	if m.Fail != nil {
		if err := m.Fail(ctx, operation, name, false); err != nil {
			return err
		}
	}
	m.mu.Lock()
	err := effect()
	m.mu.Unlock()
	if err != nil || m.Fail == nil {
		return err
	}
	return m.Fail(ctx, operation, name, true)
}

func (m *memory) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	err := m.do(ctx, "create", o.Name, func() error {
		if m.users[o.Name] == nil {
			m.created++
		}
		m.put(o.Name, &user{secret: string(o.Secret.Reveal()), until: o.Until, template: o.Template})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return engine.Material{"username": estover.NewSecret([]byte(o.Name)), "password": estover.NewSecret(slices.Clone(o.Secret.Reveal()))}, nil
}

func (m *memory) Extend(ctx context.Context, name string, _ engine.Template, until time.Time) error {
	return m.do(ctx, "extend", name, func() error {
		u := m.users[name]
		if u == nil {
			return engine.ErrNoUser
		}
		u.until = until
		return nil
	})
}

func (m *memory) Revoke(ctx context.Context, users []engine.Doomed) []error {
	m.mu.Lock()
	m.batches = append(m.batches, len(users))
	m.mu.Unlock()
	errs := make([]error, len(users))
	for i, u := range users {
		errs[i] = m.do(ctx, "revoke", u.Name, func() error {
			delete(m.users, u.Name)
			m.end(u.Name)
			return nil
		})
	}
	return errs
}

func (s *Server) end(name string) {
	for id, one := range s.sessions {
		if one.user == name {
			delete(s.sessions, id)
		}
	}
}

func (m *memory) List(ctx context.Context, prefix string) (names []string, err error) {
	err = m.do(ctx, "list", prefix, func() error {
		for name := range m.users {
			if name == prefix || strings.HasPrefix(name, prefix) && !m.Whole {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return nil
	})
	return names, err
}

func (m *memory) SetSecret(ctx context.Context, name string, secret, keep estover.Secret) error {
	return m.do(ctx, "set_secret", name, func() error {
		u := m.users[name]
		if u == nil {
			return engine.ErrNoUser
		}
		u.secret, u.kept = string(secret.Reveal()), string(keep.Reveal())
		return nil
	})
}

func (m *memory) Verify(ctx context.Context, c engine.Credential) error {
	return m.do(ctx, "verify", c.User, func() error { return m.check(c.User, c.Secret) })
}

func (m *memory) Sessions(ctx context.Context, name string) (all []engine.Session, err error) {
	err = m.do(ctx, "sessions", name, func() error {
		for id, one := range m.sessions {
			if one.user == name {
				all = append(all, engine.Session{ID: id, Since: one.since})
			}
		}
		return nil
	})
	return all, err
}

func (m *memory) EndSessions(ctx context.Context, name string) error {
	return m.do(ctx, "end_sessions", name, func() error {
		m.end(name)
		return nil
	})
}

// Now is the server's clock. It is not [Server.Now], which a test may set.
func (m *memory) Now(ctx context.Context) (now time.Time, err error) {
	err = m.do(ctx, "now", "", func() error {
		now = m.now()
		return nil
	})
	return now, err
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed++
	return nil
}
