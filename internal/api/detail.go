package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/detail"
	"estover.dev/internal/token"
)

func (s *Server) detailTypes() {
	const tag = "Authorization details"
	huma.Register(s.huma, op("list-detail-types", http.MethodGet, "/v1/detail-types", tag, "List the types of authorization details by name"), s.listDetailTypes)
	huma.Register(s.huma, op("put-detail-type", http.MethodPut, "/v1/detail-types/{id}", tag, "Add a type of authorization details, or change the one of this name"), s.putDetailType)
	huma.Register(s.huma, op("show-detail-type", http.MethodGet, "/v1/detail-types/{id}", tag, "Show a type of authorization details, by name"), s.showDetailType)
	huma.Register(s.huma, op("retire-detail-type", http.MethodDelete, "/v1/detail-types/{id}", tag, "End a type of authorization details; no token is issued with one any more"), s.retireDetailType)
}

func (s *Server) listDetailTypes(ctx context.Context, in *struct{ Paging }) (*many[token.DetailType], error) {
	list, next, err := s.Tokens.DetailTypes.List(ctx, callerOf(ctx), "", in.Cursor, in.Limit)
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) putDetailType(ctx context.Context, in *struct {
	Named
	Body detail.Spec
},
) (*one[token.DetailType], error) {
	if in.Body.Name != in.ID {
		return nil, s.problem(ctx, detail.ErrType.With("The path says %q and the body %q; a type is named once and for good.", in.ID, in.Body.Name).At("name"))
	}
	t, err := s.Tokens.DetailTypes.Put(ctx, callerOf(ctx), in.Body, "")
	return &one[token.DetailType]{t}, s.problem(ctx, err)
}

func (s *Server) showDetailType(ctx context.Context, in *Named) (*one[token.DetailType], error) {
	t, err := s.Tokens.DetailTypes.ByName(ctx, callerOf(ctx), in.ID)
	return &one[token.DetailType]{t}, s.problem(ctx, err)
}

func (s *Server) retireDetailType(ctx context.Context, in *Named) (*struct{}, error) {
	return nil, s.problem(ctx, s.Tokens.DetailTypes.Retire(ctx, callerOf(ctx), in.ID))
}
