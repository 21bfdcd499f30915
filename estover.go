// Package estover is the vocabulary of Estover: the words that every other
// package uses and that carry no behaviour of their own. Who asks is a
// [Caller], what went wrong is an [Error], what must never be printed is a
// [Secret].
//
// The words are those of the field's standards wherever there is one: subject
// and actor of RFC 8693, grant and scope of RFC 6749, lease and version of the
// vaults. docs/ARCHITECTURE.md says how the packages stand on each other.
package estover

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"time"
)

// A TenantID names an organisation. It is the first column of every key, and
// nothing of one tenant can be found under the name of another.
type TenantID string

// DefaultTenant is the organisation that is always there: of those who run the
// installation, and in most the only one.
const DefaultTenant TenantID = "default"

// A Subject says who acts: "agent:agt_…", "user:usr_…" or "system:NAME". The
// prefix keeps a client's name from ever being taken for a person's
// (RFC 9700, section 4.15).
type Subject string

// The kinds of subject.
const (
	AgentKind  = "agent"
	UserKind   = "user"
	SystemKind = "system"
)

// Agent is the subject of the agent with this id.
func Agent(id string) Subject { return Subject(AgentKind + ":" + id) }

// User is the subject of the person with this id.
func User(id string) Subject { return Subject(UserKind + ":" + id) }

// System is the subject of a part of Estover that acts by itself.
func System(name string) Subject { return Subject(SystemKind + ":" + name) }

// Kind is the part before the colon: agent, user or system.
func (s Subject) Kind() string { k, _, _ := strings.Cut(string(s), ":"); return k }

// ID is the part after the colon.
func (s Subject) ID() string { _, id, _ := strings.Cut(string(s), ":"); return id }

// A Role is what a person may do in the management of Estover.
type Role string

// The roles of people. An agent has none: it acts by grants alone.
const (
	Admin    Role = "admin"    // everything, as far as policy lets it
	Operator Role = "operator" // agents, resources, secrets' metadata, containment
	Auditor  Role = "auditor"  // reads the record, changes nothing
	Approver Role = "approver" // decides about requests of others, changes nothing beside
)

// A Strength says how a caller proved who it is.
type Strength string

// The strengths, weakest first.
const (
	BySecret Strength = "secret" // something that can be copied: a client secret, a bearer token
	ByKey    Strength = "key"    // a signature by a key that stays with the caller
	ByBound  Strength = "bound"  // every request is bound to the caller's key: a client certificate, DPoP
)

// A Caller is who asks. It is made once, where a request comes in, and passed
// on as a value.
type Caller struct {
	Tenant   TenantID
	Subject  Subject
	Actors   []Subject // who acts for the subject, the nearest first (RFC 8693, section 4.1)
	Client   string    // the OAuth client that the caller used; an agent's id for its own credentials
	Roles    []Role    // of a person
	Session  string    // the task that the caller's token belongs to; "" outside of one
	Purpose  string    // what the task is for; "" outside of one
	Grant    string    // the grant behind the caller's token
	Epoch    int64     // the epoch of that grant when the token was issued
	Scopes   []string  // of the caller's token
	Token    string    // the id of that token; "" for who came without one
	Until    time.Time // when what the caller came with ends by itself; zero if it does not, or may be renewed
	Tasks    []Task    // to one of which each call of the caller's token belongs; nil for no such bound
	Mount    string    // the mount of the door for clients of Vault that the request is about; "" for none
	Strength Strength
	Address  netip.Addr // where the request came from, behind trusted proxies
	Request  string     // the request's id, the same in logs, traces and events
	Noted    string     // what each event of the request tells beside, as the members of a JSON object; "" for nothing
}

// A Task is what a token is confined to: actions of resources, and nothing
// beside. A token may name several.
type Task struct {
	Locations  []string            // the identifiers of the resources
	Actions    []string            // by their names there
	Parameters map[string][]string // what the parameters of an action's path may be, by name; nil for anything
	Purpose    string              // of the session; "" for whichever it is
	Budgets    map[string]int64    // how much may be done of it in all: calls, rows, records, bytes_out, money; nil for anything
}

// Has reports whether the caller has the role.
func (c Caller) Has(r Role) bool {
	for _, have := range c.Roles {
		if have == r {
			return true
		}
	}
	return false
}

// Acting is who acts: the nearest actor, or the subject itself.
func (c Caller) Acting() Subject {
	if len(c.Actors) > 0 {
		return c.Actors[0]
	}
	return c.Subject
}

// A Class says what kind of data something is, from the least sensitive to
// the most.
type Class string

// The data classes (M21). An agent reaches what its clearance covers.
const (
	Public       Class = "public"
	Internal     Class = "internal"
	Confidential Class = "confidential"
	Restricted   Class = "restricted"
)

// Classes lists the data classes from the least sensitive to the most.
var Classes = []Class{Public, Internal, Confidential, Restricted}

// Rank is the place of the class among [Classes], or -1 if it is none of them.
func (c Class) Rank() int {
	for i, k := range Classes {
		if k == c {
			return i
		}
	}
	return -1
}

// Covers reports whether somebody cleared for c may see data of class d. An
// unknown class covers nothing and is covered by nothing.
func (c Class) Covers(d Class) bool {
	return d.Rank() >= 0 && c.Rank() >= d.Rank()
}

// NewID makes a name that nobody can guess: the prefix says what it names, and
// 130 random bits follow.
func NewID(prefix string) string {
	var random [26]byte
	_, _ = rand.Read(random[:]) // never fails
	var room [64]byte
	b := append(append(room[:0], prefix...), '_')
	for _, c := range random {
		b = append(b, "abcdefghijklmnopqrstuvwxyz234567"[c%32])
	}
	return string(b)
}

// NewOrderedID makes a name that nobody can guess for what there is very much of:
// 120 random bits after 40 bits of time, in milliseconds, so that those of the same
// moment stand side by side in an index. With nothing but chance in their names each
// would have a page of it to itself, written anew with its row.
func NewOrderedID(prefix string) string {
	var b [20]byte
	ms := uint64(time.Now().UnixMilli())
	b[0], b[1], b[2], b[3], b[4] = byte(ms>>32), byte(ms>>24), byte(ms>>16), byte(ms>>8), byte(ms)
	_, _ = rand.Read(b[5:]) // never fails
	id := make([]byte, 0, 40)
	return string(sortable.AppendEncode(append(append(id, prefix...), '_'), b[:]))
}

// sortable is base32hex (RFC 4648, section 7) in small letters, whose digits sort
// as what they stand for.
var sortable = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// ValidName reports whether s can name a thing among its kind: up to 63 small
// letters, digits, dots, dashes and underscores, with a letter or a digit at
// both ends.
func ValidName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
			continue
		}
		if i == 0 || i == len(s)-1 || c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// A Kind is the sort of an error: what a caller can do about it. Every
// protocol has one table from kinds to its own codes.
type Kind int

// The kinds of error.
const (
	Fault       Kind = iota // a fault of ours
	Invalid                 // the request is wrong; sending it again will not help
	Unknown                 // the caller is not authenticated
	Denied                  // the caller may not
	NotFound                // there is no such thing, or it is another tenant's
	Conflict                // the thing is not in a state in which this can be done
	TooMuch                 // a limit or a quota is used up
	Unavailable             // it cannot be done now; the same request may work later
)

// An Error is an error of the domain. It stands as a sentinel beside the type
// that it is about; callers compare with [errors.Is].
type Error struct {
	Kind   Kind
	Code   string // a word that programs may keep: "session_ended"
	Detail string // a sentence for a person, with what to do about it
	Field  string // what of an Invalid request is wrong: "actions[2].path"; "" for all of it
	Err    error  // what lies behind it, for the log and never for the caller

	// After is in how long the same request may work that does not now; 0 if that
	// is not known.
	After time.Duration
}

// Error is the sentence, and what lies behind it.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Detail + " (" + e.Err.Error() + ")"
	}
	return e.Detail
}

// Unwrap gives what lies behind the error.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the same error, whatever its sentence says.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// With is the same error with another sentence.
func (e *Error) With(format string, args ...any) *Error {
	c := *e
	c.Detail = fmt.Sprintf(format, args...)
	return &c
}

// Because is the same error with what lies behind it.
func (e *Error) Because(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// In is the same error with in how long the request may work.
func (e *Error) In(d time.Duration) *Error {
	c := *e
	c.After = d
	return &c
}

// Wait is in how many whole seconds a client that was refused with err may ask again,
// rounded up: 1 if that is not known, and what 31 bits hold at most.
func Wait(err error) int {
	var e *Error
	if !errors.As(err, &e) || e.After <= 0 {
		return 1
	}
	n := e.After / time.Second
	if e.After%time.Second > 0 {
		n++
	}
	return int(min(n, math.MaxInt32))
}

// At is the same error about one field of the request.
func (e *Error) At(field string) *Error {
	c := *e
	c.Field = field
	return &c
}

// KindOf is the kind of the first [Error] in the chain of err, or [Fault].
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Fault
}

// A Secret holds bytes that must not leave by accident. It prints, logs and
// marshals as a placeholder; only [Secret.Reveal] gives the bytes.
type Secret struct{ b []byte }

// hidden is what is shown in the place of a secret.
const hidden = "[secret]"

// NewSecret takes the bytes over: the caller keeps no other copy.
func NewSecret(b []byte) Secret { return Secret{b} }

// Reveal gives the bytes themselves. They belong to the secret: whoever
// reveals them neither changes nor keeps them.
func (s Secret) Reveal() []byte { return s.b }

// Empty reports whether there is nothing in it.
func (s Secret) Empty() bool { return len(s.b) == 0 }

// Wipe overwrites the bytes.
func (s Secret) Wipe() { clear(s.b) }

// String is a placeholder.
func (Secret) String() string { return hidden }

// GoString is a placeholder.
func (Secret) GoString() string { return hidden }

// Format writes a placeholder whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// MarshalText gives a placeholder, so that JSON and YAML show one too.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// LogValue is a placeholder.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }
