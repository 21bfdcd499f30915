package policy

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// A Trial is what running the tests of a bundle has shown.
type Trial struct {
	Tests    []TestResult `json:"tests"`
	Coverage float64      `json:"coverage"` // of the lines of its rules, in per cent
	Findings []Finding    `json:"findings"`
}

// A TestResult is the outcome of one test.
type TestResult struct {
	Name    string        `json:"name"` // package.test
	File    string        `json:"file"`
	Line    int           `json:"line"`
	Outcome string        `json:"outcome"`          // pass, fail, error or skip
	Detail  string        `json:"detail,omitempty"` // of an error, and what the test printed
	Took    time.Duration `json:"took"`
}

// OK reports whether every test passed and nothing was found that is not a
// warning.
func (t Trial) OK() bool {
	for _, r := range t.Tests {
		if r.Outcome == "fail" || r.Outcome == "error" {
			return false
		}
	}
	return !slices.ContainsFunc(t.Findings, func(f Finding) bool { return !f.Warning })
}

// leastCoverage is how many of a hundred lines of rules the tests must reach.
const leastCoverage = 90

// testTime is how long one test may take.
const testTime = 10 * time.Second

// Test runs the tests of a bundle (rules whose names begin with test_) twice,
// with and without OPA's index of rules: the answers must agree. Besides, each
// denial must be seen to fire in one test and not to fire in another, and the
// tests must reach nine in ten lines.
//
// A bundle that does not compile has findings and no results.
func Test(ctx context.Context, b Bundle) (Trial, error) {
	b, err := b.normal()
	if err != nil {
		return Trial{}, err
	}
	return try(ctx, b, slices.Concat(prefixed("estover/", rulesOf(base())), b))
}

// rulesOf is a bundle without its tests.
func rulesOf(b Bundle) Bundle {
	return slices.DeleteFunc(slices.Clone(b), func(f File) bool { return isTest(f.Path) })
}

// try runs the tests of all, and judges the files of b.
func try(ctx context.Context, b, all Bundle) (Trial, error) {
	trial := Trial{Tests: []TestResult{}, Findings: []Finding{}}
	modules, found := parse(all, true)
	data, more := b.data()
	if found = append(found, more...); len(found) > 0 {
		trial.Findings = found
		return trial, nil
	}
	entry, _, found := entryModule(untested(modules))
	if len(found) > 0 {
		trial.Findings = found
		return trial, nil
	}
	modules[entryFile] = entry
	compiler := newCompiler()
	if compiler.Compile(modules); compiler.Failed() {
		trial.Findings = findings(compiler.Errors)
		return trial, nil
	}
	store := inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true), inmem.OptRoundTripOnWrite(false))
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return trial, err
	}
	defer store.Abort(ctx, txn)
	coverage := cover.New()
	results, err := tester.NewRunner().
		SetCompiler(compiler).SetModules(modules).SetStore(store).SetTimeout(testTime).
		SetCoverageQueryTracer(coverage).CapturePrintOutput(true).
		RunTests(ctx, txn)
	if err != nil {
		return trial, err
	}
	for r := range results {
		trial.add(r)
	}
	slices.SortFunc(trial.Tests, func(x, y TestResult) int {
		return cmp.Or(strings.Compare(x.File, y.File), x.Line-y.Line, strings.Compare(x.Name, y.Name))
	})
	if len(trial.Tests) == 0 {
		trial.Findings = append(trial.Findings, Finding{File: b[0].Path, Line: 1, Check: "tests", Message: "There are no tests. A test is a rule whose name begins with test_, in a file whose name ends in _test.rego."})
	}
	mine := map[string]*ast.Module{}
	for _, f := range b {
		if m := modules[f.Path]; m != nil && !isTest(f.Path) {
			mine[f.Path] = m
		}
	}
	trial.cover(coverage.Report(mine), mine)
	if err := trial.again(ctx, compiler, store, txn, mine); err != nil {
		return trial, err
	}
	slices.SortFunc(trial.Findings, func(x, y Finding) int { return cmp.Or(strings.Compare(x.File, y.File), x.Line-y.Line) })
	return trial, nil
}

// add takes the result of a test over.
func (t *Trial) add(r *tester.Result) {
	one := TestResult{
		Name: strings.TrimPrefix(r.Package, "data.") + "." + r.Name, Outcome: "pass", Took: r.Duration,
		Detail: strings.TrimSpace(string(r.Output)),
	}
	if r.Location != nil {
		one.File, one.Line = r.Location.File, r.Location.Row
	}
	switch {
	case r.Skip:
		one.Outcome = "skip"
	case r.Error != nil:
		one.Outcome, one.Detail = "error", strings.TrimSpace(r.Error.Error()+"\n"+one.Detail)
	case r.Fail:
		one.Outcome = "fail"
		if r.FailedAt != nil && r.FailedAt.Location != nil {
			one.Detail = strings.TrimSpace(fmt.Sprintf("%s:%d: %s\n%s", r.FailedAt.Location.File, r.FailedAt.Location.Row, r.FailedAt.Location.Text, one.Detail))
		}
	}
	t.Tests = append(t.Tests, one)
}

// cover takes over how many lines the tests reached, and which they did not.
func (t *Trial) cover(r cover.Report, modules map[string]*ast.Module) {
	var reached, missed int
	var where []Finding
	for file := range modules {
		f := r.Files[file]
		if f == nil {
			continue
		}
		reached += f.CoveredLines
		missed += f.NotCoveredLines
		for _, gap := range f.NotCovered {
			where = append(where, Finding{File: file, Line: gap.Start.Row, Check: "coverage", Message: "No test reaches this.", Warning: true})
		}
	}
	t.Coverage = 100
	if reached+missed > 0 {
		t.Coverage = 100 * float64(reached) / float64(reached+missed)
	}
	t.Findings = append(t.Findings, where...)
	if t.Coverage < leastCoverage && len(where) > 0 {
		t.Findings = append(t.Findings, Finding{File: where[0].File, Line: where[0].Line, Check: "coverage", Message: fmt.Sprintf("The tests reach %.0f of a hundred lines of rules; %d are wanted.", t.Coverage, leastCoverage)})
	}
}

// again runs every test with and without the index, compares, and watches the
// denials without it: then each rule of a set is entered when the set is asked
// for, and left if it fires.
func (t *Trial) again(ctx context.Context, compiler *ast.Compiler, store storage.Store, txn storage.Transaction, mine map[string]*ast.Module) error {
	fired, held := map[string]bool{}, map[string]bool{}
	done := map[string]bool{}
	for _, m := range compiler.Modules {
		for _, rule := range m.Rules {
			ref := rule.Ref().GroundPrefix()
			if name := strings.Trim(rule.Head.Ref()[0].String(), `"`); !strings.HasPrefix(name, tester.TestPrefix) || done[ref.String()] {
				continue
			}
			done[ref.String()] = true
			with, err := evalRef(ctx, compiler, store, txn, ref, true, nil)
			if err != nil {
				return err
			}
			w := &watcher{entered: map[string]bool{}, left: map[string]bool{}}
			without, err := evalRef(ctx, compiler, store, txn, ref, false, w)
			if err != nil {
				return err
			}
			if with != without {
				t.Findings = append(t.Findings, Finding{File: rule.Location.File, Line: rule.Location.Row, Check: "index", Message: fmt.Sprintf("%s answers %s with OPA's index of rules and %s without it. Do not activate this bundle; tell Estover.", ref, with, without)})
			}
			for at := range w.entered {
				fired[at] = fired[at] || w.left[at]
				held[at] = held[at] || !w.left[at]
			}
		}
	}
	for file, m := range mine {
		for _, rule := range m.Rules {
			if setOf(rule) != "deny" {
				continue
			}
			at := place(rule)
			switch {
			case !fired[at] && !held[at]:
				t.Findings = append(t.Findings, Finding{File: file, Line: rule.Location.Row, Check: "denial", Message: fmt.Sprintf("No test asks for the denial %q. Write one in which it fires and one in which it does not.", codeOf(rule))})
			case !fired[at]:
				t.Findings = append(t.Findings, Finding{File: file, Line: rule.Location.Row, Check: "denial", Message: fmt.Sprintf("The denial %q fires in no test.", codeOf(rule))})
			case !held[at]:
				t.Findings = append(t.Findings, Finding{File: file, Line: rule.Location.Row, Check: "denial", Message: fmt.Sprintf("The denial %q fires in every test that asks for it: write one in which it does not.", codeOf(rule))})
			}
		}
	}
	return nil
}

// evalRef is the value of a reference, as text; "undefined" if it has none.
func evalRef(ctx context.Context, c *ast.Compiler, store storage.Store, txn storage.Transaction, ref ast.Ref, indexed bool, w *watcher) (string, error) {
	qc := c.QueryCompiler()
	body, err := qc.Compile(ast.NewBody(ast.Equality.Expr(ast.NewTerm(ref), ast.VarTerm("x"))))
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, testTime)
	defer cancel()
	stop := topdown.NewCancel()
	defer context.AfterFunc(ctx, stop.Cancel)()
	q := topdown.NewQuery(body).WithQueryCompiler(qc).WithCompiler(c).WithStore(store).WithTransaction(txn).WithCancel(stop).WithIndexing(indexed)
	if w != nil {
		q = q.WithQueryTracer(w)
	}
	value := "undefined"
	err = q.Iter(ctx, func(r topdown.QueryResult) error {
		value = r[ast.Var("x")].String()
		return nil
	})
	if err != nil {
		return "error: " + err.Error(), nil // the runner has said so already; here both ways must fail alike
	}
	return value, nil
}

// A watcher notes which denials a test entered and which fired.
type watcher struct {
	mu            sync.Mutex
	entered, left map[string]bool
}

// Enabled is always so.
func (*watcher) Enabled() bool { return true }

// Config asks for nothing special.
func (*watcher) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent notes an event of a rule that denies.
func (w *watcher) TraceEvent(e topdown.Event) {
	rule, ok := e.Node.(*ast.Rule)
	if !ok || e.Op != topdown.EnterOp && e.Op != topdown.ExitOp || !denies(rule) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entered[place(rule)] = true
	if e.Op == topdown.ExitOp {
		w.left[place(rule)] = true
	}
}

// denies reports whether a rule is a denial, in its package or in the entry
// module.
func denies(rule *ast.Rule) bool {
	return setOf(rule) == "deny" || rule.Head.Name == "denied" || string(rule.Head.Name) == denials.name()
}

// place is where a rule stands.
func place(rule *ast.Rule) string {
	if rule.Location == nil {
		return ""
	}
	return fmt.Sprintf("%s:%d", rule.Location.File, rule.Location.Row)
}
