package token

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/opaque"
)

// Successors are made with another key every two seconds. Who spends one token after
// the other and asks again for what came of the first, gets that up to maxRetried.
const (
	windowLength = RetryWindow / 5
	maxRetried   = 3
)

// A family is its row.
type family struct {
	id         [32]byte
	grant      string
	key        string
	hash       []byte // of the one that is good; nil if there is none
	generation int64
	turned     time.Time // when the one before was spent; zero for the first
	shown      string    // the key that was shown then
}

// after is the successor of a value after which another one of the family is good now: one
// or so many more, the last of which came when the family turned. "" if there is none. Keys
// are those of the windows until then in which it may have been spent, the oldest first.
func (f *family) after(value string, keys []window, now time.Time, steps int) (string, error) {
	last := windowOf(f.turned)
	for _, k := range slices.Backward(keys) {
		next, err := opaque.Next(opaque.RefreshToken, value, k.key)
		if err != nil {
			return "", err
		}
		if k.at == last && (f.hash == nil || f.knows(next)) {
			return next, nil
		}
		if f.hash == nil || steps == 1 || now.Sub(k.began()) > RetryWindow { // when in the window, nobody knows
			continue
		}
		if further, err := f.after(next, keys, now, steps-1); err != nil || further != "" {
			return next, err
		}
	}
	return "", nil
}

func (f *family) knows(value string) bool {
	hash := opaque.Hash(value)
	return bytes.Equal(f.hash, hash[:])
}

// families are the copies of families that this node has turned. A copy that is behind
// spends nothing, and so nobody has to tell that it is.
type families struct {
	mu   sync.RWMutex
	rows map[familyKey]family
}

type familyKey struct {
	tenant estover.TenantID
	id     [32]byte
}

// maxFamilies bounds the copies, of some 300 bytes each.
const maxFamilies = 20_000

func (c *families) get(tenant estover.TenantID, id [32]byte) (family, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	f, ok := c.rows[familyKey{tenant, id}]
	return f, ok
}

func (c *families) put(tenant estover.TenantID, f family) {
	k := familyKey{tenant, f.id}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.rows) >= maxFamilies {
		for old := range c.rows {
			delete(c.rows, old)
			if len(c.rows) < maxFamilies*9/10 {
				break
			}
		}
	}
	if c.rows == nil {
		c.rows = map[familyKey]family{}
	}
	c.rows[k] = f
}

// A window is two seconds, and the key that successors are made with in them.
type window struct {
	at  int64 // counted from the epoch
	key []byte
}

func windowOf(t time.Time) int64 { return t.UnixMicro() / windowLength.Microseconds() }

func (w window) began() time.Time { return time.UnixMicro(w.at * windowLength.Microseconds()) }

// window is the key of the window of a time: whoever needs it first makes it, and it is
// durable before anything is made with it.
func (t *Tokens) window(ctx context.Context, now time.Time) ([]byte, error) {
	if w := t.now.Load(); w != nil && w.at == windowOf(now) {
		return w.key, nil
	}
	w := window{at: windowOf(now)}
	err := t.guard.DB().Do(ctx, "", func(tx *db.Tx) (err error) {
		w.key, err = openWindow(ctx, tx, w.at)
		return err
	})
	if err == nil {
		t.now.Store(&w)
	}
	return w.key, err
}

// EraseSuccessors forgets the keys of successors that nobody may ask for again.
func (t *Tokens) EraseSuccessors(ctx context.Context) error {
	return t.guard.DB().Do(ctx, "", func(tx *db.Tx) error { return closeWindows(ctx, tx, windowOf(tx.Now().Add(-RetryWindow))) })
}
