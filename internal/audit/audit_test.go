package audit

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

const acme estover.TenantID = "acme"

// keys are what a test's logs share, as the nodes of one installation do.
type keys struct {
	aead   cipher.AEAD
	signer ed25519.PrivateKey
	shred  sync.Map // event id → its key is gone
}

func newKeys(t testing.TB) *keys {
	seed := make([]byte, 32)
	_, _ = rand.Read(seed)
	return keysFrom(t, seed)
}

func keysFrom(t testing.TB, seed []byte) *keys {
	block, err := aes.NewCipher(seed)
	fatal(t, err)
	k := &keys{signer: ed25519.NewKeyFromSeed(seed)}
	k.aead, err = cipher.NewGCMWithRandomNonce(block)
	fatal(t, err)
	return k
}

// open is a log in d, as one node has it.
func (k *keys) open(d *db.DB) *Log {
	l := Open(d, Options{
		Seal: func(tenant estover.TenantID, id string, plain []byte) ([]byte, error) {
			return k.aead.Seal(nil, nil, plain, []byte(string(tenant)+"/"+id)), nil
		},
		Open: func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error) {
			if _, gone := k.shred.Load(id); gone {
				return nil, ErrErased
			}
			return k.aead.Open(nil, nil, sealed, []byte(string(tenant)+"/"+id))
		},
		Key:    func(context.Context, estover.TenantID) (crypto.Signer, error) { return k.signer, nil },
		Origin: "estover.example/log",
		Every:  time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	l.run = 32 // so that few events are in the index, and some are not
	return l
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func event(n int) Event {
	return Event{
		ID: fmt.Sprintf("evt_%06d", n), At: time.UnixMicro(1_700_000_000_000_000 + int64(n)).UTC(), Action: "agent.create", Outcome: Done,
		Actor: "user:usr_ada", Target: fmt.Sprintf("agent:agt_%d", n%7), Session: "ses_1", Request: "req_1",
		Detail: map[string]any{"note": fmt.Sprint("number ", n)}, Touches: []string{"agent:agt_1", "session:ses_1"},
	}
}

// write commits events number first to last, several in each transaction.
func write(t testing.TB, l *Log, tenant estover.TenantID, first, last int) {
	t.Helper()
	for first <= last {
		var rows []db.Row
		for ; first <= last && len(rows) < 100; first++ {
			p, err := l.Prepare(tenant, event(first))
			fatal(t, err)
			rows = append(rows, p.Row())
		}
		fatal(t, l.db.Append(t.Context(), db.Append{Tenant: tenant, Rows: rows}))
	}
}

// verified is the outcome of Verify, which has to be good.
func verified(t testing.TB, l *Log, tenant estover.TenantID) *Verification {
	t.Helper()
	v, err := l.Verify(t.Context(), tenant)
	fatal(t, err)
	if !v.OK() {
		t.Fatalf("verifying %s found %+v", v.Origin, v.Findings)
	}
	return v
}

// leaves are the entries of the log in their order.
func leaves(t testing.TB, l *Log, tenant estover.TenantID) (out [][]byte) {
	t.Helper()
	fatal(t, l.db.View(t.Context(), tenant, func(tx *db.Tx) (err error) {
		out, err = readLeaves(t.Context(), tx, 0, 1<<40)
		return err
	}))
	return out
}

// rootOf is the root of a tree of these leaves, as the library computes it.
func rootOf(t testing.TB, leaves [][]byte) tlog.Hash {
	t.Helper()
	var stored []tlog.Hash
	r := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range at {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for i, leaf := range leaves {
		h, err := tlog.StoredHashes(int64(i), leaf, r)
		fatal(t, err)
		stored = append(stored, h...)
	}
	root, err := tlog.TreeHash(int64(len(leaves)), r)
	fatal(t, err)
	return root
}

func TestEvents(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		p, err := l.Prepare(acme, event(1))
		fatal(t, err)
		refused := errors.New("the work failed")
		err = d.Do(t.Context(), acme, func(tx *db.Tx) error { return errors.Join(l.Write(t.Context(), tx, p), refused) })
		if !errors.Is(err, refused) {
			t.Fatal(err)
		}
		view := func(fn func(tx *db.Tx) error) { t.Helper(); fatal(t, d.View(t.Context(), acme, fn)) }
		view(func(tx *db.Tx) error {
			if _, err := l.Find(t.Context(), tx, "evt_000001"); !errors.Is(err, ErrNotFound) {
				t.Errorf("an event whose work was rolled back: %v, want ErrNotFound", err)
			}
			return nil
		})
		fatal(t, d.Do(t.Context(), acme, func(tx *db.Tx) error { return l.Write(t.Context(), tx, p) }))
		write(t, l, acme, 2, 30)
		write(t, l, "other", 1, 3)
		view(func(tx *db.Tx) error {
			e, err := l.Find(t.Context(), tx, "evt_000001")
			fatal(t, err)
			if e.Index != -1 {
				t.Errorf("an event has the place %d before it was sequenced", e.Index)
			}
			e.Leaf = nil
			if diff := cmp.Diff(event(1), e.Event); diff != "" {
				t.Errorf("the event read back:\n%s", diff)
			}
			return nil
		})
		fatal(t, l.Sequence(t.Context(), acme))
		view(func(tx *db.Tx) error {
			e, err := l.Find(t.Context(), tx, "evt_000030")
			fatal(t, err)
			if e.Index != 29 {
				t.Errorf("the last of 30 events has the place %d", e.Index)
			}
			return nil
		})
		if v := verified(t, l, acme); v.Size != 30 || v.Published != 30 || v.Waiting != 0 {
			t.Errorf("verified %+v", v)
		}
	})
}

// The name that somebody asked for may be anything. It is on record all the
// same, in the column and in what is sealed alike.
func TestTextThatIsNone(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		e := event(1)
		e.Target, e.Session, e.Detail = "agent:a\x00\xffb", "\xfe", map[string]any{"x": "\x00\xff"}
		p, err := l.Prepare(acme, e)
		fatal(t, err)
		fatal(t, d.Append(t.Context(), db.Append{Tenant: acme, Rows: []db.Row{p.Row()}}))
		fatal(t, l.Sequence(t.Context(), acme))
		verified(t, l, acme)
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			got, err := l.Find(t.Context(), tx, e.ID)
			if got.Target != "agent:a\uFFFD\uFFFDb" || got.Session != "\uFFFD" {
				t.Errorf("target %q, session %q", got.Target, got.Session)
			}
			return err
		}))
	})
}

// What a filter lets through is found, page by page, whether it has its place
// already or not.
func TestList(t *testing.T) {
	const events = 1300 // in several rounds, one of them full
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		var all []Event
		add := func(n int) {
			var rows []db.Row
			for range n {
				i := len(all)
				e := event(i)
				e.At = e.At.Add(time.Duration(i) * time.Second)
				e.Actor = estover.Subject(fmt.Sprint("agent:agt_", i%3))
				e.Target, e.Session = fmt.Sprint("resource:res_", i%5), ""
				if i%2 == 0 {
					e.Session = fmt.Sprint("ses_", i%4)
				}
				if i%10 == 0 {
					e.Action, e.Outcome = "secret.use", Refused
				}
				all = append(all, e)
				p, err := l.Prepare(acme, e)
				fatal(t, err)
				rows = append(rows, p.Row())
			}
			fatal(t, d.Append(t.Context(), db.Append{Tenant: acme, Rows: rows}))
		}
		filters := []Filter{
			{},
			{Session: "ses_2"},
			{Session: "ses_9"},
			{Actor: "agent:agt_1"},
			{Target: "resource:res_4"},
			{Session: "ses_0", Outcome: Refused},
			{Actor: "agent:agt_2", Target: "resource:res_0", Action: "secret.use"},
			{Action: "secret.use"},
			{Outcome: Failed},
			{Since: event(0).At.Add(500 * time.Second), Until: event(0).At.Add(700 * time.Second)},
			{Since: event(0).At.Add(1000 * time.Second), Actor: "agent:agt_0"},
			{Until: event(0).At.Add(130 * time.Second), Session: "ses_0"},
		}
		check := func() {
			t.Helper()
			fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
				for _, f := range filters {
					var want, got []string
					for i := len(all) - 1; i >= 0; i-- {
						e := all[i]
						if (f.Session == "" || f.Session == e.Session) && (f.Actor == "" || f.Actor == e.Actor) && (f.Target == "" || f.Target == e.Target) &&
							(f.Action == "" || f.Action == e.Action) && (f.Outcome == "" || f.Outcome == e.Outcome) &&
							!e.At.Before(f.Since) && (f.Until.IsZero() || e.At.Before(f.Until)) {
							want = append(want, e.ID)
						}
					}
					for before := int64(0); ; {
						page, next, err := l.List(t.Context(), tx, f, before, 70)
						fatal(t, err)
						for _, e := range page {
							got = append(got, e.ID)
						}
						if next == 0 {
							break
						}
						if before != 0 && (next >= before || len(page) != 70) {
							t.Fatalf("%+v: after %d comes a page of %d before %d", f, before, len(page), next)
						}
						before = next
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%+v:\n%s", f, diff)
					}
				}
				return nil
			}))
		}
		add(100)
		check()
		fatal(t, l.Sequence(t.Context(), acme))
		check()
		for len(all) < events {
			add(40)
			if len(all)%120 == 0 {
				fatal(t, l.Sequence(t.Context(), acme))
			}
		}
		check()
		crash := errors.New("the process died")
		l.fault = func(at string) error {
			if at == "post: between two pieces" {
				return crash
			}
			return nil
		}
		if err := l.Sequence(t.Context(), acme); !errors.Is(err, crash) {
			t.Fatalf("the crash in the middle of a run: %v", err)
		}
		check()
		l.fault = func(string) error { return nil }
		fatal(t, l.Sequence(t.Context(), acme))
		check()
	})
}

// Neither the leaf nor the row in clear holds what the event tells.
func TestLeafIsACommitment(t *testing.T) {
	d := dbtest.Open(t)
	l := newKeys(t).open(d)
	e := event(1)
	e.Detail = map[string]any{"mail": "ada@example.com"}
	a, err := l.Prepare(acme, e)
	fatal(t, err)
	b, err := l.Prepare(acme, e)
	fatal(t, err)
	if string(a.leaf) == string(b.leaf) {
		t.Error("the same event twice has the same leaf: it can be guessed")
	}
	for _, part := range [][]byte{a.leaf, a.payload} {
		for _, word := range []string{"ada@example.com", "usr_ada", "agt_1"} {
			if strings.Contains(string(part), word) {
				t.Errorf("%q stands in clear in %s", word, part)
			}
		}
	}
	e.Leaf = make([]byte, 1<<16)
	if _, err := l.Prepare(acme, e); err == nil {
		t.Error("a leaf of 65,536 bytes was taken")
	}
}

// The tiles and roots that are made hash by hash are those that the library
// makes, also where levels begin.
func TestTree(t *testing.T) {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range at {
			out = append(out, stored[i])
		}
		return out, nil
	})
	var e edge
	tiles := map[[2]int64][]byte{}
	for _, size := range []int64{1, 2, 255, 256, 257, 511, 512, 513, 1000, 65_535, 65_536, 65_537, 66_000} {
		var hashes []byte
		for n := e.size; n < size; n++ {
			h := tlog.RecordHash(fmt.Append(nil, n))
			hs, err := tlog.StoredHashesForRecordHash(n, h, reader)
			fatal(t, err)
			stored, hashes = append(stored, hs...), append(hashes, h[:]...)
		}
		before := e.size
		changed := map[[2]int64]bool{}
		for _, tile := range e.grow(hashes) {
			tiles[[2]int64{int64(tile.level), tile.n}] = tile.hashes
			changed[[2]int64{int64(tile.level), tile.n}] = true
		}
		for _, want := range tlog.NewTiles(tileHeight, before, size) {
			data, err := tlog.ReadTileData(want, reader)
			fatal(t, err)
			at := [2]int64{int64(want.L), want.N}
			if string(tiles[at]) != string(data) || !changed[at] {
				t.Fatalf("from %d to %d: %s is %d bytes, written: %v; want %d bytes", before, size, want.Path(), len(tiles[at]), changed[at], len(data))
			}
			delete(changed, at)
		}
		if len(changed) > 0 {
			t.Errorf("from %d to %d: tiles %v were written without need", before, size, changed)
		}
		root, err := e.root()
		fatal(t, err)
		want, err := tlog.TreeHash(size, reader)
		fatal(t, err)
		if root != want {
			t.Fatalf("the root of %d leaves is %s, want %s", size, root, want)
		}
	}
}

// A stranger's client reads our log while it grows, and finds every tree the
// continuation of the one before.
func TestStrangersRead(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		s := httptest.NewServer(l.Handler(nil))
		defer s.Close()
		root, err := url.Parse(s.URL + "/acme/")
		fatal(t, err)
		f, err := client.NewHTTPFetcher(root, s.Client())
		fatal(t, err)
		vkey, err := l.VerifierKey(t.Context(), acme)
		fatal(t, err)
		v, err := note.NewVerifier(vkey)
		fatal(t, err)
		origin := l.Origin(acme)
		var tracker *client.LogStateTracker
		written := 0
		for _, size := range []int{1, 2, 255, 256, 257, 700} {
			write(t, l, acme, written+1, size)
			written = size
			fatal(t, l.Sequence(t.Context(), acme))
			if tracker == nil {
				tracker, err = client.NewLogStateTracker(t.Context(), f.ReadTile, nil, v, origin, client.UnilateralConsensus(f.ReadCheckpoint))
			} else {
				_, _, _, err = tracker.Update(t.Context())
			}
			if err != nil {
				t.Fatalf("at %d entries: %v", size, err)
			}
			cp := tracker.Latest()
			if cp.Size != uint64(size) {
				t.Fatalf("the checkpoint covers %d entries, want %d", cp.Size, size)
			}
			if want := rootOf(t, leaves(t, l, acme)); tlog.Hash(cp.Hash) != want {
				t.Fatalf("at %d entries: root %x, want %s", size, cp.Hash, want)
			}
			pb, err := client.NewProofBuilder(t.Context(), cp.Size, f.ReadTile)
			fatal(t, err)
			theirs, err := pb.InclusionProof(t.Context(), cp.Size/2)
			fatal(t, err)
			ours, err := l.Prove(t.Context(), acme, int64(cp.Size/2))
			fatal(t, err)
			if len(theirs) != len(ours[0].Hashes) {
				t.Fatalf("the proof has %d hashes, theirs %d", len(ours[0].Hashes), len(theirs))
			}
			for i, h := range ours[0].Hashes {
				if h != tlog.Hash(theirs[i]) {
					t.Fatalf("hash %d of the proof differs from theirs", i)
				}
			}
		}
		hasher := func(b []byte) ([][]byte, error) {
			var bundle api.EntryBundle
			if err := bundle.UnmarshalText(b); err != nil {
				return nil, err
			}
			var out [][]byte
			for _, e := range bundle.Entries {
				h := tlog.RecordHash(e)
				out = append(out, h[:])
			}
			return out, nil
		}
		if err := fsck.New(origin, v, f, hasher, fsck.Opts{N: 2}).Check(t.Context()); err != nil {
			t.Errorf("their fsck: %v", err)
		}
	})
}

func TestHandler(t *testing.T) {
	d := dbtest.Open(t)
	l := newKeys(t).open(d)
	h := l.Handler(nil)
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w
	}
	if w := get("/acme/checkpoint"); w.Code != 404 {
		t.Errorf("the checkpoint of no log: %d", w.Code)
	}
	write(t, l, acme, 1, 300)
	fatal(t, l.Sequence(t.Context(), acme))
	write(t, l, acme, 301, 310)
	n, err := l.place(t.Context(), acme) // and not published
	fatal(t, err)
	if n != 10 {
		t.Fatalf("%d events got a place, want 10", n)
	}
	for path, want := range map[string]int{
		"/acme/checkpoint": 200, "/acme/tile/0/000": 200, "/acme/tile/0/000.p/7": 200, "/acme/tile/0/001.p/44": 200, "/acme/tile/1/000.p/1": 200,
		"/acme/tile/entries/000": 200, "/acme/tile/entries/001.p/44": 200,
		"/other/checkpoint": 404, "/other/tile/0/000": 404, "/acme/tile/0/001": 404, "/acme/tile/0/001.p/45": 404, "/acme/tile/entries/001.p/45": 404,
		"/acme/tile/1/000.p/2": 404, "/acme/tile/data/000": 404, "/acme/tile/0/000.p/0": 404, "/acme/tile/0/000.p/256": 404, "/acme/tile/0/0": 404,
		"/acme/tile/00/000": 404, "/acme/tile/64/000": 404, "/acme/tile/0/x000/000": 404, "/acme/tile/-1/000": 404, "/acme/tile/0/../0/000": 307,
	} {
		w := get(path)
		if w.Code != want {
			t.Errorf("GET %s: %d, want %d", path, w.Code, want)
		}
		cache := w.Header().Get("Cache-Control")
		if forEver := strings.Contains(cache, "immutable"); forEver != (w.Code == 200 && path != "/acme/checkpoint") {
			t.Errorf("GET %s: Cache-Control: %s", path, cache)
		}
	}
	if n := get("/acme/tile/0/000.p/7").Body.Len(); n != 7*32 {
		t.Errorf("a tile of width 7 has %d bytes", n)
	}
	// Entries may be for some alone; what shows nothing of them is for everybody.
	h = l.Handler(func(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) bool {
		if tenant == acme && r.Header.Get("Authorization") == "me" {
			return true
		}
		w.WriteHeader(http.StatusForbidden)
		return false
	})
	for path, want := range map[string]int{"/acme/checkpoint": 200, "/acme/tile/0/000": 200, "/acme/tile/entries/000": 403, "/acme/tile/%65ntries/001.p/44": 403, "/acme/tile/entries%2F000": 403} {
		if w := get(path); w.Code != want {
			t.Errorf("GET %s by a stranger: %d, want %d", path, w.Code, want)
		}
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/acme/tile/entries/000", nil)
	r.Header.Set("Authorization", "me")
	if h.ServeHTTP(w, r); w.Code != 200 || !strings.HasPrefix(w.Header().Get("Cache-Control"), "private") {
		t.Errorf("entries for whom they are: %d %v, want 200 and no shared cache", w.Code, w.Header())
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/acme/checkpoint", nil))
	if w.Code != 405 {
		t.Errorf("POST: %d, want 405", w.Code)
	}
}

// The same leaves make the same root on every engine, which is the library's.
func TestSameRoot(t *testing.T) {
	roots := map[db.Engine]tlog.Hash{}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		var want [][]byte
		for n := range 300 {
			e := event(n)
			e.Leaf = fmt.Appendf(nil, "leaf %d", n)
			want = append(want, e.Leaf)
			p, err := l.Prepare(acme, e)
			fatal(t, err)
			fatal(t, d.Append(t.Context(), db.Append{Tenant: acme, Rows: []db.Row{p.Row()}}))
			if n%100 == 50 {
				fatal(t, l.Sequence(t.Context(), acme))
			}
		}
		fatal(t, l.Sequence(t.Context(), acme))
		roots[d.Engine()] = verified(t, l, acme).Root
		if r := rootOf(t, want); roots[d.Engine()] != r {
			t.Errorf("the root is %s, want %s", roots[d.Engine()], r)
		}
	})
	if roots[db.SQLite] != roots[db.Postgres] {
		t.Errorf("roots differ: %v", roots)
	}
}

// Wherever a sequencer dies, the next one goes on: every event has one place,
// and what was published stays true.
func TestCrash(t *testing.T) {
	steps := []string{
		"sequence: before the transaction", "sequence: half way through", "sequence: after the commit",
		"publish: before signing", "publish: after signing", "publish: after the commit", "post: before the transaction", "post: between two pieces",
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newKeys(t)
		written := 0
		var published []*Verification
		for _, step := range append(steps, steps...) {
			write(t, k.open(d), acme, written+1, written+90)
			written += 90
			crash := errors.New("the process died")
			dying := k.open(d)
			died := false
			dying.fault = func(at string) error {
				if at == step {
					died = true
					return crash
				}
				return nil
			}
			if err := dying.Sequence(t.Context(), acme); !errors.Is(err, crash) || !died {
				t.Fatalf("the crash at %q: %v", step, err)
			}
			next := k.open(d)
			v := verified(t, next, acme) // also in the middle of things
			published = append(published, v)
			if strings.HasPrefix(step, "sequence: after") || strings.HasPrefix(step, "publish") {
				if v.Size != int64(written) || v.Waiting != 0 {
					t.Errorf("after a crash at %q: %+v", step, v)
				}
			}
		}
		l := k.open(d)
		fatal(t, l.Sequence(t.Context(), acme))
		v := verified(t, l, acme)
		if v.Size != int64(written) || v.Published != int64(written) || v.Waiting != 0 {
			t.Errorf("in the end: %+v, want %d entries", v, written)
		}
		all := leaves(t, l, acme)
		if want := rootOf(t, all); v.Root != want {
			t.Errorf("the root is %s, want %s", v.Root, want)
		}
		for _, before := range published {
			if before.Published == 0 {
				continue
			}
			p, err := l.ProveGrowth(t.Context(), acme, before.Published, v.Published)
			fatal(t, err)
			then := rootOf(t, all[:before.Published])
			if err := tlog.CheckTree(p, v.Published, v.Root, before.Published, then); err != nil {
				t.Errorf("the tree of %d is not the beginning of that of %d: %v", before.Published, v.Published, err)
			}
			if !strings.Contains(before.Checkpoint, then.String()) {
				t.Errorf("the checkpoint of %d was of another tree", before.Published)
			}
		}
	})
}

// Two nodes sequence while 64 goroutines write: every event gets exactly one
// place, and there are no gaps.
func TestRace(t *testing.T) {
	const writers, each = 64, 12
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newKeys(t)
		ctx, stop := context.WithCancel(t.Context())
		var nodes, work sync.WaitGroup
		for range 2 {
			l := k.open(d)
			nodes.Go(func() {
				if err := l.Run(ctx); err != nil {
					t.Error(err)
				}
			})
			nodes.Go(func() { // and one that is never beaten for long
				for ctx.Err() == nil {
					if err := l.Sequence(ctx, acme); err != nil && !errors.Is(err, errBeaten) && ctx.Err() == nil {
						t.Error(err)
						return
					}
				}
			})
		}
		l := k.open(d)
		for w := range writers {
			work.Go(func() {
				for i := range each {
					p, err := l.Prepare(acme, event(w*each+i))
					if err == nil && i%2 == 0 {
						err = d.Append(ctx, db.Append{Tenant: acme, Rows: []db.Row{p.Row()}})
					} else if err == nil {
						err = d.Do(ctx, acme, func(tx *db.Tx) error { return l.Write(ctx, tx, p) })
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		work.Wait()
		stop()
		nodes.Wait()
		fatal(t, l.Sequence(t.Context(), acme))
		v := verified(t, l, acme)
		if v.Size != writers*each || v.Waiting != 0 {
			t.Errorf("verified %+v, want %d entries", v, writers*each)
		}
		if want := rootOf(t, leaves(t, l, acme)); v.Root != want {
			t.Errorf("the root is %s, want %s", v.Root, want)
		}
	})
}

// Run publishes by itself, after a wake and after another node's write.
func TestRun(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newKeys(t)
		l := k.open(d)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		write(t, k.open(d), acme, 1, 5)
		write(t, k.open(d), "other", 1, 2)
		for _, tenant := range []estover.TenantID{acme, "other"} {
			eventually(t, func() bool { _, err := l.published(t.Context(), tenant); return err == nil })
		}
		write(t, l, acme, 6, 9)
		l.Wake()
		eventually(t, func() bool { p, err := l.published(t.Context(), acme); return err == nil && p.signedSize == 9 })
		stop()
		fatal(t, <-done)
	})
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen in a minute")
		}
	}
}

// Whatever is changed behind the log's back is found.
func TestTampering(t *testing.T) {
	d := dbtest.Open(t)
	l := newKeys(t).open(d)
	const seven = " where tenant_id = $1 and id = 'evt_000007'"
	for name, change := range map[string]func(exec func(query string, args ...any), p, forged Prepared){
		"a leaf": func(exec func(string, ...any), p, _ Prepared) { exec("update audit set leaf = $2"+seven, p.leaf) },
		"a leaf's hash": func(exec func(string, ...any), p, _ Prepared) {
			exec("update audit set leaf_hash = $2"+seven, p.hash[:])
		},
		"a leaf with its hash": func(exec func(string, ...any), p, _ Prepared) {
			exec("update audit set leaf = $2, leaf_hash = $3"+seven, p.leaf, p.hash[:])
		},
		"a whole row": func(exec func(string, ...any), _, f Prepared) {
			exec("update audit set leaf = $2, leaf_hash = $3, payload = $4, actor = 'user:usr_eve'"+seven, f.leaf, f.hash[:], f.payload)
		},
		"the content": func(exec func(string, ...any), p, _ Prepared) { exec("update audit set payload = $2"+seven, p.payload) },
		"the content, unsealed": func(exec func(string, ...any), _, _ Prepared) {
			exec("update audit set payload = $2"+seven, []byte("x"))
		},
		"the content and the column": func(exec func(string, ...any), _, f Prepared) {
			exec("update audit set payload = $2, actor = 'user:usr_eve'"+seven, f.payload)
		},
		"the actor": func(exec func(string, ...any), _, _ Prepared) {
			exec("update audit set actor = 'user:usr_eve'" + seven)
		},
		"the target":  func(exec func(string, ...any), _, _ Prepared) { exec("update audit set target = ''" + seven) },
		"the session": func(exec func(string, ...any), _, _ Prepared) { exec("update audit set session_id = ''" + seven) },
		"the outcome": func(exec func(string, ...any), _, _ Prepared) { exec("update audit set outcome = 'refused'" + seven) },
		"the time":    func(exec func(string, ...any), _, _ Prepared) { exec("update audit set at = at + 1" + seven) },
		"the id":      func(exec func(string, ...any), _, _ Prepared) { exec("update audit set id = 'evt_x'" + seven) },
		"the order": func(exec func(string, ...any), _, _ Prepared) {
			exec("update audit set idx = 1000 where tenant_id = $1 and idx = 5")
			exec("update audit set idx = 5 where tenant_id = $1 and idx = 6")
			exec("update audit set idx = 6 where tenant_id = $1 and idx = 1000")
		},
		"a row that is gone": func(exec func(string, ...any), _, _ Prepared) { exec("delete from audit" + seven) },
		"the last row that is gone": func(exec func(string, ...any), _, _ Prepared) {
			exec("delete from audit where tenant_id = $1 and idx = 269")
		},
		"an event that lost its place": func(exec func(string, ...any), _, _ Prepared) { exec("update audit set idx = null" + seven) },
		"what a session is found by": func(exec func(string, ...any), _, _ Prepared) {
			exec("delete from audit_post where tenant_id = $1 and ref = 'session ses_1'")
		},
		"what a target is found by": func(exec func(string, ...any), _, _ Prepared) {
			exec("update audit_post set ref = 'target agent:agt_x' where tenant_id = $1 and ref = 'target agent:agt_3'")
		},
		"a tile": func(exec func(string, ...any), p, _ Prepared) {
			exec("update audit_tile set hashes = $2 where tenant_id = $1 and level = 1", p.hash[:])
		},
		"a tile that is gone": func(exec func(string, ...any), _, _ Prepared) {
			exec("delete from audit_tile where tenant_id = $1 and level = 0 and n = 0")
		},
		"the root": func(exec func(string, ...any), p, _ Prepared) {
			exec("update audit_tree set root = $2 where tenant_id = $1", p.hash[:])
		},
		"the signed root": func(exec func(string, ...any), p, _ Prepared) {
			exec("update audit_tree set signed_root = $2 where tenant_id = $1", p.hash[:])
		},
		"the published size": func(exec func(string, ...any), _, _ Prepared) {
			exec("update audit_tree set signed_size = 269 where tenant_id = $1")
		},
		"the checkpoint": func(exec func(string, ...any), _, _ Prepared) {
			exec("update audit_tree set checkpoint = replace(checkpoint, 'estover', 'evil') where tenant_id = $1")
		},
	} {
		tenant := estover.TenantID(strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(name))
		write(t, l, tenant, 1, 270)
		fatal(t, l.Sequence(t.Context(), tenant))
		verified(t, l, tenant)
		same, err := l.Prepare(tenant, event(7)) // the same event, with another salt
		fatal(t, err)
		e := event(7)
		e.Actor = "user:usr_eve"
		forged, err := l.Prepare(tenant, e)
		fatal(t, err)
		fatal(t, d.Do(t.Context(), tenant, func(tx *db.Tx) error {
			change(func(query string, args ...any) {
				if n, err := tx.Exec(t.Context(), query, append([]any{tenant}, args...)...); err != nil || n == 0 {
					t.Fatalf("%s: %q changed %d rows: %v", name, query, n, err)
				}
			}, same, forged)
			return nil
		}))
		v, err := l.Verify(t.Context(), tenant)
		fatal(t, err)
		if v.OK() {
			t.Errorf("%s was changed, and Verify found nothing", name)
		}
	}
}

// A damaged tree is neither added to nor used for a proof.
func TestDamaged(t *testing.T) {
	d := dbtest.Open(t)
	l := newKeys(t).open(d)
	write(t, l, acme, 1, 300)
	fatal(t, l.Sequence(t.Context(), acme))
	fatal(t, d.Do(t.Context(), acme, func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), "update audit_tile set hashes = $2 where tenant_id = $1 and level = 1", acme, make([]byte, 32))
		return err
	}))
	if _, err := l.Prove(t.Context(), acme, 7); !errors.Is(err, ErrDamaged) {
		t.Errorf("a proof from a damaged tile: %v, want ErrDamaged", err)
	}
	write(t, l, acme, 301, 301)
	if err := l.Sequence(t.Context(), acme); !errors.Is(err, ErrDamaged) {
		t.Errorf("adding to a damaged tree: %v, want ErrDamaged", err)
	}
}

func TestProve(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		if _, err := l.Prove(t.Context(), acme, 0); !errors.Is(err, ErrNotPublished) {
			t.Errorf("a proof before there is a log: %v, want ErrNotPublished", err)
		}
		write(t, l, acme, 1, 300)
		fatal(t, l.Sequence(t.Context(), acme))
		all := leaves(t, l, acme)
		root := rootOf(t, all)
		proofs, err := l.Prove(t.Context(), acme, 0, 255, 256, 299)
		fatal(t, err)
		for _, p := range proofs {
			if err := tlog.CheckRecord(p.Hashes, p.Size, root, p.Index, tlog.RecordHash(all[p.Index])); err != nil {
				t.Errorf("the proof of entry %d: %v", p.Index, err)
			}
		}
		write(t, l, acme, 301, 400)
		if _, err := l.Prove(t.Context(), acme, 300); !errors.Is(err, ErrNotPublished) {
			t.Errorf("a proof of an entry that is not published: %v, want ErrNotPublished", err)
		}
		fatal(t, l.Sequence(t.Context(), acme))
		later := rootOf(t, leaves(t, l, acme))
		p, err := l.ProveGrowth(t.Context(), acme, 300, 400)
		fatal(t, err)
		if err := tlog.CheckTree(p, 400, later, 300, root); err != nil {
			t.Errorf("the proof of growth: %v", err)
		}
		if _, err := l.ProveGrowth(t.Context(), acme, 300, 401); !errors.Is(err, ErrNotPublished) {
			t.Errorf("growth beyond the published size: %v, want ErrNotPublished", err)
		}
	})
}

// An event is erased by its payload or by its key. The log verifies, and what
// is erased is gone.
func TestErase(t *testing.T) {
	d := dbtest.Open(t)
	k := newKeys(t)
	l := k.open(d)
	write(t, l, acme, 1, 20)
	fatal(t, l.Sequence(t.Context(), acme))
	fatal(t, d.Do(t.Context(), acme, func(tx *db.Tx) error { return l.Erase(t.Context(), tx, "evt_000003") }))
	k.shred.Store("evt_000004", true)
	if err := d.Do(t.Context(), acme, func(tx *db.Tx) error { return l.Erase(t.Context(), tx, "evt_none") }); !errors.Is(err, ErrNotFound) {
		t.Errorf("erasing what is not there: %v, want ErrNotFound", err)
	}
	if v := verified(t, l, acme); v.Erased != 2 || v.Size != 20 {
		t.Errorf("verified %+v, want two erased", v)
	}
	fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
		for _, id := range []string{"evt_000003", "evt_000004"} {
			e, err := l.Find(t.Context(), tx, id)
			fatal(t, err)
			if !e.Erased || e.Detail != nil || e.Payload != nil || e.Action != "agent.create" {
				t.Errorf("an erased event reads %+v", e)
			}
		}
		return nil
	}))
}

// A follower sees every event in the log's order, at least once, whatever
// happens to it on the way.
func TestFollow(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newKeys(t)
		l := k.open(d)
		write(t, l, acme, 1, 700)
		write(t, l, "other", 1, 10)
		fatal(t, l.Sequence(t.Context(), acme))
		fatal(t, l.Sequence(t.Context(), "other"))

		seen := map[estover.TenantID][]int64{}
		repeated := 0
		take := func(tenant estover.TenantID, events []Entry) {
			for _, e := range events {
				got := seen[tenant]
				if e.Index > int64(len(got)) {
					t.Fatalf("%s: event %d came when %d was due", tenant, e.Index, len(got))
				}
				if e.Index < int64(len(got)) {
					repeated++
					continue
				}
				if e.Detail["note"] == nil || len(e.Touches) != 2 {
					t.Errorf("%s: event %d came as %+v", tenant, e.Index, e.Event)
				}
				seen[tenant] = append(got, e.Index)
			}
		}
		crash := errors.New("the process died")
		for life := range 3 {
			l := k.open(d)
			ctx, stop := context.WithCancel(t.Context())
			l.fault = func(step string) error {
				if step == "follow: before the cursor" && life < 2 && len(seen[acme]) > 256*life {
					stop()
					return crash
				}
				return nil
			}
			fatal(t, l.Follow(ctx, "provision", nil, func(_ context.Context, tenant estover.TenantID, events []Entry) error {
				take(tenant, events)
				if len(seen[acme]) == 700 && len(seen["other"]) == 10 && life == 2 {
					stop()
				}
				return nil
			}))
			stop()
		}
		if len(seen[acme]) != 700 || len(seen["other"]) != 10 || repeated == 0 {
			t.Errorf("%d and %d events came, %d of them twice; want 700 and 10, some twice", len(seen[acme]), len(seen["other"]), repeated)
		}
	})
}

// Whoever follows one tenant's log begins where it was begun, and has nothing once
// that is forgotten: not what comes, and not the log from its first event on.
func TestFollowTenant(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		write(t, l, acme, 1, 3)
		fatal(t, l.Sequence(t.Context(), acme))
		place := func(fn func(ctx context.Context, tx *db.Tx, name string) error) {
			t.Helper()
			fatal(t, d.Do(t.Context(), acme, func(tx *db.Tx) error { return fn(t.Context(), tx, "device") }))
		}
		var came []int64
		f := follower{l, acme, "device", nil, func(_ context.Context, _ estover.TenantID, events []Entry) error {
			for _, e := range events {
				came = append(came, e.Index)
			}
			if len(came) == 2 { // while the second batch is written
				place(l.Forget)
			}
			return nil
		}, map[estover.TenantID]trouble{}}
		look := func() {
			t.Helper()
			if _, err := f.once(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		look()
		if len(came) != 0 {
			t.Errorf("without a place came %v", came)
		}
		place(l.Begin)
		for n := range 3 {
			write(t, l, acme, 4+n, 4+n)
			fatal(t, l.Sequence(t.Context(), acme))
			look()
			if want := []int64{3, 4}[:min(n+1, 2)]; !slices.Equal(came, want) {
				t.Fatalf("after %d more came %v, want %v", n+1, came, want)
			}
		}
		var places int
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select count(*) from audit_cursor where tenant_id = $1", tx.Tenant()).Scan(&places)
		}))
		if places != 0 {
			t.Error("a place that was forgotten is back")
		}
	})
}

// One tenant's failing events hold up nobody else's, and come again until
// they are taken; another follower has its own place.
func TestFollowTrouble(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		write(t, l, acme, 1, 3)
		fatal(t, l.Sequence(t.Context(), acme))
		attempts := 0
		others := make(chan int, 100)
		done := make(chan error)
		go func() {
			done <- l.Follow(ctx, "notify", nil, func(_ context.Context, tenant estover.TenantID, events []Entry) error {
				if tenant == "other" {
					others <- len(events)
					return nil
				}
				if attempts++; attempts < 3 {
					return errors.New("not yet")
				}
				if len(events) != 3 || events[0].Index != 0 {
					t.Errorf("in the end came %d events from %d on", len(events), events[0].Index)
				}
				stop()
				return nil
			})
		}()
		write(t, l, "other", 1, 2)
		fatal(t, l.Sequence(t.Context(), "other"))
		if n := <-others; n != 2 {
			t.Errorf("the other tenant's events: %d, want 2", n)
		}
		fatal(t, <-done)
		if attempts != 3 {
			t.Errorf("%d attempts, want 3", attempts)
		}
		ctx, stop = context.WithCancel(t.Context())
		fatal(t, l.Follow(ctx, "another", nil, func(_ context.Context, _ estover.TenantID, events []Entry) error {
			if events[0].Index != 0 {
				t.Errorf("another follower begins at %d", events[0].Index)
			}
			stop()
			return nil
		}))
	})
}

// A follower gets the events that it wants, also while it wants none.
func TestFollowWants(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		add := func(action string) {
			t.Helper()
			fatal(t, d.Do(t.Context(), acme, func(tx *db.Tx) error {
				p, err := l.Prepare(acme, Event{ID: NewID(), Action: action, Outcome: Done, Actor: "user:usr_ann", At: tx.Now()})
				if err != nil {
					return err
				}
				return l.Write(t.Context(), tx, p)
			}))
			fatal(t, l.Sequence(t.Context(), acme))
		}
		caughtUp := func() bool {
			behindOf := 0
			fatal(t, d.View(t.Context(), "", func(tx *db.Tx) error {
				logs, err := behind(t.Context(), tx, "some")
				behindOf = len(logs)
				return err
			}))
			return behindOf == 0
		}
		var mu sync.Mutex
		var seen []string
		wants := func(action string) bool { return strings.HasPrefix(action, "access.") }
		listening := true
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- l.Follow(ctx, "some", func(context.Context, estover.TenantID) (func(string) bool, error) {
				mu.Lock()
				defer mu.Unlock()
				if !listening {
					return nil, nil
				}
				return wants, nil
			}, func(_ context.Context, _ estover.TenantID, events []Entry) error {
				mu.Lock()
				defer mu.Unlock()
				for _, e := range events {
					seen = append(seen, e.Action)
				}
				return nil
			})
		}()
		for _, action := range []string{"token.issue", "access.request", "gateway.call", "access.approve"} {
			add(action)
		}
		for !caughtUp() {
			time.Sleep(time.Millisecond)
		}
		mu.Lock()
		listening = false
		mu.Unlock()
		add("access.deny")
		for !caughtUp() {
			time.Sleep(time.Millisecond)
		}
		mu.Lock()
		listening = true
		mu.Unlock()
		add("access.cancel")
		for !caughtUp() {
			time.Sleep(time.Millisecond)
		}
		stop()
		fatal(t, <-done)
		if want := []string{"access.request", "access.approve", "access.cancel"}; !slices.Equal(seen, want) {
			t.Errorf("the follower was given %q, want %q", seen, want)
		}
	})
}

// What is wanted of a long log comes once each and in order, wherever it stands in
// packs and in what is looked over at once.
func TestFollowSkips(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		const all = followOver + 1000
		wanted := []int64{0, 1, 63, 64, 300, 300 + followBatch - 1, 300 + followBatch, 1000, followOver - 1, followOver, all - 1}
		for n := int64(0); n < all; n += 128 {
			a := db.Append{Tenant: acme}
			for i := n; i < min(n+128, all); i++ {
				e := Event{ID: NewID(), Action: "gateway.call", Outcome: Done, Actor: "user:usr_ann", At: d.Now()}
				if slices.Contains(wanted, i) {
					e.Action = "incident.open"
				}
				p, err := l.Prepare(acme, e)
				fatal(t, err)
				a.Rows = append(a.Rows, p.Row())
			}
			fatal(t, d.Append(t.Context(), a))
		}
		fatal(t, l.Sequence(t.Context(), acme))
		var seen []int64
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		wants := func(context.Context, estover.TenantID) (func(string) bool, error) {
			return func(action string) bool { return action == "incident.open" }, nil
		}
		fatal(t, l.Follow(ctx, "some", wants, func(_ context.Context, _ estover.TenantID, events []Entry) error {
			for _, e := range events {
				seen = append(seen, e.Index)
			}
			if seen[len(seen)-1] == all-1 {
				stop()
			}
			return nil
		}))
		if !slices.Equal(seen, wanted) {
			t.Errorf("events at %v came, want %v", seen, wanted)
		}
	})
}

// Tail tells every node what an event made stale, once.
func TestTail(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newKeys(t)
		l := k.open(d)
		ctx, stop := context.WithCancel(t.Context())
		heard := make(chan string, 100)
		done := make(chan error)
		go func() {
			done <- l.Tail(ctx, time.Millisecond, func(tenant estover.TenantID, touches []string) {
				heard <- fmt.Sprint(tenant, touches)
			}, nil)
		}()
		for n := range 5 {
			e := event(n)
			e.At, e.Touches = d.Now(), []string{fmt.Sprintf("agent:agt_%d", n)}
			p, err := k.open(d).Prepare(acme, e)
			fatal(t, err)
			fatal(t, d.Append(t.Context(), db.Append{Tenant: acme, Rows: []db.Row{p.Row()}}))
			if got, want := <-heard, fmt.Sprintf("acme[agent:agt_%d]", n); got != want {
				t.Errorf("heard %s, want %s", got, want)
			}
		}
		stop()
		fatal(t, <-done)
		if len(heard) > 0 {
			t.Errorf("heard once more: %s", <-heard)
		}
	})
}

func TestHeartbeat(t *testing.T) {
	d := dbtest.Open(t)
	l := newKeys(t).open(d)
	e, err := Heartbeat{At: d.Now(), Gateway: "gw_1", Boot: "b", Intents: 7, Outcomes: 6, Refusals: 2, Spooled: 1}.Event()
	fatal(t, err)
	p, err := l.Prepare(acme, e)
	fatal(t, err)
	fatal(t, d.Append(t.Context(), db.Append{Tenant: acme, Rows: []db.Row{p.Row()}}))
	fatal(t, l.Sequence(t.Context(), acme))
	verified(t, l, acme)
	if leaf := string(leaves(t, l, acme)[0]); !strings.Contains(leaf, `"intents":7,"outcomes":6,"refusals":2,"spooled":1`) {
		t.Errorf("the leaf of a heartbeat: %s", leaf)
	}
}

// A statement that is a leaf becomes a receipt that verifies offline.
func TestReceipt(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		pub, key, err := ed25519.GenerateKey(nil)
		fatal(t, err)
		gateway, err := attest.NewSigner(key)
		fatal(t, err)
		write(t, l, acme, 1, 5)
		salt := attest.NewSalt()
		statement := (&attest.Statement{
			Subjects: []attest.Subject{{Name: attest.Request, Digest: attest.Commit(salt, []byte("GET /"))}},
			Predicate: &attest.Action{
				ID: "call_1", Tenant: string(acme), Time: time.Now(), Seq: 1, Agent: attest.Agent{ID: "agt_1", Proof: attest.AgentProof{Kind: attest.ByMTLS, Digest: attest.Sum([]byte("cert"))}},
				Grant: attest.GrantRef{Digest: attest.Sum([]byte("grant"))}, Decision: attest.Decision{Result: attest.Allow, Bundle: attest.Sum([]byte("bundle"))},
				Recording: attest.Recording{Session: "ses_1"},
			},
		}).AppendJSON(nil)
		e := event(6)
		e.Leaf = statement
		p, err := l.Prepare(acme, e)
		fatal(t, err)
		fatal(t, d.Append(t.Context(), db.Append{Tenant: acme, Rows: []db.Row{p.Row()}}))
		fatal(t, l.Sequence(t.Context(), acme))
		verified(t, l, acme)
		proofs, err := l.Prove(t.Context(), acme, 5)
		fatal(t, err)
		envelope, err := gateway.Sign(t.Context(), statement)
		fatal(t, err)
		file, err := attest.Receipt{Entry: attest.Entry{Envelope: envelope, Proof: attest.Proof(5, proofs[0].Hashes, proofs[0].Checkpoint)}}.Marshal()
		fatal(t, err)
		logKey, err := l.VerifierKey(t.Context(), acme)
		fatal(t, err)
		gatewayKey, err := attest.VerifierKey("gateway", pub)
		fatal(t, err)
		trust, err := attest.ParseTrust(fmt.Appendf(nil, "log %s\ngateway %s\nquorum none\n", logKey, gatewayKey))
		fatal(t, err)
		if r := attest.Verify(file, trust); !r.OK() {
			t.Errorf("the receipt does not verify:\n%s", r)
		}
	})
}
