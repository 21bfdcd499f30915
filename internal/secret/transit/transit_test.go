package transit_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret/transit"
)

var (
	ann = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
)

func setup(t testing.TB, d *db.DB, decider guard.Decider, o transit.Options) (*transit.Transit, *seal.Sealer) {
	t.Helper()
	s, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
	if err != nil {
		t.Fatal(err)
	}
	s.Hold(transit.Holding)
	return transit.New(guardtest.New(t, d, decider), s, o), s
}

func created(t testing.TB, x *transit.Transit, name string, typ transit.Type, spec transit.Spec) transit.Key {
	t.Helper()
	k, err := x.Create(t.Context(), ann, "", name, typ, spec)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func one(t testing.TB, out []transit.Result, err error) transit.Result {
	t.Helper()
	if err == nil {
		err = out[0].Err
	}
	if err != nil {
		t.Fatal(err)
	}
	return out[0]
}

// TestRoundTrip: every type that encrypts, with versions, rewrapping and the oldest
// version that decrypts (V33).
func TestRoundTrip(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x, _ := setup(t, d, guardtest.AllowAll, transit.Options{FIPS: func() bool { return false }})
		for _, typ := range []transit.Type{transit.AES128, transit.AES256, transit.ChaCha20, transit.RSA2048} {
			name := string(typ)
			created(t, x, name, typ, transit.Spec{})
			seal := func(version int64) string {
				t.Helper()
				out, err := x.Encrypt(t.Context(), ann, "", name, []transit.Item{{Plaintext: []byte("the plan"), Version: version}})
				return one(t, out, err).Text
			}
			open := func(text string) (string, error) {
				t.Helper()
				out, err := x.Decrypt(t.Context(), ann, "", name, []transit.Item{{Ciphertext: text}})
				if err != nil {
					t.Fatal(err)
				}
				return string(out[0].Plaintext.Reveal()), out[0].Err
			}
			first := seal(0)
			if !strings.HasPrefix(first, "vault:v1:") || seal(0) == first {
				t.Errorf("%s: sealed as %s, and the same twice: %v", typ, first, seal(0) == first)
			}
			if _, err := x.Rotate(t.Context(), ann, "", name); err != nil {
				t.Fatal(err)
			}
			second := seal(0)
			if !strings.HasPrefix(second, "vault:v2:") || !strings.HasPrefix(seal(1), "vault:v1:") {
				t.Errorf("%s: after a rotation sealed as %s", typ, second)
			}
			for _, text := range []string{first, second} {
				if got, err := open(text); err != nil || got != "the plan" {
					t.Errorf("%s: %s opens as %q, %v", typ, text, got, err)
				}
			}
			out, err := x.Rewrap(t.Context(), ann, "", name, []transit.Item{{Ciphertext: first}})
			if again := one(t, out, err).Text; !strings.HasPrefix(again, "vault:v2:") {
				t.Errorf("%s: rewrapped as %s", typ, again)
			}
			two := int64(2)
			if _, err := x.Configure(t.Context(), ann, "", name, transit.Change{MinDecryption: &two}); err != nil {
				t.Fatal(err)
			}
			if _, err := open(first); !errors.Is(err, transit.ErrVersion) {
				t.Errorf("%s: a version below the oldest opens: %v, want ErrVersion", typ, err)
			}
			for what, text := range map[string]string{
				"changed": second[:len(second)-6] + "AAAAAA", "of another form": "v2:abc", "of version 9": "vault:v9:" + second[9:], "no base64": "vault:v2:!!!", "empty": "vault:v2:",
			} {
				if _, err := open(text); estover.KindOf(err) != estover.Invalid {
					t.Errorf("%s: a ciphertext that is %s: %v, want Invalid", typ, what, err)
				}
			}
			if _, err := x.Decrypt(t.Context(), eve, "", name, []transit.Item{{Ciphertext: second}}); !errors.Is(err, transit.ErrNotFound) {
				t.Errorf("%s: opened by another tenant: %v, want ErrNotFound", typ, err)
			}
			if _, err := x.Decrypt(t.Context(), ann, "mnt_other", name, []transit.Item{{Ciphertext: second}}); !errors.Is(err, transit.ErrNotFound) {
				t.Errorf("%s: opened in another mount: %v, want ErrNotFound", typ, err)
			}
		}
	})
}

// TestForm: what is sealed is nonce, ciphertext and tag under the key itself, so that
// an imported key opens what another Vault sealed (V33).
func TestForm(t *testing.T) {
	d := dbtest.Open(t)
	x, _ := setup(t, d, guardtest.AllowAll, transit.Options{})
	created(t, x, "k", transit.AES256, transit.Spec{Exportable: true})
	keys, err := x.Export(t.Context(), ann, "", "k", transit.EncryptionKey, 0)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(string(keys[1].Reveal()))
	if err != nil || len(raw) != 32 {
		t.Fatalf("the key has %d bytes, %v", len(raw), err)
	}
	block, _ := aes.NewCipher(raw)
	gcm, _ := cipher.NewGCM(block)
	nonce := make([]byte, 12)
	text := "vault:v1:" + base64.StdEncoding.EncodeToString(gcm.Seal(nonce, nonce, []byte("elsewhere"), []byte("aad")))
	out, err := x.Decrypt(t.Context(), ann, "", "k", []transit.Item{{Ciphertext: text, Data: []byte("aad")}})
	if got := one(t, out, err); string(got.Plaintext.Reveal()) != "elsewhere" {
		t.Errorf("what others sealed opens as %q", got.Plaintext.Reveal())
	}
	out, err = x.Decrypt(t.Context(), ann, "", "k", []transit.Item{{Ciphertext: text, Data: []byte("other")}})
	if err != nil || !errors.Is(out[0].Err, transit.ErrCiphertext) {
		t.Errorf("with other associated data: %v, %v; want ErrCiphertext", err, out[0].Err)
	}

	// The same key, wrapped and imported under another name, opens it too.
	wrapped := wrap(t, x, raw)
	if _, err := x.Import(t.Context(), ann, "", "in", transit.AES256, transit.Spec{}, wrapped, "SHA256", false); err != nil {
		t.Fatal(err)
	}
	out, err = x.Decrypt(t.Context(), ann, "", "in", []transit.Item{{Ciphertext: text, Data: []byte("aad")}})
	if got := one(t, out, err); string(got.Plaintext.Reveal()) != "elsewhere" {
		t.Errorf("with the imported key: %q", got.Plaintext.Reveal())
	}
	if _, err := x.Rotate(t.Context(), ann, "", "in"); !errors.Is(err, transit.ErrNotAllowed) {
		t.Errorf("rotating an imported key: %v, want ErrNotAllowed", err)
	}
	if k, err := x.Import(t.Context(), ann, "", "in", transit.AES256, transit.Spec{}, wrap(t, x, bytes.Repeat([]byte{7}, 32)), "SHA256", true); err != nil || k.Latest != 2 {
		t.Errorf("importing a second version: %+v, %v", k, err)
	}
	if _, err := x.Import(t.Context(), ann, "", "short", transit.AES256, transit.Spec{}, wrap(t, x, raw[:20]), "SHA256", false); !errors.Is(err, transit.ErrInvalid) {
		t.Errorf("a key of 20 bytes: %v, want ErrInvalid", err)
	}
	signing, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, _ := x509.MarshalPKCS8PrivateKey(signing)
	if _, err := x.Import(t.Context(), ann, "", "ec", transit.ECDSAP256, transit.Spec{}, wrap(t, x, der), "SHA256", false); err != nil {
		t.Errorf("a P-256 key: %v", err)
	}
	if _, err := x.Import(t.Context(), ann, "", "ec2", transit.ECDSAP384, transit.Spec{}, wrap(t, x, der), "SHA256", false); !errors.Is(err, transit.ErrInvalid) {
		t.Errorf("a P-256 key as P-384: %v, want ErrInvalid", err)
	}
	wrapped[len(wrapped)-1] ^= 1
	if _, err := x.Import(t.Context(), ann, "", "broken", transit.AES256, transit.Spec{}, wrapped, "SHA256", false); !errors.Is(err, transit.ErrInvalid) {
		t.Errorf("a changed one: %v, want ErrInvalid", err)
	}
}

// wrap is how a client wraps a key: RSA-OAEP, then RFC 5649.
func wrap(t testing.TB, x *transit.Transit, key []byte) []byte {
	t.Helper()
	text, err := x.WrappingKey(t.Context(), ann, "")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(text))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	kek := make([]byte, 32)
	_, _ = rand.Read(kek)
	out, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), kek, nil)
	if err != nil {
		t.Fatal(err)
	}
	return append(out, keyWrap(kek, key)...)
}

func keyWrap(kek, key []byte) []byte {
	a := binary.BigEndian.AppendUint32([]byte{0xa6, 0x59, 0x59, 0xa6}, uint32(len(key)))
	padded := append(bytes.Clone(key), make([]byte, (8-len(key)%8)%8)...)
	block, _ := aes.NewCipher(kek)
	n := len(padded) / 8
	if n == 1 {
		out := append(a, padded...)
		block.Encrypt(out, out)
		return out
	}
	for j := range 6 {
		for i := 1; i <= n; i++ {
			b := append(bytes.Clone(a), padded[8*(i-1):8*i]...)
			block.Encrypt(b, b)
			binary.BigEndian.PutUint64(a, binary.BigEndian.Uint64(b)^uint64(n*j+i))
			copy(padded[8*(i-1):], b[8:])
		}
	}
	return append(a, padded...)
}

// TestSign: signatures that the standard library verifies, in every form.
func TestSign(t *testing.T) {
	d := dbtest.Open(t)
	x, _ := setup(t, d, guardtest.AllowAll, transit.Options{})
	input := []byte("pay 5")
	for _, c := range []struct {
		typ transit.Type
		how transit.How
	}{
		{transit.ECDSAP256, transit.How{}},
		{transit.ECDSAP256, transit.How{Encoding: "jws"}},
		{transit.ECDSAP384, transit.How{Hash: "sha2-384"}},
		{transit.ECDSAP521, transit.How{Hash: "sha3-512"}},
		{transit.Ed25519, transit.How{}},
		{transit.RSA2048, transit.How{}},
		{transit.RSA2048, transit.How{RSA: "pkcs1v15"}},
		{transit.RSA2048, transit.How{Salt: "hash"}},
	} {
		name := string(c.typ)
		if there, err := x.Exists(t.Context(), "acme", "", name); err != nil {
			t.Fatal(err)
		} else if !there {
			created(t, x, name, c.typ, transit.Spec{})
		}
		out, err := x.Sign(t.Context(), ann, "", name, c.how, []transit.Item{{Plaintext: input}})
		signature := one(t, out, err).Text
		for text, want := range map[string]bool{"pay 5": true, "pay 6": false} {
			out, err := x.Verify(t.Context(), ann, "", name, c.how, []transit.Item{{Plaintext: []byte(text), Ciphertext: signature}}, false)
			if got := one(t, out, err); got.Valid != want {
				t.Errorf("%s %+v: %q holds: %v, want %v", c.typ, c.how, text, got.Valid, want)
			}
		}
	}
	k, err := x.Get(t.Context(), ann, "", string(transit.ECDSAP256))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(k.Versions[0].PublicKey))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(input)
	out, err := x.Sign(t.Context(), ann, "", k.Name, transit.How{Prehashed: true}, []transit.Item{{Plaintext: digest[:]}})
	der, err2 := base64.StdEncoding.DecodeString(strings.TrimPrefix(one(t, out, err).Text, "vault:v1:"))
	if err2 != nil || !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest[:], der) {
		t.Errorf("a signature of a digest does not hold elsewhere: %v", err2)
	}
	created(t, x, "sym", transit.AES256, transit.Spec{})
	if _, err := x.Sign(t.Context(), ann, "", "sym", transit.How{}, []transit.Item{{Plaintext: input}}); !errors.Is(err, transit.ErrCannot) {
		t.Errorf("signing with AES: %v, want ErrCannot", err)
	}
	if _, err := x.Encrypt(t.Context(), ann, "", k.Name, []transit.Item{{Plaintext: input}}); !errors.Is(err, transit.ErrCannot) {
		t.Errorf("encrypting with ECDSA: %v, want ErrCannot", err)
	}
	// An HMAC, by a key of any type.
	created(t, x, "mac", transit.HMAC, transit.Spec{Exportable: true})
	out, err = x.HMAC(t.Context(), ann, "", "mac", transit.How{}, []transit.Item{{Plaintext: input}})
	sum := one(t, out, err).Text
	shown, err := x.Export(t.Context(), ann, "", "mac", transit.HMACKey, -1)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := base64.StdEncoding.DecodeString(string(shown[1].Reveal()))
	m := hmac.New(crypto.SHA256.New, key)
	m.Write(input)
	if want := "vault:v1:" + base64.StdEncoding.EncodeToString(m.Sum(nil)); sum != want {
		t.Errorf("the HMAC is %s, want %s", sum, want)
	}
	out, err = x.Verify(t.Context(), ann, "", "mac", transit.How{}, []transit.Item{{Plaintext: input, Ciphertext: sum}, {Plaintext: []byte("x"), Ciphertext: sum}}, true)
	if err != nil || !out[0].Valid || out[1].Valid {
		t.Errorf("verified %+v, %v", out, err)
	}
}

// TestDerived: each context has a key of its own, and a convergent key gives the same
// twice.
func TestDerived(t *testing.T) {
	d := dbtest.Open(t)
	x, _ := setup(t, d, guardtest.AllowAll, transit.Options{FIPS: func() bool { return false }})
	created(t, x, "d", transit.AES256, transit.Spec{Derived: true})
	created(t, x, "c", transit.ChaCha20, transit.Spec{Derived: true, Convergent: true})
	seal := func(name, context string) transit.Result {
		t.Helper()
		out, err := x.Encrypt(t.Context(), ann, "", name, []transit.Item{{Plaintext: []byte("x"), Context: []byte(context)}})
		if err != nil {
			t.Fatal(err)
		}
		return out[0]
	}
	for _, name := range []string{"d", "c"} {
		if r := seal(name, ""); !errors.Is(r.Err, transit.ErrInvalid) {
			t.Errorf("%s without a context: %v, want ErrInvalid", name, r.Err)
		}
		a := seal(name, "a").Text
		for context, ok := range map[string]bool{"a": true, "b": false} {
			out, err := x.Decrypt(t.Context(), ann, "", name, []transit.Item{{Ciphertext: a, Context: []byte(context)}})
			if err != nil || (out[0].Err == nil) != ok {
				t.Errorf("%s in the context %s: %v, %v; want %v", name, context, err, out[0].Err, ok)
			}
		}
		if same := seal(name, "a").Text == a; same != (name == "c") {
			t.Errorf("%s gives the same twice: %v", name, same)
		}
		if seal(name, "b").Text == a {
			t.Errorf("%s gives the same in two contexts", name)
		}
	}
}

// TestSettings: what a key's settings forbid does not happen.
func TestSettings(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x, _ := setup(t, d, guardtest.AllowAll, transit.Options{FIPS: func() bool { return true }})
		clock := dbtest.NewClock(d)
		if _, err := x.Create(t.Context(), ann, "", "no", transit.ChaCha20, transit.Spec{}); !errors.Is(err, transit.ErrCannot) {
			t.Errorf("ChaCha20 in FIPS mode: %v, want ErrCannot", err)
		}
		created(t, x, "k", transit.AES256, transit.Spec{AutoRotate: 3600})
		if _, err := x.Create(t.Context(), ann, "", "k", transit.AES256, transit.Spec{}); !errors.Is(err, transit.ErrExists) {
			t.Errorf("made twice: %v, want ErrExists", err)
		}
		if _, err := x.Export(t.Context(), ann, "", "k", transit.EncryptionKey, 0); !errors.Is(err, transit.ErrNotAllowed) {
			t.Errorf("exported: %v, want ErrNotAllowed", err)
		}
		for _, name := range []string{"", "a/b", "a b", "-", strings.Repeat("x", 129)} {
			if _, err := x.Create(t.Context(), ann, "", name, transit.AES256, transit.Spec{}); !errors.Is(err, transit.ErrInvalid) {
				t.Errorf("a key named %q: %v, want ErrInvalid", name, err)
			}
		}
		for _, size := range []int{-1, 31, 513, math.MaxInt} { // none of them is made first
			if _, err := x.Create(t.Context(), ann, "", "long", transit.HMAC, transit.Spec{KeySize: size}); !errors.Is(err, transit.ErrInvalid) {
				t.Errorf("a key of %d bytes: %v, want ErrInvalid", size, err)
			}
		}
		if err := x.Remove(t.Context(), ann, "", "k"); !errors.Is(err, transit.ErrNotAllowed) {
			t.Errorf("removed: %v, want ErrNotAllowed", err)
		}
		if n, err := x.RotateDue(t.Context()); n != 0 || err != nil {
			t.Errorf("rotated before its time: %d, %v", n, err)
		}
		clock.Advance(time.Hour + time.Second)
		if n, err := x.RotateDue(t.Context()); n != 1 || err != nil {
			t.Errorf("rotated at its time: %d, %v; want 1", n, err)
		}
		yes, no, two := true, false, int64(2)
		for what, c := range map[string]struct {
			change transit.Change
			want   error
		}{
			"a version that is not there":      {transit.Change{MinDecryption: ptr(int64(3))}, transit.ErrInvalid},
			"more that encrypts than decrypts": {transit.Change{MinDecryption: &two, MinEncryption: ptr(int64(1))}, transit.ErrInvalid},
			"half a minute":                    {transit.Change{AutoRotate: ptr(int64(30))}, transit.ErrInvalid},
			"an action of nothing":             {transit.Change{Action: ptr("x")}, transit.ErrInvalid},
		} {
			if _, err := x.Configure(t.Context(), ann, "", "k", c.change); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", what, err, c.want)
			}
		}
		if _, err := x.Trim(t.Context(), ann, "", "k", 2); !errors.Is(err, transit.ErrNotAllowed) {
			t.Errorf("trimmed what may encrypt: %v, want ErrNotAllowed", err)
		}
		if _, err := x.Configure(t.Context(), ann, "", "k", transit.Change{MinDecryption: &two, MinEncryption: &two, DeletionAllowed: &yes, Exportable: &yes}); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Configure(t.Context(), ann, "", "k", transit.Change{Exportable: &no}); !errors.Is(err, transit.ErrNotAllowed) {
			t.Errorf("no longer exportable: %v, want ErrNotAllowed", err)
		}
		if k, err := x.Trim(t.Context(), ann, "", "k", 2); err != nil || len(k.Versions) != 1 || k.Available != 2 {
			t.Errorf("trimmed: %+v, %v", k, err)
		}
		one := int64(1)
		if _, err := x.Configure(t.Context(), ann, "", "k", transit.Change{MinDecryption: &one}); !errors.Is(err, transit.ErrInvalid) {
			t.Errorf("back to a version that is gone: %v, want ErrInvalid", err)
		}
		if err := x.Remove(t.Context(), ann, "", "k"); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, "transit_version"); n != 0 {
			t.Errorf("%d versions are left of a removed key", n)
		}
		if _, err := x.Get(t.Context(), ann, "", "k"); !errors.Is(err, transit.ErrNotFound) {
			t.Errorf("a removed key: %v, want ErrNotFound", err)
		}
	})
}

func ptr[T any](v T) *T { return &v }

func count(t testing.TB, d *db.DB, table string) (n int) {
	t.Helper()
	err := d.View(t.Context(), "acme", func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select count(*) from "+table).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestBatch: an item that fails leaves the others be; and a data key opens.
func TestBatch(t *testing.T) {
	d := dbtest.Open(t)
	x, _ := setup(t, d, guardtest.AllowAll, transit.Options{})
	created(t, x, "k", transit.AES256, transit.Spec{})
	key, err := x.DataKey(t.Context(), ann, "", "k", 256, true, transit.Item{})
	if err != nil || len(key.Plaintext.Reveal()) != 32 {
		t.Fatalf("%v, %d bytes", err, len(key.Plaintext.Reveal()))
	}
	out, err := x.Decrypt(t.Context(), ann, "", "k", []transit.Item{{Ciphertext: "nonsense"}, {Ciphertext: key.Text}})
	if err != nil || out[0].Err == nil || !bytes.Equal(out[1].Plaintext.Reveal(), key.Plaintext.Reveal()) {
		t.Errorf("the batch gives %+v, %v", out, err)
	}
	if only, err := x.DataKey(t.Context(), ann, "", "k", 512, false, transit.Item{}); err != nil || !only.Plaintext.Empty() {
		t.Errorf("a wrapped one has a plaintext: %v, %v", !only.Plaintext.Empty(), err)
	}
	if _, err := x.Encrypt(t.Context(), ann, "", "k", make([]transit.Item, transit.MaxBatch+1)); !errors.Is(err, transit.ErrInvalid) {
		t.Errorf("too many: %v, want ErrInvalid", err)
	}
}

// TestRotateRace: 64 goroutines rotate a key. Each version is there once, and what was
// encrypted meanwhile opens.
func TestRotateRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x, _ := setup(t, d, guardtest.AllowAll, transit.Options{})
		created(t, x, "k", transit.AES256, transit.Spec{})
		var all sync.WaitGroup
		var mu sync.Mutex
		rotated := int64(0)
		var sealed []string
		for i := range 64 {
			all.Go(func() {
				if i%2 == 0 {
					_, err := x.Rotate(context.Background(), ann, "", "k")
					switch {
					case err == nil:
						mu.Lock()
						rotated++
						mu.Unlock()
					case estover.KindOf(err) != estover.Conflict:
						t.Error(err)
					}
					return
				}
				out, err := x.Encrypt(context.Background(), ann, "", "k", []transit.Item{{Plaintext: []byte("x")}})
				if err != nil || out[0].Err != nil {
					t.Error(err, out)
					return
				}
				mu.Lock()
				sealed = append(sealed, out[0].Text)
				mu.Unlock()
			})
		}
		all.Wait()
		k, err := x.Get(t.Context(), ann, "", "k")
		if err != nil || k.Latest != 1+rotated || int64(len(k.Versions)) != k.Latest {
			t.Errorf("after %d rotations: %d, %d versions, %v", rotated, k.Latest, len(k.Versions), err)
		}
		for _, text := range sealed {
			out, err := x.Decrypt(t.Context(), ann, "", "k", []transit.Item{{Ciphertext: text}})
			if err != nil || out[0].Err != nil {
				t.Errorf("%s: %v, %v", text, err, out)
			}
		}
	})
}

// TestSealed: no key stands in the database, a resealed one still opens, and one that
// was moved does not (K1, K3, F14).
func TestSealed(t *testing.T) {
	d := dbtest.Open(t)
	x, s := setup(t, d, guardtest.AllowAll, transit.Options{})
	created(t, x, "k", transit.AES256, transit.Spec{Exportable: true})
	created(t, x, "other", transit.AES256, transit.Spec{})
	out, err := x.Encrypt(t.Context(), ann, "", "k", []transit.Item{{Plaintext: []byte("x")}})
	text := one(t, out, err).Text
	shown, err := x.Export(t.Context(), ann, "", "k", transit.EncryptionKey, 0)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := base64.StdEncoding.DecodeString(string(shown[1].Reveal()))
	var stored []byte
	err = d.View(t.Context(), "acme", func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select v.sealed from transit_version v join transit_key k on k.tenant_id = v.tenant_id and k.id = v.key_id where k.name = 'k'").Scan(&stored)
	})
	if err != nil || bytes.Contains(stored, raw) {
		t.Errorf("the key stands in the database as it is, or not at all: %v", err)
	}
	if err := s.RotateDEK(t.Context(), "acme", seal.Transit); err != nil {
		t.Fatal(err)
	}
	dbtest.NewClock(d).Advance(2 * time.Minute)
	if p, err := s.Rewrap(t.Context(), "acme"); err != nil || p.Resealed != 2 || len(p.Broken) != 0 {
		t.Errorf("resealed %+v, %v; want two", p, err)
	}
	y := transit.New(guardtest.New(t, d, guardtest.AllowAll), s, transit.Options{})
	got, err := y.Decrypt(t.Context(), ann, "", "k", []transit.Item{{Ciphertext: text}})
	if string(one(t, got, err).Plaintext.Reveal()) != "x" {
		t.Error("a resealed key does not open what it sealed")
	}
	err = d.Do(t.Context(), "acme", func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), "update transit_version set sealed = $2 where tenant_id = $1", tx.Tenant(), stored)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	z := transit.New(guardtest.New(t, d, guardtest.AllowAll), s, transit.Options{})
	if _, err := z.Encrypt(t.Context(), ann, "", "other", []transit.Item{{}}); !errors.Is(err, seal.ErrBroken) {
		t.Errorf("encrypted with the key of another: %v, want ErrBroken", err)
	}
}

// TestRefused: what policy refuses does not happen, and is told before whether there
// is such a key.
func TestRefused(t *testing.T) {
	d := dbtest.Open(t)
	x, s := setup(t, d, guardtest.AllowAll, transit.Options{})
	created(t, x, "k", transit.AES256, transit.Spec{})
	no := transit.New(guardtest.New(t, d, guardtest.DenyAll), s, transit.Options{})
	for _, name := range []string{"k", "nothing"} {
		_, err := no.Encrypt(t.Context(), ann, "", name, []transit.Item{{}})
		_, err2 := no.Decrypt(t.Context(), ann, "", name, []transit.Item{{}})
		_, err3 := no.Rotate(t.Context(), ann, "", name)
		// No key is made, and none opened, for who may not have it: that there is no
		// such type is not found out.
		_, err4 := no.Create(t.Context(), ann, "", name, "rsa-1", transit.Spec{})
		_, err5 := no.Import(t.Context(), ann, "", name, transit.RSA2048, transit.Spec{}, []byte("x"), "", false)
		_, err6 := no.Import(t.Context(), ann, "", name, transit.RSA2048, transit.Spec{}, []byte("x"), "", true)
		for _, err := range []error{err, err2, err3, err4, err5, err6} {
			if estover.KindOf(err) != estover.Denied {
				t.Errorf("%s: %v, want a refusal", name, err)
			}
		}
	}
}

// TestModel: random operations against a map of what opens.
func TestModel(t *testing.T) {
	d := dbtest.Open(t)
	x, _ := setup(t, d, guardtest.AllowAll, transit.Options{})
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		name := fmt.Sprintf("m%d", n)
		if _, err := x.Create(t.Context(), ann, "", name, transit.AES256, transit.Spec{}); err != nil {
			r.Fatal(err)
		}
		latest, oldest, encrypts, available := int64(1), int64(1), int64(0), int64(0)
		sealed := map[string]int64{}
		for range rapid.IntRange(1, 12).Draw(r, "steps") {
			switch rapid.SampledFrom([]string{"encrypt", "rotate", "oldest", "trim"}).Draw(r, "step") {
			case "encrypt":
				version := rapid.Int64Range(0, latest+1).Draw(r, "version")
				out, err := x.Encrypt(t.Context(), ann, "", name, []transit.Item{{Plaintext: []byte("x"), Version: version}})
				if err != nil {
					r.Fatal(err)
				}
				ok := version == 0 || version <= latest && version >= max(oldest, encrypts, available)
				if ok != (out[0].Err == nil) {
					r.Fatalf("encrypted with version %d of %d to %d: %v", version, oldest, latest, out[0].Err)
				}
				if ok {
					sealed[out[0].Text] = out[0].Version
				}
			case "rotate":
				if _, err := x.Rotate(t.Context(), ann, "", name); err != nil {
					r.Fatal(err)
				}
				latest++
			case "oldest":
				to := rapid.Int64Range(1, latest+1).Draw(r, "oldest")
				_, err := x.Configure(t.Context(), ann, "", name, transit.Change{MinDecryption: &to, MinEncryption: &to})
				ok := to >= max(1, available) && to <= latest
				if ok != (err == nil) {
					r.Fatalf("the oldest is %d of %d to %d: %v", to, available, latest, err)
				}
				if ok {
					oldest, encrypts = to, to
				}
			case "trim":
				to := rapid.Int64Range(1, latest).Draw(r, "to")
				_, err := x.Trim(t.Context(), ann, "", name, to)
				ok := encrypts > 0 && to >= max(1, available) && to <= oldest
				if ok != (err == nil) {
					r.Fatalf("trimmed to %d of %d: %v", to, oldest, err)
				}
				if ok {
					available = to
				}
			}
			for text, version := range sealed {
				out, err := x.Decrypt(t.Context(), ann, "", name, []transit.Item{{Ciphertext: text}})
				if err != nil {
					r.Fatal(err)
				}
				if ok := version >= oldest; ok != (out[0].Err == nil) {
					r.Fatalf("version %d opens with the oldest %d: %v", version, oldest, out[0].Err)
				}
			}
		}
	})
}
