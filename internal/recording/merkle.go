package recording

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// A Digest is a SHA-256. It is written in hex.
type Digest [sha256.Size]byte

// String is the digest in hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// bytes is the digest as it is stored: nothing if it is zero.
func (d Digest) bytes() []byte {
	if d == (Digest{}) {
		return []byte{}
	}
	return d[:]
}

// MarshalText is the digest in hex.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads 64 lower-case hex digits.
func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) != 2*len(d) {
		return fmt.Errorf("a digest of %d characters", len(b))
	}
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return errors.New("a digest that is not lower-case hex")
		}
	}
	_, err := hex.Decode(d[:], b)
	return err
}

// The tree of a segment is that of RFC 6962, section 2.1, over the bytes of
// its frames, so that any tool that knows transparency logs can check a path.

// leafHash is the leaf of a frame.
func leafHash(frame []byte) Digest {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(frame)
	var d Digest
	h.Sum(d[:0])
	return d
}

func nodeHash(left, right Digest) Digest {
	var b [1 + 2*sha256.Size]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}

// leavesOf hashes frames.
func leavesOf(frames [][]byte) []Digest {
	leaves := make([]Digest, len(frames))
	h := sha256.New()
	for i, f := range frames {
		h.Reset()
		h.Write([]byte{0})
		h.Write(f)
		h.Sum(leaves[i][:0])
	}
	return leaves
}

// left is how many of n leaves stand in the left subtree: the largest power of
// two below n.
func left(n int) int {
	k := 1
	for k<<1 < n {
		k <<= 1
	}
	return k
}

// rootOf is the root of a tree with these leaves.
func rootOf(leaves []Digest) Digest {
	switch n := len(leaves); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leaves[0]
	default:
		k := left(n)
		return nodeHash(rootOf(leaves[:k]), rootOf(leaves[k:]))
	}
}

// pathOf is the path from leaf i to the root: its siblings, from the bottom.
func pathOf(leaves []Digest, i int) []Digest {
	if len(leaves) <= 1 {
		return []Digest{}
	}
	if k := left(len(leaves)); i < k {
		return append(pathOf(leaves[:k], i), rootOf(leaves[k:]))
	} else {
		return append(pathOf(leaves[k:], i-k), rootOf(leaves[:k]))
	}
}

// climb computes the root that a leaf at place i of n leads to by this path.
func climb(leaf Digest, i, n int, path []Digest) (Digest, error) {
	if i < 0 || i >= n {
		return Digest{}, fmt.Errorf("there is no frame %d among %d", i, n)
	}
	if n == 1 {
		if len(path) != 0 {
			return Digest{}, errors.New("the path is too long")
		}
		return leaf, nil
	}
	if len(path) == 0 {
		return Digest{}, errors.New("the path is too short")
	}
	sibling, below := path[len(path)-1], path[:len(path)-1]
	k := left(n)
	if i < k {
		d, err := climb(leaf, i, k, below)
		return nodeHash(d, sibling), err
	}
	d, err := climb(leaf, i-k, n-k, below)
	return nodeHash(sibling, d), err
}
