package policy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/guard"
)

// gathered are the facts of a request.
func gathered(t *testing.T, w *world, caller estover.Caller, op guard.Op) Facts {
	t.Helper()
	s := w.sources()
	s.Pending = func(_ context.Context, _ estover.TenantID, agent, session, resource, action string) (bool, error) {
		return agent == "agt_sue" && session == "ses_sue" && resource == "res_crm" && action == "customer.delete", nil
	}
	k := &known{}
	if err := s.gather(t.Context(), k, caller, op, ago(0)); err != nil {
		t.Fatal(err)
	}
	return k.Facts
}

// read is a call of the CRM with parameters in its path.
func read(params map[string]string) guard.Op {
	op := call("customer.read", guard.Reads)
	op.Input = Call{Action: "customer.read", Params: params}
	return op
}

func withLeft(word string) func(context.Context) (string, string, error) {
	return func(context.Context) (string, string, error) {
		return word, "the budget calls of the grant reading", nil
	}
}

func TestMandateFacts(t *testing.T) {
	grant := func(edit func(g *Grant)) *world {
		w := shop()
		g := Grant{ID: "gra_1", Resource: "res_crm", Actions: []string{"customer.read"}, Purposes: []string{"support"}}
		edit(&g)
		w.grants["agt_sue"] = NewGrants([]Grant{g})
		return w
	}
	confined := func(g *Grant) { g.Parameters = map[string][]string{"id": {"42", "43"}} }
	for name, c := range map[string]struct {
		world *world
		op    guard.Op
		want  func(f *Facts)
	}{
		"a standing grant":        {grant(func(*Grant) {}), read(nil), func(f *Facts) { f.Entitled, f.PurposeOK, f.GrantKind = true, true, "standing" }},
		"an elevated grant":       {grant(func(g *Grant) { g.Elevated = true }), read(nil), func(f *Facts) { f.Entitled, f.PurposeOK, f.GrantKind, f.Elevation = true, true, "elevated", "approved" }},
		"a value of the list":     {grant(confined), read(map[string]string{"id": "43"}), func(f *Facts) { f.Entitled, f.PurposeOK, f.GrantKind = true, true, "standing" }},
		"another value":           {grant(confined), read(map[string]string{"id": "44"}), func(f *Facts) { f.ArgsInScope = false }},
		"no such parameter":       {grant(confined), read(nil), func(f *Facts) { f.ArgsInScope = false }},
		"another action":          {grant(confined), call("customer.list", guard.Reads), func(*Facts) {}},
		"one that is asked for":   {grant(confined), call("customer.delete", guard.Deletes), func(f *Facts) { f.Elevation = "pending" }},
		"another session's":       {grant(func(g *Grant) { g.Session = "ses_research" }), read(nil), func(*Facts) {}},
		"its session's":           {grant(func(g *Grant) { g.Session = "ses_sue" }), read(nil), func(f *Facts) { f.Entitled, f.PurposeOK, f.GrantKind = true, true, "standing" }},
		"nobody has used it":      {grant(func(g *Grant) { g.Unused = true }), read(nil), func(f *Facts) { f.Entitled, f.PurposeOK, f.GrantKind, f.UnusedLong = true, true, "standing", true }},
		"a budget with much left": {grant(func(g *Grant) { g.Left = withLeft("ok") }), read(nil), func(f *Facts) { f.Entitled, f.PurposeOK, f.GrantKind = true, true, "standing" }},
		"a budget with little":    {grant(func(g *Grant) { g.Left = withLeft("near") }), read(nil), func(f *Facts) { f.Entitled, f.PurposeOK, f.GrantKind, f.Budget = true, true, "standing", "near" }},
		"a budget used up":        {grant(func(g *Grant) { g.Left = withLeft("exceeded") }), read(nil), func(f *Facts) { f.Entitled, f.PurposeOK, f.GrantKind, f.Budget = true, true, "standing", "exceeded" }},
		"a word of nobody's":      {grant(func(g *Grant) { g.Left = withLeft("plenty") }), read(nil), func(f *Facts) { f.Entitled, f.PurposeOK, f.GrantKind, f.Budget = true, true, "standing", "exceeded" }},
	} {
		want := Unremarkable
		want.AuthStrength = "key"
		want.PurposeOK = false
		c.want(&want)
		if got := gathered(t, c.world, sue, c.op); got != want {
			t.Errorf("%s: the facts are %+v, want %+v", name, got, want)
		}
	}
}

// TestRiskBand: the risk of who acts is a fact, and a word that nobody knows is
// the worst.
func TestRiskBand(t *testing.T) {
	for risk, want := range map[string]string{"": "low", "low": "low", "raised": "raised", "high": "high", "critical": "critical", "odd": "critical"} {
		w := shop()
		w.agents["agt_sue"].Risk = risk
		if got := gathered(t, w, sue, call("customer.read", guard.Reads)).RiskBand; got != want {
			t.Errorf("of an agent whose risk is %q the fact is %s, want %s", risk, got, want)
		}
		if got := gathered(t, w, person(estover.Operator), guard.Op{Action: "agent.read", Target: "agent:agt_sue", Effect: guard.Reads}).RiskBand; got != "low" {
			t.Errorf("of a person who looks at an agent whose risk is %q the fact is %s, want low", risk, got)
		}
	}
}

// TestBound: a rule decides by what the session in which a request is made is bound
// to, and a word that nobody knows is none.
func TestBound(t *testing.T) {
	for bound, want := range map[string]string{"": "none", "none": "none", "user": "user", "process": "process", "host": "none"} {
		w := shop()
		task := w.sessions["ses_sue"]
		task.Bound = bound
		w.sessions["ses_sue"] = task
		op := call("customer.read", guard.Reads)
		if got := gathered(t, w, sue, op).Bound; got != want {
			t.Errorf("in a session that is bound to %q the fact is %s, want %s", bound, got, want)
		}
		for _, word := range []string{"process", "user", "none"} {
			rule := denial("\tinput.facts.bound == \"" + word + "\"\n\tinput.op == \"gateway.call\"")
			d := deciderOf(t, w, append(Starter(), File{Path: "test.rego", Text: rule}))
			if got := decide(t, d, sue, op); got.Allow == (want == word) {
				t.Errorf("in a session that is bound to %q, where %s is denied, the answer is %+v", bound, word, got)
			}
		}
	}
	if got := gathered(t, shop(), person(estover.Operator), guard.Op{Action: "session.read", Target: "session:ses_sue", Effect: guard.Reads}).Bound; got != "none" {
		t.Errorf("outside of a session the fact is %s, want none", got)
	}
}

// TestBudgetUsedUp: nothing a policy says overrides it, and the answer says which
// budget it is. Where another grant covers the call it does not matter.
func TestBudgetUsedUp(t *testing.T) {
	w := shop()
	one := Grant{ID: "gra_1", Resource: "res_crm", Actions: []string{"customer.read"}, Purposes: []string{"support"}, Left: withLeft("exceeded")}
	w.grants["agt_sue"] = NewGrants([]Grant{one})
	d := deciderOf(t, w, Starter())
	got := decide(t, d, sue, read(nil))
	if got.Allow || !slices.Equal(got.Reasons, []string{"kernel_budget"}) || !strings.Contains(got.Message, "the budget calls of the grant reading") || got.Next == "" {
		t.Errorf("on a budget used up: %+v", got)
	}
	under := read(nil)
	for grant, want := range map[string]bool{"gra_1": true, "gra_2": false} {
		under.Input = Call{Action: "customer.read", Charged: []string{grant}}
		if got := decide(t, d, sue, under); got.Allow != want {
			t.Errorf("a call that is under way and has taken the last of %s: %+v, want %v", grant, got, want)
		}
	}
	near := one
	near.ID, near.Left = "gra_2", withLeft("near")
	full := one
	full.ID, full.Left = "gra_3", nil
	for what, list := range map[string][]Grant{"near": {one, near}, "ok": {near, one, full}} {
		w.grants["agt_sue"] = NewGrants(list)
		if got := decide(t, d, sue, read(nil)); !got.Allow {
			t.Errorf("beside another grant: %+v", got)
		}
		if got := gathered(t, w, sue, read(nil)).Budget; got != what {
			t.Errorf("of %d grants the budget is %s, want %s", len(list), got, what)
		}
	}
	one.Left = func(context.Context) (string, string, error) { return "", "", errors.New("the database is gone") }
	w.grants["agt_sue"] = NewGrants([]Grant{one})
	if got := decide(t, d, sue, read(nil)); got.Allow || !slices.Equal(got.Reasons, []string{"kernel_facts"}) {
		t.Errorf("on a budget of which nothing is known: %+v", got)
	}
}

// TestHandedOnRestsOnAll: work that was handed on is covered by the grants of all
// by way of whom it came, and draws on the budgets of all.
func TestHandedOnRestsOnAll(t *testing.T) {
	reading := Grant{Resource: "res_crm", Actions: []string{"customer.read"}, Purposes: []string{"support"}}
	empty, low, confined := reading, reading, reading
	empty.Left, low.Left, confined.Parameters = withLeft("exceeded"), withLeft("near"), map[string][]string{"id": {"42"}}
	caller := sue
	caller.Subject, caller.Actors = estover.Agent("agt_bill"), []estover.Subject{estover.Agent("agt_sue")}
	for name, c := range map[string]struct {
		bill   []Grant
		reason string // "" if it is allowed
		budget string
	}{
		"both are granted":                 {[]Grant{reading}, "", "ok"},
		"the first has no grant":           {nil, "not_granted", "ok"},
		"the first has one of another":     {[]Grant{{Resource: "res_crm", Actions: []string{"ticket.read"}}}, "not_granted", "ok"},
		"the first is confined":            {[]Grant{confined}, "outside_parameters", "ok"},
		"the budget of the first is low":   {[]Grant{low}, "", "near"},
		"the budget of the first is empty": {[]Grant{empty}, "kernel_budget", "exceeded"},
	} {
		w := shop()
		w.grants["agt_sue"] = NewGrants([]Grant{reading})
		if c.bill != nil {
			w.grants["agt_bill"] = NewGrants(c.bill)
		}
		got := decide(t, deciderOf(t, w, Starter()), caller, read(map[string]string{"id": "41"}))
		if got.Allow != (c.reason == "") || !got.Allow && got.Reasons[0] != c.reason {
			t.Errorf("%s: %+v, want %q", name, got, c.reason)
		}
		if f := gathered(t, w, caller, read(map[string]string{"id": "41"})); f.Budget != c.budget {
			t.Errorf("%s: the budget is %s, want %s", name, f.Budget, c.budget)
		}
	}
}
