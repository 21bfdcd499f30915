//go:build !linux

package main

import (
	"net"
	"os/exec"
	"syscall"
)

// A tree is the program and its process group. Which process a connection
// comes from cannot be told here, so every process of this user may use the
// session while it lives (docs/LIMITATIONS.md).
type tree struct {
	cmd   *exec.Cmd
	group int
}

func newTree(cmd *exec.Cmd, _ int) (*tree, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return &tree{cmd: cmd}, nil
}

func (t *tree) started() { t.group = t.cmd.Process.Pid }

func (t *tree) signal(sig syscall.Signal) {
	if t.group > 0 {
		_ = syscall.Kill(-t.group, sig)
	}
}

func (t *tree) kill() { t.signal(syscall.SIGKILL) }

func (t *tree) owns(net.Conn) bool { return true }
