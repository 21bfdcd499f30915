package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
)

func (s *Server) incidents() {
	const tag = "Containment"
	huma.Register(s.huma, op("contain", http.MethodPost, "/v1/containments", tag, "Cut off an agent, a blueprint, a resource, a person's agents, an organisation or everything: hold it, end its sessions, cut its connections"), s.contain)
	huma.Register(s.huma, op("list-containments", http.MethodGet, "/v1/containments", tag, "List containments, the newest first"), s.listContainments)
	huma.Register(s.huma, op("get-containment-certificate", http.MethodGet, "/v1/containments/{id}/certificate", tag, "The signed certificate of a containment, to be verified offline"), s.containmentCertificate)
	huma.Register(s.huma, op("list-holds", http.MethodGet, "/v1/holds", tag, "List the holds that two people lift"), s.listHolds)
	huma.Register(s.huma, op("lift-standing-hold", http.MethodPost, "/v1/holds/{id}/lift", tag, "Lift a hold, or ask for it where two people do that; the others stay"), s.liftStanding)
	huma.Register(s.huma, op("run-drill", http.MethodPost, "/v1/drills", tag, "Contain a decoy, and measure how long it takes"), s.runDrill)
	huma.Register(s.huma, op("list-drills", http.MethodGet, "/v1/drills", tag, "List drills, the newest first"), s.listDrills)
}

func (s *Server) runDrill(ctx context.Context, in *struct {
	Body struct {
		BoundMillis int64 `json:"bound_millis,omitempty" minimum:"0" maximum:"60000" doc:"What it may take before it is an alarm; a second by itself"`
	}
},
) (*one[incident.Drill], error) {
	d, err := s.Incidents.Drill(ctx, callerOf(ctx), time.Duration(in.Body.BoundMillis)*time.Millisecond)
	return &one[incident.Drill]{d}, s.problem(ctx, err)
}

func (s *Server) listDrills(ctx context.Context, in *struct {
	Limit int `query:"limit" minimum:"1" maximum:"200" default:"50"`
},
) (*many[incident.Drill], error) {
	all, err := s.Incidents.Drills(ctx, callerOf(ctx), in.Limit)
	return pageOf(all, ""), s.problem(ctx, err)
}

func (s *Server) listHolds(ctx context.Context, _ *struct{}) (*many[incident.Standing], error) {
	all, err := s.Incidents.Standing(ctx, callerOf(ctx))
	return pageOf(all, ""), s.problem(ctx, err)
}

func (s *Server) liftStanding(ctx context.Context, in *struct {
	Named
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500"`
	}
},
) (*one[incident.Lifting], error) {
	l, err := s.Incidents.Lift(ctx, callerOf(ctx), in.ID, in.Body.Reason, true)
	return &one[incident.Lifting]{l}, s.problem(ctx, err)
}

// target is what a request names: by scope, and by name or id.
func (s *Server) target(ctx context.Context, scope, name string) (t incident.Target, err error) {
	t = incident.Target{Scope: hold.Scope(scope), ID: name}
	switch t.Scope {
	case incident.Agent:
		t.ID, err = s.agentID(ctx, name)
	case hold.Person:
		t.ID, err = s.personID(ctx, name)
	case hold.Resource:
		t.ID, err = s.resourceID(ctx, name)
	case hold.Tenant:
		if name == "" {
			t.ID = string(callerOf(ctx).Tenant)
		}
	}
	return t, err
}

func (s *Server) contain(ctx context.Context, in *struct {
	Body struct {
		Agent  string `json:"agent,omitempty" maxLength:"200" doc:"An agent's name or id; short for the scope agent"`
		Scope  string `json:"scope,omitempty" enum:"agent,blueprint,resource,person,tenant,everything" doc:"What kind of thing is contained. A person stands for the agents that they sponsor; everything is all agents of all organisations, for who runs the server"`
		Target string `json:"target,omitempty" maxLength:"200" doc:"Its name or id; one's own organisation if it is left out for the scope tenant"`
		Reason string `json:"reason" minLength:"1" maxLength:"500"`
	}
},
) (*one[incident.Containment], error) {
	scope, name := in.Body.Scope, in.Body.Target
	if in.Body.Agent != "" && scope == "" && name == "" {
		scope, name = string(incident.Agent), in.Body.Agent
	} else if in.Body.Agent != "" {
		return nil, s.problem(ctx, incident.ErrTarget)
	}
	t, err := s.target(ctx, scope, name)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	c, err := s.Incidents.Contain(ctx, callerOf(ctx), t, in.Body.Reason)
	return &one[incident.Containment]{c}, s.problem(ctx, err)
}

func (s *Server) listContainments(ctx context.Context, in *struct {
	Agent  string `query:"agent" doc:"Name or id: only containments of this agent"`
	Scope  string `query:"scope" enum:"agent,blueprint,resource,person,tenant,everything" doc:"Only containments of this kind"`
	Target string `query:"target" doc:"Name or id: only containments of this, along with the scope"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
},
) (*many[incident.Containment], error) {
	scope, name := in.Scope, in.Target
	if in.Agent != "" {
		scope, name = string(incident.Agent), in.Agent
	}
	t := incident.Target{Scope: hold.Scope(scope)}
	if name != "" {
		var err error
		if t, err = s.target(ctx, scope, name); err != nil {
			return nil, s.problem(ctx, err)
		}
	}
	list, err := s.Incidents.List(ctx, callerOf(ctx), t, in.Limit)
	return pageOf(list, ""), s.problem(ctx, err)
}

func (s *Server) containmentCertificate(ctx context.Context, in *Named) (*file, error) {
	b, err := s.Incidents.Certificate(ctx, callerOf(ctx), in.ID)
	return &file{"application/x-ndjson", `attachment; filename="` + in.ID + `.estover-receipt"`, b}, s.problem(ctx, err)
}
