// Package gatewaytest has the steps of a gateway whose policy allows
// everything, for tests of what is around them.
package gatewaytest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/rest"
)

// Wait is how long a test waits for what must happen.
const Wait = 30 * time.Second

// Soon is how long what is promised within a second may take on a machine that is busy
// with other tests. Nothing else would bring it about.
const Soon = 5 * time.Second

// Steps allow everything and remember what became of it.
type Steps struct {
	// Change completes the plan of a request, which has its upstream already. It
	// may be nil.
	Change func(r *http.Request, ex *gateway.Exchange, p *gateway.Plan) error
	// Late is called where secrets are filled in. It may be nil.
	Late func(ex *gateway.Exchange, p *gateway.Plan) error
	// Tunnel decides about tunnels. If it is nil, each is allowed.
	Tunnel func(ex *gateway.Exchange) (*gateway.Tunnel, error)
	// Upstream completes where a request goes.
	Upstream gateway.Upstream

	outcomes   chan *gateway.Outcome
	violations chan error

	mu    sync.Mutex
	order []string
}

// New makes steps whose upstreams are on loopback.
func New() *Steps {
	return &Steps{
		Upstream:   gateway.Upstream{Opening: edge.Opening{Hosts: []string{"127.0.0.1", "::1", "localhost"}}},
		outcomes:   make(chan *gateway.Outcome, 10000),
		violations: make(chan error, 10000),
	}
}

func (s *Steps) note(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) < 100 {
		s.order = append(s.order, step)
	}
}

// Order lists the steps that were taken, the first hundred.
func (s *Steps) Order() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.order...)
}

// Connect allows the tunnel.
func (s *Steps) Connect(_ *http.Request, ex *gateway.Exchange) (*gateway.Tunnel, error) {
	s.note("connect")
	if s.Tunnel != nil {
		return s.Tunnel(ex)
	}
	return &gateway.Tunnel{}, nil
}

// Decide allows the request.
func (s *Steps) Decide(r *http.Request, ex *gateway.Exchange) (*gateway.Plan, error) {
	s.note("decide")
	up := s.Upstream
	up.Scheme, up.Host = ex.Scheme, ex.Host
	p := &gateway.Plan{Decision: "dec_test", Upstream: &up}
	if s.Change != nil {
		if err := s.Change(r, ex, p); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Intend remembers.
func (s *Steps) Intend(context.Context, *gateway.Exchange, *gateway.Plan) error {
	s.note("intend")
	return nil
}

// Fill fills.
func (s *Steps) Fill(_ context.Context, ex *gateway.Exchange, p *gateway.Plan) error {
	s.note("fill")
	if s.Late != nil {
		return s.Late(ex, p)
	}
	return nil
}

// Settle remembers.
func (s *Steps) Settle(_ *gateway.Exchange, _ *gateway.Plan, out *gateway.Outcome) {
	s.note("settle")
	kept := *out
	select {
	case s.outcomes <- &kept:
	default: // nobody looks, as in a benchmark
	}
}

// Violate remembers.
func (s *Steps) Violate(_ *gateway.Exchange, err error) {
	s.note("violate")
	s.violations <- err
}

// Outcome waits for the next outcome.
func (s *Steps) Outcome(t testing.TB) *gateway.Outcome {
	t.Helper()
	select {
	case out := <-s.outcomes:
		return out
	case <-time.After(Wait):
		t.Fatal("no outcome was recorded")
		return nil
	}
}

// Violation waits for the next violation.
func (s *Steps) Violation(t testing.TB) error {
	t.Helper()
	select {
	case err := <-s.violations:
		return err
	case <-time.After(Wait):
		t.Fatal("no violation was recorded")
		return nil
	}
}

// Drain forgets the outcomes that nobody waited for.
func (s *Steps) Drain() {
	for len(s.outcomes) > 0 {
		<-s.outcomes
	}
}

// Quiet fails if an outcome or a violation is waiting.
func (s *Steps) Quiet(t testing.TB) {
	t.Helper()
	select {
	case out := <-s.outcomes:
		t.Errorf("there is an outcome: %+v", *out)
	case err := <-s.violations:
		t.Errorf("there is a violation: %v", err)
	default:
	}
}

// A Gateway is a pipeline of steps with a reverse route to one upstream.
type Gateway struct {
	*Steps
	*gateway.Pipeline
	Addr string // of the reverse door: http://ADDR/u/up/…
	URL  string // "http://ADDR/u/up"
}

// SessionHeader says, in a request to the reverse door of a test, which session
// it is of.
const SessionHeader = "Test-Session"

// Reverse starts a gateway whose only route leads to the URL.
func Reverse(t testing.TB, to string) *Gateway {
	t.Helper()
	return ReverseLog(t, to, slog.New(slog.DiscardHandler))
}

// ReverseLog is [Reverse] with a logger.
func ReverseLog(t testing.TB, to string, logger *slog.Logger) *Gateway {
	t.Helper()
	base, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	host, err := edge.ParseHost(base.Host, edge.DefaultPort(base.Scheme))
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{Steps: New()}
	g.Pipeline = &gateway.Pipeline{Steps: g.Steps, Forwarder: gateway.NewForwarder(&edge.Dialer{}, logger), Live: &gateway.Live{}}
	door := &rest.Door{
		Pipeline: g.Pipeline,
		Caller: func(_ http.ResponseWriter, r *http.Request) (*gateway.Conn, bool, error) {
			session := r.Header.Get(SessionHeader)
			r.Header.Del(SessionHeader)
			if session == "" {
				session = "ses_1"
			}
			return &gateway.Conn{Caller: estover.Caller{Tenant: "default", Session: session}}, false, nil
		},
		Route: func(_ *gateway.Conn, name string) (rest.Route, error) {
			if name != "up" {
				return rest.Route{}, &estover.Error{Kind: estover.NotFound, Code: "route_unknown", Detail: "There is no such route."}
			}
			return rest.Route{Name: "up", Scheme: base.Scheme, Host: host, Base: base.Path}, nil
		},
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := edge.NewServer(door, logger)
	go s.Serve(edge.Listen(ln, nil))
	t.Cleanup(func() { s.Close() })
	g.Addr = ln.Addr().String()
	g.URL = "http://" + g.Addr + "/u/up"
	return g
}

// Raw starts a server that does with each connection what serve does; n counts
// them from one. It gives the server's URL.
func Raw(t testing.TB, serve func(c net.Conn, n int)) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for n := 1; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c, n)
			}()
		}
	}()
	return "http://" + ln.Addr().String()
}

// Dial opens a connection that must be done with within [Wait].
func Dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(Wait))
	return c
}

// Talk writes a text to an address and reads until the other side closes.
func Talk(t testing.TB, addr, text string) string {
	t.Helper()
	c := Dial(t, addr)
	io.WriteString(c, text)
	all, _ := io.ReadAll(c)
	return string(all)
}
