package agent_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// certificatePEM is a certificate that vouches for itself.
func certificatePEM(t *testing.T, authority bool) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "one"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: authority, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, &c, &c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestCertificates: a certificate is kept as it was meant, beside the other
// credentials, backups among them.
func TestCertificates(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, ctx := open(t, d), t.Context()
		a := create(t, r, spec("bot"))
		root, second := certificatePEM(t, true), certificatePEM(t, true)
		secret, c, err := r.AddCredential(ctx, ada, a.ID, agent.Wanted{
			Kind: agent.Certified, Label: "mesh", Life: time.Hour, Backup: true,
			Certificate: &agent.Certificate{URI: "spiffe://example.com/bot", Authorities: "a comment\n" + root + "\n" + second},
		})
		if err != nil || !secret.Empty() {
			t.Fatal(c, err)
		}
		want := &agent.Certificate{URI: "spiffe://example.com/bot", Authorities: root + second}
		list, err := r.Credentials(ctx, ada, a.ID)
		if err != nil || len(list) != 1 || !list[0].Backup || list[0].Label != "mesh" || !reflect.DeepEqual(list[0].Certificate, want) || list[0].JWKS != nil {
			t.Errorf("it is kept as %+v, %v", list, err)
		}
		if _, ordinary, err := r.CreateSecret(ctx, ada, a.ID, "", 0); err != nil || ordinary.Backup {
			t.Errorf("an ordinary secret is %+v, %v", ordinary, err)
		}
		if _, err := list[0].Certificate.Roots(); err != nil {
			t.Errorf("its authorities: %v", err)
		}
	})
}

// TestCertificatesRefused: what names nobody, or whom nobody meant.
func TestCertificatesRefused(t *testing.T) {
	r := open(t, dbtest.Open(t))
	a := create(t, r, spec("bot"))
	root := certificatePEM(t, true)
	block := func(kind string) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte("x")}))
	}
	for _, c := range []struct {
		what  string
		known *agent.Certificate
		field string
	}{
		{"nothing", nil, "certificate"},
		{"no name", &agent.Certificate{Authorities: root}, "certificate"},
		{"two names", &agent.Certificate{DNS: "a.example", IP: "192.0.2.1", Authorities: root}, "certificate"},
		{"no authority", &agent.Certificate{DNS: "a.example"}, "certificate.authorities"},
		{"no PEM", &agent.Certificate{DNS: "a.example", Authorities: "MIIB"}, "certificate.authorities"},
		{"a leaf", &agent.Certificate{DNS: "a.example", Authorities: certificatePEM(t, false)}, "certificate.authorities"},
		{"a private key", &agent.Certificate{DNS: "a.example", Authorities: root + block("PRIVATE KEY")}, "certificate.authorities"},
		{"a broken certificate", &agent.Certificate{DNS: "a.example", Authorities: block("CERTIFICATE")}, "certificate.authorities"},
		{"too many", &agent.Certificate{DNS: "a.example", Authorities: strings.Repeat(root, 33)}, "certificate.authorities"},
		{"a star", &agent.Certificate{DNS: "*.example", Authorities: root}, "certificate.tls_client_auth_san_dns"},
		{"a path", &agent.Certificate{URI: "/bot", Authorities: root}, "certificate.tls_client_auth_san_uri"},
		{"a network", &agent.Certificate{IP: "192.0.2.0/24", Authorities: root}, "certificate.tls_client_auth_san_ip"},
		{"a name for mail", &agent.Certificate{Email: "bot", Authorities: root}, "certificate.tls_client_auth_san_email"},
		{"no subject", &agent.Certificate{SubjectDN: "bot", Authorities: root}, "certificate.tls_client_auth_subject_dn"},
	} {
		var e *estover.Error
		_, _, err := r.AddCredential(t.Context(), ada, a.ID, agent.Wanted{Kind: agent.Certified, Certificate: c.known})
		if !errors.As(err, &e) || !errors.Is(err, agent.ErrCertificate) || e.Field != c.field {
			t.Errorf("%s: %v, want ErrCertificate at %s", c.what, err, c.field)
		}
	}
	if _, _, err := r.AddCredential(t.Context(), ada, a.ID, agent.Wanted{Kind: "password"}); !errors.Is(err, agent.ErrInvalid) {
		t.Errorf("another kind: %v, want ErrInvalid", err)
	}
}
