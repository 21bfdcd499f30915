package rabbitmq_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
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
	plain = iota
	secured
	management
	managementTLS
	distribution
	mapper // of Erlang's nodes: one of its own, which ends with the server
)

// server runs a RabbitMQ whose admin "estover" has the tag administrator, and
// virtual hosts "crm" and "billing".
var server = sync.OnceValues(func() (*enginetest.Server, error) {
	return enginetest.Start(enginetest.Process{
		Debian: "rabbitmq-server", Program: "sh", Users: []string{"rabbitmq"}, Ports: 6, Patience: 5 * time.Minute,
		Prepare: func(s *enginetest.Server) ([]string, []string, error) {
			certificate, key, err := enginetest.Certificate(s)
			if err != nil {
				return nil, nil, err
			}
			authority, err := s.Write("ca.pem", string(enginetest.Authority()))
			if err != nil {
				return nil, nil, err
			}
			sum := sha256.Sum256([]byte("salt" + admin))
			definitions, err := json.Marshal(map[string]any{
				"users": []map[string]string{{
					"name": "estover", "password_hash": base64.StdEncoding.EncodeToString(append([]byte("salt"), sum[:]...)),
					"hashing_algorithm": "rabbit_password_hashing_sha256", "tags": "administrator",
				}},
				"vhosts":      []map[string]string{{"name": "/"}, {"name": "crm"}, {"name": "billing"}, {"name": "a/b c"}},
				"permissions": []map[string]string{{"user": "estover", "vhost": "crm", "configure": ".*", "write": ".*", "read": ".*"}},
			})
			if err != nil {
				return nil, nil, err
			}
			for name, content := range map[string]string{
				"definitions.json": string(definitions),
				"plugins":          "[rabbitmq_management].",
				"rabbitmq.conf": strings.NewReplacer("DIR", s.Dir, "CERT", certificate, "KEY", key, "CA", authority,
					"P0", fmt.Sprint(s.Ports[plain]), "P1", fmt.Sprint(s.Ports[secured]),
					"P2", fmt.Sprint(s.Ports[management]), "P3", fmt.Sprint(s.Ports[managementTLS])).Replace(`
listeners.tcp.1 = 127.0.0.1:P0
listeners.ssl.1 = 127.0.0.1:P1
ssl_options.cacertfile = CA
ssl_options.certfile = CERT
ssl_options.keyfile = KEY
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
management.tcp.ip = 127.0.0.1
management.tcp.port = P2
management.ssl.ip = 127.0.0.1
management.ssl.port = P3
management.ssl.cacertfile = CA
management.ssl.certfile = CERT
management.ssl.keyfile = KEY
management.load_definitions = DIR/definitions.json
log.console = true
log.console.level = info
log.file = false
disk_free_limit.absolute = 1MB
`),
			} {
				if _, err := s.Write(name, content); err != nil {
					return nil, nil, err
				}
			}
			p := func(n int) string { return fmt.Sprint(s.Ports[n]) }
			// The mapper is started first, so that Erlang starts none that would outlive it.
			script := `epmd -address 127.0.0.1 -port ` + p(mapper) + ` & until epmd -port ` + p(mapper) + ` -names >/dev/null; do sleep 0.1; done
				exec /usr/lib/rabbitmq/bin/rabbitmq-server`
			return []string{"-c", script}, []string{
				"HOME=" + s.Dir, "ERL_EPMD_PORT=" + p(mapper), "ERL_EPMD_ADDRESS=127.0.0.1", "ERL_CRASH_DUMP=/dev/null",
				"RABBITMQ_NODENAME=rabbit@localhost", "RABBITMQ_DIST_PORT=" + p(distribution), "RABBITMQ_NODE_IP_ADDRESS=127.0.0.1", "RABBITMQ_NODE_PORT=" + p(plain),
				"RABBITMQ_CONF_ENV_FILE=/dev/null", "RABBITMQ_CONFIG_FILE=" + s.Dir + "/rabbitmq.conf", "RABBITMQ_ENABLED_PLUGINS_FILE=" + s.Dir + "/plugins",
				"RABBITMQ_MNESIA_BASE=" + s.Dir + "/mnesia", "RABBITMQ_LOG_BASE=" + s.Dir + "/logs", "RABBITMQ_PID_FILE=" + s.Dir + "/pid",
				"RABBITMQ_GENERATED_CONFIG_DIR=" + s.Dir + "/config", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 2:2",
			}, nil
		},
		Ready: func(ctx context.Context, s *enginetest.Server) error {
			if _, err := call(ctx, s, http.MethodGet, "/api/permissions/crm/estover", nil); err != nil {
				return err
			}
			c, err := amqp.Dial("amqp://estover:" + admin + "@" + s.Address(plain) + "/crm")
			if err != nil {
				return err
			}
			return c.Close()
		},
	})
})

func running(t *testing.T) *enginetest.Server {
	t.Helper()
	s, err := server()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// call asks the management interface without the engine.
func call(ctx context.Context, s *enginetest.Server, method, path string, out any) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.Address(management)+path, nil)
	if err != nil {
		return 0, err
	}
	req.SetBasicAuth("estover", admin)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return resp.StatusCode, errors.New(resp.Status)
	}
	if out != nil {
		return resp.StatusCode, json.NewDecoder(resp.Body).Decode(out)
	}
	return resp.StatusCode, nil
}

func config(s *enginetest.Server) engine.Config {
	return engine.Config{
		Address: "http://" + s.Address(management), Options: map[string]string{"amqp": s.Address(plain)},
		Admin: engine.Credential{User: "estover", Secret: estover.NewSecret([]byte(admin))},
	}
}

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

func enter(s *enginetest.Server, m engine.Material, vhost string) (login, error) {
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
			_, err := call(ctx, s, http.MethodDelete, "/api/users/"+url.PathEscape(name), nil)
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
	if _, err := call(t.Context(), s, http.MethodGet, "/api/users/e_may", &u); err != nil || !bytes.Contains(u.Tags, []byte("monitoring")) {
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
	if _, err := call(t.Context(), s, http.MethodDelete, "/api/users/"+o.Name, nil); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); c.Ping(t.Context()) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a connection goes on after its user was deleted")
		}
	}
}

// TestRace: a log-in that races the revocation does not stay (F10).
func TestRace(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	o := engine.Order{Name: "e_race", Secret: estover.NewSecret([]byte("race-secret")), Template: template}
	m, err := e.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	logins := make(chan login, 100)
	began := make(chan struct{}, 100)
	for range 4 {
		wait.Go(func() {
			for {
				c, err := enter(s, m, "crm")
				if err != nil {
					return
				}
				logins <- c
				began <- struct{}{}
				if len(logins) > 80 {
					return
				}
			}
		})
	}
	for range 8 {
		<-began
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: o.Name, Template: template}})[0]; err != nil {
		t.Fatal(err)
	}
	revoked := time.Now()
	wait.Wait()
	close(logins)
	for c := range logins {
		for c.Ping(t.Context()) == nil {
			if time.Since(revoked) > 5*time.Second {
				t.Fatal("a connection goes on after the revocation")
			}
			time.Sleep(5 * time.Millisecond)
		}
		_ = c.Close()
	}
	t.Logf("%d connections, all of them ended %v after the revocation", len(began)+8, time.Since(revoked))
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

// TestStorm is F1, F2 and F3.
func TestStorm(t *testing.T) {
	leasetest.Storm{Kind: rabbitmq.Kind, Config: config(running(t)), Template: template, Issues: 35}.Rage(t, dbtest.Open(t))
}
