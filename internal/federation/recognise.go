package federation

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/job"
	"estover.dev/internal/jose"
)

// A ready is a trust with what was worked out of it once.
type ready struct {
	Trust
	material // of the trust itself; without keys if they are fetched
	source   Source
}

// loadReady is the live trust of an issuer.
func loadReady(ctx context.Context, tx *db.Tx, issuer string) (*ready, error) {
	t, err := findIssuer(ctx, tx, issuer)
	if err != nil {
		return nil, err
	}
	r := &ready{Trust: t, source: t.source(tx.Tenant())}
	if t.JWKS != "" {
		r.material, err = parse([]byte(t.JWKS), t.Domain() != "")
	}
	return r, err
}

// A Workload is who a token of a trusted issuer is about.
type Workload struct {
	Trust   Trust
	Agent   string // of ours
	Subject string // as the issuer calls it
	ID      string // jti; "" if it has none
	Expires time.Time

	// Key and Certificate are the key that the token is bound to (cnf: jkt and
	// x5t#S256), which whoever presents it has to show; "" if it is not.
	Key, Certificate string

	// MayActIssuer and MayActSubject are the only party that may take it up
	// (RFC 8693, section 4.4); "" for no such bound.
	MayActIssuer, MayActSubject string
}

// The claims of tokens that are no workload's identity: those that are made for
// a person who logs in somewhere (OpenID Connect Core, sections 2 and 3), and
// those of somebody who acts for another, whose chain we do not know.
var refused = []string{"nonce", "at_hash", "c_hash", "s_hash", "act"}

// Recognise says who a token of a trusted issuer is about. [ErrUntrusted] with
// the reason if it says nothing here; any other error means that the question
// could not be answered. Along with an error there is at most the trust.
func (t *Trusts) Recognise(ctx context.Context, tenant estover.TenantID, raw string) (*Workload, error) {
	r, claims, err := t.verified(ctx, tenant, raw, workloads)
	if r == nil {
		return &Workload{}, err
	}
	w := &Workload{}
	if err == nil {
		w, err = r.about(claims)
	}
	if err != nil {
		return &Workload{Trust: r.Trust}, err
	}
	return w, nil
}

// about is the workload that a verified token is about.
func (r *ready) about(claims *jose.Claims) (*Workload, error) {
	d, err := readClaims(claims)
	if err != nil {
		return nil, err
	}
	rule, err := r.rule(d)
	if err != nil {
		return nil, err
	}
	w := &Workload{Trust: r.Trust, Agent: rule.Agent, Subject: claims.Subject, ID: claims.ID, Expires: claims.Expires}
	if r.SingleUse && w.ID == "" {
		return nil, ErrUntrusted.With("The trust %s lets a token count once, and this one has no jti to know it by.", r.Name)
	}
	var bound struct {
		Confirm *struct {
			Key         string `json:"jkt"`
			Certificate string `json:"x5t#S256"`
		} `json:"cnf"`
		MayAct *struct {
			Issuer  string `json:"iss"`
			Subject string `json:"sub"`
		} `json:"may_act"`
	}
	if err := claims.Into(&bound); err != nil {
		return nil, ErrUntrusted.With("%s", sentence(err))
	}
	if c := bound.Confirm; c != nil {
		w.Key, w.Certificate = c.Key, c.Certificate
	}
	if m := bound.MayAct; m != nil {
		w.MayActIssuer, w.MayActSubject = m.Issuer, m.Subject
	}
	// A bound that is there and says nothing, a null for one, is not as good as
	// none.
	if _, there := claims.Claim("cnf"); there && w.Key == "" && w.Certificate == "" {
		return nil, ErrUntrusted.With("The token is bound to a key in a way that is not known here (cnf).")
	}
	if _, there := claims.Claim("may_act"); there && (w.MayActIssuer == "" || w.MayActSubject == "") {
		return nil, ErrUntrusted.With("The token does not say by iss and sub who may take it up (may_act).")
	}
	return w, nil
}

// workloads is the kind of a trust that is about workloads, and anyKind either.
const (
	workloads = ""
	anyKind   = "any"
)

// verified is the trust of a token, and what the token says, once it is known
// that the issuer said it. The trust is of the kind that is wanted.
func (t *Trusts) verified(ctx context.Context, tenant estover.TenantID, raw, kind string) (*ready, *jose.Claims, error) {
	u, err := jose.Peek(raw)
	if err != nil {
		return nil, nil, ErrUntrusted.With("The token cannot be read: %s", sentence(err)).Because(err)
	}
	// A JWT-SVID need not have an issuer: its trust is that of the trust domain
	// of its subject. No other token finds a trust by its subject, and none finds
	// that of a domain by its issuer.
	issuer := u.Issuer
	if domain := domainOf(u.Subject); issuer == "" && domain != "" {
		issuer = spiffe + domain
	} else if strings.HasPrefix(issuer, spiffe) {
		issuer = ""
	}
	if issuer == "" || issuer == t.Own(tenant) {
		return nil, nil, ErrUntrusted
	}
	r, err := t.byIssuer.Get(ctx, tenant, issuer)
	if errors.Is(err, ErrNotFound) {
		return nil, nil, ErrUntrusted
	}
	if err != nil {
		return nil, nil, err
	}
	if lacks := r.missing(); lacks != "" {
		return r, nil, ErrUntrusted.With("The trust %s says nothing of %s, and so it lets nothing count.", r.Name, lacks)
	}
	if kind != anyKind && r.Kind != kind {
		return r, nil, ErrUntrusted.With("The trust %s is not about such tokens.", r.Name)
	}
	claims, err := t.check(ctx, tenant, r, raw)
	switch estover.KindOf(err) {
	case estover.Fault, estover.Unavailable:
		if err != nil {
			return r, nil, err
		}
	default:
		return r, nil, ErrUntrusted.With("The token is not accepted under the trust %s: %s", r.Name, sentence(err)).Because(err)
	}
	not := refused
	if r.Kind == IDJAG {
		not = refusedGrants
	}
	for _, name := range not {
		if _, ok := claims.Claim(name); ok {
			return r, nil, ErrUntrusted.With("The token has a claim %q, which says more than what it may be used for here.", name)
		}
	}
	if life := claims.Expires.Sub(claims.IssuedAt); r.Kind != IDJAG && life > r.life() {
		return r, nil, ErrUntrusted.With("The token lives for %s, and those of the trust %s for %s at most (max_token_seconds).", life, r.Name, r.life())
	}
	return r, claims, nil
}

// check verifies a token with the keys of its issuer, and once more with those
// that are there by now if its key is not among them.
func (t *Trusts) check(ctx context.Context, tenant estover.TenantID, r *ready, raw string) (*jose.Claims, error) {
	want := jose.Expected{
		Now: t.guard.DB().Now(), Issuer: r.Issuer, Audiences: []string{r.Audience}, Algorithms: r.Algorithms, Types: r.Types,
	}
	purpose := jose.JWTBearer
	if r.Kind == IDJAG {
		purpose = jose.IDJAG
		if r.Audience != t.Own(tenant) {
			return nil, jose.ErrInvalid.With("The audience that the trust names is not this server.")
		}
	}
	if r.Domain() != "" {
		purpose, want.Types = jose.JWTSVID, []string{"", "JWT", "JOSE"} // JWT-SVID, section 2.3
	}
	if r.keys != nil {
		return jose.Verify(purpose, r.keys, raw, want)
	}
	there, at, err := t.sets.of(ctx, r.source, time.Time{})
	if err != nil {
		return nil, err
	}
	claims, err := jose.Verify(purpose, there.keys, raw, want)
	if !errors.Is(err, jose.ErrUnknownKey) {
		return claims, err
	}
	newer, _, failed := t.sets.of(ctx, r.source, at)
	if failed != nil {
		return nil, failed
	}
	if newer.keys == there.keys {
		return nil, err
	}
	return jose.Verify(purpose, newer.keys, raw, want)
}

// Unreachable lists the trusts of a tenant whose keys cannot be had at the
// moment, with the reason, and says how many trusts there are. It asks for keys
// no oftener than tokens do.
func (t *Trusts) Unreachable(ctx context.Context, tenant estover.TenantID) (all int, names []string, err error) {
	var trusts []Trust
	err = t.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		trusts, err = list(ctx, tx, Filter{}, "", maxChecked)
		return err
	})
	why := make([]error, len(trusts))
	var asked sync.WaitGroup
	for i, one := range trusts {
		if one.JWKSURL != "" {
			asked.Go(func() {
				why[i] = job.Guarded(func() error { _, _, err := t.sets.of(ctx, one.source(tenant), time.Time{}); return err })
			})
		}
	}
	asked.Wait()
	for i, failed := range why {
		if failed != nil {
			names = append(names, trusts[i].Name)
		}
	}
	return len(trusts), names, err
}

// maxChecked bounds the trusts that are looked at at once.
const maxChecked = 100

// rule is the one rule that fits.
func (r *ready) rule(d document) (*Rule, error) {
	var found *Rule
	for i := range r.Rules {
		switch one := &r.Rules[i]; {
		case !one.fits(d):
		case found != nil:
			return nil, ErrUntrusted.With("More than one rule of the trust %s fits the token, so it is nobody's.", r.Name)
		default:
			found = one
		}
	}
	if found == nil {
		return nil, ErrUntrusted.With("No rule of the trust %s fits the token.", r.Name)
	}
	return found, nil
}
