package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/page/pagetest"
)

const (
	deviceGrant      = "urn:ietf:params:oauth:grant-type:device_code"
	backchannelGrant = "urn:openid:params:grant-type:ciba"
	bearerGrant      = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

// A reply is what one of two servers said.
type reply struct {
	status int
	body   map[string]any
}

// twins are two servers, each a process of its own, on one PostgreSQL.
type twins struct {
	*oauthDesk
	two        *e2etest.Server
	id, secret string // of an agent that may use every grant type
	alice      visitor
}

func newTwins(t *testing.T) *twins {
	t.Helper()
	database := dbtest.Postgres(t)
	w := &twins{oauthDesk: newOAuthDesk(t, e2etest.StartOn(t, database))}
	w.two = e2etest.StartOn(t, database, "--issuer", w.URL, "--root-key", "file:"+w.Data+"-keys/root.key")
	w.id, w.secret = w.client(t, "both", "test", map[string]any{
		"grant_types":   []string{"authorization_code", "refresh_token", deviceGrant, backchannelGrant, bearerGrant},
		"redirect_uris": []string{"https://app.example/callback"},
	})
	w.admin.Apply(t, e2etest.Grant("both-reads", "both", "crm", "customer.list, customer.read", "support"))
	w.alice = newVisitor(t, w.desk, "alice")
	return w
}

// server is one or the other.
func (w *twins) server(i int) *e2etest.Server { return []*e2etest.Server{w.Server, w.two}[i%2] }

// post sends a form to one of them, as the agent that may use every grant type
// unless the form says who asks.
func (w *twins) post(t *testing.T, i int, path string, form url.Values, change ...func(*http.Request)) reply {
	s := w.server(i)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Error(err)
		return reply{}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if form.Get("client_assertion") == "" {
		req.SetBasicAuth(w.id, w.secret)
	}
	for _, fn := range change {
		fn(req)
	}
	res, err := s.HTTP(t).Do(req)
	if err != nil {
		t.Errorf("%s of server %d: %v", path, i%2+1, err)
		return reply{}
	}
	defer res.Body.Close()
	r := reply{status: res.StatusCode}
	if err := json.NewDecoder(res.Body).Decode(&r.body); err != nil {
		t.Errorf("%s of server %d: %d, %v", path, i%2+1, res.StatusCode, err)
	}
	return r
}

// atOnce does something 64 times, at one server and at the other, as nearly at
// once as can be.
func atOnce[T any](do func(i int) T) []T {
	out := make([]T, 64)
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	ready.Add(len(out))
	for i := range out {
		done.Go(func() {
			ready.Done()
			<-start
			out[i] = do(i)
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
	return out
}

// form is a form of names and values.
func form(pairs ...string) url.Values {
	f := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Set(pairs[i], pairs[i+1])
	}
	return f
}

// once checks that of 64 requests exactly one got something, and that the others
// were told this and nothing else.
func once(t *testing.T, what string, all []reply, refusal string) (won reply) {
	t.Helper()
	n := 0
	for _, r := range all {
		switch {
		case r.status == http.StatusOK || r.status == http.StatusCreated:
			n++
			won = r
		case r.body["error"] == refusal, r.status == http.StatusTooManyRequests && refusal != "invalid_grant": // so many failures in a row are stopped
		default:
			t.Errorf("%s: %d %v, want %s", what, r.status, r.body, refusal)
		}
	}
	if n != 1 {
		t.Errorf("%s: of 64 at two servers %d succeeded, want 1", what, n)
	}
	return won
}

// signedBy is a JWT with an audience that is one string.
func signedBy(t *testing.T, key jwk.Key, issuer, subject, audience string) string {
	t.Helper()
	now := time.Now()
	tok, err := jwt.NewBuilder().Issuer(issuer).Subject(subject).Audience([]string{audience}).IssuedAt(now).Expiration(now.Add(2 * time.Minute)).JwtID(rand.Text()).Build()
	must(t, err)
	signed, err := jwt.NewSerializer().Sign(jwt.WithKey(jwa.ES256(), key)).Serialize(flat{tok})
	must(t, err)
	return string(signed)
}

// newKey is a P-256 key with a name, and its public half as a set.
func newKey(t *testing.T) (key jwk.Key, public jwk.Key, set string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	key, err = jwk.Import(private)
	must(t, err)
	must(t, key.Set(jwk.KeyIDKey, "first"))
	must(t, key.Set(jwk.AlgorithmKey, jwa.ES256()))
	public, err = key.PublicKey()
	must(t, err)
	text, err := json.Marshal(map[string]any{"keys": []jwk.Key{public}})
	must(t, err)
	return key, public, string(text)
}

// code is a code that alice let the agent have.
func (w *twins) code(t *testing.T, verifier string) string {
	t.Helper()
	page := w.alice.Load("/oauth/authorize?" + w.asked(verifier).Encode())
	if page.Status == http.StatusOK {
		page = w.alice.Post("/oauth/consent", w.alice.Fill(page, "/oauth/consent"))
	}
	return sentBack(t, page)
}

func (w *twins) asked(verifier string) url.Values {
	sum := sha256.Sum256([]byte(verifier))
	return form("client_id", w.id, "response_type", "code", "redirect_uri", "https://app.example/callback", "resource", w.site.URL,
		"code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]), "code_challenge_method", "S256", "scope", "customer.read")
}

func sentBack(t *testing.T, page *pagetest.Page) string {
	t.Helper()
	to, err := url.Parse(page.Header.Get("Location"))
	if err != nil || page.Status != http.StatusSeeOther || to.Query().Get("code") == "" {
		t.Fatalf("no code: %d to %q\n%s", page.Status, page.Header.Get("Location"), page.Body)
	}
	return to.Query().Get("code")
}

// at is alice's browser, at one server or the other: what she sees is one site.
func (w *twins) at(t *testing.T, i int) *pagetest.Browser {
	t.Helper()
	s := w.server(i)
	to, err := url.Parse(s.URL)
	must(t, err)
	b := *w.alice.Browser
	b.Cookies = maps.Clone(b.Cookies)
	b.Handler = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, Transport: s.HTTP(t).Transport}
	return &b
}

// TestTwoServers: what is good once is good once, however many present it, to two
// servers that are processes of their own on one PostgreSQL (tokens.md, section 6).
func TestTwoServers(t *testing.T) {
	t.Parallel()
	w := newTwins(t)
	verifier := rand.Text() + rand.Text()

	code := w.code(t, verifier)
	redeem := form("grant_type", "authorization_code", "code", code, "code_verifier", verifier)
	won := once(t, "a code", atOnce(func(i int) reply { return w.post(t, i, "/oauth/token", redeem) }), "invalid_grant")
	if a := w.post(t, 0, "/oauth/introspect", form("token", fmt.Sprint(won.body["access_token"]))); a.body["active"] != false {
		t.Errorf("what a code bought lives on after it was presented again: %v", a.body)
	}

	// A1: the same request again gets the same successor, so that a lost answer is
	// no lost login; a second successor nobody gets.
	bought := w.post(t, 1, "/oauth/token", form("grant_type", "authorization_code", "code", w.code(t, verifier), "code_verifier", verifier))
	renew := form("grant_type", "refresh_token", "refresh_token", fmt.Sprint(bought.body["refresh_token"]))
	next := map[string]bool{}
	for _, r := range atOnce(func(i int) reply { return w.post(t, i, "/oauth/token", renew) }) {
		if r.status != http.StatusOK {
			t.Errorf("a refresh within its window: %d %v", r.status, r.body)
			continue
		}
		next[fmt.Sprint(r.body["refresh_token"])] = true
	}
	if len(next) != 1 {
		t.Errorf("64 refreshes at two servers brought %d successors, want 1", len(next))
	}

	device := w.post(t, 0, "/oauth/device", form("resource", w.site.URL))
	page := w.alice.Send(w.alice.Load("/device"), "/device", "user_code", fmt.Sprint(device.body["user_code"]))
	w.alice.decide(page)
	poll := form("grant_type", deviceGrant, "device_code", fmt.Sprint(device.body["device_code"]))
	once(t, "a device code", atOnce(func(i int) reply { return w.post(t, i, "/oauth/token", poll) }), "invalid_grant")

	named := w.post(t, 1, "/oauth/ciba", form("login_hint", "alice", "scope", "openid customer.read", "resource", w.site.URL))
	waiting := regexp.MustCompile(`href="(/device\?request=[^"]+)"`).FindStringSubmatch(w.alice.Load("/device").Body)
	if waiting == nil {
		t.Fatalf("nothing waits for alice after %d %v", named.status, named.body)
	}
	w.alice.decide(w.alice.Load(waiting[1]))
	fetch := form("grant_type", backchannelGrant, "auth_req_id", fmt.Sprint(named.body["auth_req_id"]))
	once(t, "an auth_req_id", atOnce(func(i int) reply { return w.post(t, i, "/oauth/token", fetch) }), "invalid_grant")

	pushed := w.post(t, 0, "/oauth/par", w.asked(verifier))
	come := "/oauth/authorize?" + form("client_id", w.id, "request_uri", fmt.Sprint(pushed.body["request_uri"])).Encode()
	browsers := []*pagetest.Browser{}
	for i := range 64 {
		browsers = append(browsers, w.at(t, i))
	}
	codes := 0
	for _, p := range atOnce(func(i int) *pagetest.Page { return browsers[i].Load(come) }) {
		switch {
		case p.Status == http.StatusSeeOther && strings.Contains(p.Header.Get("Location"), "code="):
			codes++
		case p.Status != http.StatusBadRequest:
			t.Errorf("a request that was pushed: %d to %q", p.Status, p.Header.Get("Location"))
		}
	}
	if codes != 1 {
		t.Errorf("of 64 completions of one pushed request at two servers %d succeeded, want 1", codes)
	}

	key, public, set := newKey(t)
	trust, err := json.Marshal(map[string]any{
		"apiVersion": "estover.dev/v1", "kind": "Trust", "metadata": map[string]any{"name": "ci"},
		"spec": map[string]any{
			"issuer": "https://ci.example", "jwks": set, "algorithms": []string{"ES256"}, "audience": w.Issuer, "single_use": true,
			"rules": []any{map[string]any{"agent": "both", "claims": map[string]string{"sub": "job"}}},
		},
	})
	must(t, err)
	w.admin.Apply(t, string(trust))
	bearer := form("grant_type", bearerGrant, "assertion", signedBy(t, key, "https://ci.example", "job", w.Issuer), "resource", w.site.URL)
	e2etest.Eventually(t, "the other server knows the trust", func() bool {
		f := form("grant_type", bearerGrant, "assertion", signedBy(t, key, "https://ci.example", "job", w.Issuer), "resource", w.site.URL)
		return w.post(t, 1, "/oauth/token", f).status == http.StatusOK
	})
	once(t, "an assertion of a workload", atOnce(func(i int) reply { return w.post(t, i, "/oauth/token", bearer) }), "invalid_grant")

	file := filepath.Join(t.TempDir(), "jwks.json")
	must(t, os.WriteFile(file, []byte(set), 0o600))
	w.admin.Must(t, "agent", "credential", "add", "both", "--jwks", file)
	by := func() url.Values {
		return form("grant_type", "client_credentials", "resource", w.site.URL,
			"client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", signedBy(t, key, w.id, w.id, w.Issuer))
	}
	e2etest.Eventually(t, "the other server knows the key", func() bool { return w.post(t, 1, "/oauth/token", by()).status == http.StatusOK })
	own := by()
	once(t, "an assertion of a client", atOnce(func(i int) reply { return w.post(t, i, "/oauth/token", own) }), "invalid_client")

	proof := func(nonce string) string {
		h := jws.NewHeaders()
		must(t, h.Set(jws.TypeKey, "dpop+jwt"))
		must(t, h.Set(jws.JWKKey, public))
		claims, err := json.Marshal(map[string]any{"jti": rand.Text(), "htm": "POST", "htu": w.Issuer + "/oauth/token", "iat": time.Now().Unix(), "nonce": nonce})
		must(t, err)
		signed, err := jws.Sign(claims, jws.WithKey(jwa.ES256(), key, jws.WithProtectedHeaders(h)))
		must(t, err)
		return string(signed)
	}
	ask := form("grant_type", "client_credentials", "resource", w.site.URL)
	with := func(proof string) func(*http.Request) { return func(r *http.Request) { r.Header.Set("DPoP", proof) } }
	nonce := ""
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.two.URL+"/oauth/token", strings.NewReader(ask.Encode()))
	must(t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("DPoP", proof(""))
	req.SetBasicAuth(w.id, w.secret)
	res, err := w.two.HTTP(t).Do(req)
	must(t, err)
	_ = res.Body.Close()
	if nonce = res.Header.Get("DPoP-Nonce"); nonce == "" {
		t.Fatalf("no nonce: %s", res.Status)
	}
	shown := proof(nonce)
	once(t, "a DPoP proof", atOnce(func(i int) reply { return w.post(t, i, "/oauth/token", ask, with(shown)) }), "invalid_dpop_proof")

	w.admin.Must(t, "registration", "on")
	var initial struct{ Token string }
	w.admin.JSON(t, &initial, "registration", "token", "desk", "--blueprint", "assistant", "--purpose", "support",
		"--grant-type", "client_credentials", "--allow", "crm=customer.read", "--clearance", "confidential")
	once(t, "an initial access token", atOnce(func(i int) reply {
		s := w.server(i)
		var r reply
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/oauth/register", strings.NewReader(`{"grant_types": ["client_credentials"]}`))
		if err != nil {
			t.Error(err)
			return r
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+initial.Token)
		res, err := s.HTTP(t).Do(req)
		if err != nil {
			t.Error(err)
			return r
		}
		defer res.Body.Close()
		r.status = res.StatusCode
		_ = json.NewDecoder(res.Body).Decode(&r.body) // what it is not, is told by its status
		return r
	}), "invalid_token")
}
