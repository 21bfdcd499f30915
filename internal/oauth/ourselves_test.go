package oauth_test

import (
	"net/http"
	"testing"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
)

// A token for ourselves is what an agent gets on its own authority when it has no
// usual resource, and nobody else gets one by naming us.
func TestTokenForOurselves(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		us := string(oauthtest.Issuer)
		bot, app, alice := w.Agent("bot"), w.CodeAgent("app"), w.Person("alice")
		w.Set(bot, agent.Client{DefaultResource: oauthtest.CRM, GrantTypes: []string{exchangeType}})
		usual := granted(t, "without a resource", w.Ask(bot)).Text("access_token")
		claimsOf(t, w, usual, oauthtest.CRM)
		own := granted(t, "for ourselves", w.Ask(bot, "resource", us))
		if c := claimsOf(t, w, own.Text("access_token"), us); c["scope"] != nil {
			t.Errorf("the token for ourselves has the scopes %v", c["scope"])
		}
		refused(t, "with a scope", w.Ask(bot, "resource", us, "scope", "customer.read"), http.StatusBadRequest, "invalid_scope")
		// What is for a resource does not become one for us.
		refused(t, "in exchange", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", exchangeType, "subject_token", usual,
			"subject_token_type", "urn:ietf:params:oauth:token-type:access_token", "resource", us), oauthtest.Basic(bot.ID, bot.Secret))),
			http.StatusBadRequest, "invalid_target")
		if back := oauthtest.Back(alice, alice.Ask(app, "resource", us)); back.Get("error") != "invalid_target" {
			t.Errorf("in the name of a person: %v", back)
		}
	})
}
