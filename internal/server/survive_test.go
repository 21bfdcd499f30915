package server_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"estover.dev/internal/server"
)

// A scene is a session of an agent of its own, with all that can belong to one.
type scene struct {
	*house
	name, id, secret string // the agent
	sponsor          string
	session, parent  string
	brief            bool // its time is nearly over
	cert             tls.Certificate
	helper           *helper
	sockets          string // the host of an upstream with WebSockets

	// whole is the test of all scenes. Upstreams serve until it ends: a port that
	// is free again could be another scene's, and a host belongs to one resource.
	whole testing.TB
}

// scene makes an agent with a sponsor, and opens a session of it.
func (h *house) scene(t *testing.T, n int64, p *helper, sockets string, wish map[string]any) *scene {
	t.Helper()
	at := *h
	at.t = t
	_, brief := wish["ttl_seconds"]
	s := &scene{brief: brief, sockets: sockets, house: &at, name: fmt.Sprintf("bot-%d", n), sponsor: fmt.Sprintf("sponsor-%d", n), whole: h.t}
	s.helper = &helper{&at, p.id, p.secret}
	s.must(http.MethodPost, "/v1/apply", map[string]any{"set": s.name, "files": []map[string]string{{"path": "scene.yaml", "text": fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Person
metadata: {name: %[2]s}
spec: {roles: [operator]}
---
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: %[1]s}
spec: {blueprint: support, sponsor: %[2]s, purposes: [support], clearance: confidential}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: %[1]s-reads}
spec: {agent: %[1]s, resource: crm, actions: [item.read, slow.read], purposes: [support], class: confidential}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: %[1]s-talks}
spec: {agent: %[1]s, resource: sockets, actions: [talk], purposes: [support], class: confidential}
`, s.name, s.sponsor)}}}, nil)
	var c struct {
		ID string `json:"client_id"`
		S  string `json:"client_secret"`
	}
	s.must(http.MethodPost, "/v1/agents/"+s.name+"/credentials", map[string]string{"kind": "secret"}, &c)
	s.id, s.secret = c.ID, c.S
	s.agent, s.house.secret = c.ID, c.S
	var thumbprint string
	s.cert, thumbprint = certificate(t)
	body := map[string]any{"agent": s.name, "purpose": "support", "certificate_thumbprint": thumbprint}
	for k, v := range wish {
		body[k] = v
	}
	var opened struct{ Session struct{ ID string } }
	if body["parent"] == true {
		s.must(http.MethodPost, "/v1/sessions", map[string]any{"agent": s.name, "purpose": "support"}, &opened)
		s.parent, body["parent"] = opened.Session.ID, opened.Session.ID
	}
	s.must(http.MethodPost, "/v1/sessions", body, &opened)
	s.session = opened.Session.ID
	return s
}

// form posts a form and gives the answer's members.
func (s *scene) form(path string, f url.Values) (int, map[string]any) {
	s.t.Helper()
	res, err := http.PostForm("http://"+s.addr+path, f)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	var answer map[string]any
	_ = json.NewDecoder(res.Body).Decode(&answer) // some answers have no body
	return res.StatusCode, answer
}

// apiTokenIn is a token of the agent for the server itself, in the session.
func (s *scene) apiTokenIn() string {
	s.t.Helper()
	return s.tokenFor(s.session, s.config.Issuer)
}

// active reports whether a token is, as the resource hears that it is for.
func (s *scene) active(token string) bool {
	_, answer := s.form("/oauth/introspect", url.Values{"token": {token}, "client_id": {s.helper.id}, "client_secret": {s.helper.secret}})
	return answer["active"] == true
}

func (s *scene) calls(token string) bool {
	status, _ := s.do(http.MethodGet, "/u/crm/v1/items/7", token, nil)
	return status == http.StatusOK
}

// flows reports, as long as it is asked, whether a stream goes on.
func flows(r io.ReadCloser, t testing.TB) func() bool {
	t.Cleanup(func() { _ = r.Close() })
	var over atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, r)
		over.Store(true)
	}()
	return func() bool { return !over.Load() }
}

// belongs are the kinds of things that belong to sessions, by the part that ends
// them. What is made reports whether it still works.
var belongs = []struct {
	part, name string
	make       func(s *scene) func() bool
}{
	{"grants", "a token at the gateway", func(s *scene) func() bool {
		token := s.accessToken(s.session)
		return func() bool { return s.calls(token) }
	}},
	{"grants", "a token at introspection", func(s *scene) func() bool {
		token := s.accessToken(s.session)
		return func() bool { return s.active(token) }
	}},
	{"grants", "another token in the session", func(s *scene) func() bool {
		return func() bool {
			_, answer := s.form("/oauth/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {s.id}, "client_secret": {s.secret}, "session": {s.session}, "resource": {s.upstream.URL}})
			return answer["access_token"] != nil
		}
	}},
	{"grants", "the exchange of a token", func(s *scene) func() bool {
		token := s.accessToken(s.session)
		return func() bool {
			_, answer := s.form("/oauth/token", url.Values{
				"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {s.helper.id}, "client_secret": {s.helper.secret},
				"subject_token": {token}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
			})
			return answer["access_token"] != nil
		}
	}},
	{"grants", "what was handed on", func(s *scene) func() bool {
		token := s.helper.exchange(s.accessToken(s.session))
		return func() bool { return s.calls(token) }
	}},
	{"grants", "a token in a session within it", func(s *scene) func() bool {
		var opened struct{ Session struct{ ID string } }
		s.must(http.MethodPost, "/v1/sessions", map[string]any{"agent": "helper", "purpose": "support", "parent": s.session}, &opened)
		_, answer := s.form("/oauth/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {s.helper.id}, "client_secret": {s.helper.secret}, "session": {opened.Session.ID}, "resource": {s.upstream.URL}})
		token, _ := answer["access_token"].(string)
		return func() bool { return s.calls(token) }
	}},
	{"connections", "a stream on a route", func(s *scene) func() bool {
		return flows(s.stream(s.accessToken(s.session)), s.t)
	}},
	{"connections", "a stream of what was handed on", func(s *scene) func() bool {
		return flows(s.stream(s.helper.exchange(s.accessToken(s.session))), s.t)
	}},
	{"connections", "a stream through the forward proxy", func(s *scene) func() bool {
		conn, err := tls.Dial("tcp", s.config.Gateway, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{s.cert}, NextProtos: []string{"http/1.1"}})
		if err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s/v1/slow HTTP/1.1\r\nHost: %s\r\n\r\n", s.upstream.URL, strings.TrimPrefix(s.upstream.URL, "http://"))
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || res.StatusCode != http.StatusOK {
			s.t.Fatalf("a stream through the forward proxy: %v %v", res, err)
		}
		return flows(struct {
			io.Reader
			io.Closer
		}{res.Body, conn}, s.t)
	}},
	{"connections", "a WebSocket through the forward proxy", func(s *scene) func() bool {
		conn, err := tls.Dial("tcp", s.config.Gateway, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{s.cert}, NextProtos: []string{"http/1.1"}})
		if err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET http://%s/v1/talk HTTP/1.1\r\nHost: %[1]s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://%[1]s\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", s.sockets)
		in := bufio.NewReader(conn)
		if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
			s.t.Fatalf("a WebSocket through the forward proxy: %v %v", res, err)
		}
		return flows(struct {
			io.Reader
			io.Closer
		}{in, conn}, s.t)
	}},
	{"connections", "the session's certificate", func(s *scene) func() bool {
		return func() bool {
			conn, err := tls.Dial("tcp", s.config.Gateway, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{s.cert}, NextProtos: []string{"http/1.1"}})
			if err != nil {
				return false
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(conn, "GET %s/v1/items/7 HTTP/1.1\r\nHost: %s\r\n\r\n", s.upstream.URL, strings.TrimPrefix(s.upstream.URL, "http://"))
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return false
			}
			defer res.Body.Close()
			return res.StatusCode == http.StatusOK
		}
	}},
	{"leases", "a key that was made for it", func(s *scene) func() bool {
		keys := newKeys()
		api := httptest.NewServer(keys)
		s.t.Cleanup(api.Close)
		path := "targets/" + s.name
		s.must(http.MethodPost, "/v1/secrets", map[string]any{"path": path, "class": "restricted", "risk": "high", "owner": "", "description": "", "destinations": []string{strings.TrimPrefix(api.URL, "http://")}}, nil)
		s.must(http.MethodPost, "/v1/secret/versions?path="+url.QueryEscape(path), map[string]any{"fields": map[string]string{"value": keys.admin}}, nil)
		s.must(http.MethodPost, "/v1/secret-engines", map[string]any{
			"name": s.name, "kind": "httpkey", "address": api.URL, "admin": path, "options": map[string]string{
				"create": "POST /keys", "create_body": `{"name": "{{name}}"}`, "key": "/key", "list": "GET /keys?name={{name}}", "items": "/keys",
				"item_name": "/name", "item_id": "/id", "delete": "DELETE /keys/{{id}}", "try": "GET /me", "tls": "off",
			},
		}, nil)
		var role struct{ Ready bool }
		s.must(http.MethodPut, "/v1/lease-roles/"+s.name, map[string]any{"name": s.name, "target": s.name, "resource": "crm", "action": "item.read", "delivery": "plaintext"}, &role)
		if !role.Ready {
			s.t.Fatalf("the role is not ready")
		}
		status, body := s.do(http.MethodPost, "/v1/leases", s.apiTokenIn(), map[string]any{"role": s.name})
		var x struct {
			Session string
			Values  map[string]string
		}
		if err := json.Unmarshal(body, &x); err != nil || status != http.StatusOK || x.Session != s.session || x.Values["key"] == "" && x.Values["password"] == "" {
			s.t.Fatalf("a lease of the agent: %d %s", status, body)
		}
		return func() bool { return keys.good(x.Values["key"] + x.Values["password"]) }
	}},
	{"certificates", "a certificate that was made for it", func(s *scene) func() bool {
		s.must(http.MethodPost, "/v1/pki/authorities", map[string]any{"name": s.name}, nil)
		s.must(http.MethodPut, "/v1/pki/roles/"+s.name, map[string]any{
			"authority": s.name, "resource": "crm", "action": "item.read", "ttl": 600, "max_ttl": 600,
			"x509": map[string]any{"domains": []string{s.name + ".example.com"}, "bare": true, "client": true},
		}, nil)
		status, body := s.do(http.MethodPost, "/v1/pki/roles/"+s.name+"/issue", s.apiTokenIn(), map[string]any{"common_name": s.name + ".example.com"})
		var c struct{ Serial string }
		if json.Unmarshal(body, &c) != nil || status != http.StatusOK || c.Serial == "" {
			s.t.Fatalf("a certificate of the agent: %d %s", status, body)
		}
		return func() bool {
			var one struct {
				Revoked time.Time `json:"revoked_at"`
				End     time.Time `json:"not_after"`
			}
			s.must(http.MethodGet, "/v1/pki/certificates/"+url.PathEscape(c.Serial), nil, &one)
			return one.Revoked.IsZero() && time.Now().Before(one.End)
		}
	}},
	{"tickets", "a token of the door for clients of Vault", func(s *scene) func() bool {
		door := func(method, path, token string) (int, []byte) {
			s.t.Helper()
			return s.do(method, "/vault/v1/auth/token/"+path, "", map[string]any{}, "X-Vault-Token", token)
		}
		status, body := door(http.MethodPost, "create", s.apiTokenIn())
		var made struct {
			Auth struct {
				Token string `json:"client_token"`
			}
		}
		if json.Unmarshal(body, &made) != nil || status != http.StatusOK || made.Auth.Token == "" {
			s.t.Fatalf("a ticket of the agent: %d %s", status, body)
		}
		return func() bool {
			status, _ := door(http.MethodGet, "lookup-self", made.Auth.Token)
			return status == http.StatusOK
		}
	}},
	{"upstream_tokens", "the handle of a token of an upstream", func(s *scene) func() bool {
		up := newIssuing(s.whole)
		name := s.name + "-idp"
		s.must(http.MethodPost, "/v1/apply", map[string]any{"set": name, "files": []map[string]string{{"path": "idp.yaml", "text": fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: %[1]s}
spec:
  base_url: %[2]s
  allow_private: [127.0.0.0/8]
  class: confidential
  actions: [{name: key.get, method: POST, path: /keys, tokens: [token]}, {name: me.read, method: GET, path: /me}]
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: %[1]s}
spec: {agent: %[3]s, resource: %[1]s, actions: [key.get, me.read], purposes: [support], class: confidential}
`, name, up.URL, s.name)}}}, nil)
		token := s.tokenFor(s.session, up.URL)
		var key struct{ Installation struct{ Token string } }
		status, body := s.do(http.MethodPost, "/u/"+name+"/keys", token, map[string]string{})
		if json.Unmarshal(body, &key) != nil || status != http.StatusCreated || !strings.HasPrefix(key.Installation.Token, "est_tk_") {
			s.t.Fatalf("the key of an upstream: %d %s", status, body)
		}
		return func() bool {
			status, _ := s.do(http.MethodGet, "/u/"+name+"/me", token, nil, "Estover-Upstream-Token", key.Installation.Token)
			return status == http.StatusOK
		}
	}},
	{"mandates", "a grant of the session", func(s *scene) func() bool {
		var g struct{ ID string }
		s.must(http.MethodPost, "/v1/grants", map[string]any{
			"name": s.name + "-changes", "agent": s.name, "resource": "crm", "actions": []string{"item.change"}, "purposes": []string{"support"},
			"class": "confidential", "session": s.session,
		}, &g)
		return func() bool {
			var one struct {
				Ended time.Time `json:"ended_at"`
			}
			s.must(http.MethodGet, "/v1/grants/"+g.ID, nil, &one)
			return one.Ended.IsZero()
		}
	}},
	{"requests", "a request that waits for people", func(s *scene) func() bool {
		if s.brief { // nobody may ask in a session that is about to end
			return func() bool { return false }
		}
		var r struct{ ID, State string }
		s.must(http.MethodPost, "/v1/access/requests", map[string]any{
			"agent": s.name, "session": s.session, "purpose": "support", "reason": "the customer wants it gone",
			"items": []map[string]any{{"resource": "crm", "actions": []string{"item.delete"}}},
		}, &r)
		return func() bool {
			s.must(http.MethodGet, "/v1/access/requests/"+r.ID, nil, &r)
			return r.State == "pending"
		}
	}},
	{"recordings", "the count of its calls", func(s *scene) func() bool {
		token := s.accessToken(s.session)
		s.calls(token)
		return func() bool { // goes on until the closing statement says how many there were
			var events struct{ Items []any }
			s.must(http.MethodGet, "/v1/events?action=session.close&session="+s.session, nil, &events)
			return len(events.Items) == 0
		}
	}},
}

// keys is an HTTP API that has keys.
type keys struct {
	admin string
	mu    sync.Mutex
	made  map[string]string // by name
}

func newKeys() *keys { return &keys{admin: "the key of all keys", made: map[string]string{}} }

func (k *keys) good(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, have := range k.made {
		if have == key {
			return true
		}
	}
	return false
}

func (k *keys) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	presented := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if r.URL.Path == "/me" && k.good(presented) {
		return
	}
	if presented != k.admin {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	type key struct {
		ID   string `json:"id"`
		Name string `json:"name"`
		Key  string `json:"key,omitempty"`
	}
	switch r.Method {
	case http.MethodPost:
		var in key
		if json.NewDecoder(r.Body).Decode(&in) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		k.made[in.Name] = "key of " + in.Name
		_ = json.NewEncoder(w).Encode(key{in.Name, in.Name, k.made[in.Name]})
	case http.MethodGet:
		list := []key{}
		for name := range k.made {
			list = append(list, key{ID: name, Name: name})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": list})
	case http.MethodDelete:
		delete(k.made, strings.TrimPrefix(r.URL.Path, "/keys/"))
		w.WriteHeader(http.StatusNoContent)
	}
}

// ends are how a session ends. Each is over when the session has ended.
var ends = []struct {
	name string
	wish map[string]any // of the session
	end  func(s *scene)
}{
	{"nothing happens", nil, nil},
	{"ended by the agent", nil, func(s *scene) {
		if status, body := s.do(http.MethodPost, "/v1/sessions/"+s.session+"/end", s.apiToken(), map[string]string{"cause": "the command ended"}); status >= 300 {
			s.t.Fatalf("the agent ends its session: %d %s", status, body)
		}
	}},
	{"ended by a person", nil, func(s *scene) {
		s.must(http.MethodPost, "/v1/sessions/"+s.session+"/end", map[string]string{"cause": "enough"}, nil)
	}},
	{"its time is over", map[string]any{"ttl_seconds": 3}, func(s *scene) { s.gone() }},
	{"what it is a part of is ended", map[string]any{"parent": true}, func(s *scene) {
		s.must(http.MethodPost, "/v1/sessions/"+s.parent+"/end", map[string]string{"cause": "enough"}, nil)
	}},
	{"the agent is contained", nil, func(s *scene) {
		s.must(http.MethodPost, "/v1/containments", map[string]string{"agent": s.name, "reason": "a drill"}, nil)
	}},
	{"the agent is suspended", nil, func(s *scene) {
		s.must(http.MethodPost, "/v1/agents/"+s.name+"/holds", map[string]string{"kind": "suspended", "reason": "a test"}, nil)
	}},
	{"the agent is retired", nil, func(s *scene) {
		s.must(http.MethodPost, "/v1/agents/"+s.name+"/holds", map[string]string{"kind": "retired", "reason": "a test"}, nil)
	}},
	{"the agent's time is over", nil, func(s *scene) {
		s.change(s.name, s.name, s.sponsor, map[string]string{"expires_at": time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)})
		s.gone()
	}},
	{"the sponsor has gone", nil, func(s *scene) {
		s.must(http.MethodPost, "/v1/people/"+s.sponsor+"/disable", map[string]string{"reason": "left"}, nil)
	}},
}

// change registers an agent anew, with something that is otherwise.
func (h *house) change(set, agent, sponsor string, to map[string]string) {
	h.t.Helper()
	spec := map[string]string{"blueprint": "support", "sponsor": sponsor, "purposes": "[support]", "clearance": "confidential"}
	for member, v := range to {
		spec[member] = v
	}
	text := "apiVersion: estover.dev/v1\nkind: Agent\nmetadata: {name: " + agent + "}\nspec:\n"
	for member, v := range spec {
		text += "  " + member + ": " + v + "\n"
	}
	h.must(http.MethodPost, "/v1/apply", map[string]any{"set": set, "files": []map[string]string{{"path": "change.yaml", "text": text}}}, nil)
}

// gone waits until the session has been ended by a sweep.
func (s *scene) gone() {
	s.t.Helper()
	s.until("the session has ended", func() bool {
		var one struct {
			Ended time.Time `json:"ended_at"`
		}
		s.must(http.MethodGet, "/v1/sessions/"+s.session, nil, &one)
		return !one.Ended.IsZero()
	})
}

// However a session ends, nothing that belongs to it survives: every kind of
// thing that there is, and all of it works as long as nothing happens.
func TestNothingSurvivesASession(t *testing.T) {
	var tried []string
	for _, b := range belongs {
		if !slices.Contains(tried, b.part) {
			tried = append(tried, b.part)
		}
	}
	parts := server.Belonging()
	slices.Sort(tried)
	slices.Sort(parts)
	if !slices.Equal(tried, parts) {
		t.Errorf("what belongs to a session are %v, and tried are %v: a kind of thing is missing here", parts, tried)
	}
	each(t, func(t *testing.T, h *house) {
		p := h.helper()
		talk := httptest.NewServer(websocket.Handler(func(c *websocket.Conn) { _, _ = io.Copy(io.Discard, c) }))
		t.Cleanup(talk.Close)
		sockets := strings.TrimPrefix(talk.URL, "http://")
		h.must(http.MethodPost, "/v1/apply", map[string]any{"set": "sockets", "files": []map[string]string{{"path": "sockets.yaml", "text": `
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: sockets}
spec:
  base_url: ` + talk.URL + `
  allow_private: [127.0.0.0/8]
  class: confidential
  actions: [{name: talk, method: GET, path: /v1/talk}]
`}}}, nil)
		var n atomic.Int64
		for _, c := range ends {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := h.scene(t, n.Add(1), p, sockets, c.wish)
				works := make([]func() bool, len(belongs))
				var wg sync.WaitGroup
				for i, b := range belongs {
					works[i] = b.make(s)
				}
				if c.end == nil {
					for i, b := range belongs {
						if !works[i]() {
							t.Errorf("%s does not work although nothing has happened", b.name)
						}
					}
					return
				}
				c.end(s)
				ended := time.Now()
				for i, b := range belongs {
					wg.Go(func() {
						for works[i]() {
							if time.Since(ended) > 5*soon {
								t.Errorf("%s works after the end of its session", b.name)
								return
							}
							time.Sleep(5 * time.Millisecond)
						}
					})
				}
				wg.Wait()
			})
		}
	})
}
