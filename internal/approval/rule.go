package approval

import (
	"context"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Sponsor in the place of a role stands for the person who answers for the agent.
const Sponsor = "sponsor"

// A Rule is what must happen before a request is approved.
type Rule struct {
	Quorum         int64    `json:"quorum"`                     // how many people must approve it
	Roles          []string `json:"roles" nullable:"false"`     // of those who may: roles of people, or sponsor
	Signed         bool     `json:"signed,omitempty"`           // each approval is signed, by a passkey or an ssh key
	ExcludeSponsor bool     `json:"exclude_sponsor,omitempty"`  // the sponsor's word does not count
	EscalateAfter  int64    `json:"escalate_seconds,omitempty"` // after which others may decide too; 0 for never
	EscalateTo     []string `json:"escalate_roles,omitempty"`   // those others
	ExpiresAfter   int64    `json:"expires_seconds"`            // after which nobody may any more
}

// usual is the rule where policy says nothing.
func usual() Rule {
	return Rule{Quorum: 1, Roles: []string{string(estover.Admin), string(estover.Approver)}, ExpiresAfter: int64(UsualWait / time.Second)}
}

// obligation is the type of obligations that say what a rule must be at least.
const obligation = "approval"

// stricter is the rule under which a request stands when policy demands the
// obligations of decisions, and nothing less than the floor.
func stricter(floor Rule, demanded []guard.Obligation) (Rule, error) {
	r := floor
	r.Roles, r.EscalateTo = slices.Clone(r.Roles), slices.Clone(r.EscalateTo)
	var among [][]string // of each that says who decides, whoever may by it, at once or later
	if floor.Roles != nil {
		among = append(among, slices.Concat(floor.Roles, floor.EscalateTo))
	}
	for _, o := range demanded {
		if o.Type != obligation {
			continue
		}
		p := o.Properties
		number := func(name string) int64 { n, _ := p[name].(int64); return n }
		list := func(name string) []string { l, _ := p[name].([]string); return l }
		flag := func(name string) bool { f, _ := p[name].(bool); return f }
		r.Quorum = max(r.Quorum, number("quorum"))
		r.Roles = both(r.Roles, list("roles"))
		if r.Roles != nil && len(r.Roles) == 0 {
			return r, ErrNobody
		}
		if roles := list("roles"); roles != nil {
			among = append(among, slices.Concat(roles, list("escalate_roles")))
		}
		r.Signed = r.Signed || flag("signed")
		r.ExcludeSponsor = r.ExcludeSponsor || flag("exclude_sponsor")
		r.EscalateAfter = sooner(r.EscalateAfter, number("escalate_seconds"))
		r.EscalateTo = both(r.EscalateTo, list("escalate_roles"))
		r.ExpiresAfter = sooner(r.ExpiresAfter, number("expires_seconds"))
	}
	u := usual()
	r.Quorum = max(r.Quorum, u.Quorum)
	if r.Roles == nil {
		r.Roles = u.Roles
	}
	if r.ExpiresAfter == 0 {
		r.ExpiresAfter = u.ExpiresAfter
	}
	r.ExpiresAfter = min(max(r.ExpiresAfter, int64(Shortest/time.Second)), int64(LongestWait/time.Second))
	for _, roles := range among {
		r.EscalateTo = slices.DeleteFunc(r.EscalateTo, func(w string) bool { return !slices.Contains(roles, w) })
	}
	if len(r.EscalateTo) == 0 {
		r.EscalateAfter = 0
	}
	if r.EscalateAfter == 0 {
		r.EscalateTo = nil
	}
	if r.ExcludeSponsor && len(r.Roles) == 1 && r.Roles[0] == Sponsor {
		return r, ErrNobody
	}
	return r, nil
}

// meets reports whether a rule demands at least what another does.
func (r *Rule) meets(other Rule) bool {
	outside := func(roles, among []string) bool {
		return slices.ContainsFunc(roles, func(w string) bool { return !slices.Contains(among, w) })
	}
	return r.Quorum >= other.Quorum && (r.Signed || !other.Signed) && (r.ExcludeSponsor || !other.ExcludeSponsor) &&
		!outside(r.Roles, other.Roles) && !outside(r.EscalateTo, slices.Concat(other.Roles, other.EscalateTo))
}

// both are the words that stand in both lists; a list that is nil says nothing.
func both(a, b []string) []string {
	if a == nil {
		return slices.Clone(b)
	}
	if b == nil {
		return a
	}
	return slices.DeleteFunc(slices.Clone(a), func(w string) bool { return !slices.Contains(b, w) })
}

// sooner is the smaller of two times, of which 0 says nothing.
func sooner(a, b int64) int64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// A standing is by what somebody may decide about a request.
type standing struct {
	Person
	sponsor bool            // they answer for the agent
	own     bool            // they asked for it, it was asked for in their name, or in a session of theirs
	by      []string        // the roles; empty if they may not
	instead estover.Subject // in whose place, if only so
}

// roles are those of whoever may decide at present.
func (r *Request) roles() []string {
	if r.EscalatedAt.IsZero() {
		return r.Rule.Roles
	}
	all := slices.Concat(r.Rule.Roles, r.Rule.EscalateTo)
	slices.Sort(all)
	return slices.Compact(all)
}

// asked reports whether somebody asked for it, or whether it was asked for in
// their name, or in a session that they opened: what works there does so at their
// word.
func (r *Request) asked(person string) bool {
	s := estover.User(person)
	return r.Requester == s || r.OpenedBy == s || slices.Contains(r.Chain, s)
}

// may finds out by what a person may decide about a request: by their own role,
// or in the place of somebody who is away.
func (a *Approvals) may(ctx context.Context, tx *db.Tx, r *Request, person string) (s standing, err error) {
	if s.Person, err = a.Person(ctx, tx, person); err != nil {
		return s, err
	}
	sponsor := ""
	if r.Agent != "" {
		agent, err := a.Agent(ctx, tx, r.Agent)
		if err != nil {
			return s, err
		}
		sponsor = agent.Sponsor
	}
	s.sponsor, s.own = sponsor == person, r.asked(person)
	if s.own || !s.Active || s.sponsor && r.Rule.ExcludeSponsor {
		return s, nil
	}
	direct := func(p Person) (by []string) {
		for _, role := range r.roles() {
			if role == Sponsor && p.ID == sponsor || slices.Contains(p.Roles, estover.Role(role)) {
				by = append(by, role)
			}
		}
		return by
	}
	if s.by = direct(s.Person); len(s.by) > 0 {
		return s, nil
	}
	away, err := absences(ctx, tx, person)
	if err != nil {
		return s, err
	}
	for _, one := range away {
		p, err := a.Person(ctx, tx, one.Person)
		if err != nil {
			return s, err
		}
		if !p.Active || r.asked(p.ID) || p.ID == sponsor && r.Rule.ExcludeSponsor {
			continue
		}
		if by := direct(p); len(by) > 0 {
			s.by, s.instead = by, estover.User(p.ID)
			return s, nil
		}
	}
	return s, nil
}

// approvals are the votes of the present round that count now: one for each
// person who may still decide, and for each in whose place somebody did.
func (a *Approvals) approvals(ctx context.Context, tx *db.Tx, r *Request) (count []Vote, err error) {
	heard := map[estover.Subject]bool{}
	for _, v := range r.Votes {
		if v.Round != r.Round || v.Verdict != Approved {
			continue
		}
		s, err := a.may(ctx, tx, r, v.Approver.ID())
		if err != nil {
			return nil, err
		}
		who := v.Approver
		if s.instead != "" {
			who = s.instead
		}
		if len(s.by) > 0 && !heard[who] {
			heard[who] = true
			count = append(count, v)
		}
	}
	return count, nil
}
