package attest

import (
	"bytes"
	"crypto/sha256"
	stdjson "encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"pgregory.net/rapid"
)

// form is a statement as encoding/json sees it.
type form struct {
	Type          string        `json:"_type"`
	Subject       []formSubject `json:"subject"`
	PredicateType string        `json:"predicateType"`
	Predicate     any           `json:"predicate"`
}

type formSubject struct {
	Name   string            `json:"name,omitzero"`
	Digest map[string]Digest `json:"digest"`
}

func formOf(s *Statement) form {
	f := form{StatementType, []formSubject{}, s.Predicate.Type(), s.Predicate}
	for _, sub := range s.Subjects {
		f.Subject = append(f.Subject, formSubject{sub.Name, map[string]Digest{"sha256": sub.Digest}})
	}
	return f
}

func drawTime(t *rapid.T, label string) time.Time {
	return time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, label)).UTC()
}

func drawDigest(t *rapid.T, label string) (d Digest) {
	if rapid.Bool().Draw(t, label+"?") {
		copy(d[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label))
		d[0] |= 1
	}
	return d
}

// fill gives every field of a struct a random value.
func fill(t *rapid.T, v reflect.Value, label string) {
	switch x := v.Addr().Interface().(type) {
	case *Digest:
		*x = drawDigest(t, label)
	case *time.Time:
		*x = drawTime(t, label)
	case *string:
		*x = rapid.String().Draw(t, label)
	case *int64:
		*x = rapid.Int64().Draw(t, label)
	case *bool:
		*x = rapid.Bool().Draw(t, label)
	case *[]string:
		*x = rapid.OneOf(rapid.Just[[]string](nil), rapid.SliceOf(rapid.String())).Draw(t, label)
	case *[]byte:
		*x = rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label)
	case **int64:
		if rapid.Bool().Draw(t, label+"?") {
			n := rapid.Int64().Draw(t, label)
			*x = &n
		}
	case *[]ContainmentStep:
		*x = make([]ContainmentStep, rapid.IntRange(0, 3).Draw(t, label))
		for i := range *x {
			fill(t, reflect.ValueOf(&(*x)[i]).Elem(), label)
		}
	default:
		if v.Kind() != reflect.Struct {
			t.Fatalf("%s: nothing known of a %s", label, v.Type())
		}
		for i := range v.NumField() {
			fill(t, v.Field(i), v.Type().Field(i).Name)
		}
	}
}

func drawStatement(t *rapid.T) *Statement {
	p := rapid.SampledFrom([]func() Predicate{
		func() Predicate { return &Action{} }, func() Predicate { return &Session{} },
		func() Predicate { return &Enrolment{} }, func() Predicate { return &Containment{} },
		func() Predicate { return &Emergency{} },
	}).Draw(t, "predicate")()
	fill(t, reflect.ValueOf(p).Elem(), "predicate")
	s := &Statement{Predicate: p}
	for range rapid.IntRange(1, 3).Draw(t, "subjects") {
		d := drawDigest(t, "subject")
		d[0] |= 1
		s.Subjects = append(s.Subjects, Subject{rapid.String().Draw(t, "name"), d})
	}
	return s
}

// The statement that is written by hand is the one that the JSON packages
// write, byte for byte, and is read back as it was.
func TestAppendJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawStatement(t)
		got := s.AppendJSON([]byte("before"))
		got, ok := bytes.CutPrefix(got, []byte("before"))
		if !ok {
			t.Fatal("AppendJSON did not append")
		}
		want, err := json.Marshal(formOf(s))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("AppendJSON wrote\n%s\nwant\n%s", got, want)
		}
		var std bytes.Buffer
		e := stdjson.NewEncoder(&std)
		e.SetEscapeHTML(false)
		if err := e.Encode(formOf(s)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(plainSeparators(std.Bytes()), append(got, '\n')) {
			t.Fatalf("encoding/json writes\n%s\nwant\n%s", std.Bytes(), got)
		}
		back, err := ParseStatement(got)
		if err != nil {
			t.Fatalf("reading %s: %v", got, err)
		}
		if diff := cmp.Diff(s, back); diff != "" {
			t.Fatalf("written and read back:\n%s", diff)
		}
	})
}

// plainSeparators undoes the two escapes that only encoding/json makes, for
// the sake of JavaScript.
func plainSeparators(b []byte) []byte {
	b = bytes.ReplaceAll(b, []byte(`\u2028`), []byte("\u2028"))
	return bytes.ReplaceAll(b, []byte(`\u2029`), []byte("\u2029"))
}

// The in-toto project's own code takes our statements.
func TestInToto(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawStatement(t)
		var p intoto.Statement
		if err := protojson.Unmarshal(s.AppendJSON(nil), &p); err != nil {
			t.Fatal(err)
		}
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		if p.GetPredicateType() != s.Predicate.Type() || p.GetSubject()[0].GetDigest()["sha256"] != s.Subjects[0].Digest.String() {
			t.Fatalf("in-toto reads %v", &p)
		}
	})
}

// What two readers could read differently is read by nobody.
func TestParseStatementRefuses(t *testing.T) {
	good := string(NewSession(Session{ID: "ses_1", Tenant: "acme", Time: time.Unix(1, 0), Count: 3}).AppendJSON(nil))
	if _, err := ParseStatement([]byte(good)); err != nil {
		t.Fatal(err)
	}
	replace := func(old, with string) string {
		if !bytes.Contains([]byte(good), []byte(old)) {
			t.Fatalf("%q is not in %s", old, good)
		}
		return string(bytes.Replace([]byte(good), []byte(old), []byte(with), 1))
	}
	for name, text := range map[string]string{
		"a duplicate member":       replace(`"count":3`, `"count":3,"count":4`),
		"an escaped duplicate":     replace(`"count":3`, `"count":3,"\u0063ount":4`),
		"another type":             replace(StatementType, "https://in-toto.io/Statement/v0.1"),
		"an unknown predicate":     replace(SessionType, "https://example.com/other/v1"),
		"invalid UTF-8":            replace("ses_1", "ses_\xff"),
		"trailing text":            good + "x",
		"a digest in upper case":   replace(Sum([]byte("ses_1")).String()[:2], "AB"),
		"no subject":               replace(`"subject":[{"name":"ses_1","digest":{"sha256":"`+Sum([]byte("ses_1")).String()+`"}}]`, `"subject":[]`),
		"a number with a fraction": replace(`"count":3`, `"count":3.5`),
	} {
		if _, err := ParseStatement([]byte(text)); err == nil {
			t.Errorf("a statement with %s was read: %s", name, text)
		}
	}
	s, err := ParseStatement([]byte(replace(`"count":3`, `"Count":4,"count":3,"later":{}`)))
	if err != nil || s.Predicate.(*Session).Count != 3 {
		t.Errorf("a member in another case, and one that is not known: %v, %v; want both ignored", s, err)
	}
}

// Text and bytes are hashed to the same, however long they are.
func TestHashesOfTextAndBytes(t *testing.T) {
	salt := NewSalt()
	for _, n := range []int{0, 1, 480, 511, 512, 513, 5000} {
		octets := bytes.Repeat([]byte("a"), n)
		if want := Digest(sha256.Sum256(octets)); Sum(octets) != want || Sum(string(octets)) != want {
			t.Errorf("the sum of %d bytes is %s, and of them as text %s, want %s", n, Sum(octets), Sum(string(octets)), want)
		}
		if want := Digest(sha256.Sum256(append(salt[:], octets...))); Commit(salt, octets) != want || Commit(salt, string(octets)) != want {
			t.Errorf("the commitment to %d bytes is %s, and to them as text %s, want %s", n, Commit(salt, octets), Commit(salt, string(octets)), want)
		}
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	s := call(b, 1)
	buf := s.AppendJSON(nil)
	b.ReportAllocs()
	for b.Loop() {
		buf = s.AppendJSON(buf[:0])
	}
	b.ReportMetric(float64(len(buf)), "B/statement")
}

func BenchmarkSign(b *testing.B) {
	l := newLog(b)
	statement := call(b, 1).AppendJSON(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.gateway.Sign(b.Context(), statement); err != nil {
			b.Fatal(err)
		}
	}
}
