package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
)

const (
	maxFields = 1000
	maxValue  = 64 << 10 // bytes of one value that the gateway may send
	maxValues = 1 << 20  // bytes of a version
)

// encode writes the fields of a version as JSON, in the order of their names.
// The text is the caller's to clear.
func encode(fields map[string]estover.Secret) (names []string, plain []byte, err error) {
	names = slices.Sorted(maps.Keys(fields))
	switch {
	case len(fields) == 0:
		return names, nil, ErrInvalid.With("A version of a secret has at least one field.")
	case len(fields) > maxFields:
		return names, nil, ErrInvalid.With("A version of a secret has at most %d fields.", maxFields)
	}
	size := 2
	for name, v := range fields {
		value := v.Reveal()
		switch {
		case !fieldName.MatchString(name):
			// The name may be a value that somebody put in the wrong place.
			return nil, nil, ErrInvalid.With("The name of a field is made of letters, digits, dots, dashes and underscores, at most 64 of them.")
		case len(value) == 0:
			return names, nil, ErrInvalid.With("The field %s is empty.", name)
		case len(value) > maxValue:
			return names, nil, ErrInvalid.With("The field %s has more than %d bytes.", name, maxValue)
		case !utf8.Valid(value):
			return names, nil, ErrInvalid.With("The field %s is not text. Write it in base64.", name)
		}
		size += len(name) + 6*len(value) + 6 // at most, when every byte is escaped
	}
	// One allocation, so that no half of a value is left behind by growing.
	plain = append(make([]byte, 0, size), '{')
	for i, name := range names {
		if i > 0 {
			plain = append(plain, ',')
		}
		plain, _ = jsontext.AppendQuote(plain, name)
		plain = append(plain, ':')
		if plain, err = jsontext.AppendQuote(plain, fields[name].Reveal()); err != nil {
			panic("secret: valid UTF-8 that cannot be quoted")
		}
	}
	if plain = append(plain, '}'); len(plain) > maxValues {
		clear(plain)
		return names, nil, ErrInvalid.With("A version of a secret has at most %d bytes.", maxValues)
	}
	return names, plain, nil
}

// decode reads the fields of a version, each into memory of its own, and
// clears the text.
func decode(plain []byte) (map[string]estover.Secret, error) {
	defer clear(plain)
	fields := map[string]estover.Secret{}
	err := walk(plain, func(name, value []byte) (err error) {
		fields[string(name)], err = worth(value)
		return err
	})
	return fields, err
}

// decodeField reads one field of a version, and clears the text.
func decodeField(plain []byte, field string) (value estover.Secret, err error) {
	defer clear(plain)
	err = walk(plain, func(name, raw []byte) (err error) {
		if string(name) == field {
			value, err = worth(raw)
		}
		return err
	})
	return value, err
}

// worth is a value as who uses it wants it: a text without its quotes, anything
// else as it is written in JSON.
func worth(raw []byte) (estover.Secret, error) {
	if raw[0] == '"' {
		return unquote(raw)
	}
	return estover.NewSecret(bytes.Clone(raw)), nil
}

func unquote(quoted []byte) (estover.Secret, error) {
	b, err := jsontext.AppendUnquote(make([]byte, 0, len(quoted)), quoted)
	return estover.NewSecret(b), err
}

// errShape says that a version is not what [encode] writes.
var errShape = errors.New("not the fields of a version")

// walk goes through an object without blanks, as [encode] and [parse] write it.
// Reading it by hand leaves no copies of values behind in the buffers of a
// decoder.
func walk(plain []byte, visit func(name, value []byte) error) error {
	if len(plain) == 0 || plain[0] != '{' {
		return errShape
	}
	if string(plain) == "{}" {
		return nil
	}
	for rest := plain; ; {
		name, ok := text(rest[1:])
		if !ok || len(rest) <= 1+len(name) || rest[1+len(name)] != ':' {
			return errShape
		}
		rest = rest[2+len(name):]
		value, ok := span(rest)
		if !ok || len(rest) <= len(value) {
			return errShape
		}
		rest = rest[len(value):]
		bare := name[1 : len(name)-1]
		if bytes.IndexByte(bare, '\\') >= 0 {
			b, err := jsontext.AppendUnquote(nil, name)
			if err != nil {
				return errShape
			}
			bare = b
		}
		if err := visit(bare, value); err != nil {
			return err
		}
		if rest[0] == '}' && len(rest) == 1 {
			return nil
		}
		if rest[0] != ',' {
			return errShape
		}
	}
}

// span is the value that b begins with.
func span(b []byte) ([]byte, bool) {
	if len(b) > 0 && b[0] == '"' {
		return text(b)
	}
	for i, depth := 0, 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			s, ok := text(b[i:])
			if !ok {
				return nil, false
			}
			i += len(s) - 1
			continue
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		case ',':
		default:
			continue
		}
		switch {
		case depth < 0, depth == 0 && b[i] == ',': // the end of what it stands in
			return b[:i], i > 0
		case depth == 0 && (b[i] == '}' || b[i] == ']'):
			return b[:i+1], true
		}
	}
	return nil, false
}

// text is the quoted string that b begins with.
func text(b []byte) ([]byte, bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, false
	}
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return b[:i+1], true
		}
	}
	return nil, false
}

// A Plain is a version in plaintext.
type Plain struct {
	Version
	Values map[string]estover.Secret `json:"-"` // texts as they are, others as JSON
	Object estover.Secret            `json:"-"` // all of them as one object of JSON, every value as it was written
	Custom map[string]string         `json:"-"` // what is said of the secret
}

// MarshalJSON shows everything but the values, even to who puts the version
// into an answer by mistake.
func (p Plain) MarshalJSON() ([]byte, error) { return json.Marshal(p.Version) }
