package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	hashi "github.com/hashicorp/vault/api"
	openbao "github.com/openbao/openbao/api/v2"
	"github.com/redis/go-redis/v9"

	"estover.dev/internal/db/dbtest"
)

// A passage leads from a bubble in which time is moved to a server outside of it, whose
// clock it moves along: while a request is on its way no time passes in the bubble.
type passage struct {
	h       *house
	turn    sync.Mutex
	asked   []string  // the paths of requests
	began   time.Time // in the bubble
	asks    chan asked
	answers chan answered
}

// An asked is a request, or something else that is done outside.
type asked struct {
	method, path string
	header       http.Header
	body         []byte
	do           func() error
}

type answered struct {
	status int
	header http.Header
	body   []byte
	err    error
}

// newPassage is made outside of the bubble, and goes on until the test ends.
func newPassage(t *testing.T, h *house) *passage {
	p := &passage{h: h, asks: make(chan asked), answers: make(chan answered)}
	go func() {
		for a := range p.asks {
			p.answers <- p.call(a)
		}
	}()
	t.Cleanup(func() { close(p.asks) })
	return p
}

func (p *passage) call(a asked) (out answered) {
	if a.do != nil {
		return answered{err: a.do()}
	}
	req, err := http.NewRequest(a.method, "http://"+p.h.addr+"/vault"+a.path, bytes.NewReader(a.body))
	if err != nil {
		return answered{err: err}
	}
	req.Header = a.header
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return answered{err: err}
	}
	defer res.Body.Close()
	out.status, out.header = res.StatusCode, res.Header
	out.body, out.err = io.ReadAll(res.Body)
	return out
}

// RoundTrip is called within the bubble.
func (p *passage) RoundTrip(r *http.Request) (*http.Response, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	a := asked{method: r.Method, path: r.URL.RequestURI(), header: r.Header.Clone()}
	if r.Body != nil {
		var err error
		if a.body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	p.asked = append(p.asked, r.URL.Path)
	p.h.clock.Advance(time.Since(p.began))
	p.began = time.Now()
	p.asks <- a
	b := <-p.answers
	if b.err != nil {
		return nil, errors.New(b.err.Error())
	}
	return &http.Response{
		Status: http.StatusText(b.status), StatusCode: b.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: b.header, Body: io.NopCloser(bytes.NewReader(b.body)),
		ContentLength: int64(len(b.body)), Request: r,
	}, nil
}

// enters says whether a user of the Redis is let in there.
func (p *passage) enters(user, password string) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.asks <- asked{do: func() error { return entersRedis(user, password) }}
	return (<-p.answers).err
}

func entersRedis(user, password string) error {
	c := redisAs(user, password)
	defer c.Close()
	return c.Get(context.Background(), "app:x").Err()
}

// shutOut waits, by the time outside of the bubble, until a user of the Redis is let in
// there no more: what is over is taken away while others ask for something.
func (p *passage) shutOut(user, password string) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.asks <- asked{do: func() error {
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			err := entersRedis(user, password)
			if err != nil && !errors.Is(err, redis.Nil) {
				return nil
			}
			if time.Now().After(end) {
				return errors.New("it is still let in")
			}
		}
	}}
	return (<-p.answers).err
}

var errNothing = errors.New("there is nothing")

// A watcher is a client of Vault that has one.
type watcher interface {
	use(token string)
	write(path string, data map[string]any) (secret any, token string, err error)
	read(path string) (secret any, user, password string, err error)
	alive() error
	watch(secret any) watched
}

type hashiWatcher struct{ *hashi.Client }

func newHashi(t *testing.T, p *passage, token string) watcher {
	config := hashi.DefaultConfig()
	config.Address, config.HttpClient = "http://vault.example", &http.Client{Transport: p}
	c, err := hashi.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	c.SetToken(token)
	return hashiWatcher{c}
}

func (c hashiWatcher) use(token string) { c.SetToken(token) }

func (c hashiWatcher) write(path string, data map[string]any) (any, string, error) {
	s, err := c.Logical().Write(path, data)
	if err != nil {
		return nil, "", err
	}
	return s, s.Auth.ClientToken, nil
}

func (c hashiWatcher) read(path string) (any, string, string, error) {
	s, err := c.Logical().Read(path)
	if err == nil && s == nil { // of a 404 without data
		err = errNothing
	}
	if err != nil {
		return nil, "", "", err
	}
	return s, s.Data["username"].(string), s.Data["password"].(string), nil
}

func (c hashiWatcher) alive() error {
	_, err := c.Auth().Token().LookupSelf()
	return err
}

func (c hashiWatcher) watch(secret any) (out watched) {
	began := time.Now()
	w, err := c.NewLifetimeWatcher(&hashi.LifetimeWatcherInput{Secret: secret.(*hashi.Secret)})
	if err != nil {
		return watched{err: err}
	}
	go w.Start()
	for {
		select {
		case <-w.RenewCh():
			out.renewals++
		case out.err = <-w.DoneCh():
			out.lasted = time.Since(began)
			return out
		}
	}
}

type baoWatcher struct{ *openbao.Client }

func newBao(t *testing.T, p *passage, token string) watcher {
	config := openbao.DefaultConfig()
	config.Address, config.HttpClient = "http://vault.example", &http.Client{Transport: p}
	c, err := openbao.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	c.SetToken(token)
	return baoWatcher{c}
}

func (c baoWatcher) use(token string) { c.SetToken(token) }

func (c baoWatcher) write(path string, data map[string]any) (any, string, error) {
	s, err := c.Logical().Write(path, data)
	if err != nil {
		return nil, "", err
	}
	return s, s.Auth.ClientToken, nil
}

func (c baoWatcher) read(path string) (any, string, string, error) {
	s, err := c.Logical().Read(path)
	if err == nil && s == nil { // of a 404 without data
		err = errNothing
	}
	if err != nil {
		return nil, "", "", err
	}
	return s, s.Data["username"].(string), s.Data["password"].(string), nil
}

func (c baoWatcher) alive() error {
	_, err := c.Auth().Token().LookupSelf()
	return err
}

func (c baoWatcher) watch(secret any) (out watched) {
	began := time.Now()
	w, err := c.NewLifetimeWatcher(&openbao.LifetimeWatcherInput{Secret: secret.(*openbao.Secret)})
	if err != nil {
		return watched{err: err}
	}
	go w.Start()
	for {
		select {
		case <-w.RenewCh():
			out.renewals++
		case out.err = <-w.DoneCh():
			out.lasted = time.Since(began)
			return out
		}
	}
}

// watched is how a watcher of a client of Vault has fared.
type watched struct {
	renewals int
	lasted   time.Duration
	err      error
}

// The watchers of the Go clients, whose own time is moved along with the server's, keep
// a token and a lease for as long as these may live, hour after hour, and end then by
// themselves; what nobody renews ends after its hour (section 12.4).
func TestVaultWatchers(t *testing.T) {
	host, port := startRedis(t)
	for name, login := range map[string]func(t *testing.T, p *passage, token string) watcher{"hashicorp": newHashi, "openbao": newBao} {
		t.Run(name, func(t *testing.T) {
			dbtest.EachURL(t, func(t *testing.T, database string) {
				h := build(t, database)
				v := h.vault()
				v.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
				v.must(204, "POST", "auth/approle/role/app", `{"token_ttl":"1h","token_max_ttl":"6h"}`)
				role := v.must(200, "GET", "auth/approle/role/app/role-id", nil).text("role_id")
				secret := v.must(200, "POST", "auth/approle/role/app/secret-id", `{}`).text("secret_id")
				v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
				v.must(204, "POST", "database/config/cache", `{"plugin_name":"redis-database-plugin","host":"`+host+`","port":`+port+`,"username":"estover","password":"`+redisPassword+`","allowed_roles":"*"}`)
				v.must(200, "POST", "database/roles/app", `{"db_name":"cache","creation_statements":"[\"~app:*\", \"+get\"]","default_ttl":"1h","max_ttl":"5h","resource":"","action":""}`)
				p := newPassage(t, h)
				credentials := map[string]any{"role_id": role, "secret_id": secret}
				synctest.Test(t, func(t *testing.T) {
					p.began = time.Now()
					app := login(t, p, "")
					_, idle, err := app.write("auth/approle/login", credentials)
					if err != nil {
						t.Fatal(err)
					}
					kept, token, err := app.write("auth/approle/login", credentials)
					if err != nil {
						t.Fatal(err)
					}
					app.use(token)
					if w := app.watch(kept); w.err != nil || w.renewals < 6 || w.lasted < 5*time.Hour || w.lasted > 6*time.Hour {
						t.Errorf("the watcher of a token of six hours: %+v", w)
					}
					if err := app.alive(); err != nil {
						t.Errorf("a token that was renewed: %v", err)
					}
					app.use(idle)
					if err := app.alive(); err == nil || !strings.Contains(err.Error(), "403") {
						t.Errorf("a token of an hour that nobody has renewed: %v, want 403", err)
					}

					admin := login(t, p, h.token)
					_, idleUser, idlePassword, err := admin.read("database/creds/app")
					if err != nil {
						t.Fatal(err)
					}
					lease, user, password, err := admin.read("database/creds/app")
					if err != nil {
						t.Fatal(err)
					}
					if w := admin.watch(lease); w.err != nil || w.renewals < 5 || w.lasted < 4*time.Hour || w.lasted > 5*time.Hour {
						t.Errorf("the watcher of a lease of five hours: %+v", w)
					}
					if err := p.enters(user, password); !errors.Is(err, redis.Nil) {
						t.Errorf("a user that was renewed: %v, want it let in", err)
					}
					if err := p.shutOut(idleUser, idlePassword); err != nil {
						t.Errorf("a user of an hour that nobody has renewed: %v", err)
					}
				})
			})
		})
	}
}
