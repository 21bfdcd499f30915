package notify

import (
	"strconv"
	"strings"
	"time"
	"unicode"
)

// trust is what every message that asks for a decision says of itself.
const trust = "This message approves nothing, and neither does opening the link: it leads to a page on which you sign in."

// maxWords bounds what is quoted of somebody, in characters.
const maxWords = 500

// plain is a text of one line as it may be shown: nothing that cannot be seen,
// nothing that changes the order in which it is read, and no address that a
// program would make a link of.
func plain(s string) string { return short(clean(s)) }

// Quoted is a text of somebody else's choosing as it may be shown: [plain] is for
// what an administrator has named. Programs make links of bare names of hosts too,
// so no dot stays between two words.
func Quoted(s string) string {
	in := []rune(clean(s))
	var out strings.Builder
	for i, r := range in {
		if strings.ContainsRune(dots, r) && i > 0 && i < len(in)-1 && joins(in[i-1], in[i+1]) {
			out.WriteString("[.]")
			continue
		}
		out.WriteRune(r)
	}
	return short(out.String())
}

// dots are what stands for a dot in the name of a host (IDNA2003, section 3.1).
const dots = ".\u3002\uff0e\uff61"

// joins reports whether two characters with a dot between them may be within the
// name of a host, and not in a number.
func joins(a, b rune) bool {
	word := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	return word(a) && word(b) && !(unicode.IsDigit(a) && unicode.IsDigit(b))
}

func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' || r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, s)
	s = strings.ReplaceAll(s, "://", "[:]//")
	for _, lead := range []string{"www.", "mailto:"} {
		s = strings.ReplaceAll(s, lead, lead[:len(lead)-1]+"["+lead[len(lead)-1:]+"]")
	}
	return strings.TrimSpace(s)
}

func short(s string) string {
	if r := []rune(s); len(r) > maxWords {
		return strings.TrimSpace(string(r[:maxWords])) + "…"
	}
	return s
}

// subjectOf is what a message is about, in a line.
func subjectOf(said []saying) string {
	if len(said) == 1 {
		return plain(said[0].matter.Title)
	}
	waits := 0
	for _, s := range said {
		if s.matter.Open {
			waits++
		}
	}
	if waits == len(said) {
		return plural(waits, "request waits", "requests wait") + " for a decision"
	}
	return plural(len(said), "event", "events")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// lines are what a message says of one event, without its link.
func (s *saying) lines() []string {
	m := &s.matter
	all := []string{plain(m.Title)}
	for _, l := range m.Lines {
		all = append(all, plain(l))
	}
	if m.Reason != "" {
		all = append(all, "Reason: "+Quoted(m.Reason))
	}
	if m.Fingerprint != "" {
		all = append(all, "Fingerprint: "+plain(m.Fingerprint))
	}
	if m.Open && !m.Until.IsZero() {
		all = append(all, "Waits until "+m.Until.UTC().Format(time.DateTime)+" UTC")
	}
	return all
}
