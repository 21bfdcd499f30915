package server_test

import (
	"bytes"
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"regexp"
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
)

// A visit is a route as it is tried: whom it is refused, what is answered where there
// is no such thing, and what where all is well.
type visit struct {
	method, path, body string
	status             int    // where all is well
	keep               string // a member of the data that later visits call by this name: "NAME=member"
	missing            string // the path, or the body, of what there is not; "" where nothing is looked for
	none               int    // what is answered then
	open               bool   // to everybody
	idle               bool   // changes and shows nothing of anybody: only policies of the door are asked
}

var placeholder = regexp.MustCompile(`<[a-z]+>`)

// visits tries routes in turn: first by an agent that may do nothing, then for what
// there is not, and then as it should be.
func (v vaultClient) visits(values map[string]string, all []visit) {
	v.t.Helper()
	agent := v.as(v.apiToken())
	made, _ := v.must(200, "POST", "auth/token/create", `{"policies":["nothing"],"no_default_policy":true,"ttl":"10m"}`).All["auth"].(map[string]any)
	ticket, _ := made["client_token"].(string)
	fill := func(s string) string {
		return placeholder.ReplaceAllStringFunc(s, func(name string) string {
			value, ok := values[name[1:len(name)-1]]
			if !ok {
				v.t.Errorf("nothing is called %s", name)
			}
			return value
		})
	}
	inJSON := func(s string) string {
		return placeholder.ReplaceAllStringFunc(s, func(name string) string {
			b, _ := json.Marshal(fill(name))
			return strings.Trim(string(b), `"`)
		})
	}
	ask := func(who vaultClient, path, body string) envelope {
		v.t.Helper()
		return who.call(strings.Fields(path)[0], fill(strings.Fields(path)[1]), inJSON(body))
	}
	for _, x := range all {
		path := x.method + " " + x.path
		if x.open {
			if e := ask(vaultClient{house: v.house}, path, x.body); e.Status != x.status {
				v.t.Errorf("%s by anybody: %d %s, want %d", path, e.Status, e.Raw, x.status)
			}
		} else {
			for who, c := range map[string]vaultClient{"an agent without a grant": agent, "a token whose policies allow nothing": v.as(ticket)} {
				if e := ask(c, path, x.body); (e.Status != 403 || len(e.Errors) == 0) && (!x.idle || c != agent) {
					v.t.Errorf("%s by %s: %d %s, want 403", path, who, e.Status, e.Raw)
				}
			}
		}
		if x.missing != "" {
			at, body := x.method+" "+x.missing, x.body
			if strings.HasPrefix(x.missing, "{") {
				at, body = path, x.missing
			}
			if e := ask(v, at, body); e.Status != x.none {
				v.t.Errorf("%s %s, which there is not: %d %s, want %d", at, body, e.Status, e.Raw, x.none)
			}
		}
		e := ask(v, path, x.body)
		if e.Status != x.status {
			v.t.Errorf("%s %s: %d %s, want %d", path, x.body, e.Status, e.Raw, x.status)
		}
		if name, member, ok := strings.Cut(x.keep, "="); ok {
			values[name], _ = e.Data[member].(string)
			if l := list(e.Data[member]); len(l) > 0 {
				values[name], _ = l[0].(string)
			}
			if values[name] == "" {
				v.t.Errorf("%s: no %s in %s", path, member, e.Raw)
			}
		}
	}
}

// §12.4: routes of system, token and leases that users of Vault seldom call.
func TestVaultRoutesSystem(t *testing.T) {
	host, port := startRedis(t)
	each(t, func(t *testing.T, h *house) {
		v := h.vault()
		v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
		v.must(204, "POST", "database/config/cache", `{"plugin_name":"redis-database-plugin","host":"`+host+`","port":`+port+`,"username":"estover","password":"`+redisPassword+`","allowed_roles":"*"}`)
		v.must(200, "POST", "database/roles/app", `{"db_name":"cache","creation_statements":"[\"~x:*\",\"+get\"]","default_ttl":"10m"}`)
		lease, _ := v.must(200, "GET", "database/creds/app", nil).All["lease_id"].(string)
		made := v.must(200, "POST", "auth/token/create", `{"ttl":"1h"}`).All["auth"].(map[string]any)
		orphan, _ := made["client_token"].(string)
		v.visits(map[string]string{"lease": lease, "token": orphan}, []visit{
			{"POST", "sys/leases/renew/<lease>", `{"increment":"5m"}`, 200, "", "sys/leases/renew/database/creds/app/none", 400, false, false},
			{"POST", "sys/leases/tidy", `{}`, 202, "", "", 0, false, true},
			{"POST", "database/reset/cache", `{}`, 204, "", "database/reset/none", 404, false, false},
			{"POST", "sys/leases/revoke/<lease>", `{"sync":true}`, 204, "", "sys/leases/revoke/database/creds/app/none", 204, false, false},
			{"POST", "sys/tools/hash", `{"input":"YQ=="}`, 200, "", `{"input":"YQ==","algorithm":"none"}`, 400, false, true},
			{"POST", "auth/token/revoke-orphan", `{"token":"<token>"}`, 204, "", `{"token":"hvs.none"}`, 400, false, false},
		})
		if e := v.as(orphan).call("GET", "auth/token/lookup-self", nil); e.Status != 403 {
			t.Errorf("a token that was revoked: %d %s", e.Status, e.Raw)
		}
		// V21: a lease that has ended is none.
		v.says(400, "invalid lease", "PUT", "sys/leases/lookup", `{"lease_id":"`+lease+`"}`)
		// V17: what was made by way of a mount ends with it.
		last := v.must(200, "GET", "database/creds/app", nil)
		v.must(204, "DELETE", "sys/mounts/database", nil)
		h.until("the user is gone with the mount", func() bool {
			user := redisAs(last.text("username"), last.text("password"))
			defer user.Close()
			err := user.Get(t.Context(), "x:1").Err()
			return err != nil && (strings.Contains(err.Error(), "WRONGPASS") || strings.Contains(err.Error(), "NOAUTH"))
		})
	})
}

// §12.4: the fields of a role of AppRole, each at its own path.
func TestVaultRoutesAppRole(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		v := h.vault()
		v.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
		v.must(204, "POST", "auth/approle/role/app", `{"bind_secret_id":true}`)
		for _, f := range []struct{ path, member, value, read, usual string }{
			{"period", "token_period", `"1h"`, `3600`, `0`},
			{"bind-secret-id", "bind_secret_id", `true`, `true`, `true`},
			{"secret-id-num-uses", "secret_id_num_uses", `3`, `3`, `0`},
			{"secret-id-ttl", "secret_id_ttl", `"30m"`, `1800`, `0`},
			{"secret-id-bound-cidrs", "secret_id_bound_cidrs", `["127.0.0.1/32"]`, `["127.0.0.1"]`, `null`},
			{"token-max-ttl", "token_max_ttl", `"2h"`, `7200`, `0`},
			{"token-num-uses", "token_num_uses", `5`, `5`, `0`},
			{"token-bound-cidrs", "token_bound_cidrs", `["10.0.0.0/8"]`, `["10.0.0.0/8"]`, `[]`},
		} {
			at := "auth/approle/role/app/" + f.path
			v.visits(nil, []visit{
				{"POST", at, `{"` + f.member + `":` + f.value + `}`, 204, "", "auth/approle/role/none/" + f.path, 404, false, false},
				{"GET", at, ``, 200, "", "auth/approle/role/none/" + f.path, 404, false, false},
			})
			same(t, f.path, v.must(200, "GET", at, nil).Data[f.member], f.read)
			same(t, f.path+" in the role", v.must(200, "GET", "auth/approle/role/app", nil).Data[f.member], f.read)
			v.visits(nil, []visit{{"DELETE", at, ``, 204, "", "auth/approle/role/none/" + f.path, 204, false, false}})
			same(t, f.path+" after it was taken away", v.must(200, "GET", at, nil).Data[f.member], f.usual)
		}
		v.visits(nil, []visit{
			{"GET", "auth/approle/role/app/local-secret-ids", ``, 200, "", "auth/approle/role/none/local-secret-ids", 404, false, false},
			{"POST", "auth/approle/tidy/secret-id", `{}`, 202, "", "", 0, false, false},
		})
	})
}

// §12.4: authorities of the mount, their keys and their lists.
func TestVaultRoutesPKI(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		v := h.vault()
		v.must(204, "POST", "sys/mounts/pki", `{"type":"pki"}`)
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "csr.example"}, DNSNames: []string{"csr.example"}}, key)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]string{
			"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
			"key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
		}
		v.visits(values, []visit{
			{"POST", "pki/issuers/generate/root/internal", `{"common_name":"Acme","key_type":"ec","issuer_name":"root","ttl":"87600h"}`, 200, "root=issuer_id", "pki/issuers/generate/root/none", 400, false, false},
			{"POST", "pki/roles/web", `{"allow_any_name":true,"key_type":"ec"}`, 200, "", "", 0, false, false},
			{"POST", "pki/root/rotate/internal", `{"common_name":"Acme 2","key_type":"ec","ttl":"87600h"}`, 200, "next=issuer_id", "pki/root/rotate/none", 400, false, false},
			{"POST", "pki/root/replace", `{"default":"next"}`, 200, "", `{"default":"none"}`, 400, false, false},
			{"POST", "pki/issuers/generate/intermediate/internal", `{"common_name":"Below","key_type":"ec"}`, 200, "below=csr", "pki/issuers/generate/intermediate/none", 400, false, false},
			{"POST", "pki/issuer/root/sign-intermediate", `{"csr":"<below>","common_name":"Below"}`, 200, "signed=certificate", "pki/issuer/none/sign-intermediate", 400, false, false},
			{"POST", "pki/issuers/import/cert", `{"pem_bundle":"<signed>"}`, 200, "imported=imported_issuers", "pki/issuers/import/none", 404, false, false},
			{"POST", "pki/keys/generate/internal", `{"key_type":"ec","key_name":"spare"}`, 200, "spare=key_id", "pki/keys/generate/none", 400, false, false},
			{"POST", "pki/keys/import", `{"pem_bundle":"<key>","key_name":"brought"}`, 200, "brought=key_id", `{"pem_bundle":"none"}`, 400, false, false},
			{"GET", "pki/key/spare", ``, 200, "", "pki/key/none", 404, false, false},
			{"POST", "pki/key/spare", `{"key_name":"renamed"}`, 200, "", "pki/key/none", 404, false, false},
			{"POST", "pki/config/keys", `{"default":"<brought>"}`, 200, "", `{"default":"none"}`, 400, false, false},
			{"GET", "pki/config/keys", ``, 200, "", "", 0, false, false},
			{"DELETE", "pki/key/renamed", ``, 204, "", "", 0, false, false},
			{"POST", "pki/config/cluster", `{"path":"https://estover.example/v1/pki"}`, 200, "", `{"path":7}`, 200, false, false},
			{"GET", "pki/config/cluster", ``, 200, "", "", 0, false, false},
			{"POST", "pki/config/auto-tidy", `{"enabled":true,"safety_buffer":"72h"}`, 200, "", `{"safety_buffer":"soon"}`, 400, false, false},
			{"GET", "pki/config/auto-tidy", ``, 200, "", "", 0, false, false},
			{"POST", "pki/sign-verbatim", `{"csr":"<csr>"}`, 200, "", `{"csr":"none"}`, 400, false, false},
			{"POST", "pki/sign-verbatim/web", `{"csr":"<csr>"}`, 200, "", "pki/sign-verbatim/none", 400, false, false},
			{"POST", "pki/issuer/root/sign/web", `{"csr":"<csr>","common_name":"csr.example"}`, 200, "", "pki/issuer/none/sign/web", 400, false, false},
			{"POST", "pki/issuer/root/sign-verbatim", `{"csr":"<csr>"}`, 200, "", "pki/issuer/none/sign-verbatim", 400, false, false},
			{"POST", "pki/issuer/root/sign-verbatim/web", `{"csr":"<csr>"}`, 200, "serial=serial_number", "pki/issuer/none/sign-verbatim/web", 400, false, false},
			{"POST", "pki/revoke-with-key", `{"serial_number":"<serial>","private_key":"<key>"}`, 200, "", `{"serial_number":"00:00","private_key":"<key>"}`, 400, false, false},
			{"POST", "pki/crl/rotate", `{}`, 200, "", "", 0, false, false},
			{"GET", "pki/crl/pem", ``, 200, "", "", 0, true, false},
			{"GET", "pki/issuer/root/json", ``, 200, "", "pki/issuer/none/json", 404, true, false},
			{"GET", "pki/issuer/root/pem", ``, 200, "", "pki/issuer/none/pem", 404, true, false},
			{"GET", "pki/issuer/root/der", ``, 200, "", "pki/issuer/none/der", 404, true, false},
			{"GET", "pki/issuer/root/crl", ``, 200, "", "pki/issuer/none/crl", 404, true, false},
			{"GET", "pki/issuer/root/crl/pem", ``, 200, "", "pki/issuer/none/crl/pem", 404, true, false},
			{"GET", "pki/issuer/root/crl/der", ``, 200, "", "pki/issuer/none/crl/der", 404, true, false},
			{"GET", "pki/tidy-status", ``, 200, "", "", 0, false, true},
			{"POST", "pki/tidy-cancel", `{}`, 200, "", "", 0, false, true},
		})
		// What was revoked with its key stands in the list, in every form of it.
		block, _ := pem.Decode([]byte(v.must(200, "GET", "pki/issuer/root/crl/pem", nil).Raw))
		crl, err := x509.ParseRevocationList(block.Bytes)
		if err != nil || len(crl.RevokedCertificateEntries) != 1 || !strings.Contains(strings.ReplaceAll(values["serial"], ":", ""), crl.RevokedCertificateEntries[0].SerialNumber.Text(16)) {
			t.Errorf("the list of root: %v %+v, want %s", err, crl, values["serial"])
		}
		// A key of somebody else takes nothing back.
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		wrong, err := x509.MarshalPKCS8PrivateKey(other)
		if err != nil {
			t.Fatal(err)
		}
		serial, _ := v.must(200, "POST", "pki/sign-verbatim", map[string]string{"csr": values["csr"]}).Data["serial_number"].(string)
		e := v.call("POST", "pki/revoke-with-key", map[string]string{"serial_number": serial, "private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: wrong}))})
		if e.Status != 400 {
			t.Errorf("revoked with the key of another: %d %s", e.Status, e.Raw)
		}
		// RFC 6960 by GET: what is no question is answered as such, by anybody.
		if e := (vaultClient{house: h}).call("GET", "pki/ocsp/"+base64.StdEncoding.EncodeToString([]byte("none")), nil); e.Status != 400 && e.Status != 200 || e.Header.Get("Content-Type") != "application/ocsp-response" {
			t.Errorf("no question: %d %v", e.Status, e.Header)
		}
	})
}

// §12.4: keys of transit that come from elsewhere, are trimmed and shown.
func TestVaultRoutesTransit(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		v := h.vault()
		v.must(204, "POST", "sys/mounts/transit", `{"type":"transit"}`)
		v.must(200, "POST", "transit/keys/old", `{"exportable":true}`)
		v.must(200, "POST", "transit/keys/signs", `{"type":"ecdsa-p256"}`)
		v.visits(nil, []visit{{"GET", "transit/wrapping_key", ``, 200, "", "", 0, false, false}})
		block, _ := pem.Decode([]byte(v.must(200, "GET", "transit/wrapping_key", nil).text("public_key")))
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		wrap := func(target []byte) string {
			t.Helper()
			ephemeral := make([]byte, 32)
			if _, err := rand.Read(ephemeral); err != nil {
				t.Fatal(err)
			}
			first, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, parsed.(*rsa.PublicKey), ephemeral, nil)
			if err != nil {
				t.Fatal(err)
			}
			block, err := aes.NewCipher(ephemeral)
			if err != nil {
				t.Fatal(err)
			}
			// RFC 5649, for a key of whole blocks.
			a := binary.BigEndian.AppendUint32([]byte{0xa6, 0x59, 0x59, 0xa6}, uint32(len(target)))
			r, n := bytes.Clone(target), len(target)/8
			for j := range 6 {
				for i := range n {
					b := append(bytes.Clone(a), r[8*i:8*i+8]...)
					block.Encrypt(b, b)
					binary.BigEndian.PutUint64(a, binary.BigEndian.Uint64(b)^uint64(n*j+i+1))
					copy(r[8*i:], b[8:])
				}
			}
			return base64.StdEncoding.EncodeToString(append(append(first, a...), r...))
		}
		one, two := []byte(strings.Repeat("1", 32)), []byte(strings.Repeat("2", 32))
		values := map[string]string{"one": wrap(one), "two": wrap(two)}
		v.visits(values, []visit{
			{"POST", "transit/keys/brought/import", `{"type":"aes256-gcm96","ciphertext":"<one>","hash_function":"SHA256","allow_rotation":true,"exportable":true}`, 204, "", `{"type":"aes256-gcm96","ciphertext":"bm9uZQ=="}`, 400, false, false},
			{"POST", "transit/keys/brought/import_version", `{"ciphertext":"<two>","hash_function":"SHA256"}`, 204, "", "transit/keys/none/import_version", 400, false, false},
			{"GET", "transit/export/encryption-key/brought/2", ``, 200, "", "transit/export/encryption-key/none/2", 404, false, false},
			{"GET", "transit/export/encryption-key/brought", ``, 200, "", "transit/export/encryption-key/brought/9", 400, false, false},
			{"POST", "transit/keys/old/rotate", `{}`, 200, "", "transit/keys/none/rotate", 400, false, false},
			{"POST", "transit/keys/old/config", `{"min_decryption_version":2,"min_encryption_version":2}`, 200, "", "transit/keys/none/config", 400, false, false},
			{"POST", "transit/keys/old/trim", `{"min_available_version":2}`, 204, "", "transit/keys/none/trim", 400, false, false},
			{"POST", "transit/sign/signs/sha2-256", `{"input":"YQ=="}`, 200, "signature=signature", "transit/sign/none/sha2-256", 400, false, false},
			{"POST", "transit/verify/signs/sha2-256", `{"input":"YQ==","signature":"<signature>"}`, 200, "", "transit/verify/none/sha2-256", 400, false, false},
			{"GET", "transit/cache-config", ``, 200, "", "", 0, false, true},
			{"POST", "transit/cache-config", `{"size":0}`, 204, "", `{"size":"none"}`, 400, false, true},
		})
		same(t, "the second version", v.must(200, "GET", "transit/export/encryption-key/brought/2", nil).Data["keys"], `{"2":"`+base64.StdEncoding.EncodeToString(two)+`"}`)
		same(t, "a signature", v.must(200, "POST", "transit/verify/signs/sha2-256", `{"input":"YQ==","signature":"`+values["signature"]+`"}`).Data["valid"], `true`)
		same(t, "of something else", v.must(200, "POST", "transit/verify/signs/sha2-256", `{"input":"Yg==","signature":"`+values["signature"]+`"}`).Data["valid"], `false`)
		v.says(400, "", "POST", "transit/keys/old/trim", `{"min_available_version":1}`)
	})
}

// V11: where the operator wants the header that tells a client from a page, nothing is
// done without it.
func TestVaultRequestHeader(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		h.stop()
		h.config.VaultHead = true
		h.start()
		v := h.vault()
		for _, header := range [][]string{nil, {"X-Vault-Request", "false"}} {
			v.says(412, "X-Vault-Request", "POST", "sys/mounts/kv", `{"type":"kv"}`, header...)
		}
		v.must(204, "POST", "sys/mounts/kv", `{"type":"kv"}`, "X-Vault-Request", "true")
	})
}
