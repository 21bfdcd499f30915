package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"

	"estover.dev/e2e/e2etest"
)

// client is an agent with OAuth settings of its own, and its secret.
func (d *oauthDesk) client(t *testing.T, name, blueprint string, settings map[string]any) (id, secret string) {
	t.Helper()
	text, err := json.Marshal(map[string]any{
		"apiVersion": "estover.dev/v1", "kind": "Agent", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"blueprint": blueprint, "sponsor": "admin", "purposes": []string{"support"}, "clearance": "confidential", "client": settings},
	})
	must(t, err)
	d.admin.Apply(t, string(text))
	var made struct {
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
	}
	d.admin.JSON(t, &made, "agent", "credential", "add", name)
	return made.ClientID, made.ClientSecret
}

// ask sends a form to the token endpoint as a client.
func (d *oauthDesk) ask(t *testing.T, id, secret string, pairs ...string) (int, map[string]any) {
	t.Helper()
	f := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Add(pairs[i], pairs[i+1])
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.Token, strings.NewReader(f.Encode()))
	must(t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if id != "" {
		req.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret))
	}
	res, err := d.HTTP(t).Do(req)
	must(t, err)
	defer res.Body.Close()
	var answer map[string]any
	must(t, json.NewDecoder(res.Body).Decode(&answer))
	return res.StatusCode, answer
}

// An agent hands its token to another along an edge that policy has, and the
// other works with it at the gateway, for no longer and no more (M7).
func TestDelegation(t *testing.T) {
	t.Parallel()
	d := newOAuthDesk(t, e2etest.Start(t))
	helper, secret := d.client(t, "helper", "researcher", map[string]any{"grant_types": []string{"urn:ietf:params:oauth:grant-type:token-exchange"}})
	d.admin.Apply(t, e2etest.Grant("helper-reads", "helper", "crm", "customer.list, customer.read", "support"))
	status, first := d.ask(t, d.agent, d.secret, "grant_type", "client_credentials", "purpose", "support", "resource", d.site.URL)
	if status != http.StatusOK {
		t.Fatalf("%d %v", status, first)
	}
	raw := first["access_token"].(string)
	exchange := func() (int, map[string]any) {
		return d.ask(t, helper, secret, "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "resource", d.site.URL,
			"subject_token", raw, "subject_token_type", "urn:ietf:params:oauth:token-type:access_token")
	}
	// There is no edge until somebody writes it down.
	status, answer := exchange()
	if status != http.StatusBadRequest || answer["error"] != "access_denied" {
		t.Fatalf("without an edge: %d %v", status, answer)
	}
	if why := d.admin.Must(t, "why", answer["decision"].(string)); !strings.Contains(why, "no_edge") {
		t.Errorf("estover why says\n%s", why)
	}
	dir := filepath.Join(t.TempDir(), "policies")
	d.admin.Must(t, "policy", "init", dir)
	file := filepath.Join(dir, "delegation.rego")
	text, err := os.ReadFile(file)
	must(t, err)
	edited := strings.Replace(string(text), "edges := set()", `edges := {["test", "researcher"]}`, 1)
	if edited == string(text) {
		t.Fatalf("there is no place for edges in\n%s", text)
	}
	must(t, os.WriteFile(file, []byte(edited), 0o600))
	d.admin.Must(t, "policy", "test", dir)
	d.admin.Must(t, "policy", "push", dir, "--note", "agents of the test hand work to researchers", "--activate")

	status, answer = exchange()
	if status != http.StatusOK || answer["scope"] != "customer.list customer.read" || answer["session"] != first["session"] {
		t.Fatalf("along the edge: %d %v", status, answer)
	}
	second := answer["access_token"].(string)
	tok := d.verified(t, second, d.site.URL)
	var act map[string]any
	must(t, tok.Get("act", &act))
	if sub, _ := tok.Subject(); sub != "agent:"+d.agent || act["sub"] != "agent:"+helper {
		t.Errorf("the token is of %s, by %v", sub, act)
	}
	if status, body, _ := d.call(t, http.MethodGet, "/v1/customers/cus_1001", second); status != http.StatusOK || !strings.Contains(body, "Ada Lindqvist") {
		t.Errorf("a call with the token that was handed on: %d %s", status, body)
	}
	// The other agent has no grant for it, although the first one has.
	if status, body, _ := d.call(t, http.MethodPost, "/v1/customers/cus_1001/notes", second); status != http.StatusForbidden {
		t.Errorf("a call that the other agent may not make: %d %s", status, body)
	}
	said := d.admin.Must(t, "token", "explain", second)
	for _, want := range []string{"It is alive", "On the authority of: +bot", "By way of: +helper", "customer.list, customer.read", "token-exchange"} {
		if !matches(want, said) {
			t.Errorf("estover token explain does not say %q:\n%s", want, said)
		}
	}
	// Stopping the other agent ends what it was handed, also when it may act again.
	held := d.admin.Must(t, "agent", "hold", "helper", "--reason", "a look")
	if status, body, _ := d.call(t, http.MethodGet, "/v1/customers/cus_1001", second); status != http.StatusUnauthorized {
		t.Errorf("a call of an agent that is held: %d %s", status, body)
	}
	d.admin.Must(t, "agent", "lift", "helper", regexp.MustCompile(`hld_\w+`).FindString(held), "--reason", "it was nothing")
	if status, body, _ := d.call(t, http.MethodGet, "/v1/customers/cus_1001", second); status != http.StatusUnauthorized {
		t.Errorf("a call with what was handed to an agent before it was held: %d %s", status, body)
	}
	if said := d.admin.Must(t, "token", "explain", second); !strings.Contains(said, "It is dead: The grant that it rests on has ended: the agent is suspended.") {
		t.Errorf("estover token explain says\n%s", said)
	}
	if status, answer = exchange(); status != http.StatusOK {
		t.Fatalf("after the hold: %d %v", status, answer)
	}
	second = answer["access_token"].(string)
	d.admin.Must(t, "session", "end", first["session"].(string), "--cause", "done")
	if status, body, _ := d.call(t, http.MethodGet, "/v1/customers/cus_1001", second); status != http.StatusUnauthorized {
		t.Errorf("a call after the end of the session: %d %s", status, body)
	}
	if said := d.admin.Must(t, "token", "explain", second); !strings.Contains(said, "It is dead: The session has ended.") {
		t.Errorf("estover token explain says of a dead token\n%s", said)
	}
	if status, answer := exchange(); answer["error"] != "invalid_grant" {
		t.Errorf("after the end of the session: %d %v", status, answer)
	}
	// The receipts name both, and whoever has them can check that.
	var receipt string
	e2etest.Eventually(t, "the evidence of the session", func() bool {
		receipt = filepath.Join(t.TempDir(), "session.zip")
		return d.admin.Run(t, "evidence", "export", first["session"].(string), "--disclose", "--file", receipt).Code == 0
	})
	trust := filepath.Join(t.TempDir(), "trust.policy")
	must(t, os.WriteFile(trust, []byte(d.admin.Must(t, "audit", "trust")), 0o600))
	r := d.admin.Run(t, "verify", receipt, "--trust", trust)
	if r.Code != 0 || strings.Contains(r.Stdout, "FAIL") || !strings.Contains(r.Stdout, helper) {
		t.Errorf("estover verify: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// A platform makes tokens for workloads, as GitHub Actions and Kubernetes do.
type platform struct {
	key jwk.Key
	set []byte
}

func newPlatform(t *testing.T, id string) *platform {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	p := &platform{}
	p.key, err = jwk.Import(private)
	must(t, err)
	must(t, p.key.Set(jwk.KeyIDKey, id))
	must(t, p.key.Set(jwk.AlgorithmKey, jwa.RS256()))
	public, err := p.key.PublicKey()
	must(t, err)
	set := jwk.NewSet()
	must(t, set.AddKey(public))
	p.set, err = json.Marshal(set)
	must(t, err)
	return p
}

func (p *platform) token(t *testing.T, issuer, audience, subject string, claims map[string]any) string {
	t.Helper()
	now := time.Now()
	b := jwt.NewBuilder().Issuer(issuer).Subject(subject).Audience([]string{audience}).IssuedAt(now).NotBefore(now).Expiration(now.Add(5 * time.Minute)).JwtID(rand.Text())
	for name, v := range claims {
		b = b.Claim(name, v)
	}
	tok, err := b.Build()
	must(t, err)
	signed, err := jwt.Sign(tok, jwt.WithKey(jwa.RS256(), p.key))
	must(t, err)
	return string(signed)
}

// Workloads are recognised by the tokens of their platforms: of one whose keys
// are fetched, as GitHub's, and of one whose keys stand in the trust, as a
// cluster's (M2, M25).
func TestWorkloads(t *testing.T) {
	t.Parallel()
	d := newOAuthDesk(t, e2etest.Start(t))
	d.client(t, "release-bot", "release", map[string]any{"grant_types": []string{"urn:ietf:params:oauth:grant-type:jwt-bearer"}})
	d.client(t, "billing-bot", "billing", map[string]any{"grant_types": []string{"urn:ietf:params:oauth:grant-type:jwt-bearer"}})
	d.admin.Apply(t, e2etest.Grant("release-reads", "release-bot", "crm", "customer.read", "support"), e2etest.Grant("billing-reads", "billing-bot", "crm", "customer.read", "support"))

	actions, cluster := newPlatform(t, "actions-1"), newPlatform(t, "cluster-1")
	keys := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/jwks" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(actions.set)
	}))
	t.Cleanup(keys.Close)
	const issuer, pods = "https://token.actions.githubusercontent.com", "https://kubernetes.default.svc.cluster.local"
	roots := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: keys.Certificate().Raw}))
	trust := func(open string) string {
		return fmt.Sprintf(`apiVersion: estover.dev/v1
kind: Trust
metadata: {name: github}
spec:
  issuer: %s
  jwks_url: %s/.well-known/jwks
  ca: |
%s%s  algorithms: [RS256]
  audience: %s
  single_use: true
  rules:
    - agent: release-bot
      claims: {repository: example/shop, ref: refs/heads/main}
      globs: {job_workflow_ref: example/shop/.github/workflows/*@refs/heads/main}
`, issuer, keys.URL, indentBy4(roots), open, d.Issuer)
	}
	const bearer = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	job := func(ref string) string {
		return actions.token(t, issuer, d.Issuer, "repo:example/shop:ref:"+ref, map[string]any{
			"repository": "example/shop", "ref": ref, "job_workflow_ref": "example/shop/.github/workflows/release.yml@" + ref,
		})
	}
	// Keys on a private address are not fetched unless the trust opens it.
	d.admin.Apply(t, trust(""))
	if status, answer := d.ask(t, "", "", "grant_type", bearer, "assertion", job("refs/heads/main")); status != http.StatusServiceUnavailable {
		t.Errorf("keys on a private address: %d %v", status, answer)
	}
	d.admin.Apply(t, trust("  allow_private: true\n"))

	raw := job("refs/heads/main")
	status, answer := d.ask(t, "", "", "grant_type", bearer, "assertion", raw, "resource", d.site.URL)
	if status != http.StatusOK || answer["scope"] != "customer.read" {
		t.Fatalf("a job: %d %v", status, answer)
	}
	if status, body, _ := d.call(t, http.MethodGet, "/v1/customers/cus_1001", answer["access_token"].(string)); status != http.StatusOK || !strings.Contains(body, "Ada Lindqvist") {
		t.Errorf("a call of the job: %d %s", status, body)
	}
	if _, answer := d.ask(t, "", "", "grant_type", bearer, "assertion", raw); answer["error"] != "invalid_grant" {
		t.Errorf("the same token again: %v", answer)
	}
	if _, answer := d.ask(t, "", "", "grant_type", bearer, "assertion", job("refs/heads/evil")); answer["error"] != "invalid_grant" {
		t.Errorf("another branch: %v", answer)
	}
	said := d.admin.Must(t, "token", "explain", job("refs/heads/evil"))
	for _, want := range []string{"It does not count: No rule of the trust github fits", "Trust: +github", "release-bot .* no +job_workflow_ref, ref|release-bot .* no +ref, job_workflow_ref"} {
		if !matches(want, said) {
			t.Errorf("estover token explain does not say %q:\n%s", want, said)
		}
	}
	if said := d.admin.Must(t, "token", "explain", job("refs/heads/main")); !matches("It counts, as that of release-bot", said) {
		t.Errorf("estover token explain says\n%s", said)
	}
	if listed := d.admin.Must(t, "trust", "list"); !matches("github +"+issuer+" +1", listed) {
		t.Errorf("estover trust list says\n%s", listed)
	}
	if shown := d.admin.Must(t, "trust", "show", "github"); !strings.Contains(shown, "job_workflow_ref") || !strings.Contains(shown, "each token counts once") {
		t.Errorf("estover trust show says\n%s", shown)
	}

	// A cluster: its keys stand in the trust, and a token is one file for many
	// requests.
	d.admin.Apply(t, fmt.Sprintf(`apiVersion: estover.dev/v1
kind: Trust
metadata: {name: cluster}
spec:
  issuer: %s
  jwks: |
    %s
  algorithms: [RS256]
  audience: %s
  rules:
    - agent: billing-bot
      claims:
        sub: system:serviceaccount:billing:billing-bot
        /kubernetes.io/namespace: billing
`, pods, cluster.set, d.Issuer))
	pod := cluster.token(t, pods, d.Issuer, "system:serviceaccount:billing:billing-bot", map[string]any{"kubernetes.io": map[string]any{"namespace": "billing"}})
	for range 2 {
		if status, answer := d.ask(t, "", "", "grant_type", bearer, "assertion", pod, "resource", d.site.URL); status != http.StatusOK {
			t.Fatalf("a pod: %d %v", status, answer)
		}
	}
	// As the guide has it.
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, []byte(pod), 0o600))
	curl := exec.Command("curl", "-sS", "--cacert", d.CAFile, d.Token, "-d", "grant_type="+bearer, "--data-urlencode", "assertion@"+file, "-d", "resource="+d.site.URL)
	if r := e2etest.Run(t, curl); r.Code != 0 || !strings.Contains(r.Stdout, `"access_token"`) {
		t.Errorf("curl with the token in a file: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	other := cluster.token(t, pods, "https://other.example", "system:serviceaccount:billing:billing-bot", map[string]any{"kubernetes.io": map[string]any{"namespace": "billing"}})
	if _, answer := d.ask(t, "", "", "grant_type", bearer, "assertion", other); answer["error"] != "invalid_grant" {
		t.Errorf("a pod's token for somebody else: %v", answer)
	}
	d.admin.Must(t, "trust", "retire", "cluster")
	if _, answer := d.ask(t, "", "", "grant_type", bearer, "assertion", pod); answer["error"] != "invalid_grant" {
		t.Errorf("after the trust has ended: %v", answer)
	}
}

func indentBy4(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("    " + line)
	}
	return b.String()
}

// matches reports whether a pattern is somewhere in a text.
func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
