// Package session keeps the tasks of agents. A session is one task of one
// agent, for one purpose; all that the agent is handed for it (grants and the
// tokens on them, leases, connections, recordings) belongs to the session and
// ends with it, in the transaction that ends it.
//
//	open ──End, EndAll──▶ ended
//	  ├────(expires_at)──▶ ended      at once, whether or not the sweep has written it
//	  ├────(idle_at)─────▶ ended      by the sweep: nobody has used it for so long
//	  └──(parent ended)──▶ ended      in the same transaction
//
// A session that has ended is never opened again. While it is open its time may
// be extended ([Sessions.Renew]), and never beyond [LongestLife] from its opening.
//
// # What belongs to a session
//
// The packages whose things end with a session do not know of each other, and
// this one does not know them: each hands in a [Part] at wiring. What is a row
// ends in the transaction that ends the session. Whoever makes such a thing calls
// [Sessions.Hold] in the transaction that makes it: then either the session's end
// finds the thing, or the thing is not made. What is no row follows the commit,
// and is done again until it succeeds:
//
//	end: rows of all parts, a step for each part that has more to do ─commit─▶ here, on every node
//	                                        └──▶ after, on one node ─(done)─▶ the step's row goes
//	                                                └─(failed, or the node is gone)─▶ due again
//
// # Sessions within a session
//
// An agent to whom work is handed on may open a session of its own within the one
// that the work began in, and an agent may open one for a part of its task. It is
// for the purpose of its parent, ends with it at the latest, and is at most
// [MaxDepth] deep.
//
// # Activity
//
// A session that was opened with an idle time ends when nothing has been heard of
// it for so long: neither a heartbeat of its launcher ([Sessions.Beat]) nor a call
// through a gateway ([Sessions.Seen]). Both are noted in memory and written every
// so often, and are no events. Whoever uses a session uses those that it is a part
// of, and one within a session that may not be idle may not be idle either.
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
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
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

// The idle times of sessions. [LauncherIdle] is what launchers that send
// heartbeats ask for if nobody says otherwise.
const (
	ShortestIdle = 10 * time.Second
	LauncherIdle = 15 * time.Minute
)

// MaxDepth is how deep sessions within sessions may be.
const MaxDepth = 4

// MaxTask is the longest text of a task, in bytes.
const MaxTask = 2000

// The errors of sessions.
var (
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "session_not_found", Detail: "There is no such session."}
	ErrEnded    = &estover.Error{Kind: estover.Conflict, Code: "session_ended", Detail: "The session has ended. Open another one for what is left to do."}
	ErrPurpose  = &estover.Error{Kind: estover.Invalid, Code: "purpose_unknown", Detail: "The agent has not declared this purpose. Name one that it has, or have its sponsor add this one."}
	ErrNotYours = &estover.Error{Kind: estover.Denied, Code: "session_of_another", Detail: "An agent opens and uses sessions of its own only."}
	ErrKeyTaken = &estover.Error{Kind: estover.Conflict, Code: "session_key_taken", Detail: "This certificate belongs to an open session already. Make another one."}
	ErrParent   = &estover.Error{Kind: estover.Denied, Code: "session_parent", Detail: "A session cannot be opened within this one. Name the session that the work belongs to, while it is open, and its purpose."}
	ErrDeep     = &estover.Error{Kind: estover.Conflict, Code: "session_too_deep", Detail: "Sessions within sessions are four deep at most. Do this in the session that there is."}
	ErrLimit    = &estover.Error{Kind: estover.Conflict, Code: "session_at_limit", Detail: "The session cannot live longer. Open another one for what is left to do."}
	ErrInvalid  = &estover.Error{Kind: estover.Invalid, Code: "session_invalid", Detail: "The session cannot be opened like this."}
)

// A State is where a session stands.
type State string

// The states of a session.
const (
	Open  State = "open"
	Ended State = "ended"
)

// A Bound says to what a session is bound where its program runs, as its
// launcher tells: what is copied from there is of no use elsewhere.
type Bound string

// The bounds of sessions.
const (
	ByProcess Bound = "process" // to a tree of processes
	ByUser    Bound = "user"    // to the processes of one user of a machine
	ByNothing Bound = "none"
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
	IdleSecs  int64           `json:"idle_seconds,omitempty"` // how long nobody may use it; 0 for as long as it lives
	SeenAt    time.Time       `json:"seen_at,omitzero"`       // when it was last used, to within a few seconds; kept where it may be idle
	Parent    string          `json:"parent,omitempty"`       // the session that it ends with
	Bound     Bound           `json:"bound"`
	Program   string          `json:"executable,omitempty"` // SHA-256 of the file of the program that it was opened for, in hex
	EndedAt   time.Time       `json:"ended_at,omitzero"`
	EndCause  string          `json:"end_cause,omitempty"`

	// Strength is what the session's certificate is worth: no more than what
	// the agent opened it with. A person who opens one vouches for it.
	Strength estover.Strength `json:"strength"`

	Calls int64 `json:"calls,omitempty"` // through the gateway; counted after the end
	Epoch int64 `json:"-"`               // raised by the end

	// Ending are the parts that have outside of the database still to end what
	// belonged to the session. It is told when one session is read.
	Ending []string `json:"ending,omitempty"`

	sealed []byte // the task
	depth  int64
}

// idle is how long nobody may use the session; 0 for as long as it lives.
func (s *Session) idle() time.Duration { return time.Duration(s.IdleSecs) * time.Second }

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

// Config is what sessions need of others.
type Config struct {
	Clients token.Clients

	// Acting makes sure, inside the transaction that opens a session, that its
	// agent may act, and that nobody holds it until the transaction ends. Nil
	// leaves that to the copy that was decided on.
	Acting func(ctx context.Context, tx *db.Tx, agent string) error

	// Expired are the agents whose own time has run out since a moment, in all
	// tenants: the sweep ends their sessions. Nil knows of none.
	Expired func(ctx context.Context, tx *db.Tx, since time.Time) ([]AgentOf, error)
	// Left reports whether such an agent has anything still that it was given or has
	// made in the sessions of others, and Lapse ends that, for a cause. They are nil
	// together: there is nothing.
	Left  func(ctx context.Context, tx *db.Tx, agent string) (bool, error)
	Lapse func(ctx context.Context, tx *guard.Tx, agent, cause string) error

	// Node is the name of this node, by which what it had taken on is found when it
	// is gone ([Sessions.Release]).
	Node string

	// Logger hears of what could not be done yet. Nil is the default one.
	Logger *slog.Logger

	// Seal and Unseal encrypt the text of a task under the tenant's key, bound
	// to the session's id. Unseal says [audit.ErrErased] when the key was
	// destroyed.
	Seal   func(tenant estover.TenantID, id string, plain []byte) ([]byte, error)
	Unseal func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error)
}

// An AgentOf is an agent of a tenant.
type AgentOf struct {
	Tenant estover.TenantID
	Agent  string
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
	seen    activity
	left    leftovers
	looked  look
	since   time.Time // when this node began to hear of sessions
}

// New keeps sessions behind the door g. The parts end in their order.
func New(g *guard.Guard, c Config, parts ...Part) *Sessions {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	s := &Sessions{
		Config: c, guard: g, parts: parts, keys: keys{byThumbprint: map[string]db.Place{}}, since: g.DB().Now(),
		copies: guard.NewCache(g, Kind, find), ambient: guard.NewCache(g, ambientKind, findAmbient),
		left: leftovers{wake: make(chan struct{}, 1)},
	}
	g.OnTouch(s.touched)
	return s
}

// A Wish is what a session is opened for.
type Wish struct {
	Agent   string
	Purpose string        // one that the agent has declared; "" for its usual one
	Task    string        // what it is about; kept sealed
	Life    time.Duration // 0 for the usual one
	Key     string        // x5t#S256 of the certificate that will stand for the session; "" for none
	Idle    time.Duration // how long nobody may use it, in whole seconds; 0 for as long as it lives
	Parent  string        // the session that it is a part of; "" for none, or for the one that the work of another agent began in
	Bound   Bound         // "" for nothing
	Program string        // SHA-256 of the file of the program that it is for, in hex; "" if nobody says
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
	if err := s.within(ctx, caller, &w); err != nil {
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
	if made.IdleSecs > 0 {
		made.SeenAt = made.OpenedAt
	}
	return made, err
}

// within finds the session that a wish is to be a part of. An agent that does
// what another has handed on opens sessions within the one in which that began.
func (s *Sessions) within(ctx context.Context, caller estover.Caller, w *Wish) error {
	acts := caller.Acting()
	if acts.Kind() == estover.AgentKind && caller.Session != "" && w.Parent == "" {
		began, err := s.copies.Get(ctx, caller.Tenant, caller.Session)
		if err != nil {
			return err
		}
		if estover.Agent(began.Agent) != acts {
			w.Parent = began.ID
		}
	}
	if w.Parent == "" {
		return nil
	}
	parent, err := s.copies.Get(ctx, caller.Tenant, w.Parent)
	switch {
	case errors.Is(err, ErrNotFound):
		return ErrParent
	case err != nil:
		return err
	case acts.Kind() == estover.AgentKind && estover.Agent(parent.Agent) != acts && caller.Session != parent.ID:
		return ErrParent // it is neither the agent's own nor what it works in
	case parent.depth >= MaxDepth:
		return ErrDeep
	case w.Purpose == "":
		w.Purpose = parent.Purpose
	case w.Purpose != parent.Purpose:
		return ErrParent.With("The session that this is to be a part of is for %s, not for %s. Open this one for the same.", parent.Purpose, w.Purpose)
	}
	return parent.live(s.guard.DB().Now())
}

// wished is the session that was wished for, and how long it lives, if it may
// be had.
func (s *Sessions) wished(caller estover.Caller, client *token.Client, w Wish) (made Session, life time.Duration, err error) {
	made = Session{
		ID: estover.NewID("ses"), Agent: client.ID, State: Open, Key: w.Key, OpenedBy: caller.Subject, Strength: estover.ByBound, Epoch: 1,
		IdleSecs: int64(w.Idle / time.Second), Parent: w.Parent, Bound: w.Bound, Program: w.Program,
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
	if w.Idle != 0 && (w.Idle < ShortestIdle || w.Idle > LongestLife || w.Idle%time.Second != 0) {
		return made, 0, ErrInvalid.With("Nobody may use a session for between %s and %s, in whole seconds, not %s.", ShortestIdle, LongestLife, w.Idle)
	}
	switch w.Bound {
	case "":
		made.Bound = ByNothing
	case ByProcess, ByUser, ByNothing:
	default:
		return made, 0, ErrInvalid.With("A session is bound to process, user or none.")
	}
	if sum, err := hex.DecodeString(w.Program); err != nil || len(sum) != 0 && len(sum) != sha256.Size {
		return made, 0, ErrInvalid.With("The executable is named by its SHA-256, 64 hexadecimal digits.")
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
		if err := nest(ctx, tx.Tx, made); err != nil {
			return err
		}
		tx.SetTarget("session:" + made.ID)
		tx.SetSession(made.ID)
		tx.Note("agent", made.Agent)
		tx.Note("expires_at", made.ExpiresAt)
		tx.Note("ambient", made.Ambient)
		if made.Parent != "" {
			tx.Note("parent", made.Parent)
		}
		if made.Bound != ByNothing {
			tx.Note("bound", made.Bound)
		}
		if made.Program != "" {
			tx.Note("executable", made.Program)
		}
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
		ID: as.ID, Agent: as.Agent, Purpose: as.Purpose, State: Open, OpenedBy: person, Strength: estover.BySecret, Epoch: 1, Bound: ByNothing,
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
		copied, err := s.copies.Get(ctx, at.Tenant, at.ID)
		if err == nil {
			err = copied.live(s.guard.DB().Now())
		}
		if err == nil {
			return at.Tenant, copied, nil
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
	byThumbprint map[string]db.Place
}

// maxKeys bounds what is remembered.
const maxKeys = 100_000

func (k *keys) get(key string) (db.Place, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.byThumbprint[key]
	return at, ok
}

func (k *keys) put(key string, at db.Place) {
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
