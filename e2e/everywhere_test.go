package e2e

import (
	"flag"
	"net/http"
	"strings"
	"testing"

	client "github.com/go-ldap/ldap/v3"
	"github.com/nats-io/jwt/v2"
	"github.com/redis/go-redis/v9"

	"estover.dev/internal/secret/engine/enginetest"
)

var issues = flag.Int("issues", 10, "how many credentials of each kind of target clients get at least while a server is killed")

// everywhere registers a target of each other kind, with a role for people, and
// gives all kinds. A NATS has no list of users: those are there whom a client has got
// and whose keys are not revoked in the account.
func (v *vault) everywhere(t *testing.T) (kinds []string) {
	t.Helper()
	cache, broker, directory, bus, api := startRedis(t), enginetest.RabbitMQ(t), enginetest.LDAP(t), enginetest.NATS(t), startKeys(t)
	var keys []string
	for name, value := range keyOptions {
		keys = append(keys, "--option", name+"="+value)
	}
	busConfig := bus.Config(bus.Signing, bus.CRM)
	for _, x := range []struct {
		kind, address, user, secret string
		template                    string
		options                     []string
	}{
		{"redis", cache.Address(0), "estover", "made-for-tests", "rules=~app:* +@read +@write", nil},
		{"rabbitmq", broker.Config.Address, "estover", "made-for-tests", "read=.*", []string{"--template", "vhosts=crm", "--option", "amqp=" + broker.Config.Options["amqp"]}},
		{"ldap", directory.Config.Address, directory.Config.Admin.User, "made-for-tests", "groups=" + enginetest.LDAPGroup, []string{"--option", "base=" + enginetest.LDAPUsers}},
		{"nats", busConfig.Address, "estover", string(busConfig.Admin.Secret.Reveal()), "subscribe=orders.>", []string{"--option", "account=" + busConfig.Options["account"]}},
		{"httpkey", api.URL, "estover", "made-for-tests", "values=a=b", keys},
	} {
		enable := []string{
			"secret", "engine", "enable", x.kind, x.kind, "--address", x.address, "--admin", "targets/" + x.kind,
			"--admin-user", x.user, "--admin-password-file", "-", "--keep-root", "--template", x.template,
		} // other tests work as that admin
		if r := v.admin.Input(t, x.secret, append(enable, x.options...)...); r.Code != 0 {
			t.Fatalf("enabling %s: %s%s", x.kind, r.Stdout, r.Stderr)
		}
		role := []string{"secret", "role", "put", "people-" + x.kind, "--target", x.kind, "--template", x.template, "--delivery", "plaintext", "--per-minute", "100000"}
		if x.kind == "rabbitmq" {
			role = append(role, "--template", "vhosts=crm")
		}
		v.admin.Must(t, role...)
		kinds = append(kinds, x.kind)
	}

	asAdmin := redis.NewClient(&redis.Options{Addr: cache.Address(0), Username: "estover", Password: "made-for-tests"})
	t.Cleanup(func() { _ = asAdmin.Close() })
	system, err := bus.AsSystem()
	must(t, err)
	t.Cleanup(system.Close)
	marked := func(all []string, mark string) (names []string) {
		for _, name := range all {
			if strings.HasPrefix(name, mark) {
				names = append(names, name)
			}
		}
		return names
	}
	v.others = append(v.others, func(t *testing.T, mark string) []string {
		all, err := asAdmin.Do(t.Context(), "acl", "users").StringSlice()
		must(t, err)
		return marked(all, mark)
	}, func(t *testing.T, mark string) (names []string) {
		var users []struct{ Name string }
		_, err := broker.Call(t.Context(), http.MethodGet, "/api/users?columns=name", &users)
		must(t, err)
		for _, u := range users {
			names = append(names, u.Name)
		}
		return marked(names, mark)
	}, func(t *testing.T, mark string) (names []string) {
		must(t, directory.AsRoot(func(l *client.Conn) error {
			found, err := l.Search(client.NewSearchRequest(enginetest.LDAPUsers, client.ScopeSingleLevel, client.NeverDerefAliases, 0, 0, false, "(uid="+mark+"*)", []string{"uid"}, nil))
			if err == nil {
				for _, e := range found.Entries {
					names = append(names, e.GetAttributeValue("uid"))
				}
			}
			return err
		}))
		return names
	}, func(t *testing.T, _ string) (names []string) {
		account, err := bus.Account(t.Context(), system)
		must(t, err)
		v.jwts.Range(func(name, token any) bool {
			user, err := jwt.DecodeUserClaims(token.(string))
			must(t, err)
			if _, revoked := account.Revocations[user.Subject]; !revoked {
				names = append(names, name.(string))
			}
			return true
		})
		return names
	}, func(_ *testing.T, mark string) []string { return marked(api.names(), mark) })
	return append(kinds, "postgres", "mysql")
}
