package engine_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"

	"estover.dev/internal/secret/engine"
)

// endless says as much as somebody reads.
type endless struct {
	net.Conn
	closed bool
}

func (e *endless) Read(b []byte) (int, error)  { return len(b), nil }
func (e *endless) Write(b []byte) (int, error) { return len(b), nil }
func (e *endless) Close() error                { e.closed = true; return nil }

// An answer without an end is given up, and answers one after the other are not.
func TestEndless(t *testing.T) {
	e := &endless{}
	c := engine.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return e, nil }}
	conn, err := c.Connect(t.Context(), "tcp", "db.example:1")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<20)
	for range 4 {
		if _, err := conn.Write([]byte("next")); err != nil {
			t.Fatal(err)
		}
		for n := range 30 {
			if _, err := io.ReadFull(conn, b); err != nil {
				t.Fatalf("after %d MiB of an answer: %v", n, err)
			}
		}
	}
	if n, err := io.Copy(new(bytes.Buffer), conn); err == nil || n > 3<<20 || !e.closed {
		t.Errorf("%d MiB more were read: %v", n>>20, err)
	}
	// Page after page has an end too.
	if conn, err = c.ConnectOnce(t.Context(), "tcp", "db.example:1"); err != nil {
		t.Fatal(err)
	}
	pages := 0
	for ; err == nil && pages < 1000; pages++ {
		if _, err = conn.Write([]byte("next")); err == nil {
			_, err = io.ReadFull(conn, b)
		}
	}
	if pages < 100 || pages > 130 {
		t.Errorf("%d pages of a MiB were read: %v", pages, err)
	}
}
