package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev/attest"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/page/pagetest"
)

// A contained is what the API says of a containment.
type contained struct {
	ID, Scope, Target, Hold string
	Zero                    int64 `json:"zero_micros"`
	Steps                   []struct {
		Name  string
		Count int
	}
}

func (c contained) count(step string) int {
	for _, s := range c.Steps {
		if s.Name == step {
			return s.Count
		}
	}
	return -1
}

// dead waits until a stream was cut.
func (h *house) dead(what string, stream io.ReadCloser) {
	h.t.Helper()
	defer stream.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, stream)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			h.t.Errorf("%s: the stream ended as if it were whole", what)
		}
	case <-time.After(time.Minute):
		h.t.Errorf("%s: the stream goes on", what)
	}
}

// token asks for a token and says with which status it was answered.
func (h *house) tokenStatus() int {
	h.t.Helper()
	res, err := http.PostForm("http://"+h.addr+"/oauth/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {h.agent}, "client_secret": {h.secret}, "resource": {h.upstream.URL},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// Whatever is contained as a whole stops at once what it covers: the streams, the
// calls, the tokens, new sessions and agents that are registered later. Its
// certificate is verified offline. It goes on when somebody else has approved
// that: neither whoever asked nor whoever raised the hold (M33).
func TestContainAsAWhole(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		h.must(http.MethodPost, "/v1/people", map[string]any{"name": "bob", "roles": []string{"admin"}}, nil)
		bob := h.invite("bob")
		lift := func(hold string) {
			t.Helper()
			var asked struct{ State, Request string }
			h.must(http.MethodPost, "/v1/holds/"+hold+"/lift", map[string]string{"reason": "the prompt was mended"}, &asked)
			if asked.State != "asked" || asked.Request == "" {
				t.Fatalf("lifting a hold beside another administrator: %+v, want that it is asked for", asked)
			}
			path := "/v1/access/requests/" + asked.Request + "/approve"
			if status, body := h.do(http.MethodPost, path, h.token, map[string]any{}); h.code(body) != "request_own" {
				t.Errorf("approving what one has asked for: %d %s", status, body)
			}
			if status, body := h.do(http.MethodPost, path, bob, map[string]any{}); status != http.StatusOK {
				t.Fatalf("approving that a hold is lifted: %d %s", status, body)
			}
			if status, body := h.do(http.MethodPost, path, bob, map[string]any{}); h.code(body) != "request_not_pending" {
				t.Errorf("approving it again: %d %s", status, body)
			}
		}
		for _, c := range []struct{ scope, target, call string }{
			{"blueprint", "support", "kernel_agent_held"},
			{"person", "alice", "kernel_agent_held"},
			{"tenant", "", "kernel_agent_held"},
			{"everything", "", "kernel_agent_held"},
			{"resource", "crm", "kernel_resource_held"},
		} {
			session := h.openSession()
			token := h.accessToken(session)
			stream := h.stream(token)
			var done contained
			h.must(http.MethodPost, "/v1/containments", map[string]string{"scope": c.scope, "target": c.target, "reason": "a drill"}, &done)
			h.dead(c.scope, stream)
			if done.Zero <= 0 || done.Scope != c.scope || done.Hold == "" || done.count("connections") != 1 {
				t.Errorf("containing a %s: %+v, want one connection cut and a time to zero", c.scope, done)
			}
			status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", token, nil)
			if c.scope == "resource" {
				if status != http.StatusForbidden || !bytes.Contains(body, []byte(c.call)) {
					t.Errorf("a call of a resource that is held: %d %s", status, body)
				}
				// Nobody puts another in its place, which would not be held.
				if status, body := h.do(http.MethodDelete, "/v1/resources/crm", h.token, nil); h.code(body) != "resource_held" {
					t.Errorf("retiring a resource that is held: %d %s", status, body)
				}
				moved := map[string]any{
					"name": "crm", "base_url": "https://crm.example.com", "class": "confidential", "actions": []map[string]string{{"name": "item.read", "method": "GET", "path": "/v1/items/{id}"}},
				}
				if status, body := h.do(http.MethodPut, "/v1/resources/crm", h.token, moved); h.code(body) != "resource_held" {
					t.Errorf("moving a resource that is held: %d %s", status, body)
				}
			} else {
				if status != http.StatusUnauthorized {
					t.Errorf("a call after the containment of a %s: %d %s, want 401", c.scope, status, body)
				}
				if status := h.tokenStatus(); status == http.StatusOK {
					t.Errorf("a token after the containment of a %s", c.scope)
				}
				if status, body := h.do(http.MethodPost, "/v1/sessions", h.token, map[string]string{"agent": "bot", "purpose": "support"}); status == http.StatusOK {
					t.Errorf("a session after the containment of a %s: %s", c.scope, body)
				}
				var ended struct{ State string }
				h.must(http.MethodGet, "/v1/sessions/"+session, nil, &ended)
				if ended.State != "ended" {
					t.Errorf("the session after the containment of a %s is %s", c.scope, ended.State)
				}
				var later struct {
					Status string
					Holds  []struct{ ID, Scope string }
				}
				h.must(http.MethodPost, "/v1/agents", map[string]any{
					"name": "later-" + c.scope, "blueprint": "support", "sponsor": h.person("alice"), "purposes": []string{"support"}, "clearance": "internal",
				}, nil)
				h.must(http.MethodGet, "/v1/agents/later-"+c.scope, nil, &later)
				if later.Status != "quarantined" || len(later.Holds) != 1 || later.Holds[0].ID != done.Hold || later.Holds[0].Scope != c.scope {
					t.Errorf("an agent that is registered after the containment of a %s: %+v", c.scope, later)
				}
				if status, body := h.do(http.MethodPost, "/v1/agents/bot/holds/"+done.Hold+"/lift", h.token, map[string]string{"reason": "mine"}); h.code(body) != "hold_not_found" {
					t.Errorf("lifting the hold on a %s as one of an agent: %d %s", c.scope, status, body)
				}
			}
			status, certificate := h.do(http.MethodGet, "/v1/containments/"+done.ID+"/certificate", h.token, nil)
			if report := attest.Verify(certificate, h.trust()); status != http.StatusOK || !report.OK() || !strings.Contains(report.Step(attest.ZeroStep).Detail, c.scope) {
				t.Errorf("the certificate of the containment of a %s: %d\n%s", c.scope, status, report)
			}
			lift(done.Hold)
			if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", h.accessToken(""), nil); status != http.StatusOK {
				t.Errorf("a fresh token after the hold on a %s was lifted: %d %s, want 200", c.scope, status, body)
			}
		}

		// Bob has contained it, and does not approve that it goes on.
		var done contained
		status, body := h.do(http.MethodPost, "/v1/containments", bob, map[string]string{"agent": "bot", "reason": "a drill"})
		if err := json.Unmarshal(body, &done); status != http.StatusOK || err != nil {
			t.Fatalf("containing: %d %s", status, body)
		}
		if status, body := h.do(http.MethodPost, "/v1/agents/bot/holds/"+done.Hold+"/lift", h.token, map[string]string{"reason": "mine"}); h.code(body) != "lift_needs_second" {
			t.Errorf("lifting a containment's hold on one's own word: %d %s", status, body)
		}
		var asked struct{ Request string }
		h.must(http.MethodPost, "/v1/holds/"+done.Hold+"/lift", map[string]string{"reason": "the prompt was mended"}, &asked)
		if status, body := h.do(http.MethodPost, "/v1/access/requests/"+asked.Request+"/approve", bob, map[string]any{}); h.code(body) != "lift_by_who_raised" {
			t.Errorf("approving that one's own hold is lifted: %d %s", status, body)
		}
		// Everything is for those who run the server, and a sponsor without a role
		// stops their own agents.
		if status, body := h.do(http.MethodPost, "/v1/containments", h.invite("alice"), map[string]string{"scope": "everything", "reason": "mine"}); status != http.StatusForbidden {
			t.Errorf("an operator contains everything: %d %s, want 403", status, body)
		}
		h.must(http.MethodPost, "/v1/people", map[string]any{"name": "carol"}, nil)
		carol := h.invite("carol")
		for name, want := range map[string]int{"me": http.StatusOK, h.person("alice"): http.StatusForbidden} {
			status, body := h.do(http.MethodPost, "/v1/containments", carol, map[string]string{"scope": "person", "target": name, "reason": "mine"})
			if status != want {
				t.Errorf("a person without a role contains the agents of %s: %d %s, want %d", name, status, body, want)
			}
		}
	})
}

// person is the id of somebody by name.
func (h *house) person(name string) string {
	h.t.Helper()
	var p struct{ ID string }
	h.must(http.MethodGet, "/v1/people/"+name, nil, &p)
	return p.ID
}

// control sends a request to the kill switch's own listener.
func (h *house) control(method, path string, body any, header ...string) (int, []byte) {
	h.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if !strings.HasPrefix(h.config.Control, "unix:") {
			return (&net.Dialer{}).DialContext(ctx, "tcp", h.config.Control)
		}
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(h.config.Control, "unix:"))
	}}}
	b, err := json.Marshal(body)
	if err != nil {
		h.t.Fatal(err)
	}
	req, err := http.NewRequest(method, "http://control"+path, bytes.NewReader(b))
	if err != nil {
		h.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode, out
}

// restart starts the server again with another configuration.
func (h *house) restart(change func()) {
	h.t.Helper()
	h.stop()
	change()
	h.start()
}

// socket is a path that is short enough for one.
func socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "est")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "c.sock")
}

// The kill switch answers on a listener of its own, and hears a file; it contains
// and says how things stand, and nothing else.
func TestControl(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	h.restart(func() { h.config.Control = "unix:" + socket(t) })
	if info, err := os.Stat(strings.TrimPrefix(h.config.Control, "unix:")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v, want one of its owner alone", info, err)
	}
	stream := h.stream(h.accessToken(""))
	status, body := h.control(http.MethodPost, "/contain", map[string]string{"scope": "agent", "target": "bot", "reason": "a drill"})
	var done contained
	if err := json.Unmarshal(body, &done); status != http.StatusOK || err != nil || done.Zero <= 0 {
		t.Fatalf("containing by the control listener: %d %s", status, body)
	}
	h.dead("by the control listener", stream)
	if status, body := h.control(http.MethodGet, "/status", nil); status != http.StatusOK || !strings.Contains(string(body), done.Hold) || !strings.Contains(string(body), done.ID) {
		t.Errorf("the status: %d %s", status, body)
	}
	for what, c := range map[string]struct {
		method, path string
		body         any
		want         int
	}{
		"nobody":        {http.MethodPost, "/contain", map[string]string{"scope": "agent", "target": "nobody", "reason": "x"}, http.StatusNotFound},
		"no reason":     {http.MethodPost, "/contain", map[string]string{"scope": "everything"}, http.StatusUnprocessableEntity},
		"a planet":      {http.MethodPost, "/contain", map[string]string{"scope": "planet", "reason": "x"}, http.StatusUnprocessableEntity},
		"another word":  {http.MethodPost, "/contain", map[string]string{"scope": "everything", "reason": "x", "lift": "y"}, http.StatusUnprocessableEntity},
		"no tenant":     {http.MethodPost, "/contain", map[string]string{"tenant": "nobody", "scope": "tenant", "reason": "x"}, http.StatusNotFound},
		"lifting":       {http.MethodPost, "/lift", map[string]string{"hold": done.Hold}, http.StatusNotFound},
		"the API":       {http.MethodGet, "/v1/agents", nil, http.StatusNotFound},
		"a large body":  {http.MethodPost, "/contain", map[string]string{"scope": "everything", "reason": strings.Repeat("x", 8<<10)}, http.StatusUnprocessableEntity},
		"a long reason": {http.MethodPost, "/contain", map[string]string{"scope": "everything", "reason": strings.Repeat("x", 501)}, http.StatusUnprocessableEntity},
	} {
		if status, body := h.control(c.method, c.path, c.body); status != c.want {
			t.Errorf("%s: %d %s, want %d", what, status, body, c.want)
		}
	}
	h.must(http.MethodPost, "/v1/agents/bot/holds/"+done.Hold+"/lift", map[string]string{"reason": "the drill is over"}, nil)

	// The file says what, and otherwise it is everything.
	file := filepath.Join(h.config.Data, "contain")
	for _, c := range []struct{ text, scope, name string }{
		{"agent bot\nIt sends mail\nto strangers\n", "agent", "contained-ctn_"},
		{"", "everything", "contained-ctn_"},
		{"agent nobody\n", "", "contain.failed"},
	} {
		stream := h.stream(h.accessToken(""))
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		h.until("the file is taken", func() bool {
			_, err := os.Stat(file)
			return os.IsNotExist(err)
		})
		left, err := filepath.Glob(filepath.Join(h.config.Data, c.name+"*"))
		if err != nil || len(left) == 0 {
			t.Fatalf("after %q the file is called %v, %v, want %s…", c.text, left, err, c.name)
		}
		if c.scope == "" {
			_ = stream.Close()
			continue
		}
		h.dead("by the file", stream)
		var list struct{ Items []contained }
		h.must(http.MethodGet, "/v1/containments?limit=1", nil, &list)
		if len(list.Items) != 1 || list.Items[0].Scope != c.scope {
			t.Errorf("the file %q: %+v, want that a %s is contained", c.text, list.Items, c.scope)
		}
		var lifted struct{ State string }
		h.must(http.MethodPost, "/v1/holds/"+list.Items[0].Hold+"/lift", map[string]string{"reason": "the drill is over"}, &lifted)
		if lifted.State != "lifted" {
			t.Errorf("a hold is lifted by an administrator who is alone: %+v", lifted)
		}
		for _, name := range left {
			_ = os.Remove(name)
		}
	}

	// On an address it asks for a token, which lies in the data directory.
	h.restart(func() { h.config.Control = freeAddr(t) })
	if status, body := h.control(http.MethodGet, "/status", nil); status != http.StatusUnauthorized {
		t.Errorf("the status without a token: %d %s, want 401", status, body)
	}
	token, err := os.ReadFile(filepath.Join(h.config.Data, "control-token"))
	if err != nil {
		t.Fatal(err)
	}
	if status, body := h.control(http.MethodGet, "/status", nil, "Authorization", "Bearer "+strings.TrimSpace(string(token))); status != http.StatusOK {
		t.Errorf("the status with the token: %d %s", status, body)
	}
}

// Under load, with 200 streams and 20 agents that act by delegation, the kill
// switch answers on its own listener; no call that begins 100 ms after the answer
// is allowed, and the streams are dead within a second. On a machine that is busy
// with other tests both get ten times as long (M33).
func TestContainUnderLoad(t *testing.T) {
	const streams, helpers, callers = 200, 20, 16
	const refused, dead = time.Second, 10 * time.Second // the generous bounds; what was measured is printed
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		h.restart(func() { h.config.Control = "unix:" + socket(t) })
		token := h.accessToken(h.openSession())
		tokens := []string{token}
		for n := range helpers {
			tokens = append(tokens, h.helperNamed(fmt.Sprintf("helper-%d", n)).exchange(token))
		}
		transport := &http.Transport{MaxIdleConnsPerHost: streams + callers}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport}
		get := func(path, token string) (*http.Response, error) {
			req, err := http.NewRequest(http.MethodGet, "http://"+h.addr+path, nil)
			if err != nil {
				return nil, err
			}
			req.Header.Set("Authorization", "Bearer "+token)
			return client.Do(req)
		}
		var ends, open sync.WaitGroup
		var mu sync.Mutex
		var died []time.Time
		for n := range streams {
			open.Add(1)
			ends.Go(func() {
				res, err := get("/u/crm/v1/slow", tokens[n%len(tokens)])
				open.Done()
				if err != nil || res.StatusCode != http.StatusOK {
					t.Errorf("stream %d: %v %v", n, res, err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				mu.Lock()
				defer mu.Unlock()
				died = append(died, time.Now())
			})
		}
		open.Wait()
		stop := make(chan struct{})
		var hammering sync.WaitGroup
		var last atomic.Int64 // when the last call began that was allowed
		var calls atomic.Int64
		for n := range callers {
			hammering.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					began := time.Now()
					res, err := get("/u/crm/v1/items/7", tokens[n%len(tokens)])
					if err != nil {
						continue
					}
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
					calls.Add(1)
					if res.StatusCode == http.StatusOK {
						for at := began.UnixNano(); ; {
							was := last.Load()
							if was >= at || last.CompareAndSwap(was, at) {
								break
							}
						}
					}
				}
			})
		}
		h.until("the callers are under way", func() bool { return calls.Load() > 200 })
		asked := time.Now()
		status, body := h.control(http.MethodPost, "/contain", map[string]string{"scope": "blueprint", "target": "support", "reason": "a drill under load"})
		answered := time.Now()
		var done contained
		if err := json.Unmarshal(body, &done); status != http.StatusOK || err != nil || done.Zero <= 0 {
			t.Fatalf("containing under load: %d %s", status, body)
		}
		ends.Wait()
		after := calls.Load() + 200
		h.until("the callers have gone on", func() bool { return calls.Load() > after })
		close(stop)
		hammering.Wait()
		late := time.Unix(0, last.Load()).Sub(answered)
		lived := slices.MaxFunc(died, time.Time.Compare).Sub(answered)
		t.Logf("answered after %s with %s to zero, %d connections cut; the last call that was allowed began %s after the answer, the last stream died %s after it, %d calls",
			answered.Sub(asked).Round(time.Microsecond), time.Duration(done.Zero)*time.Microsecond, done.count("connections"), late.Round(time.Microsecond), lived.Round(time.Microsecond), calls.Load())
		if late > refused {
			t.Errorf("a call was allowed that began %s after the answer", late)
		}
		if lived > dead || len(died) != streams {
			t.Errorf("%d streams died, the last of them %s after the answer, want %d within a second", len(died), lived, streams)
		}
		if done.count("connections") < streams {
			t.Errorf("%d connections were cut, want at least %d", done.count("connections"), streams)
		}
	})
}

// What who runs the server contains reaches another organisation, also on another
// node, and is nothing that the organisation can lift; what an organisation
// contains reaches nobody else.
func TestContainAcross(t *testing.T) {
	h := build(t, dbtest.Postgres(t))
	acme := h.found("acme", "127.0.0.0/8")
	acme.apply()
	second := h.node()
	there := *acme
	there.addr = second.addr + "/t/acme"
	item := func(at *house, token string) int {
		status, _ := at.do(http.MethodGet, "/u/crm/v1/items/7", token, nil)
		return status
	}
	for _, c := range []struct{ scope, target string }{{"tenant", "acme"}, {"everything", ""}} {
		session := acme.openSession()
		token, own := acme.accessToken(session), h.accessToken("")
		second.until("the other node takes the token", func() bool { return item(&there, token) == http.StatusOK })
		stream := there.stream(token)
		var done contained
		h.must(http.MethodPost, "/v1/containments", map[string]string{"scope": c.scope, "target": c.target, "reason": "a drill"}, &done)
		h.dead(c.scope+", on another node", stream)
		second.until("the other node refuses the token", func() bool { return item(&there, token) == http.StatusUnauthorized })
		if status := acme.tokenStatus(); status == http.StatusOK {
			t.Errorf("a token of acme after the containment of %s", c.scope)
		}
		if want := map[string]int{"tenant": http.StatusOK, "everything": http.StatusUnauthorized}[c.scope]; item(h, own) != want {
			t.Errorf("a token of the default tenant after the containment of %s: want %d", c.scope, want)
		}
		var ended struct{ State string }
		acme.must(http.MethodGet, "/v1/sessions/"+session, nil, &ended)
		if ended.State != "ended" {
			t.Errorf("a session of acme after the containment of %s is %s", c.scope, ended.State)
		}
		if status, body := acme.do(http.MethodPost, "/v1/holds/"+done.Hold+"/lift", acme.token, map[string]string{"reason": "mine"}); h.code(body) != "hold_not_found" {
			t.Errorf("acme lifts what it did not raise: %d %s", status, body)
		}
		h.must(http.MethodPost, "/v1/holds/"+done.Hold+"/lift", map[string]string{"reason": "the drill is over"}, nil)
		h.until("acme goes on", func() bool { return acme.tokenStatus() == http.StatusOK })
	}
	for what, in := range map[string]map[string]string{
		"everything":         {"scope": "everything", "reason": "mine"},
		"the default tenant": {"scope": "tenant", "target": "default", "reason": "mine"},
		"a tenant of others": {"scope": "tenant", "target": "nobody", "reason": "mine"},
	} {
		if status, body := acme.do(http.MethodPost, "/v1/containments", acme.token, in); h.code(body) != "kernel_installation" {
			t.Errorf("acme contains %s: %d %s", what, status, body)
		}
	}
	own := h.accessToken("")
	var done contained
	acme.must(http.MethodPost, "/v1/containments", map[string]string{"scope": "tenant", "reason": "we are looking"}, &done)
	if status := acme.tokenStatus(); status == http.StatusOK {
		t.Error("a token of acme after it has contained itself")
	}
	if item(h, own) != http.StatusOK {
		t.Error("what acme contains reaches the default tenant")
	}
}

// What people do on the page of the kill switch is what they may by policy: an
// operator contains and asks that it goes on; who has no role stops their own
// agents alone; the pages of another tenant know none of it.
func TestContainOnThePage(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		enter := func(name string, roles ...string) *pagetest.Browser {
			t.Helper()
			h.must(http.MethodPost, "/v1/people", map[string]any{"name": name, "roles": roles}, nil)
			var invitation struct{ Token string }
			h.must(http.MethodPost, "/v1/people/"+name+"/invitations", map[string]int{}, &invitation)
			at, err := url.Parse("http://" + h.addr)
			if err != nil {
				t.Fatal(err)
			}
			b := pagetest.New(t, httputil.NewSingleHostReverseProxy(at), h.issuer())
			start := b.Send(b.Load("/login/invitation"), "/login/invitation", "invitation", invitation.Token)
			if end := b.Send(start, "/login/enrol", "label", "phone"); end.Status != http.StatusOK {
				t.Fatalf("%s could not enrol: %d %s", name, end.Status, end.Body)
			}
			return b
		}
		look := func(b *pagetest.Browser, scope, name string) *pagetest.Page {
			t.Helper()
			return b.Send(b.Go("/contain"), "/contain/look", "scope", scope, "name", name, "reason", "it sends customers to strangers")
		}
		olga, nick := enter("olga", "operator"), enter("nick")
		for who, b := range map[string]*pagetest.Browser{"an operator": olga, "somebody without a role": nick} {
			if p := b.Go("/login/you"); !strings.Contains(p.Body, `href="/contain"`) {
				t.Errorf("the page of %s has no link to the kill switch:\n%s", who, p.Body)
			}
			if p := b.Go("/contain"); p.Status != http.StatusOK || strings.Contains(p.Body, `value="everything"`) {
				t.Errorf("%s is offered to contain everything: %d\n%s", who, p.Status, p.Body)
			}
			if p := look(b, "everything", ""); p.Status != http.StatusForbidden {
				t.Errorf("%s contains everything: %d, want 403", who, p.Status)
			}
		}
		if p := look(nick, "agent", h.agent); p.Status != http.StatusForbidden {
			t.Errorf("somebody without a role contains another's agent: %d, want 403", p.Status)
		}
		if p := look(nick, "person", "me"); !strings.Contains(p.Body, "<dt>Agents</dt><dd>0,") {
			t.Errorf("somebody who sponsors nothing would contain\n%s", p.Body)
		}

		stream := h.stream(h.accessToken(h.openSession()))
		p := look(olga, "agent", "bot")
		if !strings.Contains(p.Body, "<dt>Open sessions</dt><dd>1,") || !strings.Contains(p.Body, "<dd>1 calls and streams") {
			t.Errorf("what would be contained is\n%s", p.Body)
		}
		done := olga.Send(p, "/contain/now")
		h.dead("contained on the page", stream)
		if h.tokenStatus() == http.StatusOK || !strings.Contains(done.Body, "Nothing of it can act any more") {
			t.Errorf("containing: %d\n%s", done.Status, done.Body)
		}
		var list struct{ Items []contained }
		h.must(http.MethodGet, "/v1/containments", nil, &list)
		if len(list.Items) != 1 {
			t.Fatalf("there are %+v", list.Items)
		}
		certificate := olga.Load("/contain/done/" + list.Items[0].ID + "/certificate")
		if report := attest.Verify([]byte(certificate.Body), h.trust()); certificate.Status != http.StatusOK || !report.OK() {
			t.Errorf("the certificate: %d\n%s", certificate.Status, report)
		}
		if p := nick.Go("/contain"); strings.Contains(p.Body, "it sends customers") {
			t.Errorf("somebody without a role sees what is contained:\n%s", p.Body)
		}
		if p := olga.Load("/t/default/contain"); p.Status != http.StatusNotFound {
			t.Errorf("the pages of a tenant that there is not: %d", p.Status)
		}
		at := "/contain/hold/" + list.Items[0].Hold
		asked := olga.Post(at+"/lift", olga.Fill(olga.Go(at), at+"/lift", "reason", "the prompt was mended"))
		id, ok := strings.CutPrefix(asked.Header.Get("Location"), "/approve/")
		if p := olga.Go("/approve/" + id); !ok || p.Status != http.StatusOK || !strings.Contains(p.Body, "the prompt was mended") {
			t.Errorf("asking that it goes on: %d to %q, whose page is %d\n%s", asked.Status, asked.Header.Get("Location"), p.Status, p.Body)
		}
		h.must(http.MethodPost, "/v1/access/requests/"+id+"/approve", map[string]any{}, nil)
		if h.tokenStatus() != http.StatusOK {
			t.Error("after somebody else approved that it goes on, there is no token")
		}
	})
}
