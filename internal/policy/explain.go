package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"github.com/open-policy-agent/opa/v1/ast"
)

// An Explanation is why a decision was made as it was: what `estover why`
// prints. It is for those who may read the record, and not for the agent.
type Explanation struct {
	Allow    bool            `json:"allow"`
	Engine   string          `json:"engine"` // kernel, policy or cache: who decided
	Revision string          `json:"revision,omitempty"`
	Rules    []Reason        `json:"rules"`           // those that decided, the first first
	Input    json.RawMessage `json:"input,omitempty"` // what they saw
	Changes  [][]Change      `json:"changes,omitempty"`
	Ask      []string        `json:"ask,omitempty"`  // how to get there
	Note     string          `json:"note,omitempty"` // what keeps the explanation from being whole
}

// A Change is a fact that, had it been otherwise, would have changed the
// answer, alone or together with one other.
type Change struct {
	Fact string `json:"fact"`
	Is   string `json:"is"`
	Want string `json:"want"`
}

// maxChanges bounds the ways out that an explanation lists.
const maxChanges = 5

// maxLate is how many evaluations may take too long before no other way is tried.
const maxLate = 8

// ErrNoInput is returned for a decision whose record has no input to look at.
var ErrNoInput = &estover.Error{Kind: estover.Conflict, Code: "decision_not_explainable", Detail: "This decision was recorded without what it rested on, so it cannot be explained further."}

// Explain works out why a recorded decision was made: it asks the revision of
// that time about the input of that time again.
func (p *Policy) Explain(ctx context.Context, caller estover.Caller, record guard.DecisionRecord) (Explanation, error) {
	if record.Engine == "kernel" {
		return explainKernel(record)
	}
	var source Bundle
	err := p.guard.Read(ctx, caller, guard.Op{Action: "policy.read", Target: "policy:" + record.Revision}, func(tx *db.Tx) (err error) {
		_, source, err = findWithSource(ctx, tx, record.Revision)
		return err
	})
	if err != nil {
		return Explanation{}, err
	}
	r := p.decider.ready(record.Revision)
	if r == nil {
		var found []Finding
		if r, found = compile(source); len(found) > 0 {
			return Explanation{}, ErrFindings.With("The revision of that time no longer compiles: %s", found[0])
		}
		p.decider.keep(r)
	}
	return r.explain(ctx, record)
}

// explainKernel explains a refusal that no policy was asked about.
func explainKernel(record guard.DecisionRecord) (Explanation, error) {
	e := Explanation{Engine: record.Engine, Note: "This must hold whatever a policy says: no bundle, grant or approval overrides it."}
	for _, code := range record.Reasons {
		reason, ok := kernelReasons[code]
		if !ok {
			reason = Reason{Package: "kernel", Code: code, Sentence: record.Message, Next: record.Next}
		}
		e.Rules = append(e.Rules, reason)
		if reason.Next != "" {
			e.Ask = append(e.Ask, reason.Next)
		}
	}
	if text, err := inputOf(record); err == nil {
		e.Input = text
	}
	return e, nil
}

// inputOf is the input in a record, if it is the one whose digest is there.
func inputOf(record guard.DecisionRecord) (json.RawMessage, error) {
	v, ok := record.Facts["input"]
	if !ok {
		return nil, ErrNoInput
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, ErrNoInput.Because(err)
	}
	var text bytes.Buffer
	if err := json.Compact(&text, b); err != nil {
		return nil, ErrNoInput.Because(err)
	}
	if digest(text.Bytes()) != record.InputDigest {
		return nil, ErrNoInput.With("The input in this record is not the one that was decided on: its digest is another.")
	}
	return text.Bytes(), nil
}

// explain asks the revision about a recorded input.
func (r *revision) explain(ctx context.Context, record guard.DecisionRecord) (Explanation, error) {
	text, err := inputOf(record)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{Allow: record.Allow, Engine: record.Engine, Revision: record.Revision, Input: text}
	v, err := ast.ValueFromReader(bytes.NewReader(text))
	if err != nil {
		return Explanation{}, ErrNoInput.Because(err)
	}
	var seen struct {
		Facts Facts `json:"facts"`
	}
	seen.Facts = Unremarkable
	if err := json.Unmarshal(text, &seen); err != nil {
		return Explanation{}, ErrNoInput.Because(err)
	}
	if len(r.why) > 0 {
		e.Note = "The rules of this revision also read " + strings.Join(r.why, ", ") + ", which is not in the record."
	}
	is, err := r.allows(ctx, v)
	if err != nil {
		return Explanation{}, err
	}
	if is != record.Allow {
		note := "Asked again, the policy answers otherwise: the baseline of this version of Estover, or what is not in the record, has changed."
		e.Note = strings.TrimSpace(e.Note + " " + note)
	}
	if is {
		e.Rules, err = r.rules(ctx, permits, v)
		return e, err
	}
	if e.Rules, err = r.rules(ctx, denials, v); err != nil {
		return Explanation{}, err
	}
	if len(e.Rules) == 0 {
		e.Rules = []Reason{notPermitted}
	}
	if e.Changes, err = r.wayOut(ctx, v, seen.Facts); err != nil {
		return Explanation{}, err
	}
	e.Ask = remedies(e)
	return e, nil
}

// remedies says how to get what was refused: what the rules' authors say, then
// what makes the facts of the first way out true.
func remedies(e Explanation) []string {
	var ask []string
	for _, r := range e.Rules {
		if r.Next != "" && !contains(ask, r.Next) {
			ask = append(ask, r.Next)
		}
	}
	if len(e.Changes) == 0 {
		return append(ask, "No change of one or two facts would have allowed it: a rule must permit it first.")
	}
	for _, c := range e.Changes[0] {
		for _, f := range facts {
			if f.name == c.Fact && f.remedy != "" && !contains(ask, f.remedy) {
				ask = append(ask, f.remedy)
			}
		}
	}
	return ask
}

// wayOut searches for the smallest change of facts that would have allowed a
// refused input: one fact, or else two.
func (r *revision) wayOut(ctx context.Context, input ast.Value, have Facts) ([][]Change, error) {
	candidates := r.candidates(have)
	late := 0
	tryAll := func(sets [][]Change) (ways [][]Change, err error) {
		for _, set := range sets {
			f := have
			for _, c := range set {
				c.apply(&f)
			}
			s := shapeOf(f)
			ok, err := r.allows(ctx, replaceFacts(input, s.term))
			if errors.Is(err, errTimeout) {
				if late++; late >= maxLate {
					break // it runs away whatever the facts are
				}
				continue
			}
			if err != nil {
				return nil, err
			}
			if ok {
				if ways = append(ways, set); len(ways) == maxChanges {
					break
				}
			}
		}
		return ways, nil
	}
	var singles, pairs [][]Change
	for i, a := range candidates {
		singles = append(singles, []Change{a})
		for _, b := range candidates[i+1:] {
			if a.Fact != b.Fact {
				pairs = append(pairs, []Change{a, b})
			}
		}
	}
	ways, err := tryAll(singles)
	if err != nil || len(ways) > 0 {
		return ways, err
	}
	return tryAll(pairs)
}

// candidates are the single facts that the rules ask for and that could be
// otherwise.
func (r *revision) candidates(have Facts) []Change {
	asked := map[string]bool{}
	for _, ref := range r.factsRead {
		asked[ref] = true
	}
	var all []Change
	for _, f := range facts {
		if !asked[f.name] {
			continue
		}
		if f.flag != nil {
			is := *f.flag(&have)
			all = append(all, Change{f.name, fmt.Sprint(is), fmt.Sprint(!is)})
			continue
		}
		is := *f.word(&have)
		for _, want := range f.list {
			if want != is {
				all = append(all, Change{f.name, is, want})
			}
		}
	}
	return all
}

// apply makes the change.
func (c Change) apply(to *Facts) {
	for _, f := range facts {
		switch {
		case f.name != c.Fact:
		case f.flag != nil:
			*f.flag(to) = c.Want == "true"
		default:
			*f.word(to) = c.Want
		}
	}
}

// replaceFacts is an input with other facts.
func replaceFacts(input ast.Value, facts *ast.Term) ast.Value {
	from, ok := input.(ast.Object)
	if !ok {
		return input
	}
	to := ast.NewObject()
	from.Foreach(func(k, v *ast.Term) {
		if k.Equal(keyFacts) {
			v = facts
		}
		to.Insert(k, v)
	})
	return to
}
