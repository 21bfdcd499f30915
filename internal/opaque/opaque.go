// Package opaque makes the values that open something and say nothing: tokens
// of people, client secrets, refresh tokens, one-time codes.
//
//	est_pt_ W3xk…(44 characters)… Qz1bX_
//	  │      │                      └ checksum over all that stands before it
//	  │      └ 33 random bytes in base64url, which leave no bit unused
//	  └ the prefix and the kind
//
// The prefix lets scanners of source and logs find a value that leaked, the
// checksum lets them be sure, and a typing error never reaches the database.
// What is stored of a value is a hash, so nothing in a database can be
// presented.
package opaque

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"time"
)

// A Kind says what a value opens. It stands in the value, so that one kind is
// never taken for another.
type Kind string

// The kinds that exist so far.
const (
	PersonToken  Kind = "pt" // a person's token for the management API
	Enrolment    Kind = "et" // exchanged once for a person's first token
	ClientSecret Kind = "cs" // an agent's secret at the token endpoint
	RefreshToken Kind = "rt"
	Code         Kind = "ac" // an authorization code
	DeviceCode   Kind = "dc"
	AuthRequest  Kind = "ar"  // a request for a person's word that a client waits for (auth_req_id)
	Registration Kind = "rat" // by which a client manages what it registered of itself
	InitialToken Kind = "it"  // with which a client registers itself
	Visit        Kind = "vs"  // a browser in which a person is signed in
	Pushed       Kind = "ru"  // an authorization request that was pushed
	Ticket       Kind = "vt"  // a token of the Vault-compatible door
	Wrapping     Kind = "vw"  // an answer of that door which waits to be fetched
)

// randomBytes is a multiple of three, so that base64 leaves no bit unused and
// a value has one spelling.
const (
	randomBytes  = 33
	randomLength = randomBytes / 3 * 4
	sumLength    = 6
)

// New makes a value that nobody can guess: 264 random bits.
func New(kind Kind) string {
	var b [randomBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	v := "est_" + string(kind) + "_" + base64.RawURLEncoding.EncodeToString(b[:])
	return v + checksum(v)
}

// NewOrdered makes a value like New's, with 48 bits of time before 216 random
// ones. Its [Key] stands beside those that are made at the same time: among keys
// of nothing but chance each would have a page of an index to itself, written
// anew with its row.
func NewOrdered(kind Kind) string {
	var b [randomBytes]byte
	ms := uint64(time.Now().UnixMilli())
	for i := range timeBytes {
		b[i] = byte(ms >> (8 * (timeBytes - 1 - i)))
	}
	_, _ = rand.Read(b[timeBytes:]) // never fails
	v := "est_" + string(kind) + "_" + base64.RawURLEncoding.EncodeToString(b[:])
	return v + checksum(v)
}

// timeBytes is how much of an ordered value is its time, in milliseconds. It is
// a multiple of three, too.
const timeBytes = 6

// Check reports whether value is of the kind and free of typing errors. It
// says nothing about whether the value was ever issued.
func Check(value string, kind Kind) bool {
	rest, ok := strings.CutPrefix(value, "est_"+string(kind)+"_")
	if !ok || len(rest) != randomLength+sumLength {
		return false
	}
	at := len(value) - sumLength
	return checksum(value[:at]) == value[at:]
}

// Hash is what may be stored of a value: SHA-256 over exactly what was
// presented. It needs no salt and no slow function, since nobody can try 2²⁶⁴
// values.
func Hash(value string) [32]byte { return sha256.Sum256([]byte(value)) }

// Key is what an ordered value may be found by, which was checked: its time in
// place of as many bytes of its hash, of which 208 bits are left.
func Key(value string) [32]byte {
	key := Hash(value)
	at := len(value) - sumLength - randomLength
	_, _ = base64.RawURLEncoding.Decode(key[:timeBytes], []byte(value[at:at+timeBytes/3*4])) // what is no base64 finds nothing
	return key
}

// checksum is the CRC-32 of s in six characters.
func checksum(s string) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], crc32.ChecksumIEEE([]byte(s)))
	return base64.RawURLEncoding.EncodeToString(b[:])
}
