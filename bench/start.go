package main

import (
	"context"
	"time"
)

// The limits of a server at rest.
const (
	startLimit  = 500 * time.Millisecond
	memoryLimit = 60 << 20 // bytes
)

// idleFor is how long a server is left alone before its memory is looked at.
const idleFor = 10 * time.Second

// start measures how long it takes from the start of the program to the first
// answer of /readyz, on an empty directory and on one that is there, and what
// the program holds in memory when nobody wants anything of it.
func start(ctx context.Context, b *Bench) ([]Row, error) {
	var first, again, resident []float64
	for range b.Rounds {
		began := time.Now()
		in, err := b.install(ctx, "")
		if err != nil {
			return nil, err
		}
		first = append(first, in.answered.Sub(began).Seconds())
		in.stop()
		began = time.Now()
		if err := in.start(ctx); err != nil {
			return nil, err
		}
		again = append(again, in.answered.Sub(began).Seconds())
		select {
		case <-time.After(idleFor):
		case <-ctx.Done():
		}
		n, err := in.resident()
		in.stop()
		if err != nil {
			return nil, err
		}
		resident = append(resident, float64(n))
	}
	limit := func(name string, seconds []float64) Row {
		return Row{
			Name: name, Ratio: median(seconds) / startLimit.Seconds(), Target: 1, Better: "lower",
			Against: "half a second", Value: median(seconds) * 1000, Unit: "ms to the first answer",
		}
	}
	return []Row{
		limit("start", again), limit("start-first", first),
		{
			Name: "memory-idle", Ratio: median(resident) / memoryLimit, Target: 1, Better: "lower",
			Against: "60 MiB", Value: median(resident) / (1 << 20), Unit: "MiB resident",
		},
	}, nil
}
