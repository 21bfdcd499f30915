package approval

import (
	"slices"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/guard"
)

// plainly is what adds nothing to a risk: one record of internal data is read for
// an hour, where the agent has been before.
func plainly() *weighed {
	return &weighed{tier: "low", seconds: 3600, items: []weighedItem{{
		Item:     Item{Resource: "res_crm", Actions: []string{"customer.read"}, Parameters: map[string][]string{"id": {"1"}}, Class: estover.Internal},
		resource: Resource{ID: "res_crm", Name: "crm"},
		actions:  []Action{{Name: "customer.read", Effect: guard.Reads, Class: estover.Internal, Parameters: []string{"id"}}},
	}}}
}

// TestRiskWeighs holds each row of the table: what adds to a risk adds its weight
// by itself, and is said.
func TestRiskWeighs(t *testing.T) {
	if r := plainly().risk(); r.Level != LowRisk || len(r.Because) != 0 || r.String() != "low" {
		t.Fatalf("reading one record is %+v, want low and nothing that adds to it", r)
	}
	effect := func(e guard.Effect) func(*weighed) {
		return func(k *weighed) { k.items[0].actions[0].Effect = e }
	}
	class := func(c estover.Class) func(*weighed) { return func(k *weighed) { k.items[0].Class = c } }
	tier := func(tier string) func(*weighed) { return func(k *weighed) { k.tier = tier } }
	for _, row := range []struct {
		what   string
		change func(*weighed)
		weight int
		says   string
	}{
		{"searches", effect(guard.Searches), 0, ""},
		{"writes", effect(guard.Writes), 2, "The agent could change something: customer.read of crm."},
		{"sends", effect(guard.Sends), 2, "The agent could send something: customer.read of crm."},
		{"executes", effect(guard.Executes), 4, "The agent could run something: customer.read of crm."},
		{"administers", effect(guard.Manages), 4, "The agent could administer: customer.read of crm."},
		{"pays", effect(guard.Pays), 4, "The agent could pay: customer.read of crm."},
		{"deletes", effect(guard.Deletes), 4, "The agent could delete: customer.read of crm."},
		{"an effect that nobody knows", effect("melt"), 4, "The agent could do what nobody has described: customer.read of crm."},
		{"public data", class(estover.Public), 0, ""},
		{"confidential data", class(estover.Confidential), 2, "It reaches confidential data: crm."},
		{"restricted data", class(estover.Restricted), 4, "It reaches restricted data: crm."},
		{"data of no class", class(""), 4, "It reaches unclassified data: crm."},
		{"the tier medium", tier("medium"), 1, "The agent can do harm: its tier is medium."},
		{"the tier high", tier("high"), 2, "The agent can do harm: its tier is high."},
		{"a tier that nobody knows", tier(""), 2, "The agent can do harm: its tier is not known."},
		{"special categories", func(k *weighed) { k.items[0].resource.Special = true }, 3, "There are special categories of personal data: crm."},
		{"the public", func(k *weighed) { k.items[0].resource.Public = true }, 2, "Its other end is public: crm."},
		{"a short time", func(k *weighed) { k.seconds = 60 }, 0, ""},
		{"a usual time", func(k *weighed) { k.seconds = 8 * 3600 }, 0, ""},
		{"a long time", func(k *weighed) { k.seconds = 8*3600 + 1 }, 1, "It lasts longer than eight hours."},
		{"a time that nobody knows", func(k *weighed) { k.seconds = 0 }, 1, "It lasts longer than eight hours."},
		{"no bounds", func(k *weighed) { k.items[0].Parameters = nil }, 1, "Neither parameters nor a budget bound how much: crm."},
		{"a parameter of another action", func(k *weighed) { k.items[0].Parameters = map[string][]string{"month": {"5"}} }, 1, "Neither parameters nor a budget bound how much: crm."},
		{"a budget in their place", func(k *weighed) { k.items[0].Parameters, k.budgets.Calls = nil, 1 }, 0, ""},
		{"a budget that bounds no amount", func(k *weighed) { k.items[0].Parameters, k.budgets.FanOut = nil, 1 }, 1, "Neither parameters nor a budget bound how much: crm."},
		{"every action", func(k *weighed) { k.items[0].Actions = []string{All} }, 1, "Every action is asked for, those that come to be later too: crm."},
		{"where the agent never was", func(k *weighed) { k.items[0].fresh = true }, 1, "The agent was never given anything there before: crm."},
		{"what is not there", func(k *weighed) { k.items[0].gone = true }, 5, "Some of it is not there any more, or never was: nothing is known of what is asked for of crm."},
		{"the same twice", func(k *weighed) {
			effect(guard.Writes)(k)
			k.items = append(k.items, k.items[0])
		}, 2, "The agent could change something: customer.read of crm, customer.read of crm."},
		{"the heaviest of several effects", func(k *weighed) {
			effect(guard.Writes)(k)
			k.items[0].actions = append(k.items[0].actions, Action{Name: "customer.delete", Effect: guard.Deletes, Parameters: []string{"id"}})
		}, 4, "The agent could delete: customer.delete of crm."},
		{"the heaviest of several classes", func(k *weighed) {
			k.items = append(k.items, k.items[0])
			k.items[1].resource.Name = "vault"
			k.items[0].Class, k.items[1].Class = estover.Confidential, estover.Restricted
		}, 4, "It reaches restricted data: vault."},
	} {
		k := plainly()
		row.change(k)
		total, because := k.measure()
		if total != row.weight {
			t.Errorf("%s: it weighs %d, want %d", row.what, total, row.weight)
		}
		if row.says == "" && len(because) > 0 || row.says != "" && !slices.Contains(because, row.says) {
			t.Errorf("%s: it says %q, want %q", row.what, because, row.says)
		}
	}
}

// TestRiskAddsUp holds the levels, and what a person reads of them.
func TestRiskAddsUp(t *testing.T) {
	for total, want := range []Level{LowRisk, LowRisk, LowRisk, RaisedRisk, RaisedRisk, HighRisk, HighRisk} {
		if got := levelOf(total); got != want {
			t.Errorf("what weighs %d is %s, want %s", total, got, want)
		}
	}
	k := plainly()
	k.items[0].fresh, k.items[0].actions[0].Effect = true, guard.Writes
	want := "raised. The agent could change something: customer.read of crm. The agent was never given anything there before: crm."
	if r := k.risk(); r.Level != RaisedRisk || r.String() != want {
		t.Errorf("writing for the first time is %q, want %q", r, want)
	}
	// However much is asked for, it is a few sentences.
	k.items[0].actions[0].Effect = guard.Deletes
	for range 9 {
		k.items = append(k.items, k.items[0])
	}
	r := k.risk()
	if r.Level != HighRisk || len(r.Because) != 2 || !strings.HasSuffix(r.Because[0], "customer.read of crm and 5 more.") {
		t.Errorf("deleting in ten places is %s", r)
	}
}
