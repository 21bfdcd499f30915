package edge

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"estover.dev"
	"estover.dev/internal/guard"
)

// status is what each kind of error is in HTTP, for the doors that have no
// table of their own.
var status = map[estover.Kind]int{
	estover.Fault: http.StatusInternalServerError, estover.Invalid: http.StatusUnprocessableEntity,
	estover.Unknown: http.StatusUnauthorized, estover.Denied: http.StatusForbidden, estover.NotFound: http.StatusNotFound,
	estover.Conflict: http.StatusConflict, estover.TooMuch: http.StatusTooManyRequests, estover.Unavailable: http.StatusServiceUnavailable,
}

// A Problem is an answer that says why something was not done (RFC 9457).
type Problem struct {
	Title    string         `json:"title"`
	Status   int            `json:"status"`
	Detail   string         `json:"detail,omitempty"`
	Code     string         `json:"code"`               // a word that programs may keep
	Decision string         `json:"decision,omitempty"` // of a refusal: the id by which `estover why` explains it
	Request  string         `json:"request,omitempty"`
	Errors   []ProblemPlace `json:"errors,omitempty"`

	wait int // seconds until it may be asked again, if it may
}

// A ProblemPlace says where in the request a problem is.
type ProblemPlace struct {
	Message  string `json:"message"`
	Location string `json:"location,omitempty"`
}

// ProblemType is the media type of a [Problem].
const ProblemType = "application/problem+json"

// ProblemOf is what a caller is told of an error: the sentence of an
// [estover.Error], and nothing at all of any other, whose words may be a
// stranger's.
func ProblemOf(err error, request string) *Problem {
	p := &Problem{
		Status: http.StatusInternalServerError, Code: "fault", Request: request,
		Detail: "Something went wrong in Estover itself. The log of the server has the details under this request's id.",
	}
	var known *estover.Error
	var refusal *guard.Refusal
	switch {
	case errors.As(err, &refusal):
		p.Status, p.Code, p.Detail, p.Decision = http.StatusForbidden, "not_permitted", refusal.Error(), refusal.Decision.ID
		if len(refusal.Decision.Reasons) > 0 {
			p.Code = refusal.Decision.Reasons[0]
		}
	case errors.As(err, &known) && known.Kind != estover.Fault:
		p.Status, p.Code, p.Detail = status[known.Kind], known.Code, known.Detail
		if known.Field != "" {
			p.Errors = []ProblemPlace{{known.Detail, known.Field}}
		}
	}
	p.Title, p.wait = http.StatusText(p.Status), estover.Wait(err)
	return p
}

// Again says when a client that was refused with err may ask again, in the headers of an
// answer with a status after which the same request may work. It is for the doors that
// answer with something else than a [Problem].
func Again(h http.Header, status int, err error) {
	p := Problem{Status: status, wait: estover.Wait(err)}
	if after := p.RetryAfter(); after != "" {
		h.Set("Retry-After", after)
	}
}

// RetryAfter is the header of that name, for an answer after which the same request
// may work; "" for others.
func (p *Problem) RetryAfter() string {
	if p.Status != http.StatusServiceUnavailable && p.Status != http.StatusTooManyRequests {
		return ""
	}
	return strconv.Itoa(max(1, p.wait))
}

// WriteProblem answers with a problem.
func WriteProblem(w http.ResponseWriter, p *Problem) {
	h := w.Header()
	h.Set("Content-Type", ProblemType)
	h.Set("Cache-Control", "no-store")
	if p.Status == http.StatusUnauthorized && h["Www-Authenticate"] == nil { // [Callers] knows better
		h.Set("WWW-Authenticate", `Bearer realm="estover"`)
	}
	if after := p.RetryAfter(); after != "" {
		h.Set("Retry-After", after)
	}
	if p.Decision != "" {
		h.Set("Estover-Decision", p.Decision)
	}
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may be gone; there is nobody else to tell
}
