package oauth_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// reachable gives a person an email address.
func reachable(t *testing.T, w *oauthtest.World, p *oauthtest.Person) {
	t.Helper()
	spec := p.Spec
	spec.Email = p.Name + "@example.com"
	if _, err := w.People.Update(t.Context(), oauthtest.Admin, p.ID, spec); err != nil {
		t.Fatal(err)
	}
}

// asked is what an authorization request asks for that wants to know who
// somebody is and nothing else.
func asked(pairs ...string) []string {
	return append([]string{"resource", "", "scope", "openid", "nonce", "n-0S6_WzA2Mj"}, pairs...)
}

// identified are the claims of an ID token for a client, checked with the keys
// that are published, and the algorithm that it is signed with.
func identified(t *testing.T, w *oauthtest.World, raw, client string) (map[string]any, string) {
	t.Helper()
	keys, err := jose.ParseKeys([]byte(w.Do(httpGet("/oauth/jwks")).Body))
	if err != nil {
		t.Fatal(err)
	}
	c, err := jose.Verify(jose.IDToken, keys, raw, jose.Expected{Now: w.DB.Now(), Issuer: string(oauthtest.Issuer), Audiences: []string{client}})
	if err != nil {
		t.Fatalf("verifying the ID token %q with the published keys: %v", raw, err)
	}
	claims := map[string]any{}
	if err := c.Into(&claims); err != nil {
		t.Fatal(err)
	}
	return claims, c.Header.Algorithm
}

// userinfo asks who somebody is.
func userinfo(w *oauthtest.World, method string, change ...func(*http.Request)) oauthtest.Answer {
	r := httptest.NewRequest(method, string(oauthtest.Issuer)+"/oauth/userinfo", nil)
	for _, fn := range change {
		fn(r)
	}
	return w.Do(r)
}

// OpenID Connect Core, sections 2, 3.1 and 12: the code flow with the scope
// openid tells the client who the person is.
func TestIDToken(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		alice := w.Person("alice")
		reachable(t, w, alice)
		for _, c := range []struct{ registered, want string }{{"", "RS256"}, {"RS256", "RS256"}, {"ES256", "ES256"}} {
			bot := w.CodeAgent("bot"+strings.ToLower(c.registered), func(settings *agent.Client) { settings.IDTokenAlgorithm = c.registered })
			a := granted(t, "a code", w.Redeem(bot, alice.Code(bot, asked("scope", "openid email profile")...)))
			claims, alg := identified(t, w, a.Text("id_token"), bot.ID)
			if alg != c.want {
				t.Errorf("a client that is registered with %q gets %s, want %s", c.registered, alg, c.want)
			}
			now, _ := claims["iat"].(float64)
			if age := float64(d.Now().Unix()) - now; age < 0 || age > 10 {
				t.Errorf("the ID token is %v seconds old", age)
			}
			sum := sha256.Sum256([]byte(a.Token()))
			for name, want := range map[string]any{
				"iss": string(oauthtest.Issuer), "sub": "user:" + alice.ID, "aud": bot.ID, "exp": now + 300, "nonce": "n-0S6_WzA2Mj",
				"acr": "phr", "at_hash": b64.EncodeToString(sum[:16]),
			} {
				if claims[name] != want {
					t.Errorf("%s: the claim %s is %v, want %v", c.want, name, claims[name], want)
				}
			}
			if amr, _ := claims["amr"].([]any); len(amr) != 2 || amr[0] != "hwk" {
				t.Errorf("the claim amr is %v", claims["amr"])
			}
			if got := slices.Sorted(maps.Keys(claims)); !slices.Equal(got, []string{"acr", "amr", "at_hash", "aud", "auth_time", "exp", "grant_id", "iat", "iss", "nonce", "sub"}) {
				t.Errorf("the claims are %v", got)
			}
			if a.Text("scope") != "email openid profile" || said(t, a.Token())["aud"] != string(oauthtest.Issuer) {
				t.Errorf("the access token beside it is %v", said(t, a.Token()))
			}

			// A refresh says the same of the same person, at its own time, and no
			// nonce (section 12.2).
			clock.Advance(2 * time.Minute)
			next := granted(t, "a refresh", w.Refresh(bot, a.Text("refresh_token")))
			later, alg := identified(t, w, next.Text("id_token"), bot.ID)
			if alg != c.want || later["iat"].(float64) < now+120 || later["at_hash"] == claims["at_hash"] || later["nonce"] != nil {
				t.Errorf("after two minutes the ID token of %v says %v", claims, later)
			}
			for _, name := range []string{"iss", "sub", "aud", "auth_time", "acr"} {
				if later[name] != claims[name] {
					t.Errorf("the refreshed claim %s is %v, was %v", name, later[name], claims[name])
				}
			}
			less := granted(t, "less", w.Refresh(bot, next.Text("refresh_token"), "scope", "openid email"))
			if less.Text("scope") != "email openid" || less.Text("id_token") == "" {
				t.Errorf("a refresh for less: %s", less.Body)
			}
			refused(t, "a refresh for what the person was not asked", w.Refresh(bot, less.Text("refresh_token"), "scope", "customer.read"), 400, "invalid_scope")
		}
		if back := alice.Allow(w.CodeAgent("long"), asked("nonce", strings.Repeat("n", 513))...); back.Get("error") != "invalid_request" {
			t.Errorf("a nonce of 513 bytes: %v", back)
		}
		quoted := w.CodeAgent("quoted")
		a := granted(t, "any nonce", w.Redeem(quoted, alice.Code(quoted, asked("nonce", `a "quoted" \ one`)...)))
		if claims, _ := identified(t, w, a.Text("id_token"), quoted.ID); claims["nonce"] != `a "quoted" \ one` {
			t.Errorf("the nonce comes back as %v", claims["nonce"])
		}
		none := granted(t, "without a nonce", w.Redeem(quoted, alice.Code(quoted, asked("nonce", "")...)))
		if claims, _ := identified(t, w, none.Text("id_token"), quoted.ID); claims["nonce"] != nil {
			t.Errorf("a nonce that nobody sent: %v", claims["nonce"])
		}
		if n := count(t, d, "select count(*) from audit where action = 'token.issue' and outcome = 'done'"); n == 0 {
			t.Error("nothing is on record")
		}
	})
}

// Without the scope openid nobody learns anything, whatever else is asked for.
func TestNoIDTokenWithoutOpenID(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		a := granted(t, "a resource alone", w.Redeem(bot, alice.Code(bot, "scope", "customer.read")))
		if a.Text("id_token") != "" {
			t.Errorf("an ID token that nobody asked for: %s", a.Body)
		}
		if back := alice.Allow(bot, asked("scope", "profile email")...); back.Get("error") != "invalid_scope" {
			t.Errorf("profile and email without openid: %v", back)
		}
		refused(t, "a refresh that asks for more", w.Refresh(bot, a.Text("refresh_token"), "scope", "openid"), 400, "invalid_scope")
		refused(t, "openid for the client itself", w.Ask(bot, "scope", "openid"), 400, "invalid_scope")
		refused(t, "us as a resource without it", w.Refresh(bot, granted(t, "again", w.Redeem(bot, alice.Code(bot, "scope", "customer.read"))).Text("refresh_token"),
			"resource", string(oauthtest.Issuer)), 400, "invalid_target")
	})
}

// What the client learns and what it may do are asked for together and lie in
// tokens of their own: no scope of the one counts for the other.
func TestOpenIDBesideResources(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		w.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "email", "profile") // a resource may call its actions what it likes
		p := alice.Ask(bot, "scope", "openid profile customer.read")
		for _, want := range []string{"Let bot act for you?", "What it learns about you", "Your name: <strong>alice</strong>", "<code>customer.read</code>"} {
			if !strings.Contains(p.Body, want) {
				t.Errorf("the page that asks does not say %q:\n%s", want, p.Body)
			}
		}
		if strings.Contains(p.Body, "Your email") || strings.Contains(p.Body, "<code>profile</code>") {
			t.Errorf("the page that asks says too much:\n%s", p.Body)
		}
		a := granted(t, "a code", w.Redeem(bot, alice.Code(bot, "scope", "openid profile customer.read")))
		if a.Text("scope") != "customer.read" || said(t, a.Token())["aud"] != oauthtest.CRM || a.Text("id_token") == "" {
			t.Errorf("the answer is %s with %v", a.Body, said(t, a.Token()))
		}
		if u := userinfo(w, "GET", oauthtest.Bearer(a.Token())); u.Status != http.StatusUnauthorized || u.Error() != "invalid_token" {
			t.Errorf("a token for the resource at userinfo: %d %s", u.Status, u.Body)
		}
		for what, pairs := range map[string][]string{"the scopes": {"scope", "openid profile"}, "us": {"resource", string(oauthtest.Issuer)}} {
			own := granted(t, "a token for "+what, w.Refresh(bot, a.Text("refresh_token"), pairs...))
			if own.Text("scope") != "openid profile" || said(t, own.Token())["aud"] != string(oauthtest.Issuer) {
				t.Errorf("asking for %s: %s with %v", what, own.Body, said(t, own.Token()))
			}
			if u := userinfo(w, "GET", oauthtest.Bearer(own.Token())); u.Text("name") != "alice" {
				t.Errorf("userinfo after asking for %s: %d %s", what, u.Status, u.Body)
			}
			a = own
		}
		refused(t, "the resource's own profile", w.Refresh(bot, a.Text("refresh_token"), "resource", oauthtest.CRM, "scope", "profile"), 400, "invalid_scope")
		if back := alice.Allow(w.CodeAgent("other"), "scope", "openid"); back.Get("error") != "invalid_scope" {
			t.Errorf("a resource, and none of its scopes: %v", back)
		}
	})
}

// Consent covers what the client learns: it is asked in words, kept, and asked
// again for more.
func TestConsentToBeKnown(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		reachable(t, w, alice)
		p := alice.Ask(bot, asked("scope", "openid email")...)
		for _, want := range []string{
			"Sign in to bot?", "It asks who you are", "That it is you each time", "Your email address: <strong>alice@example.com</strong>", "<p>Nothing.</p>", "<button>Sign in</button>",
		} {
			if !strings.Contains(p.Body, want) {
				t.Errorf("the page that asks does not say %q:\n%s", want, p.Body)
			}
		}
		if strings.Contains(p.Body, "Your name") {
			t.Error("the page speaks of what was not asked for")
		}
		a := w.Redeem(bot, alice.Code(bot, asked("scope", "openid email")...))
		for name, c := range map[string]struct {
			asks  bool
			pairs []string
		}{
			"the same":          {false, asked("scope", "email openid")},
			"less":              {false, asked()},
			"more of the same":  {true, asked("scope", "openid profile")},
			"a resource beside": {true, []string{"scope", "openid customer.read"}},
		} {
			if p := alice.Ask(bot, c.pairs...); (p.Status == http.StatusOK) != c.asks {
				t.Errorf("%s: %d to %q, want a question: %v", name, p.Status, p.Header.Get("Location"), c.asks)
			}
		}
		if back := alice.Allow(bot, asked("prompt", "none")...); back.Get("code") == "" {
			t.Errorf("without a question: %v", back)
		}
		kept := alice.Load("/oauth/consents")
		if !strings.Contains(kept.Body, "It knows: Your email address") || strings.Contains(kept.Body, "estover.example:") {
			t.Errorf("what is kept is shown as\n%s", kept.Body)
		}
		alice.Send(kept, "/oauth/consents")
		if u := userinfo(w, "GET", oauthtest.Bearer(a.Token())); u.Status != http.StatusUnauthorized {
			t.Errorf("userinfo after the consent was taken back: %d %s", u.Status, u.Body)
		}
		if p := alice.Ask(bot, asked()...); p.Status != http.StatusOK {
			t.Errorf("after it was taken back nobody is asked: %d", p.Status)
		}
	})
}

// OpenID Connect Core, section 5.3.
func TestUserInfo(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice, bob := w.CodeAgent("bot"), w.Person("alice"), w.Person("bob")
		reachable(t, w, alice)
		get := func(p *oauthtest.Person, scope string) string {
			t.Helper()
			return granted(t, scope, w.Redeem(bot, p.Code(bot, asked("scope", scope)...))).Token()
		}
		sub := `"sub":"user:` + alice.ID + `"`
		for scope, want := range map[string]string{
			"openid":               `{` + sub + `}`,
			"openid email":         `{` + sub + `,"email":"alice@example.com"}`,
			"openid profile":       `{` + sub + `,"name":"alice","preferred_username":"alice"}`,
			"openid profile email": `{` + sub + `,"name":"alice","preferred_username":"alice","email":"alice@example.com"}`,
		} {
			raw := get(alice, scope)
			for _, method := range []string{"GET", "POST"} {
				u := userinfo(w, method, oauthtest.Bearer(raw))
				if u.Status != http.StatusOK || u.Body != want || u.Header.Get("Cache-Control") != "no-store" || u.Header.Get("Access-Control-Allow-Origin") != "*" {
					t.Errorf("%s for %q: %d %s with %v, want %s", method, scope, u.Status, u.Body, u.Header, want)
				}
			}
		}
		if u := userinfo(w, "GET", oauthtest.Bearer(get(bob, "openid email"))); u.Body != `{"sub":"user:`+bob.ID+`"}` {
			t.Errorf("the email of somebody who has none: %s", u.Body)
		}

		// With a token that is bound to a key (RFC 9449, section 7).
		prover := w.Prover("P-256")
		f := oauthtest.Form("grant_type", "authorization_code", "code", alice.Code(bot, asked()...), "code_verifier", oauthtest.Verifier)
		a := w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, bot.Secret), prover.Prove("")))
		granted(t, "a bound token", a)
		if a.Text("id_token") == "" || a.Text("token_type") != "DPoP" {
			t.Errorf("the answer is %s", a.Body)
		}
		if u := userinfo(w, "GET", prover.Prove(a.Token())); u.Status != http.StatusOK || u.Header.Get("DPoP-Nonce") == "" {
			t.Errorf("a bound token with its proof: %d %s", u.Status, u.Body)
		}
		if u := userinfo(w, "GET", oauthtest.Bearer(a.Token())); u.Status != http.StatusUnauthorized || u.Error() != "invalid_token" {
			t.Errorf("a bound token without its proof: %d %s", u.Status, u.Body)
		}
		stale := *prover
		stale.Nonce = ""
		if u := userinfo(w, "GET", stale.Prove(a.Token())); u.Status != http.StatusUnauthorized || u.Error() != "use_dpop_nonce" {
			t.Errorf("a proof without a nonce: %d %s", u.Status, u.Body)
		}

		// With too little.
		own := w.Ask(bot).Token()
		u := userinfo(w, "GET", oauthtest.Bearer(own))
		if u.Status != http.StatusForbidden || u.Error() != "insufficient_scope" || u.Header.Get("WWW-Authenticate") != `Bearer realm="estover", error="insufficient_scope", scope="openid"` {
			t.Errorf("a token without openid: %d %s, %v", u.Status, u.Body, u.Header["Www-Authenticate"])
		}
		if u := userinfo(w, "GET"); u.Status != http.StatusUnauthorized || !strings.HasPrefix(u.Header.Get("WWW-Authenticate"), "Bearer") || strings.Contains(u.Header.Get("WWW-Authenticate"), "error=") {
			t.Errorf("no token: %d %s, %v", u.Status, u.Body, u.Header["Www-Authenticate"])
		}
		if u := userinfo(w, "GET", oauthtest.Bearer("x")); u.Status != http.StatusUnauthorized || u.Error() != "invalid_token" || !strings.Contains(u.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
			t.Errorf("something else: %d %s, %v", u.Status, u.Body, u.Header["Www-Authenticate"])
		}
		if u := userinfo(w, "PUT", oauthtest.Bearer(own)); u.Status != http.StatusMethodNotAllowed || u.Header.Get("Allow") != "GET, POST" {
			t.Errorf("another method: %d, Allow %q", u.Status, u.Header.Get("Allow"))
		}
		if u := userinfo(w, "OPTIONS"); u.Status != http.StatusNoContent || u.Header.Get("Access-Control-Allow-Methods") != "GET, POST" {
			t.Errorf("a preflight: %d %v", u.Status, u.Header)
		}

		// Policy has a word in it, and a person who leaves is told of no more.
		raw := get(alice, "openid")
		w.Decider.Set(oauthtest.Deny("identity.read"))
		if u := userinfo(w, "GET", oauthtest.Bearer(raw)); u.Status != http.StatusForbidden || u.Error() != "access_denied" || u.Text("sub") != "" {
			t.Errorf("against the policy: %d %s", u.Status, u.Body)
		}
		w.Decider.Set(nil)
		if _, err := w.People.Disable(t.Context(), oauthtest.Admin, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		if u := userinfo(w, "GET", oauthtest.Bearer(raw)); u.Status != http.StatusUnauthorized {
			t.Errorf("of somebody who has left: %d %s", u.Status, u.Body)
		}
	})
}

// A5 and A18: an ID token is nothing but an ID token, and nothing else is one.
func TestA18IDTokensAreOnlyIDTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		alice, other := w.Person("alice"), exchanger(w, "other", oauthtest.CRM)
		for _, alg := range []string{"RS256", "ES256"} {
			bot := w.CodeAgent("bot-"+strings.ToLower(alg), func(c *agent.Client) { c.IDTokenAlgorithm = alg })
			a := granted(t, "a code", w.Redeem(bot, alice.Code(bot, asked()...)))
			id, access := a.Text("id_token"), a.Token()
			if w.Live(bot, id) {
				t.Errorf("%s: an ID token is active at introspection", alg)
			}
			if u := userinfo(w, "GET", oauthtest.Bearer(id)); u.Status != http.StatusUnauthorized {
				t.Errorf("%s: an ID token at userinfo: %d %s", alg, u.Status, u.Body)
			}
			for _, audience := range []string{"", oauthtest.CRM, bot.ID} {
				if _, err := w.Callers.For(oauthtest.Request("/x", nil, oauthtest.Bearer(id)), estover.DefaultTenant, audience); estover.KindOf(err) != estover.Unknown {
					t.Errorf("%s: an ID token as a bearer token for %q: %v, want Unknown", alg, audience, err)
				}
			}
			refused(t, alg+" as a subject token", exchange(w, other, id), 400, "invalid_grant")
			refused(t, alg+" as a client assertion", w.AskWith(id), 401, "invalid_client")
			refused(t, alg+" as an assertion", w.AskByAssertion(id), 400, "invalid_grant")
			refused(t, alg+" as a refresh token", w.Refresh(bot, id), 400, "invalid_grant")
			refused(t, alg+" as a code", w.Redeem(bot, id), 400, "invalid_grant")

			// With the keys of ID tokens under the type of access tokens, and the
			// other way round.
			keys, err := w.Keys.Verifying(t.Context(), estover.DefaultTenant, jose.IDToken)
			if err != nil {
				t.Fatal(err)
			}
			want := jose.Expected{Now: d.Now(), Issuer: string(oauthtest.Issuer), AnyAudience: true}
			if _, err := jose.Verify(jose.IDToken, keys, id, want); err != nil {
				t.Errorf("%s: the ID token, where it belongs: %v", alg, err)
			}
			if _, err := jose.Verify(jose.IDToken, keys, access, want); err == nil {
				t.Errorf("%s: an access token is an ID token", alg)
			}
			signer, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.AccessToken)
			if err != nil {
				t.Fatal(err)
			}
			crafted := craft(t, map[string]any{"alg": "ES256", "kid": signer.KID, "typ": "JWT"}, said(t, id), es256(t, signer.Signer))
			if _, err := jose.Verify(jose.IDToken, keys, crafted, want); err == nil {
				t.Errorf("%s: what the key of access tokens has signed is an ID token", alg)
			}
		}
	})
}

// A3 and A19 for what is bound to a code: another client gets no ID token, and
// the nonce is that of the request that the code answers.
func TestNonceIsBoundToTheCode(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, thief, alice := w.CodeAgent("bot"), w.CodeAgent("thief"), w.Person("alice")
		first, second := alice.Code(bot, asked("nonce", "first")...), alice.Code(bot, asked("nonce", "second")...)
		refused(t, "another client's code", w.Redeem(thief, first), 400, "invalid_grant")
		for _, c := range []struct{ nonce, code string }{{"second", second}, {"first", first}} {
			a := granted(t, c.nonce, w.Redeem(bot, c.code, "nonce", "of the token request"))
			if claims, _ := identified(t, w, a.Text("id_token"), bot.ID); claims["nonce"] != c.nonce {
				t.Errorf("the code of %q bought the nonce %v", c.nonce, claims["nonce"])
			}
		}
		pushed := w.Do(oauthtest.Request("/oauth/par", oauthtest.AuthorizeQuery(bot, asked("nonce", "pushed")...), oauthtest.Basic(bot.ID, bot.Secret)))
		p := alice.Load("/oauth/authorize?" + oauthtest.Form("client_id", bot.ID, "request_uri", pushed.Text("request_uri"), "nonce", "of the browser").Encode())
		a := granted(t, "a pushed request", w.Redeem(bot, oauthtest.Back(alice, p).Get("code")))
		if claims, _ := identified(t, w, a.Text("id_token"), bot.ID); claims["nonce"] != "pushed" {
			t.Errorf("the nonce of a pushed request comes back as %v", claims["nonce"])
		}
	})
}

// max_age and prompt=login are answered by an auth_time that keeps them.
func TestAuthTimeOfIDTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		began := d.Now().Unix()
		alice.Code(bot, asked()...)
		clock.Advance(20 * time.Minute)
		at := func(pairs ...string) int64 {
			t.Helper()
			a := granted(t, "a code", w.Redeem(bot, alice.Code(bot, asked(pairs...)...)))
			claims, _ := identified(t, w, a.Text("id_token"), bot.ID)
			return int64(claims["auth_time"].(float64))
		}
		if got := at(); got-began > 10 {
			t.Errorf("auth_time is %d, want that of the sign-in, about %d", got, began)
		}
		if p := alice.Ask(bot, asked("max_age", "600")...); !strings.HasPrefix(p.Header.Get("Location"), "/login?") {
			t.Errorf("a sign-in that is too old: %d to %s", p.Status, p.Header.Get("Location"))
		}
		alice.SignIn(true)
		if got := at("max_age", "600"); got < began+1200 {
			t.Errorf("auth_time is %d, want that of the second sign-in, after %d", got, began+1200)
		}
		alice.SignIn(false)
		a := granted(t, "by a recovery code", w.Redeem(bot, alice.Code(bot, asked()...)))
		if claims, _ := identified(t, w, a.Text("id_token"), bot.ID); claims["acr"] != nil {
			t.Errorf("a sign-in with a recovery code has the acr %v", claims["acr"])
		}
	})
}

// OpenID Connect Discovery, section 3.
func TestMetadataOfOpenID(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		m := w.Metadata()
		for name, c := range map[string]struct{ got, want []string }{
			"userinfo_endpoint":                     {[]string{m.UserInfoEndpoint}, []string{m.Issuer + "/oauth/userinfo"}},
			"id_token_signing_alg_values_supported": {m.IDTokenAlgorithms, []string{"RS256", "ES256"}},
			"scopes_supported":                      {m.Scopes, []string{"openid", "profile", "email"}},
			"subject_types_supported":               {m.SubjectTypes, []string{"public"}},
			"acr_values_supported":                  {m.Classes, []string{"phr"}},
		} {
			if !slices.Equal(c.got, c.want) {
				t.Errorf("%s is %v, want %v", name, c.got, c.want)
			}
		}
		// What is named is there, and what is there is named.
		alice := w.Person("alice")
		reachable(t, w, alice)
		bot := w.CodeAgent("bot")
		a := granted(t, "a code", w.Redeem(bot, alice.Code(bot, asked("scope", "openid profile email")...)))
		known := userinfo(w, "GET", oauthtest.Bearer(a.Token())).JSON
		told, _ := identified(t, w, a.Text("id_token"), bot.ID)
		maps.Copy(told, known)
		if got, want := slices.Sorted(maps.Keys(told)), slices.Sorted(slices.Values(m.Claims)); !slices.Equal(got, want) {
			t.Errorf("the claims are %v, the metadata says %v", got, want)
		}
	})
}

// The row "golang.org/x/oauth2, coreos/go-oidc" of the interoperability table:
// discovery, client credentials, code, ID tokens, refresh and userinfo, over TLS.
func TestInteropGoOIDC(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		alice := w.Person("alice")
		reachable(t, w, alice)
		s := httptest.NewTLSServer(w.Handler)
		t.Cleanup(s.Close)
		roots := x509.NewCertPool()
		roots.AddCert(s.Certificate())
		// The server is where the issuer's name leads to.
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, s.Listener.Addr().String())
			},
		}}
		ctx := oidc.ClientContext(t.Context(), client)
		provider, err := oidc.NewProvider(ctx, string(oauthtest.Issuer))
		if err != nil {
			t.Fatal(err)
		}
		for _, alg := range []string{"RS256", "ES256"} {
			bot := w.CodeAgent("app-"+strings.ToLower(alg), func(c *agent.Client) { c.IDTokenAlgorithm = alg })
			config := oauth2.Config{
				ClientID: bot.ID, ClientSecret: bot.Secret, Endpoint: provider.Endpoint(), RedirectURL: oauthtest.Callback,
				Scopes: []string{oidc.ScopeOpenID, "profile", "email"},
			}
			verifier := oauth2.GenerateVerifier()
			to := config.AuthCodeURL("the state", oidc.Nonce("the nonce"), oauth2.S256ChallengeOption(verifier))
			p := alice.Load(strings.TrimPrefix(to, string(oauthtest.Issuer)))
			if p.Status == http.StatusOK {
				p = alice.Post("/oauth/consent", alice.Fill(p, "/oauth/consent"))
			}
			back := oauthtest.Back(alice, p)
			if back.Get("state") != "the state" || back.Get("iss") != string(oauthtest.Issuer) {
				t.Fatalf("%s: the browser comes back with %v", alg, back)
			}
			got, err := config.Exchange(ctx, back.Get("code"), oauth2.VerifierOption(verifier))
			if err != nil {
				t.Fatal(err)
			}
			check := provider.Verifier(&oidc.Config{ClientID: bot.ID, Now: d.Now})
			raw, _ := got.Extra("id_token").(string)
			id, err := check.Verify(ctx, raw)
			if err != nil {
				t.Fatalf("%s: go-oidc does not accept the ID token: %v", alg, err)
			}
			if id.Subject != "user:"+alice.ID || id.Nonce != "the nonce" || id.Expiry.Sub(id.IssuedAt) != 5*time.Minute {
				t.Errorf("%s: go-oidc reads %+v", alg, id)
			}
			if err := id.VerifyAccessToken(got.AccessToken); err != nil {
				t.Errorf("%s: at_hash: %v", alg, err)
			}
			if _, err := check.Verify(ctx, got.AccessToken); err == nil {
				t.Errorf("%s: go-oidc takes an access token for an ID token", alg)
			}
			info, err := provider.UserInfo(ctx, oauth2.StaticTokenSource(got))
			if err != nil {
				t.Fatal(err)
			}
			var profile struct{ Name string }
			if err := info.Claims(&profile); err != nil || info.Subject != id.Subject || info.Email != "alice@example.com" || profile.Name != "alice" {
				t.Errorf("%s: go-oidc reads userinfo as %+v %+v, %v", alg, info, profile, err)
			}
			next, err := config.TokenSource(ctx, &oauth2.Token{RefreshToken: got.RefreshToken}).Token()
			if err != nil {
				t.Fatal(err)
			}
			raw, _ = next.Extra("id_token").(string)
			if again, err := check.Verify(ctx, raw); err != nil || again.Subject != id.Subject || again.Nonce != "" || next.RefreshToken == got.RefreshToken {
				t.Errorf("%s: after a refresh go-oidc reads %+v, %v", alg, again, err)
			}
		}
	})
}

// Scopes of OpenID Connect are told apart from those of resources in one way.
func TestSplitScopes(t *testing.T) {
	for _, c := range []struct{ asked, identity, scopes []string }{
		{nil, nil, nil},
		{[]string{"profile", "a"}, nil, []string{"profile", "a"}},
		{[]string{"openid"}, []string{"openid"}, []string{}},
		{[]string{"profile", "b", "openid", "a"}, []string{"openid", "profile"}, []string{"b", "a"}},
	} {
		identity, scopes := token.SplitScopes(c.asked)
		if !slices.Equal(identity, c.identity) || !slices.Equal(scopes, c.scopes) || (scopes == nil) != (c.scopes == nil) {
			t.Errorf("%q is split into %q and %q, want %q and %q", c.asked, identity, scopes, c.identity, c.scopes)
		}
	}
}

// RFC 9470, section 4: acr_values asks for a sign-in that cannot be phished, and
// what is not known is no error.
func TestACRValues(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		alice.Allow(bot, asked()...)
		alice.SignIn(false)
		for values, want := range map[string]bool{"phr": true, "urn:example:gold phr": true, "urn:example:gold": false, "": false} {
			p := alice.Ask(bot, asked("acr_values", values)...)
			if strings.HasPrefix(p.Header.Get("Location"), "/login?again=1") != want {
				t.Errorf("acr_values %q after a sign-in by recovery code: %d to %q, want the sign-in page: %v", values, p.Status, p.Header.Get("Location"), want)
			}
		}
		if back := alice.Allow(bot, asked("acr_values", "phr", "prompt", "none")...); back.Get("error") != "login_required" {
			t.Errorf("acr_values with prompt=none: %v", back)
		}
		alice.SignIn(true)
		a := granted(t, "a code", w.Redeem(bot, alice.Code(bot, asked("acr_values", "phr")...)))
		if claims, _ := identified(t, w, a.Text("id_token"), bot.ID); claims["acr"] != "phr" {
			t.Errorf("after a sign-in by passkey the acr is %v", claims["acr"])
		}
		for methods, want := range map[string]string{"hwk": "phr", "swk": "phr", "mfa": "phr", "otp": "", "pwd": ""} {
			if got := token.AuthOf(d.Now(), []string{methods}).Class; got != want {
				t.Errorf("the acr of %s is %q, want %q", methods, got, want)
			}
		}
	})
}

// A19 for identity: what a person let one client know is not handed on to
// another, nor to the same by exchange.
func TestIdentityIsNotHandedOn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		alice, other := w.Person("alice"), exchanger(w, "other", oauthtest.CRM)
		bot := w.CodeAgent("bot", func(c *agent.Client) { c.GrantTypes = append(c.GrantTypes, exchangeType) })
		raw := granted(t, "a code", w.Redeem(bot, alice.Code(bot, asked()...))).Token()
		for what, by := range map[string]*oauthtest.Agent{"itself": bot, "another": other} {
			for _, pairs := range [][]string{nil, {"scope", "openid"}, {"resource", string(oauthtest.Issuer)}, {"resource", oauthtest.CRM}} {
				a := exchange(w, by, raw, pairs...)
				if a.Status != http.StatusOK {
					continue
				}
				if u := userinfo(w, "GET", oauthtest.Bearer(a.Token())); a.Text("scope") != "" || u.Status != http.StatusForbidden || u.Text("sub") != "" {
					t.Errorf("%s with %v hands it on: %s, and userinfo says %d %s", what, pairs, a.Body, u.Status, u.Body)
				}
			}
		}
		if u := userinfo(w, "GET", oauthtest.Bearer(raw)); u.Status != http.StatusOK {
			t.Errorf("afterwards userinfo says %d %s", u.Status, u.Body)
		}
	})
}
