package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"estover.dev/internal/session"
)

// A task is the session of one `estover run`, from its opening to its end. It
// ends with the program; and the program ends with it, if somebody else ends
// it first.
type task struct {
	*launch
	client  *client
	id      string
	expires time.Time
	over    chan string    // gets why the session has ended, if it was not ended here
	nudge   chan struct{}  // something has happened that may be its end
	renewed chan time.Time // gets when it ends, if that has changed
	ended   string         // what over got
}

// How the end of a session comes to the program.
const (
	lookEvery   = 5 * time.Second        // how often the server hears of us, and says whether the session is still open
	lookAtMost  = 500 * time.Millisecond // the least time between two such questions
	lastWords   = 5 * time.Second        // how long the program may go on without its session
	stoppedTime = 10 * time.Second       // how long it may take to stop when it was told to
)

// look has the server asked soon whether the session is still open.
func (t *task) look() {
	select {
	case t.nudge <- struct{}{}:
	default:
	}
}

// watch finds out that the session has ended, until stop is called.
func (t *task) watch(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		every := lookEvery
		if t.idle > 0 {
			every = min(every, t.idle/4)
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.nudge:
			case <-tick.C:
			}
			if why := t.why(ctx); why != "" {
				t.over <- why
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(lookAtMost):
			}
		}
	}()
	return func() { cancel(); <-done }
}

// why is why the session has ended, and empty as long as it has not, or as
// nobody can say. It is the session's heartbeat as well.
func (t *task) why(ctx context.Context) string {
	var s session.Session
	err := t.client.do(ctx, http.MethodPut, "/v1/sessions/"+url.PathEscape(t.id)+"/heartbeat", nil, &s)
	switch {
	case err == nil && s.State == session.Ended:
		return first(s.EndCause, "its time was up")
	case err == nil:
		select {
		case <-t.renewed: // what was there is older
		default:
		}
		t.renewed <- s.ExpiresAt
	case t.asAgent && codeOf(err) == exitRefused:
		return err.Error() // whoever may not even look at its own session may do nothing in it
	}
	return ""
}

// end ends the session, if that has not happened, and tells how it ended.
func (t *task) end(ctx context.Context, cause string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if t.ended != "" {
		return // that has been told
	}
	err := t.client.do(ctx, http.MethodPost, "/v1/sessions/"+url.PathEscape(t.id)+"/end", map[string]any{"cause": cause}, nil)
	var p *problem
	switch {
	case err == nil:
		t.say("session %s ended (%s)", t.id, cause)
	case errors.As(err, &p) && p.Code == session.ErrEnded.Code:
		t.say("session %s had been ended (%s)", t.id, first(t.why(ctx), "the server does not say why"))
	case t.asAgent && codeOf(err) == exitRefused:
		t.say("session %s had been ended (%s)", t.id, err)
	default:
		fmt.Fprintf(os.Stderr, "estover: the session %s could not be ended here and ends by itself at %s: %v\n", t.id, cell(t.expires), err)
	}
}

// supervise runs the program until it ends, the session does, or this process
// is told to stop; what is left of the program's tree is killed. It returns
// the program's exit code and how it came to an end.
func (t *task) supervise(cmd *exec.Cmd, p *loopbackProxy, h *heir) (int, string, error) {
	tree, err := newTree(cmd, h.pid(), t.bound)
	if err != nil {
		return 0, "", err
	}
	// Signals of the terminal reach the program by themselves; those that
	// reach only us are passed on.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, "", err
	}
	tree.started()
	h.group(tree.group)
	p.belongs = tree.owns
	go p.serve()
	defer tree.kill()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	timer := time.NewTimer(time.Until(t.expires))
	defer timer.Stop()
	how := "the command ended"
	var soft, hard <-chan time.Time
	for {
		select {
		case err := <-ended:
			return exitOf(cmd, err), how, nil
		case sig := <-signals:
			how = "stopped by " + sig.String()
			tree.signal(sig.(syscall.Signal))
			if hard == nil {
				hard = time.After(stoppedTime)
			}
		case t.ended = <-t.over:
			t.say("session %s was ended (%s); the command is stopped in %s", t.id, t.ended, lastWords)
			soft = time.After(lastWords)
		case at := <-t.renewed:
			if !at.Equal(t.expires) {
				t.expires = at
				timer.Reset(time.Until(at))
			}
		case <-timer.C:
			how = "the session's time was up"
			tree.signal(syscall.SIGTERM)
			hard = time.After(stoppedTime)
		case <-soft:
			tree.signal(syscall.SIGTERM)
			hard = time.After(stoppedTime)
		case <-hard:
			tree.kill()
		}
	}
}

// exitOf is the exit code of a program as a shell would tell it.
func exitOf(cmd *exec.Cmd, err error) int {
	if err == nil {
		return 0
	}
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		return 128 + int(st.Signal())
	}
	if code := cmd.ProcessState.ExitCode(); code > 0 {
		return code
	}
	return exitFailed
}
