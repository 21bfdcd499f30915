package oauth_test

import (
	"net/http"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
)

// A node that cannot read what others have ended says of no token that it is
// active, nor that it is not (tokens.md, section 2: 503 with Retry-After, never
// active: true). What it has heard of for two seconds more it may say.
func TestIntrospectionWithoutAStoreSaysNothing(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, u string) {
		t.Parallel()
		d, err := db.Open(t.Context(), u, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		w := oauthtest.New(t, d)
		go func() { _ = w.Guard.Run(t.Context()) }()
		bot := w.Agent("bot")
		raw := granted(t, "while the store is there", w.Ask(bot)).Token()
		if !w.Live(bot, raw) {
			t.Fatal("a token is not active while the store is there")
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		closed := time.Now()
		for {
			asked := time.Now()
			a := w.Introspect(bot, raw)
			if a.Status == http.StatusServiceUnavailable {
				break
			}
			if asked.Sub(closed) > 2*time.Second {
				t.Fatalf("%v after the store went away: %d %s, want 503", asked.Sub(closed), a.Status, a.Body)
			}
			time.Sleep(20 * time.Millisecond)
		}
		for what, about := range map[string]string{"a token that was active": raw, "a token that is none": "a.b.c"} {
			a := w.Introspect(bot, about)
			refused(t, what, a, 503, "temporarily_unavailable")
			if a.Header.Get("Retry-After") == "" {
				t.Errorf("%s: 503 without Retry-After", what)
			}
		}
	})
}
