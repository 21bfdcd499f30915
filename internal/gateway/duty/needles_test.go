package duty

import (
	"testing"
	"testing/synctest"
	"time"

	"estover.dev/internal/redact"
)

// A matcher has values in it: it is kept while they are injected, and let go within
// two minutes after.
func TestNeedlesAreLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n needles
		wanted := func(label string) *redact.Matcher {
			m, _ := n.of(taskKey{"acme", label}, []redact.Value{{Name: label, Text: []byte("a value of " + label)}})
			return m
		}
		kept := func() int {
			synctest.Wait()
			n.mu.Lock()
			defer n.mu.Unlock()
			return len(n.matchers)
		}
		once, often := wanted("once"), wanted("often")
		for range 4 {
			time.Sleep(needleTime / 2)
			if wanted("often") != often {
				t.Error("a matcher that is in use was made again")
			}
		}
		if n := kept(); n != 1 {
			t.Errorf("%d matchers are kept, want the one that is in use", n)
		}
		time.Sleep(2 * needleTime)
		if n := kept(); n != 0 {
			t.Errorf("two minutes after the last use %d matchers are kept", n)
		}
		if wanted("once") == once {
			t.Error("a matcher that was let go is there")
		}
		if n := kept(); n != 1 {
			t.Errorf("%d matchers are kept, want 1", n)
		}
		time.Sleep(2 * needleTime) // nothing is left that would look
	})
}
