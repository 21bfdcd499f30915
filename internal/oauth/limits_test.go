package oauth_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// Whatever may be sent has an end (tokens.md, section 3.4; A16).
func TestWhatMayBeSentHasAnEnd(t *testing.T) {
	d := dbtest.Open(t)
	w := oauthtest.New(t, d)
	bot, alice := w.CodeAgent("bot"), w.Person("alice")

	many := func(n int) (pairs []string) {
		for i := range n {
			pairs = append(pairs, fmt.Sprintf("p%d", i), "1")
		}
		return pairs
	}
	ask := func(pairs ...string) oauthtest.Answer {
		return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form(append(pairs, "grant_type", "client_credentials")...), oauthtest.Basic(bot.ID, bot.Secret)))
	}
	granted(t, "127 parameters that nobody knows", ask(many(127)...))
	refused(t, "128 of them", ask(many(128)...), 400, "invalid_request")

	same := func(name, value string, n int) (f url.Values) {
		f = oauthtest.Form("grant_type", "client_credentials")
		for range n {
			f.Add(name, value)
		}
		return f
	}
	send := func(f url.Values) oauthtest.Answer {
		return w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, bot.Secret)))
	}
	granted(t, "20 resources", send(same("resource", oauthtest.CRM, 20)))
	refused(t, "21 of them", send(same("resource", oauthtest.CRM, 21)), 400, "invalid_target")
	scopes := strings.TrimSpace(strings.Repeat("customer.read ", 100))
	granted(t, "100 scopes", ask("resource", oauthtest.CRM, "scope", scopes))
	refused(t, "101 of them", ask("resource", oauthtest.CRM, "scope", scopes+" customer.read"), 400, "invalid_scope")
	refused(t, "a body of a terabyte, as it says", w.Do(oauthtest.Request("/oauth/token", same("a", "1", 1), oauthtest.Basic(bot.ID, bot.Secret),
		func(r *http.Request) { r.ContentLength = 1 << 40 })), 400, "invalid_request")

	if back := alice.Allow(bot, "state", strings.Repeat("s", 4096)); back.Get("code") == "" || len(back.Get("state")) != 4096 {
		t.Errorf("a state of 4096 bytes: %v", back)
	}
	p := alice.Ask(bot, "state", strings.Repeat("s", 4097))
	if back := oauthtest.Back(alice, p); back.Get("error") != "invalid_request" || back.Has("state") {
		t.Errorf("a longer one: %d to %q", p.Status, p.Header.Get("Location"))
	}
	refused(t, "no code", w.Redeem(bot, ""), 400, "invalid_request")
}

// What a client says of itself at its registration has an end, too.
func TestRegistrationsHaveAnEnd(t *testing.T) {
	d := dbtest.Open(t)
	r := registering(t, d)
	clock := dbtest.NewClock(d)
	initial := r.initial(1, 0)
	list := func(n int, one string) []string {
		all := make([]string, n)
		for i := range all {
			all[i] = one
		}
		return all
	}
	for what, body := range map[string]any{
		"11 contacts":           metadata("contacts", list(11, "a@example.com")),
		"a contact of 3 kB":     metadata("contacts", list(1, strings.Repeat("a", 3000))),
		"a contact with a NUL":  metadata("contacts", list(1, "a\x00b")),
		"a software id of 3 kB": metadata("software_id", strings.Repeat("a", 3000)),
		"129 grant types":       metadata("grant_types", list(129, "authorization_code")),
		"129 response types":    metadata("response_types", list(129, "code")),
	} {
		refused(t, what, r.send(http.MethodPost, "", initial, body), 400, "invalid_client_metadata")
		clock.Advance(2 * time.Second) // failures are limited
	}
	text := `{"client_name": "A client"}`
	refused(t, "keys to be fetched that nobody would fetch", r.send(http.MethodPost, "", initial, metadata("jwks_uri", "https://app.example/jwks")), 400, "invalid_client_metadata")
	for what, change := range map[string]func(q *http.Request){
		"compressed":               func(q *http.Request) { q.Header.Set("Content-Encoding", "gzip") },
		"two tokens":               func(q *http.Request) { q.Header.Add("Authorization", "Bearer x") },
		"a megabyte, undeclared":   func(q *http.Request) { q.Body, q.ContentLength = long("{\"client_name\": \""), -1 },
		"a megabyte, and declared": func(q *http.Request) { q.Body, q.ContentLength = long("{\"client_name\": \""), 1<<20 },
	} {
		q := httptest.NewRequest(http.MethodPost, string(oauthtest.Issuer)+"/oauth/register", strings.NewReader(text))
		q.Header.Set("Content-Type", "application/json")
		q.Header.Set("Authorization", "Bearer "+initial)
		change(q)
		refused(t, what, r.Do(q), 400, "invalid_request")
		clock.Advance(2 * time.Second)
	}
	if a := r.send(http.MethodPost, "", initial, metadata("contacts", list(10, "a@example.com"))); a.Status != http.StatusCreated {
		t.Errorf("after all that was refused: %d %s", a.Status, a.Body)
	}
}

// long is a body of a megabyte that begins so.
func long(begin string) readCloser {
	return readCloser{strings.NewReader(begin + strings.Repeat("a", 1<<20))}
}

// A client that a person is asked about may still use the grant type then, and is
// asked again when it comes for its token (tokens.md, section 3.3).
func TestWhatAClientMayNotAnyMore(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		less := func(grants ...string) {
			w.Set(bot, agent.Client{GrantTypes: grants, RedirectURIs: []string{oauthtest.Callback}})
		}
		code, value := alice.Code(bot), alice.DeviceCode(bot)
		refresh := granted(t, "a code", w.Redeem(bot, alice.Code(bot))).Text("refresh_token")
		asked := w.Device(bot)
		page := alice.Type(asked.Text("user_code"))
		less("client_credentials", "authorization_code")
		refused(t, "a device code of before", w.Poll(bot, value), 400, "unauthorized_client")
		refused(t, "a refresh token of before", w.Refresh(bot, refresh), 400, "unauthorized_client")
		if p := alice.Post("/device/decision", alice.Fill(page, "/device/decision", "decision", "allow")); p.Status != http.StatusForbidden {
			t.Errorf("a yes to what the client may not use any more: %d", p.Status)
		}
		if p := alice.Type(asked.Text("user_code")); p.Status != http.StatusForbidden {
			t.Errorf("its code: %d", p.Status)
		}
		less("client_credentials", "refresh_token")
		refused(t, "a code of before", w.Redeem(bot, code), 400, "unauthorized_client")
		if p := alice.Ask(bot); p.Status != http.StatusBadRequest || p.Header.Get("Location") != "" {
			t.Errorf("a person is sent to the pages, and on to %q: %d", p.Header.Get("Location"), p.Status)
		}
	})
}

// A client that does not authenticate gets no assertion for another server, also
// not with a key (tokens.md, section 3.1, ID-JAG).
func TestPublicClientsGetNoAssertions(t *testing.T) {
	d := dbtest.Open(t)
	w := oauthtest.New(t, d)
	wiki := w.CodeAgent("wiki", func(c *agent.Client) {
		c.GrantTypes, c.Methods = append(c.GrantTypes, exchangeType), []string{"none"}
		c.Chains = []agent.Chain{{Issuer: chat, ClientID: "wiki-at-chat"}}
	})
	in := granted(t, "signing in", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "authorization_code",
		"code", w.Person("alice").Code(wiki, asked("scope", "openid")...), "code_verifier", oauthtest.Verifier, "client_id", wiki.ID))))
	for kind, raw := range map[string]string{idTokens: in.Text("id_token"), refreshs: in.Text("refresh_token")} {
		f := oauthtest.Form("grant_type", exchangeType, "requested_token_type", idJAG, "audience", chat, "subject_token", raw, "subject_token_type", kind, "client_id", wiki.ID)
		refused(t, kind, w.Do(oauthtest.Request("/oauth/token", f, w.Prover("P-256").Prove(""))), 400, "unauthorized_client")
	}
}

// Whoever tries secrets does not learn from the answers which clients there are,
// and good credentials count under their own scheme alone.
func TestStrangersLearnNothingOfClients(t *testing.T) {
	d := dbtest.Open(t)
	w := oauthtest.New(t, d)
	bot, other := w.Agent("bot"), w.Agent("other")
	f := oauthtest.Form("grant_type", "client_credentials")
	known := w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, other.Secret)))
	unknown := w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic("agt_"+strings.Repeat("a", 26), bot.Secret)))
	refused(t, "another client's secret", known, 401, "invalid_client")
	if known.Status != unknown.Status || known.Body != unknown.Body {
		t.Errorf("of a client that there is: %d %s, and of one that there is not: %d %s", known.Status, known.Body, unknown.Status, unknown.Body)
	}
	refused(t, "another scheme", w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, bot.Secret), func(r *http.Request) {
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "Basic", "Digest", 1))
	})), 401, "invalid_client")
}

// A token says whole seconds. Where none of them is left of what it rests on,
// there is no token.
func TestNoTokenOfTheLastSecond(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	clock.Hold()
	w := oauthtest.New(t, d)
	bot := w.Agent("bot")
	clock.Advance(d.Now().Truncate(time.Second).Add(time.Second + 500*time.Millisecond).Sub(d.Now()))
	s, err := w.Sessions.Open(t.Context(), bot.Caller(), wish(bot, 2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if a := granted(t, "at its beginning", w.Ask(bot, "session", s.ID)); a.JSON["expires_in"].(float64) < 1 {
		t.Errorf("the answer is %s", a.Body)
	}
	clock.Advance(1600 * time.Millisecond)
	if live, err := w.Sessions.Get(t.Context(), oauthtest.Admin, s.ID); err != nil || live.State != session.Open {
		t.Fatalf("the session is %v (%v)", live.State, err)
	}
	refused(t, "at its end", w.Ask(bot, "session", s.ID), 400, "invalid_grant")
	if n := count(t, d, "select count(*) from oauth_grant where client_id = $1 and kind = $2", bot.ID, token.Own); n != 1 {
		t.Errorf("%d grants, want the first one's", n)
	}
}

// The ids of assertions are their client's own: another's may be the same
// (tokens.md, section 3.1: once per client and jti).
func TestIDsOfAssertionsAreTheClientsOwn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		one, other := w.Agent("one"), w.Agent("other")
		by := func(a *oauthtest.Agent) oauthtest.Answer {
			return w.AskWith(oauthtest.Sign(t, a.Key, "key-1", with(w.Claims(a), map[string]any{"jti": "7"})))
		}
		granted(t, "one's", by(one))
		granted(t, "another's of the same name", by(other))
		refused(t, "one's again", by(one), 401, "invalid_client")
		refused(t, "another's again", by(other), 401, "invalid_client")
	})
}

// Who does not authenticate uses up nothing of what is presented beside, and ends
// nothing by it (tokens.md, section 3.1).
func TestAFailedAuthenticationUsesNothingUp(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		code, typed, named := alice.Code(bot), alice.DeviceCode(bot), w.Name(bot, "alice").Text("auth_req_id")
		alice.Answer("allow")
		refresh := granted(t, "a code", w.Redeem(bot, alice.Code(bot))).Text("refresh_token")
		stranger := *bot
		stranger.Secret = w.Agent("other").Secret
		for what, redeem := range map[string]func(as *oauthtest.Agent) oauthtest.Answer{
			"a code":          func(as *oauthtest.Agent) oauthtest.Answer { return w.Redeem(as, code) },
			"a refresh token": func(as *oauthtest.Agent) oauthtest.Answer { return w.Refresh(as, refresh) },
			"a device code":   func(as *oauthtest.Agent) oauthtest.Answer { return w.Poll(as, typed) },
			"an auth_req_id":  func(as *oauthtest.Agent) oauthtest.Answer { return w.Fetch(as, named) },
		} {
			refused(t, what+", with another's secret", redeem(&stranger), 401, "invalid_client")
			granted(t, what+", afterwards", redeem(bot))
		}
	})
}

// What is good once or for a while is so for as long as tokens.md, section 3.4
// says, in figures, and not for as long as some constant does.
func TestLives(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	clock.Hold()
	w := oauthtest.New(t, d)
	bot, alice := w.CodeAgent("bot"), w.Person("alice")
	life := func(raw string) float64 {
		c := said(t, raw)
		return c["exp"].(float64) - c["iat"].(float64)
	}
	in := granted(t, "a code", w.Redeem(bot, alice.Code(bot, "scope", "openid customer.read")))
	if a, id := life(in.Token()), life(in.Text("id_token")); a != 900 || id != 300 {
		t.Errorf("an access token lives %v seconds and an ID token %v, want 900 and 300", a, id)
	}

	early, late := alice.Code(bot), alice.Code(bot)
	clock.Advance(55 * time.Second)
	granted(t, "a code of 55 seconds", w.Redeem(bot, early))
	clock.Advance(5 * time.Second)
	refused(t, "a code of a minute", w.Redeem(bot, late), 400, "invalid_grant")

	push := func() string {
		q := oauthtest.AuthorizeQuery(bot)
		q.Del("client_id")
		a := w.Do(oauthtest.Request("/oauth/par", q, oauthtest.Basic(bot.ID, bot.Secret)))
		if a.Text("request_uri") == "" {
			t.Fatalf("a pushed request: %d %s", a.Status, a.Body)
		}
		return "/oauth/authorize?" + oauthtest.Form("client_id", bot.ID, "request_uri", a.Text("request_uri")).Encode()
	}
	opened, kept := push(), push()
	clock.Advance(85 * time.Second)
	if p := alice.Load(opened); !strings.HasPrefix(p.Header.Get("Location"), oauthtest.Callback+"?code=") && p.Status != http.StatusOK {
		t.Errorf("a request that was pushed 85 seconds ago: %d to %q", p.Status, p.Header.Get("Location"))
	}
	clock.Advance(5 * time.Second)
	if p := alice.Load(kept); p.Status != http.StatusBadRequest {
		t.Errorf("one of 90 seconds: %d to %q", p.Status, p.Header.Get("Location"))
	}

	value := in.Text("refresh_token")
	next := granted(t, "a refresh", w.Refresh(bot, value)).Text("refresh_token")
	clock.Advance(6 * time.Second)
	if again := granted(t, "a retry after six seconds", w.Refresh(bot, value)).Text("refresh_token"); again != next {
		t.Error("it brought another successor")
	}
	clock.Advance(5 * time.Second)
	refused(t, "a retry after eleven", w.Refresh(bot, value), 400, "invalid_grant")

	typed := w.Device(bot).Text("device_code")
	clock.Advance(10*time.Minute - 10*time.Second)
	refused(t, "a device code before its end", w.Poll(bot, typed), 400, "authorization_pending")
	clock.Advance(10 * time.Second)
	refused(t, "a device code of ten minutes", w.Poll(bot, typed), 400, "expired_token")

	for ahead, good := range map[int64]bool{300: true, 320: false} {
		a := w.AskWith(oauthtest.Sign(t, bot.Key, "key-1", with(w.Claims(bot), map[string]any{"exp": d.Now().Unix() + ahead})))
		if (a.Status == http.StatusOK) != good {
			t.Errorf("an assertion that ends in %d seconds: %d %s", ahead, a.Status, a.Body)
		}
	}
	for ahead, good := range map[int64]bool{9: true, 20: false} {
		now := d.Now().Unix()
		for _, claim := range []string{"iat", "nbf"} {
			a := w.AskWith(oauthtest.Sign(t, bot.Key, "key-1", with(w.Claims(bot), map[string]any{claim: now + ahead})))
			if (a.Status == http.StatusOK) != good {
				t.Errorf("an assertion with an %s of %d seconds from now: %d %s", claim, ahead, a.Status, a.Body)
			}
		}
	}
	clock.Advance(d.Now().Truncate(5 * time.Minute).Add(5 * time.Minute).Sub(d.Now())) // the beginning of a window
	p := w.Prover("P-256")
	p.Nonce = w.Callers.Proofs.Nonce("default")
	for age, good := range map[int64]bool{50: true, -59: true, 61: false, -70: false} {
		c := with(p.Claims("POST", tokenURL, ""), map[string]any{"iat": d.Now().Unix() - age})
		if a := withProofs(w, bot, p.Sign(c)); (a.Status == http.StatusOK) != good {
			t.Errorf("a proof of %d seconds ago: %d %s", age, a.Status, a.Body)
		}
	}
	nonce := p.Nonce
	clock.Advance(5 * time.Minute)
	granted(t, "a nonce of five minutes", p.Ask(bot))
	p.Nonce = nonce
	clock.Advance(5 * time.Minute)
	refused(t, "a nonce of ten", p.Ask(bot), 400, "use_dpop_nonce")
}
