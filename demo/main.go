// Demo takes one agent through its first task under Estover, with a sample
// company on loopback: what it does, what it must not and does not, what it is
// let do for a while, and how it is stopped (package story). It needs no account,
// no container and no network.
//
// On a terminal it tells the story at reading speed and leaves the server
// running for a look around. Elsewhere, or with CI set, it runs through, and
// its exit code is 0 only if every beat held. Everything that it writes is in
// a temporary directory, which is removed at the end, as are its processes,
// also when something fails or somebody presses Ctrl-C.
//
// The programs that it runs, estover and sample-agent, lie beside it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"estover.dev/demo/story"
)

func main() {
	fast := flag.Bool("fast", false, "on a terminal: do not wait for the reader")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: it takes no arguments, but got %q\n", flag.Args())
		os.Exit(2)
	}
	os.Exit(run(*fast))
}

// run is the whole demo, and returns the exit code.
func run(fast bool) int {
	// A reader that goes away, as `head` does, must not leave processes behind
	// either.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	t := newTeller(ctx)
	t.slow = t.interactive && !fast
	held, of, err := perform(ctx, t)
	switch {
	case ctx.Err() != nil && !t.over:
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything is removed")
		return 130
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if of > 0 && !t.over {
		t.verdict(held, of)
	}
	if err != nil || held < of {
		return 1
	}
	return 0
}

// perform sets the stage, plays the beats and takes everything down again. It
// returns how many of how many beats held.
func perform(ctx context.Context, t *teller) (held, of int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	bin := filepath.Dir(self)
	dir, err := os.MkdirTemp("", "estover-demo-")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	t.title("Estover: one agent, one task, and what can go wrong")
	t.paragraph("All of it is on this machine: a sample company with a customer system (CRM) that opens to whoever sends its key, an agent that works there, and a server of Estover. It is in " + dir + " and goes away at the end.")
	config := story.Config{Estover: filepath.Join(bin, "estover"), Agent: filepath.Join(bin, "sample-agent"), Dir: dir, Tell: t.line}
	if t.slow {
		config.Ask = t.ask
	}
	s, err := story.Open(ctx, config)
	if err != nil {
		return 0, 0, fmt.Errorf("setting the stage: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	t.paragraph("That is all of the setting up: what there is stands in company.yaml, and the key is sealed in Estover's vault.")
	beats := s.Beats()
	of = len(beats)
	for n, b := range beats {
		t.title(fmt.Sprintf("%d  %s", n+1, b.Claim))
		saw, err := b.Play(ctx)
		switch {
		case ctx.Err() != nil:
			return held, of, nil
		case err != nil:
			t.failed(err)
		default:
			held++
			t.held(saw)
		}
	}
	if held < of {
		t.title("The end of the server's log")
		t.line(story.Line{Kind: story.Output, Text: s.LogTail(15)})
	}
	if t.interactive {
		return held, of, look(ctx, t, s, held, of, bin)
	}
	return held, of, nil
}

// look leaves the server running until somebody presses Ctrl-C.
func look(ctx context.Context, t *teller, s *story.Stage, held, of int, bin string) error {
	t.verdict(held, of)
	t.over = true
	exports, err := s.Exports()
	if err != nil {
		return err
	}
	var env strings.Builder
	for _, name := range slices.Sorted(maps.Keys(exports)) {
		fmt.Fprintf(&env, "export %s='%s'\n", name, exports[name])
	}
	fmt.Fprintf(&env, "export PATH='%s':\"$PATH\"\n", bin)
	file := filepath.Join(s.Dir, "env")
	if err := os.WriteFile(file, []byte(env.String()), 0o600); err != nil {
		return err
	}
	t.title("Have a look around")
	t.paragraph("The server runs on " + s.Addr + " until you press Ctrl-C. In another terminal:")
	t.commands(
		". "+file, "ESTOVER_ADDR, ESTOVER_CA, ESTOVER_TOKEN, CRM_URL",
		"estover event list --outcome refused", "what was refused",
		"estover session list", "the tasks; then: estover session show SESSION",
		"estover session replay SESSION", "what went through the gateway",
		"estover agent show support-bot", "its hold; then: estover contain lift HOLD --reason …, and somebody else approves it",
		"estover run --agent support-bot --purpose support -- curl $CRM_URL/v1/customers", "any program, once it is lifted",
		"estover audit verify", "every entry of the log",
		"less "+filepath.Join(s.Dir, "company.yaml"), "what the company is made of",
	)
	select {
	case <-ctx.Done():
		fmt.Fprintln(t.w, "\nStopping, and removing "+s.Dir)
		return nil
	case <-s.Exited():
		return errors.New("the server has ended")
	}
}
