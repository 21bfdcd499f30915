package token

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/detail"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
)

// ErrSpent is returned when what a request rests on may be presented once, and
// was presented before.
var ErrSpent = &estover.Error{Kind: estover.Conflict, Code: "invalid_grant", Detail: "What this request rests on was presented before, and is good once."}

// A Proof is what a grant type has shown: on whose authority a token is asked
// for, and how far that reaches.
type Proof struct {
	GrantType string
	Subject   estover.Subject
	Actors    []estover.Subject // the nearest first
	Grant     *Grant            // that is there already, for the token to rest on; nil if one is made
	Parent    *Grant            // what is handed on; nil for a root
	Handover  Handover          // how it was handed on; zero for a root
	Session   string            // that the token belongs to; "" for one of the client's own
	Begins    bool              // whether that is one that begins with the token, for the subject
	Auth      Auth              // of the person at a root that is made; zero if none stands there
	Foreign   Foreign           // whose word it rests on, if not ours
	Confirm   Confirm           // that what was proven with is bound to, and that the request shows; the token is bound to no less
	Strength  estover.Strength  // of what was proven with, if the token is worth no more; "" if it is
	Type      string            // as the answer names what is issued (RFC 8693, section 2.2.1)

	// Use is what was proven with and may be presented once, as the jti of an
	// assertion of somebody else.
	Use []Used

	// Consume uses up, by one statement in the transaction that issues, what
	// was proven with and is good once: a code, an approval. Its error is that
	// of the request. Nil for nothing.
	Consume func(ctx context.Context, tx *guard.Tx) error

	// Waiting is the request that a person has yet to decide, where a client asks
	// whether they have; nil for none.
	Waiting *Waiting

	// Renewal is the refresh token that goes out along with the token; nil for
	// none.
	Renewal *Renewal

	// Scopes and Resources are the most that was proven, nil for no limit, and
	// Expires the latest end of a token, zero for none.
	Scopes, Resources []string
	Expires           time.Time

	// Details are the most that was proven beyond scopes, nil for no limit but the
	// client's own.
	Details detail.List

	// Reach is how far that goes at each resource; nil for no limit of its own.
	Reach Reach

	// Identity is what the client may learn of the subject, as scopes of OpenID
	// Connect, nil for nothing, and Nonce what it wants to read in the ID token.
	Identity []string
	Nonce    string

	// Chain is the server of somebody else that an assertion is made for, in place
	// of an access token; nil for none.
	Chain *Chain
}

// A Handover is a token that is handed on to another agent, or back to its own
// to say less.
type Handover struct {
	Token string          // its jti
	From  estover.Subject // the client that it was issued to
	How   string          // it came to the one who presents it: [ByOwner], [ByAudience] or [ByEdge]

	// Presenter says that the client came by it along an edge, when somebody
	// else acts: then there has to be an edge to both.
	Presenter bool

	// IDToken says that it is one by which a person signed in to the client, which
	// has no jti.
	IDToken bool
}

// How a token that is handed on came to the client that presents it.
const (
	ByOwner    = "own"      // it was issued to the client
	ByAudience = "audience" // it is for a resource that the client serves
	ByEdge     = "edge"     // otherwise: policy must let the one hand it to the other
)

// Foreign is a token of somebody else that a request rests on.
type Foreign struct {
	Trust   string // which lets it count
	Issuer  string
	Subject string
	ID      string // jti; "" if it has none
}

// A Request is a token that an authenticated client asks for.
type Request struct {
	Caller     estover.Caller // the client itself
	Client     *Client
	Method     string // by which it authenticated
	Credential string // which of its credentials it used
	Proof      Proof
	Session    Session
	Scopes     []string    // asked for; nil for all that there are
	Resources  []string    // asked for, as identifiers; nil for the client's usual one
	Details    detail.List // asked for; nil for all that was proven
	Confirm    Confirm     // the key that was shown along with the request
	Use        []Used      // what the request presents once
}

// Issued is a token for the client.
type Issued struct {
	Token   string
	ID      string // jti
	Expires time.Time
	Life    time.Duration
	Scopes  []string
	Details detail.List
	Session string
	Grant   string
	Confirm Confirm // what it is bound to
	Refresh string  // the refresh token; "" for none
	IDToken string  // who the person is (OpenID Connect Core, section 2); "" for none
	Type    string  // as the answer names it, where the grant type has a name for it
}

// Errors of a client whose tokens are bound to a key, and that shows none.
var (
	ErrKeyNeeded         = &estover.Error{Kind: estover.Invalid, Code: "invalid_dpop_proof", Detail: "The client gets only tokens that are bound to a key. Send a DPoP proof along with the request."}
	ErrCertificateNeeded = &estover.Error{Kind: estover.Invalid, Code: "invalid_request", Detail: "The client gets only tokens that are bound to a certificate. Send the request on a connection with one."}
)

// confirmed says that the client must show a key, and did not.
func (r *Request) confirmed() error {
	switch {
	case r.Client.DPoPBound && r.Confirm.Key == "":
		return ErrKeyNeeded
	case r.Client.CertificateBound && r.Confirm.Certificate == "":
		return ErrCertificateNeeded
	}
	return nil
}

// Wanted is what policy sees of a token that is asked for, as the input of the
// operation token.issue: what it would be good for at one resource.
type Wanted struct {
	Audience string
	Scopes   []string
	handover Handover
	identity bool
	chain    bool
	details  detail.List
	tasks    bool
}

// Identifies reports whether the token would be for nothing but learning who
// the person at the root is. That rests on what the person agreed to, and on no
// grant of the agent's.
func (w Wanted) Identifies() bool { return w.identity || w.chain }

// Elsewhere is the issuer of the server that an assertion is for, and the scopes
// that are asked for there; "" for a token of ours.
func (w Wanted) Elsewhere() (issuer string, scopes []string) {
	if !w.chain {
		return "", nil
	}
	return w.Audience, w.Scopes
}

// Detailed are the authorization details that the token would have, and whether
// they confine it to tasks.
func (w Wanted) Detailed() (details []any, confined bool) {
	if w.details == nil {
		return nil, false
	}
	return w.details.Values(), w.tasks
}

// Handover is the agent whose token is handed on, and how it came to the one
// who presents it; "" if none is.
func (w Wanted) Handover() (from estover.Subject, how string) { return w.handover.From, w.handover.How }

// Issue makes a token. A refusal is recorded, and it consumes what the request
// presents once, as success does.
func (t *Tokens) Issue(ctx context.Context, r Request) (Issued, error) {
	now := t.guard.DB().Now()
	if err := t.principals(ctx, r.Caller.Tenant, r.Client, r.Proof.Subject, r.Proof.Actors, now); err != nil {
		return Issued{}, t.Refuse(ctx, r, err)
	}
	if err := r.confirmed(); err != nil {
		return Issued{}, t.Refuse(ctx, r, err)
	}
	targets, scopes, details, err := t.narrow(ctx, r)
	if err != nil {
		return Issued{}, t.Refuse(ctx, r, err)
	}
	expires := t.expiry(r, now)
	if !expires.After(now) {
		return Issued{}, t.Refuse(ctx, r, ErrGrantEnded)
	}
	op, told := operation(r)
	told.Scopes, told.Details = scopes, details
	decision, err := t.admit(ctx, r, &op, targets, scopes, details)
	if err != nil {
		return Issued{}, t.Refuse(ctx, r, err)
	}
	purpose := jose.AccessToken
	if r.Proof.Chain != nil {
		purpose = jose.IDJAG
	}
	for range maxRaces {
		key, err := t.Keys.Active(ctx, r.Caller.Tenant, purpose)
		if err != nil {
			return Issued{}, err
		}
		grant, exists, err := t.grantFor(ctx, r, now)
		if err != nil {
			return Issued{}, t.Refuse(ctx, r, err)
		}
		tok := Token{
			Tenant: r.Caller.Tenant, ID: estover.NewID("tok"), Subject: r.Proof.Subject, Actors: r.Proof.Actors, Client: r.Client.ID, URL: r.Client.URL,
			Audience: audiences(targets, t.Issuer.Of(r.Caller.Tenant)), Scopes: scopes, Session: r.Session.ID, Purpose: r.Session.Purpose,
			Grant: grant.ID, Epoch: grant.Epoch, Issued: now, Expires: expires, Transaction: decision.ID,
			Strength: r.caller().Strength, Confirm: r.Confirm, Auth: grant.Auth, Details: details,
		}
		claims := tok.claims(t.Issuer.Of(r.Caller.Tenant))
		if r.Proof.Chain != nil {
			claims = tok.assertion(t.Issuer.Of(r.Caller.Tenant), r.Proof.Chain, r.Resources)
		}
		signed, err := jose.Sign(purpose, key.Token, claims)
		if err != nil {
			return Issued{}, err
		}
		about, its, err := t.identify(ctx, r, grant, signed, now)
		if err != nil {
			return Issued{}, err
		}
		signers := append(make([]db.Epoch, 0, 3), key.Epoch()) // with room for the grant
		if its != nil {
			signers = append(signers, its.Epoch())
		}
		told.ID, told.Grant, told.Expires, told.Identified = tok.ID, grant.ID, expires, about != ""
		if n := r.Proof.Renewal; n != nil {
			if err := n.prepare(ctx, t, r.Caller.Tenant, grant, r.Confirm.Key, now); err != nil {
				return Issued{}, err
			}
		}
		if r.hot(exists) {
			err = t.record(ctx, r, op, decision, grant, exists, signers)
		} else {
			err = t.found(ctx, r, op, decision, grant, exists, signers)
		}
		if errors.Is(err, errRaced) || errors.Is(err, db.ErrStale) && t.replaced(ctx, r.Caller.Tenant, signers) {
			continue // another request has just made the grant, or the key was revoked
		}
		if exists && r.Proof.Parent != nil && errors.Is(err, db.ErrStale) {
			t.handed.forget(r.Caller.Tenant, grant)
			continue // it has ended: another one is made, unless what it was made of has
		}
		if err != nil {
			return Issued{}, t.Refuse(ctx, r, t.lost(ctx, r, err))
		}
		if r.Proof.Parent != nil && !exists {
			t.handed.keep(r.Caller.Tenant, grant, now)
		}
		refresh := ""
		if n := r.Proof.Renewal; n != nil {
			if refresh = n.next; n.step != nil || n.rows != nil {
				t.families.put(r.Caller.Tenant, n.made)
			}
		}
		return Issued{
			Token: signed, ID: tok.ID, Expires: expires, Life: time.Duration(expires.Unix()-now.Unix()) * time.Second,
			Scopes: scopes, Details: details, Session: r.Session.ID, Grant: grant.ID, Confirm: r.Confirm, Refresh: refresh, IDToken: about, Type: r.Proof.Type,
		}, nil
	}
	return Issued{}, ErrBusy
}

// maxRaces is how often a request tries again that lost the race for the first
// grant of its session and client. Whoever loses finds the winner's.
const maxRaces = 4

// errRaced says that the grant was made by somebody else in the meantime.
var errRaced = errors.New("the grant is there already")

// lost says why a commit came to nothing. What has become stale is asked for
// again: an answer that names the session is better than one that does not.
func (t *Tokens) lost(ctx context.Context, r Request, err error) error {
	if errors.Is(err, db.ErrStale) {
		if _, ended := t.Sessions.Live(ctx, r.Caller.Tenant, r.Session.ID); ended != nil {
			return ended
		}
		return ErrBusy.Because(err)
	}
	return t.replayed(ctx, r, err)
}

// ErrBusy is returned when what a token would rest on is changing just then.
var ErrBusy = &estover.Error{Kind: estover.Unavailable, Code: "grant_changing", Detail: "The grant is changing at this moment. Try again."}

// replayed says what a key that is taken means: of the rows of a request only
// those of what it presents once can be there already, since the ids of all
// others are random.
func (t *Tokens) replayed(ctx context.Context, r Request, err error) error {
	once := r.once()
	if len(once) == 0 || !db.Taken(err) {
		return err
	}
	if len(once) > 1 { // an assertion and a proof, for example: which of them
		if which := t.IsUsed(ctx, r.Caller.Tenant, once); which != nil {
			return which
		}
	}
	return once[0].again().Because(err)
}

// once is all that the request presents once.
func (r *Request) once() []Used {
	all := make([]Used, 0, len(r.Use)+len(r.Proof.Use))
	for _, u := range r.Proof.Use {
		if u.Again == nil {
			u.Again = ErrSpent
		}
		all = append(all, u)
	}
	return append(all, r.Use...)
}

// caller is who asks, as policy and the record see it: the client, and where it
// acts for somebody, for whom and by way of whom.
func (r *Request) caller() estover.Caller {
	c := r.Caller
	if len(r.Proof.Actors) > 0 {
		c.Subject, c.Actors = r.Proof.Subject, r.Proof.Actors
	}
	c.Strength = Weakest(c.Strength, r.Proof.Strength)
	return c
}

// Weakest is the weaker of two ways of proving who one is, of which "" sets no limit.
func Weakest(a, b estover.Strength) estover.Strength {
	switch {
	case a == "":
		return b
	case b == "":
		return a
	}
	strengths := [...]estover.Strength{estover.BySecret, estover.ByKey, estover.ByBound}
	if slices.Index(strengths[:], b) < slices.Index(strengths[:], a) {
		return b
	}
	return a
}

// principals says why one of those whom a token would speak for may not act:
// client, subject and actors, in every flow.
func (t *Tokens) principals(ctx context.Context, tenant estover.TenantID, c *Client, subject estover.Subject, actors []estover.Subject, now time.Time) error {
	if err := c.Alive(ctx, now); err != nil {
		return err
	}
	if err := t.subject(ctx, tenant, c, subject, now); err != nil {
		return err
	}
	for _, a := range actors {
		if err := t.subject(ctx, tenant, c, a, now); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tokens) subject(ctx context.Context, tenant estover.TenantID, c *Client, s estover.Subject, now time.Time) error {
	switch {
	case s == c.Subject:
		return nil // the client, which was asked already
	case s.Kind() == estover.AgentKind:
		agent, err := t.Clients.Client(ctx, tenant, s.ID())
		if err != nil {
			return err
		}
		return agent.Alive(ctx, now)
	case s.Kind() == estover.UserKind && t.People != nil:
		return t.People(ctx, tenant, s.ID())
	}
	return ErrNoClient.With("The subject %s cannot act.", s)
}

// expiry is when the token ends: at the latest with its session, with what was
// proven and with the parent. It is a whole second, since a token says no more.
func (t *Tokens) expiry(r Request, now time.Time) time.Time {
	life := DefaultLife
	if r.Client.Life > 0 {
		life = min(r.Client.Life, LongestLife)
	}
	if r.Proof.Chain != nil {
		life = ChainLife
	}
	return sooner(now.Add(life), r.bound()).Truncate(time.Second)
}

// bound is the end of everything that the request may buy.
func (r *Request) bound() time.Time {
	end := sooner(r.Session.Expires, r.Proof.Expires)
	if r.Proof.Parent != nil {
		end = sooner(end, r.Proof.Parent.Expires)
	}
	return end
}

// sooner is the earlier of two times, of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// admit asks policy about every resource that the token would be for. The
// first decision is the one that is recorded with the token; the others stand
// in its detail.
func (t *Tokens) admit(ctx context.Context, r Request, op *guard.Op, targets []Allowed, scopes []string, details detail.List) (guard.Decision, error) {
	tasks := details.Tasks() != nil
	if len(targets) == 0 {
		op.Input = Wanted{Audience: t.Issuer.Of(r.Caller.Tenant), Scopes: scopes, handover: r.Proof.Handover, details: details, tasks: tasks}
		first, others, err := t.admitOne(ctx, r, *op)
		if others != nil {
			op.Detail["decisions"] = others
		}
		return first, err
	}
	var first guard.Decision
	var others []guard.Decision
	for i, a := range targets {
		one := *op
		one.Resource, one.Input = a.Resource, Wanted{
			a.Audience, a.Scopes, r.Proof.Handover, a.Audience == t.Issuer.Of(r.Caller.Tenant), r.Proof.Chain != nil, details, tasks,
		}
		d, more, err := t.admitOne(ctx, r, one)
		if err != nil {
			return d, err
		}
		if i == 0 {
			*op, first = one, d
		} else {
			others = append(others, d)
		}
		others = append(others, more...)
	}
	if others != nil {
		op.Detail["decisions"] = others
	}
	return first, nil
}

// kept obligations are those that issuing a token fulfils anyway: the event is
// on record before the token is, and whoever follows the log reads in it what
// else is to be done.
var keptObligations = []string{"evidence", "notification"}

// errObligation refuses a token that policy ties to something that cannot be
// done with one.
var errObligation = &estover.Error{Kind: estover.Denied, Code: "obligation_unmet", Detail: "The policy allows the token under a condition that cannot be met here."}

// admitOne asks about one resource: for who acts, and where the token came along
// an edge to a client as which somebody else acts, for the client, too.
func (t *Tokens) admitOne(ctx context.Context, r Request, op guard.Op) (first guard.Decision, others []guard.Decision, err error) {
	caller := r.caller()
	if first, err = t.admitAs(ctx, caller, op); err != nil || !r.Proof.Handover.Presenter {
		return first, nil, err
	}
	caller.Actors = append([]estover.Subject{r.Client.Subject}, caller.Actors[1:]...)
	second, err := t.admitAs(ctx, caller, op)
	return first, []guard.Decision{second}, err
}

func (t *Tokens) admitAs(ctx context.Context, caller estover.Caller, op guard.Op) (guard.Decision, error) {
	d, err := t.guard.Admit(ctx, caller, op)
	if err != nil {
		return d, err
	}
	for _, o := range d.Obligations {
		if !slices.Contains(keptObligations, o.Type) {
			return d, errObligation
		}
	}
	return d, nil
}

// grantFor is the grant that the token will rest on, and whether it is there
// already.
func (t *Tokens) grantFor(ctx context.Context, r Request, now time.Time) (*Grant, bool, error) {
	if g := r.Proof.Grant; g != nil {
		return g, true, g.live(now)
	}
	if r.Proof.GrantType == Own {
		g, err := t.own.Get(ctx, r.Caller.Tenant, ownKey(r.Session.ID, r.Client.ID))
		if err == nil {
			return g, true, g.live(now)
		}
		if !errors.Is(err, ErrGrantEnded) {
			return nil, false, err
		}
	}
	wanted := Grant{
		Kind: r.Proof.GrantType, Session: r.Session.ID, Client: r.Client.ID, Subject: r.Proof.Subject,
		Actors: r.Proof.Actors, Scopes: r.Proof.Scopes, Resources: r.Proof.Resources, Details: r.Proof.Details, Confirm: r.Confirm,
		Epoch: 1, Expires: r.bound(), Auth: r.Proof.Auth,
	}
	if r.Proof.Begins { // with a token of somebody else, which is what it comes from
		wanted.From = r.Proof.Foreign.Issuer + " " + r.Proof.Foreign.ID
	}
	if p := r.Proof.Parent; p != nil {
		wanted.Parent, wanted.Root, wanted.From, wanted.Auth = p.ID, p.Root, r.Proof.Handover.Token, p.Auth
		wanted.Reach = p.Reach
		if made, err := t.handedOn(ctx, r.Caller.Tenant, &wanted, now); made != nil || err != nil {
			return made, true, err
		}
	}
	g := new(Grant) // the other is on no heap: most exchanges make none
	*g = wanted
	g.ID = estover.NewOrderedID("gnt")
	if g.Root == "" {
		g.Root = g.ID
	}
	return g, false, nil
}

// hot reports whether the token can be committed by an append: it rests on a
// grant that is there, whether or not a refresh token is spent for the next one,
// or on one that is handed on within its session. The commit then looks at the
// grant and not at the person for whom a client acts: one who was disabled on
// another node a moment ago may have a refresh token spent, for a token that
// counts nowhere, since whoever asks about it asks about the person too.
func (r *Request) hot(exists bool) bool {
	p := &r.Proof
	switch {
	case p.Consume != nil:
		return false
	case exists:
		return p.Renewal == nil || p.Renewal.presented != nil
	}
	return p.Renewal == nil && p.Parent != nil && p.Parent.Session == r.Session.ID
}

// record commits a token with rows alone, and at most one step: a refresh token
// is spent, or a grant is made of another. If what the step rests on has changed
// meanwhile, found sees what became of it.
func (t *Tokens) record(ctx context.Context, r Request, op guard.Op, d guard.Decision, g *Grant, exists bool, signers []db.Epoch) error {
	now := t.guard.DB().Now()
	hot, told, held := guard.Hot{Rows: r.rows()}, op, g
	switch {
	case !exists:
		step, err := handOn(g, now)
		if err != nil {
			return err
		}
		hot.Step, held = step, r.Proof.Parent
	case r.Proof.Renewal != nil:
		n := r.Proof.Renewal
		hot.Step, hot.Rows = n.step, append(hot.Rows, n.rows...)
		told.Members = n.member()
	}
	if hot.Live = signers; r.Proof.Renewal == nil || hot.Step == nil { // else the step looks at the grant
		hot.Live = append(hot.Live, held.epoch())
	}
	err := t.guard.Record(ctx, r.caller(), told, d, hot)
	if hot.Step == nil || !errors.Is(err, db.ErrStale) {
		return err
	}
	if n := r.Proof.Renewal; n != nil {
		if err := t.spentMeanwhile(ctx, r); err != nil {
			return err
		}
		if n.presented.spent { // for a successor that this client may have, too
			return errRaced
		}
	}
	return t.found(ctx, r, op, d, g, exists, signers)
}

// found commits a token along with more than rows: the grant that it is the
// first to rest on, and what was proven with. The session, the grant that is
// there and the parent are held, so that they cannot end between the look at
// them and the commit.
func (t *Tokens) found(ctx context.Context, r Request, op guard.Op, d guard.Decision, g *Grant, exists bool, signers []db.Epoch) error {
	return t.guard.Act(ctx, r.caller(), op, d, func(tx *guard.Tx) error {
		for _, key := range signers {
			if err := tx.Alive(ctx, key); err != nil {
				return err
			}
		}
		if r.Proof.Begins {
			if _, err := t.Sessions.Begin(ctx, tx, r.Session, r.Proof.Subject); err != nil {
				return err
			}
		} else if err := t.Sessions.Hold(ctx, tx, r.Session.ID); err != nil {
			return err
		}
		held := r.Proof.Parent
		if exists {
			held = g
		}
		if held != nil {
			if err := holdGrant(ctx, tx.Tx, held.ID, held.Epoch); err != nil {
				return err
			}
		}
		if jti := r.Proof.Handover.Token; jti != "" {
			if revoked, err := isDenied(ctx, tx.Tx, held.ID, jti); err != nil {
				return err
			} else if revoked {
				return ErrGrantEnded.With("The token that is handed on was revoked.")
			}
		}
		for _, row := range r.rows() {
			if err := tx.Insert(ctx, row); err != nil {
				return err
			}
		}
		if r.Proof.Consume != nil {
			if err := r.Proof.Consume(ctx, tx); err != nil {
				return err
			}
		}
		if !exists {
			made, err := insertGrant(ctx, tx.Tx, g)
			if err == nil && !made {
				err = errRaced
			}
			if err != nil {
				return err
			}
		}
		if r.Proof.Renewal == nil {
			return nil
		}
		return r.Proof.Renewal.write(ctx, tx)
	})
}

// rows consume what the request presents once.
func (r *Request) rows() []db.Row {
	if len(r.Use) == 0 && len(r.Proof.Use) == 0 {
		return nil
	}
	rows := make([]db.Row, 0, len(r.Use)+len(r.Proof.Use))
	for _, u := range r.Use {
		rows = append(rows, u.row(r.Caller.Tenant))
	}
	for _, u := range r.Proof.Use {
		rows = append(rows, u.row(r.Caller.Tenant))
	}
	return rows
}

// scopeString is a list of scopes as OAuth writes it.
func scopeString(scopes []string) string { return strings.Join(scopes, " ") }
