package pki

import (
	"crypto"
	"strconv"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// What a responder has signed it says again until its end where there is no turn to
// sign it anew, and what is revoked has turns of its own.
func TestResponderTurns(t *testing.T) {
	var r responder
	now := time.Unix(1_800_000_000, 0)
	about := func(n int) question { return question{"acme", "ca_1", crypto.SHA256, strconv.Itoa(n)} }
	good, revoked := told{Status: ocsp.Good}, told{Status: ocsp.Revoked, RevokedAt: now}
	r.keep(about(0), good, now, []byte("good"))
	for age, want := range map[time.Duration]struct{ there, fresh bool }{
		0: {true, true}, answerLife/2 - 1: {true, true}, answerLife / 2: {true, false}, answerLife - time.Second - 1: {true, false}, answerLife - time.Second: {}, -time.Second: {},
	} {
		if b, fresh := r.answer(about(0), good, now.Add(age)); (b != nil) != want.there || fresh != want.fresh {
			t.Errorf("after %v: %q, fresh %t; want %+v", age, b, fresh, want)
		}
	}
	if b, _ := r.answer(about(0), revoked, now); b != nil {
		t.Errorf("what is revoked is said to be %q", b)
	}
	for _, status := range []int{ocsp.Good, ocsp.Unknown, ocsp.Revoked} {
		n := 0
		for r.may(status, now) {
			n++
		}
		if n != maxSigned[status] {
			t.Errorf("%d answers of status %d may be signed in a second, want %d", n, status, maxSigned[status])
		}
	}
	if !r.may(ocsp.Good, now.Add(time.Second)) {
		t.Error("nothing may be signed in another second")
	}
	// Whoever asks about more than are remembered drives out what nobody asks for.
	for n := range maxAnswers + 10 {
		r.keep(about(n), good, now, []byte("good"))
		if b, _ := r.answer(about(0), good, now); b == nil {
			t.Fatalf("the answer that is asked for all the time is forgotten after %d others", n)
		}
	}
	if len(r.answers) != maxAnswers || r.order.Len() != maxAnswers {
		t.Errorf("%d answers are remembered, in an order of %d, want %d", len(r.answers), r.order.Len(), maxAnswers)
	}
}
