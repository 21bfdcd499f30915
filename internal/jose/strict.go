package jose

import (
	"bytes"
	"encoding/base64"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// The bounds of what is read.
const (
	maxToken  = 16 << 10 // bytes of a token
	maxDepth  = 8        // levels of objects and arrays, the outermost included
	maxNumber = 32       // characters of a number
)

// base64url decodes one part of a token. Nothing but the one encoding that a
// sender should have made is accepted.
var base64url = base64.RawURLEncoding.Strict()

// decodePart is base64url without the line breaks that the decoder skips.
func decodePart(s string) ([]byte, error) {
	if s == "" || strings.ContainsAny(s, "\r\n") {
		return nil, ErrInvalid.With("A part of the token is not in base64url.")
	}
	b, err := base64url.DecodeString(s)
	if err != nil {
		return nil, ErrInvalid.With("A part of the token is not in base64url.")
	}
	return b, nil
}

// A member is a name of an object with its value as it was written.
type member struct {
	name  string
	value jsontext.Value
}

// An object is the members of a JSON object in their order.
type object []member

// get finds a member by its exact name.
func (o object) get(name string) (jsontext.Value, bool) {
	for i := range o {
		if o[i].name == name {
			return o[i].value, true
		}
	}
	return nil, false
}

// parseObject reads b as exactly one JSON object: no name twice at any depth,
// no level too deep, no number too long, nothing behind it, and none of the
// reserved names in another case. The values share b's memory.
func parseObject(b []byte, reserved []string) (object, error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(b))
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '{' {
		return nil, ErrInvalid.With("A part of the token is not a JSON object.")
	}
	members := make(object, 0, 16)
	for dec.PeekKind() == '"' {
		tok, err := dec.ReadToken()
		if err != nil {
			return nil, malformed(err)
		}
		name := tok.String()
		for _, r := range reserved {
			if name != r && strings.EqualFold(name, r) {
				return nil, ErrInvalid.With("The name %q is written in another case.", r)
			}
		}
		start := dec.InputOffset()
		if err := skip(dec); err != nil {
			return nil, err
		}
		members = append(members, member{name, bytes.TrimLeft(b[start:dec.InputOffset()], " \t\r\n:")})
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, malformed(err)
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return nil, ErrInvalid.With("Something follows the JSON object.")
	}
	return members, nil
}

// skip reads one value, however deep, within the bounds.
func skip(dec *jsontext.Decoder) error {
	outer := dec.StackDepth()
	for {
		tok, err := dec.ReadToken()
		if err != nil {
			return malformed(err)
		}
		switch tok.Kind() {
		case '{', '[':
			if dec.StackDepth() > maxDepth {
				return ErrInvalid.With("The JSON is nested deeper than %d levels.", maxDepth)
			}
		case '0':
			if len(tok.String()) > maxNumber {
				return ErrInvalid.With("A number has more than %d characters.", maxNumber)
			}
		}
		if dec.StackDepth() == outer {
			return nil
		}
	}
}

func malformed(err error) error {
	return ErrInvalid.With("A part of the token is not strict JSON.").Because(err)
}

// text reads a JSON string.
func text(v jsontext.Value) (string, bool) {
	if v.Kind() != '"' {
		return "", false
	}
	b, err := jsontext.AppendUnquote(nil, v)
	return string(b), err == nil
}

// texts reads a JSON string or an array of strings, and says which it was.
func texts(v jsontext.Value) (list []string, array, ok bool) {
	if s, ok := text(v); ok {
		return []string{s}, false, true
	}
	if v.Kind() != '[' {
		return nil, false, false
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(v))
	_, _ = dec.ReadToken()
	for dec.PeekKind() == '"' {
		tok, err := dec.ReadToken()
		if err != nil {
			return nil, true, false
		}
		list = append(list, tok.String())
	}
	return list, true, dec.PeekKind() == ']'
}

// latest is the last instant that a time in a token may name: the end of the
// year 9999, which every format of a date can still write.
const latest = 253402300799

// instant reads a NumericDate, which may have a fraction (RFC 7519, section 2).
func instant(v jsontext.Value) (time.Time, bool) {
	if v.Kind() != '0' {
		return time.Time{}, false
	}
	f, err := strconv.ParseFloat(string(v), 64)
	if err != nil || f < 0 || f > latest {
		return time.Time{}, false
	}
	whole, part := math.Modf(f)
	return time.Unix(int64(whole), int64(part*1e9)).UTC(), true
}
