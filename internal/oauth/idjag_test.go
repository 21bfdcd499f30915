package oauth_test

import (
	"crypto"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/federation"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth/oauthtest"
)

// An organisation is an identity provider with which people sign in, and that
// says by identity assertion grants which agents act for them.
type organisation struct {
	*oauthtest.World
	provider directory.Provider
	trust    federation.Trust
	key      crypto.Signer
}

// trusted is an organisation, as it is known here. The changes, if any, are made
// to the trust and to the provider before they are put.
func trusted(t *testing.T, w *oauthtest.World, name string, change func(*federation.Spec), provide func(*directory.ProviderSpec)) *organisation {
	t.Helper()
	o := &organisation{World: w, key: oauthtest.NewKey(t, "P-256")}
	p := directory.ProviderSpec{Name: name, Issuer: "https://" + name + ".example", ClientID: "estover", Create: true}
	if provide != nil {
		provide(&p)
	}
	var err error
	if o.provider, err = w.People.PutProvider(t.Context(), oauthtest.Admin, p, ""); err != nil {
		t.Fatal(err)
	}
	s := federation.Spec{
		Name: name, Kind: federation.IDJAG, Provider: name, Issuer: p.Issuer, Audience: string(oauthtest.Issuer), Algorithms: []string{"ES256"},
		JWKS: string(oauthtest.JWKS(t, "platform-1", o.key.Public())),
	}
	if change != nil {
		change(&s)
	}
	if o.trust, err = w.Trusts.Put(t.Context(), oauthtest.Admin, s, ""); err != nil {
		t.Fatal(err)
	}
	return o
}

// signIn lets somebody sign in here with the organisation, so that they are
// known, and gives who they are here.
func (o *organisation) signIn(t *testing.T, subject string) string {
	t.Helper()
	value, err := o.People.Federated(t.Context(), directory.Browser{From: estover.Caller{Tenant: estover.DefaultTenant}}, o.provider.ID,
		directory.Identity{Subject: subject, Claims: map[string]any{"name": subject, "hd": "acme.example"}},
		directory.Answer{Challenge: rand.Text(), Expires: o.DB.Now().Add(time.Minute)}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := o.People.Visit(t.Context(), estover.DefaultTenant, string(value.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	return v.Person.ID
}

// claims are those of a good grant, fresh each time.
func (o *organisation) claims(subject string, a *oauthtest.Agent) oauthtest.Claims {
	now := o.DB.Now().Unix()
	return oauthtest.Claims{
		"iss": o.trust.Issuer, "sub": subject, "aud": string(oauthtest.Issuer), "client_id": a.ID, "iat": now, "exp": now + 300, "jti": rand.Text(),
	}
}

// sign is a grant with these claims.
func (o *organisation) sign(t *testing.T, c oauthtest.Claims) string {
	t.Helper()
	return craft(t, map[string]any{"alg": "ES256", "kid": "platform-1", "typ": "oauth-id-jag+jwt"}, c, es256(t, o.key))
}

// present presents a grant as the agent, by its secret.
func present(w *oauthtest.World, a *oauthtest.Agent, raw string, pairs ...string) oauthtest.Answer {
	return presentWith(w, a, raw, func(*http.Request) {}, pairs...)
}

// presentWith presents it with more about the request.
func presentWith(w *oauthtest.World, a *oauthtest.Agent, raw string, more func(*http.Request), pairs ...string) oauthtest.Answer {
	f := oauthtest.Form(append(pairs, "grant_type", assertionGrant, "assertion", raw)...)
	return w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(a.ID, a.Secret), more))
}

// A grant of an organisation's identity provider lets the agent act for the
// person whom it is about, in a session of its own, and there is no refresh
// token.
func TestIdentityAssertionGrants(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := workload(w, "bot")
		acme := trusted(t, w, "acme", nil, nil)
		alice := acme.signIn(t, "u-alice")
		since := d.Now().Add(-time.Minute).Unix()
		c := with(acme.claims("u-alice", bot), map[string]any{"auth_time": since, "acr": "phr", "amr": []string{"hwk"}})
		a := granted(t, "a grant", present(w, bot, acme.sign(t, c), "resource", oauthtest.CRM))
		says := claimsOf(t, w, a.Token(), oauthtest.CRM)
		act, _ := says["act"].(map[string]any)
		if says["sub"] != string(estover.User(alice)) || act["sub"] != names(bot)[0] || act["act"] != nil || says["client_id"] != bot.ID {
			t.Errorf("the token says %v", says)
		}
		if says["auth_time"] != float64(since) || says["acr"] != nil || says["amr"] != nil {
			t.Errorf("of how the person signed in it says %v %v %v: a class is what we vouch for", says["auth_time"], says["acr"], says["amr"])
		}
		g, err := w.Tokens.Grant(t.Context(), estover.DefaultTenant, says["grant_id"].(string))
		if err != nil || g.Kind != assertionGrant || g.Parent != "" || g.From != acme.trust.Issuer+" "+c["jti"].(string) {
			t.Errorf("the grant is %+v (%v)", g, err)
		}
		if a.Text("refresh_token") != "" || a.Text("id_token") != "" || a.Text("issued_token_type") != "" {
			t.Errorf("the answer is %s", a.Body)
		}
		if !w.Live(bot, a.Token()) {
			t.Error("the token is not alive")
		}
		b := granted(t, "another, in an array of one audience", present(w, bot, acme.sign(t, with(acme.claims("u-alice", bot), map[string]any{"aud": []string{string(oauthtest.Issuer)}}))))
		if one, two := a.Text("session"), b.Text("session"); one == "" || one == two || one == w.Ask(bot).Text("session") {
			t.Errorf("the sessions are %q and %q, each of its own", one, two)
		}
		refused(t, "in a session that is there", present(w, bot, acme.sign(t, acme.claims("u-alice", bot)), "session", w.Ask(bot).Text("session")), 400, "invalid_request")
		if n := count(t, d, `select count(*) from audit where action = 'token.issue' and outcome = 'done' and session_id = $1`, a.Text("session")); n != 1 {
			t.Errorf("%d events of the session, want 1", n)
		}

		// Where to sign in is as good as a passkey, a class follows.
		strong := trusted(t, w, "strong", nil, func(p *directory.ProviderSpec) { p.Strong = true })
		strong.signIn(t, "u-bea")
		c = with(strong.claims("u-bea", bot), map[string]any{"auth_time": since})
		if says := said(t, granted(t, "of a strong provider", present(w, bot, strong.sign(t, c))).Token()); says["acr"] != "phr" {
			t.Errorf("the class is %v", says["acr"])
		}

		// What the agent holds for a person ends when they leave.
		if _, err := w.People.Disable(t.Context(), oauthtest.Admin, alice, "left"); err != nil {
			t.Fatal(err)
		}
		if w.Live(bot, a.Token()) || w.Live(bot, b.Token()) {
			t.Error("the tokens are alive although the person has left")
		}
		if got := present(w, bot, acme.sign(t, acme.claims("u-alice", bot))); got.Token() != "" || got.Status != 400 {
			t.Errorf("for somebody who has left: %d %s", got.Status, got.Body)
		}
		// The grant type is the agent's to have.
		other := w.Agent("other")
		acme.signIn(t, "u-carl")
		refused(t, "an agent without the grant type", present(w, other, acme.sign(t, acme.claims("u-carl", other))), 400, "unauthorized_client")
	})
}

// A9 for identity assertion grants: whatever is missing, meant for others, of
// another kind, about another client or about nobody who is known buys nothing.
func TestA9IdentityAssertionGrantsFailClosed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		// A trust is for us or for nobody.
		for _, audience := range []string{"https://other.example", string(oauthtest.Issuer) + "/", string(oauthtest.Issuer) + "/oauth/token", ""} {
			p, err := w.People.PutProvider(t.Context(), oauthtest.Admin, directory.ProviderSpec{Name: "loose", Issuer: "https://loose.example", ClientID: "estover"}, "")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Trusts.Put(t.Context(), oauthtest.Admin, federation.Spec{
				Name: "loose", Kind: federation.IDJAG, Provider: p.Name, Issuer: p.Issuer, Audience: audience, Algorithms: []string{"ES256"},
				JWKS: string(oauthtest.JWKS(t, "1", oauthtest.NewKey(t, "P-256").Public())),
			}, ""); !errors.Is(err, federation.ErrInvalid) {
				t.Errorf("a trust in assertions for %q: %v", audience, err)
			}
		}
		bot, other := workload(w, "bot"), workload(w, "other")
		acme := trusted(t, w, "acme", nil, nil)
		acme.signIn(t, "u-alice")
		now := d.Now().Unix()
		for what, change := range map[string]map[string]any{
			"no exp": {"exp": nil}, "no iat": {"iat": nil}, "no aud": {"aud": nil}, "an empty aud": {"aud": ""}, "no aud in the list": {"aud": []string{}},
			"an aud of two": {"aud": []string{string(oauthtest.Issuer), "https://other.example"}}, "the token endpoint": {"aud": string(oauthtest.Issuer) + "/oauth/token"},
			"another tenant": {"aud": string(oauthtest.Issuer) + "/t/other"}, "no sub": {"sub": nil}, "no iss": {"iss": nil}, "no jti": {"jti": nil}, "a jti without end": {"jti": strings.Repeat("j", 256)},
			"a scope that is null": {"scope": json.RawMessage("null")}, "a resource that is null": {"resource": json.RawMessage("null")}, "a key that is null": {"cnf": json.RawMessage("null")},
			"no client_id": {"client_id": nil}, "another's client_id": {"client_id": other.ID}, "expired": {"exp": now - 1}, "for an hour": {"exp": now + 3600},
			"from the future": {"iat": now + 60}, "not yet": {"nbf": now + 60}, "another issuer": {"iss": "https://evil.example"}, "ourselves": {"iss": string(oauthtest.Issuer)},
			"nobody who is known": {"sub": "u-nobody"}, "bound to a key that is not shown": {"cnf": map[string]any{"jkt": "x"}},
			"bound to a certificate that is not shown": {"cnf": map[string]any{"x5t#S256": "x"}}, "bound in another way": {"cnf": map[string]any{"kid": "x"}},
			"of somebody who acts for another": {"act": map[string]any{"sub": "x"}}, "for somebody else to take up": {"may_act": map[string]any{"sub": "x"}},
			"limits that cannot be read": {"authorization_details": []any{"x"}}, "a resource that is none": {"resource": 1},
			"a resource among others that is none": {"resource": []any{oauthtest.CRM, 1}}, "a resource that is no URI": {"resource": "crm"}, "a scope that is a list": {"scope": []string{"customer.read"}},
		} {
			refused(t, what, present(w, bot, acme.sign(t, with(acme.claims("u-alice", bot), change))), 400, "invalid_grant")
		}
		for _, typ := range []string{"JWT", "", "at+jwt", "dpop+jwt", "secevent+jwt", "token-introspection+jwt", "logout+jwt", "txntoken+jwt", "other"} {
			raw := craft(t, map[string]any{"alg": "ES256", "kid": "platform-1", "typ": typ}, acme.claims("u-alice", bot), es256(t, acme.key))
			refused(t, "the type "+typ, present(w, bot, raw), 400, "invalid_grant")
		}
		idToken := with(acme.claims("u-alice", bot), map[string]any{"nonce": "n", "client_id": nil, "aud": bot.ID})
		refused(t, "an ID token", present(w, bot, craft(t, map[string]any{"alg": "ES256", "kid": "platform-1", "typ": "JWT"}, idToken, es256(t, acme.key))), 400, "invalid_grant")
		refused(t, "a stranger's key", present(w, bot, craft(t, map[string]any{"alg": "ES256", "kid": "platform-1", "typ": "oauth-id-jag+jwt"}, acme.claims("u-alice", bot), es256(t, oauthtest.NewKey(t, "P-256")))), 400, "invalid_grant")
		refused(t, "instead of the client's authentication", w.AskByAssertion(acme.sign(t, acme.claims("u-alice", bot))), 400, "invalid_grant")

		// Neither kind of trust lets the tokens of the other count.
		p := w.Platform("ci", nil, bot)
		asGrant := with(p.Claims(bot), map[string]any{"client_id": bot.ID})
		refused(t, "a grant of an issuer of workloads", present(w, bot, craft(t, map[string]any{"alg": "ES256", "kid": "platform-1", "typ": "oauth-id-jag+jwt"}, asGrant, es256(t, p.Key))), 400, "invalid_grant")
		// Nor is a grant anything else.
		w.Set(bot, agent.Client{GrantTypes: []string{assertionGrant, exchangeType}, Exchanges: []string{jwtType}})
		refused(t, "a grant as a subject token", exchange(w, bot, acme.sign(t, acme.claims("u-alice", bot)), "subject_token_type", jwtType), 400, "invalid_grant")
		refused(t, "a grant as a client assertion", w.AskWith(acme.sign(t, acme.claims("u-alice", bot))), 401, "invalid_client")
		raw := acme.sign(t, acme.claims("u-alice", bot))
		refused(t, "a grant as an access token", exchange(w, bot, raw), 400, "invalid_grant")
		if w.Live(bot, raw) {
			t.Error("a grant is alive as an access token")
		}

		// Bound to a key, and the key is shown: so is the token. Who has not got the
		// key, and another client, use nothing up.
		prover := w.Prover("P-256")
		bound := acme.sign(t, with(acme.claims("u-alice", bot), map[string]any{"cnf": map[string]any{"jkt": prover.Thumbprint()}}))
		refused(t, "bound, with another key", presentWith(w, bot, bound, w.Prover("P-256").Prove("")), 400, "invalid_grant")
		refused(t, "bound, without a proof", present(w, bot, bound), 400, "invalid_grant")
		refused(t, "bound, by another client", presentWith(w, other, bound, prover.Prove("")), 400, "invalid_grant")
		a := granted(t, "bound, with its key", presentWith(w, bot, bound, prover.Prove("")))
		if cnf, _ := said(t, a.Token())["cnf"].(map[string]any); cnf["jkt"] != prover.Thumbprint() || a.Text("token_type") != "DPoP" {
			t.Errorf("the token is bound to %v", cnf)
		}

		// A trust or a provider that does not say enough.
		for what, o := range map[string]*organisation{
			"another issuer than the provider's": trusted(t, w, "one", func(s *federation.Spec) { s.Issuer = "https://elsewhere.example" }, nil),
			"a provider that there is not":       trusted(t, w, "two", func(s *federation.Spec) { s.Provider = "nobody" }, nil),
			"a claim that people must have":      trusted(t, w, "three", nil, func(p *directory.ProviderSpec) { p.Claims = map[string]string{"hd": "acme.example"} }),
			"an algorithm that is not listed":    trusted(t, w, "four", func(s *federation.Spec) { s.Algorithms = []string{"EdDSA"} }, nil),
		} {
			o.signIn(t, "u-alice")
			refused(t, what, present(w, bot, o.sign(t, o.claims("u-alice", bot))), 400, "invalid_grant")
			if what == "a claim that people must have" {
				granted(t, what+", and has", present(w, bot, o.sign(t, with(o.claims("u-alice", bot), map[string]any{"hd": "acme.example"}))))
			}
		}
		for what, change := range map[string]func(*federation.Spec){
			"another audience": func(s *federation.Spec) { s.Audience = "https://other.example" }, "no audience": func(s *federation.Spec) { s.Audience = "" },
			"no provider": func(s *federation.Spec) { s.Provider = "" }, "another kind": func(s *federation.Spec) { s.Kind = "people" },
			"rules": func(s *federation.Spec) {
				s.Rules = []federation.Rule{{Agent: bot.ID, Claims: map[string]string{"sub": "x"}}}
			},
		} {
			s := acme.trust.Spec
			s.Name, s.Issuer = "five", "https://five.example"
			change(&s)
			if _, err := w.Trusts.Put(t.Context(), oauthtest.Admin, s, ""); estover.KindOf(err) != estover.Invalid {
				t.Errorf("a trust with %s: %v, want that it is refused", what, err)
			}
		}
		if err := w.Trusts.Retire(t.Context(), oauthtest.Admin, acme.trust.ID); err != nil {
			t.Fatal(err)
		}
		refused(t, "a trust that is no more", present(w, bot, acme.sign(t, acme.claims("u-alice", bot))), 400, "invalid_grant")
	})
}

// A19 for identity assertion grants: scope and resource are those of the grant or
// fewer, and never more than the agent has.
func TestA19IdentityAssertionGrantsDoNotWiden(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := workload(w, "bot")
		acme := trusted(t, w, "acme", nil, nil)
		acme.signIn(t, "u-alice")
		ask := func(change map[string]any, pairs ...string) oauthtest.Answer {
			return present(w, bot, acme.sign(t, with(acme.claims("u-alice", bot), change)), pairs...)
		}
		for _, c := range []struct {
			what   string
			change map[string]any
			pairs  []string
			want   string
		}{
			{"all that the agent has", nil, []string{"resource", oauthtest.CRM}, "customer.read customer.update"},
			{"the scope of the grant", map[string]any{"scope": "customer.read customer.delete"}, []string{"resource", oauthtest.CRM}, "customer.read"},
			{"less than the grant", map[string]any{"scope": "customer.read customer.update"}, []string{"resource", oauthtest.CRM, "scope", "customer.update"}, "customer.update"},
			{"the resource of the grant", map[string]any{"resource": oauthtest.CRM}, nil, "customer.read customer.update"},
			{"one of its resources", map[string]any{"resource": []string{oauthtest.CRM, oauthtest.Tickets}}, []string{"resource", oauthtest.Tickets}, "ticket.read"},
		} {
			if a := granted(t, c.what, ask(c.change, c.pairs...)); a.Text("scope") != c.want {
				t.Errorf("%s: the scope is %q, want %q", c.what, a.Text("scope"), c.want)
			}
		}
		refused(t, "a resource that the grant does not name", ask(map[string]any{"resource": oauthtest.CRM}, "resource", oauthtest.Tickets), 400, "invalid_target")
		refused(t, "none of its resources", ask(map[string]any{"resource": []string{}}, "resource", oauthtest.CRM), 400, "invalid_target")
		refused(t, "a scope that the grant does not name", ask(map[string]any{"scope": "customer.read"}, "resource", oauthtest.CRM, "scope", "customer.update"), 400, "invalid_scope")
		refused(t, "a grant without scope", ask(map[string]any{"scope": ""}, "resource", oauthtest.CRM), 400, "invalid_scope")
		refused(t, "what the agent does not have", ask(map[string]any{"scope": "customer.delete"}, "resource", oauthtest.CRM), 400, "invalid_scope")
		// What is handed on of it is bounded in the same way.
		a := granted(t, "a narrow one", ask(map[string]any{"scope": "customer.read"}, "resource", oauthtest.CRM))
		w.Set(bot, agent.Client{GrantTypes: []string{assertionGrant, exchangeType}})
		refused(t, "exchanged for more", exchange(w, bot, a.Token(), "scope", "customer.update"), 400, "invalid_scope")
		says := said(t, granted(t, "exchanged for the same", exchange(w, bot, a.Token())).Token())
		if says["scope"] != "customer.read" || says["sub"] != said(t, a.Token())["sub"] {
			t.Errorf("what was exchanged says %v", says)
		}
		w.Decider.Set(oauthtest.Deny("token.issue"))
		refused(t, "what policy denies", ask(nil), 400, "access_denied")
	})
}

// However many present one identity assertion grant at once, on one node or two,
// exactly one gets a token and there is one session; a refusal uses it up. No
// setting of a trust has it otherwise.
func TestIdentityAssertionGrantsAreGoodOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		bot := workload(one, "bot")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		acme := trusted(t, one, "acme", nil, nil)
		acme.signIn(t, "u-alice")
		raw := acme.sign(t, acme.claims("u-alice", bot))
		var won []oauthtest.Answer
		var mu sync.Mutex
		atOnce(64, func(i int) struct{} {
			a := present([]*oauthtest.World{one, two}[i%2], bot, raw, "resource", oauthtest.CRM)
			mu.Lock()
			defer mu.Unlock()
			if a.Token() != "" {
				won = append(won, a)
			} else {
				refused(t, "a replay", a, 400, "invalid_grant")
			}
			return struct{}{}
		})
		if len(won) != 1 {
			t.Fatalf("%d of 64 presentations of one grant got a token, want 1", len(won))
		}
		if !one.Live(bot, won[0].Token()) {
			t.Error("the token of the one is not alive")
		}
		if n := count(t, d, "select count(*) from session where agent_id = $1", bot.ID); n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
		if n := count(t, d, "select count(*) from oauth_grant where client_id = $1", bot.ID); n != 1 {
			t.Errorf("%d grants, want 1", n)
		}
		spent := acme.sign(t, acme.claims("u-alice", bot))
		refused(t, "for a resource that there is not", present(one, bot, spent, "resource", "https://none.example"), 400, "invalid_target")
		refused(t, "again, after a refusal", present(one, bot, spent), 400, "invalid_grant")
		// The same jti of another issuer is another grant.
		other := trusted(t, one, "other", nil, nil)
		other.signIn(t, "u-alice")
		c := acme.claims("u-alice", bot)
		granted(t, "of one issuer", present(one, bot, acme.sign(t, c)))
		granted(t, "of another", present(one, bot, other.sign(t, with(c, map[string]any{"iss": other.trust.Issuer}))))
	})
}

// Who looks at trusts learns whom a grant is about, and why it says nothing.
func TestIdentityAssertionGrantsAreExplained(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := workload(w, "bot")
		acme := trusted(t, w, "acme", nil, nil)
		alice := acme.signIn(t, "u-alice")
		e, err := w.Trusts.Explain(t.Context(), oauthtest.Admin, acme.sign(t, acme.claims("u-alice", bot)))
		if err != nil || !e.Accepted || e.Agent != bot.ID || e.Person != alice || e.Trust != "acme" {
			t.Errorf("a good grant is explained as %+v (%v)", e, err)
		}
		e, err = w.Trusts.Explain(t.Context(), oauthtest.Admin, acme.sign(t, acme.claims("u-nobody", bot)))
		if err != nil || e.Accepted || !strings.Contains(e.Why, "not known here") {
			t.Errorf("a grant about nobody is explained as %+v (%v)", e, err)
		}
	})
}

const (
	chat     = "https://chat.example"
	chatAPI  = "https://api.chat.example/v1"
	idTokens = "urn:ietf:params:oauth:token-type:id_token"
	refreshs = "urn:ietf:params:oauth:token-type:refresh_token"
	idJAG    = "urn:ietf:params:oauth:token-type:id-jag"
)

// chained is an agent that people let act for them, and that may take them to
// another server.
func chained(w *oauthtest.World, name string) *oauthtest.Agent {
	return w.CodeAgent(name, func(c *agent.Client) {
		c.GrantTypes = append(c.GrantTypes, exchangeType)
		c.Chains = []agent.Chain{{Issuer: chat, ClientID: "wiki-at-chat"}, {Issuer: "https://narrow.example", ClientID: "n", Scopes: []string{"chat.read"}}}
	})
}

// take asks for an assertion for the other server, as the agent, by its secret.
func take(w *oauthtest.World, a *oauthtest.Agent, raw, kind string, pairs ...string) oauthtest.Answer {
	return takeWith(w, a, raw, kind, func(*http.Request) {}, pairs...)
}

func takeWith(w *oauthtest.World, a *oauthtest.Agent, raw, kind string, more func(*http.Request), pairs ...string) oauthtest.Answer {
	f := oauthtest.Form("grant_type", exchangeType, "requested_token_type", idJAG, "audience", chat, "subject_token", raw, "subject_token_type", kind)
	for i := 0; i+1 < len(pairs); i += 2 {
		if f.Del(pairs[i]); pairs[i+1] != "" {
			f.Set(pairs[i], pairs[i+1])
		}
	}
	return w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(a.ID, a.Secret), more))
}

// What a node remembers of a refresh token is good for spending it, which makes sure, and for
// nothing else: one that was spent on another node is a replay (A2).
func TestSpentElsewhere(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		clock := dbtest.NewClock(d)
		wiki, alice := chained(one, "wiki"), one.Person("alice")
		two.Access.Grant(wiki.ID, oauthtest.CRM, "customer.read", "customer.update")
		value := granted(t, "signing in", one.Redeem(wiki, alice.Code(wiki, asked("scope", "openid")...))).Text("refresh_token")
		value = granted(t, "a refresh", one.Refresh(wiki, value)).Text("refresh_token")
		next := granted(t, "a refresh on another node", two.Refresh(wiki, value))
		clock.Advance(time.Minute)
		refused(t, "an assertion for what was spent there", take(one, wiki, value, refreshs), 400, "invalid_grant")
		if one.Live(wiki, next.Token()) {
			t.Error("the family lives on")
		}
	})
}

// A client that a person signed in to gets an assertion for another server for
// its ID token or its refresh token, which is not spent.
func TestAssertionsForOtherServers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		wiki := chained(w, "wiki")
		alice := w.Person("alice")
		signed := granted(t, "signing in", w.Redeem(wiki, alice.Code(wiki, asked("scope", "openid")...)))
		for _, c := range []struct{ raw, kind string }{{signed.Text("id_token"), idTokens}, {signed.Text("refresh_token"), refreshs}, {signed.Text("refresh_token"), refreshs}} {
			a := granted(t, c.kind, take(w, wiki, c.raw, c.kind, "scope", "chat.read chat.write", "resource", chatAPI))
			if a.Text("issued_token_type") != idJAG || a.Text("token_type") != "N_A" || a.Text("scope") != "chat.read chat.write" || a.Text("refresh_token") != "" || a.Text("id_token") != "" {
				t.Errorf("the answer is %s", a.Body)
			}
			if n, _ := a.JSON["expires_in"].(float64); n <= 0 || n > 300 {
				t.Errorf("it lives for %v seconds", a.JSON["expires_in"])
			}
			keys, err := jose.ParseKeys([]byte(w.Do(httpGet("/oauth/jwks")).Body))
			if err != nil {
				t.Fatal(err)
			}
			is, err := jose.Verify(jose.IDJAG, keys, a.Token(), jose.Expected{Now: d.Now(), Issuer: string(oauthtest.Issuer), Audiences: []string{chat}, Algorithms: []string{"ES256"}})
			if err != nil {
				t.Fatalf("verifying it with the published keys: %v", err)
			}
			says := said(t, a.Token())
			if is.Subject != "user:"+alice.ID || says["client_id"] != "wiki-at-chat" || says["scope"] != "chat.read chat.write" || fmt.Sprint(says["resource"]) != "["+chatAPI+"]" ||
				says["auth_time"] == nil || says["acr"] != "phr" || says["cnf"] != nil || says["act"] != nil || says["jti"] == "" {
				t.Errorf("it says %v", says)
			}
			if w.Live(wiki, a.Token()) {
				t.Error("it is alive as an access token")
			}
			refused(t, "as an assertion here", present(w, workload(w, "bot-"+strings.ToLower(rand.Text())), a.Token()), 400, "invalid_grant")
			refused(t, "as a subject token", exchange(w, wiki, a.Token()), 400, "invalid_grant")
		}
		if n := count(t, d, `select count(*) from audit where action = 'token.issue' and outcome = 'done' and target = $1`, names(wiki)[0]); n != 4 {
			t.Errorf("%d tokens are on record, want one and three assertions", n)
		}
		granted(t, "the refresh token still refreshes", w.Refresh(wiki, signed.Text("refresh_token")))
		// Bound to the key that the request shows.
		fresh := granted(t, "signing in", w.Redeem(wiki, alice.Code(wiki, asked("scope", "openid")...)))
		prover := w.Prover("P-256")
		a := granted(t, "with a key", takeWith(w, wiki, fresh.Text("id_token"), idTokens, prover.Prove("")))
		if cnf, _ := said(t, a.Token())["cnf"].(map[string]any); cnf["jkt"] != prover.Thumbprint() || a.Text("token_type") != "N_A" {
			t.Errorf("bound to %v, %s", cnf, a.Text("token_type"))
		}
		m := w.Metadata()
		if fmt.Sprint(m.Chaining, m.GrantProfiles) != "["+idJAG+"] [urn:ietf:params:oauth:grant-profile:id-jag]" {
			t.Errorf("the metadata names %v and %v", m.Chaining, m.GrantProfiles)
		}
	})
}

// A5 and A19 for assertions for other servers: a token that is dead, another's or
// of another kind buys none, nor does one go to a server, or for a scope, that
// nobody has named.
func TestA5AssertionsForOtherServersNeedALiveToken(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		wiki, other := chained(w, "wiki"), chained(w, "other")
		alice := w.Person("alice")
		signIn := func() oauthtest.Answer {
			return granted(t, "signing in", w.Redeem(wiki, alice.Code(wiki, asked("scope", "openid")...)))
		}
		s := signIn()
		id, again := s.Text("id_token"), s.Text("refresh_token")
		refused(t, "another client's ID token", take(w, other, id, idTokens), 400, "invalid_grant")
		refused(t, "another client's refresh token", take(w, other, again, refreshs), 400, "invalid_grant")
		refused(t, "an access token as an ID token", take(w, wiki, s.Token(), idTokens), 400, "invalid_grant")
		refused(t, "an ID token as a refresh token", take(w, wiki, id, refreshs), 400, "invalid_grant")
		refused(t, "an access token", take(w, wiki, s.Token(), accessTokenType), 400, "invalid_request")
		refused(t, "an ID token for an access token", take(w, wiki, id, idTokens, "requested_token_type", "", "audience", ""), 400, "invalid_request")
		refused(t, "a server that is not named", take(w, wiki, id, idTokens, "audience", "https://evil.example"), 400, "invalid_target")
		refused(t, "a server in another spelling", take(w, wiki, id, idTokens, "audience", chat+"/"), 400, "invalid_target")
		refused(t, "no server", take(w, wiki, id, idTokens, "audience", ""), 400, "invalid_request")
		refused(t, "no token", take(w, wiki, "", idTokens), 400, "invalid_request")
		refused(t, "with an actor", take(w, wiki, id, idTokens, "actor_token", s.Token(), "actor_token_type", accessTokenType), 400, "invalid_request")
		refused(t, "a scope beyond those that are named", take(w, wiki, id, idTokens, "audience", "https://narrow.example", "scope", "chat.write"), 400, "invalid_scope")
		if a := granted(t, "those that are named", take(w, wiki, id, idTokens, "audience", "https://narrow.example", "scope", "chat.read chat.write")); a.Text("scope") != "chat.read" || said(t, a.Token())["scope"] != "chat.read" {
			t.Errorf("the scope is %q", a.Text("scope"))
		}
		if a := granted(t, "without a word of scopes", take(w, wiki, id, idTokens, "audience", "https://narrow.example")); a.Text("scope") != "chat.read" {
			t.Errorf("the scope is %q", a.Text("scope"))
		}
		w.Decider.Set(func(c estover.Caller, op guard.Op) guard.Decision {
			if e, ok := op.Input.(interface{ Elsewhere() (string, []string) }); ok {
				if issuer, scopes := e.Elsewhere(); issuer == chat && slices.Contains(scopes, "chat.admin") {
					return guardtest.DenyAll(c, op)
				}
			}
			return guardtest.AllowAll(c, op)
		})
		refused(t, "what policy denies", take(w, wiki, id, idTokens, "scope", "chat.admin"), 400, "access_denied")
		granted(t, "what policy allows", take(w, wiki, id, idTokens, "scope", "chat.read"))
		w.Decider.Set(nil)

		plain := granted(t, "without openid", w.Redeem(wiki, alice.Code(wiki)))
		refused(t, "what the person did not agree to", take(w, wiki, plain.Text("refresh_token"), refreshs), 400, "invalid_grant")

		// A refresh token that was spent is one that was presented twice.
		spent := signIn()
		next := granted(t, "a refresh", w.Refresh(wiki, spent.Text("refresh_token")))
		dbtest.NewClock(d).Advance(time.Minute)
		refused(t, "a spent refresh token", take(w, wiki, spent.Text("refresh_token"), refreshs), 400, "invalid_grant")
		refused(t, "its successor, after that", w.Refresh(wiki, next.Text("refresh_token")), 400, "invalid_grant")
		refused(t, "the ID token of what has ended", take(w, wiki, next.Text("id_token"), idTokens), 400, "invalid_grant")

		late := signIn()
		dbtest.NewClock(d).Advance(4 * time.Minute)
		if a := granted(t, "an ID token of its last minute", take(w, wiki, late.Text("id_token"), idTokens)); a.JSON["expires_in"].(float64) > 60 {
			t.Errorf("it lives longer than what it comes from: %v", a.JSON["expires_in"])
		}
		dbtest.NewClock(d).Advance(2 * time.Minute)
		refused(t, "an ID token that has expired", take(w, wiki, late.Text("id_token"), idTokens), 400, "invalid_grant")

		gone := signIn()
		w.Set(wiki, agent.Client{GrantTypes: []string{"authorization_code", "refresh_token"}, RedirectURIs: []string{oauthtest.Callback}, Chains: []agent.Chain{{Issuer: chat, ClientID: "w"}}})
		refused(t, "a client without the grant type", take(w, wiki, gone.Text("id_token"), idTokens), 400, "unauthorized_client")
		w.Set(wiki, agent.Client{GrantTypes: []string{"authorization_code", exchangeType}, RedirectURIs: []string{oauthtest.Callback}, Chains: []agent.Chain{{Issuer: chat, ClientID: "w"}}})
		refused(t, "a refresh token of a client that may not refresh", take(w, wiki, gone.Text("refresh_token"), refreshs), 400, "invalid_request")
		granted(t, "its ID token", take(w, wiki, gone.Text("id_token"), idTokens))
		if _, err := w.People.Disable(t.Context(), oauthtest.Admin, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		refused(t, "somebody who has left", take(w, wiki, gone.Text("id_token"), idTokens), 400, "invalid_grant")
	})
}
