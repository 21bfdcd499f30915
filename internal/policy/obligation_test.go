package policy

import (
	"encoding/json"
	"errors"
	"testing"

	"estover.dev/internal/guard"
	"pgregory.net/rapid"
)

// obligationsOf reads obligations as a rule writes them: one object each.
func obligationsOf(t testing.TB, text string) (all []guard.Obligation) {
	t.Helper()
	var list []map[string]any
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		kind, _ := m["type"].(string)
		delete(m, "type")
		all = append(all, guard.Obligation{Type: kind, Properties: m})
	}
	return all
}

func TestMerge(t *testing.T) {
	for name, test := range map[string]struct{ in, want string }{
		"nothing":  {`[]`, `null`},
		"receipts": {`[{"type":"receipt"},{"type":"receipt"}]`, `[{"type":"receipt"}]`},
		"the highest level and the longest retention": {
			`[{"type":"record","level":"full"},{"type":"record","level":"meta","retention_days":90},{"type":"record","level":"none","retention_days":30}]`,
			`[{"type":"record","properties":{"level":"full","retention_days":90}}]`,
		},
		"the lowest limits": {
			`[{"type":"limit","rows":100,"calls":5},{"type":"limit","rows":10,"bytes":4096},{"type":"limit","seconds":0}]`,
			`[{"type":"limit","properties":{"bytes":4096,"calls":5,"rows":10,"seconds":0}}]`,
		},
		"strict over batched": {
			`[{"type":"evidence","mode":"batched"},{"type":"evidence","mode":"strict"},{"type":"evidence","mode":"batched"}]`,
			`[{"type":"evidence","properties":{"mode":"strict"}}]`,
		},
		"every addressee once": {
			`[{"type":"notification","to":"sponsor","topic":"a"},{"type":"notification","to":"owner"},{"type":"notification","to":"sponsor","topic":"a"}]`,
			`[{"type":"notification","properties":{"to":"owner"}},{"type":"notification","properties":{"to":"sponsor","topic":"a"}}]`,
		},
		"for each class and direction the strictest": {
			`[{"type":"redact","classes":["payment","contact"],"mode":"mask","direction":"response"},
			  {"type":"redact","classes":["payment"],"mode":"tokenise"},
			  {"type":"redact","classes":["health"]},
			  {"type":"redact","classes":["health"],"mode":"block","direction":"request"}]`,
			`[{"type":"redact","properties":{"classes":["payment"],"direction":"request","mode":"tokenise"}},` +
				`{"type":"redact","properties":{"classes":["health"],"direction":"request","mode":"block"}},` +
				`{"type":"redact","properties":{"classes":["contact"],"direction":"response","mode":"mask"}},` +
				`{"type":"redact","properties":{"classes":["payment"],"direction":"response","mode":"tokenise"}},` +
				`{"type":"redact","properties":{"classes":["health"],"direction":"response","mode":"redact"}}]`,
		},
		"in the order of their types": {
			`[{"type":"record","level":"meta"},{"type":"evidence","mode":"batched"},{"type":"receipt"}]`,
			`[{"type":"evidence","properties":{"mode":"batched"}},{"type":"receipt"},{"type":"record","properties":{"level":"meta"}}]`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Merge(obligationsOf(t, test.in))
			if err != nil {
				t.Fatal(err)
			}
			if text := jsonOf(t, got); text != test.want {
				t.Errorf("merged to\n%s\nwant\n%s", text, test.want)
			}
		})
	}
}

func TestMergeRefuses(t *testing.T) {
	for _, text := range []string{
		`[{"type":"pray"}]`,
		`[{}]`,
		`[{"type":"record"}]`,
		`[{"type":"record","level":"some"}]`,
		`[{"type":"record","level":["full"]}]`,
		`[{"type":"receipt","why":"because"}]`,
		`[{"type":"limit","rows":-1}]`,
		`[{"type":"limit","rows":1.5}]`,
		`[{"type":"limit","rows":"10"}]`,
		`[{"type":"redact","classes":[]}]`,
		`[{"type":"redact","classes":"payment"}]`,
		`[{"type":"redact","classes":["payment",3]}]`,
		`[{"type":"notification","to":""}]`,
		`[{"type":"receipt"},{"type":"evidence","mode":"none"}]`,
	} {
		if got, err := Merge(obligationsOf(t, text)); !errors.Is(err, errObligation) {
			t.Errorf("%s merged to %v, %v; want a refusal", text, got, err)
		}
	}
}

// However obligations come, in whatever order and in how many steps, what must
// be done is the same.
func TestMergeIsAJoin(t *testing.T) {
	one := rapid.Custom(func(t *rapid.T) guard.Obligation {
		word := func(list []string) string { return rapid.SampledFrom(list).Draw(t, "word") }
		switch word([]string{"redact", "record", "limit", "receipt", "evidence", "notification"}) {
		case "redact":
			classes := rapid.SliceOfNDistinct(rapid.SampledFrom(dataClasses[:4]), 1, 3, func(s string) string { return s }).Draw(t, "classes")
			return guard.Obligation{Type: "redact", Properties: map[string]any{"classes": classes, "mode": word(redactModes), "direction": word(directions)}}
		case "record":
			return guard.Obligation{Type: "record", Properties: map[string]any{"level": word(recordLevels)}}
		case "limit":
			return guard.Obligation{Type: "limit", Properties: map[string]any{word([]string{"rows", "bytes"}): rapid.IntRange(0, 9).Draw(t, "n")}}
		case "evidence":
			return guard.Obligation{Type: "evidence", Properties: map[string]any{"mode": word(evidence)}}
		case "notification":
			return guard.Obligation{Type: "notification", Properties: map[string]any{"to": word([]string{"sponsor", "owner"})}}
		}
		return guard.Obligation{Type: "receipt"}
	})
	merge := func(t *rapid.T, all []guard.Obligation) []guard.Obligation {
		m, err := Merge(all)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOf(one).Draw(t, "all")
		want, _ := json.Marshal(merge(t, all))
		shuffled := rapid.Permutation(all).Draw(t, "shuffled")
		if got, _ := json.Marshal(merge(t, shuffled)); string(got) != string(want) {
			t.Fatalf("in another order: %s, want %s", got, want)
		}
		cut := rapid.IntRange(0, len(all)).Draw(t, "cut")
		if got, _ := json.Marshal(merge(t, append(merge(t, all[:cut]), merge(t, all[cut:])...))); string(got) != string(want) {
			t.Fatalf("in two steps: %s, want %s", got, want)
		}
		if got, _ := json.Marshal(merge(t, append(all, all...))); string(got) != string(want) {
			t.Fatalf("twice: %s, want %s", got, want)
		}
	})
}
