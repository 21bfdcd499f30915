package main

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"estover.dev/internal/session"
)

// TestSocket tells sockets apart that share a port and have different
// peers, as the kernel lets any two processes do.
func TestSocket(t *testing.T) {
	dial := func(local *net.TCPAddr) (own, peer int) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		d := net.Dialer{LocalAddr: local, Control: func(_, _ string, c syscall.RawConn) (err error) {
			_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			return err
		}}
		c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c.LocalAddr().(*net.TCPAddr).Port, l.Addr().(*net.TCPAddr).Port
	}
	own, first := dial(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	shared, second := dial(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: own})
	if own != shared {
		t.Fatalf("the sockets have the ports %d and %d, want the same", own, shared)
	}
	a, _ := socket(own, first)
	b, _ := socket(own, second)
	if a == "" || b == "" || a == b {
		t.Errorf("the sockets at port %d are %q and %q, want two", own, a, b)
	}
	if c, _ := socket(own, 1); c != "" {
		t.Errorf("a socket that is not there is %q", c)
	}
}

// TestBinding finds out on this machine to what a session can be bound, and lets
// in whom the answer lets in.
func TestBinding(t *testing.T) {
	if bound, err := binding(); bound != session.ByProcess || err != nil {
		t.Errorf("a session can be bound to %s (%v), want process", bound, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	// The connection is ours: of this user, and of no program that was started.
	for bound, want := range map[session.Bound]bool{session.ByProcess: false, session.ByUser: true, session.ByNothing: true} {
		if got := (&tree{bound: bound}).owns(in); got != want {
			t.Errorf("bound to %s, a connection of this process is let in: %v, want %v", bound, got, want)
		}
	}
}
