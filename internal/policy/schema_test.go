package policy

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

// A fact stands in four places: the type, the list of facts, the schema and
// the reference. They say the same.
func TestFactsAgree(t *testing.T) {
	schema := inputShape().Properties["facts"].Properties
	typ := reflect.TypeFor[Facts]()
	reference, err := os.ReadFile("../../docs/reference/policy-input.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(facts) != typ.NumField() || len(schema) != len(facts) {
		t.Fatalf("there are %d facts in the list, %d in the type and %d in the schema", len(facts), typ.NumField(), len(schema))
	}
	for i, f := range facts {
		field := typ.Field(i)
		if name := field.Tag.Get("json"); name != f.name {
			t.Errorf("fact %d is %s in the type and %s in the list", i, name, f.name)
		}
		s, ok := schema[f.name]
		if !ok {
			t.Errorf("the schema has no %s", f.name)
		}
		some := Unremarkable
		switch {
		case (f.flag != nil) == (f.word != nil):
			t.Errorf("%s is neither a flag nor a word, or both", f.name)
		case f.flag != nil:
			*f.flag(&some) = !*f.flag(&some)
			if s.Type != "boolean" || field.Type.Kind() != reflect.Bool || len(f.list) > 0 {
				t.Errorf("%s is a flag in the list, %s in the type and %s in the schema", f.name, field.Type, s.Type)
			}
		default:
			*f.word(&some) = "another"
			if s.Type != "string" || !slices.Equal(s.Enum, f.list) {
				t.Errorf("%s is one of %v in the list and one of %v in the schema", f.name, f.list, s.Enum)
			}
		}
		if reflect.ValueOf(some).Field(i).Interface() == reflect.ValueOf(Unremarkable).Field(i).Interface() {
			t.Errorf("%s reaches another member of Facts", f.name)
		}
		if s.Description == "" || f.remedy == "" {
			t.Errorf("%s has no description or no remedy", f.name)
		}
		row := "| `" + f.name + "` |"
		at := strings.Index(string(reference), row)
		if at < 0 {
			t.Errorf("docs/reference/policy-input.md has no row for %s", f.name)
			continue
		}
		line, _, _ := strings.Cut(string(reference)[at:], "\n")
		if !strings.Contains(line, s.Description) {
			t.Errorf("the reference says of %s\n%s\nand the schema\n%s", f.name, line, s.Description)
		}
		for _, word := range f.list {
			if !strings.Contains(line, word) {
				t.Errorf("the reference does not say that %s may be %s", f.name, word)
			}
		}
		if usual := strings.Trim(f.term(&Unremarkable).String(), `"`); !f.live && !strings.Contains(line, "always `"+usual+"`") {
			t.Errorf("the reference does not say that %s is always %s", f.name, usual)
		}
	}
	if !slices.IsSortedFunc(facts, func(a, b fact) int { return strings.Compare(a.name, b.name) }) {
		t.Error("the facts are not in the order of their names, which is that of the record")
	}
	if !Unremarkable.valid() {
		t.Error("the unremarkable facts have a word that is on no list")
	}
}

// The reference names every part of the input, every obligation with its
// properties, every code of the kernel and every check.
func TestReferenceIsComplete(t *testing.T) {
	reference, err := os.ReadFile("../../docs/reference/policy-input.md")
	if err != nil {
		t.Fatal(err)
	}
	says := func(what, word string) {
		if !strings.Contains(string(reference), "`"+word+"`") {
			t.Errorf("the reference does not name the %s %s", what, word)
		}
	}
	for name, p := range inputShape().Properties {
		says("part", "input."+name)
		if name == "facts" {
			continue
		}
		for member, s := range p.Properties {
			says("part", "input."+name+"."+member)
			for _, word := range s.Enum {
				says("word", word)
			}
		}
	}
	for name, o := range obligationTypes {
		says("obligation", name)
		for p, property := range o.properties {
			says("property", p)
			for _, word := range slices.Concat(property.list, property.many) {
				says("word", word)
			}
		}
	}
	for code := range kernelReasons {
		says("code", code)
	}
	source, err := os.ReadFile("lint.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(source), "\n") {
		if name, ok := strings.CutPrefix(line, "//\t"); ok {
			name, _, _ = strings.Cut(name, " ")
			says("check", strings.TrimSuffix(name, ","))
		}
	}
}

// No function that a policy may call can answer differently the next time.
func TestBuiltinsAreHarmless(t *testing.T) {
	for _, name := range builtins {
		b, ok := ast.BuiltinMap[name]
		if !ok {
			t.Errorf("OPA has no built-in %s", name)
			continue
		}
		if b.Nondeterministic {
			t.Errorf("%s may answer differently the next time", name)
		}
	}
	for _, name := range []string{"http.send", "net.lookup_ip_addr", "time.now_ns", "rand.intn", "uuid.rfc4122", "opa.runtime", "io.jwt.decode_verify"} {
		if contains(builtins, name) {
			t.Errorf("a policy may call %s", name)
		}
	}
}
