package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/access"
)

// grantID is the id of the grant that a path names by id or by name.
func (s *Server) grantID(ctx context.Context, ref string) (string, error) {
	if strings.HasPrefix(ref, "grt_") {
		return ref, nil
	}
	g, err := s.Grants.ByName(ctx, callerOf(ctx), ref)
	return g.ID, err
}

func (s *Server) grants() {
	const tag = "Grants"
	huma.Register(s.huma, op("list-grants", http.MethodGet, "/v1/grants", tag, "List grants, the newest first"), s.listGrants)
	huma.Register(s.huma, op("create-grant", http.MethodPost, "/v1/grants", tag, "Let an agent do something; another of the same name ends"), s.createGrant)
	huma.Register(s.huma, op("get-grant", http.MethodGet, "/v1/grants/{id}", tag, "Show a grant, by id or name"), s.getGrant)
	huma.Register(s.huma, op("restore-grant", http.MethodPost, "/v1/grants/{id}/restore", tag, "Give a grant back that was suspended since nobody used it, or will be"), s.restoreGrant)
	huma.Register(s.huma, op("end-grant", http.MethodPost, "/v1/grants/{id}/end", tag, "End a grant"), s.endGrant)
}

func (s *Server) listGrants(ctx context.Context, in *struct {
	Paging
	Agent    string `query:"agent" doc:"Name or id: only grants of this agent"`
	Resource string `query:"resource" doc:"Name or id: only grants for this resource"`
	Live     bool   `query:"live" doc:"Only grants that have neither ended nor expired"`
},
) (*many[access.Grant], error) {
	f := access.Filter{Live: in.Live}
	var err error
	if in.Agent != "" {
		if f.Agent, err = s.agentID(ctx, in.Agent); err != nil {
			return nil, s.problem(ctx, err)
		}
	}
	if in.Resource != "" {
		if f.Resource, err = s.resourceID(ctx, in.Resource); err != nil {
			return nil, s.problem(ctx, err)
		}
	}
	list, next, err := s.Grants.List(ctx, callerOf(ctx), f, in.Cursor, in.Limit)
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) createGrant(ctx context.Context, in *struct{ Body access.Spec }) (*one[access.Grant], error) {
	var err error
	if in.Body.Agent, err = s.agentID(ctx, in.Body.Agent); err != nil {
		return nil, s.problem(ctx, err)
	}
	if in.Body.Resource, err = s.resourceID(ctx, in.Body.Resource); err != nil {
		return nil, s.problem(ctx, err)
	}
	g, err := s.Grants.Put(ctx, callerOf(ctx), in.Body, "")
	return &one[access.Grant]{g}, s.problem(ctx, err)
}

func (s *Server) getGrant(ctx context.Context, in *Named) (*one[access.Grant], error) {
	id, err := s.grantID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	g, err := s.Grants.Get(ctx, callerOf(ctx), id)
	return &one[access.Grant]{g}, s.problem(ctx, err)
}

func (s *Server) restoreGrant(ctx context.Context, in *Named) (*one[access.Grant], error) {
	id, err := s.grantID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	g, err := s.Grants.Resume(ctx, callerOf(ctx), id)
	return &one[access.Grant]{g}, s.problem(ctx, err)
}

func (s *Server) endGrant(ctx context.Context, in *WithReason) (*one[access.Grant], error) {
	id, err := s.grantID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	g, err := s.Grants.End(ctx, callerOf(ctx), id, in.Body.Reason)
	return &one[access.Grant]{g}, s.problem(ctx, err)
}
