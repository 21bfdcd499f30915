package token

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/detail"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
)

// Consented is the kind of a grant that a person gave a client: it rests on a
// session of its own, which was opened for it and ends with it.
const Consented = "authorization_code"

// The lives of what a browser carries (RFC 6749, section 4.1.2; RFC 9126,
// section 2.2).
const (
	CodeLife   = time.Minute
	PushedLife = 90 * time.Second
	askingTime = 10 * time.Minute // for a person to sign in and read, once a browser has come
)

// Errors of authorizations.
var (
	// ErrCode is returned for a code that buys nothing.
	ErrCode = &estover.Error{Kind: estover.Conflict, Code: "code_invalid", Detail: "The authorization code is not known, has expired or belongs to another request."}
	// ErrPresentedTwice is returned when a code or a refresh token comes a second
	// time. What it bought has ended, for one of the two was a thief.
	ErrPresentedTwice = &estover.Error{Kind: estover.Conflict, Code: "presented_twice", Detail: "This was presented before. What it bought has been revoked; let the person sign in again."}
	// ErrPushed is returned for a pushed request that is not there for the client.
	ErrPushed = &estover.Error{Kind: estover.Invalid, Code: "request_uri_invalid", Detail: "The pushed request is not known, has expired or was completed before. Start again."}
	// ErrFormUsed is returned for an answer that was given before.
	ErrFormUsed = &estover.Error{Kind: estover.Conflict, Code: "form_used", Detail: "This was answered before. Go back to the application and start again."}
)

// An Auth says how the person at the root of a grant proved who they are
// (RFC 9068, section 2.2.1). It is zero where no person stands.
type Auth struct {
	Time    int64    `json:"auth_time,omitempty"` // seconds since 1970
	Methods []string `json:"amr,omitempty"`       // RFC 8176
	Class   string   `json:"acr,omitempty"`
}

// An Authorization is what a person lets a client have.
type Authorization struct {
	Person     estover.Caller
	Auth       Auth
	Client     *Client
	Redirect   string // where the browser goes back to
	Registered string // the same as the client has registered it; the grant type where there is no browser
	Purpose    string
	Reach      Reach
	Details    detail.List // beyond scopes; nil for none
	Digest     string      // of what the client says of itself
	Challenge  string      // of PKCE, S256
	Key        string      // jkt that must be shown with the code; "" for none
	Nonce      string      // that stands in the ID token which the code buys; "" for none
	Asked      bool        // whether the person has just agreed, rather than before
	Form       Used        // the answer that says so, good once; zero if nobody was asked
	Pushed     string      // the value of the pushed request; "" for none
}

// A Reach is what a client would have: scopes by the identifier of a resource.
// What it would learn of the person stands there as scopes of OpenID Connect
// under our own identifier, the issuer.
type Reach map[string][]string

// Resources are the identifiers, in their order.
func (r Reach) Resources() []string {
	list := make([]string, 0, len(r))
	for name := range r {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// covers reports whether all of other lies within r.
func (r Reach) covers(other Reach) bool {
	for resource, scopes := range other {
		have, ok := r[resource]
		if !ok {
			return false
		}
		for _, s := range scopes {
			if !slices.Contains(have, s) {
				return false
			}
		}
	}
	return true
}

// scopes are all scopes, as a token has them.
func (r Reach) scopes() []string {
	all := []string{}
	for _, scopes := range r {
		all = append(all, scopes...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// at is what of these scopes lies within r at a resource. Without a reach that is
// all.
func (r Reach) at(resource string, scopes []string) []string {
	if r == nil {
		return scopes
	}
	return slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return !slices.Contains(r[resource], s) })
}

// stored is what is kept of it: nothing where there is none.
func (r Reach) stored() any {
	if r == nil {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		panic("token: a reach that cannot be JSON: " + err.Error())
	}
	return string(b)
}

// Reach is what a client may have of what it asks for, for a purpose: what
// [Tokens.Issue] would give it by itself.
func (t *Tokens) Reach(ctx context.Context, tenant estover.TenantID, c *Client, purpose string, resources, scopes []string, details detail.List) (Reach, detail.List, error) {
	targets, all, details, err := t.narrow(ctx, Request{
		Caller: estover.Caller{Tenant: tenant}, Client: c, Session: Session{Purpose: purpose}, Resources: resources, Scopes: scopes, Details: details,
	})
	if err != nil {
		return nil, nil, err
	}
	r := Reach{}
	for _, a := range targets {
		r[a.Audience] = within(all, a.Scopes)
	}
	return r, details, nil
}

// Authorize records what a person lets a client have, and makes a code that the
// client exchanges for it. Session, grant and code are made in one transaction
// with the consent that they rest on.
func (t *Tokens) Authorize(ctx context.Context, a Authorization) (string, error) {
	value := opaque.New(opaque.Code)
	err := t.authorize(ctx, a, Consented, func(tx *guard.Tx, g *Grant) error { return insertCode(ctx, tx.Tx, value, g.ID, a) })
	if err != nil {
		return "", err
	}
	return value, nil
}

// authorize makes session, consent and grant of a kind, and has keep store how
// the client comes by it, in one transaction.
func (t *Tokens) authorize(ctx context.Context, a Authorization, kind string, keep func(tx *guard.Tx, g *Grant) error) error {
	now := t.guard.DB().Now()
	person, client := a.Person.Subject, a.Client.Subject
	if err := t.principals(ctx, a.Person.Tenant, a.Client, person, []estover.Subject{client}, now); err != nil {
		return err
	}
	identity, reach := a.Reach.split(t.Issuer.Of(a.Person.Tenant))
	g := Grant{
		ID: estover.NewOrderedID("gnt"), Kind: kind, Client: a.Client.ID, Subject: person, Actors: []estover.Subject{client},
		Scopes: reach.scopes(), Resources: reach.Resources(), Details: a.Details, Identity: identity, Epoch: 1, Auth: a.Auth,
	}
	g.Root, g.Reach = g.ID, reach
	op := guard.Op{Action: "authorization.create", Target: string(person), Purpose: a.Purpose, Detail: map[string]any{
		"client": a.Client.ID, "reach": a.Reach, "grant_type": kind, "asked": a.Asked, "grant": g.ID,
	}}
	if a.Redirect != "" {
		op.Detail["redirect_uri"] = a.Registered
	}
	if len(a.Details) > 0 {
		op.Detail["authorization_details"] = a.Details
	}
	types, err := t.DetailTypes.Of(ctx, a.Person.Tenant)
	if err != nil {
		return err
	}
	consent := estover.NewID("cns")
	return t.guard.Do(ctx, a.Person, op, func(tx *guard.Tx) error {
		if a.Form.Name != "" {
			if err := spend(ctx, tx.Tx, a.Form); err != nil {
				return err
			}
		}
		if a.Pushed != "" {
			if err := consumePushed(ctx, tx.Tx, a.Pushed, a.Client.ID); err != nil {
				return err
			}
		}
		if err := a.consent(ctx, tx, types, consent); err != nil {
			return err
		}
		s, err := t.Sessions.Begin(ctx, tx, Session{Agent: a.Client.ID, Purpose: a.Purpose}, person)
		if err != nil {
			return err
		}
		g := g
		g.Session, g.Expires = s.ID, s.Expires
		if _, err := insertGrant(ctx, tx.Tx, &g); err != nil {
			return err
		}
		return keep(tx, &g)
	})
}

// Decline records that a person does not let a client have what it asks for. The
// answer that says so is good once, and with it the request, if it was pushed.
func (t *Tokens) Decline(ctx context.Context, a Authorization) error {
	op := guard.Op{Action: "authorization.deny", Target: string(a.Person.Subject), Detail: map[string]any{
		"client": a.Client.ID, "grant_type": Consented, "reach": a.Reach, "redirect_uri": a.Registered,
	}}
	if len(a.Details) > 0 {
		op.Detail["authorization_details"] = a.Details
	}
	return t.guard.Do(ctx, a.Person, op, func(tx *guard.Tx) error {
		if err := spend(ctx, tx.Tx, a.Form); err != nil || a.Pushed == "" {
			return err
		}
		return consumePushed(ctx, tx.Tx, a.Pushed, a.Client.ID)
	})
}

// A Code is an authorization code as it was made.
type Code struct {
	Grant     *Grant
	Client    string
	Redirect  string
	Challenge string
	Key       string // jkt; "" for none
	Nonce     string // "" for none
	Spent     bool

	hash [32]byte
}

// Code looks at a code, and does not use it up.
func (t *Tokens) Code(ctx context.Context, tenant estover.TenantID, value string) (*Code, error) {
	if !opaque.Check(value, opaque.Code) {
		return nil, ErrCode
	}
	c := &Code{hash: opaque.Hash(value)}
	err := t.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		grant, expires, err := findCode(ctx, tx, c)
		if err != nil {
			return err
		}
		if !c.Spent && !tx.Now().Before(expires) {
			return ErrCode
		}
		c.Grant, err = loadGrant(ctx, tx, grant)
		return err
	})
	return c, err
}

// Consume uses the code up, in the transaction that issues what it buys.
func (c *Code) Consume(ctx context.Context, tx *guard.Tx) error {
	return consumeCode(ctx, tx.Tx, c.hash)
}

// Push keeps an authorization request of an authenticated client until a
// browser comes with the value that is returned (RFC 9126). Nothing is decided
// by it.
func (t *Tokens) Push(ctx context.Context, tenant estover.TenantID, client, request string) (string, error) {
	value := opaque.New(opaque.Pushed)
	hash, now := opaque.Hash(value), t.guard.DB().Now()
	return value, t.guard.DB().Append(ctx, db.Append{Tenant: tenant, Rows: []db.Row{{Into: pushedTable, Values: []any{
		string(tenant), hash[:], client, request, now.UnixMicro(), now.Add(PushedLife).UnixMicro(),
	}}}})
}

// Pushed is a request that a client has pushed. It is used up when the
// authorization is completed, so that the page may be loaded again; the first
// time that a browser comes with it, the person gets time to sign in and read.
func (t *Tokens) Pushed(ctx context.Context, tenant estover.TenantID, client, value string) (request string, err error) {
	if !opaque.Check(value, opaque.Pushed) {
		return "", ErrPushed
	}
	err = t.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		request, err = openPushed(ctx, tx, value, client)
		return err
	})
	return request, err
}

// ended ends what was bought with something that has come a second time, and
// records it as the outcome of the request.
func (t *Tokens) ended(ctx context.Context, r Request, why error) error {
	g := r.Proof.Grant
	op, told := operation(r)
	told.Grant = g.ID
	err := t.guard.Act(ctx, r.caller(), op, refused(why), func(tx *guard.Tx) error {
		for _, u := range r.Use {
			if err := tx.Insert(ctx, u.row(r.Caller.Tenant)); err != nil {
				return err
			}
		}
		tx.SetSession(g.Session)
		if err := t.Sessions.EndWithin(ctx, tx, g.Session, "a code or refresh token was presented twice"); err != nil {
			return err
		}
		tx.Note("revoked", g.ID)
		tx.Fail(why)
		return nil
	})
	return t.replayed(ctx, r, err)
}

// SweepCodes ends the sessions that were opened by a person whose yes nobody
// came for, and forgets what is over, of all tenants.
func (t *Tokens) SweepCodes(ctx context.Context) error {
	var lapsed []lapsedCode
	err := t.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		lapsed, err = lapsedCodes(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	for _, one := range lapsed {
		const cause = "nobody came for what the person agreed to"
		caller := estover.Caller{Tenant: one.tenant, Subject: estover.System("oauth")}
		op := guard.Op{Action: "session.end", Target: "session:" + one.session, Session: one.session, Detail: map[string]any{"cause": cause}}
		if err := t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
			return t.Sessions.EndWithin(ctx, tx, one.session, cause)
		}); err != nil {
			return err
		}
	}
	return t.guard.DB().Do(ctx, "", func(tx *db.Tx) error { return forgetCodes(ctx, tx) })
}

// Phishproof is the acr of a sign-in that cannot be phished (OpenID Connect
// Extended Authentication Profile ACR values).
const Phishproof = "phr"

// methodsWord is the acr of what somebody proved, "" for none.
func methodsWord(methods []string) string {
	for _, m := range methods {
		if m == "hwk" || m == "swk" || m == "mfa" { // the last is what a provider vouches for to be as good
			return Phishproof
		}
	}
	return ""
}

// AuthOf is how a person who is signed in proved who they are.
func AuthOf(since time.Time, methods []string) Auth {
	return Auth{Time: since.Unix(), Methods: methods, Class: methodsWord(methods)}
}
