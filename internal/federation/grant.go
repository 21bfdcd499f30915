package federation

import (
	"context"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/detail"
	"estover.dev/internal/jose"
)

// Granted is what an identity assertion grant says: a person lets an agent act
// for them here, as far as their organisation's provider lets it
// (draft-ietf-oauth-identity-assertion-authz-grant-03, section 3.1).
type Granted struct {
	Trust   Trust
	Agent   string // of ours: its client_id
	Person  string // of ours
	Subject string // the person, as the issuer calls them
	ID      string // jti
	Expires time.Time

	// Key and Certificate are the key that the token is bound to (cnf: jkt and
	// x5t#S256), which whoever presents it has to show; "" if it is not.
	Key, Certificate string

	// Scopes and Resources are the most that it is good for, nil for no limit.
	Scopes, Resources []string

	// Details are the authorization details of the token (RFC 9396); nil for none.
	Details detail.List

	// SignedIn is when the person proved at the provider who they are, zero if it
	// does not say, and Strong that this was as good as a passkey here.
	SignedIn time.Time
	Strong   bool
}

// The claims of which a grant must have none: those of somebody who acts for
// another, whose chain we do not know.
var refusedGrants = []string{"act", "may_act"}

// maxID bounds the jti of a grant, in bytes: it is kept with what it bought.
const maxID = 255

// IsGrant reports whether a token says of itself that it is an identity
// assertion grant. Nothing is known by that but how it is to be looked at.
func IsGrant(raw string) bool {
	u, err := jose.Peek(raw)
	typ := strings.TrimPrefix(strings.ToLower(u.Header.Type), "application/")
	return err == nil && typ == "oauth-id-jag+jwt"
}

// Granted says what an identity assertion grant of a trusted issuer lets whom
// do. [ErrUntrusted] with the reason if it says nothing here; any other error
// means that the question could not be answered.
func (t *Trusts) Granted(ctx context.Context, tenant estover.TenantID, raw string) (*Granted, error) {
	r, claims, err := t.verified(ctx, tenant, raw, IDJAG)
	if err != nil {
		return nil, err
	}
	return t.granted(ctx, tenant, r, claims)
}

// granted is what a verified token lets whom do.
func (t *Trusts) granted(ctx context.Context, tenant estover.TenantID, r *ready, claims *jose.Claims) (*Granted, error) {
	g, d, err := readGrant(claims)
	if err != nil {
		return nil, err
	}
	g.Trust = r.Trust
	if t.Person == nil {
		return nil, ErrUntrusted.With("Nobody is known here by the provider %s.", r.Provider)
	}
	g.Person, g.Strong, err = t.Person(ctx, tenant, r.Provider, r.Issuer, claims.Subject, d)
	switch estover.KindOf(err) {
	case estover.NotFound, estover.Denied:
		return nil, ErrUntrusted.With("The person is not known here: nobody has signed in with the provider %s as the one whom the token is about.", r.Provider).Because(err)
	}
	return g, err
}

// readGrant reads the claims of a grant, all but who it is about.
func readGrant(claims *jose.Claims) (*Granted, document, error) {
	var says struct {
		Client  string         `json:"client_id"`
		Scope   *string        `json:"scope"`
		Time    int64          `json:"auth_time"`
		Details jsontext.Value `json:"authorization_details"`
		Confirm *struct {
			Key         string `json:"jkt"`
			Certificate string `json:"x5t#S256"`
		} `json:"cnf"`
	}
	if err := claims.Into(&says); err != nil {
		return nil, nil, ErrUntrusted.With("%s", sentence(err))
	}
	g := &Granted{Agent: says.Client, Subject: claims.Subject, ID: claims.ID, Expires: claims.Expires}
	if len(claims.ID) > maxID {
		return nil, nil, ErrUntrusted.With("The token has a jti of more than %d bytes.", maxID)
	}
	if says.Scope != nil {
		g.Scopes = append([]string{}, strings.Fields(*says.Scope)...)
	}
	if c := says.Confirm; c != nil {
		if g.Key, g.Certificate = c.Key, c.Certificate; g.Key == "" && g.Certificate == "" {
			return nil, nil, ErrUntrusted.With("The token is bound to a key in a way that is not known here (cnf).")
		}
	}
	if says.Time > 0 {
		g.SignedIn = time.Unix(says.Time, 0)
	}
	if says.Details != nil {
		var err error
		if g.Details, err = detail.Parse(says.Details); err != nil {
			return nil, nil, ErrUntrusted.With("The token has a claim authorization_details that cannot be read: %s", sentence(err)).Because(err)
		}
	}
	d, err := readClaims(claims)
	if err != nil {
		return nil, nil, err
	}
	switch v := d["resource"].(type) {
	case string:
		g.Resources = []string{v}
	case []any:
		g.Resources = []string{}
		for _, one := range v {
			s, ok := one.(string)
			if !ok {
				return nil, nil, ErrUntrusted.With("The token names a resource that is no URI.")
			}
			g.Resources = append(g.Resources, s)
		}
	default:
		if _, there := d["resource"]; there {
			return nil, nil, ErrUntrusted.With("The token names a resource that is no URI.")
		}
	}
	if _, there := d["scope"]; there && g.Scopes == nil {
		return nil, nil, ErrUntrusted.With("The token names a scope that is none.")
	}
	if _, there := d["cnf"]; there && g.Key == "" && g.Certificate == "" {
		return nil, nil, ErrUntrusted.With("The token is bound to a key in a way that is not known here (cnf).")
	}
	return g, d, nil
}
