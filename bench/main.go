// Bench measures what Estover costs against a named peer or a raw limit, in
// the same run on the same machine, and prints ratios: a bare time says more
// about the machine than about the program.
//
//	go run ./bench                      all rows but the next, minutes
//	go run ./bench -run million         a quarter of an hour
//	go run ./bench -run token -json     some rows, one JSON object a line
//
// The robust number is the CPU time of the server's process for each request,
// as the kernel counts it; subject and peer run in turns, several rounds, and
// the ratio is the median of the rounds. The peers are processes of this same
// program (peer.go), so that their clients' work is not counted in.
// docs/performance.md has the figures and says how to repeat them.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// A Row is one measurement.
type Row struct {
	Name    string  `json:"name"`
	Ratio   float64 `json:"ratio"`   // of the subject to what it is held against
	Target  float64 `json:"target"`  // what the ratio is to reach
	Better  string  `json:"better"`  // lower or higher
	Against string  `json:"against"` // the peer or the limit
	Value   float64 `json:"value"`   // the subject's own figure
	Unit    string  `json:"unit"`
}

// Met reports whether the target is reached.
func (r Row) Met() bool {
	if r.Better == "higher" {
		return r.Ratio >= r.Target
	}
	return r.Ratio <= r.Target
}

// A Case measures one row or several that share their preparation.
type Case struct {
	Name string // matched by -run
	Run  func(ctx context.Context, b *Bench) ([]Row, error)
}

// cases are all there is, in the order in which they run.
var cases = []Case{
	{"group-commit", groupCommit},
	{"audited", audited},
	{"checkpoint", checkpoints},
	{"start", start},
	{"token", tokens},
	{"token-dpop", tokensBound},
	{"exchange", exchanges},
	{"refresh", refreshes},
	{"introspection", introspections},
	{"connections", connections},
	{"gateway", gateways},
	{"streams", streams},
	{"pipelines", pipelines},
	{"policy", policies},
	{"secrets", secrets},
	{"leases", leases},
	{"leases-100000", crowd},
	{"growth", growth},
	{"million", million},
}

// long are the cases that run only where they are asked for by name.
var long = []string{"million"}

// A Bench is one run.
type Bench struct {
	Program  string        // the estover binary that is measured
	Dir      string        // for what the cases write; removed afterwards
	Rounds   int           // how often subject and peer take turns
	For      time.Duration // how long a turn lasts
	Profiles int           // the port of this machine where the next server answers profilers; 0 for none
	Merged   string        // the file for what the servers spend their time on; "" for none
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "peer" {
		if err := peer(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench peer:", err)
			os.Exit(1)
		}
		return
	}
	pattern := flag.String("run", "", "regular expression: run only the cases whose names match")
	asJSON := flag.Bool("json", false, "print one JSON object a row")
	rounds := flag.Int("rounds", 3, "how often subject and peer take turns")
	turn := flag.Duration("for", 4*time.Second, "how long a turn lasts")
	program := flag.String("program", "", "measure this estover instead of building one")
	profiles := flag.Int("pprof", 0, "port of this machine where the first server answers profilers, the next one at the next")
	merged := flag.String("profile", "", "write what the servers spend their time on to this file: cmd/estover/default.pgo has the compiler know it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	met, err := run(ctx, *pattern, *asJSON, &Bench{Rounds: *rounds, For: *turn, Profiles: *profiles, Program: *program, Merged: *merged})
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if !met {
		os.Exit(1)
	}
}

// run measures and prints; it reports whether every target was reached.
func run(ctx context.Context, pattern string, asJSON bool, b *Bench) (bool, error) {
	wanted, err := regexp.Compile(pattern)
	if err != nil {
		return false, fmt.Errorf("-run: %w", err)
	}
	if b.Dir, err = os.MkdirTemp("", "estover-bench-"); err != nil {
		return false, err
	}
	defer os.RemoveAll(b.Dir)
	if b.Program == "" {
		b.Program = filepath.Join(b.Dir, "estover")
		build := exec.CommandContext(ctx, "go", "build", "-pgo=auto", "-trimpath", "-ldflags", "-s -w", "-o", b.Program, "./cmd/estover")
		if out, err := build.CombinedOutput(); err != nil {
			return false, fmt.Errorf("building the program: %w\n%s", err, out)
		}
	}
	met := true
	for _, c := range cases {
		if !wanted.MatchString(c.Name) || pattern == "" && slices.Contains(long, c.Name) {
			continue
		}
		rows, err := c.Run(ctx, b)
		if ctx.Err() != nil {
			return false, errors.New("interrupted")
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", c.Name, err)
		}
		for _, r := range rows {
			met = met && r.Met()
			if asJSON {
				if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
					return false, err
				}
				continue
			}
			verdict := "met"
			if !r.Met() {
				verdict = "NOT MET"
			}
			fmt.Printf("%-28s %6.2f  (target %s %.2f: %s)  %s; %.4g %s\n", r.Name, r.Ratio, map[string]string{"lower": "≤", "higher": "≥"}[r.Better], r.Target, verdict, r.Against, r.Value, r.Unit)
		}
	}
	if b.Merged != "" {
		return met, b.mergeProfiles(ctx, b.Merged)
	}
	return met, nil
}

func median[T cmp.Ordered](values []T) T {
	s := slices.Clone(values)
	slices.Sort(s)
	return s[len(s)/2]
}

// quantile is the least value that so large a part of all does not exceed.
func quantile[T cmp.Ordered](values []T, part float64) T {
	s := slices.Clone(values)
	slices.Sort(s)
	return s[min(int(part*float64(len(s))), len(s)-1)]
}
