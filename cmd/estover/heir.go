package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// A heir is a process of ours that has nothing to do as long as the launcher
// lives. If the launcher is killed, which leaves it no time for anything, the
// heir kills what is left of the program and ends the session. It stands apart
// from the terminal and its signals.
//
//	launcher ──"group N"──▶ heir      the program's process group
//	launcher ──"done"─────▶ heir      it is dismissed
//	launcher ──(killed)───▶ heir      the pipe ends without that word
type heir struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// leaveTo starts the heir of a session and of its directory of files.
func leaveTo(s *settings, session, dir string) (*heir, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	h := &heir{cmd: exec.Command(self, "run-heir", session, dir)}
	// It finds the server as we did. Nothing secret is on its command line.
	h.cmd.Env = os.Environ()
	for name, value := range map[string]string{"ESTOVER_ADDR": s.addr, "ESTOVER_CA": s.ca, "ESTOVER_TOKEN": s.token} {
		if value != "" {
			h.cmd.Env = append(h.cmd.Env, name+"="+value)
		}
	}
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := h.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the process that ends the session if this one is killed: %w", err)
	}
	return h, nil
}

func (h *heir) pid() int { return h.cmd.Process.Pid }

// group tells the heir which process group is the program's; 0 if it has none
// of its own.
func (h *heir) group(id int) {
	if id > 0 {
		_, _ = fmt.Fprintf(h.in, "group %d\n", id) // a heir that is gone has nobody to help
	}
}

// dismiss lets the heir go: there is nothing to inherit.
func (h *heir) dismiss() {
	_, _ = io.WriteString(h.in, "done\n")
	_ = h.in.Close()
	_ = h.cmd.Wait()
}

// heirCommand is the heir itself. It is started by `estover run` and by nobody
// else.
func heirCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "run-heir SESSION DIR", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
			group := 0
			for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
				if lines.Text() == "done" {
					return nil
				}
				if n, ok := strings.CutPrefix(lines.Text(), "group "); ok {
					group, _ = strconv.Atoi(n)
				}
			}
			if group > 1 {
				_ = syscall.Kill(-group, syscall.SIGKILL)
			}
			return inherit(context.WithoutCancel(cmd.Context()), s, args[0], args[1])
		},
	}
}

// inherit does what a launcher that was killed could not do.
func inherit(ctx context.Context, s *settings, session, dir string) error {
	if strings.HasPrefix(filepath.Base(dir), sessionDir) {
		_ = os.RemoveAll(dir)
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	if os.Getenv("ESTOVER_CLIENT_ID") != "" {
		if err := (&launch{}).authenticate(ctx, c); err != nil {
			return err
		}
	}
	for until := time.Now().Add(inheritTime); ; time.Sleep(time.Second) {
		err := c.do(ctx, http.MethodPost, "/v1/sessions/"+url.PathEscape(session)+"/end", map[string]any{"cause": "the launcher was killed"}, nil)
		var down *unreachable
		if !errors.As(err, &down) || time.Now().After(until) {
			return err
		}
	}
}

// inheritTime is how long the heir tries to reach the server.
const inheritTime = time.Minute
