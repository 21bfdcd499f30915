// Package redact finds what must not go on in a stream of bytes and masks it
// on its way.
//
// An injected secret is known to the gateway and to the system it is meant
// for. If that system sends it back, in an error page, a debug header or a
// mirrored request, the agent must not see it, in whatever dress it comes. A
// [Matcher] is made of the secrets of one request: each gives its needles, the
// byte forms in which it may return (see [Value]). A [Reader], a [Writer] or
// [Matcher.Mask] then covers every occurrence with asterisks, as many as there
// were bytes, so that lengths, ranges, chunks and frames stay true.
//
// Three promises hold for every stream:
//
//   - However a text is split into pieces, the output is the same, and every
//     byte of every occurrence is masked, also where occurrences overlap.
//   - Only what may still become a needle is held back: at most the longest
//     needle less one byte, and nothing of a text whose end is not the
//     beginning of one. An event stream is not delayed, and a flush neither
//     releases nor forgets what is held.
//   - The work does not depend on how many needles there are.
//
// The search is not a table of states but that of Wu and Manber: a look at the
// end of a window, which is as long as the shortest needle, tells mostly how far
// the window can jump, and only where it cannot are needles compared. An
// Aho–Corasick automaton over the forms of a token of two kilobytes needs either
// many megabytes or a pointer chase for each byte; this needs the needles
// themselves and 4 KiB. A jump waits for the look before it, so several windows
// go over a longer text at once, each over a part of it.
//
// What it cannot do: a system that returns a secret in part, encrypted, turned
// round or in an encoding that is not among the forms is not caught. The
// gateway therefore also decides where a secret may go at all.
package redact

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
)

// Shortest is the least number of bytes of a value that is searched for. What
// is shorter would be found everywhere.
const Shortest = 8

// mask is what stands in the place of each masked byte.
const mask = '*'

// A Matcher knows the needles of some values. It does not change after it is
// made, and any number of goroutines may use it. A nil Matcher finds nothing.
type Matcher struct {
	names   []string
	needles []needle // sorted by their bytes
	windows windows
	jump    [1 << 12]uint8 // hash of a window's last three bytes → how far the window may jump, and whether needles are to be compared first
	width   int            // of the window
	longest int            // the length of the longest needle
	begin   [256]bool      // the first bytes of needles
}

// A needle is one form of a value.
type needle struct {
	bytes []byte
	value int // its place in Matcher.names
}

// A group is the run of Matcher.needles that have their first eight bytes in
// common.
type group struct {
	key      uint64
	from, to int
}

// The windows find groups by those eight bytes. It is a power of two long and at
// most a quarter full.
type windows []group

// find gives the group of the key, or the empty place where it belongs.
func (w windows) find(key uint64) *group {
	at := key * 0x9E3779B97F4A7C15 >> 32
	for {
		g := &w[at&uint64(len(w)-1)]
		if g.to == 0 || g.key == key {
			return g
		}
		at++
	}
}

// NewMatcher makes the matcher of the values. The names of those that are too
// short to be searched for come back as a warning to whoever chose them: they
// are not protected.
func NewMatcher(values ...Value) (m *Matcher, short []string) {
	m = &Matcher{}
	seen := map[string]bool{}
	for _, v := range values {
		if len(v.Text) < Shortest {
			short = append(short, v.Name)
			continue
		}
		m.names = append(m.names, v.Name)
		for _, form := range forms(v.Text) {
			if len(form) >= Shortest && !seen[string(form)] {
				seen[string(form)] = true
				m.needles = append(m.needles, needle{form, len(m.names) - 1})
			}
		}
	}
	if len(m.needles) == 0 {
		return nil, short
	}
	slices.SortFunc(m.needles, func(a, b needle) int { return bytes.Compare(a.bytes, b.bytes) })
	m.windows = make(windows, 1<<bits.Len(uint(4*len(m.needles))))
	m.width = widest
	for _, n := range m.needles {
		m.width = min(m.width, len(n.bytes))
	}
	for i := range m.jump {
		m.jump[i] = uint8(m.width - block + 1)
	}
	for i, n := range m.needles {
		m.longest = max(m.longest, len(n.bytes))
		m.begin[n.bytes[0]] = true
		g := m.windows.find(binary.LittleEndian.Uint64(n.bytes))
		if g.to == 0 {
			g.key, g.from = binary.LittleEndian.Uint64(n.bytes), i
		}
		g.to = i + 1
		for end := block; end <= m.width; end++ {
			j := &m.jump[hash(uint32(n.bytes[end-3])<<8|uint32(n.bytes[end-2])<<16|uint32(n.bytes[end-1])<<24)]
			if end == m.width {
				*j |= compare
			} else {
				*j = *j&compare | min(*j&^compare, uint8(m.width-end))
			}
		}
	}
	return m, short
}

const (
	// block is how many bytes at the end of a window are looked at.
	block = 3
	// widest is how long a window may be. With longer ones the table would fill with
	// blocks, and the windows jump no further.
	widest = 32
	// compare is set in a jump if the needles are to be compared before it.
	compare = 1 << 7
)

// hash is the place in the jump table of the last three of four bytes, which
// are the block, together in one number, the first byte lowest.
func hash(four uint32) uint32 { return (four >> 8) * 0x9E3779B1 >> 20 }

// Longest is the length of the longest needle: a stream never holds back as
// much as that.
func (m *Matcher) Longest() int {
	if m == nil {
		return 0
	}
	return m.longest
}

// Wipe overwrites the needles. Nobody may use the matcher any more.
func (m *Matcher) Wipe() {
	if m == nil {
		return
	}
	for _, n := range m.needles {
		clear(n.bytes)
	}
	clear(m.windows)
}

// Mask masks, in place, every occurrence in a text that is complete, such as
// the value of a header. It calls hit once for each value that was found.
func (m *Matcher) Mask(text []byte, hit func(name string)) {
	if m == nil || len(text) < m.width {
		return
	}
	s := Stream{m: m, hit: hit}
	s.Settle(text, true)
}

// MaskString is [Matcher.Mask] for a string: it gives back the string itself if
// there was nothing in it.
func (m *Matcher) MaskString(text string, hit func(name string)) string {
	if !m.Finds([]byte(text)) { // for which the compiler makes no copy
		return text
	}
	b := []byte(text)
	m.Mask(b, hit)
	return string(b)
}

// Finds reports whether there is an occurrence in a text that is complete.
func (m *Matcher) Finds(text []byte) bool {
	if m == nil || len(text) < m.width {
		return false
	}
	for at := m.nothing(text); at+m.width <= len(text); {
		jump := m.jump[hash(binary.LittleEndian.Uint32(text[at+m.width-4:at+m.width]))]
		if jump&compare != 0 {
			g := m.windows.find(binary.LittleEndian.Uint64(text[at:]))
			for _, n := range m.needles[g.from:g.to] {
				if bytes.HasPrefix(text[at:], n.bytes) {
					return true
				}
			}
		}
		at += int(jump &^ compare)
	}
	return false
}

// A Stream is the state of one text that comes in pieces, for a caller that
// keeps the pieces itself.
type Stream struct {
	m     *Matcher
	hit   func(name string)
	found []bool // the values that were reported
	cover int    // how many bytes from the first unsettled one on belong to an occurrence
}

// Stream begins a text. It calls hit once for each value that was found.
func (m *Matcher) Stream(hit func(name string)) *Stream { return &Stream{m: m, hit: hit} }

// Settle looks at the unsettled part of the text and masks in place what it
// settles. It returns how many bytes that is: the rest must come again, in front
// of what follows, unless this was the last of the text.
func (s *Stream) Settle(text []byte, last bool) int {
	if s.m == nil {
		return len(text)
	}
	m := s.m
	at, masked := m.nothing(text), 0 // everything before at was looked at, everything before masked is masked if it must be
	until := s.cover                 // the end of the furthest occurrence
	for at+m.width <= len(text) {
		jump := m.jump[hash(binary.LittleEndian.Uint32(text[at+m.width-4:at+m.width]))]
		if jump&compare == 0 {
			at += int(jump)
			continue
		}
		g := m.windows.find(binary.LittleEndian.Uint64(text[at:]))
		wait := false
		for _, n := range m.needles[g.from:g.to] {
			switch rest := text[at:]; {
			case bytes.HasPrefix(rest, n.bytes):
				// A new occurrence: what lies before it is masked first, since
				// the two need not touch.
				if at >= until {
					blank(text, masked, until)
					masked = at
				}
				until = max(until, at+len(n.bytes))
				s.report(n.value)
			case !last && len(rest) < len(n.bytes) && bytes.HasPrefix(n.bytes, rest):
				wait = true
			}
		}
		if wait {
			return s.stop(text, masked, at, until)
		}
		at += int(jump &^ compare)
	}
	if last {
		at = len(text)
	}
	for at < len(text) && !m.begins(text[at:]) {
		at++
	}
	return s.stop(text, masked, at, until)
}

// long is the length from which a text is gone over by four windows at once.
const long = 512

// nothing gives how much of a text certainly has no beginning of a needle in it,
// which is nearly always all that windows go over. It is 0 if the text is short,
// or may have one.
func (m *Matcher) nothing(text []byte) int {
	if len(text) < long {
		return 0
	}
	// ends[at:] begins with the last four bytes of the window at at.
	ends, stop := text[m.width-4:], len(text)-m.width+1
	part := stop / 4
	a, b, c, d := 0, part, 2*part, 3*part
	for a < part && b < 2*part && c < 3*part && d < stop {
		ja := m.jump[hash(binary.LittleEndian.Uint32(ends[a:a+4]))]
		jb := m.jump[hash(binary.LittleEndian.Uint32(ends[b:b+4]))]
		jc := m.jump[hash(binary.LittleEndian.Uint32(ends[c:c+4]))]
		jd := m.jump[hash(binary.LittleEndian.Uint32(ends[d:d+4]))]
		if (ja|jb|jc|jd)&compare != 0 && (m.may(ja, text[a:]) || m.may(jb, text[b:]) || m.may(jc, text[c:]) || m.may(jd, text[d:])) {
			return 0
		}
		a, b, c, d = a+int(ja&^compare), b+int(jb&^compare), c+int(jc&^compare), d+int(jd&^compare)
	}
	// The windows are at the ends of their parts, but not all of them at the same time.
	for _, w := range [...]struct{ at, stop int }{{a, part}, {b, 2 * part}, {c, 3 * part}, {d, stop}} {
		for d = w.at; d < w.stop; {
			j := m.jump[hash(binary.LittleEndian.Uint32(ends[d:d+4]))]
			if m.may(j, text[d:]) {
				return 0
			}
			d += int(j &^ compare)
		}
	}
	return d
}

// may reports whether a needle may begin at a window with this jump.
func (m *Matcher) may(jump uint8, window []byte) bool {
	return jump&compare != 0 && m.windows.find(binary.LittleEndian.Uint64(window)).to != 0
}

// stop ends a piece: everything before at is settled, and the occurrence that
// was found last ends at until.
func (s *Stream) stop(text []byte, masked, at, until int) int {
	blank(text, masked, min(until, at))
	s.cover = max(0, until-at)
	return at
}

// blank masks text[from:to], if that is anything.
func blank(text []byte, from, to int) {
	for i := from; i < to; i++ {
		text[i] = mask
	}
}

// begins reports whether a needle longer than the text begins with it. The
// text is shorter than a window.
func (m *Matcher) begins(text []byte) bool {
	if !m.begin[text[0]] {
		return false
	}
	i, _ := slices.BinarySearchFunc(m.needles, text, func(n needle, t []byte) int { return bytes.Compare(n.bytes, t) })
	return i < len(m.needles) && bytes.HasPrefix(m.needles[i].bytes, text)
}

// report tells of a value once.
func (s *Stream) report(value int) {
	if s.found == nil {
		s.found = make([]bool, len(s.m.names))
	}
	if !s.found[value] {
		s.found[value] = true
		if s.hit != nil {
			s.hit(s.m.names[value])
		}
	}
}
