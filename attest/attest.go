// Package attest makes and checks receipts: proof that an action of an agent
// was authorised, by whom, under which policy, and that it stands in a
// tamper-evident log. A receipt is checked offline, by anybody who holds the
// public keys, with this package or with stock tools.
//
// A receipt is made in four steps, and each is a published format:
//
//	statement   in-toto Statement v1: what was done ([Statement], [Action])
//	  │ its bytes are the leaf of the log, and are signed by the gateway
//	envelope    DSSE, Ed25519 ([Sign])
//	  │ the leaf gets its place in the log
//	proof       c2sp.org/tlog-proof@v1 with a signed checkpoint ([Proof])
//	  │ and what was hashed may be disclosed
//	file        JSON Lines, one envelope and proof a line ([Receipt])
//
// A statement never holds what went over the wire, nor who a person is, only
// salted hashes: the SHA-256 of 32 random bytes followed by the octets
// ([Commit]). Whoever is handed the salt and the octets can check them with
// any SHA-256 tool; whoever is not cannot guess them, and destroying the salt
// erases them while the log still verifies.
//
// The receipts of one session travel together in a ZIP file ([Export]) with
// the session's closing statement, which has the number of its actions, so
// that a missing one shows. Both files end in a digest over all that stands
// before it, and a ZIP is accepted only in the one form in which [Export]
// writes it: a single changed byte anywhere is found.
//
// [Verify] checks a file against a [Trust]: the keys of the log and its
// witnesses, and the keys that may sign. It answers step by step, PASS, FAIL
// or NOT DISCLOSED, and never needs a network. What it cannot show is the last
// line of every report ([Limit]).
package attest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
)

// A Digest is a SHA-256 hash. It is written in lower-case hexadecimal; the
// zero Digest stands for "none".
type Digest [sha256.Size]byte

// Sum is the plain SHA-256 of the octets, for what is public: a policy
// bundle, a tool's definition, a key.
func Sum[T ~string | ~[]byte](octets T) Digest {
	if len(octets) > short {
		return sha256.Sum256([]byte(octets))
	}
	var room [short]byte
	return sha256.Sum256(append(room[:0], octets...))
}

// short is how many octets are hashed at once without a copy on the heap. Most are no
// more.
const short = 512

// String is the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether the digest stands for "none".
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText gives the digest in hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads 64 lower-case hexadecimal digits and nothing else.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("a digest has 64 digits, this one %d", len(text))
	}
	for _, c := range text {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%q is no lower-case hexadecimal digit", c)
		}
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// ParseDigest reads what [Digest.String] wrote.
func ParseDigest(s string) (d Digest, err error) {
	return d, d.UnmarshalText([]byte(s))
}

// A Salt goes before the octets of a commitment, so that nobody can guess
// them from the hash. It is as secret as the octets themselves.
type Salt [32]byte

// NewSalt draws a salt.
func NewSalt() (s Salt) {
	_, _ = rand.Read(s[:]) // never fails
	return s
}

// Commit is the commitment to the octets: the SHA-256 of salt ‖ octets.
func Commit[T ~string | ~[]byte](salt Salt, octets T) Digest {
	if len(octets) > short {
		h := salt.NewHash()
		h.Write([]byte(octets))
		return DigestOf(h)
	}
	var room [len(salt) + short]byte
	return sha256.Sum256(append(append(room[:0], salt[:]...), octets...))
}

// NewHash begins a commitment to octets that come piece by piece.
func (s Salt) NewHash() hash.Hash {
	h := sha256.New()
	h.Write(s[:])
	return h
}

// DigestOf is the sum of a SHA-256 hash.
func DigestOf(h hash.Hash) (d Digest) {
	h.Sum(d[:0])
	return d
}
