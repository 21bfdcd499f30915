package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
)

// What is written by hand is what encoding/json writes, so that whoever reads
// it needs to know nothing else.
func TestEncode(t *testing.T) {
	words := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z_:.<>&"\\/]{0,20}`), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	var value *rapid.Generator[any]
	value = rapid.OneOf(
		rapid.Just(any(nil)), rapid.Map(words, func(s string) any { return s }),
		rapid.Map(words, func(s string) any { return estover.Subject(s) }), rapid.Map(words, func(s string) any { return Outcome(s) }),
		rapid.Map(rapid.Bool(), func(b bool) any { return b }), rapid.Map(rapid.Int(), func(n int) any { return n }),
		rapid.Map(rapid.Int64(), func(n int64) any { return n }), rapid.Map(rapid.SliceOf(words), func(l []string) any { return l }),
		rapid.Just(any([]string(nil))), rapid.Just(any(map[string]any(nil))), rapid.Just(any(json.RawMessage(` {"a": "<" } `))), rapid.Just(any(1.5)),
		rapid.Map(rapid.MapOf(words, rapid.Deferred(func() *rapid.Generator[any] { return value })), func(m map[string]any) any { return m }),
	)
	rapid.Check(t, func(t *rapid.T) {
		e := Event{
			ID: NewID(), At: time.UnixMicro(rapid.Int64Range(0, 1<<52).Draw(t, "at")).UTC(), Action: words.Draw(t, "action"),
			Outcome: Outcome(words.Draw(t, "outcome")), Actor: estover.Subject(words.Draw(t, "actor")), Target: words.Draw(t, "target"),
			Session: words.Draw(t, "session"), Request: words.Draw(t, "request"), Detail: rapid.MapOf(words, value).Draw(t, "detail"),
			Touches: []string{"not told"}, Leaf: []byte("not told"),
		}
		salt := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "salt")
		got, err := appendPayload([]byte("before"), &e, salt)
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(struct {
			Event
			Salt []byte `json:"salt"`
		}{e, salt})
		if err != nil {
			t.Fatal(err)
		}
		if want = append([]byte("before"), want...); !bytes.Equal(got, want) {
			t.Fatalf("a payload is written as\n%s\nwant\n%s", got, want)
		}
		leaf := appendLeaf(nil, &e, salt)
		want, err = json.Marshal(leafOf{1, e.ID, e.At, e.Action, e.Outcome, base64.StdEncoding.EncodeToString(salt)})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(leaf, want) {
			t.Fatalf("a leaf is written as\n%s\nwant\n%s", leaf, want)
		}
	})
}

// Events of later milliseconds sort after those of earlier ones.
func TestIDsAreInOrder(t *testing.T) {
	seen := map[string]bool{}
	before := NewID()
	for range 1000 {
		id := NewID()
		if seen[id] || len(id) != 36 {
			t.Fatalf("the id %s is not another one of 36 characters", id)
		}
		seen[id] = true
		if before[:12] > id[:12] {
			t.Fatalf("%s comes after %s", before, id)
		}
		before = id
	}
}
