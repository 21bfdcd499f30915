// Package httpkey makes keys at an HTTP API whose calls are described as data:
// one that creates a key, one that lists keys, one that deletes a key, and one
// that takes a key, by which it is tried out.
//
// The key is made by the API, and comes once. So what makes it safe to repeat is
// the name, which is chosen here and sent along: a key is found again by its
// name in the list, and nothing is taken for gone that was not looked for there.
// A description without a list is refused for that reason. A key of the same
// name that is there already was never handed out; it is deleted, and another
// one made.
//
// # Placeholders
//
// {{name}} is the user's name and {{id}} what the API calls the key; {{until}},
// {{until_unix}} and {{ttl}} say when it is to end, as a time of RFC 3339, in
// seconds since 1970 and in seconds from now; {{cursor}} asks for the next page
// of a list; every other is a value of the role's template. They stand in paths
// and queries, where they are escaped, and in the strings of a body, where they
// cannot leave the string: a string that is nothing but {{until_unix}} or
// {{ttl}} becomes a number, and one that is nothing but {{json:NAME}} the JSON
// that the role gives for NAME. {{secret}} is the admin's secret, and {{key}} a
// key; they are for headers alone.
package httpkey

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// pages is how many pages of a list are read at most.
const pages = 200

// Kind is an HTTP API that has keys.
var Kind = engine.Kind{
	Name:    "httpkey",
	Title:   "Keys of an HTTP API",
	Address: "https://HOST[:PORT][/PATH]",
	MaxName: longest,

	Options:       options,
	Template:      template,
	Plain:         true,
	Lingers:       "What the API does already for the holder of a key goes on, and how soon it refuses a deleted key is its own affair.",
	CheckTemplate: func(t engine.Template) error { _, err := values(t); return err },
	Open:          open,
}

const longest = 64

var options = []engine.Field{
	{Name: "create", Help: "the call that makes a key: POST /keys", Required: true},
	{Name: "create_body", Help: `its body, in JSON or as a form, with {{name}} in it: {"name": "{{name}}", "expires": "{{until}}"}`, Required: true},
	{Name: "key", Help: "where the key is in the answer, a JSON pointer: /key", Required: true},
	{Name: "list", Help: "the call that finds keys by their names: GET /keys?name={{name}}&after={{cursor}}", Required: true},
	{Name: "items", Help: "where the keys are in its answer, a JSON pointer: /data; empty if the answer is the list"},
	{Name: "item_name", Help: "where its name is in a key of the list, a JSON pointer: /name", Required: true},
	{Name: "item_id", Help: "where its id is in a key of the list, a JSON pointer: /id", Required: true},
	{Name: "next", Help: "where the cursor of the next page is, a JSON pointer: /next; goes with {{cursor}} in list"},
	{Name: "delete", Help: "the call that deletes a key: DELETE /keys/{{id}}", Required: true},
	{Name: "delete_body", Help: "its body, if it has one"},
	{Name: "extend", Help: "the call that lets a key end later: PATCH /keys/{{id}}, if there is one"},
	{Name: "extend_body", Help: `its body: {"expires": "{{until}}"}`},
	{Name: "try", Help: "a call that any key may make, and that without a key is answered with 401 or 403: GET /me", Required: true},
	{Name: "use", Help: "the header that carries a key: Authorization: Bearer {{key}} (as it is)"},
	{Name: "auth", Help: "the header that carries the admin's secret: Authorization: Bearer {{secret}} (as it is); basic for its username and secret"},
	{Name: "headers", Help: "further headers of all calls, one a line: Accept: application/json"},
	{Name: "form", Help: "yes if bodies are forms: name={{name}}&role=reader"},
	engine.TLSField,
}

var template = []engine.Field{
	{Name: "values", Help: "NAME=VALUE for the placeholders {{NAME}} of the target's create_body", Many: true},
}

var (
	placeholder = regexp.MustCompile(`\{\{([A-Za-z_][A-Za-z0-9_:.-]*)\}\}`)
	headerName  = regexp.MustCompile(`^[A-Za-z0-9-]+$`)
	ours        = []string{"name", "id", "until", "until_unix", "ttl", "cursor", "secret", "key"}
)

// values are those of the role.
func values(t engine.Template) (map[string]string, error) {
	if err := engine.CheckKeys(t, template); err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, v := range t["values"] {
		name, value, is := strings.Cut(v, "=")
		if !is || !placeholder.MatchString("{{"+name+"}}") || strings.Contains(name, ":") {
			return nil, engine.ErrTemplate.With("A value is written NAME=VALUE, unlike %q.", v).At("values")
		}
		if slices.Contains(ours, name) {
			return nil, engine.ErrTemplate.With("The placeholder {{%s}} has a meaning of its own.", name).At("values")
		}
		all[name] = value
	}
	return all, nil
}

// A call is one of those that the options describe.
type call struct {
	method string
	path   string // after the address, with the query
	body   string
}

// A header is one that goes with a call.
type header struct{ name, value string }

type target struct {
	client *http.Client
	base   *url.URL
	admin  engine.Credential

	create, list, remove, extend, try  call
	key, items, itemName, itemID, next []string // JSON pointers
	auth, use                          header
	basic, form                        bool
	headers                            []header
}

func open(c engine.Config) (engine.Engine, error) {
	client, base, err := c.HTTP()
	if err != nil {
		return nil, err
	}
	o := c.Options
	t := &target{client: client, base: base, admin: c.Admin, form: o["form"] == "yes"}
	bad := func(option, format string, args ...any) error {
		return engine.ErrConfig.With(format, args...).At("options." + option)
	}
	for _, f := range options {
		if f.Required && o[f.Name] == "" {
			if strings.HasPrefix(f.Name, "item_") || f.Name == "list" {
				return nil, bad(f.Name, "Without a way to find keys by their names, nobody could delete one whose creation was cut off: the option %s is missing.", f.Name)
			}
			return nil, bad(f.Name, "The option %s is missing: %s.", f.Name, f.Help)
		}
	}
	for option, to := range map[string]*call{"create": &t.create, "list": &t.list, "delete": &t.remove, "extend": &t.extend, "try": &t.try} {
		if o[option] == "" {
			continue
		}
		to.method, to.path, _ = strings.Cut(o[option], " ")
		to.path = strings.TrimSpace(to.path)
		to.body = o[option+"_body"]
		if !slices.Contains([]string{"GET", "POST", "PUT", "PATCH", "DELETE"}, to.method) || !strings.HasPrefix(to.path, "/") || strings.ContainsAny(to.path, "# \t\r\n") {
			return nil, bad(option, "A call is written METHOD /PATH, such as GET /keys, unlike %q.", o[option])
		}
		if _, err := url.Parse(placeholder.ReplaceAllString(to.path, "x")); err != nil {
			return nil, bad(option, "%q is no path.", to.path)
		}
		for _, p := range placeholder.FindAllStringSubmatch(to.path+to.body, -1) {
			if p[1] == "secret" || p[1] == "key" {
				return nil, bad(option, "{{%s}} may stand in a header alone, since paths and bodies are logged.", p[1])
			}
			if option != "create" && !slices.Contains(ours, p[1]) {
				return nil, bad(option, "The placeholder {{%s}} is not known here; values of a role are for create.", p[1])
			}
		}
		if !t.form && to.body != "" && !json.Valid([]byte(to.body)) {
			return nil, bad(option+"_body", "The body is no JSON. Placeholders stand in strings: \"{{name}}\".")
		}
	}
	if !strings.Contains(t.create.path+t.create.body, "{{name}}") {
		return nil, bad("create_body", "The creation of a key has to send {{name}}, by which the key is found again.")
	}
	if !strings.Contains(t.remove.path+t.remove.body, "{{id}}") {
		return nil, bad("delete", "The deletion has to say which key: {{id}}.")
	}
	if strings.Contains(t.list.path, "{{cursor}}") != (o["next"] != "") {
		return nil, bad("next", "A list of several pages has both {{cursor}} in its path and the option next.")
	}
	for option, to := range map[string]*[]string{"key": &t.key, "items": &t.items, "item_name": &t.itemName, "item_id": &t.itemID, "next": &t.next} {
		if *to, err = pointer(o[option]); err != nil {
			return nil, bad(option, "%q is no JSON pointer, such as /data/0/id.", o[option])
		}
	}
	auth := cmp.Or(o["auth"], "Authorization: Bearer {{secret}}")
	if t.basic = auth == "basic"; !t.basic {
		if t.auth, err = parseHeader(auth, "{{secret}}"); err != nil {
			return nil, bad("auth", "%s", err)
		}
	}
	if t.use, err = parseHeader(cmp.Or(o["use"], "Authorization: Bearer {{key}}"), "{{key}}"); err != nil {
		return nil, bad("use", "%s", err)
	}
	for line := range strings.Lines(o["headers"]) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		h, err := parseHeader(strings.TrimSpace(line), "")
		if err != nil {
			return nil, bad("headers", "%s", err)
		}
		t.headers = append(t.headers, h)
	}
	return t, nil
}

func parseHeader(line, with string) (header, error) {
	name, value, is := strings.Cut(line, ":")
	if !is || !headerName.MatchString(name) || !strings.Contains(value, with) || strings.ContainsAny(value, "\r\n\x00") {
		if with != "" {
			return header{}, fmt.Errorf("a header is written NAME: VALUE with %s in it, unlike %q", with, line)
		}
		return header{}, fmt.Errorf("a header is written NAME: VALUE, unlike %q", line)
	}
	switch http.CanonicalHeaderKey(name) {
	case "Host", "Content-Length", "Transfer-Encoding", "Connection":
		return header{}, fmt.Errorf("the header %s is not to be set", name)
	}
	return header{name, strings.TrimSpace(value)}, nil
}

func (t *target) Close() error { t.client.CloseIdleConnections(); return nil }

// fill puts values into a template, each escaped.
func fill(template string, with map[string]string, escape func(string) string) (string, error) {
	var missing string
	filled := placeholder.ReplaceAllStringFunc(template, func(p string) string {
		value, known := with[p[2:len(p)-2]]
		if !known {
			missing = p
		}
		return escape(value)
	})
	if missing != "" {
		return "", engine.Refuse("there is no value for %s", missing)
	}
	return filled, nil
}

// url gives the address of a call.
func (t *target) url(c call, with map[string]string) (string, error) {
	path, query, asks := strings.Cut(c.path, "?")
	path, err := fill(path, with, url.PathEscape)
	if err != nil {
		return "", err
	}
	// A dot by itself would be another path.
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return "", engine.Refuse("%q cannot stand in a path", segment)
		}
	}
	if query, err = fill(query, with, url.QueryEscape); err != nil {
		return "", err
	}
	if asks {
		path += "?" + query
	}
	return t.base.String() + path, nil
}

// body gives the body of a call and its type.
func (t *target) body(c call, with map[string]string) ([]byte, string, error) {
	if c.body == "" {
		return nil, "", nil
	}
	if t.form {
		filled, err := fill(c.body, with, url.QueryEscape)
		return []byte(filled), "application/x-www-form-urlencoded", err
	}
	var document any
	decoder := json.NewDecoder(strings.NewReader(c.body))
	decoder.UseNumber()
	if err := decoder.Decode(&document); err != nil {
		return nil, "", err
	}
	document, err := fillJSON(document, with)
	if err != nil {
		return nil, "", err
	}
	encoded, err := json.Marshal(document)
	return encoded, "application/json", err
}

// fillJSON fills the strings of a document, which may become other values.
func fillJSON(document any, with map[string]string) (any, error) {
	var err error
	switch v := document.(type) {
	case map[string]any:
		for name := range v {
			if v[name], err = fillJSON(v[name], with); err != nil {
				return nil, err
			}
		}
	case []any:
		for i := range v {
			if v[i], err = fillJSON(v[i], with); err != nil {
				return nil, err
			}
		}
	case string:
		if name, whole := strings.CutPrefix(v, "{{json:"); whole && strings.HasSuffix(name, "}}") {
			value := with[strings.TrimSuffix(name, "}}")]
			if !json.Valid([]byte(value)) {
				return nil, engine.Refuse("the role's value for %s is no JSON", v)
			}
			return json.RawMessage(value), nil
		}
		filled, err := fill(v, with, func(s string) string { return s })
		if v == "{{until_unix}}" || v == "{{ttl}}" {
			return json.Number(filled), err
		}
		return filled, err
	}
	return document, nil
}

// An answer is what the API said.
type answer struct {
	status int
	date   string
	body   any // JSON, or nil
}

// do makes a call, as the admin or with a key. What does not succeed is an error,
// but for a status that the caller names.
func (t *target) do(ctx context.Context, c call, with map[string]string, key *estover.Secret, expected ...int) (answer, error) {
	address, err := t.url(c, with)
	if err != nil {
		return answer{}, err
	}
	body, kind, err := t.body(c, with)
	if err != nil {
		return answer{}, err
	}
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, c.method, address, bytes.NewReader(body))
	if err != nil {
		return answer{}, engine.Refuse("the call cannot be made")
	}
	for _, h := range t.headers {
		req.Header.Set(h.name, h.value)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	switch {
	case key != nil:
		req.Header.Set(t.use.name, strings.ReplaceAll(t.use.value, "{{key}}", string(key.Reveal())))
	case t.basic:
		pair := append([]byte(t.admin.User+":"), t.admin.Secret.Reveal()...)
		req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString(pair))
	default:
		req.Header.Set(t.auth.name, strings.ReplaceAll(t.auth.value, "{{secret}}", string(t.admin.Secret.Reveal())))
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return answer{}, engine.HTTPError(err, sent.Load() && c.method != http.MethodGet) // what only asked has begun nothing
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, date: resp.Header.Get("Date")}
	said := fmt.Sprintf("%s %s: %s", c.method, strings.SplitN(c.path, "?", 2)[0], resp.Status)
	switch {
	case slices.Contains(expected, a.status):
		return a, nil
	case a.status/100 == 2:
	case a.status == http.StatusTooManyRequests, a.status == http.StatusServiceUnavailable,
		key == nil && (a.status == http.StatusUnauthorized || a.status == http.StatusForbidden):
		return a, engine.Unreachable(errors.New(said))
	case a.status >= 500:
		return a, errors.New(said)
	case a.status/100 == 3:
		return a, engine.Refuse("%s, and a redirect is not followed", said)
	default:
		return a, engine.Refuse("%s", said)
	}
	// The body may hold a key, so an error does not repeat it.
	b, err := engine.Body(resp)
	if err != nil {
		return a, fmt.Errorf("%s: reading the answer: %w", said, err)
	}
	if len(bytes.TrimSpace(b)) > 0 {
		decoder := json.NewDecoder(bytes.NewReader(b))
		decoder.UseNumber()
		if err := decoder.Decode(&a.body); err != nil {
			a.body = nil
		} else if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
			a.body = nil
		}
	}
	return a, nil
}

func (t *target) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	with, err := values(o.Template)
	if err != nil {
		return nil, err
	}
	with["name"] = o.Name
	until(with, o.Until)
	if err := engine.CheckName(o.Name, longest); err != nil {
		return nil, err
	}
	// What has this name already was made by a creation that was cut off, and its
	// key is lost.
	if err := t.revoke(ctx, o.Name); err != nil {
		return nil, err
	}
	a, err := t.do(ctx, t.create, with, nil)
	if a.status == http.StatusServiceUnavailable { // of something in front of it, maybe, after it had made the key
		err = engine.Begun(err)
	}
	if err != nil {
		return nil, err
	}
	key := text(at(a.body, t.key))
	if key == "" {
		return nil, fmt.Errorf("the answer has no key at /%s", strings.Join(t.key, "/"))
	}
	return engine.Material{"username": estover.NewSecret([]byte(o.Name)), "key": estover.NewSecret([]byte(key))}, nil
}

// until adds the placeholders that say when a key is to end.
func until(with map[string]string, end time.Time) {
	if end.IsZero() {
		return
	}
	with["until"] = end.UTC().Format(time.RFC3339)
	with["until_unix"] = strconv.FormatInt(end.Unix(), 10)
	with["ttl"] = strconv.FormatInt(max(1, int64(time.Until(end).Seconds()+0.5)), 10)
}

func (t *target) Extend(ctx context.Context, name string, _ engine.Template, end time.Time) error {
	ids, err := t.find(ctx, name)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return engine.ErrNoUser
	}
	if t.extend.method == "" {
		if strings.Contains(t.create.path+t.create.body, "{{until") || strings.Contains(t.create.path+t.create.body, "{{ttl}}") {
			return fmt.Errorf("%w: no call that extends a key is described", engine.ErrUnsupported)
		}
		return nil
	}
	for _, id := range ids {
		with := map[string]string{"name": name, "id": id}
		until(with, end)
		if _, err := t.do(ctx, t.extend, with, nil); err != nil {
			return err
		}
	}
	return nil
}

func (t *target) Revoke(ctx context.Context, users []engine.Doomed) []error {
	errs := make([]error, len(users))
	for i, u := range users {
		if engine.CheckName(u.Name, longest) != nil {
			continue
		}
		err := t.revoke(ctx, u.Name)
		var refused *engine.Refused
		if err != nil && !errors.As(err, &refused) {
			err = engine.Unreachable(err)
		}
		errs[i] = err
	}
	return errs
}

// revoke deletes all keys of a name: there is one, unless two were at work.
func (t *target) revoke(ctx context.Context, name string) error {
	ids, err := t.find(ctx, name)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := t.do(ctx, t.remove, map[string]string{"name": name, "id": id}, nil, http.StatusNotFound, http.StatusGone); err != nil {
			return err
		}
	}
	return nil
}

// find gives the ids of the keys of exactly this name.
func (t *target) find(ctx context.Context, name string) (ids []string, err error) {
	err = t.each(ctx, name, func(n, id string) {
		if n == name {
			ids = append(ids, id)
		}
	})
	return ids, err
}

// each goes through the keys whose name is, or begins with, what is looked for.
func (t *target) each(ctx context.Context, look string, do func(name, id string)) error {
	cursor := ""
	for range pages {
		a, err := t.do(ctx, t.list, map[string]string{"name": look, "cursor": cursor}, nil)
		if err != nil {
			return err
		}
		found, there := at(a.body, t.items)
		items, is := found.([]any)
		if !is && (found != nil || !there) { // null is a list of nothing to some
			return engine.Refuse("the answer to %s has no list at /%s", t.list.method, strings.Join(t.items, "/"))
		}
		named := 0
		for _, item := range items {
			name, has := at(item, t.itemName)
			if has {
				named++
			}
			id := text(at(item, t.itemID))
			if id == "" {
				return engine.Refuse("a key in the list has no id at /%s", strings.Join(t.itemID, "/"))
			}
			do(text(name, has), id)
		}
		if named == 0 && len(items) > 0 {
			return engine.Refuse("no key in the list has a name at /%s", strings.Join(t.itemName, "/"))
		}
		if t.next == nil {
			return nil
		}
		next := text(at(a.body, t.next))
		if next == "" {
			return nil
		}
		if next == cursor {
			return engine.Refuse("the list gives the same page again")
		}
		cursor = next
	}
	return engine.Refuse("the list has more than %d pages", pages)
}

// List finds nothing at an API whose list takes a whole name alone.
func (t *target) List(ctx context.Context, prefix string) (names []string, err error) {
	err = t.each(ctx, prefix, func(name, _ string) {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	})
	return names, err
}

func (t *target) Verify(ctx context.Context, c engine.Credential) error {
	if c.Secret.Empty() || bytes.ContainsAny(c.Secret.Reveal(), "\r\n\x00") {
		return engine.ErrWrongSecret
	}
	a, err := t.do(ctx, t.try, map[string]string{"name": c.User}, &c.Secret, http.StatusUnauthorized, http.StatusForbidden)
	if err == nil && a.status/100 != 2 {
		return engine.ErrWrongSecret
	}
	return err
}

func (t *target) SetSecret(context.Context, string, estover.Secret, estover.Secret) error {
	return fmt.Errorf("%w: a key is made by the API", engine.ErrUnsupported)
}

func (t *target) Sessions(context.Context, string) ([]engine.Session, error) {
	return nil, engine.ErrUnsupported
}

func (t *target) EndSessions(context.Context, string) error { return engine.ErrUnsupported }

func (t *target) Now(ctx context.Context) (time.Time, error) {
	a, err := t.do(ctx, t.list, map[string]string{"name": "", "cursor": ""}, nil)
	if err != nil {
		return time.Time{}, err
	}
	now, err := http.ParseTime(a.date)
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: its answers have no date", engine.ErrUnsupported)
	}
	return now, nil
}

// pointer takes a JSON pointer apart (RFC 6901); nil for the empty one, which is
// the document.
func pointer(p string) ([]string, error) {
	if p == "" {
		return nil, nil
	}
	if !strings.HasPrefix(p, "/") {
		return nil, errors.New("no slash")
	}
	parts := strings.Split(p[1:], "/")
	for i := range parts {
		parts[i] = strings.ReplaceAll(strings.ReplaceAll(parts[i], "~1", "/"), "~0", "~")
	}
	return parts, nil
}

// at gives what a pointer leads to, and whether it leads anywhere.
func at(document any, pointer []string) (value any, there bool) {
	for _, part := range pointer {
		switch v := document.(type) {
		case map[string]any:
			if document, there = v[part]; !there {
				return nil, false
			}
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(v) {
				return nil, false
			}
			document = v[i]
		default:
			return nil, false
		}
	}
	return document, document != nil || len(pointer) > 0
}

// text is a string or a number as it stands, of what [at] gives; empty for
// everything else.
func text(value any, _ bool) string {
	switch v := value.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}
