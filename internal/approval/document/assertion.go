package document

import (
	"encoding/json"
	"errors"

	"estover.dev"
	"estover.dev/attest"
)

// An Assertion is what a person's key has said of a document. Offline verifiers
// check the same: see [attest.Assertion.Verify].
type Assertion = attest.Assertion

// A Key is the public half of a key that a person approves with.
type Key = attest.ApproverKey

// The methods of assertions.
const (
	Passkey = attest.ByPasskey
	SSH     = attest.BySSH
)

// Namespace is what `ssh-keygen -Y sign -n` is given.
const Namespace = attest.ApprovalNamespace

// MaxAssertion bounds an assertion, in bytes of JSON.
const MaxAssertion = 16 << 10

// ErrSignature is returned for an assertion that is not one of this document by
// this key.
var ErrSignature = &estover.Error{Kind: estover.Denied, Code: "approval_signature_invalid", Detail: "The signature is not one of this document by a key of yours. Sign what is shown now, with a key that is registered."}

// Verify checks an assertion over a document's text.
func Verify(text []byte, a *Assertion, k Key) error {
	if a == nil {
		return ErrSignature.Because(errors.New("there is none"))
	}
	if err := a.Verify(text, k); err != nil {
		return ErrSignature.With("The approval is not signed: %s.", err.Error()).Because(err)
	}
	return nil
}

// Encode is an assertion as it is stored and sent.
func Encode(a Assertion) []byte {
	b, err := json.Marshal(a)
	if err != nil {
		panic("document: an assertion without JSON: " + err.Error())
	}
	return b
}

// Decode reads what [Encode] wrote.
func Decode(b []byte) (a Assertion, err error) {
	if len(b) > MaxAssertion {
		return a, ErrSignature.With("An assertion has at most %d bytes.", MaxAssertion)
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, ErrSignature.With("The assertion cannot be read. Send an object with method, key and signature.").Because(err)
	}
	return a, nil
}
