package forward

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
)

// A tunnel is the connection of a client after CONNECT. The TLS inside is read
// from it and written to it, so that it is found under each connection of the
// inner server.
type tunnel struct {
	net.Conn
	door       *Door
	ex         *gateway.Exchange
	client     *tls.ConnectionState // of the connection to the proxy
	permission *gateway.Tunnel
	first      []byte // read already

	begun    time.Time
	up, down atomic.Int64
	closed   sync.Once
	leave    func()
	age      *time.Timer

	mu    sync.Mutex
	end   gateway.End // why it is to be closed, if that is known
	cause error
}

type tunnelKey struct{}

// connect opens a tunnel.
func (d *Door) connect(w http.ResponseWriter, r *http.Request, ex *gateway.Exchange) {
	host, err := edge.ParseHost(r.RequestURI, 0)
	if err == nil {
		ex.Host = host
		err = edge.CheckHead(r)
	}
	if err != nil {
		d.Pipeline.Steps.Violate(ex, err)
		refuse(w, ex.Caller.Request, err)
		return
	}
	t := &tunnel{door: d, ex: ex, client: r.TLS, begun: time.Now()}
	t.permission, err = d.Pipeline.Steps.Connect(r, ex)
	if err != nil {
		refuse(w, ex.Caller.Request, err)
		return
	}
	t.permission.Host = host
	if !t.permission.PassThrough && ex.CA == nil {
		refuse(w, ex.Caller.Request, errors.New("the session has no CA"))
		return
	}
	if t.leave, err = d.Pipeline.Live.Hold(ex, t.cut); err != nil {
		t.over(gateway.Cut, err)
		refuse(w, ex.Caller.Request, err)
		return
	}
	c, err := hijacked(w)
	if err != nil {
		t.over(gateway.Cancelled, err)
		return
	}
	t.take(c)
	if t.permission.PassThrough {
		t.passThrough()
		return
	}
	t.intercept()
}

// take begins the life of the tunnel on its connection.
func (t *tunnel) take(c net.Conn) {
	age := t.permission.MaxAge
	switch {
	case age > 0:
	case t.permission.PassThrough:
		age = passThroughAge
	default:
		age = interceptAge
	}
	t.mu.Lock()
	t.Conn = c
	ended := t.cause
	t.age = time.AfterFunc(age, func() { t.cut(gateway.ErrTooLong) })
	t.mu.Unlock()
	if ended != nil {
		t.Close()
	}
}

// cut ends the tunnel for a cause.
func (t *tunnel) cut(cause error) {
	t.because(gateway.Cut, cause)
	t.mu.Lock()
	taken := t.Conn != nil
	t.mu.Unlock()
	if taken {
		t.Close()
	}
}

// because notes why the tunnel ends, if it is the first reason.
func (t *tunnel) because(end gateway.End, cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end == "" {
		t.end, t.cause = end, cause
	}
}

// intercept shakes hands as the host and gives the connection to the inner
// server.
func (t *tunnel) intercept() {
	if err := t.hello(); err != nil {
		t.violate(err)
		return
	}
	inner := tls.Server(t, &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !t.named(h.ServerName) {
				return nil, ErrSNI
			}
			return t.ex.CA.Leaf(t.permission.Host.Bare(), time.Now())
		},
	})
	ctx, cancel := context.WithTimeout(context.Background(), handshake)
	defer cancel()
	if err := inner.HandshakeContext(ctx); err != nil {
		if errors.Is(err, ErrSNI) {
			t.violate(ErrSNI)
			return
		}
		t.fail(fmt.Errorf("shaking hands inside the tunnel: %w", err))
		return
	}
	t.door.queue.Put(inner)
}

// named reports whether the server name is that of the tunnel's host. An
// address has none: RFC 6066, section 3.
func (t *tunnel) named(sni string) bool {
	host := t.permission.Host
	if host.Name == "" {
		return sni == ""
	}
	named, err := edge.ParseHost(sni, host.Port)
	return err == nil && named == host
}

// hello waits for the first byte, which must be that of a TLS record.
func (t *tunnel) hello() error {
	t.Conn.SetReadDeadline(time.Now().Add(firstByte))
	defer t.Conn.SetReadDeadline(time.Time{})
	var b [1]byte
	if _, err := io.ReadFull(t.Conn, b[:]); err != nil {
		return err
	}
	t.first = b[:]
	if b[0] != 0x16 {
		return ErrNoTLS
	}
	return nil
}

// violate ends the tunnel with an event.
func (t *tunnel) violate(err error) {
	if errors.Is(err, ErrNoTLS) || errors.Is(err, ErrSNI) {
		t.door.Pipeline.Steps.Violate(t.ex, err)
		t.because(gateway.Refused, err)
	}
	t.fail(err)
}

// fail ends the tunnel with an error.
func (t *tunnel) fail(err error) {
	t.because(gateway.Failed, err)
	t.Close()
}

// passThrough lets the bytes through to the upstream, once the server name is
// seen to be the host's.
func (t *tunnel) passThrough() {
	defer t.Close()
	err := t.hello()
	if err == nil {
		err = t.peek()
	}
	if err != nil {
		t.violate(err)
		return
	}
	up := t.permission.Upstream
	ctx, cancel := context.WithTimeout(context.Background(), firstByte)
	defer cancel()
	upstream, err := t.door.Pipeline.Forwarder.Dialer().Dial(ctx, cmp.Or(up.Address, up.Host.String()), up.Opening)
	if err != nil {
		t.fail(err)
		return
	}
	defer upstream.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(upstream, t)
		closeWrite(upstream)
	}()
	io.Copy(t, upstream)
	closeWrite(t.Conn)
	// When the upstream has ended, the client may still have something to say, but
	// not for long.
	t.Conn.SetReadDeadline(time.Now().Add(firstByte))
	<-done
}

// peek reads the greeting of the client, without losing it, for its server
// name.
func (t *tunnel) peek() error {
	var seen bytes.Buffer
	name, found := "", false
	greeting := tls.Server(&peeker{Conn: t.Conn, from: io.TeeReader(io.MultiReader(bytes.NewReader(t.first), t.Conn), &seen)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name, found = h.ServerName, true
			return nil, errPeeked
		},
	})
	ctx, cancel := context.WithTimeout(context.Background(), handshake)
	defer cancel()
	err := greeting.HandshakeContext(ctx)
	t.first = seen.Bytes()
	switch {
	case !found:
		return err
	case !t.named(name):
		return ErrSNI
	}
	return nil
}

var errPeeked = errors.New("only the greeting is read")

// A peeker reads and does not write.
type peeker struct {
	net.Conn
	from io.Reader
}

func (p *peeker) Read(b []byte) (int, error)  { return p.from.Read(b) }
func (p *peeker) Write(b []byte) (int, error) { return len(b), nil }
func (p *peeker) Close() error                { return nil }

// Read reads from the client, first what was read already.
func (t *tunnel) Read(b []byte) (int, error) {
	if len(t.first) > 0 {
		n := copy(b, t.first)
		t.first = t.first[n:]
		t.up.Add(int64(n))
		return n, nil
	}
	n, err := t.Conn.Read(b)
	t.up.Add(int64(n))
	return n, err
}

// Write writes to the client.
func (t *tunnel) Write(b []byte) (int, error) {
	n, err := t.Conn.Write(b)
	t.down.Add(int64(n))
	return n, err
}

// CloseWrite closes the client's connection for writing.
func (t *tunnel) CloseWrite() error { return closeWrite(t.Conn) }

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Close ends the tunnel.
func (t *tunnel) Close() error {
	t.over(gateway.Complete, nil)
	return t.Conn.Close()
}

// over settles the outcome, once.
func (t *tunnel) over(end gateway.End, cause error) {
	t.because(end, cause)
	t.closed.Do(func() {
		if t.age != nil {
			t.age.Stop()
		}
		if t.leave != nil {
			t.leave()
		}
		if t.permission.Done != nil {
			t.permission.Done(gateway.TunnelOutcome{End: t.end, Err: t.cause, Up: t.up.Load(), Down: t.down.Load(), Took: time.Since(t.begun)})
		}
	})
}
