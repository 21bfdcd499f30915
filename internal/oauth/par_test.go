package oauth_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/page/pagetest"
	"estover.dev/internal/token"
)

func push(w *oauthtest.World, a *oauthtest.Agent, q url.Values, change ...func(*http.Request)) oauthtest.Answer {
	return w.Do(oauthtest.Request("/oauth/par", q, append([]func(*http.Request){oauthtest.Basic(a.ID, a.Secret)}, change...)...))
}

// come is the browser with a pushed request.
func come(a *oauthtest.Agent, uri string, more ...string) string {
	q := oauthtest.Form(append([]string{"client_id", a.ID, "request_uri", uri}, more...)...)
	return "/oauth/authorize?" + q.Encode()
}

func TestPushedRequests(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, two := pair(t, d)
		clock := dbtest.NewClock(d)
		bot := w.CodeAgent("bot", func(c *agent.Client) { c.RequirePAR = true })
		other, alice := w.CodeAgent("other"), w.Person("alice")
		if m := w.Metadata(); m.PAREndpoint != m.Issuer+"/oauth/par" || m.RequirePAR {
			t.Errorf("the metadata says %+v", m)
		}
		pushed := func() string {
			t.Helper()
			a := push(w, bot, oauthtest.AuthorizeQuery(bot, "scope", "customer.read"))
			if a.Status != http.StatusCreated || !strings.HasPrefix(a.Text("request_uri"), "urn:ietf:params:oauth:request_uri:est_ru_") || a.JSON["expires_in"] != 90.0 ||
				a.Header.Get("Cache-Control") != "no-store" {
				t.Fatalf("pushing: %d %s", a.Status, a.Body)
			}
			return a.Text("request_uri")
		}
		uri := pushed()
		// Opening and loading again does not use it up, and nothing that the browser
		// brings beside counts.
		for range 2 {
			asked := alice.Load(come(bot, uri, "scope", "customer.update", "redirect_uri", "https://evil.example", "state", "evil"))
			if asked.Status != http.StatusOK || strings.Contains(asked.Body, "customer.update") || strings.Contains(asked.Body, "evil.example/") {
				t.Fatalf("a browser with a pushed request: %d to %q\n%s", asked.Status, asked.Header.Get("Location"), asked.Body)
			}
		}
		clock.Advance(5 * time.Minute) // the person reads
		asked := alice.Load(come(bot, uri))
		form := alice.Fill(asked, "/oauth/consent")
		back := oauthtest.Back(alice, alice.Post("/oauth/consent", form))
		if back.Get("state") != "xyz" {
			t.Errorf("the browser is sent back with %v", back)
		}
		a := w.Redeem(bot, back.Get("code"))
		granted(t, "a pushed request", a)
		if a.Text("scope") != "customer.read" {
			t.Errorf("the scope is %q", a.Text("scope"))
		}
		gone := func(name, path string) {
			t.Helper()
			if p := alice.Load(path); p.Status != http.StatusBadRequest || p.Header.Get("Location") != "" {
				t.Errorf("%s: %d to %q", name, p.Status, p.Header.Get("Location"))
			}
		}
		gone("a request that was completed", come(bot, uri))
		fresh := pushed()
		gone("another client's request", come(other, fresh))
		clock.Advance(token.PushedLife + time.Second)
		gone("a request of a minute and a half ago", come(bot, fresh))

		// Completed at once, on one node or two, it is completed once.
		uri = pushed()
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		won := 0
		for _, p := range atOnce(64, func(i int) *pagetest.Page { return at(alice, i, w, two).Load(come(bot, uri)) }) {
			switch {
			case p.Status == http.StatusSeeOther:
				won++
			case p.Status != http.StatusBadRequest || p.Header.Get("Location") != "":
				t.Errorf("one of 64 completions: %d to %q", p.Status, p.Header.Get("Location"))
			}
		}
		if won != 1 {
			t.Errorf("of 64 completions of one request %d succeeded, want 1", won)
		}
	})
}

// What is pushed is checked at once, as it will be when a browser comes.
func TestPushedRequestsAreChecked(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := w.CodeAgent("bot"), w.CodeAgent("other")
		for name, c := range map[string]struct {
			pairs []string
			want  string
		}{
			"a request_uri":               {[]string{"request_uri", "urn:ietf:params:oauth:request_uri:x"}, "invalid_request"},
			"another redirect URI":        {[]string{"redirect_uri", "https://evil.example"}, "invalid_request"},
			"no challenge":                {[]string{"code_challenge", ""}, "invalid_request"},
			"plain":                       {[]string{"code_challenge_method", "plain"}, "invalid_request"},
			"another response type":       {[]string{"response_type", "token"}, "unsupported_response_type"},
			"a client that is not itself": {[]string{"client_id", other.ID}, "invalid_request"},
		} {
			refused(t, name, push(w, bot, oauthtest.AuthorizeQuery(bot, c.pairs...)), 400, c.want)
		}
		refused(t, "a wrong secret", w.Do(oauthtest.Request("/oauth/par", oauthtest.AuthorizeQuery(bot), oauthtest.Basic(bot.ID, other.Secret))), 401, "invalid_client")
		refused(t, "nobody", w.Do(oauthtest.Request("/oauth/par", oauthtest.AuthorizeQuery(bot))), 401, "invalid_client")
		// By an assertion, which is good once.
		assertion := w.Assertion(bot)
		q := oauthtest.AuthorizeQuery(bot, "client_assertion_type", oauthtest.AssertionType, "client_assertion", assertion)
		if a := w.Do(oauthtest.Request("/oauth/par", q)); a.Status != http.StatusCreated {
			t.Errorf("by an assertion: %d %s", a.Status, a.Body)
		}
		refused(t, "the same assertion", w.Do(oauthtest.Request("/oauth/par", q)), 401, "invalid_client")
		if n := count(t, d, "select count(*) from oauth_pushed where request like '%assertion%' or request like '%secret%'"); n != 0 {
			t.Error("what a client authenticates with is kept along with its request")
		}
		// The key that is shown is the one that the code is bound to (RFC 9449,
		// section 10.1).
		alice, prover, thief := w.Person("alice"), w.Prover("P-256"), w.Prover("P-256")
		refused(t, "another key than the one that is shown", push(w, bot, oauthtest.AuthorizeQuery(bot, "dpop_jkt", thief.Thumbprint()), prover.Prove("")), 400, "invalid_request")
		a := push(w, bot, oauthtest.AuthorizeQuery(bot), prover.Prove(""))
		if a.Status != http.StatusCreated {
			t.Fatalf("pushing with a key: %d %s", a.Status, a.Body)
		}
		asked := alice.Load(come(bot, a.Text("request_uri")))
		code := oauthtest.Back(alice, alice.Post("/oauth/consent", alice.Fill(asked, "/oauth/consent"))).Get("code")
		refused(t, "the code without the key", w.Redeem(bot, code), 400, "invalid_grant")
		f := oauthtest.Form("grant_type", "authorization_code", "code", code, "code_verifier", oauthtest.Verifier)
		granted(t, "the code with the key", w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, bot.Secret), prover.Prove(""))))
	})
}

// A request that is pushed in the name of a client that does not authenticate,
// as anybody can push one, is kept without what it does not need, and not too
// many are.
func TestPushedRequestsOfStrangers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dbtest.NewClock(d).Hold()
		w := oauthtest.New(t, d)
		bot := w.CodeAgent("bot", func(c *agent.Client) { c.Methods = []string{token.Public} })
		q := oauthtest.AuthorizeQuery(bot, "junk", strings.Repeat("x", 50_000))
		kept := 0
		for range 100 {
			switch a := w.Do(oauthtest.Request("/oauth/par", q)); a.Status {
			case http.StatusCreated:
				kept++
			case http.StatusTooManyRequests:
			default:
				t.Fatalf("pushing: %d %s", a.Status, a.Body)
			}
		}
		if n := count(t, d, "select count(*) from oauth_pushed"); n != kept || kept < 1 || kept > 50 {
			t.Errorf("of 100 requests %d were taken and %d are kept", kept, n)
		}
		if n := count(t, d, "select count(*) from oauth_pushed where length(request) > 2000"); n != 0 {
			t.Errorf("%d requests are kept with what nobody reads", n)
		}
	})
}
