package authzen

import (
	"errors"
	"strings"
	"testing"

	"estover.dev"
)

// Whatever is sent is a question within its bounds, or an error that says what to
// do; nothing that strict lets through makes what follows fall over.
func FuzzQuestion(f *testing.F) {
	for _, seed := range []string{
		`{"subject":{"type":"agent","id":"bot"},"action":{"name":"read"},"resource":{"type":"http","id":"crm"},"context":{"purpose":"p","approval":{"id":"apr_1"}}}`,
		`{"evaluations":[{},{"action":{"name":7}}],"options":{"evaluations_semantic":"execute_all"}}`,
		`{"page":{"token":"x","limit":-1,"properties":[]}}`, `{"subject":null,"context":null}`, `{"a":[[[[]]]]}`, `{}`, `[]`, `{"a":1,"a":2}`, "{\"a\":\"\\ud800\"}",
		`{"subject":{"type":"agent","id":"bot","properties":{"act":{"sub":"x"}}},"action":{"name":"read","properties":{"id":"1","n":1e999}},"resource":{"type":"http","id":"crm"}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b := []byte(text)
		if err := strict(b); err != nil {
			if estover.KindOf(err) != estover.Invalid {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		for _, v := range []any{&batch{}, &search{}, &submission{}} {
			if err := into(b, v); err != nil && !errors.Is(err, ErrQuestion) {
				t.Errorf("%q: %v", text, err)
			}
		}
		var q question
		if into(b, &q) != nil || q.check() != nil {
			return
		}
		if len(q.Subject.ID) > maxText || q.Subject.Type == "" || q.Action.Name == "" || q.Resource.ID == "" {
			t.Errorf("%q passes", text)
		}
		if _, err := q.situation(); err != nil && estover.KindOf(err) != estover.Invalid {
			t.Errorf("%q: %v", text, err)
		}
		names, _, err := members(q.Context)
		if err != nil {
			return
		}
		one, err := hash(&q, names)
		if err != nil {
			return
		}
		if again, err := hash(&q, names); err != nil || one != again {
			t.Errorf("%q has two digests", text)
		}
	})
}

// What a refusal is bound to is the same however it is written, and another thing
// has another digest (Binding Token Integrity; RFC 8785).
func TestHash(t *testing.T) {
	read := func(text string) string {
		t.Helper()
		var q question
		if err := into([]byte(text), &q); err != nil {
			t.Fatal(err)
		}
		names, _, err := members(q.Context)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := hash(&q, names)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	first := read(`{"subject":{"type":"agent","id":"bot"},"action":{"name":"read","properties":{"n":1,"id":"a"}},"resource":{"type":"http","id":"crm"},"context":{"purpose":"p"}}`)
	for name, text := range map[string]string{
		"in another order": `{"context":{"purpose":"p"},"resource":{"id":"crm","type":"http"},"action":{"properties":{"id":"\u0061","n":1.0},"name":"read"},"subject":{"id":"bot","type":"agent"}}`,
		"with a reason":    `{"subject":{"type":"agent","id":"bot"},"action":{"name":"read","properties":{"n":1,"id":"a"}},"resource":{"type":"http","id":"crm"},"context":{"purpose":"p","reason":"because","time":"now"}}`,
		"with an actor":    `{"subject":{"type":"agent","id":"bot","properties":{"act":{"sub":"x"}}},"action":{"name":"read","properties":{"n":1,"id":"a"}},"resource":{"type":"http","id":"crm"},"context":{"purpose":"p"}}`,
	} {
		if got := read(text); got != first {
			t.Errorf("the same %s has another digest", name)
		}
	}
	for _, change := range []string{`"id":"bot"=>"id":"dog"`, `"name":"read"=>"name":"write"`, `"id":"a"=>"id":"b"`, `"purpose":"p"=>"purpose":"q"`, `"id":"crm"=>"id":"erp"`, `"n":1=>"n":2`} {
		from, to, _ := strings.Cut(change, "=>")
		text := strings.Replace(`{"subject":{"type":"agent","id":"bot"},"action":{"name":"read","properties":{"n":1,"id":"a"}},"resource":{"type":"http","id":"crm"},"context":{"purpose":"p"}}`, from, to, 1)
		if read(text) == first {
			t.Errorf("%s has the same digest", change)
		}
	}
}
