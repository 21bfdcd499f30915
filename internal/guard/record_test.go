package guard_test

import (
	"encoding/json"
	"testing"

	"estover.dev/internal/guard"
)

func TestDecisionIsWrittenAsJSON(t *testing.T) {
	for _, r := range []guard.DecisionRecord{
		{},
		{Allow: true, Rule: "tenant.access.granted", Engine: "cache", Revision: "sha256:1", InputDigest: "00", Facts: map[string]any{"input": json.RawMessage(`{"op":"a\u003cb"}`)}},
		{
			Reasons: []string{"no_grant", `"quoted"`}, Message: "Nö.", Next: "Ask <somebody>.", Facts: map[string]any{"input": 1, "more": []string{"x"}},
			Obligations: []guard.Obligation{{Type: "record", Properties: map[string]any{"level": "full", "a": 1.5}}, {Type: "receipt"}},
		},
	} {
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.AppendJSON(nil); string(got) != string(want) {
			t.Errorf("written as %s, want %s", got, want)
		}
	}
}
