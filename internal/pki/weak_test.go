package pki_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/jose/weak/weaktest"
	"estover.dev/internal/pki"
)

// Keys whose private halves anybody can compute (CVE-2017-15361) are certified for
// nobody, and taken over neither as keys of authorities nor in their certificates.
func TestPredictableKeys(t *testing.T) {
	h := build(t, dbtest.Open(t), guardtest.AllowAll)
	h.root("root")
	key := weaktest.RSA(t)
	h.role("any", pki.Spec{X509: &pki.X509Spec{Domains: []string{"agents.example"}, Subdomains: true, Client: true, KeyType: "any"}})
	request := csr(t, key, "x.agents.example")
	if _, err := h.Sign(t.Context(), ann, pki.Wish{Role: "any"}, request); !errors.Is(err, pki.ErrNotAllowed) {
		t.Errorf("signing a request: %v, want ErrNotAllowed", err)
	}
	if _, err := h.SignAsIs(t.Context(), ann, pki.Wish{}, request, pki.X509Spec{}); !errors.Is(err, pki.ErrNotAllowed) {
		t.Errorf("signing a request as it is: %v, want ErrNotAllowed", err)
	}
	if _, err := h.SignAuthority(t.Context(), ann, "root", request, pki.Plan{Name: "mid", CommonName: "Acme Mid"}, true); !errors.Is(err, pki.ErrNotAllowed) {
		t.Errorf("signing an authority: %v, want ErrNotAllowed", err)
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.Generate(t.Context(), ann, pki.Plan{Name: "ssh", Kind: pki.SSH, Algorithm: pki.Ed25519}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := h.PutRole(t.Context(), ann, "", pki.SSH, "ops", pki.Spec{Authority: "ssh", SSH: &pki.SSHSpec{User: true, Principals: []string{"root"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.SignSSH(t.Context(), ann, pki.SSHWish{Role: "ops", PublicKey: string(ssh.MarshalAuthorizedKey(public)), Principals: []string{"root"}}); !errors.Is(err, pki.ErrNotAllowed) {
		t.Errorf("signing a key of SSH: %v, want ErrNotAllowed", err)
	}
	private, err := pki.PrivatePEM(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ImportKey(t.Context(), ann, "", "theirs", private); !errors.Is(err, pki.ErrNotAllowed) {
		t.Errorf("taking over a key: %v, want ErrNotAllowed", err)
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Theirs"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Theirs"}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Import(t.Context(), ann, "", "theirs", estover.NewSecret(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))); !errors.Is(err, pki.ErrNotAllowed) {
		t.Errorf("taking over a certificate: %v, want ErrNotAllowed", err)
	}
}
