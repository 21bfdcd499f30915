package policy

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"estover.dev/internal/guard"
)

// BenchmarkPeer holds a decision against OPA as its documentation has it: a
// prepared query of the same rules, asked with a Go map. Both take turns call
// by call, so that what else the machine does meets both. The peer gets the
// facts for nothing and keeps no record; the decider gathers them, asks the
// kernel and keeps the record's text.
//
//	uncached  a request that was not made before, of a kind that was
//	kept      a request that was made before
//
// bench/ runs this and reads its numbers.
func BenchmarkPeer(b *testing.B) {
	bundle, w := large()
	d := deciderOf(b, w, bundle)
	r := d.pointer("acme").Load()
	ctx := b.Context()
	peer, err := rego.New(
		rego.Query("allow = data.estover.allow; permits = data.estover.permits; obligations = data.estover.obligations"),
		rego.Compiler(r.compiler), rego.Store(inmem.New()),
	).PrepareForEval(ctx)
	if err != nil {
		b.Fatal(err)
	}
	op := call("customer.read", guard.Reads)
	var input map[string]any
	first := decide(b, d, sue, op)
	if err := json.Unmarshal(first.Facts["input"].(json.RawMessage), &input); err != nil || !first.Allow {
		b.Fatal(err, first)
	}
	theirs := func() {
		set, err := peer.Eval(ctx, rego.EvalInput(input))
		if err != nil || len(set) != 1 || set[0].Bindings["allow"] != true {
			b.Fatal(set, err)
		}
	}
	ours := func(engine string) {
		if got := decide(b, d, sue, op); !got.Allow || got.Engine != engine {
			b.Fatalf("allow %v by %s, want by %s", got.Allow, got.Engine, engine)
		}
	}
	took := map[string][]time.Duration{}
	timed := func(name string, fn func()) {
		began := time.Now()
		fn()
		took[name] = append(took[name], time.Since(began))
	}
	for b.Loop() {
		timed("opa", theirs)
		clear(d.answers.young)
		timed("uncached", func() { ours("policy") })
		timed("kept", func() { ours("cache") })
	}
	for name, all := range took {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Nanoseconds())/1000, name+"-p50-µs")
		b.ReportMetric(float64(all[len(all)*99/100].Nanoseconds())/1000, name+"-p99-µs")
	}
}
