package transit_test

import (
	"crypto/fips140"
	"errors"
	"testing"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret/transit"
)

// TestFIPS: what FIPS 140 does not approve is refused where that holds, also of keys
// that were made before, and everything else is done (K7). It is run in each mode.
func TestFIPS(t *testing.T) {
	d := dbtest.Open(t)
	x, _ := setup(t, d, guardtest.AllowAll, transit.Options{})
	seal := func(name string) (transit.Result, error) {
		t.Helper()
		out, err := x.Encrypt(t.Context(), ann, "", name, []transit.Item{{Plaintext: []byte("the plan"), Context: []byte("a context")}})
		if err != nil {
			return transit.Result{}, err
		}
		return out[0], out[0].Err
	}
	opens := func(name, text string) {
		t.Helper()
		out, err := x.Decrypt(t.Context(), ann, "", name, []transit.Item{{Ciphertext: text, Context: []byte("a context")}})
		if got := one(t, out, err); string(got.Plaintext.Reveal()) != "the plan" {
			t.Errorf("what %s encrypted opens as %q", name, got.Plaintext.Reveal())
		}
	}
	refused := func(what string, err error, want error, when bool) {
		t.Helper()
		if when != errors.Is(err, want) || !when && err != nil {
			t.Errorf("%s: %v, want it refused: %v", what, err, when)
		}
	}
	convergent := transit.Spec{Derived: true, Convergent: true}
	_, err := x.Create(t.Context(), ann, "", "chacha", transit.ChaCha20, transit.Spec{})
	refused("a ChaCha20 key", err, transit.ErrCannot, fips140.Enabled())
	_, err = x.Create(t.Context(), ann, "", "convergent", transit.AES256, convergent)
	refused("a convergent key", err, transit.ErrCannot, fips140.Enforced())
	// One that was made before: it opens what it has encrypted, and encrypts no more.
	var text string
	fips140.WithoutEnforcement(func() {
		created(t, x, "before", transit.AES256, convergent)
		r, err := seal("before")
		if err != nil {
			t.Error(err)
		}
		text = r.Text
	})
	opens("before", text)
	_, err = seal("before")
	refused("encrypting with a convergent key", err, transit.ErrCannot, fips140.Enforced())
	two := int64(1)
	if _, err := x.Configure(t.Context(), ann, "", "before", transit.Change{MinEncryption: &two}); err != nil {
		t.Errorf("changing the settings of a convergent key: %v", err)
	}

	_, err = transit.Hash("sha1", []byte("x"))
	refused("SHA-1", err, transit.ErrInvalid, fips140.Enforced())
	created(t, x, "rsa", transit.RSA2048, transit.Spec{})
	out, err := x.Sign(t.Context(), ann, "", "rsa", transit.How{Hash: "sha1"}, []transit.Item{{Plaintext: []byte("x")}})
	if err != nil {
		t.Fatal(err)
	}
	refused("signing by SHA-1", out[0].Err, transit.ErrInvalid, fips140.Enforced())
	out, err = x.HMAC(t.Context(), ann, "", "rsa", transit.How{Hash: "sha1"}, []transit.Item{{Plaintext: []byte("x")}})
	if err != nil {
		t.Fatal(err)
	}
	refused("a MAC by SHA-1", out[0].Err, transit.ErrInvalid, fips140.Enforced())

	for name, spec := range map[string]transit.Spec{"plain": {}, "derived": {Derived: true}} {
		created(t, x, name, transit.AES256, spec)
		r, err := seal(name)
		if err != nil {
			t.Fatalf("encrypting with a key that is %s: %v", name, err)
		}
		opens(name, r.Text)
	}
}
