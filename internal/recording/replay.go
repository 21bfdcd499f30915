package recording

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
)

// A Range says which frames of a session are wanted. The zero value is all of
// them.
type Range struct {
	Recording    string // one of the session's recordings; all if empty
	First, Last  int64  // numbers of frames; no bound where zero
	Since, Until time.Time
	Streams      []uint64 // exchanges; all if empty
}

// has reports whether a frame is in the range.
func (g Range) has(f *Frame) bool {
	if f.Seq < g.First || g.Last > 0 && f.Seq > g.Last ||
		!g.Since.IsZero() && f.At.Before(g.Since) || !g.Until.IsZero() && f.At.After(g.Until) {
		return false
	}
	if len(g.Streams) == 0 {
		return true
	}
	for _, s := range g.Streams {
		if s == f.Stream {
			return true
		}
	}
	return false
}

// touches reports whether any frame of a segment may be in the range.
func (g Range) touches(s *segmentRow) bool {
	return s.last >= g.First && (g.Last == 0 || s.first <= g.Last) &&
		(g.Since.IsZero() || !s.lastAt.Before(g.Since)) && (g.Until.IsZero() || !s.firstAt.After(g.Until))
}

// A Replay reads what was recorded of a session. Whatever it gives has been
// checked: each blob against its name, each segment against the one before,
// each frame against the root of its segment.
type Replay struct {
	r      *Recordings
	tenant estover.TenantID
	tracks []track
}

// A track is one recording and the key to it.
type track struct {
	Recording
	plainKey []byte
	segments []segmentRow
}

// Open reads the recording of a session. That is an event: what was said is
// revealed. Frames that were recorded here a moment ago are made durable
// first, so that they are seen.
func (r *Recordings) Open(ctx context.Context, c estover.Caller, session string) (*Replay, error) {
	return r.open(ctx, c, session, "frames")
}

func (r *Recordings) open(ctx context.Context, c estover.Caller, session, form string) (*Replay, error) {
	if err := r.Flush(ctx, c.Tenant, session); err != nil {
		return nil, err
	}
	op := guard.Op{
		Action: "recording.read", Target: "session:" + session, Effect: guard.Reads, Detail: map[string]any{"as": form},
	}
	p := &Replay{r: r, tenant: c.Tenant}
	err := r.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		list, err := recordingsOf(ctx, tx.Tx, session)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return ErrNotFound
		}
		p.tracks = nil
		for _, one := range list {
			if one.key == nil {
				continue
			}
			t := track{Recording: one}
			if t.segments, err = segmentsOf(ctx, tx.Tx, one.ID); err != nil {
				return err
			}
			p.tracks = append(p.tracks, t)
		}
		if len(p.tracks) == 0 {
			return ErrErased
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := r.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, err
	}
	for i := range p.tracks {
		t := &p.tracks[i]
		if t.plainKey, err = r.sealer.Open(c.Tenant, keyAAD(t.ID, t.StartedAt), t.key); err != nil {
			return nil, fmt.Errorf("opening the key of recording %s: %w", t.ID, err)
		}
	}
	return p, nil
}

// Recordings are those that can be read.
func (p *Replay) Recordings() []Recording {
	list := make([]Recording, len(p.tracks))
	for i, t := range p.tracks {
		list[i] = t.Recording
	}
	return list
}

// Frames gives the frames of a range in the order of their time. An error ends
// them.
func (p *Replay) Frames(ctx context.Context, g Range) iter.Seq2[Frame, error] {
	var tracks []*track
	for i := range p.tracks {
		if g.Recording == "" || g.Recording == p.tracks[i].ID {
			tracks = append(tracks, &p.tracks[i])
		}
	}
	if len(tracks) == 1 {
		return p.framesOf(ctx, tracks[0], g)
	}
	return func(yield func(Frame, error) bool) {
		type head struct {
			frame Frame
			next  func() (Frame, error, bool)
		}
		var heads []head
		for _, t := range tracks {
			next, stop := iter.Pull2(p.framesOf(ctx, t, g))
			defer stop()
			f, err, ok := next()
			if err != nil {
				yield(Frame{}, err)
				return
			}
			if ok {
				heads = append(heads, head{f, next})
			}
		}
		for len(heads) > 0 {
			first := 0
			for i := range heads {
				if heads[i].frame.At.Before(heads[first].frame.At) {
					first = i
				}
			}
			if !yield(heads[first].frame, nil) {
				return
			}
			f, err, ok := heads[first].next()
			switch {
			case err != nil:
				yield(Frame{}, err)
				return
			case ok:
				heads[first].frame = f
			default:
				heads = append(heads[:first], heads[first+1:]...)
			}
		}
	}
}

// framesOf gives the frames of one recording.
func (p *Replay) framesOf(ctx context.Context, t *track, g Range) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		var before segmentRow
		for i := range t.segments {
			s := &t.segments[i]
			if s.n != before.n+1 || s.prev != before.digest || s.first != before.last+1 {
				yield(Frame{}, ErrTampered.With("Segment %d of recording %s does not follow on segment %d.", s.n, t.ID, before.n))
				return
			}
			before = *s
			if !g.touches(s) {
				continue
			}
			_, frames, leaves, err := p.segment(ctx, t, s)
			if err != nil {
				yield(Frame{}, err)
				return
			}
			for n, b := range frames {
				f, err := decodeFrame(b)
				if err == nil && f.Seq != s.first+int64(n) {
					err = fmt.Errorf("its number is %d", f.Seq)
				}
				if err != nil {
					yield(Frame{}, ErrTampered.With("Frame %d of recording %s is not one.", s.first+int64(n), t.ID).Because(err))
					return
				}
				f.Recording, f.Digest = t.ID, leaves[n]
				if g.has(&f) && !yield(f, nil) {
					return
				}
			}
		}
	}
}

// segment reads a segment and checks it against its row.
func (p *Replay) segment(ctx context.Context, t *track, s *segmentRow) (Header, [][]byte, []Digest, error) {
	blob, err := p.r.store.get(ctx, s.digest)
	if err != nil {
		return Header{}, nil, nil, err
	}
	h, frames, leaves, err := p.r.codec.openSegment(t.plainKey, blob)
	if err != nil {
		return h, nil, nil, ErrTampered.With("Segment %d of recording %s is not as it was made.", s.n, t.ID).Because(err)
	}
	if h.Tenant != p.tenant || h.Session != t.Session || h.Recording != t.ID || h.N != s.n ||
		h.First != s.first || h.Last != s.last || h.Prev != s.prev || h.Root != s.root {
		return h, nil, nil, ErrTampered.With("Segment %d of recording %s is not the one that its row names.", s.n, t.ID)
	}
	return h, frames, leaves, nil
}

// Rest reads what was kept of a long body after its frames, given the frame
// that ends it.
func (p *Replay) Rest(ctx context.Context, f Frame) io.Reader {
	r := &rest{ctx: ctx, p: p}
	for i := range p.tracks {
		if p.tracks[i].ID == f.Recording {
			r.track = &p.tracks[i]
		}
	}
	if f.Ref == nil || r.track == nil {
		return r
	}
	r.parts, r.left = f.Ref.Parts, f.Ref.Kept-f.Ref.From
	return r
}

type rest struct {
	ctx   context.Context
	p     *Replay
	track *track
	parts []Digest
	left  int64
	data  []byte
}

func (r *rest) Read(b []byte) (int, error) {
	for len(r.data) == 0 {
		if len(r.parts) == 0 {
			if r.left != 0 {
				return 0, ErrTampered.With("A body of recording %s has %d bytes too few.", r.track.ID, r.left)
			}
			return 0, io.EOF
		}
		blob, err := r.p.r.store.get(r.ctx, r.parts[0])
		if err != nil {
			return 0, err
		}
		h, plain, err := r.p.r.codec.open(r.track.plainKey, blob)
		if err == nil && (h.Kind != bodyBlob || h.Recording != r.track.ID || int64(len(plain)) > r.left) {
			err = errors.New("it is not a part of this body")
		}
		if err != nil {
			return 0, ErrTampered.With("The blob %s is not as it was made.", r.parts[0]).Because(err)
		}
		r.data, r.left, r.parts = plain, r.left-int64(len(plain)), r.parts[1:]
	}
	n := copy(b, r.data)
	r.data = r.data[n:]
	return n, nil
}

// A Summary is what a verification went through.
type Summary struct {
	Recordings int   `json:"recordings"`
	Segments   int   `json:"segments"`
	Frames     int64 `json:"frames"`
	Bodies     int   `json:"bodies"` // long ones whose digest was checked
	Cut        int   `json:"cut"`    // long ones that were not kept whole, so that their digest cannot be checked
	Bytes      int64 `json:"bytes"`
}

// Verify reads everything, long bodies included, and checks it.
func (p *Replay) Verify(ctx context.Context) (s Summary, err error) {
	type body struct {
		recording string
		stream    uint64
		dir       Dir
	}
	sums := map[body]hash.Hash{}
	sizes := map[body]int64{}
	s.Recordings = len(p.tracks)
	for i := range p.tracks {
		s.Segments += len(p.tracks[i].segments)
	}
	for f, err := range p.Frames(ctx, Range{}) {
		if err != nil {
			return s, err
		}
		s.Frames++
		s.Bytes += int64(len(f.Data))
		if f.Kind != HTTPBody && f.Kind != SSE {
			continue
		}
		k := body{f.Recording, f.Stream, f.Dir}
		if sums[k] == nil {
			sums[k] = sha256.New()
		}
		sums[k].Write(f.Data)
		sizes[k] += int64(len(f.Data))
		if f.Ref == nil {
			continue
		}
		whole := f.Ref.Sum
		if f.Ref.Rest != (Digest{}) {
			whole = f.Ref.Rest
			sums[k].Reset()
		}
		n, err := io.Copy(sums[k], p.Rest(ctx, f))
		if err != nil {
			return s, err
		}
		s.Bytes += n
		if sizes[k] != f.Ref.From {
			return s, ErrTampered.With("A body of stream %d in recording %s has %d bytes before its rest, and should have %d.", f.Stream, f.Recording, sizes[k], f.Ref.From)
		}
		if f.Ref.Kept < f.Ref.Size {
			s.Cut++
			continue
		}
		if Digest(sums[k].Sum(nil)) != whole {
			return s, ErrTampered.With("A body of stream %d in recording %s is not what passed.", f.Stream, f.Recording)
		}
		s.Bodies++
	}
	return s, nil
}

// A Disclosure shows one frame of a session and proves that it is one, without
// showing another: the frame leads to the root of its segment, and the
// segment's statement is an entry of the log.
type Disclosure struct {
	Frame     []byte    `json:"frame"` // CBOR
	Index     int       `json:"index"` // its place among the frames of the segment
	Path      []Digest  `json:"path"`
	Statement Statement `json:"statement"`
	Event     string    `json:"event"` // whose entry in the log is the statement
}

// Leaf is the statement as it stands in the log.
func (s Statement) Leaf() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("recording: a statement that cannot be encoded: " + err.Error())
	}
	return b
}

// Check gives the frame if the path proves it.
func (d Disclosure) Check() (Frame, error) {
	f, err := DecodeFrame(d.Frame)
	if err != nil {
		return Frame{}, ErrTampered.Because(err)
	}
	root, err := climb(f.Digest, d.Index, int(d.Statement.Last-d.Statement.First+1), d.Path)
	if err != nil {
		return Frame{}, ErrTampered.Because(err)
	}
	if root != d.Statement.Root || f.Seq != d.Statement.First+int64(d.Index) {
		return Frame{}, ErrTampered.With("The path does not lead from this frame to the root of its segment.")
	}
	f.Recording = d.Statement.Recording
	return f, nil
}

// Disclose gives one frame with its proof.
func (p *Replay) Disclose(ctx context.Context, recording string, seq int64) (Disclosure, error) {
	for i := range p.tracks {
		t := &p.tracks[i]
		for j := range t.segments {
			s := &t.segments[j]
			if t.ID != recording || seq < s.first || seq > s.last {
				continue
			}
			h, frames, leaves, err := p.segment(ctx, t, s)
			if err != nil {
				return Disclosure{}, err
			}
			n := int(seq - s.first)
			return Disclosure{
				Frame: frames[n], Index: n, Path: pathOf(leaves, n), Event: s.event,
				Statement: Statement{
					Format: h.format, Session: t.Session, Recording: t.ID, N: s.n, First: s.first, Last: s.last,
					Segment: s.digest, Prev: s.prev, Root: s.root,
				},
			}, nil
		}
	}
	return Disclosure{}, ErrNotFound.With("The session has no frame %d in recording %q.", seq, recording)
}
