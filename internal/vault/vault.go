// Package vault is the Vault-compatible door: clients that were written for
// HashiCorp Vault or OpenBao work against it unchanged. It knows the shapes of
// their API and nothing else: a route is one call into a package of the domain,
// which passes the guard as everything does.
//
// A request takes these steps, in this order, and no route can skip one:
//
//	1 path       decoded once, put into its one spelling; nothing is redirected
//	2 tenant     the namespace that is named, or the token's own
//	3 token      who asks, and which policies of the door bind them
//	4 mount      what lies at the path, and its route
//	5 operation  read, list, create, update, patch, delete
//	6 policies   of the door; they only narrow, and a refusal is an event
//	7 handler    one call of the domain, which the guard decides about
//	8 wrapping   where the client asked for it
//
// Whoever comes without a good token is told "permission denied" before
// anything is said of what is there. A thing of another tenant is not there.
//
// The door has an address of its own, and lies below /vault/ on the main one.
// [Route] says what a route is; routes.go lists the areas, each in a file of
// its own.
package vault

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/mount"
	"estover.dev/internal/ticket"
)

// maxBody bounds a request (V4), and maxOpen one of whoever has shown no token.
const (
	maxBody = 32 << 20
	maxOpen = 1 << 20
)

// Version is what clients take the server for: they switch features on it (V13).
const Version = "1.15.0"

// A Token is who asks, as whoever knows the token in the request tells.
type Token struct {
	Caller estover.Caller

	// Policies are the names of the policies of the door that bind the token. A
	// token that is Unbounded has none: what its caller may do is decided by the
	// guard alone.
	Policies  []string
	Unbounded bool

	Ticket *ticket.Ticket // nil for a token that is none of the door's own

	// Certificate (x5t#S256) and Key (jkt) are what a token that is none of the
	// door's own is bound to; "" for nothing.
	Certificate, Key string
}

// Options are what the door needs beside the domain.
type Options struct {
	// Recognise says who a token is. The tenant is the one that the request names,
	// or "" if it names none: then it is the token's own, or the default one. r is
	// for the connection and for proofs of possession; its body has not been read.
	Recognise func(r *http.Request, tenant estover.TenantID, value string) (Token, error)
	// Known says why there is no such tenant, or why it may do nothing.
	Known func(ctx context.Context, tenant estover.TenantID) error
	// Owner is who answers for a secret that a caller writes: a person.
	Owner func(ctx context.Context, c estover.Caller) estover.Subject
	// Status is how the server stands.
	Status func(ctx context.Context) Status
	// KeyStatus and Rotate are about the key under which a tenant's values are sealed.
	KeyStatus func(ctx context.Context, c estover.Caller) (KeyStatus, error)
	Rotate    func(ctx context.Context, c estover.Caller) error
	// ByAccessor is what binds the token that an accessor stands for. Nil knows of
	// none.
	ByAccessor func(ctx context.Context, c estover.Caller, accessor string) (Token, error)
	// Wrap keeps an answer for whoever brings the token that it gives for it. Nil
	// wraps nothing.
	Wrap func(ctx context.Context, r *Request, answer Wrapped) (WrapInfo, error)
	// RequestHeader demands X-Vault-Request of every request (V11).
	RequestHeader bool
	Logger        *slog.Logger
}

// A Door answers clients of Vault.
type Door struct {
	Parts
	o      Options
	routes map[string][]*Route // by the kind of mount
}

// New is the door over the parts of the domain.
func New(parts Parts, o Options) *Door {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	d := &Door{Parts: parts, o: o, routes: map[string][]*Route{}}
	for _, r := range d.areas() {
		r.parse()
		d.routes[r.Mount] = append(d.routes[r.Mount], &r)
	}
	for _, list := range d.routes {
		order(list)
	}
	return d
}

// Routes are all there are, in the order of their kinds and paths.
func (d *Door) Routes() (all []Route) {
	for _, kind := range slices.Sorted(maps.Keys(d.routes)) {
		for _, r := range d.routes[kind] {
			all = append(all, *r)
		}
	}
	return all
}

// prefix is where the API begins.
const prefix = "/v1/"

type belowKey struct{}

type below struct {
	base   string
	tenant estover.TenantID
}

// Below says for a request that the door is below a base path of the URL, and
// there of one tenant, unless that is "". On the door's own address nobody says
// so, and each request names its tenant.
func Below(ctx context.Context, base string, tenant estover.TenantID) context.Context {
	return context.WithValue(ctx, belowKey{}, below{base, tenant})
}

// ServeHTTP answers one request.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	at, _ := r.Context().Value(belowKey{}).(below)
	origin := edge.OriginOf(r)
	q := &Request{HTTP: r, Tenant: at.tenant, door: d, id: newUUID()}
	q.Caller.Address, q.Caller.Request = origin.Address, origin.Request
	a, err := d.serve(q, at.base)
	if err != nil && q.Path == "sys/health" && (r.Method == http.MethodGet || r.Method == http.MethodHead) && estover.KindOf(err) == estover.Unavailable {
		a, err = d.health(r.Context(), q) // which is asked for when nothing can be looked up (V14)
	}
	if err != nil {
		d.fail(w, q, err)
		return
	}
	d.write(w, q, a)
}

// Matches reports whether a request is for the door below a base path of the
// main address, and for which tenant.
func Matches(path, base string) (below string, tenant estover.TenantID, ok bool) {
	rest, ok := strings.CutPrefix(path, base+"/")
	if !ok {
		return "", "", false
	}
	if in, named := strings.CutPrefix(rest, "t/"); named {
		name, after, _ := strings.Cut(in, "/")
		if name != "" && estover.TenantID(name) != estover.DefaultTenant && strings.HasPrefix(after, "vault/") {
			return base + "/t/" + name + "/vault", estover.TenantID(name), true
		}
		return "", "", false
	}
	return base + "/vault", "", strings.HasPrefix(rest, "vault/")
}

// serve takes a request through the steps.
func (d *Door) serve(q *Request, base string) (*Answer, error) {
	r := q.HTTP
	// 1: the path, and the method.
	path, err := canonical(strings.TrimPrefix(r.URL.Path, base))
	if err != nil {
		return nil, err
	}
	q.Path = path
	method := r.Method
	if method == http.MethodGet && truthy(r.URL.Query().Get("list")) {
		method = methodList
	}
	op, ok := operations[method]
	if !ok {
		return nil, refuse(http.StatusMethodNotAllowed, "unsupported operation")
	}
	if d.o.RequestHeader && r.Header.Get("X-Vault-Request") != "true" {
		return nil, refuse(http.StatusPreconditionFailed, "missing or invalid X-Vault-Request header")
	}
	if q.Wrap, err = wrapTTL(r.Header.Get("X-Vault-Wrap-Ttl")); err != nil {
		return nil, err
	}
	// 2: the tenant.
	if err := d.namespace(q); err != nil {
		return nil, err
	}
	// 4 is looked at before 3 for routes that need no token; nothing is said of it
	// before 3 is done.
	q.chosen = q.Tenant
	tenant := q.Tenant
	if tenant == "" {
		tenant = estover.DefaultTenant
	}
	at, err := q.open(tenant, path, op)
	if err != nil {
		return nil, err
	}
	q.Presented = presented(r.Header)
	if at == nil || at.Optional && q.Presented != "" {
		// 3: the token.
		if err := d.recognise(q, q.Presented); err != nil {
			return nil, err
		}
		tenant = q.Tenant
	}
	q.Tenant, q.Caller.Tenant = tenant, tenant
	if q.Token == nil {
		if err := d.o.Known(r.Context(), tenant); err != nil {
			return nil, err
		}
	}
	// 4: the mount and the route.
	route, err := d.find(q, path)
	if err != nil {
		return nil, err
	}
	if route == nil {
		if !q.allows(op, nil) {
			return nil, d.narrow(q, path, op)
		}
		return nil, refuse(http.StatusNotFound, "no handler for route %q. route entry not found. What is offered stands in docs/reference/vault.md.", path)
	}
	q.route = route
	q.note()
	if truthy(r.URL.Query().Get("help")) && r.Method == http.MethodGet {
		return &Answer{Bare: map[string]any{"help": route.help()}}, nil
	}
	handler := route.handler(op)
	if handler == nil && op == Write && route.Patch != nil && route.Write == nil {
		handler, op = route.Patch, Patch
	}
	if handler == nil {
		if !q.allows(op, route) {
			return nil, d.narrow(q, path, op)
		}
		return nil, refuse(http.StatusMethodNotAllowed, "unsupported operation")
	}
	// 5: the operation, and what the request says.
	if err := q.body(op); err != nil {
		return nil, err
	}
	q.Op = op
	if op == Write {
		q.Op = Update
		if route.Exists != nil {
			there, err := route.Exists(r.Context(), q)
			if err != nil {
				return nil, err
			}
			if !there {
				q.Op = Create
			}
		}
	}
	// 6: the policies of the door.
	if q.Token != nil && !q.allows(q.Op, route) {
		return nil, d.narrow(q, path, q.Op)
	}
	// 7: the domain.
	a, err := handler(r.Context(), q)
	if err != nil {
		if op == Delete && estover.KindOf(err) == estover.NotFound {
			return nil, nil // what is not there is deleted (V9)
		}
		return nil, err
	}
	if a == nil && len(q.warnings) == 0 {
		return nil, nil // where there is no body, no unknown field is named either
	}
	if a == nil {
		a = &Answer{}
	}
	a.top = a.top || route.Top
	a.Warnings = append(a.Warnings, q.warnings...)
	if unknown := q.unknown(); unknown != "" {
		a.Warnings = append(a.Warnings, unknown)
	}
	return a, nil
}

// open is the route of a request if it needs no token. Of a tenant that there is
// not nothing is looked up, nor kept: strangers name as many as they like.
func (q *Request) open(tenant estover.TenantID, path string, op Operation) (*Route, error) {
	if err := q.door.o.Known(q.HTTP.Context(), tenant); estover.KindOf(err) == estover.Unavailable {
		return nil, err
	} else if err != nil {
		return nil, nil
	}
	table, err := q.door.Mounts.Table(q.HTTP.Context(), tenant)
	if err != nil {
		return nil, err
	}
	m, rest, ok := table.Find(path)
	if !ok {
		return nil, nil
	}
	route, _ := q.door.match(m, rest)
	if route == nil || !route.Open && !route.Optional || route.handler(op) == nil {
		return nil, nil
	}
	return route, nil
}

// find looks up the mount that a path lies in, and the route below it.
func (d *Door) find(q *Request, path string) (*Route, error) {
	table, err := d.Mounts.Table(q.HTTP.Context(), q.Tenant)
	if err != nil {
		return nil, err
	}
	m, rest, ok := table.Find(path)
	if !ok {
		return nil, nil
	}
	q.Mount, q.Rest = m, rest
	if !m.Fixed {
		q.Caller.Mount = m.ID
	}
	route, params := d.match(m, rest)
	q.params = params
	return route, nil
}

// allows reports whether the policies of the door allow an operation at the path
// of the request, and at the spelling in which what is named there is kept.
func (q *Request) allows(op Operation, route *Route) bool {
	if q.Token == nil {
		return false
	}
	if q.ACL == mount.Unbounded {
		return true
	}
	ask := mount.Ask{What: op.capability(), Wrap: q.Wrap, Params: q.given()}
	if route != nil {
		ask.Sudo = route.Sudo
	}
	for _, ask.Path = range []string{q.Path, q.kept(route)} {
		if op == List {
			ask.Path += "/"
		}
		if !q.ACL.Allows(ask) {
			return false
		}
	}
	return true
}

// kept is the path of a request with the names in the spelling in which they are
// kept: those of roles of the ways to log in, and of policies, have no case (T2).
func (q *Request) kept(route *Route) string {
	switch {
	case route == nil:
	case q.Mount.Section == mount.Auth && q.Mount.Kind != mount.Token:
		return q.Mount.Full() + strings.ToLower(q.Rest)
	case q.Mount.Kind == mount.System && (strings.HasPrefix(route.Path, "policies/acl/") || strings.HasPrefix(route.Path, "policy/")):
		return q.Mount.Full() + strings.TrimSuffix(q.Rest, q.Param("name")) + mount.PolicyName(q.Param("name"))
	}
	return q.Path
}

// narrow is the refusal of a request by the policies of the door; it is on
// record.
func (d *Door) narrow(q *Request, path string, op Operation) error {
	err := d.Policies.Refuse(q.HTTP.Context(), q.Caller, path, string(op.capability()))
	if err == nil {
		panic("vault: a refusal that is none")
	}
	return err
}

// recognise finds out who asks. Whatever is wrong with the token, the answer is
// the same (V3).
func (d *Door) recognise(q *Request, value string) error {
	if value == "" {
		return errDenied
	}
	r := q.HTTP
	if q.Tenant != "" {
		if err := d.o.Known(r.Context(), q.Tenant); err != nil && estover.KindOf(err) != estover.Unavailable {
			return errDenied.because(err)
		}
	}
	t, err := d.o.Recognise(r, q.Tenant, value)
	switch {
	case err == nil:
	case estover.KindOf(err) == estover.Unavailable, estover.KindOf(err) == estover.TooMuch, r.Context().Err() != nil:
		return err
	case estover.KindOf(err) == estover.Fault:
		d.o.Logger.Error("a token could not be looked at", "request", q.Caller.Request, "error", err)
		return err
	default:
		return errDenied.because(err)
	}
	address, request := q.Caller.Address, q.Caller.Request
	q.Token, q.Caller = &t, t.Caller
	q.Caller.Address, q.Caller.Request = address, request
	if q.Tenant != "" && q.Caller.Tenant != q.Tenant {
		// A token is good in its own namespace; that it was shown in another is on
		// record in its own (T3).
		return errors.Join(errDenied, d.Policies.Refuse(r.Context(), q.Caller, q.Path, "namespace"))
	}
	q.Tenant = q.Caller.Tenant
	q.ACL, err = d.aclOf(r.Context(), t)
	return err
}

// namespace reads the header that names the tenant (V11).
func (d *Door) namespace(q *Request) error {
	sent := q.HTTP.Header.Get("X-Vault-Namespace")
	name := strings.Trim(sent, "/")
	if name == "" {
		return nil
	}
	if strings.Contains(name, "/") {
		return refuse(http.StatusNotFound, "namespace %q not found: there are none within others", name)
	}
	if q.Tenant != "" && q.Tenant != estover.TenantID(name) {
		return errDenied
	}
	q.Tenant, q.Namespace = estover.TenantID(name), name+"/"
	return nil
}

// presented is the token in a request (V3).
func presented(h http.Header) string {
	if t := h.Get("X-Vault-Token"); t != "" {
		return strings.TrimSpace(t)
	}
	scheme, value, _ := strings.Cut(h.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") || strings.EqualFold(scheme, "DPoP") {
		return strings.TrimSpace(value)
	}
	return ""
}

// canonical is a path below /v1/ in its one spelling: no slash at its beginning
// or end, and none of two in a row (V2).
func canonical(path string) (string, error) {
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return "", refuse(http.StatusNotFound, "The API is below /v1/.")
	}
	if !utf8.ValidString(rest) || strings.ContainsFunc(rest, unicode.IsControl) {
		return "", refuse(http.StatusBadRequest, "the path is not text")
	}
	parts := strings.Split(rest, "/")
	kept := parts[:0]
	for _, p := range parts {
		switch p {
		case "":
		case ".", "..":
			return "", refuse(http.StatusBadRequest, "path cannot contain a segment %q", p)
		default:
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, "/"), nil
}

// wrapTTL reads how long an answer is to be wrapped.
func wrapTTL(s string) (time.Duration, error) {
	d, ok := mount.Duration(s)
	if !ok || d < 0 {
		return 0, refuse(http.StatusBadRequest, "error parsing X-Vault-Wrap-TTL header: it is a duration, as 90 or 5m")
	}
	return d, nil
}

func truthy(s string) bool { return s == "true" || s == "1" }

// body reads what the request says (V4).
func (q *Request) body(op Operation) error {
	r := q.HTTP
	switch op {
	case Read, List, Delete:
		return q.query()
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if op == Patch && r.Method == http.MethodPatch && kind != "application/merge-patch+json" {
		return refuse(http.StatusUnsupportedMediaType, "PATCH requires Content-Type of application/merge-patch+json, provided %q", kind)
	}
	most := maxBody
	if q.Token == nil {
		most = maxOpen
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, int64(most)+1))
	switch {
	case err != nil:
		return refuse(http.StatusBadRequest, "the request could not be read")
	case len(b) > most:
		return refuse(http.StatusRequestEntityTooLarge, "http: request body too large")
	case q.route.Binary:
		q.raw = b
		return nil
	}
	return q.parse(b, kind == "application/x-www-form-urlencoded")
}

// newUUID is the id of a request, as clients show it (V7).
func newUUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// A Failure is an answer that says why something was not done, in the words that
// clients know.
type Failure struct {
	Status int
	Errors []string
	err    error
}

// refuse is a failure with one sentence.
func refuse(status int, format string, args ...any) *Failure {
	return &Failure{Status: status, Errors: []string{fmt.Sprintf(format, args...)}}
}

// Error is the first of its sentences.
func (f *Failure) Error() string {
	if len(f.Errors) == 0 {
		return http.StatusText(f.Status)
	}
	return f.Errors[0]
}

// Unwrap gives what lies behind it.
func (f *Failure) Unwrap() error { return f.err }

func (f *Failure) because(err error) *Failure {
	c := *f
	c.err = err
	return &c
}

var (
	// errDenied is the one answer to whoever may not, for whatever reason.
	errDenied = refuse(http.StatusForbidden, "permission denied")
	// errNothing is the answer where nothing is (V9).
	errNothing = &Failure{Status: http.StatusNotFound}
)

// status is what each kind of error is to clients of Vault (V10).
var status = map[estover.Kind]int{
	estover.Fault: http.StatusInternalServerError, estover.Invalid: http.StatusBadRequest, estover.Unknown: http.StatusForbidden,
	estover.Denied: http.StatusForbidden, estover.NotFound: http.StatusNotFound, estover.Conflict: http.StatusBadRequest,
	estover.TooMuch: http.StatusTooManyRequests, estover.Unavailable: http.StatusServiceUnavailable,
}

// fail answers with an error.
func (d *Door) fail(w http.ResponseWriter, q *Request, err error) {
	f, ok := errors.AsType[*Failure](err)
	var refusal *guard.Refusal
	var known *estover.Error
	switch {
	case ok:
	case errors.As(err, &refusal):
		w.Header().Set("Estover-Decision", refusal.Decision.ID)
		f = errDenied
	case errors.As(err, &known) && known.Kind != estover.Fault:
		f = &Failure{Status: status[known.Kind]}
		switch {
		case f.Status == http.StatusForbidden:
			f = errDenied
		case known.Kind == estover.NotFound && (q.Op == Read || q.Op == List):
		case known.Kind == estover.Unavailable && known.Code != "":
			// Clients try again by the status; who looks at why finds the word that
			// stands in the log and in the other faces.
			f.Errors = []string{known.Code + ": " + known.Detail}
		default:
			f.Errors = []string{known.Detail}
		}
	default:
		if q.HTTP.Context().Err() == nil {
			at := "" // of the path no more: what follows may be a token
			if q.Mount != nil {
				at = q.Mount.Full()
			}
			d.o.Logger.Error("a request of the door failed", "request", q.Caller.Request, "caller", q.Caller.Subject, "mount", at, "error", err)
		}
		f = refuse(http.StatusInternalServerError, "internal error; the log of the server has the details under the request %s", q.Caller.Request)
	}
	edge.Again(w.Header(), f.Status, err)
	b := append([]byte(nil), `{"errors":[`...)
	for i, text := range f.Errors {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, strings.ToValidUTF8(text, "�"))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.Status)
	_, _ = w.Write(append(b, "]}\n"...)) // the client may be gone
}
