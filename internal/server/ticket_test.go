package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine/enginetest"
)

// as is the same client with another token.
func (v vaultClient) as(token string) vaultClient { v.key = token; return v }

// auth is what an answer says of the token that it hands out.
func (e envelope) auth() map[string]any { m, _ := e.All["auth"].(map[string]any); return m }

func (e envelope) text(name string) string { s, _ := e.Data[name].(string); return s }

// token is the token that an answer hands out.
func (e envelope) token() string { s, _ := e.auth()["client_token"].(string); return s }

// wrapped is the token under which an answer waits.
func (e envelope) wrapped() map[string]any { m, _ := e.All["wrap_info"].(map[string]any); return m }

func TestVaultTokens(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		v := build(t, database).vault()
		v.must(204, "PUT", "sys/policies/acl/app", `{"policy":"path \"cubbyhole/*\" { capabilities = [\"create\",\"read\",\"update\",\"delete\",\"list\"] }\npath \"auth/token/create\" { capabilities = [\"update\"] }"}`)
		// A token of ours says what it is to clients that look first.
		self := v.must(200, "GET", "auth/token/lookup-self", nil)
		same(t, "the policies of a token of ours", self.Data["policies"], `["root"]`)

		// V22, V35.
		e := v.must(200, "POST", "auth/token/create", `{"policies":["app"],"meta":{"team":"blue"},"display_name":"ci job","ttl":"20m","num_uses":0}`)
		a := e.auth()
		same(t, "policies", a["policies"], `["app","default"]`)
		same(t, "metadata", a["metadata"], `{"team":"blue"}`)
		if line(a["lease_duration"], a["renewable"], a["orphan"], a["token_type"], a["num_uses"]) != "1200 true true service 0" {
			t.Errorf("the token is %s", e.Raw)
		}
		usual := v.must(200, "POST", "auth/token/create", `{"policies":"app"}`)
		if line(usual.auth()["lease_duration"], usual.auth()["renewable"]) != "900 true" {
			t.Errorf("a token without a TTL: %s, want 15 minutes, renewable", usual.Raw)
		}
		app := v.as(e.token())
		accessor := a["accessor"].(string)

		// V23.
		look := app.must(200, "GET", "auth/token/lookup-self", nil)
		same(t, "the policies", look.Data["policies"], `["app","default"]`)
		if line(look.Data["id"], look.Data["accessor"], look.Data["display_name"], look.Data["path"], look.Data["creation_ttl"], look.Data["explicit_max_ttl"], look.Data["type"]) !=
			line(e.token(), accessor, "token-ci-job", "auth/token/create", 1200, 0, "service") {
			t.Errorf("it looks like %s", look.Raw)
		}
		for _, name := range []string{"issue_time", "expire_time", "ttl", "num_uses", "orphan", "meta", "creation_time", "renewable", "entity_id"} {
			if _, ok := look.Data[name]; !ok {
				t.Errorf("the look-up has no %s: %s", name, look.Raw)
			}
		}
		by := v.must(200, "POST", "auth/token/lookup-accessor", `{"accessor":"`+accessor+`"}`)
		if by.Data["id"] != "" || by.Data["accessor"] != accessor {
			t.Errorf("by accessor: %s", by.Raw)
		}
		if by = v.must(200, "POST", "auth/token/lookup", `{"token":"`+e.token()+`"}`); by.Data["id"] != e.token() {
			t.Errorf("by value: %s", by.Raw)
		}
		v.says(400, "invalid accessor", "POST", "auth/token/lookup-accessor", `{"accessor":"tkt_nobody"}`)
		v.says(403, "bad token", "POST", "auth/token/lookup", `{"token":"est_vt_nobody"}`)

		// V3, and the policies narrow.
		for _, token := range []string{"", "x", "est_vt_" + strings.Repeat("a", 50), e.token() + ".other", accessor} {
			v.as(token).says(403, "permission denied", "GET", "auth/token/lookup-self", nil)
		}
		app.says(403, "permission denied", "LIST", "auth/token/accessors", nil)
		app.says(403, "permission denied", "GET", "sys/mounts", nil)
		app.says(403, "permission denied", "POST", "auth/token/create-orphan", nil)
		app.says(400, "child policies must be subset of parent", "POST", "auth/token/create", `{"policies":["ops"]}`)
		app.says(400, "root or sudo privileges required", "POST", "auth/token/create", `{"no_parent":true}`)
		v.says(400, "ID of somebody's own", "POST", "auth/token/create", `{"id":"mine"}`)
		bearer := v.as("")
		bearer.must(200, "GET", "auth/token/lookup-self", nil, "Authorization", "Bearer "+e.token())

		// Cubbyholes are the token's own.
		app.must(204, "POST", "cubbyhole/a/b", `{"n":1.50,"s":"x"}`)
		same(t, "what it keeps", app.must(200, "GET", "cubbyhole/a/b", nil).Data, `{"n":1.50,"s":"x"}`)
		same(t, "its names", app.must(200, "LIST", "cubbyhole/", nil).Data["keys"], `["a/"]`)
		other := v.as(usual.token())
		other.must(404, "GET", "cubbyhole/a/b", nil)
		app.must(204, "DELETE", "cubbyhole/a/b", nil)
		app.must(404, "GET", "cubbyhole/a/b", nil)
		v.says(400, "no cubbyhole", "GET", "cubbyhole/a/b", nil)

		// Renewed, and revoked with its children.
		r := app.must(200, "POST", "auth/token/renew-self", `{"increment":"10m"}`)
		if line(r.auth()["lease_duration"], r.auth()["client_token"]) != line(600, e.token()) {
			t.Errorf("renewed: %s", r.Raw)
		}
		r = v.must(200, "POST", "auth/token/renew-accessor", `{"accessor":"`+accessor+`","increment":900}`)
		if line(r.auth()["lease_duration"], r.auth()["client_token"]) != line(900, "") {
			t.Errorf("renewed by accessor: %s", r.Raw)
		}
		fixed := v.must(200, "POST", "auth/token/create", `{"policies":["app"],"renewable":false}`)
		v.as(fixed.token()).says(400, "lease is not renewable", "POST", "auth/token/renew-self", nil)
		v.says(400, "none of the door's own", "POST", "auth/token/renew-self", nil)
		child := app.must(200, "POST", "auth/token/create", nil)
		if child.auth()["orphan"] != false {
			t.Errorf("a child is an orphan: %s", child.Raw)
		}
		keys := v.must(200, "LIST", "auth/token/accessors", nil).Data["keys"]
		if len(list(keys)) != 4 {
			t.Errorf("there are %v, want 4 accessors", keys)
		}
		app.must(204, "POST", "auth/token/revoke-self", nil)
		v.as(child.token()).says(403, "permission denied", "GET", "auth/token/lookup-self", nil)
		v.must(204, "POST", "auth/token/revoke", `{"token":"`+e.token()+`"}`)
		v.says(400, "invalid accessor", "POST", "auth/token/revoke-accessor", `{"accessor":"`+accessor+`"}`)
		v.must(204, "POST", "auth/token/revoke-accessor", `{"accessor":"`+usual.auth()["accessor"].(string)+`"}`)
		other.says(403, "permission denied", "GET", "auth/token/lookup-self", nil)
		v.must(202, "POST", "auth/token/tidy", nil)

		// The last use of a token is good.
		once := v.must(200, "POST", "auth/token/create", `{"policies":["app"],"num_uses":"2"}`)
		if e := v.as(once.token()).must(200, "GET", "auth/token/lookup-self", nil); line(e.Data["num_uses"]) != "1" {
			t.Errorf("after one of two uses: %s", e.Raw)
		}
		v.as(once.token()).must(200, "GET", "auth/token/lookup-self", nil)
		v.as(once.token()).says(403, "permission denied", "GET", "auth/token/lookup-self", nil)

		// V24: what is written of a role reads back.
		v.must(204, "POST", "auth/token/roles/ci", `{"allowed_policies":["z","a"],"orphan":"true","token_period":"30m","token_bound_cidrs":["127.0.0.1/32","::1/128","10.0.0.0/8"],"renewable":true,"bound_cidrs":["1.2.3.4"]}`)
		role := v.must(200, "GET", "auth/token/roles/ci", nil)
		same(t, "the role", role.Data, `{"name":"ci","allowed_policies":["z","a"],"disallowed_policies":[],"allowed_policies_glob":[],"disallowed_policies_glob":[],"allowed_entity_aliases":[],
			"orphan":true,"renewable":true,"path_suffix":"","token_ttl":0,"token_max_ttl":0,"token_explicit_max_ttl":0,"token_period":1800,"token_policies":[],
			"token_bound_cidrs":["127.0.0.1","::1","10.0.0.0/8"],"token_no_default_policy":false,"token_num_uses":0,"token_type":"default-service","token_strictly_bind_ip":false}`)
		made := v.must(200, "POST", "auth/token/create/ci", `{"policies":["a"]}`)
		if line(made.auth()["lease_duration"], made.auth()["orphan"]) != "1800 true" {
			t.Errorf("made by the role: %s", made.Raw)
		}
		v.says(400, "must be subset of the role's allowed policies", "POST", "auth/token/create/ci", `{"policies":["other"]}`)
		same(t, "the roles", v.must(200, "LIST", "auth/token/roles", nil).Data["keys"], `["ci"]`)
		v.must(204, "POST", "auth/token/roles/ci", `{"allowed_policies":[]}`)
		if e := v.must(200, "GET", "auth/token/roles/ci", nil); line(e.Data["token_period"]) != "1800" || len(list(e.Data["allowed_policies"])) != 0 {
			t.Errorf("emptied in one field: %s", e.Raw)
		}
		v.must(204, "DELETE", "auth/token/roles/ci", nil)
		v.must(204, "DELETE", "auth/token/roles/ci", nil)
		if e := v.must(404, "GET", "auth/token/roles/ci", nil); e.Raw != "{\"errors\":[]}\n" {
			t.Errorf("a role that is gone: %s", e.Raw)
		}
		v.must(404, "LIST", "auth/token/roles", nil)
	})
}

func TestVaultWrapping(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		v := build(t, database).vault()
		wrap := []string{"X-Vault-Wrap-TTL", "90s"}
		e := v.must(200, "POST", "sys/wrapping/wrap", `{"n":1.50,"s":"x"}`, wrap...)
		w := e.wrapped()
		if line(w["ttl"], w["creation_path"]) != "90 sys/wrapping/wrap" || e.Data != nil || e.auth() != nil {
			t.Errorf("wrapped: %s", e.Raw)
		}
		token := w["token"].(string)
		v.says(400, "requires response wrapping", "POST", "sys/wrapping/wrap", `{"a":1}`)
		nobody := v.as("")
		for _, look := range []envelope{nobody.must(200, "POST", "sys/wrapping/lookup", `{"token":"`+token+`"}`), nobody.as(token).must(200, "GET", "sys/wrapping/lookup", nil), v.must(200, "POST", "sys/wrapping/lookup", `{"token":"`+token+`"}`)} {
			if line(look.Data["creation_ttl"], look.Data["creation_path"], look.Data["creation_time"]) != line(90, "sys/wrapping/wrap", w["creation_time"]) {
				t.Errorf("what waits: %s", look.Raw)
			}
		}
		again := nobody.must(200, "POST", "sys/wrapping/rewrap", `{"token":"`+token+`"}`)
		nobody.says(400, "wrapping token is not valid or does not exist", "POST", "sys/wrapping/unwrap", `{"token":"`+token+`"}`)
		token = again.wrapped()["token"].(string)
		// As the request's own token, and beside one's own.
		out := nobody.as(token).must(200, "POST", "sys/wrapping/unwrap", nil)
		same(t, "unwrapped", out.Data, `{"n":1.50,"s":"x"}`)
		for _, bad := range []vaultClient{nobody.as(token), nobody.as("rubbish")} {
			bad.says(400, "wrapping token is not valid or does not exist", "POST", "sys/wrapping/unwrap", nil)
		}
		nobody.says(400, "missing", "POST", "sys/wrapping/unwrap", nil)
		nobody.as("rubbish").says(403, "permission denied", "POST", "sys/wrapping/unwrap", `{"token":"`+token+`"}`)

		// Any route is wrapped: a token comes with its accessor.
		e = v.must(200, "POST", "auth/token/create", `{"policies":["default"]}`, wrap...)
		inner := v.must(200, "POST", "sys/wrapping/unwrap", `{"token":"`+e.wrapped()["token"].(string)+`"}`)
		if inner.token() == "" || inner.auth()["accessor"] != e.wrapped()["wrapped_accessor"] {
			t.Errorf("a wrapped token: %s, %s", e.Raw, inner.Raw)
		}
		v.as(inner.token()).must(200, "GET", "auth/token/lookup-self", nil)
		// One that nobody fetches can be taken back by its accessor.
		e = v.must(200, "POST", "sys/wrapping/wrap", `{"a":1}`, wrap...)
		v.must(204, "POST", "auth/token/revoke-accessor", `{"accessor":"`+e.wrapped()["accessor"].(string)+`"}`)
		v.says(400, "wrapping token is not valid or does not exist", "POST", "sys/wrapping/unwrap", `{"token":"`+e.wrapped()["token"].(string)+`"}`)
	})
}

// An agent that is retired leaves no secret-id behind: whoever has one would be another
// agent as soon as the role leads to that.
func TestVaultRetiredAgent(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		v := h.vault()
		h.change("heirs", "heir", "alice", nil)
		v.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
		v.must(204, "POST", "auth/approle/role/app", `{"token_policies":"app","agent":"bot"}`)
		id := v.must(200, "GET", "auth/approle/role/app/role-id", nil).text("role_id")
		secret := v.must(200, "POST", "auth/approle/role/app/secret-id", nil).text("secret_id")
		body := `{"role_id":"` + id + `","secret_id":"` + secret + `"}`
		nobody := v.as("")
		nobody.must(200, "POST", "auth/approle/login", body)
		h.must(http.MethodPost, "/v1/agents/bot/holds", map[string]string{"kind": "retired", "reason": "a test"}, nil)
		v.must(404, "LIST", "auth/approle/role/app/secret-id", nil)
		v.must(204, "POST", "auth/approle/role/app", `{"agent":"heir"}`)
		nobody.says(400, "invalid role or secret ID", "POST", "auth/approle/login", body)
	})
}

func TestVaultAppRole(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		v := h.vault()
		v.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
		v.must(204, "POST", "auth/approle/role/App", `{"token_policies":["z","a"],"token_ttl":"20m","token_max_ttl":3600,"secret_id_num_uses":"2","secret_id_ttl":"1h","secret_id_bound_cidrs":"127.0.0.0/8,::1/128"}`)
		role := v.must(200, "GET", "auth/approle/role/app", nil)
		agent := role.text("agent")
		same(t, "the role", role.Data, `{"agent":"`+agent+`","bind_secret_id":true,"secret_id_bound_cidrs":["127.0.0.0/8","::1"],"secret_id_num_uses":2,"secret_id_ttl":3600,"local_secret_ids":false,
			"token_ttl":1200,"token_max_ttl":3600,"token_explicit_max_ttl":0,"token_period":0,"token_policies":["z","a"],"token_bound_cidrs":[],"token_no_default_policy":false,
			"token_num_uses":0,"token_type":"default","token_strictly_bind_ip":false}`)
		// The role leads to an agent of its own, which is in the registry.
		var one struct {
			Name, Sponsor, Status string
			ManagedBy             string `json:"managed_by"`
		}
		h.must(http.MethodGet, "/v1/agents/"+agent, nil, &one)
		if one.Name != "approle-app" || one.Status != "active" || !strings.HasPrefix(one.ManagedBy, "vault/") {
			t.Errorf("the role leads to %+v", one)
		}
		id := v.must(200, "GET", "auth/approle/role/app/role-id", nil).text("role_id")
		secret := v.must(200, "POST", "auth/approle/role/app/secret-id", `{"metadata":"{\"env\":\"ci\"}"}`)
		if line(secret.Data["secret_id_ttl"], secret.Data["secret_id_num_uses"]) != "3600 2" {
			t.Errorf("the secret ID: %s", secret.Raw)
		}
		accessor := secret.text("secret_id_accessor")
		body := `{"role_id":"` + id + `","secret_id":"` + secret.text("secret_id") + `"}`
		nobody := v.as("")
		in := nobody.must(200, "POST", "auth/approle/login", body)
		same(t, "its policies", in.auth()["policies"], `["a","default","z"]`)
		same(t, "its metadata", in.auth()["metadata"], `{"role_name":"app","env":"ci"}`)
		if line(in.auth()["lease_duration"], in.auth()["entity_id"], in.auth()["orphan"]) != line(1200, agent, true) {
			t.Errorf("the log-in: %s", in.Raw)
		}
		app := v.as(in.token())
		app.must(200, "GET", "auth/token/lookup-self", nil)
		// The same session serves the next log-in: no storm of them (D9).
		nobody.must(200, "POST", "auth/approle/login", body)
		var sessions struct{ Items []struct{ ID string } }
		h.must(http.MethodGet, "/v1/sessions?agent="+agent, nil, &sessions)
		if len(sessions.Items) != 1 {
			t.Errorf("two log-ins opened %d sessions", len(sessions.Items))
		}
		nobody.says(400, "invalid role or secret ID", "POST", "auth/approle/login", body)
		nobody.says(400, "invalid role or secret ID", "POST", "auth/approle/login", `{"role_id":"no","secret_id":"no"}`)
		nobody.says(400, "missing role_id", "POST", "auth/approle/login", `{}`)

		// A wrapped secret ID, as one hands them out.
		e := v.must(200, "POST", "auth/approle/role/app/secret-id", nil, "X-Vault-Wrap-TTL", "60")
		inner := nobody.must(200, "POST", "sys/wrapping/unwrap", `{"token":"`+e.wrapped()["token"].(string)+`"}`)
		if inner.text("secret_id_accessor") != e.wrapped()["wrapped_accessor"] {
			t.Errorf("a wrapped secret ID: %s, %s", e.Raw, inner.Raw)
		}
		v.says(404, "failed to find accessor entry", "POST", "auth/approle/role/app/secret-id-accessor/lookup", `{"secret_id_accessor":"`+accessor+`"}`)
		look := v.must(200, "POST", "auth/approle/role/app/secret-id/lookup", `{"secret_id":"`+inner.text("secret_id")+`"}`)
		if line(look.Data["secret_id_num_uses"], look.Data["secret_id_ttl"]) != "2 3600" || look.Data["creation_time"] == nil || look.Data["expiration_time"] == nil || look.Data["last_updated_time"] == nil {
			t.Errorf("the secret ID is %s", look.Raw)
		}
		same(t, "its metadata", look.Data["metadata"], `{}`)
		v.must(200, "POST", "auth/approle/role/app/custom-secret-id", `{"secret_id":"chosen","cidr_list":["127.0.0.1/32"]}`)
		if keys := v.must(200, "LIST", "auth/approle/role/app/secret-id", nil).Data["keys"]; len(list(keys)) != 2 {
			t.Errorf("the role has the secret IDs %v", keys)
		}
		v.must(204, "POST", "auth/approle/role/app/secret-id/destroy", `{"secret_id":"chosen"}`)
		v.must(204, "DELETE", "auth/approle/role/app/secret-id/destroy?secret_id=chosen", nil)
		v.must(204, "POST", "auth/approle/role/app/secret-id-accessor/destroy", `{"secret_id_accessor":"`+inner.text("secret_id_accessor")+`"}`)
		v.must(404, "LIST", "auth/approle/role/app/secret-id", nil)
		v.says(404, `role "no" does not exist`, "POST", "auth/approle/role/no/secret-id", nil)
		v.says(404, `role "no" does not exist`, "POST", "auth/approle/role/no/policies", `{"token_policies":["a"]}`)
		v.says(400, "ttl cannot be longer", "POST", "auth/approle/role/app/secret-id", `{"ttl":"2h"}`)

		// Field by field; the old names read back where they were used.
		v.must(204, "POST", "auth/approle/role/app/policies", `{"token_policies":"one"}`)
		same(t, "one field", v.must(200, "GET", "auth/approle/role/app/policies", nil).Data, `{"token_policies":["one"]}`)
		v.must(204, "DELETE", "auth/approle/role/app/token-ttl", nil)
		v.must(204, "POST", "auth/approle/role/app", `{"policies":["old"],"secret_id_bound_cidrs":[]}`)
		role = v.must(200, "GET", "auth/approle/role/app", nil)
		same(t, "the old name", role.Data["policies"], `["old"]`)
		if line(role.Data["token_ttl"], role.Data["token_max_ttl"]) != "0 3600" || len(list(role.Data["secret_id_bound_cidrs"])) != 0 {
			t.Errorf("after changes field by field: %s", role.Raw)
		}
		v.must(204, "POST", "auth/approle/role/app/role-id", `{"role_id":"chosen"}`)
		v.says(400, "token_ttl", "POST", "auth/approle/role/app", `{"token_ttl":7200}`)

		// A hold on the agent ends its tokens at once, and lets it in no more.
		app.must(200, "GET", "auth/token/lookup-self", nil)
		fresh := v.must(200, "POST", "auth/approle/role/app/secret-id", nil).text("secret_id")
		h.must(http.MethodPost, "/v1/agents/"+agent+"/holds", map[string]string{"kind": "suspended", "reason": "a test"}, nil)
		app.says(403, "permission denied", "GET", "auth/token/lookup-self", nil)
		nobody.says(403, "permission denied", "POST", "auth/approle/login", `{"role_id":"chosen","secret_id":"`+fresh+`"}`)

		same(t, "the roles", v.must(200, "LIST", "auth/approle/role", nil).Data["keys"], `["app"]`)
		v.must(204, "DELETE", "auth/approle/role/app", nil)
		v.must(404, "GET", "auth/approle/role/app", nil)
		h.must(http.MethodGet, "/v1/agents/"+agent, nil, &one)
		if one.Status != "retired" {
			t.Errorf("the agent that was made with a role that is gone is %s", one.Status)
		}
		// Made again, as declarative tools do: under another name, since names are
		// never used twice.
		v.must(204, "POST", "auth/approle/role/app", `{"token_policies":["a"]}`)
		h.must(http.MethodGet, "/v1/agents/"+v.must(200, "GET", "auth/approle/role/app", nil).text("agent"), nil, &one)
		if one.Name != "approle-app-2" {
			t.Errorf("the second agent is %s", one.Name)
		}
		// A role may lead to an agent that is there.
		v.must(204, "POST", "auth/approle/role/crm", `{"agent":"`+h.agent+`"}`)
		v.must(204, "DELETE", "auth/approle/role/crm", nil)
		h.must(http.MethodGet, "/v1/agents/"+h.agent, nil, &one)
		if one.Status != "active" {
			t.Errorf("an agent that was named for a role is %s after it", one.Status)
		}
		v.must(204, "DELETE", "sys/auth/approle", nil)
		nobody.says(403, "permission denied", "POST", "auth/approle/login", body)
	})
}

// outside does something in a server's database behind its back.
func outside(t testing.TB, url, statement string) {
	t.Helper()
	driver, at := "pgx", url
	if file, is := strings.CutPrefix(url, "sqlite:"); is {
		driver, at = "sqlite", "file:"+file+"?_pragma=busy_timeout(10000)"
	}
	d, err := sql.Open(driver, at)
	if err == nil {
		_, err = d.ExecContext(t.Context(), statement)
	}
	if err = errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestVaultDatabase(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, db string) {
		pg := enginetest.Postgres(t)
		h := build(t, db)
		v := h.vault()
		v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
		address, _, _ := strings.Cut(pg.Config.Address, "/")
		url := "postgresql://{{username}}:{{password}}@" + pg.Config.Address + "?sslmode=disable"
		// V30: verify_connection logs in now.
		v.says(400, "error creating database object", "POST", "database/config/crm", `{"plugin_name":"postgresql-database-plugin","connection_url":"`+url+`","username":"estover","password":"wrong","allowed_roles":"*"}`)
		v.must(404, "GET", "database/config/crm", nil)
		v.says(400, "no plugin", "POST", "database/config/crm", `{"plugin_name":"x"}`)
		v.must(204, "POST", "database/config/crm", `{"plugin_name":"postgresql-database-plugin","connection_url":"`+url+`","username":"estover","password":"`+string(pg.Config.Admin.Secret.Reveal())+`",
			"allowed_roles":"app,read-*","max_open_connections":4,"max_connection_lifetime":"5s","root_rotation_statements":["a; b"],"verify_connection":true}`)
		same(t, "the configuration", v.must(200, "GET", "database/config/crm", nil).Data, `{"plugin_name":"postgresql-database-plugin","plugin_version":"","allowed_roles":["app","read-*"],
			"root_credentials_rotate_statements":["a; b"],"password_policy":"",
			"connection_details":{"connection_url":"`+url+`","username":"estover","max_open_connections":4,"max_connection_lifetime":"5s"}}`)
		v.must(204, "POST", "database/config/crm", `{"allowed_roles":["app"]}`) // merges
		if e := v.must(200, "GET", "database/config/crm", nil); len(list(e.Data["allowed_roles"])) != 1 || e.Data["connection_details"].(map[string]any)["username"] != "estover" {
			t.Errorf("changed in one field: %s", e.Raw)
		}
		// One that does not let the admin in changes nothing: neither what is told, nor
		// where the target is, nor the password.
		for _, wrong := range []string{`{"password":"wrong"}`, `{"connection_url":"postgresql://{{username}}:{{password}}@127.0.0.1:1/nothing?sslmode=disable"}`} {
			v.says(400, "error creating database object", "POST", "database/config/crm", wrong)
		}
		if e := v.must(200, "GET", "database/config/crm", nil); e.Data["connection_details"].(map[string]any)["connection_url"] != url {
			t.Errorf("after changes that came to nothing: %s", e.Raw)
		}
		// Those who write it at once do so one after the other, or are told that it is
		// somebody else's turn.
		var written atomic.Int64
		var all sync.WaitGroup
		for n := range 64 {
			all.Go(func() {
				switch e := v.call("POST", "database/config/crm", `{"max_open_connections":4,"allowed_roles":["app"],"root_rotation_statements":["a; b"],"password_policy":"p`+strconv.Itoa(n)+`","verify_connection":false}`); e.Status {
				case 204:
					written.Add(1)
				case 503:
				default:
					t.Errorf("written by many at once: %d %s", e.Status, e.Raw)
				}
			})
		}
		all.Wait()
		if written.Load() == 0 {
			t.Error("of 64 who wrote a configuration at once none did")
		}
		v.must(204, "POST", "database/config/crm", `{"password_policy":""}`)
		var targets struct {
			Items []struct{ Name, Kind, Address string }
		}
		h.must(http.MethodGet, "/v1/secret-engines", nil, &targets)
		if len(targets.Items) != 1 || targets.Items[0].Name != "database.crm" || !strings.HasPrefix(targets.Items[0].Address, address) {
			t.Errorf("natively there are %+v", targets)
		}

		// V31.
		create := `CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT readers TO \"{{name}}\";`
		v.says(400, "failed to find entry for connection", "POST", "database/roles/app", `{"db_name":"no","creation_statements":"`+create+`"}`)
		e := v.must(200, "POST", "database/roles/app", `{"db_name":"crm","creation_statements":"`+create+`","default_ttl":"10m","max_ttl":3600}`)
		if len(e.Warnings) != 1 || !strings.Contains(e.Warnings[0], "agents get no credentials") {
			t.Errorf("the warnings of a role: %q", e.Warnings)
		}
		same(t, "the role", v.must(200, "GET", "database/roles/app", nil).Data, `{"db_name":"crm","creation_statements":["`+create+`"],"revocation_statements":[],"rollback_statements":[],
			"renew_statements":[],"default_ttl":600,"max_ttl":3600,"credential_type":"password"}`)
		v.says(400, "unknown role: no", "GET", "database/creds/no", nil)
		creds := v.must(200, "GET", "database/creds/app", nil)
		id, _ := creds.All["lease_id"].(string)
		if creds.All["renewable"] != true || !lasts(creds, 600) || !strings.HasPrefix(id, "database/creds/app/") {
			t.Errorf("credentials: %s", creds.Raw)
		}
		login := func(e envelope) error {
			c, err := pgx.Connect(t.Context(), pg.As(map[string]estover.Secret{"username": estover.NewSecret([]byte(e.text("username"))), "password": estover.NewSecret([]byte(e.text("password")))}, "crm"))
			if err == nil {
				err = c.Close(t.Context())
			}
			return err
		}
		if err := login(creds); err != nil {
			t.Errorf("logging in with them: %v", err)
		}

		// V21.
		look := v.must(200, "PUT", "sys/leases/lookup", `{"lease_id":"`+id+`"}`)
		if look.text("id") != id || look.text("path") != "database/creds/app" || look.Data["renewable"] != true || look.Data["last_renewal"] != nil {
			t.Errorf("the lease: %s", look.Raw)
		}
		same(t, "the leases", v.must(200, "LIST", "sys/leases/lookup/database/creds/app", nil).Data["keys"], `["`+id[strings.LastIndexByte(id, '/')+1:]+`"]`)
		same(t, "the folders", v.must(200, "LIST", "sys/leases/lookup/database/", nil).Data["keys"], `["creds/"]`)
		if e := v.must(200, "GET", "sys/leases/count", nil); line(e.Data["lease_count"]) != "1" {
			t.Errorf("the count: %s", e.Raw)
		}
		for _, bad := range []string{"no", "database/creds/app/no", "database/creds/other/" + id[strings.LastIndexByte(id, '/')+1:]} {
			v.says(400, "invalid lease", "PUT", "sys/leases/lookup", `{"lease_id":"`+bad+`"}`)
			v.says(400, "lease not found", "PUT", "sys/leases/renew", `{"lease_id":"`+bad+`"}`)
			v.must(202, "PUT", "sys/leases/revoke", `{"lease_id":"`+bad+`"}`)
		}
		if e := v.must(200, "PUT", "sys/leases/renew", `{"lease_id":"`+id+`","increment":1}`); e.All["lease_id"] != id || e.All["renewable"] != true {
			t.Errorf("renewed: %s", e.Raw)
		}
		v.must(200, "POST", "sys/leases/renew/"+id, nil)
		v.must(204, "PUT", "sys/leases/revoke", `{"lease_id":"`+id+`","sync":true}`)
		if err := login(creds); err == nil {
			t.Error("a user logs in whose lease is revoked")
		}
		v.says(400, "invalid lease", "PUT", "sys/leases/lookup", `{"lease_id":"`+id+`"}`)
		v.says(400, "lease", "PUT", "sys/renew/"+id, nil)

		// A lease ends with the token that got it.
		token := v.must(200, "POST", "auth/token/create", nil)
		creds = v.as(token.token()).must(200, "GET", "database/creds/app", nil)
		v.must(204, "POST", "auth/token/revoke-accessor", `{"accessor":"`+token.auth()["accessor"].(string)+`"}`)
		h.until("the user of a token that was revoked is gone", func() bool { return login(creds) != nil })

		// An agent that logs in by AppRole gets what a grant of it covers.
		v.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
		v.must(204, "PUT", "sys/policies/acl/app", `{"policy":"path \"database/creds/app\" { capabilities = [\"read\"] }"}`)
		v.must(204, "POST", "auth/approle/role/app", `{"token_policies":["app"],"agent":"`+h.agent+`"}`)
		secret := v.must(200, "POST", "auth/approle/role/app/secret-id", nil).text("secret_id")
		in := v.as("").must(200, "POST", "auth/approle/login", `{"role_id":"`+v.must(200, "GET", "auth/approle/role/app/role-id", nil).text("role_id")+`","secret_id":"`+secret+`"}`)
		agent := v.as(in.token())
		agent.says(403, "permission denied", "GET", "database/creds/app", nil)
		v.must(204, "POST", "database/roles/app", `{"resource":"crm","action":"item.read"}`)
		creds = agent.must(200, "GET", "database/creds/app", nil)
		if err := login(creds); err != nil {
			t.Errorf("the agent's user: %v", err)
		}
		id, _ = creds.All["lease_id"].(string)
		agent.must(200, "PUT", "sys/leases/lookup", `{"lease_id":"`+id+`"}`)
		agent.must(200, "PUT", "sys/leases/renew", `{"lease_id":"`+id+`"}`)
		agent.says(403, "permission denied", "POST", "sys/leases/revoke-prefix/database", nil)
		// Its session takes the user along.
		h.must(http.MethodPost, "/v1/agents/"+h.agent+"/holds", map[string]string{"kind": "suspended", "reason": "a test"}, nil)
		h.until("the user of an agent that is held is gone", func() bool { return login(creds) != nil })

		// An admin whose password nobody else knows from then on.
		pg.Exec(t, "drop role if exists door_admin; create role door_admin login createrole password 'of its owner' in role pg_signal_backend")
		v.must(204, "POST", "database/config/own", `{"plugin_name":"postgresql-database-plugin","connection_url":"postgresql://door_admin:of%20its%20owner@`+pg.Config.Address+`?sslmode=disable","allowed_roles":"own"}`)
		if e := v.must(200, "GET", "database/config/own", nil); strings.Contains(e.Raw, "owner") || !strings.Contains(e.Raw, "door_admin:*****@") {
			t.Errorf("a password in a URL is told: %s", e.Raw)
		}
		v.must(204, "POST", "database/rotate-root/own", nil)
		if login(envelope{Data: map[string]any{"username": "door_admin", "password": "of its owner"}}) == nil {
			t.Error("the admin's old password is good")
		}
		v.must(200, "POST", "database/roles/own", `{"db_name":"own","creation_statements":["`+create+`"]}`)
		if err := login(v.must(200, "GET", "database/creds/own", nil)); err != nil {
			t.Errorf("a user that was made after it: %v", err)
		}
		v.must(204, "DELETE", "database/roles/own", nil)
		v.must(204, "DELETE", "database/config/own", nil)

		// Who leaves takes their database users along, however they came by them.
		h.must(http.MethodPost, "/v1/people", map[string]any{"name": "leo", "roles": []string{"admin"}}, nil)
		leo := v.as(h.invite("leo"))
		bySelf := leo.must(200, "GET", "database/creds/app", nil)
		byTicket := leo.as(leo.must(200, "POST", "auth/token/create", `{"ttl":"1h"}`).token()).must(200, "GET", "database/creds/app", nil)
		if err := errors.Join(login(bySelf), login(byTicket)); err != nil {
			t.Errorf("while they are there: %v", err)
		}
		h.must(http.MethodPost, "/v1/people/leo/disable", map[string]string{"reason": "left"}, nil)
		h.until("the database users of somebody who left are gone", func() bool { return login(bySelf) != nil && login(byTicket) != nil })

		// A static role: its user is there, and gets a password at once (V31).
		pg.Exec(t, "drop role if exists batch; create role batch login password 'of its owner'")
		v.says(400, "rotation_period must be", "POST", "database/static-roles/batch", `{"db_name":"crm","username":"batch","rotation_period":1}`)
		v.says(400, "names must be unique", "POST", "database/static-roles/app", `{"db_name":"crm","username":"batch","rotation_period":"24h"}`)
		v.must(204, "POST", "database/static-roles/batch", `{"db_name":"crm","username":"batch","rotation_period":"24h"}`)
		v.says(400, "names must be unique", "POST", "database/roles/batch", `{"db_name":"crm","creation_statements":"`+create+`"}`)
		same(t, "the static role", v.must(200, "GET", "database/static-roles/batch", nil).Data, `{"db_name":"crm","username":"batch","rotation_period":86400,"rotation_statements":[],"credential_type":"password"}`)
		static := v.must(200, "GET", "database/static-creds/batch", nil)
		if err := login(static); err != nil || static.text("username") != "batch" || line(static.Data["rotation_period"]) != "86400" || static.Data["ttl"] == nil || static.Data["last_vault_rotation"] == nil {
			t.Errorf("the static role logs in: %v; it is %s", err, static.Raw)
		}
		// By seconds, or by a schedule with the time in which it may begin; naming one gives up the other.
		v.says(400, "rotation_window goes with", "POST", "database/static-roles/batch", `{"rotation_window":"2h"}`)
		v.says(400, "rotation_window must be", "POST", "database/static-roles/batch", `{"rotation_schedule":"0 3 * * *","rotation_window":"59m"}`)
		v.must(204, "POST", "database/static-roles/batch", `{"rotation_schedule":"0 3 * * *","rotation_window":"2h"}`)
		same(t, "the static role by a schedule", v.must(200, "GET", "database/static-roles/batch", nil).Data, `{"db_name":"crm","username":"batch","rotation_schedule":"0 3 * * *","rotation_window":7200,"rotation_statements":[],"credential_type":"password"}`)
		v.must(204, "POST", "database/static-roles/batch", `{"rotation_period":5}`)
		h.until("the password is changed within seconds", func() bool { return login(static) != nil })
		v.must(204, "POST", "database/static-roles/batch", `{"rotation_period":"24h"}`)
		static = v.must(200, "GET", "database/static-creds/batch", nil)
		v.says(400, "cannot update static account username", "POST", "database/static-roles/batch", `{"username":"other"}`)
		same(t, "the static roles", v.must(200, "LIST", "database/static-roles", nil).Data["keys"], `["batch"]`)
		h.until("the password is changed by hand", func() bool { return v.call("POST", "database/rotate-role/batch", nil).Status == 204 })
		if err := login(static); err == nil {
			t.Error("the password of before is good")
		}
		again := v.must(200, "GET", "database/static-creds/batch", nil)
		if err := login(again); err != nil {
			t.Errorf("the new password: %v", err)
		}
		v.says(400, "unknown role", "GET", "database/static-creds/no", nil)
		h.until("the static role can be removed", func() bool { return v.call("DELETE", "database/static-roles/batch", nil).Status == 204 })
		v.must(404, "GET", "database/static-roles/batch", nil)

		// What is begun beside what is there does not take that away when it comes to
		// nothing: neither an admin's secret nor a password that the database takes.
		var one struct{ Items []struct{ Admin string } }
		h.must(http.MethodGet, "/v1/secret-engines", nil, &one)
		base := strings.TrimSuffix(one.Items[0].Admin, "crm")
		v.must(204, "POST", "sys/mounts/vault-database", `{"type":"kv"}`)
		v.must(204, "POST", base+"odd", `{"password":"of somebody who is a little earlier"}`)
		v.says(400, "", "POST", "database/config/odd", `{"plugin_name":"postgresql-database-plugin","connection_url":"`+url+`","username":"estover","password":"wrong"}`)
		v.must(200, "GET", base+"odd", nil)
		v.must(204, "DELETE", base+"odd", nil)
		v.must(204, "POST", "database/static-roles/batch", `{"db_name":"crm","username":"batch","rotation_period":"24h"}`)
		h.until("the static role is made", func() bool { return login(v.call("GET", "database/static-creds/batch", nil)) == nil })
		outside(t, db, `delete from database_role where kind = 'static'`)
		v.says(400, "", "POST", "database/static-roles/batch", `{"db_name":"crm","username":"batch","rotation_schedule":"never again"}`)
		if e := v.must(200, "GET", base+"static/batch", nil); login(e) != nil {
			t.Errorf("the password of a static role that somebody makes again: %s", e.Raw)
		}

		// What cannot be a detail, or would be told, is none.
		v.says(400, "password is missing", "POST", "database/config/odd", `{"plugin_name":"postgresql-database-plugin","connection_url":"`+url+`","username":"x","max_connection_lifetime":{"a":"b"}}`)
		v.says(400, "give it as password", "POST", "database/config/odd", `{"plugin_name":"postgresql-database-plugin","connection_url":"`+url+`&password=x","username":"x","password":"y"}`)
		v.must(204, "POST", "database/config/crm", `{"tls_certificate_key":"a key"}`)
		if e := v.must(200, "GET", "database/config/crm", nil); strings.Contains(e.Raw, "a key") {
			t.Errorf("the key of the client is told: %s", e.Raw)
		}

		// Nor is a target taken away at which a password is changed by itself.
		v.must(204, "POST", "database/static-roles/batch", `{"db_name":"crm","username":"batch","rotation_period":"24h"}`)
		v.must(202, "PUT", "sys/leases/revoke-prefix/database", nil)
		v.says(400, "roles of this configuration", "DELETE", "database/config/crm", nil)
		v.must(204, "DELETE", "database/roles/app", nil)
		v.must(204, "DELETE", "database/roles/app", nil)
		v.says(400, "roles of this configuration", "DELETE", "database/config/crm", nil)
		v.must(204, "DELETE", "database/static-roles/batch", nil)
		v.must(204, "DELETE", "database/config/crm", nil)
		v.must(404, "LIST", "database/config", nil)
		h.must(http.MethodGet, "/v1/secret-engines", nil, &targets)
		if len(targets.Items) != 0 {
			t.Errorf("natively there still are %+v", targets)
		}
	})
}

// V24, V26: what is written of JWT and certificate log-ins reads back.
func TestVaultJWTAndCert(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		v := build(t, database).vault()
		v.must(204, "POST", "sys/auth/jwt", `{"type":"jwt"}`)
		v.must(404, "GET", "auth/jwt/config", nil)
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
		if err != nil {
			t.Fatal(err)
		}
		v.says(400, "exactly one of", "POST", "auth/jwt/config", `{}`)
		v.says(400, "exactly one of", "POST", "auth/jwt/config", `{"jwks_url":"https://a.example/","jwt_validation_pubkeys":`+string(text)+`}`)
		v.says(400, "cannot be fetched", "POST", "auth/jwt/config", `{"jwks_url":"https://127.0.0.1:1/keys"}`)
		v.says(400, "unsupported algorithm", "POST", "auth/jwt/config", `{"jwt_validation_pubkeys":`+string(text)+`,"jwt_supported_algs":["HS256"]}`)
		v.must(204, "POST", "auth/jwt/config", `{"jwt_validation_pubkeys":[`+string(text)+`],"bound_issuer":"https://ci.example","default_role":"ci","jwt_supported_algs":["ES256"]}`)
		same(t, "the configuration", v.must(200, "GET", "auth/jwt/config", nil).Data, `{"oidc_discovery_url":"","oidc_discovery_ca_pem":"","oidc_client_id":"","oidc_response_mode":"","oidc_response_types":[],
		"default_role":"ci","jwks_url":"","jwks_ca_pem":"","jwt_validation_pubkeys":[`+string(text)+`],"jwt_supported_algs":["ES256"],"bound_issuer":"https://ci.example",
		"provider_config":{},"namespace_in_state":true,"allow_private":false}`)
		v.says(400, "user claim", "POST", "auth/jwt/role/ci", `{"role_type":"jwt","bound_audiences":"vault"}`)
		v.says(400, "allowed_redirect_uris", "POST", "auth/jwt/role/ci", `{"user_claim":"sub"}`) // role_type is oidc unless it is said
		v.must(204, "POST", "auth/jwt/role/ci", `{"role_type":"jwt","user_claim":"sub","bound_audiences":["b","a"],"bound_claims_type":"glob","bound_claims":{"project":["x/*"],"n":"1"},
		"claim_mappings":{"/a/b":"c"},"expiration_leeway":"5","policies":["p"],"ttl":"1h","token_bound_cidrs":"10.0.0.0/8"}`)
		role := v.must(200, "GET", "auth/jwt/role/ci", nil)
		same(t, "the role", role.Data, `{"role_type":"jwt","user_claim":"sub","user_claim_json_pointer":false,"bound_audiences":["b","a"],"bound_subject":"","bound_claims_type":"glob","bound_claims":{"project":["x/*"],"n":"1"},
		"claim_mappings":{"/a/b":"c"},"groups_claim":"","oidc_scopes":null,"allowed_redirect_uris":[],"verbose_oidc_logging":false,"max_age":0,"expiration_leeway":5,"not_before_leeway":0,"clock_skew_leeway":0,
		"agent":"`+role.text("agent")+`","token_ttl":3600,"token_max_ttl":0,"token_explicit_max_ttl":0,"token_period":0,"token_policies":["p"],"token_bound_cidrs":["10.0.0.0/8"],
		"token_no_default_policy":false,"token_num_uses":0,"token_type":"default","token_strictly_bind_ip":false,"policies":["p"],"ttl":3600}`)
		v.must(204, "POST", "auth/jwt/role/ci", `{"bound_claims":{},"token_policies":[]}`)
		if e := v.must(200, "GET", "auth/jwt/role/ci", nil); len(list(e.Data["token_policies"])) != 0 || len(e.Data["bound_claims"].(map[string]any)) != 0 || len(list(e.Data["bound_audiences"])) != 2 {
			t.Errorf("emptied in two fields: %s", e.Raw)
		}
		nobody := v.as("")
		nobody.says(400, "missing token", "POST", "auth/jwt/login", `{"role":"ci"}`)
		nobody.says(400, "error validating token", "POST", "auth/jwt/login", `{"jwt":"a.b.c"}`)
		nobody.says(400, `role "no" could not be found`, "POST", "auth/jwt/login", `{"role":"no","jwt":"a.b.c"}`)
		nobody.says(400, "missing redirect_uri", "POST", "auth/jwt/oidc/auth_url", `{"role":"ci"}`)
		nobody.says(400, "role with role_type", "POST", "auth/jwt/oidc/auth_url", `{"role":"ci","redirect_uri":"http://localhost:8250/oidc/callback"}`)
		nobody.says(400, "Expired or missing OAuth state", "GET", "auth/jwt/oidc/callback?state=x&code=y", nil)
		same(t, "the roles", v.must(200, "LIST", "auth/jwt/role", nil).Data["keys"], `["ci"]`)
		v.must(204, "DELETE", "auth/jwt/role/ci", nil)
		v.must(404, "GET", "auth/jwt/role/ci", nil)

		v.must(204, "POST", "sys/auth/cert", `{"type":"cert"}`)
		ca := &x509.Certificate{SerialNumber: big.NewInt(7), IsCA: true, BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
		if der, err = x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key); err != nil {
			t.Fatal(err)
		}
		if text, err = json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))); err != nil {
			t.Fatal(err)
		}
		v.says(400, "failed to parse certificate", "POST", "auth/cert/certs/web", `{"certificate":"x"}`)
		v.must(204, "POST", "auth/cert/certs/web", `{"certificate":`+string(text)+`,"allowed_common_names":["z","a*"],"token_policies":"web","required_extensions":"1.2.3:x"}`)
		role = v.must(200, "GET", "auth/cert/certs/web", nil)
		same(t, "the certificate", role.Data, `{"certificate":`+string(text)+`,"display_name":"web","allowed_names":[],"allowed_common_names":["z","a*"],"allowed_dns_sans":[],"allowed_email_sans":[],"allowed_uri_sans":[],
		"allowed_organizational_units":[],"required_extensions":["1.2.3:x"],"allowed_metadata_extensions":[],"agent":"`+role.text("agent")+`","token_ttl":0,"token_max_ttl":0,"token_explicit_max_ttl":0,"token_period":0,
		"token_policies":["web"],"token_bound_cidrs":[],"token_no_default_policy":false,"token_num_uses":0,"token_type":"default","token_strictly_bind_ip":false}`)
		same(t, "how certificates are looked at", v.must(200, "GET", "auth/cert/config", nil).Data, `{"disable_binding":false,"enable_identity_alias_metadata":false,"ocsp_cache_size":0}`)
		v.must(204, "POST", "auth/cert/config", `{"disable_binding":true}`)
		same(t, "changed", v.must(200, "GET", "auth/cert/config", nil).Data, `{"disable_binding":true,"enable_identity_alias_metadata":false,"ocsp_cache_size":0}`)
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour), RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(99), RevocationTime: time.Now()}},
		}, parsed, key)
		if err != nil {
			t.Fatal(err)
		}
		v.must(204, "POST", "auth/cert/crls/web", map[string]any{"crl": string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl}))})
		same(t, "the list", v.must(200, "GET", "auth/cert/crls/web", nil).Data, `{"serials":{"99":{}}}`)
		v.must(204, "DELETE", "auth/cert/crls/web", nil)
		v.must(404, "GET", "auth/cert/crls/web", nil)
		nobody.says(400, "client certificate must be supplied", "POST", "auth/cert/login", nil)
		v.must(204, "DELETE", "auth/cert/certs/web", nil)
		v.must(404, "LIST", "auth/cert/certs", nil)
	})
}
