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

// TestFamily: the values of a family are of one kind, share what their row is found by,
// which begins with the time, and nothing else.
func TestFamily(t *testing.T) {
	before := uint64(time.Now().UnixMilli())
	seen := map[[32]byte]bool{}
	var last uint64
	key := []byte(strings.Repeat("k", 32))
	for range 1000 {
		v := opaque.NewFamily(opaque.RefreshToken)
		if !opaque.InFamily(v, opaque.RefreshToken) || opaque.InFamily(v, opaque.ClientSecret) || opaque.Check(v, opaque.RefreshToken) {
			t.Fatalf("%q is of no family of refresh tokens, or of something else too", v)
		}
		row := opaque.Family(v)
		at := binary.BigEndian.Uint64(append([]byte{0, 0}, row[:6]...))
		if at < last || at < before || at > uint64(time.Now().UnixMilli()) {
			t.Fatalf("the family of %q has the time %d, after %d", v, at, last)
		}
		if seen[row] {
			t.Fatalf("the family of %q was there before", v)
		}
		last, seen[row] = at, true
		next := next(t, v, key)
		if !opaque.InFamily(next, opaque.RefreshToken) || opaque.Family(next) != row || next == v {
			t.Fatalf("after %q comes %q, which is not another one of its family", v, next)
		}
	}
	v := opaque.NewFamily(opaque.RefreshToken)
	for i := range len(v) - 6 - 44 {
		if other := v[:i] + string(v[i]^1) + v[i+1:]; opaque.Family(other) == opaque.Family(v) {
			t.Errorf("%q has the family of %q", other, v)
		}
	}
	for _, odd := range []string{strings.Repeat("!", len(v)), strings.Repeat("\n", len(v)), v[:8] + "\n" + v[9:]} {
		if opaque.Family(odd) == opaque.Family(v) || opaque.InFamily(odd, opaque.RefreshToken) {
			t.Errorf("%q has the family of %q", odd, v)
		}
	}
}

// TestNext: what comes after a value is told by the value and the key together.
func TestNext(t *testing.T) {
	one, other := []byte(strings.Repeat("1", 32)), []byte(strings.Repeat("2", 32))
	v, w := opaque.NewFamily(opaque.RefreshToken), opaque.NewFamily(opaque.RefreshToken)
	seen := map[string]bool{v: true, w: true}
	for _, n := range []string{next(t, v, one), next(t, v, other), next(t, w, one), next(t, next(t, v, one), one)} {
		if seen[n] {
			t.Errorf("%q comes twice", n)
		}
		seen[n] = true
	}
	if n, again := next(t, v, one), next(t, v, one); n != again {
		t.Errorf("asked again, %q comes after %q", again, n)
	}
	alone := opaque.New(opaque.RefreshToken)
	first := next(t, alone, one)
	if !opaque.InFamily(first, opaque.RefreshToken) || next(t, alone, one) != first || opaque.Family(first) == opaque.Family(next(t, alone, other)) {
		t.Errorf("after %q, of no family, comes %q", alone, first)
	}
}

func next(t *testing.T, value string, key []byte) string {
	t.Helper()
	n, err := opaque.Next(opaque.RefreshToken, value, key)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
