package engine

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
)

// longestAnswer is how much is read of an answer, over one connection, in bytes: of what
// comes after something was written, and before something is again.
const longestAnswer = 32 << 20

var errEndless = errors.New("the target says more than anybody asked for")

// A bounded connection reads answers that have an end.
type bounded struct {
	net.Conn
	read atomic.Int64
}

// A rawBounded one is one whose socket can be looked at.
type rawBounded struct {
	*bounded
	syscall.Conn
}

func bound(c net.Conn) net.Conn {
	b := &bounded{Conn: c}
	if raw, is := c.(syscall.Conn); is {
		return rawBounded{b, raw}
	}
	return b
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if b.read.Add(int64(n)) > longestAnswer {
		_ = b.Conn.Close()
		return 0, errEndless
	}
	return n, err
}

func (b *bounded) Write(p []byte) (int, error) {
	b.read.Store(0)
	return b.Conn.Write(p)
}
