package server_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/opaque"
)

// foreign are requests to the door in which something of another tenant is named: what
// begins with $ is an id, a token or a name of theirs. The first word is whose token
// the request has: one's own, none, or one of theirs.
const foreign = `
own POST auth/token/lookup {"token":"$token"}
own POST auth/token/lookup-accessor {"accessor":"$accessor"}
own POST auth/token/lookup-accessor {"accessor":"$wrapaccessor"}
own POST auth/token/renew {"token":"$token"}
own POST auth/token/renew-accessor {"accessor":"$accessor"}
own POST auth/token/revoke {"token":"$token"}
own POST auth/token/revoke-orphan {"token":"$token"}
own POST auth/token/revoke-accessor {"accessor":"$accessor"}
own POST auth/token/revoke-accessor {"accessor":"$wrapaccessor"}
own POST sys/capabilities {"token":"$token","path":"sys/mounts"}
own POST sys/capabilities-accessor {"accessor":"$accessor","path":"sys/mounts"}
$token GET auth/token/lookup-self
$token POST auth/token/renew-self {}
$token POST auth/token/create {}
$token POST sys/capabilities-self {"path":"sys/mounts"}
$token GET cubbyhole/kept
$token POST auth/token/revoke-self {}
own POST auth/approle/role/app/secret-id/lookup {"secret_id":"$secretid"}
own POST auth/approle/role/app/secret-id/destroy {"secret_id":"$secretid"}
own POST auth/approle/role/app/secret-id-accessor/lookup {"secret_id_accessor":"$secretaccessor"}
own POST auth/approle/role/app/secret-id-accessor/destroy {"secret_id_accessor":"$secretaccessor"}
own DELETE auth/approle/role/app/secret-id-accessor/destroy?secret_id_accessor=$secretaccessor
own POST auth/approle/role/$role/secret-id/lookup {"secret_id":"x"}
own POST auth/approle/role/$role/secret-id {}
own GET auth/approle/role/$role
own DELETE auth/approle/role/$role
none POST auth/approle/login {"role_id":"$roleid","secret_id":"$secretid"}
none POST auth/approle/login {"role_id":"OUR_ROLE","secret_id":"$secretid"}
none POST auth/approle/login {"role_id":"$roleid","secret_id":"OUR_SECRET"}
own GET pki/cert/$serial
none GET pki/cert/$serial
none GET pki/cert/$serial/raw
none GET pki/cert/$serial/raw/pem
own POST pki/revoke {"serial_number":"$serial"}
none GET pki/issuer/$issuer/json
none GET pki/issuer/$issuer/pem
none GET pki/issuer/$issuer/crl
own GET pki/issuer/$issuer
own POST pki/issuer/$issuer {"issuer_name":"taken"}
own POST pki/issuer/$issuer/issue/web {"common_name":"a.example"}
own POST pki/config/issuers {"default":"$issuer"}
own DELETE pki/issuer/$issuer
own GET pki/key/$key
own POST pki/key/$key {"key_name":"taken"}
own DELETE pki/key/$key
own POST sys/wrapping/lookup {"token":"$wrap"}
none POST sys/wrapping/lookup {"token":"$wrap"}
$wrap GET sys/wrapping/lookup
own POST sys/wrapping/rewrap {"token":"$wrap"}
none POST sys/wrapping/rewrap {"token":"$wrap"}
own POST sys/wrapping/unwrap {"token":"$wrap"}
none POST sys/wrapping/unwrap {"token":"$wrap"}
$wrap POST sys/wrapping/unwrap {}
$wrap GET cubbyhole/response
own GET sys/remount/status/$migration
own GET sys/mounts/$mount
own GET sys/mounts/$mount/tune
own POST sys/mounts/$mount/tune {"description":"x"}
own GET sys/internal/ui/mounts/$mount
own GET $mount/data/one
own POST $mount/data/one {"data":{"k":"x"}}
own LIST $mount/metadata
own POST sys/remount {"from":"$mount","to":"taken"}
own DELETE sys/mounts/$mount
own GET kv/data/$secret
own GET kv/metadata/$secret
own GET kv/subkeys/$secret
own LIST kv/metadata/$secret
own POST kv/data/$secret {"data":{"k":"x"},"options":{"cas":1}}
own DELETE kv/data/$secret
own POST kv/undelete/$secret {"versions":[1]}
own POST kv/destroy/$secret {"versions":[1]}
own DELETE kv/metadata/$secret
own GET sys/policies/acl/$policy
own DELETE sys/policies/acl/$policy
own GET transit/keys/$cipher
own POST transit/decrypt/$cipher {"ciphertext":"$ciphertext"}
own POST transit/decrypt/ours {"ciphertext":"$ciphertext"}
own POST transit/keys/$cipher/rotate {}
own DELETE transit/keys/$cipher
`

// traced are those that are on record where they were asked: what is named is one that
// nobody guesses, and who asks is known.
var traced = regexp.MustCompile(`^own \S+ (auth|sys/wrapping|pki/(key|revoke|issuer/\$issuer |config)).*\$(token|accessor|wrapaccessor|secretid|secretaccessor|key|serial|issuer|wrap)\b`)

// requestID is what differs in two answers that are alike.
var requestID = regexp.MustCompile(`"request_id":"[^"]*"`)

// T1, T3: an accessor, a serial number, a secret ID, a token, one that wraps, a path or
// a name of one tenant is at the door of another what one would be that nobody has. That
// leaves a trace there, does nothing, and all of it goes on where it belongs.
func TestVaultForeign(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		acme, evil := h.found("acme", "127.0.0.0/8"), h.found("evil")
		theirs, ours := acme.vault(), evil.vault()
		d := openOutside(t, database)

		// Both have the same, each of their own.
		its, own := map[string]string{}, map[string]string{}
		for _, has := range []struct {
			v   vaultClient
			ids map[string]string
		}{{theirs, its}, {ours, own}} {
			v, ids := has.v, has.ids
			for _, kind := range []string{"kv-v2", "pki", "transit"} {
				v.must(204, "POST", "sys/mounts/"+strings.TrimSuffix(kind, "-v2"), `{"type":"`+kind+`"}`)
			}
			v.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
			v.must(204, "POST", "auth/approle/role/app", `{"token_policies":["default"]}`)
			ids["roleid"] = v.must(200, "GET", "auth/approle/role/app/role-id", nil).text("role_id")
			made := v.must(200, "POST", "auth/approle/role/app/secret-id", `{}`)
			ids["secretid"], ids["secretaccessor"] = made.text("secret_id"), made.text("secret_id_accessor")
			root := v.must(200, "POST", "pki/root/generate/internal", `{"common_name":"`+canary+`.example","ttl":"8760h"}`)
			ids["issuer"], ids["key"] = root.text("issuer_id"), root.text("key_id")
			v.must(200, "POST", "pki/roles/web", `{"allow_any_name":true,"max_ttl":"1h"}`)
			ids["serial"] = v.must(200, "POST", "pki/issue/web", `{"common_name":"`+canary+`.example"}`).text("serial_number")
			v.must(200, "POST", "transit/keys/ours", `{"type":"aes256-gcm96"}`)
			made = v.must(200, "POST", "auth/token/create", `{"policies":["default"],"meta":{"k":"`+canary+`"},"ttl":"1h"}`)
			ids["token"] = made.token()
			ids["accessor"], _ = made.auth()["accessor"].(string)
			v.as(ids["token"]).must(204, "POST", "cubbyhole/kept", `{"k":"`+canary+`"}`)
			wrapped := v.must(200, "POST", "sys/wrapping/wrap", `{"k":"`+canary+`"}`, "X-Vault-Wrap-TTL", "1h").wrapped()
			ids["wrap"], _ = wrapped["token"].(string)
			ids["wrapaccessor"], _ = wrapped["accessor"].(string)
		}
		// One of them has what the other one has no name for.
		for name, value := range map[string]string{"mount": "mountofacme", "secret": "secretofacme", "policy": "policyofacme", "cipher": "cipherofacme", "role": "roleofacme"} {
			its[name] = value
		}
		theirs.must(204, "POST", "sys/mounts/before", `{"type":"kv-v2","description":"`+canary+`"}`)
		its["migration"] = theirs.must(200, "POST", "sys/remount", `{"from":"before","to":"`+its["mount"]+`"}`).text("migration_id")
		theirs.must(200, "POST", its["mount"]+"/data/one", `{"data":{"k":"`+canary+`"}}`)
		theirs.must(200, "POST", "kv/data/"+its["secret"], `{"data":{"k":"`+canary+`"}}`)
		theirs.must(204, "POST", "sys/policies/acl/"+its["policy"], `{"policy":"# `+canary+`\npath \"x\" { capabilities = [\"read\"] }"}`)
		theirs.must(200, "POST", "transit/keys/"+its["cipher"], `{"type":"aes256-gcm96"}`)
		theirs.must(200, "POST", "transit/keys/"+its["cipher"]+"/config", `{"deletion_allowed":true}`)
		its["ciphertext"] = theirs.must(200, "POST", "transit/encrypt/"+its["cipher"], `{"plaintext":"YQ=="}`).text("ciphertext")
		theirs.must(204, "POST", "auth/approle/role/"+its["role"], `{"token_policies":["default"]}`)

		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 1))
		t.Logf("the seed is %d", seed)
		twins := map[string]string{}
		for name, value := range its {
			switch twins[name] = twin(value, random); name {
			case "token":
				twins[name] = opaque.New(opaque.Ticket) + ".evil"
			case "wrap":
				twins[name] = opaque.New(opaque.Wrapping) + ".evil"
			case "ciphertext":
				twins[name] = "vault:v1:" + twin(strings.TrimPrefix(value, "vault:v1:"), random)
			}
			if value == "" || twins[name] == value || value == own[name] {
				t.Fatalf("%s is %q, its twin %q, and one's own %q", name, value, twins[name], own[name])
			}
		}
		ask := func(who, method, path, body string, values map[string]string) (int, string) {
			t.Helper()
			fill := func(text string) string {
				text = strings.NewReplacer("OUR_ROLE", own["roleid"], "OUR_SECRET", own["secretid"]).Replace(text)
				return names.ReplaceAllStringFunc(text, func(name string) string {
					v, ok := values[name[1:]]
					if !ok {
						t.Fatalf("nothing is called %s in %s %s", name, method, path)
					}
					return v
				})
			}
			v := ours
			switch who {
			case "none":
				v.key = ""
			case "own":
			default:
				v.key = fill(who)
			}
			e := v.call(method, fill(path), fill(body))
			text := requestID.ReplaceAllString(e.Raw, "")
			for _, value := range values {
				text = strings.ReplaceAll(text, value, "X")
			}
			return e.Status, text
		}
		traces := func() (newest string) {
			t.Helper()
			for _, outcome := range []string{"refused", "failed"} {
				var events struct{ Items []struct{ ID string } }
				evil.must("GET", "/v1/events?limit=1&outcome="+outcome, nil, &events)
				for _, e := range events.Items {
					newest += " " + outcome + e.ID
				}
			}
			return newest
		}
		before := rowsOf(t, d, "acme")
		for _, try := range strings.Split(strings.TrimSpace(foreign), "\n") {
			part := append(strings.SplitN(try, " ", 4), "")
			who, method, path, body := part[0], part[1], part[2], part[3]
			was := traces()
			got, said := ask(who, method, path, body, its)
			left := traces() != was
			want, twin := ask(who, method, path, body, twins)
			if got != want || said != twin {
				t.Errorf("%s: %d %s; without such a thing it is %d %s", try, got, said, want, twin)
			}
			if strings.Contains(said, canary) || got >= 500 {
				t.Errorf("%s: %d %s", try, got, said)
			}
			if traced.MatchString(try) && !left {
				t.Errorf("%s is not on record", try)
			}
		}
		for table, now := range rowsOf(t, d, "acme") {
			if now != before[table] {
				t.Errorf("the rows of acme in %s were changed", table)
			}
		}

		// The names were good: all of it is there for whom it belongs to.
		for _, c := range []struct{ method, path, body string }{
			{"POST", "auth/token/lookup-accessor", `{"accessor":"` + its["accessor"] + `"}`},
			{"POST", "auth/approle/role/app/secret-id-accessor/lookup", `{"secret_id_accessor":"` + its["secretaccessor"] + `"}`},
			{"POST", "auth/approle/login", `{"role_id":"` + its["roleid"] + `","secret_id":"` + its["secretid"] + `"}`},
			{"GET", "pki/issuer/" + its["issuer"], ""},
			{"GET", "pki/key/" + its["key"], ""},
			{"POST", "sys/wrapping/unwrap", `{"token":"` + its["wrap"] + `"}`},
			{"GET", "sys/remount/status/" + its["migration"], ""},
			{"GET", its["mount"] + "/data/one", ""},
			{"GET", "kv/data/" + its["secret"], ""},
			{"GET", "sys/policies/acl/" + its["policy"], ""},
			{"POST", "transit/decrypt/" + its["cipher"], `{"ciphertext":"` + its["ciphertext"] + `"}`},
		} {
			theirs.must(200, c.method, c.path, c.body)
		}
		theirs.as(its["token"]).must(200, "GET", "cubbyhole/kept", nil)
		if at := theirs.must(200, "GET", "pki/cert/"+its["serial"], nil).Data["revocation_time"]; fmt.Sprint(at) != "0" {
			t.Errorf("the certificate of acme was revoked at %v", at)
		}
	})
}
