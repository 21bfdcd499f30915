// Package forward is the gateway's door for everything that can use an HTTP
// proxy: CONNECT with TLS interception, and requests in absolute form
// (gateway.md, section 6).
//
//	client certificate ─▶ session ─▶ CONNECT host ─▶ decision ─▶ 200
//	      ─▶ first byte is TLS ─▶ SNI is the host ─▶ leaf of the session's CA
//	      ─▶ HTTP/1.1 or HTTP/2 inside ─▶ host is the tunnel's ─▶ pipeline
//
// A tunnel is no permission. Each request inside asks for the session again and
// goes through the whole pipeline; a tunnel that is cut closes at once.
//
// The listener speaks TLS 1.3 and demands a certificate, any certificate: who
// it is follows from its SHA-256, not from who signed it.
package forward

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
)

// The errors of the door.
var (
	ErrNotProxied = &estover.Error{Kind: estover.Invalid, Code: "not_proxied", Detail: "This is a proxy: ask it with CONNECT, or for an absolute http URL."}
	ErrNoTLS      = &estover.Error{Kind: estover.Invalid, Code: "tunnel_without_tls", Detail: "Only TLS goes through a tunnel; other protocols have doors of their own."}
	ErrSNI        = &estover.Error{Kind: estover.Invalid, Code: "tunnel_name", Detail: "The server name in the TLS handshake is not the host that the tunnel is for."}
)

var errEarly = errors.New("the client did not wait for the answer to CONNECT")

// OwnHost is the name under which a program in a session speaks to us by the
// proxy, in the clear as far as that: nobody else has it (.internal is for private
// use).
const OwnHost = "estover.internal"

// How long the parts of opening a tunnel may take, and how long tunnels last
// unless the decision says otherwise.
const (
	firstByte      = 10 * time.Second
	handshake      = 10 * time.Second
	passThroughAge = 15 * time.Minute
	interceptAge   = 24 * time.Hour
)

// A Door is a forward proxy.
type Door struct {
	// Pipeline takes the requests.
	Pipeline *gateway.Pipeline
	// Session finds who presents the certificate with this SHA-256. It is asked
	// for each request.
	Session func(ctx context.Context, thumbprint [32]byte) (*gateway.Conn, error)
	// Rules loosen how paths and queries of a host are read. If it is nil, they
	// are strict.
	Rules func(ctx context.Context, c *gateway.Conn, host edge.Host) edge.TargetRules
	// Own answers what is asked of us and not of an upstream, at [OwnHost]. Nil
	// answers nothing.
	Own func(w http.ResponseWriter, r *http.Request, caller estover.Caller)
	// Certificates are the door's own.
	Certificates func() (*tls.Certificate, error)
	Logger       *slog.Logger

	once  sync.Once
	outer *http.Server
	inner *http.Server
	queue *edge.Queue
}

// Serve answers on the listener until it is closed.
func (d *Door) Serve(ln net.Listener) error {
	d.once.Do(func() { d.start(ln.Addr()) })
	return d.outer.Serve(edge.Listen(ln, &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert,
		NextProtos:             []string{"http/1.1"},
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return d.Certificates() },
	}))
}

// start makes the servers: one for the proxy, and one for what is inside the
// tunnels.
func (d *Door) start(addr net.Addr) {
	d.outer = edge.NewServer(http.HandlerFunc(d.serve), d.Logger)
	d.inner = edge.NewServer(http.HandlerFunc(d.inside), d.Logger)
	watched := d.inner.ConnContext
	d.inner.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		t, _ := edge.NetConn[*tunnel](c)
		return context.WithValue(watched(ctx, c), tunnelKey{}, t)
	}
	d.queue = edge.NewQueue(addr)
	go d.inner.Serve(d.queue)
}

// Shutdown lets what is under way end, until the context does; then it is
// closed. A door that is shut before it is opened stays shut.
func (d *Door) Shutdown(ctx context.Context) error {
	d.once.Do(func() { d.start(nil) })
	err := d.outer.Shutdown(ctx)
	if e := d.inner.Shutdown(ctx); err == nil {
		err = e
	}
	d.outer.Close()
	d.inner.Close()
	return err
}

// session finds who asks.
func (d *Door) session(ctx context.Context, state *tls.ConnectionState) (*gateway.Conn, error) {
	return d.Session(ctx, sha256.Sum256(state.PeerCertificates[0].Raw))
}

// own are the headers of a request to the proxy that are meant for it: what the
// launcher signs with, and credentials for a proxy.
var own = []string{"signature", "signature-input", "dpop"}

// serve answers a request to the proxy itself.
func (d *Door) serve(w http.ResponseWriter, r *http.Request) {
	c, err := d.session(r.Context(), r.TLS)
	if err != nil {
		if r.Method == http.MethodConnect {
			refuse(w, "", denied(err))
			return
		}
		w.Header().Set("Connection", "close")
		gateway.Refuse(w, "", denied(err))
		return
	}
	ex := gateway.NewExchange("forward", c, r)
	switch {
	case r.Method == http.MethodConnect:
		d.connect(w, r, ex)
	case r.URL.IsAbs():
		d.absolute(w, r, ex)
	default:
		d.Pipeline.Refuse(w, ex, ErrNotProxied)
	}
}

// errNoSession is why nobody is let through who comes with the certificate of
// no session, or of one that has ended.
var errNoSession = &estover.Error{Kind: estover.Denied, Code: "session_unknown", Detail: "The session has ended, or there never was one."}

// denied turns an unknown caller into a denied one: a proxy that answers 401 or
// 407 makes clients ask for a password, and one that answers 404 makes them
// believe that it is the host that is not there.
func denied(err error) error {
	switch estover.KindOf(err) {
	case estover.Unknown, estover.NotFound, estover.Conflict:
		return errNoSession.Because(err)
	}
	return err
}

// absolute takes a request in absolute form: RFC 9112, section 3.2.2. Its target
// counts, and a Host header beside it does not.
func (d *Door) absolute(w http.ResponseWriter, r *http.Request, ex *gateway.Exchange) {
	if r.URL.Scheme != "http" || r.URL.User != nil {
		d.Pipeline.Refuse(w, ex, ErrNotProxied)
		return
	}
	if d.Own != nil && r.URL.Host == OwnHost {
		d.Own(w, r, ex.Caller)
		return
	}
	ex.Scheme, ex.Own = "http", own
	d.request(w, r, ex, r.URL.Host)
}

// request finishes the reading of a request and hands it to the pipeline.
func (d *Door) request(w http.ResponseWriter, r *http.Request, ex *gateway.Exchange, host string) {
	var err error
	if ex.Host, err = edge.ParseHost(host, edge.DefaultPort(ex.Scheme)); err == nil {
		if ex.Tunnel != nil && ex.Host != ex.Tunnel.Host {
			err = gateway.ErrMisdirected
		} else {
			var rules edge.TargetRules
			if d.Rules != nil {
				rules = d.Rules(r.Context(), &ex.Conn, ex.Host)
			}
			err = ex.Target(r, path(r), rules)
		}
	}
	if err != nil {
		d.Pipeline.Refuse(w, ex, err)
		return
	}
	d.Pipeline.Serve(w, r, ex)
}

// path is the path of a request, "/" if there is none.
func path(r *http.Request) string {
	if p := r.URL.EscapedPath(); p != "" {
		return p
	}
	return "/"
}

// inside answers a request that came through a tunnel.
func (d *Door) inside(w http.ResponseWriter, r *http.Request) {
	t := r.Context().Value(tunnelKey{}).(*tunnel)
	c, err := d.session(r.Context(), t.client)
	if err != nil {
		gateway.Refuse(w, "", denied(err))
		return
	}
	ex := gateway.NewExchange("forward", c, r)
	ex.Caller.Address = t.ex.Caller.Address
	ex.Tunnel, ex.Scheme = t.permission, "https"
	host := r.Host
	switch {
	case r.Method == http.MethodConnect:
		err = ErrNotProxied
	case r.URL.IsAbs() && (r.URL.Scheme != "https" || r.URL.User != nil),
		len(r.Header["Host"]) > 0 && r.Header.Get("Host") != r.Host: // beside :authority
		err = gateway.ErrMisdirected
	}
	if err != nil {
		d.Pipeline.Refuse(w, ex, err)
		return
	}
	d.request(w, r, ex, host)
}

// hijacked takes the connection of a CONNECT over.
func hijacked(w http.ResponseWriter) (net.Conn, error) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	strict, ok := edge.NetConn[edge.StrictTLSConn](c)
	if !ok || rw.Reader.Buffered() > 0 || strict.Opaque() != nil {
		c.Close()
		return nil, errEarly
	}
	c = strict.Conn
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
