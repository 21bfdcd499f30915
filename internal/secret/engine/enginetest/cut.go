package enginetest

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// CutOff has the admin of a target make a second one, cut off from the server at one
// message later each time, before that takes effect and after it. Then it does what
// a rotation does, and sees whether the second admin logs in and has the rights of the
// first, as the server tells them. Gone takes it away again. It returns how often one
// was left that was not finished.
func CutOff(t *testing.T, kind engine.Kind, config engine.Config, second engine.Credential, rights func(user string) string, gone func()) (halves int) {
	t.Helper()
	e, err := kind.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	want := rights(config.Admin.User)
	for n, done := int64(1), false; !done; n++ {
		for _, after := range []bool{false, true} {
			c := &cut{after: after}
			c.left.Store(n)
			conf := config
			conf.Dial = c.dial
			off, err := kind.Open(conf)
			if err != nil {
				t.Fatal(err)
			}
			done = off.(engine.Pairer).Pair(t.Context(), second.User, config.Admin.User, second.Secret) == nil && c.left.Load() > 0
			_ = off.Close()
			err = e.SetSecret(t.Context(), second.User, second.Secret, estover.Secret{})
			if errors.Is(err, engine.ErrNoUser) {
				there, listed := e.List(t.Context(), second.User)
				if len(there) > 0 {
					halves++
				}
				err = errors.Join(listed, e.(engine.Pairer).Pair(t.Context(), second.User, config.Admin.User, second.Secret))
				var refused *engine.Refused
				if errors.As(err, &refused) { // what was cut off may have come through meanwhile
					err = e.SetSecret(t.Context(), second.User, second.Secret, estover.Secret{})
				}
			}
			if err == nil {
				err = e.Verify(t.Context(), second)
			}
			if got := rights(second.User); err != nil || got != want {
				t.Errorf("cut off at message %d (after it: %v): %v, and the second admin has %s, want %s", n, after, err, got, want)
			}
			gone()
		}
	}
	return halves
}

// A cut is where somebody is cut off from a server: at the message that has its turn.
type cut struct {
	left  atomic.Int64
	after bool
}

func (c *cut) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return cutConn{conn, c}, nil
}

type cutConn struct {
	net.Conn
	cut *cut
}

func (c cutConn) Write(b []byte) (n int, err error) {
	left := c.cut.left.Add(-1)
	if left > 0 || left == 0 && c.cut.after {
		n, err = c.Conn.Write(b)
	}
	if left <= 0 {
		err = errors.Join(err, net.ErrClosed, c.Close())
	}
	return n, err
}
