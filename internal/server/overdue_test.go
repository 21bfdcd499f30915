package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Q6: an agent is not retired while a credential of it is overdue. One that was retired
// before is shown with what is left of it, and the metrics count it.
func TestOverdueIsTold(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		type page struct {
			ID, Status    string
			LeasesOverdue int64 `json:"leases_overdue"`
		}
		show := func(name string) (p page) {
			h.must(http.MethodGet, "/v1/agents/"+name, nil, &p)
			return p
		}
		ago := time.Now().Add(-10 * time.Minute).UnixMicro()
		lease := func(id, agent, state string) {
			due, next := "null", "null"
			if state == "revoking" {
				due, next = fmt.Sprint(ago), fmt.Sprint(time.Now().Add(time.Hour).UnixMicro())
			}
			outside(t, h.config.Database, fmt.Sprintf(`insert into lease (tenant_id, id, role, role_id, target_id, name, template, resource_id, delivery, state, trial, session_id, agent_id,
					holder, token_id, created_at, expires_at, expires_by, max_at, create_by, create_done, due_at, next_try_at)
				values ('default', '%s', 'reader', 'rol_1', 'tgt_none', 'e_%s', '{}', '', 'plaintext', '%s', false, '', '%s', 'agent:%s', '', %d, %d, 'ttl', %d, %d, %d, %s, %s)`,
				id, id, state, agent, agent, ago, ago+int64(24*time.Hour/time.Microsecond), ago+int64(24*time.Hour/time.Microsecond), ago, ago, due, next))
		}
		retire := func(name string) (int, []byte) {
			return h.do(http.MethodPost, "/v1/agents/"+name+"/holds", h.token, map[string]string{"kind": "retired", "reason": "a test"})
		}
		counted := func(n string) bool {
			_, metrics := h.do(http.MethodGet, "/metrics", h.token, nil)
			return strings.Contains(string(metrics), "\nestover_leases_overdue "+n+"\n")
		}
		if !counted("0") {
			t.Error("the metrics count what is overdue where nothing is")
		}
		bot := show("bot")
		lease("lse_late", bot.ID, "revoking")
		if status, body := retire("bot"); status != http.StatusConflict || !strings.Contains(string(body), "agent_has_overdue_leases") {
			t.Errorf("retiring an agent of which a credential is overdue: %d %s", status, body)
		}
		if p := show("bot"); p.LeasesOverdue != 1 || p.Status == "retired" || !counted("1") {
			t.Errorf("it is shown as %+v, and counted as one: %v", p, counted("1"))
		}
		outside(t, h.config.Database, `update lease set state = 'ended', ended_at = due_at, next_try_at = null where id = 'lse_late'`)

		lease("lse_live", bot.ID, "live")
		if status, body := retire("bot"); status >= 300 {
			t.Fatalf("retiring it while its credential is live: %d %s", status, body)
		}
		outside(t, h.config.Database, fmt.Sprintf(`update lease set due_at = %d where id = 'lse_live' and state = 'revoking'`, ago))
		listed := func() (status string) {
			var list struct{ Items []page }
			h.must(http.MethodGet, "/v1/agents", nil, &list)
			for _, a := range list.Items {
				if a.ID == bot.ID {
					status = a.Status
				}
			}
			return status
		}
		if p := show("bot"); p.LeasesOverdue != 1 || p.Status != "retiring" || listed() != "retiring" || !counted("1") {
			t.Errorf("retired, it is shown as %+v, listed as %s, and counted as one: %v", p, listed(), counted("1"))
		}
		outside(t, h.config.Database, `update lease set state = 'ended', ended_at = due_at, next_try_at = null where id = 'lse_live'`)
		if p := show("bot"); p.LeasesOverdue != 0 || p.Status != "retired" || listed() != "retired" {
			t.Errorf("when nothing of it is left, it is shown as %+v and listed as %s", p, listed())
		}
	})
}
