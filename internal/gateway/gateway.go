// Package gateway is the data path between an agent and the systems it
// reaches: one order of steps for every request, whatever door it came in by.
//
//	door: parse ─▶ enter ─▶ decide ─▶ intend ─▶ fill ─▶ forward ─▶ settle
//	                 │         │         │        │        │
//	                 └─────────┴─────────┴────────┴────────┴── cut, at any moment
//
// A door (package forward, package rest, …) reads one protocol strictly and
// makes an [Exchange] of each request. [Pipeline.Serve] takes it through the
// steps: policy decides, the intent is recorded, secrets are put into their
// slots, the [Forwarder] carries request and answer, the outcome is recorded.
// What the steps know of agents, policy, secrets and the record is behind
// [Steps]; that none is left out and none comes before the other is here.
//
// # What the forwarder promises
//
// The agent's request goes to the decided place and nowhere else, once:
// redirects are handed back, the transport never repeats what may have been
// received, and connections are shared by nobody but one session, host and
// credential. What policy saw of it, method, path and query, goes out byte by
// byte.
//
// An injected secret goes only into its slot, which is emptied first under every
// spelling. It comes back neither in a head, a trailer, a body, a frame nor an
// informational answer, in any of the encodings that package redact knows.
//
// Bodies are never collected, unless a step asks to see one, a signature covers it
// or a secret goes into it. Each piece goes to the taps (see [Tap]) and on, at once.
//
// Every exchange and every tunnel is in the [Live] index under its session.
// [Live.Cut] ends them all within a second, also those that stand still.
package gateway

import (
	"net/http"
	"net/netip"
	"sync/atomic"

	"estover.dev"
	"estover.dev/internal/edge"
)

// A Conn is who is at the other end, as the door found out. It is made for each
// request, so that what has ended is not served again.
type Conn struct {
	Caller estover.Caller
	CA     *CA // of the session, on doors that intercept
}

// An Exchange is one request on its way through the pipeline.
type Exchange struct {
	Conn

	// Door is the protocol it came in by: "forward" or "rest".
	Door string
	// Route is the name of the reverse route, if it came by one.
	Route string
	// Tunnel is what it came through, if that was a tunnel.
	Tunnel *Tunnel

	// Where it goes. This is what policy decides on and what is forwarded. For
	// the opening of a tunnel there is a host alone.
	Method string
	Scheme string
	Host   edge.Host
	Path   edge.Path
	Query  string
	// Upgrade is the protocol that the connection is to be upgraded to:
	// "websocket" or nothing.
	Upgrade string

	// Own are the folded names of headers that are meant for us and are never
	// forwarded.
	Own []string
	// Challenge, if it is set, tells the client what its token lacks, by an error
	// of RFC 6750 or RFC 9470.
	Challenge func(code string, need edge.Need) string
	// Location, if it is set, rewrites the Location of an answer, for a door
	// that the upstream does not know of.
	Location func(string) string

	kept atomic.Value
}

// Keep keeps with an exchange what the steps decided it by, for when they are
// asked whether it may go on. What is kept is of one type, and not changed.
func (ex *Exchange) Keep(v any) { ex.kept.Store(v) }

// Kept is what was kept; nil if nothing was, or not yet.
func (ex *Exchange) Kept() any { return ex.kept.Load() }

// peer is the address of the other end of a request's connection.
func peer(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	return at.Addr().Unmap()
}

// NewExchange begins the exchange of a request: it gives the caller a request
// id and the address, unless the door has done so.
func NewExchange(door string, c *Conn, r *http.Request) *Exchange {
	ex := &Exchange{Conn: *c, Door: door, Method: r.Method}
	if ex.Caller.Request == "" {
		ex.Caller.Request = estover.NewID("req")
	}
	if !ex.Caller.Address.IsValid() {
		ex.Caller.Address = peer(r)
	}
	return ex
}

// Target takes path and query from a request, after checking that both can be
// read in one way only, and that the head is within bounds.
func (ex *Exchange) Target(r *http.Request, path string, rules edge.TargetRules) (err error) {
	if err = edge.CheckHead(r); err != nil {
		return err
	}
	if ex.Path, err = edge.ParsePath(path, rules); err != nil {
		return err
	}
	if err = edge.CheckQuery(r.URL.RawQuery, rules); err != nil {
		return err
	}
	ex.Query = r.URL.RawQuery
	return ex.upgrade(r)
}
