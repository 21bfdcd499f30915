package client

import (
	"strings"
	"testing"
)

// What is read of a token is its exact bytes: whatever is accepted is what
// comes out when its parts are put together again.
func FuzzParseJWS(f *testing.F) {
	for _, s := range []string{
		"", "..", "e30.e30.", "e30.e30.AA", "e30.e30.AB", "e30.e30.AA=", "e30\n.e30.AA", "eyJhbGciOiJFUzI1NiIsImFsZyI6Im5vbmUifQ.e30.AA",
		encoding.EncodeToString([]byte(`{"alg":"ES256","typ":"at+jwt"}`)) + "." + encoding.EncodeToString([]byte(`{"act":{"sub":"x","act":{"sub":"y"}},"aud":["a"],"exp":1}`)) + ".AA",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := parseJWS(raw, true)
		if err != nil {
			return
		}
		if got := string(p.message) + "." + encoding.EncodeToString(p.signature); got != raw {
			t.Errorf("%q is read as %q", raw, got)
		}
		for _, part := range strings.Split(string(p.message), ".") {
			if b, err := encoding.DecodeString(part); err != nil || encoding.EncodeToString(b) != part {
				t.Errorf("the part %q has another spelling", part)
			}
		}
		_, _ = actors(p.claims)
		_, _ = parseKey(p.head["jwk"])
		if t, ok := p.claims.instant("exp"); ok && !t.IsZero() && t.Unix() <= 0 {
			panic("a time before 1970")
		}
	})
}
