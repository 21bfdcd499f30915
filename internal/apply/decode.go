package apply

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A decoder reads YAML into the types of the domain, by their JSON names. It
// goes on after a mistake, so that all of them are told, and keeps the place
// of each field, so that what the domain finds wrong can be told with it.
type decoder struct {
	file   string
	what   string            // "the spec of an Agent"
	hints  map[string]string // what to say of some fields that there are not
	fields map[string]Position
	bad    Problems
}

func newDecoder(file, what string) *decoder {
	return &decoder{file: file, what: what, fields: map[string]Position{}}
}

func (d *decoder) pos(n *yaml.Node) Position { return Position{d.file, n.Line, n.Column} }

// wrong adds a problem at the place of a field that was read.
func (d *decoder) wrong(field, format string, args ...any) {
	p := d.fields[field]
	d.bad = append(d.bad, Problem{p.File, p.Line, p.Column, fmt.Sprintf(format, args...)})
}

var (
	nodeType = reflect.TypeFor[yaml.Node]()
	timeType = reflect.TypeFor[time.Time]()
)

// value reads a node into what into points to.
func (d *decoder) value(n *yaml.Node, into any, field string) {
	d.read(n, reflect.ValueOf(into).Elem(), field)
}

func (d *decoder) read(n *yaml.Node, v reflect.Value, field string) {
	d.fields[field] = d.pos(n)
	if n.Kind == yaml.AliasNode {
		d.wrong(field, "Aliases are not followed here. Write it out.")
		return
	}
	t := v.Type()
	switch {
	case t == nodeType:
		v.Set(reflect.ValueOf(*n))
	case t == timeType:
		d.time(n, v, field)
	case t.Kind() == reflect.Pointer:
		one := reflect.New(t.Elem())
		d.read(n, one.Elem(), field)
		v.Set(one)
	case t.Kind() == reflect.Struct:
		d.object(n, v, field)
	case t.Kind() == reflect.Map:
		d.table(n, v, field)
	case t.Kind() == reflect.Slice:
		d.list(n, v, field)
	case t.Kind() == reflect.String:
		if d.is(n, field, "a text", "!!str") {
			v.SetString(n.Value)
		}
	case t.Kind() == reflect.Bool:
		if d.is(n, field, "true or false", "!!bool") {
			v.SetBool(strings.EqualFold(n.Value, "true"))
		}
	case t.Kind() == reflect.Int || t.Kind() == reflect.Int64:
		if d.is(n, field, "a whole number", "!!int") {
			i, err := strconv.ParseInt(n.Value, 0, 64)
			if err != nil {
				d.wrong(field, "%s is not a whole number that is possible here.", n.Value)
			}
			v.SetInt(i)
		}
	default:
		panic("apply: no field of a spec is a " + t.String())
	}
}

// is reports whether the node is a scalar of the tag, or says what it is
// instead.
func (d *decoder) is(n *yaml.Node, field, want string, tags ...string) bool {
	tag := n.ShortTag()
	if n.Kind == yaml.ScalarNode && slices.Contains(tags, tag) {
		return true
	}
	is := map[string]string{
		"!!map": "a mapping", "!!seq": "a list", "!!str": "a text", "!!bool": "true or false",
		"!!int": "a number", "!!float": "a number", "!!timestamp": "a time",
	}[tag]
	if is == "" {
		is = tag
	}
	advice := ""
	if n.Kind == yaml.ScalarNode && want == "a text" {
		advice = fmt.Sprintf(" Put it in quotes: %q.", n.Value)
	}
	d.wrong(field, "%s is %s, not %s.%s", d.name(field), want, is, advice)
	return false
}

// name is a field as a sentence begins with it.
func (d *decoder) name(field string) string {
	if field == "" {
		return strings.ToUpper(d.what[:1]) + d.what[1:]
	}
	return field
}

func (d *decoder) time(n *yaml.Node, v reflect.Value, field string) {
	if n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!timestamp" || n.ShortTag() == "!!str") {
		for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
			if t, err := time.Parse(layout, n.Value); err == nil && !t.IsZero() {
				v.Set(reflect.ValueOf(t.UTC()))
				return
			}
		}
		d.wrong(field, "%s is a time, as 2027-01-31T18:00:00Z, or a day, as 2027-01-31; not %q.", d.name(field), n.Value)
		return
	}
	d.is(n, field, "a time, as 2027-01-31T18:00:00Z")
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, field string) {
	if n.Kind != yaml.SequenceNode {
		d.is(n, field, "a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		if len(d.bad) > maxProblems {
			return
		}
		d.read(item, v.Index(i), fmt.Sprintf("%s[%d]", field, i))
	}
}

// table reads a mapping from words of the author's own.
func (d *decoder) table(n *yaml.Node, v reflect.Value, field string) {
	if n.Kind != yaml.MappingNode {
		d.is(n, field, "a mapping")
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for i := 0; i+1 < len(n.Content) && len(d.bad) <= maxProblems; i += 2 {
		key, at := n.Content[i], join(field, n.Content[i].Value)
		d.fields[at] = d.pos(key)
		if !d.is(key, at, "a text", "!!str") {
			continue
		}
		if v.MapIndex(reflect.ValueOf(key.Value)).IsValid() {
			d.wrong(at, "%s is there twice.", key.Value)
			continue
		}
		one := reflect.New(v.Type().Elem()).Elem()
		d.read(n.Content[i+1], one, at)
		d.fields[at] = d.pos(key)
		v.SetMapIndex(reflect.ValueOf(key.Value), one)
	}
}

func (d *decoder) object(n *yaml.Node, v reflect.Value, field string) {
	if n.Kind != yaml.MappingNode {
		d.is(n, field, "a mapping")
		return
	}
	members := membersOf(v.Type(), field == "")
	given := map[string]bool{}
	for i := 0; i+1 < len(n.Content) && len(d.bad) <= maxProblems; i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name, at := key.Value, join(field, key.Value)
		m, ok := members[name]
		if !ok {
			d.fields[at] = d.pos(key)
			d.unknown(name, at, members)
			continue
		}
		if given[name] {
			d.fields[at] = d.pos(key)
			d.wrong(at, "%s is there twice.", at)
			continue
		}
		given[name] = true
		if value.Kind == yaml.ScalarNode && value.ShortTag() == "!!null" {
			given[name] = false // nothing is written: as if it were left out
			d.fields[at] = d.pos(value)
			continue
		}
		d.read(value, v.Field(m.index), at)
	}
	for _, name := range sortedNames(members) {
		if members[name].required && !given[name] {
			d.wrong(field, "%s lacks %s.", d.name(field), name)
		}
	}
}

func (d *decoder) unknown(name, at string, members map[string]member) {
	if hint, ok := d.hints[name]; ok {
		d.wrong(at, "%s", hint)
		return
	}
	where := d.what
	if i := strings.LastIndexAny(at, "."); i > 0 {
		where = at[:i]
	}
	d.wrong(at, "There is no field %q in %s.%s", name, where, didYouMean(name, sortedNames(members)))
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

// A member is a field of a type by its JSON name.
type member struct {
	index    int
	required bool
	field    reflect.StructField
}

// membersOf lists the fields of a type. The name of a spec stands in metadata
// and is none of its fields here; nor is what a file cannot say (apply:"-").
func membersOf(t reflect.Type, top bool) map[string]member {
	out := map[string]member{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || top && name == "name" || f.Tag.Get("apply") == "-" {
			continue
		}
		out[name] = member{i, options == "", f}
	}
	return out
}

func sortedNames(members map[string]member) []string {
	names := make([]string, 0, len(members))
	for name := range members {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// didYouMean proposes the word that is closest to a wrong one, if one is close.
func didYouMean(wrong string, words []string) string {
	best, bestDistance := "", 1+len(wrong)/3
	for _, w := range words {
		if plain(w) == plain(wrong) {
			return fmt.Sprintf(" Did you mean %s?", w)
		}
		if d := distance(plain(wrong), plain(w)); d < bestDistance || d == bestDistance && best == "" {
			best, bestDistance = w, d
		}
	}
	if best == "" {
		return fmt.Sprintf(" There are %s.", strings.Join(words, ", "))
	}
	return fmt.Sprintf(" Did you mean %s?", best)
}

// plain is a word without its way of writing: baseUrl, base-url and base_url
// are one.
func plain(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
}

// distance is how many letters must be changed, added or left out to come from
// one word to another.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			corner, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, corner+cost)
		}
	}
	return row[len(b)]
}
