package server_test

import (
	"net/http"
	"testing"

	"estover.dev/internal/policy"
)

// A call that policy ties to what the gateway cannot do is refused, and that is
// on record like any other refusal.
func TestObligationUnmetIsOnRecord(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		token := h.accessToken("")
		if res, body := h.get(http.MethodGet, h.issuer()+"/u/crm/v1/items/7", "Authorization", "Bearer "+token); res.StatusCode != http.StatusOK {
			t.Fatalf("a call before: %d %s", res.StatusCode, body)
		}
		h.activate(append(policy.Starter(), policy.File{Path: "watched.rego", Text: `# METADATA
# title: Watched
# description: Reading wants a kind of sign-in that nobody can be asked for.
package tenant.watched

# METADATA
# title: Reading wants a fingerprint
oblige contains {"type": "step-up", "amr_values": "fpt"} if input.op == "gateway.call"
`}, policy.File{Path: "watched_test.rego", Text: `package tenant.watched_test

import data.tenant.watched

test_reading if {
	watched.oblige == {{"type": "step-up", "amr_values": "fpt"}} with input as {"op": "gateway.call"}
}
`}))
		res, body := h.get(http.MethodGet, h.issuer()+"/u/crm/v1/items/7", "Authorization", "Bearer "+token)
		if res.StatusCode != http.StatusForbidden || h.code(body) != "obligation_unmet" {
			t.Errorf("a call that policy ties to a fingerprint: %d %s", res.StatusCode, body)
		}
		var e struct{ Outcome string }
		h.must(http.MethodGet, "/v1/events/"+res.Header.Get("Estover-Decision"), nil, &e)
		if e.Outcome != "refused" {
			t.Errorf("the decision is on record as %q, want refused", e.Outcome)
		}
	})
}

// activate has a bundle decide from here on.
func (h *house) activate(b policy.Bundle) {
	h.t.Helper()
	var pushed struct{ Revision struct{ Digest string } }
	h.must(http.MethodPost, "/v1/policies", map[string]any{"files": b}, &pushed)
	h.must(http.MethodPost, "/v1/policies/"+pushed.Revision.Digest+"/activate", map[string]string{"reason": "a test"}, nil)
}
