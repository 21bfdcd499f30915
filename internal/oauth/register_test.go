package oauth_test

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
)

// A registrar is a world in which clients register themselves.
type registrar struct {
	*oauthtest.World
	t       *testing.T
	sponsor string
}

func registering(t *testing.T, d *db.DB) *registrar {
	t.Helper()
	return opened(t, oauthtest.New(t, d))
}

// opened is a world where clients may register themselves.
func opened(t *testing.T, w *oauthtest.World) *registrar {
	t.Helper()
	r := &registrar{w, t, ""}
	r.sponsor = r.Person("sam-" + strings.ToLower(rand.Text()[:6])).ID
	if on, err := r.Agents.Registering(t.Context(), estover.DefaultTenant); on || err != nil {
		t.Errorf("a server that was just set up lets clients register themselves (%v)", err)
	}
	r.turn(true)
	return r
}

func (r *registrar) turn(on bool) {
	r.t.Helper()
	if err := r.Agents.SetRegistering(r.t.Context(), oauthtest.Admin, on); err != nil {
		r.t.Fatal(err)
	}
}

// bounds are those of an agent that people let act for them, and that may read
// customers.
func (r *registrar) bounds(change ...func(*agent.Bounds)) agent.Bounds {
	b := agent.Bounds{
		Agent: agent.Spec{
			Name: "desk", Blueprint: "assistant", Sponsor: r.sponsor, Purposes: []string{"support"}, Clearance: estover.Internal,
			Client: &agent.Client{GrantTypes: []string{"authorization_code", "refresh_token"}},
		},
		Grants: []agent.Granted{{Resource: oauthtest.CRM, Actions: []string{"customer.read", "customer.write"}, Class: estover.Internal}},
	}
	for _, fn := range change {
		fn(&b)
	}
	return b
}

func (r *registrar) initial(uses int64, life time.Duration, change ...func(*agent.Bounds)) string {
	r.t.Helper()
	value, _, err := r.Agents.CreateInitialToken(r.t.Context(), oauthtest.Admin, r.bounds(change...), "test", uses, life)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(value.Reveal())
}

// said is a good registration with changes; nil takes a member away.
func metadata(change ...any) map[string]any {
	m := map[string]any{
		"client_name": "Desk <b>assistant</b>", "redirect_uris": []string{oauthtest.Callback}, "grant_types": []string{"authorization_code", "refresh_token"},
		"response_types": []string{"code"}, "token_endpoint_auth_method": "client_secret_basic",
	}
	for i := 0; i < len(change); i += 2 {
		if m[change[i].(string)] = change[i+1]; change[i+1] == nil {
			delete(m, change[i].(string))
		}
	}
	return m
}

// send sends JSON, text as it is, with a token.
func (r *registrar) send(method, path, bearer string, body any) oauthtest.Answer {
	r.t.Helper()
	text, ok := body.(string)
	if !ok {
		b, err := json.Marshal(body)
		if err != nil {
			r.t.Fatal(err)
		}
		text = string(b)
	}
	q := httptest.NewRequest(method, string(oauthtest.Issuer)+"/oauth/register"+path, strings.NewReader(text))
	q.Header.Set("Content-Type", "application/json")
	if bearer != "" {
		q.Header.Set("Authorization", "Bearer "+bearer)
	}
	return r.Do(q)
}

func (r *registrar) register(change ...any) oauthtest.Answer {
	r.t.Helper()
	a := r.send(http.MethodPost, "", r.initial(1, 0), metadata(change...))
	if a.Status != http.StatusCreated {
		r.t.Fatalf("registering: %d %s", a.Status, a.Body)
	}
	return a
}

func asAgent(a oauthtest.Answer) *oauthtest.Agent {
	return &oauthtest.Agent{Agent: agent.Agent{ID: a.Text("client_id")}, Secret: a.Text("client_secret")}
}

func texts(v any) (all []string) {
	list, _ := v.([]any)
	for _, one := range list {
		all = append(all, one.(string))
	}
	return all
}

// Registration is off by default, and named only while it is on.
func TestRegistrationIsOffUntilSomebodyTurnsItOn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		named := func() bool {
			a := r.Do(httptest.NewRequest(http.MethodGet, string(oauthtest.Issuer)+"/.well-known/oauth-authorization-server", nil))
			if at, ok := a.JSON["registration_endpoint"]; ok && at != string(oauthtest.Issuer)+"/oauth/register" {
				t.Errorf("the metadata names %v", at)
			}
			return a.JSON["registration_endpoint"] != nil
		}
		if !named() {
			t.Error("the metadata does not name the endpoint while registration is on")
		}
		made, initial := r.register(), r.initial(1, 0)
		at, token := "/"+made.Text("client_id"), made.Text("registration_access_token")
		r.turn(false)
		if named() {
			t.Error("the metadata names the endpoint while registration is off")
		}
		for _, one := range []struct{ method, path, token string }{
			{http.MethodPost, "", initial}, {http.MethodPost, "", ""}, {http.MethodGet, at, token}, {http.MethodPut, at, token}, {http.MethodDelete, at, token},
		} {
			a := r.send(one.method, one.path, one.token, metadata("client_id", made.Text("client_id")))
			refused(t, one.method+" while registration is off", a, 404, "not_found")
			if !strings.Contains(a.Text("error_description"), "estover registration on") {
				t.Errorf("the refusal does not say what to do: %s", a.Body)
			}
		}
		r.turn(true)
		if a := r.send(http.MethodPost, "", initial, metadata()); a.Status != http.StatusCreated {
			t.Errorf("once it is on again: %d %s", a.Status, a.Body)
		}
	})
}

// What registers itself is an agent with a sponsor, and no more than a person
// let it be.
func TestRegisteredClientIsAnAgentWithinItsBounds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		initial := r.initial(1, 0, func(b *agent.Bounds) { b.LifeSeconds, b.Agent.Client.DPoPBound = 3600, false })
		a := r.send(http.MethodPost, "", initial, metadata(
			"grant_types", []string{"authorization_code", "refresh_token", "client_credentials", "implicit", "urn:ietf:params:oauth:grant-type:token-exchange"},
			"scope", "customer.read openid admin", "unknown_member", map[string]any{"a": 1}, "logo_uri", "https://app.example/logo.png",
		))
		if a.Status != http.StatusCreated || a.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("registering: %d %s", a.Status, a.Body)
		}
		id := a.Text("client_id")
		if !strings.HasPrefix(id, "agt_") || strings.ContainsAny(id, ":/") { // A20
			t.Errorf("the client_id is %q", id)
		}
		if got := texts(a.JSON["grant_types"]); !slices.Equal(got, []string{"authorization_code", "refresh_token"}) {
			t.Errorf("the grant types are %v", got)
		}
		if a.Text("scope") != "customer.read" || a.Text("registration_client_uri") != string(oauthtest.Issuer)+"/oauth/register/"+id ||
			!strings.HasPrefix(a.Text("registration_access_token"), "est_rat_") || !strings.HasPrefix(a.Text("client_secret"), "est_cs_") ||
			a.JSON["client_id_issued_at"] == nil || a.JSON["client_secret_expires_at"] != float64(d.Now().Add(time.Hour).Unix()) && a.JSON["client_secret_expires_at"] != float64(d.Now().Add(time.Hour).Unix()-1) {
			t.Errorf("the answer is %s", a.Body)
		}
		made, err := r.Agents.Get(t.Context(), oauthtest.Admin, id)
		if err != nil || made.Sponsor != r.sponsor || made.Blueprint != "assistant" || made.Status != agent.Active || made.Registration == nil ||
			!strings.HasPrefix(made.Name, "desk-") || made.Clearance != estover.Internal || !slices.Equal(made.Purposes, []string{"support"}) || made.ExpiresAt.IsZero() {
			t.Errorf("the agent is %+v (%v)", made, err)
		}
		bot := asAgent(a)
		refused(t, "for itself", r.Ask(bot), 400, "unauthorized_client")

		// The person who is asked is told, and what they agree to is worth no more.
		ann := r.Person("ann")
		page := ann.Ask(bot, "scope", "customer.read customer.write")
		if !strings.Contains(page.Body, "It registered itself") || !strings.Contains(page.Body, "Desk &lt;b&gt;assistant&lt;/b&gt;") || !strings.Contains(page.Body, "Nobody has checked") || strings.Contains(page.Body, "logo.png") {
			t.Errorf("the page does not say that the client registered itself:\n%s", page.Body)
		}
		back := oauthtest.Back(ann, ann.Post("/oauth/consent", ann.Fill(page, "/oauth/consent")))
		got := granted(t, "with a code", r.Redeem(bot, back.Get("code")))
		if got.Text("scope") != "customer.read" || got.Text("refresh_token") == "" {
			t.Errorf("the token is %s", got.Body)
		}
		for _, want := range []string{"registration.create", "initial_token.create", "registration.set"} {
			if n := count(t, d, `select count(*) from audit where action = $1 and outcome = 'done'`, want); n == 0 {
				t.Errorf("no %s is on record", want)
			}
		}
		secrets := []string{initial, a.Text("registration_access_token"), a.Text("client_secret")}
		for _, s := range secrets {
			n := count(t, d, `select count(*) from agent where registration like $1`, "%"+s+"%") + count(t, d, `select count(*) from initial_token where bounds like $1`, "%"+s+"%")
			if n != 0 {
				t.Error("a value that opens something is stored")
			}
		}
	})
}

// A client that need not authenticate gets no secret, and none of the grant
// types that rest on one.
func TestRegisteredPublicClient(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		initial := r.initial(1, 0, func(b *agent.Bounds) {
			b.Agent.Client.GrantTypes = append(b.Agent.Client.GrantTypes, "client_credentials")
		})
		a := r.send(http.MethodPost, "", initial, metadata("token_endpoint_auth_method", "none", "redirect_uris", []string{"http://127.0.0.1/callback", "https://app.example/callback"},
			"application_type", "native", "grant_types", []string{"authorization_code", "client_credentials"}))
		if a.Status != http.StatusCreated || a.Text("client_secret") != "" || a.JSON["client_secret_expires_at"] != nil || a.Text("application_type") != "native" ||
			!slices.Equal(texts(a.JSON["grant_types"]), []string{"authorization_code"}) {
			t.Fatalf("registering: %d %s", a.Status, a.Body)
		}
		bot, ann := asAgent(a), r.Person("ann")
		code := ann.Code(bot, "redirect_uri", "http://127.0.0.1:50123/callback")
		f := oauthtest.Form("grant_type", "authorization_code", "code", code, "code_verifier", oauthtest.Verifier, "client_id", bot.ID)
		granted(t, "a code, by its name alone", r.Do(oauthtest.Request("/oauth/token", f)))

		own := r.initial(1, 0, func(b *agent.Bounds) { b.Agent.Client.GrantTypes = []string{"client_credentials"} })
		a = r.send(http.MethodPost, "", own, metadata("grant_types", []string{"client_credentials"}, "redirect_uris", nil, "response_types", nil))
		if a.Status != http.StatusCreated || len(texts(a.JSON["response_types"])) != 0 {
			t.Fatalf("a client without people: %d %s", a.Status, a.Body)
		}
		granted(t, "for itself, as the token allows", r.Ask(asAgent(a), "resource", oauthtest.CRM))
	})
}

func TestRegistrationRefusesWhatAClientCannotSay(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		clock := dbtest.NewClock(d)
		initial := r.initial(1, 0)
		const redirect, invalid = "invalid_redirect_uri", "invalid_client_metadata"
		list := func(s ...string) []string { return s }
		for _, c := range []struct {
			what string
			body any
			code string
		}{
			{"no redirect URI", metadata("redirect_uris", nil), redirect},
			{"http", metadata("redirect_uris", list("http://app.example/callback")), redirect},
			{"a scheme of its own", metadata("redirect_uris", list("com.example.app:/callback")), redirect},
			{"a script", metadata("redirect_uris", list("javascript:alert(1)")), redirect},
			{"a user", metadata("redirect_uris", list("https://good@evil.example/")), redirect},
			{"a fragment", metadata("redirect_uris", list("https://app.example/#x")), redirect},
			{"a backslash", metadata("redirect_uris", list(`https://app.example\@evil.example/`)), redirect},
			{"dots", metadata("redirect_uris", list("https://app.example/a/%2e%2e/b")), redirect},
			{"a dot at the end of the host", metadata("redirect_uris", list("https://app.example./")), redirect},
			{"an upper-case host", metadata("redirect_uris", list("https://App.example/")), redirect},
			{"a web application on the person's machine", metadata("application_type", "web", "redirect_uris", list("http://localhost/callback")), redirect},
			{"a web application there, with https", metadata("application_type", "web", "redirect_uris", list("https://localhost/callback")), redirect},
			{"too many redirect URIs", metadata("redirect_uris", slices.Repeat(list(oauthtest.Callback), 21)), redirect},
			{"another sort of application", metadata("application_type", "toaster"), invalid},
			{"grant types of nobody's", metadata("grant_types", list("implicit", "password")), invalid},
			{"a response type that does not fit", metadata("response_types", list("token")), invalid},
			{"client_secret_jwt", metadata("token_endpoint_auth_method", "client_secret_jwt"), invalid},
			{"a certificate by its name", metadata("token_endpoint_auth_method", "tls_client_auth"), invalid},
			{"private_key_jwt without keys", metadata("token_endpoint_auth_method", "private_key_jwt"), invalid},
			{"keys to be fetched", metadata("token_endpoint_auth_method", "private_key_jwt", "jwks_uri", "https://app.example/jwks"), invalid},
			{"a private key", metadata("token_endpoint_auth_method", "private_key_jwt", "jwks", map[string]any{"keys": []any{map[string]any{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "d": "AA"}}}), invalid},
			{"a symmetric key", metadata("token_endpoint_auth_method", "private_key_jwt", "jwks", map[string]any{"keys": []any{map[string]any{"kty": "oct", "k": "AA"}}}), invalid},
			{"a client_id of its own", metadata("client_id", "agent:agt_1"), invalid},
			{"a secret of its own", metadata("client_secret", "s3cret"), invalid},
			{"a logo that is a script", metadata("logo_uri", "javascript:alert(1)"), invalid},
			{"ID tokens without a signature", metadata("id_token_signed_response_alg", "none"), invalid},
			{"a scope with a quote", metadata("scope", `a"b`), invalid},
			{"a number as the name", metadata("client_name", 1), invalid},
			{"a name that comes twice", `{"client_name":"a","client_name":"b"}`, invalid},
			{"a list", `[]`, invalid},
			{"nothing", ``, invalid},
			{"text", `"x"`, invalid},
			{"half of it", `{"client_name":`, invalid},
			{"a software statement that is none", metadata("software_statement", "x"), "invalid_software_statement"},
			{"a software statement of another kind", metadata("software_statement", 1), "invalid_software_statement"},
			{"a software statement", metadata("software_statement", r.Assertion(r.Agent("vendor-"+strings.ToLower(rand.Text()[:6])))), "unapproved_software_statement"},
			{"too much", `{"client_name":"` + strings.Repeat("x", 64<<10) + `"}`, "invalid_request"},
		} {
			a := r.send(http.MethodPost, "", initial, c.body)
			refused(t, c.what, a, 400, c.code)
			if a.Text("error_description") == "" {
				t.Errorf("%s: the refusal does not say why: %s", c.what, a.Body)
			}
			clock.Advance(2 * time.Second) // failures are limited
		}
		q := httptest.NewRequest(http.MethodPost, string(oauthtest.Issuer)+"/oauth/register", strings.NewReader("client_name=x"))
		q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		q.Header.Set("Authorization", "Bearer "+initial)
		refused(t, "a form", r.Do(q), 400, "invalid_request")
		if a := r.send(http.MethodGet, "", initial, ""); a.Status != http.StatusMethodNotAllowed {
			t.Errorf("GET: %d %s", a.Status, a.Body)
		}
		// None of that has used the token up.
		if a := r.send(http.MethodPost, "", initial, metadata()); a.Status != http.StatusCreated {
			t.Errorf("after all that was refused: %d %s", a.Status, a.Body)
		}
	})
}

// However many come with a token that is good once, on one node or two, exactly
// one is registered.
func TestInitialTokenIsGoodOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one := &registrar{oauthtest.Node(t, d, key), t, ""}
		two := &registrar{oauthtest.Node(t, d, key), t, ""}
		one.sponsor = one.Person("sam").ID
		one.turn(true)
		initial := one.initial(1, 0)
		won := 0
		for _, a := range atOnce(64, func(i int) oauthtest.Answer {
			return []*registrar{one, two}[i%2].send(http.MethodPost, "", initial, metadata())
		}) {
			switch {
			case a.Status == http.StatusCreated:
				won++
			case a.Status == http.StatusTooManyRequests: // the limit of failures
			default:
				refused(t, "a token that is used up", a, 401, "invalid_token")
			}
		}
		if n := count(t, d, `select count(*) from agent where registration is not null`); won != 1 || n != 1 {
			t.Errorf("of 64 with one token %d were registered, and there are %d agents; want 1", won, n)
		}
		clock := dbtest.NewClock(d)
		clock.Advance(time.Minute)
		thrice, short, ended := one.initial(3, 0), one.initial(1, time.Minute), one.initial(1, 0)
		won = 0
		for range 5 {
			if one.send(http.MethodPost, "", thrice, metadata()).Status == http.StatusCreated {
				won++
			}
		}
		if won != 3 {
			t.Errorf("a token for three uses was good for %d", won)
		}
		all, err := one.Agents.InitialTokens(t.Context(), oauthtest.Admin)
		if err != nil || len(all) != 2 {
			t.Errorf("there are %d tokens (%v), want 2", len(all), err)
		}
		for _, one_ := range all {
			if one_.ExpiresAt.Sub(one_.CreatedAt) > time.Minute {
				if err := one.Agents.EndInitialToken(t.Context(), oauthtest.Admin, one_.ID); err != nil {
					t.Error(err)
				}
			}
		}
		clock.Advance(time.Minute)
		for what, value := range map[string]string{"expired": short, "ended": ended, "none": "", "made up": "est_it_x", "cut": short[:len(short)-1], "of another kind": one.register().Text("registration_access_token")} {
			a := one.send(http.MethodPost, "", value, metadata())
			refused(t, what, a, 401, "invalid_token")
			if !strings.Contains(a.Header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("%s: no challenge", what)
			}
		}
		if n := count(t, d, `select count(*) from audit where action = 'registration.create' and outcome = 'failed'`); n == 0 {
			t.Error("a token that came again is not on record")
		}
	})
}

// RFC 7592: a client reads and changes what it said, with a token that is good
// until the next change.
func TestRegistrationIsManaged(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		one, second := pair(t, d)
		r, two := opened(t, one), &registrar{second, t, ""}
		made, other := r.register(), r.register()
		id, first := made.Text("client_id"), made.Text("registration_access_token")
		at := "/" + id
		a := r.send(http.MethodGet, at, first, "")
		if a.Status != http.StatusOK || a.Text("client_id") != id || a.Text("registration_access_token") != first || a.Text("client_secret") != "" {
			t.Errorf("reading it: %d %s", a.Status, a.Body)
		}
		a = r.send(http.MethodPut, at, first, metadata("client_id", id, "client_secret", made.Text("client_secret"), "client_name", "Renamed", "redirect_uris", []string{"https://app.example/other"}))
		replaced := a.Text("registration_access_token")
		if a.Status != http.StatusOK || a.Text("client_name") != "Renamed" || replaced == first || !slices.Equal(texts(a.JSON["redirect_uris"]), []string{"https://app.example/other"}) {
			t.Fatalf("changing it: %d %s", a.Status, a.Body)
		}
		refused(t, "the token that was replaced", r.send(http.MethodGet, at, first, ""), 401, "invalid_token")
		refused(t, "another client's token", r.send(http.MethodGet, at, other.Text("registration_access_token"), ""), 401, "invalid_token")
		refused(t, "a client that is none", r.send(http.MethodGet, "/agt_none", replaced, ""), 401, "invalid_token")
		refused(t, "a client_id that is none", r.send(http.MethodGet, "/agent:x", replaced, ""), 401, "invalid_token")
		refused(t, "another client_id", r.send(http.MethodPut, at, replaced, metadata("client_id", other.Text("client_id"))), 400, "invalid_client_metadata")
		refused(t, "another secret", r.send(http.MethodPut, at, replaced, metadata("client_id", id, "client_secret", other.Text("client_secret"))), 400, "invalid_client_metadata")
		for _, member := range []string{"registration_access_token", "registration_client_uri", "client_id_issued_at", "client_secret_expires_at"} {
			refused(t, member, r.send(http.MethodPut, at, replaced, metadata("client_id", id, member, "x")), 400, "invalid_client_metadata")
		}
		won := 0
		for _, a := range atOnce(64, func(i int) oauthtest.Answer {
			return []*registrar{r, two}[i%2].send(http.MethodPut, at, replaced, metadata("client_id", id))
		}) {
			if a.Status == http.StatusOK {
				won++
				continue
			}
			if a.Status != http.StatusTooManyRequests { // so many that fail are stopped
				refused(t, "one of 64 changes", a, 401, "invalid_token")
			}
		}
		if won != 1 {
			t.Errorf("of 64 changes with one token %d were made, want 1", won)
		}
	})
}

// An update raises nothing: no grant type, no scope, no other method, no life;
// what an administrator took away does not come back.
func TestRegistrationUpdateRaisesNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		initial := r.initial(1, 0, func(b *agent.Bounds) { b.LifeSeconds, b.Agent.Client.RequirePAR = 3600, true })
		made := r.send(http.MethodPost, "", initial, metadata("grant_types", []string{"authorization_code"}, "scope", "customer.read", "dpop_bound_access_tokens", true))
		id, token := made.Text("client_id"), made.Text("registration_access_token")
		at := "/" + id
		before, err := r.Agents.Get(t.Context(), oauthtest.Admin, id)
		if err != nil {
			t.Fatal(err)
		}
		a := r.send(http.MethodPut, at, token, metadata("client_id", id, "grant_types", []string{"authorization_code", "refresh_token", "client_credentials"},
			"scope", "customer.read customer.write", "dpop_bound_access_tokens", false, "require_pushed_authorization_requests", false))
		token = a.Text("registration_access_token")
		if a.Status != http.StatusOK || !slices.Equal(texts(a.JSON["grant_types"]), []string{"authorization_code"}) || a.Text("scope") != "customer.read" ||
			a.JSON["dpop_bound_access_tokens"] != true || a.JSON["require_pushed_authorization_requests"] != true {
			t.Fatalf("asking for more: %d %s", a.Status, a.Body)
		}
		after, err := r.Agents.Get(t.Context(), oauthtest.Admin, id)
		if err != nil || !after.ExpiresAt.Equal(before.ExpiresAt) || after.Sponsor != before.Sponsor || after.Name != before.Name || after.Clearance != before.Clearance {
			t.Errorf("the agent became %+v (%v)", after, err)
		}
		for _, method := range []string{"none", "client_secret_post", "private_key_jwt"} {
			refused(t, "another method", r.send(http.MethodPut, at, token, metadata("client_id", id, "token_endpoint_auth_method", method)), 400, "invalid_client_metadata")
		}
		// An administrator takes the code away, and it stays away.
		spec := after.Spec
		spec.Client = &agent.Client{GrantTypes: []string{"refresh_token"}, Methods: spec.Client.Methods, RedirectURIs: spec.Client.RedirectURIs}
		if _, err := r.Agents.Update(t.Context(), oauthtest.Admin, id, spec); err != nil {
			t.Fatal(err)
		}
		refused(t, "what was taken away", r.send(http.MethodPut, at, token, metadata("client_id", id, "grant_types", []string{"authorization_code"})), 400, "invalid_client_metadata")

		// Nor do redirect URIs that an administrator took away, or others in their place.
		spec.Client = &agent.Client{GrantTypes: []string{"authorization_code"}, Methods: spec.Client.Methods, RedirectURIs: []string{"https://app.example/safe"}}
		if _, err := r.Agents.Update(t.Context(), oauthtest.Admin, id, spec); err != nil {
			t.Fatal(err)
		}
		for _, uri := range []string{oauthtest.Callback, "https://mallory.example/cb", "http://127.0.0.1/cb"} {
			refused(t, "the redirect URI "+uri, r.send(http.MethodPut, at, token, metadata("client_id", id, "grant_types", []string{"authorization_code"}, "redirect_uris", []string{uri})), 400, "invalid_redirect_uri")
		}
		a = r.send(http.MethodPut, at, token, metadata("client_id", id, "grant_types", []string{"authorization_code"}, "redirect_uris", []string{"https://app.example/safe"}))
		if token = a.Text("registration_access_token"); a.Status != http.StatusOK {
			t.Errorf("the redirect URI that an administrator left: %d %s", a.Status, a.Body)
		}
		spec.Client = &agent.Client{GrantTypes: []string{"refresh_token"}, Methods: spec.Client.Methods}
		if _, err := r.Agents.Update(t.Context(), oauthtest.Admin, id, spec); err != nil {
			t.Fatal(err)
		}

		// What holds the agent holds its registration, and no update lifts it.
		h, err := r.Agents.Hold(t.Context(), oauthtest.Admin, id, agent.Suspension, "we look into it")
		if err != nil {
			t.Fatal(err)
		}
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
			refused(t, method+" while it is held", r.send(method, at, token, metadata("client_id", id, "grant_types", []string{"refresh_token"})), 403, "access_denied")
		}
		if held, err := r.Agents.Get(t.Context(), oauthtest.Admin, id); err != nil || held.Status != agent.Suspended {
			t.Errorf("the agent is %s (%v)", held.Status, err)
		}
		if _, err := r.Agents.Lift(t.Context(), oauthtest.Admin, id, h.ID, "it is fine"); err != nil {
			t.Fatal(err)
		}
		if a := r.send(http.MethodGet, at, token, ""); a.Status != http.StatusOK {
			t.Errorf("once it is not held: %d %s", a.Status, a.Body)
		}
	})
}

// The end of a registration is the end of everything that the client has.
func TestRegistrationEndsWithAllThatTheClientHas(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		made, observer := r.register(), r.Agent("observer")
		bot, ann := asAgent(made), r.Person("ann")
		got := granted(t, "with a code", r.Redeem(bot, ann.Code(bot)))
		r.Tweak(observer.ID, nil)
		at, token := "/"+bot.ID, made.Text("registration_access_token")
		a := r.send(http.MethodDelete, at, token, "")
		if a.Status != http.StatusNoContent || a.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("ending it: %d %s", a.Status, a.Body)
		}
		gone, err := r.Agents.Get(t.Context(), oauthtest.Admin, bot.ID)
		if err != nil || gone.Status != agent.Retired {
			t.Errorf("the agent is %s (%v)", gone.Status, err)
		}
		refused(t, "a refresh", r.Refresh(bot, got.Text("refresh_token")), 401, "invalid_client")
		if r.Live(observer, got.Token()) {
			t.Error("its access token lives")
		}
		if n := count(t, d, `select count(*) from oauth_grant where client_id = $1 and ended_at is null`, bot.ID); n != 0 {
			t.Errorf("%d grants of it live", n)
		}
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
			refused(t, method+" afterwards", r.send(method, at, token, metadata("client_id", bot.ID)), 401, "invalid_token")
		}
	})
}

// Keys that a client registers are its way in; it replaces them, and does not
// bring back what was retired.
func TestRegisteredKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		keys := func(id string) (*oauthtest.Agent, json.RawMessage) {
			k := oauthtest.NewKey(t, "P-256")
			return &oauthtest.Agent{Key: k}, oauthtest.JWKS(t, id, k.Public())
		}
		bot, set := keys("key-1")
		own := func(b *agent.Bounds) { b.Agent.Client.GrantTypes = []string{"client_credentials"} }
		say := func(more ...any) map[string]any {
			return metadata(append([]any{"grant_types", []string{"client_credentials"}, "redirect_uris", nil, "response_types", nil, "token_endpoint_auth_method", "private_key_jwt"}, more...)...)
		}
		a := r.send(http.MethodPost, "", r.initial(1, 0, own), say("jwks", set))
		if a.Status != http.StatusCreated || a.Text("client_secret") != "" {
			t.Fatalf("registering: %d %s", a.Status, a.Body)
		}
		bot.ID = a.Text("client_id")
		granted(t, "by the key", r.AskByKey(bot, "resource", oauthtest.CRM))
		next, nextSet := keys("key-1")
		next.ID = bot.ID
		a = r.send(http.MethodPut, "/"+bot.ID, a.Text("registration_access_token"), say("jwks", nextSet, "client_id", bot.ID))
		if a.Status != http.StatusOK {
			t.Fatalf("other keys: %d %s", a.Status, a.Body)
		}
		granted(t, "by the next key", r.AskByKey(next, "resource", oauthtest.CRM))
		refused(t, "by the key that was replaced", r.AskByKey(bot, "resource", oauthtest.CRM), 401, "invalid_client")
		credentials, err := r.Agents.Credentials(t.Context(), oauthtest.Admin, bot.ID)
		if err != nil || len(credentials) != 1 {
			t.Fatalf("there are %d credentials (%v)", len(credentials), err)
		}
		if err := r.Agents.RetireCredential(t.Context(), oauthtest.Admin, bot.ID, credentials[0].ID, 0); err != nil {
			t.Fatal(err)
		}
		refused(t, "keys in the place of those that were retired", r.send(http.MethodPut, "/"+bot.ID, a.Text("registration_access_token"), say("jwks", set, "client_id", bot.ID)), 400, "invalid_client_metadata")
	})
}

// Whoever agreed to what a client said is asked again when it says something
// else.
func TestChangedRegistrationIsAskedAboutAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		made := r.register()
		bot, ann := asAgent(made), r.Person("ann")
		ann.Code(bot)
		if page := ann.Ask(bot); page.Status != http.StatusSeeOther {
			t.Errorf("asked again for the same: %d", page.Status)
		}
		if a := r.send(http.MethodPut, "/"+bot.ID, made.Text("registration_access_token"), metadata("client_id", bot.ID, "client_name", "Somebody else")); a.Status != http.StatusOK {
			t.Fatal(a.Body)
		}
		page := ann.Ask(bot)
		if page.Status != http.StatusOK || !strings.Contains(page.Body, "Somebody else") {
			t.Errorf("not asked again about another name: %d\n%s", page.Status, page.Body)
		}
	})
}

// Bounds say all that they are: nothing that gives more than one agent's own.
func TestInitialTokensHaveBounds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		for what, change := range map[string]func(*agent.Bounds){
			"no grant types":              func(b *agent.Bounds) { b.Agent.Client = nil },
			"no sponsor":                  func(b *agent.Bounds) { b.Agent.Sponsor = "" },
			"a sponsor who is nobody":     func(b *agent.Bounds) { b.Agent.Sponsor = "usr_none" },
			"a metadata URL":              func(b *agent.Bounds) { b.Agent.Client.MetadataURL = "https://app.example/client.json" },
			"agents that it runs":         func(b *agent.Bounds) { b.Agent.Client.Runs = []string{"agt_1"} },
			"resources that it serves":    func(b *agent.Bounds) { b.Agent.Client.Introspect = []string{oauthtest.CRM} },
			"tokens of others":            func(b *agent.Bounds) { b.Agent.Client.Exchanges = []string{jwtType} },
			"a certificate by its name":   func(b *agent.Bounds) { b.Agent.Client.Methods = []string{"tls_client_auth"} },
			"every action":                func(b *agent.Bounds) { b.Grants[0].Actions = []string{"*"} },
			"a class that is none":        func(b *agent.Bounds) { b.Grants[0].Class = "secret" },
			"a redirect URI that is none": func(b *agent.Bounds) { b.Agent.Client.RedirectURIs = []string{"http://app.example/"} },
		} {
			if _, _, err := r.Agents.CreateInitialToken(t.Context(), oauthtest.Admin, r.bounds(change), "", 1, 0); estover.KindOf(err) != estover.Invalid {
				t.Errorf("%s: %v, want a refusal", what, err)
			}
		}
		if _, _, err := r.Agents.CreateInitialToken(t.Context(), oauthtest.Admin, r.bounds(), "", 1001, 0); estover.KindOf(err) != estover.Invalid {
			t.Errorf("too many uses: %v", err)
		}
		if _, _, err := r.Agents.CreateInitialToken(t.Context(), oauthtest.Admin, r.bounds(), "", 1, 91*24*time.Hour); estover.KindOf(err) != estover.Invalid {
			t.Errorf("too long: %v", err)
		}
		pinned := r.initial(2, 0, func(b *agent.Bounds) { b.Agent.Client.RedirectURIs = []string{oauthtest.Callback} })
		refused(t, "a redirect URI that did not come with the token", r.send(http.MethodPost, "", pinned, metadata("redirect_uris", []string{"https://evil.example/"})), 400, "invalid_redirect_uri")
		a := r.send(http.MethodPost, "", pinned, metadata())
		refused(t, "another one later", r.send(http.MethodPut, "/"+a.Text("client_id"), a.Text("registration_access_token"),
			metadata("client_id", a.Text("client_id"), "redirect_uris", []string{"https://evil.example/"})), 400, "invalid_redirect_uri")
		// A sponsor who has left answers for nobody.
		late := r.initial(1, 0)
		if _, err := r.People.Disable(t.Context(), oauthtest.Admin, r.sponsor, "left"); err != nil {
			t.Fatal(err)
		}
		refused(t, "a sponsor who has left", r.send(http.MethodPost, "", late, metadata()), 401, "invalid_token")
	})
}

// Failures are limited, for each address.
func TestFailedRegistrationsAreLimited(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := registering(t, d)
		dbtest.NewClock(d).Hold()
		good := r.initial(1, 0)
		limited := false
		for range 40 {
			a := r.send(http.MethodPost, "", "est_it_wrong", metadata())
			limited = limited || a.Status == http.StatusTooManyRequests && a.Header.Get("Retry-After") != ""
		}
		if !limited {
			t.Error("40 failures in a row were not limited")
		}
		if a := r.send(http.MethodPost, "", good, metadata()); a.Status != http.StatusTooManyRequests {
			t.Errorf("from an address that has failed so often: %d", a.Status)
		}
		q := httptest.NewRequest(http.MethodPost, string(oauthtest.Issuer)+"/oauth/register", strings.NewReader("{}"))
		q.RemoteAddr = "198.51.100.7:1234"
		q.Header.Set("Content-Type", "application/json")
		if a := r.Do(q); a.Status != http.StatusUnauthorized {
			t.Errorf("from another address: %d %s", a.Status, a.Body)
		}
	})
}
