package token

import (
	"context"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/detail"
	"estover.dev/internal/guard"
)

// Own is the kind of the grant that a client gets by its own credentials:
// there is one for each session and client, and it has no bounds of its own.
const Own = "client_credentials"

// Exchange is the kind of a grant that came of somebody's token (RFC 8693). It
// hangs below that token's grant. A client that takes the token up again gets
// another token that rests on it ([handed]).
const Exchange = "urn:ietf:params:oauth:grant-type:token-exchange"

// Assertion is the kind of a grant that rests on the word of an issuer whom a
// trust names (RFC 7523).
const Assertion = "urn:ietf:params:oauth:grant-type:jwt-bearer"

// The kinds of rows whose copies go stale ([guard.Tx.Touch]).
const (
	grantKind    = "oauth_grant"
	ownGrantKind = "oauth_grant_own"
)

// ErrGrantEnded is returned when a grant has ended, or was never there.
var ErrGrantEnded = &estover.Error{Kind: estover.Conflict, Code: "grant_ended", Detail: "The grant has ended, and with it all tokens that came from it. Ask for another one."}

// A Grant is what tokens rest on: somebody's authority, for a session, in the
// hands of a client. Its copies are shared and never changed.
type Grant struct {
	ID      string
	Kind    string // the grant type that made it
	Parent  string // the grant that it was handed on from; "" for a root
	From    string // jti of the parent's token that was handed on; issuer and jti of a grant of somebody else
	Root    string
	Session string
	Client  string
	Subject estover.Subject
	Actors  []estover.Subject // the nearest first

	// Scopes and Resources are the most that a token may have; nil is whatever
	// the client may have when it asks.
	Scopes, Resources []string

	// Details are the most that a token may have beyond scopes; nil is none, or for
	// the client's own authority whatever it may have when it asks.
	Details detail.List

	// Reach is which of the scopes a person agreed to at which resource, and what is
	// handed on of that; nil where nobody was asked.
	Reach Reach

	// Identity is what the client learns of the person: scopes of OpenID Connect
	// ([OpenID] and more), nil for nothing.
	Identity []string

	Confirm Confirm
	Auth    Auth // of the person at the root; zero if none stands there
	Epoch   int64
	Created time.Time
	Expires time.Time
	Ended   time.Time // zero while it lives
	Cause   string    // why it ended

	denied []string // jti of its tokens that were revoked one by one, sorted
}

// live says why the grant carries no token at this time.
func (g *Grant) live(now time.Time) error {
	if !g.Ended.IsZero() || !now.Before(g.Expires) {
		return ErrGrantEnded
	}
	return nil
}

// A Confirm is the key that a token is bound to (RFC 7800): whoever presents
// the token must show that they have it. The zero value binds to nothing.
type Confirm struct {
	Certificate string `json:"x5t#S256,omitempty"` // RFC 8705, section 3.1
	Key         string `json:"jkt,omitempty"`      // RFC 9449, section 6.1
}

// Grant is a copy of a grant, whether or not it has ended.
func (t *Tokens) Grant(ctx context.Context, tenant estover.TenantID, id string) (*Grant, error) {
	return t.grants.Get(ctx, tenant, id)
}

// EndSessions ends every grant of these sessions with all that hangs below, in
// the transaction that ends the sessions themselves. Whoever makes a grant holds
// the session first ([Sessions.Hold]), or the grant of it that is handed on, so
// that none is made meanwhile that is not found here.
func EndSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	count := 0
	for _, s := range sessions {
		n, err := end(ctx, tx, "session ended", "session_id = $4", s)
		if err != nil {
			return 0, err
		}
		count += n
	}
	return count, nil
}

// ExtendSession has the grants of a session that were to end when it was, at
// from, end with it at until. What has an earlier end of its own keeps it.
func ExtendSession(ctx context.Context, tx *guard.Tx, session string, from, until time.Time) error {
	extended, err := extendGrants(ctx, tx.Tx, session, from, until)
	for _, g := range extended {
		g.touch(tx)
	}
	return err
}

// EndClient ends every grant of a client with all that hangs below: the agent
// is held, or leaves.
func EndClient(ctx context.Context, tx *guard.Tx, client, cause string) (int, error) {
	return end(ctx, tx, cause, "client_id = $4", client)
}

// endHandedOn ends the grants that were made of one token, with all that hangs
// below them. The grant of the token itself lives on, and is held.
func endHandedOn(ctx context.Context, tx *guard.Tx, grant, jti string) (int, error) {
	return end(ctx, tx, "the token that it came from was revoked", "parent_id = $4 and parent_jti = $5", grant, jti)
}

// EndGrant ends a grant with all that hangs below it. Ancestors and siblings
// live on. [ErrGrantEnded] if nothing was left to end.
func (t *Tokens) EndGrant(ctx context.Context, caller estover.Caller, id, cause string) error {
	return t.guard.Do(ctx, caller, guard.Op{Action: "token.revoke", Target: "oauth_grant:" + id}, func(tx *guard.Tx) error {
		g, err := loadGrant(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		tx.SetSession(g.Session)
		n, err := end(ctx, tx, cause, "id = $4", id)
		if err == nil && n == 0 {
			return ErrGrantEnded
		}
		tx.Note("cause", cause)
		return err
	})
}

// end marks the grants that fit a condition, and all below them, notes how many
// there were, and makes their copies stale.
func end(ctx context.Context, tx *guard.Tx, cause, where string, args ...any) (int, error) {
	count := 0
	// A child that was being made when the statement began is not in its
	// snapshot on PostgreSQL. Its maker held the parent, so that it is there to
	// be found the second time.
	for {
		ended, err := endTree(ctx, tx.Tx, cause, where, args...)
		if err != nil || len(ended) == 0 {
			return count, err
		}
		for _, g := range ended {
			tx.End(GrantTable, g.ID)
			g.touch(tx)
		}
		count += len(ended)
	}
}

// touch makes the copies of a grant stale.
func (g *Grant) touch(tx *guard.Tx) {
	tx.Touch(grantKind, g.ID)
	if g.Kind == Own {
		tx.Touch(ownGrantKind, ownKey(g.Session, g.Client))
	}
}

// ownKey names the one grant that a client has in a session by its own
// credentials.
func ownKey(session, client string) string { return session + "/" + client }

// GrantTable is where grants are kept, for the [db.Epoch] of what rests on one.
// Under this name the end of one is told of ([guard.Tx.End]).
const GrantTable = "oauth_grant"

// One is the kind under which the end of a single access token is told of, by its
// id, where its grant goes on.
const One = "access_token"

// Held keeps the access token of a caller from being revoked before the transaction
// ends, whose guard keeps its grant, and says that it was, if so.
func Held(ctx context.Context, tx *db.Tx, c estover.Caller) error {
	denied, err := isDenied(ctx, tx, c.Grant, c.Token)
	if err == nil && denied {
		err = ErrGrantEnded.With("The token was revoked. Ask for another one.")
	}
	return err
}

// epoch is the grant as the commit of a hot path checks it.
func (g *Grant) epoch() db.Epoch { return db.Epoch{Table: GrantTable, ID: g.ID, Epoch: g.Epoch} }

// within keeps of what is asked for what is allowed, in the order of the
// allowed, which is sorted. Nothing asked for is all of it.
func within(asked, allowed []string) []string {
	if asked == nil {
		return allowed
	}
	kept := make([]string, 0, len(asked))
	for _, a := range allowed {
		if slices.Contains(asked, a) {
			kept = append(kept, a)
		}
	}
	return kept
}
