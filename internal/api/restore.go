package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/access"
)

func (s *Server) restorations() {
	huma.Register(s.huma, op("restore-access", http.MethodPost, "/v1/agents/{id}/restore", "Grants", "Put an agent's standing access back to what it was at a time"), s.restore)
}

func (s *Server) restore(ctx context.Context, in *struct {
	Named
	Body struct {
		At     time.Time `json:"at" doc:"The time, which has passed"`
		Reason string    `json:"reason,omitempty" maxLength:"500" doc:"Why; needed unless it is only tried"`
		DryRun bool      `json:"dry_run,omitempty" doc:"Do nothing, and say what would be given and taken"`
	}
},
) (*one[access.Restoration], error) {
	id, err := s.agentID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	r, err := s.Grants.Restore(ctx, callerOf(ctx), id, in.Body.At, in.Body.Reason, in.Body.DryRun)
	return &one[access.Restoration]{r}, s.problem(ctx, err)
}
