package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"

	"estover.dev/e2e/e2etest"
)

// An oauthClient is an agent as a program of a stranger knows it: by its credentials
// and by the address of the server.
type oauthClient struct {
	*desk
	id, secret string
	key        jwk.Key
	env        []string
}

// newOAuthClient makes an agent that may read customers, with a secret and a key,
// and with these lines in its specification.
func newOAuthClient(t *testing.T, d *desk, name, spec string) *oauthClient {
	t.Helper()
	c := &oauthClient{desk: d}
	d.admin.Apply(t, `apiVersion: estover.dev/v1
kind: Agent
metadata: {name: `+name+`}
spec:
  blueprint: test
  sponsor: admin
  purposes: [support]
  clearance: confidential
`+spec, e2etest.Grant(name+"-reads", name, "crm", "customer.list, customer.read", "support"))
	var secret struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	d.admin.JSON(t, &secret, "agent", "credential", "add", name)
	c.id, c.secret = secret.ID, secret.Secret

	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c.key, err = jwk.Import(private)
	must(t, err)
	must(t, c.key.Set(jwk.KeyIDKey, "first"))
	must(t, c.key.Set(jwk.AlgorithmKey, jwa.ES256()))
	public, err := c.key.PublicKey()
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
		"ISSUER=" + d.URL, "CLIENT_ID=" + c.id, "CLIENT_SECRET=" + c.secret, "CLIENT_KEY=" + write("key.json", c.key),
		"CERTIFICATE=" + pemFile("bot.pem", "CERTIFICATE", der), "CERTIFICATE_KEY=" + pemFile("bot.key", "PRIVATE KEY", raw),
		"RESOURCE=" + d.site.URL, "API=" + d.URL + "/u/crm/v1/customers/cus_1001",
		// Where each of the clients is told which authority to trust.
		"NODE_EXTRA_CA_CERTS=" + d.CAFile, "REQUESTS_CA_BUNDLE=" + d.CAFile, "CURL_CA_BUNDLE=" + d.CAFile, "SSL_CERT_FILE=" + d.CAFile,
	}
	return c
}

// runs runs a program to its end, which must be a good one.
func (c *oauthClient) runs(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = "clients", c.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out.Bytes())
	}
}

// TestClients are OAuth clients that are not ours, each by a script of its own
// in the directory clients. What docs/guides/clients.md shows is theirs.
func TestClients(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	c := newOAuthClient(t, d, "client", "")
	t.Run("oauth4webapi", func(t *testing.T) { c.runs(t, node(t), "oauth4webapi.mjs") })
	t.Run("curl", func(t *testing.T) { c.runs(t, "/bin/sh", "curl.sh") })
	t.Run("golang.org/x/oauth2", func(t *testing.T) {
		program := filepath.Join(t.TempDir(), "xoauth2")
		if out, err := exec.Command("go", "build", "-o", program, "./clients").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		c.runs(t, program)
	})
	t.Run("openid-client", func(t *testing.T) { c.runs(t, node(t), "openid-client.mjs") })
	t.Run("jose", func(t *testing.T) { c.runs(t, node(t), "jose.mjs") })
	t.Run("python3-authlib", func(t *testing.T) {
		c.runs(t, "/usr/bin/python3", "python3-authlib.py")
		// The same with the token endpoint as the audience of its assertions, which
		// it takes for right by itself.
		old := newOAuthClient(t, d, "old-client", "  client: {legacy_assertion_audience: true}\n")
		old.env = append(old.env, "LEGACY_ASSERTION_AUDIENCE=yes")
		old.runs(t, "/usr/bin/python3", "python3-authlib.py")
		if n := strings.Count(d.Log(), "a client assertion has the token endpoint as its audience"); n != 1 {
			t.Errorf("the log tells of %d assertions for the token endpoint, want 1", n)
		}
	})
}
