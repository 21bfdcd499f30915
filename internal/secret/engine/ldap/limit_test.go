package ldap

import (
	"bytes"
	"context"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A directory that may be anybody cannot have the library make room for much more than
// it sends.
func TestImpostor(t *testing.T) {
	for name, says := range map[string][]byte{
		"a message of two GiB":             append([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff}, make([]byte, 3<<20)...),
		"a text of two GiB":                append([]byte{0x30, 0x84, 0x00, 0x0f, 0xff, 0xff, 0x04, 0x84, 0x7f, 0xff, 0xff, 0xff}, make([]byte, 3<<20)...),
		"elements of nothing":              append([]byte{0x30, 0x84, 0x00, 0x7f, 0xff, 0xf0}, bytes.Repeat([]byte{5, 0}, 4<<20)...),
		"as many without a length":         append([]byte{0x30, 0x80}, bytes.Repeat([]byte{5, 0}, 4<<20)...),
		"elements in elements for long":    bytes.Repeat([]byte{0x30, 0x80}, 1<<20),
		"a message that is none of LDAP's": {0x30, 0},
	} {
		c := engine.Config{
			Address: "ldap://dir.example", Options: map[string]string{"tls": "off", "base": "dc=example"},
			Admin: engine.Credential{User: "cn=admin,dc=example", Secret: estover.NewSecret([]byte("p"))},
			Dial: func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					defer theirs.Close()
					if _, err := theirs.Read(make([]byte, 4096)); err == nil {
						_, _ = io.Copy(theirs, bytes.NewReader(says))
					}
				}()
				return ours, nil
			},
		}
		e, err := Kind.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err = e.List(ctx, "x")
		runtime.ReadMemStats(&after)
		cancel()
		if took := after.TotalAlloc - before.TotalAlloc; err == nil || took > 400<<20 {
			t.Errorf("%s: %v, and %d MiB were taken", name, err, took>>20)
		}
	}
}
