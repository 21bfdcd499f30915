package oauth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth/oauthtest"
)

// jwk is the public half of a key, with further members.
func jwk(t *testing.T, key crypto.Signer, more map[string]any) map[string]any {
	t.Helper()
	k, err := jose.NewKey("", "", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	b, err := k.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	delete(m, "use")
	for name, v := range more {
		if v == nil {
			delete(m, name)
		} else {
			m[name] = v
		}
	}
	return m
}

// withProofs asks for a token with these headers DPoP.
func withProofs(w *oauthtest.World, a *oauthtest.Agent, proofs ...string) oauthtest.Answer {
	f := oauthtest.Form("grant_type", "client_credentials")
	return w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(a.ID, a.Secret), func(r *http.Request) { r.Header["Dpop"] = proofs }))
}

const tokenURL = string(oauthtest.Issuer) + "/oauth/token"

// A token that was asked for with a proof is bound to its key, says so, and is
// announced as such.
func TestDPoPTokensAreBound(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		for _, kind := range []string{"P-256", "Ed25519"} {
			p := w.Prover(kind)
			a := granted(t, "a good proof of "+kind, p.Ask(bot))
			if a.Text("token_type") != "DPoP" || a.Header.Get("DPoP-Nonce") == "" {
				t.Errorf("with a proof the type is %q and the next nonce %q", a.Text("token_type"), a.Header.Get("DPoP-Nonce"))
			}
			told := w.Introspect(bot, a.Token())
			cnf, _ := told.JSON["cnf"].(map[string]any)
			if told.Text("token_type") != "DPoP" || len(cnf) != 1 || cnf["jkt"] != p.Thumbprint() {
				t.Errorf("introspection says %s; want it bound to %s", told.Body, p.Thumbprint())
			}
		}
		bearer := granted(t, "no proof", w.Ask(bot))
		if bearer.Text("token_type") != "Bearer" || bearer.Header.Get("DPoP-Nonce") != "" {
			t.Errorf("without a proof the type is %q", bearer.Text("token_type"))
		}
		if m := w.Metadata().DPoPAlgorithms; !slices.Equal(m, []string{"ES256", "EdDSA", "Ed25519"}) {
			t.Errorf("the metadata names %q for proofs", m)
		}
	})
}

// A client with dpop_bound_access_tokens is refused without a proof.
func TestDPoPBoundClientsNeedAProof(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		w.Set(bot, agent.Client{DPoPBound: true})
		for what, a := range map[string]oauthtest.Answer{"by secret": w.Ask(bot), "by key": w.AskByKey(bot)} {
			refused(t, "no proof, "+what, a, 400, "invalid_dpop_proof")
			if a.Header.Get("DPoP-Nonce") == "" {
				t.Errorf("no proof, %s: the answer has no nonce to begin with", what)
			}
		}
		granted(t, "a proof", w.Prover("P-256").Ask(bot))
		w.Set(bot, agent.Client{})
		granted(t, "no proof, once the rule is gone", w.Ask(bot))
	})
}

// Every condition of a proof at the token endpoint (RFC 9449, section 4.3):
// what breaks it alone makes a good request a refused one.
func TestDPoPProofConditions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		p := w.Prover("P-256")
		claims := func(changes map[string]any) oauthtest.Claims { return with(p.Claims("POST", tokenURL, ""), changes) }
		head := func(changes map[string]any) map[string]any {
			return with(oauthtest.Claims{"alg": "ES256", "typ": "dpop+jwt", "jwk": jwk(t, p.Key, nil)}, changes)
		}
		byHand := func(h, c map[string]any) string { return craft(t, h, with(claims(nil), c), es256(t, p.Key)) }
		now := w.DB.Now().Unix()

		for what, proof := range map[string]string{
			"by hand":                      byHand(head(nil), nil),
			"application/dpop+jwt":         byHand(head(map[string]any{"typ": "application/dpop+jwt"}), nil),
			"a key that names its use":     byHand(head(map[string]any{"jwk": jwk(t, p.Key, map[string]any{"use": "sig", "alg": "ES256", "kid": "x"})}), nil),
			"htu with a query":             p.Sign(claims(map[string]any{"htu": tokenURL + "?a=b"})),
			"htu with a fragment":          p.Sign(claims(map[string]any{"htu": tokenURL + "#a"})),
			"htu in capitals":              p.Sign(claims(map[string]any{"htu": "HTTPS://Estover.EXAMPLE/oauth/token"})),
			"htu with the scheme's port":   p.Sign(claims(map[string]any{"htu": "https://estover.example:443/oauth/token"})),
			"40 s old":                     p.Sign(claims(map[string]any{"iat": now - 40})),
			"55 s ahead":                   p.Sign(claims(map[string]any{"iat": now + 55})),
			"a claim that nobody asks for": p.Sign(claims(map[string]any{"ath": "x", "exp": now + 1000})),
		} {
			granted(t, what, withProofs(w, bot, proof))
		}

		stranger := oauthtest.NewKey(t, "P-256")
		edKey := oauthtest.NewKey(t, "Ed25519")
		rsaKey := oauthtest.NewKey(t, "RSA")
		asEd := func(input []byte) []byte { return ed25519.Sign(edKey.(ed25519.PrivateKey), input) }
		asRSA := func(input []byte) []byte {
			sum := sha256.Sum256(input)
			b, err := rsa.SignPKCS1v15(rand.Reader, rsaKey.(*rsa.PrivateKey), crypto.SHA256, sum[:])
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		secret := []byte("0123456789abcdef0123456789abcdef")
		scalar, err := p.Key.(*ecdsa.PrivateKey).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		private := jwk(t, p.Key, map[string]any{"d": b64.EncodeToString(scalar)})
		shared := map[string]any{"kty": "oct", "k": b64.EncodeToString(secret)}
		good := func() string { return p.Sign(claims(nil)) }
		for _, c := range []struct {
			what   string
			proofs []string
		}{
			{"two headers", []string{good(), good()}},
			{"two proofs in one header", []string{good() + ", " + good()}},
			{"an empty header", []string{""}},
			{"no JWT", []string{"proof"}},
			{"cut off", []string{strings.TrimSuffix(good(), good()[len(good())-4:])[:40]}},
			{"padded", []string{good() + "="}},
			{"too large", []string{byHand(head(nil), map[string]any{"jti": strings.Repeat("x", 16<<10)})}},
			{"typ JWT", []string{byHand(head(map[string]any{"typ": "JWT"}), nil)}},
			{"no typ", []string{byHand(head(map[string]any{"typ": nil}), nil)}},
			{"typ at+jwt", []string{byHand(head(map[string]any{"typ": "at+jwt"}), nil)}},
			{"alg none", []string{craft(t, head(map[string]any{"alg": "none"}), claims(nil), unsigned)}},
			{"no signature", []string{craft(t, head(nil), claims(nil), unsigned)}},
			{"HS256", []string{craft(t, head(map[string]any{"alg": "HS256", "jwk": shared}), claims(nil), hs256(secret))}},
			{"RS256", []string{craft(t, head(map[string]any{"alg": "RS256", "jwk": jwk(t, rsaKey, nil)}), claims(nil), asRSA)}},
			{"an algorithm of another key", []string{craft(t, head(map[string]any{"jwk": jwk(t, edKey, map[string]any{"alg": nil})}), claims(nil), asEd)}},
			{"an EC signature as EdDSA", []string{byHand(head(map[string]any{"alg": "EdDSA"}), nil)}},
			{"a private key", []string{byHand(head(map[string]any{"jwk": private}), nil)}},
			{"a shared key", []string{byHand(head(map[string]any{"jwk": shared}), nil)}},
			{"no key", []string{byHand(head(map[string]any{"jwk": nil}), nil)}},
			{"a key for encryption", []string{byHand(head(map[string]any{"jwk": jwk(t, p.Key, map[string]any{"use": "enc"})}), nil)}},
			{"a key id in its place", []string{byHand(head(map[string]any{"jwk": nil, "kid": "key-1"}), nil)}},
			{"jku", []string{byHand(head(map[string]any{"jku": "https://evil.example/jwks"}), nil)}},
			{"x5u", []string{byHand(head(map[string]any{"x5u": "https://evil.example/cert"}), nil)}},
			{"crit", []string{byHand(head(map[string]any{"crit": []string{"htu"}}), nil)}},
			{"another's signature", []string{craft(t, head(nil), claims(nil), es256(t, stranger))}},
			{"htm GET", []string{p.Sign(claims(map[string]any{"htm": "GET"}))}},
			{"htm in small letters", []string{p.Sign(claims(map[string]any{"htm": "post"}))}},
			{"no htm", []string{p.Sign(claims(map[string]any{"htm": nil}))}},
			{"htu of another path", []string{p.Sign(claims(map[string]any{"htu": string(oauthtest.Issuer) + "/oauth/revoke"}))}},
			{"htu with a slash more", []string{p.Sign(claims(map[string]any{"htu": tokenURL + "/"}))}},
			{"htu of another host", []string{p.Sign(claims(map[string]any{"htu": "https://evil.example/oauth/token"}))}},
			{"htu below another host", []string{p.Sign(claims(map[string]any{"htu": "https://estover.example.evil.example/oauth/token"}))}},
			{"htu of another port", []string{p.Sign(claims(map[string]any{"htu": "https://estover.example:8443/oauth/token"}))}},
			{"htu of another scheme", []string{p.Sign(claims(map[string]any{"htu": "http://estover.example/oauth/token"}))}},
			{"htu with a user", []string{p.Sign(claims(map[string]any{"htu": "https://me@estover.example/oauth/token"}))}},
			{"htu of another host behind a user", []string{p.Sign(claims(map[string]any{"htu": "https://estover.example@evil.example/oauth/token"}))}},
			{"htu that is relative", []string{p.Sign(claims(map[string]any{"htu": "/oauth/token"}))}},
			{"no htu", []string{p.Sign(claims(map[string]any{"htu": nil}))}},
			{"htu that is a list", []string{p.Sign(claims(map[string]any{"htu": []string{tokenURL}}))}},
			{"62 s old", []string{p.Sign(claims(map[string]any{"iat": now - 62}))}},
			{"10 min ahead", []string{p.Sign(claims(map[string]any{"iat": now + 600}))}},
			{"no iat", []string{p.Sign(claims(map[string]any{"iat": nil}))}},
			{"iat as a text", []string{p.Sign(claims(map[string]any{"iat": "now"}))}},
			{"no jti", []string{p.Sign(claims(map[string]any{"jti": nil}))}},
			{"an empty jti", []string{p.Sign(claims(map[string]any{"jti": ""}))}},
			{"expired, though it need not say so", []string{p.Sign(claims(map[string]any{"exp": now - 1}))}},
			{"Htu beside htu", []string{craft(t, head(nil), `{"jti":"a","htm":"POST","htu":"`+tokenURL+`","Htu":"x","iat":1,"nonce":"`+p.Nonce+`"}`, es256(t, p.Key))}},
		} {
			refused(t, c.what, withProofs(w, bot, c.proofs...), 400, "invalid_dpop_proof")
		}

		for what, nonce := range map[string]any{"no nonce": nil, "a nonce of nobody": "x", "a nonce that is none": 1, "an empty nonce": ""} {
			a := withProofs(w, bot, p.Sign(claims(map[string]any{"nonce": nonce})))
			refused(t, what, a, 400, "use_dpop_nonce")
			if a.Header.Get("DPoP-Nonce") != p.Nonce {
				t.Errorf("%s: the answer has the nonce %q, want %q", what, a.Header.Get("DPoP-Nonce"), p.Nonce)
			}
		}
		elsewhere := oauthtest.New(t, dbtest.Open(t)).Prover("P-256").Nonce
		refused(t, "a nonce of another server", withProofs(w, bot, p.Sign(claims(map[string]any{"nonce": elsewhere}))), 400, "use_dpop_nonce")
	})
}

// A nonce is good in its window and the next one, on every node, and a client
// that is told another one has lost nothing that is good once.
func TestDPoPNonces(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		clock := dbtest.NewClock(d)
		bot := one.Agent("bot")
		first := one.Prover("P-256")
		onTwo := *first
		onTwo.World = two
		granted(t, "another node's nonce", onTwo.Ask(bot))
		clock.Advance(5 * time.Minute)
		granted(t, "the nonce of the window before", onTwo.Ask(bot))
		clock.Advance(5 * time.Minute)
		stale := first.Ask(bot)
		refused(t, "a nonce of two windows before", stale, 400, "use_dpop_nonce")

		assertion := one.Assertion(bot)
		ask := func() oauthtest.Answer {
			f := oauthtest.Form("grant_type", "client_credentials", "client_assertion_type", oauthtest.AssertionType, "client_assertion", assertion)
			return one.Do(oauthtest.Request("/oauth/token", f, first.Prove("")))
		}
		before := count(t, d, "select count(*) from used_jti")
		refused(t, "a stale nonce beside an assertion", ask(), 400, "use_dpop_nonce")
		if n := count(t, d, "select count(*) from used_jti"); n != before {
			t.Errorf("a client that is to use another nonce has used up %d names", n-before)
		}
		first.Nonce = stale.Header.Get("DPoP-Nonce")
		granted(t, "the same assertion with the nonce of the answer", ask())
		refused(t, "the same assertion with another proof", ask(), 401, "invalid_client")
	})
}

// A proof is good once for its key and URL, however many present it, on one
// node or two.
func TestDPoPProofIsGoodOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		bot := one.Agent("bot")
		p := one.Prover("P-256")
		granted(t, "the first request", p.Ask(bot))
		proof := p.Sign(p.Claims("POST", tokenURL, ""))
		won := 0
		for _, a := range atOnce(64, func(i int) oauthtest.Answer {
			return withProofs([]*oauthtest.World{one, two}[i%2], bot, proof)
		}) {
			if a.Status == http.StatusOK {
				won++
				continue
			}
			refused(t, "a proof that was presented before", a, 400, "invalid_dpop_proof")
		}
		if won != 1 {
			t.Errorf("of 64 presentations of one proof %d got a token, want 1", won)
		}

		c := p.Claims("POST", tokenURL, "")
		granted(t, "a proof", withProofs(one, bot, p.Sign(c)))
		refused(t, "its jti in another proof", withProofs(one, bot, p.Sign(with(c, map[string]any{"htu": strings.ToUpper(tokenURL[:8]) + tokenURL[8:]}))), 400, "invalid_dpop_proof")
		other := one.Prover("P-256")
		granted(t, "its jti by another key", withProofs(one, bot, other.Sign(with(c, map[string]any{"htu": tokenURL}))))

		// Which of two things was presented before is told.
		fresh := one.Assertion(bot)
		used := p.Sign(p.Claims("POST", tokenURL, ""))
		granted(t, "a proof", withProofs(one, bot, used))
		form := func(assertion string) url.Values {
			return oauthtest.Form("grant_type", "client_credentials", "client_assertion_type", oauthtest.AssertionType, "client_assertion", assertion)
		}
		header := func(proof string) func(*http.Request) { return func(r *http.Request) { r.Header.Set("DPoP", proof) } }
		events := count(t, d, "select count(*) from audit")
		refused(t, "a used proof beside a fresh assertion", one.Do(oauthtest.Request("/oauth/token", form(fresh), header(used))), 400, "invalid_dpop_proof")
		refused(t, "a used proof, again", one.Do(oauthtest.Request("/oauth/token", form(one.Assertion(bot)), header(used))), 400, "invalid_dpop_proof")
		if n := count(t, d, "select count(*) from audit") - events; n != 2 {
			t.Errorf("two replays left %d events", n)
		}
	})
}

// A18, as far as proofs go: a proof is nothing else, and nothing else is one.
func TestA18ProofsAreOnlyProofs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		p := w.Prover("P-256")
		bound := p.Ask(bot).Token()
		proof := p.Sign(with(p.Claims("POST", tokenURL, ""), w.Claims(bot)))
		refused(t, "a proof as a client assertion", w.AskWith(proof), 401, "invalid_client")
		if w.Live(bot, proof) {
			t.Error("a proof is an access token")
		}
		for what, raw := range map[string]string{"an access token": bound, "a client assertion": w.Assertion(bot)} {
			refused(t, what+" as a proof", withProofs(w, bot, raw), 400, "invalid_dpop_proof")
		}
	})
}

// A bound token counts at introspection, where it authenticates whoever asks,
// with its proof alone.
func TestDPoPAtIntrospection(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		p := w.Prover("P-256")
		bound := p.Ask(bot).Token()
		ask := func(change func(*http.Request)) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", bound), change))
		}
		if a := ask(p.Prove(bound)); a.Status != http.StatusOK || a.JSON["active"] != true || a.Header.Get("DPoP-Nonce") == "" {
			t.Errorf("a bound token with its proof: %d %s", a.Status, a.Body)
		}
		for what, change := range map[string]func(*http.Request){
			"as Bearer": oauthtest.Bearer(bound),
			"as Bearer, with a proof": func(r *http.Request) {
				p.Prove(bound)(r)
				r.Header.Set("Authorization", "Bearer "+bound)
			},
			"without a proof":        func(r *http.Request) { r.Header.Set("Authorization", "DPoP "+bound) },
			"with another key":       w.Prover("P-256").Prove(bound),
			"with another's ath":     func(r *http.Request) { p.Prove(bound + "x")(r); r.Header.Set("Authorization", "DPoP "+bound) },
			"with a proof for none":  func(r *http.Request) { p.Prove("")(r); r.Header.Set("Authorization", "DPoP "+bound) },
			"with a nonce of nobody": (&oauthtest.Prover{World: w, Key: p.Key, Nonce: "x"}).Prove(bound),
		} {
			a := ask(change)
			if a.Status != http.StatusUnauthorized || a.JSON["active"] != nil {
				t.Errorf("%s: %d %s, want 401", what, a.Status, a.Body)
			}
			if challenges := strings.Join(a.Header.Values("WWW-Authenticate"), "\n"); !strings.Contains(challenges, `DPoP realm="estover", algs="ES256 EdDSA Ed25519"`) {
				t.Errorf("%s: the challenge is %q", what, challenges)
			}
		}
	})
}
