package gateway_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"pgregory.net/rapid"

	"estover.dev/internal/gateway"
)

// Whatever comes and whatever is delivered, in whatever pieces: the hashes are those of
// both, and there is no second one if and only if they are the same.
func TestAnswer(t *testing.T) {
	piece := rapid.Custom(func(t *rapid.T) []byte {
		b := bytes.Repeat([]byte{rapid.SampledFrom([]byte("ab")).Draw(t, "byte")}, rapid.SampledFrom([]int{0, 1, 3, 500, 4 << 10, 30 << 10, 64 << 10, 70 << 10}).Draw(t, "size"))
		return b
	})
	rapid.Check(t, func(t *rapid.T) {
		came, given := []byte("salt of what came"), []byte("salt of what was delivered")
		a := gateway.NewAnswer(came, given)
		all, out := bytes.Clone(came), bytes.Clone(given)
		head := []byte(rapid.SampledFrom([]string{"", "", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n"}).Draw(t, "head of a stream"))
		if len(head) > 0 {
			a.Came().Head(head)
			a.Delivered().Head(head)
			all, out = append(all, head...), append(out, head...)
		}
		var held []byte
		give := func(b []byte) {
			a.Delivered().Body(b)
			out = append(out, b...)
		}
		for _, p := range rapid.SliceOfN(piece, 0, 6).Draw(t, "pieces") {
			a.Came().Body(p)
			all = append(all, p...)
			held = append(held, p...)
			n := rapid.IntRange(0, len(held)).Draw(t, "settled")
			b := bytes.Clone(held[:n])
			held = held[n:]
			switch rapid.SampledFrom([]string{"as it came", "as it came", "as it came", "masked", "dropped", "more"}).Draw(t, "change") {
			case "masked":
				if n > 0 {
					b[rapid.IntRange(0, n-1).Draw(t, "at")] = '*'
				}
			case "dropped":
				b = nil
			case "more":
				b = append(b, "more"...)
			}
			give(b)
		}
		if rapid.Bool().Draw(t, "ended") {
			give(held)
		}
		gotCame, gotGiven, differ := a.Sums()
		if gotCame != sha256.Sum256(all) {
			t.Fatal("the hash of what came is another's")
		}
		same := bytes.Equal(all[len(came):], out[len(given):])
		long := len(all)-len(came) > 68<<10
		if differ != (!same || long || len(head) > 0) {
			t.Fatalf("they are said to differ: %v, and are the same: %v", differ, same)
		}
		if differ && gotGiven != sha256.Sum256(out) {
			t.Fatal("the hash of what was delivered is another's")
		}
	})
}
