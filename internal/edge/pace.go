package edge

import (
	"cmp"
	"io"
	"net/http"
	"time"
)

// A Pace stands before handlers that need a whole request. A client that sends
// it too slowly, or does not take the answer, costs a connection and memory for
// as long as it likes: here it is cut. An answer may be a stream, as long as it
// is taken.
//
// Deadlines stay on a connection of HTTP/1.1 for the next request. A handler of
// the same server that is not paced calls [Unpaced] first.
type Pace struct {
	// Body is how long the body of a request may take, from its first byte to
	// its last: a minute if it is zero.
	Body time.Duration
	// Piece is how long 64 KiB of an answer may take: half a minute if it is
	// zero.
	Piece time.Duration
}

const (
	pieceSize = 64 << 10 // what is written under one deadline
	held      = 2 << 10  // what a server keeps of an answer before it writes
)

// Handler puts the pace before a handler.
func (p Pace) Handler(next http.Handler) http.Handler {
	body, piece := cmp.Or(p.Body, time.Minute), cmp.Or(p.Piece, 30*time.Second)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &paced{ResponseWriter: w, control: http.NewResponseController(w), piece: piece}
		if r.Body != nil && r.Body != http.NoBody {
			_ = p.control.SetReadDeadline(time.Now().Add(body))
			r.Body = &pacedBody{r.Body, p.control}
		}
		if r.ProtoMajor == 1 {
			_ = p.control.SetWriteDeadline(time.Time{}) // of the request before
		}
		defer p.extend() // what is still in a buffer is written after this
		next.ServeHTTP(p, r)
	})
}

// Unpaced takes back what a [Pace] has set for an earlier request on the same
// connection.
func Unpaced(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
}

// A pacedBody is the body of a request. Once it was read the deadline is over:
// the server goes on reading, to see whether the client leaves, and would take
// a deadline for that.
type pacedBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// A paced writer gives the client time for each piece of an answer.
type paced struct {
	http.ResponseWriter
	control *http.ResponseController
	piece   time.Duration
	written int
}

// extend gives time for another piece. A writer that knows no deadlines is one
// of a test.
func (p *paced) extend() { _ = p.control.SetWriteDeadline(time.Now().Add(p.piece)) }

// Write writes a part of the body, a piece at a time. Between the pieces there
// is no deadline: HTTP/2 ends a stream when one is over, whether or not
// anything is being written.
func (p *paced) Write(b []byte) (n int, err error) {
	if p.written += len(b); p.written <= held {
		return p.ResponseWriter.Write(b)
	}
	for {
		piece := b[n:min(len(b), n+pieceSize)]
		p.extend()
		m, err := p.ResponseWriter.Write(piece)
		_ = p.control.SetWriteDeadline(time.Time{})
		if n += m; err != nil || n == len(b) {
			return n, err
		}
	}
}

// Unwrap gives the server's own writer, for flushes and deadlines.
func (p *paced) Unwrap() http.ResponseWriter { return p.ResponseWriter }
