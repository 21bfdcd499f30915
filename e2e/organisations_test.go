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
	other, err := os.ReadFile(away.CAFile)
	must(t, err)
	both := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(both, append(append(ca, '\n'), other...), 0o600))
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
	assertion, _ := post(home, assistant, chain...)["access_token"].(string)
	present := []string{"grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", assertion, "resource", away.site.URL}
	if answer := post(away, there, present...); answer["access_token"] == nil {
		t.Errorf("for the refresh token: %v", answer)
	}
	if answer := post(away, there, present...); answer["error"] != "invalid_grant" {
		t.Errorf("an assertion again: %v", answer)
	}
}
