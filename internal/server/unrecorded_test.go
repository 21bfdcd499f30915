package server_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
)

// full has the server's database take no event of these actions, "%" of none at all,
// until it is called with nothing.
func (h *house) full() func(actions ...string) {
	h.t.Helper()
	all := []string{
		`create table unwritten (action text)`,
		`create trigger unwritten before insert on audit when exists (select 1 from unwritten u where new.action like u.action) begin select raise(abort, 'the disk is full'); end`,
	}
	if !strings.HasPrefix(h.config.Database, "sqlite:") {
		all[1] = `create function unwritten() returns trigger language plpgsql as $$ begin
			if exists (select 1 from unwritten u where new.action like u.action) then raise exception 'the disk is full'; end if; return new; end $$;
			create trigger unwritten before insert on audit for each row execute function unwritten()`
	}
	for _, statement := range all {
		outside(h.t, h.config.Database, statement)
	}
	return func(actions ...string) {
		h.t.Helper()
		statement := `delete from unwritten`
		if len(actions) > 0 {
			statement = `insert into unwritten values ('` + strings.Join(actions, `'), ('`) + `')`
		}
		outside(h.t, h.config.Database, statement)
	}
}

// F13, design §3: an operation whose event cannot be written did not happen, natively
// and at Vault's door: 503 and audit_unavailable, nothing is handed out or changed, no
// user is at a target that no lease knows, and no lease is lost.
func TestWhatCannotBeRecordedIsNotDone(t *testing.T) {
	host, port := startRedis(t)
	each(t, func(t *testing.T, h *house) {
		up, _ := h.sells()
		v := h.vault()
		const value = "a-value-that-stays-here"
		users := func() int {
			t.Helper()
			c := redisAs("estover", redisPassword)
			defer c.Close()
			list, err := c.Do(t.Context(), "ACL", "USERS").StringSlice()
			if err != nil {
				t.Fatal(err)
			}
			return len(slices.DeleteFunc(list, func(name string) bool { return name == "default" || name == "estover" }))
		}
		was := users()

		// What there is to be read, changed and ended.
		type object = map[string]any
		h.must(http.MethodPost, "/v1/secrets", object{"path": "kept/key", "class": "internal", "risk": "low", "description": "", "owner": "", "destinations": []string{"shop.example"}}, nil)
		h.must(http.MethodPost, "/v1/secret/versions?path=kept/key", object{"fields": object{"value": value}}, nil)
		var mine struct{ ID string }
		h.must(http.MethodPost, "/v1/leases", object{"role": "shop-plain", "purpose": "a look"}, &mine)
		v.must(204, "POST", "sys/mounts/kv", `{"type":"kv-v2"}`)
		v.must(204, "POST", "sys/mounts/old", `{"type":"kv"}`)
		v.must(204, "POST", "sys/mounts/transit", `{"type":"transit"}`)
		v.must(204, "POST", "sys/mounts/pki", `{"type":"pki"}`)
		v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
		v.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
		v.must(200, "POST", "kv/data/a", `{"data":{"k":"`+value+`"}}`)
		v.must(204, "POST", "old/a", `{"k":"`+value+`"}`)
		v.must(200, "POST", "transit/keys/k", `{}`)
		sealed := v.must(200, "POST", "transit/encrypt/k", `{"plaintext":"YS12YWx1ZS10aGF0LXN0YXlzLWhlcmU="}`).text("ciphertext")
		v.must(200, "POST", "pki/root/generate/internal", `{"common_name":"Kept","ttl":"87600h"}`)
		v.must(200, "POST", "pki/roles/web", `{"allow_any_name":true,"max_ttl":"1h"}`)
		serial := v.must(200, "POST", "pki/issue/web", `{"common_name":"a.example.com"}`).text("serial_number")
		v.must(204, "POST", "database/config/live", `{"plugin_name":"redis-database-plugin","host":"`+host+`","port":`+port+`,"username":"estover","password":"`+redisPassword+`","allowed_roles":"*"}`)
		v.must(200, "POST", "database/roles/live", `{"db_name":"live","creation_statements":"[\"~x:*\",\"+get\"]"}`)
		theirs, _ := v.must(200, "GET", "database/creds/live", nil).All["lease_id"].(string)
		v.must(204, "POST", "auth/approle/role/r", `{"token_policies":["default"]}`)
		role := v.must(200, "GET", "auth/approle/role/r/role-id", nil).text("role_id")
		secret := v.must(200, "POST", "auth/approle/role/r/secret-id", nil).text("secret_id")
		token := v.must(200, "POST", "auth/token/create", `{"ttl":"1h"}`)
		wrapped := v.must(200, "POST", "sys/wrapping/wrap", `{"k":"`+value+`"}`, "X-Vault-Wrap-TTL", "1h")
		info, _ := wrapped.All["wrap_info"].(object)
		wrapping, _ := info["token"].(string)
		session := h.openSession()

		keys, made := up.count(), users()
		block := h.full()
		d := openOutside(t, h.config.Database)
		tenant := string(estover.DefaultTenant)

		native := func(method, path string, body any) {
			t.Helper()
			status, b := h.do(method, path, h.token, body)
			if status != http.StatusServiceUnavailable || h.code(b) != "audit_unavailable" || strings.Contains(string(b), value) {
				t.Errorf("%s %s: %d %s, want 503 audit_unavailable", method, path, status, b)
			}
		}
		door := func(method, path string, body any, header ...string) {
			t.Helper()
			e := v.call(method, path, body, header...)
			if e.Status != http.StatusServiceUnavailable || !strings.Contains(strings.Join(e.Errors, " "), "audit_unavailable") || e.Header.Get("Retry-After") == "" || e.Data != nil {
				t.Errorf("%s %s: %d %s, want 503 audit_unavailable", method, path, e.Status, e.Raw)
			}
		}
		nobody := v.as("")

		block("%")
		before := rowsOf(t, d, tenant)
		native("POST", "/v1/leases", object{"role": "shop-plain", "purpose": "a look"})
		native("POST", "/v1/leases/"+mine.ID+"/renew", object{"ttl_seconds": 3600})
		native("POST", "/v1/leases/revoke", object{"id": mine.ID, "reason": "a test"})
		native("POST", "/v1/leases/revoke", object{"all": true, "reason": "a test"})
		native("POST", "/v1/secret/read?path=kept/key", object{"purpose": "a look"})
		native("POST", "/v1/secret/versions?path=kept/key", object{"fields": object{"value": "another"}})
		native("POST", "/v1/secret/versions/destroy?path=kept/key", object{"versions": []int{1}})
		native("POST", "/v1/secrets", object{"path": "kept/more", "class": "internal", "risk": "low", "description": "", "owner": "", "destinations": []string{}})
		native("DELETE", "/v1/secret?path=kept/key", nil)
		native("POST", "/v1/sessions/"+session+"/end", object{})
		door("GET", "database/creds/live", nil)
		door("PUT", "sys/leases/renew", `{"lease_id":"`+theirs+`"}`)
		door("PUT", "sys/leases/revoke", `{"lease_id":"`+theirs+`"}`)
		door("PUT", "sys/leases/revoke", `{"lease_id":"`+theirs+`","sync":true}`)
		door("PUT", "sys/leases/revoke-prefix/database", `{}`)
		door("GET", "kv/data/a", nil)
		door("GET", "kv/data/a", nil, "X-Vault-Wrap-TTL", "1h")
		door("POST", "kv/data/a", `{"data":{"k":"another"}}`)
		door("POST", "kv/data/b", `{"data":{"k":"another"}}`)
		door("DELETE", "kv/data/a", nil)
		door("POST", "kv/destroy/a", `{"versions":[1]}`)
		door("DELETE", "kv/metadata/a", nil)
		door("GET", "old/a", nil)
		door("POST", "old/a", `{"k":"another"}`)
		door("DELETE", "old/a", nil)
		door("POST", "transit/decrypt/k", `{"ciphertext":"`+sealed+`"}`)
		door("POST", "transit/keys/k/rotate", `{}`)
		door("POST", "pki/issue/web", `{"common_name":"b.example.com"}`)
		door("POST", "pki/revoke", `{"serial_number":"`+serial+`"}`)
		door("POST", "auth/token/create", `{"ttl":"1h"}`)
		door("POST", "auth/token/revoke-accessor", `{"accessor":"`+token.auth()["accessor"].(string)+`"}`)
		door("POST", "auth/approle/role/r/secret-id", `{}`)
		door("POST", "sys/mounts/more", `{"type":"kv"}`)
		door("DELETE", "sys/mounts/kv", nil)
		door("PUT", "sys/policies/acl/p", `{"policy":"path \"x\" { capabilities = [\"read\"] }"}`)
		v = nobody
		door("POST", "auth/approle/login", `{"role_id":"`+role+`","secret_id":"`+secret+`"}`)
		door("POST", "sys/wrapping/unwrap", `{"token":"`+wrapping+`"}`)
		v = h.vault()
		for table, digest := range rowsOf(t, d, tenant) {
			if before[table] != digest {
				t.Errorf("nothing can be recorded, and the table %s has changed", table)
			}
		}
		if up.count() != keys || users() != made {
			t.Errorf("there are %d keys and %d users, want %d and %d", up.count(), users(), keys, made)
		}
		block()

		// The intent is on record and what follows is not: the user is taken away again.
		block("lease.activate")
		native("POST", "/v1/leases", object{"role": "shop-plain", "purpose": "a look"})
		door("GET", "database/creds/live", nil)
		if up.count() != keys || users() != made {
			t.Errorf("what was made and could not be recorded is there: %d keys and %d users, want %d and %d", up.count(), users(), keys, made)
		}
		block()

		// An end that cannot be recorded is not one: the lease stays until it can.
		block("lease.end")
		h.must(http.MethodPost, "/v1/leases/revoke", object{"id": mine.ID, "reason": "a test"}, nil)
		h.until("the key is gone", func() bool { return up.count() == keys-1 })
		if x := h.leaseOf(mine.ID); x.State != "revoking" {
			t.Errorf("the lease is %s though its end cannot be recorded, want revoking", x.State)
		}
		block()
		h.until("the end is recorded", func() bool {
			h.clock.Advance(10 * time.Second)
			return h.leaseOf(mine.ID).State == "ended"
		})

		// And now all of it is done that was not.
		h.must(http.MethodPost, "/v1/secret/read?path=kept/key", object{"purpose": "a look"}, nil)
		v.must(200, "GET", "kv/data/a", nil)
		nobody.must(200, "POST", "auth/approle/login", `{"role_id":"`+role+`","secret_id":"`+secret+`"}`)
		nobody.must(200, "POST", "sys/wrapping/unwrap", `{"token":"`+wrapping+`"}`)
		v.must(202, "PUT", "sys/leases/revoke", `{"lease_id":"`+theirs+`"}`)
		h.until("no user and no key is left", func() bool { return users() == was && up.count() == keys-1 })
		var open struct{ Items []leased }
		h.must(http.MethodGet, "/v1/leases?open=true", nil, &open)
		for _, x := range open.Items {
			if x.State != "revoking" {
				t.Errorf("the lease %s is %s", x.ID, x.State)
			}
		}
	})
}
