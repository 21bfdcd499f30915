package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	hashi "github.com/hashicorp/vault/api"
	"github.com/jackc/pgx/v5"
	bao "github.com/openbao/openbao/api/v2"

	"estover.dev"
	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
)

// An idp signs JWTs for workloads.
type idp struct{ key *ecdsa.PrivateKey }

func newIDP(t *testing.T) idp {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return idp{k}
}

// public is the key in PEM.
func (p idp) public(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(p.key.Public())
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// token is a JWT about a job.
func (p idp) token(t *testing.T, job string) string {
	t.Helper()
	now := time.Now().Unix()
	part := func(v any) string {
		b, err := json.Marshal(v)
		must(t, err)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]any{"alg": "ES256", "typ": "JWT"}) + "." + part(map[string]any{
		"iss": "https://ci.example", "sub": job, "aud": "vault", "iat": now, "nbf": now - 5, "exp": now + 300, "project": "team/app",
	})
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, p.key, sum[:])
	must(t, err)
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// clientCertificate writes a certificate for a client, with its key and its
// authority, into a folder.
func clientCertificate(t *testing.T, dir string) (ca, cert, key string) {
	t.Helper()
	root, leaf := newIDP(t).key, newIDP(t).key
	rootOf := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, rootOf, rootOf, root.Public(), root)
	must(t, err)
	leafDER, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "app"}, NotBefore: rootOf.NotBefore, NotAfter: rootOf.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, rootOf, leaf.Public(), root)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(leaf)
	must(t, err)
	cert, key = filepath.Join(dir, "app.crt"), filepath.Join(dir, "app.key")
	must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER}), 0o600))
	must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})), cert, key
}

// Workloads log in with the clients that they have, by AppRole, JWT and
// certificate, and get a user of a database; what they hold is renewed by the
// clients' own watchers, and is gone when it is given back.
func TestVaultLogins(t *testing.T) {
	t.Parallel()
	pg := enginetest.Postgres(t)
	dbtest.EachURL(t, func(t *testing.T, database string) {
		srv, address := vaultServer(t, "--database", database)
		if strings.HasPrefix(database, "postgres") {
			address = srv.URL + "/vault"
		}
		token := srv.Admin(t).Token(t)
		t.Run("hashicorp", func(t *testing.T) { logInWithVault(t, address, srv.CAFile, token, pg) })
		t.Run("openbao", func(t *testing.T) { logInWithBao(t, address, srv.CAFile, token, pg) })
		t.Run("node-vault", func(t *testing.T) {
			c := exec.Command(node(t), "node-vault-login.mjs")
			c.Env = []string{
				"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8", "VAULT_ADDR=" + address, "VAULT_TOKEN=" + token, "NODE_EXTRA_CA_CERTS=" + srv.CAFile,
				"PG=" + pg.Config.Address, "PG_PASSWORD=" + string(pg.Config.Admin.Secret.Reveal()),
			}
			c.Dir = "clients"
			if r := e2etest.Run(t, c); r.Code != 0 || !strings.Contains(r.Stdout, "all done") {
				t.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
			}
		})
	})
}

// opens reports whether somebody logs in to the database.
func opens(t *testing.T, pg *enginetest.PostgresServer, data map[string]any) bool {
	t.Helper()
	m := engine.Material{}
	for _, name := range []string{"username", "password"} {
		s, _ := data[name].(string)
		m[name] = estover.NewSecret([]byte(s))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, pg.As(m, "crm"))
	if err != nil {
		return false
	}
	return c.Close(ctx) == nil
}

// made is what the roles of these tests create.
const madeUser = `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT readers TO "{{name}}";`

func logInWithVault(t *testing.T, address, ca, token string, pg *enginetest.PostgresServer) {
	authority, certFile, keyFile := clientCertificate(t, t.TempDir())
	client := func(tls hashi.TLSConfig) *hashi.Client {
		config := hashi.DefaultConfig()
		config.Address = address
		tls.CACert = ca
		must(t, config.ConfigureTLS(&tls))
		c, err := hashi.NewClient(config)
		must(t, err)
		return c
	}
	admin := client(hashi.TLSConfig{})
	admin.SetToken(token)
	must(t, admin.Sys().PutPolicy("hashi-app", `path "hashi-db/creds/app" { capabilities = ["read"] }`))
	must(t, admin.Sys().EnableAuthWithOptions("hashi-approle", &hashi.EnableAuthOptions{Type: "approle"}))
	must(t, admin.Sys().EnableAuthWithOptions("hashi-jwt", &hashi.EnableAuthOptions{Type: "jwt"}))
	must(t, admin.Sys().EnableAuthWithOptions("hashi-cert", &hashi.EnableAuthOptions{Type: "cert"}))
	write := func(path string, data map[string]any) *hashi.Secret {
		t.Helper()
		s, err := admin.Logical().Write(path, data)
		must(t, err)
		return s
	}
	read := func(path string) map[string]any {
		t.Helper()
		s, err := admin.Logical().Read(path)
		must(t, err)
		if s == nil {
			t.Fatalf("there is nothing at %s", path)
		}
		return s.Data
	}

	// AppRole, its secret-id wrapped on its way.
	write("auth/hashi-approle/role/app", map[string]any{"token_policies": []string{"hashi-app"}, "token_ttl": "3s", "token_max_ttl": "1h", "secret_id_num_uses": 1})
	admin.SetWrappingLookupFunc(func(_, path string) string {
		if strings.HasSuffix(path, "/secret-id") {
			return "60s"
		}
		return ""
	})
	wrapped := write("auth/hashi-approle/role/app/secret-id", nil)
	admin.SetWrappingLookupFunc(nil)
	if wrapped.WrapInfo == nil || wrapped.WrapInfo.TTL != 60 || wrapped.WrapInfo.WrappedAccessor == "" {
		t.Fatalf("a wrapped secret-id is %+v", wrapped)
	}
	app := client(hashi.TLSConfig{})
	app.SetToken(wrapped.WrapInfo.Token)
	inner, err := app.Logical().Unwrap("")
	must(t, err)
	if _, err := app.Logical().Unwrap(""); err == nil || !strings.Contains(err.Error(), "wrapping token is not valid or does not exist") {
		t.Errorf("unwrapping twice: %v", err)
	}
	app.ClearToken()
	in, err := app.Logical().Write("auth/hashi-approle/login", map[string]any{"role_id": read("auth/hashi-approle/role/app/role-id")["role_id"], "secret_id": inner.Data["secret_id"]})
	must(t, err)
	if in.Auth == nil || !slices.Equal(in.Auth.Policies, []string{"default", "hashi-app"}) || !in.Auth.Renewable || in.Auth.LeaseDuration != 3 {
		t.Fatalf("the log-in gives %+v", in.Auth)
	}
	// A watcher keeps it. Where the machine has held a watcher up for longer than the
	// token had left, the next one has more time.
	keeps := func() (err error) {
		app.SetToken(in.Auth.ClientToken)
		watcher, err := app.NewLifetimeWatcher(&hashi.LifetimeWatcherInput{Secret: in})
		must(t, err)
		go watcher.Start()
		defer watcher.Stop()
		for n := range 2 {
			select {
			case r := <-watcher.RenewCh():
				if r.Secret.Auth == nil || r.Secret.Auth.ClientToken != in.Auth.ClientToken {
					t.Errorf("renewal %d gives %+v", n, r.Secret)
				}
			case err := <-watcher.DoneCh():
				return fmt.Errorf("the watcher stopped: %w", err)
			case <-time.After(time.Minute):
				return errors.New("the watcher has not renewed the token in time")
			}
		}
		self, err := app.Auth().Token().LookupSelf()
		if err != nil {
			return fmt.Errorf("the token after it was renewed: %w", err)
		}
		if name, _ := self.Data["path"].(string); name != "auth/hashi-approle/login" {
			t.Errorf("the token is %+v", self.Data)
		}
		return nil
	}
	if err := keeps(); err != nil {
		t.Logf("with three seconds, %v", err)
		write("auth/hashi-approle/role/app", map[string]any{"token_policies": []string{"hashi-app"}, "token_ttl": "20s", "token_max_ttl": "1h", "secret_id_num_uses": 1})
		secret := write("auth/hashi-approle/role/app/secret-id", nil).Data["secret_id"]
		app.ClearToken()
		in, err = app.Logical().Write("auth/hashi-approle/login", map[string]any{"role_id": read("auth/hashi-approle/role/app/role-id")["role_id"], "secret_id": secret})
		must(t, err)
		must(t, keeps())
	}

	// JWT and certificate.
	ci := newIDP(t)
	write("auth/hashi-jwt/config", map[string]any{"jwt_validation_pubkeys": []string{ci.public(t)}, "bound_issuer": "https://ci.example"})
	write("auth/hashi-jwt/role/deploy", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{"vault"}, "bound_claims_type": "glob", "bound_claims": map[string]any{"project": "team/*"}, "token_policies": "hashi-app",
	})
	in, err = app.Logical().Write("auth/hashi-jwt/login", map[string]any{"role": "deploy", "jwt": ci.token(t, "job-7")})
	must(t, err)
	if in.Auth.Metadata["role"] != "deploy" {
		t.Errorf("by a JWT: %+v", in.Auth)
	}
	if _, err = app.Logical().Write("auth/hashi-jwt/login", map[string]any{"role": "deploy", "jwt": newIDP(t).token(t, "job-7")}); err == nil {
		t.Error("a JWT that somebody else has signed lets in")
	}
	write("auth/hashi-cert/certs/app", map[string]any{"certificate": authority, "allowed_common_names": "app", "token_policies": "hashi-app"})
	shown := client(hashi.TLSConfig{ClientCert: certFile, ClientKey: keyFile})
	in, err = shown.Logical().Write("auth/hashi-cert/login", nil)
	must(t, err)
	shown.SetToken(in.Auth.ClientToken)
	_, err = shown.Auth().Token().LookupSelf()
	must(t, err)
	app.SetToken(in.Auth.ClientToken)
	if _, err = app.Auth().Token().LookupSelf(); err == nil {
		t.Error("a token that is bound to a certificate is good without it")
	}
	if _, err = app.Logical().Write("auth/hashi-cert/login", nil); err == nil {
		t.Error("somebody without a certificate logs in by one")
	}

	// A user of a database.
	must(t, admin.Sys().Mount("hashi-db", &hashi.MountInput{Type: "database"}))
	write("hashi-db/config/crm", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": []string{"app"}, "connection_url": "postgresql://{{username}}:{{password}}@" + pg.Config.Address + "?sslmode=disable",
		"username": pg.Config.Admin.User, "password": string(pg.Config.Admin.Secret.Reveal()),
	})
	write("hashi-db/roles/app", map[string]any{"db_name": "crm", "creation_statements": []string{madeUser}, "default_ttl": "1h", "max_ttl": "24h"})
	creds, err := admin.Logical().Read("hashi-db/creds/app")
	must(t, err)
	if !creds.Renewable || creds.LeaseDuration != 3600 || !opens(t, pg, creds.Data) {
		t.Errorf("the user of the database: %+v; it logs in: %v", creds, opens(t, pg, creds.Data))
	}
	renewed, err := admin.Sys().Renew(creds.LeaseID, 7200)
	must(t, err)
	if renewed.LeaseID != creds.LeaseID || renewed.LeaseDuration < 3500 {
		t.Errorf("renewed: %+v", renewed)
	}
	lease, err := admin.Sys().Lookup(creds.LeaseID)
	must(t, err)
	if lease.Data["id"] != creds.LeaseID {
		t.Errorf("looked up: %+v", lease.Data)
	}
	must(t, admin.Sys().RevokeWithOptions(&hashi.RevokeOptions{LeaseID: creds.LeaseID, Sync: true}))
	if opens(t, pg, creds.Data) {
		t.Error("a user logs in whose lease was revoked")
	}

	// Tokens of tokens.
	child, err := admin.Auth().Token().Create(&hashi.TokenCreateRequest{Policies: []string{"hashi-app"}, TTL: "10m", DisplayName: "deploy", Metadata: map[string]string{"a": "b"}, NumUses: 3})
	must(t, err)
	if child.Auth.LeaseDuration != 600 || child.Auth.Metadata["a"] != "b" {
		t.Errorf("a token: %+v", child.Auth)
	}
	by, err := admin.Auth().Token().LookupAccessor(child.Auth.Accessor)
	must(t, err)
	if left, err := by.TokenTTL(); err != nil || left < 9*time.Minute || by.Data["display_name"] != "token-deploy" {
		t.Errorf("by its accessor: %+v, %v", by.Data, err)
	}
	must(t, admin.Auth().Token().RevokeAccessor(child.Auth.Accessor))
	app.SetToken(child.Auth.ClientToken)
	if _, err := app.Auth().Token().LookupSelf(); err == nil {
		t.Error("a revoked token is good")
	}
}

func logInWithBao(t *testing.T, address, ca, token string, pg *enginetest.PostgresServer) {
	client := func() *bao.Client {
		config := bao.DefaultConfig()
		config.Address = address
		must(t, config.ConfigureTLS(&bao.TLSConfig{CACert: ca}))
		c, err := bao.NewClient(config)
		must(t, err)
		return c
	}
	admin := client()
	admin.SetToken(token)
	must(t, admin.Sys().PutPolicy("bao-app", `path "cubbyhole/*" { capabilities = ["create", "read", "update", "list"] }`))
	must(t, admin.Sys().EnableAuthWithOptions("bao-approle", &bao.EnableAuthOptions{Type: "approle"}))
	must(t, admin.Sys().EnableAuthWithOptions("bao-jwt", &bao.EnableAuthOptions{Type: "jwt"}))
	write := func(c *bao.Client, path string, data map[string]any) *bao.Secret {
		t.Helper()
		s, err := c.Logical().Write(path, data)
		must(t, err)
		return s
	}
	write(admin, "auth/bao-approle/role/app", map[string]any{"token_policies": []string{"bao-app"}, "token_period": "3s"})
	id, err := admin.Logical().Read("auth/bao-approle/role/app/role-id")
	must(t, err)
	secret := write(admin, "auth/bao-approle/role/app/secret-id", map[string]any{"metadata": `{"env":"ci"}`})
	app := client()
	in := write(app, "auth/bao-approle/login", map[string]any{"role_id": id.Data["role_id"], "secret_id": secret.Data["secret_id"]})
	if in.Auth.LeaseDuration != 3 || in.Auth.Metadata["env"] != "ci" {
		t.Fatalf("the log-in gives %+v", in.Auth)
	}
	keeps := func() (err error) { // as above
		app.SetToken(in.Auth.ClientToken)
		watcher, err := app.NewLifetimeWatcher(&bao.LifetimeWatcherInput{Secret: in})
		must(t, err)
		go watcher.Start()
		defer watcher.Stop()
		for range 2 {
			select {
			case <-watcher.RenewCh():
			case err := <-watcher.DoneCh():
				return fmt.Errorf("the watcher stopped: %w", err)
			case <-time.After(time.Minute):
				return errors.New("the watcher has not renewed the token in time")
			}
		}
		if _, err := app.Logical().Write("cubbyhole/mine", map[string]any{"n": 1}); err != nil {
			return fmt.Errorf("writing into the cubbyhole: %w", err)
		}
		got, err := app.Logical().Read("cubbyhole/mine")
		if err != nil {
			return fmt.Errorf("reading the cubbyhole: %w", err)
		}
		if n, _ := got.Data["n"].(json.Number); n != "1" {
			t.Errorf("the cubbyhole has %v", got.Data)
		}
		return nil
	}
	if err := keeps(); err != nil {
		t.Logf("with three seconds, %v", err)
		write(admin, "auth/bao-approle/role/app", map[string]any{"token_policies": []string{"bao-app"}, "token_period": "20s"})
		secret := write(admin, "auth/bao-approle/role/app/secret-id", nil)
		app.ClearToken()
		in = write(app, "auth/bao-approle/login", map[string]any{"role_id": id.Data["role_id"], "secret_id": secret.Data["secret_id"]})
		must(t, keeps())
	}

	// Whatever is wrapped comes out as it went in.
	admin.SetWrappingLookupFunc(func(string, string) string { return "30s" })
	waits := write(admin, "sys/wrapping/wrap", map[string]any{"a": "b"})
	admin.SetWrappingLookupFunc(nil)
	look, err := admin.Logical().Write("sys/wrapping/lookup", map[string]any{"token": waits.WrapInfo.Token})
	must(t, err)
	if ttl, _ := look.Data["creation_ttl"].(json.Number); ttl != "30" {
		t.Errorf("what waits is %v", look.Data)
	}
	out, err := admin.Logical().Unwrap(waits.WrapInfo.Token)
	must(t, err)
	if out.Data["a"] != "b" {
		t.Errorf("unwrapped it is %v", out.Data)
	}

	ci := newIDP(t)
	write(admin, "auth/bao-jwt/config", map[string]any{"jwt_validation_pubkeys": ci.public(t)})
	write(admin, "auth/bao-jwt/role/deploy", map[string]any{"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "bound_subject": "job-7", "token_policies": []string{"bao-app"}})
	in = write(client(), "auth/bao-jwt/login", map[string]any{"role": "deploy", "jwt": ci.token(t, "job-7")})
	if in.Auth.ClientToken == "" {
		t.Errorf("by a JWT: %+v", in.Auth)
	}

	must(t, admin.Sys().Mount("bao-db", &bao.MountInput{Type: "database"}))
	write(admin, "bao-db/config/crm", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "connection_url": "postgresql://{{username}}:{{password}}@" + pg.Config.Address + "?sslmode=disable",
		"username": pg.Config.Admin.User, "password": string(pg.Config.Admin.Secret.Reveal()),
	})
	write(admin, "bao-db/roles/app", map[string]any{"db_name": "crm", "creation_statements": madeUser})
	creds, err := admin.Logical().Read("bao-db/creds/app")
	must(t, err)
	if !opens(t, pg, creds.Data) {
		t.Errorf("the user of the database does not log in: %+v", creds)
	}
	must(t, admin.Sys().RevokePrefix("bao-db/creds/app"))
	for deadline := time.Now().Add(time.Minute); opens(t, pg, creds.Data); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a user logs in whose lease was revoked")
		}
	}
	must(t, admin.Auth().Token().RevokeTree(in.Auth.ClientToken))
	gone := client()
	gone.SetToken(in.Auth.ClientToken)
	if _, err := gone.Auth().Token().LookupSelf(); err == nil {
		t.Error("a revoked token is good")
	}
}
