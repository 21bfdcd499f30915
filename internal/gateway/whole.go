package gateway

import (
	"io"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"

	"estover.dev/internal/edge"
)

// Most requests and answers are short, and here whole before the first byte of them
// goes on. To such a request nothing happens on its way that takes a reverse proxy:
// nothing is upgraded, expected or still to come. Its headers are gathered once, for the
// tap and for the upstream, and the head of its answer is handed on as it was read,
// without a copy of either in between.
//
// What the upstream, the taps and the client get is what they get by the proxy, which a
// test compares. An answer that is not here whole is handed to the proxy when its head
// has been read.

// A message is a request as it is put together.
type message struct {
	fields []field
	wire   []byte // as it is sent
	shown  []byte // its head as the tap sees it: with labels in the place of secrets
}

// A field is a header.
type field struct {
	name   string
	values []string
	slot   *Slot // that fills it; nil if the client's values stand there
}

// messages are used again. None keeps anything of a request ([message.done]).
var messages = sync.Pool{New: func() any { return new(message) }}

// mostShort is the room that a message may keep.
const mostShort = short + 4<<10

// done gives a message back without what was in it.
func (m *message) done() {
	clear(m.fields)
	clear(m.wire) // there is an injected secret in it
	clear(m.shown)
	if cap(m.wire) <= mostShort && cap(m.shown) <= mostShort {
		m.fields, m.wire, m.shown = m.fields[:0], m.wire[:0], m.shown[:0]
		messages.Put(m)
	}
}

// ours are the headers of a request that net/http writes by itself, or that stand
// between the client and us. No slot has one of them, and of the client's only
// User-Agent goes on as it is.
var ours = map[string]bool{
	"Accept-Encoding": true, "Connection": true, "Content-Length": true, "Expect": true, "Host": true, "Keep-Alive": true, "Te": true,
	"Trailer": true, "Transfer-Encoding": true, "Upgrade": true, "User-Agent": true,
}

// plain reports whether a request is here whole, and needs nothing but to be sent.
func (f *flight) plain(r *http.Request) bool {
	h := r.Header
	switch {
	case !canLook || f.signs || f.text != nil || r.Method == http.MethodHead || r.ContentLength < 0 || len(r.Trailer) > 0:
		return false
	case h["Upgrade"] != nil || h["Expect"] != nil || h["Te"] != nil || len(h["User-Agent"]) > 1 || !persistent(h["Connection"]):
		return false
	case !httpguts.ValidHostHeader(f.plan.Upstream.Host.Authority(f.plan.Upstream.Scheme)):
		return false
	}
	for i := range f.plan.Slots {
		switch s := &f.plan.Slots[i]; s.Kind {
		case HeaderSlot:
			if ours[http.CanonicalHeaderKey(s.Name)] {
				return false
			}
		case BasicSlot, QuerySlot, MTLSSlot:
		default:
			return false
		}
	}
	if r.ContentLength == 0 {
		return true
	}
	if before, ok := f.up.from.(*buffered); ok {
		return before.text != nil && len(before.text) <= f.atOnce()
	}
	return r.ContentLength <= short && edge.Arrived(r)
}

// persistent reports whether a Connection header names no other.
func persistent(values []string) bool {
	return len(values) == 0 || len(values) == 1 && (strings.EqualFold(values[0], "keep-alive") || strings.EqualFold(values[0], "close"))
}

// whole carries a request that is plain, and its answer. If it reports false that is
// still to be done, by the proxy.
func (f *flight) whole(r *http.Request) bool {
	if !f.plain(r) {
		return false
	}
	f.pool = f.forwarder.pools.of(f.ex, f.plan)
	if !f.pool.alone.Load() || f.pool.old.Load() {
		return false
	}
	res, err := f.ask(r)
	switch {
	case err == errTwo:
		return false
	case err != nil:
		f.fail(err)
		return true
	case !f.all || len(res.Trailer) > 0:
		f.res = res
		f.forwarder.proxy.ServeHTTP(f, r)
		return true
	}
	defer res.Body.Close()
	between(res.Header)
	if err := f.answer(res); err != nil {
		f.fail(err)
		return true
	}
	add(f.Header(), res.Header)
	f.WriteHeader(res.StatusCode)
	if f.pass(res.Body) != nil {
		f.out.abort = true
		_ = f.FlushError()
	}
	return true
}

// ask sends a request by a line, and reads the head of its answer.
func (f *flight) ask(r *http.Request) (*http.Response, error) {
	m := messages.Get().(*message)
	defer m.done()
	p := f.plan
	m.gather(f, r.Header)
	host := p.Upstream.Host.Authority(p.Upstream.Scheme)
	query := emptyQuery(f.ex.Query, p.Slots)
	if p.Sent != nil {
		m.show(r.Method, f.ex.Path, fillQuery(query, p.Slots, true), host)
		if err := p.Sent.Head(m.shown); err != nil {
			f.broke(err)
		}
	}
	var body []byte
	if r.ContentLength != 0 {
		f.up.out = r
		body, _ = f.taken(r)
	}
	f.passed = &body
	if err := f.attempt(); err != nil {
		return nil, err
	}
	if int64(len(body)) != r.ContentLength {
		return nil, io.ErrUnexpectedEOF
	}
	if err := m.write(r.Method, f.ex.Path, fillQuery(query, p.Slots, false), host, body); err != nil {
		return nil, err
	}
	l, err := f.line() // the last thing before it is used: it is quiet at this moment
	if err != nil {
		return nil, err
	}
	res, err := f.by(l, m.wire, r)
	f.all = err == nil && l.here(res)
	return res, err
}

// gather takes the headers that go on, and those of the slots, sorted by name.
func (m *message) gather(f *flight, h http.Header) {
	scrubs, slots := f.scrubs(), f.plan.Slots
	for name, values := range h {
		switch {
		case ours[name] && name != "User-Agent" && name != "Content-Length" && (name != "Accept-Encoding" || scrubs),
			scrubs && name == "Sec-Websocket-Extensions", edge.Stripped(name, f.own), len(slots) > 0 && edge.Among(name, theirs):
			continue
		}
		m.fields = append(m.fields, field{name: name, values: values})
	}
	if scrubs {
		m.fields = append(m.fields, field{name: "Accept-Encoding", values: identity})
	}
	for i := range slots {
		name := slots[i].header()
		if name == "" {
			continue
		}
		name = http.CanonicalHeaderKey(name)
		m.fields = slices.DeleteFunc(m.fields, func(have field) bool { return have.name == name }) // of an earlier slot
		m.fields = append(m.fields, field{name: name, slot: &slots[i]})
	}
	slices.SortFunc(m.fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
}

// begin writes the request line and the host.
func begin(b []byte, method string, path edge.Path, query, host string) []byte {
	b = append(append(append(b, method...), ' '), path...)
	if query != "" {
		b = append(append(b, '?'), query...)
	}
	b = append(append(b, " HTTP/1.1\r\nHost: "...), host...)
	return append(b, "\r\n"...)
}

// show writes the head for the tap, as [tapHead] would.
func (m *message) show(method string, path edge.Path, query, host string) {
	b := begin(m.shown, method, path, query, host)
	for i := range m.fields {
		b = m.fields[i].append(b, true)
	}
	m.shown = append(b, "\r\n"...)
}

// write writes the request for the upstream, as [http.Request.Write] would. Nothing is
// written of one that net/http would not send. What is in a slot was looked at before
// ([Slot.check]).
func (m *message) write(method string, path edge.Path, query, host string, body []byte) error {
	if err := askable(method); err != nil {
		return err
	}
	for i := range m.fields {
		if err := sendable(m.fields[i].name, m.fields[i].values); err != nil {
			return err
		}
	}
	b := begin(m.wire, method, path, query, host)
	for i := range m.fields {
		if v := &m.fields[i]; v.name == "User-Agent" && v.values[0] != "" {
			b = v.append(b, false)
		}
	}
	if len(body) > 0 || method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch {
		b = strconv.AppendInt(append(b, "Content-Length: "...), int64(len(body)), 10)
		b = append(b, "\r\n"...)
	}
	for i := range m.fields {
		v := &m.fields[i]
		if v.name != "User-Agent" && v.name != "Content-Length" {
			b = v.append(b, false)
		}
	}
	m.wire = append(append(b, "\r\n"...), body...)
	return nil
}

// append writes the header, with show the label of what fills it.
func (v *field) append(b []byte, show bool) []byte {
	if v.slot != nil {
		b = append(append(b, v.name...), ": "...)
		from := len(b)
		b = v.slot.append(b, show)
		to := from + copy(b[from:], textproto.TrimBytes(b[from:]))
		clear(b[to:]) // which [message.done] may not see
		if show {     // as in [head.write]
			for i, c := range b[from:to] {
				if c == '\r' || c == '\n' {
					b[from+i] = ' '
				}
			}
		}
		return append(b[:to], "\r\n"...)
	}
	for _, value := range v.values {
		b = append(append(b, v.name...), ": "...)
		b = append(append(b, textproto.TrimString(value)...), "\r\n"...)
	}
	return b
}

// between takes out of the head of an answer what is between the upstream and us.
func between(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// add adds headers to those that are there.
func add(to, h http.Header) {
	for name, values := range h {
		if have := to[name]; have != nil {
			values = append(have[:len(have):len(have)], values...)
		}
		to[name] = values
	}
}

// pass hands the body of an answer that is here whole to the client.
func (f *flight) pass(body io.Reader) error {
	if body == http.NoBody {
		return nil
	}
	b, clean := bufferPool{}.Get(), false
	defer func() {
		if !clean { // what was injected may be in it
			clear(b)
		}
		bufferPool{}.Put(b)
	}()
	for {
		n, err := body.Read(b)
		if n > 0 {
			if _, failed := f.Write(b[:n]); failed != nil {
				return failed
			}
		}
		if err == io.EOF {
			clean = true
			return nil
		}
		if err != nil {
			return err
		}
	}
}
