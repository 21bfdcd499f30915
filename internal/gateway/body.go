package gateway

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev/internal/edge"
	"estover.dev/internal/redact"
)

// A sending body is that of a request on its way to the upstream. The transport
// reads it, in a goroutine that may go on after the answer was delivered.
type sending struct {
	f       *flight
	from    io.Reader
	scan    *redact.Reader // looks for placeholders
	shown   []byte         // what the tap is still to see of a body that was read before
	tripped bool
	in, out *http.Request
	since   atomic.Int64 // when the read from the client began that goes on
	ending  atomic.Bool  // what a read gives is not wanted, nor why it fails

	mu    sync.Mutex // held during a read
	n     int64
	ended bool // the end was read
	over  bool // nobody is interested any more
	here  bool // it was read to its end before anything is sent, and may go by a line
}

var errOver = errors.New("the exchange is over")

// Read gives a piece of the body, once it is within the limit, without a
// placeholder and with the tap.
func (s *sending) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
		return 0, errOver
	case s.ended:
		// The transport asks once more, and by then the server may have closed the
		// body.
		return 0, io.EOF
	}
	from := s.from
	if s.scan != nil {
		from = s.scan
	}
	s.since.Store(time.Now().UnixNano())
	n, err := 0, s.f.ctx.Err()
	if err == nil {
		n, err = from.Read(p)
	}
	s.since.Store(0)
	if s.ending.Load() {
		s.ended = err == io.EOF
		return 0, errOver
	}

	if failed := s.pass(p[:n], err == io.EOF); failed != nil {
		return 0, s.broke(failed)
	}
	switch {
	case err == nil, err == io.EOF:
	case errors.Is(err, edge.ErrMalformed):
		return 0, s.broke(err)
	default:
		return 0, s.broke(&gone{err})
	}
	return n, err
}

// pass counts a piece of the body and shows it to the tap, if it may be sent.
func (s *sending) pass(piece []byte, last bool) error {
	f := s.f
	s.n += int64(len(piece))
	switch limit := f.plan.Limits.Request; {
	case s.tripped:
		f.steps.Violate(f.ex, ErrTripwire)
		return ErrTripwire
	case limit > 0 && s.n > limit:
		return ErrTooLarge.With("The body has more than the %d bytes that the rule for this action allows.", limit)
	}
	if f.plan.Sent != nil && len(piece) > 0 {
		if f.text != nil { // what is recorded is not what is sent: it has labels in the place of secrets
			piece, s.shown = s.shown, nil
		}
		if len(piece) > 0 {
			if err := f.plan.Sent.Body(piece); err != nil {
				return err
			}
		}
	}
	if !last {
		return nil
	}
	s.ended = true
	return s.end()
}

// read is a body that was read for a decision: nothing of it is copied, and it is
// not looked through twice. What goes wrong is noted, as by whole.
func (s *sending) read(before *buffered) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := before.text
	s.here = len(text) <= s.f.atOnce()
	s.tripped = before.without != s.f.plan.Tripwire && s.f.plan.Tripwire.Finds(text)
	if err := s.pass(text, true); err != nil {
		_ = s.broke(err)
	}
	return text
}

// short is the length up to which a body that is here already is read before its
// request is sent, so that both go out with one write: to do so costs less than
// the second write, and what is wrong with the body is found before anything is
// sent.
const short = 16 << 10

// whole is a body of n bytes, read to its end. What goes wrong is noted, and
// ends the request before it is sent ([flight.attempt]).
func (s *sending) whole(n int64) []byte {
	b := make([]byte, 0, n+1)
	for {
		m, err := s.Read(b[len(b):cap(b)])
		if b = b[:len(b)+m]; err != nil || len(b) == cap(b) {
			s.here = len(b) <= s.f.atOnce()
			return b
		}
	}
}

// broke notes why the body ends too early. The transport then breaks off the
// request, so that the upstream does not take it for the whole (gateway.md,
// P26).
func (s *sending) broke(err error) error {
	s.f.broke(err)
	s.over = true
	return err
}

// end takes the trailers that were announced.
func (s *sending) end() error {
	for name := range s.out.Trailer {
		s.out.Trailer[name] = s.in.Trailer[name]
	}
	if s.f.plan.Sent == nil || len(s.out.Trailer) == 0 {
		return nil
	}
	return tapTail(s.f.plan.Sent, s.out.Trailer)
}

// Close leaves the client's body to the server: closing it would read it.
func (s *sending) Close() error { return nil }

// patience is how long the rest of a body that nobody wants may take to come,
// and maxDiscard how large it may be, for the connection to be used again.
const (
	patience   = 100 * time.Millisecond
	maxDiscard = 256 << 10
)

// finish ends the body and tells how much there was of it.
//
// Where an answer may begin before the body has ended, net/http leaves what is
// left of the body to the handler: it must not be read any more when the request
// is over, and unless it was read to its end, the connection must not be used
// again, since the rest would be taken for a request.
func (s *sending) finish() int64 {
	if s.f == nil {
		return 0 // there was none
	}
	s.ending.Store(true)
	if free := s.mu.TryLock(); !free || !s.ended {
		defer s.f.hurry()()
		if !free {
			s.mu.Lock()
		}
	}
	defer s.mu.Unlock()
	s.over = true
	if !s.ended && s.in.ProtoMajor == 1 && !s.f.out.abort && !s.discard() {
		closeAfter(s.f.w)
	}
	if s.scan != nil {
		_ = s.scan.Close() // gives its memory back
	}
	return s.n
}

// hurry ends reads from the client when patience does. The function that comes
// back calls it off: the deadline must not fall into the next request.
func (f *flight) hurry() (calm func()) {
	called := false
	give := time.AfterFunc(patience, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !called {
			_ = f.control.SetReadDeadline(time.Unix(1, 0))
		}
	})
	return func() {
		give.Stop()
		f.mu.Lock()
		defer f.mu.Unlock()
		called = true
	}
}

// discard reads what is left of the body, and reports whether that was all of
// it. It does not begin if it cannot be: the rest is too large, or the client
// waits to be told to send it.
func (s *sending) discard() bool {
	if s.in.ContentLength-s.n > maxDiscard || s.in.Header.Get("Expect") != "" {
		return false
	}
	_, err := io.CopyN(io.Discard, s.from, maxDiscard)
	return err == io.EOF
}

// closeAfter makes the server close the connection once the answer is
// delivered, also if its head was written. That is what a server does where a
// body was larger than a handler would have it.
func closeAfter(w http.ResponseWriter) {
	for {
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = u.Unwrap()
	}
	_, _ = http.MaxBytesReader(w, io.NopCloser(strings.NewReader("xx")), 1).Read(make([]byte, 2))
}

// A receiving body is that of an answer on its way to the agent.
type receiving struct {
	f        *flight
	res      *http.Response
	body     io.ReadCloser // the upstream's
	from     io.Reader     // the same decoded and masked
	closers  []io.Closer
	received int64 // bytes from the upstream
	n        int64 // bytes decoded
	ended    bool
}

// take begins with what comes from the upstream.
func (d *receiving) take(f *flight, res *http.Response) {
	d.f, d.res, d.body = f, res, res.Body
	d.from = (*received)(d)
}

// body puts the ways of an answer's body together: count and tap what came,
// decode it, keep tokens back, mask what was injected.
func (f *flight) body(res *http.Response) error {
	d := &f.down
	d.take(f, res)
	p := f.plan
	if limit := p.Limits.Answer; limit > 0 && res.ContentLength > limit {
		return ErrAnswerLarge.With("The answer has %d bytes; the rule for this action allows %d.", res.ContentLength, limit)
	}
	keeps := p.Tokens != nil && res.StatusCode < 300 && (!p.TokenGuess || f.guesses(res))
	if (f.scrubs() || keeps) && encoded(res) {
		decoded, err := decode(res.Header.Get("Content-Encoding"), d.from)
		if err != nil {
			return err
		}
		d.closers = append(d.closers, decoded)
		d.from = decoded
		res.Header.Del("Content-Encoding")
		res.Header.Del("Content-Length")
		res.ContentLength = -1
	}
	if keeps {
		keep := f.keepTokens
		if p.TokenGuess {
			keep = f.guessTokens
		}
		if err := keep(res); err != nil {
			return err
		}
	}
	switch {
	case p.Needles == nil:
	case f.all && !keeps && len(d.closers) == 0:
		d.from = &masked{d.from, p.Needles, f.echo}
	default:
		masked := p.Needles.Reader(d.from, f.echo)
		d.closers = append(d.closers, masked)
		d.from = masked
	}
	res.Body = d
	return nil
}

// A masked body is here whole, and shorter than the buffer into which it is read: it is
// masked there, all at once.
type masked struct {
	from    io.Reader
	needles *redact.Matcher
	echo    func(name string)
}

// Read reads all of the body.
func (m *masked) Read(p []byte) (n int, err error) {
	for err == nil {
		if n == len(p) {
			return 0, io.ErrShortBuffer
		}
		var more int
		more, err = m.from.Read(p[n:])
		n += more
	}
	m.needles.Mask(p[:n], m.echo)
	return n, err
}

// encoded reports whether the body of an answer is compressed.
func encoded(res *http.Response) bool {
	e := res.Header["Content-Encoding"]
	return len(e) > 1 || len(e) == 1 && e[0] != "" && !strings.EqualFold(e[0], "identity")
}

// received is the body as it comes from the upstream.
type received receiving

// Read counts and taps.
func (r *received) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.received += int64(n)
	if tap := r.f.plan.Received; tap != nil && n > 0 {
		if err := tap.Body(p[:n]); err != nil {
			return 0, err
		}
	}
	return n, err
}

// Read gives a piece of the body as the agent gets it.
func (d *receiving) Read(p []byte) (int, error) {
	n, err := d.from.Read(p)
	d.n += int64(n)
	limits := &d.f.plan.Limits
	if limits.Answer > 0 && d.n > limits.Answer {
		return 0, d.broke(ErrAnswerLarge.With("The answer has more than the %d bytes that the rule for this action allows.", limits.Answer))
	}
	if len(d.closers) > 0 && d.n > 1<<20 {
		ratio := limits.Ratio
		if ratio == 0 {
			ratio = 100
		}
		if (d.n-1<<20)/ratio > d.received {
			return 0, d.broke(ErrAnswerLarge.With("The answer decodes to more than %d times its size.", ratio))
		}
	}
	if tap := d.f.plan.Delivered; tap != nil && n > 0 {
		if err := tap.Body(p[:n]); err != nil {
			return 0, d.broke(err)
		}
	}
	switch {
	case err == io.EOF:
		d.ended = true
		if err := d.end(); err != nil {
			return 0, d.broke(err)
		}
	case err != nil:
		return n, d.broke(d.f.upstreamError(err))
	}
	return n, err
}

// broke notes why the body ends too early.
func (d *receiving) broke(err error) error {
	d.f.broke(err)
	return err
}

// end cleans the trailers.
func (d *receiving) end() error {
	t := d.res.Trailer
	if len(t) == 0 {
		return nil
	}
	p := d.f.plan
	if p.Received != nil {
		if err := tapTail(p.Received, t); err != nil {
			return err
		}
	}
	edge.StripAnswer(t, p.Cookies)
	for name := range t {
		if !trailable(name) {
			delete(t, name)
		}
	}
	d.f.mask(t)
	if p.Delivered != nil {
		return tapTail(p.Delivered, t)
	}
	return nil
}

// Close closes the upstream's body, and what was put over it.
func (d *receiving) Close() error {
	err := d.body.Close()
	d.finish()
	return err
}

// finish gives memory back.
func (d *receiving) finish() {
	for _, c := range d.closers {
		c.Close()
	}
	d.closers = nil
}
