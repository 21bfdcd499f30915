package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

func (s *Server) keys() {
	const tag = "Keys"
	huma.Register(s.huma, op("list-keys", http.MethodGet, "/v1/keys", tag, "List the signing keys, by purpose and generation"), s.listKeys)
	huma.Register(s.huma, op("rotate-key", http.MethodPost, "/v1/keys/{purpose}/rotate", tag, "Give a purpose its next signing key, by schedule or at once"), s.rotateKey)
}

func (s *Server) listKeys(ctx context.Context, _ *struct{}) (*many[token.Key], error) {
	list, err := s.Tokens.ListKeys(ctx, callerOf(ctx))
	return pageOf(list, ""), s.problem(ctx, err)
}

func (s *Server) rotateKey(ctx context.Context, in *struct {
	Purpose string `path:"purpose" maxLength:"40" doc:"What the keys sign, as the list says: access_token, id_token, …"`
	Body    struct {
		Emergency bool   `json:"emergency,omitempty" doc:"The next key signs at once, the others are revoked, and nothing that they signed is valid any more. Otherwise it is published now and signs after an hour."`
		Reason    string `json:"reason,omitempty" maxLength:"500" doc:"Why, for the record."`
	}
},
) (*one[token.Rotation], error) {
	r, err := s.Tokens.RotateKey(ctx, callerOf(ctx), jose.Purpose(in.Purpose), in.Body.Emergency, in.Body.Reason)
	return &one[token.Rotation]{r}, s.problem(ctx, err)
}
