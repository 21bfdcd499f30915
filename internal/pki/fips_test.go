package pki_test

import (
	"bytes"
	"crypto"
	"crypto/fips140"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"golang.org/x/crypto/ocsp"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/pki"
)

// TestFIPS: certificates, lists and answers are made where FIPS 140 holds, and a
// question by SHA-1 is one about nobody where that is enforced (K7). It is run in each
// mode.
func TestFIPS(t *testing.T) {
	h := build(t, dbtest.Open(t), guardtest.AllowAll)
	root := h.root("root")
	h.role("agents", pki.Spec{Authority: "root"})
	c, err := h.Issue(t.Context(), ann, pki.Wish{Role: "agents", CommonName: "one.agents.example"})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(c.PEM))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.CheckSignatureFrom(root.Certificate()); err != nil {
		t.Error(err)
	}
	list, err := h.CRL(t.Context(), "acme", root.ID)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := x509.ParseRevocationList(list.DER); err != nil || l.CheckSignatureFrom(root.Certificate()) != nil {
		t.Errorf("the list: %v", err)
	}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA1} {
		var question []byte
		fips140.WithoutEnforcement(func() {
			if question, err = ocsp.CreateRequest(leaf, root.Certificate(), &ocsp.RequestOptions{Hash: hash}); err != nil {
				t.Fatal(err)
			}
		})
		answer, err := h.OCSP(t.Context(), "acme", question, root.ID)
		if err != nil {
			t.Fatal(err)
		}
		if hash == crypto.SHA1 && fips140.Enforced() {
			if !bytes.Equal(answer, ocsp.UnauthorizedErrorResponse) {
				t.Errorf("a question by SHA-1 is answered %x, want unauthorized", answer)
			}
			continue
		}
		if r, err := ocsp.ParseResponse(answer, root.Certificate()); err != nil || r.Status != ocsp.Good {
			t.Errorf("a question by %s: %+v, %v, want good", hash, r, err)
		}
	}
}
