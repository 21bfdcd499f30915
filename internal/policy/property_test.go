package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
	"github.com/open-policy-agent/opa/v1/ast"
	"pgregory.net/rapid"
)

// anyFacts are facts of every kind.
func anyFacts(t *rapid.T) Facts {
	f := Unremarkable
	for _, one := range facts {
		if one.flag != nil {
			*one.flag(&f) = rapid.Bool().Draw(t, one.name)
		} else {
			*one.word(&f) = rapid.SampledFrom(one.list).Draw(t, one.name)
		}
	}
	return f
}

// stock are the agents and resources that inputs are drawn from: shared, as
// those of a server are.
var stock = struct {
	agents    []*Agent
	resources []*Resource
}{
	[]*Agent{nobody, shop().agents["agt_sue"], shop().agents["agt_bill"], {ID: "agt_<é>", Team: "a\"b", Clearance: estover.Restricted}},
	[]*Resource{unknown, tokens, shop().resources["res_crm"], shop().resources["res_payroll"], {ID: "res_odd", Type: "http", Class: "odd", Tags: []string{"<script>", "ü"}}},
}

// anyKnown is what may be known of a request.
func anyKnown(t *rapid.T) *known {
	k := &known{}
	k.Op = rapid.SampledFrom([]string{"gateway.call", "secret.use", "token.issue", "secret.read", "agent.create", "session.open", "session.end"}).Draw(t, "op")
	k.Purpose = rapid.SampledFrom([]string{"support", "billing", "", "a&b"}).Draw(t, "purpose")
	k.Action = rapid.SampledFrom([]string{"customer.read", "customer.delete", "", "odd \u2028 name"}).Draw(t, "action")
	k.Effect = rapid.SampledFrom([]string{"read", "search", "write", "delete", "send", "execute", "admin", "pay"}).Draw(t, "effect")
	k.Class = rapid.SampledFrom(append(slices.Clone(estover.Classes), "odd")).Draw(t, "class")
	k.Caller = rapid.SampledFrom([]string{"agent", "agent", "agent", "user", "system"}).Draw(t, "caller")
	k.Admin, k.Operator, k.Auditor = rapid.Bool().Draw(t, "admin"), rapid.Bool().Draw(t, "operator"), rapid.Bool().Draw(t, "auditor")
	k.Session = rapid.SampledFrom([]string{"", "ses_1", "ses_2"}).Draw(t, "session")
	k.Resource = rapid.SampledFrom(stock.resources).Draw(t, "resource")
	k.Agent = rapid.SampledFrom(stock.agents).Draw(t, "agent")
	k.Delegator = rapid.SampledFrom([]*Agent{nil, nil, stock.agents[1], stock.agents[2]}).Draw(t, "delegator")
	k.Facts = anyFacts(t)
	return k
}

// differ changes one part of what is known.
func differ(t *rapid.T, k *known) {
	switch rapid.IntRange(0, 9).Draw(t, "what differs") {
	case 0:
		k.Purpose = rapid.SampledFrom([]string{"support", "another"}).Draw(t, "purpose")
	case 1:
		k.Session = rapid.SampledFrom([]string{"ses_2", "another"}).Draw(t, "session")
	case 2:
		k.Agent = rapid.SampledFrom(stock.agents).Draw(t, "agent")
	case 3:
		k.Resource = rapid.SampledFrom(stock.resources).Draw(t, "resource")
	case 4:
		k.Class = rapid.SampledFrom(estover.Classes).Draw(t, "class")
	case 5:
		k.Caller = rapid.SampledFrom([]string{"agent", "user", "system"}).Draw(t, "caller")
	case 6:
		k.Action = "another"
	case 7:
		k.Effect = rapid.SampledFrom([]string{"read", "delete"}).Draw(t, "effect")
	case 8:
		k.Facts = anyFacts(t)
	case 9:
		k.Delegator = rapid.SampledFrom(stock.agents).Draw(t, "delegator")
	}
}

// odd is the starter bundle and rules that look at odd parts of the input.
func odd() Bundle {
	return append(Starter(), File{"odd.rego", oddRules})
}

const oddRules = `# METADATA
# title: Odd
# description: Rules that look at everything.
package tenant.odd

# METADATA
# title: A purpose
permit contains "for_support" if {
	input.purpose == "support"
	"billing" in input.agent.purposes
}

# METADATA
# title: A session
permit contains "in_the_second" if {
	input.session.id == "ses_2"
	count(input.resource.tags) > 0
}

# METADATA
# description: The class is odd.
# custom:
#   next: Go.
deny contains "odd_class" if {
	input.resource.class == "restricted"
	input.agent.clearance != "restricted"
}

# METADATA
# title: From whom
permit contains "from_the_same_team" if {
	input.delegator.team == input.agent.team
	input.op == "token.issue"
}

# METADATA
# title: Who
oblige contains {"type": "notification", "to": input.agent.team} if {
	input.op == "gateway.call"
	input.agent.team != ""
}

# METADATA
# title: When
oblige contains {"type": "limit", "rows": 7} if {
	input.facts.label_conf == "restricted"
	input.caller.kind == "agent"
}
`

// What OPA evaluates and what the record keeps are the same input, written as
// encoding/json writes it, with every member of the schema and no other.
func TestInputIsTheRecord(t *testing.T) {
	var n interner
	rapid.Check(t, func(t *rapid.T) {
		k := anyKnown(t)
		s := n.of(&k.Facts)
		text := k.appendJSON(nil, s)
		fromText, err := ast.ValueFromReader(strings.NewReader(string(text)))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if term := k.term(s, nil); term.Compare(fromText) != 0 {
			t.Fatalf("evaluated\n%s\nrecorded\n%s", term, text)
		}
		var v map[string]any
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatal(err)
		}
		if again, _ := json.Marshal(v); string(again) != string(text) {
			t.Fatalf("recorded\n%s\nwhich encoding/json writes as\n%s", text, again)
		}
		if err := fits(inputShape(), v, "input"); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
	})
}

// fits checks a value against the schema: the members, the types, the lists.
func fits(s schema, v any, at string) error {
	switch s.Type {
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is no object", at)
		}
		for name, p := range s.Properties {
			member, ok := m[name]
			if !ok {
				if at+"."+name == "input.params" || at+"."+name == "input.delegator" {
					continue
				}
				return fmt.Errorf("%s lacks %s", at, name)
			}
			if err := fits(p, member, at+"."+name); err != nil {
				return err
			}
		}
		for name := range m {
			if _, ok := s.Properties[name]; !ok {
				return fmt.Errorf("%s has %s, which the schema does not know", at, name)
			}
		}
	case "string":
		word, ok := v.(string)
		if !ok || len(s.Enum) > 0 && !contains(s.Enum, word) {
			return fmt.Errorf("%s is %v, want one of %v", at, v, s.Enum)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			return fmt.Errorf("%s is %v, want true or false", at, v)
		}
	case "array":
		if _, ok := v.([]any); !ok {
			return fmt.Errorf("%s is %v, want a list", at, v)
		}
	}
	return nil
}

// A kept answer is the answer that would be worked out, for every input, also
// of bundles whose rules look at odd parts of it. And OPA's index of rules
// changes no answer.
func TestKeptAnswersAreTheAnswers(t *testing.T) {
	for name, b := range map[string]Bundle{"starter": Starter(), "odd": odd()} {
		t.Run(name, func(t *testing.T) {
			d := deciderOf(t, shop(), b)
			r := d.pointer("acme").Load()
			kept, refused := 0, 0
			rapid.Check(t, func(t *rapid.T) {
				k := anyKnown(t)
				other := *k
				differ(t, &other)
				for _, k := range []*known{k, &other} { // the second has but one part that has not been asked about
					fresh := NewDecider(nil, Sources{}, Options{})
					var answers []string
					for _, d := range []*Decider{fresh, d, d} {
						got, err := d.evaluate(t.Context(), r, k, guard.Op{})
						if err != nil {
							t.Fatal(err)
						}
						switch {
						case got.Engine == "cache" && !got.Allow:
							t.Fatal("a refusal was kept")
						case got.Engine == "cache":
							kept++
						case !got.Allow:
							refused++
						}
						got.Engine = ""
						answers = append(answers, mustJSON(got))
					}
					if answers[1] != answers[0] || answers[2] != answers[0] {
						t.Fatalf("worked out alone\n%s\nfirst\n%s\nagain\n%s", answers[0], answers[1], answers[2])
					}
				}
				for e := range entries {
					input := k.term(d.facts.of(&k.Facts), nil)
					with, err1 := r.eval(t.Context(), e, input, true)
					without, err2 := r.eval(t.Context(), e, input, false)
					if err1 != nil || err2 != nil || with.Compare(without) != 0 {
						t.Fatalf("%s is %v (%v) with the index and %v (%v) without", e.name(), with, err1, without, err2)
					}
				}
			})
			if kept == 0 || refused == 0 {
				t.Errorf("%d answers came from the cache and %d were refusals; want some of both", kept, refused)
			}
		})
	}
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// The key of an entry tells apart whatever its rules tell apart: two inputs
// with the same key have the same answer.
func TestKeysTellApart(t *testing.T) {
	d := deciderOf(t, shop(), odd())
	r := d.pointer("acme").Load()
	same := 0
	rapid.Check(t, func(t *rapid.T) {
		a := anyKnown(t)
		b := *a
		differ(t, &b)
		for e := range entries {
			if r.keyOf(e, &a.Input, d.facts.of(&a.Facts)) != r.keyOf(e, &b.Input, d.facts.of(&b.Facts)) {
				continue
			}
			same++
			x, err := r.eval(t.Context(), e, a.term(d.facts.of(&a.Facts), nil), true)
			if err != nil {
				t.Fatal(err)
			}
			y, err := r.eval(t.Context(), e, b.term(d.facts.of(&b.Facts), nil), true)
			if err != nil {
				t.Fatal(err)
			}
			if x.Compare(y) != 0 {
				t.Fatalf("%s has one key and two answers: %v and %v", e.name(), x, y)
			}
		}
	})
	if same == 0 {
		t.Error("no two inputs had the same key")
	}
}

// No bundle gives what the kernel refuses, whatever the world is like.
func TestKernelIsNeverOverridden(t *testing.T) {
	permissive := Bundle{{"a.rego", head + "permit contains \"all\" if input.caller.kind in {\"agent\", \"user\"}\n"}}
	r, found := compile(permissive)
	if len(found) > 0 {
		t.Fatal(found)
	}
	refused, allowed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w := shop()
		a := w.agents["agt_sue"]
		yes := func(what string) bool { return rapid.IntRange(0, 7).Draw(t, what) == 0 }
		var wrong bool
		when := func(what string, fn func()) {
			if yes(what) {
				wrong = true
				fn()
			}
		}
		when("pending", func() { a.Pending = true })
		when("held", func() { a.Holds = []string{"x"} })
		when("orphan", func() { a.Sponsored = false })
		when("expired", func() { a.Expires = time.Unix(1, 0) })
		when("unclear", func() { a.Clearance = estover.Public })
		when("elsewhere", func() { a.Segments = []string{"far"}; w.resources["res_crm"].Segment = "near" })
		when("resource held", func() { w.resources["res_crm"].Holds = []string{"x"} })
		when("all held", func() { w.holds = []string{"x"} })
		when("ended", func() { s := w.sessions["ses_sue"]; s.Ended = true; w.sessions["ses_sue"] = s })
		when("token", func() { w.token = errNone })
		d := NewDecider(nil, w.sources(), Options{})
		d.pointer("acme").Store(r)
		got, err := d.Decide(t.Context(), sue, call("customer.read", guard.Reads))
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case wrong && (got.Allow || got.Engine != "kernel" || !strings.HasPrefix(got.Reasons[0], "kernel_")):
			t.Fatalf("allow %v by the %s for %v", got.Allow, got.Engine, got.Reasons)
		case wrong:
			refused++
		case got.Allow:
			allowed++
		}
	})
	if refused == 0 || allowed == 0 {
		t.Errorf("%d were refused and %d allowed; want some of both", refused, allowed)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache[int]()
	c.size = 10
	now := time.Now()
	for i := range 1000 {
		c.put(key{op: fmt.Sprint(i)}, i, now)
		if n := len(c.young) + len(c.old); n > 20 {
			t.Fatalf("the cache holds %d answers", n)
		}
	}
	if v, ok := c.get(key{op: "999"}, now); !ok || v != 999 {
		t.Errorf("the last answer is %v, %v", v, ok)
	}
	if v, ok := c.get(key{op: "1"}, now); ok {
		t.Errorf("the first answer is still there: %v", v)
	}
	if _, ok := c.get(key{op: "999"}, now.Add(maxAge)); ok {
		t.Error("an answer is given that is too old")
	}
	if _, ok := c.get(key{op: "999"}, now.Add(maxAge-1)); !ok {
		t.Error("an answer is dropped that is young enough")
	}
}
