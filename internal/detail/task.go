package detail

import "estover.dev"

// Task is the type of details that confine a token to a task: these actions, of
// these resources, and nothing else. The gateway holds every call against it.
const Task = "estover_task"

// task is what the type is. It has no member that nothing enforces: how often a
// task may call, for one, would have to be counted.
var task = must(Spec{
	Name: Task, Title: "This task", Confines: true,
	Members: []Member{
		{Name: "locations", Narrows: Subset, Title: "Where"},
		{Name: "actions", Narrows: Subset, Title: "What"},
		{Name: "parameters", Narrows: Subsets, Limits: true, Title: "On what"},
		{Name: "purpose", Limits: true, Title: "What for"},
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
			"purpose": {"type": "string", "minLength": 1}
		}
	}`,
})

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
