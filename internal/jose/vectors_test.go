package jose

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// The keys of the standards' examples.
const (
	// RFC 7515, appendix A.3.
	key7515ec = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`
	// RFC 7515, appendix A.2.
	key7515rsa = `{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}`
	// RFC 7520, section 3.3.
	key7520rsa = `{"kty":"RSA","kid":"bilbo.baggins@hobbiton.example","use":"sig","n":"n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw","e":"AQAB"}`
	// RFC 8037, appendix A.2.
	key8037 = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
	// RFC 7638, section 3.1.
	key7638 = `{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`
)

func mustKey(t testing.TB, jwk string) *Key {
	t.Helper()
	k, err := ParseKey([]byte(jwk))
	if err != nil {
		t.Fatalf("reading the key %s: %v", jwk, err)
	}
	return k
}

// The examples of the standards have payloads that are no claims of ours, so
// they are held against the form and the signature alone.
func TestVectorsOfSignatures(t *testing.T) {
	for _, v := range []struct{ name, key, token string }{
		{"RFC 7515 A.2, RS256", key7515rsa, "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"},
		{"RFC 7515 A.3, ES256", key7515ec, "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"},
		{"RFC 7520 4.1, RS256", key7520rsa, "eyJhbGciOiJSUzI1NiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4.MRjdkly7_-oTPTS3AXP41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp83xuglII7PNDi84wnB-BDkoBwA78185hX-Es4JIwmDLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6x8wW1Kt9eRo4QPocSadnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI-ZnmKJ3F4uOZDnd6QZWJushZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg"},
		{"RFC 8037 A.4, EdDSA", key8037, "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"},
	} {
		t.Run(v.name, func(t *testing.T) {
			p, err := parse(v.token)
			if err != nil {
				t.Fatalf("parsing: %v", err)
			}
			keys := []*Key{mustKey(t, v.key)}
			if _, err := p.verified(keys); err != nil {
				t.Errorf("verifying: %v", err)
			}
			// One bit of the signature makes it another.
			at := strings.LastIndexByte(v.token, '.') + 1
			flipped := v.token[:at] + string(v.token[at]^1) + v.token[at+1:]
			if p, err := parse(flipped); err == nil {
				if _, err := p.verified(keys); err == nil {
					t.Error("a changed signature was accepted")
				}
			}
		})
	}
}

// The unsecured and the symmetric examples, and those of other serializations,
// are refused for what they are.
func TestVectorsRefused(t *testing.T) {
	keys := NewKeys(mustKey(t, key7515ec), mustKey(t, key7515rsa))
	for _, v := range []struct{ name, token string }{
		{"RFC 7515 A.1, HS256", "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"},
		{"RFC 7515 A.5, none", "eyJhbGciOiJub25lIn0.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ."},
		{"RFC 7515 E, unknown critical member", "eyJhbGciOiJub25lIiwNCiAiY3JpdCI6WyJodHRwOi8vZXhhbXBsZS5jb20vVU5ERUZJTkVEIl0sDQogImh0dHA6Ly9leGFtcGxlLmNvbS9VTkRFRklORUQiOnRydWUNCn0.RkFJTA."},
		{"five parts, as encryption has", "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.QUFB.QUFB.QUFB.QUFB"},
		{"three parts with enc", "eyJhbGciOiJFUzI1NiIsImVuYyI6IkEyNTZHQ00ifQ.e30.QUFB"},
	} {
		for purpose := range kinds {
			if _, err := Verify(purpose, keys, v.token, Expected{Now: time.Unix(1300819370, 0), Issuer: "joe", AnyAudience: true}); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s as %s: %v, want ErrInvalid", v.name, purpose, err)
			}
		}
	}
}

// RFC 7515, appendices A.4, A.6, A.7 and F: signatures that are right, and not ours.
// One is of P-521, which no purpose has and no key of anybody's may be, not even where
// the caller lists it; the others are the signatures of A.2 and A.3 in the forms that
// have more than one, or none of the parts that are signed.
func TestVectorsInOtherForms(t *testing.T) {
	const (
		key7515p521 = `{"kty":"EC","crv":"P-521","x":"AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk","y":"ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2"}`

		byP521  = "AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn"
		byRS256 = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
		byES256 = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"

		rs256, es256, es512 = "eyJhbGciOiJSUzI1NiJ9", "eyJhbGciOiJFUzI1NiJ9", "eyJhbGciOiJFUzUxMiJ9"
		claims, text        = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ", "UGF5bG9hZA"

		one   = `{"protected":"` + rs256 + `","header":{"kid":"2010-12-29"},"signature":"` + byRS256 + `"}`
		other = `{"protected":"` + es256 + `","header":{"kid":"e9bc097a-ce51-4036-9562-d2ade882db0d"},"signature":"` + byES256 + `"}`
	)
	if _, err := ParseKey([]byte(key7515p521)); !errors.Is(err, ErrKey) {
		t.Errorf("reading the key of A.4: %v, want ErrKey", err)
	}
	if !rightES512(t, key7515p521, es512+"."+text, byP521) {
		t.Error("the signature of A.4 is wrong, and says nothing")
	}
	keys := NewKeys(mustKey(t, key7515ec), mustKey(t, key7515rsa))
	for _, v := range []struct{ name, token, why string }{
		{"A.4, ES512", es512 + "." + text + "." + byP521, "algorithm"},
		{"A.6, two signatures", `{"payload":"` + claims + `","signatures":[` + one + `,` + other + `]}`, "three parts"},
		{"A.6, the second alone", `{"payload":"` + claims + `","signatures":[` + other + `]}`, "three parts"},
		{"A.7, flattened", `{"payload":"` + claims + `","protected":"` + es256 + `","header":{"kid":"e9bc097a-ce51-4036-9562-d2ade882db0d"},"signature":"` + byES256 + `"}`, "three parts"},
		{"F, detached, of A.3", es256 + ".." + byES256, "base64"},
	} {
		for purpose := range kinds {
			_, err := Verify(purpose, keys, v.token, Expected{
				Now: time.Unix(1300819370, 0), Issuer: "joe", AnyAudience: true, Algorithms: []string{"RS256", "ES256", "ES512"},
			})
			if !errors.Is(err, ErrInvalid) || purpose == JWTBearer && !strings.Contains(err.Error(), v.why) {
				t.Errorf("%s as %s: %v, want ErrInvalid that speaks of %q", v.name, purpose, err, v.why)
			}
		}
	}
}

// rightES512 checks a signature that we refuse, with the standard library alone.
func rightES512(t *testing.T, jwk, signed, signature string) bool {
	t.Helper()
	var point struct{ X, Y string }
	if err := json.Unmarshal([]byte(jwk), &point); err != nil {
		t.Fatal(err)
	}
	bytes := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil || len(b)%66 != 0 {
			t.Fatalf("%q has %d bytes, %v", s, len(b), err)
		}
		return b
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P521(), slices.Concat([]byte{4}, bytes(point.X), bytes(point.Y)))
	if err != nil {
		t.Fatal(err)
	}
	both, sum := bytes(signature), sha512.Sum512([]byte(signed))
	return ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(both[:66]), new(big.Int).SetBytes(both[66:]))
}

// RFC 7520, sections 4.1 to 4.8: the same text, signed in eight ways. One of them
// is a signature of ours; RSA-PSS, P-521 and shared secrets are none although they
// are right, not even where the caller lists them, and neither is any form but the
// compact one with its payload. Section 4.1 is refused as well, for what it says is
// no token's.
func TestVectorsOfTheCookbook(t *testing.T) {
	const (
		key7520ec  = `{"kty":"EC","kid":"bilbo.baggins@hobbiton.example","use":"sig","crv":"P-521","x":"AHKZLLOsCOzz5cY97ewNUajB957y-C-U88c3v13nmGZx6sYl_oJXu9A5RkTKqjqvjyekWF-7ytDyRXYgCF5cj0Kt","y":"AdymlHvOiLxXkEhayXQnNCvDX4h9htZaCJN34kfmC6pV5OhQHiraVySsUdaQkAgDPrwQrJmbnX9cwlGfP-HqHZR1"}` // section 3.1
		key7520oct = `{"kty":"oct","kid":"018c0ae5-4d9b-471b-bfd6-eef314bc7037","use":"sig","alg":"HS256","k":"hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg"}`                                                                                                                                      // section 3.5

		text = "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4"

		rs256 = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9"
		ps384 = "eyJhbGciOiJQUzM4NCIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9"
		es512 = "eyJhbGciOiJFUzUxMiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9"
		hs256 = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjAxOGMwYWU1LTRkOWItNDcxYi1iZmQ2LWVlZjMxNGJjNzAzNyJ9"

		byRS256 = "MRjdkly7_-oTPTS3AXP41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp83xuglII7PNDi84wnB-BDkoBwA78185hX-Es4JIwmDLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6x8wW1Kt9eRo4QPocSadnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI-ZnmKJ3F4uOZDnd6QZWJushZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg"
		byPS384 = "cu22eBqkYDKgIlTpzDXGvaFfz6WGoz7fUDcfT0kkOy42miAh2qyBzk1xEsnk2IpN6-tPid6VrklHkqsGqDqHCdP6O8TTB5dDDItllVo6_1OLPpcbUrhiUSMxbbXUvdvWXzg-UD8biiReQFlfz28zGWVsdiNAUf8ZnyPEgVFn442ZdNqiVJRmBqrYRXe8P_ijQ7p8Vdz0TTrxUeT3lm8d9shnr2lfJT8ImUjvAA2Xez2Mlp8cBE5awDzT0qI0n6uiP1aCN_2_jLAeQTlqRHtfa64QQSUmFAAjVKPbByi7xho0uTOcbH510a6GYmJUAfmWjwZ6oD4ifKo8DYM-X72Eaw"
		byES512 = "AE_R_YZCChjn4791jSQCrdPZCNYqHXCTZH0-JZGYNlaAjP2kqaluUIIUnC9qvbu9Plon7KRTzoNEuT4Va2cmL1eJAQy3mtPBu_u_sDDyYjnAMDxXPn7XrT0lw-kvAD890jl8e2puQens_IEKBpHABlsbEPX6sFY8OcGDqoRuBomu9xQ2"
		byHS256 = "s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0"

		alone = "eyJhbGciOiJSUzI1NiJ9" // the protected header of the first signature of 4.8: the key's id is outside
		first = "MIsjqtVlOpa71KE-Mss8_Nq2YH4FGhiocsqrgi5NvyG53uoimic1tcMdSg-qptrzZc7CG6Svw2Y13TDIqHzTUrL_lR2ZFcryNFiHkSw129EghGpwkpxaTn_THJTCglNbADko1MZBCdwzJxwqZc-1RlpO2HibUYyXSwO97BSe0_evZKdjvvKSgsIqjytKSeAMbhMBdMma622_BG5t4sdbuCHtFjp9iJmkio47AIwqkZV1aIZsv33uPUqBBCXbYoQJwt7mxPftHmNlGoOSMxR_3thmXTCm4US-xiNOyhbm8afKK64jU6_TPtQHiJeQJxz9G3Tx-083B745_AfYOnlC9w"
		other = `{"header":{"alg":"ES512","kid":"bilbo.baggins@hobbiton.example"},"signature":"ARcVLnaJJaUWG8fG-8t5BREVAuTY8n8YHjwDO1muhcdCoFZFFjfISu0Cdkn9Ybdlmi54ho0x924DUz8sK7ZXkhc7AFM8ObLfTvNCrqcI3Jkl2U5IX3utNhODH6v7xgy1Qahsn0fyb4zSAkje8bAWz4vIfj5pCMYxxm4fgV3q7ZYhm5eD"}`
	)
	for name, key := range map[string]string{"of P-521": key7520ec, "that is a shared secret": key7520oct} {
		if _, err := ParseKey([]byte(key)); !errors.Is(err, ErrKey) {
			t.Errorf("reading a key %s: %v, want ErrKey", name, err)
		}
	}
	key := mustKey(t, key7520rsa)
	if !rightES512(t, key7520ec, es512+"."+text, byES512) {
		t.Error("the signature of 4.3 is wrong, and says nothing")
	}

	// The first signature of section 4.8 is one of RS256, and may stand alone.
	for name, token := range map[string]string{"4.1": rs256 + "." + text + "." + byRS256, "the first of 4.8, in compact form": alone + "." + text + "." + first} {
		p, err := parse(token)
		if err != nil {
			t.Errorf("%s: parsing: %v", name, err)
			continue
		}
		if _, err := p.verified([]*Key{key}); err != nil {
			t.Errorf("%s: verifying: %v", name, err)
		}
	}

	flat := func(header, signature string) string {
		return `{"payload":"` + text + `",` + header + `,"signature":"` + signature + `"}`
	}
	general := func(signatures string) string { return `{"payload":"` + text + `","signatures":[` + signatures + `]}` }
	protected := func(header, signature string) string {
		return `{"protected":"` + header + `","signature":"` + signature + `"}`
	}
	for _, v := range []struct{ name, token, why string }{
		{"4.1, a text", rs256 + "." + text + "." + byRS256, "JSON"},
		{"4.1, flattened", flat(`"protected":"`+rs256+`"`, byRS256), "three parts"},
		{"4.1, general", general(protected(rs256, byRS256)), "three parts"},
		{"4.2, PS384", ps384 + "." + text + "." + byPS384, "algorithm"},
		{"4.3, ES512", es512 + "." + text + "." + byES512, "algorithm"},
		{"4.4, HS256", hs256 + "." + text + "." + byHS256, "algorithm"},
		{"4.5, detached", hs256 + ".." + byHS256, "base64"},
		{"4.5, detached, of RS256", rs256 + ".." + byRS256, "base64"},
		{"4.6, the key's id unprotected", flat(`"protected":"eyJhbGciOiJIUzI1NiJ9","header":{"kid":"018c0ae5-4d9b-471b-bfd6-eef314bc7037"}`, "bWUSVaxorn7bEF1djytBd0kHv70Ly5pvbomzMWSOr20"), "three parts"},
		{"4.7, nothing protected", flat(`"header":{"alg":"HS256","kid":"018c0ae5-4d9b-471b-bfd6-eef314bc7037"}`, "xuLifqLGiblpv9zBpuZczWhNj1gARaLV3UxvxhJxZuk"), "three parts"},
		{"4.7, in compact form", "." + text + ".xuLifqLGiblpv9zBpuZczWhNj1gARaLV3UxvxhJxZuk", "base64"},
		{"4.8, three signatures", general(`{"protected":"` + alone + `","header":{"kid":"bilbo.baggins@hobbiton.example"},"signature":"` + first + `"},` + other + `,` + protected(hs256, byHS256)), "three parts"},
	} {
		_, err := Verify(JWTBearer, NewKeys(key), v.token, Expected{
			Now: time.Unix(1431000000, 0), Issuer: "bilbo", AnyAudience: true, Algorithms: []string{"RS256", "PS384", "ES512", "HS256"},
		})
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), v.why) {
			t.Errorf("%s: %v, want ErrInvalid that speaks of %q", v.name, err, v.why)
		}
	}
}

// RFC 9449, sections 5 and 7.1: the proofs and the thumbprint of their key.
func TestVectorsOfDPoP(t *testing.T) {
	const jkt = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
	for _, v := range []struct {
		name, token, htm, htu, jti string
		at                         int64
	}{
		{
			"token request", "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg",
			"POST", "https://server.example.com/token", "-BwC3ESc6acc2lTc", 1562262616,
		},
		{
			"resource request", "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA",
			"GET", "https://resource.example.org/protectedresource", "e1j3V_bKic8-LAEB", 1562262618,
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			now := time.Unix(v.at, 0)
			c, err := Verify(DPoPProof, nil, v.token, Expected{Now: now.Add(time.Minute)})
			if err != nil {
				t.Fatalf("verifying a minute later: %v", err)
			}
			if c.Text("htm") != v.htm || c.Text("htu") != v.htu || c.ID != v.jti || !c.IssuedAt.Equal(now) {
				t.Errorf("read %q %q %q %s", c.Text("htm"), c.Text("htu"), c.ID, c.IssuedAt)
			}
			if c.Key.Thumbprint != jkt {
				t.Errorf("the key's thumbprint is %s, want %s", c.Key.Thumbprint, jkt)
			}
			for _, off := range []time.Duration{-61 * time.Second, 61 * time.Second} {
				if _, err := Verify(DPoPProof, nil, v.token, Expected{Now: now.Add(off)}); !errors.Is(err, ErrInvalid) {
					t.Errorf("verifying %s off: %v, want ErrInvalid", off, err)
				}
			}
		})
	}
}

func TestVectorsOfThumbprints(t *testing.T) {
	for _, v := range []struct{ name, key, want string }{
		{"RFC 7638 3.1", key7638, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"},
		{"RFC 8037 A.3", key8037, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"},
	} {
		k := mustKey(t, v.key)
		if k.Thumbprint != v.want {
			t.Errorf("%s: %s, want %s", v.name, k.Thumbprint, v.want)
		}
		if got, err := Thumbprint(k.Public); err != nil || got != v.want {
			t.Errorf("%s from the bare key: %s, %v, want %s", v.name, got, err, v.want)
		}
	}
}

// A token that has a name of its own is signed as RFC 6979, appendix A.2.5, says, and
// one without is signed anew each time.
func TestVectorOfNonces(t *testing.T) {
	scalar, err := hex.DecodeString("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
	if err != nil {
		t.Fatal(err)
	}
	const want = "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716" +
		"f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
	for purpose, named := range map[Purpose]bool{AccessToken: true, IDJAG: true, Denial: true, IDToken: false, Introspection: false} {
		s, err := NewSigner(purpose, "k", key)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := s.sign([]byte("sample"))
		if err != nil {
			t.Fatal(err)
		}
		if is := hex.EncodeToString(signature) == want; is != named {
			t.Errorf("a signature for %s is %x; that of the vector: %t, want %t", purpose, signature, is, named)
		}
	}
}
