package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/redact"
)

// A Forwarder carries requests to upstreams and their answers back. It is a
// [httputil.ReverseProxy] whose hooks find the exchange, a [flight], in the
// context of the request; what is plain goes without it ([flight.whole]).
type Forwarder struct {
	pools pools
	proxy httputil.ReverseProxy
}

// NewForwarder makes a forwarder that reaches upstreams by the dialer.
func NewForwarder(d *edge.Dialer, logger *slog.Logger) *Forwarder {
	f := &Forwarder{pools: pools{dialer: d}}
	f.proxy = httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			if f := flightOf(pr.In); f.res == nil {
				f.rewrite(pr)
			}
		},
		Transport:      (*carrier)(f),
		ModifyResponse: func(res *http.Response) error { return flightOf(res.Request).answer(res) },
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) {
			flightOf(r).fail(err)
		},
		// This is for answers of known length, whose pieces need not go out one by
		// one. All others are flushed at once.
		FlushInterval: 10 * time.Millisecond,
		ErrorLog:      slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		BufferPool:    bufferPool{},
	}
	return f
}

// Dialer is the forwarder's way out.
func (f *Forwarder) Dialer() *edge.Dialer { return f.pools.dialer }

// Drop closes the idle connections of a session to upstreams.
func (f *Forwarder) Drop(tenant estover.TenantID, session string) {
	f.pools.mu.Lock()
	defer f.pools.mu.Unlock()
	f.pools.drop(func(k poolKey, _ *pool) bool { return k.tenant == tenant && k.session == session })
}

// A carrier is the transport of the reverse proxy: it picks the pool.
type carrier Forwarder

// RoundTrip sends the request once.
func (c *carrier) RoundTrip(r *http.Request) (*http.Response, error) {
	f := flightOf(r)
	if f.res != nil {
		return f.res, nil
	}
	f.pool = c.pools.of(f.ex, f.plan)
	// A server that answers an expectation at once may or may not read the body
	// that then comes; whoever is asked next must not hear of it. The transport
	// sends no body if the connection ends (gateway.md, P6).
	r.Close = f.pool.old.Load() || r.Header.Get("Expect") != ""
	if f.alone(r) {
		res, err := f.exchange(r)
		if err != errTwo {
			return res, err
		}
		f.attempts = 0 // nothing was sent
	}
	// The proxy has put a trace of its own into the context. It is this
	// request's alone, and a second one over it would be merged by reflection.
	if t := httptrace.ContextClientTrace(r.Context()); t != nil {
		t.GotConn, t.WroteHeaders = f.gotConn, f.wroteHead
	}
	return f.pool.transport.RoundTrip(r)
}

const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

type bufferPool struct{}

func (bufferPool) Get() []byte  { return buffers.Get().(*[bufferSize]byte)[:] }
func (bufferPool) Put(b []byte) { buffers.Put((*[bufferSize]byte)(b)) }

// A flight is one exchange while the pipeline has it. It stands between the
// reverse proxy and the client as its http.ResponseWriter.
type flight struct {
	forwarder *Forwarder
	steps     Steps
	w         http.ResponseWriter
	ex        *Exchange
	plan      *Plan
	out       Outcome

	entry  entry
	cancel context.CancelCauseFunc
	ctx    context.Context
	client context.Context // of the client's request

	pool     *pool
	attempts int
	conn     net.Conn    // of the last attempt
	told     bool        // the answer is one of ours, and complete
	wrote    atomic.Bool // the head may have reached the upstream

	own []string // the folded names of the headers that are emptied

	text, shown []byte // of the request, as it is sent and as it is recorded, if it was read before; nil if not
	signs       bool   // there is a signature to be made
	aws         awsForm

	up   sending
	down receiving
	ws   *socket

	passed *[]byte        // the body of a request that the tap has seen and the upstream did not get ([flight.ask]); nil if there is none
	res    *http.Response // whose head is here before the proxy asks for it ([flight.whole])
	all    bool           // all of the answer is here

	began time.Time
	stall time.Duration
	since atomic.Int64 // when the write to the client began that goes on
	age   time.Duration

	mu        sync.Mutex
	forwarded bool // deadlines may be set and the connection closed
	over      bool
	control   *http.ResponseController
	hijacked  net.Conn
	watch     *time.Timer
	failure   error // the first
}

type flightKey struct{}

// flightOf finds the exchange of a request.
func flightOf(r *http.Request) *flight { return r.Context().Value(flightKey{}).(*flight) }

// enter puts the exchange into the index, under a context that ends with the
// client's and when the exchange is cut.
func (f *flight) enter(l *Live, r *http.Request) (*http.Request, error) {
	f.client = r.Context()
	f.ctx, f.cancel = context.WithCancelCause(f.client)
	f.entry = entry{ex: f.ex, end: f.end}
	if err := l.enter(&f.entry); err != nil {
		f.cancel(nil)
		return nil, err
	}
	return r.WithContext(context.WithValue(f.ctx, flightKey{}, f)), nil
}

// leave takes it out again.
func (f *flight) leave(l *Live) {
	l.leave(&f.entry)
	f.mu.Lock()
	f.over = true
	if f.watch != nil {
		f.watch.Stop()
	}
	f.mu.Unlock()
	f.cancel(nil)
}

// end cuts the exchange: it ends its context, and whatever waits for the client
// waits no longer. An agent that has nothing of an answer yet is told.
func (f *flight) end(cause error) {
	f.cancel(&cut{cause})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unblock()
}

// unblock ends reads from and writes to the client. The mutex is held.
func (f *flight) unblock() {
	if !f.forwarded || f.over {
		return
	}
	if f.hijacked != nil {
		f.hijacked.Close()
		return
	}
	// Whoever begins to wait after this sees that the context has ended.
	past := time.Unix(1, 0)
	if f.up.since.Load() != 0 {
		f.control.SetReadDeadline(past)
	}
	if f.since.Load() != 0 {
		f.control.SetWriteDeadline(past)
	}
}

// because gives the cause of the end of the context in the place of an error
// that only says that it ended.
func (f *flight) because(err error) error {
	if cause := cutCause(f.ctx); cause != nil {
		return cause
	}
	return err
}

// broke notes the first thing that went wrong.
func (f *flight) broke(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure == nil {
		f.failure = err
	}
}

// broken is the first thing that went wrong.
func (f *flight) broken() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failure
}

// forward carries the request to its upstream and the answer back.
func (f *flight) forward(r *http.Request) {
	p := f.plan
	f.out = Outcome{Begun: f.began}
	f.control = http.NewResponseController(f.w)
	f.stall, f.age = p.Limits.Stall, p.Limits.Age
	if f.stall == 0 {
		f.stall = 30 * time.Second
	}
	if f.age == 0 {
		f.age = 24 * time.Hour
	}
	if err := f.ready(r); err != nil {
		if errors.Is(err, ErrTripwire) {
			f.steps.Violate(f.ex, err)
		}
		f.refuse(err)
		return
	}
	f.mu.Lock()
	f.forwarded = true
	f.watch = time.AfterFunc(min(f.stall/2, f.age), f.check)
	f.mu.Unlock()
	if cause := cutCause(f.ctx); cause != nil {
		f.refuse(cause)
		return
	}
	if r.ContentLength != 0 {
		// An upstream may begin to answer before it has read the whole body, and
		// the server would close it then. See [sending.finish].
		_ = f.control.EnableFullDuplex()
		f.up.f, f.up.from, f.up.in = f, r.Body, r
		f.up.shown = f.shown
	}
	f.carry(r)
	f.settle()
}

// carry carries what is plain, and runs the reverse proxy for all else. It keeps its
// way of saying that the answer broke off, so that the outcome is settled first
// (gateway.md, P4).
func (f *flight) carry(r *http.Request) {
	defer func() {
		switch x := recover(); x {
		case nil:
		case http.ErrAbortHandler:
			f.out.abort = true
			// What was delivered of the answer is sent before the connection ends.
			_ = f.FlushError()
		default:
			panic(x)
		}
	}()
	if !f.whole(r) {
		f.forwarder.proxy.ServeHTTP(f, r)
	}
}

// ready refuses what can be refused before anything is sent.
func (f *flight) ready(r *http.Request) error {
	p := f.plan
	f.own = f.ex.Own
	if p.Jar != nil {
		f.own = append(f.own[:len(f.own):len(f.own)], "cookie")
	}
	for i := range p.Slots {
		if err := p.Slots[i].check(); err != nil {
			return err
		}
		for _, h := range p.Slots[i].headers() {
			f.own = append(f.own[:len(f.own):len(f.own)], edge.Fold(h))
		}
	}
	if p.Limits.Request > 0 && r.ContentLength > p.Limits.Request {
		return ErrTooLarge.With("The body has %d bytes; the rule for this action allows %d.", r.ContentLength, p.Limits.Request)
	}
	if err := f.trip(r); err != nil {
		return err
	}
	return f.sealBody(r)
}

// trip refuses a head with a placeholder in it.
func (f *flight) trip(r *http.Request) error {
	p := f.plan
	if p.Tripwire == nil {
		return nil
	}
	// All of it at once, a line each: no placeholder goes over the end of a line. The
	// slots are emptied, so what stands in them may be one.
	b := heads.Get().(*head)
	defer b.done()
	line := func(text string) {
		b.WriteString(text)
		b.WriteByte('\n')
	}
	line(string(f.ex.Path))
	line(emptyQuery(f.ex.Query, p.Slots))
	for name, values := range r.Header {
		line(name)
		if edge.Among(name, f.own) {
			continue
		}
		for _, v := range values {
			line(v)
		}
	}
	if p.Tripwire.Finds(b.Bytes()) {
		return ErrTripwire
	}
	return nil
}

// rewrite makes the request for the upstream. The proxy has taken out what is
// between the client and us, and what the client's Connection header names, so
// that nothing set here can be taken out by it (gateway.md, P1 and P2).
func (f *flight) rewrite(pr *httputil.ProxyRequest) {
	ex, p, out := f.ex, f.plan, pr.Out
	up := p.Upstream
	out.URL = &url.URL{Scheme: up.Scheme, Host: up.Host.String()}
	ex.Path.Set(out.URL)
	out.Host = up.Host.Authority(up.Scheme)
	out.GetBody = nil

	edge.Strip(out.Header, f.own...)
	if len(p.Slots) > 0 {
		edge.Strip(out.Header, theirs...)
	}
	if f.scrubs() {
		out.Header["Accept-Encoding"] = identity
		delete(out.Header, "Sec-Websocket-Extensions")
	}
	f.trailers(pr)
	query := emptyQuery(ex.Query, p.Slots)
	f.sized(out)
	var signatures *signed
	if f.signs {
		signatures = f.sign(out, query)
	}
	if p.Sent != nil && f.passed == nil {
		shown := fill(out.Header, query, p.Slots, true)
		shown = signatures.show(out.Header, shown, p.Slots)
		err := tapHead(p.Sent, func(b *bytes.Buffer) {
			b.WriteString(out.Method)
			b.WriteByte(' ')
			b.WriteString(string(ex.Path))
			if shown != "" {
				b.WriteByte('?')
				b.WriteString(shown)
			}
			b.WriteString(" HTTP/1.1\r\nHost: ")
			b.WriteString(out.Host)
			b.WriteString("\r\n")
		}, out.Header)
		if err != nil {
			f.broke(err)
		}
	}
	out.URL.RawQuery = signatures.put(out.Header, fill(out.Header, query, p.Slots, false))
	if out.Body != nil {
		f.up.out, out.Body = out, &f.up
		if text, ok := f.taken(pr.In); ok {
			out.Body = here(text)
		}
	}
}

// taken gives the body of a request, if all of it is here, once it has been looked
// through. What is wrong with it is noted.
func (f *flight) taken(r *http.Request) (text []byte, ok bool) {
	if f.passed != nil {
		return *f.passed, true
	}
	before, _ := f.up.from.(*buffered)
	if f.text == nil && before != nil && before.text != nil {
		return f.up.read(before), true
	}
	if f.plan.Tripwire != nil {
		f.up.scan = f.plan.Tripwire.Reader(f.up.from, func(string) { f.up.tripped = true })
	}
	if f.text != nil {
		return f.up.whole(int64(len(f.text))), true
	}
	if n := r.ContentLength; before == nil && 0 < n && n <= short && edge.Arrived(r) {
		return f.up.whole(n), true
	}
	return nil, false
}

// here is a body that is here whole: net/http knows that a reader of this type never
// waits.
func here(text []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(text)) }

var identity = []string{"identity"}

// theirs are the headers by which an agent could bring an authority of its own.
// Where we bring one they are taken out: with somebody else's key beside ours,
// what an agent sends to a place that it may reach would land in somebody
// else's account there.
var theirs = []string{"authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key", "x-auth-token", "x-access-token", "private-token"}

// scrubs reports whether bodies must come in clear.
func (f *flight) scrubs() bool { return f.plan.Needles != nil || f.plan.Identity }

// trailers prepares those that the client announced. Their values come with the
// end of the body.
func (f *flight) trailers(pr *httputil.ProxyRequest) {
	pr.Out.Trailer = nil
	for name := range pr.In.Trailer {
		if !trailable(name) || edge.Among(name, f.own) {
			continue
		}
		if pr.Out.Trailer == nil {
			pr.Out.Trailer = http.Header{}
		}
		pr.Out.Trailer[name] = nil
	}
	edge.Strip(pr.Out.Trailer)
}

// trailable reports whether a header may be a trailer: RFC 9110, section
// 6.5.1.
func trailable(name string) bool {
	switch name {
	case "Authorization", "Cache-Control", "Connection", "Content-Encoding", "Content-Length", "Content-Range", "Content-Type", "Cookie",
		"Expect", "Host", "Keep-Alive", "Max-Forwards", "Pragma", "Range", "Set-Cookie", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return false
	}
	return true
}

// attempt counts the attempts of the transport. A second one is let through
// only if nothing of the first can have been carried out: nothing of it was
// written, or it was a stream of HTTP/2, which the transport sends again only if
// the upstream has said that it did not take it (RFC 9113, section 8.7).
func (f *flight) attempt() error {
	if f.attempts++; f.attempts > 1 && f.wrote.Load() {
		if c, ok := f.conn.(*tls.Conn); !ok || c.ConnectionState().NegotiatedProtocol != "h2" {
			return ErrRepeat
		}
	}
	return f.broken()
}

func (f *flight) gotConn(i httptrace.GotConnInfo) {
	f.conn = i.Conn
	f.out.Address = i.Conn.RemoteAddr().String()
}

func (f *flight) wroteHead() { f.wrote.Store(true) }

// heard notes what is to be known of an answer, and shows its head to the tap.
func (f *flight) heard(res *http.Response) error {
	f.out.First = time.Since(f.began)
	f.out.Status, f.out.Proto = res.StatusCode, res.Proto
	f.out.SPKI = f.pool.key(res.TLS)
	switch {
	case !res.ProtoAtLeast(1, 1):
		f.pool.old.Store(true)
	case res.ProtoMajor == 1:
		f.pool.alone.Store(true)
	}
	if f.plan.Received == nil {
		return nil
	}
	return tapHead(f.plan.Received, statusLine(res), res.Header)
}

// answer makes the answer for the agent out of the upstream's.
func (f *flight) answer(res *http.Response) error {
	if err := f.heard(res); err != nil {
		return err
	}
	if res.StatusCode < 100 {
		return ErrAnswer.With("The upstream answered with the status %03d, which there is not.", res.StatusCode)
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		return f.switched(res)
	}
	if err := f.head(res); err != nil {
		return err
	}
	if f.bodied(res) {
		if err := f.body(res); err != nil {
			return err
		}
		return f.deliver(res)
	}
	if res.Request.Method == http.MethodHead && f.scrubs() && encoded(res) {
		res.Header.Del("Content-Encoding")
		res.Header.Del("Content-Length")
	}
	if res.Body != http.NoBody { // in HTTP/2 there may be trailers all the same
		f.down.take(f, res)
		res.Body = &f.down
	}
	return f.deliver(res)
}

// head cleans the head of an answer.
func (f *flight) head(res *http.Response) error {
	if f.plan.Jar != nil {
		f.plan.Jar(res.Cookies())
	}
	edge.StripAnswer(res.Header, f.plan.Cookies)
	edge.StripAnswer(res.Trailer, f.plan.Cookies)
	f.mask(res.Header)
	f.mask(res.Trailer)
	if f.ex.Location != nil {
		for _, name := range []string{"Location", "Content-Location"} {
			if at := res.Header.Get(name); at != "" {
				res.Header.Set(name, f.ex.Location(at))
			}
		}
	}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		// Proxies between the agent and us are not to wait either.
		res.Header.Set("X-Accel-Buffering", "no")
	}
	return nil
}

// deliver shows the head to the tap, as the agent gets it.
func (f *flight) deliver(res *http.Response) error {
	if f.plan.Delivered == nil {
		return nil
	}
	return tapHead(f.plan.Delivered, statusLine(res), res.Header)
}

// statusLine writes the status line for a tap. The phrase is not the upstream's
// but the usual one: it is never passed on.
func statusLine(res *http.Response) func(*bytes.Buffer) {
	return func(b *bytes.Buffer) {
		b.WriteString("HTTP/1.1 ")
		b.Write(strconv.AppendInt(b.AvailableBuffer(), int64(res.StatusCode), 10))
		b.WriteByte(' ')
		b.WriteString(http.StatusText(res.StatusCode))
		b.WriteString("\r\n")
	}
}

// mask masks injected values in headers.
func (f *flight) mask(h http.Header) {
	if f.plan.Needles == nil {
		return
	}
	for name, values := range h {
		for i, v := range values {
			values[i] = f.plan.Needles.MaskString(v, f.echo)
		}
		if masked := f.plan.Needles.MaskString(name, f.echo); masked != name {
			delete(h, name)
		}
	}
}

// echo notes that an injected value came back.
func (f *flight) echo(name string) {
	f.mu.Lock()
	known := slices.Contains(f.out.Echoed, name)
	if !known {
		f.out.Echoed = append(f.out.Echoed, name)
	}
	f.mu.Unlock()
	if !known && f.plan.Echoed != nil {
		f.plan.Echoed(name)
	}
}

// bodied reports whether the answer has a body.
func (f *flight) bodied(res *http.Response) bool {
	return res.Request.Method != http.MethodHead && res.StatusCode != http.StatusNoContent &&
		res.StatusCode != http.StatusNotModified && res.ContentLength != 0
}

// Header is the client's.
func (f *flight) Header() http.Header { return f.w.Header() }

// WriteHeader writes the head of an answer, or of an informational one.
func (f *flight) WriteHeader(code int) {
	if code == http.StatusContinue {
		return // the server says so itself, when the body is first read
	}
	if code >= 100 && code < 200 && code != http.StatusSwitchingProtocols {
		h := f.w.Header()
		between(h)
		delete(h, "Content-Length")
		edge.StripAnswer(h, f.plan.Cookies)
		f.mask(h)
	} else {
		f.out.Answered = code
		if h := f.w.Header(); h["Content-Type"] == nil {
			h["Content-Type"] = nil // the server is not to guess one
		}
	}
	f.w.WriteHeader(code)
}

// hopByHop are headers that are between two of those by way of whom a message comes
// (RFC 9110, section 7.6.1), with what others take for such.
var hopByHop = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// Write writes a piece of the body.
func (f *flight) Write(b []byte) (n int, err error) {
	err = f.writing(func() error {
		n, err = f.w.Write(b)
		f.out.Delivered += int64(n)
		return err
	})
	return n, err
}

// FlushError sends what was written.
func (f *flight) FlushError() error { return f.writing(f.control.Flush) }

// writing does something that may wait for the client.
func (f *flight) writing(do func() error) error {
	f.since.Store(time.Now().UnixNano())
	defer f.since.Store(0)
	if err := f.ctx.Err(); err != nil {
		return err
	}
	err := do()
	if err != nil {
		f.lost(err)
	}
	return err
}

// lost notes that the client cannot be written to.
func (f *flight) lost(err error) {
	f.broke(&gone{err})
}

// A gone error means that the client went away.
type gone struct{ err error }

func (g *gone) Error() string { return "the client went away: " + g.err.Error() }
func (g *gone) Unwrap() error { return g.err }

// check ends an exchange in which the client stands still, or that is too old
// (gateway.md, P8). It runs a few times in each period.
func (f *flight) check() {
	now := time.Now()
	age := f.age - now.Sub(f.began)
	stalled := func(since int64) bool { return since != 0 && now.UnixNano()-since > int64(f.stall) }
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	switch {
	case age <= 0:
		f.cancel(&cut{ErrTooLong})
		f.unblock()
	case stalled(f.since.Load()) || stalled(f.up.since.Load()):
		if f.failure == nil {
			f.failure = ErrStalled
		}
		f.cancel(&cut{ErrStalled})
		f.unblock()
	default:
		f.watch.Reset(min(f.stall/2, age+time.Millisecond))
	}
}

// fail answers with an error of the way to the upstream, or of the answer.
func (f *flight) fail(err error) {
	if first := f.broken(); first != nil {
		err = first
	} else {
		err = f.upstreamError(err)
		f.broke(err)
	}
	err = f.because(err)
	if f.out.Answered != 0 || f.hijacked != nil {
		f.out.abort = true
		return
	}
	var went *gone
	if cutCause(f.ctx) == nil && (f.client.Err() != nil || errors.As(err, &went)) {
		return
	}
	f.out.Answered = Refuse(f.w, f.ex.Caller.Request, f.decided(err))
	f.told = true
}

// refuse ends the exchange before anything was sent.
func (f *flight) refuse(err error) {
	f.out = Outcome{End: Refused, Err: err, Begun: f.began, Took: time.Since(f.began)}
	f.out.Answered = Refuse(f.w, f.ex.Caller.Request, f.decided(err))
}

// settle works out how the exchange ended.
func (f *flight) settle() {
	out := &f.out
	out.Sent = f.up.finish()
	f.down.finish()
	out.Received = f.down.received
	if f.ws != nil {
		f.ws.count(out)
	}
	if f.pool != nil && f.pool.old.Load() {
		f.pool.transport.CloseIdleConnections() // there are no lines: none was kept
	}
	out.Took = time.Since(f.began)
	out.Err = f.broken()
	cause := cutCause(f.ctx)
	var went *gone
	switch {
	case cause != nil:
		out.End, out.Err, out.abort = Cut, cause, !f.told
	case errors.Is(out.Err, ErrTooLarge), errors.Is(out.Err, ErrAnswerLarge), errors.Is(out.Err, ErrBudget):
		out.End = Truncated
	case errors.Is(out.Err, ErrTripwire), errors.Is(out.Err, edge.ErrMalformed):
		out.End = Refused
	case f.client.Err() != nil || errors.As(out.Err, &went):
		if out.Err == nil && !out.abort && (f.ws != nil || f.delivered()) {
			out.End = Complete // it went away after all was delivered
			break
		}
		out.End = Cancelled
		if out.Err == nil {
			out.Err = context.Cause(f.client)
		}
	case out.Err != nil || out.abort:
		out.End = Failed
		if out.Err == nil {
			out.Err = ErrUpstream
		}
	default:
		out.End = Complete
	}
}

// delivered reports whether the answer was read to its end and written.
func (f *flight) delivered() bool {
	return f.out.Answered != 0 && (f.down.body == nil || f.down.ended)
}

// Buffer reads the body of a request, of at most max bytes, for a step that must
// see it, and puts it back. The client is told to go on if it waits for that.
func Buffer(r *http.Request, max int64) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	if r.ContentLength > max {
		return nil, ErrTooLarge.With("The body has %d bytes; it is read for a decision, which is possible up to %d.", r.ContentLength, max)
	}
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(r.Body, max+1))
	if err != nil {
		return nil, ErrTooLarge.With("The body could not be read.").Because(err)
	}
	if n > max {
		return nil, ErrTooLarge.With("The body has more than %d bytes; it is read for a decision, which is possible up to that.", max)
	}
	r.Body = &buffered{bytes.NewReader(b.Bytes()), r.Body, b.Bytes(), nil}
	return b.Bytes(), nil
}

// Peek reads the body of a request like [Buffer], for a step that is interested in
// short ones alone: of a longer one it gives nothing.
func Peek(r *http.Request, most int64) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength > most {
		return nil, nil
	}
	var text []byte
	var err error
	if r.ContentLength > 0 {
		text = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, text)
	} else {
		text, err = io.ReadAll(io.LimitReader(r.Body, most+1))
	}
	if err != nil {
		return nil, ErrTooLarge.With("The body could not be read.").Because(err)
	}
	if int64(len(text)) > most {
		r.Body = &buffered{io.MultiReader(bytes.NewReader(text), r.Body), r.Body, nil, nil}
		return nil, nil
	}
	r.Body = &buffered{bytes.NewReader(text), r.Body, text, nil}
	return text, nil
}

// Finds reports whether a matcher finds anything in a body that was read whole
// before. What has nothing in it is not looked through again when it is sent.
func Finds(r *http.Request, m *redact.Matcher) bool {
	b, ok := r.Body.(*buffered)
	if !ok || b.text == nil {
		return false
	}
	if m.Finds(b.text) {
		return true
	}
	b.without = m
	return false
}

// A buffered body was read before.
type buffered struct {
	io.Reader
	io.Closer
	text    []byte          // all of it; nil if more is to come
	without *redact.Matcher // which finds nothing in it
}
