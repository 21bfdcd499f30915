package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"estover.dev/internal/guard"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/dependencies"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// A revision is a bundle ready to answer: compiled together with the baseline
// and with the entry module that names every package of both.
type revision struct {
	digest   string // of the tenant's bundle
	packages []string
	reasons  map[string]Reason // by rule: package.code
	compiler *ast.Compiler
	store    storage.Store
	entries  [entries]query

	factsRead []string // the facts that allow asks for

	// why says which parts of the input keep answers from being cached; empty
	// if they may be.
	why []string
}

// The questions that a revision answers.
type entry int

const (
	allowed     entry = iota // whether it is allowed: a boolean
	permits                  // the rules that permit it: a set of [package, code]
	denials                  // the rules that deny it: a set of [package, code]
	obligations              // what must be done along: a set of objects
	entries
)

// name is the rule of the entry module that answers.
func (e entry) name() string {
	return [...]string{"allow", "permits", "denials", "obligations"}[e]
}

// A query is one entry, prepared.
type query struct {
	body     ast.Body
	compiler ast.QueryCompiler
	reads    parts // what of the input the answer depends on
}

// parts is a set of parts of an input.
type parts uint16

const (
	partAction parts = 1 << iota
	partAgent
	partCaller
	partClass
	partDelegator
	partFacts
	partOp
	partParams
	partPurpose
	partResource
	partSession
	partType
)

// partOf is the part of the input to which a reference leads. What is not
// plainly one part counts as all of them.
func partOf(ref ast.Ref) parts {
	if len(ref) < 2 {
		return ^parts(0)
	}
	first, _ := ref[1].Value.(ast.String)
	switch first {
	case "action":
		return partAction
	case "agent":
		return partAgent
	case "caller":
		return partCaller
	case "delegator":
		return partDelegator
	case "facts":
		return partFacts
	case "op":
		return partOp
	case "params":
		return partParams
	case "purpose":
		return partPurpose
	case "session":
		return partSession
	case "resource":
		if len(ref) > 2 {
			switch ref[2].Value.Compare(ast.String("class")) {
			case 0:
				return partClass
			}
			switch ref[2].Value.Compare(ast.String("type")) {
			case 0:
				return partType
			}
		}
		return partResource | partClass | partType
	}
	return ^parts(0)
}

// factsOf are the facts to which a reference leads: one, or all of them.
func factsOf(ref ast.Ref) (names []string) {
	for _, f := range facts {
		if len(ref) < 3 || ref[2].Value.Compare(ast.String(f.name)) == 0 {
			names = append(names, f.name)
		}
	}
	return names
}

// errTimeout is the end of an evaluation that took too long.
var errTimeout = errors.New("the policy took too long")

// How long one evaluation may take: a thousand times what a decision takes, so that
// only a rule that runs away meets it. It is the time of a clock, and passes on a
// busy machine while others run: what was cut off is tried once more, and then for as
// long as nobody waits there for a turn.
const (
	evaluationLimit = 25 * time.Millisecond
	secondLimit     = 250 * time.Millisecond
)

// compile makes a bundle ready, or says what is wrong with it. The tests of
// the bundle are left out.
func compile(b Bundle) (*revision, []Finding) {
	modules, found := parse(slices.Concat(prefixed("estover/", rulesOf(base())), b), false)
	data, more := b.data()
	found = append(found, more...)
	if len(found) > 0 {
		return nil, found
	}
	r := &revision{digest: b.Digest(), reasons: reasonsOf(modules)}
	if modules[entryFile], r.packages, found = entryModule(modules); len(found) > 0 {
		return nil, found
	}
	r.compiler = newCompiler()
	if r.compiler.Compile(modules); r.compiler.Failed() {
		return nil, findings(r.compiler.Errors)
	}
	r.store = inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true), inmem.OptRoundTripOnWrite(false))
	for e := range entries {
		ref := ast.MustParseRef("data.estover." + e.name())
		q := r.compiler.QueryCompiler()
		body, err := q.Compile(ast.NewBody(ast.Equality.Expr(ast.NewTerm(ref), ast.VarTerm("x"))))
		if err != nil {
			return nil, []Finding{{File: entryFile, Line: 1, Check: "compile", Message: err.Error()}}
		}
		refs, err := reads(r.compiler, ref)
		if err != nil {
			return nil, []Finding{{File: entryFile, Line: 1, Check: "compile", Message: err.Error()}}
		}
		r.entries[e] = query{body: body, compiler: q}
		for _, ref := range refs {
			p := partOf(ref)
			if e == allowed && p&partFacts != 0 {
				r.factsRead = append(r.factsRead, factsOf(ref)...)
			}
			r.entries[e].reads |= p
			if p&partParams != 0 && (e == allowed || e == obligations || e == permits) && !slices.Contains(r.why, ref.String()) {
				r.why = append(r.why, ref.String())
			}
		}
	}
	return r, nil
}

// newCompiler is a compiler with the house's rules: strict, only harmless
// built-ins, and an input that is what [Input] is.
func newCompiler() *ast.Compiler {
	var schema any
	if err := json.Unmarshal(inputSchema, &schema); err != nil {
		panic("policy: input.schema.json: " + err.Error())
	}
	set := ast.NewSchemaSet()
	set.Put(ast.SchemaRootRef, schema)
	return ast.NewCompiler().WithStrict(true).WithCapabilities(capabilities()).WithSchemas(set)
}

// entryFile is the name under which errors show the entry module.
const entryFile = "estover.rego"

// entryModule is the module that puts the packages together. Its rules are
// those of the sets of every package, under one head for each question: so OPA
// keeps one index over all of them, and a decision costs what the few rules
// cost that are about it, however many packages there are. It reads nothing
// but what the rules read: an answer does not depend on what else is there.
func entryModule(modules map[string]*ast.Module) (*ast.Module, []string, []Finding) {
	resolved := newCompiler().WithOnlyStagesUpTo(ast.StageResolveRefs)
	if resolved.Compile(modules); resolved.Failed() {
		return nil, nil, findings(resolved.Errors)
	}
	module, err := ast.ParseModule(entryFile, `package estover

default allow := false

default permitted := false

default denied := false

allow if {
	permitted
	not denied
}
`)
	if err != nil {
		panic("policy: the entry module does not parse: " + err.Error())
	}
	var files, names []string
	for file := range resolved.Modules {
		files = append(files, file)
	}
	slices.Sort(files)
	for _, file := range files {
		m := resolved.Modules[file]
		p := packageOf(m)
		if !contains(names, p) {
			names = append(names, p)
		}
		for _, rule := range m.Rules {
			if rule.Head.Key == nil {
				continue
			}
			named := ast.ArrayTerm(ast.StringTerm(p), rule.Head.Key)
			switch setOf(rule) {
			case "permit":
				module.Rules = append(module.Rules, under(module, "permitted", nil, rule), under(module, permits.name(), named, rule))
			case "deny":
				module.Rules = append(module.Rules, under(module, "denied", nil, rule), under(module, denials.name(), named, rule))
			case "oblige":
				module.Rules = append(module.Rules, under(module, obligations.name(), rule.Head.Key, rule))
			}
		}
	}
	slices.Sort(names)
	for _, e := range []entry{permits, denials, obligations} {
		if !slices.ContainsFunc(module.Rules, func(r *ast.Rule) bool { return string(r.Head.Name) == e.name() }) {
			module.Rules = append(module.Rules, never(module, e.name()))
		}
	}
	return module, names, nil
}

// never is a rule of a set that nothing is in.
func never(m *ast.Module, name string) *ast.Rule {
	return under(m, name, ast.BooleanTerm(true), ast.MustParseRule("x if false"))
}

// under is the body of a rule under another head: one that contains key, or
// one that is true.
func under(m *ast.Module, name string, key *ast.Term, rule *ast.Rule) *ast.Rule {
	c := &ast.Rule{Module: m, Body: rule.Body.Copy(), Location: rule.Location}
	if key == nil {
		c.Head = ast.NewHead(ast.Var(name), nil, ast.BooleanTerm(true))
	} else {
		c.Head = ast.NewHead(ast.Var(name), key.Copy())
	}
	c.Head.Location = rule.Head.Location
	return c
}

// packageOf is the name of a module's package, without data.
func packageOf(m *ast.Module) string {
	return strings.TrimPrefix(m.Package.Path.String(), "data.")
}

// The sets that a package may define.
var sets = []string{"permit", "deny", "oblige", "respond"}

// setOf is the set that a rule adds to, or "".
func setOf(rule *ast.Rule) string {
	name := strings.Trim(rule.Head.Ref()[0].String(), `"`)
	if contains(sets, name) {
		return name
	}
	return ""
}

// reads lists the parts of the input that the answer of an entry may depend
// on: the base documents of its rules as OPA finds them, and besides every
// reference to the input that stands in a rule behind it, so that a reference
// which the analysis drops is not missed.
func reads(c *ast.Compiler, entry ast.Ref) ([]ast.Ref, error) {
	var refs []ast.Ref
	keep := func(r ast.Ref) {
		r = r.ConstantPrefix()
		if r.HasPrefix(ast.InputRootRef) && !slices.ContainsFunc(refs, func(have ast.Ref) bool { return have.Equal(r) }) {
			refs = append(refs, r)
		}
	}
	seen := map[*ast.Rule]bool{}
	var visit func(*ast.Rule) error
	visit = func(rule *ast.Rule) error {
		if seen[rule] {
			return nil
		}
		seen[rule] = true
		deps, err := dependencies.Base(c, rule)
		if err != nil {
			return err
		}
		for _, r := range deps {
			keep(r)
		}
		ast.WalkRefs(rule, func(r ast.Ref) bool { keep(r); return false })
		for n := range c.Graph.Dependencies(rule) {
			if next, ok := n.(*ast.Rule); ok {
				if err := visit(next); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, rule := range c.GetRules(entry) {
		if err := visit(rule); err != nil {
			return nil, err
		}
	}
	return refs, nil
}

// eval answers one question about an input, within the limits of time.
func (r *revision) eval(ctx context.Context, e entry, input ast.Value, indexed bool) (ast.Value, error) {
	v, err := r.evalOnce(ctx, e, input, indexed, evaluationLimit)
	if errors.Is(err, errTimeout) {
		v, err = r.evalOnce(ctx, e, input, indexed, secondLimit)
	}
	return v, err
}

func (r *revision) evalOnce(ctx context.Context, e entry, input ast.Value, indexed bool, limit time.Duration) (ast.Value, error) {
	txn, err := r.store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer r.store.Abort(ctx, txn)
	stop := topdown.NewCancel()
	timer := time.AfterFunc(limit, stop.Cancel)
	defer timer.Stop()
	var answer ast.Value
	err = topdown.NewQuery(r.entries[e].body).
		WithQueryCompiler(r.entries[e].compiler).
		WithCompiler(r.compiler).
		WithStore(r.store).
		WithTransaction(txn).
		WithCancel(stop).
		WithIndexing(indexed).
		WithStrictBuiltinErrors(true).
		WithInput(ast.NewTerm(input)).
		Iter(ctx, func(result topdown.QueryResult) error {
			answer = result[ast.Var("x")].Value
			return nil
		})
	switch {
	case topdown.IsCancel(err):
		return nil, errTimeout
	case err != nil:
		return nil, err
	case answer == nil:
		return nil, fmt.Errorf("%s has no answer", e.name())
	}
	return answer, nil
}

// allows answers whether an input is allowed.
func (r *revision) allows(ctx context.Context, input ast.Value) (bool, error) {
	v, err := r.eval(ctx, allowed, input, true)
	if err != nil {
		return false, err
	}
	return v.Compare(ast.Boolean(true)) == 0, nil
}

// rules answers which rules permit or deny, those of the tenant's packages
// before the baseline's, in the order in which they are written.
func (r *revision) rules(ctx context.Context, e entry, input ast.Value) ([]Reason, error) {
	v, err := r.eval(ctx, e, input, true)
	if err != nil {
		return nil, err
	}
	set, ok := v.(ast.Set)
	if !ok {
		return nil, fmt.Errorf("%s is not a set", e.name())
	}
	var all []Reason
	set.Foreach(func(t *ast.Term) {
		pair, ok := t.Value.(*ast.Array)
		if !ok || pair.Len() != 2 {
			return
		}
		p, _ := pair.Elem(0).Value.(ast.String)
		code, ok := pair.Elem(1).Value.(ast.String)
		if !ok {
			code = "not_permitted" // lint wants words; a denial that is none still denies
		}
		reason, known := r.reasons[string(p)+"."+string(code)]
		if !known {
			reason = Reason{Package: string(p), Code: string(code)}
		}
		all = append(all, reason)
	})
	slices.SortFunc(all, compareReasons)
	return all, nil
}

// obliges answers what must be done along with an allowed request, merged.
func (r *revision) obliges(ctx context.Context, input ast.Value) ([]guard.Obligation, error) {
	v, err := r.eval(ctx, obligations, input, true)
	if err != nil {
		return nil, err
	}
	list, err := ast.JSON(v)
	if err != nil {
		return nil, err
	}
	members, ok := list.([]any)
	if !ok {
		return nil, errors.New("obligations is not a set")
	}
	all := make([]guard.Obligation, 0, len(members))
	for _, m := range members {
		props, ok := m.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("an obligation is %T, not an object", m)
		}
		kind, _ := props["type"].(string)
		delete(props, "type")
		all = append(all, guard.Obligation{Type: kind, Properties: props})
	}
	return Merge(all)
}

// prefixed is a bundle whose paths begin with a prefix.
func prefixed(prefix string, b Bundle) Bundle {
	c := slices.Clone(b)
	for i := range c {
		c[i].Path = prefix + c[i].Path
	}
	return c
}

// parse parses the rules of a bundle, its tests only if asked for.
func parse(b Bundle, tests bool) (map[string]*ast.Module, []Finding) {
	modules := map[string]*ast.Module{}
	var found []Finding
	for _, f := range b {
		if path.Ext(f.Path) != ".rego" || !tests && isTest(f.Path) {
			continue
		}
		m, err := ast.ParseModuleWithOpts(f.Path, f.Text, ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1, Capabilities: capabilities()})
		if err != nil {
			found = append(found, findings(err)...)
			continue
		}
		if m == nil {
			found = append(found, Finding{File: f.Path, Line: 1, Check: "parse", Message: "The file is empty."})
			continue
		}
		modules[f.Path] = m
	}
	return modules, found
}

func isTest(p string) bool { return strings.HasSuffix(p, "_test.rego") }

// findings are the errors of OPA as findings.
func findings(err error) []Finding {
	var list ast.Errors
	if !errors.As(err, &list) {
		return []Finding{{Line: 1, Check: "compile", Message: err.Error()}}
	}
	var found []Finding
	for _, e := range list {
		f := Finding{Line: 1, Check: strings.TrimSuffix(strings.TrimPrefix(e.Code, "rego_"), "_error"), Message: e.Message}
		if e.Location != nil {
			f.File, f.Line = e.Location.File, e.Location.Row
		}
		if e.Details != nil {
			for _, line := range e.Details.Lines() {
				if line = strings.TrimSpace(line); line != "" {
					f.Message += "; " + line
				}
			}
		}
		found = append(found, f)
	}
	return found
}
