package seal

import (
	"maps"
	"testing"

	"estover.dev/internal/jose"
)

// OnlyAccessTokens lets the sweeps of a test make keys for access tokens
// alone, where it makes very many.
func OnlyAccessTokens(t testing.TB) {
	was := maps.Clone(plans)
	for purpose, p := range was {
		p.demand = purpose != jose.AccessToken
		plans[purpose] = p
	}
	t.Cleanup(func() { maps.Copy(plans, was) })
}
