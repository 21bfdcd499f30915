package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/federation"
)

// trustID is the id of the trust that a path names by id or by name.
func (s *Server) trustID(ctx context.Context, ref string) (string, error) {
	if strings.HasPrefix(ref, "tru_") {
		return ref, nil
	}
	t, err := s.Trusts.ByName(ctx, callerOf(ctx), ref)
	return t.ID, err
}

func (s *Server) trusts() {
	const tag = "Trusts"
	huma.Register(s.huma, op("list-trusts", http.MethodGet, "/v1/trusts", tag, "List the issuers whose tokens count here"), s.listTrusts)
	huma.Register(s.huma, op("put-trust", http.MethodPut, "/v1/trusts/{id}", tag, "Add a trust, or change the one of this name"), s.putTrust)
	huma.Register(s.huma, op("show-trust", http.MethodGet, "/v1/trusts/{id}", tag, "Show a trust, by id or name"), s.showTrust)
	huma.Register(s.huma, op("retire-trust", http.MethodDelete, "/v1/trusts/{id}", tag, "End a trust; no token of its issuer counts any more"), s.retireTrust)
}

func (s *Server) listTrusts(ctx context.Context, in *struct{ Paging }) (*many[federation.Trust], error) {
	list, next, err := s.Trusts.List(ctx, callerOf(ctx), federation.Filter{}, in.Cursor, in.Limit)
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) putTrust(ctx context.Context, in *struct {
	Named
	Body federation.Spec
},
) (*one[federation.Trust], error) {
	if in.Body.Name != in.ID {
		return nil, s.problem(ctx, federation.ErrInvalid.With("The path says %q and the body %q; a trust is named once and for good.", in.ID, in.Body.Name).At("name"))
	}
	for i, r := range in.Body.Rules {
		id, err := s.agentID(ctx, r.Agent)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		in.Body.Rules[i].Agent = id
	}
	t, err := s.Trusts.Put(ctx, callerOf(ctx), in.Body, "")
	return &one[federation.Trust]{t}, s.problem(ctx, err)
}

func (s *Server) showTrust(ctx context.Context, in *Named) (*one[federation.Trust], error) {
	id, err := s.trustID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	t, err := s.Trusts.Get(ctx, callerOf(ctx), id)
	return &one[federation.Trust]{t}, s.problem(ctx, err)
}

func (s *Server) retireTrust(ctx context.Context, in *Named) (*struct{}, error) {
	id, err := s.trustID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return nil, s.problem(ctx, s.Trusts.Retire(ctx, callerOf(ctx), id))
}
