package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/federation"
	"estover.dev/internal/token"
)

func (s *Server) accessTokens() {
	huma.Register(s.huma, op("explain-token", http.MethodPost, "/v1/tokens/explain", "Tokens", "Say what a token is, whose, and why it counts or does not"), s.explainToken)
}

// An explainedToken is what there is to say of a token: of one of ours, or of
// one of somebody else.
type explainedToken struct {
	Ours    *token.Explanation      `json:"access_token,omitempty"`
	Foreign *federation.Explanation `json:"foreign_token,omitempty"`
}

func (s *Server) explainToken(ctx context.Context, in *struct {
	Body struct {
		Token string `json:"token" minLength:"1" maxLength:"16384"`
	}
},
) (*one[explainedToken], error) {
	ours, err := s.Tokens.Explain(ctx, callerOf(ctx), in.Body.Token)
	if errors.Is(err, token.ErrForeign) {
		foreign, err := s.Trusts.Explain(ctx, callerOf(ctx), in.Body.Token)
		return &one[explainedToken]{explainedToken{Foreign: &foreign}}, s.problem(ctx, err)
	}
	return &one[explainedToken]{explainedToken{Ours: &ours}}, s.problem(ctx, err)
}
