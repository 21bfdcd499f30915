package audit

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"estover.dev"
)

// An Appender writes itself as JSON at the end of b, as encoding/json would.
// What stands in the detail of every call and every token is one: to find out
// by reflection how to write it took longer than to seal and store the event.
type Appender interface{ AppendJSON(b []byte) []byte }

// appendPayload writes what is sealed: an event, and the salt as a member of
// it, byte for byte as encoding/json would.
func appendPayload(b []byte, e *Event, salt []byte) ([]byte, error) {
	b = append(b, '{')
	b = appendHead(b, e)
	for _, m := range [...]struct{ name, value string }{
		{"actor", string(e.Actor)}, {"target", e.Target}, {"session", e.Session}, {"request", e.Request},
	} {
		if m.value != "" || m.name == "actor" {
			b = AppendMember(b, ',', m.name, m.value)
		}
	}
	switch {
	case len(e.Detail) > 0:
		var err error
		b = append(b, `,"detail":`...)
		if b, err = appendMap(b, e.Detail); err != nil {
			return nil, err
		}
		b = append(append(b[:len(b)-1], e.Members...), '}')
	case len(e.Members) > 0:
		b = append(append(append(b, `,"detail":{`...), e.Members[1:]...), '}')
	}
	b = append(b, `,"salt":"`...)
	b = base64.StdEncoding.AppendEncode(b, salt)
	return append(b, '"', '}'), nil
}

// appendHead writes the members that a leaf has as well.
func appendHead(b []byte, e *Event) []byte {
	b = AppendMember(b, 0, "id", e.ID)
	b = append(b, `,"at":"`...)
	b = e.At.AppendFormat(b, time.RFC3339Nano)
	b = AppendMember(append(b, '"'), ',', "action", e.Action)
	return AppendMember(b, ',', "outcome", string(e.Outcome))
}

// appendLeaf writes a [leafOf].
func appendLeaf(b []byte, e *Event, sum []byte) []byte {
	b = append(b, `{"v":1,`...)
	b = appendHead(b, e)
	b = append(b, `,"commit":"`...)
	b = base64.StdEncoding.AppendEncode(b, sum)
	return append(b, '"', '}')
}

func appendMap(b []byte, m map[string]any) ([]byte, error) {
	var err error
	sep := byte('{')
	var room [8]string // more is told of hardly anything
	for _, name := range sorted(room[:0], m) {
		b = append(AppendString(append(b, sep), name), ':')
		if b, err = appendValue(b, m[name]); err != nil {
			return nil, err
		}
		sep = ','
	}
	if sep == '{' {
		b = append(b, sep)
	}
	return append(b, '}'), nil
}

// sorted appends the keys of m to names, of which there are none, and sorts them.
func sorted(names []string, m map[string]any) []string {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func appendValue(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case string:
		return AppendString(b, v), nil
	case estover.Subject:
		return AppendString(b, string(v)), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case int:
		return strconv.AppendInt(b, int64(v), 10), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case []string:
		return AppendStrings(b, v), nil
	case map[string]any:
		if v != nil {
			return appendMap(b, v)
		}
	case Appender:
		return v.AppendJSON(b), nil
	}
	text, err := json.Marshal(v)
	return append(b, text...), err
}

// AppendMember writes a member of an object whose value is a string, after a
// separator, if that is not 0.
func AppendMember(b []byte, sep byte, name, value string) []byte {
	if sep != 0 {
		b = append(b, sep)
	}
	b = append(b, '"')
	b = append(b, name...)
	return AppendString(append(b, '"', ':'), value)
}

// plain are the bytes that stand in a string of JSON as they are.
var plain = func() (t [256]bool) {
	for c := byte(0x20); c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

// AppendString writes s as JSON, as encoding/json would.
func AppendString(b []byte, s string) []byte {
	begin := len(b)
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if plain[c] {
			continue // one look for each byte: a call writes some two thousand of them
		}
		if c != '"' && c != '\\' {
			text, err := json.Marshal(s)
			if err != nil {
				panic("audit: a string has no JSON: " + err.Error())
			}
			return append(b[:begin], text...)
		}
		b = append(append(b, s[from:i]...), '\\')
		from = i
	}
	return append(append(b, s[from:]...), '"')
}

// AppendStrings writes a list of strings as JSON.
func AppendStrings(b []byte, list []string) []byte {
	if list == nil {
		return append(b, "null"...)
	}
	sep := byte('[')
	for _, s := range list {
		b = AppendString(append(b, sep), s)
		sep = ','
	}
	if sep == '[' {
		b = append(b, sep)
	}
	return append(b, ']')
}
