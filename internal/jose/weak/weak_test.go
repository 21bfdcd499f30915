package weak_test

import (
	"crypto/rand"
	"crypto/rsa"
	"testing"

	"estover.dev/internal/jose/weak"
	"estover.dev/internal/jose/weak/weaktest"
)

func TestPredictable(t *testing.T) {
	if !weak.Predictable(weaktest.RSA(t).N) {
		t.Error("a key of those chips is taken for any other")
	}
	for range 4 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		if weak.Predictable(k.N) {
			t.Error("a key of any other kind is taken for one of those chips")
		}
	}
}
