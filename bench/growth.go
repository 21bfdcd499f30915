package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
)

// The sizes of the installations that are compared, and how many agents of the
// larger one work at the same time.
const (
	fewAgents  = 10
	manyAgents = 100_000
	atWork     = 1_000
)

// growth asks whether a token costs more among 100,000 agents than among ten.
// In the small installation all ten ask in turn; in the large one a thousand
// that are spread over all of it.
func growth(ctx context.Context, b *Bench) ([]Row, error) {
	small, of, err := b.populated(ctx, fewAgents)
	if err != nil {
		return nil, err
	}
	defer small.stop()
	few := of(fewAgents)
	large, of, err := b.populated(ctx, manyAgents)
	if err != nil {
		return nil, err
	}
	defer large.stop()
	many := of(atWork)
	// The first token of an agent opens its session, which is not what is
	// asked about here.
	for _, warm := range []struct {
		in   *installation
		next func() []byte
	}{{small, few}, {large, many}} {
		if _, err := drive(ctx, warm.in.process, callers, 2*b.For, warm.next); err != nil {
			return nil, err
		}
	}
	ratio, micros, err := b.versus(ctx, large.process, small.process, callers, many, few)
	if err != nil {
		return nil, err
	}
	return []Row{{
		Name: "growth", Ratio: ratio, Target: 1.1, Better: "lower",
		Against: fmt.Sprintf("the same with %d agents instead of %d", fewAgents, manyAgents), Value: micros, Unit: "µs of CPU a token",
	}}, nil
}

// populated starts an installation with so many agents. What it gives gives the
// token requests, in turn, of so many of them that are spread over all.
func (b *Bench) populated(ctx context.Context, agents int) (*installation, func(active int) func() []byte, error) {
	in, err := b.install(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	err = in.apply(ctx, company(0, ""))
	in.stop()
	if err != nil {
		return nil, nil, err
	}
	list, err := b.fileIn("agents-*.tsv")
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	if out, err := exec.CommandContext(ctx, self, "peer", "fill", in.dir, "0", fmt.Sprint(agents), list).CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("filling the database: %w\n%s", err, out)
	}
	text, err := os.ReadFile(list)
	if err != nil {
		return nil, nil, err
	}
	if err := in.start(ctx); err != nil {
		return nil, nil, err
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return in, func(active int) func() []byte {
		requests := make([][]byte, active)
		for i := range requests {
			id, secret, _ := strings.Cut(lines[i*len(lines)/active], "\t")
			requests[i] = bySecret(tokenPath, in.addr, credential{ID: id, Secret: secret}, forOwn...)
		}
		var turn atomic.Int64
		return func() []byte { return requests[int(turn.Add(1))%active] }
	}, nil
}
