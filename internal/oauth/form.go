package oauth

import (
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"estover.dev/internal/detail"
	"estover.dev/internal/token"
)

// The bounds of a form.
const (
	maxForm       = 64 << 10 // bytes
	maxParameters = 128
	maxResource   = 2048 // bytes of an identifier
)

// A form is the parameters of a request, in their order, without those that
// have no value: they are as good as omitted (RFC 6749, section 3.2). A
// parameter stands there once, except for those that may repeat.
type form []parameter

type parameter struct{ name, value string }

// repeatable are the parameters that may stand there more than once (RFC 8707,
// section 2; RFC 8693, section 2.1).
func repeatable(name string) bool { return name == "resource" || name == "audience" }

// get is the value of a parameter, or "".
func (f form) get(name string) string {
	for i := range f {
		if f[i].name == name {
			return f[i].value
		}
	}
	return ""
}

// all are the values of a parameter that may repeat; nil if there are none.
func (f form) all(name string) (values []string) {
	for i := range f {
		if f[i].name == name {
			values = append(values, f[i].value)
		}
	}
	return values
}

// readForm reads the body of a POST. What stands in the URL is not looked at:
// parameters there would be in logs (RFC 6749, section 3.2).
func readForm(r *http.Request) (form, error) {
	if t := r.Header.Get("Content-Type"); t != formType {
		if parsed, _, err := mime.ParseMediaType(t); err != nil || parsed != formType {
			return nil, errRequest.With("The body is a form, with the type %s.", formType)
		}
	}
	if r.Header.Get("Content-Encoding") != "" {
		return nil, errRequest.With("The body is not compressed.")
	}
	if r.ContentLength > maxForm {
		return nil, errTooLarge
	}
	var body []byte
	var err error
	if n := r.ContentLength; n > 0 && n <= roomSize {
		room := rooms.Get().(*[roomSize]byte)
		defer leave(room)
		body = room[:n]
		_, err = io.ReadFull(r.Body, body)
	} else {
		body, err = io.ReadAll(io.LimitReader(r.Body, maxForm+1))
	}
	switch {
	case err != nil:
		return nil, errRequest.With("The body could not be read.").Because(err)
	case len(body) > maxForm:
		return nil, errTooLarge
	}
	return parseForm(string(body))
}

// rooms hold what is made or read in one piece, and is a secret.
var rooms = sync.Pool{New: func() any { return new([roomSize]byte) }}

const roomSize = 2 << 10 // bytes; most forms and answers fit

// leave gives a room back as it was found.
func leave(room *[roomSize]byte) {
	clear(room[:])
	rooms.Put(room)
}

const formType = "application/x-www-form-urlencoded"

// parseForm reads a form strictly: what another parser could read otherwise is
// refused.
func parseForm(body string) (form, error) {
	f := make(form, 0, 8)
	count := 0
	for body != "" {
		var pair string
		pair, body, _ = strings.Cut(body, "&")
		if pair == "" {
			continue
		}
		if count++; count > maxParameters {
			return nil, errRequest.With("There are more than %d parameters.", maxParameters)
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err := decode(name)
		if err != nil {
			return nil, err
		}
		if value, err = decode(value); err != nil {
			return nil, err
		}
		if value == "" {
			continue
		}
		if !repeatable(name) && f.get(name) != "" {
			return nil, errRequest.With("A parameter stands there more than once.")
		}
		f = append(f, parameter{name, value})
	}
	return f, nil
}

// decode reads a name or a value of a form. Most of a form is a token, in which
// nothing is encoded: that is seen faster than it is decoded.
func decode(s string) (string, error) {
	if strings.IndexByte(s, '%') >= 0 || strings.IndexByte(s, '+') >= 0 {
		var err error
		if s, err = url.QueryUnescape(s); err != nil {
			return "", errRequest.With("A parameter is not encoded as in a form.")
		}
	}
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return "", errRequest.With("A parameter is not text.")
	}
	return s, nil
}

// scopes reads the parameter scope (RFC 6749, section 3.3). Nil is none asked
// for.
func (f form) scopes() ([]string, error) {
	text := f.get("scope")
	if text == "" {
		return nil, nil
	}
	if strings.Count(text, " ") >= token.MaxScopes {
		return nil, errScopes
	}
	var list []string
	for s := range strings.SplitSeq(text, " ") {
		switch {
		case s == "":
		case !token.Scope(s):
			return nil, errScopes.With("A scope has a character that no scope may have.")
		case !slices.Contains(list, s):
			list = append(list, s)
		}
	}
	return list, nil
}

// details reads the parameter authorization_details (RFC 9396, section 2). Whether
// there are such types is asked later. Nil is none asked for.
func (f form) details() (detail.List, error) {
	text := f.get("authorization_details")
	if text == "" {
		return nil, nil
	}
	return detail.Parse([]byte(text))
}

// resources reads the values of the parameter resource (RFC 8707, section 2).
// Whether there are such resources is asked later.
func resources(list []string) ([]string, error) {
	if len(list) > token.MaxResources {
		return nil, errTarget.With("At most %d resources may be named.", token.MaxResources)
	}
	for i, r := range list {
		scheme := strings.Index(r, "://")
		if scheme <= 0 || len(r) > maxResource || strings.ContainsAny(r, "# \\") {
			return nil, errTarget.With("A resource is named by an absolute URI without a fragment.")
		}
		list[i] = lowerHost(r, scheme)
	}
	return list, nil
}

// lowerHost writes the scheme and the host of a URI in lower case, as they are
// registered. The rest has its case.
func lowerHost(uri string, scheme int) string {
	end := len(uri)
	if i := strings.IndexAny(uri[scheme+3:], "/?"); i >= 0 {
		end = scheme + 3 + i
	}
	for i := range end {
		if c := uri[i]; 'A' <= c && c <= 'Z' {
			return strings.ToLower(uri[:end]) + uri[end:]
		}
	}
	return uri
}
