package main

import (
	"bytes"
	"runtime/pprof"
	"testing"
)

// Where a program lay is not in what is left of its profile, and nothing else is
// missing.
func TestNameless(t *testing.T) {
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 0); err != nil {
		t.Fatal(err)
	}
	const name = "goroutine" // a string of it
	left, err := nameless(b.Bytes(), name)
	if err != nil {
		t.Fatal(err)
	}
	again, err := nameless(left, name)
	if err != nil || !bytes.Equal(left, again) {
		t.Errorf("what was left is read as something else: %v", err)
	}
	if moved, err := nameless(left, "/srv/"+name); err != nil || !bytes.Equal(moved, left) {
		t.Errorf("a path that is not there was found: %v", err)
	}
}
