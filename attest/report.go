package attest

import (
	"fmt"
	"strings"
	"unicode"
)

// Limit is the last line of every report.
const Limit = "this proves authorisation, identity, order and integrity as the gateway saw them; it does not prove that the upstream did what it answered."

// A Result is how a step of the verification ended.
type Result string

// The results. A step that is not disclosed could not be checked, because
// the file does not hold what it needs; nothing speaks against it.
const (
	Pass         Result = "PASS"
	Fail         Result = "FAIL"
	NotDisclosed Result = "NOT DISCLOSED"
)

// The steps of a verification, in order.
const (
	FileStep       = "file"       // every byte is the one that was written
	TrustStep      = "trust"      // whose keys it is checked against
	SignatureStep  = "signature"  // the envelope, by a key that may sign
	LogStep        = "log"        // the statement is a leaf of the tree
	CheckpointStep = "checkpoint" // the log's signature and the witnesses
	AgentStep      = "agent"      // what the agent showed
	GrantStep      = "grant"      // the grant covers the action
	ApprovalStep   = "approval"   // others approved what the grant gives
	DecisionStep   = "decision"   // policy's answer, and the policy itself
	BodiesStep     = "bodies"     // what was disclosed has the signed hashes
	CompleteStep   = "complete"   // no call of the session is missing
	ZeroStep       = "zero"       // what was contained, and until nothing of it could act
)

// A Step is one step with its result and a sentence for a person.
type Step struct {
	Name   string `json:"step"`
	Result Result `json:"result"`
	Detail string `json:"detail"`
}

// A Verdict is what was verified of one receipt.
type Verdict struct {
	ID     string `json:"id"`
	Seq    int64  `json:"seq"`
	Agent  string `json:"agent,omitempty"`
	Action string `json:"action,omitempty"`
	Steps  []Step `json:"steps"`
}

// A Report is the outcome of a verification. Its steps are those of all
// receipts together, worst first; Calls has them one by one.
type Report struct {
	Kind    string    `json:"kind"` // receipt, session, containment, emergency rotation; "" if the file cannot be read
	Session string    `json:"session,omitempty"`
	Steps   []Step    `json:"steps"`
	Calls   []Verdict `json:"calls,omitempty"`
}

// OK reports whether no step failed.
func (r *Report) OK() bool {
	for _, s := range r.Steps {
		if s.Result == Fail {
			return false
		}
	}
	return len(r.Steps) > 0
}

// Step is the step with this name, or the zero Step.
func (r *Report) Step(name string) Step {
	for _, s := range r.Steps {
		if s.Name == name {
			return s
		}
	}
	return Step{}
}

// String is the report as a table, and [Limit]. A step has one line: what a statement
// says of itself cannot look like another step, and does nothing to a terminal.
func (r *Report) String() string {
	var b strings.Builder
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "%-13s  %-10s  %s\n", s.Result, s.Name, strings.Map(printable, s.Detail))
	}
	return b.String() + Limit
}

func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '?'
}

// together is one step out of the same step of many calls: it fails if one
// fails, and is disclosed if all are.
func together(name, claim string, calls []Verdict) Step {
	var worst Step
	var first Verdict
	n := map[Result]int{}
	for _, c := range calls {
		for _, s := range c.Steps {
			if s.Name != name {
				continue
			}
			n[s.Result]++
			if rank(s.Result) > rank(worst.Result) {
				worst, first = s, c
			}
		}
	}
	if len(calls) == 1 {
		return worst
	}
	if worst.Result == Pass {
		worst.Detail = fmt.Sprintf("All %d calls: %s", len(calls), claim)
	} else {
		worst.Detail = fmt.Sprintf("%d of %d calls, the first being call %d: %s", n[worst.Result], len(calls), first.Seq, worst.Detail)
	}
	return worst
}

func rank(r Result) int {
	switch r {
	case Fail:
		return 3
	case NotDisclosed:
		return 2
	case Pass:
		return 1
	}
	return 0
}
