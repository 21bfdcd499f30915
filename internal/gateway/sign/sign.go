// Package sign proves that a request comes from somebody who has a secret,
// without sending the secret: AWS Signature Version 4, and HMAC by a template.
//
// Whoever signs does so last, over what goes out: after the slots are filled and
// what must not leave is taken out. What is signed is what was decided on, byte by
// byte; nothing here changes method, path or body.
package sign

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
)

// A Request is what is signed, as it is about to be sent.
type Request struct {
	Method string
	Host   string // as it stands in the header Host
	Path   string // escaped
	Query  string // escaped
	Header http.Header
	Body   []byte // all of it, unless it is not signed

	// Extra names headers, in small letters, that are signed beside those that have
	// to be.
	Extra []string
}

// Digest is the SHA-256 of bytes in hexadecimal digits.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
