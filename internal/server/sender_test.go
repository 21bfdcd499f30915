package server_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/jose"
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
