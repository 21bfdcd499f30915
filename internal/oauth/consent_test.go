package oauth_test

import (
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
)

// Somebody who has signed out, and is to sign in again, is not let in by who is
// signed in at their provider all along.
func TestSignedOutIsAskedAgain(t *testing.T) {
	w := oauthtest.New(t, dbtest.Open(t))
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
}
