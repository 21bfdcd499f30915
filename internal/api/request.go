package api

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev"
	"estover.dev/internal/approval"
	"estover.dev/internal/approval/document"
)

func (s *Server) requests() {
	const tag = "Requests"
	huma.Register(s.huma, op("ask-for-access", http.MethodPost, "/v1/access/requests", tag, "Ask for access: what policy permits is granted in the answer, the rest waits for people"), s.askForAccess)
	huma.Register(s.huma, op("list-requests", http.MethodGet, "/v1/access/requests", tag, "List requests, the newest first"), s.listRequests)
	huma.Register(s.huma, op("get-request", http.MethodGet, "/v1/access/requests/{id}", tag, "Show a request with its votes"), s.getRequest)
	huma.Register(s.huma, op("explain-request", http.MethodGet, "/v1/access/requests/{id}/why", tag, "Say who may decide about a request, who has, and what is missing"), s.explainRequest)
	huma.Register(s.huma, op("preview-approval", http.MethodPost, "/v1/access/requests/{id}/document", tag, "Show the document that would be approved, whose bytes are signed"), s.previewApproval)
	huma.Register(s.huma, op("approve-request", http.MethodPost, "/v1/access/requests/{id}/approve", tag, "Approve a request as it is, or narrower"), s.approveRequest)
	huma.Register(s.huma, op("deny-request", http.MethodPost, "/v1/access/requests/{id}/deny", tag, "Deny a request"), s.denyRequest)
	huma.Register(s.huma, op("cancel-request", http.MethodPost, "/v1/access/requests/{id}/cancel", tag, "Take a request back"), s.cancelRequest)
	huma.Register(s.huma, op("list-absences", http.MethodGet, "/v1/absences", tag, "List who is away, and who decides in their place"), s.listAbsences)
	huma.Register(s.huma, op("put-absence", http.MethodPut, "/v1/people/{id}/absence", tag, "Say that a person is away, and who decides in their place"), s.putAbsence)
	huma.Register(s.huma, op("end-absence", http.MethodDelete, "/v1/people/{id}/absence", tag, "Say that a person is back"), s.endAbsence)
}

// requestedResource is the id of a resource that is asked for, by id or by name.
// Whoever asks need not be one who may look at the catalogue.
func (s *Server) requestedResource(ctx context.Context, ref string) (string, error) {
	if strings.HasPrefix(ref, "res_") {
		return ref, nil
	}
	u, err := s.Resources.UpstreamByName(ctx, callerOf(ctx).Tenant, ref)
	if err != nil {
		return "", err
	}
	return u.ID, nil
}

func (s *Server) requestedItems(ctx context.Context, items []approval.Item) ([]approval.Item, error) {
	for i := range items {
		var err error
		if items[i].Resource, err = s.requestedResource(ctx, items[i].Resource); err != nil {
			return nil, err
		}
	}
	return items, nil
}

func (s *Server) askForAccess(ctx context.Context, in *struct {
	Body struct {
		Agent   string            `json:"agent,omitempty" maxLength:"200" doc:"Name or id of the agent that it is for; an agent asks for itself"`
		Session string            `json:"session,omitempty" maxLength:"100" doc:"The session that it is for and ends with; an agent's own by itself"`
		Purpose string            `json:"purpose,omitempty" maxLength:"100" doc:"One that the agent has declared; by itself the session's, or its only one"`
		Items   []approval.Item   `json:"items" minItems:"1" maxItems:"10" nullable:"false" doc:"What is asked for"`
		Seconds int64             `json:"for_seconds,omitempty" minimum:"0" maximum:"86400" doc:"How long; an hour, or until the session ends, if left out"`
		Budgets approval.Budgets  `json:"budgets,omitzero" doc:"How much of it, for one resource"`
		Reason  string            `json:"reason" minLength:"1" maxLength:"500" doc:"What it is for, in a sentence"`
		Context map[string]string `json:"context,omitempty" doc:"What else those who decide should know: ticket, customer, …"`
	}
},
) (*one[approval.Request], error) {
	b := in.Body
	agent := b.Agent
	var err error
	if agent != "" && callerOf(ctx).Acting() != estover.Agent(agent) {
		if agent, err = s.agentID(ctx, agent); err != nil {
			return nil, s.problem(ctx, err)
		}
	}
	if b.Items, err = s.requestedItems(ctx, b.Items); err != nil {
		return nil, s.problem(ctx, err)
	}
	r, err := s.Requests.Ask(ctx, callerOf(ctx), approval.Wish{
		Agent: agent, Session: b.Session, Purpose: b.Purpose, Items: b.Items, For: seconds(b.Seconds), Budgets: b.Budgets, Reason: b.Reason, Context: b.Context,
	})
	return &one[approval.Request]{r}, s.problem(ctx, err)
}

func (s *Server) listRequests(ctx context.Context, in *struct {
	Paging
	Agent   string         `query:"agent" doc:"Name or id: only requests for this agent"`
	Session string         `query:"session" doc:"Only requests for this session"`
	Kind    approval.Kind  `query:"kind" doc:"Only requests of this kind"`
	State   approval.State `query:"state" enum:"pending,approved,denied,expired,cancelled" doc:"Only requests in this state"`
},
) (*many[approval.Request], error) {
	f := approval.Filter{Session: in.Session, Kind: in.Kind, State: in.State}
	if in.Agent != "" {
		var err error
		if f.Agent, err = s.agentID(ctx, in.Agent); err != nil {
			return nil, s.problem(ctx, err)
		}
	}
	list, next, err := s.Requests.List(ctx, callerOf(ctx), f, in.Cursor, in.Limit)
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) getRequest(ctx context.Context, in *Named) (*one[approval.Request], error) {
	r, err := s.Requests.Get(ctx, callerOf(ctx), in.ID)
	return &one[approval.Request]{r}, s.problem(ctx, err)
}

func (s *Server) explainRequest(ctx context.Context, in *Named) (*one[approval.Explanation], error) {
	e, err := s.Requests.Why(ctx, callerOf(ctx), in.ID)
	return &one[approval.Explanation]{e}, s.problem(ctx, err)
}

// Chosen is what a person approves of a request: all of it if it says nothing.
type Chosen struct {
	Only    []approval.Item   `json:"only,omitempty" maxItems:"10" doc:"Only these, within what is on the table"`
	Seconds int64             `json:"for_seconds,omitempty" minimum:"0" maximum:"86400" doc:"At most so long"`
	Budgets *approval.Budgets `json:"budgets,omitempty" doc:"At most so much"`
	Note    string            `json:"note,omitempty" maxLength:"500" doc:"For the record, and for whoever asked"`
}

func (s *Server) choice(ctx context.Context, c Chosen) (out approval.Choice, err error) {
	out = approval.Choice{For: seconds(c.Seconds), Budgets: c.Budgets, Note: c.Note}
	out.Narrow, err = s.requestedItems(ctx, c.Only)
	return out, err
}

// A shownDocument is a document as it is looked at before it is signed.
type shownDocument struct {
	Document    []byte `json:"document" doc:"The bytes, which are signed as they are"`
	Text        string `json:"text" doc:"The same bytes as text"`
	Digest      string `json:"digest" doc:"Of the document, in hexadecimal: the challenge that a passkey signs"`
	Fingerprint string `json:"fingerprint" doc:"The same as eight words, to compare by eye"`

	Risk approval.Risk `json:"risk,omitzero" doc:"Of what the document grants, for access"`
}

func (s *Server) previewApproval(ctx context.Context, in *struct {
	Named
	Body Chosen
},
) (*one[shownDocument], error) {
	c, err := s.choice(ctx, in.Body)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	text, risk, err := s.Requests.Preview(ctx, callerOf(ctx), in.ID, c)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	digest := document.Digest(text)
	return &one[shownDocument]{shownDocument{text, string(text), hex.EncodeToString(digest[:]), document.Fingerprint(text), risk}}, nil
}

func (s *Server) approveRequest(ctx context.Context, in *struct {
	Named
	Body struct {
		Chosen
		Digest    string          `json:"digest,omitempty" pattern:"^([0-9a-f]{64})?$" doc:"Of the document that was looked at, so that nothing else is approved"`
		Assertion json.RawMessage `json:"assertion,omitempty" doc:"The signature over the document, where policy wants one: method, key and what the method needs"`
	}
},
) (*one[approval.Request], error) {
	c, err := s.choice(ctx, in.Body.Chosen)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	if in.Body.Digest != "" {
		if c.Digest, err = hex.DecodeString(in.Body.Digest); err != nil {
			return nil, s.problem(ctx, err)
		}
	}
	c.Assertion = in.Body.Assertion
	r, err := s.Requests.Approve(ctx, callerOf(ctx), in.ID, c)
	return &one[approval.Request]{r}, s.problem(ctx, err)
}

func (s *Server) denyRequest(ctx context.Context, in *struct {
	Named
	Body struct {
		Note string `json:"note" minLength:"1" maxLength:"500" doc:"Why, for whoever asked"`
	}
},
) (*one[approval.Request], error) {
	r, err := s.Requests.Deny(ctx, callerOf(ctx), in.ID, in.Body.Note)
	return &one[approval.Request]{r}, s.problem(ctx, err)
}

func (s *Server) cancelRequest(ctx context.Context, in *struct {
	Named
	Body struct {
		Note string `json:"note,omitempty" maxLength:"500"`
	}
},
) (*one[approval.Request], error) {
	r, err := s.Requests.Cancel(ctx, callerOf(ctx), in.ID, in.Body.Note)
	return &one[approval.Request]{r}, s.problem(ctx, err)
}

func (s *Server) listAbsences(ctx context.Context, _ *struct{}) (*many[approval.Absence], error) {
	all, err := s.Requests.Absences(ctx, callerOf(ctx))
	return pageOf(all, ""), s.problem(ctx, err)
}

func (s *Server) putAbsence(ctx context.Context, in *struct {
	Named
	Body struct {
		Deputy string    `json:"deputy" minLength:"1" maxLength:"200" doc:"Id or name of the person who decides in their place"`
		Until  time.Time `json:"until" doc:"When it is over"`
	}
},
) (*one[approval.Absence], error) {
	id, err := s.personID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	deputy, err := s.deputyID(ctx, in.Body.Deputy)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	a, err := s.Requests.Absent(ctx, callerOf(ctx), id, deputy, in.Body.Until)
	return &one[approval.Absence]{a}, s.problem(ctx, err)
}

// deputyID is the id of a person by their id or name, for somebody who may not
// look at other people: to say who stands in for oneself needs no role.
func (s *Server) deputyID(ctx context.Context, ref string) (string, error) {
	if strings.HasPrefix(ref, "usr_") {
		return ref, nil
	}
	p, err := s.People.Named(ctx, callerOf(ctx).Tenant, ref)
	return p.ID, err
}

func (s *Server) endAbsence(ctx context.Context, in *Named) (*struct{}, error) {
	id, err := s.personID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return nil, s.problem(ctx, s.Requests.Back(ctx, callerOf(ctx), id))
}
