package session_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// A stage is a world with an agent, whose things are to end.
type stage struct {
	*oauthtest.World
	t      *testing.T
	clock  *dbtest.Clock
	bot    *oauthtest.Agent
	helper *oauthtest.Agent
	person *oauthtest.Person
	parent string // of the sessions that the bot opens
}

// open opens a session of the bot.
func (s *stage) open() string {
	s.t.Helper()
	one, err := s.Sessions.Open(s.t.Context(), admin, session.Wish{Agent: s.bot.ID, Purpose: "support", Life: time.Hour, Idle: 10 * time.Minute, Parent: s.parent})
	if err != nil {
		s.t.Fatal(err)
	}
	return one.ID
}

// begun is the session that was opened last: by what a person has agreed to.
func (s *stage) begun() (id string) {
	s.t.Helper()
	err := s.DB.View(s.t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
		return tx.QueryRow(s.t.Context(), "select id from session order by opened_at desc, id desc limit 1").Scan(&id)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

func (s *stage) exchange(by *oauthtest.Agent, subject string) oauthtest.Answer {
	return s.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", token.Exchange, "subject_token", subject,
		"subject_token_type", "urn:ietf:params:oauth:token-type:access_token"), oauthtest.Basic(by.ID, by.Secret)))
}

// A thing is what rests on a grant of the token service. It is made in a session,
// by the bot itself or of a person's word, and then tried: some by being used up.
type thing struct {
	name string
	make func(s *stage) (session string, works func() bool)
}

// things are all of that kind.
var things = []thing{
	{"an access token at introspection", func(s *stage) (string, func() bool) {
		id := s.open()
		raw := s.Ask(s.bot, "session", id).Token()
		return id, func() bool { return s.Introspect(s.bot, raw).JSON["active"] == true }
	}},
	{"an access token at a resource of our own", func(s *stage) (string, func() bool) {
		id := s.open()
		raw := s.Ask(s.bot, "session", id).Token()
		return id, func() bool { _, err := s.Tokens.Verify(s.t.Context(), raw); return err == nil }
	}},
	{"another token in the session", func(s *stage) (string, func() bool) {
		id := s.open()
		return id, func() bool { return s.Ask(s.bot, "session", id).Token() != "" }
	}},
	{"the exchange of a token", func(s *stage) (string, func() bool) {
		id := s.open()
		raw := s.Ask(s.bot, "session", id, "resource", oauthtest.CRM).Token()
		return id, func() bool { return s.exchange(s.helper, raw).Token() != "" }
	}},
	{"what a token was exchanged for", func(s *stage) (string, func() bool) {
		id := s.open()
		raw := s.exchange(s.helper, s.Ask(s.bot, "session", id, "resource", oauthtest.CRM).Token()).Token()
		return id, func() bool { return raw != "" && s.Introspect(s.helper, raw).JSON["active"] == true }
	}},
	{"a refresh token", func(s *stage) (string, func() bool) {
		a := s.Redeem(s.bot, s.person.Code(s.bot))
		return a.Text("session"), func() bool { return s.Refresh(s.bot, a.Text("refresh_token")).Token() != "" }
	}},
	{"a token at userinfo", func(s *stage) (string, func() bool) {
		a := s.Redeem(s.bot, s.person.Code(s.bot, "resource", "", "scope", "openid", "nonce", "n-0S6_WzA2Mj"))
		return a.Text("session"), func() bool {
			r := httptest.NewRequest(http.MethodGet, string(oauthtest.Issuer)+"/oauth/userinfo", nil)
			oauthtest.Bearer(a.Token())(r)
			return s.Do(r).Status == http.StatusOK
		}
	}},
	{"a code that was not exchanged", func(s *stage) (string, func() bool) {
		code := s.person.Code(s.bot)
		return s.begun(), func() bool { return s.Redeem(s.bot, code).Token() != "" }
	}},
	{"a device's code that was not exchanged", func(s *stage) (string, func() bool) {
		code := s.person.DeviceCode(s.bot)
		return s.begun(), func() bool { return s.Poll(s.bot, code).Token() != "" }
	}},
	{"a person's word that was not fetched", func(s *stage) (string, func() bool) {
		asked := s.Name(s.bot, "ida")
		if page := s.person.Answer("allow"); page.Status != http.StatusOK {
			s.t.Fatalf("the person could not say yes: %d %s", page.Status, page.Body)
		}
		return s.begun(), func() bool { return s.Fetch(s.bot, asked.Text("auth_req_id")).Token() != "" }
	}},
}

// causes are how sessions end. Each ends all that are named, or all of the bot's.
var causes = map[string]func(s *stage, sessions []string){
	"nothing happens": func(*stage, []string) {},
	"ended by the agent": func(s *stage, sessions []string) {
		for _, id := range sessions {
			if err := s.Sessions.End(s.t.Context(), s.bot.Caller(), id, "the command ended"); err != nil {
				s.t.Fatal(err)
			}
		}
	},
	"ended by a person": func(s *stage, sessions []string) {
		for _, id := range sessions {
			if err := s.Sessions.End(s.t.Context(), admin, id, "enough"); err != nil {
				s.t.Fatal(err)
			}
		}
	},
	"all ended by a person": func(s *stage, _ []string) {
		if _, err := s.Sessions.EndAll(s.t.Context(), admin, s.bot.ID, "enough"); err != nil {
			s.t.Fatal(err)
		}
	},
	"their time is over, and nobody has swept": func(s *stage, _ []string) { s.clock.Advance(25 * time.Hour) },
	"their time is over": func(s *stage, _ []string) {
		s.clock.Advance(25 * time.Hour)
		if _, err := s.Sessions.ExpireDue(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
	},
	"the agent is quarantined": func(s *stage, _ []string) { s.hold(agent.Quarantine) },
	"the agent is suspended":   func(s *stage, _ []string) { s.hold(agent.Suspension) },
	"the agent is retired":     func(s *stage, _ []string) { s.hold(agent.Retirement) },
	"the agent's time is over": func(s *stage, _ []string) {
		spec := s.bot.Spec
		spec.ExpiresAt = s.DB.Now().Add(time.Minute)
		if _, err := s.Agents.Update(s.t.Context(), admin, s.bot.ID, spec); err != nil {
			s.t.Fatal(err)
		}
		s.clock.Advance(2 * time.Minute)
	},
	"the sponsor has gone": func(s *stage, _ []string) {
		if _, err := s.People.Disable(s.t.Context(), admin, s.bot.Sponsor.ID, "left"); err != nil {
			s.t.Fatal(err)
		}
	},
}

func (s *stage) hold(kind agent.Kind) {
	s.t.Helper()
	if _, err := s.Agents.Hold(s.t.Context(), admin, s.bot.ID, kind, "a test"); err != nil {
		s.t.Fatal(err)
	}
}

// Some ends are of sessions that agents open by themselves alone.
var causesOfOwn = map[string]func(s *stage, sessions []string){
	"nobody has used them": func(s *stage, _ []string) {
		s.clock.Advance(11 * time.Minute)
		if _, err := s.Sessions.ExpireDue(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
	},
	"what they were a part of has ended": func(s *stage, _ []string) {
		if err := s.Sessions.End(s.t.Context(), admin, s.parent, "done"); err != nil {
			s.t.Fatal(err)
		}
	},
}

// However a session ends, nothing that was handed out in it works afterwards, and
// all of it did before.
func TestNothingSurvives(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		person := w.Person("ida")
		try := func(what string, cause func(*stage, []string), fromPeople bool) {
			t.Run(what, func(t *testing.T) {
				w.T = t
				person.T = t
				person.SignIn(true)
				s := &stage{World: w, t: t, clock: clock, person: person, helper: w.Agent(estover.NewID("helper")), bot: w.CodeAgent(estover.NewID("bot"), func(c *agent.Client) {
					c.GrantTypes = append(c.GrantTypes, token.Own)
				})}
				w.Set(s.helper, agent.Client{GrantTypes: []string{token.Own, token.Exchange}, Introspect: []string{oauthtest.CRM}})
				root, err := w.Sessions.Open(t.Context(), admin, session.Wish{Agent: s.bot.ID, Purpose: "support", Life: 2 * time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				s.parent = root.ID
				var sessions []string
				works := map[string]func() bool{}
				for _, th := range things {
					if id, fn := th.make(s); fromPeople || s.own(id) {
						sessions, works[th.name] = append(sessions, id), fn
					}
				}
				cause(s, sessions)
				for name, fn := range works {
					if got, want := fn(), what == "nothing happens"; got != want {
						t.Errorf("%s works: %v, want %v", name, got, want)
					}
				}
			})
		}
		for what, cause := range causes {
			try(what, cause, true)
		}
		for what, cause := range causesOfOwn {
			try(what, cause, false)
		}
	})
}

// own reports whether the bot opened a session by itself.
func (s *stage) own(id string) bool {
	s.t.Helper()
	one, err := s.Sessions.Get(s.t.Context(), admin, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return one.Parent == s.parent
}
