package client

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"
)

// encoding is base64url as RFC 7515, section 2, has it. It is strict: bits that
// nobody needs are zero.
var encoding = base64.RawURLEncoding.Strict()

// NewKey makes a key to which tokens are bound ([Options.DPoP]). It is meant to
// live and die with the program.
func NewKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// A signer makes signatures of one algorithm. The key itself is where package
// fmt does not look.
type signer struct {
	alg  string
	jwk  map[string]any // the public half (RFC 7517, section 4)
	sign func(message []byte) ([]byte, error)
}

var errKey = errors.New("client: the key is neither ECDSA on P-256 nor Ed25519")

func newSigner(key crypto.Signer) (*signer, error) {
	if key == nil {
		return nil, errKey
	}
	switch public := key.Public().(type) {
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			return nil, errKey
		}
		point, err := public.Bytes()
		if err != nil {
			return nil, errKey
		}
		return &signer{
			"ES256",
			map[string]any{"kty": "EC", "crv": "P-256", "x": encoding.EncodeToString(point[1:33]), "y": encoding.EncodeToString(point[33:])},
			func(message []byte) ([]byte, error) {
				sum := sha256.Sum256(message)
				der, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
				if err != nil {
					return nil, err
				}
				// RFC 7518, section 3.4: two numbers of 32 bytes.
				var pair struct{ R, S *big.Int }
				if rest, err := asn1.Unmarshal(der, &pair); err != nil || len(rest) > 0 || pair.R.Sign() <= 0 || pair.S.Sign() <= 0 || pair.R.BitLen() > 256 || pair.S.BitLen() > 256 {
					return nil, errors.New("client: the key has made no ECDSA signature")
				}
				out := make([]byte, 64)
				pair.R.FillBytes(out[:32])
				pair.S.FillBytes(out[32:])
				return out, nil
			},
		}, nil
	case ed25519.PublicKey:
		return &signer{
			"EdDSA",
			map[string]any{"kty": "OKP", "crv": "Ed25519", "x": encoding.EncodeToString(public)},
			func(message []byte) ([]byte, error) { return key.Sign(rand.Reader, message, crypto.Hash(0)) },
		}, nil
	}
	return nil, errKey
}

// jwt signs claims (RFC 7515, section 7.1).
func (s *signer) jwt(head, claims map[string]any) (string, error) {
	head["alg"] = s.alg
	message := encoding.EncodeToString(asJSON(head)) + "." + encoding.EncodeToString(asJSON(claims))
	signature, err := s.sign([]byte(message))
	if err != nil {
		return "", err
	}
	return message + "." + encoding.EncodeToString(signature), nil
}

// An object is a JSON object. Names are compared with their case, and none
// comes twice: two readers of one document must not see different ones.
type object map[string]json.RawMessage

var errJSON = errors.New("this is not one JSON object, each of whose names comes once")

func parseObject(b []byte) (object, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errJSON
	}
	o := object{}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if _, twice := o[name]; err != nil || !ok || twice {
			return nil, errJSON
		}
		var v json.RawMessage
		if d.Decode(&v) != nil {
			return nil, errJSON
		}
		o[name] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, errJSON
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errJSON
	}
	return o, nil
}

// text is a member that is a string, or "".
func (o object) text(name string) string {
	var s string
	_ = json.Unmarshal(o[name], &s) // anything else is none
	return s
}

// texts is a member that is a string or an array of them (RFC 7519, section 4.1.3).
func (o object) texts(name string) []string {
	var all []string
	if s := o.text(name); s != "" {
		return []string{s}
	}
	_ = json.Unmarshal(o[name], &all)
	return all
}

// instant is a member that is a NumericDate (RFC 7519, section 2). The zero time
// if there is none; not ok if there is one that is no time.
func (o object) instant(name string) (t time.Time, ok bool) {
	raw, there := o[name]
	if !there {
		return t, true
	}
	var n float64
	if err := json.Unmarshal(raw, &n); err != nil || n <= 0 || n > 1<<40 {
		return t, false
	}
	return time.Unix(int64(n), 0), true
}

// A publicKey is one that signatures are checked with.
type publicKey struct {
	id         string
	alg        string // the one that it is for, or ""
	key        crypto.PublicKey
	thumbprint string // RFC 7638
}

// parseKey reads a public JWK (RFC 7517, section 4; RFC 7518, section 6.2;
// RFC 8037, section 2) of a kind that is accepted here.
func parseKey(raw json.RawMessage) (*publicKey, error) {
	o, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	_, private := o["d"]
	if use := o.text("use"); private || use != "" && use != "sig" {
		return nil, errKey
	}
	k := &publicKey{id: o.text("kid"), alg: o.text("alg")}
	x, err := encoding.DecodeString(o.text("x"))
	if err != nil || len(x) != 32 {
		return nil, errKey
	}
	var canonical string
	switch kind := o.text("kty") + " " + o.text("crv"); kind {
	case "EC P-256":
		y, err := encoding.DecodeString(o.text("y"))
		if err != nil || len(y) != 32 {
			return nil, errKey
		}
		if k.key, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...)); err != nil {
			return nil, errKey
		}
		canonical = fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, encoding.EncodeToString(x), encoding.EncodeToString(y))
	case "OKP Ed25519":
		k.key = ed25519.PublicKey(x)
		canonical = fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":"%s"}`, encoding.EncodeToString(x))
	default:
		return nil, errKey
	}
	sum := sha256.Sum256([]byte(canonical))
	k.thumbprint = encoding.EncodeToString(sum[:])
	return k, nil
}

// verifies reports whether a signature is the key's, by one of the algorithms
// that are accepted: ES256, and EdDSA, which RFC 9864 calls Ed25519.
func (k *publicKey) verifies(alg string, message, signature []byte) bool {
	name := alg
	if name == "Ed25519" {
		name = "EdDSA"
	}
	if its := k.alg; its != "" && its != alg && its != name {
		return false
	}
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return name == "ES256" && len(signature) == 64 &&
			ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	case ed25519.PublicKey:
		return name == "EdDSA" && ed25519.Verify(key, message, signature)
	}
	return false
}

// A jws is a token whose form is in order. Nothing that it says is known to be
// true before its signature is checked.
type jws struct {
	head, claims       object
	message, signature []byte
}

// maxToken bounds a token, in bytes.
const maxToken = 16 << 10

// parseJWS looks at the form of a token in compact serialisation (RFC 7515,
// section 7.1). What a header may have that changes how it is to be read is
// refused, and so is a key, or the address of one, that a token brings along
// (RFC 8725, section 3.10), except where the key is what is being proved.
func parseJWS(raw string, withKey bool) (*jws, error) {
	parts := strings.Split(raw, ".")
	if len(raw) > maxToken || len(parts) != 3 || strings.ContainsAny(raw, "\r\n") {
		return nil, refused("The token does not have three parts, or is longer than %d bytes.", maxToken)
	}
	var decoded [3][]byte
	for i, p := range parts {
		var err error
		if decoded[i], err = encoding.DecodeString(p); err != nil {
			return nil, refused("A part of the token is not base64url.")
		}
	}
	t := &jws{message: []byte(raw[:len(parts[0])+1+len(parts[1])]), signature: decoded[2]}
	var err, inner error
	t.head, err = parseObject(decoded[0])
	t.claims, inner = parseObject(decoded[1])
	if err != nil || inner != nil {
		return nil, refused("A part of the token is not a JSON object, each of whose names comes once.")
	}
	for _, name := range []string{"crit", "b64", "jku", "x5u", "enc", "zip", "jwk"} {
		if _, ok := t.head[name]; ok && !(name == "jwk" && withKey) {
			return nil, refused("The header of the token has a member that is not accepted.")
		}
	}
	return t, nil
}
