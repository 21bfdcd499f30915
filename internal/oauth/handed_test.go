package oauth_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// below counts the grants that were made of a token.
func below(t *testing.T, d *db.DB, raw string) int {
	t.Helper()
	return count(t, d, "select count(*) from oauth_grant where parent_id = $1 and parent_jti = $2", said(t, raw)["grant_id"], said(t, raw)["jti"])
}

// three are three nodes on one database, which hear of nothing that the others do.
func three(t *testing.T, d *db.DB) (one, two, later *oauthtest.World) {
	t.Helper()
	key := t.TempDir() + "/root.key"
	return oauthtest.Node(t, d, key), oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
}

// grantOf is the grant on which a token rests.
func grantOf(t *testing.T, raw string) string { return said(t, raw)["grant_id"].(string) }

// A token that is taken up again by the same client rests on the grant that is
// there: of a thousand exchanges there are a thousand tokens and a thousand events
// that tell of them, and one grant.
func TestOneGrantForATokenThatIsHandedOn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM)
		raw := w.Ask(ann, "resource", oauthtest.CRM).Token()
		grant := grantOf(t, granted(t, "the first", exchange(w, bob, raw)).Token())
		made := map[any]bool{}
		for _, a := range atOnce(999, func(int) oauthtest.Answer { return exchange(w, bob, raw) }) {
			c := said(t, granted(t, "again", a).Token())
			if c["grant_id"] != grant || c["grant_epoch"] != 1.0 {
				t.Fatalf("a token rests on %v of epoch %v, the first on %s", c["grant_id"], c["grant_epoch"], grant)
			}
			made[c["jti"]] = true
		}
		if n := below(t, d, raw); n != 1 || len(made) != 999 {
			t.Errorf("a thousand exchanges made %d grants and %d tokens, want one and 1000", n, len(made)+1)
		}
		var events []audit.Entry
		if err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) (err error) {
			events, _, err = w.Guard.Log().List(t.Context(), tx, audit.Filter{Action: "token.issue", Outcome: audit.Done}, 0, 2000)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			told, _ := e.Detail["token"].(map[string]any)
			if made[told["jti"]] && told["grant"] == grant && told["subject_token"] == said(t, raw)["jti"] && told["handover"] == "audience" && told["client_id"] == bob.ID {
				delete(made, told["jti"])
			}
		}
		if len(made) > 0 {
			t.Errorf("of %d tokens no event tells what they were made of, by whom, and on which grant", len(made))
		}
	})
}

// One token out of several of a grant is revoked by itself, with what was made of
// it, and the others go on.
func TestTokensOfOneGrantAreRevokedOneByOne(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob, cid := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM), exchanger(w, "cid", oauthtest.CRM)
		raw := w.Ask(ann, "resource", oauthtest.CRM).Token()
		one, two := granted(t, "one", exchange(w, bob, raw)).Token(), granted(t, "another", exchange(w, bob, raw)).Token()
		ofOne, ofTwo := granted(t, "of one", exchange(w, cid, one)).Token(), granted(t, "of another", exchange(w, cid, two)).Token()
		if grantOf(t, one) != grantOf(t, two) || grantOf(t, ofOne) == grantOf(t, ofTwo) {
			t.Fatalf("the tokens rest on %s and %s, what was made of them on %s and %s", grantOf(t, one), grantOf(t, two), grantOf(t, ofOne), grantOf(t, ofTwo))
		}
		revoke(t, w, bob, one)
		for what, c := range map[string]struct {
			raw  string
			live bool
		}{"the one": {one, false}, "what was made of it": {ofOne, false}, "the other": {two, true}, "what was made of that": {ofTwo, true}, "the first of all": {raw, true}} {
			if _, err := w.Tokens.Verify(t.Context(), c.raw); (err == nil) != c.live {
				t.Errorf("%s: %v, want it alive: %v", what, err, c.live)
			}
		}
		refused(t, "what was revoked", exchange(w, cid, one), 400, "invalid_grant")
		granted(t, "what was not", exchange(w, cid, two))
		if n := below(t, d, two); n != 1 {
			t.Errorf("of the other token there are %d grants, want 1", n)
		}
	})
}

// A client that gives back each token when it has used it leaves no grant with a
// list that grows and grows, which everybody reads who looks at the grant.
func TestAGrantIsLeftToTheTokensThatWereRevoked(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM)
		raw := w.Ask(ann, "resource", oauthtest.CRM).Token()
		last := granted(t, "one that is not given back", exchange(w, bob, raw)).Token()
		first := last
		for range 40 {
			last = granted(t, "an exchange", exchange(w, bob, raw)).Token()
			revoke(t, w, bob, last)
			if _, err := w.Tokens.Verify(t.Context(), last); err == nil {
				t.Fatal("a token is alive that was revoked")
			}
		}
		if n := below(t, d, raw); n != 3 {
			t.Errorf("of 40 tokens that were given back there are %d grants, want 3", n)
		}
		if n := count(t, d, "select max(n) from (select count(*) as n from denied_token group by grant_id) g"); n > 16 {
			t.Errorf("one grant has %d tokens that were revoked", n)
		}
		if _, err := w.Tokens.Verify(t.Context(), first); err != nil {
			t.Errorf("the token that was not given back: %v", err)
		}
	})
}

// Whatever differs in how far a grant reaches, or for whom, is another grant; and
// what a token is asked to have less of takes nothing from the next one.
func TestAnotherHandOverIsAnotherGrant(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob, cid, run := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM), exchanger(w, "cid", oauthtest.CRM), w.Agent("run")
		w.Set(bob, agent.Client{GrantTypes: []string{exchangeType}, Introspect: []string{oauthtest.CRM}, Runs: []string{run.ID}})
		key, other := w.Prover("P-256"), w.Prover("P-256")
		s, err := w.Sessions.Open(t.Context(), ann.Caller(), wish(ann, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		raw := w.Ask(ann, "session", s.ID, "resource", oauthtest.CRM).Token()
		bound := granted(t, "a bound token", key.Ask(ann, "session", s.ID, "resource", oauthtest.CRM)).Token()
		if grantOf(t, raw) != grantOf(t, bound) {
			t.Fatal("the tokens of one session rest on two grants")
		}
		by := w.Ask(run, "resource", oauthtest.CRM).Token()
		ways := map[string]func() oauthtest.Answer{
			"by bob": func() oauthtest.Answer { return exchange(w, bob, raw) },
			"by cid": func() oauthtest.Answer { return exchange(w, cid, raw) },
			"by bob as whom it runs": func() oauthtest.Answer {
				return exchange(w, bob, raw, "actor_token", by, "actor_token_type", accessTokenType)
			},
			"bound to a key":           func() oauthtest.Answer { return exchangeWith(w, bob, raw, key.Prove("")) },
			"bound to another":         func() oauthtest.Answer { return exchangeWith(w, bob, raw, other.Prove("")) },
			"of a bound token":         func() oauthtest.Answer { return exchangeWith(w, bob, bound, key.Prove("")) },
			"of a bound one, by edge":  func() oauthtest.Answer { return exchangeWith(w, bob, bound, other.Prove("")) },
			"of another token":         nil,
			"of one for fewer scopes":  nil,
			"of one that ends earlier": nil,
		}
		for what, pairs := range map[string][]string{"of another token": nil, "of one for fewer scopes": {"scope", "customer.read"}} {
			another := w.Ask(ann, append(pairs, "session", s.ID, "resource", oauthtest.CRM)...).Token()
			ways[what] = func() oauthtest.Answer { return exchange(w, bob, another) }
		}
		w.Tweak(ann.ID, func(c *token.Client) { c.Life = time.Minute })
		short := w.Ask(ann, "session", s.ID, "resource", oauthtest.CRM).Token()
		ways["of one that ends earlier"] = func() oauthtest.Answer { return exchange(w, bob, short) }

		made := map[string]string{}
		for range 2 {
			for what, way := range ways {
				raw := granted(t, what, way()).Token()
				c := said(t, raw)
				for before, grant := range made {
					if same := grant == grantOf(t, raw); same != (before == what) {
						t.Errorf("%s and then %s: on the same grant: %v", before, what, same)
					}
				}
				made[what] = grantOf(t, raw)
				g, err := w.Tokens.Grant(t.Context(), estover.DefaultTenant, grantOf(t, raw))
				if err != nil {
					t.Fatal(err)
				}
				cnf, _ := c["cnf"].(map[string]any)
				if jkt, _ := cnf["jkt"].(string); jkt != g.Confirm.Key || g.Client != c["client_id"] || string(g.Actors[0]) != c["act"].(map[string]any)["sub"] || float64(g.Expires.Unix()) < c["exp"].(float64) {
					t.Errorf("%s: the token says %v, its grant is %+v", what, c, g)
				}
			}
		}
		if len(made) != len(ways) {
			t.Errorf("%d ways rest on %d grants", len(ways), len(made))
		}

		// Less is asked for, and then all again.
		for _, scope := range []string{"customer.read", "customer.read customer.update"} {
			a := granted(t, scope, exchange(w, bob, raw, "scope", scope))
			if a.Text("scope") != scope || grantOf(t, a.Token()) != made["by bob"] {
				t.Errorf("asked for %s, the token has %s and rests on %s, want %s", scope, a.Text("scope"), grantOf(t, a.Token()), made["by bob"])
			}
		}
		// A key is not passed by because the grant is there.
		refused(t, "a bound token without its key", exchange(w, bob, bound), 400, "invalid_grant")
	})
}

// A grant that was ended by itself stays so, and takes its tokens along. The token
// that it was made of lives, and buys another grant: one for all who ask at once.
func TestAnEndedHandOverIsNotTakenUpAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		one, two, later := three(t, d)
		ann, bob := one.Agent("ann"), exchanger(one, "bob", oauthtest.CRM)
		two.Access.Grant(ann.ID, oauthtest.CRM, "customer.read")
		two.Access.Grant(bob.ID, oauthtest.CRM, "customer.read")
		for _, at := range []*oauthtest.World{one, two} { // where the grant is known, and where nobody says that it has ended
			raw := granted(t, "a token", one.Ask(ann, "resource", oauthtest.CRM)).Token()
			first := granted(t, "an exchange", exchange(one, bob, raw)).Token()
			if err := at.Tokens.EndGrant(t.Context(), oauthtest.Admin, grantOf(t, first), "a test"); err != nil {
				t.Fatal(err)
			}
			made := map[string]bool{}
			for _, a := range atOnce(64, func(int) oauthtest.Answer { return exchange(one, bob, raw) }) {
				next := granted(t, "after the end of the grant", a).Token()
				if made[grantOf(t, next)] = true; grantOf(t, next) == grantOf(t, first) {
					t.Fatal("a token rests on a grant that has ended")
				}
				if _, err := later.Tokens.Verify(t.Context(), next); err != nil {
					t.Errorf("a token of the next grant: %v", err)
				}
			}
			if _, err := later.Tokens.Verify(t.Context(), first); err == nil {
				t.Error("a token lives whose grant has ended")
			}
			if last := granted(t, "once more", exchange(one, bob, raw)).Token(); !made[grantOf(t, last)] {
				t.Error("there is another grant, although there are some that live")
			}
			if n := below(t, d, raw); n != 1+len(made) {
				t.Errorf("%d grants were made of the token, of which %d are known", n, 1+len(made))
			}
		}
	})
}

// A grant that lives on with its session is not what a token would be handed on by
// that ends when it did.
func TestAHandOverWhoseEndHasMovedIsNotTakenUpAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM)
		raw := w.Ask(ann, "resource", oauthtest.CRM).Token()
		first := granted(t, "an exchange", exchange(w, bob, raw)).Token()
		g, err := w.Tokens.Grant(t.Context(), estover.DefaultTenant, grantOf(t, first))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Guard.Do(t.Context(), oauthtest.Admin, guard.Op{Action: "test.renew"}, func(tx *guard.Tx) error {
			return token.ExtendSession(t.Context(), tx, g.Session, g.Expires, g.Expires.Add(time.Hour))
		}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			next := granted(t, "when the grant ends later", exchange(w, bob, raw)).Token()
			h, err := w.Tokens.Grant(t.Context(), estover.DefaultTenant, grantOf(t, next))
			if err != nil || h.ID == g.ID || !h.Expires.Equal(g.Expires) || said(t, next)["exp"] != said(t, first)["exp"] {
				t.Errorf("a token until %v is handed on until %s by the grant %+v (%v)", said(t, raw)["exp"], g.Expires, h, err)
			}
		}
		if n := below(t, d, raw); n != 2 {
			t.Errorf("there are %d grants of the token, want 2", n)
		}
	})
}

// Each node makes a grant of its own of a token, and what ends the token ends both.
func TestHandOversOfSeveralNodes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		one, two, later := three(t, d)
		ann, bob := one.Agent("ann"), exchanger(one, "bob", oauthtest.CRM)
		two.Access.Grant(ann.ID, oauthtest.CRM, "customer.read")
		two.Access.Grant(bob.ID, oauthtest.CRM, "customer.read")
		raw := granted(t, "a token", one.Ask(ann, "resource", oauthtest.CRM)).Token()
		var made []string
		for i := range 6 {
			made = append(made, granted(t, "an exchange", exchange([]*oauthtest.World{one, two}[i%2], bob, raw)).Token())
		}
		if n := below(t, d, raw); n != 2 {
			t.Errorf("two nodes made %d grants of one token", n)
		}
		revoke(t, one, ann, raw)
		if n := count(t, d, "select count(*) from oauth_grant where parent_jti = $1 and ended_at is null", said(t, raw)["jti"]); n != 0 {
			t.Errorf("%d grants live that were made of a token that was revoked", n)
		}
		for _, w := range []*oauthtest.World{one, two} {
			refused(t, "afterwards", exchange(w, bob, raw), 400, "invalid_grant")
		}
		for _, raw := range made {
			if _, err := later.Tokens.Verify(t.Context(), raw); err == nil {
				t.Error("a token lives that was made of one that was revoked")
			}
		}
	})
}

// However much rests on grants that are there, at one node or at two: once it has
// been answered that what they were made of has ended, none of it lives.
func TestNoTokenOutlivesItsHandOver(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		one, two, later := three(t, d)
		ann, bob := one.Agent("ann"), exchanger(one, "bob", oauthtest.CRM)
		two.Access.Grant(ann.ID, oauthtest.CRM, "customer.read")
		two.Access.Grant(bob.ID, oauthtest.CRM, "customer.read")
		for what, end := range map[string]func(w *oauthtest.World, raw, made string) error{
			"the token is revoked": func(w *oauthtest.World, raw, _ string) error {
				_, err := w.Tokens.Revoke(context.Background(), oauthtest.Admin, nil, raw)
				return err
			},
			"its grant ends": func(w *oauthtest.World, raw, _ string) error {
				return w.Tokens.EndGrant(context.Background(), oauthtest.Admin, grantOf(t, raw), "a test")
			},
			"the session ends": func(w *oauthtest.World, raw, _ string) error {
				return w.Sessions.End(context.Background(), oauthtest.Admin, said(t, raw)["sid"].(string), "a test")
			},
			"the grant that was made of it ends": func(w *oauthtest.World, _, made string) error {
				return w.Tokens.EndGrant(context.Background(), oauthtest.Admin, grantOf(t, made), "a test")
			},
		} {
			s, err := one.Sessions.Open(t.Context(), ann.Caller(), wish(ann, time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			raw := granted(t, "a token", one.Ask(ann, "session", s.ID, "resource", oauthtest.CRM)).Token()
			tokens := []string{granted(t, "at one node", exchange(one, bob, raw)).Token(), granted(t, "at the other", exchange(two, bob, raw)).Token()}
			first := tokens[0]
			ended := grantOf(t, first)
			var mu sync.Mutex
			var wrong error
			atOnce(64, func(i int) struct{} {
				if i == 32 {
					wrong = end([]*oauthtest.World{one, two}[len(what)%2], raw, first)
					return struct{}{}
				}
				a := exchange([]*oauthtest.World{one, two}[i%2], bob, raw)
				if a.Status != http.StatusOK && a.Error() != "invalid_grant" && a.Status != http.StatusServiceUnavailable {
					t.Errorf("%s: an exchange meanwhile: %d %s", what, a.Status, a.Body)
				}
				if a.Token() != "" {
					mu.Lock()
					defer mu.Unlock()
					tokens = append(tokens, a.Token())
				}
				return struct{}{}
			})
			if wrong != nil {
				t.Fatalf("%s: %v", what, wrong)
			}
			for _, made := range tokens {
				_, err := later.Tokens.Verify(t.Context(), made)
				if alone := what == "the grant that was made of it ends" && grantOf(t, made) != ended; (err == nil) != alone {
					t.Fatalf("%s: a token that was made of it: %v, want it alive: %v", what, err, alone)
				}
			}
		}
	})
}

// What is shown anew each time is good once, whether or not the grant is there.
func TestAHandOverSparesNoProof(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		ann, bob := w.Agent("ann"), exchanger(w, "bob", oauthtest.CRM)
		raw := w.Ask(ann, "resource", oauthtest.CRM).Token()
		p := w.Prover("P-256")
		prove := func() string {
			return p.Sign(p.Claims(http.MethodPost, string(oauthtest.Issuer)+"/oauth/token", ""))
		}
		ask := func(assertion, proof string) oauthtest.Answer {
			f := oauthtest.Form("grant_type", exchangeType, "subject_token", raw, "subject_token_type", accessTokenType,
				"client_assertion_type", oauthtest.AssertionType, "client_assertion", assertion)
			return w.Do(oauthtest.Request("/oauth/token", f, func(r *http.Request) { r.Header.Set("DPoP", proof) }))
		}
		assertion, proof := w.Assertion(bob), prove()
		granted(t, "the first", ask(assertion, proof))
		refused(t, "the same assertion", ask(assertion, prove()), 401, "invalid_client")
		refused(t, "the same proof", ask(w.Assertion(bob), proof), 400, "invalid_dpop_proof")
		won := 0
		assertion, proof = w.Assertion(bob), prove()
		for _, a := range atOnce(64, func(int) oauthtest.Answer { return ask(assertion, proof) }) {
			if a.Status == http.StatusOK {
				won++
			}
		}
		if n := below(t, d, raw); won != 1 || n != 1 {
			t.Errorf("64 presentations of one assertion and proof bought %d tokens, on %d grants, want one", won, n)
		}
	})
}

// An ID token has no name. Of two of one grant the same is made only if they end
// together.
func TestSignInsThatEndApartAreHandedOnApart(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		wiki, alice := signedTo(w, "wiki"), w.Person("alice")
		first := granted(t, "signing in", w.Redeem(wiki, alice.Code(wiki, "scope", "openid customer.read")))
		clock.Advance(time.Minute)
		second := granted(t, "a refresh", w.Refresh(wiki, first.Text("refresh_token")))
		made := map[string]string{}
		for range 2 {
			for _, in := range []oauthtest.Answer{first, second} {
				id := in.Text("id_token")
				a := granted(t, "an exchange", bySignIn(w, wiki, id))
				if made[id] != "" && made[id] != grantOf(t, a.Token()) {
					t.Error("the same ID token is handed on by two grants")
				}
				made[id] = grantOf(t, a.Token())
				g, err := w.Tokens.Grant(t.Context(), estover.DefaultTenant, made[id])
				if end := said(t, id)["exp"].(float64); err != nil || float64(g.Expires.Unix()) != end || said(t, a.Token())["exp"].(float64) > end {
					t.Errorf("an ID token that ends at %v is handed on until %s, by a token until %v (%v)", end, g.Expires, said(t, a.Token())["exp"], err)
				}
			}
		}
		if made[first.Text("id_token")] == made[second.Text("id_token")] {
			t.Error("two ID tokens that end apart are handed on by one grant")
		}
	})
}
