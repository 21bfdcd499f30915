package oauth_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
)

// A cast is who takes part in a request: nobody else does, so that whatever
// happens to one of them happens to no other request.
type cast struct {
	*oauthtest.World
	client  *oauthtest.Agent // that asks
	subject *oauthtest.Agent // on whose authority; the client itself where nobody else is
	session session.Session  // that the token belongs to
}

// A way is a grant type with a way of authenticating. Every grant type of the
// metadata has at least one, or TestMatrix fails.
type way struct {
	grantType, by string

	// another says that the subject is not the client.
	another bool

	// elsewhere says that what is issued is for the server of somebody else, where
	// grants of ours say nothing.
	elsewhere bool

	// begins says that the session begins with the token.
	begins bool

	// life is how long what a request proves with is good; 0 for always.
	life time.Duration

	// ready prepares a valid request, while all is well, which is sent later and
	// once.
	ready func(t *testing.T, c cast) (send func() oauthtest.Answer)
}

var ways = []way{
	{grantType: "client_credentials", by: "secret", ready: func(_ *testing.T, c cast) func() oauthtest.Answer {
		return func() oauthtest.Answer { return c.Ask(c.client, "session", c.session.ID, "resource", oauthtest.CRM) }
	}},
	{grantType: "client_credentials", by: "key", ready: func(_ *testing.T, c cast) func() oauthtest.Answer {
		return func() oauthtest.Answer {
			return c.AskByKey(c.client, "session", c.session.ID, "resource", oauthtest.CRM)
		}
	}},
	{grantType: exchangeType, by: "secret", another: true, life: 15 * time.Minute, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		raw := granted(t, "a subject token", c.Ask(c.subject, "session", c.session.ID, "resource", oauthtest.CRM)).Token()
		return func() oauthtest.Answer { return exchange(c.World, c.client, raw, "resource", oauthtest.CRM) }
	}},
	{grantType: "client_credentials", by: "secret", ready: func(_ *testing.T, c cast) func() oauthtest.Answer {
		p := c.Prover("P-256")
		return func() oauthtest.Answer {
			p.Nonce = c.Callers.Proofs.Nonce(estover.DefaultTenant) // whoever has an old one is told the next
			return p.Ask(c.client, "session", c.session.ID, "resource", oauthtest.CRM)
		}
	}},
	{grantType: exchangeType, by: "secret", another: true, life: 15 * time.Minute, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		raw := granted(t, "a subject token", c.Ask(c.subject, "session", c.session.ID, "resource", oauthtest.CRM)).Token()
		own := granted(t, "an actor token", c.Ask(c.client, "resource", oauthtest.CRM)).Token()
		return func() oauthtest.Answer {
			return exchange(c.World, c.client, raw, "resource", oauthtest.CRM, "actor_token", own, "actor_token_type", accessTokenType)
		}
	}},
	// The grant is there already on which the token would rest.
	{grantType: exchangeType, by: "secret", another: true, life: 15 * time.Minute, ready: func(t *testing.T, c cast) func() oauthtest.Answer {
		raw := granted(t, "a subject token", c.Ask(c.subject, "session", c.session.ID, "resource", oauthtest.CRM)).Token()
		granted(t, "an exchange", exchange(c.World, c.client, raw, "resource", oauthtest.CRM))
		return func() oauthtest.Answer { return exchange(c.World, c.client, raw, "resource", oauthtest.CRM) }
	}},
	{grantType: assertionGrant, by: "assertion", life: 5 * time.Minute, ready: func(_ *testing.T, c cast) func() oauthtest.Answer {
		raw := c.Platform(c.client.Name, nil, c.client).Token(c.client)
		return func() oauthtest.Answer {
			return c.AskByAssertion(raw, "session", c.session.ID, "resource", oauthtest.CRM)
		}
	}},
	{grantType: assertionGrant, by: "secret", life: 5 * time.Minute, ready: func(_ *testing.T, c cast) func() oauthtest.Answer {
		raw := c.Platform(c.client.Name, nil, c.client).Token(c.client)
		f := oauthtest.Form("grant_type", assertionGrant, "assertion", raw, "session", c.session.ID, "resource", oauthtest.CRM)
		return func() oauthtest.Answer {
			return c.Do(oauthtest.Request("/oauth/token", f, oauthtest.Basic(c.client.ID, c.client.Secret)))
		}
	}},
}

// A row is something that makes that nobody gets a token.
type row struct {
	name   string
	happen func(t *testing.T, c cast)

	// spares says that the row does not concern a way.
	spares func(w way) bool
}

// matrix is what makes that nobody gets a token. Nothing is undone: each row is
// tried on a cast of its own.
var matrix = []row{
	{name: "the client is suspended", happen: func(t *testing.T, c cast) { hold(t, c.World, c.client, agent.Suspension) }},
	{name: "the client is quarantined", happen: func(t *testing.T, c cast) { hold(t, c.World, c.client, agent.Quarantine) }},
	{name: "the client is retired", happen: func(t *testing.T, c cast) { hold(t, c.World, c.client, agent.Retirement) }},
	{name: "the client is contained", happen: func(t *testing.T, c cast) { contain(t, c, c.client) }},
	{name: "the client has expired", happen: func(t *testing.T, c cast) { expire(t, c, c.client) }},
	{name: "the client's sponsor is gone", happen: func(t *testing.T, c cast) { leave(t, c, c.client) }},
	{name: "the client is granted nothing any more", spares: func(w way) bool { return w.elsewhere }, happen: func(_ *testing.T, c cast) { c.Access.Grant(c.client.ID, oauthtest.CRM) }},

	{name: "the subject is suspended", happen: func(t *testing.T, c cast) { hold(t, c.World, c.subject, agent.Suspension) }},
	{name: "the subject is quarantined", happen: func(t *testing.T, c cast) { hold(t, c.World, c.subject, agent.Quarantine) }},
	{name: "the subject is retired", happen: func(t *testing.T, c cast) { hold(t, c.World, c.subject, agent.Retirement) }},
	{name: "the subject is contained", happen: func(t *testing.T, c cast) { contain(t, c, c.subject) }},
	{name: "the subject has expired", happen: func(t *testing.T, c cast) { expire(t, c, c.subject) }},
	{name: "the subject's sponsor is gone", happen: func(t *testing.T, c cast) { leave(t, c, c.subject) }},

	{name: "the session has ended", happen: func(t *testing.T, c cast) {
		if err := c.Sessions.End(t.Context(), oauthtest.Admin, c.session.ID, "a test"); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "the session has expired", happen: func(_ *testing.T, c cast) { dbtest.NewClock(c.DB).Advance(time.Hour) }},
	{name: "policy denies", happen: func(_ *testing.T, c cast) { c.Decider.Set(oauthtest.Deny("token.issue")) }},
	{name: "what is proven with has expired", spares: func(w way) bool { return w.life == 0 }, happen: func(_ *testing.T, c cast) {
		dbtest.NewClock(c.DB).Advance(20 * time.Minute)
	}},

	{name: "the secret is retired", spares: func(w way) bool { return w.by != "secret" }, happen: func(t *testing.T, c cast) {
		if err := c.Agents.RetireCredential(t.Context(), oauthtest.Admin, c.client.ID, c.client.Credential, 0); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "the key is retired", spares: func(w way) bool { return w.by != "key" }, happen: func(t *testing.T, c cast) {
		if err := c.Agents.RetireCredential(t.Context(), oauthtest.Admin, c.client.ID, c.client.KeySet, 0); err != nil {
			t.Fatal(err)
		}
	}},
	// A code that nobody authenticates for lasts no longer than they do here.
	{name: "secret and key run out", spares: func(w way) bool { return w.by == "assertion" }, happen: func(t *testing.T, c cast) {
		for _, one := range []string{c.client.Credential, c.client.KeySet} {
			if err := c.Agents.RetireCredential(t.Context(), oauthtest.Admin, c.client.ID, one, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		dbtest.NewClock(c.DB).Advance(2 * time.Minute)
	}},
}

func hold(t *testing.T, w *oauthtest.World, a *oauthtest.Agent, kind agent.Kind) {
	t.Helper()
	if _, err := w.Agents.Hold(t.Context(), oauthtest.Admin, a.ID, kind, "a test"); err != nil {
		t.Fatal(err)
	}
}

// contain is what the containment of an agent does: nobody lets it act, and
// nothing that it has under way goes on.
func contain(t *testing.T, c cast, a *oauthtest.Agent) {
	t.Helper()
	hold(t, c.World, a, agent.Quarantine)
	if _, err := c.Sessions.EndAll(t.Context(), oauthtest.Admin, a.ID, "contained"); err != nil {
		t.Fatal(err)
	}
}

// expire lets the time of an agent run out.
func expire(t *testing.T, c cast, a *oauthtest.Agent) {
	t.Helper()
	now, err := c.Agents.Get(t.Context(), oauthtest.Admin, a.ID)
	if err != nil {
		t.Fatal(err)
	}
	now.ExpiresAt = c.DB.Now().Add(time.Minute)
	if _, err := c.Agents.Update(t.Context(), oauthtest.Admin, a.ID, now.Spec); err != nil {
		t.Fatal(err)
	}
	dbtest.NewClock(c.DB).Advance(2 * time.Minute)
}

// leave lets the sponsor of an agent go.
func leave(t *testing.T, c cast, a *oauthtest.Agent) {
	t.Helper()
	if _, err := c.People.Disable(t.Context(), oauthtest.Admin, a.Sponsor.ID, "left"); err != nil {
		t.Fatal(err)
	}
}

// TestMatrix tries every reason to get no token on every grant type: none of
// them forgets one. Each is recorded as a refusal.
func TestMatrix(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		all := w.Metadata().GrantTypes
		for _, name := range all {
			if !slices.ContainsFunc(slices.Concat(ways, personWays), func(w way) bool { return w.grantType == name }) {
				t.Errorf("the grant type %s is not in the matrix", name)
			}
		}
		for i, one := range ways {
			for j, row := range matrix {
				what := fmt.Sprintf("%s by %s: %s", one.grantType, one.by, row.name)
				c := cast{World: w, client: w.Agent(fmt.Sprintf("client-%d-%d", i, j))}
				w.Set(c.client, agent.Client{GrantTypes: slices.DeleteFunc(slices.Clone(all), needsMore), Introspect: []string{oauthtest.CRM}})
				if c.subject = c.client; one.another {
					c.subject = w.Agent(fmt.Sprintf("subject-%d-%d", i, j))
				}
				var err error
				if c.session, err = w.Sessions.Open(t.Context(), c.subject.Caller(), wish(c.subject, time.Hour)); err != nil {
					t.Fatal(err)
				}
				granted(t, what+", before", one.ready(t, c)())
				send := one.ready(t, c)
				row.happen(t, c)
				a := send()
				w.Decider.Set(nil)
				if row.spares != nil && row.spares(one) {
					granted(t, what+", which has nothing to do with it", a)
					continue
				}
				if a.Token() != "" || a.Status != http.StatusBadRequest && a.Status != http.StatusUnauthorized {
					t.Errorf("%s: %d %s", what, a.Status, a.Body)
				}
				// Of an assertion that says nothing, only the trust is known.
				trust, _ := w.Trusts.ByName(t.Context(), oauthtest.Admin, c.client.Name)
				if n := count(t, d, `select count(*) from audit where action = 'token.issue' and outcome = 'refused' and target in ($1, $2, $3)`,
					"agent:"+c.client.ID, "agent:"+c.subject.ID, "trust:"+trust.ID); n == 0 {
					t.Errorf("%s: the refusal is not on record", what)
				}
			}
		}
	})
}

// needsMore are the grant types that a client cannot have without further
// settings.
func needsMore(grantType string) bool {
	return grantType == "authorization_code" || grantType == "client_credentials"
}
