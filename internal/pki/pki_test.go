package pki_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/pki"
	"estover.dev/internal/seal"
)

var (
	ann = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
	bot = estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_bot"), Session: "ses_1", Purpose: "billing"}
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
)

// A house is authorities with what they rest on.
type house struct {
	*pki.PKI
	t      testing.TB
	db     *db.DB
	guard  *guard.Guard
	sealer *seal.Sealer
	until  atomic.Pointer[time.Time] // of the bot's grant
}

func build(t testing.TB, d *db.DB, decider guard.Decider) *house {
	t.Helper()
	s, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
	if err != nil {
		t.Fatal(err)
	}
	s.Hold(pki.Holdings...)
	h := &house{t: t, db: d, guard: guardtest.New(t, d, decider), sealer: s}
	h.PKI = h.node(h.guard)
	return h
}

// node is one more that answers for the same authorities.
func (h *house) node(g *guard.Guard) *pki.PKI {
	return pki.New(g, h.sealer, pki.Options{
		Session: func(ctx context.Context, tenant estover.TenantID, id string) (s pki.Session, err error) {
			err = h.db.View(ctx, tenant, func(tx *db.Tx) error {
				return tx.QueryRow(ctx, `select agent_id, expires_at, epoch from session where tenant_id = $1 and id = $2`, tenant, id).Scan(&s.Agent, &s.ExpiresAt, &s.Epoch.Epoch)
			})
			s.Epoch.Table, s.Epoch.ID = "session", id
			return s, err
		},
		Until: func(context.Context, estover.Caller, string, string, map[string]string) (end time.Time, err error) {
			if at := h.until.Load(); at != nil {
				end = *at
			}
			return end, nil
		},
		URL:    func(_ estover.TenantID, id string) string { return "https://estover.example/pki/" + id },
		Logger: slog.New(slog.DiscardHandler),
	})
}

// session opens one for the bot.
func (h *house) session(id string, life time.Duration) {
	h.t.Helper()
	err := h.db.Do(h.t.Context(), "acme", func(tx *db.Tx) error {
		_, err := tx.Exec(h.t.Context(), `insert into session (tenant_id, id, agent_id, purpose, ambient, opened_at, opened_by, expires_at, epoch)
			values ($1, $2, 'agt_bot', 'billing', $3, $4, 'agent:agt_bot', $5, 1)`, tx.Tenant(), id, false, tx.Now(), tx.Now().Add(life))
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// end ends sessions with what was certified in them.
func (h *house) end(ids ...string) (n int) {
	h.t.Helper()
	err := h.guard.Do(h.t.Context(), ann, guard.Op{Action: "session.end"}, func(tx *guard.Tx) error {
		for _, id := range ids {
			if _, err := tx.Exec(h.t.Context(), `update session set ended_at = $3, end_cause = 'a test', epoch = epoch + 1 where tenant_id = $1 and id = $2`, tx.Tenant(), id, tx.Now()); err != nil {
				return err
			}
		}
		var err error
		n, err = h.EndOfSessions(h.t.Context(), tx, ids)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// root makes one, and a role agents.
func (h *house) root(name string) *pki.Authority {
	h.t.Helper()
	a, _, err := h.Generate(h.t.Context(), ann, pki.Plan{Name: name, CommonName: "Acme " + name}, false)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

func (h *house) role(name string, spec pki.Spec) pki.Role {
	h.t.Helper()
	if spec.X509 == nil && spec.SSH == nil {
		spec.X509 = &pki.X509Spec{Domains: []string{"agents.example"}, Subdomains: true, Client: true, Server: true}
	}
	kind := pki.X509
	if spec.SSH != nil {
		kind = pki.SSH
	}
	r, err := h.PutRole(h.t.Context(), ann, "", kind, name, spec)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// csr is a request by a fresh key.
func csr(t testing.TB, key crypto.Signer, cn string, names ...string) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func parse(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// write puts texts into files of one folder, and gives the folder.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// openssl runs it in a folder.
func openssl(t testing.TB, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestStockOpenSSL: what we issue is accepted by a stock openssl, and what was
// revoked is refused by way of the list and of OCSP.
func TestStockOpenSSL(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	root := h.root("root")
	mid, _, err := h.Generate(t.Context(), ann, pki.Plan{Name: "mid", Parent: "root", CommonName: "Acme Agents", Constrain: &pki.Names{PermittedDNS: []string{"agents.example"}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	h.role("agents", pki.Spec{Authority: "mid"})
	issue := func() *pki.Certificate {
		t.Helper()
		c, err := h.Issue(t.Context(), ann, pki.Wish{Role: "agents", CommonName: "one.agents.example"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	good, bad := issue(), issue()
	if n, _ := new(big.Int).SetString(good.Serial, 16); n.BitLen() > 159 || n.BitLen() < 140 {
		t.Errorf("the serial number %s has %d bits, want up to 159", good.Serial, n.BitLen())
	}
	if _, err := h.Revoke(t.Context(), ann, "", pki.X509, bad.Serial, pki.KeyCompromise, "lost"); err != nil {
		t.Fatal(err)
	}
	list, err := h.CRL(t.Context(), "acme", mid.ID)
	if err != nil {
		t.Fatal(err)
	}
	rootList, err := h.CRL(t.Context(), "acme", root.ID)
	if err != nil {
		t.Fatal(err)
	}
	crlPEM := func(l *pki.List) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: l.DER}))
	}
	dir := write(t, map[string]string{
		"root.pem": root.PEM, "mid.pem": mid.PEM, "good.pem": good.PEM, "good.key": good.PrivateKey, "bad.pem": bad.PEM,
		"chain.pem": strings.Join(good.Chain, ""), "crl.pem": crlPEM(list) + crlPEM(rootList), "crl.der": string(list.DER),
	})
	check := func(want string, ok bool, args ...string) {
		t.Helper()
		out, err := openssl(t, dir, args...)
		if (err == nil) != ok || !strings.Contains(out, want) {
			t.Errorf("openssl %s: %v, and it says %q; want %q and %v", strings.Join(args, " "), err, out, want, ok)
		}
	}
	check("good.pem: OK", true, "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "root.pem", "-untrusted", "chain.pem", "good.pem")
	check("good.pem: OK", true, "verify", "-crl_check_all", "-CAfile", "root.pem", "-untrusted", "mid.pem", "-CRLfile", "crl.pem", "good.pem")
	check("certificate revoked", false, "verify", "-crl_check_all", "-CAfile", "root.pem", "-untrusted", "mid.pem", "-CRLfile", "crl.pem", "bad.pem")
	check("verify OK", true, "crl", "-inform", "DER", "-in", "crl.der", "-CAfile", "mid.pem", "-noout")
	check("X509v3 CRL Number", true, "crl", "-inform", "DER", "-in", "crl.der", "-noout", "-text")
	check("Key Compromise", true, "crl", "-inform", "DER", "-in", "crl.der", "-noout", "-text")
	check("https://estover.example/pki/"+mid.ID+"/crl", true, "x509", "-in", "good.pem", "-noout", "-ext", "crlDistributionPoints")

	for _, c := range []struct{ file, want, hash string }{{"good.pem", "good.pem: good", "-sha256"}, {"bad.pem", "bad.pem: revoked", "-sha256"}, {"bad.pem", "bad.pem: revoked", "-sha1"}} {
		check("", true, "ocsp", c.hash, "-issuer", "mid.pem", "-cert", c.file, "-reqout", "one.req", "-no_nonce")
		q, err := os.ReadFile(filepath.Join(dir, "one.req"))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := h.OCSP(t.Context(), "acme", q, root.ID, mid.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "one.res"), answer, 0o600); err != nil {
			t.Fatal(err)
		}
		check("Response verify OK", true, "ocsp", c.hash, "-issuer", "mid.pem", "-cert", c.file, "-respin", "one.res", "-CAfile", "root.pem", "-verify_other", "mid.pem", "-no_nonce")
		check(c.want, true, "ocsp", c.hash, "-issuer", "mid.pem", "-cert", c.file, "-respin", "one.res", "-CAfile", "root.pem", "-verify_other", "mid.pem", "-no_nonce")
	}
	// What we have never signed is unknown, and not good.
	q, err := (&ocsp.Request{HashAlgorithm: crypto.SHA256, IssuerNameHash: sum(mid.Certificate().RawSubject), IssuerKeyHash: keySum(t, mid), SerialNumber: big.NewInt(7)}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := h.OCSP(t.Context(), "acme", q, mid.ID)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := ocsp.ParseResponse(answer, mid.Certificate()); err != nil || r.Status != ocsp.Unknown {
		t.Errorf("a serial number that nobody has: %+v, %v; want unknown", r, err)
	}
	if answer, err := h.OCSP(t.Context(), "acme", []byte("nonsense"), mid.ID); err != nil || !bytes.Equal(answer, ocsp.MalformedRequestErrorResponse) {
		t.Errorf("nonsense is answered %x, %v", answer, err)
	}
	// Of another tenant nothing is said.
	if answer, err := h.OCSP(t.Context(), "evil", q, mid.ID); err != nil || !bytes.Equal(answer, ocsp.UnauthorizedErrorResponse) {
		t.Errorf("asked of another tenant: %x, %v; want unauthorized", answer, err)
	}
	// The intermediate may not name other domains, whatever a role allows.
	h.role("wide", pki.Spec{Authority: "mid", X509: &pki.X509Spec{AnyName: true}})
	if _, err := h.Issue(t.Context(), ann, pki.Wish{Role: "wide", CommonName: "elsewhere.example"}); !errors.Is(err, pki.ErrNotAllowed) {
		t.Errorf("a name outside the constraints: %v, want ErrNotAllowed", err)
	}
}

// TestKeys: every algorithm of authorities and leaves, as openssl sees it.
func TestKeys(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	h.role("any", pki.Spec{X509: &pki.X509Spec{Domains: []string{"agents.example"}, Subdomains: true, Client: true, KeyType: "any"}})
	for i, algorithm := range []pki.Algorithm{pki.P256, pki.P384, pki.Ed25519, pki.RSA2048} {
		name := "ca" + fmt.Sprint(i)
		a, _, err := h.Generate(t.Context(), ann, pki.Plan{Name: name, Algorithm: algorithm}, false)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]string{"ca.pem": a.PEM}
		for j, key := range []crypto.Signer{newKey(t), edwards, rsaKey} {
			c, err := h.Sign(t.Context(), ann, pki.Wish{Role: "any", Authority: name}, csr(t, key, "x.agents.example"))
			if err != nil {
				t.Fatal(err)
			}
			files[fmt.Sprintf("leaf%d.pem", j)] = c.PEM
		}
		if out, err := openssl(t, write(t, files), "verify", "-CAfile", "ca.pem", "leaf0.pem", "leaf1.pem", "leaf2.pem"); err != nil {
			t.Errorf("an authority with %s: %s", algorithm, out)
		}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err == nil {
		if _, err := h.Sign(t.Context(), ann, pki.Wish{Role: "any"}, csr(t, weak, "x.agents.example")); !errors.Is(err, pki.ErrNotAllowed) {
			t.Errorf("RSA with 1024 bits: %v, want ErrNotAllowed", err)
		}
	}
	h.role("ec", pki.Spec{})
	if _, err := h.Sign(t.Context(), ann, pki.Wish{Role: "ec"}, csr(t, rsaKey, "x.agents.example")); !errors.Is(err, pki.ErrNotAllowed) {
		t.Errorf("RSA where the role wants ec: %v, want ErrNotAllowed", err)
	}
}

// What a subject is called beside, and how an authority with an RSA key signs, is what
// the role says.
func TestUserIDsAndSignatures(t *testing.T) {
	h := build(t, dbtest.Open(t), guardtest.AllowAll)
	for name, algorithm := range map[string]pki.Algorithm{"rsa": pki.RSA2048, "ec": pki.P384} {
		if _, _, err := h.Generate(t.Context(), ann, pki.Plan{Name: name, Algorithm: algorithm}, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		authority string
		pss       bool
		bits      int
		want      x509.SignatureAlgorithm
	}{
		{"rsa", false, 0, x509.SHA256WithRSA},
		{"rsa", false, 512, x509.SHA512WithRSA},
		{"rsa", true, 0, x509.SHA256WithRSAPSS},
		{"rsa", true, 384, x509.SHA384WithRSAPSS},
		{"ec", true, 512, x509.ECDSAWithSHA384},
	} {
		h.role("r", pki.Spec{Authority: c.authority, X509: &pki.X509Spec{AnyName: true, PSS: c.pss, SignatureBits: c.bits, UserIDs: []string{"ada", "ops-*"}}})
		made, err := h.Issue(t.Context(), ann, pki.Wish{Role: "r", CommonName: "x.example", UserIDs: []string{"ada", "ops-1"}})
		if err != nil {
			t.Fatal(err)
		}
		one := parse(t, made.PEM)
		if one.SignatureAlgorithm != c.want {
			t.Errorf("by %+v it is signed with %s, want %s", c, one.SignatureAlgorithm, c.want)
		}
		var ids []string
		for _, n := range one.Subject.Names {
			if n.Type.String() == "0.9.2342.19200300.100.1.1" {
				ids = append(ids, fmt.Sprint(n.Value))
			}
		}
		if !slices.Equal(ids, []string{"ada", "ops-1"}) {
			t.Errorf("its subject has the user ids %q", ids)
		}
		issuer, err := h.Issuer(t.Context(), "acme", "", pki.X509, c.authority)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := openssl(t, write(t, map[string]string{"ca.pem": issuer.PEM, "leaf.pem": made.PEM}), "verify", "-CAfile", "ca.pem", "leaf.pem"); err != nil {
			t.Errorf("what is signed with %s: %s", c.want, out)
		}
	}
	for what, ids := range map[string][]string{"another": {"eve"}, "one beside": {"ada", "eve"}, "an empty one": {""}, "a long one": {"ops-" + strings.Repeat("x", 300)}, "a control character": {"ops-\x00"}} {
		if c, err := h.Issue(t.Context(), ann, pki.Wish{Role: "r", CommonName: "x.example", UserIDs: ids}); err == nil {
			t.Errorf("with %s as user id: %s", what, c.Serial)
		}
	}
	if _, err := h.PutRole(t.Context(), ann, "", pki.X509, "r", pki.Spec{X509: &pki.X509Spec{AnyName: true, SignatureBits: 1}}); !errors.Is(err, pki.ErrInvalid) {
		t.Errorf("a signature over one bit: %v, want ErrInvalid", err)
	}
}

// A wish for more names than a certificate has is refused before they are compared with
// each other, put on record or held against a grant.
func TestManyNames(t *testing.T) {
	h := build(t, dbtest.Open(t), guardtest.AllowAll)
	h.root("root")
	h.role("any", pki.Spec{X509: &pki.X509Spec{AnyName: true, UserIDs: []string{"*"}}})
	many := make([]string, 100_000)
	for i := range many {
		many[i] = fmt.Sprintf("n%06d.agents.example", i)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: many[:101]}, key)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.PutRole(t.Context(), ann, "", pki.X509, "many", pki.Spec{X509: &pki.X509Spec{AnyName: true, UserIDs: many[:1001]}}); !errors.Is(err, pki.ErrInvalid) {
		t.Errorf("a role with 1001 user ids: %v, want ErrInvalid", err)
	}
	for what, ask := range map[string]func() (*pki.Certificate, error){
		"hosts": func() (*pki.Certificate, error) {
			return h.Issue(t.Context(), ann, pki.Wish{Role: "any", CommonName: "x.example", Alternative: pki.Alternative{DNS: many}})
		},
		"user ids": func() (*pki.Certificate, error) {
			return h.Issue(t.Context(), ann, pki.Wish{Role: "any", CommonName: "x.example", UserIDs: many})
		},
		"names of a request": func() (*pki.Certificate, error) {
			return h.Sign(t.Context(), ann, pki.Wish{Role: "any", CommonName: "x.example"}, request)
		},
	} {
		begun := time.Now()
		if _, err := ask(); !errors.Is(err, pki.ErrInvalid) {
			t.Errorf("too many %s: %v, want ErrInvalid", what, err)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("too many %s: refused after %s", what, took)
		}
	}
}

// TestRoleAllows: what a role does not name is in no certificate.
func TestRoleAllows(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	h.root("root")
	h.session("ses_1", time.Hour)
	h.role("r", pki.Spec{Resource: "res_1", Action: "connect", X509: &pki.X509Spec{
		Domains: []string{"agents.example", "{{agent}}.own.example", "db-*.example"}, Subdomains: true, Globs: true, Wildcards: true, URIs: []string{"spiffe://acme/agent/{{agent}}", "spiffe://acme/any/*"}, Client: true,
	}})
	for _, c := range []struct {
		who  estover.Caller
		wish pki.Wish
		ok   bool
	}{
		{ann, pki.Wish{CommonName: "a.agents.example"}, true},
		{ann, pki.Wish{CommonName: "A.Agents.Example"}, true},
		{ann, pki.Wish{CommonName: "*.agents.example"}, true},
		{ann, pki.Wish{CommonName: "db-7.example"}, true},
		{ann, pki.Wish{CommonName: "agents.example"}, false},
		{ann, pki.Wish{CommonName: "evilagents.example"}, false},
		{ann, pki.Wish{CommonName: "a.agents.example.evil"}, false},
		{ann, pki.Wish{CommonName: "*.*.agents.example"}, false},
		{ann, pki.Wish{CommonName: "a b.agents.example"}, false},
		{ann, pki.Wish{CommonName: "a.agents.example", Alternative: pki.Alternative{DNS: []string{"evil.example"}}}, false},
		{ann, pki.Wish{CommonName: "a.agents.example", Alternative: pki.Alternative{IPs: []string{"10.0.0.1"}}}, false},
		{ann, pki.Wish{CommonName: "a.agents.example", Alternative: pki.Alternative{URIs: []string{"spiffe://acme/any/x"}}}, true},
		{ann, pki.Wish{CommonName: "a.agents.example", Alternative: pki.Alternative{URIs: []string{"spiffe://acme/agent/agt_bot"}}}, false}, // she is no agent
		{ann, pki.Wish{}, false},
		{bot, pki.Wish{CommonName: "x.agt-bot.own.example", Alternative: pki.Alternative{URIs: []string{"spiffe://acme/agent/agt_bot"}}}, true},
		{bot, pki.Wish{CommonName: "x.agt-other.own.example"}, false},
		{bot, pki.Wish{CommonName: "a.agents.example", Alternative: pki.Alternative{URIs: []string{"spiffe://acme/agent/agt_other"}}}, false},
		{ann, pki.Wish{CommonName: "x.own.example"}, false},
	} {
		c.wish.Role = "r"
		got, err := h.Sign(t.Context(), c.who, c.wish, csr(t, newKey(t), ""))
		if c.ok != (err == nil) || err != nil && estover.KindOf(err) != estover.Invalid {
			t.Errorf("%s asks for %+v: %v, want %v", c.who.Subject, c.wish, err, c.ok)
		}
		if c.who.Subject == bot.Subject && err == nil && (got.Session != "ses_1" || got.Agent != "agt_bot") {
			t.Errorf("the bot's certificate belongs to session %q and agent %q", got.Session, got.Agent)
		}
	}
	// An agent takes the authority that the role names, and a person may choose.
	h.root("other")
	if _, err := h.Sign(t.Context(), bot, pki.Wish{Role: "r", Authority: "other", CommonName: "a.agents.example"}, csr(t, newKey(t), "")); !errors.Is(err, pki.ErrNotAllowed) {
		t.Errorf("an agent chooses another authority: %v, want ErrNotAllowed", err)
	}
	if _, err := h.Sign(t.Context(), ann, pki.Wish{Role: "r", Authority: "other", CommonName: "a.agents.example"}, csr(t, newKey(t), "")); err != nil {
		t.Errorf("a person chooses another authority: %v", err)
	}
	// A leaf is no authority, and is used for what the role says.
	got, err := h.Sign(t.Context(), ann, pki.Wish{Role: "r", CommonName: "a.agents.example"}, csr(t, newKey(t), ""))
	if err != nil {
		t.Fatal(err)
	}
	if leaf := parse(t, got.PEM); leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("the leaf is %v, %v, %v", leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage)
	}
	// A request that its key has not signed is none.
	forged := *csr(t, newKey(t), "a.agents.example")
	forged.PublicKey = newKey(t).Public()
	if _, err := h.Sign(t.Context(), ann, pki.Wish{Role: "r"}, &forged); !errors.Is(err, pki.ErrInvalid) {
		t.Errorf("a request by another key: %v, want ErrInvalid", err)
	}
}

// TestEnds: a certificate ends with the first of what it rests on, and the answer
// says which that is (L7).
func TestEnds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		if _, _, err := h.Generate(t.Context(), ann, pki.Plan{Name: "root", Lifetime: 48 * time.Hour}, false); err != nil {
			t.Fatal(err)
		}
		h.role("r", pki.Spec{Resource: "res_1", Action: "connect", TTL: 600, MaxTTL: 7200, X509: &pki.X509Spec{AnyName: true}})
		h.role("long", pki.Spec{MaxTTL: 100 * 3600, X509: &pki.X509Spec{AnyName: true}})
		h.session("ses_1", time.Hour)
		now := d.Now()
		grant := now.Add(20 * time.Minute)
		for _, c := range []struct {
			who   estover.Caller
			role  string
			ttl   time.Duration
			grant *time.Time
			want  time.Duration
			by    string
		}{
			{ann, "r", 0, nil, 10 * time.Minute, "ttl"},
			{ann, "r", 30 * time.Minute, nil, 30 * time.Minute, "ttl"},
			{ann, "r", 5 * time.Hour, nil, 2 * time.Hour, "max_ttl"},
			{bot, "r", 2 * time.Hour, nil, time.Hour, "session"},
			{bot, "r", 2 * time.Hour, &grant, 20 * time.Minute, "grant"},
			{ann, "long", 90 * time.Hour, nil, 48 * time.Hour, "authority"},
		} {
			h.until.Store(c.grant)
			got, err := h.Sign(t.Context(), c.who, pki.Wish{Role: c.role, TTL: c.ttl}, csr(t, newKey(t), "x.example"))
			if err != nil {
				t.Fatal(err)
			}
			if off := got.NotAfter.Sub(now.Add(c.want)); off < -2*time.Second || off > 5*time.Second || got.LimitedBy != c.by {
				t.Errorf("%s by %s for %s: ends in %s by %s, want %s by %s", c.who.Subject, c.role, c.ttl, got.NotAfter.Sub(now), got.LimitedBy, c.want, c.by)
			}
			if leaf := parse(t, got.PEM); !leaf.NotAfter.Equal(got.NotAfter) {
				t.Errorf("the certificate ends %s, and the row says %s", leaf.NotAfter, got.NotAfter)
			}
		}
	})
}

// TestAgentEnd: what was certified for an agent is revoked with it, in whoever's
// session, and what was for others in the same session is not.
func TestAgentEnd(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.root("root")
		h.role("r", pki.Spec{X509: &pki.X509Spec{AnyName: true}})
		h.session("ses_1", time.Hour)
		helper := bot
		helper.Subject, helper.Client = estover.Agent("agt_helper"), "agt_helper"
		serial := map[string]string{}
		for name, c := range map[string]estover.Caller{"bot": bot, "helper": helper} {
			one, err := h.Sign(t.Context(), c, pki.Wish{Role: "r"}, csr(t, newKey(t), "x.example"))
			if err != nil {
				t.Fatal(err)
			}
			serial[name] = one.Serial
		}
		end := func(agents ...string) (n int) {
			t.Helper()
			if err := h.guard.Do(t.Context(), ann, guard.Op{Action: "test"}, func(tx *guard.Tx) (err error) {
				n, err = h.EndOfAgents(t.Context(), tx, agents, "a test")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := end(); n != 0 {
			t.Errorf("with nobody %d certificates end", n)
		}
		if n := end("agt_helper", "agt_nobody"); n != 1 {
			t.Errorf("%d certificates were revoked, want 1", n)
		}
		for name, want := range map[string]bool{"bot": false, "helper": true} {
			if r, err := h.Certificate(t.Context(), ann, "", pki.X509, serial[name]); err != nil || !r.RevokedAt.IsZero() != want {
				t.Errorf("the certificate of the %s: %+v, %v", name, r, err)
			}
		}
	})
}

// TestSessionEnd: what was certified in a session is revoked in the transaction
// that ends it (E4), and the list says so at once; nothing is certified in it any
// more.
func TestSessionEnd(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		root := h.root("root")
		h.role("r", pki.Spec{X509: &pki.X509Spec{AnyName: true}})
		h.session("ses_1", time.Hour)
		h.session("ses_2", time.Hour)
		other := bot
		other.Session = "ses_2"
		sign := func(c estover.Caller) (*pki.Certificate, error) {
			return h.Sign(t.Context(), c, pki.Wish{Role: "r"}, csr(t, newKey(t), "x.example"))
		}
		mine, err := sign(bot)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := sign(other)
		if err != nil {
			t.Fatal(err)
		}
		before, err := h.CRL(t.Context(), "acme", root.ID)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := h.CRL(t.Context(), "acme", root.ID); err != nil || again.Number != before.Number {
			t.Errorf("asked twice, the list is %+v, %v; want the same", again, err)
		}
		if n := h.end("ses_1"); n != 1 {
			t.Errorf("%d certificates were revoked, want 1", n)
		}
		after, err := h.CRL(t.Context(), "acme", root.ID)
		if err != nil || after.Number <= before.Number {
			t.Fatalf("the list after the end is %+v, %v; want a higher number than %d", after, err, before.Number)
		}
		l, err := x509.ParseRevocationList(after.DER)
		if err != nil || len(l.RevokedCertificateEntries) != 1 || pki.Serial(l.RevokedCertificateEntries[0].SerialNumber) != mine.Serial || l.Number.Int64() != after.Number || !l.NextUpdate.Equal(after.NextUpdate) {
			t.Errorf("the list is %+v, %v; want %s on it", l, err, mine.Serial)
		}
		if l.CheckSignatureFrom(root.Certificate()) != nil {
			t.Error("the list is not signed by the authority")
		}
		if r, err := h.Certificate(t.Context(), ann, "", pki.X509, theirs.Serial); err != nil || !r.RevokedAt.IsZero() {
			t.Errorf("the certificate of another session: %+v, %v", r, err)
		}
		if _, err := sign(bot); !errors.Is(err, pki.ErrEnded) {
			t.Errorf("signed in a session that has ended: %v, want ErrEnded", err)
		}
		// Revoking again changes nothing, and another tenant finds nothing (T1).
		r, err := h.Revoke(t.Context(), ann, "", pki.X509, mine.Serial, pki.Unspecified, "again")
		if err != nil || r.Cause != "the session has ended" {
			t.Errorf("revoked again: %+v, %v", r, err)
		}
		if _, err := h.Revoke(t.Context(), eve, "", pki.X509, theirs.Serial, pki.Unspecified, ""); !errors.Is(err, pki.ErrNoCertificate) {
			t.Errorf("revoked by another tenant: %v, want ErrNoCertificate", err)
		}
		if _, err := h.CRL(t.Context(), "evil", root.ID); !errors.Is(err, pki.ErrNoAuthority) {
			t.Errorf("the list, for another tenant: %v, want ErrNoAuthority", err)
		}
		// An expired certificate leaves the list, and in the end the table.
		clock := dbtest.NewClock(d)
		clock.Advance(80 * time.Hour)
		if last, err := h.CRL(t.Context(), "acme", root.ID); err != nil || last.Number <= after.Number {
			t.Errorf("an old list is not made anew: %+v, %v", last, err)
		} else if l, err := x509.ParseRevocationList(last.DER); err != nil || len(l.RevokedCertificateEntries) != 0 {
			t.Errorf("the list still has %+v, %v", l, err)
		}
		if done, err := h.Sweep(t.Context(), "acme"); err != nil || done.Certificates != 2 {
			t.Errorf("swept %+v, %v; want both certificates", done, err)
		}
	})
}

// TestEndOvertakes: 64 goroutines ask for certificates while the session ends. Each
// that anybody got is revoked.
func TestEndOvertakes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.root("root")
		h.role("r", pki.Spec{X509: &pki.X509Spec{AnyName: true}})
		h.session("ses_1", time.Hour)
		request := csr(t, newKey(t), "x.example")
		var all sync.WaitGroup
		var mu sync.Mutex
		var got []string
		begin := make(chan struct{})
		var enough sync.Once
		some := make(chan struct{})
		for range 64 {
			all.Go(func() {
				<-begin
				c, err := h.Sign(context.Background(), bot, pki.Wish{Role: "r"}, request)
				switch {
				case err == nil:
					mu.Lock()
					got = append(got, c.Serial)
					mu.Unlock()
					enough.Do(func() { close(some) })
				case !errors.Is(err, pki.ErrEnded) && !errors.Is(err, pki.ErrTooMany):
					t.Error(err)
				}
			})
		}
		close(begin)
		<-some
		h.end("ses_1")
		all.Wait()
		for _, serial := range got {
			r, err := h.Certificate(t.Context(), ann, "", pki.X509, serial)
			if err != nil || r.RevokedAt.IsZero() {
				t.Errorf("%s was handed out and is not revoked: %+v, %v", serial, r, err)
			}
		}
	})
}

// TestEventFirst: if the event cannot be written nobody has a certificate, of X.509 or
// SSH (F13, D9).
func TestEventFirst(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.root("root")
		h.role("r", pki.Spec{X509: &pki.X509Spec{AnyName: true}})
		h.sshAuthority(pki.Ed25519, pki.SSHSpec{User: true, Principals: []string{"root"}})
		_, line := sshKey(t)
		login := pki.SSHWish{Role: "ops", PublicKey: line, Principals: []string{"root"}}
		count := func() (n int) {
			t.Helper()
			err := d.View(t.Context(), "acme", func(tx *db.Tx) error {
				return tx.QueryRow(t.Context(), "select count(*) from pki_certificate").Scan(&n)
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		broken := audit.Open(d, audit.Options{
			Seal: func(estover.TenantID, string, []byte) ([]byte, error) { return nil, errors.New("the disk is full") },
			Open: func(estover.TenantID, string, []byte) ([]byte, error) { return nil, errors.New("the disk is full") },
			Key:  func(context.Context, estover.TenantID) (crypto.Signer, error) { return nil, errors.New("no key") },
		})
		full := h.node(guard.New(d, broken, guardtest.AllowAll, guard.Options{}))
		if _, err := full.Issue(t.Context(), ann, pki.Wish{Role: "r", CommonName: "x.example"}); !errors.Is(err, guard.ErrNotRecorded) {
			t.Errorf("issued without an event: %v, want ErrNotRecorded", err)
		}
		if _, err := full.SignSSH(t.Context(), ann, login); !errors.Is(err, guard.ErrNotRecorded) {
			t.Errorf("a key of SSH signed without an event: %v, want ErrNotRecorded", err)
		}
		if n := count(); n != 0 {
			t.Errorf("there are %d certificates", n)
		}
		if _, err := h.Issue(t.Context(), ann, pki.Wish{Role: "r", CommonName: "x.example"}); err != nil {
			t.Error(err)
		}
		if _, err := h.SignSSH(t.Context(), ann, login); err != nil {
			t.Error(err)
		}
		if n := count(); n != 2 {
			t.Errorf("there are %d certificates, want 2", n)
		}
	})
}

// TestSucceed: the next authority is published twice the longest life before it
// signs, and what the one before signs until then holds for as long as its role
// allows. Of one at the door for clients of Vault an event tells.
func TestSucceed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		clock := dbtest.NewClock(d)
		first := h.root("root")
		day := int64(24 * 3600)
		h.role("r", pki.Spec{Authority: "root", TTL: day, MaxTTL: day, X509: &pki.X509Spec{AnyName: true, Client: true}})
		succeed := func(want int) {
			t.Helper()
			if n, err := h.Succeed(t.Context(), "acme"); err != nil || n != want {
				t.Errorf("%s before its end %d authorities got a successor, %v; want %d", first.NotAfter.Sub(d.Now()), n, err, want)
			}
		}
		clock.Advance(first.NotAfter.Sub(d.Now()) - 3*24*time.Hour - time.Minute)
		succeed(0)
		clock.Advance(time.Minute)
		succeed(1)
		succeed(0) // once
		list, err := h.Authorities(t.Context(), ann, "", pki.X509)
		if err != nil || len(list) != 2 {
			t.Fatalf("there are %d authorities, %v", len(list), err)
		}
		next := list[0]
		if next.Generation == 1 {
			next = list[1]
		}
		if ahead := next.IssuesFrom.Sub(d.Now()); ahead < 48*time.Hour-time.Minute || next.Name != "root" {
			t.Errorf("%s is published %s before it signs, want root and twice the longest life", next.Name, ahead)
		}
		// The old one signs for as long as it can give a whole life.
		clock.Advance(47 * time.Hour)
		c, err := h.Sign(t.Context(), ann, pki.Wish{Role: "r"}, csr(t, newKey(t), "x.example"))
		if err != nil || c.Authority != first.ID || c.LimitedBy != "ttl" && c.LimitedBy != "max_ttl" {
			t.Errorf("at its last hour it is signed by %s and limited by %s, %v; want %s and its own life", c.Authority, c.LimitedBy, err, first.ID)
		}
		clock.Advance(2 * time.Hour)
		if c, err = h.Sign(t.Context(), ann, pki.Wish{Role: "r"}, csr(t, newKey(t), "x.example")); err != nil || c.Authority != next.ID {
			t.Errorf("after that it is signed by %s, %v; want %s", c.Authority, err, next.ID)
		}
		// At Vault's door whoever owns the mount has it done, and hears of it once a day.
		if _, _, err := h.Generate(t.Context(), ann, pki.Plan{Mount: "mnt_1", Kind: pki.X509, Name: "theirs", CommonName: "theirs", Lifetime: 10 * 24 * time.Hour}, false); err != nil {
			t.Fatal(err)
		}
		clock.Advance(9*24*time.Hour + 22*time.Hour)
		clock.Hold() // a day may end at any moment
		for range 3 {
			succeed(0)
		}
		if err := h.guard.DB().View(t.Context(), "acme", func(tx *db.Tx) error {
			var told string
			if err := tx.QueryRow(t.Context(), `select document from pki_setting where tenant_id = $1 and mount = 'mnt_1' and name like 'ending.%'`, tx.Tenant()).Scan(&told); err != nil {
				return err
			}
			if told != `"`+d.Now().UTC().Format(time.DateOnly)+`"` {
				t.Errorf("it was told on %q", told)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if n, err := h.Succeed(t.Context(), "evil"); err != nil || n != 0 {
			t.Errorf("another tenant: %d, %v", n, err)
		}
	})
}

// TestRotate: the next authority is published at once, issues after the overlap,
// and both vouch for what they have signed.
func TestRotate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		clock := dbtest.NewClock(d)
		first := h.root("root")
		h.role("r", pki.Spec{Authority: "root", MaxTTL: 3600, X509: &pki.X509Spec{AnyName: true, Client: true}})
		sign := func() *pki.Certificate {
			t.Helper()
			c, err := h.Sign(t.Context(), ann, pki.Wish{Role: "r"}, csr(t, newKey(t), "x.example"))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		a := sign()
		second, err := h.Rotate(t.Context(), ann, "", pki.X509, "root", -1)
		if err != nil {
			t.Fatal(err)
		}
		if second.Generation != 2 || second.IssuesFrom.Sub(d.Now()) < 119*time.Minute {
			t.Errorf("the second is generation %d and issues from %s, want 2 and in two hours", second.Generation, second.IssuesFrom)
		}
		b := sign()
		if a.Authority != first.ID || b.Authority != first.ID {
			t.Errorf("signed by %s and %s before the overlap was over, want %s", a.Authority, b.Authority, first.ID)
		}
		bundle, err := h.Bundle(t.Context(), "acme", second)
		if err != nil || strings.Count(bundle, "BEGIN CERTIFICATE") != 2 {
			t.Errorf("the bundle is %q, %v; want both", bundle, err)
		}
		clock.Advance(2*time.Hour + time.Minute)
		c := sign()
		if c.Authority != second.ID {
			t.Errorf("signed by %s after the overlap, want %s", c.Authority, second.ID)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(bundle))
		if _, err := parse(t, c.PEM).Verify(x509.VerifyOptions{Roots: pool, CurrentTime: d.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
		// Of many that rotate at once one does.
		var done atomic.Int64
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				_, err := h.Rotate(context.Background(), ann, "", pki.X509, "root", 0)
				switch {
				case err == nil:
					done.Add(1)
				case estover.KindOf(err) != estover.Conflict:
					t.Error(err)
				}
			})
		}
		all.Wait()
		third, err := h.Issuer(t.Context(), "acme", "", pki.X509, "root")
		if err != nil || third.Generation != 2+done.Load() {
			t.Errorf("after %d rotations the authority is %+v, %v", done.Load(), third, err)
		}
		// A retired one signs nothing, and still has a list.
		if err := h.Retire(t.Context(), ann, "", pki.X509, second.ID, true); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Sign(t.Context(), ann, pki.Wish{Role: "r", Authority: second.ID}, csr(t, newKey(t), "x.example")); !errors.Is(err, pki.ErrNoAuthority) {
			t.Errorf("signed by one that is retired: %v, want ErrNoAuthority", err)
		}
		list, err := h.CRL(t.Context(), "acme", second.ID)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := x509.ParseRevocationList(list.DER); err != nil || len(l.RevokedCertificateEntries) != 1 {
			t.Errorf("the list of the retired one: %+v, %v; want its one certificate", l, err)
		}
	})
}

// TestImport: an authority of elsewhere, by its request and by its key.
func TestImport(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	root := h.root("root")
	request, key, none, err := h.Request(t.Context(), ann, pki.Plan{Name: "mid", CommonName: "Acme Mid"}, false)
	if err != nil || !none.Empty() {
		t.Fatalf("%v, and a key was answered: %v", err, !none.Empty())
	}
	parsed, err := x509.ParseCertificateRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := h.SignAuthority(t.Context(), ann, "root", parsed, pki.Plan{Name: "mid", CommonName: "Acme Mid"}, true)
	if err != nil {
		t.Fatal(err)
	}
	in, err := h.Import(t.Context(), ann, "", "mid", estover.NewSecret([]byte(signed.PEM)))
	if err != nil || len(in.Authorities) != 1 || in.Authorities[0].KeyID != key.ID || in.Authorities[0].Options.Parent != root.ID {
		t.Fatalf("imported %+v, %v", in, err)
	}
	h.role("r", pki.Spec{Authority: "mid", X509: &pki.X509Spec{AnyName: true}})
	leaf, err := h.Issue(t.Context(), ann, pki.Wish{Role: "r", CommonName: "x.example"})
	if err != nil || len(leaf.Chain) != 2 {
		t.Fatalf("issued %+v, %v; want a chain of two", leaf, err)
	}
	if again, err := h.Import(t.Context(), ann, "", "", estover.NewSecret([]byte(signed.PEM))); err != nil || len(again.Authorities) != 0 || len(again.Existing) != 1 {
		t.Errorf("imported again: %+v, %v", again, err)
	}
	if _, err := h.Import(t.Context(), ann, "", "x", estover.NewSecret([]byte(leaf.PEM))); !errors.Is(err, pki.ErrInvalid) {
		t.Errorf("a leaf as an authority: %v, want ErrInvalid", err)
	}
	if err := h.RemoveKey(t.Context(), ann, "", key.ID); !errors.Is(err, pki.ErrInUse) {
		t.Errorf("removing a key in use: %v, want ErrInUse", err)
	}
	_, exported, err := h.Generate(t.Context(), ann, pki.Plan{Mount: "elsewhere", Name: "their"}, true)
	if err != nil || exported.Empty() {
		t.Fatal(err)
	}
	their, err := h.Authority(t.Context(), ann, "elsewhere", pki.X509, "their")
	if err != nil {
		t.Fatal(err)
	}
	both := append([]byte(their.PEM), exported.Reveal()...)
	if in, err := h.Import(t.Context(), ann, "", "theirs", estover.NewSecret(both)); err != nil || len(in.Authorities) != 1 || in.Authorities[0].KeyID == "" {
		t.Errorf("imported with its key: %+v, %v", in, err)
	}
	// Mounts do not see each other.
	if _, err := h.Authority(t.Context(), ann, "", pki.X509, their.ID); !errors.Is(err, pki.ErrNoAuthority) {
		t.Errorf("an authority of another mount: %v, want ErrNoAuthority", err)
	}
}

// TestLimits: one agent holds so many certificates, and no more.
func TestLimits(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	h := build(t, d, guardtest.AllowAll)
	h.root("root")
	h.role("r", pki.Spec{TTL: 1800, X509: &pki.X509Spec{AnyName: true}})
	h.session("ses_1", 3*time.Hour)
	request := csr(t, newKey(t), "x.example")
	issued := 0
	for range 200 {
		_, err := h.Sign(t.Context(), bot, pki.Wish{Role: "r"}, request)
		switch {
		case err == nil:
			issued++
		case errors.Is(err, pki.ErrTooMany) && strings.Contains(err.Error(), "within a minute"):
			clock.Advance(time.Minute)
		case errors.Is(err, pki.ErrTooMany):
			if issued != 100 {
				t.Errorf("refused after %d, want 100", issued)
			}
			clock.Advance(time.Hour) // they have ended by themselves
			if _, err := h.Sign(t.Context(), bot, pki.Wish{Role: "r"}, request); err != nil {
				t.Errorf("after they have ended: %v", err)
			}
			return
		default:
			t.Fatal(err)
		}
	}
	t.Errorf("%d certificates and no end", issued)
}

// TestKeysAreSealed: no private key stands in the database (F14), and keys under an
// old data key are resealed and still sign.
func TestKeysAreSealed(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	_, exported, err := h.Generate(t.Context(), ann, pki.Plan{Name: "root"}, true)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(exported.Reveal())
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	var stored []byte
	err = d.View(t.Context(), "acme", func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select sealed from pki_key").Scan(&stored)
	})
	if err != nil || bytes.Contains(stored, scalar) {
		t.Errorf("the key stands in the database as it is, or not at all: %v", err)
	}
	h.role("r", pki.Spec{X509: &pki.X509Spec{AnyName: true}})
	if err := h.sealer.RotateDEK(t.Context(), "acme", seal.PKI); err != nil {
		t.Fatal(err)
	}
	dbtest.NewClock(d).Advance(2 * time.Minute)
	if p, err := h.sealer.Rewrap(t.Context(), "acme"); err != nil || p.Resealed != 1 || len(p.Broken) != 0 {
		t.Errorf("resealed %+v, %v; want one key", p, err)
	}
	if _, err := h.node(h.guard).Issue(t.Context(), ann, pki.Wish{Role: "r", CommonName: "x.example"}); err != nil {
		t.Errorf("signed with a resealed key: %v", err)
	}
	// A key that is put into another row signs nothing.
	h.Generate(t.Context(), ann, pki.Plan{Name: "other"}, false)
	err = d.Do(t.Context(), "acme", func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), "update pki_key set sealed = $2 where tenant_id = $1", tx.Tenant(), stored)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.node(h.guard).Issue(t.Context(), ann, pki.Wish{Role: "r", CommonName: "x.example", Authority: "other"}); !errors.Is(err, seal.ErrBroken) {
		t.Errorf("signed with the key of another row: %v, want ErrBroken", err)
	}
}

// TestRefused: what policy refuses does not happen.
func TestRefused(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	h.root("root")
	h.role("r", pki.Spec{X509: &pki.X509Spec{AnyName: true}})
	no := h.node(guardtest.New(t, d, guardtest.DenyAll))
	for what, err := range map[string]error{
		"issue":  second(no.Issue(t.Context(), ann, pki.Wish{Role: "r", CommonName: "x.example"})),
		"none":   second(no.Issue(t.Context(), ann, pki.Wish{Role: "nothing", CommonName: "x.example"})),
		"rotate": second(no.Rotate(t.Context(), ann, "", pki.X509, "root", 0)),
		"role":   second(no.PutRole(t.Context(), ann, "", pki.X509, "r", pki.Spec{})),
		"list":   second(no.Authorities(t.Context(), ann, "", pki.X509)),
		"retire": no.Retire(t.Context(), ann, "", pki.X509, "root", false),
		// No key is made for who may not have it: that there is no such algorithm is not found out.
		"key":       third(no.GenerateKey(t.Context(), ann, "", "", "rsa-1", false)),
		"authority": third(no.Generate(t.Context(), ann, pki.Plan{Name: "other", CommonName: "x", Algorithm: "rsa-1"}, false)),
		"request":   fourth(no.Request(t.Context(), ann, pki.Plan{Name: "other", CommonName: "x", Algorithm: "rsa-1"}, false)),
	} {
		if estover.KindOf(err) != estover.Denied {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func third[T, U any](_ T, _ U, err error) error { return err }

func fourth[T, U, V any](_ T, _ U, _ V, err error) error { return err }

// Anybody may ask a responder anything: an answer is signed once for its minutes, and
// says at once what has changed; those about nothing are signed so many times a second.
func TestResponderIsSpared(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	h := build(t, d, guardtest.AllowAll)
	ca := h.root("root")
	h.role("r", pki.Spec{X509: &pki.X509Spec{AnyName: true}})
	c, err := h.Issue(t.Context(), ann, pki.Wish{Role: "r", CommonName: "x.example"})
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := new(big.Int).SetString(strings.ReplaceAll(c.Serial, ":", ""), 16)
	ask := func(serial *big.Int) []byte {
		t.Helper()
		q, err := (&ocsp.Request{HashAlgorithm: crypto.SHA256, IssuerNameHash: sum(ca.Certificate().RawSubject), IssuerKeyHash: keySum(t, ca), SerialNumber: serial}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		b, err := h.OCSP(t.Context(), "acme", q, ca.ID)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	says := func(b []byte, status int) *ocsp.Response {
		t.Helper()
		r, err := ocsp.ParseResponse(b, ca.Certificate())
		if err != nil || r.Status != status {
			t.Fatalf("the responder says %+v, %v; want status %d", r, err, status)
		}
		return r
	}
	first := ask(serial)
	says(first, ocsp.Good)
	clock.Advance(4 * time.Minute)
	if again := ask(serial); !bytes.Equal(first, again) {
		t.Error("the same answer was signed twice within its minutes")
	}
	clock.Advance(2 * time.Minute)
	if r := says(ask(serial), ocsp.Good); r.ThisUpdate.Before(d.Now().Add(-time.Minute)) {
		t.Errorf("an answer of %v is given at %v", r.ThisUpdate, d.Now())
	}
	if _, err := h.Revoke(t.Context(), ann, "", pki.X509, c.Serial, pki.KeyCompromise, "lost"); err != nil {
		t.Fatal(err)
	}
	says(ask(serial), ocsp.Revoked) // at once, whatever was kept

	clock.Hold() // a busy machine may sign fewer in a second
	for n := range int64(51) {
		b := ask(big.NewInt(n + 1))
		if n == 50 {
			if !bytes.Equal(b, ocsp.TryLaterErrorResponse) {
				t.Error("of one second more than 50 answers about nothing are signed")
			}
			break
		}
		says(b, ocsp.Unknown)
	}
	says(ask(serial), ocsp.Revoked) // the others do not suffer from that
	clock.Advance(time.Second)
	says(ask(big.NewInt(7)), ocsp.Unknown) // in another second
}

// TestBoundName: policy is told all that a certificate is to say of whom it is, so that
// a grant which is bound to a name covers no other beside it.
func TestBoundName(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	h.root("root")
	h.session("ses_1", time.Hour)
	h.role("r", pki.Spec{Resource: "res_1", Action: "connect", X509: &pki.X509Spec{AnyName: true, NoCommonName: true, Client: true}})
	h.role("plain", pki.Spec{Resource: "res_1", Action: "connect", X509: &pki.X509Spec{AnyName: true, Client: true, IgnoreNames: true}})
	var told string
	h.Action = func(_ context.Context, _ estover.TenantID, _, _ string, parameters map[string]string) (any, guard.Effect, error) {
		told = parameters["common_name"]
		return nil, "", nil
	}
	key := newKey(t)
	for _, c := range []struct {
		wish pki.Wish
		csr  *x509.CertificateRequest
		want string
	}{
		{pki.Wish{Role: "r", CommonName: "one.example"}, nil, "one.example"},
		{pki.Wish{Role: "r", CommonName: "one.example", Alternative: pki.Alternative{DNS: []string{"one.example"}}}, nil, "one.example"},
		{pki.Wish{Role: "r", CommonName: "one.example", Alternative: pki.Alternative{DNS: []string{"two.example"}}}, nil, "one.example,two.example"},
		{pki.Wish{Role: "r"}, csr(t, key, "one.example"), "one.example"},
		{pki.Wish{Role: "r"}, csr(t, key, "one.example", "one.example", "two.example"), "one.example,two.example"},
		{pki.Wish{Role: "r", CommonName: "one.example"}, csr(t, key, "", "two.example"), "one.example,two.example"},
		{pki.Wish{Role: "plain"}, csr(t, key, "one.example", "two.example"), "one.example"},
	} {
		var err error
		if c.csr == nil {
			_, err = h.Issue(t.Context(), bot, c.wish)
		} else {
			_, err = h.Sign(t.Context(), bot, c.wish, c.csr)
		}
		if err != nil || told != c.want {
			t.Errorf("%+v: policy is told %q, want %q (%v)", c.wish, told, c.want, err)
		}
	}
}
