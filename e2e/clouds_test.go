package e2e

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream/aws/awstest"
	"estover.dev/internal/secret/upstream/azure/azuretest"
	"estover.dev/internal/secret/upstream/google/googletest"
)

// A cloud is the secret manager of one, with what the commands say of it.
type cloud struct {
	manager interface {
		http.Handler
		Write(name, text string)
		All(name string) []string
	}
	admin    engine.Credential
	host     string       // of the cloud, in the guide
	options  string       // to log in at all
	exchange http.Handler // gives a credential to whoever has an assertion that it trusts
	asserts  string       // options to log in with one; EXCHANGE is where
	audience string
}

// A trust is what a cloud knows of an issuer: it reads its discovery document and keys, and
// takes what is signed by it for an audience and of one subject.
type trust struct {
	issuer   string
	client   *http.Client
	audience string

	mu      sync.Mutex
	subject string
}

func (x *trust) takes(assertion string) bool {
	ctx := oidc.ClientContext(context.Background(), x.client)
	p, err := oidc.NewProvider(ctx, x.issuer)
	if err != nil {
		return false
	}
	token, err := p.Verifier(&oidc.Config{ClientID: x.audience, SupportedSigningAlgs: []string{oidc.RS256}}).Verify(ctx, assertion)
	x.mu.Lock()
	defer x.mu.Unlock()
	return err == nil && token.Subject == x.subject
}

func (x *trust) let(subject string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.subject = subject
}

// tokens is a token endpoint at a path, which gives a token for an assertion in a field.
func (x *trust) tokens(path, field string, token engine.Credential) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != path || !x.takes(r.PostFormValue(field)) {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": "invalid_grant", "error_description": r.PostFormValue(field)})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": string(token.Secret.Reveal()), "token_type": "Bearer", "expires_in": 3600})
	})
}

// TestClouds: the secret manager of each cloud is registered, with a secret as the guide has
// it and with an assertion of our issuer, which it looks up as the clouds do; it answers,
// and secrets are read through it, pushed to it and imported from it (M16).
func TestClouds(t *testing.T) {
	t.Parallel()
	srv := e2etest.Start(t)
	d := newDesk(t, srv)
	for _, kind := range []string{"aws", "azure", "google"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			x := &trust{issuer: srv.URL, client: srv.HTTP(t)}
			var c cloud
			switch kind {
			case "aws":
				m, admin := awstest.New()
				c = cloud{
					manager: m, admin: admin, host: "secretsmanager.eu-central-1.amazonaws.com", options: "--option region=eu-central-1", audience: "sts.amazonaws.com",
					exchange: &awstest.Exchange{Manager: m, Trusts: x.takes}, asserts: "--option role=arn:aws:iam::123456789012:role/estover --option sts=EXCHANGE",
				}
			case "azure":
				m, admin := azuretest.New()
				c = cloud{
					manager: m, admin: admin, host: "acme.vault.azure.net", audience: "api://AzureADTokenExchange",
					exchange: x.tokens("/t-1/oauth2/v2.0/token", "client_assertion", admin), asserts: "--option tenant=t-1 --option client=c-1 --option authority=EXCHANGE",
				}
			case "google":
				m, admin := googletest.New()
				c = cloud{
					manager: m, admin: admin, host: "secretmanager.googleapis.com", options: "--option project=acme", audience: "https://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/estover",
					exchange: x.tokens("/v1/token", "subject_token", admin), asserts: "--option sts=EXCHANGE",
				}
			}
			x.audience = c.audience
			s := httptest.NewTLSServer(c.manager)
			t.Cleanup(s.Close)
			must(t, os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
			host := s.Listener.Addr().String()
			does := func(format string, args ...any) string {
				t.Helper()
				return d.does(t, dir, "estover secret "+fmt.Sprintf(format, args...))
			}

			// With a secret that logs in.
			login := "< token.txt"
			must(t, os.WriteFile(filepath.Join(dir, "token.txt"), c.admin.Secret.Reveal(), 0o600))
			if c.admin.User != "" {
				login = "username=@user.txt password=@token.txt"
				must(t, os.WriteFile(filepath.Join(dir, "user.txt"), []byte(c.admin.User), 0o600))
			}
			command := strings.Fields(readGuide(t, "use-another-vault.md", c.host, host).command("estover secret store add " + kind))
			store, path := command[5], command[slices.Index(command, "--login")+1]
			does("create %s --destination %s", path, host)
			does("put %s %s", path, login)
			if out := d.does(t, dir, strings.Join(append(command, "--authorities", "ca.pem"), " ")); !strings.Contains(out, "The store "+store+" is registered.") {
				t.Errorf("registering says:\n%s", out)
			}
			if out := does("store check %s", store); !strings.Contains(out, "answers and lets Estover in") {
				t.Errorf("checking says:\n%s", out)
			}
			c.manager.Write("crm-db", `{"password":"of the database"}`)
			does("link %s/db --store %s --from crm-db --destination crm.example.com", kind, store)
			get := func(path, want string) {
				t.Helper()
				if out := does("get %s/%s --field password --purpose 'to look whether it is the same'", kind, path); strings.TrimSpace(out) != want {
					t.Errorf("%s is %q, want %q", path, out, want)
				}
			}
			get("db", "of the database")
			must(t, os.WriteFile(filepath.Join(dir, "key.txt"), []byte("our key"), 0o600))
			does("create %s/pushed --destination %s", kind, host)
			does("put %s/pushed < key.txt", kind)
			does("sync add %s/pushed %s --to pushed", kind, store)
			e2etest.Eventually(t, "the secret is pushed", func() bool { return slices.Equal(c.manager.All("pushed"), []string{"our key"}) })
			e2etest.Eventually(t, "the sync is told to be in sync", func() bool {
				return strings.Contains(does("sync list --store %s --state synced", store), kind+"/pushed")
			})
			for path, want := range map[string]string{"imp-a": "of a", "imp-b": "of b"} {
				c.manager.Write(path, `{"password":"`+want+`"}`)
			}
			does("import --store %s --from imp- --to %s/", store, kind)
			get("a", "of a")
			get("b", "of b")

			// With an assertion, once the cloud trusts the store.
			exchange := httptest.NewServer(c.exchange)
			t.Cleanup(exchange.Close)
			own := fmt.Sprintf("estover secret store add %s %s-own --address %s --authorities ca.pem %s --option audience=%s %s", kind, kind, s.URL, c.options, c.audience, strings.ReplaceAll(c.asserts, "EXCHANGE", exchange.URL))
			if out, said, err := shell(t, d, dir, own); err == nil || !strings.Contains(out, "is registered") || !strings.Contains(said, "does not answer as it should") || strings.Contains(said, "eyJ") {
				t.Fatalf("before it trusts the store: %v\n%s%s", err, out, said)
			}
			var shown struct{ ID string }
			must(t, json.Unmarshal([]byte(does("store show %s-own -o json", kind)), &shown))
			x.let("store:" + shown.ID)
			does("store check %s-own", kind)
			does("link %s/own --store %s-own --from imp-b --destination crm.example.com", kind, kind)
			get("own", "of b")
		})
	}
	if all := d.does(t, t.TempDir(), "estover secret store list"); strings.Count(all, "\n") != 7 || strings.Count(all, "-own ") != 3 {
		t.Errorf("the stores are:\n%s", all)
	}
}
