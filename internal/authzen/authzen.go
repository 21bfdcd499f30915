// Package authzen is the door for other programs that enforce decisions: the
// OpenID AuthZEN Authorization API 1.0. A policy enforcement point (PEP) asks
// whether a subject may do an action on a resource, and hears what the gateway
// would say of the same call, by the same decider, at this moment.
//
//	POST {issuer}/access/v1/evaluation        one question
//	POST {issuer}/access/v1/evaluations       several
//	POST {issuer}/access/v1/search/subject    who may …
//	POST {issuer}/access/v1/search/resource   … do something where
//	POST {issuer}/access/v1/search/action     … do what there
//	POST {issuer}/access/v1/requests          ask for what was refused; also GET, cancel
//	GET  /.well-known/authzen-configuration   where all this is
//
// # The words
//
// A subject is an agent ({"type": "agent"}), by its id or its name. A resource
// is one of the catalogue, by its type ("http") and its id, name or identifier.
// An action has the name that the resource gives it; the parameters of its path
// are properties of the action, and so is the method where one name stands for
// several. The context may name the session that the call would belong to, or
// the purpose for which a session would be opened, and a class of data that the
// call would reach. Of anything else nothing is known, and the answer is no.
//
// # The pipeline
//
// Every question takes these steps, and none is left out for any endpoint:
//
//  1. edge: address, certificate, request id; the PEP's own X-Request-ID comes back
//  2. the PEP, by its access token
//  3. the body: strict JSON within bounds
//  4. guard: may this PEP ask about this subject (access.evaluate)?
//  5. the names: which agent, which resource, which action
//  6. the decider of the gateway: kernel, facts, rules
//  7. obligations: those that are done by recording the answer are done; the
//     others must be ones that the PEP can carry out
//  8. the event, with the decision as it was made; its id is the evaluation_id
//  9. the answer
//
// Asking gives nothing to whoever asks: no row changes, no token is made, and
// nothing is counted against a budget. A refusal is HTTP 200 with
// {"decision": false}; a status of 400 and above says that the question was
// none, or that the PEP may not put it.
package authzen

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/approval"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/resource"
	"estover.dev/internal/seal"
	"estover.dev/internal/token"
)

// EvaluateAction is what a PEP must be permitted to do.
const EvaluateAction = "access.evaluate"

// The paths below an issuer (AuthZEN, section 10.1), and where a PEP finds them.
const (
	evaluationPath  = "/access/v1/evaluation"
	evaluationsPath = "/access/v1/evaluations"
	subjectsPath    = "/access/v1/search/subject"
	resourcesPath   = "/access/v1/search/resource"
	actionsPath     = "/access/v1/search/action"
	wellKnown       = "/.well-known/authzen-configuration"
)

// Config is what the door needs of others.
type Config struct {
	Guard     *guard.Guard
	Callers   *edge.Callers
	Issuer    token.Issuer
	Agents    *agent.Registry
	Resources *resource.Catalogue
	Grants    *access.Access
	Requests  *approval.Approvals
	Keys      *seal.Keyring // which sign what a refusal says

	// Decide is the decider of the gateway.
	Decide func(ctx context.Context, caller estover.Caller, op guard.Op) (guard.Decision, error)

	// Identified is the resource with this identifier, its URL.
	Identified func(ctx context.Context, tenant estover.TenantID, identifier string) (*resource.Upstream, error)

	// Known says why there is no such tenant, or why it may do nothing.
	Known func(ctx context.Context, tenant estover.TenantID) error

	// Seal and Open encrypt under the tenant's key what a PEP gives back.
	Seal func(tenant estover.TenantID, id string, plain []byte) ([]byte, error)
	Open func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error)

	Logger *slog.Logger // slog.Default if nil
}

// A Door answers the questions of PEPs.
type Door struct {
	Config
	base  string               // the path of the issuer
	names *guard.Cache[string] // of agents → id
}

// New is the door.
func New(c Config) *Door {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	d := &Door{Config: c}
	// The name of an agent is for good, and no other has it ever.
	d.names = guard.NewCache(c.Guard, "agent_name", func(ctx context.Context, tx *db.Tx, name string) (string, error) {
		return agent.IDByName(ctx, tx, name)
	})
	return d
}

// Mount adds the paths of all tenants to mux.
func (d *Door) Mount(mux *http.ServeMux) error {
	u, err := url.Parse(string(d.Issuer))
	if err != nil {
		return err
	}
	d.base = u.Path
	for _, path := range []string{u.Path, u.Path + token.TenantPath + "{tenant}"} {
		for at, serve := range map[string]endpoint{
			evaluationPath: d.evaluation, evaluationsPath: d.evaluations,
			subjectsPath: d.subjects, resourcesPath: d.resources, actionsPath: d.actions,
		} {
			mux.Handle(path+at, d.question(serve))
		}
		mux.Handle(wellKnown+path, d.at(http.MethodGet, d.metadata))
		mux.Handle(path+requestsPath, d.at(http.MethodPost, d.submit))
		mux.Handle(path+schemaPath, d.at(http.MethodGet, d.schema))
		mux.Handle(path+requestsPath+"/{id}", d.at(http.MethodGet, d.status))
		mux.Handle("POST "+path+requestsPath+"/{id}/cancel", d.at(http.MethodPost, d.cancel))
		mux.Handle("DELETE "+path+requestsPath+"/{id}/cancel", d.at(http.MethodDelete, d.cancel))
	}
	return nil
}

// An asking is one request to the door.
type asking struct {
	*http.Request
	tenant estover.TenantID
	caller estover.Caller // the PEP
	body   []byte
}

// An endpoint answers a question with what is to be written as JSON.
type endpoint func(a *asking) (any, error)

// question is an endpoint that is asked with POST by somebody who is known.
func (d *Door) question(serve endpoint) http.Handler {
	return d.at(http.MethodPost, func(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
		a := &asking{Request: r, tenant: tenant}
		var err error
		if a.caller, err = d.Callers.Authenticate(r, tenant); err != nil {
			d.fail(w, a, err)
			return
		}
		if a.body, err = readBody(w, r); err != nil {
			d.fail(w, a, err)
			return
		}
		out, err := serve(a)
		if err != nil {
			d.fail(w, a, err)
			return
		}
		d.answer(w, a, http.StatusOK, out)
	})
}

// errMethod is the answer to another method than the endpoint has.
var errMethod = &estover.Error{Kind: estover.Invalid, Code: "method_not_allowed", Detail: "This is asked in another way."}

// at is an endpoint of one method, of a tenant that exists.
func (d *Door) at(method string, serve func(http.ResponseWriter, *http.Request, estover.TenantID)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		echo(w, r)
		a := &asking{Request: r, tenant: estover.TenantID(r.PathValue("tenant"))}
		switch {
		case a.tenant == estover.DefaultTenant: // which has one name, and that is none
			d.fail(w, a, token.ErrNoTenant)
			return
		case a.tenant == "":
			a.tenant = estover.DefaultTenant
		}
		if err := d.Known(r.Context(), a.tenant); err != nil {
			d.fail(w, a, err)
			return
		}
		if r.Method != method && (method != http.MethodGet || r.Method != http.MethodHead) {
			w.Header().Set("Allow", method)
			d.failWith(w, http.StatusMethodNotAllowed, errMethod.With("This is asked with %s.", method).Detail)
			return
		}
		serve(w, r, a.tenant)
	})
}

// echo gives the PEP's own identifier of the request back as it came (AuthZEN,
// section 10.1.3).
func echo(w http.ResponseWriter, r *http.Request) {
	if id := r.Header["X-Request-Id"]; len(id) == 1 && id[0] != "" {
		w.Header()["X-Request-Id"] = id
	}
}

// status is what each kind of error is here (AuthZEN, section 10.1.2).
var status = map[estover.Kind]int{
	estover.Fault: http.StatusInternalServerError, estover.Invalid: http.StatusBadRequest,
	estover.Unknown: http.StatusUnauthorized, estover.Denied: http.StatusForbidden, estover.NotFound: http.StatusNotFound,
	estover.Conflict: http.StatusConflict, estover.TooMuch: http.StatusTooManyRequests, estover.Unavailable: http.StatusServiceUnavailable,
}

// fail answers with an error message (AuthZEN, section 10.1.2). What is not an
// error of the domain is for the log alone.
func (d *Door) fail(w http.ResponseWriter, a *asking, err error) {
	var refusal *guard.Refusal
	var known *estover.Error
	code, text := http.StatusInternalServerError, "Something went wrong in Estover itself. The log of the server has the details."
	switch {
	case errors.As(err, &refusal):
		code, text = http.StatusForbidden, refusal.Error()
		w.Header().Set("Estover-Decision", refusal.Decision.ID)
	case errors.As(err, &known) && known.Kind != estover.Fault:
		code, text = status[known.Kind], known.Detail
		if known.Field != "" {
			text = known.Field + ": " + text
		}
	}
	if code >= http.StatusInternalServerError && a.Context().Err() == nil {
		d.Logger.Error("a question of a PEP could not be answered", "request", a.caller.Request, "caller", a.caller.Subject, "error", err)
	}
	edge.Again(w.Header(), code, err)
	d.failWith(w, code, text)
}

// failWith answers with a status and a sentence.
func (d *Door) failWith(w http.ResponseWriter, code int, text string) {
	h := w.Header()
	if code == http.StatusUnauthorized && h["Www-Authenticate"] == nil { // section 11.3
		h.Set("WWW-Authenticate", `Bearer realm="estover"`)
	}
	write(w, code, "text/plain; charset=utf-8", []byte(text+"\n"))
}
