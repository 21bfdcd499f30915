package approval

import (
	"cmp"
	"context"
	"slices"

	"estover.dev"
	"estover.dev/internal/db"
)

// An Explanation says of a request who may decide, who has, what is missing and
// what policy said.
type Explanation struct {
	Request Request  `json:"request"`
	Roles   []string `json:"roles" nullable:"false"` // of whoever may decide at present
	May     []Who    `json:"may" nullable:"false"`   // those who can still give their word
	Heard   []Who    `json:"heard" nullable:"false"` // those whose approval counts
	Missing int64    `json:"missing"`                // approvals
	You     string   `json:"you,omitempty"`          // why the caller cannot decide, or that they can
}

// A Who is somebody who decides.
type Who struct {
	Person  string          `json:"person"`
	Name    string          `json:"name"`
	By      []string        `json:"by,omitempty"`      // the roles
	Instead estover.Subject `json:"instead,omitempty"` // in whose place
}

// most bounds the people that an explanation names.
const most = 50

// Why explains where a request stands.
func (a *Approvals) Why(ctx context.Context, caller estover.Caller, id string) (e Explanation, err error) {
	err = a.guard.Read(ctx, caller, a.op(caller, "access.read", id), func(tx *db.Tx) error {
		r, err := find(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := a.shown(ctx, tx, caller, &r); err != nil {
			return err
		}
		if err := a.weigh(ctx, tx, caller, &r); err != nil {
			return err
		}
		e, err = a.explain(ctx, tx, caller, r)
		return err
	})
	return e, err
}

func (a *Approvals) explain(ctx context.Context, tx *db.Tx, caller estover.Caller, r Request) (Explanation, error) {
	e := Explanation{Request: r, Roles: r.roles(), May: []Who{}, Heard: []Who{}}
	if r.DecidedBy == ByPolicy {
		return e, nil
	}
	heard, err := a.approvals(ctx, tx, &r)
	if err != nil {
		return e, err
	}
	for _, v := range heard {
		p, err := a.Person(ctx, tx, v.Approver.ID())
		if err != nil {
			return e, err
		}
		e.Heard = append(e.Heard, Who{p.ID, p.Name, nil, v.For})
	}
	if r.State != Pending {
		return e, nil
	}
	e.Missing = max(r.Rule.Quorum-int64(len(heard)), 0)
	people, err := a.deciders(ctx, tx, &r)
	if err != nil {
		return e, err
	}
	for _, id := range people {
		s, err := a.may(ctx, tx, &r, id)
		if err != nil {
			return e, err
		}
		said := slices.ContainsFunc(r.Votes, func(v Vote) bool { return v.Round == r.Round && v.Approver == estover.User(id) })
		if len(s.by) > 0 && !said && len(e.May) < most {
			e.May = append(e.May, Who{id, s.Name, s.by, s.instead})
		}
	}
	slices.SortFunc(e.May, func(a, b Who) int { return cmp.Compare(a.Name, b.Name) })
	if caller.Subject.Kind() == estover.UserKind && len(caller.Actors) == 0 {
		s, err := a.may(ctx, tx, &r, caller.Subject.ID())
		if err != nil {
			return e, err
		}
		switch {
		case s.own:
			e.You = ErrOwn.Detail
		case len(s.by) == 0:
			e.You = "You are not among those who decide about this request."
		case slices.ContainsFunc(r.Votes, func(v Vote) bool { return v.Round == r.Round && v.Approver == caller.Subject }):
			e.You = ErrVoted.Detail
		default:
			e.You = "You can decide about this request."
		}
	}
	return e, nil
}

// deciders are the ids of people who may be able to decide: of those with the
// roles, the sponsor, and whoever stands in for somebody.
func (a *Approvals) deciders(ctx context.Context, tx *db.Tx, r *Request) (ids []string, err error) {
	add := func(id string) {
		if id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	var roles []estover.Role
	for _, role := range r.roles() {
		if role != Sponsor {
			roles = append(roles, estover.Role(role))
			continue
		}
		if r.Agent == "" {
			continue
		}
		agent, err := a.Agent(ctx, tx, r.Agent)
		if err != nil {
			return nil, err
		}
		add(agent.Sponsor)
	}
	people, err := a.Holding(ctx, tx, roles)
	if err != nil {
		return nil, err
	}
	for _, p := range people {
		add(p.ID)
	}
	away, err := absences(ctx, tx, "")
	if err != nil {
		return nil, err
	}
	for _, one := range away {
		add(one.Deputy)
	}
	return ids, nil
}
