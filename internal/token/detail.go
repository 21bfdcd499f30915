package token

import (
	"context"
	"slices"
	"strings"

	"estover.dev"
	"estover.dev/internal/detail"
)

// narrowDetails finds the authorization details that the token will have
// (RFC 9396, section 6): those that are asked for, or all that were proven. They
// have to be in order, within what was proven, and of types that the client may
// use. To be confined nobody needs leave.
func (t *Tokens) narrowDetails(ctx context.Context, r Request) (detail.List, detail.Types, error) {
	list, proven := r.Details, r.Proof.Details
	if list == nil {
		list = proven
	}
	if len(list) == 0 && len(proven) == 0 {
		return list, nil, nil
	}
	types, err := t.DetailTypes.Of(ctx, r.Caller.Tenant)
	if err != nil {
		return nil, nil, err
	}
	if err := types.Check(list); err != nil {
		return nil, nil, err
	}
	for _, d := range list {
		if !slices.Contains(r.Client.Details, d.Type) && (r.Details != nil || !types[d.Type].Confines) {
			return nil, nil, detail.ErrInvalid.With("The client may not use authorization details of the type %s. Have an operator name it in the agent's authorization_details_types.", d.Type)
		}
	}
	if proven != nil {
		if err := types.Within(list, proven); err != nil {
			return nil, nil, err
		}
	}
	return list, types, nil
}

// placed holds the details against the places that the token is for. What was
// proven for other places is left out, unless that would let the token do more;
// what is asked for has to be for these.
func (r *Request) placed(list detail.List, types detail.Types, targets []Allowed) (detail.List, error) {
	for _, a := range targets {
		if err := r.reached(list, a); err != nil {
			return nil, err
		}
	}
	here := func(at string) bool {
		return slices.ContainsFunc(targets, func(a Allowed) bool { return a.Audience == at })
	}
	kept := make(detail.List, 0, len(list))
	for i := range list {
		d, typ := &list[i], types[list[i].Type]
		at := d.Locations()
		switch {
		case r.Details == nil && len(at) > 0 && !slices.ContainsFunc(at, here), r.Details == nil && !enforced(typ, targets):
			continue
		case !enforced(typ, targets):
			return nil, detail.ErrInvalid.With("Details of the type %s are for tokens for %s. Name that as the resource.", d.Type, strings.Join(typ.Resources, " or "))
		}
		for _, one := range at {
			if r.Details != nil && !here(one) {
				return nil, detail.ErrInvalid.With("A detail of the type %s names the location %s, which the token is not for. Name it as a resource too, by the same identifier, or leave resource out.", d.Type, one)
			}
		}
		kept = append(kept, *d)
	}
	if types.Confined(list) && !types.Confined(kept) { // and for no resource: it stays so
		kept = append(kept, types.Confining(list)...)
	}
	return kept, r.tasks(kept.Tasks(), targets)
}

// enforced reports whether one of the targets holds calls against the type.
func enforced(t *detail.Type, targets []Allowed) bool {
	return len(t.Resources) == 0 || slices.ContainsFunc(targets, func(a Allowed) bool { return slices.Contains(t.Resources, a.Audience) })
}

// tasks holds tasks that are asked for against the session and against what may be
// done at the targets: nobody is told that they may do what they may not.
func (r *Request) tasks(tasks []estover.Task, targets []Allowed) error {
	if r.Details == nil {
		return nil
	}
	for _, task := range tasks {
		if task.Purpose != "" && task.Purpose != r.Session.Purpose {
			return detail.ErrInvalid.With("A task is for the purpose %s, and the session for %s. Ask in a session for that purpose.", task.Purpose, r.Session.Purpose)
		}
		for _, action := range task.Actions {
			if !slices.ContainsFunc(targets, func(a Allowed) bool {
				return slices.Contains(task.Locations, a.Audience) && slices.Contains(a.Scopes, action)
			}) {
				return detail.ErrInvalid.With("A task names the action %s, which is not granted at any of its locations, or not within the scope that is asked for.", action)
			}
		}
	}
	return nil
}

// reached makes sure that a token which is confined to tasks is for no resource at
// which none of them is done.
func (r *Request) reached(list detail.List, a Allowed) error {
	tasks := list.Tasks()
	if tasks == nil || a.Resource == "" || slices.ContainsFunc(tasks, func(t estover.Task) bool { return slices.Contains(t.Locations, a.Audience) }) {
		return nil
	}
	return ErrTarget.With("None of the tasks (authorization details) that the token is confined to is done at %s.", a.Audience)
}

// withinTasks keeps of the scopes at a resource those that some task names there:
// whoever looks at the scope alone sees no more than the tasks allow.
func withinTasks(tasks []estover.Task, audience string, scopes []string) []string {
	if tasks == nil {
		return scopes
	}
	return slices.DeleteFunc(slices.Clone(scopes), func(s string) bool {
		return !slices.ContainsFunc(tasks, func(t estover.Task) bool {
			return slices.Contains(t.Locations, audience) && slices.Contains(t.Actions, s)
		})
	})
}

// chained says why an assertion for the server of somebody else is not made: that
// server knows nothing of the types here.
func (t *Tokens) chained(ctx context.Context, r Request) error {
	if r.Details != nil {
		return detail.ErrInvalid.With("Authorization details are not passed on to the servers of others. Leave authorization_details out, and ask that server for them.")
	}
	if len(r.Proof.Details) == 0 {
		return nil
	}
	types, err := t.DetailTypes.Of(ctx, r.Caller.Tenant)
	if err == nil && types.Confined(r.Proof.Details) {
		err = detail.ErrInvalid.With("What was agreed to is confined to a task here, and so says nothing to the servers of others.")
	}
	return err
}
