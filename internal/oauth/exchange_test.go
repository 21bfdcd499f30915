package oauth_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

const (
	exchangeType    = "urn:ietf:params:oauth:grant-type:token-exchange"
	accessTokenType = "urn:ietf:params:oauth:token-type:access_token"
)

// exchanger is an agent that may exchange tokens, and serves these resources.
func exchanger(w *oauthtest.World, name string, serves ...string) *oauthtest.Agent {
	a := w.Agent(name)
	w.Set(a, agent.Client{GrantTypes: []string{exchangeType}, Introspect: serves})
	return a
}

// exchange has an agent take up a token, by its secret.
func exchange(w *oauthtest.World, by *oauthtest.Agent, subject string, pairs ...string) oauthtest.Answer {
	return exchangeWith(w, by, subject, nil, pairs...)
}

func exchangeWith(w *oauthtest.World, by *oauthtest.Agent, subject string, change func(*http.Request), pairs ...string) oauthtest.Answer {
	f := oauthtest.Form("subject_token", subject, "subject_token_type", accessTokenType)
	for name, v := range oauthtest.Form(pairs...) {
		f[name] = v
	}
	f.Set("grant_type", exchangeType)
	changes := []func(*http.Request){oauthtest.Basic(by.ID, by.Secret)}
	if change != nil {
		changes = append(changes, change)
	}
	return w.Do(oauthtest.Request("/oauth/token", f, changes...))
}

// said is what a token says of itself, whether or not it is alive.
func said(t *testing.T, raw string) map[string]any {
	t.Helper()
	body, err := b64.DecodeString(strings.Split(raw, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(body, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

// chain is the subject of a token and whoever acts for it, the nearest last.
func chain(t *testing.T, raw string) (all []string) {
	t.Helper()
	c := said(t, raw)
	for act, _ := c["act"].(map[string]any); act != nil; act, _ = act["act"].(map[string]any) {
		all = append(all, act["sub"].(string))
	}
	all = append(all, c["sub"].(string))
	slices.Reverse(all)
	return all
}

func names(agents ...*oauthtest.Agent) (all []string) {
	for _, a := range agents {
		all = append(all, string(estover.Agent(a.ID)))
	}
	return all
}

func TestExchange(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob, cid := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM), exchanger(w, "cid")
		s, err := w.Sessions.Open(t.Context(), ann.Caller(), wish(ann, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		first := w.Ask(ann, "session", s.ID, "resource", oauthtest.CRM, "resource", oauthtest.Tickets).Token()
		a := granted(t, "an exchange", exchange(w, bob, first, "resource", oauthtest.CRM))
		if a.Text("issued_token_type") != accessTokenType || a.Text("token_type") != "Bearer" || a.Text("scope") != "customer.read customer.update" || a.Text("refresh_token") != "" {
			t.Errorf("the answer is %s", a.Body)
		}
		got, was := claimsOf(t, w, a.Token(), oauthtest.CRM), said(t, first)
		if fmt.Sprint(chain(t, a.Token())) != fmt.Sprint(names(ann, bob)) {
			t.Errorf("the chain is %v, want ann and then bob", chain(t, a.Token()))
		}
		if got["client_id"] != bob.ID || got["sid"] != s.ID || got["purpose"] != s.Purpose || got["exp"].(float64) > was["exp"].(float64) || got["aud"] != oauthtest.CRM {
			t.Errorf("the new token says %v of the old one that says %v", got, was)
		}
		if got["grant_id"] == was["grant_id"] {
			t.Error("the new token rests on the grant of the old one")
		}
		g, err := w.Tokens.Grant(t.Context(), estover.DefaultTenant, got["grant_id"].(string))
		if err != nil || g.Parent != was["grant_id"] || g.Root != was["grant_id"] || g.Kind != token.Exchange || g.From != was["jti"] {
			t.Errorf("the grant is %+v (%v)", g, err)
		}
		b := granted(t, "an exchange of what was exchanged", exchange(w, cid, a.Token(), "resource", oauthtest.CRM))
		if fmt.Sprint(chain(t, b.Token())) != fmt.Sprint(names(ann, bob, cid)) {
			t.Errorf("the chain is %v, want ann, bob and cid", chain(t, b.Token()))
		}
		in := w.Introspect(bob, a.Token())
		if in.JSON["active"] != true || in.JSON["act"].(map[string]any)["sub"] != names(bob)[0] {
			t.Errorf("introspection says %s, want the whole chain", in.Body)
		}
		tok, err := w.Tokens.Verify(t.Context(), b.Token())
		if err != nil {
			t.Fatal(err)
		}
		if c := tok.Caller(); c.Subject != estover.Agent(ann.ID) || fmt.Sprint(c.Actors) != fmt.Sprint([]estover.Subject{estover.Agent(cid.ID), estover.Agent(bob.ID)}) {
			t.Errorf("the caller is %+v", c)
		}
		// The parameter audience names a target, too (RFC 8693, section 2.1).
		c := granted(t, "by audience", exchange(w, bob, first, "audience", oauthtest.Tickets))
		if said(t, c.Token())["aud"] != oauthtest.Tickets {
			t.Errorf("the token is for %v", said(t, c.Token())["aud"])
		}
		// None named: all that the old token is for, as far as bob has anything there.
		c = granted(t, "no target", exchange(w, bob, first))
		if fmt.Sprint(said(t, c.Token())["aud"]) != fmt.Sprint([]any{oauthtest.CRM, oauthtest.Tickets}) {
			t.Errorf("the token is for %v", said(t, c.Token())["aud"])
		}
		// One's own token, for less: nobody else acts, and the chain is as it was.
		w.Set(ann, agent.Client{GrantTypes: []string{exchangeType}})
		c = granted(t, "one's own", exchange(w, ann, first, "resource", oauthtest.CRM, "scope", "customer.read"))
		if fmt.Sprint(chain(t, c.Token())) != fmt.Sprint(names(ann)) || c.Text("scope") != "customer.read" {
			t.Errorf("one's own token became %v", said(t, c.Token()))
		}
	})
}

// A token that was got by a secret is worth no more in the hands of somebody with
// a key, nor the reverse.
func TestExchangeIsWorthTheWeakest(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM)
		bySecret, byKey := w.Ask(ann, "resource", oauthtest.CRM).Token(), w.AskByKey(ann, "resource", oauthtest.CRM).Token()
		for _, c := range []struct {
			subject string
			byKey   bool
			want    string
		}{{bySecret, false, "secret"}, {bySecret, true, "secret"}, {byKey, false, "secret"}, {byKey, true, "key"}} {
			f := oauthtest.Form("grant_type", exchangeType, "subject_token", c.subject, "subject_token_type", accessTokenType)
			how := oauthtest.Basic(bob.ID, bob.Secret)
			if c.byKey {
				f.Set("client_assertion_type", oauthtest.AssertionType)
				f.Set("client_assertion", w.Assertion(bob))
				how = func(*http.Request) {}
			}
			a := granted(t, "an exchange", w.Do(oauthtest.Request("/oauth/token", f, how)))
			if got := said(t, a.Token())["strength"]; got != c.want {
				t.Errorf("a token by %v, taken up by a key: %v, has the strength %v, want %s", said(t, c.subject)["strength"], c.byKey, got, c.want)
			}
		}
	})
}

// A token that a person let an agent have is handed on with the person at the
// root, and every agent in between in the chain.
func TestExchangeOfAPersonsAuthority(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		alice := w.Person("alice")
		app, bob := w.CodeAgent("app"), exchanger(w, "bob")
		first := granted(t, "a token of the person", w.Redeem(app, alice.Code(app))).Token()
		a := granted(t, "an exchange", exchange(w, bob, first))
		want := append([]string{string(estover.User(alice.ID))}, names(app, bob)...)
		if got := chain(t, a.Token()); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the chain is %v, want %v", got, want)
		}
		if got, was := said(t, a.Token()), said(t, first); got["sid"] != was["sid"] || got["purpose"] != was["purpose"] {
			t.Errorf("the token says %v, the one that it comes from %v", got, was)
		}
		if !w.Live(bob, a.Token()) {
			t.Error("the token is not alive")
		}
		// It dies with the person's account, and so does what could be made of it.
		if _, err := w.People.Disable(t.Context(), oauthtest.Admin, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		if w.Live(bob, a.Token()) {
			t.Error("the token is alive although the person is not there any more")
		}
		refused(t, "a person who is not there any more", exchange(w, bob, first), 400, "invalid_grant")
	})
}

// A client that need not authenticate exchanges tokens with a key alone.
func TestExchangeByPublicClients(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), w.Agent("bob")
		w.Set(bob, agent.Client{GrantTypes: []string{exchangeType}, Introspect: []string{oauthtest.CRM}, Methods: []string{"none"}})
		raw := w.Ask(ann, "resource", oauthtest.CRM).Token()
		f := oauthtest.Form("grant_type", exchangeType, "subject_token", raw, "subject_token_type", accessTokenType, "client_id", bob.ID)
		refused(t, "without a key", w.Do(oauthtest.Request("/oauth/token", f)), 400, "unauthorized_client")
		a := granted(t, "with a key", w.Do(oauthtest.Request("/oauth/token", f, w.Prover("P-256").Prove(""))))
		if a.Text("token_type") != "DPoP" {
			t.Errorf("the answer is %s", a.Body)
		}
	})
}

// A4: exactly one subject token, and never the client in its place.
func TestA4ExchangeNeedsExactlyOneSubjectToken(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM)
		good := w.Ask(ann, "resource", oauthtest.CRM).Token()
		ask := func(f url.Values) oauthtest.Answer {
			f.Set("grant_type", exchangeType)
			return w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(bob.ID, bob.Secret)))
		}
		for what, f := range map[string]url.Values{
			"nothing":                       {},
			"a type alone":                  {"subject_token_type": {accessTokenType}},
			"an empty one":                  {"subject_token": {""}, "subject_token_type": {accessTokenType}},
			"two":                           {"subject_token": {good, good}, "subject_token_type": {accessTokenType}},
			"an empty one and a good one ":  {"subject_token": {good, good, ""}, "subject_token_type": {accessTokenType}},
			"no type":                       {"subject_token": {good}},
			"two types":                     {"subject_token": {good}, "subject_token_type": {accessTokenType, accessTokenType}},
			"an unknown type":               {"subject_token": {good}, "subject_token_type": {"urn:example:mine"}},
			"an ID token's type":            {"subject_token": {good}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}},
			"a type that is not arranged":   {"subject_token": {good}, "subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}},
			"an actor without its type":     {"subject_token": {good}, "subject_token_type": {accessTokenType}, "actor_token": {good}},
			"the type of no actor":          {"subject_token": {good}, "subject_token_type": {accessTokenType}, "actor_token_type": {accessTokenType}},
			"two actors":                    {"subject_token": {good}, "subject_token_type": {accessTokenType}, "actor_token": {good, good}, "actor_token_type": {accessTokenType}},
			"a refresh token asked for":     {"subject_token": {good}, "subject_token_type": {accessTokenType}, "requested_token_type": {"urn:ietf:params:oauth:token-type:refresh_token"}},
			"an actor alone":                {"actor_token": {good}, "actor_token_type": {accessTokenType}},
			"an access token of the client": {"access_token": {good}, "subject_token_type": {accessTokenType}},
		} {
			refused(t, what, ask(f), 400, "invalid_request")
		}
		granted(t, "one", ask(url.Values{"subject_token": {good}, "subject_token_type": {accessTokenType}}))
		granted(t, "one, and an access token asked for", ask(url.Values{
			"subject_token": {good}, "subject_token_type": {accessTokenType}, "requested_token_type": {accessTokenType}, "actor_token": {""}, "actor_token_type": {""},
		}))
		// The grant type is the client's to have.
		cid := w.Agent("cid")
		refused(t, "a client without the grant type", exchange(w, cid, good), 400, "unauthorized_client")
		refused(t, "a client without the grant type, with nothing", exchange(w, cid, ""), 400, "invalid_request")
	})
}

// A5: a dead or foreign subject token buys nothing, and neither does a dead or
// foreign actor token.
func TestA5DeadOrForeignTokensAreNotExchanged(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM)
		good := w.Ask(ann, "resource", oauthtest.CRM).Token()
		own := w.Ask(bob, "resource", oauthtest.CRM).Token()
		dead := func(what, raw string) {
			t.Helper()
			refused(t, what, exchange(w, bob, raw), 400, "invalid_grant")
			refused(t, what+" of the actor", exchange(w, bob, good, "actor_token", raw, "actor_token_type", accessTokenType), 400, "invalid_grant")
		}
		granted(t, "with an actor", exchange(w, bob, good, "actor_token", own, "actor_token_type", accessTokenType))

		key, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		claims := said(t, good)
		sign := func(change map[string]any, typ string) string {
			c := maps.Clone(claims)
			maps.Copy(c, change)
			return craft(t, map[string]any{"alg": "ES256", "typ": typ, "kid": key.KID}, c, es256(t, key.Signer))
		}
		stranger := oauthtest.NewKey(t, "P-256")
		dead("no token", "abc")
		dead("another key's", craft(t, map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": key.KID}, claims, es256(t, stranger)))
		dead("another issuer's", sign(map[string]any{"iss": "https://evil.example"}, "at+jwt"))
		dead("another tenant's", sign(map[string]any{"iss": string(oauthtest.Issuer) + "/t/other"}, "at+jwt"))
		dead("an ID token", sign(nil, "JWT"))
		dead("expired", sign(map[string]any{"exp": d.Now().Add(-time.Second).Unix()}, "at+jwt"))
		dead("not yet valid", sign(map[string]any{"nbf": d.Now().Add(time.Hour).Unix()}, "at+jwt"))
		dead("without a grant", sign(map[string]any{"grant_id": "gnt_none"}, "at+jwt"))
		dead("of another epoch", sign(map[string]any{"grant_epoch": 7}, "at+jwt"))
		dead("of another client", sign(map[string]any{"client_id": bob.ID}, "at+jwt"))
		dead("of another session", sign(map[string]any{"sid": "ses_none"}, "at+jwt"))
		dead("a client assertion", w.Assertion(ann))

		revoked := w.Ask(ann, "resource", oauthtest.CRM).Token()
		revoke(t, w, ann, revoked)
		dead("revoked", revoked)

		s, err := w.Sessions.Open(t.Context(), ann.Caller(), wish(ann, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		over := w.Ask(ann, "resource", oauthtest.CRM, "session", s.ID).Token()
		if err := w.Sessions.End(t.Context(), oauthtest.Admin, s.ID, "a test"); err != nil {
			t.Fatal(err)
		}
		dead("of a session that has ended", over)

		eve := w.Agent("eve")
		held := w.Ask(eve, "resource", oauthtest.CRM).Token()
		hold(t, w, eve, agent.Suspension)
		dead("of a suspended agent", held)

		fay := w.Agent("fay")
		left := w.Ask(fay, "resource", oauthtest.CRM).Token()
		if _, err := w.People.Disable(t.Context(), oauthtest.Admin, fay.Sponsor.ID, "a test"); err != nil {
			t.Fatal(err)
		}
		dead("of an agent without a sponsor", left)

		clock.Advance(token.DefaultLife)
		own = w.Ask(bob, "resource", oauthtest.CRM).Token()
		refused(t, "expired by itself", exchange(w, bob, good), 400, "invalid_grant")
		refused(t, "an expired actor", exchange(w, bob, own, "actor_token", good, "actor_token_type", accessTokenType), 400, "invalid_grant")
	})
}

func revoke(t *testing.T, w *oauthtest.World, by *oauthtest.Agent, raw string) {
	t.Helper()
	if a := w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", raw), oauthtest.Basic(by.ID, by.Secret))); a.Status != http.StatusOK {
		t.Fatalf("revoking: %d %s", a.Status, a.Body)
	}
}

// watched has policy deny edges, and notes how tokens came to their presenters.
func watched(w *oauthtest.World) (how func() string) {
	var mu sync.Mutex
	last := ""
	w.Decider.Set(func(c estover.Caller, op guard.Op) guard.Decision {
		h, ok := op.Input.(interface {
			Handover() (estover.Subject, string)
		})
		if !ok || op.Action != "token.issue" {
			return guardtest.AllowAll(c, op)
		}
		mu.Lock()
		defer mu.Unlock()
		var from estover.Subject
		if from, last = h.Handover(); last == "edge" {
			last += " from " + string(from)
			return guardtest.DenyAll(c, op)
		}
		return guardtest.AllowAll(c, op)
	})
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { last = "" }()
		return last
	}
}

// Who presents a token is its client, serves what it is for, or comes along an
// edge that policy must allow.
func TestExchangePresenter(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob, cid := exchanger(w, "ann"), exchanger(w, "bob", oauthtest.CRM), exchanger(w, "cid", oauthtest.Tickets)
		how := watched(w)
		crm := w.Ask(ann, "resource", oauthtest.CRM).Token()
		granted(t, "its client", exchange(w, ann, crm))
		if got := how(); got != "own" {
			t.Errorf("its client: policy hears %q", got)
		}
		granted(t, "who serves the resource", exchange(w, bob, crm))
		if got := how(); got != "audience" {
			t.Errorf("who serves the resource: policy hears %q", got)
		}
		refused(t, "somebody else", exchange(w, cid, crm), 400, "access_denied")
		if got, want := how(), "edge from "+names(ann)[0]; got != want {
			t.Errorf("somebody else: policy hears %q, want %q", got, want)
		}
		w.Decider.Set(nil)
		granted(t, "somebody else, along an edge", exchange(w, cid, crm))
		granted(t, "by another's own means nothing is handed on", w.Ask(cid, "resource", oauthtest.CRM))
	})
}

// A binding is never dropped: the result of a bound token is bound, or there is
// no result.
func TestExchangeNeverDropsABinding(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := exchanger(w, "ann"), exchanger(w, "bob", oauthtest.CRM)
		key, other := w.Prover("P-256"), w.Prover("P-256")
		bound := granted(t, "a bound token", key.Ask(ann, "resource", oauthtest.CRM)).Token()
		free := granted(t, "a token that is not bound", w.Ask(ann, "resource", oauthtest.CRM)).Token()
		how := watched(w)

		refused(t, "no key", exchange(w, ann, bound), 400, "invalid_grant")
		refused(t, "no key, by who serves the resource", exchange(w, bob, bound), 400, "invalid_grant")
		jkt := func(what string, a oauthtest.Answer, want *oauthtest.Prover) {
			t.Helper()
			granted(t, what, a)
			cnf, _ := said(t, a.Token())["cnf"].(map[string]any)
			if cnf["jkt"] != want.Thumbprint() || a.Text("token_type") != "DPoP" {
				t.Errorf("%s: bound to %v as %s, want the key that was shown", what, cnf, a.Text("token_type"))
			}
		}
		jkt("the same key", exchangeWith(w, ann, bound, key.Prove("")), key)
		if got := how(); got != "own" {
			t.Errorf("the same key: policy hears %q", got)
		}
		jkt("the same key, by who serves the resource", exchangeWith(w, bob, bound, key.Prove("")), key)
		how()
		// Another key makes it an edge, whoever presents it.
		refused(t, "another key", exchangeWith(w, ann, bound, other.Prove("")), 400, "access_denied")
		refused(t, "another key, by who serves the resource", exchangeWith(w, bob, bound, other.Prove("")), 400, "access_denied")
		w.Decider.Set(nil)
		jkt("another key, along an edge", exchangeWith(w, bob, bound, other.Prove("")), other)
		refused(t, "no key, along an edge", exchange(w, bob, bound), 400, "invalid_grant")
		// A token that is not bound may become bound.
		jkt("a token that is not bound", exchangeWith(w, bob, free, other.Prove("")), other)
		// The actor's token is bound, too.
		actor := granted(t, "the actor's", key.Ask(bob, "resource", oauthtest.CRM)).Token()
		pairs := []string{"actor_token", actor, "actor_token_type", accessTokenType}
		refused(t, "an actor without its key", exchange(w, bob, free, pairs...), 400, "invalid_grant")
		refused(t, "an actor with another key", exchangeWith(w, bob, free, other.Prove(""), pairs...), 400, "invalid_grant")
		jkt("an actor with its key", exchangeWith(w, bob, free, key.Prove(""), pairs...), key)
	})
}

// A token that is bound to a certificate stays bound to one.
func TestExchangeKeepsCertificates(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob, cid := w.Agent("ann"), w.Agent("bob"), exchanger(w, "cid", oauthtest.CRM)
		w.Set(ann, agent.Client{CertificateBound: true})
		w.Set(bob, agent.Client{GrantTypes: []string{exchangeType}, Introspect: []string{oauthtest.CRM}, CertificateBound: true})
		authority := newAuthority(t, "platform", nil)
		hers, his := authority.leaf(nil), authority.leaf(nil)
		f := oauthtest.Form("grant_type", "client_credentials", "resource", oauthtest.CRM)
		raw := granted(t, "a bound token", w.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(ann.ID, ann.Secret), over(hers)))).Token()
		how := watched(w)
		refused(t, "by a client whose tokens are not bound", exchangeWith(w, cid, raw, over(his)), 400, "invalid_grant")
		refused(t, "over another certificate, without an edge", exchangeWith(w, bob, raw, over(his)), 400, "access_denied")
		if got := how(); !strings.HasPrefix(got, "edge") {
			t.Errorf("over another certificate: policy hears %q", got)
		}
		bound := func(what string, a oauthtest.Answer, to *x509.Certificate) {
			t.Helper()
			granted(t, what, a)
			if cnf, _ := said(t, a.Token())["cnf"].(map[string]any); cnf["x5t#S256"] != edge.Thumbprint(to.Raw) {
				t.Errorf("%s: bound to %v", what, cnf)
			}
		}
		bound("over the same certificate", exchangeWith(w, bob, raw, over(hers)), hers)
		// Also where it is not by the certificate that the client authenticates.
		bound("by a client whose tokens are not bound, over the same certificate", exchangeWith(w, cid, raw, over(hers)), hers)
		prover := w.Prover("P-256")
		both := exchangeWith(w, cid, raw, func(r *http.Request) { over(hers)(r); prover.Prove("")(r) })
		bound("with a proof beside", both, hers)
		if cnf, _ := said(t, both.Token())["cnf"].(map[string]any); cnf["jkt"] != prover.Thumbprint() {
			t.Errorf("with a proof beside: bound to %v", cnf)
		}
		w.Decider.Set(nil)
		bound("over another certificate, along an edge", exchangeWith(w, bob, raw, over(his)), his)
	})
}

// The actor is the client, or an agent that it runs; both tokens belong to one
// task, unless policy has an edge; and may_act is heeded.
func TestExchangeActor(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, host, bob, eve := w.Agent("ann"), w.Agent("host"), w.Agent("bob"), w.Agent("eve")
		w.Set(host, agent.Client{GrantTypes: []string{exchangeType}, Introspect: []string{oauthtest.CRM}, Runs: []string{bob.ID}})
		subject := w.Ask(ann, "resource", oauthtest.CRM).Token()
		by := func(raw string) []string {
			return []string{"resource", oauthtest.CRM, "actor_token", raw, "actor_token_type", accessTokenType}
		}
		a := granted(t, "an agent that the client runs", exchange(w, host, subject, by(w.Ask(bob).Token())...))
		if got := chain(t, a.Token()); fmt.Sprint(got) != fmt.Sprint(names(ann, bob)) || said(t, a.Token())["client_id"] != host.ID {
			t.Errorf("the chain is %v of the client %v", got, said(t, a.Token())["client_id"])
		}
		a = granted(t, "the client itself", exchange(w, host, subject, by(w.Ask(host).Token())...))
		if got := chain(t, a.Token()); fmt.Sprint(got) != fmt.Sprint(names(ann, host)) {
			t.Errorf("the chain is %v", got)
		}
		refused(t, "somebody else", exchange(w, host, subject, by(w.Ask(eve).Token())...), 400, "invalid_grant")
		refused(t, "the subject", exchange(w, host, subject, by(subject)...), 400, "invalid_grant")
		delegated := granted(t, "a chain", exchange(w, host, subject, "resource", oauthtest.CRM)).Token()
		refused(t, "an actor that acts for somebody", exchange(w, host, subject, by(delegated)...), 400, "invalid_grant")

		// What the agent that acts has not got, it does not get.
		w.Access.Grant(bob.ID, oauthtest.CRM, "customer.read")
		if a := granted(t, "an actor with less", exchange(w, host, subject, by(w.Ask(bob).Token())...)); a.Text("scope") != "customer.read" {
			t.Errorf("the scope is %q, want what the actor has", a.Text("scope"))
		}
		w.Access.Grant(bob.ID, oauthtest.CRM)
		refused(t, "an actor with nothing", exchange(w, host, subject, by(w.Ask(bob).Token())...), 400, "invalid_target")

		// Both tokens belong to one session, or it is an edge.
		how := watched(w)
		refused(t, "an actor of another session", exchange(w, host, subject, by(w.Ask(host).Token())...), 400, "access_denied")
		if got, want := how(), "edge from "+names(ann)[0]; got != want {
			t.Errorf("an actor of another session: policy hears %q, want %q", got, want)
		}
		w.Decider.Set(nil)

		// may_act names the only party that may take the token up.
		key, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		may := func(issuer, sub string) string {
			c := said(t, subject)
			c["may_act"] = map[string]any{"iss": issuer, "sub": sub}
			return craft(t, map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": key.KID}, c, es256(t, key.Signer))
		}
		granted(t, "may_act that names the actor", exchange(w, host, may(string(oauthtest.Issuer), names(host)[0])))
		refused(t, "may_act that names another", exchange(w, host, may(string(oauthtest.Issuer), names(eve)[0])), 400, "invalid_grant")
		refused(t, "may_act of another issuer", exchange(w, host, may("https://evil.example", names(host)[0])), 400, "invalid_grant")
		refused(t, "may_act without an issuer", exchange(w, host, may("", names(host)[0])), 400, "invalid_grant")
	})
}

// The chain has no loop and is not too long, and nothing of it comes from the
// request.
func TestExchangeChain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		var all []*oauthtest.Agent
		for i := range token.MaxActors + 2 {
			all = append(all, exchanger(w, fmt.Sprintf("bot-%d", i), oauthtest.CRM))
		}
		raw := w.Ask(all[0], "resource", oauthtest.CRM).Token()
		for i, by := range all[1 : token.MaxActors+1] {
			a := granted(t, "an exchange", exchange(w, by, raw, "act", `{"sub":"user:usr_admin"}`, "actor", "agent:evil"))
			if got := chain(t, a.Token()); fmt.Sprint(got) != fmt.Sprint(names(all[:i+2]...)) {
				t.Fatalf("the chain is %v, want %v", got, names(all[:i+2]...))
			}
			raw = a.Token()
			for j, again := range all[:i+1] {
				refused(t, fmt.Sprintf("agent %d in a chain of %d", j, i+1), exchange(w, again, raw), 400, "invalid_grant")
			}
			same := granted(t, "by who acts already", exchange(w, by, raw))
			if got := chain(t, same.Token()); len(got) != i+2 {
				t.Errorf("the chain is %v, and nobody was added", got)
			}
		}
		refused(t, "one too many", exchange(w, all[len(all)-1], raw), 400, "invalid_grant")
	})
}

// A19: nothing widens.
func TestA19NothingWidensByExchange(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM, oauthtest.Tickets)
		w.Access.Grant(bob.ID, oauthtest.CRM, "customer.read", "customer.update", "customer.delete")
		read := w.Ask(ann, "resource", oauthtest.CRM, "scope", "customer.read").Token()
		scope := func(what, want string, a oauthtest.Answer) oauthtest.Answer {
			t.Helper()
			granted(t, what, a)
			if a.Text("scope") != want {
				t.Errorf("%s: the scope is %q, want %q", what, a.Text("scope"), want)
			}
			return a
		}
		scope("what bob has besides", "customer.read", exchange(w, bob, read))
		scope("asked for", "customer.read", exchange(w, bob, read, "scope", "customer.read customer.delete"))
		refused(t, "what the token does not say", exchange(w, bob, read, "scope", "customer.update"), 400, "invalid_scope")
		refused(t, "a resource that the token is not for", exchange(w, bob, read, "resource", oauthtest.Tickets), 400, "invalid_target")
		refused(t, "another by audience", exchange(w, bob, read, "audience", oauthtest.Tickets), 400, "invalid_target")
		refused(t, "ours", exchange(w, bob, read, "resource", string(oauthtest.Issuer)), 400, "invalid_target")
		w.Access.Grant(ann.ID, oauthtest.CRM, "customer.delete", "customer.read", "customer.update")
		scope("what ann was given since", "customer.read", exchange(w, bob, read))
		w.Access.Grant(bob.ID, oauthtest.CRM, "customer.update")
		refused(t, "what bob has not got", exchange(w, bob, read), 400, "invalid_scope")
		w.Access.Grant(bob.ID, oauthtest.CRM, "customer.read")

		// Narrowed, it does not widen again.
		wide := w.Ask(ann, "resource", oauthtest.CRM, "resource", oauthtest.Tickets).Token()
		one := scope("narrowed", "ticket.read", exchange(w, bob, wide, "resource", oauthtest.Tickets)).Token()
		refused(t, "widened again", exchange(w, bob, one, "resource", oauthtest.CRM), 400, "invalid_target")
		empty := w.Ask(ann).Token() // for our own API
		a := granted(t, "a token for no resource", exchange(w, bob, empty))
		if c := said(t, a.Token()); c["aud"] != string(oauthtest.Issuer) || c["scope"] != nil {
			t.Errorf("a token for no resource became %v", c)
		}
		refused(t, "a token for no resource, for one", exchange(w, bob, empty, "resource", oauthtest.CRM), 400, "invalid_target")

		// Time.
		clock.Advance(10 * time.Minute)
		late := granted(t, "late", exchange(w, bob, wide))
		if got, was := said(t, late.Token())["exp"].(float64), said(t, wide)["exp"].(float64); got > was {
			t.Errorf("the new token lives until %v, the old one until %v", got, was)
		}
		// The task: a token stays in its session and keeps its purpose.
		s, err := w.Sessions.Open(t.Context(), bob.Caller(), wish(bob, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		refused(t, "in a session of its own", exchange(w, bob, wide, "session", s.ID), 400, "invalid_request")
		refused(t, "for another purpose", exchange(w, bob, wide, "purpose", "support"), 400, "invalid_request")
	})
}

// What ends an ancestor ends all below it: the token, its grant, its session,
// its agent.
func TestExchangeEndsWithItsAncestors(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		for what, end := range map[string]func(t *testing.T, w *oauthtest.World, ann, bob *oauthtest.Agent, first, second map[string]any, raw []string){
			"the session ends": func(t *testing.T, w *oauthtest.World, _, _ *oauthtest.Agent, first, _ map[string]any, _ []string) {
				if err := w.Sessions.End(t.Context(), oauthtest.Admin, first["sid"].(string), "a test"); err != nil {
					t.Fatal(err)
				}
			},
			"the first token is revoked": func(t *testing.T, w *oauthtest.World, ann, _ *oauthtest.Agent, _, _ map[string]any, raw []string) {
				revoke(t, w, ann, raw[0])
			},
			"the second token is revoked": func(t *testing.T, w *oauthtest.World, _, bob *oauthtest.Agent, _, _ map[string]any, raw []string) {
				revoke(t, w, bob, raw[1])
			},
			"the first grant ends": func(t *testing.T, w *oauthtest.World, _, _ *oauthtest.Agent, first, _ map[string]any, _ []string) {
				if err := w.Tokens.EndGrant(t.Context(), oauthtest.Admin, first["grant_id"].(string), "a test"); err != nil {
					t.Fatal(err)
				}
			},
			"the second grant ends": func(t *testing.T, w *oauthtest.World, _, _ *oauthtest.Agent, _, second map[string]any, _ []string) {
				if err := w.Tokens.EndGrant(t.Context(), oauthtest.Admin, second["grant_id"].(string), "a test"); err != nil {
					t.Fatal(err)
				}
			},
			"the subject is held": func(t *testing.T, w *oauthtest.World, ann, _ *oauthtest.Agent, _, _ map[string]any, _ []string) {
				hold(t, w, ann, agent.Quarantine)
			},
			"who stands between is held": func(t *testing.T, w *oauthtest.World, _, bob *oauthtest.Agent, _, _ map[string]any, _ []string) {
				hold(t, w, bob, agent.Quarantine)
			},
		} {
			t.Run(what, func(t *testing.T) {
				suffix := strings.ToLower(rand.Text())
				ann, bob, cid := w.Agent("ann-"+suffix), exchanger(w, "bob-"+suffix), exchanger(w, "cid-"+suffix)
				s, err := w.Sessions.Open(t.Context(), ann.Caller(), wish(ann, time.Hour))
				if err != nil {
					t.Fatal(err)
				}
				first := w.Ask(ann, "session", s.ID, "resource", oauthtest.CRM).Token()
				sibling := w.Ask(ann, "resource", oauthtest.CRM).Token() // of another session
				second := granted(t, "the second", exchange(w, bob, first)).Token()
				third := granted(t, "the third", exchange(w, cid, second)).Token()
				if !w.Live(cid, third) {
					t.Fatal("the third token is dead from the start")
				}
				end(t, w, ann, bob, said(t, first), said(t, second), []string{first, second})
				if _, err := w.Tokens.Verify(t.Context(), third); err == nil {
					t.Error("the third token is alive")
				}
				if a := exchange(w, cid, third); a.Token() != "" {
					t.Errorf("the third token buys %s", a.Body)
				}
				if !strings.Contains(what, "subject") {
					if _, err := w.Tokens.Verify(t.Context(), sibling); err != nil {
						t.Errorf("a token of another session has died, too: %v", err)
					}
				}
				if strings.HasPrefix(what, "the second") || strings.HasPrefix(what, "who stands") {
					if _, err := w.Tokens.Verify(t.Context(), first); err != nil {
						t.Errorf("the ancestor has died, too: %v", err)
					}
				}
			})
		}
	})
}

// However it falls together with the revocation of the token, no token that was
// made of it is alive afterwards.
func TestNoExchangeOutlivesItsToken(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM)
		for range 3 {
			raw := w.Ask(ann, "resource", oauthtest.CRM).Token()
			var mu sync.Mutex
			var made []string
			var all sync.WaitGroup
			for i := range 64 {
				all.Go(func() {
					if i == 32 {
						revoke(t, w, ann, raw)
						return
					}
					a := exchange(w, bob, raw)
					if a.Token() != "" {
						mu.Lock()
						made = append(made, a.Token())
						mu.Unlock()
					} else if a.Status >= 500 && a.Status != http.StatusServiceUnavailable {
						t.Errorf("%d %s", a.Status, a.Body)
					}
				})
			}
			all.Wait()
			for _, child := range made {
				if _, err := w.Tokens.Verify(context.Background(), child); err == nil {
					t.Fatal("a token is alive that was made of one that was revoked")
				}
			}
		}
	})
}

// A18: a token of another kind is no subject token, whatever it says.
func TestA18OtherKindsOfJWTAreNotExchanged(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM)
		good := w.Ask(ann, "resource", oauthtest.CRM).Token()
		access, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		for _, typ := range []string{"JWT", "dpop+jwt", "oauth-id-jag+jwt", "token-introspection+jwt", "secevent+jwt", "logout+jwt", "txntoken+jwt"} {
			raw := craft(t, map[string]any{"alg": "ES256", "kid": access.KID, "typ": typ}, said(t, good), es256(t, access.Signer))
			refused(t, typ, exchange(w, bob, raw), 400, "invalid_grant")
		}
		prover := w.Prover("P-256")
		proof := prover.Sign(prover.Claims(http.MethodPost, string(oauthtest.Issuer)+"/oauth/token", ""))
		refused(t, "a DPoP proof", exchange(w, bob, proof), 400, "invalid_grant")
	})
}

// A node that has not yet heard of a revocation hands nothing on all the same:
// the transaction looks at the rows.
func TestExchangeOnANodeThatHasNotHeard(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		ann, bob := one.Agent("ann"), exchanger(one, "bob", oauthtest.CRM)
		two.Access.Grant(ann.ID, oauthtest.CRM, "customer.read")
		two.Access.Grant(bob.ID, oauthtest.CRM, "customer.read")
		for what, end := range map[string]func(raw string){
			"the token is revoked": func(raw string) { revoke(t, one, ann, raw) },
			"the grant ends": func(raw string) {
				if err := one.Tokens.EndGrant(t.Context(), oauthtest.Admin, said(t, raw)["grant_id"].(string), "a test"); err != nil {
					t.Fatal(err)
				}
			},
			"the session ends": func(raw string) {
				if err := one.Sessions.End(t.Context(), oauthtest.Admin, said(t, raw)["sid"].(string), "a test"); err != nil {
					t.Fatal(err)
				}
			},
		} {
			raw := granted(t, "a token", one.Ask(ann, "resource", oauthtest.CRM)).Token()
			granted(t, "before "+what, exchange(two, bob, raw)) // and the copies are there
			end(raw)
			refused(t, "after "+what, exchange(two, bob, raw), 400, "invalid_grant")
		}
	})
}
