package pki

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
	"golang.org/x/crypto/ssh"
)

// fuzzAuthority is an authority of X.509 as far as questions of OCSP look at one,
// and its key.
func fuzzAuthority(f *testing.F) (*Authority, ed25519.PrivateKey) {
	f.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "Acme"}, NotBefore: time.Unix(1, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, public, private)
	if err != nil {
		f.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		f.Fatal(err)
	}
	return &Authority{certificate: c}, private
}

// A request for a certificate comes from a stranger. One that is read can be asked
// whose key it has and whether the key signed it.
func FuzzRequest(f *testing.F) {
	_, key := fuzzAuthority(f)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a.example.com"}, DNSNames: []string{"a.example.com"}}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := ParseRequest(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))
		if err != nil {
			return
		}
		if !bytes.Equal(csr.Raw, der) {
			t.Errorf("%x is read as %x", der, csr.Raw)
		}
		_ = csr.CheckSignature()
		if a, err := algorithmOf(csr.PublicKey); err == nil && a == "" {
			t.Errorf("a key of no algorithm is one that may be certified: %x", der)
		}
	})
}

// Anybody may ask about a certificate (RFC 6960). A question that is taken to be
// about an authority names it by its own name and key.
func FuzzQuestion(f *testing.F) {
	a, _ := fuzzAuthority(f)
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384} {
		der, err := ocsp.CreateRequest(a.certificate, a.certificate, &ocsp.RequestOptions{Hash: h})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Add([]byte{0x30, 0x03, 0x30, 0x01, 0x30})
	name := sha256.Sum256(a.certificate.RawSubject)
	f.Fuzz(func(t *testing.T, question []byte) {
		q, err := ocsp.ParseRequest(question)
		if err != nil || !about(q, a) {
			return
		}
		if q.HashAlgorithm == crypto.SHA256 && !bytes.Equal(q.IssuerNameHash, name[:]) {
			t.Errorf("%x is about another issuer", question)
		}
		if q.SerialNumber == nil {
			t.Errorf("%x is about no certificate", question)
		}
	})
}

// The key that an SSH certificate is asked for, as a line and on the wire. One
// that fits is no certificate itself, and is the same key when it is read again.
func FuzzSSHKey(f *testing.F) {
	_, key := fuzzAuthority(f)
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(ssh.MarshalAuthorizedKey(public)))
	f.Add(`command="x",no-pty ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAA== a b`)
	any := &SSHSpec{}
	f.Fuzz(func(t *testing.T, line string) {
		public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil || any.fits(public) != nil {
			return
		}
		if _, is := public.(*ssh.Certificate); is {
			t.Errorf("%q is a certificate and would be certified", line)
		}
		if again := authorizedKey(public.Marshal()); again == "" {
			t.Errorf("%q cannot be read again", line)
		}
	})
}
