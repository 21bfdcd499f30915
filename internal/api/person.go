package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev"
	"estover.dev/internal/directory"
)

// personID is the id of the person whom a path names by id or by name.
func (s *Server) personID(ctx context.Context, ref string) (string, error) {
	if ref == "me" && callerOf(ctx).Subject.Kind() == estover.UserKind {
		return callerOf(ctx).Subject.ID(), nil
	}
	if strings.HasPrefix(ref, "usr_") {
		return ref, nil
	}
	p, err := s.People.ByName(ctx, callerOf(ctx), ref)
	return p.ID, err
}

func (s *Server) people() {
	const tag = "People"
	login := op("login", http.MethodPost, "/v1/login", tag, "Exchange a one-time token for a login")
	login.Security = []map[string][]string{}
	huma.Register(s.huma, login, s.login)
	huma.Register(s.huma, op("logout", http.MethodPost, "/v1/logout", tag, "End the login that this request is made with"), s.logout)
	huma.Register(s.huma, op("list-people", http.MethodGet, "/v1/people", tag, "List people by name"), s.listPeople)
	huma.Register(s.huma, op("create-person", http.MethodPost, "/v1/people", tag, "Add a person"), s.createPerson)
	huma.Register(s.huma, op("get-person", http.MethodGet, "/v1/people/{id}", tag, "Show a person, by id, name or 'me'"), s.getPerson)
	huma.Register(s.huma, op("update-person", http.MethodPut, "/v1/people/{id}", tag, "Change what is said of a person"), s.updatePerson)
	huma.Register(s.huma, op("invite-person", http.MethodPost, "/v1/people/{id}/invitations", tag, "Make a one-time token for a person"), s.invitePerson)
	huma.Register(s.huma, op("disable-person", http.MethodPost, "/v1/people/{id}/disable", tag, "Keep a person out, end their tokens and suspend the agents that they answer for"), s.disablePerson)
	huma.Register(s.huma, op("enable-person", http.MethodPost, "/v1/people/{id}/enable", tag, "Let a person come in again"), s.enablePerson)
}

type loggedIn struct {
	Token     string           `json:"token"`
	ExpiresAt time.Time        `json:"expires_at"`
	Person    directory.Person `json:"person"`
}

func (s *Server) login(ctx context.Context, in *struct {
	Body struct {
		Token string `json:"token" minLength:"1" maxLength:"200" doc:"The one-time token"`
		Label string `json:"label,omitempty" maxLength:"100" doc:"Where the login is used, for the person's list of logins"`
	}
},
) (*one[loggedIn], error) {
	from := callerOf(ctx)
	secret, token, err := s.People.Redeem(ctx, from, in.Body.Token, in.Body.Label, 0)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	s.Entered(from.Tenant)
	value := string(secret.Reveal())
	self, err := s.People.Authenticate(ctx, from.Tenant, value)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	p, err := s.People.Get(ctx, self, token.Person)
	return &one[loggedIn]{loggedIn{value, token.ExpiresAt, p}}, s.problem(ctx, err)
}

func (s *Server) logout(ctx context.Context, _ *struct{}) (*struct{}, error) {
	c := callerOf(ctx)
	return nil, s.problem(ctx, s.People.Retire(ctx, c, c.Subject.ID(), c.Grant))
}

func (s *Server) listPeople(ctx context.Context, in *struct{ Paging }) (*many[directory.Person], error) {
	list, next, err := s.People.List(ctx, callerOf(ctx), directory.Filter{}, in.Cursor, in.Limit)
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) createPerson(ctx context.Context, in *struct{ Body directory.Spec }) (*one[directory.Person], error) {
	p, err := s.People.Create(ctx, callerOf(ctx), in.Body, "")
	return &one[directory.Person]{p}, s.problem(ctx, err)
}

func (s *Server) getPerson(ctx context.Context, in *Named) (*one[directory.Person], error) {
	id, err := s.personID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	p, err := s.People.Get(ctx, callerOf(ctx), id)
	return &one[directory.Person]{p}, s.problem(ctx, err)
}

func (s *Server) updatePerson(ctx context.Context, in *struct {
	Named
	Body directory.Spec
},
) (*one[directory.Person], error) {
	id, err := s.personID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	p, err := s.People.Update(ctx, callerOf(ctx), id, in.Body)
	return &one[directory.Person]{p}, s.problem(ctx, err)
}

// An invitation is a one-time token, shown once.
type invitation struct {
	directory.Enrolment
	Token string `json:"token"`
	Link  string `json:"link" doc:"Where the person makes a passkey with it in a browser; the token stands behind the #"`
}

// invitationLink is where somebody makes a passkey with a one-time token.
func (s *Server) invitationLink(tenant estover.TenantID, value string) string {
	return s.issuer.Of(tenant) + "/login/invitation#" + value
}

func (s *Server) invitePerson(ctx context.Context, in *struct {
	Named
	Body struct {
		TTLSeconds int64 `json:"ttl_seconds,omitempty" minimum:"0" maximum:"604800" doc:"How long it is good; a day if left out"`
	}
},
) (*one[invitation], error) {
	id, err := s.personID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	secret, e, err := s.People.Invite(ctx, callerOf(ctx), id, seconds(in.Body.TTLSeconds))
	value := string(secret.Reveal())
	return &one[invitation]{invitation{e, value, s.invitationLink(callerOf(ctx).Tenant, value)}}, s.problem(ctx, err)
}

func (s *Server) disablePerson(ctx context.Context, in *struct {
	Named
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500"`
	}
},
) (*one[directory.Person], error) {
	id, err := s.personID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	p, err := s.People.Disable(ctx, callerOf(ctx), id, in.Body.Reason)
	return &one[directory.Person]{p}, s.problem(ctx, err)
}

func (s *Server) enablePerson(ctx context.Context, in *Named) (*one[directory.Person], error) {
	id, err := s.personID(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	p, err := s.People.Enable(ctx, callerOf(ctx), id)
	return &one[directory.Person]{p}, s.problem(ctx, err)
}
