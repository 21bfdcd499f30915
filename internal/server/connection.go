package server

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"estover.dev"
	"estover.dev/internal/connect"
	"estover.dev/internal/directory"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/connection"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/token"
)

// connecting makes the OAuth connections to upstreams.
func (s *Server) connecting() *connection.Connections {
	return connection.New(s.guard, s.sealer, connection.Options{
		Send: s.sendToProvider, Back: func(t estover.TenantID, name string) string { return s.connectionPage(t, name) + "/back" },
		Secret: func(ctx context.Context, t estover.TenantID, path, host string) (estover.Secret, error) {
			in, err := s.facts.secrets.Use(ctx, estover.Caller{Tenant: t, Subject: estover.System("connection")}, path, "", host)
			return in.Value, err
		},
		Node: s.claims(), Logger: s.logger,
	})
}

// connectionPage is the page on which people authorize a connection.
func (s *Server) connectionPage(t estover.TenantID, name string) string {
	return token.Issuer(s.config.Issuer).Of(t) + connect.Path + "/" + url.PathEscape(name)
}

// sendToProvider is the way out to the provider of a connection. Its hosts are opened
// only as far as the connection says.
func (s *Server) sendToProvider(ctx context.Context, t estover.TenantID, spec connection.Spec, r *http.Request, limit int64) (connection.Answer, error) {
	f, err := s.providerFetcher(ctx, t, directory.Provider{ProviderSpec: directory.ProviderSpec{
		Issuer: r.URL.Scheme + "://" + r.URL.Host, CA: spec.CA, AllowPrivate: spec.Private(r.URL),
	}})
	if err != nil {
		return connection.Answer{}, err
	}
	d, err := f.Do(r.WithContext(ctx), limit)
	return connection.Answer{Status: d.Status, Header: d.Header, Body: d.Body}, err
}

// leased is a part of the credential that a session has of a role, for a request to a
// resource.
func (s *Server) leased(ctx context.Context, caller estover.Caller, resource, role, field string) (secret.Injection, error) {
	in, err := s.leases.Use(ctx, caller, resource, role, field)
	if errors.Is(err, lease.ErrNoField) {
		err = secret.ErrNoField.With("What the role %s hands out has no part %s.", role, field)
	}
	return secret.Injection{Value: in.Value, Secret: in.Lease, Version: in.Lease}, err
}
