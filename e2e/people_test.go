package e2e

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"estover.dev/e2e/e2etest"
)

// An app is a program on the machine of a person, as it stands in RFC 8252: it
// takes the answer on a port of its own.
type app struct {
	oauth2.Config
	answers chan url.Values
}

func newApp(t *testing.T, d *desk, m metadata, id, secret string) *app {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &app{answers: make(chan url.Values, 8), Config: oauth2.Config{
		ClientID: id, ClientSecret: secret, RedirectURL: "http://" + l.Addr().String() + "/callback", Scopes: []string{"customer.read"},
		Endpoint: oauth2.Endpoint{AuthURL: m.Authorization, TokenURL: m.Token},
	}}
	s := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/callback" {
			a.answers <- r.URL.Query()
		}
		_, _ = w.Write([]byte("<!doctype html><title>done</title><main>You may close this window.</main>"))
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return a
}

// answer is what the browser has brought back.
func (a *app) answer(t *testing.T) url.Values {
	t.Helper()
	select {
	case q := <-a.answers:
		return q
	case <-time.After(time.Minute):
		t.Fatal("nobody came back from the authorization endpoint")
		return nil
	}
}

// TestPeople is a person with a real browser: Alice makes a passkey by her
// invitation, signs in with it, lets an agent act for her, and ends that.
func TestPeople(t *testing.T) {
	srv := e2etest.Start(t)
	d := newDesk(t, srv)
	var m metadata
	if err := srv.Get(t, "", "/.well-known/oauth-authorization-server", &m); err != nil {
		t.Fatal(err)
	}
	d.admin.Apply(t, `apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot}
spec:
  blueprint: test
  sponsor: admin
  purposes: [support, marketing]
  clearance: confidential
  client:
    grant_types: [authorization_code, refresh_token]
    redirect_uris: ["http://127.0.0.1/callback"]`)
	var secret struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	d.admin.JSON(t, &secret, "agent", "credential", "add", "bot", "--label", "app")
	bot := newApp(t, d, m, secret.ID, secret.Secret)
	d.admin.Must(t, "person", "create", "alice")
	var invitation struct{ Link string }
	d.admin.JSON(t, &invitation, "person", "invite", "alice")

	b := srv.Browser(t)
	b.Goto(invitation.Link)
	b.Heading("You are invited")
	if v := b.Value("Invitation"); !strings.HasPrefix(v, "est_et_") || strings.Contains(b.URL(), "est_et_") {
		t.Errorf("the invitation is %q at %s, want it filled in and out of the address", v, b.URL())
	}
	b.Accessible("the invitation")
	b.Click("button", "Go on")
	b.Heading("Welcome, alice")
	b.Accessible("making a passkey")
	b.Fill("What do you call this device?", "work laptop")
	b.Click("button", "Make a passkey")
	b.Heading("Keep these recovery codes")
	codes := regexp.MustCompile(`[a-z2-7]{7}(-[a-z2-7]{7}){3}`).FindAllString(b.Text(), -1)
	if len(codes) != 10 {
		t.Fatalf("there are %d recovery codes in\n%s", len(codes), b.Text())
	}
	b.Accessible("the recovery codes")
	b.Click("link", "I have kept them")
	b.Heading("How you sign in")
	if !strings.Contains(b.Text(), "work laptop") {
		t.Errorf("alice sees\n%s", b.Text())
	}
	b.Accessible("one's own page")
	for _, c := range b.Cookies() {
		if !strings.HasPrefix(c, "__Host-estover") || !strings.HasSuffix(c, " true true Lax /") {
			t.Errorf("the browser holds the cookie %s", c)
		}
	}
	b.Click("button", "Sign out")
	b.Heading("Sign in")
	b.Accessible("the sign-in page")

	// An agent sends Alice to the authorization endpoint. She signs in with her
	// passkey and comes back to the question, by the keyboard alone.
	verifier := oauth2.GenerateVerifier()
	ask := func(pairs ...string) string {
		options := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("resource", d.site.URL), oauth2.SetAuthURLParam("purpose", "support")}
		for i := 0; i < len(pairs); i += 2 {
			options = append(options, oauth2.SetAuthURLParam(pairs[i], pairs[i+1]))
		}
		return bot.AuthCodeURL("a state", options...)
	}
	b.Goto(ask())
	b.Heading("Sign in")
	b.Key("Enter")
	b.Heading("Let bot act for you?")
	for _, want := range []string{"alice", "admin", "crm.example.test", "customer.read", "support", "24 hours", "the computer that you sit at", "never"} {
		if !strings.Contains(b.Text(), want) {
			t.Errorf("the page that asks does not say %q:\n%s", want, b.Text())
		}
	}
	b.Accessible("the question")
	b.Click("button", "No")
	b.Wait(bot.RedirectURL)
	if q := bot.answer(t); q.Get("error") != "access_denied" || q.Get("state") != "a state" || q.Get("iss") != srv.URL {
		t.Errorf("a no comes back as %v", q)
	}
	b.Goto(ask())
	b.Heading("Let bot act for you?")
	b.Click("button", "Let it act for me")
	b.Wait(bot.RedirectURL)
	q := bot.answer(t)
	if q.Get("iss") != srv.URL || q.Get("state") != "a state" {
		t.Errorf("the browser comes back with %v", q)
	}
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, srv.HTTP(t))
	tok, err := bot.Exchange(ctx, q.Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatalf("redeeming the code: %v", err)
	}
	call := func(token string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/u/crm/v1/customers/cus_1001", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := srv.HTTP(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	if status := call(tok.AccessToken); status != http.StatusOK {
		t.Errorf("a call on behalf of alice: %d", status)
	}
	// The same again without a question, and a refresh.
	b.Goto(ask())
	b.Wait(bot.RedirectURL)
	if q := bot.answer(t); q.Get("code") == "" {
		t.Errorf("the same again: %v", q)
	}
	old := tok.RefreshToken
	tok.Expiry = time.Now().Add(-time.Minute)
	if tok, err = bot.TokenSource(ctx, tok).Token(); err != nil || tok.RefreshToken == old {
		t.Fatalf("refreshing: %v", err)
	}
	if status := call(tok.AccessToken); status != http.StatusOK {
		t.Errorf("a call with the refreshed token: %d", status)
	}
	// Alice takes it back, and that is the end of it.
	b.Goto(srv.URL + "/oauth/consents")
	b.Heading("Agents that act for you")
	b.Accessible("the agents that act for one")
	b.Click("button", "End what bot may do for you")
	e2etest.Eventually(t, "the token is dead after alice has taken her consent back", func() bool { return call(tok.AccessToken) == http.StatusUnauthorized })
	tok.Expiry = time.Now().Add(-time.Minute)
	if _, err := bot.TokenSource(ctx, tok).Token(); err == nil {
		t.Error("the refresh token is good after alice has taken her consent back")
	}

	// The passkey is gone with the laptop: a code lets Alice in, and she makes
	// another.
	b.Forget()
	b.Goto(srv.URL + "/login")
	b.Click("link", "Use a recovery code")
	b.Heading("Use a recovery code")
	b.Accessible("the page for a code")
	b.Fill("Recovery code", strings.ToUpper(codes[4]))
	b.Click("button", "Sign in")
	b.Heading("You are signed in")
	b.Accessible("after a code")
	if !strings.Contains(b.Text(), "9 codes are left") {
		t.Errorf("after a code alice sees\n%s", b.Text())
	}
	b.Goto(srv.URL + "/oauth/authorize?client_id=nobody")
	b.Heading("This request cannot be followed")
	b.Accessible("an error")
	for _, c := range b.Complaints() {
		if !strings.Contains(c, "status of 400") { // the error page that was asked for
			t.Errorf("the browser complains: %s", c)
		}
	}
	if log := srv.Log(); strings.Contains(log, "level=ERROR") {
		t.Errorf("the server has logged errors:\n%s", log)
	}
	if !slices.ContainsFunc(strings.Split(d.admin.Must(t, "event", "list", "--limit", "200"), "\n"), func(l string) bool { return strings.Contains(l, "authorization.create") }) {
		t.Error("what alice agreed to is not on record")
	}
}

// TestFirstAdministrator: the first start's token makes a passkey in a browser as
// well as a login on the command line.
func TestFirstAdministrator(t *testing.T) {
	srv := e2etest.Start(t)
	file := filepath.Join(srv.Data, "bootstrap-token")
	token, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b := srv.Browser(t)
	b.Goto(srv.URL + "/login/invitation")
	b.Fill("Invitation", strings.TrimSpace(string(token)))
	b.Click("button", "Go on")
	b.Heading("Welcome, admin")
	b.Click("button", "Make a passkey")
	b.Heading("Keep these recovery codes")
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the token that is used up is still there: %v", err)
	}
	b.Forget()
	b.Goto(srv.URL + "/login")
	b.Click("button", "Sign in with a passkey")
	b.Heading("How you sign in")
}

// TestProvider: people of one organisation sign in at another server by their
// own, which is an OpenID provider like any other.
func TestProvider(t *testing.T) {
	home, away := e2etest.Start(t), e2etest.Start(t)
	chief, host := home.Admin(t), away.Admin(t)
	chief.Apply(t, `apiVersion: estover.dev/v1
kind: Agent
metadata: {name: portal}
spec:
  blueprint: portal
  sponsor: admin
  purposes: [sign-in]
  clearance: internal
  client:
    grant_types: [authorization_code]
    redirect_uris: ["`+away.URL+`/login/back/home"]`)
	var client struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	chief.JSON(t, &client, "agent", "credential", "add", "portal", "--label", "away")
	ca, err := os.ReadFile(home.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	host.Must(t, "secret", "create", "idp/home", "--destination", strings.TrimPrefix(home.URL, "https://"))
	host.Put(t, "idp/home", client.Secret)
	host.Apply(t, `apiVersion: estover.dev/v1
kind: IdentityProvider
metadata: {name: home}
spec:
  title: Home
  issuer: `+home.URL+`
  client_id: `+client.ID+`
  secret: idp/home
  allow_private: true
  create: true
  ca: |
    `+strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n    "))

	chief.Must(t, "person", "create", "alice", "--email", "alice@example.com")
	var invitation struct{ Link string }
	chief.JSON(t, &invitation, "person", "invite", "alice")
	b := away.Browser(t, home)
	b.Goto(invitation.Link)
	b.Click("button", "Go on")
	b.Click("button", "Make a passkey")
	b.Heading("Keep these recovery codes")

	b.Goto(away.URL + "/login")
	b.Click("link", "Continue with Home")
	b.Heading("Sign in to portal?")
	b.Accessible("the question who one is")
	b.Click("button", "Sign in")
	b.Heading("How you sign in")
	if !strings.HasPrefix(b.URL(), away.URL) || !strings.Contains(b.Text(), "This browser") {
		t.Errorf("alice is at %s and sees\n%s", b.URL(), b.Text())
	}
	var alice struct {
		ManagedBy string `json:"managed_by"`
		Email     string
	}
	host.JSON(t, &alice, "person", "show", "alice")
	if alice.ManagedBy != "provider/home" {
		t.Errorf("away, alice is %+v", alice)
	}
}
