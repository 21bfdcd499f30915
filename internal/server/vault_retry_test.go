package server_test

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"estover.dev/internal/db/dbtest"
)

// V10: the Go clients ask again by themselves what is refused with 429 or 503, twice
// and after the time that they are told, and what is refused otherwise once. No route
// answers 501, also those that there are not.
func TestVaultRetries(t *testing.T) {
	host, port := startRedis(t)
	for name, login := range map[string]func(t *testing.T, p *passage, token string) watcher{"hashicorp": newHashi, "openbao": newBao} {
		t.Run(name, func(t *testing.T) {
			dbtest.EachURL(t, func(t *testing.T, database string) {
				h := build(t, database)
				v := h.vault()
				v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
				v.must(204, "POST", "database/config/cache", `{"plugin_name":"redis-database-plugin","host":"`+host+`","port":`+port+`,"username":"estover","password":"`+redisPassword+`","allowed_roles":"*"}`)
				v.must(200, "POST", "database/roles/app", `{"db_name":"cache","creation_statements":"[\"~app:*\", \"+get\"]"}`)
				outside(t, h.config.Database, `update lease_role set per_minute = 10`) // the door's have a thousand
				for h.leases() < 10 {
					v.must(200, "GET", "database/creds/app", nil)
				}
				// Natively one is told as much.
				req, err := http.NewRequest("POST", "http://"+h.addr+"/v1/leases", strings.NewReader(`{"role":"database.app","purpose":"a look"}`))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+h.token)
				req.Header.Set("Content-Type", "application/json")
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				if after, _ := strconv.Atoi(res.Header.Get("Retry-After")); res.StatusCode != http.StatusTooManyRequests || after < 30 || after > 60 {
					t.Errorf("one more natively: %d, again after %d seconds; want 429 and at most a minute", res.StatusCode, after)
				}
				h.clock.Advance(30 * time.Second)
				block := h.full()
				p := newPassage(t, h)
				synctest.Test(t, func(t *testing.T) {
					p.began = time.Now()
					c := login(t, p, h.token)
					// reads is a read that takes so many requests and at least so long.
					reads := func(path string, requests int, least, most time.Duration) error {
						t.Helper()
						began, before := time.Now(), len(p.asked)
						_, _, _, err := c.read(path)
						took := time.Since(began)
						if n := len(p.asked) - before; n != requests || took < least || took > most {
							t.Errorf("%s took %d requests and %s, want %d and %s to %s (%v)", path, n, took, requests, least, most, err)
						}
						return err
					}
					// There is room for another one when the first of ten is a minute old.
					if err := reads("database/creds/app", 2, 20*time.Second, 31*time.Second); err != nil {
						t.Errorf("a lease when its time has come: %v", err)
					}
					p.outside(func() error { block("%"); return nil })
					if err := reads("database/creds/app", 3, 2*time.Second, 2*time.Second); err == nil || !strings.Contains(err.Error(), "Code: 503") || !strings.Contains(err.Error(), "audit_unavailable") {
						t.Errorf("what cannot be recorded: %v, want 503 audit_unavailable", err)
					}
					p.outside(func() error { block(); return nil })
					if err := reads("database/creds/nothing", 1, 0, 0); err == nil || !strings.Contains(err.Error(), "Code: 400") {
						t.Errorf("a role that there is not: %v, want 400", err)
					}
					for _, path := range []string{
						"nothing/at/all", "identity/entity/name/x", "sys/replication/status", "sys/plugins/catalog", "sys/storage/raft/configuration", "sys/generate-root/attempt", "sys/rekey/init", "sys/namespaces/x",
					} {
						if err := reads(path, 1, 0, 0); !errors.Is(err, errNothing) {
							t.Errorf("%s: %v, want that there is nothing", path, err)
						}
					}
				})
			})
		})
	}
}

// leases is how many of them were made.
func (h *house) leases() int {
	h.t.Helper()
	var all struct{ Items []leased }
	h.must("GET", "/v1/leases", nil, &all)
	return len(all.Items)
}

// outside does something outside of the bubble.
func (p *passage) outside(do func() error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.asks <- asked{do: do}
	<-p.answers
}
