package resource

import (
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of the paths that are looked at.
const (
	maxPath     = 8 << 10
	maxSegments = 64
)

// A node is a place in the tree of templates: what may follow after the
// segments that lead to it.
type node struct {
	words  map[string]*node
	folded map[string]bool // what some server may take for one of the words
	ending []ending        // the longest first
	param  *node
	tail   map[string]leaf // by method: {rest...}
	leaves map[string]leaf // by method: the path ends here
}

// An ending is what follows on a parameter within its segment: ":merge".
type ending struct {
	text string
	next *node
}

// A leaf is an action with the names of its parameters in order.
type leaf struct {
	action *Action
	names  []string
}

// add puts an action into the tree. It returns the action that is there
// already for the same requests.
func (n *node) add(a Action) (*Action, error) {
	if !strings.HasPrefix(a.Path, "/") {
		return nil, ErrInvalid.With("The path begins with a slash, as /v1/customers/{id}, not %q.", a.Path)
	}
	segments := strings.Split(a.Path[1:], "/")
	if len(segments) > maxSegments || len(a.Path) > maxPath {
		return nil, ErrInvalid.With("The path has at most %d segments.", maxSegments)
	}
	var names []string
	for i, s := range segments {
		last := i == len(segments)-1
		name, end, isParam := strings.Cut(strings.TrimPrefix(s, "{"), "}")
		isParam = isParam && strings.HasPrefix(s, "{")
		rest, isTail := strings.CutSuffix(name, "...")
		if isTail {
			name = rest
		}
		if isParam {
			if !validParam(name) || slices.Contains(names, name) {
				return nil, ErrInvalid.With("A parameter is {name}, in small letters, and stands once in %q.", a.Path)
			}
			names = append(names, name)
		}
		switch {
		case isParam && isTail:
			if !last || end != "" {
				return nil, ErrInvalid.With("{%s...} stands at the end of the path.", name)
			}
			return set(&n.tail, a, names)
		case isParam && end == "":
			if n.param == nil {
				n.param = &node{}
			}
			n = n.param
		case isParam:
			if !validWord(end) || end[0] != ':' && end[0] != '.' {
				return nil, ErrInvalid.With("What follows on a parameter begins with a colon or a dot, as {id}:merge, not %q.", s)
			}
			n = n.after(end)
		default:
			if !validWord(s) && (s != "" || !last) {
				return nil, ErrInvalid.With("The segment %q of the path is empty, is made of dots or has other characters than letters, digits and -._~!$&'()*+,=:@.", s)
			}
			if n.words == nil {
				n.words, n.folded = map[string]*node{}, map[string]bool{}
			}
			if n.words[s] == nil {
				n.words[s] = &node{}
				n.folded[fold(s)] = true
			}
			n = n.words[s]
		}
	}
	return set(&n.leaves, a, names)
}

// after is the node behind an ending.
func (n *node) after(text string) *node {
	for _, e := range n.ending {
		if e.text == text {
			return e.next
		}
	}
	e := ending{text, &node{}}
	n.ending = append(n.ending, e)
	slices.SortFunc(n.ending, func(a, b ending) int {
		if len(a.text) != len(b.text) {
			return len(b.text) - len(a.text)
		}
		return strings.Compare(a.text, b.text)
	})
	return e.next
}

func set(leaves *map[string]leaf, a Action, names []string) (*Action, error) {
	if l, ok := (*leaves)[a.Method]; ok {
		return l.action, nil
	}
	if *leaves == nil {
		*leaves = map[string]leaf{}
	}
	(*leaves)[a.Method] = leaf{&a, names}
	return nil, nil
}

func validParam(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (i == 0 || (c < '0' || c > '9') && c != '_') {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

func validWord(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-._~!$&'()*+,=:@", rune(c)) {
			return false
		}
	}
	return s != "" && strings.Trim(s, ".") != ""
}

// errPath is returned for a path that servers read in more than one way.
var errPath = errors.New("the path can be read in more than one way")

// decode splits an escaped path into its segments and undoes the escapes.
func decode(path string, segments []string) ([]string, error) {
	if len(path) > maxPath || !strings.HasPrefix(path, "/") {
		return nil, errPath
	}
	for rest, more := path[1:], true; more; {
		var s string
		s, rest, more = strings.Cut(rest, "/")
		if s == "" && more || len(segments) == maxSegments {
			return nil, errPath // "//"
		}
		s, err := decodeSegment(s)
		if err != nil {
			return nil, err
		}
		segments = append(segments, s)
	}
	return segments, nil
}

func decodeSegment(s string) (string, error) {
	escaped, special := false, false
	for i := range len(s) {
		switch c := s[i]; {
		case c == '%':
			escaped = true
		case c <= ' ' || c == 0x7f || c == '\\' || c == '?' || c == '#':
			return "", errPath
		case c >= 0x80 || c == '.' || c == ';':
			special = true
		}
	}
	if escaped {
		b := make([]byte, 0, len(s))
		for i := 0; i < len(s); i++ {
			c := s[i]
			if c == '%' {
				if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
					return "", errPath
				}
				c = unhex(s[i+1])<<4 | unhex(s[i+2])
				i += 2
			}
			if c < ' ' || c == 0x7f || c == '/' || c == '\\' {
				return "", errPath
			}
			b = append(b, c)
		}
		s = string(b)
		for i := range len(s) {
			if s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]) {
				return "", errPath // would be decoded again by a careless server
			}
		}
		special = true
	}
	if special {
		if !utf8.ValidString(s) {
			return "", errPath
		}
		// Some servers drop what follows on a semicolon and spaces at the end,
		// and then resolve dots; some take wide characters for narrow ones.
		before, _, _ := strings.Cut(s, ";")
		before = strings.TrimRight(before, " ")
		if before == "." || before == ".." || before == "" && s != "" || strings.ContainsAny(s, "／＼．；％？＃") {
			return "", errPath
		}
	}
	return s, nil
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f' }

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// fold is what a segment may become in the eyes of a server that ignores case,
// matrix parameters, format endings, or dots and spaces at the end.
func fold(s string) string {
	if i := strings.IndexAny(s, ";.?#"); i > 0 {
		s = s[:i]
	}
	return lower(strings.TrimRight(s, " "))
}

// lower makes letters small that any server could take for one another: by
// way of the capitals, the Kelvin sign is a k and the long s an s.
func lower(s string) string {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return strings.ToLower(strings.ToUpper(s))
		}
	}
	return strings.ToLower(s)
}

// foldEnding is fold for what stands at the end of a segment.
func foldEnding(s string) string {
	if i := strings.IndexByte(s, ';'); i > 0 {
		s = s[:i]
	}
	return lower(strings.TrimRight(s, ". "))
}

// find walks the tree along the segments, and fills in the parameters on its
// way back. known is how many of them it has passed.
func (n *node) find(method string, segments []string, known int) (leaf, map[string]string, error) {
	if len(segments) == 0 {
		l, ok := choose(n.leaves, method)
		if !ok || known == 0 {
			return l, nil, nil
		}
		return l, make(map[string]string, known), nil
	}
	s, rest := segments[0], segments[1:]
	if next := n.words[s]; next != nil {
		if l, params, err := next.find(method, rest, known); l.action != nil || err != nil {
			return l, params, err
		}
	} else if len(n.folded) > 0 && (n.param != nil || n.tail != nil || n.ending != nil) && n.folded[fold(s)] {
		return leaf{}, nil, errPath
	}
	for _, e := range n.ending {
		v, ok := strings.CutSuffix(s, e.text)
		if !ok && strings.HasSuffix(foldEnding(s), foldEnding(e.text)) {
			return leaf{}, nil, errPath
		}
		if !ok || v == "" {
			continue
		}
		l, params, err := e.next.find(method, rest, known+1)
		if err != nil {
			return l, nil, err
		}
		if l.action != nil {
			params[l.names[known]] = v
			return l, params, nil
		}
	}
	if n.param != nil && s != "" {
		l, params, err := n.param.find(method, rest, known+1)
		if err != nil {
			return l, nil, err
		}
		if l.action != nil {
			params[l.names[known]] = s
			return l, params, nil
		}
	}
	l, ok := choose(n.tail, method)
	if !ok {
		return leaf{}, nil, nil
	}
	params := make(map[string]string, known+1)
	params[l.names[known]] = strings.Join(segments, "/")
	return l, params, nil
}

// choose finds the leaf of a method: its own, GET's for a HEAD, or the one for
// every method.
func choose(leaves map[string]leaf, method string) (leaf, bool) {
	if len(leaves) == 0 {
		return leaf{}, false
	}
	l, ok := leaves[method]
	if !ok && method == "HEAD" {
		l, ok = leaves["GET"]
	}
	if !ok {
		l, ok = leaves["*"]
	}
	return l, ok
}

// Match finds the action of a request by its method and its path, escaped as
// it is forwarded, and the parameters of its template, with their escapes
// undone.
//
// Nothing is found for a path that a server may read as another one: with
// doubled slashes, dots to be resolved, escaped slashes, backslashes, control
// characters, escapes of escapes or bytes that are not UTF-8; and where a
// parameter stands, for what differs from a word in its place only by case, a
// format ending (.json) or a matrix parameter.
func (u *Upstream) Match(method, path string) (Action, map[string]string, bool) {
	var room [16]string
	segments, err := decode(path, room[:0])
	if err != nil {
		return Action{}, nil, false
	}
	l, params, err := u.routes.find(method, segments, 0)
	if err != nil || l.action == nil {
		return Action{}, nil, false
	}
	return *l.action, params, true
}
