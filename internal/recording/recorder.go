package recording

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
)

// A Recorder takes the frames of one session on this node. Its methods never
// wait for a disk. It is safe for use by many at once: frames that are added
// side by side get their places in the order in which they come.
//
//	open ──4 MiB, time, flush──▶ queue ──one at a time, in order──▶ stored
//	                               └─ refused: tried again; meanwhile err says why
type Recorder struct {
	r       *Recordings
	tenant  estover.TenantID
	session string
	id      string
	key     [32]byte
	streams atomic.Uint64

	mu      sync.Mutex
	seq     int64
	last    time.Time     // of the last frame
	open    *work         // what is being gathered; nil if nothing is
	queue   []*work       // what waits to be stored, in order
	busy    bool          // somebody stores the queue, or waits to try again
	err     error         // why nothing is taken
	final   bool          // err will stay
	held    int64         // bytes that are counted against the memory
	timer   *time.Timer   // for the open segment
	changed chan struct{} // closed and replaced when the queue or err changes

	// Of the one who stores.
	started time.Time
	wrapped []byte
	rooted  bool // the recording has its row
	n       int64
	prev    Digest
}

// Work is a segment, or a part of a body, on its way into the store.
type work struct {
	plain       *[]byte // of a segment, until it is stored
	first, last int64
	from, to    time.Time
	held        int64

	sealed *[]byte
	digest Digest
	header Header
	body   bool
	put    time.Time // when the blob became durable
	tried  bool      // the row may be there
}

// ID is the id of the recording.
func (rec *Recorder) ID() string { return rec.id }

// NewStream is the number of the next exchange of the session.
func (rec *Recorder) NewStream() uint64 { return rec.streams.Add(1) }

// Frame adds a frame: its Stream, Dir, Kind, Class and Data. The data is
// copied. At most 1 MiB of data; bodies go through [Recorder.Body].
func (rec *Recorder) Frame(f Frame) error {
	switch {
	case len(f.Data) > maxFrame:
		return ErrFrame.With("A frame of %d bytes is too long; the longest has %d.", len(f.Data), maxFrame)
	case len(f.Kind) > 16 || len(f.Dir) > 8 || len(f.Class) > 16:
		return ErrFrame.With("The kind, direction or class of the frame is none.")
	}
	return rec.add(&f, nil)
}

func (rec *Recorder) add(f *Frame, ref []byte) error {
	need := int64(len(f.Data) + len(ref) + frameOverhead)
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.err != nil {
		return rec.err
	}
	if err := rec.reserve(need); err != nil {
		return err
	}
	if rec.open != nil && int64(len(*rec.open.plain))+need > segmentSize {
		rec.cut()
	}
	now := rec.r.guard.DB().Now()
	if now.Before(rec.last) {
		now = rec.last
	}
	w := rec.open
	if w == nil {
		w = &work{plain: rec.r.codec.buffers.get(int(need)), first: rec.seq + 1, from: now}
		rec.open = w
		if rec.timer == nil {
			rec.timer = time.AfterFunc(rec.r.o.FlushEvery, rec.tick)
		} else {
			rec.timer.Reset(rec.r.o.FlushEvery)
		}
	}
	if n := len(*w.plain) + int(need); n > cap(*w.plain) {
		larger := rec.r.codec.buffers.get(n)
		*larger = append(*larger, *w.plain...)
		rec.r.codec.buffers.put(w.plain)
		w.plain = larger
	}
	rec.seq++
	rec.last, f.At, f.Seq = now, now, rec.seq
	*w.plain = appendFrame(*w.plain, f, ref)
	w.last, w.to, w.held = rec.seq, now, w.held+need
	return nil
}

// reserve counts bytes that will wait in memory. rec.mu is held.
func (rec *Recorder) reserve(n int64) error {
	if rec.held+n > rec.r.o.SessionMemory {
		return ErrBacklog
	}
	if rec.r.waiting.Add(n) > rec.r.o.Memory {
		rec.r.waiting.Add(-n)
		return ErrBacklog
	}
	rec.held += n
	return nil
}

// release gives them back, unless they have been given up. rec.mu is held.
func (rec *Recorder) release(n int64) {
	n = min(n, rec.held)
	rec.held -= n
	rec.r.waiting.Add(-n)
}

// tick cuts the open segment when its time has come.
func (rec *Recorder) tick() {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.open != nil {
		rec.cut()
	}
}

// cut hands the open segment on. rec.mu is held.
func (rec *Recorder) cut() {
	rec.timer.Stop()
	rec.push(rec.open)
	rec.open = nil
}

// push adds to the queue. rec.mu is held.
func (rec *Recorder) push(w *work) {
	rec.queue = append(rec.queue, w)
	if !rec.busy {
		rec.busy = true
		go rec.storeAll()
	}
}

// tell wakes those who wait for the queue. rec.mu is held.
func (rec *Recorder) tell() {
	close(rec.changed)
	rec.changed = make(chan struct{})
}

// storeAll stores the queue until it is empty, or until something cannot be
// stored: then it comes back later.
func (rec *Recorder) storeAll() {
	rec.r.writers <- struct{}{}
	defer func() { <-rec.r.writers }()
	for {
		rec.mu.Lock()
		if len(rec.queue) == 0 {
			rec.busy = false
			rec.mu.Unlock()
			return
		}
		w := rec.queue[0]
		rec.mu.Unlock()

		err := rec.store(w)

		rec.mu.Lock()
		switch {
		case rec.final: // dropped in the meantime
			rec.busy = false
			rec.mu.Unlock()
			return
		case err == nil:
			rec.queue[0] = nil
			rec.queue = rec.queue[1:]
			rec.release(w.held)
			rec.r.codec.buffers.put(w.plain, w.sealed)
			rec.err = nil
		case errors.Is(err, db.ErrStale):
			// The recording was erased: nothing may be added to it.
			rec.busy = false
			rec.discard(ErrEnded)
			rec.mu.Unlock()
			rec.r.forget(rec)
			return
		default:
			if rec.err == nil {
				rec.r.log.Error("a recording cannot be stored; it is tried again", "session", rec.session, "error", err)
			}
			rec.err = ErrNotStored.Because(err)
			rec.tell()
			rec.mu.Unlock()
			time.AfterFunc(rec.r.o.RetryAfter, rec.storeAll)
			return
		}
		rec.tell()
		rec.mu.Unlock()
	}
}

// drop gives up everything that is not stored, and refuses what comes.
func (rec *Recorder) drop(why error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.discard(why)
}

func (rec *Recorder) discard(why error) {
	rec.err, rec.final = why, true
	if rec.timer != nil {
		rec.timer.Stop()
	}
	rec.release(rec.held)
	rec.open, rec.queue = nil, nil
	rec.tell()
}

// keepsFor is how long a blob without a row is relied on. One that has waited
// longer, because the database did not answer, is written again, since a sweep
// may have taken it for lost.
const keepsFor = 10 * time.Minute

// storeTimeout bounds one attempt to store a blob and its row.
const storeTimeout = time.Minute

// store makes one piece of work durable. Whatever part of it succeeded is not
// done again when it is called again.
func (rec *Recorder) store(w *work) error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if w.sealed == nil {
		if err := rec.seal(w); err != nil {
			return err
		}
	}
	if time.Since(w.put) > keepsFor {
		if err := rec.r.store.put(ctx, w.digest, *w.sealed, !w.put.IsZero()); err != nil {
			return fmt.Errorf("writing a blob: %w", err)
		}
		w.put = time.Now()
	}
	if rec.wrapped == nil {
		if err := rec.wrap(ctx, w); err != nil {
			return err
		}
	}
	commit := rec.commitSegment
	if w.body {
		commit = rec.commitPart
	}
	if err := commit(ctx, w); err != nil {
		return err
	}
	if !w.body {
		rec.n, rec.prev = w.header.N, w.digest
	}
	return nil
}

// seal makes the blob of a segment.
func (rec *Recorder) seal(w *work) error {
	frames, err := split(*w.plain)
	if err != nil {
		panic("recording: our own segment: " + err.Error())
	}
	w.header = Header{
		ID: estover.NewID("seg"), Kind: segmentBlob, Tenant: rec.tenant, Session: rec.session, Recording: rec.id,
		N: rec.n + 1, First: w.first, Last: w.last, From: w.from, To: w.to, Size: int64(len(*w.plain)),
		Prev: rec.prev, Root: rootOf(leavesOf(frames)),
	}
	return rec.sealBlob(w, *w.plain)
}

func (rec *Recorder) sealBlob(w *work, plain []byte) (err error) {
	w.sealed, w.digest, err = rec.r.codec.seal(rec.key[:], w.header, plain)
	return err
}

// wrap seals the recording's key for its row.
func (rec *Recorder) wrap(ctx context.Context, w *work) error {
	if err := rec.r.sealer.Prepare(ctx, rec.tenant); err != nil {
		return fmt.Errorf("preparing the tenant's keys: %w", err)
	}
	started := w.from
	if w.body {
		started = rec.r.guard.DB().Now()
	}
	wrapped, err := rec.r.sealer.Seal(rec.tenant, keyAAD(rec.id, started), rec.key[:])
	if err != nil {
		return fmt.Errorf("sealing the recording's key: %w", err)
	}
	rec.started, rec.wrapped = started, wrapped
	return nil
}

// keyAAD is what a recording's key is bound to.
func keyAAD(id string, started time.Time) seal.AAD {
	return seal.AAD{Class: seal.Recording, ID: id, Created: started}
}

// A Statement is what the log says of a segment: the entry of its event, as
// JSON. It binds the blob and, by the root, each frame in it.
type Statement struct {
	Format    string `json:"format"` // estover-rec/2
	Session   string `json:"session"`
	Recording string `json:"recording"`
	N         int64  `json:"n"`
	First     int64  `json:"first"`
	Last      int64  `json:"last"`
	Segment   Digest `json:"segment"` // the name of the blob
	Prev      Digest `json:"prev,omitzero"`
	Root      Digest `json:"root"`
}

// commitSegment writes the row of a segment and its event.
func (rec *Recorder) commitSegment(ctx context.Context, w *work) error {
	if done, err := rec.committed(ctx, w); done || err != nil {
		return err
	}
	h := w.header
	leaf, err := json.Marshal(Statement{
		Format: format, Session: h.Session, Recording: h.Recording, N: h.N, First: h.First, Last: h.Last,
		Segment: w.digest, Prev: h.Prev, Root: h.Root,
	})
	if err != nil {
		return err
	}
	by := caller(rec.tenant, rec.session)
	op := guard.Op{
		Action: "recording.write", Target: "recording:" + rec.id, Effect: guard.Writes, Session: rec.session,
		Detail: map[string]any{"segment": h.N, "frames": h.Last - h.First + 1, "digest": w.digest.String()},
	}
	decision, err := rec.r.guard.Admit(ctx, by, op)
	if err != nil {
		return err
	}
	live, rows := rec.base()
	rows = append(rows, db.Row{Into: segmentTable, Values: []any{
		string(rec.tenant), rec.id, h.N, w.digest[:], h.Prev.bytes(), h.Root[:], h.First, h.Last,
		h.From.UnixMicro(), h.To.UnixMicro(), int64(len(*w.sealed)), decision.ID,
	}})
	w.tried = true
	if err := rec.r.guard.Record(ctx, by, op, decision, guard.Hot{Live: live, Hold: true, Rows: rows, Leaf: leaf}); err != nil {
		return err
	}
	rec.rooted = true
	return nil
}

// commitPart writes the row of a part of a body, by which the blob is known
// before a frame names it. The frame is what the log proves.
func (rec *Recorder) commitPart(ctx context.Context, w *work) error {
	if done, err := rec.committed(ctx, w); done || err != nil {
		return err
	}
	live, rows := rec.base()
	rows = append(rows, db.Row{Into: partTable, Values: []any{string(rec.tenant), rec.id, w.digest[:], int64(len(*w.sealed))}})
	w.tried = true
	if err := rec.r.guard.DB().Append(ctx, db.Append{Tenant: rec.tenant, Live: live, Hold: true, Rows: rows}); err != nil {
		return err
	}
	rec.rooted = true
	return nil
}

// base is what a commit rests on: the recording's row, which the first commit
// brings along. It is held: who erases the recording finds all that belongs to it.
func (rec *Recorder) base() (live []db.Epoch, rows []db.Row) {
	if rec.rooted {
		return []db.Epoch{{Table: "recording", ID: rec.id, Epoch: 1}}, nil
	}
	return nil, []db.Row{{Into: recordingTable, Values: []any{
		string(rec.tenant), rec.id, rec.session, rec.started.UnixMicro(), rec.wrapped,
	}}}
}

// committed looks, after a commit whose answer was lost or was an error,
// whether it happened all the same.
func (rec *Recorder) committed(ctx context.Context, w *work) (done bool, err error) {
	if !w.tried {
		return false, nil
	}
	err = rec.r.guard.DB().View(ctx, rec.tenant, func(tx *db.Tx) error {
		if rec.rooted, err = exists(ctx, tx, rec.id); err != nil {
			return err
		}
		done, err = known(ctx, tx, w.digest)
		return err
	})
	return done, err
}

// flush cuts what is open and waits until the queue is empty. It returns the
// error of a queue that cannot be stored; a patient one waits on.
func (rec *Recorder) flush(ctx context.Context, patient bool) error {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.open != nil {
		rec.cut()
	}
	return rec.drained(ctx, patient)
}

// drained waits until the queue is empty. rec.mu is held, and given up while
// it waits.
func (rec *Recorder) drained(ctx context.Context, patient bool) error {
	for {
		switch {
		case rec.final && errors.Is(rec.err, ErrEnded), len(rec.queue) == 0 && rec.err == nil:
			return nil
		case rec.err != nil && (rec.final || !patient):
			return rec.err
		}
		changed := rec.changed
		rec.mu.Unlock()
		select {
		case <-changed:
			rec.mu.Lock()
		case <-ctx.Done():
			rec.mu.Lock()
			if rec.err != nil {
				return rec.err
			}
			return ctx.Err()
		}
	}
}

// end makes everything durable, refuses further frames and closes the
// recording's row.
func (rec *Recorder) end(ctx context.Context, patient bool) error {
	rec.mu.Lock()
	for rec.open != nil || len(rec.queue) > 0 {
		if rec.open != nil {
			rec.cut()
		}
		if err := rec.drained(ctx, patient); err != nil {
			rec.mu.Unlock()
			return err
		}
	}
	if rec.final {
		rec.mu.Unlock()
		return nil
	}
	rec.err, rec.final = ErrEnded, true
	frames := rec.seq
	rec.mu.Unlock()
	if !rec.rooted {
		return nil // nothing was recorded
	}
	op := guard.Op{
		Action: "recording.end", Target: "recording:" + rec.id, Effect: guard.Writes, Session: rec.session,
		Detail: map[string]any{"frames": frames, "segments": rec.n, "head": rec.prev.String()},
	}
	err := rec.r.guard.Do(ctx, caller(rec.tenant, rec.session), op, func(tx *guard.Tx) error {
		return endRecording(ctx, tx.Tx, rec.id)
	})
	if err != nil {
		rec.mu.Lock()
		rec.err, rec.final = nil, false
		rec.mu.Unlock()
	}
	return err
}
