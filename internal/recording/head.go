package recording

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// RequestHeadOf writes the head of a request as a frame holds it: the form of
// HTTP/1.1, whatever version was spoken, with the fields in the order of their
// names. Its first line has the whole URL, or the path if Host is among the
// fields.
func RequestHeadOf(method, url, proto string, h http.Header) []byte {
	b := make([]byte, 0, 512)
	b = appendLine(b, method, url, proto)
	return appendFields(b, h)
}

// ResponseHeadOf writes the head of a response as a frame holds it.
func ResponseHeadOf(proto string, status int, h http.Header) []byte {
	b := make([]byte, 0, 512)
	b = appendLine(b, proto, strconv.Itoa(status), http.StatusText(status))
	return appendFields(b, h)
}

func appendLine(b []byte, words ...string) []byte {
	for i, w := range words {
		if i > 0 {
			b = append(b, ' ')
		}
		b = appendClean(b, w)
	}
	return append(b, "\r\n"...)
}

func appendFields(b []byte, h http.Header) []byte {
	names := make([]string, 0, 32)
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range h[name] {
			b = appendClean(b, name)
			b = append(b, ": "...)
			b = appendClean(b, v)
			b = append(b, "\r\n"...)
		}
	}
	return append(b, "\r\n"...)
}

// appendClean keeps a value on its line.
func appendClean(b []byte, s string) []byte {
	if strings.IndexByte(s, '\r') < 0 && strings.IndexByte(s, '\n') < 0 {
		return append(b, s...)
	}
	return append(b, strings.NewReplacer("\r", " ", "\n", " ").Replace(s)...)
}

// A Head is the head of a request or a response.
type Head struct {
	Line   [3]string // method, URL and version; or version, status and its text
	Fields []Field
}

// A Field is one header field.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Get is the first value of a field, whatever the case of its name.
func (h Head) Get(name string) string {
	for _, f := range h.Fields {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// ParseHead reads what [RequestHeadOf] or [ResponseHeadOf] wrote.
func ParseHead(b []byte) (h Head, err error) {
	line, rest, ok := bytes.Cut(b, []byte("\r\n"))
	words := strings.SplitN(string(line), " ", 3)
	if !ok || len(words) < 3 {
		return h, errors.New("a head without a first line")
	}
	copy(h.Line[:], words)
	for {
		line, rest, ok = bytes.Cut(rest, []byte("\r\n"))
		if !ok {
			return h, errors.New("a head that is cut off")
		}
		if len(line) == 0 {
			return h, nil
		}
		name, value, ok := strings.Cut(string(line), ": ")
		if !ok {
			return h, errors.New("a header field without a name")
		}
		h.Fields = append(h.Fields, Field{name, value})
	}
}
