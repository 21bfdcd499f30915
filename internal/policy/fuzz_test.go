package policy

import (
	"bytes"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Whatever text is pushed, the checks say what is wrong with it and do not
// fall over it, and what they accept can be asked.
func FuzzCheck(f *testing.F) {
	for _, file := range append(Starter(), base()...) {
		f.Add(file.Text, `{}`)
	}
	f.Add(denial("\tinput.op == \"a\"\n\tx := input\n\tx.params.y in {1, 2}"), `{"tables": {"a": [1]}}`)
	f.Add(head+"oblige contains {\"type\": \"redact\", \"classes\": [\"payment\"]} if input.op == \"a\"\n", `{"test": {"x": 1}}`)
	f.Add("package tenant.a.b[c]\n\npermit[x] contains y if data[x][y]", `[`)
	f.Add(head+"deny contains x if { some x in input.agent.purposes } else := 3", `{"a": 1e400}`)
	f.Add(head+"permit.a.b contains \"x\" if input.op == \"a\"\n", `{}`)
	k := &known{}
	k.Op, k.Effect, k.Caller, k.Agent, k.Resource, k.Facts = "gateway.call", "read", "agent", nobody, unknown, Unremarkable
	s := shapeOf(k.Facts)
	input := k.term(&s, nil)
	f.Fuzz(func(t *testing.T, text, data string) {
		b := Bundle{{"a.rego", text}, {"tenant/data.json", data}}
		report, err := Check(b)
		if err != nil || !report.OK() {
			return
		}
		r, found := compile(b)
		if len(found) > 0 {
			t.Fatalf("accepted, and does not compile: %v", found)
		}
		for e := range entries {
			v, err := r.eval(t.Context(), e, input, true)
			if err == nil && e == allowed {
				if _, ok := v.(ast.Boolean); !ok {
					t.Fatalf("allow is %v", v)
				}
			}
		}
	})
}

// A word from outside is the same in the evaluated and in the recorded input.
func FuzzInput(f *testing.F) {
	f.Add("gateway.call", "support", "customer.read", "ses_1")
	f.Add("\xff\xfe", "<&>", "\u2028\x00", "\xed\xa0\x80")
	f.Fuzz(func(t *testing.T, op, purpose, action, session string) {
		k := &known{}
		k.Op, k.Purpose, k.Action, k.Session = clean(op), clean(purpose), clean(action), clean(session)
		k.Caller, k.Agent, k.Resource, k.Facts = "agent", nobody, unknown, Unremarkable
		s := shapeOf(k.Facts)
		fromText, err := ast.ValueFromReader(bytes.NewReader(k.appendJSON(nil, &s)))
		if err != nil {
			t.Fatal(err)
		}
		if term := k.term(&s, nil); term.Compare(fromText) != 0 {
			t.Fatalf("evaluated %v, recorded %v", term, fromText)
		}
	})
}
