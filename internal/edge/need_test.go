package edge_test

import (
	"net/http"
	"testing"

	"estover.dev/internal/edge"
)

// A challenge is of the scheme that the client used, and nothing that was
// registered somewhere else can add to it.
func TestChallengeOfANeed(t *testing.T) {
	const bearer, dpop = `Bearer realm="estover"`, `DPoP realm="estover", algs="ES256 EdDSA Ed25519"`
	for _, c := range []struct {
		authorization string
		need          edge.Need
		want          string
	}{
		{"", edge.Need{}, bearer + `, error="e"`},
		{"Bearer x", edge.Need{Scopes: []string{"a", "b"}}, bearer + `, error="e", scope="a b"`},
		{"dpop x", edge.Need{Scopes: []string{"a"}, Metadata: "https://m"}, dpop + `, error="e", scope="a", resource_metadata="https://m"`},
		{"Basic x", edge.Need{Class: "phr", MaxAge: 300}, bearer + `, error="e", acr_values="phr", max_age="300"`},
		{"DPoP x", edge.Need{Scopes: []string{`a"`, "b c", "d\r\nX: y", "ok", ""}, Class: `p", error="x`, MaxAge: -1}, dpop + `, error="e", scope="ok"`},
	} {
		r := &http.Request{Header: http.Header{}}
		if c.authorization != "" {
			r.Header.Set("Authorization", c.authorization)
		}
		if got := c.need.Challenge(r, "e"); got != c.want {
			t.Errorf("%+v of a client with %q is the challenge\n%s\nwant\n%s", c.need, c.authorization, got, c.want)
		}
	}
}
