package gateway

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// A line is a connection to an upstream that speaks HTTP/1.1, for requests that
// are here whole. Where nothing is left to be sent while an answer comes, nobody
// else need be asked to write or read: the exchange does both by itself. net/http
// has two goroutines for each connection, to which request and answer are handed
// over; that was an eighth of what a short call cost, and most of the memory of an
// open stream.
//
// Answers are read by net/http all the same ([http.ReadResponse]), and requests written
// by it ([http.Request.Write]) unless they are plain ([flight.whole]). What is left is when a connection may be used again: when
// the answer was read to its end, by both sides' leave, and nothing came that
// nobody asked for, not then and not until the next request goes out.
//
// All else goes by the pool's [http.Transport]: bodies that are still to come,
// upgrades, expectations, HTTP/2, and an upstream behind TLS until it has answered
// in HTTP/1.1.
type line struct {
	conn    net.Conn
	address string
	tls     *tls.ConnectionState // nil without TLS
	look    *look                // at the connection beneath that
	in      *bufio.Reader
	rest    chan error // tells when the rest of a request has been written that the upstream did not take at once; nil if there is none
	left    int64      // what may still come; bounds heads
	idle    time.Time

	mu    sync.Mutex
	heard bool // the head of the answer is here, and nothing waits for it any more
}

// lines are those of a pool that nobody uses at the moment, the latest last.
type lines struct {
	mu     sync.Mutex
	free   []*line
	sweep  *time.Timer // closes those that are not used
	closed bool
}

var (
	errHeadTooLarge = fmt.Errorf("the head of the answer has more than %d bytes", maxAnswerHead)
	errUnasked      = errors.New("the upstream goes over to another protocol, for which nobody asked")
	errTwo          = errors.New("the upstream speaks HTTP/2")
)

// longest is the length up to which a body may go by a line. TLS, which cannot be told
// to stop waiting in the middle, takes no longer ones than everybody's buffers do.
const longest = 64 << 10

// atOnce is how long a body may be to go out in one piece.
func (f *flight) atOnce() int {
	if f.plan.Upstream.Scheme == "https" {
		return short
	}
	return longest
}

// unbounded is what may come of a body: the flight counts it.
const unbounded = 1 << 62

// alone reports whether a request may go by a line.
func (f *flight) alone(r *http.Request) bool {
	return canLook && f.pool.alone.Load() && (r.Body == nil || r.Body == http.NoBody || f.up.here) && r.Header["Upgrade"] == nil && r.Header["Expect"] == nil && len(r.Trailer) == 0
}

// exchange sends a request by a line, and reads the head of its answer.
func (f *flight) exchange(r *http.Request) (res *http.Response, err error) {
	if err := f.attempt(); err != nil {
		return nil, err
	}
	if err := askable(r.Method); err != nil {
		return nil, err
	}
	for _, h := range []http.Header{r.Header, r.Trailer} {
		for name, values := range h {
			if err := sendable(name, values); err != nil {
				return nil, err
			}
		}
	}
	text := requests.Get().(*bytes.Buffer)
	text.Reset()
	defer func() {
		clear(text.Bytes()) // there is an injected secret in it
		requests.Put(text)
	}()
	if err := r.Write(text); err != nil {
		return nil, f.ended(err)
	}
	l, err := f.line()
	if err != nil {
		return nil, err
	}
	return f.by(l, text.Bytes(), r)
}

// line is one for a request: that was used before, or a new one. There is none for an
// exchange that was cut meanwhile.
func (f *flight) line() (*line, error) {
	if err := f.ctx.Err(); err != nil {
		return nil, f.ended(err)
	}
	if l := f.pool.take(); l != nil {
		return l, nil
	}
	l, err := f.pool.open(f.ctx, f.plan.Upstream)
	if err != nil {
		return nil, f.ended(err)
	}
	return l, nil
}

// by sends the text of a request by a line, all of it at once, and reads the head
// of its answer.
func (f *flight) by(l *line, text []byte, r *http.Request) (res *http.Response, err error) {
	f.conn, f.out.Address = l.conn, l.address
	b := &lineBody{f: f, line: l}
	// Whoever ends the exchange ends what waits here.
	b.off = context.AfterFunc(f.ctx, func() { l.conn.Close() })
	if res, err = l.exchange(text, r, f.pool.transport.ResponseHeaderTimeout, f.interim); err != nil {
		b.release(false)
		return nil, f.ended(err)
	}
	res.TLS = l.tls
	b.again = !f.pool.old.Load() && !res.Close && res.ProtoAtLeast(1, 1)
	if res.Body == http.NoBody {
		b.release(true)
		return res, nil
	}
	b.body, res.Body = res.Body, b
	return res, nil
}

// askable refuses a method that net/http would not send.
func askable(method string) error {
	if !httpguts.ValidHeaderFieldName(method) { // which is a token, too
		return fmt.Errorf("the method %q cannot be sent", method)
	}
	return nil
}

// sendable refuses a header that net/http would not send.
func sendable(name string, values []string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("the header %q cannot be sent", name)
	}
	if slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
		return fmt.Errorf("the value of the header %q cannot be sent", name) // which may be secret
	}
	return nil
}

// ended gives the cause of the end of the exchange in the place of an error that
// only came of it.
func (f *flight) ended(err error) error {
	if f.ctx.Err() != nil {
		return context.Cause(f.ctx)
	}
	return err
}

var requests = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// interim hands on an answer that comes before the answer, as 103 is.
func (f *flight) interim(code int, header http.Header) {
	h := f.Header()
	add(h, header)
	f.WriteHeader(code)
	clear(h)
}

// exchange sends the text of a request, and reads the head of its answer. What comes
// before the answer goes to interim.
func (l *line) exchange(text []byte, r *http.Request, patience time.Duration, interim func(code int, h http.Header)) (*http.Response, error) {
	l.heard, l.left = false, maxAnswerHead
	if err := l.send(text, patience); err != nil {
		return nil, err
	}
	for {
		res, err := http.ReadResponse(l.in, r)
		switch {
		case err != nil && l.left <= 0:
			return nil, errHeadTooLarge
		case err != nil:
			return nil, err
		case res.StatusCode == http.StatusSwitchingProtocols:
			return nil, errUnasked
		case 100 <= res.StatusCode && res.StatusCode < 200:
			interim(res.StatusCode, res.Header)
			continue
		}
		l.left = unbounded
		l.mu.Lock()
		defer l.mu.Unlock()
		l.heard = true
		if l.here(res) {
			return res, nil // nothing more is waited for, and the next request sets another time
		}
		return res, l.conn.SetReadDeadline(time.Time{})
	}
}

// here reports whether all of an answer has come, so that to read it waits for nobody.
func (l *line) here(res *http.Response) bool {
	return res.Body == http.NoBody || 0 < res.ContentLength && res.ContentLength <= int64(l.in.Buffered())
}

// wait has the head of the answer come within a time, which begins when all of the
// request has been sent.
func (l *line) wait(patience time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.heard {
		return nil
	}
	return l.conn.SetReadDeadline(time.Now().Add(patience))
}

// sendTime is how long a request may wait for its upstream to take it before what is
// left of it goes on beside the answer: there are upstreams that want to be heard
// before they listen.
const sendTime = 100 * time.Millisecond

// send writes a request, of which the answer begins within a time.
func (l *line) send(text []byte, patience time.Duration) error {
	if len(text) <= short || l.tls != nil {
		_, err := l.conn.Write(text)
		return cmp.Or(err, l.wait(patience))
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	n, err := l.conn.Write(text)
	if over := l.conn.SetWriteDeadline(time.Time{}); err == nil || over != nil {
		return cmp.Or(err, over, l.wait(patience))
	}
	l.rest = make(chan error, 1)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		l.rest <- err // who hangs up may have answered before, and that is read
		return l.wait(patience)
	}
	rest := bytes.Clone(text[n:])
	go func() { // which ends with the connection, if not before
		_, err := l.conn.Write(rest)
		clear(rest)
		l.rest <- cmp.Or(err, l.wait(patience))
	}()
	return nil
}

// sent waits for a while until all of the last request is written, and reports whether
// it is.
func (l *line) sent(within time.Duration) bool {
	if l.rest == nil {
		return true
	}
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case err := <-l.rest:
		if err != nil {
			return false
		}
		l.rest = nil
		return true
	case <-late.C:
		return false
	}
}

// Read reads from the connection, as much as may come.
func (l *line) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errHeadTooLarge
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err := l.conn.Read(p)
	l.left -= int64(n)
	return n, err
}

// quiet reports whether nothing has come since the last answer: not its end, and
// nothing else. An answer to which there is no request would be taken for that of
// the next one.
func (l *line) quiet() bool {
	if c, ok := l.conn.(*tls.Conn); ok {
		// It may have something here already, of what came along with the answer.
		if c.SetReadDeadline(time.Unix(1, 0)) != nil {
			return false
		}
		n, err := c.Read(make([]byte, 1))
		var late net.Error
		if n > 0 || !errors.As(err, &late) || !late.Timeout() {
			return false
		}
	}
	return l.in.Buffered() == 0 && l.look.nothing()
}

// take gives a line that may be used, and nil if there is none.
func (p *pool) take() *line {
	for {
		p.lines.mu.Lock()
		n := len(p.lines.free)
		if n == 0 {
			p.lines.mu.Unlock()
			return nil
		}
		l := p.lines.free[n-1]
		p.lines.free[n-1] = nil
		p.lines.free = p.lines.free[:n-1]
		p.lines.mu.Unlock()
		if l.quiet() {
			return l
		}
		l.conn.Close()
	}
}

// give keeps a line for the next request.
func (p *pool) give(l *line) {
	l.idle = time.Now()
	p.lines.mu.Lock()
	defer p.lines.mu.Unlock()
	if p.lines.closed || len(p.lines.free) >= idlePerPool {
		l.conn.Close()
		return
	}
	p.lines.free = append(p.lines.free, l)
	if p.lines.sweep == nil {
		p.lines.sweep = time.AfterFunc(idleConn, p.lines.sweepIdle)
	}
}

// sweepIdle closes what was not used for a while.
func (ls *lines) sweepIdle() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.sweep = nil
	old := slices.IndexFunc(ls.free, func(l *line) bool { return time.Since(l.idle) < idleConn })
	if old < 0 {
		old = len(ls.free)
	}
	for _, l := range ls.free[:old] {
		l.conn.Close()
	}
	if ls.free = slices.Delete(ls.free, 0, old); len(ls.free) > 0 {
		ls.sweep = time.AfterFunc(idleConn-time.Since(ls.free[0].idle), ls.sweepIdle)
	}
}

// close closes what nobody uses; what is under way goes on, and is closed then.
func (ls *lines) close() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.closed = true
	for _, l := range ls.free {
		l.conn.Close()
	}
	ls.free = nil
	if ls.sweep != nil {
		ls.sweep.Stop()
	}
}

// open makes a line.
func (p *pool) open(ctx context.Context, up *Upstream) (*line, error) {
	conn, err := p.dial(ctx, cmp.Or(up.Address, up.Host.String()), up.Opening)
	if err != nil {
		return nil, err
	}
	l := &line{conn: conn, address: conn.RemoteAddr().String(), look: lookAt(conn)}
	l.in = bufio.NewReader(l)
	if up.Scheme == "https" {
		secured, err := up.secure(ctx, conn)
		if err != nil {
			return nil, err
		}
		s := secured.ConnectionState()
		l.conn, l.tls = secured, &s
		if s.NegotiatedProtocol == "h2" {
			conn.Close()
			p.alone.Store(false)
			p.transport.CloseIdleConnections() // which would go on in HTTP/1.1
			return nil, errTwo
		}
	}
	return l, nil
}

// A lineBody is the body of an answer that comes by a line. When it has been read
// to its end the line is free for another exchange.
type lineBody struct {
	f     *flight
	line  *line
	body  io.ReadCloser
	off   func() bool // has the line outlive the exchange
	again bool        // both sides would have it used again
	over  bool
}

// Read reads the body.
func (b *lineBody) Read(p []byte) (int, error) {
	if b.over {
		return 0, io.EOF
	}
	n, err := b.body.Read(p)
	if err != nil {
		b.release(err == io.EOF)
		if err != io.EOF {
			err = b.f.ended(err)
		}
	}
	return n, err
}

// Close ends the line too, unless the body was read to its end: nobody waits for
// the rest.
func (b *lineBody) Close() error {
	b.release(false)
	return nil
}

// release lets go of the line, once. whole says that the answer was read to its end.
func (b *lineBody) release(whole bool) {
	if b.over {
		return
	}
	b.over = true
	alive := b.off() && whole && b.again
	if !alive || b.line.rest == nil {
		b.f.pool.part(b.line, alive)
		return
	}
	// Who answers before having listened may do so now. Nobody waits for that.
	p, l := b.f.pool, b.line
	go func() { p.part(l, l.sent(sendTime)) }()
}

// part keeps a line that may be used again, and closes any other.
func (p *pool) part(l *line, again bool) {
	if again {
		p.give(l)
		return
	}
	l.conn.Close()
}
