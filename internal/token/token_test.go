package token_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// wish is an ordinary session of the agent.
func wish(a *oauthtest.Agent) session.Wish { return session.Wish{Agent: a.ID} }

// tree plants a tree of grants in a session: "a" with the children "ab" and
// "ac", "ab" with "abd", and so on, by the letters of the names.
func tree(t *testing.T, w *oauthtest.World, session string, names ...string) map[string]*token.Grant {
	t.Helper()
	all := map[string]*token.Grant{}
	for _, name := range names {
		g := &token.Grant{
			ID: estover.NewID("gnt"), Kind: "exchange", Session: session, Client: "agt_" + name, Subject: estover.Agent("agt_a"),
			Expires: w.DB.Now().Add(time.Hour),
		}
		err := w.Guard.Do(t.Context(), oauthtest.Admin, guard.Op{Action: "test.plant"}, func(tx *guard.Tx) error {
			return w.Tokens.Plant(t.Context(), tx, g, all[name[:len(name)-1]])
		})
		if err != nil {
			t.Fatalf("planting %s: %v", name, err)
		}
		all[name] = g
	}
	return all
}

// alive lists the names of the grants that live, as the rows and as the copies
// have it.
func alive(t *testing.T, w *oauthtest.World, all map[string]*token.Grant) string {
	t.Helper()
	var stored, copied []string
	for name, g := range all {
		err := w.DB.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			s, err := token.Stored(t.Context(), tx, g.ID)
			if err == nil && s.Ended.IsZero() {
				stored = append(stored, name)
			}
			if err == nil && !s.Ended.IsZero() && s.Epoch != 2 {
				t.Errorf("the ended grant %s has the epoch %d, want 2", name, s.Epoch)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		c, err := w.Tokens.Grant(t.Context(), estover.DefaultTenant, g.ID)
		if err != nil {
			t.Fatal(err)
		}
		if c.Ended.IsZero() {
			copied = append(copied, name)
		}
	}
	slices.Sort(stored)
	slices.Sort(copied)
	if !slices.Equal(stored, copied) {
		t.Errorf("the rows that live are %v, the copies %v", stored, copied)
	}
	return strings.Join(stored, " ")
}

// Ending a grant ends what hangs below it, and nothing else.
func TestEndingATree(t *testing.T) {
	names := []string{"a", "ab", "ac", "abd", "abe", "abdf", "g", "gh"}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), wish(bot))
		if err != nil {
			t.Fatal(err)
		}
		all := tree(t, w, s.ID, names...)
		end := func(name string) error {
			return w.Tokens.EndGrant(t.Context(), oauthtest.Admin, all[name].ID, "a test")
		}
		if got := alive(t, w, all); got != "a ab abd abdf abe ac g gh" {
			t.Fatalf("at first there live %s", got)
		}
		if err := end("ab"); err != nil {
			t.Fatal(err)
		}
		if got := alive(t, w, all); got != "a ac g gh" {
			t.Errorf("after the end of ab there live %s, want its ancestor, its sibling and the other tree", got)
		}
		if err := end("abd"); !errors.Is(err, token.ErrGrantEnded) {
			t.Errorf("ending what has ended: %v, want ErrGrantEnded", err)
		}
		if err := end("a"); err != nil {
			t.Fatal(err)
		}
		if got := alive(t, w, all); got != "g gh" {
			t.Errorf("after the end of a there live %s", got)
		}
		if err := w.Tokens.EndGrant(t.Context(), estover.Caller{Tenant: "acme", Subject: oauthtest.Admin.Subject}, all["g"].ID, "mischief"); !errors.Is(err, token.ErrGrantEnded) {
			t.Errorf("ending another tenant's grant: %v, want ErrGrantEnded", err)
		}
		// A client's grants end with those that it handed on.
		err = w.Guard.Do(t.Context(), oauthtest.Admin, guard.Op{Action: "test.end"}, func(tx *guard.Tx) error {
			n, err := token.EndClient(t.Context(), tx, "agt_g", "the agent is held")
			if n != 2 {
				t.Errorf("%d grants of the client ended, want 2", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := alive(t, w, all); got != "" {
			t.Errorf("in the end there live %s", got)
		}
		if err := w.Sessions.End(t.Context(), oauthtest.Admin, s.ID, "done"); err != nil {
			t.Fatal(err)
		}
	})
}

// While a tree is being ended, children are being added to it. Whatever was
// added is ended too.
func TestNoChildOutlivesItsParent(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), wish(bot))
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			root := tree(t, w, s.ID, "a")["a"]
			var done sync.WaitGroup
			for i := range 16 {
				done.Go(func() {
					parent := root
					for hop := range 4 { // each hop below the one before
						g := &token.Grant{
							ID: estover.NewID("gnt"), Kind: "exchange", Session: s.ID, Client: fmt.Sprintf("agt_%d_%d", i, hop),
							Subject: estover.Agent("agt_a"), Expires: d.Now().Add(time.Hour),
						}
						err := w.Guard.Do(t.Context(), oauthtest.Admin, guard.Op{Action: "test.plant"}, func(tx *guard.Tx) error {
							return w.Tokens.Plant(t.Context(), tx, g, parent)
						})
						if errors.Is(err, token.ErrGrantEnded) {
							return
						}
						if err != nil {
							t.Errorf("handing a grant on: %v", err)
							return
						}
						parent = g
					}
				})
			}
			if err := w.Tokens.EndGrant(t.Context(), oauthtest.Admin, root.ID, "a test"); err != nil {
				t.Fatal(err)
			}
			done.Wait()
			n := 0
			err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
				return tx.QueryRow(t.Context(), "select count(*) from oauth_grant where root_id = $1 and ended_at is null", root.ID).Scan(&n)
			})
			if err != nil || n != 0 {
				t.Fatalf("%d grants live on below one that has ended (%v)", n, err)
			}
		}
	})
}

func TestSweep(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot := w.Agent("bot")
		assertion := w.Assertion(bot)
		raw := w.AskWith(assertion).Token()
		tok, err := w.Tokens.Verify(t.Context(), raw)
		if err != nil {
			t.Fatal(err)
		}
		client := &token.Client{ID: bot.ID, Subject: estover.Agent(bot.ID)}
		if did, err := w.Tokens.Revoke(t.Context(), bot.Caller(), client, raw); !did || err != nil {
			t.Fatalf("revoking: %v, %v", did, err)
		}
		if n, err := w.Tokens.Sweep(t.Context()); n != 0 || err != nil {
			t.Errorf("the sweep took %d rows that are needed, %v", n, err)
		}
		if err := w.Tokens.IsUsed(t.Context(), estover.DefaultTenant, []token.Used{{By: bot.ID, Name: "another"}}); err != nil {
			t.Errorf("a name that was never presented: %v", err)
		}
		clock.Advance(tok.Expires.Sub(d.Now()) + 2*time.Minute)
		if n, err := w.Tokens.Sweep(t.Context()); n != 2 || err != nil {
			t.Errorf("the sweep took %d rows, %v; want the name of the assertion and the revocation", n, err)
		}
		if _, err := w.Tokens.Verify(t.Context(), raw); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("the token after the sweep: %v, want ErrInvalid", err)
		}
		if a := w.AskWith(assertion); a.Status != 401 {
			t.Errorf("the assertion after the sweep: %d %s, want 401: it has expired", a.Status, a.Body)
		}
	})
}

// What is remembered of a token is its signature, not that it is good, and it
// is forgotten when the keys change.
func TestVerifiedIsRemembered(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		raw := w.Ask(bot).Token()
		for range 3 {
			if _, err := w.Tokens.Verify(t.Context(), raw); err != nil {
				t.Fatal(err)
			}
		}
		if n := w.Tokens.Remembered(); n != 1 {
			t.Errorf("%d tokens are remembered, want 1", n)
		}
		for range 100 {
			if _, err := w.Tokens.Verify(t.Context(), raw[:len(raw)-86]+strings.Repeat("A", 86)); !errors.Is(err, token.ErrInvalid) {
				t.Fatalf("a wrong signature: %v", err)
			}
		}
		if n := w.Tokens.Remembered(); n != 1 {
			t.Errorf("after 100 wrong tokens %d are remembered, want 1", n)
		}
		if _, err := w.Keys.Rotate(t.Context(), estover.DefaultTenant, jose.AccessToken, true, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Tokens.Verify(t.Context(), raw); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("a token whose key was revoked: %v, want ErrInvalid", err)
		}
		if _, err := w.Tokens.Verify(t.Context(), w.Ask(bot).Token()); err != nil {
			t.Errorf("a token of the next key: %v", err)
		}
	})
}

// Whether there is such a tenant is asked for every token, also for one that was
// found good a moment ago.
func TestTokensOfADisabledTenant(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		raw := w.Ask(bot).Token()
		if _, err := w.Tokens.Verify(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		known := w.Tokens.Known
		for _, c := range []struct {
			why     error
			invalid bool
		}{
			{token.ErrNoTenant, true},
			{&estover.Error{Kind: estover.Denied, Code: "tenant_disabled", Detail: "It is disabled."}, true},
			{&estover.Error{Kind: estover.Unavailable, Code: "database_busy", Detail: "It cannot be asked."}, false},
		} {
			w.Tokens.Known = func(context.Context, estover.TenantID) error { return c.why }
			if _, err := w.Tokens.Verify(t.Context(), raw); err == nil || errors.Is(err, token.ErrInvalid) != c.invalid {
				t.Errorf("where the tenant is refused with %q, the token is %v", c.why, err)
			}
		}
		w.Tokens.Known = known
		if _, err := w.Tokens.Verify(t.Context(), raw); err != nil {
			t.Errorf("after the tenant was enabled: %v", err)
		}
	})
}

// A token is of one epoch of its grant: raising it kills the tokens that are
// out, and the grant goes on.
func TestEpoch(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		old := w.Ask(bot).Token()
		tok, err := w.Tokens.Verify(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		raise := func(touch bool) {
			t.Helper()
			err := w.Guard.Do(t.Context(), oauthtest.Admin, guard.Op{Action: "test.raise"}, func(tx *guard.Tx) error {
				if touch {
					tx.Touch("oauth_grant", tok.Grant)
					tx.Touch("oauth_grant_own", tok.Session+"/"+bot.ID)
				}
				_, err := tx.Exec(t.Context(), "update oauth_grant set epoch = epoch + 1 where tenant_id = $1 and id = $2", tx.Tenant(), tok.Grant)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		raise(true)
		if _, err := w.Tokens.Verify(t.Context(), old); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("a token of the epoch before: %v, want ErrInvalid", err)
		}
		next := w.Ask(bot)
		if got, err := w.Tokens.Verify(t.Context(), next.Token()); err != nil || got.Epoch != 2 || got.Grant != tok.Grant {
			t.Errorf("a token of the next epoch: %+v, %v", got, err)
		}
		// A node that has not heard of it yet issues nothing on the old epoch.
		raise(false)
		if a := w.Ask(bot); a.Token() != "" || a.Status != 503 || a.Header.Get("Retry-After") == "" {
			t.Errorf("on a copy that is out of date: %d %s, want 503 with Retry-After", a.Status, a.Body)
		}
	})
}

// What a grant type proved with is used up by the transaction that issues, or
// there is no token.
func TestConsume(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		client, err := w.Tokens.Clients.Client(t.Context(), estover.DefaultTenant, bot.ID)
		if err != nil {
			t.Fatal(err)
		}
		s, err := w.Sessions.Ambient(t.Context(), bot.Caller(), client, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Do(t.Context(), "", func(tx *db.Tx) error {
			if _, err := tx.Exec(t.Context(), "create table code (id text primary key, used boolean not null)"); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), "insert into code (id, used) values ('a', false), ('b', false)")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		used := &estover.Error{Kind: estover.Conflict, Code: "code_used"}
		for i, code := range []string{"a", "b"} { // the first makes the grant, the second finds it
			ask := func() error {
				_, err := w.Tokens.Issue(t.Context(), token.Request{Caller: bot.Caller(), Client: client, Session: s, Proof: token.Proof{
					GrantType: token.Own, Subject: client.Subject,
					Consume: func(ctx context.Context, tx *guard.Tx) error {
						n, err := tx.Exec(ctx, "update code set used = true where id = $1 and not used", code)
						if err == nil && n == 0 {
							return used
						}
						return err
					},
				}})
				return err
			}
			var done sync.WaitGroup
			var won atomic.Int64
			for range 64 {
				done.Go(func() {
					switch err := ask(); {
					case err == nil:
						won.Add(1)
					case !errors.Is(err, used):
						t.Errorf("issuing: %v, want that the code is used", err)
					}
				})
			}
			done.Wait()
			if won.Load() != 1 {
				t.Errorf("code %d bought %d tokens, want 1", i, won.Load())
			}
		}
	})
}

// A client whose tokens are bound gets none that is not, whatever the grant
// type: no flow is a way round another's rule.
func TestBoundClients(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		client, err := w.Tokens.Clients.Client(t.Context(), estover.DefaultTenant, bot.ID)
		if err != nil {
			t.Fatal(err)
		}
		s, err := w.Sessions.Ambient(t.Context(), bot.Caller(), client, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{
			token.Own, "authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange",
			"urn:ietf:params:oauth:grant-type:jwt-bearer", "urn:ietf:params:oauth:grant-type:device_code", "urn:openid:params:grant-type:ciba",
		} {
			for _, c := range []struct {
				rule    agent.Client
				confirm token.Confirm
				want    error
			}{
				{agent.Client{DPoPBound: true}, token.Confirm{}, token.ErrKeyNeeded},
				{agent.Client{DPoPBound: true}, token.Confirm{Certificate: "x"}, token.ErrKeyNeeded},
				{agent.Client{DPoPBound: true}, token.Confirm{Key: "x"}, nil},
				{agent.Client{CertificateBound: true}, token.Confirm{}, token.ErrCertificateNeeded},
				{agent.Client{CertificateBound: true}, token.Confirm{Key: "x"}, token.ErrCertificateNeeded},
				{agent.Client{CertificateBound: true}, token.Confirm{Certificate: "x"}, nil},
			} {
				w.Set(bot, c.rule)
				if client, err = w.Tokens.Clients.Client(t.Context(), estover.DefaultTenant, bot.ID); err != nil {
					t.Fatal(err)
				}
				issued, err := w.Tokens.Issue(t.Context(), token.Request{
					Caller: bot.Caller(), Client: client, Session: s, Confirm: c.confirm,
					Proof: token.Proof{GrantType: kind, Subject: client.Subject},
				})
				if !errors.Is(err, c.want) || issued.Confirm != c.confirm && err == nil {
					t.Errorf("%s under %+v with %+v: %+v, %v; want %v", kind, c.rule, c.confirm, issued.Confirm, err, c.want)
				}
			}
		}
	})
}

// An obligation that nobody can carry out is a refusal.
func TestObligations(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		for typ, ok := range map[string]bool{"evidence": true, "notification": true, "approve": false, "redact": false, "": false} {
			w.Decider.Set(func(estover.Caller, guard.Op) guard.Decision {
				return guard.Decision{Allow: true, Obligations: []guard.Obligation{{Type: typ}}}
			})
			if a := w.Ask(bot); (a.Token() != "") != ok {
				t.Errorf("with the obligation %q: %d %s, want a token: %v", typ, a.Status, a.Body, ok)
			}
		}
	})
}

// Policy is asked about each resource by itself, with what the token would be
// good for there.
func TestPolicyIsAskedPerResource(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		asked := map[string]string{}
		deny := ""
		w.Decider.Set(func(c estover.Caller, op guard.Op) guard.Decision {
			if op.Action != "token.issue" {
				return guard.Decision{Allow: true}
			}
			asked[op.Resource] = strings.Join(op.Input.(token.Wanted).Scopes, " ")
			if op.Session == "" || op.Purpose != "billing" || op.Target != "agent:"+bot.ID || c.Subject != estover.Agent(bot.ID) {
				t.Errorf("policy is asked about %+v by %+v", op, c)
			}
			return guard.Decision{Allow: op.Resource != deny, Reasons: []string{"no"}}
		})
		a := w.Ask(bot, "resource", oauthtest.CRM, "resource", oauthtest.Tickets, "scope", "customer.read ticket.read")
		if a.Token() == "" {
			t.Fatal(a.Body)
		}
		if want := map[string]string{"res_" + oauthtest.CRM: "customer.read", "res_" + oauthtest.Tickets: "ticket.read"}; fmt.Sprint(asked) != fmt.Sprint(want) {
			t.Errorf("policy was asked about %v, want %v", asked, want)
		}
		deny = "res_" + oauthtest.Tickets
		if a := w.Ask(bot, "resource", oauthtest.CRM, "resource", oauthtest.Tickets); a.Token() != "" {
			t.Error("a token for two resources was issued although policy refuses one")
		}
	})
}

// The claims survive being written and read, whatever is in them.
func TestClaims(t *testing.T) {
	tok := token.Token{
		Subject: estover.User("usr_1"), Actors: []estover.Subject{estover.Agent("agt_1"), estover.Agent("agt_2")}, Client: "agt_1",
		Audience: []string{"https://a.example/\"\\\u2028<", "https://b.example"}, Scopes: []string{"a.b", "c:d"},
		Confirm: token.Confirm{Certificate: "abc", Key: "def"}, Issued: time.Unix(1, 0), Expires: time.Unix(2, 0), Epoch: 7,
	}
	var got map[string]any
	if err := json.Unmarshal(tok.AppendJSON(nil, "https://estover.example"), &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"active": true, "token_type": "DPoP", "sub": "user:usr_1", "scope": "a.b c:d", "iat": 1.0, "exp": 2.0, "grant_epoch": 7.0,
		"aud": []any{"https://a.example/\"\\\u2028<", "https://b.example"},
		"cnf": map[string]any{"x5t#S256": "abc", "jkt": "def"},
		"act": map[string]any{"sub": "agent:agt_1", "act": map[string]any{"sub": "agent:agt_2"}},
	} {
		if fmt.Sprint(got[name]) != fmt.Sprint(want) {
			t.Errorf("the claim %s is %v, want %v", name, got[name], want)
		}
	}
}
