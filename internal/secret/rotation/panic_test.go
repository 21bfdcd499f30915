package rotation_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
)

// A hostile engine panics with what the other side has said.
type hostile struct {
	*memory
	sets, verifies bool
}

func (x *hostile) SetSecret(ctx context.Context, user string, s, keep estover.Secret) error {
	if x.sets {
		panic("makeslice: hunter2 out of range")
	}
	return x.memory.SetSecret(ctx, user, s, keep)
}

func (x *hostile) Verify(ctx context.Context, c engine.Credential) error {
	if x.verifies {
		panic("makeslice: hunter2 out of range")
	}
	return x.memory.Verify(ctx, c)
}

// TestPanics: an engine that panics, where a turn of the crew works with it or where
// the probe looks on, ends neither the process nor the rotation, which fails, says where
// without saying with what, and is tried again.
func TestPanics(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("only"))
		x := &hostile{memory: h.target}
		h.engine = x
		h.put(rotation.Spec{Target: "orders", Kind: rotation.SingleSlot, Users: []string{"only"}, Cache: 60, Quiet: 30, Schedule: "manual"})
		h.run()
		if _, err := h.x.Run(t.Context(), ann, path); err != nil {
			t.Fatal(err)
		}
		for what, breaks := range map[string]func(){
			"setting a password": func() { x.sets = true },
			"logging in":         func() { x.verifies = true },
		} {
			e := h.pass(time.Hour)
			n := e.Current
			breaks()
			if _, err := h.x.Run(t.Context(), ann, path); err == nil {
				t.Errorf("%s panics, and the rotation went through", what)
			}
			e = h.explain()
			if !strings.Contains(e.LastError, "panicked") || !strings.Contains(e.LastError, "panic_test.go") || strings.Contains(e.LastError, "hunter2") {
				t.Errorf("%s panics: %s, last error %q; want where, and not with what", what, e.Step, e.LastError)
			}
			e = h.pass(time.Hour) // a turn of the crew
			if !strings.Contains(e.LastError, "panicked") {
				t.Errorf("%s panics again: %s, last error %q", what, e.Step, e.LastError)
			}
			x.sets, x.verifies = false, false
			for i := 0; i < 10 && e.Current == n; i++ {
				e = h.pass(time.Hour)
			}
			if e.LastError != "" || e.Current == n {
				t.Errorf("once it no longer panics when %s: %s with version %d, %q; want it through", what, e.Step, e.Current, e.LastError)
			}
		}
		h.works()
	})
}
