package approval

import (
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"estover.dev"
)

// allows says what an item lets an agent do, one call at a time.
func allows(items []Item, resource, action, id string, class estover.Class) bool {
	return slices.ContainsFunc(items, func(i Item) bool {
		values, bound := i.Parameters["id"]
		return i.Resource == resource && i.Class.Covers(class) && (slices.Contains(i.Actions, All) || slices.Contains(i.Actions, action)) &&
			(!bound || slices.Contains(values, id))
	})
}

// Whatever somebody chooses of what is on the table: what is left lets nothing
// through that the table does not, and to choose it again changes nothing.
func TestNarrowedIsNeverWider(t *testing.T) {
	resources, actions, ids := []string{"res_a", "res_b"}, []string{"read", "write", "delete"}, []string{"1", "2", "3"}
	item := rapid.Custom(func(t *rapid.T) Item {
		i := Item{
			Resource: rapid.SampledFrom(resources).Draw(t, "resource"),
			Actions:  rapid.OneOf(rapid.Just([]string{All}), rapid.SliceOfN(rapid.SampledFrom(actions), 1, 3)).Draw(t, "actions"),
			Class:    rapid.SampledFrom(estover.Classes).Draw(t, "class"),
		}
		if rapid.Bool().Draw(t, "confined") {
			i.Parameters = map[string][]string{"id": rapid.SliceOfN(rapid.SampledFrom(ids), 1, 3).Draw(t, "ids")}
		}
		return i
	})
	left := 0
	rapid.Check(t, func(t *rapid.T) {
		table, bad := normal(rapid.SliceOfN(item, 1, 3).Draw(t, "table"))
		if len(bad) > 0 {
			t.Fatal(bad)
		}
		choice := rapid.SliceOfN(item, 0, 3).Draw(t, "choice")
		for i := range choice {
			if rapid.Bool().Draw(t, "as it is") {
				choice[i].Class = ""
			}
		}
		out, err := narrowed(table, choice)
		if err != nil {
			return
		}
		left++
		for _, r := range resources {
			for _, a := range actions {
				for _, id := range ids {
					for _, class := range estover.Classes {
						if allows(out, r, a, id, class) && !allows(table, r, a, id, class) {
							t.Fatalf("%+v of %+v leaves %+v, which lets %s %s of %s (%s) through", choice, table, out, a, id, r, class)
						}
					}
				}
			}
		}
		if again, err := narrowed(out, out); err != nil || !reflect.DeepEqual(again, out) {
			t.Fatalf("%+v chosen again is %+v, %v", out, again, err)
		}
	})
	if left == 0 {
		t.Error("no choice was ever within the table")
	}
}
