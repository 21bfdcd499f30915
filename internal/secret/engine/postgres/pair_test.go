package postgres

import (
	"errors"
	"testing"

	"estover.dev/internal/secret/engine"
)

// From PostgreSQL 16 on nobody is made who could not take turns.
func TestMayPair(t *testing.T) {
	for _, c := range []struct {
		super   bool
		version int
		may     bool
	}{{true, 150018, true}, {false, 150018, true}, {false, 159999, true}, {true, 160000, true}, {false, 160000, false}, {false, 170002, false}} {
		var refused *engine.Refused
		if err := mayPair(c.super, c.version); (err == nil) != c.may || err != nil && !errors.As(err, &refused) {
			t.Errorf("superuser %v at %d: %v, want that it may: %v", c.super, c.version, err, c.may)
		}
	}
}
