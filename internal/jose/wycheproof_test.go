package jose

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// Wycheproof is a collection of what implementations of cryptography have got
// wrong. Its module declares its path in another spelling than the one that it is
// served under, so that no go.mod can require it; scripts/install fetches it.
const (
	wycheproofModule = "github.com/C2SP/wycheproof@v0.0.0-20250901140545-b51abcfb8daf"
	wycheproofSum    = "h1:5BKKVVVj676FUWirLcouEEL6GCYR9X0opkMlEUck8FY="
)

var wycheproof = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", wycheproofModule)
	cmd.Dir = os.TempDir() // no go.mod, and none that is written to
	out, err := cmd.Output()
	var got struct{ Dir, Sum, Error string }
	if json.Unmarshal(out, &got) == nil && got.Error != "" {
		return "", ErrKey.With("%s", got.Error)
	}
	switch {
	case err != nil:
		return "", err
	case got.Sum != wycheproofSum:
		return "", ErrKey.With("%s has the sum %s, not %s.", wycheproofModule, got.Sum, wycheproofSum)
	}
	return filepath.Join(got.Dir, "testvectors_v1"), nil
})

// vectors reads one file of the collection.
func vectors[Group any](t *testing.T, name string) []Group {
	t.Helper()
	dir, err := wycheproof()
	if err != nil {
		t.Fatalf("fetching %s: %v. Run scripts/install where the module can be had.", wycheproofModule, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		TestGroups []Group `json:"testGroups"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatalf("reading %s: %v", name, err)
	}
	return file.TestGroups
}

// A declined says which of the signatures that are right no token has here.
type declined struct {
	from, to int
	why      string
}

func find(list []declined, id int) string {
	i := slices.IndexFunc(list, func(d declined) bool { return d.from <= id && id <= d.to })
	if i < 0 {
		return ""
	}
	return list[i].why
}

// A compactGroup is some tokens with the key, or the set of keys, that they are
// checked with.
type compactGroup struct {
	Comment         string
	Public, Private json.RawMessage
	Tests           []struct {
		ID      int `json:"tcId"`
		Comment string
		JWS     any // some are no strings at all
		Result  string
	}
}

// holdTokens holds tokens against the form, the key and the signature. What they
// say is no token's, and is not looked at. The count is of the tokens whose
// signature was found right.
func holdTokens(t *testing.T, name string, read func(json.RawMessage) (*Keys, error), refused []declined) (right int) {
	t.Helper()
	kind := kinds[JWTBearer]
	for _, g := range vectors[compactGroup](t, name) {
		public := g.Public
		if public == nil {
			public = g.Private // of a shared secret there is no public half
		}
		keys, keyErr := read(public)
		for _, v := range g.Tests {
			token, _ := v.JWS.(string)
			err := keyErr
			var p *parsed
			if err == nil {
				p, err = parse(token)
			}
			if err == nil && !kind.accepted(p.header.Algorithm, kind.listed) {
				err = ErrInvalid
			}
			if err == nil {
				_, err = p.signer(JWTBearer, kind, keys)
			}
			why := find(refused, v.ID)
			switch wanted := v.Result == "valid" && why == ""; {
			case v.Result != "valid" && why != "":
				t.Errorf("%s, %d: listed as a right one that is refused, and it is %s", name, v.ID, v.Result)
			case wanted && err != nil:
				t.Errorf("%s, %d (%s, %s): %v, want its signature to be right", name, v.ID, g.Comment, v.Comment, err)
			case !wanted && err == nil:
				t.Errorf("%s, %d (%s, %s): accepted, want it refused: it is %s %s", name, v.ID, g.Comment, v.Comment, v.Result, why)
			case wanted:
				right++
			}
		}
	}
	return right
}

// Rules A6 and A15: the 401 tokens of Wycheproof, among them those with a key of
// another kind, the public key as a secret, changed padding and unused bits.
func TestWycheproofTokens(t *testing.T) {
	const (
		shared = "by a shared secret"
		pss    = "by RSA-PSS, of whose salt the library takes any length"
		hashes = "by RSA with a hash that no registry here offers"
		p521   = "by a key on P-521, which names an algorithm that there is not"
	)
	right := holdTokens(t, "json_web_signature_test.json", func(b json.RawMessage) (*Keys, error) {
		k, err := ParseKey(b)
		if err != nil {
			return nil, err
		}
		return NewKeys(k), nil
	}, []declined{
		{1, 1, shared},
		{259, 259, "over nothing, which are no claims"},
		{264, 267, hashes}, // RS384
		{268, 271, hashes}, // RS512
		{272, 275, pss},
		{287, 288, pss},
		{320, 323, pss},
		{325, 328, pss},
		{346, 346, pss},
		{347, 347, p521},
		{348, 348, shared},
		{350, 350, pss},
		{351, 351, p521},
		{352, 352, shared},
		{357, 359, shared},
		{372, 373, "with a character that is not in base64url, and by a shared secret"},
		{376, 377, shared},
	})
	if want := 9; right != want {
		t.Errorf("%d signatures are right, want %d", right, want)
	}
}

// The 26 keys and sets of keys of Wycheproof: two kinds in one set, one id twice,
// short and weak keys, points that are not on the curve, keys for something else.
func TestWycheproofKeys(t *testing.T) {
	right := holdTokens(t, "json_web_key_test.json", func(b json.RawMessage) (*Keys, error) { return ParseKeys(b) }, []declined{
		{2, 2, "in a set of shared secrets"},
		{13, 15, "by a shared secret"},
	})
	if want := 1; right != want {
		t.Errorf("%d signatures are right, want %d", right, want)
	}
}

// A rawGroup is some signatures that are in no token, with the key of all of them.
type rawGroup struct {
	PublicKeyDer string
	Tests        []struct {
		ID       int `json:"tcId"`
		Comment  string
		Msg, Sig string
		Result   string
	}
}

// The signatures of Wycheproof under each algorithm that a token may have, in the
// form that a token has them in: numbers that are zero, too large, too long or
// negative, curve points at the edge of the arithmetic, and paddings of RSA.
func TestWycheproofSignatures(t *testing.T) {
	for _, f := range []struct {
		name, alg string
		tests     int
	}{
		{"ecdsa_secp256r1_sha256_p1363_test.json", es256, 252},
		{"ecdsa_secp256r1_webcrypto_test.json", es256, 252},
		{"ecdsa_secp384r1_sha384_p1363_test.json", es384, 270},
		{"ecdsa_secp384r1_webcrypto_test.json", es384, 270},
		{"ed25519_test.json", edDSA, 150},
		{"ed25519_test.json", ed25519, 150},
		{"rsa_signature_2048_sha256_test.json", rs256, 259},
		{"rsa_signature_3072_sha256_test.json", rs256, 259},
		{"rsa_signature_4096_sha256_test.json", rs256, 258},
		{"rsa_signature_8192_sha256_test.json", rs256, 258},
	} {
		t.Run(f.name+" as "+f.alg, func(t *testing.T) {
			n := 0
			for _, g := range vectors[rawGroup](t, f.name) {
				der, err := hex.DecodeString(g.PublicKeyDer)
				if err != nil {
					t.Fatal(err)
				}
				public, err := x509.ParsePKIXPublicKey(der)
				if err != nil {
					t.Fatalf("reading a key: %v", err)
				}
				key, err := NewKey("", "", public)
				if err != nil {
					t.Fatalf("a key: %v", err)
				}
				for _, v := range g.Tests {
					n++
					msg, err := hex.DecodeString(v.Msg)
					if err != nil {
						t.Fatal(err)
					}
					sig, err := hex.DecodeString(v.Sig)
					if err != nil {
						t.Fatal(err)
					}
					// The one acceptable signature of each RSA key leaves out the
					// NULL behind the name of the hash, which no signer of tokens does.
					if v.Result == "acceptable" && v.Comment != "Missing NULL in the ASN encoding" {
						t.Errorf("%d (%s) is acceptable, and nobody has said whether it is accepted", v.ID, v.Comment)
					}
					if got, want := key.verifies(f.alg, string(msg), sig), v.Result == "valid"; got != want {
						t.Errorf("%d (%s): %t, want %t, for it is %s", v.ID, v.Comment, got, want, v.Result)
					}
				}
			}
			if n != f.tests {
				t.Errorf("there are %d signatures, want %d", n, f.tests)
			}
		})
	}
}
