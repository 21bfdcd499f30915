package policy

import (
	"strings"
	"testing"
)

// A bundle that everybody starts from has to be better than its own checks
// ask for.
func TestStarter(t *testing.T) {
	report, err := Check(Starter())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		t.Error(f)
	}
	if !report.Cacheable {
		t.Errorf("answers of the starter bundle may not be kept: it asks for %v", report.Asks)
	}
	trial, err := Test(t.Context(), Starter())
	if err != nil {
		t.Fatal(err)
	}
	passed(t, trial)
}

// The baseline keeps the rules of the house too, except that it stands where
// no tenant may, and asks for a rule of the tenant that need not be there.
func TestBaseline(t *testing.T) {
	modules, found := parse(base(), true)
	for _, f := range append(found, lint(base(), modules)...) {
		if f.Check != "root" && !(f.Check == "missing" && strings.Contains(f.Message, "data.tenant.delegation.edge")) {
			t.Error(f)
		}
	}
	for _, f := range base() {
		for _, found := range formatted(f) {
			t.Error(found)
		}
	}
	trial, err := try(t.Context(), base(), base())
	if err != nil {
		t.Fatal(err)
	}
	passed(t, trial)
}

func passed(t *testing.T, trial Trial) {
	t.Helper()
	for _, r := range trial.Tests {
		if r.Outcome != "pass" {
			t.Errorf("%s:%d: %s: %s: %s", r.File, r.Line, r.Name, r.Outcome, r.Detail)
		}
	}
	for _, f := range trial.Findings {
		t.Error(f)
	}
	if len(trial.Tests) < 10 {
		t.Errorf("%d tests ran, want at least 10", len(trial.Tests))
	}
	t.Logf("%d tests, %.1f %% of the lines", len(trial.Tests), trial.Coverage)
}
