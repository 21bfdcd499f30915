package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"
	"golang.org/x/oauth2"

	"estover.dev/e2e/e2etest"
)

// TestAgentsAcrossOrganisations is the guide as it is written, between two
// servers: people of one sign in at the other, and an agent that they let act for
// them gets a token there by an assertion, once.
func TestAgentsAcrossOrganisations(t *testing.T) {
	text, err := os.ReadFile("../docs/guides/agents-across-organisations.md")
	must(t, err)
	blocks := func(kind string) (all []string) {
		for _, m := range regexp.MustCompile("(?s)```"+kind+"\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
		return all
	}
	documents, scripts := blocks("yaml"), blocks("sh")
	if len(documents) != 2 || len(scripts) != 1 {
		t.Fatalf("the guide has %d documents and %d scripts", len(documents), len(scripts))
	}
	home, away := newDesk(t, e2etest.Start(t)), newDesk(t, e2etest.Start(t))
	type credential struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	issue := func(d *desk, agent string) (c credential) {
		t.Helper()
		d.admin.JSON(t, &c, "agent", "credential", "add", agent, "--label", "test")
		return c
	}
	ca, err := os.ReadFile(home.CAFile)
	must(t, err)
	roots := "\n  allow_private: true\n  ca: |\n    " + strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n    ")
	here := func(s string) string {
		return strings.NewReplacer("https://home.example.com", home.URL, "https://away.example.com", away.URL).Replace(s)
	}

	// People of home sign in at away.
	home.admin.Apply(t, `apiVersion: estover.dev/v1
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
	portal := issue(home, "portal")
	away.admin.Must(t, "secret", "create", "idp/home", "--destination", strings.TrimPrefix(home.URL, "https://"))
	away.admin.Put(t, "idp/home", portal.Secret)
	away.admin.Apply(t, `apiVersion: estover.dev/v1
kind: IdentityProvider
metadata: {name: home}
spec:
  title: Home
  issuer: `+home.URL+`
  client_id: `+portal.ID+`
  secret: idp/home
  create: true`+roots)

	away.admin.Apply(t, strings.Replace(here(documents[0]), "\n  algorithms:", roots+"\n  algorithms:", 1))
	there := issue(away, "assistant-of-home")
	home.admin.Apply(t, strings.Replace(here(documents[1]), "agt_assistant_at_away", there.ID, 1))
	assistant := issue(home, "assistant")

	home.admin.Must(t, "person", "create", "alice", "--email", "alice@example.com")
	var invitation struct{ Link string }
	home.admin.JSON(t, &invitation, "person", "invite", "alice")
	b := away.Browser(t, home.Server)
	b.Goto(invitation.Link)
	b.Click("button", "Go on")
	b.Click("button", "Make a passkey")
	b.Heading("Keep these recovery codes")

	// The assistant learns who alice is.
	var m metadata
	must(t, home.Get(t, "", "/.well-known/oauth-authorization-server", &m))
	app := newApp(t, home, m, assistant.ID, assistant.Secret)
	app.Scopes = []string{"openid"}
	verifier := oauth2.GenerateVerifier()
	b.Goto(app.AuthCodeURL("a state", oauth2.S256ChallengeOption(verifier)))
	b.Heading("Sign in to assistant?")
	b.Click("button", "Sign in")
	b.Wait(app.RedirectURL)
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, home.HTTP(t))
	tok, err := app.Exchange(ctx, app.answer(t).Get("code"), oauth2.VerifierOption(verifier))
	must(t, err)
	idToken, _ := tok.Extra("id_token").(string)

	// One file with the certificates of both.
	theirs, err := os.ReadFile(away.CAFile)
	must(t, err)
	both := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(both, append(append(ca, '\n'), theirs...), 0o600))
	run := func() map[string]any {
		t.Helper()
		c := exec.Command("/bin/sh", "-c", scripts[0])
		c.Env = append(os.Environ(), "CA="+both, "HOME_ISSUER="+home.URL, "AWAY_ISSUER="+away.URL, "HOME_ID="+assistant.ID, "HOME_SECRET="+assistant.Secret,
			"AWAY_ID="+there.ID, "AWAY_SECRET="+there.Secret, "ID_TOKEN="+idToken, "RESOURCE="+away.site.URL)
		r := e2etest.Run(t, c)
		var answer map[string]any
		if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil {
			t.Fatalf("%v: exit code %d\n%s%s", err, r.Code, r.Stdout, r.Stderr)
		}
		return answer
	}
	if answer := run(); answer["error"] != "invalid_grant" {
		t.Errorf("before alice has ever signed in at away: %v, want invalid_grant", answer)
	}
	b.Goto(away.URL + "/login")
	b.Click("link", "Continue with Home")
	b.Heading("Sign in to portal?")
	b.Click("button", "Sign in")
	b.Heading("How you sign in")
	var alice struct{ ID string }
	away.admin.JSON(t, &alice, "person", "show", "alice")

	answer := run()
	token, _ := answer["access_token"].(string)
	if token == "" || answer["scope"] != "customer.read" || answer["refresh_token"] != nil {
		t.Fatalf("by an assertion: %v", answer)
	}
	body, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	must(t, err)
	var parsed map[string]any
	must(t, json.Unmarshal(body, &parsed))
	act, _ := parsed["act"].(map[string]any)
	if parsed["sub"] != "user:"+alice.ID || act["sub"] != "agent:"+there.ID {
		t.Errorf("the token is about %v, and %v acts", parsed["sub"], act["sub"])
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, away.URL+"/u/crm/v1/customers/cus_1001", nil)
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := away.HTTP(t).Do(req)
	must(t, err)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("a call with the token: %s", res.Status)
	}

	// The refresh token serves as well, is not spent by it, and an assertion is
	// good once.
	post := func(d *desk, c credential, pairs ...string) (answer map[string]any) {
		t.Helper()
		form := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			form.Set(pairs[i], pairs[i+1])
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.URL+"/oauth/token", strings.NewReader(form.Encode()))
		must(t, err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(c.ID, c.Secret)
		res, err := d.HTTP(t).Do(req)
		must(t, err)
		defer res.Body.Close()
		must(t, json.NewDecoder(res.Body).Decode(&answer))
		return answer
	}
	chain := []string{
		"grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "requested_token_type", "urn:ietf:params:oauth:token-type:id-jag",
		"subject_token_type", "urn:ietf:params:oauth:token-type:refresh_token", "subject_token", tok.RefreshToken, "audience", away.URL,
	}
	post(home, assistant, chain...)
	assert := func() string {
		t.Helper()
		answer := post(home, assistant, chain...)
		raw, _ := answer["access_token"].(string)
		if raw == "" || answer["issued_token_type"] != "urn:ietf:params:oauth:token-type:id-jag" || answer["token_type"] != "N_A" {
			t.Fatalf("for the refresh token: %v", answer)
		}
		return raw
	}
	present := func(d *desk, as credential, raw string) map[string]any {
		t.Helper()
		return post(d, as, "grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", raw, "resource", away.site.URL)
	}
	refused := func(what string, answer map[string]any, want string) {
		t.Helper()
		if answer["error"] != want || answer["access_token"] != nil {
			t.Errorf("%s: %v, want %s", what, answer, want)
		}
	}
	once := assert()
	if answer := present(away, there, once); answer["access_token"] == nil {
		t.Errorf("for the refresh token: %v", answer)
	}
	refused("an assertion again", present(away, there, once), "invalid_grant")

	// An assertion is of its own kind, and signed with a key that home has published
	// for it.
	set, err := jwk.Fetch(t.Context(), home.URL+"/oauth/jwks", jwk.WithHTTPClient(home.HTTP(t)))
	must(t, err)
	raw := assert()
	claims, err := jwt.Parse([]byte(raw), jwt.WithKeySet(set), jwt.WithIssuer(home.URL), jwt.WithAudience(away.URL))
	must(t, err)
	message, err := jws.Parse([]byte(raw))
	must(t, err)
	if typ, _ := message.Signatures()[0].ProtectedHeaders().Type(); typ != "oauth-id-jag+jwt" {
		t.Errorf("the type of an assertion is %q", typ)
	}
	issued, _ := claims.IssuedAt()
	expires, _ := claims.Expiration()
	if life := expires.Sub(issued); life <= 0 || life > 5*time.Minute {
		t.Errorf("an assertion lives %s", life)
	}

	// Who may not present it uses it up for nobody.
	away.admin.Apply(t, e2etest.Agent("bystander", "support"), strings.Replace(e2etest.Agent("rival", "support"), "spec: {",
		`spec: {client: {grant_types: ["urn:ietf:params:oauth:grant-type:jwt-bearer"]}, `, 1))
	refused("a client of away without the grant type", present(away, issue(away, "bystander"), raw), "unauthorized_client")
	refused("another client of away", present(away, issue(away, "rival"), raw), "invalid_grant")
	refused("where it was made", present(home, assistant, raw), "unauthorized_client")
	if answer := present(away, there, raw); answer["access_token"] == nil {
		t.Errorf("after others have tried: %v", answer)
	}
	refused("what alice signed in with", present(away, there, idToken), "invalid_grant")

	// At home it is the agent's to ask, for alice's token that was made for it, and
	// for a server that it is let go to.
	asks := func(as credential, pairs ...string) map[string]any {
		t.Helper()
		return post(home, as, append([]string{
			"grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "requested_token_type", "urn:ietf:params:oauth:token-type:id-jag",
			"subject_token_type", "urn:ietf:params:oauth:token-type:id_token", "subject_token", idToken, "audience", away.URL,
		}, pairs...)...)
	}
	home.admin.Apply(t, e2etest.Agent("bystander", "support"), strings.NewReplacer("name: assistant", "name: rival").Replace(strings.Replace(here(documents[1]), "agt_assistant_at_away", there.ID, 1)))
	refused("a client of home without the grant type", asks(issue(home, "bystander")), "unauthorized_client")
	refused("another client of home", asks(issue(home, "rival")), "invalid_grant")
	refused("for a server that is not the agent's", asks(assistant, "audience", "https://elsewhere.example"), "invalid_target")

	// One for another server is none here.
	elsewhere := strings.Replace(here(documents[1]), "agt_assistant_at_away", there.ID, 1)
	home.admin.Apply(t, strings.Replace(elsewhere, "identity_chaining:\n", "identity_chaining:\n      - {issuer: \"https://elsewhere.example\", client_id: "+there.ID+"}\n", 1))
	other, _ := asks(assistant, "audience", "https://elsewhere.example")["access_token"].(string)
	if other == "" {
		t.Fatal("no assertion for elsewhere")
	}
	refused("for another server", present(away, there, other), "invalid_grant")

	// It ends on either side.
	last := assert()
	away.admin.Must(t, "person", "disable", "alice", "--reason", "a drill")
	refused("for somebody who is disabled at away", present(away, there, last), "invalid_grant")
	home.admin.Must(t, "person", "disable", "alice", "--reason", "a drill")
	refused("an ID token of somebody who is disabled at home", asks(assistant), "invalid_grant")
	refused("a refresh token of somebody who is disabled at home", post(home, assistant, chain...), "invalid_grant")
}
