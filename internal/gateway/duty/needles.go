package duty

import (
	"fmt"
	"net/netip"
	"sync"

	"estover.dev/internal/gateway"
	"estover.dev/internal/redact"
	"estover.dev/internal/resource"
)

// needles keeps the matchers of secrets that are in use, so that one is not
// built for every call. A new version of a secret is another key.
type needles struct {
	mu       sync.Mutex
	matchers map[taskKey]*redact.Matcher
}

// maxNeedles bounds them; beyond it, all are built anew.
const maxNeedles = 1024

// of is the matcher of some values. What is too short to be searched for is named
// when the matcher is made (gateway.md, section 13.1).
func (n *needles) of(key taskKey, values []redact.Value) (m *redact.Matcher, short []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m, known := n.matchers[key]; known {
		return m, nil
	}
	m, short = redact.NewMatcher(values...)
	if n.matchers == nil || len(n.matchers) >= maxNeedles {
		n.matchers = map[taskKey]*redact.Matcher{}
	}
	n.matchers[key] = m
	return m, short
}

// revisionOf names the rules under which connections to an upstream are made: its
// own, and which private networks are opened for it. Under others there are other
// connections.
func revisionOf(u *resource.Upstream, private []netip.Prefix) string {
	return fmt.Sprintf("%s@%d%v", u.ID, u.Epoch, private)
}

var _ gateway.Steps = (*Duties)(nil)
