package server_test

import (
	"context"
	"database/sql"
	"net"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine/enginetest"
)

// Who may not write a configuration hears nothing of what there is, or what was wrong.
func TestVaultDatabaseRefused(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		v := h.vault()
		v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
		agent := v.as(h.apiToken())
		for _, body := range []string{`{"plugin_name":"nothing"}`, `{"plugin_name":"redis-database-plugin","host":"127.0.0.1","port":1}`} {
			agent.says(403, "permission denied", "POST", "database/config/crm", body)
		}
	})
}

// Who may do nothing at a mount of databases hears neither of its roles nor that
// something is not there.
func TestVaultDatabaseSilent(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		v := h.vault()
		v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
		v.must(204, "POST", "database/config/there", `{"plugin_name":"redis-database-plugin","host":"127.0.0.1","port":1,"username":"x","password":"y","allowed_roles":"*","verify_connection":false}`)
		v.must(200, "POST", "database/roles/there", `{"db_name":"there","creation_statements":"[\"+@read\",\"~*\"]"}`)
		agent := v.as(h.apiToken())
		for _, call := range []struct{ method, path, body string }{
			{"POST", "database/roles/NAME", `{"db_name":"NAME"}`},
			{"POST", "database/roles/NAME", `{"db_name":"NAME","credential_type":"nothing"}`},
			{"DELETE", "database/roles/NAME", ""},
			{"GET", "database/creds/NAME", ""},
			{"POST", "database/static-roles/NAME", `{"db_name":"NAME","username":"x","rotation_period":"1h"}`},
			{"DELETE", "database/static-roles/NAME", ""},
			{"GET", "database/static-creds/NAME", ""},
			{"POST", "database/rotate-role/NAME", "{}"},
			{"POST", "database/rotate-root/NAME", "{}"},
			{"DELETE", "database/config/NAME", ""},
			{"LIST", "sys/leases/lookup/database/creds", ""},
			{"LIST", "sys/leases/lookup/database/creds/NAME", ""},
			{"PUT", "sys/leases/revoke-prefix/database/creds/NAME", "{}"},
			{"PUT", "sys/leases/revoke-force/database/creds/NAME", "{}"},
			{"PUT", "sys/leases/lookup", `{"lease_id":"database/creds/NAME/x"}`},
			{"PUT", "sys/leases/renew", `{"lease_id":"database/creds/NAME/x"}`},
			{"PUT", "sys/leases/revoke", `{"lease_id":"database/creds/NAME/x"}`},
			{"PUT", "sys/leases/revoke", `{"lease_id":"NAME/creds/x/x"}`},
			{"GET", "sys/leases/count", ""},
		} {
			for _, name := range []string{"there", "missing"} {
				e := agent.call(call.method, strings.ReplaceAll(call.path, "NAME", name), strings.ReplaceAll(call.body, "NAME", name))
				if e.Status != 403 || !strings.Contains(e.Raw, "permission denied") {
					t.Errorf("%s %s %s by who may not: %d %s, want 403", call.method, strings.ReplaceAll(call.path, "NAME", name), call.body, e.Status, e.Raw)
				}
			}
		}
		v.says(400, "unknown role", "GET", "database/creds/missing", nil)
		v.says(400, "unknown role", "GET", "database/static-creds/missing", nil)
		v.must(204, "DELETE", "database/roles/missing", nil)
		v.says(400, "invalid lease", "PUT", "sys/leases/lookup", `{"lease_id":"database/creds/there/x"}`)
	})
}

// A configuration is not removed while somebody writes it: it would come back without
// its admin.
func TestVaultDatabaseTurn(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		v := build(t, database).vault()
		v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
		hangs, err := net.Listen("tcp", "127.0.0.1:0") // whoever logs in there waits
		if err != nil {
			t.Fatal(err)
		}
		defer hangs.Close()
		_, port, _ := net.SplitHostPort(hangs.Addr().String())
		written := make(chan envelope, 1)
		go func() {
			written <- v.call("POST", "database/config/crm", `{"plugin_name":"redis-database-plugin","host":"127.0.0.1","port":`+port+`,"username":"x","password":"y"}`)
		}()
		conn, err := hangs.Accept()
		if err != nil {
			t.Fatal(err)
		}
		v.says(503, "being changed by others", "DELETE", "database/config/crm", nil)
		_ = hangs.Close()
		_ = conn.Close()
		if e := <-written; e.Status != 400 {
			t.Errorf("a database that hangs up: %d %s, want 400", e.Status, e.Raw)
		}
		v.must(204, "DELETE", "database/config/crm", nil)
	})
}

// V30 and V31 at a MariaDB: connections and roles as Vault's users write them.
func TestVaultMariaDB(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		maria := enginetest.MariaDB(t)
		h := build(t, database)
		v := h.vault()
		v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
		address, password := maria.Config.Address, string(maria.Config.Admin.Secret.Reveal())
		url := "{{username}}:{{password}}@tcp(" + address + ")/?tls=false"
		config := func(more string) string {
			return `{"plugin_name":"mysql-database-plugin","connection_url":"` + url + `","username":"estover","allowed_roles":"*"` + more + `}`
		}
		// V30: the admin logs in now, or nothing is kept.
		v.says(400, "error creating database object", "POST", "database/config/crm", config(`,"password":"wrong"`))
		v.must(404, "GET", "database/config/crm", nil)
		v.says(400, "connection_url is written as", "POST", "database/config/crm", `{"plugin_name":"mysql-database-plugin","connection_url":"mysql://x","username":"x","password":"y"}`)
		v.must(204, "POST", "database/config/crm", config(`,"password":"`+password+`","max_open_connections":"4"`))
		same(t, "the configuration", v.must(200, "GET", "database/config/crm", nil).Data, `{"plugin_name":"mysql-database-plugin","plugin_version":"","allowed_roles":["*"],
		"root_credentials_rotate_statements":[],"password_policy":"","connection_details":{"connection_url":"`+url+`","username":"estover","max_open_connections":"4"}}`)
		// A password in the URL is masked, and what is read can be written again.
		v.must(204, "POST", "database/config/inline", `{"plugin_name":"mysql-database-plugin","connection_url":"estover:`+password+`@tcp(`+address+`)/?tls=false","allowed_roles":["app"]}`)
		e := v.must(200, "GET", "database/config/inline", nil)
		if strings.Contains(e.Raw, password) || !strings.Contains(e.Raw, "estover:*****@tcp(") {
			t.Errorf("a password in the URL: %s", e.Raw)
		}
		v.must(204, "POST", "database/config/inline", `{"connection_url":"estover:*****@tcp(`+address+`)/?tls=false"}`)
		v.must(204, "DELETE", "database/config/inline", nil)

		// V31.
		create := `CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'; GRANT readers TO '{{name}}'@'%'`
		v.says(400, "others are not offered", "POST", "database/roles/app", `{"db_name":"crm","creation_statements":"DROP TABLE x"}`)
		v.must(200, "POST", "database/roles/app", `{"db_name":"crm","creation_statements":"`+create+`","default_ttl":"10m","max_ttl":3600}`)
		same(t, "the role", v.must(200, "GET", "database/roles/app", nil).Data, `{"db_name":"crm","creation_statements":["`+create+`"],"revocation_statements":[],"rollback_statements":[],
		"renew_statements":[],"default_ttl":600,"max_ttl":3600,"credential_type":"password"}`)
		login := func(e envelope) error {
			d, err := sql.Open("mysql", e.text("username")+":"+e.text("password")+"@tcp("+address+")/crm")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			var n int
			return d.QueryRowContext(t.Context(), "select count(*) from customer").Scan(&n)
		}
		v.says(400, "unknown role: no", "GET", "database/creds/no", nil)
		one := v.must(200, "GET", "database/creds/app", nil)
		if err := login(one); err != nil || one.All["renewable"] != true || !lasts(one, 600) {
			t.Errorf("a user of the role: %v; it is %s", err, one.Raw)
		}
		id, _ := one.All["lease_id"].(string)
		v.must(204, "PUT", "sys/leases/revoke", `{"lease_id":"`+id+`","sync":true}`)
		if err := login(one); err == nil {
			t.Error("the user is there after its lease was revoked")
		}

		maria.Exec(t, "create or replace user batch identified by 'known to somebody'")
		maria.Exec(t, "grant readers to batch")
		maria.Exec(t, "set default role readers for batch")
		v.says(400, "rotation_period must be 5 seconds or more", "POST", "database/static-roles/batch", `{"db_name":"crm","username":"batch","rotation_period":4}`)
		v.must(204, "POST", "database/static-roles/batch", `{"db_name":"crm","username":"batch","rotation_period":"24h"}`)
		var static envelope
		h.until("the static role is made", func() bool {
			static = v.call("GET", "database/static-creds/batch", nil)
			return static.Status == 200 && static.text("password") != "" && login(static) == nil
		})
		h.until("its password is changed by hand", func() bool { return v.call("POST", "database/rotate-role/batch", nil).Status == 204 })
		if err := login(static); err == nil {
			t.Error("the password of before is good")
		}
		if err := login(v.must(200, "GET", "database/static-creds/batch", nil)); err != nil {
			t.Errorf("with the next password: %v", err)
		}
		v.must(204, "DELETE", "sys/mounts/database", nil)
	})
}

// redisServer is the Redis of this test binary. It ends when nothing refers to it.
var redisServer *enginetest.Server

// redisPassword is what the user estover logs in with there.
const redisPassword = "made-for-tests"

// redisAs is a user of that Redis.
func redisAs(user, password string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: redisServer.Address(0), Username: user, Password: password, MaxRetries: -1, DisableIdentity: true})
}

// startRedis starts it, if it has not been, and gives where it is.
func startRedis(t *testing.T) (host, port string) {
	t.Helper()
	if redisServer == nil {
		s, err := enginetest.Start(enginetest.Process{
			Debian: "redis-server", Program: "redis-server", Users: []string{"redis"}, Ports: 1,
			Prepare: func(s *enginetest.Server) ([]string, []string, error) {
				_, port, err := net.SplitHostPort(s.Address(0))
				if err != nil {
					return nil, nil, err
				}
				path, err := s.Write("redis.conf", "bind 127.0.0.1\nport "+port+"\ndir "+s.Dir+"\nsave \"\"\nuser default off\nuser estover on >"+redisPassword+" ~* &* +@all\n")
				return []string{path}, nil, err
			},
			Ready: func(ctx context.Context, s *enginetest.Server) error {
				c := redis.NewClient(&redis.Options{Addr: s.Address(0), Username: "estover", Password: redisPassword, MaxRetries: -1, DisableIdentity: true})
				defer c.Close()
				return c.Ping(ctx).Err()
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		redisServer = s
	}
	host, port, err := net.SplitHostPort(redisServer.Address(0))
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

// V30 and V31 at a Redis.
func TestVaultRedis(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		host, port := startRedis(t)
		h := build(t, database)
		v := h.vault()
		v.must(204, "POST", "sys/mounts/database", `{"type":"database"}`)
		config := func(plugin, more string) string {
			return `{"plugin_name":"` + plugin + `","host":"` + host + `","port":` + port + `,"username":"estover","allowed_roles":["app"]` + more + `}`
		}
		v.says(400, "error creating database object", "POST", "database/config/cache", config("redis-database-plugin", `,"password":"wrong"`))
		v.must(404, "GET", "database/config/cache", nil)
		v.says(400, "insecure_tls is not offered", "POST", "database/config/cache", config("redis-database-plugin", `,"password":"x","tls":true,"insecure_tls":true`))
		v.must(204, "POST", "database/config/valkey", config("valkey-database-plugin", `,"password":"`+redisPassword+`"`))
		v.must(204, "DELETE", "database/config/valkey", nil)
		v.must(204, "POST", "database/config/cache", config("redis-database-plugin", `,"password":"`+redisPassword+`","tls":false`))
		same(t, "the configuration", v.must(200, "GET", "database/config/cache", nil).Data, `{"plugin_name":"redis-database-plugin","plugin_version":"","allowed_roles":["app"],
		"root_credentials_rotate_statements":[],"password_policy":"","connection_details":{"host":"`+host+`","port":`+port+`,"username":"estover","tls":false}}`)
		rules := `[\"~app:*\", \"+get\", \"+set\"]`
		v.must(200, "POST", "database/roles/app", `{"db_name":"cache","creation_statements":"`+rules+`","default_ttl":"10m"}`)
		same(t, "the rules of the role", v.must(200, "GET", "database/roles/app", nil).Data["creation_statements"], `["`+rules+`"]`)
		v.must(200, "POST", "database/roles/other", `{"db_name":"cache","creation_statements":"`+rules+`"}`)
		v.says(403, "permission denied", "GET", "database/creds/other", nil) // none of allowed_roles
		one := v.must(200, "GET", "database/creds/app", nil)
		enter := func(key string) error {
			c := redisAs(one.text("username"), one.text("password"))
			defer c.Close()
			return c.Set(t.Context(), key, "x", 0).Err()
		}
		if err := enter("app:1"); err != nil {
			t.Errorf("a user of the role: %v; it is %s", err, one.Raw)
		}
		if err := enter("other:1"); err == nil || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("beyond its rules: %v, want NOPERM", err)
		}
		id, _ := one.All["lease_id"].(string)
		v.must(204, "PUT", "sys/leases/revoke", `{"lease_id":"`+id+`","sync":true}`)
		if err := enter("app:1"); err == nil {
			t.Error("the user is there after its lease was revoked")
		}
		v.must(204, "DELETE", "sys/mounts/database", nil)
	})
}
