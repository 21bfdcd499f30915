package e2e

import (
	"bufio"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	hashi "github.com/hashicorp/vault/api"

	"estover.dev/e2e/e2etest"
)

// A person logs in at the door for clients of Vault, as `vault login -method=oidc` does
// it: with the client of HashiCorp, an OpenID provider that is not ours, and a browser
// that comes back to the person's own machine.
func TestVaultOpenID(t *testing.T) {
	t.Parallel()
	srv, address := vaultServer(t)
	port := e2etest.Port(t)
	host := "127.0.0.1:" + port
	const back = "http://localhost:8250/oidc/callback"
	p := exec.Command(node(t), "clients/oidc-provider.mjs")
	p.Env = append(os.Environ(), "ISSUER=http://"+host, "PORT="+port, "REDIRECT="+back, "SECRET=the client's: secret", "NODE_ENV=test")
	out, err := p.StdoutPipe()
	must(t, err)
	must(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	s := bufio.NewScanner(out)
	for s.Scan() && s.Text() != "listening" {
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()

	client := func(token string) *hashi.Client {
		config := hashi.DefaultConfig()
		config.Address = address
		must(t, config.ConfigureTLS(&hashi.TLSConfig{CACert: srv.CAFile}))
		c, err := hashi.NewClient(config)
		must(t, err)
		c.SetToken(token)
		return c
	}
	admin := client(srv.Admin(t).Token(t))
	must(t, admin.Sys().EnableAuthWithOptions("oidc", &hashi.EnableAuthOptions{Type: "oidc"}))
	write := func(path string, data map[string]any) {
		t.Helper()
		_, err := admin.Logical().Write(path, data)
		must(t, err)
	}
	write("auth/oidc/config", map[string]any{
		"oidc_discovery_url": "http://" + host, "oidc_client_id": "estover", "oidc_client_secret": "the client's: secret", "default_role": "staff", "allow_private": true,
	})
	config, err := admin.Logical().Read("auth/oidc/config")
	must(t, err)
	if config.Data["oidc_client_id"] != "estover" || config.Data["oidc_client_secret"] != nil {
		t.Errorf("the configuration reads %v", config.Data)
	}
	write("auth/oidc/role/staff", map[string]any{
		"user_claim": "email", "groups_claim": "groups", "bound_claims": map[string]any{"groups": []string{"ops"}}, "oidc_scopes": []string{"team"},
		"allowed_redirect_uris": []string{back}, "token_policies": "app",
	})

	nobody := client("")
	begun, err := nobody.Logical().Write("auth/oidc/oidc/auth_url", map[string]any{"redirect_uri": back, "client_nonce": "of this client"})
	must(t, err)
	elsewhere, err := nobody.Logical().Write("auth/oidc/oidc/auth_url", map[string]any{"redirect_uri": back + "/"})
	must(t, err)
	if elsewhere.Data["auth_url"] != "" {
		t.Errorf("back to somewhere else: %v", elsewhere.Data)
	}

	// The browser: it signs in, agrees, and is sent back.
	jar, err := cookiejar.New(nil)
	must(t, err)
	browser := &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), back) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	action, prompt := regexp.MustCompile(`action="([^"]+)"`), regexp.MustCompile(`name="prompt" value="([^"]+)"`)
	res, err := browser.Get(begun.Data["auth_url"].(string))
	must(t, err)
	for res.StatusCode == http.StatusOK {
		page, err := io.ReadAll(res.Body)
		must(t, err)
		must(t, res.Body.Close())
		to, asked := action.FindSubmatch(page), prompt.FindSubmatch(page)
		if to == nil || asked == nil {
			t.Fatalf("the provider shows %s", page)
		}
		at, err := res.Request.URL.Parse(string(to[1]))
		must(t, err)
		res, err = browser.PostForm(at.String(), url.Values{"prompt": {string(asked[1])}, "login": {"ada"}, "password": {"x"}})
		must(t, err)
	}
	must(t, res.Body.Close())
	came, err := url.Parse(res.Header.Get("Location"))
	must(t, err)
	code := func(nonce string) map[string][]string {
		return map[string][]string{"state": {came.Query().Get("state")}, "code": {came.Query().Get("code")}, "client_nonce": {nonce}}
	}
	if _, err := nobody.Logical().ReadWithData("auth/oidc/oidc/callback", code("of another")); err == nil {
		t.Error("another client finishes the log-in")
	}
	in, err := nobody.Logical().ReadWithData("auth/oidc/oidc/callback", code("of this client"))
	must(t, err)
	if in == nil || in.Auth == nil || in.Auth.ClientToken == "" || strings.Join(in.Auth.TokenPolicies, " ") != "app default" || in.Auth.Metadata["role"] != "staff" {
		t.Fatalf("the log-in gives %+v", in)
	}
	if self, err := client(in.Auth.ClientToken).Auth().Token().LookupSelf(); err != nil || self.Data["display_name"] != "oidc-ada@example.com" {
		t.Errorf("the token is %+v, %v", self, err)
	}
	if _, err := nobody.Logical().ReadWithData("auth/oidc/oidc/callback", code("of this client")); err == nil {
		t.Error("a state is good twice")
	}
}
