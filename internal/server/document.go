package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"os"

	"estover.dev/internal/edge"
)

// documentFetcher is the way out to the documents of clients: to public addresses
// alone. In development it leads back to this machine too, and to certificates
// that nobody else believes.
func documentFetcher(own *edge.Own, roots string) (*edge.Fetcher, error) {
	f := &edge.Fetcher{Dialer: &edge.Dialer{Own: own}}
	if roots == "" {
		return f, nil
	}
	pem, err := os.ReadFile(roots)
	if err != nil {
		return nil, fmt.Errorf("--development-client-roots: %w", err)
	}
	if f.Roots, err = x509.SystemCertPool(); err != nil {
		f.Roots = x509.NewCertPool()
	}
	if !f.Roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--development-client-roots: %s has no certificates", roots)
	}
	f.Opening.Prefixes = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	return f, nil
}

// fetchDocument gets what a client says of itself where its client_id leads.
func (s *Server) fetchDocument(ctx context.Context, url string) (edge.Document, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return edge.Document{}, edge.ErrFetch.With("The URL cannot be read.")
	}
	r.Header.Set("Accept", "application/json")
	return s.clients.Do(r, edge.MaxDocument)
}
