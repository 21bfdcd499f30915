package server_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"estover.dev/internal/db/dbtest"
)

// isolated are all routes of the API, as somebody of another tenant tries them: what
// begins with $ is the name or the id of something of the tenant that is looked for,
// $own. of something that they have themselves. The answer is 404 unless a line says
// another status. Routes in which nothing of a tenant can be named stand in a line
// with a dash, and must not show anything.
const isolated = `
- GET /v1/absences
200 GET /v1/access/requests?agent=$agent&session=$session
POST /v1/access/requests {"agent":"$agent","purpose":"support","reason":"x","items":[{"resource":"crm","actions":["item.delete"]}]}
POST /v1/access/requests {"agent":"bot","purpose":"support","reason":"x","items":[{"resource":"$resource","actions":["item.delete"]}]}
POST /v1/access/requests {"agent":"bot","session":"$session","purpose":"support","reason":"x","items":[{"resource":"crm","actions":["item.delete"]}]}
GET /v1/access/requests/$request
POST /v1/access/requests/$request/approve {}
POST /v1/access/requests/$request/cancel {}
POST /v1/access/requests/$request/deny {"note":"x"}
POST /v1/access/requests/$request/document {}
GET /v1/access/requests/$request/why
200 GET /v1/agents?sponsor=$person
POST /v1/agents {"name":"of-another","blueprint":"support","sponsor":"$person","clearance":"internal","purposes":["support"]}
GET /v1/agents/$agent
PUT /v1/agents/$agent {"name":"bot","blueprint":"support","sponsor":"$person","clearance":"internal","purposes":["support"]}
GET /v1/agents/$agent/credentials
POST /v1/agents/$agent/credentials {"kind":"secret"}
POST /v1/agents/$agent/credentials/$credential/retire {}
POST /v1/agents/$own.agent/credentials/$credential/retire {}
POST /v1/agents/$agent/holds {"kind":"suspended","reason":"x"}
POST /v1/agents/$held/holds/$hold/lift {"reason":"x"}
POST /v1/agents/$own.agent/holds/$hold/lift {"reason":"x"}
POST /v1/agents/$agent/restore {"at":"2026-01-01T00:00:00Z","dry_run":true}
PUT /v1/agents/$agent/risk {"band":"low","reason":"x"}
POST /v1/apply {"files":[{"path":"a.yaml","text":"apiVersion: estover.dev/v1\nkind: Grant\nmetadata: {name: theirs}\nspec: {agent: $other, resource: crm, actions: [item.read], purposes: [support], class: internal}\n"}]}
- GET /v1/break-glass
- POST /v1/break-glass/codes
- POST /v1/break-glass/open
- GET /v1/channels
GET /v1/channels/$channel
POST /v1/channels/$channel/test
DELETE /v1/channels/$channel
- GET /v1/connections
GET /v1/connections/$connection
POST /v1/connections/$connection/renew
DELETE /v1/connections/$connection
200 PUT /v1/connections/ours {"name":"ours","token_endpoint":"https://id.example/token","authorization_endpoint":"https://id.example/auth","client_id":"us","secret":"$secret","destinations":["id.example"]}
200 GET /v1/containments?agent=$agent
GET /v1/containments/$containment/certificate
- GET /v1/detail-types
GET /v1/detail-types/$detail
DELETE /v1/detail-types/$detail
PUT /v1/detail-types/ours {"name":"ours","title":"x","schema":"{\"type\":\"object\"}","resources":["$resource"]}
- GET /v1/doctor
POST /v1/doctor/targets {"target":"$engine"}
- GET /v1/drills
- POST /v1/drills
- GET /v1/emergency-rotations
GET /v1/emergency-rotations/$emergency
GET /v1/emergency-rotations/$emergency/report
POST /v1/emergency-rotations/$emergency/settle {"item":1,"reason":"x"}
200 GET /v1/events?session=$session
200 GET /v1/events?target=agent:$agent
GET /v1/events/$event
GET /v1/events/$call/receipt
GET /v1/events/$event/why
200 GET /v1/grants?agent=$agent
200 GET /v1/grants?resource=$resource
POST /v1/grants {"agent":"$agent","resource":"crm","actions":["item.read"],"purposes":["support"],"class":"internal"}
POST /v1/grants {"agent":"bot","resource":"$resource","actions":["item.read"],"purposes":["support"],"class":"internal"}
422 POST /v1/grants {"agent":"bot","session":"$session","resource":"crm","actions":["item.read"],"purposes":["support"],"class":"internal"}
GET /v1/grants/$grant
POST /v1/grants/$grant/end {"reason":"x"}
POST /v1/grants/$grant/restore
- GET /v1/holds
POST /v1/holds/$stop/lift {"reason":"x"}
- GET /v1/identity-providers
GET /v1/identity-providers/$provider
DELETE /v1/identity-providers/$provider
200 PUT /v1/identity-providers/ours {"name":"ours","issuer":"https://id.example","client_id":"us","secret":"$secret"}
- GET /v1/keys
- POST /v1/keys/{purpose}/rotate
- GET /v1/lease-roles
GET /v1/lease-roles/$role
PUT /v1/lease-roles/ours {"name":"ours","target":"$engine","resource":"crm","action":"item.read"}
POST /v1/lease-roles/$role/check
DELETE /v1/lease-roles/$role
200 GET /v1/leases?session=$session
200 GET /v1/leases?agent=$agent&role=$role
GET /v1/leases?target=$engine
POST /v1/leases {"role":"$role","purpose":"a look"}
POST /v1/leases/revoke {"id":"$lease"}
200 POST /v1/leases/revoke {"session":"$session"}
200 POST /v1/leases/revoke {"agent":"$agent"}
200 POST /v1/leases/revoke {"role":"$role"}
POST /v1/leases/revoke {"target":"$engine"}
GET /v1/leases/$lease
403 POST /v1/leases/$lease/renew {}
- POST /v1/log/verify
- POST /v1/login
- POST /v1/logout
- GET /v1/people
- POST /v1/people
- POST /v1/people/me/approver-keys
GET /v1/people/$person
PUT /v1/people/$person {"name":"$name","roles":[]}
PUT /v1/people/$person/absence {"deputy":"alice","until":"$own.soon"}
PUT /v1/people/alice/absence {"deputy":"$person","until":"$own.soon"}
DELETE /v1/people/$person/absence
200 GET /v1/people/$person/approver-keys
DELETE /v1/people/$person/approver-keys/$key
DELETE /v1/people/alice/approver-keys/$key
POST /v1/people/$person/disable {"reason":"x"}
POST /v1/people/$person/enable
POST /v1/people/$person/invitations {}
- GET /v1/pki/authorities
POST /v1/pki/authorities {"name":"below","parent":"$authority"}
- POST /v1/pki/authorities/import
GET /v1/pki/authorities/$authority
POST /v1/pki/authorities/$authority/default
POST /v1/pki/authorities/$authority/rotate {}
DELETE /v1/pki/authorities/$authority
200 GET /v1/pki/certificates?agent=$agent&session=$session
GET /v1/pki/certificates/$certificate
POST /v1/pki/certificates/$certificate/revoke {"cause":"x"}
- GET /v1/pki/roles
GET /v1/pki/roles/$web
200 PUT /v1/pki/roles/ours {"authority":"$authority","x509":{"any_name":true}}
POST /v1/pki/roles/$web/issue {"common_name":"a.example.com"}
POST /v1/pki/roles/$web/sign {"csr":"$own.csr"}
DELETE /v1/pki/roles/$web
- GET /v1/policies
- POST /v1/policies
GET /v1/policies/$policy
POST /v1/policies/$policy/activate {"reason":"x"}
POST /v1/policies/$policy/rollback {"reason":"x"}
- GET /v1/policy-activations
- GET /v1/registration
- PUT /v1/registration
- GET /v1/registration/tokens
POST /v1/registration/tokens {"agent":{"name":"made","blueprint":"support","sponsor":"$person","purposes":["support"],"clearance":"internal","client":{"grant_types":["client_credentials"]}}}
DELETE /v1/registration/tokens/$registration
- GET /v1/resources
GET /v1/resources/$resource
200 PUT /v1/resources/ours {"name":"ours","base_url":"https://ours.example","class":"internal","slots":[{"slot":"header","name":"X","secret":"$secret"}],"actions":[{"name":"a","method":"GET","path":"/"}]}
DELETE /v1/resources/$resource
- GET /v1/root-keys
- POST /v1/root-keys
- POST /v1/root-keys/rotate
- DELETE /v1/root-keys/{id}
GET /v1/rotation?path=$secret
PUT /v1/rotation?path=$secret {"kind":"keys","target":"$engine","users":["kept-1","kept-2"]}
PUT /v1/rotation?path=ours/one {"kind":"keys","target":"$engine","users":["kept-1","kept-2"]}
POST /v1/rotation-targets/$engine/clear
GET /v1/rotation/explain?path=$secret
POST /v1/rotation/run?path=$secret
POST /v1/rotation/force?path=$secret {"reason":"x"}
DELETE /v1/rotation?path=$secret
200 GET /v1/rotations?prefix=$secret
GET /v1/secret?path=$secret
PATCH /v1/secret?path=$secret {"description":"x"}
200 PATCH /v1/secret?path=ours/one {"owner":"user:$person"}
- GET /v1/secret-engine-kinds
- GET /v1/secret-engines
200 POST /v1/secret-engines {"name":"ours-$engine","kind":"redis","address":"127.0.0.1:1","admin":"$secret"}
- POST /v1/secret-engines/restored
GET /v1/secret-engines/$engine
PATCH /v1/secret-engines/$engine {"description":"x"}
POST /v1/secret-engines/$engine/check {}
POST /v1/secret-engines/$engine/declare-gone {"reason":"x"}
POST /v1/secret-engines/$engine/reconcile {}
POST /v1/secret-engines/$engine/rotate-root {}
GET /v1/secret-engines/$engine/strays
DELETE /v1/secret-engines/$engine
POST /v1/secret-imports {"kind":"vault","address":"https://127.0.0.1:1","from":"","to":"","login":"$secret"}
POST /v1/secret-links {"path":"ours/linked","store":"$store","from":"x"}
DELETE /v1/secret-links?path=$link
- GET /v1/secret-store-kinds
- GET /v1/secret-stores
GET /v1/secret-stores/$store
200 PUT /v1/secret-stores/ours {"name":"ours","kind":"vault","address":"https://127.0.0.1:1","login":"$secret"}
POST /v1/secret-stores/$store/check {}
DELETE /v1/secret-stores/$store
200 GET /v1/secret-syncs?path=$secret
200 GET /v1/secret-syncs?store=$store
POST /v1/secret-syncs {"path":"$secret","store":"ours"}
POST /v1/secret-syncs {"path":"ours/one","store":"$store"}
GET /v1/secret-syncs/$sync
POST /v1/secret-syncs/$sync/accept
POST /v1/secret-syncs/$sync/overwrite {"reason":"x"}
DELETE /v1/secret-syncs/$sync
200 GET /v1/secret-uses?session=$session
200 GET /v1/secret-uses?secret=$secret
200 POST /v1/secret/identify {"value":"$value"}
POST /v1/secret/read?path=$secret {"purpose":"a look"}
POST /v1/secret/rollback?path=$secret {"version":1}
POST /v1/secret/versions?path=$secret {"fields":{"value":"x"}}
POST /v1/secret/versions/delete?path=$secret {"versions":[1]}
POST /v1/secret/versions/undelete?path=$secret {"versions":[1]}
POST /v1/secret/versions/destroy?path=$secret {"versions":[1]}
DELETE /v1/secret?path=$secret
200 GET /v1/secrets?prefix=$secret
200 POST /v1/secrets {"path":"ours/$person","class":"internal","risk":"low","description":"","owner":"user:$person","destinations":[]}
200 GET /v1/sessions?agent=$agent
401 POST /v1/sessions {"agent":"$agent","purpose":"support"}
403 POST /v1/sessions {"agent":"bot","purpose":"support","parent":"$session"}
GET /v1/sessions/$session
200 GET /v1/sessions/$session/evidence
PUT /v1/sessions/$session/heartbeat
GET /v1/sessions/$session/recording
POST /v1/sessions/$session/renew {"ttl_seconds":60}
POST /v1/sessions/$session/end {"cause":"x"}
- GET /v1/ssh/authorities
- POST /v1/ssh/authorities
- POST /v1/ssh/authorities/import
GET /v1/ssh/authorities/$hosts
POST /v1/ssh/authorities/$hosts/default
POST /v1/ssh/authorities/$hosts/rotate {}
DELETE /v1/ssh/authorities/$hosts
200 GET /v1/ssh/certificates?agent=$agent
GET /v1/ssh/certificates/$serial
POST /v1/ssh/certificates/$serial/revoke {"cause":"x"}
- GET /v1/ssh/roles
GET /v1/ssh/roles/$people
200 PUT /v1/ssh/roles/ours {"authority":"$hosts","ssh":{"user":true,"principals":["ada"]}}
POST /v1/ssh/roles/$people/sign {"public_key":"$public"}
DELETE /v1/ssh/roles/$people
403 GET /v1/tenants
403 POST /v1/tenants {"name":"umbrella"}
403 GET /v1/tenants/$tenant
403 PUT /v1/tenants/$tenant {"name":"$tenant"}
403 POST /v1/tenants/$tenant/disable {"reason":"x"}
403 POST /v1/tenants/$tenant/enable
403 POST /v1/tenants/$tenant/erase
403 POST /v1/tenants/$tenant/invitations
POST /v1/tokens/explain {"token":"$token"}
- GET /v1/transit/keys
- POST /v1/transit/keys
GET /v1/transit/keys/$transit
PATCH /v1/transit/keys/$transit {"exportable":true}
POST /v1/transit/keys/$transit/datakey {"bits":256}
POST /v1/transit/keys/$transit/encrypt {"items":[{"plaintext":"eA=="}]}
POST /v1/transit/keys/$transit/decrypt {"items":[{"ciphertext":"$sealed"}]}
POST /v1/transit/keys/$transit/rewrap {"items":[{"ciphertext":"$sealed"}]}
POST /v1/transit/keys/$transit/hmac {"items":[{"plaintext":"eA=="}]}
POST /v1/transit/keys/$transit/sign {"items":[{"plaintext":"eA=="}]}
POST /v1/transit/keys/$transit/verify {"items":[{"plaintext":"eA==","ciphertext":"$sealed"}]}
POST /v1/transit/keys/$transit/export {"part":"encryption-key"}
POST /v1/transit/keys/$transit/import {"ciphertext":"eA==","more":true}
POST /v1/transit/keys/$transit/rotate
POST /v1/transit/keys/$transit/trim {"min_available_version":1}
DELETE /v1/transit/keys/$transit
- GET /v1/transit/wrapping-key
- GET /v1/trust
- GET /v1/trusts
GET /v1/trusts/$trust
PUT /v1/trusts/ours {"name":"ours","issuer":"https://ci.example","jwks_url":"https://keys.invalid/jwks","algorithms":["ES256"],"audience":"https://estover.example","rules":[{"agent":"$agent","claims":{"sub":"x"}}]}
DELETE /v1/trusts/$trust
200 PUT /v1/channels/$channel {"name":"$channel","kind":"slack","url":"https://chat.example/x"}
200 PUT /v1/connections/$connection {"name":"$connection","token_endpoint":"https://id.example/token","authorization_endpoint":"https://id.example/auth","client_id":"us","secret":"ours/one","destinations":["id.example"]}
POST /v1/containments {"agent":"$agent","reason":"x"}
POST /v1/containments {"scope":"resource","target":"$resource","reason":"x"}
POST /v1/containments {"scope":"person","target":"$person","reason":"x"}
POST /v1/emergency-rotations {"scope":"agent","target":"$agent","reason":"x"}
POST /v1/emergency-rotations {"scope":"secret","target":"$secret","reason":"x"}
POST /v1/emergency-rotations {"scope":"resource","target":"$resource","reason":"x"}
POST /v1/emergency-rotations {"scope":"incident","target":"$containment","reason":"x"}
`

// furnish fills a tenant, and says what everything there is called.
func (h *house) furnish() map[string]string {
	h.t.Helper()
	type object = map[string]any
	its := map[string]string{"agent": h.agent, "tenant": "acme", "engine": "shop", "role": "shop-plain"}
	// made keeps a member of what is answered.
	made := func(name, member, method, path string, body any) {
		h.t.Helper()
		status, b := h.do(method, path, h.token, body)
		var answer object
		if err := json.Unmarshal(b, &answer); err != nil || status >= 300 {
			h.t.Errorf("%s %s: %d %s", method, path, status, b)
			return
		}
		for _, m := range strings.Split(member, ".") {
			if l, ok := answer[m].([]any); ok {
				answer[m] = l[0]
			}
			if inner, ok := answer[m].(object); ok {
				answer = inner
			} else {
				its[name] = fmt.Sprint(answer[m])
			}
		}
		if its[name] == "" || its[name] == "<nil>" {
			h.t.Errorf("%s %s: no %s in %s", method, path, member, b)
		}
	}
	put := func(method, path string, body any) {
		h.t.Helper()
		if status, b := h.do(method, path, h.token, body); status >= 300 {
			h.t.Errorf("%s %s: %d %s", method, path, status, b)
		}
	}
	h.sells()
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[]}`)
	}))
	h.t.Cleanup(vault.Close)
	put("POST", "/v1/people", object{"name": canary, "roles": []string{"approver"}})
	made("person", "id", "GET", "/v1/people/"+canary, nil)
	for _, path := range []string{"kept/key", "kept/login", "kept/burnt"} {
		put("POST", "/v1/secrets", object{"path": path, "class": "internal", "risk": "low", "description": canary, "owner": "user:" + its["person"], "destinations": []string{"shop.example", strings.TrimPrefix(vault.URL, "http://")}})
		put("POST", "/v1/secret/versions?path="+path, object{"fields": object{"username": "kept-1", "value": canary + path, "key": canary + path}})
	}
	its["secret"], its["value"], its["link"] = "kept/key", canary+"kept/key", "kept/linked"
	pam := h.approver("pam")
	key, _, _ := strings.Cut(pam.id, " ")
	its["key"] = key
	made("credential", "id", "POST", "/v1/agents/bot/credentials", object{"kind": "secret", "label": canary})
	its["session"] = h.openSession()
	h.do("GET", "/u/crm/v1/items/7", h.accessToken(its["session"]), nil)
	its["token"] = h.accessToken(its["session"])
	made("request", "id", "POST", "/v1/access/requests", object{"agent": "bot", "purpose": "support", "reason": canary, "items": []object{{"resource": "crm", "actions": []string{"item.delete"}}}})
	made("grant", "id", "POST", "/v1/grants", object{"agent": "bot", "resource": "crm", "actions": []string{"echo.read"}, "purposes": []string{"support"}, "class": "confidential", "name": canary})
	made("resource", "id", "GET", "/v1/resources/shop", nil)
	made("lease", "id", "POST", "/v1/leases", object{"role": "shop-plain", "purpose": "a look"})
	put("PUT", "/v1/rotation?path=kept/key", object{"kind": "keys", "target": "shop", "users": []string{"kept-1", "kept-2"}})
	put("PUT", "/v1/channels/chat-of-acme", object{"name": "chat-of-acme", "kind": "slack", "url": "https://chat.example/" + canary})
	put("PUT", "/v1/connections/mail-of-acme", object{
		"name": "mail-of-acme", "token_endpoint": "https://id.example/token", "authorization_endpoint": "https://id.example/auth", "client_id": canary, "secret": "kept/login", "destinations": []string{"shop.example"},
	})
	put("PUT", "/v1/detail-types/payment-of-acme", object{"name": "payment-of-acme", "title": canary, "schema": `{"type":"object"}`})
	put("PUT", "/v1/identity-providers/corp-of-acme", object{"name": "corp-of-acme", "issuer": "https://id.example", "client_id": canary})
	put("PUT", "/v1/trusts/ci-of-acme", trustIn("bot", "name", "ci-of-acme", "audience", "https://"+canary+".example"))
	put("PUT", "/v1/secret-stores/store-of-acme", object{"name": "store-of-acme", "kind": "vault", "address": vault.URL, "login": "kept/login", "description": canary})
	made("sync", "id", "POST", "/v1/secret-syncs", object{"path": "kept/burnt", "store": "store-of-acme"})
	put("POST", "/v1/pki/authorities", object{"name": "root-of-acme", "common_name": canary})
	put("PUT", "/v1/pki/roles/web-of-acme", object{"authority": "root-of-acme", "x509": object{"any_name": true, "client": true}})
	made("certificate", "serial", "POST", "/v1/pki/roles/web-of-acme/issue", object{"common_name": canary + ".example"})
	put("POST", "/v1/ssh/authorities", object{"name": "hosts-of-acme"})
	put("PUT", "/v1/ssh/roles/people-of-acme", object{"authority": "hosts-of-acme", "ssh": object{"user": true, "principals": []string{canary}}})
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		h.t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(public)
	if err != nil {
		h.t.Fatal(err)
	}
	its["public"] = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
	made("serial", "serial", "POST", "/v1/ssh/roles/people-of-acme/sign", object{"public_key": its["public"], "principals": []string{canary}})
	put("POST", "/v1/transit/keys", object{"name": "transit-of-acme"})
	made("sealed", "items.text", "POST", "/v1/transit/keys/transit-of-acme/encrypt", object{"items": []object{{"plaintext": "eA=="}}})
	made("registration", "id", "POST", "/v1/registration/tokens", object{"label": canary, "agent": object{
		"name": "made", "blueprint": "support", "sponsor": its["person"], "purposes": []string{"support"}, "clearance": "internal", "client": object{"grant_types": []string{"client_credentials"}},
	}})
	made("policy", "revision.digest", "POST", "/v1/policies", object{"note": canary, "files": []object{{"path": "mine.rego", "text": "# METADATA\n# title: Mine\n# description: " + canary + "\npackage tenant.mine\n\n" +
		"# METADATA\n# title: None\n# description: None.\n# custom:\n#   next: Ask.\ndeny contains \"none\" if input.op == \"gateway.none\"\n"}}})
	made("containment", "id", "POST", "/v1/containments", object{"scope": "blueprint", "target": "nothing-of-it", "reason": canary})
	made("stop", "items.id", "GET", "/v1/holds", nil)
	made("emergency", "id", "POST", "/v1/emergency-rotations", object{"scope": "secret", "target": "kept/burnt", "reason": canary})
	put("PUT", "/v1/people/"+its["person"]+"/absence", object{"deputy": "alice", "until": time.Now().Add(time.Hour)})
	its["name"], its["other"] = canary, "held-of-acme"
	put("POST", "/v1/secret-links", object{"path": "kept/linked", "store": "store-of-acme", "from": "x"})
	h.until("the call is in the log", func() bool { // its evidence is batched
		var list struct{ Items []any }
		h.must(http.MethodGet, "/v1/events?action=gateway.call&limit=1", nil, &list)
		return len(list.Items) > 0
	})
	made("call", "items.id", "GET", "/v1/events?action=gateway.call&limit=1", nil)
	made("event", "items.id", "GET", "/v1/events?action=secret.create&limit=1", nil)
	put("POST", "/v1/agents", object{"name": "held-of-acme", "blueprint": "support", "sponsor": its["person"], "clearance": "internal", "purposes": []string{"support"}})
	made("held", "id", "GET", "/v1/agents/held-of-acme", nil)
	made("hold", "id", "POST", "/v1/agents/held-of-acme/holds", object{"kind": "suspended", "reason": canary})
	for name, value := range map[string]string{
		"channel": "chat", "connection": "mail", "detail": "payment", "provider": "corp", "trust": "ci", "store": "store", "authority": "root", "web": "web", "hosts": "hosts", "people": "people", "transit": "transit",
	} {
		its[name] = value + "-of-acme"
	}
	return its
}

// A try is a line of isolated.
type try struct {
	status       int
	method, path string // the path as the API describes it has {} for what is named in it
	body         string
	nothing      bool // can be named there
}

var (
	braces = regexp.MustCompile(`\{[^}]*\}|\$[a-z.]+`)
	// known are things that policy looks at before anything else does, so that it refuses.
	known = regexp.MustCompile(`/\$(agent|session|grant|request|person|resource|containment|emergency)\b`)
	names = regexp.MustCompile(`\$[a-z]+`)
)

// shape is a path with what is named in it left out.
func shape(method, path string) string {
	path, _, _ = strings.Cut(path, "?")
	return method + " " + braces.ReplaceAllString(path, "{}")
}

func tries(t *testing.T) (all []try) {
	t.Helper()
	for _, l := range strings.Split(strings.TrimSpace(isolated), "\n") {
		x := try{status: http.StatusNotFound}
		first, rest, _ := strings.Cut(l, " ")
		switch {
		case first == "-":
			x.nothing, l = true, rest
		case first[0] < 'A':
			if _, err := fmt.Sscan(first, &x.status); err != nil {
				t.Fatal(err)
			}
			l = rest
		}
		x.method, rest, _ = strings.Cut(l, " ")
		x.path, x.body, _ = strings.Cut(rest, " ")
		all = append(all, x)
	}
	return all
}

// request is what a refusal is called.
func request(body string) string {
	var p struct{ Request string }
	_ = json.Unmarshal([]byte(body), &p)
	return p.Request
}

// twin is a value that looks like another, and is nothing's. It begins as that does,
// and has its noughts where that has them: of a number that began with others would be
// told without them.
func twin(value string, random *rand.Rand) string {
	hex := regexp.MustCompile(`^[0-9a-f:]+$`).MatchString(value)
	prefix := ""
	if i := strings.IndexByte(value, '_'); i == 2 || i == 3 { // says what kind of thing it is
		prefix, value = value[:i+1], value[i+1:]
	}
	if len(value) < 6 { // four letters drawn by lot may be a word of what is answered
		return prefix + value + "-twin"
	}
	b := []byte(value)
	for i, c := range b[1:] {
		switch {
		case c >= '1' && c <= '9':
			c = '1' + byte(random.IntN(9))
		case c >= 'a' && c <= 'z' && hex:
			c = 'a' + byte(random.IntN(6))
		case c >= 'a' && c <= 'z':
			c = 'a' + byte(random.IntN(26))
		case c >= 'A' && c <= 'Z':
			c = 'A' + byte(random.IntN(26))
		}
		b[i+1] = c
	}
	return prefix + string(b)
}

// T3: whatever of a tenant's things is named at a route of the API by somebody of
// another one, they are told what they would be if there were no such thing, and
// nothing happens to it. Every route is tried: one that is added wants a line.
func TestIsolation(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		acme, evil := h.found("acme", "127.0.0.0/8"), h.found("evil", "127.0.0.0/8")
		acme.apply()
		evil.apply()
		its := acme.furnish()
		evil.must("POST", "/v1/secrets", map[string]any{"path": "ours/one", "class": "internal", "risk": "low", "description": "", "owner": "", "destinations": []string{"127.0.0.1:1", "id.example"}}, nil)
		evil.must("POST", "/v1/secret/versions?path=ours/one", map[string]any{"fields": map[string]string{"username": "kept-1", "value": "x"}}, nil)
		evil.must("PUT", "/v1/secret-stores/ours", map[string]any{"name": "ours", "kind": "vault", "address": "https://127.0.0.1:1", "login": "ours/one"}, nil)
		d := openOutside(t, database)
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 1))
		t.Logf("the seed is %d", seed)
		twins := map[string]string{}
		for name, value := range its {
			twins[name] = twin(value, random)
			if twins[name] == value {
				t.Fatalf("%s has no twin: %s", name, value)
			}
		}

		key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(cryptorand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.example.com"}}, key)
		if err != nil {
			t.Fatal(err)
		}
		csr := strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), "\n", `\n`)

		// Every route has a line.
		var described struct {
			Paths map[string]map[string]json.RawMessage
		}
		_, b := h.do("GET", "/v1/openapi.json", "", nil)
		if err := json.Unmarshal(b, &described); err != nil || len(described.Paths) == 0 {
			t.Fatal(err)
		}
		routes := map[string]bool{}
		for path, methods := range described.Paths {
			for method := range methods {
				routes[shape(strings.ToUpper(method), path)] = false
			}
		}
		for _, x := range tries(t) {
			if _, ok := routes[shape(x.method, x.path)]; !ok && !strings.Contains(x.path, "/ours") && !strings.Contains(x.path, "/alice") {
				t.Errorf("there is no %s %s", x.method, x.path)
			}
			routes[shape(x.method, x.path)] = true
		}
		for _, x := range []string{"connections", "detail-types", "identity-providers", "lease-roles", "pki/roles", "resources", "secret-stores", "ssh/roles", "trusts"} {
			routes["PUT /v1/"+x+"/{}"] = true // makes one's own: see the line with ours
		}
		for route, has := range routes {
			if !has {
				t.Errorf("%s has no line in isolated", route)
			}
		}

		ask := func(who *house, x try, values map[string]string) (int, string) {
			t.Helper()
			fill := func(s string, quote func(string) string) string {
				s = strings.NewReplacer("$own.agent", evil.agent, "$own.soon", time.Now().Add(time.Hour).Format(time.RFC3339), "$own.csr", csr).Replace(s)
				return names.ReplaceAllStringFunc(s, func(name string) string {
					v, ok := values[name[1:]]
					if !ok {
						t.Fatalf("nothing is called %s in %s %s", name, x.method, x.path)
					}
					return quote(v)
				})
			}
			var body any
			if x.body != "" {
				body = json.RawMessage(fill(x.body, func(s string) string { return s }))
			}
			path, query, _ := strings.Cut(x.path, "?")
			path = fill(path, url.PathEscape)
			if query != "" {
				path += "?" + fill(query, url.QueryEscape)
			}
			status, b := who.do(x.method, path, who.token, body)
			return status, string(b)
		}
		plain := func(status int, body string, values map[string]string) string {
			var p struct{ Code, Detail string }
			_ = json.Unmarshal([]byte(body), &p)
			for _, name := range slices.SortedFunc(maps.Keys(values), func(a, b string) int { return len(values[b]) - len(values[a]) }) {
				p.Detail = strings.ReplaceAll(p.Detail, values[name], "X")
			}
			return fmt.Sprint(status, " ", p.Code, " ", p.Detail)
		}
		before := rowsOf(t, d, "acme")
		for _, table := range []string{"secret_sync", "emergency_rotation_item"} { // are tried again and again
			delete(before, table)
		}
		for _, table := range []string{"secret_version", "lease", "rotation", "pki_certificate", "transit_key", "connection", "access_request"} {
			if before[table] == "" {
				t.Errorf("there is nothing in %s", table)
			}
		}
		var asked []string
		told := map[try]string{}
		tried := map[string]string{}
		for i, x := range tries(t) {
			if x.nothing {
				if x.method == "GET" && !strings.Contains(x.path, "{") {
					if status, body := ask(evil, x, its); strings.Contains(body, canary) || strings.Contains(body, "of-acme") || status >= 500 {
						t.Errorf("%s %s: %d %s", x.method, x.path, status, body)
					}
				}
				continue
			}
			status, body := ask(evil, x, its)
			missing, without := ask(evil, x, twins)
			if status != x.status && (status != http.StatusUnprocessableEntity || x.status != http.StatusNotFound || strings.Contains(x.path, "$")) {
				t.Errorf("%s %s %s: %d %s, want %d", x.method, x.path, x.body, status, body, x.status)
			}
			if got, want := plain(status, body, its), plain(missing, without, twins); got != want && !strings.HasSuffix(x.path, "/explain") {
				t.Errorf("%s %s %s: %s; without such a thing it is %s", x.method, x.path, x.body, got, want)
			}
			for _, secret := range []string{canary, its["credential"], its["event"]} {
				if strings.Contains(strings.ReplaceAll(body, its["value"], ""), secret) && !strings.Contains(x.path+x.body, "$credential") && !strings.Contains(x.path, "/events") {
					t.Errorf("%s %s %s shows %s: %s", x.method, x.path, x.body, secret, body)
				}
			}
			if x.method != "GET" && status >= 400 && known.MatchString(x.path) {
				tried[x.method+" "+x.path+" "+x.body] = request(body)
			}
			told[x] = plain(status, body, its)
			asked = append(asked, x.method+" "+x.path+" "+x.body)
			if i%20 == 19 {
				same := rowsOf(t, d, "acme")
				for table, was := range before {
					if same[table] != was {
						t.Fatalf("the rows of acme in %s were changed by one of\n%s", table, strings.Join(asked, "\n"))
					}
				}
				asked = nil
			}
		}

		refused := map[string]bool{}
		for cursor := ""; ; {
			var page struct {
				Items []struct{ Request string }
				Next  string
			}
			evil.must("GET", "/v1/events?outcome=refused&limit=200&cursor="+url.QueryEscape(cursor), nil, &page)
			for _, e := range page.Items {
				refused[e.Request] = true
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		for what, id := range tried {
			if !refused[id] {
				t.Errorf("that %s was refused is not on record", what)
			}
		}

		if !strings.HasPrefix(database, "sqlite:") {
			return // what follows is about the names above, and not about the database
		}
		// They themselves are told something else, so the names were good.
		for _, methods := range []string{"GET", "PUT PATCH POST", "DELETE"} {
			for _, x := range tries(t) {
				if x.nothing || x.status != http.StatusNotFound || strings.Contains(x.path, "$key") || !strings.Contains(methods, x.method) || strings.Contains(x.path+x.body, "ours") || strings.Contains(x.path+x.body, "$own.") {
					continue
				}
				status, body := ask(acme, x, its)
				if plain(status, body, its) == told[x] || status >= 500 && status != http.StatusServiceUnavailable {
					t.Errorf("acme itself, %s %s %s: %d %s", x.method, x.path, x.body, status, body)
				}
			}
		}
	})
}

// openOutside opens the database of a server beside it.
func openOutside(t *testing.T, at string) *sql.DB {
	t.Helper()
	driver := "pgx"
	if file, is := strings.CutPrefix(at, "sqlite:"); is {
		driver, at = "sqlite", "file:"+file+"?_pragma=busy_timeout(10000)"
	}
	d, err := sql.Open(driver, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}
