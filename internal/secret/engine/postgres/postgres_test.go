package postgres_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/postgres"
)

var readers = engine.Template{"groups": {"readers"}}

// client is a connection to the database crm.
type client struct{ *pgx.Conn }

func (c client) Ping(ctx context.Context) error {
	_, err := c.Exec(ctx, `select count(*) from customer`)
	return err
}

func (c client) Close() error { return c.Conn.Close(context.Background()) }

func login(s *enginetest.PostgresServer) func(context.Context, engine.Material) (enginetest.Client, error) {
	return func(ctx context.Context, m engine.Material) (enginetest.Client, error) {
		config, err := pgx.ParseConfig(s.As(engine.Material{"username": estover.NewSecret([]byte("u")), "password": estover.NewSecret([]byte("p"))}, "crm"))
		if err != nil {
			return nil, err
		}
		config.User, config.Password = string(m["username"].Reveal()), string(m["password"].Reveal())
		c, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return nil, err
		}
		return client{c}, nil
	}
}

func TestSuite(t *testing.T) {
	s := enginetest.Postgres(t)
	exec := func(ctx context.Context, statement string) error {
		c, err := pgx.Connect(ctx, s.Super)
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		_, err = c.Exec(ctx, statement)
		return err
	}
	enginetest.Run(t, enginetest.Suite{
		Kind:     postgres.Kind,
		Config:   s.Config,
		Template: readers,
		Bad: []engine.Template{
			{},
			{"groups": {""}},
			{"groups": {strings.Repeat("x", 64)}},
			{"create": {`create role "{{name}}"`}},
			{"create": {`create role x password '{{password}}'`}},
			{"groups": {"readers"}, "revoke": {"drop role x"}},
			{"groups": {"readers"}, "renew": {" "}},
			{"groups": {"readers"}, "create": {strings.Repeat("x", 65<<10) + "{{name}} {{password}}"}},
		},
		Login: login(s),
		Remove: func(ctx context.Context, name string) error {
			return exec(ctx, "drop role "+pgx.Identifier{name}.Sanitize())
		},
		// A user who owns something in a database that takes no connections.
		Spoil: func(ctx context.Context, name string) (func(context.Context) error, error) {
			shut := "shut_" + name
			if err := exec(ctx, "create database "+shut); err != nil {
				return nil, err
			}
			c, err := pgx.Connect(ctx, strings.Replace(s.Super, "/crm?", "/"+shut+"?", 1))
			if err != nil {
				return nil, err
			}
			defer c.Close(ctx)
			if _, err := c.Exec(ctx, "grant create on schema public to readers; create table its (n int); alter table its owner to "+name); err != nil {
				return nil, err
			}
			return func(ctx context.Context) error { return exec(ctx, "alter database "+shut+" allow_connections true") },
				exec(ctx, "alter database "+shut+" allow_connections false")
		},
		Log:     s.ReadLog,
		Expires: true,
	})
}

func open(t *testing.T, c engine.Config) engine.Engine {
	t.Helper()
	e, err := postgres.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// unique is a name for something that only one run of a test has.
func unique(name string) string { return name + "_" + strings.ToLower(rand.Text()[:6]) }

func create(t *testing.T, e engine.Engine, name string, tmpl engine.Template) engine.Material {
	t.Helper()
	m, err := e.Create(t.Context(), engine.Order{Name: name, Secret: estover.NewSecret([]byte("pw-of-" + name)), Template: tmpl, Until: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatalf("making %s: %v", name, err)
	}
	return m
}

func revoke(t *testing.T, e engine.Engine, tmpl engine.Template, names ...string) {
	t.Helper()
	var doomed []engine.Doomed
	for _, n := range names {
		doomed = append(doomed, engine.Doomed{Name: n, Template: tmpl})
	}
	for i, err := range e.Revoke(t.Context(), doomed) {
		if err != nil {
			t.Errorf("revoking %s: %v", names[i], err)
		}
	}
}

// TestOwner is of users who own tables in two databases (F9, Q4).
func TestOwner(t *testing.T) {
	s := enginetest.Postgres(t)
	keeper := unique("keeper")
	s.Exec(t, `create role `+keeper+`; grant `+keeper+` to estover`)
	writers := engine.Template{"groups": {"writers"}}
	for i, owner := range []string{"", keeper} {
		c := s.Config
		c.Options = map[string]string{"owner": owner}
		e := open(t, c)
		name := fmt.Sprintf("e_owner_%d", i)
		m := create(t, e, name, writers)
		for _, database := range []string{"crm", "billing"} {
			conn, err := pgx.Connect(t.Context(), s.As(m, database))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), fmt.Sprintf(`create table mine_%d (n int); insert into mine_%d values (1); grant select on mine_%d to readers`, i, i, i)); err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
		}
		revoke(t, e, writers, name)
		if left := s.Users(t, name); len(left) != 0 {
			t.Errorf("users left: %q", left)
		}
		if owner == "" {
			owner = "writers" // their group
		}
		for _, database := range []string{"crm", "billing"} {
			conn, err := pgx.Connect(t.Context(), strings.Replace(s.Super, "/crm?", "/"+database+"?", 1))
			if err != nil {
				t.Fatal(err)
			}
			var now string
			var rows int
			if err := conn.QueryRow(t.Context(), fmt.Sprintf(`select tableowner, (select count(*) from mine_%d) from pg_tables where tablename = 'mine_%d'`, i, i)).Scan(&now, &rows); err != nil || now != owner || rows != 1 {
				t.Errorf("the table in %s belongs to %q and has %d rows, %v; want %q and 1", database, now, rows, err, owner)
			}
			if _, err := conn.Exec(t.Context(), fmt.Sprintf("drop table mine_%d", i)); err != nil {
				t.Error(err)
			}
			_ = conn.Close(t.Context())
		}
	}
}

// TestOwnerIsNotTheAdmin is of a user without groups who leaves a view behind: it
// would read with the rights of whoever owns it next, so that is not the admin.
func TestOwnerIsNotTheAdmin(t *testing.T) {
	s := enginetest.Postgres(t)
	s.Exec(t, `create schema drawer; grant usage, create on schema drawer to public; create table drawer.secret (n int); alter table drawer.secret owner to estover`)
	t.Cleanup(func() { s.Exec(t, `drop schema drawer cascade`) })
	own := engine.Template{"create": {`create role "{{name}}" login password '{{password}}'`}}
	e := open(t, s.Config)
	m := create(t, e, "e_heirless", own)
	conn, err := pgx.Connect(t.Context(), s.As(m, "crm"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `create view drawer.peek as select * from drawer.secret; grant select on drawer.peek to public`); err != nil {
		t.Fatal(err)
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_heirless", Template: own}})[0]; err == nil || !strings.Contains(err.Error(), "option owner") {
		t.Errorf("revoking a user whose view nobody gets: %v, want the option owner named", err)
	}
	if c, err := pgx.Connect(t.Context(), s.As(m, "crm")); err == nil {
		_ = c.Close(t.Context())
		t.Error("it can still log in")
	}
	// The role that the operator names gets it, and it shows what that role may see.
	keeper := unique("keeper")
	s.Exec(t, `create role `+keeper+`; grant `+keeper+` to estover`)
	c := s.Config
	c.Options = map[string]string{"owner": keeper}
	revoke(t, open(t, c), own, "e_heirless")
	if left := s.Users(t, "e_heirless"); len(left) != 0 {
		t.Errorf("users left: %q", left)
	}
	reader, err := pgx.Connect(t.Context(), s.As(create(t, e, "e_heirless_b", readers), "crm"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), `select * from drawer.peek`); err == nil {
		t.Error("a view that a user left behind reads with the rights of the admin")
	}
	_ = reader.Close(t.Context())
	revoke(t, e, readers, "e_heirless_b")
}

// TestShadows has a user put operators and functions where the admin's statements
// would find them before those of the database: they would run with its rights.
func TestShadows(t *testing.T) {
	s := enginetest.Postgres(t)
	s.Exec(t, `create table caught (who text); grant all on caught to public`)
	e := open(t, s.Config)
	m := create(t, e, "e_shadow", engine.Template{"groups": {"writers"}})
	conn, err := pgx.Connect(t.Context(), s.As(m, "crm"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var drop []string
	for i, pair := range []string{"oid, regclass", "oid, int4", "oid, int8", "oid, text", "int4, int8", "int8, int4", "text, name", "name, text", "bool, int4"} {
		left, right, _ := strings.Cut(pair, ", ")
		f := fmt.Sprintf("shadow_%d", i)
		statement := fmt.Sprintf(`create function public.%[1]s(%[2]s) returns bool language plpgsql as $$ begin insert into public.caught values (current_user || ' %[2]s'); return true; end $$`, f, pair)
		for _, operator := range []string{"=", "<>", "<", ">", "/"} {
			statement += fmt.Sprintf(`; create operator public.%s (function = public.%s, leftarg = %s, rightarg = %s)`, operator, f, left, right)
		}
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
		drop = append(drop, "drop function public."+f+"("+pair+") cascade")
	}
	if _, err := conn.Exec(t.Context(), `create function public.shadow_step(state int8, value bool) returns int8 language plpgsql as $$ begin insert into public.caught values (current_user || ' count'); return state + 1; end $$;
		create aggregate public.count(bool) (sfunc = public.shadow_step, stype = int8, initcond = '0')`); err != nil {
		t.Fatal(err)
	}
	drop = append(drop, "drop aggregate public.count(bool)", "drop function public.shadow_step(int8, bool)", "drop table caught")
	t.Cleanup(func() { s.Exec(t, strings.Join(drop, ";")) })
	// All that is done with it, and its end, when it owns something.
	if _, err := e.Sessions(t.Context(), "e_shadow"); err != nil {
		t.Error(err)
	}
	if _, err := e.List(t.Context(), "e_shadow"); err != nil {
		t.Error(err)
	}
	if _, err := e.(engine.Inspector).Rights(t.Context(), engine.Template{"groups": {"writers"}}); err != nil {
		t.Error(err)
	}
	create(t, e, "e_shadow", engine.Template{"groups": {"writers", "readers"}})
	if err := e.Extend(t.Context(), "e_shadow", nil, time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if err := e.EndSessions(t.Context(), "e_shadow"); err != nil {
		t.Error(err)
	}
	revoke(t, e, engine.Template{"groups": {"writers"}}, "e_shadow")
	boss, err := pgx.Connect(t.Context(), s.Super)
	if err != nil {
		t.Fatal(err)
	}
	defer boss.Close(t.Context())
	rows, err := boss.Query(t.Context(), `select distinct who from caught`)
	if err != nil {
		t.Fatal(err)
	}
	caught, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(caught) != 0 {
		t.Errorf("what a user had left ran as %q, %v", caught, err)
	}
}

// TestPrivileges is of users with privileges of their own. Those that the admin
// gave it takes away; of those that somebody else gave, the answer says which.
func TestPrivileges(t *testing.T) {
	s := enginetest.Postgres(t)
	s.Exec(t, `grant select on customer to estover with grant option; grant create on database crm to estover with grant option`)
	e := open(t, s.Config)
	own := engine.Template{"create": {`create role "{{name}}" login password '{{password}}'; grant select on customer to "{{name}}"; grant create on database crm to "{{name}}"`}}
	m := create(t, e, "e_privileges_a", own)
	if c, err := login(s)(t.Context(), m); err != nil {
		t.Error(err)
	} else if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	create(t, e, "e_privileges_b", own)
	s.Exec(t, `grant delete on customer to e_privileges_b`)
	errs := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_privileges_a", Template: own}, {Name: "e_privileges_b", Template: own}})
	if errs[0] != nil {
		t.Errorf("a user with privileges of the admin's: %v", errs[0])
	}
	if !strings.Contains(fmt.Sprint(errs[1]), "privileges for table customer") {
		t.Errorf("a user with a privilege of somebody else's: %v, want the table named", errs[1])
	}
	s.Exec(t, `revoke delete on customer from e_privileges_b`)
	revoke(t, e, own, "e_privileges_b")
	if left := s.Users(t, "e_privileges_"); len(left) != 0 {
		t.Errorf("users left: %q", left)
	}
}

// TestSessions is of an idle session, a busy one, and log-ins that race the
// revocation: all are gone within a second (F10, Q3).
func TestSessions(t *testing.T) {
	s := enginetest.Postgres(t)
	e := open(t, s.Config)
	m := create(t, e, "e_sessions_a", readers)
	idle, err := pgx.Connect(t.Context(), s.As(m, "crm"))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close(t.Context())
	busy, err := pgx.Connect(t.Context(), s.As(m, "billing"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := busy.Exec(context.Background(), `select pg_sleep(60)`)
		ended <- err
	}()
	var (
		wait   sync.WaitGroup
		lock   sync.Mutex
		opened []*pgx.Conn
	)
	stop := make(chan struct{})
	for range 16 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c, err := pgx.Connect(context.Background(), s.As(m, "crm")); err == nil {
					lock.Lock()
					opened = append(opened, c)
					if len(opened) > 100 {
						_ = opened[0].Close(context.Background())
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
	start := time.Now()
	revoke(t, e, readers, "e_sessions_a")
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
	for _, c := range append(opened, idle) {
		if _, err := c.Exec(context.Background(), `select 1`); err == nil {
			t.Error("a session that was open, or was opening, answers after the revocation")
		}
		_ = c.Close(context.Background())
	}
	if took := time.Since(start); took > enginetest.Soon {
		t.Errorf("it took %v from when the revocation was asked for until all had ended, want a second at most", took)
	}
}

// TestStatements has users made, extended and ended by statements of one's own,
// which are sent whole.
func TestStatements(t *testing.T) {
	s := enginetest.Postgres(t)
	e := open(t, s.Config)
	own := engine.Template{
		"create": {
			`create role "{{name}}" with login valid until '{{expiration}}' password '{{password}}'; -- a comment; at the end`,
			`do $body$ begin execute format('grant readers to %I', '{{name}}'); if false then perform 1; end if; end $body$`,
		},
		"renew":  {`alter role "{{username}}" valid until '{{expiration}}'; comment on role "{{name}}" is 'renewed'`},
		"revoke": {`drop role "{{name}}"`},
	}
	if err := postgres.Kind.CheckTemplate(own); err != nil {
		t.Fatal(err)
	}
	if words := postgres.Kind.Warn(own); len(words) != 0 {
		t.Errorf("statements in which only a verifier stands are warned of: %q", words)
	}
	m := create(t, e, "e_own_a", own)
	c, err := login(s)(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := e.Extend(t.Context(), "e_own_a", own, time.Now().Add(2*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	create(t, e, "e_own_a", own) // again
	revoke(t, e, own, "e_own_a", "e_own_nobody")
	revoke(t, e, own, "e_own_a")
	if c.Ping(t.Context()) == nil {
		t.Error("a session goes on after its user was ended by statements")
	}
	if err := e.Extend(t.Context(), "e_own_a", own, time.Now()); !errors.Is(err, engine.ErrNoUser) {
		t.Errorf("renewing nobody: %v, want ErrNoUser", err)
	}

	// One that leaves the user there: the user goes all the same.
	kept := engine.Template{"groups": {"readers"}, "revoke": {`alter role "{{name}}" nologin`}}
	create(t, e, "e_own_b", kept)
	revoke(t, e, kept, "e_own_b")

	// One that fails: the user stays, and may not log in any more.
	failing := engine.Template{"groups": {"readers"}, "revoke": {`select 1/0 -- {{name}}`}}
	m = create(t, e, "e_own_c", failing)
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_own_c", Template: failing}})[0]; err == nil {
		t.Error("statements that fail have succeeded")
	}
	if _, err := login(s)(t.Context(), m); err == nil {
		t.Error("a user whose end failed logs in")
	}
	revoke(t, e, readers, "e_own_c")
	if left := s.Users(t, "e_own_"); len(left) != 0 {
		t.Errorf("users left: %q", left)
	}

	// With the secret in clear: whoever writes it is told, and an error shows
	// nothing of it.
	clear := engine.Template{"create": {`create role "{{name}}" login password '{{password}}'; select {{password}}`}}
	if words := postgres.Kind.Warn(clear); len(words) != 1 {
		t.Errorf("a password in clear is warned of with %q", words)
	}
	_, err = e.Create(t.Context(), engine.Order{Name: "e_own_d", Secret: estover.NewSecret([]byte("hunter2hunter2")), Template: clear})
	if err == nil || strings.Contains(err.Error(), "hunter") {
		t.Errorf("a statement that is wrong at the password: %v", err)
	}
	if left := s.Users(t, "e_own_"); len(left) != 0 {
		t.Errorf("users left by a statement that failed: %q", left)
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
		if strings.Contains(string(b), "create role") {
			time.Sleep(time.Duration(l.hold.Load()))
		}
		_, _ = l.Conn.Write(b)
	}
	return len(b), nil
}

func (l *late) SetDeadline(t time.Time) error    { return l.Conn.SetReadDeadline(t) }
func (l *late) SetWriteDeadline(time.Time) error { return nil }

func (l *late) Close() error { l.in <- func() { _ = l.Conn.Close() }; return nil }

// TestTooLate has the order arrive at the database after its deadline: it has no
// effect there (L2, F4).
func TestTooLate(t *testing.T) {
	s := enginetest.Postgres(t)
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
		_, err := e.Create(ctx, engine.Order{Name: name, Secret: estover.NewSecret([]byte("x")), Template: readers})
		cancel()
		if err == nil {
			t.Fatal("an order that is still on its way was carried out")
		}
		for end := time.Now().Add(2*limit + 3*time.Second); !arrived && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			arrived = strings.Contains(logged(t, s), `create role "`+name+`"`)
		}
	}
	if !arrived {
		t.Fatal("the order never arrived")
	}
	// What comes next over the same connection is the end of it.
	for end := time.Now().Add(30 * time.Second); !strings.Contains(logged(t, s), "division by zero"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the order was not undone")
		}
	}
	if left := s.Users(t, "e_late_"); len(left) != 0 {
		t.Errorf("an order that came too late made %q", left)
	}
}

func logged(t *testing.T, s *enginetest.PostgresServer) string {
	t.Helper()
	b, err := s.ReadLog()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHeldUp has the database be slow: who orders has an answer by the deadline,
// and nothing happens later.
func TestHeldUp(t *testing.T) {
	s := enginetest.Postgres(t)
	e := open(t, s.Config)
	create(t, e, "e_held_a", readers)
	super, err := pgx.Connect(t.Context(), s.Super)
	if err != nil {
		t.Fatal(err)
	}
	defer super.Close(t.Context())
	if _, err := super.Exec(t.Context(), `begin; lock table pg_authid in share mode`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := e.Create(ctx, engine.Order{Name: "e_held_b", Secret: estover.NewSecret([]byte("x")), Template: readers}); err == nil {
		t.Error("a user was made while nobody could make one")
	}
	if err := e.Revoke(ctx, []engine.Doomed{{Name: "e_held_a"}})[0]; err == nil {
		t.Error("a user was dropped while nobody could be")
	}
	if took := time.Since(start); took > enginetest.Soon {
		t.Errorf("with 400 ms left, it took %v", took)
	}
	if _, err := super.Exec(t.Context(), `rollback`); err != nil {
		t.Fatal(err)
	}
	if left := s.Users(t, "e_held_b"); len(left) != 0 {
		t.Errorf("what was given up was done later: %q", left)
	}
	revoke(t, e, readers, "e_held_a")
}

// TestRights takes rights away from the admin, one at a time, each of which is
// then named.
func TestRights(t *testing.T) {
	s := enginetest.Postgres(t)
	lesser := unique("lesser")
	s.Exec(t, `create role `+lesser+` login password 'lesser'`)
	c := s.Config
	c.Admin = engine.Credential{User: lesser, Secret: estover.NewSecret([]byte("lesser"))}
	c.Options = map[string]string{"owner": "readers"}
	e := open(t, c)
	missing := func() (needed, other []string) {
		t.Helper()
		rights, err := e.(engine.Inspector).Rights(t.Context(), engine.Template{"groups": {"readers", "no_such_group"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rights {
			switch {
			case r.Has:
			case r.Help == "":
				t.Errorf("nothing helps against the lack of %q", r.Name)
			case r.Needed:
				needed = append(needed, r.Name)
			default:
				other = append(other, r.Name)
			}
		}
		return needed, other
	}
	expect := func(what string, got []string, want ...string) {
		t.Helper()
		if strings.Join(got, "; ") != strings.Join(want, "; ") {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	needed, other := missing()
	expect("what is missing of an admin without rights", needed, "make and drop users (CREATEROLE)", "give membership of readers", "the group role no_such_group", "hand over to readers what revoked users own")
	expect("what else is missing", other, "end sessions (pg_signal_backend)", "see where sessions come from (pg_read_all_stats)")
	if _, err := e.Create(t.Context(), engine.Order{Name: "e_rights_a", Secret: estover.NewSecret([]byte("x")), Template: readers}); !strings.Contains(fmt.Sprint(err), "permission denied") {
		t.Errorf("making a user without a right: %v", err)
	}
	s.Exec(t, `alter role `+lesser+` createrole; grant readers to `+lesser)
	needed, other = missing()
	expect("what is missing then", needed, "the group role no_such_group")
	expect("what else is missing then", other, "end sessions (pg_signal_backend)", "see where sessions come from (pg_read_all_stats)")

	// An admin that may not end sessions of others becomes a member of whom it revokes.
	m := create(t, e, "e_rights_b", readers)
	conn, err := login(s)(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.EndSessions(t.Context(), "e_rights_b"); !strings.Contains(fmt.Sprint(err), "pg_signal_backend") {
		t.Errorf("ending the sessions of a user who stays: %v", err)
	}
	if err := conn.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	revoke(t, e, readers, "e_rights_b")
	if conn.Ping(t.Context()) == nil {
		t.Error("a session goes on after its user was revoked by an admin that is a member")
	}
	s.Exec(t, `grant pg_signal_backend, pg_read_all_stats to `+lesser+`; create role no_such_group`)
	t.Cleanup(func() { s.Exec(t, `drop role no_such_group`) })
	needed, other = missing()
	expect("what is missing in the end", append(needed, other...))
}

// TestPair has two admins work as one role, so that each can end what the other
// made, and either can be replaced (R12).
func TestPair(t *testing.T) {
	s := enginetest.Postgres(t)
	maker, blue, green := unique("maker"), unique("blue"), unique("green")
	s.Exec(t, `create role `+maker+` createrole; grant pg_signal_backend to `+maker+`;
		create role `+blue+` login password 'blue' in role `+maker+`; create role `+green+` login noinherit password 'green' in role `+maker)
	engines := map[string]engine.Engine{}
	for admin, user := range map[string]string{"blue": blue, "green": green} {
		c := s.Config
		c.Admin = engine.Credential{User: user, Secret: estover.NewSecret([]byte(admin))}
		c.Options = map[string]string{"role": maker}
		engines[admin] = open(t, c)
	}
	create(t, engines["blue"], "e_pair_a", readers)
	revoke(t, engines["green"], readers, "e_pair_a")
	if left := s.Users(t, "e_pair_"); len(left) != 0 {
		t.Errorf("users left: %q", left)
	}
	for _, admin := range []string{blue, green} {
		if err := engines["green"].SetSecret(t.Context(), admin, estover.NewSecret([]byte("another-"+admin)), estover.Secret{}); err != nil {
			t.Errorf("a new password for the admin %s: %v", admin, err)
		}
		if err := engines["blue"].Verify(t.Context(), engine.Credential{User: admin, Secret: estover.NewSecret([]byte("another-" + admin))}); err != nil {
			t.Errorf("the new password of the admin %s: %v", admin, err)
		}
	}
}

// TestTLS is of whom the target is believed to be.
func TestTLS(t *testing.T) {
	s := enginetest.Postgres(t)
	port := s.Config.Address[strings.Index(s.Config.Address, ":"):]
	for _, c := range []struct {
		what, host, tls string
		authorities     []byte
		reached         bool
	}{
		{"an address of this machine", "127.0.0.1", "", nil, true},
		{"a certificate of an authority that is trusted", "127.0.0.1", "verify", s.Authorities, true},
		{"the same by name", "localhost", "verify", s.Authorities, true},
		{"a certificate of an authority that is not trusted", "127.0.0.1", "verify", nil, false},
		{"another host, of which the certificate does not speak", "db.example", "", s.Authorities, false},
		{"another host without TLS, as the option says", "db.example", "off", nil, true},
	} {
		config := s.Config
		config.Address = c.host + port
		config.Options = map[string]string{"tls": c.tls}
		config.Authorities = c.authorities
		config.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, "127.0.0.1"+strings.TrimSuffix(port, "/crm"))
		}
		_, err := open(t, config).Now(t.Context())
		if (err == nil) != c.reached || err != nil && !errors.Is(err, engine.ErrUnreachable) {
			t.Errorf("%s: %v, want it reached: %v", c.what, err, c.reached)
		}
	}
	for _, bad := range []engine.Config{
		{Address: "127.0.0.1"},
		{Address: "/crm"},
		{Address: "h/"},
		{Address: "u@h/crm"},
		{Address: "h:0/crm"},
		{Address: "h/crm", Options: map[string]string{"tls": "maybe"}},
		{Address: "h/crm", Options: map[string]string{"role": strings.Repeat("x", 64)}},
		{Address: "h/crm", Authorities: []byte("no certificate")},
	} {
		var invalid *estover.Error
		if _, err := postgres.Kind.Open(bad); !errors.As(err, &invalid) || invalid.Kind != estover.Invalid {
			t.Errorf("opening %q with %q: %v, want a refusal for who wrote it", bad.Address, bad.Options, err)
		}
	}
}

// TestTrust has a database that lets in who shows no password: nothing is
// verified there.
func TestTrust(t *testing.T) {
	s := enginetest.Postgres(t)
	dir := s.Super[strings.Index(s.Super, "host=")+len("host="):]
	dir = dir[:strings.IndexByte(dir, '&')]
	port := s.Config.Address[strings.Index(s.Config.Address, ":")+1 : strings.Index(s.Config.Address, "/")]
	c := s.Config
	c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", dir+"/.s.PGSQL."+port)
	}
	e := open(t, c)
	if _, err := e.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(t.Context(), c.Admin); err == nil {
		t.Error("a password that nobody asked for was verified")
	}
}

// TestSecondAdmin is of the second admin (R12): it has the first one's attributes and
// memberships, and what was granted to the first directly; nobody is taken over.
func TestSecondAdmin(t *testing.T) {
	s := enginetest.Postgres(t)
	t.Cleanup(func() { s.Exec(t, `drop table pair_own; drop role if exists pair_admin, "pair""b", pair_poor`) })
	s.Exec(t, `create role pair_admin login createrole createdb password 'made-for-tests' in role pg_signal_backend; grant readers to pair_admin with admin option;
		create table pair_own (id int); grant select on pair_own to pair_admin; create role pair_poor login password 'made-for-tests'`)
	as := func(user string) engine.Engine {
		c := s.Config
		c.Admin = engine.Credential{User: user, Secret: estover.NewSecret([]byte("made-for-tests"))}
		return open(t, c)
	}
	second := engine.Credential{User: `pair"b`, Secret: estover.NewSecret([]byte("made-for-tests"))}
	first := as("pair_admin").(engine.Pairer)
	if err := first.Pair(t.Context(), second.User, "pair_admin", second.Secret); err != nil {
		t.Fatal(err)
	}
	b := as(second.User)
	if _, err := b.Create(t.Context(), engine.Order{Name: "e_pair_a", Secret: second.Secret, Template: engine.Template{"groups": {"readers"}}}); err != nil {
		t.Errorf("a user that the second admin makes: %v", err)
	}
	if err := b.SetSecret(t.Context(), "pair_admin", second.Secret, estover.Secret{}); err != nil {
		t.Errorf("the first admin's password, by the second: %v", err)
	}
	if err := b.Revoke(t.Context(), []engine.Doomed{{Name: "e_pair_a"}})[0]; err != nil {
		t.Error(err)
	}
	b.(engine.Drainer).Drain()
	if _, err := b.Now(t.Context()); err != nil {
		t.Errorf("after it was drained: %v", err)
	}
	s.Exec(t, `do $$ begin
		if not (select rolcreaterole and rolcreatedb and not rolsuper from pg_roles where rolname = 'pair"b') then raise 'its attributes are others'; end if;
		if not has_table_privilege('pair"b', 'pair_own', 'select') then raise 'it may not read what the first may'; end if;
		if not pg_has_role('pair"b', 'readers', 'member with admin option') then raise 'it cannot give the group'; end if;
	end $$`)
	var refused *engine.Refused
	if err := first.Pair(t.Context(), second.User, "pair_admin", estover.NewSecret([]byte("another"))); !errors.As(err, &refused) || b.Verify(t.Context(), second) != nil {
		t.Errorf("who is there already: %v, want a refusal and the password as it was", err)
	}
	if err := as("pair_poor").(engine.Pairer).Pair(t.Context(), "pair_poor_b", "pair_poor", second.Secret); !errors.As(err, &refused) || len(s.Users(t, "pair_poor_b")) > 0 {
		t.Errorf("one that may make nobody: %v, want a refusal and nobody", err)
	}
}

// TestSecondAdminCutOff is of a second admin in the making of which somebody is cut off
// (R6): it is made in one transaction, so it is whole or not there.
func TestSecondAdminCutOff(t *testing.T) {
	s := enginetest.Postgres(t)
	t.Cleanup(func() { s.Exec(t, `drop role if exists cut_first_b, cut_first`) })
	s.Exec(t, `create role cut_first login superuser createdb password 'made-for-tests'; grant readers to cut_first with admin option; grant writers to cut_first`)
	c := s.Config
	c.Admin = engine.Credential{User: "cut_first", Secret: estover.NewSecret([]byte("made-for-tests"))}
	second := engine.Credential{User: "cut_first_b", Secret: estover.NewSecret([]byte("made-for-the-second"))}
	as, err := pgx.Connect(t.Context(), s.Super)
	if err != nil {
		t.Fatal(err)
	}
	defer as.Close(context.Background())
	rights := func(user string) (has string) {
		err := as.QueryRow(t.Context(), `select concat(rolsuper, rolcreaterole, rolcreatedb, (select string_agg(concat(' ', roleid::regrole, admin_option), '' order by roleid) from pg_auth_members where member = r.oid))
			from pg_roles r where rolname = $1`, user).Scan(&has)
		if err != nil {
			t.Fatal(err)
		}
		return has
	}
	enginetest.CutOff(t, postgres.Kind, c, second, rights, func() { s.Exec(t, `drop role if exists cut_first_b`) })
}
