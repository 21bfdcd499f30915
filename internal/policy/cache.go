package policy

import (
	"sync"
	"time"

	"estover.dev"
)

// A key is a question and all that its answer depends on. What does not matter
// to the answer is left empty, so that more requests share it. Agents,
// resources and facts are compared by their address: they are shared and never
// changed, and a change makes another.
type key struct {
	revision *revision
	entry    entry
	op       string
	purpose  string
	action   string
	effect   string
	class    estover.Class
	caller   int
	kind     string // of the resource
	resource *Resource
	agent    *Agent
	from     *Agent // whose token is handed on
	session  string
	epoch    int64 // of the session
	facts    *shape
}

// keyOf is the key of an input for an entry of a revision, as far as the entry
// reads it.
func (r *revision) keyOf(e entry, in *Input, facts *shape) key {
	k, reads := key{revision: r, entry: e}, r.entries[e].reads
	if reads&partOp != 0 {
		k.op = in.Op
	}
	if reads&partPurpose != 0 {
		k.purpose = in.Purpose
	}
	if reads&partAction != 0 {
		k.action, k.effect = in.Action, in.Effect
	}
	if reads&partClass != 0 {
		k.class = in.Class
	}
	if reads&partCaller != 0 {
		k.caller = in.callerIndex()
	}
	if reads&partType != 0 {
		k.kind = in.Resource.Type
	}
	if reads&partResource != 0 {
		k.resource = in.Resource
	}
	if reads&partAgent != 0 {
		k.agent = in.Agent
	}
	if reads&partDelegator != 0 {
		k.from = in.Delegator
	}
	if reads&partSession != 0 {
		k.session = in.Session
	}
	if reads&partFacts != 0 {
		k.facts = facts
	}
	return k
}

// wholeKey is the key of the whole input: the record of the answer tells all
// of it, with its digest.
func (r *revision) wholeKey(k *known, facts *shape) key {
	w := key{
		revision: r, op: k.Op, purpose: k.Purpose, action: k.Action, effect: k.Effect, class: k.Class,
		caller: k.callerIndex(), kind: k.Resource.Type, resource: k.Resource, agent: k.Agent, from: k.Delegator,
		session: k.Session, facts: facts,
	}
	if k.tasked {
		w.epoch = k.task.Epoch
	}
	return w
}

// A cache keeps answers for a while. It has two generations: answers go to the
// young one, and when that is full, it becomes the old one and the old one is
// dropped. So the cache is bounded, and nothing sweeps it.
type cache[V any] struct {
	size int // of one generation

	mu         sync.RWMutex
	young, old map[key]kept[V]
}

// A kept answer, and when it was made.
type kept[V any] struct {
	answer V
	at     time.Time
}

// The bounds of a cache: a node keeps no more than 64k answers, and none for
// longer than a minute.
const (
	generationSize = 32 << 10
	maxAge         = time.Minute
)

func newCache[V any]() *cache[V] {
	return &cache[V]{size: generationSize, young: map[key]kept[V]{}}
}

// get is the answer, if it is there and not too old. Time is the real one: how
// old an answer is has nothing to do with the date that a test sets.
func (c *cache[V]) get(k key, now time.Time) (V, bool) {
	c.mu.RLock()
	v, ok := c.young[k]
	if !ok {
		v, ok = c.old[k]
	}
	c.mu.RUnlock()
	return v.answer, ok && now.Sub(v.at) < maxAge
}

// put keeps an answer.
func (c *cache[V]) put(k key, v V, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.young) >= c.size {
		c.old, c.young = c.young, make(map[key]kept[V], c.size/4)
	}
	c.young[k] = kept[V]{v, now}
}
