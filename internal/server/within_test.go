package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/policy"
)

// An agent to whom work was handed on opens its session within the one in which
// the work began, whether it says so or not, and loses it with that one.
func TestWorkHandedOnHasASessionWithin(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	p := h.helper()
	bundle := policy.Starter()
	for i, f := range bundle {
		bundle[i].Text = strings.Replace(f.Text, "edges := set()", `edges := {["support", "support"]}`, 1)
		if strings.HasSuffix(f.Path, "delegation_test.rego") {
			bundle[i].Text = "package tenant.delegation_test\n\nimport data.tenant.delegation\n\ntest_edge if {\n" +
				"\tdelegation.edge with input as {\"facts\": {\"handover\": \"edge\"}, \"delegator\": {\"blueprint\": \"support\"}, \"agent\": {\"blueprint\": \"support\"}}\n}\n"
		}
	}
	h.activate(bundle)
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
