package token

import (
	"context"
	"slices"

	"estover.dev"
	"estover.dev/internal/detail"
)

// ErrTarget is returned for a resource that is not known, or at which the
// client may do nothing (RFC 8707, section 2).
var ErrTarget = &estover.Error{Kind: estover.Invalid, Code: "invalid_target", Detail: "The resource is not known, or the agent has no grant there for this purpose."}

// ErrScope is returned when nothing is left of the scopes that were asked for.
var ErrScope = &estover.Error{Kind: estover.Invalid, Code: "invalid_scope", Detail: "None of the scopes asked for is granted for this resource and purpose."}

// narrow finds what the token will be good for: asked ∩ proven ∩ what the
// client may have ∩ what the parent has.
func (t *Tokens) narrow(ctx context.Context, r Request) ([]Allowed, []string, detail.List, error) {
	if r.Proof.Chain != nil {
		if err := t.chained(ctx, r); err != nil {
			return nil, nil, nil, err
		}
		targets, scopes, err := r.Proof.Chain.narrow(r.Scopes)
		return targets, scopes, nil, err
	}
	details, types, err := t.narrowDetails(ctx, r)
	if err != nil {
		return nil, nil, nil, err
	}
	tasks := details.Tasks()
	ourselves := t.Issuer.Of(r.Caller.Tenant)
	asked := r.asked(ourselves)
	limits := [][]string{r.Proof.Scopes}
	bounds := [][]string{r.Proof.Resources}
	if p := r.Proof.Parent; p != nil {
		limits, bounds = append(limits, p.Scopes), append(bounds, p.Resources)
	}
	var targets []Allowed
	var scopes []string
	add := func(a Allowed) {
		switch {
		case slices.ContainsFunc(targets, func(have Allowed) bool { return have.Audience == a.Audience }):
			return // the same resource under two spellings
		case targets == nil:
			scopes = a.Scopes
		default:
			scopes = slices.Concat(scopes, a.Scopes)
		}
		targets = append(targets, a)
	}
	agents := r.agents()
	for _, identifier := range asked {
		if identifier == ourselves && r.Proof.Identity != nil {
			add(Allowed{Audience: ourselves, Scopes: within(r.Scopes, r.Proof.Identity), Actions: r.Proof.Identity})
			continue
		}
		a, err := t.Access.Allowed(ctx, r.Caller.Tenant, agents[0], identifier, r.Session.Purpose)
		if err != nil {
			return nil, nil, nil, err
		}
		for _, other := range agents[1:] {
			its, err := t.Access.Allowed(ctx, r.Caller.Tenant, other, identifier, r.Session.Purpose)
			if err != nil {
				return nil, nil, nil, err
			}
			a.Scopes = within(its.Scopes, a.Scopes)
		}
		for _, b := range bounds {
			if b != nil && !slices.Contains(b, a.Audience) {
				return nil, nil, nil, ErrTarget
			}
		}
		a.Scopes = within(r.Scopes, a.Scopes)
		for _, l := range limits {
			a.Scopes = within(l, a.Scopes)
		}
		a.Scopes = r.Proof.Reach.at(a.Audience, a.Scopes)
		if p := r.Proof.Parent; p != nil {
			a.Scopes = p.Reach.at(a.Audience, a.Scopes)
		}
		a.Scopes = withinTasks(tasks, a.Audience, a.Scopes)
		add(a)
	}
	if details, err = r.placed(details, types, targets); err != nil {
		return nil, nil, nil, err
	}
	if len(targets) > 1 {
		scopes = unambiguous(targets, scopes)
	}
	if len(scopes) == 0 && (r.Scopes != nil || len(targets) > 0) {
		return nil, nil, nil, ErrScope
	}
	return targets, scopes, details, nil
}

// asked are the resources that a request is for: those that it names, else those
// that its authorization details name as their locations, else the client's usual
// one, else, when a token is handed on, what that one is for. Where nothing but who
// the person is was proven or is asked for, that is us.
func (r *Request) asked(ourselves string) []string {
	proven := r.Proof.Resources
	switch usual := r.Client.Resource; {
	case r.forOurselves(ourselves):
		return nil
	case r.Resources != nil:
		return r.Resources
	case len(r.Details.Locations()) > 0: // RFC 9396, section 2.2: where they are to count
		return r.Details.Locations()
	case r.Proof.Identity != nil && (len(proven) == 0 || len(r.Scopes) > 0 && !slices.ContainsFunc(r.Scopes, notIdentity)):
		return []string{ourselves}
	case usual != "" && (proven == nil || slices.Contains(proven, usual)):
		return []string{usual}
	}
	return proven
}

// forOurselves reports whether an agent asks, on its own authority, for what it
// gets when it has no usual resource and names none.
func (r *Request) forOurselves(ourselves string) bool {
	return len(r.Resources) == 1 && r.Resources[0] == ourselves && len(r.Details) == 0 && r.Proof.Subject == r.Client.Subject && r.Proof.Parent == nil && r.Proof.Resources == nil && r.Proof.Identity == nil
}

// agents are the agents of which each must have what the token will be good
// for: the client; who acts, if that is another; and at a root the subject,
// whose authority it is. What is handed on is bounded by the parent.
func (r *Request) agents() []string {
	all := []string{r.Client.ID}
	add := func(s estover.Subject) {
		if s.Kind() == estover.AgentKind && !slices.Contains(all, s.ID()) {
			all = append(all, s.ID())
		}
	}
	if len(r.Proof.Actors) > 0 {
		add(r.Proof.Actors[0])
	}
	if r.Proof.Parent == nil {
		add(r.Proof.Subject)
	}
	return all
}

// unambiguous leaves out the scopes that would say more at one of several
// resources than the client may do there: an action that two of them have, and
// that is granted at one alone.
func unambiguous(targets []Allowed, scopes []string) []string {
	slices.Sort(scopes)
	return slices.DeleteFunc(slices.Compact(scopes), func(s string) bool {
		return slices.ContainsFunc(targets, func(a Allowed) bool { return slices.Contains(a.Actions, s) && !slices.Contains(a.Scopes, s) })
	})
}

// audiences are the identifiers of the targets. A token that is for no
// resource is for us (the management of what is the agent's own).
func audiences(targets []Allowed, issuer string) []string {
	if len(targets) == 0 {
		return []string{issuer}
	}
	list := make([]string, len(targets))
	for i, a := range targets {
		list[i] = a.Audience
	}
	return list
}
