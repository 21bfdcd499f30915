package oauth_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
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
		if n := count(t, d, "select count(*) from refresh_family"); n != 1 {
			t.Errorf("%d rows of refresh tokens are stored, want that of the family", n)
		}
		clock.Advance(token.RetryWindow / 2)
		again := two.Refresh(bot, first)
		granted(t, "five seconds later", again)
		if successors[again.Text("refresh_token")] == 0 {
			t.Error("five seconds later there is another successor")
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

// A successor can be had again for ten seconds only: then what it was made with is erased,
// and nothing that is stored says what it is.
func TestSuccessorIsErased(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		clock.Hold()
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		first := w.Redeem(bot, alice.Code(bot)).Text("refresh_token")
		second := w.Refresh(bot, first).Text("refresh_token")
		keys := func(when string, want int) {
			t.Helper()
			if err := w.Tokens.EraseSuccessors(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := count(t, d, "select count(*) from refresh_window"); n != want {
				t.Errorf("%s there are %d keys of successors, want %d", when, n, want)
			}
		}
		clock.Advance(token.RetryWindow - time.Second)
		keys("within the window", 1)
		if again := w.Refresh(bot, first).Text("refresh_token"); again != second {
			t.Errorf("within the window comes %q, want %q", again, second)
		}
		clock.Advance(3 * time.Second)
		keys("after the window", 0)
		var hash []byte
		err := d.View(t.Context(), "default", func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select hash from refresh_family").Scan(&hash)
		})
		if sum := opaque.Hash(second); err != nil || string(hash) != string(sum[:]) {
			t.Errorf("of the successor there is %x, %v; want its hash", hash, err)
		}
	})
}

// TestRetries: a client that spends one token after the other, and hears of none in time,
// gets the same ones again; and whoever comes with an older one than that is a replay (A2).
func TestRetries(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		clock := dbtest.NewClock(d)
		clock.Hold()
		bot, alice := one.CodeAgent("bot"), one.Person("alice")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "customer.update")
		row := []string{one.Redeem(bot, alice.Code(bot)).Text("refresh_token")}
		for i := range 4 {
			clock.Advance(2 * time.Second)
			a := []*oauthtest.World{one, two}[i%2].Refresh(bot, row[i])
			granted(t, "a refresh", a)
			row = append(row, a.Text("refresh_token"))
		}
		for _, w := range []*oauthtest.World{one, two} {
			for i := 1; i < 4; i++ {
				if again := w.Refresh(bot, row[i]).Text("refresh_token"); again != row[i+1] {
					t.Errorf("after token %d comes %q again, want %q", i, again, row[i+1])
				}
			}
		}
		if n := count(t, d, "select generation from refresh_family"); n != 5 {
			t.Errorf("the family is at generation %d, want 5", n)
		}
		last := one.Refresh(bot, row[4])
		granted(t, "the one that is good", last)
		refused(t, "one of four spends ago", two.Refresh(bot, row[1]), 400, "invalid_grant")
		if two.Live(bot, last.Token()) {
			t.Error("the family lives on")
		}
		// What two nodes remember of a family is not what either goes by.
		row = []string{one.Redeem(bot, alice.Code(bot)).Text("refresh_token")}
		row = append(row, one.Refresh(bot, row[0]).Text("refresh_token"))
		granted(t, "on another node", two.Refresh(bot, row[1]))
		clock.Advance(token.RetryWindow + time.Second)
		refused(t, "spent elsewhere, with an unknown scope", one.Refresh(bot, row[1], "scope", "nothing"), 400, "invalid_grant")
		if n := count(t, d, "select count(*) from audit where action = 'authorization.replay'"); n != 2 {
			t.Errorf("%d replays are told of, want 2", n)
		}
	})
}

// Where a clock is behind that of another node, or is set back, whoever did not hear the
// answer gets it all the same, however many windows there are by then; but a time that is
// over does not come again with the clock (A2).
func TestRetriesWhenTheClockIsSetBack(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		clock.Hold()
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		value := w.Redeem(bot, alice.Code(bot)).Text("refresh_token")
		var next oauthtest.Answer
		for i := range 20 {
			if i > 0 {
				clock.Advance(2 * time.Second)
				value = next.Text("refresh_token")
			}
			next = granted(t, "a refresh", w.Refresh(bot, value))
		}
		clock.Advance(-40 * time.Second)
		if again := granted(t, "again, 40 seconds before", w.Refresh(bot, value)); again.Text("refresh_token") != next.Text("refresh_token") {
			t.Error("40 seconds before there is another successor")
		}
		clock.Advance(-time.Minute)
		refused(t, "again, when the time of it has yet to come", w.Refresh(bot, value), 400, "invalid_grant")
		if w.Live(bot, next.Token()) {
			t.Error("the family lives on")
		}
	})
}

// Whatever becomes of the keys of successors, as where the clock of the node that erases
// them is ahead, a refresh is answered, and a token has no two successors (A1).
func TestKeysOfSuccessorsThatGo(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		one, two := pair(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := one.CodeAgent("bot"), one.Person("alice")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "customer.update")
		ctx, stop := context.WithCancel(t.Context())
		var erasing sync.WaitGroup
		erasing.Go(func() {
			for ctx.Err() == nil {
				run(t, d, "delete from refresh_window")
			}
		})
		for range 8 {
			value := one.Redeem(bot, alice.Code(bot)).Text("refresh_token")
			clock.Advance(2 * time.Second)
			successors := map[string]bool{}
			for _, a := range atOnce(8, func(i int) oauthtest.Answer { return []*oauthtest.World{one, two}[i%2].Refresh(bot, value) }) {
				if a.Status == http.StatusOK {
					successors[a.Text("refresh_token")] = true
				} else if a.Error() != "invalid_grant" && a.Status != http.StatusServiceUnavailable {
					t.Errorf("without the keys: %d %s", a.Status, a.Body)
				}
			}
			if len(successors) > 1 {
				t.Errorf("a token has %d successors", len(successors))
			}
		}
		stop()
		erasing.Wait()
	})
}

// Where nobody can say whether a token was spent, nothing is decided, and nothing on
// record: the same request may succeed later.
func TestNothingIsDecidedWithoutTheFamily(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		value := w.Refresh(bot, w.Redeem(bot, alice.Code(bot)).Text("refresh_token")).Text("refresh_token")
		before := count(t, d, "select count(*) from audit")
		run(t, d, "alter table refresh_family rename to gone")
		a := w.Refresh(bot, value, "scope", "nothing")
		run(t, d, "alter table gone rename to refresh_family")
		if a.Status < 500 || count(t, d, "select count(*) from audit") != before {
			t.Errorf("without its family a refresh that is to be refused gives %d %s, and something is on record", a.Status, a.Body)
		}
		granted(t, "with it", w.Refresh(bot, value))
	})
}

// A refresh looks at the row of its grant, whatever the node's copy of that says: one that
// has ended on another node, or that has another epoch, has no token spent (A1).
func TestRefreshLooksAtTheGrant(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		for _, changed := range []string{"ended_at = created_at, end_cause = 'of the test'", "epoch = epoch + 1"} {
			value := w.Refresh(bot, w.Redeem(bot, alice.Code(bot)).Text("refresh_token")).Text("refresh_token")
			before := count(t, d, "select sum(generation) from refresh_family")
			run(t, d, "update oauth_grant set "+changed+" where ended_at is null")
			refused(t, "a refresh where "+changed, w.Refresh(bot, value), 400, "invalid_grant")
			if count(t, d, "select sum(generation) from refresh_family") != before {
				t.Errorf("where %s a refresh token was spent", changed)
			}
		}
	})
}

// A refresh token that was made before there were families goes on as any other, found
// by its hash or by its first bytes: it has one successor (A1), and ends its grant when
// it comes back too late (A2).
func TestRefreshTokenOfBefore(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		for _, key := range []func(string) [32]byte{opaque.Hash, opaque.Key} {
			made := opaque.Family(w.Redeem(bot, alice.Code(bot)).Text("refresh_token"))
			first := opaque.New(opaque.RefreshToken)
			id := key(first)
			err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
				n, err := tx.Exec(t.Context(), "update refresh_family set id = $2, hash = $2 where tenant_id = $1 and id = $3", tx.Tenant(), id[:], made[:])
				if err == nil && n != 1 {
					t.Errorf("%d rows have the key, want 1", n)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			successors := map[string]bool{}
			for _, a := range atOnce(16, func(int) oauthtest.Answer { return w.Refresh(bot, first) }) {
				granted(t, "the old token", a)
				successors[a.Text("refresh_token")] = true
			}
			second := w.Refresh(bot, first)
			if len(successors) != 1 || !successors[second.Text("refresh_token")] {
				t.Errorf("the old token has %d successors, want 1, the same each time", len(successors))
			}
			third := w.Refresh(bot, second.Text("refresh_token"))
			granted(t, "its successor", third)
			if again := w.Refresh(bot, first); again.Text("refresh_token") != second.Text("refresh_token") {
				t.Errorf("the old token has two successors: %s", again.Body)
			}
			clock.Advance(token.RetryWindow + time.Second)
			refused(t, "the old token after its window", w.Refresh(bot, first), 400, "invalid_grant")
			if w.Live(bot, third.Token()) {
				t.Error("the family lives on")
			}
		}
	})
}

// What came of a token that was spent a moment before there were families, nobody can say:
// it is not asked for again, and nothing is made up in its place.
func TestRefreshTokenSpentBefore(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		a := w.Redeem(bot, alice.Code(bot))
		made, value := opaque.Family(a.Text("refresh_token")), opaque.New(opaque.RefreshToken)
		id := opaque.Key(value)
		granted(t, "another family, in the same seconds", w.Refresh(bot, w.Redeem(bot, alice.Code(bot)).Text("refresh_token")))
		err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `update refresh_family set id = $2, hash = null, turned_jkt = '', turned_at = (select max(at) * 2000000 from refresh_window)
				where tenant_id = $1 and id = $3`, tx.Tenant(), id[:], made[:])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		refused(t, "its retry", w.Refresh(bot, value), 400, "invalid_grant")
		if w.Live(bot, a.Token()) {
			t.Error("the grant lives on")
		}
	})
}

// A family is kept for an hour beyond the end of its grant, so that a token that comes late
// is known, and for no more than two.
func TestExpiredRefreshTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		value := w.Refresh(bot, w.Redeem(bot, alice.Code(bot)).Text("refresh_token")).Text("refresh_token")
		var ends time.Time
		err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select max(expires_at) from refresh_family").Scan(&ends)
		})
		if err != nil {
			t.Fatal(err)
		}
		clock.Advance(ends.Sub(d.Now()))
		refused(t, "at its end", w.Refresh(bot, value), 400, "invalid_grant")
		for _, c := range []struct {
			after time.Duration
			left  int
		}{{time.Hour - time.Second, 1}, {2 * time.Hour, 0}} {
			clock.Advance(ends.Add(c.after).Sub(d.Now()))
			if err := w.Tokens.SweepCodes(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := count(t, d, "select count(*) from refresh_family"); n != c.left {
				t.Errorf("%v after their end %d families are left, want %d", c.after, n, c.left)
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
	for _, bad := range []string{value + "=", value[:len(value)-1], value[:39] + opaque.New(opaque.RefreshToken)[7:], strings.ToUpper(value), " " + value, "est_ac_" + value[7:], "x", strings.Repeat("a", 5000)} {
		refused(t, "the refresh token "+bad[:1], w.Refresh(bot, bad), 400, "invalid_grant")
	}
	refused(t, "no refresh token", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "refresh_token"), oauthtest.Basic(bot.ID, bot.Secret))), 400, "invalid_request")
	refused(t, "a client that may not refresh", w.Refresh(once, value), 400, "unauthorized_client")
	if i := w.Introspect(bot, value); i.Status != http.StatusOK || i.JSON["active"] != false {
		t.Errorf("introspection of a refresh token: %s", i.Body)
	}
	granted(t, "the right one after all", w.Refresh(bot, value))
}
