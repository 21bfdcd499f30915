package estover_test

import (
	"encoding/base32"
	"encoding/binary"
	"regexp"
	"strings"
	"testing"
	"time"

	"estover.dev"
)

func TestValidName(t *testing.T) {
	form := regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	for _, s := range []string{
		"a", "0", "crm", "invoices-bot", "customer.read", "a_b", "a..b", strings.Repeat("a", 63),
		"", "-a", "a-", ".", "a.", "A", "a b", "a/b", "ä", "a\n", strings.Repeat("a", 64),
	} {
		if got, want := estover.ValidName(s), form.MatchString(s); got != want {
			t.Errorf("ValidName(%q) = %v, want %v", s, got, want)
		}
	}
}

// TestNewID: an id has 26 random digits of base32 behind its prefix, and every digit
// comes at each place.
func TestNewID(t *testing.T) {
	form := regexp.MustCompile(`^a-prefix-that-is-longer-than-any_[a-z2-7]{26}$`)
	seen := map[string]bool{}
	var digits [26]map[byte]bool
	for range 2000 {
		id := estover.NewID("a-prefix-that-is-longer-than-any")
		if !form.MatchString(id) || seen[id] {
			t.Fatalf("an id is %q, want one that was not there before, of the form %s", id, form)
		}
		seen[id] = true
		for i, c := range []byte(id[len(id)-26:]) {
			if digits[i] == nil {
				digits[i] = map[byte]bool{}
			}
			digits[i][c] = true
		}
	}
	for i, d := range digits {
		if len(d) != 32 {
			t.Errorf("at place %d there are %d digits, want all 32", i, len(d))
		}
	}
}

// TestNewOrderedID: ids sort as they were made, to the millisecond, and nothing of
// one is in another beside that.
func TestNewOrderedID(t *testing.T) {
	form := regexp.MustCompile(`^gnt_[0-9a-v]{32}$`)
	digits := base32.HexEncoding.WithPadding(base32.NoPadding)
	seen := map[string]bool{}
	last := uint64(time.Now().UnixMilli()) & (1<<40 - 1)
	for range 1000 {
		id := estover.NewOrderedID("gnt")
		if !form.MatchString(id) {
			t.Fatalf("an id is %q, want the form %s", id, form)
		}
		b, err := digits.DecodeString(strings.ToUpper(id[4:]))
		if err != nil {
			t.Fatal(err)
		}
		at := binary.BigEndian.Uint64(append([]byte{0, 0, 0}, b[:5]...))
		if at < last || at > uint64(time.Now().UnixMilli())&(1<<40-1) {
			t.Fatalf("%q is of %d, after one of %d", id, at, last)
		}
		if last = at; seen[string(b[5:])] {
			t.Fatalf("the chance in %q was there before", id)
		}
		seen[string(b[5:])] = true
	}
}
