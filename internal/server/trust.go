package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"estover.dev"
	"estover.dev/internal/api"
	"estover.dev/internal/edge"
	"estover.dev/internal/federation"
)

// fetchKeys gets the keys of an issuer whom a trust names. The host is opened
// only as far as the trust says.
func (s *Server) fetchKeys(ctx context.Context, from federation.Source) ([]byte, error) {
	f, err := s.fetcher(ctx, from)
	if err != nil {
		return nil, err
	}
	d, err := f.Get(ctx, from.URL, edge.MaxKeys)
	if err == nil && d.Status != http.StatusOK {
		err = edge.ErrFetch.With("The keys are not there: the answer has the status %d.", d.Status)
	}
	return d.Body, err
}

// fetcher reaches where somebody's keys are, and their token endpoint, as far as the
// tenant may reach that.
func (s *Server) fetcher(ctx context.Context, from federation.Source) (*edge.Fetcher, error) {
	f := &edge.Fetcher{Dialer: &edge.Dialer{Own: s.own}}
	if from.CA != "" {
		f.Roots = x509.NewCertPool()
		if !f.Roots.AppendCertsFromPEM([]byte(from.CA)) {
			return nil, edge.ErrFetch.With("The roots of the trust are no certificates.")
		}
	}
	if from.AllowPrivate {
		u, err := url.Parse(from.URL)
		if err != nil {
			return nil, edge.ErrFetch.With("The URL cannot be read.")
		}
		host, err := edge.ParseHost(u.Host, edge.DefaultPort(u.Scheme))
		if err != nil {
			return nil, err
		}
		if f.Opening, err = s.opening(ctx, from.Tenant, host); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// checkTrusts looks whether the keys of the issuers can be had whose tokens
// count here.
func (s *Server) checkTrusts(ctx context.Context, tenant estover.TenantID) api.Check {
	all, unreachable, err := s.trusts.Unreachable(ctx, tenant)
	switch {
	case err != nil:
		return wrong("trusts", "The trusts cannot be read.", "See the check of the database.")
	case len(unreachable) > 0:
		return wrong("trusts", "The keys of these issuers cannot be fetched: "+strings.Join(unreachable, ", ")+".",
			"Their workloads get no tokens once the keys that are there are an hour old. Look at jwks_url, ca and allow_private (estover trust show), or put the keys into the trust.")
	case all == 1:
		return fine("trusts", "1 trust; its keys are there")
	}
	return fine("trusts", fmt.Sprintf("%d trusts; their keys are there", all))
}
