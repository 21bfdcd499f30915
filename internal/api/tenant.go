package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev"
	"estover.dev/internal/tenant"
)

func (s *Server) tenants() {
	const tag = "Tenants"
	huma.Register(s.huma, op("list-tenants", http.MethodGet, "/v1/tenants", tag, "List the organisations that this server serves"), s.listTenants)
	huma.Register(s.huma, op("create-tenant", http.MethodPost, "/v1/tenants", tag, "Add an organisation, with an issuer of its own"), s.createTenant)
	huma.Register(s.huma, op("get-tenant", http.MethodGet, "/v1/tenants/{id}", tag, "Show an organisation, by its name"), s.getTenant)
	huma.Register(s.huma, op("update-tenant", http.MethodPut, "/v1/tenants/{id}", tag, "Change what is said of an organisation"), s.updateTenant)
	huma.Register(s.huma, op("invite-tenant", http.MethodPost, "/v1/tenants/{id}/invitations", tag, "Make a one-time token for the first administrator of an organisation"), s.inviteTenant)
	huma.Register(s.huma, op("disable-tenant", http.MethodPost, "/v1/tenants/{id}/disable", tag, "Refuse everything of an organisation, and cut what it has under way"), s.disableTenant)
	huma.Register(s.huma, op("enable-tenant", http.MethodPost, "/v1/tenants/{id}/enable", tag, "Let an organisation go on"), s.enableTenant)
	huma.Register(s.huma, op("erase-tenant", http.MethodPost, "/v1/tenants/{id}/erase", tag, "Destroy the keys of an organisation that is disabled, for good"), s.eraseTenant)
}

func (s *Server) listTenants(ctx context.Context, in *struct{ Paging }) (*many[tenant.Tenant], error) {
	list, next, err := s.Tenants.List(ctx, callerOf(ctx), in.Cursor, in.Limit)
	return pageOf(list, next), s.problem(ctx, err)
}

// A founding is a tenant with what lets its first administrator in, shown once.
type founding struct {
	tenant.Tenant
	Token string `json:"token" doc:"The one-time token of its first administrator"`
	Link  string `json:"link" doc:"Where they make a passkey with it in a browser; the token stands behind the #"`
}

func (s *Server) createTenant(ctx context.Context, in *struct{ Body tenant.Spec }) (*one[founding], error) {
	t, err := s.Tenants.Create(ctx, callerOf(ctx), in.Body)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return s.founding(ctx, t)
}

func (s *Server) inviteTenant(ctx context.Context, in *Named) (*one[founding], error) {
	t, err := s.Tenants.Get(ctx, callerOf(ctx), estover.TenantID(in.ID))
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return s.founding(ctx, t)
}

func (s *Server) founding(ctx context.Context, t tenant.Tenant) (*one[founding], error) {
	secret, err := s.Tenants.Invite(ctx, callerOf(ctx), t.Name)
	value := string(secret.Reveal())
	return &one[founding]{founding{t, value, s.invitationLink(t.Name, value)}}, s.problem(ctx, err)
}

func (s *Server) getTenant(ctx context.Context, in *Named) (*one[tenant.Tenant], error) {
	t, err := s.Tenants.Get(ctx, callerOf(ctx), estover.TenantID(in.ID))
	return &one[tenant.Tenant]{t}, s.problem(ctx, err)
}

func (s *Server) updateTenant(ctx context.Context, in *struct {
	Named
	Body tenant.Spec
},
) (*one[tenant.Tenant], error) {
	t, err := s.Tenants.Update(ctx, callerOf(ctx), estover.TenantID(in.ID), in.Body)
	return &one[tenant.Tenant]{t}, s.problem(ctx, err)
}

func (s *Server) disableTenant(ctx context.Context, in *struct {
	Named
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500"`
	}
},
) (*one[tenant.Tenant], error) {
	t, err := s.Tenants.Disable(ctx, callerOf(ctx), estover.TenantID(in.ID), in.Body.Reason)
	return &one[tenant.Tenant]{t}, s.problem(ctx, err)
}

func (s *Server) enableTenant(ctx context.Context, in *Named) (*one[tenant.Tenant], error) {
	t, err := s.Tenants.Enable(ctx, callerOf(ctx), estover.TenantID(in.ID))
	return &one[tenant.Tenant]{t}, s.problem(ctx, err)
}

func (s *Server) eraseTenant(ctx context.Context, in *Named) (*one[tenant.Tenant], error) {
	t, err := s.Tenants.Erase(ctx, callerOf(ctx), estover.TenantID(in.ID))
	return &one[tenant.Tenant]{t}, s.problem(ctx, err)
}
