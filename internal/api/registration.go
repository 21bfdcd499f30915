package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/agent"
)

func (s *Server) registrations() {
	const tag = "Registration"
	huma.Register(s.huma, op("get-registration", http.MethodGet, "/v1/registration", tag, "Show whether clients may register themselves"), s.getRegistration)
	huma.Register(s.huma, op("set-registration", http.MethodPut, "/v1/registration", tag, "Let clients register themselves, or let them no more"), s.setRegistration)
	huma.Register(s.huma, op("list-initial-tokens", http.MethodGet, "/v1/registration/tokens", tag, "List the initial access tokens that are good for something"), s.listInitialTokens)
	huma.Register(s.huma, op("create-initial-token", http.MethodPost, "/v1/registration/tokens", tag, "Make an initial access token, shown once"), s.createInitialToken)
	huma.Register(s.huma, op("end-initial-token", http.MethodDelete, "/v1/registration/tokens/{id}", tag, "End an initial access token; agents that were made by it stay"), s.endInitialToken)
}

// A registering says whether clients may register themselves.
type registering struct {
	Open bool `json:"open" doc:"Whether clients may register themselves."`
}

func (s *Server) getRegistration(ctx context.Context, _ *struct{}) (*one[registering], error) {
	open, err := s.Agents.ShowRegistering(ctx, callerOf(ctx))
	return &one[registering]{registering{open}}, s.problem(ctx, err)
}

func (s *Server) setRegistration(ctx context.Context, in *struct{ Body registering }) (*one[registering], error) {
	err := s.Agents.SetRegistering(ctx, callerOf(ctx), in.Body.Open)
	return &one[registering]{in.Body}, s.problem(ctx, err)
}

func (s *Server) listInitialTokens(ctx context.Context, _ *struct{}) (*many[agent.InitialToken], error) {
	list, err := s.Agents.InitialTokens(ctx, callerOf(ctx))
	return pageOf(list, ""), s.problem(ctx, err)
}

// A madeInitialToken is a token with its value, here and never again.
type madeInitialToken struct {
	agent.InitialToken
	Token string `json:"token"`
}

func (s *Server) createInitialToken(ctx context.Context, in *struct {
	Body struct {
		Agent       agent.Spec      `json:"agent" doc:"What a client becomes that registers itself with the token, at most. The name begins those of the agents; of its client, grant_types are needed."`
		Grants      []agent.Granted `json:"grants,omitempty" maxItems:"20" doc:"What such an agent is granted along with its registration, for all of its purposes."`
		LifeSeconds int64           `json:"life_seconds,omitempty" minimum:"0" doc:"How long such an agent lives; without an end if it is left out."`
		Label       string          `json:"label,omitempty" maxLength:"100" doc:"What the token is for."`
		Uses        int64           `json:"uses,omitempty" minimum:"1" maximum:"1000" default:"1" doc:"How many clients may register themselves with it."`
		TTLSeconds  int64           `json:"ttl_seconds,omitempty" minimum:"0" maximum:"7776000" doc:"How long the token is good; a day if it is left out."`
	}
},
) (*one[madeInitialToken], error) {
	b := agent.Bounds{Agent: in.Body.Agent, Grants: in.Body.Grants, LifeSeconds: in.Body.LifeSeconds}
	for i, g := range b.Grants {
		id, err := s.resourceID(ctx, g.Resource)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		b.Grants[i].Resource = id
	}
	value, made, err := s.Agents.CreateInitialToken(ctx, callerOf(ctx), b, in.Body.Label, in.Body.Uses, seconds(in.Body.TTLSeconds))
	return &one[madeInitialToken]{madeInitialToken{made, string(value.Reveal())}}, s.problem(ctx, err)
}

func (s *Server) endInitialToken(ctx context.Context, in *Named) (*struct{}, error) {
	return nil, s.problem(ctx, s.Agents.EndInitialToken(ctx, callerOf(ctx), in.ID))
}
