package token

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"estover.dev"
)

// handed remembers the grants that this node made of tokens that were handed on.
// A token that the same client takes up again, to the same ends, rests on the
// grant that is there: it is one hand-over, however many tokens come of it. What
// is remembered is what was written. Whether it lives the copy of the row says, and
// in the end the commit, which looks at the row itself; what another node made is
// not looked for.
type handed struct {
	mu   sync.RWMutex
	made map[handedKey]*Grant
}

// handedKey says of what, and for whom. Whatever else bounds the grant is compared
// ([Grant.alike]).
type handedKey struct {
	tenant        estover.TenantID
	parent, token string // an ID token has no name
	ends          int64  // in microseconds since 1970
	client        string
	actor         estover.Subject // the nearest
	confirm       Confirm
}

// maxRevoked is how many tokens of a grant may have been revoked one by one for
// further ones to rest on it. Whoever looks at a grant reads them all.
const maxRevoked = 16

// maxHanded bounds the grants that are remembered. Of a token whose grant was
// dropped another one is made.
const maxHanded = 16_384

func (g *Grant) handedKey(tenant estover.TenantID) handedKey {
	k := handedKey{tenant: tenant, parent: g.Parent, token: g.From, ends: g.Expires.UnixMicro(), client: g.Client, confirm: g.Confirm}
	if len(g.Actors) > 0 {
		k.actor = g.Actors[0]
	}
	return k
}

// like is the grant that was made of the same token for the same client with the
// same bounds as g, or nil.
func (h *handed) like(tenant estover.TenantID, g *Grant) *Grant {
	h.mu.RLock()
	made := h.made[g.handedKey(tenant)]
	h.mu.RUnlock()
	if made == nil || !made.alike(g) {
		return nil
	}
	return made
}

// alike reports whether two grants differ in nothing but in which they are. Every
// exchange asks, so that the fields are compared one by one; a test knows all that
// there are.
func (g *Grant) alike(other *Grant) bool {
	return g.Parent == other.Parent && g.From == other.From && g.Root == other.Root &&
		g.Kind == other.Kind && g.Session == other.Session && g.Client == other.Client && g.Subject == other.Subject &&
		slices.Equal(g.Actors, other.Actors) &&
		equal(g.Scopes, other.Scopes) && equal(g.Resources, other.Resources) && equal(g.Identity, other.Identity) &&
		(g.Details == nil) == (other.Details == nil) && g.Details.Equal(other.Details) &&
		(g.Reach == nil) == (other.Reach == nil) && maps.EqualFunc(g.Reach, other.Reach, slices.Equal) &&
		g.Confirm == other.Confirm &&
		g.Auth.Time == other.Auth.Time && g.Auth.Class == other.Auth.Class && slices.Equal(g.Auth.Methods, other.Auth.Methods) &&
		g.Created.Equal(other.Created) && g.Expires.Equal(other.Expires) && g.Ended.Equal(other.Ended) && g.Cause == other.Cause
}

// equal compares two limits. Nil is none, and not the same as one that nothing
// fits.
func equal(a, b []string) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }

// handedOn is the grant on which a token may rest that was made of the same token,
// for the same client and with the same bounds as g, as it stands; nil for none.
func (t *Tokens) handedOn(ctx context.Context, tenant estover.TenantID, g *Grant, now time.Time) (*Grant, error) {
	made := t.handed.like(tenant, g)
	if made == nil {
		return nil, nil
	}
	there, err := t.grants.Get(ctx, tenant, made.ID)
	if err != nil && !errors.Is(err, ErrGrantEnded) {
		return nil, err
	}
	// Of what it says its end alone may have changed, with that of its session.
	if err != nil || there.live(now) != nil || !there.Expires.Equal(g.Expires) || len(there.denied) >= maxRevoked {
		t.handed.forget(tenant, made)
		return nil, nil
	}
	return there, nil
}

// keep remembers a grant that has been made.
func (h *handed) keep(tenant estover.TenantID, g *Grant, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.made == nil {
		h.made = map[handedKey]*Grant{}
	}
	trim(h.made, maxHanded, now)
	h.made[g.handedKey(tenant)] = g
}

// forget drops a grant on which no further token may rest.
func (h *handed) forget(tenant estover.TenantID, g *Grant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := g.handedKey(tenant)
	if made := h.made[k]; made != nil && made.ID == g.ID {
		delete(h.made, k)
	}
}
