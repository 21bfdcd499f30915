package engine

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
)

// How much is read over one connection, in bytes: of an answer, which is what comes after
// something was written and before something is again; and in all, if it is for one piece
// of work.
const (
	longestAnswer = 32 << 20
	longestWork   = 128 << 20
)

var errEndless = errors.New("the target says more than anybody asked for")

// A bounded connection reads answers that have an end.
type bounded struct {
	net.Conn
	once bool // it is for one piece of work
	all  int64
	read atomic.Int64
}

// A rawBounded one is one whose socket can be looked at.
type rawBounded struct {
	*bounded
	syscall.Conn
}

func bound(c net.Conn, once bool) net.Conn {
	b := &bounded{Conn: c, once: once}
	if raw, is := c.(syscall.Conn); is {
		return rawBounded{b, raw}
	}
	return b
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	b.all += int64(n)
	if b.read.Add(int64(n)) > longestAnswer || b.once && b.all > longestWork {
		_ = b.Conn.Close()
		return 0, errEndless
	}
	return n, err
}

func (b *bounded) Write(p []byte) (int, error) {
	b.read.Store(0)
	return b.Conn.Write(p)
}
