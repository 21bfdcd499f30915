package edge

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"estover.dev"
)

// ErrFetch is returned for a document that could not be fetched.
var ErrFetch = &estover.Error{Kind: estover.Unavailable, Code: "fetch_failed", Detail: "The document could not be fetched."}

// How large the documents of others may be.
const (
	MaxDocument = 5 << 10  // metadata
	MaxKeys     = 64 << 10 // key sets
)

// fetchTimeout is how long a fetch may take, from the name to the last byte.
const fetchTimeout = 5 * time.Second

// A Fetcher is the only way in which Estover goes out for itself: for metadata
// and keys of others, and to deliver to them. Addresses are checked where they
// are dialled, redirects are not followed, variables of the environment do not
// count, nothing is decompressed, sizes and times are bounded (tokens.md,
// section 3.3).
type Fetcher struct {
	Dialer *Dialer
	// Opening names the exceptions that an administrator has made. Only hosts
	// that are named there may be reached without TLS.
	Opening Opening
	// Roots are the authorities of the other side; nil means the system's.
	Roots *x509.CertPool
}

// A Document is what came.
type Document struct {
	Status int
	Header http.Header
	Body   []byte
}

// Get fetches a URL of at most limit bytes. Every status is an answer, also a
// redirect.
func (f *Fetcher) Get(ctx context.Context, url string, limit int64) (Document, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Document{}, ErrFetch.With("The URL cannot be read.")
	}
	return f.Do(r, limit)
}

// Do sends a request and reads an answer of at most limit bytes.
func (f *Fetcher) Do(r *http.Request, limit int64) (Document, error) {
	host, err := ParseHost(r.URL.Host, DefaultPort(r.URL.Scheme))
	if err != nil {
		return Document{}, err
	}
	named := Opening{Hosts: f.Opening.Hosts}
	if r.URL.Scheme != "https" && (r.URL.Scheme != "http" || !named.opens(host.Bare(), host.IP)) {
		return Document{}, ErrFetch.With("The URL is not https.")
	}
	if r.URL.User != nil {
		return Document{}, ErrFetch.With("The URL names a user.")
	}
	ctx, cancel := context.WithTimeout(r.Context(), fetchTimeout)
	defer cancel()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return f.Dialer.Dial(ctx, address, f.Opening)
		},
		TLSClientConfig:        &tls.Config{RootCAs: f.Roots, MinVersion: tls.VersionTLS12},
		DisableCompression:     true,
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	r = r.Clone(ctx)
	r.URL.Host = host.String()
	r.Host = host.Authority(r.URL.Scheme)
	r.Header.Set("Accept-Encoding", "identity")
	resp, err := transport.RoundTrip(r)
	if err != nil {
		var refused *estover.Error
		if errors.As(err, &refused) {
			return Document{}, refused
		}
		return Document{}, ErrFetch.Because(err)
	}
	defer resp.Body.Close()
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return Document{}, ErrFetch.With("The document is encoded as %q, which was not asked for.", e)
	}
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return Document{}, ErrFetch.Because(err)
	}
	if n > limit {
		return Document{}, ErrFetch.With("The document has more than %d bytes.", limit)
	}
	return Document{resp.StatusCode, resp.Header, b.Bytes()}, nil
}
