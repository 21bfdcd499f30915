// Package federation keeps the trusts of a tenant: the issuers of others whose
// tokens count here, and for which of our agents. A workload that its platform
// has given a token (a job of GitHub Actions, a pod of Kubernetes, a machine of
// a cloud, anything with a SPIFFE identity) is recognised by it and needs no
// secret of ours.
//
//	token ─▶ the trust of its issuer ─▶ keys ─▶ signature, type, times, audience ─▶ exactly one rule ─▶ agent
//
// A trust says all of it: the issuer, its keys or where they are, the
// algorithms, the audience, and rules that lead from claims to agents. Nothing
// has a value that goes without saying. A trust in which something is missing
// refuses everything, and so does one of whose rules none or more than one fit:
// two rules that fit are a mistake in the trust, and whose authority it would
// be is not for us to guess.
//
// A trust of the kind [IDJAG] is about people instead, who let an agent act for
// them at their organisation's identity provider ([Trusts.Granted],
// draft-ietf-oauth-identity-assertion-authz-grant-03). It has no rules: its
// tokens name the agent, and the person is the one whom the provider that the
// trust names has signed in here before. Neither kind of trust lets the tokens
// of the other count.
//
// # States
//
//	live ──put──▶ live      the same name, another specification, a higher epoch
//	  └──retire──▶ ended    the name and the issuer are free for another trust
//
// An issuer has one trust. What a token buys is decided elsewhere, as for any
// other: this package says who it is about.
//
// # Keys
//
// Keys stand in the trust or are fetched from its URL, by a function that the
// server hands in. A fetched set is kept for ten minutes. One fetch is under
// way for a URL at a time; a key that is not known has the set fetched again,
// at most every half a minute, and is refused in between. When the other side
// does not answer, the set that is there serves for up to an hour.
//
// A trust whose issuer is spiffe://DOMAIN is about a trust domain of SPIFFE. Its
// keys are a bundle, in the trust or at a bundle endpoint (SPIFFE Federation,
// profile https_web), fetched again as often as the bundle says, within the same
// bounds. JWT-SVIDs without an issuer are recognised by it, and the certificates
// of agents may rest on its authorities ([Trusts.Authorities]).
package federation

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
)

// A Spec is what an administrator decides about an issuer.
type Spec struct {
	Name         string   `json:"name" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"What the trust is called: small letters, digits, dots, dashes and underscores."`
	Issuer       string   `json:"issuer" minLength:"1" maxLength:"2048" doc:"The claim iss of its tokens, compared as it is. spiffe://DOMAIN is about a trust domain of SPIFFE: its JWT-SVIDs have no iss and are known by their sub, and jwks or jwks_url is its bundle, which vouches for X.509-SVIDs too."`
	JWKS         string   `json:"jwks,omitempty" maxLength:"65536" doc:"Its public keys, as the text of a JSON Web Key Set. Either this or jwks_url."`
	JWKSURL      string   `json:"jwks_url,omitempty" maxLength:"2048" doc:"Where its public keys are: https://…"`
	CA           string   `json:"ca,omitempty" doc:"The roots, in PEM, by which the certificate at jwks_url is checked; the system's if there are none."`
	AllowPrivate bool     `json:"allow_private,omitempty" doc:"Whether the host of jwks_url may be on a private network, and its URL http://."`
	Algorithms   []string `json:"algorithms" minItems:"1" doc:"What its tokens are signed with: RS256, ES256, ES384, EdDSA."`
	Audience     string   `json:"audience" minLength:"1" maxLength:"2048" doc:"The claim aud of tokens that are for us, and for nobody else. Use the issuer of this server if the platform lets you choose."`
	Types        []string `json:"types,omitempty" doc:"The types (typ) that its tokens may have in their header; JWT or none if none is named."`
	SingleUse    bool     `json:"single_use,omitempty" doc:"Whether each token counts once, by its jti. Do this where the platform makes one for each request."`
	MaxSeconds   int64    `json:"max_token_seconds,omitempty" minimum:"0" maximum:"172800" doc:"The longest that its tokens may live, from iat to exp; 0 for an hour. Longer ones are refused. Tokens of the kind id-jag live for five minutes."`
	Rules        []Rule   `json:"rules,omitempty" doc:"Which tokens are whose. Exactly one must fit. A trust has at least one, unless it is about people."`
	Kind         string   `json:"kind,omitempty" enum:"id-jag" doc:"id-jag: its tokens say which person lets which agent act (typ oauth-id-jag+jwt). None: which workload they are of."`
	Provider     string   `json:"provider,omitempty" maxLength:"63" doc:"With id-jag, the identity provider of the same issuer with which those people sign in here: who has done so is known by it."`
}

// IDJAG is the kind of a trust whose tokens are identity assertion grants.
const IDJAG = "id-jag"

// A Rule says of which agent a token is. All of its claims and globs must fit.
type Rule struct {
	Agent  string            `json:"agent" minLength:"1" doc:"The agent that such a token is about."`
	Claims map[string]string `json:"claims,omitempty" doc:"Claims by name, with the value that each must have. A name that begins with a slash is a JSON Pointer: /kubernetes.io/namespace."`
	Globs  map[string]string `json:"globs,omitempty" doc:"Claims by name, with the pattern that each must fit: * is one or more characters but / and :, and ** at the end is whatever follows."`
}

// A Trust is an issuer whose tokens count.
type Trust struct {
	ID string `json:"id"` // tru_…
	Spec
	ManagedBy string    `json:"managed_by,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	ChangedAt time.Time `json:"changed_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"` // when it was retired
	Epoch     int64     `json:"epoch"`             // raised by every change
}

// Errors about trusts.
var (
	// ErrNotFound is returned when there is no such trust in the tenant.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "trust_not_found", Detail: "There is no such trust. `estover trust list` shows which there are."}
	// ErrInvalid is returned when what is said of an issuer cannot be.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "trust_invalid", Detail: "This cannot be said of a trust."}
	// ErrIssuerTaken is returned when another trust is about the issuer.
	ErrIssuerTaken = &estover.Error{Kind: estover.Conflict, Code: "issuer_taken", Detail: "Another trust is about this issuer. An issuer has one trust, with as many rules as it needs."}
	// ErrUntrusted is returned for a token that says nothing here.
	ErrUntrusted = &estover.Error{Kind: estover.Conflict, Code: "invalid_grant", Detail: "The token is not of an issuer that is trusted here."}
)

// The bounds of a trust.
const (
	maxRules  = 200
	maxClaims = 20   // of a rule
	maxText   = 2048 // bytes of a claim that is compared

	usualLife   = time.Hour      // of a token
	longestLife = 48 * time.Hour // that a trust may allow
)

// life is the longest that the trust's tokens may live.
func (s *Spec) life() time.Duration {
	if s.MaxSeconds == 0 {
		return usualLife
	}
	return time.Duration(s.MaxSeconds) * time.Second
}

// source is where the trust's keys are fetched from.
func (s *Spec) source(tenant estover.TenantID) Source {
	return Source{tenant, s.JWKSURL, s.CA, s.AllowPrivate, s.Domain() != ""}
}

// Options are what trusts need of others.
type Options struct {
	// Own is the tenant's own issuer, which is nobody to trust.
	Own func(tenant estover.TenantID) string

	// Fetch gets the document at a source, within the bounds that hold for all
	// that is fetched from others.
	Fetch func(ctx context.Context, s Source) ([]byte, error)

	// Agent checks inside a transaction that there is such an agent.
	Agent func(ctx context.Context, tx *db.Tx, id string) error

	// Person finds whom somebody at a provider is here, given the provider's name
	// and issuer: an error of kind NotFound or Denied if they are nobody. strong
	// says that to sign in there is as good as a passkey here. Nil knows nobody.
	Person func(ctx context.Context, tenant estover.TenantID, provider, issuer, subject string, claims map[string]any) (person string, strong bool, err error)
}

// Trusts are the trusts of all tenants. They are safe for use by many at once.
type Trusts struct {
	Options
	guard    *guard.Guard
	byIssuer *guard.Cache[*ready]
	sets     sets
}

// New keeps trusts behind the door g.
func New(g *guard.Guard, o Options) *Trusts {
	t := &Trusts{Options: o, guard: g}
	t.byIssuer = guard.NewCache(g, issuerKind, loadReady)
	t.sets = sets{fetch: o.Fetch, now: g.DB().Now, bySource: map[Source]*set{}}
	return t
}

// issuerKind is the kind of the copies that are found by their issuer.
const issuerKind = "trust_issuer"

// Check gives the spec in the one form in which it is kept, or everything that
// is wrong with it.
func Check(s Spec) (Spec, error) {
	var bad []error
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrInvalid.With(format, args...).At(field)) }
	if !estover.ValidName(s.Name) {
		wrong("name", "The name has up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name)
	}
	if !plain(s.Issuer) {
		wrong("issuer", "The issuer is what its tokens have as iss: up to %d printable characters, not %q.", maxText, s.Issuer)
	}
	if !plain(s.Audience) {
		wrong("audience", "The audience is what its tokens have as aud when they are for us: up to %d printable characters, not %q.", maxText, s.Audience)
	}
	if strings.HasPrefix(s.Issuer, spiffe) && s.Domain() == "" {
		wrong("issuer", "A trust domain is written as spiffe://example.com, with nothing after its name; %q is none.", s.Issuer)
	}
	if s.MaxSeconds < 0 || time.Duration(s.MaxSeconds)*time.Second > longestLife {
		wrong("max_token_seconds", "A token may live for up to %d seconds, or 0 for an hour; not %d.", int(longestLife.Seconds()), s.MaxSeconds)
	}
	s.checkKeys(wrong)
	if len(s.Algorithms) == 0 {
		wrong("algorithms", "A trust names the algorithms that its tokens are signed with.")
	}
	for i, a := range s.Algorithms {
		if !jose.Supports(jose.JWTBearer, a) {
			wrong(fmt.Sprintf("algorithms[%d]", i), "Tokens are signed with RS256, ES256, ES384 or EdDSA, not with %q.", a)
		}
	}
	for i, typ := range s.Types {
		if jose.Reserved(typ) || len(typ) > 100 || typ != "" && !plain(typ) {
			wrong(fmt.Sprintf("types[%d]", i), "Tokens of the type %q are something else than the identity of a workload.", typ)
		}
	}
	s.checkKind(wrong)
	s.Rules = slices.Clone(s.Rules)
	for i := range s.Rules {
		s.Rules[i].check(fmt.Sprintf("rules[%d]", i), wrong)
	}
	s.Algorithms, s.Types = sorted(s.Algorithms), sorted(s.Types)
	return s, errors.Join(bad...)
}

// checkKind says what is wrong with what the trust is about.
func (s *Spec) checkKind(wrong func(field, format string, args ...any)) {
	switch {
	case s.Kind != "" && s.Kind != IDJAG:
		wrong("kind", "A trust is about people (id-jag) or, without a kind, about workloads; there is no %q.", s.Kind)
	case s.Domain() != "" && (s.Kind != "" || len(s.Types) > 0):
		wrong("kind", "A trust domain vouches for workloads, by tokens whose types need not be said.")
	case len(s.Rules) == 0 && s.Domain() != "": // for the authorities of X.509-SVIDs alone
	case s.Kind == "" && (len(s.Rules) == 0 || len(s.Rules) > maxRules):
		wrong("rules", "A trust has between 1 and %d rules, which say whose a token is.", maxRules)
	case s.Kind == "" && s.Provider != "":
		wrong("provider", "People are known by a provider under a trust of the kind id-jag.")
	case s.Kind == IDJAG && len(s.Rules) > 0:
		wrong("rules", "Tokens of a trust of the kind id-jag name the agent themselves: it has no rules.")
	case s.Kind == IDJAG && len(s.Types) > 0:
		wrong("types", "Tokens of a trust of the kind id-jag have one type, which need not be said.")
	case s.Kind == IDJAG && !estover.ValidName(s.Provider):
		wrong("provider", "A trust of the kind id-jag names the identity provider by which people are known here.")
	}
}

// checkKeys says what is wrong with where the keys are.
func (s *Spec) checkKeys(wrong func(field, format string, args ...any)) {
	if (s.JWKS == "") == (s.JWKSURL == "") {
		wrong("jwks_url", "A trust has the keys of its issuer (jwks) or where they are (jwks_url), one of them.")
	}
	if s.JWKS != "" {
		if _, err := parse([]byte(s.JWKS), s.Domain() != ""); err != nil {
			wrong("jwks", "%s", sentence(err))
		}
	}
	if s.JWKSURL != "" {
		u, err := url.Parse(s.JWKSURL)
		switch {
		case err != nil, u.Host == "", u.User != nil, strings.Contains(s.JWKSURL, "#"), !plain(s.JWKSURL):
			wrong("jwks_url", "%q is not the URL of a document.", s.JWKSURL)
		case u.Scheme != "https" && (u.Scheme != "http" || !s.AllowPrivate):
			wrong("jwks_url", "Keys are fetched by https://. On a private network http:// will do, with allow_private.")
		}
	}
	if s.JWKSURL == "" && (s.CA != "" || s.AllowPrivate) {
		wrong("jwks_url", "ca and allow_private are about jwks_url, and there is none.")
	}
	if s.CA != "" && !certificates(s.CA) {
		wrong("ca", "The roots are certificates in PEM.")
	}
}

// check says what is wrong with a rule, and gives it the form in which it is
// kept.
func (r *Rule) check(field string, wrong func(field, format string, args ...any)) {
	if r.Agent == "" {
		wrong(field+".agent", "A rule names the agent that such a token is about.")
	}
	switch n := len(r.Claims) + len(r.Globs); {
	case n == 0 || n > maxClaims:
		wrong(field+".claims", "A rule names between 1 and %d claims.", maxClaims)
	case !r.tells():
		wrong(field+".claims", "Every token of the issuer that is for us fits this rule. Name a claim that tells one workload from another.")
	}
	for name, value := range r.Claims {
		if !claimName(name) || value == "" || len(value) > maxText {
			wrong(field+".claims."+name, "A claim has a name and the value that it must have, of up to %d bytes.", maxText)
		}
		if _, both := r.Globs[name]; both {
			wrong(field+".globs."+name, "The claim %q has a value already.", name)
		}
	}
	for name, pattern := range r.Globs {
		if why := checkGlob(pattern); why != "" || !claimName(name) {
			wrong(field+".globs."+name, "%s", first(why, "A claim has a name."))
		}
	}
	if len(r.Claims) == 0 {
		r.Claims = nil
	}
	if len(r.Globs) == 0 {
		r.Globs = nil
	}
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// missing says what a trust lacks to be one, "" if nothing.
func (s *Spec) missing() string {
	switch {
	case s.Issuer == "":
		return "issuer"
	case s.JWKS == "" && s.JWKSURL == "":
		return "jwks"
	case len(s.Algorithms) == 0:
		return "algorithms"
	case s.Audience == "":
		return "audience"
	case s.Kind == IDJAG && s.Provider == "":
		return "provider"
	case s.Kind == "" && len(s.Rules) == 0:
		return "rules"
	case s.Kind != "" && s.Kind != IDJAG:
		return "kind"
	}
	for _, r := range s.Rules {
		if r.Agent == "" || !r.tells() {
			return "rules"
		}
	}
	return ""
}

// plain reports whether a text has printable characters of ASCII alone, and
// some.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= maxText
}

func sorted(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// certificates reports whether a text is certificates in PEM and nothing else.
func certificates(text string) bool {
	rest := []byte(strings.TrimSpace(text))
	for len(rest) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return false
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return false
		}
		rest = []byte(strings.TrimSpace(string(rest)))
	}
	return text != ""
}

// sentence is what an error says to people.
func sentence(err error) string {
	var e *estover.Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return "It cannot be used."
}

// Put adds a trust, or changes the one of this name. managedBy says who keeps
// one that is added, if not a person by hand.
func (t *Trusts) Put(ctx context.Context, caller estover.Caller, spec Spec, managedBy string) (out Trust, err error) {
	if spec, err = Check(spec); err != nil {
		return out, err
	}
	if spec.Issuer == t.Own(caller.Tenant) {
		return out, ErrInvalid.With("This is the issuer of this server itself, whose tokens are taken up by token exchange.").At("issuer")
	}
	if spec.Kind == IDJAG && spec.Audience != t.Own(caller.Tenant) {
		return out, ErrInvalid.With("Such tokens are for the issuer of this server, %s, and for nobody else.", t.Own(caller.Tenant)).At("audience")
	}
	id := estover.NewID("tru")
	err = t.guard.Do(ctx, caller, guard.Op{Action: "trust.put"}, func(tx *guard.Tx) error {
		for i, r := range spec.Rules {
			if err := t.Agent(ctx, tx.Tx, r.Agent); err != nil {
				return t.noAgent(err, i)
			}
		}
		out, err = lockName(ctx, tx.Tx, spec.Name)
		switch {
		case err == nil:
			tx.Note("before", out.Spec)
			tx.Touch(issuerKind, out.Issuer)
			out.Spec, out.ChangedAt = spec, tx.Now()
			out.Epoch++
			err = update(ctx, tx.Tx, out)
		case estover.KindOf(err) == estover.NotFound:
			out = Trust{ID: id, Spec: spec, ManagedBy: managedBy, CreatedAt: tx.Now(), ChangedAt: tx.Now(), Epoch: 1}
			err = insert(ctx, tx.Tx, out)
		}
		if err != nil {
			return err
		}
		tx.SetTarget("trust:" + out.ID)
		tx.Note("trust", spec)
		tx.Touch(issuerKind, spec.Issuer)
		return nil
	})
	return out, err
}

// noAgent says of which rule the agent is none.
func (t *Trusts) noAgent(err error, i int) error {
	var e *estover.Error
	if errors.As(err, &e) && e.Kind != estover.Fault && e.Kind != estover.Unavailable {
		return ErrInvalid.With("%s", e.Detail).At(fmt.Sprintf("rules[%d].agent", i)).Because(err)
	}
	return err
}

// Retire ends a trust: no token of the issuer counts any more. What was issued
// on the word of one lives on until its session or its agent ends.
func (t *Trusts) Retire(ctx context.Context, caller estover.Caller, id string) error {
	return t.guard.Do(ctx, caller, guard.Op{Action: "trust.retire", Target: "trust:" + id}, func(tx *guard.Tx) error {
		was, err := lock(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		was.EndedAt, was.ChangedAt = tx.Now(), tx.Now()
		was.Epoch++
		tx.Touch(issuerKind, was.Issuer)
		return update(ctx, tx.Tx, was)
	})
}

// Get shows a trust that is not retired.
func (t *Trusts) Get(ctx context.Context, caller estover.Caller, id string) (out Trust, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "trust.read", Target: "trust:" + id}, func(tx *db.Tx) error {
		out, err = find(ctx, tx, id)
		return err
	})
	return out, err
}

// ByName shows the trust with this name.
func (t *Trusts) ByName(ctx context.Context, caller estover.Caller, name string) (out Trust, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "trust.read"}, func(tx *db.Tx) error {
		out, err = findName(ctx, tx, name)
		return err
	})
	return out, err
}

// A Filter narrows a list; empty fields do not.
type Filter struct {
	ManagedBy string
}

// MaxPage is the most that one page of a list holds, and what it holds if
// nothing is asked.
const MaxPage = 200

// List shows trusts by name. next is where the following page begins (pass it
// as after), or "" at the end.
func (t *Trusts) List(ctx context.Context, caller estover.Caller, f Filter, after string, limit int) (trusts []Trust, next string, err error) {
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	err = t.guard.Read(ctx, caller, guard.Op{Action: "trust.list"}, func(tx *db.Tx) error {
		trusts, err = list(ctx, tx, f, after, limit+1)
		return err
	})
	if len(trusts) > limit {
		trusts = trusts[:limit]
		next = trusts[limit-1].Name
	}
	return trusts, next, err
}
