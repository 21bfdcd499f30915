package attest

import (
	"bytes"
	"reflect"
	"testing"
)

// FuzzVerify: files of strangers are what somebody verifies. Nothing verifies but
// what was signed, byte by byte, and nothing brings the verifier down.
func FuzzVerify(f *testing.F) {
	l := newLog(f)
	x := l.session(2)
	receipt := x.Receipts[0]
	receipt.Enrolments = x.Enrolments
	export, one := marshal(f, x), marshal(f, receipt)
	trust := l.trust()
	f.Add(export, uint32(0), uint32(0), true)
	f.Add(one, uint32(0), uint32(0), true)
	f.Add(bytes.Replace(one, []byte(`"`), []byte(`""`), 1), uint32(0), uint32(0), true)
	f.Add(x.Trust, uint32(0), uint32(0), true)
	f.Add([]byte("PK\x05\x06"+string(make([]byte, 18))), uint32(0), uint32(0), true)
	f.Add([]byte("x"), uint32(7), uint32(1), false)
	f.Add([]byte{}, uint32(len(export)/2), uint32(1000), false)
	f.Fuzz(func(t *testing.T, file []byte, at, cut uint32, whole bool) {
		if !whole { // of the export of this very run, with something else in a place of it
			from := int(at) % len(export)
			to := min(from+int(cut), len(export))
			file = append(append(append([]byte{}, export[:from]...), file...), export[to:]...)
		}
		if Verify(file, trust).OK() && !bytes.Equal(file, export) && !bytes.Equal(file, one) {
			t.Errorf("a file that nobody signed verifies: %q", file)
		}
		Verify(file, nil)
		if p, err := ParseTrust(file); err == nil && p == nil {
			t.Error("neither a trust policy nor an error")
		}
	})
}

// FuzzStatement: a statement that is read says the same when it is written.
func FuzzStatement(f *testing.F) {
	for n := range int64(3) {
		f.Add(call(f, n+1).AppendJSON(nil))
	}
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseStatement(text)
		if err != nil {
			return
		}
		again, err := ParseStatement(s.AppendJSON(nil))
		if err != nil || !reflect.DeepEqual(s, again) {
			t.Errorf("%q is read as %+v, and written and read as %+v (%v)", text, s, again, err)
		}
	})
}
