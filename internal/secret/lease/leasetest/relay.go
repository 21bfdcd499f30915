package leasetest

import (
	"net"
	"testing"
)

// Between is told of all that passes on a connection before it is passed on, and
// ends the connection with false. What is nil passes everything on.
type Between struct {
	Asked, Answered func(b []byte) bool
}

// Relay stands between nodes and a target until the test ends, and gives the address
// that nodes find it at. For each of their connections it makes one to the target,
// with somebody between.
func Relay(t testing.TB, to string, between func() Between) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c, to, between())
		}
	}()
	return l.Addr().String()
}

func relay(c net.Conn, to string, between Between) {
	defer c.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	go func() {
		defer up.Close()
		pass(c, up, between.Asked)
	}()
	pass(up, c, between.Answered)
}

// pass passes on what one side says to the other, until one of them is gone or what
// is told of it has enough.
func pass(from, to net.Conn, told func(b []byte) bool) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil || told != nil && !told(b[:n]) {
			return
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}
