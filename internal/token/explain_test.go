package token_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// A token is explained with all that it rests on, and with the reason of its
// death.
func TestExplain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		const exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
		// handed is a token of ann's in a session of hers, and what bob made of it.
		handed := func(t *testing.T, suffix string) (ann, bob *oauthtest.Agent, s session.Session, first, second string) {
			t.Helper()
			ann, bob = w.Agent("ann-"+suffix), w.Agent("bob-"+suffix)
			w.Set(bob, agent.Client{GrantTypes: []string{exchange}})
			s, err := w.Sessions.Open(t.Context(), ann.Caller(), wish(ann))
			if err != nil {
				t.Fatal(err)
			}
			first = w.Ask(ann, "session", s.ID, "resource", oauthtest.CRM).Token()
			a := w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", exchange, "subject_token", first,
				"subject_token_type", "urn:ietf:params:oauth:token-type:access_token"), oauthtest.Basic(bob.ID, bob.Secret)))
			if a.Status != http.StatusOK {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
			return ann, bob, s, first, a.Token()
		}
		explain := func(t *testing.T, raw string) token.Explanation {
			t.Helper()
			e, err := w.Tokens.Explain(t.Context(), oauthtest.Admin, raw)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		ann, bob, s, _, second := handed(t, "alive")
		e := explain(t, second)
		if !e.Alive || e.Why != "" || e.Subject != estover.Agent(ann.ID) || len(e.Actors) != 1 || e.Actors[0] != estover.Agent(bob.ID) || e.Session != s.ID ||
			strings.Join(e.Scopes, " ") != "customer.read customer.update" || e.Audience[0] != oauthtest.CRM {
			t.Errorf("a token that is alive: %+v", e)
		}
		if len(e.Grants) != 2 || e.Grants[0].Kind != exchange || e.Grants[0].Client != bob.ID || e.Grants[1].Kind != token.Own || e.Grants[1].Client != ann.ID {
			t.Errorf("the grants are %+v", e.Grants)
		}
		i := 0
		for why, kill := range map[string]func(t *testing.T, ann, bob *oauthtest.Agent, s session.Session, first, second string){
			"The token was revoked.": func(t *testing.T, _, bob *oauthtest.Agent, _ session.Session, _, second string) {
				w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", second), oauthtest.Basic(bob.ID, bob.Secret)))
			},
			"has ended: the token that it came from was revoked.": func(t *testing.T, ann, _ *oauthtest.Agent, _ session.Session, first, _ string) {
				w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", first), oauthtest.Basic(ann.ID, ann.Secret)))
			},
			"The session has ended.": func(t *testing.T, _, _ *oauthtest.Agent, s session.Session, _, _ string) {
				if err := w.Sessions.End(t.Context(), oauthtest.Admin, s.ID, "a test"); err != nil {
					t.Fatal(err)
				}
			},
			"The agent is suspended.": func(t *testing.T, ann, _ *oauthtest.Agent, _ session.Session, _, _ string) {
				if _, err := w.Agents.Hold(t.Context(), oauthtest.Admin, ann.ID, agent.Suspension, "a test"); err != nil {
					t.Fatal(err)
				}
			},
			"no sponsor": func(t *testing.T, _, bob *oauthtest.Agent, _ session.Session, _, _ string) {
				if _, err := w.People.Disable(t.Context(), oauthtest.Admin, bob.Sponsor.ID, "left"); err != nil {
					t.Fatal(err)
				}
			},
			"The token expired at ": func(*testing.T, *oauthtest.Agent, *oauthtest.Agent, session.Session, string, string) {
				dbtest.NewClock(d).Advance(16 * time.Minute)
			},
		} {
			i++
			ann, bob, s, first, second := handed(t, string(rune('a'+i)))
			kill(t, ann, bob, s, first, second)
			if e := explain(t, second); e.Alive || !strings.Contains(e.Why, why) || e.Code == "" {
				t.Errorf("want a token that is dead since %q: %+v", why, e)
			}
		}

		// Who hears it.
		ann, bob, _, first, second := handed(t, "z")
		if _, err := w.Tokens.Explain(t.Context(), ann.Caller(), first); err != nil {
			t.Errorf("an agent about its own token: %v", err)
		}
		if _, err := w.Tokens.Explain(t.Context(), ann.Caller(), second); !errors.Is(err, token.ErrNoToken) {
			t.Errorf("an agent about another's token: %v, want ErrNoToken", err)
		}
		delegated := ann.Caller()
		delegated.Subject, delegated.Actors = estover.User("usr_alice"), []estover.Subject{estover.Agent(ann.ID)}
		if _, err := w.Tokens.Explain(t.Context(), delegated, second); !errors.Is(err, token.ErrNoToken) {
			t.Errorf("an agent that acts for a person about another's token: %v, want ErrNoToken", err)
		}
		if _, err := w.Tokens.Explain(t.Context(), delegated, first); err != nil {
			t.Errorf("an agent that acts for a person about its own token: %v", err)
		}
		other := estover.Caller{Tenant: "other", Subject: estover.User("usr_eve")}
		if _, err := w.Tokens.Explain(t.Context(), other, first); !errors.Is(err, token.ErrNoToken) {
			t.Errorf("another tenant: %v, want ErrNoToken", err)
		}
		p := w.Platform("ci", nil, bob)
		if _, err := w.Tokens.Explain(t.Context(), oauthtest.Admin, p.Token(bob)); !errors.Is(err, token.ErrForeign) {
			t.Errorf("a token of another issuer: %v, want ErrForeign", err)
		}
		for what, raw := range map[string]string{
			"nothing": "", "no token": "abc", "a changed token": first[:len(first)-86] + strings.Repeat("A", 86), "a client assertion": w.Assertion(ann),
		} {
			if _, err := w.Tokens.Explain(t.Context(), oauthtest.Admin, raw); !errors.Is(err, token.ErrNoToken) && !errors.Is(err, token.ErrForeign) {
				t.Errorf("%s: %v, want ErrNoToken or ErrForeign", what, err)
			}
		}
		w.Decider.Set(oauthtest.Deny("token.introspect"))
		var refusal *guard.Refusal
		if _, err := w.Tokens.Explain(t.Context(), oauthtest.Admin, first); !errors.As(err, &refusal) {
			t.Errorf("although policy denies it: %v", err)
		}
	})
}
