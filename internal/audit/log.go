// Package audit is the one append-only log. What happens in Estover is written
// down here or did not happen.
//
// An event is a row, inserted in the transaction of what it records. It gets
// its place afterwards, so that writers never wait for each other:
//
//	Prepare ──▶ Write ──commit──▶ Sequence ──commit──▶ sign ──▶ publish ──▶ Handler, Proof
//	payload sealed,  with what    a place (idx), the    the tree's      what others
//	leaf hashed      it records   hash into the tree    size and root   may see and keep
//
// A crash between two of these steps loses nothing: the next round takes up
// what waits. Places are given without gaps, whatever order the transactions
// committed in. Any number of nodes may sequence; the tree's size is compared
// and swapped, so one of them wins and the others find nothing left to do. On
// SQLite, where one writer follows another, an event has its place already when
// it is written, and sequencing does not touch its row again.
//
// # The tree
//
// Each tenant has a log of its own: a Merkle tree (RFC 6962) in tiles of 256
// hashes (C2SP tlog-tiles), kept in the same database, with a checkpoint signed
// by an Ed25519 key under the name ORIGIN/TENANT. It is read by any client of
// such logs. A published checkpoint never gets smaller.
//
// # What a leaf holds
//
// A leaf is a commitment: the hash of the event with 32 random bytes in it.
// The event itself is sealed, and stands beside the leaf. When its key or the
// payload is destroyed, the event is erased, nobody can guess it from the leaf,
// and the log still verifies. Only what is meant to be shown, the statement of
// a receipt, is a leaf as it is ([Event.Leaf]); it has no personal data.
package audit

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// Options are what the log needs of others.
type Options struct {
	// Seal and Open encrypt an event's payload under the tenant's key, bound
	// to the event's id. Open returns [ErrErased] when the key was destroyed.
	Seal func(tenant estover.TenantID, id string, plain []byte) ([]byte, error)
	Open func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error)
	// Key is the tenant's Ed25519 key for checkpoints. Without it the log is
	// sequenced and never published.
	Key func(ctx context.Context, tenant estover.TenantID) (crypto.Signer, error)
	// Keys are all keys that signed the tenant's checkpoints, old ones too;
	// if nil, only Key's.
	Keys func(ctx context.Context, tenant estover.TenantID) ([]ed25519.PublicKey, error)
	// Origin begins the name of every log: the host and path where
	// [Log.Handler] is served, without a scheme. "localhost" if empty.
	Origin string
	// Every is how often events are sequenced; 200 ms if zero.
	Every  time.Duration
	Logger *slog.Logger
}

// A Log keeps the events of all tenants, each tenant's in a log of its own. It
// is safe for use by many at once.
type Log struct {
	db    *db.DB
	o     Options
	wake  chan struct{}
	run   int64                   // [maxRun], but for tests
	fault func(step string) error // of tests: stands for a crash at this step

	mu     sync.Mutex
	longer chan struct{} // closed when events were sequenced here
}

// Open is the log in d.
func Open(d *db.DB, o Options) *Log {
	if o.Origin == "" {
		o.Origin = "localhost"
	}
	if o.Every == 0 {
		o.Every = 200 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Log{db: d, o: o, wake: make(chan struct{}, 1), longer: make(chan struct{}), run: maxRun, fault: func(string) error { return nil }}
}

// Origin is the name of the tenant's log, the first line of its checkpoints.
func (l *Log) Origin(tenant estover.TenantID) string { return l.o.Origin + "/" + string(tenant) }

// Wake says that an event was committed here, so that it need not wait for the
// next round.
func (l *Log) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// sequenced wakes those who follow the log in this process.
func (l *Log) sequenced() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.longer)
	l.longer = make(chan struct{})
}

// grows is closed when the log next grows in this process.
func (l *Log) grows() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.longer
}

// keys are the public keys that may have signed the tenant's checkpoints.
func (l *Log) keys(ctx context.Context, tenant estover.TenantID) ([]ed25519.PublicKey, error) {
	if l.o.Keys != nil {
		return l.o.Keys(ctx, tenant)
	}
	if l.o.Key == nil {
		return nil, nil
	}
	k, err := l.o.Key(ctx, tenant)
	if err != nil {
		return nil, err
	}
	pub, ok := k.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the key of the log %s is a %T, not an Ed25519 key", l.Origin(tenant), k.Public())
	}
	return []ed25519.PublicKey{pub}, nil
}
