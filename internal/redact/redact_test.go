package redact_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf16"

	"pgregory.net/rapid"

	"estover.dev/internal/redact"
)

// Each way in which a program is likely to write a secret is found, and
// nothing of it is left.
func TestForms(t *testing.T) {
	secrets := []string{
		"sk_live_51H8aZ-QpR7vW",
		"p@ss w/rd+&=?<\"'>\\%~",
		"crème brûlée ☃ 🗝 key",
		"{\"a\":\"b\"}\n\ttab",
		"12345678",
		strings.Repeat("aB3$", 600),
	}
	for _, secret := range secrets {
		quoted, _ := json.Marshal(secret)
		asJSON := strings.Trim(string(quoted), `"`)
		var plain bytes.Buffer
		enc := json.NewEncoder(&plain)
		enc.SetEscapeHTML(false)
		enc.Encode(secret)
		asPlainJSON := strings.Trim(strings.TrimSpace(plain.String()), `"`)
		var little, every, entities, percent strings.Builder
		for _, u := range utf16.Encode([]rune(secret)) {
			little.WriteByte(byte(u))
			little.WriteByte(byte(u >> 8))
			fmt.Fprintf(&every, `\u%04X`, u)
		}
		for _, r := range secret {
			fmt.Fprintf(&entities, "&#x%x;", r)
		}
		for i := range len(secret) {
			fmt.Fprintf(&percent, "%%%02x", secret[i])
		}
		encoded := map[string]string{
			"raw":               secret,
			"JSON":              asJSON,
			"JSON without HTML": asPlainJSON,
			"JSON, slash":       strings.ReplaceAll(asPlainJSON, "/", `\/`),
			"JSON, every":       every.String(),
			"query":             url.QueryEscape(secret),
			"path":              url.PathEscape(secret),
			"query, lower case": lowerEscapes(url.QueryEscape(secret)),
			"percent, every":    percent.String(),
			"HTML":              html.EscapeString(secret),
			"HTML, every":       entities.String(),
			"hex":               hex.EncodeToString([]byte(secret)),
			"HEX":               strings.ToUpper(hex.EncodeToString([]byte(secret))),
			"UTF-16":            little.String(),
			"base64":            base64.StdEncoding.EncodeToString([]byte(secret)),
			"base64, raw":       base64.RawStdEncoding.EncodeToString([]byte(secret)),
			"base64url":         base64.URLEncoding.EncodeToString([]byte(secret)),
			"base64url, raw":    base64.RawURLEncoding.EncodeToString([]byte(secret)),
		}
		m, short := redact.NewMatcher(redact.Value{Name: "s", Text: []byte(secret)})
		if len(short) != 0 {
			t.Fatalf("a secret of %d bytes is said to be too short", len(secret))
		}
		for name, form := range encoded {
			got := m.MaskString("<<"+form+">>", nil)
			if want := "<<" + strings.Repeat("*", len(form)) + ">>"; got != want {
				t.Errorf("%s of %.20q: %.80q, want it masked whole", name, secret, got)
			}
		}
		// Base64 of a text in which the secret stands somewhere: what the secret
		// alone determines is masked, and decoding the rest does not give it back.
		for before := range 6 {
			text := strings.Repeat("#", before) + secret + "##"
			got := m.MaskString(base64.StdEncoding.EncodeToString([]byte(text)), nil)
			back, _ := base64.StdEncoding.DecodeString(strings.ReplaceAll(got, "*", "A"))
			if left := common(string(back[before:]), secret); left > 1 {
				t.Errorf("base64 of %.20q after %d bytes: %d bytes of the secret are left in %.60q", secret, before, left, got)
			}
		}
	}
}

// lowerEscapes writes percent-escapes in lower case.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i:], bytes.ToLower(b[i:i+3]))
		}
	}
	return string(b)
}

// common is the length of the longest run of equal bytes at equal places.
func common(a, b string) (longest int) {
	run := 0
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			run++
		} else {
			run = 0
		}
		longest = max(longest, run)
	}
	return longest
}

func TestBasic(t *testing.T) {
	m, _ := redact.NewMatcher(redact.Basic("crm", "robot", "correct horse")...)
	pair := base64.StdEncoding.EncodeToString([]byte("robot:correct horse"))
	for _, text := range []string{"robot:correct horse", "correct horse", pair} {
		if got := m.MaskString("Basic "+text, nil); got != "Basic "+strings.Repeat("*", len(text)) {
			t.Errorf("%q is masked as %q", text, got)
		}
	}
}

func TestShortValues(t *testing.T) {
	m, short := redact.NewMatcher(
		redact.Value{Name: "pin", Text: []byte("1234567")},
		redact.Value{Name: "key", Text: []byte("12345678")})
	if !slices.Equal(short, []string{"pin"}) {
		t.Errorf("too short are %v, want pin alone", short)
	}
	if got := m.MaskString("1234567 12345678", nil); got != "1234567 ********" {
		t.Errorf("masked to %q", got)
	}
	if m, _ := redact.NewMatcher(redact.Value{Name: "pin", Text: []byte("1")}); m != nil {
		t.Error("a matcher without needles is not nil")
	}
	var none *redact.Matcher
	if got := none.MaskString("anything at all", nil); got != "anything at all" {
		t.Errorf("a nil matcher masks to %q", got)
	}
	all, err := io.ReadAll(none.Reader(strings.NewReader("anything"), nil))
	if string(all) != "anything" || err != nil {
		t.Errorf("reading through a nil matcher: %q, %v", all, err)
	}
}

func TestHitsAreReportedOnce(t *testing.T) {
	m, _ := redact.NewMatcher(
		redact.Value{Name: "one", Text: []byte("first secret")},
		redact.Value{Name: "two", Text: []byte("second secret")},
		redact.Value{Name: "three", Text: []byte("third secret")})
	var hits []string
	r := m.Reader(iotest.OneByteReader(strings.NewReader("second secret, first secret, first secret, second secret")), func(n string) { hits = append(hits, n) })
	if _, err := io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(hits, []string{"two", "one"}) {
		t.Errorf("hits are %v, want two and one, once each", hits)
	}
}

// model masks by looking for every needle everywhere.
func model(text string, needles []string) string {
	out := []byte(text)
	for _, n := range needles {
		for at := 0; at+len(n) <= len(text); at++ {
			if text[at:at+len(n)] == n {
				copy(out[at:], strings.Repeat("*", len(n)))
			}
		}
	}
	return string(out)
}

// The output does not depend on how the text is split, and equals that of a
// search for every needle at every place.
func TestEverySplitGivesTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// A small alphabet makes periods, overlaps and near misses likely.
		secret := rapid.StringMatching(`[ab]{8,14}`)
		secrets := rapid.SliceOfN(secret, 1, 4).Draw(t, "secrets")
		var values []redact.Value
		for i, s := range secrets {
			values = append(values, redact.Value{Name: fmt.Sprint(i), Text: []byte(s)})
		}
		m, _ := redact.NewMatcher(values...)
		needles := redact.Needles(m)
		piece := rapid.OneOf(rapid.SampledFrom(needles), rapid.StringMatching(`[ab%6]{0,9}`), rapid.StringMatching(`[b6]{200,300}`),
			rapid.Custom(func(t *rapid.T) string {
				n := rapid.SampledFrom(needles).Draw(t, "needle")
				return n[:rapid.IntRange(0, len(n)).Draw(t, "cut")]
			}))
		text := strings.Join(rapid.SliceOfN(piece, 0, 12).Draw(t, "text"), "")
		want := model(text, needles)

		if got := m.Finds([]byte(text)); got != (want != text) {
			t.Fatalf("finds anything: %t\ntext %q\nwant %q", got, text, want)
		}
		if got := m.MaskString(text, nil); got != want {
			t.Fatalf("whole:\ntext %q\ngot  %q\nwant %q", text, got, want)
		}
		var pieces []string
		for rest := text; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		var out bytes.Buffer
		w := m.Writer(&out, nil)
		for _, p := range pieces {
			io.WriteString(w, p)
			w.Flush()
		}
		w.Close()
		if out.String() != want {
			t.Fatalf("writing %q:\ngot  %q\nwant %q", pieces, out.String(), want)
		}
		r := m.Reader(&piecewise{pieces}, nil)
		got, err := io.ReadAll(iotest.OneByteReader(r))
		r.Close()
		if err != nil || string(got) != want {
			t.Fatalf("reading %q:\ngot  %q, %v\nwant %q", pieces, got, err, want)
		}
	})
}

// A piecewise reader gives one piece at a time.
type piecewise struct{ pieces []string }

func (r *piecewise) Read(p []byte) (int, error) {
	if len(r.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.pieces[0])
	if r.pieces[0] = r.pieces[0][n:]; r.pieces[0] == "" {
		r.pieces = r.pieces[1:]
	}
	return n, nil
}

// Longer texts are gone over in several places at once. Wherever an occurrence
// lies in them, it is found, and so is one that is cut at any place.
func TestLongTexts(t *testing.T) {
	for _, secret := range []string{"12345678", "top-secret", "sk_live_4eC39HqLyjWDarjtT1zdp7dc", strings.Repeat("0123456789", 9)} {
		m, _ := redact.NewMatcher(redact.Value{Name: "s", Text: []byte(secret)})
		for _, size := range []int{511, 514} {
			near := strings.Repeat(secret[1:]+".", size)[:size]
			if m.Finds([]byte(near)) != (model(near, redact.Needles(m)) != near) {
				t.Fatalf("%q is found otherwise than it is masked in %q", secret, near)
			}
			for at := range size - len(secret) + 1 {
				// What is left of the secret makes windows of which it is not certain.
				text := strings.Repeat(secret[1:]+".", size/len(secret)+1)[:at] + secret + strings.Repeat(".", size-at-len(secret))
				want := model(text, redact.Needles(m))
				if !m.Finds([]byte(text)) {
					t.Fatalf("%q is not found in %q", secret, text)
				}
				if got := m.MaskString(text, nil); got != want {
					t.Fatalf("%q in %d bytes:\ngot  %q\nwant %q", secret, size, got, want)
				}
				var out bytes.Buffer
				w := m.Writer(&out, nil)
				io.WriteString(w, text[:at+len(secret)/2])
				io.WriteString(w, text[at+len(secret)/2:])
				w.Close()
				if out.String() != want {
					t.Fatalf("%q in %d bytes, cut:\ngot  %q\nwant %q", secret, size, out.String(), want)
				}
			}
		}
	}
}

// Nothing is held back but what may still become a needle.
func TestHoldsBackOnlyWhatItMust(t *testing.T) {
	m, _ := redact.NewMatcher(redact.Value{Name: "s", Text: []byte("top-secret-value")})
	var out bytes.Buffer
	w := m.Writer(&out, nil)
	steps := []struct{ write, want string }{
		{"data: hello\n\n", "data: hello\n\n"},
		{"data: top-sec", "data: "},
		{"ret", ""},
		{"ary\n\n", "top-secretary\n\n"},
		{"top-secret-", ""},
		{"value", "****************"},
		{"top-", ""},
	}
	for _, s := range steps {
		out.Reset()
		io.WriteString(w, s.write)
		w.Flush()
		if out.String() != s.want {
			t.Errorf("after %q came %q, want %q", s.write, out.String(), s.want)
		}
	}
	out.Reset()
	w.Close()
	if out.String() != "top-" {
		t.Errorf("at the end came %q, want what was held", out.String())
	}
}

// A stream never holds as much as the longest needle.
func TestHoldsLessThanTheLongestNeedle(t *testing.T) {
	secret := strings.Repeat("k", 5000)
	m, _ := redact.NewMatcher(redact.Value{Name: "s", Text: []byte(secret)})
	var out bytes.Buffer
	w := m.Writer(&out, nil)
	written := 0
	for range 40 {
		n, _ := io.WriteString(w, strings.Repeat("k", 1000))
		written += n
		if held := written - out.Len(); held >= m.Longest() {
			t.Fatalf("%d bytes are held, the longest needle has %d", held, m.Longest())
		}
	}
	w.Close()
	if out.String() != strings.Repeat("*", written) {
		t.Error("the text is not masked whole")
	}
}

func TestReadErrorsComeAfterTheText(t *testing.T) {
	m, _ := redact.NewMatcher(redact.Value{Name: "s", Text: []byte("top-secret-value")})
	r := m.Reader(io.MultiReader(strings.NewReader("x top-secret-value top-"), iotest.ErrReader(io.ErrUnexpectedEOF)), nil)
	got, err := io.ReadAll(r)
	if string(got) != "x **************** top-" || err != io.ErrUnexpectedEOF {
		t.Errorf("read %q, %v", got, err)
	}
	r.Close()
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("a closed reader reads")
	}
}

func TestWipe(t *testing.T) {
	m, _ := redact.NewMatcher(redact.Value{Name: "s", Text: []byte("top-secret-value")})
	m.Wipe()
	for _, n := range redact.Needles(m) {
		if strings.Trim(n, "\x00") != "" {
			t.Fatalf("the needle %q is left", n)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("top-secret"), []byte("a top-secret b"), uint16(3))
	f.Add([]byte("aaaaaaaa"), []byte("aaaaaaaaaaaaaaaaaaaaab"), uint16(9))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00"), make([]byte, 40), uint16(1))
	f.Fuzz(func(t *testing.T, secret, text []byte, cut uint16) {
		if len(secret) > 200 || len(text) > 2000 {
			return
		}
		m, short := redact.NewMatcher(redact.Value{Name: "s", Text: secret})
		if m == nil {
			if len(short) != 1 {
				t.Fatal("no matcher and no warning")
			}
			return
		}
		if len(text) > 2 {
			text = append(slices.Concat(text[:len(text)/2], []byte(url.QueryEscape(string(secret)))), text[len(text)/2:]...)
		}
		want := model(string(text), redact.Needles(m))
		var out bytes.Buffer
		w := m.Writer(&out, nil)
		at := int(cut) % (len(text) + 1)
		w.Write(text[:at])
		w.Write(text[at:])
		w.Close()
		if out.String() != want {
			t.Fatalf("got %q, want %q", out.String(), want)
		}
	})
}

// The matcher against the hash that every body goes through anyway
// (gateway.md, section 19: at most twice the time).
func BenchmarkMatcher(b *testing.B) {
	token := make([]byte, 40)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(token)
	secret := base64.RawURLEncoding.EncodeToString(token)
	m, _ := redact.NewMatcher(append(redact.Basic("basic", "robot", "correct horse battery"), redact.Value{Name: "token", Text: []byte(secret)})...)
	for _, body := range bodies(random) {
		b.Run(body.name+"/sha256", func(b *testing.B) {
			b.SetBytes(int64(len(body.text)))
			for b.Loop() {
				sha256.Sum256(body.text)
			}
		})
		b.Run(body.name+"/mask", func(b *testing.B) {
			b.SetBytes(int64(len(body.text)))
			b.ReportAllocs()
			for b.Loop() {
				r := m.Reader(bytes.NewReader(body.text), nil)
				io.Copy(io.Discard, struct{ io.Reader }{r})
				r.Close()
			}
		})
	}
}

type body struct {
	name string
	text []byte
}

// bodies are texts as they go over the wire.
func bodies(random *rand.ChaCha8) []body {
	var js bytes.Buffer
	for i := 0; js.Len() < 64<<10; i++ {
		fmt.Fprintf(&js, `{"id":%d,"name":"Customer \u00e9 %d","mail":"c%d@example.com","tags":["a","b"]},`+"\n", i*7919, i, i)
	}
	raw := make([]byte, 48<<10)
	random.Read(raw)
	return []body{
		{"json", js.Bytes()},
		{"base64", []byte(base64.StdEncoding.EncodeToString(raw))},
		{"hex", []byte(hex.EncodeToString(raw))},
		{"percent", []byte(strings.ReplaceAll(url.QueryEscape(string(raw)), "+", "%20"))},
		{"escapes", bytes.Repeat([]byte(`\u0061\u0062`), 5000)},
		{"binary", raw},
		{"zeros", make([]byte, 64<<10)},
	}
}
