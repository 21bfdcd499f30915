// Package recording keeps what agents and systems said to each other, so that
// it can be replayed, proved and, when the time has come, made unreadable.
//
// A [Recorder] takes the frames of one session on one node. They become
// segments, and a segment becomes a blob, a row and an event:
//
//	Frame ─▶ frames of a session ──4 MiB, Flush or its time──▶ segment ─▶ blob ─▶ row and event, one commit
//	         in memory, bounded         (Options.FlushEvery)                └─ durable before the row names it
//
// # The format estover-rec/2
//
// A frame is a CBOR map {t, dir, ref | data, seq, kind, salt, class, stream} in
// the deterministic form of RFC 8949. Its digest is its leaf in a Merkle tree
// as in RFC 6962; the salt is inside, so that a digest gives nothing away.
//
// A segment is frames, each with its length before it, compressed by zstd and
// sealed in chunks of 64 KiB by AES-256-GCM under HKDF(the recording's key, the
// segment's id). A chunk's nonce is random, which is what FIPS 140 asks for;
// its number, whether it is the last, and the digest of the clear header are
// its additional data, so that chunks cannot be moved, left out or cut off.
// The header ([Header]) is a line of JSON: session, tenant, numbers of the
// frames, the digest of the segment before, the root of the tree.
//
// The name of a blob is the SHA-256 of all of it: anyone can check it without a
// key, and nobody can read it without one. The event's leaf in the log is the
// segment's [Statement], which holds that digest and the root: two short paths,
// frame to root and leaf to checkpoint, prove a single frame ([Disclosure]).
//
// A body goes into frames of at most 64 KiB as it passes. What comes after its
// first MiB goes into blobs of its own, at most 1 MiB of plaintext each, and a
// last frame names them and the digest of what is in them ([Ref]). If it is not
// more than a frame holds it goes into one. So each byte is hashed once before it
// is sealed, and once, compressed, afterwards.
//
// In estover-rec/1, which is read as before, that last frame had the digest of the
// whole body.
//
// # Keys
//
// Each recording has a random key, which lies in its row, sealed for its
// tenant. [Recordings.Erase] destroys it: blobs, rows and the log stay and
// verify, and nothing in them can be read again.
//
// # What can be lost
//
// A frame is durable when its segment is. Until then it is in memory, and a
// crash of the node loses it: up to Options.FlushEvery, one second unless said
// otherwise, and whatever a slow bucket keeps waiting. There is no spool. What
// shows afterwards is that the recording has no end: its last segment is known,
// and that frames came after it is not.
//
// While the bucket or the database refuses, every [Recorder.Frame] returns
// [ErrNotStored]; when too much waits, [ErrBacklog]: a caller who must record
// stops there. [Recordings.End] and [Recordings.Close] return only when
// everything is durable, or say what is not. A crash between blob and row
// leaves a blob that no row names; [Recordings.Sweep] removes it.
package recording

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"gocloud.dev/blob"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
)

// ErrNotFound is returned when a session has no recording.
var ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "recording_not_found", Detail: "Nothing was recorded of this session."}

// ErrErased is returned when what was recorded has been made unreadable.
var ErrErased = &estover.Error{Kind: estover.NotFound, Code: "recording_erased", Detail: "This recording has been erased: its key was destroyed."}

// ErrEnded is returned by a recorder whose session has ended.
var ErrEnded = &estover.Error{Kind: estover.Conflict, Code: "recording_ended", Detail: "The recording of this session has ended."}

// ErrBacklog is returned when so much waits to be stored that no frame can be
// taken.
var ErrBacklog = &estover.Error{Kind: estover.Unavailable, Code: "recording_backlog", Detail: "Too much waits to be recorded. Try again in a moment."}

// ErrNotStored is returned while the bucket or the database refuses what was
// recorded. It is tried again all the time.
var ErrNotStored = &estover.Error{Kind: estover.Unavailable, Code: "recording_not_stored", Detail: "What was recorded cannot be stored. Look at the disk or the bucket that holds the recordings, and run `estover doctor`."}

// ErrFrame is returned for a frame that no recording can hold.
var ErrFrame = &estover.Error{Kind: estover.Invalid, Code: "frame_invalid", Detail: "This cannot be recorded as a frame."}

// ErrUnavailable is returned when the place of the blobs does not answer.
var ErrUnavailable = &estover.Error{Kind: estover.Unavailable, Code: "recording_unavailable", Detail: "The place where recordings are kept does not answer. Try again."}

// ErrTampered is returned when what is stored is not what was recorded.
var ErrTampered = &estover.Error{Kind: estover.Fault, Code: "recording_tampered", Detail: "The recording is not as it was made."}

// Holding is where the keys of recordings lie, for [seal.Sealer.Hold].
var Holding = seal.Holding{Class: seal.Recording, Table: "recording", Sealed: "key", ID: "id", Created: "started_at"}

// Options are what a program may set. The zero value is good.
type Options struct {
	// FlushEvery is how long a frame may wait in memory before its segment is
	// written: what a crash can lose. 1 s if zero.
	FlushEvery time.Duration
	// Memory bounds what waits to be stored, in bytes of frames: of all
	// sessions, and of one. 128 MiB and 16 MiB if zero.
	Memory, SessionMemory int64
	// MaxBody is how much of a body is kept; of the rest only the digest of
	// the whole. 256 MiB if zero; 64 GiB at most.
	MaxBody int64
	// Writers is how many segments are written at once. 8 if zero.
	Writers int
	// RetryAfter is how long a segment that could not be stored waits before
	// it is tried again. 1 s if zero.
	RetryAfter time.Duration
	Logger     *slog.Logger
}

// Recordings are the recordings of all tenants, and the recorders of this
// node. It is safe for use by many at once.
type Recordings struct {
	guard  *guard.Guard
	sealer *seal.Sealer
	store  *store
	codec  *codec
	o      Options
	log    *slog.Logger

	writers chan struct{} // a place for each segment that is being written
	waiting atomic.Int64  // bytes of frames that are not yet stored

	mu     sync.Mutex
	live   map[liveKey]*Recorder
	closed bool
}

type liveKey struct {
	tenant  estover.TenantID
	session string
}

// New keeps recordings in a bucket. The caller closes the bucket after
// [Recordings.Close].
func New(g *guard.Guard, s *seal.Sealer, bucket *blob.Bucket, o Options) *Recordings {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def((*int64)(&o.FlushEvery), int64(time.Second))
	def((*int64)(&o.RetryAfter), int64(time.Second))
	def(&o.Memory, 128<<20)
	def(&o.SessionMemory, 16<<20)
	def(&o.MaxBody, 256<<20)
	o.MaxBody = min(o.MaxBody, 64<<30)
	if o.Writers == 0 {
		o.Writers = 8
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Recordings{
		guard: g, sealer: s, store: &store{bucket: bucket}, codec: newCodec(), o: o, log: o.Logger,
		writers: make(chan struct{}, o.Writers), live: map[liveKey]*Recorder{},
	}
}

// Session is the recorder of a session on this node. It does no I/O: nothing
// is stored for a session that has no frames.
func (r *Recordings) Session(tenant estover.TenantID, session string) *Recorder {
	k := liveKey{tenant, session}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec := r.live[k]; rec != nil {
		return rec
	}
	rec := &Recorder{r: r, tenant: tenant, session: session, id: estover.NewID("rec"), changed: make(chan struct{})}
	_, _ = rand.Read(rec.key[:]) // never fails
	if r.closed {
		rec.err = ErrEnded
	} else {
		r.live[k] = rec
	}
	return rec
}

// Flush returns when all that was recorded of the session here is durable, or
// says why it is not.
func (r *Recordings) Flush(ctx context.Context, tenant estover.TenantID, session string) error {
	r.mu.Lock()
	rec := r.live[liveKey{tenant, session}]
	r.mu.Unlock()
	if rec == nil {
		return nil
	}
	return rec.flush(ctx, false)
}

// End makes durable what was recorded of the session here and closes its
// recording: the event says how many frames there are, so that a missing end
// is found. If it fails, the recorder goes on, and End may be called again.
func (r *Recordings) End(ctx context.Context, tenant estover.TenantID, session string) error {
	k := liveKey{tenant, session}
	r.mu.Lock()
	rec := r.live[k]
	r.mu.Unlock()
	if rec == nil {
		return nil
	}
	if err := rec.end(ctx, false); err != nil {
		return err
	}
	r.forget(rec)
	return nil
}

func (r *Recordings) forget(rec *Recorder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := (liveKey{rec.tenant, rec.session}); r.live[k] == rec {
		delete(r.live, k)
	}
}

// Close ends every recording of this node. Frames that come afterwards are
// refused. It returns an error that says what could not be made durable before
// ctx was done.
func (r *Recordings) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	var all []*Recorder
	for _, rec := range r.live {
		all = append(all, rec)
	}
	r.mu.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, rec := range all {
		wg.Go(func() {
			if err := rec.end(ctx, true); err != nil {
				errs[i] = fmt.Errorf("the recording of session %s: %w", rec.session, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// caller is this package as the one who writes what was recorded.
func caller(tenant estover.TenantID, session string) estover.Caller {
	return estover.Caller{Tenant: tenant, Subject: estover.System("recording"), Session: session}
}

// A Recording is what one node recorded of a session.
type Recording struct {
	ID        string    `json:"id"`
	Session   string    `json:"session"`
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"` // zero if it goes on, or its node died
	ErasedAt  time.Time `json:"erased_at,omitzero"`
	Segments  int64     `json:"segments"`
	Frames    int64     `json:"frames"`
	Size      int64     `json:"size"`          // bytes of its blobs, without those of long bodies
	Head      Digest    `json:"head,omitzero"` // the digest of its last segment

	key []byte // sealed
}

// List gives the recordings of a session, the oldest first.
func (r *Recordings) List(ctx context.Context, c estover.Caller, session string) (list []Recording, err error) {
	if err := r.Flush(ctx, c.Tenant, session); err != nil {
		return nil, err
	}
	err = r.guard.Read(ctx, c, guard.Op{Action: "recording.list", Target: "session:" + session}, func(tx *db.Tx) error {
		list, err = recordingsOf(ctx, tx, session)
		return err
	})
	return list, err
}

// Erase makes all that was recorded of the session unreadable, here and in
// every copy of the database that is made later, by destroying the keys. It
// says how many recordings there were. What other nodes still hold in memory
// of a session that goes on is lost with it.
func (r *Recordings) Erase(ctx context.Context, c estover.Caller, session, reason string) (n int64, err error) {
	op := guard.Op{
		Action: "recording.erase", Target: "session:" + session, Effect: guard.Deletes,
		Detail: map[string]any{"reason": reason},
	}
	if err := r.Flush(ctx, c.Tenant, session); err != nil {
		r.log.Warn("erasing a recording whose last frames are not stored", "session", session, "error", err)
	}
	err = r.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if n, err = eraseRecordings(ctx, tx.Tx, session); err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		tx.Note("recordings", n)
		return nil
	})
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	rec := r.live[liveKey{c.Tenant, session}]
	r.mu.Unlock()
	if rec != nil {
		rec.drop(ErrErased)
		r.forget(rec)
	}
	return n, nil
}
