// Package token issues access tokens, says whether one is good, and ends them.
//
// A token is a signed JWT (RFC 9068) of at most half an hour. It rests on a
// grant, and a grant on a session:
//
//	session ──▶ grant ──▶ grant ──▶ …      a tree: what is handed on hangs below
//	              │          │
//	            token      token           signed, not stored
//
// Ending a grant ends the whole tree below it, in one statement, and raises the
// epoch of every grant in it. A token carries its grant and the epoch, and
// whoever accepts the token compares ([Tokens.Verify]): so everything that was
// handed out for a task is dead when the call that ends it returns, however
// long it would still have lived.
//
// # One way to a token
//
// [Tokens.Issue] is the only one. A grant type proves something ([Proof]); from
// there on nothing depends on which it was:
//
//	client, subject, actors and session alive
//	─▶ narrow: asked ∩ proven ∩ what the client may have ∩ what the parent has
//	─▶ guard: policy, once for each resource
//	─▶ sign
//	─▶ commit: the session or the grant is still open, what may be presented
//	   once is consumed, the grant is written if it was not there, the event
//	─▶ answer
//
// A token that was signed and whose commit failed is thrown away. A refusal is
// an event too, and consumes what was presented along with it.
//
// # What is asked each time, and what it costs
//
// A person can let a client have part of what it may ask for: [Tokens.Authorize]
// opens a session for that and makes the grant, and the client comes for the
// token with a code, later with refresh tokens. The grant says whose authority it
// is (the subject) and who acts (the client, as the actor).
//
// Clients, sessions and grants are copies in memory (guard.Cache); a token that
// is issued for a session and a client that have met before reads no row and
// writes the event alone, and so does one for a token that the same client has
// taken up before. The signature of a token that is presented again is
// not checked again, all the rest is.
//
// Who the clients are, which sessions are open and what an agent may ask for
// is known elsewhere; [Config] says what this package needs of them.
package token

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
)

// ErrNoTenant is returned for a tenant that is not there.
var ErrNoTenant = &estover.Error{Kind: estover.NotFound, Code: "tenant_not_found", Detail: "There is no such tenant."}

// The lives of tokens.
const (
	DefaultLife = 15 * time.Minute
	LongestLife = 30 * time.Minute
)

// The bounds of a request.
const (
	MaxScopes    = 100
	MaxResources = 20
)

// Config is what the token service needs of others.
type Config struct {
	Issuer   Issuer
	Keys     *seal.Keyring
	Clients  Clients
	Sessions Sessions
	Access   Access

	// Known says why there is no such tenant, or why it may do nothing. It is asked
	// for every token of one. Nil knows the default one alone.
	Known func(ctx context.Context, tenant estover.TenantID) error

	// People says whether the person of this subject may act. Nil if people are
	// at the root of no grant.
	People func(ctx context.Context, tenant estover.TenantID, person string) error
}

// Sessions are the tasks that tokens belong to.
type Sessions interface {
	// Live is the session, if it is open now. It reads a copy.
	Live(ctx context.Context, tenant estover.TenantID, id string) (Session, error)

	// Hold makes sure that the session is open, and that it stays so until the
	// transaction ends.
	Hold(ctx context.Context, tx *guard.Tx, id string) error

	// Begin opens a session for an agent on behalf of a person, in a transaction
	// that does more. Without an id it gets one, and without an end it lives as
	// long as a session may.
	Begin(ctx context.Context, tx *guard.Tx, s Session, person estover.Subject) (Session, error)

	// EndWithin ends a session with all that belongs to it, in a transaction
	// that does more. It does nothing to one that has ended.
	EndWithin(ctx context.Context, tx *guard.Tx, id, cause string) error
}

// A Session is what the token service knows of a task.
type Session struct {
	ID      string
	Agent   string // its id
	Purpose string
	Expires time.Time
}

// Access knows what agents may ask for.
type Access interface {
	// Allowed is what the agent may ask for, for a purpose, on the resource
	// with this identifier; [ErrTarget] if there is no such resource or nothing
	// that the agent may do there. What it returns is shared and never changed.
	Allowed(ctx context.Context, tenant estover.TenantID, agent, identifier, purpose string) (Allowed, error)
}

// Allowed is the most that an agent may have on a resource.
type Allowed struct {
	Resource string   // the resource's id
	Audience string   // its identifier, as it was registered
	Scopes   []string // the actions that it may do, by names that are scope-tokens ([Scope]), sorted
	Actions  []string // all actions that the resource has, by name
}

// An Issuer is the name under which we issue: a URL without a slash at its
// end. It is configured, and never taken from a request.
type Issuer string

// Of is the issuer of a tenant: the configured one for the default tenant,
// with a path of its own for every other.
func (i Issuer) Of(tenant estover.TenantID) string {
	if tenant == estover.DefaultTenant {
		return string(i)
	}
	return string(i) + TenantPath + string(tenant)
}

// TenantPath stands between the configured issuer and a tenant's name.
const TenantPath = "/t/"

// Tenant finds the tenant that an issuer stands for.
func (i Issuer) Tenant(issuer string) (estover.TenantID, bool) {
	rest, ok := strings.CutPrefix(issuer, string(i))
	if !ok {
		return "", false
	}
	if rest == "" {
		return estover.DefaultTenant, true
	}
	name, ok := strings.CutPrefix(rest, TenantPath)
	if !ok || name == "" || strings.Contains(name, "/") || name == string(estover.DefaultTenant) {
		return "", false
	}
	return estover.TenantID(name), true
}

// Tokens is the token service. It is safe for use by many at once.
type Tokens struct {
	Config
	DetailTypes *DetailTypes // of authorization details

	guard    *guard.Guard
	grants   *guard.Cache[*Grant] // by id
	own      *guard.Cache[*Grant] // by session/client: the grant of the client's own credentials
	handed   handed               // the grants that were made of tokens
	families families
	now      atomic.Pointer[window] // in which refresh tokens are spent
	verified *verified
	replays  atomic.Int64
}

// New is the token service behind the door g.
func New(g *guard.Guard, c Config) *Tokens {
	if c.Known == nil {
		c.Known = func(_ context.Context, tenant estover.TenantID) error {
			if tenant != estover.DefaultTenant {
				return ErrNoTenant
			}
			return nil
		}
	}
	t := &Tokens{
		Config: c, DetailTypes: NewDetailTypes(g), guard: g, verified: newVerified(),
		grants: guard.NewCache(g, grantKind, loadGrant),
		own:    guard.NewCache(g, ownGrantKind, loadOwnGrant),
	}
	c.Keys.Record(t.recordOwn)
	g.OnTouch(func(_ estover.TenantID, kind, _ string) {
		if kind == keyKind {
			c.Keys.Changed()
		}
	})
	return t
}

// Now is the time by which tokens are issued and judged.
func (t *Tokens) Now() time.Time { return t.guard.DB().Now() }
