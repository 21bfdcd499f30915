package jose_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"estover.dev/internal/jose"
)

func signer(t testing.TB, p jose.Purpose, key crypto.Signer) *jose.Signer {
	t.Helper()
	s, err := jose.NewSigner(p, "k", key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What is signed for a purpose with each key that it may be signed with is
// verified for it.
func TestSignAndVerify(t *testing.T) {
	k := keys()
	private := map[string]crypto.Signer{"ES256": k.ec, "RS256": k.rsa, "EdDSA": k.ed, "ES384": k.p384}
	signs := map[jose.Purpose]string{
		jose.AccessToken: "ES256", jose.IDToken: "RS256 ES256", jose.ClientAssertion: "ES256 EdDSA RS256", jose.DPoPProof: "ES256 EdDSA",
		jose.IDJAG: "ES256", jose.JWTBearer: "", jose.Introspection: "ES256", jose.SecurityEvent: "RS256 ES256", jose.Denial: "ES256",
	}
	for _, p := range purposes {
		for alg, key := range private {
			s, err := jose.NewSigner(p, "k", key)
			if may := strings.Contains(" "+signs[p]+" ", " "+alg+" "); !may {
				if !errors.Is(err, jose.ErrKey) {
					t.Errorf("preparing %s for %s: %v, want ErrKey", alg, p, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("preparing %s for %s: %v", alg, p, err)
				continue
			}
			// More than once: a number of the signature may begin with zeros.
			for range 20 {
				tok, err := jose.Sign(p, s, sample(p))
				if err != nil {
					t.Fatalf("signing %s with %s: %v", p, alg, err)
				}
				want := expected(p)
				if p != jose.DPoPProof {
					want.Algorithms = []string{alg}
				}
				c, err := jose.Verify(p, jose.NewKeys(public(t, p, "k", key)), tok, want)
				if err != nil {
					t.Fatalf("verifying %s by %s: %v", p, alg, err)
				}
				if c.Header.Algorithm != alg || s.Algorithm() != alg || s.KeyID() != "k" {
					t.Errorf("%s was signed with %s, want %s", p, c.Header.Algorithm, alg)
				}
			}
		}
	}
}

func TestSignTakesBytes(t *testing.T) {
	s := signer(t, jose.AccessToken, keys().ec)
	body, err := json.Marshal(sample(jose.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := jose.Sign(jose.AccessToken, s, body)
	if err != nil {
		t.Fatal(err)
	}
	c, err := jose.Verify(jose.AccessToken, jose.NewKeys(public(t, jose.AccessToken, "k", keys().ec)), tok, expected(jose.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	if string(c.Raw) != string(body) {
		t.Errorf("the claims came back as %s", c.Raw)
	}
	var into struct {
		Client string `json:"client_id"`
		Other  string `json:"SUB"`
	}
	if err := c.Into(&into); err != nil || into.Client != "agt_1" || into.Other != "" {
		t.Errorf("reading the claims gave %+v, %v", into, err)
	}
	if v, ok := c.Claim("client_id"); !ok || string(v) != `"agt_1"` || c.Text("client_id") != "agt_1" {
		t.Errorf("the claim client_id is %s", v)
	}
	for _, bad := range []any{[]byte(nil), []byte("[]"), "text", 1} {
		if _, err := jose.Sign(jose.AccessToken, s, bad); err == nil {
			t.Errorf("claims %v were signed", bad)
		}
	}
	if _, err := jose.Sign(jose.IDToken, s, body); !errors.Is(err, jose.ErrKey) {
		t.Errorf("signing an ID token with a key for access tokens: %v, want ErrKey", err)
	}
	if _, err := jose.Sign(jose.AccessToken, nil, body); !errors.Is(err, jose.ErrKey) {
		t.Errorf("signing without a key: %v, want ErrKey", err)
	}
	if _, err := jose.Sign(jose.AccessToken, s, map[string]string{"a": strings.Repeat("a", 16<<10)}); err == nil {
		t.Error("a token was made that nobody would read")
	}
}

func TestPeek(t *testing.T) {
	tok, _ := token(jose.ClientAssertion)
	u, err := jose.Peek(tok)
	if err != nil || u.Issuer != "agt_1" || u.Subject != "agt_1" || u.Header.KeyID != "k" || u.Header.Algorithm != "ES256" {
		t.Errorf("peeking gave %+v, %v", u, err)
	}
	if _, err := jose.Peek("a.b.c"); !errors.Is(err, jose.ErrInvalid) {
		t.Errorf("peeking at nothing: %v, want ErrInvalid", err)
	}
}

func TestAlgorithms(t *testing.T) {
	if got := jose.Algorithms(jose.DPoPProof); strings.Join(got, " ") != "ES256 EdDSA Ed25519" {
		t.Errorf("for DPoP proofs: %v", got)
	}
	for alg, ok := range map[string]bool{"ES256": true, "RS256": true, "PS256": false, "HS256": false, "none": false, "": false} {
		if jose.Supports(jose.ClientAssertion, alg) != ok {
			t.Errorf("a client registered with %q: %v, want %v", alg, !ok, ok)
		}
	}
}

// Whatever is accepted is a token that was made, byte for byte, or the other
// form of its ECDSA signature, which nobody but the key's owner or a very lucky
// fuzzer finds.
func FuzzVerify(f *testing.F) {
	made := map[string]bool{}
	_, set := token(jose.AccessToken)
	for _, p := range purposes {
		tok, _ := token(p)
		made[tok] = true
		f.Add(tok)
		f.Add(tok + "=")
	}
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("..")
	f.Fuzz(func(t *testing.T, tok string) {
		for _, p := range purposes {
			if _, err := jose.Verify(p, set, tok, expected(p)); err == nil && !made[tok] {
				// A fuzzer may sign with a key of its own in a proof.
				if p == jose.DPoPProof {
					continue
				}
				t.Errorf("accepted as %s: %q", p, tok)
			}
		}
		if _, err := jose.ParseKey([]byte(tok)); err != nil && !errors.Is(err, jose.ErrKey) {
			t.Errorf("reading a key: %v", err)
		}
	})
}

var claims = []byte(`{"iss":"https://estover.example","exp":1785586500,"aud":"https://crm.example","sub":"agent:agt_abcdefghijklmnop","client_id":"agt_abcdefghijklmnop","iat":1785585600,"jti":"tok_abcdefghijklmnopqrstuvwxyz","scope":"crm:read","cnf":{"jkt":"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"},"act":{"sub":"agent:agt_zyxwvutsrqponmlk"},"grant_id":"grt_abcdefghijklmnopqrstuvwxyz","grant_epoch":1,"sid":"ses_abcdefghijklmnopqrstuvwxyz"}`)

// BenchmarkSign is to be read against BenchmarkBareSign, which makes the same
// token with the standard library alone.
func BenchmarkSign(b *testing.B) {
	s := signer(b, jose.AccessToken, keys().ec)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := jose.Sign(jose.AccessToken, s, claims); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBareSign(b *testing.B) {
	key := keys().ec
	b.ReportAllocs()
	for b.Loop() {
		input := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"at+jwt","alg":"ES256","kid":"k"}`)) + "." + base64.RawURLEncoding.EncodeToString(claims)
		sum := sha256.Sum256([]byte(input))
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			b.Fatal(err)
		}
		var sig [64]byte
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
		_ = input + "." + base64.RawURLEncoding.EncodeToString(sig[:])
	}
}

func BenchmarkVerify(b *testing.B) {
	s := signer(b, jose.AccessToken, keys().ec)
	tok, err := jose.Sign(jose.AccessToken, s, claims)
	if err != nil {
		b.Fatal(err)
	}
	set := jose.NewKeys(public(b, jose.AccessToken, "k", keys().ec))
	want := expected(jose.AccessToken)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := jose.Verify(jose.AccessToken, set, tok, want); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBareVerify(b *testing.B) {
	key := keys().ec
	sum := sha256.Sum256(claims)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		sum := sha256.Sum256(claims)
		if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig) {
			b.Fatal("wrong signature")
		}
	}
}
