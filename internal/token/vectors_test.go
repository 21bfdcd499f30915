package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/jose"
)

// RFC 8693, sections 4.1 to 4.4 and appendix A: who acts, and who may, is read as the
// figures show it, the current actor first; and who acts is written so. Subjects of
// ours have other names, so the figures have what else a token of ours has.
func TestVectorsOfActors(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.AccessToken, "1", private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := jose.NewKey(jose.AccessToken, "1", private.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct {
		name, figure string
		actors       []estover.Subject
		may          *Party
	}{
		{
			"section 4.1, an actor", `{"aud":"https://consumer.example.com","iss":"https://issuer.example.com","exp":1443904177,"nbf":1443904077,"sub":"user@example.com","act":{"sub":"admin@example.com"}}`,
			[]estover.Subject{"admin@example.com"},
			nil,
		},
		{
			"section 4.1, a chain", `{"aud":"https://service26.example.com","iss":"https://issuer.example.com","exp":1443904100,"nbf":1443904000,"sub":"user@example.com","act":{"sub":"https://service16.example.com","act":{"sub":"https://service77.example.com"}}}`,
			[]estover.Subject{"https://service16.example.com", "https://service77.example.com"},
			nil,
		},
		{
			"section 4.2, a scope", `{"aud":"https://consumer.example.com","iss":"https://issuer.example.com","exp":1443904177,"nbf":1443904077,"sub":"dgaf4mvfs75Fci_FL3heQA","scope":"email profile phone address"}`,
			nil, nil,
		},
		{
			"section 4.3, a client", `{"aud":"https://consumer.example.com","iss":"https://issuer.example.com","exp":1443904177,"sub":"user@example.com","client_id":"s6BhdRkqt3"}`,
			nil, nil,
		},
		{
			"section 4.4, who may act", `{"aud":"https://consumer.example.com","iss":"https://issuer.example.com","exp":1443904177,"nbf":1443904077,"sub":"user@example.com","may_act":{"sub":"admin@example.com"}}`,
			nil, &Party{Subject: "admin@example.com"},
		},
		{
			"appendix A.1.2, nobody else", `{"aud":"urn:example:cooperation-context","iss":"https://as.example.com","exp":1441913610,"sub":"bdc@example.net","scope":"orders profile history"}`,
			nil, nil,
		},
		{
			"appendix A.2.1, who may act", `{"aud":"https://as.example.com","iss":"https://original-issuer.example.net","exp":1441910060,"scope":"status feed","sub":"user@example.net","may_act":{"sub":"admin@example.net"}}`,
			nil, &Party{Subject: "admin@example.net"},
		},
		{
			"appendix A.2.2, who acts", `{"aud":"urn:example:cooperation-context","iss":"https://as.example.com","exp":1441913610,"scope":"status feed","sub":"user@example.net","act":{"sub":"admin@example.net"}}`,
			[]estover.Subject{"admin@example.net"},
			nil,
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			var figure map[string]any
			if err := json.Unmarshal([]byte(v.figure), &figure); err != nil {
				t.Fatal(err)
			}
			now := time.Unix(int64(figure["exp"].(float64))-60, 0)
			claims := map[string]any{"iat": now.Unix(), "jti": "1", "client_id": "c", "sid": "s", "grant_id": "g"}
			maps.Copy(claims, figure)
			raw, err := jose.Sign(jose.AccessToken, signer, claims)
			if err != nil {
				t.Fatal(err)
			}
			issuer := figure["iss"].(string)
			c, err := jose.Verify(jose.AccessToken, jose.NewKeys(key), raw, jose.Expected{Now: now, Issuer: issuer, Audiences: []string{figure["aud"].(string)}})
			if err != nil {
				t.Fatalf("verifying: %v", err)
			}
			got, err := read(estover.DefaultTenant, c)
			if err != nil {
				t.Fatalf("reading: %v", err)
			}
			if string(got.Subject) != figure["sub"] || !slices.Equal(got.Actors, v.actors) {
				t.Errorf("about %q, and %q act, want %v and %q", got.Subject, got.Actors, figure["sub"], v.actors)
			}
			if fmt.Sprint(got.MayAct) != fmt.Sprint(v.may) {
				t.Errorf("%v may act, want %v", got.MayAct, v.may)
			}

			var written map[string]any
			if err := json.Unmarshal(got.claims(issuer), &written); err != nil {
				t.Fatal(err)
			}
			figure["client_id"] = claims["client_id"]
			for _, name := range []string{"iss", "sub", "aud", "exp", "scope", "act", "client_id"} {
				if fmt.Sprint(written[name]) != fmt.Sprint(figure[name]) {
					t.Errorf("the claim %s is written as %v, want %v", name, written[name], figure[name])
				}
			}
		})
	}
}
