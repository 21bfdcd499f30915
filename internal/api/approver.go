package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/directory"
)

func (s *Server) approverKeys() {
	const tag = "People"
	huma.Register(s.huma, op("list-approver-keys", http.MethodGet, "/v1/people/{id}/approver-keys", tag, "List the keys by which a person signs approvals"), s.listApproverKeys)
	huma.Register(s.huma, op("add-approver-key", http.MethodPost, "/v1/people/me/approver-keys", tag, "Register an ssh key of one's own to sign approvals with"), s.addApproverKey)
	huma.Register(s.huma, op("end-approver-key", http.MethodDelete, "/v1/people/{id}/approver-keys/{key}", tag, "Retire an ssh key; what it has signed still counts"), s.endApproverKey)
}

func (s *Server) listApproverKeys(ctx context.Context, in *struct{ Named }) (*many[directory.ApproverKey], error) {
	id, err := s.personID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	keys, err := s.People.ApproverKeys(ctx, callerOf(ctx), id)
	return pageOf(keys, ""), s.problem(ctx, err)
}

func (s *Server) addApproverKey(ctx context.Context, in *struct {
	Body struct {
		PublicKey string `json:"public_key" minLength:"1" maxLength:"4096" doc:"The line of the .pub file: an Ed25519 or ECDSA key, in a security key or not."`
		Label     string `json:"label,omitempty" maxLength:"60" doc:"What you call it; the comment in the line if it is left out."`
		Verifies  bool   `json:"verifies,omitempty" doc:"Whether the security key must look who uses it each time: a PIN or a finger (verify-required)."`
	}
},
) (*one[directory.ApproverKey], error) {
	k, err := directory.ParseSSHKey(in.Body.PublicKey)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	if in.Body.Label != "" {
		k.Label = in.Body.Label
	}
	k.Verifies = in.Body.Verifies
	k, err = s.People.AddApproverKey(ctx, callerOf(ctx), k)
	return &one[directory.ApproverKey]{k}, s.problem(ctx, err)
}

func (s *Server) endApproverKey(ctx context.Context, in *struct {
	Named
	Key string `path:"key" maxLength:"200" doc:"The key's id"`
},
) (*struct{}, error) {
	id, err := s.personID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return nil, s.problem(ctx, s.People.EndApproverKey(ctx, callerOf(ctx), id, in.Key))
}
