package redact

import (
	"io"
	"sync"
)

// bufferSize is how much a reader or a writer takes at once.
const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// buffer gives memory for a stream: from the pool, unless a needle is so long
// that it needs more.
func (m *Matcher) buffer() (b []byte, pooled *[bufferSize]byte) {
	if 2*m.longest > bufferSize {
		return make([]byte, 2*m.longest), nil
	}
	pooled = buffers.Get().(*[bufferSize]byte)
	return pooled[:], pooled
}

// A Reader gives what another reader gives, masked. It is for one goroutine.
type Reader struct {
	from   io.Reader
	s      Stream
	buf    []byte
	pooled *[bufferSize]byte

	next    int // buf[next:settled] can be given away
	settled int
	end     int // buf[settled:end] is held back
	high    int // what was ever in use
	err     error
}

// Reader masks what from gives. It calls hit once for each value that was
// found. The reader must be closed, which gives its memory back and leaves from
// alone.
func (m *Matcher) Reader(from io.Reader, hit func(name string)) *Reader {
	r := &Reader{from: from, s: Stream{m: m, hit: hit}}
	if m != nil {
		r.buf, r.pooled = m.buffer()
	}
	return r
}

// Read returns as soon as there is anything that is settled.
func (r *Reader) Read(p []byte) (int, error) {
	if r.s.m == nil {
		return r.from.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	for r.next == r.settled {
		if r.err != nil {
			return 0, r.err
		}
		r.fill()
	}
	n := copy(p, r.buf[r.next:r.settled])
	r.next += n
	if r.next == r.settled && r.err != nil {
		return n, r.err
	}
	return n, nil
}

// fill reads once and settles what it can. What is held never fills more than
// half of the buffer.
func (r *Reader) fill() {
	if r.buf == nil {
		r.err = io.ErrClosedPipe
		return
	}
	held := copy(r.buf, r.buf[r.settled:r.end])
	n, err := r.from.Read(r.buf[held:])
	r.end = held + n
	r.high = max(r.high, r.end)
	r.err = err
	r.next = 0
	r.settled = r.s.Settle(r.buf[:r.end], err != nil)
}

// Close gives the memory back. What is held is lost.
func (r *Reader) Close() error {
	release(r.buf[:r.high], r.pooled)
	r.buf, r.pooled = nil, nil
	r.next, r.settled, r.end = 0, 0, 0
	if r.err == nil && r.s.m != nil {
		r.err = io.ErrClosedPipe
	}
	return nil
}

// release overwrites what may hold a secret and returns the memory.
func release(used []byte, pooled *[bufferSize]byte) {
	clear(used)
	if pooled != nil {
		buffers.Put(pooled)
	}
}

// A Writer writes on what it is given, masked. It is for one goroutine.
type Writer struct {
	to     io.Writer
	s      Stream
	buf    []byte
	pooled *[bufferSize]byte
	held   int // buf[:held] is held back
	high   int // what was ever in use
}

// Writer masks what is written to it and writes it to the other writer. It
// calls hit once for each value that was found. The writer must be closed.
func (m *Matcher) Writer(to io.Writer, hit func(name string)) *Writer {
	w := &Writer{to: to, s: Stream{m: m, hit: hit}}
	if m != nil {
		w.buf, w.pooled = m.buffer()
	}
	return w
}

// Write writes on what is settled. It does not change p.
func (w *Writer) Write(p []byte) (written int, err error) {
	if w.s.m == nil {
		return w.to.Write(p)
	}
	if w.buf == nil {
		return 0, io.ErrClosedPipe
	}
	for len(p) > 0 {
		n := copy(w.buf[w.held:], p)
		p = p[n:]
		written += n
		end := w.held + n
		w.high = max(w.high, end)
		settled := w.s.Settle(w.buf[:end], false)
		if settled > 0 {
			if _, err := w.to.Write(w.buf[:settled]); err != nil {
				return written, err
			}
		}
		w.held = copy(w.buf, w.buf[settled:end])
	}
	return written, nil
}

// Flush flushes the other writer, if it can be flushed. What may still become
// a needle stays here: if it does not, it goes on with what follows.
func (w *Writer) Flush() error {
	switch f := w.to.(type) {
	case interface{ FlushError() error }:
		return f.FlushError()
	case interface{ Flush() error }:
		return f.Flush()
	case interface{ Flush() }:
		f.Flush()
	}
	return nil
}

// Close writes what is left, for the text is complete, and gives the memory
// back. It leaves the other writer open.
func (w *Writer) Close() error {
	if w.buf == nil {
		return nil
	}
	var err error
	if w.held > 0 {
		w.s.Settle(w.buf[:w.held], true)
		_, err = w.to.Write(w.buf[:w.held])
	}
	release(w.buf[:w.high], w.pooled)
	w.buf, w.pooled, w.held = nil, nil, 0
	return err
}
