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
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
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
	RefreshToken Kind = "rt" // of a family
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

// A family of values is a row of them, of which each is good until the next. All
// begin alike, with 48 bits of time and 144 random ones, so that whoever has one
// shows which family it is of; 264 further bits are its own.
//
//	est_rt_ 0Zk…(32)… W3xk…(44 characters)… Qz1bX_
//	          │         └ of this one
//	          └ of the family
const (
	timeBytes    = 6
	familyLength = (timeBytes + 18) / 3 * 4
)

// NewFamily makes the first value of a family.
func NewFamily(kind Kind) string {
	var b [familyLength/4*3 + randomBytes]byte
	ms := uint64(time.Now().UnixMilli())
	for i := range timeBytes {
		b[i] = byte(ms >> (8 * (timeBytes - 1 - i)))
	}
	_, _ = rand.Read(b[timeBytes:]) // never fails
	v := "est_" + string(kind) + "_" + base64.RawURLEncoding.EncodeToString(b[:])
	return v + checksum(v)
}

// Next is the value of a family that comes after one. It is the same whenever it is
// asked for with the same random key, and nobody tells it who has not both. After a value
// that is of no family it is the first of a new one.
func Next(kind Kind, value string, key []byte) (string, error) {
	begins, length := len(value)-sumLength-randomLength, randomBytes
	if Check(value, kind) {
		length += familyLength / 4 * 3
	}
	b, err := hkdf.Expand(sha512.New, key, "estover value after "+value, length) // in one block
	if err != nil {
		return "", err
	}
	v := value[:begins] + base64.RawURLEncoding.EncodeToString(b)
	return v + checksum(v), nil
}

// InFamily reports whether value is of the kind, of a family and free of typing errors.
func InFamily(value string, kind Kind) bool { return well(value, kind, familyLength+randomLength) }

// Family is what the row of a family is found by, whose value was checked. It begins with
// the time, so that rows that are made at the same time stand side by side: among keys of
// nothing but chance each would have a page of an index to itself, written anew with its
// row. The rest is of the hash of what the values of the family begin with.
func Family(value string) [32]byte {
	at := len(value) - sumLength - randomLength
	key := Hash(value[:at])
	_, _ = base64.RawURLEncoding.Decode(key[:timeBytes], []byte(value[at-familyLength:][:timeBytes/3*4])) // what is no base64 finds nothing
	return key
}

// Check reports whether value is of the kind and free of typing errors. It
// says nothing about whether the value was ever issued.
func Check(value string, kind Kind) bool { return well(value, kind, randomLength) }

func well(value string, kind Kind, length int) bool {
	rest, ok := strings.CutPrefix(value, "est_"+string(kind)+"_")
	if !ok || len(rest) != length+sumLength {
		return false
	}
	at := len(value) - sumLength
	return checksum(value[:at]) == value[at:]
}

// Hash is what may be stored of a value: SHA-256 over exactly what was
// presented. It needs no salt and no slow function, since nobody can try 2²⁶⁴
// values.
func Hash(value string) [32]byte {
	var room [128]byte
	return sha256.Sum256(append(room[:0], value...))
}

// Key is what a refresh token was found by before there were families: the first
// of its bytes in place of as many bytes of its hash.
func Key(value string) [32]byte {
	key := Hash(value)
	at := len(value) - sumLength - randomLength
	_, _ = base64.RawURLEncoding.Decode(key[:timeBytes], []byte(value[at:at+timeBytes/3*4]))
	return key
}

// checksum is the CRC-32 of s in six characters.
func checksum(s string) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], crc32.ChecksumIEEE([]byte(s)))
	return base64.RawURLEncoding.EncodeToString(b[:])
}
