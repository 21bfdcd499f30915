package job_test

import (
	"errors"
	"strings"
	"testing"

	"estover.dev/internal/job"
)

func explode(list []string, n int) string { return list[n] }

// A panic is the error of the work, which says where it was and not with what.
func TestGuarded(t *testing.T) {
	said := errors.New("the work's own")
	if err := job.Guarded(func() error { return said }); err != said {
		t.Errorf("work that fails: %v, want its own error", err)
	}
	if err := job.Guarded(func() error { return nil }); err != nil {
		t.Errorf("work that goes well: %v", err)
	}
	for _, one := range []struct {
		name, with, at string
		work           func() error
	}{
		{"a library", "string", "TestGuarded", func() error { panic("hunter2") }},
		{"the runtime", "runtime.boundsError", "explode (panic_test.go:", func() error { explode(nil, 7); return nil }},
		{"nil", "*runtime.PanicNilError", "TestGuarded", func() error { panic(nil) }}, //nolint:govet // what a library may do
		{"a dereference", "runtime.errorString", "TestGuarded", func() error { var p *job.Panicked; p.With = "x"; return nil }},
	} {
		err := job.Guarded(one.work)
		var p *job.Panicked
		if !errors.As(err, &p) || p.With != one.with || len(p.Calls) == 0 || !strings.Contains(p.Calls[0], one.at) {
			t.Errorf("%s: %v (%+v), want %s at %s", one.name, err, p, one.with, one.at)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v tells with what", one.name, err)
		}
	}
}
