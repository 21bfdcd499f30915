// Package weak knows public keys whose private halves can be computed from them.
package weak

import "math/big"

// Why is what to say of a key that is [Predictable].
const Why = "The RSA key was made by a chip whose private keys can be computed (CVE-2017-15361). Make another one elsewhere."

// Predictable reports whether a modulus has the form of those chips whose private
// keys can be computed from the public ones: its factors are powers of 65537 modulo
// the product of many small primes, and then so is the modulus. One key in two
// hundred million has that form by chance (Nemec and others, "The Return of
// Coppersmith's Attack", 2017, section 4.1).
func Predictable(modulus *big.Int) bool {
	for _, p := range []uint64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157} {
		rest := new(big.Int).Mod(modulus, new(big.Int).SetUint64(p)).Uint64()
		power := uint64(1)
		for range p {
			if power == rest {
				break
			}
			power = power * 65537 % p
		}
		if power != rest {
			return false
		}
	}
	return true
}
