package redis

import (
	"errors"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
)

// What a server may say in answer to what was sent to it. No answer to what is asked
// here comes near: a server with some ten thousand clients tells of them in 4 MiB.
const (
	longestText = 16 << 20 // bytes of one text
	longestAll  = 32 << 20 // bytes of everything
	mostMembers = 1 << 18  // of all lists and maps
	mostLists   = 1 << 12  // lists and maps, which may be within each other
	longestLine = 64 << 10 // bytes of what has no length in front
)

var errTooMuch = errors.New("the server says more than a Redis would: a length that cannot be, or an answer without an end")

// A wire is a connection to a server that may be anybody. The client makes room for as
// much as a length says, before anything of it has come, and what does not fit into
// memory is the end of the process. So the wire reads the frames too (RESP2 and RESP3),
// and refuses what is too long before the client sees it.
//
// What it counts does not depend on how frames are nested, which the client may see
// otherwise if it meets with an error, but on lengths alone, of which both see the
// same. Attributes and types that Redis does not send are refused for that reason.
type wire struct {
	net.Conn
	wrote atomic.Bool // since it was last read from
	err   error

	line []byte // what has come of it, without what is not needed
	long int    // how long it is
	text int    // bytes that are left of a text

	all, members, lists int
}

// A rawWire is a wire at whose socket the client can look.
type rawWire struct {
	*wire
	syscall.Conn
}

func newWire(c net.Conn) net.Conn {
	w := &wire{Conn: c}
	if raw, is := c.(syscall.Conn); is {
		return rawWire{w, raw}
	}
	return w
}

func (w *wire) Write(b []byte) (int, error) {
	w.wrote.Store(true)
	return w.Conn.Write(b)
}

func (w *wire) Read(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.Conn.Read(b)
	if w.wrote.Swap(false) {
		w.all, w.members, w.lists = 0, 0, 0
	}
	if !w.follow(b[:n]) {
		w.err = errTooMuch
		_ = w.Conn.Close()
		return 0, w.err
	}
	return n, err
}

// follow reports whether what has come may be passed on.
func (w *wire) follow(b []byte) bool {
	for len(b) > 0 {
		if w.text > 0 {
			n := min(w.text, len(b))
			w.text, b = w.text-n, b[n:]
			continue
		}
		c := b[0]
		b = b[1:]
		w.long++
		if w.all++; w.long > longestLine || w.all > longestAll {
			return false
		}
		if len(w.line) < 24 {
			w.line = append(w.line, c)
		}
		if c != '\n' {
			continue
		}
		if !w.begin(w.line, w.long) {
			return false
		}
		w.line, w.long = w.line[:0], 0
	}
	return true
}

// begin takes in a line, of which no more is given than the beginning.
func (w *wire) begin(line []byte, long int) bool {
	if long < 3 {
		return false
	}
	switch line[0] {
	case '+', '-', ':', ',', '#', '(', '_':
		return true
	}
	if long > len(line) {
		return false
	}
	length, end := string(line[1:len(line)-2]), string(line[len(line)-2:])
	if end != "\r\n" {
		return false
	}
	if length == "-1" {
		return true
	}
	n, err := strconv.ParseUint(length, 10, 32)
	if err != nil {
		return false
	}
	switch line[0] {
	case '$', '!', '=':
		if n > longestText {
			return false
		}
		w.text = int(n) + 2
		w.all += w.text
	case '*', '~', '>':
		w.members += int(min(n, mostMembers+1))
		w.lists++
	case '%':
		w.members += 2 * int(min(n, mostMembers+1))
		w.lists++
	default:
		return false
	}
	return w.all <= longestAll && w.members <= mostMembers && w.lists <= mostLists
}
