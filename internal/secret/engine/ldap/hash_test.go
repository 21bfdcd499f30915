package ldap

import (
	"crypto/fips140"
	"strings"
	"testing"

	"estover.dev"
)

// TestFIPS: a password is kept with a hash that is there (K7).
func TestFIPS(t *testing.T) {
	ssha := "{SSHA}"
	if fips140.Enforced() {
		ssha = "{SSHA256}"
	}
	for hash, want := range map[string]string{"ssha": ssha, "ssha256": "{SSHA256}", "ssha512": "{SSHA512}"} {
		if got := (&target{hash: hash}).store(estover.NewSecret([]byte("a password"))); !strings.HasPrefix(got, want) {
			t.Errorf("with %s a password is kept as %s, want %s", hash, got, want)
		}
	}
}
