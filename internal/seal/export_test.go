package seal

import (
	"testing"

	"estover.dev/internal/jose"
)

// QuickKeys lets a test that makes many keys do without RSA.
func QuickKeys(t testing.TB) {
	was := plans[jose.IDToken]
	quick := was
	quick.make = makeP256
	plans[jose.IDToken] = quick
	t.Cleanup(func() { plans[jose.IDToken] = was })
}
