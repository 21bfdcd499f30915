package jose

import (
	"crypto"
	"crypto/ecdsa"
	stded25519 "crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"estover.dev/internal/jose/weak"
)

// The bounds of keys.
const (
	maxKeySet  = 64 << 10 // bytes of a key set
	maxKeys    = 100      // keys of a set
	maxTries   = 16       // keys that are tried for one token
	minModulus = 2048     // bits of an RSA key
	maxModulus = 8192     // above, one signature check takes milliseconds
)

// A Key is a public key that signatures are checked with. It is parsed once
// and never changes.
type Key struct {
	// ID is how tokens name the key; it may be empty in somebody else's set.
	ID string

	// Purpose is the one thing that a key of ours is for. Keys of others have
	// none: what they are for is arranged where they are registered.
	Purpose Purpose

	// Public is an *ecdsa.PublicKey on P-256 or P-384, an *rsa.PublicKey or an
	// ed25519.PublicKey.
	Public crypto.PublicKey

	// Thumbprint is the key's SHA-256 thumbprint in base64url (RFC 7638).
	Thumbprint string

	// Certificates is the chain that came with the key, the key's own first.
	Certificates []*x509.Certificate

	alg string // the one algorithm that its owner allows, or ""
	jwk jose.JSONWebKey
}

// NewKey describes a public key of ours.
func NewKey(purpose Purpose, id string, public crypto.PublicKey) (*Key, error) {
	alg, err := algorithmOf(public)
	if err != nil {
		return nil, err
	}
	return finish(jose.JSONWebKey{Key: public, KeyID: id, Algorithm: alg, Use: "sig"}, purpose)
}

// algorithmOf is the algorithm that a key of ours signs with.
func algorithmOf(public crypto.PublicKey) (string, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return es256, nil
		case elliptic.P384():
			return es384, nil
		}
	case *rsa.PublicKey:
		return rs256, nil
	case stded25519.PublicKey:
		return edDSA, nil
	}
	return "", ErrKey.With("The key is neither ECDSA on P-256 or P-384, RSA nor Ed25519.")
}

// finish checks that the key is strong enough for what it says it is for.
func finish(jwk jose.JSONWebKey, purpose Purpose) (*Key, error) {
	k := &Key{ID: jwk.KeyID, Purpose: purpose, Public: jwk.Key, Certificates: jwk.Certificates, alg: jwk.Algorithm, jwk: jwk}
	if _, err := algorithmOf(k.Public); err != nil {
		return nil, err
	}
	if r, ok := k.Public.(*rsa.PublicKey); ok {
		if bits := r.N.BitLen(); bits < minModulus || bits > maxModulus {
			return nil, ErrKey.With("An RSA key has between %d and %d bits, this one has %d.", minModulus, maxModulus, bits)
		}
		if r.E < 3 || r.E&1 == 0 || int64(r.E) > 1<<31-1 {
			return nil, ErrKey.With("The public exponent of the RSA key is not one that can be used.")
		}
		if weak.Predictable(r.N) {
			return nil, ErrKey.With(weak.Why)
		}
	}
	if k.alg != "" && !k.fits(k.alg) {
		return nil, ErrKey.With("The key cannot be used with the algorithm that it names.")
	}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, ErrKey.Because(err)
	}
	k.Thumbprint = base64.RawURLEncoding.EncodeToString(sum)
	return k, nil
}

// fits reports whether a signature of this algorithm can come from this key.
func (k *Key) fits(alg string) bool {
	if k.alg != "" && !sameAlgorithm(k.alg, alg) {
		return false
	}
	switch p := k.Public.(type) {
	case *ecdsa.PublicKey:
		return (alg == es256 && p.Curve == elliptic.P256()) || (alg == es384 && p.Curve == elliptic.P384())
	case *rsa.PublicKey:
		return alg == rs256
	case stded25519.PublicKey:
		return alg == edDSA || alg == ed25519
	}
	return false
}

// methods check signatures over what was signed as it was written, so that nobody
// has to read it again: a library that takes a whole token reads its header a
// second time, with a parser that is not ours.
var methods = map[string]jwt.SigningMethod{
	es256: jwt.SigningMethodES256, es384: jwt.SigningMethodES384, rs256: jwt.SigningMethodRS256,
	edDSA: jwt.SigningMethodEdDSA, ed25519: jwt.SigningMethodEdDSA,
}

// verifies reports whether the key has signed this with the algorithm.
func (k *Key) verifies(alg, signed string, signature []byte) bool {
	method, known := methods[alg]
	return known && k.fits(alg) && method.Verify(signed, signature, k.Public) == nil
}

// Algorithm is the one algorithm that the key may be used with, or "" when its
// owner has not said.
func (k *Key) Algorithm() string { return k.alg }

// MarshalJSON writes the key as a JWK, the public half alone.
func (k *Key) MarshalJSON() ([]byte, error) { return k.jwk.MarshalJSON() }

// Thumbprint is the SHA-256 thumbprint of a public key in base64url (RFC 7638).
func Thumbprint(public crypto.PublicKey) (string, error) {
	k, err := NewKey("", "", public)
	if err != nil {
		return "", err
	}
	return k.Thumbprint, nil
}

// The members of a JWK that say that it is not a public key, and those that
// hold base64url.
var (
	privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}
	encodedMembers = []string{"x", "y", "n", "e", "x5t", "x5t#S256"}
	keyMembers     = slices.Concat(privateMembers, encodedMembers, []string{"kty", "kid", "use", "alg", "crv", "key_ops", "x5c", "x5u", "keys"})
)

// errOther is returned for a key that is none of ours to use, such as one for
// encryption; in a set it is passed over (RFC 7517, section 5).
var errOther = ErrKey.With("The key is not one that signatures are checked with here.")

// errPrivate is returned for a key that should never have been sent.
var errPrivate = ErrKey.With("This is a private or a shared key. Send the public key alone, and replace the one that was sent.")

// ParseKey reads one public key in the form of a JWK.
func ParseKey(b []byte) (*Key, error) { return parseKey(b, "sig") }

// parseKey reads a key that is for this use, or says of none.
func parseKey(b []byte, use string) (*Key, error) {
	if len(b) > maxKeySet {
		return nil, ErrKey.With("The key is larger than %d bytes.", maxKeySet)
	}
	members, err := parseObject(b, keyMembers)
	if err != nil {
		return nil, ErrKey.With("The key is not a strict JSON object.").Because(err)
	}
	if k := point(members); k != nil {
		return k, nil
	}
	for _, name := range privateMembers {
		if _, ok := members.get(name); ok {
			return nil, errPrivate
		}
	}
	for _, name := range encodedMembers {
		if v, ok := members.get(name); ok {
			s, ok := text(v)
			if _, err := decodePart(s); err != nil || !ok {
				return nil, ErrKey.With("The member %q of the key is not in base64url.", name)
			}
		}
	}
	if v, ok := members.get("use"); ok {
		if s, _ := text(v); s != use {
			return nil, errOther
		}
	}
	if v, ok := members.get("key_ops"); ok {
		if ops, array, _ := texts(v); !array || !slices.Contains(ops, "verify") {
			return nil, errOther
		}
	}
	var jwk jose.JSONWebKey
	switch err := jwk.UnmarshalJSON(b); {
	case errors.Is(err, jose.ErrUnsupportedKeyType):
		return nil, errOther
	case err != nil:
		return nil, ErrKey.Because(err)
	}
	jwk.CertificatesURL = nil // never followed, and never passed on
	return finish(jwk, "")
}

// point reads a key that is a point on P-256 and says nothing else, as every proof
// brings one along: the same key that go-jose makes of it, without reading it again.
// It is nil for any other, and for one that is none.
func point(members object) *Key {
	member := func(name string) string {
		v, _ := members.get(name)
		s, _ := text(v)
		return s
	}
	if len(members) != 4 || member("kty") != "EC" || member("crv") != "P-256" {
		return nil
	}
	x, y := member("x"), member("y")
	at := make([]byte, 1, 65)
	at[0] = 4 // uncompressed
	for _, coordinate := range []string{x, y} {
		b, err := decodePart(coordinate)
		if err != nil || len(b) != 32 {
			return nil
		}
		at = append(at, b...)
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), at)
	if err != nil {
		return nil
	}
	// RFC 7638, section 3: a coordinate of 32 bytes has one spelling.
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + x + `","y":"` + y + `"}`))
	return &Key{Public: public, Thumbprint: base64.RawURLEncoding.EncodeToString(sum[:]), jwk: jose.JSONWebKey{Key: public}}
}

// A Keys is a set of public keys. It never changes and may be used by many at
// once.
type Keys struct {
	list []*Key
	byID map[string][]*Key
}

// NewKeys makes a set.
func NewKeys(keys ...*Key) *Keys {
	s := &Keys{list: keys, byID: make(map[string][]*Key, len(keys))}
	for _, k := range keys {
		s.byID[k.ID] = append(s.byID[k.ID], k)
	}
	return s
}

// ParseKeys reads a JWK set. Keys that we have no use for are passed over, as
// RFC 7517, section 5, asks; a private key is an error, and so is a set in
// which nothing can be used.
func ParseKeys(b []byte) (*Keys, error) {
	_, raw, err := parseSet(b)
	if err != nil {
		return nil, err
	}
	var keys []*Key
	var why error
	for _, one := range raw {
		switch k, err := ParseKey(one); {
		case err == nil:
			keys = append(keys, k)
		case err == error(errPrivate):
			return nil, err
		default:
			why = err
		}
	}
	if len(keys) == 0 {
		return nil, ErrKey.With("The key set has no key that can be used.").Because(why)
	}
	return NewKeys(keys...), nil
}

// All lists the keys.
func (s *Keys) All() []*Key { return slices.Clone(s.list) }

// MarshalJSON writes the set as a JWK set.
func (s *Keys) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	b.WriteString(`{"keys":[`)
	for i, k := range s.list {
		if i > 0 {
			b.WriteByte(',')
		}
		one, err := k.MarshalJSON()
		if err != nil {
			return nil, err
		}
		b.Write(one)
	}
	b.WriteString(`]}`)
	return []byte(b.String()), nil
}

// candidates are the keys that may have signed a token with this algorithm and
// this key id. A key of that id comes first. The others follow where the
// purpose lets them, and where the token names none.
func (s *Keys) candidates(purpose Purpose, k *kind, id string, named bool, alg string) []*Key {
	if s == nil {
		return nil
	}
	usable := func(key *Key) bool { return (key.Purpose == "" || key.Purpose == purpose) && key.fits(alg) }
	var found []*Key
	if named {
		for _, key := range s.byID[id] {
			if usable(key) {
				found = append(found, key)
			}
		}
	}
	if !named || k.fallback {
		for _, key := range s.list {
			if usable(key) && !(named && key.ID == id) {
				found = append(found, key)
			}
		}
	}
	return found[:min(len(found), maxTries)]
}
