package federation

import (
	"context"
	"errors"
	"maps"
	"slices"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
)

// An Explanation is what there is to say of a token of somebody else to whoever
// may look at trusts: whose it is here, or why it is nobody's.
type Explanation struct {
	Accepted bool       `json:"accepted"`
	Why      string     `json:"why,omitempty"` // why it is not
	Issuer   string     `json:"iss,omitempty"` // as the token says, believed or not
	Subject  string     `json:"sub,omitempty"` // likewise
	Audience []string   `json:"aud,omitempty"` // likewise
	Trust    string     `json:"trust,omitempty"`
	Agent    string     `json:"agent,omitempty"`
	Person   string     `json:"person,omitempty"` // for whom the agent acts; "" for itself
	Rules    []RuleLook `json:"rules,omitempty"`  // of the trust, once it is known that the issuer made the token
}

// A RuleLook is how a rule looks at a token.
type RuleLook struct {
	Agent  string   `json:"agent"`
	Fits   bool     `json:"fits"`
	Misses []string `json:"misses,omitempty"` // the claims that do not fit
}

// Explain says what a token of somebody else is here, and why. It uses nothing
// up: whether the token was presented before is not looked at.
func (t *Trusts) Explain(ctx context.Context, caller estover.Caller, raw string) (e Explanation, err error) {
	if err = t.guard.Read(ctx, caller, guard.Op{Action: "trust.list"}, func(*db.Tx) error { return nil }); err != nil {
		return e, err
	}
	if u, err := jose.Peek(raw); err == nil {
		e.Issuer, e.Subject, e.Audience = u.Issuer, u.Subject, u.Audience
	}
	r, claims, err := t.verified(ctx, caller.Tenant, raw, anyKind)
	if r != nil {
		e.Trust = r.Name
	}
	var w *Workload
	switch {
	case err != nil:
	case r.Kind == IDJAG:
		var g *Granted
		if g, err = t.granted(ctx, caller.Tenant, r, claims); err == nil {
			w, e.Person = &Workload{Agent: g.Agent}, g.Person
		}
	default:
		d, broken := readClaims(claims)
		for i := 0; broken == nil && i < len(r.Rules); i++ {
			e.Rules = append(e.Rules, r.Rules[i].look(d))
		}
		w, err = r.about(claims)
	}
	if err != nil && !errors.Is(err, ErrUntrusted) {
		return e, err
	}
	if e.Accepted = err == nil; e.Accepted {
		e.Agent = w.Agent
	} else {
		e.Why = sentence(err)
	}
	return e, nil
}

// look is how the rule looks at the claims of a token.
func (r *Rule) look(d document) RuleLook {
	look := RuleLook{Agent: r.Agent, Fits: r.fits(d)}
	for _, name := range slices.Sorted(maps.Keys(r.Claims)) {
		if is, ok := d.value(name); !ok || is != r.Claims[name] {
			look.Misses = append(look.Misses, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Globs)) {
		if is, ok := d.value(name); !ok || !glob(r.Globs[name], is) {
			look.Misses = append(look.Misses, name)
		}
	}
	return look
}
