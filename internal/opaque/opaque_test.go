package opaque_test

import (
	"crypto/sha256"
	"encoding/binary"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev/internal/opaque"
)

func TestNew(t *testing.T) {
	form := regexp.MustCompile(`^est_pt_[A-Za-z0-9_-]{44}[A-Za-z0-9_-]{6}$`)
	seen := map[string]bool{}
	for range 1000 {
		v := opaque.New(opaque.PersonToken)
		if !form.MatchString(v) {
			t.Fatalf("a value is %q, want the form %s", v, form)
		}
		if seen[v] {
			t.Fatalf("%q was made twice", v)
		}
		seen[v] = true
		if !opaque.Check(v, opaque.PersonToken) {
			t.Fatalf("%q does not pass its own check", v)
		}
		if opaque.Check(v, opaque.ClientSecret) {
			t.Fatalf("%q passes as a client secret", v)
		}
		// The same random part under another prefix.
		if other := "est_cs_" + v[len("est_pt_"):]; opaque.Check(other, opaque.ClientSecret) {
			t.Fatalf("%q passes with the checksum of another kind", other)
		}
	}
}

// TestCheckFindsTypingErrors changes, drops, repeats and swaps characters.
func TestCheckFindsTypingErrors(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := opaque.New(opaque.ClientSecret)
		i := rapid.IntRange(0, len(v)-2).Draw(t, "place")
		var typo string
		switch rapid.IntRange(0, 3).Draw(t, "error") {
		case 0:
			typo = v[:i] + string(rapid.ByteRange(' ', '~').Draw(t, "character")) + v[i+1:]
		case 1:
			typo = v[:i] + v[i+1:]
		case 2:
			typo = v[:i] + v[i:i+1] + v[i:]
		case 3:
			typo = v[:i] + v[i+1:i+2] + v[i:i+1] + v[i+2:]
		}
		if typo != v && opaque.Check(typo, opaque.ClientSecret) {
			t.Fatalf("%q, mistyped as %q, passes the check", v, typo)
		}
	})
}

// TestCheckRefusesOtherSpellings: a value has one spelling.
func TestCheckRefusesOtherSpellings(t *testing.T) {
	v := opaque.New(opaque.ClientSecret)
	for _, other := range []string{"", v + "\n", " " + v, v + "=", "EST" + v[3:], "est_cs_", v[:len(v)-6]} {
		if opaque.Check(other, opaque.ClientSecret) {
			t.Errorf("%q passes as %q", other, v)
		}
	}
}

func TestHash(t *testing.T) {
	if got, want := opaque.Hash("est_cs_x"), sha256.Sum256([]byte("est_cs_x")); got != want {
		t.Errorf("Hash: %x, want SHA-256 of the exact text %x", got, want)
	}
}

// TestOrdered: an ordered value is a value like any other, whose key begins with
// its time and goes on with its hash, over every character.
func TestOrdered(t *testing.T) {
	before := uint64(time.Now().UnixMilli())
	seen := map[[32]byte]bool{}
	var last uint64
	for range 1000 {
		v := opaque.NewOrdered(opaque.RefreshToken)
		if !opaque.Check(v, opaque.RefreshToken) || opaque.Check(v, opaque.ClientSecret) {
			t.Fatalf("%q is no refresh token, or a client secret", v)
		}
		key, hash := opaque.Key(v), opaque.Hash(v)
		at := binary.BigEndian.Uint64(append([]byte{0, 0}, key[:6]...))
		if at < last || at < before || at > uint64(time.Now().UnixMilli()) {
			t.Fatalf("the key of %q has the time %d, after %d", v, at, last)
		}
		if [26]byte(key[6:]) != [26]byte(hash[6:]) {
			t.Fatalf("the key of %q is %x, its hash %x", v, key, hash)
		}
		if seen[key] {
			t.Fatalf("the key of %q was there before", v)
		}
		last, seen[key] = at, true
	}
	v := opaque.NewOrdered(opaque.RefreshToken)
	for i := range len(v) {
		other := v[:i] + string(v[i]^1) + v[i+1:]
		if opaque.Key(other) == opaque.Key(v) {
			t.Errorf("%q has the key of %q", other, v)
		}
	}
	for _, odd := range []string{strings.Repeat("!", len(v)), strings.Repeat("\n", len(v)), v[:8] + "\n" + v[9:]} {
		if opaque.Key(odd) == opaque.Key(v) {
			t.Errorf("%q has the key of %q", odd, v)
		}
	}
}
