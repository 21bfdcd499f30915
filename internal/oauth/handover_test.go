package oauth_test

import (
	"fmt"
	"testing"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
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
