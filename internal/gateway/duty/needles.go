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

func (n *needles) of(key taskKey, values []redact.Value) *redact.Matcher {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m := n.matchers[key]; m != nil {
		return m
	}
	m, _ := redact.NewMatcher(values...)
	if n.matchers == nil || len(n.matchers) >= maxNeedles {
		n.matchers = map[taskKey]*redact.Matcher{}
	}
	n.matchers[key] = m
	return m
}

// revisionOf names the rules under which connections to an upstream are made: its
// own, and which private networks are opened for it. Under others there are other
// connections.
func revisionOf(u *resource.Upstream, private []netip.Prefix) string {
	return fmt.Sprintf("%s@%d%v", u.ID, u.Epoch, private)
}

var _ gateway.Steps = (*Duties)(nil)
