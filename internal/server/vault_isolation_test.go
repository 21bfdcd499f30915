package server_test

import (
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/mount"
	"estover.dev/internal/vault"
)

// canary stands in everything of the tenant that is looked for from another one.
const canary = "the-canary-of-acme"

// operationsOf are the methods that a route answers.
func operationsOf(r vault.Route) (methods []string) {
	for method, h := range map[string]vault.Handler{"GET": r.Read, "LIST": r.List, "POST": r.Write, "PATCH": r.Patch, "DELETE": r.Delete} {
		if h != nil {
			methods = append(methods, method)
		}
	}
	slices.Sort(methods)
	return methods
}

// pathOf is where a route lies when its names stand for values.
func pathOf(r vault.Route, value func() string) string {
	at := map[string]string{mount.System: "sys/", mount.Cubbyhole: "cubbyhole/", mount.Token: "auth/token/"}[r.Mount]
	if at == "" {
		at = "t3-" + strings.ReplaceAll(r.Mount, "/", "-v") + "/"
		if slices.Contains([]string{"approle", "jwt", "oidc", "cert"}, r.Mount) {
			at = "auth/" + at
		}
	}
	parts := strings.Split(r.Path, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, ":") || strings.HasPrefix(p, "*") {
			parts[i] = strings.Trim(value(), "/")
		}
	}
	return at + strings.Join(parts, "/")
}

// fields is a body in which many routes find what they look for.
func fields(value func() string) map[string]any {
	all := map[string]any{"versions": []int{1}, "data": map[string]string{"k": canary}, "options": map[string]any{}}
	for _, name := range []string{
		"accessor", "token", "id", "lease_id", "secret_id", "secret_id_accessor", "role_id", "serial_number", "issuer_ref", "key_ref", "name", "role",
		"from", "to", "path", "certificate", "prefix", "url_prefix", "default", "default_key_ref", "key_name", "issuer_name",
	} {
		all[name] = value()
	}
	return all
}

// rowsOf is a digest of all rows of a tenant, table by table, but for what is
// written by the server itself as time goes by.
func rowsOf(t *testing.T, d *sql.DB, tenant string) map[string]string {
	t.Helper()
	having := `select m.name from sqlite_master m where m.type = 'table' and exists (select 1 from pragma_table_info(m.name) where name = 'tenant_id') order by 1`
	if _, is := d.Driver().(*stdlib.Driver); is {
		having = `select table_name from information_schema.columns where table_schema = current_schema() and column_name = 'tenant_id' order by 1`
	}
	names, err := d.QueryContext(t.Context(), having)
	if err != nil {
		t.Fatal(err)
	}
	defer names.Close()
	var tables []string
	for names.Next() {
		var name string
		if err := names.Scan(&name); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(name, "audit") && !slices.Contains([]string{"seal_dek", "signing_key", "person_token", "secret_use", "idempotent", "pki_crl"}, name) {
			tables = append(tables, name)
		}
	}
	all := map[string]string{}
	for _, name := range tables {
		for _, row := range rows(t, d, name, tenant) {
			all[name] += fmt.Sprintf("%x ", sha256.Sum256([]byte(row)))[:17]
		}
	}
	return all
}

// rows are the rows of a table as texts, in an order.
func rows(t *testing.T, d *sql.DB, table, tenant string) (list []string) {
	t.Helper()
	found, err := d.QueryContext(t.Context(), `select * from "`+table+`" where tenant_id = $1`, tenant)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	columns, err := found.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for found.Next() {
		values := make([]any, len(columns))
		for i := range values {
			values[i] = new(any)
		}
		if err := found.Scan(values...); err != nil {
			t.Fatal(err)
		}
		text := ""
		for i, v := range values {
			text += fmt.Sprintf("%s=%v\n", columns[i], *v.(*any))
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return list
}

// named are words that may be the id or the name of something.
var named = regexp.MustCompile(`(?m)^(?:id|name|path|accessor|uuid|serial|[a-z_]+_id)=(\S{2,200})$`)

// plainWord is a name of a field, which stands in every answer.
var plainWord = regexp.MustCompile(`^[a-z_]+$`)

// T3: for every route, and whatever of a tenant's ids is put wherever a route
// takes one, somebody of another tenant changes nothing and learns nothing. Routes
// that are added are tried by themselves.
func TestVaultIsolation(t *testing.T) {
	host, port := startRedis(t)
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		routes, kinds := h.inside.VaultRoutes()
		acme, evil := h.found("acme", "127.0.0.0/8"), h.found("evil")
		theirs, ours := acme.vault(), evil.vault()
		d := openOutside(t, database)

		// Both have a mount of every kind at the same paths.
		for _, v := range []vaultClient{theirs, ours} {
			for _, k := range kinds {
				section, names := "mounts", map[string]string{"t3-" + k.Name: ""}
				if k.Section == mount.Auth {
					section = "auth"
				}
				if k.Name == mount.KV {
					names = map[string]string{"t3-kv-v1": "1", "t3-kv-v2": "2"}
				}
				for name, version := range names {
					body := map[string]any{"type": k.Name, "description": canary}
					if v.key == ours.key {
						body["description"] = "ours"
					}
					if version != "" {
						body["options"] = map[string]string{"version": version}
					}
					v.must(204, "POST", "sys/"+section+"/"+name, body)
				}
			}
		}
		// One of them fills them with whatever the routes take.
		often, rounds := 10, 2 // all rows are looked at after so many routes; each route is tried so often
		if !strings.HasPrefix(database, "sqlite:") {
			often, rounds = 60, 1 // what depends on the database is the rows
		}
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 1))
		t.Logf("the seed is %d", seed)
		words := []string{"alpha", "beta"}
		word := func() string { return words[random.IntN(len(words))] }
		values := map[string]bool{}
		gather := regexp.MustCompile(`"([A-Za-z0-9_.:/+=-]{16,200})"`)
		keep := func(e envelope) {
			for _, m := range gather.FindAllStringSubmatch(e.Raw, -1) {
				values[m[1]] = true
			}
		}
		for _, c := range []struct{ method, path, body string }{
			{"POST", "auth/token/create", `{"policies":["default"],"meta":{"k":"` + canary + `"},"ttl":"1h"}`},
			{"POST", "auth/t3-approle/role/alpha", `{"token_policies":["default"],"bind_secret_id":true}`},
			{"GET", "auth/t3-approle/role/alpha/role-id", ``},
			{"POST", "auth/t3-approle/role/alpha/secret-id", `{"metadata":"{\"k\":\"` + canary + `\"}"}`},
			{"POST", "t3-kv-v2/data/alpha", `{"data":{"k":"` + canary + `"}}`},
			{"POST", "t3-kv-v2/data/beta/alpha", `{"data":{"k":"` + canary + `"}}`},
			{"POST", "t3-kv-v1/alpha", `{"k":"` + canary + `"}`},
			{"PUT", "sys/policies/acl/alpha", `{"policy":"# ` + canary + `\npath \"x\" { capabilities = [\"read\"] }"}`},
			{"PUT", "sys/policies/password/beta", `{"policy":"# ` + canary + `\nlength = 20\nrule \"charset\" { charset = \"abcdefgh\" }"}`},
			{"POST", "t3-pki/root/generate/internal", `{"common_name":"` + canary + `.example","ttl":"87600h"}`},
			{"POST", "t3-pki/roles/alpha", `{"allow_any_name":true,"max_ttl":"1h"}`},
			{"POST", "t3-pki/issue/alpha", `{"common_name":"` + canary + `.example"}`},
			{"POST", "t3-ssh/config/ca", `{"generate_signing_key":true}`},
			{"POST", "t3-transit/keys/alpha", `{"type":"aes256-gcm96"}`},
			{"POST", "t3-database/config/live", `{"plugin_name":"redis-database-plugin","host":"` + host + `","port":` + port + `,"username":"estover","password":"` + redisPassword + `","allowed_roles":"*"}`},
			{"POST", "t3-database/roles/live", `{"db_name":"live","creation_statements":"[\"~x:*\",\"+get\"]"}`},
			{"POST", "sys/wrapping/wrap", `{"k":"` + canary + `"}`},
		} {
			header := []string{}
			if c.path == "sys/wrapping/wrap" {
				header = []string{"X-Vault-Wrap-TTL", "1h"}
			}
			keep(theirs.call(c.method, c.path, c.body, header...))
		}
		live := theirs.must(200, "GET", "t3-database/creds/live", nil)
		leaseID, _ := live.All["lease_id"].(string)
		values[leaseID] = true
		for range rounds {
			for _, r := range routes {
				for _, method := range operationsOf(r) {
					if strings.HasPrefix(r.Path, "rotate") || method == "DELETE" || strings.Contains(r.Path, "revoke") || strings.Contains(r.Path, "tidy") || strings.Contains(r.Path, "remount") {
						continue
					}
					var body any
					if method == "POST" {
						body = fields(word)
					}
					if e := theirs.call(method, pathOf(r, word), body); e.Status >= 500 {
						t.Errorf("%s %s: %d %s", method, pathOf(r, word), e.Status, e.Raw)
					} else {
						keep(e)
					}
				}
			}
		}
		for table := range rowsOf(t, d, "acme") {
			for _, row := range rows(t, d, table, "acme") {
				for _, m := range named.FindAllStringSubmatch(row, -1) {
					values[m[1]] = true
				}
			}
		}
		maps.DeleteFunc(values, func(v string, _ bool) bool { return plainWord.MatchString(v) || strings.Contains(v, canary) })
		ids := slices.Sorted(maps.Keys(values))
		if len(ids) < 50 {
			t.Fatalf("there are only %d ids: %v", len(ids), ids)
		}
		before := rowsOf(t, d, "acme")
		for _, table := range []string{"vault_mount", "vault_policy", "secret_version", "ticket", "lease"} {
			if before[table] == "" {
				t.Errorf("there is nothing in %s", table)
			}
		}

		// The other one puts those ids everywhere.
		id := func() string {
			if random.IntN(4) == 0 { // what has the same name there
				return word()
			}
			return ids[random.IntN(len(ids))]
		}
		var asked []string
		unchanged := func() {
			t.Helper()
			for table, now := range rowsOf(t, d, "acme") {
				if now != before[table] {
					t.Fatalf("the rows of acme in %s were changed by one of\n%s", table, strings.Join(asked, "\n"))
				}
			}
			asked = nil
		}
		for i, r := range routes {
			for _, method := range operationsOf(r) {
				for range rounds {
					body := any(nil)
					if method == "POST" || method == "PATCH" {
						body = fields(id)
						delete(body.(map[string]any), "data")
					}
					header := []string{}
					if method == "PATCH" {
						header = []string{"Content-Type", "application/merge-patch+json"}
					}
					path := strings.NewReplacer("%", "%25", "?", "%3F", "#", "%23").Replace(pathOf(r, id))
					e := ours.call(method, path, body, header...)
					text, _ := json.Marshal(body)
					asked = append(asked, fmt.Sprintf("%s %s %s", method, path, text))
					if strings.Contains(e.Raw, canary) || e.Status >= 500 {
						t.Errorf("%s %s %s: %d %s", method, path, text, e.Status, e.Raw)
					}
				}
			}
			if i%often == often-1 {
				unchanged()
			}
		}
		unchanged()

		// The lease of a credential that is in use, wherever a lease is named: it is as if
		// there were none, and it goes on.
		for _, c := range []struct{ method, path, body string }{
			{"PUT", "sys/leases/lookup", `{"lease_id":"LEASE"}`},
			{"PUT", "sys/leases/renew", `{"lease_id":"LEASE"}`},
			{"PUT", "sys/leases/renew/LEASE", `{}`},
			{"PUT", "sys/leases/revoke", `{"lease_id":"LEASE","sync":true}`},
			{"PUT", "sys/leases/revoke/LEASE", `{"sync":true}`},
			{"PUT", "sys/leases/revoke-prefix/PREFIX", `{"sync":true}`},
			{"PUT", "sys/leases/revoke-force/PREFIX", `{}`},
			{"LIST", "sys/leases/lookup/PREFIX", ``},
		} {
			ask := func(id string) envelope {
				prefix, _, _ := strings.Cut(id, "/live/")
				fill := strings.NewReplacer("LEASE", id, "PREFIX", prefix)
				return ours.call(c.method, fill.Replace(c.path), fill.Replace(c.body))
			}
			none := twin(leaseID[strings.LastIndexByte(leaseID, '/')+1:], random)
			got, want := ask(leaseID), ask("t3-database/creds/live/"+none)
			if got.Status != want.Status || strings.Join(got.Errors, "; ") != strings.Join(want.Errors, "; ") {
				t.Errorf("%s %s of another tenant: %d %s; if there is none it is %d %s", c.method, c.path, got.Status, got.Raw, want.Status, want.Raw)
			}
		}
		unchanged()
		theirs.must(200, "PUT", "sys/leases/lookup", `{"lease_id":"`+leaseID+`"}`)
		user := redisAs(live.text("username"), live.text("password"))
		defer user.Close()
		if err := user.Get(t.Context(), "x:1").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("the user of the lease: %v, want to be let in", err)
		}

		// A token of one tenant in the namespace of the other is none; that a ticket was
		// shown there is on record where it belongs.
		made := ours.must(200, "POST", "auth/token/create", `{"ttl":"1h"}`)
		ticket, _ := made.All["auth"].(map[string]any)["client_token"].(string)
		refused := func() int {
			var events struct {
				Items []struct{ Action, Outcome string }
			}
			evil.must("GET", "/v1/events?action=acl.pass&limit=200", nil, &events)
			return len(events.Items)
		}
		was, tried := refused(), 0
		for _, r := range routes {
			if r.Open {
				continue
			}
			for _, method := range operationsOf(r) {
				for _, key := range []string{ours.key, ticket} {
					elsewhere := vaultClient{h, key}
					if e := elsewhere.call(method, pathOf(r, word), nil, "X-Vault-Namespace", "acme"); e.Status != 403 || strings.Contains(e.Raw, canary) {
						t.Errorf("%s %s with a token of another namespace: %d %s", method, r.Path, e.Status, e.Raw)
					}
				}
				if tried++; tried == 40 && refused() != was+40 {
					t.Errorf("of 40 requests in another namespace %d are on record", refused()-was)
				}
			}
		}
		unchanged()
	})
}
