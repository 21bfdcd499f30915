package duty

import (
	"fmt"
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

// revisionOf names the rules under which connections to an upstream are made.
func revisionOf(u *resource.Upstream) string { return fmt.Sprintf("%s@%d", u.ID, u.Epoch) }

var _ gateway.Steps = (*Duties)(nil)
