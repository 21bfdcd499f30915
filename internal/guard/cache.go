package guard

import (
	"context"
	"hash/maphash"
	"sync"

	"estover.dev"
	"estover.dev/internal/db"
)

// A Cache holds copies of rows of one kind, so that decisions on hot paths
// read memory. A copy is loaded when it is first asked for and dropped when an
// event touches the row; it is never changed in place, and whoever gets it
// does not change it.
type Cache[V any] struct {
	kind string
	db   *db.DB
	load func(ctx context.Context, tx *db.Tx, id string) (V, error)
	seed maphash.Seed

	mu    sync.RWMutex
	rows  map[cacheKey]V
	epoch [64]uint64 // by hash of the key: raised by each touch, so that a load that began before is not kept
}

type cacheKey struct {
	tenant estover.TenantID
	id     string
}

// maxCached bounds the copies of one kind; beyond it, some are dropped and
// loaded again when asked for.
const maxCached = 20_000

// NewCache is a cache of the rows of a kind, as [Tx.Touch] names it.
func NewCache[V any](g *Guard, kind string, load func(ctx context.Context, tx *db.Tx, id string) (V, error)) *Cache[V] {
	c := &Cache[V]{kind: kind, db: g.db, load: load, seed: maphash.MakeSeed(), rows: map[cacheKey]V{}}
	g.OnTouch(func(tenant estover.TenantID, kind, id string) {
		if kind == c.kind {
			c.Drop(tenant, id)
		}
	})
	return c
}

// Get is the copy of a row, or the error of loading it: what is not there is
// not kept, and asked for again the next time.
func (c *Cache[V]) Get(ctx context.Context, tenant estover.TenantID, id string) (V, error) {
	k := cacheKey{tenant, id}
	c.mu.RLock()
	v, ok := c.rows[k]
	c.mu.RUnlock()
	if ok {
		return v, nil
	}
	slot := c.slot(k)
	c.mu.RLock()
	before := c.epoch[slot]
	c.mu.RUnlock()
	err := c.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
		v, err = c.load(ctx, tx, id)
		return err
	})
	if err != nil {
		return v, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch[slot] == before {
		if len(c.rows) >= maxCached {
			for old := range c.rows {
				delete(c.rows, old)
				if len(c.rows) < maxCached*9/10 {
					break
				}
			}
		}
		c.rows[k] = v
	}
	return v, nil
}

func (c *Cache[V]) slot(k cacheKey) int {
	return int(maphash.Comparable(c.seed, k) % uint64(len(c.epoch)))
}

// Drop forgets a copy, for a change that is no event.
func (c *Cache[V]) Drop(tenant estover.TenantID, id string) {
	k := cacheKey{tenant, id}
	slot := c.slot(k)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch[slot]++
	delete(c.rows, k)
}
