// Package apply makes what is written in files so: people, secrets' metadata,
// other vaults and what is read through them and pushed to them, resources, agents,
// grants, channels and policies, as YAML under version control.
//
//	apiVersion: estover.dev/v1
//	kind: Agent
//	metadata:
//	  name: invoices-bot
//	spec:
//	  …
//
// Files are read, planned and carried out:
//
//	[Load] ─▶ [Parse] ─▶ plan: what is there against what is wanted ─▶ changes, in order, each through its own package
//
// What is wrong with a file is told with its line and column, all of it at
// once, and before anything is changed. Carrying out a plan is not one
// transaction: each change is decided on and recorded by itself, as if a
// person had made it, and the first that fails ends the run. Running it again
// goes on from there, since what is as it should be is left alone.
//
// # What is whose
//
// Names are how files speak of things. What is not in the files is not
// touched, unless a run prunes: then what an earlier run has made, in the same
// set, and no file mentions any more, is taken away. What was made by hand is
// changed by a run that mentions it, and never pruned. Holds, credentials and
// secrets' values are no part of any file.
//
// Things are taken away and made in an order in which nothing speaks of what
// is not there, and a name or host is free before it is taken again:
//
//	− syncs, − links, − channels, − providers, − detail types, − trusts, − grants, − resources · + people, secrets, stores, links, syncs, providers, resources, agents, grants, trusts, detail types, channels, policy · − stores, − agents, − people
package apply

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strings"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/federation"
	"estover.dev/internal/guard"
	"estover.dev/internal/notify"
	"estover.dev/internal/policy"
	"estover.dev/internal/resource"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/token"
)

// Version is what the apiVersion of every document says.
const Version = "estover.dev/v1"

// Schema is the JSON Schema of a document, for editors.
//
//go:embed schema.json
var Schema []byte

// Parts are the packages that things are made through.
type Parts struct {
	People    *directory.Directory
	Agents    *agent.Registry
	Resources *resource.Catalogue
	Grants    *access.Access
	Secrets   *secret.Secrets
	Stores    *upstream.Stores
	Policy    *policy.Policy
	Trusts    *federation.Trusts
	Details   *token.DetailTypes
	Channels  *notify.Notify
}

// An Applier carries out files. It is safe for use by many at once.
type Applier struct {
	Parts
	guard *guard.Guard
}

// New is an applier behind the door g.
func New(g *guard.Guard, parts Parts) *Applier { return &Applier{parts, g} }

// A Request is what to make so.
type Request struct {
	Files  []Source `json:"files" minItems:"1" doc:"The YAML files, and the files of the policies that they name."`
	Set    string   `json:"set,omitempty" pattern:"^([a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?)?$" doc:"Which files belong together: pruning takes away what this set has made. \"default\" if it is left out."`
	Prune  bool     `json:"prune,omitempty" doc:"Take away what an earlier run of the set has made and no file mentions any more."`
	DryRun bool     `json:"dry_run,omitempty" doc:"Say what would be done, and do nothing."`
}

// A Verb says what is done to a thing.
type Verb string

// The verbs of a plan.
const (
	Create    Verb = "create"
	Update    Verb = "update"
	Delete    Verb = "delete"
	Unchanged Verb = "unchanged"
)

// A Change is one line of a plan.
type Change struct {
	Verb   Verb    `json:"verb"`
	Kind   string  `json:"kind"`
	Name   string  `json:"name"`
	ID     string  `json:"id,omitempty"` // of what was there before
	File   string  `json:"file,omitempty"`
	Line   int     `json:"line,omitempty"`
	Fields []Field `json:"fields,omitempty"` // of an update
	Done   bool    `json:"done"`
}

// A Field is one difference between what is there and what is wanted.
type Field struct {
	Field  string `json:"field"` // actions[customer.read].path
	Before any    `json:"before,omitempty"`
	After  any    `json:"after,omitempty"`
}

// A Result is a plan, and how far it was carried out.
type Result struct {
	Set     string   `json:"set"`
	DryRun  bool     `json:"dry_run"`
	Changes []Change `json:"changes"`
}

// Count is how many changes have this verb.
func (r Result) Count(v Verb) (n int) {
	for _, c := range r.Changes {
		if c.Verb == v {
			n++
		}
	}
	return n
}

// Errors about applying.
var (
	// ErrProblems is returned with [Problems], which say what is wrong where.
	ErrProblems = &estover.Error{Kind: estover.Invalid, Code: "apply_invalid", Detail: "There are mistakes in the files."}
	// ErrSet is returned for a set whose name cannot be one.
	ErrSet = &estover.Error{Kind: estover.Invalid, Code: "apply_set_invalid", Detail: "The name of a set has up to 63 small letters, digits, dots, dashes and underscores.", Field: "set"}
)

// Run plans, and carries the plan out unless it is a dry run. With an error
// that comes from carrying out, the result says how far it came.
func (a *Applier) Run(ctx context.Context, caller estover.Caller, req Request) (Result, error) {
	if req.Set == "" {
		req.Set = "default"
	}
	result := Result{Set: req.Set, DryRun: req.DryRun, Changes: []Change{}}
	if !estover.ValidName(req.Set) {
		return result, ErrSet
	}
	// Whoever may not apply is told so before the files are read, which takes
	// more of the server than of the one who sends them.
	op := guard.Op{Action: "apply.run", Target: "apply:" + req.Set}
	if err := a.guard.Read(ctx, caller, op, func(*db.Tx) error { return nil }); err != nil {
		return result, err
	}
	docs, err := Parse(req.Files)
	if err != nil {
		return result, err
	}
	r := newRun(a, caller, "apply/"+req.Set, docs)
	steps, err := r.plan(ctx, req.Prune)
	if err != nil {
		return result, err
	}
	for _, s := range steps {
		result.Changes = append(result.Changes, s.change)
	}
	if req.DryRun || len(result.Changes) == result.Count(Unchanged) {
		return result, nil
	}
	if err := a.record(ctx, caller, req, result); err != nil {
		return result, err
	}
	for i, s := range steps {
		if s.change.Verb == Unchanged {
			continue
		}
		if err := s.do(ctx); err != nil {
			return result, s.failed(err)
		}
		result.Changes[i].Done = true
	}
	return result, nil
}

// record asks whether the caller may apply at all, and records what is about
// to be done.
func (a *Applier) record(ctx context.Context, caller estover.Caller, req Request, r Result) error {
	var lines []string
	for _, c := range r.Changes {
		if c.Verb != Unchanged {
			lines = append(lines, fmt.Sprintf("%s %s %s", c.Verb, c.Kind, c.Name))
		}
	}
	if len(lines) > 1000 {
		lines = append(lines[:1000], "…")
	}
	op := guard.Op{Action: "apply.run", Target: "apply:" + req.Set, Detail: map[string]any{
		"prune": req.Prune, "create": r.Count(Create), "update": r.Count(Update), "delete": r.Count(Delete), "changes": lines,
	}}
	return a.guard.Do(ctx, caller, op, func(*guard.Tx) error { return nil })
}

// Write prints a result for people: a sign, the kind and the name of each
// change, and below it the fields that differ.
func (r Result) Write(w io.Writer) error {
	var b strings.Builder
	signs := map[Verb]string{Create: "+", Update: "~", Delete: "-"}
	sums := map[string]int{}
	for _, c := range r.Changes {
		switch {
		case c.Verb == Unchanged:
			sums["unchanged"]++
			continue
		case r.DryRun:
			sums["to "+string(c.Verb)]++
		case c.Done:
			sums[string(c.Verb)+"d"]++
		default:
			sums["not done"]++
		}
		undone := ""
		if !r.DryRun && !c.Done {
			undone = " (not done)"
		}
		fmt.Fprintf(&b, "%s %s %s%s\n", signs[c.Verb], c.Kind, c.Name, undone)
		for _, f := range c.Fields {
			fmt.Fprintf(&b, "    %s: %s → %s\n", f.Field, brief(f.Before), brief(f.After))
		}
	}
	var parts []string
	for _, word := range []string{"to create", "created", "to update", "updated", "to delete", "deleted", "not done", "unchanged"} {
		if n := sums[word]; n > 0 || word == "unchanged" && len(parts) == 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, word))
		}
	}
	fmt.Fprintf(&b, "%s.\n", strings.Join(parts, ", "))
	_, err := io.WriteString(w, b.String())
	return err
}

// brief is a value in one line of bearable length.
func brief(v any) string {
	if v == nil {
		return "nothing"
	}
	s := string(mustJSON(v))
	if r := []rune(s); len(r) > 100 {
		s = string(r[:99]) + "…"
	}
	return s
}

// A step is a change with how to carry it out.
type step struct {
	change Change
	doc    *Document // nil for a deletion
	do     func(ctx context.Context) error
}

// failed says where the change that failed is written.
func (s step) failed(err error) error {
	if s.doc == nil {
		return fmt.Errorf("deleting %s %s: %w", s.change.Kind, s.change.Name, err)
	}
	if estover.KindOf(err) == estover.Fault || estover.KindOf(err) == estover.Unavailable || estover.KindOf(err) == estover.Denied {
		return fmt.Errorf("%s:%d: %s %s: %w", s.doc.at.File, s.doc.at.Line, s.change.Kind, s.change.Name, err)
	}
	return s.doc.problems(err)
}

// order is the order in which things are made; they are taken away in the
// reverse.
var order = []string{KindPerson, KindSecret, KindStore, KindLink, KindSync, KindProvider, KindResource, KindAgent, KindGrant, KindTrust, KindDetail, KindChannel, KindPolicy}

// plan compares what is wanted with what is there.
func (r *run) plan(ctx context.Context, prune bool) ([]step, error) {
	var first, middle, last []step
	if prune {
		for _, k := range []string{KindSync, KindLink, KindChannel, KindProvider, KindDetail, KindTrust, KindGrant, KindResource, KindStore, KindAgent, KindPerson} {
			steps, err := r.prunable(ctx, k)
			if err != nil {
				return nil, err
			}
			if k == KindStore || k == KindAgent || k == KindPerson { // what goes from one to another has left by then
				last = append(last, steps...)
			} else {
				first = append(first, steps...)
			}
		}
	}
	var bad Problems
	for _, kind := range order {
		for _, doc := range r.docs {
			if doc.Kind != kind {
				continue
			}
			s, err := r.compare(ctx, doc)
			if p, ok := asProblems(err); ok {
				bad = append(bad, p...)
				continue
			}
			if err != nil {
				return nil, err
			}
			middle = append(middle, s)
		}
	}
	if len(bad) > 0 {
		return nil, bad.sorted()
	}
	return slices.Concat(first, middle, last), nil
}

// compare makes the step for one document.
func (r *run) compare(ctx context.Context, doc *Document) (step, error) {
	k := kinds[doc.Kind]
	if err := k.refers(ctx, r, doc); err != nil {
		return step{}, doc.orFault(err)
	}
	now, found, err := k.find(ctx, r, doc)
	if err != nil {
		return step{}, doc.orFault(err)
	}
	s := step{doc: doc, change: Change{Verb: Create, Kind: doc.Kind, Name: doc.Name, File: doc.at.File, Line: doc.at.Line}}
	if found {
		s.change.ID = now.id
		s.change.Fields = differences(now.spec, doc.Spec)
		s.change.Verb = Update
		if len(s.change.Fields) == 0 {
			s.change.Verb, s.change.Fields = Unchanged, nil
		}
	}
	s.do = func(ctx context.Context) error { return k.put(ctx, r, doc, now) }
	return s, nil
}

// prunable makes the steps that take away what the set has made and no file
// mentions any more.
func (r *run) prunable(ctx context.Context, kind string) (steps []step, err error) {
	k := kinds[kind]
	made, err := k.managed(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, o := range made {
		if r.wanted(kind, o.name) != nil {
			continue
		}
		r.going[kind+"/"+o.name] = true
		steps = append(steps, step{
			change: Change{Verb: Delete, Kind: kind, Name: o.name, ID: o.id},
			do:     func(ctx context.Context) error { return k.remove(ctx, r, o) },
		})
	}
	return steps, nil
}
