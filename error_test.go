package estover_test

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"estover.dev"
)

// What a client is told to wait is never too short and never less than nothing, however
// long it is.
func TestWait(t *testing.T) {
	e := &estover.Error{Kind: estover.TooMuch, Code: "busy", Detail: "Wait."}
	for after, want := range map[time.Duration]int{
		-time.Second: 1, 0: 1, 1: 1, time.Second: 1, time.Second + 1: 2, time.Hour: 3600,
		math.MaxInt64 - time.Second: math.MaxInt32, math.MaxInt64: math.MaxInt32,
	} {
		if got := estover.Wait(fmt.Errorf("asking: %w", e.In(after))); got != want {
			t.Errorf("%d ns: %d seconds, want %d", after, got, want)
		}
	}
	if got := estover.Wait(errors.New("some other")); got != 1 {
		t.Errorf("if nothing is known: %d seconds, want 1", got)
	}
}
