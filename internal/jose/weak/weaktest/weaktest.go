// Package weaktest makes keys that nobody should take, for the tests of those who must
// not.
package weaktest

import (
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"sync"
	"testing"
)

// RSA is a key of 2048 bits as the chips of CVE-2017-15361 made them. It is the same
// throughout a test binary.
func RSA(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := once()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var once = sync.OnceValues(func() (*rsa.PrivateKey, error) {
	e := big.NewInt(65537)
	p, q := prime(e), prime(e)
	one := big.NewInt(1)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537},
		D:         new(big.Int).ModInverse(e, phi), Primes: []*big.Int{p, q},
	}
	key.Precompute()
	return key, key.Validate()
})

// prime is a prime of 1024 bits, its two highest ones, that is a power of 65537 modulo
// the product of the first 126 primes.
func prime(e *big.Int) *big.Int {
	m := big.NewInt(1)
	for n, found := int64(2), 0; found < 126; n++ {
		if p := big.NewInt(n); p.ProbablyPrime(0) {
			m.Mul(m, p)
			found++
		}
	}
	least := new(big.Int).Lsh(big.NewInt(3), 1022)
	most := new(big.Int).Lsh(big.NewInt(1), 1024)
	for {
		a, err := rand.Int(rand.Reader, m)
		if err != nil {
			panic(err) // never
		}
		k, err := rand.Int(rand.Reader, new(big.Int).Div(new(big.Int).Sub(most, least), m))
		if err != nil {
			panic(err)
		}
		k.Add(k, new(big.Int).Div(least, m)).Add(k, big.NewInt(1))
		p := new(big.Int).Exp(e, a, m)
		p.Add(p, k.Mul(k, m))
		if p.BitLen() == 1024 && p.ProbablyPrime(20) && new(big.Int).Mod(new(big.Int).Sub(p, big.NewInt(1)), e).Sign() != 0 {
			return p
		}
	}
}
