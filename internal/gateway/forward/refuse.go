package forward

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/gateway"
)

// refuse answers a CONNECT with an error and closes: what was not read of it is
// no request. The sentence also stands in the place of the reason phrase
// (RFC 9112, section 4), since that is all that most programs show of a CONNECT
// that was refused; net/http writes no phrase but its own.
func refuse(w http.ResponseWriter, request string, err error) {
	a := answer{header: http.Header{}}
	gateway.Refuse(&a, request, err)
	a.header.Set("Connection", "close")
	a.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %03d %s\r\n", a.status, phrase(err))
	_ = a.header.Write(&b) // a buffer takes everything
	b.WriteString("\r\n")
	b.Write(a.body)
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(firstByte))
	if _, err := c.Write(b.Bytes()); err != nil {
		return
	}
	// A client that has sent more than it should loses the answer if the
	// connection is closed with that unread.
	if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 64<<10))
	}
}

// maxSentence bounds the sentence in a reason phrase, in bytes.
const maxSentence = 250

// phrase is the sentence of an error on one line, and how to learn more.
func phrase(err error) string {
	text, why := "Refused", ""
	var e *estover.Error
	if errors.As(err, &e) {
		text = e.Detail
	}
	var r *gateway.Refusal
	if errors.As(err, &r) && r.Decision != "" {
		why = " Why: estover why " + r.Decision
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return ' '
		}
		return c
	}, text[:min(len(text), maxSentence)]+why)
}

// An answer is what a handler would have written.
type answer struct {
	header http.Header
	status int
	body   []byte
}

func (a *answer) Header() http.Header    { return a.header }
func (a *answer) WriteHeader(status int) { a.status = status }

func (a *answer) Write(b []byte) (int, error) {
	a.body = append(a.body, b...)
	return len(b), nil
}
