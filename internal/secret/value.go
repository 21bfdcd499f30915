package secret

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
)

const (
	maxFields = 64
	maxValue  = 64 << 10 // bytes of one value
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

// decode reads the fields of a version that want names, each into memory of
// its own, and clears the text.
func decode(plain []byte, want func(name string) bool) (map[string]estover.Secret, error) {
	defer clear(plain)
	d := jsontext.NewDecoder(bytes.NewBuffer(plain))
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	fields := map[string]estover.Secret{}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		wanted := name.String()
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		if !want(wanted) {
			continue
		}
		b, err := jsontext.AppendUnquote(make([]byte, 0, len(value)), value)
		if err != nil {
			return nil, err
		}
		fields[wanted] = estover.NewSecret(b)
	}
	return fields, nil
}

// A Plain is a version in plaintext.
type Plain struct {
	Version
	Values map[string]estover.Secret `json:"-"`
}

// MarshalJSON shows everything but the values, even to who puts the version
// into an answer by mistake.
func (p Plain) MarshalJSON() ([]byte, error) { return json.Marshal(p.Version) }
