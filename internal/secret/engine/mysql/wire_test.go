package mysql

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/job"
	"estover.dev/internal/secret/engine"
)

const password = "hunter2-hunter2-hunter2"

// An impostor is a server that is no MariaDB. It says one thing after the other, whatever
// it is asked, and keeps what it is told.
type impostor struct {
	says [][]byte // packets, without their heads
	tls  *tls.Config

	mu   sync.Mutex
	told bytes.Buffer
}

func (s *impostor) serve(c net.Conn) {
	defer c.Close()
	seq, hello := byte(0), true
	for n, p := range s.says {
		head := []byte{byte(len(p)), byte(len(p) >> 8), byte(len(p) >> 16), seq}
		if _, err := c.Write(append(head, p...)); err != nil {
			return
		}
		if n == len(s.says)-1 {
			return
		}
		for { // what it is told next
			if _, err := io.ReadFull(c, head); err != nil {
				return
			}
			b := make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			seq = head[3] + 1
			s.mu.Lock()
			s.told.Write(b)
			s.mu.Unlock()
			if !hello || s.tls == nil {
				break
			}
			hello, c = false, tls.Server(c, s.tls)
		}
	}
}

func (s *impostor) dial(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go s.serve(theirs)
	return ours, nil
}

// greeting is what a server says first, which lets users in by plugin.
func greeting(flags uint32, plugin string) []byte {
	g := append([]byte{10}, "5.5.5-10.11.6-MariaDB\x00\x01\x00\x00\x00abcdefgh\x00"...)
	g = append(g, byte(flags), byte(flags>>8), 45, 2, 0, byte(flags>>16), byte(flags>>24), 21)
	return append(append(g, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00abcdefghijkl\x00"...), plugin+"\x00"...)
}

const (
	plain   = 0x8a2000 | 0x8000 | 0x200 | 9 // what it can do
	capable = 36                            // where it says so
)

func key(t testing.TB, k any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// try logs in at an impostor, which may let it wait.
func try(t testing.TB, s *impostor, authorities []byte, patience time.Duration) error {
	t.Helper()
	how := "off"
	if s.tls != nil {
		how = "verify"
	}
	e, err := open(engine.Config{
		Address: "db.example", Options: map[string]string{"tls": how}, Authorities: authorities, Dial: s.dial,
		Admin: engine.Credential{User: "u", Secret: estover.NewSecret([]byte(password))},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return e.Verify(ctx, engine.Credential{User: "u", Secret: estover.NewSecret([]byte(password))})
}

// Whatever a server that may be anybody says while somebody logs in, the driver does not
// panic, and the server is told no password: neither in clear over TLS, nor encrypted for
// a key of its own.
func TestImpostor(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "db.example"}, DNSNames: []string{"db.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, ec.Public(), ec)
	if err != nil {
		t.Fatal(err)
	}
	authorities := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	with := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: ec}}}
	native := []byte("\xfemysql_native_password\x0001234567890123456789\x00")
	sha2 := []byte("\xfecaching_sha2_password\x0001234567890123456789\x00")
	done := []byte{0, 0, 0, 2, 0, 0, 0}
	for name, says := range map[string][][]byte{
		"its way is caching_sha2, with a key that is none of RSA": {greeting(plain, "caching_sha2_password"), {1, 4}, append([]byte{1}, key(t, ec.Public())...), done},
		"with one of ed25519":                {greeting(plain, "caching_sha2_password"), {1, 4}, append([]byte{1}, key(t, ed25519.PublicKey(make([]byte, 32)))...), done},
		"with one of RSA":                    {greeting(plain, "caching_sha2_password"), {1, 4}, append([]byte{1}, key(t, rsaKey.Public())...), done},
		"it changes to that":                 {greeting(plain, plugins[0]), sha2, {1, 4}, append([]byte{1}, key(t, ec.Public())...), done},
		"it changes to sha256":               {greeting(plain, plugins[0]), []byte("\xfesha256_password\x0001234567890123456789\x00"), append([]byte{1}, key(t, ec.Public())...), done},
		"it changes to the password itself":  {greeting(plain, plugins[0]), []byte("\xfemysql_clear_password\x00"), done},
		"it changes to what was of old":      {greeting(plain, plugins[0]), {0xfe}, done},
		"it changes with half a scramble":    {greeting(plain, plugins[0]), native[:30], done},
		"it changes with no scramble":        {greeting(plain, plugins[0]), []byte("\xfeclient_ed25519\x00"), done},
		"it has more to say":                 {greeting(plain, plugins[0]), {1, 3}, done},
		"half an error":                      {greeting(plain, plugins[0]), {0xff}},
		"half a state of an error":           {greeting(plain, plugins[0]), {0xff, 1, 2, '#', '4'}},
		"half of all is well":                {greeting(plain, plugins[0]), {0, 0, 0}},
		"a greeting of another time":         {{9, '5', 0}},
		"a greeting of nothing":              {{}},
		"a greeting that does not end":       {append([]byte{10}, strings.Repeat("5", 1000)...)},
		"a long packet":                      {append(greeting(plain, plugins[0]), make([]byte, 5<<20)...)},
		"half a set of rows":                 {greeting(plain, plugins[0]), done, {0xfe}, {0xff}},
		"it does what is new, then half one": {greeting(plain, plugins[0]), native, done, {0xff}},
	} {
		for _, over := range []*tls.Config{nil, with} {
			s := &impostor{tls: over}
			for _, p := range says {
				s.says = append(s.says, bytes.Clone(p))
			}
			if over != nil && len(says[0]) > 40 && len(says[0]) < 200 {
				s.says[0][capable+1] |= 0x08 // of TLS
			}
			err := try(t, s, authorities, 10*time.Second)
			var p *job.Panicked
			if err == nil || errors.As(err, &p) {
				t.Errorf("%s (over TLS: %t): %v; want an error", name, over != nil, err)
			}
			s.mu.Lock()
			if strings.Contains(s.told.String(), password) || s.told.Len() > 600 {
				t.Errorf("%s (over TLS: %t): it was told %q", name, over != nil, s.told.String())
			}
			s.mu.Unlock()
		}
	}
	for n := range greeting(plain, plugins[0]) {
		var p *job.Panicked
		if err := try(t, &impostor{says: [][]byte{greeting(plain, plugins[0])[:n], done}}, nil, 10*time.Second); err == nil || errors.As(err, &p) {
			t.Errorf("a greeting of %d bytes: %v", n, err)
		}
	}
	s := &impostor{tls: with, says: [][]byte{greeting(plain, plugins[0]), done}}
	if err := try(t, s, authorities, 10*time.Second); err == nil || !strings.Contains(err.Error(), "without TLS") || s.told.Len() > 0 {
		t.Errorf("a server that does without TLS: %v, and was told %q", err, s.told.String())
	}
}

// What somebody says who is no MariaDB brings nothing to panic, and is told no password.
func FuzzImpostor(f *testing.F) {
	done := []byte{0, 0, 0, 2, 0, 0, 0}
	native := []byte("\xfemysql_native_password\x0001234567890123456789\x00")
	f.Add(greeting(plain, plugins[0]), native, done, []byte{1}, []byte{0xff, 1, 2, '#'})
	f.Add(greeting(plain, plugins[1]), done, []byte{1}, []byte("\x03def\x00\x00\x00\x01a\x00"), []byte{0xfe, 0, 0, 2, 0, 0, 0})
	f.Add(greeting(plain, "caching_sha2_password"), []byte{1, 4}, []byte{1, '-'}, done, done)
	f.Fuzz(func(t *testing.T, a, b, c, d, e []byte) {
		s := &impostor{says: [][]byte{a, b, c, d, e}}
		var p *job.Panicked
		if err := try(t, s, nil, 20*time.Millisecond); errors.As(err, &p) && p.With == "*runtime.TypeAssertionError" {
			t.Errorf("%v: %q", err, p.Calls)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if bytes.Contains(s.told.Bytes(), []byte(password)) {
			t.Errorf("it was told %q", s.told.String())
		}
	})
}
