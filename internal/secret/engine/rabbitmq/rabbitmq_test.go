package rabbitmq_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/rabbitmq"
	"estover.dev/internal/secret/lease/leasetest"
)

const admin = "made-for-tests"

var template = engine.Template{"vhosts": {"crm"}, "configure": {"^orders"}, "write": {"^orders"}, "read": {".*"}, "tags": {"management"}}

// The ports of a server.
const (
	plain         = enginetest.RabbitMQPlain
	secured       = enginetest.RabbitMQSecured
	management    = enginetest.RabbitMQManagement
	managementTLS = enginetest.RabbitMQManagementTLS
)

func running(t *testing.T) *enginetest.RabbitMQServer { return enginetest.RabbitMQ(t) }

func config(s *enginetest.RabbitMQServer) engine.Config { return s.Config }

func open(t *testing.T, c engine.Config) engine.Engine {
	t.Helper()
	e, err := rabbitmq.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// A login is a connection of a client.
type login struct{ *amqp.Connection }

func (l login) Ping(context.Context) error {
	c, err := l.Channel()
	if err != nil {
		return err
	}
	return c.Close()
}

func enter(s *enginetest.RabbitMQServer, m engine.Material, vhost string) (login, error) {
	c, err := amqp.DialConfig("amqp://"+s.Address(plain), amqp.Config{
		SASL:  []amqp.Authentication{&amqp.PlainAuth{Username: string(m["username"].Reveal()), Password: string(m["password"].Reveal())}},
		Vhost: vhost,
	})
	return login{c}, err
}

func TestKind(t *testing.T) {
	s := running(t)
	enginetest.Run(t, enginetest.Suite{
		Kind: rabbitmq.Kind, Config: config(s), Template: template,
		Bad: []engine.Template{
			nil,
			{"vhosts": {"crm"}},
			{"read": {"("}},
			{"read": {"a", "b"}},
			{"read": {".*"}, "tags": {"administrator"}},
			{"read": {".*"}, "tags": {"policymaker"}},
			{"read": {".*"}, "vhosts": {".."}},
			{"read": {".*"}, "vhosts": {""}},
		},
		Login: func(ctx context.Context, m engine.Material) (enginetest.Client, error) {
			if strings.Contains(string(m["username"].Reveal()), ":") { // which HTTP would cut there
				return enter(s, m, "crm")
			}
			// The client waits three seconds to be told that it is refused. Its users have
			// a tag by which they may ask here, where that is quick.
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Address(management)+"/api/whoami", nil)
			if err != nil {
				return nil, err
			}
			req.SetBasicAuth(string(m["username"].Reveal()), string(m["password"].Reveal()))
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return nil, err
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return nil, errors.New(resp.Status)
			}
			return enter(s, m, "crm")
		},
		Remove: func(ctx context.Context, name string) error {
			_, err := s.Call(ctx, http.MethodDelete, "/api/users/"+url.PathEscape(name), nil)
			return err
		},
		Log: func() ([]byte, error) { return os.ReadFile(s.Log) },
	})
}

// TestPermissions: what a role gives is had, and no more; what an earlier order
// gave and the next one does not is gone.
func TestPermissions(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	secret := estover.NewSecret([]byte("permissions-secret"))
	o := engine.Order{Name: "e_may", Secret: secret, Template: engine.Template{"vhosts": {"crm", "billing", "a/b c"}, "configure": {"^orders"}, "tags": {"monitoring"}}}
	m, err := e.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Revoke(context.Background(), []engine.Doomed{{Name: o.Name}})
	for _, vhost := range []string{"crm", "billing", "a/b c"} {
		c, err := enter(s, m, vhost)
		if err != nil {
			t.Fatalf("entering %s: %v", vhost, err)
		}
		for queue, may := range map[string]bool{"orders.x": true, "customers": false} {
			ch, err := c.Channel()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ch.QueueDeclare(queue, false, true, false, false, nil); (err == nil) != may {
				t.Errorf("declaring %s in %s: %v", queue, vhost, err)
			}
		}
		_ = c.Close()
	}
	if _, err := enter(s, m, "/"); err == nil {
		t.Error("the virtual host / was entered, which the role does not name")
	}
	if err := e.Verify(t.Context(), engine.Credential{User: o.Name, Secret: secret}); err != nil {
		t.Errorf("verifying a user who may not enter /: %v", err)
	}
	next := estover.NewSecret([]byte("another-secret"))
	if err := e.SetSecret(t.Context(), o.Name, next, estover.Secret{}); err != nil {
		t.Fatal(err)
	}
	var u struct{ Tags json.RawMessage }
	if _, err := s.Call(t.Context(), http.MethodGet, "/api/users/e_may", &u); err != nil || !bytes.Contains(u.Tags, []byte("monitoring")) {
		t.Errorf("the tags after another password: %s, %v", u.Tags, err)
	}
	o.Template = engine.Template{"vhosts": {"crm"}, "read": {".*"}}
	if m, err = e.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if _, err := enter(s, m, "billing"); err == nil {
		t.Error("the virtual host billing was entered, which the order does not name any more")
	}
	o.Template = engine.Template{"vhosts": {"nowhere"}, "read": {".*"}}
	var refused *engine.Refused
	if _, err := e.Create(t.Context(), o); !errors.As(err, &refused) || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a virtual host that is not there: %v, want a refusal that names it", err)
	}
}

// TestDeletion: the broker itself ends the connections of a user that is
// deleted, whoever deletes it.
func TestDeletion(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	o := engine.Order{Name: "e_deleted", Secret: estover.NewSecret([]byte("deleted-secret")), Template: template}
	m, err := e.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := enter(s, m, "crm")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := s.Call(t.Context(), http.MethodDelete, "/api/users/"+o.Name, nil); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); c.Ping(t.Context()) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a connection goes on after its user was deleted")
		}
	}
}

// TestRace: a log-in that races the revocation does not stay for more than a second
// after it was asked for (F10, Q3).
func TestRace(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	o := engine.Order{Name: "e_race", Secret: estover.NewSecret([]byte("race-secret")), Template: template}
	m, err := e.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	var lock sync.Mutex
	var ended []time.Time // connections, as their clients were told
	began := make(chan struct{}, 100)
	enough := func() bool {
		lock.Lock()
		defer lock.Unlock()
		return len(ended) > 80
	}
	for range 4 {
		wait.Go(func() {
			for !enough() {
				c, err := enter(s, m, "crm")
				if err != nil {
					return
				}
				lock.Lock()
				n := len(ended)
				ended = append(ended, time.Time{})
				lock.Unlock()
				wait.Go(func() {
					limit := time.AfterFunc(30*time.Second, func() { _ = c.CloseDeadline(time.Now()) })
					defer limit.Stop()
					<-c.NotifyClose(make(chan *amqp.Error, 1))
					lock.Lock()
					ended[n] = time.Now()
					lock.Unlock()
				})
				began <- struct{}{}
			}
		})
	}
	for range 8 {
		<-began
	}
	asked := time.Now()
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: o.Name, Template: template}})[0]; err != nil {
		t.Fatal(err)
	}
	revoked := time.Since(asked)
	wait.Wait()
	last := slices.MaxFunc(ended, time.Time.Compare).Sub(asked)
	if last > enginetest.Soon {
		t.Errorf("a connection went on for %v after the revocation was asked for, want a second at most", last)
	}
	t.Logf("%d connections, all of them ended %v after the revocation was asked for, which took %v", len(ended), last, revoked)
}

// TestTLS: the management interface and AMQP, both with a certificate of the
// authority.
func TestTLS(t *testing.T) {
	s := running(t)
	c := config(s)
	c.Address = "https://" + s.Address(managementTLS)
	c.Options = map[string]string{"amqp": s.Address(secured)}
	if _, err := open(t, c).Now(t.Context()); !errors.Is(err, engine.ErrUnreachable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody knows: %v, want ErrUnreachable", err)
	}
	c.Authorities = enginetest.Authority()
	e := open(t, c)
	if _, err := e.Now(t.Context()); err != nil {
		t.Error(err)
	}
	o := engine.Order{Name: "e_tls", Secret: estover.NewSecret([]byte("tls-secret")), Template: template}
	if _, err := e.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	defer e.Revoke(context.Background(), []engine.Doomed{{Name: o.Name, Template: template}})
	for _, login := range []engine.Credential{{User: o.Name, Secret: o.Secret}, c.Admin} {
		if err := e.Verify(t.Context(), login); err != nil {
			t.Errorf("%s logs in with TLS: %v", login.User, err)
		}
		login.Secret = estover.NewSecret([]byte("another"))
		if err := e.Verify(t.Context(), login); !errors.Is(err, engine.ErrWrongSecret) {
			t.Errorf("%s logs in with another password: %v, want ErrWrongSecret", login.User, err)
		}
	}
}

// TestHalfMade has a broker make the user, and go away before it has its
// permissions: nobody is told that nothing was begun.
func TestHalfMade(t *testing.T) {
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusForbidden} {
		for _, half := range []string{"/api/users/", "/api/permissions/"} {
			if half == "/api/users/" && status != http.StatusServiceUnavailable {
				continue // they say that it was not done
			}
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodGet:
					w.WriteHeader(http.StatusNotFound)
				case strings.HasPrefix(r.URL.Path, half):
					w.WriteHeader(status)
				default:
					w.WriteHeader(http.StatusCreated)
				}
			}))
			e := open(t, engine.Config{Address: s.URL, Admin: engine.Credential{User: "estover", Secret: estover.NewSecret([]byte(admin))}})
			var refused *engine.Refused
			_, err := e.Create(t.Context(), engine.Order{Name: "e_half", Secret: estover.NewSecret([]byte("x")), Template: engine.Template{"read": {".*"}}})
			if err == nil || errors.Is(err, engine.ErrUnreachable) || half == "/api/users/" && errors.As(err, &refused) {
				t.Errorf("%d to %s: %v, want an error that leaves open what happened", status, half, err)
			}
			s.Close()
		}
	}
}

// TestMeanwhile has users and connections come and go while somebody asks about them,
// which the broker fails at times: nobody is told of it who only looks, or who can do
// once more what was to be done.
func TestMeanwhile(t *testing.T) {
	failed := map[string]int{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call := r.Method + " " + r.URL.Path
		if failed[call]++; failed[call] <= 2 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		switch parts := strings.Split(r.URL.Path, "/"); {
		case r.Method != http.MethodGet:
			w.WriteHeader(http.StatusNoContent)
		case parts[2] == "users" && len(parts) == 3:
			_, _ = w.Write([]byte(`[{"name":"e_one","tags":""},{"name":"other","tags":""}]`))
		case parts[2] == "users" && len(parts) == 4:
			_, _ = w.Write([]byte(`{"name":"e_one","tags":""}`))
		case parts[2] == "whoami":
			_, _ = w.Write([]byte(`{}`))
		default:
			_, _ = w.Write([]byte(`[]`))
		}
	}))
	defer s.Close()
	e := open(t, engine.Config{Address: s.URL, Admin: engine.Credential{User: "estover", Secret: estover.NewSecret([]byte(admin))}})
	one := estover.NewSecret([]byte("of-one"))
	for what, do := range map[string]func() error{
		"users are listed": func() error {
			names, err := e.List(t.Context(), "e_")
			if err == nil && !slices.Equal(names, []string{"e_one"}) {
				err = fmt.Errorf("there are %q", names)
			}
			return err
		},
		"connections are listed":   func() error { _, err := e.Sessions(t.Context(), "e_one"); return err },
		"connections are closed":   func() error { return e.EndSessions(t.Context(), "e_one") },
		"the time is asked for":    func() error { _, err := e.Now(t.Context()); return err },
		"a user is extended":       func() error { return e.Extend(t.Context(), "e_one", template, time.Now()) },
		"a user has another":       func() error { return e.SetSecret(t.Context(), "e_one", one, estover.Secret{}) },
		"two users are compared":   func() error { return e.(engine.Comparer).Alike(t.Context(), "e_one", "other") },
		"an administrator logs in": func() error { return e.Verify(t.Context(), engine.Credential{User: "estover", Secret: one}) },
		"a user is made": func() error {
			_, err := e.Create(t.Context(), engine.Order{Name: "e_one", Secret: one, Template: template})
			return err
		},
		"a user is revoked": func() error { return e.Revoke(t.Context(), []engine.Doomed{{Name: "e_one"}})[0] },
	} {
		clear(failed)
		if err := do(); err != nil {
			t.Errorf("%s at a broker that fails twice at first: %v", what, err)
		}
	}
}

// TestStorm is F1, F2 and F3.
func TestStorm(t *testing.T) {
	leasetest.Storm{Kind: rabbitmq.Kind, Config: config(running(t)), Template: template, Issues: 35}.Rage(t, dbtest.Open(t))
}
