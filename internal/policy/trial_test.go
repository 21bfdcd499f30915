package policy

import (
	"slices"
	"strings"
	"testing"
)

// tested is a denial with these tests.
func tested(tests string) Bundle {
	return Bundle{
		{"a.rego", denial("\tinput.op == \"gateway.call\"\n\tinput.facts.entitled == false")},
		{"a_test.rego", "package tenant.test_test\n\nimport data.tenant.test\n\n" + tests},
	}
}

const (
	fires = `test_fires if test.deny == {"no"} with input as {"op": "gateway.call", "facts": {"entitled": false}}
`
	holds = `
test_holds if test.deny == set() with input as {"op": "gateway.call", "facts": {"entitled": true}}
`
)

func TestTrial(t *testing.T) {
	for name, test := range map[string]struct {
		bundle   Bundle
		outcomes []string // of the tests, sorted
		checks   []string // of the findings
		ok       bool
	}{
		"both ways":      {tested(fires + holds), []string{"pass", "pass"}, nil, true},
		"never fires":    {tested(holds), []string{"pass"}, []string{"coverage", "denial"}, false},
		"always fires":   {tested(fires), []string{"pass"}, []string{"denial"}, false},
		"is never asked": {tested("test_nothing if test\n"), []string{"pass"}, []string{"coverage", "denial"}, false},
		"a test fails":   {tested(fires + holds + "\ntest_wrong if test.deny == {\"yes\"} with input as {\"op\": \"gateway.call\"}\n"), []string{"fail", "pass", "pass"}, nil, false},
		"a case of a table fails": {tested(fires + holds + `
test_table[op] if {
	some op in ["gateway.call", "agent.create"]
	test.deny == {"no"} with input as {"op": op, "facts": {"entitled": false}}
}
`), []string{"fail", "pass", "pass"}, nil, false},
		"the whole decision": {tested(fires + holds + `
test_all if {
	not data.estover.allow with input as {"op": "gateway.call", "facts": {"entitled": false}}
}
`), []string{"pass", "pass", "pass"}, nil, true},
		"a test to come":   {tested(fires + holds + "\ntodo_test_later if 1 == 2\n"), []string{"pass", "pass", "skip"}, nil, true},
		"no tests":         {tested("")[:1], nil, []string{"coverage", "denial", "tests"}, false},
		"does not compile": {tested("test_a if nope(test)\n"), nil, []string{"type"}, false},
		"does not parse":   {tested("test_a if {\n"), nil, []string{"parse"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			trial, err := Test(t.Context(), test.bundle)
			if err != nil {
				t.Fatal(err)
			}
			var outcomes, checks []string
			for _, r := range trial.Tests {
				outcomes = append(outcomes, r.Outcome)
				if r.File != "a_test.rego" || r.Line == 0 || !strings.HasPrefix(r.Name, "tenant.test_test.") {
					t.Errorf("a result without a place: %+v", r)
				}
			}
			for _, f := range trial.Findings {
				if !slices.Contains(checks, f.Check) {
					checks = append(checks, f.Check)
				}
			}
			slices.Sort(outcomes)
			slices.Sort(checks)
			if !slices.Equal(outcomes, test.outcomes) || !slices.Equal(checks, test.checks) || trial.OK() != test.ok {
				t.Errorf("outcomes %v, findings %v, good %v; want %v, %v, %v\n%v\n%v", outcomes, trial.Findings, trial.OK(), test.outcomes, test.checks, test.ok, trial.Tests, trial.Coverage)
			}
		})
	}
}

// What a test reads from a table is the table.
func TestTrialWithData(t *testing.T) {
	b := tested(fires + holds + "\ntest_table if \"a\" in data.tenant.tables.teams\n")
	b = append(b, File{"tenant/tables/data.json", `{"teams": ["a"]}`})
	trial, err := Test(t.Context(), b)
	if err != nil || !trial.OK() || len(trial.Tests) != 3 {
		t.Errorf("the trial is %+v, %v", trial, err)
	}
}
