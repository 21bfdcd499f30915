package postgres_test

import (
	"crypto/fips140"
	"io"
	"net"
	"testing"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/postgres"
)

// TestFIPS: a server that asks for a password by MD5 gets none where FIPS 140 is
// enforced, and the log-in fails (K7). It is run in each
// mode.
func TestFIPS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answered := make(chan byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		hello := make([]byte, 8)
		if _, err := io.ReadFull(c, hello); err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, c, int64(hello[2])<<8+int64(hello[3])-8)
		_, _ = c.Write([]byte{'R', 0, 0, 0, 12, 0, 0, 0, 5, 1, 2, 3, 4}) // AuthenticationMD5Password
		said := make([]byte, 1)
		_, _ = io.ReadFull(c, said)
		answered <- said[0]
	}()
	e, err := postgres.Kind.Open(engine.Config{
		Address: l.Addr().String() + "/crm", Options: map[string]string{"tls": "off"},
		Admin: engine.Credential{User: "estover", Secret: estover.NewSecret([]byte("a password"))},
		Dial:  (&net.Dialer{}).DialContext,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Verify(t.Context(), engine.Credential{User: "somebody", Secret: estover.NewSecret([]byte("a password"))}); err == nil {
		t.Error("somebody is in who was not let in")
	}
	if got := <-answered; (got == 'p') == fips140.Enforced() {
		t.Errorf("asked for a password by MD5 the client says %q; where FIPS 140 is enforced: %v", got, fips140.Enforced())
	}
}
