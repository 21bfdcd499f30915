package job

import (
	"fmt"
	"path"
	"runtime"
	"strings"
)

// Panicked is the error of work that panicked. It says where, and not with what:
// what a library panics with may be what somebody else has sent, or a secret.
type Panicked struct {
	With  string   // the type of the value
	Calls []string // who called whom, the innermost first
}

func (p *Panicked) Error() string {
	at := "an unknown place"
	if len(p.Calls) > 0 {
		at = p.Calls[0]
	}
	return "it panicked (" + p.With + ") at " + at
}

// deepest is how many calls a [Panicked] names at most.
const deepest = 12

// Guarded does work whose panic is its error, [Panicked], and not the end of the
// process. Everything that is begun in a goroutine for one tenant or one system
// outside is done in it: what the other side says must not end what is done for
// everybody else.
func Guarded(work func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &Panicked{With: fmt.Sprintf("%T", p), Calls: calls()}
		}
	}()
	return work()
}

// calls are those that led to the panic that is being recovered from.
func calls() (all []string) {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	panicking := false
	for more := true; more && len(all) < deepest; {
		var f runtime.Frame
		f, more = frames.Next()
		own := strings.HasPrefix(f.Function, "runtime.")
		panicking = panicking || f.Function == "runtime.gopanic"
		if panicking && !own {
			all = append(all, fmt.Sprintf("%s (%s:%d)", path.Base(f.Function), path.Base(f.File), f.Line))
		}
	}
	return all
}
