package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/page/pagetest"
)

// found adds a tenant and gives the house that its first administrator has there,
// as empty as theirs is.
func (h *house) found(name string, networks ...string) *house {
	h.t.Helper()
	var f, in struct{ Token, Issuer, Link string }
	h.must(http.MethodPost, "/v1/tenants", map[string]any{"name": name, "title": "The " + name, "private_networks": networks}, &f)
	if want := "http://localhost:" + h.port() + "/t/" + name; f.Issuer != want || f.Link != want+"/login/invitation#"+f.Token {
		h.t.Fatalf("the tenant %s is %+v, want the issuer %s", name, f, want)
	}
	other := *h
	other.addr += "/t/" + name
	other.must(http.MethodPost, "/v1/login", map[string]string{"token": f.Token}, &in)
	other.token = in.Token
	return &other
}

func (h *house) port() string {
	at, _, _ := strings.Cut(h.addr, "/")
	return at[strings.LastIndexByte(at, ':')+1:]
}

// Two tenants have things of the same names, each of its own, and tokens of its
// own issuer.
func TestTenants(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		acme := h.found("acme", "127.0.0.0/8")
		acme.apply()
		if acme.agent == h.agent {
			t.Fatal("two tenants have one agent")
		}
		for _, one := range []struct {
			h      *house
			issuer string
		}{{h, "http://localhost:" + h.port()}, {acme, "http://localhost:" + h.port() + "/t/acme"}} {
			var people struct{ Items []struct{ Name string } }
			one.h.must(http.MethodGet, "/v1/people", nil, &people)
			if len(people.Items) != 3 {
				t.Errorf("the people of %s are %v, want three", one.issuer, people.Items)
			}
			if c := claims(t, one.h.accessToken("")); c["iss"] != one.issuer || c["sub"] != "agent:"+one.h.agent {
				t.Errorf("a token of %s says %v", one.issuer, c)
			}
			for _, at := range []string{"/oauth/jwks", "/.well-known/openid-configuration"} {
				if status, body := one.h.do(http.MethodGet, at, "", nil); status != http.StatusOK {
					t.Errorf("%s%s: %d %s", one.issuer, at, status, body)
				}
			}
		}
		_, ours := h.do(http.MethodGet, "/oauth/jwks", "", nil)
		_, theirs := acme.do(http.MethodGet, "/oauth/jwks", "", nil)
		for _, kid := range kids(t, theirs) {
			if slices.Contains(kids(t, ours), kid) {
				t.Errorf("two tenants sign with the key %s", kid)
			}
		}

		// The register is for those who run the server.
		for _, c := range []struct {
			method, path string
			body         any
		}{
			{http.MethodGet, "/v1/tenants", nil},
			{http.MethodGet, "/v1/tenants/acme", nil},
			{http.MethodPost, "/v1/tenants", map[string]any{"name": "umbrella"}},
			{http.MethodPut, "/v1/tenants/acme", map[string]any{"name": "acme", "private_networks": []string{"10.0.0.0/8"}}},
			{http.MethodPost, "/v1/tenants/default/disable", map[string]any{"reason": "takeover"}},
			{http.MethodPost, "/v1/tenants/acme/enable", map[string]any{}},
			{http.MethodPost, "/v1/tenants/acme/invitations", map[string]any{}},
		} {
			if status, body := acme.do(c.method, c.path, acme.token, c.body); status != http.StatusForbidden || !strings.Contains(string(body), "kernel_installation") {
				t.Errorf("an administrator of acme does %s %s: %d %s", c.method, c.path, status, body)
			}
		}
		if status, body := h.do(http.MethodPost, "/v1/tenants", h.invite("alice"), map[string]any{"name": "umbrella"}); status != http.StatusForbidden {
			t.Errorf("an operator adds a tenant: %d %s", status, body)
		}
		// Its one-time token is for a first administrator alone.
		if status, body := h.do(http.MethodPost, "/v1/tenants/acme/invitations", h.token, map[string]any{}); status != http.StatusConflict {
			t.Errorf("a second first administrator of acme: %d %s", status, body)
		}
		// What is said of the machine is for those who run it.
		var checks struct{ Items []struct{ Name string } }
		acme.must(http.MethodGet, "/v1/doctor", nil, &checks)
		for _, c := range checks.Items {
			if !slices.Contains([]string{"log", "policy", "trusts", "stores"}, c.Name) {
				t.Errorf("the doctor tells acme of the server's %s", c.Name)
			}
		}
		if status, _ := acme.do(http.MethodGet, "/metrics", acme.token, nil); status == http.StatusOK {
			t.Error("acme reads the metrics of the server")
		}
	})
}

// send sends a form, or nothing, and gives status and body.
func (h *house) send(method, path, token string, form url.Values) (int, string) {
	h.t.Helper()
	req, err := http.NewRequest(method, "http://"+h.addr+path, strings.NewReader(form.Encode()))
	if err != nil {
		h.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// claims are what an access token says.
func claims(t *testing.T, raw string) (c map[string]any) {
	t.Helper()
	parts := strings.Split(raw, ".")
	b, err := base64.RawURLEncoding.DecodeString(parts[len(parts)/2])
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		t.Fatalf("%s is no token: %v", raw, err)
	}
	return c
}

// kids are the names of the keys of a set.
func kids(t *testing.T, jwks []byte) (all []string) {
	t.Helper()
	var set struct{ Keys []struct{ Kid string } }
	if err := json.Unmarshal(jwks, &set); err != nil || len(set.Keys) == 0 {
		t.Fatalf("no keys: %v in %s", err, jwks)
	}
	for _, k := range set.Keys {
		all = append(all, k.Kid)
	}
	return all
}

// node is another server on the database of this one.
func (h *house) node() *house {
	h.t.Helper()
	n := &house{t: h.t, key: h.key, logs: &syncBuffer{}, addr: freeAddr(h.t), config: h.config, clock: h.clock}
	n.config.Data, n.config.Listen, n.config.Gateway = filepath.Join(h.t.TempDir(), "data"), n.addr, freeAddr(h.t)
	n.config.RootKey, n.config.Issuer = "file:"+filepath.Join(h.config.Data+"-keys", "root.key"), h.issuer()
	n.start()
	return n
}

// held opens a stream that does not end by itself; cut is closed when it has ended.
func (h *house) held(token string) (cut <-chan struct{}) {
	h.t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+h.addr+"/u/crm/v1/slow", nil)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	stream, err := http.DefaultClient.Do(req)
	if err != nil || stream.StatusCode != http.StatusOK {
		h.t.Fatalf("a stream did not begin: %v %v", stream, err)
	}
	h.t.Cleanup(func() { _ = stream.Body.Close() }) // else the upstream would wait for its end
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, stream.Body) // however it ends, it does
		close(ended)
	}()
	return ended
}

// A disabled tenant gets nothing, at once, and everything again when it is
// enabled.
func TestTenantIsDisabled(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		acme := h.found("acme", "127.0.0.0/8")
		acme.apply()
		token, session := acme.accessToken(""), acme.openSession()
		asked := []struct {
			what, method, path, token string
			form                      url.Values
		}{
			{"the metadata", http.MethodGet, "/.well-known/openid-configuration", "", nil},
			{"the keys", http.MethodGet, "/oauth/jwks", "", nil},
			{"readiness", http.MethodGet, "/readyz", "", nil},
			{"a page", http.MethodGet, "/login", "", nil},
			{"a token", http.MethodPost, "/oauth/token", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {acme.agent}, "client_secret": {acme.secret}, "session": {session}}},
			{"introspection", http.MethodPost, "/oauth/introspect", "", url.Values{"client_id": {acme.agent}, "client_secret": {acme.secret}, "token": {token}}},
			{"the API", http.MethodGet, "/v1/agents", acme.token, nil},
			{"a reverse route", http.MethodGet, "/u/crm/v1/items/7", token, nil},
		}
		look := func(state string, works bool) {
			for _, a := range asked {
				if status, body := acme.send(a.method, a.path, a.token, a.form); (status == http.StatusOK || status == http.StatusNoContent) != works {
					t.Errorf("%s of %s tenant: %d %s", a.what, state, status, body)
				}
			}
		}
		look("an active", true)
		// What is under way is cut, and not only refused when it comes again.
		cut := acme.held(token)
		h.must(http.MethodPost, "/v1/tenants/acme/disable", map[string]string{"reason": "unpaid"}, nil)
		look("a disabled", false)
		select {
		case <-cut:
		case <-time.After(soon):
			t.Error("the stream of a disabled tenant goes on")
		}
		h.must(http.MethodPost, "/v1/tenants/acme/enable", map[string]string{}, nil)
		look("an enabled", true)
	})
}

// What one node does to a tenant another hears of: it gives it nothing more either,
// and cuts what is under way.
func TestTenantIsDisabledOnAnotherNode(t *testing.T) {
	h := build(t, dbtest.Postgres(t))
	acme := h.found("acme", "127.0.0.0/8")
	acme.apply()
	second := h.node()
	there := *acme
	there.addr = second.addr + "/t/acme"

	token, session := acme.accessToken(""), acme.openSession()
	asked := map[string]func() (int, string){
		"a token": func() (int, string) {
			return there.send(http.MethodPost, "/oauth/token", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {acme.agent}, "client_secret": {acme.secret}, "session": {session}})
		},
		"the API": func() (int, string) { return there.send(http.MethodGet, "/v1/agents", acme.token, nil) },
		"a route": func() (int, string) { return there.send(http.MethodGet, "/u/crm/v1/items/7", token, nil) },
		"introspection": func() (int, string) {
			return there.send(http.MethodPost, "/oauth/introspect", "", url.Values{"client_id": {acme.agent}, "client_secret": {acme.secret}, "token": {token}})
		},
	}
	for what, ask := range asked {
		if status, body := ask(); status != http.StatusOK {
			t.Fatalf("%s at another node, before: %d %s", what, status, body)
		}
	}
	cut := there.held(token)
	h.must(http.MethodPost, "/v1/tenants/acme/disable", map[string]string{"reason": "unpaid"}, nil)
	for what, ask := range asked {
		h.until(what+" is refused by another node", func() bool { status, _ := ask(); return status >= http.StatusBadRequest })
	}
	select {
	case <-cut:
	case <-time.After(30 * time.Second):
		t.Error("the stream that another node has open goes on")
	}
}

// A route of a tenant describes itself, with the tenant's issuer, and takes the
// tenant's tokens alone. What is on a private network is reached only if those who
// run the machine have said so.
func TestTenantRoutes(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	acme, closed := h.found("acme", "127.0.0.0/8"), h.found("closed")
	acme.apply()
	closed.apply()
	origin := "http://localhost:" + h.port()
	for _, c := range []struct{ path, issuer string }{
		{"/u/crm", origin},
		{"/t/acme/u/crm", origin + "/t/acme"},
		{"/t/acme/u/crm/v1/items/7", origin + "/t/acme"},
		{"/t/acme/u/erp", ""},
		{"/t/nobody/u/crm", ""},
		{"/t/default/u/crm", ""},
		{"/t/acme/acme/u/crm", ""},
		{"/t//u/crm", ""},
	} {
		var m struct {
			Resource string
			Servers  []string `json:"authorization_servers"`
			Scopes   []string `json:"scopes_supported"`
		}
		status, body := h.do(http.MethodGet, "/.well-known/oauth-protected-resource"+c.path, "", nil)
		if status == http.StatusOK {
			if err := json.Unmarshal(body, &m); err != nil {
				t.Fatal(err)
			}
		}
		if (status == http.StatusOK) != (c.issuer != "") || c.issuer != "" && (m.Resource != origin+c.path || !slices.Equal(m.Servers, []string{c.issuer}) || !slices.Contains(m.Scopes, "item.read")) {
			t.Errorf("the metadata of %s: %d %s", c.path, status, body)
		}
	}
	res, _ := h.get(http.MethodGet, "http://"+acme.addr+"/u/crm/v1/items/7")
	if c := res.Header.Get("Www-Authenticate"); res.StatusCode != http.StatusUnauthorized || param(c, "resource_metadata") != origin+"/.well-known/oauth-protected-resource/t/acme/u/crm/v1/items/7" {
		t.Errorf("a stranger at a route of acme: %d %q", res.StatusCode, c)
	}
	for resource, want := range map[string]int{"/t/acme/u/crm": http.StatusOK, "/u/crm": http.StatusBadRequest, "/t/closed/u/crm": http.StatusBadRequest, "/t/default/u/crm": http.StatusBadRequest} {
		status, body := acme.send(http.MethodPost, "/oauth/token", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {acme.agent}, "client_secret": {acme.secret}, "resource": {origin + resource}})
		if status != want {
			t.Errorf("acme asks for a token for %s: %d %s", resource, status, body)
		}
	}
	// Both have registered the same upstream, so the audience alone tells nothing.
	for _, at := range []*house{h, acme, closed} {
		for _, of := range []*house{h, acme, closed} {
			status, body := at.do(http.MethodGet, "/u/crm/v1/items/7", of.accessToken(""), nil)
			switch {
			case at != of && status != http.StatusUnauthorized:
				t.Errorf("a token of %s at a route of %s: %d %s", of.addr, at.addr, status, body)
			case at == of && at != closed && status != http.StatusOK:
				t.Errorf("a token of %s at its own route: %d %s", of.addr, status, body)
			case at == of && at == closed && (status == http.StatusOK || !strings.Contains(string(body), "not a public address")):
				t.Errorf("a tenant opens a private network by itself: %d %s", status, body)
			}
		}
	}
	// What is said of a tenant's networks holds for the sessions that there are.
	h.must(http.MethodPut, "/v1/tenants/acme", map[string]any{"name": "acme"}, nil)
	h.must(http.MethodPut, "/v1/tenants/closed", map[string]any{"name": "closed", "private_networks": []string{"127.0.0.0/8"}}, nil)
	if status, body := acme.do(http.MethodGet, "/u/crm/v1/items/7", acme.accessToken(""), nil); status == http.StatusOK || !strings.Contains(string(body), "not a public address") {
		t.Errorf("a private network that was taken away: %d %s", status, body)
	}
	if status, body := closed.do(http.MethodGet, "/u/crm/v1/items/7", closed.accessToken(""), nil); status != http.StatusOK {
		t.Errorf("a private network that was given: %d %s", status, body)
	}
}

// Targets and other vaults of a tenant are reached on private networks only if those
// who run the machine have said so.
func TestTenantTargets(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var calls atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			_ = c.Close()
		}
	}()
	for _, c := range []struct {
		h       *house
		reaches bool
	}{{h, true}, {h.found("acme", "127.0.0.0/8"), true}, {h.found("closed"), false}} {
		before := calls.Load()
		c.h.must(http.MethodPost, "/v1/secret-engines", map[string]any{"name": "cache", "kind": "redis", "address": l.Addr().String()}, nil)
		var checked struct{ OK bool }
		c.h.must(http.MethodPost, "/v1/secret-engines/cache/check", map[string]any{}, &checked)
		if got := calls.Load() > before; checked.OK || got != c.reaches {
			t.Errorf("a target on a private network of %s is reached: %v, want %v", c.h.addr, got, c.reaches)
		}
		before = calls.Load()
		status, body := c.h.do(http.MethodPost, "/v1/secret-imports", c.h.token, map[string]any{"kind": "vault", "address": "http://" + l.Addr().String(), "from": "", "to": ""})
		if got := calls.Load() > before; status < http.StatusBadRequest || got != c.reaches {
			t.Errorf("another vault on a private network of %s is reached: %v, want %v: %d %s", c.h.addr, got, c.reaches, status, body)
		}
	}
}

// A resident is somebody who is signed in at a tenant, with an agent that they let
// act for them.
type resident struct {
	*house
	*pagetest.Browser
	base        string // the path of the tenant
	app, secret string
}

// assertion is how the agent says who it is by a key of its own, to the token
// endpoint of its own tenant (RFC 7523). The key is new each time.
func (r *resident) assertion() string {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	public, err := jose.NewKey("", "1", key.Public())
	if err != nil {
		r.t.Fatal(err)
	}
	set, err := jose.NewKeys(public).MarshalJSON()
	if err != nil {
		r.t.Fatal(err)
	}
	var made struct {
		Client string `json:"client_id"`
	}
	r.must(http.MethodPost, "/v1/agents/app/credentials", map[string]any{"kind": "jwks", "jwks": json.RawMessage(set)}, &made)
	signer, err := jose.NewSigner(jose.ClientAssertion, "1", key)
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := jose.Sign(jose.ClientAssertion, signer, map[string]any{
		"iss": made.Client, "sub": made.Client, "aud": "http://localhost:" + r.port() + r.base, "jti": rand.Text(),
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

const residentVerifier = "a-verifier-of-the-tests-which-is-long-enough-0"

// resident lets alice of the tenant make a passkey, and registers an agent that
// may ask people in every way there is.
func (h *house) resident() *resident {
	h.t.Helper()
	h.must(http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "app.yaml", "text": `
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: app}
spec:
  blueprint: support
  sponsor: alice
  purposes: [support]
  clearance: confidential
  client:
    grant_types: [client_credentials, authorization_code, refresh_token, "urn:ietf:params:oauth:grant-type:token-exchange",
      "urn:ietf:params:oauth:grant-type:device_code", "urn:openid:params:grant-type:ciba"]
    subject_token_types: ["urn:ietf:params:oauth:token-type:id_token"]
    redirect_uris: ["https://app.example/callback"]
    default_resource: "` + h.upstream.URL + `"
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: app-reads}
spec: {agent: app, resource: crm, actions: [item.read], purposes: [support], class: confidential}
`}}}, nil)
	var c struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	h.must(http.MethodPost, "/v1/agents/app/credentials", map[string]string{"kind": "secret"}, &c)
	base := ""
	if _, path, ok := strings.Cut(h.addr, "/"); ok {
		base = "/" + path
	}
	at, err := url.Parse("http://" + strings.TrimSuffix(h.addr, base))
	if err != nil {
		h.t.Fatal(err)
	}
	r := &resident{house: h, base: base, app: c.ID, secret: c.Secret, Browser: pagetest.New(h.t, httputil.NewSingleHostReverseProxy(at), "http://localhost:"+h.port())}
	var invitation struct{ Token string }
	h.must(http.MethodPost, "/v1/people/alice/invitations", map[string]int{}, &invitation)
	start := r.Send(r.Load(r.base+"/login/invitation"), r.base+"/login/invitation", "invitation", invitation.Token)
	if end := r.Send(start, r.base+"/login/enrol", "label", "my laptop"); end.Status != http.StatusOK {
		h.t.Fatalf("alice could not enrol: %d %s", end.Status, end.Body)
	}
	return r
}

// prover is a key that knows this nonce.
func (r *resident) prover(nonce string) *prover {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	return &prover{h: r.house, key: key, base: "http://localhost:" + r.port() + r.base, nonce: nonce}
}

// ask posts a form as the app, by its secret, and gives the answer's members.
func (r *resident) ask(path string, pairs ...string) (int, map[string]any) {
	r.t.Helper()
	f := url.Values{"client_id": {r.app}, "client_secret": {r.secret}}
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Set(pairs[i], pairs[i+1])
	}
	status, body := r.send(http.MethodPost, path, "", f)
	var answer map[string]any
	_ = json.Unmarshal([]byte(body), &answer) // some answers have no body
	return status, answer
}

// member is what the app is answered, which has to be there.
func (r *resident) member(name, path string, pairs ...string) string {
	r.t.Helper()
	status, answer := r.ask(path, pairs...)
	value, _ := answer[name].(string)
	if value == "" {
		r.t.Fatalf("%s%s: %d %v, want %s", r.base, path, status, answer, name)
	}
	return value
}

// authorize sends alice to the authorization endpoint, lets her say yes if she is
// asked, and gives the code.
func (r *resident) authorize(pairs ...string) string {
	r.t.Helper()
	q := url.Values{"client_id": {r.app}}
	for i := 0; i+1 < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	p := r.Load(r.base + "/oauth/authorize?" + q.Encode())
	if p.Status == http.StatusOK && p.Has(r.base+"/oauth/consent") {
		p = r.Post(r.base+"/oauth/consent", r.Fill(p, r.base+"/oauth/consent"))
	}
	back, err := url.Parse(p.Header.Get("Location"))
	if err != nil {
		r.t.Fatal(err)
	}
	return back.Query().Get("code")
}

func (r *resident) request() []string {
	sum := sha256.Sum256([]byte(residentVerifier))
	return []string{
		"response_type", "code", "redirect_uri", "https://app.example/callback", "scope", "item.read",
		"code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]), "code_challenge_method", "S256",
	}
}

// redeem exchanges a code.
func (r *resident) redeem(code string) (int, map[string]any) {
	r.t.Helper()
	return r.ask("/oauth/token", "grant_type", "authorization_code", "code", code, "code_verifier", residentVerifier)
}

// Whatever is made at one tenant is nothing at another, in either direction, and
// is not used up by the attempt.
func TestTenantsShareNothing(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		acme := h.found("acme", "127.0.0.0/8")
		acme.apply()
		home, away := h.resident(), acme.resident()
		ok := func(status int, _ any) bool { return status >= 200 && status < 300 }
		// waiting says whether the token endpoint knows what it was asked for and a
		// person has not decided yet.
		waiting := func(_ int, answer map[string]any) bool {
			return answer["error"] == "authorization_pending" || answer["error"] == "slow_down"
		}
		var found struct{ ID string }
		registered := map[string]any{"client_name": "A client", "grant_types": []string{"client_credentials"}, "token_endpoint_auth_method": "client_secret_basic"}
		for _, c := range []struct {
			what string
			make func(r *resident) string
			good func(at *resident, from *resident, it string) bool // presented at a tenant, it counts
		}{
			{"a login", func(r *resident) string { return r.token }, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodGet, "/v1/people/me", it, nil))
			}},
			{"a login, at the log", func(r *resident) string { return r.token }, func(at, _ *resident, it string) bool {
				tenant := "default"
				if at.base != "" {
					tenant = "acme"
				}
				root := &house{t: t, addr: strings.TrimSuffix(at.addr, at.base)}
				status, _ := root.do(http.MethodGet, "/log/"+tenant+"/tile/entries/000.p/1", it, nil)
				return status != http.StatusUnauthorized
			}},
			{"a one-time token", func(r *resident) string {
				var in struct{ Token string }
				r.must(http.MethodPost, "/v1/people/ann/invitations", map[string]int{}, &in)
				return in.Token
			}, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodPost, "/v1/login", "", map[string]string{"token": it}))
			}},
			{"a client and its secret", func(*resident) string { return "" }, func(at, from *resident, _ string) bool {
				return ok(at.send(http.MethodPost, "/oauth/token", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {from.app}, "client_secret": {from.secret}}))
			}},
			{"an access token, at the gateway", func(r *resident) string { return r.accessToken("") }, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodGet, "/u/crm/v1/items/7", it, nil))
			}},
			{"an access token, introspected", func(r *resident) string {
				return r.member("access_token", "/oauth/token", "grant_type", "client_credentials")
			}, func(at, _ *resident, it string) bool {
				_, answer := at.ask("/oauth/introspect", "token", it)
				return answer["active"] == true
			}},
			{"an access token, explained", func(r *resident) string { return r.accessToken("") }, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodPost, "/v1/tokens/explain", at.token, map[string]string{"token": it}))
			}},
			{"an access token, exchanged", func(r *resident) string {
				return r.member("access_token", "/oauth/token", "grant_type", "client_credentials")
			}, func(at, _ *resident, it string) bool {
				return ok(at.ask("/oauth/token", "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", it,
					"subject_token_type", "urn:ietf:params:oauth:token-type:access_token"))
			}},
			{"an ID token, exchanged", func(r *resident) string {
				q := r.request()
				for i, one := range q {
					if one == "item.read" {
						q[i] = "openid item.read"
					}
				}
				_, answer := r.redeem(r.authorize(q...))
				it, _ := answer["id_token"].(string)
				return it
			}, func(at, _ *resident, it string) bool {
				return ok(at.ask("/oauth/token", "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", it,
					"subject_token_type", "urn:ietf:params:oauth:token-type:id_token"))
			}},
			{"an access token, revoked", func(r *resident) string {
				return r.member("access_token", "/oauth/token", "grant_type", "client_credentials")
			}, func(at, from *resident, it string) bool {
				at.ask("/oauth/revoke", "token", it)
				_, answer := from.ask("/oauth/introspect", "token", it)
				return answer["active"] == false
			}},
			{"a client's assertion", func(r *resident) string { return r.assertion() }, func(at, _ *resident, it string) bool {
				return ok(at.send(http.MethodPost, "/oauth/token", "", url.Values{
					"grant_type": {"client_credentials"}, "client_assertion": {it},
					"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
				}))
			}},
			{"a code", func(r *resident) string { return r.authorize(r.request()...) }, func(at, _ *resident, it string) bool { return ok(at.redeem(it)) }},
			{"a code, with its client", func(r *resident) string { return r.authorize(r.request()...) }, func(at, from *resident, it string) bool {
				stranger := *from
				stranger.house = at.house
				return ok(stranger.redeem(it))
			}},
			{"a refresh token", func(r *resident) string {
				_, answer := r.redeem(r.authorize(r.request()...))
				it, _ := answer["refresh_token"].(string)
				return it
			}, func(at, _ *resident, it string) bool {
				return ok(at.ask("/oauth/token", "grant_type", "refresh_token", "refresh_token", it))
			}},
			{"a pushed request", func(r *resident) string { return r.member("request_uri", "/oauth/par", r.request()...) }, func(at, _ *resident, it string) bool {
				return at.authorize("request_uri", it) != ""
			}},
			{"a device code", func(r *resident) string { return r.member("device_code", "/oauth/device") }, func(at, _ *resident, it string) bool {
				return waiting(at.ask("/oauth/token", "grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", it))
			}},
			{"a user code", func(r *resident) string { return r.member("user_code", "/oauth/device") }, func(at, _ *resident, it string) bool {
				return at.Post(at.base+"/device", at.Fill(at.Load(at.base+"/device"), at.base+"/device", "user_code", it)).Has(at.base + "/device/decision")
			}},
			{"a request to a person", func(r *resident) string {
				return r.member("auth_req_id", "/oauth/ciba", "login_hint", "alice", "scope", "openid item.read")
			}, func(at, _ *resident, it string) bool {
				return waiting(at.ask("/oauth/token", "grant_type", "urn:openid:params:grant-type:ciba", "auth_req_id", it))
			}},
			{"an initial access token", func(r *resident) string { return r.initialToken() }, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodPost, "/oauth/register", it, registered))
			}},
			{"a registration", func(r *resident) string {
				status, body := r.do(http.MethodPost, "/oauth/register", r.initialToken(), registered)
				var made struct {
					ID    string `json:"client_id"`
					Token string `json:"registration_access_token"`
				}
				if err := json.Unmarshal(body, &made); err != nil || made.Token == "" {
					t.Fatalf("no registration: %d %s", status, body)
				}
				return made.ID + " " + made.Token
			}, func(at, _ *resident, it string) bool {
				id, token, _ := strings.Cut(it, " ")
				return ok(at.do(http.MethodGet, "/oauth/register/"+id, token, nil))
			}},
			{"a nonce", func(r *resident) string {
				p := r.prover("")
				p.token("")
				return p.nonce
			}, func(at, _ *resident, it string) bool {
				p := at.prover(it)
				p.token("")
				return p.nonce == it // else it was told another
			}},
			{"a cookie", func(r *resident) string { return r.visit() }, func(at, _ *resident, it string) bool {
				b := pagetest.New(t, at.Handler, at.Origin)
				for _, name := range []string{"__Host-estover", "__Host-estover.acme"} {
					b.Cookies[name] = it
				}
				return b.Load(at.base+"/login/you").Status == http.StatusOK
			}},
			{"a form", func(r *resident) string {
				return r.Load(r.base+"/device").Form(t, r.base+"/device").Fields.Get("form")
			}, func(at, _ *resident, it string) bool {
				return at.Post(at.base+"/device", url.Values{"form": {it}, "user_code": {"BCDF-GHJK"}}).Status != http.StatusForbidden
			}},
			{"a passkey", func(*resident) string { return "" }, func(at, from *resident, _ string) bool {
				b := pagetest.New(t, at.Handler, at.Origin)
				b.Keys = from.Keys
				p := b.Load(at.base + "/login")
				return b.Post(at.base+"/login/passkey", b.Fill(p, at.base+"/login/passkey")).Status == http.StatusOK
			}},
			{"an agent's id", func(r *resident) string { return r.agent }, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodGet, "/v1/agents/"+it, at.token, nil))
			}},
			{"a session's id", func(r *resident) string { return r.openSession() }, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodGet, "/v1/sessions/"+it, at.token, nil))
			}},
			{"a session's end", func(r *resident) string { return r.openSession() }, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodPost, "/v1/sessions/"+it+"/end", at.token, map[string]string{"cause": "test"}))
			}},
			{"a person's id", func(r *resident) string { r.must(http.MethodGet, "/v1/people/alice", nil, &found); return found.ID }, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodPost, "/v1/people/"+it+"/invitations", at.token, map[string]int{}))
			}},
			{"an event's id", func(r *resident) string {
				var all struct{ Items []struct{ ID string } }
				r.must(http.MethodGet, "/v1/events?limit=1", nil, &all)
				return all.Items[0].ID
			}, func(at, _ *resident, it string) bool {
				return ok(at.do(http.MethodGet, "/v1/events/"+it, at.token, nil))
			}},
			{"an Idempotency-Key", func(r *resident) string {
				key := strings.ToLower(rand.Text())
				r.do(http.MethodPost, "/v1/people", r.token, map[string]string{"name": key}, "Idempotency-Key", key)
				return key
			}, func(at, _ *resident, it string) bool {
				req, err := http.NewRequest(http.MethodPost, "http://"+at.addr+"/v1/people", strings.NewReader(`{"name":"`+it+`"}`))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Authorization", "Bearer "+at.token)
				req.Header.Set("Idempotency-Key", it)
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				return res.Header.Get("Idempotent-Replayed") != ""
			}},
		} {
			for _, way := range []struct{ from, at *resident }{{home, away}, {away, home}} {
				it := c.make(way.from)
				if c.good(way.at, way.from, it) {
					t.Errorf("%s of %q counts at %q", c.what, way.from.base, way.at.base)
				}
				if !c.good(way.from, way.from, it) {
					t.Errorf("%s of %q does not count there any more", c.what, way.from.base)
				}
			}
		}

		// A page of a list goes on in the tenant in which it is asked for, wherever
		// its cursor comes from.
		var page, next struct {
			Items []struct{ ID string }
			Next  string
		}
		h.must(http.MethodGet, "/v1/sessions?limit=1", nil, &page)
		acme.must(http.MethodGet, "/v1/sessions?cursor="+url.QueryEscape(page.Next), nil, &next)
		for _, s := range next.Items {
			if status, _ := acme.do(http.MethodGet, "/v1/sessions/"+s.ID, acme.token, nil); status != http.StatusOK {
				t.Errorf("a cursor of the default tenant gives acme the session %s: %d", s.ID, status)
			}
		}
	})
}

// initialToken lets one client register itself at the tenant.
func (r *resident) initialToken() string {
	r.t.Helper()
	var alice struct{ ID string }
	var made struct{ Token string }
	r.must(http.MethodGet, "/v1/people/alice", nil, &alice)
	r.must(http.MethodPut, "/v1/registration", map[string]bool{"open": true}, nil)
	r.must(http.MethodPost, "/v1/registration/tokens", map[string]any{"agent": map[string]any{
		"name": "made", "blueprint": "support", "sponsor": alice.ID, "purposes": []string{"support"}, "clearance": "internal",
		"client": map[string]any{"grant_types": []string{"client_credentials"}},
	}}, &made)
	return made.Token
}

// visit is what the browser holds for being signed in.
func (r *resident) visit() string {
	if r.base == "" {
		return r.Cookies["__Host-estover"]
	}
	return r.Cookies["__Host-estover."+strings.TrimPrefix(r.base, "/t/")]
}
