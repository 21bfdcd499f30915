package edge

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"estover.dev"
	"estover.dev/internal/jose"
	tokens "estover.dev/internal/token"
)

// The errors of recognising a caller.
var (
	ErrNoCaller = &estover.Error{Kind: estover.Unknown, Code: "authentication_required", Detail: "Say who you are: send an access token in the header Authorization, as Bearer or as DPoP."}
	ErrScheme   = &estover.Error{Kind: estover.Unknown, Code: "authentication_required", Detail: "The header Authorization is not one access token, as Bearer or as DPoP."}
	ErrAudience = &estover.Error{Kind: estover.Unknown, Code: "wrong_audience", Detail: "The access token is not for this server. Ask for one whose resource it is."}
	ErrUnbound  = &estover.Error{Kind: estover.Unknown, Code: "proof_required", Detail: "The access token is bound to a key, and the request does not show it."}
)

// Callers recognises who sends a request by the access token that it carries:
// one of ours, or a person's. It is the one place where an [estover.Caller] is
// made of a request.
//
// A token that is bound to a key counts only along with the key: with a DPoP
// proof for this request and this token (RFC 9449, section 7), or on a
// connection with the certificate (RFC 8705, section 3). What the client must
// know to do better is written to the head of the answer, behind a [Front]:
// WWW-Authenticate on a refusal, DPoP-Nonce whenever DPoP was used.
type Callers struct {
	Tokens *tokens.Tokens

	// Proofs judges DPoP proofs. Nil accepts none, and so no token that is
	// bound by one.
	Proofs *Proofs

	// People recognises a person's token ("est_pt_…"). Nil knows no people.
	People func(ctx context.Context, tenant estover.TenantID, value string) (estover.Caller, error)
}

// personPrefix begins the tokens of people.
const personPrefix = "est_pt_"

// Authenticate says who sends a request to the API of a tenant, whose audience is
// the tenant's issuer. It is called once for a request, whose proof it uses up.
//
// The tenant is that of the address to which the request was sent, and says only
// where somebody wants in. Whose caller it is, the token says: one of another
// tenant is none here.
func (c *Callers) Authenticate(r *http.Request, tenant estover.TenantID) (estover.Caller, error) {
	return c.For(r, tenant, "")
}

// For says who sends a request to the resource of a tenant with this identifier.
// "" is the tenant's API; people have tokens for that alone.
func (c *Callers) For(r *http.Request, tenant estover.TenantID, audience string) (estover.Caller, error) {
	return c.At(r, tenant, audience, nil)
}

// At is For at a resource that tells whoever is refused what they need. It is
// asked for only then; nil says nothing.
func (c *Callers) At(r *http.Request, tenant estover.TenantID, audience string, need func() Need) (estover.Caller, error) {
	o := OriginOf(r)
	scheme, raw, err := authorization(r)
	var caller estover.Caller
	switch {
	case err != nil:
	case scheme == asBearer && strings.HasPrefix(raw, personPrefix):
		if c.People == nil || audience != "" {
			err = tokens.ErrInvalid
			break
		}
		caller, err = c.People(r.Context(), tenant, raw)
	default:
		caller, err = c.token(r, tenant, scheme, raw, audience, o)
	}
	if err != nil {
		if need == nil {
			need = func() Need { return Need{} }
		}
		c.challenge(o, scheme, need(), err)
		return estover.Caller{}, err
	}
	caller.Address, caller.Request = o.Address, o.Request
	return caller, nil
}

func (c *Callers) token(r *http.Request, tenant estover.TenantID, scheme, raw, audience string, o Origin) (estover.Caller, error) {
	t, err := c.Tokens.Verify(r.Context(), raw)
	if err != nil {
		return estover.Caller{}, err
	}
	if audience == "" {
		audience = c.Tokens.Issuer.Of(tenant)
	}
	if t.Tenant != tenant || !t.For(audience) {
		return estover.Caller{}, ErrAudience
	}
	caller := t.Caller()
	if t.Confirm.Certificate != "" {
		if t.Confirm.Certificate != o.Thumbprint() {
			return estover.Caller{}, ErrUnbound.With("The access token is bound to a certificate, and the request does not come with it.")
		}
	}
	switch {
	case scheme == asDPoP && t.Confirm.Key == "":
		return estover.Caller{}, ErrUnbound.With("The access token is bound to no key. Send it as Bearer.")
	case scheme == asDPoP:
		if err := c.proved(r, t, raw, o); err != nil {
			return estover.Caller{}, err
		}
	case t.Confirm.Key != "":
		return estover.Caller{}, ErrUnbound.With("The access token is bound to a key. Send it as DPoP, with a proof.")
	}
	// Whoever had a client secret does not get, by a key of their own making,
	// what wants a key of the agent's.
	if t.Confirm != (tokens.Confirm{}) && caller.Strength != estover.BySecret {
		caller.Strength = estover.ByBound
	}
	return caller, nil
}

// proved checks that the request shows the key that its token is bound to, and
// uses up the proof.
func (c *Callers) proved(r *http.Request, t *tokens.Token, raw string, o Origin) error {
	if c.Proofs == nil {
		return ErrUnbound
	}
	if o.answer != nil {
		o.answer.Set(NonceHeader, c.Proofs.Nonce(t.Tenant))
	}
	proof, err := c.Proofs.Check(r, t.Tenant, raw)
	if err != nil {
		return err
	}
	if proof.Key != t.Confirm.Key {
		return ErrProof.With("The DPoP proof is of another key than the one that the access token is bound to.")
	}
	return c.Tokens.Consume(r.Context(), t.Tenant, []tokens.Used{proof.Use})
}

// challenge tells the client how it can be recognised (RFC 6750, section 3;
// RFC 9449, section 7.1).
func (c *Callers) challenge(o Origin, scheme string, need Need, err error) {
	if o.answer == nil || estover.KindOf(err) != estover.Unknown {
		return
	}
	var e *estover.Error
	code := "invalid_token"
	switch {
	case errors.Is(err, ErrNoCaller), errors.Is(err, ErrScheme):
		code = ""
	case errors.Is(err, ErrProof), errors.Is(err, ErrNonce):
		errors.As(err, &e)
		code = e.Code
	}
	if scheme == asDPoP {
		// This one alone: some clients look for what they have to do better in
		// an answer with one challenge.
		o.answer["Www-Authenticate"] = []string{need.of(asDPoP, code)}
		return
	}
	challenges := []string{need.of(asBearer, code)}
	if c.Proofs != nil {
		challenges = append(challenges, need.of(asDPoP, ""))
	}
	o.answer["Www-Authenticate"] = challenges
}

// A Need is what a resource tells whoever comes with too little (RFC 6750,
// section 3; RFC 9728, section 5.1).
type Need struct {
	Metadata string   // the URL at which the resource describes itself; "" for none
	Scopes   []string // all that a token needs for the request; nil if that is not known

	// Class and MaxAge are how the person at the root must have proved who they
	// are, and how many seconds ago at most (RFC 9470, section 3); "" and 0 for
	// any.
	Class  string
	MaxAge int64
}

// Challenge says in the scheme by which a token was sent why it is too little.
// The error is a word of RFC 6750 or of what has extended it.
func (n Need) Challenge(r *http.Request, code string) string {
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, asDPoP) {
		scheme = asBearer
	}
	return n.of(strings.ToLower(scheme), code)
}

// of is one challenge. Neither scope-tokens, whose form classes have too, nor our
// own URLs have a character that would have to be escaped.
func (n Need) of(scheme, code string) string {
	scopes := slices.DeleteFunc(slices.Clone(n.Scopes), func(s string) bool { return !tokens.Scope(s) })
	s := `Bearer realm="estover"`
	if scheme == asDPoP {
		s = `DPoP realm="estover", algs="` + strings.Join(jose.Algorithms(jose.DPoPProof), " ") + `"` // RFC 9449, section 7.1
	}
	age := ""
	if n.MaxAge > 0 {
		age = strconv.FormatInt(n.MaxAge, 10)
	}
	class := ""
	if tokens.Scope(n.Class) {
		class = n.Class
	}
	for _, one := range []struct{ name, value string }{
		{"error", code}, {"scope", strings.Join(scopes, " ")}, {"acr_values", class}, {"max_age", age}, {"resource_metadata", n.Metadata},
	} {
		if one.value != "" {
			s += `, ` + one.name + `="` + one.value + `"`
		}
	}
	return s
}

// The schemes by which an access token is sent.
const (
	asBearer = "bearer"
	asDPoP   = "dpop"
)

// Presents reports whether a request has an access token in its header
// Authorization, good or bad.
func Presents(r *http.Request) bool {
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, asBearer) || strings.EqualFold(scheme, asDPoP)
}

// authorization is the token that a request carries in its one header
// Authorization (RFC 6750, section 2.1; RFC 9449, section 7.1), and the scheme
// in small letters. Nothing else is looked at: no query, no form, no cookie.
func authorization(r *http.Request) (scheme, raw string, err error) {
	switch values := r.Header["Authorization"]; len(values) {
	case 0:
		return "", "", ErrNoCaller
	case 1:
		scheme, raw, _ := strings.Cut(values[0], " ")
		scheme, raw = strings.ToLower(scheme), strings.TrimLeft(raw, " ")
		if scheme != asBearer && scheme != asDPoP || raw == "" || strings.ContainsAny(raw, " \t,") {
			return "", "", ErrScheme
		}
		return scheme, raw, nil
	}
	return "", "", ErrScheme
}
