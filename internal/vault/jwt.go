package vault

import (
	"context"
	"net/http"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/ticket"
)

func (d *Door) jwts() (all []Route) {
	for _, kind := range []string{ticket.JWTRoles, "oidc"} {
		all = append(
			all,
			Route{Mount: kind, Path: "config", Read: d.readJWTConfig, Write: d.writeJWTConfig, Help: "whose JWTs are looked at"},
			Route{Mount: kind, Path: "role", List: d.listRoles, Help: "the roles"},
			Route{Mount: kind, Path: "role/:name", Read: d.readJWTRole, Write: d.writeJWTRole, Delete: d.dropRole("name"), Exists: d.roleThere("name"), Help: "a role: which JWTs let one in, and what one then is"},
			Route{Mount: kind, Path: "login", Write: d.loginJWT, Open: true, Help: "log in by a JWT"},
			Route{Mount: kind, Path: "oidc/auth_url", Write: d.beginOpenID, Open: true, Help: "where a browser is sent to log in"},
			Route{Mount: kind, Path: "oidc/callback", Read: d.finishOpenID, Write: d.finishOpenID, Open: true, Help: "log in by what a browser has brought back"},
		)
	}
	return all
}

func (d *Door) beginOpenID(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Role     string `json:"role"`
		Redirect string `json:"redirect_uri"`
		Nonce    string `json:"client_nonce"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	to, err := d.Tickets.BeginOpenID(ctx, q.Tenant, q.way(), strings.ToLower(in.Role), in.Redirect, in.Nonce)
	if err != nil {
		return nil, err
	}
	if to == "" {
		q.Warn("unauthorized redirect_uri: it is none of the role's allowed_redirect_uris, word for word")
	}
	return &Answer{Data: map[string]any{"auth_url": to}}, nil
}

func (d *Door) finishOpenID(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		State string         `json:"state"`
		Code  estover.Secret `json:"code"`
		Nonce string         `json:"client_nonce"`
		Error string         `json:"error"`
		Told  string         `json:"error_description"`
		From  string         `json:"iss"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if in.Error != "" {
		return nil, refuse(http.StatusBadRequest, "the provider has not logged anybody in: %.200s %.500s", in.Error, in.Told)
	}
	m, err := d.Tickets.FinishOpenID(ctx, q.Tenant, q.way(), q.from(), in.State, string(in.Code.Reveal()), in.Nonce)
	if err != nil {
		return nil, err
	}
	return signedIn(m), nil
}

func (d *Door) loginJWT(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Role  string         `json:"role"`
		Token estover.Secret `json:"jwt"`
		Other estover.Secret `json:"token"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	token := in.Token
	if token.Empty() {
		token = in.Other
	}
	m, err := d.Tickets.LoginJWT(ctx, q.Tenant, q.way(), q.from(), strings.ToLower(in.Role), string(token.Reveal()))
	if err != nil {
		return nil, err
	}
	return signedIn(m), nil
}

func (d *Door) readJWTConfig(ctx context.Context, q *Request) (*Answer, error) {
	c, err := d.Tickets.JWT(ctx, q.Caller, q.way())
	if err != nil {
		return nil, err
	}
	provider := c.Provider
	if provider == nil {
		provider = map[string]any{}
	}
	return &Answer{Data: map[string]any{
		"oidc_discovery_url": c.DiscoveryURL, "oidc_discovery_ca_pem": c.DiscoveryCA, "oidc_client_id": c.ClientID, "oidc_response_mode": c.ResponseMode,
		"oidc_response_types": words(c.ResponseTypes), "default_role": c.DefaultRole, "jwks_url": c.JWKSURL, "jwks_ca_pem": c.JWKSCA,
		"jwt_validation_pubkeys": words(c.PublicKeys), "jwt_supported_algs": words(c.Algorithms), "bound_issuer": c.BoundIssuer, "provider_config": provider,
		"namespace_in_state": c.NamespaceState, "allow_private": c.AllowPrivate,
	}}, nil
}

func (d *Door) writeJWTConfig(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		DiscoveryURL   string         `json:"oidc_discovery_url"`
		DiscoveryCA    string         `json:"oidc_discovery_ca_pem"`
		ClientID       string         `json:"oidc_client_id"`
		ClientSecret   estover.Secret `json:"oidc_client_secret"`
		ResponseMode   string         `json:"oidc_response_mode"`
		ResponseTypes  []string       `json:"oidc_response_types"`
		DefaultRole    string         `json:"default_role"`
		JWKSURL        string         `json:"jwks_url"`
		JWKSCA         string         `json:"jwks_ca_pem"`
		PublicKeys     []string       `json:"jwt_validation_pubkeys"`
		Algorithms     []string       `json:"jwt_supported_algs"`
		BoundIssuer    string         `json:"bound_issuer"`
		Provider       map[string]any `json:"provider_config"`
		NamespaceState *bool          `json:"namespace_in_state"`
		AllowPrivate   bool           `json:"allow_private"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	c := ticket.JWTConfig{
		DiscoveryURL: in.DiscoveryURL, DiscoveryCA: in.DiscoveryCA, ClientID: in.ClientID, ResponseMode: in.ResponseMode, ResponseTypes: in.ResponseTypes,
		DefaultRole: in.DefaultRole, JWKSURL: in.JWKSURL, JWKSCA: in.JWKSCA, PublicKeys: in.PublicKeys, Algorithms: in.Algorithms, BoundIssuer: in.BoundIssuer,
		Provider: in.Provider, NamespaceState: in.NamespaceState == nil || *in.NamespaceState, AllowPrivate: in.AllowPrivate,
	}
	return nil, d.Tickets.SetJWT(ctx, q.Caller, q.way(), c, in.ClientSecret)
}

func (d *Door) readJWTRole(ctx context.Context, q *Request) (*Answer, error) {
	r, err := d.Tickets.Role(ctx, q.Caller, q.way(), strings.ToLower(q.Param("name")))
	if err != nil {
		return nil, err
	}
	k := r.JWT
	var claims, mappings, audiences, scopes any // null where there are none, as Vault has it
	if k.BoundClaims != nil {
		claims = k.BoundClaims
	}
	if k.ClaimMappings != nil {
		mappings = k.ClaimMappings
	}
	if k.BoundAudiences != nil {
		audiences = k.BoundAudiences
	}
	if k.Scopes != nil {
		scopes = k.Scopes
	}
	return &Answer{Data: limited(r.Limits, map[string]any{
		"role_type": k.RoleType, "user_claim": k.UserClaim, "user_claim_json_pointer": k.UserClaimPointer, "bound_audiences": audiences, "bound_subject": k.BoundSubject,
		"bound_claims": claims, "bound_claims_type": k.BoundClaimsType, "claim_mappings": mappings, "groups_claim": k.GroupsClaim, "oidc_scopes": scopes,
		"allowed_redirect_uris": words(k.Redirects), "verbose_oidc_logging": k.Verbose, "max_age": k.MaxAge, "expiration_leeway": k.ExpirationLeeway,
		"not_before_leeway": k.NotBeforeLeeway, "clock_skew_leeway": k.ClockSkewLeeway, "agent": r.Agent,
	})}, nil
}

func (d *Door) writeJWTRole(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		limits
		before
		Agent            string             `json:"agent"`
		RoleType         *string            `json:"role_type"`
		UserClaim        *string            `json:"user_claim"`
		UserClaimPointer *bool              `json:"user_claim_json_pointer"`
		Audiences        *[]string          `json:"bound_audiences"`
		Subject          *string            `json:"bound_subject"`
		Claims           *map[string]any    `json:"bound_claims"`
		ClaimsType       *string            `json:"bound_claims_type"`
		Mappings         *map[string]string `json:"claim_mappings"`
		Groups           *string            `json:"groups_claim"`
		Scopes           *[]string          `json:"oidc_scopes"`
		Redirects        *[]string          `json:"allowed_redirect_uris"`
		Verbose          *bool              `json:"verbose_oidc_logging"`
		MaxAge           *time.Duration     `json:"max_age"`
		Expiration       *time.Duration     `json:"expiration_leeway"`
		NotBefore        *time.Duration     `json:"not_before_leeway"`
		Skew             *time.Duration     `json:"clock_skew_leeway"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	_, err := d.Tickets.ChangeRole(ctx, q.Caller, q.way(), ticket.JWTRoles, strings.ToLower(q.Param("name")), in.Agent, func(r *ticket.Role) error {
		in.before.apply(&r.Limits, &in.limits)
		in.limits.apply(&r.Limits)
		k := r.JWT
		set(&k.RoleType, in.RoleType)
		set(&k.UserClaim, in.UserClaim)
		set(&k.UserClaimPointer, in.UserClaimPointer)
		set(&k.BoundAudiences, in.Audiences)
		set(&k.BoundSubject, in.Subject)
		set(&k.BoundClaims, in.Claims)
		set(&k.BoundClaimsType, in.ClaimsType)
		set(&k.ClaimMappings, in.Mappings)
		set(&k.GroupsClaim, in.Groups)
		set(&k.Scopes, in.Scopes)
		set(&k.Redirects, in.Redirects)
		set(&k.Verbose, in.Verbose)
		setSeconds(&k.MaxAge, in.MaxAge)
		setSeconds(&k.ExpirationLeeway, in.Expiration)
		setSeconds(&k.NotBeforeLeeway, in.NotBefore)
		setSeconds(&k.ClockSkewLeeway, in.Skew)
		return nil
	})
	return nil, err
}
