package login_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/page/pagetest"
)

var b64 = base64.RawURLEncoding

// An idp is an OpenID provider that does what a test says, wrongly if need be.
type idp struct {
	t      *testing.T
	server *httptest.Server
	key    *rsa.PrivateKey
	db     *db.DB

	mu       sync.Mutex
	metadata map[string]any
	asked    url.Values     // the last authorization request
	claims   map[string]any // of the next ID token
	sign     func(claims map[string]any) string
	secrets  []string // that the token endpoint was shown
	info     map[string]any
}

func newIDP(t *testing.T, d *db.DB) *idp {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &idp{t: t, key: key, db: d}
	p.sign = func(c map[string]any) string { return p.rs256(p.key, "one", c) }
	mux := http.NewServeMux()
	write := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		write(w, p.metadata)
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		write(w, map[string]any{"keys": []any{map[string]any{
			"kty": "RSA", "kid": "one", "use": "sig", "n": b64.EncodeToString(key.N.Bytes()), "e": b64.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})
	mux.HandleFunc("GET /userinfo", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer at" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		write(w, p.info)
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if r.PostFormValue("code") != "good" || b64.EncodeToString(sum[:]) != p.asked.Get("code_challenge") || r.PostFormValue("redirect_uri") != p.asked.Get("redirect_uri") {
			w.WriteHeader(http.StatusBadRequest)
			write(w, map[string]any{"error": "invalid_grant"})
			return
		}
		_, secret, _ := r.BasicAuth()
		if secret, _ = url.QueryUnescape(secret); secret == "" {
			secret = "in the body: " + r.PostFormValue("client_secret")
		}
		p.secrets = append(p.secrets, secret)
		write(w, map[string]any{"access_token": "at", "token_type": "Bearer", "id_token": p.sign(p.claims)})
	})
	p.server = httptest.NewTLSServer(mux)
	t.Cleanup(p.server.Close)
	p.metadata = map[string]any{
		"issuer": p.server.URL, "authorization_endpoint": p.server.URL + "/authorize", "token_endpoint": p.server.URL + "/token", "jwks_uri": p.server.URL + "/keys",
		"id_token_signing_alg_values_supported": []string{"RS256"}, "authorization_response_iss_parameter_supported": true,
	}
	return p
}

// jwt is a token with this header, signed by fn.
func jwt(header, claims map[string]any, fn func(input string) []byte) string {
	h, _ := json.Marshal(header)
	c, _ := json.Marshal(claims)
	input := b64.EncodeToString(h) + "." + b64.EncodeToString(c)
	return input + "." + b64.EncodeToString(fn(input))
}

func (p *idp) rs256(key *rsa.PrivateKey, kid string, claims map[string]any) string {
	return jwt(map[string]any{"alg": "RS256", "kid": kid}, claims, func(input string) []byte {
		sum := sha256.Sum256([]byte(input))
		s, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		if err != nil {
			p.t.Error(err)
		}
		return s
	})
}

// begin sends a browser off, and gives the answer with which it would come back:
// the claims are those of a good token with changes.
func (p *idp) begin(b *pagetest.Browser, change map[string]any, query string) url.Values {
	p.t.Helper()
	to := b.Load("/login/with/corp" + query).Header.Get("Location")
	u, err := url.Parse(to)
	if err != nil || !strings.HasPrefix(to, p.server.URL+"/authorize?") {
		p.t.Fatalf("the browser is sent to %q", to)
	}
	now := p.db.Now().Unix()
	claims := map[string]any{
		"iss": p.server.URL, "sub": "sub-1", "aud": "estover", "iat": now, "exp": now + 300, "nonce": u.Query().Get("nonce"),
		"email": "alice@example.com", "email_verified": true, "preferred_username": "Alice.A@example.com", "hd": "example.com",
	}
	for k, v := range change {
		if v == nil {
			delete(claims, k)
		} else {
			claims[k] = v
		}
	}
	p.mu.Lock()
	p.asked, p.claims = u.Query(), claims
	p.mu.Unlock()
	return url.Values{"code": {"good"}, "state": {u.Query().Get("state")}, "iss": {p.server.URL}}
}

// come is the browser that comes back with an answer.
func come(b *pagetest.Browser, answer url.Values) *pagetest.Page {
	b.T.Helper()
	return b.Load("/login/back/corp?" + answer.Encode())
}

// federated is a world whose people may sign in at a provider.
func federated(t *testing.T, d *db.DB, change func(*directory.ProviderSpec)) (*world, *idp) {
	t.Helper()
	w, p := open(t, d), newIDP(t, d)
	pool := x509.NewCertPool()
	pool.AddCert(p.server.Certificate())
	w.fetcher = func(directory.Provider) (*edge.Fetcher, error) {
		return &edge.Fetcher{Dialer: &edge.Dialer{}, Opening: edge.Opening{Hosts: []string{"127.0.0.1"}}, Roots: pool}, nil
	}
	spec := directory.ProviderSpec{Name: "corp", Preset: "okta", Issuer: p.server.URL, ClientID: "estover", Secret: "idp/corp"}
	if change != nil {
		change(&spec)
	}
	if _, err := w.people.PutProvider(t.Context(), root, spec, ""); err != nil {
		t.Fatal(err)
	}
	return w, p
}

// whoami is who is signed in, "" for nobody.
func (w *world) whoami(b *pagetest.Browser) directory.Visit {
	w.t.Helper()
	v, err := w.people.Visit(w.t.Context(), estover.DefaultTenant, b.Cookies["__Host-estover"])
	if err != nil {
		return directory.Visit{}
	}
	return *v
}

func TestProvider(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, p := federated(t, d, func(s *directory.ProviderSpec) { s.Match = "email" })
		alice, err := w.people.Create(t.Context(), root, directory.Spec{Name: "alice", Email: "alice@example.com"}, "")
		if err != nil {
			t.Fatal(err)
		}
		b := w.browser()
		if page := b.Load("/login?to=/login/you"); !strings.Contains(page.Body, "Continue with Okta") || !strings.Contains(page.Body, `href="/login/with/corp?to=%2Flogin%2Fyou"`) {
			t.Errorf("the sign-in page is\n%s", page.Body)
		}
		answer := p.begin(b, nil, "?to=/login/you")
		for name, want := range map[string]string{
			"response_type": "code", "client_id": "estover", "scope": "openid profile email", "code_challenge_method": "S256",
			"redirect_uri": string(issuer) + "/login/back/corp", "prompt": "",
		} {
			if got := p.asked.Get(name); got != want {
				t.Errorf("the provider is asked with %s %q, want %q", name, got, want)
			}
		}
		if page := come(b, answer); page.Status != http.StatusSeeOther || page.Header.Get("Location") != "/login/you" {
			t.Fatalf("coming back: %d to %q\n%s", page.Status, page.Header.Get("Location"), page.Body)
		}
		v := w.whoami(b)
		if v.Person.ID != alice.ID || v.Strong() || v.Caller.Strength != estover.BySecret {
			t.Errorf("alice is signed in as %+v", v)
		}
		if !slices.Equal(p.secrets, []string{"the secret at idp/corp for " + strings.TrimPrefix(p.server.URL, "https://")}) {
			t.Errorf("the token endpoint was shown %v", p.secrets)
		}
		// The subject is linked, and the address does not matter any more.
		again := w.browser()
		come(again, p.begin(again, map[string]any{"email": "other@example.com"}, ""))
		if v := w.whoami(again); v.Person.ID != alice.ID {
			t.Errorf("with another address alice is %+v", v.Person)
		}
		// Whoever else has the address there is somebody else, and with an address
		// that nobody has verified nobody.
		for name, change := range map[string]map[string]any{
			"an address that is not verified": {"sub": "sub-2", "email_verified": false},
			"an address that says nothing":    {"sub": "sub-2", "email_verified": nil},
			"nobody's address":                {"sub": "sub-3", "email": "eve@example.com"},
			"no address":                      {"sub": "sub-4", "email": nil},
		} {
			eve := w.browser()
			if page := come(eve, p.begin(eve, change, "")); page.Status != http.StatusForbidden || w.whoami(eve).Person.ID != "" || !strings.Contains(page.Body, "not known here") {
				t.Errorf("%s: %d", name, page.Status)
			}
		}
		if n := refusals(t, d); n != 4 {
			t.Errorf("%d strangers are on record, want 4", n)
		}
		if _, err := w.people.Disable(t.Context(), root, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		late := w.browser()
		if page := come(late, p.begin(late, nil, "")); page.Status != http.StatusUnauthorized || w.whoami(late).Person.ID != "" {
			t.Errorf("somebody who is disabled: %d", page.Status)
		}
	})
}

// TestA13AsClient: an answer counts if it is the provider's own, to the browser
// that asked, once.
func TestA13AsClient(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, p := federated(t, d, func(s *directory.ProviderSpec) { s.Create, s.Claims = true, map[string]string{"hd": "example.com"} })
		clock := dbtest.NewClock(d)
		refused := func(name string, b *pagetest.Browser, answer url.Values) {
			t.Helper()
			if page := come(b, answer); page.Status < 400 || page.Status >= 500 || w.whoami(b).Person.ID != "" || page.Header.Get("Location") != "" {
				t.Errorf("%s: %d to %q", name, page.Status, page.Header.Get("Location"))
			}
		}
		for name, change := range map[string]map[string]any{
			"another nonce": {"nonce": "x"}, "no nonce": {"nonce": nil}, "another audience": {"aud": "other"}, "another issuer": {"iss": "https://evil.example"},
			"two audiences without azp": {"aud": []string{"estover", "other"}}, "another azp": {"azp": "other"}, "a token that has expired": {"exp": d.Now().Add(-time.Hour).Unix()},
			"no subject": {"sub": nil}, "a long subject": {"sub": strings.Repeat("s", 300)}, "another domain": {"hd": "evil.example"}, "no domain": {"hd": nil},
		} {
			b := w.browser()
			refused(name, b, p.begin(b, change, ""))
		}
		stranger, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		good := p.sign
		for name, sign := range map[string]func(map[string]any) string{
			"another key":    func(c map[string]any) string { return p.rs256(stranger, "one", c) },
			"an unknown key": func(c map[string]any) string { return p.rs256(stranger, "two", c) },
			"no signature": func(c map[string]any) string {
				return jwt(map[string]any{"alg": "none"}, c, func(string) []byte { return nil })
			},
			"the public key as a secret": func(c map[string]any) string {
				return jwt(map[string]any{"alg": "HS256", "kid": "one"}, c, func(input string) []byte {
					m := hmac.New(sha256.New, x509.MarshalPKCS1PublicKey(&p.key.PublicKey))
					m.Write([]byte(input))
					return m.Sum(nil)
				})
			},
			"no token": func(map[string]any) string { return "" },
		} {
			b := w.browser()
			p.sign = sign
			refused(name, b, p.begin(b, nil, ""))
		}
		p.sign = good
		clock.Advance(10 * time.Minute) // so many failures from one address wait
		for name, change := range map[string]func(url.Values){
			"another issuer in the answer": func(q url.Values) { q.Set("iss", "https://evil.example") },
			"no issuer in the answer":      func(q url.Values) { q.Del("iss") },
			"another state":                func(q url.Values) { q.Set("state", "B"+q.Get("state")[1:]) },
			"no state":                     func(q url.Values) { q.Del("state") },
			"another code":                 func(q url.Values) { q.Set("code", "stolen") },
			"an error":                     func(q url.Values) { q.Set("error", "access_denied\n<script>") },
		} {
			b := w.browser()
			answer := p.begin(b, nil, "")
			change(answer)
			refused(name, b, answer)
		}
		clock.Advance(10 * time.Minute)
		victim, attacker := w.browser(), w.browser()
		victim.Load("/login")
		refused("the answer to another browser", victim, p.begin(attacker, nil, ""))
		b := w.browser()
		late := p.begin(b, nil, "")
		clock.Advance(11 * time.Minute)
		refused("an answer after eleven minutes", b, late)

		answer := p.begin(b, map[string]any{"azp": "estover"}, "?to=https://evil.example")
		if page := come(b, answer); page.Header.Get("Location") != "/login/you" {
			t.Errorf("a good answer leads to %q", page.Header.Get("Location"))
		}
		delete(b.Cookies, "__Host-estover")
		refused("the same answer again", b, answer)

		p.mu.Lock()
		p.metadata["issuer"] = "https://other.example"
		p.mu.Unlock()
		clock.Advance(time.Hour)
		if page := b.Load("/login/with/corp"); page.Status != http.StatusServiceUnavailable || page.Header.Get("Location") != "" {
			t.Errorf("metadata of another issuer: %d to %q", page.Status, page.Header.Get("Location"))
		}
		p.mu.Lock()
		p.metadata["issuer"] = p.server.URL
		p.mu.Unlock()
		if page := b.Load("/login/with/corp"); page.Status != http.StatusServiceUnavailable {
			t.Errorf("a provider that has just failed is asked again: %d", page.Status)
		}
		clock.Advance(11 * time.Second)
		if page := b.Load("/login/with/corp"); page.Status != http.StatusSeeOther {
			t.Errorf("a provider that failed ten seconds ago: %d", page.Status)
		}
		if page := b.Load("/login/with/nobody"); page.Status != http.StatusNotFound {
			t.Errorf("a provider that is not there: %d", page.Status)
		}
	})
}

// Whoever is not known is added, where that is wanted, and roles follow claims.
func TestProviderCreatesAndGivesRoles(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, p := federated(t, d, func(s *directory.ProviderSpec) {
			s.Create, s.RolesClaim, s.Roles = true, "/realm/groups", map[string][]string{"admin": {"chiefs"}, "auditor": {"audit", "law"}}
		})
		w.person("alice.a") // the name is taken
		in := func(groups ...any) directory.Visit {
			t.Helper()
			b := w.browser()
			come(b, p.begin(b, map[string]any{"realm": map[string]any{"groups": groups}}, ""))
			return w.whoami(b)
		}
		v := in("law", "staff")
		if v.Person.Name != "alice.a-2" || v.Person.Email != "alice@example.com" || v.Person.ManagedBy != "provider/corp" || !slices.Equal(v.Person.Roles, []estover.Role{estover.Auditor}) {
			t.Errorf("who comes in is %+v", v.Person)
		}
		if again := in("chiefs", "audit"); again.Person.ID != v.Person.ID || !slices.Equal(again.Person.Roles, []estover.Role{estover.Admin, estover.Auditor}) {
			t.Errorf("with more groups: %+v", again.Person)
		}
		if last := in("staff"); !slices.Contains(last.Person.Roles, estover.Admin) {
			t.Errorf("the last administrator is one no more: %+v", last.Person)
		}
		if _, err := w.people.Create(t.Context(), root, directory.Spec{Name: "root", Roles: []estover.Role{estover.Admin}}, ""); err != nil {
			t.Fatal(err)
		}
		if none := in("staff"); len(none.Person.Roles) != 0 {
			t.Errorf("without a group: %+v", none.Person)
		}
		b := w.browser()
		if page := come(b, p.begin(b, map[string]any{"sub": "sub-9", "preferred_username": "eve"}, "")); page.Status != http.StatusForbidden {
			t.Errorf("somebody new with an address that is taken: %d", page.Status)
		}
	})
}

// When somebody proved who they are is what the provider says; and only a
// provider that is as good as a passkey is one.
func TestProviderStepUp(t *testing.T) {
	d := dbtest.Open(t)
	w, p := federated(t, d, func(s *directory.ProviderSpec) { s.Create, s.Strong = true, true })
	b := w.browser()
	old := d.Now().Add(-time.Hour)
	come(b, p.begin(b, map[string]any{"auth_time": old.Unix()}, ""))
	v := w.whoami(b)
	if !v.Strong() || v.Since.Unix() != old.Unix() {
		t.Fatalf("alice is signed in as %+v, want since an hour ago", v)
	}
	if you := b.Load("/login/you"); you.Has("/login/you/codes") {
		t.Error("a sign-in of an hour ago is enough to change something")
	}
	answer := p.begin(b, map[string]any{"auth_time": d.Now().Unix()}, "?again=1&to=/login/you")
	if p.asked.Get("prompt") != "login" || p.asked.Get("max_age") != "0" {
		t.Errorf("the provider is asked %v", p.asked)
	}
	come(b, answer)
	if you := b.Load("/login/you"); !you.Has("/login/you/codes") {
		t.Errorf("after signing in once more: %d\n%s", you.Status, you.Body)
	}
}

// A provider that does not say when it was shown who somebody is cannot confirm
// that it was now, and the visit stays what it was.
func TestProviderWithoutTime(t *testing.T) {
	d := dbtest.Open(t)
	w, p := federated(t, d, func(s *directory.ProviderSpec) { s.Create, s.Strong = true, true })
	clock := dbtest.NewClock(d)
	b := w.browser()
	come(b, p.begin(b, nil, ""))
	clock.Advance(time.Hour)
	before := w.whoami(b)
	if page := come(b, p.begin(b, nil, "?again=1&to=/login/you")); page.Status != http.StatusForbidden || !strings.Contains(page.Body, "auth_time") {
		t.Errorf("to be asked once more, without auth_time: %d to %q", page.Status, page.Header.Get("Location"))
	}
	if v := w.whoami(b); !v.Since.Equal(before.Since) || v.Caller.Grant != before.Caller.Grant {
		t.Errorf("the visit has become %+v", v)
	}
	if you := b.Load("/login/you"); you.Has("/login/you/codes") {
		t.Error("a sign-in that nobody has asked for is enough to change something")
	}
}

// What a provider says that belongs to no sign-in here is on record, though not
// as often as somebody likes.
func TestProviderAnswersAreOnRecord(t *testing.T) {
	d := dbtest.Open(t)
	w, p := federated(t, d, func(s *directory.ProviderSpec) { s.Create = true })
	dbtest.NewClock(d).Hold()
	for range 30 {
		b := w.browser()
		if page := come(b, p.begin(b, map[string]any{"nonce": "stolen"}, "")); page.Status != http.StatusForbidden {
			t.Fatalf("a token of another sign-in: %d", page.Status)
		}
	}
	if n := refusals(t, d); n != 5 {
		t.Errorf("%d of 30 forged answers are on record, want 5", n)
	}
	b := w.browser()
	answer := p.begin(b, nil, "")
	answer.Set("iss", "https://evil.example")
	dbtest.NewClock(d).Advance(time.Minute)
	if come(b, answer); refusals(t, d) != 6 {
		t.Errorf("%d refusals are on record after an answer of another server, want 6", refusals(t, d))
	}
}

// Strangers are turned away no more often than others who fail.
func TestStrangersAreLimited(t *testing.T) {
	d := dbtest.Open(t)
	w, p := federated(t, d, nil)
	dbtest.NewClock(d).Hold()
	for range 20 {
		b := w.browser()
		if page := come(b, p.begin(b, nil, "")); page.Status != http.StatusForbidden {
			t.Fatalf("a stranger: %d", page.Status)
		}
	}
	b := w.browser()
	if page := come(b, p.begin(b, nil, "")); page.Status != http.StatusTooManyRequests {
		t.Errorf("a stranger for the 21st time: %d, want 429", page.Status)
	}
}

// A provider whose ID tokens say little is asked for the rest, and only about the
// same person.
func TestProviderUserInfo(t *testing.T) {
	d := dbtest.Open(t)
	w, p := federated(t, d, func(s *directory.ProviderSpec) { s.Create = true })
	little := map[string]any{"email": nil, "email_verified": nil, "preferred_username": nil}
	p.metadata["userinfo_endpoint"] = p.server.URL + "/userinfo"
	p.info = map[string]any{"sub": "sub-9", "email": "eve@example.com", "email_verified": true}
	b := w.browser()
	if page := come(b, p.begin(b, little, "")); page.Status != http.StatusForbidden || w.whoami(b).Person.ID != "" {
		t.Errorf("what is said of somebody else: %d", page.Status)
	}
	// That an address is verified is said beside the address, and not of another.
	p.info = map[string]any{"sub": "sub-1", "email": "root@example.com", "preferred_username": "alice"}
	half := w.browser()
	come(half, p.begin(half, map[string]any{"email": nil, "email_verified": true, "preferred_username": nil}, ""))
	if v := w.whoami(half); v.Person.ID == "" || v.Person.Email != "" {
		t.Errorf("with an address that is not verified: %+v", v.Person)
	}
	little["sub"] = "sub-2"
	p.info = map[string]any{"sub": "sub-2", "email": "alice@example.com", "email_verified": true, "preferred_username": "alice", "iss": "https://evil.example"}
	come(b, p.begin(b, little, ""))
	if v := w.whoami(b); v.Person.Name != "alice-2" || v.Person.Email != "alice@example.com" {
		t.Errorf("who comes in is %+v", v.Person)
	}
}

// A client secret is sent as the provider wants it, and a client without one
// says its name.
func TestProviderAuthentication(t *testing.T) {
	d := dbtest.Open(t)
	w, p := federated(t, d, func(s *directory.ProviderSpec) { s.Create = true })
	host := strings.TrimPrefix(p.server.URL, "https://")
	p.metadata["token_endpoint_auth_methods_supported"] = []string{"client_secret_post"}
	b := w.browser()
	come(b, p.begin(b, nil, ""))
	spec := directory.ProviderSpec{Name: "corp", Issuer: p.server.URL, ClientID: "estover", Create: true}
	if _, err := w.people.PutProvider(t.Context(), root, spec, ""); err != nil {
		t.Fatal(err)
	}
	come(b, p.begin(b, nil, ""))
	if want := []string{"in the body: the secret at idp/corp for " + host, "in the body: "}; !slices.Equal(p.secrets, want) || w.whoami(b).Person.ID == "" {
		t.Errorf("the token endpoint was shown %q, want %q", p.secrets, want)
	}
}
