package apply

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

var updateSchema = flag.Bool("update", false, "write schema.json afresh")

// TestSchema holds schema.json against the types that the parser reads into.
// `go test ./internal/apply -update` writes it afresh.
func TestSchema(t *testing.T) {
	var want bytes.Buffer
	e := json.NewEncoder(&want)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(documentSchema()); err != nil {
		t.Fatal(err)
	}
	if *updateSchema {
		if err := os.WriteFile("schema.json", want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(Schema, want.Bytes()) {
		t.Error("schema.json does not describe the types; run go test ./internal/apply -update")
	}
}

type schema = map[string]any

func documentSchema() schema {
	defs, conditions := schema{}, []any{}
	for _, kind := range order {
		defs[kind] = typeSchema(reflect.TypeOf(kinds[kind].make()).Elem(), true)
		name := schema{"type": "string", "pattern": "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"}
		switch path := "[!-\"$-.0-~]+(/[!-\"$-.0-~]+)*"; kind {
		case KindSecret:
			name = schema{"type": "string", "pattern": "^" + path + "$", "maxLength": 256}
		case KindLink: // or a folder's
			name = schema{"type": "string", "pattern": "^" + path + "/?$", "maxLength": 256}
		case KindSync:
			name = schema{"type": "string", "pattern": "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?/" + path + "$", "maxLength": 464}
		}
		conditions = append(conditions, schema{
			"if": schema{"properties": schema{"kind": schema{"const": kind}}, "required": []string{"kind"}},
			"then": schema{"properties": schema{
				"metadata": schema{"properties": schema{"name": name}},
				"spec":     schema{"$ref": "#/$defs/" + kind},
			}},
		})
	}
	return schema{
		"$schema":     "https://json-schema.org/draft/2020-12/schema",
		"$id":         "https://estover.dev/schema/apply/v1.json",
		"title":       "A document of estover apply",
		"description": "One thing that is to exist. A file holds any number of them, with --- between them.",
		"type":        "object", "additionalProperties": false, "required": []string{"apiVersion", "kind", "metadata", "spec"},
		"properties": schema{
			"apiVersion": schema{"const": Version},
			"kind":       schema{"enum": order},
			"metadata": schema{
				"type": "object", "additionalProperties": false, "required": []string{"name"},
				"properties": schema{"name": schema{"type": "string", "description": "What the thing is called among its kind, for good."}},
			},
			"spec": schema{"type": "object"},
		},
		"allOf": conditions,
		"$defs": defs,
	}
}

// typeSchema describes a type by its tags, which the management API uses too.
func typeSchema(t reflect.Type, top bool) schema {
	switch {
	case t == timeType:
		return schema{"type": "string", "pattern": `^\d{4}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2}))?$`}
	case t.Kind() == reflect.Pointer:
		return typeSchema(t.Elem(), top)
	case t.Kind() == reflect.Struct:
		properties, required := schema{}, []string{}
		members := membersOf(t, top)
		for _, name := range sortedNames(members) {
			m := members[name]
			properties[name] = fieldSchema(m.field)
			if m.required {
				required = append(required, name)
			}
		}
		out := schema{"type": "object", "additionalProperties": false, "properties": properties}
		if len(required) > 0 {
			out["required"] = required
		}
		return out
	case t.Kind() == reflect.Slice:
		return schema{"type": "array", "items": typeSchema(t.Elem(), false)}
	case t.Kind() == reflect.Map:
		return schema{"type": "object", "additionalProperties": typeSchema(t.Elem(), false)}
	case t.Kind() == reflect.String:
		return schema{"type": "string"}
	case t.Kind() == reflect.Bool:
		return schema{"type": "boolean"}
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64:
		return schema{"type": "integer"}
	}
	panic("no field of a spec is a " + t.String())
}

func fieldSchema(f reflect.StructField) schema {
	s := typeSchema(f.Type, false)
	if d := f.Tag.Get("doc"); d != "" {
		s["description"] = d
	}
	words := s
	if f.Type.Kind() == reflect.Slice {
		words = s["items"].(schema)
	}
	if e := f.Tag.Get("enum"); e != "" {
		words["enum"] = strings.Split(e, ",")
	}
	for _, name := range []string{"pattern", "default", "format"} {
		if v := f.Tag.Get(name); v != "" {
			s[name] = v
		}
	}
	for _, name := range []string{"minItems", "minLength", "maxLength", "minimum", "maximum"} {
		if v := f.Tag.Get(name); v != "" {
			n, err := strconv.Atoi(v)
			if err != nil {
				panic(f.Name + ": " + err.Error())
			}
			s[name] = n
		}
	}
	return s
}

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("apply.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("apply.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON is a node as an editor sees it: times are texts.
func asJSON(n *yaml.Node) any {
	switch n.Kind {
	case yaml.DocumentNode:
		return asJSON(n.Content[0])
	case yaml.MappingNode:
		out := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			out[n.Content[i].Value] = asJSON(n.Content[i+1])
		}
		return out
	case yaml.SequenceNode:
		out := []any{}
		for _, c := range n.Content {
			out = append(out, asJSON(c))
		}
		return out
	}
	switch n.ShortTag() {
	case "!!bool":
		return n.Value == "true"
	case "!!int":
		i, _ := strconv.ParseInt(n.Value, 0, 64)
		return json.Number(strconv.FormatInt(i, 10))
	case "!!null":
		return nil
	}
	return n.Value
}

// valid reports what the schema says of each document of a text.
func valid(s *jsonschema.Schema, text string) error {
	for d := yaml.NewDecoder(strings.NewReader(text)); ; {
		var n yaml.Node
		if err := d.Decode(&n); err != nil {
			return nil
		}
		if err := s.Validate(asJSON(&n)); err != nil {
			return fmt.Errorf("line %d: %w", n.Line, err)
		}
	}
}

var fence = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")

// reference is docs/reference/apply.md, and the documents in it.
func reference(t testing.TB) (text string, examples []string) {
	t.Helper()
	b, err := os.ReadFile("../../docs/reference/apply.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range fence.FindAllStringSubmatch(string(b), -1) {
		examples = append(examples, m[1])
	}
	return string(b), examples
}

// TestReference: what the reference shows is accepted by the schema and by the
// parser, and it tells of every kind and every field.
func TestReference(t *testing.T) {
	s := compileSchema(t)
	text, examples := reference(t)
	shown := map[string]bool{}
	var sources []Source
	for i, e := range examples {
		if err := valid(s, e); err != nil {
			t.Errorf("example %d: %v\n%s", i, err, e)
		}
		sources = append(sources, Source{fmt.Sprintf("example-%02d.yaml", i), e})
	}
	sources = append(sources, Source{"policies/access.rego", "package tenant.access\n"})
	docs, err := Parse(sources)
	if err != nil {
		t.Errorf("the parser says of the examples:\n%v", err)
	}
	for _, d := range docs {
		shown[d.Kind] = true
	}
	for _, kind := range order {
		if !shown[kind] {
			t.Errorf("there is no example of a %s", kind)
		}
		section := text[strings.Index(text, "\n## "+kind+"\n")+1:]
		if i := strings.Index(section[3:], "\n## "); i > 0 {
			section = section[:i+3]
		}
		if !strings.HasPrefix(section, "## "+kind) {
			t.Errorf("there is no section %s", kind)
			continue
		}
		var look func(prefix string, ty reflect.Type, top bool)
		look = func(prefix string, ty reflect.Type, top bool) {
			for name, m := range membersOf(ty, top) {
				row := "\n| `" + prefix + name + "` |"
				if !strings.Contains(section, row) {
					t.Errorf("the section %s has no row %s", kind, strings.TrimSpace(row))
				}
				inner := m.field.Type
				suffix := "."
				switch inner.Kind() {
				case reflect.Slice:
					inner, suffix = inner.Elem(), "[]."
				case reflect.Pointer:
					inner = inner.Elem()
				}
				if inner.Kind() == reflect.Struct && inner != timeType {
					look(prefix+name+suffix, inner, false)
				}
			}
		}
		look("", reflect.TypeOf(kinds[kind].make()).Elem(), true)
	}
}

// TestSchemaRefuses: an editor finds the usual mistakes.
func TestSchemaRefuses(t *testing.T) {
	s := compileSchema(t)
	_, examples := reference(t)
	text := strings.Join(examples, "---\n")
	if err := valid(s, text); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{
		{"kind: Agent", "kind: Agnet"},
		{"apiVersion: estover.dev/v1", "apiVersion: estover.dev/v2"},
		{"clearance: confidential", "clearance: secret"},
		{"base_url:", "baseUrl:"},
		{"destinations:", "value: hunter2\n  destinations:"},
		{"name: invoices-bot", "name: Invoices Bot"},
		{"purposes: [invoicing", "purposes: [1, invoicing"},
	} {
		if !strings.Contains(text, c[0]) {
			t.Errorf("no example has %q", c[0])
		} else if err := valid(s, strings.Replace(text, c[0], c[1], 1)); err == nil {
			t.Errorf("with %q in the place of %q the schema accepts it", c[1], c[0])
		}
	}
}
