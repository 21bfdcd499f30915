package edge

import (
	"net/netip"
	"sync"
	"time"
)

// A Limiter lets through so many of a kind for each key, and then as many as
// come back with time. It is for what costs us something and the caller
// nothing, such as failed attempts to authenticate.
type Limiter struct {
	rate  float64 // a second
	burst float64
	now   func() time.Time

	mu      sync.Mutex
	buckets map[string]bucket
}

type bucket struct {
	left float64
	at   time.Time
}

// maxBuckets bounds the keys that are remembered. Beyond it those are
// forgotten that have all of theirs again, and then whichever come first.
const maxBuckets = 50_000

// NewLimiter lets through burst at once for each key, and perSecond more each
// second.
func NewLimiter(perSecond float64, burst int, now func() time.Time) *Limiter {
	return &Limiter{rate: perSecond, burst: float64(burst), now: now, buckets: map[string]bucket{}}
}

// Allow takes one of the key's, and reports whether there was one.
func (l *Limiter) Allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.filled(key)
	if b.left < 1 {
		return false
	}
	b.left--
	if len(l.buckets) >= maxBuckets {
		l.forget()
	}
	l.buckets[key] = b
	return true
}

// Exhausted reports whether nothing is left of the key's, and takes nothing.
func (l *Limiter) Exhausted(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.filled(key).left < 1
}

// filled is the key's bucket with what has come back by now.
func (l *Limiter) filled(key string) bucket {
	now := l.now()
	b, ok := l.buckets[key]
	if !ok {
		return bucket{l.burst, now}
	}
	if passed := now.Sub(b.at); passed > 0 {
		b.left = min(l.burst, b.left+passed.Seconds()*l.rate)
	}
	b.at = now
	return b
}

func (l *Limiter) forget() {
	for key := range l.buckets {
		if l.filled(key).left >= l.burst {
			delete(l.buckets, key)
		}
	}
	for key := range l.buckets {
		if len(l.buckets) < maxBuckets*9/10 {
			return
		}
		delete(l.buckets, key)
	}
}

// AddressKey is the key of an address: of IPv6 the network of one customer,
// since whoever has one address has all of them.
func AddressKey(a netip.Addr) string {
	if a.Is6() && !a.Is4In6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
