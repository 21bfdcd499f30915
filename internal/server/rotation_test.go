package server_test

import (
	"net/http"
	"testing"
	"time"
)

// M17, R10: how often a secret is rotated goes by the most of what is said of it, the
// class of the data that it opens, and how risky those are held to be who use it.
func TestRiskOfASecret(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		h.sells()
		h.must(http.MethodPost, "/v1/secrets", map[string]any{"path": "shop/kept", "risk": "low", "class": "internal", "description": "", "owner": "", "destinations": []string{"shop.example"}}, nil)
		h.must(http.MethodPost, "/v1/secret/versions?path=shop/kept", map[string]any{"fields": map[string]string{"username": "kept-1", "key": "a key of before"}}, nil)
		due := func() time.Duration {
			t.Helper()
			var r struct {
				DueAt time.Time `json:"due_at"`
			}
			h.must(http.MethodPut, "/v1/rotation?path=shop/kept", map[string]any{"kind": "keys", "target": "shop", "users": []string{"kept-1", "kept-2"}}, &r)
			return time.Until(r.DueAt)
		}
		const day = 24 * time.Hour
		between := func(what string, least, most time.Duration) {
			t.Helper()
			if d := due(); d < least-time.Hour || d > most {
				t.Errorf("%s: it is due in %s, want %s to %s", what, d, least, most)
			}
		}
		between("a secret of low risk", 27*day, 30*day)
		var bot struct{ ID string }
		h.must(http.MethodGet, "/v1/agents/bot", nil, &bot)
		outside(t, h.config.Database, `insert into secret_use (tenant_id, secret_id, version, subject, session_id, via, first_at, last_at, count)
		select tenant_id, id, 1, 'agent:`+bot.ID+`', '', 'gateway', 1, 1, 1 from secret where path = 'shop/kept'`)
		between("used by an agent of low risk", 27*day, 30*day)
		for _, band := range []struct {
			name        string
			least, most time.Duration
		}{{"raised", 6 * day, 7 * day}, {"high", 21 * time.Hour, day}, {"low", 27 * day, 30 * day}} {
			h.must(http.MethodPut, "/v1/agents/"+bot.ID+"/risk", map[string]any{"band": band.name, "reason": "a test"}, nil)
			between("used by an agent of risk "+band.name, band.least, band.most)
		}
	})
}
