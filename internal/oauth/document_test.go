package oauth_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/edge"
	"estover.dev/internal/oauth"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// A site is where a client says what it is.
type site struct {
	t   *testing.T
	w   *oauthtest.World
	bot *oauthtest.Agent
	url string // of the document

	mu     sync.Mutex
	answer func(w http.ResponseWriter)
	asked  int
}

// newSite is a client of the world that is known by a URL on this machine, which
// the world may reach as a server in development may.
func newSite(t *testing.T, w *oauthtest.World, change ...func(*agent.Client)) *site {
	t.Helper()
	s := &site{t: t, w: w}
	up := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked++
		if r.Method != http.MethodGet || r.URL.Path != "/client.json" {
			t.Errorf("the site was asked for %s %s", r.Method, r.URL)
		}
		s.answer(w)
	}))
	t.Cleanup(up.Close)
	w.Fetcher.Roots = x509.NewCertPool()
	w.Fetcher.Roots.AddCert(up.Certificate())
	w.Fetcher.Opening.Prefixes = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	s.url = up.URL + "/client.json"
	s.bot = w.Agent("bot")
	c := agent.Client{MetadataURL: s.url, GrantTypes: []string{"authorization_code", "refresh_token"}}
	for _, fn := range change {
		fn(&c)
	}
	w.Set(s.bot, c)
	s.says(s.document(nil))
	return s
}

// document is a good document with changes; nil takes a member away.
func (s *site) document(change map[string]any) map[string]any {
	d := map[string]any{
		"client_id": s.url, "client_name": "Example Desk", "redirect_uris": []string{oauthtest.Callback},
		"grant_types": []string{"authorization_code", "refresh_token"}, "response_types": []string{"code"},
		"token_endpoint_auth_method": "none", "logo_uri": "https://app.example/logo.png",
	}
	for name, value := range change {
		if d[name] = value; value == nil {
			delete(d, name)
		}
	}
	return d
}

func (s *site) says(document any, headers ...string) {
	s.t.Helper()
	body, ok := document.(string)
	if !ok {
		b, err := json.Marshal(document)
		if err != nil {
			s.t.Fatal(err)
		}
		body = string(b)
	}
	s.answers(func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		_, _ = w.Write([]byte(body))
	})
}

func (s *site) answers(fn func(w http.ResponseWriter)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = fn
}

// fetched is how often the site was asked since the last time.
func (s *site) fetched() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.asked
	s.asked = 0
	return n
}

// redeem exchanges a code as the client, which proves nothing.
func (s *site) redeem(code string) oauthtest.Answer {
	return s.w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "authorization_code", "code", code, "code_verifier", oauthtest.Verifier, "client_id", s.url)))
}

// assertion says that its bearer is the client.
func (s *site) assertion(key crypto.Signer, id string) []string {
	now := s.w.DB.Now().Unix()
	return []string{"client_assertion_type", oauthtest.AssertionType, "client_assertion", oauthtest.Sign(s.t, key, "key-1", oauthtest.Claims{
		"iss": id, "sub": id, "aud": string(oauthtest.Issuer), "iat": now, "exp": now + 60, "jti": rand.Text(),
	})}
}

// payloadOf is what a JWT says, given all of it after its header.
func payloadOf(t *testing.T, rest string) string {
	t.Helper()
	payload, _, _ := strings.Cut(rest, ".")
	b, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestClientIDMetadataDocument(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		s, alice := newSite(t, w), w.Person("alice")
		if m := w.Do(httpGet("/.well-known/oauth-authorization-server")); m.JSON["client_id_metadata_document_supported"] != true {
			t.Errorf("the metadata is %s", m.Body)
		}
		// The question names the hosts of client_id and redirect URI.
		asked := alice.Ask(s.bot, "client_id", s.url, "scope", "customer.read openid")
		u, err := url.Parse(s.url)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Let bot act for you?", "<strong>" + u.Host + "</strong>", "“Example Desk”", "<strong>app.example</strong>"} {
			if !strings.Contains(asked.Body, want) {
				t.Errorf("the page that asks does not say %q:\n%s", want, asked.Body)
			}
		}
		if strings.Contains(asked.Body, "logo.png") || strings.Contains(asked.Body, "Any program on this computer") {
			t.Errorf("the page that asks has a logo of the client's, or warns without need:\n%s", asked.Body)
		}
		back := oauthtest.Back(alice, alice.Post("/oauth/consent", alice.Fill(asked, "/oauth/consent")))
		a := granted(t, "a code", s.redeem(back.Get("code")))
		// The client is what it calls itself, and the agent is who acts.
		claims := claimsOf(t, w, a.Token(), oauthtest.CRM)
		act, _ := claims["act"].(map[string]any)
		if claims["client_id"] != s.url || claims["client_agent"] != s.bot.ID || claims["sub"] != "user:"+alice.ID || act["sub"] != "agent:"+s.bot.ID {
			t.Errorf("the token says %v", claims)
		}
		if _, payload, ok := strings.Cut(a.Text("id_token"), "."); !ok || !strings.Contains(payloadOf(t, payload), `"aud":"`+s.url+`"`) {
			t.Errorf("the ID token is %s", a.Text("id_token"))
		}
		if session, err := w.Sessions.Get(t.Context(), oauthtest.Admin, a.Text("session")); err != nil || session.Agent != s.bot.ID {
			t.Errorf("the session is %+v, %v", session, err)
		}
		// Refresh, introspection by whoever serves the resource, revocation.
		a = granted(t, "a refresh", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "refresh_token", "refresh_token", a.Text("refresh_token"), "client_id", s.url))))
		crm := w.Agent("crm")
		w.Set(crm, agent.Client{Introspect: []string{oauthtest.CRM}})
		told := w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", a.Token()), oauthtest.Basic(crm.ID, crm.Secret)))
		if told.JSON["active"] != true || told.JSON["client_id"] != s.url || told.JSON["client_agent"] != s.bot.ID {
			t.Errorf("introspection says %s", told.Body)
		}
		if r := w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", a.Token(), "client_id", s.url))); r.Status != http.StatusOK {
			t.Errorf("revocation: %d %s", r.Status, r.Body)
		}
		if told := w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", a.Token()), oauthtest.Basic(crm.ID, crm.Secret))); told.JSON["active"] != false {
			t.Errorf("after revocation, introspection says %s", told.Body)
		}
		if n := s.fetched(); n != 1 {
			t.Errorf("the document was fetched %d times", n)
		}
		// A pushed request.
		pushed := w.Do(oauthtest.Request("/oauth/par", oauthtest.AuthorizeQuery(s.bot, "client_id", s.url, "scope", "customer.read")))
		if p := alice.Load("/oauth/authorize?" + oauthtest.Form("client_id", s.url, "request_uri", pushed.Text("request_uri")).Encode()); pushed.Status != http.StatusCreated || oauthtest.Back(alice, p).Get("code") == "" {
			t.Errorf("a pushed request: %d %s", pushed.Status, pushed.Body)
		}
		// The client has one identifier, and its agent's credentials are not its own.
		if p := alice.Ask(s.bot); p.Status != http.StatusBadRequest || p.Header.Get("Location") != "" {
			t.Errorf("the agent's id as client_id: %d to %q", p.Status, p.Header.Get("Location"))
		}
		own := oauthtest.Form("grant_type", "client_credentials", "resource", oauthtest.CRM)
		refused(t, "the agent's id and secret", w.Do(oauthtest.Request("/oauth/token", own, oauthtest.Basic(s.bot.ID, s.bot.Secret))), 401, "invalid_client")
		refused(t, "the URL and the agent's secret", w.Do(oauthtest.Request("/oauth/token", own, oauthtest.Basic(s.url, s.bot.Secret))), 401, "invalid_client")
		own.Set("client_id", s.url)
		if a := w.Do(oauthtest.Request("/oauth/token", own)); a.Token() != "" {
			t.Errorf("a client that proves nothing acts for itself: %s", a.Body)
		}
		// Held is held.
		if _, err := w.Agents.Hold(t.Context(), oauthtest.Admin, s.bot.ID, agent.Suspension, "a test"); err != nil {
			t.Fatal(err)
		}
		if back := oauthtest.Back(alice, alice.Ask(s.bot, "client_id", s.url)); back.Get("error") == "" {
			t.Errorf("the client of an agent that is held: %v", back)
		}
	})
}

// TestMetadataURL: https, a path, no dot segments, userinfo or fragment; and one
// URL is one agent's.
func TestMetadataURL(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := w.Agent("bot"), w.Agent("other")
		set := func(a *oauthtest.Agent, url string) error {
			spec := a.Spec
			spec.Client = &agent.Client{MetadataURL: url, GrantTypes: []string{"authorization_code"}}
			_, err := w.Agents.Update(t.Context(), oauthtest.Admin, a.ID, spec)
			return err
		}
		for _, bad := range []string{
			"http://app.example/client", "https://app.example", "https://app.example/", "https://app.example/a/../client", "https://app.example/./client",
			"https://app.example/%2e%2e/client", "https://app.example/a%2f..%2fclient", "https://user@app.example/client", "https://user:pw@app.example/client",
			"https://app.example/client#f", "https://app.example/client#", "https://App.example/client", "https://app.example./client", "https:///client", "https:app.example/client",
			`https://app.example\client`, "https://app.example/cl ient", "https://app.example/clïent", "HTTPS://app.example/client", "app.example/client", "https://app.example/" + strings.Repeat("x", 1024),
		} {
			if err := set(bot, bad); !errors.Is(err, agent.ErrInvalid) {
				t.Errorf("the metadata URL %q: %v", bad, err)
			}
		}
		for _, good := range []string{"https://app.example:8443/a/client.json?v=1", "https://app.example/client"} {
			if err := set(bot, good); err != nil {
				t.Errorf("the metadata URL %q: %v", good, err)
			}
		}
		if err := set(other, "https://app.example/client"); !errors.Is(err, agent.ErrMetadataTaken) {
			t.Errorf("another agent's metadata URL: %v", err)
		}
		spec := other.Spec
		spec.Name, spec.Client = "third", &agent.Client{MetadataURL: "https://app.example/client"}
		if _, err := w.Agents.Create(t.Context(), oauthtest.Admin, spec, agent.Origin{}); !errors.Is(err, agent.ErrMetadataTaken) {
			t.Errorf("another agent's metadata URL, from the start: %v", err)
		}
		if id, err := w.Agents.ByMetadataURL(t.Context(), estover.DefaultTenant, "https://app.example/client"); err != nil || id != bot.ID {
			t.Errorf("the URL is that of %q, %v", id, err)
		}
		spec.Client = &agent.Client{MetadataURL: "https://app.example/third", Methods: []string{"client_secret_basic"}}
		if _, err := w.Agents.Create(t.Context(), oauthtest.Admin, spec, agent.Origin{}); !errors.Is(err, agent.ErrInvalid) {
			t.Errorf("a method that rests on a secret: %v", err)
		}
		// Of many that take one URL at once, one gets it.
		var all sync.WaitGroup
		var mu sync.Mutex
		got := 0
		for i := range 8 {
			one := w.Agent(fmt.Sprintf("racer-%d", i))
			all.Go(func() {
				err := set(one, "https://app.example/race")
				if err != nil && !errors.Is(err, agent.ErrMetadataTaken) {
					t.Errorf("one of eight at once: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					got++
				}
			})
		}
		all.Wait()
		if got != 1 {
			t.Errorf("%d of eight got the same URL", got)
		}
		// Generated client ids never begin with https://.
		if token.IsURL(bot.ID) || !strings.HasPrefix(bot.ID, "agt_") {
			t.Errorf("an agent has the id %q", bot.ID)
		}
		// A retired agent gives its URL up.
		if err := w.Agents.Retire(t.Context(), oauthtest.Admin, bot.ID, "a test"); err != nil {
			t.Fatal(err)
		}
		if err := set(other, "https://app.example/client"); err != nil {
			t.Errorf("a retired agent's metadata URL: %v", err)
		}
		if id, err := w.Agents.ByMetadataURL(t.Context(), estover.DefaultTenant, "https://app.example/client"); err != nil || id != other.ID {
			t.Errorf("the URL is that of %q, %v", id, err)
		}
	})
}

// TestDocumentsThatAreNotInOrder: fetched without redirects, 200 only, JSON, at
// most 5 KiB, with the URL itself as client_id, and no secrets. Errors and
// invalid documents are never kept.
func TestDocumentsThatAreNotInOrder(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		s, alice := newSite(t, w), w.Person("alice")
		key := oauthtest.NewKey(t, "P-256")
		private := map[string]any{"keys": []any{map[string]any{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256"}}}
		good, err := json.Marshal(s.document(nil))
		if err != nil {
			t.Fatal(err)
		}
		status := func(code int, headers ...string) func(http.ResponseWriter) {
			return func(w http.ResponseWriter) {
				w.Header().Set("Content-Type", "application/json")
				for i := 0; i < len(headers); i += 2 {
					w.Header().Set(headers[i], headers[i+1])
				}
				w.WriteHeader(code)
				_, _ = w.Write(good)
			}
		}
		for name, bad := range map[string]any{
			"another client_id":          s.document(map[string]any{"client_id": s.url + "?"}),
			"client_id in capitals":      s.document(map[string]any{"client_id": strings.Replace(s.url, "https", "HTTPS", 1)}),
			"no client_id":               s.document(map[string]any{"client_id": nil}),
			"client_id twice":            strings.Replace(string(good), "{", fmt.Sprintf(`{"client_id":%q,`, s.url), 1),
			"more after it":              string(good) + "{}",
			"not UTF-8":                  strings.Replace(string(good), "Example", "\xff", 1),
			"no object":                  `["` + s.url + `"]`,
			"nothing":                    "",
			"more than 5 KiB":            string(good) + strings.Repeat(" ", edge.MaxDocument-len(good)+1),
			"a secret":                   s.document(map[string]any{"client_secret": "x"}),
			"the end of a secret":        s.document(map[string]any{"client_secret_expires_at": 0}),
			"client_secret_basic":        s.document(map[string]any{"token_endpoint_auth_method": "client_secret_basic"}),
			"client_secret_post":         s.document(map[string]any{"token_endpoint_auth_method": "client_secret_post"}),
			"client_secret_jwt":          s.document(map[string]any{"token_endpoint_auth_method": "client_secret_jwt"}),
			"a symmetric key":            s.document(map[string]any{"token_endpoint_auth_method": "private_key_jwt", "jwks": private}),
			"no key":                     s.document(map[string]any{"token_endpoint_auth_method": "private_key_jwt"}),
			"keys elsewhere":             s.document(map[string]any{"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": s.url}),
			"no redirect URI":            s.document(map[string]any{"redirect_uris": nil}),
			"redirect URIs of no use":    s.document(map[string]any{"redirect_uris": []string{"app://x", "http://app.example/", "javascript:alert(1)"}}),
			"another ID token algorithm": s.document(map[string]any{"id_token_signed_response_alg": "none"}),
			"301":                        status(301, "Location", "/client.json"),
			"302":                        status(302, "Location", s.url),
			"307":                        status(307, "Location", s.url),
			"201":                        status(201),
			"203":                        status(203),
			"304":                        status(304),
			"404":                        status(404),
			"500":                        status(500),
			"text":                       status(200, "Content-Type", "text/html"),
			"compressed":                 status(200, "Content-Encoding", "gzip"),
		} {
			if fn, ok := bad.(func(http.ResponseWriter)); ok {
				s.answers(fn)
			} else {
				s.says(bad, "Cache-Control", "max-age=86400")
			}
			s.fetched()
			for range 2 {
				p := alice.Ask(s.bot, "client_id", s.url)
				if p.Status < 400 || p.Header.Get("Location") != "" {
					t.Errorf("%s: the browser gets %d to %q", name, p.Status, p.Header.Get("Location"))
				}
			}
			if n := s.fetched(); n != 2 {
				t.Errorf("%s: fetched %d times for two requests", name, n)
			}
			a := w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "refresh_token", "refresh_token", "x", "client_id", s.url)))
			if code := a.Error(); code != "invalid_client" && code != "temporarily_unavailable" {
				t.Errorf("%s: the token endpoint says %d %s", name, a.Status, a.Body)
			}
			clock.Advance(time.Minute)
		}
		// Nobody makes this server go there again and again.
		s.answers(status(404))
		s.fetched()
		for range 50 {
			w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "refresh_token", "refresh_token", "x", "client_id", s.url)))
		}
		if n := s.fetched(); n > 15 {
			t.Errorf("fetched %d times for 50 requests", n)
		}
		// What is there for others does no harm, and the limit is a limit.
		clock.Advance(time.Hour)
		alice.SignIn(true)
		s.says(string(good) + strings.Repeat(" ", edge.MaxDocument-len(good)))
		if p := alice.Ask(s.bot, "client_id", s.url); p.Status != http.StatusOK {
			t.Errorf("a document of 5 KiB: %d\n%s", p.Status, p.Body)
		}
		clock.Advance(time.Hour)
		alice.SignIn(true)
		s.says(s.document(map[string]any{
			"redirect_uris": []string{"app://x", oauthtest.Callback}, "grant_types": []string{"authorization_code", "urn:example:other"}, "jwks_uri": "https://10.0.0.1/",
			"jwks": json.RawMessage(oauthtest.JWKS(t, "key-1", key.Public())), "example": map[string]any{"client_secret": 1},
		}), "Content-Type", "application/oauth-client+json; charset=utf-8")
		if p := alice.Ask(s.bot, "client_id", s.url); p.Status != http.StatusOK {
			t.Errorf("a document with what is for others: %d\n%s", p.Status, p.Body)
		}
		// A document that nobody registered is not fetched.
		s.fetched()
		for _, other := range []string{s.url + "?x", strings.Replace(s.url, "client", "other", 1), "https://app.example/client", strings.ToUpper(s.url)} {
			if p := alice.Ask(s.bot, "client_id", other); p.Status != http.StatusBadRequest || p.Header.Get("Location") != "" {
				t.Errorf("the client_id %q: %d to %q", other, p.Status, p.Header.Get("Location"))
			}
		}
		if n := s.fetched(); n != 0 {
			t.Errorf("%d documents were fetched that nobody has registered", n)
		}
	})
}

// TestDocumentsAreKeptForAWhile: between five minutes and a day, as the answer
// says, and not longer because the next one cannot be had.
func TestDocumentsAreKeptForAWhile(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		s := newSite(t, w)
		docs := oauth.NewDocuments(func(ctx context.Context, url string) (edge.Document, error) {
			return w.Fetcher.Get(ctx, url, edge.MaxDocument)
		}, d.Now)
		base := &token.Client{ID: s.bot.ID, URL: s.url, GrantTypes: []string{token.Own, token.Consented}, Methods: agent.MetadataMethods}
		for _, one := range []struct {
			header, age string
			life        time.Duration
		}{
			{"", "", 5 * time.Minute},
			{"no-store", "", 5 * time.Minute},
			{"max-age=600, no-cache", "", 5 * time.Minute},
			{"max-age=1", "", 5 * time.Minute},
			{"max-age=x", "", 5 * time.Minute},
			{"public, max-age=3600", "", time.Hour},
			{"Max-Age=3600", "600", 50 * time.Minute},
			{"max-age=3600, s-maxage=1200", "", 20 * time.Minute},
			{"max-age=31536000", "", 24 * time.Hour},
			{"max-age=99999999999999999999", "", 5 * time.Minute},
		} {
			s.says(s.document(nil), "Cache-Control", one.header, "Age", one.age)
			get := func(after time.Duration, want int) {
				t.Helper()
				clock.Advance(after)
				s.fetched()
				if _, err := docs.Client(t.Context(), base); err != nil {
					t.Fatal(err)
				}
				if n := s.fetched(); n != want {
					t.Errorf("Cache-Control %q, Age %q: after %s fetched %d times, want %d", one.header, one.age, after, n, want)
				}
			}
			get(25*time.Hour, 1)
			get(one.life-time.Second, 0)
			get(time.Second, 1)
		}
		clock.Advance(25 * time.Hour)
		s.answers(func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) })
		if c, err := docs.Client(t.Context(), base); err == nil {
			t.Errorf("a document that has come to its end serves on: %+v", c)
		}
		// Whoever asks at once is answered by one fetch.
		s.says(s.document(nil))
		s.fetched()
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() {
				if _, err := docs.Client(t.Context(), base); err != nil {
					t.Errorf("one of 64 at once: %v", err)
				}
			})
		}
		all.Wait()
		if n := s.fetched(); n != 1 {
			t.Errorf("64 at once had the document fetched %d times", n)
		}
	})
}

// TestDocumentsAreNotFetchedFromInside: special-use addresses are refused where
// they are dialled, also this machine's own, unless it is set up for development.
func TestDocumentsAreNotFetchedFromInside(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		s, alice := newSite(t, w), w.Person("alice")
		w.Fetcher.Opening = edge.Opening{}
		if p := alice.Ask(s.bot, "client_id", s.url); p.Status != http.StatusServiceUnavailable || p.Header.Get("Location") != "" {
			t.Errorf("a document on this machine: %d to %q", p.Status, p.Header.Get("Location"))
		}
		local := strings.Replace(s.url, "127.0.0.1", "localhost", 1)
		inside := []string{
			local, "https://10.0.0.1/c", "https://192.168.1.1/c", "https://172.16.0.1/c", "https://169.254.169.254/latest/meta-data", "https://100.100.100.200/c",
			"https://0.0.0.0/c", "https://[::1]/c", "https://[::]/c", "https://[fd00::1]/c", "https://[fe80::1]/c", "https://[::ffff:127.0.0.1]/c", "https://[64:ff9b::7f00:1]/c",
			"https://224.0.0.1/c", "https://100.64.0.1/c",
		}
		for _, at := range inside {
			w.Set(s.bot, agent.Client{MetadataURL: at, GrantTypes: []string{"authorization_code"}})
			if p := alice.Ask(s.bot, "client_id", at); p.Status != http.StatusServiceUnavailable || p.Header.Get("Location") != "" {
				t.Errorf("a document at %s: %d to %q\n%s", at, p.Status, p.Header.Get("Location"), p.Body)
			}
		}
		if n := s.fetched(); n != 0 {
			t.Errorf("the site was asked %d times", n)
		}
	})
}

// TestChangedKeysOrRedirectsAskAgain: what a person agreed to, they agreed to of
// the client as it was.
func TestChangedKeysOrRedirectsAskAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		s, alice := newSite(t, w), w.Person("alice")
		keys := func(names ...string) map[string]any {
			var all []any
			for _, name := range names {
				var set struct {
					Keys []any `json:"keys"`
				}
				if err := json.Unmarshal(oauthtest.JWKS(t, name, oauthtest.NewKey(t, "P-256").Public()), &set); err != nil {
					t.Fatal(err)
				}
				all = append(all, set.Keys...)
			}
			return map[string]any{"keys": all}
		}
		one := keys("a", "b")
		list := one["keys"].([]any)
		turned := map[string]any{"keys": []any{list[1], list[0]}}
		for _, step := range []struct {
			name   string
			change map[string]any
			again  bool
		}{
			{"at first", nil, true},
			{"the same", nil, false},
			{"a contact and a logo", map[string]any{"contacts": []string{"a@b.example"}, "logo_uri": nil}, false},
			{"another redirect URI beside", map[string]any{"redirect_uris": []string{oauthtest.Callback, "https://app.example/other"}}, true},
			{"that again, in another order", map[string]any{"redirect_uris": []string{"https://app.example/other", oauthtest.Callback}}, false},
			{"keys", map[string]any{"jwks": one}, true},
			{"the same keys, turned round", map[string]any{"jwks": turned}, false},
			{"other keys", map[string]any{"jwks": keys("a", "b")}, true},
			{"another name", map[string]any{"client_name": "Example"}, true},
		} {
			clock.Advance(5 * time.Minute)
			alice.SignIn(true)
			s.says(s.document(step.change))
			p := alice.Ask(s.bot, "client_id", s.url, "scope", "customer.read")
			if asked := p.Status == http.StatusOK; asked != step.again {
				t.Errorf("%s: %d to %q", step.name, p.Status, p.Header.Get("Location"))
			} else if asked {
				p = alice.Post("/oauth/consent", alice.Fill(p, "/oauth/consent"))
			}
			if oauthtest.Back(alice, p).Get("code") == "" {
				t.Errorf("%s: sent to %q", step.name, p.Header.Get("Location"))
			}
		}
		// And the answer to a page that was shown before the change is asked anew.
		clock.Advance(5 * time.Minute)
		s.says(s.document(nil))
		shown := alice.Ask(s.bot, "client_id", s.url, "scope", "customer.read")
		clock.Advance(5 * time.Minute)
		s.says(s.document(map[string]any{"redirect_uris": []string{"https://evil.example/"}}))
		if p := alice.Post("/oauth/consent", alice.Fill(shown, "/oauth/consent")); p.Status != http.StatusBadRequest || p.Header.Get("Location") != "" {
			t.Errorf("a yes to a redirect URI that is gone: %d to %q", p.Status, p.Header.Get("Location"))
		}
	})
}

// TestOnlyLocalRedirects: the person is warned that anybody on their machine can
// say to be this client, and is asked each time.
func TestOnlyLocalRedirects(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		s, alice := newSite(t, w), w.Person("alice")
		s.says(s.document(map[string]any{"redirect_uris": []string{"http://127.0.0.1/cb", "http://localhost/cb"}, "client_name": "<b>Bank\u202e\nof\x00 all</b>" + strings.Repeat("x", 200)}))
		for range 2 {
			p := alice.Ask(s.bot, "client_id", s.url, "redirect_uri", "http://127.0.0.1:4711/cb")
			if p.Status != http.StatusOK || !strings.Contains(p.Body, "Any program on this computer") || !strings.Contains(p.Body, "<strong>127.0.0.1:4711</strong>") {
				t.Fatalf("the page that asks: %d\n%s", p.Status, p.Body)
			}
			if !strings.Contains(p.Body, "&lt;b&gt;Bank of all&lt;/b&gt;x") || strings.Contains(p.Body, strings.Repeat("x", 101)) {
				t.Errorf("the name of the client is shown as it is:\n%s", p.Body)
			}
			if back := oauthtest.Back(alice, alice.Post("/oauth/consent", alice.Fill(p, "/oauth/consent"))); back.Get("code") == "" {
				t.Errorf("sent back with %v", back)
			}
		}
	})
}

// TestClientWithAKeyInItsDocument: its assertions name the URL, and are checked
// with the keys that are there at the time.
func TestClientWithAKeyInItsDocument(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		s, alice := newSite(t, w), w.Person("alice")
		key, next := oauthtest.NewKey(t, "P-256"), oauthtest.NewKey(t, "Ed25519")
		with := func(key crypto.Signer, grants ...string) {
			s.says(s.document(map[string]any{
				"token_endpoint_auth_method": "private_key_jwt", "jwks": json.RawMessage(oauthtest.JWKS(t, "key-1", key.Public())), "grant_types": grants,
			}))
		}
		with(key, "authorization_code", "client_credentials")
		redeem := func(code string, more ...string) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form(append([]string{"grant_type", "authorization_code", "code", code, "code_verifier", oauthtest.Verifier}, more...)...)))
		}
		code := alice.Code(s.bot, "client_id", s.url)
		refused(t, "no assertion", redeem(code, "client_id", s.url), 401, "invalid_client")
		refused(t, "another's key", redeem(code, s.assertion(next, s.url)...), 401, "invalid_client")
		refused(t, "the agent's own key", redeem(code, s.assertion(s.bot.Key, s.url)...), 401, "invalid_client")
		refused(t, "the agent's id", redeem(code, s.assertion(key, s.bot.ID)...), 401, "invalid_client")
		once := s.assertion(key, s.url)
		a := granted(t, "the key in the document", redeem(code, once...))
		if a.Text("refresh_token") != "" {
			t.Errorf("a client that does not say to refresh may: %s", a.Body)
		}
		own := func(assertion []string) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form(append([]string{"grant_type", "client_credentials", "resource", oauthtest.CRM}, assertion...)...)))
		}
		refused(t, "the same assertion again", own(once), 401, "invalid_client")
		a = granted(t, "for itself", own(s.assertion(key, s.url)))
		if claims := claimsOf(t, w, a.Token(), oauthtest.CRM); claims["sub"] != "agent:"+s.bot.ID || claims["client_id"] != s.url {
			t.Errorf("the token says %v", claims)
		}
		told := w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form(append([]string{"token", a.Token()}, s.assertion(key, s.url)...)...)))
		if told.JSON["active"] != true {
			t.Errorf("introspection says %s", told.Body)
		}
		// A key that is removed counts until the document is fetched again.
		with(next, "authorization_code")
		clock.Advance(5 * time.Minute)
		refused(t, "a key that was removed", own(s.assertion(key, s.url)), 401, "invalid_client")
		refused(t, "a grant type that was removed", own(s.assertion(next, s.url)), 400, "unauthorized_client")
		// The agent's settings are all that a document can name.
		w.Set(s.bot, agent.Client{MetadataURL: s.url, GrantTypes: []string{"authorization_code"}, RedirectURIs: []string{"https://app.example/only"}, Methods: []string{"private_key_jwt"}})
		s.says(s.document(map[string]any{
			"token_endpoint_auth_method": "private_key_jwt", "jwks": json.RawMessage(oauthtest.JWKS(t, "key-1", next.Public())),
			"redirect_uris": []string{oauthtest.Callback, "https://app.example/only"}, "grant_types": []string{"authorization_code", "refresh_token", token.Exchange},
		}))
		clock.Advance(5 * time.Minute)
		alice.SignIn(true)
		if p := alice.Ask(s.bot, "client_id", s.url); p.Status != http.StatusBadRequest || p.Header.Get("Location") != "" {
			t.Errorf("a redirect URI that the agent has not: %d to %q", p.Status, p.Header.Get("Location"))
		}
		code = alice.Code(s.bot, "client_id", s.url, "redirect_uri", "https://app.example/only")
		if a := granted(t, "within the settings", redeem(code, s.assertion(next, s.url)...)); a.Text("refresh_token") != "" {
			t.Errorf("a grant type that the agent has not: %s", a.Body)
		}
		s.says(s.document(map[string]any{"redirect_uris": []string{"https://app.example/only"}}))
		clock.Advance(5 * time.Minute)
		if p := alice.Ask(s.bot, "client_id", s.url, "redirect_uri", "https://app.example/only"); p.Status != http.StatusBadRequest {
			t.Errorf("a client that need not authenticate, of an agent that must: %d", p.Status)
		}
	})
}
