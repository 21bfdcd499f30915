package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/policy"
)

func (s *Server) policies() {
	const tag = "Policy"
	huma.Register(s.huma, op("list-policies", http.MethodGet, "/v1/policies", tag, "List the pushed revisions, the newest first"), s.listPolicies)
	huma.Register(s.huma, op("push-policy", http.MethodPost, "/v1/policies", tag, "Check a bundle, run its tests and keep it as a revision"), s.pushPolicy)
	huma.Register(s.huma, op("get-policy", http.MethodGet, "/v1/policies/{id}", tag, "Show the files of a revision; 'active' is the one that decides"), s.getPolicy)
	huma.Register(s.huma, op("activate-policy", http.MethodPost, "/v1/policies/{id}/activate", tag, "Let a revision decide"), s.activatePolicy)
	huma.Register(s.huma, op("rollback-policy", http.MethodPost, "/v1/policies/{id}/rollback", tag, "Let a revision decide that has decided before"), s.rollbackPolicy)
	huma.Register(s.huma, op("list-activations", http.MethodGet, "/v1/policy-activations", tag, "List which revisions decided, and since when"), s.listActivations)
}

func (s *Server) listPolicies(ctx context.Context, in *struct{ Paging }) (*many[policy.Revision], error) {
	list, err := s.Policy.List(ctx, callerOf(ctx), in.Cursor, in.Limit)
	next := ""
	if len(list) == in.Limit {
		next = list[len(list)-1].Digest
	}
	return pageOf(list, next), s.problem(ctx, err)
}

// A pushed is a revision with what the check found.
type pushed struct {
	Revision policy.Revision `json:"revision"`
	Report   policy.Report   `json:"report"`
}

func (s *Server) pushPolicy(ctx context.Context, in *struct {
	Body struct {
		Files policy.Bundle `json:"files" minItems:"1" maxItems:"500" doc:"The .rego and data.json files"`
		Note  string        `json:"note,omitempty" maxLength:"500"`
	}
},
) (*one[pushed], error) {
	r, report, err := s.Policy.Push(ctx, callerOf(ctx), in.Body.Files, in.Body.Note)
	return &one[pushed]{pushed{r, report}}, s.problem(ctx, err)
}

// A source is a revision with its files.
type source struct {
	Revision policy.Revision `json:"revision"`
	Files    policy.Bundle   `json:"files"`
}

func (s *Server) getPolicy(ctx context.Context, in *Named) (*one[source], error) {
	digest := in.ID
	if digest == "active" {
		a, err := s.Policy.Active(ctx, callerOf(ctx))
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		digest = a.Digest
	}
	r, b, err := s.Policy.Source(ctx, callerOf(ctx), digest)
	return &one[source]{source{r, b}}, s.problem(ctx, err)
}

type WithReason struct {
	Named
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500"`
	}
}

func (s *Server) activatePolicy(ctx context.Context, in *WithReason) (*one[policy.Activation], error) {
	a, err := s.Policy.Activate(ctx, callerOf(ctx), in.ID, in.Body.Reason)
	return &one[policy.Activation]{a}, s.problem(ctx, err)
}

func (s *Server) rollbackPolicy(ctx context.Context, in *WithReason) (*one[policy.Activation], error) {
	a, err := s.Policy.Rollback(ctx, callerOf(ctx), in.ID, in.Body.Reason)
	return &one[policy.Activation]{a}, s.problem(ctx, err)
}

func (s *Server) listActivations(ctx context.Context, in *struct {
	Limit int `query:"limit" minimum:"1" maximum:"200" default:"50"`
},
) (*many[policy.Activation], error) {
	list, err := s.Policy.History(ctx, callerOf(ctx), in.Limit)
	return pageOf(list, ""), s.problem(ctx, err)
}
