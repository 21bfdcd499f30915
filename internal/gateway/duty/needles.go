package duty

import (
	"net/netip"
	"strconv"
	"sync"
	"time"

	"estover.dev/internal/gateway"
	"estover.dev/internal/redact"
	"estover.dev/internal/resource"
)

// needles keeps the matchers of secrets that are in use, so that one is not
// built for every call. A new version of a secret is another key. One that has not
// been used for a while is let go, since it has the values in it.
type needles struct {
	mu       sync.Mutex
	matchers map[taskKey]*inUse
	sweeping bool // there will be a look at what is in use
}

// inUse is a matcher, and when it was last wanted.
type inUse struct {
	*redact.Matcher
	at time.Time
}

// The bounds of what is kept: beyond maxNeedles all are built anew, and one that nobody
// has wanted for needleTime is let go at the next look, which comes as often.
const (
	maxNeedles = 1024
	needleTime = time.Minute
)

// of is the matcher of some values. What is too short to be searched for is named
// when the matcher is made (gateway.md, section 13.1).
func (n *needles) of(key taskKey, values []redact.Value) (m *redact.Matcher, short []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if known := n.matchers[key]; known != nil {
		known.at = time.Now()
		return known.Matcher, nil
	}
	m, short = redact.NewMatcher(values...)
	if n.matchers == nil || len(n.matchers) >= maxNeedles {
		n.matchers = map[taskKey]*inUse{}
	}
	n.matchers[key] = &inUse{m, time.Now()}
	n.look()
	return m, short
}

// look sees to it that what is not in use any more is let go. The caller holds n.mu.
func (n *needles) look() {
	if n.sweeping {
		return
	}
	n.sweeping = true
	time.AfterFunc(needleTime, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.sweeping = false
		for key, m := range n.matchers {
			if time.Since(m.at) >= needleTime {
				delete(n.matchers, key)
			}
		}
		if len(n.matchers) == 0 {
			n.matchers = nil // a map does not become smaller
			return
		}
		n.look()
	})
}

// revisionOf names the rules under which connections to an upstream are made: its
// own, and which private networks are opened for it. Under others there are other
// connections.
func revisionOf(u *resource.Upstream, private []netip.Prefix) string {
	var room [128]byte
	b := strconv.AppendInt(append(append(room[:0], u.ID...), '@'), u.Epoch, 10)
	for _, p := range private {
		b = p.AppendTo(append(b, ' '))
	}
	return string(b)
}

var _ gateway.Steps = (*Duties)(nil)
