package federation

import (
	"context"
	"sync"
	"time"

	"estover.dev"
)

// ErrKeys is returned when the keys of an issuer cannot be had.
var ErrKeys = &estover.Error{Kind: estover.Unavailable, Code: "trust_keys_unavailable", Detail: "The keys of the issuer cannot be fetched at the moment. Try again."}

// How long fetched keys serve.
const (
	keysLife  = 10 * time.Minute // until they are fetched again, at most
	keysStale = time.Hour        // while they cannot be fetched
	keysPause = 30 * time.Second // between two fetches at least
	keysTime  = 10 * time.Second // for one fetch at most
)

// A Source is where keys are fetched from.
type Source struct {
	Tenant       estover.TenantID // whose trust names it
	URL          string
	CA           string // roots in PEM; "" for the system's
	AllowPrivate bool   // the host may be anywhere
	Domain       bool   // what is there is the bundle of a trust domain
}

// sets are the key sets that were fetched, by source. Sources come from trusts
// alone, so there are few.
type sets struct {
	fetch func(ctx context.Context, s Source) ([]byte, error)
	now   func() time.Time

	mu       sync.Mutex
	bySource map[Source]*set
}

// maxSets bounds the sources that are remembered; beyond it, all are fetched
// anew.
const maxSets = 1000

// A set is the keys of one source, and what is under way to get them.
type set struct {
	material
	at    time.Time     // when they came
	tried time.Time     // when they were last asked for
	err   error         // of the last attempt
	under chan struct{} // closed when the attempt that is under way ends; nil without one
}

// of is the keys of a source. With after, keys that came by then will not do:
// one was looked for in them and not found. The same keys come back while it is
// too early to ask again.
func (s *sets) of(ctx context.Context, from Source, after time.Time) (material, time.Time, error) {
	for {
		s.mu.Lock()
		one := s.bySource[from]
		if one == nil {
			if len(s.bySource) >= maxSets {
				clear(s.bySource)
			}
			one = &set{}
			s.bySource[from] = one
		}
		now := s.now()
		switch {
		case one.keys != nil && now.Sub(one.at) < one.serves && (after.IsZero() || one.at.After(after)):
			defer s.mu.Unlock()
			return one.material, one.at, nil
		case one.under == nil && !one.tried.IsZero() && now.Sub(one.tried) < keysPause:
			defer s.mu.Unlock()
			if one.keys != nil && now.Sub(one.at) < keysStale {
				return one.material, one.at, nil
			}
			return material{}, time.Time{}, ErrKeys.Because(one.err)
		case one.under == nil:
			one.under, one.tried = make(chan struct{}), now
			go s.get(context.WithoutCancel(ctx), from, one, one.under)
		}
		under := one.under
		s.mu.Unlock()
		select {
		case <-under:
			if after.IsZero() {
				continue
			}
			after = time.Time{} // asked again, and no more than once
		case <-ctx.Done():
			return material{}, time.Time{}, ctx.Err()
		}
	}
}

// get asks for the keys. Those that are there stay if there are none.
func (s *sets) get(ctx context.Context, from Source, one *set, under chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, keysTime)
	defer cancel()
	body, err := s.fetch(ctx, from)
	var m material
	if err == nil {
		m, err = parse(body, from.Domain)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if one.err = err; err == nil {
		one.material, one.at = m, s.now()
	}
	one.under = nil
	close(under)
}
