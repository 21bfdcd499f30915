package audit

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	logformat "github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/internal/db"
)

// maxRound is how many events get their place in one transaction. On SQLite
// other writers wait meanwhile, a few microseconds for each.
const maxRound = 1024

// whenBeaten is how many rounds a node leaves out after another was faster, and
// how many milliseconds it waits where it is to be done now.
const whenBeaten = 5

// whenFailed is how long at least a node waits after a round that failed.
const whenFailed = time.Second

// errBeaten says that another node gave these places.
var errBeaten = errors.New("another node was faster")

// ErrDamaged is returned when the stored tree contradicts itself. Nothing is
// added to such a tree, and nothing of it is signed.
var ErrDamaged = &estover.Error{Kind: estover.Fault, Code: "audit_damaged", Detail: "The audit log's tree is damaged. Stop the server, keep the database as it is, and run `estover audit verify`."}

// Run sequences and publishes the logs of all tenants until ctx is done. It
// runs on every node.
func (l *Log) Run(ctx context.Context) error {
	for {
		pause := l.o.Every
		err := l.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errBeaten):
			pause *= whenBeaten
		case err != nil:
			l.o.Logger.Error("events could not be sequenced", "error", err)
			pause = max(pause, whenFailed)
		}
		// What comes meanwhile is sequenced together; a wake shortens the
		// wait only of a log that was idle.
		if !sleep(ctx, pause) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-time.After(l.o.Every):
		}
	}
}

// sleep waits, and reports whether ctx is still going on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// round sequences what waits, of each tenant. One tenant's trouble does not
// keep the others waiting.
func (l *Log) round(ctx context.Context) error {
	var tenants []estover.TenantID
	err := l.db.View(ctx, "", func(tx *db.Tx) (err error) {
		tenants, err = unfinished(ctx, tx)
		return err
	})
	for _, t := range tenants {
		err = errors.Join(err, l.sequence(ctx, t))
	}
	return err
}

// Sequence gives each of the tenant's waiting events its place, and publishes
// a checkpoint of the tree that they make. Where other nodes do the same it tries
// again until nothing waits.
func (l *Log) Sequence(ctx context.Context, tenant estover.TenantID) error {
	for {
		err := l.sequence(ctx, tenant)
		if !errors.Is(err, errBeaten) || !sleep(ctx, whenBeaten*time.Millisecond) {
			return err
		}
	}
}

// sequence is Sequence, but once: with errBeaten where another node was faster.
func (l *Log) sequence(ctx context.Context, tenant estover.TenantID) error {
	for {
		n, err := l.place(ctx, tenant)
		if err != nil {
			return fmt.Errorf("sequencing %s: %w", l.Origin(tenant), err)
		}
		if n > 0 {
			l.sequenced()
		}
		if n < maxRound {
			break
		}
	}
	if err := l.publish(ctx, tenant); err != nil {
		return fmt.Errorf("publishing %s: %w", l.Origin(tenant), err)
	}
	if err := l.post(ctx, tenant); err != nil {
		return fmt.Errorf("indexing %s: %w", l.Origin(tenant), err)
	}
	return nil
}

// maxRun is how many events are written to the index at once. Up to that many,
// and those of a round, are found by looking at each of them: 4 ms for 8,000, 20 for 32,000.
//
// With half as many a token among a thousand agents at work cost 9 to 13 % more than among
// ten, and 6 to 9 with so many: each agent has its pages in the index, which a run
// changes once, however often it was at work.
const maxRun = 16 << 10

// post writes what events are found by, a run of them at a time. To write it
// with each round cost more than all the rest, where many agents are at work:
// each of them has its own place in the index.
//
// A run is written in pieces. As one statement it would keep the writer of SQLite, and
// all who wait for it, for some 20 ms. Nobody looks at what begins behind the end of
// the index, which the last piece moves; what a crash leaves there is written again.
func (l *Log) post(ctx context.Context, tenant estover.TenantID) error {
	for {
		var t tree
		var events []head
		err := l.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
			if t, err = readTree(ctx, tx); err != nil || t.size-t.posted < l.run {
				return err
			}
			events, err = readHeadsBetween(ctx, tx, t.posted, t.posted+l.run)
			return err
		})
		if err != nil || len(events) == 0 {
			return err
		}
		posts := postings(t.posted, events)
		if err := l.fault("post: before the transaction"); err != nil {
			return err
		}
		for {
			piece := posts[:min(len(posts), int(l.run/16))]
			posts = posts[len(piece):]
			list, last := listed(piece), len(posts) == 0
			err = l.db.Do(ctx, tenant, func(tx *db.Tx) error {
				if last {
					if err := movePosted(ctx, tx, t.posted, t.posted+l.run); err != nil {
						return err
					}
				}
				return writePosts(ctx, tx, t.posted, list)
			})
			if err != nil {
				return err
			}
			if last {
				break
			}
			if err := l.fault("post: between two pieces"); err != nil {
				return err
			}
		}
	}
}

// A tree is what is stored of a tenant's tree.
type tree struct {
	size       int64
	posted     int64
	root       tlog.Hash
	signedSize int64
	signedRoot tlog.Hash
	checkpoint string
}

// place gives places to a round of waiting events. The hashing is done before
// the transaction, which fails if the tree has grown in the meantime.
func (l *Log) place(ctx context.Context, tenant estover.TenantID) (int, error) {
	var old tree
	var e edge
	var next []waiter
	err := l.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
		if next, err = readWaiters(ctx, tx, maxRound); err != nil || len(next) == 0 {
			return err
		}
		if old, err = readTree(ctx, tx); err != nil {
			return err
		}
		e, err = readEdge(ctx, tx, old.size)
		return err
	})
	if err != nil || len(next) == 0 {
		return 0, err
	}
	if old.size > 0 {
		if root, err := e.root(); err != nil || root != old.root {
			return 0, ErrDamaged.Because(fmt.Errorf("the tiles at size %d do not make the root (%v)", old.size, err))
		}
	}
	var hashes []byte
	n := int64(0)
	for _, w := range next {
		if at := old.size + n; w.idx.Valid && w.idx.Int64 != at {
			return 0, ErrDamaged.Because(fmt.Errorf("the event for place %d is gone", at))
		}
		hashes, n = append(hashes, w.hashes...), n+w.n
	}
	tiles := e.grow(hashes)
	root, err := e.root()
	if err != nil {
		return 0, err
	}
	if err := l.fault("sequence: before the transaction"); err != nil {
		return 0, err
	}
	err = l.db.Do(ctx, tenant, func(tx *db.Tx) error {
		if err := growTree(ctx, tx, old.size, e.size, root); err != nil {
			return err
		}
		if err := givePlaces(ctx, tx, old.size, next); err != nil {
			return err
		}
		if err := l.fault("sequence: half way through"); err != nil {
			return err
		}
		return writeTiles(ctx, tx, tiles)
	})
	if err != nil {
		return 0, err
	}
	return int(n), l.fault("sequence: after the commit")
}

// publish signs the tree, which is durable by now, and makes the checkpoint
// visible.
func (l *Log) publish(ctx context.Context, tenant estover.TenantID) error {
	if l.o.Key == nil {
		return nil
	}
	var t tree
	err := l.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
		t, err = readTree(ctx, tx)
		return err
	})
	if err != nil || t.signedSize == t.size {
		return err
	}
	key, err := l.o.Key(ctx, tenant)
	if err != nil {
		return err
	}
	if err := l.fault("publish: before signing"); err != nil {
		return err
	}
	cp, err := sign(key, logformat.Checkpoint{Origin: l.Origin(tenant), Size: uint64(t.size), Hash: t.root[:]})
	if err != nil {
		return err
	}
	if err := l.fault("publish: after signing"); err != nil {
		return err
	}
	err = l.db.Do(ctx, tenant, func(tx *db.Tx) error { return saveCheckpoint(ctx, tx, t.size, t.root, string(cp)) })
	if err != nil {
		return err
	}
	return l.fault("publish: after the commit")
}

// sign makes a checkpoint a signed note (C2SP signed-note) under the log's
// name.
func sign(key crypto.Signer, cp logformat.Checkpoint) ([]byte, error) {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the key is a %T, not an Ed25519 key", key.Public())
	}
	v, err := verifier(cp.Origin, pub)
	if err != nil {
		return nil, err
	}
	return note.Sign(&note.Note{Text: string(cp.Marshal())}, noteSigner{v, key})
}

// verifier checks the signatures of the log's key.
func verifier(origin string, pub ed25519.PublicKey) (note.Verifier, error) {
	vkey, err := note.NewEd25519VerifierKey(origin, pub)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(vkey)
}

// A noteSigner signs notes with a key that may live elsewhere.
type noteSigner struct {
	note.Verifier
	key crypto.Signer
}

func (s noteSigner) Sign(msg []byte) ([]byte, error) {
	return s.key.Sign(rand.Reader, msg, crypto.Hash(0))
}
