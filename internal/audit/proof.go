package audit

import (
	"context"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/internal/db"
)

// ErrNotPublished is returned when no published checkpoint covers an event
// yet. It will, in less than a second.
var ErrNotPublished = &estover.Error{Kind: estover.Unavailable, Code: "not_published", Detail: "The log's checkpoint does not cover this yet. Try again in a second."}

// An Inclusion proves that an entry is in the tree that a checkpoint signs.
type Inclusion struct {
	Index      int64
	Size       int64
	Hashes     []tlog.Hash
	Checkpoint []byte
}

// Prove proves for each index that its entry is in the tree of the published
// checkpoint, which is the same for all of them. The tiles are checked against
// that checkpoint's root on the way.
func (l *Log) Prove(ctx context.Context, tenant estover.TenantID, indexes ...int64) ([]Inclusion, error) {
	var out []Inclusion
	err := l.db.View(ctx, tenant, func(tx *db.Tx) error {
		out = out[:0]
		t, err := readTree(ctx, tx)
		if err != nil {
			return err
		}
		r := t.reader(ctx, tx)
		for _, index := range indexes {
			if index < 0 {
				return ErrNotFound
			}
			if index >= t.signedSize {
				return ErrNotPublished
			}
			p, err := tlog.ProveRecord(t.signedSize, index, r)
			if err != nil {
				return damaged(err)
			}
			out = append(out, Inclusion{index, t.signedSize, p, []byte(t.checkpoint)})
		}
		return nil
	})
	return out, err
}

// ProveGrowth proves that the tree of one size is the beginning of the tree of
// another, neither of them larger than the published one.
func (l *Log) ProveGrowth(ctx context.Context, tenant estover.TenantID, from, to int64) (p tlog.TreeProof, err error) {
	err = l.db.View(ctx, tenant, func(tx *db.Tx) error {
		t, err := readTree(ctx, tx)
		if err != nil {
			return err
		}
		if from < 1 || from > to || to > t.signedSize {
			return ErrNotPublished
		}
		p, err = tlog.ProveTree(to, from, t.reader(ctx, tx))
		return damaged(err)
	})
	return p, err
}

// damaged says what a proof that cannot be made means, unless it is only that
// the database does not answer.
func damaged(err error) error {
	if err == nil || estover.KindOf(err) != estover.Fault {
		return err
	}
	return ErrDamaged.Because(err)
}

// VerifierKey is the key of the tenant's log as it stands in a trust policy.
func (l *Log) VerifierKey(ctx context.Context, tenant estover.TenantID) (string, error) {
	keys, err := l.keys(ctx, tenant)
	if err != nil {
		return "", err
	}
	if len(keys) == 0 {
		return "", ErrNotFound
	}
	return note.NewEd25519VerifierKey(l.Origin(tenant), keys[0])
}

// reader reads the hashes of the published tree.
func (t tree) reader(ctx context.Context, tx *db.Tx) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: t.signedSize, Hash: t.signedRoot}, tileReader{ctx, tx})
}

// A tileReader reads tiles within a transaction.
type tileReader struct {
	ctx context.Context
	tx  *db.Tx
}

func (tileReader) Height() int { return tileHeight }

func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, t := range tiles {
		var err error
		if out[i], err = readTile(r.ctx, r.tx, t.L, t.N, t.W); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (tileReader) SaveTiles([]tlog.Tile, [][]byte) {}
