package gateway

import (
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway/sign"
)

// A Certificate is a client certificate with its key.
type Certificate = tls.Certificate

// A SlotKind is a place in a request where a secret may be put.
type SlotKind string

// The kinds of slot.
const (
	HeaderSlot SlotKind = "header" // the value of a header, after a prefix
	QuerySlot  SlotKind = "query"  // the value of a query parameter
	BasicSlot  SlotKind = "basic"  // the password of HTTP Basic, with a user's name
	BodySlot   SlotKind = "body"   // a member of a JSON body
	FormSlot   SlotKind = "form"   // a parameter of a form that has a handle as its value
	MTLSSlot   SlotKind = "mtls"   // the connection's client certificate, see [Upstream]
	AWSSlot    SlotKind = "sigv4"  // a signature of AWS over the request
	HMACSlot   SlotKind = "hmac"   // a signature by a template over the request
)

// A Slot is one place and the secret that belongs there. The place is emptied
// before it is filled. Nothing else of a request is ever replaced (gateway.md,
// G10). Signatures are made when all other slots are filled.
type Slot struct {
	Kind   SlotKind
	Name   string // of the header, the parameter or the member: a JSON Pointer
	Prefix string // before the secret in a header: "Bearer "
	User   string // for BasicSlot
	Secret estover.Secret
	Label  string // what stands for the secret in the record: "sec_…@3"

	Handle   string    // for FormSlot: what the secret stands in the place of
	AWS      *sign.AWS // for AWSSlot
	Unsigned bool      // for AWSSlot: whether a body may go out that is not signed
	Allowed  []string  // for AWSSlot: subresources of S3
	HMAC     *sign.HMAC
}

// headers are the names of the headers that the slot fills.
func (s *Slot) headers() []string {
	switch s.Kind {
	case HeaderSlot:
		return []string{s.Name}
	case BasicSlot:
		return []string{"Authorization"}
	case AWSSlot:
		return sign.AWSHeaders
	case HMACSlot:
		names := []string{s.Name}
		for name := range s.HMAC.Spec.Headers {
			names = append(names, name)
		}
		return names
	}
	return nil
}

// parameters are the names of the query parameters that the slot fills.
func (s *Slot) parameters() []string {
	switch s.Kind {
	case QuerySlot:
		return []string{s.Name}
	case AWSSlot:
		return sign.AWSParameters
	}
	return nil
}

// signs reports whether the slot is a signature.
func (s *Slot) signs() bool { return s.Kind == AWSSlot || s.Kind == HMACSlot }

// check refuses a slot that cannot be filled.
func (s *Slot) check() error {
	switch {
	case s.Kind == MTLSSlot:
		return nil
	case s.Kind == AWSSlot:
		if s.AWS.KeyID == "" || s.AWS.Key.Empty() || strings.ContainsAny(s.AWS.KeyID, "/, \r\n") {
			return ErrSlot.With("There is no key of AWS for the signature.")
		}
		return nil
	case s.Secret.Empty():
		return ErrSlot.With("There is no secret for the slot %s %s.", s.Kind, s.Name)
	case s.Kind == HeaderSlot && !httpguts.ValidHeaderFieldName(s.Name):
		return ErrSlot.With("%q is not the name of a header.", s.Name)
	case s.Kind == HeaderSlot && !httpguts.ValidHeaderFieldValue(s.Prefix+string(s.Secret.Reveal())):
		return ErrSlot.With("The secret for the header %s cannot stand in a header: it has a line end or another control character.", s.Name)
	case s.Kind == BasicSlot && strings.ContainsRune(s.User, ':'):
		return ErrSlot.With("The name of a user cannot have a colon in HTTP Basic.")
	case (s.Kind == QuerySlot || s.Kind == BodySlot || s.Kind == FormSlot) && s.Name == "":
		return ErrSlot.With("The slot %s has no name.", s.Kind)
	case s.Kind == BodySlot && !utf8.Valid(s.Secret.Reveal()):
		return ErrSlot.With("The secret for the member %s of the body cannot stand in JSON: it is not UTF-8.", s.Name)
	}
	switch s.Kind {
	case HeaderSlot, BasicSlot, QuerySlot, BodySlot, FormSlot, HMACSlot:
		return nil
	}
	return ErrSlot.With("There is no slot of the kind %q.", s.Kind)
}

// label is what stands for the secret wherever a request is shown.
func (s *Slot) label() string { return string(s.appendLabel(nil)) }

func (s *Slot) appendLabel(b []byte) []byte {
	return append(append(append(b, "‹secret "...), s.Label...), "›"...)
}

// header is the header that the slot fills by itself, not as a part of a signature;
// "" if there is none.
func (s *Slot) header() string {
	switch s.Kind {
	case HeaderSlot:
		return s.Name
	case BasicSlot:
		return "Authorization"
	}
	return ""
}

// append writes what stands in that header. With show that has the label.
func (s *Slot) append(b []byte, show bool) []byte {
	if s.Kind == HeaderSlot {
		b = append(b, s.Prefix...)
		if show {
			return s.appendLabel(b)
		}
		return append(b, s.Secret.Reveal()...)
	}
	b = append(b, "Basic "...)
	if show {
		return s.appendLabel(append(append(b, s.User...), ':'))
	}
	both := append(append([]byte(s.User), ':'), s.Secret.Reveal()...)
	defer clear(both)
	return base64.StdEncoding.AppendEncode(b, both)
}

// fill sets the slots of the head, which are empty, but for signatures. With show
// they are filled with labels.
func fill(h http.Header, query string, slots []Slot, show bool) string {
	for i := range slots {
		if name := slots[i].header(); name != "" {
			h.Set(name, string(slots[i].append(nil, show)))
		}
	}
	return fillQuery(query, slots, show)
}

// fillQuery adds the parameters of the slots to a query.
func fillQuery(query string, slots []Slot, show bool) string {
	for i := range slots {
		s := &slots[i]
		if s.Kind != QuerySlot {
			continue
		}
		value := s.label()
		if !show {
			value = url.QueryEscape(string(s.Secret.Reveal()))
		}
		if query != "" {
			query += "&"
		}
		query += url.QueryEscape(s.Name) + "=" + value
	}
	return query
}

// emptyQuery takes out every parameter whose name a server could take for that
// of a slot. What is left stays as it was.
func emptyQuery(query string, slots []Slot) string {
	for i := range slots {
		names := slots[i].parameters()
		if len(names) == 0 || query == "" {
			continue
		}
		var left []string
		for part := range strings.SplitSeq(query, "&") {
			if folded := foldParameter(part); !slices.ContainsFunc(names, func(name string) bool { return edge.Fold(name) == folded }) {
				left = append(left, part)
			}
		}
		query = strings.Join(left, "&")
	}
	return query
}

// foldParameter is the name of a parameter as servers may take it.
func foldParameter(part string) string {
	name, _, _ := strings.Cut(part, "=")
	if plain, err := url.QueryUnescape(name); err == nil {
		name = plain
	}
	// PHP and its like read "key[]" and "key.x" as "key".
	name, _, _ = strings.Cut(name, "[")
	return edge.Fold(strings.TrimSpace(name))
}
