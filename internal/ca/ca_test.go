package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ocsp"

	"estover.dev"
	"estover.dev/internal/ca"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/pki"
	"estover.dev/internal/seal"
)

var errUnknown = &estover.Error{Kind: estover.NotFound, Code: "tenant_not_found", Detail: "There is no such tenant."}

// TestDoor: everybody finds what an authority publishes, at its tenant's address and
// no other, without a token.
func TestDoor(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
		if err != nil {
			t.Fatal(err)
		}
		p := pki.New(guardtest.New(t, d, guardtest.AllowAll), s, pki.Options{Logger: slog.New(slog.DiscardHandler)})
		door := &ca.Door{PKI: p, Base: "/est", Tenants: "/t/", Logger: slog.New(slog.DiscardHandler), Known: func(_ context.Context, t estover.TenantID) error {
			if t != "acme" {
				return errUnknown
			}
			return nil
		}}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !door.Matches(r) {
				w.WriteHeader(http.StatusTeapot)
				return
			}
			door.ServeHTTP(w, r)
		}))
		defer server.Close()
		make := func(tenant estover.TenantID, kind pki.Kind) *pki.Authority {
			t.Helper()
			ann := estover.Caller{Tenant: tenant, Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
			a, _, err := p.Generate(t.Context(), ann, pki.Plan{Name: "ca-" + string(kind), Kind: kind}, false)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		ours, shell, theirs := make(estover.DefaultTenant, pki.X509), make(estover.DefaultTenant, pki.SSH), make("acme", pki.X509)
		for _, c := range []struct {
			method, path string
			status       int
			kind         string
		}{
			{"GET", "/est/pki/" + ours.ID + "/ca", 200, "application/pkix-cert"},
			{"HEAD", "/est/pki/" + ours.ID + "/ca", 200, "application/pkix-cert"},
			{"GET", "/est/pki/" + ours.ID + "/ca.pem", 200, "application/pem-certificate-chain"},
			{"GET", "/est/pki/" + ours.ID + "/bundle.pem", 200, "application/pem-certificate-chain"},
			{"GET", "/est/pki/" + ours.ID + "/crl", 200, "application/pkix-crl"},
			{"GET", "/est/pki/" + ours.ID + "/crl.pem", 200, "application/x-pem-file"},
			{"GET", "/est/pki/" + shell.ID + "/ssh.pub", 200, "text/plain; charset=utf-8"},
			{"GET", "/est/pki/" + shell.ID + "/krl", 200, "application/octet-stream"},
			{"GET", "/est/t/acme/pki/" + theirs.ID + "/crl", 200, "application/pkix-crl"},
			{"POST", "/est/pki/" + ours.ID + "/ocsp", 200, "application/ocsp-response"},
			// One kind has not what the other has.
			{"GET", "/est/pki/" + shell.ID + "/crl", 404, ""},
			{"GET", "/est/pki/" + ours.ID + "/krl", 404, ""},
			{"GET", "/est/pki/" + ours.ID + "/key", 404, ""},
			{"GET", "/est/pki/" + ours.ID + "/crl/more", 404, ""},
			{"DELETE", "/est/pki/" + ours.ID + "/crl", 404, ""},
			{"GET", "/est/pki/" + ours.ID + "/ocsp", 404, ""},
			{"GET", "/est/pki/ca_nothing/crl", 404, ""},
			// Nothing of one tenant stands at the address of another.
			{"GET", "/est/pki/" + theirs.ID + "/crl", 404, ""},
			{"GET", "/est/t/acme/pki/" + ours.ID + "/crl", 404, ""},
			{"GET", "/est/t/evil/pki/" + theirs.ID + "/crl", 404, ""},
			{"GET", "/est/t/default/pki/" + ours.ID + "/crl", http.StatusTeapot, ""},
			{"GET", "/est/pki/" + ours.ID, http.StatusTeapot, ""},
			{"GET", "/pki/" + ours.ID + "/crl", http.StatusTeapot, ""},
		} {
			req, err := http.NewRequest(c.method, server.URL+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != c.status || c.kind != "" && res.Header.Get("Content-Type") != c.kind {
				t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, res.StatusCode, res.Header.Get("Content-Type"), c.status, c.kind)
			}
		}

		// A question in the path, whatever its base64 is made of.
		question := asked(t, ours)
		res, err := http.Get(server.URL + "/est/pki/" + ours.ID + "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(question)))
		if err != nil {
			t.Fatal(err)
		}
		byGet, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if res, err = http.Post(server.URL+"/est/pki/"+ours.ID+"/ocsp", "application/ocsp-request", bytes.NewReader(question)); err != nil {
			t.Fatal(err)
		}
		byPost, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for how, b := range map[string][]byte{"GET": byGet, "POST": byPost} {
			if r, err := ocsp.ParseResponse(b, ours.Certificate()); err != nil || r.Status != ocsp.Unknown {
				t.Errorf("asked by %s: %+v, %v; want unknown", how, r, err)
			}
		}
		if res, err = http.Post(server.URL+"/est/pki/"+ours.ID+"/ocsp", "application/ocsp-request", strings.NewReader(strings.Repeat("x", 20<<10))); err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusUnprocessableEntity {
			t.Errorf("a question of 20 KiB: %d, want 422", res.StatusCode)
		}
	})
}

// asked is a question about a serial number that nobody has, whose bytes give slashes
// and plus signs in base64.
func asked(t *testing.T, a *pki.Authority) []byte {
	t.Helper()
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(a.Certificate().RawSubjectPublicKeyInfo, &info); err != nil {
		t.Fatal(err)
	}
	name, key := sha256.Sum256(a.Certificate().RawSubject), sha256.Sum256(info.Key.RightAlign())
	for i := int64(1); ; i++ {
		q, err := (&ocsp.Request{HashAlgorithm: crypto.SHA256, IssuerNameHash: name[:], IssuerKeyHash: key[:], SerialNumber: big.NewInt(0xffffffff * i)}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if text := base64.StdEncoding.EncodeToString(q); strings.Contains(text, "//") || strings.Contains(text, "+") {
			return q
		}
	}
}
