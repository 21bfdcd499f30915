package document_test

import (
	"bytes"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/approval/document"
)

var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func example() document.Document {
	return document.Document{
		Tenant: "default", Request: "apr_1", Kind: "access", Requester: "agent:agt_1", Agent: "agt_1", AgentName: "invoices-bot",
		Chain: []estover.Subject{"user:usr_alice"}, Session: "ses_1", Purpose: "month-end", Reason: "The ledger of November.",
		Items: []document.Item{
			{Resource: "res_1", Name: "ledger", Class: estover.Internal, Actions: []string{"invoices.read", "invoices.list"}, Parameters: map[string][]string{"id": {"4712", "4711"}}},
			{Resource: "res_2", Name: "mail", Class: estover.Confidential, Actions: []string{"*"}},
		},
		Budgets: []document.Budget{{Name: "calls", Most: 3}, {Name: "rows"}}, Revision: "starter@3", Approvals: 2, Signed: true, Seconds: 3600,
		NotAfter: noon.Add(time.Hour), Uses: 3, Nonce: "abc-1",
	}
}

const text = `format: estover-approval-v1
tenant: default
request: apr_1
kind: access
requester: agent:agt_1
agent: agt_1
agent-name: invoices-bot
chain: user:usr_alice
session: ses_1
purpose: month-end
reason: The ledger of November.
item: 1
resource: res_1
resource-name: ledger
class: internal
action: invoices.list
action: invoices.read
parameter: id=4711
parameter: id=4712
item: 2
resource: res_2
resource-name: mail
class: confidential
action: *
arguments-digest: DIGEST
budget: calls=3
policy: starter@3
approvals: 2
signed: yes
seconds: 3600
not-after: 2026-11-27T13:00:00Z
uses: 3
nonce: abc-1
`

// The bytes of a document are these and no others, whoever writes them.
func TestBytes(t *testing.T) {
	d := example()
	want := strings.Replace(text, "DIGEST", document.ArgumentsDigest(d.Nonce, nil, d.Items), 1)
	got, err := document.New(d)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("the document is\n%s\nwant\n%s", got, want)
	}
	// The order in which somebody lists things says nothing.
	slices.Reverse(d.Items[0].Actions)
	slices.Reverse(d.Items[0].Parameters["id"])
	if again := d.Bytes(); !bytes.Equal(again, got) {
		t.Errorf("in another order the document is\n%s", again)
	}
	read, err := document.Parse(got)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read.Bytes(), got) {
		t.Errorf("read and written again it is\n%s", read.Bytes())
	}
	if words := document.Fingerprint(got); len(strings.Fields(words)) != 8 {
		t.Errorf("the fingerprint is %q", words)
	}
}

// A document that differs in anything from what Bytes writes is no document.
func TestParseIsStrict(t *testing.T) {
	good := string(example().Bytes())
	for name, bad := range map[string]string{
		"nothing":                      "",
		"another format":               strings.Replace(good, "v1", "v2", 1),
		"no line break at the end":     strings.TrimSuffix(good, "\n"),
		"a line more":                  good + "note: hello\n",
		"an empty line":                strings.Replace(good, "\nkind", "\n\nkind", 1),
		"a line twice":                 strings.Replace(good, "kind: access\n", "kind: access\nkind: access\n", 1),
		"two agents":                   strings.Replace(good, "agent: agt_1\n", "agent: agt_1\nagent: agt_2\n", 1),
		"another order":                strings.Replace(good, "kind: access\nrequester: agent:agt_1\n", "requester: agent:agt_1\nkind: access\n", 1),
		"actions out of order":         strings.Replace(good, "action: invoices.list\naction: invoices.read\n", "action: invoices.read\naction: invoices.list\n", 1),
		"items out of order":           strings.Replace(good, "item: 2", "item: 3", 1),
		"an action before any item":    strings.Replace(good, "item: 1\n", "action: x\nitem: 1\n", 1),
		"a space at the end":           strings.Replace(good, "purpose: month-end", "purpose: month-end ", 1),
		"two spaces after the colon":   strings.Replace(good, "purpose: ", "purpose:  ", 1),
		"Windows line ends":            strings.ReplaceAll(good, "\n", "\r\n"),
		"a byte order mark":            "\ufeff" + good,
		"a right-to-left override":     strings.Replace(good, "month-end", "month\u202e-end", 1),
		"a zero-width space":           strings.Replace(good, "month-end", "month\u200b-end", 1),
		"a no-break space":             strings.Replace(good, "The ledger", "The\u00a0ledger", 1),
		"a combining mark":             strings.Replace(good, "month-end", "month\u0301-end", 1),
		"a control character":          strings.Replace(good, "month-end", "month\x1b[2K-end", 1),
		"an escape that needs none":    strings.Replace(good, "month-end", `month\u{2d}end`, 1),
		"an escape in capitals":        strings.Replace(good, "The ledger", `The\u{A0}ledger`, 1),
		"an escape with a zero before": strings.Replace(good, "The ledger", `The\u{0a0}ledger`, 1),
		"half an escape":               strings.Replace(good, "The ledger", `The\u{a0ledger`, 1),
		"bytes that are no text":       strings.Replace(good, "month-end", "month\xff-end", 1),
		"no time":                      strings.Replace(good, "not-after: 2026-11-27T13:00:00Z\n", "", 1),
		"a time of another zone":       strings.Replace(good, "2026-11-27T13:00:00Z", "2026-11-27T14:00:00+01:00", 1),
		"parts of a second":            strings.Replace(good, "13:00:00Z", "13:00:00.5Z", 1),
		"uses with a sign":             strings.Replace(good, "uses: 3", "uses: +3", 1),
		"no uses":                      strings.Replace(good, "uses: 3", "uses: 0", 1),
		"a number too large":           strings.Replace(good, "uses: 3", "uses: 99999999999999999999", 1),
		"a budget without a name":      strings.Replace(good, "budget: calls=3", "budget: =3", 1),
		"signed: no":                   strings.Replace(good, "signed: yes", "signed: no", 1),
		"a class that there is not":    strings.Replace(good, "class: internal", "class: secret", 1),
		"no nonce":                     strings.Replace(good, "nonce: abc-1\n", "", 1),
		"too long a line":              strings.Replace(good, "month-end", strings.Repeat("m", 5000), 1),
		"too long":                     strings.Replace(good, "chain: user:usr_alice\n", strings.Repeat("chain: user:usr_alice\n", 2000), 1),
	} {
		if bad == good {
			t.Fatalf("%s: nothing was changed", name)
		}
		if d, err := document.Parse([]byte(bad)); !errors.Is(err, document.ErrInvalid) {
			t.Errorf("a document with %s is read as %+v (%v), want ErrInvalid", name, d, err)
		}
	}
}

// What somebody writes into a reason cannot make another line, or show as
// something that it is not.
func TestValuesShow(t *testing.T) {
	for _, c := range []struct{ reason, want string }{
		{"plain", "plain"},
		{"one\nnonce: zero", `one\u{a}nonce: zero`},
		{"a\\b", `a\\b`},
		{" a ", `\u{20}a\u{20}`},
		{"\u202etxt.exe", `\u{202e}txt.exe`},
		{"a\u2028b", `a\u{2028}b`},
		{"a\tb", `a\u{9}b`},
		{"\xff", `\x{ff}`},
		{"\ufffd", `\u{fffd}`},
		{"ｆｕｌｌ · 漢字 · Ünïcode", "ｆｕｌｌ · 漢字 · Ünïcode"},
		{"\u3164", `\u{3164}`},
		{"\u2800", `\u{2800}`},
	} {
		d := example()
		d.Reason = c.reason
		b, err := document.New(d)
		if err != nil {
			t.Errorf("the reason %q: %v", c.reason, err)
			continue
		}
		if want := "\nreason: " + c.want + "\n"; !strings.Contains(string(b), want) {
			t.Errorf("the reason %q is not written as %q in\n%s", c.reason, want, b)
		}
		if read, err := document.Parse(b); err != nil || read.Reason != c.reason {
			t.Errorf("the reason %q is read as %q (%v)", c.reason, read.Reason, err)
		}
	}
}

// Secrets among arguments are not shown, and are bound all the same.
func TestMasked(t *testing.T) {
	d := example()
	d.Arguments = map[string]string{"api_token": "hunter2", "host": "a"}
	b, err := document.New(d)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "hunter2") || !strings.Contains(string(b), "argument: api_token="+document.Masked+"\nargument: host=a\n") {
		t.Errorf("the document shows\n%s", b)
	}
	d.Arguments = map[string]string{"api_token": "hunter3", "host": "a"}
	other := d.Bytes()
	if bytes.Equal(b, other) || document.Digest(b) == document.Digest(other) {
		t.Error("two secrets have the same document")
	}
	for name, bad := range map[string]func(d *document.Document){
		"a name with =":            func(d *document.Document) { d.Arguments = map[string]string{"a=b": "c"} },
		"a parameter with =":       func(d *document.Document) { d.Items[0].Parameters = map[string][]string{"a=b": {"c"}} },
		"an empty action":          func(d *document.Document) { d.Items[0].Actions = []string{""} },
		"an item with no class":    func(d *document.Document) { d.Items[0].Class = "any" },
		"no time":                  func(d *document.Document) { d.NotAfter = time.Time{} },
		"a reason without an end":  func(d *document.Document) { d.Reason = strings.Repeat("x", 3000) },
		"a negative number of use": func(d *document.Document) { d.Uses = -1 },
	} {
		d := example()
		bad(&d)
		if b, err := document.New(d); !errors.Is(err, document.ErrInvalid) {
			t.Errorf("a document with %s is\n%s(%v), want ErrInvalid", name, b, err)
		}
	}
}

// Two documents that differ have bytes that differ: nothing of one can be put in
// the place of something else.
func TestDocumentsDiffer(t *testing.T) {
	word := rapid.StringOf(rapid.RuneFrom([]rune("ab=: \n\\\u202e\u00e9{}")))
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) document.Document {
			d := example()
			d.Reason, d.Purpose = word.Draw(t, label+" reason"), word.Draw(t, label+" purpose")
			d.Items[0].Parameters = map[string][]string{rapid.StringMatching("[ab]{1,2}").Draw(t, label+" name"): rapid.SliceOfN(word, 1, 3).Draw(t, label+" values")}
			d.Arguments = rapid.MapOfN(rapid.StringMatching("[ab]{1,2}"), word, 0, 3).Draw(t, label+" arguments")
			d.Uses = rapid.Int64Range(0, 3).Draw(t, label+" uses")
			return d
		}
		one, other := draw("one"), draw("other")
		a, err := document.New(one)
		if err != nil {
			t.Fatal(err)
		}
		b, err := document.New(other)
		if err != nil {
			t.Fatal(err)
		}
		if same := reflect.DeepEqual(one.Masked(), other.Masked()); same != bytes.Equal(a, b) {
			t.Fatalf("the documents are the same: %v; their bytes:\n%s\n%s", same, a, b)
		}
		read, err := document.Parse(a)
		if err != nil || !reflect.DeepEqual(read, one.Masked()) {
			t.Fatalf("read as %+v (%v), want %+v", read, err, one.Masked())
		}
	})
}

// Whatever is read as a document is written as the same bytes.
func FuzzParse(f *testing.F) {
	f.Add(example().Bytes())
	d := example()
	d.Reason, d.Arguments = "a\n\\\u202e\xff", map[string]string{"x": "=", "password": "p"}
	f.Add(d.Bytes())
	f.Add([]byte("format: estover-approval-v1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := document.Parse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(d.Bytes(), b) {
			t.Errorf("%q is read, and written as %q", b, d.Bytes())
		}
		for _, r := range string(b) {
			if r != '\n' && (r < ' ' || r == 0x7f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069) {
				t.Errorf("%q is a document and has %q in it", b, r)
			}
		}
	})
}

// Each of 2,048 words is there once, and each bit of a digest counts.
func TestFingerprint(t *testing.T) {
	base := example()
	seen := map[string]bool{}
	words := map[string]bool{}
	for n := range 4000 {
		base.Seconds = int64(n + 1)
		f := document.Fingerprint(base.Bytes())
		if seen[f] {
			t.Fatalf("two documents have the words %q", f)
		}
		seen[f] = true
		for _, w := range strings.Fields(f) {
			words[w] = true
		}
	}
	if len(words) != 2048 {
		t.Errorf("there are %d words, want 2,048: %v", len(words), slices.Sorted(maps.Keys(words))[:8])
	}
}
