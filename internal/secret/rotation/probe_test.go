package rotation_test

import (
	"testing"
	"time"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/rotation"
)

// Whoever measures for how long the old password is refused is refused once: a target
// that locks out who comes with wrong passwords does not lock its user out by it.
func TestProbeIsRefusedOnce(t *testing.T) {
	h := build(t, dbtest.Open(t), newMemory("only"))
	h.put(rotation.Spec{Target: "orders", Kind: rotation.SingleSlot, Users: []string{"only"}, Cache: 60, Quiet: 30, Schedule: "manual"})
	h.run()
	before := h.target.refused
	h.target.slow = 300 * time.Millisecond
	if r := h.run(); r.Current != 2 || h.explain().Refused == 0 {
		t.Errorf("version %d, refused for %d µs; want the second, and a figure", r.Current, h.explain().Refused)
	}
	if n := h.target.refused - before; n != 1 {
		t.Errorf("the old password was refused %d times, want once", n)
	}
}
