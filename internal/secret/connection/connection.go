// Package connection keeps OAuth connections to upstreams: what this server holds
// as the client of somebody else's authorization server, so that agents may work
// there with a token that they never see.
//
//	                 a person authorizes                  the provider refuses to renew
//	reauthorize ───────────────────────▶ healthy ───────────────────────▶ reauthorize
//	                                     │  ▲ renewed, again and again
//	   the provider refuses this client  ▼  │ tried again, by hand or after a change
//	                                  misconfigured
//
// A connection is of one of two kinds. With the grant authorization_code a person
// agrees in a browser, with PKCE, and the connection lives as long as the provider
// renews it. With client_credentials nobody is asked.
//
// # Renewal
//
// Tokens are renewed here, before they run out, and never by an agent. One does so
// at a time, on all nodes together: whoever does has the row for a while (claimed_by,
// claimed_until, fence), and what comes of it is stored only under that fence and
// for the generation that it came from. A refresh token that the provider replaces
// with each use is therefore used once. If the one who used it dies before the
// answer is stored, the next uses it once more, which providers allow for a while;
// if this one does not, the connection has to be authorized again, and says why.
//
// # What is believed of a provider
//
// Nothing but what is checked: answers have a bound, redirects are not followed, an
// error is kept by its code alone, since what else it says may quote what was sent,
// and a token is used only if it is a plain bearer token.
//
// Tokens are sealed together with a digest of what was said of the connection, so
// that a destination cannot be added in the database.
package connection

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
)

// The errors of connections.
var (
	ErrNotFound    = &estover.Error{Kind: estover.NotFound, Code: "connection_not_found", Detail: "There is no such connection. `estover connection list` shows which there are."}
	ErrInvalid     = &estover.Error{Kind: estover.Invalid, Code: "connection_invalid", Detail: "This cannot be said of a connection."}
	ErrDestination = &estover.Error{Kind: estover.Denied, Code: "connection_destination", Detail: "The connection's token may not be sent there."}
	// ErrReauthorize is the answer to whoever needs a token that only a person can get.
	ErrReauthorize = &estover.Error{Kind: estover.Unavailable, Code: "connection_reauthorize", Detail: "The connection has to be authorized by a person."}
	// ErrMisconfigured is the answer where the provider does not take us for its client.
	ErrMisconfigured = &estover.Error{Kind: estover.Unavailable, Code: "connection_misconfigured", Detail: "The connection is not set up as its provider wants it."}
	// ErrProvider is the answer while the provider cannot be asked.
	ErrProvider = &estover.Error{Kind: estover.Unavailable, Code: "connection_provider", Detail: "The provider of the connection cannot be asked for a token at this moment. Try again."}
	// ErrVisit is returned for an authorization that was not begun here, or too long ago.
	ErrVisit    = &estover.Error{Kind: estover.Denied, Code: "connection_visit", Detail: "This authorization was not begun by you, was begun too long ago, or has been used. Begin again from the page of the connection."}
	ErrTampered = &estover.Error{Kind: estover.Fault, Code: "connection_tampered", Detail: "The connection in the database is not as it was written, so it is not used. Restore it from a backup and find out who changed it."}
)

// A State is how a connection is.
type State string

// The states of a connection.
const (
	Healthy       State = "healthy"
	Reauthorize   State = "reauthorize"
	Misconfigured State = "misconfigured"
)

// The grants by which a connection gets its tokens.
const (
	AuthorizationCode = "authorization_code"
	ClientCredentials = "client_credentials"
)

// How this server proves itself to a token endpoint.
const (
	ByBasic = "basic"
	ByPost  = "post"
	ByNone  = "none"
)

// A Spec is what an administrator decides about a connection.
type Spec struct {
	Name         string            `json:"name" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"What the connection is called. It is part of the address to register at the provider: ISSUER/connections/NAME/back."`
	Description  string            `json:"description,omitempty" maxLength:"500" doc:"What it is for."`
	Grant        string            `json:"grant,omitempty" enum:"authorization_code,client_credentials" default:"authorization_code" doc:"Whether a person authorizes it, or the client acts for itself."`
	Issuer       string            `json:"issuer,omitempty" maxLength:"2048" doc:"The provider's issuer, from which its endpoints are found."`
	Authorize    string            `json:"authorization_endpoint,omitempty" maxLength:"2048" doc:"Where people authorize, for a provider that does not say so itself."`
	Token        string            `json:"token_endpoint,omitempty" maxLength:"2048" doc:"Where tokens are given out, likewise."`
	Revoke       string            `json:"revocation_endpoint,omitempty" maxLength:"2048" doc:"Where tokens are ended, likewise."`
	ClientID     string            `json:"client_id" minLength:"1" maxLength:"255" doc:"What the provider knows this server as."`
	Secret       string            `json:"secret,omitempty" maxLength:"200" doc:"The path of the secret that holds the client secret. Its destination is the host of the token endpoint. None: a client that has no secret."`
	ClientAuth   string            `json:"client_auth,omitempty" enum:"basic,post,none" doc:"How the client secret is shown: by HTTP Basic, by itself, or in the form."`
	Scopes       []string          `json:"scopes,omitempty" doc:"What is asked for."`
	Resource     string            `json:"resource,omitempty" maxLength:"2048" doc:"The resource for which a token is asked (RFC 8707)."`
	Parameters   map[string]string `json:"parameters,omitempty" doc:"What else the provider wants to hear when a person authorizes, as access_type: offline."`
	Destinations []string          `json:"destinations" minItems:"1" nullable:"false" doc:"The hosts, with a port if it is not 443, to which the access token may be sent, and nowhere else."`
	Class        estover.Class     `json:"class,omitempty" enum:"public,internal,confidential,restricted" default:"confidential" doc:"The class of the data that it opens."`
	CA           string            `json:"ca,omitempty" doc:"The roots, in PEM, by which the provider's certificate is checked; the system's if there are none."`
	AllowPrivate bool              `json:"allow_private,omitempty" doc:"Whether the provider may be on a private network, and its URLs http://."`
}

// A Connection is what there is to know of a connection without its tokens.
type Connection struct {
	ID string `json:"id"` // con_…
	Spec
	State      State           `json:"state" enum:"healthy,reauthorize,misconfigured"`
	Reason     string          `json:"reason,omitempty"` // why it is not healthy, or what goes wrong at the moment
	Generation int64           `json:"generation"`       // of its tokens
	Granted    []string        `json:"granted_scopes,omitempty"`
	Account    estover.Subject `json:"authorized_by,omitempty"`
	ExpiresAt  time.Time       `json:"expires_at,omitzero"` // of the access token
	Renewable  bool            `json:"renewable"`           // without a person
	RenewedAt  time.Time       `json:"renewed_at,omitzero"`
	CreatedAt  time.Time       `json:"created_at"`
	ChangedAt  time.Time       `json:"changed_at"`

	epoch        int64
	fence        int64
	claimedBy    string
	claimedUntil time.Time
	failures     int64
	sealed       []byte
}

// Options are what connections need of others.
type Options struct {
	// Send sends a request to the provider of a connection and reads an answer of at
	// most limit bytes. It follows no redirect.
	Send func(ctx context.Context, tenant estover.TenantID, s Spec, r *http.Request, limit int64) (Answer, error)
	// Secret is the client secret at a path, for a host.
	Secret func(ctx context.Context, tenant estover.TenantID, path, host string) (estover.Secret, error)
	// Back is where a provider sends people back to.
	Back func(tenant estover.TenantID, name string) string

	Node   string // the name of this node, in claims
	Logger *slog.Logger
}

// An Answer is what a provider answers.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Connections are the connections of all tenants. It is safe for use by many at
// once.
type Connections struct {
	Options
	guard  *guard.Guard
	sealer *seal.Sealer
	copies *guard.Cache[*Connection] // by name

	mu     sync.Mutex
	flying map[flight]*flown // renewals that this node waits for
}

// Holdings are where tokens lie, for [seal.Sealer.Hold].
var Holdings = []seal.Holding{
	{Class: seal.KV, Table: "connection", Sealed: "sealed", ID: "id", Version: "generation"},
	{Class: seal.KV, Table: "connection_revocation", Sealed: "sealed", ID: "id"},
}

// copyKind is the kind of the copies of connections, by name.
const copyKind = "connection"

// New keeps connections behind the door g.
func New(g *guard.Guard, s *seal.Sealer, o Options) *Connections {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	x := &Connections{Options: o, guard: g, sealer: s, flying: map[flight]*flown{}}
	x.copies = guard.NewCache(g, copyKind, func(ctx context.Context, tx *db.Tx, name string) (*Connection, error) {
		c, err := findName(ctx, tx, name, "")
		return &c, err
	})
	return x
}

// Bounds of a specification.
const (
	maxScopes       = 100
	maxParameters   = 20
	maxDestinations = 100
)

// reserved are the parameters of an authorization that are ours to set.
var reserved = []string{
	"client_id", "client_secret", "code_challenge", "code_challenge_method", "redirect_uri", "request", "request_uri", "resource",
	"response_mode", "response_type", "scope", "state",
}

// Check gives the spec in the one form in which it is kept, or everything that is
// wrong with it.
func Check(s Spec) (Spec, error) {
	var bad []error
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrInvalid.With(format, args...).At(field)) }
	if !estover.ValidName(s.Name) {
		wrong("name", "The name has up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name)
	}
	if s.Grant == "" {
		s.Grant = AuthorizationCode
	}
	if s.Grant != AuthorizationCode && s.Grant != ClientCredentials {
		wrong("grant", "The grant is authorization_code or client_credentials, not %q.", s.Grant)
	}
	if s.Class == "" {
		s.Class = estover.Confidential
	}
	if s.Class.Rank() < 0 {
		wrong("class", "The class is public, internal, confidential or restricted, not %q.", s.Class)
	}
	for field, text := range map[string]string{"issuer": s.Issuer, "authorization_endpoint": s.Authorize, "token_endpoint": s.Token, "revocation_endpoint": s.Revoke} {
		if text != "" {
			if err := checkURL(text, s.AllowPrivate); err != nil {
				wrong(field, "%s", err)
			}
		}
	}
	if s.Issuer == "" && (s.Token == "" || s.Grant == AuthorizationCode && s.Authorize == "") {
		wrong("issuer", "Name the provider's issuer, or its endpoints.")
	}
	if s.ClientID == "" || len(s.ClientID) > 255 || strings.ContainsFunc(s.ClientID, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		wrong("client_id", "The provider knows this server by a client_id of up to 255 characters.")
	}
	if s.ClientAuth == "" {
		if s.ClientAuth = ByBasic; s.Secret == "" {
			s.ClientAuth = ByNone
		}
	}
	switch {
	case s.ClientAuth != ByBasic && s.ClientAuth != ByPost && s.ClientAuth != ByNone:
		wrong("client_auth", "The client secret is shown by basic or post, or there is none; not by %q.", s.ClientAuth)
	case (s.ClientAuth == ByNone) != (s.Secret == ""):
		wrong("secret", "A client secret belongs to basic and post, and to nothing else.")
	case s.Grant == ClientCredentials && s.Secret == "":
		wrong("secret", "A client that acts for itself proves itself by a client secret.")
	}
	s.Scopes = slices.Clone(s.Scopes)
	if len(s.Scopes) > maxScopes || slices.ContainsFunc(s.Scopes, func(v string) bool { return !isScope(v) }) {
		wrong("scopes", "There are up to %d scopes, each a word without blanks.", maxScopes)
	}
	if len(s.Parameters) > maxParameters {
		wrong("parameters", "There are at most %d parameters.", maxParameters)
	}
	for name := range s.Parameters {
		if name == "" || slices.Contains(reserved, name) {
			wrong("parameters", "The parameter %q cannot be set.", name)
		}
	}
	if len(s.Parameters) == 0 {
		s.Parameters = nil
	}
	if len(s.Destinations) == 0 || len(s.Destinations) > maxDestinations {
		wrong("destinations", "Name the hosts to which the token may be sent, as api.example.com: at least one and at most %d.", maxDestinations)
	}
	list := make([]string, 0, len(s.Destinations))
	for _, d := range s.Destinations {
		to, err := destination(d)
		if err != nil {
			wrong("destinations", "%s", err)
		}
		list = append(list, to)
	}
	slices.Sort(list)
	s.Destinations = slices.Compact(list)
	if s.CA != "" {
		if block, _ := pem.Decode([]byte(s.CA)); block == nil || block.Type != "CERTIFICATE" {
			wrong("ca", "The roots are certificates in PEM.")
		} else if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			wrong("ca", "The roots are certificates in PEM.")
		}
	}
	return s, errors.Join(bad...)
}

// Private reports whether a host of the provider may be on a private network: one that
// an administrator named, and none that the provider names of itself.
func (s *Spec) Private(u *url.URL) bool {
	return s.AllowPrivate && slices.ContainsFunc([]string{s.Issuer, s.Authorize, s.Token, s.Revoke}, func(named string) bool {
		n, err := url.Parse(named)
		return err == nil && n.Host != "" && strings.EqualFold(n.Hostname(), u.Hostname())
	})
}

func (s *Spec) private(text string) bool {
	u, err := url.Parse(text)
	return err == nil && s.Private(u)
}

func checkURL(text string, private bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil, u.Host == "", u.Hostname() == "", u.User != nil, strings.ContainsAny(text, "#\\ "):
		return ErrInvalid.With("%q is not the URL of a provider.", text)
	case u.Scheme != "https" && (u.Scheme != "http" || !private):
		return ErrInvalid.With("%q does not begin with https://. On a private network http:// will do, with allow_private.", text)
	}
	return nil
}

// isScope reports whether s is a scope (RFC 6749, section 3.3).
func isScope(s string) bool {
	return s != "" && len(s) <= 500 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' })
}

// destination is a host and its port in the one form in which they are compared.
func destination(d string) (string, error) {
	host, port, err := net.SplitHostPort(d)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(d, "["), "]"), "443"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return "", ErrInvalid.With("The destination %q has no port that there is.", d)
	}
	if ip := net.ParseIP(host); ip != nil {
		return net.JoinHostPort(ip.String(), port), nil
	}
	host = strings.ToLower(host)
	if host == "" || len(host) > 253 || strings.HasSuffix(host, ".") || strings.ContainsFunc(host, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.'
	}) {
		return "", ErrInvalid.With("The destination %q is not a host or host:port. Patterns are not allowed.", d)
	}
	return net.JoinHostPort(host, port), nil
}

// mark is a digest of a spec, which is sealed together with the tokens.
func (s *Spec) mark() string {
	b, err := json.Marshal(s)
	if err != nil {
		panic("connection: " + err.Error()) // it is made of texts
	}
	sum := sha256.Sum256(b)
	return string(sum[:])
}

// same reports whether tokens that were got under one spec are good under another:
// they are of the same client of the same provider, and for the same.
func same(a, b Spec) bool {
	a.Description, b.Description = "", ""
	a.Destinations, b.Destinations, a.Class, b.Class = nil, nil, "", ""
	a.CA, b.CA, a.Secret, b.Secret, a.ClientAuth, b.ClientAuth = "", "", "", "", "", ""
	a.Parameters, b.Parameters = nil, nil
	return a.mark() == b.mark()
}

// target is a connection as events and policies name it.
func target(name string) string { return "connection:" + name }

// Put adds a connection, or changes the one of this name. Where another client, another
// provider or other scopes are named, what there is of tokens is ended, and it has to
// be authorized again.
func (x *Connections) Put(ctx context.Context, caller estover.Caller, spec Spec) (c Connection, err error) {
	if spec, err = Check(spec); err != nil {
		return c, err
	}
	if err := x.sealer.Prepare(ctx, caller.Tenant); err != nil {
		return c, err
	}
	id := estover.NewID("con")
	op := guard.Op{Action: "connection.put", Target: target(spec.Name), Detail: map[string]any{"connection": spec}}
	for range maxAttempts {
		// What is sealed is sealed before the transaction.
		var before *Connection
		err = x.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) error {
			old, err := findName(ctx, tx, spec.Name, "")
			if err == nil {
				before = &old
			}
			return ignore(err, ErrNotFound)
		})
		if err != nil {
			return c, err
		}
		fresh := Connection{ID: id, Spec: spec, State: first(spec)}
		var ends []revocation
		if before != nil {
			if fresh, ends, err = x.changed(caller.Tenant, *before, spec); err != nil {
				return c, err
			}
		}
		err = x.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
			tx.Touch(copyKind, spec.Name)
			fresh.ChangedAt = tx.Now()
			if before == nil {
				fresh.CreatedAt, fresh.epoch = tx.Now(), 1
				return insert(ctx, tx.Tx, fresh)
			}
			tx.Note("before", before.Spec)
			if err := addRevocations(ctx, tx.Tx, ends); err != nil {
				return err
			}
			return update(ctx, tx.Tx, fresh, before.epoch)
		})
		if !errors.Is(err, errStale) {
			break
		}
	}
	if errors.Is(err, errStale) {
		err = db.ErrUnavailable.Because(err)
	}
	if err != nil {
		return c, err
	}
	if spec.Grant == ClientCredentials {
		// Whether it works is said at once.
		if _, err := x.renew(ctx, caller.Tenant, spec.Name, true); err != nil && estover.KindOf(err) != estover.Unavailable {
			return c, err
		}
	}
	return x.snapshot(ctx, caller.Tenant, spec.Name)
}

// first is the state of a connection before its first token.
func first(s Spec) State {
	if s.Grant == ClientCredentials {
		return Healthy // it gets one when it is needed
	}
	return Reauthorize
}

// changed is a connection under another spec, and what is to be ended of the old
// one's tokens.
func (x *Connections) changed(tenant estover.TenantID, c Connection, spec Spec) (Connection, []revocation, error) {
	before := c
	c.Spec = spec
	c.epoch++
	c.Generation++                // a renewal that is under way is of the one before
	if c.State == Misconfigured { // it is tried again as it is
		c.State, c.Reason = Healthy, ""
	}
	if before.sealed == nil || !same(before.Spec, spec) {
		ends, err := x.ends(tenant, before)
		c.State, c.Reason, c.sealed, c.Granted, c.ExpiresAt, c.Renewable, c.Account = first(spec), "", nil, nil, time.Time{}, false, ""
		return c, ends, err
	}
	t, err := x.open(tenant, before)
	if err != nil {
		return c, nil, err
	}
	c.sealed, err = x.seal(tenant, c, t)
	return c, nil, err
}

// snapshot is a connection as it is in the database.
func (x *Connections) snapshot(ctx context.Context, tenant estover.TenantID, name string) (c Connection, err error) {
	err = x.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		c, err = findName(ctx, tx, name, "")
		return err
	})
	return c, err
}

// Get shows a connection.
func (x *Connections) Get(ctx context.Context, caller estover.Caller, name string) (c Connection, err error) {
	err = x.guard.Read(ctx, caller, guard.Op{Action: "connection.read", Target: target(name)}, func(tx *db.Tx) error {
		c, err = findName(ctx, tx, name, "")
		return err
	})
	return c, err
}

// MaxPage is the most that one page of a list holds.
const MaxPage = 200

// List shows connections by name. next is where the following page begins, or "" at
// the end.
func (x *Connections) List(ctx context.Context, caller estover.Caller, after string, limit int) (all []Connection, next string, err error) {
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	err = x.guard.Read(ctx, caller, guard.Op{Action: "connection.list"}, func(tx *db.Tx) error {
		all, err = list(ctx, tx, after, limit+1)
		return err
	})
	if len(all) > limit {
		all = all[:limit]
		next = all[limit-1].Name
	}
	return all, next, err
}

// Remove ends a connection. Its tokens are of no use here from then on, and are ended
// at the provider as soon as it can be reached (RFC 7009).
func (x *Connections) Remove(ctx context.Context, caller estover.Caller, name string) error {
	if err := x.sealer.Prepare(ctx, caller.Tenant); err != nil {
		return err
	}
	op := guard.Op{Action: "connection.remove", Target: target(name), Effect: guard.Deletes}
	for range maxAttempts {
		c, missing := x.snapshot(ctx, caller.Tenant, name)
		var ends []revocation
		var broken error
		if missing == nil {
			ends, broken = x.ends(caller.Tenant, c)
		}
		err := x.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
			if missing != nil {
				return missing
			}
			tx.Touch(copyKind, name)
			tx.Note("connection", c.ID)
			if broken != nil { // whoever changed it in the database does not keep it alive
				tx.Note("not_revoked", "the tokens cannot be opened")
			}
			if err := addRevocations(ctx, tx.Tx, ends); err != nil {
				return err
			}
			return end(ctx, tx.Tx, c)
		})
		if !errors.Is(err, errStale) {
			return err
		}
	}
	return db.ErrUnavailable.Because(errStale)
}

// maxAttempts is how often a change is planned again when another one came before
// it.
const maxAttempts = 32

// errStale says that a connection has changed since it was read.
var errStale = errors.New("the connection has changed in the meantime")

func ignore(err, known error) error {
	if errors.Is(err, known) {
		return nil
	}
	return err
}

// Drop forgets the copy of a connection.
func (x *Connections) Drop(tenant estover.TenantID, name string) { x.copies.Drop(tenant, name) }

// Release gives back, in all tenants, what a node had taken on that is no more.
func (x *Connections) Release(ctx context.Context, node string) error {
	return x.guard.DB().Do(ctx, "", func(tx *db.Tx) error { return release(ctx, tx, node) })
}
