// Package api is the management API, /v1: everything that the command line and
// the console can do, as JSON over HTTP, described by the OpenAPI 3.1 document
// at /v1/openapi.json.
//
// A request takes four steps, the same for every operation:
//
//	authenticate ─▶ idempotency ─▶ parse and validate (huma) ─▶ one call of the domain ─▶ JSON
//
// The domain's call passes the guard; there are no rules here. What is not
// done is answered as a problem of RFC 9457 ([edge.Problem]). A list is pages
// of at most 200 things with a cursor. A POST that changes something may carry
// an Idempotency-Key: sent again within a day, with the same body, it is
// answered as the first time and not done again.
//
// It stands below the issuer of each tenant: {issuer}/v1. A caller of one tenant
// is nobody at another's.
//
// Each file is what the API says of one package of the domain.
package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/token"
)

// open are the paths that need no caller: what says how to call, and what
// makes a caller.
var open = map[string]bool{"/v1/openapi.json": true, "/v1/openapi.yaml": true, "/v1/login": true, "/v1/break-glass/open": true}

// A Server answers the API. Its fields are what it answers from.
type Server struct {
	Parts
	guard  *guard.Guard
	logger *slog.Logger
	known  func(context.Context, estover.TenantID) error
	auth   func(*http.Request, estover.TenantID) (estover.Caller, error)
	once   idempotency
	issuer token.Issuer
	mux    *http.ServeMux // of the operations
	huma   huma.API
}

// Options are what the API needs beside the domain.
type Options struct {
	Version string
	Issuer  token.Issuer
	// Known says why there is no such tenant, or why it may do nothing.
	Known func(ctx context.Context, tenant estover.TenantID) error
	// Authenticate makes the caller of a request to a tenant, or says why there is
	// none.
	Authenticate func(*http.Request, estover.TenantID) (estover.Caller, error)
	// Seal and Open encrypt kept answers under the tenant's key.
	Seal func(tenant estover.TenantID, id string, plain []byte) ([]byte, error)
	Open func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error)
	// MAC is a keyed digest of a request, by which it is recognised.
	MAC    func(tenant estover.TenantID, value []byte) []byte
	Logger *slog.Logger
}

// maxBody bounds a request. An applied file is the largest thing that is sent.
const maxBody = 8 << 20

// New is the API over the parts of the domain.
func New(g *guard.Guard, parts Parts, o Options) *Server {
	s := &Server{
		Parts: parts, guard: g, logger: o.Logger, auth: o.Authenticate, known: o.Known, once: idempotency{g.DB(), o.MAC, o.Seal, o.Open},
		issuer: o.Issuer, mux: http.NewServeMux(),
	}
	config := huma.DefaultConfig("Estover", o.Version)
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "/v1/openapi", "", ""
	config.CreateHooks = nil // no $schema member in answers: they are the domain's own words
	config.Info.Description = "Identity, secrets and least privilege for AI agents. Every answer that is not 2xx is a problem of RFC 9457 with a code."
	config.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	config.Servers = []*huma.Server{{URL: string(o.Issuer)}, {
		URL: string(o.Issuer) + "/t/{tenant}", Description: "Of a tenant beside the default one",
		Variables: map[string]*huma.ServerVariable{"tenant": {Default: "NAME", Description: "Its name"}},
	}}
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer": {Type: "http", Scheme: "bearer"},
		"dpop":   {Type: "http", Scheme: "dpop", Description: "An access token that is bound to a key, with a proof in the header DPoP (RFC 9449)."},
	}
	config.Security = []map[string][]string{{"bearer": {}}, {"dpop": {}}}
	config.RejectUnknownQueryParameters = true
	config.Transformers = []huma.Transformer{s.asProblem}
	config.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	s.huma = humago.New(s.mux, config)
	s.routes()
	return s
}

// Mount adds the API of all tenants to mux. That of the default one is at the root
// too, where the issuer has a path.
func (s *Server) Mount(mux *http.ServeMux) error {
	u, err := url.Parse(string(s.issuer))
	if err != nil {
		return err
	}
	mux.Handle("/v1/", s.handler(estover.DefaultTenant))
	if u.Path != "" {
		mux.Handle(u.Path+"/v1/", http.StripPrefix(u.Path, s.handler(estover.DefaultTenant)))
	}
	mux.HandleFunc(u.Path+"/t/{tenant}/v1/", func(w http.ResponseWriter, r *http.Request) {
		tenant := estover.TenantID(r.PathValue("tenant"))
		err := error(token.ErrNoTenant)
		if tenant != estover.DefaultTenant { // which has one name, and that is none
			err = s.known(r.Context(), tenant)
		}
		if err != nil {
			edge.WriteProblem(w, s.problemOf(r.Context(), err))
			return
		}
		http.StripPrefix(u.Path+"/t/"+string(tenant), s.handler(tenant)).ServeHTTP(w, r)
	})
	return nil
}

// schemaName is the name of a type in the document: its package's and its own,
// since each package of the domain has a Spec. A page is named after what is on it.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if items, is := listed(t); is { // as is what a page is of
		return "Many" + schemaName(items, "") + "Body"
	}
	pkg := path.Base(t.PkgPath())
	if t.Name() == "" || pkg == "api" || pkg == "." || !strings.HasPrefix(t.PkgPath(), "estover.dev/internal/") {
		return name
	}
	if pkg = strings.ToUpper(pkg[:1]) + pkg[1:]; strings.HasPrefix(name, pkg) {
		return name
	}
	return pkg + name
}

// listed is what there are several of in the body of a [many].
func listed(t reflect.Type) (reflect.Type, bool) {
	if t.Kind() != reflect.Struct || t.Name() != "" {
		return nil, false
	}
	items, is := t.FieldByName("Items")
	if !is || items.Type.Kind() != reflect.Slice || items.Type.Elem().Name() == "" {
		return nil, false
	}
	return items.Type.Elem(), true
}

// OpenAPI is the document that describes the API.
func (s *Server) OpenAPI() *huma.OpenAPI { return s.huma.OpenAPI() }

type callerKey struct{}

// callerOf is who asks. It is put there by handler, before anything else. Of
// whoever logs in it is known only where the request comes from.
func callerOf(ctx context.Context) estover.Caller {
	c, _ := ctx.Value(callerKey{}).(estover.Caller)
	return c
}

// handler is what stands before every operation of a tenant.
func (s *Server) handler(tenant estover.TenantID) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if _, pattern := s.mux.Handler(r); pattern == "" {
			edge.WriteProblem(w, edge.ProblemOf(errNoSuchPath.With("There is no %s %s in this API; /v1/openapi.json says what there is.", r.Method, r.URL.Path), ""))
			return
		}
		if !isText(r.URL) {
			edge.WriteProblem(w, edge.ProblemOf(db.ErrNotText, ""))
			return
		}
		if open[r.URL.Path] {
			o := edge.OriginOf(r)
			nobody := estover.Caller{Tenant: tenant, Address: o.Address, Request: o.Request}
			s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, nobody)))
			return
		}
		caller, err := s.auth(r, tenant)
		if err != nil {
			edge.WriteProblem(w, s.problemOf(r.Context(), err))
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), callerKey{}, caller))
		if key := r.Header.Get("Idempotency-Key"); key != "" && r.Method == http.MethodPost && !reading(r.URL.Path) {
			s.once.serve(w, r, caller, key, s.mux)
			return
		}
		s.mux.ServeHTTP(w, r)
	})
}

// isText reports whether path and query are text when they are decoded: such
// bytes would be a name that no database has.
func isText(u *url.URL) bool {
	is := func(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }
	query, err := url.QueryUnescape(u.RawQuery)
	return err == nil && is(u.Path) && is(query)
}

var errNoSuchPath = &estover.Error{Kind: estover.NotFound, Code: "no_such_path", Detail: "There is no such path in this API."}

// problemOf is what the caller is told of an error; what the caller is not
// told goes to the log.
func (s *Server) problemOf(ctx context.Context, err error) *edge.Problem {
	caller := callerOf(ctx)
	p := edge.ProblemOf(err, caller.Request)
	if p.Status >= 500 && ctx.Err() == nil {
		s.logger.Error("a request failed", "request", caller.Request, "caller", caller.Subject, "error", err)
	}
	return p
}

// problem is an error as huma wants it.
func (s *Server) problem(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return asStatus{s.problemOf(ctx, err)}
}

// asStatus is a problem that huma can answer with.
type asStatus struct{ *edge.Problem }

func (p asStatus) Error() string { return p.Detail }

// GetStatus is the status of the answer.
func (p asStatus) GetStatus() int { return p.Status }

// GetHeaders says when the request may be made again, where that may help.
func (p asStatus) GetHeaders() http.Header {
	h := http.Header{}
	if after := p.RetryAfter(); after != "" {
		h.Set("Retry-After", after)
	}
	return h
}

// ContentType is that of a problem.
func (p asStatus) ContentType(string) string { return edge.ProblemType }

// MarshalJSON writes the problem itself.
func (p asStatus) MarshalJSON() ([]byte, error) { return json.Marshal(p.Problem) }

// asProblem gives what huma itself refuses, a body that does not fit the
// schema, the shape of all other problems.
func (s *Server) asProblem(ctx huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := &edge.Problem{Title: http.StatusText(e.Status), Status: e.Status, Code: "invalid_request", Detail: sentence(e.Detail), Request: callerOf(ctx.Context()).Request}
	for _, d := range e.Errors {
		p.Errors = append(p.Errors, edge.ProblemPlace{Message: d.Message, Location: strings.TrimPrefix(d.Location, "body.")})
	}
	return p, nil
}

// sentence makes a library's words one of ours.
func sentence(detail string) string {
	if detail == "validation failed" {
		return "The request does not have the form that this operation wants; see which part below."
	}
	if detail == "" {
		return detail
	}
	return strings.ToUpper(detail[:1]) + strings.TrimSuffix(detail[1:], ".") + "."
}

// one is an answer with one thing.
type one[T any] struct{ Body T }

// many is a page of a list.
type many[T any] struct {
	Body struct {
		Items []T    `json:"items" nullable:"false"`
		Next  string `json:"next,omitempty" doc:"Cursor of the next page; absent on the last one"`
	}
}

func pageOf[T any](items []T, next string) *many[T] {
	var p many[T]
	p.Body.Items, p.Body.Next = items, next
	if items == nil {
		p.Body.Items = []T{}
	}
	return &p
}

// Paging is what every list takes.
type Paging struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many things a page has"`
	Cursor string `query:"cursor" maxLength:"500" doc:"Where the page begins: next of the page before"`
}

// Named is the path of one thing. Like the others that inputs embed, it is exported
// for huma, which looks into no other fields.
type Named struct {
	ID string `path:"id" maxLength:"200" doc:"Its id"`
}

// op describes an operation: its id, the group in the document, and a
// sentence.
func op(id, method, path, tag, summary string) huma.Operation {
	o := huma.Operation{OperationID: id, Method: method, Path: path, Tags: []string{tag}, Summary: summary}
	if method == http.MethodPost && !reading(path) {
		o.Parameters = append(o.Parameters, &huma.Param{
			Name: "Idempotency-Key", In: "header", Description: "Any text of the caller's; the request is done once for each",
			Schema: &huma.Schema{Type: "string", MaxLength: ptr(200)},
		})
	}
	return o
}

func ptr[T any](v T) *T { return &v }

// seconds is a duration as the API takes it.
func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }
