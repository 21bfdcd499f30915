package jose

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestPoint: a key that is a point on P-256 and nothing else is the same one that it
// is with a word beside it, which go-jose reads, and refused where that one is.
func TestPoint(t *testing.T) {
	of := func(x, y, beside string) string {
		return `{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `"` + beside + `}`
	}
	const beside = `,"use":"sig"`
	read := func(jwk string) *Key {
		t.Helper()
		members, err := parseObject([]byte(jwk), keyMembers)
		if err != nil {
			t.Fatal(err)
		}
		return point(members)
	}
	encode := base64.RawURLEncoding.EncodeToString
	for range 64 {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		b, err := private.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		x, y := encode(b[1:33]), encode(b[33:])
		escaped := strings.ReplaceAll(x, x[:1], fmt.Sprintf(`\u%04x`, x[0]))
		slow := mustKey(t, of(x, y, beside))
		for _, jwk := range []string{
			of(x, y, ""),
			of(escaped, y, ""),
			`{ "y" : "` + y + `", "x" : "` + x + `", "crv":"P-256" , "kty":"EC" }`,
		} {
			k := read(jwk)
			if k == nil {
				t.Fatalf("%s is no point", jwk)
			}
			if k.Thumbprint != slow.Thumbprint || !private.PublicKey.Equal(k.Public) || !k.fits(es256) || k.fits(es384) || k.ID != "" || k.Algorithm() != "" {
				t.Errorf("%s is read as %+v, and with a word beside it as %+v", jwk, k, slow)
			}
			written, err := k.MarshalJSON()
			if again := mustKey(t, string(written)); err != nil || again.Thumbprint != slow.Thumbprint {
				t.Errorf("%s is written as %s, %v", jwk, written, err)
			}
		}
		for name, bad := range map[string][2]string{
			"a point that is not on the curve": {x, encode(append(slices.Clone(b[33:64]), b[64]^1))},
			"coordinates the wrong way round":  {y, x},
			"a short coordinate":               {encode(b[2:33]), y},
			"a long coordinate":                {encode(append([]byte{0}, b[1:33]...)), y},
			"another spelling":                 {x + "=", y},
			"bits that are over":               {x[:42] + string(last(x[42])), y},
			"zero":                             {encode(make([]byte, 32)), encode(make([]byte, 32))},
			"nothing":                          {"", ""},
		} {
			if k := read(of(bad[0], bad[1], "")); k != nil {
				t.Errorf("%s is taken for a point", name)
			}
			for _, word := range []string{"", beside} {
				if k, err := ParseKey([]byte(of(bad[0], bad[1], word))); !errors.Is(err, ErrKey) {
					t.Errorf("%s with %q beside it: %v, %v, want ErrKey", name, word, k, err)
				}
			}
		}
		for name, other := range map[string]string{
			"a private key":   of(x, y, `,"d":"`+x+`"`),
			"another type":    strings.Replace(of(x, y, ""), `"EC"`, `"OKP"`, 1),
			"another curve":   strings.Replace(of(x, y, ""), "P-256", "P-384", 1),
			"a name too many": of(x, y, `,"kid":"1"`),
			"a name too few":  `{"kty":"EC","crv":"P-256","x":"` + x + `"}`,
			"no string":       `{"kty":"EC","crv":"P-256","x":["` + x + `"],"y":"` + y + `"}`,
		} {
			if k := read(other); k != nil {
				t.Errorf("%s is taken for a point that says nothing else", name)
			}
		}
	}
}

// last is the character of base64url that stands for the same four bits, and for one
// of those that are over.
func last(c byte) byte {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return digits[strings.IndexByte(digits, c)|1]
}
