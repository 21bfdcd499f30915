package gateway

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"time"

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

// FreeLines is how many lines wait for their next exchange.
func FreeLines(f *Forwarder) (n int) {
	f.pools.mu.Lock()
	defer f.pools.mu.Unlock()
	for _, p := range f.pools.pools {
		p.lines.mu.Lock()
		n += len(p.lines.free)
		p.lines.mu.Unlock()
	}
	return n
}

// ByProxy has the next request of each pool go by the proxy and its transport.
func ByProxy(f *Forwarder) {
	f.pools.mu.Lock()
	defer f.pools.mu.Unlock()
	for _, p := range f.pools.pools {
		p.alone.Store(false)
	}
}

// QuietLines is how many of them may be used.
func QuietLines(f *Forwarder) (n int) {
	f.pools.mu.Lock()
	defer f.pools.mu.Unlock()
	for _, p := range f.pools.pools {
		p.lines.mu.Lock()
		for _, l := range p.lines.free {
			if l.quiet() {
				n++
			}
		}
		p.lines.mu.Unlock()
	}
	return n
}

// Send sends a request by a line of its own. sent tells whether all of it was written.
func Send(c net.Conn, text []byte) (sent func() bool, err error) {
	l := &line{conn: c}
	return func() bool { return l.sent(0) }, l.send(text, time.Minute)
}

// Answered sends a request by a line, of which an answer has then been read to its end.
// kept tells how many lines may be used again.
func Answered(c net.Conn, text []byte) (kept func() int, err error) {
	l, p := &line{conn: c}, &pool{}
	if err := l.send(text, time.Minute); err != nil {
		return nil, err
	}
	b := &lineBody{f: &flight{pool: p}, line: l, off: func() bool { return true }, again: true}
	b.release(true)
	return func() int {
		p.lines.mu.Lock()
		defer p.lines.mu.Unlock()
		return len(p.lines.free)
	}, nil
}

// Left is what is left of a request with the slot in the memory that it was written to.
func Left(s Slot) []byte {
	m := &message{fields: []field{{name: "Cookie", values: []string{"of the agent"}}, {name: s.Name, slot: &s}}}
	m.wire = make([]byte, 0, mostShort+1) // too large to be used again, so that it can be looked at
	m.shown = make([]byte, 0, mostShort+1)
	m.show(http.MethodGet, "/", "", "upstream")
	if err := m.write(http.MethodGet, "/", "", "upstream", nil); err != nil {
		panic(err)
	}
	m.done()
	return append(m.wire[:cap(m.wire)], m.shown[:cap(m.shown)]...)
}

// Ask sends a request by a line of its own, and reads the head of its answer.
func Ask(c net.Conn, r *http.Request, patience time.Duration) (*http.Response, error) {
	l := &line{conn: c}
	l.in = bufio.NewReader(l)
	var text bytes.Buffer
	if err := r.Write(&text); err != nil {
		return nil, err
	}
	return l.exchange(text.Bytes(), r, patience, func(int, http.Header) {})
}

// AgeLines has the lines that wait have done so for longer, and closes those for which
// that is too long, as happens by itself after a while.
func AgeLines(f *Forwarder, by time.Duration) {
	f.pools.mu.Lock()
	defer f.pools.mu.Unlock()
	for _, p := range f.pools.pools {
		p.lines.mu.Lock()
		for _, l := range p.lines.free {
			l.idle = l.idle.Add(-by)
		}
		p.lines.mu.Unlock()
		p.lines.sweepIdle()
	}
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
