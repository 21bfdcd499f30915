package nats

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"estover.dev/internal/secret/engine"
)

// hear logs in at somebody who is no NATS, who lets everybody in and then says this.
func hear(t testing.TB, says []byte, patience time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	x := &target{address: "nats.example:4222", config: engine.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			_, _ = theirs.Write([]byte("INFO {\"nonce\":\"abc\",\"max_payload\":1000000}\r\n"))
			b := make([]byte, 4096)
			for in := false; ; {
				n, err := theirs.Read(b)
				if err != nil {
					return
				}
				if !in && bytes.Contains(b[:n], []byte("PING")) {
					in = true
					_, _ = theirs.Write([]byte("PONG\r\n"))
				} else if in && bytes.Contains(b[:n], []byte("PUB")) {
					go func() { _, _ = theirs.Write(says) }()
				}
			}
		}()
		return ours, nil
	}}}
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := x.connect(ctx, "token", key)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.RequestWithContext(ctx, "$SYS.REQ.X", nil)
	return err
}

// A server that may be anybody cannot have the library make room for a message that it
// does not send, which would end the process.
func TestImpostor(t *testing.T) {
	for name, says := range map[string]string{
		"a message of a length that cannot be": "MSG _INBOX.x.y 1 9000000000000000000\r\n",
		"one that does not fit":                "MSG _INBOX.x.y 1 200000000000\r\n",
		"one with small letters":               "msg _INBOX.x.y 1 _R 9000000000000000000\r\n",
		"one with a head":                      "HMSG _INBOX.x.y 1 12 9000000000000000000\r\n",
		"one whose head is longer":             "HMSG _INBOX.x.y 1 9000000000000000000 12\r\n",
		"one after another":                    "MSG a 1 3\r\nabc\r\nMSG a 1 9000000000000000000\r\n",
		"one within another's end":             "MSG a 1 3\r\nabcxx\nMSG a 1 9000000000000000000\r\n",
		"with a tab":                           "MSG\ta\t1\t9000000000000000000\r\n",
		"a line without an end":                "-ERR '" + strings.Repeat("x", 1<<20),
	} {
		if err := hear(t, []byte(says), 5*time.Second); err == nil || strings.Contains(err.Error(), "deadline") {
			t.Errorf("%s: %v, want that the connection is given up", name, err)
		}
	}
}

// socket gives what was said in pieces.
type socket struct {
	net.Conn
	from   io.Reader
	pieces int
}

func (s socket) Read(b []byte) (int, error) { return s.from.Read(b[:min(len(b), s.pieces)]) }
func (s socket) Close() error               { return nil }

// What a NATS says is passed on as it is, however it comes.
func TestWire(t *testing.T) {
	const said = "INFO {}\r\nPONG\r\n+OK\r\nMSG a.b 1 _R.1 4\r\na\r\nb\r\nMSG a 1 0\r\n\r\nHMSG a 1 2 5\r\nhhabc\r\nPING\r\n-ERR 'x'\r\n"
	for _, pieces := range []int{1, 2, 3, 7, 4096} {
		got, err := io.ReadAll(newWire(socket{from: strings.NewReader(said), pieces: pieces}, nil))
		if err != nil || string(got) != said {
			t.Errorf("in pieces of %d: %q, %v", pieces, got, err)
		}
	}
}

// Whatever is said brings the library to nothing worse than an error.
func FuzzImpostor(f *testing.F) {
	f.Add([]byte("MSG a 1 3\r\nabc\r\nHMSG a 1 2 4\r\nabcd\r\n-ERR 'x'\r\n"))
	f.Add([]byte("MSG a 1 9000000000000000000\r\n"))
	f.Add([]byte("INFO {\"connect_urls\":[\"x\"]}\r\nPING\r\n"))
	f.Fuzz(func(t *testing.T, says []byte) { _ = hear(t, says, 50*time.Millisecond) })
}
