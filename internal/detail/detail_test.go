package detail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"estover.dev"
)

// payment is a type as a bank would have it.
func payment(t testing.TB) *Type {
	t.Helper()
	made, err := New(Spec{
		Name: "payment", Title: "Start one payment", Resources: []string{"https://bank.example"},
		Schema: `{"type": "object", "additionalProperties": false, "required": ["type", "amount", "to"], "properties": {
			"type": {"const": "payment"}, "amount": {"type": "number", "exclusiveMinimum": 0}, "currency": {"enum": ["EUR", "USD"]},
			"to": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"}}, "note": {"type": "object"}}}`,
		Members: []Member{
			{Name: "amount", Title: "At most", Narrows: AtMost},
			{Name: "currency", Limits: true},
			{Name: "to", Title: "To one of", Narrows: Subset},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func parse(t testing.TB, text string) List {
	t.Helper()
	l, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return l
}

// TestParseIsStrict: what two parsers could read differently, and what would cost
// more than it says, is refused before anything is made of it.
func TestParseIsStrict(t *testing.T) {
	deep := strings.Repeat(`[`, 4) + strings.Repeat(`]`, 4)
	good := `[ {"type": "payment", "amount": 12.50, "x": ` + deep + `} ]`
	if l := parse(t, good); l.String() != `[{"type":"payment","amount":12.50,"x":[[[[]]]]}]` {
		t.Errorf("%s is written as %s", good, l)
	}
	if l := parse(t, "[]"); l == nil || len(l) != 0 {
		t.Errorf("an empty list is %#v", l)
	}
	for what, text := range map[string]string{
		"nothing": ``, "spaces": `  `, "no array": `{"type":"payment"}`, "a string": `"payment"`, "a number": `1`, "null": `null`,
		"two arrays": `[][]`, "something behind": `[] x`, "no end": `[{"type":"payment"}`, "no object": `["payment"]`, "null in it": `[null]`,
		"no type": `[{"amount":1}]`, "an empty type": `[{"type":""}]`, "a type that is no text": `[{"type":1}]`,
		"a name twice": `[{"type":"payment","amount":1,"amount":2}]`, "a type twice": `[{"type":"payment","type":"other"}]`,
		"a name twice by an escape": `[{"type":"payment","amount":1,"\u0061mount":2}]`, "a name twice inside": `[{"type":"payment","x":{"a":1,"a":2}}]`,
		"bad UTF-8":    "[{\"type\":\"\xff\"}]",
		"too deep":     `[{"type":"payment","x":[` + deep + `]}]`,
		"far too deep": strings.Repeat(`[`, 8000), "an exponent": `[{"type":"payment","amount":1e999999999}]`, "a long number": `[{"type":"payment","amount":` + strings.Repeat("1", 33) + `}]`,
		"a long text": `[{"type":"` + strings.Repeat("a", maxString+1) + `"}]`, "10,000 elements": `[` + strings.Repeat(`{},`, 10_000) + `{}]`,
		"too many": `[` + strings.Repeat(`{"type":"a"},`, MaxDetails) + `{"type":"a"}]`,
		"too long": `[` + strings.Repeat(` `, MaxText) + `]`, "too long without spaces": `[{"type":"a","x":["` + strings.Repeat(strings.Repeat("a", 900)+`","`, 10) + `"]}]`,
		"a text that turns": `[{"type":"payment","to":["\u202eDE12"]}]`, "a line break": `[{"type":"payment","to":["a\nb"]}]`, "a name that nobody sees": `[{"type":"payment","\u200b":1}]`,
	} {
		if l, err := Parse([]byte(text)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %.60s, %v, want %s", what, l, err, ErrInvalid.Code)
		}
	}
}

// TestSchemaDecides: a detail is what the schema of its type says, and there are
// no types but the registered ones (RFC 9396, section 5).
func TestSchemaDecides(t *testing.T) {
	types := NewTypes(payment(t))
	if err := types.Check(parse(t, `[{"type":"payment","amount":5,"to":["DE1"]},{"type":"estover_task","locations":["https://crm.example"],"actions":["customer.read"]}]`)); err != nil {
		t.Error(err)
	}
	for what, text := range map[string]string{
		"a type that is not there": `[{"type":"refund"}]`, "a type in another case": `[{"type":"Payment","amount":5,"to":[]}]`,
		"a member that is missing": `[{"type":"payment","amount":5}]`, "a member of another kind": `[{"type":"payment","amount":"5","to":[]}]`,
		"a value that is none": `[{"type":"payment","amount":0,"to":[]}]`, "a member that nobody knows": `[{"type":"payment","amount":5,"to":[],"x":1}]`,
		"one of two": `[{"type":"payment","amount":5,"to":[]},{"type":"payment"}]`, "a text that does not fit": `[{"type":"payment","amount":5,"to":["x"]}]`,
		"a task that would be counted":  `[{"type":"estover_task","locations":["https://crm.example"],"actions":["customer.read"],"max_calls":3}]`,
		"a task that is nowhere":        `[{"type":"estover_task","locations":[],"actions":["customer.read"]}]`,
		"a task without actions":        `[{"type":"estover_task","locations":["https://crm.example"]}]`,
		"a parameter that is no list":   `[{"type":"estover_task","locations":["https://crm.example"],"actions":["a"],"parameters":{"id":"7"}}]`,
		"a parameter that may be none":  `[{"type":"estover_task","locations":["https://crm.example"],"actions":["a"],"parameters":{"id":[]}}]`,
		"a purpose that is not written": `[{"type":"estover_task","locations":["https://crm.example"],"actions":["a"],"purpose":""}]`,
	} {
		if err := types.Check(parse(t, text)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want %s", what, err, ErrInvalid.Code)
		}
	}
}

// TestWithin: what is asked for lies within what was agreed to, member by member,
// and what the type says nothing about is no less.
func TestWithin(t *testing.T) {
	types := NewTypes(payment(t))
	const agreed = `[{"type":"payment","amount":100,"to":["DE1","DE2"],"note":{"a":[1]}}]`
	const task = `[{"type":"estover_task","locations":["a","b"],"actions":["r","w"],"parameters":{"id":["1","2"]}}]`
	for _, c := range []struct {
		what, asked, of string
		ok              bool
	}{
		{"the same", agreed, agreed, true},
		{"the same, written differently", `[{"note":{"a":[1.0]},"to":["DE2","DE1"],"amount":100.0,"type":"payment"}]`, agreed, true},
		{"nothing", `[]`, agreed, true},
		{"a smaller number", `[{"type":"payment","amount":99.99,"to":["DE1","DE2"],"note":{"a":[1]}}]`, agreed, true},
		{"a larger number", `[{"type":"payment","amount":100.01,"to":["DE1","DE2"],"note":{"a":[1]}}]`, agreed, false},
		{"fewer values", `[{"type":"payment","amount":100,"to":["DE2"],"note":{"a":[1]}}]`, agreed, true},
		{"another value", `[{"type":"payment","amount":100,"to":["DE3"],"note":{"a":[1]}}]`, agreed, false},
		{"a member that changed", `[{"type":"payment","amount":100,"to":["DE1"],"note":{"a":[2]}}]`, agreed, false},
		{"a member that is missing", `[{"type":"payment","amount":100,"to":["DE1"]}]`, agreed, false},
		{"a member that is added", `[{"type":"payment","amount":1,"to":[],"note":{}}]`, `[{"type":"payment","amount":1,"to":[]}]`, false},
		{"a limit that is added", `[{"type":"payment","amount":100,"to":["DE1"],"note":{"a":[1]},"currency":"EUR"}]`, agreed, true},
		{"a limit that is left out", agreed, `[{"type":"payment","amount":100,"to":["DE1","DE2"],"note":{"a":[1]},"currency":"EUR"}]`, false},
		{"two of one", `[{"type":"payment","amount":1,"to":["DE1"],"note":{"a":[1]}},{"type":"payment","amount":1,"to":["DE1"],"note":{"a":[1]}}]`, agreed, false},
		{"what nobody agreed to", agreed, `[]`, false},
		{
			"each of its own, whichever comes first", `[{"type":"payment","amount":50,"to":[]},{"type":"payment","amount":5,"to":[]}]`,
			`[{"type":"payment","amount":10,"to":[]},{"type":"payment","amount":50,"to":[]}]`, true,
		},
		{
			"both of the larger one", `[{"type":"payment","amount":50,"to":[]},{"type":"payment","amount":20,"to":[]}]`,
			`[{"type":"payment","amount":10,"to":[]},{"type":"payment","amount":50,"to":[]}]`, false,
		},

		{"a task where there was none", task, `[]`, true},
		{"a task left out", `[]`, task, false},
		{"a task left out beside a payment", agreed, `[{"type":"payment","amount":100,"to":["DE1","DE2"],"note":{"a":[1]}},` + task[1:], false},
		{"a smaller task", `[{"type":"estover_task","locations":["a"],"actions":["r"],"parameters":{"id":["2"],"of":["3"]},"purpose":"p"}]`, task, true},
		{"a task at another place", `[{"type":"estover_task","locations":["c"],"actions":["r"],"parameters":{"id":["2"]}}]`, task, false},
		{"a task with another action", `[{"type":"estover_task","locations":["a"],"actions":["x"],"parameters":{"id":["2"]}}]`, task, false},
		{"a task that is counted", `[{"type":"estover_task","locations":["a","b"],"actions":["r","w"],"parameters":{"id":["1","2"]},"calls":5}]`, task, true},
		{"a task with less to do", `[{"type":"estover_task","locations":["a"],"actions":["r"],"calls":5,"rows":2}]`, `[{"type":"estover_task","locations":["a"],"actions":["r"],"calls":6}]`, true},
		{"a task with more to do", `[{"type":"estover_task","locations":["a"],"actions":["r"],"calls":7}]`, `[{"type":"estover_task","locations":["a"],"actions":["r"],"calls":6}]`, false},
		{"a task that is not counted any more", `[{"type":"estover_task","locations":["a"],"actions":["r"]}]`, `[{"type":"estover_task","locations":["a"],"actions":["r"],"calls":6}]`, false},
		{"a task on something else", `[{"type":"estover_task","locations":["a"],"actions":["r"],"parameters":{"id":["3"]}}]`, task, false},
		{"a task on anything", `[{"type":"estover_task","locations":["a"],"actions":["r"]}]`, task, false},
		{"a task on anything else", `[{"type":"estover_task","locations":["a"],"actions":["r"],"parameters":{"of":["3"]}}]`, task, false},
		{"an agreement of a type that is gone", `[]`, `[{"type":"gone"}]`, false},
	} {
		err := types.Within(parse(t, c.asked), parse(t, c.of))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %s within %s: %v", c.what, c.asked, c.of, err)
		}
	}
}

// TestWithinIsAnOrder: whatever is within something that is within a third thing is
// within that, so that nothing widens by going a way of several steps; and what
// lies within a task confines no less.
func TestWithinIsAnOrder(t *testing.T) {
	some := func(t *rapid.T, label string, of []string) []string {
		return slices.Compact(slices.Sorted(slices.Values(rapid.SliceOfN(rapid.SampledFrom(of), 1, 3).Draw(t, label))))
	}
	list := rapid.Custom(func(t *rapid.T) List {
		var parts []string
		quoted := func(of []string) string { return `["` + strings.Join(of, `","`) + `"]` }
		for range rapid.IntRange(0, 2).Draw(t, "tasks") {
			text := `{"type":"estover_task","locations":` + quoted(some(t, "at", []string{"a", "b"})) + `,"actions":` + quoted(some(t, "actions", []string{"r", "w"}))
			if rapid.Bool().Draw(t, "limited") {
				text += `,"parameters":{"id":` + quoted(some(t, "ids", []string{"1", "2"})) + `}`
			}
			if rapid.Bool().Draw(t, "for") {
				text += `,"purpose":"p"`
			}
			parts = append(parts, text+`}`)
		}
		l, err := Parse([]byte("[" + strings.Join(parts, ",") + "]"))
		if err != nil {
			t.Fatal(err)
		}
		return l
	})
	types := NewTypes()
	within := func(a, b List) bool { return types.Within(a, b) == nil }
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := list.Draw(t, "a"), list.Draw(t, "b"), list.Draw(t, "c")
		if !within(a, a) {
			t.Fatalf("%s is not within itself", a)
		}
		if within(a, b) && within(b, c) && !within(a, c) {
			t.Fatalf("%s is within %s, which is within %s, and the first is not within the last", a, b, c)
		}
		if !within(a, b) {
			return
		}
		for _, call := range calls {
			if allows(a.Tasks(), call) && !allows(b.Tasks(), call) {
				t.Fatalf("%s is within %s and allows %v, which that does not", a, b, call)
			}
		}
	})
}

// A call is one that a task is asked about.
type called struct{ at, action, id, purpose string }

var calls = func() (all []called) {
	for _, at := range []string{"a", "b"} {
		for _, action := range []string{"r", "w"} {
			for _, id := range []string{"1", "2", "3"} {
				all = append(all, called{at, action, id, "p"}, called{at, action, id, "q"})
			}
		}
	}
	return all
}()

// allows says what tasks mean, as the kernel of policy does.
func allows(tasks []estover.Task, c called) bool {
	return len(tasks) == 0 || slices.ContainsFunc(tasks, func(t estover.Task) bool {
		ids, limited := t.Parameters["id"]
		return slices.Contains(t.Locations, c.at) && slices.Contains(t.Actions, c.action) &&
			(!limited || slices.Contains(ids, c.id)) && (t.Purpose == "" || t.Purpose == c.purpose)
	})
}

// TestTypesAreChecked: what is wrong with a type is told where it stands, and a
// schema reads nothing but itself.
func TestTypesAreChecked(t *testing.T) {
	good := payment(t).Spec
	if got, err := Check(good); err != nil || !reflect.DeepEqual(got, good) {
		t.Errorf("%v, %v", got, err)
	}
	for field, spoil := range map[string]func(*Spec){
		"name":               func(s *Spec) { s.Name = "estover_other" },
		"title":              func(s *Spec) { s.Title = "Pay\u202e" },
		"members[0].narrows": func(s *Spec) { s.Members = []Member{{Name: "a", Narrows: "less"}} },
		"members[1].name":    func(s *Spec) { s.Members = []Member{{Name: "a"}, {Name: "a"}} },
		"members[0].name":    func(s *Spec) { s.Members = []Member{{Name: "type", Narrows: Subset}} },
		"members[0].title":   func(s *Spec) { s.Members = []Member{{Name: "a", Title: strings.Repeat("a", 101)}} },
		"resources[0]":       func(s *Spec) { s.Resources = []string{"bank"} },
		"schema":             func(s *Spec) { s.Schema = `{"$ref": "file:///etc/passwd"}` },
	} {
		s := good
		spoil(&s)
		_, err := Check(s)
		var e *estover.Error
		if !errors.As(err, &e) || e.Field != field {
			t.Errorf("a type that is wrong at %s: %v", field, err)
		}
	}
	elsewhere := filepath.Join(t.TempDir(), "schema.json") // one that is in order
	if err := os.WriteFile(elsewhere, []byte(`{"type":"object"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, schema := range []string{`{"$ref":"file://` + elsewhere + `"}`, ``, `{`, `{"type":"object","type":"array"}`, `{"type":"thing"}`, `{"$ref":"https://schemas.example/x"}`, `{"pattern":"("}`, strings.Repeat(" ", maxSchema+1)} {
		s := good
		s.Schema = schema
		if _, err := Check(s); err == nil {
			t.Errorf("a type with the schema %.40q is accepted", schema)
		}
	}
}

// TestWordsLeaveNothingOut: whoever is asked reads all that a detail says.
func TestWordsLeaveNothingOut(t *testing.T) {
	typ := payment(t)
	l := parse(t, `[{"type":"payment","to":["DE1","DE2"],"amount":5,"note":{"b":[{"c":true},"d"],"a":null,"e":[]},"extra":{}}]`)
	want := []Line{
		{"At most", []string{"5"}},
		{"To one of", []string{"DE1", "DE2"}},
		{"extra", []string{"nothing"}},
		{"note: a", []string{"nothing"}},
		{"note: b 1: c", []string{"yes"}},
		{"note: b 2", []string{"d"}},
		{"note: e", []string{"nothing"}},
	}
	if got := typ.Words(&l[0]); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// FuzzParse: whatever is read is read again as the same.
func FuzzParse(f *testing.F) {
	f.Add(`[{"type":"payment","amount":1,"to":["DE1"]}]`)
	f.Add(`[{"type":"a","x":{"\u0061":[1,null,true,{}]}}]`)
	f.Fuzz(func(t *testing.T, text string) {
		l, err := Parse([]byte(text))
		if err != nil {
			return
		}
		again, err := Parse(l.AppendJSON(nil))
		if err != nil || !reflect.DeepEqual(l, again) {
			t.Errorf("%q is read as %s, and that as %s, %v", text, l, again, err)
		}
	})
}

// TestSchemaIsBounded: what an administrator of one tenant writes does not keep the
// machine busy that serves them all.
func TestSchemaIsBounded(t *testing.T) {
	doubled := func(keyword string, levels int) string {
		var b strings.Builder
		fmt.Fprintf(&b, `{"$ref": "#/$defs/d0", "$defs": {"d%d": true`, levels)
		for i := range levels {
			fmt.Fprintf(&b, `, "d%d": {%q: [{"$ref": "#/$defs/d%d"}, {"$ref": "#/$defs/d%d"}]}`, i, keyword, i+1, i+1)
		}
		return b.String() + "}}"
	}
	for what, schema := range map[string]string{
		"allOf that doubles": doubled("allOf", 60), "anyOf that doubles": doubled("anyOf", 60), "oneOf that doubles": doubled("oneOf", 60),
		"many of itself below": `{"additionalProperties": {"allOf": [` + strings.Repeat(`{"$ref": "#"}, `, 20) + `true]}}`,
		"itself":               `{"$ref": "#"}`, "itself in part": `{"allOf": [{"$ref": "#"}]}`, "itself by a dynamic name": `{"$dynamicAnchor": "a", "properties": {"x": {"$dynamicRef": "#a"}}}`,
		"a pattern that repeats": `{"properties": {"x": {"pattern": "` + strings.Repeat("a{1000}", 100) + `"}}}`,
		"names that repeat":      `{"patternProperties": {"` + strings.Repeat("(a{30}){30}", 100) + `": true}}`,
		"many patterns":          `{"allOf": [` + strings.Repeat(`{"pattern": "a{900}"}, `, 20) + `true]}`,
	} {
		if _, err := New(Spec{Name: "payment", Title: "Start one payment", Schema: schema}); !errors.Is(err, ErrType) {
			t.Errorf("%s: %v, want %s", what, err, ErrType.Code)
		}
	}
	for what, schema := range map[string]string{
		"a list of lists": `{"additionalProperties": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#"}}]}}`,
		"an account":      `{"properties": {"iban": {"pattern": "^[A-Z]{2}[0-9]{2}[A-Z0-9]{1,30}$"}, "bic": {"pattern": "^[A-Z]{6}[A-Z0-9]{2,5}$"}}}`,
	} {
		if _, err := New(Spec{Name: "payment", Title: "Start one payment", Schema: schema}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A schema that is heavy, but not too heavy, is for details that are not large.
	heavy, err := New(Spec{Name: "payment", Title: "Start one payment", Schema: `{"additionalProperties": {"items": {"allOf": [` + strings.Repeat(`{"not": {"type": "null"}}, `, 400) + `true]}}}`})
	if err != nil {
		t.Fatal(err)
	}
	if err := NewTypes(heavy).Check(parse(t, `[{"type": "payment", "to": [1, 2, 3]}]`)); err != nil {
		t.Error(err)
	}
	if err := NewTypes(heavy).Check(parse(t, `[{"type": "payment", "to": [`+strings.Repeat("1,", 3000)+`1]}]`)); !errors.Is(err, ErrInvalid) {
		t.Errorf("3000 values that are looked at 800 times each: %v, want %s", err, ErrInvalid.Code)
	}
}

// TestRetiredTypeConfines: nobody gets rid of what confines a token by the end of
// its type.
func TestRetiredTypeConfines(t *testing.T) {
	if l := parse(t, `[{"type": "readonly"}]`); !NewTypes().Confined(l) {
		t.Error("a detail of a type that is not there any more confines nothing")
	}
}
