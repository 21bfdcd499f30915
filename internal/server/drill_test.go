package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"estover.dev/attest"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/policy"
)

// A drill.
type drilled struct {
	ID, Containment, Error string
	Refused                int64 `json:"refused_micros"`
	Stream                 int64 `json:"stream_micros"`
	Zero                   int64 `json:"zero_micros"`
	Slow                   bool
}

// A drill contains a decoy that really calls and streams through the gateway, and
// measures it. One that takes longer than it may is an alarm, and nothing of any
// is left (M33).
func TestDrill(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		stream := h.stream(h.accessToken(""))
		defer stream.Close()
		var d drilled
		h.must(http.MethodPost, "/v1/drills", map[string]int{"bound_millis": 60_000}, &d)
		if d.Refused <= 0 || d.Stream <= 0 || d.Zero <= 0 || d.Slow || d.Error != "" || d.Containment == "" {
			t.Errorf("the drill says %+v", d)
		}
		status, certificate := h.do(http.MethodGet, "/v1/containments/"+d.Containment+"/certificate", h.token, nil)
		if report := attest.Verify(certificate, h.trust()); status != http.StatusOK || !report.OK() {
			t.Errorf("the certificate of a drill: %d\n%s", status, report)
		}
		if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", h.accessToken(""), nil); status != http.StatusOK {
			t.Errorf("an agent that is none of the drill's: %d %s", status, body)
		}

		var slow drilled
		h.must(http.MethodPost, "/v1/drills", map[string]int{"bound_millis": 1}, &slow)
		var alarms struct{ Items []struct{ Target string } }
		h.must(http.MethodGet, "/v1/events?action=drill.alarm", nil, &alarms)
		if !slow.Slow || len(alarms.Items) != 1 || alarms.Items[0].Target != "drill:"+slow.ID {
			t.Errorf("a drill that takes longer than a millisecond: %+v, with the alarms %+v", slow, alarms.Items)
		}
		var list struct{ Items []drilled }
		h.must(http.MethodGet, "/v1/drills", nil, &list)
		if len(list.Items) != 2 || list.Items[0].ID != slow.ID || list.Items[1].Zero != d.Zero {
			t.Errorf("the drills are %+v", list.Items)
		}
		for what, path := range map[string]string{"agents": "/v1/agents?limit=200", "resources": "/v1/resources?limit=200", "grants": "/v1/grants?live=true"} {
			status, body := h.do(http.MethodGet, path, h.token, nil)
			var all struct {
				Items []struct{ Name, Status, ManagedBy string }
			}
			if err := json.Unmarshal(body, &all); status != http.StatusOK || err != nil {
				t.Fatalf("%s: %d %s", what, status, body)
			}
			for _, one := range all.Items {
				if strings.HasPrefix(one.Name, "drill-") && one.Status != "retired" {
					t.Errorf("of the %s a drill has left %+v", what, one)
				}
			}
		}
		if status, body := h.do(http.MethodPost, "/v1/drills", h.apiToken(), map[string]int{}); status != http.StatusForbidden {
			t.Errorf("an agent holds a drill: %d %s, want 403", status, body)
		}
	})
}

// A server that is told to holds drills by itself, the first one at once, and tells
// in its log of one that is too slow.
func TestDrillBySchedule(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	h.restart(func() { h.config.DrillEvery, h.config.DrillBound = "1m", "1ms" })
	var list struct {
		Items []struct {
			By, Error string
			Slow      bool
		}
	}
	h.until("a drill was held", func() bool {
		h.must(http.MethodGet, "/v1/drills", nil, &list)
		return len(list.Items) > 0
	})
	if d := list.Items[0]; d.By != "system:drill" || !d.Slow || d.Error != "" {
		t.Errorf("the drill by the schedule is %+v", d)
	}
	h.until("the log says that it was slow", func() bool {
		return strings.Contains(h.logs.String(), "a drill of the kill switch was too slow or failed")
	})
}

// A policy may want two people even where an administrator is alone.
func TestNobodyLiftsAlone(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	h.activate(append(policy.Starter(), policy.File{Path: "containment.rego", Text: `# METADATA
# title: Containment
# description: What holds for the holds of containments.
package tenant.containment

# METADATA
# title: Nobody lifts alone
# description: The hold of a containment is lifted by two people.
# custom:
#   next: Make somebody else an approver, and ask again.
deny contains "nobody_lifts_alone" if input.op == "containment.lift"
`}))
	var done contained
	h.must(http.MethodPost, "/v1/containments", map[string]string{"agent": "bot", "reason": "a drill"}, &done)
	if status, body := h.do(http.MethodPost, "/v1/holds/"+done.Hold+"/lift", h.token, map[string]string{"reason": "mine"}); h.code(body) != "nobody_lifts_alone" {
		t.Errorf("lifting a hold alone, where policy denies it: %d %s", status, body)
	}
	h.must(http.MethodPost, "/v1/people", map[string]any{"name": "bob", "roles": []string{"approver"}}, nil)
	var asked struct{ Request string }
	h.must(http.MethodPost, "/v1/holds/"+done.Hold+"/lift", map[string]string{"reason": "the prompt was mended"}, &asked)
	if status, body := h.do(http.MethodPost, "/v1/access/requests/"+asked.Request+"/approve", h.invite("bob"), map[string]any{}); status != http.StatusOK {
		t.Errorf("an approver approves it: %d %s", status, body)
	}
	if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", h.accessToken(""), nil); status != http.StatusOK {
		t.Errorf("after the hold was lifted: %d %s", status, body)
	}
}

// The emergency codes let somebody in who has no token, and the log is loud.
func TestBreakGlass(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		if status, body := h.do(http.MethodPost, "/v1/break-glass/codes", h.invite("alice"), map[string]int{"shares": 3, "quorum": 2}); status != http.StatusForbidden {
			t.Errorf("an operator makes emergency codes: %d %s, want 403", status, body)
		}
		var made struct{ Codes []string }
		h.must(http.MethodPost, "/v1/break-glass/codes", map[string]int{"shares": 3, "quorum": 2}, &made)
		open := func(codes ...string) (int, []byte) {
			return h.do(http.MethodPost, "/v1/break-glass/open", "", map[string]any{"codes": codes, "reason": "nobody can come in"})
		}
		if status, body := open(made.Codes[0]); h.code(body) != "break_glass_refused" || status != http.StatusForbidden {
			t.Errorf("with one of two codes: %d %s", status, body)
		}
		status, body := open(made.Codes[2], made.Codes[0])
		var in struct{ Token string }
		if err := json.Unmarshal(body, &in); status != http.StatusOK || err != nil {
			t.Fatalf("with two codes: %d %s", status, body)
		}
		if status, body := h.do(http.MethodPost, "/v1/people/alice/invitations", in.Token, map[string]int{}); status != http.StatusOK {
			t.Errorf("the emergency administrator lets somebody in: %d %s", status, body)
		}
		if status, body := open(made.Codes[1], made.Codes[0]); status != http.StatusForbidden {
			t.Errorf("with codes that are used up: %d %s", status, body)
		}
		if !strings.Contains(h.logs.String(), "THE GLASS WAS BROKEN") {
			t.Error("the log says nothing of the glass")
		}
		h.leaksNothing(append(made.Codes, in.Token)...)
	})
}
