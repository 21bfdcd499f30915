package vault

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// An Answer is what a handler gives back. It becomes the envelope that clients
// know (V7), unless it is bare or raw.
type Answer struct {
	// Data is what was asked for: anything that JSON has a form for. Members that
	// are secret are given as json.RawMessage or string; an [estover.Secret] would
	// show a placeholder.
	Data any

	Lease    *LeaseInfo
	Auth     any // of a log-in; an object
	Warnings []string
	Status   int // 200 if 0

	// Bare is the whole answer, without the envelope (V8).
	Bare any
	// Raw is the whole body, in a type of its own.
	Raw     []byte
	RawType string

	// Wraps names what is wrapped when the answer is: the accessor of a token or a
	// secret-id.
	Wraps string

	top bool
}

// A LeaseInfo is what the envelope says of a lease. An answer without a lease
// may have a duration all the same.
type LeaseInfo struct {
	ID        string
	Duration  time.Duration
	Renewable bool
}

// Wrapped is an answer that is to be kept for whoever unwraps it: its body and
// its status as they would have been sent.
type Wrapped struct {
	Body     []byte
	Status   int
	TTL      time.Duration
	Path     string // of the request
	Accessor string // of the token or secret-id in the answer; "" for none
}

// WrapInfo is what the client gets in the place of a wrapped answer (V12).
type WrapInfo struct {
	Token        string `json:"token"`
	Accessor     string `json:"accessor"`
	TTL          int64  `json:"ttl"` // seconds
	CreationTime string `json:"creation_time"`
	CreationPath string `json:"creation_path"`
	Accessed     string `json:"wrapped_accessor,omitempty"`
}

// Time is an instant as clients of Vault read it.
func Time(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// listing is the answer to a list: 404 where there is nothing (V9).
func listing(keys []string, more map[string]any) (*Answer, error) {
	if len(keys) == 0 {
		return nil, errNothing
	}
	data := map[string]any{"keys": keys}
	for k, v := range more {
		data[k] = v
	}
	return &Answer{Data: data}, nil
}

// envelope writes the answer as clients know it.
func (a *Answer) envelope(id string, wrap *WrapInfo) ([]byte, error) {
	data, err := encode(a.Data)
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, 256+len(data)), `{"request_id":"`...)
	b = append(b, id...)
	lease := a.Lease
	if lease == nil {
		lease = &LeaseInfo{}
	}
	b = append(b, `","lease_id":`...)
	b, _ = jsontext.AppendQuote(b, lease.ID)
	b = strconv.AppendBool(append(b, `,"renewable":`...), lease.Renewable)
	b = strconv.AppendInt(append(b, `,"lease_duration":`...), int64(lease.Duration/time.Second), 10)
	b = append(append(b, `,"data":`...), data...)
	for _, m := range []struct {
		name  string
		value any
	}{{"wrap_info", wrap}, {"warnings", a.Warnings}, {"auth", a.Auth}} {
		text, err := encode(m.value)
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"`+m.name+`":`...), text...)
	}
	if a.top && len(data) > 2 && data[0] == '{' {
		// The members of data again: none has the name of one of the envelope's.
		b = append(append(b, ','), data[1:len(data)-1]...)
	}
	return append(b, "}\n"...), nil
}

// encode is a value as JSON, on one line and without escapes for HTML.
func encode(v any) ([]byte, error) {
	if list, ok := v.([]string); v == nil || ok && list == nil {
		return []byte("null"), nil
	}
	if wrap, ok := v.(*WrapInfo); ok && wrap == nil {
		return []byte("null"), nil
	}
	var w bytes.Buffer
	e := json.NewEncoder(&w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(w.Bytes(), []byte("\n")), nil
}

// write sends an answer, wrapped where the client asked for that.
func (d *Door) write(w http.ResponseWriter, q *Request, a *Answer) {
	h := w.Header()
	if q.Namespace != "" {
		h.Set("X-Vault-Namespace", q.Namespace)
	}
	if a == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	code := a.Status
	if code == 0 {
		code = http.StatusOK
	}
	if a.Raw != nil || a.RawType != "" {
		h.Set("Content-Type", a.RawType)
		if code == http.StatusOK && len(a.Raw) == 0 {
			code = http.StatusNoContent
		}
		w.WriteHeader(code)
		_, _ = w.Write(a.Raw)
		return
	}
	var body []byte
	var err error
	if a.Bare != nil {
		if body, err = encode(a.Bare); err == nil {
			body = append(body, '\n')
		}
	} else {
		body, err = a.envelope(q.id, nil)
		if err == nil && q.Wrap > 0 && !q.noWrap {
			if q.Token == nil && a.Auth == nil { // or strangers would fill the store with what anybody may see
				d.fail(w, q, refuse(http.StatusBadRequest, "what needs no token is not wrapped; leave out X-Vault-Wrap-TTL"))
				return
			}
			body, err = d.wrap(q, a, code, body)
			code = http.StatusOK
		}
	}
	if err != nil {
		d.fail(w, q, err)
		return
	}
	defer clear(body) // it may hold a secret
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

// wrap keeps the answer for whoever unwraps it, and is what is sent in its place.
func (d *Door) wrap(q *Request, a *Answer, code int, body []byte) ([]byte, error) {
	if d.o.Wrap == nil {
		return nil, refuse(http.StatusBadRequest, "answers are not wrapped here; leave out X-Vault-Wrap-TTL")
	}
	info, err := d.o.Wrap(q.HTTP.Context(), q, Wrapped{Body: bytes.Clone(body), Status: code, TTL: q.Wrap, Path: q.Path, Accessor: a.Wraps})
	clear(body)
	if err != nil {
		return nil, err
	}
	return (&Answer{Warnings: a.Warnings}).envelope(q.id, &info)
}

// seconds is a duration in whole seconds.
func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// words is a list that is never null in JSON.
func words(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func join(list []string) string { return strings.Join(list, ", ") }
