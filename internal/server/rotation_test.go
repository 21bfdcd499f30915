package server_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
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

// A laggard is who holds up the retirement of a version, as `rotation explain` has it.
type laggard struct {
	Way, Subject, Session, Sponsor string
	LastUse                        time.Time `json:"last_use"`
	Uses, Connections              int64
}

type explained struct {
	Step       string
	Current    int64     `json:"current_version"`
	Previous   int64     `json:"previous_version"`
	GraceUntil time.Time `json:"grace_until"`
	LateAt     time.Time `json:"late_at"`
	Why        string
	Laggards   []laggard
}

func (h *house) explain(path string) (e explained) {
	h.t.Helper()
	h.must(http.MethodGet, "/v1/rotation/explain?path="+path, nil, &e)
	return e
}

// R8, R9, M14: the traffic of the gateway proves that an old key may die, and nothing
// else does. A stream that was opened with it through the running gateway holds its
// retirement up for as long as it is open, also when nobody has used the key for longer
// than the quiet period, and whoever asks is told which agent has it open, in which
// session, who answers for it, since when and how often. When the stream has ended, the
// key dies at once, and what begins meanwhile begins with the current one.
func TestTrafficHoldsARotationUp(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		up, _ := h.sells()
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			me := r.Clone(r.Context())
			me.URL.Path = "/me"
			if r.URL.Path != "/slow" {
				up.Config.Handler.ServeHTTP(w, me)
				return
			}
			answer := httptest.NewRecorder()
			up.Config.Handler.ServeHTTP(answer, me)
			w.WriteHeader(answer.Code)
			w.(http.Flusher).Flush()
			if answer.Code == http.StatusOK {
				<-r.Context().Done()
			}
		}))
		t.Cleanup(front.Close)
		host := strings.TrimPrefix(front.URL, "http://")
		h.add(fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: shop/report}
spec: {destinations: ["%[1]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: report}
spec:
  base_url: http://%[1]s
  allow_private: [127.0.0.0/8]
  class: confidential
  slots: [{slot: header, name: Authorization, prefix: "Bearer ", secret: shop/report, field: key}]
  actions: [{name: me.read, method: GET, path: /me}, {name: slow.read, method: GET, path: /slow}]
`, host), "report")
		const path = "shop/report"
		h.must(http.MethodPut, "/v1/rotation?path="+path, map[string]any{
			"kind": "keys", "target": "shop", "users": []string{"report_a", "report_b"}, "template": map[string]string{}, "cache_seconds": 1, "quiet_seconds": 30,
		}, nil)
		h.until("there is a version", func() bool { return h.explain(path).Current == 1 })

		// One session has a stream open, where there are several through another node, and
		// another has made a call that is over.
		far := h
		if strings.HasPrefix(h.config.Database, "postgres") {
			far = h.node()
		}
		streams, calls, later := h.openSession(), h.openSession(), h.openSession()
		open := func(session string) io.ReadCloser {
			t.Helper()
			r, err := http.NewRequest(http.MethodGet, "http://"+far.addr+"/u/report/slow", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+h.tokenFor(session, front.URL))
			res, err := http.DefaultClient.Do(r)
			if err != nil || res.StatusCode != http.StatusOK {
				t.Fatalf("opening a stream: %v %v", res, err)
			}
			t.Cleanup(func() { _ = res.Body.Close() })
			return res.Body
		}
		with := func(at *house, session string) string {
			t.Helper()
			status, body := at.call(h.tokenFor(session, front.URL), http.MethodGet, "/u/report/me", "", "")
			if status != http.StatusOK {
				t.Fatalf("a call: %d %s", status, body)
			}
			return body
		}
		stream := open(streams)
		flowing := flows(stream, t)
		if with(h, calls); up.count() != 1 {
			t.Fatalf("the shop has %d keys, want the one", up.count())
		}

		var bot struct{ ID, Sponsor string }
		h.must(http.MethodGet, "/v1/agents/bot", nil, &bot)
		byStream := laggard{Way: "gateway", Subject: "agent:" + bot.ID, Session: streams, Sponsor: bot.Sponsor, Uses: 1, Connections: 1}
		byCall := laggard{Way: "gateway", Subject: "agent:" + bot.ID, Session: calls, Sponsor: bot.Sponsor, Uses: 1}
		used := h.clock.Now()
		named := func(when string, late bool, want ...laggard) {
			t.Helper()
			var e explained
			var last time.Time
			same := func() bool {
				e = h.explain(path)
				for i, l := range e.Laggards {
					if l.Session == streams {
						last = l.LastUse
					}
					if age := used.Sub(l.LastUse); age < 0 || age > time.Minute {
						return false
					}
					e.Laggards[i].LastUse = time.Time{}
				}
				slices.SortFunc(e.Laggards, func(a, b laggard) int { return int(b.Connections - a.Connections) })
				return e.Step == "grace" && e.Previous == 1 && e.Current == 2 && slices.Equal(e.Laggards, want) && e.LateAt.IsZero() != late
			}
			for deadline := time.Now().Add(time.Minute); !same(); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s: version %d is at %s behind version %d, late since %s, held up by %+v; want %+v", when, e.Previous, e.Step, e.Current, e.LateAt, e.Laggards, want)
				}
			}
			for _, words := range []string{"agent:" + bot.ID + " in session " + streams, "user:" + bot.Sponsor + " answers", "through the gateway, last at " + last.UTC().Format("2006-01-02"), "1 connections open"} {
				if !strings.Contains(e.Why, words) {
					t.Errorf("%s: explained as %q, without %q", when, e.Why, words)
				}
			}
			if up.count() != 2 || !flowing() {
				t.Errorf("%s: the shop has %d keys, and the stream flows: %v; want both keys, and that it does", when, up.count(), flowing())
			}
		}
		h.must(http.MethodPost, "/v1/rotation/run?path="+path, nil, nil)
		named("after the rotation", false, byStream, byCall)
		if by := with(h, later); !strings.HasPrefix(by, "welcome, report_b") {
			t.Errorf("a call after the rotation is answered %q, want the second key in it", by)
		}
		h.clock.Advance(40 * time.Second)
		named("after the quiet period", true, byStream)

		_ = stream.Close()
		h.until("the old key has died", func() bool { return h.explain(path).Step == "idle" })
		e := h.explain(path)
		if e.Previous != 0 || e.Current != 2 || len(e.Laggards) != 0 || up.count() != 1 {
			t.Errorf("when the stream has ended: %+v, and %d keys at the shop", e, up.count())
		}
		var s struct {
			Versions []struct {
				N     int64 `json:"version"`
				State string
				Phase string
			}
		}
		h.must(http.MethodGet, "/v1/secret?path="+path, nil, &s)
		if got := fmt.Sprint(s.Versions); got != "[{2 live current} {1 destroyed retired}]" {
			t.Errorf("in the end the versions are %s", got)
		}
		for _, at := range []*house{h, far} {
			if by := with(at, later); !strings.HasPrefix(by, "welcome, report_b") {
				t.Errorf("a call in the end is answered %q", by)
			}
		}
	})
}
