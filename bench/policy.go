package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// policies compares a decision with OPA asked as its documentation has it, with
// a Go map and the same rules. OPA belongs to internal/policy alone, so the two
// take turns in a benchmark of that package.
func policies(ctx context.Context, b *Bench) ([]Row, error) {
	test := exec.CommandContext(ctx, "go", "test", "./internal/policy", "-run", "^$", "-bench", "^BenchmarkPeer$",
		"-benchtime", "5000x", "-count", strconv.Itoa(b.Rounds))
	out, err := test.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	rounds := map[string][]float64{} // "uncached-p50" → µs, one a round
	for line := range bytes.Lines(out) {
		fields := strings.Fields(string(line))
		if len(fields) == 0 || !strings.HasPrefix(fields[0], "BenchmarkPeer") {
			continue
		}
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if name, ok := strings.CutSuffix(fields[i+1], "-µs"); ok && err == nil {
				rounds[name] = append(rounds[name], value)
			}
		}
	}
	var rows []Row
	for _, c := range []struct {
		name, at string
		target   float64
	}{{"uncached", "p50", 0.6}, {"uncached", "p99", 0.6}, {"kept", "p50", 0.05}, {"kept", "p99", 0.05}} {
		mine, theirs := rounds[c.name+"-"+c.at], rounds["opa-"+c.at]
		if len(mine) != b.Rounds || len(theirs) != b.Rounds {
			return nil, fmt.Errorf("the benchmark did not say how long decisions took:\n%s", out)
		}
		var ratios []float64
		for i := range mine {
			ratios = append(ratios, mine[i]/theirs[i])
		}
		rows = append(rows, Row{
			Name: "policy-" + c.name + "-" + c.at, Ratio: median(ratios), Target: c.target, Better: "lower",
			Against: "OPA asked with a Go map, the same rules", Value: median(mine), Unit: "µs a decision (" + c.at + ")",
		})
	}
	return rows, nil
}
