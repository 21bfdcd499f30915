package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"

	"estover.dev/client"
	"estover.dev/e2e/e2etest"
)

// TestGoClient runs the program of the guide: an agent in each way that the
// package client has, another that takes up its token, and a resource.
func TestGoClient(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("clients/sdk/main.go")
	must(t, err)
	guide, err := os.ReadFile("../docs/guides/go-client.md")
	must(t, err)
	blocks := 0
	for _, block := range fence.FindAllSubmatch(guide, -1) {
		if blocks++; string(block[1]) == "go" && !strings.Contains(flush(source), flush(block[2])) {
			t.Errorf("the guide has code that the program has not:\n%s", block[2])
		}
	}
	if blocks == 0 {
		t.Error("the guide has no code at all")
	}
	d := newDesk(t, e2etest.Start(t))
	reads := func(name string) string {
		return e2etest.Grant(name+"-reads", name, "crm", "customer.list, customer.read", "support")
	}
	with := func(name, settings string) string {
		return strings.Replace(e2etest.Agent(name, "support"), "spec: {", "spec: {client: {"+settings+"}, ", 1)
	}
	c := newOAuthClient(t, d, "client", with("client", `grant_types: ["urn:ietf:params:oauth:grant-type:jwt-bearer"]`), reads("client"),
		strings.Replace(e2etest.Grant("client-notes", "client", "crm", "note.add", "support"), "spec: {", "spec: {kind: eligible, ", 1))
	helper := newOAuthClient(t, d, "helper", with("helper", `grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"], introspect: ["`+d.site.URL+`"]`), reads("helper"))
	c.env = append(c.env, "HELPER_ID="+helper.id, "HELPER_SECRET="+helper.secret, "WORKLOAD_TOKEN="+c.workload(t))
	c.runs(t, e2etest.Build(t, t.TempDir(), "sdk", "./clients/sdk"))
	if log := d.Log(); strings.Contains(log, c.secret) {
		t.Error("the log has the secret")
	}
}

// workload makes the server trust a platform, and gives a file with the
// platform's token for the client.
func (c *oauthClient) workload(t *testing.T) string {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	key, err := jwk.Import(private)
	must(t, err)
	must(t, errors.Join(key.Set(jwk.KeyIDKey, "platform"), key.Set(jwk.AlgorithmKey, jwa.ES256())))
	public, err := key.PublicKey()
	must(t, err)
	set, err := json.Marshal(map[string]any{"keys": []jwk.Key{public}})
	must(t, err)
	c.admin.Apply(t, fmt.Sprintf(`apiVersion: estover.dev/v1
kind: Trust
metadata: {name: cluster}
spec:
  issuer: https://kubernetes.example.test
  jwks: '%s'
  algorithms: [ES256]
  audience: %s
  rules: [{agent: client, claims: {sub: "system:serviceaccount:support:client"}}]`, set, c.URL))
	now := time.Now()
	tok, err := jwt.NewBuilder().Issuer("https://kubernetes.example.test").Subject("system:serviceaccount:support:client").
		Audience([]string{c.URL}).IssuedAt(now).Expiration(now.Add(10 * time.Minute)).Build()
	must(t, err)
	signed, err := jwt.Sign(tok, jwt.WithKey(jwa.ES256(), key))
	must(t, err)
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, append(signed, '\n'), 0o600))
	return file
}

// An agent opens its own session and ends it, and what belonged to it ends with
// it; and a refusal at the gateway is an error with what `estover why` explains.
func TestGoClientSession(t *testing.T) {
	t.Parallel()
	d := newOAuthDesk(t, e2etest.Start(t))
	binding, err := client.NewKey()
	must(t, err)
	agent, err := client.New(d.URL, client.Options{ID: d.agent, Credential: client.Secret(d.secret), DPoP: binding, Transport: d.HTTP(t).Transport})
	must(t, err)
	session, err := agent.OpenSession(t.Context(), client.Task{Purpose: "support", About: "find out who called", Life: 10 * time.Minute})
	must(t, err)
	if left := time.Until(session.Expires); session.Agent != d.agent || session.Purpose != "support" || session.About != "find out who called" || left > 10*time.Minute || left < 9*time.Minute {
		t.Errorf("the session is %+v", session)
	}
	want := client.Want{Resources: []string{d.URL + "/u/crm"}, Session: session.ID}
	tok, err := agent.Token(t.Context(), want)
	must(t, err)
	if tok.Session != session.ID {
		t.Errorf("the token belongs to session %s, want %s", tok.Session, session.ID)
	}
	crm := http.Client{Transport: &client.Transport{Client: agent, Want: want}}
	call := func(method, path string) error {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, d.URL+"/u/crm"+path, strings.NewReader(`{"text": "x"}`))
		must(t, err)
		res, err := crm.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		return client.ErrorOf(res)
	}
	must(t, call(http.MethodPost, "/v1/customers/cus_1001/notes"))
	if now, err := agent.Heartbeat(t.Context(), session); err != nil || now.State != "open" || now.ID != session.ID {
		t.Errorf("a heartbeat: %+v, %v", now, err)
	}
	if renewed, err := agent.RenewSession(t.Context(), session, time.Hour); err != nil || time.Until(renewed.Expires) < 59*time.Minute {
		t.Errorf("the renewed session is %+v, %v", renewed, err)
	}
	part, err := agent.OpenSession(t.Context(), client.Task{Purpose: "support", Parent: session.ID, Life: 2 * time.Hour, Idle: time.Minute})
	if err != nil || part.Parent != session.ID || part.Purpose != "support" || time.Until(part.Expires) > time.Hour {
		t.Errorf("a session within it is %+v, %v", part, err)
	}
	var e *client.Error
	if err := call(http.MethodDelete, "/v1/customers/cus_1001"); !errors.As(err, &e) || e.Code != "not_granted" || e.Status != http.StatusForbidden || e.Decision == "" {
		t.Errorf("a call that is not granted: %v", err)
	} else if why := d.admin.Must(t, "why", e.Decision); !strings.Contains(why, "not_granted") {
		t.Errorf("estover why %s says\n%s", e.Decision, why)
	}
	must(t, agent.EndSession(t.Context(), session, "done"))
	if now, err := agent.Heartbeat(t.Context(), part); err != nil || now.State != "ended" || now.Cause == "" {
		t.Errorf("the session within it is %+v, %v; want it to have ended", now, err)
	}
	if err := call(http.MethodGet, "/v1/customers/cus_1001"); !errors.As(err, &e) || e.Code != "invalid_grant" {
		t.Errorf("after the end of the session: %v, want invalid_grant", err)
	}
	if err := agent.EndSession(t.Context(), client.Session{ID: "ses_none", Purpose: "support"}, ""); !errors.As(err, &e) || e.Status != http.StatusForbidden || e.Decision == "" {
		t.Errorf("the end of no session of the agent's: %v", err)
	}
	for name, task := range map[string]client.Task{"a purpose that is not the agent's": {Purpose: "billing"}, "too long a life": {Purpose: "support", Life: 48 * time.Hour}} {
		if _, err := agent.OpenSession(t.Context(), task); !errors.As(err, &e) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The token that the gateway has refused to be any good is none for others either.
	_, answer := d.post(t, d.Introspection, map[string][]string{"token": {tok.Reveal()}})
	if answer["active"] != false {
		t.Errorf("introspection says of a token of the session that was ended: %v", answer)
	}
}
