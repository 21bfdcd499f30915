package edge

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// The bounds of every HTTP server of ours (gateway.md, P7 and P9).
const (
	maxHeaderBytes    = 64 << 10
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	handshakeTimeout  = 10 * time.Second
	maxHandshakes     = 256         // at once, a listener
	idleHandshake     = time.Second // after which one makes room for others
)

// NewServer makes a server with the bounds that hold for all of ours. It
// speaks HTTP/1.1, and HTTP/2 where a TLS connection has agreed on it, but never
// in clear. It has no limit for the writing of an answer, since answers may be
// streams: whoever writes sets one.
func NewServer(h http.Handler, logger *slog.Logger) *http.Server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			strict, _ := NetConn[*StrictConn](c)
			return context.WithValue(ctx, strictKey{}, strict)
		},
		// The handler answers "OPTIONS *" too.
		DisableGeneralOptionsHandler: true,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250,
			SendPingTimeout:      30 * time.Second,
			WriteByteTimeout:     30 * time.Second,
		},
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	return s
}

// A Queue is a listener whose connections are put there, for a server whose
// connections come about in another way than by a socket.
type Queue struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// NewQueue makes a queue that says it listens on addr.
func NewQueue(addr net.Addr) *Queue {
	return &Queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Put hands a connection to the server. If the queue is closed, so is the
// connection. A connection over TLS must have shaken hands: unless it has
// agreed on HTTP/2, its requests are watched by a [StrictConn].
func (q *Queue) Put(c net.Conn) {
	switch t, ok := c.(*tls.Conn); {
	case !ok:
		c = Strict(c)
	case t.ConnectionState().NegotiatedProtocol != "h2":
		c = StrictTLSConn{Strict(t)}
	}
	select {
	case q.conns <- c:
	case <-q.done:
		c.Close()
	}
}

// Accept waits for a connection.
func (q *Queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close ends the queue.
func (q *Queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr is the address that was given.
func (q *Queue) Addr() net.Addr { return q.addr }

// Listen puts a listener before a server that shakes hands, if there is a TLS
// configuration, and holds HTTP/1.1 to the letter. A slow handshake keeps
// nobody else waiting: where too many are under way, the one that has taken
// longest makes room, if that is more than a second.
func Listen(ln net.Listener, config *tls.Config) net.Listener {
	l := &listener{Queue: NewQueue(ln.Addr()), ln: ln, config: config, slots: make(chan struct{}, maxHandshakes)}
	go l.run()
	return l
}

type listener struct {
	*Queue
	ln     net.Listener
	config *tls.Config
	slots  chan struct{}

	mu      sync.Mutex
	shaking []shaking // the oldest first
}

// A shaking is a connection that shakes hands.
type shaking struct {
	net.Conn
	since time.Time
}

// begin waits until there is room for another connection to shake hands.
func (l *listener) begin(c net.Conn) {
	for free := false; !free; {
		wait := time.NewTimer(l.makeRoom())
		select {
		case l.slots <- struct{}{}:
			free = true
		case <-wait.C:
		}
		wait.Stop()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shaking = append(l.shaking, shaking{c, time.Now()})
}

// makeRoom closes the oldest connection that shakes hands if there are too many
// and it has taken long, and says when to look again.
func (l *listener) makeRoom() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.shaking) < maxHandshakes {
		return idleHandshake
	}
	left := idleHandshake - time.Since(l.shaking[0].since)
	if left <= 0 {
		l.shaking[0].Close()
		l.shaking = l.shaking[1:]
		left = idleHandshake
	}
	return left
}

// end notes that a connection has shaken hands, or has failed to.
func (l *listener) end(c net.Conn) {
	<-l.slots
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.IndexFunc(l.shaking, func(s shaking) bool { return s.Conn == c }); i >= 0 {
		l.shaking = slices.Delete(l.shaking, i, i+1)
	}
}

// Close closes the socket as well.
func (l *listener) Close() error {
	err := l.ln.Close()
	l.Queue.Close()
	return err
}

func (l *listener) run() {
	defer l.Queue.Close()
	pause := time.Millisecond
	for {
		c, err := l.ln.Accept()
		if err != nil {
			if t, ok := err.(interface{ Temporary() bool }); ok && t.Temporary() {
				// There are no descriptors left: somebody must close first.
				select {
				case <-time.After(pause):
					pause = min(2*pause, time.Second)
					continue
				case <-l.done:
				}
			}
			return
		}
		pause = time.Millisecond
		if l.config != nil {
			l.begin(c)
		}
		go func() {
			if l.config != nil {
				t := tls.Server(c, l.config)
				ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
				err := t.HandshakeContext(ctx)
				cancel()
				l.end(c)
				if err != nil {
					c.Close()
					return
				}
				c = t
			}
			l.Put(c)
		}()
	}
}

// NetConn finds the connection of the given type under the wrappers of a
// server's connection.
func NetConn[T net.Conn](c net.Conn) (found T, ok bool) {
	for c != nil {
		if found, ok = c.(T); ok {
			return found, true
		}
		inner, wraps := c.(interface{ NetConn() net.Conn })
		if !wraps {
			return found, false
		}
		c = inner.NetConn()
	}
	return found, false
}
