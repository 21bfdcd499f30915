package edge

import (
	"net/url"
	"strings"
	"unicode/utf8"

	"estover.dev"
)

// ErrPath is returned for a path that two servers could understand in two
// ways.
var ErrPath = &estover.Error{Kind: estover.Invalid, Code: "path_ambiguous", Detail: "The path can be read in more than one way."}

// ErrQuery is returned for a query that two servers could understand in two
// ways.
var ErrQuery = &estover.Error{Kind: estover.Invalid, Code: "query_ambiguous", Detail: "The query can be read in more than one way."}

// TargetRules loosen what is asked of a path and a query, for a resource that
// cannot do without. The zero value is strict.
type TargetRules struct {
	EncodedSlash bool // %2F inside a segment, as in GitLab's names of projects
	DoubleSlash  bool // empty segments
	Semicolon    bool // parameters of segments
	LooseQuery   bool // a query that does not parse
}

// A Path is a path that can be read in one way only: no segment is "." or
// "..", in whatever encoding; nothing is encoded twice; it is UTF-8 without
// control characters and backslashes (gateway.md, P18). It is compared, decided
// on and forwarded in its escaped form.
type Path string

// ParsePath reads the escaped form of a path.
func ParsePath(escaped string, rules TargetRules) (Path, error) {
	if escaped == "" || escaped[0] != '/' {
		return "", ErrPath.With("The path does not begin with a slash.")
	}
	from := 1
	for i := 1; i <= len(escaped); i++ {
		if i < len(escaped) && escaped[i] != '/' {
			continue
		}
		segment := escaped[from:i]
		if segment == "" && i < len(escaped) && !rules.DoubleSlash {
			return "", ErrPath.With("The path has an empty segment.")
		}
		if err := checkSegment(segment, rules); err != nil {
			return "", err
		}
		from = i + 1
	}
	return Path(escaped), nil
}

func checkSegment(segment string, rules TargetRules) error {
	encoded := false
	for i := range len(segment) {
		switch c := segment[i]; {
		case c == '%':
			encoded = true
		case c == ';' && !rules.Semicolon:
			return ErrPath.With("The path has a semicolon.")
		case c <= ' ' || c >= 0x7F || strings.IndexByte("\\?#\"<>^`{|}", c) >= 0:
			return ErrPath.With("The path has the character %q, which must be percent-encoded.", c)
		}
	}
	if name, _, _ := strings.Cut(segment, ";"); name == "." || name == ".." {
		return ErrPath.With("The path has a dot segment.")
	}
	if !encoded {
		return nil
	}
	text, err := url.PathUnescape(segment)
	if err != nil {
		return ErrPath.With("The path has a percent sign that encodes nothing.")
	}
	if !utf8.ValidString(text) {
		return ErrPath.With("The path is not UTF-8.")
	}
	for i := range len(text) {
		switch c := text[i]; {
		case c < ' ' || c == 0x7F:
			return ErrPath.With("The path has a control character.")
		case c == '\\', c == '/' && !rules.EncodedSlash, c == ';' && !rules.Semicolon:
			return ErrPath.With("The path has the character %q percent-encoded.", c)
		}
	}
	if twice(text) {
		return ErrPath.With("The path is percent-encoded twice.")
	}
	// With encoded slashes a segment may hold segments.
	for part := range strings.SplitSeq(text, "/") {
		if name, _, _ := strings.Cut(part, ";"); name == "." || name == ".." {
			return ErrPath.With("The path has a dot segment.")
		}
	}
	return nil
}

// twice reports whether a decoded text, decoded again, would show a character
// that means something in a path.
func twice(text string) bool {
	for i := 0; i+2 < len(text); i++ {
		if text[i] == '%' {
			switch strings.ToLower(text[i+1 : i+3]) {
			case "00", "25", "2e", "2f", "3b", "5c":
				return true
			}
		}
	}
	return false
}

// Segments are the decoded segments. The path "/" has one, which is empty.
func (p Path) Segments() []string {
	list := strings.Split(string(p[1:]), "/")
	for i, s := range list {
		if strings.IndexByte(s, '%') >= 0 {
			list[i], _ = url.PathUnescape(s)
		}
	}
	return list
}

// Set makes the path that of the URL, so that exactly it is written.
func (p Path) Set(u *url.URL) {
	u.Path, u.RawPath = string(p), string(p)
	if strings.IndexByte(u.Path, '%') >= 0 {
		u.Path, _ = url.PathUnescape(string(p))
	}
}

// maxParameters is how many parameters a query may have.
const maxParameters = 1000

// CheckQuery refuses a query that does not parse, or has more than a thousand
// parameters, so that none passes unseen by policy (gateway.md, P3).
func CheckQuery(raw string, rules TargetRules) error {
	for i := range len(raw) {
		if c := raw[i]; c <= ' ' || c >= 0x7F || c == '#' {
			return ErrQuery.With("The query has the character %q, which must be percent-encoded.", c)
		}
	}
	if strings.Count(raw, "&") >= maxParameters {
		return ErrQuery.With("The query has more than %d parameters.", maxParameters)
	}
	if rules.LooseQuery {
		return nil
	}
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case ';':
			return ErrQuery.With("The query has a semicolon.")
		case '%':
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return ErrQuery.With("The query has a percent sign that encodes nothing.")
			}
		}
	}
	return nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
