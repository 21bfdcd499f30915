//go:build !linux

package story

import "syscall"

// apart puts a program into a process group of its own, so that Ctrl-C reaches
// it through us alone.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
