package server

import (
	"context"
	"errors"

	"estover.dev"
	"estover.dev/internal/approve"
	"estover.dev/internal/contain"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
	"estover.dev/internal/resource"
)

// containPages is the door at which people use the kill switch in a browser.
func (s *Server) containPages() *contain.Door {
	return contain.New(contain.Config{
		Incidents: s.incidents, Approvals: s.requests, Pages: s.pages, Requests: approve.Path, May: s.may,
		Find: func(ctx context.Context, caller estover.Caller, t incident.Target) (incident.Target, error) {
			if t.Scope == hold.Person && t.ID == "me" {
				t.ID = caller.Subject.ID()
			}
			return s.containable(ctx, caller, t)
		},
		Name: s.containedName,
	})
}

// may says whether policy would allow an action, for a page that shows what can be
// done. Nothing is on record of it, and nothing is done by it.
func (s *Server) may(ctx context.Context, caller estover.Caller, action, target string) (bool, error) {
	effect := guard.Reads
	if action == "containment.run" || action == "tenant.contain" {
		effect = guard.Manages
	}
	d, err := s.decider.Decide(ctx, caller, guard.Op{Action: action, Target: target, Effect: effect})
	return err == nil && d.Allow, err
}

// mayContain says whether somebody is shown the page of the kill switch: who may
// see what is contained, or contain their own agents.
func (s *Server) mayContain(ctx context.Context, caller estover.Caller) (bool, error) {
	may, err := s.may(ctx, caller, "containment.list", "")
	if err != nil || may {
		return may, err
	}
	return s.may(ctx, caller, "containment.run", incident.Target{Scope: hold.Person, ID: caller.Subject.ID()}.String())
}

// containedName is what people call what is contained; "" for what is called by
// its name already, and for what there is no more.
func (s *Server) containedName(ctx context.Context, tenant estover.TenantID, t incident.Target) (name string, err error) {
	f := &s.facts
	switch t.Scope {
	case hold.Person:
		return f.people.Name(ctx, tenant, t.ID)
	case incident.Agent:
		a, err := f.registry.Snapshot(ctx, tenant, t.ID)
		if err == nil {
			return a.Name, nil
		}
		if estover.KindOf(err) == estover.NotFound {
			return "", nil
		}
		return "", err
	case hold.Resource:
		err = s.db.View(ctx, tenant, func(tx *db.Tx) error {
			u, err := resource.Load(ctx, tx, t.ID)
			if err == nil {
				name = u.Name
			}
			return err
		})
		if errors.Is(err, resource.ErrNotFound) {
			err = nil
		}
	}
	return name, err
}
