package oauth

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/token"
)

const parPath = "/oauth/par"

// pushedPrefix begins the request_uri of what was pushed (RFC 9126, section
// 2.2).
const pushedPrefix = "urn:ietf:params:oauth:request_uri:"

// authenticating are the parameters by which a client authenticates, which are
// no part of what it asks for.
var authenticating = []string{"client_secret", "client_assertion", "client_assertion_type"}

// par takes an authorization request from the client itself (RFC 9126). It is
// checked as it will be when a browser comes with it, but for the person.
func (d *Door) par(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	value, err := d.push(w, r, tenant)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	body := `{"request_uri":"` + pushedPrefix + value + `","expires_in":` + strconv.Itoa(int(token.PushedLife.Seconds())) + `}`
	answer(w, http.StatusCreated, jsonType, []byte(body))
}

func (d *Door) push(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) (string, error) {
	a, f, err := d.apart(w, r, tenant)
	if err != nil {
		return "", err
	}
	if a.method == token.Public && !d.strangers.Allow(edge.AddressKey(a.caller.Address)) {
		return "", errPushes
	}
	switch {
	case f.get("request_uri") != "":
		return "", errRequest.With("A pushed request does not point to another one.")
	case a.confirm.Key != "" && f.get("dpop_jkt") != "" && f.get("dpop_jkt") != a.confirm.Key: // RFC 9449, section 10.1
		return "", errRequest.With("The dpop_jkt is not that of the key that was shown.")
	case a.confirm.Key != "" && f.get("dpop_jkt") == "":
		f = append(f, parameter{"dpop_jkt", a.confirm.Key})
	}
	asked := &ask{client: a.client, maxAge: -1}
	if err := d.back(asked, f); err != nil {
		return "", errRequest.With("%s", sentence(err)).Because(err)
	}
	if err := asked.read(f); err != nil {
		return "", err
	}
	if asked.details != nil { // RFC 9396, section 5: it is told at once what cannot be
		if err := d.reach(r.Context(), tenant, asked); err != nil {
			return "", err
		}
	}
	return d.Tokens.Push(r.Context(), tenant, a.client.ID, f.only(askedFields...).encode())
}

// askedFields are the parameters of an authorization request. Nothing else is kept
// of what is pushed.
var askedFields = []string{
	"response_type", "response_mode", "redirect_uri", "state", "code_challenge", "code_challenge_method", "dpop_jkt", "scope", "resource",
	"purpose", "prompt", "max_age", "acr_values", "nonce", "login_hint", "authorization_details",
}

// errPushes is told to whoever pushes in the name of a client that does not
// authenticate, which anybody may.
var errPushes = errTooOften.With("Too many requests were pushed from this address. Wait a moment.")

// apart reads a request that a client sends before a person is asked, and apart
// from them. The form that it gives says what is asked for, and nothing of how
// the client authenticated. What the request presents once is used up.
func (d *Door) apart(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) (a authenticated, f form, err error) {
	if f, err = readForm(r); err != nil {
		return a, nil, err
	}
	if a, err = d.authenticate(r, tenant, f); err != nil {
		return a, nil, err
	}
	a.confirm, err = d.sender(r, &a)
	if edge.HasProof(r) {
		w.Header().Set(edge.NonceHeader, d.Callers.Proofs.Nonce(tenant))
	}
	if err != nil {
		return a, nil, err
	}
	if err := d.Tokens.Consume(r.Context(), tenant, a.use); err != nil {
		return a, nil, err
	}
	if err := a.client.Alive(r.Context(), d.now()); err != nil {
		return a, nil, err
	}
	return a, slices.DeleteFunc(f.without(authenticating...), func(p parameter) bool { return p.name == "client_id" }), nil
}

// pulled is the form of a request that the client has pushed. Nothing of what
// the browser brings beside counts.
func (d *Door) pulled(ctx context.Context, tenant estover.TenantID, a *ask, uri string) (form, error) {
	value, ok := strings.CutPrefix(uri, pushedPrefix)
	if !ok {
		return nil, token.ErrPushed
	}
	text, err := d.Tokens.Pushed(ctx, tenant, a.client.ID, value)
	if err != nil {
		return nil, err
	}
	a.pushed = value
	return parseForm(text)
}
