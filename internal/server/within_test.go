package server_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/agent"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/policy"
)

// letsHandOn has work handed on between agents of the blueprint support.
func (h *house) letsHandOn() {
	h.t.Helper()
	bundle := policy.Starter()
	for i, f := range bundle {
		bundle[i].Text = strings.Replace(f.Text, "edges := set()", `edges := {["support", "support"]}`, 1)
		if strings.HasSuffix(f.Path, "delegation_test.rego") {
			bundle[i].Text = "package tenant.delegation_test\n\nimport data.tenant.delegation\n\ntest_edge if {\n" +
				"\tdelegation.edge with input as {\"facts\": {\"handover\": \"edge\"}, \"delegator\": {\"blueprint\": \"support\"}, \"agent\": {\"blueprint\": \"support\"}}\n}\n"
		}
	}
	h.activate(bundle)
}

// An agent to whom work was handed on opens its session within the one in which
// the work began, whether it says so or not, and loses it with that one.
func TestWorkHandedOnHasASessionWithin(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	p := h.helper()
	h.letsHandOn()
	handed := p.exchange(h.apiToken()) // for our own API, in the session in which the bot asked for it
	type opened struct {
		Session struct{ ID, Agent, Parent, Purpose string }
	}
	open := func(token string) (one opened) {
		t.Helper()
		status, body := h.do(http.MethodPost, "/v1/sessions", token, map[string]any{"task": "the second half"})
		if status >= 300 {
			t.Fatalf("opening a session: %d %s", status, body)
		}
		if err := json.Unmarshal(body, &one); err != nil {
			t.Fatal(err)
		}
		return one
	}
	within := open(handed)
	if within.Session.Agent != p.id || within.Session.Parent == "" || within.Session.Purpose != "support" {
		t.Fatalf("the session for what was handed on is %+v, want one of the helper within the bot's", within)
	}
	var root, is struct{ Agent, State string }
	h.must(http.MethodGet, "/v1/sessions/"+within.Session.Parent, nil, &root)
	if root.Agent != h.agent {
		t.Errorf("it is within a session of %s, want the bot's", root.Agent)
	}
	h.must(http.MethodPost, "/v1/sessions/"+within.Session.Parent+"/end", map[string]string{"cause": "enough"}, nil)
	if h.must(http.MethodGet, "/v1/sessions/"+within.Session.ID, nil, &is); is.State != "ended" {
		t.Errorf("after the end of the bot's session the helper's is %s", is.State)
	}
	if status, body := h.do(http.MethodPost, "/v1/sessions", handed, map[string]any{}); status < 300 {
		t.Errorf("what was handed on opens another session: %d %s", status, body)
	}
}

// What an agent had certified in a session of another is revoked with the hold on it.
func TestCertificateInASessionOfOthers(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	h.letsHandOn()
	h.must(http.MethodPost, "/v1/people", map[string]any{"name": "carol"}, nil)
	h.change("", "bot", "carol", nil)
	h.must(http.MethodPost, "/v1/pki/authorities", map[string]any{"name": "root"}, nil)
	h.must(http.MethodPut, "/v1/pki/roles/reader", map[string]any{
		"authority": "root", "resource": "crm", "action": "item.read", "ttl": 600, "max_ttl": 600,
		"x509": map[string]any{"domains": []string{"reader.example.com"}, "bare": true, "client": true},
	}, nil)
	issued := func(token string) (serial string) {
		t.Helper()
		status, body := h.do(http.MethodPost, "/v1/pki/roles/reader/issue", token, map[string]any{"common_name": "reader.example.com"})
		var c struct{ Serial string }
		if json.Unmarshal(body, &c) != nil || status != http.StatusOK || c.Serial == "" {
			t.Fatalf("a certificate: %d %s", status, body)
		}
		return c.Serial
	}
	revoked := func(serial string) bool {
		t.Helper()
		var one struct {
			Revoked time.Time `json:"revoked_at"`
		}
		h.must(http.MethodGet, "/v1/pki/certificates/"+url.PathEscape(serial), nil, &one)
		return !one.Revoked.IsZero()
	}
	bot := h.apiToken()
	own := issued(bot)
	ended := revoked
	for _, c := range []struct {
		what string
		end  func(name string)
	}{
		{"out-of-time", func(name string) {
			var a struct{ agent.Spec }
			h.must(http.MethodGet, "/v1/agents/"+name, nil, &a)
			a.ExpiresAt = time.Now().Add(time.Second)
			h.must(http.MethodPut, "/v1/agents/"+name, a.Spec, nil)
			ended = func(serial string) bool { // by the sweep
				for late := time.Now().Add(30 * time.Second); !revoked(serial); {
					if time.Now().After(late) {
						return false
					}
					select {
					case <-t.Context().Done():
					case <-time.After(50 * time.Millisecond):
					}
				}
				return true
			}
		}},
		{"suspended", func(name string) {
			h.must(http.MethodPost, "/v1/agents/"+name+"/holds", map[string]string{"kind": "suspended", "reason": "a test"}, nil)
		}},
		{"contained", func(name string) {
			h.must(http.MethodPost, "/v1/containments", map[string]string{"agent": name, "reason": "a test"}, nil)
		}},
		{"contained-with-its-sponsor", func(string) {
			h.must(http.MethodPost, "/v1/containments", map[string]string{"scope": "person", "target": "alice", "reason": "a test"}, nil)
		}},
	} {
		name := "helper-" + c.what
		serial := issued(h.helperNamed(name).exchange(bot))
		if revoked(serial) {
			t.Fatal("it is revoked from the start")
		}
		ended = revoked
		c.end(name)
		if !ended(serial) {
			t.Errorf("a certificate of an agent that is %s, in the session of another, still holds", c.what)
		}
		if revoked(own) {
			t.Errorf("%s: the certificate of the other agent is revoked with it", c.what)
		}
	}

	// The end of a session says that it is not for everybody (Q8).
	var one struct{ Session string }
	h.must(http.MethodGet, "/v1/pki/certificates/"+url.PathEscape(own), nil, &one)
	var end struct{ Lingers []string }
	h.must(http.MethodPost, "/v1/sessions/"+one.Session+"/end", map[string]string{"cause": "enough"}, &end)
	if !revoked(own) || len(end.Lingers) != 1 || !strings.HasPrefix(end.Lingers[0], "Certificates: ") {
		t.Errorf("the end of the session says that %q may go on, want certificates", end.Lingers)
	}
}
