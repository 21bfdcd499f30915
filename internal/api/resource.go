package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/resource"
)

// resourceID is the id of the resource that a path names by id or by name.
func (s *Server) resourceID(ctx context.Context, ref string) (string, error) {
	if strings.HasPrefix(ref, "res_") {
		return ref, nil
	}
	r, err := s.Resources.ByName(ctx, callerOf(ctx), ref)
	return r.ID, err
}

func (s *Server) resources() {
	const tag = "Resources"
	huma.Register(s.huma, op("list-resources", http.MethodGet, "/v1/resources", tag, "List resources by name"), s.listResources)
	huma.Register(s.huma, op("put-resource", http.MethodPut, "/v1/resources/{id}", tag, "Add a resource, or change the one of this name"), s.putResource)
	huma.Register(s.huma, op("get-resource", http.MethodGet, "/v1/resources/{id}", tag, "Show a resource, by id or name"), s.getResource)
	huma.Register(s.huma, op("retire-resource", http.MethodDelete, "/v1/resources/{id}", tag, "Take a resource out of the catalogue; nothing is forwarded to it any more"), s.retireResource)
}

func (s *Server) listResources(ctx context.Context, in *struct{ Paging }) (*many[resource.Resource], error) {
	list, next, err := s.Resources.List(ctx, callerOf(ctx), resource.Filter{}, in.Cursor, in.Limit)
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) putResource(ctx context.Context, in *struct {
	Named
	Body resource.Spec
},
) (*one[resource.Resource], error) {
	if in.Body.Name == "" {
		in.Body.Name = in.ID
	}
	if in.Body.Name != in.ID {
		return nil, s.problem(ctx, resource.ErrInvalid.With("The path says %q and the body %q; a resource is named once and for good.", in.ID, in.Body.Name).At("name"))
	}
	r, err := s.Resources.Put(ctx, callerOf(ctx), in.Body, "")
	return &one[resource.Resource]{r}, s.problem(ctx, err)
}

func (s *Server) getResource(ctx context.Context, in *Named) (*one[resource.Resource], error) {
	id, err := s.resourceID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	r, err := s.Resources.Get(ctx, callerOf(ctx), id)
	return &one[resource.Resource]{r}, s.problem(ctx, err)
}

func (s *Server) retireResource(ctx context.Context, in *Named) (*struct{}, error) {
	id, err := s.resourceID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return nil, s.problem(ctx, s.Resources.Retire(ctx, callerOf(ctx), id))
}
