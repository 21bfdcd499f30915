package detail

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"estover.dev"
)

// The rules by which a member may become less.
const (
	Subset  = "subset"  // a list: values of the other list alone
	AtMost  = "at_most" // a number: no larger
	Subsets = "subsets" // an object of lists: each a subset of the one of the same name, and names that are added limit further
)

// A Spec is what an administrator decides about a type of authorization details.
type Spec struct {
	Name      string   `json:"name" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"The type, as clients write it: small letters, digits, dots, dashes and underscores."`
	Title     string   `json:"title" minLength:"1" maxLength:"100" doc:"What such a detail lets an agent do, as people are told who are asked: Start one payment."`
	Schema    string   `json:"schema" minLength:"1" maxLength:"32768" doc:"The JSON Schema (2020-12) of a detail, as text. It refers to nothing outside of itself."`
	Members   []Member `json:"members,omitempty" doc:"How members may become less when a token is refreshed or handed on, and what people are told that they are. A member that is not named here stays as it is."`
	Resources []string `json:"resources,omitempty" doc:"The identifiers of the resources that enforce it: no other token has such a detail. Every resource if none is named."`
	Confines  bool     `json:"confines,omitempty" doc:"Whether a token without such a detail may do more than one with it. Then it may be added to what had none, and the last one is never left out."`
}

// A Member says of one member of a detail how it may become less.
type Member struct {
	Name    string `json:"name" minLength:"1" maxLength:"100" doc:"The name of the member."`
	Title   string `json:"title,omitempty" maxLength:"100" doc:"What people are told that it is; its name if left out."`
	Narrows string `json:"narrows,omitempty" enum:"subset,at_most,subsets" doc:"How it may become less: a list by a part of it (subset), a number by one that is not larger (at_most), an object of lists by parts of them (subsets). It stays the same if left out."`
	Limits  bool   `json:"limits,omitempty" doc:"Whether it only limits, so that whoever has it not has no limit: it may be added, and is never left out. Otherwise it is in both or in neither."`
}

// The bounds of a type.
const (
	maxSchema    = 32 << 10 // bytes
	maxMembers   = 50
	maxResources = 20
	maxTitle     = 100     // characters
	maxWeight    = 1000    // of a schema: how often it looks at one value at most, and at what is in it
	maxPatterns  = 5000    // states of all patterns of a schema
	maxLooks     = 200_000 // at the values of one detail
)

// ErrType is returned when what is said of a type cannot be.
var ErrType = &estover.Error{Kind: estover.Invalid, Code: "detail_type_invalid", Detail: "This cannot be said of a type of authorization details."}

// A Type is a type that is ready to be used. It is shared and never changed.
type Type struct {
	Spec
	schema *jsonschema.Schema
	weight int
}

// BuiltIn is the type that is there without being registered.
func BuiltIn() *Type { return task() }

// reserved begins the names of types that mean something here.
const reserved = "estover_"

// Check gives the spec in the one form in which it is kept, or everything that is
// wrong with it.
func Check(s Spec) (Spec, error) {
	if strings.HasPrefix(s.Name, reserved) {
		return s, ErrType.With("Names that begin with %s are those of types that are there already.", reserved).At("name")
	}
	s.Resources = slices.Compact(slices.Sorted(slices.Values(s.Resources)))
	if len(s.Resources) == 0 {
		s.Resources = nil
	}
	if len(s.Members) == 0 {
		s.Members = nil
	}
	_, err := New(s)
	return s, err
}

// New makes a type of a spec, or says everything that is wrong with it.
func New(s Spec) (*Type, error) {
	var bad []error
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrType.With(format, args...).At(field)) }
	if !estover.ValidName(s.Name) {
		wrong("name", "The name has up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name)
	}
	if !title(s.Title) || s.Title == "" {
		wrong("title", "A type has a title of up to %d characters that can be seen: what people are told who are asked.", maxTitle)
	}
	if len(s.Members) > maxMembers {
		wrong("members", "A type says something of at most %d members.", maxMembers)
	}
	for i, m := range s.Members {
		at := fmt.Sprintf("members[%d].", i)
		switch {
		case m.Name == "" || m.Name == "type" || len(m.Name) > maxTitle:
			wrong(at+"name", "A member has a name, which is not type: that stays as it is.")
		case slices.ContainsFunc(s.Members[:i], func(other Member) bool { return other.Name == m.Name }):
			wrong(at+"name", "The member %s is named twice.", m.Name)
		}
		if !slices.Contains([]string{"", Subset, AtMost, Subsets}, m.Narrows) {
			wrong(at+"narrows", "A member becomes less by subset, at_most or subsets, not by %q.", m.Narrows)
		}
		if !title(m.Title) {
			wrong(at+"title", "The title of a member has up to %d characters that can be seen.", maxTitle)
		}
	}
	if len(s.Resources) > maxResources {
		wrong("resources", "A type names at most %d resources.", maxResources)
	}
	for i, r := range s.Resources {
		if r == "" || strings.ContainsFunc(r, func(c rune) bool { return c <= ' ' || c > '~' }) || !strings.Contains(r, "://") {
			wrong(fmt.Sprintf("resources[%d]", i), "A resource is named by its identifier, as https://crm.example, not by %q.", r)
		}
	}
	t := &Type{Spec: s}
	var err error
	if t.schema, t.weight, err = compile(s.Schema); err != nil {
		var e *estover.Error
		errors.As(err, &e)
		bad = append(bad, e.At("schema"))
	}
	return t, errors.Join(bad...)
}

// title reports whether people can read a text in one look.
func title(s string) bool {
	return utf8.RuneCountInString(s) <= maxTitle && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// nothing loads no schema: what is elsewhere could be anything, and on our own disk.
type nothing struct{}

// Load refuses.
func (nothing) Load(string) (any, error) {
	return nil, errors.New("a schema refers to nothing outside of itself")
}

// compile reads a JSON Schema, and says how much it weighs. Patterns are those of
// package regexp, which takes no longer for one text than for another.
func compile(text string) (*jsonschema.Schema, int, error) {
	if len(text) > maxSchema {
		return nil, 0, ErrType.With("The schema has more than %d bytes.", maxSchema)
	}
	if !jsontext.Value(text).IsValid() {
		return nil, 0, ErrType.With("The schema is not JSON in which each name stands once.")
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return nil, 0, ErrType.With("The schema cannot be read.").Because(err)
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(nothing{})
	c.UseRegexpEngine(patterns())
	c.DefaultDraft(jsonschema.Draft2020)
	const at = "urn:estover:detail"
	err = c.AddResource(at, doc)
	if err == nil {
		var s *jsonschema.Schema
		if s, err = c.Compile(at); err == nil {
			n := (&scales{}).weigh(s, maxDepth-1)
			if n > maxWeight {
				return nil, 0, ErrType.With("The schema refers to itself without an end, by $dynamicRef or $recursiveRef, or so often that one value would be looked at more than %d times. Write it flatter.", maxWeight)
			}
			return s, n, nil
		}
	}
	return nil, 0, ErrType.With("The schema is none that can be used: %s.", strings.ReplaceAll(err.Error(), at, "")).Because(err)
}

// must makes a type of our own.
func must(s Spec) *Type {
	t, err := New(s)
	if err != nil {
		panic("detail: " + err.Error())
	}
	return t
}

// member is what the type says of a member.
func (t *Type) member(name string) Member {
	if i := slices.IndexFunc(t.Members, func(m Member) bool { return m.Name == name }); i >= 0 {
		return t.Members[i]
	}
	return Member{Name: name}
}

// Check says what is wrong with a detail of this type.
func (t *Type) Check(d *Detail) error {
	if t.weight*values(d.members) > maxLooks {
		return ErrInvalid.With("A detail of the type %s is too large for what its type has to look at. Ask for less at once.", t.Name)
	}
	err := t.schema.Validate(d.members)
	if err == nil {
		return nil
	}
	var invalid *jsonschema.ValidationError
	if !errors.As(err, &invalid) {
		return ErrInvalid.With("A detail of the type %s cannot be held against its schema.", t.Name).Because(err)
	}
	for len(invalid.Causes) > 0 { // the innermost says it best
		invalid = invalid.Causes[0]
	}
	return ErrInvalid.With("A detail of the type %s is not as the type wants it: %s.", t.Name, invalid.Error())
}

// within reports whether one detail of this type lies within another.
func (t *Type) within(d, of *Detail) bool {
	for name, v := range d.members {
		m := t.member(name)
		limit, there := of.members[name]
		if !there && m.Limits {
			continue
		}
		if !there || !m.within(v, limit) {
			return false
		}
	}
	for name := range of.members {
		if _, there := d.members[name]; !there {
			return false
		}
	}
	return true
}

// within reports whether a value of the member is no more than another.
func (m Member) within(v, of any) bool {
	switch m.Narrows {
	case Subset:
		list, isList := v.([]any)
		all, isToo := of.([]any)
		return isList && isToo && subset(list, all)
	case Subsets:
		lists, isObject := v.(map[string]any)
		all, isToo := of.(map[string]any)
		if !isObject || !isToo {
			return false
		}
		for name, limit := range all {
			part, there := lists[name]
			if !there || !(Member{Narrows: Subset}).within(part, limit) {
				return false
			}
		}
		return true
	case AtMost:
		n, isNumber := number(v)
		limit, isToo := number(of)
		return isNumber && isToo && n.Cmp(limit) <= 0
	}
	return same(v, of)
}

func subset(list, of []any) bool {
	for _, v := range list {
		if !slices.ContainsFunc(of, func(one any) bool { return same(v, one) }) {
			return false
		}
	}
	return true
}

// number is a JSON number; [Parse] has bounded how long it is.
func number(v any) (*big.Rat, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return nil, false
	}
	return new(big.Rat).SetString(string(n))
}

// same reports whether two values of JSON are the same.
func same(a, b any) bool {
	if n, ok := number(a); ok {
		m, ok := number(b)
		return ok && n.Cmp(m) == 0
	}
	switch a := a.(type) {
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, same)
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, same)
	}
	return reflect.DeepEqual(a, b)
}

// Types are the types of a tenant by name, the one that is built in among them.
// They are shared and never changed.
type Types map[string]*Type

// NewTypes are these types and the one that is built in.
func NewTypes(list ...*Type) Types {
	all := Types{Task: task()}
	for _, t := range list {
		all[t.Name] = t
	}
	return all
}

// Names are the names of the types, sorted.
func (ts Types) Names() []string { return slices.Sorted(maps.Keys(ts)) }

// Check says what is wrong with the details of a list in themselves (RFC 9396,
// section 5).
func (ts Types) Check(l List) error {
	for i := range l {
		t := ts[l[i].Type]
		if t == nil {
			return ErrInvalid.With("There is no type of authorization details %q here. authorization_details_types_supported lists which there are.", l[i].Type)
		}
		if err := t.Check(&l[i]); err != nil {
			return err
		}
	}
	return nil
}

// Confined reports whether some detail of the list confines.
func (ts Types) Confined(l List) bool { return len(ts.Confining(l)) > 0 }

// Confining are those details of the list that confine. One whose type is not
// there any more may have done so.
func (ts Types) Confining(l List) (kept List) {
	for _, d := range l {
		if t := ts[d.Type]; t == nil || t.Confines {
			kept = append(kept, d)
		}
	}
	return kept
}

// Within says why a list, which was checked, is more than another. Each detail
// needs one of the other list to itself.
func (ts Types) Within(l, of List) error {
	taken := make([]int, len(of)) // by which detail of l, plus one
	for i := range l {
		t := ts[l[i].Type]
		if t.Confines && !slices.ContainsFunc(of, func(d Detail) bool { return d.Type == t.Name }) {
			continue
		}
		if !ts.place(l, of, i, taken, make([]bool, len(of))) {
			return ErrInvalid.With("The detail %d, of the type %s, is more than was agreed to. Ask for it as it was, or for less.", i+1, t.Name)
		}
	}
	for _, d := range of {
		t := ts[d.Type]
		if (t == nil || t.Confines) && !slices.ContainsFunc(l, func(one Detail) bool { return one.Type == d.Type }) {
			return ErrInvalid.With("What was agreed to is confined by details of the type %s. Keep at least one of them.", d.Type)
		}
	}
	return nil
}

// place finds a detail of the other list for the one at i, moving those that have
// one already (an augmenting path of a matching).
func (ts Types) place(l, of List, i int, taken []int, seen []bool) bool {
	t := ts[l[i].Type]
	for j := range of {
		if seen[j] || of[j].Type != t.Name || !t.within(&l[i], &of[j]) {
			continue
		}
		seen[j] = true
		if taken[j] == 0 || ts.place(l, of, taken[j]-1, taken, seen) {
			taken[j] = i + 1
			return true
		}
	}
	return false
}

// A Line is one thing that a detail says, for people.
type Line struct {
	Name   string
	Values []string
}

// Words are what a detail says, for people: every member, in the order of the
// type, and those that it does not speak of by their names. Nothing is left out.
func (t *Type) Words(d *Detail) (lines []Line) {
	names := slices.Sorted(maps.Keys(d.members))
	rank := func(name string) int {
		if i := slices.IndexFunc(t.Members, func(m Member) bool { return m.Name == name }); i >= 0 {
			return i
		}
		return len(t.Members)
	}
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	for _, name := range names {
		if name == "type" {
			continue
		}
		title := t.member(name).Title
		if title == "" {
			title = name
		}
		lines = append(lines, words(title, d.members[name])...)
	}
	return lines
}

// words puts a value into lines: a list into one, an object into one for each of
// its members.
func words(name string, v any) []Line {
	switch v := v.(type) {
	case map[string]any:
		var lines []Line
		for _, key := range slices.Sorted(maps.Keys(v)) {
			lines = append(lines, words(name+": "+key, v[key])...)
		}
		if lines == nil {
			lines = []Line{{Name: name, Values: []string{"nothing"}}}
		}
		return lines
	case []any:
		line := Line{Name: name}
		for _, one := range v {
			switch one.(type) {
			case map[string]any, []any:
				return spread(name, v)
			}
			line.Values = append(line.Values, plainWord(one))
		}
		if len(line.Values) == 0 {
			line.Values = []string{"nothing"}
		}
		return []Line{line}
	}
	return []Line{{Name: name, Values: []string{plainWord(v)}}}
}

// spread gives each value of a list lines of its own.
func spread(name string, list []any) (lines []Line) {
	for i, one := range list {
		lines = append(lines, words(name+" "+strconv.Itoa(i+1), one)...)
	}
	return lines
}

// plainWord is a value that is neither list nor object.
func plainWord(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return string(v)
	case bool:
		if v {
			return "yes"
		}
		return "no"
	}
	return "nothing"
}
