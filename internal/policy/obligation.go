package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"estover.dev/internal/guard"
)

// An obligation type says which properties an obligation of it may have and
// how several are made one.
type obligationType struct {
	required   []string
	properties map[string]property
	merge      func(all []map[string]any) []map[string]any
}

// A property is what an obligation says more precisely. Exactly one of its
// fields is set; a text is whatever is not empty.
type property struct {
	list   []string // one of these words, from the mildest to the strictest
	many   []string // a list of these words
	number bool     // a whole number, zero or more
	flag   bool     // yes or no
	text   bool
}

// The classes of personal data that a redaction names.
var dataClasses = []string{
	"name", "contact", "address", "birth", "government_id", "payment", "health", "credential", "location",
	"employment", "special_category",
}

// The words of obligations, from the mildest to the strictest.
var (
	redactModes  = []string{"mask", "tokenise", "redact", "block"}
	recordLevels = []string{"none", "meta", "full"}
	evidence     = []string{"batched", "strict"}
	directions   = []string{"request", "response", "both"}
	deciders     = []string{"admin", "approver", "auditor", "operator", "sponsor"} // the roles of people, and who answers for the agent
)

// obligationTypes are the obligations that a rule may impose (policy.md,
// section 2.8). Those that no door carries out yet are a refusal at that door.
var obligationTypes = map[string]obligationType{
	"approval": {
		properties: map[string]property{
			"quorum": {number: true}, "roles": {many: deciders}, "signed": {flag: true}, "exclude_sponsor": {flag: true},
			"escalate_seconds": {number: true}, "escalate_roles": {many: deciders}, "expires_seconds": {number: true},
		},
		merge: mergeApproval,
	},
	"redact": {
		required:   []string{"classes"},
		properties: map[string]property{"classes": {many: dataClasses}, "mode": {list: redactModes}, "direction": {list: directions}},
		merge:      mergeRedact,
	},
	"record": {
		required:   []string{"level"},
		properties: map[string]property{"level": {list: recordLevels}, "retention_days": {number: true}},
		merge:      highest,
	},
	"limit": {
		properties: map[string]property{"rows": {number: true}, "bytes": {number: true}, "calls": {number: true}, "seconds": {number: true}},
		merge:      lowest,
	},
	"receipt":  {merge: highest},
	"evidence": {required: []string{"mode"}, properties: map[string]property{"mode": {list: evidence}}, merge: highest},
	"notification": {
		required:   []string{"to"},
		properties: map[string]property{"to": {text: true}, "topic": {text: true}, "body": {text: true}},
		merge:      union,
	},
	"hold":                {properties: map[string]property{"seconds": {number: true}}, merge: lowest},
	"step-up":             {properties: map[string]property{"acr_value": {text: true}, "amr_values": {text: true}, "max_age": {number: true}}, merge: union},
	"session_termination": {properties: map[string]property{"subject": {text: true}, "session": {text: true}}, merge: union},
	"throttle":            {properties: map[string]property{"scope": {text: true}, "seconds": {number: true}}, merge: union},
}

// errObligation is returned for an obligation that is none of the known ones.
// A request with such an obligation is refused: nobody could carry it out.
var errObligation = errors.New("an obligation is not one of the known ones")

// Merge makes the obligations of many rules into one list without
// contradictions, in the order of their types: the strictest redaction of a
// class, the highest level of recording, the lowest limits, strict evidence
// over batched, every notification once.
func Merge(all []guard.Obligation) ([]guard.Obligation, error) {
	byType := map[string][]map[string]any{}
	for _, o := range all {
		props, err := checked(o)
		if err != nil {
			return nil, err
		}
		byType[o.Type] = append(byType[o.Type], props)
	}
	types := make([]string, 0, len(byType))
	for t := range byType {
		types = append(types, t)
	}
	slices.Sort(types)
	var merged []guard.Obligation
	for _, t := range types {
		for _, props := range obligationTypes[t].merge(byType[t]) {
			if len(props) == 0 {
				props = nil
			}
			merged = append(merged, guard.Obligation{Type: t, Properties: props})
		}
	}
	return merged, nil
}

// checked are the properties of an obligation, if it is what its type allows:
// numbers as int64 and lists as []string.
func checked(o guard.Obligation) (map[string]any, error) {
	t, known := obligationTypes[o.Type]
	if !known {
		return nil, fmt.Errorf("%w: type %q", errObligation, o.Type)
	}
	props := map[string]any{}
	for name, v := range o.Properties {
		p, ok := t.properties[name]
		if !ok {
			return nil, fmt.Errorf("%w: %s has no property %q", errObligation, o.Type, name)
		}
		v, ok = p.value(v)
		if !ok {
			return nil, fmt.Errorf("%w: %s of %s is %v", errObligation, name, o.Type, o.Properties[name])
		}
		props[name] = v
	}
	for _, name := range t.required {
		if _, ok := props[name]; !ok {
			return nil, fmt.Errorf("%w: %s lacks %q", errObligation, o.Type, name)
		}
	}
	return props, nil
}

// value is v as the property keeps it, if v is one of its values.
func (p property) value(v any) (any, bool) {
	switch {
	case p.number:
		switch n := v.(type) {
		case json.Number:
			i, err := n.Int64()
			return i, err == nil && i >= 0
		case float64:
			return int64(n), n >= 0 && n == float64(int64(n))
		case int64:
			return n, n >= 0
		case int:
			return int64(n), n >= 0
		}
		return nil, false
	case p.flag:
		b, ok := v.(bool)
		return b, ok
	case p.many != nil:
		var list []string
		switch l := v.(type) {
		case []string:
			list = slices.Clone(l)
		case []any:
			for _, m := range l {
				s, _ := m.(string)
				list = append(list, s)
			}
		}
		for _, s := range list {
			if !contains(p.many, s) {
				return nil, false
			}
		}
		slices.Sort(list)
		return slices.Compact(list), len(list) > 0
	}
	s, ok := v.(string)
	if p.list != nil {
		return s, ok && contains(p.list, s)
	}
	return s, ok && s != ""
}

// orders says which words of a property are stricter.
var orders = map[string][]string{"level": recordLevels, "mode": evidence}

// highest keeps of each property the strictest word or the highest number.
func highest(all []map[string]any) []map[string]any {
	m := map[string]any{}
	for _, props := range all {
		for k, v := range props {
			have, ok := m[k]
			switch {
			case !ok:
				m[k] = v
			case orders[k] != nil:
				if slices.Index(orders[k], v.(string)) > slices.Index(orders[k], have.(string)) {
					m[k] = v
				}
			case v.(int64) > have.(int64):
				m[k] = v
			}
		}
	}
	return []map[string]any{m}
}

// lowest keeps of each number the lowest.
func lowest(all []map[string]any) []map[string]any {
	m := map[string]any{}
	for _, props := range all {
		for k, v := range props {
			if have, ok := m[k]; !ok || v.(int64) < have.(int64) {
				m[k] = v
			}
		}
	}
	return []map[string]any{m}
}

// mergeApproval keeps what is hardest to meet: the most people, those roles that
// every rule names, the shortest times. Roles that no two rules share leave an
// empty list, which is nobody. Later others may decide only as far as no rule that
// says who does leaves them out.
func mergeApproval(all []map[string]any) []map[string]any {
	m := map[string]any{}
	for _, props := range all {
		for k, v := range props {
			have, ok := m[k]
			if !ok {
				m[k] = v
				continue
			}
			switch v := v.(type) {
			case bool:
				m[k] = v || have.(bool)
			case []string:
				m[k] = slices.DeleteFunc(slices.Clone(v), func(w string) bool { return !contains(have.([]string), w) })
			case int64:
				if k == "quorum" {
					m[k] = max(v, have.(int64))
				} else {
					m[k] = min(v, have.(int64))
				}
			}
		}
	}
	if to, ok := m["escalate_roles"].([]string); ok {
		for _, props := range all {
			if roles, ok := props["roles"].([]string); ok {
				later, _ := props["escalate_roles"].([]string)
				to = slices.DeleteFunc(slices.Clone(to), func(w string) bool { return !contains(roles, w) && !contains(later, w) })
			}
		}
		m["escalate_roles"] = to
	}
	return []map[string]any{m}
}

// union keeps each obligation once.
func union(all []map[string]any) []map[string]any {
	var kept []map[string]any
	seen := map[string]bool{}
	for _, props := range all {
		b, err := json.Marshal(props)
		if err != nil {
			panic("policy: a checked obligation has no JSON: " + err.Error())
		}
		if !seen[string(b)] {
			seen[string(b)] = true
			kept = append(kept, props)
		}
	}
	slices.SortFunc(kept, func(a, b map[string]any) int {
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		return strings.Compare(string(x), string(y))
	})
	return kept
}

// mergeRedact keeps for each class and direction the strictest mode, and puts
// classes of one mode and direction together.
func mergeRedact(all []map[string]any) []map[string]any {
	strictest := map[[2]string]int{} // class, direction → rank of the mode
	for _, props := range all {
		mode, _ := props["mode"].(string)
		rank := slices.Index(redactModes, mode)
		if rank < 0 {
			rank = slices.Index(redactModes, "redact")
		}
		to := directions[:2]
		if d, _ := props["direction"].(string); d != "" && d != "both" {
			to = []string{d}
		}
		for _, class := range props["classes"].([]string) {
			for _, d := range to {
				k := [2]string{class, d}
				if have, ok := strictest[k]; !ok || rank > have {
					strictest[k] = rank
				}
			}
		}
	}
	var merged []map[string]any
	for _, d := range directions[:2] {
		for rank, mode := range redactModes {
			var classes []string
			for k, have := range strictest {
				if k[1] == d && have == rank {
					classes = append(classes, k[0])
				}
			}
			if len(classes) > 0 {
				slices.Sort(classes)
				merged = append(merged, map[string]any{"classes": classes, "direction": d, "mode": mode})
			}
		}
	}
	return merged
}
