// Package ticket keeps the tokens of the Vault-compatible door, here called
// tickets, and the ways by which one gets one: AppRole, JWT and
// certificate for workloads, OpenID Connect for people.
//
//	live ──Revoke, end of its session──▶ ended
//	  ├─────(expires_at)───────────────▶ ended     never stored
//	  ├─────(its last use)─────────────▶ ended     never stored
//	  └─────(a parent has ended)───────▶ ended     its row follows
//
// A ticket is one narrow row and nothing beside: nothing is loaded at the start
// for it, no timer runs, and at its end nothing happens but that a sweep takes
// the row away. It is found by an HMAC of its value, and is good while it, and
// every ticket that it came of, is.
//
// # Whose it is
//
// A ticket says who acts and in which session; it is no authority of its own. A
// ticket of an agent lives in a session of that agent and ends with it, in the
// transaction that ends the session ([Tickets.EndOfSessions]); one of a person
// rests on the person's own token. Whoever came with a token of the token service
// has tickets that rest on that token's grant. Tokens that are confined to tasks,
// and those by which one acts for somebody else, buy no ticket: it could not say
// so. Nor do those that are bound to a key (RFC 9449); a ticket of one that is bound
// to a certificate is bound to it as well.
//
// The policies of a ticket are words to this package. What they let through is
// for the door to say, and narrows what the caller may do; they add nothing.
//
// # What stands in a value
//
// A value is found without anybody saying of which tenant it is: those of every
// tenant but the default one end in a dot and its name. It has one spelling.
//
// # Uses
//
// A ticket, a secret-id and a wrapped answer that are good so many times are
// taken by a compare-and-swap each time, before anything is done with them.
package ticket

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
	"estover.dev/internal/seal"
)

// How long tickets live.
const (
	DefaultLife = 15 * time.Minute // without a word of anybody
	LongestLife = 768 * time.Hour  // unless the mount says less: 2,764,800 seconds
)

// Bounds of what is kept.
const (
	MaxDepth  = 32      // tickets that came of tickets
	maxName   = 256     // bytes of a name
	maxList   = 256     // members of a list
	maxMeta   = 64      // members of a map
	maxValue  = 1024    // bytes of one of its values
	maxPolicy = 128     // bytes of a policy's name
	MaxSealed = 1 << 20 // bytes of a wrapped answer
)

// Root is the policy of tickets that nothing narrows: they are good for whatever
// their caller may do.
const Root = "root"

// Default is the policy that a ticket has unless it says otherwise.
const Default = "default"

// Errors about tickets.
var (
	// ErrTicket is returned for a value that opens nothing, whatever the reason.
	ErrTicket = &estover.Error{Kind: estover.Denied, Code: "ticket_invalid", Detail: "This token is wrong, has expired or was revoked. Log in again."}
	// ErrNotFound is returned when there is no such ticket.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "ticket_not_found", Detail: "There is no such token."}
	// ErrInvalid is returned for a ticket that cannot be made as it is wished for.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "ticket_wish_invalid", Detail: "There cannot be such a token."}
	// ErrPolicies is returned when a ticket would have a policy that what it comes of has not.
	ErrPolicies = &estover.Error{Kind: estover.Invalid, Code: "ticket_policies", Detail: "child policies must be subset of parent"}
	// ErrNotRenewable is returned when a ticket is renewed that ends when it ends.
	ErrNotRenewable = &estover.Error{Kind: estover.Invalid, Code: "ticket_not_renewable", Detail: "lease is not renewable"}
	// ErrConfined is returned to who has a token that no ticket could stand for.
	ErrConfined = &estover.Error{Kind: estover.Denied, Code: "ticket_confined", Detail: "A token that is confined to tasks, or by which one acts for somebody else, buys no other. Use it as it stands."}
	// ErrKeyBound is returned to who has a token that is bound to a key, as no ticket is.
	ErrKeyBound = &estover.Error{Kind: estover.Invalid, Code: "ticket_key_bound", Detail: "A token that is bound to a key buys none that is not. Use it as it stands, with a proof for each request."}
	// ErrRestricted is returned when a ticket that is good so many times is to have children.
	ErrRestricted = &estover.Error{Kind: estover.Invalid, Code: "ticket_restricted", Detail: "restricted use token cannot generate child tokens"}
	// ErrDeep is returned when tickets came of tickets too often.
	ErrDeep = &estover.Error{Kind: estover.Invalid, Code: "ticket_too_deep", Detail: "This token came of others 32 times already. Make one that is an orphan, or log in."}
)

// The kinds of tickets. A batch ticket is one that is not renewed and has no
// children; it is a row like any other.
const (
	Service = "service"
	Batch   = "batch"
)

// A Ticket is a token of the Vault-compatible door, without its value.
type Ticket struct {
	ID          string // its accessor: tkt_…
	Parent      string // the ticket that it ends with; "" for an orphan
	Subject     estover.Subject
	Session     string // in which it lives; "" for a person's
	Mount       string // the id of the way by which it was got
	Role        string
	Path        string // of the request that made it
	DisplayName string
	Kind        string
	Policies    []string // in order, without repetition
	Meta        map[string]string
	CreatedAt   time.Time
	RenewedAt   time.Time // zero for never
	ExpiresAt   time.Time
	Renewable   bool
	TTL         time.Duration // that it was made with, or last renewed for
	ExplicitMax time.Duration // 0 for none
	Period      time.Duration // 0 for none
	Uses        int64         // that it was made for; 0 for as many as one likes
	UsesLeft    int64         // -1 for as many as one likes
	CIDRs       []string      // from where it is good; empty for anywhere
	Certificate string        // x5t#S256 of the certificate along with which it is good; "" for none

	tenant estover.TenantID
	grant  string // on which it rests: of the token service, or a person's token
	rests  int64  // the epoch of that grant, or of the session
	most   time.Duration
	depth  int64
	ended  time.Time
	hash   []byte
}

// Orphan reports whether the ticket ends with no other.
func (t *Ticket) Orphan() bool { return t.Parent == "" }

// Tenant is whose ticket it is.
func (t *Ticket) Tenant() estover.TenantID { return t.tenant }

// live reports whether the ticket itself is good at a time.
func (t *Ticket) live(now time.Time) bool { return t.ended.IsZero() && now.Before(t.ExpiresAt) }

// A Session is the task of an agent in which a ticket lives.
type Session struct {
	ID      string
	Agent   string
	Purpose string
	Expires time.Time
	Epoch   int64
}

// Options are what tickets need of others.
type Options struct {
	Sealer *seal.Sealer

	// Tenant says why there is no such tenant, or why it may do nothing.
	Tenant func(ctx context.Context, tenant estover.TenantID) error

	// Session is a session as it is now, whether it is open or not, and Live an
	// error if it is not.
	Session func(ctx context.Context, tenant estover.TenantID, id string) (Session, error)
	// Ambient is the open session of an agent that logs in, for what workloads at
	// the door are there for. It is opened if there is none.
	Ambient func(ctx context.Context, caller estover.Caller, agent string) (Session, error)
	// Hold makes sure that a session is open, and that it stays so until the
	// transaction ends.
	Hold func(ctx context.Context, tx *guard.Tx, id string) error

	// Person is a person as the caller that their token makes of them, by the
	// token's id.
	Person func(ctx context.Context, tenant estover.TenantID, person, token string) (estover.Caller, time.Time, error)

	// Agent makes the agent that a role leads to, or finds the one that was named;
	// made says which.
	Agent func(ctx context.Context, caller estover.Caller, at Way, name, role string) (id string, made bool, err error)
	// Retire ends an agent that was made with a role.
	Retire func(ctx context.Context, caller estover.Caller, id string) error

	// Ended is told, in the transaction that ends tickets, which they were: what
	// belongs to them ends there.
	Ended func(ctx context.Context, tx *guard.Tx, tickets []string) error

	// Fetch gets the keys, or the description, of somebody who signs JWTs.
	Fetch func(ctx context.Context, tenant estover.TenantID, url, authorities string, private bool) ([]byte, error)

	// Redeem sends a request to a token endpoint, or a question that an access token
	// opens, and gives the answer, if it is a good one.
	Redeem func(ctx context.Context, tenant estover.TenantID, x Exchange) ([]byte, error)

	Logger *slog.Logger
}

// Tickets are the tickets of all tenants. It is safe for use by many at once.
type Tickets struct {
	Options
	guard *guard.Guard
	keys  keysets
}

// New keeps tickets behind the door g.
func New(g *guard.Guard, o Options) *Tickets {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Ended == nil {
		o.Ended = func(context.Context, *guard.Tx, []string) error { return nil }
	}
	t := &Tickets{Options: o, guard: g}
	t.keys.fetch, t.keys.now = o.Fetch, g.DB().Now
	return t
}

// Now is the time by which tickets live.
func (t *Tickets) Now() time.Time { return t.guard.DB().Now() }

// Table is the table to name in a [db.Epoch], by which an operation is refused
// whose ticket has ended in the meantime.
const Table = "ticket"

// Prefix begins the accessors of tickets, and so the token's id of a caller who
// came with one.
const Prefix = "tkt_"

// Holdings are where what is sealed lies, for [seal.Sealer.Hold]. Its class is one
// all of whose values lie in holdings, so that old keys can go.
var Holdings = []seal.Holding{
	{Class: seal.Lease, Table: "ticket_wrap", Sealed: "sealed", ID: "id", Created: "created_at"},
	{Class: seal.Lease, Table: "ticket_client", Sealed: "sealed", ID: "id", Created: "created_at"},
	{Class: seal.Lease, Table: "cubbyhole", Sealed: "sealed", ID: "id", Created: "created_at"},
}

// value makes a value of a kind for a tenant.
func value(kind opaque.Kind, tenant estover.TenantID) string {
	v := opaque.New(kind)
	if tenant != estover.DefaultTenant {
		v += "." + string(tenant)
	}
	return v
}

// split says of which tenant a value is. What is not a value of the kind, or
// not in its one spelling, is none.
func split(value string, kind opaque.Kind) (estover.TenantID, bool) {
	v, name, named := strings.Cut(value, ".")
	switch {
	case !opaque.Check(v, kind):
		return "", false
	case !named:
		return estover.DefaultTenant, true
	}
	tenant := estover.TenantID(name)
	return tenant, name != "" && tenant != estover.DefaultTenant && estover.ValidName(name)
}

// Is reports whether a value may be a ticket's.
func Is(value string) bool {
	_, ok := split(value, opaque.Ticket)
	return ok
}

// hash is what is stored of a value (K4).
func (t *Tickets) hash(tenant estover.TenantID, use, value string) []byte {
	return t.Sealer.MAC(tenant, use, []byte(value))
}

const (
	ticketUse = "ticket"
	wrapUse   = "wrapping token"
	secretUse = "secret-id"
)

// known makes sure that there is the tenant of a value, so that its keys can
// be asked for.
func (t *Tickets) known(ctx context.Context, tenant estover.TenantID) error {
	if err := t.Tenant(ctx, tenant); err != nil {
		return err
	}
	return t.Sealer.Prepare(ctx, tenant)
}

// From is where a request came from.
type From struct {
	Address     netip.Addr
	Certificate string // x5t#S256 of the client's certificate; "" for none
	Request     string
	Noted       string // what the events of the request tell beside
}

// Authenticate says who presents a ticket, and takes one of its uses if they are
// counted. Whatever is wrong, the error is [ErrTicket], unless it is ours. The
// caller's token is the ticket's accessor.
func (t *Tickets) Authenticate(ctx context.Context, value string, from From) (estover.Caller, *Ticket, error) {
	one, err := t.Find(ctx, value)
	if err != nil {
		return estover.Caller{}, nil, err
	}
	if !from.may(one) {
		return estover.Caller{}, nil, ErrTicket
	}
	caller, _, err := t.callerOf(ctx, one)
	if err != nil {
		return estover.Caller{}, nil, err
	}
	if one.Uses > 0 {
		err := t.guard.DB().Do(ctx, one.tenant, func(tx *db.Tx) error {
			left, err := use(ctx, tx, one.ID)
			one.UsesLeft = left
			return err
		})
		if err != nil {
			return estover.Caller{}, nil, err
		}
	}
	caller.Address, caller.Request, caller.Noted = from.Address, from.Request, from.Noted
	return caller, one, nil
}

// Find is the live ticket of a value, for whoever only looks at it: no use is
// taken. It is [ErrTicket] if there is none.
func (t *Tickets) Find(ctx context.Context, value string) (*Ticket, error) {
	tenant, ok := split(value, opaque.Ticket)
	if !ok {
		return nil, ErrTicket
	}
	switch err := t.known(ctx, tenant); estover.KindOf(err) {
	case estover.NotFound, estover.Denied:
		return nil, ErrTicket
	default:
		if err != nil {
			return nil, err
		}
	}
	hash := t.hash(tenant, ticketUse, value)
	var one *Ticket
	err := t.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		if one, err = findHash(ctx, tx, hash); err != nil {
			return err
		}
		return alive(ctx, tx, one)
	})
	if errors.Is(err, ErrNotFound) || err == nil && (!hmac.Equal(one.hash, hash) || one.UsesLeft == 0) {
		return nil, ErrTicket
	}
	return one, err
}

// may reports whether a ticket is good from there.
func (f From) may(t *Ticket) bool {
	return within(f.Address, t.CIDRs) && (t.Certificate == "" || f.Certificate == t.Certificate)
}

// within reports whether an address is in one of the networks; there may be
// none, and then it is.
func within(a netip.Addr, cidrs []string) bool {
	if len(cidrs) == 0 {
		return true
	}
	return slices.ContainsFunc(cidrs, func(c string) bool {
		p, err := prefix(c)
		return err == nil && p.Contains(a.Unmap())
	})
}

// callerOf is who a ticket stands for, and until when that can be at most.
func (t *Tickets) callerOf(ctx context.Context, one *Ticket) (estover.Caller, time.Time, error) {
	if one.Subject.Kind() == estover.UserKind {
		c, until, err := t.Person(ctx, one.tenant, one.Subject.ID(), one.grant)
		switch estover.KindOf(err) {
		case estover.Unknown, estover.NotFound, estover.Denied:
			return estover.Caller{}, until, ErrTicket
		}
		c.Token = one.ID
		return c, until, err
	}
	s, err := t.Session(ctx, one.tenant, one.Session)
	if err != nil {
		if estover.KindOf(err) == estover.NotFound || estover.KindOf(err) == estover.Conflict {
			err = ErrTicket
		}
		return estover.Caller{}, time.Time{}, err
	}
	return estover.Caller{
		Tenant: one.tenant, Subject: one.Subject, Client: one.Subject.ID(), Session: one.Session, Purpose: s.Purpose,
		Grant: one.grant, Epoch: one.rests, Token: one.ID, Strength: estover.BySecret,
	}, s.Expires, nil
}

// Alive makes sure, inside the transaction of an operation, that the ticket with
// which its caller came has not ended since. It keeps it so until the
// transaction ends.
func Alive(ctx context.Context, tx *db.Tx, caller estover.Caller) error {
	if !strings.HasPrefix(caller.Token, Prefix) {
		return nil
	}
	if err := tx.Alive(ctx, db.Epoch{Table: Table, ID: caller.Token, Epoch: 1}); err != nil {
		if errors.Is(err, db.ErrStale) {
			err = ErrTicket
		}
		return err
	}
	ok, err := chain(ctx, tx, caller.Token)
	if err == nil && !ok {
		err = ErrTicket
	}
	return err
}

// A Wish is a ticket that somebody wants.
type Wish struct {
	Mount       string // the id of the way by which it is got
	Role        string
	Path        string
	DisplayName string
	Kind        string   // "" for a service ticket
	Policies    []string // none for those of what it comes of
	Any         bool     // they need not be of those
	Alone       bool     // it comes of nothing: none are none
	NoDefault   bool
	Orphan      bool
	Meta        map[string]string
	Fixed       bool          // it is not renewable
	TTL         time.Duration // 0 for the usual one
	ExplicitMax time.Duration
	Most        time.Duration // 0 for [LongestLife]: what the mount and the role let it live
	Period      time.Duration
	Uses        int64
	CIDRs       []string
	Certificate string // x5t#S256 of the certificate to which it is bound
	Key         string // jkt to which what the caller came with is bound; then there is no ticket
}

// Made is a ticket as whoever asked for it gets it, once.
type Made struct {
	Ticket
	Value    estover.Secret
	Warnings []string
}

// Create makes a ticket for the caller, out of the one they came with; nil if
// they came with another kind of token.
func (t *Tickets) Create(ctx context.Context, caller estover.Caller, parent *Ticket, w Wish) (Made, error) {
	if caller.Tasks != nil || len(caller.Actors) > 0 {
		return Made{}, ErrConfined
	}
	if w.Key != "" {
		return Made{}, ErrKeyBound
	}
	made := Made{Ticket: Ticket{tenant: caller.Tenant, Subject: caller.Subject, Session: caller.Session, grant: caller.Grant, rests: caller.Epoch}}
	if parent != nil {
		switch {
		case parent.Uses > 0:
			return Made{}, ErrRestricted
		case parent.Kind == Batch:
			return Made{}, ErrInvalid.With("batch tokens cannot create more tokens")
		case parent.depth >= MaxDepth && !w.Orphan:
			return Made{}, ErrDeep
		}
		if !w.Orphan {
			made.Parent, made.depth = parent.ID, parent.depth+1
		}
		made.grant, made.rests = parent.grant, parent.rests
		// It is good where its parent is, and no further.
		w.Certificate = parent.Certificate
		switch {
		case len(w.CIDRs) == 0:
			w.CIDRs = parent.CIDRs
		case !subset(w.CIDRs, parent.CIDRs):
			return Made{}, ErrInvalid.With("the networks of a token lie within those of the one that it comes of")
		}
	}
	if err := made.have(parent, w); err != nil {
		return Made{}, err
	}
	_, until, err := t.callerOf(ctx, &made.Ticket)
	if err != nil {
		return Made{}, err
	}
	op := guard.Op{Action: "ticket.create", Target: string(caller.Subject), Detail: made.told()}
	return made, t.make(ctx, caller, op, &made, w, until, nil)
}

// have settles what a wished ticket is, but for its times.
func (m *Made) have(parent *Ticket, w Wish) error {
	m.ID = estover.NewID("tkt")
	m.Mount, m.Role, m.Path, m.DisplayName = w.Mount, w.Role, w.Path, w.DisplayName
	m.Meta, m.Uses, m.UsesLeft, m.Certificate = w.Meta, w.Uses, -1, w.Certificate
	m.ExplicitMax, m.Period = w.ExplicitMax, w.Period
	m.Renewable = !w.Fixed
	switch w.Kind {
	case "", Service, "default", "default-service":
		m.Kind = Service
	case Batch, "default-batch":
		m.Kind, m.Renewable = Batch, false
	default:
		return ErrInvalid.With("invalid 'token_type' value: %q is neither service nor batch", w.Kind)
	}
	if m.Kind == Batch && (w.Uses > 0 || w.Period > 0 || w.ExplicitMax > 0) {
		return ErrInvalid.With("batch tokens cannot be limited in uses, be periodic or have an explicit maximum")
	}
	if w.Uses > 0 {
		m.UsesLeft = w.Uses
	} else if w.Uses < 0 {
		return ErrInvalid.With("number of uses cannot be negative")
	}
	for _, d := range []time.Duration{w.TTL, w.ExplicitMax, w.Period, w.Most} {
		if d < 0 || d > 100*365*24*time.Hour {
			return ErrInvalid.With("a duration is between nothing and a hundred years")
		}
	}
	if m.Meta == nil {
		m.Meta = map[string]string{}
	}
	if len(m.Meta) > maxMeta {
		return ErrInvalid.With("metadata has at most %d entries", maxMeta)
	}
	for k, v := range m.Meta {
		if len(k) > maxName || len(v) > maxValue {
			return ErrInvalid.With("an entry of metadata has at most %d bytes in its name and %d in its value", maxName, maxValue)
		}
	}
	if len(m.DisplayName) > maxName || len(m.Path) > 4*maxName || len(m.Role) > maxName {
		return ErrInvalid.With("a name has at most %d bytes", maxName)
	}
	var err error
	if m.CIDRs, err = Networks(w.CIDRs); err != nil {
		return err
	}
	m.Policies, err = policies(parent, w)
	return err
}

// policies are what a wished ticket has.
func policies(parent *Ticket, w Wish) ([]string, error) {
	asked, err := Policies(w.Policies)
	if err != nil {
		return nil, err
	}
	have := []string{Root}
	if parent != nil {
		have = parent.Policies
	}
	if len(asked) == 0 && !w.Alone {
		asked = slices.Clone(have)
		if w.NoDefault {
			asked = slices.DeleteFunc(asked, func(p string) bool { return p == Default })
		}
	}
	if !slices.Contains(have, Root) {
		switch {
		case slices.Contains(asked, Root):
			return nil, ErrPolicies.With("root tokens may not be created without parent token being root")
		case !w.Any && slices.ContainsFunc(asked, func(p string) bool { return p != Default && !slices.Contains(have, p) }):
			return nil, ErrPolicies
		}
	}
	if !w.NoDefault && !slices.Contains(asked, Root) && !slices.Contains(asked, Default) {
		asked = append(asked, Default)
		slices.Sort(asked)
	}
	return asked, nil
}

// Policies are names of policies as they are kept: in small letters, in order,
// each once.
func Policies(list []string) ([]string, error) {
	if len(list) > maxList {
		return nil, ErrInvalid.With("a token has at most %d policies", maxList)
	}
	all := make([]string, 0, len(list))
	for _, p := range list {
		if p = strings.ToLower(strings.TrimSpace(p)); p == "" {
			continue
		}
		if len(p) > maxPolicy {
			return nil, ErrInvalid.With("the name of a policy has at most %d bytes", maxPolicy)
		}
		all = append(all, p)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Networks are networks as they are kept. A single address loses its length, as
// Vault writes it.
func Networks(list []string) ([]string, error) {
	if len(list) > maxList {
		return nil, ErrInvalid.With("there are at most %d networks", maxList)
	}
	all := make([]string, 0, len(list))
	for _, c := range list {
		if c = strings.TrimSpace(c); c == "" {
			continue
		}
		p, err := prefix(c)
		if err != nil {
			return nil, ErrInvalid.With("%q is no network: write it as 10.0.0.0/8, or as one address", c)
		}
		if p.IsSingleIP() {
			all = append(all, p.Addr().String())
		} else {
			all = append(all, c)
		}
	}
	return all, nil
}

func prefix(c string) (netip.Prefix, error) {
	if !strings.Contains(c, "/") {
		a, err := netip.ParseAddr(c)
		if err != nil {
			return netip.Prefix{}, err
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(c)
	return p, err
}

// told is what the event tells of a ticket that is made.
func (t *Ticket) told() map[string]any {
	return map[string]any{"policies": t.Policies, "path": t.Path, "role": t.Role, "parent": t.Parent, "meta": t.Meta}
}

// make settles the times of a ticket and writes it. And does more in the
// transaction, before; nil does not.
func (t *Tickets) make(ctx context.Context, caller estover.Caller, op guard.Op, m *Made, w Wish, until time.Time, and func(tx *guard.Tx) error) error {
	if err := t.Sealer.Prepare(ctx, m.tenant); err != nil {
		return err
	}
	v := value(opaque.Ticket, m.tenant)
	m.hash = t.hash(m.tenant, ticketUse, v)
	err := t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if and != nil {
			if err := and(tx); err != nil {
				return err
			}
		}
		if m.Session != "" {
			if err := t.Hold(ctx, tx, m.Session); err != nil {
				return err
			}
		}
		if m.Parent != "" {
			ok, err := hold(ctx, tx.Tx, m.Parent)
			if err != nil {
				return err
			}
			if !ok {
				return ErrTicket
			}
		}
		m.CreatedAt, m.Warnings = tx.Now(), nil
		m.times(w, until)
		tx.SetTarget("ticket:" + m.ID)
		tx.Note("expires_at", m.ExpiresAt)
		if m.Session != "" {
			tx.SetSession(m.Session)
		}
		return insert(ctx, tx.Tx, &m.Ticket)
	})
	if err != nil {
		return err
	}
	m.Value = estover.NewSecret([]byte(v))
	return nil
}

// times settles how long a ticket lives (V35, L7).
func (m *Made) times(w Wish, until time.Time) {
	m.most = w.Most
	if m.most == 0 || m.most > LongestLife {
		m.most = LongestLife
	}
	ttl := w.TTL
	switch {
	case w.Period > 0:
		if ttl = w.Period; ttl > m.most {
			m.Warnings = append(m.Warnings, "period is greater than the maximum of the mount, and is capped accordingly")
			ttl = m.most
		}
	case ttl == 0:
		ttl = min(DefaultLife, m.most)
	case ttl > m.most:
		m.Warnings = append(m.Warnings, "TTL of \""+ttl.String()+"\" exceeded the effective max_ttl of \""+m.most.String()+"\"; TTL value is capped accordingly")
		ttl = m.most
	}
	if m.ExplicitMax > 0 && ttl > m.ExplicitMax {
		ttl = m.ExplicitMax
	}
	m.TTL = ttl.Truncate(time.Second)
	m.ExpiresAt = m.CreatedAt.Add(m.TTL)
	if !until.IsZero() && m.ExpiresAt.After(until) {
		m.ExpiresAt = until
		m.TTL = until.Sub(m.CreatedAt).Truncate(time.Second)
		m.Warnings = append(m.Warnings, "the token ends with the session in which it lives, at "+until.UTC().Format(time.RFC3339)+"; TTL value is capped accordingly")
	}
}

// encode is a value as JSON in a column; there is none that has no JSON.
func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("ticket: a value without JSON: " + err.Error())
	}
	return string(b)
}
