package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"time"
)

// What a million agents are held against.
const (
	aMillion     = 1_000_000
	crowdedLimit = 300 << 20 // bytes resident
	endLimit     = 5 * time.Millisecond
)

// million asks what an installation with a million agents costs: its start, its
// memory, and a token, where as many are at work as among ten (million-registered)
// and where as many are as in [growth] (million-token); and how long it takes to
// end a million tokens of one agent. It takes a quarter of an hour, most of it to
// make the agents and the tokens.
func million(ctx context.Context, b *Bench) ([]Row, error) {
	small, of, err := b.populated(ctx, fewAgents)
	if err != nil {
		return nil, err
	}
	defer small.stop()
	few := of(fewAgents)
	large, of, err := b.populated(ctx, aMillion)
	if err != nil {
		return nil, err
	}
	defer func() { large.stop() }()
	ten, many := of(fewAgents), of(atWork)
	// The first token of each agent opens its session, and the second one reads
	// it, which is not what is asked about here.
	if err := small.drawn(ctx, 3*fewAgents, few); err != nil {
		return nil, err
	}
	if err := large.drawn(ctx, 3*atWork, many); err != nil {
		return nil, err
	}
	registered, microsOfTen, err := b.versus(ctx, large.process, small.process, callers, ten, few)
	if err != nil {
		return nil, err
	}
	working, micros, err := b.versus(ctx, large.process, small.process, callers, many, few)
	if err != nil {
		return nil, err
	}
	resident, err := large.resident()
	if err != nil {
		return nil, err
	}
	end, err := large.endTokens(ctx)
	if err != nil {
		return nil, err
	}
	var starts []float64
	for range b.Rounds {
		large.stop()
		began := time.Now()
		if err := large.start(ctx); err != nil {
			return nil, err
		}
		starts = append(starts, large.answered.Sub(began).Seconds())
	}
	return []Row{
		{
			Name: "million-start", Ratio: median(starts) / startLimit.Seconds(), Target: 1, Better: "lower",
			Against: "half a second", Value: median(starts) * 1000, Unit: "ms to the first answer",
		},
		{
			Name: "million-registered", Ratio: registered, Target: 1.1, Better: "lower",
			Against: fmt.Sprintf("the same with %d agents instead of %d, ten at work in both", fewAgents, aMillion), Value: microsOfTen, Unit: "µs of CPU a token",
		},
		{
			Name: "million-token", Ratio: working, Target: 1.1, Better: "lower",
			Against: fmt.Sprintf("the same with %d agents instead of %d, %d of them at work", fewAgents, aMillion, atWork), Value: micros, Unit: "µs of CPU a token",
		},
		{
			Name: "million-memory", Ratio: float64(resident) / crowdedLimit, Target: 1, Better: "lower",
			Against: "300 MiB", Value: float64(resident) / (1 << 20), Unit: "MiB resident",
		},
		{
			Name: "million-end", Ratio: end.Seconds() / endLimit.Seconds(), Target: 1, Better: "lower",
			Against: "5 ms", Value: end.Seconds() * 1000, Unit: "ms to end a million tokens",
		},
	}, nil
}

// endTokens gives one agent a million tokens and holds it, which ends them all.
// It says how long the request took that held it, once the server has written
// and sealed what the tokens left behind, the disk has taken it, for which the
// write would wait otherwise, and two others were held that have a token each,
// since the first of each kind of request costs more. It makes sure that the first
// and the last token are nothing any more.
func (in *installation) endTokens(ctx context.Context) (time.Duration, error) {
	const name = "bot-7"
	secret, err := in.secret(ctx, name)
	if err != nil {
		return 0, err
	}
	first, err := in.ask(ctx, secret, forOwn...)
	if err != nil {
		return 0, err
	}
	if err := in.drawn(ctx, aMillion, always(bySecret(tokenPath, in.addr, secret, forOwn...))); err != nil {
		return 0, err
	}
	last, err := in.ask(ctx, secret, forOwn...)
	if err != nil {
		return 0, err
	}
	before := []string{"bot-8", "bot-9"}
	for _, other := range before {
		secret, err := in.secret(ctx, other)
		if err != nil {
			return 0, err
		}
		if _, err := in.ask(ctx, secret, forOwn...); err != nil {
			return 0, err
		}
	}
	if err := in.process.rest(ctx); err != nil {
		return 0, err
	}
	syscall.Sync()
	var took time.Duration
	for _, held := range append(before, name) {
		began := time.Now()
		if err := in.call(ctx, http.MethodPost, "/v1/agents/"+held+"/holds", map[string]string{"kind": "suspended", "reason": "a million tokens"}, nil); err != nil {
			return 0, err
		}
		took = time.Since(began)
	}
	for _, token := range []string{first.Access, last.Access} {
		var what struct {
			Ours struct{ Alive bool } `json:"access_token"`
		}
		if err := in.call(ctx, http.MethodPost, "/v1/tokens/explain", map[string]string{"token": token}, &what); err != nil {
			return 0, err
		}
		if what.Ours.Alive {
			return 0, errors.New("a token of an agent that is held is alive")
		}
	}
	return took, nil
}

// drawn has so many tokens drawn, or some more.
func (in *installation) drawn(ctx context.Context, tokens int64, next func() []byte) error {
	for tokens > 0 {
		l, err := drive(ctx, in.process, callers, time.Second, next)
		if err != nil {
			return err
		}
		if l.failed > 0 {
			return fmt.Errorf("%d answers were errors of the server: %s", l.failed, l.failure)
		}
		tokens -= l.requests
	}
	return nil
}
