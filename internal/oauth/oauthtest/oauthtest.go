// Package oauthtest puts the token service together for tests, as the server
// does: the real guard and log, the real registry of agents and directory of
// people, a keyring of its own. Only what agents are granted is a table that
// the test fills.
package oauthtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/federation"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth"
	"estover.dev/internal/page"
	"estover.dev/internal/seal"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// Issuer is the issuer of a world.
const Issuer token.Issuer = "https://estover.example"

// Identifiers of the resources that every world has.
const (
	CRM     = "https://crm.example"
	Tickets = "https://tickets.example/v2"
)

// Admin is who does what a test needs done.
var Admin = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_admin"), Roles: []estover.Role{estover.Admin}}

// A World is everything that issues tokens.
type World struct {
	T     testing.TB
	DB    *db.DB
	Guard *guard.Guard
	Keys  *seal.Keyring

	// Published is what issuers of others publish; nil does not answer.
	Published func(federation.Source) ([]byte, error)

	People   *directory.Directory
	Agents   *agent.Registry
	Sessions *session.Sessions
	Tokens   *token.Tokens
	Callers  *edge.Callers
	Pages    *page.Pages
	Door     *oauth.Door
	Handler  http.Handler
	Access   *Access
	Decider  *Decider
	Trusts   *federation.Trusts
	Fetcher  *edge.Fetcher // of the documents of clients; as it is, it reaches nothing on this machine

	clients *clients
}

// A Decider allows everything until a test says otherwise.
type Decider struct {
	fn atomic.Pointer[guardtest.Decider]
}

// Set has another function decide; nil allows everything.
func (d *Decider) Set(fn guardtest.Decider) {
	if fn == nil {
		d.fn.Store(nil)
		return
	}
	d.fn.Store(&fn)
}

// Decide asks the function.
func (d *Decider) Decide(ctx context.Context, caller estover.Caller, op guard.Op) (guard.Decision, error) {
	if fn := d.fn.Load(); fn != nil {
		return fn.Decide(ctx, caller, op)
	}
	return guardtest.AllowAll.Decide(ctx, caller, op)
}

// Deny refuses one action and allows the others.
func Deny(action string) guardtest.Decider {
	return func(c estover.Caller, op guard.Op) guard.Decision {
		if op.Action == action {
			return guardtest.DenyAll(c, op)
		}
		return guardtest.AllowAll(c, op)
	}
}

// New puts a world together on a database that dbtest has opened.
func New(t testing.TB, d *db.DB) *World { return Node(t, d, filepath.Join(t.TempDir(), "root.key")) }

// Node is New for one of several nodes on the same database, which share the
// file of the root key.
func Node(t testing.TB, d *db.DB, rootKey string) *World {
	t.Helper()
	ctx := context.Background()
	source, err := seal.ParseSource("file:"+rootKey, "")
	must(t, err)
	sealer, err := seal.Open(ctx, d, source)
	must(t, err)
	must(t, sealer.Prepare(ctx, estover.DefaultTenant))
	keys, err := seal.OpenKeyring(ctx, d, sealer)
	must(t, err)

	w := &World{T: t, DB: d, Keys: keys, Decider: &Decider{}, Fetcher: &edge.Fetcher{Dialer: &edge.Dialer{}}, Access: &Access{granted: map[string]map[string][]string{}}}
	w.Guard = guardtest.New(t, d, w.Decider)
	w.People = directory.New(w.Guard, directory.Options{Left: func(ctx context.Context, tx *guard.Tx, person string) error {
		return w.Tokens.EndPerson(ctx, tx, person)
	}})
	w.Agents = agent.New(w.Guard, agent.Options{
		Sponsor: w.People.Sponsor,
		Pepper: func(tenant estover.TenantID, secret []byte) []byte {
			return sealer.MAC(tenant, "client secret", secret)
		},
		Held: func(ctx context.Context, tx *guard.Tx, id string, kind agent.Kind) error {
			if kind != agent.Retirement {
				return nil
			}
			_, err := w.Sessions.EndAgent(ctx, tx, id, "the agent is "+string(kind))
			return err
		},
		Grantable: func(context.Context, *db.Tx, agent.Granted) error { return nil },
		Grant: func(_ context.Context, _ *guard.Tx, a agent.Agent, g agent.Granted) error {
			w.Access.Grant(a.ID, g.Resource, g.Actions...)
			return nil
		},
	})
	w.clients = &clients{world: w, tweaks: map[string]func(*token.Client){}}
	w.clients.copies = guard.NewCache(w.Guard, estover.AgentKind, w.clients.load)
	w.Sessions = session.New(w.Guard, session.Config{
		Clients: w.clients,
		Seal: func(tenant estover.TenantID, id string, plain []byte) ([]byte, error) {
			return sealer.Seal(tenant, seal.AAD{Class: seal.Recording, ID: id}, plain)
		},
		Unseal: func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error) {
			return sealer.Open(tenant, seal.AAD{Class: seal.Recording, ID: id}, sealed)
		},
	}, session.Part{Name: "grants", End: token.EndSessions, Extend: token.ExtendSession})
	w.Tokens = token.New(w.Guard, token.Config{Issuer: Issuer, Keys: keys, Clients: w.clients, Sessions: w.Sessions, Access: w.Access, People: w.acting})
	w.Callers = &edge.Callers{Tokens: w.Tokens, People: w.People.Authenticate, Proofs: &edge.Proofs{
		Origins: []string{string(Issuer)}, Now: d.Now,
		MAC: func(tenant estover.TenantID, msg []byte) []byte { return sealer.MAC(tenant, "dpop nonce", msg) },
	}}
	w.Trusts = federation.New(w.Guard, federation.Options{
		Own: Issuer.Of,
		Fetch: func(_ context.Context, s federation.Source) ([]byte, error) {
			if w.Published == nil {
				return nil, &estover.Error{Kind: estover.Unavailable, Code: "fetch_failed", Detail: "The other side does not answer."}
			}
			return w.Published(s)
		},
		Agent: func(ctx context.Context, tx *db.Tx, id string) error {
			return w.Agents.Grantable(ctx, tx, id, nil)
		},
		Person: func(ctx context.Context, tenant estover.TenantID, provider, issuer, subject string, claims map[string]any) (string, bool, error) {
			return w.People.Vouched(ctx, tenant, provider, issuer, directory.Identity{Subject: subject, Claims: claims})
		},
	})
	w.Pages, err = page.New(page.Config{
		Issuer: Issuer, People: w.People, Now: d.Now, Logger: slog.New(slog.DiscardHandler),
		MAC: func(tenant estover.TenantID, value []byte) []byte { return sealer.MAC(tenant, "page", value) },
	})
	must(t, err)
	w.Door = oauth.New(oauth.Config{
		Tokens: w.Tokens, Sessions: w.Sessions, Callers: w.Callers, Trusts: w.Trusts, Logger: slog.New(slog.DiscardHandler),
		Registrations: w.Agents, Pages: w.Pages, Requester: w.requester, Named: w.People.Named, Identity: w.identity,
		Documents: oauth.NewDocuments(func(ctx context.Context, url string) (edge.Document, error) {
			return w.Fetcher.Get(ctx, url, edge.MaxDocument)
		}, d.Now),
	})
	mux := http.NewServeMux()
	must(t, w.Door.Mount(mux))
	w.Handler = edge.Front{}.Handler(mux)
	return w
}

// Metadata is what clients find out about the default tenant.
func (w *World) Metadata() oauth.Metadata {
	w.T.Helper()
	m, err := w.Door.Metadata(context.Background(), estover.DefaultTenant)
	must(w.T, err)
	return m
}

// acting says whether a person may act.
func (w *World) acting(ctx context.Context, tenant estover.TenantID, person string) error {
	there, err := w.People.Active(ctx, tenant, person)
	if err == nil && !there {
		err = directory.ErrDisabled
	}
	return err
}

// requester is what people are told of an agent: its name, and everything that
// it is known by as a client.
func (w *World) requester(ctx context.Context, _ estover.TenantID, id string) (oauth.Requester, error) {
	a, err := w.Agents.Get(ctx, Admin, id)
	if err != nil {
		return oauth.Requester{}, err
	}
	digest, err := json.Marshal(a.Spec)
	return oauth.Requester{ID: id, Name: a.Name, Kind: a.Blueprint, Sponsor: "the sponsor of " + a.Name, Digest: string(digest)}, err
}

// identity is what is known of the person that somebody acts for.
func (w *World) identity(ctx context.Context, caller estover.Caller) (oauth.Identity, error) {
	p, err := w.People.Identity(ctx, caller)
	return oauth.Identity{Name: p.Name, Email: p.Email}, err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clients are the agents as OAuth clients.
type clients struct {
	world  *World
	copies *guard.Cache[*token.Client]

	mu     sync.Mutex
	tweaks map[string]func(*token.Client)
}

// errHeld is why an agent may not act that is not active.
var errHeld = &estover.Error{Kind: estover.Denied, Code: "agent_not_active", Detail: "The agent may not act."}

func (c *clients) load(ctx context.Context, tx *db.Tx, id string) (*token.Client, error) {
	s, err := agent.Load(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	tenant := tx.Tenant()
	client, err := oauth.ClientOf(s, func(ctx context.Context, now time.Time) error {
		if status := s.StatusAt(now); status != agent.Active {
			return errHeld.With("The agent is %s.", status)
		}
		there, err := c.world.People.Active(ctx, tenant, s.Sponsor)
		if err == nil && !there {
			return errHeld.With("The agent has no sponsor any more.")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if tweak := c.tweaks[id]; tweak != nil {
		tweak(client)
	}
	return client, nil
}

func (c *clients) Client(ctx context.Context, tenant estover.TenantID, id string) (*token.Client, error) {
	var err error
	if token.IsURL(id) {
		id, err = c.world.Agents.ByMetadataURL(ctx, tenant, id)
	}
	var client *token.Client
	if err == nil {
		client, err = c.copies.Get(ctx, tenant, id)
	}
	if estover.KindOf(err) == estover.NotFound {
		return nil, token.ErrNoClient
	}
	return client, err
}

func (c *clients) Secret(ctx context.Context, tenant estover.TenantID, id, value string) (string, error) {
	_, credential, err := c.world.Agents.BySecret(ctx, tenant, id, value)
	if err != nil {
		return "", err
	}
	return credential.ID, nil
}

func (c *clients) Used(tenant estover.TenantID, credential string) {
	c.world.Agents.Used(tenant, credential)
}

// An Access is what agents are granted: by agent and resource, actions.
type Access struct {
	mu      sync.RWMutex
	granted map[string]map[string][]string
}

// actions are what the resources have.
var actions = map[string][]string{
	CRM:     {"customer.delete", "customer.read", "customer.update", "note.write"},
	Tickets: {"note.write", "ticket.close", "ticket.read"},
}

// Grant gives an agent actions on a resource, for every purpose but those that
// begin with "no".
func (a *Access) Grant(agent, resource string, names ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.granted[agent] == nil {
		a.granted[agent] = map[string][]string{}
	}
	slices.Sort(names)
	a.granted[agent][resource] = names
}

// Allowed answers from the table.
func (a *Access) Allowed(_ context.Context, _ estover.TenantID, agent, identifier, purpose string) (token.Allowed, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	names := a.granted[agent][identifier]
	if len(names) == 0 || strings.HasPrefix(purpose, "no") {
		return token.Allowed{}, token.ErrTarget
	}
	return token.Allowed{Resource: "res_" + identifier, Audience: identifier, Scopes: names, Actions: actions[identifier]}, nil
}

// An Agent is an agent of the test, with what it proves itself with.
type Agent struct {
	agent.Agent
	Sponsor    directory.Person
	Secret     string
	Credential string // the secret's id
	Key        crypto.Signer
	KeySet     string // the key set's id
}

// Agent makes an agent with a sponsor of its own, a secret, a key, and a grant
// to read customers and tickets.
func (w *World) Agent(name string) *Agent {
	w.T.Helper()
	return w.AgentFor(name, "support", "billing")
}

// AgentFor is Agent with other purposes.
func (w *World) AgentFor(name string, purposes ...string) *Agent {
	w.T.Helper()
	ctx := context.Background()
	sponsor, err := w.People.Create(ctx, Admin, directory.Spec{Name: "sponsor-of-" + name}, "")
	must(w.T, err)
	a := &Agent{Sponsor: sponsor}
	a.Agent, err = w.Agents.Create(ctx, Admin, agent.Spec{
		Name: name, Blueprint: "bot", Sponsor: sponsor.ID, Purposes: purposes, Clearance: estover.Confidential,
	}, agent.Origin{})
	must(w.T, err)
	secret, credential, err := w.Agents.CreateSecret(ctx, Admin, a.ID, "test", 0)
	must(w.T, err)
	a.Secret, a.Credential = string(secret.Reveal()), credential.ID
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(w.T, err)
	a.Key = key
	set, err := w.Agents.CreateKeySet(ctx, Admin, a.ID, "test", JWKS(w.T, "key-1", key.Public()), 0)
	must(w.T, err)
	a.KeySet = set.ID
	w.Access.Grant(a.ID, CRM, "customer.read", "customer.update")
	w.Access.Grant(a.ID, Tickets, "ticket.read")
	return a
}

// Set changes what the agent may do as an OAuth client.
func (w *World) Set(a *Agent, c agent.Client) {
	w.T.Helper()
	spec := a.Spec
	spec.Client = &c
	var err error
	a.Agent, err = w.Agents.Update(context.Background(), Admin, a.ID, spec)
	must(w.T, err)
}

// Tweak changes how an agent is known as a client, from the next request on.
func (w *World) Tweak(id string, fn func(*token.Client)) {
	w.T.Helper()
	w.clients.mu.Lock()
	w.clients.tweaks[id] = fn
	w.clients.mu.Unlock()
	must(w.T, w.Guard.Do(context.Background(), Admin, guard.Op{Action: "agent.update"}, func(tx *guard.Tx) error {
		tx.Touch(estover.AgentKind, id)
		return nil
	}))
}

// Caller is the agent as it calls the domain by itself.
func (a *Agent) Caller() estover.Caller {
	return estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.Agent(a.ID), Client: a.ID, Strength: estover.BySecret}
}

// JWKS is a key set with one public key.
func JWKS(t testing.TB, id string, public crypto.PublicKey) []byte {
	t.Helper()
	// The kind of key does not matter for its publication.
	key, err := jose.NewKey("", id, public)
	must(t, err)
	b, err := jose.NewKeys(key).MarshalJSON()
	must(t, err)
	return b
}

// Claims are the claims of an assertion, before they are signed.
type Claims map[string]any

// Claims are those of a good assertion of the agent, fresh each time.
func (w *World) Claims(a *Agent) Claims {
	now := w.DB.Now().Unix()
	return Claims{"iss": a.ID, "sub": a.ID, "aud": string(Issuer), "iat": now, "exp": now + 60, "jti": rand.Text()}
}

// Sign signs claims as a client assertion.
func Sign(t testing.TB, key crypto.Signer, id string, c Claims) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.ClientAssertion, id, key)
	must(t, err)
	s, err := jose.Sign(jose.ClientAssertion, signer, c)
	must(t, err)
	return s
}

// NewKey makes a private key: "P-256", "Ed25519" or "RSA".
func NewKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "P-256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "RSA":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		t.Fatalf("no key of the kind %q", kind)
	}
	must(t, err)
	return key
}

// Assertion is a good client assertion, good once.
func (w *World) Assertion(a *Agent) string {
	w.T.Helper()
	return Sign(w.T, a.Key, "key-1", w.Claims(a))
}

// AssertionType is the type of client assertion.
const AssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// An Answer is what the door answered.
type Answer struct {
	Status int
	Header http.Header
	Body   string
	JSON   map[string]any // nil if the body is none
}

// Error is the member error, or "".
func (a Answer) Error() string { s, _ := a.JSON["error"].(string); return s }

// Token is the member access_token, or "".
func (a Answer) Token() string { s, _ := a.JSON["access_token"].(string); return s }

// Text is a member that is a string.
func (a Answer) Text(name string) string { s, _ := a.JSON[name].(string); return s }

// Do sends a request to the door.
func (w *World) Do(r *http.Request) Answer {
	w.T.Helper()
	rec := httptest.NewRecorder()
	w.Handler.ServeHTTP(rec, r)
	res := rec.Result()
	b, err := io.ReadAll(res.Body)
	must(w.T, err)
	a := Answer{Status: res.StatusCode, Header: res.Header, Body: string(b)}
	_ = json.Unmarshal(b, &a.JSON) // not everything is JSON
	return a
}

// Request is a POST of a form to a path, with changes.
func Request(path string, form url.Values, change ...func(*http.Request)) *http.Request {
	r := httptest.NewRequest(http.MethodPost, string(Issuer)+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, fn := range change {
		fn(r)
	}
	return r
}

// Basic authenticates a request as RFC 6749 says.
func Basic(id, secret string) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret)) }
}

// Bearer adds a token to a request.
func Bearer(raw string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+raw) }
}

// A Prover is a key by which tokens are bound (RFC 9449), with the nonce that
// it was last told.
type Prover struct {
	World *World
	Key   crypto.Signer
	Nonce string
}

// Prover is a key that knows the nonce to use.
func (w *World) Prover(kind string) *Prover {
	w.T.Helper()
	return &Prover{w, NewKey(w.T, kind), w.Callers.Proofs.Nonce(estover.DefaultTenant)}
}

// Thumbprint is the jkt of the key.
func (p *Prover) Thumbprint() string {
	p.World.T.Helper()
	s, err := jose.Thumbprint(p.Key.Public())
	must(p.World.T, err)
	return s
}

// Claims are those of a good proof for a request, fresh each time: with ath if
// there is an access token.
func (p *Prover) Claims(method, url, accessToken string) Claims {
	c := Claims{"jti": rand.Text(), "htm": method, "htu": url, "iat": p.World.DB.Now().Unix(), "nonce": p.Nonce}
	if accessToken != "" {
		sum := sha256.Sum256([]byte(accessToken))
		c["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return c
}

// Sign is a proof with these claims.
func (p *Prover) Sign(c Claims) string {
	p.World.T.Helper()
	signer, err := jose.NewSigner(jose.DPoPProof, "", p.Key)
	must(p.World.T, err)
	s, err := jose.Sign(jose.DPoPProof, signer, c)
	must(p.World.T, err)
	return s
}

// Prove adds a good proof to a request, and the token that it is for, if any,
// in the header Authorization.
func (p *Prover) Prove(accessToken string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Set("DPoP", p.Sign(p.Claims(r.Method, string(Issuer)+r.URL.EscapedPath(), accessToken)))
		if accessToken != "" {
			r.Header.Set("Authorization", "DPoP "+accessToken)
		}
	}
}

// Ask asks for a token by the agent's secret, with a good proof.
func (p *Prover) Ask(a *Agent, pairs ...string) Answer {
	p.World.T.Helper()
	f := Form(pairs...)
	f.Set("grant_type", "client_credentials")
	return p.World.Do(Request("/oauth/token", f, Basic(a.ID, a.Secret), p.Prove("")))
}

// Form is a form of names and values, one behind the other.
func Form(pairs ...string) url.Values {
	f := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Add(pairs[i], pairs[i+1])
	}
	return f
}

// Ask asks for a token by the agent's secret, with further parameters.
func (w *World) Ask(a *Agent, pairs ...string) Answer {
	w.T.Helper()
	f := Form(pairs...)
	f.Set("grant_type", "client_credentials")
	return w.Do(Request("/oauth/token", f, Basic(a.ID, a.Secret)))
}

// AskByKey asks for a token by the agent's key.
func (w *World) AskByKey(a *Agent, pairs ...string) Answer {
	w.T.Helper()
	return w.AskWith(w.Assertion(a), pairs...)
}

// AskWith asks for a token by an assertion.
func (w *World) AskWith(assertion string, pairs ...string) Answer {
	w.T.Helper()
	f := Form(pairs...)
	f.Set("grant_type", "client_credentials")
	f.Set("client_assertion_type", AssertionType)
	f.Set("client_assertion", assertion)
	return w.Do(Request("/oauth/token", f))
}

// Introspect asks about a token as a client.
func (w *World) Introspect(by *Agent, raw string) Answer {
	w.T.Helper()
	return w.Do(Request("/oauth/introspect", Form("token", raw), Basic(by.ID, by.Secret)))
}

// Live reports whether a token is good, as its own client sees it.
func (w *World) Live(by *Agent, raw string) bool {
	w.T.Helper()
	a := w.Introspect(by, raw)
	if a.Status != http.StatusOK {
		w.T.Fatalf("introspection answered %d: %s", a.Status, a.Body)
	}
	return a.JSON["active"] == true
}
