// Package lease hands out credentials that end: users of a database, a broker or
// a directory, made for one session and gone with it.
//
//	creating ──▶ live ──▶ revoking ──▶ ended        renewed: live ──▶ live
//	    └───────────────────▲
//
// # No credential without a row
//
// A credential is made in four steps. The row is there first, so that whatever
// crashes in between, somebody knows the name and can undo it:
//
//	L1  in a guarded transaction   the row, creating: name, end, and by when it is made
//	L2  at the target              the user of this name; nobody waits longer than that
//	L3  in a guarded transaction   creating ─▶ live, with what the gateway is to open
//	L4                             the answer; a client that is gone has its lease revoked
//
// A row that is still creating after its time is revoked by name. If L3 finds that
// the row is no longer creating, because the session has ended meanwhile, the
// creator takes the user away itself (L5). A row that was being created when it was
// marked ends only by a revocation that began after the creator had reported back,
// or five seconds after the last instant at which the target may still have obeyed
// it (L6).
//
// # Marked first
//
// What ends leases, the end of a session, a containment, a command, is one statement
// in one guarded transaction, however many there are. From that commit on no handle
// opens. The work at the targets follows ([Leases.Run]): by priority (containment,
// by hand, with a session, expired), in batches of 50 of one target, by whoever has
// claimed the rows; the last compare-and-swap names the fence of the claim. Nothing
// but the target's word that the user is gone ends a lease, or the word of two
// people that the target is. It is tried for ever.
//
// A lease that should be gone and is not is overdue: an alarm, which keeps its agent
// from being retired and a containment from being certified.
//
// Nothing is loaded at start. The row that is due is the queue.
package lease

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/target"
)

// The errors of leases.
var (
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "lease_not_found", Detail: "There is no such lease."}
	ErrNotLive  = &estover.Error{Kind: estover.Conflict, Code: "lease_not_live", Detail: "The lease is not live any more. Ask for another one."}
	ErrInvalid  = &estover.Error{Kind: estover.Invalid, Code: "lease_invalid", Detail: "A lease cannot be had like this."}
	ErrEnded    = &estover.Error{Kind: estover.Conflict, Code: "lease_session_ended", Detail: "The session ended while the credential was being made, so it was taken away again."}
	ErrMaximum  = &estover.Error{Kind: estover.Conflict, Code: "lease_at_maximum", Detail: "The lease cannot be extended any further. Ask for another one when it ends."}
	ErrQuota    = &estover.Error{Kind: estover.TooMuch, Code: "lease_quota", Detail: "There are too many leases. Revoke those that are not needed."}
	ErrRate     = &estover.Error{Kind: estover.TooMuch, Code: "lease_rate", Detail: "So many leases of this role have been made in the last minute that there are no more. Try again in a minute."}
	ErrOverdue  = &estover.Error{Kind: estover.Unavailable, Code: "target_overdue", Detail: "Credentials at the target should be gone and are not, so no more are made there. An operator finds the reason with `estover secret lease list --overdue`."}
	ErrRefused  = &estover.Error{Kind: estover.Unavailable, Code: "lease_refused_by_target", Detail: "The target did not make the credential. An operator finds the reason with `estover secret engine check`."}
	ErrUnsure   = &estover.Error{Kind: estover.Unavailable, Code: "lease_outcome_unknown", Detail: "The target did not say in time whether it made the credential. If it did, it is taken away again. Try again."}
	ErrSession  = &estover.Error{Kind: estover.Invalid, Code: "lease_needs_session", Detail: "An agent gets a lease within a session, and it ends with that. Open one (estover run --purpose …)."}
)

// A State is where a lease is in its life.
type State string

// The states of a lease.
const (
	Creating State = "creating"
	Live     State = "live"
	Revoking State = "revoking"
	Ended    State = "ended"
)

// A Delivery is how a credential gets to who uses it.
type Delivery string

// The ways.
const (
	Handle    Delivery = "handle"    // the gateway opens it, and nobody else
	Plaintext Delivery = "plaintext" // it is in the answer, and has left us
)

// A Cause is why a lease ends.
type Cause string

// The causes, and what they are tried before.
const (
	Contained   Cause = "containment" // priority 0
	ByHand      Cause = "revoked"     // 1
	WithSession Cause = "session"     // 2
	WithToken   Cause = "token"       // 2
	WithGrant   Cause = "grant"       // 2: what it was made on
	WithAgent   Cause = "agent"       // 2: who holds it may not act
	Expired     Cause = "expired"     // 3
	Undelivered Cause = "undelivered" // 1: whoever asked was gone
	Failed      Cause = "failed"      // 2: it could not be made, or nobody knows whether it was
)

func (c Cause) priority() int64 {
	switch c {
	case Contained:
		return 0
	case ByHand, Undelivered:
		return 1
	case Expired:
		return 3
	}
	return 2
}

// A Lease is a credential that was handed out, or may have been.
type Lease struct {
	ID        string          `json:"id"`
	Role      string          `json:"role"`
	Target    string          `json:"target"` // its id
	User      string          `json:"user"`   // at the target
	State     State           `json:"state"`
	Delivery  Delivery        `json:"delivery"`
	Resource  string          `json:"resource,omitempty"`
	Session   string          `json:"session,omitempty"`
	Agent     string          `json:"agent,omitempty"`
	Holder    estover.Subject `json:"holder"`
	Token     string          `json:"token,omitempty"` // that it ends with
	Grant     string          `json:"grant,omitempty"` // that it was made on, and ends with
	Trial     bool            `json:"trial,omitempty"` // made to see whether it can be
	CreatedAt time.Time       `json:"created_at"`
	ExpiresAt time.Time       `json:"expires_at"`
	ExpiresBy string          `json:"expires_by"` // what says so: ttl, session, grant or token
	MaxAt     time.Time       `json:"max_at"`     // the latest that it can be extended to
	Cause     Cause           `json:"cause,omitempty"`
	Priority  int64           `json:"priority"`
	DueAt     time.Time       `json:"due_at,omitzero"` // since when it is to be gone
	Overdue   bool            `json:"overdue"`         // it should be gone, and is not
	Attempts  int64           `json:"attempts,omitempty"`
	NextTryAt time.Time       `json:"next_try_at,omitzero"`
	LastError string          `json:"last_error,omitempty"`
	Declared  estover.Subject `json:"declared_by,omitempty"` // who says that the target is no more
	EndedAt   time.Time       `json:"ended_at,omitzero"`

	roleID     string
	authority  string // what its token came from
	template   engine.Template
	share      string
	createBy   time.Time
	createDone time.Time
	fence      int64
	alone      bool
	alarmedAt  time.Time
	sealed     []byte
}

// How long a lease may be overdue before that is an alarm.
const (
	patienceContained = time.Minute
	patience          = 5 * time.Minute
)

// overdue reports whether a lease should be gone and is not.
func (x *Lease) overdue(now time.Time) bool {
	switch {
	case x.State == Live:
		return now.Sub(x.ExpiresAt) > patience
	case x.State != Revoking:
		return false
	case x.Priority == 0:
		return now.Sub(x.DueAt) > patienceContained
	}
	return now.Sub(x.DueAt) > patience
}

// Options are what a program says once. The zero value of a number is good.
type Options struct {
	// Action is what policy is told of an action of a resource, and what that
	// does to the world.
	Action func(ctx context.Context, tenant estover.TenantID, resource, action string) (input any, effect guard.Effect, err error)
	// Resource is the id of a resource of the catalogue, named by its id or its
	// name, that has this action.
	Resource func(ctx context.Context, tx *db.Tx, ref, action string) (id string, err error)
	// Held keeps a resource from being held before the transaction ends, and says that
	// it is held already, if so. Nil knows of no holds.
	Held func(ctx context.Context, tx *db.Tx, resource string) error
	// Session keeps a session from ending before the transaction does, and says
	// when it will by itself.
	Session func(ctx context.Context, tx *db.Tx, id string) (until time.Time, err error)
	// Grant is the grant that covers an action, for an agent.
	Grant func(ctx context.Context, c estover.Caller, resource, action string) (Grant, error)
	// Token keeps what a caller came with from being ended before the transaction is,
	// and says that it has, if so. Nil knows of no tokens that end.
	Token func(ctx context.Context, tx *db.Tx, c estover.Caller) error

	Quota  int64         // live leases of an agent; 100 if zero
	Look   time.Duration // how often [Leases.Run] looks for what is due; 500 ms if zero
	Node   string        // the name of this node; a new one if empty
	Logger *slog.Logger

	// Reached is told of each step of a lease before it is done and when it is, and
	// may stop it there, as a crash does. It is nil but in tests.
	Reached func(step string, done bool) error
}

// Leases are the leases of all tenants. It is safe for use by many at once.
type Leases struct {
	guard   *guard.Guard
	sealer  *seal.Sealer
	targets *target.Targets
	o       Options
	roles   *guard.Cache[*Role] // by name

	wake chan struct{} // something is due

	mu      sync.Mutex
	opened  map[openedKey]*Lease // what the gateway uses, by session and role
	dropped int64                // how often some of that was forgotten
}

// Holding is where what leases hand out lies, for [seal.Sealer.Hold].
var Holding = seal.Holding{Class: seal.Lease, Table: "lease", Sealed: "sealed", ID: "id", Created: "created_at"}

// Marked is the kind under which it is told that leases were marked or extended, after
// the commit and on every node ([guard.Guard.OnTouch]): those of a session, or with *
// all of the tenant.
const Marked = "lease_session"

// roleKind is what events that touch copies of roles call them, by name.
const roleKind = "lease_role"

// New hands out credentials made at targets, behind the door g.
func New(g *guard.Guard, s *seal.Sealer, t *target.Targets, o Options) *Leases {
	if o.Quota == 0 {
		o.Quota = 100
	}
	if o.Look == 0 {
		o.Look = 500 * time.Millisecond
	}
	if o.Node == "" {
		o.Node = estover.NewID("node")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	l := &Leases{guard: g, sealer: s, targets: t, o: o, wake: make(chan struct{}, 1), opened: map[openedKey]*Lease{}}
	l.roles = guard.NewCache(g, roleKind, findRole)
	g.OnTouch(l.touched)
	return l
}

func (l *Leases) at(step string, done bool) error {
	if l.o.Reached == nil {
		return nil
	}
	return l.o.Reached(step, done)
}

// system is who does the work that nobody waits for.
func system(tenant estover.TenantID) estover.Caller {
	return estover.Caller{Tenant: tenant, Subject: estover.System("leases")}
}

// stir has the workers of this node look at once.
func (l *Leases) stir() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Get is one lease, without what it hands out.
func (l *Leases) Get(ctx context.Context, c estover.Caller, id string) (x Lease, err error) {
	err = l.guard.Read(ctx, c, guard.Op{Action: "lease.read", Target: "lease:" + id}, func(tx *db.Tx) error {
		found, err := find(ctx, tx, id)
		if err == nil {
			x = found.shownTo(c)
		}
		return err
	})
	return x, err
}

// read is a lease as it is. Policy is not asked.
func (l *Leases) read(ctx context.Context, tenant estover.TenantID, id string) (x *Lease, err error) {
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		x, err = find(ctx, tx, id)
		return err
	})
	return x, err
}

// shownTo is the lease as somebody sees it: the target's own words are not for agents.
func (x *Lease) shownTo(c estover.Caller) Lease {
	shown := *x
	if c.Acting().Kind() == estover.AgentKind {
		shown.LastError = ""
	}
	return shown
}

// A Filter says which leases are meant; what is empty does not matter.
type Filter struct {
	ID      string
	Session string
	Agent   string
	Role    string // its name
	Target  string // its id
	State   State
	Open    bool // that have not ended
	Overdue bool
}

// List gives leases, the newest first: at most limit, after the id that the page
// before ended with.
func (l *Leases) List(ctx context.Context, c estover.Caller, f Filter, after string, limit int) (all []Lease, err error) {
	op := guard.Op{Action: "lease.list"}
	switch { // what is an agent's own it may list
	case f.Session != "":
		op.Target, op.Session = "session:"+f.Session, f.Session
	case f.Agent != "":
		op.Target = "agent:" + f.Agent
	}
	err = l.guard.Read(ctx, c, op, func(tx *db.Tx) error {
		all, err = list(ctx, tx, f, after, limit)
		return err
	})
	for i := range all {
		all[i] = all[i].shownTo(c)
	}
	return all, err
}

// Owner is the agent whose lease this is; "" for a person's.
func (l *Leases) Owner(ctx context.Context, tenant estover.TenantID, id string) (agent string, err error) {
	x, err := l.read(ctx, tenant, id)
	if err != nil {
		return "", err
	}
	return x.Agent, nil
}
