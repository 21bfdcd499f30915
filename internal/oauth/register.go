package oauth

import (
	"context"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/edge"
	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

// registerPath is where clients register themselves, and manage what they said
// below it, by their client_id (RFC 7591, section 3; RFC 7592, section 2).
const registerPath = "/oauth/register"

// Registrations are the clients that register themselves.
type Registrations interface {
	// Registering reports whether clients may do so.
	Registering(ctx context.Context, tenant estover.TenantID) (bool, error)

	Register(ctx context.Context, from estover.Caller, initial string, m agent.Metadata) (agent.Registered, error)
	Registration(ctx context.Context, from estover.Caller, id, token string) (agent.Agent, error)
	Reregister(ctx context.Context, from estover.Caller, id, token, secret string, m agent.Metadata) (agent.Registered, error)
	Unregister(ctx context.Context, from estover.Caller, id, token string) error
}

// The errors of software statements (RFC 7591, section 3.2.2).
var (
	errStatement    = &estover.Error{Kind: estover.Invalid, Code: "invalid_software_statement", Detail: "The software statement is not a signed JWT."}
	errNotStatement = &estover.Error{Kind: estover.Invalid, Code: "unapproved_software_statement", Detail: "Nobody's software statements count here. Register without one, with an initial access token."}
	errTooOftenHere = errTooOften.With("Too many registrations from this address have failed. Wait a moment.")
)

// The bounds of what a client says of itself.
const (
	maxSaid     = 2048 // bytes of a text
	maxContacts = 10
)

// How often attempts to register may fail.
const registrationsPerSecond, registrationsAtOnce = 1, 20 // an address

// registration answers a client that registers itself, or manages what it said.
func (d *Door) registration(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	o := edge.OriginOf(r)
	from := estover.Caller{Tenant: tenant, Address: o.Address, Request: o.Request}
	open, err := d.Registrations.Registering(r.Context(), tenant)
	if err == nil && !open {
		err = agent.ErrRegistrationOff
	}
	key := edge.AddressKey(o.Address)
	if err == nil && d.registrations.Exhausted(key) {
		err = errTooOftenHere
	}
	var body []byte
	status := http.StatusOK
	if err == nil {
		body, status, err = d.registered(r, from)
		switch estover.KindOf(err) {
		case estover.Unknown, estover.Invalid, estover.Denied, estover.Conflict:
			d.registrations.Allow(key)
		}
	}
	if err != nil {
		switch estover.KindOf(err) {
		case estover.Unknown:
			w.Header().Set("WWW-Authenticate", `Bearer realm="estover", error="invalid_token"`) // RFC 6750, section 3
		case estover.Denied: // RFC 7592, section 2: of a client that is held, for one
			err = refusedHere{err}
		}
		d.fail(w, r, err)
		return
	}
	if body == nil {
		answerNothing(w)
		return
	}
	answer(w, status, jsonType, body)
}

// registered does what a request asks, and says what is registered then.
func (d *Door) registered(r *http.Request, from estover.Caller) (body []byte, status int, err error) {
	ctx, id := r.Context(), r.PathValue("id")
	value, err := bearer(r)
	if err != nil {
		return nil, 0, err
	}
	if id != "" && !token.ClientID(id) {
		return nil, 0, agent.ErrRegistrationToken
	}
	switch {
	case id == "":
		m, _, err := readMetadata(r, "")
		if err != nil {
			return nil, 0, err
		}
		made, err := d.Registrations.Register(ctx, from, value, m)
		if err != nil {
			return nil, 0, err
		}
		body, err = d.information(from.Tenant, &made.Agent, string(made.Token.Reveal()), string(made.Secret.Reveal()))
		return body, http.StatusCreated, err
	case r.Method == http.MethodDelete:
		return nil, 0, d.Registrations.Unregister(ctx, from, id, value)
	case r.Method == http.MethodPut:
		m, secret, err := readMetadata(r, id)
		if err != nil {
			return nil, 0, err
		}
		made, err := d.Registrations.Reregister(ctx, from, id, value, secret, m)
		if err != nil {
			return nil, 0, err
		}
		body, err = d.information(from.Tenant, &made.Agent, string(made.Token.Reveal()), "")
		return body, http.StatusOK, err
	}
	a, err := d.Registrations.Registration(ctx, from, id, value)
	if err != nil {
		return nil, 0, err
	}
	body, err = d.information(from.Tenant, &a, value, "")
	return body, http.StatusOK, err
}

// bearer is the one token of a request (RFC 6750, section 2.1); "" for none.
func bearer(r *http.Request) (string, error) {
	headers := r.Header["Authorization"]
	if len(headers) > 1 {
		return "", errRequest.With("There is more than one header Authorization.")
	}
	if len(headers) == 0 {
		return "", nil
	}
	scheme, value, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", nil
	}
	return strings.TrimLeft(value, " "), nil
}

// readMetadata reads what a client says of itself. With an id it is an update,
// which names the client and may bring its secret.
func readMetadata(r *http.Request, id string) (m agent.Metadata, secret string, err error) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != jsonType {
		return m, "", errRequest.With("The body is JSON, with the type %s.", jsonType)
	}
	if r.Header.Get("Content-Encoding") != "" {
		return m, "", errRequest.With("The body is not compressed.")
	}
	if r.ContentLength > maxForm {
		return m, "", errTooLarge
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxForm+1))
	switch {
	case err != nil:
		return m, "", errRequest.With("The body could not be read.").Because(err)
	case len(body) > maxForm:
		return m, "", errTooLarge
	}
	return parseMetadata(body, id)
}

// parseMetadata reads a registration (RFC 7591, section 2) or, with an id, an
// update (RFC 7592, section 2.2), strictly: a name that comes twice is an error.
// What is not known is not looked at.
func parseMetadata(body []byte, id string) (m agent.Metadata, secret string, err error) {
	var w struct {
		Name            string         `json:"client_name"`
		URI             string         `json:"client_uri"`
		Logo            string         `json:"logo_uri"`
		Terms           string         `json:"tos_uri"`
		Policy          string         `json:"policy_uri"`
		Contacts        []string       `json:"contacts"`
		SoftwareID      string         `json:"software_id"`
		SoftwareVersion string         `json:"software_version"`
		ApplicationType string         `json:"application_type"`
		GrantTypes      []string       `json:"grant_types"`
		ResponseTypes   []string       `json:"response_types"`
		Redirects       []string       `json:"redirect_uris"`
		Method          string         `json:"token_endpoint_auth_method"`
		Scope           *string        `json:"scope"`
		JWKS            jsontext.Value `json:"jwks"`
		JWKSURI         string         `json:"jwks_uri"`
		DPoP            bool           `json:"dpop_bound_access_tokens"`
		Certificate     bool           `json:"tls_client_certificate_bound_access_tokens"`
		PAR             bool           `json:"require_pushed_authorization_requests"`
		IDToken         string         `json:"id_token_signed_response_alg"`
		Statement       jsontext.Value `json:"software_statement"`

		ID      string         `json:"client_id"`
		Secret  string         `json:"client_secret"`
		Token   jsontext.Value `json:"registration_access_token"`
		At      jsontext.Value `json:"registration_client_uri"`
		Issued  jsontext.Value `json:"client_id_issued_at"`
		Expires jsontext.Value `json:"client_secret_expires_at"`
	}
	if err := json.Unmarshal(body, &w); err != nil {
		return m, "", agent.ErrMetadata.With("The body is not a JSON object of client metadata that can be read in one way alone.").Because(err)
	}
	switch {
	case w.Statement != nil:
		return m, "", statement(w.Statement)
	case w.JWKSURI != "":
		return m, "", agent.ErrMetadata.With("Keys are not fetched (jwks_uri). Send them along, as jwks, and again when they change.")
	case id == "" && (w.ID != "" || w.Secret != ""):
		return m, "", agent.ErrMetadata.With("A client chooses neither its client_id nor its client_secret.")
	case id != "" && w.ID != id:
		return m, "", agent.ErrMetadata.With("The client_id in the body is not that of the registration.")
	case id != "" && (w.Token != nil || w.At != nil || w.Issued != nil || w.Expires != nil): // RFC 7592, section 2.2
		return m, "", agent.ErrMetadata.With("An update has none of registration_access_token, registration_client_uri, client_id_issued_at and client_secret_expires_at.")
	}
	m = agent.Metadata{
		Name: clientName(w.Name), URI: w.URI, Logo: w.Logo, Terms: w.Terms, Policy: w.Policy, Contacts: w.Contacts,
		SoftwareID: w.SoftwareID, SoftwareVersion: w.SoftwareVersion, ApplicationType: w.ApplicationType,
		GrantTypes: w.GrantTypes, ResponseTypes: w.ResponseTypes, RedirectURIs: w.Redirects, Method: w.Method,
		DPoPBound: w.DPoP, CertificateBound: w.Certificate, RequirePAR: w.PAR, IDTokenAlgorithm: w.IDToken,
	}
	if w.Scope != nil {
		f := form{{"scope", *w.Scope}}
		if m.Scopes, err = f.scopes(); err != nil {
			return m, "", agent.ErrMetadata.With("%s", sentence(err))
		}
		if m.Scopes == nil {
			m.Scopes = []string{}
		}
	}
	if w.JWKS != nil && w.JWKS.Kind() != 'n' {
		if _, err := jose.ParseKeys(w.JWKS); err != nil {
			return m, "", agent.ErrMetadata.With("The keys cannot be used (jwks): %s", sentence(err)).Because(err)
		}
		m.JWKS = []byte(w.JWKS)
	}
	return m, w.Secret, bounded(&m)
}

// statement is what is said to a client that comes with a software statement.
// RFC 7591, section 2.3, lets a server ignore it; but who sends one expects that
// what it vouches for counts.
func statement(v jsontext.Value) error {
	var text string
	if err := json.Unmarshal(v, &text); err != nil {
		return errStatement
	}
	if _, err := jose.Peek(text); err != nil {
		return errStatement.With("The software statement is not a signed JWT: %s", sentence(err)).Because(err)
	}
	return errNotStatement
}

// bounded says what is too large, or no URL, of what a client says of itself.
func bounded(m *agent.Metadata) error {
	for _, one := range []struct{ name, value string }{
		{"client_uri", m.URI}, {"logo_uri", m.Logo}, {"tos_uri", m.Terms}, {"policy_uri", m.Policy},
	} {
		if one.value == "" {
			continue
		}
		if u, err := url.Parse(one.value); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || len(one.value) > maxSaid {
			return agent.ErrMetadata.With("The %s is not a URL that begins with https://.", one.name)
		}
	}
	if len(m.Contacts) > maxContacts {
		return agent.ErrMetadata.With("There are at most %d contacts.", maxContacts)
	}
	for _, text := range slices.Concat(m.Contacts, m.GrantTypes, m.ResponseTypes, m.RedirectURIs, []string{m.SoftwareID, m.SoftwareVersion}) {
		if len(text) > maxSaid || !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
			return agent.ErrMetadata.With("A text has up to %d bytes.", maxSaid)
		}
	}
	if n := max(len(m.GrantTypes), len(m.ResponseTypes), len(m.RedirectURIs)); n > maxParameters {
		return agent.ErrMetadata.With("A list has up to %d members.", maxParameters)
	}
	return nil
}

// An information is what is registered of a client (RFC 7591, section 3.2.1;
// RFC 7592, section 3).
type information struct {
	ID        string `json:"client_id"`
	IssuedAt  int64  `json:"client_id_issued_at"`
	Secret    string `json:"client_secret,omitempty"`
	ExpiresAt *int64 `json:"client_secret_expires_at,omitempty"` // 0 for never
	Token     string `json:"registration_access_token"`
	At        string `json:"registration_client_uri"`

	Name             string         `json:"client_name,omitempty"`
	URI              string         `json:"client_uri,omitempty"`
	Logo             string         `json:"logo_uri,omitempty"`
	Terms            string         `json:"tos_uri,omitempty"`
	Policy           string         `json:"policy_uri,omitempty"`
	Contacts         []string       `json:"contacts,omitempty"`
	SoftwareID       string         `json:"software_id,omitempty"`
	SoftwareVersion  string         `json:"software_version,omitempty"`
	ApplicationType  string         `json:"application_type"`
	GrantTypes       []string       `json:"grant_types"`
	ResponseTypes    []string       `json:"response_types"`
	RedirectURIs     []string       `json:"redirect_uris,omitempty"`
	Method           string         `json:"token_endpoint_auth_method"`
	Scope            string         `json:"scope,omitempty"`
	JWKS             jsontext.Value `json:"jwks,omitempty"`
	DPoPBound        bool           `json:"dpop_bound_access_tokens,omitzero"`
	CertificateBound bool           `json:"tls_client_certificate_bound_access_tokens,omitzero"`
	RequirePAR       bool           `json:"require_pushed_authorization_requests,omitzero"`
	IDTokenAlgorithm string         `json:"id_token_signed_response_alg,omitempty"`
}

// information is the answer about a client: what is registered, which may be
// less than it asked for.
func (d *Door) information(tenant estover.TenantID, a *agent.Agent, registration, secret string) ([]byte, error) {
	m := a.Registration
	i := information{
		ID: a.ID, IssuedAt: a.CreatedAt.Unix(), Secret: secret, Token: registration, At: d.Tokens.Issuer.Of(tenant) + registerPath + "/" + a.ID,
		Name: m.Name, URI: m.URI, Logo: m.Logo, Terms: m.Terms, Policy: m.Policy, Contacts: m.Contacts,
		SoftwareID: m.SoftwareID, SoftwareVersion: m.SoftwareVersion, ApplicationType: m.ApplicationType,
		GrantTypes: []string{}, ResponseTypes: []string{}, Method: m.Method, Scope: strings.Join(m.Scopes, " "), JWKS: jsontext.Value(m.JWKS),
	}
	if secret != "" {
		expires := int64(0)
		if !a.ExpiresAt.IsZero() {
			expires = a.ExpiresAt.Unix()
		}
		i.ExpiresAt = &expires
	}
	if m.Alone {
		i.GrantTypes = append(i.GrantTypes, token.Own)
	}
	if c := a.Client; c != nil { // as it is by now, whoever made it so
		i.GrantTypes = append(i.GrantTypes, c.GrantTypes...)
		i.RedirectURIs, i.IDTokenAlgorithm = c.RedirectURIs, c.IDTokenAlgorithm
		i.DPoPBound, i.CertificateBound, i.RequirePAR = c.DPoPBound, c.CertificateBound, c.RequirePAR
	}
	if slices.Contains(i.GrantTypes, token.Consented) {
		i.ResponseTypes = append(i.ResponseTypes, "code")
	}
	return json.Marshal(i)
}

// answerNothing is the answer to what was ended (RFC 7592, section 2.3).
func answerNothing(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusNoContent)
}
