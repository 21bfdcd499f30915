package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/incident"
)

func (s *Server) incidents() {
	const tag = "Containment"
	huma.Register(s.huma, op("contain", http.MethodPost, "/v1/containments", tag, "Cut an agent off: hold it, end its sessions, cut its connections"), s.contain)
	huma.Register(s.huma, op("list-containments", http.MethodGet, "/v1/containments", tag, "List containments, the newest first"), s.listContainments)
	huma.Register(s.huma, op("get-containment-certificate", http.MethodGet, "/v1/containments/{id}/certificate", tag, "The signed certificate of a containment, to be verified offline"), s.containmentCertificate)
}

func (s *Server) contain(ctx context.Context, in *struct {
	Body struct {
		Agent  string `json:"agent" minLength:"1" maxLength:"200" doc:"Its name or id"`
		Reason string `json:"reason" minLength:"1" maxLength:"500"`
	}
},
) (*one[incident.Containment], error) {
	id, err := s.agentID(ctx, in.Body.Agent)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	c, err := s.Incidents.Contain(ctx, callerOf(ctx), id, in.Body.Reason)
	return &one[incident.Containment]{c}, s.problem(ctx, err)
}

func (s *Server) listContainments(ctx context.Context, in *struct {
	Agent string `query:"agent" doc:"Name or id: only containments of this agent"`
	Limit int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
},
) (*many[incident.Containment], error) {
	id := ""
	if in.Agent != "" {
		var err error
		if id, err = s.agentID(ctx, in.Agent); err != nil {
			return nil, s.problem(ctx, err)
		}
	}
	list, err := s.Incidents.List(ctx, callerOf(ctx), id, in.Limit)
	return pageOf(list, ""), s.problem(ctx, err)
}

func (s *Server) containmentCertificate(ctx context.Context, in *Named) (*file, error) {
	b, err := s.Incidents.Certificate(ctx, callerOf(ctx), in.ID)
	return &file{"application/x-ndjson", `attachment; filename="` + in.ID + `.estover-receipt"`, b}, s.problem(ctx, err)
}
