package policy

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

// A linter holds what the checks of one bundle share.
type linter struct {
	found   []Finding
	file    string
	hot     bool              // the package is marked hot
	reasons map[string]Reason // the first sentence of each code
	names   map[string]bool   // what there is below data: packages, rules, tables, and all that lies above them
}

// lint checks the rules of the house, which the compiler does not know.
//
//	root        a package stands below tenant
//	metadata    every package has a title and a description
//	set         permit, deny, oblige and respond are sets
//	code        what permit and deny contain is a constant word in snake_case
//	sentence    every denial has a description, one for a code
//	index       the first condition of a rule compares the input with a constant
//	word        a word compared with a fact, a class or an effect is on its list
//	obligation  an obligation is one that can be carried out
//	risk        a denial rests on more than the risk
//	default     nothing is true by default
//	with        only tests replace the input
//	reserved    a policy does not reach into the baseline or another root
//	missing     what a policy reads below data.tenant is there
//	hot         a hot package does nothing slow
//	test        a test defines no rule of the policy
//	respond, computed (warnings)  what nobody carries out or computes yet
func lint(b Bundle, modules map[string]*ast.Module) []Finding {
	l := &linter{reasons: map[string]Reason{}, names: namesOf(b, modules)}
	described := map[string]bool{}
	hot := map[string]bool{}
	for _, m := range modules {
		for _, a := range m.Annotations {
			if a.Scope == "package" {
				described[packageOf(m)] = described[packageOf(m)] || a.Title != "" && a.Description != ""
				is, _ := a.Custom["hot"].(bool)
				hot[packageOf(m)] = hot[packageOf(m)] || is
			}
		}
	}
	for _, f := range b {
		m := modules[f.Path]
		if m == nil {
			continue
		}
		l.file, l.hot = f.Path, hot[packageOf(m)]
		p := m.Package.Path
		if len(p) < 3 || p[1].Value.Compare(ast.String("tenant")) != 0 {
			l.find(m.Package.Location, "root", "The package %s does not stand below tenant. Call it tenant.%s.", packageOf(m), path.Base(strings.ReplaceAll(packageOf(m), ".", "/")))
		}
		if isTest(f.Path) {
			l.test(m)
			continue
		}
		if !described[packageOf(m)] {
			l.find(m.Package.Location, "metadata", "The package %s says nothing about itself. Put a METADATA comment with a title and a description above it.", packageOf(m))
			described[packageOf(m)] = true
		}
		l.module(m)
	}
	return l.found
}

func (l *linter) find(at *ast.Location, check, message string, args ...any) {
	line := 1
	if at != nil {
		line = at.Row
	}
	l.found = append(l.found, Finding{File: l.file, Line: line, Check: check, Message: fmt.Sprintf(message, args...)})
}

func (l *linter) warn(at *ast.Location, check, message string, args ...any) {
	l.find(at, check, message, args...)
	l.found[len(l.found)-1].Warning = true
}

// test checks a file of tests.
func (l *linter) test(m *ast.Module) {
	for _, rule := range m.Rules {
		if set := setOf(rule); set != "" {
			l.find(rule.Location, "test", "A file of tests adds to %s, and tests are left out of the revision. Move the rule to a file whose name does not end in _test.rego.", set)
		}
	}
}

// module checks a file of rules.
func (l *linter) module(m *ast.Module) {
	for _, i := range m.Imports {
		l.reference(i.Location, i.Path.Value)
	}
	for _, rule := range m.Rules {
		l.rule(rule)
		for r := rule; r != nil; r = r.Else {
			l.bodies(r)
		}
	}
}

var snakeCase = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)

// rule checks the head of a rule and what its set asks for.
func (l *linter) rule(rule *ast.Rule) {
	if rule.Default && rule.Head.Value != nil && rule.Head.Value.Value.Compare(ast.Boolean(true)) == 0 {
		l.find(rule.Location, "default", "%s is true by default. The default is no.", rule.Head.Name)
	}
	set := setOf(rule)
	if set == "" {
		return
	}
	if rule.Head.RuleKind() != ast.MultiValue || len(rule.Head.Ref()) != 1 || len(rule.Head.Args) > 0 {
		l.find(rule.Location, "set", "%s is a set. Write: %s contains … if { … }", set, set)
		return
	}
	l.index(rule)
	switch set {
	case "permit", "deny":
		l.code(set, rule)
	case "oblige":
		l.obligation(rule)
	case "respond":
		l.warn(rule.Location, "respond", "Responses are not carried out yet, so this rule does nothing.")
	}
	if set == "deny" {
		l.risk(rule)
	}
}

// code checks what a rule adds to permit or deny.
func (l *linter) code(set string, rule *ast.Rule) {
	code := codeOf(rule)
	if !snakeCase.MatchString(code) {
		l.find(rule.Location, "code", "What %s contains is a constant word in snake_case, which programs may keep: %s contains \"some_reason\" if { … }", set, set)
		return
	}
	title, sentence, next := wordsOf(rule)
	name := rule.Module.Package.Path.String() + "." + set + "." + code
	old, again := l.reasons[name]
	switch {
	case set == "permit" && title == "" && sentence == "" && !again:
		l.warn(rule.Location, "sentence", "%s has no title. Say above it in a METADATA comment what it permits.", code)
	case set == "deny" && sentence == "" && old.Sentence == "":
		l.find(rule.Location, "sentence", "%s has no description. Say above it, in one sentence for whoever is refused, why.", code)
	case set == "deny" && next == "" && old.Next == "":
		l.warn(rule.Location, "sentence", "%s does not say what to do next. Add custom: next: … to its METADATA.", code)
	case sentence != "" && old.Sentence != "" && sentence != old.Sentence:
		l.find(rule.Location, "sentence", "%s has another description on line %d of %s. One code, one sentence.", code, old.Line, old.File)
	}
	if !again || old.Sentence == "" {
		l.reasons[name] = Reason{Sentence: sentence, Next: next, File: l.file, Line: rule.Location.Row}
	}
}

// index checks that OPA's index can discard the rule without evaluating it.
func (l *linter) index(rule *ast.Rule) {
	if len(rule.Body) > 0 && indexable(rule.Body[0]) {
		return
	}
	at := rule.Location
	if len(rule.Body) > 0 && rule.Body[0].Location != nil {
		at = rule.Body[0].Location
	}
	l.find(at, "index", "The first condition of a rule compares a part of the input with a constant (input.op == \"gateway.call\"), so that rules about something else cost nothing.")
}

// indexable reports whether an expression is input.… == constant or input.…
// in constants.
func indexable(e *ast.Expr) bool {
	c, ok := comparisonOf(e)
	return ok && c.kind != "!="
}

// A comparison is an expression that compares a part of the input with
// constants.
type comparison struct {
	ref    ast.Ref
	kind   string // ==, != or in
	values []*ast.Term
}

// comparisonOf takes an expression as a comparison, if it is one.
func comparisonOf(e *ast.Expr) (comparison, bool) {
	if e.Negated || len(e.With) > 0 || !e.IsCall() || len(e.Operands()) != 2 {
		return comparison{}, false
	}
	left, right := e.Operand(0), e.Operand(1)
	var c comparison
	switch op := e.Operator().String(); op {
	case "equal", "eq":
		c.kind = "=="
	case "neq":
		c.kind = "!="
	case "internal.member_2":
		ref, ok := inputRef(left)
		if !ok {
			return comparison{}, false
		}
		c = comparison{ref: ref, kind: "in"}
		constant := true
		each := func(t *ast.Term) {
			constant = constant && ast.IsScalar(t.Value)
			c.values = append(c.values, t)
		}
		switch v := right.Value.(type) {
		case ast.Set:
			v.Foreach(each)
		case *ast.Array:
			v.Foreach(each)
		default:
			constant = false
		}
		return c, constant
	default:
		return comparison{}, false
	}
	ref, ok := inputRef(left)
	value := right
	if !ok {
		if ref, ok = inputRef(right); !ok {
			return comparison{}, false
		}
		value = left
	}
	c.ref, c.values = ref, []*ast.Term{value}
	return c, ast.IsScalar(value.Value)
}

// inputRef takes a term as a constant reference into the input.
func inputRef(t *ast.Term) (ast.Ref, bool) {
	ref, ok := t.Value.(ast.Ref)
	return ref, ok && len(ref) > 1 && ref.HasPrefix(ast.InputRootRef) && ref.IsGround()
}

// risk checks that a denial rests on more than a score: on another fact, or on
// what the resource, the agent or the task is.
func (l *linter) risk(rule *ast.Rule) {
	var risk, more bool
	ast.WalkRefs(rule.Body, func(r ast.Ref) bool {
		if !r.HasPrefix(ast.InputRootRef) {
			more = more || r.HasPrefix(ast.DefaultRootRef)
			return false
		}
		if len(r) < 2 {
			return false
		}
		switch part, _ := r[1].Value.(ast.String); part {
		case "facts":
			if len(r) > 2 && (r[2].Value.Compare(ast.String("risk_band")) == 0 || r[2].Value.Compare(ast.String("novelty")) == 0) {
				risk = true
			} else {
				more = true
			}
		case "resource", "agent", "delegator", "purpose", "session", "params":
			more = true
		}
		return false
	})
	if risk && !more {
		l.find(rule.Location, "risk", "This denial rests on the risk alone. A score may ask for more care, and needs a second fact to refuse.")
	}
}

// bodies checks what stands in the bodies of a rule and in its head.
func (l *linter) bodies(rule *ast.Rule) {
	at := rule.Location
	ast.WalkExprs(rule, func(e *ast.Expr) bool {
		if len(e.With) > 0 {
			l.find(e.Location, "with", "Only tests replace parts of the input or of data (with).")
		}
		if c, ok := comparisonOf(e); ok {
			l.words(e.Location, c)
		}
		if l.hot && e.IsCall() {
			if op := e.Operator().String(); op == "walk" || strings.HasPrefix(op, "regex.") {
				l.find(e.Location, "hot", "A hot package does not call %s.", op)
			}
		}
		return false
	})
	ast.WalkTerms(rule, func(t *ast.Term) bool {
		where := t.Location
		if where == nil {
			where = at
		}
		switch v := t.Value.(type) {
		case ast.Ref:
			l.reference(where, v)
		case ast.Call:
			if op := v[0].String(); l.hot && (op == "walk" || strings.HasPrefix(op, "regex.")) {
				l.find(where, "hot", "A hot package does not call %s.", op)
			}
		case *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension:
			if l.hot {
				l.find(where, "hot", "A hot package has no comprehension.")
			}
		}
		return false
	})
}

// reference checks what a reference reaches.
func (l *linter) reference(at *ast.Location, v ast.Value) {
	ref, ok := v.(ast.Ref)
	if !ok || len(ref) == 0 {
		return
	}
	switch {
	case ref.HasPrefix(ast.DefaultRootRef):
		switch {
		case len(ref) < 3 || !ref[1].IsGround() || ref[1].Value.Compare(ast.String("tenant")) != 0:
			l.find(at, "reserved", "A policy reads data below data.tenant only.")
		case l.hot && !ref[2].IsGround():
			l.find(at, "hot", "A hot package names the packages that it reads.")
		case !l.resolves(ref):
			l.find(at, "missing", "There is no %s: neither a rule nor a table of a data.json.", ref)
		}
	case l.hot && ref.HasPrefix(ast.InputRootRef) && (len(ref) < 2 || !ref[1].IsGround() || ref[1].Value.Compare(ast.String("params")) == 0):
		l.find(at, "hot", "A hot package does not read input.params, and names the parts of the input that it reads: answers could not be cached.")
	}
}

// resolves reports whether a reference below data leads to something: to what
// a rule, a package or a table is called, or into one.
func (l *linter) resolves(ref ast.Ref) bool {
	name := "data"
	for _, t := range ref[1:] {
		step, ok := t.Value.(ast.String)
		if !ok {
			return true
		}
		next := name + "." + string(step)
		if !l.names[next] {
			return l.names[name+".*"]
		}
		name = next
	}
	return true
}

// namesOf lists what there is below data. A name that ends in .* is one into
// which nobody can look: a rule, or a value that is no table.
func namesOf(b Bundle, modules map[string]*ast.Module) map[string]bool {
	names := map[string]bool{}
	for _, m := range modules {
		at := "data"
		for _, step := range strings.Split(packageOf(m), ".") {
			at += "." + step
			names[at] = true
		}
		for _, rule := range m.Rules {
			name := at + "." + strings.Trim(rule.Head.Ref()[0].String(), `"`)
			names[name], names[name+".*"] = true, true
		}
	}
	var walk func(at string, v any)
	walk = func(at string, v any) {
		names[at] = true
		members, ok := v.(map[string]any)
		if !ok {
			names[at+".*"] = true
		}
		for k, v := range members {
			walk(at+"."+k, v)
		}
	}
	data, _ := b.data()
	walk("data", data)
	return names
}

// words checks that what is compared with a word of the input is on its list.
func (l *linter) words(at *ast.Location, c comparison) {
	s, ok := schemaOf(c.ref)
	if !ok {
		return // the compiler says that there is no such part
	}
	for _, v := range c.values {
		word, isString := v.Value.(ast.String)
		_, isBool := v.Value.(ast.Boolean)
		switch {
		case s.Type == "boolean" && !isBool:
			l.find(at, "word", "%s is true or false, and never %s.", c.ref, v)
		case s.Type == "string" && !isString:
			l.find(at, "word", "%s is a word, and never %s.", c.ref, v)
		case len(s.Enum) > 0 && !contains(s.Enum, string(word)):
			l.find(at, "word", "%s is never %s. It is one of %s.", c.ref, v, strings.Join(s.Enum, ", "))
		}
	}
	l.computed(at, c)
}

// computed warns of a rule that waits for a fact which nobody computes.
func (l *linter) computed(at *ast.Location, c comparison) {
	if len(c.ref) != 3 || c.ref[1].Value.Compare(ast.String("facts")) != 0 {
		return
	}
	name, _ := c.ref[2].Value.(ast.String)
	i := slices.IndexFunc(facts, func(f fact) bool { return f.name == string(name) })
	if i < 0 || facts[i].live {
		return
	}
	usual := facts[i].term(&Unremarkable)
	same := slices.ContainsFunc(c.values, func(v *ast.Term) bool { return v.Equal(usual) })
	if same == (c.kind == "!=") {
		l.warn(at, "computed", "%s is not computed yet and is always %s, so this never holds.", c.ref, usual)
	}
}

// term is the value that a set of facts has for this fact.
func (f fact) term(of *Facts) *ast.Term {
	if f.flag != nil {
		return ast.InternedTerm(*f.flag(of))
	}
	return ast.InternedTerm(*f.word(of))
}

// obligation checks what a rule adds to oblige: its type, and each property
// that is a constant.
func (l *linter) obligation(rule *ast.Rule) {
	o, ok := rule.Head.Key.Value.(ast.Object)
	if !ok {
		l.find(rule.Location, "obligation", "What oblige contains is an object with a type: oblige contains {\"type\": \"receipt\"} if { … }")
		return
	}
	kind := ""
	if t := o.Get(ast.InternedTerm("type")); t != nil {
		s, _ := t.Value.(ast.String)
		kind = string(s)
	}
	t, known := obligationTypes[kind]
	if !known {
		names := make([]string, 0, len(obligationTypes))
		for n := range obligationTypes {
			names = append(names, n)
		}
		slices.Sort(names)
		l.find(rule.Location, "obligation", "The type of an obligation is one of %s.", strings.Join(names, ", "))
		return
	}
	missing := slices.Clone(t.required)
	o.Foreach(func(k, v *ast.Term) {
		s, _ := k.Value.(ast.String)
		name := string(s)
		if name == "type" {
			return
		}
		missing = slices.DeleteFunc(missing, func(m string) bool { return m == name })
		p, ok := t.properties[name]
		if !ok {
			l.find(rule.Location, "obligation", "%s has no property %s.", kind, k)
			return
		}
		if !v.IsGround() || !constant(v) {
			if !p.text {
				l.find(rule.Location, "obligation", "%s of %s is a constant.", name, kind)
			}
			return
		}
		j, err := ast.JSON(v.Value)
		if err == nil {
			_, ok = p.value(j)
		}
		if err != nil || !ok {
			l.find(rule.Location, "obligation", "%s of %s is never %s%s.", name, kind, v, p.among())
		}
	})
	for _, name := range missing {
		l.find(rule.Location, "obligation", "%s needs %s%s.", kind, name, t.properties[name].among())
	}
}

// among says what a property may be.
func (p property) among() string {
	switch {
	case p.number:
		return ": it is a whole number, zero or more"
	case p.flag:
		return ": it is true or false"
	case p.list != nil:
		return ": it is one of " + strings.Join(p.list, ", ")
	case p.many != nil:
		return ": it is a list of " + strings.Join(p.many, ", ")
	}
	return ": it is a text"
}

// constant reports whether a term holds no reference and no call.
func constant(t *ast.Term) bool {
	is := true
	ast.WalkTerms(t, func(t *ast.Term) bool {
		switch t.Value.(type) {
		case ast.Ref, ast.Call, ast.Var, *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension:
			is = false
		}
		return !is
	})
	return is
}

// A schema is the little of a JSON Schema that lint reads.
type schema struct {
	Type        string            `json:"type"`
	Enum        []string          `json:"enum"`
	Description string            `json:"description"`
	Properties  map[string]schema `json:"properties"`
}

var inputShape = sync.OnceValue(func() (s schema) {
	if err := json.Unmarshal(inputSchema, &s); err != nil {
		panic("policy: input.schema.json: " + err.Error())
	}
	return s
})

// schemaOf is what the schema says of a part of the input.
func schemaOf(ref ast.Ref) (schema, bool) {
	s := inputShape()
	for _, t := range ref[1:] {
		name, _ := t.Value.(ast.String)
		next, ok := s.Properties[string(name)]
		if !ok {
			return schema{}, false
		}
		s = next
	}
	return s, true
}
