package oauth_test

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/edge"
	"estover.dev/internal/federation"
	"estover.dev/internal/oauth/oauthtest"
)

const (
	assertionGrant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	jwtType        = "urn:ietf:params:oauth:token-type:jwt"
)

// workload is an agent that is recognised by tokens of others.
func workload(w *oauthtest.World, name string) *oauthtest.Agent {
	a := w.Agent(name)
	w.Set(a, agent.Client{GrantTypes: []string{assertionGrant}})
	return a
}

func TestWorkloadsAreRecognised(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := workload(w, "bot"), workload(w, "other")
		p := w.Platform("ci", nil, bot, other)
		a := granted(t, "an assertion alone", w.AskByAssertion(p.Token(bot), "resource", oauthtest.CRM))
		c := claimsOf(t, w, a.Token(), oauthtest.CRM)
		if c["sub"] != names(bot)[0] || c["client_id"] != bot.ID || c["act"] != nil || c["strength"] != "secret" || a.Text("refresh_token") != "" || a.Text("issued_token_type") != "" {
			t.Errorf("the token says %v, the answer %s", c, a.Body)
		}
		if !w.Live(bot, a.Token()) {
			t.Error("the token is not alive")
		}
		g, err := w.Tokens.Grant(t.Context(), estover.DefaultTenant, c["grant_id"].(string))
		if err != nil || g.Kind != assertionGrant || g.Parent != "" {
			t.Errorf("the grant is %+v (%v)", g, err)
		}
		raw := p.Token(bot)
		granted(t, "an assertion twice, which this trust allows", w.AskByAssertion(raw))
		granted(t, "an assertion twice, which this trust allows", w.AskByAssertion(raw))
		granted(t, "with the client_id beside", w.AskByAssertion(p.Token(bot), "client_id", bot.ID))
		f := oauthtest.Form("grant_type", assertionGrant, "assertion", p.Token(bot))
		granted(t, "by a client that authenticates besides", w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, bot.Secret))))
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), wish(bot, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if a := granted(t, "in a session", w.AskByAssertion(p.Token(bot), "session", s.ID)); a.Text("session") != s.ID {
			t.Errorf("the session is %q", a.Text("session"))
		}
		refused(t, "in a session of another's", w.AskByAssertion(p.Token(other), "session", s.ID), 400, "invalid_grant")
		refused(t, "no assertion", w.AskByAssertion(""), 400, "invalid_request")
		refused(t, "two assertions", w.Do(oauthtest.Request("/oauth/token", url.Values{"grant_type": {assertionGrant}, "assertion": {raw, raw}})), 400, "invalid_request")
		if n := count(t, d, `select count(*) from audit where action = 'token.issue' and outcome = 'done' and target = $1`, names(bot)[0]); n < 5 {
			t.Errorf("%d tokens are on record", n)
		}
		// The method used must be a registered one, and an assertion alone is none.
		w.Set(bot, agent.Client{GrantTypes: []string{assertionGrant}, Methods: []string{"client_secret_basic"}})
		refused(t, "an assertion alone, of an agent whose methods are named", w.AskByAssertion(p.Token(bot)), 401, "invalid_client")
		refused(t, "with the client_id beside", w.AskByAssertion(p.Token(bot), "client_id", bot.ID), 401, "invalid_client")
		f.Set("assertion", p.Token(bot))
		granted(t, "by the method that is named", w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, bot.Secret))))

		// The grant type is the agent's to have.
		w.Set(bot, agent.Client{})
		refused(t, "an agent without the grant type", w.AskByAssertion(p.Token(bot)), 400, "unauthorized_client")
	})
}

// A9 for assertions of others: whatever is missing, meant for others, of
// another kind or about another client buys nothing.
func TestA9AssertionGrantsFailClosed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := workload(w, "bot"), workload(w, "other")
		p := w.Platform("ci", nil, bot, other)
		now := d.Now().Unix()
		for what, change := range map[string]map[string]any{
			"no exp": {"exp": nil}, "no iat": {"iat": nil}, "no aud": {"aud": nil}, "an empty aud": {"aud": ""}, "no aud in the list": {"aud": []string{}},
			"an aud of two": {"aud": []string{string(oauthtest.Issuer), "https://other.example"}}, "the token endpoint": {"aud": string(oauthtest.Issuer) + "/oauth/token"},
			"another tenant": {"aud": string(oauthtest.Issuer) + "/t/other"}, "no sub": {"sub": nil}, "no iss": {"iss": nil}, "expired": {"exp": now - 1},
			"from the future": {"iat": now + 60}, "not yet": {"nbf": now + 60}, "another issuer": {"iss": "https://evil.example"}, "ourselves": {"iss": string(oauthtest.Issuer)},
			"an agent as issuer": {"iss": bot.ID}, "an unknown subject": {"sub": "nobody"}, "bound to a key that is not shown": {"cnf": map[string]any{"jkt": "x"}},
			"bound to a certificate that is not shown": {"cnf": map[string]any{"x5t#S256": "x"}}, "an ID token": {"nonce": "n"}, "an ID token of a code": {"c_hash": "h"},
			"of somebody who acts for another": {"act": map[string]any{"sub": "x"}},
		} {
			refused(t, what, w.AskByAssertion(p.Sign(with(p.Claims(bot), change))), 400, "invalid_grant")
		}
		for _, typ := range []string{"at+jwt", "dpop+jwt", "secevent+jwt", "oauth-id-jag+jwt", "token-introspection+jwt", "logout+jwt", "txntoken+jwt", "JOSE", "other"} {
			raw := craft(t, map[string]any{"alg": "ES256", "kid": "platform-1", "typ": typ}, p.Claims(bot), es256(t, p.Key))
			refused(t, "the type "+typ, w.AskByAssertion(raw), 400, "invalid_grant")
		}
		refused(t, "another client_id", w.AskByAssertion(p.Token(bot), "client_id", other.ID), 400, "invalid_grant")
		f := oauthtest.Form("grant_type", assertionGrant, "assertion", p.Token(bot))
		refused(t, "another client", w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(other.ID, other.Secret))), 400, "invalid_grant")
		refused(t, "a client that fails to authenticate", w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bot.ID, "wrong"))), 401, "invalid_client")
		refused(t, "our own access token", w.AskByAssertion(w.Ask(bot).Token()), 400, "invalid_grant")
		refused(t, "a client assertion", w.AskByAssertion(w.Assertion(bot)), 400, "invalid_grant")
		refused(t, "our own client assertion as the word of a platform", w.AskWith(p.Token(bot)), 401, "invalid_client")

		// Bound to a key, and the key is shown: so is the token.
		prover := w.Prover("P-256")
		bound := p.Sign(with(p.Claims(bot), map[string]any{"cnf": map[string]any{"jkt": prover.Thumbprint()}}))
		form := oauthtest.Form("grant_type", assertionGrant, "assertion", bound)
		a := granted(t, "bound, with its key", w.Do(oauthtest.Request("/oauth/token", form, prover.Prove(""))))
		if cnf, _ := said(t, a.Token())["cnf"].(map[string]any); cnf["jkt"] != prover.Thumbprint() {
			t.Errorf("the token is bound to %v", cnf)
		}
		refused(t, "bound, with another key", w.Do(oauthtest.Request("/oauth/token", form, w.Prover("P-256").Prove(""))), 400, "invalid_grant")
		cert := newAuthority(t, "platform", nil).leaf(nil)
		form.Set("assertion", p.Sign(with(p.Claims(bot), map[string]any{"cnf": map[string]any{"x5t#S256": edge.Thumbprint(cert.Raw)}})))
		a = granted(t, "bound, over its certificate", w.Do(oauthtest.Request("/oauth/token", form, over(cert))))
		if cnf, _ := said(t, a.Token())["cnf"].(map[string]any); cnf["x5t#S256"] != edge.Thumbprint(cert.Raw) {
			t.Errorf("the token is bound to %v", cnf)
		}
		refused(t, "bound, over another certificate", w.Do(oauthtest.Request("/oauth/token", form, over(newAuthority(t, "other", nil).leaf(nil)))), 400, "invalid_grant")

		// Two rules, or none.
		two := w.Platform("two", func(s *federation.Spec) { s.Rules = append(s.Rules, s.Rules[0]) }, bot)
		refused(t, "two rules that fit", w.AskByAssertion(two.Token(bot)), 400, "invalid_grant")
		refused(t, "no rule that fits", w.AskByAssertion(two.Token(other)), 400, "invalid_grant")
		if n := count(t, d, `select count(*) from audit where action = 'token.issue' and outcome = 'refused' and target = $1`, "trust:"+p.Trust.ID); n == 0 {
			t.Error("no refusal under the trust is on record")
		}
		if err := w.Trusts.Retire(t.Context(), oauthtest.Admin, p.Trust.ID); err != nil {
			t.Fatal(err)
		}
		refused(t, "a trust that is no more", w.AskByAssertion(p.Token(bot)), 400, "invalid_grant")
	})
}

// A6 for assertions of others: algorithm and key are those of the trust.
func TestA6AlgorithmAndKeyComeFromTheTrust(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := workload(w, "bot")
		p := w.Platform("ci", nil, bot)
		spki, err := x509.MarshalPKIXPublicKey(p.Key.Public())
		if err != nil {
			t.Fatal(err)
		}
		stranger := oauthtest.NewKey(t, "P-256")
		rsaKey := oauthtest.NewKey(t, "RSA")
		h := func(changes map[string]any) map[string]any {
			out := map[string]any{"alg": "ES256", "typ": "JWT", "kid": "platform-1"}
			for k, v := range changes {
				out[k] = v
			}
			return out
		}
		granted(t, "a good one, made by hand", w.AskByAssertion(craft(t, h(nil), p.Claims(bot), es256(t, p.Key))))
		for _, c := range []struct{ what, raw string }{
			{"none", craft(t, h(map[string]any{"alg": "none"}), p.Claims(bot), unsigned)},
			{"HS256 under the public key", craft(t, h(map[string]any{"alg": "HS256"}), p.Claims(bot), hs256(spki))},
			{"HS256 under the key set", craft(t, h(map[string]any{"alg": "HS256"}), p.Claims(bot), hs256([]byte(p.Trust.JWKS)))},
			{"an EC signature as RS256", craft(t, h(map[string]any{"alg": "RS256"}), p.Claims(bot), es256(t, p.Key))},
			{"an RSA key", oauthtest.Sign(t, rsaKey, "platform-1", p.Claims(bot))},
			{"a stranger's key", craft(t, h(nil), p.Claims(bot), es256(t, stranger))},
			{"an embedded key", craft(t, h(map[string]any{"jwk": map[string]any{"kty": "EC"}}), p.Claims(bot), es256(t, stranger))},
			{"jku", craft(t, h(map[string]any{"jku": "https://evil.example/jwks"}), p.Claims(bot), es256(t, p.Key))},
			{"x5u", craft(t, h(map[string]any{"x5u": "https://evil.example/cert"}), p.Claims(bot), es256(t, p.Key))},
			{"kid as a path", craft(t, h(map[string]any{"kid": "../../dev/null"}), p.Claims(bot), es256(t, p.Key))},
			{"kid as SQL", craft(t, h(map[string]any{"kid": "x' union select 'AA'--"}), p.Claims(bot), es256(t, p.Key))},
			{"the agent's own key", craft(t, h(nil), p.Claims(bot), es256(t, bot.Key))},
			{"no signature", craft(t, h(nil), p.Claims(bot), unsigned)},
		} {
			refused(t, c.what, w.AskByAssertion(c.raw), 400, "invalid_grant")
		}
		// The trust's list, and nothing else.
		other := w.Platform("eddsa", func(s *federation.Spec) { s.Algorithms = []string{"EdDSA"} }, bot)
		refused(t, "an algorithm that the trust does not list", w.AskByAssertion(other.Token(bot)), 400, "invalid_grant")
	})
}

// Under a trust of single use, however many present a token at once, on one node
// or two, exactly one gets something for it, and a refusal uses it up.
func TestAssertionsOfSingleUse(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, two := pair(t, d)
		bot := workload(w, "bot")
		p := w.Platform("ci", func(s *federation.Spec) { s.SingleUse = true }, bot)
		raw := p.Token(bot)
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		won := 0
		for _, a := range atOnce(64, func(i int) oauthtest.Answer { return []*oauthtest.World{w, two}[i%2].AskByAssertion(raw) }) {
			if a.Token() != "" {
				won++
				continue
			}
			refused(t, "a replay", a, 400, "invalid_grant")
		}
		if won != 1 {
			t.Errorf("%d of 64 presentations of one assertion got a token, want 1", won)
		}
		a := granted(t, "a fresh one", w.AskByAssertion(p.Token(bot)))
		if said(t, a.Token())["strength"] != "key" {
			t.Errorf("the strength is %v, want that of a key", said(t, a.Token())["strength"])
		}
		spent := p.Token(bot)
		refused(t, "for a resource that there is not", w.AskByAssertion(spent, "resource", "https://none.example"), 400, "invalid_target")
		refused(t, "again, after a refusal", w.AskByAssertion(spent), 400, "invalid_grant")
		refused(t, "without a jti", w.AskByAssertion(p.Sign(with(p.Claims(bot), map[string]any{"jti": nil}))), 400, "invalid_grant")

		// Along with an assertion of the client's own: each is what it is.
		ask := func(own, theirs string) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", assertionGrant, "assertion", theirs,
				"client_assertion_type", oauthtest.AssertionType, "client_assertion", own)))
		}
		own, theirs := w.Assertion(bot), p.Token(bot)
		granted(t, "both fresh", ask(own, theirs))
		refused(t, "the grant's again", ask(w.Assertion(bot), theirs), 400, "invalid_grant")
		refused(t, "the client's again", ask(own, p.Token(bot)), 401, "invalid_client")
	})
}

// A token of a trusted issuer may be taken up by another agent: it is the
// subject's authority, and both must have what the new token is good for.
func TestExchangeOfForeignTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), w.Agent("bob")
		p := w.Platform("ci", nil, ann)
		once := w.Platform("once", func(s *federation.Spec) { s.SingleUse = true }, ann)
		as := []string{"subject_token_type", jwtType, "resource", oauthtest.CRM}
		w.Set(bob, agent.Client{GrantTypes: []string{exchangeType}})
		refused(t, "a type that is not on the client's list", exchange(w, bob, p.Token(ann), as...), 400, "invalid_request")
		w.Set(bob, agent.Client{GrantTypes: []string{exchangeType}, Exchanges: []string{jwtType}})
		how := watched(w)
		refused(t, "without an edge", exchange(w, bob, p.Token(ann), as...), 400, "access_denied")
		if got, want := how(), "edge from "+names(ann)[0]; got != want {
			t.Errorf("policy hears %q, want %q", got, want)
		}
		w.Decider.Set(nil)
		a := granted(t, "along an edge", exchange(w, bob, p.Token(ann), as...))
		if got := chain(t, a.Token()); fmt.Sprint(got) != fmt.Sprint(names(ann, bob)) {
			t.Errorf("the chain is %v", got)
		}
		if s, err := w.Sessions.Live(t.Context(), estover.DefaultTenant, a.Text("session")); err != nil || s.Agent != bob.ID {
			t.Errorf("the session is %+v (%v), want one of bob's", s, err)
		}
		c := said(t, a.Token())
		if limit := float64(d.Now().Add(300 * time.Second).Unix()); c["exp"].(float64) > limit {
			t.Errorf("the token lives until %v, the one that it comes from until %v at the latest", c["exp"], limit)
		}
		w.Access.Grant(ann.ID, oauthtest.CRM, "customer.read")
		if a := granted(t, "what both have", exchange(w, bob, p.Token(ann), as...)); a.Text("scope") != "customer.read" {
			t.Errorf("the scope is %q", a.Text("scope"))
		}
		w.Access.Grant(ann.ID, oauthtest.CRM)
		refused(t, "what the subject has not", exchange(w, bob, p.Token(ann), as...), 400, "invalid_target")
		w.Access.Grant(ann.ID, oauthtest.CRM, "customer.read")

		refused(t, "under the type of our own", exchange(w, bob, p.Token(ann), "resource", oauthtest.CRM), 400, "invalid_grant")
		refused(t, "our own under the type of theirs", exchange(w, bob, w.Ask(ann, "resource", oauthtest.CRM).Token(), as...), 400, "invalid_grant")
		raw := once.Token(ann)
		granted(t, "once", exchange(w, bob, raw, as...))
		refused(t, "once more", exchange(w, bob, raw, as...), 400, "invalid_grant")
		may := with(p.Claims(ann), map[string]any{"may_act": map[string]any{"iss": string(oauthtest.Issuer), "sub": "agent:agt_none"}})
		refused(t, "may_act that names another", exchange(w, bob, p.Sign(may), as...), 400, "invalid_grant")
		may["may_act"] = map[string]any{"iss": string(oauthtest.Issuer), "sub": names(bob)[0]}
		granted(t, "may_act that names the actor", exchange(w, bob, p.Sign(may), as...))
		bound := with(p.Claims(ann), map[string]any{"cnf": map[string]any{"jkt": "abc"}})
		refused(t, "bound", exchange(w, bob, p.Sign(bound), as...), 400, "invalid_grant")
		prover := w.Prover("P-256")
		b := granted(t, "bound, along an edge to a key of one's own", exchangeWith(w, bob, p.Sign(bound), prover.Prove(""), as...))
		if cnf, _ := said(t, b.Token())["cnf"].(map[string]any); cnf["jkt"] != prover.Thumbprint() {
			t.Errorf("bound to %v", cnf)
		}
		hold(t, w, ann, agent.Suspension)
		refused(t, "a subject that is held", exchange(w, bob, p.Token(ann), as...), 400, "invalid_grant")
	})
}

// Strangers who try assertions are slowed down, and keep nobody else out.
func TestFailedAssertionsAreLimited(t *testing.T) {
	d := dbtest.Open(t)
	dbtest.NewClock(d).Hold()
	w := oauthtest.New(t, d)
	bot := workload(w, "bot")
	p := w.Platform("ci", nil, bot)
	from := func(address string) func(*http.Request) {
		return func(r *http.Request) { r.RemoteAddr = address }
	}
	ask := func(raw, address string) oauthtest.Answer {
		return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", assertionGrant, "assertion", raw), from(address)))
	}
	limited := false
	for range 200 {
		if a := ask("a.b.c", "192.0.2.1:1"); a.Status == http.StatusTooManyRequests {
			limited = true
			break
		}
	}
	if !limited {
		t.Error("200 assertions of nobody were looked at")
	}
	granted(t, "a good one from the same address", ask(p.Token(bot), "192.0.2.1:1"))
	granted(t, "from another address", ask(p.Token(bot), "192.0.2.99:1"))
}
