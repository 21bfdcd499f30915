package server_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"estover.dev/internal/page/pagetest"
	"estover.dev/internal/policy"
)

// A visitor is a person with a browser, and an agent that they let act for them.
type visitor struct {
	*pagetest.Browser
	h              *house
	client, secret string
	codes          []string // recovery codes
}

// visitor makes an agent "app" that people can let act for them, and lets alice
// make a passkey.
func (h *house) visitor() *visitor {
	h.t.Helper()
	text := `
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: app}
spec:
  blueprint: support
  sponsor: alice
  purposes: [support]
  clearance: confidential
  client: {grant_types: [authorization_code], redirect_uris: ["https://app.example/callback"], default_resource: "` + h.upstream.URL + `"}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: app-reads}
spec: {agent: app, resource: crm, actions: [item.read, item.change, echo.read], purposes: [support], class: confidential}
`
	h.must(http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "app.yaml", "text": text}}}, nil)
	var c struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	h.must(http.MethodPost, "/v1/agents/app/credentials", map[string]string{"kind": "secret"}, &c)
	at, err := url.Parse("http://" + h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	v := &visitor{Browser: pagetest.New(h.t, httputil.NewSingleHostReverseProxy(at), h.issuer()), h: h, client: c.ID, secret: c.Secret}
	var invitation struct{ Token string }
	h.must(http.MethodPost, "/v1/people/alice/invitations", map[string]int{}, &invitation)
	start := v.Send(v.Load("/login/invitation"), "/login/invitation", "invitation", invitation.Token)
	end := v.Send(start, "/login/enrol", "label", "my laptop")
	v.codes = regexp.MustCompile(`[a-z2-7]{7}(?:-[a-z2-7]{7}){3}`).FindAllString(end.Body, -1)
	if len(v.codes) == 0 {
		h.t.Fatalf("no codes on the page after enrolling: %d\n%s", end.Status, end.Body)
	}
	return v
}

// token is what the agent gets when it sends the person to the authorization
// endpoint. by signs the person in, if they are sent to do that; nil for never.
func (v *visitor) token(by func(at string) (back string), pairs ...string) string {
	v.T.Helper()
	const verifier = "a-verifier-of-the-tests-which-is-long-enough-0"
	sum := sha256.Sum256([]byte(verifier))
	q := url.Values{
		"client_id": {v.client}, "response_type": {"code"}, "redirect_uri": {"https://app.example/callback"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	p := v.Load("/oauth/authorize?" + q.Encode())
	if to := p.Header.Get("Location"); strings.HasPrefix(to, "/login?") {
		if by == nil {
			v.T.Fatalf("the person is sent to sign in: %s", to)
		}
		p = v.Load(by(to))
	} else if by != nil {
		v.T.Fatalf("the person is not sent to sign in: %d to %q", p.Status, to)
	}
	if p.Status == http.StatusOK {
		p = v.Post("/oauth/consent", v.Fill(p, "/oauth/consent"))
	}
	back, err := url.Parse(p.Header.Get("Location"))
	if err != nil || back.Query().Get("code") == "" {
		v.T.Fatalf("no code: %d to %q\n%s", p.Status, p.Header.Get("Location"), p.Body)
	}
	res, err := http.PostForm("http://"+v.h.addr+"/oauth/token", url.Values{
		"grant_type": {"authorization_code"}, "code": {back.Query().Get("code")}, "code_verifier": {verifier}, "client_id": {v.client}, "client_secret": {v.secret},
	})
	if err != nil {
		v.T.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token == "" {
		v.T.Fatalf("no token: %d %v", res.StatusCode, err)
	}
	return answer.Token
}

// byPasskey signs the person in on the page at.
func (v *visitor) byPasskey(at string) string {
	v.T.Helper()
	p := v.Post("/login/passkey", v.Fill(v.Go(at), "/login/passkey"))
	var told struct{ To string }
	if err := json.Unmarshal([]byte(p.Body), &told); err != nil || told.To == "" {
		v.T.Fatalf("signing in: %d %s", p.Status, p.Body)
	}
	return told.To
}

// authTime is when the person at the root of a token proved who they are.
func authTime(t *testing.T, token string) int64 {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Time int64 `json:"auth_time"`
	}
	if err := json.Unmarshal(b, &claims); err != nil {
		t.Fatal(err)
	}
	return claims.Time
}

// freshly is a bundle in which changes want a sign-in that cannot be phished,
// and the rest one of not long ago.
func freshly() policy.Bundle {
	return append(policy.Starter(), policy.File{Path: "freshly.rego", Text: `# METADATA
# title: Fresh sign-ins
# description: What wants the person to have signed in a moment ago, or by a passkey.
package tenant.freshly

# METADATA
# title: A change wants a passkey
oblige contains {"type": "step-up", "acr_value": "phr"} if {
	input.op == "gateway.call"
	input.action.name == "item.change"
}

# METADATA
# title: Reading wants a sign-in of a moment ago
oblige contains {"type": "step-up", "max_age": 300} if {
	input.op == "gateway.call"
	input.action.name == "item.read"
}

# METADATA
# title: An echo wants one of this second
oblige contains {"type": "step-up", "max_age": 1} if {
	input.op == "gateway.call"
	input.action.name == "echo.read"
}
`}, policy.File{Path: "freshly_test.rego", Text: `package tenant.freshly_test

import data.tenant.freshly

test_change if {
	freshly.oblige == {{"type": "step-up", "acr_value": "phr"}} with input as {"op": "gateway.call", "action": {"name": "item.change"}}
}

test_read if {
	freshly.oblige == {{"type": "step-up", "max_age": 300}} with input as {"op": "gateway.call", "action": {"name": "item.read"}}
}

test_echo if {
	freshly.oblige == {{"type": "step-up", "max_age": 1}} with input as {"op": "gateway.call", "action": {"name": "echo.read"}}
}
`})
}

// RFC 9470: a resource tells the client that the person has to sign in anew, the
// client asks for that, and the token that comes of it is enough.
func TestStepUpAtResources(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		v := h.visitor()
		var pushed struct{ Revision struct{ Digest string } }
		h.must(http.MethodPost, "/v1/policies", map[string]any{"files": freshly()}, &pushed)
		h.must(http.MethodPost, "/v1/policies/"+pushed.Revision.Digest+"/activate", map[string]string{"reason": "a test"}, nil)
		call := func(method, token string, path ...string) (int, string) {
			t.Helper()
			res, body := h.get(method, h.issuer()+"/u/crm/v1/"+strings.Join(append(path, "items/7")[:1], ""), "Authorization", "Bearer "+token)
			challenge := res.Header.Get("WWW-Authenticate")
			if res.StatusCode == http.StatusUnauthorized && (param(challenge, "error") != "insufficient_user_authentication" || param(challenge, "resource_metadata") == "" ||
				param(challenge, "scope") == "" || h.code(body) != "insufficient_user_authentication") {
				t.Errorf("%s is refused with %q and %s", method, challenge, body)
			}
			return res.StatusCode, challenge
		}

		// By a passkey of just now both are allowed.
		token := v.token(nil)
		if status, c := call(http.MethodPut, token); status != http.StatusOK {
			t.Errorf("a change after a sign-in by passkey: %d %q", status, c)
		}
		// By a recovery code a change is not.
		v.Cookies = map[string]string{}
		v.Send(v.Load("/login/recovery"), "/login/recovery", "code", v.codes[0])
		weak := v.token(nil)
		if status, c := call(http.MethodGet, weak); status != http.StatusOK {
			t.Errorf("reading after a sign-in by recovery code: %d %q", status, c)
		}
		status, c := call(http.MethodPut, weak)
		if status != http.StatusUnauthorized || param(c, "acr_values") != "phr" || param(c, "max_age") != "" {
			t.Fatalf("a change after a sign-in by recovery code: %d %q", status, c)
		}
		strong := v.token(v.byPasskey, "acr_values", param(c, "acr_values"))
		if status, c := call(http.MethodPut, strong); status != http.StatusOK {
			t.Errorf("a change after the step-up: %d %q", status, c)
		}
		// What has become too old is asked for again, too.
		if status, c := call(http.MethodGet, strong); status != http.StatusOK {
			t.Errorf("reading after the step-up: %d %q", status, c)
		}
		h.until("the sign-in is too old", func() bool {
			status, c = call(http.MethodGet, strong, "echo")
			return status != http.StatusOK
		})
		if status != http.StatusUnauthorized || param(c, "max_age") != "1" || param(c, "acr_values") != "" {
			t.Fatalf("an echo after a while: %d %q", status, c)
		}
		fresh := v.token(v.byPasskey, "max_age", param(c, "max_age"))
		if before, after := authTime(t, strong), authTime(t, fresh); after <= before {
			t.Errorf("after another sign-in auth_time is %v, was %v", after, before)
		}
		// Nobody has signed in for an agent that acts by itself.
		if status, c := call(http.MethodPut, h.accessToken("")); status != http.StatusUnauthorized || param(c, "acr_values") != "phr" {
			t.Errorf("an agent by itself: %d %q", status, c)
		}
		var events struct{ Items []json.RawMessage }
		h.must(http.MethodGet, "/v1/events?action=gateway.call&outcome=refused", nil, &events)
		if len(events.Items) < 3 {
			t.Errorf("%d refusals are on record, want 3", len(events.Items))
		}
	})
}
