package redact

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A Value is something to be searched for. Its forms are the value itself;
// base64 and base64url at each of the three places where it can lie in a longer
// text, padded and not; percent-encoded as the common encoders do it, in both
// cases, and as in a form; escaped as in JSON and in HTML; hexadecimal in both
// cases; UTF-16 in both byte orders.
type Value struct {
	Name string // what a hit is reported as: an id, never the value
	Text []byte
}

// Basic gives the values of HTTP Basic credentials: the pair and the password.
func Basic(name, user, password string) []Value {
	return []Value{{name, []byte(user + ":" + password)}, {name, []byte(password)}}
}

// forms lists the forms of the value, some of them perhaps twice. None shares
// memory with the value.
func forms(value []byte) [][]byte {
	text := string(value)
	list := []string{text}
	for _, alphabet := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		list = append(list, inBase64(alphabet, value)...)
	}
	for _, format := range []string{"%%%02X", "%%%02x"} {
		list = append(list,
			escape(text, format, func(byte) bool { return false }),
			escape(text, format, keeps("-._~")),                 // RFC 3986, section 2.3
			escape(text, format, keeps("-_.!~*'()")),            // encodeURIComponent
			escape(text, format, keeps("-_.!~*'();/?:@&=+$,#")), // encodeURI
			escape(text, format, keeps("-_.~$&+=:@")),           // a path segment
			escape(text, format, keeps("-._~!$&'()*+,;=:@/?")),  // RFC 3986, section 3.4
			escape(text, format, keeps("-._~/")),                // shells and Python's quote
			strings.ReplaceAll(escape(text, format, keeps("-._~ ")), " ", "+"),
			strings.ReplaceAll(escape(text, format, keeps("-._* ")), " ", "+"), // the form encoding of browsers
		)
	}
	for _, format := range []string{`\u%04x`, `\u%04X`} {
		plain := inJSON(text, format, func(r rune) bool { return r < utf8.RuneSelf })
		every := inJSON(text, format, func(rune) bool { return false })
		wide := inJSON(text, format, func(rune) bool { return true })
		html := inJSON(text, format, func(r rune) bool { return !strings.ContainsRune("<>&\u2028\u2029", r) })
		strict := inJSON(text, format, func(r rune) bool { return r < utf8.RuneSelf && !strings.ContainsRune("<>&'+", r) })
		for _, s := range []string{plain, every, wide, html, strict} {
			list = append(list, s, strings.ReplaceAll(s, "/", `\/`))
		}
	}
	for _, quotes := range []string{"&quot; &#39;", "&#34; &#39;", "&quot; &#x27;", "&quot; &apos;", "&quot; '", "\" '"} {
		double, single, _ := strings.Cut(quotes, " ")
		r := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, double, "'", single)
		list = append(list, r.Replace(text))
	}
	for _, format := range []string{"&#%d;", "&#x%x;", "&#x%X;"} {
		var b strings.Builder
		for _, r := range text {
			fmt.Fprintf(&b, format, r)
		}
		list = append(list, b.String())
	}
	digits := hex.EncodeToString(value)
	list = append(list, digits, strings.ToUpper(digits))

	all := make([][]byte, 0, len(list)+2)
	for _, s := range list {
		all = append(all, []byte(s))
	}
	if utf8.Valid(value) {
		little, big := inUTF16(text)
		all = append(all, little, big)
	}
	return all
}

// inBase64 gives the characters that the value has in the base64 of a longer
// text, for each number of bytes modulo three that may stand before it: those
// which it determines alone, and then, for the case that the text ends with the
// value, also the last one, with padding and without.
func inBase64(alphabet *base64.Encoding, value []byte) []string {
	var list []string
	for before := range 3 {
		text := alphabet.EncodeToString(append(make([]byte, before), value...))
		from := (before*8 + 5) / 6
		sure := (before + len(value)) * 8 / 6
		list = append(list, text[from:sure])
		if sure < len(text) {
			list = append(list, text[from:], text[from:]+strings.Repeat("=", (4-len(text)%4)%4))
		}
	}
	return list
}

// keeps is the set of letters, digits and the other characters given.
func keeps(others string) func(byte) bool {
	return func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(others, c) >= 0
	}
}

// escape writes the bytes that keep does not keep with the format.
func escape(text, format string, keep func(byte) bool) string {
	var b strings.Builder
	for i := range len(text) {
		if keep(text[i]) {
			b.WriteByte(text[i])
		} else {
			fmt.Fprintf(&b, format, text[i])
		}
	}
	return b.String()
}

// inJSON writes the text as it stands between the quotes of a JSON string,
// where the characters that keep does not keep, and those that cannot stand
// there, are written as \u with the format.
func inJSON(text, format string, keep func(rune) bool) string {
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\n': `\n`, '\r': `\r`, '\t': `\t`, '\b': `\b`, '\f': `\f`}
	var b strings.Builder
	for _, r := range text {
		esc, special := short[r]
		switch {
		case keep(r) && special:
			b.WriteString(esc)
		case keep(r) && r >= ' ':
			b.WriteRune(r)
		case r > 0xFFFF:
			r -= 0x10000
			fmt.Fprintf(&b, format+format, 0xD800+(r>>10), 0xDC00+(r&0x3FF))
		default:
			fmt.Fprintf(&b, format, r)
		}
	}
	return b.String()
}

// inUTF16 writes the text in UTF-16, the little end first and the big end
// first.
func inUTF16(text string) (little, big []byte) {
	unit := func(u rune) {
		little = append(little, byte(u), byte(u>>8))
		big = append(big, byte(u>>8), byte(u))
	}
	for _, r := range text {
		if r > 0xFFFF {
			r -= 0x10000
			unit(0xD800 + r>>10)
			unit(0xDC00 + r&0x3FF)
		} else {
			unit(r)
		}
	}
	return little, big
}
