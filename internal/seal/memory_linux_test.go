//go:build linux && goexperiment.runtimesecret

package seal_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/seal"
)

const mask = 0xa5

// masked is a text that stands in memory in this form alone, until it is shown.
type masked []byte

func newMasked(n int) masked {
	m := make(masked, n)
	_, _ = rand.Read(m)
	return m
}

// shown is the text.
func (m masked) shown() []byte {
	b := make([]byte, len(m))
	for i := range m {
		b[i] = m[i] ^ mask
	}
	return b
}

// is says whether something is the text, without showing it again.
func (m masked) is(b []byte) bool {
	for i := range b {
		if b[i] != m[i]^mask {
			return false
		}
	}
	return len(b) == len(m)
}

// Kind and Root are those of a source whose key is this text.
func (m masked) Kind() string { return "masked" }

func (m masked) Root(context.Context, string, bool) ([]byte, string, error) {
	return m.shown(), "", nil
}

// copies counts how often the text stands in the memory of this process.
func (m masked) copies(t *testing.T) (n int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		var from, to int64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil || !strings.HasPrefix(rights, "rw") {
			continue
		}
		for at := from; at < to; at += int64(len(buf) - len(m)) {
			got, _ := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at) // what has been unmapped since has nothing
			for i := range got {
				buf[i] ^= mask // so that what was read is no copy
			}
			n += bytes.Count(buf[:got], m)
		}
	}
	return n
}

// kept has the one copy that has to be found.
var kept []byte

// F14, D7: what a root key is, and what was sealed and opened, is nowhere in our own
// memory when those who had it have erased what they hold.
func TestMemory(t *testing.T) {
	d := dbtest.Open(t)
	// What a register may hold for a moment is no copy of a value of this length.
	root, value := newMasked(32), newMasked(400)
	s := open(t, d, root, acme)
	for range 50 {
		plain := value.shown()
		sealed, err := s.Seal(acme, seal.AAD{Class: seal.KV}, plain)
		if err != nil {
			t.Fatal(err)
		}
		clear(plain)
		opened, err := s.Open(acme, seal.AAD{Class: seal.KV}, sealed)
		if err != nil || !value.is(opened) {
			t.Fatalf("what was sealed does not open: %v", err)
		}
		clear(opened)
	}
	control := newMasked(32)
	kept = control.shown()
	for range 3 {
		runtime.GC()
	}
	for what, c := range map[string]struct {
		text masked
		want int
	}{"the root key": {root, 0}, "a value": {value, 0}, "what is kept": {control, 1}} {
		if n := c.text.copies(t); n != c.want {
			t.Errorf("%s stands in memory %d times, want %d", what, n, c.want)
		}
	}
	runtime.KeepAlive(kept)
}
