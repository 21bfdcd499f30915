package server

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/url"

	"estover.dev/internal/edge"
	"estover.dev/internal/federation"
)

// fetchKeys gets the keys of an issuer whom a trust names. The host is opened
// only as far as the trust says.
func (s *Server) fetchKeys(ctx context.Context, from federation.Source) ([]byte, error) {
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
		f.Opening.Hosts = []string{host.Bare()}
	}
	d, err := f.Get(ctx, from.URL, edge.MaxKeys)
	if err == nil && d.Status != http.StatusOK {
		err = edge.ErrFetch.With("The keys are not there: the answer has the status %d.", d.Status)
	}
	return d.Body, err
}
