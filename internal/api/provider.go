package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/directory"
)

func (s *Server) providers() {
	const tag = "People"
	huma.Register(s.huma, op("list-identity-providers", http.MethodGet, "/v1/identity-providers", tag, "List the OpenID providers that people sign in with"), s.listProviders)
	huma.Register(s.huma, op("put-identity-provider", http.MethodPut, "/v1/identity-providers/{id}", tag, "Add an identity provider, or change the one of this name"), s.putProvider)
	huma.Register(s.huma, op("show-identity-provider", http.MethodGet, "/v1/identity-providers/{id}", tag, "Show an identity provider by its name"), s.showProvider)
	huma.Register(s.huma, op("retire-identity-provider", http.MethodDelete, "/v1/identity-providers/{id}", tag, "End an identity provider; nobody signs in with it any more"), s.retireProvider)
}

func (s *Server) listProviders(ctx context.Context, _ *struct{}) (*many[directory.Provider], error) {
	all, err := s.People.ListProviders(ctx, callerOf(ctx), directory.Filter{})
	return pageOf(all, ""), s.problem(ctx, err)
}

func (s *Server) putProvider(ctx context.Context, in *struct {
	Named
	Body directory.ProviderSpec
},
) (*one[directory.Provider], error) {
	if in.Body.Name != in.ID {
		return nil, s.problem(ctx, directory.ErrProviderInvalid.With("The path says %q and the body %q; a provider is named once and for good.", in.ID, in.Body.Name).At("name"))
	}
	p, err := s.People.PutProvider(ctx, callerOf(ctx), in.Body, "")
	return &one[directory.Provider]{p}, s.problem(ctx, err)
}

func (s *Server) showProvider(ctx context.Context, in *Named) (*one[directory.Provider], error) {
	p, err := s.People.ProviderByName(ctx, callerOf(ctx), in.ID)
	return &one[directory.Provider]{p}, s.problem(ctx, err)
}

func (s *Server) retireProvider(ctx context.Context, in *Named) (*struct{}, error) {
	return nil, s.problem(ctx, s.People.RetireProvider(ctx, callerOf(ctx), in.ID))
}
