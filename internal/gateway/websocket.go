package gateway

import (
	"bufio"
	"crypto/fips140"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"estover.dev/internal/edge"
	"estover.dev/internal/redact"
)

// upgrade finds out whether a request wants to upgrade its connection. Only
// WebSocket is let through: RFC 6455, section 4.2.1 (gateway.md, P13).
func (ex *Exchange) upgrade(r *http.Request) error {
	to := r.Header["Upgrade"]
	if len(to) == 0 || r.ProtoMajor == 1 && !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade") {
		return nil
	}
	key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-Websocket-Key"))
	if r.ProtoMajor != 1 || !r.ProtoAtLeast(1, 1) || len(to) > 1 || !strings.EqualFold(to[0], "websocket") || r.Method != http.MethodGet ||
		r.ContentLength != 0 || r.Header.Get("Sec-Websocket-Version") != "13" || err != nil || len(key) != 16 {
		return ErrUpgrade
	}
	ex.Upgrade = "websocket"
	return nil
}

// switched prepares an upgraded connection, after checking that the upstream
// agreed to what it was asked: RFC 6455, section 4.1.
func (f *flight) switched(res *http.Response) error {
	asked, h := res.Request.Header, res.Header
	var sum [sha1.Size]byte
	// It shows that the other side speaks the protocol, and protects nothing.
	fips140.WithoutEnforcement(func() {
		sum = sha1.Sum([]byte(asked.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	})
	switch {
	case f.ex.Upgrade == "":
		return ErrAnswer.With("The upstream changed the protocol although it was not asked to.")
	case !strings.EqualFold(h.Get("Upgrade"), "websocket"), !httpguts.HeaderValuesContainsToken(h["Connection"], "upgrade"),
		h.Get("Sec-Websocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]):
		return ErrAnswer.With("The upstream did not answer the handshake of WebSocket.")
	case !offered(asked["Sec-Websocket-Extensions"], h["Sec-Websocket-Extensions"]):
		return ErrAnswer.With("The upstream chose an extension of WebSocket that was not offered.")
	case !offered(asked["Sec-Websocket-Protocol"], h["Sec-Websocket-Protocol"]):
		return ErrAnswer.With("The upstream chose a subprotocol of WebSocket that was not offered.")
	}
	backend, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		return ErrAnswer
	}
	if err := f.head(res); err != nil {
		return err
	}
	delete(h, "Content-Length")
	delete(h, "Transfer-Encoding")
	// The phrase is the upstream's own.
	res.Status = "101 Switching Protocols"
	f.ws = newSocket(f, backend, len(h["Sec-Websocket-Extensions"]) > 0)
	res.Body = f.ws
	f.out.Upgraded, f.out.Answered = true, http.StatusSwitchingProtocols
	return f.deliver(res)
}

// offered reports whether everything that was chosen was offered. Parameters do
// not count.
func offered(offer, chosen []string) bool {
	names := func(lines []string) (list []string) {
		for _, line := range lines {
			for item := range strings.SplitSeq(line, ",") {
				name, _, _ := strings.Cut(item, ";")
				list = append(list, strings.ToLower(strings.TrimSpace(name)))
			}
		}
		return list
	}
	have := names(offer)
	return !slices.ContainsFunc(names(chosen), func(name string) bool { return !slices.Contains(have, name) })
}

// Hijack gives the client's connection to the proxy for an upgrade, with the
// frames watched that come from it.
func (f *flight) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := f.control.Hijack()
	if err != nil {
		return nil, nil, err
	}
	var early error
	if strict, ok := c.(interface{ Opaque() error }); ok {
		early = strict.Opaque()
	}
	f.mu.Lock()
	f.hijacked = c
	ended := f.ctx.Err()
	f.mu.Unlock()
	if rw.Reader.Buffered() > 0 || early != nil || ended != nil || f.ws == nil {
		c.Close()
		return nil, nil, errEarly
	}
	return &userConn{Conn: c, s: f.ws}, rw, nil
}

var errEarly = errors.New("the client did not wait for the upgrade")

// A socket is an upgraded connection. Towards the proxy it is the upstream's
// end of it.
type socket struct {
	f       *flight
	backend io.ReadWriteCloser
	up      frames
	down    frames
	masked  *maskedFrames // what comes down, where something was injected

	mu             sync.Mutex
	over           bool
	sent, received int64
	delivered      int64
	scratch        []byte
}

func newSocket(f *flight, backend io.ReadWriteCloser, extended bool) *socket {
	s := &socket{f: f, backend: backend}
	p := f.plan
	s.up = frames{masked: true, extended: extended}
	if p.Sent != nil {
		s.up.piece = func(i frame, b []byte, end bool) error { return tapFrame(p.Sent, i.opcode, i.fin, s.unmask(i, b), end) }
	}
	s.down = frames{extended: extended}
	if p.Needles != nil {
		s.masked = &maskedFrames{s: s}
		s.down.piece = s.masked.piece
	} else if tap := Tee(p.Received, p.Delivered); tap != nil {
		s.down.piece = func(i frame, b []byte, end bool) error { return tapFrame(tap, i.opcode, i.fin, b, end) }
	}
	return s
}

// unmask gives the payload of a frame of the client in clear.
func (s *socket) unmask(i frame, b []byte) []byte {
	s.scratch = append(s.scratch[:0], b...)
	for j := range s.scratch {
		s.scratch[j] ^= i.key[(i.at+uint64(j))&3]
	}
	return s.scratch
}

// Read gives what comes from the upstream.
func (s *socket) Read(p []byte) (int, error) {
	if s.masked != nil {
		n, err := s.masked.read(p)
		s.mu.Lock()
		s.delivered += int64(n)
		s.mu.Unlock()
		return n, err
	}
	n, err := s.backend.Read(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, errOver
	}
	s.received += int64(n)
	s.delivered += int64(n)
	if bad := s.down.scan(p[:n]); bad != nil {
		return 0, s.broke(ErrAnswer.With("The upstream broke the framing of WebSocket.").Because(bad))
	}
	return n, err
}

// Write writes to the upstream.
func (s *socket) Write(p []byte) (int, error) { return s.backend.Write(p) }

// Close closes the upstream's end.
func (s *socket) Close() error { return s.backend.Close() }

// CloseWrite closes the upstream's end for writing.
func (s *socket) CloseWrite() error { return closeWrite(s.backend) }

func closeWrite(c any) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// broke ends both directions for a reason.
func (s *socket) broke(err error) error {
	s.f.broke(err)
	return err
}

// count ends the watch, so that no tap is called any more, and tells how much
// went by.
func (s *socket) count(out *Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	out.Sent, out.Received, out.Delivered = s.sent, s.received, s.delivered
}

// A userConn is the client's end of an upgraded connection.
type userConn struct {
	net.Conn
	s *socket
}

// Read gives what comes from the client.
func (c *userConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, errOver
	}
	s.sent += int64(n)
	if bad := s.up.scan(p[:n]); bad != nil {
		return 0, s.broke(edge.ErrMalformed.With("The client broke the framing of WebSocket.").Because(bad))
	}
	return n, err
}

// Write writes to the client, who must go on reading.
func (c *userConn) Write(p []byte) (int, error) {
	c.Conn.SetWriteDeadline(time.Now().Add(c.s.f.stall))
	return c.Conn.Write(p)
}

// CloseWrite closes the client's end for writing.
func (c *userConn) CloseWrite() error { return closeWrite(c.Conn) }

// A frame is what the head of a frame says: RFC 6455, section 5.2.
type frame struct {
	opcode byte
	fin    bool
	key    [4]byte
	at     uint64 // the place in the payload of what comes next
	size   uint64
}

// Frames follow the frames of one direction.
type frames struct {
	masked   bool // they come from a client
	extended bool // an extension may use the reserved bits
	// piece is called for each piece of a payload, at least once a frame; end
	// says that it is the last. The bytes are those of the scan.
	piece func(i frame, b []byte, end bool) error

	head    [14]byte
	have    int
	current frame
	inside  bool // a payload is under way
	message bool // a message of several frames is under way
}

var (
	errReserved = errors.New("a frame uses reserved bits or opcodes")
	errMask     = errors.New("a frame is masked and should not be, or the reverse")
	errControl  = errors.New("a control frame is long or in parts")
	errSequence = errors.New("a frame continues no message, or begins one inside another")
	errLength   = errors.New("the length of a frame is not written as it should be")
)

// scan looks at the next bytes.
func (s *frames) scan(b []byte) error {
	for len(b) > 0 || s.inside && s.current.size == s.current.at {
		if !s.inside {
			n, done, err := s.header(b)
			if err != nil {
				return err
			}
			b = b[n:]
			if !done {
				return nil
			}
			s.inside = true
		}
		i := s.current
		n := min(uint64(len(b)), i.size-i.at)
		end := i.at+n == i.size
		if s.piece != nil && (n > 0 || end) {
			if err := s.piece(i, b[:n], end); err != nil {
				return err
			}
		}
		b = b[n:]
		s.current.at += n
		if end {
			s.inside, s.have = false, 0
		} else if len(b) == 0 {
			return nil
		}
	}
	return nil
}

// header collects the head of a frame and reports how many bytes it took and
// whether it is complete.
func (s *frames) header(b []byte) (taken int, done bool, err error) {
	for {
		need := 2
		if s.have >= 2 {
			switch s.head[1] & 0x7F {
			case 126:
				need += 2
			case 127:
				need += 8
			}
			if s.head[1]&0x80 != 0 {
				need += 4
			}
		}
		if s.have >= 2 && s.have == need {
			return taken, true, s.begin()
		}
		n := copy(s.head[s.have:need], b[taken:])
		s.have += n
		taken += n
		if s.have < need {
			return taken, false, nil
		}
	}
}

// begin reads the head of a frame.
func (s *frames) begin() error {
	h := s.head[:s.have]
	i := frame{opcode: h[0] & 0xF, fin: h[0]&0x80 != 0, size: uint64(h[1] & 0x7F)}
	rest := h[2:]
	switch i.size {
	case 126:
		if i.size = uint64(binary.BigEndian.Uint16(rest)); i.size < 126 {
			return errLength
		}
		rest = rest[2:]
	case 127:
		if i.size = binary.BigEndian.Uint64(rest); i.size < 1<<16 || i.size>>63 != 0 {
			return errLength
		}
		rest = rest[8:]
	}
	if (len(rest) == 4) != s.masked {
		return errMask
	}
	copy(i.key[:], rest)
	switch {
	case h[0]&0x70 != 0 && !s.extended, i.opcode > 2 && i.opcode < 8, i.opcode > 10:
		return errReserved
	case i.opcode >= 8 && (i.size > 125 || !i.fin):
		return errControl
	case i.opcode >= 8:
	case (i.opcode == 0) != s.message:
		return errSequence
	default:
		s.message = !i.fin
	}
	s.current = i
	return nil
}

// MaskedFrames masks what was injected in the messages that come from an
// upstream. A message may be in many frames, with control frames between them;
// an occurrence is found wherever the frames part it. Since masking changes no
// length, the frames stay as they are.
type maskedFrames struct {
	s       *socket
	buf     []byte // for reading from the upstream
	raw     []byte // frames that were not given away
	ready   int    // raw[:ready] can be
	data    masking
	control masking
	err     error
}

// A masking is a text that lies in pieces in the raw frames.
type masking struct {
	stream *redact.Stream
	text   []byte // the part that is not settled
	spans  []span // where it lies
}

// A span is a piece of a payload in the raw frames.
type span struct {
	at, n int
	frame frame
	end   bool
}

// maxHeld is how much may be held beyond the longest needle.
const maxHeld = 256 << 10

// read gives what is settled.
func (m *maskedFrames) read(p []byte) (int, error) {
	for m.ready == 0 {
		if m.err != nil {
			return 0, m.err
		}
		m.fill()
	}
	n := copy(p, m.raw[:m.ready])
	m.raw = m.raw[:copy(m.raw, m.raw[n:])]
	m.ready -= n
	m.data.move(n)
	m.control.move(n)
	return n, nil
}

// fill reads once.
func (m *maskedFrames) fill() {
	s := m.s
	if m.buf == nil {
		m.buf = make([]byte, bufferSize)
	}
	n, err := s.backend.Read(m.buf)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		m.err = errOver
		return
	}
	s.received += int64(n)
	m.err = err
	before := len(m.raw)
	m.raw = append(m.raw, m.buf[:n]...)
	bad := s.down.scan(m.raw[before:])
	if bad == nil {
		bad = m.settle(&m.data, err != nil)
	}
	if bad != nil {
		m.raw, m.data, m.control = nil, masking{}, masking{}
		m.err = s.broke(ErrAnswer.With("The upstream broke the framing of WebSocket.").Because(bad))
		return
	}
	m.ready = len(m.raw)
	for _, k := range []*masking{&m.data, &m.control} {
		if len(k.spans) > 0 {
			m.ready = min(m.ready, k.spans[0].at)
		}
	}
	if len(m.raw)-m.ready > maxHeld+s.f.plan.Needles.Longest() {
		m.err = s.broke(ErrAnswer.With("The upstream put too much between the parts of a message."))
	}
}

// piece takes a piece of a payload, which lies in the raw frames.
func (m *maskedFrames) piece(i frame, b []byte, end bool) error {
	s := m.s
	if tap := s.f.plan.Received; tap != nil {
		if err := tapFrame(tap, i.opcode, i.fin, b, end); err != nil {
			return s.broke(err)
		}
	}
	k := &m.data
	if i.opcode >= 8 {
		k = &m.control
	}
	if k.stream == nil {
		k.stream = s.f.plan.Needles.Stream(s.f.echo)
	}
	// The bytes are a part of the raw frames, so that what lies behind them tells
	// where they are.
	k.spans = append(k.spans, span{cap(m.raw) - cap(b), len(b), i, end})
	k.text = append(k.text, b...)
	if end && i.fin {
		return m.settle(k, true)
	}
	return nil
}

// settle masks what can be settled of a text and puts it back into the frames.
func (m *maskedFrames) settle(k *masking, last bool) error {
	if k.stream == nil {
		return nil
	}
	n := k.stream.Settle(k.text, last)
	text := k.text[:n]
	tap := m.s.f.plan.Delivered
	for len(k.spans) > 0 && (len(text) > 0 || k.spans[0].n == 0) {
		sp := &k.spans[0]
		part := min(sp.n, len(text))
		copy(m.raw[sp.at:], text[:part])
		whole := part == sp.n
		if tap != nil {
			if err := tapFrame(tap, sp.frame.opcode, sp.frame.fin, text[:part], whole && sp.end); err != nil {
				return m.s.broke(err)
			}
		}
		text = text[part:]
		if !whole {
			sp.at += part
			sp.n -= part
			break
		}
		k.spans = k.spans[1:]
	}
	k.text = k.text[:copy(k.text, k.text[n:])]
	if last {
		k.stream, k.spans = nil, nil
	}
	return nil
}

// move follows the raw frames when n bytes of them were given away.
func (k *masking) move(n int) {
	for i := range k.spans {
		k.spans[i].at -= n
	}
}
