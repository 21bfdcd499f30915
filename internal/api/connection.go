package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/secret/connection"
)

func (s *Server) connections() {
	const tag = "Connections"
	huma.Register(s.huma, op("list-connections", http.MethodGet, "/v1/connections", tag, "List OAuth connections to upstreams by name, never their tokens"), s.listConnections)
	huma.Register(s.huma, op("put-connection", http.MethodPut, "/v1/connections/{id}", tag, "Add a connection, or change the one of this name"), s.putConnection)
	huma.Register(s.huma, op("show-connection", http.MethodGet, "/v1/connections/{id}", tag, "Show a connection by name: how it is, and who has to do something about it"), s.showConnection)
	huma.Register(s.huma, op("renew-connection", http.MethodPost, "/v1/connections/{id}/renew", tag, "Renew a connection's token, or try one again that is misconfigured"), s.renewConnection)
	huma.Register(s.huma, op("remove-connection", http.MethodDelete, "/v1/connections/{id}", tag, "Remove a connection; its tokens are ended at the provider"), s.removeConnection)
}

// A connected thing is a connection, with where it is authorized.
type connected struct {
	connection.Connection
	Page string `json:"authorize_url,omitempty" doc:"The page on which a person authorizes it"`
}

func (s *Server) connected(ctx context.Context, c connection.Connection, err error) (*one[connected], error) {
	out := connected{Connection: c}
	if c.Grant == connection.AuthorizationCode {
		out.Page = s.ConnectionPage(callerOf(ctx).Tenant, c.Name)
	}
	return &one[connected]{out}, s.problem(ctx, err)
}

func (s *Server) listConnections(ctx context.Context, in *struct{ Paging }) (*many[connection.Connection], error) {
	list, next, err := s.Connections.List(ctx, callerOf(ctx), in.Cursor, in.Limit)
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) putConnection(ctx context.Context, in *struct {
	Named
	Body connection.Spec
},
) (*one[connected], error) {
	if in.Body.Name != in.ID {
		return nil, s.problem(ctx, connection.ErrInvalid.With("The path says %q and the body %q; a connection is named once and for good.", in.ID, in.Body.Name).At("name"))
	}
	c, err := s.Connections.Put(ctx, callerOf(ctx), in.Body)
	return s.connected(ctx, c, err)
}

func (s *Server) showConnection(ctx context.Context, in *Named) (*one[connected], error) {
	c, err := s.Connections.Get(ctx, callerOf(ctx), in.ID)
	return s.connected(ctx, c, err)
}

func (s *Server) renewConnection(ctx context.Context, in *Named) (*one[connected], error) {
	c, err := s.Connections.Renew(ctx, callerOf(ctx), in.ID)
	return s.connected(ctx, c, err)
}

func (s *Server) removeConnection(ctx context.Context, in *Named) (*struct{}, error) {
	return nil, s.problem(ctx, s.Connections.Remove(ctx, callerOf(ctx), in.ID))
}
