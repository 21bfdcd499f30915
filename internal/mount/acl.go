package mount

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
)

// A Capability is something that a policy of the door allows at a path.
type Capability string

// The capabilities.
const (
	Create Capability = "create"
	Read   Capability = "read"
	Update Capability = "update"
	Patch  Capability = "patch"
	Delete Capability = "delete"
	List   Capability = "list"
	Sudo   Capability = "sudo"
	Deny   Capability = "deny"
)

var capabilities = []Capability{Create, Read, Update, Patch, Delete, List, Sudo, Deny}

// older are the capabilities that the older member "policy" stands for.
var older = map[string][]Capability{
	"deny":  {Deny},
	"read":  {Read, List},
	"write": {Create, Read, Update, Delete, List},
	"sudo":  {Create, Read, Update, Delete, List, Sudo},
}

// A rule is what is allowed at a path or pattern.
type rule struct {
	pattern  string // without the star at its end
	star     bool   // whatever follows
	segments []string
	can      map[Capability]bool
	allowed  map[string][]any // parameters and their values; none for any value
	denied   map[string][]any
	required []string
	min, max time.Duration // of wrapping; 0 for no bound
}

// rules are the rules of policies by their path as it was written.
type rules struct {
	exact    map[string]*rule
	patterns map[string]*rule
}

// compile reads a policy in HCL or JSON.
func compile(text string) (*rules, error) {
	if len(text) > maxPolicy {
		return nil, ErrPolicy.With("A policy has at most %d bytes.", maxPolicy)
	}
	if strings.Contains(text, "{{") {
		return nil, ErrPolicy.With("The policy has a template ({{…}}), and templates are not offered: write a policy for each of those for whom it is meant.")
	}
	root, err := parse(text)
	if err != nil {
		return nil, ErrPolicy.With("failed to parse policy: %s", err)
	}
	list, ok := root.Node.(*ast.ObjectList)
	if !ok {
		return nil, ErrPolicy.With("failed to parse policy: it does not contain a root object")
	}
	all := &rules{}
	for _, item := range list.Items {
		if name := keyOf(item, 0); name != "path" && name != "name" {
			return nil, ErrPolicy.With("failed to parse policy: invalid key %q on line %d", name, item.Assign.Line)
		}
	}
	for _, item := range list.Filter("path").Items {
		if len(item.Keys) == 0 {
			return nil, ErrPolicy.With("failed to parse policy: a path has no name")
		}
		path := keyOf(item, 0)
		one, err := read(path, item)
		if err != nil {
			return nil, ErrPolicy.With("failed to parse policy: path %q: %s", path, err)
		}
		all.add(strings.TrimPrefix(path, "/"), one)
	}
	return all, nil
}

// parse reads the text. The parser panics for some that cannot be.
func parse(text string) (file *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the text cannot be read")
		}
	}()
	return hcl.Parse(text)
}

func keyOf(item *ast.ObjectItem, n int) string {
	if n >= len(item.Keys) {
		return ""
	}
	s, _ := item.Keys[n].Token.Value().(string)
	return s
}

// members are those that a path may have.
var members = []string{"comment", "policy", "capabilities", "allowed_parameters", "denied_parameters", "required_parameters", "min_wrapping_ttl", "max_wrapping_ttl"}

// read reads the rule of a path.
func read(path string, item *ast.ObjectItem) (*rule, error) {
	object, ok := item.Val.(*ast.ObjectType)
	if !ok {
		return nil, fmt.Errorf("it is not an object")
	}
	seen := map[string]bool{}
	for _, m := range object.List.Items {
		name := keyOf(m, 0)
		if !slices.Contains(members, name) {
			return nil, fmt.Errorf("invalid key %q", name)
		}
		if seen[name] && !strings.HasSuffix(name, "_parameters") {
			return nil, fmt.Errorf("the key %q stands there twice", name)
		}
		seen[name] = true
	}
	var in struct {
		Policy       string           `hcl:"policy"`
		Capabilities []string         `hcl:"capabilities"`
		Allowed      map[string][]any `hcl:"allowed_parameters"`
		Denied       map[string][]any `hcl:"denied_parameters"`
		Required     []string         `hcl:"required_parameters"`
		Min          any              `hcl:"min_wrapping_ttl"`
		Max          any              `hcl:"max_wrapping_ttl"`
	}
	if err := hcl.DecodeObject(&in, item.Val); err != nil {
		return nil, err
	}
	r := &rule{can: map[Capability]bool{}}
	if err := r.at(strings.TrimPrefix(path, "/")); err != nil {
		return nil, err
	}
	if in.Policy != "" {
		of, ok := older[in.Policy]
		if !ok {
			return nil, fmt.Errorf("invalid policy %q", in.Policy)
		}
		for _, c := range of {
			r.can[c] = true
		}
	}
	for _, c := range in.Capabilities {
		if !slices.Contains(capabilities, Capability(c)) {
			return nil, fmt.Errorf("invalid capability %q", c)
		}
		r.can[Capability(c)] = true
	}
	if r.can[Deny] {
		r.can = map[Capability]bool{Deny: true}
	}
	r.allowed, r.denied, r.required = lower(in.Allowed), lower(in.Denied), in.Required
	var err error
	if r.min, err = wrapping(in.Min); err != nil {
		return nil, err
	}
	if r.max, err = wrapping(in.Max); err != nil {
		return nil, err
	}
	if r.min != 0 && r.max != 0 && r.max < r.min {
		return nil, fmt.Errorf("max_wrapping_ttl cannot be less than min_wrapping_ttl")
	}
	return r, nil
}

// at reads the pattern of a rule: a star at its end is for whatever follows, a
// plus for one segment.
func (r *rule) at(path string) error {
	if strings.Contains(path, "+*") {
		return fmt.Errorf("invalid use of wildcards ('+*' is forbidden)")
	}
	r.pattern, r.star = strings.CutSuffix(path, "*")
	if segments := strings.Split(r.pattern, "/"); slices.Contains(segments, "+") {
		r.segments = segments
	}
	return nil
}

func lower(in map[string][]any) map[string][]any {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string][]any, len(in))
	for k, v := range in {
		out[strings.ToLower(k)] = v
	}
	return out
}

// wrapping reads a bound of the life of wrapped answers.
func wrapping(v any) (time.Duration, error) {
	switch v := v.(type) {
	case nil:
		return 0, nil
	case int:
		return time.Duration(v) * time.Second, nil
	case string:
		if d, ok := Duration(v); ok {
			return d, nil
		}
	}
	return 0, fmt.Errorf("a bound of wrapping is a duration, as 90 or \"1h30m\", not %v", v)
}

// Duration reads a duration as clients of the door write it: seconds, or as 90s,
// 1h30m or 7d.
func Duration(s string) (time.Duration, bool) {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0, true
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		if n > 1<<33 || n < -1<<33 {
			return 0, false
		}
		return time.Duration(n) * time.Second, true
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 32)
		if err != nil || n > 100_000 || n < 0 {
			return 0, false
		}
		return time.Duration(n) * 24 * time.Hour, true
	}
	d, err := time.ParseDuration(s)
	return d, err == nil
}

// add puts a rule beside the others, and together with one of the same path.
func (a *rules) add(path string, r *rule) {
	into := &a.exact
	if r.star || r.segments != nil {
		into = &a.patterns
	}
	if *into == nil {
		*into = map[string]*rule{}
	}
	if have := (*into)[path]; have != nil {
		r = have.with(r)
	}
	(*into)[path] = r
}

// merge adds the rules of another policy.
func (a *rules) merge(b *rules) {
	for path, r := range b.exact {
		a.add(path, r)
	}
	for path, r := range b.patterns {
		a.add(path, r)
	}
}

// with is what two rules of the same path allow together: deny wins, and
// otherwise what either allows. Neither is changed.
func (r *rule) with(o *rule) *rule {
	if r.can[Deny] {
		return r
	}
	if o.can[Deny] {
		return o
	}
	one := *r
	one.can = maps.Clone(r.can)
	maps.Copy(one.can, o.can)
	one.allowed = union(r.allowed, o.allowed)
	one.denied = union(r.denied, o.denied)
	one.required = append(slices.Clone(r.required), o.required...)
	one.min = max(r.min, o.min)
	if one.max = r.max; o.max > 0 && (one.max == 0 || o.max < one.max) {
		one.max = o.max
	}
	return &one
}

// union is the parameters of two rules. No values are all of them.
func union(a, b map[string][]any) map[string][]any {
	if len(a) == 0 {
		return b
	}
	out := maps.Clone(a)
	for k, v := range b {
		have, ok := out[k]
		switch {
		case !ok:
			out[k] = v
		case len(have) == 0 || len(v) == 0:
			out[k] = nil
		default:
			out[k] = append(slices.Clone(have), v...)
		}
	}
	return out
}

// matches reports whether a pattern is one for a path.
func (r *rule) matches(path string) bool {
	if r.segments == nil {
		return r.star && strings.HasPrefix(path, r.pattern)
	}
	parts := strings.Split(path, "/")
	if len(parts) < len(r.segments) || !r.star && len(parts) != len(r.segments) {
		return false
	}
	for i, s := range r.segments {
		last := i == len(r.segments)-1
		switch {
		case s == "+":
			if parts[i] == "" {
				return false
			}
		case last && r.star:
			return strings.HasPrefix(strings.Join(parts[i:], "/"), s)
		case s != parts[i]:
			return false
		}
	}
	return true
}

// below reports whether r counts less than o where both match: its first
// wildcard comes earlier, it ends in a star, it has more of them, it is shorter,
// or it comes before in the alphabet.
func (r *rule) below(o *rule) bool {
	wild := func(r *rule) int {
		if i := slices.Index(r.segments, "+"); i >= 0 {
			n := i
			for _, s := range r.segments[:i] {
				n += len(s)
			}
			return n
		}
		return len(r.pattern)
	}
	pluses := func(r *rule) (n int) {
		for _, s := range r.segments {
			if s == "+" {
				n++
			}
		}
		return n
	}
	if a, b := wild(r), wild(o); a != b {
		return a < b
	}
	if r.star != o.star {
		return r.star
	}
	if a, b := pluses(r), pluses(o); a != b {
		return a > b
	}
	if len(r.pattern) != len(o.pattern) {
		return len(r.pattern) < len(o.pattern)
	}
	return r.pattern < o.pattern
}

// find is the one rule that counts for a path, or nil.
func (a *rules) find(path string, list bool) *rule {
	if r := a.exact[path]; r != nil {
		return r
	}
	if list {
		if r := a.exact[strings.TrimSuffix(path, "/")]; r != nil {
			return r
		}
	}
	var best *rule
	for _, r := range a.patterns {
		if r.matches(path) && (best == nil || best.below(r)) {
			best = r
		}
	}
	if best == nil && list && strings.HasSuffix(path, "/") {
		return a.find(strings.TrimSuffix(path, "/"), false)
	}
	return best
}

// An Ask is what a token wants to do at a path of the door.
type Ask struct {
	Path   string // of a list with a slash at its end
	What   Capability
	Sudo   bool                       // only with that capability beside
	Params map[string]json.RawMessage // what the request says
	Wrap   time.Duration              // for how long the answer is to be wrapped; 0 for not at all
}

// Allows reports whether the policies allow something.
func (a *ACL) Allows(k Ask) bool {
	if a.root {
		return true
	}
	r := a.rules.find(k.Path, k.What == List)
	if r == nil || r.can[Deny] || !r.can[k.What] || k.Sudo && !r.can[Sudo] {
		return false
	}
	if r.max > 0 && (k.Wrap == 0 || k.Wrap > r.max) || r.min > 0 && (k.Wrap == 0 || k.Wrap < r.min) {
		return false
	}
	switch k.What {
	case Create, Read, Update, Patch:
		return r.takes(k.Params)
	}
	return true
}

// takes reports whether the rule allows these parameters.
func (r *rule) takes(params map[string]json.RawMessage) bool {
	given := make(map[string]bool, len(params))
	for k := range params {
		given[strings.ToLower(k)] = true
	}
	for _, name := range r.required {
		if !given[strings.ToLower(name)] {
			return false
		}
	}
	if len(given) == 0 {
		return true
	}
	if _, none := r.denied["*"]; none {
		return false
	}
	every, others := r.allowed["*"]
	for name, v := range params { // each by itself, if it stands there twice in another case
		name = strings.ToLower(name)
		if values, ok := r.denied[name]; ok && among(values, v) {
			return false
		}
		if len(r.allowed) == 0 {
			continue
		}
		values, ok := r.allowed[name]
		if !ok {
			values, ok = every, others
		}
		if !ok || !among(values, v) {
			return false
		}
	}
	return true
}

// among reports whether a value is one of a list. No list is every value, and a
// star at an end of a word is for whatever stands there.
func among(list []any, v json.RawMessage) bool {
	if len(list) == 0 {
		return true
	}
	var word string
	isWord := json.Unmarshal(v, &word) == nil
	for _, want := range list {
		if s, ok := want.(string); ok && isWord {
			if glob(s, word) {
				return true
			}
			continue
		}
		if b, err := json.Marshal(want); err == nil && bytes.Equal(b, bytes.TrimSpace(v)) {
			return true
		}
	}
	return false
}

// glob compares a word with a pattern that may have stars.
func glob(pattern, word string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == word
	}
	if !strings.HasPrefix(word, parts[0]) {
		return false
	}
	word = word[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(word, p)
		if i < 0 {
			return false
		}
		word = word[i+len(p):]
	}
	return strings.HasSuffix(word, parts[len(parts)-1])
}

// Capabilities are what the policies allow at a path, in the order of their
// names: "root" alone where everything is, "deny" alone where nothing is.
func (a *ACL) Capabilities(path string) []string {
	if a.root {
		return []string{"root"}
	}
	r := a.rules.find(path, true)
	if r == nil || r.can[Deny] || len(r.can) == 0 {
		return []string{string(Deny)}
	}
	var list []string
	for c := range r.can {
		list = append(list, string(c))
	}
	slices.Sort(list)
	return list
}

// Reaches reports whether the policies allow anything at or below a path.
func (a *ACL) Reaches(prefix string) bool {
	if a.root {
		return true
	}
	some := func(r *rule) bool { return !r.can[Deny] && len(r.can) > 0 }
	if r := a.rules.find(prefix, true); r != nil && some(r) {
		return true
	}
	for path, r := range a.rules.exact {
		if strings.HasPrefix(path, prefix) && some(r) {
			return true
		}
	}
	for _, r := range a.rules.patterns {
		if some(r) && r.near(prefix) {
			return true
		}
	}
	return false
}

// near reports whether a pattern may be one for something below a prefix.
func (r *rule) near(prefix string) bool {
	if r.segments == nil {
		return strings.HasPrefix(r.pattern, prefix) || strings.HasPrefix(prefix, r.pattern)
	}
	parts := strings.Split(strings.TrimSuffix(prefix, "/"), "/")
	for i, p := range parts {
		if i >= len(r.segments) {
			return r.star
		}
		last := i == len(r.segments)-1
		if s := r.segments[i]; s != "+" && s != p && (!last || !r.star || !strings.HasPrefix(p, s)) {
			return false
		}
	}
	return true
}
