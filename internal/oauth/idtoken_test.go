package oauth_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"net/http"
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

// signedTo is an agent that people sign in to, and that may exchange what they
// signed in with.
func signedTo(w *oauthtest.World, name string, change ...func(*agent.Client)) *oauthtest.Agent {
	return w.CodeAgent(name, append([]func(*agent.Client){func(c *agent.Client) {
		c.GrantTypes, c.Exchanges = append(c.GrantTypes, exchangeType), []string{token.IDTokenType}
	}}, change...)...)
}

// bySignIn has an agent exchange an ID token.
func bySignIn(w *oauthtest.World, by *oauthtest.Agent, raw string, pairs ...string) oauthtest.Answer {
	return exchange(w, by, raw, append([]string{"subject_token_type", token.IDTokenType}, pairs...)...)
}

// The client that a person signed in to exchanges its ID token for an access
// token: for what they agreed to or less, and no longer than the ID token is good
// (tokens.md, section 3.2, rules 2, 3 and 6).
func TestExchangeOfIDTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		wiki, bob := signedTo(w, "wiki"), exchanger(w, "bob", oauthtest.CRM)
		alice := w.Person("alice")
		in := granted(t, "signing in", w.Redeem(wiki, alice.Code(wiki, "scope", "openid customer.read customer.update")))
		id := in.Text("id_token")

		a := granted(t, "an ID token", bySignIn(w, wiki, id, "resource", oauthtest.CRM, "scope", "customer.read"))
		if a.Text("issued_token_type") != accessTokenType || a.Text("token_type") != "Bearer" || a.Text("scope") != "customer.read" || a.Text("refresh_token") != "" || a.Text("id_token") != "" {
			t.Errorf("the answer is %s", a.Body)
		}
		says, was := claimsOf(t, w, a.Token(), oauthtest.CRM), said(t, id)
		if fmt.Sprint(chain(t, a.Token())) != fmt.Sprint([]string{"user:" + alice.ID, names(wiki)[0]}) {
			t.Errorf("the chain is %v: nobody is impersonated (T9)", chain(t, a.Token()))
		}
		if says["exp"].(float64) > was["exp"].(float64) || says["sid"] != said(t, in.Token())["sid"] || says["client_id"] != wiki.ID || says["acr"] != "phr" || says["auth_time"] != was["auth_time"] {
			t.Errorf("the token says %v of an ID token that says %v", says, was)
		}
		g, err := w.Tokens.Grant(t.Context(), estover.DefaultTenant, says["grant_id"].(string))
		if err != nil || g.Parent != was["grant_id"] || g.Kind != token.Exchange {
			t.Errorf("the grant is %+v (%v)", g, err)
		}
		if n := count(t, d, "select count(*) from audit where action = 'token.issue' and outcome = 'done' and session_id = $1 and target = $2", says["sid"], "user:"+alice.ID); n != 1 {
			t.Errorf("%d events tell that something was handed on for alice, want 1", n)
		}
		all := granted(t, "without a word of what", bySignIn(w, wiki, id))
		if c := said(t, all.Token()); c["aud"] != oauthtest.CRM || c["scope"] != "customer.read customer.update" {
			t.Errorf("for %v it is good for %v", c["aud"], c["scope"])
		}
		on := granted(t, "handed on", exchange(w, bob, a.Token(), "resource", oauthtest.CRM))
		if fmt.Sprint(chain(t, on.Token())) != fmt.Sprint([]string{"user:" + alice.ID, names(wiki)[0], names(bob)[0]}) {
			t.Errorf("the chain is %v", chain(t, on.Token()))
		}

		prover := w.Prover("P-256")
		bound := granted(t, "with a key", exchangeWith(w, wiki, id, prover.Prove(""), "subject_token_type", token.IDTokenType, "resource", oauthtest.CRM))
		if cnf, _ := said(t, bound.Token())["cnf"].(map[string]any); bound.Text("token_type") != "DPoP" || cnf["jkt"] != prover.Thumbprint() {
			t.Errorf("the answer is %s, bound to %v", bound.Body, cnf)
		}

		// So it is where the grant ends alone, and its session goes on.
		other := granted(t, "signing in again", w.Redeem(wiki, alice.Code(wiki, "scope", "openid customer.read")))
		if err := w.Tokens.EndGrant(t.Context(), oauthtest.Admin, said(t, other.Token())["grant_id"].(string), "a test"); err != nil {
			t.Fatal(err)
		}
		refused(t, "the ID token of a grant that has ended alone", bySignIn(w, wiki, other.Text("id_token"), "resource", oauthtest.CRM), 400, "invalid_grant")

		// What ends that to which they agreed ends it all.
		revoke(t, w, wiki, in.Text("refresh_token"))
		for what, raw := range map[string]string{"the token": a.Token(), "the one that was handed on": on.Token(), "the one with a key": bound.Token()} {
			if w.Live(wiki, raw) {
				t.Errorf("%s is alive although the person's grant has ended", what)
			}
		}
		refused(t, "the ID token of what has ended", bySignIn(w, wiki, id, "resource", oauthtest.CRM), 400, "invalid_grant")
	})
}

// A5 and A19 for ID tokens: one that is dead, another client's, or another kind of
// token under its name, buys nothing, and none widens.
func TestA5IDTokensAreExchangedByTheirOwnClient(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		wiki, other := signedTo(w, "wiki"), signedTo(w, "other")
		w.Access.Grant(wiki.ID, oauthtest.Tickets, "ticket.read")
		alice := w.Person("alice")
		signIn := func(to *oauthtest.Agent) oauthtest.Answer {
			return granted(t, "signing in", w.Redeem(to, alice.Code(to, "scope", "openid customer.read")))
		}
		in := signIn(wiki)
		id := in.Text("id_token")
		crm := []string{"resource", oauthtest.CRM}

		refused(t, "another client's", bySignIn(w, other, id, crm...), 400, "invalid_grant")
		plain := w.CodeAgent("plain", func(c *agent.Client) { c.GrantTypes = append(c.GrantTypes, exchangeType) })
		refused(t, "of a client that does not name the type", bySignIn(w, plain, signIn(plain).Text("id_token"), crm...), 400, "invalid_request")
		unable := w.CodeAgent("unable", func(c *agent.Client) { c.Exchanges = []string{token.IDTokenType} })
		refused(t, "of a client without the grant type", bySignIn(w, unable, signIn(unable).Text("id_token"), crm...), 400, "unauthorized_client")
		public := signedTo(w, "public", func(c *agent.Client) { c.Methods = []string{"none"} })
		code := alice.Code(public, "scope", "openid customer.read")
		theirs := granted(t, "signing in to a public client", w.Do(oauthtest.Request("/oauth/token",
			oauthtest.Form("grant_type", "authorization_code", "code", code, "code_verifier", oauthtest.Verifier, "client_id", public.ID))))
		f := oauthtest.Form("grant_type", exchangeType, "subject_token", theirs.Text("id_token"), "subject_token_type", token.IDTokenType, "client_id", public.ID, "resource", oauthtest.CRM)
		refused(t, "of a client that does not authenticate", w.Do(oauthtest.Request("/oauth/token", f, w.Prover("P-256").Prove(""))), 400, "unauthorized_client")
		tied := signedTo(w, "tied", func(c *agent.Client) { c.DPoPBound = true })
		prover := w.Prover("P-256")
		kept := granted(t, "signing in with a key", w.Do(oauthtest.Request("/oauth/token",
			oauthtest.Form("grant_type", "authorization_code", "code", alice.Code(tied, "scope", "openid customer.read"), "code_verifier", oauthtest.Verifier),
			oauthtest.Basic(tied.ID, tied.Secret), prover.Prove(""))))
		refused(t, "of a client that shows no key and has to", bySignIn(w, tied, kept.Text("id_token"), crm...), 400, "invalid_dpop_proof")

		// Each kind of token under its own name alone (A18).
		refused(t, "an access token as an ID token", bySignIn(w, wiki, in.Token(), crm...), 400, "invalid_grant")
		refused(t, "a refresh token as an ID token", bySignIn(w, wiki, in.Text("refresh_token"), crm...), 400, "invalid_grant")
		refused(t, "an ID token as an access token", exchange(w, wiki, id, crm...), 400, "invalid_grant")
		refused(t, "an ID token as a token of a stranger", exchange(w, wiki, id, append(crm, "subject_token_type", "urn:ietf:params:oauth:token-type:jwt")...), 400, "invalid_request")
		refused(t, "an ID token as who acts", exchange(w, wiki, in.Token(), append(crm, "actor_token", id, "actor_token_type", token.IDTokenType)...), 400, "invalid_request")
		refused(t, "an ID token for another", bySignIn(w, wiki, id, append(crm, "requested_token_type", token.IDTokenType)...), 400, "invalid_request")
		refused(t, "an ID token for a refresh token", bySignIn(w, wiki, id, append(crm, "requested_token_type", token.RefreshTokenType)...), 400, "invalid_request")

		// The key comes from us and the algorithm from it (A6).
		its, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.IDToken)
		if err != nil {
			t.Fatal(err)
		}
		access, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		stranger, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		rs256 := func(key crypto.Signer) func([]byte) []byte {
			return func(input []byte) []byte {
				sum := sha256.Sum256(input)
				sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
				if err != nil {
					t.Fatal(err)
				}
				return sig
			}
		}
		says := said(t, id)
		header := func(alg, kid, typ string) map[string]any { return map[string]any{"alg": alg, "kid": kid, "typ": typ} }
		granted(t, "the same claims with our key", bySignIn(w, wiki, craft(t, header("RS256", its.KID, "JWT"), says, rs256(its.Signer)), crm...))
		for what, raw := range map[string]string{
			"a stranger's key":       craft(t, header("RS256", its.KID, "JWT"), says, rs256(stranger)),
			"the key of another use": craft(t, header("ES256", access.KID, "JWT"), says, es256(t, access.Signer)),
			"no signature":           craft(t, header("none", its.KID, "JWT"), says, func([]byte) []byte { return nil }),
			"another type":           craft(t, header("RS256", its.KID, "at+jwt"), says, rs256(its.Signer)),
			"spaces":                 id + " ",
		} {
			refused(t, what, bySignIn(w, wiki, raw, crm...), 400, "invalid_grant")
		}
		now := d.Now().Unix()
		for what, change := range map[string]map[string]any{
			"an aud of two":           {"aud": []string{wiki.ID, other.ID}},
			"another's aud":           {"aud": other.ID},
			"the issuer as aud":       {"aud": string(oauthtest.Issuer)},
			"no aud":                  {"aud": nil},
			"another issuer":          {"iss": "https://evil.example"},
			"another tenant":          {"iss": string(oauthtest.Issuer) + "/t/other"},
			"somebody else":           {"sub": "user:" + w.Person("bea").ID},
			"an agent":                {"sub": names(wiki)[0]},
			"no grant":                {"grant_id": nil},
			"a grant of nobody":       {"grant_id": "gnt_" + strings.Repeat("a", 26)},
			"another client's grant":  {"grant_id": said(t, signIn(other).Token())["grant_id"]},
			"expired":                 {"exp": now - 1},
			"no exp":                  {"exp": nil},
			"made in the future":      {"iat": now + 60},
			"not to be used yet":      {"nbf": now + 60},
			"what is not a person's":  {"grant_id": said(t, w.Ask(wiki).Token())["grant_id"]},
			"a second spelling of it": {"aud": wiki.ID + " "},
		} {
			refused(t, what, bySignIn(w, wiki, craft(t, header("RS256", its.KID, "JWT"), with(says, change), rs256(its.Signer)), crm...), 400, "invalid_grant")
		}

		// A19: nothing widens.
		refused(t, "a scope that nobody agreed to", bySignIn(w, wiki, id, append(crm, "scope", "customer.update")...), 400, "invalid_scope")
		refused(t, "a resource that nobody agreed to", bySignIn(w, wiki, id, "resource", oauthtest.Tickets), 400, "invalid_target")
		refused(t, "us", bySignIn(w, wiki, id, "resource", string(oauthtest.Issuer)), 400, "invalid_target")
		only := granted(t, "signing in alone", w.Redeem(wiki, alice.Code(wiki, asked()...)))
		refused(t, "of who has only signed in", bySignIn(w, wiki, only.Text("id_token"), crm...), 400, "invalid_grant")
		refused(t, "of who has only signed in, for nothing", bySignIn(w, wiki, only.Text("id_token")), 400, "invalid_grant")

		dbtest.NewClock(d).Advance(4 * time.Minute)
		if a := granted(t, "one of its last minute", bySignIn(w, wiki, id, crm...)); a.JSON["expires_in"].(float64) > 60 {
			t.Errorf("what it buys lives longer: %v", a.JSON["expires_in"])
		}
		dbtest.NewClock(d).Advance(2 * time.Minute)
		refused(t, "one that has expired", bySignIn(w, wiki, id, crm...), 400, "invalid_grant")
		gone := signIn(wiki).Text("id_token")
		if _, err := w.People.Disable(t.Context(), oauthtest.Admin, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		refused(t, "of somebody who has left", bySignIn(w, wiki, gone, crm...), 400, "invalid_grant")
		if a := exchangeWith(w, wiki, gone, func(r *http.Request) { r.Header.Del("Authorization") }, "subject_token_type", token.IDTokenType); a.Status != http.StatusUnauthorized {
			t.Errorf("nobody at all: %d %s", a.Status, a.Body)
		}
	})
}
