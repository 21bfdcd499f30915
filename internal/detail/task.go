package detail

import (
	"sync"

	"estover.dev"
)

// Task is the type of details that confine a token to a task: these actions, of
// these resources, and nothing else. The gateway holds every call against it.
const Task = "estover_task"

// budgets are the members that say how much may be done of a task in all: with
// the token, and with all that is handed on of it.
var budgets = []string{"calls", "rows", "records", "bytes_out", "money"}

// task is the type. It is made when it is first asked for: most commands of the program
// have no details, and all of them start with it.
var task = sync.OnceValue(func() *Type { return must(taskSpec) })

// taskSpec is what the type is. It has no member that nothing enforces.
var taskSpec = Spec{
	Name: Task, Title: "This task", Confines: true,
	Members: []Member{
		{Name: "locations", Narrows: Subset, Title: "Where"},
		{Name: "actions", Narrows: Subset, Title: "What"},
		{Name: "parameters", Narrows: Subsets, Limits: true, Title: "On what"},
		{Name: "purpose", Limits: true, Title: "What for"},
		{Name: "calls", Narrows: AtMost, Limits: true, Title: "How many calls"},
		{Name: "rows", Narrows: AtMost, Limits: true, Title: "How many rows"},
		{Name: "records", Narrows: AtMost, Limits: true, Title: "How many records of personal data"},
		{Name: "bytes_out", Narrows: AtMost, Limits: true, Title: "How many bytes of answers"},
		{Name: "money", Narrows: AtMost, Limits: true, Title: "For how many millionths of money"},
	},
	Schema: `{
		"type": "object", "additionalProperties": false, "required": ["type", "locations", "actions"],
		"properties": {
			"type": {"const": "estover_task"},
			"locations": {"type": "array", "minItems": 1, "maxItems": 20, "uniqueItems": true, "items": {"type": "string", "minLength": 1}},
			"actions": {"type": "array", "minItems": 1, "maxItems": 100, "uniqueItems": true, "items": {"type": "string", "minLength": 1}},
			"parameters": {
				"type": "object", "minProperties": 1, "maxProperties": 20,
				"additionalProperties": {"type": "array", "minItems": 1, "maxItems": 100, "uniqueItems": true, "items": {"type": "string", "minLength": 1}}
			},
			"purpose": {"type": "string", "minLength": 1},
			"calls": {"type": "integer", "minimum": 1, "maximum": 1000000000000000},
			"rows": {"type": "integer", "minimum": 1, "maximum": 1000000000000000},
			"records": {"type": "integer", "minimum": 1, "maximum": 1000000000000000},
			"bytes_out": {"type": "integer", "minimum": 1, "maximum": 1000000000000000},
			"money": {"type": "integer", "minimum": 1, "maximum": 1000000000000000}
		}
	}`,
}

// Tasks are the tasks among the details, which were checked: nil if none of them
// confines.
func (l List) Tasks() (tasks []estover.Task) {
	for i := range l {
		if d := &l[i]; d.Type == Task {
			t := estover.Task{Locations: d.Locations(), Actions: texts(d.members["actions"])}
			t.Purpose, _ = d.members["purpose"].(string)
			if named, ok := d.members["parameters"].(map[string]any); ok {
				t.Parameters = make(map[string][]string, len(named))
				for name, values := range named {
					t.Parameters[name] = texts(values)
				}
			}
			for _, name := range budgets {
				n, ok := number(d.members[name])
				if !ok {
					continue
				}
				if t.Budgets == nil {
					t.Budgets = map[string]int64{}
				}
				t.Budgets[name] = n.Num().Int64() // the schema has bounded it, and it is whole
			}
			tasks = append(tasks, t)
		}
	}
	return tasks
}

// texts are the strings of a list.
func texts(v any) []string {
	list, _ := v.([]any)
	all := make([]string, 0, len(list))
	for _, one := range list {
		if s, ok := one.(string); ok {
			all = append(all, s)
		}
	}
	return all
}
