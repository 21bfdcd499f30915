package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/agent"
	"estover.dev/internal/secret/lease"
)

// agentID is the id of the agent that a path names by id or by name.
func (s *Server) agentID(ctx context.Context, ref string) (string, error) {
	if strings.HasPrefix(ref, "agt_") {
		return ref, nil
	}
	a, err := s.Agents.ByName(ctx, callerOf(ctx), ref)
	return a.ID, err
}

func (s *Server) agents() {
	const tag = "Agents"
	huma.Register(s.huma, op("list-agents", http.MethodGet, "/v1/agents", tag, "List agents by name"), s.listAgents)
	huma.Register(s.huma, op("create-agent", http.MethodPost, "/v1/agents", tag, "Register an agent"), s.createAgent)
	huma.Register(s.huma, op("get-agent", http.MethodGet, "/v1/agents/{id}", tag, "Show an agent, by id or name"), s.getAgent)
	huma.Register(s.huma, op("update-agent", http.MethodPut, "/v1/agents/{id}", tag, "Change what is said of an agent"), s.updateAgent)
	huma.Register(s.huma, op("hold-agent", http.MethodPost, "/v1/agents/{id}/holds", tag, "Stop an agent, beside whatever else holds it"), s.holdAgent)
	huma.Register(s.huma, op("lift-hold", http.MethodPost, "/v1/agents/{id}/holds/{hold}/lift", tag, "Take one hold away; the others stay"), s.liftHold)
	huma.Register(s.huma, op("set-agent-risk", http.MethodPut, "/v1/agents/{id}/risk", tag, "Say how risky an agent is held to be"), s.setAgentRisk)
	huma.Register(s.huma, op("list-credentials", http.MethodGet, "/v1/agents/{id}/credentials", tag, "List the live credentials of an agent"), s.listCredentials)
	huma.Register(s.huma, op("create-credential", http.MethodPost, "/v1/agents/{id}/credentials", tag, "Make a secret, shown once, or register public keys or a certificate's name"), s.createCredential)
	huma.Register(s.huma, op("retire-credential", http.MethodPost, "/v1/agents/{id}/credentials/{credential}/retire", tag, "End a credential, at once or after an overlap"), s.retireCredential)
}

func (s *Server) listAgents(ctx context.Context, in *struct {
	Paging
	Sponsor   string `query:"sponsor" doc:"Only agents of this person"`
	Blueprint string `query:"blueprint" doc:"Only instances of this blueprint"`
	Team      string `query:"team" doc:"Only agents of this team"`
	Hold      string `query:"hold" enum:"pending,suspended,quarantined,retired" doc:"Only agents with a hold of this kind"`
},
) (*many[agent.Agent], error) {
	f := agent.Filter{Sponsor: in.Sponsor, Blueprint: in.Blueprint, Team: in.Team, Hold: agent.Kind(in.Hold)}
	c := callerOf(ctx)
	list, next, err := s.Agents.List(ctx, c, f, in.Cursor, in.Limit)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	var retired []string
	for _, a := range list {
		if a.Status == agent.Retired {
			retired = append(retired, a.ID)
		}
	}
	overdue, err := s.Leases.Overdue(ctx, c.Tenant, retired)
	for i := range list {
		if overdue[list[i].ID] {
			list[i].Status = agent.Retiring
		}
	}
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) createAgent(ctx context.Context, in *struct {
	Body struct {
		agent.Spec
		Pending string `json:"pending,omitempty" maxLength:"500" doc:"Why the agent is to wait until it is activated; it is active at once if this is left out"`
	}
},
) (*one[agent.Agent], error) {
	a, err := s.Agents.Create(ctx, callerOf(ctx), in.Body.Spec, agent.Origin{Pending: in.Body.Pending})
	return &one[agent.Agent]{a}, s.problem(ctx, err)
}

// An agentPage is an agent with what was made for it and has not ended.
type agentPage struct {
	agent.Agent
	LeasesOpen    int64 `json:"leases_open,omitempty" doc:"Credentials of it that have not ended"`
	LeasesOverdue int64 `json:"leases_overdue,omitempty" doc:"Of these, those that should be gone and are not: whoever has one can still use it; a retired agent is called retiring meanwhile"`
}

func (s *Server) getAgent(ctx context.Context, in *Named) (*one[agentPage], error) {
	id, err := s.agentID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	c := callerOf(ctx)
	a, err := s.Agents.Get(ctx, c, id)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	n, err := s.Leases.Standing(ctx, c.Tenant, lease.Filter{Agent: id})
	if a.Status == agent.Retired && n.Overdue > 0 {
		a.Status = agent.Retiring
	}
	return &one[agentPage]{agentPage{a, n.Open, n.Overdue}}, s.problem(ctx, err)
}

func (s *Server) updateAgent(ctx context.Context, in *struct {
	Named
	Body agent.Spec
},
) (*one[agent.Agent], error) {
	id, err := s.agentID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	a, err := s.Agents.Update(ctx, callerOf(ctx), id, in.Body)
	return &one[agent.Agent]{a}, s.problem(ctx, err)
}

func (s *Server) holdAgent(ctx context.Context, in *struct {
	Named
	Body struct {
		Kind   agent.Kind `json:"kind" enum:"pending,suspended,quarantined,retired"`
		Reason string     `json:"reason" minLength:"1" maxLength:"500"`
	}
},
) (*one[agent.Hold], error) {
	id, err := s.agentID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	h, err := s.Agents.Hold(ctx, callerOf(ctx), id, in.Body.Kind, in.Body.Reason)
	return &one[agent.Hold]{h}, s.problem(ctx, err)
}

func (s *Server) liftHold(ctx context.Context, in *struct {
	Named
	Hold string `path:"hold"`
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500"`
	}
},
) (*one[agent.Agent], error) {
	id, err := s.agentID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	a, err := s.Agents.Get(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	if a.Status != agent.Retired {
		n := slices.IndexFunc(a.Holds, func(h agent.Hold) bool { return h.ID == in.Hold })
		switch {
		case n < 0:
			return nil, s.problem(ctx, agent.ErrHoldNotFound)
		case a.Holds[n].Scope != "":
			return nil, s.problem(ctx, agent.ErrHoldNotFound.With("This hold is not the agent's alone. It is lifted with `estover contain lift`, for all that it covers."))
		}
	}
	if _, err = s.Incidents.Lift(ctx, callerOf(ctx), in.Hold, in.Body.Reason, false); err != nil {
		return nil, s.problem(ctx, err)
	}
	a, err = s.Agents.Get(ctx, callerOf(ctx), id)
	return &one[agent.Agent]{a}, s.problem(ctx, err)
}

func (s *Server) setAgentRisk(ctx context.Context, in *struct {
	Named
	Body struct {
		Band   agent.Band `json:"band" enum:"low,raised,high,critical"`
		Reason string     `json:"reason" minLength:"1" maxLength:"500"`
	}
},
) (*one[agent.Agent], error) {
	id, err := s.agentID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	a, err := s.Agents.SetRisk(ctx, callerOf(ctx), id, in.Body.Band, in.Body.Reason)
	return &one[agent.Agent]{a}, s.problem(ctx, err)
}

func (s *Server) listCredentials(ctx context.Context, in *Named) (*many[agent.Credential], error) {
	id, err := s.agentID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	list, err := s.Agents.Credentials(ctx, callerOf(ctx), id)
	return pageOf(list, ""), s.problem(ctx, err)
}

// A madeCredential is a credential, with its secret where one was made: here
// and never again.
type madeCredential struct {
	agent.Credential
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret,omitempty"`
}

func (s *Server) createCredential(ctx context.Context, in *struct {
	Named
	Body struct {
		Kind        agent.CredentialKind `json:"kind" enum:"secret,jwks,certificate"`
		Label       string               `json:"label,omitempty" maxLength:"100"`
		JWKS        json.RawMessage      `json:"jwks,omitempty" doc:"A JSON Web Key Set of public keys, for the kind jwks"`
		Certificate *agent.Certificate   `json:"certificate,omitempty" doc:"What the certificate of its connections says, with exactly one name, for the kind certificate"`
		TTLSeconds  int64                `json:"ttl_seconds,omitempty" minimum:"0" doc:"When it ends by itself; never if left out"`
		Backup      bool                 `json:"backup,omitempty" doc:"It is kept for an emergency, and each use of it is an event of its own"`
	}
},
) (*one[madeCredential], error) {
	id, err := s.agentID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	b := in.Body
	secret, made, err := s.Agents.AddCredential(ctx, callerOf(ctx), id, agent.Wanted{
		Kind: b.Kind, Label: b.Label, Life: seconds(b.TTLSeconds), JWKS: b.JWKS, Certificate: b.Certificate, Backup: b.Backup,
	})
	return &one[madeCredential]{madeCredential{made, id, string(secret.Reveal())}}, s.problem(ctx, err)
}

func (s *Server) retireCredential(ctx context.Context, in *struct {
	Named
	Credential string `path:"credential"`
	Body       struct {
		AfterSeconds int64 `json:"after_seconds,omitempty" minimum:"0" doc:"An overlap in which its successor is put in place"`
	}
},
) (*struct{}, error) {
	id, err := s.agentID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return nil, s.problem(ctx, s.Agents.RetireCredential(ctx, callerOf(ctx), id, in.Credential, seconds(in.Body.AfterSeconds)))
}
