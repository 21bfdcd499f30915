package story

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"sync"
)

// A process is an agent that was started and may still run.
type process struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	printed *printed
	done    chan struct{} // closed when it has ended
	err     error         // how, after that
	told    int           // how much of what it printed has been told
}

// guarded is the command that starts the agent as people do: under Estover.
func (s *Stage) guarded(ctx context.Context, purpose string, agent []string) *exec.Cmd {
	args := append([]string{"run", "--agent", "support-bot", "--purpose", purpose, "--", "sample-agent"}, agent...)
	s.tell(Command, "estover %s", shell(args))
	args[6] = s.Agent
	return s.command(ctx, s.Estover, args...)
}

// start starts the agent.
func (s *Stage) start(ctx context.Context, purpose string, agent ...string) (*process, error) {
	return s.follow(s.launch(ctx, purpose, agent))
}

// follow starts a program and keeps what it prints.
func (s *Stage) follow(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, printed: &printed{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.printed, p.printed
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop ends the agent if it still runs, and waits for it.
func (p *process) stop() {
	select {
	case <-p.done:
	default:
		_ = p.cmd.Cancel() // it may have ended in between
		<-p.done
	}
}

// wait waits for the end of the agent, which must be with this exit code.
func (p *process) wait(ctx context.Context, want int) error {
	if err := p.end(ctx); err != nil {
		return err
	}
	code, err := exitCode(p.err)
	if err != nil {
		return fmt.Errorf("the agent did not end by itself (%w); it printed: %s", err, p.printed)
	}
	if code != want {
		return fmt.Errorf("the agent ended with exit code %d, not %d; it printed: %s", code, want, p.printed)
	}
	return nil
}

// end waits for the end of the agent, however it ends.
func (p *process) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the agent does not end (%w); it has printed: %s", ctx.Err(), p.printed)
	}
}

// until waits until the agent has printed something, and returns the match.
func (p *process) until(ctx context.Context, what *regexp.Regexp) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		text, more := p.printed.now()
		if m := what.FindStringSubmatch(text); m != nil {
			return m, nil
		}
		select {
		case <-more:
		case <-p.done:
			if m := what.FindStringSubmatch(p.printed.String()); m != nil {
				return m, nil
			}
			return nil, fmt.Errorf("the agent has ended without printing %q; it printed: %s", what, p.printed)
		case <-ctx.Done():
			return nil, fmt.Errorf("the agent does not print %q (%w); it has printed: %s", what, ctx.Err(), p.printed)
		}
	}
}

// show tells what the agent has printed since the last time.
func (p *process) show(s *Stage) {
	text := p.printed.String()
	s.show(text[p.told:])
	p.told = len(text)
}

var sessionID = regexp.MustCompile(`\bses_[a-z0-9]+`)

// session is the session that the agent was started in.
func (p *process) session() (string, error) {
	if id := sessionID.FindString(p.printed.String()); id != "" {
		return id, nil
	}
	return "", errors.New("the launcher names no session")
}

// Run runs the agent for a purpose to its end, and returns what it and its
// launcher printed and the exit code.
func (s *Stage) Run(ctx context.Context, purpose string, agent ...string) (text string, code int, err error) {
	p, err := s.run(ctx, purpose, agent...)
	if err != nil {
		return "", 0, err
	}
	code, err = exitCode(p.err)
	return p.printed.String(), code, err
}

// run runs the agent to its end and tells what it printed.
func (s *Stage) run(ctx context.Context, purpose string, agent ...string) (*process, error) {
	p, err := s.start(ctx, purpose, agent...)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	err = p.end(ctx)
	p.show(s)
	return p, err
}

// printed is what a program has printed so far. It is safe for use by many at
// once.
type printed struct {
	mu   sync.Mutex
	text []byte
	more chan struct{} // closed by the next write; nil while nobody asks
}

// Write adds to it.
func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = append(p.text, b...)
	if p.more != nil {
		close(p.more)
		p.more = nil
	}
	return len(b), nil
}

// now is what has been printed, and a channel that is closed when that is not
// all any more.
func (p *printed) now() (string, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.more == nil {
		p.more = make(chan struct{})
	}
	return string(p.text), p.more
}

// String is what has been printed.
func (p *printed) String() string {
	text, _ := p.now()
	return text
}
