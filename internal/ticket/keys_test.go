package ticket

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/jose"
)

// Where there are too many sources of keys, the one that nobody has asked for the
// longest is fetched again, and no other.
func TestSourcesAreForgottenOneByOne(t *testing.T) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := jose.NewKey("", "k", public)
	if err != nil {
		t.Fatal(err)
	}
	set, err := jose.NewKeys(k).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	fetched := map[string]int{}
	s := keysets{now: time.Now, fetch: func(_ context.Context, _ estover.TenantID, url, _ string, _ bool) ([]byte, error) {
		fetched[url]++
		return set, nil
	}}
	ask := func(n int) string {
		t.Helper()
		url := fmt.Sprintf("https://issuer-%d.example/keys", n)
		if _, err := s.of(t.Context(), "default", JWTConfig{JWKSURL: url}, time.Time{}); err != nil {
			t.Fatal(err)
		}
		return url
	}
	for n := range maxKeys {
		ask(n)
	}
	first := ask(0) // of which somebody has use
	second := ask(maxKeys)
	for n := range maxKeys {
		if n != 1 {
			if url := ask(n); fetched[url] != 1 {
				t.Fatalf("%s was fetched %d times, want once", url, fetched[url])
			}
		}
	}
	if fetched[second] != 1 || len(s.sets) != maxKeys {
		t.Errorf("the last one was fetched %d times, and %d are remembered, want once and %d", fetched[second], len(s.sets), maxKeys)
	}
	if forgotten := ask(1); fetched[forgotten] != 2 || fetched[first] != 1 {
		t.Errorf("the one that nobody had asked for was fetched %d times, want twice", fetched[forgotten])
	}
}
