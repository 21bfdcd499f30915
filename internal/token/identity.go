package token

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"slices"
	"time"

	"estover.dev/internal/jose"
	"estover.dev/internal/seal"
)

// The scopes by which a client learns who a person is (OpenID Connect Core,
// sections 3.1.2.1 and 5.4). They are no scopes of a resource as soon as OpenID
// is among those that are asked for.
const (
	OpenID  = "openid"
	Profile = "profile"
	Email   = "email"
)

// IdentityScopes are all of them, sorted.
var IdentityScopes = []string{Email, OpenID, Profile}

// IDTokenLife is how long an ID token is good: long enough to be read once.
const IDTokenLife = 5 * time.Minute

func notIdentity(scope string) bool { return !slices.Contains(IdentityScopes, scope) }

// SplitScopes parts what is asked for into what the client would learn of the
// person, sorted, and what it would do. Without [OpenID] it would learn nothing.
func SplitScopes(asked []string) (identity, scopes []string) {
	if !slices.Contains(asked, OpenID) {
		return nil, asked
	}
	scopes = []string{}
	for _, s := range asked {
		if notIdentity(s) {
			scopes = append(scopes, s)
		} else {
			identity = append(identity, s)
		}
	}
	slices.Sort(identity)
	return slices.Compact(identity), scopes
}

// split parts a reach into what the client would learn of the person, nil for
// nothing, and what it would do at resources.
func (r Reach) split(issuer string) (identity []string, rest Reach) {
	identity = r[issuer]
	if identity == nil {
		return nil, r
	}
	rest = maps.Clone(r)
	delete(rest, issuer)
	return identity, rest
}

// identify makes the ID token that goes out along with an access token, and says
// which key signed it; "" if none does: where nobody agreed to one, and where
// the request is for less.
func (t *Tokens) identify(ctx context.Context, r Request, g *Grant, accessToken string, now time.Time) (string, *seal.SigningKey, error) {
	if r.Proof.Identity == nil || r.Scopes != nil && !slices.Contains(r.Scopes, OpenID) {
		return "", nil, nil
	}
	purpose := jose.IDToken
	if r.Client.IDTokenAlgorithm == "ES256" {
		purpose = seal.IDTokenES256
	}
	key, err := t.Keys.Active(ctx, r.Caller.Tenant, purpose)
	if err != nil {
		return "", nil, err
	}
	// OpenID Connect Core, sections 2, 3.1.3.6 and 12.2. There is one audience, so
	// azp would say nothing; a nonce is there if the proof has one, which a
	// refresh has not.
	b := make([]byte, 0, 512)
	b = member(b, '{', "iss", t.Issuer.Of(r.Caller.Tenant))
	b = member(b, ',', "sub", string(g.Subject))
	b = member(b, ',', "aud", r.Client.Name())
	b = number(b, "iat", now.Unix())
	b = number(b, "exp", now.Add(IDTokenLife).Unix())
	b = g.Auth.append(b)
	b = member(b, ',', "grant_id", g.ID) // so that it is dead with what it came of
	if r.Proof.Nonce != "" {
		b = member(b, ',', "nonce", r.Proof.Nonce)
	}
	b = member(b, ',', "at_hash", halfHash(accessToken))
	signed, err := jose.Sign(jose.IDToken, key.Token, append(b, '}'))
	return signed, &key, err
}

// halfHash is the left half of the SHA-256 of an ASCII string, which is the hash
// of both algorithms that sign ID tokens (OpenID Connect Core, section 3.1.3.6).
func halfHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2])
}
