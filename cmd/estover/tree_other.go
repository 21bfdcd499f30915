//go:build !linux

package main

import (
	"errors"
	"net"
	"os/exec"
	"syscall"

	"estover.dev/internal/session"
)

// A tree is the program and its process group. Which process a connection
// comes from cannot be told here, so every process of this machine may use the
// session while it lives (docs/LIMITATIONS.md).
type tree struct {
	cmd   *exec.Cmd
	group int
}

// binding is to what a session can be bound here.
func binding() (session.Bound, error) {
	return session.ByNothing, errors.New("only Linux tells which process a connection belongs to")
}

func newTree(cmd *exec.Cmd, _ int, _ session.Bound) (*tree, error) {
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
