package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// An Error is the server's answer when it does not do what was asked, or what is
// wrong with a token that a [Verifier] has looked at.
type Error struct {
	// Status is that of the answer; 401 where a token is not accepted.
	Status int

	// Code is a word that programs may keep: of the protocol, as invalid_scope
	// (RFC 6749, section 5.2), of a challenge, as insufficient_scope (RFC 6750,
	// section 3.1), or of the server's own, as not_granted. "" if the answer has
	// none.
	Code string

	// Description is a sentence for people.
	Description string

	// Decision is the id by which `estover why` explains a refusal; "" for what
	// was not decided.
	Decision string

	// RetryAfter is how long to wait before the same is asked again, where the
	// server says so.
	RetryAfter time.Duration
}

// Error is the sentence, with the code and the decision.
func (e *Error) Error() string {
	s := e.Description
	if s == "" {
		s = strings.TrimSpace("The server answered " + strconv.Itoa(e.Status) + " " + http.StatusText(e.Status) + ".")
	}
	if e.Code != "" {
		s = e.Code + ": " + s
	}
	if e.Decision != "" {
		s += " (decision " + e.Decision + ")"
	}
	return s
}

// Temporary reports whether the same request may well succeed a little later.
func (e *Error) Temporary() bool {
	return e.Status == http.StatusTooManyRequests || e.Status >= http.StatusInternalServerError
}

// ErrorOf says why a resource behind Estover, or Estover itself, did not do what
// was asked: it reads a problem (RFC 9457), an error of OAuth (RFC 6749, section
// 5.2) or a challenge (RFC 6750, section 3), whichever there is. It reads the
// body of the answer and leaves it to the caller to close it. Nil for an answer
// below 300.
func ErrorOf(res *http.Response) error {
	if res.StatusCode < 300 {
		return nil
	}
	e := &Error{Status: res.StatusCode, Decision: res.Header.Get("Estover-Decision")}
	if n, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && n > 0 && n <= 3600 {
		e.RetryAfter = time.Duration(n) * time.Second
	}
	b, err := readAll(res)
	var body struct {
		Error, Code, Detail, Title, Decision string
		Description                          string `json:"error_description"`
	}
	if err == nil && json.Unmarshal(b, &body) == nil {
		e.Code, e.Description = first(body.Error, body.Code), first(body.Description, body.Detail, body.Title)
		e.Decision = first(body.Decision, e.Decision)
	}
	e.Code, e.Description, e.Decision = readable(e.Code, 100), readable(e.Description, 1000), readable(e.Decision, 100)
	if e.Code == "" {
		e.Code = challenged(res)
	}
	return e
}

// readable is a stranger's text as it may stand in a log and on a terminal: in
// one line, without characters that do something, and not longer than so many.
func readable(s string, most int) string {
	var b strings.Builder
	for _, r := range s {
		if most--; most < 0 {
			break
		}
		if !unicode.IsPrint(r) {
			r = ' '
		}
		b.WriteRune(r)
	}
	return b.String()
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

var challengeError = regexp.MustCompile(`(?i)(?:^|[\s,])error\s*=\s*"?([a-z_]+)`)

// challenged is the error of the challenges of an answer (RFC 6750, section 3;
// RFC 9449, section 7.1), or "".
func challenged(res *http.Response) string {
	for _, v := range res.Header.Values("WWW-Authenticate") {
		if m := challengeError.FindStringSubmatch(v); m != nil {
			return m[1]
		}
	}
	return ""
}

// refused is why a token is not accepted.
func refused(format string, args ...any) *Error {
	return &Error{Status: http.StatusUnauthorized, Code: "invalid_token", Description: fmt.Sprintf(format, args...)}
}
