package gateway

import (
	"bytes"
	"sync"
)

// An Answer hashes an answer as it came and as it was delivered, each with a salt of
// its own. Most are delivered as they came. That is seen by comparing them, which
// costs a tenth of a hash: as long as there is no difference the second is not begun.
//
// For that, what came is kept until it is known: up to mostKept bytes, beyond which
// both are hashed. The taps belong to the same direction, so their calls come one at a
// time.
type Answer struct {
	came, delivered *Hash  // delivered is nil as long as nothing differs
	salt            []byte // of delivered
	kept            []byte // what came; there may be a secret in it that is masked in what is delivered
	same            int    // how much of that was delivered
}

// What is kept of an answer, at most and at first.
const (
	mostKept = 68 << 10 // 64 KiB of a body, and its head
	someKept = 4 << 10
)

var (
	keptMost = sync.Pool{New: func() any { return new([mostKept]byte) }}
	keptSome = sync.Pool{New: func() any { return new([someKept]byte) }}
)

// NewAnswer makes the hashes of an answer with their salts.
func NewAnswer(came, delivered []byte) *Answer { return &Answer{came: NewHash(came), salt: delivered} }

// Came sees the answer as it came.
func (a *Answer) Came() Tap { return asCame{a} }

// Delivered sees it as the agent gets it.
func (a *Answer) Delivered() Tap { return asDelivered{a} }

// Sums gives the SHA-256 of both, once: the answer is then used up. If differ is
// false, what was delivered is what came, and there is no second hash.
func (a *Answer) Sums() (came, delivered [32]byte, differ bool) {
	came = a.came.Sum()
	if a.delivered == nil && a.same < len(a.kept) { // not all of it was delivered
		a.part()
	}
	if a.delivered == nil {
		a.give() // as it is: the agent has all of it
		return came, delivered, false
	}
	return came, a.delivered.Sum(), true
}

// part begins the second hash, from the beginning of the answer.
func (a *Answer) part() {
	a.delivered = NewHash(a.salt)
	a.delivered.sum.Write(a.kept[:a.same])
	a.drop()
}

// keep keeps a piece of what came.
func (a *Answer) keep(b []byte) {
	n := len(a.kept) + len(b)
	switch {
	case n > mostKept:
		a.part()
		return
	case n > cap(a.kept):
		var larger []byte
		if n <= someKept {
			larger = keptSome.Get().(*[someKept]byte)[:0]
		} else {
			larger = keptMost.Get().(*[mostKept]byte)[:0]
		}
		larger = append(larger, a.kept...)
		a.drop()
		a.kept = larger
	}
	a.kept = append(a.kept, b...)
}

// drop overwrites what is kept, and gives its memory back.
func (a *Answer) drop() {
	clear(a.kept)
	a.give()
}

func (a *Answer) give() {
	switch cap(a.kept) {
	case someKept:
		keptSome.Put((*[someKept]byte)(a.kept[:someKept]))
	case mostKept:
		keptMost.Put((*[mostKept]byte)(a.kept[:mostKept]))
	}
	a.kept = nil
}

type asCame struct{ *Answer }

// Head takes the head. What may be open for long, a stream of events or what goes over
// to another protocol, is hashed twice in the place of being kept.
func (a asCame) Head(b []byte) error {
	if a.delivered == nil && (bytes.HasPrefix(b, []byte("HTTP/1.1 101 ")) || bytes.Contains(b, []byte("text/event-stream"))) {
		a.part()
	}
	return a.Body(b)
}

// Body takes a piece of the body.
func (a asCame) Body(b []byte) error {
	a.came.sum.Write(b)
	if a.delivered == nil {
		a.keep(b)
	}
	return nil
}

// Tail takes the trailers.
func (a asCame) Tail(b []byte) error { return a.Body(b) }

type asDelivered struct{ *Answer }

// Head takes the head.
func (a asDelivered) Head(b []byte) error { return a.Body(b) }

// Body takes a piece of the body.
func (a asDelivered) Body(b []byte) error {
	if a.delivered == nil {
		if rest := a.kept[a.same:]; bytes.HasPrefix(rest, b) {
			a.same += len(b)
			return nil
		}
		a.part()
	}
	a.delivered.sum.Write(b)
	return nil
}

// Tail takes the trailers.
func (a asDelivered) Tail(b []byte) error { return a.Body(b) }
