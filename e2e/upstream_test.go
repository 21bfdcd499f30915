package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"estover.dev/e2e/e2etest"
)

// A guide is a page of docs/guides, of which a test does what it says.
type guide struct {
	t    *testing.T
	text string
}

func readGuide(t *testing.T, name string, replace ...string) guide {
	t.Helper()
	b, err := os.ReadFile("../docs/guides/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return guide{t, strings.NewReplacer(replace...).Replace(string(b))}
}

// command is the command of the page that begins like this, as words.
func (g guide) command(begin string) string {
	g.t.Helper()
	m := regexp.MustCompile(`(?m)^ {7}(` + regexp.QuoteMeta(begin) + `.*)$`).FindStringSubmatch(g.text)
	if m == nil {
		g.t.Fatalf("the guide has no command %q", begin)
	}
	return m[1]
}

// yaml is the one block of YAML.
func (g guide) yaml() string {
	g.t.Helper()
	m := regexp.MustCompile("(?s) *```yaml\n(.*?)```").FindStringSubmatch(g.text)
	if m == nil {
		g.t.Fatal("the guide has no YAML")
	}
	return regexp.MustCompile(`(?m)^ {3}`).ReplaceAllString(m[1], "")
}

// shell does a command of a page in a folder, as an administrator.
func shell(t *testing.T, d *desk, dir, command string) (stdout, stderr string, err error) {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(e2etest.Binary(t), filepath.Join(bin, "estover")); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	c := exec.Command("sh", "-c", command)
	c.Dir = dir
	c.Env = append(d.admin.Command("version").Env, "PATH="+bin+":"+os.Getenv("PATH"))
	var out, errs strings.Builder
	c.Stdout, c.Stderr = &out, &errs
	err = c.Run()
	return out.String(), errs.String(), err
}

func (d *desk) does(t *testing.T, dir, command string) string {
	t.Helper()
	out, errs, err := shell(t, d, dir, command)
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", command, err, out, errs)
	}
	return out
}

// TestSignRequestsToAWS is the guide as it is written, with curl as the client and a
// server that verifies signatures as S3 does, by the library of AWS.
func TestSignRequestsToAWS(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	const id, key = "AKIAEXAMPLEEXAMPLE", "the/real+key+that+only+the+vault+has"
	var mu sync.Mutex
	got := map[string]string{}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	s3 := d.world.Site(t, "reports", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		at, bad := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		again := r.Clone(context.Background())
		again.URL.Scheme, again.URL.Host, again.Header, again.ContentLength = "https", r.Host, http.Header{}, 0
		_, names, _ := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders=")
		names, _, _ = strings.Cut(names, ",")
		for name := range strings.SplitSeq(names, ";") {
			if name != "host" {
				again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
			}
		}
		payload := r.Header.Get("X-Amz-Content-Sha256")
		if err == nil {
			err = signer.SignHTTP(r.Context(), aws.Credentials{AccessKeyID: id, SecretAccessKey: key}, again, payload, "s3", "eu-central-1", at)
		}
		if err != nil || bad != nil || again.Header.Get("Authorization") != r.Header.Get("Authorization") {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, "<Code>SignatureDoesNotMatch</Code> %s", r.Header.Get("Authorization"))
			return
		}
		mu.Lock()
		defer mu.Unlock()
		got[r.URL.Path] = string(body)
	}))
	g := readGuide(t, "sign-requests-to-aws.md", "https://reports.s3.eu-central-1.amazonaws.com", s3.URL, "reports.s3.eu-central-1.amazonaws.com", strings.TrimPrefix(s3.URL, "https://"))
	dir := t.TempDir()
	for name, text := range map[string]string{"id.txt": id + "\n", "key.txt": key + "\n", "report.txt": "all is well"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.does(t, dir, g.command("estover secret create"))
	d.does(t, dir, g.command("estover secret put"))
	// Where the bucket is of this test is not in the guide.
	d.admin.Apply(t, strings.Replace(g.yaml(), "  class: confidential\n", fmt.Sprintf("  address: %s\n  allow_private: [127.0.0.0/8]\n  ca: |\n%s  class: confidential\n", s3.Address, indented(t, d)), 1))
	d.does(t, dir, g.command("estover run"))
	if got["/2026/report.txt"] != "all is well" {
		t.Errorf("S3 has %v", got)
	}
	// The same without the gateway's signature is nothing.
	out, _, err := shell(t, d, dir, `estover run --agent bot --purpose support -- sh -c 'echo "$AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY"'`)
	if err != nil || !regexp.MustCompile(`^est_ph_\w{26} est_ph_\w{26}\n$`).MatchString(out) {
		t.Errorf("the agent's variables are %q (%v)", out, err)
	}
	// What the agent may not do is not signed.
	if out, errs, err := shell(t, d, dir, `estover run --agent bot --purpose support -- curl -sS -X DELETE `+s3.URL+`/2026/report.txt`); err != nil || !strings.Contains(out, `"code":"unknown_action"`) {
		t.Errorf("to delete: %v %s%s", err, out, errs)
	}
}

// indented is the authority of a desk's upstreams, as a block of YAML.
func indented(t *testing.T, d *desk) string {
	t.Helper()
	b, err := os.ReadFile(d.world.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^(.)`).ReplaceAllString(string(b), "    $1")
}

// TestConnectAnOAuthUpstream is the guide as it is written, at an OpenID provider that
// is not ours, and with a person in a real browser.
func TestConnectAnOAuthUpstream(t *testing.T) {
	t.Parallel()
	srv := e2etest.Start(t)
	d := newDesk(t, srv)
	port := e2etest.Port(t)
	host := "127.0.0.1:" + port
	p := exec.Command(node(t), "clients/oidc-provider.mjs")
	p.Env = append(os.Environ(), "ISSUER=http://"+host, "PORT="+port, "REDIRECT="+srv.URL+"/connections/mail/back", "SECRET=the client's: secret", "NODE_ENV=test")
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	var mu sync.Mutex
	var said []string
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			mu.Lock()
			said = append(said, s.Text())
			mu.Unlock()
		}
	}()
	happened := func(what string) int {
		mu.Lock()
		defer mu.Unlock()
		n := 0
		for _, line := range said {
			if strings.HasPrefix(line, what) {
				n++
			}
		}
		return n
	}
	e2etest.Eventually(t, "the provider listens", func() bool { return happened("listening") == 1 })

	g := readGuide(t, "connect-an-oauth-upstream.md", "https://login.example.com", "http://"+host, "login.example.com", host, "https://api.example.com", "http://"+host, "api.example.com", host)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "client-secret.txt"), []byte("the client's: secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.does(t, dir, g.command("estover secret create"))
	d.does(t, dir, g.command("estover secret put"))
	d.does(t, dir, g.command("estover connection add")+" --allow-private")
	d.admin.Apply(t, strings.Replace(g.yaml(), "  class: confidential\n", "  allow_private: [127.0.0.0/8]\n  class: confidential\n", 1))
	// What is on loopback goes past a proxy by itself.
	me := `estover run --agent bot --purpose support -- curl -sS --noproxy "" http://` + host + `/me`
	if got := d.does(t, dir, me); !strings.Contains(got, "connection_reauthorize") || !strings.Contains(got, "estover connection authorize mail") {
		t.Errorf("before it is authorized the agent gets %s", got)
	}

	page := regexp.MustCompile(`https://\S+/connections/mail`).FindString(d.does(t, dir, g.command("estover connection authorize")))
	var invitation struct{ Link string }
	d.admin.Must(t, "person", "create", "alice", "--role", "operator")
	d.admin.JSON(t, &invitation, "person", "invite", "alice")
	b := srv.Browser(t)
	b.Goto(invitation.Link)
	b.Heading("You are invited")
	b.Click("button", "Go on")
	b.Heading("Welcome, alice")
	b.Click("button", "Make a passkey")
	b.Heading("Keep these recovery codes")
	b.Goto(page)
	b.Heading("Connection mail")
	for _, want := range []string{"A person has to authorize it", "http://" + host, "offline_access", "and nowhere else"} {
		if !strings.Contains(b.Text(), want) {
			t.Errorf("the page does not say %q:\n%s", want, b.Text())
		}
	}
	b.Accessible("the page of a connection")
	b.Click("button", "Authorize it")
	b.Heading("Go on to " + host)
	b.Accessible("the page that leads to a provider")
	b.Click("link", "Go on to "+host)
	b.Heading("Sign-in") // with any name and password
	for _, key := range []string{"a", "Tab", "b", "Enter"} {
		b.Key(key)
	}
	b.Click("button", "Continue")
	b.Heading("Connection mail")
	if !strings.Contains(b.Text(), "It is healthy") || strings.Contains(b.URL(), "code=") {
		t.Errorf("back from the provider, at %s:\n%s", b.URL(), b.Text())
	}
	b.Accessible("the page of a healthy connection")

	// She is shown the client's secret, and not its value: she is no administrator.
	b.Goto(srv.URL + "/secrets?path=mail/client")
	b.Heading("Secret mail/client")
	b.Accessible("the page of a secret")
	b.Fill("What you need it for", "to see whether it is the provider's")
	b.Click("button", "Show the value of mail/client")
	if b.Wait(srv.URL + "/secrets/value?path=mail%2Fclient"); strings.Contains(b.Text(), "the client's") {
		t.Errorf("an operator sees the value of a secret:\n%s", b.Text())
	}

	if got := d.does(t, dir, me); !strings.Contains(got, `"sub":"a"`) {
		t.Errorf("authorized, the agent gets %s", got)
	}
	// The provider gives out another refresh token with each use, and ends everything if
	// a used one comes back.
	for range 3 {
		d.does(t, dir, "estover connection renew mail")
	}
	e2etest.Eventually(t, "the provider says that three were used", func() bool { return happened("refresh_token.consumed") >= 3 })
	if got := d.does(t, dir, me); !strings.Contains(got, `"sub":"a"`) || happened("refresh_token.consumed") != 3 || happened("grant.revoked") != 0 {
		mu.Lock()
		defer mu.Unlock()
		t.Errorf("renewed three times, the agent gets %s (the provider says %q)", got, said)
	}
	list := d.does(t, dir, "estover connection list")
	if !regexp.MustCompile(`(?m)^mail +healthy `).MatchString(list) {
		t.Errorf("the list is\n%s", list)
	}
	d.does(t, dir, "estover connection remove mail")
	e2etest.Eventually(t, "the tokens are ended at the provider", func() bool { return happened("grant.revoked") >= 1 })
	if got := d.does(t, dir, me); !strings.Contains(got, "secret_unavailable") {
		t.Errorf("removed, the agent gets %s", got)
	}
}
