package gateway

import (
	"crypto/rand"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"

	"estover.dev/internal/redact"
)

// Forge signs a leaf for a host as somebody would who has stolen the key, whatever
// the constraints are.
func Forge(c *CA, host string) []byte {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: c.cert.NotBefore, NotAfter: c.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	if a, err := netip.ParseAddr(host); err == nil {
		t.IPAddresses = []net.IP{a.AsSlice()}
	} else {
		t.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.cert, c.key.Public(), c.key)
	if err != nil {
		panic(err)
	}
	return der
}

// MaskFrames gives what a client gets of the frames of an upstream that come in
// pieces.
func MaskFrames(m *redact.Matcher, pieces [][]byte) ([]byte, error) {
	f := &flight{plan: &Plan{Needles: m}}
	s := newSocket(f, &frameSource{pieces: pieces}, false)
	return io.ReadAll(s)
}

type frameSource struct{ pieces [][]byte }

func (s *frameSource) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}
func (s *frameSource) Write(p []byte) (int, error) { return len(p), nil }
func (s *frameSource) Close() error                { return nil }
