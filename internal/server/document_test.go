package server

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"estover.dev/internal/edge"
)

// TestDocumentsOnThisMachine: the documents of clients are fetched from public
// addresses; from this machine's own only where it is set up for development, and
// then under the authorities that are named for it.
func TestDocumentsOnThisMachine(t *testing.T) {
	up := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("Accept")) }))
	defer up.Close()
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: up.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Server{own: &edge.Own{}}
	get := func(roots, url string) (edge.Document, error) {
		t.Helper()
		var err error
		if s.clients, err = documentFetcher(s.own, roots); err != nil {
			t.Fatal(err)
		}
		return s.fetchDocument(t.Context(), url)
	}
	if d, err := get("", up.URL); !errors.Is(err, edge.ErrAddress) {
		t.Errorf("as it is, this machine gave %q, %v", d.Body, err)
	}
	if d, err := get(roots, up.URL); err != nil || string(d.Body) != "application/json" {
		t.Errorf("for development, this machine gave %q, %v", d.Body, err)
	}
	for _, url := range []string{"https://10.0.0.1/", "https://192.168.0.1/", "https://169.254.169.254/", "https://[fe80::1]/", "https://[fd00::1]/", strings.Replace(up.URL, "https", "http", 1)} {
		if d, err := get(roots, url); err == nil {
			t.Errorf("for development, %s gave %q", url, d.Body)
		}
	}
	s.own.Add(up.Listener.Addr())
	if d, err := get(roots, up.URL); !errors.Is(err, edge.ErrAddress) {
		t.Errorf("our own listener gave %q, %v", d.Body, err)
	}
	if _, err := documentFetcher(s.own, filepath.Join(t.TempDir(), "none.pem")); err == nil {
		t.Error("a file that is not there is no error")
	}
	c := Config{Listen: "0.0.0.0:8443", Gateway: "127.0.0.1:8444", Issuer: "https://estover.example", Loopback: roots}
	if err := c.check(); err == nil || !strings.Contains(err.Error(), "--development-client-roots") {
		t.Errorf("a server that others reach: %v", err)
	}
	c.Listen = "127.0.0.1:8443"
	if err := c.check(); err != nil {
		t.Errorf("a server on a loopback address: %v", err)
	}
}
