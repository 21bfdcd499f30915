package server_test

import (
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/policy"
	"estover.dev/internal/server"
)

// obliged is the policy that an installation starts with, and an obligation of
// calls beside.
func obliged(oblige string) policy.Bundle {
	return append(policy.Starter(), policy.File{Path: "obliged.rego", Text: `# METADATA
# title: Obliged
# description: What a test has policy ask for.
package tenant.obliged

# METADATA
# title: Calls come with something
oblige contains ` + oblige + ` if input.op == "gateway.call"
`}, policy.File{Path: "obliged_test.rego", Text: `package tenant.obliged_test

import data.tenant.obliged

test_call if {
	obliged.oblige == {` + oblige + `} with input as {"op": "gateway.call"}
}
`})
}

// forbidden has no call through.
func forbidden() policy.Bundle {
	return append(policy.Starter(), policy.File{Path: "closed.rego", Text: `# METADATA
# title: Closed
# description: Nothing goes through.
package tenant.closed

# METADATA
# title: Closed
# description: Nothing goes through at the moment.
# custom:
#   next: Wait until it is open again.
deny contains "closed" if input.op == "gateway.call"
`}, policy.File{Path: "closed_test.rego", Text: `package tenant.closed_test

import data.tenant.closed

test_call if {
	closed.deny == {"closed"} with input as {"op": "gateway.call"}
}
`})
}

// wary has nothing through to an agent whose risk is raised.
func wary() policy.Bundle {
	return append(policy.Starter(), policy.File{Path: "wary.rego", Text: `# METADATA
# title: Wary
# description: Calls of agents whose risk is raised.
package tenant.wary

# METADATA
# title: No grant is used by an agent of raised risk
# description: The agent's risk is raised, and nothing reaches the resource until it falls.
# custom:
#   next: Ask an operator to look at the agent.
deny contains "risky_call" if {
	input.op == "gateway.call"
	input.facts.risk_band in {"raised", "high", "critical"}
	input.facts.entitled == true
}
`}, policy.File{Path: "wary_test.rego", Text: `package tenant.wary_test

import data.tenant.wary

test_raised if {
	wary.deny == {"risky_call"} with input as {"op": "gateway.call", "facts": {"risk_band": "raised", "entitled": true}}
}

test_low if {
	wary.deny == set() with input as {"op": "gateway.call", "facts": {"risk_band": "low", "entitled": true}}
}
`})
}

// What is decided about an agent, a resource or the policy reaches the streams
// that are open, at once, and those alone that it is about (M41).
func TestStreamsAreDecidedAgain(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		put := func(changes map[string]string) { h.change("", "bot", "alice", changes) }
		as := func() { put(nil) }
		risk := func(band string) {
			h.must(http.MethodPut, "/v1/agents/bot/risk", map[string]string{"band": band, "reason": "as it looks"}, nil)
		}
		for _, c := range []struct {
			name         string
			change, back func()
			goesOn       bool
		}{
			{"the clearance is lowered", func() { put(map[string]string{"clearance": "internal"}) }, as, false},
			{"the purpose is taken away", func() { put(map[string]string{"purposes": "[research]"}) }, as, false},
			{"the team changes, which nothing rests on", func() { put(map[string]string{"team": "desk"}) }, as, true},
			{"a policy is activated that forbids it", func() { h.activate(forbidden()) }, func() { h.activate(policy.Starter()) }, false},
			{"a policy is activated that asks for more", func() { h.activate(obliged(`{"type": "evidence", "mode": "strict"}`)) }, func() { h.activate(policy.Starter()) }, false},
			{"a policy is activated that says the same", func() {
				h.activate(append(policy.Starter(), policy.File{Path: "note.rego", Text: "# METADATA\n# title: A note\n# description: It says nothing.\npackage tenant.note\n"}))
			}, func() { h.activate(policy.Starter()) }, true},
			{"the risk is raised, which nothing rests on", func() { risk("critical") }, func() { risk("low"); h.activate(wary()) }, true},
			{"the risk is raised, and a policy says no to that", func() { risk("raised") }, func() { risk("low") }, false},
			{"the reason of a low risk changes", func() { risk("low") }, func() { h.activate(policy.Starter()) }, true},
		} {
			stream := h.stream(h.accessToken(h.openSession()))
			t.Cleanup(func() { _ = stream.Close() })
			ended := make(chan error, 1)
			go func() {
				_, err := io.ReadAll(stream)
				ended <- err
			}()
			c.change()
			at := time.Now()
			limit := soon
			if c.goesOn {
				limit = time.Second
			}
			select {
			case err := <-ended:
				if c.goesOn {
					t.Errorf("%s: the stream ended (%v), want it to go on", c.name, err)
				} else if err == nil {
					t.Errorf("%s: the stream ended as if it were whole", c.name)
				}
				if took := time.Since(at); took > limit {
					t.Errorf("%s: the stream was cut after %s, want %s at most", c.name, took, limit)
				}
			case <-time.After(limit):
				if !c.goesOn {
					t.Errorf("%s: the stream goes on", c.name)
				}
			}
			_ = stream.Close()
			c.back()
		}
	})
}

// A policy may want sessions that are bound to processes, and hears that from
// whoever opens one.
func TestPolicyReadsWhatASessionIsBoundTo(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		h.activate(append(policy.Starter(), policy.File{Path: "bound.rego", Text: `# METADATA
# title: Bound
# description: Calls are made in sessions that are bound to processes.
package tenant.bound

# METADATA
# title: Bound to processes
# description: The session is not bound to the processes of its program.
# custom:
#   next: Start the agent with estover run --bind-process.
deny contains "not_bound" if {
	input.op == "gateway.call"
	not input.facts.bound == "process"
}
`}, policy.File{Path: "bound_test.rego", Text: `package tenant.bound_test

import data.tenant.bound

test_user if {
	bound.deny == {"not_bound"} with input as {"op": "gateway.call", "facts": {"bound": "user"}}
}

test_process if {
	bound.deny == set() with input as {"op": "gateway.call", "facts": {"bound": "process"}}
}
`}))
		for bound, want := range map[string]int{"": http.StatusForbidden, "none": http.StatusForbidden, "user": http.StatusForbidden, "process": http.StatusOK} {
			var opened struct{ Session struct{ ID string } }
			wish := map[string]string{"agent": "bot", "purpose": "support"}
			if bound != "" {
				wish["bound"] = bound
			}
			h.must(http.MethodPost, "/v1/sessions", wish, &opened)
			if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", h.accessToken(opened.Session.ID), nil); status != want {
				t.Errorf("a call in a session that is bound to %q: %d %s, want %d", bound, status, body, want)
			}
		}
	})
}

// The end of a session and the end of a policy's consent reach what is open on
// another server on the same database, within a second.
func TestStreamsOnAnotherServerEnd(t *testing.T) {
	h := build(t, dbtest.Postgres(t))
	second := &house{t: t, key: h.key, logs: &syncBuffer{}, addr: freeAddr(t), token: h.token, upstream: h.upstream, agent: h.agent, secret: h.secret}
	second.config = server.Config{
		Data: filepath.Join(t.TempDir(), "data"), Database: h.config.Database, Listen: second.addr, Gateway: freeAddr(t), Plain: true,
		RootKey: "file:" + filepath.Join(h.config.Data+"-keys", "root.key"), Issuer: h.issuer(),
	}
	second.start()
	for _, c := range []struct {
		what string
		end  func(session string)
	}{
		{"the session ends", func(id string) {
			h.must(http.MethodPost, "/v1/sessions/"+id+"/end", map[string]string{"cause": "enough"}, nil)
		}},
		{"the clearance is lowered", func(string) { h.change("", "bot", "alice", map[string]string{"clearance": "internal"}) }},
		{"it is forbidden", func(string) { h.activate(forbidden()) }},
	} {
		h.change("", "bot", "alice", nil)
		id := h.openSession()
		var stream io.ReadCloser
		second.until("a stream is open on the other server", func() bool { // it may not have heard yet of what was given back
			token := h.accessToken(id)
			if status, _ := second.do(http.MethodGet, "/u/crm/v1/items/7", token, nil); status != http.StatusOK {
				return false
			}
			stream = second.stream(token)
			return true
		})
		ended := make(chan error, 1)
		t.Cleanup(func() { _ = stream.Close() })
		go func() {
			_, err := io.ReadAll(stream)
			ended <- err
		}()
		c.end(id)
		at := time.Now()
		select {
		case err := <-ended:
			if took := time.Since(at); err == nil || took > soon {
				t.Errorf("%s on one server: the stream on the other ended after %s with %v, want it cut", c.what, took, err)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s on one server: the stream on the other goes on", c.what)
		}
	}
}

// What was opened with a token ends when the token is revoked, and what was opened
// with another of the same session goes on.
func TestStreamsEndWithARevokedToken(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		id := h.openSession()
		token := h.accessToken(id)
		revoked, other := flows(h.stream(token), t), flows(h.stream(h.accessToken(id)), t)
		res, err := http.PostForm("http://"+h.addr+"/oauth/revoke", url.Values{"token": {token}, "client_id": {h.agent}, "client_secret": {h.secret}})
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("revoking: %v %v", res, err)
		}
		at := time.Now()
		h.until("the stream of a revoked token is cut", func() bool { return !revoked() })
		if took := time.Since(at); took > soon {
			t.Errorf("the stream of a revoked token was cut after %s", took)
		}
		if !other() {
			t.Error("the stream of another token was cut too")
		}
	})
}
