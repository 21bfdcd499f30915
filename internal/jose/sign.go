package jose

import (
	"crypto"
	"crypto/ecdsa"
	stded25519 "crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// A Signer makes tokens of one purpose with one private key. It may be used by
// many at once.
type Signer struct {
	purpose Purpose
	alg     string
	id      string
	header  string // the protected header in base64url, with its dot
	key     crypto.Signer
	size    int       // bytes of a signature
	random  io.Reader // what a signature is made with beside key and text; nil for nothing (RFC 6979)
}

// NewSigner prepares a private key for a purpose. The key says which algorithm
// it is, and the purpose whether it may be used. The id goes into the header
// of each token; a DPoP proof has the key itself there instead.
func NewSigner(purpose Purpose, id string, key crypto.Signer) (*Signer, error) {
	k := kinds[purpose]
	if k == nil {
		return nil, ErrKey.With("There are no tokens for %q.", purpose)
	}
	public, err := NewKey(purpose, id, key.Public())
	if err != nil {
		return nil, err
	}
	s := &Signer{purpose: purpose, alg: public.alg, id: id, key: key, random: rand.Reader}
	if !slices.Contains(k.signs, s.alg) {
		return nil, ErrKey.With("A token for %q is not signed with %s.", purpose, s.alg)
	}
	switch p := public.Public.(type) {
	case *ecdsa.PublicKey:
		s.size = 2 * ((p.Params().BitSize + 7) / 8)
		// What has a name of its own is never signed twice. So chance is in the text, and
		// the nonce is made of that and the key (RFC 6979): with chance mixed in once more
		// a signature took a quarter longer, mostly for SHA-512.
		if _, is := key.(*ecdsa.PrivateKey); is && slices.Contains(k.needs, "jti") {
			s.random = nil
		}
	case *rsa.PublicKey:
		s.size = p.Size()
	case stded25519.PublicKey:
		s.size = stded25519.SignatureSize
	}
	header := struct {
		Type      string         `json:"typ"`
		Algorithm string         `json:"alg"`
		KeyID     string         `json:"kid,omitzero"`
		Key       jsontext.Value `json:"jwk,omitzero"`
	}{Type: k.typ, Algorithm: s.alg, KeyID: id}
	if header.Type == "" {
		header.Type = "JWT"
	}
	if k.embedded {
		bare := public.jwk
		bare.KeyID, bare.Algorithm, bare.Use = "", "", ""
		header.KeyID = ""
		if header.Key, err = bare.MarshalJSON(); err != nil {
			return nil, ErrKey.Because(err)
		}
	}
	b, err := json.Marshal(header)
	if err != nil {
		return nil, fmt.Errorf("writing the header of a token: %w", err)
	}
	s.header = base64.RawURLEncoding.EncodeToString(b) + "."
	return s, nil
}

// Algorithm is the name of the algorithm that the signer uses.
func (s *Signer) Algorithm() string { return s.alg }

// KeyID is the id that its tokens carry.
func (s *Signer) KeyID() string { return s.id }

// Sign makes a token. Claims that are bytes already, []byte or jsontext.Value,
// are taken as they are and must be a JSON object; everything else is marshalled.
func Sign(purpose Purpose, s *Signer, claims any) (string, error) {
	if s == nil || s.purpose != purpose {
		return "", ErrKey.With("The key is not for %q.", purpose)
	}
	var body []byte
	switch c := claims.(type) {
	case []byte:
		body = c
	case jsontext.Value:
		body = c
	default:
		var err error
		if body, err = json.Marshal(claims, json.Deterministic(true)); err != nil {
			return "", fmt.Errorf("writing the claims of a token: %w", err)
		}
	}
	if len(body) == 0 || body[0] != '{' {
		return "", errors.New("jose: the claims of a token are not a JSON object")
	}
	enc := base64.RawURLEncoding
	var room [1536]byte // most tokens fit
	token := append(room[:0], s.header...)
	token = enc.AppendEncode(token, body)
	signature, err := s.sign(token)
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	token = append(token, '.')
	token = enc.AppendEncode(token, signature)
	if len(token) > maxToken {
		return "", ErrInvalid.With("The token would be longer than %d bytes.", maxToken)
	}
	return string(token), nil
}

// sign makes the signature in the form of RFC 7518.
func (s *Signer) sign(input []byte) ([]byte, error) {
	switch s.alg {
	case edDSA:
		return s.key.Sign(s.random, slices.Clone(input), crypto.Hash(0)) // the input itself is on no heap
	case rs256:
		sum := sha256.Sum256(input)
		return s.key.Sign(s.random, sum[:], crypto.SHA256)
	case es256:
		sum := sha256.Sum256(input)
		der, err := s.key.Sign(s.random, sum[:], crypto.SHA256)
		if err != nil {
			return nil, err
		}
		return fixed(der, s.size)
	}
	panic("jose: a signer with the algorithm " + s.alg)
}

// fixed turns an ECDSA signature from ASN.1 into two numbers of the same
// length, one behind the other (RFC 7518, section 3.4).
func fixed(der []byte, size int) ([]byte, error) {
	var r, s []byte
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadASN1Integer(&r) || !seq.ReadASN1Integer(&s) || !seq.Empty() ||
		len(r) > size/2 || len(s) > size/2 {
		return nil, errors.New("the key made a signature that is not one")
	}
	out := make([]byte, size)
	copy(out[size/2-len(r):], r)
	copy(out[size-len(s):], s)
	return out, nil
}
