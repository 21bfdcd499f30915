package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret/health"
)

// A Check is what was found out about one part of the server.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty" doc:"What to do about it"`
}

func (s *Server) doctors() {
	huma.Register(s.huma, op("doctor", http.MethodGet, "/v1/doctor", "Server", "Say what is wrong with the server and what to do about it"), s.doctor)
	huma.Register(s.huma, op("doctor-targets", http.MethodPost, "/v1/doctor/targets", "Leases", "Look at targets: whether they answer, with which versions their admins log in, their clocks, missing rights, what is overdue, users without a lease, the next rotation"), s.doctorTargets)
}

func (s *Server) doctorTargets(ctx context.Context, in *struct {
	Body struct {
		Target string `json:"target,omitempty" maxLength:"63" doc:"One target; all of them if left out"`
	}
},
) (*many[health.Report], error) {
	d := health.Doctor{Guard: s.guard, Targets: s.Targets, Leases: s.Leases, Rotations: s.Rotations}
	all, err := d.Examine(ctx, callerOf(ctx), in.Body.Target)
	return pageOf(all, ""), s.problem(ctx, err)
}

func (s *Server) doctor(ctx context.Context, _ *struct{}) (*many[Check], error) {
	if err := s.guard.Read(ctx, callerOf(ctx), guard.Op{Action: "server.read"}, func(*db.Tx) error { return nil }); err != nil {
		return nil, s.problem(ctx, err)
	}
	return pageOf(s.Doctor(ctx, callerOf(ctx).Tenant), ""), nil
}
