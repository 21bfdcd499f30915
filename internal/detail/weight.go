package detail

import (
	"fmt"
	"math"
	"regexp"
	"regexp/syntax"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Whoever administers one tenant writes its schemas, and all tenants are served
// by the same machine. A text of two kilobytes can have a value looked at more
// often than there is time for: each of its schemas refers to the next one twice.
// So a schema is weighed before it is used.

// scales weigh the schemas of one document.
type scales struct {
	known map[weighed]int
}

// A weighed is a schema with how many levels of a value there are below it.
type weighed struct {
	schema *jsonschema.Schema
	depth  int
}

// tooHeavy is what a schema weighs that comes back to itself at the same value:
// there is no end to it.
const tooHeavy = math.MaxInt32

// weigh is how many schemas one value is held against, and one value in it at each
// of depth levels.
func (w *scales) weigh(s *jsonschema.Schema, depth int) int {
	at := weighed{s, depth}
	switch n, met := w.known[at]; {
	case s == nil || depth < 0: // a value has no more levels
		return 0
	case met:
		return n
	case s.DynamicRef != nil || s.RecursiveRef != nil: // what they lead to depends on the way
		return tooHeavy
	case w.known == nil:
		w.known = map[weighed]int{}
	}
	w.known[at] = tooHeavy // for whoever comes back before it is known
	sum := 1
	add := func(depth int, all ...*jsonschema.Schema) {
		for _, one := range all {
			sum = min(sum+w.weigh(one, depth), tooHeavy)
		}
	}
	some := func(depth int, v any) {
		switch v := v.(type) {
		case *jsonschema.Schema:
			add(depth, v)
		case []*jsonschema.Schema:
			add(depth, v...)
		}
	}
	if s.Enum != nil {
		sum += len(s.Enum.Values) / 10 // comparing is quicker
	}
	add(depth, s.Ref, s.Not, s.If, s.Then, s.Else)
	add(depth, s.AllOf...)
	add(depth, s.AnyOf...)
	add(depth, s.OneOf...)
	for _, one := range s.DependentSchemas {
		add(depth, one)
	}
	for _, one := range s.Dependencies {
		some(depth, one)
	}
	below := depth - 1
	for _, one := range s.Properties {
		add(below, one)
	}
	for _, one := range s.PatternProperties {
		add(below, one)
	}
	add(below, s.PropertyNames, s.UnevaluatedProperties, s.Contains, s.Items2020, s.UnevaluatedItems, s.ContentSchema)
	add(below, s.PrefixItems...)
	some(below, s.AdditionalProperties)
	some(below, s.Items)
	some(below, s.AdditionalItems)
	w.known[at] = sum
	return sum
}

// values is how many values there are in one, itself among them.
func values(v any) int {
	n := 1
	switch v := v.(type) {
	case map[string]any:
		for _, one := range v {
			n += values(one)
		}
	case []any:
		for _, one := range v {
			n += values(one)
		}
	}
	return n
}

// patterns compiles the patterns of one schema, which together have at most
// maxPatterns states: of ten characters there can be a thousand.
func patterns() jsonschema.RegexpEngine {
	left := maxPatterns
	return func(text string) (jsonschema.Regexp, error) {
		parsed, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			return nil, err
		}
		if left -= states(parsed); left < 0 {
			return nil, fmt.Errorf("the patterns of the schema repeat so much that they have more than %d states", maxPatterns)
		}
		return regexp.Compile(text)
	}
}

// states is about how many states a pattern has, maxPatterns+1 for more.
func states(p *syntax.Regexp) int {
	n := 1 + len(p.Rune)
	for _, sub := range p.Sub {
		n = min(n+states(sub), maxPatterns+1)
	}
	if p.Op == syntax.OpRepeat {
		n *= max(p.Min+1, p.Max)
	}
	return min(n, maxPatterns+1)
}
