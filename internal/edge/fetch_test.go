package edge_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"estover.dev/internal/edge"
)

func TestFetch(t *testing.T) {
	var asked []string
	up := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		switch r.URL.Path {
		case "/doc":
			fmt.Fprintf(w, "%s %s", r.Host, r.Header.Get("Accept-Encoding"))
		case "/large":
			fmt.Fprint(w, strings.Repeat("x", edge.MaxDocument+1))
		case "/just":
			fmt.Fprint(w, strings.Repeat("x", edge.MaxDocument))
		case "/moved":
			http.Redirect(w, r, "/doc", http.StatusFound)
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			fmt.Fprint(w, "x")
		}
	}))
	defer up.Close()
	// An environment that names a proxy changes nothing.
	t.Setenv("HTTPS_PROXY", "http://192.0.2.1:1")
	t.Setenv("https_proxy", "http://192.0.2.1:1")
	roots := x509.NewCertPool()
	roots.AddCert(up.Certificate())
	f := &edge.Fetcher{Dialer: &edge.Dialer{}, Opening: edge.Opening{Hosts: []string{"127.0.0.1"}}, Roots: roots}

	d, err := f.Get(t.Context(), up.URL+"/doc", edge.MaxDocument)
	if want := strings.TrimPrefix(up.URL, "https://") + " identity"; err != nil || d.Status != 200 || string(d.Body) != want {
		t.Errorf("got %d %q, %v, want %q", d.Status, d.Body, err, want)
	}
	if d, err := f.Get(t.Context(), up.URL+"/moved", edge.MaxDocument); err != nil || d.Status != http.StatusFound || asked[len(asked)-1] != "/moved" {
		t.Errorf("a redirect gave %d, %v, and %v were asked for", d.Status, err, asked)
	}
	if d, err := f.Get(t.Context(), up.URL+"/just", edge.MaxDocument); err != nil || len(d.Body) != edge.MaxDocument {
		t.Errorf("a document of just the limit: %d bytes, %v", len(d.Body), err)
	}
	for _, path := range []string{"/large", "/gzip"} {
		if _, err := f.Get(t.Context(), up.URL+path, edge.MaxDocument); !errors.Is(err, edge.ErrFetch) {
			t.Errorf("%s was fetched: %v", path, err)
		}
	}
	asked = nil
	for _, url := range []string{
		strings.Replace(up.URL, "https://", "https://user:pw@", 1), "ftp://example.com/", "http://example.com/", "https:///x", "https://127.1/", "%zz", "",
	} {
		if d, err := f.Get(t.Context(), url, edge.MaxDocument); err == nil {
			t.Errorf("%q was fetched: %d", url, d.Status)
		}
	}
	// In clear only where an administrator has named the host, not where an address
	// is open.
	clear := httptest.NewServer(up.Config.Handler)
	defer clear.Close()
	wide := &edge.Fetcher{Dialer: &edge.Dialer{}, Opening: edge.Opening{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}
	if _, err := wide.Get(t.Context(), clear.URL+"/doc", edge.MaxDocument); !errors.Is(err, edge.ErrFetch) {
		t.Errorf("http was fetched from an address that is open: %v", err)
	}
	if d, err := f.Get(t.Context(), clear.URL+"/doc", edge.MaxDocument); err != nil || d.Status != 200 {
		t.Errorf("http was not fetched from a host that is named: %d, %v", d.Status, err)
	}
	if len(asked) != 1 {
		t.Errorf("%v were asked for, want one document", asked)
	}
	asked = nil
	closed := &edge.Fetcher{Dialer: &edge.Dialer{}, Roots: roots}
	if _, err := closed.Get(t.Context(), up.URL+"/doc", edge.MaxDocument); !errors.Is(err, edge.ErrAddress) {
		t.Errorf("loopback was fetched from although nobody opened it: %v", err)
	}
	if _, err := (&edge.Fetcher{Dialer: &edge.Dialer{}, Opening: f.Opening}).Get(t.Context(), up.URL+"/doc", edge.MaxDocument); !errors.Is(err, edge.ErrFetch) {
		t.Errorf("a certificate of nobody was trusted: %v", err)
	}
	if len(asked) != 0 {
		t.Errorf("%v were asked for", asked)
	}
}
