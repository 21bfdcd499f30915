package gateway

import (
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	"estover.dev"
	"estover.dev/internal/edge"
)

// A Certificate is a client certificate with its key.
type Certificate = tls.Certificate

// A SlotKind is a place in a request where a secret may be put.
type SlotKind string

// The kinds of slot. A client certificate is not among them: it belongs to the
// connection, see [Upstream].
const (
	HeaderSlot SlotKind = "header" // the value of a header, after a prefix
	QuerySlot  SlotKind = "query"  // the value of a query parameter
	BasicSlot  SlotKind = "basic"  // the password of HTTP Basic, with a user's name
)

// A Slot is one place and the secret that belongs there. The place is emptied
// before it is filled. Nothing else of a request is ever replaced (gateway.md,
// G10).
type Slot struct {
	Kind   SlotKind
	Name   string // of the header or the parameter
	Prefix string // before the secret in a header: "Bearer "
	User   string // for BasicSlot
	Secret estover.Secret
	Label  string // what stands for the secret in the record: "sec_…@3"
}

// header is the name of the header that the slot is in, if it is in one.
func (s Slot) header() string {
	switch s.Kind {
	case HeaderSlot:
		return s.Name
	case BasicSlot:
		return "Authorization"
	}
	return ""
}

// check refuses a slot that cannot be filled.
func (s Slot) check() error {
	switch {
	case s.Secret.Empty():
		return ErrSlot.With("There is no secret for the slot %s %s.", s.Kind, s.Name)
	case s.Kind == HeaderSlot && !httpguts.ValidHeaderFieldName(s.Name):
		return ErrSlot.With("%q is not the name of a header.", s.Name)
	case s.Kind == HeaderSlot && !httpguts.ValidHeaderFieldValue(s.Prefix+string(s.Secret.Reveal())):
		return ErrSlot.With("The secret for the header %s cannot stand in a header: it has a line end or another control character.", s.Name)
	case s.Kind == BasicSlot && strings.ContainsRune(s.User, ':'):
		return ErrSlot.With("The name of a user cannot have a colon in HTTP Basic.")
	case s.Kind == QuerySlot && s.Name == "":
		return ErrSlot.With("The query parameter of a slot has no name.")
	case s.Kind != HeaderSlot && s.Kind != BasicSlot && s.Kind != QuerySlot:
		return ErrSlot.With("There is no slot of the kind %q.", s.Kind)
	}
	return nil
}

// fill sets the slots, which are empty. With show they are filled with labels.
func fill(h http.Header, query string, slots []Slot, show bool) string {
	for _, s := range slots {
		value := "‹secret " + s.Label + "›"
		switch {
		case s.Kind == QuerySlot:
			if !show {
				value = url.QueryEscape(string(s.Secret.Reveal()))
			}
			if query != "" {
				query += "&"
			}
			query += url.QueryEscape(s.Name) + "=" + value
		case s.Kind == BasicSlot && !show:
			h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(s.User+":"+string(s.Secret.Reveal()))))
		case s.Kind == BasicSlot:
			h.Set("Authorization", "Basic "+s.User+":"+value)
		default:
			if !show {
				value = string(s.Secret.Reveal())
			}
			h.Set(s.Name, s.Prefix+value)
		}
	}
	return query
}

// emptyQuery takes out every parameter whose name a server could take for that
// of a slot. What is left stays as it was.
func emptyQuery(query string, slots []Slot) string {
	for _, s := range slots {
		if s.Kind != QuerySlot || query == "" {
			continue
		}
		var left []string
		for part := range strings.SplitSeq(query, "&") {
			name, _, _ := strings.Cut(part, "=")
			if plain, err := url.QueryUnescape(name); err == nil {
				name = plain
			}
			// PHP and its like read "key[]" and "key.x" as "key".
			name, _, _ = strings.Cut(name, "[")
			if edge.Fold(strings.TrimSpace(name)) != edge.Fold(s.Name) {
				left = append(left, part)
			}
		}
		query = strings.Join(left, "&")
	}
	return query
}
