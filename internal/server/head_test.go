package server

import (
	"testing"
	"time"
)

// TestSetBack shows what ends a server whose clock is set back under it (F6), and that
// one which is set ahead, or corrected by a little, does not.
func TestSetBack(t *testing.T) {
	began := time.Now()
	for _, c := range []struct {
		passed, set time.Duration
		ends        bool
	}{
		{0, 0, false},
		{48 * time.Hour, 0, false},
		{time.Hour, time.Hour, false},
		{time.Hour, -30 * time.Second, false},
		{time.Hour, -61 * time.Second, true},
		{10 * time.Second, -24 * time.Hour, true},
	} {
		behind := setBack(began, began.Add(c.passed+c.set), c.passed)
		if behind != -c.set || (behind > maxSetBack) != c.ends {
			t.Errorf("a clock set by %s in %s is %s behind, and ends the server: %v; want %s and %v", c.set, c.passed, behind, behind > maxSetBack, -c.set, c.ends)
		}
	}
}
