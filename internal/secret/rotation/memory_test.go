package rotation_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A memory is a target in memory.
type memory struct {
	mu        sync.Mutex
	users     map[string][]string // their passwords
	sessions  map[string]int
	down      error  // what everything answers
	wrong     string // a user that nobody logs in as, whatever the password
	refuse    string // a user whose password cannot be changed
	powerless string // who may change no passwords
	cut       string // whom Pair makes, and then its answer is lost
	late      string // who comes a moment after it was said that nobody is there
	unlike    string // who has not the rights of the one before
	elsewhere string // what lets in anybody beside the passwords that users have
	made      []string
	refused   int           // log-ins
	slow      time.Duration // that it takes to change a password
	plain     bool          // it makes keys itself
}

func newMemory(users ...string) *memory {
	m := &memory{users: map[string][]string{}, sessions: map[string]int{}}
	for _, u := range users {
		m.users[u] = []string{"first-of-" + u}
	}
	return m
}

// fail has the target fail in one way, until it is restored.
func (m *memory) fail(how string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch how {
	case "down":
		m.down = engine.ErrUnreachable
	case "wrong":
		m.wrong = "*"
	case "refuse":
		m.refuse = "*"
	}
}

func (m *memory) restore() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down, m.wrong, m.refuse = nil, "", ""
}

// accepts reports whether a password is one of a user's, whether or not the
// target answers.
func (m *memory) accepts(c engine.Credential) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.users[c.User], string(c.Secret.Reveal()))
}

func (m *memory) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.down, ctx.Err()); err != nil {
		return nil, err
	}
	m.made = append(m.made, o.Name+" "+strings.Join(o.Template["groups"], ","))
	if m.plain {
		if o.Name == m.refuse || m.refuse == "*" {
			return nil, engine.Refuse("not this one")
		}
		key := rand.Text() // what had the name is deleted
		m.users[o.Name] = []string{key}
		return engine.Material{"username": estover.NewSecret([]byte(o.Name)), "key": estover.NewSecret([]byte(key))}, nil
	}
	m.users[o.Name] = []string{string(o.Secret.Reveal())}
	return engine.Material{"username": estover.NewSecret([]byte(o.Name)), "password": o.Secret}, nil
}

// Pair makes a second admin (engine.Pairer).
func (m *memory) Pair(ctx context.Context, user, like string, s estover.Secret) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.down, ctx.Err()); err != nil {
		return err
	}
	if m.users[like] == nil || m.users[user] != nil || user == m.refuse {
		return engine.Refuse("not this one")
	}
	m.made = append(m.made, user+" like "+like)
	m.users[user] = []string{string(s.Reveal())}
	if user == m.cut {
		m.cut = ""
		return errors.New("the answer is lost")
	}
	return nil
}

// Alike compares rights (engine.Comparer).
func (m *memory) Alike(_ context.Context, user, like string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if user == m.unlike {
		return engine.Refuse("%s has not the rights of %s", user, like)
	}
	return m.down
}

func (m *memory) Extend(context.Context, string, engine.Template, time.Time) error {
	return engine.ErrUnsupported
}

func (m *memory) Revoke(ctx context.Context, users []engine.Doomed) []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	errs := make([]error, len(users))
	for i, u := range users {
		if errs[i] = errors.Join(m.down, ctx.Err()); errs[i] == nil {
			delete(m.users, u.Name)
		}
	}
	return errs
}

func (m *memory) List(_ context.Context, prefix string) (names []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := range m.users {
		if strings.HasPrefix(n, prefix) {
			names = append(names, n)
		}
	}
	return names, m.down
}

func (m *memory) SetSecret(ctx context.Context, user string, s, keep estover.Secret) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.down, ctx.Err()); err != nil {
		return err
	}
	if m.plain {
		return engine.ErrUnsupported
	}
	if m.users[user] == nil {
		if user == m.late {
			m.users[user] = []string{"of whoever was cut off"}
		}
		return fmt.Errorf("%w: %s", engine.ErrNoUser, user)
	}
	if user == m.refuse || m.refuse == "*" {
		return engine.Refuse("not this one")
	}
	had := m.users[user]
	m.users[user] = []string{string(s.Reveal())}
	if m.slow > 0 { // the target has it, and takes its time to say so
		m.mu.Unlock()
		time.Sleep(m.slow)
		m.mu.Lock()
	}
	if !keep.Empty() {
		m.users[user] = slices.Compact(slices.Sorted(slices.Values(append(append(m.users[user], string(keep.Reveal())), had...))))
	}
	return nil
}

func (m *memory) Verify(ctx context.Context, c engine.Credential) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.down, ctx.Err()); err != nil {
		return err
	}
	for _, p := range append([]string{m.elsewhere}, m.users[c.User]...) {
		if p == string(c.Secret.Reveal()) && c.User != m.wrong && m.wrong != "*" {
			return nil
		}
	}
	m.refused++
	return fmt.Errorf("%w: %s", engine.ErrWrongSecret, c.User)
}

func (m *memory) Sessions(_ context.Context, user string) (list []engine.Session, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for range m.sessions[user] {
		list = append(list, engine.Session{ID: "1", From: "192.0.2.7"})
	}
	return list, m.down
}

func (m *memory) EndSessions(_ context.Context, user string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sessions, user)
	return m.down
}

func (m *memory) Now(context.Context) (time.Time, error) { return time.Now(), nil }
func (m *memory) Close() error                           { return nil }

// asAdmin is the target for somebody who may not be its admin.
type asAdmin struct {
	*memory
	c engine.Credential
}

func (a asAdmin) SetSecret(ctx context.Context, user string, s, keep estover.Secret) error {
	if err := a.Verify(ctx, a.c); err != nil {
		return err
	}
	if a.c.User == a.powerless {
		return engine.Refuse("permission denied")
	}
	return a.memory.SetSecret(ctx, user, s, keep)
}
