package approval

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Level is how much a request asks for.
type Level string

// The levels of risk.
const (
	LowRisk    Level = "low"
	RaisedRisk Level = "raised"
	HighRisk   Level = "high"
)

// A Risk is the measure of what is on the table, for whoever decides about it. It
// decides nothing by itself. It is found out each time that a request for access is
// shown that waits, from what is known then, and is not kept: a resource that has
// come to hold more since it was asked for weighs more.
type Risk struct {
	Level   Level    `json:"level" enum:"low,raised,high" doc:"How much is asked for."`
	Because []string `json:"because" nullable:"false" doc:"What adds to it, what weighs most first."`
}

// What is asked for weighs as much as all that adds to it. Each of these counts
// once, however many items it is true of; what is not known counts as the worst
// there is. [Risk.Level] is raised from raisedFrom on, and high from highFrom on.
var (
	effectWeights = map[guard.Effect]int{
		guard.Reads: 0, guard.Searches: 0, guard.Writes: 2, guard.Sends: 2,
		guard.Executes: 4, guard.Manages: 4, guard.Pays: 4, guard.Deletes: 4,
	}
	classWeights = map[estover.Class]int{estover.Public: 0, estover.Internal: 0, estover.Confidential: 2, estover.Restricted: 4}
	tierWeights  = map[string]int{"low": 0, "medium": 1, "high": 2}
)

const (
	specialWeight   = 3 // special categories of personal data
	publicWeight    = 2 // a resource that stands in public
	longWeight      = 1 // for longer than usually
	unboundedWeight = 1 // neither parameters nor a budget bound it
	everyWeight     = 1 // every action, those of later too
	newWeight       = 1 // the agent was never given anything there
	unknownWeight   = 5 // it asks for what is not there any more

	raisedFrom, highFrom = 3, 5
)

// usually is how long access lasts at most that is not asked for long.
const usually = 8 * time.Hour

// did says what each effect lets an agent do.
var did = map[guard.Effect]string{
	guard.Writes: "change something", guard.Sends: "send something", guard.Executes: "run something",
	guard.Manages: "administer", guard.Pays: "pay", guard.Deletes: "delete",
}

// weight is that of a word, or of the heaviest if nobody knows it.
func weight[K comparable](table map[K]int, word K) int {
	if w, ok := table[word]; ok {
		return w
	}
	heaviest := 0
	for _, w := range table {
		heaviest = max(heaviest, w)
	}
	return heaviest
}

// A weighed is what is known of what is on the table, as far as it bears on its
// risk.
type weighed struct {
	tier    string // of the agent
	seconds int64
	budgets Budgets
	items   []weighedItem
}

type weighedItem struct {
	Item
	resource Resource
	actions  []Action // those that are asked for
	gone     bool     // the resource, or one of the actions, is not there any more
	fresh    bool     // the agent was never given anything of the resource
}

// bounded reports whether parameters bound each action of an item.
func (it *weighedItem) bounded() bool {
	return !slices.ContainsFunc(it.actions, func(act Action) bool {
		return !slices.ContainsFunc(act.Parameters, func(name string) bool { return len(it.Parameters[name]) > 0 })
	})
}

// risk measures what is on the table.
func (k *weighed) risk() Risk {
	total, because := k.measure()
	return Risk{levelOf(total), because}
}

func levelOf(total int) Level {
	switch {
	case total >= highFrom:
		return HighRisk
	case total >= raisedFrom:
		return RaisedRisk
	}
	return LowRisk
}

// measure is how much all weighs that adds to the risk, and what that is, in
// sentences.
func (k *weighed) measure() (total int, because []string) {
	type reason struct {
		weight int
		text   string
	}
	var reasons []reason
	add := func(weight int, format string, args ...any) {
		if weight > 0 {
			total += weight
			reasons = append(reasons, reason{weight, fmt.Sprintf(format, args...)})
		}
	}
	// where are the names of the items of which something is true.
	where := func(is func(it *weighedItem) bool) (names []string) {
		for i := range k.items {
			if it := &k.items[i]; is(it) {
				names = append(names, cmp.Or(it.resource.Name, it.Name, it.Resource))
			}
		}
		return names
	}
	each := func(weight int, is func(it *weighedItem) bool, format string) {
		if names := where(is); len(names) > 0 {
			add(weight, format, named(names))
		}
	}

	each(unknownWeight, func(it *weighedItem) bool { return it.gone }, "Some of it is not there any more, or never was: nothing is known of what is asked for of %s.")

	heaviest := 0
	by := map[guard.Effect][]string{}
	for i := range k.items {
		it := &k.items[i]
		for _, act := range it.actions {
			heaviest = max(heaviest, weight(effectWeights, act.Effect))
			by[act.Effect] = append(by[act.Effect], act.Name+" of "+cmp.Or(it.resource.Name, it.Name, it.Resource))
		}
	}
	total += heaviest
	for effect, names := range by {
		w := weight(effectWeights, effect)
		if w == 0 {
			continue
		}
		slices.Sort(names)
		reasons = append(reasons, reason{w, fmt.Sprintf("The agent could %s: %s.", cmp.Or(did[effect], "do what nobody has described"), named(names))})
	}

	highest := estover.Public
	for i := range k.items {
		if c := k.items[i].Class; weight(classWeights, c) > weight(classWeights, highest) {
			highest = c
		}
	}
	each(weight(classWeights, highest), func(it *weighedItem) bool { return it.Class == highest }, "It reaches "+cmp.Or(string(highest), "unclassified")+" data: %s.")
	each(specialWeight, func(it *weighedItem) bool { return it.resource.Special }, "There are special categories of personal data: %s.")
	each(publicWeight, func(it *weighedItem) bool { return it.resource.Public }, "Its other end is public: %s.")
	add(weight(tierWeights, k.tier), "The agent can do harm: its tier is %s.", cmp.Or(k.tier, "not known"))
	if life := time.Duration(k.seconds) * time.Second; life <= 0 || life > usually {
		add(longWeight, "It lasts longer than eight hours.")
	}
	each(everyWeight, func(it *weighedItem) bool { return slices.Contains(it.Actions, All) }, "Every action is asked for, those that come to be later too: %s.")
	if b := k.budgets; max(b.Calls, b.Rows, b.Records, b.BytesOut, b.Money, b.Seconds) <= 0 {
		each(unboundedWeight, func(it *weighedItem) bool { return !it.bounded() }, "Neither parameters nor a budget bound how much: %s.")
	}
	each(newWeight, func(it *weighedItem) bool { return it.fresh }, "The agent was never given anything there before: %s.")

	slices.SortFunc(reasons, func(a, b reason) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.text, b.text))
	})
	because = []string{}
	for _, one := range reasons {
		because = append(because, one.text)
	}
	return total, because
}

// String is the risk in a line.
func (r Risk) String() string {
	if len(r.Because) == 0 {
		return string(r.Level)
	}
	return string(r.Level) + ". " + strings.Join(r.Because, " ")
}

// named lists the first few of some names.
func named(names []string) string {
	const few = 5
	if len(names) > few {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
	}
	return strings.Join(names, ", ")
}

// weigh fills in the risk of a request for access that waits. An agent is not told:
// it is for those who decide.
func (a *Approvals) weigh(ctx context.Context, tx *db.Tx, caller estover.Caller, r *Request) (err error) {
	if r.Kind != Access || r.State != Pending || caller.Acting().Kind() == estover.AgentKind {
		return nil
	}
	r.Risk, err = a.riskOf(ctx, tx, r)
	return err
}

// riskOf is the risk of what is on the table.
func (a *Approvals) riskOf(ctx context.Context, tx *db.Tx, r *Request) (Risk, error) {
	agent, err := a.Agent(ctx, tx, r.Agent)
	if err != nil {
		return Risk{}, err
	}
	k := weighed{tier: agent.Tier, seconds: r.Offer.Seconds, budgets: r.Offer.Budgets}
	for _, item := range r.Offer.Items {
		it := weighedItem{Item: item, fresh: true}
		it.resource, err = a.Resource(ctx, tx, item.Resource)
		switch {
		case estover.KindOf(err) == estover.NotFound:
			it.gone = true
		case err != nil:
			return Risk{}, err
		default:
			if it.actions, err = it.resource.named(item.Actions, ""); err != nil {
				it.gone = true
			}
		}
		if a.Given != nil {
			given, err := a.Given(ctx, tx, r.Agent, item.Resource)
			if err != nil {
				return Risk{}, err
			}
			it.fresh = !given
		}
		k.items = append(k.items, it)
	}
	return k.risk(), nil
}
