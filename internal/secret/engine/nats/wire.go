package nats

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
)

// What a server may say at once.
const (
	longestLine    = 64 << 10
	longestMessage = 8 << 20
)

var errMalformed = errors.New("the server says what no NATS would")

// A wire is a connection to a server that may be anybody. The library makes room for a
// message as long as it says that it is, in a goroutine of its own, where a length that
// cannot be is the end of the process. So the wire follows the lines too, and refuses
// what is too long before the library sees it. It does the TLS as well, after the line
// with which a server begins, since what is within could not be looked at otherwise.
type wire struct {
	net.Conn // the socket, by which it is closed and its time set
	tls      *tls.Config

	inner   io.ReadWriter // what is talked over
	greeted bool
	begun   bool // the library has written, so all is within TLS from here on
	line    []byte
	payload int // bytes that are left of a message, with the end of its line
	err     error
}

func newWire(c net.Conn, encryption *tls.Config) *wire {
	return &wire{Conn: c, inner: c, tls: encryption}
}

func (w *wire) Write(b []byte) (int, error) {
	if !w.begun {
		if !w.greeted {
			return 0, errMalformed
		}
		if w.begun = true; w.tls != nil {
			secured := tls.Client(w.Conn, w.tls)
			if err := secured.Handshake(); err != nil {
				return 0, err
			}
			w.inner = secured
		}
	}
	return w.inner.Write(b)
}

func (w *wire) Read(b []byte) (int, error) {
	if w.err != nil || len(b) == 0 {
		return 0, w.err
	}
	if !w.greeted { // no byte more than the line, since the next is of TLS
		b = b[:1]
	}
	n, err := w.inner.Read(b)
	for _, c := range b[:n] {
		if !w.follow(c) {
			w.err = errMalformed
			_ = w.Close()
			return 0, w.err
		}
	}
	return n, err
}

// follow reports whether a byte may be passed on.
func (w *wire) follow(c byte) bool {
	if w.payload > 0 {
		w.payload--
		return w.payload > 1 || c == "\n\r"[w.payload]
	}
	if len(w.line) == longestLine {
		return false
	}
	if w.line = append(w.line, c); c != '\n' {
		return true
	}
	line := w.line
	w.line, w.greeted = w.line[:0], true
	if line[0] != 'M' && line[0] != 'm' && line[0] != 'H' && line[0] != 'h' {
		return true
	}
	line, found := bytes.CutSuffix(line, []byte("\r\n"))
	if !found || bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
		return false
	}
	words := bytes.Fields(line)
	n, ok := number(words[len(words)-1])
	if ok && (line[0] == 'H' || line[0] == 'h') {
		var head int
		head, ok = number(words[max(0, len(words)-2)])
		ok = ok && head <= n
	}
	w.payload = n + 2
	return ok
}

func number(b []byte) (int, bool) {
	n, err := strconv.ParseUint(string(b), 10, 31)
	return int(n), err == nil && n <= longestMessage
}
