package vault

import (
	"context"
	"slices"
	"strings"

	"estover.dev/internal/mount"
)

// An Operation is what a request wants to do.
type Operation string

// The operations. A request that writes creates or updates, depending on whether
// the thing is there; handlers see which.
const (
	Read   Operation = "read"
	List   Operation = "list"
	Write  Operation = "write" // before it is known whether it creates or updates
	Create Operation = "create"
	Update Operation = "update"
	Patch  Operation = "patch"
	Delete Operation = "delete"
)

const methodList = "LIST"

// operations are those of the methods (V1).
var operations = map[string]Operation{
	"GET": Read, "HEAD": Read, methodList: List, "POST": Write, "PUT": Write, "PATCH": Patch, "DELETE": Delete,
}

func (o Operation) capability() mount.Capability {
	if o == Write {
		return mount.Update
	}
	return mount.Capability(o)
}

// A Handler answers one operation of a route. A nil answer is 204.
type Handler func(ctx context.Context, q *Request) (*Answer, error)

// A Route is what there is below the mounts of a kind.
//
// Its path is segments: a word, ":name" for any one segment, "*name" for all
// that follow, of which there may be none; after a star, words may stand that
// the path ends with. Where several match, words go before names, and names
// before stars.
type Route struct {
	// Mount is the kind of mount that it lies below; of kv with its version, as
	// "kv/2".
	Mount string
	Path  string

	Read, List, Write, Patch, Delete Handler

	// Exists reports whether what a request writes is there already, so that
	// policies can tell "create" from "update". Where it is nil, to write is to
	// update.
	Exists func(ctx context.Context, q *Request) (bool, error)

	Open     bool // needs no token
	Optional bool // needs none, and knows whoever has one
	Sudo     bool // policies must allow "sudo" beside
	Top      bool // the members of data stand at the top of the answer, too (V8)
	Binary   bool // what is written is no object, but bytes ([Request.Body])

	Help string // a sentence

	segments []string
	tail     []string // what follows a star
}

func (r *Route) parse() {
	r.segments = strings.Split(r.Path, "/")
	if i := slices.IndexFunc(r.segments, func(s string) bool { return strings.HasPrefix(s, "*") }); i >= 0 && i < len(r.segments)-1 {
		r.segments, r.tail = r.segments[:i+1], r.segments[i+1:]
	}
}

func (r *Route) handler(op Operation) Handler {
	switch op {
	case Read:
		return r.Read
	case List:
		return r.List
	case Write, Create, Update:
		return r.Write
	case Patch:
		return r.Patch
	case Delete:
		return r.Delete
	}
	return nil
}

func (r *Route) help() string {
	if r.Help == "" {
		return r.Path
	}
	return r.Path + ": " + r.Help
}

// order puts routes in the order in which they are tried.
func order(list []*Route) {
	rank := func(r *Route, i int) int {
		switch {
		case i >= len(r.segments):
			return 0
		case strings.HasPrefix(r.segments[i], "*") && r.tail != nil:
			return 3
		case strings.HasPrefix(r.segments[i], "*"):
			return 4
		case strings.HasPrefix(r.segments[i], ":"):
			return 2
		}
		return 1
	}
	slices.SortStableFunc(list, func(a, b *Route) int {
		for i := range max(len(a.segments), len(b.segments)) {
			if x, y := rank(a, i), rank(b, i); x != y {
				return x - y
			}
		}
		return len(b.tail) - len(a.tail)
	})
}

// kindOf is the kind of a mount as routes name it.
func kindOf(m *mount.Mount) string {
	if v := m.Version(); v != "" {
		return m.Kind + "/" + v
	}
	return m.Kind
}

// match finds the route of a path below a mount, and what its names stand for.
func (d *Door) match(m *mount.Mount, rest string) (*Route, map[string]string) {
	var parts []string
	if rest != "" {
		parts = strings.Split(rest, "/")
	}
	for _, r := range d.routes[kindOf(m)] {
		if params, ok := r.match(parts); ok {
			return r, params
		}
	}
	return nil, nil
}

func (r *Route) match(parts []string) (map[string]string, bool) {
	var params map[string]string
	put := func(name, value string) {
		if params == nil {
			params = map[string]string{}
		}
		params[name] = value
	}
	if r.Path == "" {
		return nil, len(parts) == 0
	}
	for i, s := range r.segments {
		switch {
		case strings.HasPrefix(s, "*"):
			left := parts[min(i, len(parts)):]
			if r.tail != nil {
				cut := len(left) - len(r.tail)
				if cut < 1 || !slices.Equal(left[cut:], r.tail) {
					return nil, false
				}
				left = left[:cut]
			}
			put(s[1:], strings.Join(left, "/"))
			return params, true
		case i >= len(parts):
			return nil, false
		case strings.HasPrefix(s, ":"):
			put(s[1:], parts[i])
		case s != parts[i]:
			return nil, false
		}
	}
	return params, len(parts) == len(r.segments)
}
