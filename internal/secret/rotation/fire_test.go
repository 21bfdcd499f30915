package rotation_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/mysql"
	"estover.dev/internal/secret/engine/postgres"
	"estover.dev/internal/secret/engine/redis"
	"estover.dev/internal/secret/rotation"
)

var (
	fireClients   = flag.Int("fire.clients", 4, "how many clients open connections while a secret is rotated")
	fireRotations = flag.Int("fire.rotations", 0, "how often it is rotated; five times at PostgreSQL and twice elsewhere if zero. With one user a fifth of that")
)

// A client keeps what it has read for a second, as clients do, and opens a
// connection every ten milliseconds.
type client struct {
	h       *house
	as      estover.Caller
	enter   func(context.Context, engine.Credential) error
	has     engine.Credential
	until   time.Time
	opened  int
	refused int
}

func (c *client) open(ctx context.Context) error {
	if time.Now().After(c.until) {
		p, err := c.h.secrets.Read(ctx, c.as, path, 0, "reading orders")
		if err != nil {
			return err
		}
		c.has = engine.Credential{User: string(p.Values["username"].Reveal()), Secret: p.Values["password"]}
		c.until = time.Now().Add(time.Second)
	}
	c.opened++
	err := c.enter(ctx, c.has)
	if errors.Is(err, engine.ErrWrongSecret) {
		// One that was held up on its way for longer than it may keep what it has read
		// was not refused by a rotation.
		if !time.Now().After(c.until) {
			c.refused++
		}
		return nil
	}
	return err
}

// fire rotates a secret under clients that open connections, and says how many
// those opened, how many were refused, and how long it took.
func (h *house) fire(t *testing.T, g ground, clients, rotations int) (opened, refused int, took time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all, began := make([]*client, clients), time.Now()
	var wg sync.WaitGroup
	for i := range all {
		c := &client{h: h, as: bot, enter: g.open}
		c.as.Session = fmt.Sprint("ses_", i)
		all[i] = c
		wg.Go(func() {
			t10 := time.NewTicker(10 * time.Millisecond)
			defer t10.Stop()
			for ctx.Err() == nil {
				if err := c.open(context.WithoutCancel(ctx)); err != nil {
					t.Errorf("a client: %v", err)
					return
				}
				<-t10.C
			}
		})
	}
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			if err := errors.Join(h.x.Tick(t.Context()), h.x.RunDue(t.Context())); err != nil {
				t.Errorf("what goes on beside: %v", err)
			}
		}
	})
	for range rotations {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			_, err := h.x.Run(t.Context(), ann, path)
			if err == nil {
				break
			}
			if !errors.Is(err, rotation.ErrBusy) || time.Now().After(deadline) {
				t.Fatalf("rotating under fire: %v", err)
			}
		}
	}
	last := time.Now().Add(1500 * time.Millisecond) // in which everybody's copy has become old
	for time.Now().Before(last) {
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	took = time.Since(began)
	wg.Wait()
	for _, c := range all {
		opened, refused = opened+c.opened, refused+c.refused
	}
	return opened, refused, took
}

// A ground is a server at which a secret is rotated under fire.
type ground struct {
	engine    engine.Engine
	template  engine.Template
	overlap   bool // a user has two passwords at once
	rotations int  // if nobody says how many
	open      func(ctx context.Context, c engine.Credential) error
}

// TestFire is F11: with two users nobody is refused, whatever is rotated under
// whom. With one user the figure is said as it is; it is none where that one may have
// two passwords at once. For the figures of one server, run it alone.
func TestFire(t *testing.T) {
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		server := enginetest.Postgres(t)
		e := opened(t, postgres.Kind, server.Config)
		fight(t, ground{e, engine.Template{"groups": {"readers"}}, postgres.Kind.Overlap, 5, e.Verify})
	})
	t.Run("MariaDB", func(t *testing.T) {
		t.Parallel()
		server := enginetest.MariaDB(t)
		server.Exec(t, "set global general_log = 0")
		e := opened(t, mysql.Kind, server.Config)
		fight(t, ground{e, engine.Template{"roles": {"readers"}}, mysql.Kind.Overlap, 2, thinMariaDB(server.Config.Address)})
	})
	t.Run("Redis", func(t *testing.T) {
		t.Parallel()
		c := runRedis(t)
		e := opened(t, redis.Kind, c)
		fight(t, ground{e, engine.Template{"rules": {"~app:*", "+@read"}}, redis.Kind.Overlap, 2, thinRedis(c.Address)})
	})
}

// runRedis starts a Redis for this test, and says how its admin reaches it.
func runRedis(t *testing.T) engine.Config {
	t.Helper()
	admin := engine.Credential{User: "estover", Secret: estover.NewSecret([]byte("made-for-tests"))}
	server, err := enginetest.Start(enginetest.Process{
		Debian: "redis-server", Program: "redis-server", Users: []string{"redis"}, Ports: 1,
		Prepare: func(s *enginetest.Server) ([]string, []string, error) {
			path, err := s.Write("redis.conf", fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\nsave \"\"\nuser default off\nuser %s on >%s ~* &* +@all\n",
				s.Ports[0], s.Dir, admin.User, admin.Secret.Reveal()))
			return []string{path}, nil, err
		},
		Ready: func(ctx context.Context, s *enginetest.Server) error { return thinRedis(s.Address(0))(ctx, admin) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return engine.Config{Address: server.Address(0), Admin: admin}
}

func opened(t *testing.T, k engine.Kind, c engine.Config) engine.Engine {
	t.Helper()
	e, err := k.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// fight rotates a secret of two users at a server under fire, and one of a single
// user.
func fight(t *testing.T, g ground) {
	spec := rotation.Spec{Target: "orders", Users: []string{"fire_a", "fire_b"}, Template: g.template, Cache: 1, Quiet: 1, Schedule: "manual"}
	rotations := cmp.Or(*fireRotations, g.rotations)
	say := func(how string, rotations, opened, refused int, took time.Duration) {
		t.Logf("%s, %d rotations under %d clients: %d of %d connections refused (%.1f %%), %.0f opened a second of %d",
			how, rotations, *fireClients, refused, opened, 100*float64(refused)/float64(opened), float64(opened)/took.Seconds(), *fireClients*100)
	}
	h := build(t, dbtest.Open(t), nil)
	h.engine = g.engine
	h.put(spec)
	h.run()
	opened, refused, took := h.fire(t, g, *fireClients, rotations)
	say("two users", rotations, opened, refused, took)
	if refused > 0 || opened < 100 {
		t.Errorf("with two users %d of %d connections were refused, want none of many", refused, opened)
	}
	r, err := h.x.Get(t.Context(), ann, path)
	if err != nil || r.Current != int64(1+rotations) {
		t.Errorf("after %d rotations the current version is %d, %v", 1+rotations, r.Current, err)
	}

	h = build(t, dbtest.Open(t), nil)
	h.engine, h.overlap = g.engine, g.overlap
	spec.Kind, spec.Users = rotation.SingleSlot, []string{"fire_only"}
	h.put(spec)
	h.run()
	single := max(1, rotations/5)
	opened, refused, took = h.fire(t, g, *fireClients, single)
	if r, err = h.x.Get(t.Context(), ann, path); err != nil {
		t.Fatal(err)
	}
	say("one user", single, opened, refused, took)
	if g.overlap {
		if refused > 0 || opened < 100 {
			t.Errorf("with one user who has two passwords %d of %d connections were refused, want none of many", refused, opened)
		}
		return
	}
	t.Logf("who asks for the version at once is refused for %d µs, the last time", r.Refused)
	if refused == 0 || r.Refused == 0 {
		t.Errorf("with one user %d of %d connections were refused, for %d µs: nothing was measured", refused, opened, r.Refused)
	}
}

// dialed opens a connection that leaves nothing behind when it is closed: a machine
// has fewer ports than such clients use up in a minute.
func dialed(ctx context.Context, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err == nil {
		err = errors.Join(c.(*net.TCPConn).SetLinger(0), c.SetDeadline(time.Now().Add(10*time.Second)))
	}
	return c, err
}

// thinRedis logs in at a Redis by its protocol, since any client costs more than the
// server.
func thinRedis(address string) func(context.Context, engine.Credential) error {
	return func(ctx context.Context, who engine.Credential) error {
		c, err := dialed(ctx, address)
		if err != nil {
			return err
		}
		defer c.Close()
		password := who.Secret.Reveal()
		if _, err := fmt.Fprintf(c, "*3\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(who.User), who.User, len(password), password); err != nil {
			return err
		}
		answer := make([]byte, 512)
		n, err := c.Read(answer)
		switch said := string(answer[:n]); {
		case err != nil:
			return err
		case strings.HasPrefix(said, "+OK"):
			return nil
		case strings.HasPrefix(said, "-WRONGPASS"):
			return engine.ErrWrongSecret
		default:
			return fmt.Errorf("the server says %q", said)
		}
	}
}

// thinMariaDB logs in at a MariaDB by its protocol, with mysql_native_password.
func thinMariaDB(address string) func(context.Context, engine.Credential) error {
	packet := func(c net.Conn) ([]byte, error) {
		var head [4]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return nil, err
		}
		body := make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)
		_, err := io.ReadFull(c, body)
		return body, err
	}
	return func(ctx context.Context, who engine.Credential) error {
		c, err := dialed(ctx, address)
		if err != nil {
			return err
		}
		defer c.Close()
		hello, err := packet(c)
		if err != nil {
			return err
		}
		at := bytes.IndexByte(hello, 0) + 1 + 4 // after the version and the number of the thread
		if hello[0] != 10 || at < 5 || len(hello) < at+8+1+18+12 {
			return fmt.Errorf("the server says %q", hello)
		}
		nonce := slices.Concat(hello[at:at+8], hello[at+8+1+18:at+8+1+18+12])
		once := sha1.Sum(who.Secret.Reveal())
		twice := sha1.Sum(once[:])
		proof := sha1.Sum(slices.Concat(nonce, twice[:]))
		for i := range proof {
			proof[i] ^= once[i]
		}
		body := binary.LittleEndian.AppendUint32(nil, 0x1|0x200|0x8000|0x80000) // passwords as of 4.1, and which way
		body = append(body, 0, 0, 0, 1, 45)
		body = append(body, make([]byte, 23)...)
		body = append(append(body, who.User...), 0, byte(len(proof)))
		body = append(append(body, proof[:]...), "mysql_native_password\x00"...)
		if _, err := c.Write(append([]byte{byte(len(body)), 0, 0, 1}, body...)); err != nil {
			return err
		}
		answer, err := packet(c)
		switch {
		case err != nil:
			return err
		case len(answer) > 0 && answer[0] == 0:
			_, err = c.Write([]byte{1, 0, 0, 0, 1}) // it goes
			return err
		case len(answer) > 2 && answer[0] == 0xff && binary.LittleEndian.Uint16(answer[1:]) == 1045:
			return engine.ErrWrongSecret
		}
		return fmt.Errorf("the server says %q", answer)
	}
}
