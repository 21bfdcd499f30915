package gateway

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
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// caLife is how long the CA of a session is valid, and with it all that it
// signs.
const caLife = 24 * time.Hour

// maxLeaves is how many leaves a CA keeps.
const maxLeaves = 1024

// A CA signs the certificates with which the gateway answers inside the tunnels
// of one session. It is self-signed, because Python and Node refuse an
// intermediate as anchor, and carries critical name constraints: the hosts that
// the session may ever reach, and no address but the named ones. Whoever gets
// hold of its key can deceive one agent about those hosts for a day
// (gateway.md, section 6, and C13).
//
// A name constraint also admits subdomains. That a leaf names exactly one host,
// and only one that may be reached at that moment, is up to whoever calls
// [CA.Leaf].
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// NewCA makes the CA of a session for the hosts: names as A-labels, where
// "*.example.com" stands for the name and all below it, and addresses.
func NewCA(session string, hosts []string, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject:                     pkix.Name{CommonName: "Estover session " + session, Organization: []string{"Estover"}},
		SerialNumber:                serial(),
		NotBefore:                   now.Add(-time.Minute).UTC().Truncate(time.Second),
		KeyUsage:                    x509.KeyUsageCertSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
	}
	t.NotAfter = t.NotBefore.Add(caLife)
	for _, h := range hosts {
		if a, err := netip.ParseAddr(h); err == nil {
			a = a.Unmap()
			t.PermittedIPRanges = append(t.PermittedIPRanges, &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())})
		} else if name := strings.TrimPrefix(h, "*."); !slices.Contains(t.PermittedDNSDomains, name) {
			t.PermittedDNSDomains = append(t.PermittedDNSDomains, name)
		}
	}
	if len(t.PermittedDNSDomains) == 0 {
		// No constraint at all would admit every name.
		t.PermittedDNSDomains = []string{"invalid"}
	}
	if len(t.PermittedIPRanges) == 0 {
		t.ExcludedIPRanges = []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing the CA of a session: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key, leaves: map[string]*tls.Certificate{}}, nil
}

// serial is a number of 127 random bits.
func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic("gateway: there is no randomness")
	}
	return n
}

// PEM is the certificate, for the agent to trust.
func (c *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// NotAfter is when the CA ends.
func (c *CA) NotAfter() time.Time { return c.cert.NotAfter }

// Marshal gives the CA with its key, in clear: whoever stores it seals it.
func (c *CA) Marshal() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil, err
	}
	return append(c.PEM(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...), nil
}

// UnmarshalCA reads what [CA.Marshal] gave.
func UnmarshalCA(b []byte) (*CA, error) {
	first, rest := pem.Decode(b)
	second, _ := pem.Decode(rest)
	if first == nil || second == nil {
		return nil, errors.New("the CA is not a certificate and a key")
	}
	cert, err := x509.ParseCertificate(first.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate of a CA: %w", err)
	}
	key, err := x509.ParsePKCS8PrivateKey(second.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the key of a CA: %w", err)
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok || !k.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the key of a CA does not belong to its certificate")
	}
	return &CA{cert: cert, key: k, leaves: map[string]*tls.Certificate{}}, nil
}

// Leaf is the certificate for exactly this host, as [edge.Host.Bare] writes it.
// It is made once. A host outside of the constraints is refused.
func (c *CA) Leaf(host string, now time.Time) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if leaf := c.leaves[host]; leaf != nil && now.Before(leaf.Leaf.NotAfter) {
		return leaf, nil
	}
	if !now.Before(c.cert.NotAfter) {
		return nil, errors.New("the CA of the session is no longer valid")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Estover"}},
		SerialNumber:          serial(),
		NotBefore:             c.cert.NotBefore,
		NotAfter:              c.cert.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if a, err := netip.ParseAddr(host); err == nil {
		t.IPAddresses = []net.IP{a.AsSlice()}
	} else {
		t.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %s: %w", host, err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	// What the agent would refuse is not signed, and a name is not signed that
	// the constraints were not made for.
	roots := x509.NewCertPool()
	roots.AddCert(c.cert)
	if _, err := parsed.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, DNSName: bracketed(host)}); err != nil {
		return nil, fmt.Errorf("the CA of the session is not for %s: %w", host, err)
	}
	leaf := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}
	if len(c.leaves) >= maxLeaves {
		clear(c.leaves)
	}
	c.leaves[host] = leaf
	return leaf, nil
}

// bracketed writes a host as x509 wants to verify it.
func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}
