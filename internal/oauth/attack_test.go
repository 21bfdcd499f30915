package oauth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// The attacks of tokens.md, section 9, as far as there is something to attack.
// Each test has the name of its row.

var b64 = base64.RawURLEncoding

// craft makes a compact JWS of exactly this header and these claims, which no
// library of ours would sign.
func craft(t *testing.T, header, claims any, sign func(input []byte) []byte) string {
	t.Helper()
	part := func(v any) string {
		if s, ok := v.(string); ok {
			return b64.EncodeToString([]byte(s))
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b64.EncodeToString(b)
	}
	input := part(header) + "." + part(claims)
	return input + "." + b64.EncodeToString(sign([]byte(input)))
}

// es256 signs as ES256 does.
func es256(t *testing.T, key crypto.Signer) func([]byte) []byte {
	return func(input []byte) []byte {
		sum := sha256.Sum256(input)
		private := key.(*ecdsa.PrivateKey)
		r, s, err := ecdsa.Sign(rand.Reader, private, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		half := private.Params().BitSize / 8
		out := make([]byte, 2*half)
		r.FillBytes(out[:half])
		s.FillBytes(out[half:])
		return out
	}
}

func hs256(secret []byte) func([]byte) []byte {
	return func(input []byte) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write(input)
		return m.Sum(nil)
	}
}

func unsigned([]byte) []byte { return nil }

// header is that of a good assertion, with changes.
func header(changes map[string]any) map[string]any {
	h := map[string]any{"alg": "ES256", "typ": "JWT", "kid": "key-1"}
	maps.Copy(h, changes)
	return h
}

// with are claims with changes; nil takes one away.
func with(c oauthtest.Claims, changes map[string]any) oauthtest.Claims {
	for name, v := range changes {
		if v == nil {
			delete(c, name)
		} else {
			c[name] = v
		}
	}
	return c
}

// refused checks that an answer is this error and carries no token.
func refused(t *testing.T, what string, a oauthtest.Answer, status int, code string) {
	t.Helper()
	if a.Status != status || a.Error() != code || a.Token() != "" {
		t.Errorf("%s: %d %s, want %d %s", what, a.Status, a.Body, status, code)
	}
	if a.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s: the answer may be kept (Cache-Control %q)", what, a.Header.Get("Cache-Control"))
	}
}

// granted checks that an answer carries a token.
func granted(t *testing.T, what string, a oauthtest.Answer) oauthtest.Answer {
	t.Helper()
	if a.Status != http.StatusOK || a.Token() == "" {
		t.Errorf("%s: %d %s, want a token", what, a.Status, a.Body)
	}
	return a
}

func TestA4NothingFallsBackToTheClient(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		for _, grant := range []string{
			"password", "client_credentials ", "CLIENT_CREDENTIALS",
		} {
			for _, subject := range []string{"", "x"} {
				f := oauthtest.Form("grant_type", grant, "subject_token", subject, "assertion", subject)
				refused(t, grant, w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, bot.Secret))), 400, "unsupported_grant_type")
			}
		}
		for _, f := range []url.Values{{}, {"grant_type": {""}}, {"grant_type": {"client_credentials", "client_credentials"}}} {
			refused(t, fmt.Sprint(f), w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, bot.Secret))), 400, "invalid_request")
		}
	})
}

func TestA5DeadOrForeignTokensBuyNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, other := w.Agent("bot"), w.Agent("other")
		dead := func(what, raw string) {
			t.Helper()
			if _, err := w.Tokens.Verify(t.Context(), raw); err != nil && estover.KindOf(err) != estover.Unknown {
				t.Errorf("%s: %v", what, err)
			} else if err == nil {
				t.Errorf("%s is good", what)
			}
			if a := w.Introspect(bot, raw); a.Body != `{"active":false}` || a.Status != http.StatusOK {
				t.Errorf("%s: introspection says %d %s, want exactly that it is not active", what, a.Status, a.Body)
			}
			if _, err := w.Callers.Authenticate(oauthtest.Request("/v1/sessions", nil, oauthtest.Bearer(raw)), estover.DefaultTenant); estover.KindOf(err) != estover.Unknown {
				t.Errorf("%s: as a bearer token: %v, want Unknown", what, err)
			}
			refused(t, what+" as a client assertion", w.AskWith(raw), 401, "invalid_client")
		}
		good := granted(t, "a token", w.Ask(bot)).Token()
		if _, err := w.Callers.Authenticate(oauthtest.Request("/v1/sessions", nil, oauthtest.Bearer(good)), estover.DefaultTenant); err != nil {
			t.Fatalf("a good token as a bearer token: %v", err)
		}

		revoked := w.Ask(bot).Token()
		if a := w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", revoked), oauthtest.Basic(bot.ID, bot.Secret))); a.Status != http.StatusOK {
			t.Fatalf("revoking: %d %s", a.Status, a.Body)
		}
		dead("a revoked token", revoked)

		// The same claims, signed by somebody else under our name.
		stranger := oauthtest.NewKey(t, "P-256")
		claims, err := b64.DecodeString(strings.Split(good, ".")[1])
		if err != nil {
			t.Fatal(err)
		}
		key, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		dead("a token of another issuer's key", craft(t, map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": key.KID}, string(claims), es256(t, stranger)))
		foreign := strings.Replace(string(claims), string(oauthtest.Issuer), "https://evil.example", 1)
		dead("a token of another issuer", craft(t, map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": key.KID}, foreign, es256(t, key.Signer)))
		dead("an ID token", craft(t, map[string]any{"alg": "ES256", "typ": "JWT", "kid": key.KID}, string(claims), es256(t, key.Signer)))

		held := w.Ask(other).Token()
		if _, err := w.Agents.Hold(t.Context(), oauthtest.Admin, other.ID, agent.Suspension, "a test"); err != nil {
			t.Fatal(err)
		}
		dead("a token of a suspended agent", held)

		clock.Advance(token.DefaultLife)
		old := good
		bot2 := w.Agent("bot2") // whoever asks is alive
		if a := w.Introspect(bot2, old); a.Body != `{"active":false}` {
			t.Errorf("an expired token is %s", a.Body)
		}
		dead("an expired token", old)
	})
}

func TestA6AlgorithmAndKeyComeFromRegistration(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		granted(t, "a good assertion", w.AskByKey(bot))
		granted(t, "a good assertion, made by hand", w.AskWith(craft(t, header(nil), w.Claims(bot), es256(t, bot.Key))))
		spki, err := x509.MarshalPKIXPublicKey(bot.Key.Public())
		if err != nil {
			t.Fatal(err)
		}
		set := oauthtest.JWKS(t, "key-1", bot.Key.Public())
		stranger := oauthtest.NewKey(t, "P-256")
		var jwk json.RawMessage
		var parsed struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if err := json.Unmarshal(oauthtest.JWKS(t, "key-1", stranger.Public()), &parsed); err != nil {
			t.Fatal(err)
		}
		jwk = parsed.Keys[0]
		p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		rsaKey := oauthtest.NewKey(t, "RSA")
		for _, c := range []struct{ what, assertion string }{
			{"none", craft(t, header(map[string]any{"alg": "none"}), w.Claims(bot), unsigned)},
			{"None", craft(t, header(map[string]any{"alg": "None"}), w.Claims(bot), unsigned)},
			{"no alg", craft(t, map[string]any{"typ": "JWT", "kid": "key-1"}, w.Claims(bot), es256(t, bot.Key))},
			{"HS256 under the public key in DER", craft(t, header(map[string]any{"alg": "HS256"}), w.Claims(bot), hs256(spki))},
			{"HS256 under the key set", craft(t, header(map[string]any{"alg": "HS256"}), w.Claims(bot), hs256(set))},
			{"HS256 under the client's secret", craft(t, header(map[string]any{"alg": "HS256"}), w.Claims(bot), hs256([]byte(bot.Secret)))},
			{"an EC signature as RS256", craft(t, header(map[string]any{"alg": "RS256"}), w.Claims(bot), es256(t, bot.Key))},
			{"an EC signature as PS256", craft(t, header(map[string]any{"alg": "PS256"}), w.Claims(bot), es256(t, bot.Key))},
			{"an EC signature as ES384", craft(t, header(map[string]any{"alg": "ES384"}), w.Claims(bot), es256(t, p384))},
			{"an RSA key that is not registered", oauthtest.Sign(t, rsaKey, "key-1", w.Claims(bot))},
			{"a stranger's key", craft(t, header(nil), w.Claims(bot), es256(t, stranger))},
			{"an embedded key", craft(t, header(map[string]any{"jwk": jwk}), w.Claims(bot), es256(t, stranger))},
			{"the registered key, embedded", craft(t, header(map[string]any{"jwk": json.RawMessage(set)}), w.Claims(bot), es256(t, bot.Key))},
			{"jku", craft(t, header(map[string]any{"jku": "https://evil.example/jwks"}), w.Claims(bot), es256(t, bot.Key))},
			{"x5u", craft(t, header(map[string]any{"x5u": "https://evil.example/cert"}), w.Claims(bot), es256(t, bot.Key))},
			{"crit", craft(t, header(map[string]any{"crit": []string{"exp"}}), w.Claims(bot), es256(t, bot.Key))},
			{"b64", craft(t, header(map[string]any{"b64": false}), w.Claims(bot), es256(t, bot.Key))},
			{"kid as a path", craft(t, header(map[string]any{"kid": "../../../../dev/null"}), w.Claims(bot), hs256(nil))},
			{"kid as a path, stranger's key", craft(t, header(map[string]any{"kid": "../../../../dev/null"}), w.Claims(bot), es256(t, stranger))},
			{"kid as SQL", craft(t, header(map[string]any{"kid": "x' union select 'AA'--"}), w.Claims(bot), es256(t, stranger))},
			{"the signature zero", craft(t, header(nil), w.Claims(bot), func([]byte) []byte { return make([]byte, 64) })},
			{"no signature", craft(t, header(nil), w.Claims(bot), unsigned)},
		} {
			refused(t, c.what, w.AskWith(c.assertion), 401, "invalid_client")
		}
		// The client's registered algorithm, and nothing else.
		w.Tweak(bot.ID, func(c *token.Client) { c.Algorithms = []string{"EdDSA"} })
		refused(t, "an algorithm other than the registered one", w.AskByKey(bot), 401, "invalid_client")
	})
}

func TestA7OneAuthenticationMethodARequest(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := w.Agent("bot"), w.Agent("other")
		grant := []string{"grant_type", "client_credentials"}
		post := append(grant, "client_id", bot.ID, "client_secret", bot.Secret)
		assertion := func(raw string) []string {
			return append(grant, "client_assertion_type", oauthtest.AssertionType, "client_assertion", raw)
		}
		basic := oauthtest.Basic(bot.ID, bot.Secret)
		ask := func(pairs []string, change ...func(*http.Request)) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form(pairs...), change...))
		}
		for what, a := range map[string]oauthtest.Answer{
			"basic and body":                   ask(post, basic),
			"basic and assertion":              ask(assertion(w.Assertion(bot)), basic),
			"body and assertion":               ask(append(assertion(w.Assertion(bot)), "client_id", bot.ID, "client_secret", bot.Secret)),
			"unsigned assertion and secret":    ask(append(assertion(craft(t, header(map[string]any{"alg": "none"}), w.Claims(bot), unsigned)), "client_id", bot.ID, "client_secret", bot.Secret)),
			"a type of assertion and a secret": ask(append(grant, "client_assertion_type", oauthtest.AssertionType, "client_id", bot.ID, "client_secret", bot.Secret)),
			"two headers":                      ask(grant, basic, func(r *http.Request) { r.Header.Add("Authorization", r.Header.Get("Authorization")) }),
			"basic and another client_id":      ask(append(grant, "client_id", other.ID), basic),
			"an assertion without its type":    ask(append(grant, "client_assertion", w.Assertion(bot))),
			"an assertion of another type":     ask(append(grant, "client_assertion", w.Assertion(bot), "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")),
			"a secret twice":                   w.Do(oauthtest.Request("/oauth/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {bot.ID}, "client_secret": {bot.Secret, bot.Secret}})),
			"basic, body on introspection":     w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form(append(post, "token", "x")...), basic)),
			"bearer and body on introspection": w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form(append(post, "token", "x")...), oauthtest.Bearer("x"))),
			"basic, assertion on revocation":   w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form(append(assertion(w.Assertion(bot)), "token", "x")...), basic)),
		} {
			refused(t, what, a, 400, "invalid_request")
		}
		granted(t, "basic with its own client_id beside", ask(append(grant, "client_id", bot.ID), basic))
		granted(t, "an assertion with its own client_id beside", ask(append(assertion(w.Assertion(bot)), "client_id", bot.ID)))
		refused(t, "an assertion with another client_id", ask(append(assertion(w.Assertion(bot)), "client_id", other.ID)), 401, "invalid_client")
		refused(t, "no method", ask(append(grant, "client_id", bot.ID)), 401, "invalid_client")
		refused(t, "no client", ask(grant), 401, "invalid_client")

		// The method must be registered, whatever other credential there is.
		w.Tweak(bot.ID, func(c *token.Client) { c.Methods = []string{token.PrivateKeyJWT} })
		refused(t, "a secret by a client of keys", ask(grant, basic), 401, "invalid_client")
		granted(t, "an assertion by a client of keys", w.AskByKey(bot))
		w.Tweak(bot.ID, func(c *token.Client) { c.Methods = []string{token.SecretBasic} })
		refused(t, "an assertion by a client of secrets", w.AskByKey(bot), 401, "invalid_client")
		refused(t, "a secret in the body by a client of Basic", ask(post), 401, "invalid_client")
		granted(t, "Basic by a client of Basic", ask(grant, basic))
	})
}

func TestA8AudienceOfAssertionIsTheIssuerAsOneString(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		issuer := string(oauthtest.Issuer)
		for what, aud := range map[string]any{
			"the token endpoint": issuer + "/oauth/token", "the issuer and another": []string{issuer, "https://evil.example"},
			"the issuer in an array": []string{issuer}, "the issuer with a slash": issuer + "/", "the PAR endpoint": issuer + "/oauth/par",
			"another issuer": "https://evil.example", "another tenant's": issuer + "/t/other", "a prefix": issuer[:len(issuer)-1],
			"another case": strings.ToUpper(issuer), "nothing": "", "an object": map[string]any{"x": 1}, "a number": 7,
		} {
			refused(t, what, w.AskWith(oauthtest.Sign(t, bot.Key, "key-1", with(w.Claims(bot), map[string]any{"aud": aud}))), 401, "invalid_client")
		}
		w.Tweak(bot.ID, func(c *token.Client) { c.LegacyAudience = true })
		legacy := func(aud any) oauthtest.Answer {
			return w.AskWith(oauthtest.Sign(t, bot.Key, "key-1", with(w.Claims(bot), map[string]any{"aud": aud})))
		}
		granted(t, "the token endpoint, arranged", legacy(issuer+"/oauth/token"))
		granted(t, "the issuer, though the other is arranged", legacy(issuer))
		refused(t, "the token endpoint in an array, arranged", legacy([]string{issuer + "/oauth/token"}), 401, "invalid_client")
		refused(t, "the introspection endpoint, arranged", legacy(issuer+"/oauth/introspect"), 401, "invalid_client")
	})
}

func TestA9AssertionsFailClosed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := w.Agent("bot"), w.Agent("other")
		now := d.Now().Unix()
		for what, change := range map[string]map[string]any{
			"no exp": {"exp": nil}, "no aud": {"aud": nil}, "no jti": {"jti": nil}, "an empty jti": {"jti": ""}, "no iss": {"iss": nil}, "no sub": {"sub": nil},
			"expired": {"exp": now - 1}, "living too long": {"exp": now + 400}, "from the future": {"iat": now + 60},
			"not valid yet": {"nbf": now + 60}, "an exp that is text": {"exp": "9999999999"}, "an exp beyond all time": {"exp": 1e300},
			"another issuer": {"iss": other.ID}, "another subject": {"sub": other.ID}, "the agent as a subject": {"iss": "agent:" + bot.ID, "sub": "agent:" + bot.ID},
			"another's id altogether": {"iss": other.ID, "sub": other.ID}, "an iss in an array": {"iss": []string{bot.ID}}, "a jti that is a number": {"jti": 1},
		} {
			refused(t, what, w.AskWith(oauthtest.Sign(t, bot.Key, "key-1", with(w.Claims(bot), change))), 401, "invalid_client")
		}
		for _, typ := range []string{"at+jwt", "application/at+jwt", "AT+JWT", "dpop+jwt", "secevent+jwt", "oauth-id-jag+jwt", "token-introspection+jwt", "logout+jwt", "txntoken+jwt"} {
			refused(t, "the type "+typ, w.AskWith(craft(t, header(map[string]any{"typ": typ}), w.Claims(bot), es256(t, bot.Key))), 401, "invalid_client")
		}
		for _, h := range []map[string]any{header(map[string]any{"typ": "client-authentication+jwt"}), {"alg": "ES256", "kid": "key-1"}, {"alg": "ES256"}, header(map[string]any{"kid": "unheard-of"})} {
			granted(t, fmt.Sprint("the header ", h), w.AskWith(craft(t, h, w.Claims(bot), es256(t, bot.Key))))
		}
		for what, raw := range map[string]string{
			"a duplicate key":     `{"iss":"X","iss":"` + bot.ID + `","sub":"` + bot.ID + `","aud":"` + string(oauthtest.Issuer) + `","jti":"d1","exp":` + fmt.Sprint(now+60) + `}`,
			"a key in other case": `{"iss":"` + bot.ID + `","SUB":"x","sub":"` + bot.ID + `","aud":"` + string(oauthtest.Issuer) + `","jti":"d2","exp":` + fmt.Sprint(now+60) + `}`,
			"something behind":    `{"iss":"` + bot.ID + `","sub":"` + bot.ID + `","aud":"` + string(oauthtest.Issuer) + `","jti":"d3","exp":` + fmt.Sprint(now+60) + `}{}`,
			"an array":            `[]`,
			"nothing":             ``,
		} {
			refused(t, what, w.AskWith(craft(t, header(nil), raw, es256(t, bot.Key))), 401, "invalid_client")
		}
		for what, raw := range map[string]string{"one part": "x", "two": "a.b", "four": "a.b.c.d", "five, as if encrypted": "a.b.c.d.e", "only dots": strings.Repeat(".", 10_000), "empty parts": ".."} {
			refused(t, what, w.AskWith(raw), 401, "invalid_client")
		}
	})
}

func TestA14RevocationTouchesOnesOwnTokensAndNeverLies(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, u string) {
		d, err := db.Open(t.Context(), u, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		w := oauthtest.New(t, d)
		bot, other := w.Agent("bot"), w.Agent("other")
		raw, second := w.Ask(bot).Token(), w.Ask(bot).Token()
		revoke := func(by *oauthtest.Agent, raw string, more ...string) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form(append(more, "token", raw)...), oauthtest.Basic(by.ID, by.Secret)))
		}
		if a := revoke(other, raw); a.Status != http.StatusOK || !w.Live(bot, raw) {
			t.Errorf("revoked by another client: %d, and the token is active: %v; want 200 and no effect", a.Status, w.Live(bot, raw))
		}
		for what, junk := range map[string]string{"unknown": "est_rt_x", "malformed": "a.b.c", "truncated": raw[:len(raw)-1]} {
			if a := revoke(bot, junk); a.Status != http.StatusOK {
				t.Errorf("%s: %d %s, want 200", what, a.Status, a.Body)
			}
		}
		if a := revoke(bot, raw, "token_type_hint", "refresh_token"); a.Status != http.StatusOK || w.Live(bot, raw) {
			t.Errorf("revoked by its own client, with a wrong hint: %d, and the token is active: %v; want 200 and dead", a.Status, w.Live(bot, raw))
		}
		if !w.Live(bot, second) {
			t.Error("another token of the client died along with it")
		}
		if a := revoke(bot, raw); a.Status != http.StatusOK {
			t.Errorf("revoked again: %d, want 200", a.Status)
		}
		refused(t, "without authentication", w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", second))), 401, "invalid_client")
		refused(t, "without a token", w.Do(oauthtest.Request("/oauth/revoke", nil, oauthtest.Basic(bot.ID, bot.Secret))), 400, "invalid_request")

		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		a := revoke(bot, second)
		if a.Status != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
			t.Errorf("revoked while the store is away: %d %s, want 503 with Retry-After", a.Status, a.Body)
		}
		if a := w.Ask(bot); a.Status != http.StatusServiceUnavailable || a.Token() != "" {
			t.Errorf("a token while the store is away: %d %s, want 503", a.Status, a.Body)
		}
	})
}

func TestA15TokenIsItsExactBytes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		raw := w.Ask(bot).Token()
		parts := strings.Split(raw, ".")
		// The last character of a signature of 64 bytes has four bits that are
		// not used.
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		last := strings.IndexByte(alphabet, raw[len(raw)-1])
		for what, altered := range map[string]string{
			"truncated": raw[:len(raw)-1], "padded": raw + "=", "padded twice": raw + "==", "a space before": " " + raw, "a space behind": raw + " ",
			"a newline behind": raw + "\n", "a newline inside": raw[:10] + "\n" + raw[10:], "a dot behind": raw + ".", "in capitals": strings.ToUpper(raw), "in small letters": strings.ToLower(raw),
			"another trailing bit": raw[:len(raw)-1] + string(alphabet[last^1]), "no signature": parts[0] + "." + parts[1] + ".",
			"standard base64": strings.NewReplacer("-", "+", "_", "/").Replace(raw) + "+", "quoted": `"` + raw + `"`, "with its scheme": "Bearer " + raw,
			"twice": raw + raw, "header of another": b64.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + parts[1] + "." + parts[2],
		} {
			if altered == raw {
				continue
			}
			if a := w.Introspect(bot, altered); a.Status != http.StatusOK || a.Body != `{"active":false}` {
				t.Errorf("%s: %d %s, want exactly that it is not active", what, a.Status, a.Body)
			}
		}
		if !w.Live(bot, raw) {
			t.Error("the token itself is not active")
		}
	})
}

func TestA16MalformedInputCostsNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		basic := oauthtest.Basic(bot.ID, bot.Secret)
		raw := func(body string, change ...func(*http.Request)) *http.Request {
			r := oauthtest.Request("/oauth/token", nil, basic)
			body2 := strings.NewReader(body)
			r.Body, r.ContentLength = readCloser{body2}, int64(len(body))
			for _, fn := range change {
				fn(r)
			}
			return r
		}
		deep := strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)
		before := allocated()
		for what, c := range map[string]struct {
			r    *http.Request
			code string
		}{
			"scope twice":              {raw("grant_type=client_credentials&scope=a&scope=b"), "invalid_request"},
			"unknown twice":            {raw("grant_type=client_credentials&foo=a&foo=b"), "invalid_request"},
			"a megabyte":               {raw("grant_type=client_credentials&x=" + strings.Repeat("a", 1<<20)), "invalid_request"},
			"a megabyte, undeclared":   {raw("grant_type=client_credentials&x="+strings.Repeat("a", 1<<20), func(r *http.Request) { r.ContentLength = -1 }), "invalid_request"},
			"10 k scopes":              {raw("grant_type=client_credentials&scope=" + strings.Repeat("a+", 10_000)), "invalid_scope"},
			"10 k times a parameter":   {raw(strings.Repeat("a=1&", 10_000)), "invalid_request"},
			"30 resources":             {raw("grant_type=client_credentials" + strings.Repeat("&resource=https://a.example", 30)), "invalid_target"},
			"a deep value":             {raw("grant_type=client_credentials&client_assertion=" + url.QueryEscape(deep)), "invalid_request"},
			"NUL":                      {raw("grant_type=client_credentials%00"), "invalid_request"},
			"NUL in an unknown name":   {raw("grant_type=client_credentials&a%00=b"), "invalid_request"},
			"no UTF-8":                 {raw("grant_type=client_credentials&purpose=%ff%fe"), "invalid_request"},
			"broken escape":            {raw("grant_type=client_credentials&purpose=%zz"), "invalid_request"},
			"a scope with a quote":     {raw("grant_type=client_credentials&scope=a%22b"), "invalid_scope"},
			"a scope with a tab":       {raw("grant_type=client_credentials&scope=a%09b"), "invalid_scope"},
			"a relative resource":      {raw("grant_type=client_credentials&resource=/crm"), "invalid_target"},
			"a resource, fragment":     {raw("grant_type=client_credentials&resource=https://crm.example%23x"), "invalid_target"},
			"a resource, no fragment":  {raw("grant_type=client_credentials&resource=https://crm.example%23"), "invalid_target"},
			"a resource of 10 kB":      {raw("grant_type=client_credentials&resource=https://crm.example/" + strings.Repeat("a", 10_000)), "invalid_target"},
			"JSON":                     {raw(`{"grant_type":"client_credentials"}`, func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }), "invalid_request"},
			"multipart":                {raw("x", func(r *http.Request) { r.Header.Set("Content-Type", "multipart/form-data; boundary=x") }), "invalid_request"},
			"no type":                  {raw("grant_type=client_credentials", func(r *http.Request) { r.Header.Del("Content-Type") }), "invalid_request"},
			"compressed":               {raw("grant_type=client_credentials", func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }), "invalid_request"},
			"an empty body":            {raw(""), "invalid_request"},
			"parameters in the URL":    {raw("", func(r *http.Request) { r.URL.RawQuery = "grant_type=client_credentials" }), "invalid_request"},
			"a purpose of its own":     {raw("grant_type=client_credentials&purpose=world-domination"), "invalid_request"},
			"a session of its own":     {raw("grant_type=client_credentials&session=ses_x"), "invalid_grant"},
			"a session as SQL":         {raw("grant_type=client_credentials&session=%27+or+1%3D1--"), "invalid_grant"},
			"a scope that nobody has":  {raw("grant_type=client_credentials&scope=a&resource=https://crm.example"), "invalid_scope"},
			"a scope without resource": {raw("grant_type=client_credentials&scope=customer.read"), "invalid_scope"},
			"an unknown resource":      {raw("grant_type=client_credentials&resource=https://erp.example"), "invalid_target"},
			"a resource with a slash":  {raw("grant_type=client_credentials&resource=https://crm.example/"), "invalid_target"},
			"userinfo in a resource":   {raw("grant_type=client_credentials&resource=https://x@crm.example"), "invalid_target"},
		} {
			refused(t, what, w.Do(c.r), 400, c.code)
		}
		if grown := allocated() - before; grown > 200<<20 {
			t.Errorf("32 malformed requests allocated %d MiB", grown>>20)
		}
		for what, c := range map[string]struct{ header string }{
			"Basic of nothing": {"Basic "}, "Basic, not base64": {"Basic %%%"}, "Basic without a colon": {"Basic " + base64.StdEncoding.EncodeToString([]byte("abc"))},
			"Basic, broken escape": {"Basic " + base64.StdEncoding.EncodeToString([]byte("%zz:x"))}, "Bearer": {"Bearer x"}, "another scheme": {"Negotiate x"}, "a bare word": {"x"},
			"Basic with NUL": {"Basic " + base64.StdEncoding.EncodeToString([]byte(bot.ID+"%00:"+bot.Secret))}, "an empty secret": {"Basic " + base64.StdEncoding.EncodeToString([]byte(bot.ID+":"))},
		} {
			a := w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials"), func(r *http.Request) { r.Header.Set("Authorization", c.header) }))
			refused(t, what, a, 401, "invalid_client")
			if strings.HasPrefix(c.header, "Basic") != strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Basic") {
				t.Errorf("%s: WWW-Authenticate is %q, want the scheme that was tried", what, a.Header.Get("WWW-Authenticate"))
			}
		}
		granted(t, "afterwards, an ordinary request", w.Ask(bot))
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestA18EveryKindOfJWTIsOnlyItself(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		good := w.Ask(bot).Token()
		body, err := b64.DecodeString(strings.Split(good, ".")[1])
		if err != nil {
			t.Fatal(err)
		}
		access, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.Introspection)
		if err != nil {
			t.Fatal(err)
		}
		// With the key of access tokens and all the claims of one, under every
		// other type.
		for _, typ := range []string{"JWT", "", "dpop+jwt", "oauth-id-jag+jwt", "token-introspection+jwt", "secevent+jwt", "logout+jwt", "txntoken+jwt", "client-authentication+jwt"} {
			h := map[string]any{"alg": "ES256", "kid": access.KID, "typ": typ}
			if typ == "" {
				delete(h, "typ")
			}
			if w.Live(bot, craft(t, h, string(body), es256(t, access.Signer))) {
				t.Errorf("a token of the type %q is an access token", typ)
			}
		}
		for _, typ := range []string{"at+jwt", "application/at+jwt", "At+Jwt"} {
			if !w.Live(bot, craft(t, map[string]any{"alg": "ES256", "kid": access.KID, "typ": typ}, string(body), es256(t, access.Signer))) {
				t.Errorf("a token of the type %q is no access token", typ)
			}
		}
		// With the key of another purpose, and with the type of access tokens.
		if w.Live(bot, craft(t, map[string]any{"alg": "ES256", "kid": answer.KID, "typ": "at+jwt"}, string(body), es256(t, answer.Signer))) {
			t.Error("a token that is signed with the key of introspection answers is an access token")
		}
		// A signed introspection answer about a good token, as an access token
		// and as a client assertion.
		r := oauthtest.Request("/oauth/introspect", oauthtest.Form("token", good), oauthtest.Basic(bot.ID, bot.Secret))
		r.Header.Set("Accept", "application/token-introspection+jwt")
		signed := w.Do(r)
		if signed.Header.Get("Content-Type") != "application/token-introspection+jwt" {
			t.Fatalf("the signed answer has the type %q", signed.Header.Get("Content-Type"))
		}
		if w.Live(bot, signed.Body) {
			t.Error("an introspection answer is an access token")
		}
		for what, raw := range map[string]string{"an introspection answer": signed.Body, "an access token": good} {
			refused(t, what+" as a client assertion", w.AskWith(raw), 401, "invalid_client")
		}
		assertion := w.Assertion(bot)
		if w.Live(bot, assertion) {
			t.Error("a client assertion is an access token")
		}
		if _, err := w.Callers.Authenticate(oauthtest.Request("/v1/x", nil, oauthtest.Bearer(assertion)), estover.DefaultTenant); estover.KindOf(err) != estover.Unknown {
			t.Errorf("a client assertion as a bearer token: %v, want Unknown", err)
		}
		granted(t, "the assertion, where it belongs", w.AskWith(assertion))
	})
}

func TestA19NothingWidens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		scope := func(what, want string, pairs ...string) oauthtest.Answer {
			t.Helper()
			a := granted(t, what, w.Ask(bot, pairs...))
			if a.Text("scope") != want {
				t.Errorf("%s: the scope is %q, want %q", what, a.Text("scope"), want)
			}
			return a
		}
		scope("everything", "customer.read customer.update", "resource", oauthtest.CRM)
		scope("less", "customer.read", "resource", oauthtest.CRM, "scope", "customer.read")
		scope("more than granted", "customer.read", "resource", oauthtest.CRM, "scope", "customer.read customer.delete admin *")
		scope("of two resources", "customer.read customer.update ticket.read", "resource", oauthtest.CRM, "resource", oauthtest.Tickets)
		refused(t, "another resource's scope", w.Ask(bot, "resource", oauthtest.CRM, "scope", "ticket.read"), 400, "invalid_scope")
		refused(t, "a wildcard", w.Ask(bot, "resource", oauthtest.CRM, "scope", "*"), 400, "invalid_scope")
		refused(t, "a resource that is granted and one that is not", w.Ask(bot, "resource", oauthtest.CRM, "resource", "https://erp.example"), 400, "invalid_target")

		// An action that two resources have and that is granted at one of them
		// cannot be in a token for both: at the other it would say too much.
		w.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "note.write")
		scope("an ambiguous action", "customer.read ticket.read", "resource", oauthtest.CRM, "resource", oauthtest.Tickets)
		scope("the same at one of them", "customer.read note.write", "resource", oauthtest.CRM)

		// The resource is the token's, exactly.
		only := scope("one resource", "ticket.read", "resource", oauthtest.Tickets)
		if _, err := w.Callers.For(oauthtest.Request("/x", nil, oauthtest.Bearer(only.Token())), estover.DefaultTenant, oauthtest.CRM); estover.KindOf(err) != estover.Unknown {
			t.Errorf("a token for one resource at another: %v, want Unknown", err)
		}
		if _, err := w.Callers.Authenticate(oauthtest.Request("/x", nil, oauthtest.Bearer(only.Token())), estover.DefaultTenant); estover.KindOf(err) != estover.Unknown {
			t.Errorf("a token for a resource at our own API: %v, want Unknown", err)
		}
		if _, err := w.Callers.For(oauthtest.Request("/x", nil, oauthtest.Bearer(only.Token())), estover.DefaultTenant, oauthtest.Tickets); err != nil {
			t.Errorf("a token where it belongs: %v", err)
		}

		// Time: no client and no session makes a token live longer.
		w.Tweak(bot.ID, func(c *token.Client) { c.Life = 24 * time.Hour })
		if a := w.Ask(bot); a.JSON["expires_in"].(float64) > 1800 {
			t.Errorf("a token lives for %v seconds, want at most 1800", a.JSON["expires_in"])
		}
		w.Tweak(bot.ID, func(c *token.Client) { c.Life = time.Minute })
		if a := w.Ask(bot); a.JSON["expires_in"].(float64) > 60 {
			t.Errorf("a token lives for %v seconds, want at most the client's 60", a.JSON["expires_in"])
		}
		w.Tweak(bot.ID, nil)
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), wish(bot, 2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if a := granted(t, "in a short session", w.Ask(bot, "session", s.ID)); a.JSON["expires_in"].(float64) > 120 {
			t.Errorf("a token lives for %v seconds, want at most its session's 120", a.JSON["expires_in"])
		}
	})
}

func TestA20ClientIsNeverTakenForAUser(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		for _, id := range []string{"user:" + bot.Sponsor.ID, "agent:" + bot.ID, bot.Sponsor.ID, bot.Name, bot.ID + " ", bot.ID + "\x00", "%2e", strings.ToUpper(bot.ID), ""} {
			a := w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials", "client_id", id, "client_secret", bot.Secret)))
			if strings.Contains(id, "\x00") {
				refused(t, fmt.Sprintf("the client id %q", id), a, 400, "invalid_request")
				continue
			}
			refused(t, fmt.Sprintf("the client id %q", id), a, 401, "invalid_client")
		}
		if token.ClientID("user:usr_x") || token.ClientID("agent:x") || !token.ClientID(bot.ID) {
			t.Error("a subject has the form of a client id")
		}
		tok, err := w.Tokens.Verify(t.Context(), w.Ask(bot).Token())
		if err != nil {
			t.Fatal(err)
		}
		if c := tok.Caller(); c.Subject != estover.Agent(bot.ID) || len(c.Roles) != 0 || c.Subject.Kind() == estover.UserKind {
			t.Errorf("the caller of an agent's token is %+v", c)
		}
	})
}
