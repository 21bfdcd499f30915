package authzen

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"estover.dev/internal/guard"
)

// An obligation is what a PEP has to do along with what is allowed (AuthZEN
// Profile for Obligations, section 3).
type obligation struct {
	ID         string         `json:"id"`
	Type       string         `json:"type"`
	Properties map[string]any `json:"properties"`
}

// custom is the type of those that the profile has no name for. Ours say which
// they are by vendor and action (section 5.4).
const custom = "custom"

// supported are the types that we give (section 6).
var supported = []string{"step-up", "notification", "session_termination", custom}

// owed are the obligations of an allowed call that are left to the PEP, and
// whether it can carry them out as far as it has said anything about that
// (section 7). We do not hope: what it says it cannot do is a no.
//
// Evidence and receipts are ours: the answer is on record before it is given.
// Recording is ours as far as it is of heads; bodies go by the PEP alone.
func (d *Door) owed(q *question, f *found, duties []guard.Obligation) (list []obligation, met bool) {
	met = true
	full := f.resource.Record == "full"
	add := func(kind string, properties map[string]any) {
		if f.Obligations != nil && !slices.Contains(f.Obligations, kind) {
			met = false
		}
		list = append(list, obligation{ID: fmt.Sprintf("obl-%d", len(list)+1), Type: kind, Properties: properties})
	}
	for _, o := range duties {
		p := maps.Clone(o.Properties)
		if p == nil {
			p = map[string]any{}
		}
		text := func(name string) string { s, _ := p[name].(string); return s }
		switch o.Type {
		case "evidence", "receipt":
			continue
		case "record":
			full = full || text("level") == "full"
			continue
		case "step-up":
			if class := text("acr_value"); class != "" && p["max_age"] == nil {
				named := map[string]any{"acr_value": class}
				if methods := strings.Fields(text("amr_values")); len(methods) > 0 {
					named["amr_values"] = methods
				}
				add(o.Type, named)
				continue
			}
		case "notification":
			if text("body") == "" {
				p["body"] = fmt.Sprintf("%s on %s by the agent %s", q.Action.Name, f.resource.Name, f.agent)
			}
			add(o.Type, p)
			continue
		case "session_termination":
			if text("subject") == "" {
				p["subject"] = f.agent
			}
			add(o.Type, p)
			continue
		}
		p["vendor"], p["action"] = "estover", o.Type
		add(custom, p)
	}
	if full {
		add(custom, map[string]any{"vendor": "estover", "action": "record", "level": "full"})
	}
	return list, met
}
