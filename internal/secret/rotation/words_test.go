package rotation_test

import (
	"errors"
	"strings"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
)

// Whatever a target says when it refuses, the rotation goes on from there: its words
// are cut where they may be, and have nothing in them that a database refuses.
func TestWordsOfTargets(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory(pair.Users...))
		h.put(pair)
		for _, words := range []string{strings.Repeat("ä", 400), "a" + strings.Repeat("ä", 400), "no \xff"} {
			h.target.down = &engine.Refused{Reason: words}
			if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrFailed) {
				t.Errorf("a target that refuses: %v, want ErrFailed", err)
			}
			if e := h.explain(); e.Step != rotation.Aborting || !strings.HasPrefix(e.LastError, "the target refuses: ") {
				t.Errorf("it is %s, since %q; want it to be undone, since the target refuses: %.8q", e.Step, e.LastError, words)
			}
			h.target.restore()
			if e := h.pass(rotation.HoldTime); e.Step != rotation.Idle {
				t.Errorf("it is %s when the target answers, want it undone", e.Step)
			}
		}
	})
}
