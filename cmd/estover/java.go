package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"

	"software.sslmate.com/src/go-pkcs12"
)

// javaTrust is the password of the trust store. It keeps nothing secret: Java
// wants one to check that the file is whole.
const javaTrust = "changeit"

// javaTrustStore writes the session's authority where Java looks for it.
func javaTrustStore(dir, pemText string) (string, error) {
	block, _ := pem.Decode([]byte(pemText))
	if block == nil {
		return "", errors.New("the server sent no certificate authority for the session")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	der, err := pkcs12.Modern2023.EncodeTrustStore([]*x509.Certificate{cert}, javaTrust)
	if err != nil {
		return "", err
	}
	store := filepath.Join(dir, "trust.p12")
	return store, os.WriteFile(store, der, 0o600)
}
