package apply_test

import (
	"errors"
	"strings"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/detail"
	"estover.dev/internal/token"
)

const detailType = `
---
apiVersion: estover.dev/v1
kind: DetailType
metadata: {name: payment}
spec:
  title: Start one payment
  resources: [https://bank.example]
  schema: |
    {"type": "object", "additionalProperties": false, "required": ["type", "amount"],
     "properties": {"type": {"const": "payment"}, "amount": {"type": "number"}}}
  members:
    - {name: amount, title: At most, narrows: at_most}
`

func TestDetailType(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		if got := h.must(company + detailType); !strings.Contains(got, "+ DetailType payment\n") {
			t.Errorf("applying says\n%s", got)
		}
		got, err := h.Details.ByName(t.Context(), ada, "payment")
		if err != nil || got.ManagedBy != "apply/default" || got.Members[0].Narrows != detail.AtMost || got.Epoch != 1 {
			t.Errorf("the type is %+v (%v)", got, err)
		}
		if got := h.must(company + detailType); strings.Contains(got, "DetailType") {
			t.Errorf("applying again says\n%s", got)
		}
		if got := h.must(company + strings.Replace(detailType, "Start one", "Make one", 1)); !strings.Contains(got, "~ DetailType payment\n    title") {
			t.Errorf("applying a change says\n%s", got)
		}
		types, err := h.Details.Of(t.Context(), ada.Tenant)
		if err != nil || types["payment"] == nil || types["payment"].Title != "Make one payment" || types[detail.Task] == nil {
			t.Errorf("the types that are used: %v (%v)", types.Names(), err)
		}
		for what, c := range map[string]struct{ before, after, says string }{
			"a schema that reads a file": {`"type": "number"`, `"$ref": "file:///etc/passwd"`, "refers to nothing outside of itself"},
			"a schema that is none":      {`{"type": "number"}`, `7`, "The schema is none that can be used"},
			"a rule that there is not":   {"at_most}", "less}", "subset, at_most or subsets"},
			"a name of ours":             {"{name: payment}", "{name: estover_task}", "there already"},
			"no title":                   {"  title: Start one payment\n", "", "lacks title"},
			"a resource that is a name":  {"https://bank.example", "bank", "identifier"},
		} {
			if _, err := h.run(company + strings.Replace(detailType, c.before, c.after, 1)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want %q", what, err, c.says)
			}
		}
		if got := h.must(company, prune); !strings.Contains(got, "- DetailType payment\n") {
			t.Errorf("pruning says\n%s", got)
		}
		if _, err := h.Details.ByName(t.Context(), ada, "payment"); !errors.Is(err, token.ErrNoDetailType) {
			t.Errorf("the type that was pruned: %v, want ErrNoDetailType", err)
		}
		if types, err := h.Details.Of(t.Context(), ada.Tenant); err != nil || types["payment"] != nil {
			t.Errorf("the type that was pruned is used: %v (%v)", types.Names(), err)
		}
	})
}
