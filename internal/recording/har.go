package recording

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"estover.dev"
)

// ExportHAR writes the HTTP exchanges of a session in the HTTP Archive format
// 1.2, for browsers' tools. It is a reading of the recording, and an event.
//
// What HAR has no place for stands in members whose names begin with an
// underscore, as its specification allows: the decision, notes, messages of
// WebSockets, and where the rest of a long body is.
func (r *Recordings) ExportHAR(ctx context.Context, c estover.Caller, session string, w io.Writer) error {
	p, err := r.open(ctx, c, session, "har")
	if err != nil {
		return err
	}
	// An exchange is written when its last frame has been read, so that only
	// those under way are in memory. A first pass finds the last frames.
	last := map[exchange]int64{}
	for f, err := range p.Frames(ctx, Range{}) {
		if err != nil {
			return err
		}
		last[exchange{f.Recording, f.Stream}] = f.Seq
	}
	out := bufio.NewWriter(w)
	fmt.Fprint(out, `{"log":{"version":"1.2","creator":{"name":"Estover","version":"1"},"pages":[],"entries":[`)
	open := map[exchange]*harEntry{}
	n := 0
	for f, err := range p.Frames(ctx, Range{}) {
		if err != nil {
			return err
		}
		k := exchange{f.Recording, f.Stream}
		if f.Stream == 0 {
			continue
		}
		e := open[k]
		if e == nil {
			e = newHAREntry(f.At)
			e.Estover.Recording, e.Estover.Stream = f.Recording, f.Stream
			open[k] = e
		}
		e.add(f)
		if last[k] != f.Seq {
			continue
		}
		delete(open, k)
		if !e.http {
			continue
		}
		b, err := json.Marshal(e.done())
		if err != nil {
			return err
		}
		if n++; n > 1 {
			_ = out.WriteByte(',')
		}
		_, _ = out.Write(b)
	}
	fmt.Fprint(out, "]}}\n")
	return out.Flush()
}

type exchange struct {
	recording string
	stream    uint64
}

type harEntry struct {
	Started  string      `json:"startedDateTime"`
	Time     float64     `json:"time"`
	Request  harRequest  `json:"request"`
	Response harResponse `json:"response"`
	Cache    struct{}    `json:"cache"`
	Timings  harTimings  `json:"timings"`
	Messages []harSocket `json:"_webSocketMessages,omitempty"`
	Estover  struct {
		Recording    string            `json:"recording"`
		Stream       uint64            `json:"stream"`
		Decision     json.RawMessage   `json:"decision,omitempty"`
		Notes        []json.RawMessage `json:"notes,omitempty"`
		RequestRest  *Ref              `json:"request_rest,omitempty"`
		ResponseRest *Ref              `json:"response_rest,omitempty"`
	} `json:"_estover"`

	http                    bool
	at, sent, answered, end time.Time
	up, down                []byte
	upType, downType        string
}

type harRequest struct {
	Method      string   `json:"method"`
	URL         string   `json:"url"`
	HTTPVersion string   `json:"httpVersion"`
	Cookies     []Field  `json:"cookies"`
	Headers     []Field  `json:"headers"`
	Query       []Field  `json:"queryString"`
	Post        *harPost `json:"postData,omitempty"`
	HeadersSize int64    `json:"headersSize"`
	BodySize    int64    `json:"bodySize"`
}

type harPost struct {
	MimeType string  `json:"mimeType"`
	Params   []Field `json:"params"`
	Text     string  `json:"text"`
	Encoding string  `json:"_encoding,omitempty"`
}

type harResponse struct {
	Status      int        `json:"status"`
	StatusText  string     `json:"statusText"`
	HTTPVersion string     `json:"httpVersion"`
	Cookies     []Field    `json:"cookies"`
	Headers     []Field    `json:"headers"`
	Content     harContent `json:"content"`
	RedirectURL string     `json:"redirectURL"`
	HeadersSize int64      `json:"headersSize"`
	BodySize    int64      `json:"bodySize"`
}

type harContent struct {
	Size     int64  `json:"size"`
	MimeType string `json:"mimeType"`
	Text     string `json:"text,omitempty"`
	Encoding string `json:"encoding,omitempty"`
	Comment  string `json:"comment,omitempty"`
}

type harTimings struct {
	Send    float64 `json:"send"`
	Wait    float64 `json:"wait"`
	Receive float64 `json:"receive"`
}

type harSocket struct {
	Type   string  `json:"type"`
	Time   float64 `json:"time"`
	Opcode int     `json:"opcode"`
	Data   string  `json:"data"`
}

func newHAREntry(at time.Time) *harEntry {
	e := &harEntry{Started: at.Format(time.RFC3339Nano), at: at, sent: at, answered: at, end: at}
	e.Request = harRequest{Cookies: []Field{}, Headers: []Field{}, Query: []Field{}, HeadersSize: -1}
	e.Response = harResponse{Cookies: []Field{}, Headers: []Field{}, HeadersSize: -1}
	return e
}

// add takes the next frame of the exchange. What is no head is passed over:
// an archive of the rest is better than none.
func (e *harEntry) add(f Frame) {
	e.end = f.At
	switch f.Kind {
	case RequestHead:
		h, err := ParseHead(f.Data)
		if err != nil {
			return
		}
		e.http, e.sent, e.answered, e.upType = true, f.At, f.At, h.Get("Content-Type")
		q := &e.Request
		q.Method, q.URL, q.HTTPVersion, q.HeadersSize = h.Line[0], h.Line[1], h.Line[2], int64(len(f.Data))
		if host := h.Get("Host"); strings.HasPrefix(q.URL, "/") && host != "" {
			q.URL = "https://" + host + q.URL
		}
		q.Headers = append(q.Headers, h.Fields...)
		_, query, _ := strings.Cut(h.Line[1], "?")
		for pair := range strings.SplitSeq(query, "&") {
			if pair != "" {
				name, value, _ := strings.Cut(pair, "=")
				q.Query = append(q.Query, Field{unescaped(name), unescaped(value)})
			}
		}
	case ResponseHead:
		h, err := ParseHead(f.Data)
		if err != nil {
			return
		}
		e.answered, e.downType = f.At, h.Get("Content-Type")
		a := &e.Response
		a.HTTPVersion, a.StatusText, a.HeadersSize = h.Line[0], h.Line[2], int64(len(f.Data))
		a.Status, _ = strconv.Atoi(h.Line[1])
		a.Headers, a.RedirectURL = append(a.Headers[:0], h.Fields...), h.Get("Location")
	case HTTPBody, SSE:
		body, ref := &e.down, &e.Estover.ResponseRest
		if f.Dir == Up {
			body, ref, e.sent = &e.up, &e.Estover.RequestRest, f.At
		}
		*body = append(*body, f.Data...)
		if f.Ref != nil {
			*ref = f.Ref
		}
	case WebSocket:
		m := harSocket{Type: "receive", Time: float64(f.At.UnixMicro()) / 1e6, Opcode: 1, Data: string(f.Data)}
		if f.Dir == Up {
			m.Type = "send"
		}
		if !utf8.Valid(f.Data) {
			m.Opcode, m.Data = 2, base64.StdEncoding.EncodeToString(f.Data)
		}
		e.Messages = append(e.Messages, m)
	case Policy:
		if json.Valid(f.Data) {
			e.Estover.Decision = f.Data
		}
	case Note:
		if json.Valid(f.Data) {
			e.Estover.Notes = append(e.Estover.Notes, f.Data)
		}
	}
}

// done is the entry with everything filled in.
func (e *harEntry) done() *harEntry {
	ms := func(from, to time.Time) float64 { return float64(to.Sub(from).Microseconds()) / 1000 }
	if e.answered.Before(e.sent) {
		e.answered = e.sent // the body of the request went on after the answer had begun
	}
	e.Time = ms(e.at, e.end)
	e.Timings = harTimings{Send: ms(e.at, e.sent), Wait: ms(e.sent, e.answered), Receive: ms(e.answered, e.end)}
	e.Request.BodySize = int64(len(e.up))
	if r := e.Estover.RequestRest; r != nil {
		e.Request.BodySize = r.Size
	}
	if len(e.up) > 0 {
		e.Request.Post = &harPost{MimeType: e.upType, Params: []Field{}}
		e.Request.Post.Text, e.Request.Post.Encoding = harText(e.up)
	}
	c := &e.Response.Content
	c.Size, c.MimeType = int64(len(e.down)), e.downType
	c.Text, c.Encoding = harText(e.down)
	if r := e.Estover.ResponseRest; r != nil {
		c.Size = r.Size
		c.Comment = fmt.Sprintf("The first %d of %d bytes.", r.From, r.Size)
	}
	e.Response.BodySize = c.Size
	return e
}

// unescaped is a part of a query in clear, or as it stands if it is none.
func unescaped(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// harText is a body as text, or in base64 if it is none.
func harText(b []byte) (text, encoding string) {
	if utf8.Valid(b) {
		return string(b), ""
	}
	return base64.StdEncoding.EncodeToString(b), "base64"
}
