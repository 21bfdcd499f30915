package secret

import (
	"net/url"
	"strings"
)

// A Handle names a field of a secret without giving it away. It is written
// estover:secret/crm/api-key#token; without a field it means [DefaultField].
type Handle struct {
	Path  string
	Field string
}

const handlePrefix = "estover:secret/"

// String is the handle as it is written.
func (h Handle) String() string {
	parts := strings.Split(h.Path, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	s := handlePrefix + strings.Join(parts, "/")
	if h.Field != "" && h.Field != DefaultField {
		s += "#" + h.Field
	}
	return s
}

// ParseHandle reads a handle.
func ParseHandle(s string) (Handle, error) {
	rest, ok := strings.CutPrefix(s, handlePrefix)
	if !ok {
		return Handle{}, ErrInvalid.With("The handle of a secret begins with %s.", handlePrefix)
	}
	escaped, field, _ := strings.Cut(rest, "#")
	path, err := url.PathUnescape(escaped)
	if err != nil {
		return Handle{}, ErrInvalid.With("The path in the handle of a secret is not escaped as in a URL.")
	}
	if err := checkPath(path); err != nil {
		return Handle{}, err
	}
	if field == "" {
		field = DefaultField
	}
	if !fieldName.MatchString(field) {
		return Handle{}, ErrInvalid.With("The field in the handle of a secret is not the name of one.")
	}
	return Handle{path, field}, nil
}

// MarshalText is the handle as it is written.
func (h Handle) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads a handle.
func (h *Handle) UnmarshalText(b []byte) (err error) {
	*h, err = ParseHandle(string(b))
	return err
}
