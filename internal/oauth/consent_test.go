package oauth_test

import (
	"net/http"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
)

// Somebody who has signed out, and is to sign in again, is not let in by who is
// signed in at their provider all along.
func TestSignedOutIsAskedAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		delete(alice.Cookies, "__Host-estover")
		for _, pairs := range [][]string{{"prompt", "login"}, {"max_age", "0"}, {"prompt", "select_account"}} {
			if to := alice.Ask(bot, pairs...).Header.Get("Location"); !strings.HasPrefix(to, "/login?again=1") {
				t.Errorf("%v: to %q, want the page that asks once more", pairs, to)
			}
		}
		if to := alice.Ask(bot).Header.Get("Location"); !strings.HasPrefix(to, "/login?to=") {
			t.Errorf("without a wish: to %q, want the sign-in page", to)
		}
	})
}

// A no is an outcome: it is on record wherever it was said, it is good once, and
// it uses up the request that was pushed for it.
func TestNoIsOnRecord(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		said := func(where string, want int) {
			t.Helper()
			n := count(t, d, "select count(*) from audit where action = 'authorization.deny' and outcome = 'done' and actor = '"+string(estover.User(alice.ID))+"'")
			if n != want {
				t.Errorf("%s: %d times no are on record, want %d", where, n, want)
			}
		}
		no := alice.Fill(alice.Ask(bot), "/oauth/consent", "decision", "deny")
		if back := oauthtest.Back(alice, alice.Post("/oauth/consent", no)); back.Get("error") != "access_denied" {
			t.Errorf("a no: %v", back)
		}
		said("a no to an agent with a browser", 1)
		if p := alice.Post("/oauth/consent", no); p.Status != http.StatusConflict {
			t.Errorf("the same no again: %d, want 409", p.Status)
		}
		said("the same no again", 1)

		pushed := w.Do(oauthtest.Request("/oauth/par", oauthtest.AuthorizeQuery(bot), oauthtest.Basic(bot.ID, bot.Secret)))
		at := "/oauth/authorize?" + oauthtest.Form("client_id", bot.ID, "request_uri", pushed.Text("request_uri")).Encode()
		oauthtest.Back(alice, alice.Post("/oauth/consent", alice.Fill(alice.Load(at), "/oauth/consent", "decision", "deny")))
		said("a no to what was pushed", 2)
		if p := alice.Load(at); p.Has("/oauth/consent") {
			t.Error("what was pushed and refused is asked again")
		}

		alice.Decide(w.Device(bot).Text("user_code"), "deny")
		said("a no to an agent that shows a code", 3)
		w.Name(bot, "alice")
		alice.Answer("deny")
		said("a no to an agent that names the person", 4)
	})
}

// A yes is to what the page has shown: if it has become more, or somebody else,
// the person is asked anew.
func TestYesIsToWhatWasShown(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		form := alice.Fill(alice.Ask(bot), "/oauth/consent")
		w.Set(bot, agent.Client{
			GrantTypes: []string{"authorization_code", "refresh_token"}, RedirectURIs: []string{oauthtest.Callback, "https://other.example/back"},
		})
		if p := alice.Post("/oauth/consent", form); p.Status != http.StatusForbidden {
			t.Errorf("a yes to an agent that has changed since: %d to %q, want 403", p.Status, p.Header.Get("Location"))
		}
		if n := count(t, d, "select count(*) from oauth_grant"); n != 0 {
			t.Errorf("%d grants were made", n)
		}
		if back := alice.Allow(bot); back.Get("code") == "" {
			t.Errorf("a yes to the agent as it is: %v", back)
		}
	})
}
