package ticket

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
)

// Errors about log-ins by JWT.
var (
	// ErrJWT is returned for a JWT that lets nobody in. Its sentence says which
	// rule it broke.
	ErrJWT = &estover.Error{Kind: estover.Invalid, Code: "jwt_login", Detail: "error validating token"}
	// ErrNotSet is returned when a mount has not been set up.
	ErrNotSet = &estover.Error{Kind: estover.Invalid, Code: "ticket_mount_not_set", Detail: "could not load configuration"}
	// ErrSetting is returned for what a mount cannot be set to.
	ErrSetting = &estover.Error{Kind: estover.Invalid, Code: "ticket_setting_invalid", Detail: "This cannot be set."}
)

// A JWTConfig says whose JWTs are looked at. The secret of a client of OpenID Connect
// is kept beside it, and never told.
type JWTConfig struct {
	DiscoveryURL   string         `json:"oidc_discovery_url"`
	DiscoveryCA    string         `json:"oidc_discovery_ca_pem"`
	ClientID       string         `json:"oidc_client_id"`
	ResponseMode   string         `json:"oidc_response_mode"`
	ResponseTypes  []string       `json:"oidc_response_types"`
	DefaultRole    string         `json:"default_role"`
	JWKSURL        string         `json:"jwks_url"`
	JWKSCA         string         `json:"jwks_ca_pem"`
	PublicKeys     []string       `json:"jwt_validation_pubkeys"`
	Algorithms     []string       `json:"jwt_supported_algs"`
	BoundIssuer    string         `json:"bound_issuer"`
	Provider       map[string]any `json:"provider_config"`
	NamespaceState bool           `json:"namespace_in_state"`

	// AllowPrivate lets the keys be fetched from a private network, as far as the
	// tenant may open it. It is ours, and not Vault's.
	AllowPrivate bool `json:"allow_private"`
}

// A JWTRole says which JWTs let one in.
type JWTRole struct {
	RoleType         string            `json:"role_type"`
	UserClaim        string            `json:"user_claim"`
	UserClaimPointer bool              `json:"user_claim_json_pointer"`
	BoundAudiences   []string          `json:"bound_audiences"`
	BoundSubject     string            `json:"bound_subject"`
	BoundClaims      map[string]any    `json:"bound_claims"`
	BoundClaimsType  string            `json:"bound_claims_type"`
	ClaimMappings    map[string]string `json:"claim_mappings"`
	GroupsClaim      string            `json:"groups_claim"`
	Scopes           []string          `json:"oidc_scopes"`
	Redirects        []string          `json:"allowed_redirect_uris"`
	Verbose          bool              `json:"verbose_oidc_logging"`
	MaxAge           int64             `json:"max_age"`
	ExpirationLeeway int64             `json:"expiration_leeway"` // seconds, as are these; 0 for the usual, -1 for none
	NotBeforeLeeway  int64             `json:"not_before_leeway"`
	ClockSkewLeeway  int64             `json:"clock_skew_leeway"`
}

func (k *JWTRole) check() error {
	switch {
	case k.RoleType != "jwt" && k.RoleType != "oidc":
		return ErrRole.With("invalid 'role_type': %s", k.RoleType)
	case k.UserClaim == "":
		return ErrRole.With("a user claim must be defined on the role")
	case k.BoundClaimsType != "string" && k.BoundClaimsType != "glob":
		return ErrRole.With("invalid 'bound_claims_type': %s", k.BoundClaimsType)
	case k.RoleType == "oidc" && len(k.Redirects) == 0:
		return ErrRole.With("'allowed_redirect_uris' must be set if 'role_type' is 'oidc' or unspecified.")
	case k.RoleType == "jwt" && len(k.BoundAudiences) == 0 && k.BoundSubject == "" && len(k.BoundClaims) == 0:
		return ErrRole.With("must have at least one bound constraint when creating/updating a role")
	}
	for name, want := range k.BoundClaims {
		for _, v := range listOf(want) {
			if _, ok := v.(string); !ok && k.BoundClaimsType == "glob" {
				return ErrRole.With("claim is not a string or list: %v", name)
			}
		}
	}
	for _, n := range []int64{k.ExpirationLeeway, k.NotBeforeLeeway, k.ClockSkewLeeway} {
		if n < -1 || n > 3600 {
			return ErrRole.With("a leeway is between nothing (-1) and an hour")
		}
	}
	if k.MaxAge < 0 || k.MaxAge > int64(100*365*24*time.Hour/time.Second) {
		return ErrRole.With("max_age is between nothing and a hundred years")
	}
	return nil
}

// maxSetting bounds what a mount is set to, and each of its roles, in bytes of JSON.
const maxSetting = 256 << 10

func settingTarget(at Way, name string) string { return "ticket_mount:" + at.under(name) }

// SetJWT sets whose JWTs a way looks at, and as which client people are sent to log in.
func (t *Tickets) SetJWT(ctx context.Context, caller estover.Caller, at Way, c JWTConfig, secret estover.Secret) error {
	switch {
	case (c.ClientID == "") != secret.Empty():
		return ErrSetting.With("both 'oidc_client_id' and 'oidc_client_secret' must be set for OIDC")
	case c.ClientID != "" && c.DiscoveryURL == "":
		return ErrSetting.With("'oidc_discovery_url' must be set for OIDC")
	case len(c.ClientID) > maxValue || len(secret.Reveal()) > maxValue:
		return ErrSetting.With("the id and the secret of a client have at most %d bytes", maxValue)
	case c.ResponseMode != "" && c.ResponseMode != "query" && c.ResponseMode != "form_post":
		return ErrSetting.With("invalid response_mode: %q", c.ResponseMode)
	case slices.ContainsFunc(c.ResponseTypes, func(r string) bool { return r != "code" }):
		return ErrSetting.With("oidc_response_types is code alone: an ID token is not sent by way of a browser")
	}
	ways := 0
	for _, set := range []bool{c.DiscoveryURL != "", c.JWKSURL != "", len(c.PublicKeys) > 0} {
		if set {
			ways++
		}
	}
	if ways != 1 {
		return ErrSetting.With("exactly one of 'jwt_validation_pubkeys', 'jwks_url' or 'oidc_discovery_url' must be set")
	}
	for _, text := range []string{c.DiscoveryURL, c.JWKSURL} {
		if u, err := url.Parse(text); text != "" && (err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http") {
			return ErrSetting.With("%q is not a URL that can be fetched", text)
		}
	}
	if len(c.PublicKeys) > 0 {
		if _, err := pemKeys(c.PublicKeys); err != nil {
			return ErrSetting.With("error parsing public key: %v", err)
		}
	}
	for _, ca := range []string{c.DiscoveryCA, c.JWKSCA} {
		if ca != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(ca)) {
			return ErrSetting.With("could not parse CA PEM value successfully")
		}
	}
	for _, alg := range c.Algorithms {
		if !jose.Supports(jose.LoginToken, alg) {
			return ErrSetting.With("unsupported algorithm: %s", alg)
		}
	}
	if len(encode(c)) > maxSetting {
		return ErrSetting.With("a configuration has at most %d bytes", maxSetting)
	}
	op := guard.Op{Action: "ticket_mount.set", Target: settingTarget(at, "config"), Effect: guard.Manages, Detail: map[string]any{"issuer": c.BoundIssuer, "keys": c.JWKSURL + c.DiscoveryURL}}
	decision, err := t.guard.Admit(ctx, caller, op) // before anything is fetched for the caller
	if err != nil {
		return err
	}
	if c.JWKSURL != "" || c.DiscoveryURL != "" { // it is said now if they cannot be had
		if _, err := t.keys.anew(ctx, caller.Tenant, c); err != nil {
			return ErrSetting.With("error checking %s: the keys cannot be fetched: %s", c.JWKSURL+c.DiscoveryURL, sentence(err)).Because(err)
		}
	}
	if c.ClientID == "" {
		return t.guard.Act(ctx, caller, op, decision, func(tx *guard.Tx) error {
			return errors.Join(dropClient(ctx, tx.Tx, at.ID), putSetting(ctx, tx.Tx, at.ID, "config", c))
		})
	}
	id, sealed, created, err := t.sealSecret(ctx, caller.Tenant, secret)
	if err != nil {
		return err
	}
	return t.guard.Act(ctx, caller, op, decision, func(tx *guard.Tx) error {
		return errors.Join(putClient(ctx, tx.Tx, at.ID, id, sealed, created), putSetting(ctx, tx.Tx, at.ID, "config", c))
	})
}

func sentence(err error) string {
	var e *estover.Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return "it does not answer"
}

// JWT is whose JWTs a way looks at; [ErrNoRole] if nobody has said.
func (t *Tickets) JWT(ctx context.Context, caller estover.Caller, at Way) (c JWTConfig, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "ticket_mount.read", Target: settingTarget(at, "config")}, func(tx *db.Tx) error {
		there, err := findSetting(ctx, tx, at.ID, "config", &c)
		if err == nil && !there {
			err = ErrNoRole
		}
		return err
	})
	return c, err
}

// jwtRole is what a way is set to, and a role of it. An empty name is the way's
// usual role.
func (t *Tickets) jwtRole(ctx context.Context, tenant estover.TenantID, at Way, name string) (c JWTConfig, r *Role, err error) {
	err = t.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		there, err := findSetting(ctx, tx, at.ID, "config", &c)
		if err != nil {
			return err
		}
		if !there {
			return ErrNotSet
		}
		if name == "" {
			name = c.DefaultRole
		}
		if name == "" {
			return ErrJWT.With("missing role")
		}
		r, err = findRole(ctx, tx, at.ID, name)
		if errors.Is(err, ErrNoRole) || err == nil && r.JWT == nil {
			err = ErrJWT.With("role %q could not be found", name)
		}
		return err
	})
	return c, r, err
}

// LoginJWT gets a ticket for the agent that a JWT role leads to. An empty name is
// the way's usual role.
func (t *Tickets) LoginJWT(ctx context.Context, tenant estover.TenantID, at Way, from From, name, token string) (Made, error) {
	c, r, err := t.jwtRole(ctx, tenant, at, name)
	switch {
	case err != nil:
		return Made{}, err
	case r.JWT.RoleType != "jwt":
		return Made{}, ErrJWT.With("role with oidc role_type is not allowed")
	case token == "":
		return Made{}, ErrJWT.With("missing token")
	}
	claims, err := t.verify(ctx, tenant, c, r.JWT, token)
	if err != nil {
		return Made{}, err
	}
	w := r.wish(at, from)
	all, err := open(claims.Raw)
	if err != nil {
		return Made{}, err
	}
	who, err := r.JWT.recognise(all)
	if err != nil {
		return Made{}, err
	}
	return t.let(ctx, tenant, at, r, from, w, who, claims)
}

// A recognised is whom a JWT names, and what is remembered of it.
type recognised struct {
	name   string
	meta   map[string]string
	groups []string // nil if the role looks at none
}

// let gives a ticket to whoever a role recognises.
func (t *Tickets) let(ctx context.Context, tenant estover.TenantID, at Way, r *Role, from From, w Wish, who recognised, claims *jose.Claims) (Made, error) {
	w.Meta, w.DisplayName = who.meta, at.name()+"-"+who.name
	w.Meta["role"] = r.Name
	return t.login(ctx, tenant, r, from, w, func(tx *guard.Tx) error {
		ok, err := holdRole(ctx, tx.Tx, r)
		if err == nil && !ok {
			return ErrJWT.With("the role has changed meanwhile; log in again")
		}
		tx.Note("jwt_subject", claims.Subject)
		tx.Note("jwt_issuer", claims.Issuer)
		if who.groups != nil {
			tx.Note("jwt_groups", who.groups)
		}
		return err
	})
}

// name is what a way is called in the names of what is got by it.
func (w Way) name() string {
	return strings.ReplaceAll(strings.Trim(strings.TrimPrefix(w.Path, "auth/"), "/"), "/", "-")
}

// verify looks at the signature of a JWT and at all that its role demands of it.
func (t *Tickets) verify(ctx context.Context, tenant estover.TenantID, c JWTConfig, r *JWTRole, token string) (*jose.Claims, error) {
	u, err := jose.Peek(token)
	if err != nil {
		return nil, ErrJWT.With("error validating token: %s", sentence(err))
	}
	algs := c.Algorithms
	if len(algs) == 0 {
		algs = []string{"RS256", "ES256", "ES384", "EdDSA"}
	}
	keys, err := t.keys.of(ctx, tenant, c, time.Time{})
	if err != nil {
		return nil, err
	}
	claims, err := r.timely(u, keys.set, algs, t.guard.DB().Now())
	if err != nil && len(c.PublicKeys) == 0 && !slices.ContainsFunc(keys.set.All(), func(k *jose.Key) bool { return k.ID == u.Header.KeyID }) {
		if keys, err = t.keys.of(ctx, tenant, c, keys.at); err != nil {
			return nil, err
		}
		claims, err = r.timely(u, keys.set, algs, t.guard.DB().Now())
	}
	if err != nil {
		return nil, ErrJWT.With("error validating token: %s", sentence(err))
	}
	issuer := c.BoundIssuer
	if issuer == "" {
		issuer = keys.issuer
	}
	switch {
	case issuer != "" && claims.Issuer != issuer:
		return nil, ErrJWT.With("error validating token: invalid issuer (iss) claim")
	case r.BoundSubject != "" && claims.Subject != r.BoundSubject:
		return nil, ErrJWT.With("error validating claims: sub claim does not match bound subject")
	case len(r.BoundAudiences) == 0 && len(claims.Audience) > 0:
		return nil, ErrJWT.With("error validating token: invalid audience (aud) claim: audience claim found in JWT but no audiences bound to the role")
	case len(r.BoundAudiences) > 0 && !slices.ContainsFunc(claims.Audience, func(a string) bool { return slices.Contains(r.BoundAudiences, a) }):
		return nil, ErrJWT.With("error validating token: invalid audience (aud) claim: aud claim does not match any bound audience")
	}
	return claims, nil
}

// The leeways of a JWT's times if nobody says otherwise.
const usualLeeway = 60

// timely verifies a token now, and, if it is late or early, at the time at which
// its role still lets it in.
func (r *JWTRole) timely(u jose.Unverified, keys *jose.Keys, algs []string, now time.Time) (*jose.Claims, error) {
	at := func(now time.Time) (*jose.Claims, error) {
		return u.Verify(jose.LoginToken, keys, jose.Expected{Now: now, AnyAudience: true, Algorithms: algs})
	}
	claims, err := at(now)
	if err == nil || errors.Is(err, jose.ErrUnknownKey) {
		return claims, err
	}
	skew := leeway(r.ClockSkewLeeway, usualLeeway)
	if errors.Is(err, jose.ErrExpired) {
		if late := leeway(r.ExpirationLeeway, 0) + skew; late > 0 {
			return at(now.Add(-late))
		}
		return nil, err
	}
	if early := leeway(r.NotBeforeLeeway, 0) + skew; early > 0 {
		if claims, again := at(now.Add(early)); again == nil {
			return claims, nil
		}
	}
	return nil, err
}

func leeway(n, usual int64) time.Duration {
	switch {
	case n < 0:
		return 0
	case n == 0:
		return seconds(usual)
	}
	return seconds(n)
}

// open reads claims.
func open(raw []byte) (all map[string]any, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&all); err != nil || all == nil {
		return nil, ErrJWT.With("error validating claims: they cannot be read")
	}
	return all, nil
}

// Bounds of the groups that a claim names.
const (
	maxGroups = 1000
	maxNoted  = 50 // that are on record
)

// groups are those that a claim of the role's choice names. What they let one do is said
// by bound_claims; here they have to be there.
func (r *JWTRole) groups(all map[string]any) ([]string, error) {
	v, ok := pointed(all, r.GroupsClaim)
	if !ok {
		return nil, ErrJWT.With("%q claim not found in token", r.GroupsClaim)
	}
	list := []string{}
	for _, one := range listOf(v) {
		text, ok := one.(string)
		if !ok || len(list) >= maxGroups {
			return nil, ErrJWT.With("%q claim could not be converted to string list", r.GroupsClaim)
		}
		list = append(list, text)
	}
	return list, nil
}

// lacks reports whether claims have not all that a role looks at.
func (r *JWTRole) lacks(all map[string]any) bool {
	look := []string{r.GroupsClaim}
	if r.UserClaimPointer {
		look = append(look, r.UserClaim)
	} else if _, ok := all[r.UserClaim]; !ok {
		return true
	}
	look = append(append(look, slices.Collect(maps.Keys(r.BoundClaims))...), slices.Collect(maps.Keys(r.ClaimMappings))...)
	return slices.ContainsFunc(look, func(name string) bool {
		_, ok := pointed(all, name)
		return name != "" && !ok
	})
}

// recognise holds claims against those that a role is bound to, and gives whom they name
// and what the ticket remembers of it.
func (r *JWTRole) recognise(all map[string]any) (who recognised, err error) {
	fail := func(format string, args ...any) (recognised, error) {
		return recognised{}, ErrJWT.With(format, args...)
	}
	for claim, want := range r.BoundClaims {
		have, ok := pointed(all, claim)
		if !ok {
			return fail("error validating claims: claim %q is missing", claim)
		}
		if !r.matches(have, want) {
			return fail("error validating claims: claim %q does not match any associated bound claim values", claim)
		}
	}
	user := r.UserClaim
	v := all[user]
	if r.UserClaimPointer {
		v, _ = pointed(all, user)
	}
	var ok bool
	if who.name, ok = scalar(v); !ok || who.name == "" {
		return fail("claim %q not found in token", user)
	}
	if len(who.name) > maxName-64 {
		return fail("claim %q is longer than %d bytes", user, maxName-64)
	}
	who.meta = map[string]string{}
	for claim, to := range r.ClaimMappings {
		v, ok := pointed(all, claim)
		text, plain := scalar(v)
		if !ok {
			continue
		}
		if !plain {
			return fail("error converting claim %q to string", claim)
		}
		who.meta[to] = text
	}
	if r.GroupsClaim != "" {
		if who.groups, err = r.groups(all); err != nil {
			return recognised{}, err
		}
		who.groups = who.groups[:min(len(who.groups), maxNoted)]
	}
	return who, nil
}

// matches reports whether one of the values of a claim is one of those that a role
// is bound to.
func (r *JWTRole) matches(have, want any) bool {
	for _, h := range listOf(have) {
		text, ok := scalar(h)
		if !ok {
			continue
		}
		for _, w := range listOf(want) {
			pattern, ok := scalar(w)
			if ok && (text == pattern || r.BoundClaimsType == "glob" && glob(pattern, text)) {
				return true
			}
		}
	}
	return false
}

func listOf(v any) []any {
	if list, ok := v.([]any); ok {
		return list
	}
	return []any{v}
}

// scalar is a value as text, if it is one.
func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return v.String(), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	}
	return "", false
}

// pointed is the value of a claim, by its name or by a JSON pointer (RFC 6901).
func pointed(all map[string]any, name string) (any, bool) {
	if !strings.HasPrefix(name, "/") {
		v, ok := all[name]
		return v, ok
	}
	var at any = all
	for _, part := range strings.Split(name[1:], "/") {
		part = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
		switch v := at.(type) {
		case map[string]any:
			next, ok := v[part]
			if !ok {
				return nil, false
			}
			at = next
		case []any:
			n, err := strconv.Atoi(part)
			if err != nil || n < 0 || n >= len(v) {
				return nil, false
			}
			at = v[n]
		default:
			return nil, false
		}
	}
	return at, true
}

// pemKeys are public keys in PEM.
func pemKeys(list []string) (*jose.Keys, error) {
	var keys []*jose.Key
	for _, text := range list {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, errors.New("data does not contain any valid public keys")
		}
		var public any
		var err error
		switch block.Type {
		case "CERTIFICATE":
			var c *x509.Certificate
			if c, err = x509.ParseCertificate(block.Bytes); err == nil {
				public = c.PublicKey
			}
		case "RSA PUBLIC KEY":
			public, err = x509.ParsePKCS1PublicKey(block.Bytes)
		default:
			public, err = x509.ParsePKIXPublicKey(block.Bytes)
		}
		if err != nil {
			return nil, errors.New("data does not contain any valid public keys")
		}
		k, err := jose.NewKey("", "", public)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return jose.NewKeys(keys...), nil
}

// ErrKeys is returned when the keys of who signs JWTs cannot be had.
var ErrKeys = &estover.Error{Kind: estover.Unavailable, Code: "jwt_keys_unavailable", Detail: "The keys of the issuer cannot be fetched at the moment. Try again."}

// How long fetched keys serve.
const (
	keysLife  = 10 * time.Minute
	keysPause = 30 * time.Second // between two fetches at least, whether they succeed or not
	keysGrace = time.Hour        // that keys go on serving while none can be had
	maxKeys   = 1000             // sources that are remembered: those that were asked last
)

// keysets are the keys that were fetched, by where from. Strangers log in as often
// as they like: of a source one fetch goes on at a time, and one that has failed is
// not tried again for a while.
type keysets struct {
	fetch func(ctx context.Context, tenant estover.TenantID, url, authorities string, private bool) ([]byte, error)
	now   func() time.Time

	mu    sync.Mutex
	sets  map[keysFrom]*keySource
	asked int64 // counts who has asked for a source
}

type keysFrom struct {
	tenant            estover.TenantID
	jwks, description string
	authorities       string
	private           bool
}

// A keySource is where keys come from. Whoever holds turn fetches, or looks at what
// the last fetch left.
type keySource struct {
	turn  chan struct{} // of one
	have  keyset        // without keys before the first fetch that succeeded
	tried time.Time     // when the last fetch ended; zero for never
	err   error         // how it failed

	last int64 // who asked for it last; under the lock of all
}

// A keyset is keys that were fetched, and when.
type keyset struct {
	set *jose.Keys
	described
	at time.Time
}

// described is what the description of an issuer says (OpenID Connect Discovery).
type described struct {
	issuer, authorize, token, userinfo string
}

// of are the keys by which JWTs are looked at. With after, keys that came by then
// will not do, unless it is too early to ask again.
func (s *keysets) of(ctx context.Context, tenant estover.TenantID, c JWTConfig, after time.Time) (keyset, error) {
	return s.keys(ctx, tenant, c, after, false)
}

// anew are the keys as they are fetched now, for whoever sets where from.
func (s *keysets) anew(ctx context.Context, tenant estover.TenantID, c JWTConfig) (keyset, error) {
	return s.keys(ctx, tenant, c, time.Time{}, true)
}

func (s *keysets) keys(ctx context.Context, tenant estover.TenantID, c JWTConfig, after time.Time, anew bool) (keyset, error) {
	if len(c.PublicKeys) > 0 {
		set, err := pemKeys(c.PublicKeys)
		return keyset{set: set}, err
	}
	from := keysFrom{tenant, c.JWKSURL, c.DiscoveryURL, c.JWKSCA + c.DiscoveryCA, c.AllowPrivate}
	source := s.source(from)
	select {
	case source.turn <- struct{}{}:
		defer func() { <-source.turn }()
	case <-ctx.Done():
		return keyset{}, ErrKeys.Because(ctx.Err())
	}
	now := s.now()
	if !anew {
		fresh := source.have.set != nil && now.Sub(source.have.at) < keysLife && (after.IsZero() || source.have.at.After(after))
		early := !source.tried.IsZero() && now.Sub(source.tried) < keysPause
		switch {
		case fresh, early && source.have.set != nil:
			return source.have, nil
		case early:
			return keyset{}, ErrKeys.Because(source.err)
		}
	}
	got := keyset{at: now}
	// Who asks may go away; the others that wait have use for the keys all the same.
	fetching, cancel := context.WithTimeout(context.WithoutCancel(ctx), keysPause)
	defer cancel()
	got.set, got.described, source.err = s.get(fetching, from)
	source.tried = s.now()
	switch {
	case source.err == nil:
		source.have = got
	case anew || now.Sub(source.have.at) >= keysGrace:
		source.have = keyset{}
	}
	if source.have.set == nil {
		return keyset{}, ErrKeys.Because(source.err)
	}
	return source.have, nil
}

// source is where keys come from. Where there are too many, the one that nobody has
// asked for the longest is forgotten: whoever has many of their own costs the others a
// fetch each time at the most.
func (s *keysets) source(from keysFrom) *keySource {
	s.mu.Lock()
	defer s.mu.Unlock()
	source := s.sets[from]
	if source == nil {
		if s.sets == nil {
			s.sets = map[keysFrom]*keySource{}
		}
		if len(s.sets) >= maxKeys {
			var oldest keysFrom
			least := s.asked + 1
			for at, one := range s.sets {
				if one.last < least {
					oldest, least = at, one.last
				}
			}
			delete(s.sets, oldest)
		}
		source = &keySource{turn: make(chan struct{}, 1)}
		s.sets[from] = source
	}
	s.asked++
	source.last = s.asked
	return source
}

func (s *keysets) get(ctx context.Context, from keysFrom) (*jose.Keys, described, error) {
	var about described
	at := from.jwks
	if from.description != "" {
		b, err := s.fetch(ctx, from.tenant, strings.TrimSuffix(from.description, "/")+"/.well-known/openid-configuration", from.authorities, from.private)
		if err != nil {
			return nil, about, err
		}
		var d struct {
			Issuer    string `json:"issuer"`
			Keys      string `json:"jwks_uri"`
			Authorize string `json:"authorization_endpoint"`
			Token     string `json:"token_endpoint"`
			UserInfo  string `json:"userinfo_endpoint"`
		}
		if err := json.Unmarshal(b, &d); err != nil || d.Keys == "" {
			return nil, about, errors.New("the description of the issuer names no keys")
		}
		if strings.TrimSuffix(d.Issuer, "/") != strings.TrimSuffix(from.description, "/") {
			return nil, about, errors.New("the description is of another issuer")
		}
		about, at = described{d.Issuer, d.Authorize, d.Token, d.UserInfo}, d.Keys
	}
	b, err := s.fetch(ctx, from.tenant, at, from.authorities, from.private)
	if err != nil {
		return nil, about, err
	}
	set, err := jose.ParseKeys(b)
	return set, about, err
}
