//go:build unix

package gateway

import (
	"net"
	"syscall"
)

// canLook says whether a [look] can tell.
const canLook = true

// A look tells whether something has come by a connection. It is made once for each,
// and used by one at a time.
type look struct {
	raw  syscall.RawConn
	ask  func(fd uintptr)
	came error
	b    [1]byte
}

// lookAt is a look at a connection; nil if there is none.
func lookAt(c net.Conn) *look {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	l := &look{raw: raw}
	l.ask = func(fd uintptr) {
		_, _, l.came = syscall.Recvfrom(int(fd), l.b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	}
	return l
}

// nothing reports whether the connection is open and nothing can be read from it. It
// takes nothing out, and does not wait.
func (l *look) nothing() bool {
	if l == nil {
		return false
	}
	err := l.raw.Control(l.ask)
	return err == nil && (l.came == syscall.EAGAIN || l.came == syscall.EWOULDBLOCK)
}
