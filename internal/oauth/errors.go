package oauth

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
)

// The errors of the protocol (RFC 6749, section 5.2; RFC 8707, section 2).
var (
	errRequest  = &estover.Error{Kind: estover.Invalid, Code: "invalid_request", Detail: "The request is not in order."}
	errTooLarge = errRequest.With("The body is larger than %d bytes.", maxForm)
	errClient   = &estover.Error{Kind: estover.Unknown, Code: "invalid_client", Detail: "The client is not known, or what it presented does not prove that it is the one."}
	errMayNot   = &estover.Error{Kind: estover.Denied, Code: "unauthorized_client", Detail: "The client may not use this grant type."}
	errGrants   = &estover.Error{Kind: estover.Invalid, Code: "unsupported_grant_type", Detail: "There is no such grant type here."}
	errScopes   = &estover.Error{Kind: estover.Invalid, Code: "invalid_scope", Detail: "There are too many scopes."}
	errTarget   = &estover.Error{Kind: estover.Invalid, Code: "invalid_target", Detail: "The resource is not known."}
	errTooOften = &estover.Error{Kind: estover.TooMuch, Code: "temporarily_unavailable", Detail: "Too many attempts from this address have failed. Wait a moment."}
	errMethod   = &estover.Error{Kind: estover.Invalid, Code: "invalid_request", Detail: "This is done with POST."}
)

// codes says which error of the protocol an error of the domain is, where its
// kind does not say it.
var codes = map[string]string{
	"client_unknown":             "invalid_client",
	"client_document_invalid":    "invalid_client",
	"assertion_replayed":         "invalid_client",
	"login_required":             "login_required", // OpenID Connect Core, section 3.1.2.6
	"consent_required":           "consent_required",
	"session_not_found":          "invalid_grant",
	"session_ended":              "invalid_grant",
	"session_of_another":         "invalid_grant",
	"kernel_session_ended":       "invalid_grant", // it ended after it was found alive
	"kernel_session_expired":     "invalid_grant",
	"grant_ended":                "invalid_grant",
	"purpose_unknown":            "invalid_request",
	"registration_off":           "not_found",
	"initial_token_invalid":      "invalid_token",
	"registration_token_invalid": "invalid_token",
}

// protocol are the codes that are those of the protocol already.
var protocol = map[string]bool{
	"invalid_request": true, "invalid_client": true, "invalid_grant": true, "unauthorized_client": true,
	"unsupported_grant_type": true, "unsupported_response_type": true, "request_not_supported": true, "invalid_scope": true, "invalid_target": true, "invalid_authorization_details": true, "invalid_token": true,
	"temporarily_unavailable": true, "invalid_dpop_proof": true, "use_dpop_nonce": true,
	"insufficient_scope": true, "authorization_pending": true, "slow_down": true, "expired_token": true,
	"invalid_redirect_uri": true, "invalid_client_metadata": true, "invalid_software_statement": true, "unapproved_software_statement": true, // RFC 7591, section 3.2.2
	"unknown_user_id": true, "invalid_binding_message": true, // OpenID Connect CIBA, section 13
}

// kinds says it for all the rest.
var kinds = map[estover.Kind]string{
	estover.Fault: "server_error", estover.Invalid: "invalid_request", estover.Unknown: "invalid_client", estover.Denied: "access_denied",
	estover.NotFound: "invalid_grant", estover.Conflict: "invalid_grant", estover.TooMuch: "temporarily_unavailable",
	estover.Unavailable: "temporarily_unavailable",
}

// statuses are the answers whose status is not 400.
var statuses = map[string]int{"invalid_client": http.StatusUnauthorized, "invalid_token": http.StatusUnauthorized, "insufficient_scope": http.StatusForbidden, "not_found": http.StatusNotFound, "server_error": http.StatusInternalServerError}

// A failed is the body of an answer that is an error.
type failed struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
	Decision    string `json:"decision,omitempty"` // by which `estover why` explains a refusal
}

// notRecognised is an error about the access token, or the proof, of whoever
// calls an endpoint as a resource is called.
type notRecognised struct{ error }

func (e notRecognised) Unwrap() error { return e.error }

// refusedHere is the refusal of whoever calls an endpoint as a resource is
// called, and is recognised.
type refusedHere struct{ error }

func (e refusedHere) Unwrap() error { return e.error }

// failureOf is what a client is told of an error, and with which status.
func failureOf(err error) (failed, int) {
	var e *estover.Error
	kind := estover.KindOf(err)
	f := failed{Error: kinds[kind], Description: "Something went wrong in Estover itself."}
	if errors.As(err, &e) && kind != estover.Fault {
		f.Description = printable(e.Detail)
		if code, ok := codes[e.Code]; ok {
			f.Error = code
		} else if protocol[e.Code] {
			f.Error = e.Code
		}
	}
	var refusal *guard.Refusal
	if errors.As(err, &refusal) {
		f.Decision = refusal.Decision.ID
	}
	status, ok := statuses[f.Error]
	var unrecognised notRecognised
	var here refusedHere
	switch {
	case ok:
	case errors.As(err, &here):
		status = http.StatusForbidden
	case errors.As(err, &unrecognised):
		status = http.StatusUnauthorized
	case kind == estover.Unavailable:
		status = http.StatusServiceUnavailable
	case kind == estover.TooMuch:
		status = http.StatusTooManyRequests
	default:
		status = http.StatusBadRequest
	}
	return f, status
}

// printable leaves only what a description may have (RFC 6749, section 5.2).
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r == '\\':
			return '/'
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, s)
}

// fail answers with an error.
func (d *Door) fail(w http.ResponseWriter, r *http.Request, err error) {
	f, status := failureOf(err)
	if status >= http.StatusInternalServerError && r.Context().Err() == nil && !d.told(err) {
		d.Logger.Error("a request at the token service failed", "path", r.URL.Path, "status", status, "error", err)
	}
	h := w.Header()
	if status == http.StatusUnauthorized {
		// RFC 6749, section 5.2: the scheme that the client tried.
		if scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Basic") {
			h.Set("WWW-Authenticate", `Basic realm="estover", charset="UTF-8"`)
		} else if scheme != "" && h["Www-Authenticate"] == nil {
			h.Set("WWW-Authenticate", `Bearer realm="estover"`)
		}
	}
	edge.Again(h, status, err)
	body, err := json.Marshal(f)
	if err != nil {
		panic("oauth: an error that is not JSON: " + err.Error())
	}
	answer(w, status, jsonType, body)
}

// An outage is that the keys of a trust cannot be had. Anybody can ask for them,
// as often as they like.
type outage struct {
	error
	source string // tenant and trust
}

func (o outage) Unwrap() error { return o.error }

// told reports whether the log has been told of the error within the last
// minute: of an outage it is told once.
func (d *Door) told(err error) bool {
	var o outage
	return errors.As(err, &o) && !d.outages.Allow(o.source)
}

// The types of answers.
const (
	jsonType          = "application/json"
	introspectionType = "application/token-introspection+jwt" // RFC 9701
)

// answer sends a body that nobody keeps.
func answer(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone; there is nobody else to tell
}
