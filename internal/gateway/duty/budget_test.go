package duty

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/gateway"
	"estover.dev/internal/resource"
)

// TestNothingGoesUncovered: a call whose grant has ended since policy was asked is
// not made without one, and without its budgets.
func TestNothingGoesUncovered(t *testing.T) {
	found := Covered{}
	d := &Duties{Config: Config{Covered: func(context.Context, estover.Caller, access.Call) (Covered, error) { return found, nil }}}
	c := &call{resource: &resource.Upstream{}}
	bot := &gateway.Exchange{}
	bot.Caller = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada"), Actors: []estover.Subject{estover.Agent("agt_bot")}}
	if err := d.cover(t.Context(), bot, c); estover.KindOf(err) != estover.Denied {
		t.Errorf("a call without a grant: %v, want a refusal", err)
	}
	found.Grant = "grt_1"
	if err := d.cover(t.Context(), bot, c); err != nil {
		t.Errorf("a call on a grant: %v", err)
	}
}

// TestRows: what counts as a row, however the answer is cut into pieces.
func TestRows(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		json bool
		want int64
	}{
		"a list":                        {`[{"id":1},{"id":2},{"id":3}]`, true, 3},
		"a list of numbers":             {` [1, 2 ,3,44, -5.5e7 ] `, true, 5},
		"a list of lists":               {`[[1,2,3],[4]]`, true, 2},
		"a list in an object":           {`{"next":"a,b","items":[{"tags":["x","y"]},{"tags":[]}],"total":2}`, true, 2},
		"two lists in an object":        {`{"a":[1,2],"b":[3]}`, true, 3},
		"a list deeper down":            {`{"data":{"items":[1,2,3]}}`, true, 1},
		"an object":                     {`{"id":1,"name":"Ada"}`, true, 1},
		"an empty list":                 {`[]`, true, 1},
		"a text":                        {`"[1,2,3]"`, true, 1},
		"a text with signs":             {`["a\",[{","b\\","]"]`, true, 3},
		"a line for each":               {"{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n", true, 3},
		"lines of lists":                {"[1,2]\n[3]\n", true, 3},
		"numbers on lines":              {"1\n22\n333", true, 3},
		"nothing":                       {``, true, 0},
		"white space":                   {" \n", true, 0},
		"what is no JSON":               {"id,name\n1,Ada\n2,Bob\n", false, 1},
		"true, false and null":          {`[true,false,null]`, true, 3},
		"a list that has not its end":   {`[1,2,`, true, 2},
		"brackets that were not opened": {`]]}}[1,2]`, true, 2},
	} {
		rapid.Check(t, func(t *rapid.T) {
			r := rows{json: c.json}
			var got int64
			for rest := c.body; rest != ""; {
				n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
				got += r.count([]byte(rest[:n]))
				rest = rest[n:]
			}
			if got != c.want {
				t.Fatalf("%s has %d rows, want %d", name, got, c.want)
			}
		})
	}
}

// TestRowsOfLists: a list has as many rows as elements, whatever these are.
func TestRowsOfLists(t *testing.T) {
	element := rapid.OneOf(
		rapid.Custom(func(t *rapid.T) any { return rapid.StringN(0, 8, -1).Draw(t, "text") }),
		rapid.Custom(func(t *rapid.T) any { return rapid.Float64Range(-1e9, 1e9).Draw(t, "number") }),
		rapid.Custom(func(t *rapid.T) any { return rapid.Bool().Draw(t, "flag") }),
		rapid.Custom(func(t *rapid.T) any {
			return map[string]any{rapid.String().Draw(t, "name"): []any{1, "a", nil, map[string]any{"b": []int{1, 2}}}}
		}),
	)
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(element, 1, 8).Draw(t, "list")
		var v any = list
		if rapid.Bool().Draw(t, "wrapped") {
			v = map[string]any{"items": list, "count": len(list), "next": "[{,"}
		}
		b, err := json.MarshalIndent(v, "", strings.Repeat(" ", rapid.IntRange(0, 2).Draw(t, "indent")))
		if err != nil {
			t.Fatal(err)
		}
		r := rows{json: true}
		if got := r.count(b); got != int64(len(list)) {
			t.Fatalf("%s has %d rows, want %d", b, got, len(list))
		}
	})
}
