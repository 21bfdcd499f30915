package oauth_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/opaque"
	"estover.dev/internal/token"
)

// TestA1: however many refresh at once, on one node or two, a refresh token has
// one successor; and whoever did not hear the answer gets the same one.
func TestA1(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		clock := dbtest.NewClock(d)
		bot, alice := one.CodeAgent("bot"), one.Person("alice")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "customer.update")
		first := one.Redeem(bot, alice.Code(bot)).Text("refresh_token")
		successors, tokens := map[string]int{}, map[string]bool{}
		for _, a := range atOnce(64, func(i int) oauthtest.Answer { return []*oauthtest.World{one, two}[i%2].Refresh(bot, first) }) {
			granted(t, "one of 64", a)
			successors[a.Text("refresh_token")]++
			tokens[a.Token()] = true
		}
		if len(successors) != 1 || successors[first] != 0 || len(tokens) != 64 {
			t.Errorf("64 refreshes gave %d successors and %d access tokens, want 1 and 64", len(successors), len(tokens))
		}
		if n := count(t, d, "select count(*) from refresh_token"); n != 2 {
			t.Errorf("%d refresh tokens are stored, want 2", n)
		}
		clock.Advance(token.RetryWindow - time.Second)
		again := two.Refresh(bot, first)
		granted(t, "nine seconds later", again)
		if successors[again.Text("refresh_token")] == 0 {
			t.Error("nine seconds later there is another successor")
		}
		narrow := one.Refresh(bot, again.Text("refresh_token"), "scope", "customer.read")
		granted(t, "less this time", narrow)
		if narrow.Text("scope") != "customer.read" {
			t.Errorf("less was asked for and %q came", narrow.Text("scope"))
		}
		wide := one.Refresh(bot, narrow.Text("refresh_token"))
		if wide.Text("scope") != "customer.read customer.update" {
			t.Errorf("the grant has become narrower: %s", wide.Body)
		}
		if more := one.Refresh(bot, wide.Text("refresh_token"), "scope", "customer.read customer.delete"); more.Text("scope") != "customer.read" {
			t.Errorf("more was asked for and came: %s", more.Body)
		}
	})
}

// TestA2: a refresh token that comes back after its window, or from elsewhere,
// ends the family, and what was handed on from it.
func TestA2(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := w.CodeAgent("bot", func(c *agent.Client) {
			c.GrantTypes = append(c.GrantTypes, token.Exchange)
		}), w.Person("alice")
		family := func() (first, second oauthtest.Answer) {
			t.Helper()
			first = w.Redeem(bot, alice.Code(bot))
			second = w.Refresh(bot, first.Text("refresh_token"))
			granted(t, "a refresh", second)
			return first, second
		}
		dead := func(name string, tokens ...string) {
			t.Helper()
			for i, raw := range tokens {
				if w.Live(bot, raw) {
					t.Errorf("%s: access token %d of the family is active", name, i)
				}
			}
		}
		first, second := family()
		child := w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", token.Exchange, "subject_token", second.Token(),
			"subject_token_type", "urn:ietf:params:oauth:token-type:access_token", "resource", oauthtest.CRM), oauthtest.Basic(bot.ID, bot.Secret)))
		granted(t, "what is handed on", child)
		other, _ := family()
		clock.Advance(token.RetryWindow + time.Second)
		refused(t, "a spent token after its window", w.Refresh(bot, first.Text("refresh_token")), 400, "invalid_grant")
		dead("after the window", first.Token(), second.Token(), child.Token())
		refused(t, "its successor", w.Refresh(bot, second.Text("refresh_token")), 400, "invalid_grant")
		if !w.Live(bot, other.Token()) {
			t.Error("another family died of it")
		}
		if n := count(t, d, "select count(*) from audit where action = 'token.issue' and outcome = 'failed'"); n != 1 {
			t.Errorf("%d replays are on record, want 1", n)
		}

		// Within the window too, if it is not the same request.
		prover, thief := w.Prover("P-256"), w.Prover("P-256")
		ask := func(p *oauthtest.Prover, value string) oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "refresh_token", "refresh_token", value), oauthtest.Basic(bot.ID, bot.Secret), p.Prove("")))
		}
		begun := w.Redeem(bot, alice.Code(bot))
		bound := ask(prover, begun.Text("refresh_token"))
		granted(t, "a refresh with a key", bound)
		granted(t, "the same again", ask(prover, begun.Text("refresh_token")))
		refused(t, "again with another key", ask(thief, begun.Text("refresh_token")), 400, "invalid_grant")
		if w.Live(bot, bound.Token()) {
			t.Error("a replay with another key left the family alive")
		}

		// A replay is one, also if the request asks for what it may not have.
		first, second = family()
		clock.Advance(token.RetryWindow + time.Second)
		refused(t, "a replay with an unknown scope", w.Refresh(bot, first.Text("refresh_token"), "scope", "nothing"), 400, "invalid_grant")
		dead("after a replay with an unknown scope", second.Token())
	})
}

// A successor can be had again only by whoever had the token that was spent for
// it, and not for long.
func TestSuccessorIsSealed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		first := w.Redeem(bot, alice.Code(bot)).Text("refresh_token")
		second := w.Refresh(bot, first).Text("refresh_token")
		var sealed []byte
		err := d.View(t.Context(), "default", func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select successor from refresh_token where successor is not null").Scan(&sealed)
		})
		if err != nil || len(sealed) == 0 || strings.Contains(string(sealed), second) {
			t.Fatalf("the successor is stored as %q, %v", sealed, err)
		}
		if err := w.Tokens.EraseSuccessors(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, "select count(*) from refresh_token where successor is not null"); n != 1 {
			t.Error("the successor was erased within its window")
		}
		clock.Advance(token.RetryWindow + time.Second)
		if err := w.Tokens.EraseSuccessors(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, "select count(*) from refresh_token where successor is not null"); n != 0 {
			t.Error("the successor is kept beyond its window")
		}
	})
}

// A refresh token whose row was made by its hash, as those were before there was a
// time in them, goes on as any other: it has one successor (A1), and ends its
// family when it comes back too late (A2).
func TestRefreshTokenByHash(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		first := w.Redeem(bot, alice.Code(bot)).Text("refresh_token")
		key, hash := opaque.Key(first), opaque.Hash(first)
		err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			n, err := tx.Exec(t.Context(), "update refresh_token set hash = $2 where tenant_id = $1 and hash = $3", tx.Tenant(), hash[:], key[:])
			if err == nil && n != 1 {
				t.Errorf("%d rows have the key, want 1", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		second := w.Refresh(bot, first)
		granted(t, "the old token", second)
		third := w.Refresh(bot, second.Text("refresh_token"))
		granted(t, "its successor", third)
		again := w.Refresh(bot, first)
		granted(t, "the old token again", again)
		if again.Text("refresh_token") != second.Text("refresh_token") {
			t.Error("the old token has two successors")
		}
		clock.Advance(token.RetryWindow + time.Second)
		refused(t, "the old token after its window", w.Refresh(bot, first), 400, "invalid_grant")
		if w.Live(bot, third.Token()) {
			t.Error("the family lives on")
		}
	})
}

// A refresh token is kept for an hour beyond its end, so that one that comes late
// is known, and for no more than two.
func TestExpiredRefreshTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		w.Refresh(bot, w.Redeem(bot, alice.Code(bot)).Text("refresh_token"))
		var ends time.Time
		err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select max(expires_at) from refresh_token").Scan(&ends)
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			after time.Duration
			left  int
		}{{time.Hour - time.Second, 2}, {2 * time.Hour, 0}} {
			clock.Advance(ends.Add(c.after).Sub(d.Now()))
			if err := w.Tokens.SweepCodes(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := count(t, d, "select count(*) from refresh_token"); n != c.left {
				t.Errorf("%v after their end %d refresh tokens are left, want %d", c.after, n, c.left)
			}
		}
	})
}

// A refresh token is its exact bytes, and a client that is not registered for
// them gets none.
func TestRefreshTokens(t *testing.T) {
	d := dbtest.Open(t)
	w := oauthtest.New(t, d)
	bot, alice := w.CodeAgent("bot"), w.Person("alice")
	once := w.CodeAgent("once", func(c *agent.Client) { c.GrantTypes = []string{"authorization_code"} })
	a := w.Redeem(once, alice.Code(once))
	granted(t, "a client without refresh tokens", a)
	if a.Text("refresh_token") != "" {
		t.Errorf("it got one: %s", a.Body)
	}
	value := w.Redeem(bot, alice.Code(bot)).Text("refresh_token")
	for _, bad := range []string{value + "=", value[:len(value)-1], strings.ToUpper(value), " " + value, "est_ac_" + value[7:], "x", strings.Repeat("a", 5000)} {
		refused(t, "the refresh token "+bad[:1], w.Refresh(bot, bad), 400, "invalid_grant")
	}
	refused(t, "no refresh token", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "refresh_token"), oauthtest.Basic(bot.ID, bot.Secret))), 400, "invalid_request")
	refused(t, "a client that may not refresh", w.Refresh(once, value), 400, "unauthorized_client")
	if i := w.Introspect(bot, value); i.Status != http.StatusOK || i.JSON["active"] != false {
		t.Errorf("introspection of a refresh token: %s", i.Body)
	}
	granted(t, "the right one after all", w.Refresh(bot, value))
}
