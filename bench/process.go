package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"estover.dev/internal/db/scratch"
)

// A process is a server that is measured.
type process struct {
	cmd  *exec.Cmd
	addr string // HOST:PORT where it answers
	log  *os.File
	// ending is called before it is ended, if it is set.
	ending func()
	// dial connects to it; nil is by TCP to addr.
	dial func(ctx context.Context) (net.Conn, error)
	// heard is told what it answers, where the next request depends on that; an
	// error ends the turn. Many connections call it at once.
	heard func(answer []byte) error
}

// connect makes a connection to the process.
func (p *process) connect(ctx context.Context) (net.Conn, error) {
	if p.dial != nil {
		return p.dial(ctx)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", p.addr)
}

// startPeer runs a peer of this program (peer.go), which prints its address.
func (b *Bench) startPeer(ctx context.Context, name string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"peer", name}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the peer %s did not start: %w", name, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return &process{cmd: cmd, addr: strings.TrimSpace(line)}, nil
}

// freePort finds a port that nobody listens on.
func freePort() (string, error) {
	port, err := scratch.Port()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}

// stop ends the process and waits for it.
func (p *process) stop() {
	if p.ending != nil {
		p.ending()
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-done
	}
	if p.log != nil {
		_ = p.log.Close()
	}
}

// cpu is the processor time that the process has used so far, its own and the
// kernel's for it.
func (p *process) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("the kernel's account of the process cannot be read")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// rest waits until the process has nothing more to do: until it has used less
// than a twentieth of a core for a second.
func (p *process) rest(ctx context.Context) error {
	before, err := p.cpu()
	for ; err == nil; before, err = p.cpu() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		if now, err := p.cpu(); err != nil || now-before < time.Second/20 {
			return err
		}
	}
	return err
}

// resident is the memory of the process that is in use, in bytes.
func (p *process) resident() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("the kernel does not say how much memory the process uses")
}
