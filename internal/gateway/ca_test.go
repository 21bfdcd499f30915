package gateway_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/gateway"
)

func newCA(t *testing.T, session string, hosts ...string) *gateway.CA {
	t.Helper()
	ca, err := gateway.NewCA(session, hosts, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func certOf(t *testing.T, ca *gateway.CA) *x509.Certificate {
	t.Helper()
	b, _ := pem.Decode(ca.PEM())
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// verify checks a leaf against one anchor.
func verify(t *testing.T, anchor *gateway.CA, leaf *x509.Certificate, host string) error {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(certOf(t, anchor))
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host})
	return err
}

func TestC13EachSessionHasItsOwnCA(t *testing.T) {
	one := newCA(t, "ses_1", "crm.example.com", "*.files.example.com")
	two := newCA(t, "ses_2", "crm.example.com")
	leaf, err := one.Leaf("crm.example.com", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, one, leaf.Leaf, "crm.example.com"); err != nil {
		t.Errorf("the session's own CA does not vouch for its leaf: %v", err)
	}
	if err := verify(t, two, leaf.Leaf, "crm.example.com"); err == nil {
		t.Error("the CA of one session vouches for the leaf of another")
	}
	c := certOf(t, one)
	if !c.PermittedDNSDomainsCritical || len(c.ExcludedIPRanges) != 2 || !c.IsCA || !c.MaxPathLenZero || c.NotAfter.Sub(c.NotBefore) > 24*time.Hour {
		t.Errorf("the CA is not constrained: %+v", c)
	}
	if leaf.Leaf.NotAfter.Sub(leaf.Leaf.NotBefore) > 24*time.Hour || len(leaf.Leaf.DNSNames) != 1 || leaf.Leaf.IsCA {
		t.Errorf("the leaf is too good: %+v", leaf.Leaf)
	}
	if again, _ := one.Leaf("crm.example.com", time.Now()); again != leaf {
		t.Error("a leaf is made twice")
	}
	if _, err := one.Leaf("a.files.example.com", time.Now()); err != nil {
		t.Errorf("a host below a wildcard is refused: %v", err)
	}
	for _, host := range []string{"evil.example", "example.com", "127.0.0.1", "::1", "crm.example.com.evil.example", ""} {
		if _, err := one.Leaf(host, time.Now()); err == nil {
			t.Errorf("the CA signs for %q", host)
		}
	}
	if _, err := one.Leaf("crm.example.com", time.Now().Add(25*time.Hour)); err == nil {
		t.Error("the CA signs after its end")
	}
	none := newCA(t, "ses_3")
	if _, err := none.Leaf("crm.example.com", time.Now()); err == nil {
		t.Error("a CA for no host signs for one")
	}
	address := newCA(t, "ses_4", "127.0.0.1", "::1")
	for host, ok := range map[string]bool{"127.0.0.1": true, "::1": true, "127.0.0.2": false, "crm.example.com": false} {
		if _, err := address.Leaf(host, time.Now()); (err == nil) != ok {
			t.Errorf("a CA for 127.0.0.1 and ::1 signs for %s: %v", host, err)
		}
	}
}

// The constraints hold in OpenSSL too, which most programs verify with: also a
// leaf that somebody signs with the stolen key is refused.
func TestC13ConstraintsHoldInOpenSSL(t *testing.T) {
	narrow, err := gateway.NewCA("ses", []string{"crm.example.com"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	anchor := filepath.Join(dir, "ca.pem")
	os.WriteFile(anchor, narrow.PEM(), 0o600)
	for host, ok := range map[string]bool{"crm.example.com": true, "evil.example": false, "127.0.0.1": false} {
		leaf := gateway.Forge(narrow, host)
		file := filepath.Join(dir, "leaf.pem")
		os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}), 0o600)
		out, err := exec.Command("openssl", "verify", "-x509_strict", "-CAfile", anchor, file).CombinedOutput()
		if (err == nil) != ok || !ok && !strings.Contains(string(out), "permitted subtree violation") && !strings.Contains(string(out), "excluded subtree violation") {
			t.Errorf("openssl about a leaf for %s: %v, %s", host, err, out)
		}
	}
}

func TestCASurvivesStorage(t *testing.T) {
	ca := newCA(t, "ses_1", "crm.example.com")
	b, err := ca.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := gateway.UnmarshalCA(b)
	if err != nil || !bytes.Equal(again.PEM(), ca.PEM()) || !again.NotAfter().Equal(ca.NotAfter()) {
		t.Fatalf("another CA comes back: %v", err)
	}
	leaf, err := again.Leaf("crm.example.com", time.Now())
	if err != nil || verify(t, ca, leaf.Leaf, "crm.example.com") != nil {
		t.Errorf("it does not sign for the first: %v", err)
	}
	other, _ := newCA(t, "ses_2", "crm.example.com").Marshal()
	first, second := bytes.Index(b, []byte("-----BEGIN PRIVATE")), bytes.Index(other, []byte("-----BEGIN PRIVATE"))
	for name, bad := range map[string][]byte{
		"nothing": nil, "no key": ca.PEM(), "another's key": append(bytes.Clone(b[:first]), other[second:]...), "cut off": b[:len(b)/2],
	} {
		if _, err := gateway.UnmarshalCA(bad); err == nil {
			t.Errorf("%s is read as a CA", name)
		}
	}
}
