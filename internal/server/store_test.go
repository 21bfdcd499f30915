package server_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// M16: who runs the server is told by the doctor and by the metrics that a secret has not
// come to another vault, or that somebody else has changed it there, and what to do.
func TestPushesAreTold(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		var foreign atomic.Bool // somebody else has written there; until then it does not answer
		vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case !foreign.Load():
				w.WriteHeader(http.StatusServiceUnavailable)
			case r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/team/metadata/"):
				_, _ = w.Write([]byte(`{"data":{"current_version":1,"versions":{"1":{"created_time":"2026-01-02T03:04:05Z"}}}}`))
			case r.Method == http.MethodGet:
				_, _ = w.Write([]byte(`{"data":{"data":{"value":"theirs"},"metadata":{"version":1,"created_time":"2026-01-02T03:04:05Z"}}}`))
			default:
				t.Errorf("%s %s, where somebody else has written", r.Method, r.URL.Path)
				w.WriteHeader(http.StatusForbidden)
			}
		}))
		t.Cleanup(vault.Close)
		// told is what the doctor says and the metrics count, of versions that are overdue
		// and of drifts.
		told := func(ok bool, says string, overdue, drifted string) func() bool {
			return func() bool {
				t.Helper()
				var checks struct {
					Items []struct {
						Name, Detail, Remedy string
						OK                   bool
					}
				}
				h.must(http.MethodGet, "/v1/doctor", nil, &checks)
				right := false
				for _, c := range checks.Items {
					right = right || c.Name == "stores" && c.OK == ok && strings.Contains(c.Detail+" "+c.Remedy, says)
				}
				_, metrics := h.do(http.MethodGet, "/metrics", h.token, nil)
				return right && strings.Contains(string(metrics), "\nestover_store_syncs_overdue "+overdue+"\n") && strings.Contains(string(metrics), "\nestover_store_syncs_drifted "+drifted+"\n")
			}
		}
		is := func(what string, ok bool, says string, overdue, drifted string) {
			t.Helper()
			h.until(what, told(ok, says, overdue, drifted))
		}
		is("nothing is pushed", true, "on its way", "0", "0")
		host := strings.TrimPrefix(vault.URL, "http://")
		for _, path := range []string{"vault/token", "crm/pushed"} {
			h.must(http.MethodPost, "/v1/secrets", map[string]any{"path": path, "class": "internal", "risk": "low", "description": "", "owner": "", "destinations": []string{host}}, nil)
			h.must(http.MethodPost, "/v1/secret/versions?path="+path, map[string]any{"fields": map[string]string{"value": "ours"}}, nil)
		}
		h.must(http.MethodPut, "/v1/secret-stores/team", map[string]any{"name": "team", "kind": "vault", "address": vault.URL, "options": map[string]string{"mount": "team"}, "login": "vault/token"}, nil)
		h.must(http.MethodPost, "/v1/secret-syncs", map[string]any{"path": "crm/pushed", "store": "team"}, nil)
		is("it has just begun", true, "on its way", "0", "0")
		age := func(by string) {
			for _, table := range []string{"secret_version", "secret_sync"} {
				outside(t, h.config.Database, `update `+table+` set created_at = created_at `+by)
			}
		}
		age("- 360000000") // six minutes pass
		is("the vault does not answer", false, "estover secret sync list --overdue", "1", "0")
		age("+ 360000000")
		foreign.Store(true)
		outside(t, h.config.Database, `update secret_sync set next_at = 0, tries = 0`)
		is("somebody else has written there", false, "estover secret sync list --state drift", "0", "1")
	})
}
