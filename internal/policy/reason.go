package policy

import (
	"cmp"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// A Reason is a rule that permitted or denied, as people are told of it: the
// code and the words that its author wrote above it, never its text.
type Reason struct {
	Package  string `json:"package"`
	Code     string `json:"code"`
	Set      string `json:"set,omitempty"`   // permit or deny
	Title    string `json:"title,omitempty"` // a few words
	Sentence string `json:"sentence,omitempty"`
	Next     string `json:"next,omitempty"` // what the caller may do
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
}

// Rule is the name of the rule: its package and its code.
func (r Reason) Rule() string { return r.Package + "." + r.Code }

// notPermitted is the reason of a request that no rule permits.
var notPermitted = Reason{
	Package: "estover", Code: "not_permitted", Set: "deny", Title: "Nothing permits it",
	Sentence: "No policy permits this.",
	Next:     "Ask an administrator which policy should, or see `estover why`.",
}

// The reasons of answers that no rule gave.
var (
	timedOut = Reason{
		Package: "estover", Code: "policy_timeout", Set: "deny", Title: "The policy took too long",
		Sentence: "The policy could not be evaluated in time, so the answer is no.",
		Next:     "Try again, and tell your administrator if it goes on.",
	}
	broken = Reason{
		Package: "estover", Code: "policy_error", Set: "deny", Title: "The policy failed",
		Sentence: "The policy could not be evaluated, so the answer is no.",
		Next:     "Try again, and tell your administrator if it goes on.",
	}
)

// compareReasons puts a tenant's rules before the baseline's, since they are
// the more specific, and rules of one package in the order of their text.
func compareReasons(a, b Reason) int {
	own := func(r Reason) int {
		if strings.HasPrefix(r.Package, "tenant.") {
			return 0
		}
		return 1
	}
	return cmp.Or(own(a)-own(b), strings.Compare(a.Package, b.Package), strings.Compare(a.File, b.File), a.Line-b.Line, strings.Compare(a.Code, b.Code))
}

// reasonsOf gathers the words above the rules that permit and deny.
func reasonsOf(modules map[string]*ast.Module) map[string]Reason {
	all := map[string]Reason{}
	for _, m := range modules {
		for _, rule := range m.Rules {
			set, code := setOf(rule), codeOf(rule)
			if set != "permit" && set != "deny" || code == "" {
				continue
			}
			r := Reason{Package: packageOf(m), Code: code, Set: set, File: rule.Location.File, Line: rule.Location.Row}
			r.Title, r.Sentence, r.Next = wordsOf(rule)
			if old, ok := all[r.Rule()]; ok && (r.Sentence == "" || old.Sentence != "" && compareReasons(old, r) < 0) {
				continue
			}
			all[r.Rule()] = r
		}
	}
	return all
}

// codeOf is the constant that a rule adds to its set, or "".
func codeOf(rule *ast.Rule) string {
	if rule.Head.Key == nil {
		return ""
	}
	code, _ := rule.Head.Key.Value.(ast.String)
	return string(code)
}

// wordsOf are the title, the description and the next step in the metadata of
// a rule.
func wordsOf(rule *ast.Rule) (title, sentence, next string) {
	for _, a := range rule.Annotations {
		if a.Scope != "rule" && a.Scope != "document" {
			continue
		}
		title, sentence = cmp.Or(title, a.Title), cmp.Or(sentence, strings.Join(strings.Fields(a.Description), " "))
		if n, ok := a.Custom["next"].(string); ok {
			next = cmp.Or(next, strings.Join(strings.Fields(n), " "))
		}
	}
	return title, sentence, next
}
