package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// The lives of the certificates that the server makes for itself.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 30 * 24 * time.Hour
)

// An authority is the server's own certificate authority, for installations
// that have brought no certificate: clients trust the one file ca.crt. It is
// not the authority of the gateway's interception, which is one per session.
type authority struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	names []string

	mu   sync.Mutex
	leaf *tls.Certificate
}

// openAuthority reads the authority in dir, or makes it on the first start.
func openAuthority(dir string, c Config) (*authority, error) {
	if err := private(dir); err != nil {
		return nil, err
	}
	a := &authority{names: namesOf(c)}
	certFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	switch {
	case err == nil:
		a.cert = pair.Leaf
		var ok bool
		if a.key, ok = pair.PrivateKey.(*ecdsa.PrivateKey); !ok {
			return nil, fmt.Errorf("%s does not hold an ECDSA key", keyFile)
		}
		return a, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("reading the server's certificate authority: %w", err)
	}
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Estover server authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, err
	}
	// The key first: a crash in between leaves no certificate that nobody can
	// use, and the next start begins again.
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600); err != nil {
		return nil, err
	}
	return a, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// namesOf are the names and addresses under which the server can be reached.
func namesOf(c Config) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if h, err := os.Hostname(); err == nil {
		names = append(names, h)
	}
	for _, addr := range []string{c.Listen, c.Gateway, c.MTLS, c.Vault} {
		if h, _, err := net.SplitHostPort(addr); err == nil && h != "" {
			if ip := net.ParseIP(h); ip == nil || !ip.IsUnspecified() {
				names = append(names, h)
			}
		}
	}
	if u, err := url.Parse(c.Issuer); err == nil {
		names = append(names, u.Hostname())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// certificate is a leaf for the server's names, made again at two thirds of
// its life.
func (a *authority) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if a.leaf != nil && now.Before(a.leaf.Leaf.NotAfter.Add(-leafLife/3)) {
		return a.leaf, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Estover server"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range a.names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a.leaf = &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}
	return a.leaf, nil
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic("server: no randomness: " + err.Error())
	}
	return n
}

// files is a certificate that the operator has brought. It is read again when
// its file changes, so that renewing it needs no restart.
type files struct {
	certFile, keyFile string

	mu      sync.Mutex
	leaf    *tls.Certificate
	changed time.Time // of the file that leaf came from
	looked  time.Time
}

func (f *files) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leaf != nil && time.Since(f.looked) < time.Minute {
		return f.leaf, nil
	}
	f.looked = time.Now()
	info, err := os.Stat(f.certFile)
	if err == nil && f.leaf != nil && info.ModTime().Equal(f.changed) {
		return f.leaf, nil
	}
	pair, loadErr := tls.LoadX509KeyPair(f.certFile, f.keyFile)
	if err = errors.Join(err, loadErr); err != nil {
		if f.leaf != nil {
			return f.leaf, nil // a renewal that is half written; the old one still serves
		}
		return nil, fmt.Errorf("reading the server's certificate: %w", err)
	}
	f.leaf, f.changed = &pair, info.ModTime()
	return f.leaf, nil
}

// serverTLS is how the server shows itself, and the file of the authority that
// clients need, "" if the operator brought a certificate.
func serverTLS(c Config) (*tls.Config, string, error) {
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if c.TLSCert != "" {
		f := &files{certFile: c.TLSCert, keyFile: c.TLSKey}
		if _, err := f.certificate(nil); err != nil {
			return nil, "", err
		}
		base.GetCertificate = f.certificate
		return base, "", nil
	}
	dir := filepath.Join(c.Data, "tls")
	a, err := openAuthority(dir, c)
	if err != nil {
		return nil, "", err
	}
	base.GetCertificate = a.certificate
	return base, filepath.Join(dir, "ca.crt"), nil
}
