//go:build unix

package gateway

import (
	"net"
	"syscall"
)

// canLook says whether [nothingCame] can tell.
const canLook = true

// nothingCame reports whether a connection is open and nothing can be read from it.
// It takes nothing out, and does not wait.
func nothingCame(c net.Conn) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	var came error
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, came = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return err == nil && (came == syscall.EAGAIN || came == syscall.EWOULDBLOCK)
}
