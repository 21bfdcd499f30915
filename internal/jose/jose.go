// Package jose signs and verifies JSON Web Tokens. It is the only package that
// imports a JOSE library, and the only one that names an algorithm: everybody
// else says what a token is for, a [Purpose], and the table of purposes says
// which type, which algorithms and which claims such a token has.
//
// What comes in is untrusted. It is looked at in this order, and the first
// step that fails ends it:
//
//	size ─▶ three parts ─▶ strict base64 ─▶ strict JSON of the header ─▶ refused members
//	     ─▶ type and algorithm of the purpose ─▶ keys that fit ─▶ signature
//	     ─▶ strict JSON of the claims ─▶ claims of the purpose
//
// The rules that a general library leaves open are closed here:
//
//   - Compact form, one signature, at most 16 KiB. No encryption, no unsigned
//     token, no shared secret, no RSA-PSS (the library accepts any length of
//     salt), no key or address of a key that the token brings along, except in
//     a DPoP proof, where the key in the header is what is being proved.
//   - A token is its exact bytes: padding, line breaks and unused bits that are
//     not zero are refused, although decoders commonly forgive them.
//   - JSON names are compared with their case and may not repeat, at no depth;
//     a registered name in another case is refused, because a reader after us
//     might take it for the registered one. At most eight levels, numbers of at
//     most 32 characters.
//   - The algorithm is one of the purpose's list, of the caller's list if there
//     is one, and of what the key is for. A key id is looked up as it is, never
//     as a path, a query or a pattern.
//   - A token of one purpose is never taken for one of another: their types
//     differ, and our own keys each serve one purpose (RFC 8725, section 3.11).
//
// Reading and writing keys is left to go-jose, but for the plain point on P-256 that
// a proof brings along, and checking a signature to golang-jwt, which takes what was
// signed as it is, so that a token is read once.
// Making one needs nothing that the standard library does not have, and is done
// here because every access token passes through it: the protected header of a
// [Signer] is encoded once.
package jose

import (
	"slices"
	"strings"
	"time"

	"estover.dev"
)

// ErrInvalid is returned for a token that is not what it should be. Its
// sentence says which rule it broke, without repeating what the token said.
var ErrInvalid = &estover.Error{Kind: estover.Unknown, Code: "invalid_token", Detail: "The token is not valid."}

// ErrExpired is returned for a token that was valid and has come to its end.
var ErrExpired = &estover.Error{Kind: estover.Unknown, Code: "expired_token", Detail: "The token has expired."}

// ErrUnknownKey is returned when the token names a key that is not among the
// given ones. Whoever keeps a copy of somebody else's keys may fetch them
// again, at a bounded rate.
var ErrUnknownKey = &estover.Error{Kind: estover.Unknown, Code: "unknown_key", Detail: "The token is signed with a key that is not known."}

// ErrKey is returned for a key that cannot be used.
var ErrKey = &estover.Error{Kind: estover.Invalid, Code: "invalid_key", Detail: "The key cannot be used."}

// A Purpose is what a token is for.
type Purpose string

// The purposes of tokens.
const (
	AccessToken     Purpose = "access_token"     // RFC 9068
	IDToken         Purpose = "id_token"         // OpenID Connect Core, section 2
	ClientAssertion Purpose = "client_assertion" // RFC 7523, section 2.2
	DPoPProof       Purpose = "dpop_proof"       // RFC 9449, section 4.2
	IDJAG           Purpose = "id_jag"           // draft-ietf-oauth-identity-assertion-authz-grant-03
	JWTBearer       Purpose = "jwt_bearer"       // RFC 7523, section 2.1, and subject tokens of a configured trust
	JWTSVID         Purpose = "jwt_svid"         // SPIFFE JWT-SVID without an issuer
	Introspection   Purpose = "introspection"    // RFC 9701
	SecurityEvent   Purpose = "security_event"   // RFC 8417
	LoginToken      Purpose = "login_token"      // what a workload logs in with at the Vault-compatible door, whose role says what it must be
	Denial          Purpose = "denial"           // the binding_token of the AuthZEN Access Request and Approval Profile
)

// The algorithms. Ed25519 is the name that RFC 9864 gives to what RFC 8037
// calls EdDSA, with the one curve that either is used with here.
const (
	es256   = "ES256"
	es384   = "ES384"
	rs256   = "RS256"
	edDSA   = "EdDSA"
	ed25519 = "Ed25519"
)

// An audienceRule says what the audience of a token may look like.
type audienceRule int

const (
	noAudience  audienceRule = iota // not looked at
	oneOfMany                       // ours is among them
	exactlyOne                      // ours alone, as a string or as an array of one
	oneAsString                     // ours alone, as a string (draft-ietf-oauth-rfc7523bis-10)
)

// A kind is what the table says about a purpose.
type kind struct {
	typ      string        // the type in the header; "" if there is none of its own
	any      bool          // without a type of its own: any type but another purpose's, not only "JWT"
	signs    []string      // algorithms that we sign with
	accepts  []string      // algorithms that are accepted when the caller lists none
	listed   []string      // algorithms that are accepted only when the caller lists them
	needs    []string      // claims that must be there: strings that are not empty, times, audiences
	objects  []string      // claims that must be there and be objects
	refuses  []string      // claims that must not be there
	audience audienceRule  // how the audience is compared
	ahead    time.Duration // the furthest that exp may lie in the future; 0 for no limit
	window   time.Duration // how far iat may lie from now on either side; 0 for no limit in the past
	fallback bool          // without a key of that id, the others are tried in turn
	embedded bool          // the key is in the header
}

// kinds is the table of purposes.
var kinds = map[Purpose]*kind{
	AccessToken: {
		typ: "at+jwt", signs: []string{es256}, accepts: []string{es256, edDSA},
		needs: []string{"iss", "sub", "aud", "exp", "iat", "jti", "client_id"}, audience: oneOfMany,
	},
	IDToken: {
		signs: []string{rs256, es256}, accepts: []string{rs256, es256},
		needs: []string{"iss", "sub", "aud", "exp", "iat"}, audience: oneOfMany,
	},
	ClientAssertion: {
		any: true, signs: []string{es256, edDSA, rs256}, accepts: []string{es256, edDSA, ed25519}, listed: []string{rs256},
		needs: []string{"iss", "sub", "aud", "exp", "jti"}, audience: oneAsString,
		ahead: 5 * time.Minute, fallback: true,
	},
	DPoPProof: {
		typ: "dpop+jwt", signs: []string{es256, edDSA}, accepts: []string{es256, edDSA, ed25519},
		needs: []string{"jti", "htm", "htu", "iat"}, window: time.Minute, embedded: true,
	},
	IDJAG: {
		typ: "oauth-id-jag+jwt", signs: []string{es256}, listed: []string{rs256, es256, es384, edDSA, ed25519},
		needs: []string{"iss", "sub", "aud", "client_id", "jti", "exp", "iat"}, audience: exactlyOne,
		ahead: 5 * time.Minute,
	},
	JWTBearer: {
		listed: []string{rs256, es256, es384, edDSA, ed25519},
		needs:  []string{"iss", "sub", "aud", "exp", "iat"}, audience: exactlyOne,
	},
	JWTSVID: {
		listed: []string{rs256, es256, es384, edDSA, ed25519},
		needs:  []string{"sub", "aud", "exp", "iat"}, refuses: []string{"iss"}, audience: exactlyOne,
	},
	Introspection: {
		typ: "token-introspection+jwt", signs: []string{es256}, accepts: []string{es256}, listed: []string{rs256, edDSA, ed25519},
		needs: []string{"iss", "aud", "iat"}, objects: []string{"token_introspection"}, audience: oneOfMany,
	},
	SecurityEvent: {
		typ: "secevent+jwt", signs: []string{rs256, es256}, listed: []string{rs256, es256, es384, edDSA, ed25519},
		needs: []string{"iss", "aud", "iat", "jti"}, objects: []string{"events"}, refuses: []string{"exp"}, audience: oneOfMany,
	},
	LoginToken: {
		any: true, listed: []string{rs256, es256, es384, edDSA, ed25519},
		needs: []string{"exp"}, audience: noAudience, fallback: true,
	},
	Denial: {
		typ: "authzen-denial+jwt", signs: []string{es256}, accepts: []string{es256},
		needs: []string{"iss", "sub", "aud", "exp", "iat", "jti"}, audience: exactlyOne, ahead: 15 * time.Minute,
	},
}

// taken are the types that say what a token is for. A token that carries one
// is nothing else, whether or not we have a use for that kind.
var taken = []string{
	"at+jwt", "dpop+jwt", "oauth-id-jag+jwt", "token-introspection+jwt", "secevent+jwt", "logout+jwt", "txntoken+jwt", "authzen-denial+jwt",
}

// Reserved reports whether a type says that a token is of one kind and of no
// other, so that nobody may arrange to have tokens of another kind carry it.
func Reserved(typ string) bool { return slices.Contains(taken, mediaType(typ)) }

// Algorithms lists the algorithms that are accepted for a purpose without
// further arrangement, for metadata documents.
func Algorithms(p Purpose) []string {
	if k := kinds[p]; k != nil {
		return slices.Clone(k.accepts)
	}
	return nil
}

// Supports reports whether a token of this purpose may be signed with the
// algorithm when both sides have arranged it: what a client may be registered
// with, and what a trust may list.
func Supports(p Purpose, alg string) bool {
	k := kinds[p]
	return k != nil && (slices.Contains(k.accepts, alg) || slices.Contains(k.listed, alg))
}

// accepted reports whether alg may be used for this kind under the caller's
// list, which may be empty.
func (k *kind) accepted(alg string, listed []string) bool {
	if len(listed) == 0 {
		return slices.Contains(k.accepts, alg)
	}
	return (slices.Contains(k.accepts, alg) || slices.Contains(k.listed, alg)) &&
		slices.ContainsFunc(listed, func(l string) bool { return sameAlgorithm(l, alg) })
}

// sameAlgorithm compares the names of two algorithms, one of which has two.
func sameAlgorithm(a, b string) bool {
	return a == b || (a == edDSA && b == ed25519) || (a == ed25519 && b == edDSA)
}

// mediaType is the type of a token without what RFC 7515, section 4.1.9, lets
// a sender leave out and without case, which media types do not have.
func mediaType(typ string) string {
	typ = strings.ToLower(typ)
	if rest, ok := strings.CutPrefix(typ, "application/"); ok && !strings.Contains(rest, "/") {
		return rest
	}
	return typ
}

// typed reports whether the header's type is one that this kind may have. The
// caller's types, if any, take the place of the table's for a kind without a
// type of its own.
func (k *kind) typed(typ string, types []string) bool {
	typ = mediaType(typ)
	switch {
	case k.typ != "":
		return typ == k.typ
	case len(types) > 0:
		return slices.ContainsFunc(types, func(t string) bool { return mediaType(t) == typ })
	case k.any:
		return !slices.Contains(taken, typ)
	default:
		return typ == "" || typ == "jwt"
	}
}
