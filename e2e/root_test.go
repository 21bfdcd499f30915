package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"estover.dev"
	"estover.dev/e2e/e2etest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/rabbitmq"
)

// What an operator has typed in is known to the operator, so it is not good any more
// when a target is enabled (R12): a second admin was made, has logged in, and does the
// work from then on. Here at a PostgreSQL, a MariaDB, a Redis and a RabbitMQ, whose admins are those of
// docs/guides/database-users.md and docs/reference/engines.md.
func TestRootIsRotatedOnImport(t *testing.T) {
	t.Parallel()
	srv := e2etest.Start(t)
	admin := srv.Admin(t)
	const typed = "typed-in-by-somebody"

	pg := enginetest.Postgres(t)
	pg.Exec(t, `create role root_pg login createrole password '`+typed+`'; grant pg_signal_backend, pg_read_all_stats to root_pg; grant readers to root_pg with admin option`)
	maria := enginetest.MariaDB(t)
	for _, s := range []string{
		"create user root_maria identified by '" + typed + "'", "grant create user, process, connection admin on *.* to root_maria with grant option",
		"grant select on mysql.user to root_maria with grant option", "grant readers to root_maria with admin option",
	} {
		maria.Exec(t, s)
	}
	cache, broker := redisWithFile(t, typed), brokerWith(t, "root_rabbit", typed)
	for _, at := range []struct {
		kind, address, template, user string
		login                         func(user, password string) error
		options                       []string
	}{
		{"postgres", pg.Config.Address, "groups=readers", "root_pg", func(user, password string) error {
			c, err := pgx.Connect(t.Context(), pg.As(engine.Material{"username": estover.NewSecret([]byte(user)), "password": estover.NewSecret([]byte(password))}, "crm"))
			if err == nil {
				err = c.Close(t.Context())
			}
			return err
		}, nil},
		{"mysql", maria.Config.Address, "roles=readers", "root_maria", func(user, password string) error { return logsInAt(t, maria, user, password) }, nil},
		{"redis", cache.Address(0), "rules=~app:* +@read +@write +ping", "root_redis", func(user, password string) error {
			c := redis.NewClient(&redis.Options{Addr: cache.Address(0), Username: user, Password: password, MaxRetries: -1})
			defer c.Close()
			return c.Ping(t.Context()).Err()
		}, nil},
		{"rabbitmq", broker.Config.Address, "tags=management", "root_rabbit", func(user, password string) error {
			return whoami(t, broker, user, password)
		}, []string{"--option", "amqp=" + broker.Config.Options["amqp"]}},
	} {
		t.Run(at.kind, func(t *testing.T) {
			if err := at.login(at.user, typed); err != nil {
				t.Fatalf("before: %v", err)
			}
			enable := []string{
				"secret", "engine", "enable", at.kind, at.kind, "--address", at.address,
				"--admin", "targets/" + at.kind, "--admin-user", at.user, "--admin-password-file", "-", "--template", at.template,
			}
			r := admin.Input(t, typed, append(enable, at.options...)...)
			if r.Code != 0 || !strings.Contains(r.Stdout, "the password that "+at.user+" had is not good any more") {
				t.Fatalf("enabling: %s%s", r.Stdout, r.Stderr)
			}
			if at.login(at.user, typed) == nil {
				t.Error("what the operator typed in is good after the target was enabled")
			}
			var r1 struct {
				Step     string   `json:"step"`
				Slot     string   `json:"slot"`
				Users    []string `json:"users"`
				Previous int64    `json:"previous_version"`
			}
			must(t, json.Unmarshal([]byte(admin.Must(t, "rotation", "show", "targets/"+at.kind, "-o", "json")), &r1))
			if r1.Step != "idle" || r1.Slot != "b" || len(r1.Users) != 2 || r1.Users[1] != at.user+"_b" {
				t.Errorf("the admins' rotation is %+v", r1)
			}
			// The second admin does all that the first did, with a user that the first has
			// made too, and makes the first one the admin again.
			admin.Must(t, "secret", "role", "put", "people-"+at.kind, "--target", at.kind, "--template", at.template, "--delivery", "plaintext")
			var lease struct {
				ID     string            `json:"id"`
				Values map[string]string `json:"values"`
			}
			must(t, json.Unmarshal([]byte(admin.Must(t, "secret", "lease", "create", "people-"+at.kind, "--purpose", "a look", "-o", "json")), &lease))
			if err := at.login(lease.Values["username"], lease.Values["password"]); err != nil {
				t.Errorf("a user that the second admin made: %v", err)
			}
			if out := admin.Must(t, "secret", "engine", "rotate-root", at.kind); !strings.Contains(out, "Estover works as "+at.user+";") || !strings.Contains(out, "is not good any more") {
				t.Errorf("rotating once more: %s", out)
			}
			admin.Must(t, "secret", "lease", "revoke", lease.ID, "--reason", "seen", "--wait")
			if at.login(lease.Values["username"], lease.Values["password"]) == nil {
				t.Error("a lease that one admin made and the other ended is good")
			}
			// And it is not taken over who happens to have the name.
			admin.Must(t, "rotation", "remove", "targets/"+at.kind)
			if r := admin.Run(t, "secret", "engine", "rotate-root", at.kind); r.Code == 0 || !strings.Contains(r.Stderr, "There is a user "+at.user+"_b") {
				t.Errorf("with a user of the second admin's name: %s%s", r.Stdout, r.Stderr)
			}
			admin.Must(t, "secret", "engine", "rotate-root", at.kind, "--second-admin", at.user+"_b")
		})
	}

	t.Run("kept", func(t *testing.T) {
		pg.Exec(t, `create role root_kept login createrole password '`+typed+`'; grant pg_signal_backend to root_kept`)
		r := admin.Input(t, typed, "secret", "engine", "enable", "postgres", "kept", "--address", pg.Config.Address,
			"--admin", "targets/kept", "--admin-user", "root_kept", "--admin-password-file", "-", "--template", "groups=readers", "--keep-root")
		if r.Code != 0 || strings.Contains(r.Stdout, "rotate_root") {
			t.Fatalf("enabling: %s%s", r.Stdout, r.Stderr)
		}
		if users := pg.Users(t, "root_kept"); len(users) != 1 {
			t.Errorf("with --keep-root there are the admins %q", users)
		}
		// Where no admin may change another's password, one changes its own.
		admin.Must(t, "rotation", "put", "targets/kept", "--target", "kept", "--user", "root_kept")
		admin.Must(t, "rotation", "run", "targets/kept")
		if c, err := pgx.Connect(t.Context(), pg.As(engine.Material{"username": estover.NewSecret([]byte("root_kept")), "password": estover.NewSecret([]byte(typed))}, "crm")); err == nil {
			_ = c.Close(t.Context())
			t.Error("the one admin's password is what it was, after it was rotated")
		}
		admin.Must(t, "secret", "engine", "check", "kept", "--template", "groups=readers")
	})

	// An admin that may not give its rights to another keeps its password, and it is said.
	t.Run("refused", func(t *testing.T) {
		for _, s := range []string{
			"create user root_poor identified by '" + typed + "'", "grant create user, process, connection admin on *.* to root_poor",
			"grant select on mysql.user to root_poor", "grant readers to root_poor with admin option",
		} {
			maria.Exec(t, s)
		}
		r := admin.Input(t, typed, "secret", "engine", "enable", "mysql", "poor", "--address", maria.Config.Address,
			"--admin", "targets/poor", "--admin-user", "root_poor", "--admin-password-file", "-", "--template", "roles=readers")
		if r.Code == 0 || !strings.Contains(r.Stderr, "WITH GRANT OPTION") || !strings.Contains(r.Stderr, "the one that you gave") {
			t.Errorf("enabling: %s%s", r.Stdout, r.Stderr)
		}
		if r := admin.Run(t, "rotation", "show", "targets/poor"); r.Code == 0 {
			t.Errorf("what was refused is rotated: %s", r.Stdout)
		}
		admin.Must(t, "secret", "engine", "check", "poor", "--template", "roles=readers")
	})

	// A user of a directory has two passwords at once, and no second admin is made there: the
	// one that was typed in is taken away when the next has logged in.
	t.Run("ldap", func(t *testing.T) {
		directory := enginetest.LDAP(t)
		adminEntry(t, directory, enginetest.LDAPOther, typed)
		login := func(user, password string) error { return binds(directory, user, password) }
		must(t, login(enginetest.LDAPOther, typed))
		enable := []string{
			"secret", "engine", "enable", "ldap", "ldap", "--address", directory.Config.Address, "--option", "base=" + enginetest.LDAPUsers,
			"--admin", "targets/ldap", "--admin-user", enginetest.LDAPOther, "--admin-password-file", "-", "--template", "groups=" + enginetest.LDAPGroup,
		}
		r := admin.Input(t, typed, enable...)
		if said := "the password that " + enginetest.LDAPOther + " had is not good any more"; r.Code != 0 || !strings.Contains(r.Stdout, said) {
			t.Fatalf("enabling: %s%s", r.Stdout, r.Stderr)
		}
		if login(enginetest.LDAPOther, typed) == nil {
			t.Error("what the operator typed in is good after the target was enabled")
		}
		admin.Must(t, "secret", "engine", "check", "ldap", "--template", "groups="+enginetest.LDAPGroup)
		if r := admin.Run(t, "secret", "engine", "rotate-root", "ldap"); r.Code != 0 || !strings.Contains(r.Stdout, "is not good any more") { // it is rotated already
			t.Errorf("rotating once more: %s%s", r.Stdout, r.Stderr)
		}
		if out := admin.Must(t, "rotation", "show", "targets/ldap", "-o", "json"); !strings.Contains(out, `"current_version": 3`) || !strings.Contains(out, `"kind": "single_slot"`) {
			t.Errorf("the admin's rotation is %s", out)
		}
		if err := login(enginetest.LDAPOther, strings.TrimSpace(admin.Must(t, "secret", "get", "targets/ldap", "--field", "password", "--purpose", "a look"))); err != nil {
			t.Errorf("with the third password: %v", err)
		}

		// Whose password stands in the configuration of the directory is told so.
		r = admin.Input(t, "made-for-tests", "secret", "engine", "enable", "ldap", "configured", "--address", directory.Config.Address, "--option", "base="+enginetest.LDAPUsers,
			"--admin", "targets/configured", "--admin-user", "cn=root,"+enginetest.LDAPSuffix, "--admin-password-file", "-", "--template", "groups="+enginetest.LDAPGroup)
		if r.Code == 0 || !strings.Contains(r.Stderr, "is no entry") || !strings.Contains(r.Stderr, "the one that you gave") {
			t.Errorf("enabling with the root of the configuration: %s%s", r.Stdout, r.Stderr)
		}
		admin.Must(t, "secret", "engine", "check", "configured", "--template", "groups="+enginetest.LDAPGroup)
	})

	// A Redis without an ACL file would know the first password again when it restarts.
	t.Run("forgets", func(t *testing.T) {
		r := admin.Input(t, "made-for-tests", "secret", "engine", "enable", "redis", "forgets", "--address", startRedis(t).Address(0),
			"--admin", "targets/forgets", "--admin-user", "estover", "--admin-password-file", "-", "--template", "rules=~app:* +@read")
		if r.Code == 0 || !strings.Contains(r.Stderr, "aclfile") || !strings.Contains(r.Stderr, "the one that you gave") {
			t.Errorf("enabling: %s%s", r.Stdout, r.Stderr)
		}
		admin.Must(t, "secret", "engine", "check", "forgets", "--template", "rules=~app:* +@read")
	})
}

// redisWithFile is a Redis with an ACL file, whose admin root_redis may do what the
// reference says.
func redisWithFile(t *testing.T, password string) *enginetest.Server {
	t.Helper()
	server, err := enginetest.Start(enginetest.Process{
		Debian: "redis-server", Program: "redis-server", Users: []string{"redis"}, Ports: 1,
		Prepare: func(s *enginetest.Server) ([]string, []string, error) {
			file, err := s.Write("users.acl", "user default off\nuser root_redis on >"+password+
				" +ping +acl|setuser +acl|deluser +acl|getuser +acl|users +acl|save +acl|dryrun +client|list +client|kill +time\n")
			if err != nil {
				return nil, nil, err
			}
			path, err := s.Write("redis.conf", fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\nsave \"\"\naclfile %s\n", s.Ports[0], s.Dir, file))
			return []string{path}, nil, err
		},
		Ready: func(ctx context.Context, s *enginetest.Server) error {
			c := redis.NewClient(&redis.Options{Addr: s.Address(0), Username: "root_redis", Password: password})
			defer c.Close()
			return c.Ping(ctx).Err()
		},
	})
	must(t, err)
	t.Cleanup(server.Stop)
	return server
}

// brokerWith is the RabbitMQ of the tests, with another administrator.
func brokerWith(t *testing.T, user, password string) *enginetest.RabbitMQServer {
	t.Helper()
	broker := enginetest.RabbitMQ(t)
	boss, err := rabbitmq.Kind.Open(broker.Config)
	must(t, err)
	defer boss.Close()
	_, err = boss.Create(t.Context(), engine.Order{
		Name: user, Secret: estover.NewSecret([]byte(password)),
		Template: engine.Template{"vhosts": {"crm"}, "read": {"^a"}, "tags": {"administrator"}},
	})
	must(t, err)
	return broker
}

// whoami logs in at the management interface of a broker.
func whoami(t *testing.T, broker *enginetest.RabbitMQServer, user, password string) error {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, broker.Config.Address+"/api/whoami", nil)
	must(t, err)
	req.SetBasicAuth(user, password)
	resp, err := http.DefaultClient.Do(req)
	if err == nil && resp.Body.Close() == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return err
}

// adminEntry makes an admin of a directory.
func adminEntry(t *testing.T, directory *enginetest.LDAPServer, dn, password string) {
	t.Helper()
	must(t, directory.AsRoot(func(l *ldap.Conn) error {
		add := ldap.NewAddRequest(dn, nil)
		add.Attribute("objectClass", []string{"organizationalRole", "simpleSecurityObject"})
		add.Attribute("userPassword", []string{password})
		return l.Add(add)
	}))
}

// binds logs in at a directory.
func binds(directory *enginetest.LDAPServer, dn, password string) error {
	l, err := directory.Bind(dn, password)
	if err == nil {
		err = l.Close()
	}
	return err
}

// Nobody is locked out of a target, at whatever moment of it a server is killed (R6): when
// it is back, it works there with what it has in its hands; the rotation comes to its end;
// and what was typed in is not good then.
func TestRootThroughKills(t *testing.T) {
	t.Parallel()
	srv := e2etest.Start(t)
	admin := srv.Admin(t)
	token := admin.Token(t)
	const typed, dn = "typed-in-by-somebody", "cn=other2," + enginetest.LDAPSuffix
	cache, broker, directory := redisWithFile(t, typed), brokerWith(t, "root_killed", typed), enginetest.LDAP(t)
	adminEntry(t, directory, dn, typed)
	maria := enginetest.MariaDB(t)
	for _, s := range []string{ // whose default role is set last, by the second admin itself
		"create role killed_admins", "grant create user, process, connection admin on *.* to killed_admins", "grant select on mysql.user to killed_admins",
		"grant readers to killed_admins with admin option", "create user root_killed identified by '" + typed + "'", "grant killed_admins to root_killed with admin option",
		"set default role killed_admins for root_killed",
	} {
		maria.Exec(t, s)
	}
	targets := []struct {
		kind, address, template, user string
		login                         func(user, password string) error
		options                       []string
	}{
		{"redis", cache.Address(0), "rules=~app:* +@read", "root_redis", func(user, password string) error {
			c := redis.NewClient(&redis.Options{Addr: cache.Address(0), Username: user, Password: password, MaxRetries: -1})
			defer c.Close()
			return c.Ping(t.Context()).Err()
		}, nil},
		{"rabbitmq", broker.Config.Address, "tags=management", "root_killed", func(user, password string) error {
			return whoami(t, broker, user, password)
		}, []string{"--option", "amqp=" + broker.Config.Options["amqp"]}},
		{"mysql", maria.Config.Address, "roles=readers", "root_killed", func(user, password string) error { return logsInAt(t, maria, user, password) }, nil},
		{"ldap", directory.Config.Address, "groups=" + enginetest.LDAPGroup, dn, func(user, password string) error {
			return binds(directory, user, password)
		}, []string{"--option", "base=" + enginetest.LDAPUsers}},
	}
	for _, at := range targets {
		enable := []string{
			"secret", "engine", "enable", at.kind, at.kind, "--address", at.address, "--admin", "targets/" + at.kind,
			"--admin-user", at.user, "--admin-password-file", "-", "--template", at.template, "--keep-root",
		}
		if r := admin.Input(t, typed, append(enable, at.options...)...); r.Code != 0 {
			t.Fatalf("enabling: %s%s", r.Stdout, r.Stderr)
		}
	}
	cut, rounds := 0, killings(3)
	for round := range rounds {
		answers := make(chan error, len(targets))
		for _, at := range targets {
			go func() { answers <- post(srv.HTTP(t), token, srv.URL+"/v1/secret-engines/"+at.kind+"/rotate-root") }()
		}
		waits := len(targets)
		switch round % 3 {
		case 0:
			time.Sleep(rand.N(40 * time.Millisecond)) // at any moment of what is asked for
		case 1:
			<-answers // and whoever is slower is in the middle of it
			waits--
		case 2:
			time.Sleep(time.Second + rand.N(time.Second)) // while the old password dies
		}
		srv.Kill()
		for range waits {
			if <-answers != nil {
				cut++
			}
		}
		srv.Restart(t)
		for _, at := range targets {
			var r struct {
				Step     string
				Previous int64 `json:"previous_version"`
			}
			let := func(when string) { // it reads anew, too, so that nobody waits for this test
				var has struct{ Fields map[string]string }
				var err error
				for before := ""; ; before = has.Fields["password"] { // which may be another by the time that it is tried
					must(t, json.Unmarshal([]byte(admin.Must(t, "secret", "get", "targets/"+at.kind, "--purpose", "a look", "-o", "json")), &has))
					if has.Fields["password"] == before {
						break
					}
					if err = at.login(has.Fields["username"], has.Fields["password"]); err == nil {
						return
					}
				}
				t.Fatalf("%s, round %d, %s: %q is locked out: %v", at.kind, round, when, has.Fields["username"], err)
			}
			let("when it is back")
			e2etest.Eventually(t, "the admins of "+at.kind+" have been rotated", func() bool {
				out := admin.Run(t, "rotation", "explain", "targets/"+at.kind, "-o", "json")
				if out.Code != 0 { // it was killed before it began
					return strings.Contains(out.Stderr, "not rotated")
				}
				must(t, json.Unmarshal([]byte(out.Stdout), &r))
				if r.Previous > 0 {
					let("while the old password dies")
				}
				return r.Step == "idle"
			})
			admin.Must(t, "secret", "engine", "check", at.kind, "--template", at.template)
		}
	}
	if cut == 0 {
		t.Error("no kill came while somebody waited for it, so that this proves nothing")
	}
	t.Logf("%d kills, by which %d of %d rotations were cut off", rounds, cut, rounds*len(targets))
	for _, at := range targets {
		admin.Must(t, "secret", "engine", "rotate-root", at.kind) // where each kill came too early
		e2etest.Eventually(t, "what was typed in at "+at.kind+" is not good any more", func() bool { return at.login(at.user, typed) != nil })
	}
}

// logsInAt logs in at a MariaDB.
func logsInAt(t *testing.T, maria *enginetest.MariaDBServer, user, password string) error {
	c, err := sql.Open("mysql", user+":"+password+"@tcp("+maria.Config.Address+")/")
	must(t, err)
	defer c.Close()
	return c.PingContext(t.Context())
}

// post calls without a body.
func post(c *http.Client, token, url string) error {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err == nil {
		err = resp.Body.Close()
	}
	return err
}
