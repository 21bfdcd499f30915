package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/server"
)

// sells has the house lease keys of a shop: by handle for the resource shop, and in
// plaintext, bound to a token, with the role shop-plain. The shop is followed by a
// page that does not come to an end.
func (h *house) sells() (up *shop, at string) {
	h.t.Helper()
	up = newShop(h.t)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/slow" {
			up.Config.Handler.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	h.t.Cleanup(front.Close)
	host := strings.TrimPrefix(front.URL, "http://")
	h.add(fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: shop/admin}
spec: {destinations: ["%[1]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: shop}
spec:
  base_url: http://%[1]s
  allow_private: [127.0.0.0/8]
  class: confidential
  slots: [{slot: header, name: Authorization, prefix: "Bearer ", secret: "lease:shop-key", field: key}]
  actions: [{name: me.read, method: GET, path: /me}, {name: slow.read, method: GET, path: /slow}]
`, host), "shop")
	h.must(http.MethodPost, "/v1/secret/versions?path=shop/admin", map[string]any{"fields": map[string]string{"username": "admin", "password": "the shop's admin"}}, nil)
	h.must(http.MethodPost, "/v1/secret-engines", map[string]any{
		"name": "shop", "kind": "httpkey", "address": front.URL, "admin": "shop/admin", "options": map[string]string{
			"create": "POST /keys", "create_body": `{"name": "{{name}}"}`, "key": "/key", "list": "GET /keys?name={{name}}", "item_name": "/name", "item_id": "/id",
			"delete": "DELETE /keys/{{id}}", "try": "GET /me", "use": "Authorization: Bearer {{key}}", "auth": "Authorization: Bearer {{secret}}",
		},
	}, nil)
	h.must(http.MethodPut, "/v1/lease-roles/shop-key", map[string]any{"name": "shop-key", "target": "shop", "resource": "shop", "action": "me.read"}, nil)
	h.must(http.MethodPut, "/v1/lease-roles/shop-plain", map[string]any{
		"name": "shop-plain", "target": "shop", "resource": "shop", "action": "me.read", "delivery": "plaintext", "bind": "token",
	}, nil)
	return up, front.URL
}

type leased struct {
	ID        string
	State     string
	Cause     string
	ExpiresBy string    `json:"expires_by"`
	ExpiresAt time.Time `json:"expires_at"`
	Grant     string
	Token     string
	Priority  int64
}

func (h *house) leaseOf(id string) (x leased) {
	h.t.Helper()
	h.must(http.MethodGet, "/v1/leases/"+id, nil, &x)
	return x
}

// liveIn are the live leases of a session.
func (h *house) liveIn(session string) []leased {
	h.t.Helper()
	var list struct{ Items []leased }
	h.must(http.MethodGet, "/v1/leases?state=live&session="+session, nil, &list)
	return list.Items
}

// drips opens the shop's page that does not come to an end.
func (h *house) drips(token string) io.ReadCloser {
	h.t.Helper()
	r, err := http.NewRequest(http.MethodGet, "http://"+h.addr+"/u/shop/slow", nil)
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(r)
	if err != nil || res.StatusCode != http.StatusOK {
		h.t.Fatalf("opening the page: %v %v", res, err)
	}
	return res.Body
}

// L7, M5: a lease that was made on a grant ends with it, in whatever way it ends, and
// with its key at the target.
func TestLeasesEndWithTheirGrant(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up, at := h.sells()
		grant := func(name string, purposes ...string) (id string) {
			var g struct{ ID string }
			h.must(http.MethodPost, "/v1/grants", map[string]any{
				"name": name, "agent": "bot", "resource": "shop", "actions": []string{"*"}, "purposes": purposes, "class": "confidential",
			}, &g)
			return g.ID
		}
		h.change("", "bot", "alice", map[string]string{"purposes": "[support, research]"})
		for _, c := range []struct {
			what string
			end  func(id string)
		}{
			{"it is ended by hand", func(id string) {
				h.must(http.MethodPost, "/v1/grants/"+id+"/end", map[string]string{"reason": "not needed"}, nil)
			}},
			{"it is narrowed", func(string) { grant("bot-uses-shop", "research") }},
		} {
			id := grant("bot-uses-shop", "support")
			session := h.openSession()
			token := h.tokenFor(session, at)
			if status, body := h.call(token, http.MethodGet, "/u/shop/me", "", ""); status != 200 {
				t.Fatalf("%s: before, the call is answered %d %s", c.what, status, body)
			}
			live := h.liveIn(session)
			if len(live) != 1 || live[0].Grant != id {
				t.Fatalf("%s: before, the session has %+v, want a lease made on %s", c.what, live, id)
			}
			c.end(id)
			if x := h.leaseOf(live[0].ID); x.State != "revoking" && x.State != "ended" || x.Cause != "grant" {
				t.Errorf("%s: the lease is %s for %q, want it to have ended for its grant", c.what, x.State, x.Cause)
			}
			h.until("the key is gone", func() bool { return up.count() == 0 })
			if status, _ := h.call(token, http.MethodGet, "/u/shop/me", "", ""); status != http.StatusForbidden {
				t.Errorf("%s: after, the call is answered %d, want 403", c.what, status)
			}
		}
	})
}

// L7: a role with bind: token gives leases that end with the access token that they
// were asked for with: when it is revoked, when its grant is, and by its time. What a
// person made with a token ends when the token is taken from them.
func TestLeasesEndWithTheirToken(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up, _ := h.sells()
		session := h.openSession()
		api := func() string { return h.tokenFor(session, h.issuer()) }
		ask := func(token string, more map[string]any) leased {
			t.Helper()
			body := map[string]any{"role": "shop-plain"}
			for k, v := range more {
				body[k] = v
			}
			status, b := h.do(http.MethodPost, "/v1/leases", token, body)
			if status != http.StatusCreated && status != http.StatusOK {
				t.Fatalf("asking for a lease: %d %s", status, b)
			}
			var x leased
			if err := json.Unmarshal(b, &x); err != nil {
				t.Fatal(err)
			}
			return x
		}
		one, two := api(), api()
		x, other := ask(one, nil), ask(two, nil)
		if x.ExpiresBy != "token" || x.Token == "" || !x.ExpiresAt.Before(time.Now().Add(16*time.Minute)) {
			t.Errorf("the lease ends at %s by its %s, want with its token", x.ExpiresAt, x.ExpiresBy)
		}
		res, err := http.PostForm("http://"+h.addr+"/oauth/revoke", url.Values{"token": {one}, "client_id": {h.agent}, "client_secret": {h.secret}})
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("revoking: %v %v", res, err)
		}
		_ = res.Body.Close()
		if got := h.leaseOf(x.ID); got.State == "live" || got.Cause != "token" {
			t.Errorf("after its token was revoked the lease is %s for %q", got.State, got.Cause)
		}
		if got := h.leaseOf(other.ID); got.State != "live" {
			t.Errorf("the lease of another token is %s for %q", got.State, got.Cause)
		}
		h.until("one key is gone", func() bool { return up.count() == 1 })

		// A person's.
		first, second := h.invite("admin"), h.invite("admin")
		mine, theirs := ask(first, map[string]any{"purpose": "a look"}), ask(second, map[string]any{"purpose": "a look"})
		if status, b := h.do(http.MethodPost, "/v1/logout", first, nil); status >= 300 {
			t.Fatalf("logging out: %d %s", status, b)
		}
		if got := h.leaseOf(mine.ID); got.State == "live" || got.Cause != "token" {
			t.Errorf("after a person's token was taken the lease is %s for %q", got.State, got.Cause)
		}
		if got := h.leaseOf(theirs.ID); got.State != "live" {
			t.Errorf("the lease of the person's other token is %s", got.State)
		}
	})
}

// Q1: a lease that is revoked alone is cut where it is in use, within a second, and the
// session goes on with another. What does not carry it goes on too.
func TestStreamsEndWithTheirLease(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		_, at := h.sells()
		one, two := h.openSession(), h.openSession()
		token := h.tokenFor(one, at)
		carries, other, none := flows(h.drips(token), t), flows(h.drips(h.tokenFor(two, at)), t), flows(h.stream(h.accessToken(one)), t)
		live := h.liveIn(one)
		if len(live) != 1 {
			t.Fatalf("the session has %+v, want one lease", live)
		}
		h.must(http.MethodPost, "/v1/leases/revoke", map[string]string{"id": live[0].ID, "reason": "a test"}, nil)
		since := time.Now()
		h.until("the stream is cut that carries the lease", func() bool { return !carries() })
		if took := time.Since(since); took > soon {
			t.Errorf("it was cut after %s", took)
		}
		if !other() || !none() {
			t.Errorf("goes on: with the lease of another session %v, without a lease %v; want both", other(), none())
		}
		if status, body := h.call(token, http.MethodGet, "/u/shop/me", "", ""); status != 200 {
			t.Errorf("after, the session is answered %d %s; want another lease", status, body)
		}
	})
}

// Q1: also on a node that did not do it.
func TestStreamsEndWithTheirLeaseElsewhere(t *testing.T) {
	h := build(t, dbtest.Postgres(t))
	_, at := h.sells()
	second := &house{t: t, key: h.key, logs: &syncBuffer{}, addr: freeAddr(t), token: h.token, upstream: h.upstream, agent: h.agent, secret: h.secret}
	second.config = server.Config{
		Data: filepath.Join(t.TempDir(), "data"), Database: h.config.Database, Listen: second.addr, Gateway: freeAddr(t), Plain: true,
		RootKey: "file:" + filepath.Join(h.config.Data+"-keys", "root.key"), Issuer: h.issuer(),
	}
	second.start()
	session := h.openSession()
	flowing := flows(second.drips(h.tokenFor(session, at)), t)
	live := h.liveIn(session)
	if len(live) != 1 {
		t.Fatalf("the session has %+v, want one lease", live)
	}
	h.must(http.MethodPost, "/v1/leases/revoke", map[string]string{"id": live[0].ID, "reason": "a test"}, nil)
	since := time.Now()
	h.until("the stream on the other node is cut", func() bool { return !flowing() })
	if took := time.Since(since); took > soon {
		t.Errorf("it was cut after %s", took)
	}
}

// H4: a leased key that its resource sends back is cut out, alarmed and, where the rule
// says so, revoked as by hand; the session goes on with another.
func TestEchoedLeaseIsRevoked(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up, at := h.sells()
		h.must(http.MethodPut, "/v1/resources/shop", map[string]any{
			"name": "shop", "base_url": at, "allow_private": []string{"127.0.0.0/8"}, "class": "confidential",
			"slots": []map[string]string{{"slot": "header", "name": "Authorization", "prefix": "Bearer ", "secret": "lease:shop-key", "field": "key", "on_echo": "revoke"}},
			"actions": []map[string]string{
				{"name": "me.read", "method": "GET", "path": "/me"}, {"name": "slow.read", "method": "GET", "path": "/slow"},
			},
		}, nil)
		session := h.openSession()
		token := h.tokenFor(session, at)
		if status, body := h.call(token, http.MethodGet, "/u/shop/me", "", ""); status != 200 || strings.Contains(body, "shop-key-number") {
			t.Fatalf("the page that tells the key: %d %s", status, body)
		}
		var list struct{ Items []leased }
		h.until("the lease is revoked", func() bool {
			h.must(http.MethodGet, "/v1/leases?session="+session, nil, &list)
			return len(list.Items) == 1 && list.Items[0].State != "live"
		})
		if x := list.Items[0]; x.Cause != "revoked" || x.Priority != 1 {
			t.Errorf("it ended for %q of priority %d, want as by hand", x.Cause, x.Priority)
		}
		h.until("the key is gone", func() bool { return up.count() == 0 })
		if status, body := h.call(token, http.MethodGet, "/u/shop/me", "", ""); status != 200 {
			t.Errorf("after, the session is answered %d %s; want another lease", status, body)
		}
	})
}

// An organisation that is erased leaves no credential at a target: they are taken away
// before its keys go.
func TestErasingTakesCredentials(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		acme := h.found("acme", "127.0.0.0/8")
		acme.apply()
		up, _ := acme.sells()
		status, b := acme.do(http.MethodPost, "/v1/leases", acme.token, map[string]any{"role": "shop-plain", "purpose": "a look"})
		if status >= 300 || up.count() != 1 {
			t.Fatalf("a lease of the tenant: %d %s, with %d keys", status, b, up.count())
		}
		h.must(http.MethodPost, "/v1/tenants/acme/disable", map[string]string{"reason": "the contract has ended"}, nil)
		if n := up.count(); n != 1 {
			t.Fatalf("a tenant that is disabled has %d keys, want the one", n)
		}
		h.must(http.MethodPost, "/v1/tenants/acme/erase", nil, nil)
		if n := up.count(); n != 0 {
			t.Errorf("%d keys are left at the target", n)
		}
	})
}
