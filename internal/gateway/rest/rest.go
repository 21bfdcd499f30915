// Package rest is the gateway's door for programs that can be given the URL of
// an API: /u/{route}/… on a host of ours, or a host name for each route, stands
// for the upstream's own URL (gateway.md, section 7).
//
// The caller's token, in Authorization or bound by DPoP, is for us: it is taken
// off and never forwarded. A Location that leads to the same upstream is written
// as one that leads here; another is passed on, and decided about when somebody
// follows it.
package rest

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/token"
)

// A Route is an upstream under a name.
type Route struct {
	Name   string
	Scheme string
	Host   edge.Host
	// Base is the path that all paths of the route are below: "" or "/api".
	Base string
	// Rules loosen how paths and queries are read.
	Rules edge.TargetRules
}

// A Door is a set of reverse routes.
type Door struct {
	// Pipeline takes the requests.
	Pipeline *gateway.Pipeline
	// Caller authenticates a request. An answer that challenges the client is
	// its business: if it says so, it has answered.
	Caller func(w http.ResponseWriter, r *http.Request) (c *gateway.Conn, answered bool, err error)
	// Route finds the route of that name for the caller. A route that the caller
	// may not know of is not found.
	Route func(c *gateway.Conn, name string) (Route, error)
	// Base is the path of the issuer, below which the routes of tenants stand.
	Base string
	// Described is what the routes below Prefix say of themselves. Nil: nothing.
	Described *Description
	// Named gives the route that has this host name, in the form of the Host
	// header without a port. It may be nil.
	Named func(host string) (route string, ok bool)
}

// Prefix is the path under which routes are found by their name: of the default
// tenant at the root, and of each other below its issuer.
const Prefix = "/u/"

// A Place is where a path of ours leads.
type Place struct {
	Tenant estover.TenantID
	Name   string // of the route
	Before string // what stands before the paths of the route
	Rest   string // the path there
}

// Find finds the route that a path leads to, if it leads to one. base is the path
// of the issuer. Whose route it is, the path alone says; who may use it is another
// question, which the caller's token answers.
func Find(base, path string) (at Place, ok bool) {
	at.Tenant = estover.DefaultTenant
	below, ok := strings.CutPrefix(path, Prefix)
	if !ok {
		if below, ok = strings.CutPrefix(path, base+token.TenantPath); !ok {
			return Place{}, false
		}
		name, rest, _ := strings.Cut(below, "/")
		at.Tenant = estover.TenantID(name)
		if below, ok = strings.CutPrefix("/"+rest, Prefix); !ok || name == "" || at.Tenant == estover.DefaultTenant {
			return Place{}, false // the default tenant has one name, which is none
		}
	}
	at.Name, _, _ = strings.Cut(below, "/")
	at.Rest = below[len(at.Name):]
	at.Before = path[:len(path)-len(at.Rest)]
	return at, true
}

// refusedBody is how long the rest of a body may take that nobody wants.
const refusedBody = 2 * time.Second

// own are the headers that carry what is meant for us.
var own = []string{"authorization", "dpop", "signature", "signature-input"}

// Matches reports whether a request is for the door. A server asks it before
// its own [http.ServeMux], which would redirect paths that are refused here.
func (d *Door) Matches(r *http.Request) bool {
	_, _, _, ok := d.find(r)
	return ok
}

// find splits a request's path into a route's name, what stands before the
// route's paths, and the rest.
func (d *Door) find(r *http.Request) (name, before, rest string, ok bool) {
	path := r.URL.EscapedPath()
	if d.Named != nil {
		if h, err := edge.ParseHost(r.Host, 443); err == nil {
			if name, ok = d.Named(h.Bare()); ok {
				return name, "", path, true
			}
		}
	}
	at, ok := Find(d.Base, path)
	return at.Name, at.Before, at.Rest, ok
}

// ServeHTTP answers a request to a route.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, answered, err := d.Caller(w, r)
	if answered {
		return
	}
	if err != nil {
		// The server reads what is left of the body before it closes, and a
		// stranger could let it wait for that.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(refusedBody))
		gateway.Refuse(w, "", err)
		return
	}
	ex := gateway.NewExchange("rest", c, r)
	name, before, rest, _ := d.find(r)
	ex.Route, ex.Own = name, own
	route, err := d.Route(c, name)
	if err != nil {
		gateway.Refuse(w, ex.Caller.Request, err)
		return
	}
	if rest == "" {
		rest = "/"
	}
	ex.Scheme, ex.Host = route.Scheme, route.Host
	if r.URL.IsAbs() || r.Method == http.MethodConnect {
		err = edge.ErrPath
	} else {
		err = ex.Target(r, route.Base+rest, route.Rules)
	}
	if err != nil {
		d.Pipeline.Refuse(w, ex, err)
		return
	}
	if d.Described != nil && before != "" {
		ex.Challenge = func(code string, need edge.Need) string {
			need.Metadata = d.Described.Need(r).Metadata
			return need.Challenge(r, code)
		}
	}
	ex.Location = func(at string) string { return route.here(before, ex, at) }
	d.Pipeline.Serve(&answer{ResponseWriter: w}, r, ex)
}

// here writes a URL that an answer points to as one of this door, if it is below
// the route, and leaves it alone otherwise.
func (route Route) here(before string, ex *gateway.Exchange, at string) string {
	to, err := url.Parse(at)
	if err != nil {
		return at
	}
	from := &url.URL{Scheme: route.Scheme, Host: route.Host.Authority(route.Scheme), RawQuery: ex.Query}
	ex.Path.Set(from)
	full := from.ResolveReference(to)
	host, err := edge.ParseHost(full.Host, edge.DefaultPort(full.Scheme))
	if err != nil || full.Scheme != route.Scheme || host != route.Host || full.User != nil {
		return at
	}
	path := full.EscapedPath()
	below, ok := strings.CutPrefix(path, route.Base)
	if !ok || below != "" && below[0] != '/' {
		// The same host, but not by this route: the agent gets the whole URL.
		return full.String()
	}
	path = before + below
	if path == "" {
		path = "/"
	}
	if full.RawQuery != "" || full.ForceQuery {
		path += "?" + full.RawQuery
	}
	if full.Fragment != "" {
		path += "#" + full.EscapedFragment()
	}
	return path
}

// An answer takes out of the head what would speak for our own host.
type answer struct{ http.ResponseWriter }

// Unwrap gives the server's own writer, for deadlines, flushes and upgrades.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader writes the head.
func (a *answer) WriteHeader(status int) {
	for _, name := range []string{"Strict-Transport-Security", "Clear-Site-Data", "Public-Key-Pins", "Service-Worker-Allowed"} {
		a.Header().Del(name)
	}
	a.ResponseWriter.WriteHeader(status)
}
