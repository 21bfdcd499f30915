package audit

import (
	"os"
	"syscall"
)

// mapWindow makes the window of a file, as long as that. The file is as long from
// then on, and is never made shorter.
func mapWindow(f *os.File, length int64) window {
	fd := int(f.Fd())
	if syscall.Fallocate(fd, 0, 0, length) != nil {
		return nil
	}
	w, err := syscall.Mmap(fd, 0, int(length), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil
	}
	return w
}

func unmapWindow(w window) {
	if w != nil {
		_ = syscall.Munmap(w)
	}
}
