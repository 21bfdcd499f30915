package nats_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	client "github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/nats"
	"estover.dev/internal/secret/lease/leasetest"
)

var template = engine.Template{"publish": {"orders.>", "$JS.API.>"}, "publish_deny": {"orders.secret"}, "subscribe": {"orders.>", "_INBOX.>"}}

// An operator is who has a NATS, without the engine.
type operator struct{ *enginetest.NATSServer }

func running(t *testing.T) *operator { return &operator{enginetest.NATS(t)} }

func open(t *testing.T, c engine.Config) engine.Engine {
	t.Helper()
	e, err := nats.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// edit changes the account without the engine, as an operator's tool does that
// has read it before.
func (o *operator) edit(ctx context.Context, change func(*jwt.AccountClaims)) error {
	c, err := o.AsSystem()
	if err != nil {
		return err
	}
	defer c.Close()
	claims, err := o.Account(ctx, c)
	if err != nil {
		return err
	}
	change(claims)
	token, err := claims.Encode(o.Operator)
	if err != nil {
		return err
	}
	answer, err := c.RequestWithContext(ctx, "$SYS.REQ.CLAIMS.UPDATE", []byte(token))
	if err == nil && !bytes.Contains(answer.Data, []byte(`"code":200`)) {
		err = errors.New(string(answer.Data))
	}
	return err
}

// revocations are those of the account.
func (o *operator) revocations(t *testing.T) (all jwt.RevocationList) {
	t.Helper()
	if err := o.edit(t.Context(), func(c *jwt.AccountClaims) { all = c.Revocations }); err != nil {
		t.Fatal(err)
	}
	return all
}

// A login is a connection that is not opened again.
type login struct{ *client.Conn }

func (l login) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return l.FlushWithContext(ctx)
}

func (l login) Close() error { l.Conn.Close(); return nil }

func (o *operator) enter(m engine.Material) (login, error) {
	c, err := client.Connect("nats://"+o.Address(0), client.UserJWTAndSeed(string(m["jwt"].Reveal()), string(m["seed"].Reveal())), client.NoReconnect(),
		client.Timeout(30*time.Second), client.ErrorHandler(func(*client.Conn, *client.Subscription, error) {}))
	return login{c}, err
}

func user(m engine.Material) string {
	claims, err := jwt.DecodeUserClaims(string(m["jwt"].Reveal()))
	if err != nil {
		panic(err)
	}
	return claims.Subject
}

func TestKind(t *testing.T) {
	o := running(t)
	made := map[string]string{} // keys by name
	enginetest.Run(t, enginetest.Suite{
		Kind: nats.Kind, Config: o.Config(o.Signing, o.CRM), Template: template,
		Bad: []engine.Template{
			nil,
			{"publish_deny": {"a"}},
			{"publish": {"a b"}},
			{"publish": {""}},
			{"publish": {"a..b"}},
			{"publish": {".a"}},
			{"subscribe": {"a."}},
			{"publish": {"a"}, "responses": {"0"}},
			{"publish": {"a"}, "responses": {"many"}},
			{"scoped": {"no"}},
			{"scoped": {"yes"}, "publish": {"a"}},
		},
		Login: func(_ context.Context, m engine.Material) (enginetest.Client, error) {
			made[string(m["username"].Reveal())] = user(m)
			return o.enter(m)
		},
		Remove: func(ctx context.Context, name string) error {
			return o.edit(ctx, func(c *jwt.AccountClaims) {
				if public, ok := made[name]; ok {
					c.Revoke(public)
				}
			})
		},
		Without: []string{"Extend", "List", "SetSecret", "EndSessions", "Now"},
	})
}

// TestRights: a user may do what its role says, and a user of a role that says
// nothing of a kind may do nothing of it.
func TestRights(t *testing.T) {
	o := running(t)
	for _, c := range []struct {
		name     string
		account  nkeys.KeyPair
		template engine.Template
		publish  map[string]bool
		listen   map[string]bool
	}{
		{"e_both", o.CRM, template, map[string]bool{"orders.new": true, "orders.secret": false, "people": false}, map[string]bool{"orders.>": true, ">": false}},
		{"e_writer", o.CRMSigning, engine.Template{"publish": {"orders.>"}}, map[string]bool{"orders.new": true, "people": false}, map[string]bool{"orders.>": false}},
		{"e_listener", o.CRMSigning, engine.Template{"subscribe": {"orders.>"}}, map[string]bool{"orders.new": false}, map[string]bool{"orders.>": true, "people": false}},
		{"e_scoped", o.Reader, engine.Template{"scoped": {"yes"}}, map[string]bool{"orders.new": false}, map[string]bool{"orders.>": true, "people": false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := open(t, o.Config(o.Operator, c.account))
			m, err := e.Create(t.Context(), engine.Order{Name: c.name, Until: time.Now().Add(time.Hour), Template: c.template})
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Verify(t.Context(), m.Login()); err != nil {
				t.Errorf("verifying: %v", err)
			}
			refused := make(chan error, 10)
			conn, err := client.Connect("nats://"+o.Address(0), client.UserJWTAndSeed(string(m["jwt"].Reveal()), string(m["seed"].Reveal())), client.NoReconnect(),
				client.Timeout(30*time.Second), client.ErrorHandler(func(_ *client.Conn, _ *client.Subscription, err error) { refused <- err }))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			try := func(what, subject string, may bool, do func() error) {
				t.Helper()
				if err := do(); err != nil {
					t.Fatal(err)
				}
				if err := (login{conn}).Ping(t.Context()); err != nil {
					t.Fatal(err)
				}
				// The refusal comes before the answer to the flush, but by way of a
				// goroutine of its own.
				var err error
				wait := 5 * time.Second
				if may {
					wait = 50 * time.Millisecond
				}
				select {
				case err = <-refused:
				case <-time.After(wait):
				}
				if (err == nil) != may {
					t.Errorf("%s %s: %v, and it may: %v", what, subject, err, may)
				}
			}
			for subject, may := range c.publish {
				try("publishing to", subject, may, func() error { return conn.Publish(subject, []byte("x")) })
			}
			for subject, may := range c.listen {
				try("subscribing to", subject, may, func() error { _, err := conn.SubscribeSync(subject); return err })
			}
			if err := e.Revoke(t.Context(), []engine.Doomed{{Name: c.name, Template: c.template}})[0]; err != nil {
				t.Fatal(err)
			}
			if err := e.Verify(t.Context(), m.Login()); !errors.Is(err, engine.ErrWrongSecret) {
				t.Errorf("verifying somebody who was revoked: %v, want ErrWrongSecret", err)
			}
		})
	}
}

// TestExpiry: the server ends a connection and refuses a log-in by the JWT's
// own end.
func TestExpiry(t *testing.T) {
	o := running(t)
	e := open(t, o.Config(o.Operator, o.CRM))
	var m engine.Material
	var l enginetest.Client
	var err error
	for _, life := range []time.Duration{2 * time.Second, 15 * time.Second} { // in which somebody has to get in
		if m, err = e.Create(t.Context(), engine.Order{Name: "e_ends", Until: time.Now().Add(life), Template: template}); err != nil {
			t.Fatal(err)
		}
		if l, err = o.enter(m); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for deadline := time.Now().Add(40 * time.Second); l.Ping(t.Context()) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a connection goes on after the end of its user")
		}
	}
	// The end is a second, which counts to its own end.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := e.Verify(t.Context(), m.Login())
		if errors.Is(err, engine.ErrWrongSecret) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("verifying past the end: %v, want ErrWrongSecret", err)
		}
	}
	var refused *engine.Refused
	if _, err := e.Create(t.Context(), engine.Order{Name: "e_endless", Template: template}); !errors.As(err, &refused) {
		t.Errorf("a user without an end: %v, want a refusal", err)
	}
}

// TestOthersStay: revocations of somebody else, and what else the account says,
// are as before.
func TestOthersStay(t *testing.T) {
	o := running(t)
	e := open(t, o.Config(o.Signing, o.CRM))
	stranger := enginetest.NKeyName(enginetest.NKey(nkeys.CreateUser))
	long := time.Now().Add(-1000 * time.Hour)
	if err := o.edit(t.Context(), func(c *jwt.AccountClaims) { c.RevokeAt(stranger, long); c.Description = "customers" }); err != nil {
		t.Fatal(err)
	}
	m, err := e.Create(t.Context(), engine.Order{Name: "e_one", Until: time.Now().Add(time.Hour), Template: template})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_one"}})[0]; err != nil {
		t.Fatal(err)
	}
	var after jwt.AccountClaims
	if err := o.edit(t.Context(), func(c *jwt.AccountClaims) { after = *c }); err != nil {
		t.Fatal(err)
	}
	if after.Revocations[stranger] != long.Unix() || after.Revocations[user(m)] == 0 || after.Description != "customers" || after.Name != "crm" || len(after.SigningKeys) != 2 {
		t.Errorf("the account afterwards: %v", after)
	}
	// Where all users live for less than that, old ones are dropped.
	c := o.Config(o.Signing, o.CRM)
	c.Options["prune"] = "720h"
	if err := open(t, c).Revoke(t.Context(), []engine.Doomed{{Name: "e_" + stranger}})[0]; err != nil {
		t.Fatal(err)
	}
	if now := o.revocations(t); now[stranger] != 0 || now[user(m)] == 0 {
		t.Errorf("revocations of 1000 hours ago and of a moment ago: %d and %d", now[stranger], now[user(m)])
	}
}

// TestLostUpdate: a revocation that another's push has taken out comes back.
func TestLostUpdate(t *testing.T) {
	o := running(t)
	e := open(t, o.Config(o.Signing, o.CRM))
	m, err := e.Create(t.Context(), engine.Order{Name: "e_lost", Until: time.Now().Add(time.Hour), Template: template})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_lost"}})[0]; err != nil {
		t.Fatal(err)
	}
	if err := o.edit(t.Context(), func(c *jwt.AccountClaims) { c.ClearRevocation(user(m)) }); err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(t.Context(), m.Login()); err != nil {
		t.Fatalf("the other's push has not let the user in: %v", err)
	}
	for deadline := time.Now().Add(40 * time.Second); !errors.Is(e.Verify(t.Context(), m.Login()), engine.ErrWrongSecret); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a revocation that was lost does not come back")
		}
	}
}

// TestTwoKeys: users of a key that was replaced are revoked as long as it is in
// the admin's secret.
func TestTwoKeys(t *testing.T) {
	o := running(t)
	before := open(t, o.Config(o.Operator, o.CRMSigning))
	m, err := before.Create(t.Context(), engine.Order{Name: "e_before", Until: time.Now().Add(time.Hour), Template: template})
	if err != nil {
		t.Fatal(err)
	}
	after := open(t, o.Config(o.Operator, o.CRM, o.CRMSigning))
	if err := after.Revoke(t.Context(), []engine.Doomed{{Name: "e_before"}})[0]; err != nil {
		t.Fatal(err)
	}
	if err := after.Verify(t.Context(), m.Login()); !errors.Is(err, engine.ErrWrongSecret) {
		t.Errorf("a user of the key before: %v, want ErrWrongSecret", err)
	}
}

// TestSecretsStay: no seed goes to the server, which has logged every line of
// the protocol.
func TestSecretsStay(t *testing.T) {
	o := running(t)
	e := open(t, o.Config(o.Signing, o.CRM))
	m, err := e.Create(t.Context(), engine.Order{Name: "e_seed", Until: time.Now().Add(time.Hour), Template: template})
	if err != nil {
		t.Fatal(err)
	}
	l, err := o.enter(m)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	said, err := os.ReadFile(o.Log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(said), user(m)) && !strings.Contains(string(said), "CONNECT") {
		t.Error("the server has logged nothing, so that this proves nothing")
	}
	for _, s := range []string{string(m["seed"].Reveal()), enginetest.NKeySeed(o.Signing), enginetest.NKeySeed(o.System), enginetest.NKeySeed(o.CRM)} {
		if strings.Contains(string(said), s) {
			t.Fatal("the server's log holds a seed")
		}
	}
}

func TestTLS(t *testing.T) {
	o, err := enginetest.StartNATS(true)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Stop()
	c := o.Config(o.Signing, o.CRM)
	e := open(t, c)
	m, err := e.Create(t.Context(), engine.Order{Name: "e_tls", Until: time.Now().Add(time.Hour), Template: template})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(t.Context(), m.Login()); err != nil {
		t.Error(err)
	}
	c.Authorities = nil
	if err := open(t, c).Verify(t.Context(), m.Login()); !errors.Is(err, engine.ErrUnreachable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody knows: %v, want ErrUnreachable", err)
	}
}

func TestConfig(t *testing.T) {
	account := enginetest.NKeyName(enginetest.NKey(nkeys.CreateAccount))
	for _, options := range []map[string]string{
		{}, {"account": "crm"}, {"account": enginetest.NKeyName(enginetest.NKey(nkeys.CreateUser))}, {"account": account, "system_account": "SYS"}, {"account": account, "prune": "1m"}, {"account": account, "prune": "a year"},
	} {
		var invalid *estover.Error
		if _, err := nats.Kind.Open(engine.Config{Address: "nats.example", Options: options}); !errors.As(err, &invalid) {
			t.Errorf("the options %v: %v, want them refused", options, err)
		}
	}
}

// witnessed is an engine whose creations are written down by who watches it, since
// a NATS has no list of users.
type witnessed struct {
	engine.Engine
	made *sync.Map // what users log in with, by name
}

func (w witnessed) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	m, err := w.Engine.Create(ctx, o)
	if err == nil {
		w.made.Store(o.Name, m)
	}
	return m, err
}

// TestStorm is F1, F2 and F3. Users are there whose JWT was made and is not in the
// list of the server. Nodes that revoke at the same instant take each other's
// revocations out, and put them back within seconds.
func TestStorm(t *testing.T) {
	o := running(t)
	system, err := o.AsSystem()
	if err != nil {
		t.Fatal(err)
	}
	defer system.Close()
	var made sync.Map
	kind := nats.Kind
	kind.Open = func(c engine.Config) (engine.Engine, error) {
		e, err := nats.Kind.Open(c)
		return witnessed{e, &made}, err
	}
	leasetest.Storm{
		Kind: kind, Config: o.Config(o.Signing, o.CRM), Template: template, Issues: 35, Settles: 30 * time.Second,
		Users: func(ctx context.Context, prefix string) (names []string, err error) {
			claims, err := o.Account(ctx, system)
			if err != nil {
				return nil, err
			}
			made.Range(func(name, m any) bool {
				if _, is := claims.Revocations[user(m.(engine.Material))]; !is && strings.HasPrefix(name.(string), prefix) {
					names = append(names, name.(string))
				}
				return true
			})
			return names, nil
		},
	}.Rage(t, dbtest.Open(t))
	made.Range(func(name, m any) bool {
		if l, err := o.enter(m.(engine.Material)); err == nil {
			l.Close()
			t.Errorf("%s logs in after everything was revoked", name)
		}
		return true
	})
}
