package login

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"estover.dev"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/page"
)

// The paths of sign-in at another provider: where it begins, and where the
// browser comes back to.
const (
	withPath = page.SignInPath + "/with/{provider}"
	backPath = page.SignInPath + "/back/{provider}"
)

// Errors of signing in elsewhere.
var (
	errUpstream = &estover.Error{Kind: estover.Unavailable, Code: "provider_unavailable", Detail: "The identity provider does not answer as it should. Try again, and tell your administrator if it goes on."}
	errRefused  = &estover.Error{Kind: estover.Denied, Code: "provider_refused", Detail: "The identity provider did not let you in."}
	errWhen     = &estover.Error{Kind: estover.Denied, Code: "provider_says_no_time", Detail: "The identity provider does not say when you have shown it who you are (auth_time), so that it cannot be asked once more. Use a passkey, or tell your administrator."}
	errAnswer   = &estover.Error{Kind: estover.Denied, Code: "provider_answer_refused", Detail: "What the identity provider answered does not belong to a sign-in that this browser has begun. Start again."}
)

// algorithms are those by which ID tokens may be signed: no shared secret, and
// not none.
var algorithms = []string{oidc.RS256, oidc.PS256, oidc.ES256, oidc.ES384, oidc.EdDSA}

// An upstream is a provider whose metadata has been read.
type upstream struct {
	epoch    int64
	read     time.Time
	client   *http.Client
	metadata *oidc.Provider
	saysWho  bool  // its answers carry iss (RFC 9207)
	inBody   bool  // client secrets stand in the body there, and not in the header
	failed   error // why there is none
}

// upstreams remembers the metadata of providers. Keys are the library's to
// fetch, when one is used that is not known.
type upstreams struct {
	mu   sync.Mutex
	byID map[string]*upstream
}

// metadataLife is how long metadata is believed, and failureLife how long nobody
// asks again a provider that did not answer.
const (
	metadataLife = 10 * time.Minute
	failureLife  = 10 * time.Second
)

// upstream reads what a provider says of itself, if that was not done lately.
func (d *Door) upstream(ctx context.Context, tenant estover.TenantID, p directory.Provider) (*upstream, error) {
	now := d.Pages.Now()
	d.known.mu.Lock()
	u := d.known.byID[p.ID]
	d.known.mu.Unlock()
	if u != nil && u.epoch == p.Epoch {
		if age := now.Sub(u.read); u.failed == nil && age < metadataLife || u.failed != nil && age < failureLife {
			return u, u.failed
		}
	}
	fetcher, err := d.Fetcher(ctx, tenant, p)
	if err != nil {
		return nil, err
	}
	u = &upstream{epoch: p.Epoch, read: now, client: &http.Client{
		Transport:     outbound{fetcher},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	u.discover(ctx, p.Issuer)
	if ctx.Err() == nil { // else it was the browser that went away
		d.known.mu.Lock()
		defer d.known.mu.Unlock()
		d.known.byID[p.ID] = u
	}
	return u, u.failed
}

// discover reads the metadata of an issuer, which must be its own (OpenID
// Connect Discovery, section 4.3).
func (u *upstream) discover(ctx context.Context, issuer string) {
	var says struct {
		Issuer  bool     `json:"authorization_response_iss_parameter_supported"`
		Methods []string `json:"token_endpoint_auth_methods_supported"`
	}
	var err error
	if u.metadata, err = oidc.NewProvider(oidc.ClientContext(ctx, u.client), issuer); err == nil {
		err = u.metadata.Claims(&says)
	}
	if err != nil {
		u.failed = errUpstream.Because(err)
	}
	u.saysWho = says.Issuer
	u.inBody = len(says.Methods) > 0 && !slices.Contains(says.Methods, "client_secret_basic")
}

// outbound lets a library go out by the one way that there is.
type outbound struct{ fetcher *edge.Fetcher }

// RoundTrip fetches a document, within the bounds of keys.
func (o outbound) RoundTrip(r *http.Request) (*http.Response, error) {
	doc, err := o.fetcher.Do(r, edge.MaxKeys)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: doc.Status, Status: http.StatusText(doc.Status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: doc.Header, Body: io.NopCloser(bytes.NewReader(doc.Body)), ContentLength: int64(len(doc.Body)), Request: r,
	}, nil
}

// begun is what is remembered of a sign-in that was begun, in its state.
type begun struct {
	To    string `json:"to"`
	Again bool   `json:"again,omitempty"` // that the person was to show once more who they are
}

// flow is a provider as a client of it uses it.
func (d *Door) flow(r *page.Request) (directory.Provider, *upstream, *oauth2.Config, error) {
	name := r.PathValue("provider")
	all, err := d.People.Providers(r.Context(), r.Tenant)
	if err != nil {
		return directory.Provider{}, nil, nil, err
	}
	i := slices.IndexFunc(all, func(p directory.Provider) bool { return p.Name == name })
	if i < 0 || d.Fetcher == nil {
		return directory.Provider{}, nil, nil, directory.ErrProviderNotFound.With("Nobody signs in by a provider of this name.")
	}
	p := all[i]
	u, err := d.upstream(r.Context(), r.Tenant, p)
	if err != nil {
		return p, nil, nil, err
	}
	endpoint := u.metadata.Endpoint()
	endpoint.AuthStyle = oauth2.AuthStyleInHeader // not found out by trying, which would cost the code
	if u.inBody || p.Secret == "" {
		endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	return p, u, &oauth2.Config{
		ClientID: p.ClientID, Endpoint: endpoint, Scopes: []string{oidc.ScopeOpenID, "profile", "email"},
		RedirectURL: d.Issuer.Of(r.Tenant) + page.SignInPath + "/back/" + p.Name,
	}, nil
}

// with sends a browser to sign in elsewhere. What it brings back is bound to it
// by its state; the verifier and the nonce follow from the state, and only we can
// say how.
func (d *Door) with(r *page.Request) error {
	p, _, c, err := d.flow(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	note, err := json.Marshal(begun{To: back(r, q.Get("to")), Again: q.Get("again") != ""})
	if err != nil {
		return err
	}
	state := r.Seal("with "+p.ID, note, ceremonyLife)
	options := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(r.Derive("verifier", state)), oidc.Nonce(r.Derive("nonce", state))}
	if q.Get("again") != "" {
		options = append(options, oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "0"))
	}
	r.Go(c.AuthCodeURL(state, options...))
	return nil
}

// returned takes what a provider has answered (OpenID Connect Core, section 3.1.2.5
// and on).
func (d *Door) returned(r *page.Request) error {
	if err := d.allowed(r); err != nil {
		return err
	}
	p, u, c, err := d.flow(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	state := q.Get("state")
	note, expires, ok := r.Open("with "+p.ID, state)
	var b begun
	if !ok || json.Unmarshal(note, &b) != nil {
		return errAnswer
	}
	// RFC 9207, section 2.4: an answer of another server is none.
	if iss := q.Get("iss"); iss != "" && iss != p.Issuer || iss == "" && u.saysWho {
		return d.unvouched(r, p, errAnswer.With("The answer is not from the identity provider that this browser was sent to."))
	}
	if code := q.Get("error"); code != "" {
		return errRefused.With("The identity provider did not let you in (%.60s).", printable(code))
	}
	identity, since, err := d.identity(r, p, u, c, q.Get("code"), state)
	if err == nil && b.Again && since.IsZero() { // OpenID Connect Core, section 3.1.2.1: with max_age there must be one
		err = errWhen
	}
	if err != nil {
		return d.unvouched(r, p, err)
	}
	browser := directory.Browser{From: r.From, Previous: r.Visit}
	value, err := d.People.Federated(r.Context(), browser, p.ID, identity, directory.Answer{Challenge: state, Expires: expires}, since)
	if err != nil {
		if errors.Is(err, directory.ErrStranger) && !d.failures.Allow(edge.AddressKey(r.From.Address)) {
			return errTooOften
		}
		return d.failed(r, err)
	}
	r.Enter(value)
	r.Go(b.To)
	return nil
}

// unvouched records that a provider's answer let nobody in, now and then, and
// logs each with its reason: what is wrong with a token may be an attack.
func (d *Door) unvouched(r *page.Request, p directory.Provider, why error) error {
	if estover.KindOf(why) != estover.Denied {
		return why
	}
	d.Logger.Warn("an identity provider's answer was refused", "provider", p.Name, "tenant", r.Tenant, "address", r.From.Address, "request", r.From.Request, "error", why)
	if d.suspects.Allow(string(r.Tenant) + "/" + p.ID) {
		if err := d.People.Unvouched(r.Context(), r.From, p.ID, why); err != nil {
			d.Logger.Error("a refused answer could not be recorded", "provider", p.ID, "error", err)
		}
	}
	return why
}

// identity exchanges the code and checks what comes: whom the provider vouches
// for, and since when that has been known.
func (d *Door) identity(r *page.Request, p directory.Provider, u *upstream, c *oauth2.Config, code, state string) (i directory.Identity, since time.Time, err error) {
	ctx := oidc.ClientContext(r.Context(), u.client)
	if p.Secret != "" {
		secret, err := d.Secret(ctx, r.Tenant, p.Secret, tokenHost(c.Endpoint.TokenURL))
		if err != nil {
			return i, since, errUpstream.With("The secret of the identity provider cannot be used. Tell your administrator.").Because(err)
		}
		c.ClientSecret = string(secret.Reveal())
	}
	tok, err := c.Exchange(ctx, code, oauth2.VerifierOption(r.Derive("verifier", state)))
	if err != nil {
		var answer *oauth2.RetrieveError
		if errors.As(err, &answer) && answer.Response.StatusCode < http.StatusInternalServerError {
			return i, since, errAnswer.Because(errors.New(printable(answer.ErrorCode)))
		}
		return i, since, errUpstream.Because(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	verified, err := u.metadata.Verifier(&oidc.Config{ClientID: p.ClientID, SupportedSigningAlgs: algorithms, Now: d.Pages.Now}).Verify(ctx, raw)
	if err != nil {
		return i, since, errAnswer.Because(err)
	}
	if err := verified.Claims(&i.Claims); err != nil {
		return i, since, errAnswer.Because(err)
	}
	azp, _ := i.Claims["azp"].(string)
	switch {
	case verified.Nonce != r.Derive("nonce", state):
		return i, since, errAnswer.With("The answer belongs to another sign-in. Start again.")
	case azp != "" && azp != p.ClientID, azp == "" && len(verified.Audience) > 1:
		return i, since, errAnswer.With("The answer is for another application.")
	case verified.Subject == "" || len(verified.Subject) > 255:
		return i, since, errAnswer
	}
	if at, ok := i.Claims["auth_time"].(float64); ok && at > 0 {
		since = time.Unix(int64(at), 0)
	}
	i.Subject = verified.Subject
	return i, since, u.complete(ctx, tok, &i)
}

// complete asks a provider whose ID tokens say little for the rest (OpenID
// Connect Core, section 5.3). What the token says itself stands.
func (u *upstream) complete(ctx context.Context, tok *oauth2.Token, i *directory.Identity) error {
	if _, ok := i.Claims["email"]; ok || u.metadata.UserInfoEndpoint() == "" {
		return nil
	}
	info, err := u.metadata.UserInfo(ctx, oauth2.StaticTokenSource(tok))
	if err != nil {
		return errUpstream.Because(err)
	}
	var more map[string]any
	if err := info.Claims(&more); err != nil || info.Subject != i.Subject { // section 5.3.2: of somebody else
		return errAnswer.Because(err)
	}
	for _, name := range []string{"email_verified", "xms_edov"} { // about another address
		delete(i.Claims, name)
	}
	for name, value := range more {
		if _, ok := i.Claims[name]; !ok {
			i.Claims[name] = value
		}
	}
	return nil
}

// tokenHost is the host and port of a token endpoint, as secrets name their
// destinations.
func tokenHost(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// printable leaves of a stranger's word what can be shown.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// An elsewhere is a button of the sign-in page.
type elsewhere struct{ Title, At string }

// elsewheres are the providers by which people may sign in.
func (d *Door) elsewheres(r *page.Request, to string, again bool) (all []elsewhere, err error) {
	if d.Fetcher == nil {
		return nil, nil
	}
	providers, err := d.People.Providers(r.Context(), r.Tenant)
	q := url.Values{"to": {to}}
	if again {
		q.Set("again", "1")
	}
	for _, p := range providers {
		all = append(all, elsewhere{p.Heading(), r.Path(page.SignInPath+"/with/"+p.Name) + "?" + q.Encode()})
	}
	return all, err
}
