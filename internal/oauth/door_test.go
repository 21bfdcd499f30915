package oauth_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// The metadata is one document at every place where clients look, it names the
// issuer byte for byte, and what it names is there.
func TestMetadata(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		var first string
		for _, path := range []string{"/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"} {
			r := httpGet(path)
			r.Host = "evil.example"
			r.Header.Set("X-Forwarded-Host", "evil.example")
			r.Header.Set("Forwarded", "host=evil.example")
			a := w.Do(r)
			if a.Status != http.StatusOK || a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Access-Control-Allow-Origin") != "*" {
				t.Fatalf("%s: %d %v", path, a.Status, a.Header)
			}
			if first == "" {
				first = a.Body
			}
			if a.Body != first {
				t.Errorf("%s is another document:\n%s\n%s", path, a.Body, first)
			}
		}
		var m oauth.Metadata
		if err := json.Unmarshal([]byte(first), &m); err != nil {
			t.Fatal(err)
		}
		if m.Issuer != string(oauthtest.Issuer) {
			t.Errorf("the issuer is %q, want %q", m.Issuer, oauthtest.Issuer)
		}
		if !slices.Contains(m.GrantTypes, "client_credentials") || !slices.IsSorted(m.GrantTypes) || !slices.Equal(m.ResponseTypes, []string{"code"}) {
			t.Errorf("the metadata names grant types %v and response types %v", m.GrantTypes, m.ResponseTypes)
		}
		for _, endpoint := range []string{m.TokenEndpoint, m.IntrospectionEndpoint, m.RevocationEndpoint} {
			path := strings.TrimPrefix(endpoint, m.Issuer)
			if a := w.Do(oauthtest.Request(path, nil)); a.Error() != "invalid_request" {
				t.Errorf("%s answers %d %s to an empty form", endpoint, a.Status, a.Body)
			}
		}
		for name, there := range map[string]bool{"registration_endpoint": false, "authorization_endpoint": true, "request_uri_parameter_supported": true} {
			if strings.Contains(first, `"`+name+`"`) != there {
				t.Errorf("the metadata has %s: %v, want %v", name, !there, there)
			}
		}
		keys := w.Do(httpGet(strings.TrimPrefix(m.JWKS, m.Issuer)))
		if !strings.HasPrefix(keys.Header.Get("Cache-Control"), "public, max-age=") || keys.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("the key set has the headers %v", keys.Header)
		}
		if strings.Contains(keys.Body, `"d"`) {
			t.Errorf("the key set has a private key: %s", keys.Body)
		}
	})
}

// An issuer with a path, and tenants with paths of their own.
func TestMetadataOfIssuersWithPaths(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		c := w.Tokens.Config
		c.Issuer = "https://estover.example/auth"
		c.Known = func(_ context.Context, tenant estover.TenantID) error {
			if tenant != "acme" {
				return token.ErrNoTenant
			}
			return nil
		}
		door := oauth.New(oauth.Config{Tokens: token.New(w.Guard, c), Sessions: w.Sessions, Callers: w.Callers})
		mux := http.NewServeMux()
		if err := door.Mount(mux); err != nil {
			t.Fatal(err)
		}
		for path, issuer := range map[string]string{
			"/.well-known/oauth-authorization-server/auth":        "https://estover.example/auth",
			"/.well-known/openid-configuration/auth":              "https://estover.example/auth",
			"/auth/.well-known/openid-configuration":              "https://estover.example/auth",
			"/.well-known/oauth-authorization-server/auth/t/acme": "https://estover.example/auth/t/acme",
			"/.well-known/openid-configuration/auth/t/acme":       "https://estover.example/auth/t/acme",
			"/auth/t/acme/.well-known/openid-configuration":       "https://estover.example/auth/t/acme",
			"/.well-known/oauth-authorization-server":             "",
			"/auth/t/nobody/.well-known/openid-configuration":     "",
			"/auth/t/default/.well-known/openid-configuration":    "",
		} {
			rec := httptest.NewRecorder()
			mux.ServeHTTP(rec, httpGet(path))
			var m oauth.Metadata
			_ = json.Unmarshal(rec.Body.Bytes(), &m) // an answer that is no document has no issuer
			if m.Issuer != issuer || (rec.Code == http.StatusOK) != (issuer != "") {
				t.Errorf("%s: %d with the issuer %q, want %q", path, rec.Code, m.Issuer, issuer)
			}
		}
		for name, want := range map[string]struct {
			tenant estover.TenantID
			ok     bool
		}{
			"https://estover.example/auth":           {"default", true},
			"https://estover.example/auth/t/acme":    {"acme", true},
			"https://estover.example/auth/":          {"", false},
			"https://estover.example/auth/t/":        {"", false},
			"https://estover.example/auth/t/default": {"", false},
			"https://estover.example/auth/t/a/b":     {"", false},
			"https://estover.example/auth2":          {"", false},
			"https://estover.example":                {"", false},
		} {
			if tenant, ok := c.Issuer.Tenant(name); tenant != want.tenant || ok != want.ok {
				t.Errorf("the issuer %s is the tenant %q %v, want %q %v", name, tenant, ok, want.tenant, want.ok)
			}
		}
	})
}

func TestCrossOrigin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		for path, open := range map[string]bool{
			"/oauth/token": true, "/oauth/jwks": true, "/.well-known/openid-configuration": true, "/oauth/introspect": false, "/oauth/revoke": false,
		} {
			r := httpGet(path)
			r.Method = http.MethodOptions
			r.Header.Set("Origin", "https://app.example")
			r.Header.Set("Access-Control-Request-Method", "POST")
			a := w.Do(r)
			if (a.Status == http.StatusNoContent && a.Header.Get("Access-Control-Allow-Origin") == "*") != open {
				t.Errorf("a preflight of %s: %d %v, want it open: %v", path, a.Status, a.Header, open)
			}
		}
		if a := w.Do(httpGet("/oauth/token")); a.Status != http.StatusMethodNotAllowed || a.Header.Get("Allow") != "POST" || a.Error() != "invalid_request" {
			t.Errorf("GET of the token endpoint: %d %v %s", a.Status, a.Header, a.Body)
		}
	})
}

func TestIntrospection(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, server, other := w.Agent("bot"), w.Agent("server"), w.Agent("other")
		w.Tweak(server.ID, func(c *token.Client) { c.Introspect = []string{oauthtest.CRM} })
		forCRM := w.Ask(bot, "resource", oauthtest.CRM, "scope", "customer.read").Token()
		forTickets := w.Ask(bot, "resource", oauthtest.Tickets).Token()

		a := w.Introspect(server, forCRM)
		for name, want := range map[string]any{
			"active": true, "scope": "customer.read", "client_id": bot.ID, "sub": "agent:" + bot.ID, "aud": oauthtest.CRM,
			"iss": string(oauthtest.Issuer), "token_type": "Bearer", "purpose": "billing",
		} {
			if a.JSON[name] != want {
				t.Errorf("the answer has %s %v, want %v", name, a.JSON[name], want)
			}
		}
		if a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("the answer may be kept: %v", a.Header)
		}
		for what, c := range map[string]struct {
			by  *oauthtest.Agent
			raw string
		}{"another resource": {server, forTickets}, "nobody's business": {other, forCRM}, "junk": {server, "x"}} {
			if got := w.Introspect(c.by, c.raw); got.Status != http.StatusOK || got.Body != `{"active":false}` {
				t.Errorf("%s: %d %s, want exactly that it is not active", what, got.Status, got.Body)
			}
		}
		refused(t, "without authentication", w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", forCRM))), 401, "invalid_client")
		refused(t, "with a client id alone", w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", forCRM, "client_id", server.ID))), 401, "invalid_client")
		refused(t, "without a token", w.Do(oauthtest.Request("/oauth/introspect", nil, oauthtest.Basic(server.ID, server.Secret))), 400, "invalid_request")

		// The token itself does not open the question about it, unless it is
		// for us.
		refused(t, "with a token for a resource", w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", forCRM), oauthtest.Bearer(forCRM))), 401, "invalid_client")
		mine := w.Ask(bot).Token()
		if a := w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", forCRM), oauthtest.Bearer(mine))); a.JSON["active"] != true {
			t.Errorf("with an own token for us: %d %s", a.Status, a.Body)
		}

		// A person asks with a person's token.
		eve, err := w.People.Create(t.Context(), oauthtest.Admin, directory.Spec{Name: "eve", Roles: []estover.Role{estover.Auditor}}, "")
		if err != nil {
			t.Fatal(err)
		}
		value, _, err := w.People.Issue(t.Context(), estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User(eve.ID), Roles: eve.Roles}, "test", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		asEve := oauthtest.Bearer(string(value.Reveal()))
		if a := w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", forTickets), asEve)); a.JSON["active"] != true {
			t.Errorf("a person: %d %s", a.Status, a.Body)
		}
		w.Decider.Set(oauthtest.Deny("token.introspect"))
		if a := w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", forTickets), asEve)); a.Status != http.StatusBadRequest || a.Error() != "access_denied" || !strings.HasPrefix(a.Text("decision"), "evt_") {
			t.Errorf("a person whom policy does not let: %d %s", a.Status, a.Body)
		}
		w.Decider.Set(nil)

		// Signed, for the one who asked (RFC 9701).
		r := oauthtest.Request("/oauth/introspect", oauthtest.Form("token", forCRM), oauthtest.Basic(server.ID, server.Secret))
		r.Header.Set("Accept", "text/html, application/Token-Introspection+JWT;q=0.9")
		signed := w.Do(r)
		keys, err := w.Keys.JWKS(t.Context(), estover.DefaultTenant)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := jose.Verify(jose.Introspection, keys, signed.Body, jose.Expected{Now: d.Now(), Issuer: string(oauthtest.Issuer), Audiences: []string{server.ID}})
		if err != nil {
			t.Fatalf("the signed answer: %v", err)
		}
		var inner struct {
			Answer map[string]any `json:"token_introspection"`
		}
		if err := claims.Into(&inner); err != nil || inner.Answer["active"] != true || inner.Answer["client_id"] != bot.ID {
			t.Errorf("the signed answer says %v (%v)", inner.Answer, err)
		}
	})
}

// What real clients send (tokens.md, section 8).
func TestTraps(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		form := func(pairs ...string) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form(append(pairs, "grant_type", "client_credentials")...), oauthtest.Basic(bot.ID, bot.Secret)))
		}
		granted(t, "empty parameters of other grants", form("code", "", "refresh_token", "", "scope", "", "resource", "", "redirect_uri", ""))
		granted(t, "unknown parameters", form("foo", "bar", "audience", "x", "audience", "y"))
		granted(t, "an upper-case host", form("resource", "HTTPS://CRM.Example"))
		granted(t, "a charset", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials"), oauthtest.Basic(bot.ID, bot.Secret), func(r *http.Request) {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
		})))
		granted(t, "the scheme in small letters", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials"), func(r *http.Request) {
			r.SetBasicAuth(bot.ID, strings.NewReplacer("_", "%5F", "-", "%2d").Replace(bot.Secret))
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "Basic", "basic", 1))
		})))
		w.Tweak(bot.ID, func(c *token.Client) { c.Resource = oauthtest.Tickets })
		if a := granted(t, "neither scope nor resource", form()); a.Text("scope") != "ticket.read" {
			t.Errorf("a client with a usual resource got the scope %q, want that of the resource", a.Text("scope"))
		}
		for _, kind := range []string{"Ed25519", "RSA"} {
			key := oauthtest.NewKey(t, kind)
			if _, err := w.Agents.CreateKeySet(t.Context(), oauthtest.Admin, bot.ID, kind, oauthtest.JWKS(t, kind, key.Public()), 0); err != nil {
				t.Fatal(err)
			}
			a := w.AskWith(oauthtest.Sign(t, key, kind, w.Claims(bot)))
			if kind == "Ed25519" {
				granted(t, kind, a)
				continue
			}
			refused(t, "RS256 that is not arranged", a, 401, "invalid_client")
			w.Tweak(bot.ID, func(c *token.Client) { c.Algorithms = []string{"RS256", "ES256"} })
			granted(t, "RS256, arranged", w.AskWith(oauthtest.Sign(t, key, kind, w.Claims(bot))))
			granted(t, "ES256 beside it", w.AskByKey(bot))
		}
	})
}

// Sessions at the token endpoint.
func TestSessionParameter(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := w.Agent("bot"), w.Agent("other")
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), wish(bot, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if a := granted(t, "in a session of its own", w.Ask(bot, "session", s.ID)); a.Text("session") != s.ID {
			t.Errorf("the token belongs to %s, want %s", a.Text("session"), s.ID)
		}
		refused(t, "in another agent's session", w.Ask(other, "session", s.ID), 400, "invalid_grant")
		refused(t, "for another purpose than the session's", w.Ask(bot, "session", s.ID, "purpose", "support"), 400, "invalid_request")
		granted(t, "for the session's purpose", w.Ask(bot, "session", s.ID, "purpose", s.Purpose))
		first, second := w.Ask(bot, "purpose", "support"), w.Ask(bot, "purpose", "support")
		if first.Text("session") != second.Text("session") || first.Text("session") == s.ID {
			t.Errorf("requests without a session are in %s and %s", first.Text("session"), second.Text("session"))
		}
	})
}

// Attempts that fail are limited for a client at an address, and keep nobody
// else out.
func TestFailuresAreLimited(t *testing.T) {
	d := dbtest.Open(t)
	dbtest.NewClock(d).Hold()
	w := oauthtest.New(t, d)
	bot, other := w.Agent("bot"), w.Agent("other")
	from := func(addr string) func(*http.Request) { return func(r *http.Request) { r.RemoteAddr = addr } }
	form := oauthtest.Form("grant_type", "client_credentials")
	limited := false
	for range 400 {
		a := w.Do(oauthtest.Request("/oauth/token", form, oauthtest.Basic(bot.ID, "wrong"), from("198.51.100.1:1000")))
		if limited = a.Status == http.StatusTooManyRequests; limited {
			if a.Header.Get("Retry-After") == "" || a.Error() != "temporarily_unavailable" {
				t.Errorf("a limited attempt: %v %s", a.Header, a.Body)
			}
			break
		}
	}
	if !limited {
		t.Error("400 failed attempts in a row from one address were all let through")
	}
	granted(t, "another client there", w.Do(oauthtest.Request("/oauth/token", form, oauthtest.Basic(other.ID, other.Secret), from("198.51.100.1:1000"))))
	granted(t, "another address", w.Do(oauthtest.Request("/oauth/token", form, oauthtest.Basic(bot.ID, bot.Secret), from("198.51.100.2:1000"))))
	if n := count(t, d, "select count(*) from audit where action = 'token.issue' and outcome = 'refused'"); n < 1 || n > 10 {
		t.Errorf("the failed attempts left %d events, want some and not many", n)
	}
}
