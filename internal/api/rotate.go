package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/incident/emergency"
)

func (s *Server) emergencyRotations() {
	const tag = "Containment"
	huma.Register(s.huma, op("rotate-in-emergency", http.MethodPost, "/v1/emergency-rotations", tag, "Cut off an agent or a resource, and rotate every secret whose value has left us by way of it"), s.rotateInEmergency)
	huma.Register(s.huma, op("list-emergency-rotations", http.MethodGet, "/v1/emergency-rotations", tag, "List emergency rotations, the newest first"), s.listEmergencyRotations)
	huma.Register(s.huma, op("get-emergency-rotation", http.MethodGet, "/v1/emergency-rotations/{id}", tag, "Show an emergency rotation, and what has become of each thing"), s.getEmergencyRotation)
	huma.Register(s.huma, op("get-emergency-rotation-report", http.MethodGet, "/v1/emergency-rotations/{id}/report", tag, "The last signed report of an emergency rotation, to be verified offline"), s.emergencyRotationReport)
	huma.Register(s.huma, op("settle-emergency-rotation", http.MethodPost, "/v1/emergency-rotations/{id}/settle", tag, "Say that a secret was changed by hand where it is accepted"), s.settleEmergencyRotation)
}

func (s *Server) rotateInEmergency(ctx context.Context, in *struct {
	Body struct {
		emergency.Wish
		DryRun bool `json:"dry_run,omitempty" doc:"Only say what would be done"`
	}
},
) (*one[emergency.Emergency], error) {
	run := s.Emergencies.Run
	if in.Body.DryRun {
		run = s.Emergencies.Plan
	}
	w := in.Body.Wish
	if w.Scope == emergency.Agent || w.Scope == emergency.Resource { // which may be named
		t, err := s.target(ctx, string(w.Scope), w.Target)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		w.Target = t.ID
	}
	e, err := run(ctx, callerOf(ctx), w)
	return &one[emergency.Emergency]{e}, s.problem(ctx, err)
}

func (s *Server) listEmergencyRotations(ctx context.Context, in *struct {
	Limit int `query:"limit" minimum:"1" maximum:"200" default:"50"`
},
) (*many[emergency.Emergency], error) {
	list, err := s.Emergencies.List(ctx, callerOf(ctx), in.Limit)
	return pageOf(list, ""), s.problem(ctx, err)
}

func (s *Server) getEmergencyRotation(ctx context.Context, in *Named) (*one[emergency.Emergency], error) {
	e, err := s.Emergencies.Get(ctx, callerOf(ctx), in.ID)
	return &one[emergency.Emergency]{e}, s.problem(ctx, err)
}

func (s *Server) settleEmergencyRotation(ctx context.Context, in *struct {
	Named
	Body struct {
		Item   int64  `json:"item" minimum:"1"`
		Reason string `json:"reason" minLength:"1" maxLength:"300" doc:"Who changed it, where and when"`
	}
},
) (*one[emergency.Emergency], error) {
	e, err := s.Emergencies.Settle(ctx, callerOf(ctx), in.ID, in.Body.Item, in.Body.Reason)
	return &one[emergency.Emergency]{e}, s.problem(ctx, err)
}

func (s *Server) emergencyRotationReport(ctx context.Context, in *Named) (*file, error) {
	b, err := s.Emergencies.Report(ctx, callerOf(ctx), in.ID)
	return &file{"application/x-ndjson", `attachment; filename="` + in.ID + `.estover-receipt"`, b}, s.problem(ctx, err)
}
