package jose_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/internal/jose"
)

const issuer = "https://estover.example"

var now = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

// The keys that the tests share: making an RSA key takes a while.
var keys = sync.OnceValue(func() (k struct {
	ec, other *ecdsa.PrivateKey
	p384      *ecdsa.PrivateKey
	rsa       *rsa.PrivateKey
	ed        ed25519.PrivateKey
},
) {
	k.ec, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.other, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.p384, _ = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	k.rsa, _ = rsa.GenerateKey(rand.Reader, 2048)
	_, k.ed, _ = ed25519.GenerateKey(rand.Reader)
	return k
})

func public(t testing.TB, purpose jose.Purpose, id string, key crypto.Signer) *jose.Key {
	t.Helper()
	k, err := jose.NewKey(purpose, id, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sample is a token of each purpose, as it should be.
func sample(p jose.Purpose) map[string]any {
	at := now.Unix()
	c := map[string]any{"iss": issuer, "sub": "agent:agt_1", "aud": "https://crm.example", "exp": at + 60, "iat": at, "jti": "j-" + string(p)}
	switch p {
	case jose.AccessToken:
		c["client_id"] = "agt_1"
	case jose.ClientAssertion:
		c["iss"], c["sub"], c["aud"] = "agt_1", "agt_1", issuer
	case jose.DPoPProof:
		c = map[string]any{"jti": "j", "htm": "POST", "htu": issuer + "/oauth/token", "iat": at}
	case jose.IDJAG:
		c["client_id"] = "agt_1"
	case jose.Introspection:
		c["token_introspection"] = map[string]any{"active": false}
	case jose.SecurityEvent:
		delete(c, "exp")
		c["events"] = map[string]any{"https://schemas.openid.net/secevent/caep/event-type/session-revoked": map[string]any{}}
	}
	return c
}

// expected is what the receiver of the sample expects.
func expected(p jose.Purpose) jose.Expected {
	e := jose.Expected{Now: now, Issuer: issuer, Audiences: []string{"https://crm.example"}}
	switch p {
	case jose.ClientAssertion:
		e.Issuer, e.Subject, e.Audiences = "agt_1", "agt_1", []string{issuer}
	case jose.IDJAG, jose.JWTBearer, jose.SecurityEvent:
		e.Algorithms = []string{"ES256"}
	}
	return e
}

// forge makes a token of any header, as an attacker can.
func forge(header map[string]any, claims any, sign func(input []byte) []byte) string {
	h, err := json.Marshal(header)
	if err != nil {
		panic(err)
	}
	c, raw := claims.([]byte)
	if !raw {
		if c, err = json.Marshal(claims); err != nil {
			panic(err)
		}
	}
	input := b64(h) + "." + b64(c)
	return input + "." + b64(sign([]byte(input)))
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func byEC(key *ecdsa.PrivateKey) func([]byte) []byte {
	return func(input []byte) []byte {
		size := (key.Params().BitSize + 7) / 8
		var sum []byte
		if size == 32 {
			s := sha256.Sum256(input)
			sum = s[:]
		} else {
			h := crypto.SHA384.New()
			h.Write(input)
			sum = h.Sum(nil)
		}
		r, s, err := ecdsa.Sign(rand.Reader, key, sum)
		if err != nil {
			panic(err)
		}
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	}
}

func byRSA(key *rsa.PrivateKey) func([]byte) []byte {
	return func(input []byte) []byte {
		sum := sha256.Sum256(input)
		b, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		if err != nil {
			panic(err)
		}
		return b
	}
}

func byPSS(key *rsa.PrivateKey) func([]byte) []byte {
	return func(input []byte) []byte {
		sum := sha256.Sum256(input)
		b, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		if err != nil {
			panic(err)
		}
		return b
	}
}

func byMAC(secret []byte) func([]byte) []byte {
	return func(input []byte) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write(input)
		return m.Sum(nil)
	}
}

func byEd(key ed25519.PrivateKey) func([]byte) []byte {
	return func(input []byte) []byte { return ed25519.Sign(key, input) }
}

func byNobody([]byte) []byte { return nil }

// header is the header of a token of the purpose, with changes.
func header(p jose.Purpose, alg, kid string, more ...any) map[string]any {
	h := map[string]any{"alg": alg, "kid": kid}
	switch p {
	case jose.AccessToken:
		h["typ"] = "at+jwt"
	case jose.DPoPProof:
		h["typ"] = "dpop+jwt"
	case jose.IDJAG:
		h["typ"] = "oauth-id-jag+jwt"
	case jose.Introspection:
		h["typ"] = "token-introspection+jwt"
	case jose.SecurityEvent:
		h["typ"] = "secevent+jwt"
	case jose.Denial:
		h["typ"] = "authzen-denial+jwt"
	}
	for i := 0; i < len(more); i += 2 {
		if more[i+1] == nil {
			delete(h, more[i].(string))
		} else {
			h[more[i].(string)] = more[i+1]
		}
	}
	return h
}

func with(c map[string]any, more ...any) map[string]any {
	c = maps.Clone(c)
	for i := 0; i < len(more); i += 2 {
		if more[i+1] == nil {
			delete(c, more[i].(string))
		} else {
			c[more[i].(string)] = more[i+1]
		}
	}
	return c
}

var purposes = []jose.Purpose{
	jose.AccessToken, jose.IDToken, jose.ClientAssertion, jose.DPoPProof, jose.IDJAG, jose.JWTBearer, jose.Introspection, jose.SecurityEvent,
	jose.Denial,
}

// token makes the sample of a purpose with the key named "k".
func token(p jose.Purpose) (string, *jose.Keys) {
	k := keys()
	h := header(p, "ES256", "k")
	if p == jose.DPoPProof {
		h["jwk"] = jwkOf(k.ec)
	}
	key, err := jose.NewKey("", "k", k.ec.Public())
	if err != nil {
		panic(err)
	}
	return forge(h, sample(p), byEC(k.ec)), jose.NewKeys(key)
}

func jwkOf(key *ecdsa.PrivateKey) map[string]any {
	size := (key.Params().BitSize + 7) / 8
	return map[string]any{
		"kty": "EC", "crv": key.Params().Name,
		"x": b64(key.X.FillBytes(make([]byte, size))), "y": b64(key.Y.FillBytes(make([]byte, size))),
	}
}

// A18: every kind of token is only itself.
func TestEveryKindIsOnlyItself(t *testing.T) {
	for _, made := range purposes {
		tok, set := token(made)
		for _, taken := range purposes {
			_, err := jose.Verify(taken, set, tok, expected(taken))
			// An ID token and a token of a configured trust may both be a plain
			// "JWT"; so may a client's assertion. What tells them apart is whose
			// key is asked for, and the parties.
			plain := []jose.Purpose{jose.IDToken, jose.JWTBearer, jose.ClientAssertion}
			switch {
			case made == taken:
				if err != nil {
					t.Errorf("%s: %v", made, err)
				}
			case slices.Contains(plain, made) && slices.Contains(plain, taken) && err == nil:
				if made == jose.ClientAssertion || taken == jose.ClientAssertion {
					t.Errorf("%s was taken for %s", made, taken)
				}
			case err == nil:
				t.Errorf("%s was taken for %s", made, taken)
			}
		}
	}
}

// A18: a key of ours is for one purpose, whatever the type says.
func TestKeyOfAnotherPurpose(t *testing.T) {
	k := keys()
	for _, p := range purposes {
		if p == jose.DPoPProof {
			continue
		}
		tok, _ := token(p)
		for _, q := range purposes {
			_, err := jose.Verify(p, jose.NewKeys(public(t, q, "k", k.ec)), tok, expected(p))
			if p == q && err != nil {
				t.Errorf("%s with its own key: %v", p, err)
			}
			if p != q && !errors.Is(err, jose.ErrUnknownKey) {
				t.Errorf("%s with a key for %s: %v, want ErrUnknownKey", p, q, err)
			}
		}
	}
}

// Types of tokens that we have no use for are still not a client's assertion.
func TestTypesOfOthers(t *testing.T) {
	k := keys()
	set := jose.NewKeys(public(t, "", "k", k.ec))
	for typ, ok := range map[any]bool{
		nil: true, "JWT": true, "client-authentication+jwt": true, "application/jwt": true, "": true,
		"at+jwt": false, "AT+JWT": false, "application/at+jwt": false, "dpop+jwt": false, "logout+jwt": false,
		"txntoken+jwt": false, "secevent+jwt": false, "oauth-id-jag+jwt": false, "token-introspection+jwt": false,
	} {
		tok := forge(header(jose.ClientAssertion, "ES256", "k", "typ", typ), sample(jose.ClientAssertion), byEC(k.ec))
		if _, err := jose.Verify(jose.ClientAssertion, set, tok, expected(jose.ClientAssertion)); (err == nil) != ok {
			t.Errorf("a client assertion of type %v: %v", typ, err)
		}
	}
	for _, typ := range []string{"application/at+jwt", "AT+jwt"} {
		tok := forge(header(jose.AccessToken, "ES256", "k", "typ", typ), sample(jose.AccessToken), byEC(k.ec))
		if _, err := jose.Verify(jose.AccessToken, set, tok, expected(jose.AccessToken)); err != nil {
			t.Errorf("an access token of type %s: %v", typ, err)
		}
	}
	tok := forge(header(jose.JWTBearer, "ES256", "k", "typ", "at+jwt"), sample(jose.JWTBearer), byEC(k.ec))
	want := expected(jose.JWTBearer)
	if _, err := jose.Verify(jose.JWTBearer, set, tok, want); err == nil {
		t.Error("a trust that says nothing of types took an access token")
	}
	want.Types = []string{"at+jwt"}
	if _, err := jose.Verify(jose.JWTBearer, set, tok, want); err != nil {
		t.Errorf("a trust in access tokens: %v", err)
	}
}

// A6: the algorithm and the key come from registration, never from the token.
func TestAlgorithmAndKeyConfusion(t *testing.T) {
	k := keys()
	ecPublic, err := x509.MarshalPKIXPublicKey(k.ec.Public())
	if err != nil {
		t.Fatal(err)
	}
	rsaPublic := x509.MarshalPKCS1PublicKey(&k.rsa.PublicKey)
	set := jose.NewKeys(public(t, "", "k", k.ec), public(t, "", "r", k.rsa), public(t, "", "e", k.ed), public(t, "", "p", k.p384))
	other := jwkOf(k.other)
	for _, p := range []jose.Purpose{jose.ClientAssertion, jose.JWTBearer, jose.AccessToken, jose.IDToken, jose.IDJAG} {
		c := sample(p)
		for name, tok := range map[string]string{
			"none":                    forge(header(p, "none", "k"), c, byNobody),
			"None":                    forge(header(p, "None", "k"), c, byNobody),
			"none, signed":            forge(header(p, "none", "k"), c, byEC(k.ec)),
			"no algorithm":            forge(header(p, "", "k", "alg", nil), c, byEC(k.ec)),
			"no signature":            forge(header(p, "ES256", "k"), c, byNobody),
			"HS256 by the EC key":     forge(header(p, "HS256", "k"), c, byMAC(ecPublic)),
			"HS256 by the RSA key":    forge(header(p, "HS256", "r"), c, byMAC(rsaPublic)),
			"HS256 by zeros":          forge(header(p, "HS256", "k"), c, byMAC(make([]byte, 32))),
			"RS256 with an EC key":    forge(header(p, "RS256", "k"), c, byEC(k.ec)),
			"ES256 with the RSA key":  forge(header(p, "ES256", "r"), c, byRSA(k.rsa)),
			"ES256 with the P-384":    forge(header(p, "ES256", "p"), c, byEC(k.p384)),
			"PS256":                   forge(header(p, "PS256", "r"), c, byPSS(k.rsa)),
			"PSS said to be RS256":    forge(header(p, "RS256", "r"), c, byPSS(k.rsa)),
			"es256":                   forge(header(p, "es256", "k"), c, byEC(k.ec)),
			"a stranger's key":        forge(header(p, "ES256", "k"), c, byEC(k.other)),
			"an embedded key":         forge(header(p, "ES256", "k", "jwk", other), c, byEC(k.other)),
			"an embedded known key":   forge(header(p, "ES256", "k", "jwk", jwkOf(k.ec)), c, byEC(k.ec)),
			"an address of keys":      forge(header(p, "ES256", "k", "jku", "https://evil.example/jwks"), c, byEC(k.ec)),
			"an address of a chain":   forge(header(p, "ES256", "k", "x5u", "https://evil.example/crt"), c, byEC(k.ec)),
			"a critical extension":    forge(header(p, "ES256", "k", "crit", []string{"exp"}, "exp", 1), c, byEC(k.ec)),
			"an empty crit":           forge(header(p, "ES256", "k", "crit", []string{}), c, byEC(k.ec)),
			"b64":                     forge(header(p, "ES256", "k", "b64", true), c, byEC(k.ec)),
			"kid as a path":           forge(header(p, "ES256", "../../dev/null"), c, byMAC(make([]byte, 32))),
			"kid as a path, stranger": forge(header(p, "ES256", "../k"), c, byEC(k.other)),
			"kid as SQL":              forge(header(p, "ES256", "k' or '1'='1"), c, byEC(k.other)),
			"kid in another case":     forge(header(p, "ES256", "K"), c, byEC(k.other)),
			"kid that is a number":    forge(header(p, "ES256", "k", "kid", 1), c, byEC(k.ec)),
			"kid that is null":        twice(`{"alg":"ES256","kid":null}`, c, byEC(k.ec)),
			"alg in another case too": forge(header(p, "ES256", "k", "Alg", "none"), c, byEC(k.ec)),
			"alg twice":               twice(`{"alg":"ES256","kid":"k","alg":"none"}`, c, byEC(k.ec)),
			"alg twice, escaped":      twice(`{"alg":"none","kid":"k","\u0061lg":"ES256"}`, c, byEC(k.ec)),
		} {
			want := expected(p)
			want.Algorithms = []string{"ES256", "RS256", "EdDSA", "none", "HS256", "PS256", "es256", ""}
			if _, err := jose.Verify(p, set, tok, want); err == nil {
				t.Errorf("%s: %s was accepted", p, name)
			}
		}
	}
}

func twice(header string, c map[string]any, sign func([]byte) []byte) string {
	body, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	input := b64([]byte(header)) + "." + b64(body)
	return input + "." + b64(sign([]byte(input)))
}

// A JWK says what it may be used for, and it is used for nothing else.
func TestKeyFits(t *testing.T) {
	k := keys()
	member := func(jwk map[string]any, more ...any) *jose.Keys {
		b, err := json.Marshal(map[string]any{"keys": []any{with(jwk, append([]any{"kid", "k"}, more...)...)}})
		if err != nil {
			t.Fatal(err)
		}
		set, err := jose.ParseKeys(b)
		if err != nil {
			return jose.NewKeys()
		}
		return set
	}
	tok := forge(header(jose.ClientAssertion, "ES256", "k"), sample(jose.ClientAssertion), byEC(k.ec))
	for _, c := range []struct {
		name string
		more []any
		ok   bool
	}{
		{"nothing said", nil, true},
		{"for signatures", []any{"use", "sig", "alg", "ES256", "key_ops", []string{"verify"}}, true},
		{"for encryption", []any{"use", "enc"}, false},
		{"another algorithm", []any{"alg", "ES384"}, false},
		{"an algorithm of encryption", []any{"alg", "ECDH-ES"}, false},
		{"not to verify", []any{"key_ops", []string{"sign"}}, false},
	} {
		if _, err := jose.Verify(jose.ClientAssertion, member(jwkOf(k.ec), c.more...), tok, expected(jose.ClientAssertion)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// RFC 9864 gives EdDSA on Ed25519 another name; clients send either.
func TestBothNamesOfEd25519(t *testing.T) {
	k := keys()
	plain := public(t, "", "e", k.ed)
	for _, alg := range []string{"EdDSA", "Ed25519"} {
		jwk := fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":"e","alg":%q,"x":%q}`, alg, b64(k.ed.Public().(ed25519.PublicKey)))
		named, err := jose.ParseKey([]byte(jwk))
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range []string{"EdDSA", "Ed25519"} {
			tok := forge(header(jose.ClientAssertion, in, "e"), sample(jose.ClientAssertion), byEd(k.ed))
			for _, key := range []*jose.Key{plain, named} {
				want := expected(jose.ClientAssertion)
				if _, err := jose.Verify(jose.ClientAssertion, jose.NewKeys(key), tok, want); err != nil {
					t.Errorf("%s with a key for %q: %v", in, key.Algorithm(), err)
				}
				want.Algorithms = []string{alg}
				if _, err := jose.Verify(jose.ClientAssertion, jose.NewKeys(key), tok, want); err != nil {
					t.Errorf("%s where %s is registered: %v", in, alg, err)
				}
				want.Algorithms = []string{"ES256"}
				if _, err := jose.Verify(jose.ClientAssertion, jose.NewKeys(key), tok, want); err == nil {
					t.Errorf("%s was accepted where ES256 is registered", in)
				}
				if _, err := jose.Verify(jose.ClientAssertion, jose.NewKeys(key), tok[:len(tok)-86]+strings.Repeat("A", 86), expected(jose.ClientAssertion)); err == nil {
					t.Errorf("%s: a changed signature was accepted", in)
				}
			}
		}
	}
}

// RS256 is for clients that are registered with it; a trust without algorithms
// refuses everything.
func TestAlgorithmsThatMustBeArranged(t *testing.T) {
	k := keys()
	set := jose.NewKeys(public(t, "", "r", k.rsa), public(t, "", "k", k.ec), public(t, "", "p", k.p384))
	for _, c := range []struct {
		purpose    jose.Purpose
		alg, kid   string
		sign       func([]byte) []byte
		algorithms []string
		ok         bool
	}{
		{jose.ClientAssertion, "RS256", "r", byRSA(k.rsa), nil, false},
		{jose.ClientAssertion, "RS256", "r", byRSA(k.rsa), []string{"RS256"}, true},
		{jose.ClientAssertion, "ES384", "p", byEC(k.p384), []string{"ES384"}, false},
		{jose.JWTBearer, "ES256", "k", byEC(k.ec), nil, false},
		{jose.JWTBearer, "ES384", "p", byEC(k.p384), []string{"ES384"}, true},
		{jose.JWTBearer, "RS256", "r", byRSA(k.rsa), []string{"RS256", "ES256"}, true},
		{jose.IDJAG, "ES256", "k", byEC(k.ec), nil, false},
		{jose.SecurityEvent, "RS256", "r", byRSA(k.rsa), nil, false},
		{jose.AccessToken, "RS256", "r", byRSA(k.rsa), []string{"RS256"}, false},
	} {
		want := expected(c.purpose)
		want.Algorithms = c.algorithms
		_, err := jose.Verify(c.purpose, set, forge(header(c.purpose, c.alg, c.kid), sample(c.purpose), c.sign), want)
		if (err == nil) != c.ok {
			t.Errorf("%s by %s with %v arranged: %v", c.purpose, c.alg, c.algorithms, err)
		}
	}
}

// A15: a token is its exact bytes.
func TestExactBytes(t *testing.T) {
	tok, set := token(jose.AccessToken)
	part := strings.Split(tok, ".")
	join := func(a, b, c string) string { return a + "." + b + "." + c }
	// The last character of 64 bytes in base64url carries four bits that must
	// be zero.
	spare := []byte(part[2])
	spare[len(spare)-1]++
	cases := map[string]string{
		"empty": "", "two dots": "..", "one part": part[0], "two parts": part[0] + "." + part[1], "four parts": tok + ".", "five parts": tok + ".a.b",
		"padded signature": tok + "=", "twice padded": tok + "==", "padded header": join(part[0]+"=", part[1], part[2]),
		"spare bits": join(part[0], part[1], string(spare)),
		"space":      tok + " ", "space before": " " + tok, "line break": tok + "\n", "return": tok + "\r\n", "line break inside": join(part[0], part[1][:4]+"\n"+part[1][4:], part[2]),
		"NUL": tok + "\x00", "tab": "\t" + tok,
		"upper case": strings.ToUpper(tok), "lower case": strings.ToLower(tok), "re-cased first": strings.ToUpper(tok[:1]) + tok[1:],
		"no header": join("", part[1], part[2]), "no claims": join(part[0], "", part[2]), "no signature": join(part[0], part[1], ""),
		"standard alphabet": strings.NewReplacer("-", "+", "_", "/").Replace(tok) + "+", "Bearer": "Bearer " + tok,
		"truncated": tok[:len(tok)-1], "truncated by four": tok[:len(tok)-4],
	}
	for name, c := range cases {
		if c == tok {
			continue
		}
		if _, err := jose.Verify(jose.AccessToken, set, c, expected(jose.AccessToken)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for i := range tok {
		for _, bit := range []byte{1, 2, 4, 32} {
			c := []byte(tok)
			c[i] ^= bit
			if _, err := jose.Verify(jose.AccessToken, set, string(c), expected(jose.AccessToken)); err == nil {
				t.Errorf("byte %d changed by %d was accepted", i, bit)
			}
		}
	}
	if _, err := jose.Verify(jose.AccessToken, set, tok, expected(jose.AccessToken)); err != nil {
		t.Errorf("the token itself: %v", err)
	}
}

// A16: malformed input costs nothing and is refused, however it is signed.
func TestMalformedJSON(t *testing.T) {
	k := keys()
	set := jose.NewKeys(public(t, "", "k", k.ec))
	good, err := json.Marshal(sample(jose.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	add := func(s string) []byte {
		return append(bytes.TrimSuffix(bytes.Clone(good), []byte("}")), []byte(s+"}")...)
	}
	nest := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	sign := func(body []byte) string { return forge(header(jose.AccessToken, "ES256", "k"), body, byEC(k.ec)) }
	for name, ok := range map[string]bool{
		`,"x":1`: true, `,"act":` + nest(7): true, `,"x":1.5e3`: true,
		`,"act":` + nest(8): false, `,"x":` + strings.Repeat("[", 4000) + strings.Repeat("]", 4000): false,
		`,"sub":"agent:agt_2"`: false, `,"\u0073ub":"agent:agt_2"`: false, `,"Sub":"agent:agt_2"`: false, `,"AUD":"x"`: false, `,"Scope":"admin"`: false,
		`,"act":{"sub":"a","sub":"b"}`: false, `,"x":` + strings.Repeat("9", 33): false, `,"x":NaN`: false, `,"x":01`: false, `,"x":'y'`: false,
		`,"x":"` + "\xff" + `"`: false, `,"x":1,`: false, `} {`: false, `,"x":"\ud800"`: false,
	} {
		if _, err := jose.Verify(jose.AccessToken, set, sign(add(name)), expected(jose.AccessToken)); (err == nil) != ok {
			t.Errorf("claims with %.60s: %v", name, err)
		}
	}
	for name, body := range map[string]string{"array": `[]`, "string": `"x"`, "null": "null", "nothing": " ", "byte order mark": "\ufeff" + string(good), "trailing": string(good) + "x"} {
		if _, err := jose.Verify(jose.AccessToken, set, sign([]byte(body)), expected(jose.AccessToken)); err == nil {
			t.Errorf("claims that are %s were accepted", name)
		}
	}
	// 16 KiB, as they are sent, and not a byte more.
	rest := sign(add(`,"x":""`))
	most := sign(add(`,"x":"` + strings.Repeat("x", (16<<10-len(rest))*3/4-2) + `"`))
	if _, err := jose.Verify(jose.AccessToken, set, most, expected(jose.AccessToken)); err != nil || len(most) > 16<<10 || len(most) < 16<<10-8 {
		t.Errorf("a token of %d bytes: %v", len(most), err)
	}
	big := sign(add(`,"x":"` + strings.Repeat("x", (16<<10-len(rest))*3/4+4) + `"`))
	for name, tok := range map[string]string{fmt.Sprintf("%d bytes", len(big)): big, "10,000 dots": strings.Repeat(".", 10000), "1 MB": strings.Repeat("a", 1<<20)} {
		if _, err := jose.Verify(jose.AccessToken, set, tok, expected(jose.AccessToken)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// A8, A9: what a token must say, and to whom.
func TestClaims(t *testing.T) {
	k := keys()
	set := jose.NewKeys(public(t, "", "k", k.ec))
	at := now.Unix()
	try := func(p jose.Purpose, c map[string]any, want jose.Expected) error {
		h := header(p, "ES256", "k")
		if p == jose.DPoPProof {
			h["jwk"] = jwkOf(k.ec)
		}
		_, err := jose.Verify(p, set, forge(h, c, byEC(k.ec)), want)
		return err
	}
	for _, p := range purposes {
		needs := map[jose.Purpose][]string{
			jose.AccessToken:     {"iss", "sub", "aud", "exp", "iat", "jti", "client_id"},
			jose.IDToken:         {"iss", "sub", "aud", "exp", "iat"},
			jose.ClientAssertion: {"iss", "sub", "aud", "exp", "jti"},
			jose.DPoPProof:       {"jti", "htm", "htu", "iat"},
			jose.IDJAG:           {"iss", "sub", "aud", "exp", "iat", "jti", "client_id"},
			jose.JWTBearer:       {"iss", "sub", "aud", "exp", "iat"},
			jose.Introspection:   {"iss", "aud", "iat", "token_introspection"},
			jose.SecurityEvent:   {"iss", "aud", "iat", "jti", "events"},
			jose.Denial:          {"iss", "sub", "aud", "exp", "iat", "jti"},
		}[p]
		for _, name := range needs {
			for _, v := range []any{nil, "", true, []any{}, []any{1}} {
				if err := try(p, with(sample(p), name, v), expected(p)); !errors.Is(err, jose.ErrInvalid) {
					t.Errorf("%s with %s = %v: %v, want ErrInvalid", p, name, v, err)
				}
			}
		}
	}
	for _, c := range []struct {
		name    string
		purpose jose.Purpose
		more    []any
		ok      bool
	}{
		{"audience as an array of one", jose.ClientAssertion, []any{"aud", []string{issuer}}, false},
		{"audience and another", jose.ClientAssertion, []any{"aud", []string{issuer, "https://other.example"}}, false},
		{"the token endpoint", jose.ClientAssertion, []any{"aud", issuer + "/oauth/token"}, false},
		{"with a slash", jose.ClientAssertion, []any{"aud", issuer + "/"}, false},
		{"another client's", jose.ClientAssertion, []any{"iss", "agt_2"}, false},
		{"about another", jose.ClientAssertion, []any{"sub", "agt_2"}, false},
		{"five minutes", jose.ClientAssertion, []any{"exp", at + 300}, true},
		{"five minutes, a clock ahead", jose.ClientAssertion, []any{"exp", at + 310}, true},
		{"longer", jose.ClientAssertion, []any{"exp", at + 311}, false},
		{"issued ahead", jose.ClientAssertion, []any{"iat", at + 10, "nbf", at + 10}, true},
		{"issued further ahead", jose.ClientAssertion, []any{"iat", at + 11}, false},
		{"valid further ahead", jose.ClientAssertion, []any{"nbf", at + 11}, false},
		{"audience as an array of one", jose.IDJAG, []any{"aud", []string{"https://crm.example"}}, true},
		{"two audiences", jose.IDJAG, []any{"aud", []string{"https://crm.example", issuer}}, false},
		{"two audiences", jose.JWTBearer, []any{"aud", []string{"https://crm.example", issuer}}, false},
		{"two audiences", jose.AccessToken, []any{"aud", []string{issuer, "https://crm.example"}}, true},
		{"another audience", jose.AccessToken, []any{"aud", "https://erp.example"}, false},
		{"an audience that is null", jose.AccessToken, []any{"aud", []any{nil}}, false},
		{"another issuer", jose.AccessToken, []any{"iss", issuer + "/"}, false},
		{"times with fractions", jose.AccessToken, []any{"exp", float64(at) + 0.5, "iat", float64(at) - 0.5}, true},
		{"a time as a string", jose.AccessToken, []any{"exp", "9999999999"}, false},
		{"an endless time", jose.AccessToken, []any{"exp", 1e300}, false},
		{"a time before time", jose.AccessToken, []any{"iat", -1}, false},
		{"with exp", jose.SecurityEvent, []any{"exp", at + 60}, false},
	} {
		if err := try(c.purpose, with(sample(c.purpose), c.more...), expected(c.purpose)); (err == nil) != c.ok {
			t.Errorf("%s, %s: %v", c.purpose, c.name, err)
		}
	}
	for _, exp := range []int64{at, at - 1, 0} {
		if err := try(jose.AccessToken, with(sample(jose.AccessToken), "exp", exp), expected(jose.AccessToken)); !errors.Is(err, jose.ErrExpired) {
			t.Errorf("exp %d seconds from now: %v, want ErrExpired", exp-at, err)
		}
	}
	// What the caller leaves out is refused.
	for name, blank := range map[string]func(*jose.Expected){
		"issuer":   func(e *jose.Expected) { e.Issuer = "" },
		"audience": func(e *jose.Expected) { e.Audiences = nil },
		"time":     func(e *jose.Expected) { e.Now = time.Time{} },
	} {
		want := expected(jose.JWTBearer)
		blank(&want)
		if err := try(jose.JWTBearer, sample(jose.JWTBearer), want); err == nil {
			t.Errorf("a trust without %s accepted a token", name)
		}
	}
	if err := try(jose.AccessToken, sample(jose.AccessToken), jose.Expected{Now: now, Issuer: issuer, AnyAudience: true}); err != nil {
		t.Errorf("with the audience left to the caller: %v", err)
	}
	if err := try(jose.AccessToken, with(sample(jose.AccessToken), "aud", []string{}), jose.Expected{Now: now, Issuer: issuer, AnyAudience: true}); err == nil {
		t.Error("a token for nobody was accepted, with the audience left to the caller")
	}
}

// A DPoP proof brings the public half of one key that fits.
func TestProofKeys(t *testing.T) {
	k := keys()
	secret, err := k.ec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	private := with(jwkOf(k.ec), "d", b64(secret))
	off := jwkOf(k.ec)
	off["y"] = off["x"]
	for name, c := range map[string]struct {
		jwk any
		alg string
		ok  bool
	}{
		"public":         {jwkOf(k.ec), "ES256", true},
		"private":        {private, "ES256", false},
		"none":           {nil, "ES256", false},
		"shared":         {map[string]any{"kty": "oct", "k": "AAAA"}, "HS256", false},
		"with k":         {with(jwkOf(k.ec), "k", "AAAA"), "ES256", false},
		"another's":      {jwkOf(k.other), "ES256", false},
		"off the curve":  {off, "ES256", false},
		"for encryption": {with(jwkOf(k.ec), "use", "enc"), "ES256", false},
		"another alg":    {with(jwkOf(k.ec), "alg", "ES384"), "ES256", false},
		"P-384":          {jwkOf(k.p384), "ES384", false},
		"a string":       {"jwk", "ES256", false},
		"padded":         {with(jwkOf(k.ec), "x", jwkOf(k.ec)["x"].(string)+"="), "ES256", false},
		"re-cased":       {with(jwkOf(k.ec), "X", "AAAA"), "ES256", false},
		"RSA":            {map[string]any{"kty": "RSA", "n": b64(k.rsa.N.Bytes()), "e": "AQAB"}, "RS256", false},
	} {
		sign := byEC(k.ec)
		switch name {
		case "P-384":
			sign = byEC(k.p384)
		case "RSA":
			sign = byRSA(k.rsa)
		}
		tok := forge(header(jose.DPoPProof, c.alg, "", "kid", nil, "jwk", c.jwk), sample(jose.DPoPProof), sign)
		got, err := jose.Verify(jose.DPoPProof, nil, tok, jose.Expected{Now: now})
		if (err == nil) != c.ok {
			t.Errorf("a proof with a key that is %s: %v", name, err)
		}
		if err == nil {
			if want, _ := jose.Thumbprint(k.ec.Public()); got.Key.Thumbprint != want {
				t.Errorf("the proof's key is %s, want %s", got.Key.Thumbprint, want)
			}
		}
	}
}

// A key id finds its key; a client whose id is not found has its other keys
// tried, anybody else has not.
func TestKeyIDs(t *testing.T) {
	k := keys()
	set := jose.NewKeys(public(t, "", "a", k.other), public(t, "", "b", k.ec))
	for _, c := range []struct {
		purpose jose.Purpose
		kid     any
		ok      bool
	}{
		{jose.ClientAssertion, "b", true},
		{jose.ClientAssertion, "a", true},
		{jose.ClientAssertion, "c", true},
		{jose.ClientAssertion, nil, true},
		{jose.JWTBearer, "b", true},
		{jose.JWTBearer, "a", false},
		{jose.JWTBearer, "c", false},
		{jose.JWTBearer, "", false},
		{jose.JWTBearer, nil, true},
	} {
		tok := forge(header(c.purpose, "ES256", "", "kid", c.kid), sample(c.purpose), byEC(k.ec))
		got, err := jose.Verify(c.purpose, set, tok, expected(c.purpose))
		if (err == nil) != c.ok {
			t.Errorf("%s with kid %v: %v", c.purpose, c.kid, err)
		}
		if err == nil && got.Key.ID != "b" {
			t.Errorf("%s with kid %v was verified by %s", c.purpose, c.kid, got.Key.ID)
		}
		if c.kid == "c" && c.purpose == jose.JWTBearer && !errors.Is(err, jose.ErrUnknownKey) {
			t.Errorf("an unknown key: %v, want ErrUnknownKey", err)
		}
	}
	// However many keys a client has, a token costs a bounded number of tries.
	many := []*jose.Key{}
	for i := range 16 {
		many = append(many, public(t, "", fmt.Sprint(i), k.other))
	}
	tok := forge(header(jose.ClientAssertion, "ES256", "b"), sample(jose.ClientAssertion), byEC(k.ec))
	if _, err := jose.Verify(jose.ClientAssertion, jose.NewKeys(append(many, public(t, "", "z", k.ec))...), tok, expected(jose.ClientAssertion)); err == nil {
		t.Error("the seventeenth key was tried")
	}
	if _, err := jose.Verify(jose.ClientAssertion, jose.NewKeys(append(many, public(t, "", "b", k.ec))...), tok, expected(jose.ClientAssertion)); err != nil {
		t.Errorf("the key that the token names, behind sixteen others: %v", err)
	}
}

func TestParseKeys(t *testing.T) {
	k := keys()
	ec, err := json.Marshal(with(jwkOf(k.ec), "kid", "k"))
	if err != nil {
		t.Fatal(err)
	}
	good := string(ec)
	rsaKey := func(n []byte, e string) string { return fmt.Sprintf(`{"kty":"RSA","n":%q,"e":%q}`, b64(n), e) }
	for _, c := range []struct {
		name, set string
		keys      int // 0 for an error
	}{
		{"one", `{"keys":[` + good + `]}`, 1},
		{"with strangers", `{"keys":[{"kty":"XYZ"},{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"},{"kty":"OKP","crv":"X25519","x":"AA"},` + good + `]}`, 1},
		{"with one for encryption", `{"keys":[` + strings.Replace(good, `{`, `{"use":"enc",`, 1) + `,` + good + `]}`, 1},
		{"RSA", `{"keys":[` + rsaKey(k.rsa.N.Bytes(), "AQAB") + `]}`, 1},
		{"weak RSA", `{"keys":[` + rsaKey(k.rsa.N.Bytes()[:255], "AQAB") + `]}`, 0},
		{"huge RSA", `{"keys":[` + rsaKey(bytes.Repeat([]byte{0xff}, 2048), "AQAB") + `]}`, 0},
		{"RSA with exponent 1", `{"keys":[` + rsaKey(k.rsa.N.Bytes(), "AQ") + `]}`, 0},
		{"RSA with an even exponent", `{"keys":[` + rsaKey(k.rsa.N.Bytes(), "AQAA") + `]}`, 0},
		{"a low-order point", `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"` + b64(make([]byte, 32)) + `"}]}`, 0},
		{"a private key", `{"keys":[` + good + `,{"kty":"OKP","crv":"Ed25519","x":"AAAA","d":"AAAA"}]}`, 0},
		{"a shared key", `{"keys":[` + good + `,{"kty":"oct","k":"AAAA"}]}`, 0},
		{"none", `{"keys":[]}`, 0},
		{"no array", `{"keys":{}}`, 0},
		{"nothing", `{}`, 0},
		{"twice", `{"keys":[` + good + `],"keys":[]}`, 0},
		{"a key with a name twice", `{"keys":[` + strings.Replace(good, `{`, `{"kty":"EC",`, 1) + `]}`, 0},
		{"too many", `{"keys":[` + strings.Repeat(good+",", 100) + good + `]}`, 0},
		{"behind it more", `{"keys":[` + good + `]} `, 1},
		{"behind it something", `{"keys":[` + good + `]}x`, 0},
	} {
		set, err := jose.ParseKeys([]byte(c.set))
		if c.keys == 0 {
			if !errors.Is(err, jose.ErrKey) {
				t.Errorf("a set with %s: %v, want ErrKey", c.name, err)
			}
			continue
		}
		if err != nil || len(set.All()) != c.keys {
			t.Errorf("a set with %s: %v", c.name, err)
			continue
		}
		out, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		again, err := jose.ParseKeys(out)
		if err != nil || again.All()[0].Thumbprint != set.All()[0].Thumbprint || again.All()[0].ID != set.All()[0].ID {
			t.Errorf("a set with %s, written and read again: %v", c.name, err)
		}
	}
}

// What a set writes is the public half, whatever it was given.
func TestPublishedKeys(t *testing.T) {
	k := keys()
	b, err := json.Marshal(jose.NewKeys(public(t, jose.AccessToken, "a", k.ec), public(t, jose.IDToken, "b", k.rsa), public(t, jose.SecurityEvent, "c", k.ed)))
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(b, &set); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"ES256", "RS256", "EdDSA"} {
		got := set.Keys[i]
		if got["alg"] != want || got["use"] != "sig" || got["kid"] != string("abc"[i]) {
			t.Errorf("published %v", got)
		}
		if _, ok := got["d"]; ok {
			t.Errorf("key %d was published with its private half", i)
		}
	}
	if _, err := jose.NewKey("", "", k.ec); !errors.Is(err, jose.ErrKey) {
		t.Errorf("a private key as a public one: %v, want ErrKey", err)
	}
}
