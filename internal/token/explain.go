package token

import (
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
)

// ErrForeign is returned for a token that another issuer has made.
var ErrForeign = &estover.Error{Kind: estover.NotFound, Code: "token_foreign", Detail: "The token is not one of ours."}

// ErrNoToken is returned for what is no access token of ours, or none of the
// asker's business.
var ErrNoToken = &estover.Error{Kind: estover.NotFound, Code: "token_unknown", Detail: "This is no access token of this server, or none that you may know of."}

// An Explanation is what there is to say of an access token of ours to somebody
// who looks into it: all that [Tokens.Verify] keeps to itself.
type Explanation struct {
	Alive bool   `json:"alive"`
	Code  string `json:"code,omitempty"` // why it is not alive
	Why   string `json:"why,omitempty"`  // the same in a sentence

	ID       string            `json:"jti"`
	Subject  estover.Subject   `json:"sub"`
	Actors   []estover.Subject `json:"actors,omitempty"` // the nearest first
	Client   string            `json:"client_id"`
	Audience []string          `json:"aud"`
	Scopes   []string          `json:"scopes,omitempty"`
	Session  string            `json:"session"`
	Purpose  string            `json:"purpose"`
	Strength estover.Strength  `json:"strength"`
	Confirm  Confirm           `json:"cnf,omitzero"`
	Issued   time.Time         `json:"issued_at"`
	Expires  time.Time         `json:"expires_at"`
	Decision string            `json:"decision"` // the event of the decision to issue it

	// Grants are what it rests on, its own grant first and the root last.
	Grants []Link `json:"grants" nullable:"false"`
}

// A Link is one grant of those that a token rests on.
type Link struct {
	ID      string          `json:"id"`
	Kind    string          `json:"grant_type"`
	Client  string          `json:"client_id"`
	Subject estover.Subject `json:"sub"`
	Made    time.Time       `json:"created_at"`
	Expires time.Time       `json:"expires_at"`
	Ended   time.Time       `json:"ended_at,omitzero"`
	Cause   string          `json:"end_cause,omitempty"`
}

// Explain says what an access token of ours is, on what it rests, and why it is
// not alive if it is not. An agent, for whomever it acts, hears this of its own
// tokens alone; every other is [ErrNoToken] to it. A token that we did not make is
// [ErrNoToken] to everybody, or [ErrForeign] if it says itself that another issuer
// made it.
//
// Like every read, this is recorded only when it is refused.
func (t *Tokens) Explain(ctx context.Context, caller estover.Caller, raw string) (Explanation, error) {
	op := guard.Op{Action: "token.introspect", Target: string(caller.Subject), Effect: guard.Reads}
	if _, err := t.guard.Admit(ctx, caller, op); err != nil {
		return Explanation{}, err
	}
	tok, err := t.ours(ctx, raw)
	if err != nil {
		return Explanation{}, err
	}
	if tok.Tenant != caller.Tenant || caller.Acting().Kind() == estover.AgentKind && tok.Client != caller.Client {
		return Explanation{}, ErrNoToken
	}
	e := Explanation{
		ID: tok.ID, Subject: tok.Subject, Actors: tok.Actors, Client: tok.Client, Audience: tok.Audience, Scopes: tok.Scopes,
		Session: tok.Session, Purpose: tok.Purpose, Strength: tok.Strength, Confirm: tok.Confirm, Issued: tok.Issued, Expires: tok.Expires,
		Decision: tok.Transaction, Grants: []Link{},
	}
	for id := tok.Grant; id != ""; {
		g, err := t.grants.Get(ctx, tok.Tenant, id)
		if errors.Is(err, ErrGrantEnded) {
			break // there is none: a copy of the database from before it was made
		}
		if err != nil {
			return Explanation{}, err
		}
		e.Grants = append(e.Grants, Link{g.ID, g.Kind, g.Client, g.Subject, g.Created, g.Expires, g.Ended, g.Cause})
		id = g.Parent
	}
	err = t.dead(ctx, tok)
	if unanswered(err) {
		return Explanation{}, err
	}
	e.Alive = err == nil
	var known *estover.Error
	if errors.As(err, &known) {
		e.Code, e.Why = known.Code, known.Detail
	}
	return e, nil
}

// ours reads a token that we made, whether or not it has expired.
func (t *Tokens) ours(ctx context.Context, raw string) (*Token, error) {
	u, err := jose.Peek(raw)
	if err != nil {
		return nil, ErrNoToken.With("This is no token: it cannot be read.").Because(err)
	}
	tenant, ok := t.Issuer.Tenant(u.Issuer)
	if !ok {
		return nil, ErrForeign
	}
	if err := t.Known(ctx, tenant); unanswered(err) {
		return nil, err
	} else if err != nil {
		return nil, ErrForeign
	}
	c, _, err := t.verify(ctx, tenant, jose.AccessToken, raw, jose.Expected{Now: t.Now(), Issuer: u.Issuer, AnyAudience: true})
	switch {
	case unanswered(err):
		return nil, err
	case err != nil && !errors.Is(err, jose.ErrExpired):
		return nil, ErrNoToken.With("This is no access token of ours: it has another type, was changed, or its key was withdrawn.").Because(err)
	}
	tok, err := read(tenant, c)
	if err != nil {
		return nil, ErrNoToken.Because(err)
	}
	return tok, nil
}

// dead says why a token of ours is not alive, in the order in which one would
// ask: itself, what it rests on, who it speaks for.
func (t *Tokens) dead(ctx context.Context, tok *Token) error {
	now := t.Now()
	if !now.Before(tok.Expires) {
		return ErrInvalid.With("The token expired at %s.", tok.Expires.UTC().Format(time.RFC3339))
	}
	g, err := t.grants.Get(ctx, tok.Tenant, tok.Grant)
	if err != nil {
		return err
	}
	if _, denied := slices.BinarySearch(g.denied, tok.ID); denied {
		return ErrInvalid.With("The token was revoked.")
	}
	if _, err := t.Sessions.Live(ctx, tok.Tenant, tok.Session); err != nil {
		return err
	}
	switch {
	case !g.Ended.IsZero():
		return ErrGrantEnded.With("The grant that it rests on has ended: %s.", g.Cause)
	case !now.Before(g.Expires):
		return ErrGrantEnded.With("The grant that it rests on has come to the end of its time.")
	case g.Epoch != tok.Epoch, g.Session != tok.Session, g.Client != tok.Client:
		return ErrInvalid.With("The token is not of the grant that it names as it is now.")
	}
	c, err := t.Clients.Client(ctx, tok.Tenant, tok.Client)
	if err != nil {
		return err
	}
	return t.principals(ctx, tok.Tenant, c, tok.Subject, tok.Actors, now)
}
