package gateway

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"estover.dev"
	"estover.dev/internal/edge"
)

// The errors of the way to an upstream and back. What lies behind one is in the
// record; the agent sees the sentence.
var (
	ErrUpstream    = &estover.Error{Kind: estover.Unavailable, Code: "upstream_failed", Detail: "The upstream could not be reached, or broke off."}
	ErrSlow        = &estover.Error{Kind: estover.Unavailable, Code: "upstream_slow", Detail: "The upstream did not answer in time."}
	ErrCertificate = &estover.Error{Kind: estover.Unavailable, Code: "upstream_certificate", Detail: "The certificate of the upstream is not to be trusted."}
	ErrRepeat      = &estover.Error{Kind: estover.Unavailable, Code: "upstream_closed", Detail: "The upstream closed the connection on which the request was sent. Whether it was carried out is not known, so it is not repeated here."}
	ErrAnswer      = &estover.Error{Kind: estover.Unavailable, Code: "upstream_answer", Detail: "The answer of the upstream cannot be passed on."}
	ErrTooLarge    = &estover.Error{Kind: estover.Invalid, Code: "body_too_large", Detail: "The body is larger than the rule for this action allows."}
	ErrAnswerLarge = &estover.Error{Kind: estover.Unavailable, Code: "answer_too_large", Detail: "The answer is larger than the rule for this action allows."}
	ErrTooLong     = &estover.Error{Kind: estover.TooMuch, Code: "too_long", Detail: "The exchange took longer than the rule for this action allows."}
	ErrStalled     = &estover.Error{Kind: estover.TooMuch, Code: "client_stalled", Detail: "The client neither read nor wrote for too long."}
	ErrMisdirected = &estover.Error{Kind: estover.Invalid, Code: "misdirected", Detail: "The request is for another host than the tunnel it came through."}
	ErrUpgrade     = &estover.Error{Kind: estover.Invalid, Code: "upgrade_refused", Detail: "The connection can be upgraded to websocket and to nothing else."}
	ErrTripwire    = &estover.Error{Kind: estover.Denied, Code: "placeholder_misused", Detail: "The request carries a placeholder of a secret in a place where no secret belongs."}
	ErrBudget      = &estover.Error{Kind: estover.Denied, Code: "kernel_budget", Detail: "The budget of the grant is used up."}
	ErrSubresource = &estover.Error{Kind: estover.Denied, Code: "subresource_refused", Detail: "This is more than reading, writing or listing an object."}
	ErrSlot        = &estover.Error{Kind: estover.Unavailable, Code: "secret_unavailable", Detail: "The secret that the action needs could not be filled in."}
)

// status gives the status of each kind of error; statusOf has the codes that
// HTTP knows better.
var status = map[estover.Kind]int{
	estover.Fault:       http.StatusInternalServerError,
	estover.Invalid:     http.StatusBadRequest,
	estover.Unknown:     http.StatusUnauthorized,
	estover.Denied:      http.StatusForbidden,
	estover.NotFound:    http.StatusNotFound,
	estover.Conflict:    http.StatusConflict,
	estover.TooMuch:     http.StatusTooManyRequests,
	estover.Unavailable: http.StatusServiceUnavailable,
}

var statusOf = map[string]int{
	ErrUpstream.Code:    http.StatusBadGateway,
	ErrSlow.Code:        http.StatusGatewayTimeout,
	ErrCertificate.Code: http.StatusBadGateway,
	ErrRepeat.Code:      http.StatusBadGateway,
	ErrAnswer.Code:      http.StatusBadGateway,
	ErrAnswerLarge.Code: http.StatusBadGateway,
	ErrSlot.Code:        http.StatusBadGateway,
	ErrTooLarge.Code:    http.StatusRequestEntityTooLarge,
	ErrTooLong.Code:     http.StatusGatewayTimeout,
	ErrStalled.Code:     http.StatusRequestTimeout,
	ErrMisdirected.Code: http.StatusMisdirectedRequest,

	// Why a slot cannot be filled, where the agent is told more than that.
	"connection_reauthorize":   http.StatusBadGateway,
	"connection_misconfigured": http.StatusBadGateway,
	"connection_provider":      http.StatusBadGateway,
}

// A Refusal is an error with what else the agent, or who runs it, should know:
// which decision it was, which rule, what would help and where to ask.
type Refusal struct {
	Err      error
	Decision string // the id of the decision
	Rule     string // the rule that decided
	Help     string // a sentence
	Link     string // where access can be asked for

	// Access is how what was refused could be asked for; nil if nobody could approve
	// it.
	Access *AccessRequest

	// Challenge says how to authenticate, if that is what is missing (RFC 9110,
	// section 11.6.1).
	Challenge string
}

// An AccessRequest is how a call that was refused could be allowed.
type AccessRequest struct {
	Endpoint string         `json:"endpoint"`           // where Body is sent by POST, as the agent
	Body     map[string]any `json:"body"`               // what asks for just this call
	Pending  string         `json:"pending,omitempty"`  // the request that asks for it already and waits
	Form     string         `json:"form_url,omitempty"` // the page on which people decide about that
}

// Error is the sentence of the error.
func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap gives the error.
func (r *Refusal) Unwrap() error { return r.Err }

// A problem is an answer of ours: RFC 9457.
type problem struct {
	Type     string `json:"type"`
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail,omitempty"`
	Instance string `json:"instance,omitempty"` // the request's id
	Code     string `json:"code"`
	Decision string `json:"decision,omitempty"`
	Rule     string `json:"rule,omitempty"`
	Help     string `json:"help,omitempty"`
	Request  string `json:"request_access,omitempty"`

	Access *AccessRequest `json:"access_request,omitempty"`
}

// DecisionHeader names the decision in every answer of ours. An upstream's copy
// is dropped, so that an answer with it is ours.
const DecisionHeader = "Estover-Decision"

// StatusOf is the status with which an error is answered.
func StatusOf(err error) int {
	var e *estover.Error
	if !errors.As(err, &e) {
		return http.StatusInternalServerError
	}
	if s := statusOf[e.Code]; s != 0 {
		return s
	}
	return status[e.Kind]
}

// Refuse answers a request with an error. It returns the status.
func Refuse(w http.ResponseWriter, request string, err error) int {
	p := problem{Type: "about:blank", Status: StatusOf(err), Instance: request, Code: "fault", Detail: "Something went wrong here."}
	p.Title = http.StatusText(p.Status)
	var e *estover.Error
	if errors.As(err, &e) {
		p.Code, p.Detail = e.Code, e.Detail
	}
	h := w.Header()
	challenge, nonce := h["Www-Authenticate"], h["Dpop-Nonce"]
	clear(h)
	if p.Status == http.StatusUnauthorized && challenge != nil {
		h["Www-Authenticate"] = challenge // the door's own: no upstream has answered
	}
	if nonce != nil {
		h["Dpop-Nonce"] = nonce // ours, since an upstream's is dropped
	}
	var r *Refusal
	if errors.As(err, &r) {
		p.Decision, p.Rule, p.Help, p.Request, p.Access = r.Decision, r.Rule, r.Help, r.Link, r.Access
		if r.Challenge != "" {
			h.Set("WWW-Authenticate", r.Challenge)
		}
	}
	edge.Again(h, p.Status, err)
	if p.Decision == "" {
		p.Decision = "none"
	}
	b, _ := json.Marshal(p)
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(b)+1))
	h.Set("Cache-Control", "no-store")
	h.Set(DecisionHeader, p.Decision)
	w.WriteHeader(p.Status)
	w.Write(append(b, '\n'))
	return p.Status
}
