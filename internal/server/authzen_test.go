package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"estover.dev/internal/policy"
)

// An object is JSON as a PEP sends it.
type object = map[string]any

// An answer is what a PEP reads.
type answer struct {
	Decision    *bool
	Context     object
	Evaluations []answer
	Page        struct {
		Next  *string `json:"next_token"`
		Count int
	}
	Results []object
}

// pep asks with a token, and gives status and answer.
func (h *house) pep(token, path string, body any, header ...string) (int, answer, *http.Response) {
	h.t.Helper()
	text, isText := body.(string)
	if !isText {
		b, err := json.Marshal(body)
		if err != nil {
			h.t.Fatal(err)
		}
		text = string(b)
	}
	req, err := http.NewRequest(http.MethodPost, h.issuer()+path, strings.NewReader(text))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Del(header[i])
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	var a answer
	if res.StatusCode == http.StatusOK {
		if err := json.Unmarshal(b, &a); err != nil {
			h.t.Fatalf("%s: %v in %s", path, err, b)
		}
	} else {
		a.Context = object{"message": string(b)}
	}
	return res.StatusCode, a, res
}

// register adds an agent by applying a file, as people do. It is granted one small
// thing, since nobody gets a token for nothing.
func (h *house) register(name, blueprint, purpose string) {
	h.t.Helper()
	text := fmt.Sprintf(`apiVersion: estover.dev/v1
kind: Agent
metadata: {name: %[1]s}
spec: {blueprint: %[2]s, sponsor: alice, purposes: [%[3]s], clearance: confidential}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: %[1]s-waits}
spec: {agent: %[1]s, resource: crm, actions: [slow.read], purposes: [%[3]s], class: confidential}
`, name, blueprint, purpose)
	h.must(http.MethodPost, "/v1/apply", object{"files": []object{{"path": name + ".yaml", "text": text}}}, nil)
}

const (
	evaluationPath  = "/access/v1/evaluation"
	evaluationsPath = "/access/v1/evaluations"
	subjectsPath    = "/access/v1/search/subject"
	resourcesPath   = "/access/v1/search/resource"
	actionsPath     = "/access/v1/search/action"
)

// asks is a question about the agent bot, with other members in it; nil leaves
// one out.
func asks(more ...any) object {
	q := object{
		"subject": object{"type": "agent", "id": "bot"}, "action": object{"name": "item.read"}, "resource": object{"type": "http", "id": "crm"},
		"context": object{"purpose": "support"},
	}
	for i := 0; i+1 < len(more); i += 2 {
		if more[i+1] == nil {
			delete(q, more[i].(string))
		} else {
			q[more[i].(string)] = more[i+1]
		}
	}
	return q
}

// The wire of AuthZEN 1.0, section by section, at a real server.
func TestAuthZENWire(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		t.Run("section 5.5: a decision is a boolean, and a refusal is one with HTTP 200", func(t *testing.T) {
			for _, c := range []struct {
				name   string
				q      object
				want   bool
				reason string
			}{
				{"granted", asks(), true, ""},
				{"by ids", asks("subject", object{"type": "agent", "id": h.agent}, "resource", object{"type": "http", "id": h.upstream.URL}), true, ""},
				{"the purpose that is the only one", asks("context", nil), true, ""},
				{"in a session", asks("context", object{"session": h.openSession()}), true, ""},
				{"not granted", asks("action", object{"name": "item.delete"}), false, "not_granted"},
				{"no such action", asks("action", object{"name": "item.destroy"}), false, "unknown_action"},
				{"another purpose", asks("context", object{"purpose": "marketing"}), false, "purpose_mismatch"},
				{"an unknown subject", asks("subject", object{"type": "agent", "id": "nobody"}), false, "kernel_agent_unknown"},
				{"an unknown type of subject", asks("subject", object{"type": "user", "id": "alice"}), false, "subject_unknown"},
				{"an unknown resource", asks("resource", object{"type": "http", "id": "erp"}), false, "kernel_resource_unknown"},
				{"the resource as another type", asks("resource", object{"type": "database", "id": "crm"}), false, "kernel_resource_unknown"},
				{"a secret as a resource", asks("resource", object{"type": "secret", "id": "secret:crm/key"}), false, "kernel_resource_unknown"},
				{"no such session", asks("context", object{"session": "ses_none"}), false, "kernel_session_unknown"},
				{"more sensitive data", asks("context", object{"purpose": "support", "class": "restricted"}), false, "kernel_clearance"},
			} {
				status, a, _ := h.pep(h.token, evaluationPath, c.q)
				if status != http.StatusOK || a.Decision == nil || *a.Decision != c.want || c.reason != "" && a.Context["reason"] != c.reason {
					t.Errorf("%s: %d %v %v, want %v %s", c.name, status, a.Decision, a.Context, c.want, c.reason)
				}
			}
		})
		t.Run("section 6.1: what is required", func(t *testing.T) {
			for name, q := range map[string]any{
				"no subject": asks("subject", nil), "no action": asks("action", nil), "no resource": asks("resource", nil),
				"no type of subject": asks("subject", object{"id": "bot"}), "no id of subject": asks("subject", object{"type": "agent"}),
				"no name of action": asks("action", object{}), "no type of resource": asks("resource", object{"id": "crm"}), "no id of resource": asks("resource", object{"type": "http"}),
				"a subject that is a string": asks("subject", "bot"), "a name that is a number": asks("action", object{"name": 123}),
				"properties that are a list": asks("subject", object{"type": "agent", "id": "bot", "properties": []string{}}),
				"a context that is a list":   asks("context", []string{}), "a class that is none": asks("context", object{"class": "secret"}),
				"an id that is too long": asks("resource", object{"type": "http", "id": strings.Repeat("x", 501)}),
				"no JSON":                "{", "nothing": "", "a list": "[]", "two objects": "{}{}", "a name twice": `{"subject":{"type":"agent","type":"user","id":"bot"}}`,
				"too deep": `{"x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`, "too long": `{"x":"` + strings.Repeat("x", 1<<20) + `"}`,
			} {
				status, a, _ := h.pep(h.token, evaluationPath, q)
				if status != http.StatusBadRequest || a.Context["message"] == "" {
					t.Errorf("%s: %d %v, want 400 with a message (section 10.1.2)", name, status, a.Context)
				}
			}
		})
		t.Run("section 4: unknown members are ignored", func(t *testing.T) {
			q := asks("foo", "bar", "future", object{"nested": true}, "subject", object{"type": "agent", "id": "bot", "properties": object{"department": "sales"}, "x": 1},
				"context", object{"purpose": "support", "time": "2026-06-27T18:03:00Z", "ip": "192.0.2.1"})
			if status, a, _ := h.pep(h.token, evaluationPath, q); status != http.StatusOK || !*a.Decision {
				t.Errorf("a question with members of tomorrow: %d %v", status, a)
			}
		})
		t.Run("section 10.1: POST, application/json, and the PEP's own identifier", func(t *testing.T) {
			status, _, res := h.pep(h.token, evaluationPath, asks(), "X-Request-ID", "bfe9eb29-ab87-4ca3-be83-a1d5d8305716")
			if got := res.Header.Get("X-Request-ID"); status != http.StatusOK || got != "bfe9eb29-ab87-4ca3-be83-a1d5d8305716" || res.Header.Get("Content-Type") != "application/json" {
				t.Errorf("the answer has the identifier %q and the type %q", got, res.Header.Get("Content-Type"))
			}
			if _, _, res := h.pep("", evaluationPath, asks(), "X-Request-ID", "mine"); res.Header.Get("X-Request-ID") != "mine" {
				t.Errorf("an error has the identifier %q, want the PEP's", res.Header.Get("X-Request-ID"))
			}
			if _, _, res := h.pep(h.token, evaluationPath, asks()); !strings.HasPrefix(res.Header.Get("X-Request-ID"), "req_") {
				t.Errorf("an answer without one has the identifier %q, want one of ours", res.Header.Get("X-Request-ID"))
			}
			for _, kind := range []string{"", "text/plain", "application/xml"} {
				if status, _, _ := h.pep(h.token, evaluationPath, asks(), "Content-Type", kind); status != http.StatusBadRequest {
					t.Errorf("a body of the type %q: %d, want 400", kind, status)
				}
			}
			if status, _, _ := h.pep(h.token, evaluationPath, asks(), "Content-Type", "application/json; charset=utf-8"); status != http.StatusOK {
				t.Errorf("a type with a parameter: %d", status)
			}
			if status, body := h.do(http.MethodGet, evaluationPath, h.token, nil); status != http.StatusMethodNotAllowed {
				t.Errorf("a GET: %d %s", status, body)
			}
		})
		t.Run("section 11.3: whoever is not known gets 401, and whoever may not 403", func(t *testing.T) {
			status, _, res := h.pep("", evaluationPath, asks())
			if status != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("nobody: %d %q", status, res.Header.Get("WWW-Authenticate"))
			}
			if status, _, _ := h.pep("est_pt_nonsense", evaluationPath, asks()); status != http.StatusUnauthorized {
				t.Errorf("a token that is none: %d", status)
			}
			own := h.apiToken()
			if status, a, _ := h.pep(own, evaluationPath, asks()); status != http.StatusOK || !*a.Decision {
				t.Errorf("an agent about itself: %d %v", status, a)
			}
			h.register("other", "support", "support")
			if status, a, _ := h.pep(own, evaluationPath, asks("subject", object{"type": "agent", "id": "other"})); status != http.StatusForbidden {
				t.Errorf("an agent about another: %d %v, want 403", status, a)
			}
			if status, _, _ := h.pep(own, subjectsPath, asks("subject", object{"type": "agent"})); status != http.StatusForbidden {
				t.Errorf("an agent that searches for others: %d, want 403", status)
			}
			for _, who := range []string{"alice", "ann"} {
				if status, a, _ := h.pep(h.invite(who), evaluationPath, asks()); status != http.StatusOK || !*a.Decision {
					t.Errorf("%s: %d %v", who, status, a)
				}
			}
		})
		t.Run("section 7: several at once", func(t *testing.T) { h.batches(t) })
		t.Run("section 8: searches", func(t *testing.T) { h.searches(t) })
		t.Run("section 9: metadata", func(t *testing.T) {
			res, body := h.get(http.MethodGet, "http://"+h.addr+"/.well-known/authzen-configuration")
			var m map[string]any
			if err := json.Unmarshal(body, &m); err != nil || res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/json" {
				t.Fatalf("%d %s", res.StatusCode, body)
			}
			if m["policy_decision_point"] != h.issuer() {
				t.Errorf("the identifier is %v, want that by which the document was found, %s (section 9.2.3)", m["policy_decision_point"], h.issuer())
			}
			for name, path := range map[string]string{
				"access_evaluation_endpoint": evaluationPath, "access_evaluations_endpoint": evaluationsPath,
				"search_subject_endpoint": subjectsPath, "search_resource_endpoint": resourcesPath, "search_action_endpoint": actionsPath,
			} {
				if m[name] != h.issuer()+path {
					t.Errorf("%s is %v", name, m[name])
				}
			}
			for name, v := range m {
				if s, ok := v.(string); v == nil || ok && s == "" {
					t.Errorf("%s has no value, and is there all the same (section 9.2.2)", name)
				}
			}
			if res, body := h.get(http.MethodGet, "http://"+h.addr+"/.well-known/authzen-configuration/t/nobody"); res.StatusCode != http.StatusNotFound {
				t.Errorf("of a tenant that is none: %d %s", res.StatusCode, body)
			}
		})
	})
}

// batches: AuthZEN, section 7.
func (h *house) batches(t *testing.T) {
	decisions := func(body any) (int, []bool, []answer) {
		status, a, _ := h.pep(h.token, evaluationsPath, body)
		var all []bool
		for _, one := range a.Evaluations {
			if one.Decision == nil {
				t.Fatalf("an answer without a decision: %v", a)
			}
			all = append(all, *one.Decision)
		}
		return status, all, a.Evaluations
	}
	read, remove := object{"action": object{"name": "item.read"}}, object{"action": object{"name": "item.delete"}}
	for _, c := range []struct {
		name string
		body object
		want []bool
	}{
		{"7.1.1 defaults, and what replaces them", asks("evaluations", []object{read, remove, {}}), []bool{true, false, true}},
		{"7.1 no defaults", object{"evaluations": []object{asks(), asks("action", object{"name": "item.delete"})}}, []bool{true, false}},
		{"7.1.1 an item's object replaces the whole default", asks("evaluations", []object{{"resource": object{"id": "crm"}}, {}}), []bool{false, true}},
		{"7.1.2.1 execute_all", asks("options", object{"evaluations_semantic": "execute_all"}, "evaluations", []object{remove, read}), []bool{false, true}},
		{"7.1.2.1 deny_on_first_deny", asks("options", object{"evaluations_semantic": "deny_on_first_deny", "other": 1}, "evaluations", []object{read, remove, read}), []bool{true, false}},
		{"7.1.2.1 permit_on_first_permit", asks("options", object{"evaluations_semantic": "permit_on_first_permit"}, "evaluations", []object{remove, read, remove}), []bool{false, true}},
		{"7.2.1 an item that is wrong is a no in its place", asks("action", nil, "evaluations", []any{read, object{}, "x", object{"action": object{"name": 7}}, read}), []bool{true, false, false, false, true}},
		{"7.1 many", asks("evaluations", slices.Repeat([]object{read, remove}, 50)), slices.Repeat([]bool{true, false}, 50)},
	} {
		status, got, all := decisions(c.body)
		if status != http.StatusOK || !slices.Equal(got, c.want) {
			t.Errorf("%s: %d %v, want %v", c.name, status, got, c.want)
		}
		if strings.HasPrefix(c.name, "7.2.1") && len(all) == 5 {
			if e, _ := all[1].Context["error"].(map[string]any); e["status"] != float64(http.StatusBadRequest) || e["message"] == "" {
				t.Errorf("the item that is wrong says %v", all[1].Context)
			}
		}
	}
	for name, body := range map[string]object{"no array": asks(), "an empty array": asks("evaluations", []object{})} {
		if status, a, _ := h.pep(h.token, evaluationsPath, body); status != http.StatusOK || a.Decision == nil || !*a.Decision || a.Evaluations != nil {
			t.Errorf("7.1 %s is a single evaluation: %d %v", name, status, a)
		}
	}
	for name, body := range map[string]object{
		"a semantic that is none":      asks("options", object{"evaluations_semantic": "first"}, "evaluations", []object{read}),
		"evaluations that are no list": asks("evaluations", read), "too many": asks("evaluations", slices.Repeat([]object{read}, 101)),
		"nothing at all": {},
	} {
		if status, _, _ := decisions(body); status != http.StatusBadRequest {
			t.Errorf("%s: %d, want 400", name, status)
		}
	}
}

// searches: AuthZEN, section 8.
func (h *house) searches(t *testing.T) {
	find := func(path string, body any) (int, []string, answer) {
		status, a, _ := h.pep(h.token, path, body)
		var all []string
		for _, r := range a.Results {
			if name, ok := r["name"].(string); ok {
				all = append(all, name)
			} else {
				all = append(all, fmt.Sprint(r["type"], " ", r["id"]))
			}
		}
		return status, all, a
	}
	var crm struct{ ID string }
	h.must(http.MethodGet, "/v1/resources/crm", nil, &crm)
	for _, c := range []struct {
		name, path string
		body       object
		want       []string
	}{
		{"8.4 subjects", subjectsPath, asks("subject", object{"type": "agent"}), []string{"agent " + h.agent}},
		{"8.4 the id is ignored", subjectsPath, asks("subject", object{"type": "agent", "id": "nobody"}), []string{"agent " + h.agent}},
		{"8.4 nobody may", subjectsPath, asks("subject", object{"type": "agent"}, "action", object{"name": "item.delete"}), nil},
		{"8.3 a type that nobody knows", subjectsPath, asks("subject", object{"type": "spaceship"}), nil},
		{"8.5 resources", resourcesPath, asks("resource", object{"type": "http"}), []string{"http " + crm.ID}},
		{"8.5 the id is ignored", resourcesPath, asks("resource", object{"type": "http", "id": "nothing"}), []string{"http " + crm.ID}},
		{"8.5 of another type", resourcesPath, asks("resource", object{"type": "database"}), nil},
		{"8.5 an unknown subject", resourcesPath, asks("resource", object{"type": "http"}, "subject", object{"type": "agent", "id": "nobody"}), nil},
		{"8.6 actions", actionsPath, asks("action", nil), []string{"echo.read", "item.change", "item.read", "slow.read"}},
		{"8.6 an unknown resource", actionsPath, asks("action", nil, "resource", object{"type": "http", "id": "erp"}), nil},
	} {
		status, got, a := find(c.path, c.body)
		if status != http.StatusOK || !slices.Equal(got, c.want) || a.Page.Next == nil || *a.Page.Next != "" || a.Results == nil {
			t.Errorf("%s: %d %v %v, want %v and an empty token", c.name, status, got, a.Page, c.want)
		}
		// 8.1: what is found is allowed when it is asked about.
		for _, r := range a.Results {
			q := asks()
			for name, v := range c.body {
				q[name] = v
			}
			switch c.path {
			case actionsPath:
				q["action"] = r
			case resourcesPath:
				q["resource"] = r
			default:
				q["subject"] = r
			}
			if status, a, _ := h.pep(h.token, evaluationPath, q); status != http.StatusOK || !*a.Decision {
				t.Errorf("%s: %v is found, and not allowed: %d %v", c.name, r, status, a)
			}
		}
	}
	for name, c := range map[string]struct {
		path string
		body object
	}{
		"subjects without an action": {subjectsPath, asks("action", nil)}, "subjects without a resource's id": {subjectsPath, asks("resource", object{"type": "http"})},
		"resources without a subject": {resourcesPath, asks("subject", nil)}, "resources without a subject's id": {resourcesPath, asks("subject", object{"type": "agent"})},
		"actions without a resource": {actionsPath, asks("resource", nil)}, "a limit below zero": {actionsPath, asks("page", object{"limit": -1})},
		"a token that is none": {actionsPath, asks("page", object{"token": "nonsense"})},
	} {
		if status, got, _ := find(c.path, c.body); status != http.StatusBadRequest {
			t.Errorf("%s: %d %v, want 400", name, status, got)
		}
	}
	t.Run("8.2 pages", func(t *testing.T) {
		var all []string
		token, pages := "", 0
		for {
			page := object{"limit": 3}
			if token != "" {
				page = object{"token": token} // as the example of section 8.2.3 does, without the limit
			}
			status, got, a := find(actionsPath, asks("action", nil, "page", page))
			if status != http.StatusOK || a.Page.Next == nil || a.Page.Count != len(got) || len(got) > 3 {
				t.Fatalf("a page: %d %v %v", status, got, a.Page)
			}
			all = append(all, got...)
			pages++
			if *a.Page.Next == "" {
				break
			}
			token = *a.Page.Next
		}
		if want := []string{"echo.read", "item.change", "item.read", "slow.read"}; !slices.Equal(all, want) || pages != 2 {
			t.Errorf("all pages: %v in %d, want %v in 2", all, pages, want)
		}
		for name, body := range map[string]object{
			"another subject":          asks("action", nil, "subject", object{"type": "agent", "id": h.agent}, "page", object{"token": token}),
			"another context":          asks("action", nil, "context", object{"purpose": "marketing"}, "page", object{"token": token}),
			"another limit":            asks("action", nil, "page", object{"token": token, "limit": 2}),
			"a token that was changed": asks("action", nil, "page", object{"token": "_" + token[1:]}),
		} {
			if status, _, _ := find(actionsPath, body); status != http.StatusBadRequest {
				t.Errorf("%s under the token of a page: %d, want 400", name, status)
			}
		}
		if status, _, _ := find(resourcesPath, asks("page", object{"token": token})); status != http.StatusBadRequest {
			t.Errorf("the token of another search: %d, want 400", status)
		}
		if status, _, _ := h.pep(h.apiToken(), actionsPath, asks("action", nil, "page", object{"token": token})); status != http.StatusBadRequest {
			t.Errorf("somebody else's token of a page: %d, want 400", status)
		}
	})
}

// What a PEP hears is what the gateway says, and it is on record: `estover why`
// explains it. Asking gives nothing and leaves nothing behind.
func TestAuthZENIsTheGateway(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		session := h.openSession()
		token := h.accessToken(session)
		same := func(when string) {
			t.Helper()
			for action, call := range map[string][2]string{
				"item.read": {http.MethodGet, "/u/crm/v1/items/7"}, "item.change": {http.MethodPut, "/u/crm/v1/items/7"}, "item.delete": {http.MethodDelete, "/u/crm/v1/items/7"},
			} {
				status, body := h.do(call[0], call[1], token, nil)
				_, a, _ := h.pep(h.token, evaluationPath, asks("action", object{"name": action, "properties": object{"id": "7"}}, "context", object{"session": session}))
				if *a.Decision != (status == http.StatusOK) || !*a.Decision && status == http.StatusForbidden && a.Context["reason"] != h.code(body) {
					t.Errorf("%s, %s: the gateway says %d %s, the decision point %v %v", when, action, status, body, *a.Decision, a.Context)
				}
			}
		}
		same("at first")
		h.activate(append(policy.Starter(), policy.File{Path: "frozen.rego", Text: `# METADATA
# title: Frozen
# description: Nothing is changed.
package tenant.frozen

# METADATA
# title: Nothing is changed
# description: Changes are frozen.
deny contains "frozen" if input.action.effect == "write"
`}, policy.File{Path: "frozen_test.rego", Text: `package tenant.frozen_test

import data.tenant.frozen

test_frozen if {
	frozen.deny == {"frozen"} with input as {"action": {"effect": "write"}}
	frozen.deny == set() with input as {"action": {"effect": "read"}}
}
`}))
		same("under another policy")
		_, a, _ := h.pep(h.token, evaluationPath, asks("action", object{"name": "item.change"}))
		if *a.Decision || a.Context["reason"] != "frozen" {
			t.Fatalf("a change under the policy that freezes: %v", a)
		}
		var told struct {
			Explanation struct {
				Allow bool
				Rules []struct{ Code string }
			}
		}
		id, _ := a.Context["evaluation_id"].(string)
		h.must(http.MethodGet, "/v1/events/"+id+"/why", nil, &told)
		if why := told.Explanation; why.Allow || len(why.Rules) != 1 || why.Rules[0].Code != "frozen" {
			t.Errorf("why %s: %+v, want the rule that froze it", id, why)
		}
		var e struct {
			Action, Actor, Target, Session string
			Detail                         object
		}
		h.must(http.MethodGet, "/v1/events/"+id, nil, &e)
		if e.Action != "access.evaluate" || !strings.HasPrefix(e.Actor, "user:") || e.Target != "agent:"+h.agent || e.Detail["asked"] != "item.change" {
			t.Errorf("the evaluation is on record as %+v", e)
		}
		if status, body := h.do(http.MethodPut, "/u/crm/v1/items/7", h.token, nil); status != http.StatusUnauthorized {
			t.Errorf("whoever asked calls by themselves: %d %s", status, body)
		}
		h.must(http.MethodPost, "/v1/sessions/"+session+"/end", object{"cause": "done"}, nil)
		if _, a, _ := h.pep(h.token, evaluationPath, asks("context", object{"session": session})); *a.Decision || a.Context["reason"] != "kernel_session_ended" {
			t.Errorf("in a session that has ended: %v", a)
		}
		h.must(http.MethodPost, "/v1/agents/bot/holds", object{"kind": "suspended", "reason": "a test"}, nil)
		if _, a, _ := h.pep(h.token, evaluationPath, asks()); *a.Decision || a.Context["reason"] != "kernel_agent_held" {
			t.Errorf("about an agent that is held: %v", a)
		}
	})
}

// Obligations: AuthZEN Profile for Obligations.
func TestAuthZENObligations(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		type duty struct {
			ID, Type   string
			Properties object
		}
		duties := func(context any) (list []duty) {
			b, _ := json.Marshal(context)
			_ = json.Unmarshal(b, &list)
			return list
		}
		// What is confidential is recorded in full, which the PEP alone can do.
		_, a, _ := h.pep(h.token, evaluationPath, asks())
		list := duties(a.Context["obligations"])
		if !*a.Decision || len(list) != 1 || list[0].ID == "" || list[0].Type != "custom" || list[0].Properties["vendor"] != "estover" || list[0].Properties["action"] != "record" {
			t.Fatalf("the obligations of a call on confidential data: %v", a)
		}
		for _, c := range []struct {
			name string
			says []string
			want bool
		}{
			{"it can", []string{"custom"}, true},
			{"it can, and more", []string{"custom", "step-up"}, true},
			{"it cannot", []string{"notification"}, false},
			{"it can nothing", []string{}, false},
			{"what we do not give is ignored", []string{"record", "estover"}, false},
		} {
			q := asks("context", object{"purpose": "support", "supported_obligations": c.says})
			if _, a, _ := h.pep(h.token, evaluationPath, q); *a.Decision != c.want || !c.want && a.Context["reason"] != "obligation_unmet" {
				t.Errorf("%s: %v, want %v", c.name, a, c.want)
			}
			q["action"] = nil
			delete(q, "action")
			_, a, _ := h.pep(h.token, actionsPath, q)
			if got := len(a.Results) > 0; got != c.want {
				t.Errorf("%s, in a search: %v, want results: %v", c.name, a.Results, c.want)
			}
			for _, r := range a.Results {
				if len(duties(r["obligations"])) != 1 {
					t.Errorf("%s: the result %v has not its obligations", c.name, r)
				}
			}
		}
		h.activate(append(policy.Starter(), policy.File{Path: "duties.rego", Text: `# METADATA
# title: Duties
# description: What comes with reading.
package tenant.duties

# METADATA
# title: Told
oblige contains {"type": "notification", "to": "owner@example.com"} if input.action.name == "item.read"

# METADATA
# title: Signed in well
oblige contains {"type": "step-up", "acr_value": "phr", "amr_values": "hwk pin"} if input.action.name == "item.read"

# METADATA
# title: Slow
oblige contains {"type": "throttle", "scope": "agent", "seconds": 5} if input.action.name == "item.read"
`}, policy.File{Path: "duties_test.rego", Text: `package tenant.duties_test

import data.tenant.duties

test_duties if count(duties.oblige) == 3 with input as {"action": {"name": "item.read"}}
`}))
		_, a, _ = h.pep(h.token, evaluationPath, asks())
		by := map[string]object{}
		for _, d := range duties(a.Context["obligations"]) {
			name := d.Type
			if name == "custom" {
				name = fmt.Sprint(d.Properties["action"])
			}
			by[name] = d.Properties
		}
		if by["notification"]["to"] != "owner@example.com" || by["notification"]["body"] == nil {
			t.Errorf("section 5.2: a notification has to and body: %v", by["notification"])
		}
		if methods, _ := by["step-up"]["amr_values"].([]any); by["step-up"]["acr_value"] != "phr" || len(methods) != 2 {
			t.Errorf("section 5.1: a step-up has acr_value and a list amr_values: %v", by["step-up"])
		}
		if by["throttle"]["vendor"] != "estover" || by["record"] == nil || len(by) != 4 {
			t.Errorf("the obligations: %v", by)
		}
	})
}

// A program asks about agents of a kind when a rule of the organisation lets it.
func TestAuthZENEnforcementPoint(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		h.register("door", "pep", "enforcement")
		var c struct {
			ID string `json:"client_id"`
			S  string `json:"client_secret"`
		}
		h.must(http.MethodPost, "/v1/agents/door/credentials", object{"kind": "secret"}, &c)
		h.agent, h.secret = c.ID, c.S
		token := h.apiToken()
		if status, _, _ := h.pep(token, evaluationPath, asks()); status != http.StatusForbidden {
			t.Fatalf("before there is a rule: %d, want 403", status)
		}
		h.activate(append(policy.Starter(), policy.File{Path: "pep.rego", Text: `# METADATA
# title: Enforcement points
# description: Programs that enforce decisions of ours ask for them.
package tenant.enforcement

# METADATA
# title: Enforcement points ask about HTTP resources
permit contains "pep_asks" if {
	input.op == "access.evaluate"
	input.agent.blueprint == "pep"
	input.params.resource_type == "http"
}
`}, policy.File{Path: "pep_test.rego", Text: `package tenant.enforcement_test

import data.tenant.enforcement

test_pep if {
	asked := {"op": "access.evaluate", "agent": {"blueprint": "pep"}, "params": {"resource_type": "http"}}
	enforcement.permit == {"pep_asks"} with input as asked
	enforcement.permit == set() with input as object.union(asked, {"params": {"resource_type": "database"}})
}
`}))
		if status, a, _ := h.pep(token, evaluationPath, asks()); status != http.StatusOK || !*a.Decision {
			t.Errorf("an enforcement point: %d %v", status, a)
		}
		if status, _, _ := h.pep(token, evaluationPath, asks("resource", object{"type": "database", "id": "crm"})); status != http.StatusForbidden {
			t.Errorf("about another type of resource: %d, want 403", status)
		}
		if status, body := h.do(http.MethodGet, "/v1/agents", token, nil); status != http.StatusForbidden {
			t.Errorf("an enforcement point reads the registry: %d %s", status, body)
		}
	})
}

// Each organisation has a decision point of its own, where nothing of another is
// known.
func TestAuthZENTenants(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		acme := h.found("acme", "127.0.0.0/8")
		acme.apply()
		host, _, _ := strings.Cut(h.addr, "/")
		for issuer, path := range map[string]string{"http://localhost:" + h.port(): "", "http://localhost:" + h.port() + "/t/acme": "/t/acme"} {
			res, body := h.get(http.MethodGet, "http://"+host+"/.well-known/authzen-configuration"+path)
			var m object
			if err := json.Unmarshal(body, &m); err != nil || res.StatusCode != http.StatusOK {
				t.Fatalf("%s: %d %s", issuer, res.StatusCode, body)
			}
			if m["policy_decision_point"] != issuer || m["access_evaluation_endpoint"] != issuer+evaluationPath || m["access_request_endpoint"] != issuer+accessRequests || m["jwks_uri"] != issuer+"/oauth/jwks" {
				t.Errorf("the metadata of %s: %v", issuer, m)
			}
		}
		ask := func(at *house, token, agent string) (int, answer) {
			b, err := json.Marshal(asks("subject", object{"type": "agent", "id": agent}))
			if err != nil {
				t.Fatal(err)
			}
			status, body := at.do(http.MethodPost, evaluationPath, token, json.RawMessage(b))
			var a answer
			_ = json.Unmarshal(body, &a)
			return status, a
		}
		for _, one := range []*house{h, acme} {
			if status, a := ask(one, one.token, one.agent); status != http.StatusOK || a.Decision == nil || !*a.Decision {
				t.Errorf("%s about its own: %d %v", one.addr, status, a)
			}
		}
		if status, a := ask(acme, acme.token, h.agent); status != http.StatusOK || *a.Decision || a.Context["reason"] != "kernel_agent_unknown" {
			t.Errorf("about another organisation's agent: %d %v", status, a)
		}
		if status, _ := ask(acme, h.token, acme.agent); status != http.StatusUnauthorized {
			t.Errorf("an administrator of another organisation: %d, want 401", status)
		}
	})
}

// A question counts against no budget, and the answer is the gateway's when one is
// used up.
func TestAuthZENBudgets(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		s := h.seek("frugal")
		session := h.openSessionOf("frugal")
		h.must(http.MethodPost, "/v1/grants", object{
			"agent": "frugal", "resource": "crm", "actions": []string{"item.read"}, "purposes": []string{"support"}, "class": "confidential", "budgets": object{"calls": 1},
		}, nil)
		q := s.question("context", object{"session": session}, "action", object{"name": "item.read", "properties": object{"id": "7"}})
		for range 5 {
			if _, a, _ := s.pep(h.token, evaluationPath, q); !*a.Decision {
				t.Fatalf("before anything was used: %v", a)
			}
		}
		token := s.accessTokenOf(session)
		if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", token, nil); status != http.StatusOK {
			t.Fatalf("the one call: %d %s", status, body)
		}
		status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", token, nil)
		_, a, _ := s.pep(h.token, evaluationPath, q)
		if status == http.StatusOK || *a.Decision {
			t.Errorf("with the budget used up the gateway says %d %s, the decision point %v", status, body, a)
		}
	})
}
