package server_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/internal/policy"
)

// A seeker is an agent with almost no grants, which asks for what it needs by the AuthZEN
// Access Request and Approval Profile.
type seeker struct {
	*house
	id, secret, token string
}

const accessRequests = "/access/v1/requests"

// seek makes the agent.
func (h *house) seek(name string) *seeker {
	h.t.Helper()
	h.register(name, "support", "support")
	var c struct {
		ID string `json:"client_id"`
		S  string `json:"client_secret"`
	}
	h.must(http.MethodPost, "/v1/agents/"+name+"/credentials", object{"kind": "secret"}, &c)
	agent, secret := h.agent, h.secret
	h.agent, h.secret = c.ID, c.S
	s := &seeker{h, c.ID, c.S, h.apiToken()}
	h.agent, h.secret = agent, secret
	return s
}

// accessTokenOf is a token of the seeker for the upstream, in a session.
func (s *seeker) accessTokenOf(session string) string {
	h := *s.house
	h.agent, h.secret = s.id, s.secret
	return h.accessToken(session)
}

// openSessionOf opens a session of an agent.
func (h *house) openSessionOf(agent string) string {
	h.t.Helper()
	var opened struct{ Session struct{ ID string } }
	h.must(http.MethodPost, "/v1/sessions", object{"agent": agent, "purpose": "support"}, &opened)
	return opened.Session.ID
}

// question is what the seeker asks about itself.
func (s *seeker) question(more ...any) object {
	return asks(append([]any{"subject", object{"type": "agent", "id": s.id}, "context", object{"purpose": "support"}}, more...)...)
}

// refused evaluates a question that is refused, and gives what the refusal says.
func (s *seeker) refused(q object) object {
	s.t.Helper()
	status, a, _ := s.pep(s.token, evaluationPath, q)
	if status != http.StatusOK || *a.Decision {
		s.t.Fatalf("%v: %d %v, want a refusal", q, status, a)
	}
	return a.Context
}

// submission is a question with the refusal that it is about.
func submission(q, refusal object, reason string) object {
	hint, _ := refusal["access_request"].(map[string]any)
	s := object{"denial": object{
		"evaluation_id": refusal["evaluation_id"], "reason": refusal["reason"], "expires_at": hint["expires_at"], "binding_token": hint["binding_token"], "template": hint["template"],
	}}
	for name, v := range q {
		s[name] = v
	}
	context := object{"reason": reason, "ticket": "T-1"}
	if was, ok := q["context"].(object); ok {
		for name, v := range was {
			context[name] = v
		}
	}
	s["context"] = context
	return s
}

// A task is what is answered about a request.
type accessTask struct {
	Type string
	Task struct {
		ID, Status string
		Endpoint   string `json:"status_endpoint"`
		Links      struct{ Cancel string }
		Items      []struct {
			Status string
			Result *object
		}
	}
	Result *struct {
		Mode     string
		Approval object
	}
}

// at sends a request below the issuer.
func (s *seeker) at(method, path string, body any, header ...string) (int, accessTask, []byte) {
	s.t.Helper()
	status, b := s.do(method, path, s.token, body, header...)
	var t accessTask
	_ = json.Unmarshal(b, &t)
	return status, t, b
}

// Request, approval by a person, evaluation again: an approval is an input, and is
// checked again.
func TestAccessRequestProfile(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		s := h.seek("seeker")
		q := s.question()
		said := s.refused(q)
		hint, _ := said["access_request"].(map[string]any)
		if said["next_action"] != "request" || hint["endpoint"] != h.issuer()+accessRequests || hint["expires_at"] == nil || hint["template"] == nil || said["reason"] != "not_granted" {
			t.Fatalf("the refusal says %v", said)
		}
		if status, b := h.do(http.MethodGet, strings.TrimPrefix(fmt.Sprint(hint["request_schema_url"]), h.issuer()), "", nil); status != http.StatusOK || !json.Valid(b) {
			t.Errorf("the schema of a request: %d %s", status, b)
		}

		status, task, b := s.at(http.MethodPost, accessRequests, submission(q, said, "The customer is on the phone"), "Idempotency-Key", "one")
		if status != http.StatusAccepted || task.Task.Status != "pending" || task.Task.Endpoint != h.issuer()+accessRequests+"/"+task.Task.ID || task.Task.Links.Cancel == "" || task.Result != nil {
			t.Fatalf("asking: %d %s", status, b)
		}
		path := accessRequests + "/" + task.Task.ID
		if status, again, b := s.at(http.MethodPost, accessRequests, submission(q, said, "The customer is on the phone"), "Idempotency-Key", "one"); status != http.StatusAccepted || again.Task.ID != task.Task.ID {
			t.Errorf("sent again with its key: %d %s", status, b)
		}
		if status, p, _ := s.at(http.MethodPost, accessRequests, submission(q, said, "Something else"), "Idempotency-Key", "one"); status != http.StatusConflict || !strings.HasSuffix(p.Type, ":duplicate_request") {
			t.Errorf("another request with the key: %d %s", status, p.Type)
		}
		if waits := s.refused(q); waits["next_action"] != "wait" || waits["access_request"] != nil {
			t.Errorf("while it waits a refusal says %v", waits)
		}
		if status, _, b := h.seek("stranger").at(http.MethodGet, path, nil); status != http.StatusNotFound || !strings.Contains(string(b), "error:unknown_task") {
			t.Errorf("somebody else's task: %d %s", status, b)
		}

		// A person decides, elsewhere.
		h.must(http.MethodPost, "/v1/access/requests/"+task.Task.ID+"/approve", object{}, nil)
		status, task, b = s.at(http.MethodGet, path, nil)
		if status != http.StatusOK || task.Task.Status != "approved" || task.Result == nil || task.Result.Mode != "reevaluate" || task.Result.Approval["approved_until"] == nil {
			t.Fatalf("the task when it is approved: %d %s", status, b)
		}
		with := s.question("context", object{"purpose": "support", "approval": task.Result.Approval})
		if _, a, _ := s.pep(s.token, evaluationPath, with); !*a.Decision || a.Context["approval"].(map[string]any)["id"] != task.Task.ID {
			t.Errorf("evaluated again: %v", a)
		}
		// It is good for what it names.
		for name, q := range map[string]object{
			"another action":   s.question("action", object{"name": "item.change"}, "context", with["context"]),
			"another resource": s.question("resource", object{"type": "http", "id": "erp"}, "context", with["context"]),
		} {
			if _, a, _ := s.pep(s.token, evaluationPath, q); *a.Decision {
				t.Errorf("%s under the approval is allowed", name)
			}
		}
		other := h.seek("other")
		if _, a, _ := other.pep(other.token, evaluationPath, other.question("context", with["context"])); *a.Decision {
			t.Errorf("another agent with the approval is allowed: %v", a)
		}
		// What is allowed without it is so, and the approval of another is not named.
		if _, a, _ := h.pep(h.token, evaluationPath, asks("context", object{"purpose": "support", "approval": task.Result.Approval})); !*a.Decision || a.Context["approval"] != nil {
			t.Errorf("an agent that is granted it, with another's approval: %v", a)
		}
		// Taken back, it counts no more.
		var grants struct {
			Items []struct{ ID, Request string }
		}
		h.must(http.MethodGet, "/v1/grants?agent=seeker", nil, &grants)
		ended := 0
		for _, g := range grants.Items {
			if g.Request == task.Task.ID {
				h.must(http.MethodPost, "/v1/grants/"+g.ID+"/end", object{"reason": "a test"}, nil)
				ended++
			}
		}
		if ended != 1 {
			t.Fatalf("the approval led to %+v", grants)
		}
		if said := s.refused(with); said["next_action"] != "request" {
			t.Errorf("after it was taken back: %v", said)
		}
	})
}

// What a request is not about, and what nobody could approve.
func TestAccessRequestBinding(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		s := h.seek("seeker")
		q := s.question()
		said := s.refused(q)
		good := func() object { return submission(q, said, "a reason") }
		denial := func(name string, v any) object {
			o := good()
			d := object{}
			for k, have := range o["denial"].(object) {
				d[k] = have
			}
			d[name] = v
			o["denial"] = d
			return o
		}
		set := func(name string, v any) object {
			o := good()
			o[name] = v
			return o
		}
		token, _ := said["access_request"].(map[string]any)["binding_token"].(string)
		parts := strings.Split(token, ".")
		claims, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		forged := parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(claims), `"exp":1`, `"exp":2`, 1))) + "." + parts[2]
		for name, c := range map[string]struct {
			body object
			want string
		}{
			"another action":          {set("action", object{"name": "item.change"}), "invalid_denial_binding"},
			"another resource":        {set("resource", object{"type": "http", "id": "erp"}), "invalid_denial_binding"},
			"the resource by its id":  {set("resource", object{"type": "http", "id": h.upstream.URL}), "invalid_denial_binding"},
			"another subject":         {set("subject", object{"type": "agent", "id": h.agent}), "invalid_denial_binding"},
			"another purpose":         {set("context", object{"purpose": "marketing", "reason": "x"}), "invalid_denial_binding"},
			"more of the action":      {set("action", object{"name": "item.read", "properties": object{"id": "8"}}), "invalid_denial_binding"},
			"a class of data beside":  {set("context", object{"purpose": "support", "class": "public", "reason": "x"}), "invalid_denial_binding"},
			"a session beside":        {set("context", object{"purpose": "support", "session": h.openSessionOf(s.id), "reason": "x"}), "invalid_denial_binding"},
			"no denial":               {set("denial", nil), "invalid_denial_binding"},
			"no token":                {denial("binding_token", ""), "invalid_denial_binding"},
			"a token that is none":    {denial("binding_token", "nonsense"), "invalid_denial_binding"},
			"a forged token":          {denial("binding_token", forged), "invalid_denial_binding"},
			"an access token":         {denial("binding_token", s.token), "invalid_denial_binding"},
			"another expiry":          {denial("expires_at", "2099-01-01T00:00:00Z"), "invalid_denial_binding"},
			"another evaluation":      {denial("evaluation_id", "evt_other"), "invalid_denial_binding"},
			"a callback to anywhere":  {set("callback", object{"endpoint": "https://evil.example/"}), ""},
			"without a reason":        {set("context", object{"purpose": "support"}), ""},
			"for longer than one may": {set("requested_access", object{"requested_until": "2099-01-01T00:00:00Z"}), ""},
		} {
			status, p, b := s.at(http.MethodPost, accessRequests, c.body)
			if status != http.StatusBadRequest || c.want != "" && p.Type != "urn:openid:authzen:access-request:error:"+c.want {
				t.Errorf("%s: %d %s, want 400 %s", name, status, b, c.want)
			}
		}
		other := h.seek("other")
		if status, p, b := other.at(http.MethodPost, accessRequests, good()); status != http.StatusBadRequest || !strings.HasSuffix(p.Type, ":invalid_denial_binding") {
			t.Errorf("somebody else with the refusal: %d %s", status, b)
		}
		if status, _ := h.do(http.MethodPost, accessRequests, "", good()); status != http.StatusUnauthorized {
			t.Errorf("nobody: %d", status)
		}

		// Cancelled once, and not twice.
		_, task, b := s.at(http.MethodPost, accessRequests, good())
		if task.Task.ID == "" {
			t.Fatalf("asking: %s", b)
		}
		if status, done, b := s.at(http.MethodPost, accessRequests+"/"+task.Task.ID+"/cancel", object{"comment": "not needed"}); status != http.StatusOK || done.Task.Status != "cancelled" {
			t.Errorf("cancelling: %d %s", status, b)
		}
		if status, p, _ := s.at(http.MethodDelete, accessRequests+"/"+task.Task.ID+"/cancel", nil); status != http.StatusConflict || !strings.HasSuffix(p.Type, ":invalid_task_state") {
			t.Errorf("cancelling again: %d %s", status, p.Type)
		}
		if status, p, _ := s.at(http.MethodGet, accessRequests+"/apr_none", nil); status != http.StatusNotFound || !strings.HasSuffix(p.Type, ":unknown_task") {
			t.Errorf("no such task: %d %s", status, p.Type)
		}

		// What the kernel refuses, or a rule denies, nobody could approve.
		for name, q := range map[string]object{
			"an unknown resource":   s.question("resource", object{"type": "http", "id": "erp"}),
			"more sensitive data":   s.question("context", object{"purpose": "support", "class": "restricted"}),
			"an unknown action":     s.question("action", object{"name": "item.destroy"}),
			"an undeclared purpose": s.question("context", object{"purpose": "marketing"}),
		} {
			if said := s.refused(q); said["access_request"] != nil || said["next_action"] == "request" {
				t.Errorf("%s can be asked for: %v", name, said)
			}
		}
		h.activate(append(policy.Starter(), policy.File{Path: "never.rego", Text: `# METADATA
# title: Never
# description: Agents do not ask for this.
package tenant.never

# METADATA
# title: Nobody is let read items by asking
# description: Items are not read by asking.
deny contains "never" if {
	input.op == "access.elevate"
	input.action.name == "item.read"
}
`}, policy.File{Path: "never_test.rego", Text: `package tenant.never_test

import data.tenant.never

test_never if {
	never.deny == {"never"} with input as {"op": "access.elevate", "action": {"name": "item.read"}}
	never.deny == set() with input as {"op": "access.elevate", "action": {"name": "item.change"}}
}
`}))
		if said := s.refused(q); said["access_request"] != nil {
			t.Errorf("what a rule denies can be asked for: %v", said)
		}
		if status, p, b := s.at(http.MethodPost, accessRequests, good()); status != http.StatusBadRequest || !strings.HasSuffix(p.Type, ":not_requestable") {
			t.Errorf("asking for it with the refusal of before: %d %s", status, b)
		}
	})
}

// What policy permits at once is permitted once, whoever sends it again or at the
// same time.
func TestAccessRequestOnce(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		s := h.seek("seeker")
		q := s.question()
		body := submission(q, s.refused(q), "-")
		h.activate(append(policy.Starter(), policy.File{Path: "at_once.rego", Text: `# METADATA
# title: At once
# description: What agents may have for the asking.
package tenant.at_once

# METADATA
# title: Items are read by whoever asks
permit contains "at_once" if {
	input.op == "access.elevate"
	input.action.name == "item.read"
}
`}, policy.File{Path: "at_once_test.rego", Text: `package tenant.at_once_test

import data.tenant.at_once

test_at_once if {
	at_once.permit == {"at_once"} with input as {"op": "access.elevate", "action": {"name": "item.read"}}
	at_once.permit == set() with input as {"op": "access.elevate", "action": {"name": "item.change"}}
}
`}))
		ids := make(chan string, 32)
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				status, task, b := s.at(http.MethodPost, accessRequests, body, "Idempotency-Key", "once")
				if status != http.StatusCreated || task.Task.Status != "approved" {
					t.Errorf("asking for what is permitted: %d %s", status, b)
				}
				ids <- task.Task.ID
			})
		}
		wg.Wait()
		close(ids)
		id := <-ids
		for one := range ids {
			if one != id {
				t.Fatalf("32 times the same made %s and %s", id, one)
			}
		}
		var grants struct {
			Items []struct {
				Agent   string
				Request string
			}
		}
		h.must(http.MethodGet, "/v1/grants?agent=seeker", nil, &grants)
		made := 0
		for _, g := range grants.Items {
			if g.Request != "" {
				made++
			}
		}
		if made != 1 {
			t.Errorf("32 times the same made %d grants, want 1: %v", made, grants.Items)
		}
		if status, task, b := s.at(http.MethodPost, accessRequests, submission(q, object{}, "something else"), "Idempotency-Key", "once"); status != http.StatusConflict || task.Task.ID != "" {
			t.Errorf("something else with the same key: %d %s", status, b)
		}
	})
}

// Several things in one request, each with the refusal that it is about; 64 at
// once with one key are one request.
func TestAccessRequestBundle(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		s := h.seek("seeker")
		var items []object
		for _, action := range []string{"item.read", "echo.read"} {
			q := s.question("action", object{"name": action})
			one := submission(q, s.refused(q), "-")
			items = append(items, object{"resource": q["resource"], "action": q["action"], "denial": one["denial"]})
		}
		body := object{
			"subject": object{"type": "agent", "id": s.id}, "items": items, "context": object{"purpose": "support", "reason": "a task of two steps"},
			"requested_access": object{"requested_until": time.Now().Add(20 * time.Minute).UTC().Format(time.RFC3339)},
		}
		ids := make(chan string, 64)
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				status, task, b := s.at(http.MethodPost, accessRequests, body, "Idempotency-Key", "bundle")
				if status != http.StatusAccepted || len(task.Task.Items) != 2 {
					t.Errorf("asking for two: %d %s", status, b)
				}
				ids <- task.Task.ID
			})
		}
		wg.Wait()
		close(ids)
		id := ""
		for one := range ids {
			if id != "" && one != id {
				t.Fatalf("64 times the same made %s and %s", id, one)
			}
			id = one
		}
		// A person approves a part of it.
		h.must(http.MethodPost, "/v1/access/requests/"+id+"/approve", object{"only": []object{{"resource": "crm", "actions": []string{"echo.read"}}}}, nil)
		status, task, b := s.at(http.MethodGet, accessRequests+"/"+id, nil)
		if status != http.StatusOK || task.Task.Status != "partial" || task.Result != nil || len(task.Task.Items) != 2 {
			t.Fatalf("a bundle of which a part is approved: %d %s", status, b)
		}
		for i, want := range []bool{false, true} {
			item := task.Task.Items[i]
			if (item.Status == "approved") != want || (item.Result != nil) != want {
				t.Errorf("the item %d: %+v, want approved: %v", i, item, want)
			}
		}
		if _, a, _ := s.pep(s.token, evaluationPath, s.question("action", object{"name": "echo.read"})); !*a.Decision {
			t.Errorf("the part that was approved: %v", a)
		}
	})
}
