package edge

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/http"
	"strings"

	"estover.dev"
)

// ErrMalformed ends a connection whose bytes are not HTTP/1.1 to the letter.
var ErrMalformed = &estover.Error{Kind: estover.Invalid, Code: "request_malformed", Detail: "The request is not plain HTTP/1.1."}

// A StrictConn is a server's connection whose requests are held to the letter
// of RFC 9112 before net/http reads them, which is lenient where others are
// lenient in other ways. It follows every request to its end, so that it knows
// where the next one begins, and lets no byte pass that it does not understand:
// the read fails, and net/http answers 400 and closes.
//
// Refused are: a line that does not end with CR LF, an empty line before a
// request, a continued header line, a space before the colon, a name that is
// not a token, a value with control characters; Content-Length that is
// repeated, not a plain number, or beside Transfer-Encoding; any
// Transfer-Encoding but "chunked", or any in HTTP/1.0; another spelling of
// these two names; extensions of chunks and framing headers in trailers
// (gateway.md, C4 and P5).
type StrictConn struct {
	net.Conn
	s scanner
}

// Strict watches a connection.
func Strict(c net.Conn) *StrictConn { return &StrictConn{Conn: c} }

// Read passes on what is well-formed.
func (c *StrictConn) Read(p []byte) (int, error) {
	if c.s.err != nil {
		return 0, c.s.err
	}
	n, err := c.Conn.Read(p)
	if good := c.s.scan(p[:n]); good < n {
		if good > 0 {
			return good, nil
		}
		return 0, c.s.err
	}
	return n, err
}

// Opaque ends the watch: what follows is not HTTP. It must be called where a
// request is answered with another protocol, after the connection was hijacked.
// There is an error if the client did not wait for that answer.
func (c *StrictConn) Opaque() error {
	c.s.state = opaque
	return c.s.err
}

type strictKey struct{}

// Arrived reports whether all of the body of a request is here already, so that
// to read it waits for nobody. It is asked before anything of it is read, and
// knows it of HTTP/1.1 alone.
func Arrived(r *http.Request) bool {
	c, _ := r.Context().Value(strictKey{}).(*StrictConn)
	return c != nil && r.ProtoMajor == 1 && c.s.idle()
}

// NetConn is the connection that is watched.
func (c *StrictConn) NetConn() net.Conn { return c.Conn }

// CloseWrite closes the writing side, if the connection can.
func (c *StrictConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// A StrictTLSConn is a [StrictConn] over TLS. net/http takes the state of the
// connection from it.
type StrictTLSConn struct{ *StrictConn }

// NetConn is what watches the connection, and not the connection itself: that is
// the next one down.
func (c StrictTLSConn) NetConn() net.Conn { return c.StrictConn }

// ConnectionState is the state of the connection.
func (c StrictTLSConn) ConnectionState() tls.ConnectionState {
	return c.Conn.(*tls.Conn).ConnectionState()
}

// The states of a scanner: where in a request the next byte is.
const (
	requestLine = iota
	headerName
	headerValue
	chunkSize
	chunkData
	chunkEnd // the line end after a chunk
	trailerName
	trailerValue
	body
	opaque
)

// A scanner follows the requests of a connection.
type scanner struct {
	state int
	err   error
	cr    bool // the last byte was a CR that ends a line

	line  []byte // the request line, the size of a chunk, or the name of a header, as far as they are needed
	value []byte // the value of a framing header
	kind  framing

	old     bool  // HTTP/1.0
	chunked bool  // Transfer-Encoding: chunked
	sized   bool  // Content-Length
	remains int64 // of the body or the chunk
}

// framing says what a header line means for the length of the body.
type framing int

const (
	otherHeader framing = iota
	contentLength
	transferEncoding
)

var framingNames = [...]string{contentLength: "content-length", transferEncoding: "transfer-encoding"}

// Bounds of single lines. The whole head is bounded by the server.
const (
	maxRequestLine = 32 << 10
	maxName        = 256
)

// scan looks at the bytes and returns how many are good. If that is not all,
// err is set.
func (s *scanner) scan(p []byte) int {
	for i := 0; i < len(p); {
		switch s.state {
		case opaque:
			return len(p)
		case body, chunkData:
			n := min(int64(len(p)-i), s.remains)
			i += int(n)
			if s.remains -= n; s.remains == 0 {
				if s.state == body {
					s.begin()
				} else {
					s.state = chunkEnd
				}
			}
			continue
		case headerValue, trailerValue:
			// Most bytes are in values of headers that mean nothing here.
			if s.kind == otherHeader && !s.cr {
				for i < len(p) && visible[p[i]] {
					i++
				}
				if i == len(p) {
					return i
				}
			}
		case requestLine, headerName:
			if !s.cr {
				set, limit := &token, maxName
				if s.state == requestLine {
					set, limit = &printable, maxRequestLine
				}
				from := i
				for i < len(p) && set[p[i]] && len(s.line)+i-from < limit {
					i++
				}
				s.line = append(s.line, p[from:i]...)
				if i == len(p) {
					return i
				}
			}
		}
		if !s.step(p[i]) {
			if s.err == nil {
				s.err = ErrMalformed
			}
			return i
		}
		i++
	}
	return len(p)
}

// visible are the bytes of a header's value: RFC 9110, section 5.5.
var visible = func() (set [256]bool) {
	for c := range set {
		set[c] = c == '\t' || c >= ' ' && c != 0x7F
	}
	return set
}()

// printable are the bytes of a request line.
var printable = func() (set [256]bool) {
	for c := range set {
		set[c] = c >= ' ' && c < 0x7F
	}
	return set
}()

// token are the bytes of a header's name: RFC 9110, section 5.6.2.
var token = func() (set [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		set[c] = true
	}
	return set
}()

// idle reports whether all requests that have begun have ended.
func (s *scanner) idle() bool {
	return s.state == requestLine && len(s.line) == 0 && !s.cr && s.err == nil
}

// begin waits for a request.
func (s *scanner) begin() {
	*s = scanner{line: s.line[:0], value: s.value[:0]}
}

// refuse notes why.
func (s *scanner) refuse(why string) bool {
	s.err = ErrMalformed.With("The request is not plain HTTP/1.1: %s.", why)
	return false
}

// step takes one byte and reports whether it is good.
func (s *scanner) step(c byte) bool {
	if s.cr {
		s.cr = false
		if c != '\n' {
			return s.refuse("a CR stands alone")
		}
		return s.endLine()
	}
	if c == '\n' {
		return s.refuse("an LF stands alone")
	}
	if c == '\r' {
		s.cr = true
		return true
	}
	switch s.state {
	case requestLine:
		if printable[c] {
			return s.refuse("the request line is too long")
		}
		return s.refuse("the request line is not ASCII")
	case headerName, trailerName:
		if c == ':' && len(s.line) > 0 {
			return s.endName()
		}
		if !token[c] {
			if c == ' ' || c == '\t' {
				return s.refuse("a header line is continued, or has a space before its colon")
			}
			return s.refuse("a header's name is not a token")
		}
		if len(s.line) >= maxName {
			return s.refuse("a header's name is too long")
		}
		s.line = append(s.line, c)
	case headerValue, trailerValue:
		if !visible[c] {
			return s.refuse("a header's value has a control character")
		}
		if s.kind != otherHeader {
			if s.value = append(s.value, c); len(s.value) > 32 {
				return s.refuse("a framing header is too long")
			}
		}
	case chunkSize:
		if !isHex(c) || len(s.line) >= 15 {
			return s.refuse("the size of a chunk is not a plain number")
		}
		s.line = append(s.line, c)
	case chunkEnd:
		return s.refuse("a chunk is longer than it says")
	}
	return true
}

// endName takes the name of a header.
func (s *scanner) endName() bool {
	s.kind = otherHeader
	for kind, name := range framingNames {
		if len(name) == len(s.line) && name == string(fold(s.value[:0], string(s.line))) {
			s.kind = framing(kind)
			if !bytes.EqualFold(s.line, []byte(name)) {
				return s.refuse(name + " is misspelt")
			}
		}
	}
	if s.state == trailerName {
		if s.kind != otherHeader {
			return s.refuse("a trailer changes the framing")
		}
		s.state = trailerValue
	} else {
		s.state = headerValue
	}
	s.line, s.value = s.line[:0], s.value[:0]
	return true
}

// endLine takes the line that ended with CR LF.
func (s *scanner) endLine() bool {
	switch s.state {
	case requestLine:
		if !s.request() {
			return false
		}
		s.state = headerName
		s.line = s.line[:0]
	case headerName:
		if len(s.line) > 0 {
			return s.refuse("a header line has no colon")
		}
		s.endHead()
	case headerValue:
		s.state = headerName
		return s.frame()
	case chunkSize:
		if len(s.line) == 0 {
			return s.refuse("a chunk has no size")
		}
		s.remains = 0
		for _, c := range s.line {
			s.remains = s.remains<<4 | int64(digit(c))
		}
		s.line = s.line[:0]
		s.state = chunkData
		if s.remains == 0 {
			s.state = trailerName
		}
	case chunkEnd:
		s.state = chunkSize
	case trailerName:
		if len(s.line) > 0 {
			return s.refuse("a trailer line has no colon")
		}
		s.begin()
	case trailerValue:
		s.state = trailerName
	}
	return true
}

// request reads a request line: RFC 9112, section 3.
func (s *scanner) request() bool {
	method, rest, _ := bytes.Cut(s.line, []byte(" "))
	target, version, _ := bytes.Cut(rest, []byte(" "))
	for _, c := range method {
		if !token[c] {
			return s.refuse("the method is not a token")
		}
	}
	s.old = string(version) == "HTTP/1.0"
	if len(method) == 0 || len(target) == 0 || string(version) != "HTTP/1.1" && !s.old {
		return s.refuse("the request line is not a method, a target and HTTP/1.1")
	}
	return true
}

// frame takes a header line that says how long the body is: RFC 9112, section
// 6.
func (s *scanner) frame() bool {
	value := strings.Trim(string(s.value), " \t")
	switch s.kind {
	case contentLength:
		if s.sized || s.chunked {
			return s.refuse("the length of the body is given twice")
		}
		if value == "" || len(value) > 18 || strings.Trim(value, "0123456789") != "" {
			return s.refuse("Content-Length is not a plain number")
		}
		s.sized = true
		for _, c := range []byte(value) {
			s.remains = s.remains*10 + int64(c-'0')
		}
	case transferEncoding:
		if s.sized || s.chunked {
			return s.refuse("the length of the body is given twice")
		}
		if !strings.EqualFold(value, "chunked") || s.old {
			return s.refuse("Transfer-Encoding is not chunked")
		}
		s.chunked = true
	}
	return true
}

// endHead decides what follows the head.
func (s *scanner) endHead() {
	switch {
	case s.chunked:
		s.state = chunkSize
	case s.remains > 0:
		s.state = body
	default:
		s.begin()
	}
}

func digit(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}
