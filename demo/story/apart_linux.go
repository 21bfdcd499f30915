package story

import "syscall"

// apart puts a program into a process group of its own, so that Ctrl-C reaches
// it through us alone, and has it die with us, even if we are killed.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
