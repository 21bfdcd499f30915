package oauth_test

import (
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// A modelled agent is what a test knows of it.
type modelled struct {
	*oauthtest.Agent
	hold string // the id of the hold, "" for none
}

type modelledSession struct {
	id      string
	agent   *modelled
	ended   bool
	expires time.Time
}

type modelledToken struct {
	raw     string
	agent   *modelled
	session *modelledSession
	revoked bool
	grant   *modelledGrant
	expires time.Time

	chain  []*modelled    // the subject and whoever acts for it, the nearest last
	parent *modelledToken // that it was made of, nil for none
}

// A modelledGrant is what several tokens rest on.
type modelledGrant struct {
	id    string
	ended bool
}

func (s *modelledSession) live(now time.Time) bool { return !s.ended && now.Before(s.expires) }

func (k *modelledToken) live(now time.Time) bool {
	for _, a := range k.chain {
		if a.hold != "" {
			return false
		}
	}
	for p := k; p != nil; p = p.parent {
		if p.revoked || p.grant.ended {
			return false
		}
	}
	return now.Before(k.expires) && k.session.live(now) && k.agent.hold == ""
}

// takenUp is the chain when an agent takes the token up; nil if it may not.
func (k *modelledToken) takenUp(by *modelled) []*modelled {
	switch {
	case k.chain[len(k.chain)-1] == by:
		return k.chain
	case slices.Contains(k.chain, by), len(k.chain) > token.MaxActors:
		return nil
	}
	return append(slices.Clone(k.chain), by)
}

// TestModel does at random what can be done to sessions and tokens, and looks
// after each step whether exactly those tokens are good that should be.
func TestModel(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	old := checks.Value.String()
	if old == checks.DefValue { // nobody asked for more
		_ = checks.Value.Set("12")
		defer func() { _ = checks.Value.Set(old) }()
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		clock.Hold() // nothing ends between a look at the model and the request
		runs := 0
		rapid.Check(t, func(rt *rapid.T) {
			runs++
			var agents []*modelled
			for i := range 3 {
				agents = append(agents, &modelled{Agent: exchanger(w, fmt.Sprintf("bot-%d-%d", runs, i))})
			}
			asker := w.Agent(fmt.Sprintf("asker-%d", runs))
			var sessions []*modelledSession
			var tokens []*modelledToken
			// An ambient session is known by its answer.
			sessionOf := func(id string, a *modelled) *modelledSession {
				for _, s := range sessions {
					if s.id == id {
						return s
					}
				}
				opened, err := w.Sessions.Get(rt.Context(), oauthtest.Admin, id)
				if err != nil {
					rt.Fatal(err)
				}
				s := &modelledSession{id: id, agent: a, expires: opened.ExpiresAt}
				sessions = append(sessions, s)
				return s
			}
			grants := map[string]*modelledGrant{}
			grantOf := func(raw string) *modelledGrant {
				id := grantOf(t, raw)
				if grants[id] == nil {
					grants[id] = &modelledGrant{id: id}
				}
				return grants[id]
			}
			anyAgent := func() *modelled { return rapid.SampledFrom(agents).Draw(rt, "agent") }
			anySession := func() *modelledSession {
				if len(sessions) == 0 {
					return nil
				}
				return rapid.SampledFrom(sessions).Draw(rt, "session")
			}
			rt.Repeat(map[string]func(*rapid.T){
				"open": func(rt *rapid.T) {
					a := anyAgent()
					life := time.Duration(rapid.IntRange(60, 4000).Draw(rt, "life")) * time.Second
					s, err := w.Sessions.Open(rt.Context(), oauthtest.Admin, session.Wish{Agent: a.ID, Life: life})
					if (err == nil) != (a.hold == "") {
						rt.Fatalf("opening a session of an agent that is held %q: %v", a.hold, err)
					}
					if err == nil {
						sessions = append(sessions, &modelledSession{id: s.ID, agent: a, expires: s.ExpiresAt})
					}
				},
				"end": func(rt *rapid.T) {
					s := anySession()
					if s == nil {
						return
					}
					err := w.Sessions.End(rt.Context(), oauthtest.Admin, s.id, "a test")
					if err != nil && s.live(d.Now()) {
						rt.Fatalf("ending a session that is open: %v", err)
					}
					s.ended = true
				},
				"end all": func(rt *rapid.T) {
					a := anyAgent()
					if _, err := w.Sessions.EndAll(rt.Context(), oauthtest.Admin, a.ID, "a test"); err != nil {
						rt.Fatal(err)
					}
					for _, s := range sessions {
						s.ended = s.ended || s.agent == a
					}
				},
				"ask": func(rt *rapid.T) {
					a := anyAgent()
					var pairs []string
					may := a.hold == ""
					if len(sessions) > 0 && rapid.Bool().Draw(rt, "named") {
						s := anySession()
						pairs, may = []string{"session", s.id}, may && s.agent == a && s.live(d.Now())
					}
					answer := w.Ask(a.Agent, pairs...)
					if (answer.Status == http.StatusOK) != may {
						rt.Fatalf("asking with %v (held %q): %d %s, want a token: %v", pairs, a.hold, answer.Status, answer.Body, may)
					}
					if may {
						s := sessionOf(answer.Text("session"), a)
						life := time.Duration(answer.JSON["expires_in"].(float64)) * time.Second
						tokens = append(tokens, &modelledToken{raw: answer.Token(), grant: grantOf(answer.Token()), agent: a, chain: []*modelled{a}, session: s, expires: d.Now().Truncate(time.Second).Add(life)})
					}
				},
				"exchange": func(rt *rapid.T) {
					if len(tokens) == 0 {
						return
					}
					k, by, now := rapid.SampledFrom(tokens).Draw(rt, "token"), anyAgent(), d.Now()
					if k.expires.Sub(now).Abs() < 2*time.Second || k.session.expires.Sub(now).Abs() < 2*time.Second {
						return // of a token it is known to the second
					}
					chain := k.takenUp(by)
					may := by.hold == "" && k.live(now) && chain != nil
					answer := exchange(w, by.Agent, k.raw)
					if (answer.Status == http.StatusOK) != may {
						rt.Fatalf("taking up a token (held %q): %d %s, want a token: %v", by.hold, answer.Status, answer.Body, may)
					}
					if may {
						made := &modelledToken{raw: answer.Token(), grant: grantOf(answer.Token()), agent: by, chain: chain, session: k.session, parent: k}
						made.expires = now.Truncate(time.Second).Add(time.Duration(answer.JSON["expires_in"].(float64)) * time.Second)
						if made.expires.After(k.expires.Add(time.Second)) || answer.Text("session") != k.session.id {
							rt.Fatalf("a token until %s became one until %s, in the session %s", k.expires, made.expires, answer.Text("session"))
						}
						tokens = append(tokens, made)
					}
				},
				"revoke": func(rt *rapid.T) {
					if len(tokens) == 0 {
						return
					}
					k := rapid.SampledFrom(tokens).Draw(rt, "token")
					by := anyAgent()
					answer := w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", k.raw), oauthtest.Basic(by.ID, by.Secret)))
					if (answer.Status == http.StatusOK) != (by.hold == "") {
						rt.Fatalf("revoking: %d %s", answer.Status, answer.Body)
					}
					k.revoked = k.revoked || by == k.agent && by.hold == ""
				},
				"end a grant": func(rt *rapid.T) {
					if len(tokens) == 0 {
						return
					}
					k := rapid.SampledFrom(tokens).Draw(rt, "token")
					err := w.Tokens.EndGrant(rt.Context(), oauthtest.Admin, k.grant.id, "a test")
					if err != nil && k.live(d.Now()) {
						rt.Fatalf("ending the grant of a token that is alive: %v", err)
					}
					k.grant.ended = true
				},
				"hold": func(rt *rapid.T) {
					a := anyAgent()
					if a.hold != "" {
						if _, err := w.Agents.Lift(rt.Context(), oauthtest.Admin, a.ID, a.hold, "a test"); err != nil {
							rt.Fatal(err)
						}
						a.hold = ""
						return
					}
					h, err := w.Agents.Hold(rt.Context(), oauthtest.Admin, a.ID, agent.Suspension, "a test")
					if err != nil {
						rt.Fatal(err)
					}
					a.hold = h.ID
				},
				"wait": func(rt *rapid.T) {
					clock.Advance(time.Duration(rapid.IntRange(1, 1200).Draw(rt, "seconds")) * time.Second)
				},
				"sweep": func(rt *rapid.T) {
					if _, err := w.Sessions.ExpireDue(rt.Context()); err != nil {
						rt.Fatal(err)
					}
					if _, err := w.Tokens.Sweep(rt.Context()); err != nil {
						rt.Fatal(err)
					}
				},
				"": func(rt *rapid.T) {
					now := d.Now()
					for i, k := range tokens {
						if k.expires.Sub(now).Abs() < 2*time.Second || k.session.expires.Sub(now).Abs() < 2*time.Second {
							continue // of a token it is known to the second
						}
						_, err := w.Tokens.Verify(rt.Context(), k.raw)
						if (err == nil) != k.live(now) {
							rt.Fatalf("token %d: %v, want it live: %v (revoked %v, held %q, its session %+v)", i, err, k.live(now), k.revoked, k.agent.hold, k.session)
						}
						// Nobody else hears of it.
						if a := w.Introspect(asker, k.raw); a.Body != `{"active":false}` {
							rt.Fatalf("another client is told %s", a.Body)
						}
					}
				},
			})
			for _, s := range sessions {
				n := count(t, d, "select count(*) from oauth_grant where session_id = $1 and ended_at is null", s.id)
				if s.ended && n != 0 {
					rt.Fatalf("session %s has ended and has %d live grants", strings.TrimPrefix(s.id, "ses_"), n)
				}
			}
		})
	})
}
