package redis

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// An impostor is a connection to who is no Redis: it lets everybody in, and answers
// everything else, or the greeting, with whatever it was given.
type impostor struct {
	net.Conn // nil
	greets   bool
	answer   []byte
	pieces   int // bytes at a time
	out      bytes.Buffer
	closed   bool
}

func (c *impostor) Write(b []byte) (int, error) {
	switch q := strings.ToLower(string(b)); {
	case c.greets && strings.Contains(q, "hello"):
		c.out.Write(c.answer)
	case strings.Contains(q, "hello"):
		c.out.WriteString("-ERR unknown command\r\n")
	case strings.Contains(q, "auth"), strings.Contains(q, "ping"):
		c.out.WriteString("+OK\r\n")
	default:
		c.out.Write(c.answer)
	}
	return len(b), nil
}

func (c *impostor) Read(b []byte) (int, error) {
	if c.closed || c.out.Len() == 0 {
		return 0, io.EOF
	}
	return c.out.Read(b[:min(len(b), c.pieces)])
}

func (c *impostor) Close() error                     { c.closed = true; return nil }
func (c *impostor) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *impostor) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *impostor) SetDeadline(time.Time) error      { return nil }
func (c *impostor) SetReadDeadline(time.Time) error  { return nil }
func (c *impostor) SetWriteDeadline(time.Time) error { return nil }

// ask asks everything of an impostor, and gives how much room that took at most.
func ask(t testing.TB, greets bool, answer []byte, pieces int) (errs []error, took uint64) {
	t.Helper()
	e, err := open(engine.Config{
		Address: "redis.example", Options: map[string]string{"tls": "off"},
		Admin: engine.Credential{User: "u", Secret: estover.NewSecret([]byte("p"))},
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return &impostor{greets: greets, answer: answer, pieces: pieces}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ctx := t.Context()
	for _, work := range []func() error{
		func() error { return e.Extend(ctx, "x", nil, time.Time{}) },
		func() error { _, err := e.List(ctx, ""); return err },
		func() error { _, err := e.Sessions(ctx, "x"); return err },
		func() error { _, err := e.Now(ctx); return err },
		func() error { return errors.Join(e.Revoke(ctx, []engine.Doomed{{Name: "x"}, {Name: "y"}})...) },
		func() error { return e.EndSessions(ctx, "x") },
		func() error { _, err := e.(engine.Inspector).Rights(ctx, nil); return err },
		func() error {
			return e.(engine.Pairer).Pair(ctx, "y", "x", estover.NewSecret([]byte("second")))
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		errs = append(errs, work())
		runtime.ReadMemStats(&after)
		took = max(took, after.TotalAlloc-before.TotalAlloc)
	}
	return errs, took
}

// A server that may be anybody cannot have the client make room for more than it has
// sent, whatever it says of its length: neither a panic of the runtime, nor the end of
// the memory, nor one of the stack.
func TestImpostor(t *testing.T) {
	for name, answer := range map[string]string{
		"a list of a length that cannot be":    "*1000000000000000000\r\n",
		"a list that does not fit into memory": "*2000000000\r\n",
		"a text of a length that cannot be":    "$9000000000000000000\r\n",
		"a text that does not fit":             "$17179869184\r\n",
		"a verbatim text":                      "=9000000000000000000\r\n",
		"an error that is a text":              "!9000000000000000000\r\n",
		"a map":                                "%2000000000\r\n",
		"a set":                                "~2000000000\r\n",
		"a push":                               ">2000000000\r\n",
		"an attribute":                         "|2000000000\r\n+a\r\n",
		"lists in lists, all of them long":     strings.Repeat("*200000\r\n", 2000),
		"lists in lists without an end":        strings.Repeat("*1\r\n", 1<<20),
		"maps in maps":                         strings.Repeat("%1\r\n+a\r\n", 1<<20),
		"a map whose key is nothing":           "*1\r\n%3\r\n_\r\n*2000000000\r\n",
		"after a text":                         "*2\r\n$3\r\nabc\r\n$9000000000000000000\r\n",
		"after something without a type":       "x\r\n*2000000000\r\n",
		"a length with a sign":                 "$+9000000000000000000\r\n",
		"a length below nothing":               "*-2\r\n",
		"a line without an end":                "+" + strings.Repeat("a", 1<<20),
		"a line that ends otherwise":           "*3\n+a\r\n",
		"texts without an end":                 "*200000\r\n" + strings.Repeat("$1048576\r\n"+strings.Repeat("a", 1<<20)+"\r\n", 40),
	} {
		for _, greets := range []bool{false, true} {
			errs, took := ask(t, greets, []byte(answer), 1<<16)
			for n, err := range errs {
				if err == nil {
					t.Errorf("%s (in the greeting: %t): question %d went well", name, greets, n)
				}
			}
			if took > 160<<20 {
				t.Errorf("%s (in the greeting: %t): took %d MiB", name, greets, took>>20)
			}
		}
	}
}

// What a Redis says is passed on as it is, however it comes.
func TestWire(t *testing.T) {
	said := strings.Join([]string{
		"+OK", "-ERR no", ":7", "$-1", "*-1", "_", "#t", ",1.5", "(123456789012345678901234567890",
		"$3", "a\nb", "$0", "", "=7", "txt:abc", "!5", "ERR x", "*2", ":1", "*0", "%1", "+k", "~1", "+v", ">2", "+message", "$2", "\r\n", "",
	}, "\r\n")
	for _, pieces := range []int{1, 2, 3, 7, 4096} {
		c := &impostor{pieces: pieces}
		c.out.WriteString(said)
		got, err := io.ReadAll(newWire(c))
		if err != nil || string(got) != said {
			t.Errorf("in pieces of %d: %q, %v", pieces, got, err)
		}
	}
	list := strings.Repeat("id=1 addr=10.0.0.1:1 user=x age=5\n", 200_000)
	c := &impostor{pieces: 1 << 16}
	for range 5 { // each of them is an answer of its own
		c.out.WriteString("$6800000\r\n" + list + "\r\n")
	}
	w := newWire(c)
	b := make([]byte, 6800000+12)
	for range 5 {
		if _, err := w.Write([]byte("client list\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(w, b); err != nil {
			t.Fatalf("a long list: %v", err)
		}
	}
}

// Whatever an impostor says, nothing panics, and little room is made.
func FuzzImpostor(f *testing.F) {
	for _, seed := range []string{
		"*2\r\n$1\r\na\r\n:1\r\n", "%1\r\n+a\r\n*1\r\n_\r\n", "*2000000000\r\n", ">2\r\n+invalidate\r\n*-1\r\n+OK\r\n",
		"=7\r\ntxt:abc\r\n", "!5\r\nERR x\r\n", "$-1\r\n$99999999999\r\n", "|1\r\n+a\r\n+b\r\n+OK\r\n", "*12\r\n$5\r\nflags\r\n*1\r\n$2\r\non\r\n",
	} {
		f.Add([]byte(seed), 5, false)
		f.Add([]byte(seed), 64, true)
	}
	f.Fuzz(func(t *testing.T, answer []byte, pieces int, greets bool) {
		if _, took := ask(t, greets, answer, min(max(pieces, 1), 4096)); took > 160<<20 {
			t.Errorf("%d MiB were taken", took>>20)
		}
	})
}
