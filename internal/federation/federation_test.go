package federation_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/federation"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/jose"
)

var (
	ada = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada")}
	eve = estover.Caller{Tenant: "other", Subject: estover.User("usr_eve")}
)

const (
	own    = "https://estover.example"
	github = "https://token.actions.githubusercontent.com"
)

// A platform gives tokens to workloads.
type platform struct {
	t   testing.TB
	id  string
	key *ecdsa.PrivateKey
}

func newPlatform(t testing.TB, id string) *platform {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &platform{t, id, key}
}

// jwks is the key set of platforms that have one issuer.
func jwks(t testing.TB, all ...*platform) string {
	t.Helper()
	var keys []*jose.Key
	for _, p := range all {
		k, err := jose.NewKey("", p.id, p.key.Public())
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	b, err := jose.NewKeys(keys...).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

type claims map[string]any

// token signs claims under a header with changes.
func (p *platform) token(c claims, header ...string) string {
	p.t.Helper()
	h := map[string]any{"alg": "ES256", "typ": "JWT", "kid": p.id}
	for i := 0; i+1 < len(header); i += 2 {
		h[header[i]] = header[i+1]
		if header[i+1] == "" {
			delete(h, header[i])
		}
	}
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			p.t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	input := part(h) + "." + part(c)
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, p.key, sum[:])
	if err != nil {
		p.t.Fatal(err)
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(out)
}

// job is what GitHub Actions says of a job, with changes; nil takes a claim
// away.
func job(now time.Time, change claims) claims {
	c := claims{
		"iss": github, "aud": own, "sub": "repo:acme/deploy:ref:refs/heads/main", "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"repository": "acme/deploy", "repository_owner": "acme", "ref": "refs/heads/main", "run_attempt": 1, "fork": false,
		"job_workflow_ref": "acme/deploy/.github/workflows/release.yml@refs/heads/main",
		"kubernetes.io":    map[string]any{"namespace": "prod", "serviceaccount": map[string]any{"name": "billing"}},
		"roles":            []string{"a", "b"},
	}
	maps.Copy(c, change)
	for name, v := range c {
		if v == nil {
			delete(c, name)
		}
	}
	return c
}

// actions is a trust in GitHub Actions.
func actions(keys string) federation.Spec {
	return federation.Spec{
		Name: "github", Issuer: github, JWKS: keys, Algorithms: []string{"ES256"}, Audience: own,
		Rules: []federation.Rule{{Agent: "agt_deploy", Claims: map[string]string{"repository": "acme/deploy", "ref": "refs/heads/main"}}},
	}
}

// A world is trusts, and what they fetch from.
type world struct {
	*federation.Trusts
	db      *db.DB
	fetched atomic.Int32
	keys    atomic.Pointer[string] // what there is to fetch; nil: the other side does not answer
	slow    chan struct{}          // if it is there, a fetch waits until it is closed
	last    atomic.Pointer[federation.Source]
}

var errAway = &estover.Error{Kind: estover.Unavailable, Code: "fetch_failed", Detail: "The other side does not answer."}

func open(t testing.TB, d *db.DB) *world {
	w := &world{db: d}
	w.Trusts = federation.New(guardtest.New(t, d, guardtest.AllowAll), federation.Options{
		Own: func(estover.TenantID) string { return own },
		Fetch: func(_ context.Context, s federation.Source) ([]byte, error) {
			w.fetched.Add(1)
			w.last.Store(&s)
			if w.slow != nil {
				<-w.slow
			}
			if keys := w.keys.Load(); keys != nil {
				return []byte(*keys), nil
			}
			return nil, errAway
		},
		Agent: func(_ context.Context, _ *db.Tx, id string) error {
			if strings.HasPrefix(id, "agt_") {
				return nil
			}
			return &estover.Error{Kind: estover.NotFound, Code: "agent_not_found", Detail: "There is no such agent."}
		},
	})
	return w
}

func (w *world) put(t testing.TB, s federation.Spec) federation.Trust {
	t.Helper()
	trust, err := w.Put(t.Context(), ada, s, "")
	if err != nil {
		t.Fatalf("putting %s: %v", s.Name, err)
	}
	return trust
}

// recognised checks whose a token is.
func (w *world) recognised(t *testing.T, what, raw, agent string) *federation.Workload {
	t.Helper()
	got, err := w.Recognise(t.Context(), estover.DefaultTenant, raw)
	if err != nil || got.Agent != agent {
		t.Errorf("%s: %+v, %v; want the agent %s", what, got, err, agent)
	}
	return got
}

// refused checks that a token says nothing.
func (w *world) refused(t *testing.T, what, raw, why string) {
	t.Helper()
	got, err := w.Recognise(t.Context(), estover.DefaultTenant, raw)
	if got.Agent != "" || !errors.Is(err, federation.ErrUntrusted) || !strings.Contains(err.Error(), why) {
		t.Errorf("%s: %+v, %v; want a refusal that says %q", what, got, err, why)
	}
}

func TestPut(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, ctx := open(t, d), t.Context()
		p := newPlatform(t, "k1")
		made := w.put(t, actions(jwks(t, p)))
		changed := actions(jwks(t, p))
		changed.Audience = "another"
		if again := w.put(t, changed); again.ID != made.ID || again.Epoch != 2 || again.Audience != "another" {
			t.Errorf("put again: %+v, want the same trust with another audience and the epoch 2", again)
		}
		if got, err := w.ByName(ctx, ada, "github"); err != nil || got.Audience != "another" || got.Rules[0].Claims["ref"] != "refs/heads/main" {
			t.Errorf("shown by name: %+v, %v", got, err)
		}
		if _, err := w.Get(ctx, eve, made.ID); !errors.Is(err, federation.ErrNotFound) {
			t.Errorf("another tenant's trust: %v, want ErrNotFound", err)
		}
		second := actions(jwks(t, p))
		second.Name = "second"
		if _, err := w.Put(ctx, ada, second, ""); !errors.Is(err, federation.ErrIssuerTaken) {
			t.Errorf("a second trust of the issuer: %v, want ErrIssuerTaken", err)
		}
		second.Issuer = "https://other.example"
		w.put(t, second)
		second.Issuer = github
		if _, err := w.Put(ctx, ada, second, ""); !errors.Is(err, federation.ErrIssuerTaken) {
			t.Errorf("a trust that moves to another's issuer: %v, want ErrIssuerTaken", err)
		}
		if all, next, err := w.List(ctx, ada, federation.Filter{}, "", 1); err != nil || len(all) != 1 || all[0].Name != "github" || next != "github" {
			t.Errorf("the first page: %v, %q, %v", all, next, err)
		}
		if err := w.Retire(ctx, ada, made.ID); err != nil {
			t.Fatal(err)
		}
		if err := w.Retire(ctx, ada, made.ID); !errors.Is(err, federation.ErrNotFound) {
			t.Errorf("retired again: %v, want ErrNotFound", err)
		}
		w.put(t, second) // the issuer is free
		if again := w.put(t, federation.Spec{
			Name: "github", Issuer: "https://third.example", JWKS: jwks(t, p), Algorithms: []string{"ES256"}, Audience: own,
			Rules: actions("").Rules,
		}); again.ID == made.ID {
			t.Error("a retired trust came back to life")
		}
	})
}

func TestPutNeedsPolicy(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for _, c := range []struct {
			what string
			do   func(*federation.Trusts) error
		}{
			{"put", func(f *federation.Trusts) error {
				_, err := f.Put(t.Context(), ada, actions(jwks(t, newPlatform(t, "k"))), "")
				return err
			}},
			{"retired", func(f *federation.Trusts) error { return f.Retire(t.Context(), ada, "tru_1") }},
			{"shown", func(f *federation.Trusts) error { _, err := f.Get(t.Context(), ada, "tru_1"); return err }},
			{"shown by name", func(f *federation.Trusts) error { _, err := f.ByName(t.Context(), ada, "github"); return err }},
			{"listed", func(f *federation.Trusts) error {
				_, _, err := f.List(t.Context(), ada, federation.Filter{}, "", 0)
				return err
			}},
		} {
			f := federation.New(guardtest.New(t, d, guardtest.DenyAll), federation.Options{Own: func(estover.TenantID) string { return own }})
			var refusal *guard.Refusal
			if err := c.do(f); !errors.As(err, &refusal) {
				t.Errorf("%s although policy denies it: %v", c.what, err)
			}
		}
	})
}

func TestCheck(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		keys := jwks(t, newPlatform(t, "k1"))
		for field, change := range map[string]func(*federation.Spec){
			"name":             func(s *federation.Spec) { s.Name = "Git Hub" },
			"issuer":           func(s *federation.Spec) { s.Issuer = "" },
			"audience":         func(s *federation.Spec) { s.Audience = "" },
			"algorithms":       func(s *federation.Spec) { s.Algorithms = nil },
			"algorithms[0]":    func(s *federation.Spec) { s.Algorithms = []string{"HS256"} },
			"algorithms[1]":    func(s *federation.Spec) { s.Algorithms = []string{"ES256", "none"} },
			"types[0]":         func(s *federation.Spec) { s.Types = []string{"application/at+jwt"} },
			"rules":            func(s *federation.Spec) { s.Rules = nil },
			"rules[0].agent":   func(s *federation.Spec) { s.Rules[0].Agent = "" },
			"rules[0].claims":  func(s *federation.Spec) { s.Rules[0].Claims = nil },
			"jwks":             func(s *federation.Spec) { s.JWKS = `{"keys":[{"kty":"oct","k":"AAAA"}]}` },
			"ca":               func(s *federation.Spec) { s.JWKS, s.JWKSURL, s.CA = "", "https://a.example/keys", "roots" },
			"rules[0].claims.": func(s *federation.Spec) { s.Rules[0].Claims = map[string]string{"": "x"} },
			"rules[0].claims.ref": func(s *federation.Spec) {
				s.Rules[0].Claims = map[string]string{"ref": ""}
			},
			"rules[0].globs.sub": func(s *federation.Spec) { s.Rules[0].Globs = map[string]string{"sub": "*"} },
			"rules[0].globs.ref": func(s *federation.Spec) {
				s.Rules[0].Globs = map[string]string{"ref": "refs/heads/*"}
			},
		} {
			s := actions(keys)
			s.Rules = []federation.Rule{{Agent: "agt_deploy", Claims: map[string]string{"ref": "refs/heads/main"}}}
			change(&s)
			_, err := federation.Check(s)
			var e *estover.Error
			if !errors.As(err, &e) || !errors.Is(err, federation.ErrInvalid) || e.Field != field {
				t.Errorf("a wrong %s: %v", field, err)
			}
		}
		for _, u := range []string{"http://a.example/keys", "ftp://a.example", "https://", "https://u:p@a.example/k", "https://a.example/k#x", "keys.json"} {
			s := actions("")
			s.JWKSURL = u
			if _, err := federation.Check(s); !errors.Is(err, federation.ErrInvalid) {
				t.Errorf("keys at %q: %v, want ErrInvalid", u, err)
			}
		}
		for _, s := range []federation.Spec{
			{JWKS: keys, JWKSURL: "https://a.example/keys"},
			{},
			{JWKS: keys, AllowPrivate: true},
		} {
			both := actions("")
			both.JWKS, both.JWKSURL, both.AllowPrivate = s.JWKS, s.JWKSURL, s.AllowPrivate
			if _, err := federation.Check(both); !errors.Is(err, federation.ErrInvalid) {
				t.Errorf("jwks %q and jwks_url %q: %v, want ErrInvalid", s.JWKS, s.JWKSURL, err)
			}
		}
		ours := actions(keys)
		ours.Issuer = own
		if _, err := open(t, d).Put(t.Context(), ada, ours, ""); !errors.Is(err, federation.ErrInvalid) {
			t.Errorf("a trust in ourselves: %v, want ErrInvalid", err)
		}
		nobody := actions(keys)
		nobody.Rules = []federation.Rule{{Agent: "nobody", Claims: map[string]string{"ref": "x"}}}
		var e *estover.Error
		if _, err := open(t, d).Put(t.Context(), ada, nobody, ""); !errors.As(err, &e) || e.Field != "rules[0].agent" {
			t.Errorf("a rule about an agent that there is not: %v", err)
		}
	})
}

// Assertions fail closed (A9): what is missing, meant for others or of another
// kind says nothing.
func TestAssertionsFailClosed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		p, other := newPlatform(t, "k1"), newPlatform(t, "k1")
		w.put(t, actions(jwks(t, p)))
		now := d.Now()
		got := w.recognised(t, "a good token", p.token(job(now, nil)), "agt_deploy")
		if got.Subject != "repo:acme/deploy:ref:refs/heads/main" || got.ID == "" || got.Expires.IsZero() {
			t.Errorf("what is known of it: %+v", got)
		}
		for _, c := range []struct {
			what   string
			change claims
			why    string
		}{
			{"no exp", claims{"exp": nil}, `no claim "exp"`},
			{"no iat", claims{"iat": nil}, `no claim "iat"`},
			{"no aud", claims{"aud": nil}, `no claim "aud"`},
			{"no sub", claims{"sub": nil}, `no claim "sub"`},
			{"an audience of two", claims{"aud": []string{own, "https://other.example"}}, "more than one audience"},
			{"another audience", claims{"aud": "https://other.example"}, "another audience"},
			{"an audience that begins alike", claims{"aud": own + "/"}, "another audience"},
			{"expired", claims{"exp": now.Add(-time.Second).Unix()}, "expired"},
			{"not yet", claims{"nbf": now.Add(time.Hour).Unix()}, "not valid yet"},
			{"of the future", claims{"iat": now.Add(time.Hour).Unix()}, "future"},
			{"another issuer", claims{"iss": "https://evil.example"}, "not of an issuer"},
			{"an issuer that begins alike", claims{"iss": github + "/"}, "not of an issuer"},
			{"our own issuer", claims{"iss": own}, "not of an issuer"},
			{"no issuer", claims{"iss": nil}, "not of an issuer"},
			{"a login", claims{"nonce": "n"}, `"nonce"`},
			{"an ID token", claims{"at_hash": "h"}, `"at_hash"`},
			{"of somebody who acts for another", claims{"act": map[string]any{"sub": "x"}}, `"act"`},
			{"bound in a way that is not known", claims{"cnf": map[string]any{"jwk": map[string]any{}}}, "cnf"},
			{"bound to something odd", claims{"cnf": "x"}, "kind"},
			{"bound to null", claims{"cnf": json.RawMessage("null")}, "cnf"},
			{"bound to nothing", claims{"cnf": map[string]any{}}, "cnf"},
			{"may_act is null", claims{"may_act": json.RawMessage("null")}, "may_act"},
			{"no rule", claims{"ref": "refs/heads/evil"}, "No rule"},
			{"a claim that is a list", claims{"ref": []string{"refs/heads/main"}}, "No rule"},
			{"may_act without an issuer", claims{"may_act": map[string]any{"sub": "agent:agt_1"}}, "may_act"},
		} {
			w.refused(t, c.what, p.token(job(now, c.change)), c.why)
		}
		good := job(now, nil)
		for _, h := range [][]string{
			{"typ", "at+jwt"},
			{"typ", "dpop+jwt"},
			{"typ", "oauth-id-jag+jwt"},
			{"typ", "secevent+jwt"},
			{"typ", "JOSE"},
			{"alg", "HS256"},
			{"alg", "none"},
			{"alg", "RS256"},
			{"jku", "https://evil.example/keys"},
			{"x5u", "https://evil.example"},
			{"crit", "b64"},
			{"kid", "k2"},
			{"kid", "../k1"},
			{"kid", "' or 1=1 --"},
		} {
			w.refused(t, fmt.Sprint("the header ", h), p.token(good, h...), "")
		}
		w.refused(t, "another's signature", other.token(good), "signature")
		raw := p.token(good)
		w.refused(t, "a changed token", raw[:len(raw)-2], "")
		w.refused(t, "no token", "", "cannot be read")
		w.recognised(t, "a key that shows itself", p.token(job(now, claims{"cnf": map[string]any{"jkt": "abc"}})), "agt_deploy")
	})
}

// A trust in which something is missing refuses everything, however it came to
// be stored.
func TestTrustWithAMissingSettingRefusesEverything(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		p := newPlatform(t, "k1")
		for what, change := range map[string]func(*federation.Spec){
			"audience":   func(s *federation.Spec) { s.Audience = "" },
			"algorithms": func(s *federation.Spec) { s.Algorithms = nil },
			"rules":      func(s *federation.Spec) { s.Rules = nil },
			"jwks":       func(s *federation.Spec) { s.JWKS = "" },
			"provider":   func(s *federation.Spec) { s.Kind, s.Rules = federation.IDJAG, nil },
			"kind":       func(s *federation.Spec) { s.Kind = "another" },
		} {
			w := open(t, d)
			s := actions(jwks(t, p))
			s.Issuer = "https://" + what + ".example"
			s.Name = what
			change(&s)
			if err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error { return federation.Store(t.Context(), tx, s) }); err != nil {
				t.Fatal(err)
			}
			for _, aud := range []any{own, "", nil, []string{}, []string{""}} {
				w.refused(t, "no "+what, p.token(job(d.Now(), claims{"iss": s.Issuer, "aud": aud})), "says nothing of "+what)
			}
		}
		w := open(t, d)
		s := actions(jwks(t, p))
		s.Rules[0].Claims = nil
		if err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error { return federation.Store(t.Context(), tx, s) }); err != nil {
			t.Fatal(err)
		}
		w.refused(t, "a rule about nothing", p.token(job(d.Now(), nil)), "says nothing of rules")
		for _, every := range []map[string]string{{"iss": s.Issuer}, {"aud": own}, {"/aud": own, "iss": s.Issuer}} {
			all := s
			all.Name, all.Issuer = "every-"+strings.ToLower(rand.Text()), "https://"+rand.Text()+".example"
			all.Rules = []federation.Rule{{Agent: "agt_deploy", Claims: every}}
			if _, err := w.Put(t.Context(), ada, all, ""); !errors.Is(err, federation.ErrInvalid) {
				t.Errorf("a rule that every token fits, %v: %v, want ErrInvalid", every, err)
			}
			if err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error { return federation.Store(t.Context(), tx, all) }); err != nil {
				t.Fatal(err)
			}
			w.refused(t, "a rule that every token fits", p.token(job(d.Now(), claims{"iss": all.Issuer})), "says nothing of rules")
		}
	})
}

func TestExactlyOneRuleFits(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, p, now := open(t, d), newPlatform(t, "k1"), d.Now()
		s := actions(jwks(t, p))
		s.Rules = []federation.Rule{
			{Agent: "agt_main", Claims: map[string]string{"repository": "acme/deploy", "ref": "refs/heads/main"}},
			{Agent: "agt_any", Claims: map[string]string{"repository": "acme/deploy"}, Globs: map[string]string{"ref": "refs/heads/**"}},
			{Agent: "agt_pod", Claims: map[string]string{"/kubernetes.io/namespace": "dev", "/kubernetes.io/serviceaccount/name": "billing"}},
			{Agent: "agt_attempt", Claims: map[string]string{"run_attempt": "2", "fork": "false", "ref": "x"}},
		}
		w.put(t, s)
		w.refused(t, "two rules", p.token(job(now, nil)), "More than one rule")
		w.recognised(t, "one rule", p.token(job(now, claims{"ref": "refs/heads/feature/x"})), "agt_any")
		w.refused(t, "no rule", p.token(job(now, claims{"ref": "refs/tags/v1"})), "No rule")
		w.recognised(t, "a claim further down", p.token(job(now, claims{
			"ref": "y", "kubernetes.io": map[string]any{"namespace": "dev", "serviceaccount": map[string]any{"name": "billing"}},
		})), "agt_pod")
		w.recognised(t, "a number and a flag", p.token(job(now, claims{"ref": "x", "run_attempt": 2})), "agt_attempt")
		w.refused(t, "a flag that is a text", p.token(job(now, claims{"ref": "x", "run_attempt": 2, "fork": true})), "No rule")
		// Two rules that fit are one too many also when they are about one agent.
		s.Rules[1].Agent = "agt_main"
		w.put(t, s)
		w.refused(t, "two rules about one agent", p.token(job(now, nil)), "More than one rule")
	})
}

func TestSingleUseNeedsAName(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, p := open(t, d), newPlatform(t, "k1")
		s := actions(jwks(t, p))
		s.SingleUse = true
		w.put(t, s)
		w.refused(t, "no jti", p.token(job(w.db.Now(), claims{"jti": nil})), "jti")
		w.recognised(t, "a jti", p.token(job(w.db.Now(), nil)), "agt_deploy")
	})
}

// What an administrator changes counts for the next token.
func TestChangesCountAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, p, q := open(t, d), newPlatform(t, "k1"), newPlatform(t, "k2")
		made := w.put(t, actions(jwks(t, p)))
		w.recognised(t, "before", p.token(job(d.Now(), nil)), "agt_deploy")
		w.put(t, actions(jwks(t, q)))
		w.refused(t, "the key that was taken away", p.token(job(d.Now(), nil)), "key")
		w.recognised(t, "the key in its place", q.token(job(d.Now(), nil)), "agt_deploy")
		moved := actions(jwks(t, q))
		moved.Issuer = "https://moved.example"
		w.put(t, moved)
		w.refused(t, "the issuer that it was", q.token(job(d.Now(), nil)), "not of an issuer")
		w.recognised(t, "the issuer that it is", q.token(job(d.Now(), claims{"iss": moved.Issuer})), "agt_deploy")
		if err := w.Retire(t.Context(), ada, made.ID); err != nil {
			t.Fatal(err)
		}
		w.refused(t, "a retired trust", q.token(job(d.Now(), claims{"iss": moved.Issuer})), "not of an issuer")
		if _, err := w.Recognise(t.Context(), "other", q.token(job(d.Now(), nil))); !errors.Is(err, federation.ErrUntrusted) {
			t.Errorf("another tenant's trust: %v", err)
		}
	})
}

// Keys are fetched once for as many as want them, again when one is not known,
// at a bounded rate, and serve for a while when nobody answers.
func TestFetchedKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, clock := open(t, d), dbtest.NewClock(d)
		p, q := newPlatform(t, "k1"), newPlatform(t, "k2")
		s := actions("")
		s.JWKSURL, s.AllowPrivate = "https://keys.example/jwks", true
		w.put(t, s)
		fetches := func(what string, want int32) {
			t.Helper()
			if got := w.fetched.Load(); got != want {
				t.Errorf("%s: %d fetches, want %d", what, got, want)
			}
		}
		good := func() string { return p.token(job(d.Now(), nil)) }

		if _, err := w.Recognise(t.Context(), estover.DefaultTenant, good()); !errors.Is(err, federation.ErrKeys) || estover.KindOf(err) != estover.Unavailable {
			t.Errorf("nobody answers: %v, want ErrKeys", err)
		}
		if _, err := w.Recognise(t.Context(), estover.DefaultTenant, good()); !errors.Is(err, federation.ErrKeys) {
			t.Errorf("asked again at once: %v, want ErrKeys", err)
		}
		fetches("nobody answers", 1)
		first := jwks(t, p)
		w.keys.Store(&first)
		clock.Advance(31 * time.Second)
		w.slow = make(chan struct{})
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() { w.recognised(t, "with 63 others", good(), "agt_deploy") })
		}
		time.AfterFunc(50*time.Millisecond, func() { close(w.slow) })
		all.Wait()
		fetches("64 at once", 2)
		if from := *w.last.Load(); from != (federation.Source{Tenant: estover.DefaultTenant, URL: s.JWKSURL, AllowPrivate: true}) {
			t.Errorf("fetched from %+v", from)
		}
		w.slow = nil

		for range 5 {
			w.refused(t, "a key that is not known", q.token(job(d.Now(), nil)), "not known")
		}
		fetches("a key that is not known, at once", 2)
		clock.Advance(31 * time.Second)
		for range 5 {
			w.refused(t, "a key that is not known", q.token(job(d.Now(), nil)), "not known")
		}
		fetches("a key that is not known, later", 3)
		both := jwks(t, p, q)
		w.keys.Store(&both)
		clock.Advance(31 * time.Second)
		w.recognised(t, "a key that has come", q.token(job(d.Now(), nil)), "agt_deploy")
		fetches("a key that has come", 4)
		w.recognised(t, "the key that was there", good(), "agt_deploy")

		second := jwks(t, q)
		w.keys.Store(&second)
		clock.Advance(11 * time.Minute)
		w.refused(t, "a key that was taken away", good(), "not known")
		fetches("after ten minutes", 5)
		w.keys.Store(nil)
		clock.Advance(11 * time.Minute)
		w.recognised(t, "nobody answers any more", q.token(job(d.Now(), nil)), "agt_deploy")
		fetches("nobody answers any more", 6)
		clock.Advance(time.Hour)
		if _, err := w.Recognise(t.Context(), estover.DefaultTenant, q.token(job(d.Now(), nil))); !errors.Is(err, federation.ErrKeys) {
			t.Errorf("for an hour: %v, want ErrKeys", err)
		}
		junk := `{"keys":"none"}`
		w.keys.Store(&junk)
		clock.Advance(time.Minute)
		if _, err := w.Recognise(t.Context(), estover.DefaultTenant, q.token(job(d.Now(), nil))); !errors.Is(err, federation.ErrKeys) {
			t.Errorf("a document that is no key set: %v, want ErrKeys", err)
		}
	})
}

// A token is held against the trust, rule by rule, for whoever sets it up.
func TestExplain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, p, now := open(t, d), newPlatform(t, "k1"), d.Now()
		s := actions(jwks(t, p))
		s.Rules = append(s.Rules, federation.Rule{Agent: "agt_tag", Claims: map[string]string{"repository": "acme/deploy"}, Globs: map[string]string{"ref": "refs/tags/**"}})
		w.put(t, s)
		explain := func(raw string) federation.Explanation {
			t.Helper()
			e, err := w.Explain(t.Context(), ada, raw)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		e := explain(p.token(job(now, nil)))
		if !e.Accepted || e.Agent != "agt_deploy" || e.Trust != "github" || len(e.Rules) != 2 || !e.Rules[0].Fits || e.Rules[1].Fits || strings.Join(e.Rules[1].Misses, " ") != "ref" {
			t.Errorf("a good token: %+v", e)
		}
		e = explain(p.token(job(now, claims{"ref": "refs/heads/x", "repository": "acme/other"})))
		if e.Accepted || e.Agent != "" || !strings.Contains(e.Why, "No rule") || strings.Join(e.Rules[0].Misses, " ") != "ref repository" {
			t.Errorf("a token that no rule fits: %+v", e)
		}
		// Of what nobody vouches for, no rule says anything.
		if e = explain(newPlatform(t, "k1").token(job(now, nil))); e.Accepted || e.Trust != "github" || e.Rules != nil || e.Subject == "" {
			t.Errorf("a token with another's signature: %+v", e)
		}
		if e = explain(p.token(job(now, claims{"iss": "https://evil.example"}))); e.Accepted || e.Trust != "" || e.Issuer != "https://evil.example" {
			t.Errorf("a token of an issuer that is not trusted: %+v", e)
		}
		if e = explain("junk"); e.Accepted || e.Why == "" {
			t.Errorf("junk: %+v", e)
		}
	})
	d := dbtest.Open(t)
	f := federation.New(guardtest.New(t, d, guardtest.DenyAll), federation.Options{Own: func(estover.TenantID) string { return own }})
	var refusal *guard.Refusal
	if _, err := f.Explain(t.Context(), ada, "junk"); !errors.As(err, &refusal) {
		t.Errorf("explained although policy denies it: %v", err)
	}
}
