package ldap

import (
	"crypto/fips140"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// TestFIPS: a password is kept with a hash that is there (K7), and nobody's in another
// form than was said.
func TestFIPS(t *testing.T) {
	for hash, want := range map[string]string{"": "{SSHA}", "ssha": "{SSHA}", "ssha256": "{SSHA256}", "ssha512": "{SSHA512}"} {
		c := engine.Config{
			Address: "ldaps://ldap.example", Options: map[string]string{"base": "dc=example", "hash": hash},
			Admin: engine.Credential{User: "cn=admin", Secret: estover.NewSecret([]byte("x"))},
		}
		e, err := open(c)
		if want == "{SSHA}" && fips140.Enforced() {
			if err == nil || !strings.Contains(err.Error(), "FIPS 140") {
				t.Errorf("the hash %q where SHA-1 is not there: %v, want it refused", hash, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := e.(*target).store(estover.NewSecret([]byte("a password"))); !strings.HasPrefix(got, want) {
			t.Errorf("with %q a password is kept as %s, want %s", hash, got, want)
		}
	}
}

// TestAccount: a user of a directory is one, however it is written.
func TestAccount(t *testing.T) {
	options := map[string]string{"base": "ou=agents,dc=example"}
	for _, one := range [][]string{
		{"cn=Estover,dc=example", "CN=estover, DC=Example", "commonName=estover,domainComponent=example", `cn=\65stover,dc=example`},
		{"cn=the  admin,dc=example", "cn=the admin,dc=example"},
		{"reader", "uid=reader,ou=agents,dc=example", "UID=Reader, OU=Agents, DC=example"},
		{"cn=a+sn=b,dc=example", "sn=b+cn=a,dc=example"},
	} {
		for _, other := range one[1:] {
			if a, b := account(options, one[0]), account(options, other); a != b {
				t.Errorf("%q is %q, and %q is %q", one[0], a, other, b)
			}
		}
	}
	if a, b := account(options, "cn=a,dc=example"), account(options, "cn=b,dc=example"); a == b {
		t.Errorf("two users are both %q", a)
	}
}
