package mysql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/mysql"
)

var readers = engine.Template{"roles": {"readers"}}

// client is one connection to the database crm.
type client struct {
	pool *sql.DB
	conn *sql.Conn
}

func (c client) Ping(ctx context.Context) error {
	var n int
	return c.conn.QueryRowContext(ctx, `select count(*) from customer`).Scan(&n)
}

func (c client) Close() error { _ = c.conn.Close(); return c.pool.Close() }

func login(s *enginetest.MariaDBServer) func(context.Context, engine.Material) (enginetest.Client, error) {
	return func(ctx context.Context, m engine.Material) (enginetest.Client, error) {
		config := driver.NewConfig()
		config.Net, config.Addr, config.DBName, config.Logger = "tcp", s.Address(0), "crm", &driver.NopLogger{}
		config.User, config.Passwd = string(m["username"].Reveal()), string(m["password"].Reveal())
		connector, err := driver.NewConnector(config)
		if err != nil {
			return nil, err
		}
		pool := sql.OpenDB(connector)
		conn, err := pool.Conn(ctx)
		if err != nil {
			_ = pool.Close()
			return nil, err
		}
		return client{pool, conn}, nil
	}
}

func TestSuite(t *testing.T) {
	s := enginetest.MariaDB(t)
	enginetest.Run(t, enginetest.Suite{
		Kind:     mysql.Kind,
		Config:   s.Config,
		Template: readers,
		Bad: []engine.Template{
			{},
			{"roles": {""}},
			{"roles": {strings.Repeat("x", 81)}},
			{"grants": {"select on crm.* to root"}},
			{"grants": {"select on crm.*; drop user root"}},
			{"grants": {"select"}},
			{"grants": {"select on crm.* -- "}},
		},
		Login: login(s),
		Remove: func(ctx context.Context, name string) error {
			_, err := s.Super.ExecContext(ctx, "drop user '"+name+"'@'%'")
			return err
		},
		Log: s.ReadLog,
	})
}

func open(t *testing.T, c engine.Config) engine.Engine {
	t.Helper()
	e, err := mysql.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func order(name string, tmpl engine.Template) engine.Order {
	return engine.Order{Name: name, Secret: estover.NewSecret([]byte("pw-of-" + name)), Template: tmpl}
}

func (c client) exec(t *testing.T, statement string) error {
	_, err := c.conn.ExecContext(t.Context(), statement)
	return err
}

// TestRoles is of what users may do, from log-in on and by taking a role.
func TestRoles(t *testing.T) {
	s := enginetest.MariaDB(t)
	e := open(t, s.Config)
	s.Exec(t, "grant show view on crm.* to estover with grant option")
	both := engine.Template{"roles": {"readers", "writers"}, "grants": {"SHOW VIEW ON crm.*"}}
	m, err := e.Create(t.Context(), order("e_roles_a", both))
	if err != nil {
		t.Fatal(err)
	}
	entered, err := login(s)(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	c := entered.(client)
	if err := c.exec(t, "insert into customer values (3, 'Joan')"); err == nil {
		t.Error("a reader writes")
	}
	if err := c.exec(t, "set role writers"); err != nil {
		t.Error(err)
	}
	if err := c.exec(t, "delete from customer where id = 3"); err != nil {
		t.Errorf("a writer: %v", err)
	}
	// A role that is not granted any more is gone with the same order again.
	if _, err := e.Create(t.Context(), order("e_roles_a", readers)); err != nil {
		t.Fatal(err)
	}
	again, err := login(s)(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.(client).exec(t, "set role writers"); err == nil {
		t.Error("a role that was not asked for is there still")
	}
	// What fails in the middle leaves nobody.
	_, err = e.Create(t.Context(), order("e_roles_b", engine.Template{"roles": {"readers", "no_such_role"}}))
	var r *engine.Refused
	if !errors.As(err, &r) {
		t.Errorf("a role that is not there: %v, want a refusal", err)
	}
	if names, err := e.List(t.Context(), "e_roles_b"); err != nil || len(names) != 0 {
		t.Errorf("a refusal left %q, %v", names, err)
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_roles_a"}})[0]; err != nil {
		t.Error(err)
	}
}

// TestSessions is of a busy session, and of log-ins that race the revocation
// (F10, Q3).
func TestSessions(t *testing.T) {
	s := enginetest.MariaDB(t)
	e := open(t, s.Config)
	m, err := e.Create(t.Context(), order("e_sessions_a", readers))
	if err != nil {
		t.Fatal(err)
	}
	busy, err := login(s)(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- busy.(client).exec(t, "do sleep(60)") }()
	var (
		wait   sync.WaitGroup
		lock   sync.Mutex
		opened []enginetest.Client
	)
	stop := make(chan struct{})
	for range 8 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c, err := login(s)(context.Background(), m); err == nil {
					lock.Lock()
					opened = append(opened, c)
					if len(opened) > 60 {
						_ = opened[0].Close()
						opened = opened[1:]
					}
					lock.Unlock()
				}
			}
		})
	}
	for {
		lock.Lock()
		n := len(opened)
		lock.Unlock()
		if n > 20 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	asked := time.Now()
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_sessions_a"}})[0]; err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a busy session came to its own end")
		}
	case <-time.After(enginetest.Soon):
		t.Error("a busy session goes on after the revocation")
	}
	close(stop)
	wait.Wait()
	for _, c := range opened {
		if c.Ping(context.Background()) == nil {
			t.Error("a session that was open, or was opening, answers after the revocation")
		}
		_ = c.Close()
	}
	if took := time.Since(asked); took > enginetest.Soon {
		t.Errorf("it took %v from when the revocation was asked for until all had ended, want a second at most", took)
	}
}

// TestRights takes the admin's rights away, each of which is then named.
func TestRights(t *testing.T) {
	s := enginetest.MariaDB(t)
	s.Exec(t, "create or replace user lesser identified by 'lesser'")
	c := s.Config
	c.Address = s.Address(0)
	c.Admin = engine.Credential{User: "lesser", Secret: estover.NewSecret([]byte("lesser"))}
	e := open(t, c)
	expect := func(want ...string) {
		t.Helper()
		rights, err := e.(engine.Inspector).Rights(t.Context(), readers)
		if err != nil {
			t.Fatal(err)
		}
		var missing []string
		for _, r := range rights {
			if !r.Has && r.Needed {
				missing = append(missing, r.Name)
			}
		}
		if strings.Join(missing, "; ") != strings.Join(want, "; ") {
			t.Errorf("missing: %q, want %q", missing, want)
		}
	}
	expect("make and drop users (CREATE USER)", "see sessions (PROCESS)", "end sessions (CONNECTION ADMIN)", "see which users there are (SELECT ON mysql.user)", "grant the role readers")
	if _, err := e.Create(t.Context(), order("e_rights_a", readers)); !strings.Contains(fmt.Sprint(err), "CREATE USER") {
		t.Errorf("making a user without a right: %v", err)
	}
	s.Exec(t, "grant create user, process, connection admin on *.* to lesser")
	s.Exec(t, "grant select on mysql.user to lesser")
	expect("grant the role readers")
	s.Exec(t, "grant readers to lesser with admin option")
	expect()
	if _, err := e.Create(t.Context(), order("e_rights_b", readers)); err != nil {
		t.Errorf("with all the rights that are named: %v", err)
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_rights_b"}})[0]; err != nil {
		t.Errorf("with all the rights that are named: %v", err)
	}
}

// TestHosts has users who may come from one place alone.
func TestHosts(t *testing.T) {
	s := enginetest.MariaDB(t)
	s.Exec(t, "create or replace user wider identified by 'wider'")
	for _, right := range []string{"create user, process, connection admin on *.*", "select on mysql.user", "update on mysql.*"} {
		s.Exec(t, "grant "+right+" to wider")
	}
	s.Exec(t, "grant readers to wider with admin option")
	for pattern, enters := range map[string]bool{"127.0.0.%": true, "10.%": false, "Desk.Example": false} {
		c := s.Config
		c.Admin = engine.Credential{User: "wider", Secret: estover.NewSecret([]byte("wider"))}
		c.Options = map[string]string{"hosts": pattern}
		e := open(t, c)
		m, err := e.Create(t.Context(), order("e_hosts_a", readers))
		if err != nil {
			t.Fatal(err)
		}
		_, err = login(s)(t.Context(), m)
		if (err == nil) != enters {
			t.Errorf("from 127.0.0.1 as a user of %s: %v", pattern, err)
		}
		if names, err := e.List(t.Context(), "e_hosts_"); err != nil || len(names) != 1 {
			t.Errorf("users of %s: %q, %v", pattern, names, err)
		}
		if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_hosts_a"}})[0]; err != nil {
			t.Error(err)
		}
		if names, err := e.List(t.Context(), "e_hosts_"); err != nil || len(names) > 0 {
			t.Errorf("users of %s after they were taken away: %q, %v", pattern, names, err)
		}
	}
	for _, bad := range []engine.Config{
		{Address: ""}, {Address: "u@h"}, {Address: "h", Options: map[string]string{"auth": "plain"}}, {Address: "h", Options: map[string]string{"hosts": "a\x00b"}},
	} {
		var invalid *estover.Error
		if _, err := mysql.Kind.Open(bad); !errors.As(err, &invalid) || invalid.Kind != estover.Invalid {
			t.Errorf("opening %q with %q: %v, want a refusal for who wrote it", bad.Address, bad.Options, err)
		}
	}
}

// late passes on the order to make a user only after a while, also if who wrote
// it has closed the connection since.
type late struct {
	net.Conn
	in   chan func()
	hold *atomic.Int64 // the while, in nanoseconds
}

func (l *late) Write(b []byte) (int, error) {
	b = append([]byte(nil), b...)
	l.in <- func() {
		if strings.Contains(string(b), "create or replace user") {
			time.Sleep(time.Duration(l.hold.Load()))
		}
		_, _ = l.Conn.Write(b)
	}
	return len(b), nil
}

func (l *late) SetDeadline(t time.Time) error    { return l.Conn.SetReadDeadline(t) }
func (l *late) SetWriteDeadline(time.Time) error { return nil }
func (l *late) Close() error                     { l.in <- func() { _ = l.Conn.Close() }; return nil }

// TestTooLate has the order arrive after its deadline: it has no effect (L2, F4).
func TestTooLate(t *testing.T) {
	s := enginetest.MariaDB(t)
	c := s.Config
	var hold atomic.Int64
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		l := &late{conn, make(chan func(), 100), &hold}
		go func() {
			for f := range l.in {
				f()
			}
		}()
		return l, nil
	}
	e := open(t, c)
	if _, err := e.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Where the machine is so slow that the order was not even begun within its time, the
	// next one has more.
	name, arrived := "", false
	for n, limit := 0, 300*time.Millisecond; !arrived && n < 4; n, limit = n+1, 4*limit {
		name = fmt.Sprintf("e_late_%d", n)
		hold.Store(int64(2 * limit))
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_, err := e.Create(ctx, order(name, readers))
		cancel()
		if err == nil {
			t.Fatal("an order that is still on its way was carried out")
		}
		for end := time.Now().Add(2*limit + 3*time.Second); !arrived && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			log, err := s.ReadLog()
			if err != nil {
				t.Fatal(err)
			}
			arrived = strings.Contains(string(log), "'"+name+"'")
		}
	}
	if !arrived {
		t.Fatal("the order never arrived")
	}
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var n int
		if err := s.Super.QueryRowContext(t.Context(), "select count(*) from mysql.user where user = ?", name).Scan(&n); err != nil || n != 0 {
			t.Fatalf("an order that came too late made %d users, %v", n, err)
		}
	}
}

// TestHalfMade has no time left to take away what was begun of an account: nobody is
// told that nothing was.
func TestHalfMade(t *testing.T) {
	s := enginetest.MariaDB(t)
	e := open(t, s.Config)
	if _, err := e.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		name := fmt.Sprintf("e_half_%d", n)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := e.Create(ctx, order(name, engine.Template{"roles": {"readers", "no_such_role"}}))
		cancel()
		left, e2 := e.List(t.Context(), name)
		if e2 != nil {
			t.Fatal(e2)
		}
		if err == nil || len(left) > 0 && errors.Is(err, engine.ErrUnreachable) {
			t.Errorf("an account that was begun: %v, and there are %q", err, left)
		}
		if err := e.Revoke(t.Context(), []engine.Doomed{{Name: name}})[0]; err != nil {
			t.Error(err)
		}
	}
}

// TestDroppedInTheMaking has an account dropped while it is made: what is granted to it
// after that makes nobody anew, who would have no password (Q3).
func TestDroppedInTheMaking(t *testing.T) {
	s := enginetest.MariaDB(t)
	e := open(t, s.Config)
	s.Exec(t, "grant show view on crm.* to estover with grant option")
	o := order("e_dropped_a", engine.Template{"grants": slices.Repeat([]string{"SHOW VIEW ON crm.*"}, 50)})
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		dropped := make(chan bool, 1)
		go func() {
			var err error
			for err = context.Canceled; err != nil && ctx.Err() == nil; {
				_, err = s.Super.ExecContext(ctx, "drop user e_dropped_a")
			}
			dropped <- err == nil
		}()
		_, err := e.Create(t.Context(), o)
		cancel()
		in := <-dropped
		var open int
		if e := s.Super.QueryRowContext(t.Context(), "select count(*) from mysql.user where user = 'e_dropped_a' and authentication_string = ''").Scan(&open); e != nil || open > 0 || !in {
			t.Errorf("dropped in the making (%v): %v, and %d accounts without a password are there, %v", in, err, open, e)
		}
		if err := e.Revoke(t.Context(), []engine.Doomed{{Name: o.Name}})[0]; err != nil {
			t.Error(err)
		}
	}
}

// TestSecondAdmin is of the second admin (R12): it has what the first one has, and its
// default role; nobody is taken over, and who cannot be made whole is not left.
func TestSecondAdmin(t *testing.T) {
	s := enginetest.MariaDB(t)
	for _, statement := range []string{
		"drop user if exists pair_role_b", "create or replace role makers", "grant create user, process, connection admin on *.* to makers", "grant select on mysql.user to makers", "grant readers to makers with admin option",
		"create or replace user pair_role identified by 'made-for-tests'", "grant makers to pair_role with admin option", "set default role makers for pair_role",
		"create or replace user pair_poor identified by 'made-for-tests'", "grant create user on *.* to pair_poor", "grant select on mysql.user to pair_poor",
	} {
		s.Exec(t, statement)
	}
	as := func(user string) engine.Engine {
		c := s.Config
		c.Admin = engine.Credential{User: user, Secret: estover.NewSecret([]byte("made-for-tests"))}
		return open(t, c)
	}
	second := engine.Credential{User: "pair_role_b", Secret: estover.NewSecret([]byte("made-for-tests"))}
	first := as("pair_role").(engine.Pairer)
	if err := first.Pair(t.Context(), second.User, "pair_role", second.Secret); err != nil {
		t.Fatal(err)
	}
	b := as(second.User)
	if _, err := b.Create(t.Context(), order("e_pair_a", readers)); err != nil {
		t.Errorf("a user that the second admin makes: %v", err)
	}
	if err := b.SetSecret(t.Context(), "pair_role", second.Secret, estover.Secret{}); err != nil {
		t.Errorf("the first admin's password, by the second: %v", err)
	}
	if err := b.Revoke(t.Context(), []engine.Doomed{{Name: "e_pair_a"}})[0]; err != nil {
		t.Error(err)
	}
	b.(engine.Drainer).Drain()
	if _, err := b.Now(t.Context()); err != nil {
		t.Errorf("after it was drained: %v", err)
	}
	var refused *engine.Refused
	if err := first.Pair(t.Context(), second.User, "pair_role", estover.NewSecret([]byte("another"))); !errors.As(err, &refused) || b.Verify(t.Context(), second) != nil {
		t.Errorf("who is there already: %v, want a refusal and the password as it was", err)
	}
	// Nor is an operator's account that is locked, and has no password, one that was half made.
	s.Exec(t, "create or replace user pair_locked account lock")
	if err := first.Pair(t.Context(), "pair_locked", "pair_role", second.Secret); !errors.As(err, &refused) {
		t.Errorf("who is there and locked: %v, want a refusal", err)
	}
	if err := as("pair_poor").(engine.Pairer).Pair(t.Context(), "pair_poor_b", "pair_poor", second.Secret); !errors.As(err, &refused) {
		t.Errorf("an admin that may not give its rights: %v, want a refusal", err)
	}
	if names, err := b.List(t.Context(), "pair_poor_b"); err != nil || len(names) > 0 {
		t.Errorf("a refusal left %q, %v", names, err)
	}
}

// A server that shows a certificate of its name is talked to over TLS, and one whose
// certificate somebody else has signed is not.
func TestTLS(t *testing.T) {
	s := enginetest.MariaDB(t)
	c := s.Config
	s.Exec(t, "create or replace user tls_only identified by 'made-for-tests' require ssl")
	only := engine.Credential{User: "tls_only", Secret: c.Admin.Secret}
	if err := open(t, c).Verify(t.Context(), only); !errors.Is(err, engine.ErrWrongSecret) {
		t.Errorf("who may log in over TLS alone, without it: %v, want ErrWrongSecret", err)
	}
	c.Options, c.Authorities = map[string]string{"tls": "verify"}, enginetest.Authority()
	e := open(t, c)
	o := order("tls_user", readers)
	if _, err := e.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for _, who := range []engine.Credential{{User: o.Name, Secret: o.Secret}, only} {
		if err := e.Verify(t.Context(), who); err != nil {
			t.Errorf("%s over TLS: %v", who.User, err)
		}
		who.Secret = estover.NewSecret([]byte("wrong"))
		if err := e.Verify(t.Context(), who); !errors.Is(err, engine.ErrWrongSecret) {
			t.Errorf("%s with a wrong password over TLS: %v, want ErrWrongSecret", who.User, err)
		}
	}
	if errs := e.Revoke(t.Context(), []engine.Doomed{{Name: o.Name}}); errs[0] != nil {
		t.Error(errs[0])
	}
	c.Authorities = nil
	if _, err := open(t, c).Now(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of somebody else's: %v", err)
	}
}
