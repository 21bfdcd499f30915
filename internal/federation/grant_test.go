package federation

import (
	"encoding/json"
	"testing"

	"estover.dev"
	"estover.dev/internal/jose"
)

// FuzzGrant: whatever an issuer writes into a grant, a limit that stands there is
// read as one, or the grant says nothing.
func FuzzGrant(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"client_id":"agt_1","scope":"a b","resource":"https://a.example","auth_time":1,"cnf":{"jkt":"x"}}`, `{"resource":["https://a.example",1]}`,
		`{"resource":null}`, `{"scope":null}`, `{"scope":""}`, `{"cnf":null}`, `{"cnf":{}}`, `{"cnf":{"x5t#S256":"x"}}`, `{"resource":[]}`, `{"auth_time":1.5}`, `{"auth_time":-1}`,
		`{"client_id":1}`, `[]`, `{"scope":["a"]}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		var claims map[string]any
		if json.Unmarshal([]byte(raw), &claims) != nil || claims == nil {
			return // a token has an object
		}
		g, _, err := readGrant(&jose.Claims{Raw: []byte(raw)})
		if err != nil {
			if estover.KindOf(err) != estover.Conflict {
				t.Fatalf("%q: %v, want an error of kind Conflict", raw, err)
			}
			return
		}
		_, scope := claims["scope"]
		_, resource := claims["resource"]
		_, confirm := claims["cnf"]
		if scope != (g.Scopes != nil) || resource != (g.Resources != nil) || confirm != (g.Key+g.Certificate != "") {
			t.Fatalf("%q is read as %+v", raw, g)
		}
	})
}
