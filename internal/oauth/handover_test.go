package oauth_test

import (
	"fmt"
	"slices"
	"testing"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// A client that runs an agent acts for others as that agent, and never as the
// agent itself: there is no token of somebody in whose chain the one who got it
// does not stand.
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
