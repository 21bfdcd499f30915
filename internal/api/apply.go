package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/apply"
	"estover.dev/internal/edge"
)

func (s *Server) applying() {
	o := op("apply", http.MethodPost, "/v1/apply", "Apply", "Make so what files say: people, secrets' metadata, resources, agents, grants, channels, policies")
	o.MaxBodyBytes = maxBody
	huma.Register(s.huma, o, s.apply)
}

func (s *Server) apply(ctx context.Context, in *struct{ Body apply.Request }) (*one[apply.Result], error) {
	r, err := s.Apply.Run(ctx, callerOf(ctx), in.Body)
	var problems apply.Problems
	if !errors.As(err, &problems) {
		return &one[apply.Result]{r}, s.problem(ctx, err)
	}
	p := s.problemOf(ctx, err)
	p.Detail = apply.ErrProblems.Detail
	for _, x := range problems {
		at := x.File
		if x.Line > 0 {
			at = fmt.Sprintf("%s:%d:%d", x.File, x.Line, x.Column)
		}
		p.Errors = append(p.Errors, edge.ProblemPlace{Message: x.Message, Location: at})
	}
	return nil, asStatus{p}
}
