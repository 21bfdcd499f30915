package oauth_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/page/pagetest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

func TestAuthorizationCode(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		asked := alice.Ask(bot, "scope", "customer.read")
		for _, want := range []string{
			"Let bot act for you?", "<strong>alice</strong>", "the sponsor of bot", "<strong>app.example</strong>", "crm.example", "<code>customer.read</code>",
			"at most 24 hours", "billing",
		} {
			if !strings.Contains(asked.Body, want) {
				t.Errorf("the page that asks does not say %q:\n%s", want, asked.Body)
			}
		}
		if strings.Contains(asked.Body, "customer.update") {
			t.Error("the page speaks of what was not asked for")
		}
		if csp := asked.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self' https://app.example;") {
			t.Errorf("the page that asks has the policy %q", csp)
		}
		sent := alice.Post("/oauth/consent", alice.Fill(asked, "/oauth/consent"))
		back := oauthtest.Back(alice, sent)
		if !strings.HasPrefix(sent.Header.Get("Location"), oauthtest.Callback+"?") || back.Get("state") != "xyz" || back.Get("iss") != string(oauthtest.Issuer) ||
			!strings.HasPrefix(back.Get("code"), "est_ac_") || len(back) != 3 {
			t.Fatalf("the browser is sent to %s", sent.Header.Get("Location"))
		}
		a := w.Redeem(bot, back.Get("code"), "redirect_uri", oauthtest.Callback)
		granted(t, "a code", a)
		if a.Text("scope") != "customer.read" || !strings.HasPrefix(a.Text("refresh_token"), "est_rt_") || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("the answer is %s", a.Body)
		}
		claims := claimsOf(t, w, a.Token(), oauthtest.CRM)
		for name, want := range map[string]any{"sub": "user:" + alice.ID, "client_id": bot.ID, "scope": "customer.read", "acr": "phr", "purpose": "billing"} {
			if claims[name] != want {
				t.Errorf("the claim %s is %v, want %v", name, claims[name], want)
			}
		}
		if act, _ := claims["act"].(map[string]any); act["sub"] != "agent:"+bot.ID {
			t.Errorf("the claim act is %v", claims["act"])
		}
		if amr, _ := claims["amr"].([]any); len(amr) != 2 || amr[0] != "hwk" || amr[1] != "user" {
			t.Errorf("the claim amr is %v", claims["amr"])
		}
		if at, _ := claims["auth_time"].(float64); at == 0 || time.Since(time.Unix(int64(at), 0)) > time.Minute {
			t.Errorf("the claim auth_time is %v", claims["auth_time"])
		}
		if !w.Live(bot, a.Token()) {
			t.Error("the token is not active")
		}
		s, err := w.Sessions.Get(t.Context(), oauthtest.Admin, a.Text("session"))
		if err != nil || s.Agent != bot.ID || s.OpenedBy != estover.User(alice.ID) || s.Ambient || s.Purpose != "billing" {
			t.Errorf("the token belongs to the session %+v, %v", s, err)
		}
		// The same again, and less, without a page; a session of its own each time.
		again := w.Redeem(bot, alice.Code(bot, "scope", "customer.read"))
		granted(t, "a second code", again)
		if again.Text("session") == a.Text("session") {
			t.Error("two authorizations have one session")
		}
		if err := w.Sessions.End(t.Context(), oauthtest.Admin, a.Text("session"), "a test"); err != nil {
			t.Fatal(err)
		}
		if w.Live(bot, a.Token()) || !w.Live(bot, again.Token()) {
			t.Error("the end of one session did not end its token, or ended another's")
		}
		refused(t, "a refresh after the session's end", w.Refresh(bot, a.Text("refresh_token")), 400, "invalid_grant")
	})
}

// TestA10 asks with redirect URIs that look like the registered ones: the person
// is told, and the browser goes nowhere.
func TestA10(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		alice := w.Person("alice")
		bot := w.CodeAgent("bot", func(c *agent.Client) {
			c.RedirectURIs = []string{"https://good.example/cb", "https://good.example/other?a=b", "http://127.0.0.1/cb", "http://[::1]:1234/cb", "http://localhost:9/cb"}
		})
		for _, bad := range []string{
			"https://good.example@evil.example/cb", "https://good.example/cb@evil.example", "https://a@b@good.example/cb", `https://good.example\@evil.example/cb`,
			`https://good.example\cb`, "https://good.example/%2f../cb", "https://good.example/x/../cb", "https://Good.example/cb", "https://good.example/CB", "https://good.example:443/cb",
			"https://good.example:444/cb", "https://good.example./cb", "https://good.example/cb#f", "https://user@good.example/cb", "https://good.example/cb/more",
			"https://good.example/cb?x=1", "https://good.example/", "https://good.example", "https://good.example/cb%00", "https://good.example/other?a=b&a=c",
			"http://good.example/cb", "https://good.example.evil.example/cb", "https://evil.example/https://good.example/cb", "javascript:alert(1)", "data:text/html,x", "/cb", "//good.example/cb",
			"http://127.0.0.1:80x/cb", "http://127.0.0.1:/cb", "http://127.0.0.1:123456/cb", "http://127.0.0.1@evil.example/cb", "http://127.0.0.1:1@evil.example/cb",
			"http://127.0.0.1.evil.example/cb", "http://127.0.0.1/cb/x", "https://127.0.0.1/cb", "http://127.0.0.2/cb", "http://2130706433/cb", "http://[::1]:1234/other", "http://localhost:10/cb",
			" https://good.example/cb", "https://good.example/cb ", "https://good.example/cb\n",
		} {
			p := alice.Ask(bot, "redirect_uri", bad)
			if p.Status != http.StatusBadRequest || p.Header.Get("Location") != "" || !strings.Contains(p.Body, "not registered for it") {
				t.Errorf("redirect_uri %q: %d to %q", bad, p.Status, p.Header.Get("Location"))
			}
		}
		q := oauthtest.AuthorizeQuery(bot, "redirect_uri", "https://good.example/cb")
		for name, query := range map[string]string{
			"two redirect URIs": q.Encode() + "&redirect_uri=https%3A%2F%2Fevil.example", "two clients": q.Encode() + "&client_id=x",
			"no redirect URI of several": oauthtest.AuthorizeQuery(bot, "redirect_uri", "").Encode(),
		} {
			if p := alice.Load("/oauth/authorize?" + query); p.Status != http.StatusBadRequest || p.Header.Get("Location") != "" {
				t.Errorf("%s: %d to %q", name, p.Status, p.Header.Get("Location"))
			}
		}
		for _, good := range []string{
			"https://good.example/cb", "https://good.example/other?a=b", "http://127.0.0.1/cb", "http://127.0.0.1:1/cb", "http://127.0.0.1:65535/cb", "http://[::1]:4321/cb", "http://[::1]/cb", "http://localhost:9/cb",
		} {
			back := alice.Allow(bot, "redirect_uri", good)
			if back.Get("code") == "" {
				t.Errorf("redirect_uri %q: %v", good, back)
			}
		}
		// Whoever has one redirect URI need not name it.
		one := w.CodeAgent("one")
		if back := alice.Allow(one, "redirect_uri", ""); back.Get("code") == "" {
			t.Errorf("without a redirect_uri: %v", back)
		}
	})
}

// TestA11: what is wrong with a request is told to the client, by 303, with the
// issuer and the state; where the client is not certain, to the person. Nothing
// is revealed by the heads.
func TestA11(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		pushes := w.CodeAgent("pushes", func(c *agent.Client) { c.RequirePAR = true })
		plain := w.Agent("plain") // is not registered for it
		held := w.CodeAgent("held")
		hold(t, w, held, agent.Suspension)
		for _, c := range []struct {
			name, want string
			by         *oauthtest.Agent
			pairs      []string
		}{
			{"another response type", "unsupported_response_type", bot, []string{"response_type", "token"}},
			{"no response type", "unsupported_response_type", bot, []string{"response_type", ""}},
			{"another response mode", "invalid_request", bot, []string{"response_mode", "fragment"}},
			{"an unknown scope", "invalid_scope", bot, []string{"scope", "customer.destroy"}},
			{"a scope with a quote", "invalid_scope", bot, []string{"scope", `a"b`}},
			{"an unknown resource", "invalid_target", bot, []string{"resource", "https://erp.example"}},
			{"a request as a JWT", "request_not_supported", bot, []string{"request", "e30.e30."}},
			{"an unknown purpose", "invalid_request", bot, []string{"purpose", "spying"}},
			{"a strange prompt", "invalid_request", bot, []string{"prompt", "none login"}},
			{"a strange max_age", "invalid_request", bot, []string{"max_age", "-1"}},
			{"a strange key", "invalid_request", bot, []string{"dpop_jkt", "x"}},
			{"a question that may not be asked", "consent_required", bot, []string{"prompt", "none"}},
			{"a client that must push", "invalid_request", pushes, nil},
			{"a client that is held", "unauthorized_client", held, nil},
		} {
			p := alice.Ask(c.by, c.pairs...)
			back := oauthtest.Back(alice, p)
			if !strings.HasPrefix(p.Header.Get("Location"), oauthtest.Callback+"?error=") || back.Get("error") != c.want || back.Get("iss") != string(oauthtest.Issuer) ||
				back.Get("state") != "xyz" || back.Get("code") != "" || back.Get("error_description") == "" {
				t.Errorf("%s: %d to %s, want %s", c.name, p.Status, p.Header.Get("Location"), c.want)
			}
			if p.Header.Get("Referrer-Policy") != "no-referrer" || p.Header.Get("Cache-Control") != "no-store" || p.Body != "" {
				t.Errorf("%s: the heads are %v", c.name, p.Header)
			}
		}
		for name, query := range map[string]string{
			"an unknown client": "client_id=agt_nobody", "no client": "", "a client with a colon": "client_id=user%3Ausr_1", "bad encoding": "client_id=%zz",
			"another grant type's client": oauthtest.AuthorizeQuery(plain).Encode(), "a pushed request of nobody": "client_id=" + bot.ID + "&request_uri=urn:ietf:params:oauth:request_uri:x",
			"a request_uri elsewhere": "client_id=" + bot.ID + "&request_uri=https%3A%2F%2Fevil.example%2Fr", "a long one": "client_id=" + bot.ID + "&x=" + strings.Repeat("a", 70000),
		} {
			p := alice.Load("/oauth/authorize?" + query)
			if p.Status != http.StatusBadRequest || p.Header.Get("Location") != "" || p.Header.Get("X-Frame-Options") != "DENY" ||
				!strings.Contains(p.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'") || p.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s: %d to %q with %v", name, p.Status, p.Header.Get("Location"), p.Header)
			}
		}
		// Whoever is not signed in goes to sign in, and comes back to the same.
		stranger := w.Person("bob")
		delete(stranger.Cookies, "__Host-estover")
		p := stranger.Ask(bot)
		to, err := url.Parse(p.Header.Get("Location"))
		if err != nil || p.Status != http.StatusSeeOther || to.Path != "/login" || to.Query().Get("to") != "/oauth/authorize?"+sorted(t, oauthtest.AuthorizeQuery(bot)) {
			t.Errorf("a stranger is sent to %s", p.Header.Get("Location"))
		}
		if back := oauthtest.Back(stranger, stranger.Ask(bot, "prompt", "none")); back.Get("error") != "login_required" {
			t.Errorf("a stranger who may not be asked: %v", back)
		}
		// A POST is the same request (OpenID Connect Core, section 3.1.2.1).
		p = alice.Post("/oauth/authorize", oauthtest.AuthorizeQuery(bot), func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") })
		if p.Status != http.StatusSeeOther || p.Header.Get("Location") != "/oauth/authorize?"+sorted(t, oauthtest.AuthorizeQuery(bot)) {
			t.Errorf("a POST is sent to %q", p.Header.Get("Location"))
		}
	})
}

// sorted is a query as url.Values writes it, which is how it was sent.
func sorted(t *testing.T, q url.Values) string {
	t.Helper()
	return q.Encode()
}

// TestA12: PKCE is S256, for every client, and cannot be left out at either end.
func TestA12(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		for name, pairs := range map[string][]string{
			"no challenge":             {"code_challenge", "", "code_challenge_method", ""},
			"a method alone":           {"code_challenge", ""},
			"plain":                    {"code_challenge", oauthtest.Verifier, "code_challenge_method", "plain"},
			"no method":                {"code_challenge_method", ""},
			"a short challenge":        {"code_challenge", "abc"},
			"a challenge with padding": {"code_challenge", oauthtest.Challenge(oauthtest.Verifier) + "="},
		} {
			if back := oauthtest.Back(alice, alice.Ask(bot, pairs...)); back.Get("error") != "invalid_request" {
				t.Errorf("%s: %v", name, back)
			}
		}
		code := alice.Code(bot)
		for name, c := range map[string]struct{ verifier, want string }{
			"no verifier":             {"", "invalid_request"},
			"a short verifier":        {"short", "invalid_request"},
			"a long verifier":         {strings.Repeat("a", 129), "invalid_request"},
			"a verifier with a space": {oauthtest.Verifier + " ", "invalid_request"},
			"another verifier":        {oauthtest.Verifier + "x", "invalid_grant"},
			"the challenge itself":    {oauthtest.Challenge(oauthtest.Verifier), "invalid_grant"},
		} {
			refused(t, name, w.Redeem(bot, code, "code_verifier", c.verifier), 400, c.want)
		}
		granted(t, "the right verifier after all", w.Redeem(bot, code))
	})
}

// TestA13: the issuer stands in every answer, byte for byte (RFC 9207).
func TestA13(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		m := w.Metadata()
		if !m.ResponseIssuer || m.AuthorizationEndpoint != m.Issuer+"/oauth/authorize" || !slices.Equal(m.ChallengeMethods, []string{"S256"}) ||
			!slices.Equal(m.ResponseTypes, []string{"code"}) || !slices.Equal(m.ResponseModes, []string{"query"}) {
			t.Errorf("the metadata says %+v", m)
		}
		denied := alice.Ask(bot)
		for name, back := range map[string]url.Values{
			"a code":   alice.Allow(bot),
			"a no":     oauthtest.Back(alice, alice.Post("/oauth/consent", saying(alice.Fill(denied, "/oauth/consent"), "decision", "deny"))),
			"an error": oauthtest.Back(alice, alice.Ask(bot, "scope", "nothing")),
		} {
			if !slices.Equal(back["iss"], []string{m.Issuer}) {
				t.Errorf("%s comes with iss %v, want %s", name, back["iss"], m.Issuer)
			}
		}
	})
}

func saying(f url.Values, name, value string) url.Values {
	f.Set(name, value)
	return f
}

// TestA3: a code or a refresh token in the wrong hands is worth nothing, and the
// right ones go on.
func TestA3(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, thief, alice := w.CodeAgent("bot"), w.CodeAgent("thief"), w.Person("alice")
		code := alice.Code(bot)
		refused(t, "another client's code", w.Redeem(thief, code), 400, "invalid_grant")
		refused(t, "a code for another redirect URI", w.Redeem(bot, code, "redirect_uri", "https://app.example/other"), 400, "invalid_grant")
		refused(t, "a code and a wrong secret", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "authorization_code", "code", code, "code_verifier", oauthtest.Verifier),
			oauthtest.Basic(bot.ID, thief.Secret))), 401, "invalid_client")
		a := w.Redeem(bot, code)
		granted(t, "its own client afterwards", a)
		refused(t, "another client's refresh token", w.Refresh(thief, a.Text("refresh_token")), 400, "invalid_grant")
		refused(t, "another client's spent code", w.Redeem(thief, code), 400, "invalid_grant")
		if !w.Live(bot, a.Token()) {
			t.Error("the victim's token died of it")
		}
		next := w.Refresh(bot, a.Text("refresh_token"))
		granted(t, "a refresh afterwards", next)
		if r := w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", next.Text("refresh_token")), oauthtest.Basic(thief.ID, thief.Secret))); r.Status != http.StatusOK || !w.Live(bot, next.Token()) {
			t.Errorf("another client revokes: %d, and the token is active: %v", r.Status, w.Live(bot, next.Token()))
		}
		if r := w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", next.Text("refresh_token")), oauthtest.Basic(bot.ID, bot.Secret))); r.Status != http.StatusOK {
			t.Fatal(r.Body)
		}
		if w.Live(bot, next.Token()) || w.Live(bot, a.Token()) {
			t.Error("a revoked refresh token left access tokens of its grant alive")
		}
	})
}

// A code is good for a minute, and once: presented again, what it bought ends.
func TestCodeIsGoodOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		clock := dbtest.NewClock(d)
		bot, alice := one.CodeAgent("bot"), one.Person("alice")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		code := alice.Code(bot)
		won := 0
		var raw string
		for _, a := range atOnce(64, func(i int) oauthtest.Answer { return []*oauthtest.World{one, two}[i%2].Redeem(bot, code) }) {
			if a.Status == http.StatusOK {
				won++
				raw = a.Token()
				continue
			}
			refused(t, "one of 64", a, 400, "invalid_grant")
		}
		if won != 1 {
			t.Errorf("of 64 redemptions of one code %d got a token, want 1", won)
		}
		if one.Live(bot, raw) {
			t.Error("what the code bought lives on, although it was presented again")
		}
		if n := count(t, d, "select count(*) from oauth_grant where kind = 'authorization_code' and ended_at is null"); n != 0 {
			t.Errorf("%d grants of the code live on", n)
		}

		code = alice.Code(bot)
		first := one.Redeem(bot, code)
		granted(t, "another code", first)
		refused(t, "the same code later", two.Redeem(bot, code), 400, "invalid_grant")
		if one.Live(bot, first.Token()) {
			t.Error("what the second code bought lives on")
		}
		if n := count(t, d, "select count(*) from audit where action = 'token.issue' and outcome = 'failed'"); n == 0 {
			t.Error("the replay is not on record")
		}

		code = alice.Code(bot)
		before := count(t, d, "select count(*) from session where ended_at is null")
		clock.Advance(token.CodeLife + time.Second)
		refused(t, "a code after a minute", one.Redeem(bot, code), 400, "invalid_grant")
		if err := one.Tokens.SweepCodes(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, "select count(*) from session where ended_at is null"); n != before-1 {
			t.Errorf("of %d open sessions %d are left; that of the code should have ended", before, n)
		}
		clock.Advance(26 * time.Hour)
		if err := one.Tokens.SweepCodes(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, "select count(*) from oauth_code"); n != 0 {
			t.Errorf("%d codes are kept for ever", n)
		}
	})
}

// What is good once is so for a client without refresh tokens, too, for which
// nothing else is written that could be there but once.
func TestCodesAreGoodOnceWithoutRefreshTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		alice := w.Person("alice")
		bot := w.CodeAgent("bot", func(c *agent.Client) {
			c.GrantTypes = slices.DeleteFunc(c.GrantTypes, func(g string) bool { return g == "refresh_token" })
		})
		code, typed, named := alice.Code(bot), alice.DeviceCode(bot), w.Name(bot, "alice").Text("auth_req_id")
		alice.Answer("allow")
		for what, redeem := range map[string]func() oauthtest.Answer{
			"a code":         func() oauthtest.Answer { return w.Redeem(bot, code) },
			"a device code":  func() oauthtest.Answer { return w.Poll(bot, typed) },
			"an auth_req_id": func() oauthtest.Answer { return w.Fetch(bot, named) },
		} {
			won := 0
			for _, a := range atOnce(16, func(int) oauthtest.Answer { return redeem() }) {
				if a.Status == http.StatusOK {
					won++
					if a.Text("refresh_token") != "" {
						t.Errorf("%s: a refresh token for who is not registered for one", what)
					}
					continue
				}
				refused(t, what+", one of 16", a, 400, "invalid_grant")
			}
			if won != 1 {
				t.Errorf("of 16 redemptions of %s %d got a token, want 1", what, won)
			}
			refused(t, what+", later", redeem(), 400, "invalid_grant")
		}
	})
}

// What a person has agreed to is kept, and they are asked again about anything
// wider.
func TestConsent(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		alice, bob := w.Person("alice"), w.Person("bob")
		bot := w.CodeAgent("bot", func(c *agent.Client) {
			c.RedirectURIs = []string{oauthtest.Callback, "https://app.example/second"}
		})
		asks := func(name string, p *oauthtest.Person, want bool, pairs ...string) {
			t.Helper()
			got := p.Ask(bot, pairs...)
			if (got.Status == http.StatusOK) != want {
				t.Errorf("%s: %d to %q, want a question: %v", name, got.Status, got.Header.Get("Location"), want)
			}
		}
		asks("at first", alice, true, "scope", "customer.read customer.update")
		alice.Allow(bot, "scope", "customer.read customer.update")
		asks("the same", alice, false, "scope", "customer.update customer.read")
		asks("less", alice, false, "scope", "customer.read")
		asks("another person", bob, true, "scope", "customer.read")
		asks("another redirect URI", alice, true, "scope", "customer.read", "redirect_uri", "https://app.example/second")
		asks("the client wants it", alice, true, "scope", "customer.read", "prompt", "consent")
		asks("another resource", alice, true, "resource", oauthtest.Tickets)
		asks("all that there is, which is the same", alice, false)
		w.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "customer.update", "note.write")
		asks("all that there is, which has grown", alice, true)
		alice.Allow(bot)
		asks("after agreeing to that", alice, false)
		spec := bot.Spec
		spec.Purposes = append(spec.Purposes, "sales")
		var err error
		if bot.Agent, err = w.Agents.Update(t.Context(), oauthtest.Admin, bot.ID, spec); err != nil {
			t.Fatal(err)
		}
		asks("after the agent has changed", alice, true)
		alice.Allow(bot)

		// Taking it back ends what is under way, of this person alone.
		a := w.Redeem(bot, alice.Code(bot))
		theirs := w.Redeem(bot, bob.Code(bot))
		page := alice.Load("/oauth/consents")
		if !strings.Contains(page.Body, "<strong>bot</strong>") || !strings.Contains(page.Body, "note.write") {
			t.Errorf("alice sees\n%s", page.Body)
		}
		stolen := bob.Fill(bob.Load("/oauth/consents"), "/oauth/consents")
		stolen.Set("id", page.Form(t, "/oauth/consents").Fields.Get("id"))
		if p := bob.Post("/oauth/consents", stolen); p.Status != http.StatusConflict {
			t.Errorf("bob ends alice's consent: %d, want 409", p.Status)
		}
		if p := alice.Send(page, "/oauth/consents"); p.Status != http.StatusOK || strings.Contains(p.Body, "note.write") {
			t.Errorf("ending it: %d\n%s", p.Status, p.Body)
		}
		if w.Live(bot, a.Token()) || !w.Live(bot, theirs.Token()) {
			t.Error("the end of alice's consent left her token alive, or ended bob's")
		}
		refused(t, "a refresh after the consent's end", w.Refresh(bot, a.Text("refresh_token")), 400, "invalid_grant")
		asks("after it was taken back", alice, true)
	})
}

// An answer counts once, from the page that asked, by whom it asked.
func TestConsentForm(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, two := pair(t, d)
		bot, alice, bob := w.CodeAgent("bot"), w.Person("alice"), w.Person("bob")
		asked := alice.Ask(bot, "scope", "customer.read")
		form := alice.Fill(asked, "/oauth/consent")
		wider := url.Values{}
		for k, v := range form {
			wider[k] = v
		}
		wider.Set("request", strings.Replace(form.Get("request"), "customer.read", "customer.update", 1))
		if wider.Get("request") == form.Get("request") {
			t.Fatal("the request was not changed")
		}
		for name, p := range map[string]int{
			"another request":         alice.Post("/oauth/consent", wider).Status,
			"another person":          bob.Post("/oauth/consent", form).Status,
			"another site":            alice.Post("/oauth/consent", form, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }).Status,
			"without the form's word": alice.Post("/oauth/consent", oauthtest.Form("request", form.Get("request"), "decision", "allow")).Status,
		} {
			if p != http.StatusForbidden {
				t.Errorf("%s: %d, want 403", name, p)
			}
		}
		if back := oauthtest.Back(alice, alice.Post("/oauth/consent", saying(alice.Fill(asked, "/oauth/consent"), "decision", "deny"))); back.Get("error") != "access_denied" {
			t.Errorf("a no: %v", back)
		}
		// Loading the page twice does not weaken it, and one answer is one code.
		second := alice.Fill(alice.Ask(bot, "scope", "customer.read"), "/oauth/consent")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		won := 0
		for _, p := range atOnce(64, func(i int) int { return at(alice, i, w, two).Post("/oauth/consent", second).Status }) {
			switch p {
			case http.StatusSeeOther:
				won++
			case http.StatusConflict:
			default:
				t.Errorf("one of 64 answers: %d", p)
			}
		}
		if won != 1 {
			t.Errorf("of 64 answers from one page %d counted, want 1", won)
		}
		if p := alice.Post("/oauth/consent", form); p.Status != http.StatusConflict {
			t.Errorf("a yes from the page that said no: %d, want 409", p.Status)
		}
	})
}

// To let an agent act wants a passkey, of the last half hour; sign-in is asked
// for again where the client asks for it.
func TestStepUp(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		signsIn := func(name string, want bool, pairs ...string) string {
			t.Helper()
			p := alice.Ask(bot, pairs...)
			to := p.Header.Get("Location")
			if strings.HasPrefix(to, "/login?again=1") != want {
				t.Errorf("%s: %d to %q, want the sign-in page: %v", name, p.Status, to, want)
			}
			u, _ := url.Parse(to)
			return u.Query().Get("to")
		}
		alice.SignIn(false)
		signsIn("by a recovery code", true)
		alice.SignIn(true)
		signsIn("by a passkey", false)
		form := alice.Fill(alice.Ask(bot), "/oauth/consent")
		clock.Advance(29*time.Minute + 30*time.Second)
		late := alice.Fill(alice.Ask(bot), "/oauth/consent")
		clock.Advance(time.Minute)
		signsIn("by a passkey of half an hour ago", true)
		if p := alice.Post("/oauth/consent", late); !strings.HasPrefix(p.Header.Get("Location"), "/login?again=1") {
			t.Errorf("an answer half an hour after the sign-in: %d to %q", p.Status, p.Header.Get("Location"))
		}
		if p := alice.Post("/oauth/consent", form); p.Status != http.StatusForbidden {
			t.Errorf("an answer on a page of half an hour ago: %d, want 403", p.Status)
		}
		alice.SignIn(true)
		alice.Allow(bot)
		clock.Advance(31 * time.Minute)
		signsIn("what was agreed to needs no fresh sign-in", false)
		signsIn("a max_age of an hour", false, "max_age", "3600")
		signsIn("a max_age of half an hour", true, "max_age", "1800")
		for _, pairs := range [][]string{{"prompt", "login"}, {"max_age", "0"}, {"prompt", "select_account"}} {
			to := signsIn(pairs[0]+" "+pairs[1], true, pairs...)
			if p := alice.Load(to); !strings.HasPrefix(p.Header.Get("Location"), "/login?again=1") {
				t.Errorf("%v, back without signing in: to %q", pairs, p.Header.Get("Location"))
			}
			alice.SignIn(true)
			if back := oauthtest.Back(alice, alice.Load(to)); back.Get("code") == "" {
				t.Errorf("%v, back after signing in: %v", pairs, back)
			}
			// The word that this was done is no good in another browser.
			if p := w.Person("p-" + pairs[0] + pairs[1][:1] + pairs[1][len(pairs[1])-1:]).Load(to); !strings.HasPrefix(p.Header.Get("Location"), "/login?again=1") {
				t.Errorf("%v, in another browser: %d to %q", pairs, p.Status, p.Header.Get("Location"))
			}
			clock.Advance(31 * time.Minute)
		}
	})
}

// Whoever leaves takes along what agents may do for them.
func TestPersonLeaves(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		a := w.Redeem(bot, alice.Code(bot))
		code := alice.Code(bot)
		if _, err := w.People.Disable(t.Context(), oauthtest.Admin, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		check := func(when string) {
			t.Helper()
			if w.Live(bot, a.Token()) {
				t.Errorf("%s the token is active", when)
			}
			refused(t, when+" a code", w.Redeem(bot, code), 400, "invalid_grant")
			refused(t, when+" a refresh", w.Refresh(bot, a.Text("refresh_token")), 400, "invalid_grant")
		}
		check("after alice was disabled,")
		if n := count(t, d, "select count(*) from oauth_grant where subject = $1 and ended_at is null", "user:"+alice.ID); n != 0 {
			t.Errorf("%d grants of alice's live on", n)
		}
		if _, err := w.People.Enable(t.Context(), oauthtest.Admin, alice.ID); err != nil {
			t.Fatal(err)
		}
		check("after alice was enabled again,")
	})
}

// A client that proves nothing may come for what a person agreed to, and for
// nothing else.
func TestPublicClient(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		alice := w.Person("alice")
		local := "http://127.0.0.1:4711/cb"
		bot := w.CodeAgent("bot", func(c *agent.Client) {
			c.Methods, c.RedirectURIs = []string{token.Public}, []string{"http://127.0.0.1/cb"}
		})
		prover, other := w.Prover("P-256"), w.Prover("P-256")
		redeem := func(code string, change ...func(*http.Request)) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "authorization_code", "code", code, "code_verifier", oauthtest.Verifier, "client_id", bot.ID), change...))
		}
		refresh := func(value string, change ...func(*http.Request)) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "refresh_token", "refresh_token", value, "client_id", bot.ID), change...))
		}
		asked := alice.Ask(bot, "redirect_uri", local)
		if !strings.Contains(asked.Body, "the computer that you sit at") {
			t.Errorf("the page does not warn of a program on one's own machine:\n%s", asked.Body)
		}
		a := redeem(alice.Code(bot, "redirect_uri", local))
		granted(t, "a public client", a)
		next := refresh(a.Text("refresh_token"))
		granted(t, "its refresh", next)
		if p := alice.Ask(bot, "redirect_uri", local); p.Status != http.StatusOK {
			t.Errorf("a program on one's own machine is let in without a question: %d", p.Status)
		}
		refused(t, "by itself", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials", "client_id", bot.ID))), 400, "unauthorized_client")
		refused(t, "asking about a token", w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", a.Token(), "client_id", bot.ID))), 401, "invalid_client")
		refused(t, "with a secret", w.Redeem(bot, alice.Code(bot, "redirect_uri", local)), 401, "invalid_client")

		// Bound to a key from the first request on, the family stays on it.
		code := alice.Code(bot, "redirect_uri", local, "dpop_jkt", prover.Thumbprint())
		refused(t, "a bound code without the key", redeem(code), 400, "invalid_grant")
		refused(t, "a bound code with another key", redeem(code, other.Prove("")), 400, "invalid_grant")
		a = redeem(code, prover.Prove(""))
		granted(t, "a bound code with its key", a)
		if a.Text("token_type") != "DPoP" {
			t.Errorf("the token type is %q", a.Text("token_type"))
		}
		refused(t, "its refresh token without the key", refresh(a.Text("refresh_token")), 400, "invalid_grant")
		refused(t, "its refresh token with another key", refresh(a.Text("refresh_token"), other.Prove("")), 400, "invalid_grant")
		granted(t, "its refresh token with the key", refresh(a.Text("refresh_token"), prover.Prove("")))
	})
}

// The session of an authorization lives as long as a session may, and its end
// is that of the refresh tokens.
func TestAuthorizationEnds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		a := w.Redeem(bot, alice.Code(bot))
		for range 23 {
			clock.Advance(time.Hour)
			a = w.Refresh(bot, a.Text("refresh_token"))
			granted(t, "a refresh within the day", a)
		}
		clock.Advance(session.LongestLife - 23*time.Hour)
		refused(t, "a refresh after a day", w.Refresh(bot, a.Text("refresh_token")), 400, "invalid_grant")
	})
}

// TestAuthorizationResources: a token has of the granted resources what it asks
// for (RFC 8707, section 2.2).
func TestAuthorizationResources(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		q := oauthtest.AuthorizeQuery(bot)
		q.Add("resource", oauthtest.Tickets)
		asked := alice.Load("/oauth/authorize?" + q.Encode())
		back := oauthtest.Back(alice, alice.Post("/oauth/consent", alice.Fill(asked, "/oauth/consent")))
		one := w.Redeem(bot, back.Get("code"), "resource", oauthtest.Tickets)
		granted(t, "one of two resources", one)
		if claims := claimsOf(t, w, one.Token(), oauthtest.Tickets); claims["aud"] != oauthtest.Tickets || claims["scope"] != "ticket.read" {
			t.Errorf("the token is for %v with %v", claims["aud"], claims["scope"])
		}
		both := w.Refresh(bot, one.Text("refresh_token"))
		granted(t, "both afterwards", both)
		if claims := claimsOf(t, w, both.Token(), oauthtest.CRM); len(claims["aud"].([]any)) != 2 {
			t.Errorf("the token is for %v", claims["aud"])
		}
		refused(t, "a resource beyond", w.Refresh(bot, both.Text("refresh_token"), "resource", "https://erp.example"), 400, "invalid_target")
		w.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "customer.update", "customer.delete")
		wide := w.Refresh(bot, both.Text("refresh_token"), "resource", oauthtest.CRM)
		granted(t, "after the agent was granted more", wide)
		if wide.Text("scope") != "customer.read customer.update" {
			t.Errorf("the person agreed to two operations and the token has %q", wide.Text("scope"))
		}
		// Without a resource the token is for us, and says who the person is.
		none := w.Redeem(bot, alice.Code(bot, "resource", ""))
		granted(t, "no resource", none)
		if claims := claimsOf(t, w, none.Token(), string(oauthtest.Issuer)); claims["scope"] != nil {
			t.Errorf("a token for no resource has the scope %v", claims["scope"])
		}
		refused(t, "a resource that the person was not asked about", w.Refresh(bot, none.Text("refresh_token"), "resource", oauthtest.CRM), 400, "invalid_target")
	})
}

// clone is the same browser, for requests at once.
func clone(p *oauthtest.Person) *pagetest.Browser {
	b := *p.Browser
	b.Cookies = maps.Clone(p.Cookies)
	return &b
}

// personWays are the grant types at whose root a person stands.
var personWays = []way{
	{grantType: "authorization_code", by: "secret", life: token.CodeLife, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		code := c.Person("person-of-" + c.client.Name).Code(c.client)
		return func() oauthtest.Answer { return c.Redeem(c.client, code) }
	}},
	{grantType: "authorization_code", by: "key", life: token.CodeLife, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		code := c.Person("person-of-" + c.client.Name).Code(c.client)
		return func() oauthtest.Answer {
			return c.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "authorization_code", "code", code, "code_verifier", oauthtest.Verifier,
				"client_assertion_type", oauthtest.AssertionType, "client_assertion", c.Assertion(c.client))))
		}
	}},
	{grantType: "authorization_code", by: "none", life: token.CodeLife, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		public := *c.client.Client
		public.Methods = []string{token.Public}
		c.Set(c.client, public)
		code := c.Person("person-of-" + c.client.Name).Code(c.client)
		return func() oauthtest.Answer {
			return c.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "authorization_code", "code", code, "code_verifier", oauthtest.Verifier, "client_id", c.client.ID)))
		}
	}},
	{grantType: token.Device, by: "secret", life: token.DeviceLife, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		code := c.Person("person-of-" + c.client.Name).DeviceCode(c.client)
		return func() oauthtest.Answer { return c.Poll(c.client, code) }
	}},
	{grantType: token.Backchannel, by: "secret", life: token.BackchannelLife, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		p := c.Person("person-of-" + c.client.Name)
		request := c.Name(c.client, p.Name).Text("auth_req_id")
		p.Answer("allow")
		return func() oauthtest.Answer { return c.Fetch(c.client, request) }
	}},
	{grantType: "refresh_token", by: "secret", ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		value := granted(t, "a code", c.Redeem(c.client, c.Person("person-of-"+c.client.Name).Code(c.client))).Text("refresh_token")
		return func() oauthtest.Answer { return c.Refresh(c.client, value) }
	}},
	{grantType: exchangeType, by: "secret", life: token.IDTokenLife, elsewhere: true, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		c.Access.Grant(c.client.ID, oauthtest.CRM, "customer.read")
		raw := granted(t, "a code", c.Redeem(c.client, c.Person("person-of-"+c.client.Name).Code(c.client, "scope", "openid customer.read"))).Text("id_token")
		return func() oauthtest.Answer { return take(c.World, c.client, raw, idTokens) }
	}},
	{grantType: exchangeType, by: "secret", life: token.IDTokenLife, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		raw := granted(t, "a code", c.Redeem(c.client, c.Person("person-of-"+c.client.Name).Code(c.client, "scope", "openid customer.read"))).Text("id_token")
		return func() oauthtest.Answer {
			return exchange(c.World, c.client, raw, "subject_token_type", token.IDTokenType, "resource", oauthtest.CRM)
		}
	}},
	{grantType: assertionGrant, by: "secret", life: 5 * time.Minute, begins: true, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		o := trusted(t, c.World, c.client.Name, nil, nil)
		o.signIn(t, "u-"+c.client.Name)
		raw := o.sign(t, o.claims("u-"+c.client.Name, c.client))
		return func() oauthtest.Answer { return present(c.World, c.client, raw, "resource", oauthtest.CRM) }
	}},
}

// peopleMatrix is the matrix where the subject is a person: it is they who leave,
// in the place of an agent on whose authority another one asks.
func peopleMatrix() []row {
	rows := slices.DeleteFunc(slices.Clone(matrix), func(r row) bool { return strings.HasPrefix(r.name, "the subject") })
	return append(rows, row{name: "the person is disabled", happen: func(t *testing.T, c cast) {
		var person string
		if err := c.DB.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select id from person where tenant_id = $1 and name in ($2, $3)",
				tx.Tenant(), "person-of-"+c.client.Name, "u-"+c.client.Name).Scan(&person)
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.People.Disable(t.Context(), oauthtest.Admin, person, "left"); err != nil {
			t.Fatal(err)
		}
	}})
}

// TestMatrixOfPeople tries every reason to get no token where a person stands at
// the root, also when it came up after they had agreed.
func TestMatrixOfPeople(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		for i, one := range personWays {
			for j, row := range peopleMatrix() {
				what := fmt.Sprintf("%s by %s: %s", one.grantType, one.by, row.name)
				if one.begins && strings.HasPrefix(row.name, "the session") {
					continue // it begins with the token
				}
				more := func(c *agent.Client) {
					c.GrantTypes = append(c.GrantTypes, assertionGrant, exchangeType)
					c.Chains, c.Exchanges = []agent.Chain{{Issuer: chat, ClientID: "there"}}, []string{token.IDTokenType}
				}
				c := cast{World: w, client: w.CodeAgent(fmt.Sprintf("client-%d-%d", i, j), more)}
				c.subject = c.client
				send := one.ready(t, c)
				if one.begins {
					granted(t, what+", before", one.ready(t, cast{World: w, client: w.CodeAgent(fmt.Sprintf("other-%d-%d", i, j), more)})())
				} else if err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
					return tx.QueryRow(t.Context(), "select session_id from oauth_grant where client_id = $1", c.client.ID).Scan(&c.session.ID)
				}); err != nil {
					t.Fatal(err)
				}
				row.happen(t, c)
				if row.name == "the session has expired" {
					dbtest.NewClock(d).Advance(session.LongestLife)
				}
				a := send()
				w.Decider.Set(nil)
				if row.spares != nil && row.spares(one) {
					granted(t, what+", which has nothing to do with it", a)
					continue
				}
				if a.Token() != "" || a.Status != http.StatusBadRequest && a.Status != http.StatusUnauthorized {
					t.Errorf("%s: %d %s", what, a.Status, a.Body)
				}
				if n := count(t, d, `select count(*) from audit where action = 'token.issue' and outcome = 'refused'
					and (target = $1 or target in (select 'user:' || id from person where name = $2))`, "agent:"+c.client.ID, "person-of-"+c.client.Name); n == 0 {
					t.Errorf("%s: the refusal is not on record", what)
				}
			}
		}
	})
}

// FuzzAuthorize: whatever a browser brings to the authorization endpoint, it is
// sent to the sign-in page or to a redirect URI that the client has registered,
// or nowhere.
func FuzzAuthorize(f *testing.F) {
	w := oauthtest.New(f, dbtest.Open(f))
	registered := []string{"https://good.example/cb", "https://good.example/q?a=b", "http://127.0.0.1/cb"}
	bot := w.CodeAgent("bot", func(c *agent.Client) { c.RedirectURIs = registered })
	q := oauthtest.AuthorizeQuery(bot, "redirect_uri", registered[0])
	f.Add(q.Encode())
	f.Add(oauthtest.AuthorizeQuery(bot, "redirect_uri", "http://127.0.0.1:8080/cb", "scope", "nothing").Encode())
	f.Add(oauthtest.AuthorizeQuery(bot, "redirect_uri", registered[1], "prompt", "none").Encode())
	f.Add(oauthtest.AuthorizeQuery(bot, "redirect_uri", registered[0], "scope", "openid email", "nonce", "n", "acr_values", "phr", "resource", string(oauthtest.Issuer)).Encode())
	f.Add("client_id=" + bot.ID + "&redirect_uri=https%3A%2F%2Fgood.example%40evil.example%2Fcb")
	f.Add("client_id=" + bot.ID + "&request_uri=urn:ietf:params:oauth:request_uri:x&redirect_uri=https://evil.example")
	f.Fuzz(func(t *testing.T, query string) {
		r := httpGet("/oauth/authorize")
		r.URL.RawQuery = query
		rec := httptest.NewRecorder()
		w.Handler.ServeHTTP(rec, r)
		to := rec.Header().Get("Location")
		switch {
		case rec.Code >= 500:
			t.Errorf("%q: %d %s", query, rec.Code, rec.Body)
		case to == "" || rec.Code == http.StatusSeeOther && strings.HasPrefix(to, "/login?to=%2Foauth%2Fauthorize%3F"):
		case rec.Code != http.StatusSeeOther || !strings.HasPrefix(to, registered[0]+"?error=") && !strings.HasPrefix(to, registered[1]+"&error=") && !loopbackAnswer.MatchString(to):
			t.Errorf("%q: %d to %q", query, rec.Code, to)
		}
	})
}

var loopbackAnswer = regexp.MustCompile(`^http://127\.0\.0\.1(:[0-9]{1,5})?/cb\?error=`)

// What a person agrees to for one resource is not had at another, also when that
// has an action of the same name since, and the agent is granted it.
func TestConsentIsForEachResourceItsOwn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, ann := w.CodeAgent("bot"), w.Person("ann")
		q := oauthtest.AuthorizeQuery(bot)
		q["resource"] = []string{oauthtest.CRM, oauthtest.Tickets}
		q.Set("scope", "customer.read ticket.read")
		page := ann.Load("/oauth/authorize?" + q.Encode())
		back := oauthtest.Back(ann, ann.Post("/oauth/consent", ann.Fill(page, "/oauth/consent")))
		w.Access.Grant(bot.ID, oauthtest.Tickets, "customer.read", "ticket.read")
		a := granted(t, "the code, for tickets", w.Redeem(bot, back.Get("code"), "resource", oauthtest.Tickets))
		if got := a.Text("scope"); got != "ticket.read" {
			t.Errorf("the token for tickets has %q, and the person agreed to ticket.read there", got)
		}
		a = granted(t, "a refresh, for tickets", w.Refresh(bot, a.Text("refresh_token"), "resource", oauthtest.Tickets))
		if got := a.Text("scope"); got != "ticket.read" {
			t.Errorf("the refreshed token for tickets has %q, and the person agreed to ticket.read there", got)
		}
		refused(t, "what was agreed to elsewhere", w.Refresh(bot, a.Text("refresh_token"), "resource", oauthtest.Tickets, "scope", "customer.read"), 400, "invalid_scope")
	})
}
