// Package document is the approval document: the text that a person is shown who
// is asked to approve something, and the bytes that they sign.
//
//	[Document] ──[Document.Bytes]──▶ text ──▶ shown, as it is
//	                                  ├──[Digest]──▶ the challenge of a passkey
//	                                  ├──▶ ssh-keygen -Y sign -n estover-approval
//	                                  └──[Fingerprint]──▶ eight words, to compare by eye
//
// It is UTF-8, one `key: value` a line, in one order, and there is one way to
// write it: [Parse] takes what [Document.Bytes] has written and nothing else. So
// nobody has to bring a document into a canonical form before it is hashed, and
// two programs cannot disagree about what was signed.
//
//	format: estover-approval-v1
//	tenant: default
//	request: apr_…
//	kind: access
//	requester: agent:agt_…
//	agent: agt_…
//	agent-name: invoices-bot
//	purpose: month-end
//	item: 1
//	resource: res_…
//	resource-name: ledger
//	class: internal
//	action: invoices.read
//	parameter: id=4711
//	arguments-digest: 9f86d081…
//	policy: starter@3
//	approvals: 2
//	signed: yes
//	seconds: 3600
//	not-after: 2026-11-27T19:00:00Z
//	uses: 1
//	nonce: …
//
// A value has no line break and nothing else that cannot be seen or that changes
// the order of what is seen: such characters are written as `\u{202e}`, so that
// they show. Arguments that look like secrets are masked in the text, and bound
// by the digest over all of them.
package document

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/attest"
)

// Format is the value of the first line.
const Format = attest.ApprovalFormat

// Bounds of a document.
const (
	MaxSize   = 32 << 10 // bytes
	maxValue  = 2048     // bytes of a value, as it is written
	maxItems  = 50
	maxLines  = 1000
	maxNumber = 1 << 53
)

// yes is the value of a line that says that something is so.
const yes = "yes"

// ErrInvalid is returned for what is no approval document, or cannot be one.
var ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "approval_document_invalid", Detail: "This is not an approval document."}

// A Document says exactly what is approved. Empty fields have no line.
type Document struct {
	Tenant    estover.TenantID
	Request   string // apr_…
	Kind      string // access, lift, restore, …
	Requester estover.Subject
	Agent     string            // for which it is; an id
	AgentName string            // what people call it
	Chain     []estover.Subject // on whose authority it acts, the nearest first
	Session   string            // the session that it is for
	Purpose   string
	Reason    string

	Items []Item // what may be done, for the kind access

	Target    string            // what it is done to, for other kinds
	Arguments map[string]string // how it is done, for other kinds

	Effect  string // the digest of what it leads to, in hexadecimal, where that is known
	Budgets []Budget

	Revision  string // the policy that asked for the approval
	Approvals int64  // how many people must approve it; 0 is not said
	Signed    bool   // each of them with a signature
	Seconds   int64  // how long it lasts from the approval on, at most; 0 until NotAfter
	NotBefore time.Time
	NotAfter  time.Time // when it is over, however late it was approved
	Uses      int64     // how often it serves; 0 for as often as it is needed in its time
	Nonce     string

	// ArgumentsDigest is of the arguments and the parameters of all items, before
	// anything was masked ([ArgumentsDigest]). [Document.Bytes] works it out if it
	// is left out.
	ArgumentsDigest string
}

// An Item is actions of one resource.
type Item struct {
	Resource   string // an id
	Name       string // what people call it
	Class      estover.Class
	Actions    []string
	Parameters map[string][]string // what the parameters of an action's path may be
}

// A Budget is how much of something may be used up.
type Budget struct {
	Name string // calls, rows, records, bytes_out, money, seconds, fan_out
	Most int64
}

// Masked is what stands in the place of a value that looks like a secret.
const Masked = "‹masked›"

// secretive are parts of names whose values are not shown.
var secretive = []string{"secret", "password", "passwd", "token", "api_key", "apikey", "private_key", "authorization", "credential"}

// mask is a value as it is shown.
func mask(name, value string) string {
	name = strings.ToLower(strings.ReplaceAll(name, "-", "_"))
	if value != Masked && slices.ContainsFunc(secretive, func(s string) bool { return strings.Contains(name, s) }) {
		return Masked
	}
	return value
}

// ArgumentsDigest is the SHA-256 over arguments and the items' parameters as
// they are, and a nonce, in hexadecimal; "" if there are none. Each text has its
// length before it, and each list its number of entries.
func ArgumentsDigest(nonce string, arguments map[string]string, items []Item) string {
	n := len(arguments)
	for _, it := range items {
		n += len(it.Parameters)
	}
	if n == 0 {
		return ""
	}
	h := sha256.New()
	number := func(n int) { _ = binary.Write(h, binary.BigEndian, uint64(n)) } // a hash takes everything
	text := func(s string) { number(len(s)); h.Write([]byte(s)) }
	text(nonce)
	number(len(arguments))
	for _, name := range slices.Sorted(maps.Keys(arguments)) {
		text(name)
		text(arguments[name])
	}
	number(len(items))
	for _, it := range items {
		text(it.Resource)
		number(len(it.Parameters))
		for _, name := range slices.Sorted(maps.Keys(it.Parameters)) {
			text(name)
			values := sorted(it.Parameters[name])
			number(len(values))
			for _, v := range values {
				text(v)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// sorted is a list in order, each entry once.
func sorted(list []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}

// Masked is the document as its text tells it: with secrets masked, lists in
// order, times in UTC to the second that includes them, the digest worked out.
func (d Document) Masked() Document {
	if d.ArgumentsDigest == "" {
		d.ArgumentsDigest = ArgumentsDigest(d.Nonce, d.Arguments, d.Items)
	}
	if len(d.Arguments) > 0 {
		shown := make(map[string]string, len(d.Arguments))
		for name, v := range d.Arguments {
			shown[name] = mask(name, v)
		}
		d.Arguments = shown
	} else {
		d.Arguments = nil
	}
	items := make([]Item, 0, len(d.Items))
	for _, it := range d.Items {
		it.Actions = sorted(it.Actions)
		var shown map[string][]string
		for name, values := range it.Parameters {
			if shown == nil {
				shown = make(map[string][]string, len(it.Parameters))
			}
			list := make([]string, 0, len(values))
			for _, v := range values {
				list = append(list, mask(name, v))
			}
			shown[name] = sorted(list)
		}
		it.Parameters = shown
		items = append(items, it)
	}
	d.Items = nil
	if len(items) > 0 {
		d.Items = items
	}
	d.Chain = append([]estover.Subject(nil), d.Chain...)
	var budgets []Budget
	for _, b := range d.Budgets {
		if b.Most != 0 {
			budgets = append(budgets, b)
		}
	}
	d.Budgets = budgets
	d.NotBefore, d.NotAfter = second(d.NotBefore), ceiling(d.NotAfter)
	return d
}

func ceiling(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return second(t.Add(time.Second - time.Nanosecond))
}

func second(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Second)
}

// Bytes is the document's text. It may be one that [Parse] refuses, when a field
// has what no document may have; [New] says so.
func (d Document) Bytes() []byte {
	d = d.Masked()
	var w writer
	w.line("format", Format)
	w.line("tenant", string(d.Tenant))
	w.line("request", d.Request)
	w.line("kind", d.Kind)
	w.line("requester", string(d.Requester))
	w.line("agent", d.Agent)
	w.line("agent-name", d.AgentName)
	for _, c := range d.Chain {
		w.line("chain", string(c))
	}
	w.line("session", d.Session)
	w.line("purpose", d.Purpose)
	w.line("reason", d.Reason)
	for i, it := range d.Items {
		w.line("item", strconv.Itoa(i+1))
		w.line("resource", it.Resource)
		w.line("resource-name", it.Name)
		w.line("class", string(it.Class))
		for _, a := range it.Actions {
			w.line("action", a)
		}
		for _, name := range slices.Sorted(maps.Keys(it.Parameters)) {
			for _, v := range it.Parameters[name] {
				w.line("parameter", name+"="+v)
			}
		}
	}
	w.line("target", d.Target)
	for _, name := range slices.Sorted(maps.Keys(d.Arguments)) {
		w.line("argument", name+"="+d.Arguments[name])
	}
	w.line("arguments-digest", d.ArgumentsDigest)
	w.line("effect-digest", d.Effect)
	for _, b := range d.Budgets {
		w.line("budget", b.Name+"="+strconv.FormatInt(b.Most, 10))
	}
	w.line("policy", d.Revision)
	w.number("approvals", d.Approvals)
	if d.Signed {
		w.line("signed", yes)
	}
	w.number("seconds", d.Seconds)
	w.time("not-before", d.NotBefore)
	w.time("not-after", d.NotAfter)
	w.number("uses", d.Uses)
	w.line("nonce", d.Nonce)
	return w.Bytes()
}

// New is the text of a document that [Parse] takes, or an error that says what
// cannot stand in one.
func New(d Document) ([]byte, error) {
	b := d.Bytes()
	read, err := Parse(b)
	if err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(read, d.Masked()) {
		return nil, ErrInvalid.With("A value cannot stand in an approval document: the names of arguments, parameters and budgets have no =, and no list has an empty entry.")
	}
	return b, nil
}

type writer struct{ bytes.Buffer }

func (w *writer) line(key, value string) {
	if value != "" {
		w.WriteString(key + ": " + escape(value) + "\n")
	}
}

func (w *writer) number(key string, n int64) {
	if n != 0 {
		w.line(key, strconv.FormatInt(n, 10))
	}
}

func (w *writer) time(key string, t time.Time) {
	if !t.IsZero() {
		w.line(key, t.Format(time.RFC3339))
	}
}

// plain reports whether a character stands for itself: it can be seen, and
// changes nothing about how its neighbours are.
func plain(r rune) bool {
	return r == ' ' || r != '\\' && r != utf8.RuneError && unicode.IsGraphic(r) && !unicode.Is(unicode.Zs, r) && !invisible(r)
}

// invisible reports whether a graphic character shows nothing, or not by itself:
// marks pile up on what stands before them, fillers are blank.
func invisible(r rune) bool {
	switch r {
	case 0x115f, 0x1160, 0x17b4, 0x17b5, 0x2800, 0x3164, 0xffa0, 0x034f:
		return true
	}
	return unicode.Is(unicode.M, r) || unicode.Is(unicode.Variation_Selector, r)
}

// escape is a value as it stands in a line. A backslash is doubled; what cannot
// be seen, and a space at either end, is written as its number.
func escape(s string) string {
	simple := true
	for i, r := range s {
		if !plain(r) || r == ' ' && (i == 0 || i == len(s)-1) {
			simple = false
			break
		}
	}
	if simple {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b.WriteString(`\x{` + hex.EncodeToString([]byte{s[i]}) + "}")
		case r == '\\':
			b.WriteString(`\\`)
		case !plain(r) || r == ' ' && (i == 0 || i+size == len(s)):
			b.WriteString(`\u{` + strconv.FormatInt(int64(r), 16) + "}")
		default:
			b.WriteRune(r)
		}
		i += size
	}
	return b.String()
}

// unescape reads a value. What it takes is not the only way to write it: [Parse]
// makes sure of that.
func unescape(s string) (string, bool) {
	if !strings.Contains(s, `\`) {
		return s, true
	}
	var b strings.Builder
	for s != "" {
		before, rest, found := strings.Cut(s, `\`)
		b.WriteString(before)
		if !found {
			break
		}
		if after, ok := strings.CutPrefix(rest, `\`); ok {
			b.WriteByte('\\')
			s = after
			continue
		}
		if len(rest) < 2 || rest[1] != '{' {
			return "", false
		}
		number, after, closed := strings.Cut(rest[2:], "}")
		n, err := strconv.ParseUint(number, 16, 32)
		if !closed || err != nil {
			return "", false
		}
		switch {
		case rest[0] == 'x' && n <= 0xff:
			b.WriteByte(byte(n))
		case rest[0] == 'u' && n <= unicode.MaxRune:
			b.WriteRune(rune(n))
		default:
			return "", false
		}
		s = after
	}
	return b.String(), true
}

// Parse reads a document. It takes what [Document.Bytes] has written, to the
// byte, and nothing else.
func Parse(text []byte) (Document, error) {
	if len(text) > MaxSize {
		return Document{}, ErrInvalid.With("An approval document has at most %d bytes, this one %d. Ask for less at once.", MaxSize, len(text))
	}
	lines, err := split(text)
	if err != nil {
		return Document{}, err
	}
	var d Document
	for n, l := range lines {
		if err := d.take(l.key, l.value); err != nil {
			return Document{}, ErrInvalid.With("Line %d of the approval document, %.40q, cannot be there.", n+1, l.key)
		}
	}
	switch {
	case d.Tenant == "" || d.Request == "" || d.Kind == "" || d.Requester == "" || d.Nonce == "":
		return Document{}, ErrInvalid.With("An approval document says which tenant, request and kind it is for, who asks, and has a nonce.")
	case d.NotAfter.IsZero():
		return Document{}, ErrInvalid.With("An approval document says until when it is good.")
	case !bytes.Equal(d.Bytes(), text):
		return Document{}, ErrInvalid.With("The approval document is not written as one is: its lines are in another order, or a value in another form.")
	}
	return d, nil
}

type line struct{ key, value string }

func split(text []byte) (lines []line, err error) {
	for n := 1; len(text) > 0; n++ {
		l, rest, ended := bytes.Cut(text, []byte("\n"))
		key, value, ok := strings.Cut(string(l), ": ")
		if !ended || !ok || len(value) > maxValue || n > maxLines {
			return nil, ErrInvalid.With("Line %d of the approval document is not a key and a value of up to %d bytes.", n, maxValue)
		}
		if value, ok = unescape(value); !ok || value == "" {
			return nil, ErrInvalid.With("The value in line %d of the approval document cannot be read.", n)
		}
		if n == 1 && (key != "format" || value != Format) {
			return nil, ErrInvalid.With("An approval document begins with %q.", "format: "+Format)
		}
		lines, text = append(lines, line{key, value}), rest
	}
	return lines, nil
}

// take puts one line into the document. Order and form are checked when the whole
// is written again.
func (d *Document) take(key, value string) (err error) {
	once := func(p *string) error {
		if *p != "" {
			return ErrInvalid
		}
		*p = value
		return nil
	}
	moment := func(p *time.Time) error {
		if !p.IsZero() {
			return ErrInvalid
		}
		*p, err = time.Parse(time.RFC3339, value)
		return err
	}
	count := func(p *int64) error {
		if *p, err = strconv.ParseInt(value, 10, 64); err != nil || *p < 1 || *p > maxNumber {
			return ErrInvalid
		}
		return nil
	}
	var it *Item
	if len(d.Items) > 0 {
		it = &d.Items[len(d.Items)-1]
	}
	switch key {
	case "format":
		return nil
	case "tenant":
		d.Tenant = estover.TenantID(value)
	case "request":
		return once(&d.Request)
	case "kind":
		return once(&d.Kind)
	case "requester":
		d.Requester = estover.Subject(value)
	case "agent":
		return once(&d.Agent)
	case "agent-name":
		return once(&d.AgentName)
	case "chain":
		d.Chain = append(d.Chain, estover.Subject(value))
	case "session":
		return once(&d.Session)
	case "purpose":
		return once(&d.Purpose)
	case "reason":
		return once(&d.Reason)
	case "item":
		if n, err := strconv.Atoi(value); err != nil || n != len(d.Items)+1 || n > maxItems {
			return ErrInvalid
		}
		d.Items = append(d.Items, Item{})
	case "resource", "resource-name", "class", "action", "parameter":
		if it == nil {
			return ErrInvalid
		}
		return it.take(key, value)
	case "target":
		return once(&d.Target)
	case "argument":
		name, v, ok := strings.Cut(value, "=")
		if _, there := d.Arguments[name]; !ok || there || name == "" {
			return ErrInvalid
		}
		if d.Arguments == nil {
			d.Arguments = map[string]string{}
		}
		d.Arguments[name] = v
	case "arguments-digest":
		return once(&d.ArgumentsDigest)
	case "effect-digest":
		return once(&d.Effect)
	case "budget":
		name, v, ok := strings.Cut(value, "=")
		n, err := strconv.ParseInt(v, 10, 64)
		if !ok || name == "" || err != nil || n < 1 || n > maxNumber {
			return ErrInvalid
		}
		d.Budgets = append(d.Budgets, Budget{name, n})
	case "policy":
		return once(&d.Revision)
	case "approvals":
		return count(&d.Approvals)
	case "signed":
		if d.Signed = value == yes; !d.Signed {
			return ErrInvalid
		}
	case "seconds":
		return count(&d.Seconds)
	case "not-before":
		return moment(&d.NotBefore)
	case "not-after":
		return moment(&d.NotAfter)
	case "uses":
		return count(&d.Uses)
	case "nonce":
		return once(&d.Nonce)
	default:
		return ErrInvalid
	}
	return nil
}

func (it *Item) take(key, value string) error {
	switch key {
	case "resource":
		it.Resource = value
	case "resource-name":
		it.Name = value
	case "class":
		if it.Class = estover.Class(value); it.Class.Rank() < 0 {
			return ErrInvalid
		}
	case "action":
		it.Actions = append(it.Actions, value)
	case "parameter":
		name, v, ok := strings.Cut(value, "=")
		if !ok || name == "" {
			return ErrInvalid
		}
		if it.Parameters == nil {
			it.Parameters = map[string][]string{}
		}
		it.Parameters[name] = append(it.Parameters[name], v)
	}
	return nil
}

// Digest is what stands for a document's text: the SHA-256 of
// "estover-approval-v1\n" and the text, which is the challenge that a passkey
// signs.
func Digest(text []byte) [32]byte { return attest.ApprovalDigest(text) }
