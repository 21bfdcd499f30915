// Package detail is authorization details (RFC 9396): what a client asks for
// beyond scopes, as objects of a type that the tenant has registered, and whether
// one of them lies within another.
//
//	text ─▶ [Parse]: strict, bounded ─▶ [Types.Check]: the type, its schema ─▶ [Types.Within]: no more than was agreed
//
// A [Spec] says as data what a type is: a JSON Schema, and for each member how it
// may become less. Nothing here is asked of anybody, decided or stored.
//
// # Less
//
// A list lies within another if each of its details lies within one of the other
// that no second detail lies within: a payment that was agreed to once is not made
// two of. A detail lies within another of the same type if each member does, by
// the rule of the member:
//
//	subset     a list of values, all of which are in the other list
//	at_most    a number that is not larger
//	(none)     the same value
//
// A member that one has and the other has not is a difference, and the answer is
// no. The exception is a member of which the type says that it only limits
// ([Member.Limits]): whoever has it not has no limit, and it may be added.
//
// # Types that confine
//
// Most details let a client do something, and a token without them does less. A
// type that confines ([Spec.Confines]) is the other way round: a token without such
// a detail is bound by its scopes alone. So one may be asked for where there was
// none, and the last one is never left out. [Task] is such a type, the only one
// that there is without being registered.
package detail

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
)

// The bounds of authorization details. What is granted stands in tokens, which
// have at most 16 KiB and eight levels, two of them around the details.
const (
	MaxText    = 16 << 10 // bytes of a parameter
	maxPlain   = 8 << 10  // the same, without spaces
	MaxDetails = 50
	maxDepth   = 6    // levels of arrays and objects, the list and a detail included
	maxNumber  = 32   // characters
	maxString  = 1024 // bytes
)

// ErrInvalid is returned for authorization details that cannot be granted
// (RFC 9396, section 5). Its sentence says why, and what to do.
var ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "invalid_authorization_details", Detail: "The authorization details cannot be granted."}

// A Detail is one object of authorization details. It is shared and never
// changed.
type Detail struct {
	Type string

	text    string // as it was written, without spaces
	members map[string]any
}

// A List is authorization details in their order. Nil is none asked for, or no
// limit; an empty list is none.
type List []Detail

// Parse reads authorization details as they come with a request or stand in a
// token: a JSON array of objects with a type. It is strict, so that everybody reads
// the same in them: no name twice, no text that cannot be seen, no number with an
// exponent. Whether there is such a type is asked later ([Types.Check]).
func Parse(text []byte) (List, error) {
	if len(text) > MaxText {
		return nil, ErrInvalid.With("The authorization_details have %d bytes; at most %d are read. Ask for less at once.", len(text), MaxText)
	}
	if err := scan(text); err != nil {
		return nil, err
	}
	plain := jsontext.Value(bytes.Clone(text))
	if err := plain.Compact(); err != nil {
		return nil, errJSON.Because(err)
	}
	if len(plain) > maxPlain {
		return nil, ErrInvalid.With("The authorization_details have %d bytes without spaces; a token has room for %d. Ask for less at once.", len(plain), maxPlain)
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(plain, &parts); err != nil {
		return nil, errJSON.Because(err)
	}
	if len(parts) > MaxDetails {
		return nil, ErrInvalid.With("There are %d authorization_details; at most %d may be asked for at once.", len(parts), MaxDetails)
	}
	list := make(List, 0, len(parts))
	for i, part := range parts {
		d := Detail{text: string(part)}
		dec := json.NewDecoder(bytes.NewReader(part))
		dec.UseNumber()
		if err := dec.Decode(&d.members); err != nil || part[0] != '{' {
			return nil, ErrInvalid.With("Entry %d of the authorization_details is not an object.", i+1)
		}
		var ok bool
		if d.Type, ok = d.members["type"].(string); !ok || d.Type == "" {
			return nil, ErrInvalid.With("Entry %d of the authorization_details has no type. Name one that authorization_details_types_supported lists.", i+1)
		}
		list = append(list, d)
	}
	return list, nil
}

var errJSON = ErrInvalid.With("The authorization_details are not a JSON array of objects, in which each name stands once.")

// scan holds the text against the bounds, in one pass and before anything is
// built of it.
func scan(text []byte) error {
	dec := jsontext.NewDecoder(bytes.NewReader(text))
	for n := 0; ; n++ {
		t, err := dec.ReadToken()
		switch {
		case errors.Is(err, io.EOF) && n > 0:
			return nil
		case err != nil:
			return errJSON.Because(err)
		case n == 0 && t.Kind() != '[', n > 0 && dec.StackDepth() == 0 && t.Kind() != ']':
			return errJSON
		}
		switch t.Kind() {
		case '{', '[':
			if dec.StackDepth() > maxDepth {
				return ErrInvalid.With("The authorization_details are nested deeper than %d levels. Write them flatter.", maxDepth)
			}
		case '0':
			if s := t.String(); len(s) > maxNumber || strings.ContainsAny(s, "eE") {
				return ErrInvalid.With("A number of the authorization_details has an exponent, or more than %d characters. Write it out.", maxNumber)
			}
		case '"':
			s := t.String()
			if len(s) > maxString {
				return ErrInvalid.With("A text of the authorization_details has more than %d bytes.", maxString)
			}
			if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
				return ErrInvalid.With("A text of the authorization_details has a character that nobody can see. Leave it out.")
			}
		}
	}
}

// Limit is the list as a limit: where nothing was agreed to, that is none.
func (l List) Limit() List {
	if l == nil {
		return List{}
	}
	return l
}

// AppendJSON writes the list, without spaces.
func (l List) AppendJSON(b []byte) []byte {
	b = append(b, '[')
	for i, d := range l {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, d.text...)
	}
	return append(b, ']')
}

// MarshalJSON is the list as JSON.
func (l List) MarshalJSON() ([]byte, error) { return l.AppendJSON(nil), nil }

// String is the list as JSON.
func (l List) String() string { return string(l.AppendJSON(nil)) }

// Equal reports whether two lists have the same text.
func (l List) Equal(other List) bool {
	return slices.EqualFunc(l, other, func(a, b Detail) bool { return a.text == b.text })
}

// Values are the details as JSON has them, for rules that look into them.
func (l List) Values() []any {
	all := make([]any, len(l))
	for i, d := range l {
		all[i] = d.members
	}
	return all
}

// Locations are where the detail is to count (RFC 9396, section 2.2); nil if it
// does not say.
func (d *Detail) Locations() []string {
	list, _ := d.members["locations"].([]any)
	var at []string
	for _, v := range list {
		if s, ok := v.(string); ok {
			at = append(at, s)
		}
	}
	return at
}

// Locations are all places that the details of the list name, each once.
func (l List) Locations() (all []string) {
	for i := range l {
		for _, at := range l[i].Locations() {
			if !slices.Contains(all, at) {
				all = append(all, at)
			}
		}
	}
	return all
}
