package ticket

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/jose"
	"estover.dev/internal/seal"
)

// A log-in by OpenID Connect, for people in front of a browser:
//
//	begun ──the provider sends the browser back──▶ used ──what it says will do──▶ a ticket
//	  └────(ten minutes)────▶ over                  └──it will not, or none came──▶ nothing
//
// That one was begun is kept nowhere: its state says so itself, under a MAC, so that
// strangers can begin as many as they like. What is kept is that a state has been used,
// and that before the provider hears of the code: whatever comes of it, one state asks
// one question.

// ErrSignIn is returned for a log-in that does not come from one that was begun here.
var ErrSignIn = &estover.Error{Kind: estover.Invalid, Code: "oidc_state", Detail: "Expired or missing OAuth state."}

// signInLife is how long a browser may be at the provider.
const signInLife = 10 * time.Minute

// A signIn is what a state says of the log-in that was begun with it.
type signIn struct {
	Random   string `json:"n"`
	Mount    string `json:"m"`
	Role     string `json:"r"`
	Redirect string `json:"u"`
	Client   []byte `json:"c,omitempty"` // the MAC of the client's own nonce
	Expires  int64  `json:"e"`           // Unix seconds
}

// maxRedirect bounds where a browser is sent back to, in bytes.
const maxRedirect = 1000

const (
	stateUse    = "oidc state"
	clientUse   = "oidc client nonce"
	nonceUse    = "oidc nonce"
	verifierUse = "oidc verifier"
)

var b64 = base64.RawURLEncoding

// state is the text of a log-in that is begun.
func (t *Tickets) state(tenant estover.TenantID, s signIn) string {
	body := b64.EncodeToString([]byte(encode(s)))
	return body + "." + b64.EncodeToString(t.hash(tenant, stateUse, body))
}

// begun reads a state, if it is one of ours that is good yet.
func (t *Tickets) begun(tenant estover.TenantID, at Way, state, clientNonce string) (s signIn, err error) {
	body, mac, _ := strings.Cut(state, ".")
	sum, err := b64.DecodeString(mac)
	if err != nil || !hmac.Equal(sum, t.hash(tenant, stateUse, body)) {
		return s, ErrSignIn
	}
	text, err := b64.DecodeString(body)
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	switch {
	case err != nil, s.Mount != at.ID, t.Now().Unix() >= s.Expires:
		return s, ErrSignIn
	case len(s.Client) > 0 && !hmac.Equal(s.Client, t.hash(tenant, clientUse, clientNonce)):
		return s, ErrSignIn.With("invalid client_nonce")
	}
	return s, nil
}

// nonce and verifier follow from the state: nobody else can make them, and they need
// not be kept.
func (t *Tickets) nonce(tenant estover.TenantID, state string) string {
	return hex.EncodeToString(t.hash(tenant, nonceUse, state))
}

func (t *Tickets) verifier(tenant estover.TenantID, state string) string {
	return b64.EncodeToString(t.hash(tenant, verifierUse, state))
}

// openID is what a way and a role of it are set to, if people log in by them.
func (t *Tickets) openID(ctx context.Context, tenant estover.TenantID, at Way, name string) (c JWTConfig, r *Role, err error) {
	c, r, err = t.jwtRole(ctx, tenant, at, name)
	switch {
	case err != nil:
	case r.JWT.RoleType != "oidc":
		err = ErrJWT.With("role with role_type %q is not allowed", r.JWT.RoleType)
	case c.DiscoveryURL == "" || c.ClientID == "":
		err = ErrNotSet.With("OIDC log-in is not configured for this mount: set oidc_discovery_url, oidc_client_id and oidc_client_secret")
	}
	return c, r, err
}

// BeginOpenID is where a browser is sent to log in by a role, "" if it may not be
// sent back to where it is to be: that stands in the role, word for word. With a nonce
// of the client's own, nobody else finishes the log-in.
func (t *Tickets) BeginOpenID(ctx context.Context, tenant estover.TenantID, at Way, role, redirect, clientNonce string) (string, error) {
	if redirect == "" {
		return "", ErrJWT.With("missing redirect_uri")
	}
	if err := t.Sealer.Prepare(ctx, tenant); err != nil {
		return "", err
	}
	c, r, err := t.openID(ctx, tenant, at, role)
	if err != nil {
		return "", err
	}
	if len(redirect) > maxRedirect || !slices.Contains(r.JWT.Redirects, redirect) {
		return "", nil
	}
	keys, err := t.keys.of(ctx, tenant, c, time.Time{})
	if err != nil {
		return "", err
	}
	to, err := url.Parse(keys.authorize)
	if err != nil || to.Host == "" {
		return "", ErrKeys.With("The description of the issuer names no authorization_endpoint.")
	}
	s := signIn{Random: newUUID(), Mount: at.ID, Role: r.Name, Redirect: redirect, Expires: t.Now().Add(signInLife).Unix()}
	if clientNonce != "" {
		s.Client = t.hash(tenant, clientUse, clientNonce)
	}
	state := t.state(tenant, s)
	challenge := sha256.Sum256([]byte(t.verifier(tenant, state)))
	q := to.Query()
	for name, v := range map[string]string{
		"response_type": "code", "client_id": c.ClientID, "redirect_uri": redirect, "state": state, "nonce": t.nonce(tenant, state),
		"scope": strings.Join(append([]string{"openid"}, slices.DeleteFunc(slices.Clone(r.JWT.Scopes), func(s string) bool { return s == "openid" })...), " "),
		// RFC 7636, section 4.3
		"code_challenge": b64.EncodeToString(challenge[:]), "code_challenge_method": "S256",
	} {
		q.Set(name, v)
	}
	if r.JWT.MaxAge > 0 {
		q.Set("max_age", strconv.FormatInt(r.JWT.MaxAge, 10))
	}
	if c.ResponseMode != "" && c.ResponseMode != "query" {
		q.Set("response_mode", c.ResponseMode)
	}
	to.RawQuery = q.Encode()
	return to.String(), nil
}

// FinishOpenID gets a ticket for the agent that a role leads to, for whoever comes
// back from the provider with a code.
func (t *Tickets) FinishOpenID(ctx context.Context, tenant estover.TenantID, at Way, from From, state, code, clientNonce string) (Made, error) {
	if err := t.Sealer.Prepare(ctx, tenant); err != nil {
		return Made{}, err
	}
	s, err := t.begun(tenant, at, state, clientNonce)
	if err != nil {
		return Made{}, err
	}
	if code == "" {
		return Made{}, ErrJWT.With("No code or id_token received.")
	}
	c, r, err := t.openID(ctx, tenant, at, s.Role)
	if err != nil {
		return Made{}, err
	}
	if !slices.Contains(r.JWT.Redirects, s.Redirect) { // it may have been taken out since
		return Made{}, ErrSignIn
	}
	token, access, err := t.exchange(ctx, tenant, at, c, s, state, code)
	if err != nil {
		return Made{}, err
	}
	demands := *r.JWT
	if len(demands.BoundAudiences) == 0 {
		demands.BoundAudiences = []string{c.ClientID}
	}
	claims, err := t.verify(ctx, tenant, c, &demands, token)
	if err != nil {
		return Made{}, err
	}
	if err := t.expected(tenant, c, &demands, claims, state); err != nil {
		return Made{}, err
	}
	w := r.wish(at, from)
	w.Path = at.Path + "/oidc/callback"
	all, err := open(claims.Raw)
	if err == nil && r.JWT.lacks(all) && !access.Empty() {
		err = t.ask(ctx, tenant, c, claims.Subject, access, all)
	}
	if err != nil {
		return Made{}, err
	}
	who, err := r.JWT.recognise(all)
	if err != nil {
		return Made{}, err
	}
	return t.let(ctx, tenant, at, r, from, w, who, claims)
}

// ask adds to the claims of an ID token what the provider's userinfo says beside
// (OpenID Connect Core, section 5.3): of the same subject, and nothing that is signed.
// Where the provider does not answer, what the ID token says has to do.
func (t *Tickets) ask(ctx context.Context, tenant estover.TenantID, c JWTConfig, subject string, access estover.Secret, all map[string]any) error {
	keys, err := t.keys.of(ctx, tenant, c, time.Time{})
	if err != nil || keys.userinfo == "" {
		return err
	}
	b, err := t.Redeem(ctx, tenant, Exchange{URL: keys.userinfo, Access: access, Authorities: c.DiscoveryCA, Private: c.AllowPrivate})
	if err != nil {
		t.Logger.Warn("a provider does not tell who has logged in", "tenant", tenant, "userinfo", keys.userinfo, "error", err)
		return nil
	}
	if !jsontext.Value(b).IsValid() { // such as one that is signed, or has a member twice
		return ErrJWT.With("error validating claims: the userinfo of the provider is no JSON object")
	}
	told, err := open(b)
	if err != nil {
		return err
	}
	if sub, _ := told["sub"].(string); sub == "" || sub != subject {
		return ErrJWT.With("error validating claims: the userinfo of the provider is about another subject")
	}
	for name, v := range told {
		if _, signed := all[name]; !signed && !slices.Contains(ofTokens, name) {
			all[name] = v
		}
	}
	return nil
}

// ofTokens are claims of tokens alone: what an answer says by such a name is not of the
// log-in.
var ofTokens = []string{"iss", "aud", "azp", "exp", "nbf", "iat", "jti", "nonce", "auth_time", "acr", "amr", "at_hash", "c_hash", "sid"}

// expected holds an ID token against the log-in that it is for (OpenID Connect Core,
// section 3.1.3.7).
func (t *Tickets) expected(tenant estover.TenantID, c JWTConfig, r *JWTRole, claims *jose.Claims, state string) error {
	switch {
	case !hmac.Equal([]byte(claims.Text("nonce")), []byte(t.nonce(tenant, state))):
		return ErrJWT.With("error validating token: invalid ID token nonce")
	case !slices.Contains(claims.Audience, c.ClientID):
		return ErrJWT.With("error validating token: the ID token is for another client")
	case claims.Text("azp") != "" && claims.Text("azp") != c.ClientID, len(claims.Audience) > 1 && claims.Text("azp") == "":
		return ErrJWT.With("error validating token: the ID token was given to another client (azp)")
	}
	if r.MaxAge > 0 {
		var about struct {
			At int64 `json:"auth_time"`
		}
		if err := claims.Into(&about); err != nil || about.At == 0 {
			return ErrJWT.With("error validating token: auth_time is missing, which max_age of the role demands")
		}
		if t.Now().Sub(time.Unix(about.At, 0)) > seconds(r.MaxAge)+leeway(r.ClockSkewLeeway, usualLeeway) {
			return ErrJWT.With("error validating token: the log-in at the provider is too long ago")
		}
	}
	return nil
}

// An Exchange is a request for a token endpoint, or, with an access token, a question
// to what that opens.
type Exchange struct {
	URL         string
	Form        url.Values
	Client      string
	Secret      estover.Secret // of the client, by HTTP Basic (RFC 6749, section 2.3.1)
	Access      estover.Secret // instead of all that: a token to show (RFC 6750, section 2.1)
	Authorities string
	Private     bool
}

// exchange has the provider give the ID token for a code, of whoever is the first to
// come back with this state.
func (t *Tickets) exchange(ctx context.Context, tenant estover.TenantID, at Way, c JWTConfig, s signIn, state, code string) (token string, access estover.Secret, err error) {
	keys, err := t.keys.of(ctx, tenant, c, time.Time{})
	if err != nil {
		return "", access, err
	}
	secret, err := t.clientSecret(ctx, tenant, at)
	if err != nil {
		return "", access, err
	}
	if err := t.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		return useState(ctx, tx, at.ID, t.hash(tenant, stateUse, state), time.Unix(s.Expires, 0))
	}); err != nil {
		return "", access, err
	}
	b, err := t.Redeem(ctx, tenant, Exchange{
		URL: keys.token, Client: c.ClientID, Secret: secret, Authorities: c.DiscoveryCA, Private: c.AllowPrivate,
		Form: url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {s.Redirect}, "code_verifier": {t.verifier(tenant, state)}},
	})
	if err != nil {
		return "", access, ErrJWT.With("Error exchanging oidc code: the provider refuses it, or does not answer").Because(err)
	}
	var answer struct {
		Token  string `json:"id_token"`
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(b, &answer); err != nil || answer.Token == "" {
		return "", access, ErrJWT.With("No id_token found in response.")
	}
	return answer.Token, estover.NewSecret([]byte(answer.Access)), nil
}

// sealSecret makes the row of a client's secret.
func (t *Tickets) sealSecret(ctx context.Context, tenant estover.TenantID, secret estover.Secret) (id string, sealed []byte, at time.Time, err error) {
	if err := t.Sealer.Prepare(ctx, tenant); err != nil {
		return "", nil, at, err
	}
	id, at = estover.NewID("ocs"), t.Now()
	sealed, err = t.Sealer.Seal(tenant, seal.AAD{Class: seal.Lease, ID: id, Created: at}, secret.Reveal())
	if err != nil {
		err = fmt.Errorf("sealing a client's secret: %w", err)
	}
	return id, sealed, at, err
}

// clientSecret is the secret of the client of a way.
func (t *Tickets) clientSecret(ctx context.Context, tenant estover.TenantID, at Way) (estover.Secret, error) {
	var id string
	var sealed []byte
	var created time.Time
	if err := t.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		id, sealed, created, err = findClient(ctx, tx, at.ID)
		return err
	}); err != nil {
		return estover.Secret{}, err
	}
	plain, err := t.Sealer.Open(tenant, seal.AAD{Class: seal.Lease, ID: id, Created: created}, sealed)
	if err != nil {
		return estover.Secret{}, fmt.Errorf("opening a client's secret: %w", err)
	}
	return estover.NewSecret(plain), nil
}

func findClient(ctx context.Context, tx *db.Tx, mount string) (id string, sealed []byte, at time.Time, err error) {
	err = tx.QueryRow(ctx, `select id, sealed, created_at from ticket_client where tenant_id = $1 and mount_id = $2`, tx.Tenant(), mount).Scan(&id, &sealed, &at)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotSet
	}
	return id, sealed, at, err
}

func putClient(ctx context.Context, tx *db.Tx, mount, id string, sealed []byte, at time.Time) error {
	_, err := tx.Exec(ctx, `insert into ticket_client (tenant_id, mount_id, id, sealed, created_at) values ($1, $2, $3, $4, $5)
		on conflict (tenant_id, mount_id) do update set id = excluded.id, sealed = excluded.sealed, created_at = excluded.created_at`, tx.Tenant(), mount, id, sealed, at)
	return err
}

func dropClient(ctx context.Context, tx *db.Tx, mount string) error {
	_, err := tx.Exec(ctx, `delete from ticket_client where tenant_id = $1 and mount_id = $2`, tx.Tenant(), mount)
	return err
}

// useState notes that a state has been used; it is [ErrSignIn] if it had been.
func useState(ctx context.Context, tx *db.Tx, mount string, state []byte, expires time.Time) error {
	n, err := tx.Exec(ctx, `insert into ticket_sign_in (tenant_id, state, mount_id, expires_at) values ($1, $2, $3, $4) on conflict (tenant_id, state) do nothing`,
		tx.Tenant(), state, mount, expires)
	if err == nil && n == 0 {
		err = ErrSignIn
	}
	return err
}
