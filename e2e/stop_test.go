package e2e

import (
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
)

// A server that is stopped as an operator stops it, while it issues tokens and
// forwards calls, lets what is under way come to its end: nothing that it
// acknowledged is lost, and of no call is it unknown how it ended.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, database string) {
		s := newSiege(t, e2etest.StartOn(t, database))
		s.begin()
		for range 2 {
			before := len(s.copyOf(s.calls))
			time.Sleep(500 * time.Millisecond) // of load
			e2etest.Eventually(t, "calls are made", func() bool { return len(s.copyOf(s.calls)) > before })
			s.Stop(t)
			s.Restart(t)
		}
		s.finish()
		s.check()
		s.checkCalls()
		if s.unknown > 0 || len(s.calls) == 0 {
			t.Errorf("of %d calls %d ended unknown, want none", len(s.calls), s.unknown)
		}
	})
}
