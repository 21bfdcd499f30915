package secret

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"estover.dev"
)

func TestValuesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.MapOfN(rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}`), rapid.StringN(1, 100, -1), 1, 8).Draw(t, "fields")
		in := map[string]estover.Secret{}
		for k, v := range want {
			in[k] = estover.NewSecret([]byte(v))
		}
		_, plain, err := encode(in)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range want {
			got, err := decodeField(bytes.Clone(plain), k)
			if err != nil || string(got.Reveal()) != v {
				t.Fatalf("field %s reads %q, %v; want %q", k, got.Reveal(), err, v)
			}
		}
		all, err := decode(plain)
		if err != nil || len(all) != len(want) {
			t.Fatalf("%d fields, %v; want %d", len(all), err, len(want))
		}
		for k, v := range want {
			if string(all[k].Reveal()) != v {
				t.Fatalf("field %s reads %q, want %q", k, all[k].Reveal(), v)
			}
		}
		if !bytes.Equal(plain, make([]byte, len(plain))) {
			t.Fatal("the plaintext was left behind")
		}
	})
}

func FuzzValues(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":"b"}`, `{"a":"b","c":"d\u0000\""}`, `{`, `{"a"`, `{"a":`, `{"a":"`, `{"a":"\`, `{"a":"b"`, `{"a":"b",`, `{"a":"b"}x`, `{"a":"\ud800"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := decode(bytes.Clone(b))
		if err == nil && (len(fields) == 0 && string(b) != "{}" || b[0] != '{' || b[len(b)-1] != '}') {
			t.Errorf("%q was read as %d fields", b, len(fields))
		}
	})
}
