package mysql

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"syscall"

	"estover.dev/internal/secret/engine"
)

// What a server may say in answer to what was sent to it.
const (
	longestPacket = 4 << 20
	longestAll    = 32 << 20
)

var (
	errMalformed = errors.New("the server says what no MariaDB would")
	errPlain     = engine.Refuse("the server does without TLS. If that is meant, set the option tls to off")
)

// plugins are the ways to log in that there are: those in which the server gets to
// know nothing with which somebody could log in.
var plugins = []string{"mysql_native_password", "client_ed25519"}

// How far a log-in has come.
const (
	begins = iota
	greeted
	asked
	in
)

// A wire is a connection to a server that may be anybody. The driver takes much of what
// it is told for granted, and panics otherwise; and whoever asks for it gets the
// password itself over TLS, or encrypted for a key that was not proved to be anybody's.
// So the wire reads the packets first, and passes on what a MariaDB may say. It does the
// TLS too, since what is within could not be looked at otherwise: the driver knows of
// none, and its packets have other numbers until it is in.
type wire struct {
	net.Conn // the socket, by which it is closed and its time set
	tls      *tls.Config

	inner io.ReadWriter // what is talked over
	from  io.Reader
	step  int
	shift byte // by how much the server's numbers are ahead of the driver's
	wrote atomic.Bool
	all   int
	out   []byte // what the driver is to read
	err   error
}

// A rawWire is a wire at whose socket the driver can look.
type rawWire struct {
	*wire
	syscall.Conn
}

func newWire(c net.Conn, encryption *tls.Config) *wire {
	return &wire{Conn: c, tls: encryption, inner: c, from: c}
}

// conn is the wire as the driver has it.
func (w *wire) conn() net.Conn {
	if raw, is := w.Conn.(syscall.Conn); is {
		return rawWire{w, raw}
	}
	return w
}

func (w *wire) Write(b []byte) (int, error) {
	w.wrote.Store(true)
	if w.step == in {
		return w.inner.Write(b)
	}
	size := len(b)
	if w.err != nil || size < 4+32 && w.step < asked || size < 4 {
		return 0, errors.Join(errMalformed, w.err)
	}
	b = slices.Clone(b)
	defer clear(b)
	if w.step == greeted {
		w.step = asked
		if w.tls != nil {
			b[5] |= 0x08 // CLIENT_SSL
			request := append([]byte{32, 0, 0, b[3]}, b[4:4+32]...)
			if _, err := w.inner.Write(request); err != nil {
				return 0, err
			}
			secured := tls.Client(w.Conn, w.tls)
			if err := secured.Handshake(); err != nil {
				w.err = err
				return 0, err
			}
			w.inner, w.shift = secured, 1
		}
		w.from = bufio.NewReader(w.inner)
	}
	b[3] += w.shift
	if _, err := w.inner.Write(b); err != nil {
		return 0, err
	}
	return size, nil
}

func (w *wire) Read(b []byte) (int, error) {
	if len(w.out) == 0 && w.err == nil {
		w.err = w.packet()
	}
	if len(w.out) == 0 {
		return 0, w.err
	}
	n := copy(b, w.out)
	w.out = w.out[n:]
	return n, nil
}

// packet reads the next one.
func (w *wire) packet() error {
	var head [4]byte
	if _, err := io.ReadFull(w.from, head[:]); err != nil {
		return err
	}
	if w.wrote.Swap(false) {
		w.all = 0
	}
	size := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
	if w.all += size + len(head); size == 0 || size > longestPacket || w.all > longestAll {
		return errMalformed
	}
	b := make([]byte, len(head)+size)
	if _, err := io.ReadFull(w.from, b[len(head):]); err != nil {
		return err
	}
	copy(b, head[:])
	b[3] -= w.shift
	if err := w.look(b[len(head):]); err != nil {
		return err
	}
	w.out = b
	return nil
}

// look says what is wrong with a packet, which is not empty.
func (w *wire) look(p []byte) error {
	if p[0] == 0xff { // an error: a number, and words with or without a state in front
		if len(p) < 4 || p[3] == '#' && len(p) < 9 {
			return errMalformed
		}
		return nil
	}
	switch w.step {
	case begins:
		w.step = greeted
		return w.greeting(p)
	case in:
		if p[0] == 0xfe && (len(p) < 5 || len(p) > 5 && !ok(p) || p[3]&0x08 != 0) { // the end of rows, after which there are no others
			return errMalformed
		}
		return nil
	}
	switch {
	case p[0] == 0 && ok(p):
		w.step, w.shift = in, 0
		return nil
	case p[0] == 0xfe:
		name, scramble, found := bytes.Cut(p[1:], []byte{0})
		if err := known(name); err != nil || !found {
			return errors.Join(err, errMalformed)
		}
		if n := len(scramble); n != 20 && n != 21 && string(name) == plugins[0] || n != 32 && n != 33 && string(name) == plugins[1] {
			return errMalformed
		}
		return nil
	}
	return errMalformed // a key, say, for which the password is to be encrypted
}

// ok reports whether a packet that says that all is well is whole, of which nobody was
// told how many rows.
func ok(p []byte) bool { return len(p) >= 7 && p[1] < 0xfb && p[2] < 0xfb }

// known refuses ways to log in other than [plugins].
func known(name []byte) error {
	if !slices.Contains(plugins, string(name)) {
		return engine.Refuse("it lets users in by %.40q, in which it would be told their passwords; MariaDB's own ways are %s and %s", name, plugins[0], plugins[1])
	}
	return nil
}

// greeting looks at what a server says first (protocol 10).
func (w *wire) greeting(p []byte) error {
	version, rest, found := bytes.Cut(p[1:], []byte{0})
	const (
		until  = 4 + 8 + 1                      // its thread, half of the scramble
		fixed  = until + 2 + 1 + 2 + 2 + 1 + 10 // what it can do, its charset and state
		needed = 0x200 | 0x8000 | 0x80000       // protocol 4.1, its way to log in, others than that
	)
	if p[0] != 10 || !found || len(version) > 200 || len(rest) < fixed+13+1 {
		return errMalformed
	}
	can := uint32(binary.LittleEndian.Uint16(rest[until:])) | uint32(binary.LittleEndian.Uint16(rest[until+5:]))<<16
	name, _, found := bytes.Cut(rest[fixed+13:], []byte{0})
	switch {
	case !found || can&needed != needed:
		return errMalformed
	case w.tls != nil && can&0x800 == 0:
		return errPlain
	}
	return known(name)
}
