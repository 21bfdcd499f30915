package oauth_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
)

// claimsOf verifies a token as a resource server would, with the published
// keys, and gives its claims.
func claimsOf(t *testing.T, w *oauthtest.World, raw, audience string) map[string]any {
	t.Helper()
	published := w.Do(httpGet("/oauth/jwks"))
	keys, err := jose.ParseKeys([]byte(published.Body))
	if err != nil {
		t.Fatal(err)
	}
	c, err := jose.Verify(jose.AccessToken, keys, raw, jose.Expected{Now: w.DB.Now(), Issuer: string(oauthtest.Issuer), Audiences: []string{audience}})
	if err != nil {
		t.Fatalf("verifying the token with the published keys: %v", err)
	}
	claims := map[string]any{}
	if err := c.Into(&claims); err != nil {
		t.Fatal(err)
	}
	if c.Header.Type != "at+jwt" || c.Header.Algorithm != "ES256" {
		t.Errorf("the header says %+v, want an at+jwt signed with ES256", c.Header)
	}
	return claims
}

func TestClientCredentials(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		for _, c := range []struct {
			name     string
			answer   oauthtest.Answer
			strength string
		}{
			{"basic", w.Ask(bot, "resource", oauthtest.CRM), "secret"},
			{"post", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials", "client_id", bot.ID, "client_secret", bot.Secret, "resource", oauthtest.CRM))), "secret"},
			{"key", w.AskByKey(bot, "resource", oauthtest.CRM), "key"},
		} {
			a := c.answer
			if a.Status != http.StatusOK {
				t.Fatalf("%s: %d %s", c.name, a.Status, a.Body)
			}
			if got := a.Header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("%s: Cache-Control is %q, want no-store", c.name, got)
			}
			if a.Text("token_type") != "Bearer" || a.JSON["expires_in"] != 900.0 && a.JSON["expires_in"] != 899.0 || a.Text("scope") != "customer.read customer.update" {
				t.Errorf("%s: the answer is %s", c.name, a.Body)
			}
			claims := claimsOf(t, w, a.Token(), oauthtest.CRM)
			for name, want := range map[string]any{
				"iss": string(oauthtest.Issuer), "sub": "agent:" + bot.ID, "client_id": bot.ID, "aud": oauthtest.CRM,
				"scope": "customer.read customer.update", "purpose": "billing", "strength": c.strength, "sid": a.Text("session"), "grant_epoch": 1.0,
			} {
				if claims[name] != want {
					t.Errorf("%s: the claim %s is %v, want %v", c.name, name, claims[name], want)
				}
			}
			for name, prefix := range map[string]string{"jti": "tok_", "grant_id": "gnt_", "sid": "ses_", "txn": "evt_"} {
				if s, _ := claims[name].(string); !strings.HasPrefix(s, prefix) {
					t.Errorf("%s: the claim %s is %v, want something that begins with %s", c.name, name, claims[name], prefix)
				}
			}
			if !w.Live(bot, a.Token()) {
				t.Errorf("%s: the token is not active", c.name)
			}
		}
	})
}

func httpGet(path string) *http.Request {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, string(oauthtest.Issuer)+path, nil)
	if err != nil {
		panic(err)
	}
	r.RemoteAddr = "192.0.2.7:4711"
	return r
}

// One grant serves all tokens of a client in a session; another session has
// another.
func TestOneGrantPerSessionAndClient(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		grant := func(pairs ...string) string {
			t.Helper()
			a := w.Ask(bot, pairs...)
			tok, err := w.Tokens.Verify(t.Context(), a.Token())
			if err != nil {
				t.Fatalf("%v: %s", err, a.Body)
			}
			return tok.Grant
		}
		first := grant()
		if second := grant("resource", oauthtest.CRM); second != first {
			t.Errorf("a second token rests on %s, want %s", second, first)
		}
		if other := grant("purpose", "support"); other == first {
			t.Error("a token for another purpose rests on the same grant")
		}
		if n := count(t, d, "select count(*) from oauth_grant"); n != 2 {
			t.Errorf("there are %d grants, want 2", n)
		}
	})
}

func count(t *testing.T, d *db.DB, query string, args ...any) (n int) {
	t.Helper()
	err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error { return tx.QueryRow(t.Context(), query, args...).Scan(&n) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wish is a session of the agent that lives for so long.
func wish(a *oauthtest.Agent, life time.Duration) session.Wish {
	return session.Wish{Agent: a.ID, Life: life}
}
