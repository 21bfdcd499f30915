package recording

import (
	"crypto/sha256"
	"encoding/json"
	"hash"
	"io"

	"estover.dev"
)

// inlineBody is how much of a body goes into frames; the rest goes into blobs
// of its own, unless a frame more holds it.
const inlineBody = 1 << 20

// A Body takes one body as it passes. It is written and closed by one
// goroutine. Nothing it does waits for a disk; compressing and sealing a long
// body is done by who writes it.
type Body struct {
	rec    *Recorder
	stream uint64
	dir    Dir
	kind   Kind
	class  estover.Class

	rest  hash.Hash // of what is not in frames, which have digests of their own
	size  int64     // bytes seen
	kept  int64     // bytes recorded
	part  *[]byte
	parts []Digest
	err   error
	done  bool
}

// Body takes the body of a stream, of kind [HTTPBody] or [SSE]. The caller
// closes it.
func (rec *Recorder) Body(stream uint64, dir Dir, kind Kind, class estover.Class) *Body {
	return &Body{rec: rec, stream: stream, dir: dir, kind: kind, class: class}
}

// Write records what passes. After an error it takes nothing more: what was
// recorded up to there is kept, and says by a note that it is not the whole.
func (b *Body) Write(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	b.size += int64(len(p))
	n, left := len(p), max(0, b.rec.r.o.MaxBody-b.kept)
	for b.err == nil && len(p) > 0 && left > 0 && b.kept < inlineBody {
		piece := p[:min(int64(len(p)), left, pieceSize, inlineBody-b.kept)]
		if b.err = b.rec.Frame(Frame{Stream: b.stream, Dir: b.dir, Kind: b.kind, Class: b.class, Data: piece}); b.err == nil {
			p, left = p[len(piece):], left-int64(len(piece))
			b.kept += int64(len(piece))
		}
	}
	if b.err == nil && len(p) > 0 {
		if b.rest == nil {
			b.rest = sha256.New()
		}
		b.rest.Write(p)
		p = p[:min(int64(len(p)), left)]
	}
	for b.err == nil && len(p) > 0 {
		piece := p[:min(len(p), partSize-b.gathered())]
		if b.err = b.gather(piece); b.err == nil {
			p = p[len(piece):]
			b.kept += int64(len(piece))
		}
	}
	if b.err != nil {
		b.abort("not recorded")
		return 0, b.err
	}
	return n, nil
}

// gathered is how much there is of the part under way.
func (b *Body) gathered() int {
	if b.part == nil {
		return 0
	}
	return len(*b.part)
}

// gather adds to the part under way, and seals it when it is full.
func (b *Body) gather(p []byte) error {
	if b.part == nil {
		b.rec.mu.Lock()
		err := b.rec.err
		if err == nil {
			err = b.rec.reserve(partSize)
		}
		b.rec.mu.Unlock()
		if err != nil {
			return err
		}
		b.part = b.rec.r.codec.buffers.get(partSize)
	}
	if *b.part = append(*b.part, p...); len(*b.part) == partSize {
		return b.sealPart()
	}
	return nil
}

// sealPart hands the part under way to the recorder.
func (b *Body) sealPart() error {
	rec, plain := b.rec, b.part
	b.part = nil
	w := &work{body: true, held: partSize, header: Header{
		ID: estover.NewID("seg"), Kind: bodyBlob, Tenant: rec.tenant, Session: rec.session, Recording: rec.id, Size: int64(len(*plain)),
	}}
	err := rec.sealBlob(w, *plain)
	rec.r.codec.buffers.put(plain)
	if err != nil {
		return err
	}
	b.parts = append(b.parts, w.digest)
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.err != nil && rec.final {
		return rec.err
	}
	rec.push(w)
	return nil
}

// Close ends the body. A body that was longer than what frames hold, or that
// was cut, ends with a frame that says where the rest is and what it was.
func (b *Body) Close() error {
	if b.done {
		return b.err
	}
	b.done = true
	if b.err == nil {
		b.err = b.finish()
	}
	return b.err
}

func (b *Body) finish() error {
	if b.appended() {
		return nil
	}
	if b.part != nil {
		if err := b.sealPart(); err != nil {
			return err
		}
	}
	if len(b.parts) == 0 && b.kept == b.size {
		return nil
	}
	r := &Ref{From: min(b.kept, inlineBody), Size: b.size, Kept: b.kept, Parts: b.parts}
	b.rest.Sum(r.Rest[:0])
	f := Frame{Stream: b.stream, Dir: b.dir, Kind: b.kind, Class: b.class}
	return b.rec.add(&f, encodeRef(r))
}

// appended puts what came after the first MiB into a frame, if it is little: that
// costs less than a blob and its row. It reports whether it did.
func (b *Body) appended() bool {
	if b.part == nil || len(b.parts) > 0 || b.kept < b.size || len(*b.part) > pieceSize {
		return false
	}
	if b.rec.Frame(Frame{Stream: b.stream, Dir: b.dir, Kind: b.kind, Class: b.class, Data: *b.part}) != nil {
		return false // what a part takes is set aside already
	}
	b.rec.r.codec.buffers.put(b.part)
	b.part = nil
	b.rec.mu.Lock()
	defer b.rec.mu.Unlock()
	b.rec.release(partSize)
	return true
}

// Abort ends a body that did not come to its end, and notes why.
func (b *Body) Abort(why string) error {
	if b.done {
		return b.err
	}
	err := b.Close()
	if err == nil {
		err = b.note(why)
	}
	return err
}

func (b *Body) abort(why string) {
	b.done = true
	if b.part != nil {
		b.rec.mu.Lock()
		b.rec.release(partSize)
		b.rec.mu.Unlock()
		b.part = nil
	}
	_ = b.note(why) // what made it fail may make this fail too
}

func (b *Body) note(why string) error {
	text, err := json.Marshal(struct {
		Aborted string `json:"aborted"`
		Bytes   int64  `json:"bytes"`
	}{why, b.size})
	if err != nil {
		return err
	}
	return b.rec.Frame(Frame{Stream: b.stream, Dir: b.dir, Kind: Note, Class: b.class, Data: text})
}

// Tee gives a reader that records what is read from r. Reading fails when
// recording does, so that nothing passes unrecorded. Closing it closes r and
// ends the body: as whole if r was read to its end, as aborted otherwise.
func (b *Body) Tee(r io.ReadCloser) io.ReadCloser { return &tee{b: b, r: r} }

type tee struct {
	b   *Body
	r   io.ReadCloser
	end bool
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if n > 0 {
		if _, failed := t.b.Write(p[:n]); failed != nil {
			return 0, failed
		}
	}
	if err == io.EOF {
		t.end = true
		if failed := t.b.Close(); failed != nil {
			return n, failed
		}
	}
	return n, err
}

func (t *tee) Close() error {
	if !t.end {
		_ = t.b.Abort("closed before its end") // the frames say what passed
	}
	return t.r.Close()
}
