package server

import (
	"context"
	"crypto/x509"
	"net/url"

	"estover.dev"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
)

// providerFetcher is the way out to an identity provider. Its host is opened only
// as far as its settings say.
func (s *Server) providerFetcher(ctx context.Context, t estover.TenantID, p directory.Provider) (*edge.Fetcher, error) {
	f := &edge.Fetcher{Dialer: &edge.Dialer{Own: s.own}}
	if p.CA != "" {
		f.Roots = x509.NewCertPool()
		if !f.Roots.AppendCertsFromPEM([]byte(p.CA)) {
			return nil, edge.ErrFetch.With("The roots of the identity provider are no certificates.")
		}
	}
	if p.AllowPrivate {
		u, err := url.Parse(p.Issuer)
		if err != nil {
			return nil, edge.ErrFetch.With("The issuer cannot be read.")
		}
		host, err := edge.ParseHost(u.Host, edge.DefaultPort(u.Scheme))
		if err != nil {
			return nil, err
		}
		if f.Opening, err = s.opening(ctx, t, host); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// providerSecret is the client secret by which this server proves itself to an
// identity provider: a secret of the vault, sent to its destinations alone.
func (s *Server) providerSecret(ctx context.Context, t estover.TenantID, path, host string) (estover.Secret, error) {
	in, err := s.facts.secrets.Use(ctx, estover.Caller{Tenant: t, Subject: estover.System("login")}, path, "", host)
	return in.Value, err
}
