package policy

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"estover.dev/internal/guard"
)

// timed runs fn and reports how long half and 99 of a hundred runs took at
// most.
func timed(b *testing.B, fn func()) {
	b.Helper()
	b.ReportAllocs()
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		fn()
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-µs")
}

// large is the starter bundle and, besides, rules of forty departments and an
// agent with 10,000 grants.
func large() (Bundle, *world) {
	b := Starter()
	for i := range 40 {
		b = append(b, File{fmt.Sprintf("department%02d.rego", i), fmt.Sprintf(`# METADATA
# title: Department %[1]d
# description: What agents of department %[1]d may do.
package tenant.department%02[1]d

# METADATA
# title: Its own records
permit contains "own_records" if {
	input.action.name == "department%02[1]d.read"
	input.facts.entitled == true
}

# METADATA
# title: Not on a whim
# description: This department does not delete.
# custom:
#   next: Ask it.
deny contains "does_not_delete" if {
	input.action.name == "department%02[1]d.delete"
	input.action.effect == "delete"
}
`, i)})
	}
	w := shop()
	list := make([]Grant, 0, 10_000)
	for i := range 10_000 {
		list = append(list, Grant{Resource: fmt.Sprintf("res_%d", i%2_000), Actions: []string{fmt.Sprintf("a%d.read", i)}})
	}
	w.grants["agt_sue"] = NewGrants(append(list, Grant{Resource: "res_crm", Actions: []string{"customer.*"}, Purposes: []string{"support"}}))
	return b, w
}

// The hot path: a call that a grant covers.
//
//	cached   the answer is kept
//	uncached it is not; the rule that permits and the obligations are
//	cold     nothing is kept
//	refused  the reasons are looked for
func BenchmarkDecide(b *testing.B) {
	largeBundle, largeWorld := large()
	for _, size := range []struct {
		name   string
		bundle Bundle
		world  *world
	}{{"starter", Starter(), shop()}, {"large", largeBundle, largeWorld}} {
		d := deciderOf(b, size.world, size.bundle)
		read, forbidden := call("customer.read", guard.Reads), call("customer.delete", guard.Deletes)
		if size.name == "large" {
			forbidden = call("invoice.delete", guard.Deletes)
		}
		ctx := b.Context()
		decide := func(op guard.Op, want bool) {
			if got, err := d.Decide(ctx, sue, op); err != nil || got.Allow != want {
				b.Fatalf("allow %v, %v", got, err)
			}
		}
		b.Run(size.name+"/cached", func(b *testing.B) { timed(b, func() { decide(read, true) }) })
		b.Run(size.name+"/uncached", func(b *testing.B) {
			timed(b, func() {
				clear(d.answers.young)
				decide(read, true)
			})
		})
		b.Run(size.name+"/cold", func(b *testing.B) {
			timed(b, func() {
				clear(d.answers.young)
				clear(d.duties.young)
				clear(d.permitRules.young)
				decide(read, true)
			})
		})
		b.Run(size.name+"/refused", func(b *testing.B) { timed(b, func() { decide(forbidden, false) }) })
	}
}

// The parts of a decision.
func BenchmarkParts(b *testing.B) {
	d := deciderOf(b, shop(), Starter())
	r := d.pointer("acme").Load()
	k := &known{}
	if err := d.sources.gather(b.Context(), k, sue, call("customer.read", guard.Reads), time.Now()); err != nil {
		b.Fatal(err)
	}
	facts := d.facts.of(&k.Facts)
	input := k.term(facts, nil)
	b.Run("facts", func(b *testing.B) {
		timed(b, func() { _ = d.sources.gather(b.Context(), &known{}, sue, call("customer.read", guard.Reads), k.now) })
	})
	b.Run("kernel", func(b *testing.B) { timed(b, func() { _ = kernel(k) }) })
	b.Run("input", func(b *testing.B) { timed(b, func() { _ = k.term(facts, nil) }) })
	b.Run("record", func(b *testing.B) { timed(b, func() { _ = digest(k.appendJSON(nil, facts)) }) })
	b.Run("allow", func(b *testing.B) {
		timed(b, func() {
			if ok, err := r.allows(b.Context(), input); !ok || err != nil {
				b.Fatal(ok, err)
			}
		})
	})
	b.Run("key", func(b *testing.B) { timed(b, func() { d.answers.get(r.wholeKey(k, facts), k.now) }) })
	b.Run("compile", func(b *testing.B) {
		timed(b, func() {
			if _, found := compile(Starter()); len(found) > 0 {
				b.Fatal(found)
			}
		})
	})
}
