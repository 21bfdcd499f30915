package apply

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// differences says which fields must change to come from one spec to another.
// Lists of things with names are compared by name, whatever their order.
func differences(before, after any) (fields []Field) {
	compare("", plainJSON(before), plainJSON(after), &fields)
	return fields
}

// plainJSON is a value as JSON has it.
func plainJSON(v any) (out any) {
	d := json.NewDecoder(bytes.NewReader(mustJSON(v)))
	d.UseNumber()
	if err := d.Decode(&out); err != nil {
		panic("apply: JSON that cannot be read again: " + err.Error())
	}
	return out
}

func mustJSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("apply: a spec that cannot be JSON: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func compare(field string, before, after any, out *[]Field) {
	if reflect.DeepEqual(before, after) {
		return
	}
	if b, a, ok := both(before, after); ok {
		keys := slices.Collect(maps.Keys(b))
		for k := range a {
			if _, ok := b[k]; !ok {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		for _, k := range keys {
			compare(join(field, k), b[k], a[k], out)
		}
		return
	}
	b, isList := before.([]any)
	a, isToo := after.([]any)
	if isList && isToo {
		bn, an := byName(b), byName(a)
		if bn != nil && an != nil {
			names := slices.Collect(maps.Keys(bn))
			for k := range an {
				if _, ok := bn[k]; !ok {
					names = append(names, k)
				}
			}
			slices.Sort(names)
			for _, k := range names {
				compare(fmt.Sprintf("%s[%s]", field, k), bn[k], an[k], out)
			}
			return
		}
	}
	*out = append(*out, Field{field, before, after})
}

func both(before, after any) (b, a map[string]any, ok bool) {
	b, isMap := before.(map[string]any)
	a, isToo := after.(map[string]any)
	return b, a, isMap && isToo
}

// byName is a list of things by their names, or nil if they have none or two
// have the same.
func byName(list []any) map[string]any {
	out := map[string]any{}
	for _, v := range list {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		name, ok := m["name"].(string)
		if _, twice := out[name]; !ok || twice {
			return nil
		}
		out[name] = v
	}
	return out
}
