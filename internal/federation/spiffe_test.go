package federation_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/federation"
	"estover.dev/internal/jose"
)

// bundle is what a trust domain publishes: keys of JWT-SVIDs, authorities of
// X.509-SVIDs, and what else there is.
func bundle(t testing.TB, keys []*platform, authorities []*platform, also map[string]any) string {
	t.Helper()
	set := map[string]any{"spiffe_sequence": 1}
	var list []map[string]any
	jwk := func(p *platform, use string) map[string]any {
		k, err := jose.NewKey("", p.id, p.key.Public())
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
		delete(m, "alg")
		m["use"] = use
		return m
	}
	for _, p := range keys {
		list = append(list, jwk(p, "jwt-svid"))
	}
	for _, p := range authorities {
		m := jwk(p, "x509-svid")
		delete(m, "kid")
		m["x5c"] = []string{base64.StdEncoding.EncodeToString(p.authority().Raw)}
		list = append(list, m)
	}
	set["keys"] = append(list, map[string]any{"use": "wit-svid", "kty": "EC"})
	for name, v := range also {
		set[name] = v
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// authority is a certificate of the platform, as an authority of X.509-SVIDs.
func (p *platform) authority() *x509.Certificate {
	p.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: p.id}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, p.key.Public(), p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return cert
}

// svid is a JWT-SVID of the trust domain example.org, with changes.
func svid(now time.Time, change claims) claims {
	c := claims{"sub": "spiffe://example.org/ns/prod/sa/billing", "aud": []string{own}, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()}
	for name, v := range change {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	return c
}

// spire is a trust in the trust domain example.org.
func spire(keys string) federation.Spec {
	return federation.Spec{
		Name: "spire", Issuer: "spiffe://example.org", JWKS: keys, Algorithms: []string{"ES256"}, Audience: own,
		Rules: []federation.Rule{{Agent: "agt_billing", Claims: map[string]string{"sub": "spiffe://example.org/ns/prod/sa/billing"}}},
	}
}

// A JWT-SVID without an issuer is recognised by the trust of the trust domain of
// its subject, and nothing else finds a trust by its subject.
func TestJWTSVIDsWithoutAnIssuer(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		p, stranger := newPlatform(t, "k1"), newPlatform(t, "k1")
		w.put(t, spire(bundle(t, []*platform{p}, nil, nil)))
		w.put(t, actions(jwks(t, newPlatform(t, "k1"))))
		now := d.Now()
		w.recognised(t, "a JWT-SVID", p.token(svid(now, nil)), "agt_billing")
		w.recognised(t, "of the type JOSE", p.token(svid(now, nil), "typ", "JOSE"), "agt_billing")
		w.recognised(t, "without a type", p.token(svid(now, nil), "typ", ""), "agt_billing")
		for _, c := range []struct{ what, raw, why string }{
			{"of another workload", p.token(svid(now, claims{"sub": "spiffe://example.org/ns/prod/sa/other"})), "No rule"},
			{"signed by somebody else", stranger.token(svid(now, nil)), "not accepted"},
			{"of a trust domain that no trust is about", p.token(svid(now, claims{"sub": "spiffe://example.com/ns/prod/sa/billing"})), ""},
			{"of a subject that is no SPIFFE ID", p.token(svid(now, claims{"sub": "example.org/ns/prod/sa/billing"})), ""},
			{"of the trust domain itself", p.token(svid(now, claims{"sub": "spiffe://example.org"})), ""},
			{"with a path that goes up", p.token(svid(now, claims{"sub": "spiffe://example.org/ns/../sa/billing"})), ""},
			{"with a port", p.token(svid(now, claims{"sub": "spiffe://example.org:443/ns/prod/sa/billing"})), ""},
			{"with an issuer that no trust is about", p.token(svid(now, claims{"iss": "https://spire.example"})), ""},
			{"with the trust domain as its issuer", p.token(svid(now, claims{"iss": "spiffe://example.org"})), ""},
			{"with an issuer that is empty", p.token(svid(now, claims{"iss": ""})), ""},
			{"with an issuer of another trust", p.token(svid(now, claims{"iss": github})), "github"},
			{"for two", p.token(svid(now, claims{"aud": []string{own, "https://other.example"}})), "not accepted"},
			{"without an end", p.token(svid(now, claims{"exp": nil})), "not accepted"},
			{"of the type of access tokens", p.token(svid(now, nil), "typ", "at+jwt"), "not accepted"},
			{"that names an actor", p.token(svid(now, claims{"act": map[string]any{"sub": "x"}})), "act"},
			{"that lives for a day", p.token(svid(now, claims{"exp": now.Add(24 * time.Hour).Unix()})), "max_token_seconds"},
		} {
			w.refused(t, "a JWT-SVID "+c.what, c.raw, c.why)
		}
		// Another issuer's token without its issuer is nobody's.
		w.refused(t, "a token of GitHub without an issuer", p.token(job(now, claims{"iss": nil})), "")
		// In another tenant there is no such trust.
		if got, err := w.Recognise(t.Context(), "other", p.token(svid(now, nil))); !errors.Is(err, federation.ErrUntrusted) {
			t.Errorf("in another tenant: %+v, %v", got, err)
		}
	})
}

// What can be said of a trust domain.
func TestCheckOfTrustDomains(t *testing.T) {
	p := newPlatform(t, "k1")
	good := bundle(t, []*platform{p}, []*platform{p}, nil)
	for what, change := range map[string]func(*federation.Spec){
		"a path":              func(s *federation.Spec) { s.Issuer += "/x" },
		"a capital letter":    func(s *federation.Spec) { s.Issuer = "spiffe://Example.org" },
		"no name":             func(s *federation.Spec) { s.Issuer = "spiffe://" },
		"a type":              func(s *federation.Spec) { s.Types = []string{"x"} },
		"keys of another use": func(s *federation.Spec) { s.JWKS = jwks(t, p) },
		"an empty bundle":     func(s *federation.Spec) { s.JWKS = `{"keys":[]}` },
		"a key without an id": func(s *federation.Spec) {
			s.JWKS = strings.ReplaceAll(bundle(t, []*platform{p}, nil, nil), `"kid"`, `"kidd"`)
		},
		"a private key":        func(s *federation.Spec) { s.JWKS = strings.ReplaceAll(good, `"crv"`, `"d":"AA","crv"`) },
		"a life of three days": func(s *federation.Spec) { s.MaxSeconds = 3 * 24 * 3600 },
	} {
		s := spire(good)
		change(&s)
		if _, err := federation.Check(s); !errors.Is(err, federation.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
	only := spire(bundle(t, nil, []*platform{p}, nil))
	only.Rules = nil
	if _, err := federation.Check(only); err != nil {
		t.Errorf("a trust domain for certificates alone: %v", err)
	}
}

// A bundle at an endpoint is fetched as often as it says, within bounds, once at
// a time; what is not in it any more counts no more after the next fetch.
func TestBundleEndpoint(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		w := open(t, d)
		old, next := newPlatform(t, "k1"), newPlatform(t, "k2")
		s := spire("")
		s.JWKSURL = "https://spire.example/bundle"
		w.put(t, s)
		publish := func(hint int, keys ...*platform) {
			text := bundle(t, keys, keys, map[string]any{"spiffe_refresh_hint": hint})
			w.keys.Store(&text)
		}
		vouches := func(p *platform) bool {
			t.Helper()
			roots, err := w.Authorities(t.Context(), estover.DefaultTenant, "example.org")
			if err != nil {
				t.Fatal(err)
			}
			leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{CommonName: "billing"}}
			der, err := x509.CreateCertificate(rand.Reader, leaf, p.authority(), p.key.Public(), p.key)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			_, err = cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err == nil
		}
		publish(60, old)
		w.recognised(t, "a JWT-SVID", old.token(svid(d.Now(), nil)), "agt_billing")
		if from := w.last.Load(); !from.Domain || from.URL != s.JWKSURL {
			t.Errorf("fetched from %+v", from)
		}
		if !vouches(old) || vouches(next) {
			t.Error("the authorities are not those of the bundle")
		}
		if n := w.fetched.Load(); n != 1 {
			t.Errorf("fetched %d times, want once for both kinds", n)
		}
		clock.Hold()
		publish(1, next)
		clock.Advance(59 * time.Second)
		w.recognised(t, "before the bundle is old", old.token(svid(d.Now(), nil)), "agt_billing")
		clock.Advance(time.Second)
		w.refused(t, "a key that was taken out", old.token(svid(d.Now(), nil)), "not accepted")
		w.recognised(t, "its successor", next.token(svid(d.Now(), nil)), "agt_billing")
		if vouches(old) || !vouches(next) {
			t.Error("an authority that was taken out still counts")
		}
		n := w.fetched.Load()
		clock.Advance(29 * time.Second)
		w.recognised(t, "a bundle that asks for a fetch a second", next.token(svid(d.Now(), nil)), "agt_billing")
		if w.fetched.Load() != n {
			t.Error("the bundle was fetched again within half a minute")
		}
		w.keys.Store(nil)
		clock.Advance(30 * time.Minute)
		w.recognised(t, "while the endpoint is away", next.token(svid(d.Now(), nil)), "agt_billing")
		clock.Advance(31 * time.Minute)
		if _, err := w.Recognise(t.Context(), estover.DefaultTenant, next.token(svid(d.Now(), nil))); !errors.Is(err, federation.ErrKeys) {
			t.Errorf("an hour after: %v, want ErrKeys", err)
		}
		if _, err := w.Authorities(t.Context(), estover.DefaultTenant, "example.org"); !errors.Is(err, federation.ErrKeys) {
			t.Errorf("authorities an hour after: %v, want ErrKeys", err)
		}
		for _, domain := range []string{"example.com", "", "example.org/x"} {
			if _, err := w.Authorities(t.Context(), estover.DefaultTenant, domain); !errors.Is(err, federation.ErrUntrusted) {
				t.Errorf("authorities of %q: %v, want ErrUntrusted", domain, err)
			}
		}
	})
}

// Keys of JWT-SVIDs that have an issuer may stand in a bundle too.
func TestIssuerWithABundle(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, p := open(t, d), newPlatform(t, "k1")
		s := spire(bundle(t, []*platform{p}, []*platform{p}, nil))
		s.Issuer = "https://spire.example"
		w.put(t, s)
		w.recognised(t, "a JWT-SVID with an issuer", p.token(svid(d.Now(), claims{"iss": s.Issuer})), "agt_billing")
		w.refused(t, "one without", p.token(svid(d.Now(), nil)), "")
		if _, err := w.Authorities(t.Context(), estover.DefaultTenant, "example.org"); !errors.Is(err, federation.ErrUntrusted) {
			t.Errorf("authorities of a domain that no trust is about: %v", err)
		}
	})
}

// How long a token may live is a setting of the trust, and an hour where nothing
// is set.
func TestTokensLiveAsLongAsTheTrustSays(t *testing.T) {
	d := dbtest.Open(t)
	w, p := open(t, d), newPlatform(t, "k1")
	lives := func(life time.Duration) string {
		now := d.Now()
		return p.token(job(now, claims{"exp": now.Add(life).Unix()}))
	}
	s := actions(jwks(t, p))
	w.put(t, s)
	w.recognised(t, "for an hour", lives(time.Hour), "agt_deploy")
	w.refused(t, "for longer", lives(time.Hour+time.Second), "max_token_seconds")
	s.MaxSeconds = 86400
	w.put(t, s)
	w.recognised(t, "for a day, where that is set", lives(24*time.Hour), "agt_deploy")
	s.MaxSeconds = 60
	w.put(t, s)
	w.refused(t, "for two minutes where one is set", lives(2*time.Minute), "max_token_seconds")
}

// However many keys strangers make up, the source is asked once in half a
// minute, and never by two at once.
func TestMadeUpKeysCostNoFetches(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		w, p := open(t, d), newPlatform(t, "k1")
		text := jwks(t, p)
		w.keys.Store(&text)
		s := actions("")
		s.JWKSURL = "https://github.example/jwks"
		w.put(t, s)
		w.recognised(t, "a token", p.token(job(d.Now(), nil)), "agt_deploy")
		for minute := range 5 {
			clock.Advance(31 * time.Second)
			before := w.fetched.Load()
			for range 200 {
				w.refused(t, "a key that was made up", p.token(job(d.Now(), nil), "kid", rand.Text()), "not known")
			}
			if n := w.fetched.Load() - before; n > 1 {
				t.Errorf("half minute %d: 200 made-up keys had the source asked %d times, want once", minute, n)
			}
			w.recognised(t, "a token meanwhile", p.token(job(d.Now(), nil)), "agt_deploy")
		}
	})
}
