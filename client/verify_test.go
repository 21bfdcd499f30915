package client_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev/client"
	"estover.dev/internal/agent"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// A resource learns from the token alone who calls, on whose authority and for
// what.
func TestVerify(t *testing.T) {
	w := newWorld(t)
	planner, helper := w.Agent("planner"), w.Agent("helper")
	w.Set(helper, agent.Client{GrantTypes: []string{token.Own, token.Exchange}, Introspect: []string{oauthtest.CRM}})
	tok, err := w.client(t, planner.ID, client.Secret(planner.Secret), nil).Token(t.Context(), support)
	must(t, err)
	v := w.verifier(oauthtest.CRM)
	c, err := v.Verify(t.Context(), tok.Reveal())
	must(t, err)
	if c.Subject != "agent:"+planner.ID || c.Client != planner.ID || c.Actors != nil || c.Session != tok.Session || c.Purpose != "support" || c.ID == "" ||
		!c.May("customer.read") || c.May("customer.delete") || !slices.Equal(c.Audience, []string{oauthtest.CRM}) || c.Expires.Sub(c.Issued) != 15*time.Minute {
		t.Errorf("the token says %+v", c)
	}
	var more struct {
		Grant string `json:"grant_id"`
	}
	if must(t, c.Into(&more)); more.Grant == "" {
		t.Error("there is no grant_id")
	}
	got, err := w.client(t, helper.ID, client.Secret(helper.Secret), nil).Exchange(t.Context(), tok.Reveal(), client.Want{})
	must(t, err)
	c, err = v.Verify(t.Context(), got.Reveal())
	must(t, err)
	if c.Subject != "agent:"+planner.ID || !slices.Equal(c.Actors, []string{"agent:" + helper.ID}) {
		t.Errorf("the token that was handed on is of %s by %q", c.Subject, c.Actors)
	}
	if _, err := w.verifier(oauthtest.Tickets).Verify(t.Context(), tok.Reveal()); code(err) != "invalid_token" {
		t.Errorf("at another resource: %v", err)
	}
	other := w.verifier(oauthtest.CRM)
	other.Issuer = issuer + "/t/acme"
	if _, err := other.Verify(t.Context(), tok.Reveal()); err == nil {
		t.Error("a token is accepted from another issuer")
	}
	w.clock.Advance(15 * time.Minute)
	if _, err := v.Verify(t.Context(), tok.Reveal()); code(err) != "invalid_token" {
		t.Errorf("after its end: %v", err)
	}
}

// A keyed is an issuer of the test's own making, which signs what it likes.
type keyed struct {
	*client.Verifier
	key    *ecdsa.PrivateKey
	id     string
	asked  atomic.Int32 // how often for its keys
	broken atomic.Bool
	now    atomic.Int64 // added to the clock
}

const its = "https://est.example"

func newKeyed(t *testing.T) *keyed {
	t.Helper()
	k := &keyed{id: "k1"}
	k.turn(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/oauth-authorization-server", func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(rw, `{"issuer":%q,"token_endpoint":%q,"jwks_uri":%q}`, its, its+"/token", its+"/jwks")
	})
	mux.HandleFunc("/jwks", func(rw http.ResponseWriter, _ *http.Request) {
		k.asked.Add(1)
		if k.broken.Load() {
			http.Error(rw, "", http.StatusServiceUnavailable)
			return
		}
		point, _ := k.key.PublicKey.Bytes()
		all := []string{`{"kty":"RSA","kid":"id-token","alg":"RS256","n":"AQAB","e":"AQAB"}`}
		for id, more := range map[string]string{k.id: `"use":"sig","alg":"ES256"`, "for-encryption": `"use":"enc"`, "for-another": `"alg":"ES384"`, "private": `"d":"AQAB"`} {
			all = append(all, fmt.Sprintf(`{"kty":"EC","crv":"P-256","kid":%q,%s,"x":%q,"y":%q}`, id, more, b64(point[1:33]), b64(point[33:])))
		}
		fmt.Fprintf(rw, `{"keys":[%s]}`, strings.Join(all, ","))
	})
	k.Verifier = &client.Verifier{Issuer: its, Audience: oauthtest.CRM, URL: "https://crm.example", Transport: reaching(t, mux)}
	client.SetVerifierClock(k.Verifier, k.clock)
	return k
}

func (k *keyed) clock() time.Time { return time.Now().Add(time.Duration(k.now.Load())) }

// turn gives the issuer another key.
func (k *keyed) turn(t *testing.T) {
	t.Helper()
	var err error
	k.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

type members = map[string]any

// sign is a token with this header and these claims.
func sign(t *testing.T, key *ecdsa.PrivateKey, head, claims any) string {
	t.Helper()
	var parts [2]string
	for i, v := range []any{head, claims} {
		b, ok := v.([]byte)
		if !ok {
			var err error
			b, err = json.Marshal(v)
			must(t, err)
		}
		parts[i] = b64(b)
	}
	message := parts[0] + "." + parts[1]
	sum := sha256.Sum256([]byte(message))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	must(t, err)
	return message + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func with(m members, name string, value any) members {
	m = maps.Clone(m)
	if m[name] = value; value == nil {
		delete(m, name)
	}
	return m
}

func (k *keyed) good() (head, claims members) {
	now := k.clock().Unix()
	return members{"typ": "at+jwt", "alg": "ES256", "kid": k.id}, members{
		"iss": its, "sub": "agent:agt_1", "client_id": "agt_1", "aud": oauthtest.CRM, "exp": now + 900, "iat": now, "jti": rand.Text(),
	}
}

// Nothing but a good token is taken for one.
func TestVerifyRefuses(t *testing.T) {
	k := newKeyed(t)
	head, claims := k.good()
	good := sign(t, k.key, head, claims)
	if _, err := k.Verify(t.Context(), good); err != nil {
		t.Fatalf("a good token: %v", err)
	}
	if _, err := k.Verify(t.Context(), sign(t, k.key, with(head, "typ", "application/at+JWT"), with(claims, "aud", []string{"https://x.example", oauthtest.CRM}))); err != nil {
		t.Errorf("a good token in other words: %v", err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	parts := strings.Split(good, ".")
	point, err := k.key.PublicKey.Bytes()
	must(t, err)
	shared := func(head members) string { // HS256 with the public key as the secret
		h, _ := json.Marshal(head)
		m := b64(h) + "." + parts[1]
		mac := hmac.New(sha256.New, point)
		mac.Write([]byte(m))
		return m + "." + b64(mac.Sum(nil))
	}
	now := time.Now().Unix()
	twice, err := json.Marshal(claims)
	must(t, err)
	for name, raw := range map[string]string{
		"nothing":                  "",
		"two parts":                parts[0] + "." + parts[1],
		"four parts":               good + ".",
		"padding":                  good + "=",
		"a line break":             parts[0] + "." + parts[1] + ".\n" + parts[2],
		"too long":                 sign(t, k.key, head, with(claims, "more", strings.Repeat("A", 16<<10))),
		"no signature":             parts[0] + "." + parts[1] + ".",
		"another's signature":      sign(t, other, head, claims),
		"an ID token":              sign(t, k.key, with(head, "typ", "JWT"), claims),
		"no type":                  sign(t, k.key, with(head, "typ", nil), claims),
		"a proof":                  sign(t, k.key, with(head, "typ", "dpop+jwt"), claims),
		"alg none":                 sign(t, k.key, with(head, "alg", "none"), claims),
		"alg HS256":                shared(with(head, "alg", "HS256")),
		"alg ES384":                sign(t, k.key, with(head, "alg", "ES384"), claims),
		"alg of another kind":      sign(t, k.key, with(head, "alg", "EdDSA"), claims),
		"no kid":                   sign(t, k.key, with(head, "kid", nil), claims),
		"the kid of an RSA key":    sign(t, k.key, with(head, "kid", "id-token"), claims),
		"a key for encryption":     sign(t, k.key, with(head, "kid", "for-encryption"), claims),
		"a key for another alg":    sign(t, k.key, with(head, "kid", "for-another"), claims),
		"a key that is not public": sign(t, k.key, with(head, "kid", "private"), claims),
		"a key of its own":         sign(t, other, with(head, "jwk", members{"kty": "EC"}), claims),
		"a key from elsewhere":     sign(t, k.key, with(head, "jku", "https://evil.example"), claims),
		"a critical extension":     sign(t, k.key, with(head, "crit", []string{"b64"}), claims),
		"a claim twice":            sign(t, k.key, head, append([]byte(`{"sub":"user:usr_1",`), twice[1:]...)),
		"claims that are a list":   sign(t, k.key, head, []byte(`[]`)),
		"more than one object":     sign(t, k.key, head, append(slices.Clone(twice), '{', '}')),
		"another issuer":           sign(t, k.key, head, with(claims, "iss", its+"/")),
		"another audience":         sign(t, k.key, head, with(claims, "aud", oauthtest.CRM+"/")),
		"no audience":              sign(t, k.key, head, with(claims, "aud", nil)),
		"an empty audience":        sign(t, k.key, head, with(claims, "aud", []string{})),
		"the end passed":           sign(t, k.key, head, with(claims, "exp", now-1)),
		"no end":                   sign(t, k.key, head, with(claims, "exp", nil)),
		"an end that is text":      sign(t, k.key, head, with(claims, "exp", "9999999999")),
		"an end beyond all":        sign(t, k.key, head, with(claims, "exp", 1e300)),
		"not before":               sign(t, k.key, head, with(claims, "nbf", now+60)),
		"from the future":          sign(t, k.key, head, with(claims, "iat", now+60)),
		"no subject":               sign(t, k.key, head, with(claims, "sub", nil)),
		"a subject in capitals":    sign(t, k.key, head, with(with(claims, "sub", nil), "SUB", "agent:agt_1")),
		"no client":                sign(t, k.key, head, with(claims, "client_id", nil)),
		"an actor without a name":  sign(t, k.key, head, with(claims, "act", members{"act": members{"sub": "x"}})),
		"bound to a key":           sign(t, k.key, head, with(claims, "cnf", members{"jkt": "x"})),
		"bound to a certificate":   sign(t, k.key, head, with(claims, "cnf", members{"x5t#S256": "x"})),
		"bound in another way":     sign(t, k.key, head, with(claims, "cnf", members{"kid": "x"})),
		"bound to nothing":         sign(t, k.key, head, with(claims, "cnf", members{})),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := k.Verify(t.Context(), raw)
			if code(err) != "invalid_token" || c.Subject != "" {
				t.Errorf("%v and %+v, want invalid_token", err, c)
			}
		})
	}
	if n := k.asked.Load(); n != 1 {
		t.Errorf("the keys were fetched %d times, want once", n)
	}
}

// Keys are kept, fetched again when one is not known or they are old, seldom,
// and used for a while when the issuer does not answer.
func TestVerifyKeys(t *testing.T) {
	k := newKeyed(t)
	pass := func(d time.Duration) { k.now.Add(int64(d)) }
	check := func(what string, ok bool, asked int32) {
		t.Helper()
		head, claims := k.good()
		_, err := k.Verify(t.Context(), sign(t, k.key, head, claims))
		if (err == nil) != ok || k.asked.Load() != asked {
			t.Errorf("%s: %v after %d fetches, want accepted: %v after %d", what, err, k.asked.Load(), ok, asked)
		}
	}
	k.broken.Store(true)
	check("no keys at all", false, 1)
	check("at once again", false, 1)
	k.broken.Store(false)
	pass(2 * time.Second)
	check("a moment later", true, 2)
	head, claims := k.good()
	for range 20 {
		if _, err := k.Verify(t.Context(), sign(t, k.key, with(head, "kid", rand.Text()), claims)); code(err) != "invalid_token" {
			t.Fatalf("nonsense: %v", err)
		}
	}
	check("after nonsense", true, 2)
	pass(31 * time.Second)
	k.id = "k2"
	k.turn(t)
	check("another key", true, 3)
	pass(11 * time.Minute)
	check("when they are old", true, 4)
	pass(11 * time.Minute)
	k.broken.Store(true)
	check("old, and no answer", true, 5)
	check("at once again", true, 5)
	pass(50 * time.Minute)
	check("too old, and no answer", false, 6)
	var refusal *client.Error
	if _, err := k.Verify(t.Context(), sign(t, k.key, head, claims)); err == nil || errors.As(err, &refusal) {
		t.Errorf("that the keys cannot be had is told as if the token were bad: %v", err)
	}
	k.broken.Store(false)
	pass(31 * time.Second)
	k.id = "k3"
	gone, leave := context.WithCancel(t.Context())
	leave()
	head, claims = k.good()
	if _, err := k.Verify(gone, sign(t, k.key, head, claims)); err == nil {
		t.Error("whoever has left gets an answer from keys that are too old")
	}
}

// A request shows the key that its token is bound to, once with each proof.
func TestVerifyRequest(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	v := w.verifier(oauthtest.CRM)
	for _, kind := range []string{"P-256", "Ed25519"} {
		t.Run(kind, func(t *testing.T) {
			rec := &recorder{}
			key := oauthtest.NewKey(t, kind)
			c := w.client(t, bot.ID, client.Secret(bot.Secret), key)
			tr := &client.Transport{Client: c, Want: support, Base: rec}
			made := func() *http.Request {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://crm.example/v1/customers?limit=3", nil)
				must(t, err)
				_, err = tr.RoundTrip(r)
				must(t, err)
				in := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/customers?limit=3", nil)
				in.Header = rec.requests[len(rec.requests)-1].Header
				return in
			}
			r := made()
			claims, err := v.Request(r)
			if err != nil || claims.Client != bot.ID || claims.Bound.Key == "" {
				t.Fatalf("a good request: %v %+v", err, claims)
			}
			if _, err := v.Request(r); code(err) != "invalid_dpop_proof" {
				t.Errorf("for the second time: %v", err)
			}
			late := made()
			w.clock.Advance(61 * time.Second)
			if _, err := v.Request(late); code(err) != "invalid_dpop_proof" {
				t.Errorf("a minute later: %v", err)
			}
			for name, change := range map[string]func(*http.Request){
				"as Bearer":      func(r *http.Request) { r.Header.Set("Authorization", "Bearer"+r.Header.Get("Authorization")[4:]) },
				"without proof":  func(r *http.Request) { r.Header.Del("DPoP") },
				"with two":       func(r *http.Request) { r.Header.Add("DPoP", r.Header.Get("DPoP")) },
				"another method": func(r *http.Request) { r.Method = http.MethodPost },
				"another path":   func(r *http.Request) { r.URL.Path = "/v1/secrets" },
				"no token":       func(r *http.Request) { r.Header.Del("Authorization") },
				"no scheme":      func(r *http.Request) { r.Header.Set("Authorization", "Basic eDp5") },
				"another key": func(r *http.Request) {
					k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
					must(t, err)
					r.Header.Set("DPoP", proofBy(t, k, "dpop+jwt", r, w.clock.Now()))
				},
			} {
				r := made()
				change(r)
				if _, err := v.Request(r); err == nil {
					t.Errorf("%s: accepted", name)
				}
			}
			if key, ok := key.(*ecdsa.PrivateKey); ok {
				r := made()
				r.Header.Set("DPoP", proofBy(t, key, "dpop+jwt", r, w.clock.Now()))
				if _, err := v.Request(r); err != nil {
					t.Errorf("a proof of the test's own making: %v", err)
				}
				r.Header.Set("DPoP", proofBy(t, key, "JWT", r, w.clock.Now()))
				if _, err := v.Request(r); code(err) != "invalid_dpop_proof" {
					t.Errorf("a signature that is no proof: %v", err)
				}
			}
			elsewhere := w.verifier(oauthtest.CRM)
			elsewhere.URL = "https://crm2.example"
			if _, err := elsewhere.Request(made()); code(err) != "invalid_dpop_proof" {
				t.Errorf("at another address: %v", err)
			}
			if _, err := v.Request(made()); err != nil {
				t.Errorf("the next request: %v", err)
			}
		})
	}
}

// proofBy is a proof by a key for the request of the test.
func proofBy(t *testing.T, key *ecdsa.PrivateKey, typ string, r *http.Request, now time.Time) string {
	t.Helper()
	point, err := key.PublicKey.Bytes()
	must(t, err)
	sum := sha256.Sum256([]byte(strings.TrimPrefix(r.Header.Get("Authorization"), "DPoP ")))
	return sign(t, key, members{"typ": typ, "alg": "ES256", "jwk": members{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])}}, members{
		"jti": rand.Text(), "htm": "GET", "htu": "https://crm.example/v1/customers", "iat": now.Unix(), "ath": b64(sum[:]),
	})
}

// A token that is bound to a certificate counts on a connection with it.
func TestVerifyCertificate(t *testing.T) {
	k := newKeyed(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	var certs []*x509.Certificate
	for range 2 {
		der, err := x509.CreateCertificate(rand.Reader, template, template, k.key.Public(), crypto.Signer(k.key))
		must(t, err)
		c, err := x509.ParseCertificate(der)
		must(t, err)
		certs = append(certs, c)
	}
	sum := sha256.Sum256(certs[0].Raw)
	head, claims := k.good()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1", nil)
	r.Header.Set("Authorization", "Bearer "+sign(t, k.key, head, with(claims, "cnf", members{"x5t#S256": b64(sum[:])})))
	for name, c := range map[string]struct {
		tls *tls.ConnectionState
		ok  bool
	}{
		"no TLS": {nil, false}, "no certificate": {&tls.ConnectionState{}, false},
		"another": {&tls.ConnectionState{PeerCertificates: certs[1:]}, false}, "the certificate": {&tls.ConnectionState{PeerCertificates: certs}, true},
	} {
		r.TLS = c.tls
		if got, err := k.Request(r); (err == nil) != c.ok || c.ok && got.Bound.Certificate == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
