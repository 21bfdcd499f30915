package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"

	logformat "github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/internal/db"
)

// A Finding is something in a log that is not as it should be.
type Finding struct {
	Index int64  `json:"index"` // of the entry; -1 for the log as a whole
	Event string `json:"event,omitempty"`
	What  string `json:"what"`
}

// A Verification is the outcome of [Log.Verify].
type Verification struct {
	Tenant     estover.TenantID `json:"tenant"`
	Origin     string           `json:"origin"`
	Size       int64            `json:"size"`       // entries that were verified
	Published  int64            `json:"published"`  // entries that the checkpoint covers
	Waiting    int64            `json:"waiting"`    // events without a place
	Erased     int64            `json:"erased"`     // entries whose content is gone
	Root       tlog.Hash        `json:"root"`       // of the tree of Size entries
	Checkpoint string           `json:"checkpoint"` // as it is published
	Findings   []Finding        `json:"findings"`   // the first hundred
}

// OK reports whether everything is as it should be.
func (v *Verification) OK() bool { return len(v.Findings) == 0 }

// maxFindings is how many findings are told of one log.
const maxFindings = 100

func (v *Verification) found(index int64, event, format string, args ...any) {
	if len(v.Findings) < maxFindings {
		v.Findings = append(v.Findings, Finding{index, event, fmt.Sprintf(format, args...)})
	}
}

// Tenants are those that have a log.
func (l *Log) Tenants(ctx context.Context) (out []estover.TenantID, err error) {
	err = l.db.View(ctx, "", func(tx *db.Tx) (err error) {
		out, err = withTree(ctx, tx)
		return err
	})
	return out, err
}

// verifyBatch is how many entries are read at once.
const verifyBatch = 1024

// Verify checks a tenant's whole log: every leaf against its hash, its place
// and the event that it commits to, the event against the columns by which it
// is searched, the tree and each of its tiles, and the checkpoint's signature.
// An error says that it could not be done; what is wrong with the log is a
// finding.
func (l *Log) Verify(ctx context.Context, tenant estover.TenantID) (*Verification, error) {
	v := &Verification{Tenant: tenant, Origin: l.Origin(tenant)}
	var t tree
	err := l.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
		if t, err = readTree(ctx, tx); err != nil {
			return err
		}
		v.Waiting, err = waitingCount(ctx, tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	v.Size, v.Published, v.Checkpoint = t.size, t.signedSize, t.checkpoint
	var e edge
	search := newSearchSum()
	for e.size < t.size {
		end := min(e.size+verifyBatch, t.size)
		if e.size < t.signedSize {
			end = min(end, t.signedSize) // so that the signed root is seen on the way
		}
		if err := l.verifyRange(ctx, v, &e, search, tenant, end, t.posted); err != nil {
			return nil, err
		}
		root, err := e.root()
		if err != nil {
			return nil, err
		}
		if e.size == t.signedSize && root != t.signedRoot {
			v.found(-1, "", "The entries do not make the root that was signed for the tree of %d.", e.size)
		}
		v.Root = root
	}
	if v.Root != t.root {
		v.found(-1, "", "The entries do not make the root of the tree.")
	}
	if err := l.verifySearch(ctx, v, search, tenant, t.posted); err != nil {
		return nil, err
	}
	return v, l.verifyCheckpoint(ctx, v, tenant, t)
}

// A searchSum stands for a set of refs and places, whatever order they come
// in. Nobody who changed the set beforehand knows the seed.
type searchSum struct {
	seed maphash.Seed
	sum  uint64
}

func newSearchSum() *searchSum { return &searchSum{seed: maphash.MakeSeed()} }

func (s *searchSum) add(ref string, place int64) {
	s.sum += maphash.Comparable(s.seed, struct {
		ref   string
		place int64
	}{ref, place})
}

// verifySearch checks that what events are found by is what they say.
func (l *Log) verifySearch(ctx context.Context, v *Verification, want *searchSum, tenant estover.TenantID, posted int64) error {
	have := &searchSum{seed: want.seed}
	for after := (post{first: -1}); ; {
		var posts []post
		err := l.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
			posts, err = readAllPosts(ctx, tx, after, verifyBatch)
			return err
		})
		if err != nil {
			return err
		}
		if len(posts) == 0 {
			break
		}
		for _, p := range posts {
			for _, place := range p.places() {
				if place < posted {
					have.add(p.ref, place)
				}
			}
		}
		after = posts[len(posts)-1]
	}
	if have.sum != want.sum {
		v.found(-1, "", "What events are searched by is not what they say.")
	}
	return nil
}

// verifyRange checks the entries from the edge's size to before end, and the
// tiles that they make.
func (l *Log) verifyRange(ctx context.Context, v *Verification, e *edge, search *searchSum, tenant estover.TenantID, end, posted int64) error {
	var rows []row
	first := e.size
	err := l.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
		if rows, err = readPlaced(ctx, tx, first, end); err != nil {
			return err
		}
		hashes := make([]byte, 0, (end-first)*tlog.HashSize)
		next := 0
		for i := range end - first {
			var hash tlog.Hash
			if next == len(rows) || rows[next].idx.Int64 != first+i {
				v.found(first+i, "", "The entry is missing.")
			} else {
				hash = tlog.RecordHash(rows[next].leaf)
				next++
			}
			hashes = append(hashes, hash[:]...)
		}
		for _, t := range e.grow(hashes) {
			stored, err := readTile(ctx, tx, t.level, t.n, len(t.hashes)/tlog.HashSize)
			if err != nil && !errors.Is(err, ErrDamaged) {
				return err
			}
			if !bytes.Equal(stored, t.hashes) {
				v.found(-1, "", "Tile %d of level %d is not made of the entries.", t.n, t.level)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.idx.Int64 < posted {
			for _, ref := range refs(r.event.Session, r.event.Target, string(r.event.Actor)) {
				search.add(ref, r.idx.Int64)
			}
		}
		if err := l.verifyRow(v, tenant, r); err != nil {
			return err
		}
	}
	return nil
}

// verifyRow checks an event against its leaf and its columns.
func (l *Log) verifyRow(v *Verification, tenant estover.TenantID, r row) error {
	index, id := r.idx.Int64, r.event.ID
	if hash := tlog.RecordHash(r.leaf); !bytes.Equal(hash[:], r.leafHash) {
		v.found(index, id, "The leaf does not have the hash that was stored with it.")
	}
	var stored leafOf
	commits := json.Unmarshal(r.leaf, &stored) == nil && stored.Version == 1 && stored.Commit != ""
	if commits && (stored.ID != id || !stored.At.Equal(r.event.At) || stored.Action != r.event.Action || stored.Outcome != r.event.Outcome) {
		v.found(index, id, "The leaf is of another event: %s.", stored.ID)
	}
	plain, err := l.open(tenant, r)
	if errors.Is(err, ErrErased) {
		v.Erased++
		return nil
	}
	if err != nil {
		v.found(index, id, "The content cannot be opened: %v.", err)
		return nil
	}
	if sum := sha256.Sum256(plain); commits && stored.Commit != base64.StdEncoding.EncodeToString(sum[:]) {
		v.found(index, id, "The content is not the one that the leaf commits to.")
	}
	var e Event
	if err := json.Unmarshal(plain, &e); err != nil {
		v.found(index, id, "The content cannot be read: %v.", err)
		return nil
	}
	c := r.event
	if e.ID != c.ID || !e.At.Equal(c.At) || e.Action != c.Action || e.Outcome != c.Outcome || e.Actor != c.Actor || e.Target != c.Target || e.Session != c.Session {
		v.found(index, id, "The columns say something else than the content.")
	}
	return nil
}

// verifyCheckpoint checks that the log's key signed the published tree.
func (l *Log) verifyCheckpoint(ctx context.Context, v *Verification, tenant estover.TenantID, t tree) error {
	keys, err := l.keys(ctx, tenant)
	if err != nil {
		return err
	}
	if t.signedSize == 0 || len(keys) == 0 {
		return nil
	}
	var known []note.Verifier
	for _, k := range keys {
		n, err := verifier(v.Origin, k)
		if err != nil {
			return err
		}
		known = append(known, n)
	}
	n, err := note.Open([]byte(t.checkpoint), note.VerifierList(known...))
	if err != nil {
		v.found(-1, "", "The checkpoint is not signed by the log's key: %v.", err)
		return nil
	}
	var cp logformat.Checkpoint
	if _, err := cp.Unmarshal([]byte(n.Text)); err != nil {
		v.found(-1, "", "The checkpoint cannot be read: %v.", err)
		return nil
	}
	if cp.Origin != v.Origin || cp.Size != uint64(t.signedSize) || !bytes.Equal(cp.Hash, t.signedRoot[:]) {
		v.found(-1, "", "The checkpoint is of another tree: %s, %d entries.", cp.Origin, cp.Size)
	}
	return nil
}
