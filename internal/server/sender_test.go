package server_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/jose"
	"estover.dev/internal/server"
)

// A prover sends requests with DPoP proofs, as a library does: with the nonce of
// the last answer, and once more when it is told another one.
type prover struct {
	h     *house
	key   crypto.Signer
	base  string // of htu: the issuer
	nonce string
}

func (h *house) prover() *prover {
	h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	return &prover{h: h, key: key, base: "http://localhost:" + port}
}

func (p *prover) proof(method, path, token string) string {
	p.h.t.Helper()
	c := map[string]any{"jti": rand.Text(), "htm": method, "htu": p.base + path, "iat": time.Now().Unix()}
	if p.nonce != "" {
		c["nonce"] = p.nonce
	}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		c["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	signer, err := jose.NewSigner(jose.DPoPProof, "", p.key)
	if err != nil {
		p.h.t.Fatal(err)
	}
	s, err := jose.Sign(jose.DPoPProof, signer, c)
	if err != nil {
		p.h.t.Fatal(err)
	}
	return s
}

// do sends a request with a proof, twice if the first has no nonce that is good.
func (p *prover) do(method, path, token string, form url.Values) (*http.Response, string) {
	p.h.t.Helper()
	for again := false; ; again = true {
		var body io.Reader
		if form != nil {
			body = strings.NewReader(form.Encode())
		}
		req, err := http.NewRequest(method, "http://"+p.h.addr+path, body)
		if err != nil {
			p.h.t.Fatal(err)
		}
		if form != nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		if token != "" {
			req.Header.Set("Authorization", "DPoP "+token)
		}
		at, _, _ := strings.Cut(path, "?")
		req.Header.Set("DPoP", p.proof(method, at, token))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			p.h.t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			p.h.t.Fatal(err)
		}
		told := res.Header.Get("DPoP-Nonce")
		if told == "" {
			p.h.t.Errorf("%s %s: %d without a nonce", method, path, res.StatusCode)
		}
		if !again && told != p.nonce {
			p.nonce = told
			if res.StatusCode == http.StatusBadRequest || res.StatusCode == http.StatusUnauthorized {
				continue
			}
		}
		return res, string(b)
	}
}

// token asks for a token that is bound to the key.
func (p *prover) token(resource string) string {
	p.h.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {p.h.agent}, "client_secret": {p.h.secret}}
	if resource != "" {
		form.Set("resource", resource)
	}
	res, body := p.do(http.MethodPost, "/oauth/token", "", form)
	var answer struct {
		Token string `json:"access_token"`
		Type  string `json:"token_type"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Token == "" || answer.Type != "DPoP" {
		p.h.t.Fatalf("no bound token: %d %s", res.StatusCode, body)
	}
	return answer.Token
}

// A bound token works at the gateway's reverse routes and the management API
// with its key, and nowhere without (M6).
func TestDPoPEverywhere(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		p := h.prover()
		route, ours := p.token(h.upstream.URL), p.token("")
		for _, c := range []struct {
			path, token string
			status      int
		}{
			{"/u/crm/v1/items/1?x=y", route, http.StatusOK},
			{"/u/crm/v1/echo", route, http.StatusOK},
			{"/v1/agents", ours, http.StatusForbidden}, // recognised, and not permitted
		} {
			res, body := p.do(http.MethodGet, c.path, c.token, nil)
			if res.StatusCode != c.status {
				t.Errorf("%s with the key: %d %s, want %d", c.path, res.StatusCode, body, c.status)
			}
			if strings.Contains(body, c.token) {
				t.Errorf("%s: the token went to the upstream", c.path)
			}
			for what, headers := range map[string][]string{
				"as Bearer":             {"Authorization", "Bearer " + c.token},
				"without a proof":       {"Authorization", "DPoP " + c.token},
				"with another's proof":  {"Authorization", "DPoP " + c.token, "DPoP", h.prover().with(p.nonce).proof(http.MethodGet, strings.Split(c.path, "?")[0], c.token)},
				"with a proof to write": {"Authorization", "DPoP " + c.token, "DPoP", p.proof(http.MethodPut, strings.Split(c.path, "?")[0], c.token)},
			} {
				if status, b := h.do(http.MethodGet, c.path, "", nil, headers...); status != http.StatusUnauthorized {
					t.Errorf("%s %s: %d %s, want 401", c.path, what, status, b)
				}
			}
		}
		used := []string{"Authorization", "DPoP " + route, "DPoP", p.proof(http.MethodGet, "/u/crm/v1/items/1", route)}
		for i, want := range []int{http.StatusOK, http.StatusUnauthorized} {
			if status, b := h.do(http.MethodGet, "/u/crm/v1/items/1", "", nil, used...); status != want {
				t.Errorf("presentation %d of one proof: %d %s, want %d", i+1, status, b, want)
			}
		}

		// A resource that makes nonces of its own keeps them from the agent.
		res, _ := p.do(http.MethodGet, "/u/crm/v1/items/1", route, nil)
		if got := res.Header.Values("DPoP-Nonce"); len(got) != 1 || got[0] != p.nonce {
			t.Errorf("the answer of an upstream has the nonces %q, want ours alone", got)
		}

		var m struct {
			Algs []string `json:"dpop_signing_alg_values_supported"`
		}
		if _, b := h.do(http.MethodGet, "/.well-known/oauth-authorization-server", "", nil); json.Unmarshal(b, &m) != nil || len(m.Algs) == 0 {
			t.Errorf("the metadata names no algorithms for proofs: %s", b)
		}
	})
}

func (p *prover) with(nonce string) *prover {
	p.nonce = nonce
	return p
}

// A token that is bound to a key is good at the door for clients of Vault with its
// proof, and buys no token there that anybody could use without (V35).
func TestBoundTokenAtVaultDoor(t *testing.T) {
	h := build(t, "")
	p := h.prover()
	token := p.token("")
	if res, body := p.do(http.MethodGet, "/vault/v1/auth/token/lookup-self", token, nil); res.StatusCode != http.StatusOK {
		t.Errorf("with its proof: %d %s", res.StatusCode, body)
	}
	if res, body := p.do(http.MethodPost, "/vault/v1/auth/token/create", token, url.Values{}); res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "bound to a key") {
		t.Errorf("buying another: %d %s, want 400 and why", res.StatusCode, body)
	}
	if status, b := h.do(http.MethodGet, "/vault/v1/auth/token/lookup-self", "", nil, "X-Vault-Token", token); status != http.StatusForbidden {
		t.Errorf("without the proof: %d %s, want 403", status, b)
	}
}

// A client with dpop_bound_access_tokens, as a file says it.
func TestDPoPBoundByFile(t *testing.T) {
	h := build(t, "")
	text := `
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot}
spec: {blueprint: support, sponsor: alice, purposes: [support], clearance: confidential, client: {dpop_bound_access_tokens: true}}
`
	h.must(http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "bot.yaml", "text": text}}}, nil)
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {h.agent}, "client_secret": {h.secret}}
	res, err := http.PostForm("http://"+h.addr+"/oauth/token", form)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusBadRequest || !strings.Contains(string(b), "invalid_dpop_proof") || res.Header.Get("DPoP-Nonce") == "" {
		t.Errorf("without a proof: %d %s", res.StatusCode, b)
	}
	h.prover().token("")
}

// The use of a backup credential is told wherever somebody may look for it: in
// the log of events, in the server's own log, and in its metrics (M37).
func TestBackupCredentialIsTold(t *testing.T) {
	h := build(t, "")
	var c struct {
		ID     string
		Secret string `json:"client_secret"`
	}
	h.must(http.MethodPost, "/v1/agents/bot/credentials", map[string]any{"kind": "secret", "backup": true, "label": "safe"}, &c)
	uses := func() string {
		t.Helper()
		_, b := h.do(http.MethodGet, "/metrics", h.token, nil)
		for line := range strings.Lines(string(b)) {
			if n, ok := strings.CutPrefix(line, "estover_backup_credential_uses_total "); ok {
				return strings.TrimSpace(n)
			}
		}
		return ""
	}
	h.apiToken()
	if n := uses(); n != "0" {
		t.Errorf("before the backup is used the metrics count %q", n)
	}
	h.secret = c.Secret
	h.apiToken()
	if n := uses(); n != "1" {
		t.Errorf("after one use the metrics count %q", n)
	}
	if !strings.Contains(h.logs.String(), "a backup credential was used") {
		t.Error("the server's log does not tell of it")
	}
	var events struct {
		Items []struct {
			Actor  string
			Detail map[string]any
		}
	}
	h.must(http.MethodGet, "/v1/events?action=credential.use_backup", nil, &events)
	if len(events.Items) != 1 || events.Items[0].Actor != "agent:"+h.agent || events.Items[0].Detail["credential"] != c.ID {
		t.Errorf("the events of it are %+v", events.Items)
	}
}

// Clients with certificates have an address of their own: there they are asked
// for one, their tokens are bound to it, and nobody else is asked.
func TestMutualTLSListener(t *testing.T) {
	h := &house{t: t, key: "crm_live_0123456789abcdef", logs: &syncBuffer{}, addr: freeAddr(t)}
	mutual := freeAddr(t)
	h.config = server.Config{
		Data: filepath.Join(t.TempDir(), "data"), Listen: h.addr, Gateway: freeAddr(t), MTLS: mutual,
	}
	root := filepath.Join(h.config.Data, "tls", "ca.crt")
	client := func(certs ...tls.Certificate) *http.Client {
		config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: certs, RootCAs: x509.NewCertPool(), ServerName: "localhost"}
		if pem, err := os.ReadFile(root); err == nil {
			config.RootCAs.AppendCertsFromPEM(pem)
		}
		transport := &http.Transport{TLSClientConfig: config}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	h.run(func() bool {
		res, err := client().Get("https://" + h.addr + "/readyz")
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusNoContent
	})
	send := func(c *http.Client, method, url, bearer, contentType, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	admin := func(path string, body string, out any) {
		t.Helper()
		status, b := send(client(), http.MethodPost, "https://"+h.addr+path, h.token, "application/json", body)
		if status >= 300 {
			t.Fatalf("%s: %d %s", path, status, b)
		}
		if out != nil {
			if err := json.Unmarshal([]byte(b), out); err != nil {
				t.Fatal(err)
			}
		}
	}
	once, err := os.ReadFile(filepath.Join(h.config.Data, "bootstrap-token"))
	if err != nil {
		t.Fatal(err)
	}
	var in struct{ Token string }
	admin("/v1/login", `{"token":"`+strings.TrimSpace(string(once))+`"}`, &in)
	h.token = in.Token
	text, err := json.Marshal(map[string]any{"files": []map[string]string{{"path": "bot.yaml", "text": `
apiVersion: estover.dev/v1
kind: Person
metadata: {name: alice}
spec: {}
---
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot}
spec: {blueprint: support, sponsor: alice, purposes: [support], clearance: confidential}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: crm}
spec: {base_url: "https://crm.example.com", class: confidential, actions: [{name: item.read, method: GET, path: /v1/items}]}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: bot-reads}
spec: {agent: bot, resource: crm, actions: [item.read], purposes: [support], class: confidential}
`}}})
	if err != nil {
		t.Fatal(err)
	}
	admin("/v1/apply", string(text), nil)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := jose.NewKey("", "1", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	set, err := jose.NewKeys(public).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var made struct {
		ID string `json:"client_id"`
	}
	admin("/v1/agents/bot/credentials", `{"kind":"jwks","jwks":`+string(set)+`}`, &made)

	var m struct {
		Issuer  string
		Token   string            `json:"token_endpoint"`
		Aliases map[string]string `json:"mtls_endpoint_aliases"`
		Bound   bool              `json:"tls_client_certificate_bound_access_tokens"`
		Methods []string          `json:"token_endpoint_auth_methods_supported"`
	}
	_, doc := send(client(), http.MethodGet, "https://"+h.addr+"/.well-known/oauth-authorization-server", "", "", "")
	if err := json.Unmarshal([]byte(doc), &m); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(mutual)
	if at := m.Aliases["token_endpoint"]; at != "https://localhost:"+port+"/oauth/token" || !m.Bound || !slices.Contains(m.Methods, "self_signed_tls_client_auth") {
		t.Fatalf("the metadata is %s", doc)
	}
	var route protected
	_, doc = send(client(), http.MethodGet, "https://"+h.addr+"/.well-known/oauth-protected-resource/u/crm", "", "", "")
	if err := json.Unmarshal([]byte(doc), &route); err != nil || !route.Bound {
		t.Errorf("a route says of itself %s, %v", doc, err)
	}

	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {made.ID}}.Encode()
	const formType = "application/x-www-form-urlencoded"
	if status, b := send(client(cert), http.MethodPost, m.Token, "", formType, form); status != http.StatusUnauthorized {
		t.Errorf("at the address that asks for no certificate: %d %s, want 401", status, b)
	}
	if status, b := send(client(), http.MethodPost, m.Aliases["token_endpoint"], "", formType, form); status != http.StatusUnauthorized {
		t.Errorf("without a certificate: %d %s, want 401", status, b)
	}
	status, b := send(client(cert), http.MethodPost, m.Aliases["token_endpoint"], "", formType, form)
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(b), &answer); err != nil || answer.Token == "" {
		t.Fatalf("no token by certificate: %d %s", status, b)
	}
	for what, c := range map[string]struct {
		at     string
		client *http.Client
		want   int
	}{
		"with the certificate":             {mutual, client(cert), http.StatusForbidden}, // recognised, and not permitted
		"without":                          {mutual, client(), http.StatusUnauthorized},
		"where nobody is asked for theirs": {h.addr, client(cert), http.StatusUnauthorized},
	} {
		if status, b := send(c.client, http.MethodGet, "https://"+c.at+"/v1/agents", answer.Token, "", ""); status != c.want {
			t.Errorf("the token at the API %s: %d %s, want %d", what, status, b, c.want)
		}
	}

	// A tenant has addresses of its own there, and knows nobody of another.
	admin("/v1/tenants", `{"name":"acme","title":"Acme"}`, nil)
	m.Aliases = nil
	_, doc = send(client(), http.MethodGet, "https://"+h.addr+"/.well-known/oauth-authorization-server/t/acme", "", "", "")
	if err := json.Unmarshal([]byte(doc), &m); err != nil {
		t.Fatal(err)
	}
	at := m.Aliases["token_endpoint"]
	if at != "https://localhost:"+port+"/t/acme/oauth/token" {
		t.Fatalf("the metadata of a tenant is %s", doc)
	}
	if status, b := send(client(cert), http.MethodPost, at, "", formType, form); status != http.StatusUnauthorized {
		t.Errorf("the certificate at another tenant's alias: %d %s, want 401", status, b)
	}
	if status, b := send(client(cert), http.MethodGet, "https://"+mutual+"/t/acme/v1/agents", answer.Token, "", ""); status != http.StatusUnauthorized {
		t.Errorf("the token that is bound to it at another tenant: %d %s, want 401", status, b)
	}
}
