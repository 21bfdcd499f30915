package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	hashi "github.com/hashicorp/vault/api"
	bao "github.com/openbao/openbao/api/v2"
	"golang.org/x/crypto/ssh"

	"estover.dev/internal/db/dbtest"
)

// A vaultClient is what both clients have in common, of which each is used as its
// documentation shows.
type vaultClient struct {
	*testing.T
	mount func(path, kind string) error
	leave func(path string) error
	write func(path string, data map[string]any) (map[string]any, string, error) // and the lease
	read  func(path string) (map[string]any, error)
	list  func(path string) (map[string]any, error)
	raw   func(path string) (*http.Response, error)
	gone  func(path string) error
}

func hashiClient(t *testing.T, address, ca, token string) vaultClient {
	config := hashi.DefaultConfig()
	config.Address = address
	must(t, config.ConfigureTLS(&hashi.TLSConfig{CACert: ca}))
	c, err := hashi.NewClient(config)
	must(t, err)
	c.SetToken(token)
	of := func(s *hashi.Secret, err error) (map[string]any, string, error) {
		if s == nil {
			return nil, "", err
		}
		return s.Data, s.LeaseID, err
	}
	return vaultClient{
		T: t, mount: func(path, kind string) error { return c.Sys().Mount(path, &hashi.MountInput{Type: kind}) }, leave: c.Sys().Unmount,
		write: func(path string, data map[string]any) (map[string]any, string, error) {
			return of(c.Logical().Write(path, data))
		},
		read: func(path string) (map[string]any, error) { d, _, err := of(c.Logical().Read(path)); return d, err },
		list: func(path string) (map[string]any, error) { d, _, err := of(c.Logical().List(path)); return d, err },
		raw: func(path string) (*http.Response, error) {
			nobody, err := c.Clone()
			if err != nil {
				return nil, err
			}
			nobody.ClearToken()
			res, err := nobody.Logical().ReadRawWithContext(context.Background(), path)
			if res == nil {
				return nil, err
			}
			return res.Response, err
		},
		gone: func(path string) error { _, err := c.Logical().Delete(path); return err },
	}
}

func baoClient(t *testing.T, address, ca, token string) vaultClient {
	config := bao.DefaultConfig()
	config.Address = address
	must(t, config.ConfigureTLS(&bao.TLSConfig{CACert: ca}))
	c, err := bao.NewClient(config)
	must(t, err)
	c.SetToken(token)
	of := func(s *bao.Secret, err error) (map[string]any, string, error) {
		if s == nil {
			return nil, "", err
		}
		return s.Data, s.LeaseID, err
	}
	return vaultClient{
		T: t, mount: func(path, kind string) error { return c.Sys().Mount(path, &bao.MountInput{Type: kind}) }, leave: c.Sys().Unmount,
		write: func(path string, data map[string]any) (map[string]any, string, error) {
			return of(c.Logical().Write(path, data))
		},
		read: func(path string) (map[string]any, error) { d, _, err := of(c.Logical().Read(path)); return d, err },
		list: func(path string) (map[string]any, error) { d, _, err := of(c.Logical().List(path)); return d, err },
		raw: func(path string) (*http.Response, error) {
			nobody, err := c.Clone()
			if err != nil {
				return nil, err
			}
			nobody.ClearToken()
			res, err := nobody.Logical().ReadRawWithContext(context.Background(), path)
			if res == nil {
				return nil, err
			}
			return res.Response, err
		},
		gone: func(path string) error { _, err := c.Logical().Delete(path); return err },
	}
}

// put writes what has to succeed.
func (c vaultClient) put(path string, data map[string]any) map[string]any {
	c.Helper()
	out, _, err := c.write(path, data)
	if err != nil {
		c.Fatalf("writing %s: %v", path, err)
	}
	return out
}

// get reads what has to be there.
func (c vaultClient) get(path string) map[string]any {
	c.Helper()
	out, err := c.read(path)
	if err != nil || out == nil {
		c.Fatalf("reading %s: %v, %v", path, out, err)
	}
	return out
}

// refused makes sure that a write is refused in these words.
func (c vaultClient) refused(words, path string, data map[string]any) {
	c.Helper()
	if out, _, err := c.write(path, data); err == nil || !strings.Contains(err.Error(), words) {
		c.Errorf("writing %s: %v, %v; want a refusal with %q", path, out, err, words)
	}
}

// body reads what everybody may, without a token.
func (c vaultClient) body(path, kind string) []byte {
	c.Helper()
	res, err := c.raw(path)
	if err != nil || res == nil {
		c.Fatalf("reading %s without a token: %v", path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.Header.Get("Content-Type") != kind {
		c.Errorf("%s is %s, %v; want %s", path, res.Header.Get("Content-Type"), err, kind)
	}
	return b
}

// Certificates, SSH and transit by the clients of Vault and of OpenBao (V32, V33).
func TestVaultCertificates(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, database string) {
		srv, address := vaultServer(t, "--database", database)
		token := srv.Admin(t).Token(t)
		for name, client := range map[string]func(*testing.T, string, string, string) vaultClient{"hashicorp": hashiClient, "openbao": baoClient} {
			t.Run(name, func(t *testing.T) {
				c := client(t, address, srv.CAFile, token)
				t.Run("pki", func(t *testing.T) { c.T = t; usePKI(c, "pki-"+name, name == "hashicorp") })
				t.Run("ssh", func(t *testing.T) { c.T = t; useSSH(c, "ssh-"+name) })
				t.Run("transit", func(t *testing.T) { c.T = t; useTransit(c, "transit-"+name) })
			})
		}
	})
}

var serialPattern = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2})+$`)

func certificateOf(c vaultClient, text any) *x509.Certificate {
	c.Helper()
	block, _ := pem.Decode([]byte(fmt.Sprint(text)))
	if block == nil {
		c.Fatalf("no certificate in %v", text)
	}
	one, err := x509.ParseCertificate(block.Bytes)
	must(c.T, err)
	return one
}

func usePKI(c vaultClient, at string, exact bool) {
	must(c.T, c.mount(at, "pki"))
	// An empty authority is nothing, and no mistake.
	if b := c.body(at+"/ca/pem", "application/pem-certificate-chain"); len(b) != 0 {
		c.Errorf("the certificate of an empty authority is %q", b)
	}
	root := c.put(at+"/root/generate/internal", map[string]any{"common_name": "Acme Root", "ttl": "8760h", "key_type": "ec", "issuer_name": "root"})
	for _, field := range []string{"certificate", "issuing_ca", "issuer_id", "issuer_name", "key_id", "key_name", "serial_number", "expiration"} {
		if _, ok := root[field]; !ok {
			c.Errorf("a root has no %s", field)
		}
	}
	if _, shown := root["private_key"]; shown || !serialPattern.MatchString(fmt.Sprint(root["serial_number"])) {
		c.Errorf("an internal root is %v", root)
	}
	if exported := c.put(at+"/root/generate/exported", map[string]any{"common_name": "Other", "key_type": "ec"}); exported["private_key_type"] != "ec" || !strings.Contains(fmt.Sprint(exported["private_key"]), "EC PRIVATE KEY") {
		c.Errorf("an exported root is %v", exported)
	}

	// An intermediate by its request.
	request := c.put(at+"/intermediate/generate/internal", map[string]any{"common_name": "Acme Agents", "key_type": "ec"})
	signed := c.put(at+"/issuer/root/sign-intermediate", map[string]any{"csr": request["csr"], "common_name": "Acme Agents", "ttl": "4380h"})
	in := c.put(at+"/intermediate/set-signed", map[string]any{"certificate": signed["certificate"]})
	ids, _ := in["imported_issuers"].([]any)
	if len(ids) != 1 {
		c.Fatalf("set-signed answers %v", in)
	}
	mid := fmt.Sprint(ids[0])
	if renamed := c.put(at+"/issuer/"+mid, map[string]any{"issuer_name": "agents"}); renamed["issuer_name"] != "agents" || renamed["usage"] != "crl-signing,issuing-certificates,ocsp-signing,read-only" {
		c.Errorf("the renamed issuer is %v", renamed)
	}
	c.put(at+"/config/issuers", map[string]any{"default": "agents"})
	if chosen := c.get(at + "/config/issuers"); chosen["default"] != mid {
		c.Errorf("the default is %v, want %s", chosen, mid)
	}

	// A role reads back as it was written.
	role := map[string]any{"allowed_domains": []string{"b.example", "a.example"}, "allow_subdomains": true, "ttl": "1h", "max_ttl": "90m", "key_type": "ec", "generate_lease": true, "ou": "x,y", "require_cn": "true"}
	c.put(at+"/roles/web", role)
	back := c.get(at + "/roles/web")
	for field, want := range map[string]string{
		"allowed_domains": `["b.example","a.example"]`, "ttl": "3600", "max_ttl": "5400", "ou": `["x","y"]`, "allow_subdomains": "true", "allow_bare_domains": "false", "key_bits": "256", "server_flag": "true",
		"key_usage": `["DigitalSignature","KeyAgreement","KeyEncipherment"]`, "ext_key_usage": "[]", "issuer_ref": `"default"`, "not_before_duration": "30", "allow_localhost": "true", "organization": "[]", "no_store": "false",
		"generate_lease": "true", "cn_validations": `["email","hostname"]`, "policy_identifiers": "[]", "signature_bits": "0", "allowed_serial_numbers": "[]",
	} {
		if got, _ := json.Marshal(back[field]); string(got) != want {
			c.Errorf("%s reads back as %s, want %s", field, got, want)
		}
	}
	if names, err := c.list(at + "/roles"); err != nil || fmt.Sprint(names["keys"]) != "[web]" {
		c.Errorf("the roles are %v, %v", names, err)
	}

	// A certificate, and its life.
	leaf, lease, err := c.write(at+"/issue/web", map[string]any{"common_name": "x.a.example", "alt_names": "y.a.example,z.b.example", "ttl": "30m"})
	must(c.T, err)
	cert := certificateOf(c, leaf["certificate"])
	if !slices.Equal(cert.DNSNames, []string{"x.a.example", "y.a.example", "z.b.example"}) || fmt.Sprint(leaf["expiration"]) != fmt.Sprint(cert.NotAfter.Unix()) || leaf["private_key_type"] != "ec" || !strings.HasPrefix(lease, at+"/issue/web/") {
		c.Errorf("issued %v for %v under the lease %q", leaf, cert.DNSNames, lease)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificateOf(c, root["certificate"]))
	between := x509.NewCertPool()
	chain, _ := leaf["ca_chain"].([]any)
	for _, one := range chain {
		between.AddCert(certificateOf(c, one))
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "y.a.example"}); err != nil || len(chain) != 2 {
		c.Errorf("the certificate does not lead to the root: %v, by %d", err, len(chain))
	}
	c.refused("does not allow", at+"/issue/web", map[string]any{"common_name": "x.evil.example"})
	c.refused("unknown role", at+"/issue/nothing", map[string]any{"common_name": "x.a.example"})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(c.T, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "csr.a.example"}}, key)
	must(c.T, err)
	csrText := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	bySign := c.put(at+"/sign/web", map[string]any{"csr": csrText, "common_name": "csr.a.example"})
	if _, shown := bySign["private_key"]; shown || certificateOf(c, bySign["certificate"]).Subject.CommonName != "csr.a.example" {
		c.Errorf("signed %v", bySign)
	}
	c.put(at+"/sign-verbatim", map[string]any{"csr": csrText})

	serial := fmt.Sprint(leaf["serial_number"])
	if known := c.get(at + "/cert/" + serial); known["certificate"] != leaf["certificate"] || fmt.Sprint(known["revocation_time"]) != "0" {
		c.Errorf("the certificate is shown as %v", known)
	}
	revoked := c.put(at+"/revoke", map[string]any{"serial_number": serial})
	if n, _ := revoked["revocation_time"].(json.Number); exact && (n == "" || n == "0") || revoked["state"] != "revoked" {
		c.Errorf("revoked: %v", revoked)
	}
	list, err := x509.ParseRevocationList(c.body(at+"/crl", "application/pkix-crl"))
	must(c.T, err)
	if len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.SerialNumber) != 0 || list.Number.Sign() <= 0 {
		c.Errorf("the list has %v", list.RevokedCertificateEntries)
	}
	if names, err := c.list(at + "/certs/revoked"); err != nil || fmt.Sprint(names["keys"]) != "["+serial+"]" {
		c.Errorf("revoked are %v, %v", names, err)
	}
	if text := c.body(at+"/ca/pem", "application/pem-certificate-chain"); certificateOf(c, string(text)).Subject.CommonName != "Acme Agents" {
		c.Errorf("the authority is %s", text)
	}
	if text := c.body(at+"/ca_chain", "application/pem-certificate-chain"); strings.Count(string(text), "BEGIN CERTIFICATE") != 2 {
		c.Errorf("the chain is %s", text)
	}
	c.refused("unable to find PKI issuer", at+"/issuer/nothing/issue/web", map[string]any{"common_name": "x.a.example"})

	// A lease that stands for a certificate ends with it.
	other, otherLease, err := c.write(at+"/issue/web", map[string]any{"common_name": "l.a.example"})
	must(c.T, err)
	if known := c.put("sys/leases/lookup", map[string]any{"lease_id": otherLease}); known["renewable"] != false || known["path"] != at+"/issue/web" {
		c.Errorf("the lease of a certificate is %v", known)
	}
	c.refused("lease is not renewable", "sys/leases/renew", map[string]any{"lease_id": otherLease})
	c.put("sys/leases/revoke", map[string]any{"lease_id": otherLease})
	if known := c.get(at + "/cert/" + fmt.Sprint(other["serial_number"])); fmt.Sprint(known["revocation_time"]) == "0" {
		c.Errorf("the certificate of a revoked lease is %v", known)
	}
	c.refused("invalid lease", "sys/leases/lookup", map[string]any{"lease_id": otherLease})

	// Settings read back as they were written, and are in certificates.
	c.put(at+"/config/urls", map[string]any{"issuing_certificates": "https://ca.example/ca", "crl_distribution_points": []string{"https://ca.example/crl"}})
	urls := c.get(at + "/config/urls")
	if fmt.Sprint(urls["issuing_certificates"], urls["crl_distribution_points"], urls["ocsp_servers"], urls["enable_templating"]) != "[https://ca.example/ca] [https://ca.example/crl] [] false" {
		c.Errorf("the URLs are %v", urls)
	}
	where := certificateOf(c, c.put(at+"/issue/web", map[string]any{"common_name": "u.a.example"})["certificate"])
	if fmt.Sprint(where.IssuingCertificateURL, where.CRLDistributionPoints) != "[https://ca.example/ca] [https://ca.example/crl]" {
		c.Errorf("the certificate says %v and %v", where.IssuingCertificateURL, where.CRLDistributionPoints)
	}
	c.put(at+"/config/crl", map[string]any{"expiry": "48h", "disable": "false"})
	if set := c.get(at + "/config/crl"); set["expiry"] != "48h" || set["disable"] != false {
		c.Errorf("config/crl is %v", set)
	}
	issuers, err := c.list(at + "/issuers")
	must(c.T, err)
	if keys, _ := issuers["keys"].([]any); len(keys) != 3 {
		c.Errorf("the issuers are %v", issuers)
	}
	c.put(at+"/tidy", map[string]any{"tidy_cert_store": true})
	must(c.T, c.gone(at+"/roles/web"))
	if out, err := c.read(at + "/roles/web"); out != nil || err != nil {
		c.Errorf("a removed role: %v, %v", out, err)
	}
	must(c.T, c.leave(at))
	must(c.T, c.mount(at, "pki"))
	if names, err := c.list(at + "/issuers"); names != nil || err != nil {
		c.Errorf("after the mount was made anew there are %v, %v", names, err)
	}
}

func useSSH(c vaultClient, at string) {
	must(c.T, c.mount(at, "ssh"))
	made := c.put(at+"/config/ca", map[string]any{"generate_signing_key": true, "key_type": "ed25519"})
	c.refused("already configured", at+"/config/ca", map[string]any{"generate_signing_key": true})
	if back := c.get(at + "/config/ca"); back["public_key"] != made["public_key"] || len(back) != 1 {
		c.Errorf("the authority is %v, want %v", back, made)
	}
	authority, _, _, _, err := ssh.ParseAuthorizedKey(c.body(at+"/public_key", "text/plain"))
	must(c.T, err)
	c.put(at+"/roles/ops", map[string]any{
		"key_type": "ca", "allow_user_certificates": true, "allowed_users": "deploy,admin", "default_user": "deploy", "ttl": "5m", "default_extensions": map[string]string{"permit-pty": ""}, "allowed_extensions": "permit-pty,permit-port-forwarding",
	})
	back := c.get(at + "/roles/ops")
	for field, want := range map[string]string{
		"key_type": `"ca"`, "allowed_users": `"deploy,admin"`, "ttl": "300", "max_ttl": "0", "default_extensions": `{"permit-pty":""}`, "allowed_extensions": `"permit-pty,permit-port-forwarding"`, "default_critical_options": "{}",
		"allow_host_certificates": "false", "allowed_user_key_lengths": "{}", "algorithm_signer": `"default"`,
	} {
		if got, _ := json.Marshal(back[field]); string(got) != want {
			c.Errorf("%s reads back as %s, want %s", field, got, want)
		}
	}
	public, _, err := ed25519.GenerateKey(rand.Reader)
	must(c.T, err)
	wire, err := ssh.NewPublicKey(public)
	must(c.T, err)
	line := string(ssh.MarshalAuthorizedKey(wire))
	signed := c.put(at+"/sign/ops", map[string]any{"public_key": line, "valid_principals": "admin"})
	parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(fmt.Sprint(signed["signed_key"])))
	must(c.T, err)
	cert := parsed.(*ssh.Certificate)
	if string(cert.SignatureKey.Marshal()) != string(authority.Marshal()) || !slices.Equal(cert.ValidPrincipals, []string{"admin"}) || signed["serial_number"] != fmt.Sprintf("%x", cert.Serial) ||
		time.Until(time.Unix(int64(cert.ValidBefore), 0)) > 6*time.Minute {
		c.Errorf("signed %v: %+v", signed, cert)
	}
	c.refused("does not allow the principal root", at+"/sign/ops", map[string]any{"public_key": line, "valid_principals": "root"})
	c.refused("unknown role", at+"/sign/nothing", map[string]any{"public_key": line})
	if issued := c.put(at+"/issue/ops", map[string]any{"key_type": "ed25519"}); issued["private_key_type"] != "ed25519" || !strings.Contains(fmt.Sprint(issued["private_key"]), "OPENSSH") {
		c.Errorf("issued %v", issued)
	}
	c.refused("only roles of the key_type", at+"/roles/otp", map[string]any{"key_type": "otp", "default_user": "x"})
	must(c.T, c.gone(at+"/config/ca"))
	c.put(at+"/config/ca", map[string]any{"generate_signing_key": true, "key_type": "ec"})
	must(c.T, c.leave(at))
}

func useTransit(c vaultClient, at string) {
	must(c.T, c.mount(at, "transit"))
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	// A key that is not there is made.
	sealed := c.put(at+"/encrypt/orders", map[string]any{"plaintext": b64("one")})
	if !strings.HasPrefix(fmt.Sprint(sealed["ciphertext"]), "vault:v1:") || fmt.Sprint(sealed["key_version"]) != "1" {
		c.Errorf("sealed %v", sealed)
	}
	if opened := c.put(at+"/decrypt/orders", map[string]any{"ciphertext": sealed["ciphertext"]}); opened["plaintext"] != b64("one") {
		c.Errorf("opened %v", opened)
	}
	c.refused("encryption key not found", at+"/decrypt/nothing", map[string]any{"ciphertext": sealed["ciphertext"]})
	c.put(at+"/keys/orders/rotate", nil)
	if again := c.put(at+"/rewrap/orders", map[string]any{"ciphertext": sealed["ciphertext"]}); !strings.HasPrefix(fmt.Sprint(again["ciphertext"]), "vault:v2:") {
		c.Errorf("rewrapped %v", again)
	}
	c.put(at+"/keys/orders/config", map[string]any{"min_decryption_version": 2, "auto_rotate_period": "24h"})
	key := c.get(at + "/keys/orders")
	keys, _ := key["keys"].(map[string]any)
	if _, isTime := keys["2"].(json.Number); !isTime || len(keys) != 1 || fmt.Sprintf("%v %v %v", key["latest_version"], key["min_decryption_version"], key["auto_rotate_period"]) != "2 2 86400" || key["type"] != "aes256-gcm96" || key["supports_encryption"] != true {
		c.Errorf("the key is %v", key)
	}
	c.refused("min_decryption_version", at+"/decrypt/orders", map[string]any{"ciphertext": sealed["ciphertext"]})
	c.refused("is one of 1 to 2", at+"/keys/orders/config", map[string]any{"min_decryption_version": 9})
	if err := c.gone(at + "/keys/orders"); err == nil || !strings.Contains(err.Error(), "deletion is not allowed") {
		c.Errorf("removing a key that may not be removed: %v", err)
	}
	// A batch, in its order, with what each of it came to.
	batch := c.put(at+"/encrypt/orders", map[string]any{"batch_input": []any{map[string]any{"plaintext": b64("a"), "reference": "first"}, map[string]any{"plaintext": b64("b")}}})
	results, _ := batch["batch_results"].([]any)
	if len(results) != 2 || results[0].(map[string]any)["reference"] != "first" {
		c.Fatalf("the batch is %v", batch)
	}
	// Signatures that hold elsewhere.
	c.put(at+"/keys/signer", map[string]any{"type": "rsa-2048"})
	signature := fmt.Sprint(c.put(at+"/sign/signer/sha2-256", map[string]any{"input": b64("pay 5"), "signature_algorithm": "pkcs1v15"})["signature"])
	signer, _ := c.get(at + "/keys/signer")["keys"].(map[string]any)
	first, _ := signer["1"].(map[string]any)
	block, _ := pem.Decode([]byte(fmt.Sprint(first["public_key"])))
	if block == nil {
		c.Fatalf("the public key is %v", first)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	must(c.T, err)
	if _, ok := public.(*rsa.PublicKey); !ok || first["name"] != "rsa-2048" {
		c.Errorf("the public key is %v", first)
	}
	for input, want := range map[string]bool{"pay 5": true, "pay 6": false} {
		if v := c.put(at+"/verify/signer", map[string]any{"input": b64(input), "signature": signature, "signature_algorithm": "pkcs1v15"}); v["valid"] != want {
			c.Errorf("%s holds: %v, want %v", input, v, want)
		}
	}
	mac := c.put(at+"/hmac/orders/sha2-512", map[string]any{"input": b64("x")})["hmac"]
	if v := c.put(at+"/verify/orders", map[string]any{"input": b64("x"), "hmac": mac, "algorithm": "sha2-512"}); v["valid"] != true {
		c.Errorf("the HMAC holds: %v", v)
	}
	data := c.put(at+"/datakey/plaintext/orders", map[string]any{"bits": 128})
	if plain, err := base64.StdEncoding.DecodeString(fmt.Sprint(data["plaintext"])); err != nil || len(plain) != 16 {
		c.Errorf("the data key is %v", data)
	}
	c.put(at+"/keys/open", map[string]any{"exportable": true})
	if shown, _ := c.get(at + "/export/encryption-key/open")["keys"].(map[string]any); len(shown) != 1 {
		c.Errorf("exported %v", shown)
	}
	if out, err := c.read(at + "/export/encryption-key/orders"); err == nil {
		c.Errorf("exported what may not be: %v", out)
	}
	if r := c.put("sys/tools/random/8", map[string]any{"format": "hex"}); len(fmt.Sprint(r["random_bytes"])) != 16 {
		c.Errorf("random bytes: %v", r)
	}
	if h := c.put(at+"/hash/sha2-256", map[string]any{"input": b64("abc")}); h["sum"] != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		c.Errorf("the hash of abc is %v", h)
	}
	names, err := c.list(at + "/keys")
	must(c.T, err)
	if fmt.Sprint(names["keys"]) != "[open orders signer]" {
		c.Errorf("the keys are %v", names)
	}
	c.put(at+"/keys/orders/config", map[string]any{"deletion_allowed": true})
	must(c.T, c.gone(at+"/keys/orders"))
	if out, err := c.read(at + "/keys/orders"); out != nil || err != nil {
		c.Errorf("a removed key: %v, %v", out, err)
	}
	must(c.T, c.leave(at))
}

// What the door certifies is accepted by a stock openssl, and refused when it was
// revoked.
func TestVaultOCSP(t *testing.T) {
	t.Parallel()
	srv, address := vaultServer(t)
	c := hashiClient(t, address, srv.CAFile, srv.Admin(t).Token(t))
	must(t, c.mount("pki", "pki"))
	root := c.put("pki/root/generate/internal", map[string]any{"common_name": "Acme", "key_type": "ec"})
	c.put("pki/roles/web", map[string]any{"allow_any_name": true, "key_type": "ec"})
	leaf := c.put("pki/issue/web", map[string]any{"common_name": "x.example"})
	dir := t.TempDir()
	for name, text := range map[string]any{"ca.pem": root["certificate"], "leaf.pem": leaf["certificate"]} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(fmt.Sprint(text)+"\n"), 0o600))
	}
	ask := func() string {
		t.Helper()
		for _, command := range [][]string{
			{"openssl", "ocsp", "-issuer", "ca.pem", "-cert", "leaf.pem", "-reqout", "q", "-no_nonce"},
			{"curl", "-sS", "--cacert", srv.CAFile, "--data-binary", "@q", "-H", "Content-Type: application/ocsp-request", "-o", "a", address + "/v1/pki/ocsp"},
		} {
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", command, err, out)
			}
		}
		cmd := exec.CommandContext(t.Context(), "openssl", "ocsp", "-issuer", "ca.pem", "-cert", "leaf.pem", "-respin", "a", "-CAfile", "ca.pem", "-no_nonce")
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if out := ask(); !strings.Contains(out, "Response verify OK") || !strings.Contains(out, "leaf.pem: good") {
		t.Errorf("openssl says %s", out)
	}
	c.put("pki/revoke", map[string]any{"serial_number": leaf["serial_number"]})
	if out := ask(); !strings.Contains(out, "leaf.pem: revoked") {
		t.Errorf("openssl says %s", out)
	}
}
