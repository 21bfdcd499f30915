// Package session keeps the tasks of agents. A session is one task of one
// agent, for one purpose; all that the agent is handed for it (grants and the
// tokens on them, leases, connections, recordings) belongs to the session and
// ends with it, in the transaction that ends it.
//
//	open ──End, EndAll──▶ ended
//	  └────(expires_at)──▶ ended      at once, whether or not the sweep has written it
//
// A session that has ended is never opened again.
//
// # What belongs to a session
//
// The packages whose things end with a session do not know of each other, and
// this one does not know them: each hands in a [Part] at wiring, a function
// that ends its things for a list of sessions, inside the transaction. Whoever
// makes such a thing calls [Sessions.Hold] in the transaction that makes it:
// then either the session's end finds the thing, or the thing is not made.
//
// # Ambient sessions
//
// A token belongs to a session, and an agent that knows nothing of sessions
// still gets tokens: for each of its purposes there is one session that nobody
// opened, opened by the first request and used by the others ([Sessions.Ambient]).
// When its time runs out, another takes its place before the tokens would
// become too short; those that are out stay with the one they came from.
package session

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/token"
)

// The lives of sessions.
const (
	DefaultLife  = 8 * time.Hour
	LongestLife  = 24 * time.Hour
	ShortestLife = time.Second
)

// MaxTask is the longest text of a task, in bytes.
const MaxTask = 2000

// The errors of sessions.
var (
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "session_not_found", Detail: "There is no such session."}
	ErrEnded    = &estover.Error{Kind: estover.Conflict, Code: "session_ended", Detail: "The session has ended. Open another one for what is left to do."}
	ErrPurpose  = &estover.Error{Kind: estover.Invalid, Code: "purpose_unknown", Detail: "The agent has not declared this purpose. Name one that it has, or have its sponsor add this one."}
	ErrNotYours = &estover.Error{Kind: estover.Denied, Code: "session_of_another", Detail: "An agent opens and uses sessions of its own only."}
	ErrKeyTaken = &estover.Error{Kind: estover.Conflict, Code: "session_key_taken", Detail: "This certificate belongs to an open session already. Make another one."}
	ErrInvalid  = &estover.Error{Kind: estover.Invalid, Code: "session_invalid", Detail: "The session cannot be opened like this."}
)

// A State is where a session stands.
type State string

// The states of a session.
const (
	Open  State = "open"
	Ended State = "ended"
)

// A Session is one task of one agent. Its copies are shared and never changed.
type Session struct {
	ID        string          `json:"id"`
	Agent     string          `json:"agent"`
	Purpose   string          `json:"purpose"`
	Task      string          `json:"task,omitempty"` // what it is about, in somebody's words
	State     State           `json:"state"`          // when it was read
	Ambient   bool            `json:"ambient"`        // opened by a request that named none
	Key       string          `json:"certificate_thumbprint,omitempty"`
	OpenedAt  time.Time       `json:"opened_at"`
	OpenedBy  estover.Subject `json:"opened_by"`
	ExpiresAt time.Time       `json:"expires_at"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
	EndCause  string          `json:"end_cause,omitempty"`

	// Strength is what the session's certificate is worth: no more than what
	// the agent opened it with. A person who opens one vouches for it.
	Strength estover.Strength `json:"strength"`

	Calls int64 `json:"calls,omitempty"` // through the gateway; counted after the end
	Epoch int64 `json:"-"`               // raised by the end

	sealed []byte // the task
}

// live says why the session carries nothing at this time.
func (s *Session) live(now time.Time) error {
	switch {
	case !s.EndedAt.IsZero():
		return ErrEnded
	case !now.Before(s.ExpiresAt):
		return ErrEnded.With("The session has come to the end of its time. Open another one for what is left to do.")
	}
	return nil
}

// token is the session as the token service knows it.
func (s *Session) token() token.Session {
	return token.Session{ID: s.ID, Agent: s.Agent, Purpose: s.Purpose, Expires: s.ExpiresAt}
}

// A Part is what ends things that belong to sessions. End runs in the
// transaction that ends the sessions, and says how many things it ended; it
// does no I/O beside, and may run more than once.
type Part struct {
	Name string // in the event: "grants", "leases"
	End  func(ctx context.Context, tx *guard.Tx, sessions []string) (int, error)
}

// Config is what sessions need of others.
type Config struct {
	Clients token.Clients

	// Acting makes sure, inside the transaction that opens a session, that its
	// agent may act, and that nobody holds it until the transaction ends. Nil
	// leaves that to the copy that was decided on.
	Acting func(ctx context.Context, tx *db.Tx, agent string) error

	// Seal and Unseal encrypt the text of a task under the tenant's key, bound
	// to the session's id. Unseal says [audit.ErrErased] when the key was
	// destroyed.
	Seal   func(tenant estover.TenantID, id string, plain []byte) ([]byte, error)
	Unseal func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error)
}

// Table is the table to name in a [db.Epoch], by which a write is refused that
// rests on a session that has ended in the meantime.
const Table = "session"

// The kinds of rows whose copies go stale. Others may follow the first
// ([guard.Guard.OnTouch]) to cut what still runs for a session that has ended.
const (
	Kind        = "session"
	ambientKind = "session_ambient" // by agent
)

// Sessions are the tasks of all agents. It is safe for use by many at once.
type Sessions struct {
	Config
	guard   *guard.Guard
	parts   []Part
	copies  *guard.Cache[*Session]
	ambient *guard.Cache[map[string]string] // by agent: purpose → session
	keys    keys
}

// New keeps sessions behind the door g. The parts end in their order.
func New(g *guard.Guard, c Config, parts ...Part) *Sessions {
	return &Sessions{
		Config: c, guard: g, parts: parts, keys: keys{byThumbprint: map[string]place{}},
		copies: guard.NewCache(g, Kind, find), ambient: guard.NewCache(g, ambientKind, findAmbient),
	}
}

// A Wish is what a session is opened for.
type Wish struct {
	Agent   string
	Purpose string        // one that the agent has declared; "" for its usual one
	Task    string        // what it is about; kept sealed
	Life    time.Duration // 0 for the usual one
	Key     string        // x5t#S256 of the certificate that will stand for the session; "" for none
}

// Open opens a session for an agent: by the agent itself, or by a person whom
// policy lets.
func (s *Sessions) Open(ctx context.Context, caller estover.Caller, w Wish) (Session, error) {
	if acts := caller.Acting(); acts.Kind() == estover.AgentKind && acts != estover.Agent(w.Agent) {
		return Session{}, ErrNotYours
	}
	client, err := s.Clients.Client(ctx, caller.Tenant, w.Agent)
	if err != nil {
		return Session{}, err
	}
	if err := client.Alive(ctx, s.guard.DB().Now()); err != nil {
		return Session{}, err
	}
	made, life, err := s.wished(caller, client, w)
	if err != nil {
		return Session{}, err
	}
	err = s.open(ctx, caller, &made, life)
	if db.Taken(err) {
		err = ErrKeyTaken.Because(err)
	}
	made.Task = w.Task
	return made, err
}

// wished is the session that was wished for, and how long it lives, if it may
// be had.
func (s *Sessions) wished(caller estover.Caller, client *token.Client, w Wish) (made Session, life time.Duration, err error) {
	made = Session{
		ID: estover.NewID("ses"), Agent: client.ID, State: Open, Key: w.Key, OpenedBy: caller.Subject, Strength: estover.ByBound, Epoch: 1,
	}
	if caller.Acting().Kind() == estover.AgentKind && caller.Strength != estover.ByKey && caller.Strength != estover.ByBound {
		made.Strength = estover.BySecret
	}
	if made.Purpose, err = Purpose(client, w.Purpose); err != nil {
		return made, 0, err
	}
	switch life = w.Life; {
	case life == 0:
		life = DefaultLife
	case life < ShortestLife || life > LongestLife:
		return made, 0, ErrInvalid.With("A session lives between %s and %s, not %s.", ShortestLife, LongestLife, life)
	}
	if len(w.Task) > MaxTask || !utf8.ValidString(w.Task) || strings.ContainsRune(w.Task, 0) {
		return made, 0, ErrInvalid.With("The text of a task is UTF-8 of at most %d bytes.", MaxTask)
	}
	if w.Key != "" && !thumbprint(w.Key) {
		return made, 0, ErrInvalid.With("The certificate's thumbprint is not an x5t#S256: 43 characters of base64url.")
	}
	if w.Task != "" {
		made.sealed, err = s.Seal(caller.Tenant, made.ID, []byte(w.Task))
	}
	return made, life, err
}

// Purpose is the purpose of a session of this agent: the named one, if the
// agent has declared it, or its usual one.
func Purpose(c *token.Client, name string) (string, error) {
	switch {
	case name == "" && len(c.Purposes) > 0:
		return c.Purposes[0], nil
	case !slices.Contains(c.Purposes, name):
		return "", ErrPurpose
	}
	return name, nil
}

// open writes the session. Its times are those of the transaction.
func (s *Sessions) open(ctx context.Context, caller estover.Caller, made *Session, life time.Duration) error {
	op := guard.Op{Action: "session.open", Target: "agent:" + made.Agent, Purpose: made.Purpose}
	return s.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if s.Acting != nil {
			if err := s.Acting(ctx, tx.Tx, made.Agent); err != nil {
				return err
			}
		}
		made.OpenedAt, made.ExpiresAt = tx.Now(), tx.Now().Add(life)
		tx.SetTarget("session:" + made.ID)
		tx.SetSession(made.ID)
		tx.Note("agent", made.Agent)
		tx.Note("expires_at", made.ExpiresAt)
		tx.Note("ambient", made.Ambient)
		if !made.Ambient {
			_, err := insert(ctx, tx.Tx, made)
			return err
		}
		tx.Touch(ambientKind, made.Agent)
		old, err := replace(ctx, tx.Tx, made)
		if err != nil {
			return err
		}
		for _, id := range old {
			tx.Touch(Kind, id)
		}
		if ok, err := insert(ctx, tx.Tx, made); err != nil || ok {
			return err
		}
		return errRaced
	})
}

// Fresh is a session that there is not yet, for [Sessions.Begin]: for the named
// purpose of a client or its usual one, and as long as a token may live.
func (s *Sessions) Fresh(client *token.Client, purpose string) (token.Session, error) {
	purpose, err := Purpose(client, purpose)
	return token.Session{
		ID: estover.NewID("ses"), Agent: client.ID, Purpose: purpose, Expires: s.guard.DB().Now().Add(token.LongestLife),
	}, err
}

// Begin opens a session for an agent on behalf of a person, in a transaction
// that does more: that is what the person was asked, and what its event tells.
// It lives as long as a session may, unless it says how long.
func (s *Sessions) Begin(ctx context.Context, tx *guard.Tx, as token.Session, person estover.Subject) (token.Session, error) {
	if s.Acting != nil {
		if err := s.Acting(ctx, tx.Tx, as.Agent); err != nil {
			return token.Session{}, err
		}
	}
	made := Session{
		ID: as.ID, Agent: as.Agent, Purpose: as.Purpose, State: Open, OpenedBy: person, Strength: estover.BySecret, Epoch: 1,
		OpenedAt: tx.Now(), ExpiresAt: as.Expires,
	}
	if made.ID == "" {
		made.ID = estover.NewID("ses")
	}
	if made.ExpiresAt.IsZero() {
		made.ExpiresAt = tx.Now().Add(LongestLife)
	}
	tx.SetSession(made.ID)
	tx.Note("expires_at", made.ExpiresAt)
	_, err := insert(ctx, tx.Tx, &made)
	return made.token(), err
}

// errRaced says that somebody else has just opened the ambient session.
var errRaced = errors.New("the ambient session is there already")

// left is how much time an ambient session must have left to be used for a
// further token.
const left = token.DefaultLife

// Ambient is the session of the agent for a purpose ("" for its usual one)
// when a request names none. It is opened if there is none, provided that may
// has nothing against it; nil has nothing.
func (s *Sessions) Ambient(ctx context.Context, caller estover.Caller, client *token.Client, purpose string, may func() error) (token.Session, error) {
	purpose, err := Purpose(client, purpose)
	if err != nil {
		return token.Session{}, err
	}
	for range 4 {
		byPurpose, err := s.ambient.Get(ctx, caller.Tenant, client.ID)
		if err != nil {
			return token.Session{}, err
		}
		if id, ok := byPurpose[purpose]; ok {
			copied, err := s.copies.Get(ctx, caller.Tenant, id)
			if err != nil {
				return token.Session{}, err
			}
			if now := s.guard.DB().Now(); copied.live(now) == nil && copied.ExpiresAt.Sub(now) >= left {
				return copied.token(), nil
			}
		}
		if may != nil {
			if err := may(); err != nil {
				return token.Session{}, err
			}
		}
		if err := client.Alive(ctx, s.guard.DB().Now()); err != nil {
			return token.Session{}, err
		}
		made, life, err := s.wished(caller, client, Wish{Agent: client.ID, Purpose: purpose})
		if err != nil {
			return token.Session{}, err
		}
		made.Ambient = true
		err = s.open(ctx, caller, &made, life)
		if err == nil {
			return made.token(), nil
		}
		if !errors.Is(err, errRaced) {
			return token.Session{}, err
		}
		// It may have been opened on another node, of which this one has not
		// heard yet: so it is read, not copied.
		var theirs *Session
		err = s.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
			theirs, err = findAmbientFor(ctx, tx, client.ID, purpose)
			return err
		})
		if err == nil {
			return theirs.token(), nil
		}
		if !errors.Is(err, ErrNotFound) {
			return token.Session{}, err
		}
	}
	return token.Session{}, token.ErrBusy
}

// Snapshot is the session from memory, also one that has ended; its State is
// that of the time when it was read. Its task is sealed.
func (s *Sessions) Snapshot(ctx context.Context, tenant estover.TenantID, id string) (*Session, error) {
	return s.copies.Get(ctx, tenant, id)
}

// Live is the session, if it is open now. It reads a copy.
func (s *Sessions) Live(ctx context.Context, tenant estover.TenantID, id string) (token.Session, error) {
	copied, err := s.copies.Get(ctx, tenant, id)
	if err != nil {
		return token.Session{}, err
	}
	return copied.token(), copied.live(s.guard.DB().Now())
}

// Hold makes sure that a session is open, and that it stays so until the
// transaction ends.
func (s *Sessions) Hold(ctx context.Context, tx *guard.Tx, id string) error {
	return hold(ctx, tx.Tx, id)
}

// ByKey finds the open session that a certificate stands for, by its
// x5t#S256. The certificate's key must have been shown, as TLS does.
func (s *Sessions) ByKey(ctx context.Context, key string) (estover.TenantID, *Session, error) {
	if !thumbprint(key) {
		return "", nil, ErrNotFound
	}
	for range 2 {
		at, known := s.keys.get(key)
		if !known {
			err := s.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
				at, err = findKey(ctx, tx, key)
				return err
			})
			if err != nil {
				return "", nil, err
			}
			s.keys.put(key, at)
		}
		copied, err := s.copies.Get(ctx, at.tenant, at.id)
		if err == nil {
			err = copied.live(s.guard.DB().Now())
		}
		if err == nil {
			return at.tenant, copied, nil
		}
		s.keys.drop(key)
		if !known || !errors.Is(err, ErrEnded) {
			return "", nil, err
		}
	}
	return "", nil, ErrNotFound
}

// thumbprint reports whether s is 32 bytes in base64url.
func thumbprint(s string) bool {
	if len(s) != 43 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// keys remembers where the session of a certificate is. It is never believed
// without a look at the session.
type keys struct {
	mu           sync.Mutex
	byThumbprint map[string]place
}

type place struct {
	tenant estover.TenantID
	id     string
}

// maxKeys bounds what is remembered.
const maxKeys = 100_000

func (k *keys) get(key string) (place, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.byThumbprint[key]
	return at, ok
}

func (k *keys) put(key string, at place) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.byThumbprint) >= maxKeys {
		clear(k.byThumbprint)
	}
	k.byThumbprint[key] = at
}

func (k *keys) drop(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.byThumbprint, key)
}
