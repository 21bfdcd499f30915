package oauth

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/detail"
	"estover.dev/internal/page"
	"estover.dev/internal/token"
)

// The paths that browsers come to.
const (
	authorizePath = "/oauth/authorize"
	consentPath   = "/oauth/consent"

	// ConsentsPath is the page on which people see the agents that act for them,
	// below the issuer.
	ConsentsPath = "/oauth/consents"
)

// The errors of an authorization request (RFC 6749, section 4.1.2.1; OpenID
// Connect Core, section 3.1.2.6). What is wrong about the client or its redirect
// URI is told to the person, all the rest to the client.
var (
	errAsking       = &estover.Error{Kind: estover.Invalid, Code: "authorization_refused", Detail: "The application that sent you here is not known."}
	errResponseType = &estover.Error{Kind: estover.Invalid, Code: "unsupported_response_type", Detail: "The one response type is code."}
	errRequestJWT   = &estover.Error{Kind: estover.Invalid, Code: "request_not_supported", Detail: "Requests are not taken as a JWT. Push them instead."}
	errLogin        = &estover.Error{Kind: estover.Invalid, Code: "login_required", Detail: "The person would have to sign in."}
	errConsent      = &estover.Error{Kind: estover.Invalid, Code: "consent_required", Detail: "The person would have to be asked."}
	errDenied       = &estover.Error{Kind: estover.Denied, Code: "access_denied", Detail: "The person said no."}
)

// An ask is an authorization request as it was understood.
type ask struct {
	client     *token.Client
	redirect   string // where the browser goes back to; "" as long as that is not certain
	registered string // as which the client has registered it
	state      string
	scopes     []string // of resources
	identity   []string // of OpenID Connect, nil for nobody's
	resources  []string
	details    detail.List // asked for; once the reach is found, what the client would have
	nonce      string
	purpose    string
	challenge  string
	key        string // jkt that the code is bound to
	pushed     string // the value of the pushed request
	prompts    []string
	strong     bool          // whether the client wants a sign-in that cannot be phished
	maxAge     time.Duration // -1 for none
	reach      token.Reach
	query      string // the request as the browser brought it, to bring it again
}

// authorize answers a browser that a client has sent (RFC 6749, section 4.1.1).
func (d *Door) authorize(r *page.Request) error {
	if r.Method == http.MethodPost {
		f, err := readForm(r.Request)
		if err != nil {
			return err
		}
		r.Go(r.Path(authorizePath) + "?" + f.encode())
		return nil
	}
	a, err := d.asked(r.Context(), r.Tenant, r.URL.RawQuery)
	if err != nil {
		return d.refuse(r, a, err)
	}
	if done, err := d.signedIn(r, a); err != nil || !done {
		return d.refuse(r, a, err)
	}
	agreed, err := d.agreed(r, a)
	switch {
	case err != nil:
		return d.refuse(r, a, err)
	case agreed:
		return d.complete(r, a, nil)
	case slices.Contains(a.prompts, "none"):
		return d.refuse(r, a, errConsent)
	}
	// To let an agent act is sensitive: a passkey, and not one of this morning.
	if !r.Demand(agreeing, r.Path(authorizePath)+"?"+a.query) {
		return nil
	}
	return d.ask(r, a)
}

// agreeing is what is asked of a person who agrees to something.
var agreeing = page.Demand{Within: 30 * time.Minute, Strong: true}

// refuse tells the client what is wrong, or the person if it is not certain who
// the client is. A nil error says nothing: the browser is on its way elsewhere.
func (d *Door) refuse(r *page.Request, a *ask, err error) error {
	switch {
	case err == nil:
		return nil
	case a.redirect == "":
		return err
	}
	f, status := failureOf(err)
	if status >= http.StatusInternalServerError && r.Context().Err() == nil {
		d.Logger.Error("an authorization request failed", "request", r.From.Request, "error", err)
	}
	if f.Error == "invalid_client" {
		f.Error = "unauthorized_client"
	}
	r.Go(d.answer(r, a, "error", f.Error, "error_description", f.Description))
	return nil
}

// answer is where the browser goes back to, with an answer: always with the
// issuer, so that a client cannot take it for another server's (RFC 9207).
func (d *Door) answer(r *page.Request, a *ask, pairs ...string) string {
	if a.state != "" {
		pairs = append(pairs, "state", a.state)
	}
	pairs = append(pairs, "iss", d.Tokens.Issuer.Of(r.Tenant))
	var b strings.Builder
	b.WriteString(a.redirect)
	sep := "?"
	if strings.Contains(a.redirect, "?") {
		sep = "&"
	}
	for i := 0; i < len(pairs); i += 2 {
		b.WriteString(sep + pairs[i] + "=" + url.QueryEscape(pairs[i+1]))
		sep = "&"
	}
	return b.String()
}

// markField is the parameter in which a browser brings back since when the
// person must have signed in again.
const markField = "estover_since"

// maxState bounds what a client wants to hear again, in bytes.
const maxState = 4096

// maxNonce bounds what a client wants to read in an ID token, in bytes.
const maxNonce = 512

// asked reads an authorization request. As soon as it is certain where the
// browser may be sent back to, that is in what it returns, also with an error.
func (d *Door) asked(ctx context.Context, tenant estover.TenantID, query string) (*ask, error) {
	a := &ask{maxAge: -1}
	if len(query) > maxForm {
		return a, errTooLarge
	}
	f, err := parseForm(query)
	if err != nil {
		return a, errAsking.With("The application that sent you here sent a request that cannot be read: %s", sentence(err))
	}
	id := f.get("client_id")
	if !token.ClientID(id) {
		return a, errAsking
	}
	a.client, err = d.client(ctx, tenant, id)
	switch kind := estover.KindOf(err); {
	case kind == estover.NotFound, kind == estover.Unknown:
		return a, unknown(err)
	case err != nil:
		return a, err
	}
	a.query = f.without(markField).encode()
	if uri := f.get("request_uri"); uri != "" {
		a.query = form{{"client_id", id}, {"request_uri", uri}}.encode()
		if f, err = d.pulled(ctx, tenant, a, uri); err != nil {
			return a, errAsking.With("%s", sentence(err)).Because(err)
		}
	}
	if err := d.back(a, f); err != nil {
		return a, err
	}
	if a.client.RequirePAR && a.pushed == "" {
		return a, errRequest.With("The client must push its authorization requests.")
	}
	if err := a.client.Alive(ctx, d.now()); err != nil {
		return a, errMayNot.With("%s", sentence(err)).Because(err)
	}
	if err := a.read(f); err != nil {
		return a, err
	}
	return a, d.reach(ctx, tenant, a)
}

// wants reads what a client would have: scopes, resources, and what for.
func (a *ask) wants(f form) (err error) {
	if a.scopes, err = f.scopes(); err != nil {
		return err
	}
	a.identity, a.scopes = token.SplitScopes(a.scopes)
	if a.resources, err = resources(f.all("resource")); err != nil {
		return err
	}
	if a.details, err = f.details(); err != nil {
		return err
	}
	if a.purpose = f.get("purpose"); a.purpose == "" && len(a.client.Purposes) > 0 {
		a.purpose = a.client.Purposes[0]
	}
	if !slices.Contains(a.client.Purposes, a.purpose) {
		return errRequest.With("The agent has not declared this purpose.")
	}
	return nil
}

// reach finds what the client would have of what it asks for. One that wants to
// know who the person is need not want anything else.
func (d *Door) reach(ctx context.Context, tenant estover.TenantID, a *ask) (err error) {
	issuer := d.Tokens.Issuer.Of(tenant)
	wanted := a.resources
	if a.identity != nil {
		wanted = slices.DeleteFunc(slices.Clone(wanted), func(r string) bool { return r == issuer })
		if len(wanted) == 0 && len(a.scopes) == 0 && len(a.details) == 0 {
			a.reach = token.Reach{issuer: a.identity}
			return nil
		}
		if len(wanted) == 0 {
			wanted = nil
		}
	}
	a.reach, a.details, err = d.Tokens.Reach(ctx, tenant, a.client, a.purpose, wanted, a.scopes, a.details)
	if err == nil && a.identity != nil {
		a.reach[issuer] = a.identity
	}
	return err
}

// back makes certain where the browser may be sent back to (RFC 9700, section
// 4.1.3).
func (d *Door) back(a *ask, f form) error {
	if !a.client.May(token.Consented) {
		return errAsking.With("The agent that sent you here is not registered to be sent people to.")
	}
	redirect, registered, ok := a.client.Redirect(f.get("redirect_uri"))
	if !ok {
		return errAsking.With("The agent that sent you here wants you to be sent on to an address that is not registered for it.")
	}
	a.redirect, a.registered = redirect, registered
	if a.state = f.get("state"); len(a.state) > maxState {
		a.state = ""
		return errRequest.With("The state is longer than %d bytes.", maxState)
	}
	return nil
}

// read reads the rest of the parameters.
func (a *ask) read(f form) (err error) {
	switch {
	case f.get("request") != "":
		return errRequestJWT
	case f.get("response_type") != "code":
		return errResponseType
	case f.get("response_mode") != "" && f.get("response_mode") != "query":
		return errRequest.With("The one response mode is query.")
	}
	// RFC 7636, section 4.3. A method that is left out would be plain.
	a.challenge = f.get("code_challenge")
	switch {
	case a.challenge == "":
		return errRequest.With("The parameter code_challenge is missing.")
	case f.get("code_challenge_method") != "S256":
		return errRequest.With("The one code_challenge_method is S256.")
	case !thumbprint(a.challenge):
		return errRequest.With("The code_challenge is not the SHA-256 of a verifier.")
	}
	if a.key = f.get("dpop_jkt"); a.key != "" && !thumbprint(a.key) {
		return errRequest.With("The dpop_jkt is not the thumbprint of a key.")
	}
	if err := a.wants(f); err != nil {
		return err
	}
	if a.nonce = f.get("nonce"); len(a.nonce) > maxNonce {
		return errRequest.With("The nonce is longer than %d bytes.", maxNonce)
	}
	a.prompts = strings.Fields(f.get("prompt"))
	for _, p := range a.prompts {
		if !slices.Contains([]string{"none", "login", "consent", "select_account"}, p) || p == "none" && len(a.prompts) > 1 {
			return errRequest.With("The prompt is none, or of login, consent and select_account.")
		}
	}
	// OpenID Connect Core, section 3.1.2.1, and RFC 9470, section 4: there is one
	// class to be asked for, and what is not known is no error.
	a.strong = slices.Contains(strings.Fields(f.get("acr_values")), token.Phishproof)
	if text := f.get("max_age"); text != "" {
		seconds, err := strconv.Atoi(text)
		if err != nil || seconds < 0 || seconds > 1e9 {
			return errRequest.With("The max_age is not a number of seconds.")
		}
		a.maxAge = time.Duration(seconds) * time.Second
	}
	return nil
}

// thumbprint reports whether s is a SHA-256 in base64url.
func thumbprint(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == 32
}

// shortest is the least max_age for which a sign-in is looked at again when the
// browser comes back from it; less asks for one sign-in from now on.
const shortest = time.Minute

// signedIn reports whether somebody is signed in as the request wants it. If
// not, the browser was sent to the sign-in page, unless that is refused.
func (d *Door) signedIn(r *page.Request, a *ask) (bool, error) {
	demand := page.Demand{Strong: a.strong}
	to := r.Path(authorizePath) + "?" + a.query
	again := slices.Contains(a.prompts, "login") || slices.Contains(a.prompts, "select_account") || 0 <= a.maxAge && a.maxAge < shortest
	switch since, ok := r.Marked(r.URL.Query().Get(markField)); {
	case again && ok:
		demand.After = since
	case again:
		demand.After = r.Now()
	case a.maxAge > 0:
		demand.Within = a.maxAge
	}
	if slices.Contains(a.prompts, "none") {
		if !demand.Meets(r.Visit, r.Now()) {
			return false, errLogin
		}
		return true, nil
	}
	if again && !demand.Meets(r.Visit, r.Now()) {
		to += "&" + markField + "=" + r.Mark()
	}
	return r.Demand(demand, to), nil
}

// authorization is the request as the person who is signed in would grant it.
func (d *Door) authorization(r *page.Request, a *ask, who Requester) token.Authorization {
	return token.Authorization{
		Person: r.Visit.Caller, Auth: token.AuthOf(r.Visit.Since, r.Visit.Methods), Client: a.client, Redirect: a.redirect, Registered: a.registered,
		Purpose: a.purpose, Reach: a.reach, Details: a.details, Digest: who.Digest, Challenge: a.challenge, Key: a.key, Nonce: a.nonce, Pushed: a.pushed,
	}
}

// agreed reports whether the person need not be asked, because they were before.
// A program on their own machine that cannot prove to be the one (RFC 8252,
// section 8.6) is asked about each time.
func (d *Door) agreed(r *page.Request, a *ask) (bool, error) {
	if slices.Contains(a.prompts, "consent") || slices.Contains(a.client.Methods, token.Public) && !strings.HasPrefix(a.registered, "https://") {
		return false, nil
	}
	who, err := d.who(r.Context(), r.Tenant, a.client)
	if err != nil {
		return false, err
	}
	return d.Tokens.Agreed(r.Context(), d.authorization(r, a, who))
}

// complete sends the browser back with a code. With an answer the person has
// just agreed.
func (d *Door) complete(r *page.Request, a *ask, answer *page.Posted) error {
	who, err := d.who(r.Context(), r.Tenant, a.client)
	if err != nil {
		return d.refuse(r, a, err)
	}
	grant := d.authorization(r, a, who)
	if answer != nil {
		grant.Asked = true
		grant.Form = onceOf(r, *answer)
	}
	code, err := d.Tokens.Authorize(r.Context(), grant)
	switch {
	case errors.Is(err, token.ErrFormUsed), errors.Is(err, token.ErrPushed):
		return err // the client has its answer already, or another one
	case errors.Is(err, token.ErrConsent):
		return d.ask(r, a) // it was taken back in this very moment
	case err != nil:
		return d.refuse(r, a, err)
	}
	r.Go(d.answer(r, a, "code", code))
	return nil
}
