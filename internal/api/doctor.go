package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/db"
	"estover.dev/internal/guard"
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
}

func (s *Server) doctor(ctx context.Context, _ *struct{}) (*many[Check], error) {
	if err := s.guard.Read(ctx, callerOf(ctx), guard.Op{Action: "server.read"}, func(*db.Tx) error { return nil }); err != nil {
		return nil, s.problem(ctx, err)
	}
	return pageOf(s.Doctor(ctx, callerOf(ctx).Tenant), ""), nil
}
