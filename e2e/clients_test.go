package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/page/pagetest"
)

// An oauthClient is an agent as a program of a stranger knows it: by its credentials
// and by the address of the server.
type oauthClient struct {
	*desk
	id, secret string
	env        []string
}

// newOAuthClient makes the agent of this name as the documents say, with a
// secret and a key.
func newOAuthClient(t *testing.T, d *desk, name string, documents ...string) *oauthClient {
	t.Helper()
	c := &oauthClient{desk: d}
	d.admin.Apply(t, documents...)
	var secret struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	d.admin.JSON(t, &secret, "agent", "credential", "add", name)
	c.id, c.secret = secret.ID, secret.Secret

	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	key, err := jwk.Import(private)
	must(t, err)
	must(t, key.Set(jwk.KeyIDKey, "first"))
	must(t, key.Set(jwk.AlgorithmKey, jwa.ES256()))
	public, err := key.PublicKey()
	must(t, err)
	dir := t.TempDir()
	write := func(name string, v any) string {
		text, err := json.Marshal(v)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
		return filepath.Join(dir, name)
	}
	d.admin.Must(t, "agent", "credential", "add", name, "--jwks", write("jwks.json", map[string]any{"keys": []jwk.Key{public}}))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	must(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	pemFile := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	c.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LANG=C.UTF-8",
		"ISSUER=" + d.URL, "CLIENT_ID=" + c.id, "CLIENT_SECRET=" + c.secret, "CLIENT_KEY=" + write("key.json", key),
		"CERTIFICATE=" + pemFile("bot.pem", "CERTIFICATE", der), "CERTIFICATE_KEY=" + pemFile("bot.key", "PRIVATE KEY", raw),
		"RESOURCE=" + d.site.URL, "API=" + d.URL + "/u/crm/v1/customers/cus_1001",
		// Where each of the clients is told which authority to trust.
		"NODE_EXTRA_CA_CERTS=" + d.CAFile, "REQUESTS_CA_BUNDLE=" + d.CAFile, "CURL_CA_BUNDLE=" + d.CAFile, "SSL_CERT_FILE=" + d.CAFile,
	}
	return c
}

// command is a program in the directory of the clients.
func (c *oauthClient) command(t *testing.T, name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = "clients", c.env
	// When its time is over, what it has started ends with it, and with that
	// whoever reads what they print.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// runs runs a program to its end, which must be a good one.
func (c *oauthClient) runs(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := c.command(t, name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// A visitor is a person at the pages of the server, without a screen.
type visitor struct {
	*pagetest.Browser
	name string
}

// newVisitor is a person who has made a passkey by an invitation.
func newVisitor(t *testing.T, d *desk, name string, roles ...string) visitor {
	t.Helper()
	create := []string{"person", "create", name, "--email", name + "@example.com"}
	for _, role := range roles {
		create = append(create, "--role", role)
	}
	d.admin.Must(t, create...)
	var invitation struct{ Link string }
	d.admin.JSON(t, &invitation, "person", "invite", name)
	_, value, _ := strings.Cut(invitation.Link, "#")
	to, err := url.Parse(d.URL)
	must(t, err)
	pages := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, Transport: d.HTTP(t).Transport}
	v := visitor{pagetest.New(t, pages, d.URL), name}
	start := v.Send(v.Load("/login/invitation"), "/login/invitation", "invitation", value)
	if end := v.Send(start, "/login/enrol", "label", "laptop"); end.Status != http.StatusOK {
		t.Fatalf("making a passkey: %d\n%s", end.Status, end.Body)
	}
	return v
}

// open goes where an agent sends the person, says yes if there is a question,
// and goes back to the agent.
func (v visitor) open(address string) {
	v.T.Helper()
	page := v.Go(strings.TrimPrefix(address, v.Origin))
	if page.Status == http.StatusOK {
		page = v.Post("/oauth/consent", v.Fill(page, "/oauth/consent"))
	}
	to := page.Header.Get("Location")
	res, err := http.Get(to)
	if err != nil {
		v.T.Errorf("the way back to the agent from %s (%d) to %q: %v", page.At, page.Status, to, err)
		return
	}
	_ = res.Body.Close()
}

// decide says yes to an agent without a browser.
func (v visitor) decide(page *pagetest.Page) {
	v.T.Helper()
	if page = v.Send(page, "/device/decision", "decision", "allow"); page.Status != http.StatusOK {
		v.T.Errorf("saying yes: %d\n%s", page.Status, page.Body)
	}
}

// visited runs a program to its end while a person does what it says.
func (c *oauthClient) visited(t *testing.T, v visitor, name string, args ...string) {
	t.Helper()
	cmd := c.command(t, name, args...)
	cmd.Env = append(slices.Clone(cmd.Env), "PERSON="+v.name)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch verb, what, _ := strings.Cut(lines.Text(), " "); verb {
		case "Open":
			v.open(what)
		case "Type":
			v.decide(v.Send(v.Load("/device"), "/device", "user_code", what))
			_, err := in.Write([]byte("done\n"))
			must(t, err)
		case "Decide":
			list := v.Load("/device")
			at := regexp.MustCompile(`href="(/device\?request=[^"]+)"`).FindStringSubmatch(list.Body)
			if at == nil || !strings.Contains(list.Body, what) {
				t.Fatalf("of %q the person finds\n%s", what, list.Body)
			}
			v.decide(v.Load(at[1]))
			_, err := in.Write([]byte("done\n"))
			must(t, err)
		default:
			t.Errorf("%s says %s", args, lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, errs.Bytes())
	}
}

var fence = regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```")

// flush is text without the spaces at the beginnings of its lines, since a part
// of a program may stand further left on a page.
func flush(text []byte) string {
	return regexp.MustCompile(`(?m)^[ \t]+`).ReplaceAllString(string(text), "")
}

// TestClients are OAuth clients that are not ours, each by a script of its own
// in the directory clients. The guide has the agent, the code and the versions
// as they are here.
func TestClients(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob("clients/*.*")
	must(t, err)
	var source string
	for _, file := range scripts {
		text, err := os.ReadFile(file)
		must(t, err)
		source += flush(text) + "\n"
	}
	guide, err := os.ReadFile("../docs/guides/clients.md")
	must(t, err)
	var yaml []string
	for _, block := range fence.FindAllSubmatch(guide, -1) {
		if string(block[1]) == "yaml" {
			yaml = append(yaml, string(block[2]))
		} else if !strings.Contains(source, flush(block[2])) {
			t.Errorf("the guide has code that is in none of %q:\n%s", scripts, block[2])
		}
	}
	var pinned struct{ Dependencies map[string]string }
	b, err := os.ReadFile("clients/package.json")
	must(t, err)
	must(t, json.Unmarshal(b, &pinned))
	for name, version := range pinned.Dependencies {
		if !regexp.MustCompile(regexp.QuoteMeta("["+name+"]") + `\([^)]+\) \| ` + regexp.QuoteMeta(version) + ` \|`).Match(guide) {
			t.Errorf("the guide does not say that %s was tried in version %s", name, version)
		}
	}

	d := newDesk(t, e2etest.Start(t))
	reads := func(name string) string {
		return e2etest.Grant(name+"-reads", name, "crm", "customer.list, customer.read", "support")
	}
	c := newOAuthClient(t, d, "client", strings.Replace(e2etest.Agent("client", "support"), "spec: {",
		`spec: {client: {grant_types: [client_credentials, "urn:ietf:params:oauth:grant-type:jwt-bearer"], default_resource: "`+d.site.URL+`"}, `, 1), reads("client"))
	t.Run("oauth4webapi", func(t *testing.T) { c.runs(t, node(t), "oauth4webapi.mjs") })
	t.Run("curl", func(t *testing.T) { c.runs(t, "/bin/sh", "curl.sh") })
	xoauth2 := e2etest.Build(t, t.TempDir(), "xoauth2", "./clients")
	app := newOAuthClient(t, d, "app", yaml[0])
	both := c.handing(t, newOAuthClient(t, d, "helper", strings.Replace(e2etest.Agent("helper", "support"), "spec: {",
		`spec: {client: {grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"], introspect: ["`+d.site.URL+`"]}, `, 1), reads("helper")))
	t.Run("golang.org/x/oauth2", func(t *testing.T) { both.runs(t, xoauth2) })
	t.Run("golang.org/x/oauth2 for a person", func(t *testing.T) {
		erin := newVisitor(t, d, "erin")
		t.Parallel()
		app.visited(t, erin, xoauth2)
	})
	// They wait for people, and so all at once.
	t.Run("oauth4webapi for a person", func(t *testing.T) {
		alice := newVisitor(t, d, "alice")
		t.Parallel()
		app.visited(t, alice, node(t), "oauth4webapi-people.mjs")
	})
	// What MCP's own suite knows of authorization servers; it uses a client without
	// credentials where there may be one.
	t.Run("@modelcontextprotocol/conformance", func(t *testing.T) {
		plain := newOAuthClient(t, d, "plain", strings.NewReplacer("name: app", "name: plain", "agent: app", "agent: plain", "  client:\n", "  client:\n    token_endpoint_auth_methods: [none]\n",
			`, "urn:openid:params:grant-type:ciba"`, "").Replace(yaml[0]))
		grace := newVisitor(t, d, "grace")
		t.Parallel()
		plain.visited(t, grace, node(t), "mcp-conformance.mjs")
	})
	t.Run("oauth4webapi for a person, without credentials", func(t *testing.T) {
		spec := strings.NewReplacer("name: app", "name: public", "agent: app", "agent: public", "  client:\n", "  client:\n    token_endpoint_auth_methods: [none]\n",
			`, "urn:openid:params:grant-type:ciba"`, "").Replace(yaml[0])
		public := newOAuthClient(t, d, "public", spec)
		public.env = append(public.env, "CLIENT_KEY=", "CLIENT_SECRET=")
		bob := newVisitor(t, d, "bob")
		t.Parallel()
		public.visited(t, bob, node(t), "oauth4webapi-people.mjs")
	})
	t.Run("openid-client", func(t *testing.T) { c.runs(t, node(t), "openid-client.mjs") })
	t.Run("openid-client for a person", func(t *testing.T) {
		portal := newOAuthClient(t, d, "portal", strings.NewReplacer("name: app", "name: portal", "agent: app", "agent: portal",
			"grant_types: [", `subject_token_types: ["urn:ietf:params:oauth:token-type:id_token"]
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange", `).Replace(yaml[0]))
		carol := newVisitor(t, d, "carol")
		t.Parallel()
		portal.visited(t, carol, node(t), "openid-client-people.mjs")
	})
	t.Run("openid-client for another agent", func(t *testing.T) { both.runs(t, node(t), "openid-client-exchange.mjs") })
	t.Run("oauth4webapi for another agent", func(t *testing.T) { both.runs(t, node(t), "oauth4webapi-exchange.mjs") })
	t.Run("@modelcontextprotocol/sdk", func(t *testing.T) { c.runs(t, node(t), "mcp-sdk.mjs") })
	t.Run("@modelcontextprotocol/sdk for a person", func(t *testing.T) {
		app.visited(t, newVisitor(t, d, "dave"), node(t), "mcp-sdk-people.mjs")
	})
	t.Run("jose", func(t *testing.T) { c.runs(t, node(t), "jose.mjs") })
	t.Run("python3-authlib for a person", func(t *testing.T) {
		frank := newVisitor(t, d, "frank")
		t.Parallel()
		app.visited(t, frank, "/usr/bin/python3", "python3-authlib-people.py")
	})
	t.Run("python3-authlib", func(t *testing.T) {
		both.runs(t, "/usr/bin/python3", "python3-authlib.py")
		// The same with the token endpoint as the audience of its assertions, which
		// it takes for right by itself.
		spec := strings.Replace(e2etest.Agent("old-client", "support"), "spec: {", "spec: {client: {legacy_assertion_audience: true}, ", 1)
		old := newOAuthClient(t, d, "old-client", spec, reads("old-client"))
		old.env = append(old.env, "LEGACY_ASSERTION_AUDIENCE=yes")
		old.runs(t, "/usr/bin/python3", "python3-authlib.py")
		e2etest.Eventually(t, "the log tells of one assertion for the token endpoint", func() bool {
			return strings.Count(d.Log(), "a client assertion has the token endpoint as its audience") == 1
		})
	})
}

// handing is the agent, which hands its tokens on to another one, and which a
// trust knows by the tokens of its platform.
func (c *oauthClient) handing(t *testing.T, to *oauthClient) *oauthClient {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	file := filepath.Join(t.TempDir(), "platform.pem")
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	key, err := jwk.Import(private.Public())
	must(t, err)
	must(t, key.Set(jwk.KeyIDKey, "platform"))
	must(t, key.Set(jwk.AlgorithmKey, jwa.RS256()))
	set, err := json.Marshal(map[string]any{"keys": []jwk.Key{key}})
	must(t, err)
	trust, err := json.Marshal(map[string]any{
		"apiVersion": "estover.dev/v1", "kind": "Trust", "metadata": map[string]any{"name": "platform"},
		"spec": map[string]any{
			"issuer": "https://platform.example", "jwks": string(set), "algorithms": []string{"RS256"}, "audience": c.URL,
			"rules": []any{map[string]any{"agent": "client", "claims": map[string]string{"sub": "job-7"}}},
		},
	})
	must(t, err)
	c.admin.Apply(t, string(trust))
	return &oauthClient{c.desk, c.id, c.secret, append(slices.Clone(c.env), "HELPER_ID="+to.id, "HELPER_SECRET="+to.secret, "PLATFORM_KEY="+file)}
}

// The same clients find their way where the issuer has a path.
func TestClientsBelowAPath(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t, "--issuer", "https://localhost:{port}/id"))
	grant := e2etest.Grant("client-reads", "client", "crm", "customer.list, customer.read", "support")
	c := newOAuthClient(t, d, "client", e2etest.Agent("client", "support"), grant)
	c.env = append(c.env, "ISSUER="+d.URL+"/id")
	t.Run("oauth4webapi", func(t *testing.T) { c.runs(t, node(t), "oauth4webapi.mjs") })
	t.Run("openid-client", func(t *testing.T) { c.runs(t, node(t), "openid-client.mjs") })
	t.Run("jose", func(t *testing.T) { c.runs(t, node(t), "jose.mjs") })
	t.Run("python3-authlib", func(t *testing.T) { c.runs(t, "/usr/bin/python3", "python3-authlib.py") })
}
