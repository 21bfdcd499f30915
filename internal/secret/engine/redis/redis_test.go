package redis_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	client "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/redis"
	"estover.dev/internal/secret/lease/leasetest"
)

const admin = "made-for-tests"

var rules = engine.Template{"rules": {"~app:* &app:* +@read +@write +@pubsub", "+@blocking -@dangerous"}}

func start(file bool, grants string) (*enginetest.Server, error) {
	return enginetest.Start(process(file, grants))
}

// process is a Redis whose admin "estover" may do what the reference says, and
// nothing else; "boss" is for the tests themselves.
func process(file bool, grants string) enginetest.Process {
	sum := sha256.Sum256([]byte(admin))
	hash := "#" + hex.EncodeToString(sum[:])
	users := []string{
		"user default off",
		"user estover on " + hash + " " + grants,
		"user boss on " + hash + " ~* &* +@all",
	}
	return enginetest.Process{
		Debian: "redis-server", Program: "redis-server", Users: []string{"redis"}, Ports: 2,
		Prepare: func(s *enginetest.Server) ([]string, []string, error) {
			certificate, key, err := enginetest.Certificate(s)
			if err != nil {
				return nil, nil, err
			}
			conf := fmt.Sprintf("bind 127.0.0.1\nport %d\ntls-port %d\ntls-cert-file %s\ntls-key-file %s\ntls-auth-clients no\ndir %s\nsave \"\"\nloglevel verbose\nslowlog-log-slower-than 0\nslowlog-max-len 100000\n",
				s.Ports[0], s.Ports[1], certificate, key, s.Dir)
			if file {
				path, err := s.Write("users.acl", strings.Join(users, "\n")+"\n")
				if err != nil {
					return nil, nil, err
				}
				conf += "aclfile " + path + "\n"
			} else {
				conf += strings.Join(users, "\n") + "\n"
			}
			path, err := s.Write("redis.conf", conf)
			return []string{path}, nil, err
		},
		Ready: func(ctx context.Context, s *enginetest.Server) error {
			c := as(s, "boss", admin)
			defer c.Close()
			return c.Ping(ctx).Err()
		},
	}
}

const grants = "+ping +acl|setuser +acl|deluser +acl|getuser +acl|users +acl|save +acl|dryrun +client|list +client|kill +time"

var server = sync.OnceValues(func() (*enginetest.Server, error) { return start(true, grants) })

func running(t *testing.T) *enginetest.Server {
	t.Helper()
	s, err := server()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func as(s *enginetest.Server, user, password string) *client.Client {
	return client.NewClient(&client.Options{
		Addr: s.Address(0), Username: user, Password: password, PoolSize: 1, PipelinePoolSize: -1, MaxRetries: -1, DialerRetries: 1, DisableIdentity: true,
		ContextTimeoutEnabled: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

func config(s *enginetest.Server) engine.Config {
	return engine.Config{Address: s.Address(0), Admin: engine.Credential{User: "estover", Secret: estover.NewSecret([]byte(admin))}}
}

func open(t *testing.T, c engine.Config) engine.Engine {
	t.Helper()
	e, err := redis.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func order(name, secret string) engine.Order {
	return engine.Order{Name: name, Secret: estover.NewSecret([]byte(secret)), Template: rules}
}

// A login is one connection, which is not opened again.
type login struct{ *client.Conn }

func (l login) Ping(ctx context.Context) error { return l.Set(ctx, "app:x", "1", 0).Err() }

func TestKind(t *testing.T) {
	s := running(t)
	boss := as(s, "boss", admin)
	t.Cleanup(func() { _ = boss.Close() })
	enginetest.Run(t, enginetest.Suite{
		Kind: redis.Kind, Config: config(s), Template: rules,
		Bad: []engine.Template{
			nil,
			{"rules": {}},
			{"rules": {"~app:* >password"}},
			{"rules": {"on"}},
			{"rules": {"nopass"}},
			{"rules": {"#0011"}},
			{"rules": {"reset"}},
			{"rules": {"~a (~b +@all)"}},
			{"rules": {"(+acl|setuser"}},
			{"rules": {"+get)"}},
			{"rules": {"skip-sanitize-payload"}},
		},
		Login: func(ctx context.Context, m engine.Material) (enginetest.Client, error) {
			c := as(s, string(m["username"].Reveal()), string(m["password"].Reveal()))
			t.Cleanup(func() { _ = c.Close() })
			conn := c.Conn()
			return login{conn}, login{conn}.Ping(ctx)
		},
		Remove: func(ctx context.Context, name string) error { return boss.ACLDelUser(ctx, name).Err() },
		Log: func() ([]byte, error) {
			said, err := os.ReadFile(s.Log)
			if err != nil {
				return nil, err
			}
			file, err := os.ReadFile(filepath.Join(s.Dir, "users.acl"))
			if err != nil {
				return nil, err
			}
			slow, err := boss.SlowLogGet(context.Background(), 100000).Result()
			for _, l := range slow {
				file = append(file, strings.Join(l.Args, " ")+"\n"...)
			}
			return slices.Concat(said, file), err
		},
	})
}

// TestBlocked: who waits in the server, or listens, is disconnected with its user
// too (Q3).
func TestBlocked(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	o := order("e_blocked", "blocked-secret")
	if _, err := e.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	c := as(s, o.Name, "blocked-secret")
	defer c.Close()
	waits := make(chan error, 1)
	go func() { waits <- c.BLPop(context.Background(), time.Minute, "app:list").Err() }()
	l := as(s, o.Name, "blocked-secret")
	defer l.Close()
	listens := l.Subscribe(t.Context(), "app:news")
	if _, err := listens.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		open, err := e.Sessions(t.Context(), o.Name)
		if err != nil {
			t.Fatal(err)
		}
		if len(open) == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("sessions: %v, want one that waits and one that listens", open)
		}
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: o.Name}})[0]; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Soon)
	defer cancel()
	select {
	case err := <-waits:
		if err == nil {
			t.Error("who waited for a list got an element of it")
		}
	case <-ctx.Done():
		t.Error("who waits for a list goes on waiting after the revocation")
	}
	if _, err := listens.Receive(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("who listens to a channel goes on after the revocation: %v", err)
	}
}

// TestBusy: a creation that was given up while the server was busy does not
// come after a revocation that has succeeded (L6).
func TestBusy(t *testing.T) {
	s := running(t)
	e, other := open(t, config(s)), open(t, config(s))
	boss := as(s, "boss", admin)
	defer boss.Close()
	gaveUp := 0
	for round := range 8 {
		name := fmt.Sprintf("e_busy_%d", round)
		for _, e := range []engine.Engine{e, other} { // connections are open
			if _, err := e.Now(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		busy := make(chan error, 1)
		go func() {
			busy <- boss.Eval(context.Background(), `local t = redis.call('time') local e = t[1] * 1000000 + t[2] + 250000
				repeat t = redis.call('time') until t[1] * 1000000 + t[2] > e return 1`, nil).Err()
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
		if _, err := e.Create(ctx, order(name, "busy-secret")); err != nil {
			gaveUp++
		}
		cancel()
		if err := other.Revoke(t.Context(), []engine.Doomed{{Name: name}})[0]; err != nil {
			t.Fatal(err)
		}
		if err := <-busy; err != nil {
			t.Fatal(err)
		}
		if left, err := e.List(t.Context(), name); err != nil || len(left) > 0 {
			t.Errorf("after the revocation there is %q, %v", left, err)
		}
	}
	if gaveUp == 0 {
		t.Error("no creation was given up, so that this proves nothing")
	}
}

// TestNobodyMakesUsers: a role that gives everything does not give what makes
// users and passwords.
func TestNobodyMakesUsers(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	o := order("e_everything", "everything-secret")
	o.Template = engine.Template{"rules": {"~* &* +@all"}}
	if err := redis.Kind.CheckTemplate(o.Template); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	defer e.Revoke(context.Background(), []engine.Doomed{{Name: o.Name}})
	c := as(s, o.Name, "everything-secret")
	defer c.Close()
	if err := c.Set(t.Context(), "anything", "1", 0).Err(); err != nil {
		t.Errorf("a user with all rights writes: %v", err)
	}
	for _, command := range []string{"acl setuser x on nopass +@all ~*", "acl deluser boss", "acl load", "config set requirepass x"} {
		var args []any
		for word := range strings.FieldsSeq(command) {
			args = append(args, word)
		}
		if err := c.Do(t.Context(), args...).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
			t.Errorf("%s: %v, want NOPERM", command, err)
		}
	}
	for _, name := range []string{"default", "estover"} {
		o.Name = name
		var refused *engine.Refused
		if _, err := e.Create(t.Context(), o); !errors.As(err, &refused) {
			t.Errorf("making %s anew: %v, want a refusal", name, err)
		}
	}
}

// TestFile: what is made and revoked stands in the ACL file, so that a restart
// brings back neither more nor less.
func TestFile(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	stands := func() bool {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(s.Dir, "users.acl"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), "user e_file on ")
	}
	if _, err := e.Create(t.Context(), order("e_file", "file-secret")); err != nil {
		t.Fatal(err)
	}
	if !stands() {
		t.Error("a user was made, and the ACL file does not have it")
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_file"}})[0]; err != nil {
		t.Fatal(err)
	}
	if stands() {
		t.Error("a user was revoked, and the ACL file has it")
	}
}

// TestRights: a server without an ACL file, and an admin that may not do all.
func TestRights(t *testing.T) {
	s, err := start(false, "+ping +acl|setuser +acl|save +acl|dryrun +acl|getuser +acl|users +time")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	e := open(t, config(s))
	if _, err := e.Create(t.Context(), order("e_a", "a-secret")); err != nil {
		t.Fatalf("making a user at a server without an ACL file: %v", err)
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_a"}})[0]; !errors.Is(err, engine.ErrUnreachable) || !strings.Contains(err.Error(), "acl|deluser") {
		t.Errorf("revoking without the right to: %v, want ErrUnreachable with what is missing", err)
	}
	rights, err := e.(engine.Inspector).Rights(t.Context(), rules)
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{}
	for _, r := range rights {
		if !r.Has {
			missing[r.Name] = r.Needed
		}
	}
	if len(missing) != 3 || !missing["acl|deluser"] || missing["client|list"] || missing["client|kill"] {
		t.Errorf("missing rights and whether they are needed: %v", missing)
	}
}

// TestTLS: the certificate has to be of the target, by somebody who is trusted.
func TestTLS(t *testing.T) {
	s := running(t)
	c := config(s)
	c.Address = s.Address(1)
	c.Options = map[string]string{"tls": "verify"}
	if _, err := open(t, c).Now(t.Context()); !errors.Is(err, engine.ErrUnreachable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server whose certificate nobody knows: %v, want ErrUnreachable", err)
	}
	c.Authorities = enginetest.Authority()
	if _, err := open(t, c).Now(t.Context()); err != nil {
		t.Errorf("a server with a certificate of the authority: %v", err)
	}
	for _, bad := range []string{"", "redis://h:1", "u@h", "h:0", "h:x", "h h"} {
		c.Address = bad
		if _, err := redis.Kind.Open(c); err == nil {
			t.Errorf("the address %q was taken", bad)
		}
	}
}

// TestNotSaved: a user whom the server has made, and may not write down, is there,
// so nobody is told that nothing was begun.
func TestNotSaved(t *testing.T) {
	s, err := start(true, strings.Replace(grants, " +acl|save", "", 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	e := open(t, config(s))
	var refused *engine.Refused
	if _, err := e.Create(t.Context(), order("e_unsaved", "secret")); err == nil || errors.Is(err, engine.ErrUnreachable) || errors.As(err, &refused) {
		t.Errorf("a user that was made and not saved: %v, want an error that leaves open what happened", err)
	}
	if users, err := e.List(t.Context(), "e_unsaved"); err != nil || len(users) != 1 {
		t.Errorf("the users are %q, %v", users, err)
	}
}

// TestStorm is F1, F2 and F3.
func TestStorm(t *testing.T) {
	leasetest.Storm{Kind: redis.Kind, Config: config(running(t)), Template: rules, Issues: 35}.Rage(t, dbtest.Open(t))
}
