package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev"
	"estover.dev/internal/directory"
)

func (s *Server) emergencies() {
	const tag = "Emergency"
	huma.Register(s.huma, op("create-emergency-codes", http.MethodPost, "/v1/break-glass/codes", tag, "Make a set of emergency codes in the place of the one that stands; they are shown once"), s.createGlass)
	huma.Register(s.huma, op("get-emergency-codes", http.MethodGet, "/v1/break-glass", tag, "Say which set of emergency codes stands"), s.getGlass)
	open := op("break-glass", http.MethodPost, "/v1/break-glass/open", tag, "Come in as an emergency administrator, with a quorum of the codes")
	open.Security = []map[string][]string{}
	huma.Register(s.huma, open, s.breakGlass)
}

// A madeGlass is a set of emergency codes with the codes: here and never again.
type madeGlass struct {
	directory.Glass
	Codes []string `json:"codes" nullable:"false"`
}

func (s *Server) createGlass(ctx context.Context, in *struct {
	Body struct {
		Shares     int64 `json:"shares" minimum:"2" maximum:"20" doc:"How many codes, for as many people"`
		Quorum     int64 `json:"quorum" minimum:"2" maximum:"20" doc:"How many of them it takes"`
		TTLSeconds int64 `json:"ttl_seconds,omitempty" minimum:"0" doc:"How long they are good; a year if it is left out"`
	}
},
) (*one[madeGlass], error) {
	codes, g, err := s.People.NewGlass(ctx, callerOf(ctx), in.Body.Shares, in.Body.Quorum, seconds(in.Body.TTLSeconds))
	return &one[madeGlass]{madeGlass{g, codes}}, s.problem(ctx, err)
}

func (s *Server) getGlass(ctx context.Context, _ *struct{}) (*one[directory.Glass], error) {
	g, err := s.People.Glass(ctx, callerOf(ctx))
	return &one[directory.Glass]{g}, s.problem(ctx, err)
}

func (s *Server) breakGlass(ctx context.Context, in *struct {
	Body struct {
		Codes  []string `json:"codes" minItems:"1" maxItems:"20" nullable:"false" doc:"As many codes of the set as its quorum wants"`
		Reason string   `json:"reason" minLength:"1" maxLength:"500"`
	}
},
) (*one[loggedIn], error) {
	from := callerOf(ctx)
	secret, token, p, err := s.People.BreakGlass(ctx, from, in.Body.Codes, in.Body.Reason)
	if err != nil {
		if estover.KindOf(err) == estover.Denied {
			s.logger.Warn("emergency codes were tried that do not suffice", "tenant", from.Tenant, "address", from.Address, "request", from.Request)
		}
		return nil, s.problem(ctx, err)
	}
	s.logger.Error("THE GLASS WAS BROKEN: an emergency administrator came in", "tenant", from.Tenant, "person", p.ID, "until", token.ExpiresAt, "address", from.Address, "request", from.Request)
	return &one[loggedIn]{loggedIn{string(secret.Reveal()), token.ExpiresAt, p}}, nil
}
