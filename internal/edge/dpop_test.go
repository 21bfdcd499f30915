package edge_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/edge"
	"estover.dev/internal/oauth/oauthtest"
)

// A resource of the test, behind a front: it answers 204 to whom it recognises.
func recognise(w *oauthtest.World, audience string) http.Handler {
	return edge.Front{}.Handler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, err := w.Callers.For(r, estover.DefaultTenant, audience)
		if err != nil {
			edge.WriteProblem(rw, edge.ProblemOf(err, c.Request))
			return
		}
		rw.Header().Set("X-Strength", string(c.Strength))
		rw.WriteHeader(http.StatusNoContent)
	}))
}

func get(h http.Handler, method, target string, change ...func(*http.Request)) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	for _, fn := range change {
		fn(r)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec.Result()
}

// challenge is the value of WWW-Authenticate for a scheme.
func challenge(res *http.Response, scheme string) string {
	for _, v := range res.Header.Values("WWW-Authenticate") {
		if strings.HasPrefix(v, scheme+" ") {
			return v
		}
	}
	return ""
}

// Every condition of a proof at a resource (RFC 9449, section 7): what breaks
// one gets a 401 that says how to do better, and never the resource.
func TestDPoPAtResources(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		p := w.Prover("P-256")
		other := w.Prover("Ed25519")
		at := recognise(w, oauthtest.CRM)
		const target = "/u/crm/customers%20all?q=1"
		const htu = string(oauthtest.Issuer) + "/u/crm/customers%20all"
		bound := p.Ask(bot, "resource", oauthtest.CRM).Token()
		second := p.Ask(bot, "resource", oauthtest.CRM).Token()
		bearer := w.Ask(bot, "resource", oauthtest.CRM).Token()
		elsewhere := oauthtest.New(t, dbtest.Open(t)).Prover("P-256").Nonce

		for what, change := range map[string]func(*http.Request){
			"a good proof":           p.Prove(bound),
			"the scheme in any case": func(r *http.Request) { p.Prove(bound)(r); r.Header.Set("Authorization", "dPoP  "+bound) },
			"htu with the query":     func(r *http.Request) { send(r, bound, p.Sign(p.Claims("GET", htu+"?q=1", bound))) },
			"htu with its port": func(r *http.Request) {
				send(r, bound, p.Sign(p.Claims("GET", strings.Replace(htu, "example/", "example:443/", 1), bound)))
			},
			"the token of another time": p.Prove(second),
		} {
			res := get(at, "GET", target, change)
			if res.StatusCode != http.StatusNoContent || res.Header.Get("X-Strength") != string(estover.BySecret) || res.Header.Get("DPoP-Nonce") != p.Nonce {
				t.Errorf("%s: %d, strength %q, next nonce %q", what, res.StatusCode, res.Header.Get("X-Strength"), res.Header.Get("DPoP-Nonce"))
			}
		}
		byKey := w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials", "resource", oauthtest.CRM,
			"client_assertion_type", oauthtest.AssertionType, "client_assertion", w.Assertion(bot)), p.Prove(""))).Token()
		if res := get(at, "GET", target, p.Prove(byKey)); res.StatusCode != http.StatusNoContent || res.Header.Get("X-Strength") != string(estover.ByBound) {
			t.Errorf("a token that was asked for by key: %d, strength %q", res.StatusCode, res.Header.Get("X-Strength"))
		}
		if res := get(at, "GET", target, oauthtest.Bearer(bearer)); res.StatusCode != http.StatusNoContent || res.Header.Get("DPoP-Nonce") != "" {
			t.Errorf("a token that is bound to nothing: %d", res.StatusCode)
		}

		used := p.Sign(p.Claims("GET", htu, bound))
		if res := get(at, "GET", target, func(r *http.Request) { send(r, bound, used) }); res.StatusCode != http.StatusNoContent {
			t.Fatalf("a proof: %d", res.StatusCode)
		}
		now := w.DB.Now().Unix()
		proof := func(change oauthtest.Claims, token string) func(*http.Request) {
			c := p.Claims("GET", htu, token)
			for name, v := range change {
				c[name] = v
			}
			return func(r *http.Request) { send(r, bound, p.Sign(c)) }
		}
		for _, c := range []struct {
			what, scheme, code string
			change             func(*http.Request)
		}{
			{"as Bearer", "Bearer", "invalid_token", oauthtest.Bearer(bound)},
			{"as Bearer with a good proof", "Bearer", "invalid_token", func(r *http.Request) { p.Prove(bound)(r); oauthtest.Bearer(bound)(r) }},
			{"an unbound token as DPoP", "DPoP", "invalid_token", p.Prove(bearer)},
			{"no proof", "DPoP", "invalid_dpop_proof", func(r *http.Request) { r.Header.Set("Authorization", "DPoP "+bound) }},
			{"two proofs", "DPoP", "invalid_dpop_proof", func(r *http.Request) {
				p.Prove(bound)(r)
				r.Header.Add("DPoP", p.Sign(p.Claims("GET", htu, bound)))
			}},
			{"another's proof", "DPoP", "invalid_dpop_proof", other.Prove(bound)},
			{"a proof that was presented before", "DPoP", "invalid_dpop_proof", func(r *http.Request) { send(r, bound, used) }},
			{"ath of another token", "DPoP", "invalid_dpop_proof", proof(nil, second)},
			{"no ath", "DPoP", "invalid_dpop_proof", proof(nil, "")},
			{"htm of another method", "DPoP", "invalid_dpop_proof", proof(oauthtest.Claims{"htm": "POST"}, bound)},
			{"htu of another path", "DPoP", "invalid_dpop_proof", proof(oauthtest.Claims{"htu": string(oauthtest.Issuer) + "/u/crm/customers"}, bound)},
			{"htu in other escapes", "DPoP", "invalid_dpop_proof", proof(oauthtest.Claims{"htu": string(oauthtest.Issuer) + "/u/crm/customers%20al%6c"}, bound)},
			{"htu of the upstream", "DPoP", "invalid_dpop_proof", proof(oauthtest.Claims{"htu": oauthtest.CRM + "/u/crm/customers%20all"}, bound)},
			{"a minute old", "DPoP", "invalid_dpop_proof", proof(oauthtest.Claims{"iat": now - 62}, bound)},
			{"no nonce", "DPoP", "use_dpop_nonce", proof(oauthtest.Claims{"nonce": ""}, bound)},
			{"a nonce of another server", "DPoP", "use_dpop_nonce", proof(oauthtest.Claims{"nonce": elsewhere}, bound)},
			{"a token that is none", "DPoP", "invalid_token", p.Prove("x.y.z")},
			{"nothing", "Bearer", "", func(*http.Request) {}},
			{"another scheme", "Bearer", "", func(r *http.Request) { r.SetBasicAuth("a", "b") }},
		} {
			res := get(at, "GET", target, c.change)
			got := challenge(res, c.scheme)
			if res.StatusCode != http.StatusUnauthorized || strings.Contains(got, `error="`) != (c.code != "") || !strings.Contains(got, c.code) {
				t.Errorf("%s: %d with the challenge %q, want 401 with %q", c.what, res.StatusCode, got, c.code)
			}
			if algs := challenge(res, "DPoP"); !strings.Contains(algs, `algs="ES256 EdDSA Ed25519"`) {
				t.Errorf("%s: the challenge for DPoP is %q", c.what, algs)
			}
			if c.code == "use_dpop_nonce" && res.Header.Get("DPoP-Nonce") != p.Nonce {
				t.Errorf("%s: the answer has the nonce %q", c.what, res.Header.Get("DPoP-Nonce"))
			}
		}

		// Once for its key and URL: the same jti may be used elsewhere.
		c := p.Claims("GET", htu, bound)
		c["htu"] = string(oauthtest.Issuer) + "/u/crm/elsewhere"
		if res := get(at, "GET", "/u/crm/elsewhere", func(r *http.Request) { send(r, bound, p.Sign(c)) }); res.StatusCode != http.StatusNoContent {
			t.Errorf("a proof for another URL: %d", res.StatusCode)
		}
	})
}

// send presents a token with a proof.
func send(r *http.Request, token, proof string) {
	r.Header.Set("Authorization", "DPoP "+token)
	r.Header.Set("DPoP", proof)
}

// A proof is good once at a resource, however many present it, on one node or
// two.
func TestDPoPProofIsGoodOnceAtAResource(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		bot := one.Agent("bot")
		p := one.Prover("P-256")
		bound := p.Ask(bot, "resource", oauthtest.CRM).Token()
		resources := []http.Handler{recognise(one, oauthtest.CRM), recognise(two, oauthtest.CRM)}
		proof := p.Sign(p.Claims("GET", string(oauthtest.Issuer)+"/u/crm/customers", bound))
		var won atomic.Int64
		var all sync.WaitGroup
		start := make(chan struct{})
		for i := range 64 {
			all.Go(func() {
				<-start
				switch res := get(resources[i%2], "GET", "/u/crm/customers", func(r *http.Request) { send(r, bound, proof) }); {
				case res.StatusCode == http.StatusNoContent:
					won.Add(1)
				case res.StatusCode != http.StatusUnauthorized || !strings.Contains(challenge(res, "DPoP"), `error="invalid_dpop_proof"`):
					t.Errorf("a proof that was presented before: %d, %q", res.StatusCode, challenge(res, "DPoP"))
				}
			})
		}
		close(start)
		all.Wait()
		if n := won.Load(); n != 1 {
			t.Errorf("of 64 presentations of one proof %d were let in, want 1", n)
		}
	})
}

// Whatever a handler has made of the path, a proof is for the one that was
// sent.
func TestDPoPBelowAPrefix(t *testing.T) {
	w := oauthtest.New(t, dbtest.Open(t))
	bot := w.Agent("bot")
	p := w.Prover("P-256")
	mine := p.Ask(bot).Token()
	at := edge.Front{}.Handler(http.StripPrefix("/log", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if _, err := w.Callers.Authenticate(r, estover.DefaultTenant); err != nil {
			edge.WriteProblem(rw, edge.ProblemOf(err, ""))
		}
	})))
	if res := get(at, "GET", "/log/tile", p.Prove(mine)); res.StatusCode != http.StatusOK {
		t.Errorf("a proof for the path as it was sent: %d", res.StatusCode)
	}
	if res := get(at, "GET", "/log/tile", func(r *http.Request) {
		send(r, mine, p.Sign(p.Claims("GET", string(oauthtest.Issuer)+"/tile", mine)))
	}); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("a proof for the path without its prefix: %d, want 401", res.StatusCode)
	}
}

// The proofs of RFC 9449, sections 5 and 7.1, at the URLs that they are for,
// and at no other.
func TestVectorsOfProofs(t *testing.T) {
	const (
		head = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19."
	)
	for _, v := range []struct {
		name, origin, method, path, token, proof string
		at                                       int64
	}{
		{
			"token request", "https://server.example.com", "POST", "/token", "",
			head + "eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg",
			1562262616,
		},
		{
			"resource request", "https://resource.example.org", "GET", "/protectedresource", "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU",
			head + "eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA",
			1562262618,
		},
	} {
		proofs := &edge.Proofs{
			Origins: []string{"https://elsewhere.example", v.origin},
			MAC:     func(estover.TenantID, []byte) []byte { return make([]byte, 32) },
			Now:     func() time.Time { return time.Unix(v.at, 0).Add(30 * time.Second) },
		}
		check := func(method, path, token string) error {
			r := httptest.NewRequestWithContext(context.Background(), method, v.origin+path, nil)
			r.Header.Set("DPoP", v.proof)
			_, err := proofs.Check(r, estover.DefaultTenant, token)
			return err
		}
		// All is in order except for the nonce, which these proofs do not have.
		if err := check(v.method, v.path, v.token); !errors.Is(err, edge.ErrNonce) {
			t.Errorf("%s: %v, want nothing but a nonce to be missing", v.name, err)
		}
		for what, err := range map[string]error{
			"another method": check("PUT", v.path, v.token),
			"another path":   check(v.method, v.path+"/", v.token),
			"another token":  check(v.method, v.path, v.token+"x"),
		} {
			if !errors.Is(err, edge.ErrProof) {
				t.Errorf("%s with %s: %v, want ErrProof", v.name, what, err)
			}
		}
	}
}

// Whatever stands in the header DPoP, it is judged without a fault.
func FuzzProof(f *testing.F) {
	f.Add("a.b.c", "https://estover.example/oauth/token")
	f.Add("eyJ0eXAiOiJkcG9wK2p3dCJ9.e30.AA", "HTTPS://[::1]:443/%zz?#")
	proofs := &edge.Proofs{
		Origins: []string{"https://estover.example"}, Now: time.Now,
		MAC: func(estover.TenantID, []byte) []byte { return make([]byte, 32) },
	}
	f.Fuzz(func(t *testing.T, proof, htu string) {
		r := httptest.NewRequest(http.MethodPost, "https://estover.example/oauth/token", nil)
		r.Header["Dpop"] = []string{proof}
		if _, err := proofs.Check(r, estover.DefaultTenant, ""); err == nil {
			t.Errorf("the proof %q is accepted", proof)
		}
		if scheme, host, path, ok := edge.Place(htu); ok {
			again, h, p, ok := edge.Place(scheme + "://" + host.String() + path)
			if !ok || again != scheme || h != host || p != path {
				t.Errorf("%q is %s %s %s, and that is %s %s %s", htu, scheme, host, path, again, h, p)
			}
		}
	})
}
