package server_test

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
)

// decisionID is what differs in two answers of the gateway that are alike.
var decisionID = regexp.MustCompile(`"(decision|call|request|instance)":"[^"]*"`)

// T1, T3, H2: the handle of a token that an upstream gave to one tenant's agent, and the
// placeholder of its session, are in the hands of another tenant's agent what one is
// that was made up: wherever they stand the call is refused and on record there, nothing
// is sent, nobody whose they are is any the wiser, and they go on being good.
func TestHandlesOfAnotherTenant(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up := newIssuing(t)
		asked := atomic.Int64{} // how often the upstream with the placeholder was
		holder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if r.Header.Get("X-Api-Key") != h.key {
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))
		t.Cleanup(holder.Close)
		// Both have the same names, and an agent that may do the same.
		resources := fmt.Sprintf(`
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: idp/client}
spec: {destinations: ["%[1]s", "%[2]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: idp}
spec:
  base_url: http://%[1]s
  allow_private: [127.0.0.0/8]
  class: confidential
  slots: [{slot: basic, name: us, secret: idp/client, actions: [token.get, token.end]}]
  actions:
    - {name: token.get, method: POST, path: /token}
    - {name: token.end, method: POST, path: /revoke}
    - {name: token.end, method: POST, path: /revoke-json}
    - {name: me.read, method: GET, path: /me}
    - {name: say, method: POST, path: /say}
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: holder/key}
spec: {destinations: ["%[2]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: holder}
spec:
  base_url: http://%[2]s
  allow_private: [127.0.0.0/8]
  class: confidential
  slots:
    - {slot: header, name: X-Api-Key, secret: holder/key, placeholder: HOLDER_KEY}
    - {slot: body, name: /auth/token, secret: holder/key, actions: [thing.make]}
  actions: [{name: thing.read, method: GET, path: "/things/{id}"}, {name: thing.make, method: POST, path: /things}]
`, strings.TrimPrefix(up.URL, "http://"), strings.TrimPrefix(holder.URL, "http://"))
		type agent struct {
			*house
			session, placeholder, handle, refresh string
			idp, things                           string // tokens for the gateway
		}
		enter := func(name string) (a agent) {
			a.house = h.found(name, "127.0.0.0/8")
			a.apply()
			a.add(resources, "idp", "holder")
			a.must(http.MethodPost, "/v1/secret/versions?path=idp/client", map[string]any{"fields": map[string]string{"value": "the-client-secret"}}, nil)
			a.must(http.MethodPost, "/v1/secret/versions?path=holder/key", map[string]any{"fields": map[string]string{"value": h.key}}, nil)
			var opened struct {
				Session      struct{ ID string }
				Placeholders map[string]string
			}
			a.must(http.MethodPost, "/v1/sessions", map[string]string{"agent": "bot", "purpose": "support", "certificate_thumbprint": (rand.Text() + rand.Text())[:43]}, &opened)
			a.session, a.placeholder = opened.Session.ID, opened.Placeholders["HOLDER_KEY"]
			a.idp, a.things = a.tokenFor(a.session, up.URL), a.tokenFor(a.session, holder.URL)
			status, body := a.call(a.idp, http.MethodPost, "/u/idp/token", formKind, "grant_type=client_credentials")
			var got struct {
				Access  string `json:"access_token"`
				Refresh string `json:"refresh_token"`
			}
			if status != 200 || json.Unmarshal([]byte(body), &got) != nil || !strings.HasPrefix(got.Access, "est_tk_") || !strings.HasPrefix(a.placeholder, "est_ph_") {
				t.Fatalf("%s gets %d %s and the placeholder %q", name, status, body, a.placeholder)
			}
			a.handle, a.refresh = got.Access, got.Refresh
			return a
		}
		acme, evil := enter("acme"), enter("evil")
		good := func(a agent) {
			t.Helper()
			if status, body := a.call(a.idp, http.MethodGet, "/u/idp/me", "", "", "Estover-Upstream-Token", a.handle); status != 200 {
				t.Errorf("with one's own handle: %d %s", status, body)
			}
			if status, body := a.call(a.things, http.MethodGet, "/u/holder/things/1", "", "", "X-Api-Key", a.placeholder); status != 200 {
				t.Errorf("with one's own placeholder: %d %s", status, body)
			}
			if status, body := a.call(a.things, http.MethodPost, "/u/holder/things", "application/json", `{"auth":{"token":"`+a.placeholder+`"}}`); status != 200 {
				t.Errorf("with one's own placeholder in a body: %d %s", status, body)
			}
		}
		good(acme)
		good(evil)
		d := openOutside(t, h.config.Database)
		before := rowsOf(t, d, "acme")
		for _, table := range []string{"recording", "recording_segment"} { // of one's own calls, and written when there is time
			delete(before, table)
		}
		violations := func(a agent) int {
			t.Helper()
			var events struct{ Items []struct{ Outcome string } }
			a.must(http.MethodGet, "/v1/events?action=gateway.violation&limit=200", nil, &events)
			return len(events.Items)
		}
		grants, revoked, calls, theirs := len(up.grants), len(up.revoked), asked.Load(), violations(acme)
		tries := map[string]func(handle, refresh, placeholder string) (int, string){
			"a handle as the bearer token": func(handle, _, _ string) (int, string) {
				return evil.call(evil.idp, http.MethodGet, "/u/idp/me", "", "", "Estover-Upstream-Token", handle)
			},
			"a handle to be refreshed": func(_, refresh, _ string) (int, string) {
				return evil.call(evil.idp, http.MethodPost, "/u/idp/token", formKind, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}.Encode())
			},
			"a handle to be revoked": func(handle, _, _ string) (int, string) {
				return evil.call(evil.idp, http.MethodPost, "/u/idp/revoke", formKind, url.Values{"token": {handle}}.Encode())
			},
			"a handle to be revoked, in JSON": func(handle, _, _ string) (int, string) {
				return evil.call(evil.idp, http.MethodPost, "/u/idp/revoke-json", "application/json", `{"token":"`+handle+`"}`)
			},
			"a handle in a text": func(handle, _, _ string) (int, string) {
				return evil.call(evil.idp, http.MethodPost, "/u/idp/say", "text/plain", "my token is "+handle)
			},
			"a placeholder in its slot": func(_, _, placeholder string) (int, string) {
				return evil.call(evil.things, http.MethodGet, "/u/holder/things/1", "", "", "X-Api-Key", placeholder)
			},
			"a placeholder in its slot in a body": func(_, _, placeholder string) (int, string) {
				return evil.call(evil.things, http.MethodPost, "/u/holder/things", "application/json", `{"auth":{"token":"`+placeholder+`"}}`)
			},
			"a placeholder in a path": func(_, _, placeholder string) (int, string) {
				return evil.call(evil.things, http.MethodGet, "/u/holder/things/"+placeholder, "", "")
			},
			"a placeholder as a password": func(_, _, placeholder string) (int, string) {
				return evil.call(evil.things, http.MethodGet, "/u/holder/things/1", "", "", "X-Proxy", "Basic "+base64.StdEncoding.EncodeToString([]byte("user:"+placeholder)))
			},
			"a placeholder in a query": func(_, _, placeholder string) (int, string) {
				return evil.call(evil.things, http.MethodGet, "/u/holder/things/1?q=%65"+placeholder[1:], "", "")
			},
			"a placeholder for a handle": func(_, _, placeholder string) (int, string) {
				return evil.call(evil.idp, http.MethodGet, "/u/idp/me", "", "", "Estover-Upstream-Token", placeholder)
			},
		}
		for what, try := range tries {
			status, body := try(acme.handle, acme.refresh, acme.placeholder)
			missing, without := try("est_tk_"+strings.Repeat("a", 26), "est_tk_"+strings.Repeat("b", 26), "est_ph_"+strings.Repeat("c", 26))
			if status != http.StatusForbidden || h.code([]byte(body)) != "placeholder_misused" {
				t.Errorf("%s of another tenant's: %d %s, want 403 placeholder_misused", what, status, body)
			}
			if got, want := decisionID.ReplaceAllString(body, ""), decisionID.ReplaceAllString(without, ""); status != missing || got != want {
				t.Errorf("%s of another tenant's: %d %s; one that is none: %d %s", what, status, got, missing, want)
			}
		}
		if len(up.grants) != grants || len(up.revoked) != revoked || asked.Load() != calls {
			t.Errorf("the upstreams were asked: %d grants, %d revocations, %d calls", len(up.grants)-grants, len(up.revoked)-revoked, asked.Load()-calls)
		}
		h.until("what was tried is on record", func() bool { return violations(evil) >= 2*len(tries) })
		if n := violations(acme); n != theirs {
			t.Errorf("%d events are on record where nothing was asked", n-theirs)
		}
		// So it is in another session of its own, and at another resource.
		other := evil.tokenFor(evil.openSession(), holder.URL)
		for what, try := range map[string]func() (int, string){
			"in another session": func() (int, string) {
				return evil.call(other, http.MethodGet, "/u/holder/things/1", "", "", "X-Api-Key", evil.placeholder)
			},
			"at another resource": func() (int, string) {
				return evil.call(evil.idp, http.MethodGet, "/u/idp/me", "", "", "X-Api-Key", evil.placeholder)
			},
		} {
			if status, body := try(); status != http.StatusForbidden || h.code([]byte(body)) != "placeholder_misused" {
				t.Errorf("a placeholder %s: %d %s, want 403 placeholder_misused", what, status, body)
			}
		}
		now := rowsOf(t, d, "acme")
		for table, was := range before {
			if now[table] != was {
				t.Errorf("the rows of acme in %s were changed", table)
			}
		}
		good(acme)
	})
}
