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
