package recording

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/memblob"
	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
)

var (
	ann = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann")} // reviews what agents did
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve")} // of another organisation
)

// never is a FlushEvery for tests that say themselves when something is stored.
const never = time.Hour

// setup opens recordings in a database. What they store is kept in memory if
// bucket is nil.
func setup(t testing.TB, d *db.DB, bucket *blob.Bucket, decider guard.Decider, o Options) *Recordings {
	t.Helper()
	s, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
	if err != nil {
		t.Fatal(err)
	}
	if bucket == nil {
		bucket = memblob.OpenBucket(nil)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s.Hold(Holding)
	return New(guardtest.New(t, d, decider), s, bucket, o)
}

// exchange records a request and its answer.
func record(t testing.TB, rec *Recorder, path, body string) {
	t.Helper()
	stream := rec.NewStream()
	for _, f := range []Frame{
		{Dir: Up, Kind: RequestHead, Data: RequestHeadOf("POST", "https://crm.example"+path, "HTTP/1.1", http.Header{
			"Authorization": {"Bearer ‹sec_1@2›"}, "Content-Type": {"application/json"},
		})},
		{Dir: Up, Kind: HTTPBody, Data: []byte(body)},
		{Kind: Policy, Data: []byte(`{"allow":true}`)},
		{Dir: Down, Kind: ResponseHead, Data: ResponseHeadOf("HTTP/1.1", 201, http.Header{"Content-Type": {"application/json"}})},
		{Dir: Down, Kind: HTTPBody, Data: []byte(`{"ok":true}`)},
	} {
		f.Stream, f.Class = stream, estover.Confidential
		if err := rec.Frame(f); err != nil {
			t.Fatalf("recording a frame: %v", err)
		}
	}
}

// read replays a session.
func read(t testing.TB, r *Recordings, session string, g Range) []Frame {
	t.Helper()
	p, err := r.Open(t.Context(), ann, session)
	if err != nil {
		t.Fatalf("opening the recording of %s: %v", session, err)
	}
	var all []Frame
	for f, err := range p.Frames(t.Context(), g) {
		if err != nil {
			t.Fatalf("after %d frames: %v", len(all), err)
		}
		all = append(all, f)
	}
	return all
}

func TestReplay(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
		rec := r.Session("acme", "ses_1")
		clock := dbtest.NewClock(d)
		for i := range 3 {
			clock.Advance(time.Second)
			record(t, rec, fmt.Sprintf("/customers/%d", i), `{"name":"Ann"}`)
			if err := r.Flush(t.Context(), "acme", "ses_1"); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.End(t.Context(), "acme", "ses_1"); err != nil {
			t.Fatal(err)
		}
		all := read(t, r, "ses_1", Range{})
		if len(all) != 15 {
			t.Fatalf("%d frames, want 15", len(all))
		}
		for i, f := range all {
			if f.Seq != int64(i+1) || f.Recording != rec.ID() || f.Class != estover.Confidential {
				t.Errorf("frame %d: %+v", i+1, f)
			}
		}
		if h, err := ParseHead(all[10].Data); err != nil || h.Line[1] != "https://crm.example/customers/2" || h.Get("authorization") != "Bearer ‹sec_1@2›" {
			t.Errorf("the head of the third request: %+v, %v", h, err)
		}

		for name, c := range map[string]struct {
			Range
			want []int64
		}{
			"by number":      {Range{First: 4, Last: 6}, []int64{4, 5, 6}},
			"by stream":      {Range{Streams: []uint64{2}}, []int64{6, 7, 8, 9, 10}},
			"by time":        {Range{Since: all[10].At}, []int64{11, 12, 13, 14, 15}},
			"until":          {Range{Until: all[4].At}, []int64{1, 2, 3, 4, 5}},
			"of no other":    {Range{Recording: "rec_other"}, nil},
			"beyond the end": {Range{First: 16}, nil},
		} {
			var got []int64
			for _, f := range read(t, r, "ses_1", c.Range) {
				got = append(got, f.Seq)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("%s: frames %v, want %v", name, got, c.want)
			}
		}

		list, err := r.List(t.Context(), ann, "ses_1")
		if err != nil || len(list) != 1 {
			t.Fatalf("%d recordings, %v; want 1", len(list), err)
		}
		if l := list[0]; l.Segments != 3 || l.Frames != 15 || l.EndedAt.IsZero() || l.Size == 0 || l.Head == (Digest{}) {
			t.Errorf("the recording is listed as %+v", l)
		}
		p, err := r.Open(t.Context(), ann, "ses_1")
		if err != nil {
			t.Fatal(err)
		}
		if s, err := p.Verify(t.Context()); err != nil || s.Segments != 3 || s.Frames != 15 {
			t.Errorf("verified %+v, %v", s, err)
		}
	})
}

// leaves reads the log's entries of an action.
func leavesIn(t testing.TB, d *db.DB, action string) (leaves [][]byte) {
	t.Helper()
	err := d.View(t.Context(), "acme", func(tx *db.Tx) error {
		rows, err := tx.Query(t.Context(), "select leaf from audit where tenant_id = $1 and action = $2 order by seq", tx.Tenant(), action)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var b []byte
			if err := rows.Scan(&b); err != nil {
				return err
			}
			leaves = append(leaves, b)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return leaves
}

// One frame is proved by its path and the segment's entry in the log, and
// nothing else of the session is shown.
func TestDisclosure(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
		rec := r.Session("acme", "ses_1")
		for i := range 4 {
			record(t, rec, fmt.Sprintf("/%d", i), "x")
			if i == 1 {
				if err := r.Flush(t.Context(), "acme", "ses_1"); err != nil {
					t.Fatal(err)
				}
			}
		}
		p, err := r.Open(t.Context(), ann, "ses_1")
		if err != nil {
			t.Fatal(err)
		}
		leaves := leavesIn(t, d, "recording.write")
		if len(leaves) != 2 {
			t.Fatalf("%d entries for segments, want 2", len(leaves))
		}
		for f, err := range p.Frames(t.Context(), Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			proof, err := p.Disclose(t.Context(), rec.ID(), f.Seq)
			if err != nil {
				t.Fatal(err)
			}
			got, err := proof.Check()
			if err != nil || !bytes.Equal(got.Data, f.Data) || got.Seq != f.Seq || got.Digest != f.Digest {
				t.Errorf("frame %d was disclosed as %+v, %v", f.Seq, got, err)
			}
			if want := leaves[proof.Statement.N-1]; !bytes.Equal(proof.Statement.Leaf(), want) {
				t.Errorf("the statement is %s, and the log has %s", proof.Statement.Leaf(), want)
			}
			proof.Frame[len(proof.Frame)/2] ^= 1
			if _, err := proof.Check(); err == nil {
				t.Errorf("frame %d was changed, and its proof held", f.Seq)
			}
		}
		proof, _ := p.Disclose(t.Context(), rec.ID(), 3)
		proof.Index = 3
		if _, err := proof.Check(); err == nil {
			t.Error("a frame was proved to stand where another does")
		}
		if _, err := p.Disclose(t.Context(), rec.ID(), 21); !errors.Is(err, ErrNotFound) {
			t.Errorf("disclosing a frame that is not there: %v, want ErrNotFound", err)
		}
	})
}

func TestOnlyWhoMay(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		said := guardtest.Decider(func(c estover.Caller, op guard.Op) guard.Decision {
			return guard.Decision{Allow: c.Subject.Kind() == estover.SystemKind || c.Tenant == "evil", Reasons: []string{"no"}, Message: "No."}
		})
		r := setup(t, d, nil, said, Options{FlushEvery: never})
		record(t, r.Session("acme", "ses_1"), "/", "x")
		if err := r.End(t.Context(), "acme", "ses_1"); err != nil {
			t.Fatal(err)
		}
		for name, call := range map[string]func(c estover.Caller) error{
			"reading": func(c estover.Caller) error { _, err := r.Open(t.Context(), c, "ses_1"); return err },
			"erasing": func(c estover.Caller) error { _, err := r.Erase(t.Context(), c, "ses_1", "why"); return err },
			"exporting": func(c estover.Caller) error {
				return r.ExportHAR(t.Context(), c, "ses_1", io.Discard)
			},
		} {
			if err := call(eve); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s another organisation's session: %v, want ErrNotFound", name, err)
			}
			if err := call(ann); estover.KindOf(err) != estover.Denied {
				t.Errorf("%s what policy does not let one: %v, want a refusal", name, err)
			}
		}
		if list, err := r.List(t.Context(), eve, "ses_1"); err != nil || len(list) != 0 {
			t.Errorf("another organisation's list: %v, %v; want none", list, err)
		}
	})
}

// What a session says comes back as it was, however it was cut into segments
// and whatever it holds.
func TestAnythingReadsBack(t *testing.T) {
	d := dbtest.Open(t)
	r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		session := fmt.Sprintf("ses_%d", n)
		rec := r.Session("acme", session)
		var want []Frame
		for range rapid.IntRange(1, 30).Draw(rt, "frames") {
			f := anyFrame(rt, 1)
			if err := rec.Frame(f); err != nil {
				rt.Fatal(err)
			}
			want = append(want, f)
			if rapid.IntRange(0, 9).Draw(rt, "flush") == 0 {
				if err := r.Flush(t.Context(), "acme", session); err != nil {
					rt.Fatal(err)
				}
			}
		}
		if rapid.Bool().Draw(rt, "end") {
			if err := r.End(t.Context(), "acme", session); err != nil {
				rt.Fatal(err)
			}
		}
		got := read(t, r, session, Range{})
		if len(got) != len(want) {
			rt.Fatalf("%d frames came back of %d", len(got), len(want))
		}
		for i := range want {
			g, w := got[i], want[i]
			if g.Seq != int64(i+1) || g.Stream != w.Stream || g.Dir != w.Dir || g.Kind != w.Kind || g.Class != w.Class || !bytes.Equal(g.Data, w.Data) {
				rt.Fatalf("frame %d came back as %+v, was %+v", i+1, g, w)
			}
		}
	})
}

func TestSegmentsAreCutAt4MiB(t *testing.T) {
	d := dbtest.Open(t)
	r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
	rec := r.Session("acme", "ses_1")
	for range 9 {
		if err := rec.Frame(Frame{Kind: Note, Data: make([]byte, maxFrame)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := rec.Frame(Frame{Kind: Note, Data: make([]byte, maxFrame+1)}); !errors.Is(err, ErrFrame) {
		t.Errorf("a frame of more than 1 MiB: %v, want ErrFrame", err)
	}
	if err := rec.Frame(Frame{Kind: "a kind that is very long"}); !errors.Is(err, ErrFrame) {
		t.Errorf("a frame of no kind: %v, want ErrFrame", err)
	}
	p, err := r.Open(t.Context(), ann, "ses_1")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := p.Verify(t.Context()); err != nil || s.Segments != 3 || s.Frames != 9 {
		t.Errorf("9 MiB of frames: %+v, %v; want 3 segments", s, err)
	}
}

// Frames become durable by themselves.
func TestFlushEvery(t *testing.T) {
	d := dbtest.Open(t)
	r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: time.Millisecond})
	record(t, r.Session("acme", "ses_1"), "/", "x")
	for deadline := time.Now().Add(time.Minute); len(leavesIn(t, d, "recording.write")) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no segment was written within 10 s")
		}
	}
}

// Whatever is changed, in the blobs or in the rows, is found.
func TestTampering(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		base := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
		sql := func(query string, args ...any) func(t *testing.T, dir string) {
			return func(t *testing.T, _ string) {
				t.Helper()
				err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
					n, err := tx.Exec(t.Context(), query, args...)
					if err == nil && n == 0 {
						t.Errorf("%s changed nothing", query)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		blobs := func(t *testing.T, dir string) (files []string) {
			err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					files = append(files, path)
				}
				return err
			})
			if err != nil || len(files) < 3 {
				t.Fatalf("%d blobs, %v", len(files), err)
			}
			return files
		}
		for name, tamper := range map[string]func(t *testing.T, dir string){
			"a byte of a blob": func(t *testing.T, dir string) {
				f := blobs(t, dir)[1]
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				b[len(b)/2] ^= 1
				if err := os.WriteFile(f, b, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			"a blob that is gone": func(t *testing.T, dir string) {
				if err := os.Remove(blobs(t, dir)[2]); err != nil {
					t.Fatal(err)
				}
			},
			"one blob for another": func(t *testing.T, dir string) {
				f := blobs(t, dir)
				b, err := os.ReadFile(f[0])
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(f[1], b, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			"a segment left out":   sql("delete from recording_segment where tenant_id = 'acme' and n = 2"),
			"the first left out":   sql("delete from recording_segment where tenant_id = 'acme' and n = 1"),
			"another root":         sql("update recording_segment set root = digest where tenant_id = 'acme' and n = 2"),
			"another predecessor":  sql("update recording_segment set prev = digest where tenant_id = 'acme' and n = 2"),
			"another frame number": sql("update recording_segment set first_seq = first_seq - 1 where tenant_id = 'acme' and n = 1"),
			"renumbered": sql(`update recording_segment set n = n + 10, first_seq = first_seq + 100, last_seq = last_seq + 100
				where tenant_id = 'acme'`),
		} {
			dir := t.TempDir()
			bucket, err := OpenBucket(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			r := New(base.guard, base.sealer, bucket, base.o)
			session := "ses_" + strings.ReplaceAll(name, " ", "_")
			rec := r.Session("acme", session)
			for range 3 {
				record(t, rec, "/", "x")
				if err := r.Flush(t.Context(), "acme", session); err != nil {
					t.Fatal(err)
				}
			}
			verify := func() error {
				p, err := r.Open(t.Context(), ann, session)
				if err != nil {
					return err
				}
				_, err = p.Verify(t.Context())
				return err
			}
			if err := verify(); err != nil {
				t.Fatalf("as it was: %v", err)
			}
			tamper(t, dir)
			if err := verify(); !errors.Is(err, ErrTampered) {
				t.Errorf("%s: %v, want ErrTampered", name, err)
			}
			// The next case starts from nothing.
			for _, table := range []string{"recording_segment", "recording"} {
				sql("delete from "+table+" where tenant_id = 'acme'")(t, dir)
			}
		}
	})
}

// A disk that takes nothing is told to who records, and nothing is lost when
// it works again.
func TestDiskThatRefuses(t *testing.T) {
	d := dbtest.Open(t)
	dir := filepath.Join(t.TempDir(), "blobs")
	if err := os.Mkdir(dir+".disk", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+".none", nil, 0o600); err != nil { // a file where a directory should be
		t.Fatal(err)
	}
	// One step, since the recorder tries again all the while and would make a
	// directory that is missing.
	lead := func(to string) {
		if err := os.Symlink(to, dir+".next"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir+".next", dir); err != nil {
			t.Fatal(err)
		}
	}
	lead(dir + ".disk")
	bucket, err := OpenBucket(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	r := setup(t, d, bucket, guardtest.AllowAll, Options{FlushEvery: never, RetryAfter: time.Millisecond})
	rec := r.Session("acme", "ses_1")
	record(t, rec, "/first", "x")
	lead(dir + ".none")
	if err := r.Flush(t.Context(), "acme", "ses_1"); !errors.Is(err, ErrNotStored) {
		t.Fatalf("storing what cannot be stored: %v, want ErrNotStored", err)
	}
	if err := rec.Frame(Frame{Kind: Note}); !errors.Is(err, ErrNotStored) || estover.KindOf(err) != estover.Unavailable {
		t.Errorf("recording meanwhile: %v, want ErrNotStored", err)
	}
	if err := r.End(t.Context(), "acme", "ses_1"); !errors.Is(err, ErrNotStored) {
		t.Errorf("ending meanwhile: %v, want ErrNotStored", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.Close(ctx); !errors.Is(err, ErrNotStored) || !strings.Contains(err.Error(), "ses_1") {
		t.Errorf("closing meanwhile: %v, want ErrNotStored and the session's name", err)
	}
	lead(dir + ".disk")
	if err := r.Close(t.Context()); err != nil {
		t.Fatalf("closing when the disk works again: %v", err)
	}
	if got := read(t, r, "ses_1", Range{}); len(got) != 5 {
		t.Errorf("%d frames, want the 5 that were taken", len(got))
	}
	if err := r.Session("acme", "ses_2").Frame(Frame{Kind: Note}); !errors.Is(err, ErrEnded) {
		t.Errorf("recording after Close: %v, want ErrEnded", err)
	}
}

// A crash between a blob and its row leaves a blob that no row names: readers
// do not see it, and a sweep removes it and nothing else.
func TestCrashBetweenBlobAndRow(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		bucket, err := OpenBucket(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		allow := true
		var mu sync.Mutex
		decide := guardtest.Decider(func(_ estover.Caller, op guard.Op) guard.Decision {
			mu.Lock()
			defer mu.Unlock()
			return guard.Decision{Allow: allow || op.Action != "recording.write"}
		})
		r := setup(t, d, bucket, decide, Options{FlushEvery: never, RetryAfter: never})
		rec := r.Session("acme", "ses_1")
		record(t, rec, "/first", "x")
		big := rec.Body(9, Down, HTTPBody, estover.Internal)
		if _, err := big.Write(make([]byte, 3<<20)); err != nil {
			t.Fatal(err)
		}
		if err := big.Close(); err != nil {
			t.Fatal(err)
		}
		if err := r.Flush(t.Context(), "acme", "ses_1"); err != nil {
			t.Fatal(err)
		}
		count := func() (n int) {
			for it := bucket.List(nil); ; n++ {
				if _, err := it.Next(t.Context()); err == io.EOF {
					return n
				} else if err != nil {
					t.Fatal(err)
				}
			}
		}
		before := count()
		mu.Lock()
		allow = false
		mu.Unlock()
		record(t, rec, "/lost", "x")
		if err := r.Flush(t.Context(), "acme", "ses_1"); !errors.Is(err, ErrNotStored) {
			t.Fatalf("a segment whose row is refused: %v, want ErrNotStored", err)
		}
		if count() != before+1 {
			t.Fatalf("%d blobs, want one more than %d", count(), before)
		}
		mu.Lock()
		allow = true
		mu.Unlock()

		// The process is gone; another one opens what is left.
		again := New(r.guard, r.sealer, bucket, r.o)
		if got := read(t, again, "ses_1", Range{First: 1, Last: 5}); len(got) != 5 {
			t.Errorf("%d frames, want the 5 that were stored", len(got))
		}
		if n, err := again.Sweep(t.Context(), time.Hour); err != nil || n != 0 {
			t.Errorf("sweeping what may be under way: %d blobs, %v; want none", n, err)
		}
		if n, err := again.Sweep(t.Context(), 0); err != nil || n != 1 || count() != before {
			t.Errorf("sweeping: %d blobs, %v, %d left; want 1 and %d", n, err, count(), before)
		}
		p, err := again.Open(t.Context(), ann, "ses_1")
		if err != nil {
			t.Fatal(err)
		}
		if s, err := p.Verify(t.Context()); err != nil || s.Bodies != 1 {
			t.Errorf("after the sweep: %+v, %v", s, err)
		}
	})
}

// A commit whose answer was lost is found, and not done twice.
func TestCommitWhoseAnswerWasLost(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never, Writers: 1})
		rec := r.Session("acme", "ses_1")
		r.writers <- struct{}{} // nothing is stored but by hand
		record(t, rec, "/", "x")
		rec.mu.Lock()
		rec.cut()
		w := rec.queue[0]
		rec.mu.Unlock()
		if err := rec.store(w); err != nil {
			t.Fatal(err)
		}
		// As if the answer had been an error, and a sweep had come in the
		// meantime.
		rec.n, rec.prev, rec.rooted = 0, Digest{}, false
		w.put = w.put.Add(-time.Hour)
		if err := r.store.bucket.Delete(t.Context(), blobName(w.digest)); err != nil {
			t.Fatal(err)
		}
		<-r.writers
		record(t, rec, "/", "y")
		if got := read(t, r, "ses_1", Range{}); len(got) != 10 {
			t.Errorf("%d frames, want 10", len(got))
		}
		if n := len(leavesIn(t, d, "recording.write")); n != 2 {
			t.Errorf("%d entries in the log, want 2", n)
		}
	})
}

// Frames that many record at once are all there, and what is refused because
// the session has ended is refused.
func TestRecordersRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: time.Millisecond})
		const sessions, writers, each = 4, 8, 50
		var taken [sessions]map[string]bool
		var mu sync.Mutex
		var wg sync.WaitGroup
		for s := range sessions {
			taken[s] = map[string]bool{}
			for w := range writers {
				wg.Go(func() {
					for i := range each {
						name := fmt.Sprintf("%d/%d/%d", s, w, i)
						rec := r.Session("acme", fmt.Sprint("ses_", s))
						err := rec.Frame(Frame{Stream: uint64(w), Kind: Note, Data: []byte(name)})
						if err == nil {
							mu.Lock()
							taken[s][name] = true
							mu.Unlock()
						} else if !errors.Is(err, ErrEnded) {
							t.Errorf("recording %s: %v", name, err)
						}
						if i == each/2 && w == 0 {
							if err := r.End(t.Context(), "acme", fmt.Sprint("ses_", s)); err != nil {
								t.Errorf("ending: %v", err)
							}
						}
					}
				})
			}
		}
		wg.Wait()
		if err := r.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := r.waiting.Load(); n != 0 {
			t.Errorf("%d bytes are still counted as waiting", n)
		}
		for s := range sessions {
			next := map[string]int64{}
			for _, f := range read(t, r, fmt.Sprint("ses_", s), Range{}) {
				if !taken[s][string(f.Data)] {
					t.Errorf("frame %s was refused and is there, or is there twice", f.Data)
				}
				delete(taken[s], string(f.Data))
				if f.Seq <= next[f.Recording] {
					t.Errorf("frame %d after frame %d", f.Seq, next[f.Recording])
				}
				next[f.Recording] = f.Seq
			}
			if len(taken[s]) > 0 {
				t.Errorf("session %d: %d frames were taken and are not there", s, len(taken[s]))
			}
		}
	})
}

// While the bucket is slow, memory stays bounded and who records is told.
func TestMemoryIsBounded(t *testing.T) {
	d := dbtest.Open(t)
	const bound = 8 << 20
	r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never, Writers: 1, Memory: bound, SessionMemory: bound / 2})
	r.writers <- struct{}{} // a bucket that takes for ever
	taken := map[string]int{}
	data := make([]byte, 60<<10)
	for i := range 1000 {
		session := fmt.Sprint("ses_", i%3)
		err := r.Session("acme", session).Frame(Frame{Kind: HTTPBody, Data: data})
		if err == nil {
			taken[session]++
		} else if !errors.Is(err, ErrBacklog) || estover.KindOf(err) != estover.Unavailable {
			t.Fatalf("recording beyond the bound: %v, want ErrBacklog", err)
		}
		if n := r.waiting.Load(); n > bound {
			t.Fatalf("%d bytes wait, more than %d", n, bound)
		}
	}
	body := r.Session("acme", "ses_body").Body(1, Up, HTTPBody, estover.Internal)
	if _, err := body.Write(data); !errors.Is(err, ErrBacklog) {
		t.Errorf("a body beyond the bound: %v, want ErrBacklog", err)
	}
	if err := body.Close(); !errors.Is(err, ErrBacklog) {
		t.Errorf("closing it: %v, want the same error", err)
	}
	for session, n := range taken {
		if n < 30 {
			t.Errorf("session %s was given room for %d frames", session, n)
		}
	}
	<-r.writers
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := r.waiting.Load(); n != 0 {
		t.Errorf("%d bytes are still counted as waiting", n)
	}
	for session, n := range taken {
		if got := read(t, r, session, Range{}); len(got) != n {
			t.Errorf("session %s: %d frames, want the %d that were taken", session, len(got), n)
		}
	}
}

// blob of random bytes that are the same every time.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestBodies(t *testing.T) {
	d := dbtest.Open(t)
	r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never, MaxBody: 4 << 20})
	rec := r.Session("acme", "ses_1")
	sizes := []int{0, 1, pieceSize, pieceSize + 1, inlineBody, inlineBody + 1, inlineBody + pieceSize, inlineBody + pieceSize + 1, inlineBody + partSize, 4 << 20, 4<<20 + 1, 6 << 20}
	for i, n := range sizes {
		body := noise(n)
		b := rec.Body(uint64(i), Down, HTTPBody, estover.Internal)
		got, err := io.ReadAll(b.Tee(io.NopCloser(bytes.NewReader(body))))
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("a body of %d bytes passed as %d, %v", n, len(got), err)
		}
	}
	p, err := r.Open(t.Context(), ann, "ses_1")
	if err != nil {
		t.Fatal(err)
	}
	bodies, refs := make([][]byte, len(sizes)), make([]*Ref, len(sizes))
	for f, err := range p.Frames(t.Context(), Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Data) > pieceSize {
			t.Errorf("a frame of %d bytes", len(f.Data))
		}
		bodies[f.Stream] = append(bodies[f.Stream], f.Data...)
		if refs[f.Stream] = f.Ref; f.Ref != nil {
			rest, err := io.ReadAll(p.Rest(t.Context(), f))
			if err != nil {
				t.Fatal(err)
			}
			bodies[f.Stream] = append(bodies[f.Stream], rest...)
		}
	}
	for i, n := range sizes {
		got, ref := bodies[i], refs[i]
		kept := min(n, 4<<20)
		if !bytes.Equal(got, noise(n)[:kept]) {
			t.Errorf("a body of %d bytes was kept as %d, want %d", n, len(got), kept)
		}
		if (ref != nil) != (n > inlineBody+pieceSize) {
			t.Errorf("a body of %d bytes has the reference %+v", n, ref)
		}
		if ref != nil && (ref.Size != int64(n) || ref.Kept != int64(kept) || ref.Rest != sha256.Sum256(noise(n)[inlineBody:])) {
			t.Errorf("a body of %d bytes has the reference %+v", n, ref)
		}
	}
	if s, err := p.Verify(t.Context()); err != nil || s.Bodies != 3 || s.Cut != 2 {
		t.Errorf("verified %+v, %v; want 3 long bodies whole and 2 cut", s, err)
	}
}

// What stands for a body says what was in its blobs: others do not take their place.
func TestAnotherRest(t *testing.T) {
	r := setup(t, dbtest.Open(t), nil, guardtest.AllowAll, Options{FlushEvery: never})
	rec := r.Session("acme", "ses_1")
	b := rec.Body(1, Down, HTTPBody, estover.Internal)
	if _, err := b.Write(noise(2 << 20)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	all := read(t, r, "ses_1", Range{})
	ref := *all[len(all)-1].Ref
	ref.From, ref.Size, ref.Kept = 0, 1<<20, 1<<20
	add := func(stream uint64) error {
		if err := rec.add(&Frame{Stream: stream, Dir: Down, Kind: HTTPBody, Class: estover.Internal}, encodeRef(&ref)); err != nil {
			t.Fatal(err)
		}
		p, err := r.Open(t.Context(), ann, "ses_1")
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Verify(t.Context())
		return err
	}
	if err := add(2); err != nil {
		t.Errorf("a body that has nothing but blobs: %v", err)
	}
	ref.Rest = sha256.Sum256(noise(1 << 20))
	if err := add(3); !errors.Is(err, ErrTampered) {
		t.Errorf("a body with the blobs of another: %v, want ErrTampered", err)
	}
}

// What was recorded in estover-rec/1 is read, verified and disclosed as before. The
// blobs are as a program of that time has written them.
func TestFormatOne(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		bucket := memblob.OpenBucket(nil)
		r := setup(t, d, bucket, guardtest.AllowAll, Options{FlushEvery: never})
		var segment Header
		var digest Digest
		for _, name := range []string{"segment", "body"} {
			b, err := os.ReadFile("testdata/estover-rec-1/" + name)
			if err != nil {
				t.Fatal(err)
			}
			if err := bucket.WriteAll(t.Context(), blobName(sha256.Sum256(b)), b, nil); err != nil {
				t.Fatal(err)
			}
			h, _, _, err := parse(b)
			if err != nil || h.format != formatOne {
				t.Fatalf("%s is in the format %q: %v", name, h.format, err)
			}
			if name == segmentBlob {
				segment, digest = h, sha256.Sum256(b)
			}
		}
		text, err := os.ReadFile("testdata/estover-rec-1/key.hex")
		if err != nil {
			t.Fatal(err)
		}
		key, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.sealer.Prepare(t.Context(), "acme"); err != nil {
			t.Fatal(err)
		}
		wrapped, err := r.sealer.Seal("acme", keyAAD(segment.Recording, segment.From), key)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Append(t.Context(), db.Append{Tenant: "acme", Rows: []db.Row{
			{Into: recordingTable, Values: []any{"acme", segment.Recording, segment.Session, segment.From.UnixMicro(), wrapped}},
			{Into: segmentTable, Values: []any{
				"acme", segment.Recording, segment.N, digest[:], segment.Prev.bytes(), segment.Root[:], segment.First, segment.Last,
				segment.From.UnixMicro(), segment.To.UnixMicro(), 1472, "evt_1",
			}},
		}}); err != nil {
			t.Fatal(err)
		}
		p, err := r.Open(t.Context(), ann, segment.Session)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := p.Verify(t.Context()); err != nil || s.Bodies != 1 || s.Frames != 17 {
			t.Errorf("verified %+v, %v; want one long body and 17 frames", s, err)
		}
		var got []byte
		for f, err := range p.Frames(t.Context(), Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, f.Data...)
			if f.Ref == nil {
				continue
			}
			rest, err := io.ReadAll(p.Rest(t.Context(), f))
			if err != nil || f.Ref.Sum == (Digest{}) || f.Ref.Rest != (Digest{}) {
				t.Errorf("the reference %+v, %v", f.Ref, err)
			}
			got = append(got, rest...)
			proof, err := p.Disclose(t.Context(), f.Recording, f.Seq)
			if err != nil || proof.Statement.Format != formatOne {
				t.Fatalf("disclosed in the format %q, %v", proof.Statement.Format, err)
			}
			if one, err := proof.Check(); err != nil || one.Ref == nil || one.Ref.Sum != f.Ref.Sum {
				t.Errorf("the disclosed frame has the reference %+v, %v", one.Ref, err)
			}
		}
		if !bytes.Equal(got, bytes.Repeat([]byte("a line of a long answer\n"), 56000)) {
			t.Errorf("%d bytes are read that were not recorded so", len(got))
		}
	})
}

func TestBodiesThatBreakOff(t *testing.T) {
	d := dbtest.Open(t)
	r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
	rec := r.Session("acme", "ses_1")
	b := rec.Body(1, Down, HTTPBody, estover.Internal)
	tee := b.Tee(io.NopCloser(bytes.NewReader(noise(5 << 20))))
	if _, err := io.CopyN(io.Discard, tee, 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := tee.Close(); err != nil {
		t.Fatal(err)
	}
	all := read(t, r, "ses_1", Range{})
	last := all[len(all)-1]
	if last.Kind != Note || string(last.Data) != `{"aborted":"closed before its end","bytes":3145728}` {
		t.Errorf("the last frame is %s %s", last.Kind, last.Data)
	}
	if ref := all[len(all)-2].Ref; ref == nil || ref.Kept != 3<<20 {
		t.Errorf("the reference before it is %+v", ref)
	}
	if err := r.End(t.Context(), "acme", "ses_1"); err != nil {
		t.Fatal(err)
	}
	// A body whose recording has ended cannot go on unrecorded.
	if _, err := rec.Body(2, Down, HTTPBody, estover.Internal).Tee(io.NopCloser(strings.NewReader("x"))).Read(make([]byte, 1)); !errors.Is(err, ErrEnded) {
		t.Errorf("reading a body that cannot be recorded: %v, want ErrEnded", err)
	}
}

func TestErase(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		bucket := memblob.OpenBucket(nil)
		r := setup(t, d, bucket, guardtest.AllowAll, Options{FlushEvery: never})
		rec := r.Session("acme", "ses_1")
		record(t, rec, "/", "x")
		record(t, r.Session("acme", "ses_2"), "/", "x")
		before, err := r.Open(t.Context(), ann, "ses_1")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := r.Erase(t.Context(), ann, "ses_1", "the customer asked for it"); err != nil || n != 1 {
			t.Fatalf("erased %d recordings, %v; want 1", n, err)
		}
		if _, err := r.Open(t.Context(), ann, "ses_1"); !errors.Is(err, ErrErased) {
			t.Errorf("reading what was erased: %v, want ErrErased", err)
		}
		if err := rec.Frame(Frame{Kind: Note}); !errors.Is(err, ErrErased) {
			t.Errorf("adding to what was erased: %v, want ErrErased", err)
		}
		list, err := r.List(t.Context(), ann, "ses_1")
		if err != nil || len(list) != 1 || list[0].ErasedAt.IsZero() || list[0].Frames != 5 {
			t.Errorf("listed as %+v, %v", list, err)
		}
		err = d.View(t.Context(), "acme", func(tx *db.Tx) error {
			var n int
			if err := tx.QueryRow(t.Context(), "select count(*) from recording where tenant_id = $1 and session_id = 'ses_1' and key is not null", tx.Tenant()).Scan(&n); err != nil {
				return err
			}
			if n != 0 {
				t.Error("a key is still there")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		// The blobs are what their names say; only nobody can read them.
		if _, err := r.store.get(t.Context(), before.tracks[0].segments[0].digest); err != nil {
			t.Errorf("checking an erased blob without a key: %v", err)
		}
		if got := read(t, r, "ses_2", Range{}); len(got) != 5 {
			t.Errorf("the other session has %d frames, want 5", len(got))
		}
		// A session that goes on is recorded anew.
		record(t, r.Session("acme", "ses_1"), "/", "after")
		if got := read(t, r, "ses_1", Range{}); len(got) != 5 {
			t.Errorf("%d frames after the erasure, want 5", len(got))
		}
		if _, err := r.Erase(t.Context(), ann, "ses_none", "?"); !errors.Is(err, ErrNotFound) {
			t.Errorf("erasing what is not there: %v, want ErrNotFound", err)
		}
	})
}

// A node that holds frames of a session that was erased elsewhere does not
// bring it back.
func TestErasedOnAnotherNode(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		here := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
		there := New(here.guard, here.sealer, here.store.bucket, here.o)
		rec := here.Session("acme", "ses_1")
		record(t, rec, "/", "x")
		if err := here.Flush(t.Context(), "acme", "ses_1"); err != nil {
			t.Fatal(err)
		}
		record(t, rec, "/", "late")
		if _, err := there.Erase(t.Context(), ann, "ses_1", "why"); err != nil {
			t.Fatal(err)
		}
		if err := here.Flush(t.Context(), "acme", "ses_1"); err != nil {
			t.Errorf("flushing frames of an erased recording: %v", err)
		}
		if err := rec.Frame(Frame{Kind: Note}); !errors.Is(err, ErrEnded) {
			t.Errorf("adding to it: %v, want ErrEnded", err)
		}
		if _, err := here.Open(t.Context(), ann, "ses_1"); !errors.Is(err, ErrErased) {
			t.Errorf("reading it: %v, want ErrErased", err)
		}
		if n := here.waiting.Load(); n != 0 {
			t.Errorf("%d bytes are still counted as waiting", n)
		}
	})
}

// Two nodes record one session; its replay is one story.
func TestTwoNodes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		a := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
		b := New(a.guard, a.sealer, a.store.bucket, a.o)
		for i := range 6 {
			r := a
			if i%2 == 1 {
				r = b
			}
			if err := r.Session("acme", "ses_1").Frame(Frame{Kind: Note, Data: []byte{byte(i)}}); err != nil {
				t.Fatal(err)
			}
			clock.Advance(time.Second)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, f := range read(t, a, "ses_1", Range{}) {
			if f.Data[0] != byte(i) {
				t.Errorf("frame %d is what was seen as number %d", i, f.Data[0])
			}
		}
		p, err := a.Open(t.Context(), ann, "ses_1")
		if err != nil || len(p.Recordings()) != 2 {
			t.Fatalf("%d recordings, %v; want 2", len(p.Recordings()), err)
		}
	})
}

// What is stored says nothing: neither the database nor the blobs hold a word
// of what passed, nor a key.
func TestNothingIsStoredInClear(t *testing.T) {
	dir := t.TempDir()
	d, err := db.Open(t.Context(), "sqlite:"+filepath.Join(dir, "estover.db"), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := OpenBucket(t.Context(), filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	r := setup(t, d, bucket, guardtest.AllowAll, Options{FlushEvery: never})
	rec := r.Session("acme", "ses_1")
	const canary = "canary-6f1d0c55-of-a-customer"
	record(t, rec, "/"+canary, canary)
	b := rec.Body(7, Down, HTTPBody, estover.Restricted)
	if _, err := b.Write(bytes.Repeat([]byte(canary), 50_000)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	key := rec.key[:]
	if err := r.End(t.Context(), "acme", "ses_1"); err != nil {
		t.Fatal(err)
	}
	files := 0
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files++
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(canary)) || bytes.Contains(content, key) {
			t.Errorf("%s holds it in clear", filepath.Base(path))
		}
		return err
	})
	if err != nil || files < 4 {
		t.Errorf("%d files were looked at, %v", files, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// The keys of recordings move to a tenant's next data key.
func TestRewrap(t *testing.T) {
	d := dbtest.Open(t)
	r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
	record(t, r.Session("acme", "ses_1"), "/", "x")
	if err := r.End(t.Context(), "acme", "ses_1"); err != nil {
		t.Fatal(err)
	}
	if err := r.sealer.RotateDEK(t.Context(), "acme", seal.Recording); err != nil {
		t.Fatal(err)
	}
	if p, err := r.sealer.Rewrap(t.Context(), "acme"); err != nil || p.Resealed != 1 || len(p.Broken) != 0 {
		t.Fatalf("rewrapped %+v, %v", p, err)
	}
	if got := read(t, r, "ses_1", Range{}); len(got) != 5 {
		t.Errorf("%d frames, want 5", len(got))
	}
}

func TestExportHAR(t *testing.T) {
	d := dbtest.Open(t)
	r := setup(t, d, nil, guardtest.AllowAll, Options{FlushEvery: never})
	rec := r.Session("acme", "ses_1")
	record(t, rec, "/customers?id=1&name=A%20B", `{"name":"Ann"}`)
	if err := rec.Frame(Frame{Kind: Note, Data: []byte(`{"of":"the session"}`)}); err != nil {
		t.Fatal(err)
	}
	s := rec.NewStream()
	for _, f := range []Frame{
		{Dir: Up, Kind: RequestHead, Data: RequestHeadOf("GET", "/img", "HTTP/2.0", http.Header{"Host": {"crm.example:8443"}})},
		{Dir: Down, Kind: ResponseHead, Data: ResponseHeadOf("HTTP/2.0", 200, http.Header{"Content-Type": {"image/png"}})},
	} {
		f.Stream = s
		if err := rec.Frame(f); err != nil {
			t.Fatal(err)
		}
	}
	b := rec.Body(s, Down, HTTPBody, estover.Public)
	if _, err := b.Write(noise(inlineBody + pieceSize + 5)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.ExportHAR(t.Context(), ann, "ses_1", &out); err != nil {
		t.Fatal(err)
	}
	var har struct {
		Log struct {
			Version string
			Creator struct{ Name, Version string }
			Entries []struct {
				StartedDateTime time.Time
				Time            *float64
				Request         struct {
					Method, URL, HTTPVersion string
					Headers, QueryString     []Field
					Cookies                  []Field
					PostData                 *struct{ MimeType, Text string }
					HeadersSize, BodySize    *int64
				}
				Response struct {
					Status                  int
					StatusText, RedirectURL string
					Headers, Cookies        []Field
					Content                 struct {
						Size                              int64
						MimeType, Text, Encoding, Comment string
					}
				}
				Cache   map[string]any
				Timings struct{ Send, Wait, Receive *float64 }
				Estover struct {
					Decision     map[string]any
					ResponseRest *Ref `json:"response_rest"`
				} `json:"_estover"`
			}
		}
	}
	if err := json.Unmarshal(out.Bytes(), &har); err != nil {
		t.Fatalf("%v\n%.500s", err, out.Bytes())
	}
	if har.Log.Version != "1.2" || har.Log.Creator.Name == "" || len(har.Log.Entries) != 2 {
		t.Fatalf("version %q by %q with %d entries, want 1.2 and 2 entries", har.Log.Version, har.Log.Creator.Name, len(har.Log.Entries))
	}
	e := har.Log.Entries[0]
	if e.Request.Method != "POST" || e.Request.HTTPVersion != "HTTP/1.1" || e.Request.PostData == nil || e.Request.PostData.Text != `{"name":"Ann"}` ||
		fmt.Sprint(e.Request.QueryString) != "[{id 1} {name A B}]" || e.Response.Status != 201 || e.Response.Content.Text != `{"ok":true}` ||
		e.Response.StatusText != "Created" || e.Estover.Decision["allow"] != true || e.StartedDateTime.IsZero() || e.Time == nil ||
		e.Request.Cookies == nil || e.Response.Cookies == nil || e.Cache == nil || e.Timings.Send == nil {
		t.Errorf("the first entry is %+v", e)
	}
	e = har.Log.Entries[1]
	if e.Response.Content.Encoding != "base64" || e.Response.Content.Size != inlineBody+pieceSize+5 || e.Estover.ResponseRest == nil ||
		e.Response.Content.Comment == "" || e.Request.URL != "https://crm.example:8443/img" || e.Request.PostData != nil {
		t.Errorf("the second entry has the content %s %d %q", e.Response.Content.Encoding, e.Response.Content.Size, e.Response.Content.Comment)
	}
}

func TestHeads(t *testing.T) {
	h := http.Header{"X-B": {"2", "3"}, "X-A": {"1\r\nX-Evil: yes"}}
	got := string(RequestHeadOf("GET", "https://a/b c", "HTTP/1.1", h))
	if want := "GET https://a/b c HTTP/1.1\r\nX-A: 1  X-Evil: yes\r\nX-B: 2\r\nX-B: 3\r\n\r\n"; got != want {
		t.Errorf("the head is %q, want %q", got, want)
	}
	p, err := ParseHead(ResponseHeadOf("HTTP/1.1", 404, h))
	if err != nil || p.Line != [3]string{"HTTP/1.1", "404", "Not Found"} || len(p.Fields) != 3 || p.Get("x-a") != "1  X-Evil: yes" {
		t.Errorf("read back as %+v, %v", p, err)
	}
	if p, err := ParseHead(ResponseHeadOf("HTTP/1.1", 799, nil)); err != nil || p.Line[1] != "799" {
		t.Errorf("a status without a name: %+v, %v", p, err)
	}
	for _, bad := range []string{"", "GET\r\n\r\n", "GET a HTTP/1.1\r\n", "GET a HTTP/1.1\r\nX\r\n\r\n"} {
		if _, err := ParseHead([]byte(bad)); err == nil {
			t.Errorf("%q was read as a head", bad)
		}
	}
}

func FuzzHead(f *testing.F) {
	f.Add(RequestHeadOf("GET", "https://a/", "HTTP/1.1", http.Header{"A": {"b"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := ParseHead(b); err == nil && h.Line[0] == "" && h.Line[1] == "" && h.Line[2] == "" && len(b) < 6 {
			t.Errorf("%q was read as a head", b)
		}
	})
}
