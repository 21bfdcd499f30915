package postgres_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/postgres"
)

// A server that may be anybody cannot have the driver make room for a message that it
// does not send.
func TestImpostor(t *testing.T) {
	e, err := postgres.Kind.Open(engine.Config{
		Address: "db.example/app", Options: map[string]string{"tls": "off"}, Admin: engine.Credential{User: "u", Secret: estover.NewSecret([]byte("p"))},
		Dial: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				var head [4]byte
				if _, err := io.ReadFull(theirs, head[:]); err != nil {
					return
				}
				if _, err := io.CopyN(io.Discard, theirs, int64(binary.BigEndian.Uint32(head[:]))-4); err != nil {
					return
				}
				_, _ = theirs.Write([]byte{'R', 0x3f, 0xff, 0, 0, 0, 0, 0, 0})
			}()
			return ours, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = e.Now(ctx)
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; err == nil || took > 64<<20 {
		t.Errorf("a message of a GiB: %v, and %d MiB were taken", err, took>>20)
	}
}
