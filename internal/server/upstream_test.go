package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// An issuing upstream gives out tokens of its own, in every usual way, and wants them
// at its API.
type issuing struct {
	*httptest.Server
	mu      sync.Mutex
	n       int
	good    map[string]bool
	revoked []string
	grants  []string
}

func newIssuing(t testing.TB) *issuing {
	u := &issuing{good: map[string]bool{}}
	token := func(kind string) string {
		u.n++
		v := fmt.Sprintf("real-%s-token-%d", kind, u.n)
		u.good[v] = true
		return v
	}
	mux := http.NewServeMux()
	locked := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			u.mu.Lock()
			defer u.mu.Unlock()
			h(w, r)
		}
	}
	mux.HandleFunc("POST /token", locked(func(w http.ResponseWriter, r *http.Request) {
		u.grants = append(u.grants, r.FormValue("grant_type"))
		if r.FormValue("grant_type") == "refresh_token" && !u.good[r.FormValue("refresh_token")] {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if id, s, ok := r.BasicAuth(); !ok || id != "us" || s != "the-client-secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		json.NewEncoder(w).Encode(map[string]any{
			"access_token": token("access"), "refresh_token": token("refresh"), "id_token": token("id"), "token_type": "Bearer", "expires_in": 60, "scope": "a b",
		})
	}))
	mux.HandleFunc("POST /keys", locked(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		json.NewEncoder(w).Encode(map[string]any{"installation": map[string]any{"token": token("access"), "expires_at": "later"}})
	}))
	mux.HandleFunc("POST /revoke", locked(func(_ http.ResponseWriter, r *http.Request) { u.revoked = append(u.revoked, r.FormValue("token")) }))
	mux.HandleFunc("POST /revoke-json", locked(func(_ http.ResponseWriter, r *http.Request) {
		var in struct{ Token string }
		if json.NewDecoder(r.Body).Decode(&in) == nil {
			u.revoked = append(u.revoked, in.Token)
		}
	}))
	mux.HandleFunc("GET /me", locked(func(w http.ResponseWriter, r *http.Request) {
		value, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !strings.HasPrefix(value, "real-access-") || !u.good[value] {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "you are in, with %s", value)
	}))
	mux.HandleFunc("POST /say", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "said") })
	u.Server = httptest.NewServer(mux)
	t.Cleanup(u.Close)
	return u
}

// add puts more into the catalogue, and gives the bot a grant for each resource.
func (h *house) add(text string, resources ...string) {
	h.t.Helper()
	for _, r := range resources {
		text += fmt.Sprintf("\n---\napiVersion: estover.dev/v1\nkind: Grant\nmetadata: {name: bot-uses-%s}\nspec: {agent: bot, resource: %s, actions: [\"*\"], purposes: [support], class: confidential}\n", r, r)
	}
	h.must(http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "more.yaml", "text": text}}, "set": "more"}, nil)
}

// call sends a form, or a text, through the gateway as the bot.
func (h *house) call(token, method, path, kind, body string, header ...string) (int, string) {
	h.t.Helper()
	r, err := http.NewRequest(method, "http://"+h.addr+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode, b.String()
}

const formKind = "application/x-www-form-urlencoded"

// TestC8TokensOfUpstreams: what an upstream's token endpoint gives out stays here. The
// agent works with handles, at that upstream, in that session and in no other way; and
// no token is anywhere on the disk or in the log.
func TestC8TokensOfUpstreams(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up, other := newIssuing(t), newIssuing(t)
		resource := func(name string, u *issuing) string {
			return fmt.Sprintf(`
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: %[1]s/client}
spec: {destinations: ["%[2]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: %[1]s}
spec:
  base_url: http://%[2]s
  allow_private: [127.0.0.0/8]
  class: confidential
  slots: [{slot: basic, name: us, secret: %[1]s/client, actions: [token.get, token.end]}]
  actions:
    - {name: token.get, method: POST, path: /token}
    - {name: token.end, method: POST, path: /revoke}
    - {name: token.end, method: POST, path: /revoke-json}
    - {name: key.get, method: POST, path: /keys, tokens: [token]}
    - {name: me.read, method: GET, path: /me}
    - {name: say, method: POST, path: /say}
`, name, strings.TrimPrefix(u.URL, "http://"))
		}
		h.add(resource("idp", up)+resource("other", other), "idp", "other")
		for _, name := range []string{"idp", "other"} {
			h.must(http.MethodPost, "/v1/secret/versions?path="+name+"/client", map[string]any{"fields": map[string]string{"value": "the-client-secret"}}, nil)
		}
		session := h.openSession()
		token := h.tokenFor(session, up.URL)
		get := func(form url.Values) (handles map[string]any) {
			t.Helper()
			status, body := h.call(token, http.MethodPost, "/u/idp/token", formKind, form.Encode())
			if status != 200 || json.Unmarshal([]byte(body), &handles) != nil || strings.Contains(body, "real-") {
				t.Fatalf("the token endpoint answers %d %s", status, body)
			}
			return handles
		}
		one := get(url.Values{"grant_type": {"client_credentials"}})
		access, _ := one["access_token"].(string)
		refresh, _ := one["refresh_token"].(string)
		if !strings.HasPrefix(access, "est_tk_") || !strings.HasPrefix(refresh, "est_tk_") || !strings.HasPrefix(fmt.Sprint(one["id_token"]), "est_tk_") || one["scope"] != "a b" || one["expires_in"] != 60.0 {
			t.Errorf("the agent gets %v", one)
		}
		// It opens the API, and an echo of the real one is cut out.
		if status, body := h.call(token, http.MethodGet, "/u/idp/me", "", "", "Estover-Upstream-Token", access); status != 200 || !strings.HasPrefix(body, "you are in, with ***") || strings.Contains(body, "real-") {
			t.Errorf("with the handle: %d %s", status, body)
		}
		// It is refreshed and revoked with handles.
		two := get(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}})
		if two["access_token"] == access {
			t.Errorf("refreshed, the handle is the same")
		}
		if status, body := h.call(token, http.MethodPost, "/u/idp/revoke", formKind, url.Values{"token": {access}, "token_type_hint": {"access_token"}}.Encode()); status != 200 || len(up.revoked) != 1 || !strings.HasPrefix(up.revoked[0], "real-access-") {
			t.Errorf("revoked: %d %s, the upstream got %v", status, body, up.revoked)
		}
		// So it is by clients that write JSON.
		if status, body := h.call(token, http.MethodPost, "/u/idp/revoke-json", "application/json", `{"token": "`+access+`", "why": 1.50}`); status != 200 || len(up.revoked) != 2 || !strings.HasPrefix(up.revoked[1], "real-access-") {
			t.Errorf("revoked in JSON: %d %s, the upstream got %v", status, body, up.revoked)
		}
		// A token that the catalogue names, at any depth.
		status, body := h.call(token, http.MethodPost, "/u/idp/keys", "application/json", "{}")
		var key struct{ Installation struct{ Token string } }
		if status != 201 || json.Unmarshal([]byte(body), &key) != nil || !strings.HasPrefix(key.Installation.Token, "est_tk_") {
			t.Errorf("a declared token: %d %s", status, body)
		}
		if status, body := h.call(token, http.MethodGet, "/u/idp/me", "", "", "Estover-Upstream-Token", key.Installation.Token); status != 200 {
			t.Errorf("with its handle: %d %s", status, body)
		}

		// Nowhere else, in no other place, and in no other session.
		otherToken := h.tokenFor(session, other.URL)
		elsewhere := h.openSession()
		for what, got := range map[string]func() (int, string){
			"at another resource": func() (int, string) {
				return h.call(otherToken, http.MethodGet, "/u/other/me", "", "", "Estover-Upstream-Token", access)
			},
			"in a form to another resource": func() (int, string) {
				return h.call(otherToken, http.MethodPost, "/u/other/token", formKind, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}.Encode())
			},
			"in another session": func() (int, string) {
				return h.call(h.tokenFor(elsewhere, up.URL), http.MethodGet, "/u/idp/me", "", "", "Estover-Upstream-Token", access)
			},
			"in a text": func() (int, string) {
				return h.call(token, http.MethodPost, "/u/idp/say", "text/plain", "my token is "+access)
			},
			"in another parameter": func() (int, string) {
				return h.call(token, http.MethodPost, "/u/idp/say", formKind, url.Values{"note": {access}}.Encode())
			},
			"deep in JSON": func() (int, string) {
				return h.call(token, http.MethodPost, "/u/idp/say", "application/json", `{"a": {"token": "`+access+`"}}`)
			},
			"in JSON with two readings": func() (int, string) {
				return h.call(token, http.MethodPost, "/u/idp/say", "application/json", `{"token": "`+access+`", "token": "`+access+`"}`)
			},
			"twice in one parameter": func() (int, string) {
				return h.call(token, http.MethodPost, "/u/idp/say", formKind, "token="+access+"&token="+access)
			},
			"in a query":  func() (int, string) { return h.call(token, http.MethodPost, "/u/idp/say?access_token="+access, "", "") },
			"in a header": func() (int, string) { return h.call(token, http.MethodGet, "/u/idp/me", "", "", "X-Note", access) },
			"made up": func() (int, string) {
				return h.call(token, http.MethodGet, "/u/idp/me", "", "", "Estover-Upstream-Token", "est_tk_aaaaaaaaaaaaaaaaaaaaaaaaaa")
			},
		} {
			if status, body := got(); status != http.StatusForbidden || h.code([]byte(body)) != "placeholder_misused" {
				t.Errorf("a handle %s: %d %s", what, status, body)
			}
		}
		if other.n != 0 {
			t.Errorf("the other upstream gave out %d tokens", other.n)
		}
		// Gone with the session.
		h.must(http.MethodPost, "/v1/sessions/"+session+"/end", map[string]string{}, nil)
		if status, body := h.call(token, http.MethodGet, "/u/idp/me", "", "", "Estover-Upstream-Token", access); status == 200 {
			t.Errorf("after the session: %d %s", status, body)
		}
		h.stop()
		if logs := h.logs.String(); strings.Contains(logs, "real-access-") || strings.Contains(logs, "est_tk_") {
			t.Error("the log has a token or a handle")
		}
		if err := filepath.WalkDir(h.config.Data, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if bytes.Contains(b, []byte("real-access-")) || bytes.Contains(b, []byte("real-refresh-")) {
				t.Errorf("%s has a token", path)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// tokenFor gets a token of a session for a resource.
func (h *house) tokenFor(session, at string) string {
	h.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {h.agent}, "client_secret": {h.secret}, "resource": {at}, "session": {session}}
	res, err := http.PostForm("http://"+h.addr+"/oauth/token", form)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
		Error string `json:"error_description"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token == "" {
		h.t.Fatalf("no token: %d %v %s", res.StatusCode, err, answer.Error)
	}
	return answer.Token
}

// TestConnections: a slot is filled with the token of a connection, which is renewed
// here; while there is none the agent is told who has to do what, and nothing is sent.
func TestConnections(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up := newIssuing(t)
		host := strings.TrimPrefix(up.URL, "http://")
		h.add(fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: mail/client}
spec: {destinations: ["%[1]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: mail}
spec:
  base_url: http://%[1]s
  allow_private: [127.0.0.0/8]
  class: confidential
  slots: [{slot: header, name: Authorization, prefix: "Bearer ", secret: "connection:mail", on_echo: rotate}]
  actions: [{name: me.read, method: GET, path: /me}]
`, host), "mail")
		h.must(http.MethodPost, "/v1/secret/versions?path=mail/client", map[string]any{"fields": map[string]string{"value": "the-client-secret"}}, nil)
		token := h.tokenFor(h.openSession(), up.URL)
		me := func() (int, string) { return h.call(token, http.MethodGet, "/u/mail/me", "", "") }
		if status, body := me(); status != http.StatusBadGateway || h.code([]byte(body)) != "secret_unavailable" || !strings.Contains(body, "no such connection") {
			t.Errorf("without the connection: %d %s", status, body)
		}
		spec := map[string]any{
			"name": "mail", "token_endpoint": up.URL + "/token", "authorization_endpoint": up.URL + "/auth", "client_id": "us", "secret": "mail/client",
			"destinations": []string{host}, "allow_private": true,
		}
		var c struct {
			State, Reason string
			Page          string `json:"authorize_url"`
			Generation    int64
		}
		h.must(http.MethodPut, "/v1/connections/mail", spec, &c)
		if c.State != "reauthorize" || !strings.HasSuffix(c.Page, "/connections/mail") {
			t.Errorf("it is %+v", c)
		}
		if status, body := me(); status != http.StatusBadGateway || h.code([]byte(body)) != "connection_reauthorize" || !strings.Contains(body, "estover connection authorize mail") {
			t.Errorf("before it is authorized: %d %s", status, body)
		}
		spec["grant"] = "client_credentials"
		h.must(http.MethodPut, "/v1/connections/mail", spec, &c)
		if c.State != "healthy" {
			t.Errorf("as a client for itself it is %+v", c)
		}
		if status, body := me(); status != 200 || !strings.HasPrefix(body, "you are in, with ***") {
			t.Errorf("with the connection: %d %s", status, body)
		}
		// The upstream sent the token back, so that another is in its place.
		before := c.Generation
		h.until("another token", func() bool {
			h.must(http.MethodGet, "/v1/connections/mail", nil, &c)
			return c.Generation > before
		})
		if status, body := me(); status != 200 {
			t.Errorf("with that: %d %s", status, body)
		}
		spec["client_id"] = "somebody else"
		h.must(http.MethodPut, "/v1/connections/mail", spec, &c)
		if status, body := me(); status != http.StatusBadGateway || h.code([]byte(body)) != "connection_misconfigured" || c.State != "misconfigured" || c.Reason == "" {
			t.Errorf("with a client that the provider does not know: %d %s (%+v)", status, body, c)
		}
		// Who may not, may not; and the destination is the connection's to say.
		alice := h.invite("alice")
		for what, got := range map[string]func() (int, []byte){
			"an operator adds one":    func() (int, []byte) { return h.do(http.MethodPut, "/v1/connections/mail", alice, spec) },
			"an operator removes one": func() (int, []byte) { return h.do(http.MethodDelete, "/v1/connections/mail", alice, nil) },
			"an agent looks at one":   func() (int, []byte) { return h.do(http.MethodGet, "/v1/connections/mail", token, nil) },
		} {
			if status, body := got(); status != http.StatusForbidden && status != http.StatusUnauthorized {
				t.Errorf("%s: %d %s", what, status, body)
			}
		}
		if status, body := h.do(http.MethodGet, "/v1/connections/mail", alice, nil); status != 200 || bytes.Contains(body, []byte("real-")) {
			t.Errorf("an operator looks at one: %d %s", status, body)
		}
		spec["client_id"], spec["destinations"] = "us", []string{"elsewhere.example"}
		h.must(http.MethodPut, "/v1/connections/mail", spec, &c)
		if status, body := me(); status != http.StatusBadGateway || !strings.Contains(body, "not among the destinations") {
			t.Errorf("with another destination: %d %s", status, body)
		}
		h.must(http.MethodDelete, "/v1/connections/mail", nil, nil)
		if status, _ := me(); status != http.StatusBadGateway {
			t.Errorf("removed: %d", status)
		}
	})
}

// TestShortSecret: what is too short to be found in answers is on record as such, once.
func TestShortSecret(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		h.must(http.MethodPost, "/v1/secret/versions?path=crm/key", map[string]any{"fields": map[string]string{"value": "short"}}, nil)
		token := h.accessToken(h.openSession())
		for range 3 {
			if status, _ := h.call(token, http.MethodGet, "/u/crm/v1/items/1", "", ""); status != http.StatusUnauthorized {
				t.Errorf("with another key the upstream answers %d", status)
			}
		}
		h.until("the warning is on record", func() bool {
			var events struct {
				Items []struct{ Detail map[string]any }
			}
			h.must(http.MethodGet, "/v1/events?action=secret.short", nil, &events)
			return len(events.Items) == 1 && strings.HasSuffix(fmt.Sprint(events.Items[0].Detail["version"]), "@2")
		})
	})
}

// TestSightings: a secret that comes back is taken out of use where the rule says so,
// and an agent that sends a placeholder where none belongs is quarantined.
func TestSightings(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		host := strings.TrimPrefix(h.upstream.URL, "http://")
		change := func(slot, misuse string) {
			h.must(http.MethodPut, "/v1/resources/crm", map[string]any{
				"name": "crm", "base_url": h.upstream.URL, "allow_private": []string{"127.0.0.0/8"}, "class": "confidential", "on_misuse": misuse,
				"slots": []map[string]string{{"slot": "header", "name": "Authorization", "prefix": "Bearer ", "secret": "crm/key", "on_echo": slot}},
				"actions": []map[string]string{
					{"name": "item.read", "method": "GET", "path": "/v1/items/{id}"},
					{"name": "echo.read", "method": "GET", "path": "/v1/echo"},
					{"name": "item.change", "method": "PUT", "path": "/v1/items/{id}"},
					{"name": "slow.read", "method": "GET", "path": "/v1/slow"},
				},
			}, nil)
		}
		token := h.accessToken(h.openSession())
		get := func(path string) (int, string) { return h.call(token, http.MethodGet, path, "", "") }
		var s struct {
			Versions []struct{ State string }
		}
		state := func() string {
			h.must(http.MethodGet, "/v1/secret?path=crm/key", nil, &s)
			return s.Versions[0].State
		}
		if status, body := get("/u/crm/v1/echo"); status != 200 || strings.Contains(body, h.key) {
			t.Fatalf("the echo: %d %s", status, body)
		}
		change("revoke", "quarantine")
		if state() != "live" {
			t.Errorf("without a rule the secret is %s", state())
		}
		if status, body := get("/u/crm/v1/echo"); status != 200 || strings.Contains(body, h.key) {
			t.Fatalf("the echo: %d %s", status, body)
		}
		h.until("the secret is out of use", func() bool { return state() == "deleted" })
		if status, body := get("/u/crm/v1/items/1"); status != http.StatusBadGateway || h.code([]byte(body)) != "secret_unavailable" {
			t.Errorf("with a secret that is out of use: %d %s", status, body)
		}
		h.must(http.MethodPost, "/v1/secret/versions?path=crm/key", map[string]any{"fields": map[string]string{"value": h.key}}, nil)
		var a struct {
			Holds []struct{ Kind, Reason string }
		}
		if status, body := get("/u/crm/v1/items/est_ph_abcdefgh"); status != http.StatusForbidden || h.code([]byte(body)) != "placeholder_misused" {
			t.Errorf("a placeholder in a path: %d %s (%s)", status, body, host)
		}
		h.until("the agent is quarantined", func() bool {
			h.must(http.MethodGet, "/v1/agents/bot", nil, &a)
			return slices.ContainsFunc(a.Holds, func(x struct{ Kind, Reason string }) bool { return x.Kind == "quarantined" })
		})
		// Who reads the agent may see the hold a moment before the gateway hears of it.
		h.until("a quarantined agent is refused", func() bool {
			status, _ := get("/u/crm/v1/items/1")
			return status != 200 && status != http.StatusBadGateway
		})
	})
}

// A shop gives out keys by its own API, and takes them at it.
type shop struct {
	*httptest.Server
	mu   sync.Mutex
	n    int
	keys map[string]string // id → name
	key  map[string]string // id → key
}

func newShop(t testing.TB) *shop {
	s := &shop{keys: map[string]string{}, key: map[string]string{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		id, sub := strings.CutPrefix(r.URL.Path, "/keys/")
		admin := r.Header.Get("Authorization") == "Bearer the shop's admin"
		switch {
		case r.URL.Path == "/me":
			for id, key := range s.key {
				if r.Header.Get("Authorization") == "Bearer "+key {
					fmt.Fprintf(w, "welcome, %s, with %s", s.keys[id], key)
					return
				}
			}
			w.WriteHeader(http.StatusUnauthorized)
		case !admin:
			w.WriteHeader(http.StatusForbidden)
		case r.Method == http.MethodPost:
			var in struct{ Name string }
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			s.n++
			id := fmt.Sprint(s.n)
			s.keys[id], s.key[id] = in.Name, fmt.Sprintf("shop-key-number-%d", s.n)
			json.NewEncoder(w).Encode(map[string]string{"id": id, "name": in.Name, "key": s.key[id]})
		case r.Method == http.MethodDelete && sub:
			delete(s.keys, id)
			delete(s.key, id)
		default:
			list := []map[string]string{}
			for id, name := range s.keys {
				if strings.HasPrefix(name, r.FormValue("name")) {
					list = append(list, map[string]string{"id": id, "name": name})
				}
			}
			json.NewEncoder(w).Encode(list)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *shop) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.keys)
}

// TestLeaseInASlot: the gateway leases a credential when a session first needs it,
// puts it in without the agent seeing it, shares it in the session, and it is gone
// with the session.
func TestLeaseInASlot(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up := newShop(t)
		host := strings.TrimPrefix(up.URL, "http://")
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
  actions: [{name: me.read, method: GET, path: /me}]
`, host), "shop")
		h.must(http.MethodPost, "/v1/secret/versions?path=shop/admin", map[string]any{"fields": map[string]string{"username": "admin", "password": "the shop's admin"}}, nil)
		h.must(http.MethodPost, "/v1/secret-engines", map[string]any{
			"name": "shop", "kind": "httpkey", "address": up.URL, "admin": "shop/admin", "options": map[string]string{
				"create": "POST /keys", "create_body": `{"name": "{{name}}"}`, "key": "/key", "list": "GET /keys?name={{name}}", "item_name": "/name", "item_id": "/id",
				"delete": "DELETE /keys/{{id}}", "try": "GET /me", "use": "Authorization: Bearer {{key}}", "auth": "Authorization: Bearer {{secret}}",
			},
		}, nil)
		h.must(http.MethodPut, "/v1/lease-roles/shop-key", map[string]any{"name": "shop-key", "target": "shop", "resource": "shop", "action": "me.read"}, nil)
		if n := up.count(); n != 0 {
			t.Fatalf("after the trial there are %d keys", n)
		}
		one, two := h.openSession(), h.openSession()
		for _, session := range []string{one, one, two} {
			status, body := h.call(h.tokenFor(session, up.URL), http.MethodGet, "/u/shop/me", "", "")
			if status != 200 || !strings.HasPrefix(body, "welcome, e_") || strings.Contains(body, "shop-key-number") {
				t.Fatalf("with a leased key: %d %s", status, body)
			}
		}
		if n := up.count(); n != 2 {
			t.Errorf("two sessions have %d keys, want 2", n)
		}
		h.must(http.MethodPost, "/v1/sessions/"+one+"/end", map[string]string{}, nil)
		h.until("the key of the session is gone", func() bool { return up.count() == 1 })
		h.must(http.MethodPost, "/v1/leases/revoke", map[string]string{"session": two, "reason": "a test"}, nil)
		h.until("the other key is gone", func() bool { return up.count() == 0 })
		// What cannot be leased is not forwarded.
		up.Close()
		if status, body := h.call(h.tokenFor(h.openSession(), up.URL), http.MethodGet, "/u/shop/me", "", ""); status != http.StatusBadGateway || h.code([]byte(body)) != "secret_unavailable" {
			t.Errorf("with a target that is down: %d %s", status, body)
		}
	})
}

// TestC16CookieJar: what an upstream sets stays here, comes back to it in the same
// session and in no other, and neither the agent nor the record has it.
func TestC16CookieJar(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got := []string{}
			for _, c := range r.Cookies() {
				got = append(got, c.Name+"="+c.Value)
			}
			slices.Sort(got)
			switch r.URL.Path {
			case "/in":
				http.SetCookie(w, &http.Cookie{Name: "sid", Value: "cookie-value-0123456789", Path: "/", HttpOnly: true})
				http.SetCookie(w, &http.Cookie{Name: "only", Value: "for-another-path", Path: "/elsewhere"})
			case "/out":
				http.SetCookie(w, &http.Cookie{Name: "sid", Path: "/", MaxAge: -1})
			}
			fmt.Fprintf(w, "%d cookies: %s", len(got), strings.Join(got, " "))
		}))
		t.Cleanup(up.Close)
		h.add(fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: wiki}
spec:
  base_url: http://%s
  allow_private: [127.0.0.0/8]
  class: confidential
  cookies: jar
  actions: [{name: page.read, method: GET, path: "/{page}"}]
`, strings.TrimPrefix(up.URL, "http://")), "wiki")
		one, two := h.tokenFor(h.openSession(), up.URL), h.tokenFor(h.openSession(), up.URL)
		get := func(token, path string, header ...string) (string, http.Header) {
			t.Helper()
			res, body := h.get(http.MethodGet, "http://"+h.addr+"/u/wiki"+path, append([]string{"Authorization", "Bearer " + token}, header...)...)
			if res.StatusCode != 200 {
				t.Fatalf("%s: %d %s", path, res.StatusCode, body)
			}
			return string(body), res.Header
		}
		if body, head := get(one, "/in", "Cookie", "sid=my-own"); body != "0 cookies: " || head.Get("Set-Cookie") != "" {
			t.Errorf("signing in: %q, and the agent gets %v", body, head)
		}
		if body, _ := get(one, "/page", "Cookie", "sid=my-own"); body != "1 cookies: sid="+strings.Repeat("*", len("cookie-value-0123456789")) {
			t.Errorf("signed in: %q", body)
		}
		if body, _ := get(two, "/page"); body != "0 cookies: " {
			t.Errorf("in another session: %q", body)
		}
		get(one, "/out")
		if body, _ := get(one, "/page"); body != "0 cookies: " {
			t.Errorf("signed out: %q", body)
		}
		if strings.Contains(h.logs.String(), "cookie-value-") {
			t.Error("the log has a cookie")
		}
	})
}

// TestEveryFieldComesBackMasked: a secret has several fields, and each that is put into
// a request is cut out of the answer, whichever was used before it.
func TestEveryFieldComesBackMasked(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "you sent %q", r.Header.Get("X-Key"))
		}))
		t.Cleanup(up.Close)
		h.add(fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: pair/key}
spec: {destinations: ["%[1]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: pair}
spec:
  base_url: http://%[1]s
  allow_private: [127.0.0.0/8]
  class: confidential
  slots:
    - {slot: header, name: X-Key, secret: pair/key, field: one, actions: [one.read]}
    - {slot: header, name: X-Key, secret: pair/key, field: two, actions: [two.read]}
  actions:
    - {name: one.read, method: GET, path: /one}
    - {name: two.read, method: GET, path: /two}
`, strings.TrimPrefix(up.URL, "http://")), "pair")
		h.must(http.MethodPost, "/v1/secret/versions?path=pair/key", map[string]any{"fields": map[string]string{"one": "the-first-of-the-two", "two": "and-this-is-the-second"}}, nil)
		token := h.tokenFor(h.openSession(), up.URL)
		for path, value := range map[string]string{"/one": "the-first-of-the-two", "/two": "and-this-is-the-second"} {
			for range 2 {
				if status, body := h.call(token, http.MethodGet, "/u/pair"+path, "", ""); status != 200 || body != fmt.Sprintf("you sent %q", strings.Repeat("*", len(value))) {
					t.Errorf("%s: %d %s", path, status, body)
				}
			}
		}
	})
}
