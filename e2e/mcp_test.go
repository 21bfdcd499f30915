package e2e

import (
	"bufio"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"estover.dev/demo/web"
	"estover.dev/e2e/e2etest"
)

// mcpKey is what the MCP server wants, and nobody but the gateway has.
const mcpKey = "mcp_live_t3st0nly8j3g1r5y9w2d6u"

// An mcpServer is a program with the SDK, which a gate before it keeps for those
// who have its key.
type mcpServer struct {
	*web.Site
	mu       sync.Mutex
	answered []string    // the methods that were answered well
	wrong    http.Header // what came in place of the key, or beside it
}

func newMCPServer(t *testing.T, world *e2etest.World) *mcpServer {
	t.Helper()
	cmd := exec.Command(node(t), "mcp/server.mjs")
	cmd.Dir, cmd.Env, cmd.Stderr = "clients", []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	to, err := url.Parse(strings.TrimSpace(line))
	must(t, err)

	s := &mcpServer{}
	behind := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ModifyResponse: func(r *http.Response) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if r.StatusCode < 300 {
				s.answered = append(s.answered, r.Request.Method)
			}
			return nil
		},
	}
	s.Site = world.Site(t, "mcp", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Equal(r.Header["Authorization"], []string{"Bearer " + mcpKey}) {
			s.mu.Lock()
			s.wrong = r.Header
			s.mu.Unlock()
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		behind.ServeHTTP(w, r)
	}))
	return s
}

// wellUsed demands that the server was called with its key only, also to listen
// and to end sessions.
func (s *mcpServer) wellUsed(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wrong != nil {
		t.Errorf("the server was called with %v", s.wrong)
	}
	for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodDelete} {
		if !slices.Contains(s.answered, method) {
			t.Errorf("the server has answered no %s", method)
		}
	}
}

// An mcpDesk is a desk with the MCP server behind it, too.
type mcpDesk struct {
	*desk
	server *mcpServer
}

// newMCPDesk registers the MCP server as the documents say, which know it under
// another address.
func newMCPDesk(t *testing.T, srv *e2etest.Server, documents string) *mcpDesk {
	t.Helper()
	d := newDesk(t, srv)
	s := newMCPServer(t, d.world)
	ca, err := os.ReadFile(d.world.CAFile())
	must(t, err)
	here := strings.NewReplacer(
		"base_url: https://mcp.example.com", "base_url: "+s.URL+"\n  address: "+s.Address+"\n  allow_private: [127.0.0.0/8]\n  ca: |\n"+
			regexp.MustCompile(`(?m)^`).ReplaceAllString(strings.TrimSpace(string(ca)), "    "),
		"[mcp.example.com]", `["`+strings.TrimPrefix(s.URL, "https://")+`"]`,
	)
	d.admin.Apply(t, here.Replace(documents))
	d.admin.Put(t, "customers/mcp-key", mcpKey)
	return &mcpDesk{d, s}
}

// client is the agent of this name, who knows the URL of the MCP server.
func (d *mcpDesk) client(t *testing.T, name string, documents ...string) *oauthClient {
	t.Helper()
	c := newOAuthClient(t, d.desk, name, documents...)
	c.env = append(c.env, "RESOURCE="+d.server.URL, "MCP_URL="+d.URL+"/u/customers/mcp")
	return c
}

// TestMCP are agents with the TypeScript SDK of MCP, and a server with it. They
// know the URL of the server behind the gateway and their own credentials; the
// rest they find out, beginning with a 401. The guide has the documents and the
// code as they are here.
func TestMCP(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../docs/guides/mcp-clients.md")
	must(t, err)
	scripts, err := filepath.Glob("clients/mcp/*.mjs")
	must(t, err)
	var source string
	for _, file := range scripts {
		text, err := os.ReadFile(file)
		must(t, err)
		source += flush(text) + "\n"
	}
	var documents, own string
	for _, block := range fence.FindAllSubmatch(guide, -1) {
		if string(block[1]) == "yaml" {
			documents += "---\n" + string(block[2])
		} else if string(block[1]) == "json" {
			own = string(block[2]) // what a client says of itself
		} else if !strings.Contains(source, flush(block[2])) {
			t.Errorf("the guide has code that is in none of %q:\n%s", scripts, block[2])
		}
	}

	d := newMCPDesk(t, e2etest.Start(t), documents)
	nightly := d.client(t, "nightly")
	for _, by := range []string{"secret", "key"} {
		t.Run("by its "+by, func(t *testing.T) { nightly.runs(t, node(t), "mcp/unattended.mjs", by) })
	}
	alice := newVisitor(t, d.desk, "alice")
	assistant := d.client(t, "assistant")
	t.Run("for a person", func(t *testing.T) { assistant.visited(t, alice, node(t), "mcp/people.mjs") })
	t.Run("for a person, without credentials", func(t *testing.T) {
		public := d.client(t, "public", strings.Replace(e2etest.Agent("public", "support"), "spec: {", `spec: {client: {
  token_endpoint_auth_methods: [none], grant_types: [authorization_code, refresh_token], redirect_uris: ["http://127.0.0.1/callback"]}, `, 1),
			e2etest.Grant("public-uses-customers", "public", "customers", "customers.use", "support"))
		public.env = append(public.env, "CLIENT_SECRET=")
		public.visited(t, alice, node(t), "mcp/people.mjs")
	})
	d.server.wellUsed(t)

	// RFC 9728 and MCP's scope challenge: what a token lacks is in the refusal.
	t.Run("for more than before", func(t *testing.T) {
		two := strings.Replace(documents, `path: /mcp, effect: execute}`, `path: /mcp, effect: execute}
    - {name: archive.use, method: "*", path: /mcp/archive, effect: execute}`, 1)
		d := newMCPDesk(t, e2etest.Start(t), two)
		bob := newVisitor(t, d.desk, "bob")
		for name, grants := range map[string]string{"careful": "authorization_code", "lasting": "authorization_code, refresh_token"} {
			agent := strings.Replace(e2etest.Agent(name, "support"), "spec: {", "spec: {client: {grant_types: ["+grants+`], redirect_uris: ["http://127.0.0.1/callback"]}, `, 1)
			c := d.client(t, name, agent, e2etest.Grant(name+"-uses", name, "customers", "customers.use, archive.use", "support"))
			if name == "lasting" {
				c.env = append(c.env, "REFRESHES=yes")
			}
			c.visited(t, bob, node(t), "mcp/step-up.mjs")
		}
	})

	t.Run("known by a URL", func(t *testing.T) {
		const named = "https://desk.example/oauth/client.json"
		var at string
		site := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, err := io.WriteString(w, strings.Replace(own, named, at, 1))
			if err != nil {
				t.Error(err)
			}
		}))
		defer site.Close()
		at = site.URL + "/oauth/client.json"
		roots := filepath.Join(t.TempDir(), "roots.pem")
		must(t, os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: site.Certificate().Raw}), 0o600))
		d := newMCPDesk(t, e2etest.Start(t, "--development-client-roots", roots), strings.Replace(documents, named, at, 1))
		known := d.client(t, "desk", e2etest.Grant("desk-uses-customers", "desk", "customers", "customers.use", "support"))
		known.env = append(known.env, "CLIENT_ID="+at, "CLIENT_SECRET=")
		known.visited(t, newVisitor(t, d.desk, "alice"), node(t), "mcp/known.mjs")
	})
	t.Run("below a path", func(t *testing.T) {
		d := newMCPDesk(t, e2etest.Start(t, "--issuer", "https://localhost:{port}/id"), documents)
		nightly := d.client(t, "nightly")
		nightly.env = append(nightly.env, "ISSUER="+d.URL+"/id")
		nightly.runs(t, node(t), "mcp/unattended.mjs", "key")
		d.server.wellUsed(t)
	})
}
