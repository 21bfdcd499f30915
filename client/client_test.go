package client_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/client"
	"estover.dev/internal/agent"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/edge"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

const (
	issuer = string(oauthtest.Issuer)
	route  = issuer + "/u/crm"
)

// A world is the server's own token service, with the customer system behind a
// route at its address, as the gateway has it.
type world struct {
	*oauthtest.World
	clock *dbtest.Clock
	web   http.RoundTripper // reaches the server under every name

	mu    sync.Mutex
	asked []string // method and path of each request, in order
	heard []string // the bodies that the customer system was sent
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d := dbtest.Open(t)
	w := &world{clock: dbtest.NewClock(d)}
	w.World = oauthtest.New(t, d)
	mux := http.NewServeMux()
	mux.Handle("/", w.Handler)
	mux.Handle("/u/crm/", edge.Front{}.Handler(http.HandlerFunc(w.crm)))
	w.web = reaching(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.asked = append(w.asked, r.Method+" "+r.URL.Path)
		w.mu.Unlock()
		mux.ServeHTTP(rw, r)
	}))
	return w
}

// reaching is a way to a server that answers to every name.
func reaching(t *testing.T, h http.Handler) *http.Transport {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com", MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// crm is the customer system: it says who calls.
func (w *world) crm(rw http.ResponseWriter, r *http.Request) {
	caller, err := w.Callers.For(r, estover.DefaultTenant, oauthtest.CRM)
	if err != nil {
		edge.WriteProblem(rw, edge.ProblemOf(err, ""))
		return
	}
	body, _ := io.ReadAll(r.Body)
	w.mu.Lock()
	w.heard = append(w.heard, string(body))
	w.mu.Unlock()
	fmt.Fprintf(rw, "%s %s", caller.Subject, caller.Strength)
}

// requests are how often something was asked for so far.
func (w *world) requests(what string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.asked {
		if a == what {
			n++
		}
	}
	return n
}

const tokenRequest = "POST /oauth/token"

func (w *world) client(t *testing.T, id string, c client.Credential, key crypto.Signer) *client.Client {
	t.Helper()
	made, err := client.New(issuer, client.Options{ID: id, Credential: c, DPoP: key, Transport: w.web})
	must(t, err)
	client.SetClock(made, w.clock.Now)
	return made
}

func (w *world) verifier(audience string) *client.Verifier {
	v := &client.Verifier{Issuer: issuer, Audience: audience, URL: "https://crm.example", Transport: w.web}
	client.SetVerifierClock(v, w.clock.Now)
	return v
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := client.NewKey()
	must(t, err)
	return key
}

// code is that of an error of the server.
func code(err error) string {
	var e *client.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

var support = client.Want{Resources: []string{oauthtest.CRM}, Purpose: "support"}

// An agent gets a token by each kind of credential, for what it wants.
func TestCredentials(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	edKey := oauthtest.NewKey(t, "Ed25519")
	ed := w.Agent("ed-bot")
	_, err := w.Agents.CreateKeySet(t.Context(), oauthtest.Admin, ed.ID, "ed", oauthtest.JWKS(t, "ed-1", edKey.Public()), 0)
	must(t, err)
	w.Set(bot, agent.Client{GrantTypes: []string{token.Own, token.Assertion}})
	platform := w.Platform("cluster", nil, bot)
	file := filepath.Join(t.TempDir(), "token")
	for name, c := range map[string]struct {
		id         string
		credential client.Credential
	}{
		"a secret":          {bot.ID, client.Secret(bot.Secret)},
		"a key":             {bot.ID, client.PrivateKey(bot.Key, "key-1")},
		"a key without id":  {bot.ID, client.PrivateKey(bot.Key, "")},
		"an Ed25519 key":    {ed.ID, client.PrivateKey(edKey, "ed-1")},
		"a workload":        {"", client.WorkloadToken(func(context.Context) (string, error) { return platform.Token(bot), nil })},
		"a workload's file": {"", client.WorkloadTokenFile(file)},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.WriteFile(file, []byte(platform.Token(bot)+"\n"), 0o600))
			for _, key := range []crypto.Signer{nil, newKey(t)} {
				want := support
				want.Scopes = []string{"customer.read"}
				got, err := w.client(t, c.id, c.credential, key).Token(t.Context(), want)
				must(t, err)
				if kind := map[bool]string{true: "Bearer", false: "DPoP"}[key == nil]; got.Type != kind || !slices.Equal(got.Scopes, want.Scopes) || !strings.HasPrefix(got.Session, "ses_") {
					t.Errorf("the token is %s for %q, want %s for %q", got, got.Scopes, kind, want.Scopes)
				}
				if left := got.Expires.Sub(w.clock.Now()); left < 14*time.Minute || left > 15*time.Minute {
					t.Errorf("the token lives for %s", left)
				}
			}
		})
	}
}

// What the server refuses is an error with its code, and with the decision where
// there was one.
func TestErrors(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	for name, c := range map[string]struct {
		credential client.Credential
		want       client.Want
		status     int
		code       string
	}{
		"a wrong secret": {client.Secret("est_cs_" + strings.Repeat("A", 44) + "000000"), support, http.StatusUnauthorized, "invalid_client"},
		"a wrong key":    {client.PrivateKey(oauthtest.NewKey(t, "P-256"), "key-1"), support, http.StatusUnauthorized, "invalid_client"},
		"no grant":       {client.Secret(bot.Secret), client.Want{Resources: []string{"https://elsewhere.example"}}, http.StatusBadRequest, "invalid_target"},
		"no such scope":  {client.Secret(bot.Secret), client.Want{Resources: support.Resources, Scopes: []string{"customer.delete"}}, http.StatusBadRequest, "invalid_scope"},
		"no session":     {client.Secret(bot.Secret), client.Want{Resources: support.Resources, Session: "ses_none"}, http.StatusBadRequest, "invalid_grant"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want.Purpose == "" && c.want.Session == "" {
				c.want.Purpose = "support"
			}
			_, err := w.client(t, bot.ID, c.credential, nil).Token(t.Context(), c.want)
			var e *client.Error
			if !errors.As(err, &e) || e.Code != c.code || e.Status != c.status || e.Description == "" {
				t.Errorf("%v, want %d %s", err, c.status, c.code)
			}
		})
	}
	w.Decider.Set(oauthtest.Deny("token.issue"))
	_, err := w.client(t, bot.ID, client.Secret(bot.Secret), nil).Token(t.Context(), support)
	var e *client.Error
	if !errors.As(err, &e) || e.Code != "access_denied" || e.Decision == "" || !strings.Contains(err.Error(), e.Decision) {
		t.Errorf("a refusal by policy is %v, want access_denied with a decision", err)
	}
}

// However many want the same token, it is asked for once, and the next one
// before it ends, while the first is still given.
func TestTokenIsKept(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	c := w.client(t, bot.ID, client.Secret(bot.Secret), nil)
	ask := func(want client.Want) string {
		t.Helper()
		got, err := c.Token(t.Context(), want)
		must(t, err)
		return got.Reveal()
	}
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			if _, err := c.Token(t.Context(), support); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	first := ask(client.Want{Resources: []string{oauthtest.CRM, oauthtest.CRM}, Purpose: "support"})
	if n := w.requests(tokenRequest); n != 1 {
		t.Fatalf("33 calls for one token are %d requests, want 1", n)
	}
	narrow := support
	narrow.Scopes = []string{"customer.read"}
	if other := ask(narrow); other == first || w.requests(tokenRequest) != 2 {
		t.Errorf("a narrower token is the same one, or took %d requests, want 2", w.requests(tokenRequest))
	}
	w.clock.Advance(11 * time.Minute)
	if ask(support) != first || w.requests(tokenRequest) != 2 {
		t.Error("a token is replaced that is still young")
	}
	w.clock.Advance(2 * time.Minute)
	if ask(support) != first {
		t.Error("a token is not given any more that has two minutes to live")
	}
	for deadline := time.Now().Add(time.Minute); ask(support) == first; {
		if time.Now().After(deadline) {
			t.Fatal("the next token does not come")
		}
	}
	w.clock.Advance(16 * time.Minute)
	before := w.requests(tokenRequest)
	second := ask(support)
	if w.requests(tokenRequest) != before+1 || second == first {
		t.Error("a token is given that has ended")
	}
}

// While the server refuses the next token, or does not answer, the one that is
// kept is given until it ends.
func TestTokenOutlastsTrouble(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	c := w.client(t, bot.ID, client.Secret(bot.Secret), nil)
	first, err := c.Token(t.Context(), support)
	must(t, err)
	w.Decider.Set(oauthtest.Deny("token.issue"))
	w.clock.Advance(13 * time.Minute)
	for start := time.Now(); time.Since(start) < 300*time.Millisecond; { // the pause keeps all but the first from the server
		got, err := c.Token(t.Context(), support)
		if err != nil || got.Reveal() != first.Reveal() {
			t.Fatalf("with two minutes to live: %v, %v", got, err)
		}
	}
	if n := w.requests(tokenRequest); n > 2 {
		t.Errorf("a refusal is asked for again at once: %d requests", n)
	}
	w.clock.Advance(2 * time.Minute)
	if _, err := c.Token(t.Context(), support); code(err) != "access_denied" {
		t.Errorf("after the end of the token: %v, want access_denied", err)
	}
}

// Whoever does not wait any more ends the request for nobody else.
func TestTokenWaitEnds(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	c := w.client(t, bot.ID, client.Secret(bot.Secret), nil)
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := c.Token(gone, support); !errors.Is(err, context.Canceled) {
		t.Errorf("whoever has left gets %v", err)
	}
	if _, err := c.Token(t.Context(), support); err != nil {
		t.Errorf("whoever came later gets %v", err)
	}
	if n := w.requests(tokenRequest); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// What hangs is given up some time, so that others may ask again.
func TestTokenIsGivenUp(t *testing.T) {
	w := newWorld(t)
	bounded := false
	c := w.client(t, "", client.WorkloadToken(func(ctx context.Context) (string, error) {
		_, bounded = ctx.Deadline()
		return "", errors.New("the platform has none")
	}), nil)
	if _, err := c.Token(t.Context(), support); err == nil || !bounded {
		t.Errorf("asking for the platform's token: %v, within a bounded time: %v", err, bounded)
	}
}

// The server is who was asked for, byte for byte, and tells of addresses that
// nobody listens to.
func TestDiscovery(t *testing.T) {
	var says string
	web := reaching(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/oauth-authorization-server/t/acme" {
			http.NotFound(rw, r)
			return
		}
		_, _ = io.WriteString(rw, says)
	}))
	const its = "https://est.example/t/acme"
	good := `{"issuer":"` + its + `","token_endpoint":"https://est.example/oauth/token","jwks_uri":"https://est.example/oauth/jwks"}`
	for name, document := range map[string]string{
		"another issuer":          strings.Replace(good, its, "https://est.example/t/other", 1),
		"an issuer with a slash":  strings.Replace(good, its, its+"/", 1),
		"an issuer in capitals":   strings.Replace(good, its, "https://EST.example/t/acme", 1),
		"two issuers":             strings.Replace(good, "{", `{"issuer":"https://evil.example",`, 1),
		"no issuer":               strings.Replace(good, `"issuer"`, `"Issuer"`, 1),
		"an endpoint in the open": strings.Replace(good, "https://est.example/oauth/token", "http://est.example/oauth/token", 1),
		"no endpoint":             strings.Replace(good, "token_endpoint", "other_endpoint", 1),
		"no JSON":                 "<html>",
	} {
		t.Run(name, func(t *testing.T) {
			says = document
			c, err := client.New(its, client.Options{ID: "agt_1", Credential: client.Secret("s3cret"), Transport: web})
			must(t, err)
			if _, err := c.Token(t.Context(), client.Want{}); err == nil || strings.Contains(err.Error(), "404") {
				t.Errorf("the error is %v, want one about the document", err)
			}
		})
	}
	says = good
	c, err := client.New(its, client.Options{ID: "agt_1", Credential: client.Secret("s3cret"), Transport: web})
	must(t, err)
	var e *client.Error
	if _, err := c.Token(t.Context(), client.Want{}); !errors.As(err, &e) || e.Status != http.StatusNotFound {
		t.Errorf("with the right document the token endpoint is asked, which is not there: %v", err)
	}
}

// What cannot work is said before anything is sent.
func TestNew(t *testing.T) {
	good := client.Options{ID: "agt_1", Credential: client.Secret("s3cret")}
	rsa := oauthtest.NewKey(t, "RSA")
	for name, c := range map[string]struct {
		issuer string
		o      client.Options
	}{
		"plain HTTP":                  {"http://est.example", good},
		"a slash at the end":          {issuer + "/", good},
		"a query":                     {issuer + "?tenant=acme", good},
		"a user":                      {"https://bot@est.example", good},
		"no URL":                      {"est.example", good},
		"no id":                       {issuer, client.Options{Credential: good.Credential}},
		"no credential":               {issuer, client.Options{ID: "agt_1"}},
		"an empty secret":             {issuer, client.Options{ID: "agt_1", Credential: client.Secret("")}},
		"an RSA key":                  {issuer, client.Options{ID: "agt_1", Credential: client.PrivateKey(rsa, "")}},
		"an RSA key for DPoP":         {issuer, client.Options{ID: "agt_1", Credential: good.Credential, DPoP: rsa}},
		"an empty certificate":        {issuer, client.Options{ID: "agt_1", Credential: client.Certificate(tls.Certificate{})}},
		"a strange way to the server": {issuer, client.Options{ID: "agt_1", Credential: client.Certificate(tls.Certificate{Certificate: [][]byte{{1}}, PrivateKey: rsa}), Transport: http.NewFileTransport(nil)}},
	} {
		if _, err := client.New(c.issuer, c.o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, there := range []string{"https://est.example", "https://est.example:8443/t/acme", "http://127.0.0.1:8080", "http://localhost:8080"} {
		if _, err := client.New(there, good); err != nil {
			t.Errorf("%s: %v", there, err)
		}
	}
}

// An agent takes up the token of another: the authority of the one, in the hands
// of the other, and nothing when there is no token.
func TestExchange(t *testing.T) {
	w := newWorld(t)
	planner, helper := w.Agent("planner"), w.Agent("helper")
	w.Set(helper, agent.Client{GrantTypes: []string{token.Own, token.Exchange}, Introspect: []string{oauthtest.CRM}})
	handed, err := w.client(t, planner.ID, client.Secret(planner.Secret), nil).Token(t.Context(), support)
	must(t, err)
	key := newKey(t)
	c := w.client(t, helper.ID, client.Secret(helper.Secret), key)
	got, err := c.Exchange(t.Context(), handed.Reveal(), client.Want{Resources: []string{oauthtest.CRM}, Scopes: []string{"customer.read"}})
	must(t, err)
	if got.Session != handed.Session || got.Expires.After(handed.Expires.Add(time.Second)) {
		t.Errorf("the token is %s, that of the planner %s", got, handed)
	}
	hc := http.Client{Transport: &client.Transport{Client: c, To: route, Source: func(context.Context) (client.Token, error) { return got, nil }}}
	if body := read(t, &hc, route+"/v1"); !strings.HasPrefix(body, "agent:"+planner.ID) {
		t.Errorf("the customer system hears %s", body)
	}
	if _, err := c.Exchange(t.Context(), "", client.Want{}); err == nil {
		t.Error("no token is exchanged for something")
	}
	workload := w.client(t, "", client.WorkloadToken(func(context.Context) (string, error) { return "x", nil }), nil)
	before := w.requests(tokenRequest)
	if _, err := workload.Exchange(t.Context(), handed.Reveal(), client.Want{}); err == nil || w.requests(tokenRequest) != before {
		t.Errorf("a workload's exchange: %v, after %d requests", err, w.requests(tokenRequest)-before)
	}
}

// A client that runs agents takes up a token in the name of one of them.
func TestExchangeAs(t *testing.T) {
	w := newWorld(t)
	planner, host, bob, eve := w.Agent("planner"), w.Agent("host"), w.Agent("bob"), w.Agent("eve")
	w.Set(host, agent.Client{GrantTypes: []string{token.Own, token.Exchange}, Introspect: []string{oauthtest.CRM}, Runs: []string{bob.ID}})
	its := func(a *oauthtest.Agent) string {
		tok, err := w.client(t, a.ID, client.Secret(a.Secret), nil).Token(t.Context(), support)
		must(t, err)
		return tok.Reveal()
	}
	c := w.client(t, host.ID, client.Secret(host.Secret), nil)
	tok, err := c.ExchangeAs(t.Context(), its(planner), its(bob), client.Want{})
	must(t, err)
	claims, err := w.verifier(oauthtest.CRM).Verify(t.Context(), tok.Reveal())
	if err != nil || claims.Subject != "agent:"+planner.ID || !slices.Equal(claims.Actors, []string{"agent:" + bob.ID}) || claims.Client != host.ID {
		t.Errorf("the token is of %s by %q, for %s: %v", claims.Subject, claims.Actors, claims.Client, err)
	}
	if _, err := c.ExchangeAs(t.Context(), its(planner), its(eve), client.Want{}); code(err) != "invalid_grant" {
		t.Errorf("in the name of an agent that it does not run: %v", err)
	}
}

// read is a GET that succeeds.
func read(t *testing.T, c *http.Client, at string) string {
	t.Helper()
	res, err := c.Get(at)
	must(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(t, err)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %s", at, res.Status, b)
	}
	return string(b)
}

// No value prints, logs or marshals what is secret.
func TestNothingIsPrinted(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	_, bindingKey, err := ed25519.GenerateKey(nil)
	must(t, err)
	o := client.Options{ID: bot.ID, Credential: client.Secret(bot.Secret), Transport: w.web}
	c, err := client.New(issuer, o)
	must(t, err)
	client.SetClock(c, w.clock.Now)
	tok, err := c.Token(t.Context(), support)
	must(t, err)
	keyed := client.Options{ID: bot.ID, Credential: client.PrivateKey(key, ""), DPoP: bindingKey}
	byKey, err := client.New(issuer, keyed)
	must(t, err)
	var out strings.Builder
	logger, inJSON := slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil))
	for _, v := range []any{o, keyed, &keyed, []client.Options{keyed}, o.Credential, c, tok, &tok, &client.Transport{Client: c, Want: support}, byKey, client.PrivateKey(key, "")} {
		fmt.Fprintf(&out, "%v %+v %#v %s %d %x\n", v, v, v, v, v, v)
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		logger.Info("", "v", v)
		inJSON.Info("", "v", v)
	}
	half := func(s string) string { return s[len(s)/2:] } // no part of it either
	for _, secret := range []string{
		bot.Secret, half(bot.Secret), tok.Reveal(), half(tok.Reveal()), fmt.Sprintf("%x", []byte(bot.Secret)), fmt.Sprintf("%x", tok.Reveal()),
		fmt.Sprintf("%x", key.Seed()), base64.StdEncoding.EncodeToString(bindingKey.Seed()[:30]), fmt.Sprintf("%x", bindingKey.Seed()),
		strings.Trim(fmt.Sprint(key.Seed()), "[]"), strings.Trim(fmt.Sprint(bindingKey.Seed()), "[]"), strings.Trim(fmt.Sprint([]byte(bot.Secret)), "[]"),
	} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is printed", secret)
		}
	}
	if !strings.Contains(out.String(), tok.Session) {
		t.Error("what is no secret is not printed either")
	}
}

// A certificate is shown where the server asks for one, which may be an address
// of its own (RFC 8705, section 5).
func TestCertificate(t *testing.T) {
	key := oauthtest.NewKey(t, "P-256")
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	var shown []string // host and path of the requests that came with the certificate
	web := reaching(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/oauth-authorization-server":
			fmt.Fprint(rw, `{"issuer":"https://est.example","token_endpoint":"https://est.example/token","jwks_uri":"https://est.example/jwks",`+
				`"mtls_endpoint_aliases":{"token_endpoint":"https://mtls.est.example:8445/token"}}`)
			return
		case "/token":
			fmt.Fprintf(rw, `{"access_token":"x","token_type":"bearer","expires_in":900,"session":%q}`, r.FormValue("client_id"))
		default:
			fmt.Fprint(rw, `{"session":{"id":"ses_1"}}`)
		}
		if len(r.TLS.PeerCertificates) == 1 && bytes.Equal(r.TLS.PeerCertificates[0].Raw, der) {
			shown = append(shown, r.Host+r.URL.Path)
		}
	}))
	c, err := client.New("https://est.example", client.Options{ID: "agt_1", Credential: client.Certificate(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}), Transport: web})
	must(t, err)
	tok, err := c.Token(t.Context(), client.Want{})
	must(t, err)
	if s, err := c.OpenSession(t.Context(), client.Task{}); err != nil || s.ID != "ses_1" || tok.Session != "agt_1" {
		t.Errorf("the session is %v (%v), the client_id %s", s, err, tok.Session)
	}
	hc := http.Client{Transport: &client.Transport{Client: c, To: "https://crm.example"}}
	res, err := hc.Get("https://evil.example/")
	must(t, err)
	must(t, res.Body.Close())
	if want := []string{"mtls.est.example:8445/token", "mtls.est.example:8445/token", "mtls.est.example:8445/v1/sessions"}; !slices.Equal(shown, want) {
		t.Errorf("the certificate is shown to %q, want %q", shown, want)
	}
	if len(web.TLSClientConfig.Certificates) != 0 {
		t.Error("the caller's own transport is changed")
	}
}

// An answer that is not what was asked for is none.
func TestStrangeAnswers(t *testing.T) {
	answer := ""
	web := reaching(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			fmt.Fprint(rw, answer)
			return
		}
		fmt.Fprint(rw, `{"issuer":"https://est.example","token_endpoint":"https://est.example/token","jwks_uri":"https://est.example/jwks"}`)
	}))
	ask := func(key crypto.Signer) error {
		c, err := client.New("https://est.example", client.Options{ID: "agt_1", Credential: client.Secret("s3cret"), DPoP: key, Transport: web})
		must(t, err)
		_, err = c.Token(t.Context(), client.Want{})
		return err
	}
	const good = `{"access_token":"est_good","token_type":"bearer","expires_in":900}`
	if answer = good; ask(nil) != nil {
		t.Errorf("a good answer: %v", ask(nil))
	}
	if err := ask(newKey(t)); err == nil || strings.Contains(err.Error(), "est_good") {
		t.Errorf("a token that is not bound, with a DPoP key: %v", err)
	}
	for name, s := range map[string]string{
		"no token": `{"token_type":"bearer","expires_in":900}`, "no end": `{"access_token":"x","token_type":"bearer"}`,
		"a bound one": strings.Replace(good, "bearer", "DPoP", 1), "another type": strings.Replace(good, "bearer", "N_A", 1),
		"no time left": strings.Replace(good, "900", "0", 1), "for ever": strings.Replace(good, "900", "99999999999", 1),
		"two tokens": strings.Replace(good, "{", `{"access_token":"y",`, 1), "no JSON": "<html>", "too long": good + strings.Repeat(" ", 2<<20),
	} {
		if answer = s; ask(nil) == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Errors are read in each form in which they come.
func TestErrorOf(t *testing.T) {
	for name, c := range map[string]struct {
		status     int
		head, body string
		want       client.Error
	}{
		"OAuth":     {400, "", `{"error":"invalid_scope","error_description":"No.","decision":"evt_1"}`, client.Error{Status: 400, Code: "invalid_scope", Description: "No.", Decision: "evt_1"}},
		"a problem": {403, "", `{"code":"not_granted","title":"Forbidden","detail":"No.","decision":"evt_1"}`, client.Error{Status: 403, Code: "not_granted", Description: "No.", Decision: "evt_1"}},
		"a challenge": {
			401, `Bearer realm="x", error_description="error=nothing", error="invalid_token"`, "<html>",
			client.Error{Status: 401, Code: "invalid_token"},
		},
		"nothing": {502, "", "", client.Error{Status: 502}},
		"a text that does something": {
			400, "", `{"error":"x\n` + strings.Repeat("e", 200) + `","error_description":"\u001b[2J\nlevel=INFO\u202e` + strings.Repeat("é", 2000) + `"}`,
			client.Error{Status: 400, Code: "x " + strings.Repeat("e", 98), Description: " [2J level=INFO " + strings.Repeat("é", 984)},
		},
	} {
		res := &http.Response{StatusCode: c.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(c.body))}
		if c.head != "" {
			res.Header.Set("WWW-Authenticate", c.head)
		}
		var e *client.Error
		if err := client.ErrorOf(res); !errors.As(err, &e) || *e != c.want || err.Error() == "" {
			t.Errorf("%s: %+v, want %+v", name, err, c.want)
		}
	}
	busy := &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {"2"}}, Body: http.NoBody}
	var e *client.Error
	if !errors.As(client.ErrorOf(busy), &e) || !e.Temporary() || e.RetryAfter != 2*time.Second {
		t.Errorf("a server that is busy: %+v", e)
	}
	if err := client.ErrorOf(&http.Response{StatusCode: http.StatusNoContent}); err != nil {
		t.Errorf("a good answer is an error: %v", err)
	}
}
