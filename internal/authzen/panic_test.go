package authzen

import (
	"errors"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev/internal/job"
)

// TestPanicInABatch: a question whose answer panics is an error of its request, and does not
// end the process as a panic in a goroutine does.
func TestPanicInABatch(t *testing.T) {
	questions := &batch{Evaluations: []jsontext.Value{jsontext.Value(`{}`), jsontext.Value(`{}`)}}
	err := (&Door{}).all(nil, questions, make([]decision, 2)) // nobody asks, which is nowhere so
	var panicked *job.Panicked
	if !errors.As(err, &panicked) {
		t.Errorf("a batch that cannot be answered: %v, want a panic that was caught", err)
	}
}
