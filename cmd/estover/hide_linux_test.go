package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A process that hides is nobody's to read: the kernel asks for this flag
// before it shows memory, environment or descriptors to the same user.
func TestHide(t *testing.T) {
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) })
	hide()
	if flag, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || flag != 0 {
		t.Errorf("the process can be read by others of its user: %d, %v", flag, err)
	}
}
