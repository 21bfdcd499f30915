package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/secret/lease"
)

// A counter hands out keys over HTTP, and can be told to be slow to take one away.
type counter struct {
	*httptest.Server
	mu   sync.Mutex
	keys map[string]string // id → name
	made int
	slow bool
	busy chan struct{} // somebody waits for a key to be taken away

	hold  chan struct{}  // until it is closed no key is taken away
	taken map[string]int // how often each key was to be taken away, by id
}

func newCounter(t *testing.T) *counter {
	c := &counter{keys: map[string]string{}, busy: make(chan struct{}, 100), taken: map[string]int{}}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, one := strings.CutPrefix(r.URL.Path, "/keys/")
	switch {
	case r.URL.Path == "/me":
		if _, there := c.keys[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer key-")]; !there {
			w.WriteHeader(http.StatusUnauthorized)
		}
	case r.Method == http.MethodPost:
		var in struct{ Name string }
		if json.NewDecoder(r.Body).Decode(&in) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c.made++
		id := fmt.Sprint(c.made)
		c.keys[id] = in.Name
		_ = json.NewEncoder(w).Encode(map[string]string{"id": id, "name": in.Name, "key": "key-" + id})
	case r.Method == http.MethodDelete && one:
		if c.slow {
			c.busy <- struct{}{}
			c.mu.Unlock()
			<-r.Context().Done() // until whoever asked is no more
			c.mu.Lock()
			return
		}
		c.taken[id]++
		if hold := c.hold; hold != nil {
			c.mu.Unlock()
			select {
			case <-hold:
			case <-r.Context().Done():
			}
			c.mu.Lock()
		}
		delete(c.keys, id)
	default:
		list := []map[string]string{}
		for id, name := range c.keys {
			if strings.HasPrefix(name, r.FormValue("name")) {
				list = append(list, map[string]string{"id": id, "name": name})
			}
		}
		_ = json.NewEncoder(w).Encode(list)
	}
}

func (c *counter) left() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.keys)
}

func (c *counter) set(slow bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slow = slow
}

// enable registers it, with a role for people.
func (c *counter) enable(t *testing.T, admin *e2etest.CLI) {
	t.Helper()
	r := admin.Input(t, "the counter's admin", "secret", "engine", "enable", "httpkey", "counter", "--address", c.URL,
		"--option", "create=POST /keys", "--option", `create_body={"name": "{{name}}"}`, "--option", "key=/key", "--option", "list=GET /keys?name={{name}}",
		"--option", "item_name=/name", "--option", "item_id=/id", "--option", "delete=DELETE /keys/{{id}}", "--option", "try=GET /me",
		"--option", "use=Authorization: Bearer {{key}}", "--option", "auth=Authorization: Bearer {{secret}}",
		"--admin", "targets/counter", "--admin-user", "admin", "--admin-password-file", "-")
	if r.Code != 0 {
		t.Fatalf("enabling the counter: %s%s", r.Stdout, r.Stderr)
	}
	admin.Must(t, "secret", "role", "put", "counted", "--target", "counter", "--delivery", "plaintext", "--per-minute", "100000")
}

// What a server had claimed when it was killed is free when it starts again: it goes
// on taking credentials away at once, and does not wait for its own claim (L10, F7).
func TestClaimsOfAKilledServer(t *testing.T) {
	t.Parallel()
	d := newOAuthDesk(t, e2etest.Start(t))
	c := newCounter(t)
	c.enable(t, d.admin)
	admin := d.admin.Token(t)
	var x lease.Lease
	must(t, d.Post(t, admin, "/v1/leases", map[string]any{"role": "counted", "purpose": "a test"}, &x))
	c.set(true)
	must(t, d.Post(t, admin, "/v1/leases/revoke", map[string]any{"id": x.ID, "reason": "a test"}, nil))
	select {
	case <-c.busy: // it has claimed the lease, and waits for the target
	case <-time.After(time.Minute):
		t.Fatal("nobody takes the key away")
	}
	d.Kill()
	c.set(false)
	since := time.Now()
	d.Restart(t)
	e2etest.Eventually(t, "the key is gone, and its lease has ended", func() bool {
		return c.left() == 0 && d.Get(t, admin, "/v1/leases/"+x.ID, &x) == nil && x.State == lease.Ended
	})
	if took := time.Since(since); took > 50*time.Second {
		t.Errorf("it took %s from the restart, want it not to wait for the minute of the claim", took)
	}
}
