package vault

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/mount"
)

// A Request is one of a client of Vault, read once.
type Request struct {
	Caller    estover.Caller
	Tenant    estover.TenantID
	Namespace string // as it was named, with a slash behind; "" if it was not
	Token     *Token // nil on a route that needs none
	Presented string // the token itself, for routes that take it for something else
	ACL       *mount.ACL
	Op        Operation
	Path      string       // below /v1/, in its one spelling
	Mount     *mount.Mount // that the path lies in
	Rest      string       // of the path, below the mount
	Wrap      time.Duration

	// HTTP is for the connection and the head of the request. Its body has been
	// read.
	HTTP *http.Request

	door     *Door
	chosen   estover.TenantID // by the request itself; "" if it names none
	route    *Route
	id       string
	params   map[string]string
	fields   map[string]json.RawMessage
	whole    json.RawMessage // the object as it was sent
	read     map[string]bool // names that a handler knows
	every    bool            // a handler took the whole object
	warnings []string
	noWrap   bool
	raw      []byte // of a route that takes bytes
}

// Body is what was sent to a route that takes bytes.
func (q *Request) Body() []byte { return q.raw }

// Param is what a name in the route's path stands for.
func (q *Request) Param(name string) string { return q.params[name] }

// Warn adds a sentence to the warnings of the answer.
func (q *Request) Warn(format string, args ...any) {
	q.warnings = append(q.warnings, fmt.Sprintf(format, args...))
}

// Unwrapped says that the answer is one that is not wrapped, whatever the client
// asked for.
func (q *Request) Unwrapped() { q.noWrap = true }

// Has reports whether the request has a field, be it null.
func (q *Request) Has(name string) bool { _, ok := q.fields[name]; return ok }

// Data is the whole object of the request, every number as it was written. Its
// names are data, and none is unknown.
func (q *Request) Data() json.RawMessage {
	q.every = true
	if q.whole == nil {
		return json.RawMessage("{}")
	}
	return q.whole
}

// given are the fields as policies of the door look at them.
func (q *Request) given() map[string]json.RawMessage { return q.fields }

// parse reads a body (V4).
func (q *Request) parse(b []byte, form bool) error {
	b = bytes.TrimSpace(b)
	switch {
	case len(b) == 0 || string(b) == "null":
		return nil
	case form && b[0] != '{' && b[0] != '[':
		values, err := url.ParseQuery(string(b))
		if err != nil {
			return refuse(http.StatusBadRequest, "error parsing form data")
		}
		return q.values(values)
	case b[0] != '{':
		return refuse(http.StatusBadRequest, "failed to parse JSON input: the body is not an object")
	case !utf8.Valid(b):
		return refuse(http.StatusBadRequest, "failed to parse JSON input: the body is not UTF-8")
	}
	fields, err := members(b)
	if err != nil {
		// What is wrong is told without what stands there, which may be a secret.
		return refuse(http.StatusBadRequest, "failed to parse JSON input: the body is not one JSON object in which each name stands once")
	}
	q.fields, q.whole = fields, b
	return nil
}

// members reads an object into its members, each as it was written.
func members(b []byte) (map[string]json.RawMessage, error) {
	d := jsontext.NewDecoder(bytes.NewReader(b))
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	fields := map[string]json.RawMessage{}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		v, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		fields[key] = json.RawMessage(bytes.Clone(v))
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return nil, fmt.Errorf("something follows the object")
	}
	return fields, nil
}

// query reads the parameters of the URL as fields (V5).
func (q *Request) query() error {
	values, err := url.ParseQuery(q.HTTP.URL.RawQuery)
	if err != nil {
		return refuse(http.StatusBadRequest, "error parsing the query")
	}
	for _, name := range []string{"list", "help", "after", "limit"} {
		if q.read == nil {
			q.read = map[string]bool{}
		}
		q.read[name] = true
	}
	delete(values, "list")
	delete(values, "help")
	return q.values(values)
}

func (q *Request) values(values url.Values) error {
	for name, list := range values {
		for _, v := range append([]string{name}, list...) {
			if !utf8.ValidString(v) {
				return refuse(http.StatusBadRequest, "the request is not UTF-8")
			}
		}
		var b []byte
		if len(list) == 1 {
			b, _ = jsontext.AppendQuote(nil, list[0])
		} else {
			b, _ = json.Marshal(list)
		}
		if q.fields == nil {
			q.fields = map[string]json.RawMessage{}
		}
		q.fields[name] = b
	}
	if len(q.fields) > 0 {
		q.whole, _ = json.Marshal(q.fields)
	}
	return nil
}

// unknown names the fields that no handler knows (V6).
func (q *Request) unknown() string {
	if q.every || q.read == nil {
		return ""
	}
	var names []string
	for name := range q.fields {
		if !q.read[name] && q.params[name] == "" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return fmt.Sprintf("Endpoint ignored these unrecognized parameters: [%s]", strings.Join(names, " "))
}

// Read reads the fields of the request into a struct, by the names of their json
// tags, as weakly as clients write them (V5): a scalar may be a string, a
// duration seconds or text, a list one word or several between commas, a map of
// strings an object or a list of k=v. What is absent or null is left as it is; a
// pointer tells whether it was there. The types are string, bool, int, int64,
// float64, time.Duration, []string, []int64, map[string]string, json.RawMessage,
// [estover.Secret] and pointers to them; anything else is read as JSON is.
func (q *Request) Read(into any) error {
	if q.read == nil {
		q.read = map[string]bool{}
	}
	return q.fill(reflect.ValueOf(into).Elem(), q.fields, true)
}

// inside reads the members of a field that is an object.
func (q *Request) inside(name string, into any) error {
	raw, ok := q.fields[name]
	if !ok || string(raw) == "null" {
		return nil
	}
	if len(raw) == 0 || raw[0] != '{' {
		return refuse(http.StatusBadRequest, "Field validation failed: error converting input for field %q: expected an object", name)
	}
	fields, err := members(raw)
	if err != nil {
		return refuse(http.StatusBadRequest, "Field validation failed: error converting input for field %q", name)
	}
	return q.fill(reflect.ValueOf(into).Elem(), fields, false)
}

func (q *Request) fill(v reflect.Value, fields map[string]json.RawMessage, note bool) error {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			if err := q.fill(v.Field(i), fields, note); err != nil {
				return err
			}
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		if note {
			q.read[name] = true
		}
		raw, ok := fields[name]
		if !ok || string(raw) == "null" {
			continue
		}
		if err := weak(v.Field(i), raw); err != nil {
			return refuse(http.StatusBadRequest, "Field validation failed: error converting input for field %q: %s", name, err)
		}
	}
	return nil
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	ttlType      = reflect.TypeFor[ttlSeconds]()
	secretType   = reflect.TypeFor[estover.Secret]()
	rawType      = reflect.TypeFor[json.RawMessage]()
)

// A ttlSeconds is a duration that is kept and shown as whole seconds.
type ttlSeconds int64

// weakField reads one field by itself.
func weakField(raw json.RawMessage, into any) error { return weak(reflect.ValueOf(into).Elem(), raw) }

// weak reads one value. What it says is wrong never quotes the value.
func weak(v reflect.Value, raw json.RawMessage) error {
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		if err := weak(p.Elem(), raw); err != nil {
			return err
		}
		v.Set(p)
		return nil
	}
	switch v.Type() {
	case rawType:
		v.Set(reflect.ValueOf(json.RawMessage(bytes.Clone(raw))))
		return nil
	case secretType:
		s, ok := scalar(raw)
		if !ok {
			return fmt.Errorf("expected a string")
		}
		v.Set(reflect.ValueOf(estover.NewSecret([]byte(s))))
		return nil
	case durationType:
		s, ok := scalar(raw)
		d, valid := mount.Duration(s)
		if !ok || !valid {
			return fmt.Errorf("expected a duration, as 90, \"90s\", \"1h30m\" or \"7d\"")
		}
		v.SetInt(int64(d))
		return nil
	}
	if v.Type() == ttlType {
		var d time.Duration
		err := weak(reflect.ValueOf(&d).Elem(), raw)
		v.SetInt(seconds(d))
		return err
	}
	switch v.Kind() {
	case reflect.String:
		s, ok := scalar(raw)
		if !ok {
			return fmt.Errorf("expected a string")
		}
		v.SetString(s)
	case reflect.Bool:
		s, ok := scalar(raw)
		b, err := strconv.ParseBool(s)
		if !ok || err != nil {
			return fmt.Errorf("expected true or false")
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		s, ok := scalar(raw)
		if s == "" {
			s = "0"
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			if f, float := strconv.ParseFloat(s, 64); float == nil && f == float64(int64(f)) && f > -1<<53 && f < 1<<53 {
				n, err = int64(f), nil
			}
		}
		if !ok || err != nil {
			return fmt.Errorf("expected a whole number")
		}
		v.SetInt(n)
	case reflect.Float64:
		s, ok := scalar(raw)
		f, err := strconv.ParseFloat(s, 64)
		if !ok || err != nil {
			return fmt.Errorf("expected a number")
		}
		v.SetFloat(f)
	case reflect.Slice:
		return weakList(v, raw)
	case reflect.Map:
		if v.Type().Elem().Kind() == reflect.String {
			m, err := weakMap(raw)
			if err != nil {
				return err
			}
			v.Set(reflect.ValueOf(m).Convert(v.Type()))
			return nil
		}
		fallthrough
	default:
		if json.Unmarshal(raw, v.Addr().Interface()) != nil {
			return fmt.Errorf("expected another form")
		}
	}
	return nil
}

// scalar is a value as text: a string without its quotes, a number or a boolean
// as it is written.
func scalar(raw json.RawMessage) (string, bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return "", false
	}
	switch raw[0] {
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err == nil
	case '{', '[', 'n':
		return "", false
	}
	return string(raw), true
}

// weakList reads an array, or words between commas.
func weakList(v reflect.Value, raw json.RawMessage) error {
	var items []json.RawMessage
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '[' {
		if json.Unmarshal(raw, &items) != nil {
			return fmt.Errorf("expected a list")
		}
	} else {
		s, ok := scalar(raw)
		if !ok {
			return fmt.Errorf("expected a list")
		}
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part != "" {
				b, _ := json.Marshal(part)
				items = append(items, b)
			}
		}
	}
	list := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, item := range items {
		if err := weak(list.Index(i), item); err != nil {
			return err
		}
	}
	v.Set(list)
	return nil
}

// weakMap reads an object whose values are scalars, or a list of k=v.
func weakMap(raw json.RawMessage) (map[string]string, error) {
	m := map[string]string{}
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '{' {
		fields, err := members(raw)
		if err != nil {
			return nil, fmt.Errorf("expected a map of strings")
		}
		for k, v := range fields {
			s, ok := scalar(v)
			if !ok {
				return nil, fmt.Errorf("expected a map of strings")
			}
			m[k] = s
		}
		return m, nil
	}
	var pairs []string
	if err := weakList(reflect.ValueOf(&pairs).Elem(), raw); err != nil {
		return nil, fmt.Errorf("expected a map of strings")
	}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, fmt.Errorf("expected a map of strings, or a list of k=v")
		}
		m[k] = v
	}
	return m, nil
}
