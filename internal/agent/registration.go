package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
)

// An InitialToken lets clients register themselves (RFC 7591, section 3). A
// person has decided what becomes of them: agents with a sponsor, of a kind, for
// purposes, with no more than what stands here. What a client says of itself can
// make that less.
//
//	live ──(uses)──▶ used up
//	  ├──(expires_at)──▶ expired
//	  └──end──▶ ended
//
// Agents that were made by it live on.
type InitialToken struct {
	ID    string `json:"id"` // iat_…
	Label string `json:"label,omitempty"`
	Bounds
	Uses      int64           `json:"uses"`
	Used      int64           `json:"used"`
	CreatedAt time.Time       `json:"created_at"`
	CreatedBy estover.Subject `json:"created_by"`
	ExpiresAt time.Time       `json:"expires_at"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
}

// Bounds are the most that an agent may be that registers itself.
type Bounds struct {
	// Agent is what it becomes. The name begins each agent's own. Of its client,
	// the grant types are those that it may have, client_credentials only if it is
	// named; of redirect URIs and methods, none named means whichever it names.
	Agent Spec `json:"agent"`

	// Alone lets it ask for tokens by its own credentials, for itself.
	Alone bool `json:"alone,omitempty"`

	// Grants are given to it with its registration.
	Grants []Granted `json:"grants,omitempty"`

	// LifeSeconds is how long it lives, 0 for as long as Agent says.
	LifeSeconds int64 `json:"life_seconds,omitempty"`
}

// A Granted is what an agent is granted that registers itself: actions of one
// resource, for all of its purposes.
type Granted struct {
	Resource string        `json:"resource" minLength:"1" doc:"The resource."`
	Actions  []string      `json:"actions" minItems:"1" doc:"Actions of the resource, each by its name: they are the scopes that a client may ask for when it registers itself."`
	Class    estover.Class `json:"class" enum:"public,internal,confidential,restricted" doc:"The most sensitive class of data that is covered."`
}

// Metadata is what a client says of itself (RFC 7591, section 2), as far as it
// counts here. Names, contacts and URLs are nobody's word but its own.
type Metadata struct {
	Name            string   `json:"client_name,omitempty"`
	URI             string   `json:"client_uri,omitempty"`
	Logo            string   `json:"logo_uri,omitempty"`
	Terms           string   `json:"tos_uri,omitempty"`
	Policy          string   `json:"policy_uri,omitempty"`
	Contacts        []string `json:"contacts,omitempty"`
	SoftwareID      string   `json:"software_id,omitempty"`
	SoftwareVersion string   `json:"software_version,omitempty"`
	ApplicationType string   `json:"application_type,omitempty"` // OpenID Connect Registration, section 2

	GrantTypes       []string        `json:"grant_types,omitempty"`
	ResponseTypes    []string        `json:"response_types,omitempty"`
	RedirectURIs     []string        `json:"redirect_uris,omitempty"`
	Method           string          `json:"token_endpoint_auth_method,omitempty"`
	Scopes           []string        `json:"scopes,omitempty"` // nil for those that there are
	JWKS             json.RawMessage `json:"jwks,omitempty"`
	DPoPBound        bool            `json:"dpop_bound_access_tokens,omitempty"`
	CertificateBound bool            `json:"tls_client_certificate_bound_access_tokens,omitempty"`
	RequirePAR       bool            `json:"require_pushed_authorization_requests,omitempty"`
	IDTokenAlgorithm string          `json:"id_token_signed_response_alg,omitempty"`
}

// A Registration is what is kept of a client that registered itself.
type Registration struct {
	Metadata
	InitialToken string    `json:"initial_token"` // its id
	Alone        bool      `json:"alone,omitempty"`
	Redirects    []string  `json:"redirect_bound,omitempty"` // of which its redirect URIs are, once somebody has said so; nil for any
	ChangedAt    time.Time `json:"changed_at"`               // when the client last said something
}

// Errors about clients that register themselves. The codes of those that are
// about what a client says are those of RFC 7591, section 3.2.2.
var (
	// ErrRegistrationOff is returned while clients may not register themselves.
	ErrRegistrationOff = &estover.Error{Kind: estover.NotFound, Code: "registration_off", Detail: "Clients do not register themselves here. An administrator creates an agent, or lets clients do it: `estover registration on`."}
	// ErrInitialToken is returned for an initial access token that buys nothing.
	ErrInitialToken = &estover.Error{Kind: estover.Unknown, Code: "initial_token_invalid", Detail: "The initial access token is missing or wrong, has expired or was used up. Ask whoever runs this server for another one."}
	// ErrInitialTokenNotFound is returned when there is no such token in the tenant.
	ErrInitialTokenNotFound = &estover.Error{Kind: estover.NotFound, Code: "initial_token_not_found", Detail: "There is no such initial access token, or it was ended already. `estover registration list` shows which there are."}
	// ErrRegistrationToken is returned for a registration access token that is not
	// the client's.
	ErrRegistrationToken = &estover.Error{Kind: estover.Unknown, Code: "registration_token_invalid", Detail: "The registration access token is missing or wrong, was replaced by another one, or its client is not there any more."}
	// ErrMetadata is returned for what a client cannot say of itself.
	ErrMetadata = &estover.Error{Kind: estover.Invalid, Code: "invalid_client_metadata", Detail: "This cannot be said of a client."}
	// ErrRedirectURI is returned for a redirect URI that a client cannot have.
	ErrRedirectURI = &estover.Error{Kind: estover.Invalid, Code: "invalid_redirect_uri", Detail: "This is no redirect URI for the client."}
)

// The bounds of initial access tokens.
const (
	InitialTokenLife    = 24 * time.Hour // unless something else is asked for
	MaxInitialTokenLife = 90 * 24 * time.Hour
	MaxInitialTokenUses = 1000

	maxGranted = 20
	maxPrefix  = 50 // bytes of the beginning of a name
	nameTail   = 10 // characters of an id that end a name
)

// RegistrationMethods are the ways in which a client may authenticate that
// registers itself. A certificate by its name needs an authority that somebody
// else has named.
var RegistrationMethods = []string{"client_secret_basic", "client_secret_post", "private_key_jwt", "self_signed_tls_client_auth", "none"}

// alone is the grant type of a client that asks for itself.
const alone = "client_credentials"

// byKeys reports whether a method rests on the keys of the client.
func byKeys(method string) bool {
	return method == "private_key_jwt" || method == "self_signed_tls_client_auth"
}

// settingKey is where a cache has whether clients may register themselves.
const (
	settingKind = "client_registration"
	settingKey  = "open"
)

// Registering reports whether clients may register themselves, from memory.
func (r *Registry) Registering(ctx context.Context, tenant estover.TenantID) (bool, error) {
	return r.open.Get(ctx, tenant, settingKey)
}

// ShowRegistering says whether clients may register themselves.
func (r *Registry) ShowRegistering(ctx context.Context, caller estover.Caller) (open bool, err error) {
	err = r.guard.Read(ctx, caller, guard.Op{Action: "initial_token.list"}, func(tx *db.Tx) error {
		open, err = isRegistering(ctx, tx)
		return err
	})
	return open, err
}

// SetRegistering lets clients register themselves, or lets them no more. Those
// that have done so stay, and do not change what they said while it is off.
func (r *Registry) SetRegistering(ctx context.Context, caller estover.Caller, open bool) error {
	op := guard.Op{Action: "registration.set", Target: settingKind + ":" + settingKey, Detail: map[string]any{"open": open}}
	return r.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		tx.Touch(settingKind, settingKey)
		return setRegistering(ctx, tx.Tx, open, caller.Subject)
	})
}

// CreateInitialToken makes a token with which clients register themselves. Its
// value is shown now and never again. It is good once, for a day, unless
// something else is asked for.
func (r *Registry) CreateInitialToken(ctx context.Context, caller estover.Caller, b Bounds, label string, uses int64, life time.Duration) (estover.Secret, InitialToken, error) {
	b, err := b.check()
	if err != nil {
		return estover.Secret{}, InitialToken{}, err
	}
	if uses == 0 {
		uses = 1
	}
	if life == 0 {
		life = InitialTokenLife
	}
	switch {
	case uses < 0 || uses > MaxInitialTokenUses:
		return estover.Secret{}, InitialToken{}, ErrInvalid.With("An initial access token is good for between one use and %d, not for %d.", MaxInitialTokenUses, uses).At("uses")
	case life < 0 || life > MaxInitialTokenLife:
		return estover.Secret{}, InitialToken{}, ErrInvalid.With("An initial access token lives for up to %d days.", int(MaxInitialTokenLife.Hours()/24)).At("ttl_seconds")
	}
	value := opaque.New(opaque.InitialToken)
	t := InitialToken{ID: estover.NewID("iat"), Label: label[:min(len(label), 100)], Bounds: b, Uses: uses, CreatedBy: caller.Subject}
	op := guard.Op{Action: "initial_token.create", Target: "initial_token:" + t.ID, Detail: map[string]any{"bounds": b, "uses": uses}}
	err = r.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if err := r.checkSponsor(ctx, tx.Tx, b.Agent.Sponsor); err != nil {
			return err
		}
		for i, g := range b.Grants {
			if err := r.grantable(ctx, tx.Tx, g); err != nil {
				return ErrInvalid.With("%s", sentence(err)).At(fmt.Sprintf("grants[%d]", i)).Because(err)
			}
		}
		t.CreatedAt, t.ExpiresAt = tx.Now(), tx.Now().Add(life)
		tx.Note("expires_at", t.ExpiresAt)
		return insertInitialToken(ctx, tx.Tx, t, opaque.Hash(value))
	})
	if err != nil {
		return estover.Secret{}, InitialToken{}, err
	}
	return estover.NewSecret([]byte(value)), t, nil
}

// InitialTokens shows the tokens that are good for something, the newest first.
func (r *Registry) InitialTokens(ctx context.Context, caller estover.Caller) (list []InitialToken, err error) {
	err = r.guard.Read(ctx, caller, guard.Op{Action: "initial_token.list"}, func(tx *db.Tx) error {
		list, err = initialTokens(ctx, tx)
		return err
	})
	return list, err
}

// EndInitialToken ends a token. What was registered with it stays.
func (r *Registry) EndInitialToken(ctx context.Context, caller estover.Caller, id string) error {
	return r.guard.Do(ctx, caller, guard.Op{Action: "initial_token.end", Target: "initial_token:" + id}, func(tx *guard.Tx) error {
		return endInitialToken(ctx, tx.Tx, id)
	})
}

// check gives the bounds in the one form in which they are kept.
func (b Bounds) check() (Bounds, error) {
	if b.Agent.Client == nil {
		b.Agent.Client = &Client{}
	}
	c := *b.Agent.Client
	b.Alone = slices.Contains(c.GrantTypes, alone)
	if len(c.GrantTypes) == 0 {
		return b, ErrInvalid.With("Say which grant types a client may have that registers itself: authorization_code and refresh_token, for example.").At("agent.client.grant_types")
	}
	for i, m := range c.Methods {
		if !slices.Contains(RegistrationMethods, m) {
			return b, ErrInvalid.With("A client that registers itself authenticates by %s, not by %s.", strings.Join(RegistrationMethods, ", "), m).At(fmt.Sprintf("agent.client.token_endpoint_auth_methods[%d]", i))
		}
	}
	switch {
	case c.MetadataURL != "":
		return b, ErrInvalid.With("A client that registers itself is not known by a URL.").At("agent.client.metadata_url")
	case len(c.Runs)+len(c.Introspect)+len(c.Exchanges)+len(c.Chains) > 0:
		return b, ErrInvalid.With("A client that registers itself runs no other agents, serves no resources, and takes up no tokens of others. Give that to the agent once it is there.").At("agent.client")
	case len(b.Agent.Name) > maxPrefix:
		return b, ErrInvalid.With("The name begins those of the agents, and has up to %d characters.", maxPrefix).At("agent.name")
	case b.LifeSeconds < 0:
		return b, ErrInvalid.With("An agent lives for some time, or without an end (0).").At("life_seconds")
	case len(b.Grants) > maxGranted:
		return b, ErrInvalid.With("There are at most %d grants.", maxGranted).At("grants")
	}
	// What is left to the client: which methods, of which one is its own, and where
	// people are sent back to.
	methods := sorted(c.Methods)
	c.Methods = nil
	open := len(c.RedirectURIs) == 0
	if open {
		c.RedirectURIs = []string{"https://client.example"}
	}
	b.Agent.Client = &c
	spec, err := Check(b.Agent)
	if err != nil {
		return b, err
	}
	if spec.Client == nil {
		spec.Client = &Client{}
	}
	if open {
		spec.Client.RedirectURIs = nil
	}
	spec.Client.Methods = methods
	b.Agent = spec
	b.Grants = slices.Clone(b.Grants)
	for i, g := range b.Grants {
		switch {
		case g.Class.Rank() < 0:
			return b, ErrInvalid.With("The class is public, internal, confidential or restricted, not %q.", g.Class).At(fmt.Sprintf("grants[%d].class", i))
		case len(g.Actions) == 0, slices.Contains(g.Actions, "*"):
			return b, ErrInvalid.With("Name the actions, each by its own name: they are the scopes that a client may ask for.").At(fmt.Sprintf("grants[%d].actions", i))
		}
		b.Grants[i].Actions = sorted(g.Actions)
	}
	return b, nil
}

// A Registered is a client as it registered itself, with what it is told once.
type Registered struct {
	Agent
	Secret estover.Secret // zero where it has none
	Token  estover.Secret // by which it manages its registration
}

// Register makes an agent of a client that registers itself. from says where the
// request comes from: its tenant, address and id. However many come with a token
// at once, as many succeed as it has uses.
func (r *Registry) Register(ctx context.Context, from estover.Caller, initial string, m Metadata) (Registered, error) {
	if !opaque.Check(initial, opaque.InitialToken) {
		return Registered{}, ErrInitialToken
	}
	hash := opaque.Hash(initial)
	var t InitialToken
	err := r.guard.DB().View(ctx, from.Tenant, func(tx *db.Tx) (err error) {
		t, err = findInitialToken(ctx, tx, hash)
		return err
	})
	if err != nil {
		return Registered{}, err
	}
	id := estover.NewID("agt")
	spec, reg, err := t.agent(id, m)
	if err != nil {
		return Registered{}, err
	}
	token := opaque.New(opaque.Registration)
	made := Registered{Token: estover.NewSecret([]byte(token))}
	credential := Credential{ID: estover.NewID("crd"), Agent: id, Label: "its own registration", Epoch: 1}
	switch {
	case byKeys(reg.Method):
		credential.Kind = KeySet
		if credential.JWKS, err = publicKeys(m.JWKS); err != nil {
			return Registered{}, ErrMetadata.With("%s", sentence(err)).Because(err)
		}
	case reg.Method != "none":
		value := opaque.New(opaque.ClientSecret)
		credential.Kind = ClientSecret
		made.Secret, credential.hash = estover.NewSecret([]byte(value)), r.pepper(from.Tenant, []byte(value))
	}
	caller := from
	caller.Subject, caller.Strength = registrar, estover.BySecret
	credential.CreatedBy = registrar
	op := guard.Op{Action: "registration.create", Target: target(id), Detail: map[string]any{"initial_token": t.ID, "client_name": reg.Name}}
	err = r.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if open, err := isRegistering(ctx, tx.Tx); err != nil || !open {
			return off(err)
		}
		used, err := useInitialToken(ctx, tx.Tx, t.ID)
		if err != nil {
			return err
		}
		if !used { // a second client with a token that was good once is worth a look
			tx.Fail(ErrInitialToken)
			return nil
		}
		if err := r.checkSponsor(ctx, tx.Tx, spec.Sponsor); err != nil {
			return ErrInitialToken.With("The person who would answer for the agent is not there any more. Ask for another initial access token.").Because(err)
		}
		a := Agent{ID: id, Spec: spec, Registration: &reg, Holds: []Hold{}, CreatedAt: tx.Now(), Epoch: 1}
		if a.Registration.ChangedAt = tx.Now(); t.LifeSeconds > 0 {
			end := tx.Now().Add(time.Duration(t.LifeSeconds) * time.Second)
			if a.ExpiresAt.IsZero() || end.Before(a.ExpiresAt) {
				a.ExpiresAt = end
			}
		}
		if !a.ExpiresAt.IsZero() && !a.ExpiresAt.After(tx.Now()) {
			return ErrInitialToken.With("The agent would have expired at %s. Ask for another initial access token.", a.ExpiresAt.Format(time.RFC3339))
		}
		if err := insert(ctx, tx.Tx, a); err != nil {
			return err
		}
		if err := keepRegistration(ctx, tx.Tx, a, nil, opaque.Hash(token)); err != nil {
			return err
		}
		if credential.Kind != "" {
			c := credential
			c.CreatedAt, c.ExpiresAt = tx.Now(), a.ExpiresAt
			if err := insertCredential(ctx, tx.Tx, c); err != nil {
				return err
			}
		}
		for _, g := range t.granted(reg.Scopes) {
			if err := r.grant(ctx, tx, a, g); err != nil {
				return ErrInitialToken.With("What the initial access token gives cannot be given any more: %s", sentence(err)).Because(err)
			}
		}
		a.Status = a.StatusAt(tx.Now())
		tx.Note("agent", a.Spec)
		tx.Note("initial_token_by", t.CreatedBy)
		tx.Touch(estover.AgentKind, id)
		made.Agent = a
		return nil
	})
	if err != nil {
		return Registered{}, err
	}
	return made, nil
}

// registrar is who makes agents of clients that register themselves: nobody has
// said yet who they are.
var registrar = estover.System("oauth")

// off is the error of a registration that is not open.
func off(err error) error {
	if err != nil {
		return err
	}
	return ErrRegistrationOff
}

// agent is what becomes of a client that says this of itself: no more than the
// token has, and no more than it asks for.
func (t *InitialToken) agent(id string, m Metadata) (Spec, Registration, error) {
	bound := *t.Agent.Client
	most := slices.Clone(bound.GrantTypes)
	if t.Alone {
		most = append(most, alone)
	}
	methods := bound.Methods
	if len(methods) == 0 {
		methods = RegistrationMethods
	}
	if m.Method == "" {
		m.Method = "client_secret_basic" // RFC 7591, section 2
	}
	if !slices.Contains(methods, m.Method) {
		return Spec{}, Registration{}, ErrMetadata.With("Clients that register themselves authenticate by %s here, not by %q (token_endpoint_auth_method).", strings.Join(methods, ", "), m.Method)
	}
	c := bound
	if c.IDTokenAlgorithm != "" {
		m.IDTokenAlgorithm = c.IDTokenAlgorithm
	}
	m, err := m.narrow(most, bound.RedirectURIs)
	if err != nil {
		return Spec{}, Registration{}, err
	}
	m.Scopes = t.scopes(m.Scopes)
	m.into(&c)
	spec := t.Agent
	spec.Name += "-" + id[len(id)-nameTail:]
	spec.Client = &c
	if spec, err = Check(spec); err != nil {
		return Spec{}, Registration{}, ErrMetadata.With("%s", sentence(err)).Because(err)
	}
	return spec, Registration{
		Metadata: m, InitialToken: t.ID, Alone: slices.Contains(m.GrantTypes, alone), Redirects: bound.RedirectURIs,
	}, nil
}

// scopes are those of what the token gives that a client asked for; all if it
// asked for none. Those of OpenID Connect are not the token's to give.
func (t *InitialToken) scopes(asked []string) []string {
	var all []string
	for _, g := range t.Grants {
		all = append(all, g.Actions...)
	}
	all = sorted(all)
	if asked == nil {
		return all
	}
	return slices.DeleteFunc(all, func(s string) bool { return !slices.Contains(asked, s) })
}

// granted is what is granted of these scopes.
func (t *InitialToken) granted(scopes []string) (all []Granted) {
	for _, g := range t.Grants {
		g.Actions = slices.DeleteFunc(slices.Clone(g.Actions), func(s string) bool { return !slices.Contains(scopes, s) })
		if len(g.Actions) > 0 {
			all = append(all, g)
		}
	}
	return all
}

// narrow is what a client says of itself within these grant types and redirect
// URIs, of which nil is any. RFC 7591, section 2, lets a server put something
// else in the place of what was asked for; the answer says what it is.
func (m Metadata) narrow(grantTypes, redirects []string) (Metadata, error) {
	asked := m.GrantTypes
	if asked == nil {
		asked = []string{"authorization_code"} // RFC 7591, section 2
	}
	m.GrantTypes = []string{}
	for _, g := range grantTypes {
		needless := m.Method == "none" && (g == alone || g == "urn:openid:params:grant-type:ciba") // need a client that authenticates
		if slices.Contains(asked, g) && !needless {
			m.GrantTypes = append(m.GrantTypes, g)
		}
	}
	m.GrantTypes = sorted(m.GrantTypes)
	coded := slices.Contains(m.GrantTypes, "authorization_code")
	switch {
	case len(m.GrantTypes) == 0:
		return m, ErrMetadata.With("A client that registers itself here, and authenticates in this way, may have of the grant types %s, and asks for none of them.", strings.Join(grantTypes, ", "))
	case coded && m.ResponseTypes != nil && !slices.Contains(m.ResponseTypes, "code"):
		return m, ErrMetadata.With("A client with the grant type authorization_code has the response type code.")
	case coded && len(m.RedirectURIs) == 0:
		return m, ErrRedirectURI.With("A client with the grant type authorization_code has at least one redirect URI.")
	case len(m.RedirectURIs) > maxURIs:
		return m, ErrRedirectURI.With("A client has at most %d redirect URIs.", maxURIs)
	case byKeys(m.Method) && m.JWKS == nil:
		return m, ErrMetadata.With("A client that authenticates by %s registers its public keys, as jwks.", m.Method)
	case m.IDTokenAlgorithm != "" && !slices.Contains(words("IDTokenAlgorithm"), m.IDTokenAlgorithm):
		return m, ErrMetadata.With("ID tokens are signed with RS256 or ES256.")
	}
	if m.ResponseTypes = nil; coded {
		m.ResponseTypes = []string{"code"}
	}
	if !byKeys(m.Method) {
		m.JWKS = nil
	}
	return m, m.redirect(redirects)
}

// redirect says what is wrong with where people would be sent back to, and says
// what sort of application that makes of one that did not say.
func (m *Metadata) redirect(bound []string) error {
	local := false
	for _, uri := range m.RedirectURIs {
		if why := RedirectURI(uri); why != "" {
			return ErrRedirectURI.With("%s", why)
		}
		if bound != nil && !slices.Contains(bound, uri) {
			return ErrRedirectURI.With("A client that registers itself with this initial access token has of the redirect URIs that came with it; %s is none of them.", uri)
		}
		u, err := url.Parse(uri)
		if err != nil {
			return ErrRedirectURI.Because(err)
		}
		if here := loopback(u.Hostname()); here && m.ApplicationType == "web" {
			return ErrRedirectURI.With("A web application is not on the machine of the person who uses it: %s. One that is says application_type native.", uri)
		} else if here {
			local = true
		}
	}
	switch {
	case m.ApplicationType == "" && local:
		m.ApplicationType = "native"
	case m.ApplicationType == "":
		m.ApplicationType = "web"
	case m.ApplicationType != "native" && m.ApplicationType != "web":
		return ErrMetadata.With("An application is native or web (application_type), not %q.", m.ApplicationType)
	}
	return nil
}

// into writes what a client says into its settings, of which it makes none less
// strict.
func (m *Metadata) into(c *Client) {
	c.GrantTypes, c.RedirectURIs, c.Methods = m.GrantTypes, m.RedirectURIs, []string{m.Method}
	c.DPoPBound, c.CertificateBound = c.DPoPBound || m.DPoPBound, c.CertificateBound || m.CertificateBound
	c.RequirePAR = c.RequirePAR || m.RequirePAR
	c.IDTokenAlgorithm = m.IDTokenAlgorithm
}

// registrant is the agent whose registration a token manages, or
// [ErrRegistrationToken], whatever is wrong.
func (r *Registry) registrant(ctx context.Context, from estover.Caller, id, token string) (estover.Caller, [32]byte, error) {
	hash := opaque.Hash(token)
	if !opaque.Check(token, opaque.Registration) {
		return from, hash, ErrRegistrationToken
	}
	err := r.guard.DB().View(ctx, from.Tenant, func(tx *db.Tx) error { return checkRegistration(ctx, tx, id, hash) })
	from.Subject, from.Client, from.Strength = estover.Agent(id), id, estover.BySecret
	return from, hash, err
}

// Registration shows a client what is registered of it (RFC 7592, section 2.1).
func (r *Registry) Registration(ctx context.Context, from estover.Caller, id, token string) (a Agent, err error) {
	caller, hash, err := r.registrant(ctx, from, id, token)
	if err != nil {
		return a, err
	}
	err = r.guard.Read(ctx, caller, guard.Op{Action: "registration.read", Target: target(id)}, func(tx *db.Tx) error {
		if err := checkRegistration(ctx, tx, id, hash); err != nil {
			return err
		}
		a, err = find(ctx, tx, id)
		return cmp.Or(err, a.manages())
	})
	return a, err
}

// manages says why an agent may not manage its registration, if it may not: what
// holds it holds that too.
func (a *Agent) manages() error {
	if a.Status != Active {
		return ErrNotActive.With("The client is %s, and its registration stays as it is. Ask its sponsor.", a.Status)
	}
	return nil
}

// Reregister changes what a client says of itself (RFC 7592, section 2.2), within
// what it has: nothing that an administrator has taken away comes back, and
// nothing that holds it is lifted. The registration access token is spent for
// another one. A secret that comes along must be the client's own.
func (r *Registry) Reregister(ctx context.Context, from estover.Caller, id, token, secret string, m Metadata) (Registered, error) {
	caller, hash, err := r.registrant(ctx, from, id, token)
	if err != nil {
		return Registered{}, err
	}
	if secret != "" {
		if s, _, err := r.BySecret(ctx, from.Tenant, id, secret); err != nil || s.ID != id {
			return Registered{}, ErrMetadata.With("The client_secret is not the client's. A client does not choose its secret.")
		}
	}
	var keys json.RawMessage
	if m.JWKS != nil {
		if keys, err = publicKeys(m.JWKS); err != nil {
			return Registered{}, ErrMetadata.With("%s", sentence(err)).Because(err)
		}
	}
	next, credential := opaque.New(opaque.Registration), estover.NewID("crd")
	made := Registered{Token: estover.NewSecret([]byte(next))}
	err = r.guard.Do(ctx, caller, guard.Op{Action: "registration.update", Target: target(id)}, func(tx *guard.Tx) error {
		if open, err := isRegistering(ctx, tx.Tx); err != nil || !open {
			return off(err)
		}
		a, err := lock(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if err := a.manages(); err != nil {
			return err
		}
		before := a.Spec
		if err := a.says(m); err != nil {
			return err
		}
		a.Registration.ChangedAt = tx.Now()
		if narrows(before, a.Spec) {
			a.Epoch++
		}
		if err := keepRegistration(ctx, tx.Tx, a, &hash, opaque.Hash(next)); err != nil {
			return err
		}
		if err := update(ctx, tx.Tx, a); err != nil {
			return err
		}
		if a.Registration.JWKS != nil {
			if err := replaceKeys(ctx, tx, a, credential, keys); err != nil {
				return err
			}
		}
		tx.Note("before", before)
		tx.Note("after", a.Spec)
		tx.Note("client_name", a.Registration.Name)
		tx.Touch(estover.AgentKind, id)
		a.Status = a.StatusAt(tx.Now())
		made.Agent = a
		return nil
	})
	if err != nil {
		return Registered{}, err
	}
	return made, nil
}

// says changes an agent to what it says of itself, within what it is.
func (a *Agent) says(m Metadata) error {
	var c Client
	if a.Client != nil {
		c = *a.Client
	}
	most := slices.Clone(c.GrantTypes)
	if a.Registration.Alone {
		most = append(most, alone)
	}
	if m.Method == "" {
		m.Method = a.Registration.Method
	}
	if m.Method != a.Registration.Method || !slices.Contains(c.Methods, m.Method) {
		return ErrMetadata.With("How a client authenticates is for good (token_endpoint_auth_method): it registers anew for another way.")
	}
	m, err := m.narrow(most, a.Registration.Redirects)
	if err != nil {
		return err
	}
	m.Scopes = a.Registration.Scopes // what it is granted is not changed by what it says
	m.into(&c)
	spec := a.Spec
	spec.Client = &c
	if spec, err = Check(spec); err != nil {
		return ErrMetadata.With("%s", sentence(err)).Because(err)
	}
	reg := *a.Registration
	reg.Metadata, reg.Alone = m, slices.Contains(m.GrantTypes, alone)
	a.Spec, a.Registration = spec, &reg
	return nil
}

// bound keeps a client that registered itself to the redirect URIs that somebody
// else gives it: none that was taken away comes back by what it says.
func (a *Agent) bound(c *Client) {
	if a.Registration == nil || c == nil || len(c.RedirectURIs) == 0 || a.Client != nil && slices.Equal(a.Client.RedirectURIs, c.RedirectURIs) {
		return
	}
	reg := *a.Registration
	reg.Redirects = slices.Clone(c.RedirectURIs)
	a.Registration = &reg
}

// replaceKeys gives an agent these keys in the place of those that it registered
// before, unless they are the same.
func replaceKeys(ctx context.Context, tx *guard.Tx, a Agent, id string, keys json.RawMessage) error {
	held, err := credentialsOf(ctx, tx.Tx, a.ID)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(held, func(c Credential) bool {
		return c.Kind == KeySet && (c.CreatedBy == registrar || c.CreatedBy == estover.Agent(a.ID))
	})
	switch {
	case i < 0: // somebody has retired them
		return ErrMetadata.With("The keys of the client were retired, and it does not bring them back. It registers anew.")
	case bytes.Equal(held[i].JWKS, keys):
		return nil
	}
	if err := endCredential(ctx, tx.Tx, a.ID, held[i].ID); err != nil {
		return err
	}
	tx.Note("credential", id)
	return insertCredential(ctx, tx.Tx, Credential{
		ID: id, Agent: a.ID, Kind: KeySet, Label: "its own registration", JWKS: keys,
		CreatedAt: tx.Now(), CreatedBy: estover.Agent(a.ID), ExpiresAt: held[i].ExpiresAt, Epoch: 1,
	})
}

// Unregister retires a client that wants to be one no more (RFC 7592, section
// 2.3), with everything that it has under way.
func (r *Registry) Unregister(ctx context.Context, from estover.Caller, id, token string) error {
	caller, hash, err := r.registrant(ctx, from, id, token)
	if err != nil {
		return err
	}
	return r.guard.Do(ctx, caller, guard.Op{Action: "registration.end", Target: target(id)}, func(tx *guard.Tx) error {
		a, err := lock(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if err := cmp.Or(checkRegistration(ctx, tx.Tx, id, hash), a.manages()); err != nil {
			return err
		}
		_, err = r.Raise(ctx, tx, id, Retirement, "The client ended its registration.", caller.Subject)
		return err
	})
}

// sentence is what an error says to a person.
func sentence(err error) string {
	var e *estover.Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return "it cannot be done."
}
