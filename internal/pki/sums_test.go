package pki_test

import (
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"

	"estover.dev/internal/pki"
)

func sum(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

// keySum is what OCSP names an authority's key by.
func keySum(t testing.TB, a *pki.Authority) []byte {
	t.Helper()
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(a.Certificate().RawSubjectPublicKeyInfo, &info); err != nil {
		t.Fatal(err)
	}
	return sum(info.Key.RightAlign())
}
