package server

import (
	"context"
	"errors"
	"slices"
	"strings"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/approval"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/guard"
	"estover.dev/internal/resource"
	"estover.dev/internal/session"
)

// approvals are the requests, with what they need of others and what they lead to.
func (s *Server) approvals() *approval.Approvals {
	f := &s.facts
	return approval.New(s.guard, approval.Options{
		Effects: map[approval.Kind]approval.Effect{
			approval.Access: f.elevate,
			approval.Lift: func(ctx context.Context, tx *guard.Tx, r approval.Request, what approval.Granted) (string, error) {
				return s.incidents.Approved(ctx, tx, r, what)
			},
		},
		Floors: map[approval.Kind]approval.Rule{approval.Lift: {Quorum: 1, Roles: []string{string(estover.Admin), string(estover.Approver)}}},
		Decide: s.decider.Decide,
		Verify: s.verifySigned,
		MAC:    func(t estover.TenantID, value []byte) []byte { return s.sealer.MAC(t, "approval", value) },
		Eligible: func(ctx context.Context, tx *db.Tx, r approval.Request, item approval.Item) (bool, error) {
			from, err := f.eligible(ctx, tx, r, item)
			return from != "", err
		},
		Given:  access.Given,
		Agent:  asking,
		Acting: f.registry.Acting,
		Resource: func(ctx context.Context, tx *db.Tx, id string) (approval.Resource, error) {
			return wantable(ctx, tx, id)
		},
		Session: func(ctx context.Context, tx *db.Tx, id string) (approval.Session, error) {
			one, err := session.Load(ctx, tx, id)
			if err != nil {
				return approval.Session{}, err
			}
			in := approval.Session{ID: one.ID, Agent: one.Agent, Purpose: one.Purpose, OpenedBy: one.OpenedBy, Expires: one.ExpiresAt, Ended: !one.EndedAt.IsZero()}
			for one.Parent != "" && in.OpenedBy.Kind() != estover.UserKind {
				if one, err = session.Load(ctx, tx, one.Parent); err != nil {
					return approval.Session{}, err
				}
				in.OpenedBy = one.OpenedBy
			}
			return in, nil
		},
		Hold:   f.sessions.Hold,
		Person: deciding,
		Holding: func(ctx context.Context, tx *db.Tx, roles []estover.Role) (all []approval.Person, err error) {
			people, err := directory.Holding(ctx, tx, roles)
			for _, p := range people {
				all = append(all, personOf(p))
			}
			return all, err
		},
	})
}

// lifters are the active people who may decide that a hold is lifted.
func lifters(ctx context.Context, tx *db.Tx) (ids []string, err error) {
	people, err := directory.Holding(ctx, tx, []estover.Role{estover.Admin, estover.Approver})
	for _, p := range people {
		ids = append(ids, p.ID)
	}
	return ids, err
}

// asking is an agent as those see it who decide about its requests.
func asking(ctx context.Context, tx *db.Tx, id string) (approval.Agent, error) {
	a, err := agent.Load(ctx, tx, id)
	if err != nil {
		return approval.Agent{}, err
	}
	return approval.Agent{ID: a.ID, Name: a.Name, Sponsor: a.Sponsor, Tier: string(a.Tier), Purposes: a.Purposes, Clearance: a.Clearance, Segments: a.Segments}, nil
}

// wantable is a resource of which something can be asked for.
func wantable(ctx context.Context, tx *db.Tx, id string) (approval.Resource, error) {
	u, err := resource.Load(ctx, tx, id)
	if err == nil && !u.EndedAt.IsZero() {
		err = resource.ErrNotFound
	}
	if err != nil {
		return approval.Resource{}, err
	}
	r := approval.Resource{
		ID: u.ID, Name: u.Name, Segment: u.Segment, Purposes: u.Purposes,
		Special: u.SpecialCategory, Public: u.Destination != "internal" && u.Destination != "partner",
	}
	for _, a := range u.Actions {
		class := a.Class
		if class == "" {
			class = u.Class
		}
		r.Actions = append(r.Actions, approval.Action{Name: a.Name, Effect: a.Effect, Class: class, Parameters: parameters(a.Path)})
	}
	return r, nil
}

// parameters are the names of those in the template of a path.
func parameters(path string) (names []string) {
	for {
		_, rest, ok := strings.Cut(path, "{")
		if !ok {
			return names
		}
		name, after, _ := strings.Cut(rest, "}")
		names, path = append(names, strings.TrimSuffix(name, "...")), after
	}
}

// deciding is somebody as requests see them. Whom there is not is nobody who could
// decide.
func deciding(ctx context.Context, tx *db.Tx, id string) (approval.Person, error) {
	p, err := directory.Known(ctx, tx, id)
	if errors.Is(err, directory.ErrNotFound) {
		return approval.Person{ID: id}, nil
	}
	return personOf(p), err
}

func personOf(p directory.Person) approval.Person {
	return approval.Person{ID: p.ID, Name: p.Name, Roles: p.Roles, Active: p.Status == directory.Active}
}

// eligible is the grant that an agent has for an item, to be activated for the
// request; "" if there is none.
func (f *facts) eligible(ctx context.Context, tx *db.Tx, r approval.Request, item approval.Item) (string, error) {
	all, err := f.access.Load(ctx, tx, r.Agent)
	if err != nil {
		return "", err
	}
	within := func(g *access.Grant) bool {
		for name, values := range g.Parameters {
			asked := item.Parameters[name]
			if len(asked) == 0 || slices.ContainsFunc(asked, func(v string) bool { return !slices.Contains(values, v) }) {
				return false
			}
		}
		return slices.Contains(g.Actions, access.All) ||
			!slices.ContainsFunc(item.Actions, func(a string) bool { return !slices.Contains(g.Actions, a) })
	}
	for i := range all {
		if g := &all[i]; g.Kind == access.Eligible && g.StateAt(tx.Now()) == access.Live && g.Resource == item.Resource &&
			(g.Session == "" || g.Session == r.Session) && g.Class.Covers(item.Class) && slices.Contains(g.Purposes, r.Purpose) && within(g) {
			return g.ID, nil
		}
	}
	return "", nil
}

// elevate gives an agent what was approved: a grant for each resource, which ends
// with the request's session or at its time. Where the agent was eligible, it is
// made of the grant that said so.
func (f *facts) elevate(ctx context.Context, tx *guard.Tx, r approval.Request, what approval.Granted) (string, error) {
	var ids []string
	for i, item := range what.Items {
		from, err := f.eligible(ctx, tx.Tx, r, item)
		if err != nil {
			return "", err
		}
		if from != "" {
			g, err := f.access.Activate(ctx, tx, from, access.Activation{
				For: what.Until.Sub(tx.Now()), Actions: item.Actions, Purposes: []string{r.Purpose}, Class: item.Class,
				Parameters: item.Parameters, Session: r.Session, Request: r.ID, Budgets: access.Budgets(what.Budgets),
			}, r.DecidedBy)
			if err != nil {
				return "", err
			}
			ids = append(ids, g.ID)
			continue
		}
		if i < len(r.Eligible) && r.Eligible[i] {
			return "", approval.ErrChanged.With("What the agent was eligible for is over. Ask again.")
		}
		g, err := f.access.Give(ctx, tx, access.Spec{
			Agent: r.Agent, Resource: item.Resource, Actions: item.Actions, Purposes: []string{r.Purpose}, Class: item.Class, ExpiresAt: what.Until,
			Parameters: item.Parameters, Session: r.Session, Request: r.ID, Budgets: access.Budgets(what.Budgets),
		}, r.DecidedBy)
		if err != nil {
			return "", err
		}
		ids = append(ids, g.ID)
	}
	tx.Note("grants", ids)
	return strings.Join(ids, " "), nil
}
