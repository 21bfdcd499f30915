package jose_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"testing"

	"estover.dev/internal/jose"
)

// FuzzKeys: a key set of somebody else is read as what it publishes, without
// private keys, and the same when it is written again.
func FuzzKeys(f *testing.F) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	for id, public := range map[string]any{"ec": ec.Public(), "rsa": rs.Public(), "ed": ed} {
		key, err := jose.NewKey("", id, public)
		if err != nil {
			f.Fatal(err)
		}
		set, err := jose.NewKeys(key).MarshalJSON()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(set)
		f.Add(bytes.Replace(set, []byte(`{"keys":[`), []byte(`{"keys":[{"kty":"oct","k":"AAAA"},`), 1))
		f.Add(bytes.Replace(set, []byte(`"kty"`), []byte(`"d":"AAAA","kty"`), 1))
		f.Add(bytes.Replace(set, []byte(`"kid"`), []byte(`"KID"`), 1))
	}
	f.Add([]byte(`{"keys":[]}`))
	f.Add([]byte(`{"keys":[{}],"keys":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := jose.ParseKeys(text)
		if err != nil {
			return
		}
		out, err := set.MarshalJSON()
		if err != nil {
			t.Fatalf("%q cannot be written: %v", text, err)
		}
		for _, private := range []string{`"d":`, `"k":`, `"p":`, `"q":`} {
			if bytes.Contains(out, []byte(private)) {
				t.Errorf("%q has a private key in it: %s", text, out)
			}
		}
		again, err := jose.ParseKeys(out)
		if err != nil {
			t.Fatalf("%q was read, and what it is written as is not: %s (%v)", text, out, err)
		}
		if second, err := again.MarshalJSON(); err != nil || !bytes.Equal(out, second) {
			t.Errorf("%q is written %s, and then %s (%v)", text, out, second, err)
		}
	})
}
