package oauth_test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/federation"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// A client that runs an agent acts for others as that agent, and gets no token of
// the agent itself in which nobody acts, nor one of the agent's for somebody in
// which it does not stand.
func TestExchangeIsNoImpersonation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		host, bob := w.Agent("host"), exchanger(w, "bob", oauthtest.CRM)
		w.Set(host, agent.Client{GrantTypes: []string{exchangeType}, Introspect: []string{oauthtest.CRM}, Runs: []string{bob.ID}})
		by := func(raw string) []string {
			return []string{"resource", oauthtest.CRM, "actor_token", raw, "actor_token_type", accessTokenType}
		}
		own := w.Ask(bob, "resource", oauthtest.CRM).Token()
		refused(t, "the subject as its own actor", exchange(w, host, own, by(own)...), 400, "invalid_grant")
		refused(t, "another token of the subject as the actor", exchange(w, host, own, by(w.Ask(bob).Token())...), 400, "invalid_grant")

		ann := w.Agent("ann")
		taken := granted(t, "bob acts for ann", exchange(w, bob, w.Ask(ann, "resource", oauthtest.CRM).Token(), "resource", oauthtest.CRM)).Token()
		refused(t, "as who acts already", exchange(w, host, taken, by(own)...), 400, "invalid_grant")
		a := granted(t, "as itself", exchange(w, host, taken, "resource", oauthtest.CRM))
		if got := chain(t, a.Token()); fmt.Sprint(got) != fmt.Sprint(names(ann, bob, host)) {
			t.Errorf("the chain is %v", got)
		}
		// Its own token, of the same actor, for less.
		subject := w.Ask(ann, "resource", oauthtest.CRM).Token()
		run := granted(t, "by way of bob", exchange(w, host, subject, by(own)...)).Token()
		b := granted(t, "the same, for less", exchange(w, host, run, append(by(own), "scope", "customer.read")...))
		if got := chain(t, b.Token()); fmt.Sprint(got) != fmt.Sprint(names(ann, bob)) {
			t.Errorf("the chain is %v", got)
		}
	})
}

// A client that need not authenticate has no key of its own: whoever has found a
// token that is bound to a key does not get it bound to another by that
// client's name, not even along an edge.
func TestPublicClientsMoveNoBinding(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, app := w.Agent("ann"), w.Agent("app")
		w.Set(app, agent.Client{GrantTypes: []string{exchangeType}, Introspect: []string{oauthtest.CRM}, Methods: []string{"none"}})
		key, other := w.Prover("P-256"), w.Prover("P-256")
		bound := granted(t, "a bound token", key.Ask(ann, "resource", oauthtest.CRM)).Token()
		f := oauthtest.Form("grant_type", exchangeType, "subject_token", bound, "subject_token_type", accessTokenType, "client_id", app.ID)
		refused(t, "with another key", w.Do(oauthtest.Request("/oauth/token", f, other.Prove(""))), 400, "invalid_grant")
		a := granted(t, "with the key", w.Do(oauthtest.Request("/oauth/token", f, key.Prove(""))))
		if cnf, _ := said(t, a.Token())["cnf"].(map[string]any); cnf["jkt"] != key.Thumbprint() {
			t.Errorf("bound to %v", cnf)
		}
	})
}

// An edge leads to who presents the token, too, and not only to the agent as
// which it acts.
func TestAnEdgeLeadsToThePresenter(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, host, bob := w.Agent("ann"), w.Agent("host"), w.Agent("bob")
		w.Set(host, agent.Client{GrantTypes: []string{exchangeType}, Runs: []string{bob.ID}})
		subject, actor := w.Ask(ann, "resource", oauthtest.CRM).Token(), w.Ask(bob).Token()
		ask := func(to ...*oauthtest.Agent) oauthtest.Answer {
			w.Decider.Set(func(c estover.Caller, op guard.Op) guard.Decision {
				h, ok := op.Input.(interface {
					Handover() (estover.Subject, string)
				})
				if !ok || op.Action != "token.issue" {
					return guardtest.AllowAll(c, op)
				}
				if _, how := h.Handover(); how == token.ByEdge && !slices.Contains(names(to...), string(c.Acting())) {
					return guardtest.DenyAll(c, op)
				}
				return guardtest.AllowAll(c, op)
			})
			return exchange(w, host, subject, "actor_token", actor, "actor_token_type", accessTokenType)
		}
		refused(t, "an edge to the actor alone", ask(bob), 400, "access_denied")
		refused(t, "an edge to the presenter alone", ask(host), 400, "access_denied")
		a := granted(t, "an edge to both", ask(bob, host))
		if got := chain(t, a.Token()); fmt.Sprint(got) != fmt.Sprint(names(ann, bob)) {
			t.Errorf("the chain is %v", got)
		}
	})
}

// An assertion that says who the client is, and is good once, is used up by every
// refusal that follows; and nobody tries one under another name unseen.
func TestAnAssertionIsUsedUpByARefusal(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := w.Agent("bot"), workload(w, "other")
		p := w.Platform("ci", func(s *federation.Spec) { s.SingleUse = true }, bot)
		early := p.Token(bot)
		refused(t, "an agent without the grant type", w.AskByAssertion(early), 400, "unauthorized_client")
		w.Set(bot, agent.Client{GrantTypes: []string{assertionGrant}})
		refused(t, "again, with the grant type", w.AskByAssertion(early), 400, "invalid_grant")

		raw, prover := p.Token(bot), w.Prover("P-256")
		f := oauthtest.Form("grant_type", assertionGrant, "assertion", raw)
		refused(t, "a proof for another place", w.Do(oauthtest.Request("/oauth/token", f, func(r *http.Request) {
			r.Header.Set("DPoP", prover.Sign(prover.Claims(http.MethodPost, "https://evil.example/oauth/token", "")))
		})), 400, "invalid_dpop_proof")
		refused(t, "again, with a good proof", w.Do(oauthtest.Request("/oauth/token", f, prover.Prove(""))), 400, "invalid_grant")

		// To ask for a nonce uses nothing up.
		f.Set("assertion", p.Token(bot))
		good := prover.Nonce
		prover.Nonce = ""
		refused(t, "without a nonce", w.Do(oauthtest.Request("/oauth/token", f, prover.Prove(""))), 400, "use_dpop_nonce")
		prover.Nonce = good
		granted(t, "with it", w.Do(oauthtest.Request("/oauth/token", f, prover.Prove(""))))

		// One that is bound to a key is used up by nobody who has not got the key.
		bound := with(p.Claims(bot), map[string]any{"cnf": map[string]any{"jkt": prover.Thumbprint()}})
		f.Set("assertion", p.Sign(bound))
		refused(t, "without its key", w.Do(oauthtest.Request("/oauth/token", f)), 400, "invalid_grant")
		refused(t, "with another key", w.Do(oauthtest.Request("/oauth/token", f, w.Prover("P-256").Prove(""))), 400, "invalid_grant")
		granted(t, "with its key", w.Do(oauthtest.Request("/oauth/token", f, prover.Prove(""))))
		refused(t, "with its key again", w.Do(oauthtest.Request("/oauth/token", f, prover.Prove(""))), 400, "invalid_grant")

		events := func() int {
			return count(t, d, `select count(*) from audit where action = 'token.issue' and outcome = 'refused' and target = $1`, "trust:"+p.Trust.ID)
		}
		before, fresh := events(), p.Token(bot)
		refused(t, "under another's name", w.AskByAssertion(fresh, "client_id", other.ID), 400, "invalid_grant")
		if events() != before+1 {
			t.Error("an assertion under another's name is not on record")
		}
		granted(t, "which uses nothing up", w.AskByAssertion(fresh))
	})
}

// Whoever knows the name of a client that need not authenticate may ask in its
// name. What fails is limited, and so are the events of it; others are not kept
// out.
func TestStrangersInTheNameOfPublicClientsAreLimited(t *testing.T) {
	d := dbtest.Open(t)
	dbtest.NewClock(d).Hold()
	w := oauthtest.New(t, d)
	ann, app, other := w.Agent("ann"), w.Agent("app"), w.Agent("other")
	public := agent.Client{GrantTypes: []string{exchangeType, "authorization_code", "refresh_token"}, RedirectURIs: []string{oauthtest.Callback}, Methods: []string{"none"}}
	w.Set(app, public)
	w.Set(other, public)
	ask := func(client *oauthtest.Agent, address string, pairs ...string) oauthtest.Answer {
		f := oauthtest.Form(append(pairs, "client_id", client.ID)...)
		return w.Do(oauthtest.Request("/oauth/token", f, func(r *http.Request) { r.RemoteAddr = address }))
	}
	before := count(t, d, "select count(*) from audit")
	limited := 0
	for i := range 400 {
		pairs := []string{"grant_type", "refresh_token", "refresh_token", fmt.Sprint("none-", i)}
		if i%2 == 0 {
			pairs = []string{"grant_type", exchangeType, "subject_token", "a.b.c", "subject_token_type", accessTokenType}
		}
		if ask(app, "192.0.2.1:1", pairs...).Status == http.StatusTooManyRequests {
			limited++
		}
	}
	if n := count(t, d, "select count(*) from audit") - before; limited < 200 || n > 200 {
		t.Errorf("of 400 requests in the name of a client %d were too many, and %d are on record", limited, n)
	}
	refused(t, "another client at the address", ask(other, "192.0.2.1:1", "grant_type", "refresh_token", "refresh_token", "none"), 400, "invalid_grant")
	refused(t, "the client at another address", ask(app, "192.0.2.2:1", "grant_type", "refresh_token", "refresh_token", "none"), 400, "invalid_grant")
	granted(t, "a client that authenticates", w.Ask(ann))
}

// Who asks about tokens and may not act has used up what it proved itself with.
func TestAnAssertionOfAHeldClientIsUsedUp(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		raw := w.Ask(bot).Token()
		held, err := w.Agents.Hold(t.Context(), oauthtest.Admin, bot.ID, agent.Suspension, "a test")
		if err != nil {
			t.Fatal(err)
		}
		assertion := w.Assertion(bot)
		ask := func(path string) oauthtest.Answer {
			return w.Do(oauthtest.Request(path, oauthtest.Form("token", raw, "client_assertion_type", oauthtest.AssertionType, "client_assertion", assertion)))
		}
		refused(t, "while it is held", ask("/oauth/introspect"), 400, "access_denied")
		if _, err := w.Agents.Lift(t.Context(), oauthtest.Admin, bot.ID, held.ID, "a test"); err != nil {
			t.Fatal(err)
		}
		refused(t, "once it is not", ask("/oauth/introspect"), 401, "invalid_client")
		refused(t, "to end a token", ask("/oauth/revoke"), 401, "invalid_client")
	})
}

// To act as an agent that one runs is worth no more than the token by which one
// does.
func TestActingIsWorthTheActorsToken(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, host, bob := w.Agent("ann"), w.Agent("host"), w.Agent("bob")
		w.Set(host, agent.Client{GrantTypes: []string{exchangeType}, Runs: []string{bob.ID}})
		subject := w.AskByKey(ann, "resource", oauthtest.CRM).Token()
		for want, actor := range map[string]string{"secret": w.Ask(bob).Token(), "key": w.AskByKey(bob).Token()} {
			a := granted(t, "an exchange", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form(
				"grant_type", exchangeType, "subject_token", subject, "subject_token_type", accessTokenType,
				"actor_token", actor, "actor_token_type", accessTokenType,
				"client_assertion_type", oauthtest.AssertionType, "client_assertion", w.Assertion(host)))))
			if got := said(t, a.Token())["strength"]; got != want {
				t.Errorf("by a token of the actor of the strength %v it is %v", want, got)
			}
		}

		// So it is with what a person signed in with, which has no strength of its own.
		wiki := signedTo(w, "wiki", func(c *agent.Client) { c.Runs = []string{bob.ID} })
		id := granted(t, "signing in", w.Redeem(wiki, w.Person("alice").Code(wiki, "scope", "openid customer.read"))).Text("id_token")
		for want, actor := range map[string]string{"secret": w.Ask(bob).Token(), "key": w.AskByKey(bob).Token()} {
			a := granted(t, "an ID token", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form(
				"grant_type", exchangeType, "subject_token", id, "subject_token_type", token.IDTokenType, "resource", oauthtest.CRM,
				"actor_token", actor, "actor_token_type", accessTokenType,
				"client_assertion_type", oauthtest.AssertionType, "client_assertion", w.Assertion(wiki)))))
			if got := said(t, a.Token())["strength"]; got != want {
				t.Errorf("of an ID token, by a token of the actor of the strength %v, it is %v", want, got)
			}
		}
	})
}

// What goes on that was begun with a token rests on everybody in its chain.
func TestWhatGoesOnRestsOnTheWholeChain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		end := func(what string, kill func(ann, bob *oauthtest.Agent, c estover.Caller)) {
			t.Helper()
			suffix := strings.ToLower(rand.Text())
			ann, bob := w.Agent("ann-"+suffix), w.Agent("bob-"+suffix)
			w.Set(bob, agent.Client{GrantTypes: []string{exchangeType}, Exchanges: []string{jwtType}})
			p := w.Platform("ci-"+suffix, nil, ann)
			raw := granted(t, "an exchange", exchange(w, bob, p.Token(ann), "subject_token_type", jwtType, "resource", oauthtest.CRM)).Token()
			tok, err := w.Tokens.Verify(t.Context(), raw)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Tokens.Rests(t.Context(), tok.Caller()); err != nil {
				t.Errorf("%s: before, %v", what, err)
			}
			kill(ann, bob, tok.Caller())
			if err := w.Tokens.Rests(t.Context(), tok.Caller()); err == nil {
				t.Errorf("%s: nothing has ended", what)
			}
		}
		end("the subject, in a session of another's", func(ann, _ *oauthtest.Agent, _ estover.Caller) { hold(t, w, ann, agent.Suspension) })
		end("who acts", func(_, bob *oauthtest.Agent, _ estover.Caller) { hold(t, w, bob, agent.Quarantine) })
		end("the sponsor of the subject", func(ann, _ *oauthtest.Agent, _ estover.Caller) {
			if _, err := w.People.Disable(t.Context(), oauthtest.Admin, ann.Sponsor.ID, "left"); err != nil {
				t.Fatal(err)
			}
		})
		end("the grant", func(_, _ *oauthtest.Agent, c estover.Caller) {
			if err := w.Tokens.EndGrant(t.Context(), oauthtest.Admin, c.Grant, "a test"); err != nil {
				t.Fatal(err)
			}
		})
	})
}
